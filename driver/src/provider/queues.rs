//! Queues of a companion socket: QP, CQ and the memory of their rings, made, kept for the next life of the record, taken away.
//!
//! Place: `bind`, `connect` and `accept` give a socket its queues, `socket` ends them with it, `data` and `completing` use the rings.
//! Invariants: changed under the function's lock only. A free record may keep its queues: the QP then stands in INIT, unconnected,
//! its CQ is empty and no event about it is under way, so that the next socket of the record needs no command at all. They are kept
//! only while one process holds the QP: before a fork, which would give the child a hold on it, all of them go. DEVIATION: so a node has
//! queue pairs without a connection.
//! Hot: the views of the rings. Source: ours; verbs applications recycle queue pairs by RESET for the same reason.

use ring_proto::admin::{
    Access, AdminOp, AdminStatus, Body, Named, QpAttributes, QpCreate, QpModify, QueueCreate,
};
use ring_proto::index::Depth;
use ring_proto::shared::{CqeRing, WqeRing};
use ring_proto::status::QpState;
use ring_proto::sync::Ordering;

use super::events;
use super::socket::Sock;
use super::table::{KEY_QP, socket_record};
use crate::error::AdminError;
use crate::function::{Locked, low};
use crate::lock::Identity;
use crate::record::{self, ARENA_IOVA, Socket};
use crate::wsa::WsaError;

/// SQ blocks: 16 WQEs of four blocks and the fillers between them always fit.
const SQ_DEPTH: u32 = 128;
const RQ_DEPTH: u32 = record::RECV_PLACES;
/// CQ entries: more than operations can be outstanding, so it never overruns.
const CQ_DEPTH: u32 = 128;
const RQ_OFFSET: u64 = SQ_DEPTH as u64 * 64;
const CQ_OFFSET: u64 = RQ_OFFSET + RQ_DEPTH as u64 * 64;
/// Scratch for one `CmRecord`.
const SCRATCH_OFFSET: u64 = CQ_OFFSET + CQ_DEPTH as u64 * 32;
const MEMORY_LEN: u64 = SCRATCH_OFFSET + 320;
/// Free sockets of a function that keep their queues.
const SPARES: u32 = 128;

/// How many free sockets keep their queues on a NIC that has so many QPs: where these are few, other processes of the node want them.
pub(crate) const fn spare_limit(qps: u64) -> u32 {
    if qps < 8 * SPARES as u64 { 0 } else { SPARES }
}

/// Who will hold a socket's QP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Holder {
    /// This process, from now on.
    Process,
    /// The listener that accepts with it.
    Listener,
}

impl Sock<'_> {
    #[inline]
    fn memory(&self) -> Option<u64> {
        // Relaxed: set before the state that allows its use; taken away under the tokens.
        match self.record.memory.load(Ordering::Relaxed) {
            0 => None,
            memory => Some(memory),
        }
    }

    #[inline]
    pub(crate) fn send_ring(&self) -> Option<WqeRing> {
        self.function
            .arena()
            .ring(self.memory()?, const { Depth::new(SQ_DEPTH).unwrap() })
    }

    #[inline]
    pub(crate) fn recv_ring(&self) -> Option<WqeRing> {
        let offset = self.memory()? + RQ_OFFSET;
        self.function
            .arena()
            .ring(offset, const { Depth::new(RQ_DEPTH).unwrap() })
    }

    #[inline]
    pub(crate) fn completion_ring(&self) -> Option<CqeRing> {
        let offset = self.memory()? + CQ_OFFSET;
        self.function
            .arena()
            .ring(offset, const { Depth::new(CQ_DEPTH).unwrap() })
    }

    /// Offset of the scratch record.
    pub(crate) fn scratch(&self) -> Option<u64> {
        Some(self.memory()? + SCRATCH_OFFSET)
    }
}

impl<'a> Locked<'a> {
    /// Gives a socket its QP (in INIT) and CQ: those that the record kept, or new ones.
    pub(crate) fn make_queues(
        &mut self,
        sock: &Sock<'_>,
        holder: Holder,
    ) -> Result<(), AdminError> {
        if self.take_spare(sock, holder) {
            return Ok(());
        }
        let function = self.function;
        let no_memory = AdminError::Refused {
            op: AdminOp::QP_CREATE,
            status: AdminStatus::NO_RESOURCE,
        };
        let memory = self.alloc_or_sweep(MEMORY_LEN).ok_or(no_memory)?;
        function.arena().zero(memory, MEMORY_LEN);
        function.clear_line(sock.qp_slot());
        function.clear_line(sock.cq_slot());
        let made = self.make_queues_in(sock, memory);
        if made.is_err() {
            self.destroy_queues(sock);
            self.free(memory, MEMORY_LEN);
        }
        made
    }

