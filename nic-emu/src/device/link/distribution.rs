//! Distributions of the extra time that packets take.
//!
//! Place: [`super::model`] draws with it. Invariants: a draw lies between nothing and the jitter, whatever the distribution, so a link
//! keeps what it declares; whole numbers alone, so every machine draws the same. Source: tc-netem(8) for the names, Pareto's law cut at
//! both ends. Hot: nothing.

use serde::{Deserialize, Serialize};

use super::random::Random;
use crate::device::fields::{FieldError, Fields};

/// How often which extra time between 0 and the jitter comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Distribution {
    /// Every time as often; half the jitter on average.
    #[default]
    Uniform,
    /// A bell: half the jitter on average, with a standard deviation of a sixth of it.
    Normal,
    /// Mostly next to nothing, rarely nearly all: the median is 1.5 % of the jitter, the mean 5 %, one in ten is above 12 %.
    Pareto,
}

/// Longest time of Pareto's law in shortest ones.
const PARETO_SPAN: u64 = 64;

impl Distribution {
    /// All of them by their names.
    pub const NAMES: [(&'static str, Self); 3] = [
        ("uniform", Self::Uniform),
        ("normal", Self::Normal),
        ("pareto", Self::Pareto),
    ];

    /// The distribution of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let found = Self::NAMES.iter().find(|(other, _)| *other == name);
        found.map(|(_, distribution)| *distribution)
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        let found = Self::NAMES.iter().find(|(_, other)| *other == self);
        found.map_or("", |(name, _)| name)
    }

    /// Reads a field of a request.
    pub(super) fn from_field(
        fields: &Fields<'_>,
        field: &'static str,
    ) -> Result<Option<Self>, FieldError> {
        let allowed = || Self::NAMES.map(|(name, _)| name).join(", ");
        let Some(text) = fields.text(field, &allowed())? else {
            return Ok(None);
        };
        let found = Self::named(text).map(Some);
        found.ok_or_else(|| FieldError::value(field, format!("{text:?}"), allowed()))
    }

    /// A time from 0 to `most`, in the unit of `most`.
    pub(super) fn draw(self, random: &mut Random, most: u64) -> u64 {
        match self {
            Self::Uniform => random.up_to(most),
            Self::Normal => {
                // The mean of three even draws.
                let sum: u128 = (0..3).map(|_| u128::from(random.up_to(most))).sum();
                u64::try_from(sum / 3).unwrap_or(most)
            }
            Self::Pareto => {
                // With u even in 0..1 and the shortest time as unit: x = 1 / (1 - u (1 - 1 / SPAN)), from 1 to SPAN; the time is
                // (x - 1) / (SPAN - 1) of `most`.
                const ONE: u128 = 1 << 32;
                let u = u128::from(random.next() >> 32);
                let span = u128::from(PARETO_SPAN);
                // x - 1 = u (SPAN - 1) / (SPAN - u (SPAN - 1)).
                let time = u128::from(most) * u / (span * ONE - u * (span - 1));
                u64::try_from(time).unwrap_or(most)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Draws of a jitter of 1,000,000, sorted.
    fn drawn(distribution: Distribution) -> Vec<u64> {
        let mut random = Random::new(1);
        let mut all: Vec<u64> = (0..100_000)
            .map(|_| distribution.draw(&mut random, 1_000_000))
            .collect();
        all.sort_unstable();
        all
    }

    fn mean(all: &[u64]) -> u64 {
        all.iter().sum::<u64>() / all.len() as u64
    }

    /// Times at these percentiles.
    fn at(all: &[u64], percent: usize) -> u64 {
        all[all.len() * percent / 100]
    }

    #[test]
    fn distributions_have_their_shapes() {
        let uniform = drawn(Distribution::Uniform);
        assert!((495_000..505_000).contains(&mean(&uniform)));
        assert!((245_000..255_000).contains(&at(&uniform, 25)));

        let normal = drawn(Distribution::Normal);
        assert!((495_000..505_000).contains(&mean(&normal)));
        let spread: f64 = normal
            .iter()
            .map(|&time| (time as f64 - 500_000.0).powi(2))
            .sum();
        let deviation = (spread / normal.len() as f64).sqrt();
        assert!((163_000.0..170_000.0).contains(&deviation), "{deviation}");

        let pareto = drawn(Distribution::Pareto);
        assert!(
            (49_000..54_000).contains(&mean(&pareto)),
            "{}",
            mean(&pareto)
        );
        assert!((14_500..16_500).contains(&at(&pareto, 50)));
        assert!((115_000..133_000).contains(&at(&pareto, 90)));
        assert!(pareto[pareto.len() - 1] > 900_000);
    }

    #[test]
    fn no_draw_leaves_the_jitter() {
        for (_, distribution) in Distribution::NAMES {
            let mut random = Random::new(7);
            for most in [0, 1, 2, 63, u64::MAX] {
                assert!((0..1000).all(|_| distribution.draw(&mut random, most) <= most));
            }
        }
    }
}
