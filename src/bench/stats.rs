//! Figures out of samples: medians, the interval of a median, percentiles.
//!
//! Place: [`super::ring`] and [`super::rdma`] collect samples, [`super::report`] prints what this makes of them.
//! Invariants: nothing is assumed about how samples are distributed. Source: the interval of a median by order statistics (binomial).

use hdrhistogram::Histogram;

/// A median and the interval in which the true one lies with at least 95 %; with fewer than six samples all of them.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Median {
    /// The middle.
    pub value: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
}

/// The median of samples; `None` without any.
#[must_use]
pub fn median(samples: &[f64]) -> Option<Median> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let len = sorted.len();
    let (last, middle) = (len.checked_sub(1)?, len / 2);
    let value = if len % 2 == 1 {
        sorted[middle]
    } else {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    };
    let cut = tail(len);
    Some(Median {
        value,
        low: sorted[cut],
        high: sorted[last - cut],
    })
}

/// How many samples at each end the interval leaves out: the most for which a fair coin, thrown once per sample, shows at most that many
/// heads in at most 2.5 % of all cases.
fn tail(len: usize) -> usize {
    let mut probability = 0.5_f64.powi(i32::try_from(len).unwrap_or(i32::MAX));
    let (mut sum, mut cut) = (0.0, 0);
    for heads in 0..len / 2 {
        sum += probability;
        if sum > 0.025 {
            break;
        }
        cut = heads + 1;
        #[expect(clippy::cast_precision_loss, reason = "as many samples as runs")]
        let factor = (len - heads) as f64 / (heads + 1) as f64;
        probability *= factor;
    }
    // The interval between the samples number `cut` and `len - cut + 1`, counted from 1.
    cut.saturating_sub(1)
}

/// An empty histogram of nanoseconds: 1 ns to a minute with three digits.
#[must_use]
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("sound bounds")
}

/// Percentiles of latencies in ns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tail {
    /// Half of all are at most this.
    pub p50: u64,
    /// 99 %.
    pub p99: u64,
    /// 99.9 %.
    pub p999: u64,
    /// The longest.
    pub max: u64,
}

impl Tail {
    pub(crate) fn of(histogram: &Histogram<u64>) -> Self {
        Self {
            p50: histogram.value_at_quantile(0.5),
            p99: histogram.value_at_quantile(0.99),
            p999: histogram.value_at_quantile(0.999),
            max: histogram.max(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{median, tail};

    #[test]
    fn the_interval_of_a_median_is_that_of_the_tables() {
        // Source: tables of binomial intervals of a median, 95 %: ranks from below.
        for (len, rank) in [(6, 1), (9, 2), (10, 2), (15, 4), (20, 6), (25, 8)] {
            assert_eq!(tail(len) + 1, rank, "{len}");
        }
        for few in 1..6 {
            assert_eq!(tail(few), 0);
        }
    }

    #[test]
    fn a_median_of_ten_lies_between_the_second_and_the_ninth() {
        let samples: Vec<f64> = (1..=10).rev().map(f64::from).collect();
        let found = median(&samples).unwrap();
        assert_eq!((found.value, found.low, found.high), (5.5, 2.0, 9.0));
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]).unwrap().value, 3.0);
    }
}
