//! Every field of the bodies of admin commands with every kind of bad value, and the status that answers it.
//!
//! The fields come from the structures themselves: one without a row does not pass, and a structure that grows does not compile.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[expect(dead_code, reason = "its own suite needs more of it")]
#[path = "../device_suite/client.rs"]
mod client;

use std::mem::offset_of;

use nic_emu::device::Device;
use ring_proto::admin::{
    AdminOp, AdminStatus, Body, CmAccept, CmConnect, CmListen, CmQuery, Command, Hold, HoldClone,
    MrReg, Named, QpCreate, QueueCreate,
};
use zerocopy::IntoBytes;

use self::client::{A, BASE, Client, MEMORY, RawQp, device, pump, sock};

const OUTSIDE: u64 = BASE + MEMORY;
const INVALID: AdminStatus = AdminStatus::INVALID;
const NO_OBJECT: AdminStatus = AdminStatus::NO_OBJECT;
const BAD_ADDRESS: AdminStatus = AdminStatus::BAD_ADDRESS;
const OK: AdminStatus = AdminStatus::OK;

/// A field: name, offset, bytes.
type Field = (&'static str, usize, usize);
/// A field's bad values with the status that answers each.
type Row = (&'static str, &'static [(u64, AdminStatus)]);

fn size_of_field<T, F>(_: fn(&T) -> &F) -> usize {
    size_of::<F>()
}

/// The fields of a structure. The pattern without `..` does not compile when one is left out.
macro_rules! fields {
    ($name:ident { $($field:ident),* $(,)? }) => {{
        let _is_complete = |value: &$name| {
            let $name { $($field: _),* } = value;
        };
        let fields: Vec<Field> = vec![$((
            stringify!($field),
            offset_of!($name, $field),
            size_of_field(|value: &$name| &value.$field),
        )),*];
        fields
    }};
}

/// A client that has one of everything.
struct Stage {
    device: Device,
    client: Client,
    qp: RawQp,
    listener: u32,
    free: u64,
}

impl Stage {
    fn new() -> Self {
        let (mut device, node, _) = device();
        let mut client = Client::attach(&mut device, node);
        let qp = client.qp(&mut device);
        let listener = client.listen(&mut device, sock(A, 40), 4);
        let free = client.alloc(0x1_0000);
        Self {
            device,
            client,
            qp,
            listener,
            free,
        }
    }
}

/// Runs the rows of one command: each value alone in an otherwise good body, then the good body.
fn table(op: AdminOp, fields: &[Field], rows: &[Row], good: impl Fn(&Stage) -> Body) {
    for &(field, offset, len) in fields {
        let row = rows.iter().find(|row| row.0 == field);
        let (_, values) = row.unwrap_or_else(|| panic!("{op}: no row for {field}"));
        for &(value, expected) in *values {
            let mut stage = Stage::new();
            let mut body = good(&stage);
            body.as_mut_bytes()[offset..offset + len].copy_from_slice(&value.to_le_bytes()[..len]);
            let status = stage.client.status(&mut stage.device, op, body);
            assert_eq!(status, expected, "{op}: {field} = {value:#x}");
        }
    }
    for &(field, _) in rows {
        assert!(
            fields.iter().any(|known| known.0 == field),
            "{op}: no field {field}"
        );
    }
    let mut stage = Stage::new();
    let body = good(&stage);
    assert_eq!(stage.client.status(&mut stage.device, op, body), OK, "{op}");
    // The room behind the body is zero.
    let end = fields.iter().map(|field| field.1 + field.2).max().unwrap();
    for at in end..size_of::<Body>() {
        let mut stage = Stage::new();
        let mut body = good(&stage);
        body.as_mut_bytes()[at] = 1;
        let status = stage.client.status(&mut stage.device, op, body);
        assert_eq!(status, INVALID, "{op}: byte {at} behind the body");
    }
}

#[test]
fn named() {
    let fields = fields!(Named { id, reserved });
    let rows: [Row; 2] = [
        (
            "id",
            &[
                (0, NO_OBJECT),
                (0xff_ffff, NO_OBJECT),
                (0xffff_ffff, NO_OBJECT),
            ],
        ),
        ("reserved", &[(1, INVALID), (1 << 31, INVALID)]),
    ];
    let of = |id| Named { id, reserved: 0 }.to_body();
    for op in [AdminOp::QP_QUERY, AdminOp::QP_DESTROY] {
        table(op, &fields, &rows, |stage| of(stage.qp.qpn));
    }
    table(AdminOp::CM_UNLISTEN, &fields, &rows, |stage| {
        of(stage.listener)
    });
}

#[test]
fn mr_reg() {
    let fields = fields!(MrReg {
        addr,
        len,
        pdn,
        access,
        owner_qpn,
        reserved
    });
    let rows: [Row; 6] = [
        (
            "addr",
            &[
                (0, BAD_ADDRESS),
                (OUTSIDE, BAD_ADDRESS),
                (BASE - 1, BAD_ADDRESS),
                (u64::MAX, INVALID),
            ],
        ),
        (
            "len",
            &[(0, INVALID), (MEMORY, BAD_ADDRESS), (u64::MAX, INVALID)],
        ),
        ("pdn", &[(0, NO_OBJECT), (0xffff_ffff, NO_OBJECT)]),
        ("access", &[(1 << 31, INVALID), (2, INVALID)]),
        ("owner_qpn", &[(0xff_ffff, NO_OBJECT)]),
        ("reserved", &[(1, INVALID)]),
    ];
    table(AdminOp::MR_REG, &fields, &rows, |stage| {
        MrReg {
            addr: stage.free,
            len: 4096,
            pdn: stage.client.pdn,
            access: 7,
            ..MrReg::default()
        }
        .to_body()
    });
}

#[test]
fn cq_create() {
    let fields = fields!(QueueCreate { ring, depth, slot });
    let rows: [Row; 3] = [
        (
            "ring",
            &[
                (0, BAD_ADDRESS),
                (OUTSIDE, BAD_ADDRESS),
                (BASE + 1, INVALID),
                (u64::MAX - 63, BAD_ADDRESS),
            ],
        ),
        (
            "depth",
            &[
                (0, INVALID),
                (3, INVALID),
                (1 << 31, INVALID),
                (0xffff_ffff, INVALID),
            ],
        ),
        (
            "slot",
            &[
                (0, INVALID),
                (32_768, INVALID),
                (0xffff_ffff, INVALID),
                (1, AdminStatus::BUSY),
            ],
        ),
    ];
    table(AdminOp::CQ_CREATE, &fields, &rows, |stage| {
        QueueCreate {
            ring: stage.free,
            depth: 16,
            slot: 100,
        }
        .to_body()
    });
}

#[test]
fn qp_create() {
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
    const RING: &[(u64, AdminStatus)] = &[
        (0, BAD_ADDRESS),
        (OUTSIDE, BAD_ADDRESS),
        (BASE + 4, INVALID),
    ];
    const DEPTH: &[(u64, AdminStatus)] = &[(0, INVALID), (3, INVALID), (1 << 31, INVALID)];
    const NUMBER: &[(u64, AdminStatus)] = &[
        (0, NO_OBJECT),
        (0xff_ffff, NO_OBJECT),
        (0xffff_ffff, NO_OBJECT),
    ];
    let rows: [Row; 10] = [
        ("sq_ring", RING),
        ("rq_ring", RING),
        ("sq_depth", DEPTH),
        ("rq_depth", DEPTH),
        ("pdn", NUMBER),
        ("send_cqn", NUMBER),
        ("recv_cqn", NUMBER),
        ("slot", &[(0, INVALID), (32_768, INVALID)]),
        ("holder", &[(1, NO_OBJECT), (0xffff_ffff, NO_OBJECT)]),
        ("access", &[(1 << 31, INVALID)]),
    ];
    table(AdminOp::QP_CREATE, &fields, &rows, |stage| {
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

#[test]
fn holders() {
    let fields = fields!(Hold {
        id,
        kind,
        slot,
        flags
    });
    let good = |stage: &Stage| {
        Hold {
            id: stage.qp.qpn,
            ..Hold::default()
        }
        .to_body()
    };
    const UNKNOWN: &[(u64, AdminStatus)] = &[(0xff_ffff, NO_OBJECT), (0xffff_ffff, NO_OBJECT)];
    let rows: [Row; 4] = [
        ("id", UNKNOWN),
        ("kind", &[(2, INVALID), (0xffff_ffff, INVALID)]),
        ("slot", &[(1, NO_OBJECT), (0xffff_ffff, NO_OBJECT)]),
        ("flags", &[(0xff_ffff, AdminStatus::BAD_STATE)]),
    ];
    table(AdminOp::HOLD, &fields, &rows, good);
    let rows: [Row; 4] = [
        ("id", UNKNOWN),
        ("kind", &[(2, INVALID), (0xffff_ffff, INVALID)]),
        ("slot", &[(1, NO_OBJECT), (0xffff_ffff, NO_OBJECT)]),
        (
            "flags",
            &[(2, INVALID), (1 << 31, INVALID), (1, AdminStatus::BUSY)],
        ),
    ];
    table(AdminOp::RELEASE, &fields, &rows, good);
    let fields = fields!(HoldClone { from, reserved });
    let rows: [Row; 2] = [
        ("from", &[(1, NO_OBJECT), (0xffff_ffff, NO_OBJECT)]),
        ("reserved", &[(1, INVALID)]),
    ];
    table(AdminOp::HOLD_CLONE, &fields, &rows, |_| {
        HoldClone::default().to_body()
    });
}

#[test]
fn headers_of_commands() {
    let mut stage = Stage::new();
    for (opcode, flags, expected) in [
        (0, 0, AdminStatus::UNSUPPORTED),
        (u16::MAX, 0, AdminStatus::UNSUPPORTED),
        (AdminOp::PD_ALLOC.0, 1, INVALID),
        (AdminOp::PD_ALLOC.0, 0x8000, INVALID),
        (AdminOp::PD_ALLOC.0, 0, OK),
    ] {
        let command_id = stage.client.admin_producer;
        stage.client.post_admin(Command {
            opcode,
            flags,
            command_id,
            body: Body::default(),
        });
        stage.client.ring_admin(&mut stage.device);
        pump(&mut stage.device);
        let (status, _) = stage.client.admin_completion().unwrap();
        assert_eq!(status, expected, "opcode {opcode:#x}, flags {flags:#x}");
    }
}

#[test]
fn connections() {
    let fields = fields!(CmConnect {
        record,
        qpn,
        timeout_ms
    });
    let rows: [Row; 3] = [
        (
            "record",
            &[
                (0, BAD_ADDRESS),
                (OUTSIDE, BAD_ADDRESS),
                (OUTSIDE - 319, BAD_ADDRESS),
                (u64::MAX, BAD_ADDRESS),
            ],
        ),
        ("qpn", &[(0, NO_OBJECT), (0xffff_ffff, NO_OBJECT)]),
        // Any limit is one.
        ("timeout_ms", &[]),
    ];
    table(AdminOp::CM_CONNECT, &fields, &rows, |stage| {
        let record = ring_proto::admin::CmRecord {
            source: sock(A, 41).into(),
            destination: sock(A, 40).into(),
            ..Default::default()
        };
        stage.client.write(stage.free, record.as_bytes());
        CmConnect {
            record: stage.free,
            qpn: stage.qp.qpn,
            timeout_ms: 0,
        }
        .to_body()
    });
    let fields = fields!(CmListen {
        local,
        backlog,
        holder,
        flags,
        reserved
    });
    assert_eq!(fields.len(), 5);
    for (listen, expected) in [
        (
            CmListen {
                holder: 1,
                ..listening()
            },
            NO_OBJECT,
        ),
        (
            CmListen {
                flags: 2,
                ..listening()
            },
            INVALID,
        ),
        (
            CmListen {
                reserved: 1,
                ..listening()
            },
            INVALID,
        ),
        (listening(), OK),
    ] {
        let mut stage = Stage::new();
        let status = stage
            .client
            .status(&mut stage.device, AdminOp::CM_LISTEN, listen.to_body());
        assert_eq!(status, expected, "{listen:?}");
    }
    let mut stage = Stage::new();
    for (op, body) in [
        (
            AdminOp::CM_ACCEPT,
            CmAccept {
                request: 7,
                qpn: stage.qp.qpn,
                ..Default::default()
            }
            .to_body(),
        ),
        (
            AdminOp::CM_REJECT,
            CmAccept {
                request: 7,
                ..Default::default()
            }
            .to_body(),
        ),
        (
            AdminOp::CM_QUERY,
            CmQuery {
                buffer: stage.free,
                id: 7,
                kind: 0,
            }
            .to_body(),
        ),
    ] {
        assert_eq!(
            stage.client.status(&mut stage.device, op, body),
            NO_OBJECT,
            "{op}"
        );
    }
}

fn listening() -> CmListen {
    CmListen {
        local: sock(A, 50).into(),
        backlog: 4,
        ..CmListen::default()
    }
}
