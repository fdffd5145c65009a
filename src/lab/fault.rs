//! `sanlab fault`: rules that make chosen pieces of work fail.
//!
//! Place: arguments become the fields of a rule, which the emulator checks; lists come back as tables. Invariants: every field of the
//! control protocol can be said here. Source: ours, docs/control.md.

use nic_emu::control::client;
use nic_emu::control::{Faults, SCHEMA};
use nic_emu::device::{FaultHit, FaultRow};
use serde_json::{Map, Value, json};

use super::{answer, refused, running, socket};
use crate::cli;
use crate::exit::Failure;
use crate::output::{self, Table};
use crate::units;

/// `sanlab fault …`.
pub(crate) fn fault(arguments: &cli::Fault) -> Result<(), Failure> {
    match &arguments.command {
        cli::FaultCommand::Add(arguments) => add(arguments),
        cli::FaultCommand::Ls(arguments) => ls(arguments),
        cli::FaultCommand::Rm(arguments) => rm(arguments),
    }
}

fn add(arguments: &cli::FaultAdd) -> Result<(), Failure> {
    let fields = fields(arguments)?;
    let cluster = running(arguments.cluster.as_deref())?;
    let id = client::add_fault(&socket(&cluster), fields).map_err(refused)?;
    answer(
        arguments.json,
        &json!({"schema": SCHEMA, "id": id}),
        &format!("fault {id}\n"),
    )
}

/// The rule as the control socket takes it.
fn fields(arguments: &cli::FaultAdd) -> Result<Map<String, Value>, Failure> {
    let mut fields = Map::new();
    let mut put = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            fields.insert(name.into(), value);
        }
    };
    let text = |word: &Option<String>| word.clone().map(Value::from);
    put("at", Some(arguments.at.clone().into()));
    let (action, value) = match arguments.action.split_once('=') {
        Some((action, value)) => (action, Some(value)),
        None => (arguments.action.as_str(), None),
    };
    put("action", Some(action.into()));
    match (action, value) {
        ("delay", Some(value)) => {
            let ns = units::time_ns(value).map_err(Failure::usage)?;
            put("delay_ns", Some(ns.into()));
        }
        ("status", Some(value)) => put("status", Some(value.into())),
        ("fail", Some(value)) => put("code", Some(value.into())),
        ("delay" | "status" | "fail", None) => {
            return Err(Failure::usage(format_args!(
                "`{action}` needs a value: `delay=5ms`, `status=REM_OP_ERR` or `fail=WSAENOBUFS`"
            )));
        }
        (_, Some(_)) => {
            return Err(Failure::usage(format_args!(
                "`{action}` takes no value; only `delay`, `status` and `fail` do"
            )));
        }
        (_, None) => {}
    }
    put("node", text(&arguments.node));
    put("function", arguments.function.map(Value::from));
    put("qpn", arguments.qpn.map(Value::from));
    put("opcode", text(&arguments.opcode));
    put("call", text(&arguments.call));
    put("nth", arguments.nth.map(Value::from));
    put("every", arguments.every.map(Value::from));
    put("ppm", arguments.chance.map(Value::from));
    put("count", arguments.count.map(Value::from));
    put("seed", arguments.seed.map(Value::from));
    Ok(fields)
}

fn ls(arguments: &cli::FaultLs) -> Result<(), Failure> {
    let cluster = running(arguments.cluster.as_deref())?;
    let faults = client::faults(&socket(&cluster), arguments.id).map_err(refused)?;
    answer(arguments.json, &faults, &render(&faults))
}

fn rm(arguments: &cli::FaultRm) -> Result<(), Failure> {
    let cluster = running(arguments.cluster.as_deref())?;
    let removed = client::remove_fault(&socket(&cluster), arguments.id).map_err(refused)?;
    let text = match removed {
        1 => "1 fault rule removed\n".to_owned(),
        several => format!("{several} fault rules removed\n"),
    };
    answer(
        arguments.json,
        &json!({"schema": SCHEMA, "removed": removed}),
        &text,
    )
}

