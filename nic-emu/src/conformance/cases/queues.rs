//! Cases about doorbells and arming.
//!
//! Place: see [`super`]. Source: docs/device.md, sections "Doorbells" and "Life of an interrupt"; IBTA vol. 1, 11.4.2.2 (request
//! completion notification).

use ring_proto::eqe::EventType;
use ring_proto::status::{Opcode, QpState, Syndrome, WcStatus};
use ring_proto::wqe::WqeFlags;

use super::super::client::QpOptions;
use super::super::rig::{Pair, Rig};
use super::super::wr::SendWr;
use super::super::{Case, Outcome, case, same};

const DOORBELL: &str = "docs/device.md, Doorbells";
const ARM: &str = "IBTA 11.4.2.2; ibv_req_notify_cq(3)";

/// A doorbell that cannot be true: QP_FATAL, the QP in ERR, nothing executed.
fn lie(rig: &mut Rig<'_>, lie: impl FnOnce(&mut Pair)) -> Outcome {
    let mut pair = rig.pair()?;
    pair.receives(2, 64);
    pair.post(&SendWr::inline(Opcode::SEND, 1, b"x"));
    pair.a_done(1)?;
    lie(&mut pair);
    pair.a.ring(&pair.qa);
    let (_, source, code) = pair.a.event_of(EventType::QP_FATAL)?;
    same(
        "QP and syndrome",
        (source, code),
        (pair.qa.qpn, Syndrome::DOORBELL_OUT_OF_RANGE.0.into()),
    )?;
    pair.a.expect_state(pair.qa.qpn, QpState::ERR)
}

fn message(pair: &mut Pair, wr_id: u64) {
    pair.receives(1, 64);
    pair.post(&SendWr::inline(Opcode::SEND, wr_id, b"x"));
}

