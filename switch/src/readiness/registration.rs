//! One socket in an epoll set: where it lives, what it tells, how it is armed.
//!
//! Place: sets ([`super::epoll`]) keep these and ask them in each scan. Invariants: a registration is in the kernel's set or in ours
//! ([`Place`]), never in both; an edge is told once; a one-shot that was told stays silent.
//! Source: epoll(7); Linux fs/eventpoll.c.

use std::os::fd::RawFd;
use std::sync::Arc;

use super::epoll::{Event, bit};
use super::vectors::Vectors;
use super::{BLIND_NS, CONNECT_NS, Look};
use crate::socket::{Stage, SwitchSocket};
use crate::sys;

/// A socket in a set.
#[derive(Debug)]
pub(super) struct Registration {
    pub(super) fd: RawFd,
    pub(super) socket: Arc<SwitchSocket>,
    pub(super) events: u32,
    pub(super) data: u64,
    pub(super) place: Place,
    /// Stage that `place` was found for.
    pub(super) stage: Stage,
    /// One-shot, and shot.
    pub(super) is_spent: bool,
    /// New or changed: what is ready now is an edge.
    pub(super) is_fresh: bool,
    /// Edges already told.
    pub(super) told: (u64, u64),
}

/// Where a registration lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// In the kernel's set.
    Kernel,
    /// In the kernel's set, and the doorbell beside it.
    Listener(RawFd),
    /// Here.
    Ours,
}

impl Registration {
    /// Whether the socket may have to move.
    pub(super) fn has_moved(&self) -> bool {
        let stage = self.socket.stage();
        // A failed connect moves when its error is taken, a listener when it has its doorbell.
        let is_settled = match stage {
            Stage::Failed => false,
            Stage::SanListening => self.place != Place::Kernel,
            _ => true,
        };
        stage != self.stage || !is_settled
    }

    /// Moves to where the socket's stage says.
    pub(super) fn settle(&mut self, set_fd: RawFd) {
        self.stage = self.socket.stage();
        let wanted = place_of(&self.socket);
        if wanted == self.place {
            return;
        }
        let events = if self.is_spent {
            // As the kernel leaves a one-shot registration that has fired.
            self.events & (bit::ONCE | bit::EDGE)
        } else {
            self.events
        };
        let event = Event {
            events,
            data: self.data,
        };
        // A number that the program has closed meanwhile cannot be moved; its registration ends with the file.
        if let Place::Listener(doorbell) = self.place {
            ring(set_fd, libc::EPOLL_CTL_DEL, doorbell, event);
        }
        match (self.place == Place::Ours, wanted == Place::Ours) {
            (true, false) => change(set_fd, libc::EPOLL_CTL_ADD, self.fd, event),
            (false, true) => change(set_fd, libc::EPOLL_CTL_DEL, self.fd, event),
            _ => {}
        }
        if let Place::Listener(doorbell) = wanted {
            ring(set_fd, libc::EPOLL_CTL_ADD, doorbell, event);
        }
        self.place = wanted;
        self.is_fresh = true;
    }

    /// The event to tell now, if any, and the edges it stands for.
    pub(super) fn ready(&self, look: fn(&SwitchSocket) -> Look) -> Option<(Event, (u64, u64))> {
        if self.place != Place::Ours || self.is_spent {
            return None;
        }
        let Look::Bits { bits, edges } = look(&self.socket) else {
            return None;
        };
        let events = bits & (self.events | bit::ALWAYS);
        if events == 0 {
            return None;
        }
        if self.events & bit::EDGE != 0 && !self.is_fresh {
            let is_in = edges.0 != self.told.0 && self.events & bit::IN != 0;
            let is_out = edges.1 != self.told.1 && self.events & bit::OUT != 0;
            let is_end = edges != self.told && events & bit::ALWAYS != 0;
            if !is_in && !is_out && !is_end {
                return None;
            }
        }
        let data = self.data;
        Some((Event { events, data }, edges))
    }

    /// Arms the connection with one of a set's vectors. Returns how soon a wait must end all the same; `u64::MAX`: not by this one.
    pub(super) fn arm(&self, vectors: &mut Vectors, set_fd: RawFd) -> u64 {
        if self.place != Place::Ours || self.is_spent {
            return u64::MAX;
        }
        let is_connected = self.socket.stage() == Stage::SanConnected;
        let Some(conn) = self.socket.conn().filter(|_| is_connected) else {
            return CONNECT_NS;
        };
        let provider = conn.provider();
        let is_armed = provider
            .waiting
            .function_of(conn.sp())
            .and_then(|f| vectors.of(set_fd, provider, f))
            .is_some_and(|waiter| conn.is_armed(waiter) || conn.arm(waiter).is_ok());
        if is_armed || self.told.0 == u64::MAX {
            conn.patience_left_ns().unwrap_or(u64::MAX)
        } else {
            BLIND_NS
        }
    }
}

/// Where a socket of this stage is registered.
pub(super) fn place_of(socket: &SwitchSocket) -> Place {
    match socket.stage() {
        Stage::SanConnecting | Stage::Negotiating | Stage::SanConnected => Place::Ours,
        Stage::Failed if socket.has_error() => Place::Ours,
        Stage::SanListening => socket.doorbell_fd().map_or(Place::Kernel, Place::Listener),
        _ => Place::Kernel,
    }
}

/// Changes an entry of the kernel's set beside the program's own call. What it cannot change is gone with its file.
pub(super) fn change(set_fd: RawFd, operation: i32, fd: RawFd, event: Event) {
    sys::epoll_control(set_fd, operation, fd, event.events, event.data).ok();
}

/// Changes the entry of a listener's doorbell: it stands for the readable half alone, and is always writable as a descriptor.
pub(super) fn ring(set_fd: RawFd, operation: i32, doorbell: RawFd, event: Event) {
    let events = event.events & !bit::OUT;
    change(set_fd, operation, doorbell, Event { events, ..event });
}
