//! Serving a QP: one turn of its send queue, holds and their end, the requester's completions.
//!
//! Place: doorbells put a QP on the engine's list, [`Device::serve_qp`] takes it from there; `burst` serves the plain WQEs of a turn, and
//! each other one goes to `transfer`.
//! Invariants: a turn is bounded in WQEs and bytes; WQEs of a QP are executed in order, one at a time; a WQE that waits for its peer
//! stays in the QP, and whoever ends the wait puts the QP back on the list.
//! Hot: everything here but failures. Source: verbs RC requester (IBA vol. 1, chapter 9). Leaves out: transport retries, which a
//! fabric without loss does not need.

use ring_proto::status::{QpState, Syndrome, WcStatus};
use ring_proto::wqe::WqeFlags;

use super::Device;
use super::cq::Completed;
use super::fault::FaultPoint;
use super::packet::rnr_wait_ns;
use super::qp::{QpRef, RNR_FOREVER};
use super::queue::{self, BadWqe, Fetched, SendWork};
use super::recorder::{Event, What};
use super::timer::Timer;
use super::transfer::{Hold, Step};

/// WQEs of one QP in one turn.
const WQES_PER_TURN: u64 = 64;
/// Bytes of one QP in one turn.
const BYTES_PER_TURN: u32 = 256 * 1024;

/// What a turn of a QP meets next.
pub(crate) enum Next {
    /// Nothing to do.
    Nothing,
    /// A filler.
    Skipped,
    /// A WQE the device will not execute.
    Bad(BadWqe),
    /// A WQE to execute.
    Work,
    /// The end of the turn.
    Enough,
}

/// What is left of a turn.
#[derive(Debug)]
pub(crate) struct Turn {
    /// WQEs served.
    pub(crate) served: u64,
    limit: u64,
    pub(crate) bytes_left: u32,
}

impl Turn {
    /// A turn; a careful one has one WQE.
    fn new(is_careful: bool) -> Self {
        Self {
            served: 0,
            limit: if is_careful { 1 } else { WQES_PER_TURN },
            bytes_left: BYTES_PER_TURN,
        }
    }

    #[inline]
    pub(crate) fn is_over(&self) -> bool {
        self.served >= self.limit || self.bytes_left == 0
    }
}

impl Device {
    /// Puts a QP on the list of those with work.
    #[inline]
    pub(crate) fn activate(&mut self, qp: QpRef) {
        if let Some(entry) = self.qp_mut(qp)
            && !entry.is_active
        {
            entry.is_active = true;
            self.work.active.push_back(qp);
        }
    }

    /// One turn of a QP; returns the pieces of work done.
    pub(crate) fn serve_qp(&mut self, at: QpRef) -> u64 {
        let Some(function) = self.functions.at_mut(at.place) else {
            return 0;
        };
        if function.id != at.function {
            return 0;
        }
        let bar = function.bar;
        let Some(qp) = function.qps.find_mut(at.qpn) else {
            return 0;
        };
        qp.is_active = false;
        if qp.is_orphan {
            return 0;
        }
        let is_believed = qp.refresh(&bar);
        let state = qp.state;
        let waiter = if is_believed && qp.waiter.is_some() && qp.has_receive() {
            qp.waiter.take()
        } else {
            None
        };
        if self.diagnosis.validator.is_some() {
            self.validate_posted(at);
        }
        if !is_believed {
            self.fail_qp(at, Syndrome::DOORBELL_OUT_OF_RANGE);
            return 1;
        }
        if let Some(waiter) = waiter {
            self.activate(waiter);
        }
        match state {
            QpState::RTS => self.serve_send_queue(at),
            QpState::SQD => {
                let served = self.serve_send_queue(at);
                self.note_drained(at);
                served
            }
            QpState::ERR => {
                self.flush(at);
                1
            }
            _ => 0,
        }
    }

