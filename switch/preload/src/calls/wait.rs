//! Waits of blocking calls on the SAN.
//!
//! Place: a call's step fills a [`Wait`], its export carries it out with the real `ppoll`, a cancellation point, and the next step
//! begins with [`Wait::woken`]. Invariants: plain data, nothing to drop. Source: signal(7) for what a signal interrupts.
#![expect(unsafe_code, reason = "asks the kernel for signal handlers")]

use core::ffi::c_int;

use switch::outcome::{WaitPlan, now_ns};
use switch::waiters::{FUNCTIONS, Sleep};
use switch::{Errno, readiness, sys};

use crate::runtime::WAITERS;
use crate::signals;

const FDS: usize = 8 + 2 * FUNCTIONS;

/// What to wait for, and how long.
#[derive(Clone, Copy)]
pub(crate) struct Wait {
    /// Descriptors.
    pub(crate) fds: [libc::pollfd; FDS],
    /// Descriptors in use.
    pub(crate) len: usize,
    /// Vectors taken for the wait.
    pub(crate) sleep: Sleep,
    /// End of the call; `u64::MAX` for none, 0 while it is not known.
    pub(crate) deadline_ns: u64,
    /// End of this wait.
    pub(crate) until_ns: u64,
    /// Put-off signals of this thread when the call began.
    signals: u32,
}

impl Wait {
    /// No wait yet.
    pub(crate) fn new() -> Self {
        let nothing = libc::pollfd {
            fd: -1,
            events: 0,
            revents: 0,
        };
        Self {
            fds: [nothing; FDS],
            len: 0,
            sleep: Sleep::new(),
            deadline_ns: 0,
            until_ns: u64::MAX,
            signals: signals::resent(),
        }
    }

    /// Whether a handler ran since the call began, put off to a moment when the thread did not sleep: the wait would miss it.
    pub(crate) fn has_signal(&mut self) -> bool {
        let now = signals::resent();
        core::mem::replace(&mut self.signals, now) != now
    }

    /// Sets the end of the call once: now and `limit_ns`.
    pub(crate) fn limit_call(&mut self, limit_ns: impl FnOnce() -> Option<u64>) {
        if self.deadline_ns == 0 {
            self.deadline_ns = limit_ns().map_or(u64::MAX, |ns| now_ns().saturating_add(ns));
        }
    }

    /// Whether the call's time is over.
    pub(crate) fn is_over(&self) -> bool {
        self.deadline_ns != u64::MAX && self.deadline_ns != 0 && now_ns() >= self.deadline_ns
    }

    /// Waits for the vectors in `sleep`.
    pub(crate) fn for_vectors(&mut self, limit_ns: Option<u64>) {
        self.len = 0;
        self.until_ns = u64::MAX;
        self.add_vectors(limit_ns);
    }

    /// Waits as the switch says, and for the vectors in `sleep`.
    pub(crate) fn as_planned(&mut self, plan: &WaitPlan, limit_ns: Option<u64>) {
        let polled = plan.polled();
        self.fds[..polled.len()].copy_from_slice(polled);
        self.len = polled.len();
        self.until_ns = plan.deadline_ns;
        self.add_vectors(limit_ns);
    }

    fn add_vectors(&mut self, limit_ns: Option<u64>) {
        for entry in self.sleep.fds() {
            if let Some(free) = self.fds.get_mut(self.len) {
                *free = entry;
                self.len += 1;
            }
        }
        self.until_ns = self.until_ns.min(self.deadline_ns);
        if let Some(limit_ns) = limit_ns {
            self.until_ns = self.until_ns.min(now_ns().saturating_add(limit_ns));
        }
    }

    /// Time left of this wait, for `ppoll`; `None` for ever.
    pub(crate) fn timeout(&self) -> Option<libc::timespec> {
        (self.until_ns != u64::MAX).then(|| timespec(self.until_ns.saturating_sub(now_ns())))
    }

    /// After the wait: gives the vectors back.
    pub(crate) fn woken(&mut self) {
        readiness::woke();
        self.sleep.look(&WAITERS, &self.fds[..self.len]);
        WAITERS.wake(&mut self.sleep);
    }

    /// Whether a wait that ended with `errno` ends the call too: a signal came, and the call has a time limit or a handler wants it
    /// interrupted.
    pub(crate) fn is_interrupted(&self, errno: Errno) -> bool {
        errno == libc::EINTR
            && (!matches!(self.deadline_ns, 0 | u64::MAX) || is_any_handler_interrupting())
    }
}

/// A span of time as the C library takes it.
pub(crate) fn timespec(ns: u64) -> libc::timespec {
    libc::timespec {
        tv_sec: i64::try_from(ns / 1_000_000_000).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(ns % 1_000_000_000).unwrap_or(0),
    }
}

/// Whether some handler was installed without `SA_RESTART`. Which signal came is not known, so one such handler makes all calls
/// interruptible.
fn is_any_handler_interrupting() -> bool {
    (1..=64).any(|signal| {
        // The kernel's sigaction: handler, flags, restorer, mask.
        let mut action = [0_usize; 4];
        let args = [
            sys::int(signal as c_int),
            0,
            (&raw mut action).expose_provenance(),
            8,
            0,
            0,
        ];
        // SAFETY: no new action, and room for the old one.
        let asked = unsafe { sys::syscall(libc::SYS_rt_sigaction, args) };
        let has_handler = action[0] > libc::SIG_IGN;
        let restarts = action[1] & libc::SA_RESTART.cast_unsigned() as usize != 0;
        asked.is_ok() && has_handler && !restarts
    })
}
