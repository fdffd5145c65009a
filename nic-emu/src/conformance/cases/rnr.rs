//! Cases about receivers that are not ready.
//!
//! Place: see [`super`]. Source: IBTA vol. 1, 9.7.5.2.8 (RNR NAK) and 11.6.2; `ibv_modify_qp(3)`, rnr_retry.

use ring_proto::status::{Opcode, QpState, Syndrome, WcStatus};

use super::super::client::{QpOptions, to_state};
use super::super::target::Port;
use super::super::wr::SendWr;
use super::super::{Case, case, same};

const RNR: &str = "IBTA 9.7.5.2.8; ibv_modify_qp(3), rnr_retry";
/// Longer than all retries that end.
const LONG: u64 = 10_000_000_000;

pub(super) const CASES: &[Case] = &[
    case(
        "rnr.send-waits-for-a-receive",
        "A SEND without a posted receive completes when one comes",
        RNR,
        |rig| {
            let mut pair = rig.pair()?;
            pair.post(&SendWr::inline(Opcode::SEND, 1, b"wait"));
            let (send_cq, _) = pair.cqs();
            pair.a.no_wc(send_cq)?;
            pair.receives(1, 64);
            pair.b_done(100)?;
            pair.a_done(1)?;
            pair.arrived(b"wait")
        },
    ),
    case(
        "rnr.imm-waits-for-a-receive",
        "An RDMA WRITE with immediate waits for a receive too",
        RNR,
        |rig| {
            let mut pair = rig.pair()?;
            let remote = pair.into.remote(512);
            pair.post(
                &SendWr::inline(Opcode::RDMA_WRITE_WITH_IMM, 1, b"wait")
                    .remote(remote)
                    .imm(3),
            );
            let (send_cq, _) = pair.cqs();
            pair.a.no_wc(send_cq)?;
            pair.receives(1, 64);
            let wc = pair.b_done(100)?;
            same("immediate", wc.imm, 3)?;
            pair.a_done(1).map(drop)
        },
    ),
    case(
        "rnr.write-needs-no-receive",
        "A plain RDMA WRITE is never held up by receives",
        RNR,
        |rig| {
            let mut pair = rig.pair()?;
            let remote = pair.into.remote(0);
            pair.post(&SendWr::inline(Opcode::RDMA_WRITE, 1, b"go").remote(remote));
            pair.a_done(1).map(drop)
        },
    ),
    case(
        "rnr.order-is-kept",
        "What is posted behind a waiting SEND waits too",
        "IBTA 10.8.3.3; 9.7.5.2.8",
        |rig| {
            let mut pair = rig.pair()?;
            pair.post(&SendWr::inline(Opcode::SEND, 1, b"first"));
            let remote = pair.into.remote(1024);
            pair.post(&SendWr::inline(Opcode::RDMA_WRITE, 2, b"second").remote(remote));
            let (send_cq, _) = pair.cqs();
            pair.a.no_wc(send_cq)?;
            same(
                "bytes of the second",
                pair.b.memory.read(pair.into.iova + 1024, 6)?,
                vec![0; 6],
            )?;
            pair.receives(1, 64);
            pair.a_done(1)?;
            pair.a_done(2).map(drop)
        },
    ),
    case(
        "rnr.retry-zero-fails-at-once",
        "With rnr_retry 0 the first meeting fails: RNR_RETRY_EXC_ERR",
        RNR,
        |rig| {
            let mut pair = rig.pair_with(QpOptions::default(), QpOptions::default(), 0)?;
            pair.refused(
                &SendWr::inline(Opcode::SEND, 1, b"x"),
                WcStatus::RNR_RETRY_EXC_ERR,
                Syndrome::RNR_EXHAUSTED,
            )
        },
    ),
    case(
        "rnr.retry-three-ends",
        "With rnr_retry 3 a SEND fails after its retries",
        RNR,
        |rig| {
            let mut pair = rig.pair_with(QpOptions::default(), QpOptions::default(), 3)?;
            pair.post(&SendWr::inline(Opcode::SEND, 1, b"x"));
            rig.pass(LONG);
            pair.a_fails(WcStatus::RNR_RETRY_EXC_ERR, Syndrome::RNR_EXHAUSTED)?;
            // The receiver did nothing wrong.
            pair.b.expect_state(pair.qb.qpn, QpState::RTS)
        },
    ),
    case(
        "rnr.retry-three-succeeds-in-time",
        "A receive before the last retry saves the SEND",
        RNR,
        |rig| {
            rig.need_virtual_time()?;
            let mut pair = rig.pair_with(QpOptions::default(), QpOptions::default(), 3)?;
            pair.post(&SendWr::inline(Opcode::SEND, 1, b"x"));
            rig.pass_virtual(1_000_000)?;
            pair.receives(1, 64);
            pair.a_done(1)?;
            rig.pass_virtual(LONG)?;
            pair.a.expect_state(pair.qa.qpn, QpState::RTS)
        },
    ),
    case(
        "rnr.retry-seven-never-ends",
        "rnr_retry 7 means without end",
        RNR,
        |rig| {
            rig.need_virtual_time()?;
            let mut pair = rig.pair()?;
            pair.post(&SendWr::inline(Opcode::SEND, 1, b"x"));
            rig.pass_virtual(3_600_000_000_000)?;
            let (send_cq, _) = pair.cqs();
            pair.a.no_wc(send_cq)?;
            pair.receives(1, 64);
            pair.a_done(1).map(drop)
        },
    ),
    case(
        "rnr.receiver-error-ends-the-wait",
        "A waiting SEND fails when its receiver goes to ERR",
        "IBTA 9.7.5, 11.6.2",
        |rig| {
            let mut pair = rig.pair()?;
            pair.post(&SendWr::inline(Opcode::SEND, 1, b"x"));
            pair.a.settle()?;
            pair.b.modify(pair.qb.qpn, QpState::ERR)?;
            pair.a_fails(WcStatus::RETRY_EXC_ERR, Syndrome::PEER_IN_ERROR)
        },
    ),
    case(
        "rnr.own-error-flushes-the-wait",
        "A waiting SEND is flushed when its own QP goes to ERR",
        "IBTA 10.3.1.7, 11.6.2",
        |rig| {
            let mut pair = rig.pair()?;
            pair.post(&SendWr::inline(Opcode::SEND, 1, b"x"));
            pair.a.settle()?;
            pair.a.modify(pair.qa.qpn, QpState::ERR)?;
            pair.a_fails(WcStatus::WR_FLUSH_ERR, Syndrome::FLUSHED)
        },
    ),
    case(
        "rnr.one-receive-frees-one-send",
        "Each receive frees one waiting SEND",
        RNR,
        |rig| {
            let mut pair = rig.pair()?;
            for n in 0..3 {
                pair.post(&SendWr::inline(Opcode::SEND, n, b"x"));
            }
            let (send_cq, _) = pair.cqs();
            for n in 0..3 {
                pair.a.no_wc(send_cq)?;
                pair.receives(1, 64);
                pair.a_done(n)?;
                pair.b_wc()?;
            }
            Ok(())
        },
    ),
    case(
        "rnr.peer-not-connected-yet",
        "A SEND waits for a peer that is still on its way to RTR",
        "docs/device.md, Life of a SEND",
        |rig| {
            let mut a = rig.client(Port::A)?;
            let mut b = rig.client(Port::B)?;
            let mut qa = a.init_qp(QpOptions::default())?;
            let mut qb = b.init_qp(QpOptions::default())?;
            a.modify_to_rtr(qa.qpn, (b.function, qb.qpn))?;
            a.modify_to_rts(qa.qpn, 7)?;
            b.recv(&mut qb, 5, &[]);
            a.send(&mut qa, &SendWr::new(Opcode::SEND, 1, &[]));
            a.no_wc(qa.send_cq)?;
            b.modify_to_rtr(qb.qpn, (a.function, qa.qpn))?;
            same("wr_id", a.wc(qa.send_cq)?.wr_id, 1)
        },
    ),
    case(
        "rnr.peer-never-connects",
        "A peer that never reaches RTR ends a SEND with RETRY_EXC_ERR",
        "IBTA 9.7.6.1.3, 11.6.2",
        |rig| {
            let mut a = rig.client(Port::A)?;
            let mut b = rig.client(Port::B)?;
            let mut qa = a.init_qp(QpOptions::default())?;
            let qb = b.init_qp(QpOptions::default())?;
            a.modify_to_rtr(qa.qpn, (b.function, qb.qpn))?;
            a.modify_to_rts(qa.qpn, 7)?;
            a.send(&mut qa, &SendWr::new(Opcode::SEND, 1, &[]));
            rig.pass(LONG);
            same("status", a.wc(qa.send_cq)?.status, WcStatus::RETRY_EXC_ERR)?;
            a.refuse(
                ring_proto::admin::AdminOp::QP_MODIFY,
                to_state(qa.qpn, QpState::RTS).to_body(),
                ring_proto::admin::AdminStatus::BAD_STATE,
            )
        },
    ),
];
