//! Holders, last closes, orphans.

use nic_emu::device::Device;
use ring_proto::admin::{
    AdminOp, AdminStatus, HOLD_LISTENER, HOLD_QP, HoldClone, RELEASE_UNLESS_LAST,
};
use ring_proto::arm;
use ring_proto::eqe::{CmStatus, EventType};
use ring_proto::ids::HolderSlot;
use ring_proto::status::{Opcode, QpState, Syndrome, WcStatus};
use ring_proto::sync::Ordering;

use crate::client::{A, B, Client, Pair, Region, Send, device, full, pump, sock};
use crate::completion::vector;

const MINUTE: u64 = 60_000_000_000;

fn read_back(pair: &mut Pair, remote: &Region) -> (WcStatus, Syndrome) {
    let own = pair.b.region(&mut pair.device, 64, full());
    let read = Send::new(Opcode::RDMA_READ, 50, &[own.sge(0, 5)]).remote(remote.iova, remote.key);
    pair.b.send(&mut pair.device, &mut pair.qb, &read);
    let wc = pair.b.poll(&mut pair.qb).expect("the READ completed");
    if wc.status == WcStatus::SUCCESS {
        assert_eq!(pair.b.read(own.iova, 5), b"bytes");
    }
    (wc.status, wc.syndrome)
}

/// A pair whose a has five bytes in a region of its QP's own.
fn with_bytes() -> (Pair, Region) {
    let mut pair = Pair::new();
    let pdn = pair.a.pdn;
    let region = pair
        .a
        .region_of(&mut pair.device, 64, full(), pdn, pair.qa.qpn);
    pair.a.write(region.iova, b"bytes");
    (pair, region)
}

fn orphans(device: &Device) -> u64 {
    device
        .node_counters()
        .iter()
        .map(|node| node.counters.orphans)
        .sum()
}

#[test]
fn slot_zero_is_live_from_the_start() {
    let (mut device, node, _) = device();
    let client = Client::attach_bare(&mut device, node);
    let generation = |slot| client.bar.holder_generation(slot).load(Ordering::Acquire);
    assert_eq!((generation(0), generation(1)), (1, 0));
    device
        .hold_process(client.function, HolderSlot(0), 1)
        .unwrap();
    for (slot, generation) in [(0, 0), (0, 2), (1, 0), (1, 1), (u32::MAX, 1)] {
        device
            .hold_process(client.function, HolderSlot(slot), generation)
            .unwrap_err();
    }
}

#[test]
fn killed_owner_leaves_an_orphan_that_serves_reads() {
    let (mut pair, region) = with_bytes();
    pair.device.drop_holder(pair.a.function, HolderSlot(0), 1);
    pump(&mut pair.device);
    assert_eq!(pair.b.events(), [(EventType::CM_ORPHANED, pair.qb.qpn, 0)]);
    assert_eq!(pair.b.completions(&mut pair.qb), []);
    assert_eq!(orphans(&pair.device), 1);
    assert_eq!(
        read_back(&mut pair, &region),
        (WcStatus::SUCCESS, Syndrome::NONE)
    );
    // What it posted is not sent any more.
    pair.b.recv(&mut pair.device, &mut pair.qb, 9, &[]);
    pair.a.send(
        &mut pair.device,
        &mut pair.qa,
        &Send::inline(Opcode::SEND, 1, b""),
    );
    assert_eq!(pair.b.completions(&mut pair.qb), []);
    assert_eq!(pair.a.completions(&mut pair.qa), []);
    // The peer closes: nothing is left.
    pair.b
        .named(&mut pair.device, AdminOp::QP_DESTROY, pair.qb.qpn);
    assert_eq!(orphans(&pair.device), 0);
}

#[test]
fn detached_function_serves_reads_until_its_peer_disconnects() {
    let (mut pair, region) = with_bytes();
    pair.device.detach(pair.a.function);
    pump(&mut pair.device);
    assert!(pair.device.bar2(pair.a.function).is_err());
    let counters = pair.device.node_counters()[0].counters;
    assert_eq!(
        (counters.functions, counters.orphans, counters.windows),
        (0, 1, 1)
    );
    assert_eq!(
        read_back(&mut pair, &region),
        (WcStatus::SUCCESS, Syndrome::NONE)
    );
    pair.b
        .named(&mut pair.device, AdminOp::CM_DISCONNECT, pair.qb.qpn);
    let counters = pair.device.node_counters()[0].counters;
    assert_eq!(
        (
            counters.qps,
            counters.orphans,
            counters.windows,
            counters.mrs
        ),
        (0, 0, 0, 0)
    );
}

