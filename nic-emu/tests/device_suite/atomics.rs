//! Compare-and-swap and fetch-and-add: what changes, what comes back, what is refused.

use std::thread;

use ring_proto::admin::Access;
use ring_proto::eqe::EventType;
use ring_proto::status::{Opcode, QpState, Syndrome, WcOpcode, WcStatus};
use ring_proto::sync::Ordering;
use ring_proto::wqe::WqeFlags;

use crate::client::{Client, Pair, Region, Send, device, full, pump};

const CAS: Opcode = Opcode::ATOMIC_CMP_AND_SWP;
const FAA: Opcode = Opcode::ATOMIC_FETCH_AND_ADD;

/// A pair with a page on each side.
struct Scene {
    pair: Pair,
    own: Region,
    remote: Region,
}

impl Scene {
    fn new() -> Self {
        Self::with(full(), full())
    }

    fn with(qp_access: Access, region_access: Access) -> Self {
        let mut pair = Pair::with_access(qp_access);
        let own = pair.a.region(&mut pair.device, 4096, full());
        let remote = pair.b.region(&mut pair.device, 4096, region_access);
        Self { pair, own, remote }
    }

    fn word(&self, offset: u64) -> u64 {
        word(&self.pair.b, self.remote.iova + offset)
    }

    fn fetched(&self, offset: u64) -> u64 {
        word(&self.pair.a, self.own.iova + offset)
    }

    fn wqe(&self, opcode: Opcode, at: u64, operands: (u64, u64)) -> Send {
        let into = self.own.sge(0, 8);
        let to = (self.remote.iova + at, self.remote.key);
        Send::atomic(opcode, 7, into, to, operands)
    }

    /// Posts a WQE and returns how it ended.
    fn post(&mut self, wqe: &Send) -> (WcStatus, Syndrome) {
        let Pair { device, a, qa, .. } = &mut self.pair;
        a.send(device, qa, wqe);
        let wc = a.poll(qa).expect("a completion");
        (wc.status, wc.syndrome)
    }

    fn peer_state(&mut self) -> Option<QpState> {
        let Pair { device, b, qb, .. } = &mut self.pair;
        b.query(device, qb.qpn)
    }
}

fn word(client: &Client, iova: u64) -> u64 {
    u64::from_le_bytes(client.read(iova, 8).try_into().unwrap())
}

const DONE: (WcStatus, Syndrome) = (WcStatus::SUCCESS, Syndrome::NONE);

#[test]
fn fetch_and_add_adds_and_brings_the_original() {
    let mut scene = Scene::new();
    scene
        .pair
        .b
        .write(scene.remote.iova + 16, &40_u64.to_le_bytes());
    let wqe = scene.wqe(FAA, 16, (2, 0));
    let Pair { device, a, qa, .. } = &mut scene.pair;
    a.send(device, qa, &wqe);
    let wc = a.poll(qa).unwrap();
    assert_eq!(
        (wc.wr_id, wc.status, wc.opcode, wc.byte_len, wc.wqe_counter),
        (7, WcStatus::SUCCESS, WcOpcode::FETCH_ADD.0, 8, 1)
    );
    assert_eq!((scene.word(16), scene.fetched(0)), (42, 40));
    assert_eq!((scene.word(8), scene.word(24)), (0, 0));
    // Neither a receive nor a completion at the peer.
    assert_eq!(scene.pair.b.completions(&mut scene.pair.qb), []);
}

#[test]
fn fetch_and_add_wraps_around() {
    let mut scene = Scene::new();
    let bytes = (u64::MAX - 1).to_le_bytes();
    scene.pair.b.write(scene.remote.iova, &bytes);
    assert_eq!(scene.post(&scene.wqe(FAA, 0, (5, 0))), DONE);
    assert_eq!((scene.word(0), scene.fetched(0)), (3, u64::MAX - 1));
}

