//! `poll`, `select` and `epoll` with sockets that the switch knows.
//!
//! Place: `exports::ready` -> here -> `switch::readiness`. Invariants: nothing here waits.
#![expect(unsafe_code, reason = "reads and writes arrays of the program")]

use core::cell::Cell;
use core::ffi::c_int;

use libc::{epoll_event, fd_set, pollfd};
use switch::outcome::now_ns;
use switch::readiness::epoll::{EpollSet, Event, Scan};
use switch::readiness::poll::{self, PollState, Round};
use switch::table::{Kind, SlotRef};
use switch::{Errno, sys};

use crate::calls::wait::timespec;
use crate::real;
use crate::runtime::{self, EARLY, Runtime, SERVICE, SETS, TABLE};

/// End of a wait that begins now; `u64::MAX`: none.
pub(crate) fn deadline_ms(timeout_ms: c_int) -> u64 {
    u64::try_from(timeout_ms).map_or(u64::MAX, |ms| {
        now_ns().saturating_add(ms.saturating_mul(1_000_000))
    })
}

/// End of a wait that begins now and takes a span of the C library.
///
/// # Errors
/// `EINVAL` for a span that is none.
pub(crate) fn deadline_of(seconds: i64, nanos: i64) -> Result<u64, Errno> {
    let seconds = u64::try_from(seconds).map_err(|_| libc::EINVAL)?;
    let nanos = u64::try_from(nanos).map_err(|_| libc::EINVAL)?;
    if nanos >= 1_000_000_000 {
        return Err(libc::EINVAL);
    }
    let span = seconds.saturating_mul(1_000_000_000).saturating_add(nanos);
    Ok(now_ns().saturating_add(span))
}

/// Time left until a deadline or the end of one wait, whichever comes first; `None` for ever.
pub(crate) fn left(deadline_ns: u64, limit_ns: Option<u64>) -> Option<libc::timespec> {
    let now = now_ns();
    let until = deadline_ns.min(limit_ns.map_or(u64::MAX, |limit| now.saturating_add(limit)));
    (until != u64::MAX).then(|| timespec(until.saturating_sub(now)))
}

/// As [`left`], in milliseconds, rounded up, -1 for ever.
pub(crate) fn left_ms(deadline_ns: u64, limit_ns: Option<u64>) -> c_int {
    left(deadline_ns, limit_ns).map_or(-1, |t| {
        let ms = t
            .tv_sec
            .saturating_mul(1000)
            .saturating_add((t.tv_nsec + 999_999) / 1_000_000);
        c_int::try_from(ms).unwrap_or(c_int::MAX)
    })
}

/// Whether the time is over.
pub(crate) fn is_over(deadline_ns: u64) -> bool {
    deadline_ns != u64::MAX && now_ns() >= deadline_ns
}

/// Whether a poll needs the switch.
///
/// # Safety
/// `fds` has `count` elements.
pub(crate) unsafe fn concerns(fds: *const pollfd, count: usize) -> bool {
    if fds.is_null() || count == 0 {
        return false;
    }
    // SAFETY: by the caller's promise.
    let fds = unsafe { core::slice::from_raw_parts(fds, count) };
    poll::concerns(&TABLE, fds.iter().map(|f| f.fd))
}

/// A round of a poll.
///
/// # Safety
/// `fds` has `count` elements and `work` has [`poll::EXTRA`] more.
pub(crate) unsafe fn round(
    fds: *mut pollfd,
    count: usize,
    work: *mut pollfd,
    state: &mut PollState,
    deadline_ns: u64,
) -> Round {
    let Some(runtime) = runtime::get() else {
        return Round::Ready(0);
    };
    SERVICE.ensure();
    // SAFETY: by the caller's promise.
    let fds = unsafe { core::slice::from_raw_parts_mut(fds, count) };
    // SAFETY: by the caller's promise.
    let work = unsafe { core::slice::from_raw_parts_mut(work, count + poll::EXTRA) };
    poll::round(&runtime.desk(), fds, work, state, !is_over(deadline_ns))
}

