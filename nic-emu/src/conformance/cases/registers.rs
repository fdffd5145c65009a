//! Cases about registers, start and reset of a function.
//!
//! Place: see [`super`]. Source: docs/device.md, sections "Registers" and "Reset and the end"; the status dance is that of virtio.

use ring_proto::admin::{AdminOp, AdminStatus, Body};
use ring_proto::attach::AttachError;
use ring_proto::eqe::EventType;
use ring_proto::regs;
use ring_proto::status::{Opcode, QpState, Syndrome, WcStatus};

use super::super::client::{Client, QpOptions};
use super::super::rig::Rig;
use super::super::target::Port;
use super::super::wr::SendWr;
use super::super::{Case, Outcome, case, failed, holds, same};

const REGISTERS: &str = "docs/device.md, Registers";
const RESET: &str = "docs/device.md, Reset and the end";

fn refused_access(result: Result<u64, AttachError>) -> Outcome {
    match result {
        Err(AttachError::Refused { errno, .. }) => same("errno", errno, libc::EINVAL),
        other => failed(format!("the answer was {other:?}")),
    }
}

/// A limit register says at least this much.
fn at_least(rig: &mut Rig<'_>, register: u64, least: u64) -> Outcome {
    let a = rig.bare(Port::A)?;
    let value = a.read_register(register, 4)?;
    holds("the device has enough of it", value >= least)
}

fn reset(client: &Client) -> Outcome {
    client.write_register(regs::STATUS, 4, 0)?;
    same(
        "STATUS after a reset",
        client.read_register(regs::STATUS, 4)?,
        0,
    )
}

