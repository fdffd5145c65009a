//! Arguments of `sanlab bench programs`.
//!
//! Place: part of [`super::Benchmark`]. Invariants: as there.

use clap::{Args, ValueEnum};

use super::{BenchOutput, seconds};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sanlab bench programs --save programs.json
  sanlab bench programs --only redis --rounds 3

On Debian: apt-get install redis-server redis-tools nginx-light wrk iperf3
(ab of apache2-utils serves where wrk is missing.)

Servers on node a and clients on node b of a cluster that the command brings up, and the same
without sanlab over loopback TCP, in turn. Exits 1 when something asked for is not installed.")]
pub(crate) struct BenchPrograms {
    /// Programs to measure [default: all].
    #[arg(long, value_enum, value_delimiter = ',', value_name = "NAME")]
    pub(crate) only: Vec<BenchedProgram>,
    /// Pairs of runs of each row.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,
    /// Seconds of each run; wrk and iperf3 count whole ones.
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    pub(crate) seconds: f64,
    #[command(flatten)]
    pub(crate) output: BenchOutput,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum BenchedProgram {
    /// redis-server, by redis-benchmark.
    Redis,
    /// nginx, by wrk or ab.
    Nginx,
    /// iperf3.
    Iperf3,
}
