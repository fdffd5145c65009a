//! The connection record: all state of one end of a SAN connection, in memory that every process of the family maps.
//!
//! Place: `conn` and its siblings read and write it; a forked child finds the connection by the record's offset.
//! Invariants: atomics only. Who writes a field stands at the field: "send" and "recv" are the holders of the two tokens. Each
//! change of state becomes true by one store, so that a process may be killed between any two stores and the next holder of
//! the token can tell what was done ([`POSTING`], [`IN_DOUBT`]).
//! Hot: accessors. Source: design of fork families; layout ours (docs/session.md). Leaves out: what happens on a change.
#![expect(unsafe_code, reason = "forms a struct of atomics over shared memory")]

use core::mem::{offset_of, size_of};
use core::ptr::NonNull;

use driver::spi::{Overlapped, RdmaDescriptor};
use ring_proto::sync::{AtomicI32, AtomicU32, AtomicU64, Ordering};

use crate::token::TokenWord;

/// Sends outstanding at most.
pub(super) const SEND_SLOTS: u32 = 16;
/// Receives posted at most.
pub(super) const RECV_SLOTS: u32 = 16;
/// First word of a live record: "SLCONN1".
pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"SLCONN1\0");

/// [`Overlapped::context`]: the operation is about to be handed to the provider.
pub(super) const POSTING: u64 = 1;
/// [`Overlapped::context`]: the provider has it.
pub(super) const POSTED: u64 = 2;
/// [`Overlapped::context`]: whoever posted it died; it may or may not have reached the NIC.
pub(super) const IN_DOUBT: u64 = 3;

/// Bits of [`ConnRecord::flags`]; set once, never cleared.
pub(super) mod flag {
    /// The negotiation is over.
    pub(crate) const ESTABLISHED: u32 = 1;
    /// The peer's HELLO came and was right.
    pub(crate) const HELLO_SEEN: u32 = 1 << 1;
    /// The program (or its close) ended the sending direction.
    pub(crate) const WRITE_SHUT: u32 = 1 << 2;
    /// The program ended the receiving direction.
    pub(crate) const READ_SHUT: u32 = 1 << 3;
    /// The peer's stream is complete and all of it is here.
    pub(crate) const FIN_SEEN: u32 = 1 << 4;
    /// Reset: as kernel TCP's state CLOSE after an error.
    pub(crate) const RESET: u32 = 1 << 5;
    /// The link is gone; nothing can be sent any more.
    pub(crate) const GONE: u32 = 1 << 6;
    /// An ABORT should go out.
    pub(crate) const ABORT_WANTED: u32 = 1 << 7;
    /// It went.
    pub(crate) const ABORT_SENT: u32 = 1 << 8;
    /// The program has closed.
    pub(crate) const CLOSING: u32 = 1 << 9;
    /// The companion is closed, the record is history.
    pub(crate) const CLOSED: u32 = 1 << 10;
    /// The peer has no holder left; its memory is being read.
    pub(crate) const ORPHANED: u32 = 1 << 11;
    /// Both directions were ended by the program.
    pub(crate) const BOTH_SHUT: u32 = READ_SHUT | WRITE_SHUT;
    /// A sender found no room: the next room is an edge.
    pub(crate) const NO_SPACE: u32 = 1 << 12;
}

/// A descriptor in atomics.
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct DescriptorWords {
    addr: AtomicU64,
    len: AtomicU64,
    rkey: AtomicU32,
    access: AtomicU32,
}

impl DescriptorWords {
    pub(super) fn store(&self, d: &RdmaDescriptor) {
        // Relaxed: published by the flags or the record offset.
        self.addr.store(d.addr, Ordering::Relaxed);
        self.len.store(d.len, Ordering::Relaxed);
        self.rkey.store(d.rkey, Ordering::Relaxed);
        self.access.store(d.access, Ordering::Relaxed);
    }

    pub(super) fn load(&self) -> RdmaDescriptor {
        // Relaxed: as in `store`.
        RdmaDescriptor {
            addr: self.addr.load(Ordering::Relaxed),
            len: self.len.load(Ordering::Relaxed),
            rkey: self.rkey.load(Ordering::Relaxed),
            access: self.access.load(Ordering::Relaxed),
        }
    }
}

