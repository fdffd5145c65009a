//! Cases about memory windows: binding, access through them, their end.
//!
//! Place: see [`super`]. Source: IBTA vol. 1, 10.6.7 (memory windows), 9.7.4.1.5 and 11.2.8; `ibv_alloc_mw(3)`, `ibv_bind_mw(3)`,
//! `ibv_post_send(3)`, IBV_WR_BIND_MW.

use ring_proto::admin::{Access, AdminOp, AdminStatus, MwAlloc, MwBind};
use ring_proto::status::{Opcode, QpState, Syndrome, WcOpcode, WcStatus};
use ring_proto::wqe::Sge;

use super::super::client::{Client, Qp, QpOptions, Region, full, low};
use super::super::rig::{Pair, Rig, done, fails};
use super::super::target::Port;
use super::super::wr::SendWr;
use super::super::{Case, Outcome, case, same};

const ALLOC: &str = "IBTA 11.2.8.9; ibv_alloc_mw(3)";
pub(super) const BIND: &str = "IBTA 10.6.7.2, 11.4.1.1; ibv_post_send(3), IBV_WR_BIND_MW";
const ACCESS: &str = "IBTA 10.6.7.2, 9.7.4.1.5; ibv_bind_mw(3)";
pub(super) const PD: &str = "IBTA 10.2.3, 10.6.7.2; ibv_alloc_mw(3)";

/// First byte and length of what is bound, in the region.
pub(super) const FROM: u64 = 1024;
pub(super) const LEN: u64 = 512;
/// Every right that a window can give.
pub(super) fn remote() -> Access {
    Access::REMOTE_WRITE | Access::REMOTE_READ | Access::REMOTE_ATOMIC
}

/// The same window with the next tag.
pub(super) fn next(key: u32) -> u32 {
    key & !0xff | (key.wrapping_add(1) & 0xff)
}

/// MW_ALLOC.
pub(super) fn alloc(client: &mut Client, pdn: u32, kind: u32) -> Outcome<u32> {
    let body = MwAlloc { pdn, kind };
    Ok(low(client.ok(AdminOp::MW_ALLOC, body.to_body())?[0]))
}

/// A connected pair; b has a region that gives peers no right of its own, and a type 2 window.
pub(super) struct Scene {
    pub(super) pair: Pair,
    pub(super) region: Region,
    /// Present key of the window.
    pub(super) mw: u32,
}

impl Scene {
    pub(super) fn new(rig: &Rig<'_>) -> Outcome<Self> {
        let of_b = QpOptions {
            access: full() | Access::REMOTE_ATOMIC,
            ..QpOptions::default()
        };
        let mut pair = rig.pair_with(QpOptions::default(), of_b, 7)?;
        let region = pair.b.region(4096, Access::LOCAL_WRITE | Access::MW_BIND)?;
        let pdn = pair.b.pdn;
        let mw = alloc(&mut pair.b, pdn, 2)?;
        Ok(Self { pair, region, mw })
    }

    /// With the window bound; `mw` is then the new key.
    pub(super) fn bound(rig: &Rig<'_>, access: Access) -> Outcome<Self> {
        let mut scene = Self::new(rig)?;
        let wr = scene.bind(access);
        scene.b_done(&wr)?;
        scene.mw = next(scene.mw);
        Ok(scene)
    }

    /// A sound BIND_MW.
    pub(super) fn bind(&self, access: Access) -> SendWr {
        let range = (self.region.iova + FROM, LEN);
        SendWr::bind(9, (self.mw, next(self.mw)), self.region.key, range, access)
    }

    /// A WQE of b that succeeds.
    pub(super) fn b_done(&mut self, wr: &SendWr) -> Outcome {
        self.pair.b.send(&mut self.pair.qb, wr);
        let wc = self.pair.b.wc(self.pair.qb.send_cq)?;
        done(&wc, wr.head.wr_id)
    }

