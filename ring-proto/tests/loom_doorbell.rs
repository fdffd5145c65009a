//! Loom models of submission: no doorbell is lost, and no sleeping NIC stays asleep.
//!
//! Run: `RUSTFLAGS="--cfg loom" cargo test -p ring-proto --release --target-dir target/loom --test 'loom_*'`.
//!
//! The NIC of a model serves twice, tries to sleep, and says whether it sleeps; a client kicks when `ring` tells it to. When all have
//! ended, a NIC that sleeps without a kick must have seen every doorbell of every client that was not killed, and one that is awake
//! (or kicked) must find the rest in its dirty words.
//!
//! A model is worth what it detects. Faults put in by hand, one at a time, and the models that then failed:
//!
//! | fault | detected by |
//! |---|---|
//! | no fence before the look at the dirty bits (`mark`) | one_client, posted_elements, two_ringers_one_twice |
//! | no fence before the look at `parked` (`mark`) | all but posted_elements |
//! | that fence only when a bit was set, where loads may overtake loads | killed_after_both_bits_of_a_shared_queue |
//! | no fence between taking the bits and reading producers (`after_take`) | one_client, posted_elements, two_ringers_one_twice |
//! | no fence between `park` and the re-read (`after_park`) | all but posted_elements |
//! | no re-read of the dirty words after `park` | all but posted_elements |
//! | UAR bit set only when the slot bit was clear too | both models of shared queues |
//! | `take` looks before it swaps | two_ringers_one_twice |
//! | slot words taken before the UAR words | killed_after_both_bits, two_ringers, two_ringers_one_twice |
//! | `take` with Relaxed, or the slot bit set with Relaxed | killed_after_both_bits, two_ringers, two_ringers_one_twice |
//! | the producer stored with Relaxed instead of Release | posted_elements |
//! | each sleep has the same number (`park`) | who_has_kicked_need_not_kick_again, one_process_kicks_once_for_each_sleep |
//!
//! (Before `ring_proto::sync` marked loads, loom's search passed over four of these: see there.)
#![cfg(loom)]

use loom::sync::Arc;
use loom::thread;

use ring_proto::doorbell::{self, DirtyBits};
use ring_proto::index::Depth;
use ring_proto::ring::{self, Storage};
use ring_proto::sync::{AtomicU32, AtomicU64, Ordering, fence};

/// One UAR with two doorbell lines, the summary page, and the kick eventfd's counter.
struct Uar {
    slots: AtomicU64,
    uars: AtomicU64,
    parked: AtomicU32,
    /// Of the one process whose threads ring with `ring_in_process`.
    kicked: AtomicU32,
    producers: [AtomicU32; 2],
    kicks: AtomicU32,
}

