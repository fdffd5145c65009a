//! The event queue of a function: asynchronous and connection-manager events.
//!
//! Place: connection manager, QPs and CQs report here; whoever holds the queue's poll token in the client reads it.
//! Invariants: no event is lost or overwritten: while the ring is full, or before there is one, events wait in the device; a client
//! that lets [`WAITING_LIMIT`] of them pile up loses its function. Order is kept. Edges: cqe-publish (in `ring_proto::ring`).
//! Source: verbs asynchronous events; layout docs/device.md. Hot: nothing; events are rare beside WQEs.

use std::collections::VecDeque;

use ring_proto::eqe::{self, Eqe, EventType};
use ring_proto::shared::{Bar2, EqeRing};
use ring_proto::status::Syndrome;
use ring_proto::sync::Ordering;

use super::Device;
use super::engine::Fire;
use super::timer::Timer;

/// Most events that wait for room. A sound client never has as many: each of its QPs causes a handful, each request two.
const WAITING_LIMIT: usize = 1 << 18;
/// Time between two looks for room in a full ring.
const RETRY_NS: u64 = 10_000_000;
/// Number of the one EQ of a function.
pub(crate) const EQN: u32 = 1;

/// An event to be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Event {
    pub(crate) event: EventType,
    pub(crate) source: u32,
    pub(crate) code: u32,
}

/// Where the events of a function go.
#[derive(Debug, Default)]
pub(crate) struct EventQueue {
    ring: Option<OpenRing>,
    waiting: VecDeque<Event>,
    /// It stands on the engine's list of queues with news.
    pub(crate) is_queued: bool,
    is_timer_set: bool,
}

#[derive(Debug)]
struct OpenRing {
    ring: EqeRing,
    iova: u64,
    slot: u32,
    producer: u32,
    cached_consumer: u32,
}

impl EventQueue {
    /// Doorbell slot, when the queue exists.
    pub(crate) fn slot(&self) -> Option<u32> {
        self.ring.as_ref().map(|open| open.slot)
    }

    /// Events that wait for room, or for a ring.
    pub(crate) fn waiting_len(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn open(&mut self, ring: EqeRing, iova: u64, slot: u32) {
        self.ring = Some(OpenRing {
            ring,
            iova,
            slot,
            producer: 0,
            cached_consumer: 0,
        });
    }

    /// Drops the ring; waiting events stay for the next one.
    pub(crate) fn close(&mut self) {
        self.ring = None;
    }

    /// Drops the ring and all events.
    pub(crate) fn clear(&mut self) {
        self.ring = None;
        self.waiting.clear();
    }

    /// Whether the ring lies in a window.
    pub(crate) fn is_inside(&self, iova: u64, len: u64) -> bool {
        self.ring
            .as_ref()
            .is_some_and(|open| open.iova >= iova && open.iova - iova < len)
    }

    /// Takes back an event that has not reached the ring; false when it has.
    fn take_back(&mut self, event: Event) -> bool {
        let found = self.waiting.iter().position(|&other| other == event);
        found.is_some_and(|index| self.waiting.remove(index).is_some())
    }

    /// Moves waiting events into the ring; the number moved.
    fn deliver(&mut self, bar: &Bar2) -> usize {
        let Some(open) = &mut self.ring else {
            return 0;
        };
        let mut moved = 0;
        while let Some(&event) = self.waiting.front() {
            if !open.push(bar, event) {
                break;
            }
            self.waiting.pop_front();
            moved += 1;
        }
        moved
    }
}

impl OpenRing {
    fn push(&mut self, bar: &Bar2, event: Event) -> bool {
        let depth = self.ring.depth();
        if depth.free(self.producer, self.cached_consumer) == 0 {
            // Acquire: the element is written again only behind the client's reading of it.
            let claimed = bar.line(self.slot).cq_consumer().load(Ordering::Acquire);
            let consumed = claimed.wrapping_sub(self.cached_consumer);
            if consumed == 0 || consumed > self.producer.wrapping_sub(self.cached_consumer) {
                return false;
            }
            self.cached_consumer = claimed;
        }
        let element = Eqe {
            source: event.source,
            code: event.code,
            publish: eqe::pack(event.event, 0, depth.phase(self.producer)),
        };
        self.ring
            .publish(self.producer, &zerocopy::transmute!(element));
        self.producer = self.producer.wrapping_add(1);
        true
    }
}

impl Device {
    /// Reports an event to a function.
    pub(crate) fn event(&mut self, place: u32, event: EventType, source: u32, code: u32) {
        let Some(function) = self.functions.at_mut(place) else {
            return;
        };
        if function.is_detached {
            return;
        }
        if function.events.waiting.len() >= WAITING_LIMIT {
            self.work.failing.push((place, Syndrome::EQ_OVERRUN));
            return;
        }
        function.events.waiting.push_back(Event {
            event,
            source,
            code,
        });
        self.deliver_events(place);
    }

    /// Reports that a connection request is gone. One that the client has not seen yet vanishes with its news, so that peers who
    /// connect and cancel without end cannot fill the queue of a client that looks away.
    pub(crate) fn withdraw_event(&mut self, place: u32, listener: u32, request: u32) {
        let unseen = self.functions.at_mut(place).is_some_and(|function| {
            function.events.take_back(Event {
                event: EventType::CM_REQUEST,
                source: listener,
                code: request,
            })
        });
        if !unseen {
            self.event(place, EventType::CM_WITHDRAWN, listener, request);
        }
    }

    /// Moves waiting events into the ring of a function as far as there is room.
    pub(crate) fn deliver_events(&mut self, place: u32) {
        let Some(function) = self.functions.at_mut(place) else {
            return;
        };
        let bar = function.bar;
        let id = function.id;
        let events = &mut function.events;
        let has_delivered = events.deliver(&bar) > 0;
        let is_blocked = events.ring.is_some() && !events.waiting.is_empty();
        if is_blocked && !events.is_timer_set {
            events.is_timer_set = true;
            let at = self.clock.now_ns().saturating_add(RETRY_NS);
            self.timers.set(at, Timer::Events(id));
        }
        if has_delivered {
            self.wake_for_events(place);
        }
    }

    /// Fires what is armed for the events of a function, with or without news: whoever wakes looks for itself.
    pub(crate) fn wake_for_events(&mut self, place: u32) {
        if let Some(function) = self.functions.at_mut(place)
            && !function.events.is_queued
        {
            function.events.is_queued = true;
            self.work.fire.push(Fire::Eq { place });
        }
    }

    /// The time has come to look for room again.
    pub(crate) fn events_timer(&mut self, place: u32) {
        if let Some(function) = self.functions.at_mut(place) {
            function.events.is_timer_set = false;
        }
        self.deliver_events(place);
    }
}
