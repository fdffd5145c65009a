//! The admin queue: creation and control of every object of a function.
//!
//! Place: the engine serves it when doorbell slot 0 rang; commands go from here to the file of their object.
//! Invariants: a command is read once and answered once, in order; reserved bytes must be zero; a refused command changes nothing. A
//! doorbell that cannot be true, or completions that nobody takes, fail the function: its two sides no longer agree.
//! Source: verbs and rdma_cm by name; layout docs/device.md, section "Admin commands". Hot: nothing.

use ring_proto::admin::{
    Access, AdminOp, AdminStatus, Body, CmAccept, CmConnect, CmListen, CmQuery, Command,
    Completion, CqModerate, CqResize, HOLD_LISTENER, HOLD_QP, Hold, HoldClone, MrReg, MwAlloc,
    MwBind, Named, QpCreate, QpCreateSrq, QpModify, QueueCreate, RELEASE_UNLESS_LAST, SrqCreate,
    SrqModify,
};
use ring_proto::index::Depth;
use ring_proto::regs;
use ring_proto::shared::{CommandRing, CqeRing};
use ring_proto::status::Syndrome;
use ring_proto::sync::Ordering;
use ring_proto::uar;
use zerocopy::IntoBytes;

use super::Device;
use super::cq::Cq;
use super::eq::EQN;
use super::function::{CompletionUse, Function, Pd};
use super::modify::Refused;
use super::mr::Mr;
use super::qp::{self, NewQp, Qp, QpRef, WorkQueue};
use super::recorder::{Event, What};

/// Commands of one function in one round.
const COMMANDS_PER_ROUND: u32 = 32;

/// What a command gives back.
pub(crate) type Results = [u64; 2];

/// Nothing to give back.
const DONE: Results = [0, 0];

/// The admin rings of a started function.
#[derive(Debug)]
pub(crate) struct AdminRings {
    commands: CommandRing,
    completions: CqeRing,
    bases: [u64; 2],
    producer: u32,
    consumer: u32,
    completed: u32,
    cached_taken: u32,
    /// The last round ended with commands left.
    pub(crate) has_more: bool,
}

impl AdminRings {
    /// Opens the rings that the registers name.
    pub(crate) fn open(
        function: &mut Function,
        sq_base: u64,
        cq_base: u64,
        depth: u32,
    ) -> Result<Self, AdminStatus> {
        let depth = Depth::new(depth)
            .filter(|depth| depth.entries() <= regs::ADMIN_DEPTH_LIMIT)
            .ok_or(AdminStatus::INVALID)?;
        let commands = function.windows.ring(sq_base, depth)?;
        let completions = function.windows.ring(cq_base, depth)?;
        let line = function.bar.line(uar::ADMIN_SLOT);
        // Relaxed: the client rings only after it has read back the status.
        line.sq_producer().store(0, Ordering::Relaxed);
        line.cq_consumer().store(0, Ordering::Relaxed);
        Ok(Self {
            commands,
            completions,
            bases: [sq_base, cq_base],
            producer: 0,
            consumer: 0,
            completed: 0,
            cached_taken: 0,
            has_more: false,
        })
    }

    /// Whether a ring lies in a window.
    pub(crate) fn is_inside(&self, iova: u64, len: u64) -> bool {
        self.bases
            .iter()
            .any(|&base| base >= iova && base - iova < len)
    }
}

