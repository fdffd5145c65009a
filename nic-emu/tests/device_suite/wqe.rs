//! Work queue elements field by field: each bad value, its status and syndrome.

use ring_proto::admin::Access;
use ring_proto::eqe::EventType;
use ring_proto::regs;
use ring_proto::status::{Opcode, QpState, Syndrome, WcOpcode, WcStatus};
use ring_proto::wqe::{MAX_INLINE, RqWqe, Sge, WqeFlags};

use crate::client::{Client, Pair, Region, Send, full, pump, recv_wqe};

/// Posts one WQE on a fresh pair and returns status and syndrome of its completion.
fn outcome(make: impl FnOnce(&Region, &Region) -> Send) -> (WcStatus, Syndrome) {
    let mut pair = Pair::new();
    let own = pair.a.region(&mut pair.device, 4096, full());
    let remote = pair.b.region(&mut pair.device, 4096, full());
    let target = pair.b.region(&mut pair.device, 4096, full());
    pair.b
        .recv(&mut pair.device, &mut pair.qb, 1, &[target.sge(0, 4096)]);
    let wqe = make(&own, &remote);
    pair.a.send(&mut pair.device, &mut pair.qa, &wqe);
    let wc = pair.a.poll(&mut pair.qa).expect("a completion");
    assert_eq!(wc.wr_id, wqe.head.wr_id);
    assert_eq!(pair.a.poll(&mut pair.qa), None);
    let state = pair.a.query(&mut pair.device, pair.qa.qpn);
    if wc.status == WcStatus::SUCCESS {
        assert_eq!(state, Some(QpState::RTS));
    } else {
        assert_eq!(
            state,
            Some(QpState::ERR),
            "an error completion moves the QP to ERR"
        );
    }
    // Whatever happened, no event: the completion tells it.
    assert_eq!(pair.a.events(), []);
    (wc.status, wc.syndrome)
}

fn with(change: impl FnOnce(&mut Send)) -> (WcStatus, Syndrome) {
    outcome(|own, remote| {
        let mut wqe =
            Send::new(Opcode::SEND, 0xabcd, &[own.sge(0, 64)]).remote(remote.iova, remote.key);
        change(&mut wqe);
        wqe
    })
}

#[test]
pub(crate) fn sound_wqe_completes() {
    assert_eq!(with(|_| ()), (WcStatus::SUCCESS, Syndrome::NONE));
}

#[test]
pub(crate) fn each_bad_field_of_a_send_wqe_has_its_syndrome() {
    let op_err = |syndrome| (WcStatus::LOC_QP_OP_ERR, syndrome);
    for opcode in [50, 100, 255] {
        assert_eq!(
            with(|wqe| wqe.head.opcode = opcode),
            op_err(Syndrome::BAD_OPCODE),
            "opcode {opcode}"
        );
    }
    for bit in 4..8 {
        assert_eq!(
            with(|wqe| wqe.head.flags |= 1 << bit),
            op_err(Syndrome::RESERVED_NOT_ZERO),
            "flag bit {bit}"
        );
    }
    for blocks in [0, 2, 4, 5, 255] {
        // 2 and 4 are sound numbers, but only one block is posted.
        assert_eq!(
            with(|wqe| wqe.head.blocks = blocks),
            op_err(Syndrome::BAD_BLOCKS),
            "blocks {blocks}"
        );
    }
    for count in [15, 16, 255] {
        assert_eq!(
            with(|wqe| wqe.head.count = count),
            op_err(Syndrome::BAD_SGE_COUNT),
            "count {count}"
        );
    }
    for count in [3, 6, 7, 14] {
        assert_eq!(
            with(|wqe| wqe.head.count = count),
            op_err(Syndrome::BAD_BLOCKS),
            "count {count} in one block"
        );
    }
    for total in [0, 63, 65, u32::MAX] {
        assert_eq!(
            with(|wqe| wqe.head.total = total),
            (WcStatus::LOC_LEN_ERR, Syndrome::BAD_TOTAL),
            "total {total}"
        );
    }
}

