//! Event objects: eventfds that the switch names to providers, and the pool that keeps those of connects.
//!
//! Place: `wsp_event_select` gets one per listening companion and one per connect attempt; a listener's doorbell is one too.
//! Invariants: non-blocking and close-on-exec, closed by raw system call ([`driver::sys::Fd`]). An eventfd of the pool is never closed and lies there
//! signalled: a thread that still waits for the attempt it belonged to wakes up instead of waiting on a stranger's number.
//! Source: Winsock event objects as eventfds; of docs/wsd.md.
#![expect(unsafe_code, reason = "takes over an inherited descriptor by number")]

use std::os::fd::RawFd;
use std::sync::{Mutex, PoisonError};

use driver::sys::{self, Fd, Seen};

use crate::outcome::Errno;

/// An eventfd that this process owns.
#[derive(Debug)]
pub struct EventFd {
    fd: Fd,
}

impl EventFd {
    /// Makes one.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`, `ENOMEM`.
    pub fn new() -> Result<Self, Errno> {
        let fd = sys::eventfd().map_err(sys::Errno::raw_os_error)?;
        Ok(Self { fd })
    }

    /// Takes over one that an earlier image of the program made. `None` for a number that is not open.
    #[must_use]
    pub fn inherited(fd: RawFd) -> Option<Self> {
        // SAFETY: the earlier image left the number to this library.
        let fd = unsafe { Fd::from_raw(fd) };
        fd.close_on_exec().ok()?;
        Some(Self { fd })
    }

    /// The descriptor.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.fd.raw()
    }

    /// Makes it readable.
    pub fn signal(&self) {
        sys::signal(self.fd());
    }

    /// Makes it unreadable.
    pub fn drain(&self) {
        sys::drain(self.fd());
    }

    /// Whether it is readable now.
    #[must_use]
    pub fn is_signalled(&self) -> bool {
        sys::wait_readable(self.fd(), 0) == Ok(Seen::Readable)
    }
}

/// Whether the other end of a socket is gone.
pub(crate) fn is_hung_up(fd: RawFd) -> bool {
    sys::wait_readable(fd, 0) == Ok(Seen::HungUp)
}

/// Event objects of connect attempts, used again and again.
#[derive(Debug, Default)]
pub struct EventPool {
    free: Mutex<Vec<EventFd>>,
}

impl EventPool {
    /// Takes one, drained.
    ///
    /// # Errors
    /// As [`EventFd::new`].
    pub fn take(&self) -> Result<EventFd, Errno> {
        let pooled = self.lock().pop();
        let event = pooled.map_or_else(EventFd::new, Ok)?;
        event.drain();
        Ok(event)
    }

    /// Gives one back, signalled: whoever waits on it looks again.
    pub fn give(&self, event: EventFd) {
        event.signal();
        self.lock().push(event);
    }

    /// In a forked child: closes the child's copies, which are the parent's event objects.
    pub fn forget(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<EventFd>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pooled_events_lie_signalled_and_come_back_drained() {
        let pool = EventPool::default();
        let event = pool.take().unwrap();
        let fd = event.fd();
        assert!(!event.is_signalled());
        pool.give(event);
        assert!(pool.lock()[0].is_signalled());
        let again = pool.take().unwrap();
        assert_eq!(again.fd(), fd);
        assert!(!again.is_signalled());
    }
}
