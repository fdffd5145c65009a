//! The end of a connection: half close, graceful close, abort.
//!
//! Place: the program's shutdown and close end here; the service thread drives what is left by [`Conn::progress`] until
//! [`Conn::phase`] says closed.
//! Invariants: the SPI knows only the abortive close, so grace is ours: FIN goes out behind all data, and the
//! companion is closed only when FIN has arrived and the peer's has come, or its time is up. Unread data, linger 0, and data that
//! comes after the close abort: the peer gets what was sent before, then ECONNRESET. While others of the family hold the
//! connection, a close is a matter of this process alone.
//! Source; figures of the waits as in kernel TCP. Leaves out: the wait of SO_LINGER, which is the caller's
//! ([`Conn::is_drained`]).

use ring_proto::sync::Ordering;

use super::conn::{Conn, now_ns};
use super::record::flag;
use crate::outcome::Errno;

/// Wait for the peer's FIN after ours has arrived (`tcp_fin_timeout`).
const FIN_WAIT_NS: u64 = 60_000_000_000;
/// Wait for an ABORT to leave.
const ABORT_NS: u64 = 2_000_000_000;

/// Direction of [`Conn::shutdown`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// SHUT_RD.
    Read,
    /// SHUT_WR.
    Write,
    /// SHUT_RDWR.
    Both,
}

/// Result of [`Conn::close`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CloseStep {
    /// Nothing is left to do.
    Closed,
    /// The service thread must go on with [`Conn::progress`].
    Draining,
}

impl Conn {
    /// Ends one or both directions. `SHUT_RD` is local: the peer notices nothing.
    ///
    /// # Errors
    /// `ENOTCONN` before the connection stands, and when kernel TCP would be in state CLOSE.
    pub fn shutdown(&self, how: How) -> Result<(), Errno> {
        let r = self.record.get();
        let flags = r.flags();
        if flags & flag::ESTABLISHED == 0 || self.is_over(flags) {
            return Err(libc::ENOTCONN);
        }
        let bits = match how {
            How::Read => flag::READ_SHUT,
            How::Write => flag::WRITE_SHUT,
            How::Both => flag::READ_SHUT | flag::WRITE_SHUT,
        };
        r.set(bits);
        if bits & flag::WRITE_SHUT != 0 {
            // Also where FIN must wait: the head says at once that nothing follows.
            self.with_send(Self::pump);
        }
        self.edges();
        self.wake_local();
        Ok(())
    }

    /// Closes the program's last descriptor in this process. `linger`: seconds of SO_LINGER if it is on; 0 aborts.
    pub fn close(&self, linger: Option<u32>) -> CloseStep {
        let r = self.record.get();
        if let Some(sharing) = &self.provider.sharing
            && matches!(sharing.release(self.sp), Ok(true))
        {
            return CloseStep::Closed;
        }
        self.progress();
        let flags = r.flags();
        let dead = flag::GONE | flag::CLOSED | flag::RESET | flag::ORPHANED;
        if flags & dead != 0 || flags & flag::ESTABLISHED == 0 {
            self.finish();
            return CloseStep::Closed;
        }
        if self.readable_bytes() > 0 || linger == Some(0) {
            self.abort();
        } else {
            // Relaxed: a time; set when FIN has arrived.
            r.deadline_ns.store(0, Ordering::Relaxed);
            r.set(flag::CLOSING | flag::WRITE_SHUT);
            self.with_send(Self::pump);
            self.clockwork();
        }
        self.step()
    }

    /// Ends the connection at once: what was accepted and not yet sent is dropped, the peer gets ECONNRESET.
    pub fn abort(&self) -> CloseStep {
        let r = self.record.get();
        // Relaxed: a time; released by the flags.
        r.deadline_ns
            .store(now_ns().saturating_add(ABORT_NS), Ordering::Relaxed);
        r.set(flag::CLOSING | flag::ABORT_WANTED | flag::WRITE_SHUT | flag::RESET);
        self.edges();
        self.wake_local();
        self.with_send(Self::pump);
        self.clockwork();
        self.step()
    }

    /// Whether everything that was accepted, and FIN, has arrived: what a lingering close waits for.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.record
            .get()
            .has(flag::GONE | flag::CLOSED | flag::RESET)
            || (self.unsent_bytes() == 0 && self.fin_is_done())
    }

    fn step(&self) -> CloseStep {
        if self.record.get().has(flag::CLOSED) {
            CloseStep::Closed
        } else {
            CloseStep::Draining
        }
    }

    /// Whether kernel TCP would be in state CLOSE: reset, or finished in both directions.
    pub(super) fn is_over(&self, flags: u32) -> bool {
        flags & (flag::RESET | flag::CLOSED) != 0
            || (flags & flag::FIN_SEEN != 0
                && flags & flag::WRITE_SHUT != 0
                && (self.fin_is_done() || flags & flag::GONE != 0))
    }

    /// Does what the time and the state of a negotiation or a close ask for.
    pub(super) fn clockwork(&self) {
        let r = self.record.get();
        let flags = r.flags();
        if flags & flag::CLOSED != 0 {
            return;
        }
        // Relaxed: a time.
        let deadline = r.deadline_ns.load(Ordering::Relaxed);
        if flags & flag::CLOSING == 0 {
            let waits = flags & (flag::ESTABLISHED | flag::RESET) == 0;
            if waits && deadline != 0 && now_ns() >= deadline {
                self.reset(libc::ETIMEDOUT, 0);
            }
            return;
        }
        let is_over = if flags & flag::GONE != 0 {
            true
        } else if flags & flag::ABORT_WANTED != 0 {
            // Relaxed: counters; a message that is still posted keeps the companion open.
            let idle = r.posted.load(Ordering::Relaxed) == r.reaped.load(Ordering::Relaxed);
            (idle && self.due().is_none()) || now_ns() >= deadline
        } else if !self.fin_is_done() {
            false
        } else if flags & flag::FIN_SEEN != 0 {
            true
        } else if deadline == 0 {
            r.deadline_ns
                .store(now_ns().saturating_add(FIN_WAIT_NS), Ordering::Relaxed);
            false
        } else {
            now_ns() >= deadline
        };
        if is_over {
            self.finish();
        }
    }
}
