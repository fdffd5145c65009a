//! The receiving direction: messages -> receive buffers -> program.
//!
//! Place: [`Conn::recv`] is called by the program's thread; `parse` runs under the receive token, from wherever completions are seen.
//! Invariants: a message's head is copied once and checked; what it says of the state is checked against our own counters; anything
//! wrong ends in ABORT and ECONNRESET. Payload stays in its receive buffer until the program has taken all of it; the
//! buffer is posted again then, and at once for messages without payload, so that grants pass even where data waits.
//! `rcv_next` is what the program has taken: one store makes it so.
//! Hot: [`Conn::recv`], `parse`. Edges: `overlapped-done`.
//! Source. Leaves out: MSG_WAITALL's loop, which is the caller's.

use driver::spi::{Link, OVERLAPPED_DONE, OVERLAPPED_FREE};
use driver::wsa::WsaError;
use ring_proto::sync::Ordering;

use super::announce::Tidings;
use super::buffers::IoCursor;
use super::conn::{Conn, HEADER_PAD, slot, sp_buffer};
use super::credit;
use super::message::{Body, HEADER_LEN, MAX_HEAD, Message};
use super::record::{IN_DOUBT, POSTED, POSTING, RECV_SLOTS, flag};
use super::send::data;
use super::start::Role;
use crate::outcome::Errno;
use crate::token::Taken;

/// Polls of the completion queue before a link that has ended is believed to have delivered everything.
const LAST_POLLS: u32 = 64;

/// The peer broke the protocol.
pub(super) struct Refused;

impl Conn {
    /// Receives bytes for the program: those that are here. 0 is the end of the stream.
    ///
    /// `MSG_PEEK` leaves them, `MSG_TRUNC` counts without copying. `MSG_WAITALL` is the caller's loop; [`Self::is_final`] says when
    /// it must not wait any more.
    ///
    /// # Errors
    /// `EAGAIN`: nothing yet. The sticky error, once, after all data. `EINVAL`: no urgent byte for `MSG_OOB`.
    pub fn recv(&self, iov: &[libc::iovec], flags: i32) -> Result<usize, Errno> {
        if flags & libc::MSG_OOB != 0 {
            return self.recv_urgent(iov, flags);
        }
        let cursor = IoCursor::new(iov);
        let token = &self.record.get().recv_token;
        match token.take(&*self.provider) {
            Ok(Taken::Clean) => {}
            Ok(Taken::Abandoned) => self.repair_recv(),
            Err(_) => return Err(libc::EAGAIN),
        }
        let want = cursor.left();
        if self.readable_bytes() < want.max(1) {
            self.parse(true);
            if self.readable_bytes() == 0 && self.needs_settling() {
                self.settle();
            }
        }
        // As the kernel: also a receive of no bytes finds that nothing is there, and so does one that passes over an urgent byte.
        let taken = if self.readable_bytes() == 0 {
            None
        } else if self.is_marked() {
            Some(self.deliver_around_mark(cursor, flags)).filter(|&n| n > 0 || want == 0)
        } else {
            Some(self.deliver(cursor, flags, 0))
        };
        let result = taken.map_or_else(|| self.no_bytes(), Ok);
        if token.release() {
            self.with_recv(|conn| conn.parse(false));
        } else {
            self.kick_send();
        }
        result
    }

    /// Whether a wait for more bytes is in vain: the stream or the connection has ended, or the program shut this direction.
    #[must_use]
    pub fn is_final(&self) -> bool {
        self.record
            .get()
            .has(flag::FIN_SEEN | flag::RESET | flag::READ_SHUT | flag::GONE | flag::CLOSED)
    }

    /// Bytes that are here and not taken.
    #[inline]
    #[must_use]
    pub fn readable_bytes(&self) -> usize {
        let r = self.record.get();
        // Relaxed: exact under the receive token; `rcv_next` first, so that the difference is never negative.
        let next = r.rcv_next.load(Ordering::Relaxed);
        let end = r.rcv_end.load(Ordering::Relaxed);
        usize::try_from(end.saturating_sub(next)).unwrap_or(usize::MAX)
    }

