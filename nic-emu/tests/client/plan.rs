//! Bodies of the commands that make objects, with memory and doorbells of their own, and the objects that they make.

use std::net::SocketAddr;

use ring_proto::admin::{
    Access, CmConnect, CmRecord, MrReg, QpCreate, QpCreateSrq, QueueCreate, SrqCreate,
};
use ring_proto::index::Depth;
use ring_proto::shared::{CqeRing, Ring};
use zerocopy::IntoBytes;

use super::rings::{EVENT_DEPTH, EVENTS, RECORD};
use super::{RawQp, RawSrq, Rings};

/// A CQ: number, slot, ring.
pub(crate) type RawCq = (u32, u32, CqeRing);

impl Rings {
    pub(crate) fn plan_eq(&self) -> QueueCreate {
        QueueCreate {
            ring: EVENTS,
            depth: EVENT_DEPTH,
            slot: self.event_slot,
        }
    }

    pub(crate) fn plan_region(&mut self, len: u64, pdn: u32, access: Access) -> MrReg {
        MrReg {
            addr: self.alloc(len),
            len,
            pdn,
            access: access.bits(),
            ..MrReg::default()
        }
    }

    pub(crate) fn plan_cq(&mut self, depth: u32) -> QueueCreate {
        let entries = Depth::new(depth).unwrap();
        QueueCreate {
            ring: self.alloc(Ring::<4>::bytes(entries)),
            depth,
            slot: self.slot(),
        }
    }

    pub(crate) fn made_cq(&self, plan: &QueueCreate, cqn: u32) -> RawCq {
        (cqn, plan.slot, self.ring(plan.ring, plan.depth))
    }

    pub(crate) fn plan_qp(
        &mut self,
        (sq_depth, rq_depth): (u32, u32),
        cqn: u32,
        pdn: u32,
        access: Access,
    ) -> QpCreate {
        QpCreate {
            sq_ring: self.alloc(64 * u64::from(sq_depth)),
            rq_ring: self.alloc(64 * u64::from(rq_depth)),
            sq_depth,
            rq_depth,
            pdn,
            send_cqn: cqn,
            recv_cqn: cqn,
            slot: self.slot(),
            holder: 0,
            access: access.bits(),
        }
    }

    pub(crate) fn made_qp(&self, plan: &QpCreate, qpn: u32, cq: RawCq) -> RawQp {
        let (cqn, cq_slot, cq) = cq;
        RawQp {
            qpn,
            slot: plan.slot,
            cqn,
            cq_slot,
            sq: self.ring(plan.sq_ring, plan.sq_depth),
            rq: self.ring(plan.rq_ring, plan.rq_depth),
            cq,
            sq_producer: 0,
            rq_producer: 0,
            cq_consumer: 0,
        }
    }

    pub(crate) fn plan_srq(&mut self, depth: u32, pdn: u32) -> SrqCreate {
        SrqCreate {
            ring: self.alloc(64 * u64::from(depth)),
            depth,
            pdn,
            slot: self.slot(),
            limit: 0,
        }
    }

    pub(crate) fn made_srq(&self, plan: &SrqCreate, srqn: u32) -> RawSrq {
        RawSrq {
            srqn,
            slot: plan.slot,
            ring: self.ring(plan.ring, plan.depth),
            producer: 0,
        }
    }

    pub(crate) fn plan_qp_on_srq(
        &mut self,
        srq: &RawSrq,
        sq_depth: u32,
        cqn: u32,
        pdn: u32,
    ) -> QpCreateSrq {
        QpCreateSrq {
            sq_ring: self.alloc(64 * u64::from(sq_depth)),
            sq_depth,
            srqn: srq.srqn,
            pdn,
            send_cqn: cqn,
            recv_cqn: cqn,
            slot: self.slot(),
            holder: 0,
            access: super::full().bits(),
        }
    }

    /// The ring of its receives is the SRQ's.
    pub(crate) fn made_qp_on_srq(
        &self,
        plan: &QpCreateSrq,
        qpn: u32,
        cq: RawCq,
        srq: &RawSrq,
    ) -> RawQp {
        let (cqn, cq_slot, cq) = cq;
        RawQp {
            qpn,
            slot: plan.slot,
            cqn,
            cq_slot,
            sq: self.ring(plan.sq_ring, plan.sq_depth),
            rq: srq.ring,
            cq,
            sq_producer: 0,
            rq_producer: 0,
            cq_consumer: 0,
        }
    }

    /// Writes the connection record, and names it.
    pub(crate) fn plan_connect(
        &self,
        qpn: u32,
        (from, to): (SocketAddr, SocketAddr),
        timeout_ms: u32,
        private: &[u8],
    ) -> CmConnect {
        let mut record = CmRecord {
            source: from.into(),
            destination: to.into(),
            private_len: u32::try_from(private.len()).unwrap(),
            ..CmRecord::default()
        };
        record.private_data[..private.len()].copy_from_slice(private);
        self.write(RECORD, record.as_bytes());
        CmConnect {
            record: RECORD,
            qpn,
            timeout_ms,
        }
    }
}
