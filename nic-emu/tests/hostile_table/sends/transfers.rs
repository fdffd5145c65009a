//! SEND, RDMA WRITE and READ: blocks, SGEs, inline data, sums.

use ring_proto::admin::Access;
use ring_proto::regs;
use ring_proto::status::{Opcode, Syndrome, WcStatus};
use ring_proto::wqe::{SgeBlock, SqWqe};

use super::{
    ANYTHING, BAD_BLOCKS, BAD_COUNT, BAD_TOTAL, BLOCKS, DONE, LKEY, NO_OPCODE, OUT_OF_LKEY,
    OUT_OF_RKEY, Outcome, REGION, RESERVED, RKEY, Values, access, only_completion, op_err, sge,
    table,
};
use crate::client::{Pair, Region, Send, full};
use crate::table::Value::{Flip, Is, Last, Plus};
use crate::table::{Field, Row, nest};

fn first_block() -> Vec<Field> {
    let fields = fields!(SqWqe {
        opcode,
        flags,
        blocks,
        count,
        imm,
        wr_id,
        remote_addr,
        rkey,
        total,
        sges
    });
    nest(fields, "sges", 2, &sge())
}

/// Local addresses, for 64 bytes at the start of a region: before it, over its end, around the end of all addresses.
const LOCAL_ADDR: Values = &[
    (Is(0), OUT_OF_LKEY),
    (Plus(u64::MAX), OUT_OF_LKEY),
    (Plus(REGION - 64), DONE),
    (Plus(REGION - 63), OUT_OF_LKEY),
    (Plus(REGION), OUT_OF_LKEY),
    (Flip(1 << 63), OUT_OF_LKEY),
    (Is(u64::MAX), OUT_OF_LKEY),
    (Is(u64::MAX - 63), OUT_OF_LKEY),
];

/// Lengths other than the 64 bytes that the total counts.
const LENGTH: Values = &[
    (Is(0), BAD_TOTAL),
    (Is(63), BAD_TOTAL),
    (Is(65), BAD_TOTAL),
    (Is(0xffff_ffff), BAD_TOTAL),
    (Plus(1 << 31), BAD_TOTAL),
];

/// Remote addresses for 128 bytes.
const REMOTE_ADDR: Values = &[
    (Is(0), OUT_OF_RKEY),
    (Plus(u64::MAX), OUT_OF_RKEY),
    (Plus(REGION - 128), DONE),
    (Plus(REGION - 127), OUT_OF_RKEY),
    (Flip(1 << 63), OUT_OF_RKEY),
    (Is(u64::MAX), OUT_OF_RKEY),
    (Is(u64::MAX - 127), OUT_OF_RKEY),
];

/// The flags that do not exist.
const FLAGS: Values = &[
    (Flip(16), RESERVED),
    (Flip(32), RESERVED),
    (Flip(64), RESERVED),
    (Flip(128), RESERVED),
];

const TOTAL: Values = &[
    (Is(0), BAD_TOTAL),
    (Is(127), BAD_TOTAL),
    (Is(129), BAD_TOTAL),
    (Is(0xffff_ffff), BAD_TOTAL),
];

/// Two SGEs in one block.
fn transfer(opcode: Opcode, own: &Region, remote: &Region) -> Send {
    Send::new(opcode, 7, &[own.sge(0, 64), own.sge(0, 64)]).remote(remote.iova, remote.key)
}

/// Rows of a WQE of two SGEs in one block.
pub(crate) fn rows(opcode: Opcode) -> Vec<Row<'static, Outcome>> {
    let (remote_addr, rkey) = if opcode == Opcode::SEND {
        (ANYTHING, ANYTHING)
    } else {
        (REMOTE_ADDR, RKEY)
    };
    vec![
        ("opcode", &NO_OPCODE),
        ("flags", FLAGS),
        ("blocks", BLOCKS),
        (
            "count",
            &[
                (Is(0), BAD_TOTAL),
                (Is(1), BAD_TOTAL),
                (Is(3), BAD_BLOCKS),
                (Is(14), BAD_BLOCKS),
                (Is(15), BAD_COUNT),
                (Is(0xff), BAD_COUNT),
            ],
        ),
        ("imm", ANYTHING),
        ("wr_id", ANYTHING),
        ("remote_addr", remote_addr),
        ("rkey", rkey),
        ("total", TOTAL),
        ("sges[0].addr", LOCAL_ADDR),
        ("sges[0].len", LENGTH),
        ("sges[0].lkey", LKEY),
        ("sges[1].addr", LOCAL_ADDR),
        ("sges[1].len", LENGTH),
        ("sges[1].lkey", LKEY),
    ]
}

#[test]
fn send() {
    table(
        "SEND",
        (0, &first_block()),
        &rows(Opcode::SEND),
        |_, own, remote| transfer(Opcode::SEND, own, remote),
    );
}

#[test]
fn send_with_imm() {
    let rows = rows(Opcode::SEND);
    table(
        "SEND_WITH_IMM",
        (0, &first_block()),
        &rows,
        |_, own, remote| transfer(Opcode::SEND_WITH_IMM, own, remote),
    );
}

#[test]
fn rdma_write() {
    for opcode in [Opcode::RDMA_WRITE, Opcode::RDMA_WRITE_WITH_IMM] {
        let what = opcode.to_string();
        table(
            &what,
            (0, &first_block()),
            &rows(opcode),
            |_, own, remote| transfer(opcode, own, remote),
        );
    }
}

#[test]
fn rdma_read() {
    let mut rows = rows(Opcode::RDMA_READ);
    // A READ has no inline data.
    let flags = [FLAGS, &[(Flip(8), RESERVED)]].concat();
    rows[1] = ("flags", &flags);
    table("RDMA_READ", (0, &first_block()), &rows, |_, own, remote| {
        transfer(Opcode::RDMA_READ, own, remote)
    });
}