    /// Answer of a receive that finds nothing, in the order of kernel TCP: end of stream, error, shutdown, nothing yet.
    fn no_bytes(&self) -> Result<usize, Errno> {
        let flags = self.record.get().flags();
        if flags & flag::FIN_SEEN != 0 {
            return Ok(0);
        }
        if let Some(error) = self.take_error() {
            return Err(error);
        }
        if flags & (flag::RESET | flag::READ_SHUT | flag::CLOSED) != 0 {
            return Ok(0);
        }
        Err(libc::EAGAIN)
    }

    /// Copies what is here to the program, from `ahead` bytes on, and gives the emptied buffers back. Under the receive token.
    pub(super) fn deliver(&self, mut cursor: IoCursor<'_>, flags: i32, ahead: u64) -> usize {
        let r = self.record.get();
        let total = cursor.left();
        // Relaxed throughout: the receive side's own numbers, under its token.
        let start = r.rcv_next.load(Ordering::Relaxed);
        let mut next = start.saturating_add(ahead);
        let mut entry = r.unread_head.load(Ordering::Relaxed);
        let tail = r.unread_tail.load(Ordering::Relaxed);
        while cursor.left() > 0 && entry != tail {
            let unread = &r.unread[slot(entry)];
            let rest = unread.end.load(Ordering::Relaxed).saturating_sub(next);
            let n = usize::try_from(rest).unwrap_or(0).min(cursor.left());
            let len = unread.len.load(Ordering::Relaxed) as usize;
            let at = self.payload_at(unread.buffer.load(Ordering::Relaxed)) + len
                - usize::try_from(rest).unwrap_or(0).min(len);
            if flags & libc::MSG_TRUNC != 0 {
                cursor.skip(n);
            } else {
                cursor.scatter(&self.buffers, at, n);
            }
            next += n as u64;
            if n as u64 == rest {
                entry = entry.wrapping_add(1);
            }
        }
        // After the messages comes what was read from a dead peer's memory.
        let pulled = r.rcv_end.load(Ordering::Relaxed).saturating_sub(next);
        if cursor.left() > 0 && entry == tail && pulled > 0 {
            let n = usize::try_from(pulled).unwrap_or(0).min(cursor.left());
            let at = next.saturating_sub(r.pull_base.load(Ordering::Relaxed));
            if flags & libc::MSG_TRUNC != 0 {
                cursor.skip(n);
            } else {
                cursor.scatter(&self.ring, data(at), n);
            }
            next += n as u64;
        }
        let taken = total - cursor.left();
        if flags & libc::MSG_PEEK == 0 && next > start {
            self.step_over(next);
        }
        taken
    }

    /// Counts everything before `next` as taken, and gives the emptied buffers back. Under the receive token.
    pub(super) fn step_over(&self, next: u64) {
        // Relaxed: own numbers.
        self.record.get().rcv_next.store(next, Ordering::Relaxed);
        self.head.get().consumed.store(next, Ordering::Relaxed);
        self.drop_read();
    }

    /// Posts the buffers of messages that the program has taken. Under the receive token.
    fn drop_read(&self) {
        let r = self.record.get();
        // Relaxed: own numbers.
        let next = r.rcv_next.load(Ordering::Relaxed);
        let tail = r.unread_tail.load(Ordering::Relaxed);
        let mut head = r.unread_head.load(Ordering::Relaxed);
        while head != tail {
            let unread = &r.unread[slot(head)];
            if unread.end.load(Ordering::Relaxed) > next {
                break;
            }
            let buffer = unread.buffer.load(Ordering::Relaxed);
            head = head.wrapping_add(1);
            r.unread_head.store(head, Ordering::Relaxed);
            self.repost(buffer);
        }
    }

