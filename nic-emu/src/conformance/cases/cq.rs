//! Cases about completion queues.
//!
//! Place: see [`super`]. Source: IBTA vol. 1, 11.2.6 and 11.4.2; `ibv_create_cq(3)`, `ibv_poll_cq(3)`.

use ring_proto::admin::{AdminOp, AdminStatus, QueueCreate};
use ring_proto::eqe::EventType;
use ring_proto::regs;
use ring_proto::status::{Opcode, QpState, WcStatus};

use super::super::client::{Client, QpOptions};
use super::super::rig::Rig;
use super::super::target::Port;
use super::super::wr::SendWr;
use super::super::{Case, Outcome, case, holds, same};
use super::OURS;

const CREATE: &str = "IBTA 11.2.6.1; ibv_create_cq(3)";
const POLL: &str = "IBTA 11.4.2.1; ibv_poll_cq(3)";
const OVERRUN: &str = "IBTA 10.10.2.2, 11.6.3.2; ibv_get_async_event(3), IBV_EVENT_CQ_ERR";

fn sound(a: &mut Client) -> Outcome<QueueCreate> {
    Ok(QueueCreate {
        ring: a.memory.alloc(32 * 64)?,
        depth: 64,
        slot: a.slot(),
    })
}

fn bad(rig: &mut Rig<'_>, wanted: AdminStatus, spoil: impl FnOnce(&mut QueueCreate)) -> Outcome {
    let mut a = rig.client(Port::A)?;
    let mut body = sound(&mut a)?;
    spoil(&mut body);
    a.refuse(AdminOp::CQ_CREATE, body.to_body(), wanted)
}

/// Options of a QP whose CQ has this depth.
fn shallow(cq_depth: u32) -> QpOptions {
    QpOptions {
        cq_depth,
        ..QpOptions::default()
    }
}

