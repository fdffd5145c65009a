//! The two ends of `sanlab bench socket`: an ordinary socket program that this binary becomes under a hidden name.
//!
//! Place: [`crate::benchmark`] starts one that serves and one that asks, on nodes of its cluster or without sanlab, and talks to them in
//! lines. Invariants: nothing here knows of the SAN; sockets are used as any program uses them, through the C library. What arrives is
//! checked: number and last byte of each message always, every byte of it in runs that are thorough.
//!
//! ```text
//!  asks                                       serves
//!  control connection: run of N, thorough? ->            first connection
//!                                          <- ready
//!  ... messages on the other connections ... answers or none ...
//!                                          <- done       when all N have come
//! ```

mod asking;
mod message;
mod open_loop;
mod serving;
mod socket;
pub(crate) mod work;

use std::io::{self, Write as _};

use anyhow::{Context as _, bail};

use crate::cli;
use crate::exit::Failure;
use crate::signals;

use socket::Address;
use work::Work;

/// Runs an end until its work is done.
pub(crate) fn run(program: &cli::Program) -> Result<(), Failure> {
    signals::end_with_parent(program.parent)?;
    signals::unblock_all()?;
    let [role, work, address] = &program.arguments[..] else {
        return Err(anyhow::anyhow!(
            "an end of the benchmark takes a role, its work and an address"
        )
        .into());
    };
    let work: Work = serde_json::from_str(work).context("work of an end")?;
    let address: Address = address.parse()?;
    let result = match role.as_str() {
        "serve" => serving::serve(&work, &address),
        "ask" => asking::ask(&work, &address),
        other => bail_role(other),
    };
    Ok(result?)
}

fn bail_role(role: &str) -> anyhow::Result<()> {
    bail!("no role of an end: {role}")
}

/// Tells the benchmark something, in a line.
fn say(line: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")
        .and_then(|()| stdout.flush())
        .context("the benchmark is gone")
}
