//! What attributes do on a connection that was made by them.

use nic_emu::device::Device;
use ring_proto::admin::{AdminOp, QpAttributes, QpModify};
use ring_proto::eqe::EventType;
use ring_proto::status::{Opcode, QpState, Syndrome, WcStatus};
use ring_proto::wqe::WqeFlags;

use super::{S, body, manual};
use crate::client::{Client, Pair, RawQp, Send, device, full, pump};

/// Two QPs joined by QP_MODIFY; `bend` changes the bodies, both sides' in turn (a's RTR, a's RTS, b's RTR, b's RTS).
pub(crate) struct Joined {
    pub(crate) device: Device,
    pub(crate) a: Client,
    pub(crate) b: Client,
    pub(crate) qa: RawQp,
    pub(crate) qb: RawQp,
}

impl Joined {
    pub(crate) fn new(bend_a: fn(&mut QpModify), bend_b: fn(&mut QpModify)) -> Self {
        let (mut device, a, b) = device();
        let mut a = Client::attach(&mut device, a);
        let mut b = Client::attach(&mut device, b);
        let (qa, qb) = (a.qp(&mut device), b.qp(&mut device));
        let (fa, fb) = (a.function.0, b.function.0);
        for (client, own, peer, bend) in [
            (&mut a, &qa, (fb, qb.qpn), bend_a),
            (&mut b, &qb, (fa, qa.qpn), bend_b),
        ] {
            for (from, to) in [(S::INIT, S::RTR), (S::RTR, S::RTS)] {
                let mask = QpAttributes::STATE | manual(from, to).unwrap().0;
                let mut wanted = body(own, to, mask, peer);
                bend(&mut wanted);
                client.ok(&mut device, AdminOp::QP_MODIFY, wanted.to_body());
            }
        }
        Self {
            device,
            a,
            b,
            qa,
            qb,
        }
    }
}

pub(crate) fn bend_nothing(_: &mut QpModify) {}

pub(crate) fn is_rtr(wanted: &QpModify) -> bool {
    wanted.state == u32::from(S::RTR.0)
}

#[test]
fn sender_keeps_the_delay_of_the_receiver() {
    // Code 24 is 40.96 ms; three retries.
    let mut joined = Joined::new(
        |b| {
            if is_rtr(b) {
                b.min_rnr_timer = 1;
            } else {
                b.rnr_retry = 3;
            }
        },
        |b| {
            if is_rtr(b) {
                b.min_rnr_timer = 24;
            }
        },
    );
    let send = Send::inline(Opcode::SEND, 8, b"x");
    joined.a.send(&mut joined.device, &mut joined.qa, &send);
    joined.device.advance(3 * 40_960_000 - 1);
    pump(&mut joined.device);
    assert_eq!(joined.a.poll(&mut joined.qa), None);
    joined.device.advance(1);
    pump(&mut joined.device);
    let wc = joined.a.poll(&mut joined.qa).unwrap();
    assert_eq!(wc.syndrome, Syndrome::RNR_EXHAUSTED);
}

#[test]
fn transport_retries_last_as_long_as_the_attributes_say() {
    // 4.096 us << 10, three times; or without end.
    for (timeout, retry_cnt, lasts_ns) in [(10, 2, Some(12_582_912)), (0, 7, None)] {
        let (mut device, a, b) = device();
        let mut a = Client::attach(&mut device, a);
        let mut b = Client::attach(&mut device, b);
        let (mut qa, qb) = (a.qp(&mut device), b.qp(&mut device));
        for (from, to) in [(S::INIT, S::RTR), (S::RTR, S::RTS)] {
            let mask = QpAttributes::STATE | manual(from, to).unwrap().0;
            let mut wanted = body(&qa, to, mask, (b.function.0, qb.qpn));
            if to == S::RTS {
                wanted.timeout = timeout;
                wanted.retry_cnt = retry_cnt;
            }
            a.ok(&mut device, AdminOp::QP_MODIFY, wanted.to_body());
        }
        a.send(&mut device, &mut qa, &Send::inline(Opcode::SEND, 1, b"hi"));
        assert_eq!(device.pump().next_timer_ns, lasts_ns);
        if let Some(lasts_ns) = lasts_ns {
            device.advance(lasts_ns);
            pump(&mut device);
            let wc = a.poll(&mut qa).unwrap();
            assert_eq!(
                (wc.status, wc.syndrome),
                (WcStatus::RETRY_EXC_ERR, Syndrome::PEER_GONE)
            );
        }
        drop(b.events());
    }
}

