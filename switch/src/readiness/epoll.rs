//! Epoll sets that know sockets which the SAN may carry.
//!
//! Place: `epoll_ctl` and `epoll_wait` of the preload library. The kernel's set stays in use: it holds kernel descriptors with the
//! program's own events and data; `super::vectors` lets one real `epoll_wait` wait for it and for SAN connections.
//! Invariants: a socket is registered in one place at a time, the kernel's set or ours (`Place`), and moves before the call that
//! changes its road returns; the program's `data` travels untouched. A connection that stays ready after it was told by level wakes the
//! next sleeper of the set too, as in the kernel.
//! Edges: see `lock`. Lock order: a set, then the sets within it (`super::nested`).
//! Source: epoll(7); Linux fs/eventpoll.c for what an edge is. Leaves out: what a child that shares the set after a fork registers.
//!
//! ```text
//! kernel's set: kernel descriptors (program's data) | listeners' doorbells (program's data)
//! ours:         SAN connections, connects under way, failed connects | sets within the set, for their SAN connections
//! ```

use std::os::fd::RawFd;
use std::sync::{Arc, Weak};

use ring_proto::sync::{AtomicI32, AtomicU32, Ordering};

use super::lock::Lock;
use super::nested::Inner;
use super::registration::{Place, Registration, place_of, ring};
use super::vectors::{Mark, Vectors};
use super::{Desk, REARMS, arm_pending_for, drive, functions_of, glance, is_pending, look, spin};
use crate::event::EventFd;
use crate::outcome::Errno;
use crate::socket::SwitchSocket;
use crate::sys::{self, SysResult};
use crate::table::{SlotRef, Table};

#[expect(clippy::cast_sign_loss, reason = "bits")]
pub(super) mod bit {
    pub(in super::super) const IN: u32 =
        (libc::EPOLLIN | libc::EPOLLRDNORM | libc::EPOLLRDHUP) as u32;
    pub(in super::super) const READABLE: u32 = (libc::EPOLLIN | libc::EPOLLRDNORM) as u32;
    pub(in super::super) const OUT: u32 = (libc::EPOLLOUT | libc::EPOLLWRNORM) as u32;
    pub(in super::super) const ALWAYS: u32 = (libc::EPOLLERR | libc::EPOLLHUP) as u32;
    pub(in super::super) const EDGE: u32 = libc::EPOLLET as u32;
    pub(in super::super) const ONCE: u32 = libc::EPOLLONESHOT as u32;
    pub(in super::super) const EXCLUSIVE: u32 = libc::EPOLLEXCLUSIVE as u32;
}

/// Every so manyth scan looks at all connections in any case.
const FULL_SCAN: u32 = 64;

/// Every set that knows a socket.
#[derive(Debug, Default)]
pub struct Sets {
    list: Lock<Vec<Weak<EpollSet>>>,
}

/// One set.
#[derive(Debug)]
pub struct EpollSet {
    pub(super) state: Lock<SetState>,
    /// A descriptor by which this process reached the kernel's set last.
    fd: AtomicI32,
    /// Eventfd that interrupts those who sleep on the set. -1 for none.
    pub(super) wake: AtomicI32,
    /// Threads that sleep for the set, or are about to.
    pub(super) sleepers: AtomicU32,
    /// Those of them that sleep in the kernel's set itself, where no vector wakes them.
    pub(super) plain_sleepers: AtomicU32,
    /// 1 once the program closed it.
    closed: AtomicU32,
    /// Sets that this one lies in.
    pub(super) outers: Lock<Vec<Weak<EpollSet>>>,
}

