//! Sets within sets, and sets that are polled: what the kernel cannot see of their members.
//!
//! Place: [`super::epoll`] asks for the sets within a set that is waited on, [`super::poll`] for sets among its descriptors.
//! Invariants: the kernel's set holds the inner one as the program registered it and tells of its kernel descriptors; here only its
//! SAN connections count, and looking at them takes no event away. The kernel refuses cycles before they could arise here, so locks
//! are taken from the outside in.
//! Source: Linux fs/eventpoll.c: an inner set is readable while some event of it is not yet taken.

use std::os::fd::RawFd;
use std::sync::{Arc, Weak};

use super::epoll::{EpollSet, Event, SetState, bit};
use super::registration::{Place, Registration, change};
use super::{Desk, Look, arm};
use crate::outcome::Errno;
use crate::socket::SwitchSocket;
use crate::sys;
use crate::waiters::Sleep;

/// A set within a set.
#[derive(Debug)]
pub(super) struct Inner {
    fd: RawFd,
    set: Weak<EpollSet>,
    events: u32,
    data: u64,
    /// One-shot, and shot.
    is_spent: bool,
    /// New or changed: what is ready now is an edge.
    is_fresh: bool,
    /// [`Members::edges`] told already.
    told: u64,
}

/// What the members of a set that the kernel does not see amount to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Members {
    /// There are some.
    pub(super) is_any: bool,
    /// Some has an event that was not taken yet.
    pub(super) is_ready: bool,
    /// Differs after each new edge of any of them.
    pub(super) edges: u64,
}

impl Inner {
    /// The set, while it is open.
    pub(super) fn living(&self) -> Option<Arc<EpollSet>> {
        self.set.upgrade().filter(|set| !set.is_closed())
    }
}

impl EpollSet {
    /// `epoll_ctl` on a set that is, or is to be, within this one.
    ///
    /// # Errors
    /// The kernel's.
    pub fn control_inner(
        self: &Arc<Self>,
        set_fd: RawFd,
        operation: i32,
        (fd, inner): (RawFd, &Arc<Self>),
        event: Event,
    ) -> Result<(), Errno> {
        let Event { events, data } = event;
        sys::epoll_control(set_fd, operation, fd, events, data)?;
        let is_it = |i: &Inner| i.fd == fd && core::ptr::eq(i.set.as_ptr(), Arc::as_ptr(inner));
        let mut state = self.state.lock();
        match operation {
            libc::EPOLL_CTL_ADD => {
                state.inners.retain(|i| i.living().is_some() && !is_it(i));
                state.inners.push(Inner {
                    fd,
                    set: Arc::downgrade(inner),
                    events,
                    data,
                    is_spent: false,
                    is_fresh: true,
                    told: 0,
                });
                drop(state);
                let mut outers = inner.outers.lock();
                outers.retain(|o| o.strong_count() > 0);
                outers.push(Arc::downgrade(self));
            }
            libc::EPOLL_CTL_MOD => {
                if let Some(i) = state.inners.iter_mut().find(|i| is_it(i)) {
                    (i.events, i.data) = (events, data);
                    (i.is_spent, i.is_fresh) = (false, true);
                }
                drop(state);
            }
            _ => {
                state.inners.retain(|i| !is_it(i));
                drop(state);
                let me = Arc::as_ptr(self);
                let mut outers = inner.outers.lock();
                if let Some(at) = outers.iter().position(|o| core::ptr::eq(o.as_ptr(), me)) {
                    outers.swap_remove(at);
                }
            }
        }
        self.wake();
        Ok(())
    }

    /// Events of the sets within this one, as far as the kernel does not see them. Returns how many, and whether there is anything that
    /// the kernel does not see.
    pub(super) fn collect_inners(
        &self,
        state: &mut SetState,
        desk: &Desk,
        look: fn(&SwitchSocket) -> Look,
        room: usize,
        mut put: impl FnMut(usize, Event),
    ) -> (usize, bool) {
        if state.inners.is_empty() {
            return (0, false);
        }
        state.inners.retain(|i| i.living().is_some());
        let set_fd = self.reach(desk);
        let (mut ready, mut is_any) = (0, false);
        for inner in &mut state.inners {
            let Some(set) = inner.living().filter(|_| !inner.is_spent) else {
                continue;
            };
            let members = set.members(desk, look);
            is_any |= members.is_any;
            let events = bit::READABLE & inner.events;
            let is_edge = inner.is_fresh || members.edges != inner.told;
            let is_due = inner.events & bit::EDGE == 0 || is_edge;
            if !members.is_ready || events == 0 || !is_due || ready == room {
                continue;
            }
            inner.told = members.edges;
            inner.is_fresh = false;
            let data = inner.data;
            if inner.events & bit::ONCE != 0 {
                inner.is_spent = true;
                // As the kernel leaves one that has fired.
                let events = inner.events & (bit::ONCE | bit::EDGE);
                let silent = Event { events, data };
                change(set_fd, libc::EPOLL_CTL_MOD, inner.fd, silent);
            }
            put(ready, Event { events, data });
            ready += 1;
        }
        (ready, is_any)
    }

