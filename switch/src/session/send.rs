//! The sending direction: program -> send ring -> messages.
//!
//! Place: [`Conn::send`] is called by the program's thread; `pump` runs under the send token, from wherever credits or room appear.
//! Invariants: a byte lies in the ring before `accepted` covers it, and stays until its SEND has completed; a message is posted only
//! with the credits it needs and a free completion slot; message n uses slot n modulo the slots. What was posted is
//! one counter, so a process killed in `post` leaves at most one message in doubt, which is repeated with a flag.
//! Hot: [`Conn::send`], `pump`, `post`. Edges: `overlapped-done`, `ring-accepted`.
//! Source. Leaves out: RDMA, coalescing while credits last.

use driver::spi::{OVERLAPPED_DONE, OVERLAPPED_FREE, OVERLAPPED_PENDING, Overlapped, SpBuffer};
use driver::wsa::WsaError;
use ring_proto::sync::Ordering;

use super::announce::Tidings;
use super::buffers::IoCursor;
use super::conn::{Conn, sp_buffer};
use super::credit::{self, Spend};
use super::message::{
    FLAG_RESEND, FLAG_URGENT, HEADER_LEN, HELLO_LEN, Header, Hello, PLACE_INLINE, abort, kind,
};
use super::record::{IN_DOUBT, POSTED, POSTING, flag};
use super::ring::{HEADER_BYTES, SLOT_BYTES, SLOTS_OFFSET, SendRing};
use super::start::Role;
use crate::outcome::Errno;
use crate::token::Taken;

/// Messages up to this many bytes travel inside the work queue element: one buffer without a registration.
const INLINE_MAX: usize = 224;
/// Bytes copied before the first of them are sent: the NIC works while we copy on.
const COPY_CHUNK: u64 = 64 * 1024;

/// A message to be posted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Out {
    /// HELLO or HELLO_ACK, by role.
    Hello,
    /// Stream bytes.
    Data,
    /// Credits.
    Credit,
    /// End of stream.
    Fin,
    /// End of the connection.
    Abort,
}

impl Conn {
    /// Sends bytes of the program: copies as many into the ring as there is room for, and posts as many as credits allow.
    ///
    /// # Errors
    /// `EAGAIN`: no room. The sticky error, once; `EPIPE` after a shutdown or a reset (the caller raises SIGPIPE).
    pub fn send(&self, iov: &[libc::iovec], flags: i32) -> Result<usize, Errno> {
        self.check_send()?;
        let token = &self.record.get().send_token;
        match token.take(&*self.provider) {
            Ok(Taken::Clean) => {}
            Ok(Taken::Abandoned) => self.repair_send(),
            Err(_) => return Err(libc::EAGAIN),
        }
        // Looked at again: the flags may have changed while we waited, and under the token they decide.
        let result = self.check_send().and_then(|()| self.accept(iov, flags));
        if token.release() {
            self.with_send(Self::pump);
        }
        result
    }

    /// Bytes accepted from the program whose SEND has not completed (`SIOCOUTQ`).
    #[must_use]
    pub fn unsent_bytes(&self) -> usize {
        let r = self.record.get();
        // Relaxed: an estimate, as for the kernel's caller.
        let accepted = r.accepted.load(Ordering::Relaxed);
        let freed = r.freed.load(Ordering::Relaxed).min(accepted);
        usize::try_from(accepted - freed).unwrap_or(usize::MAX)
    }

    /// Bytes that the program can send now.
    ///
    /// # Errors
    /// As of [`Self::send`].
    pub fn send_room(&self) -> Result<usize, Errno> {
        self.check_send()?;
        // Relaxed: a limit.
        let limit = self.record.get().send_limit.load(Ordering::Relaxed);
        Ok(usize::try_from(self.send_ring().room(limit)).unwrap_or(usize::MAX))
    }

