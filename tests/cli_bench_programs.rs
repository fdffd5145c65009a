//! `sanlab bench programs` from outside: each program is measured on both roads, and one that is missing is named with its package.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests fail by panicking, as tests do"
)]

mod harness;

use std::time::Duration;

use harness::bench::subjects;
use harness::{Lab, kernel, programs};
use serde_json::Value;

/// Programs take their time to start and end where other tests run.
const PATIENCE: Duration = Duration::from_secs(240);
const QUICK: [&str; 5] = ["--rounds", "1", "--seconds", "0.1", "--json"];

/// Rows of one program: each figure is followed by its price.
fn measured(lab: &Lab, program: &str) -> Vec<Value> {
    let arguments = ["bench", "programs", "--only", program];
    let answer = lab.json(&[&arguments[..], &QUICK].concat());
    assert_eq!(
        (&answer["schema"], &answer["ok"]),
        (&1.into(), &true.into())
    );
    assert_eq!(answer["missing"], Value::Array(Vec::new()));
    let rows = answer["rows"].as_array().cloned().unwrap_or_default();
    for row in &rows {
        for value in ["subject_value", "baseline_value", "ratio"] {
            assert!(
                row[value].as_f64().is_some_and(|value| value > 0.0),
                "{row}"
            );
        }
    }
    assert!(subjects(&rows).iter().all(|&subject| subject == "san"));
    let metrics: Vec<_> = rows.iter().map(|row| row["metric"].as_str()).collect();
    let mut pairs = metrics.chunks(2);
    assert!(pairs.all(|pair| pair == [Some("rate"), Some("cost")]));
    assert_eq!(kernel::emulators_below(lab.directory()), [0; 0]);
    let entries = std::fs::read_dir(lab.directory()).unwrap().flatten();
    let mut names = entries.map(|entry| entry.file_name().into_string().unwrap());
    assert!(names.all(|name| !name.starts_with("sanlab-bench")));
    rows
}

fn names(rows: &[Value]) -> Vec<&str> {
    let figures = rows.iter().step_by(2);
    figures.filter_map(|row| row["name"].as_str()).collect()
}

#[test]
fn redis_is_measured() {
    if programs::find(["redis-server", "redis-benchmark"]).is_none() {
        return;
    }
    let lab = Lab::patient("redis_is_measured", PATIENCE);
    let rows = measured(&lab, "redis");
    let commands = ["SET", "GET"];
    let wanted = ["-c 50 -d 64 -P 1", "-c 50 -d 64 -P 16", "-c 1 -d 64 -P 1"]
        .iter()
        .flat_map(|options| commands.map(|command| format!("redis {command}, {options}")));
    assert_eq!(names(&rows), wanted.collect::<Vec<_>>());
}

#[test]
fn nginx_is_measured() {
    if programs::find(["nginx", "ab"]).is_none() {
        return;
    }
    let lab = Lab::patient("nginx_is_measured", PATIENCE);
    let rows = measured(&lab, "nginx");
    let names = names(&rows);
    assert_eq!(names.len(), 2);
    assert!(
        names[0].starts_with("nginx 612 B, -c 50, keep-alive ("),
        "{names:?}"
    );
    assert!(names[1].contains("close per request"), "{names:?}");
}

#[test]
fn iperf3_is_measured() {
    if programs::find(["iperf3"]).is_none() {
        return;
    }
    let lab = Lab::patient("iperf3_is_measured", PATIENCE);
    let rows = measured(&lab, "iperf3");
    assert_eq!(names(&rows), ["iperf3, one stream"]);
    assert_eq!(rows[0]["unit"], "B/s");
}

#[test]
fn a_missing_program_is_named_with_its_package() {
    let lab = Lab::patient("a_missing_program_is_named_with_its_package", PATIENCE);
    let arguments = ["bench", "programs", "--only", "redis,iperf3"];
    let mut command = lab.sanlab([&arguments[..], &QUICK].concat());
    // No program is in this directory.
    let output = command.env("PATH", lab.directory()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["ok"], false);
    let missing = answer["missing"].as_array().unwrap();
    let packages: Vec<_> = missing
        .iter()
        .map(|one| one["package"].as_str().unwrap())
        .collect();
    assert_eq!(packages, ["redis-server", "redis-tools", "iperf3"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("apt-get install redis-tools"), "{said}");
    let said = lab.fail(2, &["bench", "programs", "--only", "postgres"]);
    assert!(said.contains("redis"), "{said}");
}
