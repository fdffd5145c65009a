//! Shared receive queues: receives posted once for many QPs.
//!
//! Place: programs and tests -> here -> doorbell (`Function::ring_srq`) -> NIC; `Cq::poll` tells how far the NIC has come.
//! Invariants: the NIC copies a receive when its message begins, so places below the highest position seen in any completion are free;
//! completions come in any order, so that position only grows. Edges: `wqe-reclaim`.
//! Hot: [`Srq::post_recv`], [`Srq::ring`]. Source: verbs `ibv_create_srq` and its kin; docs/device.md, "Shared receive queues".

use std::sync::Arc;

use ring_proto::admin::{AdminOp, QpCreateSrq, SrqCreate};
use ring_proto::ids::Qpn;
use ring_proto::shared::WqeRing;
use ring_proto::status::QpState;
use ring_proto::sync::{AtomicU32, Ordering};
use ring_proto::uar::SRQ_LIMIT_MASK;
use ring_proto::wqe::Sge;

use super::{Cq, Hold, Pd, PdInner, Positions, Qp, QpOptions, depth};
use crate::error::{FunctionError, PostError};
use crate::function::low;
use crate::rq;

/// Shared receive queue.
#[derive(Debug)]
pub struct Srq {
    inner: Arc<SrqInner>,
    ring: WqeRing,
    producer: u32,
    rung: u32,
    arms: u32,
}

#[derive(Debug)]
pub(super) struct SrqInner {
    hold: Hold,
    _pd: Arc<PdInner>,
    srqn: u32,
    consumer: Arc<AtomicU32>,
}

impl Drop for SrqInner {
    fn drop(&mut self) {
        self.hold.destroy(AdminOp::SRQ_DESTROY, self.srqn);
    }
}

/// Takes over the position of a receive's completion unless a later one came before.
#[inline]
pub(super) fn advance(consumer: &AtomicU32, position: u32) {
    let ahead = |seen: u32| (position.wrapping_sub(seen) < 1 << 31).then_some(position);
    // EDGE wqe-reclaim (acq-rel): the completion was read, and those before it. Acquired when the SRQ's owner re-uses its places.
    match consumer.fetch_update(Ordering::AcqRel, Ordering::Acquire, ahead) {
        Ok(_) | Err(_) => {} // Err: somebody has seen a later one.
    }
}

impl Srq {
    /// Creates an SRQ of `entries` receives, a power of two, in a protection domain; it is that of the receives' buffers.
    ///
    /// # Errors
    /// [`FunctionError::Invalid`] for another size; [`FunctionError::Admin`] when the device refuses.
    pub fn new(pd: &Pd, entries: u32) -> Result<Self, FunctionError> {
        let function = &pd.inner.function;
        let depth = depth("SRQ depth", entries)?;
        let hold = Hold::new(function, WqeRing::bytes(depth), true)?;
        let ring = function
            .arena()
            .ring(hold.offset, depth)
            .ok_or(FunctionError::ArenaFull { len: hold.len })?;
        let create = SrqCreate {
            ring: hold.iova(),
            depth: entries,
            pdn: pd.inner.pdn.0,
            slot: hold.slot(),
            limit: 0,
        };
        let [srqn, _] = function
            .lock()
            .admin(AdminOp::SRQ_CREATE, create.to_body())?;
        Ok(Self {
            inner: Arc::new(SrqInner {
                hold,
                _pd: Arc::clone(&pd.inner),
                srqn: low(srqn),
                consumer: Arc::default(),
            }),
            ring,
            producer: 0,
            rung: 0,
            arms: 0,
        })
    }

    /// Number of the SRQ, as events name it.
    #[must_use]
    pub fn srqn(&self) -> u32 {
        self.inner.srqn
    }

    /// Writes a receive; the NIC sees it after [`Srq::ring`].
    ///
    /// # Errors
    /// [`PostError::QueueFull`] until completions are polled; [`PostError::TooManySges`].
    #[inline]
    pub fn post_recv(&mut self, wr_id: u64, sges: &[Sge]) -> Result<(), PostError> {
        // EDGE wqe-reclaim (acquire): pairs with `advance`.
        let consumer = self.inner.consumer.load(Ordering::Acquire);
        self.producer = rq::put(&self.ring, self.producer, consumer, wr_id, sges)?;
        Ok(())
    }

    /// Shows the NIC what was posted, and wakes it if it sleeps.
    #[inline]
    pub fn ring(&mut self) {
        if self.rung != self.producer {
            self.rung = self.producer;
            let hold = &self.inner.hold;
            hold.function.ring_srq(hold.slot(), self.producer);
        }
    }

    /// Arms the limit: once fewer receives than that are posted, also now, an SRQ_LIMIT event tells it, once. 0 disarms.
    pub fn arm_limit(&mut self, limit: u32) {
        self.arms = self.arms.wrapping_add(1);
        let hold = &self.inner.hold;
        let word = limit.min(SRQ_LIMIT_MASK) | self.arms << SRQ_LIMIT_MASK.count_ones();
        hold.function.arm_srq(hold.slot(), word);
    }

    /// Receives that the NIC has and no QP has taken, and the armed limit.
    ///
    /// # Errors
    /// The device's refusal.
    pub fn query(&self) -> Result<(u32, u32), FunctionError> {
        let function = &self.inner.hold.function;
        let [first, second] = function
            .lock()
            .admin_on(AdminOp::SRQ_QUERY, self.inner.srqn)?;
        Ok((low(second), low(first >> 32)))
    }
}

impl Qp {
    /// Creates a QP in INIT that takes its receives from an SRQ; its completions go to `cq`. `options.rq_depth` means nothing.
    ///
    /// # Errors
    /// As [`Qp::new`].
    pub fn on_srq(
        pd: &Pd,
        cq: &mut Cq,
        srq: &Srq,
        options: QpOptions,
    ) -> Result<Self, FunctionError> {
        let function = &pd.inner.function;
        let sq_depth = depth("SQ depth", options.sq_depth)?;
        let hold = Hold::new(function, WqeRing::bytes(sq_depth), true)?;
        let sq = function
            .arena()
            .ring(hold.offset, sq_depth)
            .ok_or(FunctionError::ArenaFull { len: hold.len })?;
        let create = QpCreateSrq {
            sq_ring: hold.iova(),
            sq_depth: options.sq_depth,
            srqn: srq.inner.srqn,
            pdn: pd.inner.pdn.0,
            send_cqn: cq.inner.cqn.0,
            recv_cqn: cq.inner.cqn.0,
            slot: hold.slot(),
            holder: crate::lock::Identity::slot_of(function.identity().word()),
            access: options.access.bits(),
        };
        let [qpn, _] = function
            .lock()
            .admin(AdminOp::QP_CREATE_SRQ, create.to_body())?;
        let qpn = Qpn(low(qpn));
        let positions = Arc::new(Positions {
            shared: Some(Arc::clone(&srq.inner.consumer)),
            ..Positions::default()
        });
        cq.queues.push((qpn, Arc::clone(&positions)));
        let mut qp = Self {
            hold,
            _pd: Arc::clone(&pd.inner),
            _cq: Arc::clone(&cq.inner),
            positions,
            qpn,
            rnr_retry: options.rnr_retry,
            sq,
            rq: None,
            _srq: Some(Arc::clone(&srq.inner)),
            sq_producer: 0,
            sq_rung: 0,
            rq_producer: 0,
            rq_rung: 0,
        };
        qp.modify(QpState::INIT, None)?;
        Ok(qp)
    }
}
