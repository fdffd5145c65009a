//! Cases about shared receive queues.
//!
//! Place: see [`super`]. Source: IBTA vol. 1, 10.2.9 and 11.2.3 (shared receive queues); `ibv_create_srq(3)`, `ibv_post_srq_recv(3)`,
//! `ibv_modify_srq(3)`.

use ring_proto::admin::{AdminOp, AdminStatus, QpCreateSrq, SrqCreate, SrqModify};
use ring_proto::eqe::EventType;
use ring_proto::index::Depth;
use ring_proto::shared::WqeRing;
use ring_proto::status::{Opcode, QpState, Syndrome, WcStatus};
use ring_proto::sync::Ordering;
use ring_proto::wqe::Sge;

use super::super::client::{Client, Qp, QpOptions, full, low};
use super::super::rig::{Rig, done};
use super::super::target::Port;
use super::super::wr::{SendWr, recv_wr};
use super::super::{Case, Outcome, Stop, case, same};

const SRQ: &str = "IBTA 10.2.9; ibv_post_srq_recv(3)";
const LIMIT: &str = "IBTA 10.2.9.4, 11.6.3.1; ibv_modify_srq(3), IBV_EVENT_SRQ_LIMIT_REACHED";
const DEPTH: u32 = 16;

#[derive(Clone, Copy)]
struct Srq {
    srqn: u32,
    slot: u32,
    ring: WqeRing,
    producer: u32,
}

fn depth(entries: u32) -> Outcome<Depth> {
    Depth::new(entries).ok_or_else(|| Stop::Failed("no depth".into()))
}

fn sound(client: &mut Client, pdn: u32) -> Outcome<SrqCreate> {
    Ok(SrqCreate {
        ring: client.memory.alloc(64 * u64::from(DEPTH))?,
        depth: DEPTH,
        pdn,
        slot: client.slot(),
        limit: 0,
    })
}

fn create(client: &mut Client, pdn: u32) -> Outcome<Srq> {
    let body = sound(client, pdn)?;
    let ring = client.memory.ring(body.ring, depth(DEPTH)?)?;
    let srqn = low(client.ok(AdminOp::SRQ_CREATE, body.to_body())?[0]);
    Ok(Srq {
        srqn,
        slot: body.slot,
        ring,
        producer: 0,
    })
}

fn post(client: &Client, srq: &mut Srq, wr_id: u64, sges: &[Sge]) {
    srq.ring
        .write(srq.producer, &zerocopy::transmute!(recv_wr(wr_id, sges)));
    srq.producer = srq.producer.wrapping_add(1);
    ring(client, srq);
}

fn ring(client: &Client, srq: &Srq) {
    let line = client.doorbells.bar.line(srq.slot);
    line.srq_producer().store(srq.producer, Ordering::Release);
    client.ring_slot(srq.slot);
}

/// Clients a and b with `qps` connected QPs each; those of b share an SRQ.
struct Stage {
    a: Client,
    b: Client,
    srq: Srq,
    qas: Vec<Qp>,
    qbs: Vec<Qp>,
}

impl Stage {
    fn new(rig: &Rig<'_>, qps: usize) -> Outcome<Self> {
        let mut a = rig.client(Port::A)?;
        let mut b = rig.client(Port::B)?;
        let pdn = b.pdn;
        let srq = create(&mut b, pdn)?;
        let (mut qas, mut qbs) = (Vec::new(), Vec::new());
        for _ in 0..qps {
            let qa = a.init_qp(QpOptions::default())?;
            let qb = qp_on(&mut b, &srq, pdn)?;
            b.modify(qb.qpn, QpState::INIT)?;
            a.modify_to_rtr(qa.qpn, (b.function, qb.qpn))?;
            b.modify_to_rtr(qb.qpn, (a.function, qa.qpn))?;
            a.modify_to_rts(qa.qpn, 7)?;
            b.modify_to_rts(qb.qpn, 7)?;
            qas.push(qa);
            qbs.push(qb);
        }
        Ok(Self {
            a,
            b,
            srq,
            qas,
            qbs,
        })
    }

    fn ends(&mut self, n: usize) -> Outcome<(&mut Qp, Qp)> {
        match (self.qas.get_mut(n), self.qbs.get(n)) {
            (Some(qa), Some(qb)) => Ok((qa, *qb)),
            _ => Err(Stop::Failed("no such QP in the case".into())),
        }
    }

    /// A message over the n-th connection.
    fn send(&mut self, n: usize, wr_id: u64) -> Outcome {
        let mut qa = *self.ends(n)?.0;
        self.a
            .send(&mut qa, &SendWr::inline(Opcode::SEND, wr_id, b"x"));
        *self.ends(n)?.0 = qa;
        Ok(())
    }

    /// The n-th QP of b receives into this work request.
    fn receives(&mut self, n: usize, wr_id: u64) -> Outcome {
        let (_, qb) = self.ends(n)?;
        done(&self.b.wc(qb.recv_cq)?, wr_id)
    }
}

