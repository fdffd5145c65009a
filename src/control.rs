//! The emulator as the commands see it: its control socket, and the server that its process runs.
//!
//! Place: between the commands and `nic_emu`, whose errors get the cluster's directory as context here.
//! Invariants: no call waits for ever; an emulator that is stopped hangs nobody.
//! Source: ours; the messages are `nic_emu::control`'s.

use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::Context as _;
use nic_emu::control::client;
use nic_emu::control::{Inspected, Note, Pong};
use nic_emu::device::{Recording, Topic};
use nic_emu::server::{self, ClusterConfig, Loopback, NodeSpace, Sandbox};
use ring_proto::telemetry::Reason;
use serde_json::Value;

use crate::paths;

/// Asks the emulator who it is.
pub(crate) fn ping(directory: &Path) -> anyhow::Result<Pong> {
    Ok(client::ping(&paths::control_socket(directory))?)
}

/// Asks for counters, connections and totals, as the object that `sanlab stat --json` prints.
pub(crate) fn stat(directory: &Path) -> anyhow::Result<Value> {
    let stat = client::stat(&paths::control_socket(directory))?;
    serde_json::to_value(stat).context("cannot encode the emulator's answer")
}

/// Asks what the NICs consist of: some parts, or all when none is named.
pub(crate) fn inspect(directory: &Path, parts: &[Topic]) -> anyhow::Result<Inspected> {
    Ok(client::inspect(&paths::control_socket(directory), parts)?)
}

/// Asks why the flight recorder kept what it did: `node a: qp 0x1 completed with ...`, the oldest first.
pub(crate) fn kept_reasons(directory: &Path) -> anyhow::Result<Vec<String>> {
    let recorded = client::recorder(&paths::control_socket(directory), None)?;
    let name = |of: Recording| Some(format!("node {}: {}", of.node, of.reason?));
    Ok(recorded.dumps.into_iter().filter_map(name).collect())
}

/// Asks the emulator to end.
pub(crate) fn shutdown(directory: &Path) -> anyhow::Result<()> {
    Ok(client::shutdown(&paths::control_socket(directory))?)
}

/// Asks for a channel for a program on a node, and the configuration that goes with it as JSON. `loopback`: other than the cluster's.
pub(crate) fn channel(
    directory: &Path,
    node: &str,
    loopback: Option<Loopback>,
) -> anyhow::Result<(String, OwnedFd)> {
    let (mut config, fd) = client::channel(&paths::control_socket(directory), node)?;
    config.loopback = loopback.unwrap_or(config.loopback);
    let config =
        serde_json::to_string(&config).context("cannot encode the node's configuration")?;
    Ok((config, fd))
}

/// Reports that this process becomes a program that runs without the library.
pub(crate) fn note(
    directory: &Path,
    node: &str,
    program: &str,
    reason: Reason,
) -> anyhow::Result<()> {
    let note = Note {
        node: node.to_owned(),
        program: program.to_owned(),
        pid: std::process::id(),
        reason: reason.name().to_owned(),
    };
    Ok(client::note(&paths::control_socket(directory), note)?)
}

/// Serves a cluster in this process until it is told to end. `spaces`: those of the nodes, in namespace mode.
pub(crate) fn serve(
    config: &ClusterConfig,
    spaces: Vec<NodeSpace>,
    sandbox: Sandbox,
    on_ready: impl FnOnce(),
) -> anyhow::Result<()> {
    Ok(server::serve_spaces(config, spaces, sandbox, on_ready)?)
}

/// Addresses of a node, for people.
pub(crate) fn addresses_text(addresses: &[String]) -> String {
    if addresses.is_empty() {
        "no address".to_owned()
    } else {
        addresses.join(", ")
    }
}
