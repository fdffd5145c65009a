//! Where the threads of an epoll set sleep, and how they are brought from one place to another.
//!
//! Place: [`super::epoll`] asks before each sleep; the preload library counts those who sleep on a set that it does not know yet.
//! Invariants: as long as the kernel knows everything that a set holds, its threads sleep in the program's own set (*plain*). What
//! makes another place, the set's first vector or the first socket of a set that was unknown, brings out whoever sleeps in the old
//! one before it goes on: a thread left there would miss what only the new place is told. A thread that was cancelled or jumped away
//! in its sleep counts on; it is waited for a bounded time, once.
//! Edges: set-sleeper. Source: Linux fs/eventpoll.c: a level-triggered entry that is ready wakes the waiters one after the other, for as
//! long as it is ready.
//!
//! ```text
//! thread: count itself | fence | set is unknown? -> sleep in the program's set       (Early)
//! adder:  make the set known | fence | somebody counted? -> bring them out
//! ```

use std::os::fd::RawFd;

use ring_proto::sync::{AtomicU32, Ordering, fence};

use super::epoll::{EpollSet, Event, SetState};
use super::registration::change;
use super::vectors::{Mark, OURS};
use super::woke;
use crate::event::EventFd;
use crate::sys::{self, SysResult};
use crate::table::{FDS, Kind, Table};

/// Looks at whether all have come out: the first ones yield, the others sleep a millisecond each. A machine that is too busy to run the
/// sleepers is too busy to run whoever waits for them, so the bound is in looks, not in time.
const LOOKS: u32 = 1000;
const YIELDS: u32 = 50;
const NAP_NS: u64 = 1_000_000;

/// Threads that sleep on sets that the library does not know, by the set's number. Zero bytes are none.
#[derive(Debug)]
pub struct Early {
    asleep: [AtomicU32; FDS],
    /// One past the highest number ever slept on.
    end: AtomicU32,
}

impl Early {
    /// Nobody.
    #[must_use]
    #[expect(
        clippy::new_without_default,
        reason = "a value of 4 MiB is for statics only"
    )]
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self {
            asleep: [const { AtomicU32::new(0) }; FDS],
            end: AtomicU32::new(0),
        }
    }

    fn entry(&self, set_fd: RawFd) -> Option<&AtomicU32> {
        self.asleep.get(usize::try_from(set_fd).ok()?)
    }

    /// Before a thread sleeps on a set that seemed unknown. False when it is known now: nothing is counted then. Pair true with
    /// [`Self::leave`].
    pub fn enter(&self, table: &Table, set_fd: RawFd) -> bool {
        let Some(entry) = self.entry(set_fd) else {
            return true;
        };
        // Relaxed, here and below: the fences order.
        entry.fetch_add(1, Ordering::Relaxed);
        if let Ok(number) = u32::try_from(set_fd) {
            self.end.fetch_max(number + 1, Ordering::Relaxed);
        }
        // EDGE set-sleeper (acq-rel): the count above against the look below. The other side is in `is_any`.
        fence(Ordering::SeqCst);
        if table.kind(set_fd) == Kind::Set {
            self.leave(set_fd);
            return false;
        }
        true
    }

    /// After the sleep.
    pub fn leave(&self, set_fd: RawFd) {
        if let Some(entry) = self.entry(set_fd) {
            decrease(entry);
        }
    }

    /// Whether somebody sleeps on a set that has just become known.
    #[must_use]
    pub fn is_any(&self, set_fd: RawFd) -> bool {
        // EDGE set-sleeper (acq-rel): the set was made known before the look below. The other side is in `enter`.
        fence(Ordering::SeqCst);
        self.entry(set_fd)
            .is_some_and(|entry| entry.load(Ordering::Relaxed) > 0)
    }

    /// Nobody sleeps there any more: who counts has gone without a word, or this is a forked child.
    pub fn forget(&self, set_fd: RawFd) {
        if let Some(entry) = self.entry(set_fd) {
            entry.store(0, Ordering::Relaxed);
        }
    }

    /// In a forked child, which has one thread.
    pub fn after_fork_in_child(&self) {
        let end = usize::try_from(self.end.load(Ordering::Relaxed)).unwrap_or(0);
        for entry in &self.asleep[..end] {
            entry.store(0, Ordering::Relaxed);
        }
    }
}

