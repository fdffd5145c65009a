//! One side of the comparison: two processes and the road between them.
//!
//! Place: a subject or baseline of [`super::measure`]. Invariants: the first run of a side is thorough, and what arrives is checked in all of
//! them (see [`crate::peer`]); a side of the SAN whose bytes took another road is an error, never a figure. Ends both processes when dropped.

use std::time::Duration;

use anyhow::{Context as _, anyhow};
use sanlab::bench::BenchError;
use sanlab::bench::alternate::Subject;
use sanlab::bench::report::Sample;
use serde_json::Value;

use crate::cli::SocketRoad;
use crate::exit::Failure;
use crate::peer::work::{Found, Mode, Work};
use crate::stage::{Stage, Talker};

use super::super::processes;
use super::place::Spot;

/// Nodes of the SAN side: that of the server, that of the client.
const SAN_NODES: [&str; 2] = ["a", "b"];
/// The node of programs under the library that stay on TCP.
const HOOKED_NODE: &str = "c";
/// Messages from this size on are counted in bytes.
const BYTES_FROM: usize = 4096;
/// How long a run, or thousands of connections, may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// Operations of the first run of whatever has no pauses.
const FIRST: u64 = 64;

/// See the module.
#[derive(Debug)]
pub(super) struct Side<'a> {
    stage: &'a Stage,
    road: SocketRoad,
    work: Work,
    // The one that asks ends first.
    asking: Talker,
    serving: Talker,
    spot: Spot,
    has_run: bool,
}

impl SocketRoad {
    /// How the reports call it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::San => "san",
            Self::HookedTcp => "hooked-tcp",
            Self::Tcp => "tcp",
            Self::Unix => "unix",
        }
    }
}

/// Whether a stream's figure is bytes per second, not messages.
pub(super) const fn is_counted_in_bytes(work: &Work) -> bool {
    work.size >= BYTES_FROM
}

impl<'a> Side<'a> {
    /// Starts both processes and waits until all connections are there.
    pub(super) fn start(
        stage: &'a Stage,
        road: SocketRoad,
        work: &Work,
    ) -> Result<Self, BenchError> {
        Self::try_start(stage, road, work).map_err(super::super::as_bench)
    }

    fn try_start(stage: &'a Stage, road: SocketRoad, work: &Work) -> Result<Self, Failure> {
        let (nodes, listen) = match road {
            SocketRoad::San => (
                SAN_NODES.map(Some),
                format!("{}:0", stage.address(SAN_NODES[0])?),
            ),
            SocketRoad::HookedTcp => ([Some(HOOKED_NODE); 2], "127.0.0.1:0".to_owned()),
            SocketRoad::Tcp => ([None; 2], "127.0.0.1:0".to_owned()),
            SocketRoad::Unix => {
                let path = stage.directory().join("peer.sock");
                // Of the side before this one.
                let _ = std::fs::remove_file(&path);
                ([None; 2], path.display().to_string())
            }
        };
        let text = serde_json::to_string(work).context("work of an end")?;
        let start = |node, role: &str, address: &str| {
            let mut command = stage.own_program(node, "__peer")?;
            command.args([role, &text, address]);
            let what = format!("{} end of {}", role, road.name());
            Ok::<_, Failure>(Talker::start(command, &what)?.patient(PATIENCE))
        };
        let mut serving = start(nodes[0], "serve", &listen)?;
        let line = serving.line(stage.stop())?;
        let at = line.strip_prefix("listening ");
        let at = at.with_context(|| format!("the server says `{line}`, which is no address"))?;
        let mut asking = start(nodes[1], "ask", at)?;
        let line = asking.line(stage.stop())?;
        if line != "connected" {
            return Err(anyhow!("the client says `{line}`").into());
        }
        let side = Self {
            stage,
            road,
            work: work.clone(),
            asking,
            serving,
            spot: Spot::default(),
            has_run: false,
        };
        side.check_road(0, &Value::Null)?;
        Ok(side)
    }

    /// The road.
    pub(super) const fn road(&self) -> SocketRoad {
        self.road
    }

    /// Where it runs from now on.
    pub(super) const fn place(&mut self, spot: Spot) {
        self.spot = spot;
    }

