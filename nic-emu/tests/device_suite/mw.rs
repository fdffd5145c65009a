//! Memory windows of both types, and the three ways to end a key: LOCAL_INV, SEND_WITH_INV, admin commands.

use ring_proto::admin::{Access, AdminOp, AdminStatus, MwAlloc, MwBind};
use ring_proto::cqe::{CQE_IMM, CQE_INV};
use ring_proto::status::{Opcode, QpState, Syndrome, WcOpcode, WcStatus};
use ring_proto::wqe::WqeFlags;

use crate::client::{
    CQ_DEPTH, Client, Pair, RQ_DEPTH, RawQp, Region, SQ_DEPTH, Send, establish, full, pump, sock,
};

const DONE: (WcStatus, Syndrome) = (WcStatus::SUCCESS, Syndrome::NONE);
const REMOTE: Access = Access::REMOTE_WRITE
    .union(Access::REMOTE_READ)
    .union(Access::REMOTE_ATOMIC);

const fn refused(syndrome: Syndrome) -> (WcStatus, Syndrome) {
    (WcStatus::REM_ACCESS_ERR, syndrome)
}

const fn bind_error(syndrome: Syndrome) -> (WcStatus, Syndrome) {
    (WcStatus::MW_BIND_ERR, syndrome)
}

/// The same window with the next tag.
fn next(key: u32) -> u32 {
    key & !0xff | (key.wrapping_add(1) & 0xff)
}

/// Client b offers a window over the middle of `remote` to its peer, client a.
struct Scene {
    pair: Pair,
    own: Region,
    remote: Region,
    mw: u32,
}

impl Scene {
    fn new() -> Self {
        // The region gives peers no right of its own.
        Self::with(Access::LOCAL_WRITE | Access::MW_BIND)
    }

    fn with(access: Access) -> Self {
        let mut pair = Pair::new();
        let own = pair.a.region(&mut pair.device, 4096, full());
        let remote = pair.b.region(&mut pair.device, 4096, access);
        let pdn = pair.b.pdn;
        let mw = pair.b.mw(&mut pair.device, pdn, 2);
        Self {
            pair,
            own,
            remote,
            mw,
        }
    }

    /// A sound BIND_MW of bytes 1024..2048.
    fn bind_wqe(&self, access: Access) -> Send {
        let keys = (self.mw, next(self.mw));
        let range = (self.remote.iova + 1024, 1024);
        Send::bind(9, keys, self.remote.key, range, access)
    }

    /// With the window bound; `mw` is then the new key.
    fn bound(access: Access) -> Self {
        let mut scene = Self::new();
        let wqe = scene.bind_wqe(access);
        assert_eq!(scene.post_b(&wqe), DONE);
        scene.mw = next(scene.mw);
        scene
    }

    fn post_a(&mut self, wqe: &Send) -> (WcStatus, Syndrome) {
        let Pair { device, a, qa, .. } = &mut self.pair;
        post(a, device, qa, wqe)
    }

    fn post_b(&mut self, wqe: &Send) -> (WcStatus, Syndrome) {
        let Pair { device, b, qb, .. } = &mut self.pair;
        post(b, device, qb, wqe)
    }

    /// An operation of client a on `len` bytes at `offset` of the region, by the window's key.
    fn access(&mut self, opcode: Opcode, offset: u64, len: u32) -> (WcStatus, Syndrome) {
        let wqe = Send::new(opcode, 1, &[self.own.sge(0, len)])
            .remote(self.remote.iova + offset, self.mw);
        self.post_a(&wqe)
    }

    fn admin(&mut self, op: AdminOp, id: u32) -> AdminStatus {
        let Pair { device, b, .. } = &mut self.pair;
        b.named(device, op, id)
    }
}

fn post(
    client: &Client,
    device: &mut nic_emu::device::Device,
    qp: &mut RawQp,
    wqe: &Send,
) -> (WcStatus, Syndrome) {
    client.send(device, qp, wqe);
    let wc = client.poll(qp).expect("a completion");
    (wc.status, wc.syndrome)
}

fn local_inv(key: u32) -> Send {
    Send::new(Opcode::LOCAL_INV, 11, &[]).imm(key)
}

