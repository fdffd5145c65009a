//! The window of a requester: which WQEs are under way, which PSNs are theirs, and what is to be sent next.
//!
//! Place: `requester` acts by it. Invariants: PSNs between `unacked` and `next` belong to WQEs in `outgoing`, in order; `unacked` never
//! runs past a READ whose data has not come; nothing is sent past a fence, a failed WQE, or [`WINDOW`] packets.
//! Source: IBA vol. 1, section 9.9; the growing window after a timeout is ours. Hot: nothing (packet mode allocates).

use std::collections::VecDeque;

use ring_proto::status::{Opcode, Syndrome, WcStatus};
use ring_proto::wqe::WqeFlags;

use super::attributes::Transport;
use super::wire::{self, distance, is_before, later};
use crate::device::queue::{BadWqe, SendWork};
use crate::device::timer::TimerKey;

/// Most packets under way.
const WINDOW: u32 = 256;
/// Most WQEs taken from the send queue and not complete.
const MESSAGES: usize = 64;
/// Most response packets one READ request asks for.
const READ_PACKETS: u32 = 64;
/// Every so many packets of a long message ask for an acknowledge.
const ACK_EVERY: u32 = 16;

/// A WQE on its way.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) work: Box<SendWork>,
    /// PSN of its first packet.
    pub(super) first: u32,
    pub(super) packets: u32,
    /// Bytes that message mode moved before.
    pub(super) base: u32,
    /// Payload bytes of each of its packets but the last: those of the path when it was admitted.
    pub(super) mtu: u32,
    /// Why it ends once everything before it is complete.
    pub(super) failed: Option<(WcStatus, Syndrome)>,
}

impl Outgoing {
    pub(super) fn end(&self) -> u32 {
        later(self.first, self.packets)
    }

    pub(super) fn holds(&self, psn: u32) -> bool {
        distance(self.first, psn) < self.packets
    }
}

/// Requester of one QP.
#[derive(Debug)]
pub(super) struct Requester {
    pub(super) outgoing: VecDeque<Outgoing>,
    /// A refused WQE, told once everything before it is complete.
    pub(super) bad: Option<BadWqe>,
    pub(super) unacked: u32,
    pub(super) send: u32,
    /// Behind the highest PSN ever sent.
    pub(super) sent: u32,
    pub(super) next: u32,
    pub(super) window: u32,
    pub(super) retries: u32,
    pub(super) rnr_retries: u8,
    /// The receiver is not ready; the timer goes on.
    pub(super) is_paused: bool,
    /// PSN for whose missing response the requester went back.
    pub(super) gap: Option<u32>,
    pub(super) timer: Option<TimerKey>,
}

/// The next packet to send.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub(super) index: usize,
    pub(super) psn: u32,
    pub(super) packets: u32,
    pub(super) offset: u32,
    pub(super) len: u32,
    pub(super) flags: u8,
}

impl Requester {
    pub(super) fn new(transport: Transport) -> Self {
        let psn = transport.sq_psn;
        Self {
            outgoing: VecDeque::new(),
            bad: None,
            unacked: psn,
            send: psn,
            sent: psn,
            next: psn,
            window: WINDOW,
            retries: 0,
            rnr_retries: 0,
            is_paused: false,
            gap: None,
            timer: None,
        }
    }

    pub(super) fn is_busy(&self) -> bool {
        !self.outgoing.is_empty() || self.bad.is_some()
    }

    pub(super) fn has_room(&self) -> bool {
        self.bad.is_none()
            && self.outgoing.len() < MESSAGES
            && distance(self.unacked, self.next) < WINDOW
            && self
                .outgoing
                .back()
                .is_none_or(|last| last.failed.is_none())
    }

    pub(super) fn admit(
        &mut self,
        work: Box<SendWork>,
        mtu: u32,
        failed: Option<(WcStatus, Syndrome)>,
    ) {
        let base = work.done;
        let packets = (work.total() - base).div_ceil(mtu).max(1);
        self.outgoing.push_back(Outgoing {
            work,
            first: self.next,
            packets,
            base,
            mtu,
            failed,
        });
        self.next = later(self.next, packets);
    }

    pub(super) fn next_part(&self, depth: u8) -> Option<Part> {
        let under_way = distance(self.unacked, self.send);
        if self.is_paused || self.send == self.next || under_way >= self.window {
            return None;
        }
        let index = self
            .outgoing
            .iter()
            .position(|outgoing| outgoing.holds(self.send))?;
        let outgoing = self.outgoing.get(index)?;
        let fetching = self
            .outgoing
            .iter()
            .take(index)
            .filter(|before| before.work.fetches())
            .count();
        // Source: verbs fence (not before all READs and atomics are complete) and max_rd_atomic.
        let is_fenced = outgoing.work.has(WqeFlags::FENCE) && fetching > 0;
        let is_deep = outgoing.work.fetches() && fetching >= usize::from(depth.max(1));
        if outgoing.failed.is_some() || is_fenced || is_deep {
            return None;
        }
        let at = distance(outgoing.first, self.send);
        let offset = outgoing.base + at * outgoing.mtu;
        let left = outgoing.packets - at;
        let rest = outgoing.work.total() - offset;
        let mut flags = 0;
        if at == 0 && outgoing.base == 0 {
            flags |= wire::FIRST;
        }
        let packets = if outgoing.work.opcode() == Opcode::RDMA_READ {
            // Asked again, it ends where it ended before: the responder may have come just so far.
            left.min(READ_PACKETS - at % READ_PACKETS)
        } else {
            1
        };
        if packets == left {
            flags |= wire::LAST;
        }
        let is_full = under_way + packets >= self.window;
        if packets == left || is_full || at % ACK_EVERY == ACK_EVERY - 1 {
            flags |= wire::ACK_REQUEST;
        }
        if outgoing.work.has(WqeFlags::SOLICITED) {
            flags |= wire::SOLICITED;
        }
        Some(Part {
            index,
            psn: self.send,
            packets,
            offset,
            len: rest.min(packets * outgoing.mtu),
            flags,
        })
    }

    pub(super) fn go_back(&mut self, psn: u32) {
        if is_before(psn, self.send) {
            self.send = psn;
        }
    }

    /// Whether a response is about packets that were sent and not acknowledged.
    pub(super) fn knows(&self, psn: u32) -> bool {
        distance(self.unacked, psn) < distance(self.unacked, self.sent)
    }

    /// Something new was acknowledged.
    pub(super) fn progressed(&mut self) {
        self.retries = 0;
        self.rnr_retries = 0;
        self.gap = None;
        self.window = (self.window * 2).min(WINDOW);
        if is_before(self.send, self.unacked) {
            self.send = self.unacked;
        }
    }

    /// The oldest WQE for a flush.
    pub(super) fn take_flushed(&mut self) -> Option<(u64, u8, u32)> {
        if let Some(outgoing) = self.outgoing.pop_front() {
            let work = outgoing.work;
            return Some((work.wr_id(), work.opcode().0, work.end));
        }
        let bad = self.bad.take()?;
        Some((bad.wr_id, bad.opcode, bad.end))
    }

    pub(super) fn take_timer(&mut self) -> Option<TimerKey> {
        self.timer.take()
    }
}