fn render(faults: &Faults) -> String {
    let report = &faults.report;
    let mut rules = Table::new(&[
        ">ID", "AT", "ACTION", "FOR", "WHEN", ">SEEN", ">FIRED", "LAST", "STATE",
    ]);
    for row in &report.faults {
        rules.row([
            row.id.to_string(),
            row.at.clone(),
            action(row),
            scope(row),
            when(row),
            output::count(row.seen),
            output::count(row.fired),
            row.last_ns.map_or_else(String::new, |at_ns| {
                format!("{} ago", ago(report.now_ns, at_ns))
            }),
            if row.is_spent { "spent" } else { "in force" }.into(),
        ]);
    }
    let mut text = if rules.is_empty() {
        "no fault rules\n".to_owned()
    } else {
        rules.render("")
    };
    let mut log = Table::new(&[
        ">#",
        "AGO",
        ">ID",
        "AT",
        "ACTION",
        "NODE",
        ">FUNCTION",
        "QP",
        "WHAT",
    ]);
    for hit in &report.log {
        log.row(hit_row(report.now_ns, hit));
    }
    if !log.is_empty() {
        text.push_str(&format!("\nfaults:\n{}", log.render("")));
    }
    if report.log_lost > 0 {
        text.push_str(&format!(
            "{} earlier faults are no longer listed\n",
            report.log_lost
        ));
    }
    text
}

fn hit_row(now_ns: u64, hit: &FaultHit) -> [String; 9] {
    let what = hit.opcode.as_ref().or(hit.call.as_ref());
    [
        hit.sequence.to_string(),
        ago(now_ns, hit.at_ns),
        hit.id.to_string(),
        hit.at.clone(),
        hit.action.clone(),
        hit.node.clone(),
        hit.function.to_string(),
        hit.qpn.map(|qpn| format!("{qpn:#x}")).unwrap_or_default(),
        what.cloned().unwrap_or_default(),
    ]
}

fn ago(now_ns: u64, at_ns: u64) -> String {
    let passed_ms = now_ns.saturating_sub(at_ns) / 1_000_000;
    match passed_ms {
        0 => "0".into(),
        ms => units::show_time(ms * 1_000_000),
    }
}

fn action(row: &FaultRow) -> String {
    let value = row
        .delay_ns
        .map(units::show_time)
        .or_else(|| row.status.clone())
        .or_else(|| row.code.clone());
    match value {
        Some(value) => format!("{}={value}", row.action),
        None => row.action.clone(),
    }
}

fn scope(row: &FaultRow) -> String {
    let mut words = Vec::new();
    words.extend(row.node.clone());
    words.extend(row.function.map(|id| format!("function {id}")));
    words.extend(row.qpn.map(|qpn| format!("qp {qpn:#x}")));
    words.extend(row.opcode.clone().or_else(|| row.call.clone()));
    if words.is_empty() {
        words.push("all".into());
    }
    words.join(" ")
}

fn when(row: &FaultRow) -> String {
    let mut words = Vec::new();
    words.extend(row.nth.map(|n| format!("nth {n}")));
    words.extend(row.every.map(|n| format!("every {n}")));
    words.extend(row.ppm.map(units::show_share));
    words.extend(row.count.map(|count| format!("at most {count}")));
    if words.is_empty() {
        words.push("always".into());
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn read(words: &[&str]) -> Result<Value, Failure> {
        let all = ["sanlab", "fault", "add"].iter().chain(words);
        let parsed = cli::Cli::try_parse_from(all).unwrap();
        let cli::Command::Fault(cli::Fault {
            command: cli::FaultCommand::Add(arguments),
        }) = parsed.command
        else {
            panic!("another command");
        };
        fields(&arguments).map(Value::Object)
    }

    #[test]
    fn every_field_can_be_said() {
        let words = [
            "packet",
            "delay=5ms",
            "--node",
            "a",
            "--function",
            "3",
            "--qpn",
            "0x11",
            "--opcode",
            "SEND",
            "--chance",
            "0.1%",
            "--count",
            "5",
            "--seed",
            "9",
        ];
        let wanted = json!({"at": "packet", "action": "delay", "delay_ns": 5_000_000, "node": "a", "function": 3,
            "qpn": 17, "opcode": "SEND", "ppm": 1_000, "count": 5, "seed": 9});
        assert_eq!(read(&words).unwrap(), wanted);
        let wanted = json!({"at": "wqe", "action": "status", "status": "REM_OP_ERR", "nth": 2});
        assert_eq!(
            read(&["wqe", "status=REM_OP_ERR", "--nth", "2"]).unwrap(),
            wanted
        );
        let wanted = json!({"at": "call", "action": "fail", "code": "WSAENOBUFS", "call": "wsp_bind", "every": 2});
        assert_eq!(
            read(&[
                "call",
                "fail=WSAENOBUFS",
                "--call",
                "wsp_bind",
                "--every",
                "2"
            ])
            .unwrap(),
            wanted
        );
    }

    #[test]
    fn values_belong_to_the_actions_that_take_them() {
        for words in [
            &["packet", "delay"][..],
            &["packet", "drop=5"],
            &["packet", "delay=5"],
        ] {
            assert!(read(words).unwrap_err().is_usage());
        }
    }
}
