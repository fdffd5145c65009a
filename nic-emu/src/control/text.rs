//! Inspections as text: one table per part, after `rdma resource show`.
//!
//! Place: `nic-emu inspect` prints what these functions make of an answer. Invariants: nothing is computed that is not in the answer.
//! Source: ours.

use std::fmt::Write as _;

use super::{Inspected, Recorded};
use crate::device::{Finding, Inspection, Recording, Resource, RuleCount, Topic, WorkQueueRow};

/// Tables of an inspection: of some parts, of all when none is named.
#[must_use]
pub fn inspection(answer: &Inspected, topics: &[Topic]) -> String {
    let wants = |topic| topics.is_empty() || topics.contains(&topic);
    let found = &answer.inspection;
    let engine = &found.engine;
    let mut text = format!(
        "{}, emulator process {}: {}, {} hot functions, {} QPs with work, validation {}\n",
        answer.cluster,
        answer.emulator_pid,
        match &engine.paused {
            Some(reason) => format!("paused ({reason})"),
            None => "running".into(),
        },
        engine.hot_functions,
        engine.active_qps,
        if engine.validate { "on" } else { "off" },
    );
    let parts: [(Topic, &str, Vec<Vec<String>>); 9] = [
        (Topic::Functions, "functions", functions(found)),
        (Topic::Qps, "queue pairs", qps(found)),
        (Topic::Cqs, "completion queues", cqs(found)),
        (Topic::Srqs, "shared receive queues", srqs(found)),
        (Topic::Mrs, "memory regions", mrs(found)),
        (Topic::Mws, "memory windows", mws(found)),
        (Topic::Windows, "windows", windows(found)),
        (Topic::Doorbells, "doorbells", doorbells(found)),
        (Topic::Limits, "limits", limits(found)),
    ];
    for (topic, title, rows) in parts {
        if wants(topic) {
            let _ = write!(text, "\n{title}:\n{}", table(&rows));
        }
    }
    if wants(Topic::Findings) {
        text.push_str(&findings(&found.findings, &found.rules, engine.validate));
    }
    text
}

fn findings(findings: &[Finding], rules: &[RuleCount], is_on: bool) -> String {
    if findings.is_empty() {
        let hint = if is_on {
            ""
        } else {
            " (the validation layer is off; start with --validate)"
        };
        return format!("\nfindings: none{hint}\n");
    }
    let mut text = String::from("\nfindings:\n");
    for finding in findings {
        let _ = writeln!(text, "{finding}");
    }
    let mut rows = vec![words(["RULE", "COUNT", "SUPPRESSED"])];
    rows.extend(rules.iter().map(|rule| {
        vec![
            rule.rule.clone(),
            rule.count.to_string(),
            rule.suppressed.to_string(),
        ]
    }));
    let _ = write!(text, "\n{}", table(&rows));
    text
}

/// Events of every function, dumps first.
#[must_use]
pub fn recorder(answer: &Recorded) -> String {
    let mut text = String::new();
    for recording in answer.dumps.iter().chain(&answer.live) {
        let _ = writeln!(text, "{}", one_recording(recording));
    }
    if text.is_empty() {
        text.push_str("no function is attached, and none has failed\n");
    }
    text
}

fn one_recording(recording: &Recording) -> String {
    let what = match &recording.reason {
        Some(reason) => format!("kept at {} ns: {reason}", recording.at_ns),
        None => "live".into(),
    };
    let mut rows = vec![words([
        "#", "TIME NS", "EVENT", "NUMBER", "CODE", "INDEX", "LEN", "WR_ID", "STATUS", "SYNDROME",
    ])];
    rows.extend(recording.events.iter().map(|event| {
        vec![
            event.sequence.to_string(),
            event.at_ns.to_string(),
            event.event.clone(),
            format!("{:#x}", event.number),
            event.code.clone().unwrap_or_default(),
            event.index.to_string(),
            event.len.to_string(),
            format!("{:#x}", event.wr_id),
            event.status.clone().unwrap_or_default(),
            event.syndrome.clone().unwrap_or_default(),
        ]
    }));
    format!(
        "function {} of node {}, {what}\n{}",
        recording.function,
        recording.node,
        table(&rows)
    )
}

