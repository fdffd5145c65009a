//! Cases about operations of no bytes: a key that one names is checked, key 0 names none.
//!
//! Place: see [`super`]. Source: docs/device.md, Memory: stricter than IBTA C9-88, by which the responder leaves the R_Key of an RDMA
//! request of no bytes alone; the tests of google/rdma-unit-test ask for the same. Programs that send a WRITE of no bytes as a signal
//! leave the key 0.

use ring_proto::admin::{Access, AdminOp, AdminStatus};
use ring_proto::eqe::EventType;
use ring_proto::status::{Opcode, QpState, Syndrome, WcStatus};
use ring_proto::wqe::Sge;

use super::super::client::{QpOptions, full};
use super::super::rig::{Pair, Rig};
use super::super::wr::SendWr;
use super::super::{Case, Outcome, case, same};

const ZERO: &str = "docs/device.md, Memory (stricter than IBTA C9-88)";

const W: Opcode = Opcode::RDMA_WRITE;
const WI: Opcode = Opcode::RDMA_WRITE_WITH_IMM;
const R: Opcode = Opcode::RDMA_READ;

/// An operation of no bytes by this key, at an address of nobody.
fn by_key(opcode: Opcode, key: u32) -> SendWr {
    SendWr::new(opcode, 1, &[]).remote((0xdead_0000, key))
}

/// A key that the operation may name.
fn admitted(
    rig: &mut Rig<'_>,
    opcode: Opcode,
    make: impl FnOnce(&mut Pair) -> Outcome<u32>,
) -> Outcome {
    let mut pair = rig.pair()?;
    pair.b.recv(&mut pair.qb, 100, &[]);
    let key = make(&mut pair)?;
    pair.post(&by_key(opcode, key));
    pair.a_done(1)?;
    pair.b.expect_state(pair.qb.qpn, QpState::RTS)
}

/// A key that the operation must not name: both ends go to ERR.
fn refused(
    rig: &mut Rig<'_>,
    opcode: Opcode,
    syndrome: Syndrome,
    make: impl FnOnce(&mut Pair) -> Outcome<u32>,
) -> Outcome {
    let mut pair = rig.pair()?;
    pair.b.recv(&mut pair.qb, 100, &[]);
    let key = make(&mut pair)?;
    pair.refused(&by_key(opcode, key), WcStatus::REM_ACCESS_ERR, syndrome)?;
    pair.b
        .expect_event(EventType::QP_ACCESS, pair.qb.qpn, syndrome.0.into())?;
    pair.b.expect_state(pair.qb.qpn, QpState::ERR)
}

/// A key that no region has.
fn unknown(pair: &mut Pair) -> Outcome<u32> {
    Ok(pair.into.key ^ 1)
}

/// An element of no bytes with this key, at an address of nobody.
fn empty(lkey: u32) -> Sge {
    Sge {
        addr: 0xdead_0000,
        len: 0,
        lkey,
    }
}

/// A WQE whose elements end with an empty one of a foreign domain.
fn other_pd(rig: &mut Rig<'_>, opcode: Opcode, bytes: u32) -> Outcome {
    let mut pair = rig.pair()?;
    pair.receives(1, 64);
    let pdn = pair.a.pd()?;
    let foreign = pair.a.region_of(64, full(), pdn, 0)?;
    let sges = [pair.out.sge(0, bytes), empty(foreign.key)];
    let wr = SendWr::new(opcode, 1, &sges).remote(pair.into.remote(0));
    pair.refused(&wr, WcStatus::LOC_PROT_ERR, Syndrome::LKEY_PD_MISMATCH)?;
    // The peer never saw it.
    pair.b.expect_state(pair.qb.qpn, QpState::RTS)
}

