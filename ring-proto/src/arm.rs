//! Arming: who wants an interrupt for the next completion or event.
//!
//! Place: whoever is about to sleep on a CQ or EQ calls [`arm`], polls once more, and sleeps; the NIC calls [`fire`] after each batch
//! of CQEs or EQEs it published on that queue.
//! Invariants: arming is a set of vectors; one interrupt per armed bit, then the bit is gone. Nothing is lost: either the sleeper's
//! second poll sees the entry, or the NIC sees the bit.
//! A queue has two sets, for any completion and for solicited ones and errors only; both follow this protocol, each for itself.
//! Hot: `fire`.
//!
//! ```text
//! sleeper                              NIC
//! arm_vectors.fetch_or(bit)            write CQEs (publish word Release)
//! fence                                fence
//! poll again; empty?  sleep            arm_vectors != 0?  swap(0), fire each bit
//! ```

use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};

/// Adds `bit` to the vectors that the next entry fires. The caller must poll once more before it sleeps.
///
/// `consumer` is the position up to which the caller has polled.
#[inline]
pub fn arm(vectors: &AtomicU64, sequence: &AtomicU32, consumer: u32, bit: u64) {
    // Relaxed: diagnostic only.
    sequence.store(consumer, Ordering::Relaxed);
    // EDGE arm-publish (acq-rel): pairs with the swap in `fire`; the fence below orders it before the second poll.
    vectors.fetch_or(bit, Ordering::AcqRel);
    fence(Ordering::SeqCst);
}

/// NIC: takes the vectors to fire. Call after publishing a batch.
#[inline]
#[must_use = "the vectors are disarmed by this call and wait to be fired"]
pub fn fire(vectors: &AtomicU64) -> u64 {
    fence(Ordering::SeqCst);
    // Relaxed look: spares the write when nobody sleeps.
    if vectors.load(Ordering::Relaxed) == 0 {
        return 0;
    }
    // EDGE arm-publish (acquire): pairs with `arm`.
    vectors.swap(0, Ordering::AcqRel)
}
