//! Two subjects in turn, pair by pair, on the same machine at the same time.
//!
//! Place: [`super::ring`], [`super::rdma`] and the command's sockets and programs hand in what they measure. Invariants: which of the two begins changes from pair to pair;
//! runs that show how fast a subject is warm it up and are not counted.

use std::time::Instant;

use super::BenchError;
use super::report::{Direction, Row, Sample};

/// Operations of the first run of most subjects.
const PROBE: u64 = 64;

/// Something that can be measured.
pub trait Subject {
    /// How the reports call it.
    fn name(&self) -> String;

    /// Does `count` operations.
    ///
    /// # Errors
    /// Whatever keeps a figure from being right.
    fn run(&mut self, count: u64) -> Result<Sample, BenchError>;

    /// Operations of the first run, which shows how fast it is.
    fn first(&self) -> u64 {
        PROBE
    }
}

/// How often, and how long.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Effort {
    /// Pairs of runs.
    pub repetitions: u32,
    /// Seconds that a run takes.
    pub seconds: f64,
}

impl Default for Effort {
    fn default() -> Self {
        Self {
            repetitions: 10,
            seconds: 0.1,
        }
    }
}

/// Measures a subject beside a baseline.
///
/// # Errors
/// Those of the runs; [`BenchError::NoRuns`].
pub fn alternate(
    name: String,
    direction: Direction,
    subject: &mut dyn Subject,
    baseline: &mut dyn Subject,
    effort: Effort,
) -> Result<Row, BenchError> {
    let pairs = pairs(subject, baseline, effort)?;
    let names = (subject.name(), baseline.name());
    Row::of_pairs(name, names, direction, &pairs).ok_or(BenchError::NoRuns)
}

/// Pairs of runs, the subject's first, whichever of them began.
///
/// # Errors
/// Those of the runs.
pub fn pairs(
    subject: &mut dyn Subject,
    baseline: &mut dyn Subject,
    effort: Effort,
) -> Result<Vec<(Sample, Sample)>, BenchError> {
    let lengths = [
        probe(subject, effort.seconds)?,
        probe(baseline, effort.seconds)?,
    ];
    let mut pairs = Vec::new();
    for repetition in 0..effort.repetitions {
        if repetition % 2 == 0 {
            let first = subject.run(lengths[0])?;
            pairs.push((first, baseline.run(lengths[1])?));
        } else {
            let first = baseline.run(lengths[1])?;
            pairs.push((subject.run(lengths[0])?, first));
        }
    }
    Ok(pairs)
}

/// Operations that a run needs to last so long.
///
/// # Errors
/// Those of the runs.
pub fn probe(subject: &mut dyn Subject, seconds: f64) -> Result<u64, BenchError> {
    let mut count = subject.first().max(1);
    loop {
        let begin = Instant::now();
        subject.run(count)?;
        let taken = begin.elapsed().as_secs_f64().max(1e-9);
        if taken * 2.0 >= seconds || count >= 1 << 40 {
            return Ok(scaled(count, seconds / taken).max(1));
        }
        count = scaled(count, (seconds / taken).clamp(2.0, 16.0));
    }
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a number of operations, roughly, and never negative"
)]
fn scaled(count: u64, factor: f64) -> u64 {
    (count as f64 * factor) as u64
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    struct Recorded<'a> {
        name: &'static str,
        order: &'a std::cell::RefCell<Vec<&'static str>>,
    }

    impl Subject for Recorded<'_> {
        fn name(&self) -> String {
            self.name.into()
        }

        fn run(&mut self, count: u64) -> Result<Sample, BenchError> {
            self.order.borrow_mut().push(self.name);
            Ok(Sample::rate(count, Duration::from_secs(1)))
        }
    }

    #[test]
    fn each_of_the_two_begins_every_other_pair() {
        let order = std::cell::RefCell::new(Vec::new());
        let [mut a, mut b] = ["a", "b"].map(|name| Recorded {
            name,
            order: &order,
        });
        let effort = Effort {
            repetitions: 3,
            seconds: 0.0,
        };
        let direction = Direction::MoreIsBetter("x/s");
        let row = alternate("t".into(), direction, &mut a, &mut b, effort).unwrap();
        assert_eq!(row.samples, 3);
        // One run of each before, to see how fast it is.
        assert_eq!(order.borrow()[..], ["a", "b", "a", "b", "b", "a", "a", "b"]);
        let none = Effort {
            repetitions: 0,
            ..effort
        };
        let refused = alternate("t".into(), direction, &mut a, &mut b, none);
        assert!(matches!(refused, Err(BenchError::NoRuns)));
    }
}