#[derive(Debug, Default)]
pub(super) struct SetState {
    pub(super) registrations: Vec<Registration>,
    /// Sets within this one.
    pub(super) inners: Vec<Inner>,
    pub(super) vectors: Vectors,
    /// Owns what [`EpollSet::wake`] names.
    pub(super) wake: Option<EventFd>,
    /// It lies in the kernel's set, for those who sleep there.
    pub(super) is_wake_in_set: bool,
    /// It lies in the set of ours.
    pub(super) is_wake_in_waits: bool,
    /// Threads that bring sleepers out of the kernel's set just now.
    pub(super) callers: u32,
    /// Grows with each change of what is registered.
    pub(super) changes: u64,
    /// The last scan left no room for the kernel's events.
    owes_kernel: bool,
    /// Where the next scan begins, so that a small array of events starves nobody.
    next: usize,
    /// Scans so far.
    scans: u32,
    /// Some registration lives here, as far as the last scan knows.
    has_ours: bool,
    /// Some connect is under way, or some listener waits, as far as is known.
    pub(super) has_pending: bool,
}

/// How a scan looks at connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Care {
    /// Those that seem quiet are left alone, in all scans but some.
    Brief,
    /// All of them, by a thread that counts as a sleeper already: a sleep follows.
    Last,
}

/// One event for the program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// `EPOLL*` bits.
    pub events: u32,
    /// The program's word.
    pub data: u64,
}

/// What a scan before the wait ends with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scan {
    /// So many events are in the array; add the kernel's without waiting.
    Ready(usize),
    /// Nothing: wait, at most so long.
    Sleep {
        /// Where: the program's set, or one of ours that holds it.
        on: RawFd,
        /// Most nanoseconds of this wait, whatever the program's limit.
        limit_ns: Option<u64>,
    },
}

impl Sets {
    /// No sets.
    #[must_use]
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self {
            list: Lock::new(Vec::new()),
        }
    }

    /// Begins to know a set that gets its first socket; several threads may give it one at a time. `None`: not a set, or no room.
    pub fn track<'a>(&self, table: &'a Table, set_fd: RawFd) -> Option<SlotRef<'a>> {
        let set = EpollSet::new(set_fd).ok()?;
        // What closed sockets left goes before the lock is taken, not under it.
        table.reap();
        let mut list = self.list.lock();
        if let Some(known) = table.get_set(set_fd) {
            return Some(known);
        }
        list.retain(|s| s.strong_count() > 0);
        list.push(Arc::downgrade(&set));
        table.insert_set(set_fd, set)
    }

    fn all(&self) -> Vec<Arc<EpollSet>> {
        self.list.lock().iter().filter_map(Weak::upgrade).collect()
    }

    /// A socket changed its road, or became ready in a way that no vector tells: moves it, and wakes who sleeps.
    pub fn socket_changed(&self, desk: &Desk, socket: &SwitchSocket) {
        for set in self.all() {
            set.socket_changed(desk, socket);
        }
    }

    /// The last descriptor of a socket goes: registrations end with it.
    pub fn forget(&self, socket: &SwitchSocket) {
        for set in self.all() {
            let mut state = set.state.lock();
            state.registrations.retain(|r| r.socket.id() != socket.id());
        }
    }

    /// Before a fork: nobody is inside a set.
    pub fn before_fork(&self) {
        self.list.close();
        for set in self.closed() {
            set.state.close();
        }
    }

    /// After a fork, in the parent or, `is_child`, in the child.
    pub fn after_fork(&self, is_child: bool) {
        for set in self.closed() {
            set.state.open();
            if is_child {
                set.forked();
            }
        }
        self.list.open();
    }

    /// The sets while the list is closed.
    fn closed(&self) -> Vec<Arc<EpollSet>> {
        let list = self.list.closed_value();
        list.iter().filter_map(Weak::upgrade).collect()
    }
}

impl EpollSet {
    /// A set of ours beside the kernel's set `fd`.
    ///
    /// # Errors
    /// The kernel's, when `fd` is no set or descriptors are short.
    pub fn new(fd: RawFd) -> SysResult<Arc<Self>> {
        let set = Self {
            state: Lock::new(SetState::default()),
            fd: AtomicI32::new(fd),
            wake: AtomicI32::new(-1),
            sleepers: AtomicU32::new(0),
            plain_sleepers: AtomicU32::new(0),
            closed: AtomicU32::new(0),
            outers: Lock::new(Vec::new()),
        };
        let mut state = set.state.lock();
        set.make_wake(&mut state)?;
        let wake = state.wake.as_ref().map_or(-1, EventFd::fd);
        drop(state);
        // A set answers that it does not hold it.
        match sys::epoll_control(fd, libc::EPOLL_CTL_DEL, wake, 0, 0) {
            Err(libc::ENOENT) => {}
            Err(errno) => return Err(errno),
            Ok(()) => return Err(libc::EINVAL),
        }
        Ok(Arc::new(set))
    }