    /// Bytes accepted from the program that were not given to the NIC (`SIOCOUTQNSD`).
    #[must_use]
    pub fn unposted_bytes(&self) -> usize {
        // Relaxed: an estimate.
        let accepted = self.record.get().accepted.load(Ordering::Relaxed);
        usize::try_from(accepted.saturating_sub(self.sent_offset())).unwrap_or(usize::MAX)
    }

    /// Whether the program may send.
    fn check_send(&self) -> Result<(), Errno> {
        let flags = self.record.get().flags();
        if flags == flag::ESTABLISHED | flag::HELLO_SEEN {
            return Ok(());
        }
        let closed = flag::WRITE_SHUT | flag::RESET | flag::GONE | flag::ORPHANED | flag::CLOSED;
        if flags & closed != 0 {
            Err(self.take_error().unwrap_or(libc::EPIPE))
        } else if flags & flag::ESTABLISHED == 0 {
            Err(libc::EAGAIN)
        } else {
            Ok(())
        }
    }

    /// Copies into the ring and posts. Under the send token.
    fn accept(&self, iov: &[libc::iovec], flags: i32) -> Result<usize, Errno> {
        let r = self.record.get();
        let mut cursor = IoCursor::new(iov);
        let total = cursor.left();
        if total == 0 {
            return Ok(0);
        }
        self.reap();
        self.hold(flags & libc::MSG_MORE != 0);
        // Relaxed throughout: the send side's own numbers, under its token.
        let limit = r.send_limit.load(Ordering::Relaxed);
        let mut polled = false;
        while cursor.left() > 0 {
            let mut ring = self.send_ring();
            if ring.restart_if_empty() {
                // The run lies in the head before `accepted` covers a byte of it.
                let head = self.head.get();
                r.run_stream.store(ring.run_stream, Ordering::Relaxed);
                r.run_ring.store(ring.run_ring, Ordering::Relaxed);
                head.run_stream.store(ring.run_stream, Ordering::Relaxed);
                head.run_ring.store(ring.run_ring, Ordering::Relaxed);
            }
            let room = ring.room(limit).min(COPY_CHUNK);
            if room == 0 {
                if polled {
                    break;
                }
                polled = true;
                self.poll();
                self.reap();
                self.pump();
                continue;
            }
            let span = ring.span(ring.accepted, room.min(cursor.left() as u64));
            let copied = cursor.gather(&self.ring, data(span.offset), data_len(span.len));
            let accepted = ring.accepted.wrapping_add(copied as u64);
            if flags & libc::MSG_OOB != 0 && cursor.left() == 0 {
                // The mark is there before its byte can leave.
                r.urgent_end.store(accepted, Ordering::Relaxed);
            }
            r.accepted.store(accepted, Ordering::Relaxed);
            // EDGE ring-accepted (release): the bytes and the run. Acquired by the peer's RDMA READ after this process's death, in
            // `orphan::pull` on the other node.
            self.head.get().accepted.store(accepted, Ordering::Release);
            self.pump();
        }
        let taken = total - cursor.left();
        if cursor.left() > 0 {
            // A wait follows: the next room is an edge (kernel: SOCK_NOSPACE).
            r.set(flag::NO_SPACE);
            if self.is_writable() && r.take_no_space() {
                r.out_edge.fetch_add(1, Ordering::Relaxed);
            }
        }
        if taken == 0 {
            return Err(libc::EAGAIN);
        }
        Ok(taken)
    }

    /// The ring's positions.
    pub(super) fn send_ring(&self) -> SendRing {
        let r = self.record.get();
        // Relaxed: exact under the send token, an estimate without.
        let accepted = r.accepted.load(Ordering::Relaxed);
        SendRing {
            len: self.numbers.ring_len,
            run_stream: r.run_stream.load(Ordering::Relaxed),
            run_ring: r.run_ring.load(Ordering::Relaxed),
            freed: r.freed.load(Ordering::Relaxed).min(accepted),
            accepted,
        }
    }

