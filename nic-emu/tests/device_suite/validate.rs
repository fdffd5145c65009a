//! The validation layer: one driver that breaks each rule, and sound drivers that break none.

use nic_emu::device::{Device, DeviceOptions, Finding, PauseOn, Rule};
use ring_proto::admin::AdminOp;
use ring_proto::status::{Opcode, QpState, Syndrome, WcStatus};
use ring_proto::sync::Ordering;
use ring_proto::wqe::WqeFlags;

use crate::client::{Pair, SQ_DEPTH, Send, full, recv_wqe};
use crate::transfer;

fn validated(pause_on: Option<PauseOn>) -> Pair {
    Pair::with_options(DeviceOptions {
        virtual_time: true,
        validate: true,
        pause_on,
        ..DeviceOptions::default()
    })
}

/// The findings, which must all be of this rule; at least one.
fn only(device: &Device, rule: Rule) -> Vec<Finding> {
    let findings = device.findings();
    assert!(!findings.is_empty(), "no finding");
    for finding in &findings {
        assert_eq!(finding.rule, rule.id(), "{finding}");
        assert_eq!(finding.explanation, rule.explanation());
        assert_eq!(finding.remedy, rule.remedy());
        assert!(!finding.detail.is_empty());
    }
    findings
}

#[test]
fn doorbell_that_goes_back_is_db_backwards() {
    let mut pair = validated(None);
    let own = pair.a.region(&mut pair.device, 4096, full());
    let remote = pair.b.region(&mut pair.device, 4096, full());
    let write = Send::new(Opcode::RDMA_WRITE, 1, &[own.sge(0, 8)]).remote(remote.iova, remote.key);
    pair.a.send(&mut pair.device, &mut pair.qa, &write);
    pair.a.send(&mut pair.device, &mut pair.qa, &write);
    pair.qa.sq_producer -= 1;
    pair.a.ring_qp(&mut pair.device, &pair.qa);
    pair.pump();
    let findings = only(&pair.device, Rule::DbBackwards);
    assert_eq!(findings.len(), 1);
    let finding = &findings[0];
    assert_eq!(
        (finding.function, finding.queue.as_str(), finding.number),
        (pair.a.function.0, "sq", pair.qa.qpn)
    );
    assert_eq!((finding.index, finding.node.as_str()), (1, "a"));
    assert!(finding.detail.contains("producer 1 after 2"), "{finding}");
}

#[test]
fn doorbell_past_the_queue_is_db_past_queue() {
    let mut pair = validated(None);
    let line = pair.a.bar.line(pair.qa.slot);
    line.rq_producer().store(1000, Ordering::Release);
    pair.a.mark(&mut pair.device, pair.qa.slot);
    pair.pump();
    let findings = only(&pair.device, Rule::DbPastQueue);
    assert_eq!((findings.len(), findings[0].queue.as_str()), (1, "rq"));
    assert_eq!(findings[0].index, 1000);
}

#[test]
fn admin_doorbell_past_the_queue_is_db_past_queue() {
    let mut pair = validated(None);
    pair.a.admin_producer += 1000;
    pair.a.ring_admin(&mut pair.device);
    pair.pump();
    let findings = only(&pair.device, Rule::DbPastQueue);
    assert_eq!((findings.len(), findings[0].queue.as_str()), (1, "admin"));
}

#[test]
fn posting_over_an_unreported_wqe_is_wq_overrun() {
    let mut pair = validated(None);
    let own = pair.a.region(&mut pair.device, 4096, full());
    let remote = pair.b.region(&mut pair.device, 4096, full());
    let quiet = Send::new(Opcode::RDMA_WRITE, 1, &[own.sge(0, 8)])
        .remote(remote.iova, remote.key)
        .unsignaled();
    for _ in 0..SQ_DEPTH - 1 {
        pair.a.send(&mut pair.device, &mut pair.qa, &quiet);
    }
    assert!(pair.device.findings().is_empty());
    // One that will be reported, and a place more than there is, both with one doorbell.
    let loud = Send::new(Opcode::RDMA_WRITE, 2, &[own.sge(0, 8)]).remote(remote.iova, remote.key);
    pair.a.write_send(&mut pair.qa, &loud.blocks());
    pair.a.write_send(&mut pair.qa, &quiet.blocks());
    pair.a.ring_qp(&mut pair.device, &pair.qa);
    pair.pump();
    let findings = only(&pair.device, Rule::WqOverrun);
    assert_eq!(findings[0].index, SQ_DEPTH);
    // Hardware let it pass, and so does the device.
    let wc = pair.a.poll(&mut pair.qa).unwrap();
    assert_eq!(wc.status, WcStatus::SUCCESS);
}

