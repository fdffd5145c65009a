//! Atomic views of mapped memory: the one file where pointers become words.
//!
//! Place: `nic-emu` and `driver` map BAR2 and rings and read or write them through here.
//! Invariants: only `&Atomic…` is ever formed over shared memory, never `&T` or a slice; every access is in bounds of the mapping
//! that the view was made of, whatever number the caller passes. Not built under loom, whose atomics have another layout.
//! Hot: everything here. Leaves out: the order of accesses, which `ring`, `doorbell` and `arm` know.
#![cfg(not(loom))]
#![expect(
    unsafe_code,
    reason = "forms atomics over mapped memory, the only place that does"
)]

use core::ptr::NonNull;

use crate::doorbell::DirtyBits;
use crate::index::Depth;
use crate::ring::{self, Storage};
use crate::sync::{AtomicU32, AtomicU64};
use crate::uar;

/// View of a mapped BAR2.
#[derive(Clone, Copy, Debug)]
pub struct Bar2 {
    base: NonNull<u8>,
}

// SAFETY: the view holds a pointer to shared memory and reaches it through atomics only, which any thread may use.
unsafe impl Send for Bar2 {}
// SAFETY: as for Send.
unsafe impl Sync for Bar2 {}

impl Bar2 {
    /// Makes a view of [`uar::BAR2_LEN`] bytes at `base`.
    ///
    /// # Safety
    /// 1. `base` is page aligned and readable and writable for `BAR2_LEN` bytes as long as any copy of the view is used.
    /// 2. No reference other than to atomics covers the memory.
    #[must_use]
    pub const unsafe fn new(base: NonNull<u8>) -> Self {
        Self { base }
    }

    fn u32_at(&self, offset: u64) -> &AtomicU32 {
        debug_assert!(offset.is_multiple_of(4) && offset + 4 <= uar::BAR2_LEN);
        // Offsets are below 8 MiB.
        #[expect(
            clippy::cast_possible_truncation,
            reason = "offsets lie below BAR2_LEN"
        )]
        let offset = offset as usize;
        // SAFETY: callers below pass offsets inside BAR2, which `new` demands to be mapped.
        let pointer = unsafe { self.base.as_ptr().add(offset) };
        // SAFETY: aligned (base is page aligned, offsets are multiples of 4), valid by `new` 1., shared through atomics only by `new` 2.
        unsafe { AtomicU32::from_ptr(pointer.cast()) }
    }

    fn u64_at(&self, offset: u64) -> &AtomicU64 {
        debug_assert!(offset.is_multiple_of(8) && offset + 8 <= uar::BAR2_LEN);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "offsets lie below BAR2_LEN"
        )]
        let offset = offset as usize;
        // SAFETY: callers below pass offsets inside BAR2, which `new` demands to be mapped.
        let pointer = unsafe { self.base.as_ptr().add(offset) };
        // SAFETY: as in `u32_at`, with multiples of 8.
        unsafe { AtomicU64::from_ptr(pointer.cast()) }
    }

    /// Word `index` (0..8) of the dirty UAR bits.
    #[must_use]
    pub fn uar_dirty(&self, index: u32) -> &AtomicU64 {
        self.u64_at(8 * u64::from(index % 8))
    }

    /// The NIC's sleep flag.
    #[must_use]
    pub fn parked(&self) -> &AtomicU32 {
        self.u32_at(64)
    }

    /// Reset generation.
    #[must_use]
    pub fn generation(&self) -> &AtomicU32 {
        self.u32_at(68)
    }

    /// Nonzero once the function is of no more use.
    #[must_use]
    pub fn failed(&self) -> &AtomicU32 {
        self.u32_at(72)
    }

    /// Provider calls that a fault rule may be about.
    #[must_use]
    pub fn call_faults(&self) -> &AtomicU32 {
        self.u32_at(76)
    }

    /// Directions of links from and to the function's node that are cut.
    #[must_use]
    pub fn link_cuts(&self) -> &AtomicU32 {
        self.u32_at(80)
    }

    /// Live generation of a holder slot; slots past the table share its last word, which stays 0.
    #[must_use]
    pub fn holder_generation(&self, slot: u32) -> &AtomicU32 {
        self.u32_at(uar::HOLDERS_BASE + 4 * u64::from(slot.min(uar::HOLDERS - 1)))
    }

    /// Dirty slots of a UAR.
    #[must_use]
    pub fn slots_dirty(&self, uar: u32) -> &AtomicU64 {
        self.u64_at(uar::uar_offset(uar % uar::UARS * uar::LINES))
    }

    /// Transfer mode of the QP in a slot.
    #[must_use]
    pub fn mode(&self, slot: u32) -> &AtomicU32 {
        let slot = slot % uar::SLOTS;
        self.u32_at(uar::uar_offset(slot) + 256 + 4 * u64::from(slot % uar::LINES))
    }

    /// Doorbell line of a slot.
    #[must_use]
    pub fn line(&self, slot: u32) -> Line<'_> {
        Line {
            bar: self,
            base: uar::line_offset(slot % uar::SLOTS),
        }
    }

    /// Dirty bits of a slot.
    #[must_use]
    pub fn dirty_bits(&self, slot: u32) -> DirtyBits<'_> {
        let slot = slot % uar::SLOTS;
        let uar = slot / uar::LINES;
        DirtyBits {
            slots: self.slots_dirty(uar),
            slot_bit: 1 << (slot % uar::LINES),
            uars: self.uar_dirty(uar / 64),
            uar_bit: 1 << (uar % 64),
        }
    }
}