#[test]
pub(crate) fn reads_need_depth_at_both_ends() {
    let read_over = |joined: &mut Joined| {
        let remote = joined.b.region(&mut joined.device, 64, full());
        let local = joined.a.region(&mut joined.device, 64, full());
        let read =
            Send::new(Opcode::RDMA_READ, 1, &[local.sge(0, 64)]).remote(remote.iova, remote.key);
        joined.a.send(&mut joined.device, &mut joined.qa, &read);
        let wc = joined.a.poll(&mut joined.qa).unwrap();
        (wc.status, wc.syndrome)
    };
    let mut sound = Joined::new(
        |b| b.max_rd_atomic = b.max_rd_atomic.min(1),
        |b| {
            b.max_dest_rd_atomic = b.max_dest_rd_atomic.min(1);
        },
    );
    assert_eq!(read_over(&mut sound), (WcStatus::SUCCESS, Syndrome::NONE));

    let mut joined = Joined::new(|b| b.max_rd_atomic = 0, bend_nothing);
    assert_eq!(
        read_over(&mut joined),
        (WcStatus::LOC_QP_OP_ERR, Syndrome::NO_INITIATOR_DEPTH)
    );
    let state = joined.b.query(&mut joined.device, joined.qb.qpn);
    assert_eq!(state, Some(S::RTS), "the peer has nothing to do with it");

    let mut joined = Joined::new(bend_nothing, |b| b.max_dest_rd_atomic = 0);
    drop(joined.b.events());
    assert_eq!(
        read_over(&mut joined),
        (WcStatus::REM_INV_REQ_ERR, Syndrome::NO_RESPONDER_DEPTH)
    );
    let state = joined.b.query(&mut joined.device, joined.qb.qpn);
    assert_eq!(state, Some(S::ERR));
    let code = u32::from(Syndrome::NO_RESPONDER_DEPTH.0);
    let event = (EventType::QP_REQ_ERR, joined.qb.qpn, code);
    assert_eq!(joined.b.events(), [event]);
    // WRITEs and SENDs need none.
    let mut joined = Joined::new(|b| b.max_rd_atomic = 0, |b| b.max_dest_rd_atomic = 0);
    let remote = joined.b.region(&mut joined.device, 64, full());
    let write = Send::inline(Opcode::RDMA_WRITE, 2, b"w").remote(remote.iova, remote.key);
    joined.a.send(&mut joined.device, &mut joined.qa, &write);
    let wc = joined.a.poll(&mut joined.qa).unwrap();
    assert_eq!(wc.status, WcStatus::SUCCESS);
}

#[test]
fn a_fenced_send_sees_what_the_read_before_it_brought() {
    let mut pair = Pair::new();
    let remote = pair.b.region(&mut pair.device, 1 << 20, full());
    let local = pair.a.region(&mut pair.device, 1 << 20, full());
    pair.b.write(remote.iova, &vec![7; 1 << 20]);
    // Longer than a turn, so that the READ is under way for several rounds.
    let read =
        Send::new(Opcode::RDMA_READ, 1, &[local.sge(0, 1 << 20)]).remote(remote.iova, remote.key);
    let mut write = Send::new(Opcode::RDMA_WRITE, 2, &[local.sge((1 << 20) - 8, 8)])
        .remote(remote.iova, remote.key);
    write.head.flags |= WqeFlags::FENCE.bits();
    pair.a.write_send(&mut pair.qa, &read.blocks());
    pair.a.write_send(&mut pair.qa, &write.blocks());
    pair.a.ring_qp(&mut pair.device, &pair.qa);
    let turns = (0..100)
        .take_while(|_| {
            pair.device.pump();
            pair.b.read(remote.iova, 1) == [7] && pair.a.poll(&mut pair.qa).is_none()
        })
        .count();
    assert!(turns >= 3, "the READ takes several turns: {turns}");
    pair.pump();
    let wc = pair.a.completions(&mut pair.qa);
    assert_eq!(wc.last().unwrap().wr_id, 2);
    assert_eq!(pair.b.read(remote.iova, 8), [7; 8]);
}

// ---- communication established ----

#[test]
fn first_request_to_a_qp_in_rtr_is_told_once() {
    let (mut device, a, b) = device();
    let mut a = Client::attach(&mut device, a);
    let mut b = Client::attach(&mut device, b);
    let (mut qa, mut qb) = (a.qp(&mut device), b.qp(&mut device));
    let modify =
        |device: &mut Device, client: &mut Client, qp: &RawQp, to: QpState, peer: (u32, u32)| {
            let wanted = QpModify {
                qpn: qp.qpn,
                state: to.0.into(),
                peer_function: peer.0,
                peer_qpn: peer.1,
                rnr_retry: if to == S::RTS { 7 } else { 0 },
                ..QpModify::default()
            };
            client.ok(device, AdminOp::QP_MODIFY, wanted.to_body());
        };
    let (at_a, at_b) = ((a.function.0, qa.qpn), (b.function.0, qb.qpn));
    for round in 0..2 {
        modify(&mut device, &mut a, &qa, S::RTR, at_b);
        modify(&mut device, &mut a, &qa, S::RTS, (0, 0));
        modify(&mut device, &mut b, &qb, S::RTR, at_a);
        assert_eq!(b.events(), []);
        for _ in 0..2 {
            // No receive is there: the request has come all the same.
            a.send(&mut device, &mut qa, &Send::inline(Opcode::SEND, 1, b""));
        }
        assert_eq!(b.events(), [(EventType::COMM_EST, qb.qpn, 0)], "{round}");
        b.recv(&mut device, &mut qb, 1, &[]);
        modify(&mut device, &mut b, &qb, S::RTS, (0, 0));
        assert_eq!(b.events(), []);
        assert_eq!(a.events(), []);
        for (client, qp) in [(&mut a, &mut qa), (&mut b, &mut qb)] {
            modify(&mut device, client, qp, S::RESET, (0, 0));
            client.modify(&mut device, qp, S::INIT);
            (qp.sq_producer, qp.rq_producer) = (0, 0);
        }
        drop((a.events(), b.events()));
    }
}

#[test]
fn connection_manager_tells_of_a_connection_by_its_own_event_only() {
    let mut pair = Pair::new();
    assert_eq!((pair.a.events(), pair.b.events()), (vec![], vec![]));
    pair.a.send(
        &mut pair.device,
        &mut pair.qa,
        &Send::inline(Opcode::SEND, 1, b"x"),
    );
    assert_eq!(pair.b.events(), []);
}
