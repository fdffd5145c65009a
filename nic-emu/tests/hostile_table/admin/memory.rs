//! Regions and memory windows.

use ring_proto::admin::{Access, AdminOp, AdminStatus, MrReg, MwAlloc, MwBind};

use super::{UNKNOWN, ZERO, table};
use crate::client::BASE;
use crate::stage::{Answer, BAD_ADDRESS, INVALID, NO_OBJECT, OK, OUTSIDE, Stage};
use crate::table::Row;
use crate::table::Value::{Flip, Is, Plus};

pub(crate) fn window(stage: &mut Stage, kind: u32) -> u32 {
    let pdn = stage.client.pdn;
    stage.client.mw(&mut stage.device, pdn, kind)
}

pub(crate) fn mr_reg_table(op: AdminOp) {
    let qpn = Stage::new().qp.qpn;
    let fields = fields!(MrReg {
        addr,
        len,
        pdn,
        access,
        owner_qpn,
        reserved
    });
    let rows: [Row<'_, Answer>; 6] = [
        (
            "addr",
            &[
                (Is(0), BAD_ADDRESS),
                (Is(OUTSIDE), BAD_ADDRESS),
                (Is(OUTSIDE - 4095), BAD_ADDRESS),
                (Is(BASE - 1), BAD_ADDRESS),
                (Is(u64::MAX), INVALID),
                (Is(u64::MAX - 4095), INVALID),
            ],
        ),
        (
            "len",
            &[
                (Is(0), INVALID),
                (Is(OUTSIDE - BASE), BAD_ADDRESS),
                (Is(1 << 32), BAD_ADDRESS),
                (Is(u64::MAX), INVALID),
            ],
        ),
        ("pdn", UNKNOWN),
        (
            "access",
            &[
                (Flip(32), INVALID),
                (Flip(1 << 31), INVALID),
                // What a peer may change the client may change.
                (Is(2), INVALID),
                (Is(8), INVALID),
            ],
        ),
        (
            "owner_qpn",
            &[
                (Is(1), NO_OBJECT),
                (Is(0xff_ffff), NO_OBJECT),
                (Is(qpn.into()), OK),
            ],
        ),
        ("reserved", ZERO),
    ];
    table(op, &fields, &rows, |stage| {
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

pub(crate) fn mw_alloc_table(op: AdminOp) {
    let fields = fields!(MwAlloc { pdn, kind });
    let rows: [Row<'_, Answer>; 2] = [
        ("pdn", UNKNOWN),
        (
            "kind",
            &[(Is(0), INVALID), (Is(3), INVALID), (Is(u64::MAX), INVALID)],
        ),
    ];
    table(op, &fields, &rows, |stage| {
        let pdn = stage.client.pdn;
        MwAlloc { pdn, kind: 2 }.to_body()
    });
}

pub(crate) fn mw_bind_table(op: AdminOp) {
    let fields = fields!(MwBind {
        addr,
        len,
        rkey,
        lkey,
        access,
        reserved
    });
    let rows: [Row<'_, Answer>; 6] = [
        (
            "addr",
            &[
                (Is(0), BAD_ADDRESS),
                (Plus(u64::MAX), BAD_ADDRESS),
                (Plus(4096 - 64 + 1), BAD_ADDRESS),
                (Is(OUTSIDE), BAD_ADDRESS),
                (Is(u64::MAX), BAD_ADDRESS),
                (Is(u64::MAX - 63), BAD_ADDRESS),
            ],
        ),
        (
            "len",
            // 0 unbinds, and then nothing else is given.
            &[
                (Is(0), INVALID),
                (Is(4097), BAD_ADDRESS),
                (Is(1 << 32), BAD_ADDRESS),
                (Is(u64::MAX), BAD_ADDRESS),
            ],
        ),
        (
            "rkey",
            &[
                (Is(0), NO_OBJECT),
                (Flip(1), NO_OBJECT),
                (Plus(0x100), NO_OBJECT),
                (Flip(1 << 31), NO_OBJECT),
                (Is(0xffff_ffff), NO_OBJECT),
            ],
        ),
        (
            "lkey",
            &[
                (Is(0), NO_OBJECT),
                (Flip(1), NO_OBJECT),
                (Plus(0x100), NO_OBJECT),
                (Is(0xffff_ffff), NO_OBJECT),
            ],
        ),
        (
            "access",
            &[
                (Flip(32), INVALID),
                (Flip(1 << 31), INVALID),
                // Rights of the client itself are none of a window.
                (Is(1), INVALID),
                (Is(16), INVALID),
            ],
        ),
        ("reserved", ZERO),
    ];
    table(op, &fields, &rows, |stage| {
        MwBind {
            addr: stage.free,
            len: 64,
            lkey: stage.region(),
            rkey: window(stage, 1),
            access: Access::REMOTE_READ.bits(),
            reserved: 0,
        }
        .to_body()
    });
    // A window of type 2 is bound by its QP.
    let mut stage = Stage::new();
    let body = MwBind {
        rkey: window(&mut stage, 2),
        ..MwBind::default()
    };
    let status = stage.client.status(&mut stage.device, op, body.to_body());
    assert_eq!(status, AdminStatus::UNSUPPORTED);
}