pub(super) const CASES: &[Case] = &[
    case(
        "zero-length.write.key-zero-names-nothing",
        "A WRITE of no bytes with rkey 0 succeeds",
        ZERO,
        |rig| admitted(rig, W, |_| Ok(0)),
    ),
    case(
        "zero-length.read.key-zero-names-nothing",
        "A READ of no bytes with rkey 0 succeeds",
        ZERO,
        |rig| admitted(rig, R, |_| Ok(0)),
    ),
    case(
        "zero-length.write-imm.key-zero-names-nothing",
        "A WRITE of no bytes with immediate and rkey 0 is a signal",
        ZERO,
        |rig| {
            let mut pair = rig.pair()?;
            pair.b.recv(&mut pair.qb, 100, &[]);
            pair.post(&SendWr::new(WI, 1, &[]).remote((0, 0)).imm(77));
            let wc = pair.b_done(100)?;
            same("immediate and length", (wc.imm, wc.byte_len), (77, 0))
        },
    ),
    case(
        "zero-length.write.address-does-not-count",
        "A WRITE of no bytes by a good key may name any address",
        ZERO,
        |rig| admitted(rig, W, |pair| Ok(pair.into.key)),
    ),
    case(
        "zero-length.read.address-does-not-count",
        "A READ of no bytes by a good key may name any address",
        ZERO,
        |rig| admitted(rig, R, |pair| Ok(pair.into.key)),
    ),
    case(
        "zero-length.write.unknown-key-refused",
        "A WRITE of no bytes with an rkey that does not exist fails with REM_ACCESS_ERR",
        ZERO,
        |rig| refused(rig, W, Syndrome::RKEY_UNKNOWN, unknown),
    ),
    case(
        "zero-length.read.unknown-key-refused",
        "A READ of no bytes with an rkey that does not exist fails with REM_ACCESS_ERR",
        ZERO,
        |rig| refused(rig, R, Syndrome::RKEY_UNKNOWN, unknown),
    ),
    case(
        "zero-length.write-imm.unknown-key-refused",
        "A WRITE of no bytes with immediate and an rkey that does not exist fails, and takes no receive",
        ZERO,
        |rig| refused(rig, WI, Syndrome::RKEY_UNKNOWN, unknown),
    ),
    case(
        "zero-length.write.pd-mismatch",
        "A WRITE of no bytes by a key of another protection domain fails",
        ZERO,
        |rig| {
            refused(rig, W, Syndrome::RKEY_PD_MISMATCH, |pair| {
                let pdn = pair.b.pd()?;
                Ok(pair.b.region_of(64, full(), pdn, 0)?.key)
            })
        },
    ),
    case(
        "zero-length.read.pd-mismatch",
        "A READ of no bytes by a key of another protection domain fails",
        ZERO,
        |rig| {
            refused(rig, R, Syndrome::RKEY_PD_MISMATCH, |pair| {
                let pdn = pair.b.pd()?;
                Ok(pair.b.region_of(64, full(), pdn, 0)?.key)
            })
        },
    ),
    case(
        "zero-length.write.owner-refuses-others",
        "A WRITE of no bytes by a key of another QP fails",
        ZERO,
        |rig| {
            refused(rig, W, Syndrome::RKEY_WRONG_QP, |pair| {
                let owner = pair.b.init_qp(QpOptions::default())?;
                let pdn = pair.b.pdn;
                Ok(pair.b.region_of(64, full(), pdn, owner.qpn)?.key)
            })
        },
    ),
    case(
        "zero-length.write.needs-remote-write",
        "A WRITE of no bytes by a key without REMOTE_WRITE fails",
        ZERO,
        |rig| {
            refused(rig, W, Syndrome::RKEY_NO_ACCESS, |pair| {
                Ok(pair.b.region(64, Access::REMOTE_READ)?.key)
            })
        },
    ),
    case(
        "zero-length.read.needs-remote-read",
        "A READ of no bytes by a key without REMOTE_READ fails",
        ZERO,
        |rig| {
            refused(rig, R, Syndrome::RKEY_NO_ACCESS, |pair| {
                let access = Access::LOCAL_WRITE | Access::REMOTE_WRITE;
                Ok(pair.b.region(64, access)?.key)
            })
        },
    ),
    case(
        "zero-length.read.after-dereg",
        "A READ of no bytes by a deregistered key fails",
        ZERO,
        |rig| {
            refused(rig, R, Syndrome::RKEY_UNKNOWN, |pair| {
                let key = pair.into.key;
                pair.b.named(AdminOp::MR_DEREG, key, AdminStatus::OK)?;
                Ok(key)
            })
        },
    ),
    case(
        "zero-length.write.after-invalidation",
        "A WRITE of no bytes by an invalidated key fails",
        ZERO,
        |rig| {
            refused(rig, W, Syndrome::KEY_INVALIDATED, |pair| {
                let key = pair.into.key;
                let wr = SendWr::new(Opcode::LOCAL_INV, 9, &[]).imm(key);
                pair.b.send(&mut pair.qb, &wr);
                pair.b_done(9)?;
                Ok(key)
            })
        },
    ),
    case(
        "zero-length.write.qp-rights-count",
        "A WRITE of no bytes needs the right of the responder's QP, whatever its key",
        ZERO,
        |rig| {
            let of_b = QpOptions {
                access: Access::REMOTE_READ,
                ..QpOptions::default()
            };
            let mut pair = rig.pair_with(QpOptions::default(), of_b, 7)?;
            pair.refused(
                &by_key(W, 0),
                WcStatus::REM_INV_REQ_ERR,
                Syndrome::QP_NO_ACCESS,
            )
        },
    ),
    case(
        "zero-length.sge.key-zero-names-nothing",
        "An SGE of no bytes with lkey 0 is passed over",
        ZERO,
        |rig| {
            let mut pair = rig.pair()?;
            pair.receives(1, 64);
            pair.fill(b"abcdef")?;
            let sges = [empty(0), pair.out.sge(0, 3), empty(0), pair.out.sge(3, 3)];
            pair.post(&SendWr::new(Opcode::SEND, 1, &sges));
            pair.a_done(1)?;
            pair.arrived(b"abcdef")
        },
    ),
    case(
        "zero-length.sge.unknown-key-refused",
        "An SGE of no bytes with an lkey that does not exist fails with LOC_PROT_ERR",
        ZERO,
        |rig| {
            let mut pair = rig.pair()?;
            pair.receives(1, 64);
            let wr = SendWr::new(Opcode::SEND, 1, &[empty(pair.out.key ^ 1)]);
            pair.refused(&wr, WcStatus::LOC_PROT_ERR, Syndrome::LKEY_UNKNOWN)
        },
    ),
    case(
        "zero-length.sge.pd-mismatch-send",
        "An SGE of no bytes of another protection domain fails a SEND",
        ZERO,
        |rig| other_pd(rig, Opcode::SEND, 8),
    ),
    case(
        "zero-length.sge.pd-mismatch-write",
        "An SGE of no bytes of another protection domain fails a WRITE of no bytes",
        ZERO,
        |rig| other_pd(rig, W, 0),
    ),
    case(
        "zero-length.sge.pd-mismatch-read",
        "An SGE of no bytes of another protection domain fails a READ",
        ZERO,
        |rig| other_pd(rig, R, 8),
    ),
    case(
        "zero-length.sge.read-needs-local-write",
        "An SGE of no bytes of a region without LOCAL_WRITE fails a READ of no bytes",
        ZERO,
        |rig| {
            let mut pair = rig.pair()?;
            let region = pair.a.region(64, Access::empty())?;
            let wr = SendWr::read(1, empty(region.key), pair.into.remote(0));
            pair.refused(&wr, WcStatus::LOC_PROT_ERR, Syndrome::LKEY_NO_ACCESS)
        },
    ),
    case(
        "zero-length.receive.key-zero-names-nothing",
        "A receive may have SGEs of no bytes with lkey 0",
        ZERO,
        |rig| {
            let mut pair = rig.pair()?;
            let sges = [empty(0), pair.into.sge(0, 64), empty(0)];
            pair.b.recv(&mut pair.qb, 100, &sges);
            pair.post(&SendWr::inline(Opcode::SEND, 1, b"here"));
            pair.b_done(100)?;
            pair.arrived(b"here")
        },
    ),
    case(
        "zero-length.receive.unknown-key-refused",
        "A receive with an SGE of no bytes and an unknown key fails when a message reaches it",
        ZERO,
        |rig| {
            let mut pair = rig.pair()?;
            let sges = [empty(pair.into.key ^ 1), pair.into.sge(0, 64)];
            pair.b.recv(&mut pair.qb, 100, &sges);
            pair.post(&SendWr::inline(Opcode::SEND, 1, b""));
            pair.a_fails(WcStatus::REM_OP_ERR, Syndrome::RECV_BAD_WQE)?;
            pair.b_fails(WcStatus::LOC_ACCESS_ERR, Syndrome::LKEY_UNKNOWN)
        },
    ),
];