/// A message whose payload waits in its receive buffer for the program.
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct Unread {
    /// Stream offset of its end.
    pub(super) end: AtomicU64,
    /// Bytes of payload.
    pub(super) len: AtomicU32,
    /// Receive buffer.
    pub(super) buffer: AtomicU32,
    /// Its position in the order of receives.
    pub(super) position: AtomicU32,
    reserved: AtomicU32,
}

/// The record.
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct ConnRecord {
    // Written before the record's offset is told to anybody.
    /// [`MAGIC`].
    pub(super) magic: AtomicU64,
    /// `Role`.
    pub(super) role: AtomicU32,
    /// Receive buffers.
    pub(super) receives: AtomicU32,
    /// Bytes from one receive buffer to the next.
    pub(super) recv_stride: AtomicU32,
    /// Longest message of ours, header included, that the provider takes.
    pub(super) message_max: AtomicU32,
    /// Longest RDMA operation.
    pub(super) rdma_max: AtomicU32,
    /// Sends outstanding at most.
    pub(super) send_slots: AtomicU32,
    /// Offset of the send ring's memory.
    pub(super) ring_region: AtomicU64,
    /// Bytes of its data part.
    pub(super) ring_len: AtomicU64,
    /// Offset of the receive buffers.
    pub(super) recv_region: AtomicU64,
    /// Registration of the send ring.
    pub(super) ring_handle: AtomicU64,
    /// Registration of the receive buffers.
    pub(super) recv_handle: AtomicU64,
    /// The send ring for the peer.
    pub(super) own_ring: DescriptorWords,
    // Written by recv at HELLO, read after HELLO_SEEN.
    /// The peer's send ring.
    pub(super) peer_ring: DescriptorWords,
    /// Bytes of its data part.
    pub(super) peer_ring_len: AtomicU64,
    /// Start of its data part.
    pub(super) peer_data_offset: AtomicU32,
    /// Receives the peer has.
    pub(super) peer_receives: AtomicU32,
    /// Most payload in a message to the peer.
    pub(super) payload_max: AtomicU32,
    /// Features of the peer.
    pub(super) peer_features: AtomicU32,
    /// `alive::KeepAlive` in a word; 0: off.
    pub(super) keep_alive: AtomicU64,
    /// Written under the receive token: since when there was no sign of life, on CLOCK_MONOTONIC; 0: not known.
    pub(super) quiet_since_ns: AtomicU64,
    /// When somebody must look at that; 0: now.
    pub(super) probe_at_ns: AtomicU64,
    reserved1: [AtomicU64; 3],

    // Line of everybody.
    /// [`flag`].
    pub(super) flags: AtomicU32,
    /// Sticky error, an errno; taken by the first report.
    pub(super) error: AtomicI32,
    /// Grows with every event that makes kernel TCP call its readers.
    pub(super) in_edge: AtomicU64,
    /// The same for writers.
    pub(super) out_edge: AtomicU64,
    /// End of the negotiation or of the wait for the peer's FIN, on CLOCK_MONOTONIC; 0: none.
    pub(super) deadline_ns: AtomicU64,
    /// Bytes the program allows in the ring.
    pub(super) send_limit: AtomicU64,
    /// Written by recv: the peer's total of posted receives.
    pub(super) granted: AtomicU32,
    /// Written by recv: a receive or send ended with this WSA code, 0: none.
    pub(super) failure: AtomicU32,
    /// Written by recv: bytes of ours that the peer's program has taken, as of its last message.
    pub(super) peer_consumed: AtomicU64,
    /// Bytes from which the socket counts as readable.
    pub(super) recv_low_water: AtomicU32,
    reserved2: AtomicU32,

    // Send side.
    pub(super) send_token: TokenWord,
    /// Bytes accepted from the program. Copied to the ring's head.
    pub(super) accepted: AtomicU64,
    /// Stream offset up to which SENDs have completed; one more than `accepted` once FIN has.
    pub(super) freed: AtomicU64,
    /// Start of the live run, in the stream.
    pub(super) run_stream: AtomicU64,
    /// Start of the live run, in the ring.
    pub(super) run_ring: AtomicU64,
    /// Messages handed to the provider; message n uses slot n modulo `send_slots`.
    pub(super) posted: AtomicU32,
    /// Messages whose completion was taken.
    pub(super) reaped: AtomicU32,
    /// 1: the next message repeats one in doubt.
    pub(super) resend: AtomicU32,
    /// Receives the peer was told of.
    pub(super) reported: AtomicU32,
    /// Stream offset after the message in that slot.
    pub(super) send_end: [AtomicU64; SEND_SLOTS as usize],
    /// Payload bytes and kind (bits 32..40) of the message in that slot.
    pub(super) send_info: [AtomicU64; SEND_SLOTS as usize],
    /// Completion slots of sends.
    pub(super) send_ov: [Overlapped; SEND_SLOTS as usize],

    // Receive side.
    pub(super) recv_token: TokenWord,
    /// Bytes the program has taken. Copied to the ring's head.
    pub(super) rcv_next: AtomicU64,
    /// Bytes that are here.
    pub(super) rcv_end: AtomicU64,
    /// Receives that were looked at (low half), and what must be added to get the peer's message number (high half, wrapping).
    pub(super) recv_position: AtomicU64,
    /// Receives handed to the provider.
    pub(super) recv_posted: AtomicU32,
    /// First unread message.
    pub(super) unread_head: AtomicU32,
    /// One past the last.
    pub(super) unread_tail: AtomicU32,
    /// `orphan::Step`.
    pub(super) orphan_step: AtomicU32,
    /// Buffer of the n-th posted receive, n modulo `RECV_SLOTS`.
    pub(super) order: [AtomicU32; RECV_SLOTS as usize],
    /// Queue of unread messages.
    pub(super) unread: [Unread; RECV_SLOTS as usize],
    /// Completion slots of receives, by buffer.
    pub(super) recv_ov: [Overlapped; RECV_SLOTS as usize],

    // Reading a dead peer's memory; written by recv.
    /// Completion slot of the RDMA READ under way.
    pub(super) pull_ov: Overlapped,
    /// End of the peer's stream.
    pub(super) pull_accepted: AtomicU64,
    /// Its run.
    pub(super) pull_run_stream: AtomicU64,
    /// Its run.
    pub(super) pull_run_ring: AtomicU64,
    /// What its program had taken of ours.
    pub(super) pull_consumed: AtomicU64,
    /// Whether it had ended its direction.
    pub(super) pull_fin: AtomicU32,
    reserved3: AtomicU32,
    /// Stream offset of the first byte of the chunk that lies at the start of our own ring.
    pub(super) pull_base: AtomicU64,
    /// End of the READ under way.
    pub(super) pull_target: AtomicU64,

    /// Written by recv: offset from which the peer may repeat itself, after one of its processes died; `u64::MAX`: it may not.
    pub(super) repeat_from: AtomicU64,

    // What is rare.
    /// Written by send: stream offset after the last urgent byte; 0: none.
    pub(super) urgent_end: AtomicU64,
    /// Written by send: until then less than a full message is held back, on CLOCK_MONOTONIC; 0: nothing is.
    pub(super) hold_until_ns: AtomicU64,
    /// `TCP_CORK`.
    pub(super) corked: AtomicU32,
    /// Written by recv: `urgent::NONE` and its siblings.
    pub(super) urgent_state: AtomicU32,
    /// Written by recv: stream offset of the urgent byte.
    pub(super) urgent_at: AtomicU64,
    /// `SO_OOBINLINE`.
    pub(super) urgent_in_line: AtomicU32,
    /// Zero-copy sends.
    pub(super) zerocopy_calls: AtomicU32,
    /// Those of them that the program was told of.
    pub(super) zerocopy_told: AtomicU32,
    /// `TCP_USER_TIMEOUT` in milliseconds; 0: the kernel's default.
    pub(super) user_timeout_ms: AtomicU32,
    /// Since when the message in `waiting_for` is the oldest under way, on CLOCK_MONOTONIC; 0: none is.
    pub(super) waiting_since_ns: AtomicU64,
    /// Number of that message.
    pub(super) waiting_for: AtomicU32,
    /// Written under the receive token: messages and completions at the last look for signs of life.
    pub(super) heard: AtomicU32,
    /// Completion slot of the probe under way.
    pub(super) probe_ov: Overlapped,
    /// Written under the receive token: probes without an answer.
    pub(super) probes: AtomicU32,
    reserved4: AtomicU32,
}

