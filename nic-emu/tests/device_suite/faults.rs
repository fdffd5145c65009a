//! Fault rules: what each action does, whom it spares, and what is told of it.

use std::os::fd::AsFd;

use nic_emu::device::{FaultAction, FaultError, FaultPoint, FaultReport, FaultRule};
use nix::sys::eventfd::{EfdFlags, EventFd};
use ring_proto::admin::{AdminOp, AdminStatus, Named, ProviderCall, QpModify};
use ring_proto::arm;
use ring_proto::eqe::EventType;
use ring_proto::ids::NodeId;
use ring_proto::status::{Opcode, QpState, Syndrome, WcStatus};
use ring_proto::sync::Ordering;

use crate::client::{Client, Pair, Region, Send, Wc, full};
use crate::packet::{MS, US, run, short_timeout, stream};

const A: NodeId = NodeId(0);
const B: NodeId = NodeId(1);

/// A pair whose b has memory to write to.
fn world() -> (Pair, Region) {
    let mut pair = Pair::new();
    let memory = pair.b.region(&mut pair.device, 4096, full());
    (pair, memory)
}

fn add(pair: &mut Pair, rule: FaultRule) -> u32 {
    pair.device.add_fault(rule).unwrap()
}

/// Writes one byte from a to b.
fn write(pair: &mut Pair, memory: &Region, wr_id: u64) {
    let byte = [wr_id.to_le_bytes()[0]];
    let wqe =
        Send::inline(Opcode::RDMA_WRITE, wr_id, &byte).remote(memory.iova + wr_id, memory.key);
    pair.a.send(&mut pair.device, &mut pair.qa, &wqe);
}

fn sent(pair: &mut Pair) -> Vec<(u64, WcStatus, Syndrome)> {
    let all = pair.a.completions(&mut pair.qa);
    all.iter()
        .map(|wc: &Wc| (wc.wr_id, wc.status, wc.syndrome))
        .collect()
}

const fn good(wr_id: u64) -> (u64, WcStatus, Syndrome) {
    (wr_id, WcStatus::SUCCESS, Syndrome::NONE)
}

fn report(pair: &Pair) -> FaultReport {
    pair.device.faults(None)
}

#[test]
fn delayed_wqe_is_executed_at_its_time_and_the_others_behind_it() {
    let (mut pair, memory) = world();
    let delay = FaultAction::Delay { ns: 5 * MS };
    let id = add(
        &mut pair,
        FaultRule::new(FaultPoint::Wqe, delay).node("a").nth(2),
    );
    for wr_id in 1..=3 {
        write(&mut pair, &memory, wr_id);
    }
    assert_eq!(sent(&mut pair), [good(1)]);
    assert_eq!(pair.b.read(memory.iova, 4), [0, 1, 0, 0]);
    run(&mut pair, 5 * MS - 1);
    assert_eq!(sent(&mut pair), []);
    run(&mut pair, 1);
    assert_eq!(sent(&mut pair), [good(2), good(3)]);
    assert_eq!(pair.b.read(memory.iova, 4), [0, 1, 2, 3]);
    let told = report(&pair);
    let (row, hit) = (&told.faults[0], &told.log[0]);
    // The rule is over with its second occasion.
    assert_eq!(
        (row.id, row.seen, row.fired, row.is_spent),
        (id, 2, 1, true)
    );
    assert_eq!((hit.id, hit.at_ns, hit.node.as_str()), (id, 0, "a"));
    assert_eq!(hit.qpn, Some(pair.qa.qpn));
    assert_eq!(hit.opcode.as_deref(), Some("RDMA_WRITE"));
    assert_eq!((hit.at.as_str(), hit.action.as_str()), ("wqe", "delay"));
    let recorded = pair.device.recordings(Some(pair.a.function));
    let event = recorded[0].events.iter().find(|row| row.event == "fault");
    assert_eq!(event.unwrap().code.as_deref(), Some("wqe"));
}

#[test]
fn rule_that_goes_lets_what_it_delayed_go_on() {
    let (mut pair, memory) = world();
    let delay = FaultAction::Delay { ns: 5 * MS };
    let id = add(&mut pair, FaultRule::new(FaultPoint::Wqe, delay));
    write(&mut pair, &memory, 1);
    assert_eq!(pair.device.remove_fault(Some(id)), Ok(1));
    run(&mut pair, 5 * MS);
    write(&mut pair, &memory, 2);
    assert_eq!(sent(&mut pair), [good(1), good(2)]);
    // It is gone, what it did is not.
    let told = report(&pair);
    assert_eq!((told.faults.len(), told.log.len()), (0, 1));
    assert_eq!(pair.device.pump().next_timer_ns, None);
}