/// After the wait of a poll.
///
/// # Safety
/// `work` has `len` elements.
pub(crate) unsafe fn woken(work: *const pollfd, len: usize, state: &mut PollState) {
    if let Some(runtime) = runtime::get() {
        // SAFETY: by the caller's promise.
        let work = unsafe { core::slice::from_raw_parts(work, len) };
        poll::woken(&runtime.desk(), work, state);
    }
}

/// Numbers that an `fd_set` can hold.
const SET_SIZE: usize = 1024;

/// The sets of a select. Longer ones than the C library's type are the kernel's to read.
#[derive(Clone, Copy)]
pub(crate) struct Selection {
    /// One past the highest number.
    pub(crate) count: usize,
    /// Read, write, except.
    pub(crate) sets: [*mut fd_set; 3],
}

/// What each set asks for, and what puts a number into it (select(2)).
const ASKED: [i16; 3] = [
    libc::POLLIN | libc::POLLRDNORM,
    libc::POLLOUT | libc::POLLWRNORM,
    libc::POLLPRI,
];
const ANSWERED: [i16; 3] = [
    libc::POLLIN | libc::POLLRDNORM | libc::POLLHUP | libc::POLLERR,
    libc::POLLOUT | libc::POLLWRNORM | libc::POLLERR,
    libc::POLLPRI,
];

impl Selection {
    /// The sets of a call.
    pub(crate) fn new(count: c_int, sets: [*mut fd_set; 3]) -> Option<Self> {
        let count = usize::try_from(count).ok().filter(|&c| c <= SET_SIZE)?;
        Some(Self { count, sets })
    }

    /// Events asked for of a number.
    ///
    /// # Safety
    /// The sets are null or valid.
    unsafe fn events(&self, fd: usize) -> i16 {
        let mut events = 0;
        for (&set, asked) in self.sets.iter().zip(ASKED) {
            // SAFETY: by the caller's promise; the number is below the size of a set.
            if !set.is_null() && unsafe { libc::FD_ISSET(number(fd), set) } {
                events |= asked;
            }
        }
        events
    }

    /// Numbers asked for.
    ///
    /// # Safety
    /// The sets are null or valid.
    pub(crate) unsafe fn numbers(&self) -> usize {
        let wanted = |fd: &usize| {
            // SAFETY: by the caller's promise.
            let events = unsafe { self.events(*fd) };
            events != 0
        };
        (0..self.count).filter(wanted).count()
    }

    /// Whether the switch must be asked.
    ///
    /// # Safety
    /// The sets are null or valid.
    pub(crate) unsafe fn concerns(&self) -> bool {
        let wanted = |fd: &usize| {
            // SAFETY: by the caller's promise.
            let events = unsafe { self.events(*fd) };
            events != 0
        };
        poll::concerns(&TABLE, (0..self.count).filter(wanted).map(number))
    }

    /// Writes the poll that the select is.
    ///
    /// # Safety
    /// The sets are null or valid, and `fds` has room for [`Self::numbers`].
    pub(crate) unsafe fn spread(&self, fds: *mut pollfd) {
        let mut at = 0;
        for fd in 0..self.count {
            // SAFETY: by the caller's promise.
            let events = unsafe { self.events(fd) };
            if events != 0 {
                // SAFETY: by the caller's promise.
                let entry = unsafe { fds.add(at) };
                let value = pollfd {
                    fd: number(fd),
                    events,
                    revents: 0,
                };
                // SAFETY: as above.
                unsafe { entry.write(value) };
                at += 1;
            }
        }
    }