#[test]
fn orphan_is_freed_after_a_minute() {
    let (mut pair, _) = with_bytes();
    pair.device.detach(pair.a.function);
    pump(&mut pair.device);
    pair.b.events();
    pair.device.advance(MINUTE - 1);
    pump(&mut pair.device);
    assert_eq!((pair.b.events(), orphans(&pair.device)), (vec![], 1));
    pair.device.advance(1);
    pump(&mut pair.device);
    assert_eq!(
        pair.b.events(),
        [(EventType::CM_DISCONNECTED, pair.qb.qpn, 0)]
    );
    assert_eq!(orphans(&pair.device), 0);
    assert_eq!(pair.device.node_counters()[0].counters.windows, 0);
    assert_eq!(
        pair.b.query(&mut pair.device, pair.qb.qpn),
        Some(QpState::ERR)
    );
}

#[test]
fn sends_that_wait_for_an_orphan_do_not_keep_the_reads_from_it() {
    let (mut pair, region) = with_bytes();
    for wr_id in 0..3 {
        pair.b.write_send(
            &mut pair.qb,
            &Send::inline(Opcode::SEND, wr_id, b"too late").blocks(),
        );
    }
    pair.b.ring_qp(&mut pair.device, &pair.qb);
    pair.pump();
    assert_eq!(pair.b.completions(&mut pair.qb), [], "nobody receives");
    pair.device.detach(pair.a.function);
    pump(&mut pair.device);
    let done: Vec<_> = pair
        .b
        .completions(&mut pair.qb)
        .iter()
        .map(|wc| (wc.wr_id, wc.status))
        .collect();
    assert_eq!(
        done,
        [
            (0, WcStatus::SUCCESS),
            (1, WcStatus::SUCCESS),
            (2, WcStatus::SUCCESS)
        ]
    );
    assert_eq!(
        read_back(&mut pair, &region),
        (WcStatus::SUCCESS, Syndrome::NONE)
    );
}

#[test]
fn writes_to_an_orphan_change_nothing_and_bad_reads_fail_the_reader_only() {
    let (mut pair, region) = with_bytes();
    pair.device.detach(pair.a.function);
    pump(&mut pair.device);
    let write = Send::inline(Opcode::RDMA_WRITE, 1, b"other").remote(region.iova, region.key);
    pair.b.send(&mut pair.device, &mut pair.qb, &write);
    assert_eq!(pair.b.poll(&mut pair.qb).unwrap().status, WcStatus::SUCCESS);
    assert_eq!(
        read_back(&mut pair, &region),
        (WcStatus::SUCCESS, Syndrome::NONE)
    );
    let wrong = Region {
        key: region.key ^ 1,
        ..region
    };
    assert_eq!(
        read_back(&mut pair, &wrong),
        (WcStatus::REM_ACCESS_ERR, Syndrome::RKEY_UNKNOWN)
    );
}

#[test]
fn pair_of_orphans_ends_at_once() {
    let (mut pair, _) = with_bytes();
    pair.device.detach(pair.a.function);
    pair.device.detach(pair.b.function);
    pump(&mut pair.device);
    assert_eq!(orphans(&pair.device), 0);
    assert!(pair.device.node_counters().iter().all(|node| {
        let c = node.counters;
        (c.qps, c.windows, c.mrs, c.functions, c.cqs) == (0, 0, 0, 0, 0)
    }));
}

#[test]
fn qp_without_peer_or_in_err_leaves_no_orphan() {
    let (mut pair, _) = with_bytes();
    let lonely = pair.a.qp(&mut pair.device);
    let mut qa = pair.qa;
    pair.a.modify(&mut pair.device, &mut qa, QpState::ERR);
    pair.device.drop_holder(pair.a.function, HolderSlot(0), 1);
    pump(&mut pair.device);
    assert_eq!(orphans(&pair.device), 0);
    assert_eq!(
        pair.b.events(),
        [(EventType::CM_DISCONNECTED, pair.qb.qpn, 0)]
    );
    for qpn in [lonely.qpn, pair.qa.qpn] {
        assert_eq!(pair.a.query(&mut pair.device, qpn), None);
    }
}