/// One fewer. Saturating: who came back late has been given up already.
fn decrease(count: &AtomicU32) {
    // Relaxed: a count; see `Early` and `EpollSet::place_to_sleep` for what orders it.
    count
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
        .ok();
}

impl EpollSet {
    /// Ends a wait that [`Self::scan`] began with [`super::epoll::Scan::Sleep`]; `is_plain`: in the program's set itself. A thread that
    /// never comes back costs wake-ups nobody needs.
    pub fn slept(&self, is_plain: bool) {
        woke();
        self.sleepers.fetch_sub(1, Ordering::AcqRel);
        if is_plain {
            decrease(&self.plain_sleepers);
        }
    }

    /// Where to sleep: in the program's set, with the wake descriptor in it, as long as the kernel knows all members and no other
    /// set watches it; else in the set of ours. `is_plain`: whether the thread counts as one that sleeps in the program's set.
    ///
    /// Counted under the set's lock, like the making of the other place: whoever makes it sees all who have not.
    pub(super) fn place_to_sleep(
        &self,
        state: &mut SetState,
        set_fd: RawFd,
        is_plain: &mut bool,
    ) -> RawFd {
        let wake = state.wake.as_ref().map_or(-1, EventFd::fd);
        let data = Mark::Wake.data();
        let is_watched = !state.inners.is_empty() || !self.outers.lock().is_empty();
        let waits = if is_watched {
            state.vectors.make_waits(set_fd)
        } else {
            state.vectors.waits()
        };
        let Some(waits) = waits else {
            if !core::mem::replace(is_plain, true) {
                self.plain_sleepers.fetch_add(1, Ordering::AcqRel);
            }
            if !core::mem::replace(&mut state.is_wake_in_set, true) {
                let event = Event { events: OURS, data };
                change(set_fd, libc::EPOLL_CTL_ADD, wake, event);
            }
            return set_fd;
        };
        if core::mem::replace(is_plain, false) {
            decrease(&self.plain_sleepers);
        }
        if !core::mem::replace(&mut state.is_wake_in_waits, true) {
            let event = Event { events: OURS, data };
            change(waits, libc::EPOLL_CTL_ADD, wake, event);
        }
        let is_left = self.plain_sleepers.load(Ordering::Acquire) == 0 && state.callers == 0;
        if is_left && core::mem::replace(&mut state.is_wake_in_set, false) {
            let nothing = Event { events: 0, data };
            change(set_fd, libc::EPOLL_CTL_DEL, wake, nothing);
        }
        waits
    }

    /// After [`Self::place_to_sleep`] chose the set of ours: nobody stays behind in the program's.
    pub(super) fn leave_nobody_behind(&self, set_fd: RawFd) {
        let plain = &self.plain_sleepers;
        if plain.load(Ordering::Acquire) > 0
            && !self.bring_out(set_fd, || plain.load(Ordering::Acquire) == 0)
        {
            // They were cancelled or jumped away; nobody can sleep there from now on.
            plain.store(0, Ordering::Release);
        }
    }

