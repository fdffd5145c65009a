//! `sanlab bench` from outside: every queue and every operation is measured and checked, a broken queue is caught, results are kept and compared.
//!
//! Runs are as short as they can be: what a figure says is not this test's business, that it is one is.

mod harness;
#[path = "../examples/own_ring.rs"]
mod own_ring;

use std::path::PathBuf;
use std::process::Command;

use harness::bench::{QUICK, number, rows, subjects};
use harness::{Lab, programs};
use serde_json::Value;

#[test]
fn every_queue_is_measured_between_threads() {
    let lab = Lab::new("every_queue_is_measured_between_threads");
    let all = "sq,rtrb,array-queue,pipe,futex";
    let found = rows(
        &lab,
        &[
            "ring",
            "--subject",
            all,
            "--size",
            "8,256",
            "--batch",
            "1,32",
        ],
    );
    assert_eq!(found.len(), 20);
    assert_eq!(subjects(&found[..5]), all.split(',').collect::<Vec<_>>());
    let found = rows(&lab, &["ring", "--subject", all, "--metric", "latency"]);
    assert_eq!(found.len(), 5);
    // A place that every machine has.
    let place = [
        "ring",
        "--place",
        "same-core",
        "--depth",
        "2",
        "--batch",
        "2",
    ];
    assert_eq!(subjects(&rows(&lab, &place)), ["sq"]);
}

#[test]
fn queues_of_shared_memory_and_of_the_kernel_are_measured_between_processes() {
    let lab = Lab::new("queues_of_shared_memory_and_of_the_kernel_are_measured_between_processes");
    let between = [
        "ring",
        "--between",
        "processes",
        "--vs",
        "pipe",
        "--subject",
    ];
    let found = rows(&lab, &[&between[..], &["sq,futex"]].concat());
    assert_eq!(subjects(&found), ["sq", "futex"]);
    let found = rows(
        &lab,
        &[&between[..], &["sq,futex", "--metric", "latency"]].concat(),
    );
    assert_eq!(found.len(), 2);
    let said = lab.fail(2, &[&["bench"], &between[..], &["array-queue"]].concat());
    assert!(said.contains("array-queue cannot be shared"), "{said}");
}

/// The example's ring in C, with `from` replaced by `to`.
fn ring_of_c(lab: &Lab, name: &str, from: &str, to: &str) -> Option<PathBuf> {
    let [compiler] = programs::find(["cc"])?;
    let source = include_str!("../examples/own_ring/my_ring.c");
    assert!(source.contains(from), "{from}");
    let source = lab.write(&format!("{name}.c"), &source.replace(from, to));
    let object = lab.directory().join(format!("{name}.so"));
    let flags = [
        "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o",
    ];
    let mut compile = Command::new(compiler);
    compile.args(flags).arg(&object).arg(source);
    lab.spawn("cc", compile).succeed();
    Some(object)
}

#[test]
fn a_ring_of_c_is_measured_between_threads_and_processes() {
    let lab = Lab::new("a_ring_of_c_is_measured_between_threads_and_processes");
    let Some(object) = ring_of_c(&lab, "my_ring", "", "") else {
        return;
    };
    let object = object.to_str().unwrap();
    for between in ["threads", "processes"] {
        let arguments = [
            "ring",
            "--subject",
            object,
            "--vs",
            "sq",
            "--between",
            between,
        ];
        assert_eq!(subjects(&rows(&lab, &arguments)), ["my_ring"]);
    }
}

#[test]
fn a_ring_that_mixes_up_loses_or_crashes_gives_no_figure() {
    let lab = Lab::new("a_ring_that_mixes_up_loses_or_crashes_gives_no_figure");
    let cases = [
        (
            "mixes",
            "(at + i) & r->mask) * r->size, (const",
            "(at + i * 3) & r->mask) * r->size, (const",
            "wrong element",
        ),
        (
            "loses",
            "at + (uint32_t)count, memory_order_release);\n    return count",
            "at + (uint32_t)count - 1, memory_order_release);\n    return count",
            "wrong element",
        ),
        (
            "crashes",
            "uint32_t used",
            "if (at > 0) *(volatile int *)0 = 1;\n    uint32_t used",
            "ended early: killed by SIGSEGV",
        ),
    ];
    for (name, from, to, words) in cases {
        let Some(object) = ring_of_c(&lab, name, from, to) else {
            return;
        };
        let arguments = [
            "bench",
            "ring",
            "--between",
            "processes",
            "--vs",
            "sq",
            "--subject",
        ];
        let said = lab.fail(
            1,
            &[&arguments[..], &[object.to_str().unwrap()], &QUICK].concat(),
        );
        assert!(said.contains(words), "{said}");
    }
    let text = lab.write("text.so", "not an object");
    let said = lab.fail(2, &["bench", "ring", "--subject", text.to_str().unwrap()]);
    assert!(said.contains("text.so"), "{said}");
    let said = lab.fail(2, &["bench", "ring", "--subject", "no-such-queue"]);
    assert!(said.contains("no-such-queue"), "{said}");
}

#[test]
fn a_queue_of_rust_is_measured_by_the_example() {
    own_ring::main().unwrap();
}

#[test]
fn every_operation_of_an_embedded_nic_is_measured() {
    let lab = Lab::new("every_operation_of_an_embedded_nic_is_measured");
    for operation in ["send", "write", "read", "atomic"] {
        for metric in ["lat", "bw", "rate"] {
            let found = rows(&lab, &["rdma", operation, metric, "--via", "embedded"]);
            assert_eq!(subjects(&found), ["nic-emu embedded"]);
        }
    }
}

