//! Receiver not ready: who waits, for how long, and what ends it.

use nic_emu::device::Device;
use ring_proto::admin::{AdminOp, QpModify};
use ring_proto::status::{Opcode, QpState, Syndrome, WcStatus};

use crate::client::{Client, Pair, RawQp, Send, device, full, pump};

fn set_rnr_retry(pair: &mut Pair, rnr_retry: u32) {
    let body = QpModify {
        qpn: pair.qa.qpn,
        state: QpState::RTS.0.into(),
        rnr_retry,
        ..QpModify::default()
    };
    pair.a
        .ok(&mut pair.device, AdminOp::QP_MODIFY, body.to_body());
}

#[test]
fn send_waits_for_a_receive_without_end_and_keeps_order() {
    let mut pair = Pair::new();
    for wr_id in 0..3 {
        pair.a.write_send(
            &mut pair.qa,
            &Send::inline(Opcode::SEND, wr_id, &[u8::try_from(wr_id).unwrap(); 4]).blocks(),
        );
    }
    pair.a.ring_qp(&mut pair.device, &pair.qa);
    pair.pump();
    pair.device.advance(3_600_000_000_000);
    pair.pump();
    assert_eq!(pair.a.completions(&mut pair.qa), []);
    let target = pair.b.region(&mut pair.device, 64, full());
    for wr_id in 0..3u64 {
        pair.b.recv(
            &mut pair.device,
            &mut pair.qb,
            wr_id,
            &[target.sge(wr_id * 4, 4)],
        );
        assert_eq!(pair.a.poll(&mut pair.qa).unwrap().wr_id, wr_id);
        assert_eq!(pair.b.poll(&mut pair.qb).unwrap().wr_id, wr_id);
        assert_eq!(pair.a.poll(&mut pair.qa), None);
    }
    assert_eq!(
        pair.b.read(target.iova, 12),
        [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    );
}

#[test]
fn waiting_costs_no_work() {
    let mut pair = Pair::new();
    pair.a.send(
        &mut pair.device,
        &mut pair.qa,
        &Send::inline(Opcode::SEND, 1, b"x"),
    );
    let pumped = pair.device.pump();
    assert_eq!((pumped.served, pumped.next_timer_ns), (0, None));
    assert!(pair.device.try_park());
}

#[test]
pub(crate) fn finite_retries_run_out() {
    for (rnr_retry, waits_ns) in [(1, 640_000), (6, 3_840_000)] {
        let mut pair = Pair::new();
        set_rnr_retry(&mut pair, rnr_retry);
        pair.a.send(
            &mut pair.device,
            &mut pair.qa,
            &Send::inline(Opcode::SEND, 8, b"x"),
        );
        let pumped = pair.device.pump();
        assert_eq!(pumped.next_timer_ns, Some(waits_ns));
        pair.device.advance(waits_ns - 1);
        pair.pump();
        assert_eq!(pair.a.completions(&mut pair.qa), []);
        pair.device.advance(1);
        pair.pump();
        let wc = pair.a.poll(&mut pair.qa).unwrap();
        assert_eq!(
            (wc.wr_id, wc.status, wc.syndrome),
            (8, WcStatus::RNR_RETRY_EXC_ERR, Syndrome::RNR_EXHAUSTED)
        );
        assert_eq!(
            pair.a.query(&mut pair.device, pair.qa.qpn),
            Some(QpState::ERR)
        );
    }
}

#[test]
fn no_retry_at_all_fails_at_once() {
    let mut pair = Pair::new();
    set_rnr_retry(&mut pair, 0);
    pair.a.send(
        &mut pair.device,
        &mut pair.qa,
        &Send::inline(Opcode::SEND, 8, b"x"),
    );
    let wc = pair.a.poll(&mut pair.qa).unwrap();
    assert_eq!(wc.status, WcStatus::RNR_RETRY_EXC_ERR);
}

#[test]
fn receive_in_time_stops_the_timer() {
    let mut pair = Pair::new();
    set_rnr_retry(&mut pair, 2);
    for round in 0..5 {
        pair.a.send(
            &mut pair.device,
            &mut pair.qa,
            &Send::inline(Opcode::SEND, round, b"x"),
        );
        pair.device.advance(1_000_000);
        let target = pair.b.region(&mut pair.device, 64, full());
        pair.b
            .recv(&mut pair.device, &mut pair.qb, round, &[target.sge(0, 64)]);
        let wc = pair.a.poll(&mut pair.qa).unwrap();
        assert_eq!((wc.wr_id, wc.status), (round, WcStatus::SUCCESS));
    }
    assert_eq!(pair.device.pump().next_timer_ns, None);
}

#[test]
pub(crate) fn waiting_send_fails_when_the_receiver_goes_to_err() {
    let mut pair = Pair::new();
    pair.a.send(
        &mut pair.device,
        &mut pair.qa,
        &Send::inline(Opcode::SEND, 8, b"x"),
    );
    let mut qb = pair.qb;
    pair.b.modify(&mut pair.device, &mut qb, QpState::ERR);
    let wc = pair.a.poll(&mut pair.qa).unwrap();
    assert_eq!(
        (wc.wr_id, wc.status, wc.syndrome),
        (8, WcStatus::RETRY_EXC_ERR, Syndrome::PEER_IN_ERROR)
    );
}

#[test]
fn rdma_write_with_imm_waits_before_it_writes() {
    let mut pair = Pair::new();
    let remote = pair.b.region(&mut pair.device, 64, full());
    let write =
        Send::inline(Opcode::RDMA_WRITE_WITH_IMM, 1, &[5; 8]).remote(remote.iova, remote.key);
    pair.a.send(&mut pair.device, &mut pair.qa, &write);
    assert_eq!(pair.b.read(remote.iova, 8), [0; 8]);
    pair.b.recv(&mut pair.device, &mut pair.qb, 1, &[]);
    assert_eq!(pair.b.read(remote.iova, 8), [5; 8]);
    assert_eq!(pair.a.poll(&mut pair.qa).unwrap().status, WcStatus::SUCCESS);
}

/// Joins two QPs by QP_MODIFY alone, as verbs users without a connection manager do.
fn to_rtr(device: &mut Device, own: &mut Client, qp: &RawQp, peer: (&Client, &RawQp)) {
    let body = QpModify {
        qpn: qp.qpn,
        state: QpState::RTR.0.into(),
        peer_function: peer.0.function.0,
        peer_qpn: peer.1.qpn,
        ..QpModify::default()
    };
    own.ok(device, AdminOp::QP_MODIFY, body.to_body());
}

fn to_rts(device: &mut Device, own: &mut Client, qp: &RawQp) {
    let body = QpModify {
        qpn: qp.qpn,
        state: QpState::RTS.0.into(),
        rnr_retry: 7,
        ..QpModify::default()
    };
    own.ok(device, AdminOp::QP_MODIFY, body.to_body());
}

#[test]
fn qps_can_be_joined_without_connection_manager() {
    let (mut device, a, b) = device();
    let mut a = Client::attach(&mut device, a);
    let mut b = Client::attach(&mut device, b);
    let (mut qa, mut qb) = (a.qp(&mut device), b.qp(&mut device));
    let target = b.region(&mut device, 64, full());
    b.recv(&mut device, &mut qb, 3, &[target.sge(0, 64)]);
    to_rtr(&mut device, &mut a, &qa, (&b, &qb));
    to_rts(&mut device, &mut a, &qa);
    // The other side is not there yet: the send waits as the transport's retries would.
    a.send(&mut device, &mut qa, &Send::inline(Opcode::SEND, 1, b"hi"));
    assert_eq!(a.poll(&mut qa), None);
    to_rtr(&mut device, &mut b, &qb, (&a, &qa));
    assert_eq!(a.poll(&mut qa).unwrap().status, WcStatus::SUCCESS);
    assert_eq!(b.poll(&mut qb).unwrap().byte_len, 2);
    assert_eq!(device.pump().next_timer_ns, None);
}

#[test]
pub(crate) fn send_to_a_peer_that_never_connects_fails_after_its_retries() {
    let (mut device, a, b) = device();
    let mut a = Client::attach(&mut device, a);
    let mut b = Client::attach(&mut device, b);
    let (mut qa, qb) = (a.qp(&mut device), b.qp(&mut device));
    to_rtr(&mut device, &mut a, &qa, (&b, &qb));
    to_rts(&mut device, &mut a, &qa);
    a.send(&mut device, &mut qa, &Send::inline(Opcode::SEND, 1, b"hi"));
    device.advance(1_000_000_000);
    pump(&mut device);
    let wc = a.poll(&mut qa).unwrap();
    assert_eq!(
        (wc.status, wc.syndrome),
        (WcStatus::RETRY_EXC_ERR, Syndrome::PEER_GONE)
    );
    drop(b.events());
}

#[test]
fn stranger_cannot_send_to_a_connected_qp() {
    let mut pair = Pair::new();
    let target = pair.b.region(&mut pair.device, 64, full());
    pair.b
        .recv(&mut pair.device, &mut pair.qb, 3, &[target.sge(0, 64)]);
    let mut stranger = pair.a.qp(&mut pair.device);
    let body = QpModify {
        qpn: stranger.qpn,
        state: QpState::RTR.0.into(),
        peer_function: pair.b.function.0,
        peer_qpn: pair.qb.qpn,
        ..QpModify::default()
    };
    pair.a
        .ok(&mut pair.device, AdminOp::QP_MODIFY, body.to_body());
    to_rts(&mut pair.device, &mut pair.a, &stranger);
    for wqe in [
        Send::inline(Opcode::SEND, 1, b"hi"),
        Send::inline(Opcode::RDMA_WRITE, 1, b"hi").remote(target.iova, target.key),
    ] {
        pair.a.send(&mut pair.device, &mut stranger, &wqe);
    }
    let wc = pair.a.poll(&mut stranger).unwrap();
    assert_eq!(
        (wc.status, wc.syndrome),
        (WcStatus::RETRY_EXC_ERR, Syndrome::PEER_GONE)
    );
    assert_eq!(pair.b.completions(&mut pair.qb), []);
    assert_eq!(pair.b.read(target.iova, 2), [0, 0]);
}
