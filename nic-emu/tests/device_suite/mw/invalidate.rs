//! LOCAL_INV and SEND_WITH_INV.

use ring_proto::admin::{AdminOp, AdminStatus};
use ring_proto::cqe::{CQE_IMM, CQE_INV};
use ring_proto::status::{Opcode, QpState, Syndrome, WcOpcode, WcStatus};

use super::{DONE, REMOTE, Scene, bind_error, next, post, refused, second_qp};
use crate::client::{Pair, Send, full};

pub(crate) fn local_inv(key: u32) -> Send {
    Send::new(Opcode::LOCAL_INV, 11, &[]).imm(key)
}

#[test]
fn local_invalidation_ends_the_binding_and_the_window_can_be_bound_again() {
    let mut scene = Scene::bound(REMOTE);
    let key = scene.mw;
    assert_eq!(scene.post_b(&local_inv(key)), DONE);
    // Bound again with a fresh tag; the old key stays dead.
    let wqe = scene.bind_wqe(REMOTE);
    assert_eq!(scene.post_b(&wqe), DONE);
    scene.mw = next(key);
    assert_eq!(scene.access(Opcode::RDMA_READ, 1024, 8), DONE);
    scene.mw = key;
    assert_eq!(
        scene.access(Opcode::RDMA_READ, 1024, 8),
        refused(Syndrome::RKEY_UNKNOWN)
    );
}

#[test]
pub(crate) fn an_invalidated_key_refuses_the_peer() {
    let mut scene = Scene::bound(REMOTE);
    let inv = local_inv(scene.mw);
    assert_eq!(scene.post_b(&inv), DONE);
    assert_eq!(
        scene.access(Opcode::RDMA_WRITE, 1024, 8),
        refused(Syndrome::KEY_INVALIDATED)
    );
    let mut scene = Scene::with(full());
    let inv = local_inv(scene.remote.key);
    assert_eq!(scene.post_b(&inv), DONE);
    scene.mw = scene.remote.key;
    assert_eq!(
        scene.access(Opcode::RDMA_READ, 0, 8),
        refused(Syndrome::KEY_INVALIDATED)
    );
}

#[test]
fn an_invalidated_region_refuses_its_owner_and_can_be_deregistered() {
    let mut scene = Scene::with(full());
    let key = scene.remote.key;
    assert_eq!(scene.post_b(&local_inv(key)), DONE);
    let wqe = Send::new(Opcode::RDMA_WRITE, 1, &[scene.remote.sge(0, 8)])
        .remote(scene.own.iova, scene.own.key);
    assert_eq!(
        scene.post_b(&wqe),
        (WcStatus::LOC_PROT_ERR, Syndrome::KEY_INVALIDATED)
    );
    assert_eq!(scene.admin(AdminOp::MR_DEREG, key), AdminStatus::OK);
    assert_eq!(scene.admin(AdminOp::MR_DEREG, key), AdminStatus::NO_OBJECT);
}

#[test]
pub(crate) fn each_failed_check_of_an_invalidation_has_its_syndrome() {
    type Key = fn(&mut Scene) -> u32;
    let cases: [(&str, Key, Syndrome); 9] = [
        ("no key", |_| 0, Syndrome::INV_UNKNOWN_KEY),
        (
            "stale window",
            |scene| next(scene.mw),
            Syndrome::INV_UNKNOWN_KEY,
        ),
        (
            "window of another domain",
            |scene| {
                let pdn = scene.pair.b.pd(&mut scene.pair.device);
                scene.pair.b.mw(&mut scene.pair.device, pdn, 2)
            },
            Syndrome::INV_PD_MISMATCH,
        ),
        (
            "type 1",
            |scene| {
                let pdn = scene.pair.b.pdn;
                scene.pair.b.mw(&mut scene.pair.device, pdn, 1)
            },
            Syndrome::INV_NOT_ALLOWED,
        ),
        (
            "not bound",
            |scene| {
                let pdn = scene.pair.b.pdn;
                scene.pair.b.mw(&mut scene.pair.device, pdn, 2)
            },
            Syndrome::INV_NOT_VALID,
        ),
        (
            "region of another domain",
            |scene| {
                let Pair { device, b, .. } = &mut scene.pair;
                let pdn = b.pd(device);
                b.region_of(device, 64, full(), pdn, 0).key
            },
            Syndrome::INV_PD_MISMATCH,
        ),
        (
            "region of another QP",
            |scene| {
                let Pair { device, b, .. } = &mut scene.pair;
                let (pdn, other) = (b.pdn, b.qp(device));
                b.region_of(device, 64, full(), pdn, other.qpn).key
            },
            Syndrome::INV_WRONG_QP,
        ),
        (
            "region invalidated before",
            |scene| {
                let Pair { device, b, .. } = &mut scene.pair;
                let key = b.region(device, 64, full()).key;
                assert_eq!(scene.post_b(&local_inv(key)), DONE);
                key
            },
            Syndrome::INV_NOT_VALID,
        ),
        (
            "region with a window",
            |scene| scene.remote.key,
            Syndrome::INV_REGION_BOUND,
        ),
    ];
    for (what, key, syndrome) in cases {
        let mut scene = Scene::bound(REMOTE);
        let key = key(&mut scene);
        assert_eq!(
            scene.post_b(&local_inv(key)),
            bind_error(syndrome),
            "{what}"
        );
    }
}