    /// Whether a receive has completed that nobody has looked at.
    #[inline]
    pub(super) fn recv_is_due(&self) -> bool {
        let r = self.record.get();
        let (position, _) = r.recv_position();
        // Relaxed: hints; `parse` looks again.
        if position == r.recv_posted.load(Ordering::Relaxed) {
            return false;
        }
        let buffer = r.order[slot(position)].load(Ordering::Relaxed);
        let overlapped = &r.recv_ov[slot(buffer)];
        overlapped.state.load(Ordering::Relaxed) == OVERLAPPED_DONE
            || overlapped.context.load(Ordering::Relaxed) == IN_DOUBT
    }

    /// Handles the messages that have come, in order. `poll`: take completions off the queue first when none shows. Under the
    /// receive token.
    pub(super) fn parse(&self, poll: bool) {
        let r = self.record.get();
        let mut may_poll = poll;
        loop {
            let (position, bias) = r.recv_position();
            // Relaxed: own numbers.
            if position == r.recv_posted.load(Ordering::Relaxed) {
                return;
            }
            let buffer = r.order[slot(position)].load(Ordering::Relaxed);
            let overlapped = &r.recv_ov[slot(buffer)];
            // EDGE overlapped-done (acquire): bytes, error and the message itself. Released by the provider.
            if overlapped.state.load(Ordering::Acquire) != OVERLAPPED_DONE {
                if self.was_never_posted(position, buffer) {
                    // The count that told the peer of it stays right: the buffer is posted once more, the bias takes one away.
                    r.set_recv_position(position.wrapping_add(1), bias.wrapping_sub(1));
                    self.repost(buffer);
                    continue;
                }
                if !may_poll {
                    return;
                }
                may_poll = false;
                self.poll();
                continue;
            }
            let error = overlapped.error.load(Ordering::Relaxed);
            if error != 0 {
                // It stays: nothing can come after it.
                self.note_failure(error);
                return;
            }
            if r.has(flag::RESET) {
                // Too late: kernel TCP drops it. The buffer stays unposted.
                return;
            }
            let bytes = overlapped.bytes.load(Ordering::Relaxed) as usize;
            match self.handle(position, bias, buffer, bytes) {
                Ok(()) => {}
                Err(Refused) => {
                    self.reset(libc::ECONNRESET, flag::ABORT_WANTED);
                    return;
                }
            }
        }
    }

