//! The emulator as a process: this test program, started again as a server with a control socket.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nic_emu::control::client;
use nic_emu::device::Counters;
use nic_emu::server::{self, Sandbox};

use super::harness::{Scratch, config};

/// Directory to serve in; set in the server process alone.
const SERVE: &str = "NIC_EMU_TEST_SERVE";
/// Set in a server process that is to have the validation layer.
const VALIDATE: &str = "NIC_EMU_TEST_VALIDATE";

/// Not a test: the server process's way in, done at once everywhere else.
#[test]
fn emulator() {
    let Some(dir) = std::env::var_os(SERVE) else {
        return;
    };
    let mut config = config(&PathBuf::from(dir));
    config.debug.validate = std::env::var_os(VALIDATE).is_some();
    server::serve(&config, Sandbox::On, || println!("ready")).unwrap();
}

/// A running emulator with nodes a and b.
pub(crate) struct Emulator {
    child: Child,
    scratch: Scratch,
}

impl Emulator {
    pub(crate) fn start() -> Self {
        Self::start_with(|_| ())
    }

    /// One with the validation layer.
    pub(crate) fn validating() -> Self {
        Self::start_with(|command| {
            command.env(VALIDATE, "1");
        })
    }

    fn start_with(change: impl FnOnce(&mut Command)) -> Self {
        let scratch = Scratch::new();
        let mut command = Command::new(std::env::current_exe().unwrap());
        change(&mut command);
        let mut child = command
            .args(["--exact", "process::emulator", "--nocapture"])
            .env(SERVE, scratch.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.ends_with("ready\n") {
            line.clear();
            assert_ne!(lines.read_line(&mut line).unwrap(), 0, "no emulator");
        }
        // The harness prints a few more words when it ends: they go nowhere.
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        Self { child, scratch }
    }

    pub(crate) fn control(&self) -> PathBuf {
        self.scratch.path().join("run/control.sock")
    }

    pub(crate) fn device(&self, node: &str) -> PathBuf {
        self.scratch.path().join("run").join(node).join("nic0.sock")
    }

    /// How many descriptors it holds.
    pub(crate) fn descriptors(&self) -> usize {
        let open = std::fs::read_dir(format!("/proc/{}/fd", self.child.id()));
        open.unwrap().count()
    }

    /// Counters of a node.
    pub(crate) fn counters(&self, node: &str) -> Counters {
        let stat = client::stat(&self.control()).unwrap();
        let found = stat.nodes.into_iter().find(|entry| entry.name == node);
        found.unwrap().counters
    }

    /// Ends it in good order; it has caught no panic and said nothing about one.
    pub(crate) fn end_unharmed(mut self) {
        for node in ["a", "b"] {
            assert_eq!(self.counters(node).panics, 0, "panics on node {node}");
        }
        client::shutdown(&self.control()).unwrap();
        let mut said = String::new();
        let mut stderr = self.child.stderr.take().unwrap();
        stderr.read_to_string(&mut said).unwrap();
        let status = self.child.wait().unwrap();
        assert!(
            status.success() && !said.contains("panicked"),
            "{status}: {said}"
        );
        assert!(
            !self.scratch.path().join("run").exists(),
            "files are left behind"
        );
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // Already ended in tests that pass.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