#[test]
fn a_bound_window_opens_its_range_and_nothing_else() {
    let mut scene = Scene::bound(REMOTE);
    scene.pair.a.write(scene.own.iova, b"by window");
    assert_eq!(scene.access(Opcode::RDMA_WRITE, 1024, 9), DONE);
    assert_eq!(scene.pair.b.read(scene.remote.iova + 1024, 9), b"by window");
    assert_eq!(scene.access(Opcode::RDMA_READ, 1024, 1024), DONE);
    let add = Send::atomic(
        Opcode::ATOMIC_FETCH_AND_ADD,
        1,
        scene.own.sge(0, 8),
        (scene.remote.iova + 2040, scene.mw),
        (3, 0),
    );
    assert_eq!(scene.post_a(&add), DONE);
    assert_eq!(scene.pair.b.read(scene.remote.iova + 2040, 1), [3]);
    for (offset, len) in [(1023, 2), (1023, 1), (2047, 2), (2048, 1), (0, 4096)] {
        let mut scene = Scene::bound(REMOTE);
        assert_eq!(
            scene.access(Opcode::RDMA_READ, offset, len),
            refused(Syndrome::RKEY_OUT_OF_BOUNDS),
            "{len} bytes at {offset}"
        );
    }
}

#[test]
fn a_window_grants_the_rights_it_was_bound_with() {
    for (granted, opcode, expected) in [
        (Access::REMOTE_READ, Opcode::RDMA_READ, DONE),
        (
            Access::REMOTE_READ,
            Opcode::RDMA_WRITE,
            refused(Syndrome::RKEY_NO_ACCESS),
        ),
        (Access::REMOTE_WRITE, Opcode::RDMA_WRITE, DONE),
        (
            Access::REMOTE_WRITE,
            Opcode::RDMA_READ,
            refused(Syndrome::RKEY_NO_ACCESS),
        ),
        (
            Access::empty(),
            Opcode::RDMA_READ,
            refused(Syndrome::RKEY_NO_ACCESS),
        ),
    ] {
        let mut scene = Scene::bound(granted);
        assert_eq!(
            scene.access(opcode, 1024, 8),
            expected,
            "{opcode} by {granted:?}"
        );
    }
}

#[test]
fn binding_completes_with_its_opcode_and_replaces_the_key() {
    let mut scene = Scene::new();
    let old = scene.mw;
    let wqe = scene.bind_wqe(REMOTE);
    let Pair { device, b, qb, .. } = &mut scene.pair;
    b.send(device, qb, &wqe);
    let wc = b.poll(qb).unwrap();
    assert_eq!(
        (wc.wr_id, wc.status, wc.opcode, wc.byte_len),
        (9, WcStatus::SUCCESS, WcOpcode::BIND_MW.0, 0)
    );
    // The key of before the binding is gone.
    scene.mw = old;
    assert_eq!(
        scene.access(Opcode::RDMA_READ, 1024, 8),
        refused(Syndrome::RKEY_UNKNOWN)
    );
}

#[test]
fn a_window_that_was_never_bound_refuses() {
    let mut scene = Scene::new();
    assert_eq!(
        scene.access(Opcode::RDMA_READ, 1024, 8),
        refused(Syndrome::KEY_INVALIDATED)
    );
}

#[test]
fn the_key_of_a_window_is_no_lkey() {
    let mut scene = Scene::bound(REMOTE);
    let sge = ring_proto::wqe::Sge {
        addr: scene.remote.iova + 1024,
        len: 8,
        lkey: scene.mw,
    };
    let wqe = Send::new(Opcode::RDMA_WRITE, 1, &[sge]).remote(scene.own.iova, scene.own.key);
    assert_eq!(
        scene.post_b(&wqe),
        (WcStatus::LOC_PROT_ERR, Syndrome::LKEY_UNKNOWN)
    );
}

