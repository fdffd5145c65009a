//! The requester: WQEs become packets, acknowledges become completions, what gets lost is sent again.
//!
//! Place: `serve` hands over the send queue of a QP on an impaired link; responses and one timer per QP drive the rest.
//! Invariants: WQEs complete in order, each once. Payload is read from client memory when its packet is sent, and again when it is sent
//! again: the memory is the device's until the completion. PSNs between `unacked` and `next` belong to WQEs in `outgoing`, in order.
//! At most [`WINDOW`] packets are unacknowledged. A retry counts until anything new is acknowledged. Source: IBA vol. 1, section 9.9
//! (requester error behaviour, retry counters, ACK timeout); the growing window after a timeout and the backoff are ours.
//! Hot: nothing (packet mode allocates).
//!
//! ```text
//!    unacked        send            next          PSNs, 24 bits, wrapping
//!  ----|--------------|---------------|------>
//!      | under way    | to be sent    | free        a NAK or the timer moves `send` back (go-back-N)
//! ```

use ring_proto::status::{Opcode, QpState, Syndrome, WcStatus};

use super::attributes::{BACKOFF_NS, Transport, rnr_wait_ns};
use super::window::Requester;
use super::wire::{self, Header, distance, is_before, later};
use crate::device::Device;
use crate::device::fault::FaultPoint;
use crate::device::qp::{QpRef, RNR_FOREVER};
use crate::device::queue::SendWork;
use crate::device::serve::Next;
use crate::device::timer::Timer;
use crate::device::transfer::Step;

impl Device {
    fn requester(&mut self, at: QpRef) -> Option<&mut Requester> {
        Some(&mut self.qp_mut(at)?.ends.as_mut()?.requester)
    }

    /// One turn of the send queue of a QP in packet mode.
    #[cold]
    #[inline(never)]
    pub(crate) fn serve_packets(&mut self, at: QpRef) -> u64 {
        let Some(mut work) = self.qp_mut(at).and_then(|qp| qp.work.take()) else {
            return 0;
        };
        self.open_ends(at);
        self.cancel_hold_timer(at);
        let mut served = 0;
        // While a fault is looked for, nothing may run past the WQE that matters.
        let limit = if self.diagnosis.pause.is_careful() {
            1
        } else {
            u64::MAX
        };
        while served < limit
            && self
                .requester(at)
                .is_some_and(|requester| requester.has_room())
        {
            match self.fetch_next(at, &mut work) {
                Next::Nothing | Next::Enough => break,
                Next::Skipped => served += 1,
                Next::Bad(bad) => {
                    served += 1;
                    if let Some(requester) = self.requester(at) {
                        requester.bad = Some(bad);
                    }
                }
                Next::Work
                    if self.faults.has(FaultPoint::Wqe)
                        && let Some(step) = self.fault_wqe(at, &work) =>
                {
                    if let Step::Failed(status, syndrome) = step {
                        served += 1;
                        let full = std::mem::replace(&mut work, Box::new(SendWork::none()));
                        self.admit_as(at, full, Some((status, syndrome)));
                    } else {
                        self.keep(at);
                        break;
                    }
                }
                Next::Work if work.is_local() => {
                    if self.execute_between(at, &work) {
                        served += 1;
                    } else {
                        break;
                    }
                }
                Next::Work => {
                    served += 1;
                    let full = std::mem::replace(&mut work, Box::new(SendWork::none()));
                    self.admit(at, full);
                }
            }
        }
        if let Some(qp) = self.qp_mut(at) {
            qp.work = Some(work);
        }
        self.transmit(at);
        self.finish(at);
        if served == limit {
            self.activate(at);
        }
        served
    }

    /// Executes a WQE without peer once everything before it is complete; false when it has to wait.
    fn execute_between(&mut self, at: QpRef, work: &SendWork) -> bool {
        if self
            .requester(at)
            .is_some_and(|requester| requester.is_busy())
        {
            if let Some(qp) = self.qp_mut(at) {
                qp.is_held = true;
            }
            return false;
        }
        match self.execute_local(at, work) {
            Step::Failed(status, syndrome) => self.send_failed(at, work, status, syndrome),
            _ => self.send_done(at, work),
        }
        true
    }

    fn admit(&mut self, at: QpRef, work: Box<SendWork>) {
        let fetches = work.fetches();
        let has_no_depth = fetches && self.qp(at).is_some_and(|qp| qp.max_rd_atomic == 0);
        let failed = if has_no_depth {
            Some((WcStatus::LOC_QP_OP_ERR, Syndrome::NO_INITIATOR_DEPTH))
        } else {
            self.check_local(at, &work, fetches).err()
        };
        if work.done != 0 {
            self.hand_over(at, &work);
        }
        self.admit_as(at, work, failed);
    }

