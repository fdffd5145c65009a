//! The least that can go from one processor to another: a word.
//!
//! Place: what the NIC's latency is held against, and the figure of [`super::super::matrix`]. Invariants: one element under way at a time.

use ring_proto::sync::{AtomicU64, Ordering};

use super::super::BenchError;
use super::super::memory::Memory;
use super::super::queue::{Consumer, Element, Producer, Queue};

/// One word on a cache line of its own, for round trips only: nothing keeps a second element from replacing the first.
#[derive(Clone, Copy, Debug)]
pub struct CacheLine;

/// Either end of a [`CacheLine`].
#[derive(Debug)]
pub struct Line {
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