    /// Writes the answer of a poll of `count` entries into the sets. Returns the bits set, or `EBADF`.
    ///
    /// # Safety
    /// The sets are null or valid, and `fds` has `count` entries.
    pub(crate) unsafe fn gather(&self, fds: *const pollfd, count: usize) -> Result<c_int, Errno> {
        // SAFETY: by the caller's promise.
        let fds = unsafe { core::slice::from_raw_parts(fds, count) };
        if fds.iter().any(|f| f.revents & libc::POLLNVAL != 0) {
            return Err(libc::EBADF);
        }
        let mut bits = 0;
        for ((&set, asked), answered) in self.sets.iter().zip(ASKED).zip(ANSWERED) {
            if set.is_null() {
                continue;
            }
            for entry in fds.iter().filter(|f| f.events & asked != 0) {
                if entry.revents & answered != 0 {
                    bits += 1;
                } else {
                    // SAFETY: by the caller's promise; the number came out of this set.
                    unsafe { libc::FD_CLR(entry.fd, set) };
                }
            }
        }
        Ok(bits)
    }
}

fn number(fd: usize) -> c_int {
    c_int::try_from(fd).unwrap_or(-1)
}

/// `epoll_ctl`, or `None` for the real function.
///
/// # Safety
/// `event` is null or valid.
pub(crate) unsafe fn control(
    set_fd: c_int,
    operation: c_int,
    fd: c_int,
    event: *const epoll_event,
) -> Option<Result<(), Errno>> {
    let runtime = runtime::get()?;
    if runtime::is_hidden(fd) || runtime::is_hidden(set_fd) {
        return Some(Err(libc::EBADF));
    }
    // SAFETY: by the caller's promise.
    let event = unsafe { read_event(operation, event) };
    if TABLE.kind(fd) != Kind::Socket {
        return control_set(runtime, set_fd, operation, fd, event.ok()?);
    }
    let slot = TABLE.get(fd)?;
    let socket = slot.socket()?;
    if runtime.process.is_foreign() {
        return None;
    }
    let event = match event {
        Ok(event) => event,
        Err(errno) => return Some(Err(errno)),
    };
    switch::readiness::drive(&runtime.switch, socket);
    let known = TABLE.get_set(set_fd);
    if let Some(set) = known.as_ref().and_then(|s| s.set()) {
        return Some(set.control(set_fd, operation, fd, &slot, event));
    }
    if operation != libc::EPOLL_CTL_ADD || TABLE.kind(set_fd) == Kind::Socket {
        return None;
    }
    // Not a set: the kernel says so too, in its own words.
    let kept = track(set_fd)?;
    Some(kept.set()?.control(set_fd, operation, fd, &slot, event))
}

/// Begins to know a set. Whoever sleeps on it already does so without us, and is brought back first.
fn track(set_fd: c_int) -> Option<SlotRef<'static>> {
    let kept = SETS.track(&TABLE, set_fd)?;
    if EARLY.is_any(set_fd) && !kept.set()?.bring_out(set_fd, || !EARLY.is_any(set_fd)) {
        EARLY.forget(set_fd);
    }
    Some(kept)
}

/// Gets to know a set that gets another name: what it is given by that one is waited for by either. False for what is no set.
pub(crate) fn meet(fd: c_int) -> bool {
    let Some(runtime) = runtime::get().filter(|r| !r.process.is_foreign()) else {
        return false;
    };
    // A set answers that it does not hold the channel, anything else that it is no set.
    let probe = |channel| sys::epoll_control(fd, libc::EPOLL_CTL_DEL, channel, 0, 0);
    runtime.process.channel().map(probe) == Some(Err(libc::ENOENT)) && track(fd).is_some()
}

/// The program's event of an `epoll_ctl`.
///
/// # Safety
/// `event` is null or valid.
unsafe fn read_event(operation: c_int, event: *const epoll_event) -> Result<Event, Errno> {
    if operation == libc::EPOLL_CTL_DEL {
        return Ok(Event { events: 0, data: 0 });
    }
    if event.is_null() {
        return Err(libc::EFAULT);
    }
    // SAFETY: by the caller's promise.
    let event = unsafe { event.read_unaligned() };
    Ok(Event {
        events: event.events,
        data: event.u64,
    })
}

