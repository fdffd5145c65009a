//! Sending, receiving and completing: the data path of a companion socket.
//!
//! Place: `wsp_send`, `wsp_recv`, `wsp_get_overlapped_result`; `rdma` posts through here as well.
//! Invariants: a slot is PENDING before the NIC sees the operation and DONE last of all. One store commits an operation
//! to the record before its doorbell; who finds a token abandoned rings again. A completion is filed first and its CQE consumed
//! afterwards, and filing twice is harmless, so a process killed in between costs nothing. Every CQE is filed under the poll token.
//! Upcalls are made without token and lock.
//! Hot: everything here but `abort_all`. Edges: `op-commit`, `slot-done`.
//! Source.

use ring_proto::regs::MESSAGE_LIMIT;
use ring_proto::status::{Opcode, Syndrome, WcStatus};
use ring_proto::sync::{AtomicU64, Ordering};
use ring_proto::wqe::{MAX_INLINE, MAX_RECV_SGES, Sge, WqeFlags};

use super::Core;
use super::memory::Resolved;
use super::socket::{CLOSING, FREE, Sock};
use crate::arena;
use crate::cq::{self, Wc};
use crate::function::{Function, high, low};
use crate::lock::{Taken, Token};
use crate::record::{OPERATION_BUFFERS, Operation, RECV_DEPTH, RECV_PLACES, SEND_DEPTH};
use crate::rq;
use crate::spi::{
    MEM_READ, MEM_WRITE, OVERLAPPED_DONE, OVERLAPPED_PENDING, Overlapped, SpBuffer, SpSocket,
    Transfer,
};
use crate::sq::{self, Encoded, Payload, SendWr};
use crate::wsa::WsaError;

/// `wr_id` bit of receives; the low half is the sequence number.
const RECEIVE: u64 = 1 << 63;
/// Sends up to this size travel in the WQE even when their memory is registered: a third WQE block costs as much as the copy saves.
const INLINE_WISH: u32 = 96;
/// Upcalls collected before the poll token is given back.
const NOTICES: usize = 32;

/// An operation that must be reported by upcall.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Notice {
    overlapped: u64,
    error: u32,
    bytes: u32,
}

/// What a send-side operation is, apart from its local buffers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) opcode: Opcode,
    pub(crate) remote_addr: u64,
    pub(crate) rkey: u32,
}

/// Buffers of one operation, resolved.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gathered {
    sges: [Sge; OPERATION_BUFFERS],
    handles: [u64; OPERATION_BUFFERS],
    count: usize,
    pub(crate) total: u32,
    /// Some buffer is not registered and must go inline.
    must_inline: bool,
}

impl Gathered {
    /// Looks all buffers up; `access` is what the NIC will do with them.
    #[inline]
    pub(crate) fn new(
        sock: &Sock<'_>,
        buffers: &[SpBuffer],
        access: u32,
    ) -> Result<Self, WsaError> {
        if buffers.is_empty() || buffers.len() > OPERATION_BUFFERS {
            return Err(WsaError::Inval);
        }
        let mut gathered = Self {
            sges: [Sge::default(); OPERATION_BUFFERS],
            handles: [0; OPERATION_BUFFERS],
            count: buffers.len(),
            total: 0,
            must_inline: false,
        };
        for (index, buffer) in buffers.iter().enumerate() {
            gathered.total = gathered
                .total
                .checked_add(buffer.len)
                .filter(|&total| total <= MESSAGE_LIMIT)
                .ok_or(WsaError::MsgSize)?;
            match buffer.handle {
                Some(handle) => {
                    let Resolved { addr, lkey } = sock.buffer(buffer, handle, access)?;
                    gathered.handles[index] = handle.0;
                    gathered.sges[index] = Sge {
                        addr,
                        len: buffer.len,
                        lkey,
                    };
                }
                None => gathered.must_inline = true,
            }
        }
        // Success with zero bytes means "moved" to the switch: no operation may complete so.
        if gathered.total == 0 {
            return Err(WsaError::Inval);
        }
        Ok(gathered)
    }

    /// Whether every buffer is registered.
    pub(crate) fn is_registered(&self) -> bool {
        !self.must_inline
    }
}