    /// Handles one message: checks it, draws its conclusions, and moves on by one position.
    fn handle(&self, position: u32, bias: u32, buffer: u32, bytes: usize) -> Result<(), Refused> {
        let r = self.record.get();
        let mut head = [0_u8; MAX_HEAD];
        let at = self.payload_at(buffer) - HEADER_LEN;
        let room = self.numbers.message_max as usize;
        // no bytes would mean "moved", which nobody does to us.
        if bytes == 0 || bytes > room {
            return Err(Refused);
        }
        let copied = self.buffers.read(at, &mut head[..bytes.min(MAX_HEAD)]);
        let message = Message::decode(&head[..copied], bytes).map_err(|_| Refused)?;

        // The message's number on this direction; one more when its forerunner died with its sender.
        let number = position.wrapping_add(bias);
        let bias = match message.sequence.wrapping_sub(low16(number)) {
            0 => bias,
            1 if message.is_resend => bias.wrapping_add(1),
            _ => return Err(Refused),
        };
        let received = position.wrapping_add(bias).wrapping_add(1);
        // Relaxed throughout: the receive side's own numbers; the send side stores `reported` before it posts.
        let negotiated = r.has(flag::HELLO_SEEN);
        if negotiated && credit::is_overrun(r.reported.load(Ordering::Relaxed), received) {
            return Err(Refused);
        }
        let end = r.rcv_end.load(Ordering::Relaxed);
        let pool = match message.body {
            Body::Hello(hello) | Body::HelloAck(hello) => hello.receives,
            _ => r.peer_receives.load(Ordering::Relaxed),
        };
        let granted = credit::accept_grant(
            r.granted.load(Ordering::Relaxed),
            message.credit_total,
            r.posted.load(Ordering::Relaxed),
            pool,
        );
        // A message that was overtaken while it waited for its repetition may grant less than we know.
        let granted = match granted {
            Some(total) => total,
            None if message.is_resend => r.granted.load(Ordering::Relaxed),
            None => return Err(Refused),
        };
        if message.consumed > r.accepted.load(Ordering::Relaxed) {
            return Err(Refused);
        }
        if message.is_resend {
            // The sender's survivors may begin again from here.
            r.repeat_from
                .fetch_min(message.stream_offset, Ordering::Relaxed);
        }
        let in_order = message.stream_offset == end;
        let repeats = r.repeat_from.load(Ordering::Relaxed) <= message.stream_offset;
        let mut keeps_buffer = false;
        match message.body {
            Body::Hello(hello) | Body::HelloAck(hello) => {
                let expected = match self.numbers.role {
                    Role::Active => matches!(message.body, Body::HelloAck(_)),
                    Role::Passive => matches!(message.body, Body::Hello(_)),
                };
                if !expected || message.stream_offset != 0 || (negotiated && !message.is_resend) {
                    return Err(Refused);
                }
                if !negotiated {
                    self.accept_hello(&hello)?;
                }
            }
            _ if !negotiated => return Err(Refused),
            Body::Data { len, is_urgent } => {
                let data_end = message
                    .stream_offset
                    .checked_add(u64::from(len))
                    .ok_or(Refused)?;
                // What repeats is here already, wholly or up to its tail.
                if r.has(flag::FIN_SEEN) || !(in_order || (repeats && message.stream_offset < end))
                {
                    return Err(Refused);
                }
                let both = flag::READ_SHUT | flag::WRITE_SHUT;
                if r.has(flag::CLOSING) || r.flags() & both == both {
                    // As kernel TCP: nobody will ever read it.
                    return Err(Refused);
                }
                if data_end > end {
                    if is_urgent {
                        self.note_urgent(data_end - 1);
                    }
                    self.keep(position, buffer, len, data_end);
                    keeps_buffer = true;
                }
            }
            Body::Credit if in_order || (repeats && message.stream_offset < end) => {}
            Body::Credit => return Err(Refused),
            Body::Fin if r.has(flag::FIN_SEEN) && in_order && repeats => {}
            Body::Fin if !in_order || r.has(flag::FIN_SEEN) => return Err(Refused),
            Body::Fin => {
                r.set(flag::FIN_SEEN);
                r.in_edge.fetch_add(1, Ordering::Relaxed);
                self.announce(Tidings::In);
            }
            Body::Abort { .. } => {
                let error = if r.has(flag::FIN_SEEN) {
                    libc::EPIPE
                } else {
                    libc::ECONNRESET
                };
                self.reset(error, flag::GONE);
            }
        }
        r.granted.store(granted, Ordering::Relaxed);
        r.peer_consumed
            .fetch_max(message.consumed, Ordering::Relaxed);
        r.set_recv_position(position.wrapping_add(1), bias);
        if !keeps_buffer {
            self.repost(buffer);
        }
        Ok(())
    }

    /// Queues a message's payload for the program.
    fn keep(&self, position: u32, buffer: u32, len: u32, end: u64) {
        let r = self.record.get();
        // Relaxed: own numbers; readers without the token only estimate.
        let tail = r.unread_tail.load(Ordering::Relaxed);
        let unread = &r.unread[slot(tail)];
        unread.end.store(end, Ordering::Relaxed);
        unread.len.store(len, Ordering::Relaxed);
        unread.buffer.store(buffer, Ordering::Relaxed);
        unread.position.store(position, Ordering::Relaxed);
        // Release: a process that finds the entry finds all of it.
        r.unread_tail.store(tail.wrapping_add(1), Ordering::Release);
        r.rcv_end.store(end, Ordering::Relaxed);
        r.in_edge.fetch_add(1, Ordering::Relaxed);
        self.announce(Tidings::In);
    }

