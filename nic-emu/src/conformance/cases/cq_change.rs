//! Cases about changing a completion queue that lives: CQ_RESIZE and CQ_MODERATE.
//!
//! Place: see [`super`]. Source: IBTA vol. 1, 11.2.6.4 (resize); `ibv_resize_cq(3)`, `ibv_modify_cq(3)` (moderation); docs/device.md.

use ring_proto::admin::{AdminOp, AdminStatus, CqModerate, CqResize, Refusal};
use ring_proto::eqe::EventType;
use ring_proto::status::{Opcode, QpState, Syndrome, WcStatus};
use ring_proto::wqe::WqeFlags;

use super::super::client::{CqId, QpOptions};
use super::super::rig::{Pair, Rig};
use super::super::wr::SendWr;
use super::super::{Case, Outcome, case, same};

const RESIZE: &str = "IBTA 11.2.6.4; ibv_resize_cq(3)";
const MODERATE: &str = "ibv_modify_cq(3), moderate; docs/device.md, `CqModerate`";
/// Bytes of a CQE.
const CQE_LEN: usize = 32;
/// A period that passes in no case that does not wait for it.
const LONG_US: u16 = u16::MAX;

/// A pair whose b has a receive CQ of this depth.
fn pair(rig: &Rig<'_>, cq_depth: u32) -> Outcome<Pair> {
    let of_b = QpOptions {
        cq_depth,
        ..QpOptions::default()
    };
    rig.pair_with(QpOptions::default(), of_b, 7)
}

/// Messages with these numbers, which b receives under them.
fn messages(pair: &mut Pair, from: u64, count: u64) -> Outcome {
    for n in from..from + count {
        let sge = pair.into.sge(0, 64);
        pair.b.recv(&mut pair.qb, n, &[sge]);
        pair.post(&SendWr::inline(Opcode::SEND, n, b"x"));
        pair.a_done(n)?;
    }
    Ok(())
}

/// b takes exactly these.
fn taken(pair: &mut Pair, from: u64, count: u64) -> Outcome {
    let (_, cq) = pair.cqs();
    for n in from..from + count {
        same("wr_id", pair.b.wc(cq)?.wr_id, n)?;
    }
    pair.b.no_wc(cq)
}

/// A resize that succeeds.
fn resized(pair: &mut Pair, depth: u32) -> Outcome {
    let (_, cq) = pair.cqs();
    let (status, why) = pair.b.resize(cq, depth)?;
    same("answer and reason", (status, why), (AdminStatus::OK, 0))
}

/// A resize that is refused.
fn not_resized(pair: &mut Pair, depth: u32, wanted: (AdminStatus, Syndrome)) -> Outcome {
    let (_, cq) = pair.cqs();
    let (status, why) = pair.b.resize(cq, depth)?;
    let seen = (status, Refusal::unpack(why).syndrome);
    same("answer and reason", seen, wanted)
}

/// CQ_MODERATE of b's CQ.
fn moderate(pair: &mut Pair, count: u16, period_us: u16) -> Outcome<(AdminStatus, Syndrome)> {
    let (_, cq) = pair.cqs();
    let cqn = pair.b.cqn(cq)?;
    let body = CqModerate {
        cqn,
        count,
        period_us,
    };
    let (status, [why, _]) = pair.b.admin(AdminOp::CQ_MODERATE, body.to_body())?;
    Ok((status, Refusal::unpack(why).syndrome))
}

fn moderated(pair: &mut Pair, count: u16, period_us: u16) -> Outcome {
    let seen = moderate(pair, count, period_us)?;
    same("answer", seen, (AdminStatus::OK, Syndrome::NONE))
}

/// b's CQ.
fn cq(pair: &Pair) -> CqId {
    pair.cqs().1
}

