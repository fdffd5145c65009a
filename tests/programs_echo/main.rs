//! Echo servers with 500 connections at once, 2,000 with `SANLAB_LONG=1`: of `std::net` with edge-triggered epoll, and of tokio.
//!
//! Place: this test binary plays all programs, started again on the nodes. Invariants: every connection is open while all are used; every
//! answer is checked; nothing is left behind.

#[path = "../harness/mod.rs"]
mod harness;

mod edges;
mod tasks;

use std::process::Command;
use std::time::Duration;

use harness::{Cluster, Lab, Road, programs};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Questions on each.
const ROUNDS: usize = 3;
const PORT: u16 = 7300;
/// Which program this process is: `server`, or the address that a client asks; unset in the test itself.
const ROLE: &str = "ECHO_ROLE";
/// Thousands of connects take minutes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(900);

#[test]
fn edges_serve_thousands_of_connections() {
    echo(
        "edges_serve_thousands_of_connections",
        edges::serve,
        edges::ask,
    );
}

#[test]
fn tokio_serves_thousands_of_connections() {
    echo(
        "tokio_serves_thousands_of_connections",
        tasks::serve,
        tasks::ask,
    );
}

/// Connections at once; both programs inherit what decides it.
fn connections() -> usize {
    let is_long = std::env::var_os("SANLAB_LONG").is_some();
    if is_long { 2000 } else { 500 }
}

/// What a client asks on a connection in a round.
fn question(at: usize, round: usize) -> Vec<u8> {
    format!("connection {at:4} in round {round}").into_bytes()
}

/// The test of this name, or one of its programs.
fn echo(test: &'static str, serve: fn(), ask: fn(&str)) {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("limits");
    if let Ok(role) = std::env::var(ROLE) {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("the hard limit");
        return match role.as_str() {
            "server" => serve(),
            address => ask(address),
        };
    }
    if hard < connections() as u64 + 100 {
        programs::skip(format_args!("{hard} descriptors are too few"));
        return;
    }
    for road in Road::BOTH {
        let lab = Lab::patient(test, PATIENCE);
        let cluster = lab.up_on(road);
        let mut server = lab.spawn("server", program(&cluster, "a", test, "server"));
        cluster.wait_listening("a", PORT);
        let address = format!("{}:{PORT}", cluster.address("a"));
        lab.spawn("client", program(&cluster, "b", test, &address))
            .succeed();
        assert!(server.wait().success(), "{}", server.stderr());
        cluster.wait_no_connections();
        cluster.assert_road(road, &["a", "b"]);
        if road == Road::San {
            assert_eq!(
                cluster.total("b", "san_connections"),
                connections() as u64,
                "{:#}",
                cluster.stat()
            );
            for node in ["a", "b"] {
                for counter in ["qps", "mrs", "windows"] {
                    harness::wait_until(|| cluster.counter(node, counter) == 0);
                }
            }
        }
    }
}

/// This binary again, as a program on a node.
fn program(cluster: &Cluster<'_>, node: &str, test: &str, role: &str) -> Command {
    let this = std::env::current_exe().expect("a test has a path");
    let mut command = cluster.run(node, [this]);
    command
        .args(["--exact", test, "--nocapture"])
        .env(ROLE, role);
    command
}
