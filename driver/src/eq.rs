//! Event queue: asynchronous and connection-manager events of a function.
//!
//! Place: the NIC writes EQEs; whoever holds the function's lock takes them here and files them (`provider::events`).
//! Invariants: taken under the function's lock, in order, one at a time; the position lies in the arena, so the family continues
//! where a killed member stopped.
//! Hot: [`Function::has_event`]. Source: docs/device.md, "Event queue elements".

use ring_proto::eqe::{self, Eqe, EventType};
use ring_proto::sync::Ordering;

use crate::function::{Function, Locked};
use crate::record;

/// An event of the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// What happened.
    pub kind: EventType,
    /// QPN, CQN or listener, by kind.
    pub source: u32,
    /// Request, status or count, by kind.
    pub code: u32,
}

impl Function {
    /// Whether an event waits; no lock, no system call.
    #[inline]
    #[must_use]
    pub fn has_event(&self) -> bool {
        // Relaxed: a stale position shows an event that another process just took, which the lock sorts out.
        let consumer = self.header().eq_consumer.load(Ordering::Relaxed);
        self.event_ring().published(consumer).is_some()
    }

    /// Takes the next event. For users of [`crate::verbs`]; a service provider files events itself.
    #[must_use]
    pub fn next_event(&self) -> Option<Event> {
        if !self.has_event() {
            return None;
        }
        let mut locked = self.lock();
        let event = locked.peek_event()?;
        locked.event_done();
        Some(event)
    }
}

impl Locked<'_> {
    /// The next event; it stays first until [`Locked::event_done`].
    pub(crate) fn peek_event(&mut self) -> Option<Event> {
        let consumer = self.function.header().eq_consumer.load(Ordering::Relaxed);
        let words = self.function.event_ring().published(consumer)?;
        let entry: Eqe = zerocopy::transmute!(words);
        Some(Event {
            kind: eqe::event_type(entry.publish),
            source: entry.source,
            code: entry.code,
        })
    }

    /// The event was filed.
    pub(crate) fn event_done(&mut self) {
        let header = self.function.header();
        // Relaxed: the lock orders the position.
        let next = header.eq_consumer.load(Ordering::Relaxed).wrapping_add(1);
        header.eq_consumer.store(next, Ordering::Relaxed);
        self.function.publish_consumer(record::EVENT_SLOT, next);
    }
}
