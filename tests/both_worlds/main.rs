//! What a program sees of its sockets, on plain Linux and over the SAN: a table of small cases, run by one C program in both worlds and
//! compared line by line. What differs is listed in docs/limits.md, and nothing else.
//!
//! Place: the cases stand in `c/`, each named by the behaviour it looks at. Invariants: the list of accepted differences is exactly what
//! differs; a case that a world did not finish is no answer.

#[path = "../harness/mod.rs"]
mod harness;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::{Cluster, Lab, Road, programs};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

/// Time for all cases in both worlds, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(900);
/// Fewest cases: fewer would mean that the table was not read.
const CASES: usize = 500;
/// Heading of the accepted differences in docs/limits.md.
const HEADING: &str = "## Differences from kernel TCP";

#[test]
fn cases_agree_over_ipv4_when_the_program_connects() {
    agree("ipv4_connecting", "four", "connecting");
}

#[test]
fn cases_agree_over_mapped_addresses_when_the_program_accepts() {
    agree("mapped_accepting", "mapped", "accepting");
}

#[test]
fn cases_agree_with_dual_stack_listeners_when_the_program_accepts() {
    agree("dual_accepting", "dual", "accepting");
}

fn agree(name: &str, family: &str, role: &str) {
    let Some([gcc]) = programs::find(["gcc"]) else {
        return;
    };
    let lab = Lab::patient(name, PATIENCE);
    let program = compile(&lab, &gcc);
    let native = run(&lab, [family, role], ["127.0.0.1", "127.0.9.2"], |_| {
        Command::new(&program)
    });
    assert!(native.len() >= CASES, "{} cases", native.len());

    let cluster = lab.up_on(Road::San).audited();
    let addresses = ["a", "b"].map(|node| cluster.address(node).to_string());
    let san = run(
        &lab,
        [family, role],
        [&addresses[0], &addresses[1]],
        |node| cluster.run(node, [&program]),
    );
    carried(&cluster);

    let mut differs = BTreeSet::new();
    let mut report = String::new();
    for (case, outcome) in &native {
        let over_san = san.get(case);
        if over_san != Some(outcome) {
            differs.insert(case.as_str());
            let over_san = over_san.map_or("nothing", |o| o.as_str());
            report.push_str(&format!(
                "{case}\n   Linux {outcome}\n     SAN {over_san}\n"
            ));
        }
    }
    let page = std::fs::read_to_string(root().join("docs/limits.md")).expect("the page is there");
    let accepted = accepted(&page);
    let unknown: Vec<_> = differs.difference(&accepted).collect();
    let gone: Vec<_> = accepted.difference(&differs).collect();
    assert!(
        unknown.is_empty() && gone.is_empty(),
        "differ and are not listed in docs/limits.md: {unknown:?}\nlisted there and do not differ: {gone:?}\n{report}"
    );
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn compile(lab: &Lab, gcc: &Path) -> PathBuf {
    let program = lab.directory().join("cases");
    let sources =
        std::fs::read_dir(root().join("tests/both_worlds/c")).expect("the cases are there");
    let mut sources: Vec<_> = sources
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    sources.retain(|path| path.extension().is_some_and(|e| e == "c"));
    sources.sort();
    let mut compile = Command::new(gcc);
    // In the order of the files, so that a report is read beside them. Sizes out of range are what some cases are about.
    compile
        .args([
            "-std=gnu11",
            "-O1",
            "-fno-toplevel-reorder",
            "-w",
            "-pthread",
            "-o",
        ])
        .arg(&program)
        .args(sources);
    lab.spawn("gcc", compile).succeed();
    program
}

/// Runs all cases, the driver on node a and its peer on node b; what each case said.
fn run(
    lab: &Lab,
    how: [&str; 2],
    [mine, peers]: [&str; 2],
    mut program: impl FnMut(&str) -> Command,
) -> BTreeMap<String, String> {
    // The descriptors are standard input: nothing else is inherited, so that each end sees the death of the other.
    let (near, far) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .expect("two ends of a channel");
    let mut start = |node, label, role, channel: OwnedFd, addresses: [&str; 2]| {
        let mut command = program(node);
        command
            .arg(role)
            .args(how)
            .args(addresses)
            .stdin(Stdio::from(channel));
        lab.spawn(label, command)
    };
    let peer = start("b", "peer", "peer", far, [peers, mine]);
    let mut driver = start("a", "driver", "driver", near, [mine, peers]);
    assert!(driver.wait().success(), "{}", driver.stderr());
    drop(peer);
    let said = driver.stdout();
    let lines = said.lines().filter_map(|line| line.split_once(": "));
    lines
        .map(|(case, outcome)| (case.to_owned(), outcome.to_owned()))
        .collect()
}

/// The connections of the cases were the SAN's, but for those that are about other roads.
fn carried(cluster: &Cluster<'_>) {
    for node in ["a", "b"] {
        let (san, tcp) = (
            cluster.total(node, "san_connections"),
            cluster.total(node, "tcp_connections"),
        );
        assert!(
            san > 1000 && tcp < 10,
            "node {node}: {san} connections over the SAN, {tcp} over TCP"
        );
    }
}

/// The cases that docs/limits.md says differ.
fn accepted(page: &str) -> BTreeSet<&str> {
    let (_, rest) = page.split_once(HEADING).expect("the list has its heading");
    let section = rest.split("\n## ").next().unwrap_or(rest);
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.filter_map(|row| row.split_once('`'))
        .map(|(case, _)| case)
        .collect()
}
