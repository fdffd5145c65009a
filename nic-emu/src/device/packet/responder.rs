//! The responder: requests in order, each executed once, answered with an acknowledge, data, or the reason why not.
//!
//! Place: arriving frames come here by the link; keys, bounds, rights and protection domains are checked for every packet, by the same
//! routines as in message mode, and statuses and syndromes are the same.
//! Invariants: a packet moves bytes only when its PSN is the expected one; a duplicate is acknowledged again, a duplicate READ reads
//! again, a duplicate atomic is answered from its saved result. One NAK per gap. After a request failed its reason is told again to
//! whoever asks again. Source: IBA vol. 1, section 9.7 (responder). Hot: nothing (packet mode allocates).

use std::collections::VecDeque;

use ring_proto::status::{Opcode, QpState, Syndrome, WcStatus};
use ring_proto::wqe::{SqWqe, WqeFlags};

use super::attributes::Transport;
use super::wire::{self, Header, distance, is_before, later};
use crate::device::Device;
use crate::device::qp::QpRef;
use crate::device::queue::SendWork;
use crate::device::transfer::Step;

/// Atomics whose results are kept, more than can be under way.
const SAVED: usize = 256;

/// Responder of one QP.
#[derive(Debug)]
pub(super) struct Responder {
    expected: u32,
    /// The gap before the packets that came was told.
    has_naked: bool,
    /// Messages completed, 24 bits count.
    msn: u32,
    /// The message that arrives, without memory of its own.
    arriving: Option<Box<SendWork>>,
    /// Request that failed, and how.
    fatal: Option<(u32, WcStatus, Syndrome)>,
    /// Original values of atomics, by PSN.
    atomics: VecDeque<(u32, [u8; 8])>,
}

/// How the responder answers a request that it does not execute.
enum Refusal {
    NotReady,
    Error(WcStatus, Syndrome),
}

impl From<(WcStatus, Syndrome)> for Refusal {
    fn from((status, syndrome): (WcStatus, Syndrome)) -> Self {
        Self::Error(status, syndrome)
    }
}

const BAD_SEQUENCE: Refusal = Refusal::Error(WcStatus::REM_INV_REQ_ERR, Syndrome::BAD_OPCODE);

impl Responder {
    pub(super) fn new(transport: Transport) -> Self {
        Self {
            expected: transport.rq_psn,
            has_naked: false,
            msn: 0,
            arriving: None,
            fatal: None,
            atomics: VecDeque::new(),
        }
    }

    pub(super) fn take_over(&mut self, work: Box<SendWork>) {
        self.arriving = Some(work);
    }
}

impl Device {
    fn responder(&mut self, own: QpRef) -> Option<&mut Responder> {
        Some(&mut self.qp_mut(own)?.ends.as_mut()?.responder)
    }