    /// A WQE of b that fails, and takes its QP to ERR.
    pub(super) fn b_fails(&mut self, wr: &SendWr, syndrome: Syndrome) -> Outcome {
        self.pair.b.send(&mut self.pair.qb, wr);
        let wc = self.pair.b.wc(self.pair.qb.send_cq)?;
        fails(&wc, WcStatus::MW_BIND_ERR, syndrome)?;
        self.pair.b.expect_state(self.pair.qb.qpn, QpState::ERR)
    }

    /// An operation of a on bytes of the region, by the window's key.
    pub(super) fn by_window(&self, opcode: Opcode, offset: u64, len: u32) -> SendWr {
        let place = (self.region.iova.wrapping_add(offset), self.mw);
        SendWr::new(opcode, 1, &[self.pair.out.sge(0, len)]).remote(place)
    }

    pub(super) fn admitted(&mut self, opcode: Opcode, offset: u64, len: u32) -> Outcome {
        let wr = self.by_window(opcode, offset, len);
        self.pair.post(&wr);
        self.pair.a_done(1).map(drop)
    }

    pub(super) fn refused(
        &mut self,
        opcode: Opcode,
        offset: u64,
        len: u32,
        syndrome: Syndrome,
    ) -> Outcome {
        let wr = self.by_window(opcode, offset, len);
        self.pair.refused(&wr, WcStatus::REM_ACCESS_ERR, syndrome)
    }

    /// A second connected pair of QPs of the same clients.
    pub(super) fn second(&mut self) -> Outcome<(Qp, Qp)> {
        let Pair { a, b, .. } = &mut self.pair;
        let qa = a.init_qp(QpOptions::default())?;
        let qb = b.init_qp(QpOptions::default())?;
        a.modify_to_rtr(qa.qpn, (b.function, qb.qpn))?;
        b.modify_to_rtr(qb.qpn, (a.function, qa.qpn))?;
        a.modify_to_rts(qa.qpn, 7)?;
        b.modify_to_rts(qb.qpn, 7)?;
        Ok((qa, qb))
    }

    /// Replaces the window by one of type 1.
    pub(super) fn type_1(&mut self) -> Outcome {
        let pdn = self.pair.b.pdn;
        self.mw = alloc(&mut self.pair.b, pdn, 1)?;
        Ok(())
    }

    /// A sound MW_BIND.
    pub(super) fn bind_1(&self, access: Access) -> MwBind {
        MwBind {
            addr: self.region.iova + FROM,
            len: LEN,
            rkey: self.mw,
            lkey: self.region.key,
            access: access.bits(),
            reserved: 0,
        }
    }

    /// Binds the type 1 window; `mw` is then the new key.
    pub(super) fn bind_now(&mut self, body: MwBind) -> Outcome {
        self.mw = low(self.pair.b.ok(AdminOp::MW_BIND, body.to_body())?[0]);
        Ok(())
    }
}

const R: Opcode = Opcode::RDMA_READ;
const W: Opcode = Opcode::RDMA_WRITE;

/// A type 2 window refuses what lies outside of it.
fn outside(rig: &mut Rig<'_>, opcode: Opcode, offset: u64, len: u32) -> Outcome {
    let mut scene = Scene::bound(rig, remote())?;
    scene.refused(opcode, offset, len, Syndrome::RKEY_OUT_OF_BOUNDS)
}