#[test]
pub(crate) fn wqe_completes_with_the_chosen_status_in_its_turn() {
    for by_packets in [false, true] {
        let (mut pair, memory) = world();
        if by_packets {
            let delay = FaultAction::Delay { ns: US };
            add(&mut pair, FaultRule::new(FaultPoint::Packet, delay));
        }
        let status = WcStatus::REM_OP_ERR;
        add(
            &mut pair,
            FaultRule::new(FaultPoint::Wqe, FaultAction::Status { status }).nth(2),
        );
        for wr_id in 1..=3 {
            let wqe = Send::inline(Opcode::RDMA_WRITE, wr_id, b"x")
                .remote(memory.iova + wr_id, memory.key);
            pair.a.write_send(&mut pair.qa, &wqe.blocks());
        }
        pair.a.ring_qp(&mut pair.device, &pair.qa);
        run(&mut pair, 10 * MS);
        let flushed = (3, WcStatus::WR_FLUSH_ERR, Syndrome::FLUSHED);
        assert_eq!(
            sent(&mut pair),
            [good(1), (2, status, Syndrome::FAULT_INJECTED), flushed],
            "by packets: {by_packets}"
        );
        assert_eq!(pair.b.read(memory.iova, 4), *b"\0x\0\0");
        let state = pair.a.query(&mut pair.device, pair.qa.qpn);
        assert_eq!(state, Some(QpState::ERR));
    }
}

#[test]
fn qp_goes_to_err_and_tells_so() {
    for at in [FaultPoint::Wqe, FaultPoint::Completion] {
        let (mut pair, memory) = world();
        let rule = FaultRule::new(at, FaultAction::QpErr).qpn(pair.qa.qpn);
        add(&mut pair, rule);
        write(&mut pair, &memory, 1);
        let done = if at == FaultPoint::Wqe {
            (1, WcStatus::WR_FLUSH_ERR, Syndrome::FLUSHED)
        } else {
            good(1)
        };
        assert_eq!(sent(&mut pair), [done], "{at}");
        let code = u32::from(Syndrome::FAULT_INJECTED.0);
        let fatal = (EventType::QP_FATAL, pair.qa.qpn, code);
        assert_eq!(pair.a.events(), [fatal], "{at}");
        let state = pair.a.query(&mut pair.device, pair.qa.qpn);
        assert_eq!(state, Some(QpState::ERR));
    }
}

#[test]
fn nic_reset_ends_that_function_alone() {
    for at in [FaultPoint::Wqe, FaultPoint::Completion] {
        let (mut pair, memory) = world();
        let (mut bystander, mut device) = (Client::attach(&mut pair.device, A), pair.device);
        let rule = FaultRule::new(at, FaultAction::NicReset).function(pair.a.function.0);
        device.add_fault(rule).unwrap();
        pair.device = device;
        write(&mut pair, &memory, 1);
        let code = u32::from(Syndrome::FAULT_INJECTED.0);
        let events = pair.a.events();
        assert_eq!(events.last(), Some(&(EventType::DEVICE_FATAL, 0, code)));
        // Another function of the node, and the peer's, do as before.
        let qp = bystander.qp(&mut pair.device);
        assert!(bystander.query(&mut pair.device, qp.qpn).is_some());
        let state = pair.b.query(&mut pair.device, pair.qb.qpn);
        assert_eq!(state, Some(QpState::ERR), "its connection has ended");
        assert_eq!(
            pair.b.events(),
            [(EventType::CM_DISCONNECTED, pair.qb.qpn, 0)]
        );
        pair.device.reset(pair.a.function);
        let fresh = pair.device.attach(A);
        assert!(fresh.is_ok());
    }
}

