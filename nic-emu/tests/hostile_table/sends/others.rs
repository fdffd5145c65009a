//! Operations whose first block has a form of its own: atomics and BIND_MW.

use ring_proto::admin::Access;
use ring_proto::status::{Opcode, Syndrome, WcStatus};
use ring_proto::wqe::{AtomicWqe, BindWqe};

use super::{
    ANYTHING, BAD_COUNT, BAD_TOTAL, BLOCKS, DONE, LKEY, NO_OPCODE, OUT_OF_LKEY, OUT_OF_RKEY,
    Outcome, REGION, RESERVED, RKEY, Values, sge, table,
};
use crate::client::Send;
use crate::table::Value::{Flip, Is, Last, Plus};
use crate::table::{Row, nest};

const fn bind_err(syndrome: Syndrome) -> Outcome {
    (WcStatus::MW_BIND_ERR, syndrome)
}

const BAD_LENGTH: Outcome = (WcStatus::LOC_LEN_ERR, Syndrome::BAD_ATOMIC_LENGTH);

#[test]
fn atomics() {
    let fields = fields!(AtomicWqe {
        opcode,
        flags,
        blocks,
        count,
        reserved,
        wr_id,
        remote_addr,
        rkey,
        total,
        sge,
        compare_add,
        swap
    });
    let fields = nest(fields, "sge", 1, &sge());
    let misaligned = (WcStatus::REM_INV_REQ_ERR, Syndrome::ATOMIC_MISALIGNED);
    let remote_addr = [
        (Plus(1), misaligned),
        (Plus(4), misaligned),
        (Plus(7), misaligned),
        (Is(0), OUT_OF_RKEY),
        (Plus(8u64.wrapping_neg()), OUT_OF_RKEY),
        (Plus(REGION - 8), DONE),
        (Plus(REGION), OUT_OF_RKEY),
        (Is(u64::MAX - 7), OUT_OF_RKEY),
    ];
    for (opcode, swap) in [
        (Opcode::ATOMIC_CMP_AND_SWP, ANYTHING),
        (
            Opcode::ATOMIC_FETCH_AND_ADD,
            &[(Is(1), RESERVED), (Last(0x80), RESERVED)] as Values,
        ),
    ] {
        let rows: [Row<'_, Outcome>; 14] = [
            ("opcode", &NO_OPCODE),
            (
                "flags",
                &[
                    (Flip(8), RESERVED),
                    (Flip(16), RESERVED),
                    (Flip(128), RESERVED),
                ],
            ),
            ("blocks", BLOCKS),
            (
                "count",
                &[
                    (Is(0), BAD_COUNT),
                    (Is(2), BAD_COUNT),
                    (Is(0xff), BAD_COUNT),
                ],
            ),
            ("reserved", &[(Is(1), RESERVED), (Is(1 << 31), RESERVED)]),
            ("wr_id", ANYTHING),
            ("remote_addr", &remote_addr),
            ("rkey", RKEY),
            (
                "total",
                &[
                    (Is(0), BAD_LENGTH),
                    (Is(4), BAD_LENGTH),
                    (Is(16), BAD_LENGTH),
                    (Is(0xffff_ffff), BAD_LENGTH),
                ],
            ),
            (
                "sge.addr",
                &[
                    (Is(0), OUT_OF_LKEY),
                    (Plus(u64::MAX), OUT_OF_LKEY),
                    (Plus(REGION - 7), OUT_OF_LKEY),
                    (Is(u64::MAX), OUT_OF_LKEY),
                ],
            ),
            (
                "sge.len",
                &[
                    (Is(0), BAD_TOTAL),
                    (Is(4), BAD_TOTAL),
                    (Is(0xffff_ffff), BAD_TOTAL),
                ],
            ),
            ("sge.lkey", LKEY),
            ("compare_add", ANYTHING),
            ("swap", swap),
        ];
        table(
            &opcode.to_string(),
            (0, &fields),
            &rows,
            |_, own, remote| {
                Send::atomic(opcode, 7, own.sge(0, 8), (remote.iova, remote.key), (0, 0))
            },
        );
    }
}

#[test]
fn bind_mw() {
    let fields = fields!(BindWqe {
        opcode,
        flags,
        blocks,
        count,
        new_rkey,
        wr_id,
        addr,
        rkey,
        total,
        len,
        lkey,
        access,
        reserved
    });
    let (no_window, stale) = (
        bind_err(Syndrome::MW_UNKNOWN),
        bind_err(Syndrome::MW_KEY_NOT_FRESH),
    );
    let (out, no_region) = (
        bind_err(Syndrome::LKEY_OUT_OF_BOUNDS),
        bind_err(Syndrome::LKEY_UNKNOWN),
    );
    let bad_rights = bind_err(Syndrome::MW_BAD_RIGHTS);
    let addr = [
        (Is(0), out),
        (Plus(u64::MAX), out),
        (Plus(REGION - 64), DONE),
        (Plus(REGION - 63), out),
        (Is(u64::MAX), out),
        (Is(u64::MAX - 63), out),
    ];
    let rows: [Row<'_, Outcome>; 13] = [
        ("opcode", &NO_OPCODE),
        (
            "flags",
            &[
                (Flip(8), RESERVED),
                (Flip(16), RESERVED),
                (Flip(128), RESERVED),
            ],
        ),
        ("blocks", BLOCKS),
        ("count", &[(Is(1), RESERVED), (Is(0xff), RESERVED)]),
        (
            "new_rkey",
            // The tag of now, another index, a region's key.
            &[
                (Plus(u64::MAX), stale),
                (Plus(0x100), stale),
                (Flip(1 << 31), stale),
                (Is(0), stale),
            ],
        ),
        ("wr_id", ANYTHING),
        ("addr", &addr),
        (
            "rkey",
            &[
                (Is(0), no_window),
                (Flip(0x80), no_window),
                (Plus(0x100), no_window),
                (Flip(1 << 31), no_window),
                (Is(0xffff_ffff), no_window),
            ],
        ),
        ("total", &[(Is(1), RESERVED), (Is(0xffff_ffff), RESERVED)]),
        (
            "len",
            &[
                (Is(0), bind_err(Syndrome::MW_ZERO_LENGTH)),
                (Is(REGION + 1), out),
                (Is(1 << 32), out),
                (Is(u64::MAX), out),
            ],
        ),
        (
            "lkey",
            &[
                (Is(0), no_region),
                (Flip(1), no_region),
                (Plus(0x100), no_region),
                (Is(0xffff_ffff), no_region),
            ],
        ),
        (
            "access",
            &[
                (Is(1), bad_rights),
                (Is(16), bad_rights),
                (Is(32), bad_rights),
                (Is(0xffff_ffff), bad_rights),
            ],
        ),
        ("reserved", &[(Is(1), RESERVED), (Last(0x80), RESERVED)]),
    ];
    table("BIND_MW", (0, &fields), &rows, |pair, own, _| {
        let pdn = pair.a.pdn;
        let rkey = pair.a.mw(&mut pair.device, pdn, 2);
        let range = (own.iova, 64);
        Send::bind(7, (rkey, rkey + 1), own.key, range, Access::REMOTE_READ)
    });
}
