//! Sending and receiving: posts operations of a companion socket.
//!
//! Place: `wsp_send`, `wsp_recv`; `rdma` posts through here as well; `completing` finishes what was posted.
//! Invariants: a slot is PENDING before the NIC sees the operation. One store commits an operation to the record before its
//! doorbell; who finds a token abandoned rings again.
//! Hot: everything here. Edges: `op-commit`.
//! Source.

use ring_proto::regs::MESSAGE_LIMIT;
use ring_proto::status::Opcode;
use ring_proto::sync::{AtomicU64, Ordering};
use ring_proto::wqe::{MAX_INLINE, MAX_RECV_SGES, Sge, WqeFlags};

use super::Core;
use super::flight::FlightKind;
use super::memory::Resolved;
use super::socket::Sock;
use crate::arena;
use crate::function::{Function, high, low};
use crate::lock::{Taken, Token};
use crate::record::{OPERATION_BUFFERS, Operation, RECV_DEPTH, RECV_PLACES, SEND_DEPTH};
use crate::rq;
use crate::spi::{MEM_READ, MEM_WRITE, OVERLAPPED_PENDING, Overlapped, SpBuffer, SpSocket};
use crate::sq::{self, Encoded, Payload, SendWr};
use crate::wsa::WsaError;

/// `wr_id` bit of receives; the low half is the sequence number.
pub(crate) const RECEIVE: u64 = 1 << 63;
/// Sends up to this size travel in the WQE even when their memory is registered: a third WQE block costs as much as the copy saves.
const INLINE_WISH: u32 = 96;

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
        sock.note(FlightKind::Posted, None, gathered.total);
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
        sock.note(FlightKind::ReceivePosted, None, gathered.total);
        sock.function.ring_receives(sock.qp_slot(), producer);
        token.give();
        Ok(())
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
