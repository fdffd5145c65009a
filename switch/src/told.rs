//! What the telemetry has been told of a connection: one word of its slot, and the bytes that moved while a thread was telling.
//!
//! Place: `table` keeps one in each slot; the preload library's `traffic` tells and counts through it.
//! Invariants: a connection is told once, by the thread that claimed it. Others go on meanwhile: what they move is kept here and counted by
//! whoever sees the record first, so no byte is lost and nobody waits. A connection that ends while it is being told leaves no entry.
//! Hot: [`Told::get`], [`Told::count`]. Edges: told-kept. Source: ours. Leaves out: a claim that a fork leaves in the child; its counts are lost.
//!
//! ```text
//!   0 -> CLAIMED -> record | UNTOLD        a connection of the SAN
//!   0 -> PENDING -> record                 one of the kernel's that a connect may have made
//!   any -> 0                               the end
//! ```

use ring_proto::sync::{AtomicU64, Ordering, fence};

use crate::telemetry::{Record, Telemetry};

/// A connect that goes on: told when the first byte moves.
pub const PENDING: Record = Record::MAX;
/// A thread is telling of the connection: the one that established it, or the first to use it.
pub const CLAIMED: Record = Record::MAX - 1;
/// A connection that has no entry.
pub const UNTOLD: Record = Record::MAX - 2;

/// The word of a slot, and what is to be counted once it names an entry.
#[derive(Debug, Default)]
pub struct Told {
    record: AtomicU64,
    kept_tx: AtomicU64,
    kept_rx: AtomicU64,
}

impl Told {
    /// The record, or one of the words above.
    #[inline]
    #[must_use]
    pub fn get(&self) -> Record {
        // Relaxed: one word; a stale one costs a look.
        self.record.load(Ordering::Relaxed)
    }

    /// Stores what somebody has told who had no rival.
    pub fn set(&self, record: Record) {
        self.record.store(record, Ordering::Relaxed);
    }

    /// Nothing has been told: a slot begins.
    pub fn clear(&self) {
        for word in [&self.record, &self.kept_tx, &self.kept_rx] {
            // Relaxed: published with the slot.
            word.store(0, Ordering::Relaxed);
        }
    }

