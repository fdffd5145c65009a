//! A client that scribbles over its rings, its doorbells and its admin queue, beside one whose traffic must stay whole.

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use ring_proto::admin::{AdminOp, Body, Command, QpModify};
use ring_proto::status::{Opcode, QpState, WcStatus};
use ring_proto::sync::{AtomicU32, Ordering};
use ring_proto::uar;

use crate::client::{A, B, Client, MEMORY, RawQp, Region, Send, device, full, sock};

/// One stroke of the scribbler.
#[derive(Clone, Debug)]
enum Stroke {
    /// A byte anywhere in the summary page, or in the doorbells of the first slots.
    Bar(usize, u8),
    /// Bytes anywhere in its memory: rings, buffers, admin queue.
    Memory(usize, Vec<u8>),
    /// A doorbell of any value.
    Producers(u32, u32, u32),
    /// A consumer of any value.
    Consumer(u32, u32),
    /// A well-formed admin command with any body.
    Command(u16, [u64; 7]),
    /// An admin command whose numbers are small, so that some of them fit.
    SmallCommand(u16, [u8; 14]),
    /// All dirty bits of its first UAR, so that every doorbell is looked at.
    RingAll,
    /// A write to any register.
    Register(u64, u64),
}

fn strokes() -> impl Strategy<Value = Vec<Stroke>> {
    let bar = prop_oneof![0usize..128, 0x8000usize..0x8200, 0x9000usize..0x9400];
    let number = prop_oneof![
        any::<u32>(),
        0u32..100,
        (0u32..100).prop_map(|n| 0u32.wrapping_sub(n))
    ];
    let memory = prop_oneof![0usize..0x4000, 0usize..0x20_000, 0usize..8 << 20];
    let stroke = prop_oneof![
        2 => (bar, any::<u8>()).prop_map(|(at, byte)| Stroke::Bar(at, byte)),
        4 => (memory, prop::collection::vec(any::<u8>(), 1..200))
            .prop_map(|(at, bytes)| Stroke::Memory(at, bytes)),
        4 => (0u32..12, number.clone(), number.clone())
            .prop_map(|(slot, sq, rq)| Stroke::Producers(slot, sq, rq)),
        2 => (0u32..12, number).prop_map(|(slot, consumer)| Stroke::Consumer(slot, consumer)),
        1 => (0u16..32, any::<[u64; 7]>()).prop_map(|(op, body)| Stroke::Command(op, body)),
        4 => (0u16..30, any::<[u8; 14]>()).prop_map(|(op, body)| Stroke::SmallCommand(op, body)),
        6 => Just(Stroke::RingAll),
        1 => ((0u64..48).prop_map(|n| n * 4), any::<u64>())
            .prop_map(|(offset, value)| Stroke::Register(offset, value)),
    ];
    prop::collection::vec(stroke, 1..60)
}

struct Scene {
    device: nic_emu::device::Device,
    a: Client,
    b: Client,
    qa: RawQp,
    qb: RawQp,
    source: Region,
    target: Region,
    /// The scribbler, connected to itself and to b.
    bad: Client,
    bad_qp: RawQp,
    exposed: RawQp,
    round: u32,
}

impl Scene {
    fn new() -> Self {
        let (mut device, node_a, node_b) = device();
        let mut a = Client::attach(&mut device, node_a);
        let mut b = Client::attach(&mut device, node_b);
        let mut bad = Client::attach(&mut device, node_a);
        b.listen(&mut device, sock(B, 80), 8);
        let (qa, qb) = (a.qp(&mut device), b.qp(&mut device));
        crate::client::establish(&mut device, (&mut a, qa.qpn), (&mut b, qb.qpn), 80);
        let mut exposed = b.qp(&mut device);
        let bad_qp = bad.qp(&mut device);
        crate::client::establish(
            &mut device,
            (&mut bad, bad_qp.qpn),
            (&mut b, exposed.qpn),
            80,
        );
        let own = bad.region(&mut device, 4096, full());
        bad.listen(&mut device, sock(A, 81), 8);
        let source = a.region(&mut device, 4096, full());
        let target = b.region(&mut device, 4096, full());
        let open = b.region(&mut device, 4096, full());
        for wr_id in 0..8 {
            b.write_recv(
                &mut exposed,
                crate::client::recv_wqe(wr_id, &[open.sge(0, 512)]),
            );
        }
        b.ring_qp(&mut device, &exposed);
        // Something sound stands in the scribbler's rings, to be bent.
        let mut bad_qp = bad_qp;
        for wr_id in 0..20 {
            let wqe = Send::new(Opcode::SEND, wr_id, &[own.sge(0, 64)]).remote(open.iova, open.key);
            bad.write_send(&mut bad_qp, &wqe.blocks());
        }
        Self {
            device,
            a,
            b,
            qa,
            qb,
            source,
            target,
            bad,
            bad_qp,
            exposed,
            round: 0,
        }
    }

