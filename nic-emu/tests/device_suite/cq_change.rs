//! CQs that change and who hears of them: resize, overrun, solicited arms, moderation.

use std::os::fd::AsFd;

use nix::sys::eventfd::{EfdFlags, EventFd};
use ring_proto::admin::{AdminOp, AdminStatus, CqModerate, CqResize, Refusal};
use ring_proto::arm;
use ring_proto::eqe::EventType;
use ring_proto::status::{Opcode, QpState, Syndrome, WcStatus};
use ring_proto::sync::Ordering;
use ring_proto::wqe::WqeFlags;

use crate::client::{Pair, Send, full, pump, recv_wqe};

// ---- resize ----

/// Posts `count` unreceived messages of consecutive numbers into the CQ of b's receives.
fn messages(pair: &mut Pair, from: u64, count: u64) {
    for wr_id in from..from + count {
        pair.b.write_recv(&mut pair.qb, recv_wqe(wr_id, &[]));
        let send = Send::inline(Opcode::SEND, 0, b"").unsignaled();
        pair.a.write_send(&mut pair.qa, &send.blocks());
        pair.b.ring_qp(&mut pair.device, &pair.qb);
        pair.a.ring_qp(&mut pair.device, &pair.qa);
        pump(&mut pair.device);
    }
}

/// Resizes the CQ of b's QP; its ring is taken over when that worked.
fn resize(pair: &mut Pair, depth: u32) -> (AdminStatus, Syndrome) {
    let ring = pair.b.alloc(u64::from(depth.max(2)) * 32);
    let body = CqResize {
        ring,
        cqn: pair.qb.cqn,
        depth,
    };
    let (status, result) = pair
        .b
        .admin(&mut pair.device, AdminOp::CQ_RESIZE, body.to_body());
    if status == AdminStatus::OK {
        pair.qb.cq = pair.b.ring(ring, depth);
    }
    (status, Refusal::unpack(result[0]).syndrome)
}

fn numbers(pair: &mut Pair, count: usize) -> Vec<u64> {
    (0..count)
        .map(|_| pair.b.poll(&mut pair.qb).unwrap().wr_id)
        .collect()
}

/// A pair whose receiving CQ has `depth` entries.
fn with_cq(depth: u32) -> Pair {
    let mut pair = Pair::new();
    assert_eq!(resize(&mut pair, depth).0, AdminStatus::OK);
    pair
}

#[test]
fn entries_survive_growing_and_shrinking() {
    let mut pair = with_cq(8);
    let (mut sent, mut seen) = (0, 0);
    // Several laps, so that positions and phases of old and new ring never agree by chance.
    for (depth, post, take) in [
        (8, 5, 3),
        (16, 10, 4),
        (8, 0, 2),
        (64, 20, 26),
        (4, 3, 0),
        (4, 1, 4),
        (2, 2, 1),
        (1, 0, 0),
        (32, 30, 31),
        (32, 25, 25),
        (1, 1, 1),
    ] {
        assert_eq!(
            resize(&mut pair, depth),
            (AdminStatus::OK, Syndrome::NONE),
            "to {depth} with {} waiting",
            sent - seen
        );
        messages(&mut pair, sent, post);
        sent += post;
        let expected: Vec<_> = (seen..seen + take).collect();
        let count = usize::try_from(take).unwrap();
        assert_eq!(numbers(&mut pair, count), expected, "of {depth}");
        seen += take;
        if sent == seen {
            assert_eq!(pair.b.poll(&mut pair.qb), None);
        }
    }
    assert_eq!(pair.b.events(), []);
}

#[test]
pub(crate) fn new_ring_must_hold_what_waits_exactly() {
    let mut pair = with_cq(16);
    messages(&mut pair, 0, 5);
    let too_small = (AdminStatus::INVALID, Syndrome::CQ_TOO_SMALL);
    assert_eq!(resize(&mut pair, 4), too_small);
    assert_eq!(numbers(&mut pair, 1), [0]);
    assert_eq!(resize(&mut pair, 4).0, AdminStatus::OK);
    assert_eq!(numbers(&mut pair, 4), [1, 2, 3, 4]);
    assert_eq!(pair.b.poll(&mut pair.qb), None);
}

