//! One end of a SAN connection: construction, progress, and what the rest of the session shares.
//!
//! Place: [`crate::Switch`] makes it when a provider has connected a companion; the preload library and the service thread call it.
//! Invariants: the send token and the receive token are taken in the order receive, send; a holder of the send token only ever
//! *tries* the receive token. No token is held while anybody waits. Numbers that never change are kept privately and not read back
//! from the record.
//! Hot: [`Conn::progress`] when nothing came: one poll of the completion queue, one of the event queue, a few loads.
//! Source. Leaves out: sending, receiving, closing: the sibling files.
#![expect(
    unsafe_code,
    reason = "makes views of memory that SharedMemory handed out"
)]

use core::ptr::NonNull;

use driver::spi::{
    Link, MEM_READ, MEM_WRITE, MemoryHandle, SharedRegion, SpSocket, Waiter, options,
};
use driver::wsa::WsaError;
use ring_proto::sync::{AtomicI32, AtomicU32, Ordering};

use super::buffers::Region;
use super::message::HEADER_LEN;
use super::record::{ConnRecord, MAGIC, RECORD_BYTES, RECV_SLOTS, SEND_SLOTS, Shared, flag};
use super::ring::{HEADER_BYTES, RingHead};
use crate::outcome::Errno;
use crate::provider_table::{Provider, ProviderRef};
use crate::token::{Family, Taken};

/// Most payload of one message.
pub(super) const PAYLOAD_MAX: u32 = 16 * 1024;
/// Bytes of a receive buffer before the header, so that the payload starts on a cache line.
pub(super) const HEADER_PAD: u32 = 32;
/// Send ring of a program that set no limit.
const DEFAULT_RING: u32 = 1 << 20;
/// Shortest send ring we make.
const MIN_RING: u64 = 64 * 1024;
/// Longest.
const MAX_RING: u64 = 16 << 20;
/// Time the peer has for the negotiation.
const NEGOTIATION_NS: u64 = 10_000_000_000;
/// Threads that can wait for one connection in one process; as many as a function has vectors.
const WAITERS: usize = 64;

/// Which end of the connection this is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Role {
    /// The connecting side: sends HELLO.
    Active = 1,
    /// The accepting side: answers it.
    Passive = 2,
}

/// What the program asked for before the connection stood.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConnOptions {
    /// Bytes that may be accepted ahead of the peer (`SO_SNDBUF`); 0: our default of 1 MiB.
    pub send_buffer: u32,
    /// Bytes that may arrive ahead of the program (`SO_RCVBUF`); 0: our default of 256 KiB.
    pub recv_buffer: u32,
    /// Bytes of the send ring; 0: as `send_buffer`, but at least 1 MiB, so that the limit can grow later.
    pub ring: u32,
}

impl Default for ConnOptions {
    fn default() -> Self {
        Self {
            send_buffer: DEFAULT_RING,
            recv_buffer: RECV_SLOTS * PAYLOAD_MAX,
            ring: 0,
        }
    }
}

/// Where a connection stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// HELLO and HELLO_ACK are under way.
    Negotiating,
    /// Bytes may flow, or have flowed.
    Established,
    /// The negotiation or the connection failed.
    Failed(Errno),
    /// Closed by the program and finished.
    Closed,
}

/// One end of a SAN connection.
pub struct Conn {
    pub(super) provider: ProviderRef,
    pub(super) sp: SpSocket,
    pub(super) record: Shared<ConnRecord>,
    pub(super) head: Shared<RingHead>,
    /// The send ring with its header page.
    pub(super) ring: Region,
    /// The receive buffers.
    pub(super) buffers: Region,
    pub(super) numbers: Numbers,
    record_offset: u64,
    /// Event objects of this process's threads that sleep on this connection; -1: none.
    waiters: [AtomicI32; WAITERS],
    /// 1: this process closed the companion, its memory can go with this value.
    finished: AtomicU32,
}

/// Numbers of a connection that never change.
#[derive(Clone, Copy, Debug)]
pub(super) struct Numbers {
    pub(super) role: Role,
    pub(super) receives: u32,
    pub(super) recv_stride: u32,
    pub(super) send_slots: u32,
    pub(super) message_max: u32,
    pub(super) rdma_max: u32,
    pub(super) ring_len: u64,
    pub(super) ring_handle: MemoryHandle,
    pub(super) recv_handle: MemoryHandle,
}

