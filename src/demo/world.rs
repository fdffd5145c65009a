//! The demo's processes: an emulator, servers, clients, and the directory that holds their cluster.
//!
//! Place: [`World`] starts and ends them; it reads what the programs print.
//! Invariants: every wait ends at a deadline or at Ctrl-C; dropping a value ends its process. All processes are children of the main thread, which
//! they do not outlive.
//! Source: ours.

use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use nic_emu::server::{DebugConfig, Sandbox};
use serde::Deserialize;
use serde_json::Value;

use crate::config::ClusterPlan;
use crate::control;
use crate::emulator::{self, Emulator, StartOptions, Started};
use crate::exit::{self, Failure};
use crate::paths::RunDirectory;
use crate::signals::{StopSignals, Waited};

/// Name of the demo's cluster.
const CLUSTER: &str = "demo";
/// How long one program may take for one answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// The demo's cluster and what runs on it.
#[derive(Debug)]
pub(super) struct World {
    // Dropped in this order: the emulator removes its own directory first.
    emulator: Emulator,
    run: RunDirectory,
    _directory: TemporaryDirectory,
    stop: StopSignals,
}

/// A server that accepts.
#[derive(Debug)]
pub(super) struct Server {
    program: Program,
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
        let stop = StopSignals::catch()?;
        let directory = TemporaryDirectory::make()?;
        let run = RunDirectory::at(directory.path.clone());
        let options = StartOptions {
            is_detached: false,
            owns_run_directory: true,
            sandbox: Sandbox::On,
            debug: DebugConfig::default(),
        };
        let plan = ClusterPlan {
            // The demo shows the roads, not how busy the machine is.
            san_connect_limit_ms: Some(30_000),
            ..ClusterPlan::built_in()
        };
        match Emulator::start(&run, CLUSTER, &plan, options, &stop)? {
            Started::Ready(emulator) => Ok(Self {
                emulator,
                run,
                _directory: directory,
                stop,
            }),
            Started::Stopped => Err(Failure::silent(exit::INTERRUPTED)),
        }
    }

    /// Ends the cluster.
    pub(super) fn end(mut self) -> Result<(), Failure> {
        self.emulator.stop()?;
        Ok(())
    }

    /// Nodes with their first addresses.
    pub(super) fn addresses(&self) -> Result<Vec<(String, String)>, Failure> {
        let info = control::ping(self.emulator.directory())?;
        Ok(info
            .nodes
            .into_iter()
            .map(|node| {
                let address = node.addresses.first().map_or("", String::as_str);
                let ip = address.split_once('/').map_or(address, |(ip, _)| ip);
                (node.name, ip.to_owned())
            })
            .collect())
    }

    /// The cluster's counters.
    pub(super) fn stat(&self) -> Result<Value, Failure> {
        Ok(control::stat(self.emulator.directory())?)
    }

    /// Rests for a moment.
    pub(super) fn pause(&self, time: Duration) -> Result<(), Failure> {
        match self.stop.wait(&[], Some(time))? {
            Waited::Stop => Err(Failure::silent(exit::INTERRUPTED)),
            _ => Ok(()),
        }
    }

    /// Starts a server, on a node or without sanlab.
    pub(super) fn server(&self, node: Option<&str>, listen: &str) -> Result<Server, Failure> {
        let mut program = self.program(node, &["server", "--listen", listen])?;
        let line = program.line(&self.stop)?;
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
        let line = program.line(&self.stop)?;
        let result: ClientResult = serde_json::from_str(&line)
            .with_context(|| format!("the client says `{line}`, which is no result"))?;
        let road = match node {
            Some(_) => self.road(program.child.id())?,
            None => None,
        };
        // The client waits for the end of its standard input.
        drop(program.child.stdin.take());
        program.finish(&self.stop)?;
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

    fn program(&self, node: Option<&str>, arguments: &[&str]) -> anyhow::Result<Program> {
        let binary = emulator::own_binary()?;
        let mut command = Command::new(&binary);
        if let Some(node) = node {
            command
                .args(["run", "--cluster", CLUSTER, "--node", node, "--"])
                .arg(&binary)
                .env("SANLAB_RUN_DIR", self.run.path());
        }
        let mut child = command
            .arg("__program")
            .arg(format!("--parent={}", std::process::id()))
            .arg("--")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a program of the demo")?;
        let stdout = child.stdout.take().context("a program without a pipe")?;
        Ok(Program {
            what: arguments.first().copied().unwrap_or_default().to_owned(),
            child,
            stdout,
            said: Vec::new(),
        })
    }
}