    fn make_queues_in(&mut self, sock: &Sock<'_>, memory: u64) -> Result<(), AdminError> {
        let record = sock.record;
        let iova = ARENA_IOVA + memory;
        let queue = QueueCreate {
            ring: iova + CQ_OFFSET,
            depth: CQ_DEPTH,
            slot: sock.cq_slot(),
        };
        let [cqn, _] = self.admin(AdminOp::CQ_CREATE, queue.to_body())?;
        record.cqn.store(low(cqn), Ordering::Relaxed);
        record.cq_consumer.store(0, Ordering::Relaxed);
        let create = QpCreate {
            sq_ring: iova,
            rq_ring: iova + RQ_OFFSET,
            sq_depth: SQ_DEPTH,
            rq_depth: RQ_DEPTH,
            pdn: self.function.header().pdn.load(Ordering::Relaxed),
            send_cqn: low(cqn),
            recv_cqn: low(cqn),
            slot: sock.qp_slot(),
            holder: Identity::slot_of(self.function.identity().word()),
            access: Access::all().bits(),
        };
        let [qpn, _] = self.admin(AdminOp::QP_CREATE, create.to_body())?;
        record.qpn.store(low(qpn), Ordering::Relaxed);
        self.admin_all(&[state_command(low(qpn), QpState::INIT)])?;
        record.memory.store(memory, Ordering::Relaxed);
        self.enter(sock, KEY_QP | u64::from(low(qpn)));
        Ok(())
    }

    /// Empties a QP and makes it ready to connect.
    pub(crate) fn restart_qp(&mut self, qpn: u32) -> Result<(), AdminError> {
        self.admin_all(&[
            state_command(qpn, QpState::RESET),
            state_command(qpn, QpState::INIT),
        ])
    }

    /// Takes the queues that the record kept, if this socket may have them.
    fn take_spare(&mut self, sock: &Sock<'_>, holder: Holder) -> bool {
        let record = sock.record;
        let function = self.function;
        let qpn = record.spare_qpn.load(Ordering::Relaxed);
        if qpn == 0 {
            return false;
        }
        let owner = record.spare_owner.load(Ordering::Relaxed);
        let is_ours = owner == function.identity().word();
        // The device ended the QP together with its last holder.
        if !is_ours && (holder == Holder::Process || !function.is_alive(owner)) {
            self.drop_spare(sock);
            return false;
        }
        self.count_spare(record, 0);
        // A vector armed in the last life would only wake somebody for nothing.
        let line = function.bar().line(sock.cq_slot());
        line.arm_vectors().store(0, Ordering::Relaxed);
        record.qpn.store(qpn, Ordering::Relaxed);
        self.enter(sock, KEY_QP | u64::from(qpn));
        true
    }

    /// Ends the connection of a socket that is being closed: its QP, and the peer's access to its memory. True when the queues may
    /// be kept.
    pub(crate) fn end_connection(&mut self, sock: &Sock<'a>) -> bool {
        let record = sock.record;
        let qpn = record.qpn.swap(0, Ordering::Relaxed);
        let mut commands: Vec<(AdminOp, Body)> = Vec::new();
        let keeps_queues = qpn != 0 && self.may_keep(sock);
        if keeps_queues {
            commands.push(state_command(qpn, QpState::RESET));
            commands.push(state_command(qpn, QpState::INIT));
        } else if qpn != 0 {
            commands.push(named(AdminOp::QP_DESTROY, qpn));
        }
        commands.extend(self.revocations(sock));
        // A dead device has no queues and no regions left.
        let is_done = self.admin_all(&commands).is_ok();
        if keeps_queues && !is_done {
            record.qpn.store(qpn, Ordering::Relaxed);
        }
        keeps_queues && is_done
    }

