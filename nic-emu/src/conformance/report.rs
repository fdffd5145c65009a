//! What a run of the suite found: as text for people, as JSON for programs, as the table of docs/conformance.md.
//!
//! Place: made by [`super::run`], printed by `nic-emu conformance`, written by the suite's test. Invariants: the table depends on the
//! verdicts alone, never on time or addresses, so that it can be committed and compared.
//! Source: deviations of rxe as published in google/rdma-unit-test, `internal/introspection_rxe.h`. Leaves out: everything not asked.

use std::fmt::Write;
use std::time::Duration;

use serde_json::json;

use super::Case;

/// How a case ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The device keeps the rule.
    Passed,
    /// It does not; what was seen.
    Failed(String),
    /// The target cannot show it; why.
    Skipped(&'static str),
}

/// A case with its verdict.
#[derive(Clone, Debug)]
pub struct CaseResult {
    /// The case.
    pub case: &'static Case,
    /// How it ended.
    pub verdict: Verdict,
    /// Every completion, event and admin answer in the order of their coming, with the device's time; empty unless the target's time
    /// is virtual.
    pub trace: Vec<String>,
    /// Time it took.
    pub took: Duration,
}

/// Verdicts of one run.
#[derive(Clone, Debug)]
pub struct Report {
    /// Name of the target.
    pub target: String,
    /// Cases in their order.
    pub results: Vec<CaseResult>,
}

impl Report {
    fn count(&self, wanted: impl Fn(&Verdict) -> bool) -> usize {
        let all = self.results.iter();
        all.filter(|result| wanted(&result.verdict)).count()
    }

    /// Cases that passed.
    #[must_use]
    pub fn passed(&self) -> usize {
        self.count(|verdict| *verdict == Verdict::Passed)
    }

    /// Cases that failed.
    #[must_use]
    pub fn failed(&self) -> usize {
        self.count(|verdict| matches!(verdict, Verdict::Failed(_)))
    }

    /// Cases that the target could not show.
    #[must_use]
    pub fn skipped(&self) -> usize {
        self.count(|verdict| matches!(verdict, Verdict::Skipped(_)))
    }

    /// One line per case, and the sums.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for result in &self.results {
            let (word, why) = match &result.verdict {
                Verdict::Passed => ("ok  ", String::new()),
                Verdict::Failed(why) => (
                    "FAIL",
                    format!(
                        ": {why}\n       rule: {} [{}]",
                        result.case.rule, result.case.source
                    ),
                ),
                Verdict::Skipped(why) => ("skip", format!(": {why}")),
            };
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{word} {}{why}", result.case.id);
        }
        let _ = writeln!(
            text,
            "{}: {} passed, {} failed, {} skipped",
            self.target,
            self.passed(),
            self.failed(),
            self.skipped()
        );
        text
    }

    /// The same as one JSON object.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let cases: Vec<_> = self
            .results
            .iter()
            .map(|result| {
                let (verdict, why) = match &result.verdict {
                    Verdict::Passed => ("passed", None),
                    Verdict::Failed(why) => ("failed", Some(why.as_str())),
                    Verdict::Skipped(why) => ("skipped", Some(*why)),
                };
                json!({
                    "id": result.case.id,
                    "rule": result.case.rule,
                    "source": result.case.source,
                    "verdict": verdict,
                    "why": why,
                    "took_us": u64::try_from(result.took.as_micros()).unwrap_or(u64::MAX),
                })
            })
            .collect();
        json!({
            "schema": 1,
            "target": self.target,
            "passed": self.passed(),
            "failed": self.failed(),
            "skipped": self.skipped(),
            "cases": cases,
        })
    }
}

