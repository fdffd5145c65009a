//! Cases about the form of work queue elements.
//!
//! Place: see [`super`]. Source: IBTA vol. 1, 10.8 and 11.4.1; docs/device.md, section "Work queue elements".

use ring_proto::status::{Opcode, Syndrome, WcStatus};
use ring_proto::wqe::{Sge, SqWqe, WqeFlags};

use super::super::client::QpOptions;
use super::super::rig::Rig;
use super::super::wr::{SendWr, recv_wr};
use super::super::{Case, Outcome, case, same};
use super::OURS;

const POST: &str = "IBTA 11.4.1.1; ibv_post_send(3)";
const RECV: &str = "IBTA 11.4.1.2; ibv_post_recv(3)";

/// A WQE with one thing wrong: an error completion, the QP in ERR, nothing at the peer.
fn bad(
    rig: &mut Rig<'_>,
    (status, syndrome): (WcStatus, Syndrome),
    lie: impl FnOnce(&mut SqWqe),
) -> Outcome {
    let mut pair = rig.pair()?;
    pair.receives(1, 64);
    let wr = SendWr::send(7, pair.out.sge(0, 16)).lie(lie);
    pair.post(&wr);
    let wc = pair.a_wc()?;
    same(
        "wr_id, status, syndrome",
        (wc.wr_id, wc.status, wc.syndrome),
        (7, status, syndrome),
    )?;
    let (_, recv_cq) = pair.cqs();
    pair.b.no_wc(recv_cq)
}

const OP: WcStatus = WcStatus::LOC_QP_OP_ERR;