#[test]
fn clone_holds_what_its_origin_holds() {
    let (mut pair, _) = with_bytes();
    let (slot, generation) = pair.a.clone_holder(&mut pair.device, 0);
    assert_eq!((slot, generation), (1, 1));
    let published = |pair: &Pair| pair.a.bar.holder_generation(1).load(Ordering::Acquire);
    assert_eq!(published(&pair), 1);
    pair.device
        .hold_process(pair.a.function, HolderSlot(slot), generation)
        .unwrap();
    // The origin ends; the clone still answers.
    pair.device.drop_holder(pair.a.function, HolderSlot(0), 1);
    pump(&mut pair.device);
    assert_eq!(pair.b.events(), []);
    assert_eq!(
        pair.a.query(&mut pair.device, pair.qa.qpn),
        Some(QpState::RTS)
    );
    pair.device
        .drop_holder(pair.a.function, HolderSlot(slot), generation);
    pump(&mut pair.device);
    assert_eq!(pair.b.events(), [(EventType::CM_ORPHANED, pair.qb.qpn, 0)]);
    assert_eq!(published(&pair), 0);
    // The slot comes back with another generation, and the old one changes nothing.
    let body = HoldClone {
        from: 0,
        reserved: 0,
    };
    assert_eq!(
        pair.a
            .status(&mut pair.device, AdminOp::HOLD_CLONE, body.to_body()),
        AdminStatus::NO_OBJECT,
        "slot 0 has ended"
    );
}

#[test]
fn stale_generation_changes_nothing() {
    let (mut pair, _) = with_bytes();
    let (slot, first) = pair.a.clone_holder(&mut pair.device, 0);
    pair.device
        .drop_holder(pair.a.function, HolderSlot(slot), first);
    let (again, second) = pair.a.clone_holder(&mut pair.device, 0);
    assert_eq!(again, slot);
    assert_ne!(second, first);
    pair.device
        .drop_holder(pair.a.function, HolderSlot(slot), first);
    pair.device
        .drop_holder(pair.a.function, HolderSlot(slot), 0);
    assert_eq!(
        pair.a.bar.holder_generation(slot).load(Ordering::Acquire),
        second
    );
}

#[test]
fn hundred_processes_hold_one_qp() {
    let (mut pair, _) = with_bytes();
    let clones: Vec<_> = (0..100)
        .map(|_| pair.a.clone_holder(&mut pair.device, 0))
        .collect();
    for &(slot, generation) in &clones[1..] {
        pair.device
            .drop_holder(pair.a.function, HolderSlot(slot), generation);
    }
    pair.device.drop_holder(pair.a.function, HolderSlot(0), 1);
    pump(&mut pair.device);
    assert_eq!(pair.b.events(), []);
    let (slot, generation) = clones[0];
    pair.device
        .drop_holder(pair.a.function, HolderSlot(slot), generation);
    pump(&mut pair.device);
    assert_eq!(pair.b.events(), [(EventType::CM_ORPHANED, pair.qb.qpn, 0)]);
}

#[test]
fn clone_that_is_never_born_ends_after_its_origin() {
    let (mut pair, _) = with_bytes();
    pair.a.clone_holder(&mut pair.device, 0);
    pair.device.drop_holder(pair.a.function, HolderSlot(0), 1);
    pump(&mut pair.device);
    assert_eq!(pair.b.events(), []);
    pair.device.advance(10_000_000_000);
    pump(&mut pair.device);
    assert_eq!(pair.b.events(), [(EventType::CM_ORPHANED, pair.qb.qpn, 0)]);
}

#[test]
fn clone_that_speaks_in_time_lives_on() {
    let (mut pair, _) = with_bytes();
    let (slot, generation) = pair.a.clone_holder(&mut pair.device, 0);
    pair.device.drop_holder(pair.a.function, HolderSlot(0), 1);
    pair.device
        .hold_process(pair.a.function, HolderSlot(slot), generation)
        .unwrap();
    pair.device.advance(10_000_000_000);
    pump(&mut pair.device);
    assert_eq!(pair.b.events(), []);
}