    /// Stream offset after the last message posted; one beyond `accepted` once FIN was.
    pub(super) fn sent_offset(&self) -> u64 {
        let r = self.record.get();
        // Relaxed: exact under the send token.
        let posted = r.posted.load(Ordering::Relaxed);
        if posted == 0 {
            0
        } else {
            r.send_end[self.send_slot(posted.wrapping_sub(1))].load(Ordering::Relaxed)
        }
    }

    /// Whether stream bytes, or FIN, have not been given to the NIC yet.
    pub(super) fn has_unposted(&self, flags: u32) -> bool {
        // Relaxed: FIN's offset lies one beyond `accepted`.
        let accepted = self.record.get().accepted.load(Ordering::Relaxed);
        let fin = u64::from(flags & flag::WRITE_SHUT != 0);
        self.sent_offset() < accepted.wrapping_add(fin)
    }

    /// Whether FIN was asked for and has not arrived at the peer's receives.
    pub(super) fn fin_is_pending(&self) -> bool {
        let r = self.record.get();
        r.has(flag::WRITE_SHUT) && !self.fin_is_done()
    }

    /// Whether FIN, and all before it, lies in the peer's receives.
    pub(super) fn fin_is_done(&self) -> bool {
        let r = self.record.get();
        // Relaxed: `freed` exceeds `accepted` only by FIN's own offset.
        r.freed.load(Ordering::Relaxed) > r.accepted.load(Ordering::Relaxed)
    }

    /// Whether [`Self::pump`] has something to do.
    pub(super) fn send_is_due(&self) -> bool {
        let r = self.record.get();
        // Relaxed: hints; exact under the token.
        let reaped = r.reaped.load(Ordering::Relaxed);
        if reaped != r.posted.load(Ordering::Relaxed)
            && r.send_ov[self.send_slot(reaped)]
                .state
                .load(Ordering::Relaxed)
                != OVERLAPPED_PENDING
        {
            return true;
        }
        self.due().is_some()
    }

    /// The next message that should go out, if its credits are there.
    pub(super) fn due(&self) -> Option<Out> {
        let r = self.record.get();
        let flags = r.flags();
        if flags & (flag::GONE | flag::CLOSED | flag::ORPHANED) != 0 {
            return None;
        }
        // Relaxed: exact under the send token, a hint without.
        let posted = r.posted.load(Ordering::Relaxed);
        let resend = r.resend.load(Ordering::Relaxed) != 0;
        if posted == 0 || (resend && flags & flag::ESTABLISHED == 0) {
            // HELLO needs no credit, the provider holds it for the peer.
            let may = self.numbers.role == Role::Active || flags & flag::HELLO_SEEN != 0;
            return (may && flags & flag::RESET == 0).then_some(Out::Hello);
        }
        let credits = credit::available(r.granted.load(Ordering::Relaxed), posted);
        if flags & flag::ABORT_WANTED != 0 {
            let may = flags & flag::ABORT_SENT == 0 && credits >= Spend::Control.needs();
            return may.then_some(Out::Abort);
        }
        if flags & flag::RESET != 0 || flags & flag::ESTABLISHED == 0 {
            return None;
        }
        let accepted = r.accepted.load(Ordering::Relaxed);
        let sent = self.sent_offset();
        if sent < accepted
            && credits >= Spend::Data.needs()
            && !self.is_held(accepted.wrapping_sub(sent))
        {
            return Some(Out::Data);
        }
        if sent == accepted && flags & flag::WRITE_SHUT != 0 && credits >= Spend::Fin.needs() {
            return Some(Out::Fin);
        }
        let owes = credit::owes_report(
            r.credit_total(),
            r.reported.load(Ordering::Relaxed),
            self.numbers.receives,
        );
        ((owes || resend) && credits >= Spend::Control.needs()).then_some(Out::Credit)
    }

