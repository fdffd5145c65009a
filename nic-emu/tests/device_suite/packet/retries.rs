//! Retries: of what gets lost, and of what finds no receive.

use nic_emu::device::{FaultAction, FaultPoint, FaultRule, PacketCounters, Topic};
use ring_proto::admin::QpAttributes;
use ring_proto::status::{Opcode, QpState, Syndrome, WcStatus};

use super::{A, B, MS, US, attributes, bad, both, counters, cut, run, short_timeout, slow};
use crate::client::{Pair, Send, full};

#[test]
pub(crate) fn cut_link_ends_after_the_last_retry_and_not_before() {
    for retry_cnt in [0, 1, 7] {
        let mut pair = Pair::new();
        short_timeout(&mut pair, retry_cnt);
        both(&mut pair, cut());
        for wr_id in [1, 2] {
            pair.a.send(
                &mut pair.device,
                &mut pair.qa,
                &Send::inline(Opcode::SEND, wr_id, b"x"),
            );
        }
        let over_ns = (u64::from(retry_cnt) + 1) * (4_096 << 8);
        run(&mut pair, over_ns - 1);
        assert_eq!(pair.a.poll(&mut pair.qa), None, "retry_cnt {retry_cnt}");
        run(&mut pair, 1);
        let wcs: Vec<_> = pair.a.completions(&mut pair.qa);
        let seen: Vec<_> = wcs
            .iter()
            .map(|wc| (wc.wr_id, wc.status, wc.syndrome))
            .collect();
        assert_eq!(
            seen,
            [
                (1, WcStatus::RETRY_EXC_ERR, Syndrome::RETRIES_EXHAUSTED),
                (2, WcStatus::WR_FLUSH_ERR, Syndrome::FLUSHED)
            ]
        );
        assert_eq!(
            pair.a.query(&mut pair.device, pair.qa.qpn),
            Some(QpState::ERR)
        );
        assert_eq!(pair.device.pump().next_timer_ns, None);
    }
}

#[test]
fn one_way_cut_loses_answers_alone_and_repeats_nothing() {
    let mut pair = Pair::new();
    short_timeout(&mut pair, 7);
    pair.device.set_link(B, A, cut()).unwrap();
    let target = pair.b.region(&mut pair.device, 64, full());
    pair.b
        .recv(&mut pair.device, &mut pair.qb, 9, &[target.sge(0, 64)]);
    pair.a.send(
        &mut pair.device,
        &mut pair.qa,
        &Send::inline(Opcode::SEND, 1, b"once"),
    );
    run(&mut pair, 3 * MS);
    // It arrived, and again, and was taken once.
    assert_eq!(pair.b.completions(&mut pair.qb).len(), 1);
    assert_eq!(pair.a.poll(&mut pair.qa), None);
    pair.device.set_link(B, A, slow()).unwrap();
    run(&mut pair, 3 * MS);
    assert_eq!(pair.a.poll(&mut pair.qa).unwrap().status, WcStatus::SUCCESS);
    assert_eq!(pair.b.completions(&mut pair.qb), []);
}

#[test]
fn retry_without_end_outlasts_an_outage_of_an_hour() {
    let mut pair = Pair::new();
    attributes(&mut pair, true, |body| {
        body.attributes = QpAttributes::RETRY_UNLIMITED.bits();
        body.retry_unlimited = 1;
    });
    both(&mut pair, cut());
    let target = pair.b.region(&mut pair.device, 64, full());
    pair.b
        .recv(&mut pair.device, &mut pair.qb, 9, &[target.sge(0, 64)]);
    pair.a.send(
        &mut pair.device,
        &mut pair.qa,
        &Send::inline(Opcode::SEND, 1, b"late"),
    );
    run(&mut pair, 3_600_000 * MS);
    assert_eq!(pair.a.poll(&mut pair.qa), None);
    // 20 ms, 40 ms ... 2 s: seven steps, then one in two seconds.
    let sent = counters(&pair, A).tx_packets;
    assert!((1_790..1_820).contains(&sent), "{sent} packets in an hour");
    both(&mut pair, slow());
    run(&mut pair, 2_001 * MS);
    assert_eq!(pair.a.poll(&mut pair.qa).unwrap().status, WcStatus::SUCCESS);
    assert_eq!(pair.b.read(target.iova, 4), b"late");
}

