//! Cases about the end of keys: LOCAL_INV by their owner, SEND_WITH_INV by the peer.
//!
//! Place: see [`super`]. Source: IBTA vol. 1, 9.4.1.1.3 (SEND with invalidate), 10.6.5 and 11.4.1.1; `ibv_post_send(3)`,
//! IBV_WR_LOCAL_INV and IBV_WR_SEND_WITH_INV; docs/device.md, Memory windows.

use ring_proto::admin::{AdminOp, AdminStatus};
use ring_proto::cqe::{CQE_IMM, CQE_INV};
use ring_proto::status::{Opcode, QpState, Syndrome, WcOpcode, WcStatus};
use ring_proto::wqe::WqeFlags;

use super::super::client::{QpOptions, full};
use super::super::rig::{Pair, Rig, done, fails};
use super::super::wr::SendWr;
use super::super::{Case, Outcome, case, same};
use super::mw::{self, Scene, alloc, next};

const LOCAL: &str = "IBTA 10.6.5, 11.4.1.1; ibv_post_send(3), IBV_WR_LOCAL_INV";
const REMOTE: &str = "IBTA 9.4.1.1.3; ibv_post_send(3), IBV_WR_SEND_WITH_INV";

const R: Opcode = Opcode::RDMA_READ;
/// Where the scene's window begins in its region.
const FROM: u64 = 1024;

/// A LOCAL_INV of b that fails.
fn refused_local(
    rig: &mut Rig<'_>,
    syndrome: Syndrome,
    key: impl FnOnce(&mut Scene) -> Outcome<u32>,
) -> Outcome {
    let mut scene = Scene::bound(rig, mw::remote())?;
    let key = key(&mut scene)?;
    scene.b_fails(&SendWr::local_inv(10, key), syndrome)
}

/// A SEND_WITH_INV of a whose key b does not let go: both ends fail, and no byte moves.
fn refused_remote(
    rig: &mut Rig<'_>,
    syndrome: Syndrome,
    key: impl FnOnce(&mut Scene) -> Outcome<u32>,
) -> Outcome {
    let mut scene = Scene::bound(rig, mw::remote())?;
    let key = key(&mut scene)?;
    scene
        .pair
        .b
        .memory
        .write(scene.pair.into.iova, &[0xee; 8])?;
    scene.pair.receives(1, 64);
    let wr = SendWr::inline(Opcode::SEND_WITH_INV, 1, b"and end").imm(key);
    scene
        .pair
        .refused(&wr, WcStatus::REM_ACCESS_ERR, syndrome)?;
    scene.pair.b_fails(WcStatus::MW_BIND_ERR, syndrome)?;
    scene.pair.arrived(&[0xee; 8])
}

/// A type 2 window of b in another protection domain.
fn of_another_pd(scene: &mut Scene) -> Outcome<u32> {
    let pdn = scene.pair.b.pd()?;
    alloc(&mut scene.pair.b, pdn, 2)
}

/// The scene's window, bound by another QP of b.
fn of_another_qp(scene: &mut Scene) -> Outcome<u32> {
    scene.b_done(&SendWr::local_inv(10, scene.mw))?;
    let (_, mut qb) = scene.second()?;
    let wr = scene.bind(mw::remote());
    let b = &mut scene.pair.b;
    b.send(&mut qb, &wr);
    let wc = b.wc(qb.send_cq)?;
    done(&wc, 9)?;
    Ok(next(scene.mw))
}

/// A type 1 window of b.
fn of_type_1(scene: &mut Scene) -> Outcome<u32> {
    scene.type_1()?;
    Ok(scene.mw)
}

/// A type 2 window of b that is not bound.
fn not_bound(scene: &mut Scene) -> Outcome<u32> {
    let pdn = scene.pair.b.pdn;
    alloc(&mut scene.pair.b, pdn, 2)
}

/// A key that nothing has.
fn unknown(scene: &mut Scene) -> Outcome<u32> {
    Ok(scene.mw ^ 0x0100)
}