    /// The device does some rounds; it need not come to rest, because the scribbler may ring without end.
    fn work(&mut self) {
        for _ in 0..8 {
            self.device.pump();
        }
        let _ = self.device.try_park();
        self.device.unpark();
    }

    fn stroke(&mut self, stroke: &Stroke) {
        match stroke {
            Stroke::Bar(at, byte) => self.bad.scribble_bar(*at, *byte),
            Stroke::Memory(at, bytes) => {
                let room = usize::try_from(MEMORY).unwrap() - bytes.len();
                let at = u64::try_from((*at).min(room)).unwrap();
                self.bad.write(crate::client::BASE + at, bytes);
            }
            Stroke::Producers(slot, sq, rq) => {
                let line = self.bad.bar.line(*slot);
                line.sq_producer().store(*sq, Ordering::Release);
                line.rq_producer().store(*rq, Ordering::Release);
                self.bad.mark(&mut self.device, *slot);
            }
            Stroke::Consumer(slot, consumer) => {
                let line = self.bad.bar.line(*slot);
                line.cq_consumer().store(*consumer, Ordering::Release);
                line.arm_vectors().store(u64::MAX, Ordering::Release);
            }
            Stroke::Command(op, body) => {
                self.bad.post_admin(Command {
                    opcode: *op,
                    flags: 0,
                    command_id: 0,
                    body: Body(*body),
                });
                self.bad.ring_admin(&mut self.device);
            }
            Stroke::SmallCommand(op, bytes) => {
                let mut body = [0; 7];
                for (word, pair) in body.iter_mut().zip(bytes.chunks_exact(2)) {
                    let known = [
                        self.bad_qp.qpn,
                        self.bad_qp.cqn,
                        self.bad.pdn,
                        self.exposed.qpn,
                        self.bad.function.0,
                        self.b.function.0,
                    ];
                    let pick = |byte: u8| match usize::from(byte) {
                        n if n < 120 => known[n % known.len()],
                        n => u32::try_from(n - 120).unwrap(),
                    };
                    *word = u64::from(pick(pair[0])) | u64::from(pick(pair[1])) << 32;
                }
                self.stroke(&Stroke::Command(*op, body));
            }
            Stroke::RingAll => {
                for slot in 0..16 {
                    self.bad.mark(&mut self.device, slot);
                }
            }
            Stroke::Register(offset, value) => {
                // Refused or not, as the register says.
                let _ = self
                    .device
                    .write_register(self.bad.function, *offset, 8, *value);
                let short = *value & 0xffff_ffff;
                let _ = self
                    .device
                    .write_register(self.bad.function, *offset, 4, short);
            }
        }
    }

    /// A message of the good pair, checked byte by byte.
    fn good_message(&mut self) {
        self.round += 1;
        let byte = self.round.to_le_bytes()[0];
        self.a.write(self.source.iova, &[byte; 700]);
        self.b.write_recv(
            &mut self.qb,
            crate::client::recv_wqe(self.round.into(), &[self.target.sge(0, 4096)]),
        );
        self.b.ring_qp(&mut self.device, &self.qb);
        self.a.write_send(
            &mut self.qa,
            &Send::new(Opcode::SEND, self.round.into(), &[self.source.sge(0, 700)]).blocks(),
        );
        self.a.ring_qp(&mut self.device, &self.qa);
        self.work();
        let sent = self.a.completions(&mut self.qa);
        let received = self.b.completions(&mut self.qb);
        assert_eq!((sent.len(), received.len()), (1, 1));
        assert_eq!(
            (sent[0].wr_id, sent[0].status),
            (self.round.into(), WcStatus::SUCCESS)
        );
        assert_eq!(
            (received[0].wr_id, received[0].byte_len),
            (self.round.into(), 700)
        );
        assert_eq!(self.b.read(self.target.iova, 700), [byte; 700]);
    }
}

