//! Memory windows of both types, and the three ways to end a key: LOCAL_INV, SEND_WITH_INV, admin commands.

pub(crate) mod invalidate;
pub(crate) mod life;

use ring_proto::admin::{Access, AdminOp, AdminStatus};
use ring_proto::status::{Opcode, QpState, Syndrome, WcOpcode, WcStatus};
use ring_proto::wqe::WqeFlags;

use self::invalidate::local_inv;
use crate::client::{Client, Pair, RawQp, Region, Send, establish, full, sock};

pub(crate) const DONE: (WcStatus, Syndrome) = (WcStatus::SUCCESS, Syndrome::NONE);

pub(crate) const REMOTE: Access = Access::REMOTE_WRITE
    .union(Access::REMOTE_READ)
    .union(Access::REMOTE_ATOMIC);

pub(crate) const fn refused(syndrome: Syndrome) -> (WcStatus, Syndrome) {
    (WcStatus::REM_ACCESS_ERR, syndrome)
}

pub(crate) const fn bind_error(syndrome: Syndrome) -> (WcStatus, Syndrome) {
    (WcStatus::MW_BIND_ERR, syndrome)
}

/// The same window with the next tag.
pub(crate) fn next(key: u32) -> u32 {
    key & !0xff | (key.wrapping_add(1) & 0xff)
}

/// Client b offers a window over the middle of `remote` to its peer, client a.
pub(crate) struct Scene {
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

pub(crate) fn post(
    client: &Client,
    device: &mut nic_emu::device::Device,
    qp: &mut RawQp,
    wqe: &Send,
) -> (WcStatus, Syndrome) {
    client.send(device, qp, wqe);
    let wc = client.poll(qp).expect("a completion");
    (wc.status, wc.syndrome)
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

/// Another QP of client b, connected to one of a's.
pub(crate) fn second_qp(scene: &mut Scene) -> (RawQp, RawQp) {
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
