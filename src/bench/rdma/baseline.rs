//! What the NIC is held against: the machine without it.
//!
//! Place: chosen by the metric. Invariants: the same sizes, sides and processors as the NIC's.

use std::hint::black_box;
use std::time::Instant;

use ring_proto::sync::{AtomicU64, Ordering};

use super::super::BenchError;
use super::super::alternate::Subject;
use super::super::memory::Memory;
use super::super::pair::{Between, Pinned};
use super::super::queue::{Consumer, Element, Producer, Queue};
use super::super::report::Sample;
use super::super::ring::{self, measured};
use super::super::subjects::Rtrb;
use super::{Metric, Plan};

/// The baseline of a plan.
pub(super) fn of(plan: &Plan) -> Result<Box<dyn Subject>, BenchError> {
    let ring = |metric| ring::Plan {
        metric,
        depth: plan.tx_depth,
        batch: plan.cq_mod,
        between: Between::Threads,
        place: plan.place,
    };
    Ok(match plan.metric {
        Metric::Latency => Box::new(measured::<1, _>(CacheLine, &ring(ring::Metric::Latency))?),
        Metric::Rate => Box::new(measured::<8, _>(Rtrb, &ring(ring::Metric::Rate))?),
        Metric::Bandwidth => Box::new(Copies {
            plan: *plan,
            from: vec![0x5a; plan.size as usize],
            to: vec![0; plan.size as usize],
        }),
    })
}

/// One word on a cache line of its own, for round trips only: nothing keeps a second element from replacing the first.
#[derive(Clone, Copy, Debug)]
struct CacheLine;

struct Line {
    memory: Memory,
    seen: u64,
}

impl Line {
    #[expect(unsafe_code, reason = "forms an atomic over shared memory")]
    fn word(&self) -> &AtomicU64 {
        // SAFETY: page aligned, mapped as long as `self`, and reached through atomics only.
        unsafe { AtomicU64::from_ptr(self.memory.base().as_ptr().cast()) }
    }
}

impl Queue<1> for CacheLine {
    type Producer = Line;
    type Consumer = Line;

    fn name(&self) -> String {
        "cache line".into()
    }

    fn bytes(&self, _depth: u32) -> usize {
        64
    }

    fn spans_processes(&self) -> bool {
        true
    }

    fn make(&self, _depth: u32, memory: &Memory) -> Result<(Line, Line), BenchError> {
        let end = || Line {
            memory: memory.clone(),
            seen: 0,
        };
        Ok((end(), end()))
    }
}

impl Producer<1> for Line {
    #[inline]
    fn push(&mut self, elements: &[Element<1>]) -> usize {
        let [[value]] = elements else {
            return 0;
        };
        // Never 0, which is what the line holds at first.
        // EDGE bench-line (release): whatever was done before. Acquired in `pop`.
        self.word().store(value + 1, Ordering::Release);
        1
    }
}

impl Consumer<1> for Line {
    #[inline]
    fn pop(&mut self, room: &mut [Element<1>]) -> usize {
        // EDGE bench-line (acquire): pairs with `push`.
        let value = self.word().load(Ordering::Acquire);
        if value == self.seen {
            return 0;
        }
        self.seen = value;
        room[0] = [value - 1];
        1
    }
}

/// Copies of the same size by this thread.
struct Copies {
    plan: Plan,
    from: Vec<u8>,
    to: Vec<u8>,
}

impl Subject for Copies {
    fn name(&self) -> String {
        "memcpy".into()
    }

    fn run(&mut self, count: u64) -> Result<Sample, BenchError> {
        let _pinned = Pinned::to(self.plan.place.near)?;
        let begin = Instant::now();
        for _ in 0..count {
            black_box(&mut self.to).copy_from_slice(black_box(&self.from));
        }
        Ok(Sample::rate(
            count * u64::from(self.plan.size),
            begin.elapsed(),
        ))
    }
}
