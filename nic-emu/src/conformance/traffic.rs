//! What a client puts into its queues and takes out: WQEs and doorbells, completions, events.
//!
//! Place: beside [`super::client`], whose queues these are. Invariants: a WQE is in the ring before its doorbell; a completion or event
//! is copied once and consumed at once. Source: docs/device.md. Leaves out: interrupts, which are [`super::interrupts`]'s.

use ring_proto::cqe::Cqe;
use ring_proto::doorbell;
use ring_proto::eqe::{self, Eqe, EventType};
use ring_proto::status::Opcode;
use ring_proto::sync::Ordering;
use ring_proto::wqe::{RqWqe, Sge, SqWqe};

use super::client::{Client, CqId, Qp};
use super::wr::{SendWr, Wc, recv_wr};
use super::{Outcome, failed, same};

/// An asynchronous event: type, source, code.
pub(crate) type Event = (EventType, u32, u32);

impl Client {
    /// Writes a WQE without ringing; a NOP fills up to the end of the ring when it would wrap.
    pub(crate) fn write_send(&self, qp: &mut Qp, wr: &SendWr) {
        let blocks = wr.blocks();
        let left = qp.sq.depth().until_end(qp.sq_producer);
        if u32::try_from(blocks.len()).unwrap_or(u32::MAX) > left {
            let filler = SqWqe {
                opcode: Opcode::NOP.0,
                blocks: u8::try_from(left).unwrap_or(1),
                ..SqWqe::default()
            };
            qp.sq.write(qp.sq_producer, &zerocopy::transmute!(filler));
            qp.sq_producer = qp.sq_producer.wrapping_add(left);
        }
        for block in &blocks {
            qp.sq.write(qp.sq_producer, block);
            qp.sq_producer = qp.sq_producer.wrapping_add(1);
        }
    }

    pub(crate) fn write_recv(&self, qp: &mut Qp, wqe: RqWqe) {
        qp.rq.write(qp.rq_producer, &zerocopy::transmute!(wqe));
        qp.rq_producer = qp.rq_producer.wrapping_add(1);
    }

    /// Stores both producers and rings.
    pub(crate) fn ring(&self, qp: &Qp) {
        let line = self.doorbells.bar.line(qp.slot);
        line.rq_producer().store(qp.rq_producer, Ordering::Release);
        let bits = self.doorbells.bar.dirty_bits(qp.slot);
        if doorbell::ring(
            line.sq_producer(),
            qp.sq_producer,
            bits,
            self.doorbells.bar.parked(),
        ) {
            self.attachment.kick();
        }
    }

    /// Rings a slot without any news.
    pub(crate) fn ring_slot(&self, slot: u32) {
        if doorbell::mark(
            self.doorbells.bar.dirty_bits(slot),
            self.doorbells.bar.parked(),
        ) {
            self.attachment.kick();
        }
    }

    pub(crate) fn send(&self, qp: &mut Qp, wr: &SendWr) {
        self.write_send(qp, wr);
        self.ring(qp);
    }

    pub(crate) fn recv(&self, qp: &mut Qp, wr_id: u64, sges: &[Sge]) {
        self.write_recv(qp, recv_wr(wr_id, sges));
        self.ring(qp);
    }

    // ---- completions ----

    fn poll(&mut self, id: CqId) -> Outcome<Option<Wc>> {
        let bar = self.doorbells.bar;
        let cq = self.cq_of(id)?;
        let Some(words) = cq.ring.published(cq.consumer) else {
            return Ok(None);
        };
        cq.consumer = cq.consumer.wrapping_add(1);
        let cqe: Cqe = zerocopy::transmute!(words);
        bar.line(cq.slot)
            .cq_consumer()
            .store(cq.consumer, Ordering::Release);
        let wc = Wc::from(cqe);
        self.note(format_args!("{wc:?}"));
        Ok(Some(wc))
    }

    /// The next completion of a CQ.
    pub(crate) fn wc(&mut self, cq: CqId) -> Outcome<Wc> {
        self.wait("completion", |client| client.poll(cq).transpose())?
    }

    /// The next `count` completions.
    pub(crate) fn wcs(&mut self, cq: CqId, count: usize) -> Outcome<Vec<Wc>> {
        (0..count).map(|_| self.wc(cq)).collect()
    }

    /// Looks whether the next CQE is there, without consuming it.
    pub(crate) fn has_cqe(&mut self, cq: CqId) -> Outcome<bool> {
        let cq = self.cq_of(cq)?;
        Ok(cq.ring.published(cq.consumer).is_some())
    }

    /// Nothing more is in a CQ once the device is at rest.
    pub(crate) fn no_wc(&mut self, cq: CqId) -> Outcome {
        self.settle()?;
        match self.poll(cq)? {
            None => Ok(()),
            Some(wc) => failed(format!("a completion too many: {wc:?}")),
        }
    }

    // ---- events ----

    fn poll_event(&mut self) -> Option<Event> {
        let bar = self.doorbells.bar;
        let (ring, slot, consumer) = self.events.as_mut()?;
        let element: Eqe = zerocopy::transmute!(ring.published(*consumer)?);
        *consumer = consumer.wrapping_add(1);
        bar.line(*slot)
            .cq_consumer()
            .store(*consumer, Ordering::Release);
        let event = (
            eqe::event_type(element.publish),
            element.source,
            element.code,
        );
        self.note(format_args!("{event:?}"));
        Some(event)
    }

    /// The next event.
    pub(crate) fn event(&mut self) -> Outcome<Event> {
        self.wait("event", Self::poll_event)
    }

    /// The next event is this one.
    pub(crate) fn expect_event(&mut self, event: EventType, source: u32, code: u32) -> Outcome {
        let seen = self.event()?;
        same("event", seen, (event, source, code))
    }

    /// Waits for an event of this type and drops others before it.
    pub(crate) fn event_of(&mut self, wanted: EventType) -> Outcome<Event> {
        loop {
            let event = self.event()?;
            if event.0 == wanted {
                return Ok(event);
            }
        }
    }

    /// No event is left once the device is at rest.
    pub(crate) fn no_event(&mut self) -> Outcome {
        self.settle()?;
        match self.poll_event() {
            None => Ok(()),
            Some(event) => failed(format!("an event too many: {event:?}")),
        }
    }

    /// Every event that is there once the device is at rest.
    pub(crate) fn drain_events(&mut self) -> Outcome<Vec<Event>> {
        self.settle()?;
        Ok(std::iter::from_fn(|| self.poll_event()).collect())
    }
}
