//! QP states and what a QP in ERR does with what is posted.

use ring_proto::admin::{AdminOp, AdminStatus, QpModify};
use ring_proto::eqe::EventType;
use ring_proto::status::{Opcode, QpState, Syndrome, WcOpcode, WcStatus};

use crate::client::{Client, Pair, Send, device, full, pump, recv_wqe};

#[test]
pub(crate) fn error_flushes_everything_posted_and_all_that_follows() {
    let mut pair = Pair::new();
    let own = pair.a.region(&mut pair.device, 64, full());
    for wr_id in 100..103 {
        pair.a
            .write_recv(&mut pair.qa, recv_wqe(wr_id, &[own.sge(0, 64)]));
    }
    let mut bad = Send::new(Opcode::SEND, 1, &[own.sge(0, 8)]);
    bad.sges[0].lkey ^= 1;
    pair.a.write_send(&mut pair.qa, &bad.blocks());
    for wr_id in 2..5 {
        let wqe = Send::inline(Opcode::RDMA_WRITE, wr_id, &[0; 100]).unsignaled();
        pair.a.write_send(&mut pair.qa, &wqe.blocks());
    }
    pair.a.ring_qp(&mut pair.device, &pair.qa);
    pair.pump();
    let done: Vec<_> = pair
        .a
        .completions(&mut pair.qa)
        .iter()
        .map(|wc| (wc.wr_id, wc.status, wc.syndrome, wc.opcode, wc.wqe_counter))
        .collect();
    let flushed = |wr_id, opcode, counter| {
        (
            wr_id,
            WcStatus::WR_FLUSH_ERR,
            Syndrome::FLUSHED,
            opcode,
            counter,
        )
    };
    assert_eq!(
        done,
        [
            (
                1,
                WcStatus::LOC_PROT_ERR,
                Syndrome::LKEY_UNKNOWN,
                Opcode::SEND.0,
                1
            ),
            flushed(2, Opcode::RDMA_WRITE.0, 4),
            flushed(3, Opcode::RDMA_WRITE.0, 7),
            flushed(4, Opcode::RDMA_WRITE.0, 10),
            flushed(100, WcOpcode::RECV.0, 1),
            flushed(101, WcOpcode::RECV.0, 2),
            flushed(102, WcOpcode::RECV.0, 3),
        ]
    );
    // Posted later: flushed too.
    pair.a.recv(&mut pair.device, &mut pair.qa, 103, &[]);
    pair.a.send(
        &mut pair.device,
        &mut pair.qa,
        &Send::inline(Opcode::SEND, 5, b""),
    );
    let late: Vec<_> = pair
        .a
        .completions(&mut pair.qa)
        .iter()
        .map(|wc| (wc.wr_id, wc.status))
        .collect();
    assert_eq!(
        late,
        [(103, WcStatus::WR_FLUSH_ERR), (5, WcStatus::WR_FLUSH_ERR)]
    );
}

#[test]
fn held_send_and_fetched_receive_are_flushed_once() {
    let mut pair = Pair::new();
    pair.a.send(
        &mut pair.device,
        &mut pair.qa,
        &Send::inline(Opcode::SEND, 1, b"held"),
    );
    let mut qa = pair.qa;
    pair.a.modify(&mut pair.device, &mut qa, QpState::ERR);
    let done: Vec<_> = pair
        .a
        .completions(&mut pair.qa)
        .iter()
        .map(|wc| (wc.wr_id, wc.status))
        .collect();
    assert_eq!(done, [(1, WcStatus::WR_FLUSH_ERR)]);
    // The receiver never hears of it, also when it becomes ready now.
    let target = pair.b.region(&mut pair.device, 64, full());
    pair.b
        .recv(&mut pair.device, &mut pair.qb, 2, &[target.sge(0, 64)]);
    assert_eq!(pair.b.completions(&mut pair.qb), []);
}

#[test]
fn receive_of_a_message_cut_short_is_flushed_or_used_again() {
    let mut pair = Pair::new();
    let source = pair.a.region(&mut pair.device, 1 << 20, full());
    let target = pair.b.region(&mut pair.device, 1 << 20, full());
    pair.b
        .recv(&mut pair.device, &mut pair.qb, 2, &[target.sge(0, 1 << 20)]);
    pair.a.write_send(
        &mut pair.qa,
        &Send::new(Opcode::SEND, 1, &[source.sge(0, 1 << 20)]).blocks(),
    );
    pair.a.ring_qp(&mut pair.device, &pair.qa);
    pair.device.pump();
    assert_eq!(pair.b.poll(&mut pair.qb), None, "under way");
    let mut qb = pair.qb;
    pair.b.modify(&mut pair.device, &mut qb, QpState::ERR);
    let received = pair.b.completions(&mut pair.qb);
    assert_eq!(received.len(), 1);
    assert_eq!(
        (
            received[0].wr_id,
            received[0].status,
            received[0].wqe_counter
        ),
        (2, WcStatus::WR_FLUSH_ERR, 1)
    );
    assert_eq!(
        pair.a.poll(&mut pair.qa).unwrap().status,
        WcStatus::RETRY_EXC_ERR
    );
}

