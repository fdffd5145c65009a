//! BAR0, start, reset, detach.

use nic_emu::device::{Device, DeviceError};
use ring_proto::admin::{AdminOp, AdminStatus, Body};
use ring_proto::eqe::EventType;
use ring_proto::ids::{FunctionId, NodeId};
use ring_proto::regs;
use ring_proto::status::{Opcode, Syndrome, WcStatus};
use ring_proto::sync::Ordering;

use crate::client::{BASE, Client, Pair, Send, device, full, high, low};

#[test]
fn every_register_is_read_at_its_own_size_only() {
    let (mut device, node, _) = device();
    let f = device.attach(node).unwrap();
    for &(name, offset, len) in regs::REGISTERS {
        let read = device.read_register(f, offset, len);
        if offset == regs::KICK {
            read.unwrap_err();
            continue;
        }
        let value = read.unwrap_or_else(|error| panic!("{name}: {error}"));
        for bad in [0, 1, 2, 3, 5, 7, 16, u32::MAX] {
            device.read_register(f, offset, bad).unwrap_err();
        }
        if len == 8 {
            assert_eq!(
                device.read_register(f, offset, 4).unwrap(),
                value & 0xffff_ffff
            );
            if offset != regs::CLOCK_NS {
                assert_eq!(device.read_register(f, offset + 4, 4).unwrap(), value >> 32);
            }
        } else {
            device.read_register(f, offset, 8).unwrap_err();
        }
    }
    for offset in [1, 2, 3, 0x38, 0x70, 0xb0, 0x3fff, 0x4000, u64::MAX] {
        assert!(matches!(
            device.read_register(f, offset, 4),
            Err(DeviceError::BadRegister { .. })
        ));
    }
    let magic = device.read_register(f, regs::MAGIC, 4).unwrap();
    assert_eq!(magic, u64::from(regs::MAGIC_VALUE));
}

#[test]
fn read_only_registers_cannot_be_written() {
    let (mut device, node, _) = device();
    let f = device.attach(node).unwrap();
    let writable = [
        regs::DRIVER_FEATURES,
        regs::STATUS,
        regs::ADMIN_SQ_BASE,
        regs::ADMIN_CQ_BASE,
        regs::ADMIN_DEPTH,
        regs::KICK,
    ];
    for &(name, offset, len) in regs::REGISTERS {
        let written = device.write_register(f, offset, len, 0);
        assert_eq!(written.is_ok(), writable.contains(&offset), "{name}");
    }
    device
        .write_register(f, regs::ADMIN_DEPTH, 4, 1 << 32)
        .unwrap_err();
    device
        .write_register(f, regs::ADMIN_SQ_BASE, 8, 0x1234_5678_9abc_def0)
        .unwrap();
    device
        .write_register(f, regs::ADMIN_SQ_BASE + 4, 4, 0xffff)
        .unwrap();
    assert_eq!(
        device.read_register(f, regs::ADMIN_SQ_BASE, 8).unwrap(),
        0xffff_9abc_def0
    );
}

#[test]
fn features_beyond_the_offer_are_not_agreed() {
    let (mut device, node, _) = device();
    let f = device.attach(node).unwrap();
    device
        .write_register(f, regs::DRIVER_FEATURES, 8, regs::FEATURES | 1 << 60)
        .unwrap();
    let wish = regs::STATUS_DRIVER | regs::STATUS_FEATURES_OK;
    device
        .write_register(f, regs::STATUS, 4, wish.into())
        .unwrap();
    assert_eq!(
        device.read_register(f, regs::STATUS, 4).unwrap(),
        u64::from(regs::STATUS_DRIVER)
    );
}

fn start_with(device: &mut Device, f: FunctionId, sq: u64, cq: u64, depth: u64) -> u64 {
    device.write_register(f, regs::STATUS, 4, 0).unwrap();
    device
        .write_register(f, regs::ADMIN_SQ_BASE, 8, sq)
        .unwrap();
    device
        .write_register(f, regs::ADMIN_CQ_BASE, 8, cq)
        .unwrap();
    device
        .write_register(f, regs::ADMIN_DEPTH, 4, depth)
        .unwrap();
    device
        .write_register(f, regs::STATUS, 4, regs::STATUS_DRIVER_OK.into())
        .unwrap();
    device.read_register(f, regs::STATUS, 4).unwrap()
}

