//! A client whose second thread changes descriptors after their doorbell: what the device checked is what it does.

use std::sync::Arc;
use std::time::Instant;

use ring_proto::shared::WqeRing;
use ring_proto::status::{Opcode, WcStatus};
use ring_proto::sync::{AtomicU32, Ordering};
use ring_proto::wqe::SqWqe;

use super::harness::PATIENCE;
use super::live::{BASE, Live, Region, SQ_DEPTH, full, join, wqe};
use super::process::Emulator;
use super::traffic::Traffic;
use super::{Dice, operations};

/// Bytes of each registered region, with as many untouchable ones on both sides.
const REGION: u64 = 0x4000;
const MESSAGE: u32 = 512;
/// What the untouchable bytes hold.
const CANARY: u8 = 0xa5;

/// Writes descriptors that are all wrong, and half right ones, over the whole send queue until told to stop.
fn rewrite(ring: WqeRing, good: SqWqe, seed: u64, stop: &AtomicU32) -> u64 {
    let mut dice = Dice(seed);
    let mut written = 0;
    // Relaxed: nothing else is told by it.
    while stop.load(Ordering::Relaxed) == 0 {
        let mut lie = good;
        match dice.below(10) {
            0 => lie.sges[0].addr = good.sges[0].addr.wrapping_sub(REGION),
            1 => lie.sges[0].addr = good.sges[0].addr + REGION,
            2 => lie.sges[0].len = u32::MAX,
            3 => lie.total = u32::MAX,
            4 => lie.remote_addr = good.remote_addr.wrapping_sub(REGION),
            5 => lie.remote_addr = good.remote_addr + REGION,
            6 => lie.sges[0].lkey ^= 1 << dice.below(32),
            7 => lie.rkey ^= 1 << dice.below(32),
            8 => lie.opcode |= 0x80,
            _ => (lie.blocks, lie.count) = (4, 14),
        }
        let position = u32::try_from(dice.below(SQ_DEPTH.into())).unwrap();
        ring.write(position, &zerocopy::transmute!(lie));
        ring.write(position, &zerocopy::transmute!(good));
        written += 2;
    }
    written
}

/// A region, with canaries before and behind it.
fn surrounded(live: &mut Live) -> (Region, Vec<u64>) {
    let before = live.alloc(REGION);
    let region = live.region(REGION, full()).unwrap();
    let after = live.alloc(REGION);
    for at in [before, after] {
        live.write(at, &vec![CANARY; usize::try_from(REGION).unwrap()]);
    }
    (region, vec![before, after])
}

fn untouched(live: &Live, canaries: &[u64]) {
    for &at in canaries {
        let bytes = live.read(at, usize::try_from(REGION).unwrap());
        assert!(
            bytes.iter().all(|&byte| byte == CANARY),
            "the device wrote outside of the region, near {:#x}",
            at - BASE
        );
    }
}

#[test]
fn descriptors_changed_after_the_doorbell_reach_nothing_outside_of_their_regions() {
    let emulator = Emulator::start();
    let traffic = Traffic::start(&emulator, 4200);
    let total = operations(20_000, 500_000);
    let start = Instant::now();
    let (mut posted, mut rewritten, mut failures, mut round) = (0u64, 0u64, 0u64, 0u16);
    while posted < total {
        round += 1;
        let mut liar = Live::attach(&emulator.device("a"));
        let mut victim = Live::attach(&emulator.device("b"));
        let (mut qp, peer) = (liar.qp().unwrap(), victim.qp().unwrap());
        join((&mut liar, qp.qpn), (&mut victim, peer.qpn), 4400).unwrap();
        let (own, own_canaries) = surrounded(&mut liar);
        let (theirs, their_canaries) = surrounded(&mut victim);
        let opcode = [Opcode::RDMA_WRITE, Opcode::RDMA_READ][usize::from(round % 2)];
        let mut good = wqe(opcode, 7, own.sge(REGION / 2, MESSAGE));
        (good.remote_addr, good.rkey) = (theirs.iova + REGION / 2, theirs.key);
        let stop = Arc::new(AtomicU32::new(0));
        let asked = Arc::clone(&stop);
        let ring = qp.sq;
        let rewriter = std::thread::spawn(move || rewrite(ring, good, u64::from(round), &asked));
        // Until a lie is caught: then the QP is in ERR, and a new connection is made.
        let mut done = 0;
        let failed = loop {
            if done == total / 4 {
                break false;
            }
            for _ in 0..SQ_DEPTH / 2 {
                liar.post_send(&mut qp, &good);
                posted += 1;
            }
            let mut is_failed = false;
            let waited = Instant::now();
            for _ in 0..SQ_DEPTH / 2 {
                let wc = loop {
                    if let Some(wc) = liar.take_wc(&mut qp) {
                        break Some(wc);
                    }
                    // A lie about its blocks makes one descriptor of several, so fewer complete.
                    if is_failed || liar.is_failed() {
                        break None;
                    }
                    assert!(waited.elapsed() < PATIENCE, "no completion");
                    std::thread::yield_now();
                };
                let Some(wc) = wc else { break };
                done += 1;
                is_failed |= wc.status != WcStatus::SUCCESS;
            }
            if is_failed {
                break true;
            }
        };
        failures += u64::from(failed);
        stop.store(1, Ordering::Relaxed);
        rewritten += rewriter.join().unwrap();
        untouched(&liar, &own_canaries);
        untouched(&victim, &their_canaries);
        assert!(!victim.is_failed(), "the victim's function failed");
    }
    let rounds = traffic.finish();
    println!(
        "liar: {posted} descriptors posted, {rewritten} rewritten beside, {failures} connections ended by a lie, {:.1} s, {rounds} checked rounds",
        start.elapsed().as_secs_f64()
    );
    assert!(rewritten > 0);
    emulator.end_unharmed();
}