#[test]
fn send_with_inv_delivers_and_invalidates() {
    let mut scene = Scene::bound(REMOTE);
    let into = scene.pair.b.region(&mut scene.pair.device, 64, full());
    let Pair {
        device,
        a,
        b,
        qa,
        qb,
    } = &mut scene.pair;
    b.recv(device, qb, 21, &[into.sge(0, 64)]);
    a.write(scene.own.iova, b"done");
    let wqe = Send::new(Opcode::SEND_WITH_INV, 22, &[scene.own.sge(0, 4)]).imm(scene.mw);
    a.send(device, qa, &wqe);
    let sent = a.poll(qa).unwrap();
    assert_eq!(
        (sent.wr_id, sent.status, sent.opcode),
        (22, WcStatus::SUCCESS, WcOpcode::SEND_WITH_INV.0)
    );
    let received = b.poll(qb).unwrap();
    assert_eq!(
        (received.wr_id, received.status, received.opcode),
        (21, WcStatus::SUCCESS, WcOpcode::RECV.0)
    );
    assert_eq!((received.imm, received.flags), (scene.mw, CQE_INV));
    assert_eq!(received.flags & CQE_IMM, 0);
    assert_eq!(b.read(into.iova, 4), b"done");
    assert_eq!(
        scene.access(Opcode::RDMA_READ, 1024, 8),
        refused(Syndrome::KEY_INVALIDATED)
    );
}

#[test]
fn send_with_inv_without_bytes_still_invalidates() {
    let mut scene = Scene::bound(REMOTE);
    let Pair {
        device,
        a,
        b,
        qa,
        qb,
        ..
    } = &mut scene.pair;
    b.recv(device, qb, 1, &[]);
    let wqe = Send::inline(Opcode::SEND_WITH_INV, 2, b"").imm(scene.mw);
    assert_eq!(post(a, device, qa, &wqe), DONE);
    assert_eq!(b.poll(qb).unwrap().imm, scene.mw);
    assert_eq!(
        scene.post_b(&local_inv(scene.mw)),
        bind_error(Syndrome::INV_NOT_VALID)
    );
}

#[test]
fn send_with_inv_of_many_turns_invalidates_at_its_end() {
    let mut scene = Scene::bound(REMOTE);
    let Pair {
        device,
        a,
        b,
        qa,
        qb,
        ..
    } = &mut scene.pair;
    let len = 1 << 20;
    let from = a.region(device, len, full());
    let into = b.region(device, len, full());
    let len = u32::try_from(len).unwrap();
    b.recv(device, qb, 1, &[into.sge(0, len)]);
    let wqe = Send::new(Opcode::SEND_WITH_INV, 2, &[from.sge(0, len)]).imm(scene.mw);
    assert_eq!(post(a, device, qa, &wqe), DONE);
    assert_eq!(b.poll(qb).unwrap().byte_len, len);
    assert_eq!(
        scene.access(Opcode::RDMA_READ, 1024, 8),
        refused(Syndrome::KEY_INVALIDATED)
    );
}

#[test]
fn send_with_inv_of_a_wrong_key_fails_both_ends_and_moves_nothing() {
    type Key = fn(&mut Scene) -> u32;
    let cases: [(&str, Key, Syndrome); 5] = [
        ("no key", |_| 1, Syndrome::INV_UNKNOWN_KEY),
        (
            "region",
            |scene| scene.remote.key,
            Syndrome::INV_NOT_ALLOWED,
        ),
        (
            "type 1",
            |scene| {
                let pdn = scene.pair.b.pdn;
                scene.pair.b.mw(&mut scene.pair.device, pdn, 1)
            },
            Syndrome::INV_NOT_ALLOWED,
        ),
        (
            "invalidated",
            |scene| {
                let inv = local_inv(scene.mw);
                assert_eq!(scene.post_b(&inv), DONE);
                scene.mw
            },
            Syndrome::INV_NOT_VALID,
        ),
        (
            "another QP's window",
            |scene| {
                let (_, mut qb) = second_qp(scene);
                let Pair { device, b, .. } = &mut scene.pair;
                let pdn = b.pdn;
                let mw = b.mw(device, pdn, 2);
                let range = (scene.remote.iova, 64);
                let wqe = Send::bind(1, (mw, next(mw)), scene.remote.key, range, REMOTE);
                assert_eq!(post(b, device, &mut qb, &wqe), DONE);
                next(mw)
            },
            Syndrome::INV_WRONG_QP,
        ),
    ];
    for (what, key, syndrome) in cases {
        let mut scene = Scene::bound(REMOTE);
        let key = key(&mut scene);
        let into = scene.pair.b.region(&mut scene.pair.device, 64, full());
        scene.pair.a.write(scene.own.iova, b"text");
        let wqe = Send::new(Opcode::SEND_WITH_INV, 2, &[scene.own.sge(0, 4)]).imm(key);
        let Pair { device, b, qb, .. } = &mut scene.pair;
        b.recv(device, qb, 1, &[into.sge(0, 64)]);
        assert_eq!(scene.post_a(&wqe), refused(syndrome), "{what}");
        let Pair { device, b, qb, .. } = &mut scene.pair;
        let received = b.poll(qb).expect("the receive fails too");
        assert_eq!(
            (received.wr_id, received.status, received.syndrome),
            (1, WcStatus::MW_BIND_ERR, syndrome),
            "{what}"
        );
        assert_eq!(b.read(into.iova, 4), [0; 4], "{what}");
        assert_eq!(b.query(device, qb.qpn), Some(QpState::ERR), "{what}");
    }
}
