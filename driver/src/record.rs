//! What lies where in an arena, and the typed records at those offsets.
//!
//! Place: `arena` forms references to these records; `admin`, `pair` and `provider` read and change them.
//! Invariants: records are `repr(C)` and consist of atomics only, every bit pattern is valid, zero means "never used", and they hold
//! offsets, never addresses: all processes of a family see the same memory at different places.
//! Source: ours.
//!
//! ```text
//! 0x0000_0000 Header            lock, queue positions, names of live processes, heap
//! 0x0001_0000 admin rings       64 commands, 64 completions
//! 0x0004_0000 process numbers   one u32 per holder slot
//! 0x0005_0000 buckets           QPN or listener -> socket record
//! 0x0006_0000 stream page       number of messages on the stream to the device
//! 0x0008_0000 event queue       32768 EQEs
//! 0x0010_0000 pair table        1024 records of 1 KiB
//! 0x0040_0000 socket table      15360 records of 4 KiB
//! 0x0400_0000 heap              up to 1 GiB
//! 0x4000_0000 * n               pair arena n
//! ```

use core::mem::size_of;

use ring_proto::sync::{AtomicU32, AtomicU64};

use crate::alloc::Heap;
use crate::spi::Overlapped;

/// Marks a type as a record.
///
/// # Safety
/// The type is `repr(C)`, consists of atomics of `ring_proto::sync` (or arrays and records of them) only, and needs an alignment of
/// at most 64.
#[expect(
    unsafe_code,
    reason = "the promise that makes a reference into shared memory sound"
)]
pub(crate) unsafe trait Record {}

macro_rules! records {
    ($($name:ident),*) => {$(
        // SAFETY: `repr(C)`, atomics and records of atomics only, alignment 8.
        #[expect(unsafe_code, reason = "see `Record`")]
        unsafe impl Record for $name {}
    )*};
}
records!(
    Header,
    Process,
    Bucket,
    Pair,
    Socket,
    Registration,
    Allocation,
    Overlapped
);

/// IOVA of the arena; offset 0 of [`Header`].
pub(crate) const ARENA_IOVA: u64 = 0x1_0000_0000;
/// Bytes of the arena and of each pair arena: one region number each.
pub(crate) const ARENA_LEN: u64 = 1 << 30;

/// Admin commands and completions in their rings.
pub(crate) const ADMIN_DEPTH: u32 = 64;
pub(crate) const ADMIN_SQ: u64 = 0x1_0000;
pub(crate) const ADMIN_CQ: u64 = 0x1_1000;
pub(crate) const PROCESSES: u64 = 0x4_0000;
pub(crate) const BUCKETS: u64 = 0x5_0000;
pub(crate) const BUCKET_COUNT: u32 = 1 << 14;
pub(crate) const STREAM: u64 = 0x6_0000;
pub(crate) const EQ: u64 = 0x8_0000;
pub(crate) const EQ_DEPTH: u32 = 1 << 15;
pub(crate) const PAIRS: u64 = 0x10_0000;
pub(crate) const PAIR_COUNT: u32 = 1024;
pub(crate) const PAIR_STRIDE: u64 = 1024;
pub(crate) const SOCKETS: u64 = 0x40_0000;
pub(crate) const SOCKET_COUNT: u32 = 15_360;
pub(crate) const SOCKET_STRIDE: u64 = 4096;
pub(crate) const HEAP: u64 = 0x400_0000;

/// Doorbell slot of the event queue.
pub(crate) const EVENT_SLOT: u32 = 1;
/// First of the two doorbell slots of socket 0.
pub(crate) const SOCKET_SLOTS: u32 = 2;
/// First doorbell slot for objects that are no sockets.
pub(crate) const FREE_SLOTS: u32 = SOCKET_SLOTS + 2 * SOCKET_COUNT;
/// Words of the bitmap of those.
pub(crate) const FREE_SLOT_WORDS: usize = 32;

const _: () = {
    assert!(size_of::<Header>() as u64 <= ADMIN_SQ);
    assert!(ADMIN_SQ + 64 * ADMIN_DEPTH as u64 <= ADMIN_CQ);
    assert!(PROCESSES + 4 * ring_proto::uar::HOLDERS as u64 <= BUCKETS);
    assert!(BUCKETS + 4 * BUCKET_COUNT as u64 <= STREAM);
    assert!(STREAM.is_multiple_of(4096) && STREAM + 4096 <= EQ);
    assert!(EQ + 16 * EQ_DEPTH as u64 <= PAIRS);
    assert!(PAIRS + PAIR_STRIDE * PAIR_COUNT as u64 <= SOCKETS);
    assert!(size_of::<Pair>() as u64 <= PAIR_STRIDE);
    assert!(SOCKETS + SOCKET_STRIDE * SOCKET_COUNT as u64 <= HEAP);
    assert!(size_of::<Socket>() as u64 <= SOCKET_STRIDE);
    assert!(FREE_SLOTS < ring_proto::uar::SLOTS);
};