#[test]
fn full_queue_without_a_signaled_wqe_is_sq_no_signal() {
    let mut pair = validated(None);
    let own = pair.a.region(&mut pair.device, 4096, full());
    let remote = pair.b.region(&mut pair.device, 4096, full());
    let quiet = Send::new(Opcode::RDMA_WRITE, 1, &[own.sge(0, 8)])
        .remote(remote.iova, remote.key)
        .unsignaled();
    for _ in 0..SQ_DEPTH {
        pair.a.send(&mut pair.device, &mut pair.qa, &quiet);
    }
    let findings = only(&pair.device, Rule::SqNoSignal);
    assert_eq!(findings.len(), 1);
    assert_eq!(findings[0].wqe.as_ref().unwrap().opcode, "RDMA_WRITE");
}

#[test]
fn unknown_flag_and_dirty_receive_are_wqe_reserved() {
    let mut pair = validated(None);
    let mut receive = recv_wqe(1, &[]);
    receive.reserved[3] = 1;
    pair.b.write_recv(&mut pair.qb, receive);
    pair.b.ring_qp(&mut pair.device, &pair.qb);
    let mut bad = Send::new(Opcode::SEND, 7, &[]);
    bad.head.flags |= 0x80;
    pair.a.send(&mut pair.device, &mut pair.qa, &bad);
    let findings = only(&pair.device, Rule::WqeReserved);
    let queues: Vec<_> = findings.iter().map(|f| f.queue.as_str()).collect();
    assert_eq!(queues, ["sq", "rq"]);
    let wqe = findings[0].wqe.as_ref().unwrap();
    assert_eq!((wqe.wr_id, wqe.opcode.as_str()), (7, "SEND"));
    assert_eq!(wqe.flags, ["SIGNALED", "0x80"]);
}

#[test]
fn wqe_changed_after_its_doorbell_is_wqe_rewritten() {
    let mut pair = validated(None);
    let own = pair.a.region(&mut pair.device, 4096, full());
    let remote = pair.b.region(&mut pair.device, 4096, full());
    // It waits for a receive, so the NIC owns it for a while.
    let wqe = Send::new(Opcode::SEND, 3, &[own.sge(0, 8)]);
    pair.a.send(&mut pair.device, &mut pair.qa, &wqe);
    let mut changed = wqe.clone();
    changed.head.wr_id = 4;
    pair.qa.sq.write(0, &changed.blocks()[0]);
    pair.b
        .recv(&mut pair.device, &mut pair.qb, 9, &[remote.sge(0, 64)]);
    let findings = only(&pair.device, Rule::WqeRewritten);
    assert_eq!(findings.len(), 1);
    assert_eq!(findings[0].index, 0);
    assert!(findings[0].detail.contains("word 1"), "{}", findings[0]);
    assert_eq!(findings[0].wqe.as_ref().unwrap().wr_id, 3);
    // The NIC had taken its copy before.
    assert_eq!(pair.a.poll(&mut pair.qa).unwrap().wr_id, 3);
}

#[test]
fn consumer_beyond_the_producer_is_cq_consumer() {
    let mut pair = validated(None);
    let line = pair.a.bar.line(pair.qa.cq_slot);
    line.cq_consumer().store(5, Ordering::Release);
    let wqe = Send::new(Opcode::RDMA_WRITE, 1, &[]);
    pair.a.send(&mut pair.device, &mut pair.qa, &wqe);
    pair.a.send(&mut pair.device, &mut pair.qa, &wqe);
    let findings = only(&pair.device, Rule::CqConsumer);
    // The same lie is told once.
    assert_eq!(findings.len(), 1);
    assert_eq!(
        (
            findings[0].queue.as_str(),
            findings[0].number,
            findings[0].index
        ),
        ("cq", pair.qa.cqn, 5)
    );
}

