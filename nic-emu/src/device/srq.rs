//! Shared receive queues: receives of many QPs in one ring, with a limit that calls for more.
//!
//! Place: `transfer` takes a receive here for a QP that has none of its own; the SRQ's doorbell and its admin commands end here.
//! Invariants: a receive is taken when its message begins and copied once, so its place in the ring is free from then on; a QP waits at
//! most once in the list, and whoever posts wakes all of them in their order. A broken SRQ takes its QPs to ERR. Receives that a QP
//! took and could not use are gone with it; those still in the ring stay for the other QPs.
//! Hot: [`Device::fetch_shared`]: no allocation, the list of waiting QPs has room for all. Edges: sq-publish.
//! Source: verbs SRQ (`ibv_create_srq`, `ibv_modify_srq`), IBA vol. 1, chapter 10; arming by doorbell is ours. Leaves out: resizing.

use std::collections::VecDeque;

use ring_proto::admin::{AdminStatus, QpCreate, QpCreateSrq, SrqCreate, SrqModify};
use ring_proto::eqe::EventType;
use ring_proto::status::{Syndrome, WcStatus};
use ring_proto::sync::Ordering;
use ring_proto::uar;

use super::Device;
use super::admin::{Results, slot_status};
use super::function::Function;
use super::inspect::{self, SrqRow};
use super::qp::{self, QpRef, WorkQueue};
use super::queue::RecvWork;
use super::transfer::{Hold, Step};

/// Most SRQs of a function.
pub(crate) const SRQ_LIMIT: u32 = 32_767;

/// A shared receive queue.
#[derive(Debug)]
pub(crate) struct Srq {
    slot: u32,
    /// Protection domain of the buffers, whatever that of the QP is.
    pdn: u32,
    depth: u32,
    queue: WorkQueue,
    /// Fewer receives than this fire SRQ_LIMIT once; 0 when not armed.
    limit: u32,
    /// The doorbell's limit word when it was last looked at.
    limit_word: u32,
    /// QPs that take their receives here.
    users: u32,
    /// QPs whose peer waits for a receive, in order.
    waiting: VecDeque<u32>,
    is_broken: bool,
}

impl Srq {
    fn posted(&self) -> u32 {
        self.queue.producer.wrapping_sub(self.queue.consumer)
    }

    pub(crate) fn queue(&self) -> &WorkQueue {
        &self.queue
    }

    /// The queue as a row of an inspection.
    pub(crate) fn row(&self, function: u32, srqn: u32, node: &str) -> SrqRow {
        SrqRow {
            function,
            node: node.to_owned(),
            srqn,
            pdn: self.pdn,
            queue: inspect::work_queue_row(&self.queue),
            limit: self.limit,
            slot: self.slot,
            users: self.users,
            waiting: self.waiting.len() as u64,
            is_broken: self.is_broken,
        }
    }

    /// Takes the limit when the receives have fallen below it: the event is due.
    fn limit_hit(&mut self) -> bool {
        let hit = self.posted() < self.limit;
        if hit {
            self.limit = 0;
        }
        hit
    }

    /// Drops the ring; true when it had one.
    fn break_up(&mut self) -> bool {
        self.queue.ring = None;
        !std::mem::replace(&mut self.is_broken, true)
    }
}

/// What a look for a receive found.
enum Found {
    Receive { limit_hit: bool },
    Nothing,
    Broken(Syndrome),
}

