//! Urgent data: one byte of the stream that is marked, announced, and read beside the stream or within it.
//!
//! Place: `send` marks the last byte of an urgent send, `recv` notes the mark of a message; the program's receive ends at the mark and
//! its `MSG_OOB` takes the byte.
//! Invariants: the byte is a byte of the stream and lies where the stream lies; only its offset and whether it was taken are kept, one
//! mark per direction, the latest counts. Rules are those of the kernel's `tcp_check_urg`, `tcp_recv_urg` and `tcp_recvmsg`.
//! Source: R-146; wire format in docs/session.md. Leaves out: a mark that runs ahead of its byte: it comes with it.

use ring_proto::sync::Ordering;

use super::buffers::IoCursor;
use super::conn::Conn;
use super::record::{ConnRecord, flag};
use crate::outcome::Errno;
use crate::token::Taken;

/// [`ConnRecord::urgent_state`]: no mark.
const NONE: u32 = 0;
/// A mark whose byte was not taken.
const MARKED: u32 = 1;
/// A mark whose byte was taken.
const TAKEN: u32 = 2;

impl Conn {
    /// Whether the next byte of the stream is the marked one (`SIOCATMARK`).
    #[must_use]
    pub fn is_at_mark(&self) -> bool {
        let r = self.record.get();
        // Relaxed: exact under the receive token, an answer of a moment without.
        self.mark() == Some(r.rcv_next.load(Ordering::Relaxed))
    }

    /// Keeps the urgent byte in the stream (`SO_OOBINLINE`), or beside it.
    pub fn set_urgent_in_line(&self, is_in_line: bool) {
        // Relaxed: an option.
        self.record
            .get()
            .urgent_in_line
            .store(u32::from(is_in_line), Ordering::Relaxed);
    }

    /// Whether an urgent byte waits (`POLLPRI`).
    #[inline]
    pub(super) fn has_urgent(&self) -> bool {
        let r = self.record.get();
        // Relaxed: an answer of a moment.
        r.urgent_state.load(Ordering::Relaxed) == MARKED
            && r.rcv_end.load(Ordering::Relaxed) > r.urgent_at.load(Ordering::Relaxed)
    }

    /// Bytes the program can read before it meets the mark (`FIONREAD`).
    #[must_use]
    pub fn inquired_bytes(&self) -> usize {
        let bytes = self.readable_bytes();
        let r = self.record.get();
        match self.mark() {
            Some(at) if !self.is_in_line() => {
                // Relaxed: as in `is_at_mark`.
                let before = at.checked_sub(r.rcv_next.load(Ordering::Relaxed));
                before.map_or(bytes, |n| {
                    usize::try_from(n).unwrap_or(usize::MAX).min(bytes)
                })
            }
            _ => bytes,
        }
    }

    /// 1 if the next byte of the stream is one that a receive passes over.
    #[inline]
    pub(super) fn passed_over(&self) -> usize {
        usize::from(self.is_marked() && self.is_at_mark() && !self.is_in_line())
    }

    /// Whether there is a mark at all: the one look that a stream without urgent data costs.
    #[inline]
    pub(super) fn is_marked(&self) -> bool {
        // Relaxed: exact under the receive token.
        self.record.get().urgent_state.load(Ordering::Relaxed) != NONE
    }

    /// Takes the urgent byte for `MSG_OOB`: 1, or 0 without room for it.
    ///
    /// # Errors
    /// `EINVAL`: there is none, it was taken, or it is in the stream. `EAGAIN`: it is not here yet. `ENOTCONN` after a reset.
    pub(super) fn recv_urgent(&self, iov: &[libc::iovec], flags: i32) -> Result<usize, Errno> {
        let token = &self.record.get().recv_token;
        match token.take(&*self.provider) {
            Ok(Taken::Clean) => {}
            Ok(Taken::Abandoned) => self.repair_recv(),
            Err(_) => return Err(libc::EAGAIN),
        }
        self.parse(true);
        let result = self.take_urgent(IoCursor::new(iov), flags);
        if token.release() {
            self.with_recv(|conn| conn.parse(false));
        } else {
            self.kick_send();
        }
        result
    }