impl core::fmt::Debug for Conn {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Conn")
            .field("sp", &self.sp)
            .field("numbers", &self.numbers)
            .field("record", self.record.get())
            .finish_non_exhaustive()
    }
}

impl Family for Provider {
    #[inline]
    fn self_id(&self) -> u64 {
        Self::self_id(self)
    }

    fn is_alive(&self, id: u64) -> bool {
        Self::is_alive(self, id)
    }
}

impl Conn {
    /// Starts the session on a companion that the provider has connected: registers memory, posts the receives, and as the active
    /// side sends HELLO.
    ///
    /// # Errors
    /// `NoBufs` when memory is short, else the provider's code. The caller closes the companion then, if that has not been done.
    pub fn start(
        role: Role,
        provider: ProviderRef,
        sp: SpSocket,
        options: ConnOptions,
    ) -> Result<Self, WsaError> {
        let mut parts = Parts::default();
        let started = Self::build(role, &provider, sp, options, &mut parts);
        let conn = match started {
            Ok(conn) => conn,
            Err(error) => {
                parts.free(&provider, sp);
                return Err(error);
            }
        };
        // Nobody else knows the connection yet, so the tokens are free.
        conn.with_recv(|conn| conn.post_missing());
        conn.with_send(Self::pump);
        if let Some(code) = conn.failure() {
            conn.provider.note(code);
            // Receives may be posted: the companion goes first, then the memory.
            conn.finish();
            return Err(code);
        }
        Ok(conn)
    }

    fn build(
        role: Role,
        provider: &ProviderRef,
        sp: SpSocket,
        options: ConnOptions,
        parts: &mut Parts,
    ) -> Result<Self, WsaError> {
        let memory = &provider.memory;
        let provider_max = provider.max_message(sp).unwrap_or(u32::MAX);
        #[expect(clippy::cast_possible_truncation, reason = "32")]
        let header = HEADER_LEN as u32;
        let message_max = (PAYLOAD_MAX + header).min(provider_max);
        if message_max < super::message::MIN_BUFFER {
            return Err(WsaError::MsgSize);
        }
        let recv_stride = (HEADER_PAD + message_max).next_multiple_of(64);
        let wanted = match options.recv_buffer {
            0 => RECV_SLOTS,
            bytes => bytes.div_ceil(PAYLOAD_MAX),
        };
        let receives = wanted
            .clamp(RECV_SLOTS / 2, RECV_SLOTS)
            .min(provider.recv_depth);
        // One send queue place stays free for an RDMA READ.
        let send_slots = SEND_SLOTS.min(provider.send_depth.saturating_sub(1));
        if receives < super::message::MIN_RECEIVES || send_slots < 2 {
            return Err(WsaError::NoBufs);
        }

        let record_region = memory.alloc(sp, RECORD_BYTES).ok_or(WsaError::NoBufs)?;
        parts.record = Some(record_region);
        let recv_len = u64::from(recv_stride) * u64::from(receives);
        let recv_region = memory.alloc(sp, recv_len).ok_or(WsaError::NoBufs)?;
        parts.buffers = Some(recv_region);
        let send_buffer = match options.send_buffer {
            0 => DEFAULT_RING,
            bytes => bytes,
        };
        let ring = match options.ring {
            0 => send_buffer.max(DEFAULT_RING),
            bytes => bytes,
        };
        let mut ring_len = u64::from(ring)
            .next_multiple_of(4096)
            .clamp(MIN_RING, MAX_RING);
        // A full arena gives a shorter ring before it gives none.
        let ring_region = loop {
            match memory.alloc_ring(sp, HEADER_BYTES + ring_len) {
                Some(region) => break region,
                None if ring_len > MIN_RING => ring_len = (ring_len / 4).max(MIN_RING),
                None => return Err(WsaError::NoBufs),
            }
        };
        parts.ring = Some(ring_region);

        let at = |offset| memory.at(sp, offset).ok_or(WsaError::Fault);
        let recv_base = at(recv_region.offset)?;
        let ring_base = at(ring_region.offset)?;
        let recv_handle = provider.sp.wsp_register_memory(
            sp,
            recv_base,
            bytes(recv_len)?,
            MEM_READ | MEM_WRITE,
        )?;
        // Writable: the ring takes what is read from a dead peer.
        let ring_bytes = bytes(HEADER_BYTES + ring_len)?;
        let ring_handle =
            provider
                .sp
                .wsp_register_memory(sp, ring_base, ring_bytes, MEM_READ | MEM_WRITE)?;
        let own_ring = provider
            .sp
            .wsp_register_rdma_memory(sp, ring_base, ring_bytes, MEM_READ)?;

        let record_base = at(record_region.offset)?;
        // SAFETY: 1. alloc gave RECORD_BYTES, aligned for any layout, mapped while the companion lives. 2. all atomics; only this
        // session uses it.
        let record = unsafe { Shared::<ConnRecord>::new(record_base) };
        // SAFETY: just allocated: nobody else knows it.
        unsafe { record.clear() };
        // SAFETY: as for the record: the ring's region is longer than its head.
        let head = unsafe { Shared::<RingHead>::new(ring_base) };
        // SAFETY: as for the record; the peer learns of it by HELLO only.
        unsafe { head.clear() };

        let rdma_max = provider
            .limit(sp, options::SO_MAX_RDMA_SIZE)
            .unwrap_or(u32::MAX)
            .min(1 << 20);
        let r = record.get();
        // Relaxed: published with the record's offset, by whatever carries it.
        r.role.store(role as u32, Ordering::Relaxed);
        r.receives.store(receives, Ordering::Relaxed);
        r.recv_stride.store(recv_stride, Ordering::Relaxed);
        r.message_max.store(message_max, Ordering::Relaxed);
        r.rdma_max.store(rdma_max, Ordering::Relaxed);
        r.send_slots.store(send_slots, Ordering::Relaxed);
        r.ring_region.store(ring_region.offset, Ordering::Relaxed);
        r.ring_len.store(ring_len, Ordering::Relaxed);
        r.recv_region.store(recv_region.offset, Ordering::Relaxed);
        r.ring_handle.store(ring_handle.0, Ordering::Relaxed);
        r.recv_handle.store(recv_handle.0, Ordering::Relaxed);
        r.own_ring.store(&own_ring);
        r.repeat_from.store(u64::MAX, Ordering::Relaxed);
        r.send_limit
            .store(u64::from(send_buffer), Ordering::Relaxed);
        r.deadline_ns
            .store(now_ns().saturating_add(NEGOTIATION_NS), Ordering::Relaxed);
        r.magic.store(MAGIC, Ordering::Release);
        Self::attach(provider.clone(), sp, record_region.offset).ok_or(WsaError::Fault)
    }