impl Function {
    /// Moves the next receive of an SRQ into `receiving` of a QP.
    fn take_shared(&mut self, qpn: u32) -> Found {
        let bar = self.bar;
        let Some(qp) = self.qps.find_mut(qpn) else {
            return Found::Nothing;
        };
        let Some(srq) = self.srqs.find_mut(qp.srqn) else {
            return Found::Broken(Syndrome::SRQ_BROKEN);
        };
        let Some(ring) = srq.queue.ring else {
            return Found::Broken(Syndrome::SRQ_BROKEN);
        };
        if srq.posted() == 0 {
            // EDGE sq-publish (acquire): pairs with the client's store in `ring_proto::doorbell::ring`.
            let claimed = bar.line(srq.slot).srq_producer().load(Ordering::Acquire);
            if !srq.queue.believe(claimed) {
                return Found::Broken(Syndrome::DOORBELL_OUT_OF_RANGE);
            }
            if srq.posted() == 0 {
                if !qp.waits_on_srq {
                    qp.waits_on_srq = true;
                    srq.waiting.push_back(qpn);
                }
                return Found::Nothing;
            }
        }
        let work = RecvWork::fetch(&ring, srq.queue.consumer);
        srq.queue.consumer = work.end;
        qp.receiving = Some(work);
        Found::Receive {
            limit_hit: srq.limit_hit(),
        }
    }

    /// Takes the next QP off the list of those that wait; the requester that waits for it.
    fn next_waiter(&mut self, srqn: u32) -> Option<QpRef> {
        let srq = self.srqs.find_mut(srqn)?;
        while let Some(qpn) = srq.waiting.pop_front() {
            let Some(qp) = self.qps.find_mut(qpn) else {
                continue;
            };
            qp.waits_on_srq = false;
            // In ERR and after a reset it has none.
            if let Some(waiter) = qp.waiter.take() {
                return Some(waiter);
            }
        }
        None
    }

    /// A QP gives up its place at an SRQ.
    pub(crate) fn leave_srq(&mut self, srqn: u32, qpn: u32) {
        if let Some(srq) = self.srqs.find_mut(srqn) {
            srq.users -= 1;
            srq.waiting.retain(|&waiting| waiting != qpn);
        }
    }

    /// Breaks the SRQs whose rings lie in a window that goes away; returns them.
    pub(crate) fn break_srqs_inside(&mut self, iova: u64, len: u64) -> Vec<u32> {
        self.srqs
            .iter_mut()
            .filter(|(_, srq)| srq.queue.is_inside(iova, len))
            .filter_map(|(srqn, srq)| srq.break_up().then_some(srqn))
            .collect()
    }
}

impl Device {
    /// Takes a receive of the SRQ for the peer's QP; it is then in `receiving`. Else how the requester's turn ends.
    pub(crate) fn fetch_shared(&mut self, at: QpRef, peer: QpRef) -> Result<(), Step> {
        let gone = Step::Failed(WcStatus::RETRY_EXC_ERR, Syndrome::PEER_IN_ERROR);
        let Some(function) = self.functions.at_mut(peer.place) else {
            return Err(gone);
        };
        let found = function.take_shared(peer.qpn);
        if self.diagnosis.validator.is_some() {
            let srqn = self.qp(peer).map_or(0, |qp| qp.srqn);
            self.validate_srq_posted(peer.place, srqn);
        }
        let Some(function) = self.functions.at_mut(peer.place) else {
            return Err(gone);
        };
        let Some(qp) = function.qps.find_mut(peer.qpn) else {
            return Err(gone);
        };
        let srqn = qp.srqn;
        match found {
            Found::Receive { limit_hit } => {
                if limit_hit {
                    self.event(peer.place, EventType::SRQ_LIMIT, srqn, 0);
                }
                Ok(())
            }
            Found::Nothing => {
                qp.waiter = Some(at);
                Err(Step::Hold(Hold::Receive))
            }
            Found::Broken(syndrome) => {
                self.break_srq(peer.place, srqn, syndrome);
                self.fail_qp(peer, Syndrome::SRQ_BROKEN);
                Err(gone)
            }
        }
    }