#[test]
fn a_nic_in_a_process_is_measured_and_ended() {
    let lab = Lab::new("a_nic_in_a_process_is_measured_and_ended");
    for (operation, metric) in [("send", "rate"), ("write", "lat"), ("read", "bw")] {
        let found = rows(&lab, &["rdma", operation, metric, "--size", "8,64"]);
        assert_eq!(subjects(&found), ["nic-emu", "nic-emu"]);
        let name = found[0]["name"].as_str().unwrap();
        assert!(name.contains(", 8 B, NIC process"), "{name}");
    }
    let entries = std::fs::read_dir(lab.directory()).unwrap().flatten();
    let left = entries.filter(|entry| {
        let name = entry.file_name();
        name.to_string_lossy().starts_with("sanlab-bench")
    });
    assert_eq!(left.count(), 0, "the NIC's directory is gone with it");
}

#[test]
fn results_are_kept_drawn_and_compared() {
    let lab = Lab::new("results_are_kept_drawn_and_compared");
    let path = |name: &str| lab.directory().join(name).to_str().unwrap().to_owned();
    let (saved, picture) = (path("before.json"), path("picture.svg"));
    let arguments = [
        "bench", "ring", "--metric", "latency", "--csv", "--save", &saved, "--plot", &picture,
    ];
    let csv = lab.succeed(&[&arguments[..], &QUICK].concat());
    assert_eq!(csv.lines().count(), 2, "{csv}");
    assert!(
        csv.starts_with("name,subject,baseline,metric,unit,"),
        "{csv}"
    );
    let drawn = std::fs::read_to_string(&picture).unwrap();
    assert!(
        drawn.starts_with("<svg") && drawn.contains("sq: p50"),
        "{drawn}"
    );
    let limit = ["--fail-above", "5%"];
    let same = lab.json(&[&["bench", "compare", &saved, &saved, "--json"], &limit[..]].concat());
    assert_eq!(same["ok"], true);
    // The same run with a ratio without doubt, and five times as slow.
    let text = std::fs::read_to_string(&saved).unwrap();
    let with_ratio = |name: &str, factor: f64| {
        let mut file: Value = serde_json::from_str(&text).unwrap();
        let ratio = file["rows"][0]["ratio"].as_f64().unwrap() * factor;
        for name in ["ratio", "ratio_low", "ratio_high"] {
            file["rows"][0][name] = ratio.into();
        }
        lab.write(name, &file.to_string())
            .to_str()
            .unwrap()
            .to_owned()
    };
    let (saved, worse) = (with_ratio("one.json", 1.0), with_ratio("five.json", 5.0));
    let output = lab.output(&[&["bench", "compare", &saved, &worse], &limit[..]].concat());
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("above the limit"), "{text}");
    // The other way round it is an improvement.
    lab.succeed(&[&["bench", "compare", &worse, &saved], &limit[..]].concat());
    lab.succeed(&["bench", "compare", &saved, &worse]);
}

#[test]
fn the_way_between_processors_is_measured() {
    let lab = Lab::new("the_way_between_processors_is_measured");
    let arguments = [&["bench", "ring", "--matrix"], &QUICK[..]].concat();
    if std::thread::available_parallelism().is_ok_and(|count| count.get() < 2) {
        let said = lab.fail(2, &arguments);
        assert!(said.contains("two processors"), "{said}");
        return;
    }
    let answer = lab.json(&[&arguments[..], &["--json"]].concat());
    let pairs = answer["matrix"].as_array().unwrap();
    assert!(!pairs.is_empty(), "{answer}");
    for pair in pairs {
        assert_ne!(pair["near"], pair["far"]);
        let [low, ns, high] = ["ns_low", "ns", "ns_high"].map(|name| number(pair, name));
        assert!(0.0 < low && low <= ns && ns <= high, "{pair}");
    }
    let text = lab.succeed(&arguments);
    assert!(text.contains("between processors"), "{text}");
    let said = lab.fail(2, &["bench", "ring", "--matrix", "--subject", "sq"]);
    assert!(said.contains("--matrix"), "{said}");
}

#[test]
fn the_results_behind_the_documents_can_be_compared() {
    let lab = Lab::new("the_results_behind_the_documents_can_be_compared");
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/results");
    let files = std::fs::read_dir(directory).unwrap();
    let files: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
    assert!(!files.is_empty(), "{directory}");
    for file in files {
        let file = file.to_str().unwrap();
        let same = lab.json(&[
            "bench",
            "compare",
            file,
            file,
            "--fail-above",
            "0",
            "--json",
        ]);
        assert_eq!(same["ok"], true, "{file}");
        let rows = same["rows"].as_array().unwrap();
        assert!(!rows.is_empty(), "{file}");
        for row in rows {
            assert_eq!(row["before"], row["after"], "{file}");
        }
    }
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let lab = Lab::new("what_cannot_be_measured_is_refused");
    for (arguments, words) in [
        (&["ring", "--size", "24"][..], "not 24"),
        (&["ring", "--depth", "100"], "depth of 100"),
        (&["ring", "--batch", "2048"], "batch of 2048"),
        (&["ring", "--cpus", "0"], "two processors"),
        (&["ring", "--cpus", "0,4095"], "4095"),
        (
            &["rdma", "write", "rate", "--cq-mod", "999"],
            "batch of 999",
        ),
        (
            &["rdma", "write", "rate", "--tx-depth", "100"],
            "depth of 100",
        ),
    ] {
        let said = lab.fail(2, &[&["bench"], arguments].concat());
        assert!(said.contains(words), "{said}");
    }
}
