//! SQD: the send queue drains, and says so once.

use nic_emu::device::LinkParameters;
use ring_proto::admin::{AdminOp, AdminStatus, Named, QpAttributes, QpModify, Refusal};
use ring_proto::eqe::EventType;
use ring_proto::ids::NodeId;
use ring_proto::status::{Opcode, Syndrome, WcStatus};

use super::effects::{Joined, bend_nothing, is_rtr};
use super::{S, to};
use crate::client::{Pair, Send, full, pump};

// ---- SQD ----

pub(crate) fn sqd(pair: &mut Pair, notify: bool) {
    let qa = pair.qa;
    let wanted = QpModify {
        qpn: qa.qpn,
        state: S::SQD.0.into(),
        attributes: (QpAttributes::STATE | QpAttributes::EN_SQD_ASYNC_NOTIFY).bits(),
        sqd_event: u8::from(notify),
        ..QpModify::default()
    };
    to(pair, &qa, wanted);
}

pub(crate) fn rts(pair: &mut Pair) {
    let qa = pair.qa;
    let wanted = QpModify {
        qpn: qa.qpn,
        state: S::RTS.0.into(),
        attributes: QpAttributes::STATE.bits(),
        ..QpModify::default()
    };
    to(pair, &qa, wanted);
}

fn is_draining(pair: &mut Pair) -> bool {
    let named = Named {
        id: pair.qa.qpn,
        reserved: 0,
    };
    let [first, _] = pair
        .a
        .ok(&mut pair.device, AdminOp::QP_QUERY, named.to_body());
    first >> 8 & 1 == 1
}

