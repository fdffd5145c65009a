//! Submission: doorbell, dirty words, park and kick.
//!
//! Place: `driver` calls [`ring`] and [`mark`] once per batch; the engine of `nic-emu` calls [`take`] for every dirty word and
//! [`park`] / [`unpark`] around its sleep.
//! Invariants: no doorbell is lost and no wake-up is lost, also when a client dies between any two steps, or when several
//! processes ring the same UAR.
//! Hot: everything here but `park`. Edges: `sq-publish`, `dirty-publish`, and the two full fences of the sleep protocol.
//!
//! ```text
//! client                                   NIC
//! write WQEs                               swap UAR bits, then slot words   (AcqRel)
//! producer.store (Release)                 fence
//! fence                                    producer.load (Acquire)
//! slot bit clear?  fetch_or                serve
//! UAR bit clear?   fetch_or                -- to sleep --
//! any set?         fence                   parked.store(number of the sleep)
//! parked.load != 0?  kick                  fence
//!                                          dirty words all 0?  then sleep
//! ```
//!
//! The fence before the look at the dirty bits pairs with the NIC's fence between taking the bits and reading the producers: either
//! the client sees its bit cleared and sets it again, or the NIC sees the new producer. The fence before the look at `parked` pairs
//! with the NIC's fence after publishing it. `tests/loom_doorbell.rs` models all of it, with a client killed between any two steps.

use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};

/// Whether two loads in program order see stores of other processors in that order, everywhere: then a bit seen set is a bit that
/// every later look of the NIC sees too, and no fence is needed between it and the look at `parked`. Loom knows only the language's
/// own rules, so the models run with the fence.
const LOADS_STAY_IN_ORDER: bool = cfg!(all(target_arch = "x86_64", not(loom)));

/// Where a slot's dirty bits live: the word of its UAR and the word that summarises UARs.
#[derive(Clone, Copy, Debug)]
pub struct DirtyBits<'a> {
    /// Dirty word of the UAR.
    pub slots: &'a AtomicU64,
    /// Bit of the slot in `slots`.
    pub slot_bit: u64,
    /// Word of the summary page that has the UAR's bit.
    pub uars: &'a AtomicU64,
    /// Bit of the UAR in `uars`.
    pub uar_bit: u64,
}

/// Publishes `producer` and says whether the NIC must be kicked.
///
/// The caller has written the WQEs before. One full fence when the NIC already knows of the slot (on x86-64), two otherwise.
#[inline]
#[must_use = "a parked NIC sleeps until it is kicked"]
pub fn ring(doorbell: &AtomicU32, producer: u32, dirty: DirtyBits<'_>, parked: &AtomicU32) -> bool {
    // EDGE sq-publish (release): the WQE bytes below `producer`. Acquired by the NIC's producer load.
    doorbell.store(producer, Ordering::Release);
    mark(dirty, parked)
}

/// Marks a slot dirty after its doorbell line was written, and says whether the NIC must be kicked.
#[inline]
#[must_use = "a parked NIC sleeps until it is kicked"]
pub fn mark(dirty: DirtyBits<'_>, parked: &AtomicU32) -> bool {
    fence(Ordering::SeqCst);
    let mut set = false;
    // Relaxed look: it publishes nothing, and the fence above orders it after the producer.
    if dirty.slots.load(Ordering::Relaxed) & dirty.slot_bit == 0 {
        // EDGE dirty-publish (acq-rel): the doorbell line. Acquired by `take`, and its clearing by the look below.
        dirty.slots.fetch_or(dirty.slot_bit, Ordering::AcqRel);
        set = true;
    }
    // Independent of the slot bit: a sharer killed between the two must not silence the others.
    // EDGE dirty-publish (acquire): keeps the look at `parked` behind the look at somebody else's bit.
    if dirty.uars.load(Ordering::Acquire) & dirty.uar_bit == 0 {
        // EDGE dirty-publish (acq-rel): the slot bit. Acquired by `take`.
        dirty.uars.fetch_or(dirty.uar_bit, Ordering::AcqRel);
        set = true;
    }
    if set || !LOADS_STAY_IN_ORDER {
        // Orders the bits before the look at `parked`; the mirror stands in `park`. Needed for bits found set too: their setter
        // may have been killed before it looked at `parked` itself.
        fence(Ordering::SeqCst);
    }
    // Relaxed: a hint that leads to a kick and publishes nothing.
    parked.load(Ordering::Relaxed) != 0
}

