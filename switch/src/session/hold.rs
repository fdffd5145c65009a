//! Small sends that wait for more: TCP_CORK and MSG_MORE.
//!
//! Place: `send` says what a call wants, `due` asks before it posts a message that is not full.
//! Invariants: as in the kernel, only less than a full message is held, for 200 ms at most, and never behind an end of stream. Held
//! bytes are accepted bytes: they survive whatever happens to the program.
//! Source: tcp(7), TCP_CORK; send(2), MSG_MORE. Leaves out: the wake-up at the end of the time, which is the service thread's.

use ring_proto::sync::Ordering;

use super::conn::{Conn, now_ns};
use super::record::flag;

/// How long bytes are held.
const HOLD_NS: u64 = 200_000_000;

impl Conn {
    /// Holds small sends back (`TCP_CORK`), or lets them go.
    pub fn set_cork(&self, is_corked: bool) {
        // Relaxed: an option.
        self.record
            .get()
            .corked
            .store(u32::from(is_corked), Ordering::Relaxed);
        if !is_corked {
            self.push_held();
        }
    }

    /// Sends what is held now (`TCP_NODELAY`).
    pub fn push_held(&self) {
        // Relaxed: a time; decides under the send token.
        self.record.get().hold_until_ns.store(0, Ordering::Relaxed);
        self.with_send(Self::pump);
    }

    /// Before bytes are taken: whether what is left over from them is to wait for more. Under the send token.
    pub(super) fn hold(&self, wants_more: bool) {
        let r = self.record.get();
        // Relaxed throughout: an option, and the send side's own numbers.
        if !wants_more && r.corked.load(Ordering::Relaxed) == 0 {
            if r.hold_until_ns.load(Ordering::Relaxed) != 0 {
                r.hold_until_ns.store(0, Ordering::Relaxed);
            }
            return;
        }
        let has_waiting = self.sent_offset() < r.accepted.load(Ordering::Relaxed);
        let now = now_ns();
        if !has_waiting || r.hold_until_ns.load(Ordering::Relaxed) <= now {
            r.hold_until_ns
                .store(now.saturating_add(HOLD_NS), Ordering::Relaxed);
        }
    }

    /// Whether `unsent` bytes wait for more.
    #[inline]
    pub(super) fn is_held(&self, unsent: u64) -> bool {
        // Relaxed: a time.
        let until = self.record.get().hold_until_ns.load(Ordering::Relaxed);
        until != 0 && self.waits_for_more(unsent, until)
    }

    #[cold]
    fn waits_for_more(&self, unsent: u64, until_ns: u64) -> bool {
        let r = self.record.get();
        // Relaxed: a number of the negotiation.
        unsent < u64::from(r.payload_max.load(Ordering::Relaxed))
            && !r.has(flag::WRITE_SHUT | flag::RESET)
            && now_ns() < until_ns
    }

    /// End of the time that bytes are held, on CLOCK_MONOTONIC; `u64::MAX`: none are.
    pub(super) fn held_until_ns(&self) -> u64 {
        let r = self.record.get();
        // Relaxed: a time and estimates.
        match r.hold_until_ns.load(Ordering::Relaxed) {
            0 => u64::MAX,
            _ if self.sent_offset() >= r.accepted.load(Ordering::Relaxed) => u64::MAX,
            until => until,
        }
    }
}