#[test]
fn receive_into_a_buffer_that_is_posted_already_is_buf_overlap() {
    let mut pair = validated(None);
    let target = pair.b.region(&mut pair.device, 4096, full());
    let (device, b) = (&mut pair.device, &pair.b);
    b.recv(device, &mut pair.qb, 1, &[target.sge(0, 100)]);
    b.recv(device, &mut pair.qb, 2, &[target.sge(100, 100)]);
    assert!(device.findings().is_empty());
    b.recv(device, &mut pair.qb, 3, &[target.sge(150, 10)]);
    let findings = only(device, Rule::BufOverlap);
    assert_eq!((findings.len(), findings[0].index), (1, 2));
    assert!(findings[0].detail.contains("index 1"), "{}", findings[0]);
}

#[test]
fn read_into_a_posted_receive_is_buf_overlap_and_a_completed_one_is_free() {
    let mut pair = validated(None);
    let own = pair.a.region(&mut pair.device, 4096, full());
    let remote = pair.b.region(&mut pair.device, 4096, full());
    let read = Send::new(Opcode::RDMA_READ, 1, &[own.sge(0, 64)]).remote(remote.iova, remote.key);
    for _ in 0..3 {
        pair.a.send(&mut pair.device, &mut pair.qa, &read);
    }
    assert!(pair.device.findings().is_empty());
    pair.a
        .recv(&mut pair.device, &mut pair.qa, 2, &[own.sge(32, 64)]);
    pair.a.send(&mut pair.device, &mut pair.qa, &read);
    let findings = only(&pair.device, Rule::BufOverlap);
    assert_eq!((findings.len(), findings[0].queue.as_str()), (1, "sq"));
}

#[test]
fn deregistered_keys_are_key_stale_on_both_ends() {
    let mut pair = validated(None);
    let own = pair.a.region(&mut pair.device, 4096, full());
    let remote = pair.b.region(&mut pair.device, 4096, full());
    let write = Send::new(Opcode::RDMA_WRITE, 1, &[own.sge(0, 8)]).remote(remote.iova, remote.key);
    pair.b
        .named(&mut pair.device, AdminOp::MR_DEREG, remote.key);
    pair.a.send(&mut pair.device, &mut pair.qa, &write);
    let findings = only(&pair.device, Rule::KeyStale);
    assert_eq!(findings[0].function, pair.a.function.0);
    let owner = format!("of function {}", pair.b.function);
    assert!(findings[0].detail.contains(&owner), "{}", findings[0]);

    let mut pair = validated(None);
    let own = pair.a.region(&mut pair.device, 4096, full());
    pair.a.named(&mut pair.device, AdminOp::MR_DEREG, own.key);
    let send = Send::new(Opcode::RDMA_WRITE, 1, &[own.sge(0, 8)]);
    pair.a.send(&mut pair.device, &mut pair.qa, &send);
    only(&pair.device, Rule::KeyStale);

    // A key that never was is an error of the WQE and nothing more.
    let mut pair = validated(None);
    let mut sge = own.sge(0, 8);
    sge.lkey ^= 0xff00;
    let send = Send::new(Opcode::RDMA_WRITE, 1, &[sge]);
    pair.a.send(&mut pair.device, &mut pair.qa, &send);
    let wc = pair.a.poll(&mut pair.qa).unwrap();
    assert_eq!(wc.syndrome, Syndrome::LKEY_UNKNOWN);
    assert!(pair.device.findings().is_empty());
}

#[test]
fn region_deregistered_under_a_posted_receive_is_key_in_use() {
    let mut pair = validated(None);
    let target = pair.b.region(&mut pair.device, 4096, full());
    pair.b
        .recv(&mut pair.device, &mut pair.qb, 6, &[target.sge(0, 64)]);
    pair.b
        .named(&mut pair.device, AdminOp::MR_DEREG, target.key);
    let findings = only(&pair.device, Rule::KeyInUse);
    assert_eq!(findings[0].wqe.as_ref().unwrap().wr_id, 6);
}

#[test]
fn arming_over_completions_without_a_poll_is_arm_no_poll() {
    let mut pair = validated(None);
    let wqe = Send::new(Opcode::RDMA_WRITE, 1, &[]);
    pair.a.send(&mut pair.device, &mut pair.qa, &wqe);
    let line = pair.a.bar.line(pair.qa.cq_slot);
    ring_proto::arm::arm(line.arm_vectors(), line.arm_sequence(), 0, 1);
    let wait = |pair: &mut Pair| {
        pair.device.advance(600_000_000);
        pair.pump();
    };
    wait(&mut pair);
    assert!(pair.device.findings().is_empty());
    wait(&mut pair);
    let findings = only(&pair.device, Rule::ArmNoPoll);
    assert_eq!((findings.len(), findings[0].number), (1, pair.qa.cqn));

    // Polled once more: nothing to say, and the looks end.
    let mut pair = validated(None);
    pair.a.send(&mut pair.device, &mut pair.qa, &wqe);
    let line = pair.a.bar.line(pair.qa.cq_slot);
    ring_proto::arm::arm(line.arm_vectors(), line.arm_sequence(), 0, 1);
    wait(&mut pair);
    pair.a.poll(&mut pair.qa).unwrap();
    for _ in 0..3 {
        wait(&mut pair);
    }
    assert!(pair.device.findings().is_empty());
    assert_eq!(pair.device.pump().next_timer_ns, None);
}