#[test]
fn bad_admin_rings_fail_the_function_until_reset() {
    let (mut device, node, _) = device();
    let client = Client::attach_bare(&mut device, node);
    let f = client.function;
    let failed = u64::from(regs::STATUS_FAILED);
    let cq = BASE + 4096;
    for (sq, cq, depth) in [
        (0, cq, 16),
        (BASE, 0, 16),
        (BASE + 8, cq, 16),
        (BASE, cq + 1, 16),
        (BASE, cq, 0),
        (BASE, cq, 3),
        (BASE, cq, 2048),
        (BASE, cq, u64::from(u32::MAX)),
        (u64::MAX - 63, cq, 16),
    ] {
        let status = start_with(&mut device, f, sq, cq, depth);
        assert_ne!(status & failed, 0, "{sq:#x} {cq:#x} {depth}");
        assert_eq!(client.bar.failed().load(Ordering::Acquire), 1);
        // Nothing but a reset helps.
        device
            .write_register(f, regs::STATUS, 4, regs::STATUS_DRIVER_OK.into())
            .unwrap();
        assert_ne!(
            device.read_register(f, regs::STATUS, 4).unwrap() & failed,
            0
        );
    }
    assert_eq!(start_with(&mut device, f, BASE, cq, 16) & failed, 0);
    assert_eq!(client.bar.failed().load(Ordering::Acquire), 0);
    // Started: the rings stand.
    device
        .write_register(f, regs::ADMIN_DEPTH, 4, 32)
        .unwrap_err();
}

#[test]
fn identify_names_function_and_node() {
    let mut pair = Pair::new();
    let result = pair
        .b
        .ok(&mut pair.device, AdminOp::IDENTIFY, Body::default());
    assert_eq!((low(result[0]), high(result[0])), (pair.b.function.0, 1));
}

#[test]
fn reset_ends_everything_and_keeps_the_windows() {
    let mut pair = Pair::new();
    let region = pair.a.region(&mut pair.device, 64, full());
    let (old_qpn, old_cqn) = (pair.qa.qpn, pair.qa.cqn);
    let before = pair
        .device
        .read_register(pair.a.function, regs::RESET_GENERATION, 4)
        .unwrap();
    pair.device.reset(pair.a.function);
    pair.pump();
    assert_eq!(
        pair.b.events(),
        [(EventType::CM_DISCONNECTED, pair.qb.qpn, 0)]
    );
    let counters = pair.device.node_counters()[0].counters;
    assert_eq!(
        (counters.qps, counters.cqs, counters.mrs, counters.listeners),
        (0, 0, 0, 0)
    );
    assert_eq!((counters.windows, counters.functions), (1, 1));
    assert_eq!(
        pair.device
            .read_register(pair.a.function, regs::RESET_GENERATION, 4)
            .unwrap(),
        before + 1
    );
    assert_eq!(
        u64::from(pair.a.bar.generation().load(Ordering::Acquire)),
        before + 1
    );
    // Doorbells of the past ring for nobody.
    pair.a.ring_qp(&mut pair.device, &pair.qa);
    pair.pump();
    pair.a.start(&mut pair.device);
    for (op, id) in [
        (AdminOp::QP_DESTROY, old_qpn),
        (AdminOp::CQ_DESTROY, old_cqn),
        (AdminOp::MR_DEREG, region.key),
    ] {
        assert_eq!(
            pair.a.named(&mut pair.device, op, id),
            AdminStatus::NO_OBJECT,
            "{op}: numbers of before name nothing"
        );
    }
    // And it works again.
    let mut qa = pair.a.qp(&mut pair.device);
    let mut qb = pair.b.qp(&mut pair.device);
    pair.b.listen(
        &mut pair.device,
        crate::client::sock(crate::client::B, 6),
        1,
    );
    crate::client::establish(
        &mut pair.device,
        (&mut pair.a, qa.qpn),
        (&mut pair.b, qb.qpn),
        6,
    );
    pair.b.recv(&mut pair.device, &mut qb, 1, &[]);
    pair.a.send(
        &mut pair.device,
        &mut qa,
        &Send::inline(Opcode::SEND, 1, b""),
    );
    assert_eq!(pair.a.poll(&mut qa).unwrap().status, WcStatus::SUCCESS);
}

