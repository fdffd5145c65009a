//! Processes of a family that are killed in the middle: the next one repairs and goes on, no byte is lost or doubled.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use proptest::prelude::*;
use ring_proto::sync::Ordering;

use super::double::Moment;
use super::world::{DoubleWorld, World, pattern, recv, send, settle};
use crate::session::Conn;

const VICTIM: u64 = 77;

/// Runs `work` as another process of the family and kills it at its `nth` posting call. Whether it came to that.
fn kill(world: &DoubleWorld, nth: u32, moment: Moment, work: impl FnOnce()) -> bool {
    let survivor = world.fabric.self_id.swap(VICTIM, Ordering::Relaxed);
    world.fabric.kill_at(nth, moment);
    let died = catch_unwind(AssertUnwindSafe(work)).is_err();
    let unused = world.fabric.disarm_kill();
    assert_eq!(died, !unused);
    world.fabric.self_id.store(survivor, Ordering::Relaxed);
    if died {
        world.fabric.bury(VICTIM);
    }
    died
}

/// Sends and reads until both counters agree, checking every byte.
fn finish(a: &Arc<Conn>, b: &Arc<Conn>, seed: u64) {
    settle(&[a, b]);
    let sent = a.counters().0;
    let mut taken = b.counters().1;
    while taken < sent {
        match recv(b, 30_000) {
            Ok(bytes) => {
                assert!(!bytes.is_empty());
                assert_eq!(bytes, pattern(seed, taken, bytes.len()));
                taken += bytes.len() as u64;
            }
            Err(errno) => {
                assert_eq!(errno, libc::EAGAIN);
                let before = b.readable_bytes();
                settle(&[a, b]);
                assert!(b.readable_bytes() > before, "stuck at {taken} of {sent}");
            }
        }
    }
}

/// Kills one process of the family of `a` at a posting call while it sends or receives; then the stream goes on both ways.
fn survive(world: &DoubleWorld, nth: u32, moment: Moment, sizes: &[usize]) {
    let (a, b) = world.pair();
    let child = Conn::attach(world.fabric.provider(5), a.sp(), a.record_offset()).unwrap();
    let mut from_b = 0_u64;
    let died = kill(world, nth, moment, || {
        for &size in sizes {
            let at = child.counters().0;
            let _sent = send(&child, &pattern(0, at, size));
            from_b += send(&b, &pattern(1, from_b, size)).unwrap_or(0) as u64;
            let taken = child.counters().1;
            if let Ok(bytes) = recv(&child, size) {
                assert!(bytes == pattern(1, taken, bytes.len()));
            }
        }
    });
    // The kill may have hit `b`'s process instead: the double does not tell them apart, and neither does the repair.
    for _ in 0..3 {
        let at = a.counters().0;
        if let Ok(n) = send(&a, &pattern(0, at, 20_000)) {
            assert!(n > 0);
        }
        finish(&a, &b, 0);
        let at = b.counters().0;
        if let Ok(n) = send(&b, &pattern(1, at, 20_000)) {
            assert!(n > 0);
        }
        finish(&b, &a, 1);
    }
    let _ = died;
    // Nothing leaks: everything completed, all credits are back.
    settle(&[&a, &b]);
    assert_eq!((a.unsent_bytes(), b.unsent_bytes()), (0, 0));
    assert!(!a.wants_service() && !b.wants_service());
    a.shutdown(crate::session::How::Write).unwrap();
    b.shutdown(crate::session::How::Write).unwrap();
    settle(&[&a, &b]);
    assert_eq!(recv(&a, 1).unwrap(), b"");
    assert_eq!(recv(&b, 1).unwrap(), b"");
}

#[test]
fn r201_process_killed_at_any_posting_call_loses_nothing() {
    let sizes = [
        100, 5_000, 60_000, 1, 300, 90_000, 7, 16_384, 2_000, 150_000,
    ];
    for nth in 0..60 {
        for moment in [Moment::Before, Moment::Marked, Moment::After] {
            survive(&DoubleWorld::new(), nth, moment, &sizes);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn killed_at_random_points_of_random_traffic(
        nth in 0_u32..80,
        moment in prop_oneof![Just(Moment::Before), Just(Moment::Marked), Just(Moment::After)],
        sizes in proptest::collection::vec(1_usize..70_000, 1..20),
    ) {
        survive(&DoubleWorld::new(), nth, moment, &sizes);
    }
}

#[test]
fn killed_between_accepting_and_posting_leaves_bytes_that_the_next_one_sends() {
    let world = DoubleWorld::new();
    let (a, b) = world.pair();
    assert!(kill(&world, 0, Moment::Before, || {
        let _never = send(&a, b"accepted");
    }));
    settle(&[&a, &b]);
    assert_eq!(recv(&b, 100).unwrap(), b"accepted");
}

#[test]
fn killed_while_shutting_down_still_ends_the_stream_once() {
    for moment in [Moment::Before, Moment::Marked, Moment::After] {
        let world = DoubleWorld::new();
        let (a, b) = world.pair();
        assert!(kill(&world, 0, moment, || {
            let _never = a.shutdown(crate::session::How::Write);
        }));
        settle(&[&a, &b]);
        assert_eq!(recv(&b, 1).unwrap(), b"", "{moment:?}");
        assert_eq!(recv(&b, 1).unwrap(), b"");
        assert_eq!(send(&b, b"x"), Ok(1));
    }
}
