//! Connections and their bytes as telemetry sees them.
//!
//! Place: data exports after the real call, `stream` after each step, `host` and `names` when a connection begins or ends.
//! Hot: `moved` for descriptors without a slot. Leaves out: bytes that an unhooked program moves.

use core::ffi::c_int;
use core::net::SocketAddr;

use ring_proto::sync::Ordering;
use ring_proto::telemetry::Reason;
use switch::report::Side;
use switch::session::Conn;
use switch::table::{Slot, SlotRef};
use switch::telemetry::{Record, Road};
use switch::told::{CLAIMED, PENDING, UNTOLD};
use switch::{Stage, SwitchSocket, sys};

use crate::calls::guarded;
use crate::runtime::{self, Runtime, TABLE};

/// Counts the result of a data call on `fd` that the kernel made: bytes sent and received, nothing if it failed.
#[inline]
pub(crate) fn moved(fd: c_int, tx: isize, rx: isize) {
    if let Some(slot) = TABLE.peek(fd)
        && slot.told.get() != 0
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
    let mut record = slot.told.get();
    if record == PENDING || !telemetry.is_current(record) {
        let reason = slot.socket().and_then(|s| s.reason());
        record = report(runtime, fd, &slot, reason, record != PENDING);
    }
    let bytes = |n: isize| u64::try_from(n).unwrap_or(0);
    telemetry.count(record, bytes(tx), bytes(rx));
}

#[cold]
fn report(
    runtime: &Runtime,
    fd: c_int,
    slot: &SlotRef<'_>,
    reason: Option<Reason>,
    is_inherited: bool,
) -> Record {
    runtime.process.introduce();
    let telemetry = &runtime.process.telemetry;
    let (Ok(local), Ok(peer)) = (runtime.tcp.local(fd), runtime.tcp.peer(fd)) else {
        return 0;
    };
    let road = Road::Tcp(reason);
    // Relaxed: one word, written by the thread that took the connection in.
    let side = match slot.accepted.load(Ordering::Relaxed) {
        0 => Side::Connected,
        _ => Side::Accepted,
    };
    let record = if is_inherited {
        telemetry.inherited(side, road, local, peer)
    } else {
        telemetry.connection(side, road, local, peer)
    };
    slot.told.set(record);
    record
}

/// Reports a TCP connection of `fd` that this process made; without `is_established` once its first byte moves.
pub(crate) fn connected(runtime: &Runtime, fd: c_int, is_established: bool) {
    let Some(slot) = reported(runtime, fd) else {
        return;
    };
    if is_established {
        let reason = slot.socket().and_then(|s| s.reason());
        report(runtime, fd, &slot, reason, false);
    } else {
        slot.told.set(PENDING);
    }
}

/// Takes note of a connect that goes on over TCP, maybe in the background, where nobody sees its end.
pub(crate) fn fell_back(slot: &Slot) {
    slot.told.pend();
}

/// Reports a TCP connection of `fd` that this process accepted. Why it came by TCP its maker knows best: a node tells it itself, for
/// anybody else it is told here.
pub(crate) fn accepted(runtime: &Runtime, fd: c_int, peer: SocketAddr) {
    let Some(slot) = reported(runtime, fd) else {
        return;
    };
    let config = runtime.switch.config();
    let dialled = runtime.tcp.local(fd).ok();
    let dialled_node = dialled
        .and_then(|n| sys::inner_v4(n.ip()))
        .is_some_and(|ip| config.is_own(ip));
    let from_node = sys::inner_v4(peer.ip()).is_some_and(|ip| config.is_in_cluster(ip));
    let reason = match (dialled_node, from_node) {
        (_, true) => None,
        (true, false) => Some(Reason::OffSubnet),
        (false, false) if peer.ip().is_loopback() => Some(Reason::Loopback),
        (false, false) => Some(Reason::OffSubnet),
    };
    if let Some(reason) = reason {
        runtime.process.telemetry.fell_back(reason);
    }
    // Relaxed: as in `report`.
    slot.accepted.store(1, Ordering::Relaxed);
    report(runtime, fd, &slot, reason, false);
}

fn reported(runtime: &Runtime, fd: c_int) -> Option<SlotRef<'static>> {
    if !runtime.process.telemetry.is_open() {
        return None;
    }
    TABLE.get(fd).filter(|s| !s.endpoint.shape().datagram)
}

/// Tells the report of the run of a listener and its road.
pub(crate) fn listening(runtime: &Runtime, fd: c_int, socket: &SwitchSocket) {
    if !runtime.process.telemetry.report.is_open() {
        return;
    }
    if let Ok(local) = runtime.tcp.local(fd) {
        let road = match socket.stage() {
            Stage::SanListening => Road::San { mode: 0 },
            _ => Road::Tcp(socket.reason()),
        };
        runtime.process.telemetry.listener(road, local);
    }
}

/// Reports a connection that the SAN carries, unless that has been done.
pub(crate) fn arrived(runtime: &Runtime, slot: &Slot, socket: &SwitchSocket) {
    tell(runtime, slot, socket);
}

/// Takes note of a connection that an earlier image of the program, or another process, has counted already.
pub(crate) fn inherited(runtime: &Runtime, slot: &Slot, socket: &SwitchSocket) {
    let record = san_record(runtime, socket, true);
    slot.told.set(if record == 0 { UNTOLD } else { record });
}

/// The record of a connection that the SAN carries, made if there is none and nobody else is making it.
fn tell(runtime: &Runtime, slot: &Slot, socket: &SwitchSocket) -> Record {
    match slot.told.claim() {
        Ok(()) => {
            let record = san_record(runtime, socket, false);
            slot.told.tell(&runtime.process.telemetry, record)
        }
        Err(record) => record,
    }
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
    let side = match socket.conn().is_some_and(|conn| conn.is_accepted()) {
        false => Side::Connected,
        true => Side::Accepted,
    };
    if is_inherited {
        telemetry.inherited(side, road, local, peer)
    } else {
        telemetry.connection(side, road, local, peer)
    }
}

/// Counts bytes that the SAN carried.
#[inline]
pub(crate) fn count_san(runtime: &Runtime, slot: &SlotRef<'_>, tx: usize, rx: usize) {
    let telemetry = &runtime.process.telemetry;
    let mut record = slot.told.get();
    if !telemetry.is_current(record) || record == 0 {
        let Some(socket) = slot.socket() else {
            return;
        };
        record = match record {
            0 => tell(runtime, slot, socket),
            CLAIMED | UNTOLD => record,
            // Of the parent this process was forked from.
            _ => {
                inherited(runtime, slot, socket);
                slot.told.get()
            }
        };
    }
    slot.told.count(telemetry, record, tx as u64, rx as u64);
}

/// Tells how a connection that the SAN carries stands after a call on it.
#[inline]
pub(crate) fn flow(runtime: &Runtime, slot: &Slot, conn: &Conn) {
    // A record of nobody is refused.
    let record = slot.told.get();
    runtime.process.telemetry.flow(record, conn.flow());
}

/// Takes the connection of a socket whose last descriptor goes off the list.
pub(crate) fn ended(runtime: &Runtime, slot: &SlotRef<'_>) {
    // One that fell back and moved no byte yet, but was made: it was a connection all the same.
    if slot.told.get() == PENDING
        && let Some(socket) = slot.socket()
        && sys::peer_name(socket.fd()).is_ok()
    {
        report(runtime, socket.fd(), slot, socket.reason(), false);
    }
    let record = slot.told.take();
    if record < UNTOLD && record != 0 {
        runtime.process.telemetry.end(record);
    }
}
