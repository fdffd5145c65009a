//! Whether an idle peer still lives: SO_KEEPALIVE.
//!
//! Place: the service thread asks each connection once in a round and sleeps until the earliest answer; calls of the program do nothing
//! for it, and a connection without the option costs one load. Invariants: a sign of life is a message, a completion or an answered probe;
//! what is on its way is no business of probes, its retries tell (`super::patience`). A probe is one RDMA READ of a word of the
//! peer's head: the peer's NIC answers it, whatever its program does. One is under way at a time, and counts again after each interval: it is
//! the NIC that repeats it meanwhile. Probes are posted and judged under the receive token, so members of a family do not count twice.
//! Source: tcp(7), TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT, TCP_USER_TIMEOUT; Linux net/ipv4/tcp_timer.c, tcp_keepalive_timer.
//! Leaves out: the times in /proc/sys/net/ipv4; those of the kernel's documentation hold where the program sets none.

use driver::spi::{OVERLAPPED_DONE, OVERLAPPED_FREE, OVERLAPPED_PENDING};
use driver::wsa::WsaError;
use ring_proto::sync::Ordering;

use super::conn::{Conn, sp_buffer};
use super::message::FEATURE_RDMA_READ;
use super::record::flag;
use super::ring::PROBE_OFFSET;

/// A second.
const SECOND_NS: u64 = 1_000_000_000;
/// Bytes that a probe reads.
const PROBE_BYTES: u32 = 8;
/// How soon somebody looks again when the receive token was held.
const BUSY_NS: u64 = 10_000_000;
/// Looks within the idle time: when exactly the last sign came is not known better than that.
const LOOKS: u64 = 4;
/// Marks settings that are in force, beside the times in one word.
const ON: u64 = 1 << 63;

/// When an idle connection is probed, and how often.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeepAlive {
    /// Seconds without a sign of life before the first probe (`TCP_KEEPIDLE`).
    pub idle_s: u16,
    /// Seconds between probes (`TCP_KEEPINTVL`).
    pub interval_s: u16,
    /// Probes without an answer that end the connection (`TCP_KEEPCNT`).
    pub count: u8,
}

impl Default for KeepAlive {
    /// The kernel's.
    fn default() -> Self {
        Self {
            idle_s: 7200,
            interval_s: 75,
            count: 9,
        }
    }
}

impl KeepAlive {
    fn to_word(self) -> u64 {
        ON | u64::from(self.idle_s) | u64::from(self.interval_s) << 16 | u64::from(self.count) << 32
    }

    fn of_word(word: u64) -> Option<Self> {
        let [a, b, c, d, count, ..] = word.to_le_bytes();
        (word & ON != 0).then(|| Self {
            idle_s: u16::from_le_bytes([a, b]).max(1),
            interval_s: u16::from_le_bytes([c, d]).max(1),
            count: count.max(1),
        })
    }

    fn idle_ns(self) -> u64 {
        u64::from(self.idle_s) * SECOND_NS
    }

    fn interval_ns(self) -> u64 {
        u64::from(self.interval_s) * SECOND_NS
    }
}

impl Conn {
    /// Begins to watch over the peer, with other times from now on, or stops.
    pub fn set_keep_alive(&self, keep_alive: Option<KeepAlive>) {
        let r = self.record.get();
        // Relaxed: an option; the service thread is told by `Switch::expect`.
        r.quiet_since_ns.store(0, Ordering::Relaxed);
        r.probe_at_ns.store(0, Ordering::Relaxed);
        let word = keep_alive.map_or(0, KeepAlive::to_word);
        r.keep_alive.store(word, Ordering::Relaxed);
    }

    /// When [`Self::keep_alive`] must be called first, for settings that are in force; `u64::MAX`: there are none.
    #[must_use]
    pub(crate) fn first_look_ns(&self, now_ns: u64) -> u64 {
        // Relaxed: an option.
        let word = self.record.get().keep_alive.load(Ordering::Relaxed);
        KeepAlive::of_word(word).map_or(u64::MAX, |k| now_ns.saturating_add(k.idle_ns() / LOOKS))
    }

