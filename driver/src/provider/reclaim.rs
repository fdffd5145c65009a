//! Reclaiming what killed processes of a family left in the arena.
//!
//! Place: whoever finds no record or no memory left sweeps once and tries again.
//! Invariants: memory that the switch allocates for a socket is listed in its record while the socket lives; a close leaves it to the
//! switch, a sweep frees it. Swept is only what no living process can use: the owner is dead and the device has no QP of that number
//! for this record any more (so an orphan whose peer still reads stays).
//! Source: R-215. Leaves out: listeners, which the device closes with their last holder, and whose records hold no memory of note.

use ring_proto::admin::{AdminOp, AdminStatus};
use ring_proto::sync::Ordering;

use super::socket::{CLOSING, FREE, LISTENING, Sock};
use super::table::KEY_QP;
use crate::error::AdminError;
use crate::function::Locked;
use crate::record::{ARENA_LEN, Allocation, Socket};
use crate::spi::SpSocket;

const RECORD_LEN: u64 = size_of::<Allocation>() as u64;

impl<'a> Locked<'a> {
    /// Lists memory of a socket. Without room for the list entry it is not listed, and only the switch can give it back.
    pub(crate) fn list_allocation(&mut self, sock: &Sock<'_>, offset: u64, len: u64) {
        let Some(at) = self.alloc(RECORD_LEN) else {
            return;
        };
        let Some(entry) = self.function.arena().record::<Allocation>(at) else {
            return;
        };
        let first = &sock.record.allocations;
        // Relaxed throughout: the lock orders.
        entry.offset.store(offset, Ordering::Relaxed);
        entry.len.store(len, Ordering::Relaxed);
        entry
            .next
            .store(first.load(Ordering::Relaxed), Ordering::Relaxed);
        first.store(at, Ordering::Relaxed);
    }

    /// Takes memory off the list; the memory stays the caller's.
    pub(crate) fn unlist_allocation(&mut self, sock: &Sock<'a>, offset: u64) {
        let mut link = &sock.record.allocations;
        loop {
            let at = link.load(Ordering::Relaxed);
            let Some(entry) = self.allocation(at) else {
                return;
            };
            if entry.offset.load(Ordering::Relaxed) == offset {
                link.store(entry.next.load(Ordering::Relaxed), Ordering::Relaxed);
                self.free(at, RECORD_LEN);
                return;
            }
            link = &entry.next;
        }
    }

    fn allocation(&self, at: u64) -> Option<&'a Allocation> {
        let function = self.function;
        (at != 0).then(|| function.arena().record(at))?
    }

    /// Takes all memory off the list, and frees it when `is_abandoned`.
    pub(crate) fn drop_allocations(&mut self, record: &Socket, is_abandoned: bool) {
        loop {
            let at = record.allocations.load(Ordering::Relaxed);
            let Some(entry) = self.allocation(at) else {
                return;
            };
            let (offset, len) = (
                entry.offset.load(Ordering::Relaxed),
                entry.len.load(Ordering::Relaxed),
            );
            record
                .allocations
                .store(entry.next.load(Ordering::Relaxed), Ordering::Relaxed);
            self.free(at, RECORD_LEN);
            if is_abandoned {
                self.free_any(offset, len);
            }
        }
    }

    /// Frees memory of the arena or of a pair arena.
    pub(crate) fn free_any(&mut self, offset: u64, len: u64) {
        if offset < ARENA_LEN {
            self.free(offset, len);
        } else {
            self.free_ring(offset, len);
        }
    }

    /// Allocates; sweeps first when nothing is left.
    pub(crate) fn alloc_or_sweep(&mut self, len: u64) -> Option<u64> {
        self.alloc(len).or_else(|| {
            self.sweep();
            self.alloc(len)
        })
    }

    /// Gives back all sockets that died with their processes.
    pub(crate) fn sweep(&mut self) {
        super::events::file(self);
        let records: Vec<_> = self.all_records().collect();
        for (record, index) in records {
            if self.is_abandoned(record, index) {
                self.reclaim(record, index);
            }
        }
    }

    fn is_abandoned(&mut self, record: &Socket, index: u32) -> bool {
        let state = record.state.load(Ordering::Acquire);
        let owner = record.owner.load(Ordering::Relaxed);
        if matches!(state, FREE | LISTENING) || self.function.is_alive(owner) {
            return false;
        }
        let qpn = record.qpn.load(Ordering::Relaxed);
        if qpn == 0 {
            return true;
        }
        let is_ours = self
            .by_key(KEY_QP | u64::from(qpn))
            .is_some_and(|(_, newest)| newest == index);
        if !is_ours {
            return true; // The number lives again, with another socket.
        }
        let asked = self.admin_on(AdminOp::QP_QUERY, qpn);
        matches!(
            asked,
            Err(AdminError::Refused {
                status: AdminStatus::NO_OBJECT,
                ..
            })
        )
    }

    fn reclaim(&mut self, record: &'a Socket, index: u32) {
        let sock = Sock {
            function: self.function,
            record,
            index,
            handle: SpSocket(0),
        };
        sock.set_state(CLOSING);
        // The device has freed the QP, and its number may be another's by now.
        record.qpn.store(0, Ordering::Relaxed);
        let revocations: Vec<_> = self.revocations(&sock).collect();
        match self.admin_all(&revocations) {
            Ok(()) | Err(_) => {} // Those of the QP went with it.
        }
        self.drop_registrations(&sock);
        self.drop_allocations(record, true);
        self.take_queues(&sock);
        self.free_record(record, index);
    }
}