/// `epoll_ctl` on what is no socket: a set within a set must be known on both sides. `None` for anything else.
fn control_set(
    runtime: &Runtime,
    outer: c_int,
    operation: c_int,
    fd: c_int,
    event: Event,
) -> Option<Result<(), Errno>> {
    if runtime.process.is_foreign() {
        return None;
    }
    let inner = TABLE.get_set(fd).or_else(|| {
        // A set answers that it does not hold the other one, anything else that it is no set.
        let is_set = || {
            let probe = sys::epoll_control(fd, libc::EPOLL_CTL_DEL, outer, 0, 0);
            probe == Err(libc::ENOENT)
        };
        (operation == libc::EPOLL_CTL_ADD && is_set())
            .then(|| track(fd))
            .flatten()
    })?;
    let holder = TABLE.get_set(outer).or_else(|| track(outer))?;
    let inner = inner.set()?;
    Some(
        holder
            .set()?
            .control_inner(outer, operation, (fd, inner), event),
    )
}

/// Whether a set knows sockets of the switch.
#[inline]
pub(crate) fn is_known(set_fd: c_int) -> bool {
    TABLE.kind(set_fd) == Kind::Set
}

thread_local! {
    /// The unknown set that this thread sleeps on, -1 for none. A cell without destructor.
    static ASLEEP_ON: Cell<c_int> = const { Cell::new(-1) };
}

/// Whether a sleep on a set that is not known is nobody's business: no other thread could add a socket meanwhile.
#[inline]
pub(crate) fn is_alone() -> bool {
    real::is_single_threaded() || runtime::get().is_none()
}

/// Before a sleep on a set that seemed unknown; false when it is known now. Pair true with [`leave_early`].
pub(crate) fn enter_early(set_fd: c_int) -> bool {
    // A thread that jumped out of its last sleep has not left it.
    let last = ASLEEP_ON.replace(-1);
    if last >= 0 {
        EARLY.leave(last);
    }
    let may_sleep = EARLY.enter(&TABLE, set_fd);
    if may_sleep {
        ASLEEP_ON.set(set_fd);
    }
    may_sleep
}

/// After a sleep on a set that was unknown, which has written `result` events to `events`. `None`: it still is, and the result is the
/// program's. Else so many events are.
///
/// # Safety
/// `events` has `room` elements.
pub(crate) unsafe fn leave_early(
    set_fd: c_int,
    events: *mut epoll_event,
    room: c_int,
    result: c_int,
) -> Option<usize> {
    ASLEEP_ON.set(-1);
    EARLY.leave(set_fd);
    let count = usize::try_from(result).ok()?;
    let room = usize::try_from(room).ok()?;
    let (runtime, slot) = (runtime::get()?, TABLE.get_set(set_fd)?);
    let set = slot.set()?;
    // SAFETY: the kernel wrote so many, and the room is the caller's promise.
    Some(unsafe { finish(runtime, set, set_fd, events, room, count) })
}

/// What a wait on a set begins with.
#[derive(Clone, Copy)]
pub(crate) enum Begun {
    /// So many events lie there.
    Ready(usize),
    /// Wait on this set, at most so long; then [`collect`] or [`abandon`].
    Sleep(c_int, Option<u64>),
    /// The set is not known any more: the real function's alone.
    Unknown,
}

/// Begins a wait on a set.
///
/// # Safety
/// `events` has `room` elements.
pub(crate) unsafe fn begin(
    set_fd: c_int,
    events: *mut epoll_event,
    room: usize,
    deadline_ns: u64,
) -> Begun {
    let (Some(runtime), Some(slot)) = (runtime::get(), TABLE.get_set(set_fd)) else {
        return Begun::Unknown;
    };
    let Some(set) = slot.set() else {
        return Begun::Unknown;
    };
    SERVICE.ensure();
    let desk = runtime.desk();
    let kernels = if set.owes_kernel() {
        // SAFETY: by the caller's promise.
        unsafe { look_at_kernels(set, set_fd, events, room, 0) }
    } else {
        0
    };
    let put = |at: usize, event: Event| {
        // SAFETY: `at` is below the room given to `scan` or `collect`.
        let place = unsafe { events.add(kernels + at) };
        // SAFETY: by the caller's promise.
        unsafe { place.write_unaligned(stored(event)) };
    };
    let (ours, all) = if kernels > 0 {
        let ours = set.collect(&desk, set_fd, room - kernels, put);
        (kernels..kernels + ours, kernels + ours)
    } else {
        match set.scan(&desk, set_fd, room, !is_over(deadline_ns), put) {
            Scan::Sleep { on, limit_ns } => return Begun::Sleep(on, limit_ns),
            Scan::Ready(ready) => {
                // SAFETY: by the caller's promise.
                let all = unsafe { look_at_kernels(set, set_fd, events, room, ready) };
                (0..ready, all)
            }
        }
    };
    // SAFETY: so many were written.
    let told = unsafe { core::slice::from_raw_parts_mut(events, all) };
    Begun::Ready(set.merge_inners(told, ours))
}