    fn take_urgent(&self, mut cursor: IoCursor<'_>, flags: i32) -> Result<usize, Errno> {
        let r = self.record.get();
        // Relaxed throughout: own numbers, under the receive token.
        if self.is_in_line() || r.urgent_state.load(Ordering::Relaxed) != MARKED {
            return Err(libc::EINVAL);
        }
        if r.has(flag::RESET) && !r.has(flag::FIN_SEEN) {
            return Err(libc::ENOTCONN);
        }
        if !self.has_urgent() {
            return Err(libc::EAGAIN);
        }
        let room = cursor.left().min(1);
        if flags & libc::MSG_TRUNC == 0 {
            cursor.limit(room);
            let ahead = r
                .urgent_at
                .load(Ordering::Relaxed)
                .saturating_sub(r.rcv_next.load(Ordering::Relaxed));
            self.deliver(cursor, libc::MSG_PEEK, ahead);
        }
        if flags & libc::MSG_PEEK == 0 {
            r.urgent_state.store(TAKEN, Ordering::Relaxed);
        }
        Ok(room)
    }

    /// Notes that the byte at `at` of the stream is urgent, before it counts as here. Under the receive token.
    pub(super) fn note_urgent(&self, at: u64) {
        let r = self.record.get();
        // Relaxed throughout: own numbers.
        let next = r.rcv_next.load(Ordering::Relaxed);
        let end = r.rcv_end.load(Ordering::Relaxed);
        let old = self.mark();
        if at < next || at < end || old.is_some_and(|old| at <= old) {
            return;
        }
        if old == Some(next) && !self.is_in_line() && next != end {
            // The byte before, taken or not, would become one of the stream.
            self.step_over(next + 1);
        }
        r.urgent_at.store(at, Ordering::Relaxed);
        r.urgent_state.store(MARKED, Ordering::Relaxed);
        self.announce_urgent();
    }

    /// Receives while there is a mark: ends before it, or passes over it. Under the receive token.
    pub(super) fn deliver_around_mark(&self, mut cursor: IoCursor<'_>, flags: i32) -> usize {
        let r = self.record.get();
        // Relaxed throughout: own numbers.
        let next = r.rcv_next.load(Ordering::Relaxed);
        let Some(at) = self.mark() else {
            return self.deliver(cursor, flags, 0);
        };
        let mut ahead = 0;
        if at > next {
            cursor.limit(usize::try_from(at - next).unwrap_or(usize::MAX));
        } else if at == next && !self.is_in_line() && cursor.left() > 0 {
            ahead = 1;
        }
        let taken = self.deliver(cursor, flags, ahead);
        if r.rcv_next.load(Ordering::Relaxed) > at {
            r.urgent_state.store(NONE, Ordering::Relaxed);
        }
        taken
    }

    /// Offset of the marked byte.
    fn mark(&self) -> Option<u64> {
        let r = self.record.get();
        // Relaxed: exact under the receive token.
        let at = r.urgent_at.load(Ordering::Relaxed);
        self.is_marked().then_some(at)
    }

    fn is_in_line(&self) -> bool {
        // Relaxed: an option.
        self.record.get().urgent_in_line.load(Ordering::Relaxed) != 0
    }
}

impl ConnRecord {
    /// Bytes from `start` of which one message may carry at most `want`: it ends with the urgent byte. Under the send token.
    pub(super) fn up_to_urgent(&self, start: u64, want: u64) -> u64 {
        // Relaxed: the send side's own number.
        let end = self.urgent_end.load(Ordering::Relaxed);
        match end.checked_sub(start) {
            Some(before) if before > 0 => want.min(before),
            _ => want,
        }
    }

    /// Whether a message that ends at `end` ends with the urgent byte.
    pub(super) fn ends_urgently(&self, end: u64) -> bool {
        // Relaxed: as above.
        end != 0 && self.urgent_end.load(Ordering::Relaxed) == end
    }
}