#[test]
pub(crate) fn send_queue_drains_what_is_under_way_and_holds_the_rest() {
    let mut pair = Pair::new();
    let target = pair.b.region(&mut pair.device, 64, full());
    // The first send is under way: it waits for a receive.
    for wr_id in 1..=3 {
        let send = Send::inline(Opcode::SEND, wr_id, b"x");
        pair.a.write_send(&mut pair.qa, &send.blocks());
    }
    pair.a.ring_qp(&mut pair.device, &pair.qa);
    pair.pump();
    sqd(&mut pair, true);
    assert!(is_draining(&mut pair));
    assert_eq!(pair.a.events(), []);
    let wanted = QpModify {
        qpn: pair.qa.qpn,
        state: S::SQD.0.into(),
        attributes: (QpAttributes::STATE | QpAttributes::TIMEOUT).bits(),
        timeout: 1,
        ..QpModify::default()
    };
    let (status, result) = pair
        .a
        .admin(&mut pair.device, AdminOp::QP_MODIFY, wanted.to_body());
    assert_eq!(status, AdminStatus::BAD_STATE);
    assert_eq!(Refusal::unpack(result[0]).syndrome, Syndrome::SQ_DRAINING);
    for wr_id in 1..=3 {
        pair.b
            .recv(&mut pair.device, &mut pair.qb, wr_id, &[target.sge(0, 64)]);
    }
    let done: Vec<_> = pair.a.completions(&mut pair.qa);
    assert_eq!(done.iter().map(|wc| wc.wr_id).collect::<Vec<_>>(), [1]);
    assert_eq!(pair.a.events(), [(EventType::SQ_DRAINED, pair.qa.qpn, 0)]);
    assert!(!is_draining(&mut pair));
    let qa = pair.qa;
    to(&mut pair, &qa, wanted);
    // Posting goes on and nothing runs; receives are served.
    pair.a.send(
        &mut pair.device,
        &mut pair.qa,
        &Send::inline(Opcode::SEND, 4, b"y"),
    );
    let back = pair.a.region(&mut pair.device, 64, full());
    pair.a
        .recv(&mut pair.device, &mut pair.qa, 9, &[back.sge(0, 64)]);
    pair.b.send(
        &mut pair.device,
        &mut pair.qb,
        &Send::inline(Opcode::SEND, 5, b"z"),
    );
    let done: Vec<_> = pair.a.completions(&mut pair.qa);
    assert_eq!(done.iter().map(|wc| wc.wr_id).collect::<Vec<_>>(), [9]);
    rts(&mut pair);
    let done: Vec<_> = pair.a.completions(&mut pair.qa);
    assert_eq!(done.iter().map(|wc| wc.wr_id).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(pair.a.events(), []);
}

#[test]
fn empty_queue_has_drained_at_once_and_only_who_asked_hears_of_it() {
    let mut pair = Pair::new();
    sqd(&mut pair, true);
    let drained = (EventType::SQ_DRAINED, pair.qa.qpn, 0);
    assert_eq!(pair.a.events(), [drained]);
    rts(&mut pair);
    sqd(&mut pair, false);
    assert!(!is_draining(&mut pair));
    assert_eq!(pair.a.events(), []);
}

#[test]
fn long_message_finishes_before_the_queue_has_drained() {
    let mut pair = Pair::new();
    let len = 3 << 20;
    let local = pair.a.region(&mut pair.device, len.into(), full());
    let remote = pair.b.region(&mut pair.device, len.into(), full());
    for wr_id in 1..=2 {
        let write = Send::new(Opcode::RDMA_WRITE, wr_id, &[local.sge(0, len)])
            .remote(remote.iova, remote.key);
        pair.a.write_send(&mut pair.qa, &write.blocks());
    }
    pair.a.ring_qp(&mut pair.device, &pair.qa);
    assert!(pair.device.pump().served > 0);
    assert_eq!(pair.a.completions(&mut pair.qa), []);
    sqd(&mut pair, true);
    pair.pump();
    assert_eq!(pair.a.poll(&mut pair.qa).unwrap().wr_id, 1);
    assert_eq!(pair.a.poll(&mut pair.qa), None);
    let drained = (EventType::SQ_DRAINED, pair.qa.qpn, 0);
    assert_eq!(pair.a.events(), [drained]);
    rts(&mut pair);
    assert_eq!(pair.a.poll(&mut pair.qa).unwrap().wr_id, 2);
}

#[test]
fn draining_ends_without_event_by_rts_err_and_reset() {
    for end in [S::RTS, S::ERR, S::RESET] {
        let mut pair = Pair::new();
        pair.a.send(
            &mut pair.device,
            &mut pair.qa,
            &Send::inline(Opcode::SEND, 1, b"x"),
        );
        sqd(&mut pair, true);
        if end == S::RTS {
            rts(&mut pair);
        } else {
            let mut qa = pair.qa;
            pair.a.modify(&mut pair.device, &mut qa, end);
        }
        assert!(!is_draining(&mut pair), "{end}");
        assert_eq!(pair.a.events(), [], "{end}");
        let statuses: Vec<_> = pair.a.completions(&mut pair.qa);
        let statuses: Vec<_> = statuses.iter().map(|wc| wc.status).collect();
        let expected: &[WcStatus] = if end == S::ERR {
            &[WcStatus::WR_FLUSH_ERR]
        } else {
            &[]
        };
        assert_eq!(statuses, expected, "{end}");
    }
}

#[test]
fn a_send_that_fails_while_the_queue_drains_ends_in_err() {
    let mut joined = Joined::new(
        |b| {
            if !is_rtr(b) {
                b.rnr_retry = 1;
            }
        },
        bend_nothing,
    );
    let send = Send::inline(Opcode::SEND, 8, b"x");
    joined.a.send(&mut joined.device, &mut joined.qa, &send);
    let mut qa = joined.qa;
    joined.a.modify(&mut joined.device, &mut qa, S::SQD);
    joined.device.advance(1_000_000_000);
    pump(&mut joined.device);
    let wc = joined.a.poll(&mut joined.qa).unwrap();
    assert_eq!(wc.status, WcStatus::RNR_RETRY_EXC_ERR);
    // RC knows no SQE: a failed send moves the QP to ERR.
    let state = joined.a.query(&mut joined.device, joined.qa.qpn);
    assert_eq!(state, Some(S::ERR));
}

#[test]
fn send_queue_on_a_slow_link_has_drained_when_the_last_answer_is_back() {
    let mut pair = Pair::new();
    let slow = LinkParameters {
        latency_ns: 50_000,
        ..LinkParameters::default()
    };
    for (from, to) in [(0, 1), (1, 0)] {
        pair.device
            .set_link(NodeId(from), NodeId(to), slow)
            .unwrap();
    }
    let remote = pair.b.region(&mut pair.device, 64, full());
    let post = |pair: &mut Pair, wr_id| {
        let write = Send::inline(Opcode::RDMA_WRITE, wr_id, b"x").remote(remote.iova, remote.key);
        pair.a.send(&mut pair.device, &mut pair.qa, &write);
    };
    for wr_id in 1..=3 {
        post(&mut pair, wr_id);
    }
    sqd(&mut pair, true);
    post(&mut pair, 4);
    assert!(is_draining(&mut pair));
    assert_eq!(pair.a.events(), []);
    for _ in 0..10 {
        pair.device.advance(50_000);
        pair.pump();
    }
    let done: Vec<_> = pair.a.completions(&mut pair.qa);
    let done: Vec<_> = done.iter().map(|wc| wc.wr_id).collect();
    assert_eq!(done, [1, 2, 3]);
    let drained = (EventType::SQ_DRAINED, pair.qa.qpn, 0);
    assert_eq!(pair.a.events(), [drained]);
    rts(&mut pair);
    for _ in 0..10 {
        pair.device.advance(50_000);
        pair.pump();
    }
    assert_eq!(pair.a.poll(&mut pair.qa).unwrap().wr_id, 4);
}
