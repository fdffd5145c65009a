//! Completing: files what the NIC finished into slots, and makes the upcalls.
//!
//! Place: `wsp_get_overlapped_result` polls here; close and the death of the device finish the rest.
//! Invariants: a slot is DONE last of all. A completion is filed first and its CQE consumed afterwards, and filing twice is
//! harmless, so a process killed in between costs nothing. Every CQE is filed under the poll token; upcalls are made without token
//! and lock.
//! Hot: `poll` and what it calls, while nothing fails. Edges: `op-commit`, `slot-done`, `wqe-reclaim`.
//! Source.

use ring_proto::status::{Syndrome, WcStatus};
use ring_proto::sync::Ordering;

use super::Core;
use super::data::RECEIVE;
use super::flight::FlightKind;
use super::socket::{CLOSING, FREE, Sock};
use crate::cq::{self, Wc};
use crate::function::{Function, high, low};
use crate::lock::Token;
use crate::record::{Operation, RECV_PLACES, SEND_DEPTH};
use crate::spi::{OVERLAPPED_DONE, OVERLAPPED_PENDING, Overlapped, SpSocket, Transfer};
use crate::sq;
use crate::sys;
use crate::wsa::WsaError;

/// Looks for the event that says why a connection ended.
const END_LOOKS: u32 = 1000;
/// Upcalls collected before the poll token is given back.
const NOTICES: usize = 32;

/// An operation that must be reported by upcall.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Notice {
    overlapped: u64,
    error: u32,
    bytes: u32,
}

impl Core {
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
        let mut knows_end = false;
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
            let mut asks_end = false;
            // A closer may have taken the queues away while we waited.
            if !sock.is_closed() {
                asks_end = sock.file_completions(NOTICES - 1, knows_end, &mut collect);
                if is_dead && !sock.has_completion() {
                    sock.end(WsaError::ConnAborted);
                    // What does not fit into this batch comes with the next.
                    sock.abort_some(1, WsaError::ConnAborted, &mut collect);
                }
            }
            token.give();
            for notice in notices.into_iter().flatten() {
                self.notify(sock.handle, sock.function, notice);
            }
            if sock.is_closed() {
                return;
            }
            if asks_end {
                self.learn_end(sock);
                knows_end = true;
            }
        }
    }

    /// Waits for the event that says why a QP flushes: it follows the flushed completions at once.
    #[cold]
    fn learn_end(&self, sock: &Sock<'_>) {
        for _ in 0..END_LOOKS {
            self.file_events(sock.function);
            if sock.sticky().is_some() {
                return;
            }
            sys::yield_now();
        }
        // An event queue that is silent so long has lost it; the usual cause is the peer.
        sock.end(WsaError::ConnReset);
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

    /// Files up to `limit` completions; true when the next one cannot be judged before it is known why the connection ended. The
    /// caller holds the poll token.
    #[inline]
    fn file_completions(
        &self,
        limit: usize,
        knows_end: bool,
        notices: &mut dyn FnMut(Notice),
    ) -> bool {
        let Some(ring) = self.completion_ring() else {
            return false;
        };
        let consumer = &self.record.cq_consumer;
        for _ in 0..limit {
            // Relaxed: ordered by the token.
            let position = consumer.load(Ordering::Relaxed);
            let Some(wc) = cq::peek(&ring, position) else {
                break;
            };
            let is_flush = wc.status == WcStatus::WR_FLUSH_ERR;
            if is_flush && !knows_end && self.sticky().is_none() {
                return true;
            }
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
        false
    }

    /// Files every completion of a socket that is being closed. The caller holds the poll token.
    pub(crate) fn drain_completions(&self, notices: &mut dyn FnMut(Notice)) {
        while self.has_completion() {
            self.file_completions(NOTICES, true, notices);
        }
    }

    fn is_closed(&self) -> bool {
        matches!(self.state(), FREE | CLOSING)
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
        self.note(FlightKind::Finished, code, bytes);
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
        self.note(FlightKind::Received, code, bytes);
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
        let code = match (wc.status, wc.syndrome) {
            (WcStatus::SUCCESS, _) => return None,
            (WcStatus::WR_FLUSH_ERR, _) => {
                return Some(match self.sticky() {
                    Some(WsaError::ConnReset) => WsaError::ConnReset,
                    _ => WsaError::OperationAborted,
                });
            }
            (_, Syndrome::PEER_GONE | Syndrome::PEER_IN_ERROR | Syndrome::DISCONNECTED) => {
                WsaError::ConnReset
            }
            (WcStatus::RETRY_EXC_ERR, _) => WsaError::NetReset,
            _ => WsaError::ConnAborted,
        };
        self.end(code);
        Some(code)
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

/// The slot at an offset.
#[inline]
fn slot_at(function: &Function, offset: u64) -> Option<&Overlapped> {
    function.arena().record(offset)
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
