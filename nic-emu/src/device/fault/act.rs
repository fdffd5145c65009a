//! What rules do, at each point where the engine asks for them.
//!
//! Place: `serve` and `packet` (WQEs, packets), `transfer` (receives), `cq` (completions), `engine` (doorbells, interrupts) come here when
//! [`super::Faults::has`] says so. Invariants: a WQE is judged once, however often it is taken up; what ends a QP or a function is put off
//! until the present piece of work is over; whatever is delayed has a timer, and nothing that goes away leaves one that does harm.
//! Hot: nothing. Source: ours.

use ring_proto::ids::{FunctionId, NodeId};
use ring_proto::status::{Syndrome, WcStatus};

use super::{FaultAction, FaultPoint, Occasion};
use crate::device::Device;
use crate::device::cq::Completed;
use crate::device::packet::rnr_wait_ns;
use crate::device::qp::QpRef;
use crate::device::queue::SendWork;
use crate::device::recorder::{Event, What};
use crate::device::timer::Timer;
use crate::device::transfer::{Hold, Step};

/// What happens later.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pending {
    /// A QP takes up its WQE again.
    Wake(QpRef),
    /// A doorbell is seen.
    Doorbell { function: FunctionId, slot: u32 },
    /// Vectors fire.
    Fire { function: FunctionId, vectors: u64 },
    /// Completions of a CQ are written.
    Completions { function: FunctionId, cqn: u32 },
}

/// What becomes of a packet beside what its link does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Fate {
    pub(crate) is_lost: bool,
    pub(crate) is_doubled: bool,
    pub(crate) is_corrupt: bool,
    pub(crate) delay_ns: u64,
}

impl Device {
    /// Asks the rules; a fault is logged here, and stands in the function's recorder.
    pub(super) fn meet_fault(
        &mut self,
        at: FaultPoint,
        place: u32,
        qpn: u32,
        opcode: u8,
    ) -> Option<FaultAction> {
        let function = self.functions.at(place)?;
        let occasion = Occasion {
            at,
            node: function.node,
            function: function.id,
            qpn,
            opcode,
        };
        let (action, id) = self.faults.meet(self.clock.now_ns(), &occasion)?;
        let node = self.node_name(occasion.node);
        if let Some(hit) = self.faults.log.back_mut() {
            hit.node = node;
        }
        let event = Event {
            number: qpn,
            index: id,
            code: at as u16,
            what: What::Fault,
            ..Event::default()
        };
        self.record(place, event);
        Some(action)
    }

    fn later(&mut self, wait_ns: u64, what: Pending) {
        self.at_time(self.clock.now_ns().saturating_add(wait_ns), what);
    }

    fn at_time(&mut self, at_ns: u64, what: Pending) {
        self.faults.last_pending += 1;
        let id = self.faults.last_pending;
        self.faults.pending.insert(id, what);
        self.timers.set(at_ns, Timer::Fault(id));
    }

    /// The function that a delayed thing belongs to.
    pub(crate) fn fault_place(&self, id: u64) -> Option<u32> {
        let function = match *self.faults.pending.get(&id)? {
            Pending::Wake(at) => at.function,
            Pending::Doorbell { function, .. }
            | Pending::Fire { function, .. }
            | Pending::Completions { function, .. } => function,
        };
        self.place_of(function).ok()
    }

    /// What was delayed happens.
    pub(crate) fn fault_timer(&mut self, id: u64) {
        let place = self.fault_place(id);
        let Some(pending) = self.faults.pending.remove(&id) else {
            return;
        };
        let Some(place) = place else {
            if let Pending::Completions { function, cqn } = pending {
                self.faults.completions.remove(&(function, cqn));
                self.faults.refresh();
            }
            return;
        };
        match pending {
            Pending::Wake(at) => self.activate(at),
            Pending::Doorbell { slot, .. } => self.past_faults(|device| device.rang(place, slot)),
            Pending::Fire { vectors, .. } => {
                if let Some(function) = self.functions.at_mut(place) {
                    function.vectors.fire(vectors);
                }
            }
            Pending::Completions { function, cqn } => self.late_completions(place, function, cqn),
        }
    }