impl Core {
    /// `wsp_send`.
    pub(crate) fn send(
        &self,
        s: SpSocket,
        buffers: &[SpBuffer],
        overlapped: &Overlapped,
        notify: bool,
    ) -> Result<(), WsaError> {
        let sock = self.resolve(s)?;
        sock.must_be_connected()?;
        let gathered = Gathered::new(&sock, buffers, MEM_READ)?;
        let mut bytes = [0; MAX_INLINE as usize];
        let total = gathered.total as usize;
        let inline = if gathered.must_inline || gathered.total <= INLINE_WISH {
            // Memory that is not registered can only go inline.
            let room = bytes.get_mut(..total).ok_or(WsaError::Fault)?;
            collect(room, buffers);
            Some(&*room)
        } else {
            None
        };
        let request = Request {
            opcode: Opcode::SEND,
            remote_addr: 0,
            rkey: 0,
        };
        self.post(&sock, request, &gathered, inline, overlapped, notify)
    }

    /// Posts a send-side operation.
    #[inline]
    pub(crate) fn post(
        &self,
        sock: &Sock<'_>,
        request: Request,
        gathered: &Gathered,
        inline: Option<&[u8]>,
        overlapped: &Overlapped,
        notify: bool,
    ) -> Result<(), WsaError> {
        let slot = slot_offset(sock.function, overlapped)?;
        let record = sock.record;
        let token = Token::new(&record.send_token);
        self.take_for_post(
            sock,
            token,
            &record.sends_posted,
            &record.sends_done,
            SEND_DEPTH,
        )?;
        // Relaxed: ordered by the token.
        let posted = record.sends_posted.load(Ordering::Relaxed);
        let sequence = high(posted);
        let done = record.sends_done.load(Ordering::Acquire);
        let fence = request.opcode == Opcode::SEND && record.fence.load(Ordering::Relaxed) != 0;
        let mut flags = WqeFlags::SIGNALED;
        flags.set(WqeFlags::FENCE, fence);
        let wr = SendWr {
            wr_id: sequence.into(),
            opcode: request.opcode,
            flags,
            imm: 0,
            payload: match inline {
                Some(bytes) => Payload::Inline(bytes),
                None => Payload::Sges(&gathered.sges[..gathered.count]),
            },
            remote_addr: request.remote_addr,
            rkey: request.rkey,
        };
        let put = Encoded::new(&wr).ok().and_then(|wqe| {
            let ring = sock.send_ring()?;
            sq::put(&ring, low(posted), low(done), &wqe)
        });
        let Some(producer) = put else {
            token.give();
            return Err(WsaError::NoBufs);
        };
        let place = sequence as usize % SEND_DEPTH as usize;
        fill(
            &record.sends[place],
            sequence,
            slot,
            gathered.total,
            notify,
            gathered,
        );
        start(overlapped);
        if fence {
            record.fence.store(0, Ordering::Relaxed);
        }
        if request.opcode == Opcode::RDMA_READ {
            // The next send may tell the peer that its memory is free.
            record.fence.store(1, Ordering::Relaxed);
        }
        let commit = u64::from(sequence.wrapping_add(1)) << 32 | u64::from(producer);
        // EDGE op-commit (release): the operation's record. Acquired where completions are filed.
        record.sends_posted.store(commit, Ordering::Release);
        sock.function.ring_sends(sock.qp_slot(), producer);
        token.give();
        Ok(())
    }

    /// `wsp_recv`.
    pub(crate) fn recv(
        &self,
        s: SpSocket,
        buffers: &[SpBuffer],
        overlapped: &Overlapped,
        notify: bool,
    ) -> Result<(), WsaError> {
        let sock = self.resolve(s)?;
        sock.must_be_connected()?;
        if buffers.len() > MAX_RECV_SGES.into() {
            return Err(WsaError::Inval);
        }
        let gathered = match Gathered::new(&sock, buffers, MEM_WRITE) {
            // The code is not one of WSPRecv's.
            Err(WsaError::MsgSize) => return Err(WsaError::Inval),
            other => other?,
        };
        if !gathered.is_registered() {
            return Err(WsaError::Fault);
        }
        let slot = slot_offset(sock.function, overlapped)?;
        let record = sock.record;
        let token = Token::new(&record.recv_token);
        if sock.take(token) == Taken::Abandoned {
            self.ring_again(&sock);
        }
        // Relaxed: ordered by the token.
        let sequence = record.recvs_posted.load(Ordering::Relaxed);
        let done = record.recvs_done.load(Ordering::Acquire);
        let put = sock
            .recv_ring()
            .filter(|_| sequence.wrapping_sub(done) < RECV_DEPTH);
        let put = put.and_then(|ring| {
            let wr_id = RECEIVE | u64::from(sequence);
            rq::put(
                &ring,
                sequence,
                done,
                wr_id,
                &gathered.sges[..gathered.count],
            )
            .ok()
        });
        let Some(producer) = put else {
            token.give();
            // More receives than the provider said it takes. ENOBUFS is not among the codes of WSPRecv.
            return Err(WsaError::Inval);
        };
        let place = sequence as usize % RECV_PLACES as usize;
        fill(&record.recvs[place], sequence, slot, 0, notify, &gathered);
        start(overlapped);
        // EDGE op-commit (release): the operation's record. Acquired where completions are filed.
        record.recvs_posted.store(producer, Ordering::Release);
        sock.function.ring_receives(sock.qp_slot(), producer);
        token.give();
        Ok(())
    }