    /// Puts a WQE behind those under way; one that has failed completes once they have.
    fn admit_as(&mut self, at: QpRef, work: Box<SendWork>, failed: Option<(WcStatus, Syndrome)>) {
        let mtu = self.path_mtu(at);
        if let Some(requester) = self.requester(at) {
            requester.admit(work, mtu, failed);
        }
    }

    /// Sends what window, fences and pauses allow.
    fn transmit(&mut self, at: QpRef) {
        loop {
            let Some(qp) = self.qp(at).filter(|qp| sends(qp.state)) else {
                return;
            };
            let (Some(ends), Some(peer)) = (&qp.ends, qp.peer) else {
                return;
            };
            let requester = &ends.requester;
            let Some(part) = requester.next_part(qp.max_rd_atomic) else {
                break;
            };
            let Some(outgoing) = requester.outgoing.get(part.index) else {
                break;
            };
            let work = &outgoing.work;
            let mut header = Header {
                opcode: work.opcode().0,
                flags: part.flags,
                psn: part.psn,
                total: work.total(),
                offset: part.offset,
                remote_addr: work.remote_addr(),
                rkey: work.rkey(),
                imm: work.imm(),
                length: part.len,
                ..Header::default()
            };
            let payload = match work.opcode() {
                Opcode::RDMA_READ => {
                    header.imm = outgoing.mtu;
                    Ok(Vec::new())
                }
                Opcode::ATOMIC_CMP_AND_SWP | Opcode::ATOMIC_FETCH_AND_ADD => {
                    let (compare_add, swap) = work.operands();
                    Ok([compare_add.to_le_bytes(), swap.to_le_bytes()].concat())
                }
                _ => self.gather(at, work, part.offset, part.len),
            };
            match payload {
                Ok(payload) => {
                    let Some(requester) = self.requester(at) else {
                        return;
                    };
                    let is_again = is_before(part.psn, requester.sent);
                    requester.send = later(part.psn, part.packets);
                    if is_before(requester.sent, requester.send) {
                        requester.sent = requester.send;
                    }
                    self.count_packet(at, is_again);
                    self.send_frame(at, peer, header, &payload);
                }
                Err(failed) => {
                    let outgoing = self
                        .requester(at)
                        .and_then(|requester| requester.outgoing.get_mut(part.index));
                    if let Some(outgoing) = outgoing {
                        outgoing.failed = Some(failed);
                    }
                }
            }
        }
        self.set_ack_timer(at);
    }

    /// Starts the ACK timer where something is under way and it does not run.
    fn set_ack_timer(&mut self, at: QpRef) {
        let now_ns = self.clock.now_ns();
        let wire_ns = self.wire_free_ns(at);
        let Some(qp) = self.qp_mut(at) else {
            return;
        };
        let transport = qp.transport;
        let Some(requester) = qp.ends.as_mut().map(|ends| &mut ends.requester) else {
            return;
        };
        if requester.unacked == requester.send && !requester.is_paused {
            if let Some(key) = requester.timer.take() {
                self.timers.cancel(key);
            }
            return;
        }
        if requester.timer.is_some() {
            return;
        }
        let wait_ns = if transport.retry_unlimited {
            Some(backoff_ns(requester.retries))
        } else {
            transport.timeout_ns()
        };
        let Some(wait_ns) = wait_ns else {
            return;
        };
        let key = self.timers.set(
            now_ns.max(wire_ns).saturating_add(wait_ns),
            Timer::Packets(at),
        );
        if let Some(requester) = self.requester(at) {
            requester.timer = Some(key);
        }
    }

    fn stop_ack_timer(&mut self, at: QpRef) {
        if let Some(key) = self.requester(at).and_then(Requester::take_timer) {
            self.timers.cancel(key);
        }
    }

