//! Completion and event queues: room, overrun, interrupts.

use std::os::fd::AsFd;

use nix::sys::eventfd::{EfdFlags, EventFd};
use ring_proto::admin::{AdminOp, AdminStatus};
use ring_proto::arm;
use ring_proto::eqe::EventType;
use ring_proto::status::{Opcode, QpState, Syndrome, WcStatus};
use ring_proto::sync::Ordering;

use crate::client::{Pair, Send, full, pump};

#[test]
pub(crate) fn cq_that_overruns_ends_its_qps_and_keeps_what_it_has() {
    let mut pair = Pair::new();
    let (cqn, slot, ring) = pair.a.cq(&mut pair.device, 4);
    let pdn = pair.a.pdn;
    let mut one = pair
        .a
        .qp_on(&mut pair.device, 64, 32, (cqn, slot, ring), full(), pdn);
    let mut other = pair
        .a
        .qp_on(&mut pair.device, 64, 32, (cqn, slot, ring), full(), pdn);
    for qp in [&mut one, &mut other] {
        pair.a.modify(&mut pair.device, qp, QpState::INIT);
    }
    let qb = pair.b.qp(&mut pair.device);
    pair.b.listen(
        &mut pair.device,
        crate::client::sock(crate::client::B, 5),
        1,
    );
    crate::client::establish(
        &mut pair.device,
        (&mut pair.a, one.qpn),
        (&mut pair.b, qb.qpn),
        5,
    );
    let remote = pair.b.region(&mut pair.device, 64, full());
    for wr_id in 0..6 {
        let write = Send::inline(Opcode::RDMA_WRITE, wr_id, b"x").remote(remote.iova, remote.key);
        pair.a.write_send(&mut one, &write.blocks());
    }
    pair.a.ring_qp(&mut pair.device, &one);
    pair.pump();
    let kept: Vec<_> = pair
        .a
        .completions(&mut one)
        .iter()
        .map(|wc| (wc.wr_id, wc.status))
        .collect();
    assert_eq!(
        kept,
        [
            (0, WcStatus::SUCCESS),
            (1, WcStatus::SUCCESS),
            (2, WcStatus::SUCCESS),
            (3, WcStatus::SUCCESS)
        ]
    );
    let overrun = u32::from(Syndrome::CQ_OVERRUN.0);
    let mut events = pair.a.events();
    assert_eq!(events.pop(), Some((EventType::CQ_ERROR, cqn, 0)));
    events.sort_by_key(|event| event.1);
    let mut expected = [
        (EventType::QP_FATAL, one.qpn, overrun),
        (EventType::QP_FATAL, other.qpn, overrun),
    ];
    expected.sort_by_key(|event| event.1);
    assert_eq!(events, expected);
    for qpn in [one.qpn, other.qpn] {
        assert_eq!(pair.a.query(&mut pair.device, qpn), Some(QpState::ERR));
    }
    // Also with room again nothing is written any more.
    pair.a.send(
        &mut pair.device,
        &mut one,
        &Send::inline(Opcode::SEND, 9, b""),
    );
    assert_eq!(pair.a.completions(&mut one), []);
    // Other CQs of the function live on.
    pair.b.recv(&mut pair.device, &mut pair.qb, 1, &[]);
    pair.a.send(
        &mut pair.device,
        &mut pair.qa,
        &Send::inline(Opcode::SEND, 9, b""),
    );
    assert_eq!(pair.a.poll(&mut pair.qa).unwrap().status, WcStatus::SUCCESS);
}

#[test]
fn consumer_that_cannot_be_true_is_an_overrun() {
    for lie in [5u32, u32::MAX, 1 << 31] {
        let mut pair = Pair::new();
        let mut small = {
            let pdn = pair.a.pdn;
            pair.a.qp_with(&mut pair.device, 64, 32, 4, full(), pdn)
        };
        for wr_id in 0..5 {
            pair.a
                .write_recv(&mut small, crate::client::recv_wqe(wr_id, &[]));
        }
        pair.a
            .bar
            .line(small.cq_slot)
            .cq_consumer()
            .store(lie, Ordering::Release);
        pair.a.ring_qp(&mut pair.device, &small);
        pair.a.modify(&mut pair.device, &mut small, QpState::ERR);
        pump(&mut pair.device);
        assert!(
            pair.a
                .events()
                .iter()
                .any(|event| event.0 == EventType::CQ_ERROR),
            "consumer {lie:#x}"
        );
    }
}

#[test]
fn cq_in_use_cannot_be_destroyed() {
    let mut pair = Pair::new();
    let (cqn, qpn) = (pair.qa.cqn, pair.qa.qpn);
    assert_eq!(
        pair.a.named(&mut pair.device, AdminOp::CQ_DESTROY, cqn),
        AdminStatus::BUSY
    );
    pair.a.named(&mut pair.device, AdminOp::QP_DESTROY, qpn);
    assert_eq!(
        pair.a.named(&mut pair.device, AdminOp::CQ_DESTROY, cqn),
        AdminStatus::OK
    );
    assert_eq!(
        pair.a.named(&mut pair.device, AdminOp::CQ_DESTROY, cqn),
        AdminStatus::NO_OBJECT
    );
}

/// Dials node b on port 5 and cancels.
fn dial_and_cancel(pair: &mut Pair, qpn: u32) {
    let status = pair.a.connect(
        &mut pair.device,
        qpn,
        crate::client::sock(crate::client::A, 1),
        crate::client::sock(crate::client::B, 5),
        0,
        b"",
    );
    assert_eq!(status, AdminStatus::OK);
    pair.a.named(&mut pair.device, AdminOp::CM_CANCEL, qpn);
}