    /// `wsp_get_overlapped_result`.
    pub(crate) fn overlapped_result(
        &self,
        s: SpSocket,
        overlapped: &Overlapped,
        wait: bool,
    ) -> Result<Transfer, WsaError> {
        let sock = self.resolve(s)?;
        if wait {
            return Err(WsaError::Inval);
        }
        self.poll(&sock);
        // EDGE slot-done (acquire): error, bytes and flags. Released in `finish`.
        match overlapped.state.load(Ordering::Acquire) {
            OVERLAPPED_PENDING => Err(WsaError::IoIncomplete),
            OVERLAPPED_DONE => match overlapped.error.load(Ordering::Relaxed) {
                0 => Ok(Transfer {
                    bytes: overlapped.bytes.load(Ordering::Relaxed),
                    flags: overlapped.flags.load(Ordering::Relaxed),
                }),
                code => Err(WsaError::from_code(code).unwrap_or(WsaError::ConnAborted)),
            },
            _ => Err(WsaError::Inval),
        }
    }

    /// Files what the NIC completed on a socket and makes the upcalls.
    pub(crate) fn poll(&self, sock: &Sock<'_>) {
        loop {
            let is_dead = sock.function.is_dead();
            let is_due = sock.has_completion() || (is_dead && sock.is_busy());
            if !is_due {
                return;
            }
            let token = Token::new(&sock.record.poll_token);
            sock.take(token);
            let mut notices = [None; NOTICES];
            let mut count = 0;
            let mut collect = |notice| {
                if let Some(place) = notices.get_mut(count) {
                    *place = Some(notice);
                    count += 1;
                }
            };
            // A closer took the queues away while we waited.
            if !matches!(sock.state(), FREE | CLOSING) {
                sock.file_completions(NOTICES, &mut collect);
                if is_dead && !sock.has_completion() {
                    sock.end(WsaError::ConnAborted);
                    sock.abort_some(NOTICES - 1, WsaError::ConnAborted, &mut collect);
                }
            }
            token.give();
            for notice in notices.into_iter().flatten() {
                self.notify(sock.handle, sock.function, notice);
            }
            if matches!(sock.state(), FREE | CLOSING) {
                return;
            }
        }
    }

    /// Completes an operation by upcall; the last one of a closed socket closes the switch's handle.
    pub(crate) fn notify(&self, s: SpSocket, function: &Function, notice: Notice) {
        let Ok(upcalls) = self.upcalls() else {
            return;
        };
        let handle = {
            let mut locals = self.locals();
            let Some(local) = locals.get_mut(&s) else {
                return;
            };
            local.upcalls += 1;
            local.handle
        };
        if let Some(overlapped) = slot_at(function, notice.overlapped) {
            let (error, bytes) = (notice.error, notice.bytes);
            match upcalls.wpu_complete_overlapped_request(handle, overlapped, error, bytes) {
                Ok(()) | Err(_) => {} // A switch that forgot the handle does not wait for the slot.
            }
        }
        let mut locals = self.locals();
        let is_last = locals.get_mut(&s).is_some_and(|local| {
            local.upcalls -= 1;
            local.is_closed && local.upcalls == 0
        });
        if is_last {
            locals.remove(&s);
            drop(locals);
            self.close_handle(handle);
        }
    }

