//! The keeper's socket: which programs there are, and what is to happen to a node.
//!
//! Place: `programs.sock` in the cluster's directory; `sanlab node` and the Python client ask. Invariants: one line of JSON asks and one answers, as on
//! the emulator's control socket; nobody who asks slowly keeps the programs waiting for long. Source: ours, docs/control.md.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use nic_emu::control::SCHEMA;
use serde::Deserialize;
use serde_json::{Value, json};

use super::conductor::{Conductor, Phase, Power};
use crate::config::links::NodeAction;

/// How long one who asks may take.
const PATIENCE: Duration = Duration::from_millis(500);
/// Longest request.
const REQUEST_MAX: u64 = 16 << 10;

/// A request.
#[derive(Debug, Deserialize)]
#[serde(tag = "cmd", rename_all = "snake_case", deny_unknown_fields)]
enum Request {
    Programs,
    Node { node: String, action: String },
}

/// The socket of a cluster.
pub(crate) fn path(directory: &Path) -> PathBuf {
    directory.join("programs.sock")
}

/// Opens the socket.
pub(crate) fn listen(directory: &Path) -> anyhow::Result<UnixListener> {
    let path = path(directory);
    let listener = UnixListener::bind(&path)
        .with_context(|| format!("cannot listen on {}", path.display()))?;
    listener
        .set_nonblocking(true)
        .context("cannot prepare the socket")?;
    Ok(listener)
}

/// Answers whoever has come.
pub(crate) fn serve(listener: &UnixListener, conductor: &mut Conductor) {
    while let Ok((stream, _)) = listener.accept() {
        // Who went away gets no answer.
        let _ = answer(&stream, conductor);
    }
}

fn answer(stream: &UnixStream, conductor: &mut Conductor) -> anyhow::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = Vec::new();
    BufReader::new(stream.take(REQUEST_MAX)).read_until(b'\n', &mut line)?;
    let reply = match serde_json::from_slice(&line) {
        Ok(Request::Programs) => conductor.describe(),
        Ok(Request::Node { node, action }) => {
            let done = match NodeAction::named(&action) {
                Some(action) => conductor.act_on_request(&node, action),
                None => Err(format!(
                    "field \"action\" cannot be \"{action}\"; allowed: {}",
                    NodeAction::NAMES.map(|(name, _)| name).join(", ")
                )),
            };
            match done {
                Ok(()) => json!({ "ok": true }),
                Err(error) => json!({ "ok": false, "error": error }),
            }
        }
        Err(error) => json!({ "ok": false, "error": format!("not a request: {error}") }),
    };
    let mut text = reply.to_string();
    text.push('\n');
    let mut stream = stream;
    Ok(stream.write_all(text.as_bytes())?)
}

/// Asks the keeper of a cluster.
pub(crate) fn ask(directory: &Path, request: &Value) -> anyhow::Result<Value> {
    let path = path(directory);
    let mut stream = UnixStream::connect(&path).map_err(|_| {
        anyhow::anyhow!(
            "no program of a cluster file runs on this cluster; `run` in a `[[node]]` makes one"
        )
    })?;
    let limit = Some(Duration::from_secs(10));
    stream.set_read_timeout(limit)?;
    stream.set_write_timeout(limit)?;
    stream.write_all(format!("{request}\n").as_bytes())?;
    let mut line = String::new();
    BufReader::new(&stream)
        .read_line(&mut line)
        .with_context(|| format!("the keeper at {} does not answer", path.display()))?;
    let reply: Value = serde_json::from_str(&line)
        .with_context(|| format!("the keeper at {} ended", path.display()))?;
    if reply["ok"] == false {
        bail!("{}", reply["error"].as_str().unwrap_or("refused"));
    }
    Ok(reply)
}

impl Conductor {
    /// The object of `sanlab node ls --json`.
    pub(crate) fn describe(&self) -> Value {
        let programs: Vec<Value> = self
            .programs
            .iter()
            .map(|program| {
                json!({
                    "node": self.nodes[program.node].name,
                    "program": program.plan.label(),
                    "command": program.plan.command,
                    "pid": program.pid(),
                    "state": program.state.name(),
                    "ready": program.is_ready,
                    "restarts": program.restarts,
                    "exit_code": program.exit_code,
                    "power": match self.states[program.node].power {
                        Power::On => "on",
                        Power::Frozen => "frozen",
                        Power::Off => "off",
                    },
                })
            })
            .collect();
        let phase = match self.phase {
            Phase::Starting => "starting",
            Phase::Ready => "ready",
            Phase::Stopping | Phase::Done => "stopping",
        };
        json!({
            "schema": SCHEMA, "cluster": self.setup.cluster, "phase": phase, "programs": programs,
            "events": self.events.happened(),
        })
    }
}
