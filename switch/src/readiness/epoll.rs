//! Epoll sets that know sockets which the SAN may carry.
//!
//! Place: `epoll_ctl` and `epoll_wait` of the preload library. The kernel's set stays in use: it holds kernel descriptors with the
//! program's own events and data, and beside them the set's vectors, so one real `epoll_wait` waits for both.
//! Invariants: a socket is registered in one place at a time, the kernel's set or ours ([`Place`]), and moves before the call that
//! changes its road returns; the program's `data` travels untouched. Everything of ours in the kernel's set is edge-triggered and
//! carries a mark as data that no program can have: the address of one of our own bytes.
//! Edges: see `lock`. Source: epoll(7); Linux fs/eventpoll.c for what an edge is. Leaves out: sets within
//! sets, whose sockets stay on TCP.
//!
//! ```text
//! kernel's set: kernel descriptors (program's data) | listeners' doorbells (program's data) | vectors, wake, hang-ups (marks)
//! ours:         SAN connections, connects under way, failed connects
//! ```

use std::os::fd::RawFd;
use std::sync::{Arc, Weak};

use driver::spi::Waiter;
use ring_proto::sync::{AtomicI32, AtomicU32, Ordering};

use super::lock::Lock;
use super::{BLIND_NS, CONNECT_NS, Desk, Look, drive, glance, look, spin};
use crate::event::EventFd;
use crate::gate;
use crate::outcome::Errno;
use crate::provider_table::ProviderRef;
use crate::socket::{Stage, SwitchSocket};
use crate::sys::{self, SysResult};
use crate::table::SlotRef;

#[expect(clippy::cast_sign_loss, reason = "bits")]
mod bit {
    pub(super) const IN: u32 = (libc::EPOLLIN | libc::EPOLLRDNORM | libc::EPOLLRDHUP) as u32;
    pub(super) const OUT: u32 = (libc::EPOLLOUT | libc::EPOLLWRNORM) as u32;
    pub(super) const ALWAYS: u32 = (libc::EPOLLERR | libc::EPOLLHUP) as u32;
    pub(super) const EDGE: u32 = libc::EPOLLET as u32;
    pub(super) const ONCE: u32 = libc::EPOLLONESHOT as u32;
    /// Of a vector: readable, by edges.
    pub(super) const OURS: u32 = libc::EPOLLIN as u32 | EDGE;
}

/// Every so manyth scan looks at all connections in any case.
const FULL_SCAN: u32 = 64;
/// Functions that one set can wait on.
const VECTORS: usize = 64;
/// Bytes whose addresses are the marks: the first for the wake descriptor, then two for each vector.
static MARKS: [u8; 1 + 2 * VECTORS] = [0; 1 + 2 * VECTORS];

/// Every set that knows a socket.
#[derive(Debug, Default)]
pub struct Sets {
    list: Lock<Vec<Weak<EpollSet>>>,
}

/// One set.
#[derive(Debug)]
pub struct EpollSet {
    state: Lock<SetState>,
    /// A descriptor by which this process reached the kernel's set last.
    fd: AtomicI32,
    /// Threads that sleep on the set, or are about to.
    sleepers: AtomicU32,
    /// 1 once the set was put into another one: the kernel alone waits there.
    nested: AtomicU32,
}

#[derive(Debug, Default)]
struct SetState {
    registrations: Vec<Registration>,
    vectors: Vec<SetVector>,
    /// Interrupts those who sleep on the set.
    wake: Option<EventFd>,
    /// Where the next scan begins, so that a small array of events starves nobody.
    next: usize,
    /// Scans so far.
    scans: u32,
    /// Some registration lives here, as far as the last scan knows.
    has_ours: bool,
    /// Some connect is under way, as far as is known.
    has_connecting: bool,
}

/// How a scan looks at connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Care {
    /// Those that seem quiet are left alone, in all scans but some.
    Brief,
    /// All of them: a sleep follows.
    Full,
}

#[derive(Debug)]
struct Registration {
    fd: RawFd,
    socket: Arc<SwitchSocket>,
    events: u32,
    data: u64,
    place: Place,
    /// Stage that `place` was found for.
    stage: Stage,
    /// One-shot, and shot.
    is_spent: bool,
    /// New or changed: what is ready now is an edge.
    is_fresh: bool,
    /// Edges already told.
    told: (u64, u64),
}

/// Where a registration lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// In the kernel's set.
    Kernel,
    /// In the kernel's set, and the doorbell beside it.
    Listener(RawFd),
    /// Here.
    Ours,
}

#[derive(Debug)]
struct SetVector {
    provider: ProviderRef,
    waiter: Waiter,
    /// Fired since it was drained.
    has_fired: bool,
    /// Its device hung up, or would not show it.
    is_doubtful: bool,
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