pub(super) const CASES: &[Case] = &[
    case(
        "wqe.unknown-opcode-refused",
        "An opcode without a meaning fails with LOC_QP_OP_ERR",
        POST,
        |rig| bad(rig, (OP, Syndrome::BAD_OPCODE), |head| head.opcode = 200),
    ),
    case(
        "wqe.zero-blocks-refused",
        "A WQE has at least one block",
        OURS,
        |rig| bad(rig, (OP, Syndrome::BAD_BLOCKS), |head| head.blocks = 0),
    ),
    case(
        "wqe.too-many-blocks-refused",
        "A WQE has at most four blocks",
        OURS,
        |rig| bad(rig, (OP, Syndrome::BAD_BLOCKS), |head| head.blocks = 5),
    ),
    case(
        "wqe.more-blocks-than-posted-refused",
        "A WQE lies below the producer with all its blocks",
        OURS,
        |rig| bad(rig, (OP, Syndrome::BAD_BLOCKS), |head| head.blocks = 2),
    ),
    case(
        "wqe.unknown-flag-refused",
        "A flag without a meaning is refused",
        OURS,
        |rig| {
            bad(rig, (OP, Syndrome::RESERVED_NOT_ZERO), |head| {
                head.flags |= 0x80
            })
        },
    ),
    case(
        "wqe.sges-beyond-blocks-refused",
        "SGEs lie inside the WQE's blocks",
        OURS,
        |rig| bad(rig, (OP, Syndrome::BAD_BLOCKS), |head| head.count = 3),
    ),
    case(
        "wqe.too-many-sges-refused",
        "More SGEs than the device tells are refused",
        POST,
        |rig| bad(rig, (OP, Syndrome::BAD_SGE_COUNT), |head| head.count = 15),
    ),
    case(
        "wqe.wrong-total-refused",
        "The total is the sum of the lengths",
        OURS,
        |rig| {
            bad(rig, (WcStatus::LOC_LEN_ERR, Syndrome::BAD_TOTAL), |head| {
                head.total += 1
            })
        },
    ),
    case(
        "wqe.message-too-long-refused",
        "A message longer than the port's maximum fails with LOC_LEN_ERR",
        "IBTA 9.7.7.1.1, 11.6.2",
        |rig| {
            let mut pair = rig.pair()?;
            let sge = Sge {
                len: 0x4000_0000,
                ..pair.out.sge(0, 0)
            };
            let wr = SendWr::new(Opcode::SEND, 1, &[sge, sge]);
            pair.refused(&wr, WcStatus::LOC_LEN_ERR, Syndrome::MESSAGE_TOO_LONG)
        },
    ),
    case(
        "wqe.sge-sum-overflow-refused",
        "Lengths are summed without loss: a sum beyond 32 bits does not wrap to a short message",
        POST,
        |rig| {
            let mut pair = rig.pair()?;
            let sge = Sge {
                len: 0x8000_0010,
                ..pair.out.sge(0, 0)
            };
            let wr = SendWr::new(Opcode::SEND, 1, &[sge, sge]);
            pair.refused(&wr, WcStatus::LOC_LEN_ERR, Syndrome::BAD_TOTAL)
        },
    ),
    case(
        "wqe.inline-too-long-refused",
        "More inline data than the device tells is refused",
        "ibv_create_qp(3), max_inline_data",
        |rig| {
            let mut pair = rig.pair()?;
            let wr = SendWr::inline(Opcode::SEND, 1, &[7; 224]).lie(|head| {
                head.count = 225;
                head.total = 225;
            });
            pair.refused(&wr, OP, Syndrome::BAD_INLINE_LENGTH)
        },
    ),
    case(
        "wqe.inline-beyond-blocks-refused",
        "Inline data lies inside the WQE's blocks",
        OURS,
        |rig| {
            let mut pair = rig.pair()?;
            let wr = SendWr::inline(Opcode::SEND, 1, &[7; 32]).lie(|head| {
                head.count = 33;
                head.total = 33;
            });
            pair.refused(&wr, OP, Syndrome::BAD_INLINE_LENGTH)
        },
    ),
    case(
        "wqe.inline-read-refused",
        "A READ has no inline data",
        POST,
        |rig| {
            let mut pair = rig.pair()?;
            let wr = SendWr::inline(Opcode::RDMA_READ, 1, b"x").remote(pair.into.remote(0));
            pair.refused(&wr, OP, Syndrome::RESERVED_NOT_ZERO)
        },
    ),
    case(
        "wqe.wrapping-refused",
        "A WQE does not cross the end of the ring",
        OURS,
        |rig| {
            let shallow = QpOptions {
                sq_depth: 4,
                ..QpOptions::default()
            };
            let mut pair = rig.pair_with(shallow, QpOptions::default(), 7)?;
            pair.receives(4, 64);
            for n in 0..3 {
                pair.post(&SendWr::inline(Opcode::SEND, n, b"x"));
                pair.a_done(n)?;
            }
            // Two blocks in the last place, by hand: the client's own helper would fill up first.
            let wr = SendWr::inline(Opcode::SEND, 9, &[7; 40]);
            for block in wr.blocks() {
                pair.qa.sq.write(pair.qa.sq_producer, &block);
                pair.qa.sq_producer += 1;
            }
            pair.a.ring(&pair.qa);
            pair.a_fails(OP, Syndrome::WQE_WRAPS)
        },
    ),
    case(
        "wqe.nop-is-skipped",
        "A NOP does nothing and completes nothing",
        OURS,
        |rig| {
            let mut pair = rig.pair()?;
            pair.receives(1, 64);
            let nop = SendWr::new(Opcode::NOP, 1, &[]).lie(|head| head.flags = 0);
            pair.a.write_send(&mut pair.qa, &nop);
            pair.post(&SendWr::inline(Opcode::SEND, 2, b"x"));
            pair.a_done(2).map(drop)
        },
    ),
    case(
        "wqe.nop-with-flags-refused",
        "A NOP carries nothing",
        OURS,
        |rig| {
            let mut pair = rig.pair()?;
            let nop = SendWr::new(Opcode::NOP, 1, &[]).flags(WqeFlags::FENCE);
            pair.refused(&nop, OP, Syndrome::RESERVED_NOT_ZERO)
        },
    ),
    case(
        "wqe.receive-too-many-sges",
        "A malformed receive fails when a message meets it: LOC_QP_OP_ERR there, REM_OP_ERR at the sender",
        RECV,
        |rig| bad_receive(rig, |wqe| wqe.count = 4),
    ),
    case(
        "wqe.receive-reserved-not-zero",
        "Reserved bytes of a receive are 0",
        OURS,
        |rig| bad_receive(rig, |wqe| wqe.reserved[6] = 1),
    ),
];

fn bad_receive(rig: &mut Rig<'_>, lie: impl FnOnce(&mut ring_proto::wqe::RqWqe)) -> Outcome {
    let mut pair = rig.pair()?;
    let mut wqe = recv_wr(100, &[pair.into.sge(0, 64)]);
    lie(&mut wqe);
    pair.b.write_recv(&mut pair.qb, wqe);
    pair.b.ring(&pair.qb);
    pair.post(&SendWr::inline(Opcode::SEND, 1, b"x"));
    pair.a_fails(WcStatus::REM_OP_ERR, Syndrome::RECV_BAD_WQE)?;
    pair.b_fails(WcStatus::LOC_QP_OP_ERR, Syndrome::RECV_BAD_WQE)
}