#[test]
fn events_wait_for_room_and_none_is_lost() {
    let mut pair = Pair::new();
    // 256 entries fit. Each round makes a request and its withdrawal; then requests stay.
    pair.b.listen(
        &mut pair.device,
        crate::client::sock(crate::client::B, 5),
        1000,
    );
    let qp = pair.a.qp(&mut pair.device);
    for _ in 0..120 {
        dial_and_cancel(&mut pair, qp.qpn);
    }
    let mut waiting = Vec::new();
    for _ in 0..40 {
        let pdn = pair.a.pdn;
        let qp = pair.a.qp_with(&mut pair.device, 1, 1, 1, full(), pdn);
        pair.a.connect(
            &mut pair.device,
            qp.qpn,
            crate::client::sock(crate::client::A, 1),
            crate::client::sock(crate::client::B, 5),
            0,
            b"",
        );
        waiting.push(qp);
    }
    let mut seen = pair.b.events();
    assert_eq!(seen.len(), 256);
    // Without a doorbell the device looks again by itself.
    pair.device.advance(10_000_000);
    pair.pump();
    seen.extend(pair.b.events());
    assert_eq!(seen.len(), 2 * 120 + 40);
    let first = seen[0].2;
    let expected = (0..120)
        .flat_map(|n| [(EventType::CM_REQUEST, n), (EventType::CM_WITHDRAWN, n)])
        .chain((120..160).map(|n| (EventType::CM_REQUEST, n)));
    for (event, (kind, round)) in seen.iter().zip(expected) {
        assert_eq!((event.0, event.2), (kind, first + round));
    }
}

#[test]
fn dialling_without_end_cannot_fill_the_queue_of_a_client_that_looks_away() {
    let mut pair = Pair::new();
    pair.b.listen(
        &mut pair.device,
        crate::client::sock(crate::client::B, 5),
        8,
    );
    let qp = pair.a.qp(&mut pair.device);
    for _ in 0..1000 {
        dial_and_cancel(&mut pair, qp.qpn);
    }
    // Each request that the ring took is withdrawn; of the others b never hears.
    let mut seen = pair.b.events();
    pair.device.advance(10_000_000);
    pair.pump();
    seen.extend(pair.b.events());
    let count = |kind| seen.iter().filter(|event| event.0 == kind).count();
    assert_eq!(count(EventType::CM_REQUEST), count(EventType::CM_WITHDRAWN));
    assert!(seen.len() <= 2 * 256);
}

pub(crate) fn vector(pair: &mut Pair, index: u8) -> EventFd {
    let fd = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK).unwrap();
    let ours = fd.as_fd().try_clone_to_owned().unwrap();
    pair.device
        .set_vector(pair.b.function, index, Some(ours))
        .unwrap();
    fd
}

#[test]
fn armed_vectors_fire_once_each_and_only_when_armed() {
    let mut pair = Pair::new();
    let (three, five) = (vector(&mut pair, 3), vector(&mut pair, 5));
    let (bar, slot) = (pair.b.bar, pair.qb.cq_slot);
    let arm = |bit: u32| {
        let line = bar.line(slot);
        arm::arm(line.arm_vectors(), line.arm_sequence(), 0, 1 << bit);
    };
    let message = |pair: &mut Pair, count| {
        for _ in 0..count {
            pair.b
                .write_recv(&mut pair.qb, crate::client::recv_wqe(0, &[]));
            pair.a
                .write_send(&mut pair.qa, &Send::inline(Opcode::SEND, 0, b"").blocks());
        }
        pair.b.ring_qp(&mut pair.device, &pair.qb);
        pair.a.ring_qp(&mut pair.device, &pair.qa);
        pump(&mut pair.device);
        pair.a.completions(&mut pair.qa);
        pair.b.completions(&mut pair.qb);
    };
    message(&mut pair, 1);
    assert!(
        three.read().is_err() && five.read().is_err(),
        "nobody armed"
    );
    arm(3);
    arm(5);
    message(&mut pair, 10);
    assert_eq!(three.read(), Ok(1), "once per batch");
    assert_eq!(five.read(), Ok(1));
    message(&mut pair, 1);
    assert!(
        three.read().is_err() && five.read().is_err(),
        "disarmed by firing"
    );
    // A bit without a vector harms nobody.
    arm(63);
    arm(3);
    message(&mut pair, 1);
    assert_eq!(three.read(), Ok(1));
}

#[test]
fn full_vector_does_not_block_the_device() {
    let mut pair = Pair::new();
    let fd = EventFd::from_flags(EfdFlags::empty()).unwrap();
    fd.write(u64::MAX - 1).unwrap();
    let ours = fd.as_fd().try_clone_to_owned().unwrap();
    pair.device
        .set_vector(pair.b.function, 0, Some(ours))
        .unwrap();
    pair.device.fire_vector(pair.b.function, 0);
    assert_eq!(fd.read(), Ok(u64::MAX - 1));
    pair.device.fire_vector(pair.b.function, 64);
    pair.device.fire_vector(pair.b.function, 255);
    assert!(pair.device.set_vector(pair.b.function, 64, None).is_err());
}

#[test]
fn event_queue_fires_its_vectors_too() {
    let mut pair = Pair::new();
    let fd = vector(&mut pair, 1);
    // The EQ has the first slot that the client gave out.
    let line = pair.b.bar.line(1);
    arm::arm(line.arm_vectors(), line.arm_sequence(), 0, 2);
    pair.a
        .named(&mut pair.device, AdminOp::QP_DESTROY, pair.qa.qpn);
    assert_eq!(fd.read(), Ok(1));
}
