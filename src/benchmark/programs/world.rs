//! A server on its road, and clients that ask it.
//!
//! Place: each program's file starts two of them. Invariants: a server ends with this value, its children by its own hand, and with this
//! program whatever ends that. A baseline has an address inside the cluster's subnet, which is this host's alone, so no port collides; it runs without
//! sanlab, so its bytes are plain loopback TCP.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use nix::sys::resource::{UsageWho, getrusage};
use rustix::process::{Signal, pidfd_send_signal};
use sanlab::bench::BenchError;
use sanlab::bench::report::Sample;
use serde_json::Value;

use crate::emulator;
use crate::exit::Failure;
use crate::stage::{Stage, Talker};

use super::super::processes;

/// Nodes of the server and of its clients.
const NODES: [&str; 2] = ["a", "b"];
/// Last octet of the baseline's address.
const BASELINE_HOST: u8 = 200;
/// How long a server may take to listen.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long a client may take.
const RUN_LIMIT: Duration = Duration::from_secs(300);

/// The road between a server and its clients.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Road {
    San,
    Tcp,
}

impl Road {
    pub(super) const BOTH: [Self; 2] = [Self::San, Self::Tcp];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::San => "san",
            Self::Tcp => "tcp",
        }
    }
}

/// A server that listens.
#[derive(Debug)]
pub(super) struct Server<'a> {
    stage: &'a Stage,
    road: Road,
    child: Child,
    pidfd: OwnedFd,
    /// What it says beside its answers.
    stderr: PathBuf,
    /// Where it listens.
    pub(super) at: SocketAddrV4,
}

impl<'a> Server<'a> {
    /// Starts a server with the arguments that it needs to listen at an address.
    pub(super) fn start(
        stage: &'a Stage,
        road: Road,
        program: &Path,
        port: u16,
        arguments: impl FnOnce(SocketAddrV4) -> anyhow::Result<Vec<String>>,
    ) -> Result<Self, Failure> {
        let node: Ipv4Addr = stage
            .address(NODES[0])?
            .parse()
            .context("a node's address")?;
        let [a, b, c, _] = node.octets();
        let ip = match road {
            Road::San => node,
            Road::Tcp => Ipv4Addr::new(a, b, c, BASELINE_HOST),
        };
        let at = SocketAddrV4::new(ip, port);
        let before = listeners(&stage.stat()?);
        let stderr = stage.directory().join("server.err");
        let file = File::create(&stderr).context("a file for what a server says")?;
        let mut command = leashed(stage, road, NODES[0], program)?;
        command
            .args(arguments(at)?)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file);
        let mut child = command.spawn().context("cannot start a server")?;
        let pidfd = match emulator::process_descriptor(child.id()) {
            Ok(pidfd) => pidfd,
            Err(error) => {
                // Our child, not waited for: the kill cannot miss.
                let _ = child.kill();
                let _ = child.wait();
                return Err(error.into());
            }
        };
        let mut server = Self {
            stage,
            road,
            child,
            pidfd,
            stderr,
            at,
        };
        server.wait_listening(program, before)?;
        Ok(server)
    }

    /// Waits until it listens, in the kernel and on its road.
    fn wait_listening(&mut self, program: &Path, before: u64) -> Result<(), Failure> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            let is_there = match self.road {
                Road::San => listeners(&self.stage.stat()?) > before,
                Road::Tcp => is_listening(self.at),
            };
            if is_there {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait().context("cannot wait for a server")? {
                let said = fs::read_to_string(&self.stderr).unwrap_or_default();
                return Err(anyhow!(
                    "{} ended at its start ({status}): {}",
                    program.display(),
                    said.trim()
                )
                .into());
            }
            if Instant::now() >= deadline {
                return Err(anyhow!(
                    "{} does not listen on {} after {} s",
                    program.display(),
                    self.at,
                    START_LIMIT.as_secs()
                )
                .into());
            }
            self.stage.pause(Duration::from_millis(10))?;
        }
    }

    /// The road.
    pub(super) const fn road(&self) -> Road {
        self.road
    }

    /// Runs a client to its end. `figure` makes of its answer what it measured and how many millions, or gigabytes, that were.
    pub(super) fn ask(
        &self,
        program: &Path,
        arguments: &[String],
        figure: impl FnOnce(&str) -> anyhow::Result<(f64, f64)>,
    ) -> Result<Sample, BenchError> {
        self.try_ask(program, arguments, figure)
            .map_err(super::super::as_bench)
    }

    fn try_ask(
        &self,
        program: &Path,
        arguments: &[String],
        figure: impl FnOnce(&str) -> anyhow::Result<(f64, f64)>,
    ) -> Result<Sample, Failure> {
        let before = self.stage.stat()?;
        let cpu = self.cpu_time()?;
        let mut command = leashed(self.stage, self.road, NODES[1], program)?;
        command.args(arguments);
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        let client = Talker::start(command, &name)?.patient(RUN_LIMIT);
        let said = client.everything(self.stage.stop())?;
        let cpu = self.cpu_time()?.saturating_sub(cpu).as_secs_f64();
        let (value, things) = figure(&said).with_context(|| format!("{name} says:\n{said}"))?;
        if self.road == Road::San {
            self.check_road(&before)?;
        }
        if !(value > 0.0 && things > 0.0) {
            return Err(anyhow!("{name} has done nothing:\n{said}").into());
        }
        Ok(Sample::given(value).costing(cpu / things))
    }

    /// Of the server and its children, of clients that have ended, and of the NIC.
    fn cpu_time(&self) -> anyhow::Result<Duration> {
        let mut time = processes::cpu_time_of_family(self.child.id())?;
        let ended = getrusage(UsageWho::RUSAGE_CHILDREN).context("getrusage")?;
        for part in [ended.user_time(), ended.system_time()] {
            let micros = part.tv_sec() * 1_000_000 + part.tv_usec();
            time += Duration::from_micros(micros.try_into().unwrap_or(0));
        }
        if self.road == Road::San {
            time += processes::cpu_time(self.stage.emulator_pid())?;
        }
        Ok(time)
    }

    fn check_road(&self, before: &Value) -> anyhow::Result<()> {
        let after = self.stage.stat().map_err(|failure| anyhow!("{failure}"))?;
        let on_tcp = sum(&after, "totals", |row| &row["tcp_connections"]);
        if on_tcp > 0 {
            bail!(
                "{on_tcp} connections took TCP and not the SAN; reasons: {}",
                after["fallbacks"]
            );
        }
        let carried = |stat: &Value| sum(stat, "nodes", |row| &row["counters"]["tx_payload_bytes"]);
        if carried(&after) <= carried(before) {
            bail!("the NICs carried nothing");
        }
        Ok(())
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        // By its own hand, so that it ends its children; by force when it does not. Nothing else can be done where that fails.
        let ended = emulator::end_process(&self.pidfd, || {
            let _ = pidfd_send_signal(&self.pidfd, Signal::TERM);
        });
        if ended.is_ok() {
            let _ = self.child.wait();
        }
    }
}