    /// Keeps a set that has just got its first socket.
    pub fn keep(&self, set: &Arc<EpollSet>) {
        let mut list = self.list.lock();
        list.retain(|s| s.strong_count() > 0);
        list.push(Arc::downgrade(set));
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
            sleepers: AtomicU32::new(0),
            nested: AtomicU32::new(0),
        };
        set.state.lock().make_wake(fd)?;
        Ok(Arc::new(set))
    }

    /// The set is about to be put into another one. Its sockets stay on TCP from now on.
    ///
    /// # Errors
    /// `EINVAL`: it holds a socket that the SAN carries, which the other set could not see.
    pub fn nest(&self) -> Result<(), Errno> {
        let sockets: Vec<Arc<SwitchSocket>> = {
            let state = self.state.lock();
            if state.registrations.iter().any(|r| r.place != Place::Kernel) {
                return Err(libc::EINVAL);
            }
            // Relaxed: under the lock, like its reader.
            self.nested.store(1, Ordering::Relaxed);
            let all = state.registrations.iter();
            all.map(|r| Arc::clone(&r.socket)).collect()
        };
        // Not under the set's lock: a socket's lock comes before it.
        for socket in sockets {
            socket.keep_on_tcp();
        }
        Ok(())
    }

    /// `epoll_ctl` on a socket that the switch knows.
    ///
    /// # Errors
    /// The kernel's. `EINVAL` for a socket that the SAN carries, in a set within another set.
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
        // Relaxed: looked at again under the lock.
        if operation == libc::EPOLL_CTL_ADD && self.nested.load(Ordering::Relaxed) != 0 {
            socket.keep_on_tcp();
        }
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
                if place != Place::Kernel && self.nested.load(Ordering::Relaxed) != 0 {
                    return Err(libc::EINVAL);
                }
                // The kernel's opinion of the arguments, also where the registration is ours.
                sys::epoll_control(set_fd, operation, fd, events, data)?;
                match place {
                    Place::Kernel => {}
                    Place::Listener(doorbell) => change(set_fd, operation, doorbell, event),
                    Place::Ours => change(set_fd, libc::EPOLL_CTL_DEL, fd, event),
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
                state.has_connecting = true;
                state.has_ours |= place == Place::Ours;
                // Relaxed: a hint for close.
                slot.sets.fetch_add(1, Ordering::Relaxed);
            }
            (libc::EPOLL_CTL_MOD, Some(found)) => {
                let r = &mut state.registrations[found];
                if r.place != Place::Ours {
                    sys::epoll_control(set_fd, operation, fd, events, data)?;
                }
                if let Place::Listener(doorbell) = r.place {
                    change(set_fd, operation, doorbell, event);
                }
                (r.events, r.data) = (events, data);
                (r.is_spent, r.is_fresh) = (false, true);
            }
            (libc::EPOLL_CTL_DEL, Some(found)) => {
                let r = state.registrations.swap_remove(found);
                // Relaxed: a hint for close.
                slot.sets.fetch_sub(1, Ordering::Relaxed);
                if let Place::Listener(doorbell) = r.place {
                    change(set_fd, operation, doorbell, event);
                }
                if r.place != Place::Ours {
                    sys::epoll_control(set_fd, operation, fd, 0, 0)?;
                }
                return Ok(());
            }
            _ => return sys::epoll_control(set_fd, operation, fd, events, data),
        }
        self.wake(&state);
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
        let limit_ns = self.arm(set_fd);
        // Armed: what came before is found now, what comes later wakes.
        let ready = self.collect_with(Care::Full, desk, set_fd, room, put);
        if ready > 0 {
            self.slept();
            return Scan::Ready(ready);
        }
        Scan::Sleep { limit_ns }
    }

    /// Events that are ready here.
    pub fn collect(
        &self,
        desk: &Desk,
        set_fd: RawFd,
        room: usize,
        put: impl FnMut(usize, Event),
    ) -> usize {
        self.collect_with(Care::Brief, desk, set_fd, room, put)
    }

    fn collect_with(
        &self,
        care: Care,
        desk: &Desk,
        set_fd: RawFd,
        room: usize,
        mut put: impl FnMut(usize, Event),
    ) -> usize {
        for socket in self.connecting() {
            drive(desk.switch, &socket);
        }
        let mut state = self.state.lock();
        state.scans = state.scans.wrapping_add(1);
        let is_full = care == Care::Full || state.scans.is_multiple_of(FULL_SCAN);
        let look = if is_full { look } else { glance };
        let count = state.registrations.len();
        let start = state.next;
        let mut ready = 0;
        let mut has_ours = false;
        for n in 0..count {
            let at = match start + n {
                at if at < count => at,
                at => (at - count) % count,
            };
            let r = &mut state.registrations[at];
            if r.has_moved() {
                r.settle(set_fd);
            }
            let is_connecting = r.socket.is_connecting();
            has_ours |= r.place == Place::Ours;
            let found = r.ready(look);
            state.has_connecting |= is_connecting;
            let r = &mut state.registrations[at];
            let Some((event, edges)) = found else {
                continue;
            };
            if ready == room {
                state.next = at;
                has_ours = true;
                // Another sleeper may take what this one has no room for.
                self.wake(&state);
                break;
            }
            r.told = edges;
            r.is_fresh = false;
            r.is_spent = r.events & bit::ONCE != 0;
            put(ready, event);
            ready += 1;
        }
        state.has_ours = has_ours;
        ready
    }

    /// Ends a wait that [`Self::scan`] began with [`Scan::Sleep`]. A thread that never comes back costs wake-ups nobody needs.
    pub fn slept(&self) {
        self.sleepers.fetch_sub(1, Ordering::AcqRel);
    }

    /// Takes our marks out of what the kernel has returned. Returns the events that stay.
    pub fn take_marks(&self, events: &mut [libc::epoll_event]) -> usize {
        let mut kept = 0;
        let mut state = None;
        for at in 0..events.len() {
            let event = events[at];
            match mark_number(event.u64) {
                None => {
                    events[kept] = event;
                    kept += 1;
                }
                Some(0) => {}
                Some(number) => {
                    let state = state.get_or_insert_with(|| self.state.lock());
                    if let Some(vector) = state.vectors.get_mut((number - 1) / 2) {
                        vector.has_fired = true;
                        vector.is_doubtful |= number % 2 == 0;
                    }
                }
            }
        }
        kept
    }

    /// Connects under way. The end of one is told to the host, which comes back to this set: no lock is held then.
    fn connecting(&self) -> Vec<Arc<SwitchSocket>> {
        let mut state = self.state.lock();
        if !state.has_connecting {
            return Vec::new();
        }
        let connecting: Vec<_> = state
            .registrations
            .iter()
            .filter(|r| r.socket.is_connecting())
            .map(|r| Arc::clone(&r.socket))
            .collect();
        state.has_connecting = !connecting.is_empty();
        connecting
    }

    fn wake(&self, state: &SetState) {
        if self.sleepers.load(Ordering::Acquire) > 0
            && let Some(wake) = &state.wake
        {
            wake.signal();
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
            self.wake(&state);
        }
    }

    /// A descriptor of the kernel's set.
    fn reach(&self, desk: &Desk) -> RawFd {
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

    /// Arms every connection for the set's vectors. Returns how soon the wait must end all the same.
    fn arm(&self, set_fd: RawFd) -> Option<u64> {
        let mut state = self.state.lock();
        let SetState {
            registrations,
            vectors,
            ..
        } = &mut *state;
        for vector in vectors.iter_mut().filter(|v| v.has_fired) {
            vector.provider.waiting.drain(vector.waiter);
            vector.has_fired = false;
        }
        for vector in vectors.iter().filter(|v| v.is_doubtful) {
            vector.provider.waiting.check(vector.waiter.function);
        }
        let mut limit_ns = u64::MAX;
        for r in registrations.iter() {
            if r.place != Place::Ours || r.is_spent {
                continue;
            }
            let Some(conn) = r
                .socket
                .conn()
                .filter(|_| r.socket.stage() == Stage::SanConnected)
            else {
                limit_ns = limit_ns.min(CONNECT_NS);
                continue;
            };
            let provider = conn.provider();
            let is_armed = provider
                .waiting
                .function_of(conn.sp())
                .and_then(|f| vector_of(vectors, set_fd, provider, f))
                .is_some_and(|waiter| conn.is_armed(waiter) || conn.arm(waiter).is_ok());
            if !is_armed && r.told.0 != u64::MAX {
                limit_ns = limit_ns.min(BLIND_NS);
            }
        }
        (limit_ns != u64::MAX).then_some(limit_ns)
    }

    /// In a forked child: the vectors are the parent's. The kernel's set is shared, and keeps the parent's marks.
    fn forked(&self) {
        let mut state = self.state.lock();
        state.vectors.clear();
        state.wake = None;
        // Relaxed: the child has one thread.
        let fd = self.fd.load(Ordering::Relaxed);
        self.sleepers.store(0, Ordering::Relaxed);
        // Without it, other threads' changes are seen at the next wait only.
        state.make_wake(fd).ok();
    }
}

