//! Random work over bad links, compared with a model: intact, in order, once.

use std::time::{Duration, Instant};

use nic_emu::device::{DeviceOptions, LinkCounters, LinkParameters, LinkTrace};
use ring_proto::admin::{AdminOp, QpAttributes, QpModify};
use ring_proto::status::{Opcode, QpState, WcStatus};
use ring_proto::wqe::WqeFlags;

use super::{A, B, MS, US, bad, both, counters, cut, run, short_timeout, slow};
use crate::client::{Pair, Region, Send, full};

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
