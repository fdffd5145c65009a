//! Bodies and records of the connection manager.

use ring_proto::admin::{
    AdminOp, AdminStatus, CmAccept, CmConnect, CmListen, CmQuery, CmRecord, Command, SockAddr,
};

use crate::admin::table;
use crate::client::BASE;
use crate::stage::{
    Answer, BAD_ADDRESS, BAD_STATE, BUSY, INVALID, NO_OBJECT, OK, OUTSIDE, PORT, Stage, own, plain,
};
use crate::table::Value::{Is, Last};
use crate::table::{Field, Row, nest, run};

const FOREIGN: Answer = plain(AdminStatus::BAD_NODE_ADDRESS);
const RECORD_LEN: u64 = size_of::<CmRecord>() as u64;

fn address() -> Vec<Field> {
    fields!(SockAddr {
        family,
        port,
        reserved,
        addr
    })
}

pub(crate) fn listen(op: AdminOp) {
    let fields = fields!(CmListen {
        local,
        backlog,
        holder,
        flags,
        reserved
    });
    let fields = nest(fields, "local", 1, &address());
    let rows: [Row<'_, Answer>; 8] = [
        (
            "local.family",
            // The 16 bytes are no IPv6 address of the node's.
            &[
                (Is(0), INVALID),
                (Is(5), INVALID),
                (Is(6), FOREIGN),
                (Is(0xffff), INVALID),
            ],
        ),
        (
            "local.port",
            &[(Is(0), INVALID), (Is(PORT as u64), BUSY), (Is(0xffff), OK)],
        ),
        (
            "local.reserved",
            &[(Is(1), INVALID), (Is(1 << 31), INVALID)],
        ),
        (
            "local.addr",
            &[
                // All zero: the wildcard. 127.77.0.2 is another node's, 10.0.0.1 nobody's.
                (Is(0), OK),
                (Is(u32::from_le_bytes([127, 77, 0, 2]) as u64), FOREIGN),
                (Is(u32::from_le_bytes([10, 0, 0, 1]) as u64), FOREIGN),
                (Last(1), INVALID),
            ],
        ),
        // Any wish is one: it is held to the bounds.
        ("backlog", &[(Is(0), OK), (Is(0xffff_ffff), OK)]),
        (
            "holder",
            &[(Is(1), NO_OBJECT), (Is(0xffff_ffff), NO_OBJECT)],
        ),
        ("flags", &[(Is(2), INVALID), (Is(1 << 31), INVALID)]),
        ("reserved", &[(Is(1), INVALID), (Is(1 << 31), INVALID)]),
    ];
    table(op, &fields, &rows, |_| {
        CmListen {
            local: own(50),
            backlog: 4,
            ..CmListen::default()
        }
        .to_body()
    });
}

/// A QP that waits for its listener.
pub(crate) fn connecting(stage: &mut Stage) -> u32 {
    stage.request();
    stage.qp.qpn
}

pub(crate) fn connect(op: AdminOp) {
    let fields = fields!(CmConnect {
        record,
        qpn,
        timeout_ms
    });
    let rows: [Row<'_, Answer>; 3] = [
        (
            "record",
            &[
                (Is(0), BAD_ADDRESS),
                (Is(BASE - 1), BAD_ADDRESS),
                (Is(OUTSIDE), BAD_ADDRESS),
                (Is(OUTSIDE - RECORD_LEN + 1), BAD_ADDRESS),
                (Is(u64::MAX), BAD_ADDRESS),
                (Is(u64::MAX - RECORD_LEN + 1), BAD_ADDRESS),
            ],
        ),
        (
            "qpn",
            &[
                (Is(0), NO_OBJECT),
                (Is(2), NO_OBJECT),
                (Is(0xffff_ffff), NO_OBJECT),
            ],
        ),
        // Any limit is one.
        ("timeout_ms", &[(Is(1), OK), (Is(0xffff_ffff), OK)]),
    ];
    table(op, &fields, &rows, |stage| {
        CmConnect {
            record: stage.record(),
            qpn: stage.qp.qpn,
            timeout_ms: 0,
        }
        .to_body()
    });
    record();
}

