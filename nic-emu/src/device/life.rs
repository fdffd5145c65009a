//! Life of a QP: ERR, RESET, flush, connecting and disconnecting, the end with or without a peer that still reads.
//!
//! Place: admin commands, `modify`, the connection manager, holders and failures call in here.
//! Invariants: in ERR every posted WQE completes with WR_FLUSH_ERR, also those posted later; all CQEs of a QP are written before an
//! event about it; whoever waits for a QP that changes state is woken. An orphan has neither queues nor holders nor a doorbell slot.
//!
//! ```text
//!   RESET -> INIT -> RTR -> RTS <-> SQD        any -> ERR, any -> RESET
//!              \______________^ connection manager
//! ```
//!
//! Source: verbs QP states (`ibv_modify_qp`, IBA vol. 1, chapter 10); orphans are ours. Hot: nothing.

use ring_proto::admin::MAX_RD_ATOMIC;
use ring_proto::eqe::EventType;
use ring_proto::status::{QpState, Syndrome};
use ring_proto::sync::Ordering;

use super::Device;
use super::packet::Transport;
use super::qp::{QpRef, RNR_FOREVER};
use super::recorder::{Event, What};
use super::timer::Timer;

/// How long an orphan waits for its peer to read it.
const ORPHAN_NS: u64 = 60_000_000_000;

impl Device {
    /// Moves a QP to ERR and flushes it; wakes the peer's send that waits for it. False when it was there already.
    pub(crate) fn qp_to_err(&mut self, at: QpRef) -> bool {
        let Some(qp) = self.qp_mut(at) else {
            return false;
        };
        let was_in_error = qp.state == QpState::ERR;
        qp.state = QpState::ERR;
        qp.is_draining = false;
        let timer = qp.hold_timer.take();
        let waiter = qp.waiter.take();
        self.record_state(at, QpState::ERR);
        if let Some(key) = timer {
            self.timers.cancel(key);
        }
        self.stop_packets(at);
        self.flush(at);
        if let Some(waiter) = waiter {
            self.activate(waiter);
        }
        if !was_in_error {
            self.last_wqe_reached(at);
        }
        !was_in_error
    }

    /// Completes everything posted with WR_FLUSH_ERR.
    pub(crate) fn flush(&mut self, at: QpRef) {
        let Some(function) = self.functions.at_mut(at.place) else {
            return;
        };
        let bar = function.bar;
        let Some(qp) = function.qps.find_mut(at.qpn) else {
            return;
        };
        let line = bar.line(qp.slot);
        // A doorbell that lies in ERR ends its queue: nothing of it can be believed any more.
        // EDGE sq-publish (acquire): as in `Qp::refresh`.
        if !qp.sq.believe(line.sq_producer().load(Ordering::Acquire)) {
            qp.sq.ring = None;
        }
        if !qp.rq.believe(line.rq_producer().load(Ordering::Acquire)) {
            qp.rq.ring = None;
        }
        self.validate_doorbell(at);
        while let Some((cqn, entry)) = self.qp_mut(at).and_then(|qp| qp.next_flushed(at.qpn)) {
            self.complete(at.place, cqn, &entry);
        }
    }

    /// A QP goes to ERR for a reason that no completion tells.
    pub(crate) fn fail_qp(&mut self, at: QpRef, syndrome: Syndrome) {
        self.validate_doorbell(at);
        self.qp_failed(at.place, at.qpn, syndrome);
        if self.qp_to_err(at) {
            if let Some(function) = self.functions.at(at.place) {
                self.nodes.counters(function.node).errors += 1;
            }
            self.event(at.place, EventType::QP_FATAL, at.qpn, u32::from(syndrome.0));
        }
    }

    /// Tells the recorder of a QP's new state.
    pub(crate) fn record_state(&mut self, at: QpRef, state: QpState) {
        let changed = Event {
            number: at.qpn,
            code: u16::from(state.0),
            what: What::State,
            ..Event::default()
        };
        self.record(at.place, changed);
    }

