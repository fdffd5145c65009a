//! Cases about what may be bound to a memory window, and about type 1 windows, which commands bind.
//!
//! Place: see [`super`]; the scene is that of [`super::mw`]. Source: as there.

use ring_proto::admin::{Access, AdminOp, AdminStatus, MwBind};
use ring_proto::status::{Opcode, Syndrome};

use super::super::client::{QpOptions, Region, full};
use super::super::rig::{Pair, Rig, done};
use super::super::wr::SendWr;
use super::super::{Case, Outcome, case, holds};
use super::OURS;
use super::mw::{BIND, FROM, PD, Scene, alloc, next, remote};

const BIND_1: &str = "IBTA 10.6.7.2; ibv_bind_mw(3); docs/device.md, Memory windows";

const R: Opcode = Opcode::RDMA_READ;
const W: Opcode = Opcode::RDMA_WRITE;

/// A BIND_MW with one thing wrong.
fn bad_bind(
    rig: &mut Rig<'_>,
    syndrome: Syndrome,
    spoil: impl FnOnce(&mut Scene, &mut SendWr) -> Outcome,
) -> Outcome {
    let mut scene = Scene::new(rig)?;
    let mut wr = scene.bind(remote());
    spoil(&mut scene, &mut wr)?;
    scene.b_fails(&wr, syndrome)
}

/// A BIND_MW of another region than the scene's.
fn bad_region(
    rig: &mut Rig<'_>,
    syndrome: Syndrome,
    make: impl FnOnce(&mut Scene) -> Outcome<Region>,
) -> Outcome {
    bad_bind(rig, syndrome, |scene, wr| {
        scene.region = make(scene)?;
        *wr = scene.bind(remote());
        Ok(())
    })
}

/// An MW_BIND with one thing wrong.
fn bad_bind_1(
    rig: &mut Rig<'_>,
    wanted: AdminStatus,
    spoil: impl FnOnce(&mut Scene, &mut MwBind) -> Outcome,
) -> Outcome {
    let mut scene = Scene::new(rig)?;
    scene.type_1()?;
    let mut body = scene.bind_1(remote());
    spoil(&mut scene, &mut body)?;
    scene
        .pair
        .b
        .refuse(AdminOp::MW_BIND, body.to_body(), wanted)
}

/// Changes a word behind the head of a BIND_MW: 0 is the length, 1 lkey and rights.
fn spoil_word(wr: &mut SendWr, at: usize, spoil: impl FnOnce(u64) -> u64) {
    if let Some(word) = wr.operands.get_mut(at) {
        *word = spoil(*word);
    }
}

