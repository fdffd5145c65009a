//! Admin commands, one file each, and all of them in one.
//!
//! Place: [`super::seeds`]. Source: ours.

use ring_proto::admin::{
    Access, AdminOp, Body, CmAccept, CmConnect, CmListen, CmQuery, Command, CqModerate, CqResize,
    Hold, HoldClone, MrReg, MwAlloc, MwBind, Named, QpCreate, QpCreateSrq, QpModify, QueueCreate,
    SrqCreate, SrqModify,
};
use ring_proto::status::QpState;
use zerocopy::IntoBytes;

use super::Seed;
use crate::fuzz::rig::BASE;

pub(super) fn admin(seeds: &mut Vec<Seed>) {
    let queue = QueueCreate {
        ring: BASE + 0x2_0000,
        depth: 16,
        slot: 9,
    };
    let qp = QpCreate {
        sq_ring: BASE + 0x2_1000,
        rq_ring: BASE + 0x2_2000,
        sq_depth: 16,
        rq_depth: 16,
        pdn: 1,
        send_cqn: 1,
        recv_cqn: 1,
        slot: 10,
        access: 7,
        ..QpCreate::default()
    };
    let region = MrReg {
        addr: BASE + 0x1000,
        len: 0x1000,
        pdn: 1,
        access: Access::all().bits() & 7,
        ..MrReg::default()
    };
    let modify = |state: QpState| QpModify {
        qpn: 1,
        state: state.0.into(),
        ..QpModify::default()
    };
    let listen = CmListen {
        local: std::net::SocketAddr::from(([10, 0, 0, 1], 9)).into(),
        backlog: 4,
        ..CmListen::default()
    };
    let connect = CmConnect {
        record: BASE + 0x6000,
        qpn: 1,
        timeout_ms: 10,
    };
    let query = CmQuery {
        buffer: BASE + 0x7000,
        id: 1,
        kind: 1,
    };
    let bind = MwBind {
        addr: BASE + 0x1_0000,
        len: 64,
        rkey: 1 << 31,
        access: 4,
        ..MwBind::default()
    };
    let srq = SrqCreate {
        ring: BASE + 0x2_3000,
        depth: 16,
        pdn: 1,
        slot: 11,
        limit: 1,
    };
    let on_srq = QpCreateSrq {
        sq_ring: BASE + 0x2_4000,
        sq_depth: 16,
        srqn: 1,
        pdn: 1,
        send_cqn: 1,
        recv_cqn: 1,
        slot: 12,
        access: 7,
        ..QpCreateSrq::default()
    };
    let resize = CqResize {
        ring: BASE + 0x2_5000,
        cqn: 1,
        depth: 64,
    };
    let moderate = CqModerate {
        cqn: 1,
        count: 4,
        period_us: 10,
    };
    let named = |id| Named { id, reserved: 0 }.to_body();
    let bodies: Vec<(AdminOp, Body)> = vec![
        (AdminOp::IDENTIFY, Body::default()),
        (AdminOp::PD_ALLOC, Body::default()),
        (AdminOp::MR_REG, region.to_body()),
        (AdminOp::CQ_CREATE, queue.to_body()),
        (AdminOp::QP_CREATE, qp.to_body()),
        (AdminOp::QP_MODIFY, modify(QpState::INIT).to_body()),
        (AdminOp::QP_MODIFY, modify(QpState::ERR).to_body()),
        (AdminOp::QP_MODIFY, modify(QpState::RESET).to_body()),
        (AdminOp::QP_QUERY, named(1)),
        (AdminOp::CM_LISTEN, listen.to_body()),
        (AdminOp::CM_CONNECT, connect.to_body()),
        (AdminOp::CM_ACCEPT, CmAccept::default().to_body()),
        (AdminOp::CM_QUERY, query.to_body()),
        (AdminOp::HOLD, Hold::default().to_body()),
        (AdminOp::HOLD_CLONE, HoldClone::default().to_body()),
        (AdminOp::RELEASE, Hold::default().to_body()),
        (AdminOp::CM_DISCONNECT, named(1)),
        (AdminOp::QP_DESTROY, named(1)),
        (AdminOp::CQ_DESTROY, named(1)),
        (AdminOp::MR_DEREG, named(0x100)),
        (AdminOp::EQ_DESTROY, named(1)),
        (AdminOp::PD_FREE, named(1)),
        (AdminOp::STATS, Body::default()),
        (AdminOp::MW_ALLOC, MwAlloc { pdn: 1, kind: 1 }.to_body()),
        (AdminOp::MW_BIND, bind.to_body()),
        (AdminOp::MW_DEALLOC, named(1 << 31)),
        (AdminOp::SRQ_CREATE, srq.to_body()),
        (
            AdminOp::SRQ_MODIFY,
            SrqModify { srqn: 1, limit: 2 }.to_body(),
        ),
        (AdminOp::SRQ_QUERY, named(1)),
        (AdminOp::QP_CREATE_SRQ, on_srq.to_body()),
        (AdminOp::SRQ_DESTROY, named(1)),
        (AdminOp::QP_QUERY_ATTR, named(1)),
        (AdminOp::CQ_RESIZE, resize.to_body()),
        (AdminOp::CQ_MODERATE, moderate.to_body()),
        (AdminOp::EQ_CREATE, queue.to_body()),
        (AdminOp::CM_UNLISTEN, named(1)),
        (AdminOp::CM_CANCEL, named(1)),
        (AdminOp::CM_REJECT, CmAccept::default().to_body()),
    ];
    let mut all = Vec::new();
    for (n, (op, body)) in bodies.iter().enumerate() {
        let command = Command {
            opcode: op.0,
            flags: 0,
            command_id: 5,
            body: *body,
        };
        let mut bytes = command.as_bytes().to_vec();
        bytes[63] = 1 | u8::try_from(n % 2).unwrap() << 1;
        all.extend_from_slice(&bytes);
        seeds.push(("admin", op.to_string().to_lowercase(), bytes));
    }
    // Several of one name: the last stands.
    seeds.dedup_by(|later, earlier| {
        let is_same = (later.0, &later.1) == (earlier.0, &earlier.1);
        if is_same {
            earlier.2.clone_from(&later.2);
        }
        is_same
    });
    seeds.push(("admin", "all".into(), all));
}
