//! Allocator whose state lies in shared memory: size classes over a bump pointer.
//!
//! Place: `arena` and `pair` hand out records, rings and buffers with it, under the arena's lock.
//! Invariants: each change is committed by one store, so a process killed between any two steps leaks at most one block and breaks
//! nothing. Links of free blocks live in the blocks themselves and are checked when they are read.
//! A block is never split and never merged; a class takes from a larger one, at most four times its size, when nothing else is left.
//! Source: ours; segregated storage with four classes per power of two. Leaves out: giving pages back (the caller punches).

use core::mem::{offset_of, size_of};

use ring_proto::sync::{AtomicU64, Ordering};

/// Smallest block and alignment of all blocks.
pub(crate) const UNIT: u64 = 64;
/// Size classes: up to 1 GiB.
const CLASSES: usize = 92;
/// Blocks from this size on are page aligned.
const PAGED: u64 = 16 * 1024;
const PAGE: u64 = 4096;
/// Larger classes a request may fall back on: four times its size.
const FALL_BACK: usize = 8;

/// State of one heap. All zero: not made yet.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Heap {
    /// First offset never handed out; 0 until [`Heap::init`].
    bump: AtomicU64,
    /// First offset beyond the heap.
    end: AtomicU64,
    /// Bytes handed out.
    live: AtomicU64,
    /// First free block of each class, 0 for none.
    free: [AtomicU64; CLASSES],
}

const _: () = assert!(size_of::<Heap>() == 24 + 8 * CLASSES && offset_of!(Heap, free) == 24);

/// How a heap reaches the first word of a free block: `None` outside of the mapping.
pub(crate) trait Links {
    /// The word at `offset`.
    fn link(&self, offset: u64) -> Option<&AtomicU64>;
}

/// Class of a size in units, and the size of its blocks in units.
const fn class_of(units: u64) -> (usize, u64) {
    let units = if units == 0 { 1 } else { units };
    let last = units - 1;
    if last < 4 {
        #[expect(clippy::cast_possible_truncation, reason = "below 4")]
        return (last as usize, units);
    }
    let log = last.ilog2();
    let shift = log - 2;
    let quarter = last >> shift;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "quarter is 4..8 and log below 64"
    )]
    let class = 4 + (log as usize - 2) * 4 + (quarter as usize - 4);
    (class, (quarter + 1) << shift)
}

impl Heap {
    /// Opens the heap over the offsets `start..end`. The store of `bump` commits it.
    pub(crate) fn init(&self, start: u64, end: u64) {
        // Relaxed throughout this file: the arena's lock orders, and no block is read before its owner wrote it.
        for free in &self.free {
            free.store(0, Ordering::Relaxed);
        }
        self.live.store(0, Ordering::Relaxed);
        self.end.store(end, Ordering::Relaxed);
        self.bump
            .store(start.next_multiple_of(UNIT), Ordering::Relaxed);
    }

    /// Bytes in use.
    pub(crate) fn live(&self) -> u64 {
        self.live.load(Ordering::Relaxed)
    }

    /// First offset that was never handed out.
    pub(crate) fn high_water(&self) -> u64 {
        self.bump.load(Ordering::Relaxed)
    }

    /// Bytes that a request of `len` really takes.
    pub(crate) fn block_len(len: u64) -> Option<u64> {
        if len > 1 << 30 {
            return None;
        }
        Some(class_of(len.div_ceil(UNIT)).1 * UNIT)
    }

    /// Hands out `len` bytes; `None` when nothing is left.
    pub(crate) fn alloc(&self, links: &impl Links, len: u64) -> Option<u64> {
        let block = Self::block_len(len)?;
        let (class, _) = class_of(len.div_ceil(UNIT));
        let offset = self
            .pop(links, class)
            .or_else(|| self.extend(block))
            .or_else(|| {
                let last = (class + FALL_BACK).min(CLASSES - 1);
                (class + 1..=last).find_map(|larger| self.pop(links, larger))
            })?;
        self.live
            .store(self.live().saturating_add(block), Ordering::Relaxed);
        Some(offset)
    }

    /// Takes back a block of [`Heap::alloc`] with the same `len`. A block outside of the heap is ignored.
    pub(crate) fn free(&self, links: &impl Links, offset: u64, len: u64) {
        let (Some(block), Some(link)) = (Self::block_len(len), links.link(offset)) else {
            return;
        };
        if !offset.is_multiple_of(UNIT) || offset >= self.high_water() {
            return;
        }
        let (class, _) = class_of(len.div_ceil(UNIT));
        let Some(head) = self.free.get(class) else {
            return;
        };
        link.store(head.load(Ordering::Relaxed), Ordering::Relaxed);
        head.store(offset, Ordering::Relaxed);
        self.live
            .store(self.live().saturating_sub(block), Ordering::Relaxed);
    }