    /// Posts a receive buffer. Under the receive token.
    fn repost(&self, buffer: u32) {
        let r = self.record.get();
        // Relaxed: own numbers; the provider's doorbell publishes what the NIC reads.
        let posted = r.recv_posted.load(Ordering::Relaxed);
        let overlapped = &r.recv_ov[slot(buffer)];
        overlapped.error.store(0, Ordering::Relaxed);
        overlapped.context.store(POSTING, Ordering::Relaxed);
        overlapped.state.store(OVERLAPPED_FREE, Ordering::Relaxed);
        r.order[slot(posted)].store(buffer, Ordering::Relaxed);
        // Release: a process that finds the count finds the order.
        r.recv_posted
            .store(posted.wrapping_add(1), Ordering::Release);
        let at = self.payload_at(buffer) - HEADER_LEN;
        let target = sp_buffer(
            self.buffers.at(at),
            self.numbers.message_max,
            Some(self.numbers.recv_handle),
        );
        match self
            .provider
            .sp
            .wsp_recv(self.sp, &[target], overlapped, false)
        {
            Ok(()) | Err(WsaError::IoPending) => {
                overlapped.context.store(POSTED, Ordering::Relaxed);
            }
            Err(error) => {
                overlapped.context.store(0, Ordering::Relaxed);
                r.recv_posted.store(posted, Ordering::Relaxed);
                self.note_failure(error.code());
            }
        }
    }

    /// Whether the receive at `position` never reached the NIC: its poster died, and a later one is done (receives complete in order).
    fn was_never_posted(&self, position: u32, buffer: u32) -> bool {
        let r = self.record.get();
        // Relaxed: own numbers.
        if r.recv_ov[slot(buffer)].context.load(Ordering::Relaxed) != IN_DOUBT {
            return false;
        }
        let posted = r.recv_posted.load(Ordering::Relaxed);
        let mut later = position.wrapping_add(1);
        while later != posted {
            let buffer = r.order[slot(later)].load(Ordering::Relaxed);
            // EDGE overlapped-done (acquire): as in `parse`.
            if r.recv_ov[slot(buffer)].state.load(Ordering::Acquire) == OVERLAPPED_DONE {
                return true;
            }
            later = later.wrapping_add(1);
        }
        false
    }

    /// Posts every buffer that is neither posted nor unread. Under the receive token.
    pub(super) fn post_missing(&self) {
        let r = self.record.get();
        let mut used = [false; RECV_SLOTS as usize];
        // Relaxed: own numbers.
        let (mut position, _) = r.recv_position();
        let posted = r.recv_posted.load(Ordering::Relaxed);
        while position != posted {
            used[slot(r.order[slot(position)].load(Ordering::Relaxed))] = true;
            position = position.wrapping_add(1);
        }
        let mut entry = r.unread_head.load(Ordering::Relaxed);
        let tail = r.unread_tail.load(Ordering::Relaxed);
        while entry != tail {
            used[slot(r.unread[slot(entry)].buffer.load(Ordering::Relaxed))] = true;
            entry = entry.wrapping_add(1);
        }
        for buffer in 0..self.numbers.receives {
            if !used[slot(buffer)] {
                self.repost(buffer);
            }
        }
    }