    /// Does what rules have had their look at.
    fn past_faults(&mut self, work: impl FnOnce(&mut Self)) {
        let on = std::mem::take(&mut self.faults.on);
        work(self);
        self.faults.on = on;
    }

    /// Deals with what faults have ended; false when there is nothing.
    pub(crate) fn settle_faults(&mut self) -> bool {
        let Some(at) = self.faults.to_err.pop() else {
            return false;
        };
        self.fail_qp(at, Syndrome::FAULT_INJECTED);
        true
    }

    /// What becomes of a WQE that is about to be executed.
    #[cold]
    pub(crate) fn fault_wqe(&mut self, at: QpRef, work: &SendWork) -> Option<Step> {
        let key = (at.function, at.qpn);
        if self.faults.judged.get(&key) == Some(&work.end) {
            return self.still_delayed(at, work.end);
        }
        if work.done != 0 {
            // It began before there were rules.
            return None;
        }
        let met = self.meet_fault(FaultPoint::Wqe, at.place, at.qpn, work.opcode().0);
        self.faults.judged.insert(key, work.end);
        match met? {
            FaultAction::Delay { ns } => {
                let until_ns = self.clock.now_ns().saturating_add(ns);
                self.faults.delayed.insert(key, (work.end, until_ns));
                self.faults.refresh();
                self.at_time(until_ns, Pending::Wake(at));
                Some(Step::Hold(Hold::Fault))
            }
            FaultAction::Status { status } => Some(Step::Failed(status, Syndrome::FAULT_INJECTED)),
            FaultAction::QpErr => {
                self.faults.to_err.push(at);
                Some(Step::Hold(Hold::Fault))
            }
            FaultAction::NicReset => {
                self.work.failing.push((at.place, Syndrome::FAULT_INJECTED));
                Some(Step::Hold(Hold::Fault))
            }
            _ => None,
        }
    }

    /// Whether a WQE that rules have seen has to wait.
    fn still_delayed(&mut self, at: QpRef, end: u32) -> Option<Step> {
        let key = (at.function, at.qpn);
        let &(delayed, until_ns) = self.faults.delayed.get(&key)?;
        if delayed == end && self.clock.now_ns() < until_ns {
            return Some(Step::Hold(Hold::Fault));
        }
        self.faults.delayed.remove(&key);
        self.faults.refresh();
        None
    }

    /// Whether a message of `at` finds its receiver not ready because a rule says so.
    #[cold]
    pub(crate) fn fault_receive(&mut self, at: QpRef, peer: QpRef, opcode: u8) -> bool {
        let other = self.qp(peer);
        if other.is_none_or(|other| other.receiving.is_some()) {
            // It has its receive already.
            return false;
        }
        let timer = other.map_or(0, |other| other.transport.min_rnr_timer);
        let met = self.meet_fault(FaultPoint::Receive, peer.place, peer.qpn, opcode);
        if met.is_none() {
            return false;
        }
        self.later(rnr_wait_ns(timer), Pending::Wake(at));
        true
    }

    /// What becomes of a packet that a QP sends.
    #[cold]
    pub(crate) fn fault_packet(&mut self, from: QpRef, opcode: u8) -> Fate {
        let mut fate = Fate::default();
        match self.meet_fault(FaultPoint::Packet, from.place, from.qpn, opcode) {
            Some(FaultAction::Delay { ns }) => fate.delay_ns = ns,
            Some(FaultAction::Drop) => fate.is_lost = true,
            Some(FaultAction::Duplicate) => fate.is_doubled = true,
            Some(FaultAction::Corrupt) => fate.is_corrupt = true,
            _ => {}
        }
        fate
    }

    /// Whether rules look at packets of a QP or of its peer.
    pub(crate) fn faults_want_packets(
        &self,
        (at, node): (QpRef, NodeId),
        (peer, peer_node): (QpRef, NodeId),
    ) -> bool {
        self.faults.has(FaultPoint::Packet)
            && (self.faults.wants_packets(node, at.function, at.qpn)
                || self
                    .faults
                    .wants_packets(peer_node, peer.function, peer.qpn))
    }