#[test]
fn calls_about_functions_that_are_gone_are_refused() {
    let (mut device, node, _) = device();
    device.attach(NodeId(2)).unwrap_err();
    let f = device.attach(node).unwrap();
    device.detach(f);
    device.detach(f);
    device.reset(f);
    device.kicked(f);
    device.fire_vector(f, 0);
    for f in [f, FunctionId(0), FunctionId(99)] {
        assert_eq!(device.bar2(f).unwrap_err().errno(), libc::ENODEV);
        assert_eq!(device.kick_fd(f).unwrap_err().errno(), libc::ENODEV);
        device.read_register(f, regs::MAGIC, 4).unwrap_err();
        device.write_register(f, regs::KICK, 4, 0).unwrap_err();
        device.unmap_all(f).unwrap_err();
        device.set_vector(f, 0, None).unwrap_err();
        assert_eq!(device.node_of(f), None);
    }
    let next = device.attach(node).unwrap();
    assert_ne!(next, f, "numbers are never used again");
}

#[test]
fn kick_wakes_a_parked_device() {
    let (mut device, node, _) = device();
    let client = Client::attach_bare(&mut device, node);
    let parked = || client.bar.parked().load(Ordering::Acquire);
    assert_eq!(parked(), 1, "a new function is cold");
    device
        .write_register(client.function, regs::KICK, 4, 1)
        .unwrap();
    assert_eq!(parked(), 0);
    device.pump();
    assert!(device.try_park());
    let sleep = parked();
    assert!(sleep > 1, "a sleep has a number");
    device.unpark();
    assert_eq!(parked(), 0);
    // Idle for long: cold, while others may be hot.
    device.advance(1_000_000_000);
    device.pump();
    let cold = parked();
    assert!(
        cold > 1 && cold != sleep,
        "no number is given to two sleeps"
    );
    device.unpark();
    assert_eq!(parked(), cold, "cold functions stay parked until kicked");
    device.kicked(client.function);
    assert_eq!(parked(), 0);
    let counters = device.node_counters()[0].counters;
    assert_eq!((counters.kicks, counters.parks), (2, 1));
}

#[test]
fn doorbell_between_the_last_look_and_sleep_is_seen() {
    let mut pair = Pair::new();
    pair.device.unpark();
    pair.device.kicked(pair.a.function);
    assert!(pair.device.try_park());
    pair.device.unpark();
    // Rung while awake: no kick, but the next attempt to sleep fails.
    pair.a
        .write_send(&mut pair.qa, &Send::inline(Opcode::SEND, 1, b"").blocks());
    pair.a.ring_qp(&mut pair.device, &pair.qa);
    assert!(!pair.device.try_park());
    assert_eq!(pair.a.bar.parked().load(Ordering::Acquire), 0);
    assert_ne!(pair.device.pump().served, 0);
}

#[test]
fn syndrome_register_tells_why_a_function_failed() {
    let mut pair = Pair::new();
    pair.a.admin_producer = 1000;
    pair.a.ring_admin(&mut pair.device);
    pair.pump();
    assert_eq!(
        pair.device
            .read_register(pair.a.function, regs::ERROR_SYNDROME, 4)
            .unwrap(),
        u64::from(Syndrome::DOORBELL_OUT_OF_RANGE.0)
    );
    let syndrome = u32::from(Syndrome::DOORBELL_OUT_OF_RANGE.0);
    assert_eq!(pair.a.events(), [(EventType::DEVICE_FATAL, 0, syndrome)]);
}