/// A running program. Dropping it ends it.
#[derive(Debug)]
struct Program {
    what: String,
    child: Child,
    stdout: ChildStdout,
    said: Vec<u8>,
}

impl Program {
    /// The next line it prints.
    fn line(&mut self, stop: &StopSignals) -> Result<String, Failure> {
        let deadline = Instant::now() + ANSWER_LIMIT;
        loop {
            if let Some(end) = self.said.iter().position(|&byte| byte == b'\n') {
                let rest = self.said.split_off(end + 1);
                let line = std::mem::replace(&mut self.said, rest);
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            self.wait(stop, deadline)?;
            let mut piece = [0; 4096];
            let len = self
                .stdout
                .read(&mut piece)
                .context("cannot hear from a program")?;
            if len == 0 {
                let status = self.child.wait().context("cannot wait for a program")?;
                return Err(anyhow!("the {} ended without an answer ({status})", self.what).into());
            }
            self.said.extend_from_slice(&piece[..len]);
        }
    }

    /// Waits until it has ended by itself, with success.
    fn finish(&mut self, stop: &StopSignals) -> Result<(), Failure> {
        let process = emulator::process_descriptor(self.child.id())?;
        let deadline = Instant::now() + ANSWER_LIMIT;
        let left = deadline.saturating_duration_since(Instant::now());
        match stop.wait(&[process.as_fd()], Some(left))? {
            Waited::Stop => return Err(Failure::silent(exit::INTERRUPTED)),
            Waited::TimedOut => return Err(self.too_slow()),
            Waited::Ready(_) => {}
        }
        let status = self.child.wait().context("cannot wait for a program")?;
        if status.success() {
            Ok(())
        } else {
            Err(anyhow!("the {} failed ({status})", self.what).into())
        }
    }

    fn wait(&self, stop: &StopSignals, deadline: Instant) -> Result<(), Failure> {
        let left = deadline.saturating_duration_since(Instant::now());
        match stop.wait(&[self.stdout.as_fd()], Some(left))? {
            Waited::Stop => Err(Failure::silent(exit::INTERRUPTED)),
            Waited::TimedOut => Err(self.too_slow()),
            Waited::Ready(_) => Ok(()),
        }
    }

    fn too_slow(&self) -> Failure {
        Failure::from(anyhow!(
            "the {} gave no answer in {} s",
            self.what,
            ANSWER_LIMIT.as_secs()
        ))
    }

    fn end(&mut self) -> anyhow::Result<()> {
        self.child.kill().context("cannot end a program")?;
        self.child.wait().context("cannot wait for a program")?;
        Ok(())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Both fail only for a program that has ended and been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A directory of the demo's own. Dropping it removes it.
#[derive(Debug)]
struct TemporaryDirectory {
    path: PathBuf,
}

impl TemporaryDirectory {
    fn make() -> anyhow::Result<Self> {
        let name = format!("sanlab-demo-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| {
                format!(
                    "cannot make {} (set TMPDIR to another place)",
                    path.display()
                )
            })?;
        Ok(Self { path })
    }
}

impl Drop for TemporaryDirectory {
    fn drop(&mut self) {
        // The emulator removes it when it ends; this is for one that never came so far.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}