/// First bytes of the arena.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Header {
    /// [`crate::lock::RobustLock`] over admin queue, event queue, heap, tables and stream.
    pub(crate) lock: AtomicU32,
    /// 1 once some process saw the device's end.
    pub(crate) dead: AtomicU32,
    /// Commands posted; a command exists once this covers it.
    pub(crate) admin_producer: AtomicU32,
    /// Completions taken.
    pub(crate) admin_consumer: AtomicU32,
    /// Number of the next command.
    pub(crate) admin_next_id: AtomicU32,
    /// EQEs taken.
    pub(crate) eq_consumer: AtomicU32,
    /// Batches of events filed so far.
    pub(crate) events_filed: AtomicU32,
    /// Protection domain of the driver's own objects.
    pub(crate) pdn: AtomicU32,
    /// Local key of the whole arena.
    pub(crate) lkey: AtomicU32,
    /// Sockets ever used.
    pub(crate) socket_high: AtomicU32,
    /// First free socket + 1, 0 for none.
    pub(crate) socket_free: AtomicU32,
    /// Pair arenas made so far, to find the one idle longest.
    pub(crate) pair_clock: AtomicU32,
    /// 1 once a second process may hold what this function has.
    pub(crate) shared: AtomicU32,
    /// Sockets that keep queues nobody uses.
    pub(crate) spares: AtomicU32,
    /// First free one of those + 1, 0 for none; they are not in the list of `socket_free`.
    pub(crate) spare_free: AtomicU32,
    /// How many of them there may be.
    pub(crate) spare_limit: AtomicU32,
    /// Vectors in use.
    pub(crate) vectors: AtomicU64,
    /// Name of the process that uses each vector.
    pub(crate) vector_owner: [AtomicU32; 64],
    /// Doorbell slots in use from [`FREE_SLOTS`] upwards.
    pub(crate) slots: [AtomicU64; FREE_SLOT_WORDS],
    /// Memory of the arena.
    pub(crate) heap: Heap,
}

/// Number of the process in a holder slot, for the time when the NIC is not there to tell who lives.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: AtomicU32,
}

/// First socket of a bucket + 1, 0 for none.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Bucket {
    pub(crate) first: AtomicU32,
}

/// A pair arena. Its number is its place in the table; number 0 is the arena itself and unused.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Pair {
    /// 0: unused; else counts the lives of this number, odd while it is mapped at the device.
    pub(crate) generation: AtomicU32,
    /// Function that everything in it is addressed to.
    pub(crate) peer_function: AtomicU32,
    /// Local key of all of it.
    pub(crate) lkey: AtomicU32,
    /// Rings in it.
    pub(crate) rings: AtomicU32,
    /// `pair_clock` when the last ring went.
    pub(crate) idle_since: AtomicU32,
    /// Zero.
    pub(crate) reserved: AtomicU32,
    /// Its memory.
    pub(crate) heap: Heap,
}

/// Sends plus RDMA operations of a socket that may be outstanding (R-132).
pub(crate) const SEND_DEPTH: u32 = 16;
/// Receives of a socket that may be outstanding.
pub(crate) const RECV_DEPTH: u32 = 24;
/// Places for receives: a power of two.
pub(crate) const RECV_PLACES: u32 = 32;
/// Buffers of one operation.
pub(crate) const OPERATION_BUFFERS: usize = 4;

/// One outstanding operation.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Operation {
    /// Offset of the completion slot.
    pub(crate) overlapped: AtomicU64,
    /// Sequence number the place is used for.
    pub(crate) sequence: AtomicU32,
    /// Bytes to send, 0 for a receive.
    pub(crate) len: AtomicU32,
    /// 1: complete by upcall.
    pub(crate) notify: AtomicU32,
    /// Registrations in use.
    pub(crate) handle_count: AtomicU32,
    /// Their handles.
    pub(crate) handles: [AtomicU64; OPERATION_BUFFERS],
    /// Zero.
    pub(crate) reserved: AtomicU64,
}

/// A registration of memory (`wsp_register_memory`, `wsp_register_rdma_memory`), in the heap.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Registration {
    /// Handle of the socket it was made for; 0 in a freed one.
    pub(crate) socket: AtomicU64,
    /// Next registration of that socket, 0 at the end.
    pub(crate) next: AtomicU64,
    /// First byte, as an offset.
    pub(crate) offset: AtomicU64,
    /// Bytes.
    pub(crate) len: AtomicU64,
    /// Access bits as passed.
    pub(crate) access: AtomicU32,
    /// Times it was made and not undone.
    pub(crate) count: AtomicU32,
    /// Remote key, 0 for local use only.
    pub(crate) rkey: AtomicU32,
    /// Local key of the memory (and of the remote exposure, to undo it).
    pub(crate) lkey: AtomicU32,
    /// Life of this record, part of its handle.
    pub(crate) life: AtomicU32,
    /// Zero.
    pub(crate) reserved: AtomicU32,
}