    fn may_keep(&self, sock: &Sock<'_>) -> bool {
        let header = self.function.header();
        let has_room =
            header.spares.load(Ordering::Relaxed) < header.spare_limit.load(Ordering::Relaxed);
        // The listener's QP ends with the listener; what failed by itself may have a broken CQ.
        has_room
            && sock.record.untaken.load(Ordering::Relaxed) == 0
            && matches!(sock.sticky(), None | Some(WsaError::ConnReset))
    }

    /// Leaves the queues to the next socket of the record. Everything that came before its RESET is drained.
    pub(crate) fn keep_queues(&mut self, sock: &Sock<'_>, qpn: u32) {
        // Events about this QP may still lie in the queue; its next life must not get them.
        events::file(self);
        self.leave(sock);
        self.count_spare(sock.record, qpn);
        let me = self.function.identity().word();
        sock.record.spare_owner.store(me, Ordering::Relaxed);
    }

    fn count_spare(&mut self, record: &Socket, qpn: u32) {
        let before = record.spare_qpn.swap(qpn, Ordering::Relaxed);
        let spares = &self.function.header().spares;
        let rest = spares
            .load(Ordering::Relaxed)
            .saturating_sub(u32::from(before != 0));
        spares.store(rest + u32::from(qpn != 0), Ordering::Relaxed);
    }

    /// Destroys the queues that a record kept.
    fn drop_spare(&mut self, sock: &Sock<'_>) {
        let qpn = sock.record.spare_qpn.load(Ordering::Relaxed);
        self.count_spare(sock.record, 0);
        sock.record.qpn.store(qpn, Ordering::Relaxed);
        self.destroy_queues(sock);
        self.free_memory(sock);
    }

    /// Destroys all kept queues, before a second process gets a hold on them.
    pub(crate) fn drop_spares(&mut self) {
        let function = self.function;
        // Bounded: a list that somebody wrote over may be a circle.
        for _ in 0..record::SOCKET_COUNT {
            let Some(index) = self.pop_free(&function.header().spare_free) else {
                return;
            };
            if let Some(record) = socket_record(function, index) {
                self.drop_spare(&Sock::unnamed(function, record, index));
                self.free_record(record, index);
            }
        }
    }

    /// Destroys QP and CQ. The memory stays the caller's.
    fn destroy_queues(&mut self, sock: &Sock<'_>) {
        let ends = [
            (AdminOp::QP_DESTROY, &sock.record.qpn),
            (AdminOp::CQ_DESTROY, &sock.record.cqn),
        ];
        let commands: Vec<_> = ends
            .into_iter()
            .map(|(op, number)| (op, number.swap(0, Ordering::Relaxed)))
            .filter(|&(_, id)| id != 0)
            .map(|(op, id)| named(op, id))
            .collect();
        match self.admin_all(&commands) {
            Ok(()) | Err(_) => {} // A dead device has no queues left.
        }
    }

    /// Takes QP, CQ and their memory away from a socket; nobody may be posting or polling.
    pub(crate) fn take_queues(&mut self, sock: &Sock<'_>) {
        if sock.record.spare_qpn.load(Ordering::Relaxed) != 0 {
            self.drop_spare(sock);
            return;
        }
        self.destroy_queues(sock);
        // Events about this QPN may still lie in the queue; the next QP of that number must not get them.
        events::file(self);
        if sock.record.key.load(Ordering::Relaxed) & KEY_QP != 0 {
            self.leave(sock);
        }
        self.free_memory(sock);
    }

    fn free_memory(&mut self, sock: &Sock<'_>) {
        let memory = sock.record.memory.swap(0, Ordering::Relaxed);
        if memory != 0 {
            self.free(memory, MEMORY_LEN);
        }
    }
}

fn named(op: AdminOp, id: u32) -> (AdminOp, Body) {
    (op, Named { id, reserved: 0 }.to_body())
}

fn state_command(qpn: u32, state: QpState) -> (AdminOp, Body) {
    // A socket outlasts any outage: the switch alone decides when to give up.
    let is_init = state == QpState::INIT;
    let modify = QpModify {
        qpn,
        state: state.0.into(),
        attributes: if is_init {
            QpAttributes::RETRY_UNLIMITED.bits()
        } else {
            0
        },
        retry_unlimited: is_init.into(),
        ..Default::default()
    };
    (AdminOp::QP_MODIFY, modify.to_body())
}
