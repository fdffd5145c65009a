//! What the switch asks of the program's process.
//!
//! Place: called by `switch`, without its locks, from any thread. Invariants: nothing here blocks.

use std::os::fd::RawFd;
use std::sync::Arc;

use ring_proto::sync::Ordering;
use ring_proto::telemetry::Reason;
use switch::table::SlotRef;
use switch::{Host, Stage, SwitchSocket, sys};

use crate::calls::traffic;
use crate::runtime::{self, SERVICE, SETS, TABLE};

/// The process around the switch.
#[derive(Debug)]
pub(crate) struct ProgramHost;

impl Host for ProgramHost {
    fn wake_service(&self) {
        SERVICE.wake();
    }

    fn socket_changed(&self, socket: &Arc<SwitchSocket>) {
        let Some(runtime) = runtime::get() else {
            return;
        };
        if let Some(slot) = slot_of(socket) {
            mark(&slot, socket);
        }
        SETS.socket_changed(&runtime.desk(), socket);
    }

    fn fell_back(&self, socket: &SwitchSocket, reason: Reason) {
        if let Some(runtime) = runtime::get() {
            runtime.process.telemetry.fell_back(reason);
        }
        let slot = TABLE.get(socket.fd());
        if let Some(slot) = slot.filter(|slot| slot.socket().is_some_and(|s| s.id() == socket.id()))
        {
            traffic::fell_back(&slot);
        }
    }

    fn cut_off(&self) {
        if let Some(runtime) = runtime::get() {
            runtime.process.telemetry.fell_back(Reason::LinkCut);
        }
    }

    fn established(&self, socket: &Arc<SwitchSocket>) {
        // A socket that is just being accepted is tracked, and reported, when its descriptor is given out.
        if let Some(slot) = slot_of(socket) {
            arrived(&slot, socket);
        }
    }
}

/// Slot of a socket, `None` while it has none.
fn slot_of(socket: &Arc<SwitchSocket>) -> Option<SlotRef<'static>> {
    TABLE
        .get(socket.fd())
        .filter(|slot| slot.socket().is_some_and(|s| Arc::ptr_eq(s, socket)))
}

/// Notes whether calls on a socket must ask the switch.
pub(crate) fn mark(slot: &SlotRef<'_>, socket: &SwitchSocket) {
    let is_plain = matches!(
        socket.stage(),
        Stage::Fresh | Stage::TcpBound | Stage::Tcp | Stage::Closed
    );
    if !is_plain {
        name(slot, socket.fd());
    }
    slot.set_san(!is_plain);
}

/// Learns the kernel's name of the socket behind `fd`, by which another process will know it again.
pub(crate) fn name(slot: &SlotRef<'_>, fd: RawFd) {
    // Relaxed: a number that never changes once it is known.
    if slot.cookie.load(Ordering::Relaxed) == 0 {
        let cookie = sys::cookie(fd).unwrap_or(0);
        slot.cookie.store(cookie, Ordering::Relaxed);
    }
}

/// Takes note of a connection that the SAN carries from now on.
pub(crate) fn arrived(slot: &SlotRef<'_>, socket: &SwitchSocket) {
    mark(slot, socket);
    if let Some(runtime) = runtime::get() {
        traffic::arrived(runtime, slot, socket);
    }
}