    /// The timer of a requester: a pause is over, or an acknowledge did not come in time.
    pub(crate) fn packets_timer(&mut self, at: QpRef) {
        let Some(qp) = self.qp_mut(at) else {
            return;
        };
        let (state, transport) = (qp.state, qp.transport);
        let Some(requester) = qp.ends.as_mut().map(|ends| &mut ends.requester) else {
            return;
        };
        requester.timer = None;
        if !sends(state) {
            return;
        }
        if std::mem::take(&mut requester.is_paused) {
            requester.go_back(requester.unacked);
            self.transmit(at);
            return;
        }
        if requester.unacked == requester.send {
            return;
        }
        let tried = requester.retries;
        requester.retries = tried.saturating_add(1);
        self.count(at, |counters| counters.local_ack_timeout_err += 1);
        let is_over = if transport.retry_unlimited {
            // Only what the connection manager would have told ends it.
            tried >= u32::from(Transport::default().retry_cnt) && self.is_path_up(at)
        } else {
            tried >= u32::from(transport.retry_cnt)
        };
        if is_over {
            let syndrome = self.why_silent(at);
            let tells = !matches!(syndrome, Syndrome::RETRIES_EXHAUSTED | Syndrome::PORT_DOWN);
            if !transport.retry_unlimited || tells {
                self.fail_front(at, WcStatus::RETRY_EXC_ERR, syndrome);
                return;
            }
        }
        if let Some(requester) = self.requester(at) {
            requester.window = 1;
            requester.gap = None;
            requester.go_back(requester.unacked);
        }
        self.transmit(at);
    }

    /// The oldest WQE ends, and with it the QP.
    fn fail_front(&mut self, at: QpRef, status: WcStatus, syndrome: Syndrome) {
        self.stop_ack_timer(at);
        let front = self
            .requester(at)
            .and_then(|requester| requester.outgoing.pop_front());
        if let Some(front) = front {
            self.send_failed(at, &front.work, status, syndrome);
        }
    }

    /// A response to the requester of `at`.
    pub(super) fn response_arrived(&mut self, at: QpRef, header: &Header, payload: &[u8]) {
        if !self.qp(at).is_some_and(|qp| sends(qp.state)) {
            return;
        }
        let psn = header.psn;
        let Some(requester) = self.requester(at) else {
            return;
        };
        if !requester.knows(psn) {
            return;
        }
        // Whatever it is about, everything before it has arrived.
        let upto = if header.opcode == wire::ACK {
            later(psn, 1)
        } else {
            psn
        };
        self.acknowledged(at, upto);
        match header.opcode {
            wire::READ_RESPONSE => self.read_response(at, psn, payload),
            wire::RNR_NAK => self.receiver_not_ready(at, psn, header.timer),
            // Else data of a READ before it is missing, which comes first.
            wire::NAK if self.requester(at).is_some_and(|r| r.unacked == psn) => {
                let (status, syndrome) = header.error();
                if status == WcStatus::SUCCESS {
                    self.sequence_error(at, psn);
                } else {
                    self.fail_front(at, status, syndrome);
                }
            }
            _ => {}
        }
        if self.qp(at).is_some_and(|qp| sends(qp.state)) {
            self.transmit(at);
            self.finish(at);
            self.activate(at);
        }
    }

    /// The responder misses a packet.
    fn sequence_error(&mut self, at: QpRef, psn: u32) {
        let Some(qp) = self.qp_mut(at) else {
            return;
        };
        let transport = qp.transport;
        let Some(requester) = qp.ends.as_mut().map(|ends| &mut ends.requester) else {
            return;
        };
        let tried = requester.retries;
        requester.retries = tried.saturating_add(1);
        requester.go_back(psn);
        self.count(at, |counters| counters.packet_seq_err += 1);
        if !transport.retry_unlimited && tried >= u32::from(transport.retry_cnt) {
            self.fail_front(at, WcStatus::RETRY_EXC_ERR, Syndrome::RETRIES_EXHAUSTED);
            return;
        }
        self.stop_ack_timer(at);
    }

    /// Everything before `upto` has arrived.
    fn acknowledged(&mut self, at: QpRef, upto: u32) {
        let mut done = Vec::new();
        let Some(requester) = self.requester(at) else {
            return;
        };
        let before = requester.unacked;
        let mut is_missing = false;
        while is_before(requester.unacked, upto)
            && let Some(front) = requester.outgoing.front()
        {
            if front.work.fetches() {
                // Its responses were lost on the way.
                is_missing = true;
                break;
            }
            let end = front.end();
            if is_before(upto, end) {
                requester.unacked = upto;
                break;
            }
            requester.unacked = end;
            done.extend(requester.outgoing.pop_front());
        }
        let is_new = requester.unacked != before;
        if is_new {
            requester.progressed();
        }
        if is_missing && requester.gap != Some(requester.unacked) {
            requester.gap = Some(requester.unacked);
            let psn = requester.unacked;
            requester.go_back(psn);
        }
        if is_new {
            self.stop_ack_timer(at);
        }
        for outgoing in done {
            self.send_done(at, &outgoing.work);
        }
    }