#[test]
fn flush_survives_garbage_in_the_ring() {
    let mut pair = Pair::new();
    for i in 0..40 {
        pair.qa.sq.write(i, &[u64::MAX - u64::from(i); 8]);
    }
    pair.qa.sq_producer = 40;
    pair.a.ring_qp(&mut pair.device, &pair.qa);
    pair.pump();
    let done = pair.a.completions(&mut pair.qa);
    assert_eq!(done.len(), 40);
    assert_eq!(done[0].status, WcStatus::LOC_QP_OP_ERR);
    assert!(
        done[1..]
            .iter()
            .all(|wc| wc.status == WcStatus::WR_FLUSH_ERR)
    );
    assert_eq!(done[39].wqe_counter, 40);
}

#[test]
fn doorbell_that_lies_in_err_ends_the_queue_quietly() {
    let mut pair = Pair::new();
    let mut qa = pair.qa;
    pair.a.modify(&mut pair.device, &mut qa, QpState::ERR);
    pair.qa.sq_producer = 1 << 30;
    pair.a.ring_qp(&mut pair.device, &pair.qa);
    pair.pump();
    assert_eq!(pair.a.completions(&mut pair.qa), []);
    assert_eq!(pair.a.events(), []);
}

#[test]
pub(crate) fn transitions_follow_verbs() {
    use QpState as S;
    let ok = AdminStatus::OK;
    let no = AdminStatus::BAD_STATE;
    // From, to, answer; connected states are reached by RTR with the QP itself as peer.
    let table = [
        (S::RESET, S::INIT, ok),
        (S::RESET, S::RTR, no),
        (S::RESET, S::RTS, no),
        (S::RESET, S::SQD, no),
        (S::RESET, S::ERR, ok),
        (S::INIT, S::INIT, ok),
        (S::INIT, S::RTR, ok),
        (S::INIT, S::RTS, no),
        (S::INIT, S::SQD, no),
        (S::INIT, S::ERR, ok),
        (S::INIT, S::RESET, ok),
        (S::RTR, S::INIT, no),
        (S::RTR, S::RTR, no),
        (S::RTR, S::RTS, ok),
        (S::RTR, S::SQD, no),
        (S::RTR, S::ERR, ok),
        (S::RTR, S::RESET, ok),
        (S::RTS, S::INIT, no),
        (S::RTS, S::RTR, no),
        (S::RTS, S::RTS, ok),
        (S::RTS, S::SQD, ok),
        (S::RTS, S::ERR, ok),
        (S::RTS, S::RESET, ok),
        (S::RTS, S::SQE, no),
        (S::SQD, S::RTS, ok),
        (S::SQD, S::SQD, ok),
        (S::SQD, S::INIT, no),
        (S::SQD, S::ERR, ok),
        (S::SQD, S::RESET, ok),
        (S::ERR, S::INIT, no),
        (S::ERR, S::RTR, no),
        (S::ERR, S::RTS, no),
        (S::ERR, S::ERR, ok),
        (S::ERR, S::RESET, ok),
        (S::ERR, QpState(7), no),
    ];
    let (mut device, node, _) = device();
    let mut client = Client::attach(&mut device, node);
    let qp = client.qp(&mut device);
    let function = client.function.0;
    let go = |device: &mut _, client: &mut Client, to: QpState| {
        let is_rtr = to == S::RTR;
        let body = QpModify {
            qpn: qp.qpn,
            state: to.0.into(),
            peer_function: if is_rtr { function } else { 0 },
            peer_qpn: if is_rtr { qp.qpn } else { 0 },
            ..QpModify::default()
        };
        client.status(device, AdminOp::QP_MODIFY, body.to_body())
    };
    for (from, to, answer) in table {
        assert_eq!(go(&mut device, &mut client, S::RESET), ok);
        let path: &[QpState] = match from {
            S::RESET => &[],
            S::INIT => &[S::INIT],
            S::RTR => &[S::INIT, S::RTR],
            S::RTS => &[S::INIT, S::RTR, S::RTS],
            S::SQD => &[S::INIT, S::RTR, S::RTS, S::SQD],
            _ => &[S::ERR],
        };
        for &step in path {
            assert_eq!(go(&mut device, &mut client, step), ok, "{from}: {step}");
        }
        assert_eq!(go(&mut device, &mut client, to), answer, "{from} -> {to}");
        let reached = if answer == ok { to } else { from };
        assert_eq!(client.query(&mut device, qp.qpn), Some(reached));
    }
}

#[test]
fn drained_send_queue_goes_on_where_it_stopped() {
    let mut pair = Pair::new();
    let target = pair.b.region(&mut pair.device, 64, full());
    pair.b
        .recv(&mut pair.device, &mut pair.qb, 2, &[target.sge(0, 64)]);
    let mut qa = pair.qa;
    pair.a.modify(&mut pair.device, &mut qa, QpState::SQD);
    pair.a.send(
        &mut pair.device,
        &mut pair.qa,
        &Send::inline(Opcode::SEND, 1, b"x"),
    );
    assert_eq!(pair.a.poll(&mut pair.qa), None);
    pair.a.modify(&mut pair.device, &mut qa, QpState::RTS);
    assert_eq!(pair.a.poll(&mut pair.qa).unwrap().status, WcStatus::SUCCESS);
}

