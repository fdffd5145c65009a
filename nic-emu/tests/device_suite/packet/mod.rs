//! Packet mode: what a bad link does to a connection, and what it never does.

mod limits;
pub(crate) mod refusals;
pub(crate) mod retries;
pub(crate) mod stream;

use nic_emu::device::{Counters, LinkParameters};
use ring_proto::admin::{AdminOp, QpAttributes, QpModify};
use ring_proto::ids::NodeId;
use ring_proto::status::{Opcode, QpState, WcStatus};

pub(crate) use self::stream::stream;
use crate::client::{Pair, RawQp, Send, device, full, pump};

pub(crate) const A: NodeId = NodeId(0);

pub(crate) const B: NodeId = NodeId(1);

pub(crate) const US: u64 = 1_000;

pub(crate) const MS: u64 = 1_000_000;

/// A link of 50 us with no other fault.
pub(crate) fn slow() -> LinkParameters {
    LinkParameters {
        latency_ns: 50 * US,
        ..LinkParameters::default()
    }
}

/// Loses, disorders, doubles and damages one packet in twenty each.
pub(crate) fn bad() -> LinkParameters {
    LinkParameters {
        jitter_ns: 30 * US,
        loss_ppm: 50_000,
        reorder_ppm: 50_000,
        reorder_ns: 300 * US,
        duplicate_ppm: 50_000,
        corrupt_ppm: 50_000,
        bandwidth_bps: 10_000_000_000,
        ..slow()
    }
}

pub(crate) fn cut() -> LinkParameters {
    LinkParameters {
        up: false,
        ..slow()
    }
}

pub(crate) fn both(pair: &mut Pair, parameters: LinkParameters) {
    pair.device.set_link(A, B, parameters).unwrap();
    pair.device.set_link(B, A, parameters).unwrap();
    pair.pump();
}

/// Lets time pass from timer to timer until `done`, or until `limit_ns` or nothing is left to come.
fn run_until(pair: &mut Pair, limit_ns: u64, mut done: impl FnMut(&mut Pair) -> bool) {
    loop {
        pair.pump();
        if done(pair) {
            return;
        }
        match pair.device.pump().next_timer_ns {
            Some(at) if at <= limit_ns => {
                let now_ns = pair.device.now_ns();
                pair.device.advance(at.saturating_sub(now_ns));
            }
            _ => return,
        }
    }
}

/// Lets `ns` pass, timer by timer.
pub(crate) fn run(pair: &mut Pair, ns: u64) {
    let limit_ns = pair.device.now_ns() + ns;
    run_until(pair, limit_ns, |_| false);
    let now_ns = pair.device.now_ns();
    pair.device.advance(limit_ns - now_ns);
    pair.pump();
}

/// Transport attributes of a connected QP.
pub(crate) fn attributes(pair: &mut Pair, on_a: bool, change: impl Fn(&mut QpModify)) {
    let (client, qp) = if on_a {
        (&mut pair.a, &pair.qa)
    } else {
        (&mut pair.b, &pair.qb)
    };
    let mut body = QpModify {
        qpn: qp.qpn,
        state: QpState::RTS.0.into(),
        rnr_retry: 7,
        ..QpModify::default()
    };
    change(&mut body);
    client.ok(&mut pair.device, AdminOp::QP_MODIFY, body.to_body());
}

/// An ACK timeout of 1.05 ms.
pub(crate) fn short_timeout(pair: &mut Pair, retry_cnt: u8) {
    attributes(pair, true, |body| {
        body.attributes = (QpAttributes::TIMEOUT | QpAttributes::RETRY_CNT).bits();
        body.timeout = 8;
        body.retry_cnt = retry_cnt;
    });
}

pub(crate) fn counters(pair: &Pair, node: NodeId) -> Counters {
    let all = pair.device.node_counters();
    all.iter()
        .find(|entry| entry.node == node)
        .unwrap()
        .counters
}

#[test]
fn bandwidth_and_latency_set_the_time_of_a_transfer() {
    let mut pair = Pair::new();
    // 8 Mbit/s: one byte in a microsecond.
    let parameters = LinkParameters {
        bandwidth_bps: 8_000_000,
        ..slow()
    };
    both(&mut pair, parameters);
    let source = pair.a.region(&mut pair.device, 1 << 16, full());
    let target = pair.b.region(&mut pair.device, 1 << 16, full());
    let len = 40_960;
    let wqe = Send::new(Opcode::RDMA_WRITE, 1, &[source.sge(0, len)]);
    let wqe = wqe.remote(target.iova, target.key);
    pair.a.send(&mut pair.device, &mut pair.qa, &wqe);
    let mut wc = None;
    run_until(&mut pair, 1_000 * MS, |pair| {
        wc = pair.a.poll(&mut pair.qa);
        wc.is_some()
    });
    assert_eq!(wc.expect("a completion").status, WcStatus::SUCCESS);
    let took_ns = pair.device.now_ns();
    let least_ns = u64::from(len) * US + 100 * US;
    assert!(
        (least_ns..least_ns + 1_000 * US).contains(&took_ns),
        "{took_ns} ns"
    );
    assert_eq!(counters(&pair, A).retransmitted_packets, 0);
}

#[test]
fn reset_forgets_packets_on_their_way() {
    let mut pair = Pair::new();
    both(&mut pair, slow());
    let target = pair.b.region(&mut pair.device, 64, full());
    let wqe = Send::inline(Opcode::RDMA_WRITE, 1, b"late").remote(target.iova, target.key);
    pair.a.send(&mut pair.device, &mut pair.qa, &wqe);
    let mut qa: RawQp = pair.qa;
    pair.a.modify(&mut pair.device, &mut qa, QpState::RESET);
    run(&mut pair, 1_000 * MS);
    assert_eq!(pair.b.read(target.iova, 4), [0; 4]);
    assert_eq!(pair.device.pump().next_timer_ns, None);
}

#[test]
fn probabilities_and_nodes_are_checked() {
    let (mut device, a, b) = device();
    let wrong = LinkParameters {
        loss_ppm: 1_000_001,
        ..LinkParameters::default()
    };
    assert!(device.set_link(a, b, wrong).is_err());
    assert!(device.set_link(a, NodeId(7), slow()).is_err());
    device.set_link(a, b, slow()).unwrap();
    assert_eq!(device.link(a, b), slow());
    assert_eq!(device.link(b, a), LinkParameters::default());
    pump(&mut device);
}
