//! Cases about the flushing of queues.
//!
//! Place: see [`super`]. Source: IBTA vol. 1, 10.3.1.7 (error state), 10.10.2 and 11.6.2; `ibv_poll_cq(3)`.

use ring_proto::admin::{AdminOp, AdminStatus};
use ring_proto::status::{Opcode, QpState, Syndrome, WcStatus};

use super::super::client::QpOptions;
use super::super::rig::fails;
use super::super::target::Port;
use super::super::wr::{SendWr, Wc};
use super::super::{Case, Outcome, case, same};

const FLUSH: &str = "IBTA 10.3.1.7, 11.6.2; ibv_modify_qp(3)";

fn flushed(wc: &Wc, wr_id: u64) -> Outcome {
    fails(wc, WcStatus::WR_FLUSH_ERR, Syndrome::FLUSHED)?;
    same("wr_id", wc.wr_id, wr_id)
}

pub(super) const CASES: &[Case] = &[
    case(
        "flush.receives",
        "In ERR all posted receives complete with WR_FLUSH_ERR, in order",
        FLUSH,
        |rig| {
            let mut a = rig.client(Port::A)?;
            let mut qp = a.init_qp(QpOptions::default())?;
            for n in 0..10 {
                a.recv(&mut qp, n, &[]);
            }
            a.modify(qp.qpn, QpState::ERR)?;
            for n in 0..10 {
                flushed(&a.wc(qp.recv_cq)?, n)?;
            }
            a.no_wc(qp.recv_cq)
        },
    ),
    case(
        "flush.sends",
        "In ERR all sends that were not executed complete with WR_FLUSH_ERR, in order",
        FLUSH,
        |rig| {
            let mut pair = rig.pair()?;
            for n in 0..10 {
                pair.post(&SendWr::inline(Opcode::SEND, n, b"x"));
            }
            pair.a.settle()?;
            pair.a.modify(pair.qa.qpn, QpState::ERR)?;
            for n in 0..10 {
                flushed(&pair.a_wc()?, n)?;
            }
            Ok(())
        },
    ),
    case(
        "flush.unsignaled-sends",
        "Unsignaled sends are flushed with a completion too",
        FLUSH,
        |rig| {
            let mut pair = rig.pair()?;
            for n in 0..3 {
                pair.post(&SendWr::inline(Opcode::SEND, n, b"x").unsignaled());
            }
            pair.a.settle()?;
            pair.a.modify(pair.qa.qpn, QpState::ERR)?;
            for n in 0..3 {
                flushed(&pair.a_wc()?, n)?;
            }
            Ok(())
        },
    ),
    case(
        "flush.sends-before-receives",
        "Sends are flushed before receives",
        "docs/device.md, Queue pairs",
        |rig| {
            let mut pair = rig.pair()?;
            pair.a.recv(&mut pair.qa, 50, &[]);
            pair.post(&SendWr::inline(Opcode::SEND, 1, b"x"));
            pair.a.settle()?;
            pair.a.modify(pair.qa.qpn, QpState::ERR)?;
            flushed(&pair.a_wc()?, 1)?;
            flushed(&pair.a_wc()?, 50)
        },
    ),
    case(
        "flush.later-receives",
        "Receives posted in ERR are flushed",
        FLUSH,
        |rig| {
            let mut a = rig.client(Port::A)?;
            let mut qp = a.init_qp(QpOptions::default())?;
            a.modify(qp.qpn, QpState::ERR)?;
            a.recv(&mut qp, 7, &[]);
            flushed(&a.wc(qp.recv_cq)?, 7)
        },
    ),
    case(
        "flush.later-sends",
        "Sends posted in ERR are flushed",
        FLUSH,
        |rig| {
            let mut pair = rig.pair()?;
            pair.a.modify(pair.qa.qpn, QpState::ERR)?;
            pair.post(&SendWr::inline(Opcode::SEND, 8, b"x"));
            flushed(&pair.a_wc()?, 8)
        },
    ),
    case(
        "flush.cause-first",
        "The first error names its cause, everything behind it is flushed",
        "IBTA 10.10.2.2, 11.6.2",
        |rig| {
            let mut pair = rig.pair()?;
            pair.a.recv(&mut pair.qa, 50, &[]);
            pair.a.write_send(
                &mut pair.qa,
                &SendWr::inline(Opcode::RDMA_WRITE, 1, b"x").remote((0, 0)),
            );
            pair.a
                .write_send(&mut pair.qa, &SendWr::inline(Opcode::SEND, 2, b"x"));
            pair.post(&SendWr::inline(Opcode::SEND, 3, b"x"));
            fails(
                &pair.a_wc()?,
                WcStatus::REM_ACCESS_ERR,
                Syndrome::RKEY_UNKNOWN,
            )?;
            for wr_id in [2, 3, 50] {
                flushed(&pair.a_wc()?, wr_id)?;
            }
            Ok(())
        },
    ),
    case(
        "flush.done-before-the-error",
        "What completed before an error stays completed",
        "IBTA 10.10.2.2",
        |rig| {
            let mut pair = rig.pair()?;
            pair.receives(2, 64);
            for n in 0..2 {
                pair.a
                    .write_send(&mut pair.qa, &SendWr::inline(Opcode::SEND, n, b"x"));
            }
            pair.post(&SendWr::inline(Opcode::RDMA_WRITE, 2, b"x").remote((0, 0)));
            pair.a_done(0)?;
            pair.a_done(1)?;
            fails(
                &pair.a_wc()?,
                WcStatus::REM_ACCESS_ERR,
                Syndrome::RKEY_UNKNOWN,
            )
        },
    ),
    case(
        "flush.unsignaled-before-the-error-are-silent",
        "Unsignaled work that succeeded before an error gets no completion by it",
        "IBTA 10.8.6",
        |rig| {
            let mut pair = rig.pair()?;
            pair.receives(2, 64);
            for n in 0..2 {
                pair.a.write_send(
                    &mut pair.qa,
                    &SendWr::inline(Opcode::SEND, n, b"x").unsignaled(),
                );
            }
            pair.post(&SendWr::inline(Opcode::RDMA_WRITE, 2, b"x").remote((0, 0)));
            let wc = pair.a_wc()?;
            same("wr_id and position", (wc.wr_id, wc.wqe_counter), (2, 3))
        },
    ),
    case(
        "flush.nops-are-silent",
        "A NOP is not flushed",
        "docs/device.md, Work queue elements",
        |rig| {
            let mut pair = rig.pair()?;
            pair.a.modify(pair.qa.qpn, QpState::ERR)?;
            let nop = SendWr::new(Opcode::NOP, 1, &[]).lie(|head| head.flags = 0);
            pair.a.write_send(&mut pair.qa, &nop);
            pair.post(&SendWr::inline(Opcode::SEND, 2, b"x"));
            flushed(&pair.a_wc()?, 2)
        },
    ),
    case(
        "flush.disconnect-flushes-both",
        "A disconnect takes both ends to ERR and flushes them",
        "IBTA 12.9.7; docs/device.md",
        |rig| {
            let mut pair = rig.pair()?;
            pair.receives(1, 64);
            pair.b.settle()?;
            pair.a.recv(&mut pair.qa, 50, &[]);
            pair.a
                .named(AdminOp::CM_DISCONNECT, pair.qa.qpn, AdminStatus::OK)?;
            flushed(&pair.a_wc()?, 50)?;
            // At the end that was disconnected every flush names the cause.
            fails(
                &pair.b_wc()?,
                WcStatus::WR_FLUSH_ERR,
                Syndrome::DISCONNECTED,
            )?;
            pair.b.expect_state(pair.qb.qpn, QpState::ERR)
        },
    ),
    case(
        "flush.each-once",
        "Nothing is flushed twice",
        FLUSH,
        |rig| {
            let mut a = rig.client(Port::A)?;
            let mut qp = a.init_qp(QpOptions::default())?;
            a.recv(&mut qp, 7, &[]);
            a.modify(qp.qpn, QpState::ERR)?;
            flushed(&a.wc(qp.recv_cq)?, 7)?;
            a.modify(qp.qpn, QpState::ERR)?;
            a.ring(&qp);
            a.no_wc(qp.recv_cq)
        },
    ),
    case(
        "flush.positions-free-the-queue",
        "Flush completions free their places in the queue",
        FLUSH,
        |rig| {
            let mut a = rig.client(Port::A)?;
            let mut qp = a.init_qp(QpOptions {
                rq_depth: 4,
                ..QpOptions::default()
            })?;
            a.modify(qp.qpn, QpState::ERR)?;
            for n in 0..12 {
                a.recv(&mut qp, n, &[]);
                let wc = a.wc(qp.recv_cq)?;
                flushed(&wc, n)?;
                same("RQ position", u64::from(wc.wqe_counter), n + 1)?;
            }
            Ok(())
        },
    ),
];