/// Memory that the switch allocated for a socket, so that it comes back when all of the socket's processes are killed. In the heap.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Allocation {
    /// Next allocation of that socket, 0 at the end.
    pub(crate) next: AtomicU64,
    /// First byte, as an offset.
    pub(crate) offset: AtomicU64,
    /// Bytes.
    pub(crate) len: AtomicU64,
}

/// Entries of a flight record.
pub(crate) const FLIGHTS: u32 = 16;

/// Entry of a flight record.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Flight {
    /// Monotonic clock.
    pub(crate) time_ns: AtomicU64,
    /// What happened: kind in bits 56.., Winsock code in bits 32..56, bytes in bits 0..32.
    pub(crate) what: AtomicU64,
}

/// A companion socket.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Socket {
    /// Counts the lives of this record; its low 16 bits are in the handle.
    pub(crate) generation: AtomicU32,
    /// A `STATE_*` of `provider::socket`.
    pub(crate) state: AtomicU32,
    /// Next free socket + 1.
    pub(crate) next_free: AtomicU32,
    /// Next socket of its bucket + 1.
    pub(crate) next_in_bucket: AtomicU32,
    /// What its bucket knows it by: kind in the high half, number in the low.
    pub(crate) key: AtomicU64,
    /// Winsock code that ended the connection, 0 while none.
    pub(crate) sticky: AtomicU32,
    /// 1: the peer has no holder left.
    pub(crate) orphaned: AtomicU32,
    /// Local address, packed.
    pub(crate) local: AtomicU64,
    /// Peer's address, packed.
    pub(crate) remote: AtomicU64,
    /// QP, 0 for none.
    pub(crate) qpn: AtomicU32,
    /// CQ, 0 for none.
    pub(crate) cqn: AtomicU32,
    /// Listener, 0 for none.
    pub(crate) listener: AtomicU32,
    /// Function of the peer, 0 until it was asked for.
    pub(crate) peer_function: AtomicU32,
    /// Rings and scratch of the QP, 0 for none.
    pub(crate) memory: AtomicU64,
    /// QP in INIT that the last life left to the next, together with CQ and memory; 0 for none.
    pub(crate) spare_qpn: AtomicU32,
    /// Name of the process that holds it.
    pub(crate) spare_owner: AtomicU32,
    /// 1 while the listener that accepted the socket holds it.
    pub(crate) untaken: AtomicU32,
    /// Zero.
    pub(crate) reserved: AtomicU32,
    /// First registration.
    pub(crate) registrations: AtomicU64,
    /// 1: the next send waits for the RDMA READs before it (R-128).
    pub(crate) fence: AtomicU32,
    /// Flight recorder on (SO_DEBUG).
    pub(crate) debug: AtomicU32,
    /// Counts finished connects.
    pub(crate) connect_count: AtomicU32,
    /// Winsock code of the last one, 0 for success.
    pub(crate) connect_error: AtomicU32,
    /// Its `CmStatus`.
    pub(crate) connect_detail: AtomicU32,
    /// 1: the QP went through a connect and must be reset before the next.
    pub(crate) connect_used: AtomicU32,
    /// Counts filed connection requests.
    pub(crate) accept_count: AtomicU32,
    /// Backlog asked for.
    pub(crate) backlog: AtomicU32,
    /// Waiting requests: ring of u64, 0 for none.
    pub(crate) requests: AtomicU64,
    /// Places of that ring, a power of two.
    pub(crate) request_places: AtomicU32,
    /// Requests taken out at the front.
    pub(crate) request_consumer: AtomicU32,
    /// Requests filed.
    pub(crate) request_producer: AtomicU32,
    /// Name of the process that made or took the socket last.
    pub(crate) owner: AtomicU32,
    /// Token of who polls the CQ.
    pub(crate) poll_token: AtomicU64,
    /// Token of who posts sends.
    pub(crate) send_token: AtomicU64,
    /// Token of who posts receives.
    pub(crate) recv_token: AtomicU64,
    /// Sends posted: sequence in the high half, SQ position after them in the low. One store commits both.
    pub(crate) sends_posted: AtomicU64,
    /// Sends finished: the same two numbers.
    pub(crate) sends_done: AtomicU64,
    /// Receives posted.
    pub(crate) recvs_posted: AtomicU32,
    /// Receives finished.
    pub(crate) recvs_done: AtomicU32,
    /// CQEs taken.
    pub(crate) cq_consumer: AtomicU32,
    /// Entries written into the flight record.
    pub(crate) flights: AtomicU32,
    /// First [`Allocation`].
    pub(crate) allocations: AtomicU64,
    /// Flight record (SO_DEBUG): ring of the latest entries.
    pub(crate) flight: [Flight; FLIGHTS as usize],
    /// Outstanding sends, by sequence.
    pub(crate) sends: [Operation; SEND_DEPTH as usize],
    /// Outstanding receives, by sequence.
    pub(crate) recvs: [Operation; RECV_PLACES as usize],
}
