//! A cluster of a test: `sanlab up` in the foreground.
//!
//! Place: [`super::Lab::up`] makes it. Invariants: ready when it is there; ended by SIGTERM when dropped, and gone after that.

use std::ffi::OsStr;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{Lab, Process, Road, kernel};

pub(crate) struct Cluster<'a> {
    lab: &'a Lab,
    /// The `sanlab up` in the foreground.
    pub(crate) up: Process,
    /// Name of the cluster.
    pub(crate) name: String,
    /// What its wildcard listeners are on.
    pub(crate) road: Road,
    /// Whether the system calls of its programs are audited.
    is_audited: bool,
}

impl<'a> Cluster<'a> {
    pub(crate) fn start(lab: &'a Lab, arguments: &[&str]) -> Self {
        let mut up = lab.spawn("up", lab.sanlab(["up"].iter().chain(arguments)));
        up.wait_output("ready\n");
        let said = up.stdout();
        let name = said
            .strip_prefix("cluster ")
            .and_then(|rest| rest.split(',').next());
        let name = name.unwrap_or_else(|| panic!("{said}")).to_owned();
        Self {
            lab,
            up,
            name,
            road: Road::San,
            is_audited: false,
        }
    }

    /// Has the system calls of programs audited where the SAN carries their connections and the kernel can: one past the library fails
    /// the test. The programs are children of `sanlab run` then.
    pub(crate) fn audited(mut self) -> Self {
        self.is_audited = self.road == Road::San && switch::sys::can_dispatch();
        self.lab.expect_no_call_past_the_library();
        self
    }

    /// Directory of the cluster.
    pub(crate) fn directory(&self) -> PathBuf {
        self.lab.run_directory().join(&self.name)
    }

    /// The cluster's row in `sanlab ls`.
    pub(crate) fn row(&self) -> Value {
        let list = self.lab.json(&["ls", "--json"]);
        let rows = list["clusters"].as_array().unwrap();
        let row = rows.iter().find(|row| row["name"] == self.name.as_str());
        row.unwrap_or_else(|| panic!("{} is not in {list}", self.name))
            .clone()
    }

    /// Process id of the emulator.
    pub(crate) fn emulator_pid(&self) -> u32 {
        u32::try_from(self.row()["emulator_pid"].as_u64().unwrap()).unwrap()
    }

    /// Kills the emulator, which the command that started it tells as its own failure.
    pub(crate) fn kill_emulator(&self) {
        self.up.may_fail();
        kernel::kill_9(self.emulator_pid());
    }

    /// First address of a node.
    pub(crate) fn address(&self, node: &str) -> Ipv4Addr {
        let row = self.row();
        let nodes = row["nodes"].as_array().unwrap();
        let node = nodes.iter().find(|row| row["name"] == node).unwrap();
        let address = node["addresses"][0].as_str().unwrap();
        address.split_once('/').unwrap().0.parse().unwrap()
    }

    /// A program on a node.
    pub(crate) fn run<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(
        &self,
        node: &str,
        program: I,
    ) -> Command {
        let mut command = self
            .lab
            .sanlab(["run", "--cluster", &self.name, "--node", node]);
        if self.is_audited {
            command.arg("--audit=fail");
        }
        command.arg("--").args(program);
        command
    }

    /// Waits until a program on a node listens on this port: in the kernel first, then on the SAN. A client in between falls back, as it
    /// should.
    pub(crate) fn wait_listening(&self, node: &str, port: u16) {
        let address = SocketAddrV4::new(self.address(node), port);
        super::wait_until(|| kernel::is_listening(address));
        if self.road == Road::San {
            super::wait_until(|| self.counter(node, "listeners") > 0);
        }
    }

    /// The stat object.
    pub(crate) fn stat(&self) -> Value {
        self.lab.json(&["stat", &self.name, "--json"])
    }

    /// A counter of a node's NIC.
    pub(crate) fn counter(&self, node: &str, counter: &str) -> u64 {
        let stat = self.stat();
        number(&stat["nodes"], "name", node, |row| {
            &row["counters"][counter]
        })
    }

    /// A member of a node's totals.
    pub(crate) fn total(&self, node: &str, member: &str) -> u64 {
        let stat = self.stat();
        number(&stat["totals"], "node", node, |row| &row[member])
    }

    /// How often connections of a node fell back for this reason.
    pub(crate) fn fall_backs(&self, node: &str, reason: &str) -> u64 {
        let stat = self.stat();
        let rows = stat["fallbacks"].as_array().unwrap();
        let row = rows
            .iter()
            .find(|row| row["node"] == node && row["reason"] == reason);
        row.map_or(0, |row| row["count"].as_u64().unwrap())
    }

    /// Waits until no connection of ended programs is left, so that the totals hold everything.
    pub(crate) fn wait_no_connections(&self) {
        super::wait_until(|| self.stat()["connections"].as_array().unwrap().is_empty());
    }

    /// Asserts that all connections so far between these nodes took this road.
    pub(crate) fn assert_road(&self, road: Road, nodes: &[&str]) {
        let stat = self.stat();
        for node in nodes {
            let count = |member: &str| number(&stat["totals"], "node", node, |row| &row[member]);
            let (san, tcp) = (count("san_connections"), count("tcp_connections"));
            match road {
                Road::San => assert!(san > 0 && tcp == 0, "node {node}: {stat:#}"),
                Road::Tcp => assert!(tcp > 0 && san == 0, "node {node}: {stat:#}"),
            }
        }
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        if self.up.is_running() {
            self.up.signal(Signal::SIGTERM);
            self.up.wait();
        }
    }
}

fn number(rows: &Value, key: &str, name: &str, member: impl Fn(&Value) -> &Value) -> u64 {
    let row = rows.as_array().unwrap().iter().find(|row| row[key] == name);
    let row = row.unwrap_or_else(|| panic!("no {key} {name} in {rows:#}"));
    member(row)
        .as_u64()
        .unwrap_or_else(|| panic!("no number in {row:#}"))
}
