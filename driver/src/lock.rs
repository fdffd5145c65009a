//! Locks and tokens in the arena that outlive a holder who is killed.
//!
//! Place: `function` serialises admin commands and arena changes with [`RobustLock`]; `provider` claims queues with [`Token`].
//! Invariants: a word names its owner (holder slot and generation of the process), and an owner the NIC no longer lists is replaced
//! by whoever comes next, who is told so; nothing is protected that a half-done step could leave broken, because every change of
//! shared state is committed by one store.
//! Hot: [`Token::try_take`], [`Token::give`]. Edges: `lock-hand-over`, `token-hand-over`.
//! Source: robust futexes, with the NIC's holder table in place of the kernel's list. Leaves out: fairness.

use ring_proto::sync::{AtomicU32, AtomicU64, Ordering, fence};

use crate::sys;

/// Name of a process among the sharers of a function, as one word: generation (19 bits), slot (12 bits). Never 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity(u32);

impl Identity {
    const SLOT_BITS: u32 = 12;
    const GENERATION_LIMIT: u32 = 1 << 19;

    /// Composes the name; `None` for a slot beyond the published table.
    #[must_use]
    pub const fn new(slot: u32, generation: u32) -> Option<Self> {
        // The last word of the table stands for all slots beyond it.
        if generation == 0 || slot >= ring_proto::uar::HOLDERS - 1 {
            return None;
        }
        Some(Self(Self::fold(generation) << Self::SLOT_BITS | slot))
    }

    /// A generation as it fits into the name: 1..2^19.
    #[must_use]
    pub const fn fold(generation: u32) -> u32 {
        if generation == 0 {
            0
        } else {
            (generation - 1) % (Self::GENERATION_LIMIT - 1) + 1
        }
    }

    /// The name in a word of [`Identity::word`].
    #[must_use]
    pub const fn from_word(word: u32) -> Option<Self> {
        if Self::generation_of(word) == 0 {
            None
        } else {
            Some(Self(word & !WAITERS))
        }
    }

    /// The name as a word.
    #[must_use]
    pub const fn word(self) -> u32 {
        self.0
    }

    /// Slot in a word, whoever wrote it.
    #[must_use]
    pub const fn slot_of(word: u32) -> u32 {
        word & ((1 << Self::SLOT_BITS) - 1)
    }

    /// Folded generation in a word, whoever wrote it.
    #[must_use]
    pub const fn generation_of(word: u32) -> u32 {
        (word & !WAITERS) >> Self::SLOT_BITS
    }
}

/// Bit of a lock word: somebody sleeps on it.
const WAITERS: u32 = 1 << 31;
/// Looks at a busy lock before sleeping.
const SPINS: u32 = 64;
/// Longest sleep before the owner's life is checked again.
const RECHECK_MS: u32 = 20;

/// How a lock or token was got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taken {
    /// It was free.
    Clean,
    /// Its owner left it behind: dead, or jumped out of our code.
    Abandoned,
}

/// A lock in one shared word: 0 when free, else the owner's name and `WAITERS`.
#[derive(Clone, Copy, Debug)]
pub struct RobustLock<'a>(&'a AtomicU32);

impl<'a> RobustLock<'a> {
    /// The lock in `word`.
    #[must_use]
    pub const fn new(word: &'a AtomicU32) -> Self {
        Self(word)
    }

    /// Takes the lock for `me`; `is_alive` judges the word of another owner. Sleeps while a living one holds it.
    pub fn lock(self, me: Identity, is_alive: impl Fn(u32) -> bool) -> Taken {
        let mut mine = me.word();
        let mut spins = 0;
        loop {
            // EDGE lock-hand-over (acquire): what the owner before did. Released in `unlock`.
            let seen = match self
                .0
                .compare_exchange(0, mine, Ordering::Acquire, Ordering::Relaxed)
            {
                Ok(_) => return Taken::Clean,
                Err(seen) => seen,
            };
            if spins < SPINS {
                spins += 1;
                sys::yield_now();
                continue;
            }
            if !is_alive(seen & !WAITERS) {
                // A dead owner's stores are visible: its end was published by the NIC after it.
                let taken = self.0.compare_exchange(
                    seen,
                    mine | WAITERS,
                    Ordering::Acquire,
                    Ordering::Relaxed,
                );
                if taken.is_ok() {
                    return Taken::Abandoned;
                }
                continue;
            }
            // Relaxed: says that somebody sleeps, publishes nothing.
            let marked = seen & WAITERS != 0
                || self
                    .0
                    .compare_exchange(seen, seen | WAITERS, Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok();
            if marked {
                sys::futex_wait(self.0, seen | WAITERS, RECHECK_MS);
                // Others may sleep as well: who slept keeps the bit.
                mine = me.word() | WAITERS;
            }
        }
    }

    /// Gives the lock back.
    pub fn unlock(self) {
        // EDGE lock-hand-over (release): all changes made under the lock. Acquired in `lock`.
        if self.0.swap(0, Ordering::Release) & WAITERS != 0 {
            sys::futex_wake(self.0, 1);
        }
    }
}

/// A claim on one queue in one shared word: 0 when free, else owner's name (high half) and thread (low half).
///
/// It is held for one batch only, so who finds it taken yields and looks again.
#[derive(Clone, Copy, Debug)]
pub struct Token<'a>(&'a AtomicU64);

