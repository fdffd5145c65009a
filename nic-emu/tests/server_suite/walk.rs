//! The raw client of `walk.py`, which walks every command in every broken form, beside a client that behaves.

use std::path::Path;
use std::process::Command;

use ring_proto::regs;

use super::harness::{Cluster, eventually, skip};

/// Chapters that it has to finish.
const CHAPTERS: [&str; 9] = [
    "ok version",
    "ok 263 cut and lengthened payloads",
    "ok framing",
    "ok descriptors",
    "ok windows",
    "ok regions",
    "ok interrupts, 128 flag combinations",
    "ok configuration space, ",
    "done",
];

#[test]
fn a_raw_client_in_python_finds_every_command_as_documented() {
    let cluster = Cluster::start();
    let mut bystander = cluster.client();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/server_suite/walk.py");
    let probe = Command::new("python3")
        .args(["-c", "import os; os.eventfd, os.memfd_create"])
        .output();
    let is_there = match probe {
        Ok(output) if output.status.success() => Ok(()),
        Ok(_) => Err(std::io::Error::other("older than 3.10")),
        Err(error) => Err(error),
    };
    if let Err(error) = is_there {
        skip("python3", &error);
        return;
    }
    let output = Command::new("python3")
        .arg(script)
        .arg(cluster.device("a"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines.len(), CHAPTERS.len(), "{said}");
    for (line, chapter) in lines.iter().zip(CHAPTERS) {
        assert!(line.starts_with(chapter), "{line} is not {chapter}");
    }
    assert_eq!(bystander.register(regs::MAGIC), regs::MAGIC_VALUE);
    let functions = || cluster.counters().functions;
    eventually("others detached", functions, |&n| n == 1);
}
