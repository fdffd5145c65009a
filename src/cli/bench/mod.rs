//! Arguments of `sanlab bench`.
//!
//! Place: part of [`super::Cli`]. Invariants: as there; the words are perftest's where it has them.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use sanlab::bench::alternate::Effort;
use sanlab::bench::{Between, rdma, ring};

mod programs;
mod socket;

pub(crate) use programs::{BenchPrograms, BenchedProgram};
pub(crate) use socket::{BenchSocket, SocketMetric, SocketPattern, SocketRoad};

#[derive(Debug, Subcommand)]
pub(crate) enum Benchmark {
    /// Measure queues between two threads or processes, yours too.
    Ring(BenchRing),
    /// Measure the NIC: latency, bandwidth or rate of an operation.
    Rdma(BenchRdma),
    /// Measure sockets over the SAN: latency, bandwidth, messages or connections per second.
    Socket(BenchSocket),
    /// Measure redis, nginx and iperf3 over the SAN beside TCP.
    Programs(BenchPrograms),
    /// Tell what changed between two saved results.
    Compare(BenchCompare),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sanlab bench ring
  sanlab bench ring --subject sq,array-queue --vs rtrb --size 8,64 --batch 1,16
  sanlab bench ring --metric latency --between processes --subject futex --vs pipe
  sanlab bench ring --subject ./my_ring.so --vs rtrb
  sanlab bench ring --matrix

Queues: sq (the NIC's send queue alone), rtrb, array-queue (crossbeam), pipe, futex (sq whose
consumer sleeps), or a shared object with the functions sanlab_ring_bytes, _init, _push and
_pop; see docs/bench.md. Subject and baseline alternate; every element is checked.")]
pub(crate) struct BenchRing {
    /// Queues to measure.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "sq",
        value_name = "NAME|FILE.so"
    )]
    pub(crate) subject: Vec<String>,
    /// The queue beside them.
    #[arg(long, default_value = "rtrb", value_name = "NAME|FILE.so")]
    pub(crate) vs: String,
    /// Elements per second one way, or the round trip of one element.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) metric: RingMetric,
    /// Bytes of an element: 8, 16, 32, 64, 128 or 256.
    #[arg(long, value_delimiter = ',', default_value = "64")]
    pub(crate) size: Vec<u32>,
    /// Elements of a queue, a power of two.
    #[arg(long, default_value_t = 1024)]
    pub(crate) depth: u32,
    /// Elements of one push.
    #[arg(long, value_delimiter = ',', default_value = "16")]
    pub(crate) batch: Vec<u32>,
    /// What the two sides are.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) between: Sides,
    /// In place of queues, the round trip of a cache line between each two processors.
    #[arg(long, conflicts_with_all = ["subject", "vs", "metric", "size", "depth", "batch", "between", "place", "cpus", "csv", "save", "plot"])]
    pub(crate) matrix: bool,
    #[command(flatten)]
    pub(crate) effort: BenchEffort,
    #[command(flatten)]
    pub(crate) output: BenchOutput,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sanlab bench rdma write lat
  sanlab bench rdma write rate --size 64 --place split
  sanlab bench rdma send bw --size 4096,65536 --via embedded

