//! The posting and polling path: no system call, no allocation, and no more instructions than were agreed.
//!
//! Place: two functions of an embedded device in this process; the NIC is shown awake, so that ringing kicks nobody. The program runs
//! itself again: sealed against system calls, and under callgrind.
//! Invariants: counts are compared for optimised builds by the compiler that made the stored ones only, because every other gives other
//! numbers; `SANLAB_BLESS=1` stores what was counted. Without valgrind the counts are skipped with a message, unless
//! `SANLAB_REQUIRE_PROGRAMS=1`.
//! Source: ours; counts in benches/instructions.toml. Leaves out: nanoseconds (benches/).
#![expect(
    unsafe_code,
    reason = "counts allocations, maps doorbells, and forbids system calls"
)]
#![expect(
    clippy::print_stdout,
    reason = "a test program without the test harness"
)]

mod allocations;
mod counts;
mod sealed;
mod stage;

use std::process::ExitCode;

use stage::Stage;

/// Rounds of one run under callgrind.
const ROUNDS: u32 = 100;

/// A check: what it found, or what is wrong.
type Check = fn() -> Result<String, String>;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some(counts::WORKLOAD) => {
            let mut stage = Stage::new();
            for _ in 0..ROUNDS {
                stage.round();
            }
            return ExitCode::SUCCESS;
        }
        Some(sealed::SEALED) => sealed::run(true),
        Some(sealed::BROKEN_SEAL) => sealed::run(false),
        // What the test harness would be asked.
        _ if arguments.iter().any(|argument| argument == "--list") => return ExitCode::SUCCESS,
        _ => {}
    }
    let is_meant = arguments
        .iter()
        .filter(|argument| !argument.starts_with('-') && argument.parse::<u32>().is_err())
        .all(|filter| "hot_path".contains(filter.as_str()));
    if !is_meant {
        return ExitCode::SUCCESS;
    }
    let checks: [(&str, Check); 3] = [
        ("allocations", allocations::check),
        ("system calls", sealed::check),
        ("instructions", counts::check),
    ];
    let mut code = ExitCode::SUCCESS;
    for (name, check) in checks {
        match check() {
            Ok(text) => println!("hot_path: {name}: ok: {text}"),
            Err(text) => {
                println!("hot_path: {name}: FAILED: {text}");
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}
