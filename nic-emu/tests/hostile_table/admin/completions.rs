//! Completion and event queues.

use ring_proto::admin::{AdminOp, AdminStatus, CqModerate, CqResize, QueueCreate};
use ring_proto::status::Syndrome;

use super::{DEPTH, RING, UNKNOWN, Values, table};
use crate::client::BASE;
use crate::stage::{Answer, BUSY, INVALID, OK, Stage};
use crate::table::Row;
use crate::table::Value::Is;

/// Doorbell slots. Slot 1 is the EQ's, 2 a CQ's, 3 a QP's.
const SLOT_OF_COMPLETIONS: Values = &[
    (Is(0), INVALID),
    (Is(1), BUSY),
    (Is(2), BUSY),
    (Is(32_768), INVALID),
    (Is(0xffff_ffff), INVALID),
];

pub(crate) fn cq(stage: &mut Stage) -> u32 {
    stage.client.cq(&mut stage.device, 16).0
}

pub(crate) fn cq_create_table(op: AdminOp) {
    let fields = fields!(QueueCreate { ring, depth, slot });
    let rows = [
        ("ring", RING),
        ("depth", DEPTH),
        ("slot", SLOT_OF_COMPLETIONS),
    ];
    table(op, &fields, &rows, |stage| {
        QueueCreate {
            ring: stage.free,
            depth: 16,
            slot: 100,
        }
        .to_body()
    });
}

pub(crate) fn eq_create_table(op: AdminOp) {
    let fields = fields!(QueueCreate { ring, depth, slot });
    let rows = [
        ("ring", RING),
        ("depth", DEPTH),
        // Slot 1 is free again: the good command has destroyed its EQ first.
        (
            "slot",
            &[
                (Is(0), INVALID),
                (Is(1), OK),
                (Is(2), BUSY),
                (Is(32_768), INVALID),
                (Is(0xffff_ffff), INVALID),
            ],
        ),
    ];
    let body = |stage: &mut Stage| {
        QueueCreate {
            ring: stage.free,
            depth: 16,
            slot: 100,
        }
        .to_body()
    };
    table(op, &fields, &rows, |stage| {
        let status = stage
            .client
            .named(&mut stage.device, AdminOp::EQ_DESTROY, 1);
        assert_eq!(status, AdminStatus::OK);
        body(stage)
    });
    // There is one.
    let mut stage = Stage::new();
    let body = body(&mut stage);
    let status = stage.client.status(&mut stage.device, op, body);
    assert_eq!(status, AdminStatus::BUSY);
}

pub(crate) fn cq_resize_table(op: AdminOp) {
    let overlap = (AdminStatus::INVALID, Syndrome::CQ_RINGS_OVERLAP);
    let fields = fields!(CqResize { ring, cqn, depth });
    let rings = [
        RING,
        // The CQ of the stage lies 64 KiB of free memory and the rings of its QP before.
        &[(Is(OLD_RING), overlap), (Is(OLD_RING + 64), overlap)],
    ]
    .concat();
    let rows = [("ring", &rings[..]), ("cqn", UNKNOWN), ("depth", DEPTH)];
    table(op, &fields, &rows, |stage| {
        CqResize {
            ring: stage.free,
            cqn: stage.qp.cqn,
            depth: 16,
        }
        .to_body()
    });
}

/// Where the client puts the ring of its first CQ: what it allocates first.
const OLD_RING: u64 = BASE + 0x1_0000;

pub(crate) fn cq_moderate_table(op: AdminOp) {
    let endless = (AdminStatus::INVALID, Syndrome::MODERATION_ENDLESS);
    let fields = fields!(CqModerate {
        cqn,
        count,
        period_us
    });
    let rows: [Row<'_, Answer>; 3] = [
        ("cqn", UNKNOWN),
        ("count", &[(Is(0), OK), (Is(0xffff), OK)]),
        ("period_us", &[(Is(0), endless), (Is(0xffff), OK)]),
    ];
    table(op, &fields, &rows, |stage| {
        CqModerate {
            cqn: stage.qp.cqn,
            count: 8,
            period_us: 100,
        }
        .to_body()
    });
}