#[test]
pub(crate) fn each_bad_field_of_an_inline_wqe_has_its_syndrome() {
    let inline = |change: &dyn Fn(&mut Send)| {
        outcome(|_, remote| {
            let mut wqe = Send::inline(Opcode::SEND, 9, &[7; 40]).remote(remote.iova, remote.key);
            change(&mut wqe);
            wqe
        })
    };
    assert_eq!(inline(&|_| ()), (WcStatus::SUCCESS, Syndrome::NONE));
    for count in [MAX_INLINE + 1, 255, 97] {
        assert_eq!(
            inline(&|wqe| wqe.head.count = count),
            (WcStatus::LOC_QP_OP_ERR, Syndrome::BAD_INLINE_LENGTH),
            "inline length {count}"
        );
    }
    assert_eq!(
        inline(&|wqe| wqe.head.total = 41),
        (WcStatus::LOC_LEN_ERR, Syndrome::BAD_TOTAL)
    );
    assert_eq!(
        inline(&|wqe| wqe.head.opcode = Opcode::RDMA_READ.0),
        (WcStatus::LOC_QP_OP_ERR, Syndrome::RESERVED_NOT_ZERO)
    );
}

#[test]
fn nop_with_flags_or_a_count_is_refused() {
    for change in [
        (|wqe: &mut Send| wqe.head.flags = WqeFlags::SIGNALED.bits()) as fn(&mut Send),
        |wqe| {
            wqe.head.flags = 0;
            wqe.head.count = 1;
        },
    ] {
        let outcome = with(|wqe| {
            wqe.head.opcode = Opcode::NOP.0;
            wqe.head.count = 0;
            change(wqe);
        });
        assert_eq!(
            outcome,
            (WcStatus::LOC_QP_OP_ERR, Syndrome::RESERVED_NOT_ZERO)
        );
    }
}

#[test]
pub(crate) fn message_above_the_ports_maximum_is_refused() {
    // Lengths alone: the keys would fail too, but come later.
    let outcome = with(|wqe| {
        let sge = wqe.sges[0];
        let half = Sge {
            len: regs::MESSAGE_LIMIT / 2 + 1,
            ..sge
        };
        wqe.sges = vec![half, half];
        wqe.head.count = 2;
        wqe.head.total = regs::MESSAGE_LIMIT + 2;
    });
    assert_eq!(outcome, (WcStatus::LOC_LEN_ERR, Syndrome::MESSAGE_TOO_LONG));
}

#[test]
fn sum_of_lengths_does_not_wrap() {
    let outcome = with(|wqe| {
        let sge = wqe.sges[0];
        let most = Sge {
            len: u32::MAX,
            ..sge
        };
        wqe.sges = vec![most, Sge { len: 65, ..sge }];
        wqe.head.count = 2;
        // What a sum of 32 bits would make of it.
        wqe.head.total = 64;
    });
    assert_eq!(outcome, (WcStatus::LOC_LEN_ERR, Syndrome::BAD_TOTAL));
}

#[test]
pub(crate) fn wqe_across_the_end_of_the_ring_is_refused() {
    let mut pair = Pair::new();
    let own = pair.a.region(&mut pair.device, 4096, full());
    let sges: Vec<_> = (0..6).map(|i| own.sge(i * 8, 8)).collect();
    let wqe = Send::new(Opcode::SEND, 3, &sges);
    let last = pair.qa.sq.depth().entries() - 1;
    for position in 0..last {
        let filler = [1u64 << 16, 0, 0, 0, 0, 0, 0, 0];
        pair.qa.sq.write(position, &filler);
    }
    let [first, second] = wqe.blocks()[..] else {
        panic!("two blocks");
    };
    pair.qa.sq.write(last, &first);
    pair.qa.sq_producer = last;
    pair.a.ring_qp(&mut pair.device, &pair.qa);
    pump(&mut pair.device);
    pair.qa.sq.write(last + 1, &second);
    pair.qa.sq_producer = last + 2;
    pair.a.ring_qp(&mut pair.device, &pair.qa);
    pump(&mut pair.device);
    let wc = pair.a.poll(&mut pair.qa).unwrap();
    assert_eq!(
        (wc.status, wc.syndrome),
        (WcStatus::LOC_QP_OP_ERR, Syndrome::WQE_WRAPS)
    );
}