/// Published deviations of rxe: our case, and the test there that rxe does not pass.
const RXE: &[(&str, &str)] = &[
    (
        "key.lkey.pd-mismatch-send",
        "PdRcLoopbackMrTest.BasicWriteMrOtherPdLocal",
    ),
    (
        "key.lkey.pd-mismatch-write",
        "PdRcLoopbackMrTest.BasicWriteMrOtherPdLocal",
    ),
    (
        "key.lkey.pd-mismatch-read",
        "PdRcLoopbackMrTest.BasicReadMrOtherPdLocal",
    ),
    (
        "key.rkey.pd-mismatch-write",
        "PdRcLoopbackMrTest.BasicWriteMrOtherPdRemote",
    ),
    (
        "key.rkey.pd-mismatch-read",
        "PdRcLoopbackMrTest.BasicReadMrOtherPdRemote",
    ),
    (
        "atomic.pd-mismatch-local-faa",
        "PdRcLoopbackMrTest.BasicFetchAddMrOtherPdLocal",
    ),
    (
        "atomic.pd-mismatch-remote-faa",
        "PdRcLoopbackMrTest.BasicFetchAddMrOtherPdRemote",
    ),
    (
        "atomic.pd-mismatch-local-cas",
        "PdRcLoopbackMrTest.BasicCompSwapMrOtherPdLocal",
    ),
    (
        "atomic.pd-mismatch-remote-cas",
        "PdRcLoopbackMrTest.BasicCompSwapMrOtherPdRemote",
    ),
    (
        "atomic.two-sges-refused",
        "LoopbackRcQpTest.FetchAddSplitSgl",
    ),
    (
        "zero-length.write.unknown-key-refused",
        "BufferTest.ZeroByteWriteInvalidRKey",
    ),
    (
        "zero-length.read.unknown-key-refused",
        "BufferTest.ZeroByteReadInvalidRKey",
    ),
    (
        "doorbell.sq.past-depth-is-an-error",
        "QpTest.OverflowSendWr",
    ),
    ("qp.create.unknown-type-refused", "QpTest.UnknownType"),
    ("srq.pd-mismatch-refused", "SrqPdTest.SrqRecvMrSrqMismatch"),
    ("srq.pd-of-srq-counts", "SrqPdTest.SrqRecvMrSrqMatch"),
    ("srq.overflow-is-an-error", "SrqTest.OverflowSrq"),
];

/// The published test of rxe's known deviations that a case answers.
fn rxe_deviation(id: &str) -> Option<&'static str> {
    RXE.iter()
        .find(|(own, _)| *own == id)
        .map(|&(_, test)| test)
}

/// The table of docs/conformance.md: a row per case, a column per report.
#[must_use]
pub fn table(reports: &[&Report]) -> String {
    let mut text = String::new();
    let mut subject = "";
    let Some(first) = reports.first() else {
        return text;
    };
    for (index, row) in first.results.iter().enumerate() {
        let own = row.case.id.split('.').next().unwrap_or("");
        if own != subject {
            subject = own;
            let names: Vec<_> = reports
                .iter()
                .map(|report| report.target.as_str())
                .collect();
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "\n### {subject}\n\n| case | rule | source | {} | rxe |\n|---|---|---|{}---|",
                names.join(" | "),
                "---|".repeat(names.len())
            );
        }
        let _ = write!(
            text,
            "| `{}` | {} | {} |",
            row.case.id, row.case.rule, row.case.source
        );
        for report in reports {
            let verdict = report.results.get(index).map(|result| &result.verdict);
            let word = match verdict {
                Some(Verdict::Passed) => "yes",
                Some(Verdict::Failed(_)) => "**no**",
                Some(Verdict::Skipped(_)) | None => "-",
            };
            let _ = write!(text, " {word} |");
        }
        let rxe =
            rxe_deviation(row.case.id).map_or(String::new(), |test| format!("**no**: {test}"));
        let _ = writeln!(text, " {rxe} |");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::cases;
    use super::*;

    #[test]
    fn every_case_has_an_id_of_its_own_and_names_rule_and_source() {
        let mut ids: Vec<_> = cases().map(|case| case.id).collect();
        let all = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), all);
        for case in cases() {
            assert!(case.id.split('.').count() >= 2, "{}", case.id);
            assert!(
                !case.rule.contains('|') && case.rule.len() > 10,
                "{}",
                case.id
            );
            assert!(!case.source.is_empty(), "{}", case.id);
        }
    }

    #[test]
    fn every_published_deviation_names_a_case() {
        for (id, test) in RXE {
            assert!(cases().any(|case| case.id == *id), "{id} for {test}");
        }
    }

    #[test]
    fn verdicts_are_told_in_text_and_json() {
        let case = cases().next().unwrap();
        let result = |verdict| CaseResult {
            case,
            verdict,
            trace: Vec::new(),
            took: Duration::ZERO,
        };
        let report = Report {
            target: "test".into(),
            results: vec![
                result(Verdict::Passed),
                result(Verdict::Failed("seen".into())),
                result(Verdict::Skipped("reason")),
            ],
        };
        let text = report.to_text();
        assert!(text.contains(": seen") && text.contains("1 passed, 1 failed, 1 skipped"));
        let json = report.to_json();
        assert_eq!(json["failed"], 1);
        assert_eq!(json["cases"][2]["why"], "reason");
        assert!(table(&[&report]).contains("| yes |"));
    }
}