    /// Takes the send token when an operation fits; polls once when none does.
    fn take_for_post(
        &self,
        sock: &Sock<'_>,
        token: Token<'_>,
        posted: &AtomicU64,
        done: &AtomicU64,
        depth: u32,
    ) -> Result<(), WsaError> {
        for attempt in 0..2 {
            if sock.take(token) == Taken::Abandoned {
                self.ring_again(sock);
            }
            // Relaxed: ordered by the token.
            let outstanding = high(posted.load(Ordering::Relaxed))
                .wrapping_sub(high(done.load(Ordering::Acquire)));
            if outstanding < depth {
                return Ok(());
            }
            token.give();
            if attempt == 0 {
                self.poll(sock);
            }
        }
        Err(WsaError::NoBufs)
    }

    /// Rings for an owner of a token who died between commit and doorbell.
    #[cold]
    fn ring_again(&self, sock: &Sock<'_>) {
        // Relaxed: acquired with the token. The committed positions are never behind what was rung before.
        let sends = low(sock.record.sends_posted.load(Ordering::Relaxed));
        let recvs = sock.record.recvs_posted.load(Ordering::Relaxed);
        sock.function.ring_sends(sock.qp_slot(), sends);
        sock.function.ring_receives(sock.qp_slot(), recvs);
        sock.function.attachment().kick();
    }
}