#[test]
pub(crate) fn each_bad_local_key_has_its_syndrome() {
    let sge = |change: &dyn Fn(&mut Sge)| with(|wqe| change(&mut wqe.sges[0]));
    let prot = |syndrome| (WcStatus::LOC_PROT_ERR, syndrome);
    for (what, change) in [
        ("0", (|sge: &mut Sge| sge.lkey = 0) as fn(&mut Sge)),
        ("tag", |sge| sge.lkey ^= 1),
        ("index", |sge| sge.lkey += 1 << 16),
        ("all ones", |sge| sge.lkey = u32::MAX),
    ] {
        assert_eq!(sge(&change), prot(Syndrome::LKEY_UNKNOWN), "lkey: {what}");
    }
    for (what, change) in [
        ("before", (|sge: &mut Sge| sge.addr -= 1) as fn(&mut Sge)),
        ("past the end", |sge| sge.addr += 4096 - 63),
        ("far away", |sge| sge.addr = u64::MAX),
        ("zero", |sge| sge.addr = 0),
    ] {
        assert_eq!(
            sge(&change),
            prot(Syndrome::LKEY_OUT_OF_BOUNDS),
            "addr: {what}"
        );
    }
    assert_eq!(
        with(|wqe| {
            wqe.sges[0].len = 4097;
            wqe.head.total = 4097;
        }),
        prot(Syndrome::LKEY_OUT_OF_BOUNDS)
    );
}

#[test]
pub(crate) fn read_into_a_region_without_local_write_is_refused() {
    let mut pair = Pair::new();
    let own = pair.a.region(&mut pair.device, 64, Access::REMOTE_READ);
    let remote = pair.b.region(&mut pair.device, 64, full());
    let wqe = Send::new(Opcode::RDMA_READ, 1, &[own.sge(0, 8)]).remote(remote.iova, remote.key);
    pair.a.send(&mut pair.device, &mut pair.qa, &wqe);
    let wc = pair.a.poll(&mut pair.qa).unwrap();
    assert_eq!(
        (wc.status, wc.syndrome),
        (WcStatus::LOC_PROT_ERR, Syndrome::LKEY_NO_ACCESS)
    );
}

#[test]
pub(crate) fn keys_of_another_protection_domain_are_refused() {
    let mut pair = Pair::new();
    let other_pd = pair.a.pd(&mut pair.device);
    let foreign = pair.a.region_of(&mut pair.device, 64, full(), other_pd, 0);
    pair.a.send(
        &mut pair.device,
        &mut pair.qa,
        &Send::new(Opcode::SEND, 1, &[foreign.sge(0, 8)]),
    );
    let wc = pair.a.poll(&mut pair.qa).unwrap();
    assert_eq!(
        (wc.status, wc.syndrome),
        (WcStatus::LOC_PROT_ERR, Syndrome::LKEY_PD_MISMATCH)
    );
}

#[test]
fn keys_of_other_functions_name_nothing() {
    let mut pair = Pair::new();
    let mine = pair.a.region(&mut pair.device, 64, full());
    let theirs = pair.b.region(&mut pair.device, 64, full());
    assert_ne!(mine.key, theirs.key, "first keys of two functions differ");
    pair.a.send(
        &mut pair.device,
        &mut pair.qa,
        &Send::new(Opcode::SEND, 1, &[theirs.sge(0, 8)]),
    );
    let wc = pair.a.poll(&mut pair.qa).unwrap();
    assert_eq!(
        (wc.status, wc.syndrome),
        (WcStatus::LOC_PROT_ERR, Syndrome::LKEY_UNKNOWN)
    );
}

