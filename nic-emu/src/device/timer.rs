//! The device's clock and its timers.
//!
//! Place: the engine runs what is due at the start of each round. Invariants: timers fire in order of time, then of setting; a cancelled
//! timer never fires. In virtual time the clock moves only by [`Clock::advance`]. Hot: [`Clock::now_ns`], once per round.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use ring_proto::ids::FunctionId;

use super::qp::QpRef;

/// What a timer is about.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Timer {
    /// A send waited too long for its receiver.
    Hold(QpRef),
    /// A connect reached its limit.
    Connect(u64),
    /// An orphan has waited long enough for its peer.
    Orphan(QpRef),
    /// No process ever answered for a cloned holder slot whose cloner has ended.
    Holder {
        /// Function of the slot.
        function: FunctionId,
        /// Slot.
        slot: u32,
        /// Its generation.
        generation: u32,
    },
    /// A packet comes to the end of its link.
    Arrival(u64),
    /// A message of the connection manager arrives, or is sent again.
    Notice(u64),
    /// A requester in packet mode has waited long enough.
    Packets(QpRef),
    /// Events wait for room in the event queue.
    Events(FunctionId),
    /// The validation layer looks at armed queues.
    Validate,
    /// What a fault rule has delayed happens.
    Fault(u64),
}

/// Names a set timer.
pub(crate) type TimerKey = (u64, u64);

/// Timers in order of time.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    queue: BTreeMap<TimerKey, Set>,
    sequence: u64,
    /// Where timers are that were held back, by the key that their setter knows.
    moved: HashMap<TimerKey, TimerKey>,
}

/// A set timer.
#[derive(Clone, Copy, Debug)]
struct Set {
    timer: Timer,
    key: TimerKey,
    is_held_back: bool,
}

/// A timer whose time has come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Due {
    pub(crate) timer: Timer,
    key: TimerKey,
    /// It was held back when its time came before.
    pub(crate) was_held_back: bool,
}

impl Timers {
    /// Sets a timer.
    pub(crate) fn set(&mut self, at_ns: u64, timer: Timer) -> TimerKey {
        self.sequence += 1;
        let key = (at_ns, self.sequence);
        let set = Set {
            timer,
            key,
            is_held_back: false,
        };
        self.queue.insert(key, set);
        key
    }

    /// Cancels a timer; one that has fired is no longer there.
    pub(crate) fn cancel(&mut self, key: TimerKey) {
        let at = if self.moved.is_empty() {
            key
        } else {
            self.moved.remove(&key).unwrap_or(key)
        };
        self.queue.remove(&at);
    }

    /// Takes the next timer that is due.
    pub(crate) fn due(&mut self, now_ns: u64) -> Option<Due> {
        let (&at, _) = self.queue.first_key_value()?;
        if at.0 > now_ns {
            return None;
        }
        let set = self.queue.remove(&at)?;
        if at != set.key {
            self.moved.remove(&set.key);
        }
        Some(Due {
            timer: set.timer,
            key: set.key,
            was_held_back: set.is_held_back,
        })
    }

    /// Puts a due timer back, under the key that its setter knows; held back, or for a last time of grace.
    pub(crate) fn put_back(&mut self, due: Due, at_ns: u64, is_held_back: bool) {
        self.sequence += 1;
        let at = (at_ns, self.sequence);
        let set = Set {
            timer: due.timer,
            key: due.key,
            is_held_back,
        };
        self.queue.insert(at, set);
        self.moved.insert(due.key, at);
    }

    /// Time of the next timer.
    pub(crate) fn next_ns(&self) -> Option<u64> {
        self.queue.first_key_value().map(|(&(at, _), _)| at)
    }
}

/// Clock of the device, in nanoseconds since it was made. It can be made to stand still, and goes on from there.
#[derive(Debug)]
pub(crate) struct Clock {
    source: Source,
    frozen_at: Option<u64>,
    /// Time that passed while it stood still.
    lost_ns: u64,
}

#[derive(Debug)]
enum Source {
    /// The machine's monotonic clock.
    Monotonic(Instant),
    /// Moves only when told to.
    Virtual(u64),
}

impl Clock {
    pub(crate) fn new(virtual_time: bool) -> Self {
        Self {
            source: if virtual_time {
                Source::Virtual(0)
            } else {
                Source::Monotonic(Instant::now())
            },
            frozen_at: None,
            lost_ns: 0,
        }
    }

    pub(crate) fn now_ns(&self) -> u64 {
        match self.frozen_at {
            Some(at) => at,
            None => self.source_ns().saturating_sub(self.lost_ns),
        }
    }

    fn source_ns(&self) -> u64 {
        match self.source {
            Source::Monotonic(start) => {
                u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
            }
            Source::Virtual(now) => now,
        }
    }

    pub(crate) fn is_virtual(&self) -> bool {
        matches!(self.source, Source::Virtual(_))
    }

    /// Moves a virtual clock; a real one moves by itself.
    pub(crate) fn advance(&mut self, ns: u64) {
        if let Source::Virtual(now) = &mut self.source {
            *now = now.saturating_add(ns);
        }
    }

    /// Makes the clock stand still.
    pub(crate) fn freeze(&mut self) {
        self.frozen_at = Some(self.now_ns());
    }

    /// Lets it go on from where it stands.
    pub(crate) fn thaw(&mut self) {
        if let Some(at) = self.frozen_at.take() {
            self.lost_ns = self.source_ns().saturating_sub(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Clock, Timer, Timers};

    #[test]
    fn a_timer_that_was_held_back_keeps_its_key() {
        let mut timers = Timers::default();
        let key = timers.set(10, Timer::Connect(1));
        let due = timers.due(10).unwrap();
        assert!(!due.was_held_back);
        timers.put_back(due, 20, true);
        assert!(timers.due(19).is_none());
        let due = timers.due(20).unwrap();
        assert!(due.was_held_back);
        timers.put_back(due, 30, false);
        timers.cancel(key);
        assert!(timers.due(u64::MAX).is_none());
        assert!(timers.moved.is_empty());
    }

    #[test]
    fn time_that_passes_while_the_clock_stands_still_is_lost() {
        let mut clock = Clock::new(true);
        clock.advance(5);
        clock.freeze();
        clock.advance(7);
        assert_eq!(clock.now_ns(), 5);
        clock.thaw();
        clock.advance(1);
        assert_eq!(clock.now_ns(), 6);
    }
}
