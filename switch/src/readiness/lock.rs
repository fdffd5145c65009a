//! A lock that can be taken before a fork and opened after it, on both sides.
//!
//! Place: epoll sets and their list. Invariants: held for bounded work without waits; the preload library keeps signal handlers
//! out meanwhile, so a thread never meets its own lock. Edges: set-lock. Source: ours; std's guards cannot outlive a fork handler.
#![expect(unsafe_code, reason = "gives access to what the lock protects")]

use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};

use ring_proto::sync::{AtomicU32, Ordering};

use crate::sys;

/// A value behind a lock.
#[derive(Debug, Default)]
pub struct Lock<T> {
    is_held: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached by one thread at a time.
unsafe impl<T: Send> Sync for Lock<T> {}

/// Access to the value.
#[derive(Debug)]
pub struct Guard<'a, T> {
    lock: &'a Lock<T>,
}

impl<T> Lock<T> {
    /// A free lock.
    #[cfg(not(loom))]
    pub const fn new(value: T) -> Self {
        Self {
            is_held: AtomicU32::new(0),
            value: UnsafeCell::new(value),
        }
    }

    /// Takes the lock.
    pub fn lock(&self) -> Guard<'_, T> {
        self.close();
        Guard { lock: self }
    }

    /// Takes the lock without access: before a fork.
    pub fn close(&self) {
        // EDGE set-lock (acquire): the value. Released in `open`.
        while self
            .is_held
            .compare_exchange_weak(0, 1, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            sys::yield_now();
        }
    }

    /// The value, for whoever has closed the lock.
    pub(super) fn closed_value(&self) -> &T {
        debug_assert!(self.is_held.load(Ordering::Relaxed) == 1);
        // SAFETY: the only caller has closed the lock, so nobody has a mutable view.
        unsafe { &*self.value.get() }
    }

    /// The value, for whoever owns the lock alone, taken or not.
    pub(super) fn value_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }

    /// Frees the lock after [`Self::close`], in the parent or in the child.
    pub fn open(&self) {
        // EDGE set-lock (release): the value. Acquired in `close`.
        self.is_held.store(0, Ordering::Release);
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the guard holds the lock.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard holds the lock, and is borrowed alone.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        self.lock.open();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn threads_take_turns() {
        let lock = Lock::new(0_u64);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        *lock.lock() += 1;
                    }
                });
            }
        });
        lock.close();
        lock.open();
        assert_eq!(*lock.lock(), 4000);
    }
}