impl Device {
    /// Serves commands of a function for one round; returns how many.
    pub(crate) fn serve_admin(&mut self, place: u32) -> u64 {
        let mut served = 0;
        for _ in 0..COMMANDS_PER_ROUND {
            let Some(function) = self.functions.at_mut(place) else {
                return served;
            };
            let bar = function.bar;
            let Some(admin) = &mut function.admin else {
                return served;
            };
            admin.has_more = false;
            if admin.consumer == admin.producer {
                // EDGE sq-publish (acquire): pairs with the client's store in `ring_proto::doorbell::ring`.
                let claimed = bar
                    .line(uar::ADMIN_SLOT)
                    .sq_producer()
                    .load(Ordering::Acquire);
                let depth = admin.commands.depth();
                if !depth.accepts_producer(claimed, admin.producer, admin.consumer) {
                    let lie = (claimed, admin.producer, admin.consumer, depth.entries());
                    self.validate_admin_doorbell(place, lie);
                    self.work
                        .failing
                        .push((place, Syndrome::DOORBELL_OUT_OF_RANGE));
                    return served;
                }
                admin.producer = claimed;
                if admin.consumer == admin.producer {
                    return served;
                }
            }
            let command: Command = zerocopy::transmute!(admin.commands.snapshot(admin.consumer));
            admin.consumer = admin.consumer.wrapping_add(1);
            let position = admin.consumer;
            let (status, result) = match self.answer_admin(place, &command) {
                Ok(result) => (AdminStatus::OK, result),
                Err(refused) => (refused.status, [refused.refusal.pack(), 0]),
            };
            let answered = Event {
                number: command.command_id,
                index: position,
                code: command.opcode,
                status: status.0,
                what: What::Admin,
                ..Event::default()
            };
            self.record(place, answered);
            served += 1;
            self.complete_admin(place, command.command_id, status, result, position);
        }
        if let Some(admin) = self
            .functions
            .at_mut(place)
            .and_then(|function| function.admin.as_mut())
        {
            admin.has_more = true;
        }
        served
    }

    fn complete_admin(
        &mut self,
        place: u32,
        command_id: u32,
        status: AdminStatus,
        result: Results,
        position: u32,
    ) {
        let Some(function) = self.functions.at_mut(place) else {
            return;
        };
        let bar = function.bar;
        let Some(admin) = &mut function.admin else {
            return;
        };
        let depth = admin.completions.depth();
        if depth.free(admin.completed, admin.cached_taken) == 0 {
            // Acquire: the element is written again only behind the client's reading of it.
            let claimed = bar
                .line(uar::ADMIN_SLOT)
                .cq_consumer()
                .load(Ordering::Acquire);
            let taken = claimed.wrapping_sub(admin.cached_taken);
            if taken == 0 || taken > admin.completed.wrapping_sub(admin.cached_taken) {
                self.work.failing.push((place, Syndrome::CQ_OVERRUN));
                return;
            }
            admin.cached_taken = claimed;
        }
        let completion = Completion {
            command_id,
            status: status.0,
            reserved: 0,
            result,
            publish: u64::from(position) | u64::from(depth.phase(admin.completed)) << 56,
        };
        // EDGE cqe-publish (release): in `ring_proto::ring::publish`.
        admin
            .completions
            .publish(admin.completed, &zerocopy::transmute!(completion));
        admin.completed = admin.completed.wrapping_add(1);
    }

    /// Executes a command; one that is refused with more than a status says so here.
    fn answer_admin(&mut self, place: u32, command: &Command) -> Result<Results, Refused> {
        if command.flags != 0 {
            return Err(INVALID.into());
        }
        match AdminOp(command.opcode) {
            AdminOp::QP_MODIFY => {
                let wanted = QpModify::from_body(&command.body).ok_or(INVALID)?;
                let at = self.living_qp(place, wanted.qpn)?;
                self.modify_qp(at, &wanted).map(|()| DONE)
            }
            AdminOp::CQ_RESIZE => {
                let wanted = CqResize::from_body(&command.body).ok_or(INVALID)?;
                self.resize_cq(place, wanted).map(|()| DONE)
            }
            AdminOp::CQ_MODERATE => {
                let wanted = CqModerate::from_body(&command.body).ok_or(INVALID)?;
                self.moderate_cq(place, wanted).map(|()| DONE)
            }
            _ => Ok(self.execute_admin(place, command)?),
        }
    }

