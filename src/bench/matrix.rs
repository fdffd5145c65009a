//! How far processors are from each other: the round trip of a cache line between each two of them.
//!
//! Place: `sanlab bench ring --matrix`. Invariants: runs of all pairs take turns, so that a pause of the machine is not one pair's alone; a figure is the
//! median of the runs' medians. Source: the habit of core-to-core-latency tools.

use serde::Serialize;

use super::alternate::{Effort, Subject as _, probe};
use super::pair::{Between, allowed};
use super::ring::{self, Metric, measured};
use super::stats::median;
use super::subjects::CacheLine;
use super::{BenchError, Place};

/// Two processors and what lies between them.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Distance {
    /// One processor.
    pub near: usize,
    /// The other one.
    pub far: usize,
    /// Round trip in ns.
    pub ns: f64,
    /// Ends of its interval, see [`super::stats::Median`].
    pub ns_low: f64,
    /// See `ns_low`.
    pub ns_high: f64,
}

/// Measures all pairs of processors that this process may use.
///
/// # Errors
/// [`BenchError::OneProcessor`], and those of the runs.
pub fn measure(effort: Effort) -> Result<Vec<Distance>, BenchError> {
    let cpus = allowed()?;
    if cpus.len() < 2 {
        return Err(BenchError::OneProcessor);
    }
    let mut pairs = Vec::new();
    for (index, &near) in cpus.iter().enumerate() {
        for &far in &cpus[index + 1..] {
            let plan = ring::Plan {
                metric: Metric::Latency,
                depth: 2,
                batch: 1,
                between: Between::Threads,
                place: Place {
                    near: Some(near),
                    far: Some(far),
                },
            };
            let mut subject = measured::<1, _>(CacheLine, &plan)?;
            let length = probe(&mut subject, effort.seconds)?;
            pairs.push(((near, far), subject, length, Vec::new()));
        }
    }
    for _ in 0..effort.repetitions {
        for (_, subject, length, values) in &mut pairs {
            values.push(subject.run(*length)?.value());
        }
    }
    let distances = pairs.into_iter().map(|((near, far), _, _, values)| {
        let found = median(&values).ok_or(BenchError::NoRuns)?;
        Ok(Distance {
            near,
            far,
            ns: found.value,
            ns_low: found.low,
            ns_high: found.high,
        })
    });
    distances.collect()
}
