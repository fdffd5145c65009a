//! The drivers of examples/minidriver, which know nothing of this repository but docs/device.md: all of them at once on one emulator.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::harness::{Cluster, eventually, skip};

/// What a driver says it has checked, in this order.
const STEPS: [&str; 10] = [
    "ok function ",
    "ok queue pairs ",
    "ok send 100000 bytes",
    "ok rdma write 100000 bytes",
    "ok rdma read 100000 bytes",
    "ok 1000 inline messages over ",
    "ok interrupt on vector 0",
    "ok refused with ",
    "ok reset",
    "done",
];

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/minidriver")
}

/// The driver in C, compiled as its README says.
fn compiled(directory: &Path) -> Option<PathBuf> {
    let program = directory.join("minidriver");
    let output = Command::new("cc")
        .args("-std=c11 -O2 -Wall -Wextra -Werror -o".split(' '))
        .arg(&program)
        .arg(examples().join("minidriver.c"))
        .output();
    match output {
        Ok(output) => {
            assert!(output.status.success(), "{output:?}");
            Some(program)
        }
        Err(error) => {
            skip("cc", &error);
            None
        }
    }
}

/// The driver in Python; `None` without one that has eventfds and memfds (3.10).
fn interpreted() -> Option<Command> {
    let probe = Command::new("python3")
        .args(["-c", "import os; os.eventfd, os.memfd_create"])
        .output();
    match probe {
        Ok(output) if output.status.success() => {
            let mut command = Command::new("python3");
            command.arg(examples().join("minidriver.py"));
            Some(command)
        }
        Ok(_) => {
            let old = std::io::Error::other("older than 3.10");
            skip("python3", &old);
            None
        }
        Err(error) => {
            skip("python3", &error);
            None
        }
    }
}

fn check(output: &Output) {
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    let mut lines = said.lines();
    for step in STEPS {
        assert!(
            lines.any(|line| line.starts_with(step)),
            "no {step:?} in\n{said}"
        );
    }
}

#[test]
fn drivers_in_c_and_python_work_at_once_on_one_emulator() {
    let cluster = Cluster::start();
    let (a, b) = (cluster.device("a"), cluster.device("b"));
    let c = compiled(cluster.scratch.path());
    let python = interpreted().is_some();
    let mut drivers = Vec::new();
    // Within a function, between functions of a node, between nodes in both directions.
    for sockets in [&[&a][..], &[&a, &a], &[&a, &b], &[&b, &a]] {
        let c = c.as_ref().map(Command::new);
        let python = python.then(interpreted).flatten();
        for mut driver in c.into_iter().chain(python) {
            driver.args(sockets).stdin(Stdio::null());
            driver.stdout(Stdio::piped()).stderr(Stdio::piped());
            drivers.push(driver.spawn().unwrap());
        }
    }
    for driver in drivers {
        check(&driver.wait_with_output().unwrap());
    }
    let functions = || cluster.counters().functions;
    eventually("all functions detached", functions, |&n| n == 0);
}

#[test]
fn a_driver_without_a_device_says_what_is_missing() {
    let cluster = Cluster::start();
    let nowhere = cluster.dir().join("nowhere.sock");
    let c = compiled(cluster.scratch.path()).map(Command::new);
    if let Some(mut driver) = c {
        let output = driver.arg(&nowhere).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("nowhere.sock: No such file"), "{said}");
    }
}