    /// After a wait: an inner set that both the kernel and we have told of is told once, and a one-shot one is spent for both. Of
    /// `events`, the first `ours` are ours. Returns how many are left.
    pub fn merge_inners(
        &self,
        events: &mut [libc::epoll_event],
        ours: core::ops::Range<usize>,
    ) -> usize {
        let mut state = self.state.lock();
        if state.inners.is_empty() {
            return events.len();
        }
        for inner in state
            .inners
            .iter_mut()
            .filter(|i| i.events & bit::ONCE != 0)
        {
            let mut kernels = events
                .iter()
                .enumerate()
                .filter(|(at, _)| !ours.contains(at));
            inner.is_spent |= kernels.any(|(_, e)| e.u64 == inner.data);
        }
        let mut kept = 0;
        for at in 0..events.len() {
            let event = events[at];
            let is_inner = || state.inners.iter().any(|i| i.data == event.u64);
            let is_twice = ours.contains(&at)
                && is_inner()
                && (0..events.len()).any(|n| !ours.contains(&n) && events[n].u64 == event.u64);
            if !is_twice {
                events[kept] = event;
                kept += 1;
            }
        }
        kept
    }

    /// Looks at the members that the kernel does not see, and takes nothing away.
    pub(super) fn members(&self, desk: &Desk, look: fn(&SwitchSocket) -> Look) -> Members {
        let set_fd = self.reach(desk);
        let mut state = self.state.lock();
        let mut found = Members {
            edges: state.changes,
            ..Members::default()
        };
        for r in &mut state.registrations {
            if r.has_moved() {
                r.settle(set_fd);
            }
            if r.place != Place::Ours {
                continue;
            }
            found.is_any = true;
            found.is_ready |= r.ready(look).is_some();
            if let Some(conn) = r.socket.conn() {
                let (readable, writable) = conn.edge_counter();
                found.edges = found.edges.wrapping_add(readable).wrapping_add(writable);
            }
        }
        for inner in state.inners.iter().filter(|i| !i.is_spent) {
            let Some(set) = inner.living() else {
                continue;
            };
            let members = set.members(desk, look);
            let is_due =
                inner.events & bit::EDGE == 0 || inner.is_fresh || members.edges != inner.told;
            found.is_any |= members.is_any;
            found.is_ready |= members.is_ready && is_due && inner.events & bit::READABLE != 0;
            found.edges = found.edges.wrapping_add(members.edges);
        }
        found
    }

    /// Visits the members that the kernel does not see, here and further in.
    pub(super) fn each_of_ours(&self, visit: &mut impl FnMut(&Registration)) {
        let state = self.state.lock();
        state.registrations.iter().for_each(&mut *visit);
        for inner in state.inners.iter().filter_map(Inner::living) {
            // By a trait object further in: the depth is the program's.
            let mut deeper: &mut dyn FnMut(&Registration) = visit;
            inner.each_of_ours(&mut deeper);
        }
    }

    /// For a poll on the set: whether the members that the kernel does not see make it readable, after driving what is no connection yet.
    pub(super) fn polled(&self, desk: &Desk, look: fn(&SwitchSocket) -> Look) -> Members {
        self.drive_pending(desk);
        self.members(desk, look)
    }

    /// For a poll on the set: arms the members that the kernel does not see with vectors of the calling thread.
    pub(super) fn arm_members(&self, desk: &Desk, sleep: &mut Sleep) {
        let mut sockets = Vec::new();
        self.each_of_ours(&mut |r: &Registration| {
            if r.place == Place::Ours && !r.is_spent {
                sockets.push(Arc::clone(&r.socket));
            }
        });
        for socket in sockets {
            if socket.is_connecting() {
                sleep.set_blind();
            } else {
                arm(desk, &socket, sleep);
            }
        }
    }
}