pub(super) const CASES: &[Case] = &[
    case(
        "doorbell.sq.past-depth-is-an-error",
        "A send producer further ahead than the queue is deep fails the QP; nothing is executed twice",
        "IBTA 10.8.2 (queue overflow); docs/device.md",
        |rig| lie(rig, |pair| pair.qa.sq_producer += 65),
    ),
    case(
        "doorbell.sq.backwards-is-an-error",
        "A send producer that runs backwards fails the QP",
        DOORBELL,
        |rig| lie(rig, |pair| pair.qa.sq_producer -= 1),
    ),
    case(
        "doorbell.rq.past-depth-is-an-error",
        "A receive producer further ahead than the queue is deep fails the QP",
        "IBTA 10.8.2 (queue overflow); docs/device.md",
        |rig| lie(rig, |pair| pair.qa.rq_producer += 33),
    ),
    case(
        "doorbell.rq.backwards-is-an-error",
        "A receive producer that runs backwards fails the QP",
        DOORBELL,
        |rig| {
            lie(rig, |pair| {
                pair.qa.rq_producer = pair.qa.rq_producer.wrapping_sub(1)
            })
        },
    ),
    case(
        "doorbell.full-queue-is-no-error",
        "As many WQEs as the queue is deep may be posted at once",
        "IBTA 10.8.2; ibv_create_qp(3), max_send_wr",
        |rig| {
            let shallow = QpOptions {
                sq_depth: 8,
                ..QpOptions::default()
            };
            let mut pair = rig.pair_with(shallow, QpOptions::default(), 7)?;
            for lap in 0..3 {
                pair.receives(8, 16);
                for n in 0..8 {
                    pair.a.write_send(
                        &mut pair.qa,
                        &SendWr::inline(Opcode::SEND, 10 * lap + n, b"x"),
                    );
                }
                pair.a.ring(&pair.qa);
                for n in 0..8 {
                    pair.a_done(10 * lap + n)?;
                    pair.b_wc()?;
                }
            }
            Ok(())
        },
    ),
    case(
        "doorbell.without-news-does-nothing",
        "A doorbell that says nothing new does nothing",
        DOORBELL,
        |rig| {
            let mut pair = rig.pair()?;
            message(&mut pair, 1);
            pair.a_done(1)?;
            for _ in 0..3 {
                pair.a.ring(&pair.qa);
            }
            let (send_cq, _) = pair.cqs();
            pair.a.no_wc(send_cq)?;
            pair.a.no_event()
        },
    ),
    case(
        "doorbell.slot-without-owner-does-nothing",
        "The doorbell of a slot that nobody owns does nothing",
        DOORBELL,
        |rig| {
            let mut pair = rig.pair()?;
            pair.a.ring_slot(4000);
            pair.a.ring_slot(32_767);
            pair.a.no_event()?;
            message(&mut pair, 1);
            pair.a_done(1).map(drop)
        },
    ),
    case(
        "doorbell.after-idleness",
        "A doorbell wakes a device that has slept",
        DOORBELL,
        |rig| {
            let mut pair = rig.pair()?;
            for n in 0..20 {
                pair.a.settle()?;
                pair.b.settle()?;
                message(&mut pair, n);
                pair.a_done(n)?;
            }
            Ok(())
        },
    ),
    case(
        "doorbell.new-owner-starts-at-zero",
        "A slot's new owner starts with positions of 0",
        DOORBELL,
        |rig| {
            let mut pair = rig.pair()?;
            message(&mut pair, 1);
            pair.a_done(1)?;
            let old = pair.qa;
            pair.a.named(
                ring_proto::admin::AdminOp::QP_DESTROY,
                old.qpn,
                ring_proto::admin::AdminStatus::OK,
            )?;
            let (mut body, cq) = pair.a.qp_body(QpOptions::default())?;
            body.slot = old.slot;
            let mut qp = pair.a.qp_from(body, cq, cq)?;
            pair.a.modify(qp.qpn, QpState::INIT)?;
            pair.a.modify_to_rtr(qp.qpn, (pair.a.function, qp.qpn))?;
            pair.a.modify_to_rts(qp.qpn, 7)?;
            pair.a.recv(&mut qp, 1, &[]);
            pair.a.send(&mut qp, &SendWr::new(Opcode::SEND, 2, &[]));
            let wcs = pair.a.wcs(cq, 2)?;
            same(
                "statuses",
                wcs.iter().map(|wc| wc.status).collect(),
                vec![WcStatus::SUCCESS; 2],
            )
        },
    ),
    case(
        "arm.fires-for-a-completion",
        "An armed CQ fires its vector with the next completion",
        ARM,
        |rig| {
            let mut pair = rig.pair()?;
            let vector = pair.b.vector(3)?;
            pair.b.arm(pair.qb.recv_cq, 1 << 3)?;
            message(&mut pair, 1);
            same("times", pair.b.fired(&vector)?, 1)?;
            pair.b_done(100).map(drop)
        },
    ),
    case(
        "arm.completion-before-interrupt",
        "When the interrupt comes the completion is there",
        ARM,
        |rig| {
            let mut pair = rig.pair()?;
            let vector = pair.b.vector(3)?;
            for _ in 0..10 {
                pair.b.arm(pair.qb.recv_cq, 1 << 3)?;
                message(&mut pair, 1);
                pair.b.fired(&vector)?;
                same("a completion waits", pair.b.has_cqe(pair.qb.recv_cq)?, true)?;
                pair.b_wc()?;
                pair.a_wc()?;
            }
            Ok(())
        },
    ),
    case(
        "arm.not-armed-does-not-fire",
        "A CQ that nobody armed fires nothing",
        ARM,
        |rig| {
            let mut pair = rig.pair()?;
            let vector = pair.b.vector(3)?;
            message(&mut pair, 1);
            pair.b_done(100)?;
            pair.b.not_fired(&vector)
        },
    ),
    case(
        "arm.fires-once",
        "One arming is one interrupt",
        ARM,
        |rig| {
            let mut pair = rig.pair()?;
            let vector = pair.b.vector(3)?;
            pair.b.arm(pair.qb.recv_cq, 1 << 3)?;
            message(&mut pair, 1);
            pair.b.fired(&vector)?;
            message(&mut pair, 2);
            pair.b_wc()?;
            pair.b_wc()?;
            pair.b.not_fired(&vector)
        },
    ),
    case(
        "arm.two-vectors-both-fire",
        "Everybody who armed is told",
        "docs/device.md, Life of an interrupt",
        |rig| {
            let mut pair = rig.pair()?;
            let (one, other) = (pair.b.vector(3)?, pair.b.vector(63)?);
            pair.b.arm(pair.qb.recv_cq, 1 << 3)?;
            pair.b.arm(pair.qb.recv_cq, 1 << 63)?;
            message(&mut pair, 1);
            same(
                "times",
                (pair.b.fired(&one)?, pair.b.fired(&other)?),
                (1, 1),
            )
        },
    ),
    case(
        "arm.others-do-not-fire",
        "A vector that was not armed stays quiet",
        ARM,
        |rig| {
            let mut pair = rig.pair()?;
            let (one, other) = (pair.b.vector(3)?, pair.b.vector(4)?);
            pair.b.arm(pair.qb.recv_cq, 1 << 3)?;
            message(&mut pair, 1);
            pair.b.fired(&one)?;
            pair.b.not_fired(&other)
        },
    ),
    case(
        "arm.vector-without-eventfd",
        "Arming a vector that is not connected harms nobody",
        "docs/device.md, Life of an interrupt",
        |rig| {
            let mut pair = rig.pair()?;
            pair.b.arm(pair.qb.recv_cq, 1 << 9)?;
            message(&mut pair, 1);
            pair.b_done(100).map(drop)
        },
    ),
    case(
        "arm.fires-for-an-error",
        "An error completion fires too",
        ARM,
        |rig| {
            let mut pair = rig.pair()?;
            let vector = pair.b.vector(3)?;
            pair.receives(1, 64);
            pair.b.arm(pair.qb.recv_cq, 1 << 3)?;
            pair.b.modify(pair.qb.qpn, QpState::ERR)?;
            pair.b.fired(&vector)?;
            same("status", pair.b_wc()?.status, WcStatus::WR_FLUSH_ERR)
        },
    ),
    case(
        "arm.fires-for-an-event",
        "The event queue fires its armed vectors",
        "docs/device.md, Event queue elements",
        |rig| {
            let mut pair = rig.pair()?;
            let vector = pair.b.vector(5)?;
            pair.b.arm_events(1 << 5)?;
            pair.a.named(
                ring_proto::admin::AdminOp::QP_DESTROY,
                pair.qa.qpn,
                ring_proto::admin::AdminStatus::OK,
            )?;
            same("times", pair.b.fired(&vector)?, 1)?;
            pair.b.event_of(EventType::CM_DISCONNECTED).map(drop)
        },
    ),
    case(
        "arm.disconnected-vector-is-quiet",
        "A vector taken away fires nothing",
        "vfio-user, DEVICE_SET_IRQS",
        |rig| {
            let mut pair = rig.pair()?;
            let vector = pair.b.vector(3)?;
            pair.b
                .attachment
                .set_vector(3, None)
                .map_err(super::super::client::refused)?;
            pair.b.arm(pair.qb.recv_cq, 1 << 3)?;
            message(&mut pair, 1);
            pair.b_done(100)?;
            pair.b.not_fired(&vector)
        },
    ),
    case(
        "arm.solicited.skips-others",
        "A CQ armed for solicited completions stays quiet for others",
        ARM,
        |rig| {
            let mut pair = rig.pair()?;
            let vector = pair.b.vector(3)?;
            pair.b.arm_solicited(pair.qb.recv_cq, 1 << 3)?;
            message(&mut pair, 1);
            pair.b_done(100)?;
            pair.b.not_fired(&vector)
        },
    ),
    case(
        "arm.solicited.fires-for-solicited",
        "A CQ armed for solicited completions fires for one",
        ARM,
        |rig| {
            let mut pair = rig.pair()?;
            let vector = pair.b.vector(3)?;
            pair.b.arm_solicited(pair.qb.recv_cq, 1 << 3)?;
            pair.receives(1, 64);
            pair.post(&SendWr::inline(Opcode::SEND, 1, b"x").flags(WqeFlags::SOLICITED));
            same("times", pair.b.fired(&vector)?, 1)
        },
    ),
    case(
        "arm.solicited.fires-for-an-error",
        "A CQ armed for solicited completions fires for an error",
        ARM,
        |rig| {
            let mut pair = rig.pair()?;
            let vector = pair.b.vector(3)?;
            pair.receives(1, 64);
            pair.b.arm_solicited(pair.qb.recv_cq, 1 << 3)?;
            pair.b.modify(pair.qb.qpn, QpState::ERR)?;
            same("times", pair.b.fired(&vector)?, 1)
        },
    ),
];
