//! Instructions per operation, under callgrind, against benches/instructions.toml.
//!
//! Place: [`check`] starts this program under valgrind, once per operation, collecting only inside the function of that name.
//! Invariants: the same binary counts the same every time, so 5 % are for the compiler's moods, not for noise.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::ROUNDS;
use crate::stage::{BATCH, WRITES};

/// First argument of the run under callgrind.
pub(crate) const WORKLOAD: &str = "workload";

/// Operations, and how often a round does each.
const OPERATIONS: [(&str, u32); 10] = [
    ("post_send", BATCH / 2),
    ("post_inline", BATCH / 2),
    ("post_recv", BATCH),
    ("poll", 2 * BATCH),
    ("empty_poll", BATCH),
    ("arm", BATCH),
    ("serve_send", BATCH),
    ("serve_write", WRITES),
    ("ring", WRITES),
    ("rtrb", WRITES),
];

/// What is stored.
#[derive(Serialize, Deserialize, Debug)]
struct Stored {
    /// Answer of `rustc --version`.
    compiler: String,
    /// How far a count may lie above the stored one. Fewer are welcome, and worth being stored.
    tolerance_percent: f64,
    /// Instructions per operation.
    instructions: BTreeMap<String, f64>,
}

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches/instructions.toml")
}

fn is_set(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| value == "1")
}

/// Counts, and compares.
pub(crate) fn check() -> Result<String, String> {
    if cfg!(debug_assertions) {
        return Ok(
            "skipped: counts are of optimised builds (cargo test --release --test hot_path)"
                .to_owned(),
        );
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        let text = "valgrind is not installed (Debian: apt-get install valgrind)";
        return if is_set("SANLAB_REQUIRE_PROGRAMS") {
            Err(text.to_owned())
        } else {
            Ok(format!("skipped: {text}"))
        };
    }
    let mut counted = BTreeMap::new();
    for (operation, per_round) in OPERATIONS {
        let instructions = count(operation)?;
        // One round more than asked for: the stage's own.
        let operations = f64::from((ROUNDS + 1) * per_round);
        let mean = (instructions / operations * 10.0).round() / 10.0;
        counted.insert(operation.to_owned(), mean);
    }
    if is_set("SANLAB_BLESS") {
        return bless(counted);
    }
    let text = std::fs::read_to_string(path()).map_err(|error| error.to_string())?;
    let stored: Stored = toml::from_str(&text).map_err(|error| error.to_string())?;
    compare(&stored, &counted)
}

fn bless(instructions: BTreeMap<String, f64>) -> Result<String, String> {
    let stored = Stored {
        compiler: compiler()?,
        tolerance_percent: 5.0,
        instructions,
    };
    let text = format!(
        "# Instructions per operation, counted by tests/hot_path under callgrind; SANLAB_BLESS=1 writes this file.\n\
         # serve_send is the NIC's part of one SEND of 64 bytes with both completions, serve_write that of one RDMA WRITE of 64 bytes in\n\
         # a batch of 64 with one completion; ring and rtrb are an element of 64 bytes into and out of a bare ring: ours, and rtrb's.\n{}",
        toml::to_string(&stored).map_err(|error| error.to_string())?
    );
    std::fs::write(path(), text).map_err(|error| error.to_string())?;
    Ok("stored".to_owned())
}

fn compare(stored: &Stored, counted: &BTreeMap<String, f64>) -> Result<String, String> {
    let mut text = String::new();
    let mut is_within = true;
    for (operation, &count) in counted {
        let wanted = stored.instructions.get(operation).copied();
        let off = wanted.map_or(f64::INFINITY, |wanted| (count / wanted - 1.0) * 100.0);
        is_within &= off <= stored.tolerance_percent;
        let _ = write!(text, " {operation} {count} ({off:+.1} %)"); // a String takes everything
    }
    let own = compiler()?;
    if own != stored.compiler {
        return Ok(format!(
            "not compared, the stored counts are of {}, this is {own}:{text}",
            stored.compiler
        ));
    }
    if is_within {
        Ok(text.trim_start().to_owned())
    } else {
        Err(format!(
            "more than {} % above benches/instructions.toml:{text}",
            stored.tolerance_percent
        ))
    }
}

fn compiler() -> Result<String, String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc)
        .arg("--version")
        .output()
        .map_err(|error| format!("rustc --version: {error}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Instructions inside `measured_<operation>` in one run of the workload.
fn count(operation: &str) -> Result<f64, String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(format!("--toggle-collect=*::measured_{operation}"))
        .arg(own)
        .arg(WORKLOAD)
        .output()
        .map_err(|error| format!("valgrind: {error}"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("{operation}: {}: {text}", output.status));
    }
    text.lines()
        .filter_map(|line| line.split_once("Collected :"))
        .find_map(|(_, count)| count.trim().parse::<f64>().ok())
        .filter(|&count| count > 0.0)
        .ok_or_else(|| format!("{operation}: callgrind collected nothing: {text}"))
}