    /// Whether its figure is a time.
    pub(super) fn is_less_better(&self) -> bool {
        self.work.mode == Mode::Trips
    }

    fn try_run(&mut self, count: u64) -> Result<Sample, Failure> {
        processes::place(self.asking.pid(), self.spot.asking)?;
        processes::place(self.serving.pid(), self.spot.serving)?;
        if self.road == SocketRoad::San {
            processes::place(self.stage.emulator_pid(), self.spot.nic)?;
        }
        let before = self.counters()?;
        let cpu = self.cpu_time()?;
        let thorough = if self.has_run { "" } else { " thorough" };
        self.has_run = true;
        self.asking.tell(&format!("run {count}{thorough}"))?;
        let line = self.asking.line(self.stage.stop())?;
        let cpu = (self.cpu_time()?.saturating_sub(cpu)).as_secs_f64();
        let found: Found = serde_json::from_str(&line)
            .with_context(|| format!("the client says `{line}`, which is no result"))?;
        self.check_road(count, &before)?;
        let time = Duration::from_nanos(found.ns);
        let bytes = count.saturating_mul(self.work.request() as u64);
        let (sample, things) = match (self.work.mode, found.histogram()) {
            (Mode::Trips, Some(trips)) => (Sample::latency(trips), count as f64 / 1e6),
            (Mode::Stream, _) if is_counted_in_bytes(&self.work) => {
                (Sample::rate(bytes, time), bytes as f64 / 1e9)
            }
            _ => (Sample::rate(count, time), count as f64 / 1e6),
        };
        Ok(sample.costing(cpu / things))
    }

    /// Processor time of all who take part.
    fn cpu_time(&self) -> anyhow::Result<Duration> {
        let mut time = processes::cpu_time(self.asking.pid())?;
        time += processes::cpu_time(self.serving.pid())?;
        if self.road == SocketRoad::San {
            time += processes::cpu_time(self.stage.emulator_pid())?;
        }
        Ok(time)
    }

    fn counters(&self) -> Result<Value, Failure> {
        match self.road {
            SocketRoad::San => self.stage.stat(),
            _ => Ok(Value::Null),
        }
    }

    /// Whether the bytes of a run took the road that they should.
    fn check_road(&self, count: u64, before: &Value) -> Result<(), Failure> {
        if self.road != SocketRoad::San {
            return Ok(());
        }
        let after = self.stage.stat()?;
        let on_tcp = sum(&after, "totals", |row| &row["tcp_connections"]);
        if on_tcp > 0 {
            return Err(anyhow!(
                "{on_tcp} connections took TCP and not the SAN; reasons: {}",
                after["fallbacks"]
            )
            .into());
        }
        let sent = |stat: &Value| sum(stat, "nodes", |row| &row["counters"]["tx_payload_bytes"]);
        let (carried, wanted) = (
            sent(&after).saturating_sub(sent(before)),
            count.saturating_mul(self.work.request() as u64),
        );
        if carried < wanted {
            return Err(anyhow!(
                "the NICs carried {carried} bytes of {wanted}: the rest took another road"
            )
            .into());
        }
        Ok(())
    }
}

/// Sum of a counter over the nodes of the SAN side.
fn sum(stat: &Value, key: &str, counter: impl Fn(&Value) -> &Value) -> u64 {
    let rows = stat[key].as_array().map_or(&[][..], Vec::as_slice);
    let own = rows.iter().filter(|row| {
        let name = row["node"].as_str().or(row["name"].as_str());
        name.is_some_and(|name| SAN_NODES.contains(&name))
    });
    own.filter_map(|row| counter(row).as_u64()).sum()
}

impl Subject for Side<'_> {
    fn name(&self) -> String {
        self.road.name().to_owned()
    }

    fn run(&mut self, count: u64) -> Result<Sample, BenchError> {
        self.try_run(count).map_err(super::super::as_bench)
    }

    fn first(&self) -> u64 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "nanoseconds between messages, at most a second of them"
        )]
        let gap = self
            .work
            .rate
            .map_or(self.work.think_ns, |rate| (1e9 / rate) as u64);
        // A tenth of a second, or one pause.
        (100_000_000 / gap.max(1)).clamp(1, FIRST)
    }
}