#[test]
fn consumer_that_lies_drops_nothing_at_a_resize() {
    let mut pair = with_cq(16);
    messages(&mut pair, 0, 5);
    // Ahead of what was written: not believed, so all five are moved, and four have no room.
    let line = pair.b.bar.line(pair.qb.cq_slot);
    line.cq_consumer().store(1000, Ordering::Release);
    assert_eq!(resize(&mut pair, 4).1, Syndrome::CQ_TOO_SMALL);
    assert_eq!(resize(&mut pair, 8).0, AdminStatus::OK);
    assert_eq!(numbers(&mut pair, 5), [0, 1, 2, 3, 4]);
}

#[test]
pub(crate) fn each_bad_field_of_cq_resize_has_its_status() {
    let mut pair = with_cq(16);
    let ring = pair.b.alloc(16 * 32);
    let good = CqResize {
        ring,
        cqn: pair.qb.cqn,
        depth: 16,
    };
    for (body, expected) in [
        (CqResize { cqn: 0, ..good }, AdminStatus::NO_OBJECT),
        (
            CqResize {
                cqn: good.cqn ^ 1,
                ..good
            },
            AdminStatus::NO_OBJECT,
        ),
        (CqResize { depth: 0, ..good }, AdminStatus::INVALID),
        (CqResize { depth: 3, ..good }, AdminStatus::INVALID),
        (
            CqResize {
                depth: 1 << 17,
                ..good
            },
            AdminStatus::INVALID,
        ),
        (CqResize { ring: 64, ..good }, AdminStatus::BAD_ADDRESS),
    ] {
        let status = pair
            .b
            .status(&mut pair.device, AdminOp::CQ_RESIZE, body.to_body());
        assert_eq!(status, expected, "{body:?}");
    }
    let unaligned = CqResize {
        ring: ring + 8,
        ..good
    };
    let status = pair
        .b
        .status(&mut pair.device, AdminOp::CQ_RESIZE, unaligned.to_body());
    assert_ne!(status, AdminStatus::OK);
    // Onto itself, and a little beside itself on either side.
    pair.b
        .ok(&mut pair.device, AdminOp::CQ_RESIZE, good.to_body());
    pair.qb.cq = pair.b.ring(ring, 16);
    for offset in [0u64, 64, 16 * 32 - 64] {
        for at in [ring + offset, ring - offset] {
            let body = CqResize { ring: at, ..good };
            let (status, result) =
                pair.b
                    .admin(&mut pair.device, AdminOp::CQ_RESIZE, body.to_body());
            assert_eq!(status, AdminStatus::INVALID, "{offset}");
            let syndrome = Refusal::unpack(result[0]).syndrome;
            assert_eq!(syndrome, Syndrome::CQ_RINGS_OVERLAP);
        }
    }
    messages(&mut pair, 7, 1);
    assert_eq!(numbers(&mut pair, 1), [7]);
}

#[test]
pub(crate) fn overrun_comes_with_the_first_entry_too_many_and_ends_resizing() {
    let mut pair = with_cq(4);
    messages(&mut pair, 0, 4);
    assert_eq!(numbers(&mut pair, 1), [0]);
    // One place is free again, and full is not overrun.
    messages(&mut pair, 4, 1);
    assert_eq!(pair.b.events(), []);
    let state = pair.b.query(&mut pair.device, pair.qb.qpn);
    assert_eq!(state, Some(QpState::RTS));
    messages(&mut pair, 5, 1);
    let code = u32::from(Syndrome::CQ_OVERRUN.0);
    assert_eq!(
        pair.b.events(),
        [
            (EventType::QP_FATAL, pair.qb.qpn, code),
            (EventType::CQ_ERROR, pair.qb.cqn, 0)
        ]
    );
    assert_eq!(numbers(&mut pair, 4), [1, 2, 3, 4]);
    assert_eq!(pair.b.poll(&mut pair.qb), None);
    let broken = (AdminStatus::BAD_STATE, Syndrome::CQ_BROKEN);
    assert_eq!(resize(&mut pair, 64), broken);
}

#[test]
fn consumer_ahead_of_the_producer_makes_no_room() {
    let mut pair = with_cq(4);
    messages(&mut pair, 0, 4);
    let line = pair.b.bar.line(pair.qb.cq_slot);
    line.cq_consumer().store(5, Ordering::Release);
    messages(&mut pair, 4, 1);
    let last = pair.b.events().pop();
    assert_eq!(last, Some((EventType::CQ_ERROR, pair.qb.cqn, 0)));
}

// ---- interrupts ----