#[test]
fn receiver_not_ready_waits_as_the_responder_says_and_goes_on() {
    let mut pair = Pair::new();
    both(&mut pair, slow());
    attributes(&mut pair, false, |body| {
        body.attributes = QpAttributes::MIN_RNR_TIMER.bits();
        // 10.24 ms.
        body.min_rnr_timer = 20;
    });
    for wr_id in 1..=3 {
        pair.a.send(
            &mut pair.device,
            &mut pair.qa,
            &Send::inline(Opcode::SEND, wr_id, &[wr_id.to_le_bytes()[0]; 4]),
        );
    }
    run(&mut pair, 1_000 * MS);
    assert_eq!(pair.a.poll(&mut pair.qa), None);
    let sent = counters(&pair, A).tx_packets;
    // Three at first, then all three again behind each pause.
    assert!((90..=300).contains(&sent), "{sent} packets in a second");
    let target = pair.b.region(&mut pair.device, 64, full());
    for wr_id in 1..=3 {
        let sge = target.sge((wr_id - 1) * 4, 4);
        pair.b.recv(&mut pair.device, &mut pair.qb, wr_id, &[sge]);
    }
    run(&mut pair, 11 * MS);
    let done: Vec<_> = pair.a.completions(&mut pair.qa);
    assert_eq!(
        done.iter().map(|wc| wc.wr_id).collect::<Vec<_>>(),
        [1, 2, 3]
    );
    assert_eq!(
        pair.b.read(target.iova, 12),
        [1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]
    );
}

#[test]
fn receiver_not_ready_runs_out_with_its_own_status_and_time() {
    for rnr_retry in [0u32, 1, 6] {
        let mut pair = Pair::new();
        both(&mut pair, slow());
        attributes(&mut pair, false, |body| {
            body.attributes = QpAttributes::MIN_RNR_TIMER.bits();
            body.min_rnr_timer = 20;
        });
        attributes(&mut pair, true, |body| body.rnr_retry = rnr_retry);
        pair.a.send(
            &mut pair.device,
            &mut pair.qa,
            &Send::inline(Opcode::SEND, 1, b"x"),
        );
        let round_ns = 100 * US;
        let over_ns = round_ns + u64::from(rnr_retry) * (10_240 * US + round_ns);
        run(&mut pair, over_ns - 1);
        assert_eq!(pair.a.poll(&mut pair.qa), None, "rnr_retry {rnr_retry}");
        run(&mut pair, 1);
        let wc = pair.a.poll(&mut pair.qa).expect("it failed");
        assert_eq!(
            (wc.status, wc.syndrome),
            (WcStatus::RNR_RETRY_EXC_ERR, Syndrome::RNR_EXHAUSTED)
        );
    }
}

/// Counters of the QPs of a and of b.
fn of_qps(pair: &Pair) -> [Option<PacketCounters>; 2] {
    let rows = pair.device.inspect(&[Topic::Qps]).qps;
    [pair.a.function, pair.b.function].map(|function| {
        let row = rows.iter().find(|row| row.function == function.0);
        row.unwrap().packets
    })
}

#[test]
fn inspection_counts_what_each_queue_pair_met_by_packets() {
    let mut pair = Pair::new();
    let target = pair.b.region(&mut pair.device, 64, full());
    let write =
        |wr_id| Send::inline(Opcode::RDMA_WRITE, wr_id, b"x").remote(target.iova, target.key);
    pair.a.send(&mut pair.device, &mut pair.qa, &write(1));
    assert_eq!(of_qps(&pair), [None, None], "no packet so far");
    short_timeout(&mut pair, 7);
    both(&mut pair, slow());
    let mut expected = [PacketCounters::default(); 2];

    // A packet that is lost, so that the next one is behind a gap; both come again.
    let drop = FaultRule::new(FaultPoint::Packet, FaultAction::Drop)
        .node("a")
        .nth(1);
    pair.device.add_fault(drop).unwrap();
    pair.a.write_send(&mut pair.qa, &write(2).blocks());
    pair.a.send(&mut pair.device, &mut pair.qa, &write(3));
    run(&mut pair, 500 * MS);
    expected[0].tx_packets = 4;
    expected[0].retransmitted_packets = 2;
    expected[0].packet_seq_err = 1;
    expected[1].out_of_sequence = 1;
    assert_eq!(of_qps(&pair), expected.map(Some));

    // An answer that is lost: the request comes again.
    let drop = FaultRule::new(FaultPoint::Packet, FaultAction::Drop)
        .node("b")
        .nth(1);
    pair.device.add_fault(drop).unwrap();
    pair.a.send(&mut pair.device, &mut pair.qa, &write(4));
    run(&mut pair, 500 * MS);
    expected[0].tx_packets += 2;
    expected[0].retransmitted_packets += 1;
    expected[0].local_ack_timeout_err = 1;
    expected[1].duplicate_request = 1;
    assert_eq!(of_qps(&pair), expected.map(Some));

    // A receiver that is not ready, until it is.
    pair.a.send(
        &mut pair.device,
        &mut pair.qa,
        &Send::inline(Opcode::SEND, 5, b"x"),
    );
    run(&mut pair, MS / 2);
    expected[0].tx_packets += 1;
    expected[0].rnr_nak_retry_err = 1;
    assert_eq!(of_qps(&pair), expected.map(Some));
    pair.b
        .recv(&mut pair.device, &mut pair.qb, 6, &[target.sge(0, 8)]);
    run(&mut pair, 500 * MS);
    expected[0].tx_packets += 1;
    expected[0].retransmitted_packets += 1;
    assert_eq!(of_qps(&pair), expected.map(Some));
    assert!(
        pair.a
            .completions(&mut pair.qa)
            .iter()
            .all(|wc| wc.status == WcStatus::SUCCESS)
    );

    // They outlive the failure that they explain, and not the reset.
    both(&mut pair, cut());
    pair.a.send(&mut pair.device, &mut pair.qa, &write(7));
    run(&mut pair, 500 * MS);
    let wc = pair.a.poll(&mut pair.qa).unwrap();
    assert_eq!(wc.status, WcStatus::RETRY_EXC_ERR);
    let [of_a, _] = of_qps(&pair);
    assert_eq!(of_a.unwrap().local_ack_timeout_err, 1 + 8);
    pair.a
        .modify(&mut pair.device, &mut pair.qa, QpState::RESET);
    assert_eq!(of_qps(&pair)[0], None);
}