    /// A request of `from` for `own`.
    pub(super) fn request_arrived(
        &mut self,
        own: QpRef,
        from: QpRef,
        header: &Header,
        payload: &[u8],
    ) {
        self.open_ends(own);
        let Some(qp) = self.qp(own) else {
            return;
        };
        let (state, timer) = (qp.state, qp.transport.min_rnr_timer);
        let Some(responder) = qp.ends.as_ref().map(|ends| &ends.responder) else {
            return;
        };
        let psn = header.psn;
        let (expected, has_naked) = (responder.expected, responder.has_naked);
        let is_duplicate = is_before(psn, expected);
        if let Some((failed, status, syndrome)) = responder.fatal
            && !is_duplicate
        {
            self.nak(own, from, failed, status, syndrome);
            return;
        }
        let is_served = matches!(state, QpState::RTR | QpState::RTS | QpState::SQD)
            || responder.fatal.is_some();
        if !is_served {
            return;
        }
        if state == QpState::RTR && !qp.is_established {
            self.note_established(own);
        }
        if is_duplicate {
            self.count(own, |counters| counters.duplicate_request += 1);
            self.repeat(own, from, header);
            return;
        }
        if psn != expected {
            self.count(own, |counters| counters.out_of_sequence += 1);
            if !has_naked {
                if let Some(responder) = self.responder(own) {
                    responder.has_naked = true;
                }
                self.nak(own, from, expected, WcStatus::SUCCESS, Syndrome::NONE);
            }
            return;
        }
        if let Some(responder) = self.responder(own) {
            responder.has_naked = false;
        }
        let done = match Opcode(header.opcode) {
            Opcode::RDMA_READ => self.read_request(own, from, header),
            Opcode::ATOMIC_CMP_AND_SWP | Opcode::ATOMIC_FETCH_AND_ADD => {
                self.atomic_request(own, from, header, payload)
            }
            _ => self.data_request(own, from, header, payload),
        };
        match done {
            Ok(()) => {}
            Err(Refusal::NotReady) => {
                // What follows in flight is not a gap: it comes again behind this one.
                if let Some(responder) = self.responder(own) {
                    responder.has_naked = true;
                }
                let answer = Header {
                    opcode: wire::RNR_NAK,
                    timer,
                    psn,
                    imm: self.msn(own),
                    ..Header::default()
                };
                self.send_frame(own, from, answer, &[]);
            }
            Err(Refusal::Error(status, syndrome)) => {
                if let Some(responder) = self.responder(own) {
                    responder.fatal = Some((psn, status, syndrome));
                    responder.arriving = None;
                }
                self.nak(own, from, psn, status, syndrome);
            }
        }
    }

    /// A packet of a SEND or WRITE, in its turn.
    fn data_request(
        &mut self,
        own: QpRef,
        from: QpRef,
        header: &Header,
        payload: &[u8],
    ) -> Result<(), Refusal> {
        let responder = self.responder(own).ok_or(BAD_SEQUENCE)?;
        let mut work = if header.has(wire::FIRST) {
            responder.arriving = None;
            Box::new(arriving(header, [0, 0]))
        } else {
            responder.arriving.take().ok_or(BAD_SEQUENCE)?
        };
        let len = u32::try_from(payload.len()).map_err(|_| BAD_SEQUENCE)?;
        let is_whole = work.done.checked_add(len) == Some(work.total());
        let fits = len <= work.total() - work.done;
        if !fits
            || header.offset != work.done
            || header.length != len
            || header.opcode != work.opcode().0
            || header.has(wire::LAST) != is_whole
        {
            return Err(BAD_SEQUENCE);
        }
        match self.execute_packet(own, from, &work, header, payload) {
            Ok(()) => {}
            Err(refusal) => {
                // Of a WRITE only the last packet can find no receive; it comes again.
                if matches!(refusal, Refusal::NotReady)
                    && !header.has(wire::FIRST)
                    && let Some(responder) = self.responder(own)
                {
                    responder.arriving = Some(work);
                }
                return Err(refusal);
            }
        }
        work.done += len;
        let is_orphan = self.qp(own).is_some_and(|qp| qp.is_orphan);
        self.count_bytes(from.place, (!is_orphan).then_some(own.place), len);
        if is_whole && work.takes_receive() && !is_orphan {
            if work.opcode() == Opcode::SEND_WITH_INV {
                self.remote_invalidate(own, work.imm());
            }
            self.receive_done(from, own, &work);
        }
        let responder = self.responder(own).ok_or(BAD_SEQUENCE)?;
        responder.expected = later(header.psn, 1);
        if is_whole {
            responder.msn = later(responder.msn, 1);
        } else {
            responder.arriving = Some(work);
        }
        if header.has(wire::ACK_REQUEST) {
            self.acknowledge(own, from);
        }
        Ok(())
    }

