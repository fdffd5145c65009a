//! Readiness of sockets whose data the kernel does not carry, merged with the kernel's for all others.
//!
//! Place: `poll`, `select` and `epoll` of the preload library; [`poll`] for the calls that bring their descriptors along, [`epoll`]
//! for sets. Invariants: a SAN connection owns no descriptor: its readiness is computed ([`look`]), and who sleeps arms a vector of
//! its own for it, looks again, and only then sleeps. The parked kernel socket's state never shows.
//! Hot: [`look`], [`glance`]. Source; a ready list in user space, with the vectors in the kernel's set.

pub mod epoll;
pub mod lock;
mod nested;
pub mod poll;
mod registration;
pub mod sleeping;
mod spinning;
mod vectors;

use std::os::fd::RawFd;
use std::sync::Arc;

use driver::spi::Waiter;

use crate::provider_table::ProviderRef;
use crate::session::Conn;
use crate::socket::{Stage, SwitchSocket};
use crate::switch::Switch;
use crate::table::Table;
use crate::waiters::{Sleep, Waiters};

pub use spinning::{spin, woke};

/// How soon a wait ends that could not arm everything it waits for.
pub const BLIND_NS: u64 = 5_000_000;
/// How soon a wait for a connect under way looks again: its event object may be another's by then.
pub const CONNECT_NS: u64 = 50_000_000;
/// Times a waiter arms anew because something moved at its last look, before it looks again without sleeping.
pub const REARMS: u32 = 16;

/// What waiting needs of its process.
#[derive(Clone, Copy)]
pub struct Desk {
    /// The switch.
    pub switch: &'static Switch,
    /// Descriptors.
    pub table: &'static Table,
    /// Vectors of threads.
    pub waiters: &'static Waiters,
}

impl core::fmt::Debug for Desk {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Desk").finish_non_exhaustive()
    }
}

/// Where the readiness of a socket is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Look {
    /// The kernel knows.
    Kernel,
    /// Here: `EPOLL*` bits, and counters that grow with each new edge.
    Bits {
        /// `EPOLL*` bits.
        bits: u32,
        /// Counters of readable and writable edges, read before the bits.
        edges: (u64, u64),
    },
    /// A connect under way: not ready; this descriptor is signalled when it ends.
    Connecting(RawFd),
    /// The kernel knows of one half, this descriptor shows the other.
    Listener(RawFd),
}

/// What a failed connect shows.
const FAILED: u32 = (libc::EPOLLIN
    | libc::EPOLLRDNORM
    | libc::EPOLLOUT
    | libc::EPOLLWRNORM
    | libc::EPOLLRDHUP
    | libc::EPOLLERR
    | libc::EPOLLHUP) as u32;

/// Drives a connect under way, or the connections that come to a listener. Tells the host what came of it, so no set may be locked.
/// True when something moved: there may be a connection now that nobody has armed.
pub fn drive(switch: &Switch, socket: &Arc<SwitchSocket>) -> bool {
    let stage = socket.stage();
    match stage {
        Stage::SanConnecting | Stage::Negotiating => {
            switch.connect_in_background(socket);
            socket.stage() != stage
        }
        Stage::SanListening => switch.drive_listener(socket),
        _ => false,
    }
}

/// Whether [`drive`] can do something for a socket.
#[must_use]
pub fn is_pending(socket: &SwitchSocket) -> bool {
    socket.is_connecting() || socket.stage() == Stage::SanListening
}

/// Functions whose vectors a wait for a pending socket needs.
fn functions_of(switch: &Switch, socket: &SwitchSocket) -> Vec<(ProviderRef, u32)> {
    match socket.stage() {
        Stage::SanListening => switch.listener_functions(socket),
        _ => switch.connect_function(socket).into_iter().collect(),
    }
}

/// Arms a pending socket for a waiter of one of [`functions_of`]. What cannot be armed is the service thread's to drive.
fn arm_pending_for(switch: &Switch, socket: &SwitchSocket, provider: &ProviderRef, waiter: Waiter) {
    match socket.stage() {
        Stage::SanListening => switch.arm_listener(socket, provider, waiter),
        _ => {
            switch.arm_connect(socket, waiter);
        }
    }
}

/// Arms a pending socket for a wait. The caller drives it once more before it sleeps.
pub fn arm_pending(desk: &Desk, socket: &SwitchSocket, sleep: &mut Sleep) {
    for (provider, function) in functions_of(desk.switch, socket) {
        if let Some(waiter) = sleep.waiter(desk.waiters, &provider, function) {
            arm_pending_for(desk.switch, socket, &provider, waiter);
        }
    }
}

/// Looks at a socket, after doing what can be done now for an established connection. Whoever sleeps next has looked so.
pub fn look(socket: &SwitchSocket) -> Look {
    look_after(socket, Conn::progress)
}

/// As [`look`], leaving a connection alone that seems quiet.
pub fn glance(socket: &SwitchSocket) -> Look {
    look_after(socket, Conn::progress_if_due)
}

fn look_after(socket: &SwitchSocket, progress: impl FnOnce(&Conn)) -> Look {
    match socket.stage() {
        Stage::SanConnected => match socket.conn() {
            Some(conn) => {
                conn.touch();
                progress(conn);
                let edges = conn.edge_counter();
                Look::Bits {
                    bits: conn.readiness(),
                    edges,
                }
            }
            None => Look::Kernel,
        },
        Stage::SanConnecting | Stage::Negotiating => {
            Look::Connecting(socket.connect_event().map_or(-1, |(event, _)| event))
        }
        Stage::Failed if socket.has_error() => Look::Bits {
            bits: FAILED,
            edges: (u64::MAX, u64::MAX),
        },
        Stage::SanListening => socket.doorbell_fd().map_or(Look::Kernel, Look::Listener),
        _ => Look::Kernel,
    }
}

/// Arms an established connection for a wait. The caller looks again before it sleeps.
pub fn arm(desk: &Desk, socket: &SwitchSocket, sleep: &mut Sleep) {
    let Some(conn) = socket.conn() else {
        return;
    };
    let provider = conn.provider();
    let waiter = provider
        .waiting
        .function_of(conn.sp())
        .and_then(|function| sleep.waiter(desk.waiters, provider, function));
    // A connection that cannot be armed has failed, which the next look shows.
    let is_armed = waiter.is_some_and(|waiter| conn.arm(waiter).is_ok());
    if !is_armed {
        sleep.set_blind();
    }
    if let Some(left_ns) = conn.patience_left_ns() {
        sleep.limit(left_ns);
    }
}
