//! How the two sides of a run begin together, and learn that the other one is no more.
//!
//! Place: one record in shared memory per run, used by [`super::pair`]. Invariants: each word has one writer after the start; a side
//! that waits yields, and gives up when the other side is gone or nothing moves for [`PATIENCE`].
#![expect(unsafe_code, reason = "forms atomics over shared memory")]

use std::time::{Duration, Instant};

use ring_proto::sync::{AtomicU64, Ordering};

use super::memory::Memory;

/// How long a run may stand still.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// Looks before a side that waits yields: on a core of its own it sees news at once, on a shared one it lets the other side run.
const LOOKS: u32 = 200;
/// Yields between two looks at the clock.
const YIELDS: u32 = 1024;

/// The record of a run.
#[derive(Clone, Debug)]
pub(crate) struct Control(Memory);

/// Words of the record, on lines of their own.
#[derive(Clone, Copy)]
enum Word {
    NearReady = 0,
    FarReady = 1,
    FarDone = 2,
    FarFailed = 3,
}

impl Control {
    pub(crate) const BYTES: usize = 4096;

    pub(crate) fn new(memory: Memory) -> Self {
        assert!(memory.len() >= Self::BYTES, "room for four lines");
        Self(memory)
    }

    fn word(&self, word: Word) -> &AtomicU64 {
        // SAFETY: four lines of 128 bytes lie in the memory that `new` has checked.
        let place = unsafe { self.0.base().add(word as usize * 128) };
        // SAFETY: aligned, mapped as long as `self`, and reached through atomics only.
        unsafe { AtomicU64::from_ptr(place.as_ptr().cast()) }
    }

    fn set(&self, word: Word) {
        // EDGE bench-control (release): whatever the side did before. Acquired in `is_set`.
        self.word(word).store(1, Ordering::Release);
    }

    fn is_set(&self, word: Word) -> bool {
        // EDGE bench-control (acquire): pairs with `set`.
        self.word(word).load(Ordering::Acquire) != 0
    }

    /// Both sides begin when both are here; false when the other never comes.
    pub(crate) fn meet(&self, is_near: bool) -> bool {
        let (own, other) = if is_near {
            (Word::NearReady, Word::FarReady)
        } else {
            (Word::FarReady, Word::NearReady)
        };
        self.set(own);
        let mut idle = Idle::new();
        while !self.is_set(other) {
            if self.is_set(Word::FarFailed) || !idle.wait() {
                return false;
            }
        }
        true
    }

    pub(crate) fn far_ends(&self, is_well: bool) {
        self.set(if is_well {
            Word::FarDone
        } else {
            Word::FarFailed
        });
    }
}

/// A wait that yields, and ends when nothing moves.
#[derive(Debug)]
pub struct Idle {
    looks: u32,
    yields: u32,
    since: Option<Instant>,
}

impl Default for Idle {
    fn default() -> Self {
        Self::new()
    }
}

impl Idle {
    /// Nothing was waited for yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            looks: 0,
            yields: 0,
            since: None,
        }
    }

    /// Something moved.
    #[inline]
    pub fn moved(&mut self) {
        *self = Self::new();
    }

    /// Nothing moved; false when that has been so for too long.
    #[inline]
    pub fn wait(&mut self) -> bool {
        self.looks += 1;
        self.looks < LOOKS || self.give_way()
    }

    #[cold]
    fn give_way(&mut self) -> bool {
        self.looks = LOOKS;
        std::thread::yield_now();
        self.yields += 1;
        if self.yields < YIELDS {
            return true;
        }
        self.yields = 0;
        self.since.get_or_insert_with(Instant::now).elapsed() < PATIENCE
    }
}
