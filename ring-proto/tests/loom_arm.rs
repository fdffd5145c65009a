//! Loom models of arming: a sleeper either finds the entry in its second poll or is fired.
//!
//! Run: see loom_doorbell.rs. Faults put into `arm.rs` and `ring.rs` by hand, and the models that then failed:
//!
//! | fault | detected by |
//! |---|---|
//! | no fence in `arm` | all but entry_arrives_whole |
//! | no fence in `fire` | all but entry_arrives_whole |
//! | `fire` before the entry is published | all but entry_arrives_whole |
//! | the publish word stored or loaded with Relaxed | all |
#![cfg(loom)]

use loom::sync::Arc;
use loom::thread;

use ring_proto::arm;
use ring_proto::index::Depth;
use ring_proto::ring::{self, Storage};
use ring_proto::sync::{AtomicU32, AtomicU64, Ordering};

const DEPTH: u32 = 2;

/// A CQ of two-word entries with its arm word; `fired` are the vectors' eventfds.
struct Cq {
    words: [AtomicU64; 4],
    vectors: AtomicU64,
    sequence: AtomicU32,
    fired: AtomicU64,
}

impl Storage<2> for Cq {
    fn depth(&self) -> Depth {
        Depth::new(DEPTH).unwrap()
    }

    fn word(&self, position: u32, word: usize) -> &AtomicU64 {
        &self.words[self.depth().index(position) as usize * 2 + word % 2]
    }
}

impl Cq {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            words: core::array::from_fn(|_| AtomicU64::new(0)),
            vectors: AtomicU64::new(0),
            sequence: AtomicU32::new(0),
            fired: AtomicU64::new(0),
        })
    }

    /// NIC: publishes one entry and fires.
    fn complete(&self, position: u32) {
        let phase = u64::from(self.depth().phase(position)) << 56;
        ring::publish(self, position, &[0xc0 + u64::from(position), phase]);
        let fired = arm::fire(&self.vectors);
        self.fired.fetch_or(fired, Ordering::AcqRel);
    }

    /// Waits for the entry at `position`: returns `false` when it would sleep now.
    fn wait(&self, position: u32, bit: u64) -> bool {
        if self.poll(position) {
            return true;
        }
        arm::arm(&self.vectors, &self.sequence, position, bit);
        self.poll(position)
    }

    fn poll(&self, position: u32) -> bool {
        let Some(words) = ring::published(self, position) else {
            return false;
        };
        assert_eq!(words[0], 0xc0 + u64::from(position));
        true
    }

    /// After all have ended: whoever sleeps was fired.
    fn check(&self, awake: bool, bit: u64) {
        assert!(
            awake || self.fired.load(Ordering::Acquire) & bit != 0,
            "a sleeper is not woken"
        );
    }
}

fn model(f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(4);
    builder.max_branches = 10_000;
    builder.check(f);
}

#[test]
fn one_sleeper() {
    model(|| {
        let cq = Cq::new();
        let sleeper = {
            let cq = Arc::clone(&cq);
            thread::spawn(move || cq.wait(0, 1))
        };
        cq.complete(0);
        let awake = sleeper.join().unwrap();
        cq.check(awake, 1);
    });
}

#[test]
fn two_sleepers_with_vectors_of_their_own() {
    model(|| {
        let cq = Cq::new();
        let sleepers = [1, 2].map(|bit| {
            let cq = Arc::clone(&cq);
            thread::spawn(move || (cq.wait(0, bit), bit))
        });
        cq.complete(0);
        for sleeper in sleepers {
            let (awake, bit) = sleeper.join().unwrap();
            cq.check(awake, bit);
        }
    });
}

/// One interrupt for the first entry must not swallow the one for the second.
#[test]
fn armed_again_for_the_second_entry() {
    model(|| {
        let cq = Cq::new();
        let sleeper = {
            let cq = Arc::clone(&cq);
            thread::spawn(move || {
                // Position 0 may have fired the bit already: a sleeper drains its vector before it arms again.
                if !cq.wait(0, 1) {
                    return (0, false);
                }
                cq.fired.swap(0, Ordering::AcqRel);
                (1, cq.wait(1, 1))
            })
        };
        cq.complete(0);
        cq.complete(1);
        let (position, awake) = sleeper.join().unwrap();
        cq.check(awake, 1);
        // Woken or not, the entry is there.
        assert!(cq.poll(position));
    });
}

#[test]
fn entry_arrives_whole() {
    model(|| {
        let cq = Cq::new();
        let poller = {
            let cq = Arc::clone(&cq);
            thread::spawn(move || cq.poll(0) && cq.poll(1))
        };
        cq.complete(0);
        cq.complete(1);
        poller.join().unwrap();
    });
}
