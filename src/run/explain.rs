//! What a run tells at its end: which connections took which road and why, and which system calls went past the library.
//!
//! Place: [`super::run`] makes it before the program starts; [`super::parent`] waits for the end. Invariants: the program's standard
//! output is its own: text goes to standard error or into a file. What a killed program had reported until then is told.
//! Source: `switch::report`; ours.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::process::Command;

use anyhow::Context as _;
use ring_proto::channel;
use ring_proto::telemetry::{ROAD_TCP, Reason};
use serde_json::{Value, json};
use switch::report::{Report, RoadRow, Side};

use super::audit::Audited;
use super::parent::{self, End};
use crate::cli;
use crate::exit::{self, Failure};
use crate::output::{self, Table};

/// A run that tells something at its end.
#[derive(Debug)]
pub(crate) struct Telling {
    report: Report,
    memory: OwnedFd,
    explain: Option<cli::Explain>,
    /// Opened before the program starts: a file that cannot be written is no reason to run it twice.
    file: Option<File>,
    audit: Option<Audited>,
}

impl Telling {
    /// What the arguments ask for, if it is anything.
    pub(crate) fn wanted(arguments: &cli::Run) -> anyhow::Result<Option<Self>> {
        if arguments.explain.is_none() && arguments.audit.is_none() {
            return Ok(None);
        }
        let audit = arguments.audit.map(Audited::begin).transpose()?;
        let file = arguments.explain.as_ref().and_then(|e| e.file.as_deref());
        let create = |path: &Path| {
            File::create(path).with_context(|| format!("cannot write to {}", path.display()))
        };
        let (report, memory) = Report::create()
            .map_err(std::io::Error::from_raw_os_error)
            .context("cannot make the report of the run")?;
        Ok(Some(Self {
            report,
            memory,
            explain: arguments.explain.clone(),
            file: file.map(create).transpose()?,
            audit,
        }))
    }

    /// Lets the program, and what it starts, take part in the report.
    pub(crate) fn hand_over(&self, command: &mut Command) -> anyhow::Result<OwnedFd> {
        let copy = self
            .memory
            .try_clone()
            .context("cannot hand over the report")?;
        let settled = super::settle(copy)?;
        let mut text = settled.as_raw_fd().to_string();
        if self.audit.is_some() {
            text.push(' ');
            text.push_str(channel::REPORT_AUDIT);
        }
        command.env(channel::ENV_REPORT, text);
        Ok(settled)
    }

    /// Takes note of a program that runs without the library.
    pub(crate) fn note(&self, program: &str, reason: Reason) {
        let road = ROAD_TCP | ((reason as u64) << 8);
        let row = self
            .report
            .road(program.as_bytes(), Side::Program, road, None);
        self.report.made(row);
    }

    /// Runs the program, and tells.
    pub(crate) fn run(
        mut self,
        command: Command,
        given: Vec<OwnedFd>,
        name: &str,
    ) -> std::io::Result<Result<(), Failure>> {
        let mut audit = self.audit.take();
        let report = &self.report;
        let (pid, end) = parent::run(command, given, audit.is_some(), || {
            if let Some(audit) = &mut audit {
                audit.tell_new(report);
            }
        })?;
        let told = self.tell(name, pid, end, audit.as_ref());
        let is_bad = audit.is_some_and(|audit| audit.has_failed(&self.report));
        Ok(match told {
            Err(error) => Err(Failure::from(error).with_code(exit::RUN_FAILED)),
            Ok(()) if is_bad && end.is_success() => Err(Failure::silent(exit::AUDIT_FAILED)),
            Ok(()) => end.pass_on(),
        })
    }

    fn tell(
        &mut self,
        name: &str,
        pid: u32,
        end: End,
        audit: Option<&Audited>,
    ) -> anyhow::Result<()> {
        let mut roads = self.report.roads();
        roads.sort_by(|a, b| key(a).cmp(&key(b)));
        let is_json = self.explain.as_ref().is_some_and(|e| e.is_json);
        let mut text = String::new();
        if is_json {
            let value = json!({
                "schema": 1,
                "program": name,
                "pid": pid,
                "exit_code": match end { End::Code(code) => Some(code), End::Signal(_) => None },
                "signal": match end { End::Code(_) => None, End::Signal(signal) => Some(signal.as_str()) },
                "roads": roads.iter().map(as_json).collect::<Vec<_>>(),
                "lost": self.report.lost(),
                "audit": audit.map(|audit| audit.as_json(&self.report)),
            });
            text = format!("{value:#}\n");
        } else if self.explain.is_some() {
            text = as_text(&roads, self.report.lost());
        }
        if let Some(audit) = audit {
            // Beside an object on standard error there would be two languages on it.
            if !is_json || self.file.is_some() {
                audit.tell_end(&self.report);
            }
        }
        match &mut self.file {
            Some(file) => file
                .write_all(text.as_bytes())
                .context("cannot write what the run did")?,
            // A closed standard error leaves nowhere to tell.
            None => drop(std::io::stderr().write_all(text.as_bytes())),
        }
        Ok(())
    }
}

fn key(row: &RoadRow) -> (&str, &'static str, String, bool) {
    (
        &row.program,
        row.side.name(),
        row.address.map_or_else(String::new, |a| a.to_string()),
        !row.is_san,
    )
}

const fn road(row: &RoadRow) -> &'static str {
    if row.is_san { "san" } else { "tcp" }
}

fn as_json(row: &RoadRow) -> Value {
    json!({
        "program": row.program,
        "what": row.side.name(),
        "address": row.address.map(|address| address.to_string()),
        "road": road(row),
        "reason": row.reason.map(Reason::name),
        "count": row.count,
        "inherited": row.inherited,
        "tx_bytes": row.tx_bytes,
        "rx_bytes": row.rx_bytes,
    })
}

fn as_text(rows: &[RoadRow], lost: u64) -> String {
    if rows.is_empty() {
        return "sanlab: no connection and no listener of this run met the switch\n".to_owned();
    }
    let titles = [
        "PROGRAM",
        "WHAT",
        "ADDRESS",
        "ROAD",
        ">COUNT",
        ">SENT",
        ">RECEIVED",
        "WHY TCP",
    ];
    let mut table = Table::new(&titles);
    for row in rows {
        let is_stream = matches!(row.side, Side::Connected | Side::Accepted);
        let bytes = |count: u64| match is_stream {
            true => output::bytes(count),
            false => "-".to_owned(),
        };
        let count = match row.inherited {
            0 => row.count.to_string(),
            more => format!("{}+{more}", row.count),
        };
        table.row([
            row.program.clone(),
            row.side.name().to_owned(),
            row.address
                .map_or_else(|| "-".to_owned(), |address| address.to_string()),
            road(row).to_owned(),
            count,
            bytes(row.tx_bytes),
            bytes(row.rx_bytes),
            row.reason.map_or("-", Reason::name).to_owned(),
        ]);
    }
    let mut text = format!("sanlab: roads of this run\n{}", table.render("  "));
    if lost > 0 {
        text.push_str(&format!("  and {lost} more, for which there was no room\n"));
    }
    text
}