impl Drop for EpollSet {
    fn drop(&mut self) {
        // Not by the lock: the last reference may go while a fork keeps it closed, and that fork waits for those inside the gate.
        let vectors = core::mem::take(&mut self.state.value_mut().vectors);
        let _inside = gate::enter();
        for vector in vectors {
            vector.provider.waiting.release(vector.waiter);
        }
    }
}

impl SetState {
    fn make_wake(&mut self, set_fd: RawFd) -> SysResult<()> {
        let wake = EventFd::new()?;
        sys::epoll_control(set_fd, libc::EPOLL_CTL_ADD, wake.fd(), bit::OURS, mark(0))?;
        self.wake = Some(wake);
        Ok(())
    }
}

impl Registration {
    /// Whether the socket may have to move.
    fn has_moved(&self) -> bool {
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
    fn settle(&mut self, set_fd: RawFd) {
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
            change(set_fd, libc::EPOLL_CTL_DEL, doorbell, event);
        }
        match (self.place == Place::Ours, wanted == Place::Ours) {
            (true, false) => change(set_fd, libc::EPOLL_CTL_ADD, self.fd, event),
            (false, true) => change(set_fd, libc::EPOLL_CTL_DEL, self.fd, event),
            _ => {}
        }
        if let Place::Listener(doorbell) = wanted {
            change(set_fd, libc::EPOLL_CTL_ADD, doorbell, event);
        }
        self.place = wanted;
        self.is_fresh = true;
    }