fn vector(pair: &mut Pair, index: u8) -> EventFd {
    let fd = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK).unwrap();
    let ours = fd.as_fd().try_clone_to_owned().unwrap();
    pair.device
        .set_vector(pair.b.function, index, Some(ours))
        .unwrap();
    fd
}

fn arm_all(pair: &Pair, bit: u32) {
    let line = pair.b.bar.line(pair.qb.cq_slot);
    arm::arm(line.arm_vectors(), line.arm_sequence(), 0, 1 << bit);
}

fn arm_solicited(pair: &Pair, bit: u32) {
    let line = pair.b.bar.line(pair.qb.cq_slot);
    arm::arm(line.arm_solicited(), line.arm_sequence(), 0, 1 << bit);
}

fn fired(fd: &EventFd) -> u64 {
    fd.read().unwrap_or(0)
}

fn message(pair: &mut Pair, opcode: Opcode, is_solicited: bool) {
    pair.b.write_recv(&mut pair.qb, recv_wqe(0, &[]));
    pair.b.ring_qp(&mut pair.device, &pair.qb);
    let mut send = Send::inline(opcode, 0, b"");
    if is_solicited {
        send.head.flags |= WqeFlags::SOLICITED.bits();
    }
    pair.a.send(&mut pair.device, &mut pair.qa, &send);
    pair.a.completions(&mut pair.qa);
}

#[test]
fn solicited_arm_fires_for_solicited_messages_and_errors_only() {
    let mut pair = Pair::new();
    let (all, solicited) = (vector(&mut pair, 3), vector(&mut pair, 5));
    arm_all(&pair, 3);
    arm_solicited(&pair, 5);
    message(&mut pair, Opcode::SEND, false);
    assert_eq!((fired(&all), fired(&solicited)), (1, 0));
    message(&mut pair, Opcode::SEND, false);
    assert_eq!((fired(&all), fired(&solicited)), (0, 0), "one is disarmed");
    arm_all(&pair, 3);
    message(&mut pair, Opcode::SEND, true);
    assert_eq!((fired(&all), fired(&solicited)), (1, 1));
    message(&mut pair, Opcode::SEND, true);
    assert_eq!((fired(&all), fired(&solicited)), (0, 0), "both disarmed");
    for opcode in [Opcode::SEND_WITH_IMM, Opcode::RDMA_WRITE_WITH_IMM] {
        arm_solicited(&pair, 5);
        message(&mut pair, opcode, false);
        assert_eq!(fired(&solicited), 0, "{opcode}");
        message(&mut pair, opcode, true);
        assert_eq!(fired(&solicited), 1, "{opcode}");
    }
    // A WRITE tells the other side nothing, solicited or not.
    arm_solicited(&pair, 5);
    let remote = pair.b.region(&mut pair.device, 64, full());
    let mut write = Send::inline(Opcode::RDMA_WRITE, 0, b"x").remote(remote.iova, remote.key);
    write.head.flags |= WqeFlags::SOLICITED.bits();
    pair.a.send(&mut pair.device, &mut pair.qa, &write);
    assert_eq!(fired(&solicited), 0);
    // An error does.
    let mut qb = pair.qb;
    pair.b.write_recv(&mut qb, recv_wqe(1, &[]));
    pair.b.ring_qp(&mut pair.device, &qb);
    pair.b.modify(&mut pair.device, &mut qb, QpState::ERR);
    assert_eq!(fired(&solicited), 1);
}

#[test]
fn solicited_message_in_a_batch_of_others_fires_once() {
    let mut pair = Pair::new();
    let solicited = vector(&mut pair, 5);
    arm_solicited(&pair, 5);
    for index in 0..10 {
        pair.b.write_recv(&mut pair.qb, recv_wqe(0, &[]));
        let mut send = Send::inline(Opcode::SEND, 0, b"");
        if index == 4 {
            send.head.flags |= WqeFlags::SOLICITED.bits();
        }
        pair.a.write_send(&mut pair.qa, &send.blocks());
    }
    pair.b.ring_qp(&mut pair.device, &pair.qb);
    pair.a.ring_qp(&mut pair.device, &pair.qa);
    pump(&mut pair.device);
    assert_eq!(fired(&solicited), 1);
}

fn moderate(pair: &mut Pair, count: u16, period_us: u16) {
    let body = CqModerate {
        cqn: pair.qb.cqn,
        count,
        period_us,
    };
    pair.b
        .ok(&mut pair.device, AdminOp::CQ_MODERATE, body.to_body());
}