    /// Takes a completion over; false when it is to be written as it is.
    #[cold]
    pub(crate) fn fault_completion(&mut self, place: u32, cqn: u32, entry: &Completed) -> bool {
        let Some(id) = self.functions.at(place).map(|function| function.id) else {
            return false;
        };
        let mut entry = *entry;
        let mut delay_ns = 0;
        let at = QpRef {
            place,
            function: id,
            qpn: entry.qpn,
        };
        let action = if entry.status == WcStatus::SUCCESS {
            self.meet_fault(FaultPoint::Completion, place, entry.qpn, entry.opcode)
        } else {
            None
        };
        match action {
            Some(FaultAction::Drop) => return true,
            Some(FaultAction::Delay { ns }) => delay_ns = ns,
            Some(FaultAction::Status { status }) => {
                entry.status = status;
                entry.syndrome = Syndrome::FAULT_INJECTED;
                entry.byte_len = 0;
                self.faults.to_err.push(at);
            }
            Some(FaultAction::QpErr) => self.faults.to_err.push(at),
            Some(FaultAction::NicReset) => {
                self.work.failing.push((place, Syndrome::FAULT_INJECTED));
            }
            Some(FaultAction::CqOverrun) => {
                let cq = self
                    .functions
                    .at_mut(place)
                    .and_then(|function| function.cqs.find_mut(cqn));
                if let Some(cq) = cq {
                    cq.is_broken = true;
                    self.work.broken_cqs.push((place, cqn));
                }
                return true;
            }
            _ => {}
        }
        let last_ns = self.faults.completions.get(&(id, cqn)).map(|queue| {
            let last = queue.back();
            last.map_or(0, |&(at_ns, _)| at_ns)
        });
        if delay_ns == 0 && last_ns.is_none() {
            self.past_faults(|device| device.complete(place, cqn, &entry));
            return true;
        }
        let now_ns = self.clock.now_ns();
        let at_ns = now_ns.saturating_add(delay_ns).max(last_ns.unwrap_or(0));
        let queue = self.faults.completions.entry((id, cqn)).or_default();
        queue.push_back((at_ns, entry));
        self.faults.refresh();
        self.at_time(at_ns, Pending::Completions { function: id, cqn });
        true
    }

    /// Writes the completions of a CQ whose time has come.
    fn late_completions(&mut self, place: u32, function: FunctionId, cqn: u32) {
        let now_ns = self.clock.now_ns();
        let key = (function, cqn);
        while let Some(queue) = self.faults.completions.get_mut(&key) {
            let Some(&(at_ns, entry)) = queue.front() else {
                self.faults.completions.remove(&key);
                break;
            };
            if at_ns > now_ns {
                break;
            }
            queue.pop_front();
            self.past_faults(|device| device.complete(place, cqn, &entry));
        }
        self.faults.refresh();
    }

    /// Whether a doorbell is not seen, or not yet.
    #[cold]
    pub(crate) fn fault_doorbell(&mut self, place: u32, slot: u32) -> bool {
        let Some(function) = self.functions.at(place) else {
            return false;
        };
        let (function, qpn) = (function.id, function.slot(slot).qpn);
        match self.meet_fault(FaultPoint::Doorbell, place, qpn, 0) {
            Some(FaultAction::Delay { ns }) => {
                self.later(ns, Pending::Doorbell { function, slot });
                true
            }
            action => action.is_some(),
        }
    }

    /// The vectors that fire now of those that are about to.
    #[cold]
    pub(crate) fn fault_interrupt(&mut self, place: u32, vectors: u64) -> u64 {
        let Some(function) = self.functions.at(place).map(|function| function.id) else {
            return vectors;
        };
        match self.meet_fault(FaultPoint::Interrupt, place, 0, 0) {
            Some(FaultAction::Delay { ns }) => {
                self.later(ns, Pending::Fire { function, vectors });
                0
            }
            Some(_) => 0,
            None => vectors,
        }
    }
}