fn functions(found: &Inspection) -> Vec<Vec<String>> {
    let mut rows = vec![words([
        "FUNCTION",
        "NODE",
        "PID",
        "STATE",
        "PARKED",
        "RESETS",
        "QPS",
        "CQS",
        "MRS",
        "WINDOWS",
        "LISTENERS",
        "EVENTS",
        "WQES",
        "TX BYTES",
        "SYNDROME",
    ])];
    rows.extend(found.functions.iter().map(|row| {
        vec![
            row.function.to_string(),
            row.node.clone(),
            row.pid.map(|pid| pid.to_string()).unwrap_or_default(),
            row.state.clone(),
            if row.is_parked { "yes" } else { "no" }.into(),
            row.generation.to_string(),
            row.qps.to_string(),
            row.cqs.to_string(),
            row.mrs.to_string(),
            row.windows.to_string(),
            row.listeners.to_string(),
            row.waiting_events.to_string(),
            row.wqes.to_string(),
            row.tx_bytes.to_string(),
            row.syndrome.clone().unwrap_or_default(),
        ]
    }));
    rows
}

fn qps(found: &Inspection) -> Vec<Vec<String>> {
    let mut rows = vec![words([
        "FUNCTION",
        "NODE",
        "QPN",
        "STATE",
        "PEER",
        "PD",
        "CQ S/R",
        "SQ",
        "RQ",
        "WAITS FOR",
        "HOLDERS",
        "PACKETS",
        "AGAIN",
        "ERRORS",
        "LAST ERROR",
    ])];
    rows.extend(found.qps.iter().map(|row| {
        let last = row.last_error.as_ref();
        let packets = row.packets.unwrap_or_default();
        vec![
            row.function.to_string(),
            row.node.clone(),
            format!("{:#x}", row.qpn),
            if row.is_orphan {
                format!("{} orphan", row.state)
            } else {
                row.state.clone()
            },
            format!("{}:{:#x}", row.peer_function, row.peer_qpn),
            format!("{:#x}", row.pdn),
            format!("{:#x}/{:#x}", row.send_cqn, row.recv_cqn),
            queue(&row.sq),
            if row.srqn == 0 {
                queue(&row.rq)
            } else {
                format!("SRQ {:#x}", row.srqn)
            },
            row.waits_for.clone().unwrap_or_default(),
            row.holders.to_string(),
            packets.tx_packets.to_string(),
            packets.retransmitted_packets.to_string(),
            last.map_or(0, |error| error.count).to_string(),
            last.map(|error| {
                let status = error.status.as_deref().unwrap_or("QP_FATAL");
                format!("{status} {} wr_id {:#x}", error.syndrome, error.wr_id)
            })
            .unwrap_or_default(),
        ]
    }));
    rows
}

fn queue(row: &WorkQueueRow) -> String {
    format!("{}/{} of {}", row.consumer, row.producer, row.depth)
}

fn cqs(found: &Inspection) -> Vec<Vec<String>> {
    let mut rows = vec![words([
        "FUNCTION", "NODE", "CQN", "DEPTH", "PRODUCER", "CONSUMER", "ARMED", "USERS", "SLOT",
        "RING", "STATE",
    ])];
    rows.extend(found.cqs.iter().map(|row| {
        vec![
            row.function.to_string(),
            row.node.clone(),
            format!("{:#x}", row.cqn),
            row.depth.to_string(),
            row.producer.to_string(),
            row.consumer.to_string(),
            format!("{:#x}", row.armed),
            row.users.to_string(),
            row.slot.to_string(),
            format!("{:#x}", row.ring),
            if row.is_broken { "broken" } else { "ok" }.into(),
        ]
    }));
    rows
}

fn srqs(found: &Inspection) -> Vec<Vec<String>> {
    let mut rows = vec![words([
        "FUNCTION", "NODE", "SRQN", "PD", "QUEUE", "LIMIT", "USERS", "WAITING", "SLOT", "RING",
        "STATE",
    ])];
    rows.extend(found.srqs.iter().map(|row| {
        vec![
            row.function.to_string(),
            row.node.clone(),
            format!("{:#x}", row.srqn),
            format!("{:#x}", row.pdn),
            queue(&row.queue),
            row.limit.to_string(),
            row.users.to_string(),
            row.waiting.to_string(),
            row.slot.to_string(),
            format!("{:#x}", row.queue.ring),
            if row.is_broken { "broken" } else { "ok" }.into(),
        ]
    }));
    rows
}