#[test]
fn streams_arrive_whole_over_packets_that_rules_lose_double_damage_and_delay() {
    let rules = [
        FaultRule::new(FaultPoint::Packet, FaultAction::Drop).ppm(50_000),
        FaultRule::new(FaultPoint::Packet, FaultAction::Corrupt).ppm(50_000),
        FaultRule::new(FaultPoint::Packet, FaultAction::Duplicate).ppm(50_000),
        FaultRule::new(FaultPoint::Packet, FaultAction::Delay { ns: 300 * US }).ppm(50_000),
        FaultRule::new(FaultPoint::Packet, FaultAction::Drop)
            .opcode("ACK")
            .every(3),
    ];
    let run_once = || {
        stream(11, 12, |pair, batch| {
            if batch == 0 {
                for rule in rules.clone() {
                    add(pair, rule);
                }
            }
        })
    };
    let (pair, trace) = run_once();
    let told = report(&pair);
    for row in &told.faults {
        assert!(row.fired > 20, "{row:?}");
    }
    let fired = |number: usize| told.faults[number].fired;
    let (there, back) = (
        pair.device.link_counters(A, B),
        pair.device.link_counters(B, A),
    );
    // The links are perfect: whatever happened the rules did.
    assert_eq!(there.lost + back.lost, fired(0) + fired(4));
    assert_eq!(there.corrupted + back.corrupted, fired(1));
    assert_eq!(there.duplicated + back.duplicated, fired(2));
    let counters = pair.device.node_counters()[0].counters;
    assert!(counters.retransmitted_packets > 0);
    let (again, same) = run_once();
    assert_eq!(trace, same);
    assert_eq!(report(&again), told);
}

#[test]
fn connections_leave_packet_mode_when_their_rule_is_over() {
    let (mut pair, memory) = world();
    let rule = FaultRule::new(FaultPoint::Packet, FaultAction::Drop);
    short_timeout(&mut pair, 7);
    add(&mut pair, rule.node("a").opcode("RDMA_WRITE").count(2));
    write(&mut pair, &memory, 1);
    run(&mut pair, 10 * MS);
    assert_eq!(sent(&mut pair), [good(1)]);
    let packets = |pair: &Pair| pair.device.node_counters()[0].counters.tx_packets;
    assert_eq!(packets(&pair), 3, "lost twice");
    write(&mut pair, &memory, 2);
    assert_eq!(sent(&mut pair), [good(2)]);
    assert_eq!(packets(&pair), 3);
}

#[test]
fn rules_on_packets_touch_nobody_else() {
    let (mut pair, memory) = world();
    let rule = FaultRule::new(FaultPoint::Packet, FaultAction::Drop);
    for rule in [
        rule.clone().qpn(0xabcd),
        rule.clone().function(0xabcd),
        rule.clone().node("b").opcode("SEND"),
    ] {
        add(&mut pair, rule);
    }
    write(&mut pair, &memory, 1);
    run(&mut pair, MS);
    assert_eq!(sent(&mut pair), [good(1)]);
    assert_eq!(report(&pair).log, []);
}