    /// The doorbell slot of an SRQ has news: receives, or a limit.
    pub(crate) fn srq_rang(&mut self, place: u32, srqn: u32) {
        let Some(function) = self.functions.at_mut(place) else {
            return;
        };
        let bar = function.bar;
        let Some(srq) = function.srqs.find_mut(srqn) else {
            return;
        };
        let line = bar.line(srq.slot);
        // EDGE sq-publish (acquire): pairs with the client's store in `ring_proto::doorbell::ring`.
        if !srq
            .queue
            .believe(line.srq_producer().load(Ordering::Acquire))
        {
            self.break_srq(place, srqn, Syndrome::DOORBELL_OUT_OF_RANGE);
            return;
        }
        // Relaxed: the dirty bits order it; a word that comes later rings again.
        let word = line.srq_limit().load(Ordering::Relaxed);
        if word != srq.limit_word {
            srq.limit_word = word;
            srq.limit = word & uar::SRQ_LIMIT_MASK;
        }
        let (limit, depth) = (srq.limit, srq.depth);
        let limit_hit = !srq.is_broken && srq.limit_hit();
        let has_receives = srq.posted() != 0;
        if self.diagnosis.validator.is_some() {
            self.validate_srq_posted(place, srqn);
            self.validate_srq_limit(place, srqn, limit, depth);
        }
        if has_receives {
            // All of them: who finds nothing left waits again, in the same order.
            while let Some(waiter) = self
                .functions
                .at_mut(place)
                .and_then(|function| function.next_waiter(srqn))
            {
                self.activate(waiter);
            }
        }
        if limit_hit {
            self.event(place, EventType::SRQ_LIMIT, srqn, 0);
        }
    }

    /// Breaks an SRQ; its QPs hear of it after the present piece of work.
    fn break_srq(&mut self, place: u32, srqn: u32, syndrome: Syndrome) {
        self.validate_srq_doorbell(place, srqn);
        let srq = self
            .functions
            .at_mut(place)
            .and_then(|function| function.srqs.find_mut(srqn));
        if srq.is_some_and(Srq::break_up) {
            self.work.broken_srqs.push((place, srqn, syndrome));
        }
    }

    /// An SRQ is of no more use: its QPs go to ERR, then the function hears of it.
    pub(crate) fn srq_broke(&mut self, place: u32, srqn: u32, syndrome: Syndrome) {
        let Some(function) = self.functions.at(place) else {
            return;
        };
        let id = function.id;
        let hit: Vec<_> = function
            .qps
            .iter()
            .filter(|(_, qp)| !qp.is_orphan && qp.srqn == srqn)
            .map(|(qpn, _)| qpn)
            .collect();
        for qpn in hit {
            let at = QpRef {
                place,
                function: id,
                qpn,
            };
            self.fail_qp(at, Syndrome::SRQ_BROKEN);
        }
        self.event(place, EventType::SRQ_ERROR, srqn, syndrome.0.into());
    }

    /// A QP went to ERR: no receive of its SRQ comes to it any more.
    pub(crate) fn last_wqe_reached(&mut self, at: QpRef) {
        if self.qp(at).is_some_and(|qp| qp.srqn != 0) {
            self.event(at.place, EventType::LAST_WQE_REACHED, at.qpn, 0);
        }
    }

    /// SRQ_CREATE.
    pub(crate) fn create_srq(
        &mut self,
        place: u32,
        wanted: SrqCreate,
    ) -> Result<Results, AdminStatus> {
        let function = self.own_mut(place)?;
        let depth = qp::depth(wanted.depth)?;
        if wanted.limit > wanted.depth {
            return Err(AdminStatus::INVALID);
        }
        if !function.is_free_for_srq(wanted.slot) {
            return Err(slot_status(wanted.slot));
        }
        let ring = function.windows.ring(wanted.ring, depth)?;
        let pd = function
            .pds
            .find_mut(wanted.pdn)
            .ok_or(AdminStatus::NO_OBJECT)?;
        let srqn = function
            .srqs
            .insert_with(|_| Srq {
                slot: wanted.slot,
                pdn: wanted.pdn,
                depth: wanted.depth,
                queue: WorkQueue::new(ring, wanted.ring),
                limit: wanted.limit,
                limit_word: 0,
                users: 0,
                waiting: VecDeque::new(),
                is_broken: false,
            })
            .ok_or(AdminStatus::NO_RESOURCE)?;
        pd.users += 1;
        function.enter_slot_as_srq(wanted.slot, srqn);
        self.srq_rang(place, srqn);
        Ok([srqn.into(), 0])
    }

