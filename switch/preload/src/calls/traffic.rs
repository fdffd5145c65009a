//! Connections and their bytes as telemetry sees them.
//!
//! Place: data exports after the real call, `stream` after each step, `host` and `names` when a connection begins or ends.
//! Hot: `moved` for descriptors without a slot. Leaves out: bytes that an unhooked program moves.

use core::ffi::c_int;

use ring_proto::sync::Ordering;
use switch::SwitchSocket;
use switch::table::Slot;
use switch::table::SlotRef;
use switch::telemetry::{Record, Road};

use crate::calls::guarded;
use crate::runtime::{self, Runtime, TABLE};

/// [`Slot::record`] of a connect that goes on: reported when the first byte moves.
const PENDING: Record = Record::MAX;

/// Counts the result of a data call on `fd` that the kernel made: bytes sent and received, nothing if it failed.
#[inline]
pub(crate) fn moved(fd: c_int, tx: isize, rx: isize) {
    if let Some(slot) = TABLE.peek(fd)
        // Relaxed: the record is one word; a stale one costs a count.
        && slot.record.load(Ordering::Relaxed) != 0
        && (tx > 0 || rx > 0)
    {
        guarded(|| count(fd, tx, rx));
    }
}

fn count(fd: c_int, tx: isize, rx: isize) {
    let (Some(runtime), Some(slot)) = (runtime::get(), TABLE.get(fd)) else {
        return;
    };
    let telemetry = &runtime.process.telemetry;
    let mut record = slot.record.load(Ordering::Relaxed);
    if record == PENDING || !telemetry.is_current(record) {
        record = report(runtime, fd, &slot, record != PENDING);
    }
    let bytes = |n: isize| u64::try_from(n).unwrap_or(0);
    telemetry.count(record, bytes(tx), bytes(rx));
}

#[cold]
fn report(runtime: &Runtime, fd: c_int, slot: &SlotRef<'_>, is_inherited: bool) -> Record {
    runtime.process.introduce();
    let telemetry = &runtime.process.telemetry;
    let (Ok(local), Ok(peer)) = (runtime.tcp.local(fd), runtime.tcp.peer(fd)) else {
        return 0;
    };
    let road = Road::Tcp(slot.socket().and_then(|s| s.reason()));
    let record = if is_inherited {
        telemetry.inherited(road, local, peer)
    } else {
        telemetry.connection(road, local, peer)
    };
    slot.record.store(record, Ordering::Relaxed);
    record
}

/// Reports a TCP connection of `fd` that is established, or will be.
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

/// Reports a connection that the SAN carries.
pub(crate) fn arrived(runtime: &Runtime, slot: &Slot, socket: &SwitchSocket) {
    let record = san_record(runtime, socket, false);
    slot.record.store(record, Ordering::Relaxed);
}

fn san_record(runtime: &Runtime, socket: &SwitchSocket, is_inherited: bool) -> Record {
    runtime.process.introduce();
    let telemetry = &runtime.process.telemetry;
    let names = (
        runtime.switch.local_address(socket),
        runtime.switch.peer_address(socket),
    );
    let (Ok(local), Ok(peer)) = names else {
        return 0;
    };
    let road = Road::San { mode: 0 };
    if is_inherited {
        telemetry.inherited(road, local, peer)
    } else {
        telemetry.connection(road, local, peer)
    }
}

/// Counts bytes that the SAN carried.
#[inline]
pub(crate) fn count_san(runtime: &Runtime, slot: &SlotRef<'_>, tx: usize, rx: usize) {
    // Relaxed: one word.
    let mut record = slot.record.load(Ordering::Relaxed);
    if record == 0 {
        return;
    }
    if !runtime.process.telemetry.is_current(record) {
        // Of the parent this process was forked from.
        record = slot
            .socket()
            .map_or(0, |socket| san_record(runtime, socket, true));
        slot.record.store(record, Ordering::Relaxed);
    }
    runtime
        .process
        .telemetry
        .count(record, tx as u64, rx as u64);
}

/// Takes the connection of a socket whose last descriptor goes off the list.
pub(crate) fn ended(runtime: &Runtime, slot: &Slot) {
    let record = slot.record.swap(0, Ordering::Relaxed);
    if record != 0 && record != PENDING {
        runtime.process.telemetry.end(record);
    }
}