#[test]
fn sums_of_lengths_do_not_wrap_and_end_at_the_ports_limit() {
    let two = |a: u32, b: u32, total: u32| {
        let mut pair = Pair::new();
        let own = pair.a.region(&mut pair.device, REGION, full());
        let mut wqe = Send::new(Opcode::SEND, 7, &[own.sge(0, 0), own.sge(0, 0)]);
        (wqe.sges[0].len, wqe.sges[1].len, wqe.head.total) = (a, b, total);
        pair.a.send(&mut pair.device, &mut pair.qa, &wqe);
        only_completion(&pair.a, &mut pair.qa)
    };
    let too_long = (WcStatus::LOC_LEN_ERR, Syndrome::MESSAGE_TOO_LONG);
    let limit = regs::MESSAGE_LIMIT;
    // What 32 bits make of these sums is the total.
    assert_eq!(two(u32::MAX, 65, 64), BAD_TOTAL);
    assert_eq!(two(1 << 31, 1 << 31, 0), BAD_TOTAL);
    assert_eq!(two(u32::MAX, u32::MAX, u32::MAX - 1), BAD_TOTAL);
    // A sound sum above the limit, in one element and in two.
    assert_eq!(two(limit + 1, 0, limit + 1), too_long);
    assert_eq!(two(limit, 1, limit + 1), too_long);
    assert_eq!(two(u32::MAX, 0, u32::MAX), too_long);
    // At the limit the key decides.
    assert_eq!(two(limit, 0, limit), OUT_OF_LKEY);
}

#[test]
fn inline_data() {
    let mut rows = rows(Opcode::SEND);
    rows[1] = ("flags", FLAGS);
    let too_long = op_err(Syndrome::BAD_INLINE_LENGTH);
    let count = [
        (Is(0), BAD_TOTAL),
        (Is(31), BAD_TOTAL),
        (Is(33), too_long),
        (Is(224), too_long),
        (Is(225), too_long),
        (Is(0xff), too_long),
    ];
    rows[3] = ("count", &count);
    let total: Values = &[
        (Is(0), BAD_TOTAL),
        (Is(33), BAD_TOTAL),
        (Is(0xffff_ffff), BAD_TOTAL),
    ];
    rows[8] = ("total", total);
    // The bytes themselves.
    for row in rows.iter_mut().skip(9) {
        row.1 = ANYTHING;
    }
    table("inline", (0, &first_block()), &rows, |_, _, remote| {
        Send::inline(Opcode::SEND, 9, &[7; 32]).remote(remote.iova, remote.key)
    });
}

#[test]
fn further_blocks() {
    let fields = nest(fields!(SgeBlock { sges }), "sges", 4, &sge());
    let names: Vec<_> = fields.iter().map(|field| field.name.clone()).collect();
    let rows: Vec<Row<'_, Outcome>> = names
        .iter()
        .map(|name| {
            let values = match &name[8..] {
                "addr" => LOCAL_ADDR,
                "len" => LENGTH,
                _ => LKEY,
            };
            (name.as_str(), values)
        })
        .collect();
    for block in 1..4 {
        table("further block", (block, &fields), &rows, |_, own, _| {
            Send::new(Opcode::SEND, 7, &[own.sge(0, 64); 14])
        });
    }
}

/// Operations of little more than a key, and the filler: what they do not use is zero.
#[test]
fn invalidations() {
    let no_key = |status| (status, Syndrome::INV_UNKNOWN_KEY);
    let unknown = no_key(WcStatus::MW_BIND_ERR);
    let imm = [
        (Is(0), unknown),
        (Flip(1), unknown),
        (Plus(0x100), unknown),
        (Is(0xffff_ffff), unknown),
    ];
    let zero: Values = &[(Is(1), RESERVED), (Last(0x80), RESERVED)];
    let mut rows = rows(Opcode::SEND);
    rows[1] = (
        "flags",
        &[
            (Flip(8), RESERVED),
            (Flip(16), RESERVED),
            (Flip(128), RESERVED),
        ],
    );
    rows[3] = ("count", &[(Is(1), RESERVED), (Is(0xff), RESERVED)]);
    rows[4] = ("imm", &imm);
    for row in rows.iter_mut().skip(6) {
        row.1 = zero;
    }
    table("LOCAL_INV", (0, &first_block()), &rows, |_, own, _| {
        Send::new(Opcode::LOCAL_INV, 7, &[]).imm(own.key)
    });
}

#[test]
fn send_with_inv() {
    let wrong_key = access(Syndrome::INV_UNKNOWN_KEY);
    let imm = [
        (Is(0), wrong_key),
        (Flip(0x80), wrong_key),
        (Plus(0x100), wrong_key),
        (Is(0xffff_ffff), wrong_key),
    ];
    let mut rows = rows(Opcode::SEND);
    rows[4] = ("imm", &imm);
    table(
        "SEND_WITH_INV",
        (0, &first_block()),
        &rows,
        |pair, own, remote| {
            // A window of the receiver, bound by its QP.
            let pdn = pair.b.pdn;
            let rkey = pair.b.mw(&mut pair.device, pdn, 2);
            let range = (remote.iova, 64);
            let bind = Send::bind(3, (rkey, rkey + 1), remote.key, range, Access::REMOTE_READ);
            pair.b.send(&mut pair.device, &mut pair.qb, &bind);
            let bound = pair.b.poll(&mut pair.qb).unwrap();
            assert_eq!(bound.status, WcStatus::SUCCESS);
            transfer(Opcode::SEND_WITH_INV, own, remote).imm(rkey + 1)
        },
    );
}
