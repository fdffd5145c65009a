//! Shared receive queues under validation: the rules of receive queues, and the limit.
//!
//! Place: `srq` calls the hooks of [`Device`] where it believes or refuses a doorbell and where an SRQ ends; [`super::Validator`] hands
//! completions in. Invariants: an SRQ's WQEs are taken in order and complete in any, so each is given back by its own CQE; a place is
//! free once any CQE told a position behind it. What a QP took and never completed is given back when that QP starts anew,
//! and what other QPs have in work stays with the NIC.
//! Source: docs/device.md, Shared receive queues. Hot: nothing.

use ring_proto::ids::FunctionId;

use super::rules::Rule;
use super::shadow::{Posted, Side};
use super::{Spot, Validator, World};
use crate::device::Device;
use crate::device::cq::Completed;
use crate::device::function::Function;
use crate::device::qp::{QpRef, WorkQueue};

impl World<'_> {
    /// The queue of the SRQ whose number stands in place of the QPN.
    pub(super) fn shared(&self, at: QpRef) -> Option<(&Function, &WorkQueue)> {
        let function = self
            .functions
            .at(at.place)
            .filter(|function| function.id == at.function)?;
        Some((function, function.srqs.find(at.qpn)?.queue()))
    }
}

impl Validator {
    /// A receive of an SRQ is about to complete.
    pub(super) fn shared_completed(
        &mut self,
        world: &World<'_>,
        at: QpRef,
        srqn: u32,
        entry: &Completed,
    ) {
        let of_srq = QpRef { qpn: srqn, ..at };
        self.posted_on(world, of_srq, Side::Shared);
        let Some((function, queue)) = world.shared(of_srq) else {
            return;
        };
        let key = (at.function, srqn, Side::Shared);
        let Some(shadow) = self.queues.get_mut(&key) else {
            return;
        };
        let (done, changed) = shadow.complete_one(queue.ring.as_ref(), entry.wqe_counter);
        if let Some((change, of)) = changed {
            self.rewritten(world, function, (srqn, Side::Shared), &change, of);
        }
        if let Some(posted) = done {
            let one: &[Posted] = std::slice::from_ref(&posted);
            self.give_back(at.function, srqn, Side::Shared, one);
            self.check_keys(world, at, (srqn, Side::Shared), entry, &posted);
        }
    }

    /// A QP starts anew or is gone: no CQE tells any more of what it took from its SRQ.
    pub(super) fn forget_taken(&mut self, world: &World<'_>, at: QpRef) {
        let Some(function) = world.functions.at(at.place) else {
            return;
        };
        let of_function: Vec<_> = self
            .queues
            .keys()
            .filter(|(id, _, side)| *id == at.function && *side == Side::Shared)
            .map(|&(_, srqn, _)| srqn)
            .collect();
        for srqn in of_function {
            let Some(srq) = function.srqs.find(srqn) else {
                continue;
            };
            // A QP has one receive in work at most; any other that was taken and is not complete went with its QP.
            let still_taken: Vec<u32> = function
                .qps
                .iter()
                .filter(|(qpn, qp)| *qpn != at.qpn && qp.srqn == srqn)
                .filter_map(|(_, qp)| Some(qp.receiving.as_ref()?.end))
                .collect();
            let consumer = srq.queue().consumer;
            let key = (at.function, srqn, Side::Shared);
            let gone = self
                .queues
                .get_mut(&key)
                .map(|shadow| shadow.forget_before(consumer, &still_taken));
            self.give_back(at.function, srqn, Side::Shared, &gone.unwrap_or_default());
        }
    }

    fn forget_srq(&mut self, function: FunctionId, srqn: u32) {
        if let Some(shadow) = self.queues.remove(&(function, srqn, Side::Shared)) {
            let owned: Vec<_> = shadow.owned().cloned().collect();
            self.give_back(function, srqn, Side::Shared, &owned);
        }
        self.refused
            .retain(|&(of, number, side, _)| (of, number, side) != (function, srqn, Side::Shared));
    }
}

impl Device {
    fn srq_at(&self, place: u32, srqn: u32) -> Option<QpRef> {
        let function = self.functions.at(place)?.id;
        Some(QpRef {
            place,
            function,
            qpn: srqn,
        })
    }

    /// The doorbell of an SRQ was believed.
    pub(crate) fn validate_srq_posted(&mut self, place: u32, srqn: u32) {
        if self.diagnosis.validator.is_none() {
            return;
        }
        if let Some(at) = self.srq_at(place, srqn) {
            self.validating(|validator, world| validator.posted_on(world, at, Side::Shared));
        }
    }

    /// The doorbell of an SRQ was refused.
    pub(crate) fn validate_srq_doorbell(&mut self, place: u32, srqn: u32) {
        let lie = self.functions.at(place).and_then(|function| {
            let queue = function.srqs.find(srqn)?.queue();
            let depth = queue.ring.map_or(0, |ring| ring.depth().entries());
            Some((queue.refused?, queue.producer, queue.consumer, depth))
        });
        let Some(lie) = lie else {
            return;
        };
        self.validating(|validator, world| {
            if let Some(function) = world.functions.at(place) {
                validator.doorbell(world, function, (srqn, Side::Shared), lie);
            }
        });
    }

    /// A limit was armed by doorbell.
    pub(crate) fn validate_srq_limit(&mut self, place: u32, srqn: u32, limit: u32, depth: u32) {
        if limit <= depth {
            return;
        }
        self.validating(|validator, world| {
            let Some(function) = world.functions.at(place) else {
                return;
            };
            let index = function
                .srqs
                .find(srqn)
                .map_or(0, |srq| srq.queue().producer);
            let spot = Spot {
                function,
                queue: Side::Shared.name(),
                number: srqn,
                index,
                wqe: None,
            };
            validator.report(world, Rule::SrqLimit, spot, || {
                format!("limit {limit} of a queue of {depth}")
            });
        });
    }

    /// An SRQ was destroyed.
    pub(crate) fn validate_forget_srq(&mut self, place: u32, srqn: u32) {
        if let Some(at) = self.srq_at(place, srqn) {
            self.validating(|validator, _| validator.forget_srq(at.function, srqn));
        }
    }
}