#[test]
pub(crate) fn each_failed_check_of_a_binding_has_its_syndrome() {
    type Change = fn(&mut Send, &mut Scene);
    let cases: [(&str, Change, Syndrome); 17] = [
        (
            "no window",
            |wqe, scene| wqe.head.rkey = scene.remote.key,
            Syndrome::MW_UNKNOWN,
        ),
        (
            "stale key",
            |wqe, _| wqe.head.rkey ^= 1,
            Syndrome::MW_UNKNOWN,
        ),
        (
            "type 1",
            |wqe, scene| {
                let pdn = scene.pair.b.pdn;
                let mw = scene.pair.b.mw(&mut scene.pair.device, pdn, 1);
                (wqe.head.rkey, wqe.head.imm) = (mw, next(mw));
            },
            Syndrome::MW_WRONG_TYPE,
        ),
        (
            "window of another domain",
            |wqe, scene| {
                let pdn = scene.pair.b.pd(&mut scene.pair.device);
                let mw = scene.pair.b.mw(&mut scene.pair.device, pdn, 2);
                (wqe.head.rkey, wqe.head.imm) = (mw, next(mw));
            },
            Syndrome::MW_PD_MISMATCH,
        ),
        (
            "bound already",
            |wqe, scene| {
                let first = scene.bind_wqe(REMOTE);
                assert_eq!(scene.post_b(&first), DONE);
                wqe.head.rkey = first.head.imm;
                wqe.head.imm = next(first.head.imm);
            },
            Syndrome::MW_STILL_BOUND,
        ),
        (
            "same tag",
            |wqe, _| wqe.head.imm = wqe.head.rkey,
            Syndrome::MW_KEY_NOT_FRESH,
        ),
        (
            "other index",
            |wqe, _| wqe.head.imm ^= 0x100,
            Syndrome::MW_KEY_NOT_FRESH,
        ),
        (
            "no bytes",
            |wqe, _| wqe.sges[0].addr = 0,
            Syndrome::MW_ZERO_LENGTH,
        ),
        (
            "local rights",
            |wqe, _| wqe.sges[0].lkey |= Access::LOCAL_WRITE.bits(),
            Syndrome::MW_BAD_RIGHTS,
        ),
        (
            "unknown rights",
            |wqe, _| wqe.sges[0].lkey |= 1 << 31,
            Syndrome::MW_BAD_RIGHTS,
        ),
        (
            "no region",
            |wqe, _| wqe.sges[0].len ^= 1,
            Syndrome::LKEY_UNKNOWN,
        ),
        (
            "region of another domain",
            |wqe, scene| {
                let Pair { device, b, .. } = &mut scene.pair;
                let pdn = b.pd(device);
                let region = b.region_of(device, 4096, full(), pdn, 0);
                (wqe.head.remote_addr, wqe.sges[0].len) = (region.iova, region.key);
            },
            Syndrome::LKEY_PD_MISMATCH,
        ),
        (
            "region of another QP",
            |wqe, scene| {
                let Pair { device, b, .. } = &mut scene.pair;
                let (pdn, other) = (b.pdn, b.qp(device));
                let region = b.region_of(device, 4096, full(), pdn, other.qpn);
                (wqe.head.remote_addr, wqe.sges[0].len) = (region.iova, region.key);
            },
            Syndrome::RKEY_WRONG_QP,
        ),
        (
            "invalidated region",
            |_, scene| {
                let inv = local_inv(scene.remote.key);
                assert_eq!(scene.post_b(&inv), DONE);
            },
            Syndrome::KEY_INVALIDATED,
        ),
        (
            "region without windows",
            |wqe, scene| {
                let Pair { device, b, .. } = &mut scene.pair;
                let region = b.region(device, 4096, full() - Access::MW_BIND);
                (wqe.head.remote_addr, wqe.sges[0].len) = (region.iova, region.key);
            },
            Syndrome::MW_BIND_NOT_ALLOWED,
        ),
        (
            "past the end",
            |wqe, _| wqe.sges[0].addr = 3073,
            Syndrome::LKEY_OUT_OF_BOUNDS,
        ),
        (
            "read-only region",
            |wqe, scene| {
                let Pair { device, b, .. } = &mut scene.pair;
                let region = b.region(device, 4096, Access::MW_BIND);
                (wqe.head.remote_addr, wqe.sges[0].len) = (region.iova, region.key);
            },
            Syndrome::MW_NEEDS_LOCAL_WRITE,
        ),
    ];
    for (what, change, syndrome) in cases {
        let mut scene = Scene::new();
        let mut wqe = scene.bind_wqe(REMOTE);
        change(&mut wqe, &mut scene);
        assert_eq!(scene.post_b(&wqe), bind_error(syndrome), "{what}");
        let Pair { device, b, qb, .. } = &mut scene.pair;
        assert_eq!(b.query(device, qb.qpn), Some(QpState::ERR), "{what}");
    }
}