#[test]
fn moderated_interrupt_comes_after_the_count() {
    let mut pair = Pair::new();
    let fd = vector(&mut pair, 3);
    moderate(&mut pair, 3, 1000);
    pair.device.advance(1_000_000);
    pair.pump();
    for _ in 0..4 {
        arm_all(&pair, 3);
        for _ in 0..2 {
            message(&mut pair, Opcode::SEND, false);
            assert_eq!(fired(&fd), 0);
            assert!(pair.device.try_park(), "holding back costs no work");
            pair.device.unpark();
        }
        message(&mut pair, Opcode::SEND, false);
        assert_eq!(fired(&fd), 1);
    }
    // Nothing is left that would come later.
    pair.device.advance(10_000_000);
    pair.pump();
    assert_eq!(fired(&fd), 0);
    assert_eq!(pair.device.pump().next_timer_ns, None);
}

#[test]
fn moderated_interrupt_comes_after_the_period() {
    for count in [0, 100] {
        let mut pair = Pair::new();
        let fd = vector(&mut pair, 3);
        moderate(&mut pair, count, 50);
        pair.device.advance(50_000);
        pair.pump();
        for _ in 0..3 {
            arm_all(&pair, 3);
            let start = pair.device.now_ns();
            message(&mut pair, Opcode::SEND, false);
            assert_eq!(pair.device.pump().next_timer_ns, Some(start + 50_000));
            pair.device.advance(30_000);
            message(&mut pair, Opcode::SEND, false);
            pair.device.advance(19_999);
            pair.pump();
            assert_eq!(fired(&fd), 0);
            pair.device.advance(1);
            pair.pump();
            assert_eq!(fired(&fd), 1, "the period begins with the first entry");
            assert_eq!(pair.device.pump().next_timer_ns, None);
        }
    }
}

#[test]
fn solicited_arm_is_moderated_too_and_switching_off_lets_go() {
    let mut pair = Pair::new();
    let (all, solicited) = (vector(&mut pair, 3), vector(&mut pair, 5));
    moderate(&mut pair, 0, 50);
    pair.device.advance(50_000);
    pair.pump();
    arm_solicited(&pair, 5);
    message(&mut pair, Opcode::SEND, true);
    message(&mut pair, Opcode::SEND, false);
    assert_eq!(fired(&solicited), 0);
    // Armed after the entries: it hears of them all the same.
    arm_all(&pair, 3);
    moderate(&mut pair, 0, 0);
    assert_eq!((fired(&all), fired(&solicited)), (1, 1));
    arm_all(&pair, 3);
    message(&mut pair, Opcode::SEND, false);
    assert_eq!(fired(&all), 1, "at once, as before");
    assert_eq!(pair.device.pump().next_timer_ns, None);
}

#[test]
pub(crate) fn moderation_that_could_hold_for_ever_is_refused() {
    let mut pair = Pair::new();
    let body = CqModerate {
        cqn: pair.qb.cqn,
        count: 1,
        period_us: 0,
    };
    let (status, result) = pair
        .b
        .admin(&mut pair.device, AdminOp::CQ_MODERATE, body.to_body());
    assert_eq!(status, AdminStatus::INVALID);
    let syndrome = Refusal::unpack(result[0]).syndrome;
    assert_eq!(syndrome, Syndrome::MODERATION_ENDLESS);
    let body = CqModerate { cqn: 0, ..body };
    let status = pair
        .b
        .status(&mut pair.device, AdminOp::CQ_MODERATE, body.to_body());
    assert_eq!(status, AdminStatus::NO_OBJECT);
}

#[test]
fn cq_that_goes_while_its_interrupt_waits_leaves_nothing() {
    let mut pair = Pair::new();
    let fd = vector(&mut pair, 3);
    moderate(&mut pair, 0, 50);
    arm_all(&pair, 3);
    message(&mut pair, Opcode::SEND, false);
    let (qpn, cqn) = (pair.qb.qpn, pair.qb.cqn);
    pair.b.named(&mut pair.device, AdminOp::QP_DESTROY, qpn);
    pair.b.named(&mut pair.device, AdminOp::CQ_DESTROY, cqn);
    pair.device.advance(1_000_000);
    pair.pump();
    assert_eq!(fired(&fd), 0);
    assert_eq!(pair.device.pump().next_timer_ns, None);
    let statuses: Vec<_> = pair.a.completions(&mut pair.qa);
    assert!(statuses.iter().all(|wc| wc.status == WcStatus::SUCCESS));
}
