//! Cases about keys: which memory a work request may touch.
//!
//! Place: see [`super`]. Source: IBTA vol. 1, 10.2.3 (protection domains), 10.6.3 (access control), 9.7.4.1 (responder checks) and
//! 11.6.2 (statuses); `ibv_reg_mr(3)`.

use ring_proto::admin::{Access, AdminOp, AdminStatus};
use ring_proto::eqe::EventType;
use ring_proto::status::{Opcode, QpState, Syndrome, WcStatus};
use ring_proto::wqe::Sge;

use super::super::client::{QpOptions, Region, full};
use super::super::rig::{Pair, Rig};
use super::super::target::Port;
use super::super::wr::SendWr;
use super::super::{Case, Outcome, case, same};

const LOCAL: &str = "IBTA 10.6.3.1, 11.6.2; ibv_reg_mr(3)";
const REMOTE: &str = "IBTA 9.7.4.1.5, 10.6.3.2; ibv_reg_mr(3)";
const PD: &str = "IBTA 10.2.3; ibv_alloc_pd(3)";
const PROT: WcStatus = WcStatus::LOC_PROT_ERR;

/// A SEND from an SGE that may not be used.
fn local(rig: &mut Rig<'_>, syndrome: Syndrome, spoil: impl FnOnce(&mut Sge)) -> Outcome {
    let mut pair = rig.pair()?;
    pair.receives(1, 4096);
    let mut sge = pair.out.sge(0, 64);
    spoil(&mut sge);
    pair.refused(&SendWr::send(1, sge), PROT, syndrome)?;
    // The peer never saw it.
    pair.b.expect_state(pair.qb.qpn, QpState::RTS)
}

/// A WRITE or READ to a place that may not be used: requester and responder go to ERR, the responder's memory stays.
fn remote(
    rig: &mut Rig<'_>,
    opcode: Opcode,
    syndrome: Syndrome,
    spoil: impl FnOnce(&mut Pair) -> Outcome<(u64, u32)>,
) -> Outcome {
    let mut pair = rig.pair()?;
    let place = spoil(&mut pair)?;
    refused_at(&mut pair, opcode, syndrome, place)
}

fn refused_at(pair: &mut Pair, opcode: Opcode, syndrome: Syndrome, place: (u64, u32)) -> Outcome {
    pair.fill(&[1; 64])?;
    pair.b.memory.write(pair.into.iova, &[0xee; 4096])?;
    let sge = pair.out.sge(0, 64);
    let wr = SendWr::new(opcode, 1, &[sge]).remote(place);
    pair.refused(&wr, WcStatus::REM_ACCESS_ERR, syndrome)?;
    pair.b
        .expect_event(EventType::QP_ACCESS, pair.qb.qpn, syndrome.0.into())?;
    pair.b.expect_state(pair.qb.qpn, QpState::ERR)?;
    pair.arrived(&[0xee; 4096])?;
    same(
        "memory of the requester",
        pair.a.memory.read(pair.out.iova, 64)?,
        vec![1; 64],
    )
}

/// A region of b in another PD than its QP.
fn other_pd(pair: &mut Pair) -> Outcome<Region> {
    let pdn = pair.b.pd()?;
    pair.b.region_of(4096, full(), pdn, 0)
}

/// A region of b with these rights.
fn with_access(pair: &mut Pair, access: Access) -> Outcome<(u64, u32)> {
    Ok(pair.b.region(4096, access)?.remote(0))
}

/// A WQE of a whose own SGE lies in another PD.
fn own_pd(rig: &mut Rig<'_>, opcode: Opcode) -> Outcome {
    let mut pair = rig.pair()?;
    pair.receives(1, 64);
    let pdn = pair.a.pd()?;
    let foreign = pair.a.region_of(64, full(), pdn, 0)?;
    let wr = SendWr::new(opcode, 1, &[foreign.sge(0, 8)]).remote(pair.into.remote(0));
    pair.refused(&wr, PROT, Syndrome::LKEY_PD_MISMATCH)
}

/// A receive of b into memory that it may not use.
fn receive(
    rig: &mut Rig<'_>,
    syndrome: Syndrome,
    spoil: impl FnOnce(&mut Pair) -> Outcome<Sge>,
) -> Outcome {
    let mut pair = rig.pair()?;
    let sge = spoil(&mut pair)?;
    pair.b.recv(&mut pair.qb, 100, &[sge]);
    pair.post(&SendWr::inline(Opcode::SEND, 1, &[1; 16]));
    pair.a_fails(WcStatus::REM_OP_ERR, Syndrome::RECV_BAD_WQE)?;
    pair.b_fails(WcStatus::LOC_ACCESS_ERR, syndrome)
}

