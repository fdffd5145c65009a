//! `sanlab demo`: a cluster, ordinary programs on it, and the proof of which road their bytes took.
//!
//! Place: [`world`] starts processes, this file says in which order, [`report`] judges and prints.
//! Invariants: everything lives in a run directory of its own and is gone at the end, also after Ctrl-C. The programs are those of `examples/kv`, the same
//! file on both roads. Success only if every byte arrived right and the NICs' counters account for all of them.
//! Source: ours, the command-line contract.

mod report;
mod world;

use std::time::Duration;

use serde_json::Value;

use crate::cli;
use crate::exit::{self, Failure};
use crate::output;

use report::{FallBack, Report, Round};
use world::{Measured, Road, World};

/// Nodes of the built-in cluster and what they do here.
const SERVER_NODE: &str = "a";
const CLIENT_NODES: [&str; 2] = ["b", "c"];
/// Where a server runs without the library, and who asks it.
const UNHOOKED_NODE: &str = "b";
const FALL_BACK_NODE: &str = "c";
/// Work of a client in a round.
const FULL_WORK: [&str; 6] = ["--keys", "200", "--trips", "5000", "--mib", "128"];
/// Work of the client that falls back.
const SMALL_WORK: [&str; 6] = ["--keys", "50", "--trips", "500", "--mib", "8"];
/// How long counters may take to arrive after a program ended.
const SETTLE_LIMIT: Duration = Duration::from_secs(10);

/// Runs the demo.
pub(crate) fn demo(arguments: &cli::Demo) -> Result<(), Failure> {
    let say = Narrator {
        is_json: arguments.json,
    };
    say.line("a cluster of three nodes, each with an emulated SAN NIC, in one emulator process")?;
    let mut world = World::start()?;
    let report = show(&mut world, arguments.rounds, &say)?;
    world.end()?;
    if arguments.json {
        output::json(&report.to_json())?;
    } else {
        output::answer(&report.to_text())?;
    }
    if report.is_ok() {
        Ok(())
    } else {
        Err(Failure::silent(exit::FAILED))
    }
}

/// What the demo tells while it works: to standard output for people, to standard error beside JSON.
struct Narrator {
    is_json: bool,
}

impl Narrator {
    fn line(&self, text: &str) -> Result<(), Failure> {
        if self.is_json {
            exit::diagnostic(format_args!("{text}"));
            Ok(())
        } else {
            output::answer(&format!("{text}\n"))
        }
    }
}

fn show(world: &mut World, rounds: u32, say: &Narrator) -> Result<Report, Failure> {
    let addresses = world.addresses()?;
    for (name, address) in &addresses {
        say.line(&format!("  node {name}  {address}"))?;
    }
    say.line(&format!(
        "a key-value and echo server on node {SERVER_NODE}, and the same program without sanlab for comparison"
    ))?;
    let san_server = world.server(Some(SERVER_NODE), "0.0.0.0:0")?;
    let tcp_server = world.server(None, "127.0.0.1:0")?;
    let server_ip = address_of(&addresses, SERVER_NODE)?;
    let san_target = format!("{server_ip}:{}", san_server.port);
    let tcp_target = format!("127.0.0.1:{}", tcp_server.port);

    let mut measured: Vec<Round> = Vec::new();
    for round in 1..=rounds {
        say.line(&format!(
            "round {round} of {rounds}: clients on nodes {}, each on the SAN and on plain TCP",
            CLIENT_NODES.join(" and ")
        ))?;
        for node in CLIENT_NODES {
            let seed = u64::from(round) * 1000 + u64::from(node.as_bytes()[0]);
            let san = world.client(Some(node), &san_target, seed, &FULL_WORK)?;
            let tcp = world.client(None, &tcp_target, seed, &FULL_WORK)?;
            measured.push(Round {
                node,
                target: san_target.clone(),
                san,
                tcp,
            });
        }
    }

    say.line(&format!(
        "a server that runs without sanlab on the address of node {UNHOOKED_NODE}, asked from node {FALL_BACK_NODE}"
    ))?;
    let unhooked_ip = address_of(&addresses, UNHOOKED_NODE)?;
    let unhooked = world.server(None, &format!("{unhooked_ip}:0"))?;
    let unhooked_target = format!("{unhooked_ip}:{}", unhooked.port);
    let fall_back = FallBack {
        node: FALL_BACK_NODE,
        measured: world.client(Some(FALL_BACK_NODE), &unhooked_target, 7, &SMALL_WORK)?,
        target: unhooked_target,
    };

    for server in [san_server, tcp_server, unhooked] {
        world.end_server(server)?;
    }
    let mut report = Report::new(measured, fall_back);
    let stat = settle(world, &mut report)?;
    report.judge(&stat);
    if report.met_errors() {
        report.name_errors(&world.kept_reasons()?);
    }
    Ok(report)
}

/// Waits until the counters of the ended programs have arrived, or long enough to believe that they never will.
fn settle(world: &World, report: &mut Report) -> Result<Value, Failure> {
    let deadline = std::time::Instant::now() + SETTLE_LIMIT;
    loop {
        let stat = world.stat()?;
        report.judge(&stat);
        // Fail honestly and at once where waiting cannot help.
        if report.is_ok() || !report.can_settle() || std::time::Instant::now() >= deadline {
            return Ok(stat);
        }
        world.pause(Duration::from_millis(20))?;
    }
}

fn address_of<'a>(addresses: &'a [(String, String)], node: &str) -> Result<&'a str, Failure> {
    let found = addresses.iter().find(|(name, _)| name == node);
    found.map(|(_, address)| address.as_str()).ok_or_else(|| {
        Failure::new(
            exit::FAILED,
            format_args!("the built-in cluster has no node {node}"),
        )
    })
}