    /// The program closed its last descriptor of the set.
    pub fn close(&self) {
        // Relaxed: a flag of its own.
        self.closed.store(1, Ordering::Relaxed);
    }

    /// Whether the set is gone.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed) != 0
    }

    /// `epoll_ctl` on a socket that the switch knows.
    ///
    /// # Errors
    /// The kernel's.
    pub fn control(
        &self,
        set_fd: RawFd,
        operation: i32,
        fd: RawFd,
        slot: &SlotRef<'_>,
        event: Event,
    ) -> Result<(), Errno> {
        let socket = slot.socket().ok_or(libc::EBADF)?;
        // Relaxed: any descriptor of the set serves.
        self.fd.store(set_fd, Ordering::Relaxed);
        let mut state = self.state.lock();
        let found = state
            .registrations
            .iter()
            .position(|r| r.fd == fd && r.socket.id() == socket.id());
        let Event { events, data } = event;
        match (operation, found) {
            (libc::EPOLL_CTL_ADD, Some(_)) => return Err(libc::EEXIST),
            (libc::EPOLL_CTL_ADD, None) => {
                // Before the place: a socket that moves in between has moved.
                let stage = socket.stage();
                let place = place_of(socket);
                // A registration of ours is never in the kernel's set, not for a moment: sleepers would see the parked socket.
                if place == Place::Ours {
                    check_exclusive(events)?;
                } else {
                    sys::epoll_control(set_fd, operation, fd, events, data)?;
                }
                if let Place::Listener(doorbell) = place {
                    ring(set_fd, operation, doorbell, event);
                }
                state.registrations.push(Registration {
                    fd,
                    socket: Arc::clone(socket),
                    events,
                    data,
                    place,
                    stage,
                    is_spent: false,
                    is_fresh: true,
                    told: (0, 0),
                });
                state.has_pending = true;
                state.has_ours |= place == Place::Ours;
                // Relaxed: a hint for close.
                slot.sets.fetch_add(1, Ordering::Relaxed);
            }
            (libc::EPOLL_CTL_MOD, Some(found)) => {
                let r = &mut state.registrations[found];
                // As the kernel has it: neither to nor from EPOLLEXCLUSIVE.
                if r.place == Place::Ours && (r.events | events) & bit::EXCLUSIVE != 0 {
                    return Err(libc::EINVAL);
                }
                if r.place != Place::Ours {
                    sys::epoll_control(set_fd, operation, fd, events, data)?;
                }
                if let Place::Listener(doorbell) = r.place {
                    ring(set_fd, operation, doorbell, event);
                }
                (r.events, r.data) = (events, data);
                (r.is_spent, r.is_fresh) = (false, true);
            }
            (libc::EPOLL_CTL_DEL, Some(found)) => {
                let r = state.registrations.swap_remove(found);
                // Relaxed: a hint for close.
                slot.sets.fetch_sub(1, Ordering::Relaxed);
                if let Place::Listener(doorbell) = r.place {
                    ring(set_fd, operation, doorbell, event);
                }
                if r.place != Place::Ours {
                    sys::epoll_control(set_fd, operation, fd, 0, 0)?;
                }
                return Ok(());
            }
            _ => return sys::epoll_control(set_fd, operation, fd, events, data),
        }
        state.changes += 1;
        drop(state);
        self.wake();
        Ok(())
    }

    /// Begins a wait: events that are ready here, or everything armed for the sleep. Pair [`Scan::Sleep`] with [`Self::slept`].
    pub fn scan(
        &self,
        desk: &Desk,
        set_fd: RawFd,
        room: usize,
        may_sleep: bool,
        mut put: impl FnMut(usize, Event),
    ) -> Scan {
        // Relaxed: any descriptor of the set serves.
        self.fd.store(set_fd, Ordering::Relaxed);
        let ready = self.collect(desk, set_fd, room, &mut put);
        if ready > 0 || !may_sleep {
            self.state.lock().owes_kernel = ready == room;
            return Scan::Ready(ready);
        }
        let has_ours = self.state.lock().has_ours;
        if has_ours {
            let found = spin(|| {
                let ready = self.collect(desk, set_fd, room, &mut put);
                (ready > 0).then_some(ready)
            });
            if let Some(ready) = found {
                return Scan::Ready(ready);
            }
        }
        // AcqRel, with the lock that every change of the set takes: who changes it afterwards sees a sleeper and wakes it.
        self.sleepers.fetch_add(1, Ordering::AcqRel);
        let mut is_plain = false;
        let (mut on, mut limit_ns) = self.arm(desk, set_fd, &mut is_plain);
        for _ in 0..REARMS {
            // Armed: what came before is found now, what comes later wakes.
            let has_moved = self.drive_pending(desk);
            let ready = self.collect_with(Care::Last, desk, set_fd, room, &mut put);
            if ready > 0 {
                self.slept(is_plain);
                return Scan::Ready(ready);
            }
            if !has_moved {
                return Scan::Sleep { on, limit_ns };
            }
            (on, limit_ns) = self.arm(desk, set_fd, &mut is_plain);
        }
        limit_ns = Some(0);
        Scan::Sleep { on, limit_ns }
    }

    /// Whether the kernel's events come first this time: the last scan left no room for them.
    pub fn owes_kernel(&self) -> bool {
        core::mem::take(&mut self.state.lock().owes_kernel)
    }

    /// Events that are ready here.
    pub fn collect(
        &self,
        desk: &Desk,
        set_fd: RawFd,
        room: usize,
        put: impl FnMut(usize, Event),
    ) -> usize {
        self.drive_pending(desk);
        self.collect_with(Care::Brief, desk, set_fd, room, put)
    }

    /// Drives what is no connection yet; a listener's doorbell tells what came of it. True when something moved.
    pub(super) fn drive_pending(&self, desk: &Desk) -> bool {
        let mut pending = Vec::new();
        self.pending(&mut pending);
        let mut has_moved = false;
        for socket in pending {
            has_moved |= drive(desk.switch, &socket);
        }
        has_moved
    }

    fn collect_with(
        &self,
        care: Care,
        desk: &Desk,
        set_fd: RawFd,
        room: usize,
        mut put: impl FnMut(usize, Event),
    ) -> usize {
        let mut state = self.state.lock();
        state.scans = state.scans.wrapping_add(1);
        let is_full = care == Care::Last || state.scans.is_multiple_of(FULL_SCAN);
        let look = if is_full { look } else { glance };
        let count = state.registrations.len();
        let start = state.next;
        let mut ready = 0;
        let mut has_ours = false;
        let mut is_told_by_level = false;
        for n in 0..count {
            let at = match start + n {
                at if at < count => at,
                at => (at - count) % count,
            };
            let r = &mut state.registrations[at];
            if r.has_moved() {
                r.settle(set_fd);
            }
            has_ours |= r.place == Place::Ours;
            let found = r.ready(look);
            let is_pending = is_pending(&r.socket);
            state.has_pending |= is_pending;
            let r = &mut state.registrations[at];
            let Some((event, edges)) = found else {
                continue;
            };
            if ready == room {
                state.next = at;
                has_ours = true;
                // Another sleeper may take what this one has no room for.
                is_told_by_level = true;
                break;
            }
            r.told = edges;
            r.is_fresh = false;
            r.is_spent = r.events & bit::ONCE != 0;
            is_told_by_level |= r.events & (bit::ONCE | bit::EDGE) == 0;
            put(ready, event);
            ready += 1;
        }
        let (more, has_inner) =
            self.collect_inners(&mut state, desk, look, room - ready, |at, event| {
                put(ready + at, event);
            });
        ready += more;
        state.has_ours = has_ours || has_inner;
        let is_shared = is_told_by_level
            && self.sleepers.load(Ordering::Acquire) > u32::from(care == Care::Last);
        drop(state);
        if is_shared {
            // Still ready, as far as is known: the next sleeper is told too.
            self.wake();
        }
        ready
    }

    /// Takes our marks out of what the kernel has returned. Returns the events that stay, and whether the program's set has more.
    pub fn take_marks(&self, events: &mut [libc::epoll_event]) -> (usize, bool) {
        let mut kept = 0;
        let mut has_more = false;
        let mut state = None;
        for at in 0..events.len() {
            let event = events[at];
            match Mark::of(event.u64) {
                None => {
                    events[kept] = event;
                    kept += 1;
                }
                Some(Mark::Wake) => {}
                Some(Mark::Set) => has_more = true,
                Some(mark) => {
                    let state = state.get_or_insert_with(|| self.state.lock());
                    state.vectors.note(mark);
                }
            }
        }
        (kept, has_more)
    }

    /// Connects under way and listeners, here and in sets within. What they come to is told to the host, which comes back to this set:
    /// no lock is held then.
    pub(super) fn pending(&self, found: &mut Vec<Arc<SwitchSocket>>) {
        let inners: Vec<Arc<Self>> = {
            let mut state = self.state.lock();
            if state.has_pending {
                let before = found.len();
                let all = state.registrations.iter();
                found.extend(
                    all.filter(|r| is_pending(&r.socket))
                        .map(|r| Arc::clone(&r.socket)),
                );
                state.has_pending = found.len() > before;
            }
            if state.inners.is_empty() {
                return;
            }
            state.inners.iter().filter_map(Inner::living).collect()
        };
        for inner in inners {
            inner.pending(found);
        }
    }

    /// Interrupts a sleeper of this set, and of the sets it lies in. Not under a set's lock.
    pub(super) fn wake(&self) {
        if self.sleepers.load(Ordering::Acquire) > 0 {
            // Relaxed: changes in a forked child only, which has one thread then.
            let wake = self.wake.load(Ordering::Relaxed);
            // One more for each that no vector wakes.
            for _ in 0..=self.plain_sleepers.load(Ordering::Acquire) {
                sys::signal(wake);
            }
        }
        let outers: Vec<Arc<Self>> = {
            let list = self.outers.lock();
            if list.is_empty() {
                return;
            }
            list.iter().filter_map(Weak::upgrade).collect()
        };
        for outer in outers {
            outer.wake();
        }
    }

    fn socket_changed(&self, desk: &Desk, socket: &SwitchSocket) {
        let mut state = self.state.lock();
        let mut is_concerned = false;
        for at in 0..state.registrations.len() {
            if state.registrations[at].socket.id() == socket.id() {
                let set_fd = self.reach(desk);
                state.registrations[at].settle(set_fd);
                is_concerned = true;
            }
        }
        if is_concerned {
            state.changes += 1;
            drop(state);
            self.wake();
        }
    }

    /// A descriptor of the kernel's set.
    pub(super) fn reach(&self, desk: &Desk) -> RawFd {
        // Relaxed: checked here.
        let last = self.fd.load(Ordering::Relaxed);
        let is_ours = |fd: RawFd| {
            let slot = desk.table.get_set(fd);
            slot.is_some_and(|s| s.set().is_some_and(|s| core::ptr::eq(Arc::as_ptr(s), self)))
        };
        if is_ours(last) {
            return last;
        }
        let mut tracked = desk.table.tracked_in(0, u32::MAX);
        tracked.find(|&fd| is_ours(fd)).unwrap_or(last)
    }

    /// Arms every connection for the set's vectors. Returns where to sleep, and how soon the wait must end all the same. `is_plain`: see
    /// [`Self::place_to_sleep`].
    fn arm(&self, desk: &Desk, set_fd: RawFd, is_plain: &mut bool) -> (RawFd, Option<u64>) {
        self.arm_pending(desk, set_fd);
        let mut state = self.state.lock();
        let SetState {
            registrations,
            inners,
            vectors,
            ..
        } = &mut *state;
        vectors.refresh();
        let mut limit_ns = u64::MAX;
        let mut arm = |r: &Registration| {
            limit_ns = limit_ns.min(r.arm(vectors, set_fd));
        };
        registrations.iter().for_each(&mut arm);
        for inner in inners.iter().filter_map(Inner::living) {
            inner.each_of_ours(&mut arm);
        }
        let on = self.place_to_sleep(&mut state, set_fd, is_plain);
        drop(state);
        if !*is_plain {
            self.leave_nobody_behind(set_fd);
        }
        (on, (limit_ns != u64::MAX).then_some(limit_ns))
    }

    /// Arms what is no connection yet. A socket's lock comes before the set's: so the vectors first, then each socket for its own.
    fn arm_pending(&self, desk: &Desk, set_fd: RawFd) {
        let mut pending = Vec::new();
        self.pending(&mut pending);
        for socket in pending {
            for (provider, function) in functions_of(desk.switch, &socket) {
                let waiter = {
                    let vectors = &mut self.state.lock().vectors;
                    vectors.refresh();
                    vectors.of(set_fd, &provider, function)
                };
                if let Some(waiter) = waiter {
                    arm_pending_for(desk.switch, &socket, &provider, waiter);
                }
            }
        }
    }

    /// In a forked child: the vectors are the parent's. The kernel's set is shared, and keeps what the parent's sleepers need.
    /// DEVIATION: what is registered here is a copy from now on.
    fn forked(&self) {
        let mut state = self.state.lock();
        state.vectors.forget();
        state.wake = None;
        (state.is_wake_in_set, state.is_wake_in_waits) = (false, false);
        state.callers = 0;
        // Relaxed: the child has one thread.
        self.wake.store(-1, Ordering::Relaxed);
        self.sleepers.store(0, Ordering::Relaxed);
        self.plain_sleepers.store(0, Ordering::Relaxed);
        // Without it, other threads' changes are seen at the next wait only.
        self.make_wake(&mut state).ok();
    }
}