    /// Data of a READ, or the original value of an atomic.
    fn read_response(&mut self, at: QpRef, psn: u32, payload: &[u8]) {
        let Some(qp) = self.qp(at) else {
            return;
        };
        let Some(requester) = qp.ends.as_ref().map(|ends| &ends.requester) else {
            return;
        };
        let Some(front) = requester.outgoing.front() else {
            return;
        };
        if requester.unacked != psn || !front.work.fetches() {
            return;
        }
        let offset = front.base + distance(front.first, psn) * front.mtu;
        let expected = (front.work.total() - offset).min(front.mtu);
        if payload.len() != expected as usize {
            self.fail_front(at, WcStatus::BAD_RESP_ERR, Syndrome::BAD_TOTAL);
            return;
        }
        let mut bytes = payload.to_vec();
        if let Err((status, syndrome)) = self.land_response(at, &front.work, offset, &mut bytes) {
            self.fail_front(at, status, syndrome);
            return;
        }
        let peer = qp.peer;
        let Some(requester) = self.requester(at) else {
            return;
        };
        requester.unacked = later(psn, 1);
        requester.progressed();
        let is_complete = requester
            .outgoing
            .front()
            .is_some_and(|front| front.end() == requester.unacked);
        let done = if is_complete {
            requester.outgoing.pop_front()
        } else {
            None
        };
        self.stop_ack_timer(at);
        if let Some(peer) = peer {
            self.count_bytes(peer.place, Some(at.place), expected);
        }
        if let Some(outgoing) = done {
            self.send_done(at, &outgoing.work);
        }
    }

    fn receiver_not_ready(&mut self, at: QpRef, psn: u32, code: u8) {
        let Some(qp) = self.qp_mut(at) else {
            return;
        };
        let (transport, most) = (qp.transport, qp.rnr_retry);
        let Some(requester) = qp.ends.as_mut().map(|ends| &mut ends.requester) else {
            return;
        };
        if requester.unacked != psn || requester.is_paused {
            return;
        }
        let tried = requester.rnr_retries;
        self.count(at, |counters| counters.rnr_nak_retry_err += 1);
        if most != RNR_FOREVER && tried >= most {
            self.fail_front(at, WcStatus::RNR_RETRY_EXC_ERR, Syndrome::RNR_EXHAUSTED);
            return;
        }
        let Some(requester) = self.requester(at) else {
            return;
        };
        requester.rnr_retries = tried.saturating_add(1);
        // An answer is a sign of life.
        requester.retries = 0;
        requester.is_paused = true;
        requester.go_back(psn);
        self.stop_ack_timer(at);
        let mut wait_ns = rnr_wait_ns(code);
        if transport.retry_unlimited {
            wait_ns = wait_ns.max(backoff_ns(tried.into()));
        }
        let until = self.clock.now_ns().saturating_add(wait_ns);
        let key = self.timers.set(until, Timer::Packets(at));
        if let Some(requester) = self.requester(at) {
            requester.timer = Some(key);
        }
    }

    /// Ends what waited for everything before it to complete.
    fn finish(&mut self, at: QpRef) {
        let Some(requester) = self.requester(at) else {
            return;
        };
        if let Some((status, syndrome)) = requester.outgoing.front().and_then(|front| front.failed)
        {
            self.fail_front(at, status, syndrome);
        } else if requester.outgoing.is_empty()
            && let Some(bad) = requester.bad.take()
        {
            self.refuse(at, &bad);
        }
    }

    /// Why the peer does not answer.
    fn why_silent(&self, at: QpRef) -> Syndrome {
        let connected = self.connected_peer(at);
        let Some((peer, other)) = connected.and_then(|peer| Some((peer, self.qp(peer)?))) else {
            return Syndrome::PEER_GONE;
        };
        if self.is_cut(at, peer) {
            Syndrome::PORT_DOWN
        } else if other.state == QpState::ERR && self.is_path_up(at) {
            Syndrome::PEER_IN_ERROR
        } else {
            Syndrome::RETRIES_EXHAUSTED
        }
    }
}

fn sends(state: QpState) -> bool {
    matches!(state, QpState::RTS | QpState::SQD)
}

/// Wait before the retry of a QP that retries without end.
pub(crate) fn backoff_ns(tried: u32) -> u64 {
    let (shortest, longest) = BACKOFF_NS;
    (shortest << tried.min(16)).min(longest)
}
