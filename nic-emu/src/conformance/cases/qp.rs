//! Cases about queue pairs: creation, states, destruction.
//!
//! Place: see [`super`]. Source: IBTA vol. 1, 10.2.4 and 10.3.1; `ibv_create_qp(3)`, `ibv_modify_qp(3)`, `ibv_destroy_qp(3)`.

use ring_proto::admin::{Access, AdminOp, AdminStatus, Body, QpCreate, QpModify};
use ring_proto::eqe::EventType;
use ring_proto::regs;
use ring_proto::status::QpState;
use zerocopy::IntoBytes;

use super::super::client::{Client, QpOptions, to_rtr, to_state};
use super::super::rig::Rig;
use super::super::target::Port;
use super::super::wr::SendWr;
use super::super::{Case, Outcome, case, failed, same};
use super::{OURS, STATES};

const CREATE: &str = "IBTA 10.2.4; ibv_create_qp(3)";
const DESTROY: &str = "IBTA 10.2.4.5; ibv_destroy_qp(3)";

/// A creation with one thing wrong.
fn refused_create(
    rig: &mut Rig<'_>,
    wanted: AdminStatus,
    spoil: impl FnOnce(&mut QpCreate),
) -> Outcome {
    let mut a = rig.client(Port::A)?;
    let (mut body, _) = a.qp_body(QpOptions::default())?;
    spoil(&mut body);
    a.refuse(AdminOp::QP_CREATE, body.to_body(), wanted)
}

