//! The end of a function's objects: a reset or a hang-up leaves nothing, and nothing of before crosses a reset.

use ring_proto::admin::{AdminOp, AdminStatus, Body, CqModerate};
use ring_proto::arm;
use ring_proto::eqe::EventType;
use ring_proto::regs;
use ring_proto::status::{Opcode, QpState, Syndrome, WcStatus};
use ring_proto::sync::Ordering;

use crate::client::{A, B, Client, Pair, Send, device, establish, full, pump, sock};

/// Counts of everything a node's functions own: QPs, orphans, CQs, MRs, listeners.
fn owned(pair: &Pair, node: usize) -> (u64, u64, u64, u64, u64) {
    let counters = pair.device.node_counters()[node].counters;
    (
        counters.qps,
        counters.orphans,
        counters.cqs,
        counters.mrs,
        counters.listeners,
    )
}

/// Brings a's function into the middle of everything: sends that wait, a message under way, requests in both directions, a drain, an
/// interrupt that is held back.
fn in_the_middle(pair: &mut Pair) {
    let a = &mut pair.a;
    // A send that waits for a receive, with more behind it, and a receive of its own.
    for wr_id in 0..3 {
        let send = Send::inline(Opcode::SEND, wr_id, b"x");
        a.write_send(&mut pair.qa, &send.blocks());
    }
    let region = a.region(&mut pair.device, 1 << 20, full());
    a.recv(&mut pair.device, &mut pair.qa, 9, &[region.sge(0, 64)]);
    // A QP that drains, one that connects, one that nobody answers, a listener with a request.
    let mut drains = a.qp(&mut pair.device);
    let other = pair.b.qp(&mut pair.device);
    pair.b.listen(&mut pair.device, sock(B, 70), 4);
    establish(
        &mut pair.device,
        (a, drains.qpn),
        (&mut pair.b, other.qpn),
        70,
    );
    let remote = pair.b.region(&mut pair.device, 1 << 20, full());
    let mut writes = a.qp(&mut pair.device);
    let taker = pair.b.qp(&mut pair.device);
    pair.b.listen(&mut pair.device, sock(B, 72), 4);
    establish(
        &mut pair.device,
        (a, writes.qpn),
        (&mut pair.b, taker.qpn),
        72,
    );
    let send = Send::inline(Opcode::SEND, 1, b"x");
    a.send(&mut pair.device, &mut drains, &send);
    a.modify(&mut pair.device, &mut drains, QpState::SQD);
    let dials = a.qp(&mut pair.device);
    let dialled = a.connect(
        &mut pair.device,
        dials.qpn,
        sock(A, 9),
        sock(B, 70),
        900,
        b"",
    );
    assert_eq!(dialled, AdminStatus::OK);
    a.listen(&mut pair.device, sock(A, 71), 1);
    let caller = pair.b.qp(&mut pair.device);
    let called = pair.b.connect(
        &mut pair.device,
        caller.qpn,
        sock(B, 9),
        sock(A, 71),
        0,
        b"",
    );
    assert_eq!(called, AdminStatus::OK);
    // An interrupt that is held back.
    let moderate = CqModerate {
        cqn: pair.qa.cqn,
        count: 0,
        period_us: 60_000,
    };
    let a = &mut pair.a;
    a.ok(&mut pair.device, AdminOp::CQ_MODERATE, moderate.to_body());
    a.pd(&mut pair.device);
    // A message under way, in turns.
    let write =
        Send::new(Opcode::RDMA_WRITE, 1, &[region.sge(0, 1 << 20)]).remote(remote.iova, remote.key);
    a.write_send(&mut writes, &write.blocks());
    a.ring_qp(&mut pair.device, &writes);
    assert!(pair.device.pump().served > 0);
    let arm_word = a.bar.line(pair.qa.cq_slot);
    arm::arm(arm_word.arm_vectors(), arm_word.arm_sequence(), 0, 2);
    arm::arm(arm_word.arm_solicited(), arm_word.arm_sequence(), 0, 4);
}

#[test]
fn reset_in_the_middle_of_everything_leaves_nothing() {
    let mut pair = Pair::new();
    in_the_middle(&mut pair);
    drop((pair.a.events(), pair.b.events()));
    pair.device.reset(pair.a.function);
    pair.pump();
    assert_eq!(owned(&pair, 0), (0, 0, 0, 0, 0));
    let told: Vec<_> = pair.b.events().into_iter().map(|event| event.0).collect();
    let count = |kind| told.iter().filter(|&&event| event == kind).count();
    assert_eq!(count(EventType::CM_DISCONNECTED), 3, "{told:?}");
    assert_eq!(count(EventType::CM_REJECTED), 1, "{told:?}");
    assert!(
        count(EventType::CM_WITHDRAWN) <= 1 && told.len() <= 5,
        "{told:?}"
    );
    // No timer, no interrupt, no work is left behind.
    assert_eq!(pair.device.pump().next_timer_ns, None);
    pair.device.advance(3_600_000_000_000);
    pair.pump();
    assert_eq!(pair.b.events(), []);
    assert!(pair.device.try_park());
    pair.device.unpark();
    pair.a.start(&mut pair.device);
    assert_eq!(pair.a.events(), [], "events of before are gone");
}

