//! What keeps a window and what ends it; windows of type 1.

use ring_proto::admin::{Access, AdminOp, AdminStatus, MwAlloc, MwBind};
use ring_proto::status::{Opcode, QpState, Syndrome};

use super::{DONE, REMOTE, Scene, next, post, refused, second_qp};
use crate::client::{CQ_DEPTH, Client, Pair, RQ_DEPTH, Region, SQ_DEPTH, Send, full, pump};

#[test]
fn a_region_with_windows_is_busy_until_the_last_is_gone() {
    let mut scene = Scene::bound(REMOTE);
    let (key, mw) = (scene.remote.key, scene.mw);
    assert_eq!(scene.admin(AdminOp::MR_DEREG, key), AdminStatus::BUSY);
    // Refused without harm.
    assert_eq!(scene.access(Opcode::RDMA_READ, 1024, 8), DONE);
    assert_eq!(scene.admin(AdminOp::MW_DEALLOC, mw), AdminStatus::OK);
    assert_eq!(scene.admin(AdminOp::MW_DEALLOC, mw), AdminStatus::NO_OBJECT);
    assert_eq!(scene.admin(AdminOp::MR_DEREG, key), AdminStatus::OK);
}

#[test]
fn the_end_of_a_qp_ends_its_windows() {
    for op in [AdminOp::QP_DESTROY, AdminOp::QP_MODIFY] {
        let mut scene = Scene::bound(REMOTE);
        let Pair { device, b, qb, .. } = &mut scene.pair;
        if op == AdminOp::QP_DESTROY {
            assert_eq!(b.named(device, op, qb.qpn), AdminStatus::OK);
        } else {
            b.modify(device, qb, QpState::RESET);
        }
        let key = scene.remote.key;
        assert_eq!(scene.admin(AdminOp::MR_DEREG, key), AdminStatus::OK, "{op}");
    }
}

#[test]
fn windows_keep_their_domain() {
    let mut scene = Scene::new();
    let Pair { device, b, .. } = &mut scene.pair;
    let pdn = b.pd(device);
    let mw = b.mw(device, pdn, 2);
    assert_eq!(b.named(device, AdminOp::PD_FREE, pdn), AdminStatus::BUSY);
    assert_eq!(b.named(device, AdminOp::MW_DEALLOC, mw), AdminStatus::OK);
    assert_eq!(b.named(device, AdminOp::PD_FREE, pdn), AdminStatus::OK);
    for (body, expected) in [
        (MwAlloc { pdn, kind: 2 }, AdminStatus::NO_OBJECT),
        (
            MwAlloc {
                pdn: b.pdn,
                kind: 0,
            },
            AdminStatus::INVALID,
        ),
        (
            MwAlloc {
                pdn: b.pdn,
                kind: 3,
            },
            AdminStatus::INVALID,
        ),
    ] {
        let status = b.status(device, AdminOp::MW_ALLOC, body.to_body());
        assert_eq!(status, expected, "{body:?}");
    }
    // A region's key names no window, and the other way round.
    let key = scene.remote.key;
    assert_eq!(
        scene.admin(AdminOp::MW_DEALLOC, key),
        AdminStatus::NO_OBJECT
    );
    let mw = scene.mw;
    assert_eq!(scene.admin(AdminOp::MR_DEREG, mw), AdminStatus::NO_OBJECT);
}

#[test]
fn a_window_of_another_domain_than_the_qp_refuses() {
    // Only a type 1 window can be bound in a domain without QPs.
    let mut scene = Scene::new();
    let Pair { device, b, .. } = &mut scene.pair;
    let pdn = b.pd(device);
    let region = b.region_of(device, 64, full(), pdn, 0);
    let mw = b.mw(device, pdn, 1);
    let body = MwBind {
        addr: region.iova,
        len: 64,
        rkey: mw,
        lkey: region.key,
        access: REMOTE.bits(),
        reserved: 0,
    };
    let [key, _] = b.ok(device, AdminOp::MW_BIND, body.to_body());
    let wqe = Send::new(Opcode::RDMA_READ, 1, &[scene.own.sge(0, 8)])
        .remote(region.iova, crate::client::low(key));
    assert_eq!(scene.post_a(&wqe), refused(Syndrome::RKEY_PD_MISMATCH));
}

#[test]
fn type_1_windows_are_bound_by_command_for_every_qp() {
    let mut scene = Scene::new();
    let (mut other, _) = second_qp(&mut scene);
    let (iova, lkey) = (scene.remote.iova, scene.remote.key);
    let Pair {
        device, a, b, qa, ..
    } = &mut scene.pair;
    let pdn = b.pdn;
    let first = b.mw(device, pdn, 1);
    let bind = |b: &mut Client, device: &mut _, rkey, addr, len| {
        let body = MwBind {
            addr,
            len,
            rkey,
            lkey: if len == 0 { 0 } else { lkey },
            access: if len == 0 { 0 } else { REMOTE.bits() },
            reserved: 0,
        };
        crate::client::low(b.ok(device, AdminOp::MW_BIND, body.to_body())[0])
    };
    let second = bind(b, device, first, iova, 64);
    assert_eq!(second, next(first));
    let read = |key, offset| {
        Send::new(Opcode::RDMA_READ, 1, &[scene.own.sge(0, 8)]).remote(iova + offset, key)
    };
    assert_eq!(post(a, device, qa, &read(second, 0)), DONE);
    assert_eq!(post(a, device, &mut other, &read(second, 0)), DONE);
    // Bound to another range: another key, and only that one.
    let third = bind(b, device, second, iova + 128, 64);
    assert_eq!(post(a, device, qa, &read(third, 128)), DONE);
    assert_eq!(
        post(a, device, &mut other, &read(second, 0)),
        refused(Syndrome::RKEY_UNKNOWN)
    );
    // Unbound: the region is free, the window refuses.
    assert_eq!(b.named(device, AdminOp::MR_DEREG, lkey), AdminStatus::BUSY);
    let fourth = bind(b, device, third, 0, 0);
    assert_eq!(
        post(a, device, qa, &read(fourth, 128)),
        refused(Syndrome::KEY_INVALIDATED)
    );
    assert_eq!(b.named(device, AdminOp::MR_DEREG, lkey), AdminStatus::OK);
}

