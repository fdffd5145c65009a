//! The device's clock and its timers.
//!
//! Place: the engine runs what is due at the start of each round. Invariants: timers fire in order of time, then of setting; a cancelled
//! timer never fires. In virtual time the clock moves only by [`Clock::advance`]. Hot: [`Clock::now_ns`], once per round.

use std::collections::BTreeMap;
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
    /// Events wait for room in the event queue.
    Events(FunctionId),
}

/// Names a set timer.
pub(crate) type TimerKey = (u64, u64);

/// Timers in order of time.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    queue: BTreeMap<TimerKey, Timer>,
    sequence: u64,
}

impl Timers {
    /// Sets a timer.
    pub(crate) fn set(&mut self, at_ns: u64, timer: Timer) -> TimerKey {
        self.sequence += 1;
        let key = (at_ns, self.sequence);
        self.queue.insert(key, timer);
        key
    }

    /// Cancels a timer; one that has fired is no longer there.
    pub(crate) fn cancel(&mut self, key: TimerKey) {
        self.queue.remove(&key);
    }

    /// Takes the next timer that is due.
    pub(crate) fn due(&mut self, now_ns: u64) -> Option<Timer> {
        let (&key, _) = self.queue.first_key_value()?;
        if key.0 > now_ns {
            return None;
        }
        self.queue.remove(&key)
    }

    /// Time of the next timer.
    pub(crate) fn next_ns(&self) -> Option<u64> {
        self.queue.first_key_value().map(|(&(at, _), _)| at)
    }
}

/// Clock of the device, in nanoseconds since it was made.
#[derive(Debug)]
pub(crate) enum Clock {
    /// The machine's monotonic clock.
    Monotonic(Instant),
    /// Moves only when told to.
    Virtual(u64),
}

impl Clock {
    pub(crate) fn new(virtual_time: bool) -> Self {
        if virtual_time {
            Self::Virtual(0)
        } else {
            Self::Monotonic(Instant::now())
        }
    }

    pub(crate) fn now_ns(&self) -> u64 {
        match self {
            Self::Monotonic(start) => u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX),
            Self::Virtual(now) => *now,
        }
    }

    /// Moves a virtual clock; a real one moves by itself.
    pub(crate) fn advance(&mut self, ns: u64) {
        if let Self::Virtual(now) = self {
            *now = now.saturating_add(ns);
        }
    }
}
