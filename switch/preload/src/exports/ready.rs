//! Exports: waiting for readiness.
//!
//! Invariants: without a socket of the switch among the descriptors the real function does all of it. Longer arrays than fit on the
//! stack come from the C library's heap: a thread that never comes back leaves one behind, no lock.
#![expect(unsafe_code, reason = "exports with the C library's names")]

use core::ffi::{c_int, c_void};

use libc::{epoll_event, fd_set, nfds_t, pollfd, sigset_t, size_t, timespec, timeval};
use switch::readiness::poll::{EXTRA, PollState, Round};

use super::{exports, real, with_program};
use crate::calls::readiness::{self, Begun, Selection};
use crate::errno;
use crate::signals;

/// Entries that fit on the stack.
const ON_STACK: usize = 64;

/// Room for entries of a poll: on the stack, or for long ones on the heap.
struct Room {
    heap: *mut pollfd,
}

impl Room {
    /// Room for `count` entries, given `stack`. `None`: out of memory.
    fn new(stack: &mut [pollfd], count: usize) -> Option<(Self, *mut pollfd)> {
        if count <= stack.len() {
            let heap = core::ptr::null_mut();
            return Some((Self { heap }, stack.as_mut_ptr()));
        }
        // SAFETY: any size may be asked for.
        let heap: *mut pollfd = unsafe { libc::calloc(count, size_of::<pollfd>()) }.cast();
        (!heap.is_null()).then_some((Self { heap }, heap))
    }

    /// Gives it back. Not a destructor: there must be none while a thread waits.
    fn free(self) {
        // SAFETY: null, or from `calloc`.
        unsafe { libc::free(self.heap.cast::<c_void>()) };
    }
}

const NOTHING: pollfd = pollfd {
    fd: -1,
    events: 0,
    revents: 0,
};

/// A poll with sockets of the switch.
fn poll_all(fds: *mut pollfd, count: usize, deadline_ns: u64, mask: *const sigset_t) -> c_int {
    let mut stack = [NOTHING; ON_STACK + EXTRA];
    let Some((room, work)) = Room::new(&mut stack, count + EXTRA) else {
        return errno::answer_int(Err(libc::ENOMEM));
    };
    let before = errno::load();
    let mut state = PollState::new();
    let signals = signals::resent();
    loop {
        let (len, limit_ns) =
            match with_program!(readiness::round(fds, count, work, &mut state, deadline_ns)) {
                Round::Ready(ready) => {
                    room.free();
                    errno::store(before);
                    return c_int::try_from(ready).unwrap_or(c_int::MAX);
                }
                Round::Sleep { len, limit_ns } => (len, limit_ns),
            };
        if signals::resent() != signals {
            // A handler ran, put off to a moment when the thread did not sleep: as if it had.
            with_program!(readiness::woken(work, len, &mut state));
            room.free();
            return errno::answer_int(Err(libc::EINTR));
        }
        let timeout = readiness::left(deadline_ns, limit_ns);
        let timeout = timeout
            .as_ref()
            .map_or(core::ptr::null(), core::ptr::from_ref);
        let result = real!(ppoll(work, len as nfds_t, timeout, mask));
        let failed = errno::load();
        with_program!(readiness::woken(work, len, &mut state));
        if result < 0 {
            room.free();
            return errno::answer_int(Err(failed));
        }
    }
}

/// A select with sockets of the switch.
fn select_all(selection: Selection, deadline_ns: u64, mask: *const sigset_t) -> c_int {
    let count = with_program!(selection.numbers());
    let mut stack = [NOTHING; ON_STACK];
    let Some((room, fds)) = Room::new(&mut stack, count) else {
        return errno::answer_int(Err(libc::ENOMEM));
    };
    with_program!(selection.spread(fds));
    let result = poll_all(fds, count, deadline_ns, mask);
    let result = if result < 0 {
        Err(errno::load())
    } else {
        with_program!(selection.gather(fds, count))
    };
    room.free();
    errno::answer_int(result)
}