    fn serve_send_queue(&mut self, at: QpRef) -> u64 {
        if self.links.is_used && self.goes_by_packets(at) {
            return self.serve_packets(at);
        }
        let Some(mut work) = self.qp_mut(at).and_then(|qp| qp.work.take()) else {
            return 0;
        };
        let mut turn = Turn::new(self.diagnosis.pause.is_careful());
        let mut goes_on = true;
        while goes_on && !turn.is_over() {
            match self.next_special(at, &mut work, &mut turn) {
                Next::Nothing => goes_on = false,
                Next::Enough => {}
                Next::Skipped => turn.served += 1,
                Next::Bad(bad) => {
                    turn.served += 1;
                    goes_on = false;
                    self.refuse(at, &bad);
                }
                Next::Work => {
                    turn.served += 1;
                    let fault = if self.faults.has(FaultPoint::Wqe) {
                        self.fault_wqe(at, &work)
                    } else {
                        None
                    };
                    let step = match fault {
                        Some(step) => step,
                        None => self.execute(at, &mut work, &mut turn.bytes_left),
                    };
                    match step {
                        Step::Done => self.send_done(at, &work),
                        Step::More => {
                            self.cancel_hold_timer(at);
                            self.keep(at);
                            break;
                        }
                        Step::Hold(kind) => {
                            goes_on = false;
                            self.hold(at, &work, kind);
                        }
                        Step::Failed(status, syndrome) => {
                            goes_on = false;
                            self.send_failed(at, &work, status, syndrome);
                        }
                    }
                }
            }
        }
        let Some(qp) = self.qp_mut(at) else {
            return turn.served;
        };
        qp.work = Some(work);
        if goes_on {
            // The turn is over, perhaps with work left.
            self.activate(at);
        }
        turn.served
    }

    /// Fetches the next WQE of a QP in RTS, or takes up the one that is held, in SQD too.
    #[inline]
    pub(crate) fn fetch_next(&mut self, at: QpRef, work: &mut SendWork) -> Next {
        let Some(qp) = self.qp_mut(at) else {
            return Next::Nothing;
        };
        if !qp.sends() {
            return Next::Nothing;
        }
        if qp.is_held {
            qp.is_held = false;
            return Next::Work;
        }
        if qp.state == QpState::SQD {
            return Next::Nothing;
        }
        let Some(ring) = qp.sq.ring.filter(|_| !qp.sq.is_empty()) else {
            return Next::Nothing;
        };
        match queue::fetch_send(&ring, qp.sq.consumer, qp.sq.producer, work) {
            Fetched::Work => {
                qp.sq.consumer = work.end;
                Next::Work
            }
            Fetched::Nop(end) => {
                qp.sq.consumer = end;
                Next::Skipped
            }
            Fetched::Bad(bad) => {
                qp.sq.consumer = bad.end;
                Next::Bad(bad)
            }
        }
    }

    /// Completes a WQE that the device will not execute.
    pub(crate) fn refuse(&mut self, at: QpRef, bad: &BadWqe) {
        let Some(cqn) = self.qp(at).map(|qp| qp.send_cqn) else {
            return;
        };
        let entry = Completed {
            wr_id: bad.wr_id,
            byte_len: 0,
            imm: 0,
            qpn: at.qpn,
            opcode: bad.opcode,
            src_qpn_flags: 0,
            wqe_counter: bad.end,
            status: bad.status,
            syndrome: bad.syndrome,
        };
        self.complete(at.place, cqn, &entry);
        self.qp_to_err(at);
    }

    /// The WQE of this turn goes on later.
    pub(crate) fn keep(&mut self, at: QpRef) {
        if let Some(qp) = self.qp_mut(at) {
            qp.is_held = true;
        }
    }

