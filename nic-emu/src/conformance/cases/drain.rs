//! Cases about SQD: when a send queue has drained, and who hears of it; and about how many READs and atomics may be under way.
//!
//! Place: see [`super`]. Source: IBTA vol. 1, 10.3.1.5 (SQD), 11.6.3.1; `ibv_modify_qp(3)`, en_sqd_async_notify, max_rd_atomic;
//! `ibv_get_async_event(3)`, IBV_EVENT_SQ_DRAINED.

use ring_proto::admin::{Access, AdminOp, AdminStatus, Named, QpAttributes, QpModify, Refusal};
use ring_proto::eqe::EventType;
use ring_proto::status::{Opcode, QpState, Syndrome, WcStatus};

use super::super::client::{Client, QpOptions, full};
use super::super::rig::{Pair, Rig};
use super::super::wr::SendWr;
use super::super::{Case, Outcome, case, same};

const DRAIN: &str = "IBTA 10.3.1.5; ibv_get_async_event(3), IBV_EVENT_SQ_DRAINED";
const DEPTH: &str = "IBTA 9.4.4, 11.2.4.2; ibv_modify_qp(3), max_rd_atomic and max_dest_rd_atomic";

/// A change of a QP's state with these attributes.
pub(super) fn change(client: &mut Client, qpn: u32, to: QpState, body: QpModify) -> Outcome {
    let body = QpModify {
        qpn,
        state: to.0.into(),
        attributes: body.attributes | QpAttributes::STATE.bits(),
        ..body
    };
    client.ok(AdminOp::QP_MODIFY, body.to_body()).map(drop)
}

/// a's QP to SQD, with an event when its send queue has drained or without.
fn to_sqd(pair: &mut Pair, notify: bool) -> Outcome {
    let body = QpModify {
        attributes: QpAttributes::EN_SQD_ASYNC_NOTIFY.bits(),
        sqd_event: notify.into(),
        ..QpModify::default()
    };
    change(&mut pair.a, pair.qa.qpn, QpState::SQD, body)
}

/// a's QP back to RTS.
fn to_rts(pair: &mut Pair) -> Outcome {
    let body = QpModify::default();
    change(&mut pair.a, pair.qa.qpn, QpState::RTS, body)
}

fn is_draining(pair: &mut Pair) -> Outcome<bool> {
    let named = Named {
        id: pair.qa.qpn,
        reserved: 0,
    };
    let result = pair.a.ok(AdminOp::QP_QUERY, named.to_body())?;
    Ok(result[0] >> 8 & 1 != 0)
}

/// A pair in SQD with a SEND under way that waits for its receive.
fn draining(rig: &Rig<'_>, notify: bool) -> Outcome<Pair> {
    let mut pair = rig.pair()?;
    pair.post(&SendWr::inline(Opcode::SEND, 1, b"under way"));
    pair.a.settle()?;
    to_sqd(&mut pair, notify)?;
    same("draining", is_draining(&mut pair)?, true)?;
    Ok(pair)
}

/// A pair whose QPs may have so many READs and atomics under way: a as initiator, b as responder.
fn deep(rig: &Rig<'_>, initiator: u8, responder: u8) -> Outcome<Pair> {
    let of_b = QpOptions {
        access: full() | Access::REMOTE_ATOMIC,
        ..QpOptions::default()
    };
    let mut pair = rig.pair_with(QpOptions::default(), of_b, 7)?;
    pair.into = pair.b.region(4096, full() | Access::REMOTE_ATOMIC)?;
    let Pair { a, b, qa, qb, .. } = &mut pair;
    let of_a = QpModify {
        attributes: QpAttributes::MAX_QP_RD_ATOMIC.bits(),
        max_rd_atomic: initiator,
        ..QpModify::default()
    };
    let of_b = QpModify {
        attributes: QpAttributes::MAX_DEST_RD_ATOMIC.bits(),
        max_dest_rd_atomic: responder,
        ..QpModify::default()
    };
    // The depths of a connected QP change in SQD.
    for (client, qpn, depth) in [(a, qa.qpn, of_a), (b, qb.qpn, of_b)] {
        change(client, qpn, QpState::SQD, QpModify::default())?;
        change(client, qpn, QpState::SQD, depth)?;
        change(client, qpn, QpState::RTS, QpModify::default())?;
    }
    Ok(pair)
}

