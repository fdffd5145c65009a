//! Who drives what is under way: the program's own calls, or the service thread.
//!
//! Place: calls that leave something to be done tell [`Pace::call`]; the service step asks [`Pace::is_driven`] first.
//! Invariants: after a call the service thread looks within [`TICK_NS`], without having been woken if it looks that often already; when
//! the calls have stopped it arms everything and sleeps. So a program that connects and accepts at a high rate does so with its own
//! threads, and pays for one wake-up of the service thread per burst.
//! Edges: `service-pace`. Source: ours.

use ring_proto::sync::{AtomicU32, Ordering, fence};

/// How soon the service thread looks again while the program drives its sockets itself.
pub(crate) const TICK_NS: u64 = 2_000_000;

/// Calls, as far as the service thread cares.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    calls: AtomicU32,
    /// What the service thread saw of them last.
    seen: AtomicU32,
    /// 1 while the service thread looks again within a tick whatever happens.
    is_ticking: AtomicU32,
    /// 1 once events were filed outside of the service thread.
    has_events: AtomicU32,
}

impl Pace {
    /// A call left something to be done. True: the service thread sleeps and must be woken.
    pub(crate) fn call(&self) -> bool {
        // Relaxed: any change will do.
        self.calls.fetch_add(1, Ordering::Relaxed);
        // EDGE service-pace (release): the call, then the look whether the thread ticks; `is_driven` clears that, then looks again.
        fence(Ordering::SeqCst);
        self.is_ticking.load(Ordering::Relaxed) == 0
    }

    /// For the service thread: whether the program called since it last asked. Then it ticks.
    pub(crate) fn is_driven(&self) -> bool {
        // Relaxed: the fences order the words that decide.
        let called = || {
            let calls = self.calls.load(Ordering::Relaxed);
            self.seen.swap(calls, Ordering::Relaxed) != calls
        };
        self.is_ticking.store(1, Ordering::Relaxed);
        if called() {
            return true;
        }
        self.is_ticking.store(0, Ordering::Relaxed);
        // EDGE service-pace (acquire): pairs with the fence in `call`.
        fence(Ordering::SeqCst);
        called() && {
            self.is_ticking.store(1, Ordering::Relaxed);
            true
        }
    }

    /// Events were filed by a thread that looks at one socket only.
    pub(crate) fn filed(&self) {
        // Relaxed: a hint for the next round.
        self.has_events.store(1, Ordering::Relaxed);
    }

    /// For the service thread: whether that happened.
    pub(crate) fn take_filed(&self) -> bool {
        // Relaxed: as above.
        self.has_events.load(Ordering::Relaxed) != 0
            && self.has_events.swap(0, Ordering::Relaxed) != 0
    }

    /// In a forked child, which has no service thread yet.
    pub(crate) fn forget(&self) {
        // Relaxed: the child has one thread.
        self.is_ticking.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_wake_serves_a_burst_and_a_quiet_program_is_armed_for() {
        let pace = Pace::default();
        assert!(pace.call(), "nobody looks yet");
        assert!(pace.is_driven());
        assert!(!pace.call() && !pace.call(), "it looks within a tick");
        assert!(pace.is_driven());
        assert!(!pace.is_driven(), "no call since");
        assert!(pace.call(), "it sleeps");
    }

    #[test]
    fn a_thread_that_sleeps_is_woken_for_the_next_call() {
        let pace = Pace::default();
        let (woken, is_over) = (AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..50_000 {
                    if pace.call() {
                        woken.store(1, Ordering::Release);
                    }
                }
                is_over.store(1, Ordering::Release);
            });
            loop {
                while pace.is_driven() {}
                // Asleep. Acquire: with the end, everything before it.
                let has_ended = is_over.load(Ordering::Acquire) != 0;
                if woken.swap(0, Ordering::AcqRel) != 0 {
                    continue;
                }
                if has_ended {
                    break;
                }
                std::thread::yield_now();
            }
        });
        let seen = pace.seen.load(Ordering::Relaxed);
        assert_eq!(seen, 50_000, "a call that nobody was woken for");
    }
}
