//! Cases about holders and orphans: what processes that share a function leave behind.
//!
//! Place: see [`super`]. Source: docs/device.md, section "Holders and orphans"; the life of an open file description over fork(2) is
//! the model.

use ring_proto::admin::{
    AdminOp, AdminStatus, HOLD_LISTENER, HOLD_QP, HoldClone, RELEASE_UNLESS_LAST,
};
use ring_proto::eqe::{CmStatus, EventType};
use ring_proto::status::{Opcode, QpState, Syndrome, WcStatus};

use super::super::client::{Client, QpOptions, high, low};
use super::super::target::Port;
use super::super::wr::SendWr;
use super::super::{Case, Outcome, case, holds, same};

const HOLDERS: &str = "docs/device.md, Holders and orphans";
const MINUTE_NS: u64 = 60_000_000_000;

fn release(client: &mut Client, qpn: u32, slot: u32, flags: u32) -> Outcome<(AdminStatus, u32)> {
    client.hold(AdminOp::RELEASE, qpn, HOLD_QP, slot, flags)
}

/// HOLD_CLONE of slot 0: slot and generation of the new one.
fn clone(client: &mut Client) -> Outcome<(u32, u32)> {
    let body = HoldClone {
        from: 0,
        reserved: 0,
    };
    let result = client.ok(AdminOp::HOLD_CLONE, body.to_body())?;
    Ok((low(result[0]), high(result[0])))
}