impl Sock<'_> {
    /// Whether a completion waits.
    #[inline]
    pub(crate) fn has_completion(&self) -> bool {
        // Relaxed: a stale position shows an entry that somebody is filing; the token sorts it out.
        let consumer = self.record.cq_consumer.load(Ordering::Relaxed);
        self.completion_ring()
            .is_some_and(|ring| cq::peek(&ring, consumer).is_some())
    }

    /// Whether operations are outstanding.
    pub(crate) fn is_busy(&self) -> bool {
        let record = self.record;
        // Acquire: with what was committed.
        let sends = high(record.sends_posted.load(Ordering::Acquire));
        let recvs = record.recvs_posted.load(Ordering::Acquire);
        sends != high(record.sends_done.load(Ordering::Relaxed))
            || recvs != record.recvs_done.load(Ordering::Relaxed)
    }

    /// Files up to `limit` completions. The caller holds the poll token.
    #[inline]
    fn file_completions(&self, limit: usize, notices: &mut dyn FnMut(Notice)) {
        let Some(ring) = self.completion_ring() else {
            return;
        };
        let consumer = &self.record.cq_consumer;
        for _ in 0..limit {
            // Relaxed: ordered by the token.
            let position = consumer.load(Ordering::Relaxed);
            let Some(wc) = cq::peek(&ring, position) else {
                break;
            };
            if wc.wr_id & RECEIVE != 0 && wc.wr_id != sq::FILLER {
                self.recv_completed(&wc, notices);
            } else if wc.wr_id != sq::FILLER {
                self.send_completed(&wc, notices);
            }
            // A signal handler on this thread may have gone on from here: then it consumed this entry already.
            let next = position.wrapping_add(1);
            match consumer.compare_exchange(position, next, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => self.function.publish_consumer(self.cq_slot(), next),
                Err(_) => break,
            }
        }
    }

    /// Files every completion. The caller holds the poll token.
    pub(crate) fn drain_completions(&self, notices: &mut dyn FnMut(Notice)) {
        while self.has_completion() {
            self.file_completions(NOTICES, notices);
        }
    }

    fn send_completed(&self, wc: &Wc, notices: &mut dyn FnMut(Notice)) {
        let record = self.record;
        // EDGE op-commit (acquire): the operation's record. Released in `post`.
        let posted = high(record.sends_posted.load(Ordering::Acquire));
        let done = high(record.sends_done.load(Ordering::Relaxed));
        let sequence = low(wc.wr_id);
        let outstanding = posted.wrapping_sub(done);
        // Filed before by a process that died before it consumed the entry, or something the NIC made up.
        if sequence.wrapping_sub(done) >= outstanding || outstanding > SEND_DEPTH {
            return;
        }
        let operation = &record.sends[sequence as usize % SEND_DEPTH as usize];
        let code = self.code_of(wc);
        let bytes = if code.is_none() {
            operation.len.load(Ordering::Relaxed)
        } else {
            0
        };
        finish(self.function, operation, sequence, code, bytes, 0, notices);
        let next = u64::from(sequence.wrapping_add(1)) << 32 | u64::from(wc.wqe_counter);
        // EDGE wqe-reclaim (release): the completion was filed. Acquired in `post` before blocks are used again.
        record.sends_done.store(next, Ordering::Release);
    }

    fn recv_completed(&self, wc: &Wc, notices: &mut dyn FnMut(Notice)) {
        let record = self.record;
        // EDGE op-commit (acquire): the operation's record. Released in `recv`.
        let posted = record.recvs_posted.load(Ordering::Acquire);
        let done = record.recvs_done.load(Ordering::Relaxed);
        let sequence = low(wc.wr_id);
        let outstanding = posted.wrapping_sub(done);
        if sequence.wrapping_sub(done) >= outstanding || outstanding > RECV_PLACES {
            return;
        }
        let operation = &record.recvs[sequence as usize % RECV_PLACES as usize];
        let code = self.code_of(wc);
        let bytes = if code.is_none() { wc.byte_len } else { 0 };
        let flags = wc.imm.unwrap_or(0);
        finish(
            self.function,
            operation,
            sequence,
            code,
            bytes,
            flags,
            notices,
        );
        // EDGE wqe-reclaim (release): the completion was filed. Acquired in `recv` before the place is used again.
        record
            .recvs_done
            .store(sequence.wrapping_add(1), Ordering::Release);
    }

    /// Error of a completion; the first one ends the connection with its code.
    fn code_of(&self, wc: &Wc) -> Option<WsaError> {
        let code = match wc.status {
            WcStatus::SUCCESS => return None,
            WcStatus::WR_FLUSH_ERR => return Some(self.code_of_flush(wc.syndrome)),
            WcStatus::RETRY_EXC_ERR => WsaError::NetReset,
            _ => match wc.syndrome {
                Syndrome::PEER_GONE | Syndrome::DISCONNECTED => WsaError::ConnReset,
                _ => WsaError::ConnAborted,
            },
        };
        self.end(code);
        Some(code)
    }

    fn code_of_flush(&self, syndrome: Syndrome) -> WsaError {
        match (self.sticky(), syndrome) {
            (Some(WsaError::ConnReset), _) => WsaError::ConnReset,
            (None, Syndrome::DISCONNECTED | Syndrome::PEER_GONE) => {
                self.end(WsaError::ConnReset);
                WsaError::ConnReset
            }
            _ => WsaError::OperationAborted,
        }
    }

    /// Finishes every outstanding operation with `code`. The caller holds the poll token.
    pub(crate) fn abort_all(&self, code: WsaError, notices: &mut dyn FnMut(Notice)) {
        while self.is_busy() {
            self.abort_some(usize::MAX, code, notices);
        }
    }

    /// Finishes up to `limit` outstanding operations. The caller holds the poll token.
    fn abort_some(&self, limit: usize, code: WsaError, notices: &mut dyn FnMut(Notice)) {
        let record = self.record;
        let mut left = limit;
        let code = Some(code);
        while left > 0 {
            let posted = record.recvs_posted.load(Ordering::Acquire);
            let sequence = record.recvs_done.load(Ordering::Relaxed);
            if sequence == posted {
                break;
            }
            let operation = &record.recvs[sequence as usize % RECV_PLACES as usize];
            finish(self.function, operation, sequence, code, 0, 0, notices);
            record
                .recvs_done
                .store(sequence.wrapping_add(1), Ordering::Release);
            left -= 1;
        }
        while left > 0 {
            let posted = record.sends_posted.load(Ordering::Acquire);
            let done = record.sends_done.load(Ordering::Relaxed);
            let sequence = high(done);
            if sequence == high(posted) {
                break;
            }
            let operation = &record.sends[sequence as usize % SEND_DEPTH as usize];
            finish(self.function, operation, sequence, code, 0, 0, notices);
            let next = u64::from(sequence.wrapping_add(1)) << 32 | u64::from(low(posted));
            record.sends_done.store(next, Ordering::Release);
            left -= 1;
        }
    }

    /// Whether an outstanding operation uses a registration.
    pub(crate) fn uses(&self, handle: u64) -> bool {
        let record = self.record;
        let named = |operation: &Operation| {
            let count = operation.handle_count.load(Ordering::Relaxed) as usize;
            operation
                .handles
                .iter()
                .take(count)
                .any(|known| known.load(Ordering::Relaxed) == handle)
        };
        let outstanding = |posted: u32, done: u32, limit: u32| {
            (0..posted.wrapping_sub(done).min(limit)).map(move |i| done.wrapping_add(i) as usize)
        };
        let sends = outstanding(
            high(record.sends_posted.load(Ordering::Acquire)),
            high(record.sends_done.load(Ordering::Acquire)),
            SEND_DEPTH,
        );
        let recvs = outstanding(
            record.recvs_posted.load(Ordering::Acquire),
            record.recvs_done.load(Ordering::Acquire),
            RECV_PLACES,
        );
        sends
            .map(|i| &record.sends[i % SEND_DEPTH as usize])
            .any(named)
            || recvs
                .map(|i| &record.recvs[i % RECV_PLACES as usize])
                .any(named)
    }
}