    fn execute_admin(&mut self, place: u32, command: &Command) -> Result<Results, AdminStatus> {
        let body = &command.body;
        let op = AdminOp(command.opcode);
        self.may_execute(place, op)?;
        match op {
            AdminOp::IDENTIFY => {
                self.no_body(body)?;
                let function = self.own(place)?;
                let id = u64::from(function.id.0) | u64::from(function.node.0) << 32;
                Ok([id, self.cookie])
            }
            AdminOp::STATS => {
                self.no_body(body)?;
                let function = self.own(place)?;
                Ok([function.wqes, function.tx_bytes])
            }
            AdminOp::PD_ALLOC => {
                self.no_body(body)?;
                let pdn = self.own_mut(place)?.pds.insert_with(|_| Pd::default());
                Ok([pdn.ok_or(AdminStatus::NO_RESOURCE)?.into(), 0])
            }
            AdminOp::PD_FREE => self.free_pd(place, named(body)?),
            AdminOp::MR_REG => self.register_mr(place, MrReg::from_body(body).ok_or(INVALID)?),
            AdminOp::MR_DEREG => self.deregister_mr(place, named(body)?),
            AdminOp::MW_ALLOC => self.alloc_mw(place, MwAlloc::from_body(body).ok_or(INVALID)?),
            AdminOp::MW_DEALLOC => self.dealloc_mw(place, named(body)?),
            AdminOp::MW_BIND => self.bind_mw(place, MwBind::from_body(body).ok_or(INVALID)?),
            AdminOp::CQ_CREATE => {
                self.create_cq(place, QueueCreate::from_body(body).ok_or(INVALID)?)
            }
            AdminOp::CQ_DESTROY => self.destroy_cq(place, named(body)?),
            AdminOp::EQ_CREATE => {
                self.create_eq(place, QueueCreate::from_body(body).ok_or(INVALID)?)
            }
            AdminOp::EQ_DESTROY => self.destroy_eq(place, named(body)?),
            AdminOp::QP_CREATE => {
                self.create_qp(place, QpCreate::from_body(body).ok_or(INVALID)?, None)
            }
            AdminOp::QP_CREATE_SRQ => {
                self.create_qp_on_srq(place, QpCreateSrq::from_body(body).ok_or(INVALID)?)
            }
            AdminOp::SRQ_CREATE => {
                self.create_srq(place, SrqCreate::from_body(body).ok_or(INVALID)?)
            }
            AdminOp::SRQ_MODIFY => {
                self.modify_srq(place, SrqModify::from_body(body).ok_or(INVALID)?)
            }
            AdminOp::SRQ_QUERY => self.query_srq(place, named(body)?),
            AdminOp::SRQ_DESTROY => self.destroy_srq(place, named(body)?),
            AdminOp::QP_QUERY_ATTR => self.query_attributes(self.living_qp(place, named(body)?)?),
            AdminOp::QP_QUERY => self.query_qp(place, named(body)?),
            AdminOp::QP_DESTROY => {
                let at = self.qp_ref(place, named(body)?)?;
                self.destroy_qp(at);
                Ok(DONE)
            }
            AdminOp::CM_LISTEN => self.listen(place, CmListen::from_body(body).ok_or(INVALID)?),
            AdminOp::CM_UNLISTEN => self.unlisten(place, named(body)?),
            AdminOp::CM_CONNECT => self.connect(place, CmConnect::from_body(body).ok_or(INVALID)?),
            AdminOp::CM_CANCEL => self.cancel(place, named(body)?),
            AdminOp::CM_ACCEPT => self.accept(place, CmAccept::from_body(body).ok_or(INVALID)?),
            AdminOp::CM_REJECT => self.reject(place, CmAccept::from_body(body).ok_or(INVALID)?),
            AdminOp::CM_QUERY => self.query_cm(place, CmQuery::from_body(body).ok_or(INVALID)?),
            AdminOp::CM_DISCONNECT => {
                let at = self.living_qp(place, named(body)?)?;
                self.connected_peer(at).ok_or(AdminStatus::BAD_STATE)?;
                self.disconnect(at);
                Ok(DONE)
            }
            AdminOp::HOLD => self.hold_object(place, Hold::from_body(body).ok_or(INVALID)?),
            AdminOp::HOLD_CLONE => {
                let from = HoldClone::from_body(body).ok_or(INVALID)?.from;
                let (slot, generation) = self.clone_holder(place, from)?;
                Ok([u64::from(slot) | u64::from(generation) << 32, 0])
            }
            AdminOp::LINK_QUERY => self.query_link(place, named(body)?),
            AdminOp::CALL_FAULT => self.ask_call_fault(place, named(body)?),
            AdminOp::RELEASE => self.release_object(place, Hold::from_body(body).ok_or(INVALID)?),
            _ => Err(AdminStatus::UNSUPPORTED),
        }
    }