impl Uar {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            slots: AtomicU64::new(0),
            uars: AtomicU64::new(0),
            parked: AtomicU32::new(0),
            kicked: AtomicU32::new(0),
            producers: [AtomicU32::new(0), AtomicU32::new(0)],
            kicks: AtomicU32::new(0),
        })
    }

    fn bits(&self, slot: usize) -> DirtyBits<'_> {
        DirtyBits {
            slots: &self.slots,
            slot_bit: 1 << slot,
            uars: &self.uars,
            uar_bit: 1,
        }
    }

    fn ring(&self, slot: usize, producer: u32) {
        if doorbell::ring(
            &self.producers[slot],
            producer,
            self.bits(slot),
            &self.parked,
        ) {
            // The eventfd: a read-modify-write in the kernel, ordered with its wait.
            self.kicks.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// As [`Self::ring`], by a thread of a process that kicks once for each sleep.
    fn ring_in_process(&self, slot: usize, producer: u32) {
        let (line, bits) = (&self.producers[slot], self.bits(slot));
        if doorbell::ring(line, producer, bits, &self.parked)
            && let Some(sleep) = doorbell::kick_due(&self.parked, &self.kicked)
        {
            self.kicks.fetch_add(1, Ordering::AcqRel);
            doorbell::kick_done(&self.kicked, sleep);
        }
    }

    /// One round of the engine over this UAR.
    fn serve(&self, seen: &mut [u32; 2]) {
        if !doorbell::is_marked(&self.uars) || doorbell::take(&self.uars) == 0 {
            return;
        }
        let slots = doorbell::take(&self.slots);
        doorbell::after_take();
        for (slot, seen) in seen.iter_mut().enumerate() {
            if slots & 1 << slot != 0 {
                *seen = self.producers[slot].load(Ordering::Acquire);
            }
        }
    }

    /// Serves, tries to sleep; returns what it saw and whether it sleeps.
    fn engine(&self) -> ([u32; 2], bool) {
        let mut seen = [0; 2];
        self.serve(&mut seen);
        self.serve(&mut seen);
        let asleep = self.sleep(2);
        (seen, asleep)
    }

    /// Tries to sleep, with that number.
    fn sleep(&self, number: u32) -> bool {
        doorbell::park(&self.parked, number);
        doorbell::after_park();
        let is_dirty = doorbell::is_marked(&self.uars);
        if is_dirty {
            doorbell::unpark(&self.parked);
        }
        !is_dirty
    }

    /// Sleeps, is woken if a kick has come, serves, and sleeps again; returns as [`Self::engine`].
    fn engine_that_is_woken(&self) -> ([u32; 2], bool) {
        let mut seen = [0; 2];
        if self.sleep(2) {
            // The eventfd, read as it wakes.
            if self.kicks.swap(0, Ordering::AcqRel) == 0 {
                return (seen, true);
            }
            doorbell::unpark(&self.parked);
        }
        self.serve(&mut seen);
        let asleep = self.sleep(3);
        (seen, asleep)
    }

    /// Holds what the engine saw against what it had to see.
    fn check(&self, (mut seen, asleep): ([u32; 2], bool), wanted: [u32; 2]) {
        let kicked = self.kicks.load(Ordering::Acquire) != 0;
        let done = |seen: &[u32; 2]| seen.iter().zip(wanted).all(|(&s, w)| s >= w);
        assert!(
            !asleep || kicked || done(&seen),
            "the NIC sleeps at {seen:?} without a kick, wanted {wanted:?}"
        );
        self.serve(&mut seen);
        assert!(
            done(&seen),
            "a doorbell is lost: {seen:?}, wanted {wanted:?}"
        );
    }
}

/// Bound of models with three threads, which are not searched through in minutes without one.
const THREE: Option<usize> = Some(3);

/// Checks `f` with at most `preemptions` switches away from a thread that could go on; `None` for all orders there are.
fn model(preemptions: Option<usize>, f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.max_branches = 10_000;
    builder.check(f);
}

#[test]
fn one_client() {
    model(None, || {
        let uar = Uar::new();
        let client = {
            let uar = Arc::clone(&uar);
            thread::spawn(move || {
                uar.ring(0, 1);
                uar.ring(0, 2);
            })
        };
        let end = uar.engine();
        client.join().unwrap();
        uar.check(end, [2, 0]);
    });
}

#[test]
fn two_ringers() {
    model(THREE, || {
        let uar = Uar::new();
        let clients = [0, 1].map(|slot| {
            let uar = Arc::clone(&uar);
            thread::spawn(move || uar.ring(slot, 1))
        });
        let end = uar.engine();
        for client in clients {
            client.join().unwrap();
        }
        uar.check(end, [1, 1]);
    });
}

/// The same with a slot that is rung again: the UAR bit may stand while the slot words are empty.
#[test]
fn two_ringers_one_twice() {
    model(THREE, || {
        let uar = Uar::new();
        let other = {
            let uar = Arc::clone(&uar);
            thread::spawn(move || uar.ring(1, 1))
        };
        let twice = {
            let uar = Arc::clone(&uar);
            thread::spawn(move || {
                uar.ring(0, 1);
                uar.ring(0, 2);
            })
        };
        let end = uar.engine();
        other.join().unwrap();
        twice.join().unwrap();
        uar.check(end, [2, 1]);
    });
}

/// A thread that leaves the kick to another one of its process loses nothing, whichever sleep the other one ended.
#[test]
fn one_process_kicks_once_for_each_sleep() {
    model(THREE, || {
        let uar = Uar::new();
        let threads = [0, 1].map(|slot| {
            let uar = Arc::clone(&uar);
            thread::spawn(move || uar.ring_in_process(slot, 1))
        });
        let end = uar.engine_that_is_woken();
        for thread in threads {
            thread.join().unwrap();
        }
        uar.check(end, [1, 1]);
    });
}

/// A thread that rings again sees its own kick, and rings for nothing but that sleep in silence.
#[test]
fn who_has_kicked_need_not_kick_again() {
    model(THREE, || {
        let uar = Uar::new();
        let client = {
            let uar = Arc::clone(&uar);
            thread::spawn(move || {
                uar.ring_in_process(0, 1);
                uar.ring_in_process(0, 2);
            })
        };
        let end = uar.engine_that_is_woken();
        client.join().unwrap();
        uar.check(end, [2, 0]);
    });
}

/// Steps of `doorbell::ring` up to the one a killed client reached.
fn killed(uar: &Uar, slot: usize, and_uar_bit: bool) {
    uar.producers[slot].store(1, Ordering::Release);
    fence(Ordering::SeqCst);
    let bits = uar.bits(slot);
    bits.slots.fetch_or(bits.slot_bit, Ordering::AcqRel);
    if and_uar_bit {
        bits.uars.fetch_or(bits.uar_bit, Ordering::AcqRel);
    }
}

fn killed_while_another_rings(slot_of_the_dead: usize, and_uar_bit: bool) {
    model(THREE, move || {
        let uar = Uar::new();
        let dead = {
            let uar = Arc::clone(&uar);
            thread::spawn(move || killed(&uar, slot_of_the_dead, and_uar_bit))
        };
        let survivor = {
            let uar = Arc::clone(&uar);
            // The token of a shared queue goes to the survivor; the line then carries its producer or the dead one's.
            thread::spawn(move || uar.ring(0, 1))
        };
        let end = uar.engine();
        dead.join().unwrap();
        survivor.join().unwrap();
        uar.check(end, [1, 0]);
    });
}

#[test]
fn killed_after_slot_bit() {
    killed_while_another_rings(1, false);
}

#[test]
fn killed_after_slot_bit_of_a_shared_queue() {
    killed_while_another_rings(0, false);
}

#[test]
fn killed_after_both_bits() {
    killed_while_another_rings(1, true);
}

#[test]
fn killed_after_both_bits_of_a_shared_queue() {
    killed_while_another_rings(0, true);
}

/// A ring of two WQEs of two words over loom's atomics.
struct Sq([AtomicU64; 4]);

impl Storage<2> for Sq {
    fn depth(&self) -> Depth {
        Depth::new(2).unwrap()
    }

    fn word(&self, position: u32, word: usize) -> &AtomicU64 {
        &self.0[self.depth().index(position) as usize * 2 + word % 2]
    }
}

/// What lies below a producer that the NIC loaded is what the client wrote.
#[test]
fn posted_elements() {
    // One below 2^32, so that the second position is 0.
    const START: u32 = u32::MAX;
    model(None, || {
        let uar = Uar::new();
        uar.producers[0].store(START, Ordering::Relaxed);
        let sq = Arc::new(Sq(core::array::from_fn(|_| AtomicU64::new(0))));
        let client = {
            let (uar, sq) = (Arc::clone(&uar), Arc::clone(&sq));
            thread::spawn(move || {
                for i in 0..2 {
                    let position = START.wrapping_add(i);
                    let value = u64::from(i) + 1;
                    ring::write(&*sq, position, &[value, value << 8]);
                    uar.ring(0, position.wrapping_add(1));
                }
            })
        };
        let mut consumer = START;
        for _ in 0..2 {
            let mut seen = [consumer, 0];
            uar.serve(&mut seen);
            let depth = sq.depth();
            assert!(depth.accepts_producer(seen[0], consumer, consumer));
            while consumer != seen[0] {
                let value = u64::from(consumer.wrapping_sub(START)) + 1;
                assert_eq!(ring::snapshot(&*sq, consumer), [value, value << 8]);
                consumer = consumer.wrapping_add(1);
            }
        }
        client.join().unwrap();
        let mut seen = [consumer, 0];
        uar.serve(&mut seen);
        assert_eq!(seen[0], START.wrapping_add(2));
    });
}
