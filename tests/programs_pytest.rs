//! The Python client and its pytest example, as a user runs them.

#![expect(clippy::print_stderr, reason = "a suite that is skipped says why")]

mod harness;

use std::path::Path;
use std::process::Command;

use harness::{Lab, programs};

/// The interpreter with pytest, or `None` after a message.
fn python() -> Option<std::path::PathBuf> {
    let [python] = programs::find(["python3"])?;
    let has_pytest = Command::new(&python)
        .args(["-m", "pytest", "--version"])
        .output()
        .is_ok_and(|output| output.status.success());
    if !has_pytest {
        assert!(
            std::env::var_os("SANLAB_REQUIRE_PROGRAMS").is_none_or(|value| value != "1"),
            "pytest is not installed, and SANLAB_REQUIRE_PROGRAMS=1 asks for it"
        );
        eprintln!("skipped: pytest is not installed (Debian: python3-pytest)");
        return None;
    }
    Some(python)
}

/// Runs some of the example's tests. Each has its own patience: they start many programs.
fn passes(names: &[&str]) {
    let Some(python) = python() else {
        return;
    };
    let lab = Lab::new(names[0]);
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/pytest");
    let mut pytest = Command::new(python);
    pytest
        .args(["-m", "pytest", "-q", "-p", "no:cacheprovider"])
        .args(
            names
                .iter()
                .map(|name| format!("test_partition.py::{name}")),
        )
        .current_dir(example)
        .env("SANLAB", env!("CARGO_BIN_EXE_sanlab"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("TMPDIR", lab.directory())
        .env_remove("LD_PRELOAD");
    let mut run = lab.spawn("pytest", pytest);
    let status = run.wait();
    let said = run.stdout();
    assert!(status.success(), "{said}");
    assert!(said.contains(&format!("{} passed", names.len())), "{said}");
}

#[test]
fn follower_falls_behind_in_a_partition_and_catches_up() {
    passes(&["test_follower_falls_behind_in_a_partition_and_catches_up"]);
}

#[test]
fn one_way_partition_holds_the_answers_back_alone() {
    passes(&["test_one_way_partition_holds_the_answers_back_alone"]);
}

#[test]
fn log_is_whole_over_a_bad_link_and_faults() {
    passes(&["test_log_is_whole_over_a_bad_link_and_faults"]);
}

#[test]
fn refusals_are_exceptions_and_the_client_stands_alone() {
    passes(&[
        "test_refusals_name_what_would_be_right",
        "test_client_needs_the_standard_library_alone",
    ]);
}

#[test]
fn every_test_of_the_example_is_run_here() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/pytest/test_partition.py");
    let example = std::fs::read_to_string(path).expect("the example is there");
    let own = include_str!("programs_pytest.rs");
    for line in example.lines() {
        if let Some(rest) = line.strip_prefix("def test_") {
            let name = rest.split('(').next().unwrap_or_default();
            assert!(own.contains(&format!("\"test_{name}\"")), "{name}");
        }
    }
}

#[test]
fn a_killed_program_of_the_cluster_file_comes_back() {
    passes(&["test_a_killed_program_of_the_cluster_file_comes_back"]);
}