    #[expect(
        clippy::unused_self,
        reason = "reads as the other checks of `execute_admin` do"
    )]
    fn no_body(&self, body: &Body) -> Result<(), AdminStatus> {
        if body.as_bytes().iter().all(|&byte| byte == 0) {
            Ok(())
        } else {
            Err(INVALID)
        }
    }

    pub(crate) fn own(&self, place: u32) -> Result<&Function, AdminStatus> {
        self.functions.at(place).ok_or(AdminStatus::NO_OBJECT)
    }

    pub(crate) fn own_mut(&mut self, place: u32) -> Result<&mut Function, AdminStatus> {
        self.functions.at_mut(place).ok_or(AdminStatus::NO_OBJECT)
    }

    /// A QP of the function, by number.
    fn qp_ref(&self, place: u32, qpn: u32) -> Result<QpRef, AdminStatus> {
        let function = self.own(place)?;
        function.qps.find(qpn).ok_or(AdminStatus::NO_OBJECT)?;
        Ok(QpRef {
            place,
            function: function.id,
            qpn,
        })
    }

    /// A QP of the function that is no orphan.
    pub(crate) fn living_qp(&self, place: u32, qpn: u32) -> Result<QpRef, AdminStatus> {
        let at = self.qp_ref(place, qpn)?;
        match self.qp(at) {
            Some(qp) if !qp.is_orphan => Ok(at),
            _ => Err(AdminStatus::NO_OBJECT),
        }
    }

    fn free_pd(&mut self, place: u32, pdn: u32) -> Result<Results, AdminStatus> {
        let pds = &mut self.own_mut(place)?.pds;
        match pds.find(pdn).ok_or(AdminStatus::NO_OBJECT)?.users {
            0 => {
                pds.remove(pdn);
                Ok(DONE)
            }
            _ => Err(AdminStatus::BUSY),
        }
    }

    fn register_mr(&mut self, place: u32, wanted: MrReg) -> Result<Results, AdminStatus> {
        let function = self.own_mut(place)?;
        let access = Access::from_bits(wanted.access).ok_or(INVALID)?;
        // Source: ibv_reg_mr: a region that peers may change must be writable locally.
        if access.intersects(Access::REMOTE_WRITE | Access::REMOTE_ATOMIC)
            && !access.contains(Access::LOCAL_WRITE)
        {
            return Err(INVALID);
        }
        if wanted.len == 0 || wanted.addr.checked_add(wanted.len).is_none() {
            return Err(INVALID);
        }
        function
            .pds
            .find(wanted.pdn)
            .ok_or(AdminStatus::NO_OBJECT)?;
        if wanted.owner_qpn != 0 {
            let owner = function
                .qps
                .find(wanted.owner_qpn)
                .ok_or(AdminStatus::NO_OBJECT)?;
            if owner.pdn != wanted.pdn {
                return Err(INVALID);
            }
        }
        let found = function
            .windows
            .find(wanted.addr, wanted.len)
            .ok_or(AdminStatus::BAD_ADDRESS)?;
        if access.contains(Access::LOCAL_WRITE) && !found.write {
            return Err(AdminStatus::NO_ACCESS);
        }
        let key = function
            .regions
            .table
            .insert_with(|_| Mr {
                iova: wanted.addr,
                len: wanted.len,
                pdn: wanted.pdn,
                access,
                owner_qpn: wanted.owner_qpn,
                memory: found.memory,
                windows: 0,
                is_invalidated: false,
            })
            .ok_or(AdminStatus::NO_RESOURCE)?;
        if let Some(pd) = function.pds.find_mut(wanted.pdn) {
            pd.users += 1;
        }
        Ok([u64::from(key) | u64::from(key) << 32, 0])
    }

    fn deregister_mr(&mut self, place: u32, key: u32) -> Result<Results, AdminStatus> {
        let function = self.own_mut(place)?;
        let table = &mut function.regions.table;
        if table.find(key).is_some_and(|mr| mr.windows != 0) {
            return Err(AdminStatus::BUSY);
        }
        let mr = table.remove(key).ok_or(AdminStatus::NO_OBJECT)?;
        if let Some(pd) = function.pds.find_mut(mr.pdn) {
            pd.users -= 1;
        }
        self.validate_deregistered(place, key);
        Ok(DONE)
    }

    fn create_cq(&mut self, place: u32, wanted: QueueCreate) -> Result<Results, AdminStatus> {
        let function = self.own_mut(place)?;
        let depth = qp::depth(wanted.depth)?;
        if !function.is_free_for_completions(wanted.slot) {
            return Err(slot_status(wanted.slot));
        }
        let ring: CqeRing = function.windows.ring(wanted.ring, depth)?;
        let cqn = function
            .cqs
            .insert_with(|_| Cq::new(ring, wanted.ring, wanted.slot))
            .ok_or(AdminStatus::NO_RESOURCE)?;
        function.enter_slot_as(wanted.slot, CompletionUse::Cq);
        // So that no completion allocates later: at most one entry per queue, and one per EQ.
        let queues = self
            .functions
            .iter()
            .map(|(_, function)| function.cqs.len() + 1)
            .sum::<usize>();
        self.work.fire.reserve(queues);
        self.work.delayed.reserve(queues);
        Ok([cqn.into(), 0])
    }

    fn destroy_cq(&mut self, place: u32, cqn: u32) -> Result<Results, AdminStatus> {
        let function = self.own_mut(place)?;
        let cq = function.cqs.find(cqn).ok_or(AdminStatus::NO_OBJECT)?;
        if cq.users != 0 {
            return Err(AdminStatus::BUSY);
        }
        let slot = cq.slot;
        function.cqs.remove(cqn);
        function.leave_slot_as_completions(slot);
        self.validate_forget_cq(place, cqn);
        Ok(DONE)
    }

    fn create_eq(&mut self, place: u32, wanted: QueueCreate) -> Result<Results, AdminStatus> {
        let function = self.own_mut(place)?;
        let depth = qp::depth(wanted.depth)?;
        if function.events.slot().is_some() {
            return Err(AdminStatus::BUSY);
        }
        if !function.is_free_for_completions(wanted.slot) {
            return Err(slot_status(wanted.slot));
        }
        let ring = function.windows.ring(wanted.ring, depth)?;
        function.enter_slot_as(wanted.slot, CompletionUse::Eq);
        function.events.open(ring, wanted.ring, wanted.slot);
        // What happened before there was a queue.
        self.deliver_events(place);
        Ok([EQN.into(), 0])
    }

    fn destroy_eq(&mut self, place: u32, eqn: u32) -> Result<Results, AdminStatus> {
        let function = self.own_mut(place)?;
        let slot = function
            .events
            .slot()
            .filter(|_| eqn == EQN)
            .ok_or(AdminStatus::NO_OBJECT)?;
        function.events.close();
        function.leave_slot_as_completions(slot);
        Ok(DONE)
    }

    /// QP_CREATE; with an SRQ and the protection domain of its receives in place of the RQ also QP_CREATE_SRQ.
    pub(crate) fn create_qp(
        &mut self,
        place: u32,
        wanted: QpCreate,
        shared: Option<(u32, u32)>,
    ) -> Result<Results, AdminStatus> {
        let function = self.own_mut(place)?;
        let sq_depth = qp::depth(wanted.sq_depth)?;
        let rq_depth = match shared {
            Some(_) => None,
            None => Some(qp::depth(wanted.rq_depth)?),
        };
        let access = Access::from_bits(wanted.access).ok_or(INVALID)?;
        if !function.is_free_for_qp(wanted.slot) {
            return Err(slot_status(wanted.slot));
        }
        if !function.holders.is_live(wanted.holder) {
            return Err(AdminStatus::NO_OBJECT);
        }
        function
            .pds
            .find(wanted.pdn)
            .ok_or(AdminStatus::NO_OBJECT)?;
        for cqn in [wanted.send_cqn, wanted.recv_cqn] {
            let cq = function.cqs.find(cqn).ok_or(AdminStatus::NO_OBJECT)?;
            if cq.is_broken {
                return Err(AdminStatus::BAD_STATE);
            }
        }
        let sq = function.windows.ring(wanted.sq_ring, sq_depth)?;
        let rq = match rq_depth {
            Some(depth) => WorkQueue::new(
                function.windows.ring(wanted.rq_ring, depth)?,
                wanted.rq_ring,
            ),
            None => WorkQueue::none(),
        };
        let (srqn, recv_pdn) = shared.unwrap_or((0, wanted.pdn));
        let new = NewQp {
            slot: wanted.slot,
            pdn: wanted.pdn,
            access,
            send_cqn: wanted.send_cqn,
            recv_cqn: wanted.recv_cqn,
            sq: WorkQueue::new(sq, wanted.sq_ring),
            rq,
            srqn,
            recv_pdn,
            holder: wanted.holder,
        };
        let qpn = function
            .qps
            .insert_with(|_| Box::new(Qp::new(new)))
            .ok_or(AdminStatus::NO_RESOURCE)?;
        if let Some(pd) = function.pds.find_mut(wanted.pdn) {
            pd.users += 1;
        }
        for cqn in [wanted.send_cqn, wanted.recv_cqn] {
            if let Some(cq) = function.cqs.find_mut(cqn) {
                cq.users += 1;
            }
        }
        function.enter_slot_as_qp(wanted.slot, qpn);
        // So that no doorbell allocates later: a QP stands on the list once.
        let qps = self
            .functions
            .iter()
            .map(|(_, function)| function.qps.len())
            .sum::<usize>();
        self.work.active.reserve(qps);
        Ok([qpn.into(), 0])
    }

    fn query_qp(&self, place: u32, qpn: u32) -> Result<Results, AdminStatus> {
        let at = self.qp_ref(place, qpn)?;
        let qp = self.qp(at).ok_or(AdminStatus::NO_OBJECT)?;
        let (peer_function, peer_qpn) = qp.peer.map_or((0, 0), |peer| (peer.function.0, peer.qpn));
        Ok([
            u64::from(qp.state.0) | u64::from(qp.is_draining) << 8 | u64::from(peer_qpn) << 32,
            u64::from(peer_function) | u64::from(qp.holders.count()) << 32,
        ])
    }

    fn hold_object(&mut self, place: u32, wanted: Hold) -> Result<Results, AdminStatus> {
        let function = self.own_mut(place)?;
        if !function.holders.is_live(wanted.slot) {
            return Err(AdminStatus::NO_OBJECT);
        }
        match wanted.kind {
            HOLD_QP => {
                let at = self.living_qp(place, wanted.id)?;
                let qp = self.qp_mut(at).ok_or(AdminStatus::NO_OBJECT)?;
                if wanted.flags == 0 {
                    qp.holders.add(wanted.slot);
                    return Ok(DONE);
                }
                if qp.listener != Some(wanted.flags) {
                    return Err(AdminStatus::BAD_STATE);
                }
                qp.listener = None;
                qp.holders.add(wanted.slot);
                if let Some(listener) = self.own_mut(place)?.listeners.find_mut(wanted.flags) {
                    listener.held.retain(|&held| held != wanted.id);
                }
                Ok(DONE)
            }
            HOLD_LISTENER if wanted.flags == 0 => {
                function
                    .listeners
                    .find_mut(wanted.id)
                    .ok_or(AdminStatus::NO_OBJECT)?
                    .holders
                    .add(wanted.slot);
                Ok(DONE)
            }
            _ => Err(INVALID),
        }
    }

    fn release_object(&mut self, place: u32, wanted: Hold) -> Result<Results, AdminStatus> {
        if wanted.flags & !RELEASE_UNLESS_LAST != 0 {
            return Err(INVALID);
        }
        let holders = match wanted.kind {
            HOLD_QP => {
                let at = self.living_qp(place, wanted.id)?;
                self.qp(at).map(|qp| &qp.holders)
            }
            HOLD_LISTENER => self
                .own(place)?
                .listeners
                .find(wanted.id)
                .map(|listener| &listener.holders),
            _ => return Err(INVALID),
        }
        .filter(|holders| holders.contains(wanted.slot))
        .ok_or(AdminStatus::NO_OBJECT)?;
        if wanted.flags == RELEASE_UNLESS_LAST && holders.count() == 1 {
            return Err(AdminStatus::BUSY);
        }
        let left = if wanted.kind == HOLD_QP {
            let at = self.living_qp(place, wanted.id)?;
            self.release_qp(at, wanted.slot)
        } else {
            self.release_listener(place, wanted.id, wanted.slot)
        };
        Ok([left.ok_or(AdminStatus::NO_OBJECT)?.into(), 0])
    }
}

const INVALID: AdminStatus = AdminStatus::INVALID;

/// The number in a body that names one object.
fn named(body: &Body) -> Result<u32, AdminStatus> {
    Named::from_body(body).map(|named| named.id).ok_or(INVALID)
}

/// Why a doorbell slot cannot be taken.
pub(crate) fn slot_status(slot: u32) -> AdminStatus {
    if (1..uar::SLOTS).contains(&slot) {
        AdminStatus::BUSY
    } else {
        INVALID
    }
}