    /// SRQ_MODIFY: arms the limit, or with 0 disarms it.
    pub(crate) fn modify_srq(
        &mut self,
        place: u32,
        wanted: SrqModify,
    ) -> Result<Results, AdminStatus> {
        // What the client posted before counts.
        self.srq_rang(place, wanted.srqn);
        let function = self.own_mut(place)?;
        let srq = function
            .srqs
            .find_mut(wanted.srqn)
            .ok_or(AdminStatus::NO_OBJECT)?;
        if srq.is_broken {
            return Err(AdminStatus::BAD_STATE);
        }
        if wanted.limit > srq.depth {
            return Err(AdminStatus::INVALID);
        }
        srq.limit = wanted.limit;
        if srq.limit_hit() {
            self.event(place, EventType::SRQ_LIMIT, wanted.srqn, 0);
        }
        Ok([0, 0])
    }

    /// SRQ_QUERY.
    pub(crate) fn query_srq(&mut self, place: u32, srqn: u32) -> Result<Results, AdminStatus> {
        self.srq_rang(place, srqn);
        let srq = self
            .own(place)?
            .srqs
            .find(srqn)
            .ok_or(AdminStatus::NO_OBJECT)?;
        Ok([
            u64::from(srq.depth) | u64::from(srq.limit) << 32,
            u64::from(srq.posted()) | u64::from(srq.users) << 32,
        ])
    }

    /// SRQ_DESTROY.
    pub(crate) fn destroy_srq(&mut self, place: u32, srqn: u32) -> Result<Results, AdminStatus> {
        let function = self.own_mut(place)?;
        let srq = function.srqs.find(srqn).ok_or(AdminStatus::NO_OBJECT)?;
        if srq.users != 0 {
            return Err(AdminStatus::BUSY);
        }
        let (slot, pdn) = (srq.slot, srq.pdn);
        function.srqs.remove(srqn);
        self.validate_forget_srq(place, srqn);
        let function = self.own_mut(place)?;
        function.leave_slot_as_srq(slot);
        if let Some(pd) = function.pds.find_mut(pdn) {
            pd.users -= 1;
        }
        Ok([0, 0])
    }

    /// QP_CREATE_SRQ.
    pub(crate) fn create_qp_on_srq(
        &mut self,
        place: u32,
        wanted: QpCreateSrq,
    ) -> Result<Results, AdminStatus> {
        let function = self.own(place)?;
        let srq = function
            .srqs
            .find(wanted.srqn)
            .ok_or(AdminStatus::NO_OBJECT)?;
        if srq.is_broken {
            return Err(AdminStatus::BAD_STATE);
        }
        let recv_pdn = srq.pdn;
        let create = QpCreate {
            sq_ring: wanted.sq_ring,
            rq_ring: 0,
            sq_depth: wanted.sq_depth,
            rq_depth: 0,
            pdn: wanted.pdn,
            send_cqn: wanted.send_cqn,
            recv_cqn: wanted.recv_cqn,
            slot: wanted.slot,
            holder: wanted.holder,
            access: wanted.access,
        };
        let shared = Some((wanted.srqn, recv_pdn));
        let created = self.create_qp(place, create, shared)?;
        if let Some(srq) = self.own_mut(place)?.srqs.find_mut(wanted.srqn) {
            srq.users += 1;
            // So that no message allocates later: a QP waits once.
            srq.waiting.reserve(srq.users as usize);
        }
        Ok(created)
    }
}
