//! How long a connection waits for a peer that takes nothing any more: the link is cut, or its other end hangs.
//!
//! Place: the service thread asks after each look at a connection; a time limit of the program (`TCP_USER_TIMEOUT`) makes it look in time. With
//! the kernel's default it need not: a thread that sleeps on the connection does so until its patience ends ([`Conn::patience_left_ns`]).
//! Invariants: what counts is a message that the NIC cannot deliver; a peer whose program does not read is no reason, its receives are
//! posted for every credit. The NIC itself retries without end, so that a link that is mended in time is nobody's loss.
//! Source: tcp(7), TCP_USER_TIMEOUT, tcp_retries2; R-193. Leaves out: probes of an idle connection (`super::alive`).

use ring_proto::sync::Ordering;

use super::conn::{Conn, now_ns};
use super::record::flag;

/// The kernel's limit without one of the program: 15 retransmissions (`tcp_retries2`).
const DEFAULT_NS: u64 = 924_600_000_000;

impl Conn {
    /// Sets how long bytes may be on their way (`TCP_USER_TIMEOUT`); 0: as long as the kernel's default.
    pub fn set_user_timeout(&self, ms: u32) {
        // Relaxed: an option.
        self.record
            .get()
            .user_timeout_ms
            .store(ms, Ordering::Relaxed);
    }

    /// Whether the program set a limit and something is on its way, so that somebody must look in time.
    #[inline]
    pub(super) fn is_impatient(&self) -> bool {
        // Relaxed: an option.
        self.record.get().user_timeout_ms.load(Ordering::Relaxed) != 0 && self.has_underway()
    }

    /// Ends the connection if its oldest message has been on its way for too long.
    pub fn lose_patience(&self) {
        let r = self.record.get();
        // Relaxed throughout: a clock of ours; two lookers at once start it twice.
        if !self.has_underway() || r.has(flag::RESET | flag::GONE | flag::CLOSED | flag::ORPHANED) {
            r.waiting_since_ns.store(0, Ordering::Relaxed);
            return;
        }
        let now = now_ns();
        let reaped = r.reaped.load(Ordering::Relaxed);
        let is_new = r.waiting_for.swap(reaped, Ordering::Relaxed) != reaped;
        let since = r.waiting_since_ns.load(Ordering::Relaxed);
        if is_new || since == 0 {
            r.waiting_since_ns.store(now, Ordering::Relaxed);
        } else if now.saturating_sub(since) >= self.limit_ns() {
            self.reset(libc::ETIMEDOUT, flag::GONE);
        }
    }

    /// When to look again, on CLOCK_MONOTONIC; `u64::MAX`: nothing is on its way.
    pub(super) fn patience_ends_ns(&self) -> u64 {
        // Relaxed: as above.
        match self.record.get().waiting_since_ns.load(Ordering::Relaxed) {
            0 => u64::MAX,
            since => since.saturating_add(self.limit_ns()),
        }
    }

    /// Before a thread sleeps on the connection: how long it may, if something is on its way; 0 when the connection has just ended.
    #[must_use]
    pub fn patience_left_ns(&self) -> Option<u64> {
        if !self.has_underway() {
            return None;
        }
        self.lose_patience();
        match self.patience_ends_ns() {
            u64::MAX => None,
            _ if self.record.get().has(flag::RESET) => Some(0),
            end => Some(end.saturating_sub(now_ns())),
        }
    }

    fn limit_ns(&self) -> u64 {
        // Relaxed: an option.
        match self.record.get().user_timeout_ms.load(Ordering::Relaxed) {
            0 => DEFAULT_NS,
            ms => u64::from(ms) * 1_000_000,
        }
    }

    /// Whether a message was posted and has not been delivered, as far as is known.
    #[inline]
    pub(super) fn has_underway(&self) -> bool {
        let r = self.record.get();
        // Relaxed: own numbers.
        r.posted.load(Ordering::Relaxed) != r.reaped.load(Ordering::Relaxed)
    }
}
