//! Rings and doorbells of a function. Whoever rings learns whether a kick is due, and gives it as its road has it.
#![expect(unsafe_code, reason = "maps the device's BAR2, as a client does")]

use std::ops::{Deref, DerefMut};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use memmap2::{MmapOptions, MmapRaw};
use ring_proto::admin::{Command, Completion};
use ring_proto::cqe::{Cqe, Publish};
use ring_proto::eqe::{self, Eqe, EventType};
use ring_proto::shared::{Bar2, CommandRing, CqeRing, EqeRing};
use ring_proto::status::Opcode;
use ring_proto::sync::Ordering;
use ring_proto::wqe::{RqWqe, Sge, SqWqe};
use ring_proto::{doorbell, uar};

use super::memory::{self, BASE, Memory};
use super::{RawQp, RawSrq, Wc, recv_wqe};

/// Entries of the admin rings.
pub(crate) const ADMIN_DEPTH: u32 = 16;
/// Entries of the EQ.
pub(crate) const EVENT_DEPTH: u32 = 256;
/// Where the admin completions lie; the commands lie first.
pub(crate) const ADMIN_CQ: u64 = BASE + 0x1000;
/// Where the EQ lies.
pub(crate) const EVENTS: u64 = BASE + 0x2000;
/// Where connection records are written.
pub(crate) const RECORD: u64 = BASE + 0x8000;

/// A function's memory with its rings, and its doorbells.
#[derive(Debug)]
pub(crate) struct Rings {
    memory: Memory,
    bar_map: MmapRaw,
    pub(crate) bar: Bar2,
    commands: CommandRing,
    completions: CqeRing,
    events: EqeRing,
    pub(crate) admin_producer: u32,
    admin_consumer: u32,
    pub(crate) event_slot: u32,
    pub(crate) event_consumer: u32,
    next_slot: u32,
}

impl Deref for Rings {
    type Target = Memory;

    fn deref(&self) -> &Memory {
        &self.memory
    }
}

impl DerefMut for Rings {
    fn deref_mut(&mut self) -> &mut Memory {
        &mut self.memory
    }
}

impl Rings {
    /// Rings in a client's memory, and the doorbells of its BAR2.
    pub(crate) fn new(memory: Memory, bar2: BorrowedFd<'_>) -> Self {
        let bar_map = MmapOptions::new().map_raw(bar2.as_raw_fd()).unwrap();
        let base = NonNull::new(bar_map.as_mut_ptr()).unwrap();
        // SAFETY: 1. A fresh mapping of all of BAR2, kept in the client. 2. Reached through this view and volatile bytes only.
        let bar = unsafe { Bar2::new(base) };
        Self {
            commands: memory.ring(BASE, ADMIN_DEPTH),
            completions: memory.ring(ADMIN_CQ, ADMIN_DEPTH),
            events: memory.ring(EVENTS, EVENT_DEPTH),
            memory,
            bar_map,
            bar,
            admin_producer: 0,
            admin_consumer: 0,
            event_slot: 0,
            event_consumer: 0,
            next_slot: 1,
        }
    }

    /// As after the function's reset: nothing has been posted. The first slot is the EQ's.
    pub(crate) fn begin(&mut self) {
        (
            self.admin_producer,
            self.admin_consumer,
            self.event_consumer,
        ) = (0, 0, 0);
        self.event_slot = self.slot();
    }

    /// Forgets slots and memory given out before.
    pub(crate) fn forget(&mut self) {
        self.memory.clear();
        self.next_slot = 1;
    }

    pub(crate) fn slot(&mut self) -> u32 {
        self.next_slot += 1;
        self.next_slot - 1
    }

    /// Writes one byte anywhere in BAR2, as a broken client may.
    pub(crate) fn scribble_bar(&self, offset: usize, byte: u8) {
        assert!(offset < self.bar_map.len());
        let place = self.bar_map.as_mut_ptr().wrapping_add(offset);
        // SAFETY: in bounds by the assertion, and no reference other than to atomics covers the mapping.
        unsafe { place.write_volatile(byte) };
    }

    /// Flips a bit of BAR2.
    pub(crate) fn flip_bar(&self, offset: u64, bit: u32) {
        memory::flip(&self.bar_map, offset, bit);
    }

    /// Marks a slot dirty; whether the device sleeps and wants a kick.
    #[must_use]
    pub(crate) fn dirty(&self, slot: u32) -> bool {
        doorbell::mark(self.bar.dirty_bits(slot), self.bar.parked())
    }

    // ---- admin ----

