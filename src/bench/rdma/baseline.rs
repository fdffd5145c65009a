//! What the NIC is held against: the machine without it.
//!
//! Place: chosen by the metric. Invariants: the same sizes, sides and processors as the NIC's.

use std::hint::black_box;
use std::time::Instant;

use super::super::BenchError;
use super::super::alternate::Subject;
use super::super::pair::{Between, Pinned};
use super::super::report::Sample;
use super::super::ring::{self, measured};
use super::super::subjects::{CacheLine, Rtrb};
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