pub(super) const CASES: &[Case] = &[
    case(
        "register.magic",
        "MAGIC names the device",
        REGISTERS,
        |rig| {
            let a = rig.bare(Port::A)?;
            same(
                "MAGIC",
                a.read_register(regs::MAGIC, 4)?,
                regs::MAGIC_VALUE.into(),
            )
        },
    ),
    case(
        "register.abi",
        "ABI carries the major version that this suite knows",
        REGISTERS,
        |rig| {
            let a = rig.bare(Port::A)?;
            same(
                "major version",
                a.read_register(regs::ABI, 4)? >> 16,
                u64::from(regs::ABI_VALUE) >> 16,
            )
        },
    ),
    case(
        "register.wrong-width-refused",
        "An access has the register's width",
        REGISTERS,
        |rig| {
            let a = rig.bare(Port::A)?;
            refused_access(a.attachment.read_register(regs::MAGIC, 8))?;
            refused_access(a.attachment.read_register(regs::MAGIC, 2))
        },
    ),
    case(
        "register.unknown-refused",
        "An offset without a register is refused",
        REGISTERS,
        |rig| {
            let a = rig.bare(Port::A)?;
            refused_access(a.attachment.read_register(0x3ff8, 8))
        },
    ),
    case(
        "register.half-of-eight-bytes",
        "Registers of 8 bytes can be read by halves",
        REGISTERS,
        |rig| {
            let a = rig.bare(Port::A)?;
            let whole = a.read_register(regs::DEVICE_FEATURES, 8)?;
            let halves = [
                a.read_register(regs::DEVICE_FEATURES, 4)?,
                a.read_register(regs::DEVICE_FEATURES + 4, 4)?,
            ];
            same("halves", halves, [whole & 0xffff_ffff, whole >> 32])
        },
    ),
    case(
        "register.limits.qps",
        "A function has QPs",
        REGISTERS,
        |rig| at_least(rig, regs::MAX_QP, 1024),
    ),
    case(
        "register.limits.message",
        "Messages of 1 MiB are possible",
        REGISTERS,
        |rig| at_least(rig, regs::MAX_MESSAGE, 1 << 20),
    ),
    case(
        "register.clock-runs-forward",
        "The clock does not run backwards",
        REGISTERS,
        |rig| {
            let a = rig.bare(Port::A)?;
            let first = a.read_register(regs::CLOCK_NS, 8)?;
            rig.pass(1000);
            holds(
                "later is not earlier",
                a.read_register(regs::CLOCK_NS, 8)? >= first,
            )
        },
    ),
    case(
        "start.unoffered-feature-refused",
        "FEATURES_OK does not stick with a feature that is not offered",
        "docs/device.md; virtio 1.2, 3.1.1",
        |rig| {
            let a = rig.bare(Port::A)?;
            a.write_register(regs::DRIVER_FEATURES, 8, 1 << 63)?;
            a.write_register(regs::STATUS, 4, regs::STATUS_FEATURES_OK.into())?;
            let status = a.read_register(regs::STATUS, 4)?;
            same(
                "FEATURES_OK",
                status & u64::from(regs::STATUS_FEATURES_OK),
                0,
            )
        },
    ),
    case(
        "start.status-bits-stay",
        "Status bits can be set, not cleared one by one",
        "docs/device.md; virtio 1.2, 2.1",
        |rig| {
            let a = rig.bare(Port::A)?;
            a.write_register(regs::STATUS, 4, regs::STATUS_ACKNOWLEDGE.into())?;
            a.write_register(regs::STATUS, 4, regs::STATUS_DRIVER.into())?;
            let both = regs::STATUS_ACKNOWLEDGE | regs::STATUS_DRIVER;
            same("STATUS", a.read_register(regs::STATUS, 4)?, both.into())
        },
    ),
    case(
        "start.bad-admin-ring-fails-the-function",
        "DRIVER_OK with admin rings outside of memory ends in FAILED, with the reason",
        REGISTERS,
        |rig| {
            let a = rig.bare(Port::A)?;
            a.write_register(regs::ADMIN_SQ_BASE, 8, 1 << 50)?;
            a.write_register(regs::ADMIN_CQ_BASE, 8, 1 << 50)?;
            a.write_register(regs::ADMIN_DEPTH, 4, 16)?;
            let status = regs::STATUS_FEATURES_OK | regs::STATUS_DRIVER_OK;
            a.write_register(regs::STATUS, 4, status.into())?;
            let seen = a.read_register(regs::STATUS, 4)?;
            holds("FAILED is set", seen & u64::from(regs::STATUS_FAILED) != 0)?;
            let syndrome = a.read_register(regs::ERROR_SYNDROME, 4)?;
            same(
                "ERROR_SYNDROME",
                syndrome,
                u64::from(Syndrome::WINDOW_GONE.0),
            )
        },
    ),
    case(
        "start.admin-registers-locked",
        "Admin registers do not change while the admin queue runs",
        REGISTERS,
        |rig| {
            let mut a = rig.client(Port::A)?;
            let before = a.read_register(regs::ADMIN_SQ_BASE, 8)?;
            // Refused or ignored, as the device likes.
            let _ = a.attachment.write_register(regs::ADMIN_SQ_BASE, 8, 64);
            same(
                "ADMIN_SQ_BASE",
                a.read_register(regs::ADMIN_SQ_BASE, 8)?,
                before,
            )?;
            a.settle()
        },
    ),
    case(
        "reset.counts-generations",
        "Each reset counts, in the register and in the summary page",
        RESET,
        |rig| {
            let a = rig.client(Port::A)?;
            let before = a.read_register(regs::RESET_GENERATION, 4)?;
            reset(&a)?;
            same(
                "register",
                a.read_register(regs::RESET_GENERATION, 4)?,
                before + 1,
            )?;
            same("summary page", u64::from(a.generation()), before + 1)
        },
    ),
    case(
        "reset.starts-again",
        "A function works again after a reset",
        RESET,
        |rig| {
            let mut a = rig.client(Port::A)?;
            a.init_qp(QpOptions::default())?;
            reset(&a)?;
            a.start()?;
            let qp = a.init_qp(QpOptions::default())?;
            a.expect_state(qp.qpn, QpState::INIT)
        },
    ),
    case(
        "reset.ends-objects",
        "Nothing that was made before a reset exists after it",
        RESET,
        |rig| {
            let mut a = rig.client(Port::A)?;
            let qp = a.init_qp(QpOptions::default())?;
            let region = a.region(64, super::super::client::full())?;
            let cqn = a.cqn(qp.send_cq)?;
            reset(&a)?;
            a.start_admin()?;
            a.named(AdminOp::QP_QUERY, qp.qpn, AdminStatus::NO_OBJECT)?;
            a.named(AdminOp::MR_DEREG, region.key, AdminStatus::NO_OBJECT)?;
            a.named(AdminOp::CQ_DESTROY, cqn, AdminStatus::NO_OBJECT)
        },
    ),
    case(
        "reset.peer-hears-of-it",
        "A connected peer hears of a reset as of a disconnect",
        RESET,
        |rig| {
            let mut pair = rig.pair()?;
            reset(&pair.a)?;
            let (_, source, _) = pair.b.event_of(EventType::CM_DISCONNECTED)?;
            same("QP of the event", source, pair.qb.qpn)?;
            pair.b.expect_state(pair.qb.qpn, QpState::ERR)
        },
    ),
    case(
        "reset.keys-are-void",
        "A peer cannot use keys of before a reset",
        RESET,
        |rig| {
            let mut pair = rig.pair()?;
            reset(&pair.b)?;
            pair.a.event_of(EventType::CM_DISCONNECTED)?;
            let wr = SendWr::inline(Opcode::RDMA_WRITE, 1, b"x").remote(pair.into.remote(0));
            pair.post(&wr);
            let wc = pair.a_wc()?;
            same("status", wc.status, WcStatus::WR_FLUSH_ERR)
        },
    ),
    case(
        "reset.windows-stay",
        "Mapped memory survives a reset",
        RESET,
        |rig| {
            let mut a = rig.client(Port::A)?;
            reset(&a)?;
            // Its rings lie in the window of before.
            a.start()?;
            a.ok(AdminOp::IDENTIFY, Body::default()).map(drop)
        },
    ),
    case(
        "reset.others-live-on",
        "A reset of one function does not touch another",
        RESET,
        |rig| {
            let a = rig.client(Port::A)?;
            let mut pair = rig.pair()?;
            reset(&a)?;
            pair.receives(1, 64);
            pair.post(&SendWr::inline(Opcode::SEND, 1, b"x"));
            pair.a_done(1).map(drop)
        },
    ),
    case(
        "hangup.peer-hears-of-it",
        "A client that hangs up leaves its peer with an event",
        RESET,
        |rig| {
            let mut pair = rig.pair()?;
            let super::super::rig::Pair { a, b, qb, .. } = &mut pair;
            drop(std::mem::replace(a, rig.bare(Port::A)?));
            let event = b.event()?;
            let known = [EventType::CM_DISCONNECTED, EventType::CM_ORPHANED];
            holds(
                "the event tells of the peer's end",
                known.contains(&event.0) && event.1 == qb.qpn,
            )
        },
    ),
];