Beside: a cache line there and back (lat), a bare ring of 64 B elements, rtrb (rate), a memcpy
of the same size (bw). Latency is from post to the polled completion, of the receiver for send.")]
pub(crate) struct BenchRdma {
    /// The operation.
    #[arg(value_enum)]
    pub(crate) operation: Operation,
    /// What to measure of it.
    #[arg(value_enum)]
    pub(crate) metric: RdmaMetric,
    /// Bytes of an operation [default: 8 for lat, 64 for rate, 65536 for bw; atomics have 8].
    #[arg(short, long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=16 << 20))]
    pub(crate) size: Vec<u32>,
    /// Operations under way at most, a power of two.
    #[arg(short, long, default_value_t = 128)]
    pub(crate) tx_depth: u32,
    /// One completion in so many operations.
    #[arg(short = 'Q', long, default_value_t = 16)]
    pub(crate) cq_mod: u32,
    /// Where the NIC is.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) via: Via,
    #[command(flatten)]
    pub(crate) effort: BenchEffort,
    #[command(flatten)]
    pub(crate) output: BenchOutput,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:
  sanlab bench ring --save before.json
  sanlab bench ring --save after.json
  sanlab bench compare before.json after.json --fail-above 5%

What is compared are the ratios to the baseline, which mean the same on a busy machine and on an
idle one. Exits 1 when a row is worse by more than the limit and the intervals lie apart.")]
pub(crate) struct BenchCompare {
    /// The older result.
    pub(crate) before: PathBuf,
    /// The newer result.
    pub(crate) after: PathBuf,
    /// Fail when a row got worse by more than this.
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    pub(crate) fail_above: Option<f64>,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

/// How long, and where.
#[derive(Debug, Args)]
pub(crate) struct BenchEffort {
    /// Pairs of runs.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) repetitions: u32,
    /// Seconds of each run.
    #[arg(long, default_value_t = 0.1, value_parser = seconds)]
    pub(crate) seconds: f64,
    /// Where the two sides run.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) place: Placement,
    /// Processors of the two sides, in place of --place: the measuring one, the other one; of sockets also that of the NIC.
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "A,B[,C]",
        conflicts_with = "place"
    )]
    pub(crate) cpus: Vec<usize>,
}

impl BenchEffort {
    pub(crate) fn effort(&self) -> Effort {
        Effort {
            repetitions: self.repetitions,
            seconds: self.seconds,
        }
    }
}

/// Where the answer goes.
#[derive(Debug, Args)]
pub(crate) struct BenchOutput {
    /// Print one JSON object instead of tables.
    #[arg(long, conflicts_with = "csv")]
    pub(crate) json: bool,
    /// Print comma-separated values instead of tables.
    #[arg(long)]
    pub(crate) csv: bool,
    /// Keep the result with its full histograms, for `compare`.
    #[arg(long, value_name = "FILE")]
    pub(crate) save: Option<PathBuf>,
    /// Draw the result.
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) plot: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub(crate) enum RingMetric {
    #[default]
    Rate,
    Latency,
}

impl From<RingMetric> for ring::Metric {
    fn from(from: RingMetric) -> Self {
        match from {
            RingMetric::Rate => Self::Rate,
            RingMetric::Latency => Self::Latency,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub(crate) enum Sides {
    #[default]
    Threads,
    Processes,
}

impl From<Sides> for Between {
    fn from(from: Sides) -> Self {
        match from {
            Sides::Threads => Self::Threads,
            Sides::Processes => Self::Processes,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub(crate) enum Placement {
    /// Where the scheduler puts them.
    #[default]
    Free,
    /// Both on one processor.
    SameCore,
    /// Each on a processor of its own.
    Split,
    /// Sockets only: each side where it does best, which is tried out before.
    Best,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Operation {
    Send,
    Write,
    Read,
    Atomic,
}

impl From<Operation> for rdma::Operation {
    fn from(from: Operation) -> Self {
        match from {
            Operation::Send => Self::Send,
            Operation::Write => Self::Write,
            Operation::Read => Self::Read,
            Operation::Atomic => Self::Atomic,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum RdmaMetric {
    /// Nanoseconds of one operation at a time.
    Lat,
    /// Bytes per second.
    Bw,
    /// Operations per second.
    Rate,
}

impl From<RdmaMetric> for rdma::Metric {
    fn from(from: RdmaMetric) -> Self {
        match from {
            RdmaMetric::Lat => Self::Latency,
            RdmaMetric::Bw => Self::Bandwidth,
            RdmaMetric::Rate => Self::Rate,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub(crate) enum Via {
    /// A process of its own.
    #[default]
    Process,
    /// This process and thread.
    Embedded,
}

impl From<Via> for rdma::Via {
    fn from(from: Via) -> Self {
        match from {
            Via::Process => Self::Process,
            Via::Embedded => Self::Embedded,
        }
    }
}

/// `5%` or `5`.
fn percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text);
    let value: f64 = number
        .parse()
        .map_err(|_| "a percentage, as in 5%".to_owned())?;
    if value.is_finite() && value >= 0.0 {
        Ok(value)
    } else {
        Err("a percentage of at least 0".to_owned())
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "a number of seconds".to_owned())?;
    if (0.001..=60.0).contains(&value) {
        Ok(value)
    } else {
        Err("between 0.001 and 60 seconds".to_owned())
    }
}
