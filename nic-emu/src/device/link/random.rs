//! Seeded pseudo-random numbers of a link.
//!
//! Place: every direction of every link draws from one of its own, so that traffic elsewhere does not change what it meets.
//! Invariants: the same seed gives the same numbers on every machine. Source: SplitMix64 (Steele, Lea, Flood 2014). Hot: nothing.

/// One per million.
pub(crate) const MILLION: u32 = 1_000_000;

/// A generator.
#[derive(Clone, Debug)]
pub(crate) struct Random {
    state: u64,
}

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in 0..=`most`.
    pub(crate) fn up_to(&mut self, most: u64) -> u64 {
        match most.checked_add(1) {
            // The bias of a remainder is far below what a link model can show.
            Some(span) => self.next() % span,
            None => self.next(),
        }
    }

    /// True in `ppm` of a million draws.
    pub(crate) fn hits(&mut self, ppm: u32) -> bool {
        // Drawn even for 0, so that one parameter does not shift the fate of later packets.
        self.up_to(u64::from(MILLION) - 1) < u64::from(ppm)
    }
}

#[cfg(test)]
mod tests {
    use super::{MILLION, Random};

    #[test]
    fn numbers_are_those_of_the_paper_and_rates_hold() {
        let mut random = Random::new(1_234_567);
        assert_eq!(random.next(), 6_457_827_717_110_365_317);
        assert_eq!(random.next(), 3_203_168_211_198_807_973);
        let hits = (0..100_000).filter(|_| random.hits(50_000)).count();
        assert!((4_700..5_300).contains(&hits), "{hits}");
        assert!(!random.hits(0));
        assert!(random.hits(MILLION));
        assert!((0..1000).all(|_| random.up_to(9) <= 9));
    }
}