    /// Does what is due, and says when to call again, on CLOCK_MONOTONIC; `u64::MAX`: there is no need.
    pub fn keep_alive(&self, now_ns: u64) -> u64 {
        let r = self.record.get();
        // Relaxed, here and below: own numbers, under the receive token where they change.
        let Some(times) = KeepAlive::of_word(r.keep_alive.load(Ordering::Relaxed)) else {
            return u64::MAX;
        };
        let at = r.probe_at_ns.load(Ordering::Relaxed);
        if now_ns < at {
            return at;
        }
        let over = flag::RESET | flag::GONE | flag::CLOSED | flag::CLOSING | flag::ORPHANED;
        if r.flags() & (over | flag::ESTABLISHED) != flag::ESTABLISHED || !self.can_read_peer() {
            return u64::MAX;
        }
        // What has come is a sign of life.
        self.progress();
        let mut next = now_ns.saturating_add(BUSY_NS);
        self.with_recv(|conn| {
            next = conn.watch(now_ns, times);
            conn.record.get().probe_at_ns.store(next, Ordering::Relaxed);
        });
        next
    }

    /// Whether memory of the peer's can be read.
    pub(super) fn can_read_peer(&self) -> bool {
        let r = self.record.get();
        self.provider.has_rdma_read
            && r.has(flag::HELLO_SEEN)
            && u64::from(r.peer_features.load(Ordering::Relaxed)) & FEATURE_RDMA_READ != 0
    }

    /// Judges what has come since the last look. Returns when to look again. Under the receive token.
    fn watch(&self, now_ns: u64, times: KeepAlive) -> u64 {
        let r = self.record.get();
        // EDGE overlapped-done (acquire): the outcome of the probe.
        let is_answered = r.probe_ov.state.load(Ordering::Acquire) == OVERLAPPED_DONE;
        if is_answered {
            r.probe_ov.state.store(OVERLAPPED_FREE, Ordering::Relaxed);
            if r.probe_ov.error.load(Ordering::Relaxed) != 0 {
                // The connection has failed, which its progress finds.
                return u64::MAX;
            }
        }
        let (received, _) = r.recv_position();
        let heard = received.wrapping_add(r.reaped.load(Ordering::Relaxed));
        let since = r.quiet_since_ns.load(Ordering::Relaxed);
        let is_new = r.heard.swap(heard, Ordering::Relaxed) != heard;
        let since = if since == 0 || is_new || is_answered {
            r.probes.store(0, Ordering::Relaxed);
            r.quiet_since_ns.store(now_ns, Ordering::Relaxed);
            now_ns
        } else {
            since
        };
        let look = now_ns.saturating_add(times.idle_ns() / LOOKS);
        if self.has_underway() {
            return look;
        }
        let probes = r.probes.load(Ordering::Relaxed);
        if probes == 0 {
            let due = since.saturating_add(times.idle_ns());
            if now_ns < due {
                return due.min(look);
            }
        } else if self.is_given_up(now_ns.saturating_sub(since), probes, times) {
            self.reset(libc::ETIMEDOUT, flag::GONE);
            return u64::MAX;
        }
        if self.probe() {
            r.probes.store(probes.saturating_add(1), Ordering::Relaxed);
        }
        now_ns.saturating_add(times.interval_ns())
    }

    /// Whether so many probes were enough: by their number, or by the program's own limit.
    fn is_given_up(&self, quiet_ns: u64, probes: u32, times: KeepAlive) -> bool {
        match self.record.get().user_timeout_ms.load(Ordering::Relaxed) {
            0 => probes >= u32::from(times.count),
            ms => quiet_ns >= u64::from(ms) * 1_000_000,
        }
    }

    /// Asks the peer's NIC for a word, if the last question was answered. False: it could not be asked now.
    fn probe(&self) -> bool {
        let r = self.record.get();
        if r.probe_ov.state.load(Ordering::Relaxed) == OVERLAPPED_PENDING {
            return true;
        }
        r.probe_ov.error.store(0, Ordering::Relaxed);
        r.probe_ov.state.store(OVERLAPPED_FREE, Ordering::Relaxed);
        let handle = Some(self.numbers.ring_handle);
        let target = sp_buffer(self.ring.at(PROBE_OFFSET), PROBE_BYTES, handle);
        let peer = r.peer_ring.load();
        let started =
            self.provider
                .sp
                .wsp_rdma_read(self.sp, &[target], &peer, 0, &r.probe_ov, false);
        matches!(started, Ok(()) | Err(WsaError::IoPending))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_travel_in_a_word() {
        for times in [
            KeepAlive::default(),
            KeepAlive {
                idle_s: 32767,
                interval_s: 1,
                count: 127,
            },
        ] {
            assert_eq!(KeepAlive::of_word(times.to_word()), Some(times));
        }
        assert_eq!(KeepAlive::of_word(0), None);
    }
}
