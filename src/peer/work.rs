//! What the two ends do, as the benchmark tells them.
//!
//! Place: made by [`crate::benchmark`], read by both ends. Invariants: both get the same, so neither has to be told anything else.

use hdrhistogram::Histogram;
use sanlab::bench::stats::histogram;
use serde::{Deserialize, Serialize};

/// Bytes of a header or small message, and of the answer to what is no plain ping.
pub(crate) const HEADER: usize = 64;

/// What is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Mode {
    /// Messages there and back.
    Trips,
    /// Messages one way.
    Stream,
    /// Connections, made and ended.
    Connections,
}

/// What is sent at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Pattern {
    /// One message, answered by one as long.
    Ping,
    /// A small message and a large one right behind it, by two calls; a small answer.
    SmallLarge,
    /// Header and body by one call of writev; a small answer.
    Writev,
}

/// How an end waits for a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Wait {
    /// In the call itself.
    Blocking,
    /// In `epoll_wait`.
    Epoll,
    /// Not at all: it looks again, and yields.
    Busy,
}

/// See the module.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Work {
    pub(crate) mode: Mode,
    pub(crate) pattern: Pattern,
    pub(crate) wait: Wait,
    /// Bytes of a message.
    pub(crate) size: usize,
    /// Connections beside the one of control.
    pub(crate) connections: usize,
    /// Of them, how many have a message under way at once.
    pub(crate) active: usize,
    /// Time between an answer and the next message.
    pub(crate) think_ns: u64,
    /// Messages begun each second, whatever becomes of those before.
    pub(crate) rate: Option<f64>,
}

impl Work {
    /// Bytes of what is sent at once.
    pub(crate) const fn request(&self) -> usize {
        match self.pattern {
            Pattern::Ping => self.size,
            Pattern::SmallLarge | Pattern::Writev => HEADER + self.size,
        }
    }

    /// Bytes of the answer.
    pub(crate) const fn reply(&self) -> usize {
        match self.pattern {
            Pattern::Ping => self.size,
            Pattern::SmallLarge | Pattern::Writev => HEADER,
        }
    }
}

/// One run, as the benchmark orders it and the asking end passes it on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Run {
    pub(crate) count: u64,
    pub(crate) is_thorough: bool,
}

impl Run {
    /// Bytes of it on the control connection.
    pub(crate) const BYTES: usize = 9;

    pub(crate) fn encode(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.count.to_le_bytes());
        bytes[8] = self.is_thorough.into();
        bytes
    }

    pub(crate) fn decode(bytes: [u8; Self::BYTES]) -> Self {
        let [count @ .., thorough] = bytes;
        Self {
            count: u64::from_le_bytes(count),
            is_thorough: thorough != 0,
        }
    }
}

/// What a run gave, as a line of JSON.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Found {
    /// From the first message to the last answer.
    pub(crate) ns: u64,
    /// Round trips in ns, and how often each came.
    pub(crate) trips: Option<Vec<(u64, u64)>>,
}

impl Found {
    /// Of round trips.
    pub(crate) fn of(ns: u64, trips: &Histogram<u64>) -> Self {
        let recorded = trips.iter_recorded();
        let pairs = recorded.map(|step| (step.value_iterated_to(), step.count_at_value()));
        Self {
            ns,
            trips: Some(pairs.collect()),
        }
    }

    /// The round trips.
    pub(crate) fn histogram(&self) -> Option<Histogram<u64>> {
        let mut all = histogram();
        for &(ns, count) in self.trips.as_ref()? {
            all.saturating_record_n(ns, count);
        }
        Some(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_and_answers_come_back_as_they_were() {
        for is_thorough in [false, true] {
            let run = Run {
                count: 0x0102_0304_0506_0708,
                is_thorough,
            };
            assert_eq!(Run::decode(run.encode()), run);
        }
        let mut trips = histogram();
        trips.record_n(1500, 3).unwrap();
        trips.record(900_000).unwrap();
        let found = Found::of(5, &trips);
        assert_eq!(found.histogram().unwrap(), trips);
    }
}
