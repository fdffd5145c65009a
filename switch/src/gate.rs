//! The gate that keeps `fork` out while a call of the switch holds locks.
//!
//! Place: every call of [`crate::Switch`] passes it; the fork handlers close it (R-26: no switch lock is held across `fork`).
//! Invariants: while the gate is closed nobody is inside, so a child finds every mutex of the switch free. No call waits inside.

use driver::sys::{self, SignalsBlocked};
use ring_proto::sync::{AtomicU32, Ordering};

const CLOSED: u32 = 1 << 31;

/// The gate of the process: `fork` concerns all of it.
static GATE: Gate = Gate {
    word: AtomicU32::new(0),
};

/// Passes the process's gate. A thread inside must not pass it again, for it would wait for itself once the gate is closing.
pub fn enter() -> Inside<'static> {
    GATE.enter()
}

/// Closes the process's gate, before a fork.
pub fn close() {
    GATE.close();
}

/// Opens the process's gate, after a fork.
pub fn open() {
    GATE.open();
}

/// Count of threads inside, and whether the gate is closed.
#[derive(Debug, Default)]
pub struct Gate {
    word: AtomicU32,
}

/// A thread inside the gate. Its signals wait: a handler must neither find the locks taken nor leave by `longjmp`.
#[derive(Debug)]
pub struct Inside<'a> {
    gate: &'a Gate,
    _signals: SignalsBlocked,
}

impl Gate {
    /// Passes the gate; yields while it is closed.
    pub fn enter(&self) -> Inside<'_> {
        let signals = SignalsBlocked::unless_put_off();
        loop {
            // Relaxed: the exchange below decides.
            let word = self.word.load(Ordering::Relaxed);
            if word & CLOSED == 0 {
                // EDGE gate-open (acquire): the state that the forking thread left.
                let entered = self.word.compare_exchange_weak(
                    word,
                    word + 1,
                    Ordering::Acquire,
                    Ordering::Relaxed,
                );
                if entered.is_ok() {
                    return Inside {
                        gate: self,
                        _signals: signals,
                    };
                }
            } else {
                sys::yield_now();
            }
        }
    }

    /// Closes the gate and waits until nobody is inside.
    pub fn close(&self) {
        // EDGE gate-leave (acquire): what those inside have written. Released where they leave. Two forking threads take turns.
        while self.word.fetch_or(CLOSED, Ordering::Acquire) & CLOSED != 0 {
            sys::yield_now();
        }
        // EDGE gate-leave (acquire): as above, for those who were still inside.
        while self.word.load(Ordering::Acquire) != CLOSED {
            sys::yield_now();
        }
    }

    /// Opens the gate again, in the parent or in the child.
    pub fn open(&self) {
        // EDGE gate-open (release): what was done while it was closed. Acquired in `enter`.
        self.word.store(0, Ordering::Release);
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        // EDGE gate-leave (release): what this thread has written. Acquired in `close`.
        self.gate.word.fetch_sub(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn closing_waits_for_those_inside_and_keeps_others_out() {
        let gate = Arc::new(Gate::default());
        let inside = gate.enter();
        let closer = {
            let gate = Arc::clone(&gate);
            std::thread::spawn(move || {
                gate.close();
                gate.open();
            })
        };
        while gate.word.load(Ordering::Relaxed) & CLOSED == 0 {
            std::thread::yield_now();
        }
        assert!(!closer.is_finished());
        drop(inside);
        closer.join().unwrap();
        drop(gate.enter());
        assert_eq!(gate.word.load(Ordering::Relaxed), 0);
    }
}