/// Copies the bytes of all buffers, one after the other.
#[inline]
fn collect(room: &mut [u8], buffers: &[SpBuffer]) {
    let mut rest = room;
    for buffer in buffers {
        let len = (buffer.len as usize).min(rest.len());
        let (now, later) = rest.split_at_mut(len);
        arena::fetch(now, buffer.address);
        rest = later;
    }
}

/// Where a slot lies in the arena; the family completes it, so it must lie there.
#[inline]
fn slot_offset(function: &Function, overlapped: &Overlapped) -> Result<u64, WsaError> {
    let address = core::ptr::from_ref(overlapped).cast();
    function
        .arena()
        .offset_of(address, size_of::<Overlapped>() as u64)
        .filter(|offset| offset.is_multiple_of(8))
        .ok_or(WsaError::Fault)
}

/// The slot at an offset.
#[inline]
fn slot_at(function: &Function, offset: u64) -> Option<&Overlapped> {
    function.arena().record(offset)
}

/// Makes a slot pending, before the NIC can finish it.
#[inline]
fn start(overlapped: &Overlapped) {
    // Relaxed: the commit publishes to those who file, and the caller is the one who waits.
    overlapped.error.store(0, Ordering::Relaxed);
    overlapped.bytes.store(0, Ordering::Relaxed);
    overlapped.flags.store(0, Ordering::Relaxed);
    overlapped
        .state
        .store(OVERLAPPED_PENDING, Ordering::Release);
}

/// Describes an operation in its place.
#[inline]
fn fill(
    operation: &Operation,
    sequence: u32,
    slot: u64,
    len: u32,
    notify: bool,
    gathered: &Gathered,
) {
    // Relaxed: the commit publishes.
    operation.overlapped.store(slot, Ordering::Relaxed);
    operation.sequence.store(sequence, Ordering::Relaxed);
    operation.len.store(len, Ordering::Relaxed);
    operation.notify.store(notify.into(), Ordering::Relaxed);
    let mut count = 0;
    for &handle in gathered.handles[..gathered.count]
        .iter()
        .filter(|&&handle| handle != 0)
    {
        operation.handles[count as usize].store(handle, Ordering::Relaxed);
        count += 1;
    }
    operation.handle_count.store(count, Ordering::Relaxed);
}

/// Finishes the slot of an operation; does nothing when it is finished already.
#[inline]
fn finish(
    function: &Function,
    operation: &Operation,
    sequence: u32,
    code: Option<WsaError>,
    bytes: u32,
    flags: u32,
    notices: &mut dyn FnMut(Notice),
) {
    // Relaxed: acquired with the commit.
    if operation.sequence.load(Ordering::Relaxed) != sequence {
        return;
    }
    let offset = operation.overlapped.load(Ordering::Relaxed);
    let Some(slot) = slot_at(function, offset) else {
        return;
    };
    if slot.state.load(Ordering::Relaxed) != OVERLAPPED_PENDING {
        return;
    }
    let error = code.map_or(0, WsaError::code);
    slot.flags.store(flags, Ordering::Relaxed);
    slot.error.store(error, Ordering::Relaxed);
    slot.bytes.store(bytes, Ordering::Relaxed);
    // EDGE slot-done (release): error, bytes and flags. Acquired in `overlapped_result` and by the switch.
    slot.state.store(OVERLAPPED_DONE, Ordering::Release);
    if operation.notify.load(Ordering::Relaxed) != 0 {
        notices(Notice {
            overlapped: offset,
            error,
            bytes,
        });
    }
}