    /// Uses a connection that another process of the family started. `None` when there is no record at `record_offset`.
    #[must_use]
    pub fn attach(provider: ProviderRef, sp: SpSocket, record_offset: u64) -> Option<Self> {
        let base = provider.memory.at(sp, record_offset)?;
        // SAFETY: 1. and 2. the offset comes from `record_offset` of the process that allocated the record.
        let record = unsafe { Shared::<ConnRecord>::new(base) };
        let r = record.get();
        // Acquire: the numbers below.
        if r.magic.load(Ordering::Acquire) != MAGIC {
            return None;
        }
        // Relaxed: written before the magic.
        let word = |a: &AtomicU32| a.load(Ordering::Relaxed);
        let numbers = Numbers {
            role: if word(&r.role) == Role::Active as u32 {
                Role::Active
            } else {
                Role::Passive
            },
            receives: word(&r.receives).clamp(1, RECV_SLOTS),
            recv_stride: word(&r.recv_stride),
            send_slots: word(&r.send_slots).clamp(1, SEND_SLOTS),
            message_max: word(&r.message_max),
            rdma_max: word(&r.rdma_max),
            ring_len: r.ring_len.load(Ordering::Relaxed),
            ring_handle: MemoryHandle(r.ring_handle.load(Ordering::Relaxed)),
            recv_handle: MemoryHandle(r.recv_handle.load(Ordering::Relaxed)),
        };
        let ring_base = provider
            .memory
            .at(sp, r.ring_region.load(Ordering::Relaxed))?;
        let recv_base = provider
            .memory
            .at(sp, r.recv_region.load(Ordering::Relaxed))?;
        let ring_len = bytes(HEADER_BYTES + numbers.ring_len).ok()?;
        let recv_len = bytes(u64::from(numbers.recv_stride) * u64::from(numbers.receives)).ok()?;
        Some(Self {
            sp,
            record,
            // SAFETY: the ring's region starts with its head, and lives as long as the companion.
            head: unsafe { Shared::new(ring_base) },
            // SAFETY: allocated with this length by `build`; payload is never covered by a reference.
            ring: unsafe { Region::new(ring_base, ring_len) },
            // SAFETY: as for the ring.
            buffers: unsafe { Region::new(recv_base, recv_len) },
            numbers,
            record_offset,
            waiters: [const { AtomicI32::new(-1) }; WAITERS],
            finished: AtomicU32::new(0),
            provider,
        })
    }