/// A wait on a set that knows sockets of the switch. `is_precise`: the caller's time has nanoseconds.
fn wait_on_set(
    set: c_int,
    events: *mut epoll_event,
    room: c_int,
    deadline_ns: u64,
    is_precise: bool,
    mask: *const sigset_t,
) -> c_int {
    let Some(places) = usize::try_from(room).ok().filter(|&r| r > 0) else {
        return errno::answer_int(Err(libc::EINVAL));
    };
    let signals = signals::resent();
    loop {
        let (on, limit_ns) = match with_program!(readiness::begin(set, events, places, deadline_ns))
        {
            Begun::Ready(all) => return c_int::try_from(all).unwrap_or(c_int::MAX),
            Begun::Sleep(on, limit_ns) => (on, limit_ns),
            Begun::Unknown => {
                let timeout = readiness::left_ms(deadline_ns, None);
                return real!(epoll_pwait(set, events, room, timeout, mask));
            }
        };
        if signals::resent() != signals {
            // As in `poll_all`.
            super::kept(|| readiness::abandon((set, on)));
            return errno::answer_int(Err(libc::EINTR));
        }
        let before = errno::load();
        let result = if is_precise {
            let timeout = readiness::left(deadline_ns, limit_ns);
            let timeout = timeout
                .as_ref()
                .map_or(core::ptr::null(), core::ptr::from_ref);
            real!(epoll_pwait2(on, events, room, timeout, mask))
        } else {
            let timeout = readiness::left_ms(deadline_ns, limit_ns);
            real!(epoll_pwait(on, events, room, timeout, mask))
        };
        let failed = errno::load();
        let kept = with_program!(readiness::collect((set, on), events, places, result));
        // As in the kernel, a signal takes no event away.
        if result < 0 && kept == 0 {
            return errno::answer_int(Err(failed));
        }
        errno::store(before);
        if kept > 0 || readiness::is_over(deadline_ns) {
            return c_int::try_from(kept).unwrap_or(c_int::MAX);
        }
    }
}

/// Waits on a set that knew no socket when the call came, with the real function; another thread may give it one meanwhile. `None`: it
/// has, and nothing of what was told is the program's.
macro_rules! wait_early {
    ($name:ident($set:ident, $events:ident, $room:ident $(, $more:expr)*)) => {
        if super::kept(|| readiness::enter_early($set)) {
            let result = real!($name($set, $events, $room $(, $more)*));
            match with_program!(readiness::leave_early($set, $events, $room, result)) {
                None => Some(result),
                Some(0) => None,
                Some(all) => Some(c_int::try_from(all).unwrap_or(c_int::MAX)),
            }
        } else {
            None
        }
    };
}

/// A count of entries as a size.
#[expect(
    clippy::cast_possible_truncation,
    reason = "nfds_t has the size of a pointer"
)]
const fn entries(count: nfds_t) -> usize {
    count as usize
}

/// Deadline of a span, which may be null for ever.
unsafe fn deadline(timeout: *const timespec) -> Result<u64, switch::Errno> {
    if timeout.is_null() {
        return Ok(u64::MAX);
    }
    // SAFETY: valid by the promise of the export.
    let timeout = unsafe { timeout.read_unaligned() };
    readiness::deadline_of(timeout.tv_sec, timeout.tv_nsec)
}

