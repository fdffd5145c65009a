//! Doorbells without end.

use std::sync::Arc;

use ring_proto::sync::{AtomicU32, Ordering};
use ring_proto::uar;

use crate::live::Live;
use crate::operations;
use crate::process::Emulator;
use crate::traffic::{Pair, Traffic};

/// Rings on a thread of its own until told to stop; how often.
struct Storm {
    stop: Arc<AtomicU32>,
    thread: std::thread::JoinHandle<u64>,
}

impl Storm {
    fn start(emulator: &Emulator, mut ring: impl FnMut(&Live) -> u64 + Send + 'static) -> Self {
        let stormer = Live::attach(&emulator.device("a"));
        let stop = Arc::new(AtomicU32::new(0));
        let asked = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut rung = 0;
            // Relaxed: nothing else is told by it.
            while asked.load(Ordering::Relaxed) == 0 {
                rung += ring(&stormer);
            }
            rung
        });
        Self { stop, thread }
    }

    fn end(self) -> u64 {
        self.stop.store(1, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Beside the storm a pair that was there before and one that comes later move checked data; the figures.
fn beside(ring: impl FnMut(&Live) -> u64 + Send + 'static) -> String {
    let emulator = Emulator::start();
    let traffic = Traffic::start(&emulator, 4200);
    let storm = Storm::start(&emulator, ring);
    let mut pair = Pair::new(&emulator, 4300);
    for n in 0..operations(100, 5_000) {
        pair.round(n);
    }
    let rung = storm.end();
    let rounds = traffic.finish();
    emulator.end_unharmed();
    format!("{rung} doorbells beside {rounds} checked rounds")
}

#[test]
fn a_storm_of_doorbells_on_every_slot_starves_nobody() {
    let told = beside(|stormer| {
        let slots = (1..uar::SLOTS).step_by(7);
        let rung = slots.len() as u64;
        slots.for_each(|slot| stormer.mark(slot));
        stormer.kick();
        rung
    });
    println!("storm on slots: {told}");
}

#[test]
fn a_storm_of_kicks_and_empty_admin_doorbells_starves_nobody() {
    let told = beside(|stormer| {
        for _ in 0..64 {
            stormer.mark(uar::ADMIN_SLOT);
            stormer.kick();
        }
        128
    });
    println!("storm of kicks: {told}");
}