    /// Checks a packet of a SEND or WRITE and moves its bytes.
    fn execute_packet(
        &mut self,
        own: QpRef,
        from: QpRef,
        work: &SendWork,
        header: &Header,
        payload: &[u8],
    ) -> Result<(), Refusal> {
        if self.qp(own).is_some_and(|qp| qp.is_orphan) {
            // As message mode: complete, and gone.
            return Ok(());
        }
        let is_write = matches!(
            work.opcode(),
            Opcode::RDMA_WRITE | Opcode::RDMA_WRITE_WITH_IMM
        );
        let needs_receive = work.takes_receive()
            && if is_write {
                header.has(wire::LAST)
            } else {
                work.done == 0
            };
        if needs_receive {
            match self.find_receive(from, own, work) {
                Ok(_) => {}
                Err(Step::Failed(status, syndrome)) => {
                    return Err(Refusal::Error(status, syndrome));
                }
                Err(_) => return Err(Refusal::NotReady),
            }
        }
        if work.opcode() == Opcode::SEND_WITH_INV
            && let Err(syndrome) = self.check_remote_invalidate(own, work.imm())
        {
            self.receive_failed(own, WcStatus::MW_BIND_ERR, syndrome);
            return Err(Refusal::Error(WcStatus::REM_ACCESS_ERR, syndrome));
        }
        let mut bytes = payload.to_vec();
        if is_write {
            self.land_write(own, work, work.done, &mut bytes)
                .map_err(|(status, syndrome)| {
                    self.access_fault(own, syndrome);
                    Refusal::Error(status, syndrome)
                })
        } else {
            self.land_receive(own, work.done, &mut bytes)
                .map_err(|syndrome| {
                    self.receive_failed(own, WcStatus::LOC_ACCESS_ERR, syndrome);
                    Refusal::Error(WcStatus::REM_OP_ERR, Syndrome::RECV_BAD_WQE)
                })
        }
    }

    /// Whether READs and atomics may come to `own`.
    fn check_responder_depth(&mut self, own: QpRef, from: QpRef) -> Result<(), Refusal> {
        match self.check_depth(from, own) {
            Some(Step::Failed(status, syndrome)) => Err(Refusal::Error(status, syndrome)),
            _ => Ok(()),
        }
    }

    /// A READ, in its turn.
    fn read_request(&mut self, own: QpRef, from: QpRef, header: &Header) -> Result<(), Refusal> {
        self.check_responder_depth(own, from)?;
        let responder = self.responder(own).ok_or(BAD_SEQUENCE)?;
        responder.msn = later(responder.msn, 1);
        let packets = self
            .answer_read(own, from, header)
            .map_err(|(status, syndrome)| {
                self.access_fault(own, syndrome);
                Refusal::Error(status, syndrome)
            })?;
        let responder = self.responder(own).ok_or(BAD_SEQUENCE)?;
        responder.expected = later(header.psn, packets);
        Ok(())
    }

    /// Sends the responses of a READ; how many.
    fn answer_read(
        &mut self,
        own: QpRef,
        from: QpRef,
        header: &Header,
    ) -> Result<u32, (WcStatus, Syndrome)> {
        let work = arriving(header, [0, 0]);
        let mtu = header.imm.max(1);
        let packets = header.length.div_ceil(mtu).max(1);
        for packet in 0..packets {
            let before = packet * mtu;
            let len = (header.length - before).min(mtu);
            let bytes = self.read_remote(own, &work, header.offset + before, len)?;
            let mut flags = 0;
            if packet == 0 {
                flags |= wire::FIRST;
            }
            if packet + 1 == packets {
                flags |= wire::LAST;
            }
            let answer = Header {
                opcode: wire::READ_RESPONSE,
                flags,
                psn: later(header.psn, packet),
                offset: header.offset + before,
                length: len,
                imm: self.msn(own),
                ..Header::default()
            };
            self.send_frame(own, from, answer, &bytes);
        }
        Ok(packets)
    }