const W: Opcode = Opcode::RDMA_WRITE;
const R: Opcode = Opcode::RDMA_READ;

pub(super) const CASES: &[Case] = &[
    case(
        "key.lkey.unknown",
        "An SGE with an lkey that does not exist fails with LOC_PROT_ERR",
        LOCAL,
        |rig| local(rig, Syndrome::LKEY_UNKNOWN, |sge| sge.lkey = 0x00ff_ff00),
    ),
    case(
        "key.lkey.wrong-tag",
        "The tag of an lkey counts",
        LOCAL,
        |rig| local(rig, Syndrome::LKEY_UNKNOWN, |sge| sge.lkey ^= 1),
    ),
    case("key.lkey.zero", "Key 0 is no key", LOCAL, |rig| {
        local(rig, Syndrome::LKEY_UNKNOWN, |sge| sge.lkey = 0)
    }),
    case(
        "key.lkey.after-dereg",
        "A deregistered lkey is unknown",
        "IBTA 10.6.6; ibv_dereg_mr(3)",
        |rig| {
            let mut pair = rig.pair()?;
            let out = pair.out;
            pair.a.named(AdminOp::MR_DEREG, out.key, AdminStatus::OK)?;
            pair.refused(
                &SendWr::send(1, out.sge(0, 8)),
                PROT,
                Syndrome::LKEY_UNKNOWN,
            )
        },
    ),
    case(
        "key.lkey.stale-after-reuse",
        "A region's key does not open the region that takes its place",
        "IBTA 10.6.6; docs/device.md",
        |rig| {
            let mut pair = rig.pair()?;
            let out = pair.out;
            pair.a.named(AdminOp::MR_DEREG, out.key, AdminStatus::OK)?;
            for _ in 0..4 {
                pair.a.region(64, full())?;
            }
            pair.refused(
                &SendWr::send(1, out.sge(0, 8)),
                PROT,
                Syndrome::LKEY_UNKNOWN,
            )
        },
    ),
    case(
        "key.lkey.past-end",
        "An SGE that ends one byte behind its region fails",
        LOCAL,
        |rig| {
            local(rig, Syndrome::LKEY_OUT_OF_BOUNDS, |sge| {
                sge.addr += 4096 - 63
            })
        },
    ),
    case(
        "key.lkey.before-start",
        "An SGE that begins one byte before its region fails",
        LOCAL,
        |rig| local(rig, Syndrome::LKEY_OUT_OF_BOUNDS, |sge| sge.addr -= 1),
    ),
    case(
        "key.lkey.address-wraps",
        "An SGE whose end wraps around the address space fails",
        LOCAL,
        |rig| {
            local(rig, Syndrome::LKEY_OUT_OF_BOUNDS, |sge| {
                sge.addr = u64::MAX - 7
            })
        },
    ),
    case(
        "key.lkey.pd-mismatch-send",
        "A SEND from a region of another protection domain fails",
        PD,
        |rig| own_pd(rig, Opcode::SEND),
    ),
    case(
        "key.lkey.pd-mismatch-write",
        "A WRITE from a region of another protection domain fails",
        PD,
        |rig| own_pd(rig, W),
    ),
    case(
        "key.lkey.pd-mismatch-read",
        "A READ into a region of another protection domain fails",
        PD,
        |rig| own_pd(rig, R),
    ),
    case(
        "key.lkey.read-needs-local-write",
        "A READ into a region without LOCAL_WRITE fails",
        LOCAL,
        |rig| {
            let mut pair = rig.pair()?;
            let region = pair.a.region(64, Access::empty())?;
            let wr = SendWr::read(1, region.sge(0, 8), pair.into.remote(0));
            pair.refused(&wr, PROT, Syndrome::LKEY_NO_ACCESS)
        },
    ),
    case(
        "key.lkey.send-needs-no-rights",
        "A SEND reads a region without any rights",
        LOCAL,
        |rig| {
            let mut pair = rig.pair()?;
            pair.receives(1, 64);
            let region = pair.a.region(64, Access::empty())?;
            pair.post(&SendWr::send(1, region.sge(0, 8)));
            pair.a_done(1).map(drop)
        },
    ),
    case(
        "key.lkey.second-sge-is-checked",
        "Every SGE is checked before a byte moves",
        LOCAL,
        |rig| {
            let mut pair = rig.pair()?;
            pair.b.memory.write(pair.into.iova, &[0xee; 16])?;
            pair.receives(1, 64);
            let (good, mut bad) = (pair.out.sge(0, 8), pair.out.sge(8, 8));
            bad.lkey ^= 1;
            pair.refused(
                &SendWr::new(Opcode::SEND, 1, &[good, bad]),
                PROT,
                Syndrome::LKEY_UNKNOWN,
            )?;
            pair.arrived(&[0xee; 16])
        },
    ),
    case(
        "key.receive.unknown",
        "A receive with an unknown key fails when a message meets it",
        LOCAL,
        |rig| {
            receive(rig, Syndrome::LKEY_UNKNOWN, |pair| {
                Ok(Sge {
                    lkey: 3,
                    ..pair.into.sge(0, 64)
                })
            })
        },
    ),
    case(
        "key.receive.past-end",
        "A receive that leaves its region fails when a message reaches that part",
        LOCAL,
        |rig| {
            receive(rig, Syndrome::LKEY_OUT_OF_BOUNDS, |pair| {
                Ok(pair.into.sge(4090, 64))
            })
        },
    ),
    case(
        "key.receive.needs-local-write",
        "A receive into a region without LOCAL_WRITE fails",
        LOCAL,
        |rig| {
            receive(rig, Syndrome::LKEY_NO_ACCESS, |pair| {
                Ok(pair.b.region(64, Access::empty())?.sge(0, 64))
            })
        },
    ),
    case(
        "key.receive.pd-mismatch",
        "A receive into a region of another protection domain fails",
        PD,
        |rig| {
            receive(rig, Syndrome::LKEY_PD_MISMATCH, |pair| {
                Ok(other_pd(pair)?.sge(0, 64))
            })
        },
    ),
    case(
        "key.rkey.unknown-write",
        "A WRITE with an rkey that does not exist fails with REM_ACCESS_ERR at the requester; both go to ERR",
        REMOTE,
        |rig| {
            remote(rig, W, Syndrome::RKEY_UNKNOWN, |pair| {
                Ok((pair.into.iova, 0x00ff_ff00))
            })
        },
    ),
    case(
        "key.rkey.unknown-read",
        "A READ with an rkey that does not exist fails with REM_ACCESS_ERR",
        REMOTE,
        |rig| {
            remote(rig, R, Syndrome::RKEY_UNKNOWN, |pair| {
                Ok((pair.into.iova, 0x00ff_ff00))
            })
        },
    ),
    case(
        "key.rkey.wrong-tag",
        "The tag of an rkey counts",
        REMOTE,
        |rig| {
            remote(rig, W, Syndrome::RKEY_UNKNOWN, |pair| {
                Ok((pair.into.iova, pair.into.key ^ 1))
            })
        },
    ),
    case(
        "key.rkey.after-dereg",
        "A deregistered rkey is unknown",
        "IBTA 10.6.6; ibv_dereg_mr(3)",
        |rig| {
            remote(rig, R, Syndrome::RKEY_UNKNOWN, |pair| {
                let into = pair.into;
                pair.b.named(AdminOp::MR_DEREG, into.key, AdminStatus::OK)?;
                Ok(into.remote(0))
            })
        },
    ),
    case(
        "key.rkey.of-another-function",
        "A key opens memory of the responder's own function only",
        "IBTA 10.6.3.2; docs/device.md",
        |rig| {
            let other = rig.client(Port::B)?;
            let mut other = other;
            // Past the number of regions that the responder has, so that the key cannot name one of its own.
            let mut region = other.region(64, full())?;
            for _ in 0..8 {
                region = other.region(64, full())?;
            }
            remote(rig, W, Syndrome::RKEY_UNKNOWN, |_| Ok(region.remote(0)))
        },
    ),
    case(
        "key.rkey.past-end-write",
        "A WRITE that ends one byte behind the region fails",
        REMOTE,
        |rig| {
            remote(rig, W, Syndrome::RKEY_OUT_OF_BOUNDS, |pair| {
                Ok(pair.into.remote(4096 - 63))
            })
        },
    ),
    case(
        "key.rkey.past-end-read",
        "A READ that ends one byte behind the region fails",
        REMOTE,
        |rig| {
            remote(rig, R, Syndrome::RKEY_OUT_OF_BOUNDS, |pair| {
                Ok(pair.into.remote(4096 - 63))
            })
        },
    ),
    case(
        "key.rkey.before-start",
        "A WRITE that begins one byte before the region fails",
        REMOTE,
        |rig| {
            remote(rig, W, Syndrome::RKEY_OUT_OF_BOUNDS, |pair| {
                Ok((pair.into.iova - 1, pair.into.key))
            })
        },
    ),
    case(
        "key.rkey.address-wraps-write",
        "A WRITE whose range wraps around the address space fails",
        REMOTE,
        |rig| {
            remote(rig, W, Syndrome::RKEY_OUT_OF_BOUNDS, |pair| {
                Ok((u64::MAX - 7, pair.into.key))
            })
        },
    ),
    case(
        "key.rkey.address-wraps-read",
        "A READ whose range wraps around the address space fails",
        REMOTE,
        |rig| {
            remote(rig, R, Syndrome::RKEY_OUT_OF_BOUNDS, |pair| {
                Ok((u64::MAX - 7, pair.into.key))
            })
        },
    ),
    case(
        "key.rkey.write-needs-remote-write",
        "A region without REMOTE_WRITE refuses a WRITE",
        REMOTE,
        |rig| {
            remote(rig, W, Syndrome::RKEY_NO_ACCESS, |pair| {
                with_access(pair, Access::LOCAL_WRITE | Access::REMOTE_READ)
            })
        },
    ),
    case(
        "key.rkey.read-needs-remote-read",
        "A region without REMOTE_READ refuses a READ",
        REMOTE,
        |rig| {
            remote(rig, R, Syndrome::RKEY_NO_ACCESS, |pair| {
                with_access(pair, Access::LOCAL_WRITE | Access::REMOTE_WRITE)
            })
        },
    ),
    case(
        "key.rkey.read-needs-no-local-write",
        "A region with REMOTE_READ alone serves a READ",
        REMOTE,
        |rig| {
            let mut pair = rig.pair()?;
            let place = with_access(&mut pair, Access::REMOTE_READ)?;
            let sge = pair.out.sge(0, 64);
            pair.post(&SendWr::read(1, sge, place));
            pair.a_done(1).map(drop)
        },
    ),
    case(
        "key.rkey.pd-mismatch-write",
        "A region of another protection domain than the responder's QP refuses a WRITE",
        PD,
        |rig| {
            remote(rig, W, Syndrome::RKEY_PD_MISMATCH, |pair| {
                Ok(other_pd(pair)?.remote(0))
            })
        },
    ),
    case(
        "key.rkey.pd-mismatch-read",
        "A region of another protection domain than the responder's QP refuses a READ",
        PD,
        |rig| {
            remote(rig, R, Syndrome::RKEY_PD_MISMATCH, |pair| {
                Ok(other_pd(pair)?.remote(0))
            })
        },
    ),
    case(
        "key.rkey.owner-refuses-others",
        "A region with an owner QP is closed to the peers of other QPs",
        "docs/device.md; Windows Sockets Direct, WSPRegisterRdmaMemory",
        |rig| {
            remote(rig, W, Syndrome::RKEY_WRONG_QP, |pair| {
                let owner = pair.b.init_qp(QpOptions::default())?;
                let pdn = pair.b.pdn;
                Ok(pair.b.region_of(4096, full(), pdn, owner.qpn)?.remote(0))
            })
        },
    ),
    case(
        "key.rkey.owner-admits-its-peer",
        "A region with an owner QP is open to that QP's peer",
        "docs/device.md; Windows Sockets Direct, WSPRegisterRdmaMemory",
        |rig| {
            let mut pair = rig.pair()?;
            let (pdn, qpn) = (pair.b.pdn, pair.qb.qpn);
            let region = pair.b.region_of(64, full(), pdn, qpn)?;
            let sge = pair.out.sge(0, 64);
            pair.post(&SendWr::write(1, sge, region.remote(0)));
            pair.a_done(1).map(drop)
        },
    ),
    case(
        "key.rkey.zero",
        "Key 0 is no key: a WRITE of bytes by it fails",
        REMOTE,
        |rig| {
            remote(rig, W, Syndrome::RKEY_UNKNOWN, |pair| {
                Ok((pair.into.iova, 0))
            })
        },
    ),
];
