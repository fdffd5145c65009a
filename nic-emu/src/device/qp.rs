//! Queue pairs as the device knows them: queues, state, peer, holders.
//!
//! Place: `serve` works on a QP's send queue, `life` changes its state, `transfer` takes its receives.
//! Invariants: two QPs are connected when each names the other; a QP names its peer by function, place and number, and all three must
//! still fit. A doorbell is believed only between what was posted before and one depth ahead of what was fetched.
//! Hot: [`Qp::refresh`], [`Qp::fetch_receive`], the look-ups. Edges: sq-publish. Source: verbs QP; layout docs/device.md.
//! Leaves out: SQE (no unconnected transport); SRQs have `srq`.

use ring_proto::admin::{Access, AdminStatus, CmRecord, MAX_RD_ATOMIC};
use ring_proto::ids::FunctionId;
use ring_proto::index::Depth;
use ring_proto::shared::{Bar2, WqeRing};
use ring_proto::status::{Opcode, QpState, Syndrome, WcOpcode, WcStatus};
use ring_proto::sync::Ordering;

use super::Device;
use super::counters::PacketCounters;
use super::cq::Completed;
use super::holder::Holders;
use super::packet::{Ends, Transport};
use super::queue::{self, RecvWork, SendWork};
use super::timer::TimerKey;
use super::transfer::Hold;

/// Most QPs of a function.
pub(crate) const QP_LIMIT: u32 = 32_767;
/// `rnr_retry` that means without end.
pub(crate) const RNR_FOREVER: u8 = 7;

/// Names a QP of any function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct QpRef {
    pub(crate) place: u32,
    pub(crate) function: FunctionId,
    pub(crate) qpn: u32,
}

/// One work queue as the device knows it.
#[derive(Debug)]
pub(crate) struct WorkQueue {
    /// `None` when its window went, its doorbell lied, or the QP is an orphan.
    pub(crate) ring: Option<WqeRing>,
    /// IOVA of the ring, to know when its window goes.
    pub(crate) iova: u64,
    /// Position of the next WQE to fetch.
    pub(crate) consumer: u32,
    /// Latest believable doorbell.
    pub(crate) producer: u32,
    /// Latest doorbell that was not believed, for who looks into it.
    pub(crate) refused: Option<u32>,
}

impl WorkQueue {
    pub(crate) fn new(ring: WqeRing, iova: u64) -> Self {
        Self {
            ring: Some(ring),
            iova,
            consumer: 0,
            producer: 0,
            refused: None,
        }
    }

    /// No queue: the QP has an SRQ.
    pub(crate) fn none() -> Self {
        Self {
            ring: None,
            iova: 0,
            consumer: 0,
            producer: 0,
            refused: None,
        }
    }

    /// Takes over the client's producer; false when it cannot be true.
    #[inline]
    pub(crate) fn believe(&mut self, claimed: u32) -> bool {
        let Some(ring) = &self.ring else {
            return true;
        };
        let believable = ring
            .depth()
            .accepts_producer(claimed, self.producer, self.consumer);
        if believable {
            self.producer = claimed;
        } else {
            self.refused = Some(claimed);
        }
        believable
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.ring.is_none() || self.consumer == self.producer
    }

    pub(crate) fn is_inside(&self, iova: u64, len: u64) -> bool {
        self.ring.is_some() && self.iova >= iova && self.iova - iova < len
    }

    pub(crate) fn restart(&mut self) {
        self.consumer = 0;
        self.producer = 0;
    }
}