    /// Notes a connect that goes on, unless the connection has been told.
    pub fn pend(&self) {
        let _told = self
            .record
            .compare_exchange(0, PENDING, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Claims the telling of a SAN connection. `Err`: what stands there.
    ///
    /// # Errors
    /// The record, [`CLAIMED`] or [`UNTOLD`].
    pub fn claim(&self) -> Result<(), Record> {
        // An earlier connect of the socket may have fallen back and failed.
        let _none = self
            .record
            .compare_exchange(PENDING, 0, Ordering::Relaxed, Ordering::Relaxed);
        self.record
            .compare_exchange(0, CLAIMED, Ordering::Relaxed, Ordering::Relaxed)
            .map(|_| ())
    }

    /// Ends a claim, and counts what others have kept meanwhile. 0 is no entry.
    pub fn tell(&self, telemetry: &Telemetry, record: Record) -> Record {
        let record = if record == 0 { UNTOLD } else { record };
        let told =
            self.record
                .compare_exchange(CLAIMED, record, Ordering::Relaxed, Ordering::Relaxed);
        // EDGE told-kept (acq-rel): the record, then our look at what is kept; `keep` keeps, then looks at the record. One sees the other's.
        fence(Ordering::SeqCst);
        self.settle(telemetry, record);
        if told.is_err() {
            // It ended meanwhile.
            telemetry.end(record);
        }
        record
    }

    /// Counts bytes that the SAN carried, for the entry or, without one, in the totals.
    #[inline]
    pub fn count(&self, telemetry: &Telemetry, record: Record, tx_bytes: u64, rx_bytes: u64) {
        match record {
            CLAIMED => self.keep(telemetry, tx_bytes, rx_bytes),
            UNTOLD => telemetry.count_unlisted(tx_bytes, rx_bytes),
            record => telemetry.count(record, tx_bytes, rx_bytes),
        }
    }

    #[cold]
    fn keep(&self, telemetry: &Telemetry, tx_bytes: u64, rx_bytes: u64) {
        // Relaxed: counters.
        self.kept_tx.fetch_add(tx_bytes, Ordering::Relaxed);
        self.kept_rx.fetch_add(rx_bytes, Ordering::Relaxed);
        // EDGE told-kept (acq-rel): the other side is in `tell`.
        fence(Ordering::SeqCst);
        let record = self.get();
        if record != CLAIMED {
            self.settle(telemetry, record);
        }
    }

    fn settle(&self, telemetry: &Telemetry, record: Record) {
        // Relaxed: each byte is taken once; who may look is the caller's business.
        let tx_bytes = self.kept_tx.swap(0, Ordering::Relaxed);
        let rx_bytes = self.kept_rx.swap(0, Ordering::Relaxed);
        if tx_bytes | rx_bytes != 0 {
            match record {
                // It has ended, or has no entry.
                0 | UNTOLD => telemetry.count_unlisted(tx_bytes, rx_bytes),
                record => telemetry.count(record, tx_bytes, rx_bytes),
            }
        }
    }

    /// Forgets it all: the connection ends. What had been told.
    pub fn take(&self) -> Record {
        // Relaxed: one word.
        self.record.swap(0, Ordering::Relaxed)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::net::SocketAddr;
    use std::thread;

    use super::*;
    use crate::report::Side;
    use crate::telemetry::Road;
    use crate::telemetry::tests::Read;

    fn connection(telemetry: &Telemetry) -> Record {
        let [local, remote] =
            [1, 2].map(|host| SocketAddr::from(([127, 77, 0, host], u16::from(host))));
        telemetry.connection(Side::Connected, Road::San { mode: 0 }, local, remote)
    }

    #[test]
    fn bytes_that_move_while_a_thread_tells_are_counted_for_the_entry() {
        let (telemetry, read) = Read::open();
        let told = Told::default();
        assert_eq!(told.claim(), Ok(()));
        // Another thread is faster.
        assert_eq!(told.claim(), Err(CLAIMED));
        told.count(&telemetry, CLAIMED, 9_765, 0);
        assert_eq!(read.san_bytes(), (0, 0));
        let record = told.tell(&telemetry, connection(&telemetry));
        assert_eq!(told.get(), record);
        assert_eq!(read.san_bytes(), (9_765, 0));
        assert_eq!(read.entry_bytes(0), (9_765, 0));
        // Who looked before and counts after.
        told.count(&telemetry, CLAIMED, 0, 5);
        assert_eq!(read.san_bytes(), (9_765, 5));
        assert_eq!(read.entry_bytes(0), (9_765, 5));
        told.count(&telemetry, record, 1, 1);
        assert_eq!(read.san_bytes(), (9_766, 6));
    }

    #[test]
    fn connection_without_an_entry_counts_in_the_totals() {
        let (telemetry, read) = Read::open();
        let told = Told::default();
        told.claim().unwrap();
        told.count(&telemetry, CLAIMED, 3, 4);
        assert_eq!(told.tell(&telemetry, 0), UNTOLD);
        told.count(&telemetry, told.get(), 30, 40);
        assert_eq!(read.san_bytes(), (33, 44));
    }

    #[test]
    fn connection_that_ends_while_it_is_told_leaves_no_entry() {
        let (telemetry, read) = Read::open();
        let told = Told::default();
        told.claim().unwrap();
        told.count(&telemetry, CLAIMED, 3, 4);
        assert_eq!(told.take(), CLAIMED);
        told.tell(&telemetry, connection(&telemetry));
        assert_eq!(told.get(), 0);
        assert!(!read.is_live(0));
        assert_eq!(read.san_bytes(), (3, 4));
    }

    #[test]
    fn a_fall_back_that_failed_makes_way_for_the_san() {
        let told = Told::default();
        told.pend();
        assert_eq!(told.get(), PENDING);
        assert_eq!(told.claim(), Ok(()));
        told.clear();
        told.set(7);
        told.pend();
        assert_eq!(told.get(), 7);
        assert_eq!(told.claim(), Err(7));
    }

    #[test]
    fn threads_that_count_while_one_tells_lose_nothing() {
        for _ in 0..200 {
            let (telemetry, read) = Read::open();
            let told = Told::default();
            thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| {
                        for _ in 0..50 {
                            let record = match told.claim() {
                                Ok(()) => told.tell(&telemetry, connection(&telemetry)),
                                Err(record) => record,
                            };
                            told.count(&telemetry, record, 1, 2);
                        }
                    });
                }
            });
            assert_eq!(read.san_bytes(), (100, 200));
            assert_eq!(read.entry_bytes(0), (100, 200));
        }
    }
}