    /// Takes completions and posts everything that is due. Under the send token.
    pub(super) fn pump(&self) {
        let r = self.record.get();
        self.reap();
        if r.has(flag::WRITE_SHUT) {
            // Relaxed: nothing is accepted any more, so the head's `accepted` is final already.
            self.head.get().fin.store(1, Ordering::Relaxed);
        }
        let mut polled = false;
        loop {
            let Some(out) = self.due() else {
                // Credits may lie in messages nobody has looked at.
                if polled || self.sent_offset() >= r.accepted.load(Ordering::Relaxed) {
                    return;
                }
                polled = true;
                self.poll();
                self.try_parse();
                continue;
            };
            // Relaxed: own numbers.
            let outstanding = r
                .posted
                .load(Ordering::Relaxed)
                .wrapping_sub(r.reaped.load(Ordering::Relaxed));
            if outstanding >= self.numbers.send_slots {
                if polled {
                    return;
                }
                polled = true;
                self.poll();
                self.reap();
                continue;
            }
            if !self.post(out) {
                return;
            }
        }
    }

    /// Handles what the peer sent, if nobody else is doing so: the holder of the send token never waits for the other one.
    fn try_parse(&self) {
        if !self.recv_is_due() {
            return;
        }
        let token = &self.record.get().recv_token;
        loop {
            match token.try_take(&*self.provider) {
                Some(Taken::Clean) => {}
                Some(Taken::Abandoned) => self.repair_recv(),
                // Its holder asks us to look again when it has found credits (`kick_send`).
                None => return,
            }
            self.parse(false);
            if !token.release() {
                return;
            }
        }
    }

    /// Frees what completed sends held. Under the send token.
    pub(super) fn reap(&self) {
        let r = self.record.get();
        // Relaxed: own numbers.
        let posted = r.posted.load(Ordering::Relaxed);
        let mut reaped = r.reaped.load(Ordering::Relaxed);
        let first = reaped;
        while reaped != posted {
            let slot = self.send_slot(reaped);
            let overlapped = &r.send_ov[slot];
            // EDGE overlapped-done (acquire): error and bytes of the operation. Released by the provider.
            match overlapped.state.load(Ordering::Acquire) {
                OVERLAPPED_DONE => {
                    let error = overlapped.error.load(Ordering::Relaxed);
                    if error != 0 {
                        // It stays as it is: nothing after it can have arrived.
                        self.note_failure(error);
                        break;
                    }
                }
                // A process died after it had taken this completion and before it had counted it.
                OVERLAPPED_FREE => {}
                _ if self.never_left(reaped, posted) => {}
                _ => break,
            }
            let end = r.send_end[slot].load(Ordering::Relaxed);
            overlapped.context.store(0, Ordering::Relaxed);
            overlapped.state.store(OVERLAPPED_FREE, Ordering::Relaxed);
            r.freed.store(end, Ordering::Relaxed);
            reaped = reaped.wrapping_add(1);
            r.reaped.store(reaped, Ordering::Relaxed);
        }
        if reaped != first && r.has(flag::NO_SPACE) && self.is_writable() && r.take_no_space() {
            r.out_edge.fetch_add(1, Ordering::Relaxed);
            self.announce(Tidings::Out);
        }
    }

    /// Whether the message in doubt never reached the NIC: sends complete in order, and a later one is done.
    fn never_left(&self, message: u32, posted: u32) -> bool {
        let r = self.record.get();
        if r.send_ov[self.send_slot(message)]
            .context
            .load(Ordering::Relaxed)
            != IN_DOUBT
        {
            return false;
        }
        let mut later = message.wrapping_add(1);
        while later != posted {
            // EDGE overlapped-done (acquire): as in `reap`.
            if r.send_ov[self.send_slot(later)]
                .state
                .load(Ordering::Acquire)
                == OVERLAPPED_DONE
            {
                return true;
            }
            later = later.wrapping_add(1);
        }
        false
    }

