//! The conformance suite: named cases after the rules of the InfiniBand verbs, for any device that speaks our programming interface.
//!
//! Place: `nic-emu conformance` and the tests run it against a [`Target`]: the embedded device, or a vfio-user socket. Authors of other
//! devices, servers or drivers call [`run`] themselves.
//! Invariants: a case gets functions of its own and leaves nothing behind but them; it talks to the device through
//! [`ring_proto::attach::Attachment`], rings and doorbells alone, so a target of another author is judged by the same words; a refused
//! rule is a [`Verdict`], never a panic; no case sleeps: it waits for an effect, or shows that the device is at rest.
//! Source: IBTA Architecture Specification vol. 1 and the `ibv_*` manual pages, named by each case; docs/device.md for rules of our own.
//! Leaves out: the messages of vfio-user themselves, and hostile clients, which have suites of their own.
//!
//! ```
//! use nic_emu::conformance::{self, EmbeddedTarget};
//!
//! let report = conformance::run(&EmbeddedTarget::default(), "qp.modify.init-to");
//! assert!(report.passed() > 0 && report.failed() == 0, "{}", report.to_text());
//! ```
//!
//! ```text
//!  cases/*   one file per subject: id, rule, source, code       rig     functions and connected pairs of a case
//!  target    how a device is attached, how its time passes      client, traffic, interrupts  rings, doorbells, commands of one function
//!  report    verdicts as text, JSON and table                   stream  vfio-user    memory  mappings    wr  work requests
//! ```

mod cases;
mod client;
mod interrupts;
mod memory;
mod report;
mod rig;
mod stream;
mod target;
mod traffic;
mod wr;

use std::time::Instant;

pub use report::{CaseResult, Report, Verdict, table};
pub use target::{EmbeddedTarget, Port, SocketTarget, Target};

use rig::Rig;

/// One rule and the code that proves it.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Name: subject, then what is asked of it, e.g. `qp.modify.init-to-rts-refused`.
    pub id: &'static str,
    /// The rule in one sentence.
    pub rule: &'static str,
    /// Where the rule comes from.
    pub source: &'static str,
    run: fn(&mut Rig<'_>) -> Outcome,
}

/// Why a case ended early.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Stop {
    /// The device broke the rule.
    Failed(String),
    /// The target lacks what the case needs.
    Skipped(&'static str),
}

/// How a case ends.
pub(crate) type Outcome<T = ()> = Result<T, Stop>;

/// Every case, by subject.
pub fn cases() -> impl Iterator<Item = &'static Case> {
    cases::ALL.iter().flat_map(|subject| subject.iter())
}

/// Runs the cases whose id contains `filter` against a target.
#[must_use]
pub fn run(target: &dyn Target, filter: &str) -> Report {
    run_where(target, |case| case.id.contains(filter))
}

/// Runs the cases that are wanted against a target.
#[must_use]
pub fn run_where(target: &dyn Target, is_wanted: impl Fn(&Case) -> bool) -> Report {
    let results = cases()
        .filter(|case| is_wanted(case))
        .map(|case| run_case(target, case))
        .collect();
    Report {
        target: target.name(),
        results,
    }
}

fn run_case(target: &dyn Target, case: &'static Case) -> CaseResult {
    let start = Instant::now();
    target.begin();
    let mut rig = Rig::new(target);
    let outcome = (case.run)(&mut rig);
    let trace = rig.finish();
    CaseResult {
        case,
        verdict: match outcome {
            Ok(()) => Verdict::Passed,
            Err(Stop::Failed(why)) => Verdict::Failed(why),
            Err(Stop::Skipped(why)) => Verdict::Skipped(why),
        },
        trace,
        took: start.elapsed(),
    }
}

const fn case(
    id: &'static str,
    rule: &'static str,
    source: &'static str,
    run: fn(&mut Rig<'_>) -> Outcome,
) -> Case {
    Case {
        id,
        rule,
        source,
        run,
    }
}

/// A failure, with what was seen.
pub(crate) fn failed<T>(why: impl Into<String>) -> Outcome<T> {
    Err(Stop::Failed(why.into()))
}

/// Fails unless two values are equal.
pub(crate) fn same<T: PartialEq + std::fmt::Debug>(what: &str, seen: T, wanted: T) -> Outcome {
    if seen == wanted {
        Ok(())
    } else {
        failed(format!("{what}: {seen:?}, not {wanted:?}"))
    }
}

/// Fails unless a condition holds.
pub(crate) fn holds(what: &str, condition: bool) -> Outcome {
    if condition {
        Ok(())
    } else {
        failed(format!("not so: {what}"))
    }
}