    /// Empties a QP and brings its attributes back to what they were at its creation.
    pub(crate) fn reset_qp(&mut self, at: QpRef) {
        self.withdraw_connect_of(at);
        self.unlink(at);
        self.close_ends(at, false);
        let Some(function) = self.functions.at_mut(at.place) else {
            return;
        };
        let bar = function.bar;
        let Some(qp) = function.qps.find_mut(at.qpn) else {
            return;
        };
        qp.state = QpState::RESET;
        qp.rnr_retry = RNR_FOREVER;
        qp.max_rd_atomic = MAX_RD_ATOMIC;
        qp.max_dest_rd_atomic = MAX_RD_ATOMIC;
        qp.transport = Transport::default();
        qp.flush_syndrome = Syndrome::FLUSHED;
        qp.is_draining = false;
        qp.is_established = false;
        function.regions.qp_ended(at.qpn);
        qp.is_held = false;
        qp.receiving = None;
        qp.record = None;
        qp.packet_counters = None;
        qp.sq.restart();
        qp.rq.restart();
        let timer = qp.hold_timer.take();
        let waiter = qp.waiter.take();
        function.clear_producers(&bar, at.qpn);
        self.record_state(at, QpState::RESET);
        self.forget_qp(at);
        if let Some(key) = timer {
            self.timers.cancel(key);
        }
        if let Some(waiter) = waiter {
            self.activate(waiter);
        }
    }

    /// Joins two QPs: both go to RTS, each the other's peer.
    pub(crate) fn connect_qps(&mut self, one: QpRef, other: QpRef) {
        for (at, peer) in [(one, other), (other, one)] {
            // The request and its answer carry the first PSN of each side.
            let rq_psn = self.qp(peer).map_or(0, |qp| qp.transport.sq_psn);
            if let Some(qp) = self.qp_mut(at) {
                qp.transport.rq_psn = rq_psn;
                qp.peer = Some(peer);
                qp.state = QpState::RTS;
                qp.waiter = None;
            }
            self.record_state(at, QpState::RTS);
            self.activate(at);
        }
    }

    /// The peer of a QP, when that names it too.
    pub(crate) fn connected_peer(&self, at: QpRef) -> Option<QpRef> {
        let peer = self.qp(at)?.peer?;
        (self.qp(peer)?.peer == Some(at)).then_some(peer)
    }

    /// Takes a QP's peer away; the peer, if connected, goes to ERR, flushes and hears of it.
    pub(crate) fn unlink(&mut self, at: QpRef) {
        let connected = self.connected_peer(at);
        if let Some(qp) = self.qp_mut(at) {
            qp.peer = None;
        }
        if let Some(peer) = connected
            && !self.end_over_link(at, peer)
        {
            self.capture_end(at, peer);
            self.peer_ended(peer);
        }
    }

    /// The peer of a QP has ended the connection.
    pub(crate) fn peer_ended(&mut self, at: QpRef) {
        let is_orphan = self.qp_mut(at).is_some_and(|qp| {
            qp.peer = None;
            if qp.state != QpState::ERR {
                qp.flush_syndrome = Syndrome::DISCONNECTED;
            }
            qp.is_orphan
        });
        if is_orphan {
            self.destroy_qp(at);
        } else {
            self.qp_to_err(at);
            self.event(at.place, EventType::CM_DISCONNECTED, at.qpn, 0);
        }
    }

    /// CM_DISCONNECT: both ends go to ERR and flush; the other end hears of it.
    pub(crate) fn disconnect(&mut self, at: QpRef) {
        self.qp_to_err(at);
        self.unlink(at);
    }

