//! Redis's own test suite, unchanged, with every connection of it on the SAN: servers, replicas, clients and the suite's own processes talk
//! over a node's localhost.
//!
//! Place: a few units; with `SANLAB_LONG=1` all of them, beside a run without sanlab, than which nothing more may fail. The suite is that of
//! the source package (`.ci/redis-source` fetches it to target/redis-source; `SANLAB_REDIS_SOURCE` names another place); its programs are
//! the system's.

mod harness;

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use harness::{Lab, Road, programs, wait_until};

/// Units of the short form: protocol errors, limits of clients, authentication with replicas, plain commands.
const UNITS: [&str; 5] = [
    "unit/auth",
    "unit/quit",
    "unit/protocol",
    "unit/limits",
    "unit/type/incr",
];

/// Tests that ask for what a node does not have.
const SKIPPED: [&str; 3] = [
    // Connects to another address of the machine, where a node has none.
    "Protected mode works as expected",
    // Write to one connection and count on its being read before what is written to another one afterwards: docs/limits.md.
    "PUBLISH/SUBSCRIBE after UNSUBSCRIBE without arguments",
    "PUBLISH/PSUBSCRIBE after PUNSUBSCRIBE without arguments",
];

/// Names of the programs of the suite, where it looks for its own build.
const PROGRAMS: [&str; 5] = [
    "redis-server",
    "redis-cli",
    "redis-benchmark",
    "redis-check-aof",
    "redis-check-rdb",
];

#[test]
fn the_suite_of_redis_passes_with_every_connection_on_the_san() {
    let Some(found) = programs::find(PROGRAMS) else {
        return;
    };
    let Some([_tcl]) = programs::find(["tclsh"]) else {
        return;
    };
    let source = std::env::var_os("SANLAB_REDIS_SOURCE").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/redis-source"),
        PathBuf::from,
    );
    if !source.join("runtest").exists() {
        programs::skip(format_args!("no suite of redis in {}", source.display()));
        return;
    }
    let is_long = std::env::var_os("SANLAB_LONG").is_some();
    let hour = 3600;
    let patience = Duration::from_secs(if is_long { 4 * hour } else { 600 });
    let lab = Lab::patient(
        "the_suite_of_redis_passes_with_every_connection_on_the_san",
        patience,
    );
    let suites = ["bare", "san"].map(|name| suite(&lab, &source, name, &found));
    let mut arguments = vec!["--clients", if is_long { "2" } else { "1" }];
    arguments.extend(SKIPPED.iter().flat_map(|name| ["--skiptest", name]));
    if !is_long {
        arguments.extend(UNITS.iter().flat_map(|unit| ["--single", unit]));
    }

    let usual = if is_long {
        let mut bare = Command::new(suites[0].join("runtest"));
        bare.current_dir(&suites[0]).args(&arguments);
        let mut bare = lab.spawn("bare", bare);
        bare.wait();
        failed(&bare.stdout())
    } else {
        BTreeSet::new()
    };

    let cluster = lab.up();
    let mut command = lab.sanlab(["run", "--cluster", &cluster.name, "--node", "a"]);
    command.args(["--loopback", "san", "--", "./runtest"]);
    command.current_dir(&suites[1]).args(&arguments);
    let mut over_san = lab.spawn("san", command);
    let status = over_san.wait();
    let said = over_san.stdout();
    let more: Vec<_> = failed(&said).difference(&usual).cloned().collect();
    assert!(
        more.is_empty() && said.contains("The End") && (status.success() || is_long),
        "{status}: {more:?}\n{said}"
    );
    cluster.wait_no_connections();
    cluster.assert_road(Road::San, &["a"]);
    wait_until(|| cluster.counter("a", "qps") == 0);
}

/// A copy of the suite that writes into the world of the test, with the system's programs.
fn suite(lab: &Lab, source: &Path, name: &str, programs: &[PathBuf; 5]) -> PathBuf {
    let place = lab.directory().join(name);
    std::fs::create_dir_all(place.join("src")).expect("a directory of the test");
    let mut copy = Command::new("cp");
    copy.arg("-r")
        .args(["runtest", "tests"].map(|part| source.join(part)))
        .arg(&place);
    lab.spawn("cp", copy).succeed();
    for (name, file) in PROGRAMS.iter().zip(programs) {
        symlink(file, place.join("src").join(name)).expect("a link");
    }
    place
}

/// Names of the tests that failed, and everything else that ended the suite early.
fn failed(said: &str) -> BTreeSet<String> {
    let marks = ["[err]: ", "[exception]: ", "[timeout]: "];
    // The marks are in colour.
    let plain = strip_colour(said);
    let lines = plain
        .lines()
        .filter_map(|line| marks.iter().find_map(|mark| line.split_once(mark)));
    lines.map(|(_, name)| name.to_owned()).collect()
}

/// The text without terminal sequences.
fn strip_colour(said: &str) -> String {
    let mut plain = String::new();
    for (number, piece) in said.split('\u{1b}').enumerate() {
        let text = if number == 0 {
            piece
        } else {
            piece.split_once('m').map_or("", |(_, text)| text)
        };
        plain.push_str(text);
    }
    plain
}
