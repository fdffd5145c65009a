//! Clients that mean harm, against an emulator in a process of its own: it serves everybody else as if they were not there.
//!
//! `SANLAB_LONG=1` runs the long forms, such as the scribbler's million operations.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[expect(dead_code, reason = "other suites need more of it")]
#[path = "../client/mod.rs"]
mod client;
#[expect(dead_code, reason = "its own suite needs more of it")]
#[path = "../server_suite/harness.rs"]
mod harness;
mod limits;
mod live;
mod lying;
mod process;
mod sandbox;
mod scribbler;
mod traffic;

/// How many operations a test does: few, or many with `SANLAB_LONG=1`.
fn operations(short: u64, long: u64) -> u64 {
    let is_long = std::env::var_os("SANLAB_LONG").is_some_and(|value| value == "1");
    if is_long { long } else { short }
}

/// The random numbers of a seed (SplitMix64).
#[derive(Clone, Debug)]
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// One of several things.
    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        let limit = u64::try_from(from.len()).unwrap();
        from[usize::try_from(self.below(limit)).unwrap()]
    }
}