pub(super) const CASES: &[Case] = &[
    case(
        "mw.type-2.unknown-window-refused",
        "BIND_MW names a memory window that exists",
        BIND,
        |rig| {
            bad_bind(rig, Syndrome::MW_UNKNOWN, |_, wr| {
                wr.head.rkey ^= 0x0100;
                Ok(())
            })
        },
    ),
    case(
        "mw.type-2.stale-key-refused",
        "BIND_MW names a memory window by its present key",
        BIND,
        |rig| {
            bad_bind(rig, Syndrome::MW_UNKNOWN, |_, wr| {
                wr.head.rkey ^= 1;
                Ok(())
            })
        },
    ),
    case(
        "mw.type-2.same-key-refused",
        "BIND_MW gives another key than the present one",
        BIND,
        |rig| {
            bad_bind(rig, Syndrome::MW_KEY_NOT_FRESH, |_, wr| {
                wr.head.imm = wr.head.rkey;
                Ok(())
            })
        },
    ),
    case(
        "mw.type-2.other-index-refused",
        "BIND_MW changes the tag of a key and nothing else",
        BIND,
        |rig| {
            bad_bind(rig, Syndrome::MW_KEY_NOT_FRESH, |_, wr| {
                wr.head.imm ^= 0x0100;
                Ok(())
            })
        },
    ),
    case(
        "mw.type-2.zero-length-refused",
        "BIND_MW binds at least one byte",
        BIND,
        |rig| {
            bad_bind(rig, Syndrome::MW_ZERO_LENGTH, |_, wr| {
                spoil_word(wr, 0, |_| 0);
                Ok(())
            })
        },
    ),
    case(
        "mw.type-2.local-rights-refused",
        "A memory window gives remote rights only",
        BIND,
        |rig| {
            bad_bind(rig, Syndrome::MW_BAD_RIGHTS, |_, wr| {
                spoil_word(wr, 1, |word| {
                    word | u64::from(Access::LOCAL_WRITE.bits()) << 32
                });
                Ok(())
            })
        },
    ),
    case(
        "mw.type-2.unknown-rights-refused",
        "Access bits without a meaning are refused",
        BIND,
        |rig| {
            bad_bind(rig, Syndrome::MW_BAD_RIGHTS, |_, wr| {
                spoil_word(wr, 1, |word| word | 1 << 63);
                Ok(())
            })
        },
    ),
    case(
        "mw.type-2.unknown-region-refused",
        "BIND_MW names a region that exists",
        BIND,
        |rig| {
            bad_bind(rig, Syndrome::LKEY_UNKNOWN, |_, wr| {
                spoil_word(wr, 1, |word| word ^ 1);
                Ok(())
            })
        },
    ),
    case(
        "mw.type-2.past-end-refused",
        "BIND_MW ends inside its region",
        BIND,
        |rig| {
            bad_bind(rig, Syndrome::LKEY_OUT_OF_BOUNDS, |_, wr| {
                spoil_word(wr, 0, |_| 4096 - FROM + 1);
                Ok(())
            })
        },
    ),
    case(
        "mw.type-2.before-start-refused",
        "BIND_MW begins inside its region",
        BIND,
        |rig| {
            bad_bind(rig, Syndrome::LKEY_OUT_OF_BOUNDS, |_, wr| {
                wr.head.remote_addr -= FROM + 1;
                Ok(())
            })
        },
    ),
    case(
        "mw.type-2.length-wraps-refused",
        "A range that wraps around the address space is refused",
        BIND,
        |rig| {
            bad_bind(rig, Syndrome::LKEY_OUT_OF_BOUNDS, |_, wr| {
                spoil_word(wr, 0, |_| u64::MAX);
                Ok(())
            })
        },
    ),
    case(
        "mw.type-2.type-1-refused",
        "BIND_MW binds windows of type 2 only",
        BIND,
        |rig| {
            bad_bind(rig, Syndrome::MW_WRONG_TYPE, |scene, wr| {
                scene.type_1()?;
                *wr = scene.bind(remote());
                Ok(())
            })
        },
    ),
    case(
        "mw.type-2.window-of-another-pd-refused",
        "BIND_MW binds windows of the QP's protection domain",
        PD,
        |rig| {
            bad_bind(rig, Syndrome::MW_PD_MISMATCH, |scene, wr| {
                let pdn = scene.pair.b.pd()?;
                scene.mw = alloc(&mut scene.pair.b, pdn, 2)?;
                *wr = scene.bind(remote());
                Ok(())
            })
        },
    ),
    case(
        "mw.type-2.region-of-another-pd-refused",
        "BIND_MW binds to regions of the QP's protection domain",
        PD,
        |rig| {
            bad_region(rig, Syndrome::LKEY_PD_MISMATCH, |scene| {
                let pdn = scene.pair.b.pd()?;
                let access = Access::LOCAL_WRITE | Access::MW_BIND;
                scene.pair.b.region_of(4096, access, pdn, 0)
            })
        },
    ),
    case(
        "mw.type-2.region-of-another-qp-refused",
        "A region with an owner QP is bound through that QP only",
        "docs/device.md, Memory windows",
        |rig| {
            bad_region(rig, Syndrome::RKEY_WRONG_QP, |scene| {
                let owner = scene.pair.b.init_qp(QpOptions::default())?;
                let pdn = scene.pair.b.pdn;
                let access = Access::LOCAL_WRITE | Access::MW_BIND;
                scene.pair.b.region_of(4096, access, pdn, owner.qpn)
            })
        },
    ),
    case(
        "mw.type-2.region-without-mw-bind-refused",
        "A region needs MW_BIND to have memory windows",
        BIND,
        |rig| {
            bad_region(rig, Syndrome::MW_BIND_NOT_ALLOWED, |scene| {
                scene.pair.b.region(4096, full())
            })
        },
    ),
    case(
        "mw.type-2.writable-window-of-a-read-only-region-refused",
        "A memory window for WRITE needs a region with LOCAL_WRITE",
        BIND,
        |rig| {
            bad_region(rig, Syndrome::MW_NEEDS_LOCAL_WRITE, |scene| {
                scene
                    .pair
                    .b
                    .region(4096, Access::REMOTE_READ | Access::MW_BIND)
            })
        },
    ),
    case(
        "mw.type-2.readable-window-needs-no-local-write",
        "A memory window for READ alone does not need LOCAL_WRITE",
        BIND,
        |rig| {
            let mut scene = Scene::new(rig)?;
            scene.region = scene.pair.b.region(4096, Access::MW_BIND)?;
            let wr = scene.bind(Access::REMOTE_READ);
            scene.b_done(&wr)?;
            scene.mw = next(scene.mw);
            scene.admitted(R, FROM, 8)
        },
    ),
    case(
        "mw.type-1.opens-its-range",
        "A type 1 memory window is bound by command and opens its range",
        BIND_1,
        |rig| {
            let mut scene = Scene::new(rig)?;
            scene.type_1()?;
            let body = scene.bind_1(remote());
            scene.bind_now(body)?;
            scene.admitted(W, FROM, 64)?;
            scene.refused(R, FROM - 1, 8, Syndrome::RKEY_OUT_OF_BOUNDS)
        },
    ),
    case(
        "mw.type-1.serves-every-qp",
        "A type 1 memory window is open to the peers of all QPs of its protection domain",
        BIND_1,
        |rig| {
            let mut scene = Scene::new(rig)?;
            scene.type_1()?;
            let body = scene.bind_1(remote());
            scene.bind_now(body)?;
            let (mut qa, _) = scene.second()?;
            let wr = scene.by_window(R, FROM, 8);
            let Pair { a, .. } = &mut scene.pair;
            a.send(&mut qa, &wr);
            let wc = a.wc(qa.send_cq)?;
            done(&wc, 1)?;
            scene.admitted(R, FROM, 8)
        },
    ),
    case(
        "mw.type-1.closed-to-other-pds",
        "A memory window is closed to the peers of QPs of other protection domains",
        PD,
        |rig| {
            let mut scene = Scene::new(rig)?;
            let pdn = scene.pair.b.pd()?;
            let access = Access::LOCAL_WRITE | Access::MW_BIND;
            scene.region = scene.pair.b.region_of(4096, access, pdn, 0)?;
            scene.mw = alloc(&mut scene.pair.b, pdn, 1)?;
            let body = scene.bind_1(remote());
            scene.bind_now(body)?;
            scene.refused(R, FROM, 8, Syndrome::RKEY_PD_MISMATCH)
        },
    ),
    case(
        "mw.type-1.bind-again-replaces",
        "MW_BIND of a bound window replaces range and key",
        BIND_1,
        |rig| {
            let mut scene = Scene::new(rig)?;
            scene.type_1()?;
            let body = scene.bind_1(remote());
            scene.bind_now(body)?;
            let first = scene.mw;
            let body = MwBind {
                addr: scene.region.iova,
                len: 8,
                ..scene.bind_1(remote())
            };
            scene.bind_now(body)?;
            holds("another key", scene.mw != first)?;
            scene.admitted(R, 0, 8)?;
            scene.mw = first;
            scene.refused(R, FROM, 8, Syndrome::RKEY_UNKNOWN)
        },
    ),
    case(
        "mw.type-1.length-zero-unbinds",
        "MW_BIND with length 0 unbinds",
        BIND_1,
        |rig| {
            let mut scene = Scene::new(rig)?;
            scene.type_1()?;
            let body = scene.bind_1(remote());
            scene.bind_now(body)?;
            let body = MwBind {
                rkey: scene.mw,
                ..MwBind::default()
            };
            scene.bind_now(body)?;
            let region = scene.region.key;
            scene
                .pair
                .b
                .named(AdminOp::MR_DEREG, region, AdminStatus::OK)?;
            scene.refused(R, FROM, 8, Syndrome::KEY_INVALIDATED)
        },
    ),
    case(
        "mw.type-1.unknown-window-refused",
        "MW_BIND names a memory window that exists",
        BIND_1,
        |rig| {
            bad_bind_1(rig, AdminStatus::NO_OBJECT, |_, body| {
                body.rkey ^= 0x0100;
                Ok(())
            })
        },
    ),
    case(
        "mw.type-1.stale-key-refused",
        "MW_BIND names a memory window by its present key",
        BIND_1,
        |rig| {
            bad_bind_1(rig, AdminStatus::NO_OBJECT, |_, body| {
                body.rkey ^= 1;
                Ok(())
            })
        },
    ),
    case(
        "mw.type-1.type-2-refused",
        "MW_BIND binds windows of type 1 only",
        BIND_1,
        |rig| {
            bad_bind_1(rig, AdminStatus::UNSUPPORTED, |scene, body| {
                let pdn = scene.pair.b.pdn;
                body.rkey = alloc(&mut scene.pair.b, pdn, 2)?;
                Ok(())
            })
        },
    ),
    case(
        "mw.type-1.reserved-refused",
        "Reserved fields are 0",
        OURS,
        |rig| {
            bad_bind_1(rig, AdminStatus::INVALID, |_, body| {
                body.reserved = 1;
                Ok(())
            })
        },
    ),
    case(
        "mw.type-1.unknown-region-refused",
        "MW_BIND names a region that exists",
        BIND_1,
        |rig| {
            bad_bind_1(rig, AdminStatus::NO_OBJECT, |_, body| {
                body.lkey ^= 1;
                Ok(())
            })
        },
    ),
    case(
        "mw.type-1.past-end-refused",
        "MW_BIND ends inside its region",
        BIND_1,
        |rig| {
            bad_bind_1(rig, AdminStatus::BAD_ADDRESS, |_, body| {
                body.len = 4096;
                Ok(())
            })
        },
    ),
    case(
        "mw.type-1.local-rights-refused",
        "A memory window gives remote rights only",
        BIND_1,
        |rig| {
            bad_bind_1(rig, AdminStatus::INVALID, |_, body| {
                body.access |= Access::LOCAL_WRITE.bits();
                Ok(())
            })
        },
    ),
    case(
        "mw.type-1.region-without-mw-bind-refused",
        "A region needs MW_BIND to have memory windows",
        BIND_1,
        |rig| {
            bad_bind_1(rig, AdminStatus::NO_ACCESS, |scene, body| {
                let region = scene.pair.b.region(4096, full())?;
                body.addr = region.iova;
                body.lkey = region.key;
                Ok(())
            })
        },
    ),
    case(
        "mw.type-1.region-of-another-pd-refused",
        "MW_BIND binds to regions of the window's protection domain",
        PD,
        |rig| {
            bad_bind_1(rig, AdminStatus::INVALID, |scene, body| {
                let pdn = scene.pair.b.pd()?;
                let region =
                    scene
                        .pair
                        .b
                        .region_of(4096, Access::LOCAL_WRITE | Access::MW_BIND, pdn, 0)?;
                body.addr = region.iova;
                body.lkey = region.key;
                Ok(())
            })
        },
    ),
    case(
        "mw.type-1.region-with-owner-refused",
        "A region with an owner QP has no type 1 windows, which would serve every QP",
        "docs/device.md, Memory windows",
        |rig| {
            bad_bind_1(rig, AdminStatus::NO_ACCESS, |scene, body| {
                let (pdn, qpn) = (scene.pair.b.pdn, scene.pair.qb.qpn);
                let region = scene.pair.b.region_of(
                    4096,
                    Access::LOCAL_WRITE | Access::MW_BIND,
                    pdn,
                    qpn,
                )?;
                body.addr = region.iova;
                body.lkey = region.key;
                Ok(())
            })
        },
    ),
];