#[test]
fn hang_up_in_the_middle_of_everything_leaves_only_what_peers_may_read() {
    let mut pair = Pair::new();
    in_the_middle(&mut pair);
    pair.device.detach(pair.a.function);
    pair.pump();
    // Three connected QPs live on as orphans, until their time is over.
    let (qps, orphans, cqs, _, listeners) = owned(&pair, 0);
    assert_eq!((qps, orphans, cqs, listeners), (3, 3, 0, 0));
    pair.device.advance(61_000_000_000);
    pair.pump();
    assert_eq!(owned(&pair, 0), (0, 0, 0, 0, 0));
    let counters = pair.device.node_counters()[0].counters;
    assert_eq!((counters.functions, counters.windows), (0, 0));
    assert_eq!(pair.device.pump().next_timer_ns, None);
}

#[test]
fn keys_and_numbers_of_before_a_reset_open_nothing() {
    let mut pair = Pair::new();
    let remote = pair.b.region(&mut pair.device, 64, full());
    let generation = pair.b.bar.generation().load(Ordering::Acquire);
    pair.device.reset(pair.b.function);
    pair.b.start(&mut pair.device);
    assert_eq!(
        pair.b.bar.generation().load(Ordering::Acquire),
        generation.wrapping_add(1)
    );
    drop(pair.a.events());
    // The same table entries live again, with the same memory behind them.
    let (mut qa, qb) = (pair.a.qp(&mut pair.device), pair.b.qp(&mut pair.device));
    let again = pair.b.region(&mut pair.device, 64, full());
    assert_ne!(again.key, remote.key);
    pair.b.listen(&mut pair.device, sock(B, 5), 1);
    establish(
        &mut pair.device,
        (&mut pair.a, qa.qpn),
        (&mut pair.b, qb.qpn),
        5,
    );
    let write = Send::inline(Opcode::RDMA_WRITE, 1, b"x").remote(remote.iova, remote.key);
    pair.a.send(&mut pair.device, &mut qa, &write);
    let wc = pair.a.poll(&mut qa).unwrap();
    assert_eq!(
        (wc.status, wc.syndrome),
        (WcStatus::REM_ACCESS_ERR, Syndrome::RKEY_UNKNOWN)
    );
    assert_eq!(pair.b.read(remote.iova, 1), [0]);
    // A peer that still names the QP of before finds nobody.
    let state = pair.a.query(&mut pair.device, pair.qa.qpn);
    assert_eq!(state, Some(QpState::ERR));
}

#[test]
fn doorbells_of_before_a_reset_ring_for_nobody_after_it() {
    let (mut device, node, _) = device();
    let mut client = Client::attach(&mut device, node);
    let stale = client.qp(&mut device);
    // Rung and not yet seen: producers, dirty bits and arms stand in BAR2 over the reset.
    let bar = client.bar;
    let line = bar.line(stale.slot);
    line.sq_producer().store(3, Ordering::Release);
    line.rq_producer().store(5, Ordering::Release);
    let arms = bar.line(stale.cq_slot);
    arms.cq_consumer().store(7, Ordering::Release);
    arms.arm_vectors().store(u64::MAX, Ordering::Release);
    arms.arm_solicited().store(u64::MAX, Ordering::Release);
    client.mark(&mut device, stale.slot);
    client.post_admin(ring_proto::admin::Command {
        opcode: AdminOp::PD_ALLOC.0,
        body: Body::default(),
        ..Default::default()
    });
    client.ring_admin(&mut device);
    device.reset(client.function);
    pump(&mut device);
    assert_eq!(client.admin_completion(), None);
    client.start(&mut device);
    // The next owners of the same slots begin at zero.
    while client.slot() < stale.slot.max(stale.cq_slot) {}
    let (one, two) = (stale.slot, stale.cq_slot);
    let ring = client.alloc(64 * 64);
    let queue = ring_proto::admin::QueueCreate {
        ring,
        depth: 16,
        slot: two,
    };
    let cqn = crate::client::low(client.ok(&mut device, AdminOp::CQ_CREATE, queue.to_body())[0]);
    let (sq_ring, rq_ring) = (client.alloc(64 * 16), client.alloc(64 * 16));
    let body = ring_proto::admin::QpCreate {
        sq_ring,
        rq_ring,
        sq_depth: 16,
        rq_depth: 16,
        pdn: client.pdn,
        send_cqn: cqn,
        recv_cqn: cqn,
        slot: one,
        access: full().bits(),
        ..Default::default()
    };
    let qpn = crate::client::low(client.ok(&mut device, AdminOp::QP_CREATE, body.to_body())[0]);
    for word in [line.sq_producer(), line.rq_producer(), arms.cq_consumer()] {
        assert_eq!(word.load(Ordering::Acquire), 0);
    }
    assert_eq!(arms.arm_vectors().load(Ordering::Acquire), 0);
    assert_eq!(arms.arm_solicited().load(Ordering::Acquire), 0);
    assert_eq!(client.query(&mut device, qpn), Some(QpState::RESET));
    assert_eq!(client.events(), []);
    let generation = device.read_register(client.function, regs::RESET_GENERATION, 4);
    assert_eq!(generation.unwrap(), 1);
}
