//! What a call of the switch gives back when it may not block: a value, an errno, or a plan for waiting.
//!
//! Place: every socket call of the preload library ends in an [`Outcome`] or in one of its relatives.
//! Invariants: a [`WaitPlan`] owns nothing and has no destructor: a thread may be cancelled, or `longjmp` away, while it waits.

use std::os::fd::RawFd;

/// A Linux error number, positive. Only the preload library stores it in `errno`.
pub type Errno = i32;

/// Descriptors a [`WaitPlan`] can hold.
pub const PLAN_FDS: usize = 8;

/// Result of a socket call that does not block.
#[derive(Clone, Copy, Debug)]
pub enum Outcome<T> {
    /// Done.
    Ready(T),
    /// Failed with an errno.
    Failed(Errno),
    /// Wait as the plan says, then make the same call again.
    Wait(WaitPlan),
}

/// How to wait: poll these descriptors with the real `poll` (a cancellation point), then call again.
#[derive(Clone, Copy)]
pub struct WaitPlan {
    /// Descriptors; the first `len` count.
    pub fds: [libc::pollfd; PLAN_FDS],
    /// Descriptors in use.
    pub len: u8,
    /// End of the wait on `CLOCK_MONOTONIC` in nanoseconds; `u64::MAX`: none.
    pub deadline_ns: u64,
    /// The call's errno when the deadline passes; 0: call again.
    pub on_timeout: Errno,
}

impl WaitPlan {
    /// A plan without descriptors and without an end.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            fds: [libc::pollfd {
                fd: -1,
                events: 0,
                revents: 0,
            }; PLAN_FDS],
            len: 0,
            deadline_ns: u64::MAX,
            on_timeout: 0,
        }
    }

    /// Adds a descriptor. Returns false when the plan is full; the caller then needs a wider wait of its own.
    pub fn add(&mut self, fd: RawFd, events: i16) -> bool {
        let Some(slot) = self.fds.get_mut(usize::from(self.len)) else {
            return false;
        };
        *slot = libc::pollfd {
            fd,
            events,
            revents: 0,
        };
        self.len += 1;
        true
    }

    /// Moves the end of the wait forward to `deadline_ns` if that is earlier, and then ends it with `on_timeout`.
    pub fn limit(&mut self, deadline_ns: u64, on_timeout: Errno) {
        if deadline_ns < self.deadline_ns {
            self.deadline_ns = deadline_ns;
            self.on_timeout = on_timeout;
        }
    }

    /// The descriptors in use.
    #[must_use]
    pub fn polled(&self) -> &[libc::pollfd] {
        &self.fds[..usize::from(self.len).min(PLAN_FDS)]
    }
}

impl Default for WaitPlan {
    fn default() -> Self {
        Self::new()
    }
}

impl core::fmt::Debug for WaitPlan {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let fds: Vec<(RawFd, i16)> = self.polled().iter().map(|p| (p.fd, p.events)).collect();
        f.debug_struct("WaitPlan")
            .field("fds", &fds)
            .field("deadline_ns", &self.deadline_ns)
            .field("on_timeout", &self.on_timeout)
            .finish()
    }
}

/// Now on `CLOCK_MONOTONIC`, in nanoseconds.
#[must_use]
pub fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}