exports! {
    fn poll(fds: *mut pollfd, count: nfds_t, timeout_ms: c_int) -> c_int {
        if !with_program!(readiness::concerns(fds, entries(count))) {
            return real!(poll(fds, count, timeout_ms));
        }
        poll_all(fds, entries(count), readiness::deadline_ms(timeout_ms), core::ptr::null())
    }

    fn __poll(fds: *mut pollfd, count: nfds_t, timeout_ms: c_int) -> c_int {
        // SAFETY: as of `poll`.
        unsafe { poll(fds, count, timeout_ms) }
    }

    fn __poll_chk(fds: *mut pollfd, count: nfds_t, timeout_ms: c_int, room: size_t) -> c_int {
        if room / size_of::<pollfd>() < entries(count) {
            return real!(__poll_chk(fds, count, timeout_ms, room));
        }
        // SAFETY: as of `poll`.
        unsafe { poll(fds, count, timeout_ms) }
    }

    fn ppoll(fds: *mut pollfd, count: nfds_t, timeout: *const timespec, mask: *const sigset_t) -> c_int {
        if !with_program!(readiness::concerns(fds, entries(count))) {
            return real!(ppoll(fds, count, timeout, mask));
        }
        match with_program!(deadline(timeout)) {
            Ok(deadline_ns) => poll_all(fds, entries(count), deadline_ns, mask),
            Err(errno) => errno::answer_int(Err(errno)),
        }
    }

    fn __ppoll_chk(fds: *mut pollfd, count: nfds_t, timeout: *const timespec, mask: *const sigset_t, room: size_t) -> c_int {
        if room / size_of::<pollfd>() < entries(count) {
            return real!(__ppoll_chk(fds, count, timeout, mask, room));
        }
        // SAFETY: as of `ppoll`.
        unsafe { ppoll(fds, count, timeout, mask) }
    }

    fn select(count: c_int, read: *mut fd_set, write: *mut fd_set, except: *mut fd_set, timeout: *mut timeval) -> c_int {
        let selection = Selection::new(count, [read, write, except])
            .filter(|s| with_program!(s.concerns()));
        let Some(selection) = selection else {
            return real!(select(count, read, write, except, timeout));
        };
        if timeout.is_null() {
            return select_all(selection, u64::MAX, core::ptr::null());
        }
        let span = with_program!(timeout.read_unaligned());
        let deadline_ns = match readiness::deadline_of(span.tv_sec, span.tv_usec.saturating_mul(1000)) {
            Ok(deadline_ns) => deadline_ns,
            Err(errno) => return errno::answer_int(Err(errno)),
        };
        let result = select_all(selection, deadline_ns, core::ptr::null());
        // Linux tells the time that is left.
        let left = readiness::left(deadline_ns, None);
        let left = left.map_or(timeval { tv_sec: 0, tv_usec: 0 }, |t| timeval {
            tv_sec: t.tv_sec,
            tv_usec: t.tv_nsec / 1000,
        });
        with_program!(timeout.write_unaligned(left));
        result
    }

    fn __select(count: c_int, read: *mut fd_set, write: *mut fd_set, except: *mut fd_set, timeout: *mut timeval) -> c_int {
        // SAFETY: as of `select`.
        unsafe { select(count, read, write, except, timeout) }
    }

    fn pselect(count: c_int, read: *mut fd_set, write: *mut fd_set, except: *mut fd_set, timeout: *const timespec, mask: *const sigset_t) -> c_int {
        let selection = Selection::new(count, [read, write, except])
            .filter(|s| with_program!(s.concerns()));
        let Some(selection) = selection else {
            return real!(pselect(count, read, write, except, timeout, mask));
        };
        match with_program!(deadline(timeout)) {
            Ok(deadline_ns) => select_all(selection, deadline_ns, mask),
            Err(errno) => errno::answer_int(Err(errno)),
        }
    }

    fn epoll_ctl(set: c_int, operation: c_int, fd: c_int, event: *mut epoll_event) -> c_int {
        match with_program!(readiness::control(set, operation, fd, event)) {
            Some(result) => errno::answer_unit(result),
            None => real!(epoll_ctl(set, operation, fd, event)),
        }
    }

    fn epoll_wait(set: c_int, events: *mut epoll_event, room: c_int, timeout_ms: c_int) -> c_int {
        let is_known = readiness::is_known(set);
        if !is_known && (timeout_ms == 0 || readiness::is_alone()) {
            return real!(epoll_wait(set, events, room, timeout_ms));
        }
        let deadline_ns = readiness::deadline_ms(timeout_ms);
        if !is_known
            && let Some(result) = wait_early!(epoll_wait(set, events, room, timeout_ms))
        {
            return result;
        }
        wait_on_set(set, events, room, deadline_ns, false, core::ptr::null())
    }

    fn epoll_pwait(set: c_int, events: *mut epoll_event, room: c_int, timeout_ms: c_int, mask: *const sigset_t) -> c_int {
        let is_known = readiness::is_known(set);
        if !is_known && (timeout_ms == 0 || readiness::is_alone()) {
            return real!(epoll_pwait(set, events, room, timeout_ms, mask));
        }
        let deadline_ns = readiness::deadline_ms(timeout_ms);
        if !is_known
            && let Some(result) = wait_early!(epoll_pwait(set, events, room, timeout_ms, mask))
        {
            return result;
        }
        wait_on_set(set, events, room, deadline_ns, false, mask)
    }

    fn epoll_pwait2(set: c_int, events: *mut epoll_event, room: c_int, timeout: *const timespec, mask: *const sigset_t) -> c_int {
        let is_known = readiness::is_known(set);
        if !is_known && readiness::is_alone() {
            return real!(epoll_pwait2(set, events, room, timeout, mask));
        }
        let deadline_ns = match with_program!(deadline(timeout)) {
            Ok(deadline_ns) => deadline_ns,
            Err(errno) => return errno::answer_int(Err(errno)),
        };
        if !is_known
            && let Some(result) = wait_early!(epoll_pwait2(set, events, room, timeout, mask))
        {
            return result;
        }
        wait_on_set(set, events, room, deadline_ns, true, mask)
    }
}