fn rnr_retry(pair: &mut Pair, rnr_retry: u32) {
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
fn receiver_that_is_not_ready_by_rule_is_tried_again() {
    for by_packets in [false, true] {
        let (mut pair, memory) = world();
        if by_packets {
            let rule = FaultRule::new(FaultPoint::Packet, FaultAction::Duplicate);
            add(&mut pair, rule.opcode("NAK"));
        }
        let rule = FaultRule::new(FaultPoint::Receive, FaultAction::Rnr);
        add(&mut pair, rule.node("b").count(2));
        pair.b
            .recv(&mut pair.device, &mut pair.qb, 7, &[memory.sge(0, 8)]);
        let wqe = Send::inline(Opcode::SEND, 1, b"x");
        pair.a.send(&mut pair.device, &mut pair.qa, &wqe);
        // Twice the timer of b's QP.
        run(&mut pair, 2 * 640 * US - 1);
        assert_eq!(sent(&mut pair), [], "by packets: {by_packets}");
        run(&mut pair, 1);
        assert_eq!(sent(&mut pair), [good(1)], "by packets: {by_packets}");
        assert_eq!(pair.b.poll(&mut pair.qb).unwrap().wr_id, 7);
        assert_eq!(report(&pair).log.len(), 2);
    }
}

#[test]
fn receiver_that_stays_not_ready_exhausts_the_retries() {
    for by_packets in [false, true] {
        let (mut pair, memory) = world();
        if by_packets {
            let rule = FaultRule::new(FaultPoint::Packet, FaultAction::Duplicate);
            add(&mut pair, rule.opcode("NAK"));
        }
        rnr_retry(&mut pair, 2);
        add(
            &mut pair,
            FaultRule::new(FaultPoint::Receive, FaultAction::Rnr),
        );
        pair.b
            .recv(&mut pair.device, &mut pair.qb, 7, &[memory.sge(0, 8)]);
        let wqe = Send::inline(Opcode::SEND, 1, b"x");
        pair.a.send(&mut pair.device, &mut pair.qa, &wqe);
        run(&mut pair, 10 * MS);
        let failed = (1, WcStatus::RNR_RETRY_EXC_ERR, Syndrome::RNR_EXHAUSTED);
        assert_eq!(sent(&mut pair), [failed], "by packets: {by_packets}");
        assert_eq!(pair.b.poll(&mut pair.qb), None);
    }
}

#[test]
fn delayed_completions_keep_their_order() {
    let (mut pair, memory) = world();
    let delay = FaultAction::Delay { ns: 2 * MS };
    add(
        &mut pair,
        FaultRule::new(FaultPoint::Completion, delay).nth(1),
    );
    for wr_id in 1..=3 {
        write(&mut pair, &memory, wr_id);
    }
    assert_eq!(pair.b.read(memory.iova, 4), [0, 1, 2, 3]);
    run(&mut pair, 2 * MS - 1);
    assert_eq!(sent(&mut pair), []);
    run(&mut pair, 1);
    assert_eq!(sent(&mut pair), [good(1), good(2), good(3)]);
    write(&mut pair, &memory, 4);
    assert_eq!(sent(&mut pair), [good(4)]);
}

#[test]
fn delayed_completions_of_a_function_that_goes_go_with_it() {
    let (mut pair, memory) = world();
    let delay = FaultAction::Delay { ns: 2 * MS };
    add(&mut pair, FaultRule::new(FaultPoint::Completion, delay));
    write(&mut pair, &memory, 1);
    pair.device.detach(pair.a.function);
    pair.device.detach(pair.b.function);
    // Long enough for the orphan that a peer leaves behind.
    run(&mut pair, 61_000 * MS);
    assert_eq!(report(&pair).log.len(), 1);
    assert_eq!(pair.device.pump().next_timer_ns, None);
}

#[test]
fn lost_completion_is_not_written() {
    let (mut pair, memory) = world();
    let rule = FaultRule::new(FaultPoint::Completion, FaultAction::Drop);
    add(&mut pair, rule.opcode("RDMA_WRITE").count(1));
    for wr_id in 1..=2 {
        write(&mut pair, &memory, wr_id);
    }
    assert_eq!(sent(&mut pair), [good(2)]);
    assert_eq!(pair.b.read(memory.iova, 3), [0, 1, 2]);
}

#[test]
fn completion_tells_the_chosen_status_and_ends_the_qp() {
    let (mut pair, memory) = world();
    let status = WcStatus::LOC_ACCESS_ERR;
    let rule = FaultRule::new(FaultPoint::Completion, FaultAction::Status { status });
    add(&mut pair, rule.opcode("RECV").node("b"));
    pair.b
        .recv(&mut pair.device, &mut pair.qb, 7, &[memory.sge(0, 8)]);
    let wqe = Send::inline(Opcode::SEND, 1, b"x");
    pair.a.send(&mut pair.device, &mut pair.qa, &wqe);
    let wc = pair.b.poll(&mut pair.qb).unwrap();
    assert_eq!(
        (wc.wr_id, wc.status, wc.syndrome),
        (7, status, Syndrome::FAULT_INJECTED)
    );
    let state = pair.b.query(&mut pair.device, pair.qb.qpn);
    assert_eq!(state, Some(QpState::ERR));
}

#[test]
fn cq_overruns_by_rule_as_by_itself() {
    let (mut pair, memory) = world();
    let rule = FaultRule::new(FaultPoint::Completion, FaultAction::CqOverrun);
    let rule = rule.qpn(pair.qa.qpn).nth(2);
    add(&mut pair, rule);
    for wr_id in 1..=2 {
        write(&mut pair, &memory, wr_id);
    }
    assert_eq!(sent(&mut pair), [good(1)]);
    let code = u32::from(Syndrome::CQ_OVERRUN.0);
    let events = [
        (EventType::QP_FATAL, pair.qa.qpn, code),
        (EventType::CQ_ERROR, pair.qa.cqn, 0),
    ];
    assert_eq!(pair.a.events(), events);
    assert_eq!(pair.b.events(), []);
}

#[test]
fn doorbell_that_is_not_seen_is_made_good_by_the_next() {
    let (mut pair, memory) = world();
    let rule = FaultRule::new(FaultPoint::Doorbell, FaultAction::Drop);
    let rule = rule.qpn(pair.qa.qpn).count(1);
    add(&mut pair, rule);
    write(&mut pair, &memory, 1);
    run(&mut pair, 1_000 * MS);
    assert_eq!(sent(&mut pair), []);
    write(&mut pair, &memory, 2);
    assert_eq!(sent(&mut pair), [good(1), good(2)]);
}

#[test]
fn delayed_doorbell_is_seen_later() {
    let (mut pair, memory) = world();
    let delay = FaultAction::Delay { ns: 3 * MS };
    add(
        &mut pair,
        FaultRule::new(FaultPoint::Doorbell, delay).node("a"),
    );
    write(&mut pair, &memory, 1);
    run(&mut pair, 3 * MS - 1);
    assert_eq!(sent(&mut pair), []);
    run(&mut pair, 1);
    assert_eq!(sent(&mut pair), [good(1)]);
}

/// Arms vector 0 for the CQ of a's QP.
fn armed(pair: &mut Pair) -> EventFd {
    let fd = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
    let ours = fd.as_fd().try_clone_to_owned().unwrap();
    pair.device
        .set_vector(pair.a.function, 0, Some(ours))
        .unwrap();
    arm_again(pair);
    fd
}

fn arm_again(pair: &Pair) {
    let line = pair.a.bar.line(pair.qa.cq_slot);
    arm::arm(line.arm_vectors(), line.arm_sequence(), 0, 1);
}

#[test]
fn lost_and_late_interrupts() {
    let (mut pair, memory) = world();
    let vector = armed(&mut pair);
    let rule = |action| FaultRule::new(FaultPoint::Interrupt, action).node("a");
    add(&mut pair, rule(FaultAction::Drop).count(1));
    add(&mut pair, rule(FaultAction::Delay { ns: MS }).count(1));
    write(&mut pair, &memory, 1);
    run(&mut pair, 10 * MS);
    assert!(vector.read().is_err(), "lost for good");
    arm_again(&pair);
    write(&mut pair, &memory, 2);
    run(&mut pair, MS - 1);
    assert!(vector.read().is_err(), "late");
    run(&mut pair, 1);
    assert_eq!(vector.read(), Ok(1));
    assert_eq!(sent(&mut pair), [good(1), good(2)]);
    arm_again(&pair);
    write(&mut pair, &memory, 3);
    assert_eq!(vector.read(), Ok(1));
}

#[test]
fn counts_intervals_and_chance_decide_which_occasions() {
    let fired = |rule: FaultRule| {
        let (mut pair, memory) = world();
        let FaultRule { count, .. } = rule.clone();
        add(&mut pair, rule);
        for wr_id in 1..=40 {
            write(&mut pair, &memory, wr_id);
        }
        let told = report(&pair);
        assert!(count.is_none_or(|count| told.faults[0].fired <= count));
        let all: Vec<u64> = (1..=40).collect();
        let came: Vec<u64> = sent(&mut pair).iter().map(|wc| wc.0).collect();
        all.into_iter()
            .filter(|wr_id| !came.contains(wr_id))
            .collect::<Vec<_>>()
    };
    let drop = FaultRule::new(FaultPoint::Completion, FaultAction::Drop);
    assert_eq!(fired(drop.clone().nth(7)), [7]);
    assert_eq!(fired(drop.clone().every(13)), [13, 26, 39]);
    assert_eq!(fired(drop.clone().every(10).count(2)), [10, 20]);
    assert_eq!(fired(drop.clone().count(3)), [1, 2, 3]);
    let chance = fired(drop.clone().ppm(250_000));
    assert!((3..20).contains(&chance.len()), "{chance:?}");
    assert_eq!(fired(drop.clone().ppm(250_000)), chance);
    assert_ne!(fired(drop.ppm(250_000).seed(1)), chance);
}

#[test]
fn one_rule_acts_at_an_occasion_the_oldest_that_fires() {
    let (mut pair, memory) = world();
    let rule = FaultRule::new(FaultPoint::Completion, FaultAction::Drop);
    let first = add(&mut pair, rule.clone().every(2));
    let second = add(&mut pair, rule.count(2));
    for wr_id in 1..=4 {
        write(&mut pair, &memory, wr_id);
    }
    let who: Vec<_> = report(&pair).log.iter().map(|hit| hit.id).collect();
    assert_eq!(who, [second, first, second, first]);
    let rows = pair.device.faults(Some(second));
    assert_eq!((rows.faults.len(), rows.log.len()), (1, 2));
    assert!(rows.faults[0].is_spent);
}

#[test]
fn wrong_rules_are_refused_and_change_nothing() {
    let (mut pair, memory) = world();
    let drop = FaultRule::new(FaultPoint::Completion, FaultAction::Drop);
    let text = |result: Result<u32, FaultError>| result.unwrap_err().to_string();
    let device = &mut pair.device;
    let refused = text(device.add_fault(drop.clone().node("c")));
    assert_eq!(refused, "field \"node\" cannot be \"c\"; allowed: a, b");
    let refused = text(device.add_fault(FaultRule::new(FaultPoint::Wqe, FaultAction::Drop)));
    assert!(refused.contains("\"action\""), "{refused}");
    let none = device.remove_fault(Some(9)).unwrap_err().to_string();
    assert_eq!(none, "there is no fault rule 9; allowed: none is set");
    for _ in 0..256 {
        device.add_fault(drop.clone().nth(1_000_000)).unwrap();
    }
    let refused = text(device.add_fault(drop));
    assert!(refused.contains("256"), "{refused}");
    assert!(device.remove_fault(Some(9)).is_ok());
    let none = device.remove_fault(Some(9)).unwrap_err().to_string();
    assert!(none.contains("allowed: 1, 2, 3"), "{none}");
    assert_eq!(device.remove_fault(None), Ok(255));
    write(&mut pair, &memory, 1);
    assert_eq!(sent(&mut pair), [good(1)]);
}

#[test]
fn the_log_is_bounded() {
    let (mut pair, memory) = world();
    let delay = FaultAction::Delay { ns: 1 };
    add(&mut pair, FaultRule::new(FaultPoint::Doorbell, delay));
    for _ in 0..1100 {
        write(&mut pair, &memory, 1);
        run(&mut pair, 1);
        assert_eq!(sent(&mut pair), [good(1)]);
    }
    let told = report(&pair);
    assert_eq!((told.log.len(), told.log_lost), (1024, 76));
    assert_eq!(told.log[0].sequence, 76);
    assert_eq!(told.faults[0].fired, 1100);
}

fn ask(pair: &mut Pair, on_a: bool, call: u32) -> Result<u64, AdminStatus> {
    let client = if on_a { &mut pair.a } else { &mut pair.b };
    let body = Named {
        id: call,
        reserved: 0,
    };
    match client.admin(&mut pair.device, AdminOp::CALL_FAULT, body.to_body()) {
        (AdminStatus::OK, [code, _]) => Ok(code),
        (status, _) => Err(status),
    }
}

#[test]
fn provider_calls_learn_of_their_rules_by_the_summary_page() {
    let mut pair = Pair::new();
    let bind = u32::from(ProviderCall::WSP_BIND.0);
    let shown = |client: &Client| client.bar.call_faults().load(Ordering::Relaxed);
    assert_eq!((shown(&pair.a), ask(&mut pair, true, bind)), (0, Ok(0)));
    let fail = FaultAction::Fail { code: 10048 };
    let rule = FaultRule::new(FaultPoint::Call, fail).node("a");
    let id = add(&mut pair, rule.clone().opcode("wsp_bind").nth(2));
    assert_eq!((shown(&pair.a), shown(&pair.b)), (1 << bind, 0));
    // A function that comes later sees it too.
    let late = Client::attach(&mut pair.device, A);
    assert_eq!(shown(&late), 1 << bind);
    assert_eq!(ask(&mut pair, false, bind), Ok(0));
    let connect = u32::from(ProviderCall::WSP_CONNECT.0);
    assert_eq!(ask(&mut pair, true, connect), Ok(0));
    assert_eq!(ask(&mut pair, true, bind), Ok(0));
    assert_eq!(ask(&mut pair, true, bind), Ok(10048));
    assert_eq!((shown(&pair.a), ask(&mut pair, true, bind)), (0, Ok(0)));
    let told = pair.device.faults(Some(id));
    assert_eq!(told.log[0].call.as_deref(), Some("wsp_bind"));
    assert_eq!(told.log[0].opcode, None);
    assert_eq!(told.faults[0].code.as_deref(), Some("WSAEADDRINUSE"));
    let all = add(&mut pair, rule);
    assert_eq!(shown(&pair.a), u32::MAX);
    assert_eq!(ask(&mut pair, true, connect), Ok(10048));
    for nonsense in [8, 31, 256, u32::MAX] {
        assert_eq!(ask(&mut pair, true, nonsense), Err(AdminStatus::INVALID));
    }
    assert_eq!(pair.device.remove_fault(Some(all)), Ok(1));
    assert_eq!(shown(&pair.a), 0);
}