/// Posts one RDMA WQE against a region of `pair.b`; its completion, and what b hears.
fn remote_outcome(
    pair: &mut Pair,
    opcode: Opcode,
    addr: u64,
    rkey: u32,
    len: u32,
) -> (WcStatus, Syndrome) {
    let own = pair.a.region(&mut pair.device, 8192, full());
    let wqe = Send::new(opcode, 1, &[own.sge(0, len)]).remote(addr, rkey);
    pair.a.send(&mut pair.device, &mut pair.qa, &wqe);
    let wc = pair.a.poll(&mut pair.qa).unwrap();
    if wc.status == WcStatus::REM_ACCESS_ERR || wc.status == WcStatus::REM_INV_REQ_ERR {
        assert_eq!(
            pair.b.events(),
            [(EventType::QP_ACCESS, pair.qb.qpn, u32::from(wc.syndrome.0))]
        );
        assert_eq!(
            pair.b.query(&mut pair.device, pair.qb.qpn),
            Some(QpState::ERR)
        );
    } else {
        assert_eq!(pair.b.events(), []);
    }
    (wc.status, wc.syndrome)
}

#[test]
pub(crate) fn each_bad_remote_key_has_its_syndrome() {
    let access_err = |syndrome| (WcStatus::REM_ACCESS_ERR, syndrome);
    for opcode in [
        Opcode::RDMA_WRITE,
        Opcode::RDMA_WRITE_WITH_IMM,
        Opcode::RDMA_READ,
    ] {
        type Case = fn(&Region) -> (u64, u32, u32);
        let cases: [(&str, Case, Syndrome); 7] = [
            ("rkey 0", |r| (r.iova, 0, 8), Syndrome::RKEY_UNKNOWN),
            (
                "stale tag",
                |r| (r.iova, r.key ^ 1, 8),
                Syndrome::RKEY_UNKNOWN,
            ),
            (
                "index",
                |r| (r.iova, r.key + 512, 8),
                Syndrome::RKEY_UNKNOWN,
            ),
            (
                "before",
                |r| (r.iova - 1, r.key, 8),
                Syndrome::RKEY_OUT_OF_BOUNDS,
            ),
            (
                "past the end",
                |r| (r.iova + 4089, r.key, 8),
                Syndrome::RKEY_OUT_OF_BOUNDS,
            ),
            (
                "too long",
                |r| (r.iova, r.key, 4097),
                Syndrome::RKEY_OUT_OF_BOUNDS,
            ),
            (
                "wraps",
                |r| (u64::MAX - 3, r.key, 8),
                Syndrome::RKEY_OUT_OF_BOUNDS,
            ),
        ];
        for (what, case, syndrome) in cases {
            let mut pair = Pair::new();
            let remote = pair.b.region(&mut pair.device, 4096, full());
            pair.b.recv(&mut pair.device, &mut pair.qb, 1, &[]);
            let (addr, rkey, len) = case(&remote);
            assert_eq!(
                remote_outcome(&mut pair, opcode, addr, rkey, len),
                access_err(syndrome),
                "{opcode}: {what}"
            );
        }
    }
}

#[test]
pub(crate) fn region_rights_bind_the_peer() {
    for (opcode, access, expected) in [
        (
            Opcode::RDMA_WRITE,
            Access::LOCAL_WRITE | Access::REMOTE_READ,
            (WcStatus::REM_ACCESS_ERR, Syndrome::RKEY_NO_ACCESS),
        ),
        (
            Opcode::RDMA_READ,
            Access::LOCAL_WRITE | Access::REMOTE_WRITE,
            (WcStatus::REM_ACCESS_ERR, Syndrome::RKEY_NO_ACCESS),
        ),
        (
            Opcode::RDMA_WRITE,
            Access::LOCAL_WRITE | Access::REMOTE_WRITE,
            (WcStatus::SUCCESS, Syndrome::NONE),
        ),
        (
            Opcode::RDMA_READ,
            Access::REMOTE_READ,
            (WcStatus::SUCCESS, Syndrome::NONE),
        ),
    ] {
        let mut pair = Pair::new();
        let remote = pair.b.region(&mut pair.device, 64, access);
        assert_eq!(
            remote_outcome(&mut pair, opcode, remote.iova, remote.key, 8),
            expected,
            "{opcode} of a region with {access:?}"
        );
    }
}

