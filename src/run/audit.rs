//! The launcher's side of `sanlab run --audit`: is this kernel able to, what was found, and what it is called.
//!
//! Place: [`super::explain`] begins it and asks for its words; the watching is the library's. Invariants: each call and place is told once
//! while the program runs and once more, with its count, at the end. A run in which nothing could be watched never looks clean.
//! Source: prctl(2), PR_SET_SYSCALL_USER_DISPATCH; ours.

use anyhow::bail;
use serde_json::{Value, json};
use switch::report::{Finding, Report};
use switch::watched;

use super::symbols;
use crate::cli;
use crate::exit;

/// An audit under way.
#[derive(Debug)]
pub(crate) struct Audited {
    mode: cli::Audit,
    /// Findings that have been told.
    told: Vec<Finding>,
}

impl Audited {
    /// Begins one, if the kernel lets us.
    pub(crate) fn begin(mode: cli::Audit) -> anyhow::Result<Self> {
        if !switch::sys::can_dispatch() {
            bail!(
                "this kernel has no syscall user dispatch, which --audit needs (Linux 5.11 or later on x86-64, with CONFIG_GENERIC_ENTRY); \
                 run without --audit"
            );
        }
        Ok(Self {
            mode,
            told: Vec::new(),
        })
    }

    /// Tells of findings that are new.
    pub(crate) fn tell_new(&mut self, report: &Report) {
        if report.findings_made() <= self.told.len() as u64 {
            return;
        }
        for finding in report.findings() {
            let is_told = self.told.iter().any(|told| is_same(told, &finding));
            if !is_told {
                exit::diagnostic(format_args!("audit: {}", sentence(&finding)));
                self.told.push(finding);
            }
        }
    }

    /// Tells of all findings with their counts.
    pub(crate) fn tell_end(&self, report: &Report) {
        let findings = report.findings();
        let (armed, unarmed) = report.processes_watched();
        for finding in &findings {
            let times = match finding.count {
                1 => "once".to_owned(),
                count => format!("{count} times"),
            };
            let text = sentence(finding);
            exit::diagnostic(format_args!("audit: {times}: {text}"));
        }
        let calls: u64 = findings.iter().map(|finding| finding.count).sum();
        exit::diagnostic(format_args!(
            "audit: {calls} calls from {} places went past the library; {armed} processes were watched",
            findings.len()
        ));
        if unarmed > 0 {
            exit::diagnostic(format_args!(
                "audit: {unarmed} processes could not be watched"
            ));
        }
    }

    /// Whether the exit code must tell of it.
    pub(crate) fn has_failed(&self, report: &Report) -> bool {
        let (_, unarmed) = report.processes_watched();
        self.mode == cli::Audit::Fail && (unarmed > 0 || report.findings_made() > 0)
    }

    /// The audit's member of the JSON object.
    pub(crate) fn as_json(&self, report: &Report) -> Value {
        let findings = report.findings();
        let (armed, unarmed) = report.processes_watched();
        json!({
            "watched": armed,
            "not_watched": unarmed,
            "calls": findings.iter().map(|finding| finding.count).sum::<u64>(),
            "findings": findings.iter().map(finding_json).collect::<Vec<_>>(),
        })
    }
}

fn is_same(a: &Finding, b: &Finding) -> bool {
    (a.number, a.offset, &a.module) == (b.number, b.offset, &b.module)
}

fn call(finding: &Finding) -> String {
    watched::name_of(finding.number)
        .map_or_else(|| format!("system call {}", finding.number), str::to_owned)
}

fn symbol(finding: &Finding) -> Option<String> {
    let (name, past) = symbols::nearest(&finding.module, finding.offset)?;
    Some(format!("{name}+{past:#x}"))
}

fn sentence(finding: &Finding) -> String {
    let module = match finding.module.as_str() {
        "" => "code without a file",
        path => path.rsplit_once('/').map_or(path, |(_, name)| name),
    };
    let place = symbol(finding).map_or_else(String::new, |symbol| format!(" ({symbol})"));
    format!(
        "{}[{}]: {} past the library on {} (descriptor {}), at {module}+{:#x}{place}",
        finding.program,
        finding.pid,
        call(finding),
        what(finding),
        finding.fd,
        finding.offset,
    )
}

fn what(finding: &Finding) -> &'static str {
    use switch::report::Touched;
    match finding.touched {
        Touched::San => "a SAN socket",
        Touched::Set => "an epoll set with SAN sockets",
        Touched::Socket => "a socket that may be the SAN's",
        Touched::Library => "a descriptor of the library",
        Touched::Process => "a process with SAN sockets",
        Touched::Ring => "any socket, by a ring",
    }
}

fn finding_json(finding: &Finding) -> Value {
    json!({
        "program": finding.program,
        "pid": finding.pid,
        "call": call(finding),
        "number": finding.number,
        "touched": finding.touched.name(),
        "fd": finding.fd,
        "module": finding.module,
        "offset": finding.offset,
        "symbol": symbol(finding),
        "count": finding.count,
    })
}
