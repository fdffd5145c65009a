//! Bytes of connections that the kernel carries: counted, not touched.
//!
//! Place: data exports, after the real call. Hot: `moved` for descriptors without a slot. Leaves out: bytes that `sendfile` and its
//! like move without passing here are counted by their own exports; those moved by an unhooked program are not.

use core::ffi::c_int;

use ring_proto::sync::Ordering;
use switch::table::Slot;
use switch::telemetry::{Record, Road};

use crate::calls::guarded;
use crate::runtime::{self, Runtime, TABLE};

/// [`Slot::record`] of a connect that goes on: reported when the first byte moves.
const PENDING: Record = Record::MAX;

/// Counts the result of a data call on `fd`: bytes sent and received, nothing if it failed.
#[inline]
pub(crate) fn moved(fd: c_int, tx: isize, rx: isize) {
    if let Some(slot) = TABLE.peek(fd)
        // Relaxed: the record is one word; a stale one costs a count.
        && slot.record.load(Ordering::Relaxed) != 0
        && (tx > 0 || rx > 0)
    {
        guarded(|| count(fd, slot, tx, rx));
    }
}

fn count(fd: c_int, slot: &Slot, tx: isize, rx: isize) {
    let Some(runtime) = runtime::get() else {
        return;
    };
    let telemetry = &runtime.process.telemetry;
    let mut record = slot.record.load(Ordering::Relaxed);
    if record == PENDING || !telemetry.is_current(record) {
        record = report(runtime, fd, slot, record != PENDING);
    }
    let bytes = |n: isize| u64::try_from(n).unwrap_or(0);
    telemetry.count(record, bytes(tx), bytes(rx));
}

#[cold]
fn report(runtime: &Runtime, fd: c_int, slot: &Slot, is_inherited: bool) -> Record {
    runtime.process.introduce();
    let telemetry = &runtime.process.telemetry;
    let (Ok(local), Ok(peer)) = (runtime.tcp.local(fd), runtime.tcp.peer(fd)) else {
        return 0;
    };
    let record = if is_inherited {
        telemetry.inherited(Road::Tcp(None), local, peer)
    } else {
        telemetry.connection(Road::Tcp(None), local, peer)
    };
    slot.record.store(record, Ordering::Relaxed);
    record
}

/// Reports a connection of `fd` that is established, or will be.
pub(crate) fn connected(runtime: &Runtime, fd: c_int, is_established: bool) {
    let Some(slot) = TABLE.get(fd).filter(|s| !s.endpoint.shape().datagram) else {
        return;
    };
    if !runtime.process.telemetry.is_open() {
        return;
    }
    if is_established {
        report(runtime, fd, &slot, false);
    } else {
        slot.record.store(PENDING, Ordering::Relaxed);
    }
}

/// Takes the connection of a socket whose last descriptor goes off the list.
pub(crate) fn ended(runtime: &Runtime, slot: &Slot) {
    let record = slot.record.swap(0, Ordering::Relaxed);
    if record != 0 && record != PENDING {
        runtime.process.telemetry.end(record);
    }
}