    /// Posts one message; false when it must wait or failed. Under the send token, with a free slot and the credits.
    fn post(&self, out: Out) -> bool {
        let r = self.record.get();
        // Relaxed: own numbers; the provider's doorbell publishes what the NIC reads.
        let number = r.posted.load(Ordering::Relaxed);
        let slot = self.send_slot(number);
        let accepted = r.accepted.load(Ordering::Relaxed);
        let start = self.sent_offset();
        let (kind, span, end) = match out {
            Out::Hello if self.numbers.role == Role::Active => (kind::HELLO, None, 0),
            Out::Hello => (kind::HELLO_ACK, None, 0),
            Out::Data => {
                let max = u64::from(r.payload_max.load(Ordering::Relaxed));
                let want = r.up_to_urgent(start, accepted.wrapping_sub(start).min(max));
                let span = self.send_ring().span(start, want);
                (kind::DATA, Some(span), start.wrapping_add(span.len))
            }
            Out::Credit => (kind::CREDIT, None, start),
            Out::Fin => (kind::FIN, None, accepted.wrapping_add(1)),
            Out::Abort => (kind::ABORT, None, start),
        };
        let payload = span.map_or(0, |s| s.len);
        let urgent = match out {
            Out::Data if r.ends_urgently(end) => FLAG_URGENT,
            _ => 0,
        };
        #[expect(
            clippy::cast_possible_truncation,
            reason = "payload is at most PAYLOAD_MAX; the sequence is modulo 2^16 by definition"
        )]
        let header = Header {
            kind,
            flags: if r.resend.load(Ordering::Relaxed) == 0 {
                urgent
            } else {
                urgent | FLAG_RESEND
            },
            sequence: number as u16,
            payload_len: if out == Out::Hello {
                Hello::PAYLOAD_LEN
            } else {
                payload as u32
            },
            stream_offset: start.min(accepted),
            consumed: r.rcv_next.load(Ordering::Relaxed),
            credit_total: r.credit_total(),
            place: match out {
                Out::Abort if r.has(flag::CLOSING) => abort::CLOSED,
                Out::Abort => abort::PROTOCOL,
                _ => PLACE_INLINE,
            },
        };

        let overlapped = &r.send_ov[slot];
        r.send_end[slot].store(end, Ordering::Relaxed);
        r.send_info[slot].store(u64::from(kind) << 32 | payload, Ordering::Relaxed);
        overlapped.error.store(0, Ordering::Relaxed);
        overlapped.context.store(POSTING, Ordering::Relaxed);
        overlapped.state.store(OVERLAPPED_FREE, Ordering::Relaxed);
        let reported_before = r.reported.load(Ordering::Relaxed);
        r.reported.store(header.credit_total, Ordering::Relaxed);
        // Release: a process that finds the count finds the slot's description.
        r.posted.store(number.wrapping_add(1), Ordering::Release);
        match self.hand_over(&header, out, span, slot, overlapped) {
            // anything but "pending" and success means "not started".
            Ok(()) | Err(WsaError::IoPending) => {
                r.resend.store(0, Ordering::Relaxed);
                self.posted(slot);
                true
            }
            Err(error) => {
                overlapped.context.store(0, Ordering::Relaxed);
                r.reported.store(reported_before, Ordering::Relaxed);
                r.posted.store(number, Ordering::Relaxed);
                // a full queue is tried again after a completion.
                if error != WsaError::NoBufs {
                    self.note_failure(error.code());
                }
                false
            }
        }
    }

    /// Draws the conclusions from a message that the provider has taken.
    fn posted(&self, slot: usize) {
        let r = self.record.get();
        // Relaxed: own numbers.
        match u8::try_from(r.send_info[slot].load(Ordering::Relaxed) >> 32) {
            Ok(kind::HELLO_ACK) => self.establish(),
            Ok(kind::ABORT) => {
                r.set(flag::ABORT_SENT);
            }
            _ => {}
        }
        r.send_ov[slot].context.store(POSTED, Ordering::Relaxed);
    }

    /// Gives a message to the provider: one inline buffer when it is small, else header slot and ring bytes.
    fn hand_over(
        &self,
        header: &Header,
        out: Out,
        span: Option<super::ring::Span>,
        slot: usize,
        overlapped: &Overlapped,
    ) -> Result<(), WsaError> {
        let send = |buffers: &[SpBuffer]| {
            self.provider
                .sp
                .wsp_send(self.sp, buffers, overlapped, false)
        };
        let mut small = [0_u8; INLINE_MAX];
        let len = match (out, span) {
            (Out::Hello, _) => {
                small[..HELLO_LEN].copy_from_slice(&self.own_hello().encode(header));
                HELLO_LEN
            }
            (_, None) => {
                small[..HEADER_LEN].copy_from_slice(&header.encode());
                HEADER_LEN
            }
            (_, Some(span)) if data_len(span.len) <= INLINE_MAX - HEADER_LEN => {
                let end = HEADER_LEN + data_len(span.len);
                small[..HEADER_LEN].copy_from_slice(&header.encode());
                self.ring
                    .read(data(span.offset), &mut small[HEADER_LEN..end]);
                end
            }
            (_, Some(span)) => {
                let slot_at = data_len(SLOTS_OFFSET) + slot * data_len(SLOT_BYTES);
                self.ring.write(slot_at, &header.encode());
                let handle = Some(self.numbers.ring_handle);
                #[expect(clippy::cast_possible_truncation, reason = "32")]
                let header_len = HEADER_LEN as u32;
                return send(&[
                    sp_buffer(self.ring.at(slot_at), header_len, handle),
                    sp_buffer(self.ring.at(data(span.offset)), header.payload_len, handle),
                ]);
            }
        };
        #[expect(clippy::cast_possible_truncation, reason = "at most 224")]
        let len = len as u32;
        send(&[sp_buffer(
            core::ptr::NonNull::from(&mut small).cast(),
            len,
            None,
        )])
    }

    /// Repairs the send side after its holder died: the last message may be in doubt. Under the send token.
    pub(super) fn repair_send(&self) {
        let r = self.record.get();
        // Relaxed: the token's acquire ordered everything the dead holder stored.
        let posted = r.posted.load(Ordering::Relaxed);
        if posted == r.reaped.load(Ordering::Relaxed) {
            return;
        }
        let last = posted.wrapping_sub(1);
        let slot = self.send_slot(last);
        let overlapped = &r.send_ov[slot];
        if overlapped.context.load(Ordering::Relaxed) != POSTING {
            return;
        }
        // the provider marks the slot before the NIC can see the operation.
        match overlapped.state.load(Ordering::Acquire) {
            OVERLAPPED_FREE => {
                overlapped.context.store(0, Ordering::Relaxed);
                // The grant in it counts as told: `resend` makes sure that it will be.
                r.resend.store(1, Ordering::Relaxed);
                r.posted.store(last, Ordering::Relaxed);
            }
            OVERLAPPED_DONE => self.posted(slot),
            _ => {
                overlapped.context.store(IN_DOUBT, Ordering::Relaxed);
                let info = r.send_info[slot].load(Ordering::Relaxed);
                let end = r.send_end[slot].load(Ordering::Relaxed);
                let back = match u8::try_from(info >> 32) {
                    Ok(kind::DATA) => info & 0xffff_ffff,
                    Ok(kind::FIN) => 1,
                    _ => 0,
                };
                // The bytes count as unsent again; the receiver drops what it has.
                r.send_end[slot].store(end.wrapping_sub(back), Ordering::Relaxed);
                r.resend.store(1, Ordering::Relaxed);
            }
        }
    }

    /// Slot of a message.
    pub(super) const fn send_slot(&self, message: u32) -> usize {
        (message % self.numbers.send_slots) as usize
    }
}

/// Offset in the ring's memory of an offset in its data part.
pub(super) fn data(offset: u64) -> usize {
    data_len(HEADER_BYTES + offset)
}

/// A length inside the ring, which is mapped and so fits `usize`.
pub(super) fn data_len(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}