#[test]
pub(crate) fn qp_rights_bind_the_peer() {
    for (opcode, granted) in [
        (Opcode::RDMA_WRITE, Access::REMOTE_READ),
        (Opcode::RDMA_READ, Access::REMOTE_WRITE),
    ] {
        let mut pair = Pair::with_access(granted);
        let remote = pair.b.region(&mut pair.device, 64, full());
        assert_eq!(
            remote_outcome(&mut pair, opcode, remote.iova, remote.key, 8),
            (WcStatus::REM_INV_REQ_ERR, Syndrome::QP_NO_ACCESS)
        );
    }
}

#[test]
pub(crate) fn region_of_another_protection_domain_refuses_the_peer() {
    let mut pair = Pair::new();
    let other_pd = pair.b.pd(&mut pair.device);
    let remote = pair.b.region_of(&mut pair.device, 64, full(), other_pd, 0);
    assert_eq!(
        remote_outcome(&mut pair, Opcode::RDMA_WRITE, remote.iova, remote.key, 8),
        (WcStatus::REM_ACCESS_ERR, Syndrome::RKEY_PD_MISMATCH)
    );
}

#[test]
pub(crate) fn region_with_an_owner_serves_that_qp_only() {
    let mut pair = Pair::new();
    let other = pair.b.qp(&mut pair.device);
    let pdn = pair.b.pdn;
    let owned = pair
        .b
        .region_of(&mut pair.device, 64, full(), pdn, pair.qb.qpn);
    let foreign = pair
        .b
        .region_of(&mut pair.device, 64, full(), pdn, other.qpn);
    assert_eq!(
        remote_outcome(&mut pair, Opcode::RDMA_WRITE, owned.iova, owned.key, 8),
        (WcStatus::SUCCESS, Syndrome::NONE)
    );
    assert_eq!(
        remote_outcome(&mut pair, Opcode::RDMA_READ, foreign.iova, foreign.key, 8),
        (WcStatus::REM_ACCESS_ERR, Syndrome::RKEY_WRONG_QP)
    );
}

#[test]
fn region_with_an_owner_dies_with_its_qp() {
    let mut pair = Pair::new();
    let other = pair.b.qp(&mut pair.device);
    let pdn = pair.b.pdn;
    let foreign = pair
        .b
        .region_of(&mut pair.device, 64, full(), pdn, other.qpn);
    pair.b.named(
        &mut pair.device,
        ring_proto::admin::AdminOp::QP_DESTROY,
        other.qpn,
    );
    assert_eq!(
        remote_outcome(&mut pair, Opcode::RDMA_READ, foreign.iova, foreign.key, 8),
        (WcStatus::REM_ACCESS_ERR, Syndrome::RKEY_WRONG_QP)
    );
}

/// Posts a receive of the caller's making, sends 64 bytes at it; completions of sender and receiver.
fn receive_outcome(
    make: impl FnOnce(&mut Client, &Region) -> RqWqe,
) -> ((WcStatus, Syndrome), (WcStatus, Syndrome)) {
    let mut pair = Pair::new();
    let own = pair.a.region(&mut pair.device, 4096, full());
    let target = pair.b.region(&mut pair.device, 4096, full());
    let wqe = make(&mut pair.b, &target);
    pair.b.write_recv(&mut pair.qb, wqe);
    pair.b.ring_qp(&mut pair.device, &pair.qb);
    pair.a.send(
        &mut pair.device,
        &mut pair.qa,
        &Send::new(Opcode::SEND, 1, &[own.sge(0, 64)]),
    );
    let sent = pair.a.poll(&mut pair.qa).unwrap();
    let received = pair.b.poll(&mut pair.qb).unwrap();
    assert_eq!(received.wr_id, 5);
    assert_eq!(received.opcode, WcOpcode::RECV.0);
    if received.status != WcStatus::SUCCESS {
        assert_eq!(
            pair.b.query(&mut pair.device, pair.qb.qpn),
            Some(QpState::ERR)
        );
    }
    (
        (sent.status, sent.syndrome),
        (received.status, received.syndrome),
    )
}