/// View of one doorbell line.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    bar: &'a Bar2,
    base: u64,
}

impl<'a> Line<'a> {
    /// Producer of the SQ, in blocks.
    #[must_use]
    pub fn sq_producer(self) -> &'a AtomicU32 {
        self.bar.u32_at(self.base)
    }

    /// Producer of the RQ, in WQEs.
    #[must_use]
    pub fn rq_producer(self) -> &'a AtomicU32 {
        self.bar.u32_at(self.base + 4)
    }

    /// Consumer of the CQ or EQ.
    #[must_use]
    pub fn cq_consumer(self) -> &'a AtomicU32 {
        self.bar.u32_at(self.base + 8)
    }

    /// Producer of the SRQ, in WQEs.
    #[must_use]
    pub fn srq_producer(self) -> &'a AtomicU32 {
        self.bar.u32_at(self.base + 12)
    }

    /// Limit word of the SRQ.
    #[must_use]
    pub fn srq_limit(self) -> &'a AtomicU32 {
        self.bar.u32_at(self.base + 32)
    }

    /// Armed vectors.
    #[must_use]
    pub fn arm_vectors(self) -> &'a AtomicU64 {
        self.bar.u64_at(self.base + 16)
    }

    /// Vectors armed for solicited completions and errors only.
    #[must_use]
    pub fn arm_solicited(self) -> &'a AtomicU64 {
        self.bar.u64_at(self.base + 56)
    }

    /// Consumer at the latest arm.
    #[must_use]
    pub fn arm_sequence(self) -> &'a AtomicU32 {
        self.bar.u32_at(self.base + 24)
    }
}

/// The aligned 8-byte word at `place` of mapped memory, for read-modify-writes that every other program sees as one step.
///
/// # Safety
/// 1. `place` is 8-byte aligned and readable and writable for 8 bytes as long as the word is used.
/// 2. No reference other than to atomics covers the memory.
#[inline]
#[must_use]
pub const unsafe fn word<'a>(place: NonNull<u64>) -> &'a AtomicU64 {
    // SAFETY: aligned and valid by 1., shared through atomics only by 2.
    unsafe { AtomicU64::from_ptr(place.as_ptr()) }
}

/// View of a ring of equal elements of `WORDS` eight-byte words each.
#[derive(Clone, Copy, Debug)]
pub struct Ring<const WORDS: usize> {
    base: NonNull<u64>,
    depth: Depth,
}

// SAFETY: the view reaches its memory through atomics only.
unsafe impl<const WORDS: usize> Send for Ring<WORDS> {}
// SAFETY: as for Send.
unsafe impl<const WORDS: usize> Sync for Ring<WORDS> {}

impl<const WORDS: usize> Ring<WORDS> {
    /// Makes a view of `depth` elements at `base`.
    ///
    /// # Safety
    /// 1. `base` is 8-byte aligned and readable and writable for `depth * WORDS * 8` bytes as long as any copy of the view is used.
    /// 2. No reference other than to atomics covers the memory.
    #[must_use]
    pub const unsafe fn new(base: NonNull<u64>, depth: Depth) -> Self {
        Self { base, depth }
    }

    /// Bytes of a ring of `depth` elements.
    #[must_use]
    pub const fn bytes(depth: Depth) -> u64 {
        depth.entries() as u64 * WORDS as u64 * 8
    }

    /// Depth of the ring.
    #[must_use]
    pub const fn depth(&self) -> Depth {
        self.depth
    }

    /// Copies the element at `position` once; the copy is what may be checked and used.
    #[inline]
    #[must_use]
    pub fn snapshot(&self, position: u32) -> [u64; WORDS] {
        ring::snapshot(self, position)
    }

    /// Writes the element at `position`; published later by a doorbell.
    #[inline]
    pub fn write(&self, position: u32, words: &[u64; WORDS]) {
        ring::write(self, position, words);
    }

    /// Writes the element at `position` and stores its last word, the publish word, with Release.
    #[inline]
    pub fn publish(&self, position: u32, words: &[u64; WORDS]) {
        ring::publish(self, position, words);
    }

    /// Returns the element at `position` when its publish word carries the phase of that lap.
    #[inline]
    #[must_use]
    pub fn published(&self, position: u32) -> Option<[u64; WORDS]> {
        ring::published(self, position)
    }
}

impl<const WORDS: usize> Storage<WORDS> for Ring<WORDS> {
    fn depth(&self) -> Depth {
        self.depth
    }

    #[inline]
    fn word(&self, position: u32, word: usize) -> &AtomicU64 {
        let index = self.depth.index(position) as usize * WORDS + word % WORDS;
        // SAFETY: `Depth::index` masks below the depth and `word` is reduced below WORDS, so the word lies in the mapping of `new` 1.
        let pointer = unsafe { self.base.as_ptr().add(index) };
        // SAFETY: aligned by `new` 1., shared through atomics only by `new` 2.
        unsafe { AtomicU64::from_ptr(pointer) }
    }
}

/// Ring of SQ blocks or RQ WQEs.
pub type WqeRing = Ring<8>;
/// Ring of CQEs or admin completions.
pub type CqeRing = Ring<4>;
/// Ring of EQEs.
pub type EqeRing = Ring<2>;
/// Ring of admin commands.
pub type CommandRing = Ring<8>;