    /// Where the record lies, for [`Self::attach`] in another process of the family.
    #[must_use]
    pub const fn record_offset(&self) -> u64 {
        self.record_offset
    }

    /// The companion.
    #[must_use]
    pub const fn sp(&self) -> SpSocket {
        self.sp
    }

    /// The companion's provider.
    #[must_use]
    pub const fn provider(&self) -> &ProviderRef {
        &self.provider
    }

    /// Where the connection stands.
    #[must_use]
    pub fn phase(&self) -> Phase {
        let flags = self.record.get().flags();
        if flags & flag::CLOSED != 0 {
            Phase::Closed
        } else if flags & flag::RESET != 0 {
            // Relaxed: a hint; `take_error` takes it.
            let error = self.record.get().error.load(Ordering::Relaxed);
            Phase::Failed(if error == 0 { libc::ECONNRESET } else { error })
        } else if flags & flag::ESTABLISHED != 0 {
            Phase::Established
        } else {
            Phase::Negotiating
        }
    }

    /// Takes the sticky error (`SO_ERROR`).
    pub fn take_error(&self) -> Option<Errno> {
        // Relaxed: the error alone is what travels.
        match self.record.get().error.swap(0, Ordering::Relaxed) {
            0 => None,
            error => Some(error),
        }
    }

    /// Stream bytes accepted from the program and taken by it.
    #[must_use]
    pub fn counters(&self) -> (u64, u64) {
        let r = self.record.get();
        // Relaxed: counters.
        (
            r.accepted.load(Ordering::Relaxed),
            r.rcv_next.load(Ordering::Relaxed),
        )
    }

    /// Sets the bytes that may be accepted ahead of the peer (`SO_SNDBUF`); never more than the ring holds.
    pub fn set_send_limit(&self, limit: u32) {
        // Relaxed: a limit.
        self.record
            .get()
            .send_limit
            .store(u64::from(limit.max(1)), Ordering::Relaxed);
    }

    /// Does what can be done now: takes completions, handles messages, sends what was accepted, returns credits, drives the end of
    /// the connection. Cheap when nothing came.
    ///
    /// A thread calls it between arming and sleeping; after it returned, whatever was there at its call has been handled.
    pub fn progress(&self) {
        let r = self.record.get();
        if r.has(flag::CLOSED) {
            return;
        }
        self.poll();
        let mut due = self.recv_is_due() || r.recv_token.is_abandoned(&*self.provider);
        if !due {
            self.provider.waiting.progress();
            due = self.needs_settling();
        }
        if due {
            self.with_recv(|conn| {
                conn.parse(false);
                conn.settle();
            });
        }
        if self.send_is_due() || r.send_token.is_abandoned(&*self.provider) {
            self.with_send(Self::pump);
        }
        if r.flags() & (flag::CLOSING | flag::ESTABLISHED) != flag::ESTABLISHED {
            self.clockwork();
        }
    }

    /// Whether something must go on while the program is in no socket call.
    #[must_use]
    pub fn wants_service(&self) -> bool {
        let r = self.record.get();
        let flags = r.flags();
        if flags & flag::CLOSED != 0 {
            return false;
        }
        if flags & flag::CLOSING != 0 {
            return true;
        }
        if flags & (flag::RESET | flag::GONE) != 0 {
            return self.due().is_some();
        }
        flags & flag::ESTABLISHED == 0
            || self.unsent_bytes() > 0
            || self.fin_is_pending()
            || self.due().is_some()
            || self.needs_settling()
            || r.send_token.is_abandoned(&*self.provider)
            || r.recv_token.is_abandoned(&*self.provider)
    }

    /// When [`Self::progress`] must be called at the latest, on CLOCK_MONOTONIC; `u64::MAX`: any time.
    #[must_use]
    pub fn deadline_ns(&self) -> u64 {
        let r = self.record.get();
        let waits = r.flags() & (flag::CLOSING | flag::ESTABLISHED | flag::CLOSED);
        // Relaxed: a time.
        match r.deadline_ns.load(Ordering::Relaxed) {
            0 => u64::MAX,
            _ if waits & flag::CLOSED != 0 || waits == flag::ESTABLISHED => u64::MAX,
            deadline => deadline,
        }
    }