    /// Ends a QP; a connected peer is told.
    pub(crate) fn destroy_qp(&mut self, at: QpRef) {
        self.withdraw_connect_of(at);
        self.unlink(at);
        self.close_ends(at, false);
        let Some(qp) = self.detach_queues(at) else {
            return;
        };
        let Some(function) = self.functions.at_mut(at.place) else {
            return;
        };
        function.qps.remove(at.qpn);
        function.regions.qp_ended(at.qpn);
        if let Some(pd) = function.pds.find_mut(qp.pdn) {
            pd.users -= 1;
        }
        if let Some(listener) = qp.listener.and_then(|id| function.listeners.find_mut(id)) {
            listener.held.retain(|&held| held != at.qpn);
        }
        if let Some(waiter) = qp.waiter {
            self.activate(waiter);
        }
        if qp.is_orphan {
            self.free_if_over(at.place);
        }
    }

    /// Takes queues, doorbell slot and timers from a QP.
    fn detach_queues(&mut self, at: QpRef) -> Option<DetachedQp> {
        let function = self.functions.at_mut(at.place)?;
        if function.id != at.function {
            return None;
        }
        let qp = function.qps.find_mut(at.qpn)?;
        let timer = qp.hold_timer.take();
        let detached = DetachedQp {
            pdn: qp.pdn,
            listener: qp.listener.take(),
            waiter: qp.waiter.take(),
            is_orphan: qp.is_orphan,
        };
        if !qp.is_orphan {
            qp.sq.ring = None;
            qp.rq.ring = None;
            qp.is_held = false;
            qp.receiving = None;
            let (slot, cqns, srqn) = (qp.slot, [qp.send_cqn, qp.recv_cqn], qp.srqn);
            function.leave_slot_as_qp(slot, at.qpn);
            function.leave_srq(srqn, at.qpn);
            for cqn in cqns {
                if let Some(cq) = function.cqs.find_mut(cqn) {
                    cq.users -= 1;
                }
            }
        }
        self.forget_qp(at);
        if let Some(key) = timer {
            self.timers.cancel(key);
        }
        Some(detached)
    }

    /// The last process that held a QP has gone without destroying it.
    pub(crate) fn last_holder_gone(&mut self, at: QpRef) {
        let is_served = self
            .qp(at)
            .is_some_and(|qp| matches!(qp.state, QpState::RTR | QpState::RTS | QpState::SQD));
        let peer = self
            .connected_peer(at)
            .filter(|&peer| is_served && self.qp(peer).is_some_and(|other| !other.is_orphan));
        let Some(peer) = peer else {
            self.destroy_qp(at);
            return;
        };
        self.close_ends(at, true);
        let Some(detached) = self.detach_queues(at) else {
            return;
        };
        if let Some(qp) = self.qp_mut(at) {
            qp.is_orphan = true;
            qp.holders.clear();
        }
        let until = self.clock.now_ns().saturating_add(ORPHAN_NS);
        self.timers.set(until, Timer::Orphan(at));
        if let Some(waiter) = detached.waiter {
            self.activate(waiter);
        }
        self.event(peer.place, EventType::CM_ORPHANED, peer.qpn, 0);
    }

    /// An orphan's time is up.
    pub(crate) fn orphan_timer(&mut self, at: QpRef) {
        if self.qp(at).is_some_and(|qp| qp.is_orphan) {
            self.destroy_qp(at);
        }
    }

    /// Ends the QPs whose rings lie in a window that goes away.
    pub(crate) fn fail_qps_inside(&mut self, place: u32, iova: u64, len: u64) {
        let Some(function) = self.functions.at_mut(place) else {
            return;
        };
        let id = function.id;
        let mut hit = Vec::new();
        for (qpn, qp) in function.qps.iter_mut() {
            if qp.is_inside(iova, len) {
                for queue in [&mut qp.sq, &mut qp.rq] {
                    if queue.is_inside(iova, len) {
                        queue.ring = None;
                    }
                }
                hit.push(qpn);
            }
        }
        for qpn in hit {
            let at = QpRef {
                place,
                function: id,
                qpn,
            };
            self.fail_qp(at, Syndrome::WINDOW_GONE);
        }
    }
}

/// What is left to settle of a QP that lost its queues.
#[derive(Debug)]
struct DetachedQp {
    pdn: u32,
    listener: Option<u32>,
    waiter: Option<QpRef>,
    is_orphan: bool,
}
