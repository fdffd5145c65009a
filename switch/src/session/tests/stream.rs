//! Bytes: whatever is sent arrives, once, in order.

use std::sync::Arc;

use proptest::prelude::*;

use super::world::{DoubleWorld, World, pattern, recv, recv_flags, send, send_all, settle};
use crate::session::{Conn, ConnOptions};

#[derive(Clone, Debug)]
pub(super) enum Step {
    Send(bool, Vec<usize>),
    Recv(bool, Vec<usize>),
    Peek(bool, usize),
    Truncate(bool, usize),
    Progress(bool),
}

pub(super) fn steps(most: usize) -> impl Strategy<Value = Vec<Step>> {
    let sizes = prop_oneof![
        4 => proptest::collection::vec(0_usize..300, 1..5),
        2 => proptest::collection::vec(0_usize..30_000, 1..4),
        1 => proptest::collection::vec(60_000_usize..150_000, 1..2),
    ];
    let step = prop_oneof![
        4 => (any::<bool>(), sizes.clone()).prop_map(|(s, v)| Step::Send(s, v)),
        4 => (any::<bool>(), sizes).prop_map(|(s, v)| Step::Recv(s, v)),
        1 => (any::<bool>(), 0_usize..40_000).prop_map(|(s, n)| Step::Peek(s, n)),
        1 => (any::<bool>(), 0_usize..4_000).prop_map(|(s, n)| Step::Truncate(s, n)),
        2 => any::<bool>().prop_map(Step::Progress),
    ];
    proptest::collection::vec(step, 1..most)
}

/// Runs `steps` and checks every byte against its place in the stream.
pub(super) fn check(ends: &[Arc<Conn>; 2], steps: &[Step]) {
    let mut sent = [0_u64; 2];
    let mut taken = [0_u64; 2];
    let vectors = |buffers: &mut [Vec<u8>]| -> Vec<libc::iovec> {
        buffers
            .iter_mut()
            .map(|b| libc::iovec {
                iov_base: b.as_mut_ptr().cast(),
                iov_len: b.len(),
            })
            .collect()
    };
    for step in steps {
        match step {
            Step::Send(side, sizes) => {
                let s = usize::from(*side);
                let mut at = sent[s];
                let mut buffers: Vec<Vec<u8>> = sizes
                    .iter()
                    .map(|&n| {
                        let bytes = pattern(s as u64, at, n);
                        at += n as u64;
                        bytes
                    })
                    .collect();
                match ends[s].send(&vectors(&mut buffers), 0) {
                    Ok(n) => sent[s] += n as u64,
                    Err(errno) => assert_eq!(errno, libc::EAGAIN),
                }
            }
            Step::Recv(side, sizes) => {
                let s = usize::from(*side);
                let mut buffers: Vec<Vec<u8>> = sizes.iter().map(|&n| vec![0; n]).collect();
                match ends[s].recv(&vectors(&mut buffers), 0) {
                    Ok(n) => {
                        let all: Vec<u8> = buffers.concat();
                        assert_eq!(all[..n], pattern(1 - s as u64, taken[s], n)[..]);
                        assert!(n > 0 || all.is_empty(), "end of stream");
                        taken[s] += n as u64;
                    }
                    Err(errno) => assert_eq!(errno, libc::EAGAIN),
                }
            }
            Step::Peek(side, len) => {
                let s = usize::from(*side);
                if let Ok(bytes) = recv_flags(&ends[s], *len, libc::MSG_PEEK) {
                    assert_eq!(bytes, pattern(1 - s as u64, taken[s], bytes.len()));
                }
            }
            Step::Truncate(side, len) => {
                let s = usize::from(*side);
                if let Ok(bytes) = recv_flags(&ends[s], *len, libc::MSG_TRUNC) {
                    assert!(bytes.iter().all(|&b| b == 0), "truncated bytes were copied");
                    taken[s] += bytes.len() as u64;
                }
            }
            Step::Progress(side) => ends[usize::from(*side)].progress(),
        }
        assert!(taken[0] <= sent[1] && taken[1] <= sent[0]);
    }
    // Whatever is still under way arrives.
    for s in 0..2 {
        while taken[s] < sent[1 - s] {
            match recv(&ends[s], 50_000) {
                Ok(bytes) => {
                    assert_eq!(bytes, pattern(1 - s as u64, taken[s], bytes.len()));
                    assert!(!bytes.is_empty());
                    taken[s] += bytes.len() as u64;
                }
                Err(errno) => {
                    assert_eq!(errno, libc::EAGAIN);
                    let before = ends[s].readable_bytes();
                    settle(&[&ends[0], &ends[1]]);
                    assert!(ends[s].readable_bytes() > before, "stuck at {}", taken[s]);
                }
            }
        }
    }
    settle(&[&ends[0], &ends[1]]);
    for s in 0..2 {
        assert_eq!(recv(&ends[s], 1), Err(libc::EAGAIN));
        assert_eq!(ends[s].unsent_bytes(), 0);
        assert_eq!(ends[s].counters(), (sent[s], taken[s]));
        assert!(!ends[s].wants_service());
    }
}