/// A queue pair.
#[derive(Debug)]
pub(crate) struct Qp {
    pub(crate) state: QpState,
    /// No holder is left; only the peer's READs are served.
    pub(crate) is_orphan: bool,
    pub(crate) slot: u32,
    pub(crate) pdn: u32,
    /// What the peer may do.
    pub(crate) access: Access,
    pub(crate) send_cqn: u32,
    pub(crate) recv_cqn: u32,
    pub(crate) sq: WorkQueue,
    pub(crate) rq: WorkQueue,
    /// SRQ in place of the RQ, or 0.
    pub(crate) srqn: u32,
    /// Protection domain of the receives.
    pub(crate) recv_pdn: u32,
    /// It stands on the SRQ's list of those whose peer waits.
    pub(crate) waits_on_srq: bool,
    pub(crate) peer: Option<QpRef>,
    /// The QP whose send waits until this one can take it.
    pub(crate) waiter: Option<QpRef>,
    /// It stands on the engine's list.
    pub(crate) is_active: bool,
    /// `work` is a WQE that was fetched and is not complete.
    pub(crate) is_held: bool,
    /// Place of the WQE in work; away while its turn lasts.
    pub(crate) work: Option<Box<SendWork>>,
    pub(crate) hold_timer: Option<TimerKey>,
    /// What the hold ends with when its time is up.
    pub(crate) hold_kind: Hold,
    /// Receive that was fetched and is not complete.
    pub(crate) receiving: Option<RecvWork>,
    pub(crate) rnr_retry: u8,
    /// Most READs and atomics of ours, and of the peer, under way.
    pub(crate) max_rd_atomic: u8,
    pub(crate) max_dest_rd_atomic: u8,
    /// Attributes of the transport.
    pub(crate) transport: Transport,
    /// Why WQEs are flushed: FLUSHED, or DISCONNECTED.
    pub(crate) flush_syndrome: Syndrome,
    /// In SQD: the WQE under way is not complete yet.
    pub(crate) is_draining: bool,
    /// Its client wants to hear when the SQ has drained.
    pub(crate) wants_drained: bool,
    /// A request of the peer has come.
    pub(crate) is_established: bool,
    /// Requester and responder of packet mode, once it was needed.
    pub(crate) ends: Option<Box<Ends>>,
    /// What they met since RESET, beyond their own end.
    pub(crate) packet_counters: Option<Box<PacketCounters>>,
    pub(crate) holders: Holders,
    /// Listener that holds the QP until a process takes it.
    pub(crate) listener: Option<u32>,
    /// Connect under way.
    pub(crate) connecting: Option<u64>,
    /// What travelled with the connection request.
    pub(crate) record: Option<Box<CmRecord>>,
}

/// What a new QP is made of.
#[derive(Debug)]
pub(crate) struct NewQp {
    pub(crate) slot: u32,
    pub(crate) pdn: u32,
    pub(crate) access: Access,
    pub(crate) send_cqn: u32,
    pub(crate) recv_cqn: u32,
    pub(crate) sq: WorkQueue,
    pub(crate) rq: WorkQueue,
    pub(crate) srqn: u32,
    pub(crate) recv_pdn: u32,
    pub(crate) holder: u32,
}

impl Qp {
    pub(crate) fn new(new: NewQp) -> Self {
        Self {
            state: QpState::RESET,
            is_orphan: false,
            slot: new.slot,
            pdn: new.pdn,
            access: new.access,
            send_cqn: new.send_cqn,
            recv_cqn: new.recv_cqn,
            sq: new.sq,
            rq: new.rq,
            srqn: new.srqn,
            recv_pdn: new.recv_pdn,
            waits_on_srq: false,
            peer: None,
            waiter: None,
            is_active: false,
            is_held: false,
            work: Some(Box::new(SendWork::none())),
            hold_timer: None,
            hold_kind: Hold::Receive,
            receiving: None,
            rnr_retry: RNR_FOREVER,
            max_rd_atomic: MAX_RD_ATOMIC,
            max_dest_rd_atomic: MAX_RD_ATOMIC,
            transport: Transport::default(),
            flush_syndrome: Syndrome::FLUSHED,
            is_draining: false,
            wants_drained: false,
            is_established: false,
            ends: None,
            packet_counters: None,
            holders: Holders::of(new.holder),
            listener: None,
            connecting: None,
            record: None,
        }
    }

    /// Whether WQEs of the SQ are under way or may be.
    #[inline]
    pub(crate) fn sends(&self) -> bool {
        matches!(self.state, QpState::RTS | QpState::SQD)
    }

    /// Reads the doorbells; false when one of them cannot be true.
    #[inline]
    pub(crate) fn refresh(&mut self, bar: &Bar2) -> bool {
        let line = bar.line(self.slot);
        // EDGE sq-publish (acquire): pairs with the client's store in `ring_proto::doorbell::ring`; the same for the RQ.
        let sq = line.sq_producer().load(Ordering::Acquire);
        let rq = line.rq_producer().load(Ordering::Acquire);
        let sq = self.sq.believe(sq);
        self.rq.believe(rq) && sq
    }