#[test]
fn findings_without_end_are_counted_and_not_kept() {
    let mut pair = validated(None);
    for round in 1..=100u32 {
        let line = pair.a.bar.line(pair.qa.cq_slot);
        line.cq_consumer()
            .store(1_000_000 + round, Ordering::Release);
        let wqe = Send::new(Opcode::RDMA_WRITE, 1, &[]);
        pair.a.send(&mut pair.device, &mut pair.qa, &wqe);
    }
    let findings = only(&pair.device, Rule::CqConsumer);
    assert_eq!(findings.len(), 8);
    assert_eq!(findings.last().unwrap().suppressed, 92);
    let counts = pair.device.rule_counts();
    assert_eq!(
        (counts.len(), counts[0].count, counts[0].suppressed),
        (1, 100, 92)
    );
    // As text and as JSON.
    let text = findings[7].to_string();
    assert!(text.starts_with("V-CQ-CONSUMER function "), "{text}");
    assert!(text.ends_with("and 92 more like it"), "{text}");
    let json = serde_json::to_string(&findings).unwrap();
    assert_eq!(
        serde_json::from_str::<Vec<Finding>>(&json).unwrap(),
        findings
    );
}

#[test]
fn every_rule_stands_in_the_table_of_the_page() {
    let page = include_str!("../../../docs/validation.md");
    for rule in Rule::ALL {
        let row = format!("| {rule} | {} | {} |", rule.explanation(), rule.remedy());
        assert!(page.contains(&row), "docs/validation.md lacks\n{row}");
        assert_eq!(rule.id().to_lowercase().parse(), Ok(*rule));
    }
    let rows = page.lines().filter(|line| line.starts_with("| V-")).count();
    assert_eq!(rows, Rule::ALL.len());
    assert!("V-NOTHING".parse::<Rule>().is_err());
}

#[test]
fn sound_traffic_breaks_no_rule() {
    for &(name, case) in transfer::CASES {
        let (pairs, findings) = crate::client::validating(case);
        assert!(findings.is_empty(), "{name}: {}", findings[0]);
        assert!(pairs > 0, "{name} watched nothing");
    }
}

#[test]
fn a_queue_that_starts_anew_is_watched_anew() {
    let mut pair = validated(None);
    let target = pair.b.region(&mut pair.device, 4096, full());
    for _ in 0..3 {
        pair.b
            .recv(&mut pair.device, &mut pair.qb, 1, &[target.sge(0, 64)]);
        pair.b
            .modify(&mut pair.device, &mut pair.qb, QpState::RESET);
        pair.qb.rq_producer = 0;
        pair.b.modify(&mut pair.device, &mut pair.qb, QpState::INIT);
    }
    assert!(pair.device.findings().is_empty());
}

#[test]
fn flags_of_a_finding_are_those_of_the_wqe() {
    let mut pair = validated(None);
    let own = pair.a.region(&mut pair.device, 4096, full());
    let mut bad = Send::new(
        Opcode::SEND,
        7,
        &[own.sge(0, 1), own.sge(1, 2), own.sge(3, 4)],
    );
    bad.head.flags |= (WqeFlags::FENCE | WqeFlags::SOLICITED).bits() | 0x40;
    pair.a.send(&mut pair.device, &mut pair.qa, &bad);
    let findings = only(&pair.device, Rule::WqeReserved);
    let wqe = findings[0].wqe.as_ref().unwrap();
    assert_eq!(wqe.flags, ["SIGNALED", "SOLICITED", "FENCE", "0x40"]);
    let lens: Vec<_> = wqe.sges.iter().map(|sge| sge.len).collect();
    assert_eq!((wqe.blocks, lens), (2, vec![1, 2, 4]));
    assert!(wqe.to_string().contains("SIGNALED|SOLICITED|FENCE|0x40"));
}