#[test]
fn compare_and_swap_swaps_only_what_is_equal() {
    let mut scene = Scene::new();
    let first = 0x0123_4567_89ab_cdef_u64;
    scene.pair.b.write(scene.remote.iova, &first.to_le_bytes());
    let wqe = scene.wqe(CAS, 0, (first, u64::MAX));
    let Pair { device, a, qa, .. } = &mut scene.pair;
    a.send(device, qa, &wqe);
    let wc = a.poll(qa).unwrap();
    assert_eq!(
        (wc.status, wc.opcode, wc.byte_len),
        (WcStatus::SUCCESS, WcOpcode::COMP_SWAP.0, 8)
    );
    assert_eq!((scene.word(0), scene.fetched(0)), (u64::MAX, first));
    // A compare that fails is a success that changes nothing and tells what is there.
    assert_eq!(scene.post(&scene.wqe(CAS, 0, (first, 1))), DONE);
    assert_eq!((scene.word(0), scene.fetched(0)), (u64::MAX, u64::MAX));
}

#[test]
fn the_last_word_of_a_region_is_reached_and_the_next_is_not() {
    let mut scene = Scene::new();
    assert_eq!(scene.post(&scene.wqe(FAA, 4088, (1, 0))), DONE);
    assert_eq!(scene.word(4088), 1);
    assert_eq!(
        scene.post(&scene.wqe(FAA, 4096, (1, 0))),
        (WcStatus::REM_ACCESS_ERR, Syndrome::RKEY_OUT_OF_BOUNDS)
    );
}

#[test]
fn unsignaled_atomics_complete_in_order_with_what_is_around_them() {
    let mut scene = Scene::new();
    let Scene { pair, own, remote } = &mut scene;
    // A WRITE, an addition to what it wrote, a READ of the sum.
    pair.a.write(own.iova + 64, &1000_u64.to_le_bytes());
    let to = (remote.iova, remote.key);
    let wqes = [
        Send::new(Opcode::RDMA_WRITE, 1, &[own.sge(64, 8)])
            .remote(to.0, to.1)
            .unsignaled(),
        Send::atomic(FAA, 2, own.sge(0, 8), to, (1, 0)).unsignaled(),
        Send::new(Opcode::RDMA_READ, 3, &[own.sge(128, 8)]).remote(to.0, to.1),
    ];
    for wqe in &wqes {
        pair.a.write_send(&mut pair.qa, &wqe.blocks());
    }
    pair.a.ring_qp(&mut pair.device, &pair.qa);
    pair.pump();
    let all = pair.a.completions(&mut pair.qa);
    assert_eq!(all.len(), 1);
    assert_eq!((all[0].wr_id, all[0].wqe_counter), (3, 3));
    assert_eq!((scene.fetched(0), scene.fetched(128)), (1000, 1001));
}

#[test]
fn a_turn_that_ends_inside_an_atomic_does_not_cut_it() {
    let mut scene = Scene::new();
    let Scene { pair, remote, .. } = &mut scene;
    let big = pair.b.region(&mut pair.device, 512 * 1024, full());
    let from = pair.a.region(&mut pair.device, 512 * 1024, full());
    // All of a turn's bytes but five.
    let write =
        Send::new(Opcode::RDMA_WRITE, 1, &[from.sge(0, 256 * 1024 - 5)]).remote(big.iova, big.key);
    let to = (remote.iova, remote.key);
    let add = Send::atomic(FAA, 2, from.sge(0, 8), to, (9, 0));
    pair.a.write_send(&mut pair.qa, &write.blocks());
    pair.a.write_send(&mut pair.qa, &add.blocks());
    pair.a.ring_qp(&mut pair.device, &pair.qa);
    pair.pump();
    let done: Vec<_> = pair.a.completions(&mut pair.qa);
    assert!(done.iter().all(|wc| wc.status == WcStatus::SUCCESS));
    assert_eq!(done.len(), 2);
    assert_eq!(scene.word(0), 9);
}

#[test]
pub(crate) fn an_atomic_at_an_odd_address_is_an_invalid_request() {
    for offset in [1, 4, 7, 12] {
        let mut scene = Scene::new();
        assert_eq!(
            scene.post(&scene.wqe(FAA, offset, (1, 0))),
            (WcStatus::REM_INV_REQ_ERR, Syndrome::ATOMIC_MISALIGNED),
            "offset {offset}"
        );
        assert_eq!(scene.word(offset & !7), 0);
        assert_eq!(scene.peer_state(), Some(QpState::ERR));
        let access = (
            EventType::QP_ACCESS,
            scene.pair.qb.qpn,
            u32::from(Syndrome::ATOMIC_MISALIGNED.0),
        );
        assert!(scene.pair.b.events().contains(&access));
    }
}

