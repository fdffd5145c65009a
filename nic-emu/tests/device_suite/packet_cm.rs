//! The connection manager over links that delay, lose or cut.

use nic_emu::device::LinkParameters;
use ring_proto::admin::{Access, AdminOp, AdminStatus};
use ring_proto::cqe::CQE_INV;
use ring_proto::eqe::{CmStatus, EventType};
use ring_proto::ids::NodeId;
use ring_proto::status::{Opcode, QpState, WcStatus};

use crate::client::{self, Pair, Send, full, sock};
use crate::packet::{MS, US, bad, both, cut, run, short_timeout, slow};

const A: NodeId = NodeId(0);
const B: NodeId = NodeId(1);
const PORT: u16 = 4000;

/// QPs in INIT, a listener on b, and both directions of the link.
fn scene(there: LinkParameters, back: LinkParameters) -> Pair {
    let mut pair = Pair::unjoined();
    pair.b.listen(&mut pair.device, sock(client::B, PORT), 4);
    pair.device.set_link(A, B, there).unwrap();
    pair.device.set_link(B, A, back).unwrap();
    pair.pump();
    pair
}

fn connect(pair: &mut Pair, port: u16, timeout_ms: u32) {
    let (from, to) = (sock(client::A, 999), sock(client::B, port));
    let status = pair.a.connect(
        &mut pair.device,
        pair.qa.qpn,
        from,
        to,
        timeout_ms,
        b"hello",
    );
    assert_eq!(status, AdminStatus::OK);
}

fn accept(pair: &mut Pair) {
    let (event, _, request) = pair.b.event().expect("a request");
    assert_eq!(event, EventType::CM_REQUEST);
    let status = pair.b.accept(&mut pair.device, request, pair.qb.qpn, 0);
    assert_eq!(status, AdminStatus::OK);
}

fn state(pair: &mut Pair) -> Option<QpState> {
    pair.a.query(&mut pair.device, pair.qa.qpn)
}

#[test]
fn connect_over_a_cut_link_gets_no_answer_and_reaches_nobody() {
    let mut pair = scene(cut(), slow());
    connect(&mut pair, PORT, 500);
    run(&mut pair, 500 * MS - 1);
    assert_eq!(pair.a.events(), []);
    run(&mut pair, 1);
    let timed_out = (EventType::CM_REJECTED, pair.qa.qpn, CmStatus::TIMED_OUT.0);
    assert_eq!(pair.a.events(), [timed_out]);
    both(&mut pair, slow());
    run(&mut pair, 5_000 * MS);
    assert_eq!(pair.b.events(), []);
    assert_eq!(state(&mut pair), Some(QpState::INIT));
}

#[test]
fn connect_takes_the_time_of_the_link_both_ways() {
    let mut pair = scene(slow(), slow());
    connect(&mut pair, PORT, 500);
    run(&mut pair, 50 * US - 1);
    assert_eq!(pair.b.event(), None);
    run(&mut pair, 1);
    accept(&mut pair);
    assert_eq!(pair.a.event(), None);
    run(&mut pair, 50 * US);
    let established = (EventType::CM_ESTABLISHED, pair.qa.qpn, pair.b.function.0);
    assert_eq!(pair.a.events(), [established]);
    assert_eq!(pair.device.pump().next_timer_ns, None);
}

#[test]
fn refusals_take_the_time_of_the_link_both_ways() {
    let mut pair = scene(slow(), slow());
    connect(&mut pair, PORT + 1, 500);
    run(&mut pair, 100 * US - 1);
    assert_eq!(pair.a.event(), None);
    run(&mut pair, 1);
    let refused = (EventType::CM_REJECTED, pair.qa.qpn, CmStatus::NO_LISTENER.0);
    assert_eq!(pair.a.events(), [refused]);
    // And the QP may try again.
    connect(&mut pair, PORT, 500);
    run(&mut pair, 50 * US);
    accept(&mut pair);
    run(&mut pair, 50 * US);
    assert_eq!(state(&mut pair), Some(QpState::RTS));
}

#[test]
fn connect_over_a_lossy_link_is_sent_again_until_it_arrives() {
    for seed in 0..20 {
        let lossy = LinkParameters {
            loss_ppm: 500_000,
            ..slow()
        };
        let mut pair = scene(lossy, lossy);
        pair.device.seed_links(seed);
        connect(&mut pair, PORT, 0);
        run(&mut pair, 60_000 * MS);
        accept(&mut pair);
        run(&mut pair, 60_000 * MS);
        let established = (EventType::CM_ESTABLISHED, pair.qa.qpn, pair.b.function.0);
        assert_eq!(pair.a.events(), [established], "seed {seed}");
        assert_eq!(pair.b.events(), [], "seed {seed}");
    }
}

#[test]
fn answer_that_never_arrives_ends_the_connection_at_both_ends() {
    let mut pair = scene(slow(), cut());
    connect(&mut pair, PORT, 500);
    run(&mut pair, 50 * US);
    accept(&mut pair);
    run(&mut pair, 600 * MS);
    let timed_out = (EventType::CM_REJECTED, pair.qa.qpn, CmStatus::TIMED_OUT.0);
    assert_eq!(pair.a.events(), [timed_out]);
    assert_eq!(state(&mut pair), Some(QpState::INIT));
    let over = (EventType::CM_DISCONNECTED, pair.qb.qpn, 0);
    assert_eq!(pair.b.events(), [over]);
    assert_eq!(pair.device.pump().next_timer_ns, None);
}

