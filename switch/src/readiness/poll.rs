//! `poll`, `ppoll`, `select` and `pselect` with SAN sockets among their descriptors.
//!
//! Place: the preload library brings the program's array and a longer one of its own; [`round`] answers, or fills the longer one for
//! the real `ppoll`, a cancellation point that the library calls itself.
//! Invariants: [`PollState`] is plain data: the thread may never come back from its wait. Kernel descriptors are asked in every
//! round, so neither side starves the other.
//! Source: poll(2), select(2).

use std::os::fd::RawFd;

use super::{
    CONNECT_NS, Desk, Look, REARMS, arm, arm_pending, drive, glance, is_pending, look, spin, woke,
};
use crate::socket::SwitchSocket;
use crate::sys;
use crate::table::{Kind, Table};
use crate::waiters::{FUNCTIONS, Sleep};

/// Doorbells of listeners that one wait can watch.
const DOORBELLS: usize = 16;
/// Entries that the longer array has beyond the program's.
pub const EXTRA: usize = DOORBELLS + 2 * FUNCTIONS;

/// State of a poll between its rounds.
#[derive(Clone, Copy, Debug)]
pub struct PollState {
    sleep: Sleep,
    /// Program's entry behind each doorbell.
    owners: [usize; DOORBELLS],
    doorbells: usize,
    is_connecting: bool,
    /// Something moved at a look: a connection may be there that is not armed.
    has_moved: bool,
}

impl PollState {
    /// Before the first round.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            sleep: Sleep::new(),
            owners: [0; DOORBELLS],
            doorbells: 0,
            is_connecting: false,
            has_moved: false,
        }
    }
}

impl Default for PollState {
    fn default() -> Self {
        Self::new()
    }
}

/// What a round ends with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Round {
    /// So many entries are ready; the program's array is filled in.
    Ready(usize),
    /// Wait on so many entries of the longer array, at most so long; then call [`woken`], then the next round.
    Sleep {
        /// Entries.
        len: usize,
        /// Most nanoseconds of this wait, whatever the program's limit.
        limit_ns: Option<u64>,
    },
}

/// Whether any of these descriptors needs the switch.
#[inline]
#[must_use]
pub fn concerns(table: &Table, fds: impl IntoIterator<Item = RawFd>) -> bool {
    fds.into_iter().any(|fd| match table.kind(fd) {
        Kind::None => false,
        Kind::Socket => table.peek(fd).is_some_and(crate::table::Slot::is_san),
        Kind::Set => true,
    })
}

/// One round of a poll. `work` has the length of `fds` and [`EXTRA`].
pub fn round(
    desk: &Desk,
    fds: &mut [libc::pollfd],
    work: &mut [libc::pollfd],
    state: &mut PollState,
    may_sleep: bool,
) -> Round {
    look_at_all(look, desk, fds, work, state);
    let ready = merge(fds, work, state);
    if ready > 0 || !may_sleep {
        return Round::Ready(ready);
    }
    let answered = spin(|| (look_at_all(glance, desk, fds, work, state) > 0).then_some(()));
    for _ in 0..REARMS {
        if answered.is_some() {
            break;
        }
        state.has_moved = false;
        for entry in fds.iter() {
            if let Some(slot) = desk.table.get(entry.fd)
                && let Some(socket) = slot.socket()
            {
                if is_pending(socket) {
                    arm_pending(desk, socket, &mut state.sleep);
                } else {
                    arm(desk, socket, &mut state.sleep);
                }
            } else if let Some(slot) = desk.table.get_set(entry.fd)
                && let Some(set) = slot.set()
            {
                set.arm_members(desk, &mut state.sleep);
            }
        }
        // Armed: what came before is found now, what comes later wakes.
        look_at_all(look, desk, fds, work, state);
        if !state.has_moved {
            break;
        }
    }
    if answered.is_none() && state.has_moved {
        state.sleep.set_blind();
    }
    let ready = merge(fds, work, state);
    if ready > 0 {
        desk.waiters.wake(&mut state.sleep);
        return Round::Ready(ready);
    }
    let mut len = fds.len() + state.doorbells;
    for entry in state.sleep.fds() {
        if let Some(free) = work.get_mut(len) {
            *free = entry;
            len += 1;
        }
    }
    if state.is_connecting {
        state.sleep.limit(CONNECT_NS);
    }
    let limit_ns = state.sleep.limit_ns();
    Round::Sleep { len, limit_ns }
}