/// NIC: whether a dirty word seems to have bits. For the UAR words only, to spare the write of [`take`] to words that clients share.
#[inline]
#[must_use]
pub fn is_marked(word: &AtomicU64) -> bool {
    // Relaxed: a bit missed here is seen in the next round, and by the re-read after `park` at the latest.
    word.load(Ordering::Relaxed) != 0
}

/// NIC: takes all bits of a dirty word. Call for the UAR words first, then for the slot words of the UARs found, then [`after_take`].
///
/// Always a swap, also of an empty word: a client that sets its slot bit afterwards must see the UAR bit cleared, and it is this
/// write to the slot word that tells it. (A look instead of the swap loses doorbells: `tests/loom_doorbell.rs`.)
#[inline]
#[must_use = "the bits are cleared by this call and wait to be served"]
pub fn take(word: &AtomicU64) -> u64 {
    // EDGE dirty-publish (acq-rel): acquires the doorbell lines of `mark`, and hands the cleared UAR bit to it.
    word.swap(0, Ordering::AcqRel)
}

/// NIC: the fence between taking dirty bits and reading producers.
#[inline]
pub fn after_take() {
    fence(Ordering::SeqCst);
}

/// A sleep without a number of its own: every doorbell kicks.
pub const UNNUMBERED: u32 = 1;

/// Number of the sleep after that with number `sleep`: neither 0, which is awake, nor [`UNNUMBERED`].
#[must_use]
pub const fn next_sleep(sleep: u32) -> u32 {
    match sleep.wrapping_add(1) {
        0 | UNNUMBERED => UNNUMBERED + 1,
        next => next,
    }
}

/// NIC: publishes that it is about to sleep. The caller re-reads the dirty words afterwards and sleeps only when all are 0.
#[inline]
pub fn park(parked: &AtomicU32, sleep: u32) {
    // Relaxed: ordered by the fence below, which pairs with the one in `mark`.
    parked.store(sleep, Ordering::Relaxed);
}

/// The sleep that a client must end by a kick, after [`mark`] said that the NIC must be kicked. `None`: it is awake meanwhile, or this
/// process has kicked for that very sleep, and the NIC is still on its way.
///
/// `kicked` is private to the process and written by [`kick_done`] only: a process that was killed on its way to the kick has told
/// nobody that it kicked. Whoever reads the number of a sleep that is over already, or 0, has set its bits before the next sleep was
/// published, and the NIC's re-read finds them: the same fences as of [`mark`]. A number comes back after 2^32 sleeps.
#[inline]
#[must_use]
pub fn kick_due(parked: &AtomicU32, kicked: &AtomicU32) -> Option<u32> {
    // Relaxed: behind the look of `mark`.
    let sleep = parked.load(Ordering::Relaxed);
    // EDGE kick-done (acquire): the kick that somebody of this process made for that sleep.
    let is_due = sleep != 0 && (sleep == UNNUMBERED || kicked.load(Ordering::Acquire) != sleep);
    is_due.then_some(sleep)
}

/// The kick for a sleep has been made.
#[inline]
pub fn kick_done(kicked: &AtomicU32, sleep: u32) {
    // EDGE kick-done (release): the kick. Acquired by `kick_due` of another thread, which then needs none.
    kicked.store(sleep, Ordering::Release);
}

/// NIC: the fence between [`park`] of all functions and the re-read of their dirty words.
#[inline]
pub fn after_park() {
    fence(Ordering::SeqCst);
}

/// NIC: it is awake again.
#[inline]
pub fn unpark(parked: &AtomicU32) {
    // Relaxed: a number seen too late costs one kick too many, never one too few.
    parked.store(0, Ordering::Relaxed);
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_process_kicks_once_for_each_numbered_sleep() {
        let (parked, kicked) = (AtomicU32::new(0), AtomicU32::new(0));
        assert_eq!(kick_due(&parked, &kicked), None, "awake");
        for sleep in [7, 8] {
            park(&parked, sleep);
            assert_eq!(kick_due(&parked, &kicked), Some(sleep));
            kick_done(&kicked, sleep);
            assert_eq!(kick_due(&parked, &kicked), None, "kicked for it");
        }
        park(&parked, UNNUMBERED);
        for _ in 0..2 {
            assert_eq!(kick_due(&parked, &kicked), Some(UNNUMBERED));
            kick_done(&kicked, UNNUMBERED);
        }
    }

    #[test]
    fn numbers_of_sleeps_are_neither_awake_nor_unnumbered() {
        assert_eq!(next_sleep(0), 2);
        assert_eq!(next_sleep(2), 3);
        assert_eq!(next_sleep(u32::MAX), 2);
    }
}
