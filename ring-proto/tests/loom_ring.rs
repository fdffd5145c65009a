//! Loom model of a completion ring over several laps: entries arrive once, whole and in order, and none is overwritten unread.
//!
//! Run: see loom_doorbell.rs. Faults put in by hand, and the models that then failed:
//!
//! | fault | detected by |
//! |---|---|
//! | publish word stored with Relaxed (`ring::publish`) | all |
//! | publish word loaded with Relaxed (`ring::published`) | all |
//! | phase that ignores the lap (`Depth::phase`) | all |
//! | room of one entry too many (`Depth::free`) | all |
#![cfg(loom)]

use loom::sync::Arc;
use loom::thread;

use ring_proto::index::Depth;
use ring_proto::ring::{self, Storage};
use ring_proto::sync::{AtomicU32, AtomicU64, Ordering};

const DEPTH: u32 = 2;
const ENTRIES: u32 = 4;

struct Cq {
    words: [AtomicU64; 2 * DEPTH as usize],
    consumer: AtomicU32,
}

impl Storage<2> for Cq {
    fn depth(&self) -> Depth {
        Depth::new(DEPTH).unwrap()
    }

    fn word(&self, position: u32, word: usize) -> &AtomicU64 {
        &self.words[self.depth().index(position) as usize * 2 + word % 2]
    }
}

/// The NIC publishes while there is room, the client polls and gives room back; each gives up after a few idle rounds.
fn run(start: u32) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(4);
    builder.max_branches = 10_000;
    builder.check(move || {
        let cq = Arc::new(Cq {
            words: core::array::from_fn(|_| AtomicU64::new(0)),
            consumer: AtomicU32::new(start),
        });
        // What the lap before left behind.
        if start != 0 {
            for position in 0..DEPTH {
                let before = start.wrapping_add(position).wrapping_sub(DEPTH);
                let phase = u64::from(cq.depth().phase(before)) << 56;
                cq.word(before, 1).store(phase, Ordering::Relaxed);
            }
        }
        let nic = {
            let cq = Arc::clone(&cq);
            thread::spawn(move || {
                let mut producer = start;
                for _ in 0..ENTRIES + 1 {
                    // EDGE cq-consume (acquire): pairs with the client's store below.
                    let consumer = cq.consumer.load(Ordering::Acquire);
                    if cq.depth().free(producer, consumer) == 0 {
                        thread::yield_now();
                        continue;
                    }
                    if producer.wrapping_sub(start) == ENTRIES {
                        break;
                    }
                    let phase = u64::from(cq.depth().phase(producer)) << 56;
                    ring::publish(&*cq, producer, &[u64::from(producer) << 8, phase]);
                    producer = producer.wrapping_add(1);
                }
                producer
            })
        };
        let mut consumer = start;
        for _ in 0..ENTRIES {
            let Some(words) = ring::published(&*cq, consumer) else {
                thread::yield_now();
                continue;
            };
            assert_eq!(words[0], u64::from(consumer) << 8);
            consumer = consumer.wrapping_add(1);
            // EDGE cq-consume (release): the copies above. Acquired by the NIC's look at the consumer.
            cq.consumer.store(consumer, Ordering::Release);
        }
        let producer = nic.join().unwrap();
        while consumer != producer {
            let words = ring::published(&*cq, consumer).expect("a published entry is lost");
            assert_eq!(words[0], u64::from(consumer) << 8);
            consumer = consumer.wrapping_add(1);
        }
        assert!(cq.depth().used(producer, consumer) <= DEPTH);
    });
}

#[test]
fn laps() {
    run(0);
}

#[test]
fn laps_near_the_end_of_the_counter() {
    run(u32::MAX - 1);
}

#[test]
fn laps_from_an_odd_position() {
    run(u32::MAX);
}