    /// An atomic, in its turn.
    fn atomic_request(
        &mut self,
        own: QpRef,
        from: QpRef,
        header: &Header,
        payload: &[u8],
    ) -> Result<(), Refusal> {
        let (words, rest) = payload.as_chunks::<8>();
        let ([compare_add, swap], []) = (words, rest) else {
            return Err(BAD_SEQUENCE);
        };
        self.check_responder_depth(own, from)?;
        let operands = [u64::from_le_bytes(*compare_add), u64::from_le_bytes(*swap)];
        let work = arriving(header, operands);
        let mut original = [0; 8];
        // `atomic` tells the responder's side of a fault itself.
        self.atomic(own, &work, Some(original.as_mut_ptr()))?;
        let responder = self.responder(own).ok_or(BAD_SEQUENCE)?;
        responder.expected = later(header.psn, 1);
        responder.msn = later(responder.msn, 1);
        if responder.atomics.len() == SAVED {
            responder.atomics.pop_front();
        }
        responder.atomics.push_back((header.psn, original));
        self.answer_atomic(own, from, header.psn, original);
        Ok(())
    }

    fn answer_atomic(&mut self, own: QpRef, from: QpRef, psn: u32, original: [u8; 8]) {
        let answer = Header {
            opcode: wire::READ_RESPONSE,
            flags: wire::ATOMIC,
            psn,
            length: 8,
            imm: self.msn(own),
            ..Header::default()
        };
        self.send_frame(own, from, answer, &original);
    }

    /// A request that was executed before.
    fn repeat(&mut self, own: QpRef, from: QpRef, header: &Header) {
        match Opcode(header.opcode) {
            Opcode::RDMA_READ => {
                let packets = header.length.div_ceil(header.imm.max(1)).max(1);
                let Some(responder) = self.responder(own) else {
                    return;
                };
                if distance(header.psn, responder.expected) < packets {
                    // It reaches beyond what was asked before: no requester of ours does that.
                    return;
                }
                if let Err((status, syndrome)) = self.answer_read(own, from, header) {
                    // The memory went in between.
                    self.access_fault(own, syndrome);
                    if let Some(responder) = self.responder(own) {
                        responder.fatal = Some((header.psn, status, syndrome));
                    }
                    self.nak(own, from, header.psn, status, syndrome);
                }
            }
            Opcode::ATOMIC_CMP_AND_SWP | Opcode::ATOMIC_FETCH_AND_ADD => {
                let saved = self.responder(own).and_then(|responder| {
                    let saved = &responder.atomics;
                    saved.iter().rev().find(|(psn, _)| *psn == header.psn)
                });
                if let Some(&(psn, original)) = saved {
                    self.answer_atomic(own, from, psn, original);
                }
            }
            _ => self.acknowledge(own, from),
        }
    }

    /// Everything so far has arrived.
    fn acknowledge(&mut self, own: QpRef, from: QpRef) {
        let Some(expected) = self.responder(own).map(|responder| responder.expected) else {
            return;
        };
        let answer = Header {
            opcode: wire::ACK,
            psn: later(expected, super::attributes::PSN_MASK),
            imm: self.msn(own),
            ..Header::default()
        };
        self.send_frame(own, from, answer, &[]);
    }

    fn nak(&mut self, own: QpRef, from: QpRef, psn: u32, status: WcStatus, syndrome: Syndrome) {
        let answer = Header {
            opcode: wire::NAK,
            psn,
            status: status.0,
            syndrome: syndrome.0.into(),
            imm: self.msn(own),
            ..Header::default()
        };
        self.send_frame(own, from, answer, &[]);
    }

    fn msn(&mut self, own: QpRef) -> u32 {
        self.responder(own).map_or(0, |responder| responder.msn)
    }
}

/// The request that a packet belongs to, as its responder knows it.
fn arriving(header: &Header, operands: [u64; 2]) -> SendWork {
    let mut flags = WqeFlags::empty();
    flags.set(WqeFlags::SOLICITED, header.has(wire::SOLICITED));
    let head = SqWqe {
        opcode: header.opcode,
        flags: flags.bits(),
        imm: header.imm,
        remote_addr: header.remote_addr,
        rkey: header.rkey,
        total: header.total,
        ..SqWqe::default()
    };
    SendWork::arriving(head, operands)
}