#[test]
fn rights_of_qp_and_region_are_asked_for_separately() {
    let without = full() - Access::REMOTE_ATOMIC;
    let mut scene = Scene::with(without, full());
    assert_eq!(
        scene.post(&scene.wqe(CAS, 0, (0, 1))),
        (WcStatus::REM_INV_REQ_ERR, Syndrome::QP_NO_ACCESS)
    );
    assert_eq!(scene.word(0), 0);
    let mut scene = Scene::with(full(), without);
    assert_eq!(
        scene.post(&scene.wqe(CAS, 0, (0, 1))),
        (WcStatus::REM_ACCESS_ERR, Syndrome::RKEY_NO_ACCESS)
    );
    assert_eq!(scene.word(0), 0);
    assert_eq!(scene.peer_state(), Some(QpState::ERR));
    // And the right to atomics gives no other.
    let only = Access::LOCAL_WRITE | Access::REMOTE_ATOMIC;
    let mut scene = Scene::with(full(), only);
    let write = Send::new(Opcode::RDMA_WRITE, 1, &[scene.own.sge(0, 8)])
        .remote(scene.remote.iova, scene.remote.key);
    assert_eq!(
        scene.post(&write),
        (WcStatus::REM_ACCESS_ERR, Syndrome::RKEY_NO_ACCESS)
    );
}

#[test]
fn the_word_must_be_reachable_by_its_key() {
    type Change = fn(&mut Send, &mut Scene);
    let cases: [(&str, Change, Syndrome); 3] = [
        (
            "unknown key",
            |wqe, _| wqe.head.rkey ^= 1,
            Syndrome::RKEY_UNKNOWN,
        ),
        (
            "other protection domain",
            |wqe, scene| {
                let pair = &mut scene.pair;
                let pdn = pair.b.pd(&mut pair.device);
                let region = pair.b.region_of(&mut pair.device, 64, full(), pdn, 0);
                (wqe.head.remote_addr, wqe.head.rkey) = (region.iova, region.key);
            },
            Syndrome::RKEY_PD_MISMATCH,
        ),
        (
            "another QP's region",
            |wqe, scene| {
                let pair = &mut scene.pair;
                let pdn = pair.b.pdn;
                let other = pair.b.qp(&mut pair.device);
                let region = pair
                    .b
                    .region_of(&mut pair.device, 64, full(), pdn, other.qpn);
                (wqe.head.remote_addr, wqe.head.rkey) = (region.iova, region.key);
            },
            Syndrome::RKEY_WRONG_QP,
        ),
    ];
    for (what, change, syndrome) in cases {
        let mut scene = Scene::new();
        let mut wqe = scene.wqe(FAA, 0, (1, 0));
        change(&mut wqe, &mut scene);
        assert_eq!(
            scene.post(&wqe),
            (WcStatus::REM_ACCESS_ERR, syndrome),
            "{what}"
        );
    }
}

#[test]
fn the_original_goes_only_where_the_requester_may_write() {
    let mut scene = Scene::new();
    let pair = &mut scene.pair;
    let read_only = pair.a.region(&mut pair.device, 64, Access::REMOTE_READ);
    let to = (scene.remote.iova, scene.remote.key);
    let wqe = Send::atomic(FAA, 1, read_only.sge(0, 8), to, (1, 0));
    assert_eq!(
        scene.post(&wqe),
        (WcStatus::LOC_PROT_ERR, Syndrome::LKEY_NO_ACCESS)
    );
    assert_eq!(scene.word(0), 0, "checked before the word is touched");
    // The peer took no part.
    assert_eq!(scene.peer_state(), Some(QpState::RTS));
}