/// Ends a wait that did not take place.
pub(crate) fn abandon((set_fd, slept_on): (c_int, c_int)) {
    if let Some(slot) = TABLE.get_set(set_fd)
        && let Some(set) = slot.set()
    {
        set.slept(slept_on == set_fd);
    }
}

/// Ends a wait on `slept_on`, which has written `result` events to `events`. Returns how many are the program's, ours among them.
///
/// # Safety
/// `events` has `room` elements.
pub(crate) unsafe fn collect(
    (set_fd, slept_on): (c_int, c_int),
    events: *mut epoll_event,
    room: usize,
    result: c_int,
) -> usize {
    let (Some(runtime), Some(slot)) = (runtime::get(), TABLE.get_set(set_fd)) else {
        return usize::try_from(result).unwrap_or(0);
    };
    let Some(set) = slot.set() else {
        return 0;
    };
    set.slept(slept_on == set_fd);
    let count = usize::try_from(result).unwrap_or(0).min(room);
    // SAFETY: the kernel wrote so many, and the room is the caller's promise.
    unsafe { finish(runtime, set, set_fd, events, room, count) }
}

/// After a wait of the kernel's that wrote `count` events: takes what is ours out of them and adds what is ready here.
///
/// # Safety
/// `events` has `room` elements, of which `count` are written.
unsafe fn finish(
    runtime: &'static Runtime,
    set: &EpollSet,
    set_fd: c_int,
    events: *mut epoll_event,
    room: usize,
    count: usize,
) -> usize {
    let (kept, has_more) = {
        // SAFETY: by the caller's promise.
        let told = unsafe { core::slice::from_raw_parts_mut(events, count) };
        set.take_marks(told)
    };
    let put = |at: usize, event: Event| {
        // SAFETY: below the room by the promise of `collect`.
        let place = unsafe { events.add(kept + at) };
        // SAFETY: by the caller's promise.
        unsafe { place.write_unaligned(stored(event)) };
    };
    let ours = set.collect(&runtime.desk(), set_fd, room - kept, put);
    let all = if has_more {
        // SAFETY: as above.
        unsafe { look_at_kernels(set, set_fd, events, room, kept + ours) }
    } else {
        kept + ours
    };
    // SAFETY: so many were written.
    let told = unsafe { core::slice::from_raw_parts_mut(events, all) };
    set.merge_inners(told, kept..kept + ours)
}

const fn stored(event: Event) -> epoll_event {
    epoll_event {
        events: event.events,
        u64: event.data,
    }
}

/// Writes the kernel's events of a set behind `ready` others. Returns all.
///
/// # Safety
/// `events` has `room` elements.
unsafe fn look_at_kernels(
    set: &EpollSet,
    set_fd: c_int,
    events: *mut epoll_event,
    room: usize,
    ready: usize,
) -> usize {
    if ready >= room {
        return ready;
    }
    // SAFETY: inside the room.
    let rest = unsafe { events.add(ready) };
    let count = sys::epoll_look(set_fd, rest, room - ready).unwrap_or(0);
    // SAFETY: the kernel wrote so many.
    let told = unsafe { core::slice::from_raw_parts_mut(rest, count) };
    ready + set.take_marks(told).0
}
