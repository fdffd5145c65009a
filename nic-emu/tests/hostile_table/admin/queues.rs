//! Queue pairs, shared receive queues, and who holds them. QP_MODIFY is in `attributes`.

use ring_proto::admin::{
    AdminOp, Body, Hold, HoldClone, QpCreate, QpCreateSrq, SrqCreate, SrqModify,
};

use super::{DEPTH, NO_HOLDER, RING, UNKNOWN, Values, ZERO, table};
use crate::stage::{Answer, BAD_STATE, BUSY, INVALID, OK, Stage};
use crate::table::Row;
use crate::table::Value::{Flip, Is};

const SLOT_OF_QP: Values = &[
    (Is(0), INVALID),
    (Is(3), BUSY),
    (Is(32_768), INVALID),
    (Is(0xffff_ffff), INVALID),
];

/// An SRQ's doorbell is another word of the slot than a QP's.
const SLOT_OF_SRQ: Values = &[
    (Is(0), INVALID),
    (Is(3), OK),
    (Is(32_768), INVALID),
    (Is(0xffff_ffff), INVALID),
];

const RIGHTS: Values = &[(Flip(32), INVALID), (Flip(1 << 31), INVALID)];

pub(crate) fn srq(stage: &mut Stage) -> u32 {
    let pdn = stage.client.pdn;
    stage.client.srq(&mut stage.device, 16, pdn).srqn
}

pub(crate) fn qp_create_table(op: AdminOp) {
    let fields = fields!(QpCreate {
        sq_ring,
        rq_ring,
        sq_depth,
        rq_depth,
        pdn,
        send_cqn,
        recv_cqn,
        slot,
        holder,
        access,
    });
    let rows = [
        ("sq_ring", RING),
        ("rq_ring", RING),
        ("sq_depth", DEPTH),
        ("rq_depth", DEPTH),
        ("pdn", UNKNOWN),
        ("send_cqn", UNKNOWN),
        ("recv_cqn", UNKNOWN),
        ("slot", SLOT_OF_QP),
        ("holder", NO_HOLDER),
        ("access", RIGHTS),
    ];
    table(op, &fields, &rows, |stage| {
        QpCreate {
            sq_ring: stage.free,
            rq_ring: stage.free + 4096,
            sq_depth: 16,
            rq_depth: 16,
            pdn: stage.client.pdn,
            send_cqn: stage.qp.cqn,
            recv_cqn: stage.qp.cqn,
            slot: 100,
            holder: 0,
            access: 7,
        }
        .to_body()
    });
}

pub(crate) fn qp_create_srq_table(op: AdminOp) {
    let fields = fields!(QpCreateSrq {
        sq_ring,
        sq_depth,
        srqn,
        pdn,
        send_cqn,
        recv_cqn,
        slot,
        holder,
        access,
    });
    let rows = [
        ("sq_ring", RING),
        ("sq_depth", DEPTH),
        ("srqn", UNKNOWN),
        ("pdn", UNKNOWN),
        ("send_cqn", UNKNOWN),
        ("recv_cqn", UNKNOWN),
        ("slot", SLOT_OF_QP),
        ("holder", NO_HOLDER),
        ("access", RIGHTS),
    ];
    table(op, &fields, &rows, |stage| {
        QpCreateSrq {
            sq_ring: stage.free,
            sq_depth: 16,
            srqn: srq(stage),
            pdn: stage.client.pdn,
            send_cqn: stage.qp.cqn,
            recv_cqn: stage.qp.cqn,
            slot: 100,
            holder: 0,
            access: 7,
        }
        .to_body()
    });
}

pub(crate) fn srq_create_table(op: AdminOp) {
    let fields = fields!(SrqCreate {
        ring,
        depth,
        pdn,
        slot,
        limit
    });
    let rows: [Row<'_, Answer>; 5] = [
        ("ring", RING),
        ("depth", DEPTH),
        ("pdn", UNKNOWN),
        ("slot", SLOT_OF_SRQ),
        (
            "limit",
            &[(Is(17), INVALID), (Is(0xffff_ffff), INVALID), (Is(16), OK)],
        ),
    ];
    table(op, &fields, &rows, |stage| {
        SrqCreate {
            ring: stage.free,
            depth: 16,
            pdn: stage.client.pdn,
            slot: 100,
            limit: 0,
        }
        .to_body()
    });
}

pub(crate) fn srq_modify_table(op: AdminOp) {
    let fields = fields!(SrqModify { srqn, limit });
    let rows: [Row<'_, Answer>; 2] = [
        ("srqn", UNKNOWN),
        (
            "limit",
            &[(Is(17), INVALID), (Is(0xffff_ffff), INVALID), (Is(16), OK)],
        ),
    ];
    table(op, &fields, &rows, |stage| {
        SrqModify {
            srqn: srq(stage),
            limit: 1,
        }
        .to_body()
    });
}

const NO_KIND: Values = &[(Is(2), INVALID), (Is(0xffff_ffff), INVALID)];

/// A hold of the stage's only QP, by its only holder.
fn hold_of(stage: &mut Stage) -> Body {
    Hold {
        id: stage.qp.qpn,
        ..Hold::default()
    }
    .to_body()
}

pub(crate) fn hold_table(op: AdminOp) {
    let fields = fields!(Hold {
        id,
        kind,
        slot,
        flags
    });
    let rows: [Row<'_, Answer>; 4] = [
        ("id", UNKNOWN),
        ("kind", NO_KIND),
        ("slot", NO_HOLDER),
        ("flags", &[(Is(1), BAD_STATE), (Is(0xff_ffff), BAD_STATE)]),
    ];
    table(op, &fields, &rows, hold_of);
}

pub(crate) fn release_table(op: AdminOp) {
    let fields = fields!(Hold {
        id,
        kind,
        slot,
        flags
    });
    let rows: [Row<'_, Answer>; 4] = [
        ("id", UNKNOWN),
        ("kind", NO_KIND),
        ("slot", NO_HOLDER),
        (
            "flags",
            &[(Is(2), INVALID), (Is(1 << 31), INVALID), (Is(1), BUSY)],
        ),
    ];
    table(op, &fields, &rows, hold_of);
}

pub(crate) fn hold_clone_table(op: AdminOp) {
    let fields = fields!(HoldClone { from, reserved });
    let rows = [("from", NO_HOLDER), ("reserved", ZERO)];
    table(op, &fields, &rows, |_| HoldClone::default().to_body());
}