    /// Fetches the next receive into `receiving` unless one is there; false when the client has posted none.
    #[inline]
    pub(crate) fn fetch_receive(&mut self, bar: &Bar2) -> Result<bool, Syndrome> {
        if self.receiving.is_some() {
            return Ok(true);
        }
        let Some(ring) = self.rq.ring else {
            return Err(Syndrome::WINDOW_GONE);
        };
        if self.rq.consumer == self.rq.producer {
            // EDGE sq-publish (acquire): as in `refresh`.
            let claimed = bar.line(self.slot).rq_producer().load(Ordering::Acquire);
            if !self.rq.believe(claimed) {
                return Err(Syndrome::DOORBELL_OUT_OF_RANGE);
            }
            if self.rq.consumer == self.rq.producer {
                return Ok(false);
            }
        }
        let work = RecvWork::fetch(&ring, self.rq.consumer);
        self.rq.consumer = work.end;
        self.receiving = Some(work);
        Ok(true)
    }

    pub(crate) fn has_receive(&self) -> bool {
        self.receiving.is_some() || !self.rq.is_empty()
    }

    /// The next WQE to flush, as its completion and the CQ it goes to.
    pub(crate) fn next_flushed(&mut self, qpn: u32) -> Option<(u32, Completed)> {
        let syndrome = self.flush_syndrome;
        let flushed = |wr_id, opcode, wqe_counter| Completed {
            wr_id,
            byte_len: 0,
            imm: 0,
            qpn,
            opcode,
            src_qpn_flags: 0,
            wqe_counter,
            status: WcStatus::WR_FLUSH_ERR,
            syndrome,
        };
        if let Some((wr_id, opcode, end)) = self.ends.as_mut().and_then(|ends| ends.take_flushed())
        {
            return Some((self.send_cqn, flushed(wr_id, opcode, end)));
        }
        if let Some(held) = self.work.as_ref().filter(|_| self.is_held) {
            self.is_held = false;
            let entry = flushed(held.wr_id(), held.opcode().0, held.end);
            return Some((self.send_cqn, entry));
        }
        while let Some(ring) = self.sq.ring.filter(|_| !self.sq.is_empty()) {
            let (wr_id, opcode, end) = queue::peek_send(&ring, self.sq.consumer, self.sq.producer);
            self.sq.consumer = end;
            if opcode != Opcode::NOP.0 {
                return Some((self.send_cqn, flushed(wr_id, opcode, end)));
            }
        }
        let receive = self.receiving.take().or_else(|| {
            let ring = self.rq.ring.filter(|_| !self.rq.is_empty())?;
            let work = RecvWork::fetch(&ring, self.rq.consumer);
            self.rq.consumer = work.end;
            Some(work)
        })?;
        let entry = flushed(receive.wr_id(), WcOpcode::RECV.0, receive.end);
        Some((self.recv_cqn, entry))
    }

    /// Whether a ring of the QP lies in a window.
    pub(crate) fn is_inside(&self, iova: u64, len: u64) -> bool {
        self.sq.is_inside(iova, len) || self.rq.is_inside(iova, len)
    }
}

impl Device {
    #[inline]
    pub(crate) fn qp(&self, qp: QpRef) -> Option<&Qp> {
        let function = self.functions.at(qp.place)?;
        if function.id != qp.function {
            return None;
        }
        function.qps.find(qp.qpn).map(|boxed| &**boxed)
    }

    #[inline]
    pub(crate) fn qp_mut(&mut self, qp: QpRef) -> Option<&mut Qp> {
        let function = self.functions.at_mut(qp.place)?;
        if function.id != qp.function {
            return None;
        }
        function.qps.find_mut(qp.qpn).map(|boxed| &mut **boxed)
    }
}

/// Depth of a work queue that a client asks for.
pub(crate) fn depth(entries: u32) -> Result<Depth, AdminStatus> {
    Depth::new(entries)
        .filter(|depth| depth.entries() <= ring_proto::regs::DEPTH_LIMIT)
        .ok_or(AdminStatus::INVALID)
}