fn mrs(found: &Inspection) -> Vec<Vec<String>> {
    let mut rows = vec![words([
        "FUNCTION", "NODE", "KEY", "IOVA", "LEN", "PD", "OWNER", "MEMORY", "ACCESS",
    ])];
    rows.extend(found.mrs.iter().map(|row| {
        vec![
            row.function.to_string(),
            row.node.clone(),
            format!("{:#010x}", row.key),
            format!("{:#x}", row.iova),
            row.len.to_string(),
            format!("{:#x}", row.pdn),
            format!("{:#x}", row.owner_qpn),
            if row.has_memory { "yes" } else { "gone" }.into(),
            row.access.clone(),
        ]
    }));
    rows
}

fn mws(found: &Inspection) -> Vec<Vec<String>> {
    let mut rows = vec![words([
        "FUNCTION", "NODE", "KEY", "TYPE", "PD", "STATE", "REGION", "IOVA", "LEN", "QPN", "ACCESS",
    ])];
    rows.extend(found.mws.iter().map(|row| {
        vec![
            row.function.to_string(),
            row.node.clone(),
            format!("{:#010x}", row.key),
            row.kind.to_string(),
            format!("{:#x}", row.pdn),
            if row.is_bound { "bound" } else { "free" }.into(),
            format!("{:#010x}", row.mr_key),
            format!("{:#x}", row.iova),
            row.len.to_string(),
            format!("{:#x}", row.qpn),
            row.access.clone(),
        ]
    }));
    rows
}

fn windows(found: &Inspection) -> Vec<Vec<String>> {
    let mut rows = vec![words([
        "FUNCTION", "NODE", "IOVA", "LEN", "OFFSET", "WRITE", "MEMORY",
    ])];
    rows.extend(found.windows.iter().map(|row| {
        vec![
            row.function.to_string(),
            row.node.clone(),
            format!("{:#x}", row.iova),
            row.len.to_string(),
            format!("{:#x}", row.offset),
            if row.write { "yes" } else { "no" }.into(),
            if row.has_memory { "yes" } else { "none" }.into(),
        ]
    }));
    rows
}

fn doorbells(found: &Inspection) -> Vec<Vec<String>> {
    let mut rows = vec![words([
        "FUNCTION", "NODE", "SLOT", "QPN", "ALSO", "SQ", "RQ", "CONSUMER", "ARMED", "ARMED AT",
        "DIRTY",
    ])];
    rows.extend(found.doorbells.iter().map(|row| {
        vec![
            row.function.to_string(),
            row.node.clone(),
            row.slot.to_string(),
            format!("{:#x}", row.qpn),
            row.completions.clone().unwrap_or_default(),
            row.sq_producer.to_string(),
            row.rq_producer.to_string(),
            row.cq_consumer.to_string(),
            format!("{:#x}", row.arm_vectors),
            row.arm_sequence.to_string(),
            if row.is_dirty { "yes" } else { "" }.into(),
        ]
    }));
    rows
}

/// A line per node: what it has of each, and behind a stroke what it may have, where it has a limit of its own.
fn limits(found: &Inspection) -> Vec<Vec<String>> {
    let names = Resource::ALL.map(|resource| resource.name().to_uppercase());
    let mut rows = vec![[vec!["NODE".to_owned()], names.into()].concat()];
    for of_node in found.limits.chunk_by(|one, other| one.node == other.node) {
        let node = of_node.first().map(|row| row.node.clone());
        let cells = of_node.iter().map(|row| match row.limit {
            Some(limit) => format!("{}/{limit}", row.used),
            None => row.used.to_string(),
        });
        rows.push(node.into_iter().chain(cells).collect());
    }
    rows
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).into()
}

/// Rows in columns as wide as they need to be; the first row is the titles.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::from("  ");
        for (cell, &width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Inspected, inspection};
    use crate::device::{Device, DeviceOptions, Topic};

    #[test]
    fn an_empty_device_has_titles_and_no_rows() {
        let answer = Inspected {
            schema: 1,
            cluster: "lab".into(),
            emulator_pid: 7,
            inspection: Device::new(DeviceOptions::default()).inspect(&[]),
        };
        let text = inspection(&answer, &[]);
        for part in [
            "lab, emulator process 7: running",
            "QPN",
            "findings: none (the validation layer is off",
        ] {
            assert!(text.contains(part), "{text}");
        }
        let text = inspection(&answer, &[Topic::Mrs]);
        assert!(
            text.contains("memory regions:") && !text.contains("QPN"),
            "{text}"
        );
    }
}
