//! A key-value and echo server and its client: ordinary `std::net` programs that know nothing of a SAN.
//!
//! ```text
//! cargo run --example kv -- server --listen 0.0.0.0:7000
//! cargo run --example kv -- client --connect 127.0.0.1:7000
//! ```
//! On two nodes of a cluster: `sanlab run --node a -- target/debug/examples/kv server --listen 0.0.0.0:7000`, and the client likewise.

use std::process::ExitCode;

#[path = "kv.rs"]
mod kv;

fn main() -> ExitCode {
    match kv::run(std::env::args().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            use std::io::Write as _;
            // Nobody reads it: the exit status still tells.
            let _ = writeln!(std::io::stderr(), "kv: {error}");
            ExitCode::FAILURE
        }
    }
}