pub(super) const CASES: &[Case] = &[
    case(
        "cq.create.depth-zero-refused",
        "A CQ has entries",
        CREATE,
        |rig| bad(rig, AdminStatus::INVALID, |body| body.depth = 0),
    ),
    case(
        "cq.create.depth-odd-refused",
        "Depths are powers of two",
        OURS,
        |rig| bad(rig, AdminStatus::INVALID, |body| body.depth = 48),
    ),
    case(
        "cq.create.depth-above-limit-refused",
        "A CQ deeper than the device tells is refused",
        CREATE,
        |rig| {
            bad(rig, AdminStatus::INVALID, |body| {
                body.depth = regs::DEPTH_LIMIT * 2
            })
        },
    ),
    case(
        "cq.create.ring-outside-windows-refused",
        "Its ring lies in mapped memory",
        OURS,
        |rig| bad(rig, AdminStatus::BAD_ADDRESS, |body| body.ring = 1 << 50),
    ),
    case(
        "cq.create.ring-misaligned-refused",
        "Its ring is aligned to 64 bytes",
        OURS,
        |rig| bad(rig, AdminStatus::INVALID, |body| body.ring += 32),
    ),
    case(
        "cq.create.slot-taken-refused",
        "A doorbell slot serves one CQ",
        OURS,
        |rig| {
            let mut a = rig.client(Port::A)?;
            let first = sound(&mut a)?;
            a.refuse(AdminOp::CQ_CREATE, first.to_body(), AdminStatus::OK)?;
            let body = QueueCreate {
                slot: first.slot,
                ..sound(&mut a)?
            };
            a.refuse(AdminOp::CQ_CREATE, body.to_body(), AdminStatus::BUSY)
        },
    ),
    case(
        "cq.destroy.in-use-refused",
        "A CQ that a QP uses cannot be destroyed",
        "IBTA 11.2.6.4; ibv_destroy_cq(3)",
        |rig| {
            let mut a = rig.client(Port::A)?;
            let qp = a.qp(QpOptions::default())?;
            let cqn = a.cqn(qp.send_cq)?;
            a.named(AdminOp::CQ_DESTROY, cqn, AdminStatus::BUSY)
        },
    ),
    case(
        "cq.destroy.unknown-refused",
        "A CQ that does not exist cannot be destroyed",
        "ibv_destroy_cq(3)",
        |rig| {
            let mut a = rig.client(Port::A)?;
            let cq = a.cq(16)?;
            let cqn = a.cqn(cq)?;
            a.named(AdminOp::CQ_DESTROY, cqn, AdminStatus::OK)?;
            a.named(AdminOp::CQ_DESTROY, cqn, AdminStatus::NO_OBJECT)
        },
    ),
    case(
        "cq.laps",
        "Completions stay in order over many laps of the ring",
        POLL,
        |rig| {
            let mut pair = rig.pair_with(shallow(4), shallow(4), 7)?;
            for n in 0..40 {
                let sge = pair.into.sge(0, 64);
                pair.b.recv(&mut pair.qb, n, &[sge]);
                pair.post(&SendWr::inline(Opcode::SEND, n, b"x"));
                pair.a_done(n)?;
                pair.b_done(n)?;
            }
            Ok(())
        },
    ),
    case(
        "cq.full-is-no-error",
        "As many completions as entries fit",
        POLL,
        |rig| {
            let mut pair = rig.pair_with(shallow(8), shallow(8), 7)?;
            pair.receives(8, 16);
            for n in 0..8 {
                pair.post(&SendWr::inline(Opcode::SEND, n, b"x"));
            }
            pair.a.settle()?;
            for n in 0..8 {
                pair.a_done(n)?;
                pair.b_done(100 + n)?;
            }
            pair.a.expect_state(pair.qa.qpn, QpState::RTS)
        },
    ),
    case(
        "cq.overrun.is-an-event",
        "One completion too many is CQ_ERROR, and the CQ's QPs go to ERR",
        OVERRUN,
        |rig| {
            let mut pair = rig.pair_with(shallow(4), QpOptions::default(), 7)?;
            pair.receives(5, 16);
            for n in 0..5 {
                pair.post(&SendWr::inline(Opcode::SEND, n, b"x"));
            }
            let cqn = pair.a.cqn(pair.qa.send_cq)?;
            let (_, source, _) = pair.a.event_of(EventType::CQ_ERROR)?;
            same("CQ of the event", source, cqn)?;
            pair.a.expect_state(pair.qa.qpn, QpState::ERR)
        },
    ),
    case(
        "cq.overrun.overwrites-nothing",
        "What a full CQ held stays readable",
        OVERRUN,
        |rig| {
            let mut pair = rig.pair_with(shallow(4), QpOptions::default(), 7)?;
            pair.receives(8, 16);
            for n in 0..8 {
                pair.post(&SendWr::inline(Opcode::SEND, n, b"x"));
            }
            pair.a.event_of(EventType::CQ_ERROR)?;
            for n in 0..4 {
                pair.a_done(n)?;
            }
            Ok(())
        },
    ),
    case(
        "cq.overrun.other-cqs-live-on",
        "The overrun of one CQ does not touch QPs of another",
        OVERRUN,
        |rig| {
            let mut pair = rig.pair_with(shallow(4), QpOptions::default(), 7)?;
            let other = pair.a.init_qp(QpOptions::default())?;
            pair.receives(8, 16);
            for n in 0..8 {
                pair.post(&SendWr::inline(Opcode::SEND, n, b"x"));
            }
            pair.a.event_of(EventType::CQ_ERROR)?;
            pair.a.expect_state(other.qpn, QpState::INIT)
        },
    ),
    case(
        "cq.overrun.no-new-qp",
        "A CQ that overran takes no new QP",
        OVERRUN,
        |rig| {
            let mut pair = rig.pair_with(shallow(4), QpOptions::default(), 7)?;
            pair.receives(8, 16);
            for n in 0..8 {
                pair.post(&SendWr::inline(Opcode::SEND, n, b"x"));
            }
            pair.a.event_of(EventType::CQ_ERROR)?;
            let options = QpOptions {
                cq: Some(pair.qa.send_cq),
                ..QpOptions::default()
            };
            let (body, _) = pair.a.qp_body(options)?;
            pair.a
                .refuse(AdminOp::QP_CREATE, body.to_body(), AdminStatus::BAD_STATE)
        },
    ),
    case(
        "cq.shared-by-qps",
        "Several QPs may complete into one CQ, each named in its completions",
        CREATE,
        |rig| {
            let mut a = rig.client(Port::A)?;
            let mut b = rig.client(Port::B)?;
            let cq = a.cq(64)?;
            let options = QpOptions {
                cq: Some(cq),
                ..QpOptions::default()
            };
            let mut wanted = Vec::new();
            for n in 0..3 {
                let mut qa = a.init_qp(options)?;
                let mut qb = b.init_qp(QpOptions::default())?;
                a.modify_to_rtr(qa.qpn, (b.function, qb.qpn))?;
                b.modify_to_rtr(qb.qpn, (a.function, qa.qpn))?;
                a.modify_to_rts(qa.qpn, 7)?;
                b.recv(&mut qb, 0, &[]);
                a.send(&mut qa, &SendWr::new(Opcode::SEND, n, &[]));
                let wc = a.wc(cq)?;
                same("wr_id and QP", (wc.wr_id, wc.qpn), (n, qa.qpn))?;
                wanted.push(qa.qpn);
            }
            wanted.dedup();
            same("QPs", wanted.len(), 3)
        },
    ),
    case(
        "cq.separate-for-receives",
        "Sends and receives of a QP may complete into two CQs",
        "ibv_create_qp(3)",
        |rig| {
            let mut a = rig.client(Port::A)?;
            let (mut body, send_cq) = a.qp_body(QpOptions::default())?;
            let recv_cq = a.cq(64)?;
            body.recv_cqn = a.cqn(recv_cq)?;
            let mut qp = a.qp_from(body, send_cq, recv_cq)?;
            a.modify(qp.qpn, QpState::INIT)?;
            a.modify_to_rtr(qp.qpn, (a.function, qp.qpn))?;
            a.modify_to_rts(qp.qpn, 7)?;
            a.recv(&mut qp, 1, &[]);
            a.send(&mut qp, &SendWr::new(Opcode::SEND, 2, &[]));
            same("receive", a.wc(recv_cq)?.wr_id, 1)?;
            same("send", a.wc(send_cq)?.wr_id, 2)?;
            a.no_wc(send_cq)?;
            a.no_wc(recv_cq)
        },
    ),
    case(
        "cq.errors-always-complete",
        "An unsignaled WQE that fails has a completion",
        "IBTA 10.8.6, 11.6.2; ibv_post_send(3)",
        |rig| {
            let mut pair = rig.pair()?;
            pair.post(
                &SendWr::inline(Opcode::RDMA_WRITE, 6, b"x")
                    .remote((0, 0))
                    .unsignaled(),
            );
            let wc = pair.a_wc()?;
            same(
                "wr_id and status",
                (wc.wr_id, wc.status),
                (6, WcStatus::REM_ACCESS_ERR),
            )
        },
    ),
    case(
        "cq.wr-id-is-echoed",
        "All 64 bits of a wr_id come back",
        POLL,
        |rig| {
            let mut pair = rig.pair()?;
            pair.b.recv(&mut pair.qb, u64::MAX, &[]);
            pair.post(&SendWr::new(Opcode::SEND, 0x8000_0000_0000_0001, &[]));
            pair.a_done(0x8000_0000_0000_0001)?;
            pair.b_done(u64::MAX).map(drop)
        },
    ),
    case(
        "cq.position-covers-the-wqe",
        "A completion names the queue position behind its WQE, blocks included",
        OURS,
        |rig| {
            let mut pair = rig.pair()?;
            pair.receives(2, 256);
            pair.post(&SendWr::inline(Opcode::SEND, 1, &[1; 200]));
            let wc = pair.a_done(1)?;
            same("SQ position", wc.wqe_counter, pair.qa.sq_producer)?;
            holds("several blocks", wc.wqe_counter > 1)?;
            same("RQ position", pair.b_done(100)?.wqe_counter, 1)
        },
    ),
];