    /// The event to tell now, if any, and the edges it stands for.
    fn ready(&self, look: fn(&SwitchSocket) -> Look) -> Option<(Event, (u64, u64))> {
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
}

/// Where a socket of this stage is registered.
fn place_of(socket: &SwitchSocket) -> Place {
    match socket.stage() {
        Stage::SanConnecting | Stage::Negotiating | Stage::SanConnected => Place::Ours,
        Stage::Failed if socket.has_error() => Place::Ours,
        Stage::SanListening => socket.doorbell_fd().map_or(Place::Kernel, Place::Listener),
        _ => Place::Kernel,
    }
}

/// Changes an entry of the kernel's set beside the program's own call. What it cannot change is gone with its file.
fn change(set_fd: RawFd, operation: i32, fd: RawFd, event: Event) {
    sys::epoll_control(set_fd, operation, fd, event.events, event.data).ok();
}

/// The set's vector for a function, made and put into the kernel's set when it is the first.
fn vector_of(
    vectors: &mut Vec<SetVector>,
    set_fd: RawFd,
    provider: &ProviderRef,
    function: u32,
) -> Option<Waiter> {
    let known = vectors
        .iter()
        .find(|v| v.provider.index == provider.index && v.waiter.function == function);
    if let Some(known) = known {
        return Some(known.waiter);
    }
    let number = vectors.len();
    if number == VECTORS {
        return None;
    }
    // The provider's own locks must be free when another thread forks.
    let inside = gate::enter();
    let waiter = provider.waiting.acquire(function).ok();
    drop(inside);
    let waiter = waiter?;
    let vector_mark = mark(1 + 2 * number);
    let add = libc::EPOLL_CTL_ADD;
    if sys::epoll_control(set_fd, add, waiter.fd, bit::OURS, vector_mark).is_err() {
        provider.waiting.release(waiter);
        return None;
    }
    let functions = provider.waiting.functions();
    let hangup = functions
        .into_iter()
        .find(|&(index, _)| index == function)
        .and_then(|(_, fd)| fd);
    if let Some(hangup) = hangup {
        // Reported unasked, once, because it is an edge.
        let event = Event {
            events: bit::EDGE,
            data: mark(2 + 2 * number),
        };
        change(set_fd, add, hangup, event);
    }
    vectors.push(SetVector {
        provider: Arc::clone(provider),
        waiter,
        has_fired: false,
        is_doubtful: hangup.is_none(),
    });
    Some(waiter)
}

fn mark(number: usize) -> u64 {
    core::ptr::from_ref(&MARKS[number]).addr() as u64
}

fn mark_number(data: u64) -> Option<usize> {
    let offset = data.checked_sub(mark(0))?;
    usize::try_from(offset).ok().filter(|&n| n < MARKS.len())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use nix::sys::epoll::{Epoll, EpollCreateFlags};

    use super::*;

    #[test]
    fn a_set_may_end_while_a_fork_keeps_it_closed() {
        let kernels = Epoll::new(EpollCreateFlags::empty()).unwrap().0;
        let sets = Sets::new();
        let set = EpollSet::new(kernels.as_raw_fd()).unwrap();
        sets.keep(&set);
        sets.before_fork();
        drop(set);
        sets.after_fork(false);
        assert_eq!(sets.all().len(), 0);
    }
}
