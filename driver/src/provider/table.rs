//! Socket table: records of companion sockets in the arena, free ones, and those of a QPN or listener.
//!
//! Place: `socket` takes records and gives them back; `events` finds the socket an event is about.
//! Invariants: changed under the function's lock only; each change is committed by one store, so a killed process loses one record at
//! most. A record's generation grows with each life. Chains of a bucket are walked no further than the table is long.
//! Source: ours.

use ring_proto::sync::{AtomicU32, Ordering};

use super::socket::{CREATED, FREE, Sock};
use crate::function::{Function, Locked};
use crate::record::{self, Bucket, Socket};

/// Kind of a bucket key: QPN.
pub(crate) const KEY_QP: u64 = 1 << 32;
/// Kind of a bucket key: listener.
pub(crate) const KEY_LISTENER: u64 = 2 << 32;

fn bucket(function: &Function, key: u64) -> &AtomicU32 {
    // Fibonacci hashing down to 14 bits.
    let hash = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 50;
    let bucket: &Bucket = function
        .arena()
        .record(record::BUCKETS + 4 * hash)
        .expect("14 bits lie in the table");
    &bucket.first
}

pub(crate) fn socket_record(function: &Function, index: u32) -> Option<&Socket> {
    if index >= record::SOCKET_COUNT {
        return None;
    }
    function
        .arena()
        .record(record::SOCKETS + u64::from(index) * record::SOCKET_STRIDE)
}

impl<'a> Locked<'a> {
    /// Takes a free socket record and starts a new life of it.
    pub(crate) fn new_record(&mut self) -> Option<(&'a Socket, u32)> {
        let function = self.function;
        let header = function.header();
        // Relaxed throughout: the lock orders all but the state.
        // First those that need no new queues.
        let index = match self
            .pop_free(&header.spare_free)
            .or_else(|| self.pop_free(&header.socket_free))
        {
            Some(index) => index,
            None => {
                let high = header.socket_high.load(Ordering::Relaxed);
                socket_record(function, high)?;
                header.socket_high.store(high + 1, Ordering::Relaxed);
                high
            }
        };
        let record = socket_record(function, index)?;
        let mut generation = record.generation.load(Ordering::Relaxed).wrapping_add(1);
        if generation & 0xffff == 0 {
            generation = generation.wrapping_add(1);
        }
        for word in [
            &record.sticky,
            &record.orphaned,
            &record.untaken,
            &record.qpn,
            &record.listener,
            &record.peer_function,
            &record.fence,
            &record.debug,
            &record.connect_count,
            &record.connect_error,
            &record.connect_detail,
            &record.connect_used,
            &record.accept_count,
            &record.backlog,
            &record.request_places,
            &record.request_consumer,
            &record.request_producer,
            &record.recvs_posted,
            &record.recvs_done,
            &record.flights,
        ] {
            word.store(0, Ordering::Relaxed);
        }
        for word in [
            &record.key,
            &record.local,
            &record.remote,
            &record.registrations,
            &record.requests,
            &record.poll_token,
            &record.send_token,
            &record.recv_token,
            &record.allocations,
            &record.sends_posted,
            &record.sends_done,
        ] {
            word.store(0, Ordering::Relaxed);
        }
        if record.spare_qpn.load(Ordering::Relaxed) == 0 {
            record.cqn.store(0, Ordering::Relaxed);
            record.cq_consumer.store(0, Ordering::Relaxed);
            record.memory.store(0, Ordering::Relaxed);
        }
        let me = function.identity().word();
        record.owner.store(me, Ordering::Relaxed);
        record.generation.store(generation, Ordering::Relaxed);
        record.state.store(CREATED, Ordering::Release);
        Some((record, index))
    }

    /// Takes the first record of a list of free ones.
    pub(crate) fn pop_free(&mut self, list: &AtomicU32) -> Option<u32> {
        let index = list.load(Ordering::Relaxed).checked_sub(1)?;
        let record = socket_record(self.function, index)?;
        list.store(record.next_free.load(Ordering::Relaxed), Ordering::Relaxed);
        Some(index)
    }

    /// Gives a record back.
    pub(crate) fn free_record(&mut self, record: &Socket, index: u32) {
        let header = self.function.header();
        let free = if record.spare_qpn.load(Ordering::Relaxed) == 0 {
            &header.socket_free
        } else {
            &header.spare_free
        };
        record.state.store(FREE, Ordering::Release);
        record
            .next_free
            .store(free.load(Ordering::Relaxed), Ordering::Relaxed);
        free.store(index + 1, Ordering::Relaxed);
    }

    /// Lets [`Locked::by_key`] find the socket.
    pub(crate) fn enter(&mut self, sock: &Sock<'_>, key: u64) {
        let first = bucket(self.function, key);
        sock.record.key.store(key, Ordering::Relaxed);
        sock.record
            .next_in_bucket
            .store(first.load(Ordering::Relaxed), Ordering::Relaxed);
        first.store(sock.index + 1, Ordering::Relaxed);
    }

    /// Takes the socket out again.
    pub(crate) fn leave(&mut self, sock: &Sock<'_>) {
        let key = sock.record.key.swap(0, Ordering::Relaxed);
        let after = sock.record.next_in_bucket.load(Ordering::Relaxed);
        let mut link = bucket(self.function, key);
        // Bounded: a chain is never longer than the table.
        for _ in 0..record::SOCKET_COUNT {
            let Some(index) = link.load(Ordering::Relaxed).checked_sub(1) else {
                return;
            };
            if index == sock.index {
                link.store(after, Ordering::Relaxed);
                return;
            }
            let Some(record) = socket_record(self.function, index) else {
                return;
            };
            link = &record.next_in_bucket;
        }
    }

    /// The socket of a QPN or listener.
    pub(crate) fn by_key(&mut self, key: u64) -> Option<(&'a Socket, u32)> {
        let function = self.function;
        let mut next = bucket(function, key).load(Ordering::Relaxed);
        for _ in 0..record::SOCKET_COUNT {
            let index = next.checked_sub(1)?;
            let record = socket_record(function, index)?;
            if record.key.load(Ordering::Relaxed) == key {
                return Some((record, index));
            }
            next = record.next_in_bucket.load(Ordering::Relaxed);
        }
        None
    }

    /// Sockets ever used, for the rare search through all of them.
    pub(crate) fn all_records(&mut self) -> impl Iterator<Item = (&'a Socket, u32)> {
        let function = self.function;
        let high = function.header().socket_high.load(Ordering::Relaxed);
        (0..high).filter_map(move |index| Some((socket_record(function, index)?, index)))
    }
}