/// A program that ends with this one, on a node or without sanlab.
fn leashed(stage: &Stage, road: Road, node: &str, program: &Path) -> anyhow::Result<Command> {
    let node = (road == Road::San).then_some(node);
    let inner = stage.command(node, program.as_os_str())?;
    let mut command = Command::new(emulator::own_binary()?);
    command
        .arg("__leash")
        .arg(format!("--parent={}", std::process::id()))
        .arg("--")
        .arg(inner.get_program())
        .args(inner.get_args());
    for (name, value) in inner.get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    Ok(command)
}

/// Whether a kernel socket listens there. A connection would tell too, and irritate servers that take it for a client.
fn is_listening(at: SocketAddrV4) -> bool {
    const LISTEN: &str = "0A";
    let local = format!(
        "{:08X}:{:04X}",
        u32::from_ne_bytes(at.ip().octets()),
        at.port()
    );
    let table = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    table.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().take(4).collect();
        words.get(1) == Some(&local.as_str()) && words.get(3) == Some(&LISTEN)
    })
}

/// Listeners on the NIC of the server's node.
fn listeners(stat: &Value) -> u64 {
    sum(stat, "nodes", |row| &row["counters"]["listeners"])
}

/// Sum of a counter over all nodes.
fn sum(stat: &Value, key: &str, counter: impl Fn(&Value) -> &Value) -> u64 {
    let rows = stat[key].as_array().map_or(&[][..], Vec::as_slice);
    rows.iter().filter_map(|row| counter(row).as_u64()).sum()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_listener_is_seen_without_a_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let at = SocketAddrV4::new(Ipv4Addr::LOCALHOST, at.port());
        assert!(is_listening(at));
        assert!(!is_listening(SocketAddrV4::new(
            Ipv4Addr::new(127, 0, 0, 9),
            at.port()
        )));
        drop(listener);
        assert!(!is_listening(at));
    }
}