/// A READ and an atomic of a.
fn fetches(pair: &Pair) -> [SendWr; 2] {
    let (into, from) = (pair.out.sge(0, 8), pair.into.remote(0));
    [
        SendWr::read(1, into, from),
        SendWr::atomic(Opcode::ATOMIC_FETCH_AND_ADD, 1, into, from, (1, 0)),
    ]
}

pub(super) const CASES: &[Case] = &[
    case(
        "drain.empty-queue-at-once",
        "A send queue with nothing under way has drained at once, and SQ_DRAINED says so",
        DRAIN,
        |rig| {
            let mut pair = rig.pair()?;
            to_sqd(&mut pair, true)?;
            pair.a.expect_event(EventType::SQ_DRAINED, pair.qa.qpn, 0)?;
            same("draining", is_draining(&mut pair)?, false)
        },
    ),
    case(
        "drain.only-who-asked-is-told",
        "Without en_sqd_async_notify no event tells that a send queue has drained",
        DRAIN,
        |rig| {
            let mut pair = rig.pair()?;
            to_sqd(&mut pair, false)?;
            pair.a.no_event()
        },
    ),
    case(
        "drain.waits-for-what-is-under-way",
        "A send queue has drained when the WQE under way has completed",
        DRAIN,
        |rig| {
            let mut pair = draining(rig, true)?;
            pair.a.no_event()?;
            pair.receives(1, 64);
            pair.a_done(1)?;
            pair.a.expect_event(EventType::SQ_DRAINED, pair.qa.qpn, 0)?;
            same("draining", is_draining(&mut pair)?, false)
        },
    ),
    case("drain.told-once", "SQ_DRAINED comes once", DRAIN, |rig| {
        let mut pair = draining(rig, true)?;
        pair.receives(2, 64);
        pair.a.expect_event(EventType::SQ_DRAINED, pair.qa.qpn, 0)?;
        pair.post(&SendWr::inline(Opcode::SEND, 2, b"later"));
        to_rts(&mut pair)?;
        pair.a_done(1)?;
        pair.a_done(2)?;
        pair.a.no_event()
    }),
    case(
        "drain.later-sends-wait-for-rts",
        "What is posted behind the WQE under way is not begun before RTS",
        DRAIN,
        |rig| {
            let mut pair = draining(rig, true)?;
            pair.post(&SendWr::inline(Opcode::SEND, 2, b"behind"));
            pair.receives(2, 64);
            pair.a_done(1)?;
            pair.a.expect_event(EventType::SQ_DRAINED, pair.qa.qpn, 0)?;
            let (send_cq, _) = pair.cqs();
            pair.a.no_wc(send_cq)?;
            to_rts(&mut pair)?;
            pair.a_done(2).map(drop)
        },
    ),
    case(
        "drain.attributes-wait-for-it",
        "Attributes of a QP in SQD change when its send queue has drained, not before",
        "IBTA 10.3.1.5; ibv_modify_qp(3)",
        |rig| {
            let mut pair = draining(rig, false)?;
            let body = QpModify {
                qpn: pair.qa.qpn,
                state: QpState::SQD.0.into(),
                attributes: (QpAttributes::STATE | QpAttributes::RETRY_CNT).bits(),
                retry_cnt: 3,
                ..QpModify::default()
            };
            let (status, [why, _]) = pair.a.admin(AdminOp::QP_MODIFY, body.to_body())?;
            let seen = (status, Refusal::unpack(why).syndrome);
            let wanted = (AdminStatus::BAD_STATE, Syndrome::SQ_DRAINING);
            same("answer and reason", seen, wanted)?;
            pair.receives(1, 64);
            pair.a_done(1)?;
            pair.a.ok(AdminOp::QP_MODIFY, body.to_body()).map(drop)
        },
    ),
    case(
        "drain.back-to-rts-is-silent",
        "A QP that goes back to RTS before its send queue has drained tells nothing",
        DRAIN,
        |rig| {
            let mut pair = draining(rig, true)?;
            to_rts(&mut pair)?;
            pair.receives(1, 64);
            pair.a_done(1)?;
            pair.a.no_event()
        },
    ),
    case(
        "drain.reset-is-silent",
        "A QP that is reset while its send queue drains tells nothing",
        DRAIN,
        |rig| {
            let mut pair = draining(rig, true)?;
            pair.a.modify(pair.qa.qpn, QpState::RESET)?;
            pair.a.no_event()
        },
    ),
    case(
        "drain.failure-ends-in-err",
        "A WQE that fails while the send queue drains takes the QP to ERR, without SQ_DRAINED",
        DRAIN,
        |rig| {
            let mut pair = draining(rig, true)?;
            pair.b.modify(pair.qb.qpn, QpState::ERR)?;
            let wc = pair.a_wc()?;
            same("status", wc.status, WcStatus::RETRY_EXC_ERR)?;
            pair.a.expect_state(pair.qa.qpn, QpState::ERR)?;
            let told = pair.a.drain_events()?;
            let is_drained = told.iter().any(|event| event.0 == EventType::SQ_DRAINED);
            same("SQ_DRAINED", is_drained, false)
        },
    ),
    case(
        "depth.initiator-zero-refused",
        "With max_rd_atomic 0 neither READ nor atomic is begun: LOC_QP_OP_ERR",
        DEPTH,
        |rig| {
            for n in 0..2 {
                let mut pair = deep(rig, 0, 16)?;
                let wr = &fetches(&pair)[n];
                let status = WcStatus::LOC_QP_OP_ERR;
                pair.refused(wr, status, Syndrome::NO_INITIATOR_DEPTH)?;
                pair.b.expect_state(pair.qb.qpn, QpState::RTS)?;
            }
            Ok(())
        },
    ),
    case(
        "depth.responder-zero-refused",
        "With max_dest_rd_atomic 0 neither READ nor atomic is served: REM_INV_REQ_ERR, and QP_REQ_ERR at the responder",
        "IBTA 9.7.4.1.4; ibv_modify_qp(3), max_dest_rd_atomic; ibv_get_async_event(3), IBV_EVENT_QP_REQ_ERR",
        |rig| {
            for n in 0..2 {
                let mut pair = deep(rig, 16, 0)?;
                let wr = &fetches(&pair)[n];
                let syndrome = Syndrome::NO_RESPONDER_DEPTH;
                pair.refused(wr, WcStatus::REM_INV_REQ_ERR, syndrome)?;
                pair.b
                    .expect_event(EventType::QP_REQ_ERR, pair.qb.qpn, syndrome.0.into())?;
                pair.b.expect_state(pair.qb.qpn, QpState::ERR)?;
            }
            Ok(())
        },
    ),
    case(
        "depth.one-serves-many-in-order",
        "With a depth of 1 at both ends many READs and atomics complete in order",
        DEPTH,
        |rig| {
            let mut pair = deep(rig, 1, 1)?;
            let [read, atomic] = fetches(&pair);
            for n in 0..20 {
                let wr = if n % 2 == 0 { &read } else { &atomic };
                let wr = wr.clone().lie(|head| head.wr_id = n);
                pair.a.write_send(&mut pair.qa, &wr);
            }
            pair.a.ring(&pair.qa);
            for n in 0..20 {
                pair.a_done(n)?;
            }
            pair.arrived(&10u64.to_le_bytes())
        },
    ),
    case(
        "depth.writes-need-none",
        "SENDs and WRITEs need no depth",
        DEPTH,
        |rig| {
            let mut pair = deep(rig, 0, 0)?;
            pair.receives(1, 64);
            let wr = SendWr::write(1, pair.out.sge(0, 8), pair.into.remote(0));
            pair.post(&wr);
            pair.a_done(1)?;
            pair.post(&SendWr::inline(Opcode::SEND, 2, b"x"));
            pair.a_done(2).map(drop)
        },
    ),
];