pub(super) const CASES: &[Case] = &[
    case(
        "cq.resize.grows-with-its-entries",
        "A CQ that grows keeps the completions in it and takes more than before",
        RESIZE,
        |rig| {
            let mut pair = pair(rig, 16)?;
            messages(&mut pair, 100, 10)?;
            resized(&mut pair, 64)?;
            messages(&mut pair, 110, 40)?;
            taken(&mut pair, 100, 50)
        },
    ),
    case(
        "cq.resize.shrinks-with-its-entries",
        "A CQ that shrinks keeps the completions in it",
        RESIZE,
        |rig| {
            let mut pair = pair(rig, 64)?;
            messages(&mut pair, 100, 8)?;
            resized(&mut pair, 8)?;
            taken(&mut pair, 100, 8)?;
            messages(&mut pair, 200, 8)?;
            taken(&mut pair, 200, 8)
        },
    ),
    case(
        "cq.resize.after-laps",
        "A CQ is resized at any position",
        RESIZE,
        |rig| {
            let mut pair = pair(rig, 16)?;
            for round in 0..5 {
                messages(&mut pair, 100 * round, 9)?;
                taken(&mut pair, 100 * round, 9)?;
            }
            messages(&mut pair, 1000, 5)?;
            resized(&mut pair, 8)?;
            messages(&mut pair, 1005, 3)?;
            taken(&mut pair, 1000, 8)?;
            resized(&mut pair, 128)?;
            messages(&mut pair, 2000, 20)?;
            taken(&mut pair, 2000, 20)
        },
    ),
    case(
        "cq.resize.old-ring-is-left-alone",
        "After a resize no completion goes to the old ring",
        RESIZE,
        |rig| {
            let mut pair = pair(rig, 16)?;
            let old = pair.b.cq_iova(cq(&pair))?;
            messages(&mut pair, 100, 2)?;
            resized(&mut pair, 32)?;
            let before = pair.b.memory.read(old, 16 * CQE_LEN)?;
            messages(&mut pair, 102, 20)?;
            let behind = pair.b.memory.read(old, 16 * CQE_LEN)?;
            same("bytes of the old ring", behind, before)?;
            taken(&mut pair, 100, 22)
        },
    ),
    case(
        "cq.resize.armed-stays-armed",
        "A CQ that was armed before its resize fires after it",
        RESIZE,
        |rig| {
            let mut pair = pair(rig, 16)?;
            let vector = pair.b.vector(3)?;
            let cq = cq(&pair);
            pair.b.arm(cq, 1 << 3)?;
            resized(&mut pair, 32)?;
            messages(&mut pair, 100, 1)?;
            same("times", pair.b.fired(&vector)?, 1)
        },
    ),
    case(
        "cq.resize.too-small-refused",
        "A CQ does not shrink below the completions in it, and stays as it was",
        RESIZE,
        |rig| {
            let mut pair = pair(rig, 64)?;
            messages(&mut pair, 100, 9)?;
            let wanted = (AdminStatus::INVALID, Syndrome::CQ_TOO_SMALL);
            not_resized(&mut pair, 8, wanted)?;
            messages(&mut pair, 109, 20)?;
            taken(&mut pair, 100, 29)
        },
    ),
    case(
        "cq.resize.onto-itself-refused",
        "The new ring lies apart from the old one",
        "docs/device.md, `CqResize`",
        |rig| {
            let mut pair = pair(rig, 16)?;
            let cqn = pair.b.cqn(cq(&pair))?;
            let ring = pair.b.cq_iova(cq(&pair))?;
            for at in [ring, ring + 64] {
                let body = CqResize {
                    ring: at,
                    cqn,
                    depth: 16,
                };
                let (status, [why, _]) = pair.b.admin(AdminOp::CQ_RESIZE, body.to_body())?;
                let seen = (status, Refusal::unpack(why).syndrome);
                let wanted = (AdminStatus::INVALID, Syndrome::CQ_RINGS_OVERLAP);
                same("answer and reason", seen, wanted)?;
            }
            messages(&mut pair, 100, 8)
        },
    ),
    case(
        "cq.resize.bad-depth-refused",
        "Depths are powers of two above 0",
        RESIZE,
        |rig| {
            let mut pair = pair(rig, 16)?;
            let cqn = pair.b.cqn(cq(&pair))?;
            let ring = pair.b.memory.alloc(4096)?;
            for depth in [0, 48, 1 << 31] {
                let body = CqResize { ring, cqn, depth };
                pair.b
                    .refuse(AdminOp::CQ_RESIZE, body.to_body(), AdminStatus::INVALID)?;
            }
            Ok(())
        },
    ),
    case(
        "cq.resize.unknown-refused",
        "A CQ that does not exist cannot be resized",
        RESIZE,
        |rig| {
            let mut pair = pair(rig, 16)?;
            let body = CqResize {
                ring: pair.b.memory.alloc(4096)?,
                cqn: pair.b.cqn(cq(&pair))? ^ 1,
                depth: 16,
            };
            pair.b
                .refuse(AdminOp::CQ_RESIZE, body.to_body(), AdminStatus::NO_OBJECT)
        },
    ),
    case(
        "cq.resize.ring-outside-windows-refused",
        "Rings lie in memory that the client has mapped",
        "docs/device.md, `CqResize`",
        |rig| {
            let mut pair = pair(rig, 16)?;
            let body = CqResize {
                ring: 0x40,
                cqn: pair.b.cqn(cq(&pair))?,
                depth: 16,
            };
            pair.b
                .refuse(AdminOp::CQ_RESIZE, body.to_body(), AdminStatus::BAD_ADDRESS)
        },
    ),
    case(
        "cq.resize.broken-refused",
        "A CQ that overran cannot be resized",
        "IBTA 11.6.3.2; docs/device.md, `CqResize`",
        |rig| {
            let mut pair = pair(rig, 8)?;
            for n in 0..9 {
                let sge = pair.into.sge(0, 64);
                pair.b.recv(&mut pair.qb, n, &[sge]);
                pair.post(&SendWr::inline(Opcode::SEND, n, b"x").unsignaled());
            }
            pair.b.event_of(EventType::CQ_ERROR)?;
            let wanted = (AdminStatus::BAD_STATE, Syndrome::CQ_BROKEN);
            not_resized(&mut pair, 64, wanted)
        },
    ),
    case(
        "cq.moderate.waits-for-the-count",
        "A moderated CQ fires after so many completions",
        MODERATE,
        |rig| {
            let mut pair = pair(rig, 64)?;
            let vector = pair.b.vector(3)?;
            moderated(&mut pair, 4, LONG_US)?;
            let cq = cq(&pair);
            pair.b.arm(cq, 1 << 3)?;
            messages(&mut pair, 100, 3)?;
            rig.while_time_stands(|| pair.b.not_fired(&vector))?;
            messages(&mut pair, 103, 1)?;
            same("times", pair.b.fired(&vector)?, 1)
        },
    ),
    case(
        "cq.moderate.waits-for-the-period",
        "A moderated CQ fires at the end of its period, for fewer completions too",
        MODERATE,
        |rig| {
            let mut pair = pair(rig, 64)?;
            let vector = pair.b.vector(3)?;
            moderated(&mut pair, 100, 500)?;
            let cq = cq(&pair);
            pair.b.arm(cq, 1 << 3)?;
            messages(&mut pair, 100, 2)?;
            rig.while_time_stands(|| pair.b.not_fired(&vector))?;
            rig.pass(500_000);
            same("times", pair.b.fired(&vector)?, 1)
        },
    ),
    case(
        "cq.moderate.period-alone",
        "Without a count only the period holds interrupts back",
        MODERATE,
        |rig| {
            let mut pair = pair(rig, 64)?;
            let vector = pair.b.vector(3)?;
            moderated(&mut pair, 0, 500)?;
            let cq = cq(&pair);
            pair.b.arm(cq, 1 << 3)?;
            messages(&mut pair, 100, 20)?;
            rig.while_time_stands(|| pair.b.not_fired(&vector))?;
            rig.pass(500_000);
            same("times", pair.b.fired(&vector)?, 1)
        },
    ),
    case(
        "cq.moderate.completions-are-not-held-back",
        "Moderation holds interrupts back, not completions",
        MODERATE,
        |rig| {
            let mut pair = pair(rig, 64)?;
            moderated(&mut pair, 100, LONG_US)?;
            messages(&mut pair, 100, 2)?;
            taken(&mut pair, 100, 2)
        },
    ),
    case(
        "cq.moderate.holds-solicited-back",
        "A CQ armed for solicited completions is moderated too",
        MODERATE,
        |rig| {
            let mut pair = pair(rig, 64)?;
            let vector = pair.b.vector(3)?;
            moderated(&mut pair, 100, 500)?;
            let cq = cq(&pair);
            pair.b.arm_solicited(cq, 1 << 3)?;
            pair.receives(1, 64);
            pair.post(&SendWr::inline(Opcode::SEND, 1, b"x").flags(WqeFlags::SOLICITED));
            pair.a_done(1)?;
            rig.while_time_stands(|| pair.b.not_fired(&vector))?;
            rig.pass(500_000);
            same("times", pair.b.fired(&vector)?, 1)
        },
    ),
    case(
        "cq.moderate.off-lets-go",
        "Moderation that is switched off lets a waiting interrupt go",
        MODERATE,
        |rig| {
            let mut pair = pair(rig, 64)?;
            let vector = pair.b.vector(3)?;
            moderated(&mut pair, 100, LONG_US)?;
            let cq = cq(&pair);
            pair.b.arm(cq, 1 << 3)?;
            messages(&mut pair, 100, 1)?;
            moderated(&mut pair, 0, 0)?;
            same("times", pair.b.fired(&vector)?, 1)
        },
    ),
    case(
        "cq.moderate.errors-come-too",
        "The interrupt for an error completion comes at the end of the period at the latest",
        MODERATE,
        |rig| {
            let mut pair = pair(rig, 64)?;
            let vector = pair.b.vector(3)?;
            moderated(&mut pair, 100, 500)?;
            pair.receives(1, 64);
            let cq = cq(&pair);
            pair.b.arm(cq, 1 << 3)?;
            pair.b.modify(pair.qb.qpn, QpState::ERR)?;
            rig.pass(500_000);
            same("times", pair.b.fired(&vector)?, 1)?;
            same("status", pair.b_wc()?.status, WcStatus::WR_FLUSH_ERR)
        },
    ),
    case(
        "cq.moderate.count-without-period-refused",
        "A count without a period is refused: the last completion might never be told",
        "docs/device.md, `CqModerate`",
        |rig| {
            let mut pair = pair(rig, 64)?;
            let seen = moderate(&mut pair, 4, 0)?;
            let wanted = (AdminStatus::INVALID, Syndrome::MODERATION_ENDLESS);
            same("answer and reason", seen, wanted)
        },
    ),
    case(
        "cq.moderate.unknown-refused",
        "A CQ that does not exist cannot be moderated",
        MODERATE,
        |rig| {
            let mut pair = pair(rig, 64)?;
            let body = CqModerate {
                cqn: pair.b.cqn(cq(&pair))? ^ 1,
                count: 1,
                period_us: 1,
            };
            pair.b
                .refuse(AdminOp::CQ_MODERATE, body.to_body(), AdminStatus::NO_OBJECT)
        },
    ),
];
