//! Bodies of admin commands. The connection manager's are in [`super::connections`], QP_MODIFY's in [`super::attributes`].

mod completions;
mod memory;
mod queues;

use std::net::Ipv4Addr;

use ring_proto::admin::{AdminOp, AdminStatus, Body, Command, Named};
use zerocopy::IntoBytes;

use self::completions::{cq, cq_create_table, cq_moderate_table, cq_resize_table, eq_create_table};
use self::memory::{mr_reg_table, mw_alloc_table, mw_bind_table, window};
use self::queues::{
    hold_clone_table, hold_table, qp_create_srq_table, qp_create_table, release_table, srq,
    srq_create_table, srq_modify_table,
};
use crate::client::BASE;
use crate::stage::{Answer, BAD_ADDRESS, BUSY, INVALID, NO_OBJECT, OK, OUTSIDE, Stage, plain};
use crate::table::Value::{Flip, Is, Plus};
use crate::table::{Field, Row, Value, run};
use crate::{attributes, connections};

/// What a table says of each value.
pub(crate) type Values = &'static [(Value, Answer)];

/// Runs the table of a command; behind its body all is zero.
pub(crate) fn table(
    op: AdminOp,
    fields: &[Field],
    rows: &[Row<'_, Answer>],
    good: impl Fn(&mut Stage) -> Body,
) {
    let mut fields = fields.to_vec();
    let end = fields.iter().map(|field| field.at + field.len).max();
    let mut rows = rows.to_vec();
    let end = end.unwrap_or(0);
    let behind: Vec<_> = (end..size_of::<Body>())
        .map(|at| format!("byte {at}, behind the body"))
        .collect();
    for (at, name) in (end..).zip(&behind) {
        fields.push(Field {
            name: name.clone(),
            at,
            len: 1,
        });
        rows.push((name, &[(Is(1), INVALID), (Is(0x80), INVALID)]));
    }
    run(&op.to_string(), &fields, &rows, &OK, |change| {
        let mut stage = Stage::new();
        let mut body = good(&mut stage);
        change.apply(body.as_mut_bytes());
        let command_id = stage.client.admin_producer;
        stage.answer(Command {
            opcode: op.0,
            flags: 0,
            command_id,
            body,
        })
    });
}

/// A table for each operation, in a test of its own; an operation without a table does not pass.
macro_rules! tables {
    ($($test:ident: $op:ident => $table:expr;)*) => {
        $(
            #[test]
            fn $test() {
                let table: fn(AdminOp) = $table;
                table(AdminOp::$op);
            }
        )*

        #[test]
        fn each_operation_has_a_table() {
            let known = [$(AdminOp::$op),*];
            for op in AdminOp::ALL {
                assert!(known.contains(op), "no table for {op}");
            }
        }
    };
}

tables! {
    identify: IDENTIFY => |op| table(op, &[], &[], |_| Body::default());
    pd_alloc: PD_ALLOC => |op| table(op, &[], &[], |_| Body::default());
    stats: STATS => |op| table(op, &[], &[], |_| Body::default());
    window_grant: WINDOW_GRANT => reserved;
    pd_free: PD_FREE => |op| named(op, &[used(|stage| stage.client.pdn)], |stage| stage.client.pd(&mut stage.device));
    mr_reg: MR_REG => mr_reg_table;
    mr_dereg: MR_DEREG => |op| named(op, TAGS, Stage::region);
    mw_alloc: MW_ALLOC => mw_alloc_table;
    mw_dealloc: MW_DEALLOC => |op| named(op, TAGS, |stage| window(stage, 1));
    mw_bind: MW_BIND => mw_bind_table;
    cq_create: CQ_CREATE => cq_create_table;
    cq_destroy: CQ_DESTROY => |op| named(op, &[used(|stage| stage.qp.cqn)], cq);
    cq_resize: CQ_RESIZE => cq_resize_table;
    cq_moderate: CQ_MODERATE => cq_moderate_table;
    eq_create: EQ_CREATE => eq_create_table;
    eq_destroy: EQ_DESTROY => |op| named(op, TAGS, |_| 1);
    qp_create: QP_CREATE => qp_create_table;
    qp_create_srq: QP_CREATE_SRQ => qp_create_srq_table;
    qp_modify: QP_MODIFY => attributes::tables;
    qp_query: QP_QUERY => |op| named(op, TAGS, |stage| stage.qp.qpn);
    qp_query_attr: QP_QUERY_ATTR => |op| named(op, TAGS, |stage| stage.qp.qpn);
    qp_destroy: QP_DESTROY => |op| named(op, TAGS, |stage| stage.qp.qpn);
    srq_create: SRQ_CREATE => srq_create_table;
    srq_modify: SRQ_MODIFY => srq_modify_table;
    call_fault: CALL_FAULT => call_fault_table;
    link_query: LINK_QUERY => link_query_table;
    srq_query: SRQ_QUERY => |op| named(op, TAGS, srq);
    srq_destroy: SRQ_DESTROY => |op| named(op, TAGS, srq);
    cm_listen: CM_LISTEN => connections::listen;
    cm_unlisten: CM_UNLISTEN => |op| named(op, TAGS, |stage| stage.listener);
    cm_connect: CM_CONNECT => connections::connect;
    cm_cancel: CM_CANCEL => |op| named(op, TAGS, connections::connecting);
    cm_accept: CM_ACCEPT => connections::accept;
    cm_reject: CM_REJECT => connections::reject;
    cm_query: CM_QUERY => connections::query;
    cm_disconnect: CM_DISCONNECT => |op| named(op, TAGS, Stage::connected);
    hold: HOLD => hold_table;
    hold_clone: HOLD_CLONE => hold_clone_table;
    release: RELEASE => release_table;
}

#[test]
fn header_of_a_command() {
    // The body room is the tables' above, the id the client's own: the completion repeats it.
    let fields = fields!(Command {
        opcode,
        flags,
        command_id,
        body
    });
    let rows: [Row<'_, Answer>; 4] = [
        (
            "opcode",
            &[
                (Is(0), UNSUPPORTED),
                (Is(14), UNSUPPORTED),
                (Is(51), UNSUPPORTED),
                (Is(0x8000), UNSUPPORTED),
                (Is(0xffff), UNSUPPORTED),
            ],
        ),
        ("flags", &[(Is(1), INVALID), (Is(0x8000), INVALID)]),
        ("command_id", &[(Plus(0), OK)]),
        ("body", &[(Is(1), INVALID), (Value::Last(1), INVALID)]),
    ];
    run("header", &fields, &rows, &OK, |change| {
        let mut stage = Stage::new();
        let mut command = Command {
            opcode: AdminOp::PD_ALLOC.0,
            flags: 0,
            command_id: stage.client.admin_producer,
            body: Body::default(),
        };
        change.apply(command.as_mut_bytes());
        stage.answer(command)
    });
}

pub(crate) const UNSUPPORTED: Answer = plain(AdminStatus::UNSUPPORTED);

/// Numbers that name nothing.
const NOTHING: [(Value, Answer); 3] = [
    (Is(0), NO_OBJECT),
    (Is(0xff_ffff), NO_OBJECT),
    (Is(0xffff_ffff), NO_OBJECT),
];

pub(crate) const UNKNOWN: Values = &NOTHING;

/// Keys and numbers whose tag or index is another's.
const TAGS: Values = &[
    (Flip(1), NO_OBJECT),
    (Flip(0x80), NO_OBJECT),
    (Plus(0x100), NO_OBJECT),
    (Flip(1 << 31), NO_OBJECT),
];

pub(crate) const ZERO: Values = &[(Is(1), INVALID), (Is(1 << 31), INVALID)];

pub(crate) const RING: Values = &[
    (Is(0), BAD_ADDRESS),
    (Is(OUTSIDE), BAD_ADDRESS),
    (Is(OUTSIDE - 64), BAD_ADDRESS),
    (Is(BASE - 64), BAD_ADDRESS),
    (Plus(1), INVALID),
    (Plus(32), INVALID),
    (Is(u64::MAX - 63), BAD_ADDRESS),
];

pub(crate) const DEPTH: Values = &[
    (Is(0), INVALID),
    (Is(3), INVALID),
    (Is(0xffff), INVALID),
    (Is(1 << 31), INVALID),
    (Is(0xffff_ffff), INVALID),
];

pub(crate) const NO_HOLDER: Values = &[(Is(1), NO_OBJECT), (Is(0xffff_ffff), NO_OBJECT)];

/// The table of a body that names one object.
fn named(op: AdminOp, others: &[(Value, Answer)], id: fn(&mut Stage) -> u32) {
    let fields = fields!(Named { id, reserved });
    let ids = [UNKNOWN, others].concat();
    let rows = [("id", &ids[..]), ("reserved", ZERO)];
    let good = |stage: &mut Stage| {
        let id = id(stage);
        Named { id, reserved: 0 }.to_body()
    };
    table(op, &fields, &rows, good);
}

/// The table of a body that names something that is no object.
fn asked(op: AdminOp, ids: &[(Value, Answer)], id: u32) {
    let fields = fields!(Named { id, reserved });
    let rows = [("id", ids), ("reserved", ZERO)];
    table(op, &fields, &rows, |_| Named { id, reserved: 0 }.to_body());
}

fn call_fault_table(op: AdminOp) {
    let ids = [(Is(7), OK), (Is(8), INVALID), (Is(0xffff_ffff), INVALID)];
    asked(op, &ids, 0);
}

fn link_query_table(op: AdminOp) {
    const BAD_NODE_ADDRESS: Answer = plain(AdminStatus::BAD_NODE_ADDRESS);
    let own = Ipv4Addr::new(127, 77, 0, 1).to_bits();
    let ids = [
        (Is(0), BAD_NODE_ADDRESS),
        (Is(0x7f00_0001), BAD_NODE_ADDRESS),
        (Is(0xffff_ffff), BAD_NODE_ADDRESS),
    ];
    asked(op, &ids, own);
}

/// An object that others use. Numbers are the same on every stage.
fn used(id: fn(&Stage) -> u32) -> (Value, Answer) {
    (Is(id(&Stage::new()).into()), BUSY)
}

pub(crate) fn reserved(op: AdminOp) {
    let mut stage = Stage::new();
    let command_id = stage.client.admin_producer;
    let answer = stage.answer(Command {
        opcode: op.0,
        flags: 0,
        command_id,
        body: Body::default(),
    });
    assert_eq!(answer, UNSUPPORTED);
}
