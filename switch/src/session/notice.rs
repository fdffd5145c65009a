//! What the stream tells beside its bytes: completion notices of MSG_ZEROCOPY, and the state that TCP_INFO reports.
//!
//! Place: the preload library asks. Invariants: bytes are copied when they are taken, so a zero-copy send is complete at once and its
//! notice says "copied", as the kernel's does over loopback. Notices are numbers of calls, told in ranges.
//! Source: Linux Documentation/networking/msg_zerocopy.rst; tcp(7), TCP_INFO; linux/tcp.h. Leaves out: times and windows, which a
//! reliable device does not have.

use ring_proto::sync::Ordering;

use super::conn::Conn;
use super::record::flag;

/// Offsets of `struct tcp_info`, and what stands there.
const BYTES_ACKED: usize = 120;
const BYTES_RECEIVED: usize = 128;
const BYTES_SENT: usize = 200;

impl Conn {
    /// Counts a zero-copy send that is complete.
    pub fn note_zerocopy(&self) {
        // Relaxed: a counter; the edge wakes.
        self.record
            .get()
            .zerocopy_calls
            .fetch_add(1, Ordering::Relaxed);
        self.edges();
        self.wake_local();
    }

    /// Whether a notice waits in the error queue (`POLLERR`).
    #[inline]
    pub(super) fn has_notice(&self) -> bool {
        let r = self.record.get();
        // Relaxed: counters.
        r.zerocopy_calls.load(Ordering::Relaxed) != r.zerocopy_told.load(Ordering::Relaxed)
    }

    /// Takes the next notice: the first and the last call that it covers.
    #[must_use]
    pub fn take_notice(&self) -> Option<(u32, u32)> {
        let r = self.record.get();
        // Relaxed: counters; the exchange decides between two takers.
        let told = r.zerocopy_told.load(Ordering::Relaxed);
        let calls = r.zerocopy_calls.load(Ordering::Relaxed);
        let taken =
            r.zerocopy_told
                .compare_exchange(told, calls, Ordering::Relaxed, Ordering::Relaxed);
        (told != calls && taken.is_ok()).then(|| (told, calls.wrapping_sub(1)))
    }

    /// Whether kernel TCP would be in state CLOSE: nobody is at the other end any more.
    #[must_use]
    pub fn has_no_peer(&self) -> bool {
        self.is_over(self.record.get().flags())
    }

    /// Fills in the fields of `struct tcp_info` that are known here; `info` is the kernel's answer, cut at the program's room.
    pub fn describe(&self, info: &mut [u8]) {
        let r = self.record.get();
        // Relaxed: counters.
        let accepted = r.accepted.load(Ordering::Relaxed);
        if let Some(state) = info.first_mut() {
            *state = self.tcp_state();
        }
        let mut put = |at: usize, value: u64| {
            if let Some(field) = info.get_mut(at..at + 8) {
                field.copy_from_slice(&value.to_ne_bytes());
            }
        };
        put(BYTES_ACKED, r.freed.load(Ordering::Relaxed).min(accepted));
        put(BYTES_RECEIVED, r.rcv_end.load(Ordering::Relaxed));
        put(BYTES_SENT, self.sent_offset().min(accepted));
    }

    /// The state's number in the kernel's `tcp_states.h`.
    fn tcp_state(&self) -> u8 {
        const ESTABLISHED: u8 = 1;
        const FIN_WAIT1: u8 = 4;
        const FIN_WAIT2: u8 = 5;
        const CLOSE: u8 = 7;
        const CLOSE_WAIT: u8 = 8;
        const LAST_ACK: u8 = 9;
        let flags = self.record.get().flags();
        if self.is_over(flags) {
            return CLOSE;
        }
        let (ended, finished) = (flags & flag::FIN_SEEN != 0, flags & flag::WRITE_SHUT != 0);
        match (ended, finished) {
            (false, false) => ESTABLISHED,
            (true, false) => CLOSE_WAIT,
            (true, true) => LAST_ACK,
            (false, true) if self.fin_is_done() => FIN_WAIT2,
            (false, true) => FIN_WAIT1,
        }
    }
}
