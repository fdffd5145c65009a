//! Making one end of a connection: memory, registrations, first receives; and giving the memory back.
//!
//! Place: [`crate::Switch`] calls [`Conn::start`] when a provider has connected a companion, [`Conn::attach`] in another process of
//! the family. Invariants: two registered regions per connection, one to send from and one to receive into; receives are
//! posted before HELLO says how many; the memory is given back only after the companion is closed, when nobody can reach it.
//! Source. Leaves out: everything after the first message.
#![expect(
    unsafe_code,
    reason = "makes views of memory that SharedMemory handed out"
)]

use driver::spi::{MEM_READ, MEM_WRITE, MemoryHandle, SharedRegion, SpSocket, options};
use driver::wsa::WsaError;
use ring_proto::sync::{AtomicI32, AtomicU32, AtomicU64, Ordering};

use super::buffers::Region;
use super::conn::{Conn, HEADER_PAD, PAYLOAD_MAX, WAITERS, now_ns};
use super::message::HEADER_LEN;
use super::record::{ConnRecord, MAGIC, RECORD_BYTES, RECV_SLOTS, SEND_SLOTS, Shared};
use super::ring::{HEADER_BYTES, RingHead};
use crate::provider_table::{Provider, ProviderRef};

/// Send ring of a program that set no limit.
const DEFAULT_RING: u32 = 1 << 20;
/// Shortest send ring we make.
const MIN_RING: u64 = 64 * 1024;
/// Longest.
const MAX_RING: u64 = 16 << 20;
/// Time the peer has for the negotiation, if nobody says more.
const NEGOTIATION_NS: u64 = 10_000_000_000;
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
    /// Time the peer has for the negotiation.
    pub negotiation_ns: u64,
}

impl Default for ConnOptions {
    fn default() -> Self {
        Self {
            send_buffer: DEFAULT_RING,
            recv_buffer: RECV_SLOTS * PAYLOAD_MAX,
            ring: 0,
            negotiation_ns: NEGOTIATION_NS,
        }
    }
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
        r.deadline_ns.store(
            now_ns().saturating_add(options.negotiation_ns),
            Ordering::Relaxed,
        );
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
            waiters: [const { AtomicU64::new(0) }; WAITERS],
            watched: AtomicU32::new(0),
            touches: AtomicU32::new(0),
            touches_seen: AtomicU32::new(0),
            rests_until_ns: AtomicU64::new(0),
            owned_fd: AtomicI32::new(-1),
            finished_by: AtomicU64::new(0),
            provider,
        })
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        // Relaxed: `&mut self`.
        if self.finished_by.load(Ordering::Relaxed) != self.provider.self_id() {
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

/// A length as `usize`.
fn bytes(len: u64) -> Result<usize, WsaError> {
    usize::try_from(len).map_err(|_| WsaError::NoBufs)
}