    /// Makes `waiter`'s vector fire when something comes. Call [`Self::progress`] once more before sleeping.
    ///
    /// # Errors
    /// The provider's code.
    pub fn arm(&self, waiter: Waiter) -> Result<(), WsaError> {
        // EDGE local-wake (release): whoever changes the state afterwards finds the descriptor. Acquired in `wake_local`.
        let known = |w: &&AtomicI32| w.load(Ordering::Relaxed) == waiter.fd;
        if self.waiters.iter().find(known).is_none() {
            let _placed = self.waiters.iter().any(|w| {
                w.compare_exchange(-1, waiter.fd, Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok()
            });
        }
        self.provider.waiting.arm(self.sp, waiter)
    }

    /// Wakes threads of this process that sleep on this connection, after a change that no completion tells of.
    pub(super) fn wake_local(&self) {
        for waiter in &self.waiters {
            // EDGE local-wake (acquire): pairs with `arm`.
            let fd = waiter.swap(-1, Ordering::AcqRel);
            if fd >= 0 {
                // SAFETY: the vector's eventfd stays open as long as the waiter's thread may arm it; a closed one gives an error.
                let fd = unsafe { rustix::fd::BorrowedFd::borrow_raw(fd) };
                // A full counter is readable already.
                let _written = rustix::io::write(fd, &1_u64.to_ne_bytes());
            }
        }
    }

    /// Forgets the parent's sleepers, in a forked child.
    pub fn after_fork_in_child(&self) {
        for waiter in &self.waiters {
            // Relaxed: the child has one thread.
            waiter.store(-1, Ordering::Relaxed);
        }
    }

    /// Takes completions off the queue; they show in the slots.
    #[inline]
    pub(super) fn poll(&self) {
        let r = self.record.get();
        let (position, _) = r.recv_position();
        // Relaxed: any slot serves, the queue is polled for all.
        let buffer = r.order[slot(position)].load(Ordering::Relaxed);
        let overlapped = &r.recv_ov[slot(buffer)];
        // The slot tells more than the answer.
        let _state = self
            .provider
            .sp
            .wsp_get_overlapped_result(self.sp, overlapped, false);
    }

    /// Whether the link or an operation calls for [`Self::settle`].
    pub(super) fn needs_settling(&self) -> bool {
        let r = self.record.get();
        if r.has(flag::GONE | flag::CLOSED) {
            return false;
        }
        if self.failure().is_some() {
            return !r.has(flag::RESET);
        }
        match self.provider.waiting.link(self.sp) {
            Link::Up | Link::Down => false,
            Link::Orphaned | Link::Ended(_) => true,
        }
    }

    /// First failure of an operation.
    pub(super) fn failure(&self) -> Option<WsaError> {
        // Relaxed: a code.
        match self.record.get().failure.load(Ordering::Relaxed) {
            0 => None,
            code => Some(WsaError::from_code(code).unwrap_or(WsaError::ConnAborted)),
        }
    }

    /// Takes note of a failed operation; the first stays.
    pub(super) fn note_failure(&self, code: u32) {
        // Relaxed: a code.
        let _first = self.record.get().failure.compare_exchange(
            0,
            code,
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
    }

    /// Ends the connection as kernel TCP does on a reset: no more data, `error` once, then nothing.
    pub(super) fn reset(&self, error: Errno, extra: u32) {
        let r = self.record.get();
        // Relaxed: released by the flag below.
        let _first = r
            .error
            .compare_exchange(0, error, Ordering::Relaxed, Ordering::Relaxed);
        if r.set(flag::RESET | extra) & flag::RESET == 0 {
            self.edges();
            self.wake_local();
        }
    }

    /// Counts an edge in both directions.
    pub(super) fn edges(&self) {
        let r = self.record.get();
        // Relaxed: counters that are compared for being equal.
        r.in_edge.fetch_add(1, Ordering::Relaxed);
        r.out_edge.fetch_add(1, Ordering::Relaxed);
    }

    /// Runs `work` under the receive token, then lets the sending side do what follows from it. False: the token could not be had.
    pub(super) fn with_recv(&self, mut work: impl FnMut(&Self)) -> bool {
        let token = &self.record.get().recv_token;
        loop {
            match token.take(&*self.provider) {
                Ok(Taken::Clean) => {}
                Ok(Taken::Abandoned) => self.repair_recv(),
                Err(_) => return false,
            }
            work(self);
            if !token.release() {
                break;
            }
        }
        self.kick_send();
        true
    }

    /// Runs `work` under the send token. False: the token could not be had.
    pub(super) fn with_send(&self, mut work: impl FnMut(&Self)) -> bool {
        let token = &self.record.get().send_token;
        loop {
            match token.take(&*self.provider) {
                Ok(Taken::Clean) => {}
                Ok(Taken::Abandoned) => self.repair_send(),
                Err(_) => return false,
            }
            work(self);
            if !token.release() {
                return true;
            }
        }
    }

    /// Sends what is due, or leaves it to the thread that is sending right now.
    pub(super) fn kick_send(&self) {
        if self.due().is_none() {
            return;
        }
        let token = &self.record.get().send_token;
        let Some(taken) = token.take_or_ask(&*self.provider) else {
            return;
        };
        if taken == Taken::Abandoned {
            self.repair_send();
        }
        self.pump();
        if token.release() {
            self.with_send(Self::pump);
        }
    }

    /// Closes the companion. The memory goes when this value does.
    pub(super) fn finish(&self) {
        let r = self.record.get();
        if r.set(flag::CLOSED | flag::GONE) & flag::CLOSED != 0 {
            return;
        }
        let sp = &self.provider.sp;
        // first what no operation uses, then the rest with the companion. Errors say "in use" or "gone".
        let _withdrawn = sp.wsp_deregister_rdma_memory(self.sp, &r.own_ring.load());
        let _released = sp.wsp_deregister_memory(self.sp, self.numbers.ring_handle);
        // infallible in practice; a dead provider has nothing left to close.
        let _closed = sp.wsp_close_socket(self.sp);
        // Relaxed: read by `drop`, which has the value alone.
        self.finished.store(1, Ordering::Relaxed);
        self.wake_local();
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        // Relaxed: `&mut self`.
        if self.finished.load(Ordering::Relaxed) == 0 {
            return;
        }
        let r = self.record.get();
        // Relaxed: written before the record was published.
        let region = |offset: u64, len: u64| SharedRegion { offset, len };
        let parts = Parts {
            buffers: Some(region(
                r.recv_region.load(Ordering::Relaxed),
                u64::from(self.numbers.recv_stride) * u64::from(self.numbers.receives),
            )),
            ring: Some(region(
                r.ring_region.load(Ordering::Relaxed),
                HEADER_BYTES + self.numbers.ring_len,
            )),
            record: Some(region(self.record_offset, RECORD_BYTES)),
        };
        r.magic.store(0, Ordering::Relaxed);
        parts.free(&self.provider, self.sp);
    }
}

/// Memory of a connection.
#[derive(Default)]
struct Parts {
    record: Option<SharedRegion>,
    buffers: Option<SharedRegion>,
    ring: Option<SharedRegion>,
}

impl Parts {
    fn free(self, provider: &Provider, sp: SpSocket) {
        if let Some(ring) = self.ring {
            provider.memory.free_ring(sp, ring);
        }
        for region in [self.buffers, self.record].into_iter().flatten() {
            provider.memory.free(sp, region);
        }
    }
}

/// Place of a counter in an array of [`RECV_SLOTS`] entries.
#[inline]
pub(super) const fn slot(counter: u32) -> usize {
    (counter % RECV_SLOTS) as usize
}

/// A length as `usize`.
fn bytes(len: u64) -> Result<usize, WsaError> {
    usize::try_from(len).map_err(|_| WsaError::NoBufs)
}

/// CLOCK_MONOTONIC.
pub(super) fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(nanoseconds)
}

/// A buffer at `address`.
pub(super) const fn sp_buffer(
    address: NonNull<u8>,
    len: u32,
    handle: Option<MemoryHandle>,
) -> driver::spi::SpBuffer {
    driver::spi::SpBuffer {
        address,
        len,
        handle,
    }
}

#[cfg(test)]
impl Conn {
    /// Writes a lie into the head that a peer may read.
    pub(super) fn forge_accepted(&self, lie: u64) {
        // Relaxed: a test.
        self.head.get().accepted.store(lie, Ordering::Relaxed);
    }
}
