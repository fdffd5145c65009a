//! Packet mode: what a bad link does to a connection, and what it never does.

use std::time::{Duration, Instant};

use nic_emu::device::{Counters, DeviceOptions, LinkCounters, LinkParameters, LinkTrace};
use ring_proto::admin::{Access, AdminOp, QpAttributes, QpModify};
use ring_proto::eqe::EventType;
use ring_proto::ids::NodeId;
use ring_proto::status::{Opcode, QpState, Syndrome, WcStatus};
use ring_proto::wqe::WqeFlags;

use crate::client::{Pair, RawQp, Region, Send, Wc, device, full, pump};

const A: NodeId = NodeId(0);
const B: NodeId = NodeId(1);
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
fn attributes(pair: &mut Pair, on_a: bool, change: impl Fn(&mut QpModify)) {
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

fn counters(pair: &Pair, node: NodeId) -> Counters {
    let all = pair.device.node_counters();
    all.iter()
        .find(|entry| entry.node == node)
        .unwrap()
        .counters
}

/// SplitMix64, apart from the one under test.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z ^ (z >> 27)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}

const ROOM: u64 = 24 * 1024;
const MOST: u64 = 20_000;

/// What a work request must have done once it is complete.
enum Goal {
    Receive {
        at: u64,
        bytes: Vec<u8>,
        imm: Option<u32>,
    },
    Memory {
        on_a: bool,
        at: u64,
        bytes: Vec<u8>,
    },
    Imm {
        at: u64,
        bytes: Vec<u8>,
        imm: u32,
    },
}

/// Regions of a world in which work goes on.
struct Stage {
    source: Region,
    landing: Region,
    receives: Region,
    target: Region,
    origin: Region,
    draw: Draw,
    next: u64,
}

/// Work requests in one batch.
const BATCH: u64 = 12;

impl Stage {
    fn new(pair: &mut Pair, seed: u64) -> Self {
        let len = BATCH * ROOM;
        let mut draw = Draw(seed);
        let [source, landing] = [0, 1].map(|_| pair.a.region(&mut pair.device, len, full()));
        let [receives, target, origin] =
            [0, 1, 2].map(|_| pair.b.region(&mut pair.device, len, full()));
        pair.b
            .write(origin.iova, &draw.bytes(usize::try_from(len).unwrap()));
        Self {
            source,
            landing,
            receives,
            target,
            origin,
            draw,
            next: 0,
        }
    }

    /// Posts a batch of random work requests, and the receives that it needs.
    fn post(&mut self, pair: &mut Pair) -> Vec<(u64, Goal)> {
        let mut goals = Vec::new();
        for slot in 0..BATCH {
            let len = match self.draw.below(6) {
                0 => 0,
                1 => self.draw.below(64),
                _ => self.draw.below(MOST),
            };
            let short = u32::try_from(len).unwrap();
            let bytes = self.draw.bytes(usize::try_from(len).unwrap());
            let place = slot * ROOM;
            let id = self.next;
            self.next += 1;
            let imm = u32::try_from(self.draw.below(1 << 32)).unwrap();
            pair.a.write(self.source.iova + place, &bytes);
            // Two elements where there is enough.
            let half = short / 2;
            let sges = if half > 0 && slot % 2 == 0 {
                vec![
                    self.source.sge(place, half),
                    self.source.sge(place + u64::from(half), short - half),
                ]
            } else {
                vec![self.source.sge(place, short)]
            };
            let room = u32::try_from(ROOM).unwrap();
            let receive = |pair: &mut Pair| {
                let wqe = crate::client::recv_wqe(id, &[self.receives.sge(place, room)]);
                pair.b.write_recv(&mut pair.qb, wqe);
            };
            let at = self.target.iova + place;
            let (wqe, goal) = match self.draw.below(5) {
                0 => {
                    receive(pair);
                    let at = self.receives.iova + place;
                    let goal = Goal::Receive {
                        at,
                        bytes,
                        imm: None,
                    };
                    (Send::new(Opcode::SEND, id, &sges), goal)
                }
                1 => {
                    receive(pair);
                    let at = self.receives.iova + place;
                    let goal = Goal::Receive {
                        at,
                        bytes,
                        imm: Some(imm),
                    };
                    (Send::new(Opcode::SEND_WITH_IMM, id, &sges).imm(imm), goal)
                }
                2 => {
                    let wqe = Send::new(Opcode::RDMA_WRITE, id, &sges);
                    let goal = Goal::Memory {
                        on_a: false,
                        at,
                        bytes,
                    };
                    (wqe.remote(at, self.target.key), goal)
                }
                3 => {
                    receive(pair);
                    let wqe = Send::new(Opcode::RDMA_WRITE_WITH_IMM, id, &sges);
                    let goal = Goal::Imm { at, bytes, imm };
                    (wqe.imm(imm).remote(at, self.target.key), goal)
                }
                _ => {
                    let from = self.origin.iova + place;
                    let bytes = pair.b.read(from, usize::try_from(len).unwrap());
                    let landing = self.landing.sge(place, short);
                    let mut wqe = Send::new(Opcode::RDMA_READ, id, &[landing]);
                    if slot % 3 == 0 {
                        wqe.head.flags |= WqeFlags::FENCE.bits();
                    }
                    let at = self.landing.iova + place;
                    let goal = Goal::Memory {
                        on_a: true,
                        at,
                        bytes,
                    };
                    (wqe.remote(from, self.origin.key), goal)
                }
            };
            goals.push((id, goal));
            pair.a.write_send(&mut pair.qa, &wqe.blocks());
        }
        pair.b.ring_qp(&mut pair.device, &pair.qb);
        pair.a.ring_qp(&mut pair.device, &pair.qa);
        pair.pump();
        goals
    }

    fn check(pair: &mut Pair, goals: &[(u64, Goal)]) {
        for (id, goal) in goals {
            let sent = pair.a.poll(&mut pair.qa).expect("a completion");
            assert_eq!((sent.wr_id, sent.status), (*id, WcStatus::SUCCESS));
            let received = match goal {
                Goal::Memory { .. } => None,
                _ => Some(pair.b.poll(&mut pair.qb).expect("a receive")),
            };
            if let Some(received) = received {
                assert_eq!((received.wr_id, received.status), (*id, WcStatus::SUCCESS));
            }
            match (goal, received) {
                (Goal::Receive { at, bytes, imm }, Some(wc)) => {
                    assert_eq!(wc.byte_len as usize, bytes.len());
                    assert_eq!(wc.imm, imm.unwrap_or(0));
                    assert!(pair.b.read(*at, bytes.len()) == *bytes, "message {id}");
                }
                (Goal::Imm { at, bytes, imm }, Some(wc)) => {
                    assert_eq!(wc.imm, *imm);
                    assert!(pair.b.read(*at, bytes.len()) == *bytes, "write {id}");
                }
                (Goal::Memory { on_a, at, bytes }, _) => {
                    let client = if *on_a { &pair.a } else { &pair.b };
                    assert!(client.read(*at, bytes.len()) == *bytes, "memory {id}");
                }
                (_, None) => unreachable!(),
            }
        }
        assert_eq!(pair.a.poll(&mut pair.qa), None);
        assert_eq!(pair.b.poll(&mut pair.qb), None);
    }
}

/// Runs `batches` of random work over links that `links` sets before each; returns the trace.
pub(crate) fn stream(
    seed: u64,
    batches: u32,
    mut links: impl FnMut(&mut Pair, u32),
) -> (Pair, LinkTrace) {
    let mut pair = Pair::new();
    pair.device.seed_links(seed);
    short_timeout(&mut pair, 7);
    let mut stage = Stage::new(&mut pair, seed);
    for batch in 0..batches {
        links(&mut pair, batch);
        let goals = stage.post(&mut pair);
        run(&mut pair, 1_000 * MS);
        Stage::check(&mut pair, &goals);
    }
    let trace = pair.device.link_trace();
    (pair, trace)
}

#[test]
fn random_work_over_a_bad_link_arrives_intact_in_order_and_once() {
    for seed in 0..12 {
        let (pair, _) = stream(seed, 8, |pair, batch| {
            if batch == 0 {
                both(pair, bad());
            }
        });
        let there: LinkCounters = pair.device.link_counters(A, B);
        for (what, count) in [
            ("lost", there.lost),
            ("reordered", there.reordered),
            ("duplicated", there.duplicated),
            ("corrupted", there.corrupted),
        ] {
            assert!(count > 0, "seed {seed}: nothing was {what}: {there:?}");
        }
        assert!(counters(&pair, A).retransmitted_packets > 0);
    }
}

#[test]
fn each_path_mtu_carries_the_stream() {
    for mtu in 1..=5 {
        let mut pair = Pair::unjoined();
        for on_a in [true, false] {
            let (client, qp) = if on_a {
                (&mut pair.a, &pair.qa)
            } else {
                (&mut pair.b, &pair.qb)
            };
            let body = QpModify {
                qpn: qp.qpn,
                state: QpState::INIT.0.into(),
                attributes: QpAttributes::PATH_MTU.bits(),
                path_mtu: mtu,
                ..QpModify::default()
            };
            client.ok(&mut pair.device, AdminOp::QP_MODIFY, body.to_body());
        }
        pair.join();
        short_timeout(&mut pair, 7);
        both(&mut pair, bad());
        let mut stage = Stage::new(&mut pair, mtu.into());
        let before = pair.device.link_counters(A, B).sent;
        let goals = stage.post(&mut pair);
        run(&mut pair, 1_000 * MS);
        Stage::check(&mut pair, &goals);
        assert!(pair.device.link_counters(A, B).sent > before);
    }
}

#[test]
fn same_seed_gives_the_same_trace_and_another_seed_another() {
    let run = |seed: u64| stream(seed, 3, |pair, _| both(pair, bad())).1;
    let (one, again, other) = (run(7), run(7), run(8));
    assert_eq!(one, again);
    assert_ne!(one, other);
    assert!(one.events > 0);
}

#[test]
fn perfect_links_stay_in_message_mode() {
    let (pair, trace) = stream(1, 2, |pair, _| both(pair, LinkParameters::default()));
    assert_eq!(trace, LinkTrace::default());
    assert_eq!(counters(&pair, A).tx_packets, 0);
    assert_eq!(pair.device.link_counters(A, B), LinkCounters::default());
}

#[test]
fn live_connection_changes_its_mode_at_every_batch_without_loss() {
    let (pair, _) = stream(3, 12, |pair, batch| {
        let parameters = match batch % 3 {
            0 => bad(),
            1 => LinkParameters::default(),
            _ => slow(),
        };
        both(pair, parameters);
    });
    assert!(counters(&pair, A).tx_packets > 0);
}

#[test]
fn live_connection_changes_its_mode_in_the_middle_of_work() {
    for seed in 0..8 {
        let mut pair = Pair::new();
        pair.device.seed_links(seed);
        short_timeout(&mut pair, 7);
        let mut stage = Stage::new(&mut pair, seed);
        let mut draw = Draw(seed + 100);
        for _ in 0..6 {
            let goals = stage.post(&mut pair);
            for _ in 0..draw.below(12) {
                let parameters = match draw.below(3) {
                    0 => LinkParameters::default(),
                    1 => bad(),
                    _ => cut(),
                };
                both(&mut pair, parameters);
                let ns = draw.below(400 * US);
                run(&mut pair, ns);
            }
            both(&mut pair, bad());
            run(&mut pair, 2_000 * MS);
            Stage::check(&mut pair, &goals);
        }
    }
}

/// A message far longer than one turn of message mode, caught by the change of the link in its middle.
#[test]
fn message_that_began_in_message_mode_goes_on_by_packets() {
    const LEN: u32 = 1 << 20;
    for opcode in [Opcode::SEND, Opcode::RDMA_WRITE, Opcode::RDMA_READ] {
        let mut pair = Pair::new();
        short_timeout(&mut pair, 7);
        let source = pair.a.region(&mut pair.device, LEN.into(), full());
        let target = pair.b.region(&mut pair.device, LEN.into(), full());
        let bytes = Draw(5).bytes(LEN as usize);
        let (from, to) = if opcode == Opcode::RDMA_READ {
            (target.iova, source.iova)
        } else {
            (source.iova, target.iova)
        };
        if opcode == Opcode::RDMA_READ {
            pair.b.write(from, &bytes);
        } else {
            pair.a.write(from, &bytes);
        }
        pair.b
            .recv(&mut pair.device, &mut pair.qb, 1, &[target.sge(0, LEN)]);
        let wqe = Send::new(opcode, 2, &[source.sge(0, LEN)]).remote(target.iova, target.key);
        pair.a.write_send(&mut pair.qa, &wqe.blocks());
        pair.a.ring_qp(&mut pair.device, &pair.qa);
        // One turn: a quarter of it.
        pair.device.unpark();
        let _ = pair.device.pump();
        pair.device.set_link(A, B, bad()).unwrap();
        run(&mut pair, 1_000 * MS);
        let wc = pair.a.poll(&mut pair.qa).expect("a completion");
        assert_eq!((wc.wr_id, wc.status), (2, WcStatus::SUCCESS), "{opcode}");
        let sent = pair.device.link_counters(A, B).sent + pair.device.link_counters(B, A).sent;
        assert!(sent > 100, "{opcode}: {sent} packets");
        let arrived = if opcode == Opcode::RDMA_READ {
            pair.a.read(to, LEN as usize)
        } else {
            pair.b.read(to, LEN as usize)
        };
        assert!(arrived == bytes, "{opcode}");
        if opcode == Opcode::SEND {
            assert_eq!(pair.b.poll(&mut pair.qb).unwrap().byte_len, LEN);
        }
    }
}

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

/// Sends one WQE over a slow link and returns its completion.
fn outcome(pair: &mut Pair, wqe: &Send) -> Wc {
    both(pair, slow());
    pair.a.send(&mut pair.device, &mut pair.qa, wqe);
    run(pair, 2_000 * MS);
    pair.a.poll(&mut pair.qa).expect("a completion")
}

#[test]
fn each_refusal_has_the_status_and_syndrome_of_message_mode() {
    type Case = (&'static str, fn(&mut Pair) -> Send);
    let cases: [Case; 9] = [
        ("unknown key", |pair| {
            let region = pair.b.region(&mut pair.device, 64, full());
            Send::inline(Opcode::RDMA_WRITE, 1, b"x").remote(region.iova, region.key ^ 0xff)
        }),
        ("bounds", |pair| {
            let region = pair.b.region(&mut pair.device, 64, full());
            Send::inline(Opcode::RDMA_WRITE, 1, &[1; 8]).remote(region.iova + 60, region.key)
        }),
        ("right of the region", |pair| {
            let region = pair.b.region(&mut pair.device, 64, Access::LOCAL_WRITE);
            let own = pair.a.region(&mut pair.device, 64, full());
            Send::new(Opcode::RDMA_READ, 1, &[own.sge(0, 8)]).remote(region.iova, region.key)
        }),
        ("protection domain", |pair| {
            let pdn = pair.b.pd(&mut pair.device);
            let region = pair.b.region_of(&mut pair.device, 64, full(), pdn, 0);
            Send::inline(Opcode::RDMA_WRITE, 1, b"x").remote(region.iova, region.key)
        }),
        ("receive too short", |pair| {
            let region = pair.b.region(&mut pair.device, 64, full());
            let sge = region.sge(0, 2);
            pair.b.recv(&mut pair.device, &mut pair.qb, 5, &[sge]);
            Send::inline(Opcode::SEND, 1, b"long")
        }),
        ("receive with a bad key", |pair| {
            let region = pair.b.region(&mut pair.device, 64, full());
            let mut sge = region.sge(0, 64);
            sge.lkey ^= 0xff;
            pair.b.recv(&mut pair.device, &mut pair.qb, 5, &[sge]);
            Send::inline(Opcode::SEND, 1, b"long")
        }),
        ("receive malformed", |pair| {
            let mut wqe = crate::client::recv_wqe(5, &[]);
            wqe.count = 200;
            pair.b.write_recv(&mut pair.qb, wqe);
            pair.b.ring_qp(&mut pair.device, &pair.qb);
            Send::inline(Opcode::SEND, 1, b"long")
        }),
        ("own key", |pair| {
            let own = pair.a.region(&mut pair.device, 64, full());
            let mut sge = own.sge(0, 8);
            sge.lkey ^= 0xff;
            Send::new(Opcode::SEND, 1, &[sge])
        }),
        ("own receive memory", |pair| {
            let region = pair.b.region(&mut pair.device, 64, full());
            let own = pair.a.region(&mut pair.device, 64, Access::empty());
            Send::new(Opcode::RDMA_READ, 1, &[own.sge(0, 8)]).remote(region.iova, region.key)
        }),
    ];
    for (what, case) in cases {
        let mut straight = Pair::new();
        let wqe = case(&mut straight);
        straight
            .a
            .send(&mut straight.device, &mut straight.qa, &wqe);
        let expected = straight.a.poll(&mut straight.qa).expect("a completion");
        let mut packets = Pair::new();
        let wqe = case(&mut packets);
        let seen = outcome(&mut packets, &wqe);
        assert_ne!(expected.status, WcStatus::SUCCESS, "{what}");
        assert_eq!(
            (seen.status, seen.syndrome),
            (expected.status, expected.syndrome),
            "{what}"
        );
        let end = |pair: &mut Pair| {
            let wcs = pair.b.completions(&mut pair.qb);
            let wcs: Vec<_> = wcs
                .iter()
                .map(|wc| (wc.wr_id, wc.status, wc.syndrome))
                .collect();
            let events: Vec<_> = pair
                .b
                .events()
                .iter()
                .map(|event| (event.0, event.2))
                .collect();
            (wcs, events, pair.b.query(&mut pair.device, pair.qb.qpn))
        };
        assert_eq!(
            end(&mut straight),
            end(&mut packets),
            "{what}: the responder"
        );
    }
}

#[test]
fn qp_without_the_right_refuses_by_packets_too() {
    let mut pair = Pair::with_access(Access::REMOTE_READ);
    let region = pair.b.region(&mut pair.device, 64, full());
    let wqe = Send::inline(Opcode::RDMA_WRITE, 1, b"x").remote(region.iova, region.key);
    let wc = outcome(&mut pair, &wqe);
    assert_eq!(
        (wc.status, wc.syndrome),
        (WcStatus::REM_INV_REQ_ERR, Syndrome::QP_NO_ACCESS)
    );
    let events = pair.b.events();
    assert!(events.iter().any(|event| event.0 == EventType::QP_ACCESS));
}

/// The NAK is lost with half of everything else, and the requester hears the reason all the same.
#[test]
fn reason_of_a_refusal_survives_the_loss_of_its_answer() {
    for seed in 0..10 {
        let mut pair = Pair::new();
        pair.device.seed_links(seed);
        short_timeout(&mut pair, 7);
        let half = LinkParameters {
            loss_ppm: 300_000,
            ..slow()
        };
        both(&mut pair, half);
        let region = pair.b.region(&mut pair.device, 64, full());
        let wqe = Send::inline(Opcode::RDMA_WRITE, 1, b"x").remote(region.iova, region.key ^ 0xff);
        pair.a.send(&mut pair.device, &mut pair.qa, &wqe);
        run(&mut pair, 100 * MS);
        let wc = pair.a.poll(&mut pair.qa).expect("a completion");
        assert_eq!(
            (wc.status, wc.syndrome),
            (WcStatus::REM_ACCESS_ERR, Syndrome::RKEY_UNKNOWN)
        );
    }
}

/// Connects both QPs by QP_MODIFY: PSNs that a sends and b expects, and the other way.
fn rise(pair: &mut Pair, there: (u32, u32), back: (u32, u32)) {
    let numbers = [
        (pair.a.function.0, pair.qa.qpn),
        (pair.b.function.0, pair.qb.qpn),
    ];
    for (on_a, own, peer, sq_psn, rq_psn) in [
        (true, numbers[0], numbers[1], there.0, back.1),
        (false, numbers[1], numbers[0], back.0, there.1),
    ] {
        let client = if on_a { &mut pair.a } else { &mut pair.b };
        let rtr = QpModify {
            qpn: own.1,
            state: QpState::RTR.0.into(),
            peer_function: peer.0,
            peer_qpn: peer.1,
            attributes: QpAttributes::RQ_PSN.bits(),
            rq_psn,
            ..QpModify::default()
        };
        let rts = QpModify {
            qpn: own.1,
            state: QpState::RTS.0.into(),
            rnr_retry: 7,
            attributes: QpAttributes::SQ_PSN.bits(),
            sq_psn,
            ..QpModify::default()
        };
        for body in [rtr, rts] {
            client.ok(&mut pair.device, AdminOp::QP_MODIFY, body.to_body());
        }
    }
}

#[test]
fn psns_wrap_in_the_middle_of_the_stream() {
    for psn in [0xff_ffff, 0xff_fff0, 0xff_ff00] {
        let mut pair = Pair::unjoined();
        rise(&mut pair, (psn, psn), (psn ^ 0x55, psn ^ 0x55));
        short_timeout(&mut pair, 7);
        both(&mut pair, bad());
        let mut stage = Stage::new(&mut pair, psn.into());
        for _ in 0..4 {
            let goals = stage.post(&mut pair);
            run(&mut pair, 1_000 * MS);
            Stage::check(&mut pair, &goals);
        }
    }
}

#[test]
fn psns_that_do_not_agree_carry_nothing() {
    let mut pair = Pair::unjoined();
    rise(&mut pair, (100, 90), (5, 5));
    short_timeout(&mut pair, 2);
    both(&mut pair, slow());
    pair.a.send(
        &mut pair.device,
        &mut pair.qa,
        &Send::inline(Opcode::RDMA_WRITE, 1, b""),
    );
    run(&mut pair, 100 * MS);
    let wc = pair.a.poll(&mut pair.qa).expect("it failed");
    assert_eq!(wc.status, WcStatus::RETRY_EXC_ERR);
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

/// The same engine by the machine's clock: nobody advances it, the round is run until the work is done.
#[test]
fn real_time_carries_the_stream_too() {
    let mut pair = Pair::with_options(DeviceOptions::default());
    pair.device.seed_links(11);
    short_timeout(&mut pair, 7);
    both(&mut pair, bad());
    let mut stage = Stage::new(&mut pair, 11);
    let goals = stage.post(&mut pair);
    let watchdog = Instant::now();
    let is_busy = |pair: &mut Pair| {
        let _ = pair.device.pump();
        pair.device.pump().next_timer_ns.is_some()
    };
    while is_busy(&mut pair) {
        assert!(
            watchdog.elapsed() < Duration::from_secs(60),
            "it never ends"
        );
        std::thread::yield_now();
    }
    Stage::check(&mut pair, &goals);
    assert!(counters(&pair, A).tx_packets > 0);
}