/// Bytes of the record's memory.
pub(super) const RECORD_BYTES: u64 = 2048;

const _: () = {
    assert!(size_of::<ConnRecord>() as u64 <= RECORD_BYTES);
    assert!(offset_of!(ConnRecord, ring_region) == 32);
    assert!(offset_of!(ConnRecord, own_ring) == 72);
    assert!(offset_of!(ConnRecord, peer_ring) == 96);
    assert!(offset_of!(ConnRecord, flags) == 192);
    assert!(offset_of!(ConnRecord, send_token) == 256);
    assert!(offset_of!(ConnRecord, send_end) == 320);
    assert!(offset_of!(ConnRecord, send_ov) == 576);
    assert!(offset_of!(ConnRecord, recv_token) == 960);
    assert!(offset_of!(ConnRecord, recv_ov) == 1464);
    assert!(offset_of!(ConnRecord, pull_ov) == 1848);
};

/// A struct of atomics in shared memory.
#[derive(Debug)]
pub(super) struct Shared<T>(NonNull<T>);

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Shared<T> {}

// SAFETY: the struct is atomics in shared memory, which any thread may use.
unsafe impl<T: Sync> Send for Shared<T> {}
// SAFETY: as for Send.
unsafe impl<T: Sync> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// Uses the struct at `base`.
    ///
    /// # Safety
    /// 1. `base` is aligned for `T` and readable and writable for its size as long as the value is used.
    /// 2. `T` holds atomics only, and zeros are a valid value; only atomics are used on that memory.
    pub(super) const unsafe fn new(base: NonNull<u8>) -> Self {
        Self(base.cast())
    }

    /// Clears the memory of a struct that nobody uses yet.
    ///
    /// # Safety
    /// As [`Self::new`], and this thread alone uses the memory.
    pub(super) unsafe fn clear(&self) {
        // SAFETY: writable for the size of `T` and ours alone by the caller; zero is a valid value.
        unsafe { core::ptr::write_bytes(self.0.as_ptr(), 0, 1) };
    }

    /// The struct.
    #[inline]
    pub(super) const fn get(&self) -> &T {
        // SAFETY: 1. aligned and mapped as long as `self` is used, by `new` 1. 2. atomics only, so other writers are no race.
        unsafe { self.0.as_ref() }
    }
}