#[test]
fn reset_qp_starts_from_position_zero() {
    let mut pair = Pair::new();
    let remote = pair.b.region(&mut pair.device, 64, full());
    let write = Send::inline(Opcode::RDMA_WRITE, 1, b"abc").remote(remote.iova, remote.key);
    pair.a.send(&mut pair.device, &mut pair.qa, &write);
    assert_eq!(pair.a.poll(&mut pair.qa).unwrap().wqe_counter, 1);
    let mut qa = pair.qa;
    pair.a.modify(&mut pair.device, &mut qa, QpState::RESET);
    // The peer hears of it as of a disconnect.
    assert_eq!(
        pair.b.events(),
        [(EventType::CM_DISCONNECTED, pair.qb.qpn, 0)]
    );
    pair.a.modify(&mut pair.device, &mut qa, QpState::INIT);
    pair.qa.sq_producer = 0;
    let mut qb = pair.b.qp(&mut pair.device);
    pair.b.listen(
        &mut pair.device,
        crate::client::sock(crate::client::B, 5),
        1,
    );
    crate::client::establish(
        &mut pair.device,
        (&mut pair.a, pair.qa.qpn),
        (&mut pair.b, qb.qpn),
        5,
    );
    pair.b.recv(&mut pair.device, &mut qb, 1, &[]);
    pair.a.send(
        &mut pair.device,
        &mut pair.qa,
        &Send::inline(Opcode::SEND, 2, b""),
    );
    let wc = pair.a.poll(&mut pair.qa).unwrap();
    assert_eq!((wc.wr_id, wc.wqe_counter), (2, 1));
}

#[test]
fn nothing_is_sent_before_rts() {
    let (mut device, node, _) = device();
    let mut client = Client::attach(&mut device, node);
    let mut qp = client.qp(&mut device);
    client.send(&mut device, &mut qp, &Send::inline(Opcode::SEND, 1, b"x"));
    pump(&mut device);
    assert_eq!(client.completions(&mut qp), []);
}

#[test]
pub(crate) fn disconnect_flushes_both_ends_and_tells_the_other() {
    let mut pair = Pair::new();
    let target = pair.b.region(&mut pair.device, 64, full());
    pair.b
        .recv(&mut pair.device, &mut pair.qb, 10, &[target.sge(0, 64)]);
    pair.b
        .recv(&mut pair.device, &mut pair.qb, 11, &[target.sge(0, 64)]);
    pair.a.recv(&mut pair.device, &mut pair.qa, 20, &[]);
    pair.a.send(
        &mut pair.device,
        &mut pair.qa,
        &Send::inline(Opcode::SEND, 1, b"last words"),
    );
    assert_eq!(
        pair.a
            .named(&mut pair.device, AdminOp::CM_DISCONNECT, pair.qa.qpn),
        AdminStatus::OK
    );
    let of_a: Vec<_> = pair
        .a
        .completions(&mut pair.qa)
        .iter()
        .map(|wc| (wc.wr_id, wc.status))
        .collect();
    assert_eq!(of_a, [(1, WcStatus::SUCCESS), (20, WcStatus::WR_FLUSH_ERR)]);
    let of_b: Vec<_> = pair
        .b
        .completions(&mut pair.qb)
        .iter()
        .map(|wc| (wc.wr_id, wc.status))
        .collect();
    assert_eq!(
        of_b,
        [(10, WcStatus::SUCCESS), (11, WcStatus::WR_FLUSH_ERR)]
    );
    assert_eq!(pair.a.events(), []);
    assert_eq!(
        pair.b.events(),
        [(EventType::CM_DISCONNECTED, pair.qb.qpn, 0)]
    );
    for (client, qpn) in [(&mut pair.a, pair.qa.qpn), (&mut pair.b, pair.qb.qpn)] {
        assert_eq!(client.query(&mut pair.device, qpn), Some(QpState::ERR));
        assert_eq!(
            client.named(&mut pair.device, AdminOp::CM_DISCONNECT, qpn),
            AdminStatus::BAD_STATE
        );
    }
}

#[test]
fn destroying_a_qp_disconnects_its_peer() {
    let mut pair = Pair::new();
    pair.b.recv(&mut pair.device, &mut pair.qb, 11, &[]);
    assert_eq!(
        pair.a
            .named(&mut pair.device, AdminOp::QP_DESTROY, pair.qa.qpn),
        AdminStatus::OK
    );
    assert_eq!(
        pair.b.poll(&mut pair.qb).unwrap().status,
        WcStatus::WR_FLUSH_ERR
    );
    assert_eq!(
        pair.b.events(),
        [(EventType::CM_DISCONNECTED, pair.qb.qpn, 0)]
    );
    assert_eq!(pair.a.query(&mut pair.device, pair.qa.qpn), None);
    // Its doorbell slot is free, and rings for nobody.
    pair.a.ring_qp(&mut pair.device, &pair.qa);
    pair.pump();
}