pub(super) const CASES: &[Case] = &[
    case(
        "holder.first-slot-is-live",
        "Slot 0 belongs to who attached",
        HOLDERS,
        |rig| {
            let a = rig.client(Port::A)?;
            same("generation", a.holder_generation(0), 1)
        },
    ),
    case(
        "holder.clone.opens-a-slot",
        "A cloned slot is live with its own generation",
        HOLDERS,
        |rig| {
            let mut a = rig.client(Port::A)?;
            let (slot, generation) = clone(&mut a)?;
            holds("another slot", slot != 0)?;
            same("generation in BAR2", a.holder_generation(slot), generation)
        },
    ),
    case(
        "holder.clone.holds-the-same",
        "A cloned slot holds what its cloner held",
        HOLDERS,
        |rig| {
            let mut a = rig.client(Port::A)?;
            let qp = a.init_qp(QpOptions::default())?;
            let (slot, _) = clone(&mut a)?;
            same(
                "first release",
                release(&mut a, qp.qpn, 0, 0)?,
                (AdminStatus::OK, 1),
            )?;
            a.expect_state(qp.qpn, QpState::INIT)?;
            same(
                "last release",
                release(&mut a, qp.qpn, slot, 0)?,
                (AdminStatus::OK, 0),
            )?;
            a.named(AdminOp::QP_QUERY, qp.qpn, AdminStatus::NO_OBJECT)
        },
    ),
    case(
        "holder.release.last-ends-the-qp",
        "A QP without a peer ends with its last holder",
        HOLDERS,
        |rig| {
            let mut a = rig.client(Port::A)?;
            let qp = a.init_qp(QpOptions::default())?;
            same(
                "answer",
                release(&mut a, qp.qpn, 0, 0)?,
                (AdminStatus::OK, 0),
            )?;
            a.named(AdminOp::QP_QUERY, qp.qpn, AdminStatus::NO_OBJECT)
        },
    ),
    case(
        "holder.release.unless-last",
        "RELEASE_UNLESS_LAST keeps the last hold",
        HOLDERS,
        |rig| {
            let mut a = rig.client(Port::A)?;
            let qp = a.init_qp(QpOptions::default())?;
            let (status, _) = release(&mut a, qp.qpn, 0, RELEASE_UNLESS_LAST)?;
            same("answer", status, AdminStatus::BUSY)?;
            a.expect_state(qp.qpn, QpState::INIT)
        },
    ),
    case(
        "holder.release.stranger-refused",
        "Who does not hold cannot release",
        HOLDERS,
        |rig| {
            let mut a = rig.client(Port::A)?;
            let (slot, _) = clone(&mut a)?;
            let qp = a.init_qp(QpOptions::default())?;
            same(
                "answer",
                release(&mut a, qp.qpn, slot, 0)?.0,
                AdminStatus::NO_OBJECT,
            )
        },
    ),
    case(
        "holder.hold.dead-slot-refused",
        "Only live slots hold",
        HOLDERS,
        |rig| {
            let mut a = rig.client(Port::A)?;
            let qp = a.init_qp(QpOptions::default())?;
            let (status, _) = a.hold(AdminOp::HOLD, qp.qpn, HOLD_QP, 99, 0)?;
            same("answer", status, AdminStatus::NO_OBJECT)
        },
    ),
    case(
        "holder.hold.unknown-kind-refused",
        "QPs and listeners are held, nothing else",
        HOLDERS,
        |rig| {
            let mut a = rig.client(Port::A)?;
            let qp = a.init_qp(QpOptions::default())?;
            same(
                "answer",
                a.hold(AdminOp::HOLD, qp.qpn, 9, 0, 0)?.0,
                AdminStatus::INVALID,
            )
        },
    ),
    case(
        "holder.listener.last-release-closes",
        "A listener without holders is closed",
        HOLDERS,
        |rig| {
            let (from, to) = (rig.endpoint(Port::A)?, rig.endpoint(Port::B)?);
            let (mut a, mut b) = (rig.client(Port::A)?, rig.client(Port::B)?);
            let listener = b.listen(to, 8)?;
            let (status, _) = b.hold(AdminOp::RELEASE, listener, HOLD_LISTENER, 0, 0)?;
            same("answer", status, AdminStatus::OK)?;
            let qa = a.init_qp(QpOptions::default())?;
            a.connect(qa.qpn, from, to, 0, b"")?;
            a.expect_event(EventType::CM_REJECTED, qa.qpn, CmStatus::NO_LISTENER.0)
        },
    ),
    case(
        "holder.accepted-qp-is-held-by-its-listener",
        "An accepted QP that nobody took ends with its listener",
        HOLDERS,
        |rig| {
            let (from, to) = (rig.endpoint(Port::A)?, rig.endpoint(Port::B)?);
            let (mut a, mut b) = (rig.client(Port::A)?, rig.client(Port::B)?);
            let listener = b.listen(to, 8)?;
            let (qa, qb) = (
                a.init_qp(QpOptions::default())?,
                b.init_qp(QpOptions::default())?,
            );
            a.connect(qa.qpn, from, to, 0, b"")?;
            let (_, _, request) = b.event_of(EventType::CM_REQUEST)?;
            b.accept(request, qb.qpn, listener)?;
            a.event_of(EventType::CM_ESTABLISHED)?;
            b.named(AdminOp::CM_UNLISTEN, listener, AdminStatus::OK)?;
            a.event_of(EventType::CM_DISCONNECTED)?;
            b.named(AdminOp::QP_QUERY, qb.qpn, AdminStatus::NO_OBJECT)
        },
    ),
    case(
        "holder.accepted-qp-can-be-taken",
        "HOLD moves an accepted QP from its listener to a process",
        HOLDERS,
        |rig| {
            let (from, to) = (rig.endpoint(Port::A)?, rig.endpoint(Port::B)?);
            let (mut a, mut b) = (rig.client(Port::A)?, rig.client(Port::B)?);
            let listener = b.listen(to, 8)?;
            let (qa, qb) = (
                a.init_qp(QpOptions::default())?,
                b.init_qp(QpOptions::default())?,
            );
            a.connect(qa.qpn, from, to, 0, b"")?;
            let (_, _, request) = b.event_of(EventType::CM_REQUEST)?;
            b.accept(request, qb.qpn, listener)?;
            let (status, _) = b.hold(AdminOp::HOLD, qb.qpn, HOLD_QP, 0, listener)?;
            same("answer", status, AdminStatus::OK)?;
            b.named(AdminOp::CM_UNLISTEN, listener, AdminStatus::OK)?;
            b.expect_state(qb.qpn, QpState::RTS)
        },
    ),
    case(
        "orphan.peer-is-told",
        "The peer of a connected QP whose last holder went hears CM_ORPHANED",
        HOLDERS,
        |rig| {
            let mut pair = rig.pair()?;
            release(&mut pair.b, pair.qb.qpn, 0, 0)?;
            let (_, source, _) = pair.a.event_of(EventType::CM_ORPHANED)?;
            same("QP of the event", source, pair.qa.qpn)?;
            pair.a.expect_state(pair.qa.qpn, QpState::RTS)
        },
    ),
    case(
        "orphan.reads-are-served",
        "An orphan's memory can be read by its peer",
        HOLDERS,
        |rig| {
            let mut pair = rig.pair()?;
            pair.b.memory.write(pair.into.iova, b"left behind")?;
            release(&mut pair.b, pair.qb.qpn, 0, 0)?;
            let (sge, remote) = (pair.out.sge(0, 11), pair.into.remote(0));
            pair.post(&SendWr::read(1, sge, remote));
            pair.a_done(1)?;
            same(
                "bytes",
                pair.a.memory.read(pair.out.iova, 11)?.as_slice(),
                b"left behind",
            )
        },
    ),
    case(
        "orphan.outlives-its-client",
        "The memory of a client that hung up can be read by its peer",
        HOLDERS,
        |rig| {
            let mut pair = rig.pair()?;
            pair.b.memory.write(pair.into.iova, b"last words")?;
            drop(std::mem::replace(&mut pair.b, rig.bare(Port::B)?));
            pair.a.event_of(EventType::CM_ORPHANED)?;
            let (sge, remote) = (pair.out.sge(0, 10), pair.into.remote(0));
            pair.post(&SendWr::read(1, sge, remote));
            pair.a_done(1)?;
            same(
                "bytes",
                pair.a.memory.read(pair.out.iova, 10)?.as_slice(),
                b"last words",
            )
        },
    ),
    case(
        "orphan.keys-still-count",
        "An orphan's memory is protected by its keys",
        HOLDERS,
        |rig| {
            let mut pair = rig.pair()?;
            release(&mut pair.b, pair.qb.qpn, 0, 0)?;
            let (sge, remote) = (pair.out.sge(0, 8), (pair.into.iova, pair.into.key ^ 1));
            pair.refused(
                &SendWr::read(1, sge, remote),
                WcStatus::REM_ACCESS_ERR,
                Syndrome::RKEY_UNKNOWN,
            )
        },
    ),
    case(
        "orphan.sends-go-nowhere",
        "SENDs and WRITEs to an orphan complete and change nothing",
        HOLDERS,
        |rig| {
            let mut pair = rig.pair()?;
            pair.b.memory.write(pair.into.iova, &[0xee; 8])?;
            release(&mut pair.b, pair.qb.qpn, 0, 0)?;
            let remote = pair.into.remote(0);
            pair.post(&SendWr::inline(Opcode::SEND, 1, b"x"));
            pair.post(&SendWr::inline(Opcode::RDMA_WRITE, 2, b"x").remote(remote));
            pair.a_done(1)?;
            pair.a_done(2)?;
            pair.arrived(&[0xee; 8])
        },
    ),
    case(
        "orphan.ends-with-its-peer",
        "A disconnect of its peer ends an orphan",
        HOLDERS,
        |rig| {
            let mut pair = rig.pair()?;
            release(&mut pair.b, pair.qb.qpn, 0, 0)?;
            pair.a
                .named(AdminOp::CM_DISCONNECT, pair.qa.qpn, AdminStatus::OK)?;
            pair.b
                .named(AdminOp::QP_QUERY, pair.qb.qpn, AdminStatus::NO_OBJECT)
        },
    ),
    case(
        "orphan.ends-in-time",
        "An orphan ends after 60 s, and its peer is told",
        HOLDERS,
        |rig| {
            rig.need_virtual_time()?;
            let mut pair = rig.pair()?;
            release(&mut pair.b, pair.qb.qpn, 0, 0)?;
            pair.a.event_of(EventType::CM_ORPHANED)?;
            rig.pass_virtual(MINUTE_NS - 1)?;
            pair.a.expect_state(pair.qa.qpn, QpState::RTS)?;
            rig.pass_virtual(1)?;
            pair.a.event_of(EventType::CM_DISCONNECTED)?;
            pair.a.expect_state(pair.qa.qpn, QpState::ERR)
        },
    ),
    case(
        "orphan.not-by-destroy",
        "QP_DESTROY leaves no orphan",
        HOLDERS,
        |rig| {
            let mut pair = rig.pair()?;
            pair.b
                .named(AdminOp::QP_DESTROY, pair.qb.qpn, AdminStatus::OK)?;
            let event = pair.a.event()?;
            same("event", event.0, EventType::CM_DISCONNECTED)
        },
    ),
];