    pub(crate) fn post_admin(&mut self, command: Command) {
        self.commands
            .write(self.admin_producer, &zerocopy::transmute!(command));
        self.admin_producer = self.admin_producer.wrapping_add(1);
    }

    /// Stores the producer of the admin queue.
    pub(crate) fn publish_admin(&self) {
        let line = self.bar.line(uar::ADMIN_SLOT);
        line.sq_producer()
            .store(self.admin_producer, Ordering::Release);
    }

    /// Completions taken so far.
    pub(crate) fn admin_taken(&self) -> u32 {
        self.admin_consumer
    }

    pub(crate) fn take_completion(&mut self) -> Option<Completion> {
        let words = self.completions.published(self.admin_consumer)?;
        let completion: Completion = zerocopy::transmute!(words);
        self.admin_consumer = self.admin_consumer.wrapping_add(1);
        let line = self.bar.line(uar::ADMIN_SLOT);
        line.cq_consumer()
            .store(self.admin_consumer, Ordering::Release);
        Some(completion)
    }

    // ---- events and completions ----

    /// The next event: type, source, code.
    pub(crate) fn take_event(&mut self) -> Option<(EventType, u32, u32)> {
        let element: Eqe = zerocopy::transmute!(self.events.published(self.event_consumer)?);
        self.event_consumer = self.event_consumer.wrapping_add(1);
        let line = self.bar.line(self.event_slot);
        line.cq_consumer()
            .store(self.event_consumer, Ordering::Release);
        let event = eqe::event_type(element.publish);
        Some((event, element.source, element.code))
    }

    pub(crate) fn take_wc(&self, qp: &mut RawQp) -> Option<Wc> {
        let cqe: Cqe = zerocopy::transmute!(qp.cq.published(qp.cq_consumer)?);
        qp.cq_consumer = qp.cq_consumer.wrapping_add(1);
        let line = self.bar.line(qp.cq_slot);
        line.cq_consumer().store(qp.cq_consumer, Ordering::Release);
        let publish = Publish::unpack(cqe.publish);
        Some(Wc {
            wr_id: cqe.wr_id,
            byte_len: cqe.byte_len,
            imm: cqe.imm,
            qpn: cqe.qpn_opcode & 0xff_ffff,
            opcode: cqe.qpn_opcode.to_le_bytes()[3],
            src_qpn: cqe.src_qpn_flags & 0xff_ffff,
            flags: cqe.src_qpn_flags & 0xff00_0000,
            wqe_counter: publish.wqe_counter,
            status: publish.status,
            syndrome: publish.syndrome,
        })
    }

    // ---- posting ----

    /// Writes a WQE of any blocks without ringing; fills up to the end of the ring first when it would wrap.
    pub(crate) fn write_send(&self, qp: &mut RawQp, blocks: &[[u64; 8]]) {
        let count = u32::try_from(blocks.len()).unwrap();
        let left = qp.sq.depth().until_end(qp.sq_producer);
        if count > left {
            let filler = SqWqe {
                opcode: Opcode::NOP.0,
                blocks: u8::try_from(left).unwrap(),
                ..SqWqe::default()
            };
            qp.sq.write(qp.sq_producer, &zerocopy::transmute!(filler));
            qp.sq_producer = qp.sq_producer.wrapping_add(left);
        }
        for block in blocks {
            qp.sq.write(qp.sq_producer, block);
            qp.sq_producer = qp.sq_producer.wrapping_add(1);
        }
    }

    pub(crate) fn write_recv(&self, qp: &mut RawQp, wqe: RqWqe) {
        qp.rq.write(qp.rq_producer, &zerocopy::transmute!(wqe));
        qp.rq_producer = qp.rq_producer.wrapping_add(1);
    }

    /// Writes a receive into an SRQ without ringing.
    pub(crate) fn write_srq(&self, srq: &mut RawSrq, wr_id: u64, sges: &[Sge]) {
        let wqe = recv_wqe(wr_id, sges);
        srq.ring.write(srq.producer, &zerocopy::transmute!(wqe));
        srq.producer = srq.producer.wrapping_add(1);
    }

    /// Stores both producers of a QP.
    pub(crate) fn publish_qp(&self, qp: &RawQp) {
        let line = self.bar.line(qp.slot);
        line.sq_producer().store(qp.sq_producer, Ordering::Release);
        line.rq_producer().store(qp.rq_producer, Ordering::Release);
    }

    /// Stores the producer of an SRQ.
    pub(crate) fn publish_srq(&self, srq: &RawSrq) {
        let line = self.bar.line(srq.slot);
        line.srq_producer().store(srq.producer, Ordering::Release);
    }
}