/// The record in memory that a CM_CONNECT names.
fn record() {
    let fields = fields!(CmRecord {
        source,
        destination,
        peer_function,
        peer_qpn,
        private_len,
        reserved,
        private_data
    });
    let fields = nest(fields, "source", 1, &address());
    let fields = nest(fields, "destination", 1, &address());
    // What a destination has that nobody owns comes as an event: the command itself is sound.
    let rows: [Row<'_, Answer>; 13] = [
        (
            "source.family",
            &[(Is(0), INVALID), (Is(6), FOREIGN), (Is(0xffff), INVALID)],
        ),
        ("source.port", &[(Is(0), OK), (Is(0xffff), OK)]),
        (
            "source.reserved",
            &[(Is(1), INVALID), (Is(1 << 31), INVALID)],
        ),
        (
            "source.addr",
            &[
                (Is(0), FOREIGN),
                (Is(u32::from_le_bytes([127, 77, 0, 2]) as u64), FOREIGN),
                (Last(1), INVALID),
            ],
        ),
        (
            "destination.family",
            &[(Is(0), INVALID), (Is(6), OK), (Is(0xffff), INVALID)],
        ),
        ("destination.port", &[(Is(0), INVALID), (Is(0xffff), OK)]),
        (
            "destination.reserved",
            &[(Is(1), INVALID), (Is(1 << 31), INVALID)],
        ),
        ("destination.addr", &[(Is(0), OK), (Last(1), INVALID)]),
        // The device fills these in, whatever stands there.
        ("peer_function", &[(Is(0xffff_ffff), OK)]),
        ("peer_qpn", &[(Is(0xffff_ffff), OK)]),
        (
            "private_len",
            &[
                (Is(256), OK),
                (Is(257), INVALID),
                (Is(0xffff_ffff), INVALID),
            ],
        ),
        ("reserved", &[(Is(1), INVALID), (Is(1 << 31), INVALID)]),
        ("private_data", &[(Is(u64::MAX), OK), (Last(0xff), OK)]),
    ];
    run("CmRecord", &fields, &rows, &OK, |change| {
        let mut stage = Stage::new();
        let at = stage.record();
        let mut bytes = stage.client.read(at, size_of::<CmRecord>());
        change.apply(&mut bytes);
        stage.client.write(at, &bytes);
        let body = CmConnect {
            record: at,
            qpn: stage.qp.qpn,
            timeout_ms: 0,
        };
        let command_id = stage.client.admin_producer;
        stage.answer(Command {
            opcode: AdminOp::CM_CONNECT.0,
            flags: 0,
            command_id,
            body: body.to_body(),
        })
    });
}

fn accept_fields() -> Vec<Field> {
    fields!(CmAccept {
        request,
        qpn,
        listener,
        status
    })
}

pub(crate) fn accept(op: AdminOp) {
    let first = Stage::new();
    let rows: [Row<'_, Answer>; 4] = [
        (
            "request",
            &[(Is(7), NO_OBJECT), (Is(0xffff_ffff), NO_OBJECT)],
        ),
        (
            "qpn",
            // The first QP is the one that connects.
            &[
                (Is(0), NO_OBJECT),
                (Is(first.qp.qpn.into()), BAD_STATE),
                (Is(3), NO_OBJECT),
                (Is(0xffff_ffff), NO_OBJECT),
            ],
        ),
        (
            "listener",
            &[
                (Is(first.listener.into()), OK),
                (Is(2), NO_OBJECT),
                (Is(0xffff_ffff), NO_OBJECT),
            ],
        ),
        ("status", &[(Is(1), INVALID), (Is(1 << 31), INVALID)]),
    ];
    table(op, &accept_fields(), &rows, |stage| {
        CmAccept {
            request: stage.request(),
            qpn: stage.second().qpn,
            ..CmAccept::default()
        }
        .to_body()
    });
}

pub(crate) fn reject(op: AdminOp) {
    let rows: [Row<'_, Answer>; 4] = [
        (
            "request",
            &[(Is(7), NO_OBJECT), (Is(0xffff_ffff), NO_OBJECT)],
        ),
        ("qpn", &[(Is(1), INVALID), (Is(0xffff_ffff), INVALID)]),
        ("listener", &[(Is(1), INVALID), (Is(0xffff_ffff), INVALID)]),
        (
            "status",
            // REJECTED and NO_RESOURCE; the others are the device's to tell.
            &[
                (Is(2), OK),
                (Is(7), OK),
                (Is(1), INVALID),
                (Is(6), INVALID),
                (Is(1 << 31), INVALID),
            ],
        ),
    ];
    table(op, &accept_fields(), &rows, |stage| {
        CmAccept {
            request: stage.request(),
            ..CmAccept::default()
        }
        .to_body()
    });
}

pub(crate) fn query(op: AdminOp) {
    let fields = fields!(CmQuery { buffer, id, kind });
    let rows: [Row<'_, Answer>; 3] = [
        (
            "buffer",
            &[
                (Is(0), BAD_ADDRESS),
                (Is(OUTSIDE), BAD_ADDRESS),
                (Is(OUTSIDE - RECORD_LEN + 1), BAD_ADDRESS),
                (Is(u64::MAX), BAD_ADDRESS),
            ],
        ),
        ("id", &[(Is(7), NO_OBJECT), (Is(0xffff_ffff), NO_OBJECT)]),
        ("kind", &[(Is(2), INVALID), (Is(0xffff_ffff), INVALID)]),
    ];
    table(op, &fields, &rows, |stage| {
        CmQuery {
            id: stage.request(),
            buffer: stage.free,
            kind: 0,
        }
        .to_body()
    });
    // A QP that is not connected has no record.
    let mut stage = Stage::new();
    let body = CmQuery {
        buffer: stage.free,
        id: stage.qp.qpn,
        kind: 1,
    };
    let status = stage.client.status(&mut stage.device, op, body.to_body());
    assert_eq!(status, AdminStatus::BAD_STATE);
}