#[test]
pub(crate) fn each_bad_field_of_a_receive_has_its_syndrome() {
    let malformed = (
        (WcStatus::REM_OP_ERR, Syndrome::RECV_BAD_WQE),
        (WcStatus::LOC_QP_OP_ERR, Syndrome::RECV_BAD_WQE),
    );
    for count in [4, 5, 255] {
        assert_eq!(
            receive_outcome(|_, target| RqWqe {
                count,
                ..recv_wqe(5, &[target.sge(0, 64)])
            }),
            malformed,
            "count {count}"
        );
    }
    for byte in 0..7 {
        assert_eq!(
            receive_outcome(|_, target| {
                let mut wqe = recv_wqe(5, &[target.sge(0, 64)]);
                wqe.reserved[byte] = 1;
                wqe
            }),
            malformed,
            "reserved byte {byte}"
        );
    }
    let access = |syndrome| {
        (
            (WcStatus::REM_OP_ERR, Syndrome::RECV_BAD_WQE),
            (WcStatus::LOC_ACCESS_ERR, syndrome),
        )
    };
    assert_eq!(
        receive_outcome(|_, target| {
            let mut sge = target.sge(0, 64);
            sge.lkey ^= 1;
            recv_wqe(5, &[sge])
        }),
        access(Syndrome::LKEY_UNKNOWN)
    );
    assert_eq!(
        receive_outcome(|_, target| recv_wqe(5, &[target.sge(4095, 64)])),
        access(Syndrome::LKEY_OUT_OF_BOUNDS)
    );
    for short in [0, 1, 63] {
        assert_eq!(
            receive_outcome(|_, target| recv_wqe(5, &[target.sge(0, short)])),
            (
                (WcStatus::REM_INV_REQ_ERR, Syndrome::RECV_TOO_SHORT),
                (WcStatus::LOC_LEN_ERR, Syndrome::RECV_TOO_SHORT)
            ),
            "{short} bytes of room"
        );
    }
}

#[test]
fn receive_into_a_region_without_local_write_is_refused() {
    let mut pair = Pair::new();
    let own = pair.a.region(&mut pair.device, 64, full());
    let target = pair.b.region(&mut pair.device, 64, Access::REMOTE_READ);
    pair.b
        .recv(&mut pair.device, &mut pair.qb, 5, &[target.sge(0, 64)]);
    pair.a.send(
        &mut pair.device,
        &mut pair.qa,
        &Send::new(Opcode::SEND, 1, &[own.sge(0, 64)]),
    );
    let received = pair.b.poll(&mut pair.qb).unwrap();
    assert_eq!(
        (received.status, received.syndrome),
        (WcStatus::LOC_ACCESS_ERR, Syndrome::LKEY_NO_ACCESS)
    );
}

#[test]
fn sge_that_no_byte_reaches_needs_no_key() {
    assert_eq!(
        receive_outcome(|_, target| {
            let unreached = Sge {
                addr: 1,
                len: 10,
                lkey: 3,
            };
            recv_wqe(5, &[target.sge(0, 64), unreached])
        }),
        (
            (WcStatus::SUCCESS, Syndrome::NONE),
            (WcStatus::SUCCESS, Syndrome::NONE)
        )
    );
}

#[test]
pub(crate) fn impossible_doorbells_end_the_qp() {
    type Ring = fn(&mut Pair);
    let rings: [(&str, Ring); 4] = [
        ("SQ deeper than it is", |pair| pair.qa.sq_producer += 65),
        ("SQ backwards", |pair| {
            pair.qa.sq_producer = pair.qa.sq_producer.wrapping_sub(1);
        }),
        ("RQ deeper than it is", |pair| pair.qa.rq_producer += 33),
        ("RQ far away", |pair| pair.qa.rq_producer = 1 << 31),
    ];
    for (what, lie) in rings {
        let mut pair = Pair::new();
        lie(&mut pair);
        pair.a.ring_qp(&mut pair.device, &pair.qa);
        pump(&mut pair.device);
        assert_eq!(
            pair.a.events(),
            [(
                EventType::QP_FATAL,
                pair.qa.qpn,
                Syndrome::DOORBELL_OUT_OF_RANGE.0.into()
            )],
            "{what}"
        );
        assert_eq!(
            pair.a.query(&mut pair.device, pair.qa.qpn),
            Some(QpState::ERR)
        );
    }
}
