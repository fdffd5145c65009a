//! Ring elements as eight-byte words: how they are written, published and taken, apart from where they lie.
//!
//! Place: [`crate::shared::Ring`] runs these functions over mapped memory; the loom models run the very same ones over loom's
//! atomics. Writers are the driver (WQEs, admin commands) and the NIC (CQEs, EQEs, admin completions).
//! Invariants: one writer and one consumer at a time per element. A *posted* element becomes the reader's by a doorbell; a
//! *published* one by its last word, the publish word, whose phase byte is that of the lap.
//! Hot: everything here. Source: ours; phase bits as in NVMe and EFA. Leaves out: room, which is the business of [`crate::index`].
//!
//! Edges of the rings, with both their ends:
//!
//! | edge | release | acquire |
//! |---|---|---|
//! | sq-publish | driver: producer of the doorbell line, [`crate::doorbell::ring`] | NIC: its load of the producer |
//! | cqe-publish | NIC: publish word, [`publish`] (EQEs and admin completions too) | driver: [`published`] |
//! | cq-consume | driver: consumer of the doorbell line, after the copies | NIC: its load of the consumer, before it re-uses the element |
//! | dirty-publish | driver: dirty bits, [`crate::doorbell::mark`] | NIC: [`crate::doorbell::take`] |
//! | arm-publish | sleeper: vectors of the doorbell line, [`crate::arm::arm`] | NIC: [`crate::arm::fire`] |

use crate::index::Depth;
use crate::sync::{AtomicU64, Ordering};

/// Where the words of a ring's elements lie.
pub trait Storage<const WORDS: usize> {
    /// Depth of the ring.
    fn depth(&self) -> Depth;

    /// Word `word` of the element at `position`, for any values of both: position and word are reduced to the ring's.
    fn word(&self, position: u32, word: usize) -> &AtomicU64;
}

/// Copies the element at `position` once; the copy is what may be checked and used.
#[inline]
#[must_use]
pub fn snapshot<const WORDS: usize>(ring: &impl Storage<WORDS>, position: u32) -> [u64; WORDS] {
    // Relaxed: the caller acquired the producer that covers this element, and a hostile owner may change it at any time anyway.
    core::array::from_fn(|i| ring.word(position, i).load(Ordering::Relaxed))
}

/// Writes the element at `position`; published later by a doorbell.
#[inline]
pub fn write<const WORDS: usize>(ring: &impl Storage<WORDS>, position: u32, words: &[u64; WORDS]) {
    for (i, &w) in words.iter().enumerate() {
        // Relaxed: the doorbell publishes.
        ring.word(position, i).store(w, Ordering::Relaxed);
    }
}

/// Writes the element at `position` and stores its last word, the publish word, with Release.
#[inline]
pub fn publish<const WORDS: usize>(
    ring: &impl Storage<WORDS>,
    position: u32,
    words: &[u64; WORDS],
) {
    for (i, &w) in words[..WORDS - 1].iter().enumerate() {
        // Relaxed: published by the last word.
        ring.word(position, i).store(w, Ordering::Relaxed);
    }
    // EDGE cqe-publish (release): the words above and the payload before them. Acquired in `published`.
    ring.word(position, WORDS - 1)
        .store(words[WORDS - 1], Ordering::Release);
}

/// Returns the element at `position` when its publish word carries the phase of that lap.
#[inline]
#[must_use]
pub fn published<const WORDS: usize>(
    ring: &impl Storage<WORDS>,
    position: u32,
) -> Option<[u64; WORDS]> {
    // EDGE cqe-publish (acquire): pairs with `publish`.
    let last = ring.word(position, WORDS - 1).load(Ordering::Acquire);
    if crate::cqe::phase_of(last) != ring.depth().phase(position) {
        return None;
    }
    Some(core::array::from_fn(|i| {
        if i == WORDS - 1 {
            last
        } else {
            // Relaxed: the publish word above was acquired.
            ring.word(position, i).load(Ordering::Relaxed)
        }
    }))
}