fn run(strokes: &[Stroke]) {
    let mut scene = Scene::new();
    for stroke in strokes {
        scene.stroke(stroke);
        scene.work();
    }
    scene.good_message();
    scene.device.advance(100_000_000_000);
    scene.work();
    scene.good_message();
    // The victim of the scribbler's QP still has a sound function.
    let status = scene
        .b
        .status(&mut scene.device, AdminOp::IDENTIFY, Body::default());
    assert_eq!(status, ring_proto::admin::AdminStatus::OK);
    scene.device.detach(scene.bad.function);
    scene.work();
    scene.good_message();
}

#[test]
fn scribbler_harms_itself_only() {
    let config = Config {
        cases: 400,
        failure_persistence: None,
        ..Config::default()
    };
    // Fixed seed: a failure here is a failure everywhere.
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    TestRunner::new_with_rng(config, rng)
        .run(&strokes(), |strokes| {
            run(&strokes);
            Ok(())
        })
        .unwrap();
}

#[test]
fn ringing_without_end_does_not_starve_others() {
    let mut scene = Scene::new();
    // The scribbler marks everything dirty before each round.
    for _ in 0..100 {
        for word in 0..8 {
            scene
                .bad
                .bar
                .uar_dirty(word)
                .store(u64::MAX, Ordering::Release);
        }
        for uar in 0..uar::UARS {
            scene
                .bad
                .bar
                .slots_dirty(uar)
                .store(u64::MAX, Ordering::Release);
        }
        scene.device.kicked(scene.bad.function);
        scene.device.pump();
    }
    scene.good_message();
}

/// Ends the scribbling thread also when the test fails.
struct Stop<'a>(&'a AtomicU32);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        // Relaxed: nothing is published by it.
        self.0.store(1, Ordering::Relaxed);
    }
}

#[test]
fn bytes_that_change_while_the_device_works_harm_their_owner_only() {
    let mut scene = Scene::new();
    let bar = scene.bad.bar;
    let own = scene.bad.region(&mut scene.device, 4096, full());
    let mut qp = scene.bad.qp(&mut scene.device);
    let (sq, rq) = (qp.sq, qp.rq);
    let stop = AtomicU32::new(0);
    let mut executed = 0;
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        scope.spawn(|| {
            // Xorshift: any stream of different numbers will do.
            let mut x = 0x9e37_79b9_7f4a_7c15u64;
            while stop.load(Ordering::Relaxed) == 0 {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                let at = crate::client::low(x & 63);
                // Now sound, now not: the device must see one snapshot whatever happens in between.
                let sges = [own.sge(x & 0xff, 32), own.sge(x & 0xfff, 32)];
                let sound = Send::new(Opcode::SEND, x, &sges).blocks()[0];
                sq.write(at, &sound);
                rq.write(at, &zerocopy::transmute!(crate::client::recv_wqe(x, &sges)));
                let mut bent = sound;
                let word = usize::try_from((x >> 8) & 7).unwrap();
                bent[word] ^= 1 << ((x >> 16) & 63);
                if x & 0xf00_0000 == 0 {
                    sq.write(at, &bent);
                    rq.write(at, &bent);
                    bar.slots_dirty(0).fetch_or(u64::MAX, Ordering::AcqRel);
                    bar.uar_dirty(0).fetch_or(1, Ordering::AcqRel);
                }
                if x & 0xff_0000_0000 == 0 {
                    std::thread::yield_now();
                }
            }
        });
        for _ in 0..300 {
            // The QP talks to itself, so that both ends are bent.
            for state in [QpState::RESET, QpState::INIT, QpState::RTR, QpState::RTS] {
                let names_peer = state == QpState::RTR;
                let body = QpModify {
                    qpn: qp.qpn,
                    state: state.0.into(),
                    peer_function: if names_peer { scene.bad.function.0 } else { 0 },
                    peer_qpn: if names_peer { qp.qpn } else { 0 },
                    ..QpModify::default()
                };
                scene
                    .bad
                    .ok(&mut scene.device, AdminOp::QP_MODIFY, body.to_body());
            }
            qp.sq_producer = 60;
            qp.rq_producer = 32;
            scene.bad.ring_qp(&mut scene.device, &qp);
            scene.work();
            executed += scene
                .bad
                .completions(&mut qp)
                .iter()
                .filter(|wc| wc.status == WcStatus::SUCCESS)
                .count();
            scene.bad.events();
            scene.good_message();
            std::thread::yield_now();
        }
    });
    assert!(executed > 0, "the scribbler's WQEs are sound now and then");
    scene.good_message();
}