/// A QP in RESET on an SRQ.
fn qp_on(client: &mut Client, srq: &Srq, pdn: u32) -> Outcome<Qp> {
    let (body, cq) = client.qp_body(QpOptions::default())?;
    let sq = client.memory.ring(body.sq_ring, depth(body.sq_depth)?)?;
    let body = QpCreateSrq {
        sq_ring: body.sq_ring,
        sq_depth: body.sq_depth,
        srqn: srq.srqn,
        pdn,
        send_cqn: body.send_cqn,
        recv_cqn: body.recv_cqn,
        slot: body.slot,
        holder: 0,
        access: body.access,
    };
    let qpn = low(client.ok(AdminOp::QP_CREATE_SRQ, body.to_body())?[0]);
    Ok(Qp {
        qpn,
        slot: body.slot,
        send_cq: cq,
        recv_cq: cq,
        sq,
        rq: sq,
        sq_producer: 0,
        rq_producer: 0,
    })
}

pub(super) const CASES: &[Case] = &[
    case(
        "srq.delivers",
        "A message to a QP on an SRQ takes a receive of the SRQ",
        SRQ,
        |rig| {
            let mut stage = Stage::new(rig, 1)?;
            let into = stage.b.region(64, full())?;
            post(&stage.b, &mut stage.srq, 5, &[into.sge(0, 64)]);
            stage.send(0, 1)?;
            stage.receives(0, 5)
        },
    ),
    case(
        "srq.shared-in-order",
        "Messages to several QPs take the SRQ's receives in the order of their coming",
        SRQ,
        |rig| {
            let mut stage = Stage::new(rig, 2)?;
            let into = stage.b.region(64, full())?;
            for wr_id in 0..4 {
                post(&stage.b, &mut stage.srq, wr_id, &[into.sge(0, 64)]);
            }
            for (n, wr_id) in [(1, 0), (0, 1), (0, 2), (1, 3)] {
                stage.send(n, 9)?;
                stage.receives(n, wr_id)?;
            }
            Ok(())
        },
    ),
    case(
        "srq.empty-holds-the-sender",
        "A message waits until the SRQ has a receive",
        SRQ,
        |rig| {
            let mut stage = Stage::new(rig, 1)?;
            stage.send(0, 1)?;
            let (_, qb) = stage.ends(0)?;
            stage.b.no_wc(qb.recv_cq)?;
            let into = stage.b.region(64, full())?;
            post(&stage.b, &mut stage.srq, 5, &[into.sge(0, 64)]);
            stage.receives(0, 5)
        },
    ),
    case(
        "srq.pd-of-srq-counts",
        "Receives of an SRQ use regions of the SRQ's protection domain, whatever that of the QP is",
        "IBTA 10.2.9.1; ibv_create_srq(3)",
        |rig| {
            let mut b = rig.client(Port::B)?;
            let (srq_pd, qp_pd) = (b.pd()?, b.pdn);
            let mut srq = create(&mut b, srq_pd)?;
            let mut qp = qp_on(&mut b, &srq, qp_pd)?;
            b.modify(qp.qpn, QpState::INIT)?;
            b.modify_to_rtr(qp.qpn, (b.function, qp.qpn))?;
            b.modify_to_rts(qp.qpn, 7)?;
            let into = b.region_of(64, full(), srq_pd, 0)?;
            post(&b, &mut srq, 5, &[into.sge(0, 64)]);
            b.send(&mut qp, &SendWr::inline(Opcode::SEND, 1, b"x"));
            done(&b.wc(qp.recv_cq)?, 5)
        },
    ),
    case(
        "srq.pd-mismatch-refused",
        "A receive of an SRQ into a region of another protection domain than the SRQ's fails",
        "IBTA 10.2.9.1; ibv_create_srq(3)",
        |rig| {
            let mut b = rig.client(Port::B)?;
            let (srq_pd, qp_pd) = (b.pd()?, b.pdn);
            let mut srq = create(&mut b, srq_pd)?;
            let mut qp = qp_on(&mut b, &srq, qp_pd)?;
            b.modify(qp.qpn, QpState::INIT)?;
            b.modify_to_rtr(qp.qpn, (b.function, qp.qpn))?;
            b.modify_to_rts(qp.qpn, 7)?;
            let into = b.region_of(64, full(), qp_pd, 0)?;
            post(&b, &mut srq, 5, &[into.sge(0, 64)]);
            b.send(&mut qp, &SendWr::inline(Opcode::SEND, 1, b"x"));
            let wc = b.wc(qp.recv_cq)?;
            same(
                "wr_id, status, syndrome",
                (wc.wr_id, wc.status, wc.syndrome),
                (5, WcStatus::LOC_ACCESS_ERR, Syndrome::LKEY_PD_MISMATCH),
            )
        },
    ),
    case(
        "srq.overflow-is-an-error",
        "A producer further ahead than the SRQ is deep breaks it, and says so",
        "IBTA 10.2.9.2, 11.6.3.2; ibv_post_srq_recv(3)",
        |rig| {
            let mut stage = Stage::new(rig, 1)?;
            stage.srq.producer = DEPTH + 1;
            ring(&stage.b, &stage.srq);
            let (_, source, code) = stage.b.event_of(EventType::SRQ_ERROR)?;
            same(
                "SRQ and syndrome",
                (source, code),
                (stage.srq.srqn, Syndrome::DOORBELL_OUT_OF_RANGE.0.into()),
            )?;
            let (_, qb) = stage.ends(0)?;
            stage.b.expect_state(qb.qpn, QpState::ERR)
        },
    ),
    case(
        "srq.full-is-no-error",
        "As many receives as the SRQ is deep may be posted",
        "IBTA 10.2.9.2; ibv_create_srq(3), max_wr",
        |rig| {
            let mut stage = Stage::new(rig, 1)?;
            let into = stage.b.region(64, full())?;
            for lap in 0..2 {
                for n in 0..u64::from(DEPTH) {
                    post(&stage.b, &mut stage.srq, 100 * lap + n, &[into.sge(0, 64)]);
                }
                for n in 0..u64::from(DEPTH) {
                    stage.send(0, n)?;
                    stage.receives(0, 100 * lap + n)?;
                }
            }
            Ok(())
        },
    ),
    case(
        "srq.limit-is-told-once",
        "Fewer receives than the armed limit are SRQ_LIMIT, once",
        LIMIT,
        |rig| {
            let mut stage = Stage::new(rig, 1)?;
            let into = stage.b.region(64, full())?;
            for wr_id in 0..4 {
                post(&stage.b, &mut stage.srq, wr_id, &[into.sge(0, 64)]);
            }
            let body = SrqModify {
                srqn: stage.srq.srqn,
                limit: 3,
            };
            stage.b.ok(AdminOp::SRQ_MODIFY, body.to_body())?;
            stage.send(0, 1)?;
            stage.receives(0, 0)?;
            let early = stage.b.drain_events()?;
            same(
                "limit events with 3 receives left",
                early.iter().any(|event| event.0 == EventType::SRQ_LIMIT),
                false,
            )?;
            stage.send(0, 2)?;
            stage.send(0, 3)?;
            stage.receives(0, 1)?;
            stage.receives(0, 2)?;
            let events = stage.b.drain_events()?;
            let told: Vec<_> = events
                .iter()
                .filter(|event| event.0 == EventType::SRQ_LIMIT)
                .collect();
            same("limit events", told.len(), 1)
        },
    ),
    case(
        "srq.limit-by-doorbell",
        "The limit can be armed by doorbell: fewer receives than it are told at once",
        "docs/device.md, Shared receive queues",
        |rig| {
            let mut stage = Stage::new(rig, 1)?;
            let srq = stage.srq;
            let armed = 1 << 24 | 4;
            let line = stage.b.doorbells.bar.line(srq.slot);
            line.srq_limit().store(armed, Ordering::Release);
            stage.b.ring_slot(srq.slot);
            stage.b.expect_event(EventType::SRQ_LIMIT, srq.srqn, 0)?;
            stage.b.no_event()
        },
    ),
    case(
        "srq.limit-above-depth-refused",
        "A limit is at most the depth",
        "ibv_modify_srq(3)",
        |rig| {
            let mut b = rig.client(Port::B)?;
            let pdn = b.pdn;
            let srq = create(&mut b, pdn)?;
            let body = SrqModify {
                srqn: srq.srqn,
                limit: DEPTH + 1,
            };
            b.refuse(AdminOp::SRQ_MODIFY, body.to_body(), AdminStatus::INVALID)
        },
    ),
    case(
        "srq.destroy.in-use-refused",
        "An SRQ that a QP uses cannot be destroyed",
        "IBTA 11.2.3.4; ibv_destroy_srq(3)",
        |rig| {
            let mut stage = Stage::new(rig, 1)?;
            let srqn = stage.srq.srqn;
            stage
                .b
                .named(AdminOp::SRQ_DESTROY, srqn, AdminStatus::BUSY)?;
            let (_, qb) = stage.ends(0)?;
            stage
                .b
                .named(AdminOp::QP_DESTROY, qb.qpn, AdminStatus::OK)?;
            stage.b.named(AdminOp::SRQ_DESTROY, srqn, AdminStatus::OK)?;
            stage
                .b
                .named(AdminOp::SRQ_DESTROY, srqn, AdminStatus::NO_OBJECT)
        },
    ),
    case(
        "srq.error-leaves-receives",
        "A QP in ERR takes no receives out of its SRQ and says LAST_WQE_REACHED",
        "IBTA 10.2.9.3, 11.6.3.1; ibv_get_async_event(3), IBV_EVENT_QP_LAST_WQE_REACHED",
        |rig| {
            let mut stage = Stage::new(rig, 2)?;
            let into = stage.b.region(64, full())?;
            post(&stage.b, &mut stage.srq, 5, &[into.sge(0, 64)]);
            let (_, first) = stage.ends(0)?;
            stage.b.modify(first.qpn, QpState::ERR)?;
            let (_, source, _) = stage.b.event_of(EventType::LAST_WQE_REACHED)?;
            same("QP of the event", source, first.qpn)?;
            stage.b.no_wc(first.recv_cq)?;
            stage.send(1, 1)?;
            stage.receives(1, 5)
        },
    ),
];