pub(super) const CASES: &[Case] = &[
    case(
        "qp.create.starts-in-reset",
        "A new QP is in RESET",
        CREATE,
        |rig| {
            let mut a = rig.client(Port::A)?;
            let qp = a.qp(QpOptions::default())?;
            a.expect_state(qp.qpn, QpState::RESET)
        },
    ),
    case(
        "qp.create.unknown-type-refused",
        "Only RC exists: a creation that asks for anything more, in bytes that have no meaning, is refused",
        CREATE,
        |rig| {
            let mut a = rig.client(Port::A)?;
            let (body, _) = a.qp_body(QpOptions::default())?;
            let mut raw: Body = body.to_body();
            if let Some(last) = raw.0.as_mut_bytes().last_mut() {
                *last = 1;
            }
            a.refuse(AdminOp::QP_CREATE, raw, AdminStatus::INVALID)
        },
    ),
    case(
        "qp.create.unknown-pd-refused",
        "A QP needs a protection domain that exists",
        CREATE,
        |rig| refused_create(rig, AdminStatus::NO_OBJECT, |body| body.pdn += 1),
    ),
    case(
        "qp.create.unknown-send-cq-refused",
        "The send CQ must exist",
        CREATE,
        |rig| refused_create(rig, AdminStatus::NO_OBJECT, |body| body.send_cqn += 1),
    ),
    case(
        "qp.create.unknown-recv-cq-refused",
        "The receive CQ must exist",
        CREATE,
        |rig| refused_create(rig, AdminStatus::NO_OBJECT, |body| body.recv_cqn += 1),
    ),
    case(
        "qp.create.depth-zero-refused",
        "A queue of no entries is refused",
        CREATE,
        |rig| refused_create(rig, AdminStatus::INVALID, |body| body.sq_depth = 0),
    ),
    case(
        "qp.create.depth-odd-refused",
        "Depths are powers of two",
        OURS,
        |rig| refused_create(rig, AdminStatus::INVALID, |body| body.rq_depth = 24),
    ),
    case(
        "qp.create.depth-above-limit-refused",
        "A queue deeper than the device tells is refused",
        CREATE,
        |rig| {
            refused_create(rig, AdminStatus::INVALID, |body| {
                body.sq_depth = regs::DEPTH_LIMIT * 2
            })
        },
    ),
    case(
        "qp.create.ring-outside-windows-refused",
        "Rings lie in memory that the client has mapped",
        OURS,
        |rig| refused_create(rig, AdminStatus::BAD_ADDRESS, |body| body.sq_ring = 1 << 50),
    ),
    case(
        "qp.create.ring-misaligned-refused",
        "Rings are aligned to 64 bytes",
        OURS,
        |rig| refused_create(rig, AdminStatus::INVALID, |body| body.rq_ring += 8),
    ),
    case(
        "qp.create.unknown-access-refused",
        "Access bits without a meaning are refused",
        CREATE,
        |rig| refused_create(rig, AdminStatus::INVALID, |body| body.access = 1 << 31),
    ),
    case(
        "qp.create.slot-taken-refused",
        "A doorbell slot has one owner",
        OURS,
        |rig| {
            let mut a = rig.client(Port::A)?;
            let first = a.qp(QpOptions::default())?;
            let (mut body, _) = a.qp_body(QpOptions::default())?;
            body.slot = first.slot;
            a.refuse(AdminOp::QP_CREATE, body.to_body(), AdminStatus::BUSY)
        },
    ),
    case(
        "qp.create.admin-slot-refused",
        "Slot 0 belongs to the admin queue",
        OURS,
        |rig| refused_create(rig, AdminStatus::INVALID, |body| body.slot = 0),
    ),
    case(
        "qp.modify.unknown-qp-refused",
        "A QP that does not exist cannot be modified",
        STATES,
        |rig| {
            let mut a = rig.client(Port::A)?;
            let body = to_state(77, QpState::INIT).to_body();
            a.refuse(AdminOp::QP_MODIFY, body, AdminStatus::NO_OBJECT)
        },
    ),
    case(
        "qp.modify.unknown-state-refused",
        "A state without a meaning is refused and changes nothing",
        STATES,
        |rig| {
            let mut a = rig.client(Port::A)?;
            let qp = a.init_qp(QpOptions::default())?;
            let (status, _) =
                a.admin(AdminOp::QP_MODIFY, to_state(qp.qpn, QpState(9)).to_body())?;
            if status == AdminStatus::OK {
                return failed("state 9 was accepted");
            }
            a.expect_state(qp.qpn, QpState::INIT)
        },
    ),
    case(
        "qp.modify.to-sqe-refused",
        "SQE is entered by the device alone",
        STATES,
        |rig| {
            let mut pair = rig.pair()?;
            let body = to_state(pair.qa.qpn, QpState::SQE).to_body();
            let (status, _) = pair.a.admin(AdminOp::QP_MODIFY, body)?;
            if status == AdminStatus::OK {
                return failed("SQE was accepted");
            }
            pair.a.expect_state(pair.qa.qpn, QpState::RTS)
        },
    ),
    case(
        "qp.modify.rtr-unknown-peer-function-refused",
        "The transition to RTR names a peer that exists",
        STATES,
        |rig| {
            let mut a = rig.client(Port::A)?;
            let qp = a.init_qp(QpOptions::default())?;
            let body = to_rtr(qp.qpn, (0xffff, 1)).to_body();
            a.refuse(AdminOp::QP_MODIFY, body, AdminStatus::NO_OBJECT)?;
            a.expect_state(qp.qpn, QpState::INIT)
        },
    ),
    case(
        "qp.modify.rtr-unknown-peer-qp-refused",
        "The transition to RTR names a QP number that exists",
        STATES,
        |rig| {
            let mut a = rig.client(Port::A)?;
            let qp = a.init_qp(QpOptions::default())?;
            let body = to_rtr(qp.qpn, (a.function, 0xff_ffff)).to_body();
            a.refuse(AdminOp::QP_MODIFY, body, AdminStatus::NO_OBJECT)?;
            a.expect_state(qp.qpn, QpState::INIT)
        },
    ),
    case(
        "qp.modify.peer-outside-rtr-refused",
        "A peer is an attribute of the transition to RTR alone",
        STATES,
        |rig| {
            let mut a = rig.client(Port::A)?;
            let qp = a.qp(QpOptions::default())?;
            let body = QpModify {
                peer_function: a.function,
                peer_qpn: qp.qpn,
                ..to_state(qp.qpn, QpState::INIT)
            };
            a.refuse(AdminOp::QP_MODIFY, body.to_body(), AdminStatus::INVALID)?;
            a.expect_state(qp.qpn, QpState::RESET)
        },
    ),
    case(
        "qp.modify.rnr-retry-outside-rts-refused",
        "Receiver-not-ready retries are an attribute of the transition to RTS alone",
        STATES,
        |rig| {
            let mut a = rig.client(Port::A)?;
            let qp = a.qp(QpOptions::default())?;
            let body = QpModify {
                rnr_retry: 3,
                ..to_state(qp.qpn, QpState::INIT)
            };
            a.refuse(AdminOp::QP_MODIFY, body.to_body(), AdminStatus::INVALID)
        },
    ),
    case(
        "qp.modify.rnr-retry-above-seven-refused",
        "Receiver-not-ready retries have three bits",
        STATES,
        |rig| {
            let mut pair = rig.pair()?;
            let body = QpModify {
                rnr_retry: 8,
                ..to_state(pair.qa.qpn, QpState::RTS)
            };
            pair.a
                .refuse(AdminOp::QP_MODIFY, body.to_body(), AdminStatus::INVALID)
        },
    ),
    case(
        "qp.query.names-state-and-peer",
        "A query tells the state and the peer",
        "IBTA 10.2.4.3; ibv_query_qp(3)",
        |rig| {
            let mut pair = rig.pair()?;
            let body = ring_proto::admin::Named {
                id: pair.qa.qpn,
                reserved: 0,
            };
            let result = pair.a.ok(AdminOp::QP_QUERY, body.to_body())?;
            same("peer QPN", result[0] >> 32, u64::from(pair.qb.qpn))?;
            same(
                "peer function",
                result[1] & 0xffff_ffff,
                u64::from(pair.b.function),
            )?;
            same("state", result[0] & 0xff, u64::from(QpState::RTS.0))
        },
    ),
    case(
        "qp.query.unknown-refused",
        "A QP that does not exist cannot be queried",
        "IBTA 10.2.4.3; ibv_query_qp(3)",
        |rig| {
            rig.client(Port::A)?
                .named(AdminOp::QP_QUERY, 77, AdminStatus::NO_OBJECT)
        },
    ),
    case(
        "qp.destroy.ends-it",
        "A destroyed QP is unknown from then on",
        DESTROY,
        |rig| {
            let mut a = rig.client(Port::A)?;
            let qp = a.init_qp(QpOptions::default())?;
            a.named(AdminOp::QP_DESTROY, qp.qpn, AdminStatus::OK)?;
            a.named(AdminOp::QP_QUERY, qp.qpn, AdminStatus::NO_OBJECT)?;
            a.named(AdminOp::QP_DESTROY, qp.qpn, AdminStatus::NO_OBJECT)
        },
    ),
    case(
        "qp.destroy.frees-its-cq-and-pd",
        "What a QP used may go after it",
        DESTROY,
        |rig| {
            let mut a = rig.client(Port::A)?;
            let pdn = a.pd()?;
            let qp = a.init_qp(QpOptions {
                pdn: Some(pdn),
                ..QpOptions::default()
            })?;
            let cqn = a.cqn(qp.send_cq)?;
            a.named(AdminOp::CQ_DESTROY, cqn, AdminStatus::BUSY)?;
            a.named(AdminOp::PD_FREE, pdn, AdminStatus::BUSY)?;
            a.named(AdminOp::QP_DESTROY, qp.qpn, AdminStatus::OK)?;
            a.named(AdminOp::CQ_DESTROY, cqn, AdminStatus::OK)?;
            a.named(AdminOp::PD_FREE, pdn, AdminStatus::OK)
        },
    ),
    case(
        "qp.destroy.no-completions-of-it-follow",
        "Work requests that a destroyed QP had posted complete no more",
        DESTROY,
        |rig| {
            let mut a = rig.client(Port::A)?;
            let region = a.region(64, Access::LOCAL_WRITE)?;
            let mut qp = a.init_qp(QpOptions::default())?;
            a.recv(&mut qp, 1, &[region.sge(0, 64)]);
            a.settle()?;
            a.named(AdminOp::QP_DESTROY, qp.qpn, AdminStatus::OK)?;
            a.no_wc(qp.recv_cq)
        },
    ),
    case(
        "qp.destroy.peer-hears-of-it",
        "The end of a QP is told to a connected peer, whose QP goes to ERR",
        "IBTA 12.9.7 (DREQ); docs/device.md",
        |rig| {
            let mut pair = rig.pair()?;
            let qpn = pair.qa.qpn;
            pair.a.named(AdminOp::QP_DESTROY, qpn, AdminStatus::OK)?;
            let (_, source, _) = pair.b.event_of(EventType::CM_DISCONNECTED)?;
            same("QP of the event", source, pair.qb.qpn)?;
            pair.b.expect_state(pair.qb.qpn, QpState::ERR)
        },
    ),
    case(
        "qp.init.receives-may-be-posted",
        "Receives posted in INIT take messages later",
        STATES,
        |rig| {
            let mut a = rig.client(Port::A)?;
            let mut b = rig.client(Port::B)?;
            let mut qa = a.init_qp(QpOptions::default())?;
            let mut qb = b.init_qp(QpOptions::default())?;
            let into = b.region(64, Access::LOCAL_WRITE)?;
            b.recv(&mut qb, 5, &[into.sge(0, 64)]);
            b.settle()?;
            connect(&mut a, qa.qpn, &mut b, qb.qpn)?;
            a.send(
                &mut qa,
                &SendWr::inline(ring_proto::status::Opcode::SEND, 1, b"early"),
            );
            let wc = b.wc(qb.recv_cq)?;
            same("wr_id and length", (wc.wr_id, wc.byte_len), (5, 5))
        },
    ),
    case(
        "qp.rtr.receives-are-served",
        "A QP in RTR takes messages",
        STATES,
        |rig| {
            let mut a = rig.client(Port::A)?;
            let mut b = rig.client(Port::B)?;
            let mut qa = a.init_qp(QpOptions::default())?;
            let mut qb = b.init_qp(QpOptions::default())?;
            let into = b.region(64, Access::LOCAL_WRITE)?;
            a.modify_to_rtr(qa.qpn, (b.function, qb.qpn))?;
            b.modify_to_rtr(qb.qpn, (a.function, qa.qpn))?;
            a.modify_to_rts(qa.qpn, 7)?;
            b.recv(&mut qb, 5, &[into.sge(0, 64)]);
            a.send(
                &mut qa,
                &SendWr::inline(ring_proto::status::Opcode::SEND, 1, b"rtr"),
            );
            let wc = b.wc(qb.recv_cq)?;
            same("wr_id and length", (wc.wr_id, wc.byte_len), (5, 3))
        },
    ),
    case(
        "qp.rtr.sends-wait-for-rts",
        "Sends are executed in RTS only",
        STATES,
        |rig| {
            let mut a = rig.client(Port::A)?;
            let mut b = rig.client(Port::B)?;
            let mut qa = a.init_qp(QpOptions::default())?;
            let mut qb = b.init_qp(QpOptions::default())?;
            let into = b.region(64, Access::LOCAL_WRITE)?;
            b.recv(&mut qb, 5, &[into.sge(0, 64)]);
            b.modify_to_rtr(qb.qpn, (a.function, qa.qpn))?;
            a.modify_to_rtr(qa.qpn, (b.function, qb.qpn))?;
            a.send(
                &mut qa,
                &SendWr::inline(ring_proto::status::Opcode::SEND, 1, b"later"),
            );
            a.no_wc(qa.send_cq)?;
            b.no_wc(qb.recv_cq)?;
            a.modify_to_rts(qa.qpn, 7)?;
            let wc = a.wc(qa.send_cq)?;
            same("wr_id", wc.wr_id, 1)
        },
    ),
    case(
        "qp.sqd.sends-stop",
        "In SQD no new send begins; back in RTS it goes on",
        STATES,
        |rig| {
            let mut pair = rig.pair()?;
            pair.receives(1, 64);
            pair.a.modify(pair.qa.qpn, QpState::SQD)?;
            pair.post(&SendWr::inline(ring_proto::status::Opcode::SEND, 1, b"x"));
            let (send_cq, recv_cq) = pair.cqs();
            pair.a.no_wc(send_cq)?;
            pair.b.no_wc(recv_cq)?;
            pair.a.modify_to_rts(pair.qa.qpn, 7)?;
            pair.a_done(1)?;
            pair.b_done(100).map(drop)
        },
    ),
    case(
        "qp.sqd.receives-are-served",
        "A QP in SQD takes messages",
        STATES,
        |rig| {
            let mut pair = rig.pair()?;
            pair.receives(1, 64);
            pair.b.modify(pair.qb.qpn, QpState::SQD)?;
            pair.post(&SendWr::inline(ring_proto::status::Opcode::SEND, 1, b"x"));
            pair.b_done(100)?;
            pair.a_done(1).map(drop)
        },
    ),
    case(
        "qp.reset.queues-start-anew",
        "Back from RESET a QP has empty queues and forgets what was posted, without completions",
        STATES,
        |rig| {
            let mut pair = rig.pair()?;
            pair.receives(2, 64);
            pair.b.settle()?;
            pair.b.modify(pair.qb.qpn, QpState::RESET)?;
            let (_, recv_cq) = pair.cqs();
            pair.b.no_wc(recv_cq)?;
            pair.a.modify(pair.qa.qpn, QpState::RESET)?;
            for qp in [&mut pair.qa, &mut pair.qb] {
                qp.sq_producer = 0;
                qp.rq_producer = 0;
            }
            pair.a.modify(pair.qa.qpn, QpState::INIT)?;
            pair.b.modify(pair.qb.qpn, QpState::INIT)?;
            connect(&mut pair.a, pair.qa.qpn, &mut pair.b, pair.qb.qpn)?;
            let sge = pair.into.sge(0, 64);
            pair.b.recv(&mut pair.qb, 200, &[sge]);
            pair.post(&SendWr::inline(
                ring_proto::status::Opcode::SEND,
                1,
                b"new life",
            ));
            pair.b_done(200)?;
            pair.a_done(1).map(drop)
        },
    ),
    case(
        "qp.self.connected-to-itself",
        "A QP may be its own peer",
        STATES,
        |rig| {
            let mut a = rig.client(Port::A)?;
            let mut qp = a.init_qp(QpOptions::default())?;
            let region = a.region(64, Access::LOCAL_WRITE)?;
            a.modify_to_rtr(qp.qpn, (a.function, qp.qpn))?;
            a.modify_to_rts(qp.qpn, 7)?;
            a.recv(&mut qp, 1, &[region.sge(0, 64)]);
            a.send(
                &mut qp,
                &SendWr::inline(ring_proto::status::Opcode::SEND, 2, b"me"),
            );
            let ids: Vec<_> = a.wcs(qp.send_cq, 2)?.iter().map(|wc| wc.wr_id).collect();
            same("wr_ids, receive first", ids, vec![1, 2])?;
            same("bytes", a.memory.read(region.iova, 2)?.as_slice(), b"me")
        },
    ),
];

