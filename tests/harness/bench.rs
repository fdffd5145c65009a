//! `sanlab bench` of a test: short runs, and what every row must have.
//!
//! Place: tests/cli_bench*.rs. What a figure says is not their business, that it is one is.

use serde_json::Value;

use super::Lab;

/// Runs as short as they can be.
pub(crate) const QUICK: [&str; 4] = ["--seconds", "0.01", "--repetitions", "2"];

/// Runs `sanlab bench …` quickly, and gives its rows.
pub(crate) fn rows(lab: &Lab, arguments: &[&str]) -> Vec<Value> {
    let all = [&["bench"], arguments, &QUICK, &["--json"]].concat();
    let answer = lab.json(&all);
    assert_eq!(
        (&answer["schema"], &answer["ok"]),
        (&1.into(), &true.into())
    );
    assert!(answer["machine"]["kernel"].is_string(), "{answer}");
    let rows = answer["rows"].as_array().cloned().unwrap_or_default();
    assert!(!rows.is_empty(), "{answer}");
    for row in &rows {
        let ratio = number(row, "ratio");
        let ends = ["ratio_low", "ratio_high"].map(|name| number(row, name));
        assert!(
            ends[0] <= ratio && ratio <= ends[1] && ends[0] > 0.0,
            "{row}"
        );
        assert!(number(row, "subject_value") > 0.0, "{row}");
        assert!(number(row, "baseline_value") > 0.0, "{row}");
        assert_eq!(row["samples"], 2);
        let is_latency = row["metric"] == "latency";
        let percentiles = ["p50", "p99", "p999", "max", "baseline_p50", "baseline_p99"];
        for percentile in percentiles {
            assert_eq!(row[percentile].is_u64(), is_latency, "{row}");
        }
        assert_eq!(row["loop"].is_string(), is_latency, "{row}");
    }
    rows
}

/// A number of a row.
pub(crate) fn number(row: &Value, name: &str) -> f64 {
    row[name].as_f64().unwrap_or(f64::NAN)
}

/// Their subjects.
pub(crate) fn subjects(rows: &[Value]) -> Vec<&str> {
    rows.iter()
        .map(|row| row["subject"].as_str().unwrap_or_default())
        .collect()
}