/// A ring that wraps often.
pub(super) fn short_ring() -> ConnOptions {
    ConnOptions {
        send_buffer: 70_000,
        ring: 64 * 1024,
        ..ConnOptions::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn bytes_arrive_once_and_in_order(steps in steps(120)) {
        let world = DoubleWorld::new();
        let (a, b) = world.pair();
        check(&[a, b], &steps);
    }

    #[test]
    fn bytes_arrive_once_and_in_order_through_short_rings(steps in steps(120)) {
        let world = DoubleWorld::new();
        let (a, b) = world.pair_with(short_ring(), short_ring());
        check(&[a, b], &steps);
    }
}

/// both ends send 256 KiB before either reads.
pub(super) fn both_send_before_reading(world: &impl World) {
    const LEN: usize = 256 * 1024;
    let (a, b) = world.pair();
    let (to_b, to_a) = (pattern(0, 0, LEN), pattern(1, 0, LEN));
    send_all(&a, &to_b);
    send_all(&b, &to_a);
    let (mut at_a, mut at_b) = (Vec::new(), Vec::new());
    while at_a.len() < LEN || at_b.len() < LEN {
        let before = at_a.len() + at_b.len();
        for (end, all) in [(&a, &mut at_a), (&b, &mut at_b)] {
            while let Ok(bytes) = recv(end, 9_999) {
                all.extend(bytes);
            }
        }
        if at_a.len() + at_b.len() == before {
            settle(&[&a, &b]);
            assert!(a.readable_bytes() + b.readable_bytes() > 0, "stuck");
        }
    }
    assert!(at_a == to_a && at_b == to_b);
}

#[test]
fn r140_both_ends_send_before_they_read() {
    both_send_before_reading(&DoubleWorld::new());
}

/// Thousands of small writes without a read, then reads.
pub(super) fn small_writes_without_reads(world: &impl World) {
    const WRITES: u64 = 5_000;
    let (a, b) = world.pair();
    let mut offset = 0;
    for i in 0..WRITES {
        let bytes = pattern(0, offset, usize::try_from(i % 97 + 1).unwrap());
        send_all(&a, &bytes);
        offset += bytes.len() as u64;
    }
    let mut taken = 0;
    while taken < offset {
        match recv(&b, 100) {
            Ok(bytes) => {
                assert_eq!(bytes, pattern(0, taken, bytes.len()));
                taken += bytes.len() as u64;
            }
            Err(errno) => {
                assert_eq!(errno, libc::EAGAIN);
                settle(&[&a, &b]);
                assert!(b.readable_bytes() > 0, "stuck at {taken}");
            }
        }
    }
    settle(&[&a, &b]);
    assert_eq!(b.readable_bytes(), 0);
    assert_eq!(a.unsent_bytes(), 0);
}

#[test]
fn small_writes_without_reads_all_arrive() {
    small_writes_without_reads(&DoubleWorld::new());
}

#[test]
fn sender_is_stopped_by_its_own_limit_and_goes_on_after_reads() {
    let world = DoubleWorld::new();
    let (a, b) = world.pair();
    let mut sent = 0_u64;
    while let Ok(n) = send(&a, &pattern(0, sent, 40_000)) {
        sent += n as u64;
    }
    // 1 MiB in the ring, and the peer's receives less the reserve, not all of them full.
    assert!(sent >= (1 << 20) + 150 * 1024, "only {sent}");
    assert_eq!(a.readiness() & 4, 0, "not writable");
    let edges = a.edge_counter();
    let mut taken = 0_u64;
    while taken < sent {
        if let Ok(bytes) = recv(&b, 1 << 16) {
            assert!(bytes == pattern(0, taken, bytes.len()));
            taken += bytes.len() as u64;
        }
        settle(&[&a, &b]);
    }
    assert!(a.edge_counter().1 > edges.1, "room is an edge");
    assert_eq!(a.readiness() & 4, 4);
}

#[test]
fn full_send_queue_is_tried_again_after_a_completion() {
    let world = DoubleWorld::new();
    let (a, b) = world.pair();
    world.fabric.fill_send_queues(true);
    send_all(&a, b"waits");
    assert_eq!(recv(&b, 9), Err(libc::EAGAIN));
    assert!(a.wants_service());
    world.fabric.fill_send_queues(false);
    settle(&[&a]);
    assert_eq!(recv(&b, 9).unwrap(), b"waits");
}

#[test]
fn the_service_is_woken_once_for_what_a_call_leaves_and_rests_while_calls_go_on() {
    let world = DoubleWorld::new();
    let (a, b) = world.pair();
    send_all(&a, b"all posted");
    assert!(a.unsent_bytes() > 0 && !a.leave(), "the NIC has it");
    // More than the credits allow.
    send_all(&a, &pattern(0, 0, 900_000));
    assert!(a.leave());
    assert!(!a.leave(), "it knows");
    assert!(a.is_watched());
    let second = 1_000_000_000;
    let until = a.rests_until(second).unwrap();
    assert!(a.is_resting(until - 1) && !a.is_resting(until));
    assert_eq!(a.rests_until(until - 1), Some(until));
    assert_eq!(a.rests_until(until), None, "no call since");
    a.touch();
    assert!(a.rests_until(until).is_some_and(|next| next > until));
    while recv(&b, 1 << 16).is_ok() {
        settle(&[&a, &b]);
    }
    assert!(!a.is_watched() && !a.leave());
    send_all(&a, &pattern(0, 0, 900_000));
    assert!(a.leave(), "the watch had ended");
}

#[test]
fn receiver_not_ready_holds_messages_and_loses_none() {
    let world = DoubleWorld::new();
    let (a, b) = world.pair();
    world.fabric.hold(a.sp(), true);
    send_all(&a, &pattern(0, 0, 100_000));
    settle(&[&a, &b]);
    assert_eq!(b.readable_bytes(), 0);
    world.fabric.hold(a.sp(), false);
    settle(&[&a, &b]);
    assert_eq!(b.readable_bytes(), 100_000);
    assert_eq!(recv(&b, 100_000).unwrap(), pattern(0, 0, 100_000));
}

#[test]
fn another_process_of_the_family_continues_the_stream() {
    let world = DoubleWorld::new();
    let (a, b) = world.pair();
    send_all(&a, b"first");
    let child = Conn::attach(world.fabric.provider(2), a.sp(), a.record_offset()).unwrap();
    assert_eq!(send(&child, b"second"), Ok(6));
    send_all(&a, b"third");
    assert_eq!(recv(&b, 100).unwrap(), b"firstsecondthird");
    send_all(&b, b"answer");
    assert_eq!(recv(&child, 3).unwrap(), b"ans");
    assert_eq!(recv(&a, 10).unwrap(), b"wer");
}

#[test]
fn low_water_mark_holds_readiness_back_but_never_for_ever() {
    let world = DoubleWorld::new();
    let (a, b) = world.pair();
    b.set_receive_low_water(1000);
    send_all(&a, &[1; 999]);
    settle(&[&b]);
    assert_eq!(b.readiness() & 1, 0);
    send_all(&a, &[1]);
    settle(&[&b]);
    assert_eq!(b.readiness() & 1, 1);
    assert_eq!(recv(&b, 2000).unwrap().len(), 1000);
    b.set_receive_low_water(1 << 20);
    for _ in 0..20 {
        send_all(&a, &[1]);
        settle(&[&b]);
    }
    assert_eq!(
        b.readiness() & 1,
        1,
        "every receive is taken, more cannot come"
    );
}

#[test]
fn threads_on_both_ends_move_a_stream_in_both_directions() {
    const LEN: u64 = 3 << 20;
    let world = DoubleWorld::new();
    let (a, b) = world.pair();
    std::thread::scope(|scope| {
        for (seed, end) in [(0_u64, &a), (1, &b)] {
            scope.spawn(move || {
                let mut sent = 0;
                while sent < LEN {
                    let n = usize::try_from((LEN - sent).min(20_000)).unwrap();
                    match send(end, &pattern(seed, sent, n)) {
                        Ok(n) => sent += n as u64,
                        Err(_) => {
                            end.progress();
                            std::thread::yield_now();
                        }
                    }
                }
                while end.wants_service() {
                    end.progress();
                    std::thread::yield_now();
                }
            });
            scope.spawn(move || {
                let mut taken = 0;
                while taken < LEN {
                    match recv(end, 30_000) {
                        Ok(bytes) => {
                            assert_eq!(bytes, pattern(1 - seed, taken, bytes.len()));
                            taken += bytes.len() as u64;
                        }
                        Err(_) => {
                            end.progress();
                            std::thread::yield_now();
                        }
                    }
                }
            });
        }
    });
}
