//! A mutex of one process that the forking thread can hold over `fork`, so that the child finds it free and its value whole.
//!
//! Place: what a process keeps of its sockets, vectors, mappings and of its stream; other threads may be at it when one forks.
//! Invariants: leaf locks, held for moments and with signals blocked; [`ForkLock::hold`] and [`ForkLock::let_go`] are a pair around
//! the fork, by the forking thread, in parent and child.
//! Source: ours; `std`'s mutex cannot be let go without its guard.
#![expect(unsafe_code, reason = "hands out its value under its own lock")]

use core::cell::UnsafeCell;
use core::fmt;
use core::ops::{Deref, DerefMut};

use ring_proto::sync::{AtomicU32, Ordering};

use crate::sys::{self, SignalsBlocked};

const FREE: u32 = 0;
const HELD: u32 = 1;
const CONTENDED: u32 = 2;
/// A sleeper looks again after that long; the wake-up is what it waits for.
const LOOK_AGAIN_MS: u32 = 1000;

/// The mutex.
pub(crate) struct ForkLock<T> {
    word: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached by one thread at a time, under the lock, and may move between threads (T: Send).
unsafe impl<T: Send> Send for ForkLock<T> {}
// SAFETY: as for Send.
unsafe impl<T: Send> Sync for ForkLock<T> {}

/// The value, locked.
pub(crate) struct Held<'a, T> {
    lock: &'a ForkLock<T>,
    /// Dropped after the lock is let go.
    _signals: SignalsBlocked,
}

impl<T> ForkLock<T> {
    /// Makes a free lock.
    pub(crate) const fn new(value: T) -> Self {
        Self {
            word: AtomicU32::new(FREE),
            value: UnsafeCell::new(value),
        }
    }

    /// Takes the lock. Must not be taken twice by one thread.
    pub(crate) fn lock(&self) -> Held<'_, T> {
        let signals = SignalsBlocked::unless_put_off();
        self.hold();
        Held {
            lock: self,
            _signals: signals,
        }
    }

    /// Takes the lock without a guard, before a fork.
    pub(crate) fn hold(&self) {
        // EDGE fork-lock (acquire): the value. Released in `let_go`.
        let free = self
            .word
            .compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed);
        if free.is_err() {
            // EDGE fork-lock (acquire): as above.
            while self.word.swap(CONTENDED, Ordering::Acquire) != FREE {
                sys::futex_wait(&self.word, CONTENDED, LOOK_AGAIN_MS);
            }
        }
    }

    /// Lets go what [`Self::hold`] took, after the fork, in the parent and in the child.
    pub(crate) fn let_go(&self) {
        // EDGE fork-lock (release): the value. Acquired in `hold`.
        if self.word.swap(FREE, Ordering::Release) == CONTENDED {
            sys::futex_wake(&self.word, 1);
        }
    }
}

impl<T> Deref for Held<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: this guard has the lock, so nobody else has a reference, but those borrowed from this guard.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for Held<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and `&mut self` is the only way through the guard now.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for Held<'_, T> {
    fn drop(&mut self) {
        self.lock.let_go();
    }
}

impl<T> fmt::Debug for ForkLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForkLock").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_take_turns_and_sleepers_are_woken() {
        let lock = ForkLock::new(0_u32);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        *lock.lock() += 1;
                    }
                });
            }
        });
        assert_eq!(*lock.lock(), 4000);
    }

    #[test]
    fn what_is_held_over_a_fork_keeps_others_out_until_it_is_let_go() {
        let lock = ForkLock::new(0_u32);
        lock.hold();
        std::thread::scope(|scope| {
            let other = scope.spawn(|| *lock.lock() = 7);
            while lock.word.load(Ordering::Relaxed) != CONTENDED {
                std::thread::yield_now();
            }
            assert!(!other.is_finished());
            lock.let_go();
            other.join().unwrap();
        });
        assert_eq!(*lock.lock(), 7);
    }
}