pub(super) const CASES: &[Case] = &[
    case(
        "invalidate.local.ends-a-window",
        "After LOCAL_INV a memory window opens nothing",
        LOCAL,
        |rig| {
            let mut scene = Scene::bound(rig, mw::remote())?;
            scene.b_done(&SendWr::local_inv(10, scene.mw))?;
            scene.refused(R, FROM, 8, Syndrome::KEY_INVALIDATED)
        },
    ),
    case(
        "invalidate.local.frees-the-region",
        "After LOCAL_INV of its memory window a region can be deregistered",
        LOCAL,
        |rig| {
            let mut scene = Scene::bound(rig, mw::remote())?;
            scene.b_done(&SendWr::local_inv(10, scene.mw))?;
            let region = scene.region.key;
            let b = &mut scene.pair.b;
            b.named(AdminOp::MR_DEREG, region, AdminStatus::OK)
        },
    ),
    case(
        "invalidate.local.completion-fields",
        "A LOCAL_INV completes with its wr_id and opcode and no bytes",
        LOCAL,
        |rig| {
            let mut scene = Scene::bound(rig, mw::remote())?;
            let Pair { b, qb, .. } = &mut scene.pair;
            b.send(qb, &SendWr::local_inv(10, scene.mw));
            let wc = b.wc(qb.send_cq)?;
            done(&wc, 10)?;
            let seen = (wc.opcode, wc.byte_len);
            same("opcode and length", seen, (WcOpcode::LOCAL_INV, 0))
        },
    ),
    case(
        "invalidate.local.ends-a-region-for-peers",
        "After LOCAL_INV a region refuses its peer",
        "IBTA 10.6.5; docs/device.md, Memory windows",
        |rig| {
            let mut pair = rig.pair()?;
            let key = pair.into.key;
            pair.b.send(&mut pair.qb, &SendWr::local_inv(10, key));
            pair.b_done(10)?;
            let wr = SendWr::write(1, pair.out.sge(0, 8), pair.into.remote(0));
            pair.refused(&wr, WcStatus::REM_ACCESS_ERR, Syndrome::KEY_INVALIDATED)
        },
    ),
    case(
        "invalidate.local.ends-a-region-for-its-owner",
        "After LOCAL_INV a region serves no SGE, and can still be deregistered",
        "IBTA 10.6.5; docs/device.md, Memory windows",
        |rig| {
            let mut pair = rig.pair()?;
            let out = pair.out;
            pair.post(&SendWr::local_inv(10, out.key));
            pair.a_done(10)?;
            let wr = SendWr::write(1, out.sge(0, 8), pair.into.remote(0));
            pair.refused(&wr, WcStatus::LOC_PROT_ERR, Syndrome::KEY_INVALIDATED)?;
            pair.a.named(AdminOp::MR_DEREG, out.key, AdminStatus::OK)
        },
    ),
    case(
        "invalidate.local.what-was-posted-before-is-served",
        "WQEs before a LOCAL_INV may use its key, WQEs behind it may not",
        "IBTA 10.8.3.3; ibv_post_send(3), IBV_WR_LOCAL_INV",
        |rig| {
            let mut pair = rig.pair()?;
            let out = pair.out;
            let write = |wr_id| SendWr::write(wr_id, out.sge(0, 8), pair.into.remote(0));
            let (before, behind) = (write(1), write(3));
            pair.a.write_send(&mut pair.qa, &before);
            pair.a
                .write_send(&mut pair.qa, &SendWr::local_inv(2, out.key));
            pair.post(&behind);
            pair.a_done(1)?;
            pair.a_done(2)?;
            pair.a_fails(WcStatus::LOC_PROT_ERR, Syndrome::KEY_INVALIDATED)
        },
    ),
    case(
        "invalidate.local.unknown-key-refused",
        "LOCAL_INV names a key that exists",
        LOCAL,
        |rig| refused_local(rig, Syndrome::INV_UNKNOWN_KEY, unknown),
    ),
    case(
        "invalidate.local.pd-mismatch",
        "LOCAL_INV ends keys of the QP's protection domain only",
        LOCAL,
        |rig| refused_local(rig, Syndrome::INV_PD_MISMATCH, of_another_pd),
    ),
    case(
        "invalidate.local.region-pd-mismatch",
        "LOCAL_INV ends regions of the QP's protection domain only",
        LOCAL,
        |rig| {
            refused_local(rig, Syndrome::INV_PD_MISMATCH, |scene| {
                let pdn = scene.pair.b.pd()?;
                Ok(scene.pair.b.region_of(64, full(), pdn, 0)?.key)
            })
        },
    ),
    case(
        "invalidate.local.type-1-refused",
        "LOCAL_INV does not end type 1 memory windows",
        LOCAL,
        |rig| refused_local(rig, Syndrome::INV_NOT_ALLOWED, of_type_1),
    ),
    case(
        "invalidate.local.not-bound-refused",
        "A memory window that is not bound cannot be invalidated",
        LOCAL,
        |rig| refused_local(rig, Syndrome::INV_NOT_VALID, not_bound),
    ),
    case(
        "invalidate.local.twice-refused",
        "A region is invalidated once",
        LOCAL,
        |rig| {
            refused_local(rig, Syndrome::INV_NOT_VALID, |scene| {
                let key = scene.pair.into.key;
                scene.b_done(&SendWr::local_inv(11, key))?;
                Ok(key)
            })
        },
    ),
    case(
        "invalidate.local.wrong-qp-refused",
        "LOCAL_INV ends memory windows of its own QP only",
        LOCAL,
        |rig| refused_local(rig, Syndrome::INV_WRONG_QP, of_another_qp),
    ),
    case(
        "invalidate.local.region-of-another-qp-refused",
        "LOCAL_INV ends a region with an owner QP through that QP only",
        "docs/device.md, Memory windows",
        |rig| {
            refused_local(rig, Syndrome::INV_WRONG_QP, |scene| {
                let owner = scene.pair.b.init_qp(QpOptions::default())?;
                let pdn = scene.pair.b.pdn;
                Ok(scene.pair.b.region_of(64, full(), pdn, owner.qpn)?.key)
            })
        },
    ),
    case(
        "invalidate.local.region-with-windows-refused",
        "A region with memory windows is not invalidated",
        "IBTA 10.6.5, 10.6.7.2.6",
        |rig| {
            refused_local(rig, Syndrome::INV_REGION_BOUND, |scene| {
                Ok(scene.region.key)
            })
        },
    ),
    case(
        "invalidate.remote.delivers-and-ends",
        "SEND_WITH_INV delivers its bytes and ends the memory window; the receive says which",
        REMOTE,
        |rig| {
            let mut scene = Scene::bound(rig, mw::remote())?;
            scene.pair.receives(1, 64);
            let mw = scene.mw;
            let wr = SendWr::inline(Opcode::SEND_WITH_INV, 1, b"and end").imm(mw);
            scene.pair.post(&wr);
            scene.pair.a_done(1)?;
            let wc = scene.pair.b_done(100)?;
            same("opcode", wc.opcode, WcOpcode::RECV)?;
            let flags = wc.flags & (CQE_INV | CQE_IMM);
            same("flags and key", (flags, wc.imm), (CQE_INV, mw))?;
            scene.pair.arrived(b"and end")?;
            scene.refused(R, FROM, 8, Syndrome::KEY_INVALIDATED)
        },
    ),
    case(
        "invalidate.remote.no-bytes",
        "SEND_WITH_INV of no bytes ends the memory window too",
        REMOTE,
        |rig| {
            let mut scene = Scene::bound(rig, mw::remote())?;
            scene.pair.b.recv(&mut scene.pair.qb, 100, &[]);
            let wr = SendWr::new(Opcode::SEND_WITH_INV, 1, &[]).imm(scene.mw);
            scene.pair.post(&wr);
            scene.pair.b_done(100)?;
            scene.pair.a_done(1)?;
            scene.refused(R, FROM, 8, Syndrome::KEY_INVALIDATED)
        },
    ),
    case(
        "invalidate.remote.what-was-posted-before-is-served",
        "A READ before a fenced SEND_WITH_INV may use its key",
        "IBTA 10.8.3.3 (ordering rules); ibv_post_send(3), IBV_WR_SEND_WITH_INV",
        |rig| {
            let mut scene = Scene::bound(rig, mw::remote())?;
            scene.pair.receives(1, 64);
            let read = scene.by_window(R, FROM, 64);
            // Without the fence a response that was lost would have to be read again with a key that is over.
            let end = SendWr::inline(Opcode::SEND_WITH_INV, 2, b"")
                .imm(scene.mw)
                .flags(WqeFlags::FENCE);
            let pair = &mut scene.pair;
            pair.a.write_send(&mut pair.qa, &read);
            pair.post(&end);
            pair.a_done(1)?;
            pair.a_done(2).map(drop)
        },
    ),
    case(
        "invalidate.remote.window-can-be-bound-again",
        "The owner of a memory window that its peer ended can bind it again",
        REMOTE,
        |rig| {
            let mut scene = Scene::bound(rig, mw::remote())?;
            scene.pair.receives(1, 64);
            let wr = SendWr::inline(Opcode::SEND_WITH_INV, 1, b"").imm(scene.mw);
            scene.pair.post(&wr);
            scene.pair.b_done(100)?;
            scene.pair.a_done(1)?;
            let again = scene.bind(mw::remote());
            scene.b_done(&again)?;
            scene.mw = next(scene.mw);
            scene.admitted(R, FROM, 8)
        },
    ),
    case(
        "invalidate.remote.unknown-key-refused",
        "SEND_WITH_INV names a key of the receiver that exists",
        REMOTE,
        |rig| refused_remote(rig, Syndrome::INV_UNKNOWN_KEY, unknown),
    ),
    case(
        "invalidate.remote.pd-mismatch",
        "SEND_WITH_INV ends keys of the receiving QP's protection domain only",
        REMOTE,
        |rig| refused_remote(rig, Syndrome::INV_PD_MISMATCH, of_another_pd),
    ),
    case(
        "invalidate.remote.wrong-qp-refused",
        "SEND_WITH_INV ends memory windows of the receiving QP only",
        REMOTE,
        |rig| refused_remote(rig, Syndrome::INV_WRONG_QP, of_another_qp),
    ),
    case(
        "invalidate.remote.type-1-refused",
        "Type 1 memory windows are not for the peer to end",
        REMOTE,
        |rig| refused_remote(rig, Syndrome::INV_NOT_ALLOWED, of_type_1),
    ),
    case(
        "invalidate.remote.not-bound-refused",
        "SEND_WITH_INV ends memory windows that are bound",
        REMOTE,
        |rig| refused_remote(rig, Syndrome::INV_NOT_VALID, not_bound),
    ),
    case(
        "invalidate.remote.region-refused",
        "Regions are not for the peer to end",
        "docs/device.md, Memory windows",
        |rig| {
            refused_remote(rig, Syndrome::INV_NOT_ALLOWED, |scene| {
                Ok(scene.pair.into.key)
            })
        },
    ),
    case(
        "invalidate.remote.refused-changes-nothing",
        "A refused SEND_WITH_INV leaves the memory window as it was",
        REMOTE,
        |rig| {
            let mut scene = Scene::bound(rig, mw::remote())?;
            scene.pair.receives(1, 64);
            let (mut qa, _) = scene.second()?;
            // By a pair of QPs that the window does not serve.
            let wr = SendWr::inline(Opcode::SEND_WITH_INV, 1, b"").imm(scene.mw ^ 1);
            scene.pair.post(&wr);
            let wc = scene.pair.a_wc()?;
            fails(&wc, WcStatus::REM_ACCESS_ERR, Syndrome::INV_UNKNOWN_KEY)?;
            scene.pair.b.expect_state(scene.pair.qb.qpn, QpState::ERR)?;
            // Its QP is in ERR, not gone: the window is still bound to it.
            let read = scene.by_window(R, FROM, 8);
            let a = &mut scene.pair.a;
            a.send(&mut qa, &read);
            let wc = a.wc(qa.send_cq)?;
            fails(&wc, WcStatus::REM_ACCESS_ERR, Syndrome::RKEY_WRONG_QP)
        },
    ),
];