    fn pop(&self, links: &impl Links, class: usize) -> Option<u64> {
        let head = self.free.get(class)?;
        let offset = head.load(Ordering::Relaxed);
        if offset == 0 {
            return None;
        }
        let Some(link) = links.link(offset) else {
            // Somebody wrote over a free block: the list is lost, the heap is not.
            head.store(0, Ordering::Relaxed);
            return None;
        };
        let next = link.load(Ordering::Relaxed);
        let sound = next.is_multiple_of(UNIT) && next < self.high_water();
        head.store(if sound { next } else { 0 }, Ordering::Relaxed);
        Some(offset)
    }

    fn extend(&self, block: u64) -> Option<u64> {
        let bump = self.high_water();
        if bump == 0 {
            return None;
        }
        let start = if block >= PAGED {
            bump.next_multiple_of(PAGE)
        } else {
            bump
        };
        let after = start.checked_add(block)?;
        if after > self.end.load(Ordering::Relaxed) {
            return None;
        }
        self.bump.store(after, Ordering::Relaxed);
        Some(start)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// A heap of 1 MiB beside a vector that stands for the memory.
    struct Model {
        heap: Box<Heap>,
        words: Vec<AtomicU64>,
    }

    impl Links for Vec<AtomicU64> {
        fn link(&self, offset: u64) -> Option<&AtomicU64> {
            self.get(usize::try_from(offset / 8).ok()?)
        }
    }

    fn model() -> Model {
        let heap = Box::new(Heap {
            bump: AtomicU64::new(0),
            end: AtomicU64::new(0),
            live: AtomicU64::new(0),
            free: [const { AtomicU64::new(0) }; CLASSES],
        });
        heap.init(4096, 1 << 20);
        Model {
            heap,
            words: (0..(1 << 17)).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    #[test]
    fn classes_grow_without_gap_and_waste_at_most_a_quarter() {
        let mut last = 0;
        for units in 1..=100_000_u64 {
            let (class, size) = class_of(units);
            assert!(
                size >= units && (units <= 4 || size * 4 <= units * 5),
                "{units}"
            );
            assert!(class == last || class == last + 1, "{units}");
            assert_eq!(class_of(size).0, class, "{units}");
            last = class;
        }
        assert_eq!(class_of((1 << 30) / UNIT).0, CLASSES - 1);
        assert_eq!(Heap::block_len((1 << 30) + 1), None);
    }

    #[test]
    fn a_heap_that_was_never_opened_gives_nothing() {
        let m = model();
        m.heap.init(0, 1 << 20);
        assert_eq!(m.heap.alloc(&m.words, 64), None);
    }

    #[test]
    fn a_scribbled_link_costs_the_list_and_nothing_else() {
        let m = model();
        let a = m.heap.alloc(&m.words, 64).unwrap();
        m.heap.free(&m.words, a, 64);
        m.words[usize::try_from(a / 8).unwrap()].store(u64::MAX - 63, Ordering::Relaxed);
        assert_eq!(m.heap.alloc(&m.words, 64), Some(a));
        assert!(m.heap.alloc(&m.words, 64).is_some_and(|b| b != a));
    }

    proptest! {
        #[test]
        fn blocks_never_overlap_and_freed_memory_comes_back(
            steps in proptest::collection::vec((0_u64..40_000, any::<bool>(), any::<u8>()), 1..200)
        ) {
            let m = model();
            let mut live: BTreeMap<u64, u64> = BTreeMap::new();
            for (len, free, pick) in steps {
                if free && !live.is_empty() {
                    let key = *live.keys().nth(usize::from(pick) % live.len()).unwrap();
                    let len = live.remove(&key).unwrap();
                    m.heap.free(&m.words, key, len);
                } else if let Some(at) = m.heap.alloc(&m.words, len) {
                    prop_assert!(at.is_multiple_of(UNIT) && at >= 4096 && at + len <= 1 << 20);
                    prop_assert!(len < PAGED || at.is_multiple_of(PAGE) || at.is_multiple_of(UNIT));
                    let before = live.range(..=at).next_back();
                    prop_assert!(before.is_none_or(|(&o, &l)| o + l.max(1) <= at));
                    let after = live.range(at + 1..).next();
                    prop_assert!(after.is_none_or(|(&o, _)| at + len <= o));
                    live.insert(at, len);
                }
            }
            for (at, len) in live {
                m.heap.free(&m.words, at, len);
            }
            prop_assert_eq!(m.heap.live(), 0);
        }
    }
}