#[test]
pub(crate) fn each_malformed_field_has_its_syndrome() {
    type Change = fn(&mut Send);
    let op = WcStatus::LOC_QP_OP_ERR;
    let cases: [(&str, Opcode, Change, WcStatus, Syndrome); 7] = [
        (
            "inline",
            FAA,
            |wqe| wqe.head.flags |= WqeFlags::INLINE.bits(),
            op,
            Syndrome::RESERVED_NOT_ZERO,
        ),
        (
            "immediate",
            CAS,
            |wqe| wqe.head.imm = 1,
            op,
            Syndrome::RESERVED_NOT_ZERO,
        ),
        (
            "swap of an addition",
            FAA,
            |wqe| wqe.sges[1].lkey = 1,
            op,
            Syndrome::RESERVED_NOT_ZERO,
        ),
        (
            "no element",
            CAS,
            |wqe| wqe.head.count = 0,
            op,
            Syndrome::BAD_SGE_COUNT,
        ),
        (
            "two elements",
            FAA,
            |wqe| wqe.head.count = 2,
            op,
            Syndrome::BAD_SGE_COUNT,
        ),
        (
            "four bytes",
            CAS,
            |wqe| (wqe.head.total, wqe.sges[0].len) = (4, 4),
            WcStatus::LOC_LEN_ERR,
            Syndrome::BAD_ATOMIC_LENGTH,
        ),
        (
            "total against length",
            CAS,
            |wqe| wqe.sges[0].len = 16,
            WcStatus::LOC_LEN_ERR,
            Syndrome::BAD_TOTAL,
        ),
    ];
    for (what, opcode, change, status, syndrome) in cases {
        let mut scene = Scene::new();
        let mut wqe = scene.wqe(opcode, 0, (0, 0));
        change(&mut wqe);
        assert_eq!(scene.post(&wqe), (status, syndrome), "{what}");
        assert_eq!(scene.peer_state(), Some(QpState::RTS), "{what}");
    }
}

#[test]
fn a_region_for_atomics_must_be_writable_by_its_owner() {
    use ring_proto::admin::{AdminOp, AdminStatus, MrReg};
    let (mut device, node, _) = device();
    let mut client = Client::attach(&mut device, node);
    let addr = client.alloc(64);
    let body = MrReg {
        addr,
        len: 64,
        pdn: client.pdn,
        access: Access::REMOTE_ATOMIC.bits(),
        ..MrReg::default()
    };
    assert_eq!(
        client.status(&mut device, AdminOp::MR_REG, body.to_body()),
        AdminStatus::INVALID
    );
}

#[test]
fn an_orphans_memory_serves_atomics() {
    let mut scene = Scene::new();
    scene.pair.b.write(scene.remote.iova, &5_u64.to_le_bytes());
    scene.pair.device.detach(scene.pair.b.function);
    assert_eq!(scene.post(&scene.wqe(FAA, 0, (1, 0))), DONE);
    assert_eq!((scene.word(0), scene.fetched(0)), (6, 5));
}

#[test]
fn additions_of_the_device_and_of_the_program_are_never_lost() {
    const ROUNDS: u64 = 20_000;
    let mut scene = Scene::new();
    let Scene { pair, own, remote } = &mut scene;
    let Pair {
        device, a, b, qa, ..
    } = pair;
    let wqe = Send::atomic(FAA, 1, own.sge(0, 8), (remote.iova, remote.key), (1, 0));
    let blocks = wqe.blocks();
    thread::scope(|scope| {
        let word = b.word(remote.iova);
        scope.spawn(move || {
            for _ in 0..ROUNDS {
                // Relaxed: only the sum counts.
                word.fetch_add(1 << 32, Ordering::Relaxed);
            }
        });
        for _ in 0..ROUNDS / 16 {
            for _ in 0..16 {
                a.write_send(qa, &blocks);
            }
            a.ring_qp(device, qa);
            pump(device);
            assert_eq!(a.completions(qa).len(), 16);
        }
    });
    assert_eq!(scene.word(0), ROUNDS << 32 | ROUNDS);
}

#[test]
fn atomics_of_one_qp_are_done_in_order() {
    let mut scene = Scene::new();
    let mut seen = Vec::new();
    let Scene { pair, own, remote } = &mut scene;
    let to = (remote.iova, remote.key);
    for round in 0..32_u64 {
        let wqe = Send::atomic(FAA, round, own.sge(8 * round, 8), to, (1, 0));
        pair.a.write_send(&mut pair.qa, &wqe.unsignaled().blocks());
    }
    pair.a.ring_qp(&mut pair.device, &pair.qa);
    pair.pump();
    for round in 0..32 {
        seen.push(scene.fetched(8 * round));
    }
    assert_eq!(seen, (0..32).collect::<Vec<_>>());
}
