//! Arguments of `sanlab bench socket`.
//!
//! Place: part of [`super::Benchmark`]. Invariants: as there.

use clap::{Args, ValueEnum};

use super::{BenchEffort, BenchOutput};
use crate::peer::work::{Pattern, Wait};
use crate::units;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sanlab bench socket lat --place best
  sanlab bench socket lat --think 200us
  sanlab bench socket lat --sweep                           1 us .. 1 s between messages
  sanlab bench socket lat --wait epoll --connections 1000 --active 50
  sanlab bench socket lat --rate 20000                      open loop
  sanlab bench socket lat --pattern writev --size 65536
  sanlab bench socket bw --size 65536,1048576 --vs unix
  sanlab bench socket rate
  sanlab bench socket conn

Both ends are processes; those of the SAN are on nodes of a cluster that the command brings up,
under the library like any program. Whether their bytes took the SAN is checked after each run.
Roads: san, hooked-tcp (under the library, but on TCP), tcp (loopback), unix.")]
pub(crate) struct BenchSocket {
    /// What to measure.
    #[arg(value_enum)]
    pub(crate) metric: SocketMetric,
    /// Roads to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "san")]
    pub(crate) subject: Vec<SocketRoad>,
    /// The road beside them.
    #[arg(long, value_enum, default_value = "tcp")]
    pub(crate) vs: SocketRoad,
    /// Bytes of a message [default: 64 for lat and rate, 65536 for bw, 1 for conn].
    #[arg(short, long, value_delimiter = ',', value_parser = size)]
    pub(crate) size: Vec<usize>,
    /// How the ends wait for a socket [default: blocking; epoll with --active or --rate].
    #[arg(long, value_enum)]
    pub(crate) wait: Option<SocketWait>,
    /// Connections that are open.
    #[arg(long, value_delimiter = ',', default_value = "1", value_parser = connections)]
    pub(crate) connections: Vec<usize>,
    /// Connections with a message under way at once.
    #[arg(long, default_value = "1", value_parser = connections)]
    pub(crate) active: usize,
    /// What a message is.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) pattern: SocketPattern,
    /// Time between an answer and the next message, so that everybody may fall asleep.
    #[arg(long, value_delimiter = ',', value_name = "TIME", value_parser = units::time_ns)]
    pub(crate) think: Vec<u64>,
    /// Think times of 1 us, 10 us, and so on to 1 s.
    #[arg(long, conflicts_with = "think")]
    pub(crate) sweep: bool,
    /// Messages each second at times fixed before; round trips count from these times.
    #[arg(long, value_name = "N", value_parser = rate)]
    pub(crate) rate: Option<f64>,
    #[command(flatten)]
    pub(crate) effort: BenchEffort,
    #[command(flatten)]
    pub(crate) output: BenchOutput,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum SocketMetric {
    /// Round trips.
    Lat,
    /// Bytes per second one way.
    Bw,
    /// Messages per second one way.
    Rate,
    /// Connections per second, with a message there and back.
    Conn,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum SocketRoad {
    /// Over the emulated SAN, between two nodes.
    San,
    /// Under the library, on TCP.
    HookedTcp,
    /// Kernel TCP over loopback, without the library.
    Tcp,
    /// Unix stream sockets.
    Unix,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum SocketWait {
    /// In the call.
    Blocking,
    /// In epoll_wait.
    Epoll,
    /// Not at all.
    Busy,
}

impl From<SocketWait> for Wait {
    fn from(from: SocketWait) -> Self {
        match from {
            SocketWait::Blocking => Self::Blocking,
            SocketWait::Epoll => Self::Epoll,
            SocketWait::Busy => Self::Busy,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub(crate) enum SocketPattern {
    /// One message, and one as long back.
    #[default]
    Ping,
    /// 64 bytes and right behind them a message, by two sends; 64 bytes back.
    SmallLarge,
    /// A header of 64 bytes and a body by one writev; 64 bytes back.
    Writev,
}

impl From<SocketPattern> for Pattern {
    fn from(from: SocketPattern) -> Self {
        match from {
            SocketPattern::Ping => Self::Ping,
            SocketPattern::SmallLarge => Self::SmallLarge,
            SocketPattern::Writev => Self::Writev,
        }
    }
}

fn size(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|&size| size <= 16 << 20)
        .ok_or_else(|| "at most 16777216 bytes".to_owned())
}

fn connections(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|count| (1..=10_000).contains(count))
        .ok_or_else(|| "between 1 and 10000 connections".to_owned())
}

fn rate(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|rate: &f64| (1.0..=10e6).contains(rate))
        .ok_or_else(|| "between 1 and 10000000 messages each second".to_owned())
}