#[test]
fn connect_on_its_way_can_be_withdrawn() {
    let mut pair = scene(slow(), slow());
    connect(&mut pair, PORT, 500);
    let qpn = pair.qa.qpn;
    let cancelled = pair.a.named(&mut pair.device, AdminOp::CM_CANCEL, qpn);
    assert_eq!(cancelled, AdminStatus::OK);
    run(&mut pair, 600 * MS);
    assert_eq!(pair.b.events(), []);
    assert_eq!(pair.a.events(), []);
    // The answer too.
    connect(&mut pair, PORT, 500);
    run(&mut pair, 50 * US);
    accept(&mut pair);
    let cancelled = pair.a.named(&mut pair.device, AdminOp::CM_CANCEL, qpn);
    assert_eq!(cancelled, AdminStatus::OK);
    run(&mut pair, 600 * MS);
    assert_eq!(pair.a.events(), []);
    let over = (EventType::CM_DISCONNECTED, pair.qb.qpn, 0);
    assert_eq!(pair.b.events(), [over]);
    assert_eq!(state(&mut pair), Some(QpState::INIT));
}

#[test]
fn end_of_a_connection_is_told_when_the_link_lets_it() {
    for destroys in [false, true] {
        let mut pair = Pair::new();
        both(&mut pair, cut());
        let op = if destroys {
            AdminOp::QP_DESTROY
        } else {
            AdminOp::CM_DISCONNECT
        };
        let qpn = pair.qa.qpn;
        assert_eq!(pair.a.named(&mut pair.device, op, qpn), AdminStatus::OK);
        run(&mut pair, 10_000 * MS);
        assert_eq!(pair.b.events(), []);
        assert_eq!(
            pair.b.query(&mut pair.device, pair.qb.qpn),
            Some(QpState::RTS)
        );
        both(&mut pair, slow());
        run(&mut pair, 3_000 * MS);
        let over = (EventType::CM_DISCONNECTED, pair.qb.qpn, 0);
        assert_eq!(pair.b.events(), [over]);
        assert_eq!(
            pair.b.query(&mut pair.device, pair.qb.qpn),
            Some(QpState::ERR)
        );
        assert_eq!(pair.device.pump().next_timer_ns, None);
    }
}

#[test]
fn end_is_not_told_to_a_qp_that_has_moved_on() {
    let mut pair = Pair::new();
    both(&mut pair, cut());
    let qpn = pair.qa.qpn;
    pair.a.named(&mut pair.device, AdminOp::QP_DESTROY, qpn);
    let mut qb = pair.qb;
    pair.b.modify(&mut pair.device, &mut qb, QpState::RESET);
    pair.b.modify(&mut pair.device, &mut qb, QpState::INIT);
    both(&mut pair, slow());
    run(&mut pair, 5_000 * MS);
    assert_eq!(pair.b.events(), []);
    assert_eq!(
        pair.b.query(&mut pair.device, pair.qb.qpn),
        Some(QpState::INIT)
    );
}

/// The window is closed by the message itself, once, whatever the link does; the bind before it waits for its turn.
#[test]
fn send_with_invalidate_and_binds_keep_their_order_over_a_bad_link() {
    for seed in 0..8 {
        let mut pair = Pair::new();
        pair.device.seed_links(seed);
        short_timeout(&mut pair, 7);
        let access = Access::LOCAL_WRITE | Access::MW_BIND;
        let remote = pair.b.region(&mut pair.device, 4096, access);
        let inbox = pair.b.region(&mut pair.device, 4096, full());
        let pdn = pair.b.pdn;
        let mut mw = pair.b.mw(&mut pair.device, pdn, 2);
        both(&mut pair, bad());
        for round in 0..6u8 {
            let fresh = mw & !0xff | (mw.wrapping_add(1) & 0xff);
            let range = (remote.iova, 1024);
            let bind = Send::bind(9, (mw, fresh), remote.key, range, Access::REMOTE_WRITE);
            mw = fresh;
            // Behind a message of its own, so that it has something to wait for.
            let word = Send::inline(Opcode::RDMA_WRITE, 8, b"").remote(0, 0);
            pair.b.write_send(&mut pair.qb, &word.blocks());
            pair.b.send(&mut pair.device, &mut pair.qb, &bind);
            pair.b
                .recv(&mut pair.device, &mut pair.qb, 7, &[inbox.sge(0, 64)]);
            run(&mut pair, 200 * MS);
            let bound = pair.b.completions(&mut pair.qb);
            let seen: Vec<_> = bound.iter().map(|wc| (wc.wr_id, wc.status)).collect();
            assert_eq!(seen, [(8, WcStatus::SUCCESS), (9, WcStatus::SUCCESS)]);
            let write = Send::inline(Opcode::RDMA_WRITE, 1, &[round; 64]).remote(remote.iova, mw);
            pair.a.write_send(&mut pair.qa, &write.blocks());
            let done = Send::inline(Opcode::SEND_WITH_INV, 2, &[round; 64]).imm(mw);
            pair.a.send(&mut pair.device, &mut pair.qa, &done);
            run(&mut pair, 200 * MS);
            let sent = pair.a.completions(&mut pair.qa);
            let seen: Vec<_> = sent.iter().map(|wc| (wc.wr_id, wc.status)).collect();
            assert_eq!(seen, [(1, WcStatus::SUCCESS), (2, WcStatus::SUCCESS)]);
            let wc = pair.b.poll(&mut pair.qb).expect("the message");
            assert_eq!((wc.flags & CQE_INV, wc.imm), (CQE_INV, mw));
            assert_eq!(pair.b.read(remote.iova, 64), [round; 64]);
        }
        let late = Send::inline(Opcode::RDMA_WRITE, 3, b"late").remote(remote.iova, mw);
        pair.a.send(&mut pair.device, &mut pair.qa, &late);
        run(&mut pair, 200 * MS);
        let wc = pair.a.poll(&mut pair.qa).expect("a refusal");
        assert_eq!(wc.status, WcStatus::REM_ACCESS_ERR);
    }
}