pub(super) const CASES: &[Case] = &[
    case(
        "mw.alloc.unknown-pd-refused",
        "A memory window needs a protection domain that exists",
        ALLOC,
        |rig| {
            let mut a = rig.client(Port::A)?;
            let body = MwAlloc {
                pdn: a.pdn ^ 0xff00,
                kind: 2,
            };
            a.refuse(AdminOp::MW_ALLOC, body.to_body(), AdminStatus::NO_OBJECT)
        },
    ),
    case(
        "mw.alloc.unknown-type-refused",
        "Memory windows are of type 1 or 2",
        ALLOC,
        |rig| {
            let mut a = rig.client(Port::A)?;
            for kind in [0, 3] {
                let body = MwAlloc { pdn: a.pdn, kind };
                a.refuse(AdminOp::MW_ALLOC, body.to_body(), AdminStatus::INVALID)?;
            }
            Ok(())
        },
    ),
    case(
        "mw.alloc.keeps-its-pd",
        "A protection domain with memory windows cannot be freed",
        ALLOC,
        |rig| {
            let mut a = rig.client(Port::A)?;
            let pdn = a.pd()?;
            let mw = alloc(&mut a, pdn, 2)?;
            a.named(AdminOp::PD_FREE, pdn, AdminStatus::BUSY)?;
            a.named(AdminOp::MW_DEALLOC, mw, AdminStatus::OK)?;
            a.named(AdminOp::PD_FREE, pdn, AdminStatus::OK)
        },
    ),
    case(
        "mw.alloc.keys-differ-from-regions",
        "No memory window has the key of a region",
        "docs/device.md, Memory windows",
        |rig| {
            let scene = Scene::new(rig)?;
            let (of_window, of_region) = (scene.mw >> 31, scene.region.key >> 31);
            same("bit 31", (of_window, of_region), (1, 0))
        },
    ),
    case(
        "mw.dealloc.unknown-refused",
        "A memory window that does not exist cannot be deallocated",
        ALLOC,
        |rig| {
            let mut scene = Scene::new(rig)?;
            let (stale, region) = (next(scene.mw), scene.region.key);
            let b = &mut scene.pair.b;
            b.named(AdminOp::MW_DEALLOC, stale, AdminStatus::NO_OBJECT)?;
            b.named(AdminOp::MW_DEALLOC, region, AdminStatus::NO_OBJECT)
        },
    ),
    case(
        "mw.dealloc.ends-its-key",
        "The key of a deallocated memory window is unknown",
        ALLOC,
        |rig| {
            let mut scene = Scene::bound(rig, remote())?;
            let mw = scene.mw;
            scene
                .pair
                .b
                .named(AdminOp::MW_DEALLOC, mw, AdminStatus::OK)?;
            scene.refused(R, FROM, 8, Syndrome::RKEY_UNKNOWN)
        },
    ),
    case(
        "mw.dealloc.frees-its-region",
        "A region can be deregistered when its last memory window is gone, not before",
        "IBTA 10.6.7.2.6, 11.2.8.4; ibv_dereg_mr(3)",
        |rig| {
            let mut scene = Scene::bound(rig, remote())?;
            let (mw, region) = (scene.mw, scene.region.key);
            let b = &mut scene.pair.b;
            b.named(AdminOp::MR_DEREG, region, AdminStatus::BUSY)?;
            b.named(AdminOp::MW_DEALLOC, mw, AdminStatus::OK)?;
            b.named(AdminOp::MR_DEREG, region, AdminStatus::OK)
        },
    ),
    case(
        "mw.unbound-refuses",
        "A memory window that is not bound opens nothing",
        ACCESS,
        |rig| {
            let mut scene = Scene::new(rig)?;
            scene.refused(R, FROM, 8, Syndrome::KEY_INVALIDATED)
        },
    ),
    case(
        "mw.key-is-no-lkey",
        "The key of a memory window serves no SGE",
        "IBTA 10.6.7.2; ibv_bind_mw(3)",
        |rig| {
            let mut scene = Scene::bound(rig, remote())?;
            scene.pair.receives(1, 64);
            let sge = Sge {
                addr: scene.region.iova + FROM,
                len: 8,
                lkey: scene.mw,
            };
            let Pair { b, qb, .. } = &mut scene.pair;
            b.send(qb, &SendWr::send(1, sge));
            let wc = b.wc(qb.send_cq)?;
            fails(&wc, WcStatus::LOC_PROT_ERR, Syndrome::LKEY_UNKNOWN)
        },
    ),
    case(
        "mw.type-2.opens-its-range",
        "A bound memory window opens its range to WRITE and READ, though the region itself is closed to peers",
        ACCESS,
        |rig| {
            let mut scene = Scene::bound(rig, remote())?;
            scene.pair.fill(b"by window")?;
            scene.admitted(W, FROM, 9)?;
            let seen = scene.pair.b.memory.read(scene.region.iova + FROM, 9)?;
            same("bytes", seen.as_slice(), b"by window")?;
            scene.admitted(R, FROM, 512)
        },
    ),
    case(
        "mw.type-2.opens-atomics",
        "A bound memory window with REMOTE_ATOMIC serves atomics",
        ACCESS,
        |rig| {
            let mut scene = Scene::bound(rig, remote())?;
            let place = (scene.region.iova + FROM, scene.mw);
            let into = scene.pair.out.sge(0, 8);
            let wr = SendWr::atomic(Opcode::ATOMIC_FETCH_AND_ADD, 1, into, place, (5, 0));
            scene.pair.post(&wr);
            scene.pair.a_done(1)?;
            let seen = scene.pair.b.memory.read(scene.region.iova + FROM, 1)?;
            same("lowest byte of the word", seen, vec![5])
        },
    ),
    case(
        "mw.type-2.region-key-stays-closed",
        "A memory window gives the region's own key no right",
        ACCESS,
        |rig| {
            let mut scene = Scene::bound(rig, remote())?;
            scene.mw = scene.region.key;
            scene.refused(R, FROM, 8, Syndrome::RKEY_NO_ACCESS)
        },
    ),
    case(
        "mw.type-2.past-end-write",
        "A WRITE that ends one byte behind the memory window fails, though the region goes on",
        ACCESS,
        |rig| outside(rig, W, FROM + LEN - 63, 64),
    ),
    case(
        "mw.type-2.past-end-read",
        "A READ that ends one byte behind the memory window fails",
        ACCESS,
        |rig| outside(rig, R, FROM + LEN - 63, 64),
    ),
    case(
        "mw.type-2.before-start",
        "A WRITE that begins one byte before the memory window fails",
        ACCESS,
        |rig| outside(rig, W, FROM - 1, 8),
    ),
    case(
        "mw.type-2.address-wraps",
        "A READ whose range wraps around the address space fails",
        ACCESS,
        |rig| {
            let mut scene = Scene::bound(rig, remote())?;
            let place = (u64::MAX - 7, scene.mw);
            let wr = SendWr::read(1, scene.pair.out.sge(0, 64), place);
            let refused = (WcStatus::REM_ACCESS_ERR, Syndrome::RKEY_OUT_OF_BOUNDS);
            scene.pair.refused(&wr, refused.0, refused.1)
        },
    ),
    case(
        "mw.type-2.write-needs-remote-write",
        "A memory window that was bound without the right refuses a WRITE",
        ACCESS,
        |rig| {
            let mut scene = Scene::bound(rig, Access::REMOTE_READ)?;
            scene.refused(W, FROM, 8, Syndrome::RKEY_NO_ACCESS)
        },
    ),
    case(
        "mw.type-2.read-needs-remote-read",
        "A memory window that was bound without the right refuses a READ",
        ACCESS,
        |rig| {
            let mut scene = Scene::bound(rig, Access::REMOTE_WRITE)?;
            scene.refused(R, FROM, 8, Syndrome::RKEY_NO_ACCESS)
        },
    ),
    case(
        "mw.type-2.atomic-needs-remote-atomic",
        "A memory window that was bound without REMOTE_ATOMIC refuses an atomic",
        ACCESS,
        |rig| {
            let mut scene = Scene::bound(rig, Access::REMOTE_READ | Access::REMOTE_WRITE)?;
            let place = (scene.region.iova + FROM, scene.mw);
            let into = scene.pair.out.sge(0, 8);
            let wr = SendWr::atomic(Opcode::ATOMIC_FETCH_AND_ADD, 1, into, place, (5, 0));
            let refused = (WcStatus::REM_ACCESS_ERR, Syndrome::RKEY_NO_ACCESS);
            scene.pair.refused(&wr, refused.0, refused.1)
        },
    ),
    case(
        "mw.type-2.completion-fields",
        "A BIND_MW completes with its wr_id and opcode and no bytes",
        BIND,
        |rig| {
            let mut scene = Scene::new(rig)?;
            let wr = scene.bind(remote());
            let Pair { b, qb, .. } = &mut scene.pair;
            b.send(qb, &wr);
            let wc = b.wc(qb.send_cq)?;
            done(&wc, 9)?;
            let seen = (wc.opcode, wc.byte_len);
            same("opcode and length", seen, (WcOpcode::BIND_MW, 0))
        },
    ),
    case(
        "mw.type-2.bound-before-what-follows",
        "A SEND behind a BIND_MW tells a peer of a key that works",
        "IBTA 10.8.3.3, 10.6.7.2; ibv_post_send(3)",
        |rig| {
            let mut scene = Scene::new(rig)?;
            let bind = scene.bind(remote()).unsignaled();
            scene.mw = next(scene.mw);
            let Pair {
                a, b, qa, qb, out, ..
            } = &mut scene.pair;
            a.recv(qa, 5, &[out.sge(0, 4)]);
            b.write_send(qb, &bind);
            b.send(
                qb,
                &SendWr::inline(Opcode::SEND, 10, &scene.mw.to_le_bytes()),
            );
            let wc = a.wc(qa.recv_cq)?;
            done(&wc, 5)?;
            let told = a.memory.read(out.iova, 4)?;
            same("key", told, scene.mw.to_le_bytes().to_vec())?;
            scene.admitted(R, FROM, 8)
        },
    ),
    case(
        "mw.type-2.old-key-ends",
        "The key of before a BIND_MW is unknown after it",
        BIND,
        |rig| {
            let mut scene = Scene::bound(rig, remote())?;
            scene.mw = scene.mw & !0xff | (scene.mw.wrapping_sub(1) & 0xff);
            scene.refused(R, FROM, 8, Syndrome::RKEY_UNKNOWN)
        },
    ),
    case(
        "mw.type-2.serves-one-qp",
        "A type 2 memory window is closed to the peers of other QPs",
        "IBTA 10.6.7.2.3 (type 2B); docs/device.md, Memory windows",
        |rig| {
            let mut scene = Scene::bound(rig, remote())?;
            let (mut qa, _) = scene.second()?;
            let wr = scene.by_window(R, FROM, 8);
            let Pair { a, .. } = &mut scene.pair;
            a.send(&mut qa, &wr);
            let wc = a.wc(qa.send_cq)?;
            fails(&wc, WcStatus::REM_ACCESS_ERR, Syndrome::RKEY_WRONG_QP)
        },
    ),
    case(
        "mw.type-2.ends-with-its-qp",
        "The end of a QP unbinds its type 2 memory windows",
        "IBTA 10.6.7.2.3; docs/device.md, Memory windows",
        |rig| {
            let mut scene = Scene::bound(rig, remote())?;
            let (mut qa, _) = scene.second()?;
            let (qpn, region) = (scene.pair.qb.qpn, scene.region.key);
            let wr = scene.by_window(R, FROM, 8);
            let Pair { a, b, .. } = &mut scene.pair;
            b.named(AdminOp::QP_DESTROY, qpn, AdminStatus::OK)?;
            a.send(&mut qa, &wr);
            let wc = a.wc(qa.send_cq)?;
            fails(&wc, WcStatus::REM_ACCESS_ERR, Syndrome::KEY_INVALIDATED)?;
            b.named(AdminOp::MR_DEREG, region, AdminStatus::OK)
        },
    ),
    case(
        "mw.type-2.bind-while-bound-refused",
        "A type 2 memory window is not bound again before it was invalidated",
        BIND,
        |rig| {
            let mut scene = Scene::bound(rig, remote())?;
            let wr = scene.bind(remote());
            scene.b_fails(&wr, Syndrome::MW_STILL_BOUND)
        },
    ),
    case(
        "mw.type-2.bind-again",
        "After LOCAL_INV a type 2 memory window can be bound to another range",
        BIND,
        |rig| {
            let mut scene = Scene::bound(rig, remote())?;
            scene.b_done(&SendWr::local_inv(10, scene.mw))?;
            let range = (scene.region.iova, 8);
            let keys = (scene.mw, next(scene.mw));
            let wr = SendWr::bind(11, keys, scene.region.key, range, remote());
            scene.b_done(&wr)?;
            scene.mw = keys.1;
            scene.admitted(R, 0, 8)?;
            scene.refused(R, FROM, 8, Syndrome::RKEY_OUT_OF_BOUNDS)
        },
    ),
];