    /// Repairs the receive side after its holder died. Under the receive token.
    pub(super) fn repair_recv(&self) {
        let r = self.record.get();
        // Relaxed: the token's acquire ordered everything the dead holder stored.
        let (position, bias) = r.recv_position();
        let head = r.unread_head.load(Ordering::Relaxed);
        let tail = r.unread_tail.load(Ordering::Relaxed);
        if head != tail {
            let last = &r.unread[slot(tail.wrapping_sub(1))];
            if last.position.load(Ordering::Relaxed) == position {
                // Queued, but not counted.
                r.rcv_end
                    .store(last.end.load(Ordering::Relaxed), Ordering::Relaxed);
                r.set_recv_position(position.wrapping_add(1), bias);
            }
        }
        let posted = r.recv_posted.load(Ordering::Relaxed);
        if posted != r.recv_position().0 {
            let last = posted.wrapping_sub(1);
            let overlapped = &r.recv_ov[slot(r.order[slot(last)].load(Ordering::Relaxed))];
            if overlapped.context.load(Ordering::Relaxed) == POSTING {
                match overlapped.state.load(Ordering::Acquire) {
                    OVERLAPPED_FREE => {
                        overlapped.context.store(0, Ordering::Relaxed);
                        r.recv_posted.store(last, Ordering::Relaxed);
                    }
                    OVERLAPPED_DONE => overlapped.context.store(POSTED, Ordering::Relaxed),
                    _ => overlapped.context.store(IN_DOUBT, Ordering::Relaxed),
                }
            }
        }
        self.head
            .get()
            .consumed
            .store(r.rcv_next.load(Ordering::Relaxed), Ordering::Relaxed);
        self.drop_read();
        if !r.has(flag::RESET) {
            self.post_missing();
        }
    }

    /// Looks at the link and at failed operations, after `parse`. Under the receive token.
    pub(super) fn settle(&self) {
        let r = self.record.get();
        if r.has(flag::GONE | flag::CLOSED) {
            return;
        }
        let failure = self.failure();
        if failure.is_some() {
            // The event that says why may just be coming.
            self.provider.waiting.progress();
        }
        match (self.provider.waiting.link(self.sp), failure) {
            (Link::Orphaned, _) => self.pull(),
            (Link::Ended(code), _) | (_, Some(code)) => self.ended(code),
            (Link::Up | Link::Down, None) => {}
        }
    }

    /// Draws the conclusion of a link that has ended: everything that came is handed over first.
    pub(super) fn ended(&self, code: WsaError) {
        let r = self.record.get();
        self.parse_rest();
        self.provider.note(code);
        if r.has(flag::RESET) {
            r.set(flag::GONE);
            self.wake_local();
            return;
        }
        if r.has(flag::FIN_SEEN) {
            // The peer had finished. What it did not take of ours is lost, as with kernel TCP in state CLOSE_WAIT.
            if self.everything_arrived() {
                r.set(flag::GONE);
                self.edges();
                self.wake_local();
            } else {
                self.reset(libc::EPIPE, flag::GONE);
            }
            return;
        }
        let error = if code == WsaError::NetReset {
            libc::ETIMEDOUT
        } else {
            libc::ECONNRESET
        };
        self.reset(error, flag::GONE);
    }

    /// Takes every completion there is and handles the messages.
    pub(super) fn parse_rest(&self) {
        for _ in 0..LAST_POLLS {
            self.poll();
            if !self.recv_is_due() {
                return;
            }
            let before = self.record.get().recv_position();
            self.parse(false);
            if before == self.record.get().recv_position() {
                return;
            }
        }
    }

    /// Whether all that was accepted, and FIN if the program asked for it, lies in the peer's receives.
    fn everything_arrived(&self) -> bool {
        if let Some(taken) = self.record.get().send_token.try_take(&*self.provider) {
            if taken == Taken::Abandoned {
                self.repair_send();
            }
            self.reap();
            if self.record.get().send_token.release() {
                self.with_send(Self::pump);
            }
        }
        self.unsent_bytes() == 0 && !self.fin_is_pending()
    }

    /// Offset of a buffer's payload.
    fn payload_at(&self, buffer: u32) -> usize {
        (buffer * self.numbers.recv_stride + HEADER_PAD) as usize + HEADER_LEN
    }
}

/// The low 16 bits.
const fn low16(number: u32) -> u16 {
    #[expect(clippy::cast_possible_truncation, reason = "modulo 2^16 by definition")]
    let low = number as u16;
    low
}