/// Takes two QPs from INIT to RTS as each other's peers.
fn connect(a: &mut Client, qa: u32, b: &mut Client, qb: u32) -> Outcome {
    a.modify_to_rtr(qa, (b.function, qb))?;
    b.modify_to_rtr(qb, (a.function, qa))?;
    a.modify_to_rts(qa, 7)?;
    b.modify_to_rts(qb, 7)
}

/// Brings a QP from one state towards another, which must succeed or be refused without a change.
fn transition<const FROM: u8, const TO: u8, const ALLOWED: bool>(rig: &mut Rig<'_>) -> Outcome {
    let mut a = rig.client(Port::A)?;
    let mut b = rig.client(Port::B)?;
    let qp = a.qp(QpOptions::default())?;
    let peer = b.init_qp(QpOptions::default())?;
    let address = (b.function, peer.qpn);
    let path: &[QpState] = match QpState(FROM) {
        QpState::RESET => &[],
        QpState::INIT => &[QpState::INIT],
        QpState::RTR => &[QpState::INIT, QpState::RTR],
        QpState::RTS => &[QpState::INIT, QpState::RTR, QpState::RTS],
        QpState::SQD => &[QpState::INIT, QpState::RTR, QpState::RTS, QpState::SQD],
        _ => &[QpState::ERR],
    };
    for &state in path {
        if state == QpState::RTR {
            a.modify_to_rtr(qp.qpn, address)?;
        } else {
            a.modify(qp.qpn, state)?;
        }
    }
    a.expect_state(qp.qpn, QpState(FROM))?;
    let body = if QpState(TO) == QpState::RTR {
        to_rtr(qp.qpn, address)
    } else {
        to_state(qp.qpn, QpState(TO))
    };
    let wanted = if ALLOWED {
        AdminStatus::OK
    } else {
        AdminStatus::BAD_STATE
    };
    a.refuse(AdminOp::QP_MODIFY, body.to_body(), wanted)?;
    a.expect_state(qp.qpn, QpState(if ALLOWED { TO } else { FROM }))
}