impl ConnRecord {
    /// The flags.
    #[inline]
    pub(super) fn flags(&self) -> u32 {
        // EDGE conn-flags (acquire): what was stored before the flag was set. Released in `set`.
        self.flags.load(Ordering::Acquire)
    }

    /// Whether one of `bits` is set.
    #[inline]
    pub(super) fn has(&self, bits: u32) -> bool {
        self.flags() & bits != 0
    }

    /// Sets flags; the flags before.
    pub(super) fn set(&self, bits: u32) -> u32 {
        // EDGE conn-flags (release): what the flag stands for. Acquired in `flags`.
        self.flags.fetch_or(bits, Ordering::AcqRel)
    }

    /// Clears [`flag::NO_SPACE`]; true if it was set.
    pub(super) fn take_no_space(&self) -> bool {
        // Relaxed: the flag publishes nothing.
        self.flags.fetch_and(!flag::NO_SPACE, Ordering::Relaxed) & flag::NO_SPACE != 0
    }

    /// Position in the order of receives, and what makes it the peer's message number.
    #[inline]
    pub(super) fn recv_position(&self) -> (u32, u32) {
        // Relaxed: written and read under the receive token; other readers only estimate.
        let word = self.recv_position.load(Ordering::Relaxed);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "takes the two halves apart"
        )]
        let halves = (word as u32, (word >> 32) as u32);
        halves
    }

    /// Stores both halves at once, so that a process killed here leaves them in agreement.
    #[inline]
    pub(super) fn set_recv_position(&self, position: u32, bias: u32) {
        // Relaxed: as in `recv_position`.
        self.recv_position.store(
            u64::from(position) | u64::from(bias) << 32,
            Ordering::Relaxed,
        );
    }

    /// Receives posted since the start, as the peer counts them.
    #[inline]
    pub(super) fn credit_total(&self) -> u32 {
        // Relaxed: a report may be old; the next one repairs it.
        self.recv_posted
            .load(Ordering::Relaxed)
            .wrapping_add(self.recv_position().1)
    }
}