#[test]
fn each_bad_field_of_mw_bind_is_refused() {
    let mut scene = Scene::with(full());
    let type_2 = scene.mw;
    let Pair { device, b, .. } = &mut scene.pair;
    let pdn = b.pdn;
    let mw = b.mw(device, pdn, 1);
    let other_pd = b.pd(device);
    let foreign = b.region_of(device, 64, full(), other_pd, 0);
    let qp = b.qp_with(device, SQ_DEPTH, RQ_DEPTH, CQ_DEPTH, full(), pdn);
    let owned = b.region_of(device, 64, full(), pdn, qp.qpn);
    let plain = b.region(device, 64, full() - Access::MW_BIND);
    let read_only = b.region(device, 64, Access::MW_BIND);
    let good = MwBind {
        addr: scene.remote.iova,
        len: 64,
        rkey: mw,
        lkey: scene.remote.key,
        access: REMOTE.bits(),
        reserved: 0,
    };
    let on = |region: Region| MwBind {
        addr: region.iova,
        lkey: region.key,
        ..good
    };
    for (body, expected) in [
        (MwBind { rkey: 0, ..good }, AdminStatus::NO_OBJECT),
        (
            MwBind {
                rkey: mw ^ 1,
                ..good
            },
            AdminStatus::NO_OBJECT,
        ),
        (
            MwBind {
                rkey: type_2,
                ..good
            },
            AdminStatus::UNSUPPORTED,
        ),
        (MwBind { lkey: 0, ..good }, AdminStatus::NO_OBJECT),
        (MwBind { access: 1, ..good }, AdminStatus::INVALID),
        (
            MwBind {
                access: 1 << 20,
                ..good
            },
            AdminStatus::INVALID,
        ),
        (MwBind { len: 0, ..good }, AdminStatus::INVALID),
        (MwBind { len: 4097, ..good }, AdminStatus::BAD_ADDRESS),
        (
            MwBind {
                addr: u64::MAX,
                ..good
            },
            AdminStatus::BAD_ADDRESS,
        ),
        (
            MwBind {
                reserved: 1,
                ..good
            },
            AdminStatus::INVALID,
        ),
        (on(foreign), AdminStatus::INVALID),
        (on(owned), AdminStatus::NO_ACCESS),
        (on(plain), AdminStatus::NO_ACCESS),
        (on(read_only), AdminStatus::NO_ACCESS),
    ] {
        let status = b.status(device, AdminOp::MW_BIND, body.to_body());
        assert_eq!(status, expected, "{body:?}");
    }
    assert_eq!(
        b.status(device, AdminOp::MW_BIND, good.to_body()),
        AdminStatus::OK
    );
}

#[test]
fn a_window_of_a_region_whose_memory_went_refuses() {
    let mut scene = Scene::bound(REMOTE);
    // A second window of memory for b, with a region and a memory window in it.
    let Pair { device, b, qb, .. } = &mut scene.pair;
    let iova = 0x9_0000_0000;
    let fd = crate::client::memfd(
        4096,
        nix::fcntl::SealFlag::F_SEAL_SHRINK | nix::fcntl::SealFlag::F_SEAL_GROW,
    );
    device
        .map(
            b.function,
            nic_emu::device::WindowRequest {
                fd: Some(fd),
                offset: 0,
                iova,
                len: 4096,
                read: true,
                write: true,
            },
        )
        .unwrap();
    let body = ring_proto::admin::MrReg {
        addr: iova,
        len: 4096,
        pdn: b.pdn,
        access: full().bits(),
        ..Default::default()
    };
    let lkey = crate::client::low(b.ok(device, AdminOp::MR_REG, body.to_body())[0]);
    let pdn = b.pdn;
    let mw = b.mw(device, pdn, 2);
    let wqe = Send::bind(1, (mw, next(mw)), lkey, (iova, 64), REMOTE);
    assert_eq!(post(b, device, qb, &wqe), DONE);
    device.unmap(b.function, iova, 4096).unwrap();
    pump(device);
    let wqe = Send::new(Opcode::RDMA_READ, 1, &[scene.own.sge(0, 8)]).remote(iova, next(mw));
    assert_eq!(scene.post_a(&wqe), refused(Syndrome::WINDOW_GONE));
}

#[test]
fn a_reset_takes_the_windows() {
    let mut scene = Scene::bound(REMOTE);
    scene.pair.device.reset(scene.pair.b.function);
    let Pair { device, b, .. } = &mut scene.pair;
    b.start(device);
    let mw = scene.mw;
    assert_eq!(scene.admin(AdminOp::MW_DEALLOC, mw), AdminStatus::NO_OBJECT);
}
