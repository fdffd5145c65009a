//! `sanlab run --audit`: it finds every system call past the library that matters, no other, and leaves programs as they are.
//!
//! Place: two C programs beside this file, one that goes past the library on purpose, and one that does with threads, signals and processes
//! what is hard to watch.

#[path = "../harness/mod.rs"]
mod harness;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use harness::{Lab, programs};
use serde_json::Value;

fn compile(lab: &Lab, name: &str) -> Option<PathBuf> {
    let [gcc] = programs::find(["gcc"])?;
    let program = lab.directory().join(name);
    let source = format!("{}/tests/audit/{name}.c", env!("CARGO_MANIFEST_DIR"));
    let mut compile = Command::new(gcc);
    compile
        .args(["-std=gnu11", "-O1", "-w", "-pthread", "-o"])
        .arg(&program)
        .arg(source);
    lab.spawn("gcc", compile).succeed();
    Some(program)
}

/// Whether this kernel can hand calls back; without, the audit says so and nothing else can be tried.
fn is_possible(lab: &Lab, cluster: &harness::Cluster<'_>) -> bool {
    let output = lab.output(&[
        "run",
        "--cluster",
        &cluster.name,
        "--node",
        "a",
        "--audit",
        "--",
        "true",
    ]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.code() == Some(125) && said.contains("no syscall user dispatch") {
        programs::skip(format_args!("{}", said.trim()));
        return false;
    }
    assert!(output.status.success(), "{said}");
    true
}

#[test]
fn calls_past_the_library_are_found_with_their_place_and_no_others() {
    let lab = Lab::new("calls_past_the_library_are_found_with_their_place_and_no_others");
    let Some(program) = compile(&lab, "past") else {
        return;
    };
    let cluster = lab.up();
    if !is_possible(&lab, &cluster) {
        return;
    }
    let file = lab.directory().join("report.json");
    let explain = format!("--explain=json:{}", file.display());
    let command = |audit: &str| {
        let mut command = lab.sanlab(["run", "--cluster", &cluster.name, "--node", "a"]);
        command
            .args(["--loopback", "san", &explain, audit, "--"])
            .arg(&program);
        lab.spawn("past", command)
    };
    let mut process = command("--audit=fail");
    assert_eq!(process.wait().code(), Some(123), "{}", process.stderr());
    let output = process.stdout();
    let expected: BTreeSet<&str> = output.lines().collect();
    let told: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    let findings = told["audit"]["findings"].as_array().unwrap();
    let found: BTreeSet<&str> = findings
        .iter()
        .map(|finding| finding["call"].as_str().unwrap())
        .collect();
    assert_eq!(found, expected, "{findings:#?}");
    assert_eq!(found.len(), findings.len(), "{findings:#?}");
    let said = process.stderr();
    for finding in findings {
        let text = |member: &str| finding[member].as_str().unwrap();
        let call = text("call");
        assert_eq!(finding["count"], 1, "{finding:#}");
        assert!(text("module").ends_with("/past"), "{finding:#}");
        assert!(
            text("symbol").starts_with(&format!("raw_{call}+")),
            "{finding:#}"
        );
        let touched = match call {
            "epoll_wait" | "epoll_pwait" | "epoll_ctl" => "epoll_set",
            "bind" | "listen" | "socket" => "socket",
            "execve" | "clone" => "process",
            "io_uring_setup" => "io_uring",
            _ => "san",
        };
        assert_eq!(text("touched"), touched, "{finding:#}");
        // Once when it came, once with its count.
        let line = format!(": {call} past the library on");
        assert_eq!(said.matches(&line).count(), 2, "{call}: {said}");
    }

    let mut process = command("--audit");
    assert_eq!(process.wait().code(), Some(0), "{}", process.stderr());
    assert!(process.stderr().contains("went past the library"));
}

#[test]
fn a_program_does_under_the_audit_what_it_does_without() {
    let lab = Lab::new("a_program_does_under_the_audit_what_it_does_without");
    let Some(program) = compile(&lab, "calm") else {
        return;
    };
    let cluster = lab.up();
    if !is_possible(&lab, &cluster) {
        return;
    }
    let plain = lab.spawn("plain", Command::new(&program)).succeed();
    assert!(plain.ends_with("back 1\n"), "{plain}");
    let mut command = lab.sanlab(["run", "--cluster", &cluster.name, "--node", "a"]);
    command.args(["--audit=fail", "--"]).arg(&program);
    let audited = lab.spawn("audited", command).succeed();
    assert_eq!(audited, plain);
}
