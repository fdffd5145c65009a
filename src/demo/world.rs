//! The demo's servers and clients on its [`Stage`].
//!
//! Place: [`World`] starts and ends them; it reads what the programs print. Invariants: those of [`crate::stage`].
//! Source: ours.

use std::time::Duration;

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::Value;

use crate::exit::Failure;
use crate::stage::{Stage, Talker};

/// The demo's cluster and what runs on it.
#[derive(Debug)]
pub(super) struct World {
    stage: Stage,
}

/// A server that accepts.
#[derive(Debug)]
pub(super) struct Server {
    program: Talker,
    /// Port on which it listens.
    pub(super) port: u16,
}

/// The road that a connection took, as the cluster's telemetry shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Road {
    /// `san` or `tcp`.
    pub(super) road: String,
    /// Why not the SAN.
    pub(super) reason: Option<String>,
}

/// What a client did.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    /// Its own account.
    pub(super) result: ClientResult,
    /// Its road; `None` for a program that runs without sanlab, or whose connection nobody saw.
    pub(super) road: Option<Road>,
}

/// The line that a client prints.
#[derive(Clone, PartialEq, Debug, Deserialize)]
pub(super) struct ClientResult {
    pub(super) sent: u64,
    pub(super) received: u64,
    pub(super) trips: u64,
    pub(super) p50_ns: u64,
    pub(super) p99_ns: u64,
    pub(super) p999_ns: u64,
    pub(super) max_ns: u64,
    pub(super) up_bytes_per_second: f64,
    pub(super) down_bytes_per_second: f64,
}

impl World {
    /// Starts the cluster.
    pub(super) fn start() -> Result<Self, Failure> {
        Ok(Self {
            stage: Stage::start("demo")?,
        })
    }

    /// Ends the cluster.
    pub(super) fn end(self) -> Result<(), Failure> {
        self.stage.end()
    }

    /// Nodes with their first addresses.
    pub(super) fn addresses(&self) -> Result<Vec<(String, String)>, Failure> {
        self.stage.addresses()
    }

    /// The cluster's counters.
    pub(super) fn stat(&self) -> Result<Value, Failure> {
        self.stage.stat()
    }

    /// What the NICs met that they keep a recording of.
    pub(super) fn kept_reasons(&self) -> Result<Vec<String>, Failure> {
        self.stage.kept_reasons()
    }

    /// Rests for a moment.
    pub(super) fn pause(&self, time: Duration) -> Result<(), Failure> {
        self.stage.pause(time)
    }

    /// Starts a server, on a node or without sanlab.
    pub(super) fn server(&self, node: Option<&str>, listen: &str) -> Result<Server, Failure> {
        let mut program = self.program(node, &["server", "--listen", listen])?;
        let line = program.line(self.stage.stop())?;
        let port = line
            .rsplit_once(':')
            .and_then(|(_, port)| port.parse().ok());
        let port =
            port.with_context(|| format!("the server says `{line}`, which is no address"))?;
        Ok(Server { program, port })
    }

    /// Ends a server.
    pub(super) fn end_server(&self, server: Server) -> Result<(), Failure> {
        let mut program = server.program;
        program.end()?;
        Ok(())
    }

    /// Runs a client to its end, on a node or without sanlab, and looks at its connection before it closes.
    pub(super) fn client(
        &self,
        node: Option<&str>,
        target: &str,
        seed: u64,
        work: &[&str],
    ) -> Result<Measured, Failure> {
        let seed = seed.to_string();
        let mut arguments = vec!["client", "--connect", target, "--seed", &seed, "--hold"];
        arguments.extend_from_slice(work);
        let mut program = self.program(node, &arguments)?;
        let line = program.line(self.stage.stop())?;
        let result: ClientResult = serde_json::from_str(&line)
            .with_context(|| format!("the client says `{line}`, which is no result"))?;
        let road = match node {
            Some(_) => self.road(program.pid())?,
            None => None,
        };
        // The client waits for the end of its standard input.
        program.end_of_input();
        program.finish(self.stage.stop())?;
        Ok(Measured { result, road })
    }

    fn road(&self, pid: u32) -> Result<Option<Road>, Failure> {
        let stat = self.stat()?;
        let connections = stat["connections"]
            .as_array()
            .map_or(&[][..], Vec::as_slice);
        let own = connections
            .iter()
            .find(|connection| connection["pid"].as_u64() == Some(u64::from(pid)));
        Ok(own.map(|connection| Road {
            road: connection["road"].as_str().unwrap_or_default().to_owned(),
            reason: connection["reason"].as_str().map(str::to_owned),
        }))
    }

    fn program(&self, node: Option<&str>, arguments: &[&str]) -> anyhow::Result<Talker> {
        let mut command = self.stage.own_program(node, "__program")?;
        command.args(arguments);
        Talker::start(command, arguments.first().copied().unwrap_or_default())
    }
}