macro_rules! transitions {
    ($($id:literal $from:ident $to:ident $allowed:tt;)*) => {
        /// Every transition between the states that a driver may ask for.
        pub(super) const TRANSITIONS: &[Case] = &[$(case(
            $id,
            concat!("From ", stringify!($from), " a QP ", transitions!(@ $allowed), " to ", stringify!($to)),
            STATES,
            transition::<{ QpState::$from.0 }, { QpState::$to.0 }, $allowed>,
        ),)*];
    };
    (@ true) => { "goes" };
    (@ false) => { "does not go" };
}

transitions! {
    "qp.modify.reset-to-reset" RESET RESET true;
    "qp.modify.reset-to-init" RESET INIT true;
    "qp.modify.reset-to-rtr-refused" RESET RTR false;
    "qp.modify.reset-to-rts-refused" RESET RTS false;
    "qp.modify.reset-to-sqd-refused" RESET SQD false;
    "qp.modify.reset-to-err" RESET ERR true;
    "qp.modify.init-to-reset" INIT RESET true;
    "qp.modify.init-to-init" INIT INIT true;
    "qp.modify.init-to-rtr" INIT RTR true;
    "qp.modify.init-to-rts-refused" INIT RTS false;
    "qp.modify.init-to-sqd-refused" INIT SQD false;
    "qp.modify.init-to-err" INIT ERR true;
    "qp.modify.rtr-to-reset" RTR RESET true;
    "qp.modify.rtr-to-init-refused" RTR INIT false;
    "qp.modify.rtr-to-rtr-refused" RTR RTR false;
    "qp.modify.rtr-to-rts" RTR RTS true;
    "qp.modify.rtr-to-sqd-refused" RTR SQD false;
    "qp.modify.rtr-to-err" RTR ERR true;
    "qp.modify.rts-to-reset" RTS RESET true;
    "qp.modify.rts-to-init-refused" RTS INIT false;
    "qp.modify.rts-to-rtr-refused" RTS RTR false;
    "qp.modify.rts-to-rts" RTS RTS true;
    "qp.modify.rts-to-sqd" RTS SQD true;
    "qp.modify.rts-to-err" RTS ERR true;
    "qp.modify.sqd-to-reset" SQD RESET true;
    "qp.modify.sqd-to-init-refused" SQD INIT false;
    "qp.modify.sqd-to-rtr-refused" SQD RTR false;
    "qp.modify.sqd-to-rts" SQD RTS true;
    "qp.modify.sqd-to-sqd" SQD SQD true;
    "qp.modify.sqd-to-err" SQD ERR true;
    "qp.modify.err-to-reset" ERR RESET true;
    "qp.modify.err-to-init-refused" ERR INIT false;
    "qp.modify.err-to-rtr-refused" ERR RTR false;
    "qp.modify.err-to-rts-refused" ERR RTS false;
    "qp.modify.err-to-sqd-refused" ERR SQD false;
    "qp.modify.err-to-err" ERR ERR true;
}
