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

#[test]
fn a_replicated_program_is_partitioned_by_pytest() {
    let Some(python) = python() else {
        return;
    };
    let lab = Lab::new("a_replicated_program_is_partitioned_by_pytest");
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/pytest");
    let mut pytest = Command::new(python);
    pytest
        .args(["-m", "pytest", "-q", "-p", "no:cacheprovider"])
        .arg(&example)
        .env("SANLAB", env!("CARGO_BIN_EXE_sanlab"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("TMPDIR", lab.directory())
        .env_remove("LD_PRELOAD");
    let mut run = lab.spawn("pytest", pytest);
    let status = run.wait();
    let said = run.stdout();
    assert!(status.success(), "{said}");
    assert!(said.contains("5 passed"), "{said}");
}