#[test]
fn release_counts_down_and_the_last_one_closes() {
    let (mut pair, region) = with_bytes();
    let (slot, _) = pair.a.clone_holder(&mut pair.device, 0);
    let qpn = pair.qa.qpn;
    let device = &mut pair.device;
    let mut release = |slot, flags| {
        pair.a
            .hold(device, AdminOp::RELEASE, qpn, HOLD_QP, slot, flags)
    };
    assert_eq!(release(7, 0).0, AdminStatus::NO_OBJECT);
    assert_eq!(release(slot, 2).0, AdminStatus::INVALID);
    assert_eq!(release(slot, RELEASE_UNLESS_LAST), (AdminStatus::OK, 1));
    assert_eq!(release(slot, 0).0, AdminStatus::NO_OBJECT);
    assert_eq!(release(0, RELEASE_UNLESS_LAST).0, AdminStatus::BUSY);
    assert_eq!(release(0, 0), (AdminStatus::OK, 0));
    assert_eq!(release(0, 0).0, AdminStatus::NO_OBJECT);
    assert_eq!(pair.b.events(), [(EventType::CM_ORPHANED, pair.qb.qpn, 0)]);
    assert_eq!(
        read_back(&mut pair, &region),
        (WcStatus::SUCCESS, Syndrome::NONE)
    );
}

#[test]
fn bad_holds_are_refused() {
    let (mut pair, _) = with_bytes();
    let qpn = pair.qa.qpn;
    let listener = pair.a.listen(&mut pair.device, sock(A, 5), 1);
    let device = &mut pair.device;
    let mut hold =
        |id, kind, slot, flags| pair.a.hold(device, AdminOp::HOLD, id, kind, slot, flags).0;
    assert_eq!(hold(qpn, HOLD_QP, 1, 0), AdminStatus::NO_OBJECT);
    assert_eq!(hold(qpn ^ 1, HOLD_QP, 0, 0), AdminStatus::NO_OBJECT);
    assert_eq!(hold(qpn, 2, 0, 0), AdminStatus::INVALID);
    assert_eq!(hold(qpn, HOLD_QP, 0, listener), AdminStatus::BAD_STATE);
    assert_eq!(hold(listener, HOLD_LISTENER, 0, 1), AdminStatus::INVALID);
    assert_eq!(
        hold(listener ^ 1, HOLD_LISTENER, 0, 0),
        AdminStatus::NO_OBJECT
    );
    assert_eq!(hold(qpn, HOLD_QP, 0, 0), AdminStatus::OK);
    assert_eq!(hold(listener, HOLD_LISTENER, 0, 0), AdminStatus::OK);
}

/// A QP of b, accepted for its listener, and the QP of a at its other end.
fn accepted_for_listener() -> (Pair, u32, u32, u32) {
    let mut pair = Pair::new();
    let listener = pair.b.listen(&mut pair.device, sock(B, 80), 8);
    let qa = pair.a.qp(&mut pair.device);
    let qb = pair.b.qp(&mut pair.device);
    pair.a
        .connect(&mut pair.device, qa.qpn, sock(A, 1), sock(B, 80), 0, b"");
    let request = pair.b.event().unwrap().2;
    assert_eq!(
        pair.b.accept(&mut pair.device, request, qb.qpn, listener),
        AdminStatus::OK
    );
    pair.a.events();
    (pair, listener, qa.qpn, qb.qpn)
}

#[test]
fn accepted_qp_is_held_by_its_listener_until_taken() {
    let (mut pair, listener, qa, qb) = accepted_for_listener();
    let (slot, generation) = pair.b.clone_holder(&mut pair.device, 0);
    let function = pair.b.function;
    pair.device
        .hold_process(function, HolderSlot(slot), generation)
        .unwrap();
    let device = &mut pair.device;
    let mut hold = |from| {
        pair.b
            .hold(device, AdminOp::HOLD, qb, HOLD_QP, slot, from)
            .0
    };
    assert_eq!(hold(listener ^ 1), AdminStatus::BAD_STATE);
    assert_eq!(hold(listener), AdminStatus::OK);
    assert_eq!(hold(listener), AdminStatus::BAD_STATE);
    // Taken: the listener may go.
    pair.b
        .named(&mut pair.device, AdminOp::CM_UNLISTEN, listener);
    assert_eq!(pair.b.query(&mut pair.device, qb), Some(QpState::RTS));
    assert_eq!(pair.a.events(), []);
    // Held by the taker alone.
    pair.device
        .drop_holder(function, HolderSlot(slot), generation);
    pump(&mut pair.device);
    assert_eq!(pair.a.events(), [(EventType::CM_ORPHANED, qa, 0)]);
}