impl<'a> Token<'a> {
    /// The token in `word`.
    #[must_use]
    pub const fn new(word: &'a AtomicU64) -> Self {
        Self(word)
    }

    /// Takes the token if it is free or abandoned: by a dead process, or by this very thread, which jumped out of a signal handler.
    #[inline]
    pub fn try_take(self, me: Identity, is_alive: impl Fn(u32) -> bool) -> Option<Taken> {
        let mine = u64::from(me.word()) << 32 | u64::from(sys::thread_mark());
        // EDGE token-hand-over (acquire): the queue positions of the owner before. Released in `give`.
        match self
            .0
            .compare_exchange(0, mine, Ordering::Acquire, Ordering::Relaxed)
        {
            Ok(_) => Some(Taken::Clean),
            Err(seen) if seen == mine => Some(Taken::Abandoned),
            Err(seen) => self.take_from_dead(seen, mine, is_alive),
        }
    }

    #[cold]
    fn take_from_dead(self, seen: u64, mine: u64, is_alive: impl Fn(u32) -> bool) -> Option<Taken> {
        let [.., a, b, c, d] = seen.to_le_bytes();
        if is_alive(u32::from_le_bytes([a, b, c, d])) {
            return None;
        }
        self.0
            .compare_exchange(seen, mine, Ordering::Acquire, Ordering::Relaxed)
            .ok()
            .map(|_| Taken::Abandoned)
    }

    /// Takes the token, yielding to its owner while that one lives.
    #[inline]
    pub fn take(self, me: Identity, is_alive: impl Fn(u32) -> bool) -> Taken {
        loop {
            if let Some(taken) = self.try_take(me, &is_alive) {
                return taken;
            }
            sys::yield_now();
        }
    }

    /// Gives the token back.
    #[inline]
    pub fn give(self) {
        // EDGE token-hand-over (release): the queue positions. Acquired in `try_take`.
        self.0.store(0, Ordering::Release);
        // Orders the give before a later look at what the next owner files; pairs with the fence of `arm`.
        fence(Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn id(slot: u32, generation: u32) -> Identity {
        Identity::new(slot, generation).unwrap()
    }

    #[test]
    fn a_name_keeps_slot_and_generation_apart_and_is_never_zero() {
        let name = id(4094, 7);
        assert_eq!(Identity::slot_of(name.word()), 4094);
        assert_eq!(Identity::generation_of(name.word()), 7);
        assert_ne!(id(0, u32::MAX).word(), 0);
        assert_eq!(id(0, u32::MAX).word() & WAITERS, 0);
        assert_eq!(Identity::new(4095, 1), None);
        assert_eq!(Identity::new(0, 0), None);
        assert_eq!(Identity::fold(1 << 19), 1);
    }

    #[test]
    fn a_lock_of_a_dead_owner_goes_to_the_next_with_a_note() {
        let word = AtomicU32::new(id(3, 1).word());
        let lock = RobustLock::new(&word);
        assert_eq!(
            lock.lock(id(0, 1), |owner| owner != id(3, 1).word()),
            Taken::Abandoned
        );
        lock.unlock();
        assert_eq!(lock.lock(id(0, 1), |_| true), Taken::Clean);
        lock.unlock();
        // Relaxed: single-threaded test.
        assert_eq!(word.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_lock_excludes_and_wakes_its_sleepers() {
        let shared = Arc::new((AtomicU32::new(0), AtomicU64::new(0)));
        let threads: Vec<_> = (0..4)
            .map(|slot| {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || {
                    for _ in 0..500 {
                        let lock = RobustLock::new(&shared.0);
                        assert_eq!(lock.lock(id(slot, 1), |_| true), Taken::Clean);
                        // Relaxed: the lock orders; two separate accesses show a broken exclusion.
                        let before = shared.1.load(Ordering::Relaxed);
                        if before.is_multiple_of(50) {
                            sys::yield_now();
                        }
                        shared.1.store(before + 1, Ordering::Relaxed);
                        lock.unlock();
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(shared.1.load(Ordering::Relaxed), 2000);
    }

    #[test]
    fn a_token_is_refused_while_its_owner_lives_and_taken_when_it_is_dead() {
        let word = AtomicU64::new(0);
        let token = Token::new(&word);
        assert_eq!(token.try_take(id(0, 1), |_| true), Some(Taken::Clean));
        // The same thread again: it jumped out.
        assert_eq!(token.try_take(id(0, 1), |_| true), Some(Taken::Abandoned));
        let other = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    let busy = token.try_take(id(0, 1), |_| true);
                    (
                        busy,
                        token.try_take(id(1, 1), |owner| owner != id(0, 1).word()),
                    )
                })
                .join()
                .unwrap()
        });
        assert_eq!(other, (None, Some(Taken::Abandoned)));
        token.give();
        assert_eq!(token.take(id(0, 1), |_| true), Taken::Clean);
    }
}