#[test]
fn duplicate_atomics_are_done_once() {
    for seed in 0..20 {
        let mut pair = Pair::new();
        pair.device.seed_links(seed);
        short_timeout(&mut pair, 7);
        both(&mut pair, bad());
        let word = pair.b.region(&mut pair.device, 64, full());
        let landing = pair.a.region(&mut pair.device, 256, full());
        for round in 0..20u64 {
            let mut wqe = Send::new(
                Opcode::ATOMIC_FETCH_AND_ADD,
                round,
                &[landing.sge(8 * round, 8)],
            )
            .remote(word.iova, word.key);
            // The operand stands in the place of the second element.
            wqe.sges.push(ring_proto::wqe::Sge {
                addr: 3,
                len: 0,
                lkey: 0,
            });
            pair.a.write_send(&mut pair.qa, &wqe.blocks());
        }
        pair.a.ring_qp(&mut pair.device, &pair.qa);
        run(&mut pair, 500 * MS);
        let wcs = pair.a.completions(&mut pair.qa);
        assert_eq!(wcs.len(), 20, "seed {seed}");
        for round in 0..20u64 {
            let seen = pair.a.read(landing.iova + 8 * round, 8);
            assert_eq!(seen, (3 * round).to_le_bytes(), "seed {seed}");
        }
        assert_eq!(pair.b.read(word.iova, 8), 60u64.to_le_bytes());
    }
}

/// A READ of more than 64 packets goes out as several requests. Asked again from the middle of one, it must not reach into the next,
/// which the responder may never have seen. Found by the conformance suite over links that lose packets.
#[test]
fn regression_read_asked_again_from_its_middle_ends_where_it_ended_before() {
    const PACKETS: u32 = 96;
    /// Path MTU of a QP that says nothing about it.
    const MTU: u32 = 4096;
    let mut pair = Pair::new();
    short_timeout(&mut pair, 7);
    both(&mut pair, slow());
    let len = PACKETS * MTU;
    let target = pair.b.region(&mut pair.device, len.into(), full());
    let landing = pair.a.region(&mut pair.device, len.into(), full());
    let bytes: Vec<u8> = (0..len).map(|at| (at / 251).to_le_bytes()[0]).collect();
    pair.b.write(target.iova, &bytes);
    // The request of the last 32 packets is lost, and a response in the middle of the first 64.
    let lost = |node: &str, opcode: &str, nth| {
        FaultRule::new(FaultPoint::Packet, FaultAction::Drop)
            .node(node)
            .opcode(opcode)
            .nth(nth)
    };
    for rule in [lost("a", "RDMA_READ", 2), lost("b", "READ_RESPONSE", 33)] {
        pair.device.add_fault(rule).unwrap();
    }
    let wqe =
        Send::new(Opcode::RDMA_READ, 1, &[landing.sge(0, len)]).remote(target.iova, target.key);
    pair.a.send(&mut pair.device, &mut pair.qa, &wqe);
    run(&mut pair, 500 * MS);
    let wc = pair.a.poll(&mut pair.qa).expect("a completion");
    assert_eq!(
        (wc.status, wc.syndrome),
        (WcStatus::SUCCESS, Syndrome::NONE)
    );
    assert!(pair.a.read(landing.iova, len as usize) == bytes);
    let rules = pair.device.faults(None).faults;
    assert!(rules.iter().all(|rule| rule.fired == 1), "{rules:?}");
}