    /// A WQE must wait for its peer, or fails because its retries are used up.
    fn hold(&mut self, at: QpRef, work: &SendWork, kind: Hold) {
        let Some(qp) = self.qp(at) else {
            return;
        };
        let (rnr_retry, transport) = (qp.rnr_retry, qp.transport);
        let peer = qp.peer.and_then(|peer| self.qp(peer));
        let wait_ns = match kind {
            Hold::Receive if rnr_retry == RNR_FOREVER => None,
            Hold::Receive => {
                let delay_ns = peer.map_or(0, |peer| rnr_wait_ns(peer.transport.min_rnr_timer));
                Some(u64::from(rnr_retry) * delay_ns)
            }
            Hold::Connection | Hold::Port => transport.wait_ns(),
            Hold::Fault => None,
        };
        let Some(qp) = self.qp_mut(at) else {
            return;
        };
        if wait_ns == Some(0) {
            self.send_failed(
                at,
                work,
                WcStatus::RNR_RETRY_EXC_ERR,
                Syndrome::RNR_EXHAUSTED,
            );
            return;
        }
        // Another wait than before has its own limit.
        let stale = (qp.hold_kind != kind)
            .then(|| qp.hold_timer.take())
            .flatten();
        if let Some(key) = stale {
            self.timers.cancel(key);
        }
        let Some(qp) = self.qp_mut(at) else {
            return;
        };
        qp.hold_kind = kind;
        qp.is_held = true;
        self.record_held(at, work);
        let has_timer = self.qp(at).is_some_and(|qp| qp.hold_timer.is_some());
        if let Some(wait_ns) = wait_ns.filter(|_| !has_timer) {
            let at_ns = self.clock.now_ns().saturating_add(wait_ns);
            let key = self.timers.set(at_ns, Timer::Hold(at));
            if let Some(qp) = self.qp_mut(at) {
                qp.hold_timer = Some(key);
            }
        }
    }

    /// Tells the recorder of a WQE that waits.
    fn record_held(&mut self, at: QpRef, work: &SendWork) {
        let held = Event {
            what: What::Hold,
            ..work.event(at.qpn)
        };
        self.record(at.place, held);
    }

    /// A held send has waited long enough.
    pub(crate) fn hold_timer(&mut self, at: QpRef) {
        let Some(qp) = self.qp_mut(at) else {
            return;
        };
        qp.hold_timer = None;
        if !qp.is_held || !qp.sends() {
            return;
        }
        let Some(work) = qp.work.take() else {
            return;
        };
        qp.is_held = false;
        let (status, syndrome) = match qp.hold_kind {
            Hold::Receive => (WcStatus::RNR_RETRY_EXC_ERR, Syndrome::RNR_EXHAUSTED),
            Hold::Connection => (WcStatus::RETRY_EXC_ERR, Syndrome::PEER_GONE),
            Hold::Port => (WcStatus::RETRY_EXC_ERR, Syndrome::PORT_DOWN),
            // It has no timer of this kind.
            Hold::Fault => (WcStatus::GENERAL_ERR, Syndrome::FAULT_INJECTED),
        };
        self.send_failed(at, &work, status, syndrome);
        if let Some(qp) = self.qp_mut(at) {
            qp.work = Some(work);
        }
    }

    #[inline]
    pub(crate) fn send_done(&mut self, at: QpRef, work: &SendWork) {
        self.cancel_hold_timer(at);
        if let Some(function) = self.functions.at_mut(at.place) {
            function.wqes += 1;
            self.nodes.counters(function.node).wqes += 1;
            if !work.has(WqeFlags::SIGNALED) {
                function
                    .recorder
                    .push(work.done_event(at.qpn, self.work.now_ns));
            }
        }
        if work.has(WqeFlags::SIGNALED) {
            self.complete_send(at, work, WcStatus::SUCCESS, Syndrome::NONE);
        }
    }

    #[inline]
    pub(crate) fn cancel_hold_timer(&mut self, at: QpRef) {
        if let Some(key) = self.qp_mut(at).and_then(|qp| qp.hold_timer.take()) {
            self.timers.cancel(key);
        }
    }

    pub(crate) fn send_failed(
        &mut self,
        at: QpRef,
        work: &SendWork,
        status: WcStatus,
        syndrome: Syndrome,
    ) {
        self.complete_send(at, work, status, syndrome);
        self.qp_to_err(at);
    }

    fn complete_send(&mut self, at: QpRef, work: &SendWork, status: WcStatus, syndrome: Syndrome) {
        let Some(cqn) = self.qp(at).map(|qp| qp.send_cqn) else {
            return;
        };
        let entry = work.entry(at.qpn, status, syndrome);
        self.complete(at.place, cqn, &entry);
    }
}