impl Drop for EpollSet {
    fn drop(&mut self) {
        // Not by the lock: the last reference may go while a fork keeps it closed, and that fork waits for those inside the gate.
        self.state.value_mut().vectors.release();
    }
}

/// What the kernel takes together with EPOLLEXCLUSIVE, asked here for registrations that it never sees.
fn check_exclusive(events: u32) -> Result<(), Errno> {
    #[expect(clippy::cast_sign_loss, reason = "bits")]
    const FIT: u32 = (libc::EPOLLIN
        | libc::EPOLLOUT
        | libc::EPOLLERR
        | libc::EPOLLHUP
        | libc::EPOLLWAKEUP
        | libc::EPOLLET
        | libc::EPOLLEXCLUSIVE) as u32;
    if events & bit::EXCLUSIVE != 0 && events & !FIT != 0 {
        return Err(libc::EINVAL);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use nix::sys::epoll::{Epoll, EpollCreateFlags};

    use super::*;

    #[test]
    fn a_set_may_end_while_a_fork_keeps_it_closed() {
        static TABLE: Table = Table::new();
        let kernels = Epoll::new(EpollCreateFlags::empty()).unwrap().0;
        let sets = Sets::new();
        let kept = sets.track(&TABLE, kernels.as_raw_fd()).unwrap();
        let set = Arc::clone(kept.set().unwrap());
        drop((TABLE.remove(kernels.as_raw_fd()), kept));
        // Ours is the last reference then.
        TABLE.reap();
        sets.before_fork();
        drop(set);
        sets.after_fork(false);
        assert_eq!(sets.all().len(), 0);
    }
}