#[test]
fn a_window_to_read_needs_no_writable_region() {
    let mut scene = Scene::with(Access::MW_BIND);
    let wqe = scene.bind_wqe(Access::REMOTE_READ);
    assert_eq!(scene.post_b(&wqe), DONE);
}

#[test]
fn reserved_fields_of_bind_and_invalidate_are_checked() {
    type Change = fn(&mut Send);
    let bad = (WcStatus::LOC_QP_OP_ERR, Syndrome::RESERVED_NOT_ZERO);
    let changes: [(&str, Change); 5] = [
        ("inline", |wqe| wqe.head.flags |= WqeFlags::INLINE.bits()),
        ("count", |wqe| wqe.head.count = 1),
        ("total", |wqe| wqe.head.total = 1),
        ("low reserved", |wqe| {
            wqe.sges.resize(2, ring_proto::wqe::Sge::default());
            wqe.sges[1].addr = 1;
        }),
        ("high reserved", |wqe| {
            wqe.sges.resize(2, ring_proto::wqe::Sge::default());
            wqe.sges[1].lkey = 1;
        }),
    ];
    for (what, change) in changes {
        let mut scene = Scene::new();
        let mut wqe = scene.bind_wqe(REMOTE);
        change(&mut wqe);
        assert_eq!(scene.post_b(&wqe), bad, "BIND_MW {what}");
        let mut scene = Scene::bound(REMOTE);
        let mut wqe = local_inv(scene.mw);
        change(&mut wqe);
        assert_eq!(scene.post_b(&wqe), bad, "LOCAL_INV {what}");
    }
    for change in [(|wqe| wqe.head.remote_addr = 1) as Change, |wqe| {
        wqe.head.rkey = 1
    }] {
        let mut scene = Scene::bound(REMOTE);
        let mut wqe = local_inv(scene.mw);
        change(&mut wqe);
        assert_eq!(scene.post_b(&wqe), bad);
    }
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

/// Another QP of client b, connected to one of a's.
fn second_qp(scene: &mut Scene) -> (RawQp, RawQp) {
    let Pair { device, a, b, .. } = &mut scene.pair;
    let (qa, qb) = (a.qp(device), b.qp(device));
    b.listen(device, sock(crate::client::B, 4001), 4);
    establish(device, (a, qa.qpn), (b, qb.qpn), 4001);
    (qa, qb)
}

#[test]
fn a_type_2_window_serves_one_qp() {
    let mut scene = Scene::bound(REMOTE);
    let (mut qa, mut qb) = second_qp(&mut scene);
    let Pair { device, a, b, .. } = &mut scene.pair;
    // Neither may the other QP invalidate it.
    let wqe = Send::new(Opcode::RDMA_READ, 1, &[scene.own.sge(0, 8)])
        .remote(scene.remote.iova + 1024, scene.mw);
    assert_eq!(
        post(a, device, &mut qa, &wqe),
        refused(Syndrome::RKEY_WRONG_QP)
    );
    let wc = b.poll(&mut qb);
    assert_eq!(wc, None, "the refusal is no completion of the responder");
    assert_eq!(scene.access(Opcode::RDMA_READ, 1024, 8), DONE);
    let mut scene = Scene::bound(REMOTE);
    let (_, mut qb) = second_qp(&mut scene);
    let Pair { device, b, .. } = &mut scene.pair;
    assert_eq!(
        post(b, device, &mut qb, &local_inv(scene.mw)),
        bind_error(Syndrome::INV_WRONG_QP)
    );
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