#[test]
fn listener_keeps_an_accepted_qp_that_a_passing_holder_leaves() {
    let (mut pair, _, qa, qb) = accepted_for_listener();
    let device = &mut pair.device;
    let mut both = |op| pair.b.hold(device, op, qb, HOLD_QP, 0, 0);
    assert_eq!(both(AdminOp::HOLD).0, AdminStatus::OK);
    assert_eq!(both(AdminOp::RELEASE), (AdminStatus::OK, 0));
    assert_eq!(pair.b.query(&mut pair.device, qb), Some(QpState::RTS));
    assert_eq!(pair.a.query(&mut pair.device, qa), Some(QpState::RTS));
    assert_eq!(pair.a.events(), []);
}

#[test]
fn accepted_qps_that_nobody_took_go_with_their_listener() {
    for way in 0..3 {
        let (mut pair, listener, qa, qb) = accepted_for_listener();
        match way {
            0 => {
                pair.b
                    .named(&mut pair.device, AdminOp::CM_UNLISTEN, listener);
            }
            1 => {
                pair.b.hold(
                    &mut pair.device,
                    AdminOp::RELEASE,
                    listener,
                    HOLD_LISTENER,
                    0,
                    0,
                );
            }
            _ => {
                pair.device.drop_holder(pair.b.function, HolderSlot(0), 1);
                pump(&mut pair.device);
            }
        }
        let mut events = pair.a.events();
        events.retain(|event| event.1 == qa);
        assert_eq!(events, [(EventType::CM_DISCONNECTED, qa, 0)], "way {way}");
        assert_eq!(pair.b.query(&mut pair.device, qb), None);
    }
}

#[test]
fn listener_ends_with_its_last_holder() {
    let (mut device, a, b) = device();
    let mut a = Client::attach(&mut device, a);
    let mut b = Client::attach(&mut device, b);
    b.listen(&mut device, sock(B, 80), 8);
    let (slot, generation) = b.clone_holder(&mut device, 0);
    device
        .hold_process(b.function, HolderSlot(slot), generation)
        .unwrap();
    device.drop_holder(b.function, HolderSlot(0), 1);
    let qp = a.qp(&mut device);
    a.connect(&mut device, qp.qpn, sock(A, 1), sock(B, 80), 0, b"");
    assert_eq!(b.events().len(), 1, "the clone listens on");
    device.drop_holder(b.function, HolderSlot(slot), generation);
    pump(&mut device);
    assert_eq!(
        a.events(),
        [(EventType::CM_REJECTED, qp.qpn, CmStatus::REJECTED.0)]
    );
    a.connect(&mut device, qp.qpn, sock(A, 1), sock(B, 80), 0, b"");
    assert_eq!(
        a.events(),
        [(EventType::CM_REJECTED, qp.qpn, CmStatus::NO_LISTENER.0)]
    );
}

#[test]
fn connect_of_a_killed_process_is_withdrawn() {
    let (mut device, a, b) = device();
    let mut a = Client::attach(&mut device, a);
    let mut b = Client::attach(&mut device, b);
    let listener = b.listen(&mut device, sock(B, 80), 8);
    let qp = a.qp(&mut device);
    a.connect(&mut device, qp.qpn, sock(A, 1), sock(B, 80), 0, b"");
    let request = b.event().unwrap().2;
    device.detach(a.function);
    pump(&mut device);
    assert_eq!(b.events(), [(EventType::CM_WITHDRAWN, listener, request)]);
    assert_eq!(device.node_counters()[0].counters.qps, 0);
}

#[test]
fn regression_who_shares_a_listener_is_woken_when_another_holder_leaves_it() {
    for is_killed in [false, true] {
        let mut pair = Pair::new();
        let listener = pair.b.listen(&mut pair.device, sock(B, 80), 8);
        let (slot, generation) = pair.b.clone_holder(&mut pair.device, 0);
        let fired = vector(&mut pair, 3);
        let line = pair.b.bar.line(pair.b.event_slot);
        arm::arm(line.arm_vectors(), line.arm_sequence(), 0, 1 << 3);
        pump(&mut pair.device);
        fired.read().unwrap_err();
        if is_killed {
            let function = pair.b.function;
            pair.device
                .drop_holder(function, HolderSlot(slot), generation);
        } else {
            let released = pair.b.hold(
                &mut pair.device,
                AdminOp::RELEASE,
                listener,
                HOLD_LISTENER,
                slot,
                0,
            );
            assert_eq!(released.0, AdminStatus::OK);
        }
        pump(&mut pair.device);
        assert_eq!(fired.read(), Ok(1), "killed: {is_killed}");
        assert_eq!(pair.b.events(), [], "a wake-up without an element");
    }
}
