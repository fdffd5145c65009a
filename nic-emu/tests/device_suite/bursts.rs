//! What watches single WQEs sends them the long way; that must change nothing that a client can see.
//!
//! The same random traffic, sound and unsound, runs on a device that serves plain WQEs in bursts and on one whose validation layer looks
//! at each of them: completions, events, memory and counters have to agree.

use nic_emu::device::{DeviceOptions, NodeCounters};
use ring_proto::eqe::EventType;
use ring_proto::status::{Opcode, WcStatus};
use ring_proto::wqe::{Sge, WqeFlags};

use crate::client::{Pair, Region, Send, Wc, recv_wqe};

/// Send WQEs of a script at most, of two blocks at most; as many receives.
const WQES: u32 = 24;
/// Bytes of each region.
const LEN: u64 = 8192;

/// Numbers that look random and are the same for the same seed (Knuth's MMIX generator).
struct Numbers(u64);

impl Numbers {
    /// A number below `bound`.
    fn below(&mut self, bound: u32) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        u32::try_from((self.0 >> 33) % u64::from(bound)).unwrap()
    }

    fn one_in(&mut self, times: u32) -> bool {
        self.below(times) == 0
    }
}

/// Everything that the two clients can see.
#[derive(PartialEq, Debug)]
struct Seen {
    completions: [Vec<Wc>; 2],
    events: [Vec<(EventType, u32, u32)>; 2],
    memory: [Vec<u8>; 2],
    counters: Vec<NodeCounters>,
}

fn wqe(numbers: &mut Numbers, wr_id: u64, own: Region, remote: Region) -> Send {
    let opcode = match numbers.below(6) {
        0 | 1 => Opcode::SEND,
        2 => Opcode::SEND_WITH_IMM,
        3 => Opcode::RDMA_READ,
        4 => Opcode::RDMA_WRITE,
        _ => Opcode::RDMA_WRITE_WITH_IMM,
    };
    let len = match numbers.below(8) {
        0 => 0,
        1 => 3000,
        _ => 1 + numbers.below(96),
    };
    let mut sge = |len| own.sge(u64::from(numbers.below(4096)), len);
    let (first, second) = (sge(len), sge(17));
    let mut wqe = match numbers.below(4) {
        0 if len <= 96 && opcode != Opcode::RDMA_READ => {
            let byte = numbers.below(256).to_le_bytes()[0];
            Send::inline(opcode, wr_id, &vec![byte; len as usize])
        }
        1 => Send::new(opcode, wr_id, &[first, second]),
        _ => Send::new(opcode, wr_id, &[first]),
    };
    wqe = wqe.remote(remote.iova + u64::from(numbers.below(4000)), remote.key);
    if matches!(opcode, Opcode::SEND_WITH_IMM | Opcode::RDMA_WRITE_WITH_IMM) {
        wqe = wqe.imm(numbers.below(1000));
    }
    if numbers.one_in(3) {
        wqe = wqe.unsignaled();
    }
    if numbers.one_in(4) {
        wqe.head.flags |= WqeFlags::SOLICITED.bits();
    }
    match numbers.below(120) {
        0 => wqe.head.total += 1,
        1 => wqe.head.rkey ^= 1,
        2 => wqe.head.remote_addr = remote.iova + LEN - 1,
        3 => wqe.head.opcode = 99,
        _ => {}
    }
    wqe
}

fn receive(numbers: &mut Numbers, into: Region) -> Vec<Sge> {
    let mut sge = |len| into.sge(4096 + u64::from(numbers.below(1000)), len);
    let (whole, part) = (sge(3072), sge(40));
    match numbers.below(30) {
        0 => vec![part],
        1 => vec![Sge { lkey: 1, ..whole }],
        2..8 => vec![part, whole],
        _ => vec![whole],
    }
}

fn run(seed: u64, validate: bool) -> Seen {
    let mut numbers = Numbers(seed);
    let mut pair = Pair::with_options(DeviceOptions {
        virtual_time: true,
        validate,
        ..DeviceOptions::default()
    });
    let full = crate::client::full();
    let own = pair.a.region(&mut pair.device, LEN, full);
    let remote = pair.b.region(&mut pair.device, LEN, full);
    let pattern: Vec<u8> = (0..LEN).map(|at| at.to_le_bytes()[0]).collect();
    pair.a.write(own.iova, &pattern);
    let mut completions = [Vec::new(), Vec::new()];
    let (mut sends, mut receives) = (0, 0);
    while sends < WQES {
        for _ in 0..numbers.below(4).min(WQES - receives) {
            receives += 1;
            let sges = receive(&mut numbers, remote);
            let wqe = recv_wqe(receives.into(), &sges);
            pair.b.write_recv(&mut pair.qb, wqe);
        }
        pair.b.ring_qp(&mut pair.device, &pair.qb);
        for _ in 0..(1 + numbers.below(6)).min(WQES - sends) {
            sends += 1;
            let wqe = wqe(&mut numbers, sends.into(), own, remote);
            pair.a.write_send(&mut pair.qa, &wqe.blocks());
        }
        pair.a.ring_qp(&mut pair.device, &pair.qa);
        pair.pump();
        completions[0].extend(pair.a.completions(&mut pair.qa));
        completions[1].extend(pair.b.completions(&mut pair.qb));
    }
    let len = usize::try_from(LEN).unwrap();
    Seen {
        completions,
        events: [pair.a.events(), pair.b.events()],
        memory: [pair.a.read(own.iova, len), pair.b.read(remote.iova, len)],
        counters: pair.device.node_counters(),
    }
}

#[test]
fn a_wqe_that_is_watched_does_what_it_does_in_a_burst() {
    let (mut good, mut bad) = (0, 0);
    for seed in 0..400 {
        let (burst, watched) = (run(seed, false), run(seed, true));
        assert_eq!(burst, watched, "seed {seed}");
        for wc in burst.completions.iter().flatten() {
            if wc.status == WcStatus::SUCCESS {
                good += 1;
            } else {
                bad += 1;
            }
        }
    }
    assert!(good > 2000 && bad > 200, "{good} good, {bad} bad");
}
