//! Two rings of one capture as one stream in the order of time.
//!
//! Place: [`super::session`] takes records from it. The engine and the wire of namespace mode write a ring each, by the same clock.
//! Invariants: a record goes out when every other ring has a later one, or was found empty so long after it that nothing older can come.
//! What waits here is bounded. Source: ours, a merge of sorted runs. Leaves out: a writer that is stopped between looking at the clock and
//! the ring for longer than [`HOLD_NS`]; its record comes late, and its time tells so.

use std::collections::VecDeque;
use std::time::Instant;

use super::error::CaptureError;
use super::record::{HEAD, Record};
use super::ring::{Counts, Reader};

/// How long a record waits for older ones of a ring that is empty.
const HOLD_NS: u64 = 200_000_000;
/// Bytes of one ring's records that wait at most.
const WAITING_LIMIT: usize = 64 << 20;

/// The rings.
#[derive(Debug)]
pub(crate) struct Merge {
    runs: Vec<Run>,
    clock: Clock,
    is_ended: bool,
}

/// A clock that is never ahead of the device's.
#[derive(Clone, Copy, Debug)]
struct Clock {
    start: Instant,
    start_ns: u64,
}

/// A ring with what has been taken from it.
#[derive(Debug)]
struct Run {
    reader: Reader,
    waiting: VecDeque<(Record, Vec<u8>)>,
    waiting_bytes: usize,
}

impl Run {
    fn load(&mut self) -> Result<(), CaptureError> {
        while self.waiting_bytes < WAITING_LIMIT {
            let mut bytes = Vec::new();
            let Some(record) = self.reader.next(&mut bytes)? else {
                break;
            };
            self.waiting_bytes += HEAD + bytes.len();
            self.waiting.push_back((record, bytes));
        }
        Ok(())
    }

    fn first_ns(&self) -> Option<u64> {
        self.waiting.front().map(|(record, _)| record.at_ns)
    }
}

impl Merge {
    /// Of these rings; `now_ns` is the time of the device's clock, or was a moment ago.
    pub(crate) fn new(readers: Vec<Reader>, now_ns: u64) -> Self {
        let run = |reader| Run {
            reader,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
        };
        Self {
            runs: readers.into_iter().map(run).collect(),
            clock: Clock {
                start: Instant::now(),
                start_ns: now_ns,
            },
            is_ended: false,
        }
    }

    /// Nothing will be written any more: what there is need not wait.
    pub(crate) fn end(&mut self) {
        self.is_ended = true;
    }

    /// The next record; its bytes replace those in `bytes`. `None` when there is none now.
    pub(crate) fn next(&mut self, bytes: &mut Vec<u8>) -> Result<Option<Record>, CaptureError> {
        if let [only] = self.runs.as_mut_slice() {
            return only.reader.next(bytes);
        }
        let mut settled_ns = u64::MAX;
        if self.runs.iter().any(|run| run.waiting.is_empty()) {
            // First the clock, then the rings: what they do not have yet is younger.
            if !self.is_ended {
                settled_ns = self.clock.now_ns().saturating_sub(HOLD_NS);
            }
            for run in &mut self.runs {
                run.load()?;
            }
            let is_certain = self.runs.iter().all(|run| !run.waiting.is_empty())
                || self
                    .runs
                    .iter()
                    .any(|run| run.waiting_bytes >= WAITING_LIMIT);
            if is_certain {
                settled_ns = u64::MAX;
            }
        }
        let waiting = self.runs.iter_mut().filter(|run| !run.waiting.is_empty());
        let Some(first) = waiting.min_by_key(|run| run.first_ns()) else {
            return Ok(None);
        };
        if first.first_ns().is_none_or(|at_ns| at_ns > settled_ns) {
            return Ok(None);
        }
        let Some((record, taken)) = first.waiting.pop_front() else {
            return Ok(None);
        };
        first.waiting_bytes -= HEAD + taken.len();
        *bytes = taken;
        Ok(Some(record))
    }

    /// What the port of a node saw, by the ring at this place.
    pub(crate) fn counts(&self, ring: usize, node: u16) -> Counts {
        let run = self.runs.get(ring);
        run.map_or_else(Counts::default, |run| run.reader.counts(node))
    }
}

impl Clock {
    fn now_ns(self) -> u64 {
        let since = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.start_ns.saturating_add(since)
    }
}

#[cfg(test)]
mod tests {
    use super::super::ring::{Geometry, Writer};
    use super::*;

    fn world() -> (Vec<Writer>, Merge) {
        let geometry = Geometry::new(1 << 16, 1).unwrap();
        let pairs = (0..2).map(|_| {
            let (writer, fd) = Writer::new(geometry).unwrap();
            (writer, Reader::new(&fd, geometry).unwrap())
        });
        let (writers, readers) = pairs.unzip();
        (writers, Merge::new(readers, 0))
    }

    fn put(writer: &mut Writer, at_ns: u64) {
        let record = Record {
            at_ns,
            ..Record::default()
        };
        writer.push(&record, &[]);
    }

    fn take(merge: &mut Merge) -> Vec<u64> {
        let mut bytes = Vec::new();
        std::iter::from_fn(|| merge.next(&mut bytes).unwrap())
            .map(|record| record.at_ns)
            .collect()
    }

    #[test]
    fn records_of_two_rings_come_in_the_order_of_time() {
        let (mut writers, mut merge) = world();
        // An hour ahead of the clock: nothing of it settles by itself.
        let hour = 3_600_000_000_000;
        for at in [1, 2, 5, 9] {
            put(&mut writers[0], hour + at);
        }
        assert_eq!(take(&mut merge), Vec::<u64>::new());
        for at in [3, 4, 6] {
            put(&mut writers[1], hour + at);
        }
        let taken: Vec<_> = take(&mut merge).iter().map(|at| at - hour).collect();
        assert_eq!(taken, [1, 2, 3, 4, 5, 6], "9 waits for the other ring");
        put(&mut writers[1], hour + 7);
        merge.end();
        let taken: Vec<_> = take(&mut merge).iter().map(|at| at - hour).collect();
        assert_eq!(taken, [7, 9]);
    }

    #[test]
    fn a_ring_that_stays_empty_holds_nothing_up() {
        let (mut writers, mut merge) = world();
        merge.clock.start_ns = HOLD_NS;
        put(&mut writers[1], 0);
        assert_eq!(take(&mut merge), [0]);
        assert_eq!(merge.counts(1, 0).captured, 1);
        assert_eq!(merge.counts(0, 0).captured, 0);
    }
}