/// After the wait: gives the vectors back. Not called by a thread that never came back.
pub fn woken(desk: &Desk, work: &[libc::pollfd], state: &mut PollState) {
    woke();
    state.sleep.look(desk.waiters, work);
    desk.waiters.wake(&mut state.sleep);
}

/// Computes what is ours into `fds` and leaves the rest to `work`. Returns the entries that are ready by us.
fn look_at_all(
    look: fn(&SwitchSocket) -> Look,
    desk: &Desk,
    fds: &mut [libc::pollfd],
    work: &mut [libc::pollfd],
    state: &mut PollState,
) -> usize {
    state.doorbells = 0;
    state.is_connecting = false;
    let mut ready = 0;
    let count = fds.len();
    let (own, extra) = work.split_at_mut(count);
    for (index, (entry, kernel)) in fds.iter_mut().zip(own).enumerate() {
        entry.revents = 0;
        *kernel = *entry;
        if desk.table.kind(entry.fd) == Kind::Set {
            // The kernel answers for the set too; its answer is added.
            if let Some(slot) = desk.table.get_set(entry.fd)
                && let Some(set) = slot.set()
                && set.polled(desk, look).is_ready
            {
                entry.revents = entry.events & (libc::POLLIN | libc::POLLRDNORM);
                ready += usize::from(entry.revents != 0);
            }
            continue;
        }
        let Some(slot) = desk.table.get(entry.fd) else {
            continue;
        };
        let Some(socket) = slot.socket().filter(|_| slot.is_san()) else {
            continue;
        };
        state.has_moved |= drive(desk.switch, socket);
        match look(socket) {
            Look::Kernel => {}
            Look::Bits { bits, .. } => {
                kernel.fd = -1;
                entry.revents = shown(bits, entry.events);
                ready += usize::from(entry.revents != 0);
            }
            Look::Connecting(event) => {
                kernel.fd = -1;
                state.is_connecting = true;
                watch(extra, state, index, event);
            }
            Look::Listener(doorbell) => watch(extra, state, index, doorbell),
        }
    }
    ready
}

fn watch(extra: &mut [libc::pollfd], state: &mut PollState, owner: usize, fd: RawFd) {
    let (Some(entry), Some(place)) = (
        extra.get_mut(state.doorbells),
        state.owners.get_mut(state.doorbells),
    ) else {
        state.sleep.set_blind();
        return;
    };
    *entry = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    *place = owner;
    state.doorbells += 1;
}

/// Asks the kernel for its part, without waiting, and adds it up.
fn merge(fds: &mut [libc::pollfd], work: &mut [libc::pollfd], state: &PollState) -> usize {
    let count = fds.len();
    let asked = &mut work[..count + state.doorbells];
    if asked.iter().any(|e| e.fd >= 0) {
        // An error would concern the array, which is ours.
        sys::poll(asked, Some(0)).ok();
        let (own, doorbells) = asked.split_at(count);
        for (entry, kernel) in fds.iter_mut().zip(own).filter(|(_, k)| k.fd >= 0) {
            entry.revents |= kernel.revents;
        }
        for (doorbell, &owner) in doorbells.iter().zip(&state.owners) {
            // The event of a connect is not readiness: the next look tells what came of it.
            let is_listener = own.get(owner).is_some_and(|k| k.fd >= 0);
            if let Some(entry) = fds.get_mut(owner)
                && is_listener
                && doorbell.revents & libc::POLLIN != 0
            {
                entry.revents |= entry.events & (libc::POLLIN | libc::POLLRDNORM);
            }
        }
    }
    fds.iter().filter(|e| e.revents != 0).count()
}

/// The bits that a poll with these events shows.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the bits of poll are the lower ones of epoll"
)]
fn shown(bits: u32, events: i16) -> i16 {
    let always = libc::POLLERR | libc::POLLHUP;
    (bits as i16) & (events | always)
}