    /// Wakes everybody who sleeps in the program's set until `are_out`. False when some did not come. Not under a set's lock.
    pub fn bring_out(&self, set_fd: RawFd, are_out: impl Fn() -> bool) -> bool {
        let data = Mark::Wake.data();
        let call = |state: &mut SetState| {
            let wake = state.wake.as_ref().map_or(-1, EventFd::fd);
            sys::signal(wake);
            let operation = if core::mem::replace(&mut state.is_wake_in_set, true) {
                libc::EPOLL_CTL_MOD
            } else {
                libc::EPOLL_CTL_ADD
            };
            // Not by edge: it is ready until it is taken out, so each who wakes wakes the next.
            let events = libc::EPOLLIN.cast_unsigned();
            change(set_fd, operation, wake, Event { events, data });
            state.callers += 1;
        };
        call(&mut self.state.lock());
        let mut is_done = false;
        for look in 0..LOOKS {
            is_done = are_out();
            if is_done {
                break;
            }
            if look < YIELDS {
                sys::yield_now();
            } else {
                driver::sys::doze(NAP_NS);
            }
        }
        let mut state = self.state.lock();
        state.callers -= 1;
        if state.callers == 0 {
            state.is_wake_in_set = false;
            let wake = state.wake.as_ref().map_or(-1, EventFd::fd);
            let nothing = Event { events: 0, data };
            change(set_fd, libc::EPOLL_CTL_DEL, wake, nothing);
        }
        is_done
    }

    pub(super) fn make_wake(&self, state: &mut SetState) -> SysResult<()> {
        let wake = EventFd::new()?;
        // Relaxed: see `wake`.
        self.wake.store(wake.fd(), Ordering::Relaxed);
        state.wake = Some(wake);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;
    use std::sync::Arc;
    use std::thread;

    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollTimeout};

    use super::*;

    static EARLY: Early = Early::new();
    static TABLE: Table = Table::new();

    #[test]
    fn all_who_sleep_on_an_unknown_set_come_out_of_it() {
        let kernels = Epoll::new(EpollCreateFlags::empty()).unwrap();
        let set_fd = kernels.0.as_raw_fd();
        thread::scope(|scope| {
            let sleepers: Vec<_> = (0..5)
                .map(|_| {
                    scope.spawn(|| {
                        // Who comes too late to sleep early has nothing to be woken from.
                        if !EARLY.enter(&TABLE, set_fd) {
                            return None;
                        }
                        let mut events = [EpollEvent::empty()];
                        let told = kernels.wait(&mut events, EpollTimeout::NONE).unwrap();
                        EARLY.leave(set_fd);
                        Some((told, events[0].data()))
                    })
                })
                .collect();
            // Some sleep, some are about to.
            while !EARLY.is_any(set_fd) {
                thread::yield_now();
            }
            let set = EpollSet::new(set_fd).unwrap();
            let kept = TABLE.insert_set(set_fd, Arc::clone(&set)).unwrap();
            assert!(set.bring_out(set_fd, || !EARLY.is_any(set_fd)));
            for sleeper in sleepers {
                let woken = sleeper.join().unwrap();
                assert!(woken.is_none_or(|woken| woken == (1, Mark::Wake.data())));
            }
            // Nothing of it is left in the set.
            let mut events = [EpollEvent::empty()];
            assert_eq!(kernels.wait(&mut events, EpollTimeout::ZERO), Ok(0));
            TABLE.remove(set_fd);
            drop(kept);
        });
    }

    #[test]
    fn who_never_comes_is_given_up_once() {
        let kernels = Epoll::new(EpollCreateFlags::empty()).unwrap();
        let set_fd = kernels.0.as_raw_fd();
        let set = EpollSet::new(set_fd).unwrap();
        let mut is_plain = false;
        let place = set.place_to_sleep(&mut set.state.lock(), set_fd, &mut is_plain);
        assert_eq!((place, is_plain), (set_fd, true));
        set.leave_nobody_behind(set_fd);
        assert_eq!(set.plain_sleepers.load(Ordering::Relaxed), 0);
        // It comes all the same.
        set.sleepers.fetch_add(1, Ordering::Relaxed);
        set.slept(true);
        assert_eq!(set.plain_sleepers.load(Ordering::Relaxed), 0);
    }
}
