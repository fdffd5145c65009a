//! Verbs-like objects for driver developers: protection domain, memory, completion queue, queue pair.
//!
//! Place: programs and tests -> here -> the same queues, commands and doorbells that the service provider uses.
//! Invariants: every object keeps what it stands on alive and is destroyed when dropped; one owner per queue (`&mut self`), so
//! positions are private and nothing is locked on the way of a WQE.
//! Hot: [`Qp::post_send`], [`Qp::post_recv`], [`Qp::ring`], [`Cq::poll`]: no lock, allocation or log, and no system call while the
//! NIC is awake.
//! Source: verbs (ibv_post_send and its kin) by name. Shared receive queues, memory windows, atomics, and what changes or arms a CQ
//! have files of their own below. Leaves out: connection manager.
//!
//! Two functions of an embedded device, and one message between them:
//!
//! ```
//! use std::sync::Arc;
//! use driver::function::Function;
//! use driver::sq::{Payload, SendWr};
//! use driver::verbs::{Access, Pd, Qp, QpOptions, Cq};
//! use nic_emu::{device::DeviceOptions, embedded::EmbeddedDevice};
//! use ring_proto::{status::Opcode, wqe::WqeFlags};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = EmbeddedDevice::new(DeviceOptions::default());
//! let node = device.add_node("a", &[[127, 77, 0, 1].into()]);
//! let mut ends = Vec::new();
//! for _ in 0..2 {
//!     let function = Function::attach(Arc::new(device.attach(node)?))?;
//!     let pd = Pd::new(&function)?;
//!     let memory = pd.register(4096, Access::LOCAL_WRITE)?;
//!     let mut cq = Cq::new(&function, 64)?;
//!     let qp = Qp::new(&pd, &mut cq, QpOptions::default())?;
//!     ends.push((qp, cq, memory));
//! }
//! let [(mut a, mut a_cq, out), (mut b, mut b_cq, into)] = ends.try_into().map_err(|_| "two ends")?;
//! a.connect(b.address())?;
//! b.connect(a.address())?;
//!
//! b.post_recv(1, &[into.sge(0, 4096)])?;
//! b.ring();
//! out.write(0, b"hello");
//! let sges = [out.sge(0, 5)];
//! a.post_send(&SendWr {
//!     wr_id: 2,
//!     opcode: Opcode::SEND,
//!     flags: WqeFlags::SIGNALED,
//!     imm: 0,
//!     payload: Payload::Sges(&sges),
//!     remote_addr: 0,
//!     rkey: 0,
//! })?;
//! a.ring();
//!
//! let received = b_cq.poll().expect("one message came");
//! let mut text = [0; 5];
//! into.read(0, &mut text);
//! assert_eq!((received.wr_id, received.byte_len, &text), (1, 5, b"hello"));
//! assert_eq!(a_cq.poll().expect("and went").wr_id, 2);
//! # Ok(())
//! # }
//! ```

use std::sync::{Arc, Mutex};

pub use ring_proto::admin::Access;
use ring_proto::admin::{AdminOp, AdminStatus, Body, MrReg, QpCreate, QpModify, QueueCreate};
use ring_proto::ids::{Cqn, FunctionId, Lkey, Pdn, Qpn, Rkey};
use ring_proto::index::Depth;
use ring_proto::regs::DEPTH_LIMIT;
use ring_proto::shared::{CqeRing, WqeRing};
use ring_proto::status::QpState;
use ring_proto::sync::{AtomicU32, Ordering};
use ring_proto::wqe::Sge;

use crate::cq::{self, Wc};
use crate::error::{AdminError, FunctionError, PostError};
use crate::function::{Function, high, low};
use crate::record::ARENA_IOVA;
use crate::rq;
use crate::sq::{self, Encoded, SendWr};

mod atomic;
mod cq_change;
mod mw;
mod srq;

pub use atomic::AtomicWr;
pub use mw::{Mw, MwType};
pub use srq::Srq;

/// Memory and a doorbell slot of one object, given back when dropped.
#[derive(Debug)]
struct Hold {
    function: Arc<Function>,
    offset: u64,
    len: u64,
    slot: Option<u32>,
    /// The NIC refused to let go of the memory, which so must not be given to anybody else.
    is_kept: bool,
}

impl Hold {
    fn new(function: &Arc<Function>, len: u64, with_slot: bool) -> Result<Self, FunctionError> {
        let mut locked = function.lock();
        let slot = if with_slot {
            Some(locked.take_slot().ok_or(FunctionError::NoSlot)?)
        } else {
            None
        };
        // Who needs a slot alone has no memory.
        let place = if len == 0 { Some(0) } else { locked.alloc(len) };
        let Some(offset) = place else {
            if let Some(slot) = slot {
                locked.free_slot(slot);
            }
            return Err(FunctionError::ArenaFull { len });
        };
        function.arena().zero(offset, len.next_multiple_of(8));
        if let Some(slot) = slot {
            function.clear_line(slot);
        }
        drop(locked);
        Ok(Self {
            function: Arc::clone(function),
            offset,
            len,
            slot,
            is_kept: false,
        })
    }

    #[inline]
    fn slot(&self) -> u32 {
        self.slot.expect("asked for when it was made")
    }

    fn iova(&self) -> u64 {
        ARENA_IOVA + self.offset
    }

    /// Destroys the object that stood on this.
    fn destroy(&self, op: AdminOp, id: u32) {
        match self.function.lock().admin_on(op, id) {
            Ok(_) | Err(_) => {} // A dead device has no objects left.
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut locked = self.function.lock();
        if self.is_kept {
            return;
        }
        if self.len != 0 {
            locked.free(self.offset, self.len);
        }
        if let Some(slot) = self.slot {
            locked.free_slot(slot);
        }
    }
}

/// Protection domain.
#[derive(Debug)]
pub struct Pd {
    inner: Arc<PdInner>,
}

#[derive(Debug)]
struct PdInner {
    function: Arc<Function>,
    pdn: Pdn,
}

impl Drop for PdInner {
    fn drop(&mut self) {
        match self.function.lock().admin_on(AdminOp::PD_FREE, self.pdn.0) {
            Ok(_) | Err(_) => {} // A dead device has no objects left.
        }
    }
}

impl Pd {
    /// Allocates a protection domain.
    ///
    /// # Errors
    /// [`FunctionError::Admin`] when the device refuses.
    pub fn new(function: &Arc<Function>) -> Result<Self, FunctionError> {
        let [pdn, _] = function.lock().admin(AdminOp::PD_ALLOC, Body::default())?;
        Ok(Self {
            inner: Arc::new(PdInner {
                function: Arc::clone(function),
                pdn: Pdn(low(pdn)),
            }),
        })
    }

    /// Allocates `len` bytes of the arena, zeroed, and registers them.
    ///
    /// # Errors
    /// [`FunctionError::ArenaFull`], or [`FunctionError::Admin`] when the device refuses.
    pub fn register(&self, len: u32, access: Access) -> Result<Mr, FunctionError> {
        let function = &self.inner.function;
        let hold = Hold::new(function, len.into(), false)?;
        let region = MrReg {
            addr: hold.iova(),
            len: len.into(),
            pdn: self.inner.pdn.0,
            access: access.bits(),
            ..Default::default()
        };
        let [keys, _] = function.lock().admin(AdminOp::MR_REG, region.to_body())?;
        Ok(Mr {
            hold,
            _pd: Arc::clone(&self.inner),
            len,
            lkey: Lkey(low(keys)),
            rkey: Rkey(high(keys)),
        })
    }
}

/// A registered piece of memory.
#[derive(Debug)]
pub struct Mr {
    hold: Hold,
    _pd: Arc<PdInner>,
    len: u32,
    lkey: Lkey,
    rkey: Rkey,
}

impl Mr {
    /// Local key.
    #[must_use]
    pub const fn lkey(&self) -> Lkey {
        self.lkey
    }

    /// Remote key.
    #[must_use]
    pub const fn rkey(&self) -> Rkey {
        self.rkey
    }

    /// IOVA of the first byte.
    #[must_use]
    pub fn addr(&self) -> u64 {
        self.hold.iova()
    }

    /// Scatter/gather element for `len` bytes from `offset`. Nothing is checked here: the NIC does.
    #[must_use]
    pub fn sge(&self, offset: u32, len: u32) -> Sge {
        Sge {
            addr: self.addr() + u64::from(offset),
            len,
            lkey: self.lkey.0,
        }
    }

    /// Copies `bytes` to `offset`; false when they do not fit in.
    pub fn write(&self, offset: u32, bytes: &[u8]) -> bool {
        self.contains(offset, bytes.len())
            && self
                .hold
                .function
                .arena()
                .write(self.hold.offset + u64::from(offset), bytes)
    }

    /// Copies from `offset` into `bytes`; false when the range leaves the region.
    pub fn read(&self, offset: u32, bytes: &mut [u8]) -> bool {
        self.contains(offset, bytes.len())
            && self
                .hold
                .function
                .arena()
                .read(self.hold.offset + u64::from(offset), bytes)
    }

    fn contains(&self, offset: u32, len: usize) -> bool {
        (offset as u64).saturating_add(len as u64) <= u64::from(self.len)
    }
}

impl Drop for Mr {
    fn drop(&mut self) {
        let answer = self
            .hold
            .function
            .lock()
            .admin_on(AdminOp::MR_DEREG, self.lkey.0);
        // Memory windows of peers still reach it: the arena lives with the function, and so does this piece of it.
        self.hold.is_kept = matches!(
            answer,
            Err(AdminError::Refused {
                status: AdminStatus::BUSY,
                ..
            })
        );
    }
}

/// Completion queue.
#[derive(Debug)]
pub struct Cq {
    inner: Arc<CqInner>,
    slot: u32,
    ring: CqeRing,
    consumer: u32,
    queues: Vec<(Qpn, Arc<Positions>)>,
}

#[derive(Debug)]
struct CqInner {
    /// Its doorbell slot.
    hold: Hold,
    /// The memory of its ring, another one after each resize.
    memory: Mutex<Hold>,
    cqn: Cqn,
}

impl Drop for CqInner {
    fn drop(&mut self) {
        self.hold.destroy(AdminOp::CQ_DESTROY, self.cqn.0);
    }
}

/// How far the NIC is done with a QP's queues.
#[derive(Debug, Default)]
struct Positions {
    sq_consumer: AtomicU32,
    rq_consumer: AtomicU32,
    /// Of the SRQ in place of the RQ.
    shared: Option<Arc<AtomicU32>>,
}

fn depth(what: &'static str, entries: u32) -> Result<Depth, FunctionError> {
    Depth::new(entries)
        .filter(|depth| depth.entries() <= DEPTH_LIMIT)
        .ok_or(FunctionError::Invalid {
            what,
            value: entries.into(),
        })
}

impl Cq {
    /// Creates a CQ of `entries` entries, a power of two.
    ///
    /// # Errors
    /// [`FunctionError::Invalid`] for another size; [`FunctionError::Admin`] when the device refuses.
    pub fn new(function: &Arc<Function>, entries: u32) -> Result<Self, FunctionError> {
        let depth = depth("CQ depth", entries)?;
        let hold = Hold::new(function, 0, true)?;
        let memory = Hold::new(function, CqeRing::bytes(depth), false)?;
        let queue = QueueCreate {
            ring: memory.iova(),
            depth: entries,
            slot: hold.slot(),
        };
        let [cqn, _] = function.lock().admin(AdminOp::CQ_CREATE, queue.to_body())?;
        let ring = function
            .arena()
            .ring(memory.offset, depth)
            .ok_or(FunctionError::ArenaFull { len: memory.len })?;
        Ok(Self {
            slot: hold.slot(),
            inner: Arc::new(CqInner {
                hold,
                memory: Mutex::new(memory),
                cqn: Cqn(low(cqn)),
            }),
            ring,
            consumer: 0,
            queues: Vec::new(),
        })
    }

    /// Number of the CQ.
    #[must_use]
    pub fn cqn(&self) -> Cqn {
        self.inner.cqn
    }

    /// Takes the next completion.
    #[inline(always)] // whoever looks at two fields of a completion pays for two
    pub fn poll(&mut self) -> Option<Wc> {
        let wc = cq::peek(&self.ring, self.consumer)?;
        self.consumer = self.consumer.wrapping_add(1);
        let function = &self.inner.hold.function;
        function.publish_consumer(self.slot, self.consumer);
        if let Some((_, queue)) = self.queues.iter().find(|(qpn, _)| *qpn == wc.qpn) {
            queue.completed(wc.is_receive(), wc.wqe_counter);
        }
        if wc.wr_id == sq::FILLER {
            return self.poll_further();
        }
        Some(wc)
    }

    /// Takes the completion behind one that is not for the program.
    #[cold]
    fn poll_further(&mut self) -> Option<Wc> {
        self.poll()
    }
}

impl Positions {
    /// A completion was read, so its WQE and those before it may be written over.
    #[inline]
    fn completed(&self, is_receive: bool, position: u32) {
        let consumer = if !is_receive {
            &self.sq_consumer
        } else if let Some(shared) = &self.shared {
            srq::advance(shared, position);
            return;
        } else {
            &self.rq_consumer
        };
        // EDGE wqe-reclaim (release): the completion was read. Acquired when the queue's owner re-uses its blocks.
        consumer.store(position, Ordering::Release);
    }
}

/// Sizes and rights of a QP.
#[derive(Clone, Copy, Debug)]
pub struct QpOptions {
    /// SQ blocks of 64 B, a power of two.
    pub sq_depth: u32,
    /// RQ WQEs, a power of two.
    pub rq_depth: u32,
    /// What the peer may do to our regions.
    pub access: Access,
    /// Receiver-not-ready retries, 7 for ever.
    pub rnr_retry: u32,
}

impl Default for QpOptions {
    fn default() -> Self {
        Self {
            sq_depth: 64,
            rq_depth: 64,
            access: Access::all(),
            rnr_retry: 7,
        }
    }
}

/// What a peer needs to connect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QpAddress {
    /// Function.
    pub function: FunctionId,
    /// Its QP.
    pub qpn: Qpn,
}

/// Queue pair of the reliable connected transport.
#[derive(Debug)]
pub struct Qp {
    hold: Hold,
    _pd: Arc<PdInner>,
    _cq: Arc<CqInner>,
    positions: Arc<Positions>,
    qpn: Qpn,
    rnr_retry: u32,
    sq: WqeRing,
    /// `None` with a shared receive queue.
    rq: Option<WqeRing>,
    _srq: Option<Arc<srq::SrqInner>>,
    sq_producer: u32,
    sq_rung: u32,
    rq_producer: u32,
    rq_rung: u32,
}

impl Qp {
    /// Creates a QP in INIT; its completions go to `cq`.
    ///
    /// # Errors
    /// [`FunctionError::Invalid`] for a depth that is no power of two; [`FunctionError::Admin`] when the device refuses.
    pub fn new(pd: &Pd, cq: &mut Cq, options: QpOptions) -> Result<Self, FunctionError> {
        let function = &pd.inner.function;
        let sq_depth = depth("SQ depth", options.sq_depth)?;
        let rq_depth = depth("RQ depth", options.rq_depth)?;
        let sq_len = WqeRing::bytes(sq_depth);
        let len = sq_len + WqeRing::bytes(rq_depth);
        let hold = Hold::new(function, len, true)?;
        let ring = |offset, depth| {
            function
                .arena()
                .ring(offset, depth)
                .ok_or(FunctionError::ArenaFull { len })
        };
        let sq = ring(hold.offset, sq_depth)?;
        let rq = ring(hold.offset + sq_len, rq_depth)?;
        let create = QpCreate {
            sq_ring: hold.iova(),
            rq_ring: hold.iova() + sq_len,
            sq_depth: options.sq_depth,
            rq_depth: options.rq_depth,
            pdn: pd.inner.pdn.0,
            send_cqn: cq.inner.cqn.0,
            recv_cqn: cq.inner.cqn.0,
            slot: hold.slot(),
            holder: crate::lock::Identity::slot_of(function.identity().word()),
            access: options.access.bits(),
        };
        let [qpn, _] = function
            .lock()
            .admin(AdminOp::QP_CREATE, create.to_body())?;
        let qpn = Qpn(low(qpn));
        let positions = Arc::new(Positions::default());
        cq.queues.push((qpn, Arc::clone(&positions)));
        let mut qp = Self {
            hold,
            _pd: Arc::clone(&pd.inner),
            _cq: Arc::clone(&cq.inner),
            positions,
            qpn,
            rnr_retry: options.rnr_retry,
            sq,
            rq: Some(rq),
            _srq: None,
            sq_producer: 0,
            sq_rung: 0,
            rq_producer: 0,
            rq_rung: 0,
        };
        qp.modify(QpState::INIT, None)?;
        Ok(qp)
    }

    /// Name of this QP for its peer.
    #[must_use]
    pub fn address(&self) -> QpAddress {
        QpAddress {
            function: self.hold.function.id(),
            qpn: self.qpn,
        }
    }

    /// Moves the QP to RTR and RTS toward `peer`. Both sides do so.
    ///
    /// # Errors
    /// The device's refusal.
    pub fn connect(&mut self, peer: QpAddress) -> Result<(), AdminError> {
        self.modify(QpState::RTR, Some(peer))?;
        self.modify(QpState::RTS, None)
    }

    fn modify(&mut self, state: QpState, peer: Option<QpAddress>) -> Result<(), AdminError> {
        let body = QpModify {
            qpn: self.qpn.0,
            state: state.0.into(),
            peer_function: peer.map_or(0, |peer| peer.function.0),
            peer_qpn: peer.map_or(0, |peer| peer.qpn.0),
            rnr_retry: if state == QpState::RTS {
                self.rnr_retry
            } else {
                0
            },
            ..QpModify::default()
        };
        self.hold
            .function
            .lock()
            .admin(AdminOp::QP_MODIFY, body.to_body())
            .map(drop)
    }

    /// State of the QP, as the device has it.
    ///
    /// # Errors
    /// The device's refusal.
    pub fn state(&self) -> Result<QpState, AdminError> {
        let [first, _] = self
            .hold
            .function
            .lock()
            .admin_on(AdminOp::QP_QUERY, self.qpn.0)?;
        Ok(QpState(first.to_le_bytes()[0]))
    }

    /// Writes a send work request; the NIC sees it after [`Qp::ring`].
    ///
    /// # Errors
    /// [`PostError::QueueFull`] until completions are polled; others for requests that no WQE can hold.
    #[inline]
    pub fn post_send(&mut self, wr: &SendWr<'_>) -> Result<(), PostError> {
        let wqe = Encoded::new(wr)?;
        // EDGE wqe-reclaim (acquire): pairs with `Cq::poll`.
        let consumer = self.positions.sq_consumer.load(Ordering::Acquire);
        self.sq_producer =
            sq::put(&self.sq, self.sq_producer, consumer, &wqe).ok_or(PostError::QueueFull)?;
        Ok(())
    }

    /// Writes a receive; the NIC sees it after [`Qp::ring`].
    ///
    /// # Errors
    /// As [`Qp::post_send`].
    #[inline]
    pub fn post_recv(&mut self, wr_id: u64, sges: &[Sge]) -> Result<(), PostError> {
        // EDGE wqe-reclaim (acquire): pairs with `Cq::poll`.
        let consumer = self.positions.rq_consumer.load(Ordering::Acquire);
        let ring = self.rq.as_ref().ok_or(PostError::SharedReceives)?;
        self.rq_producer = rq::put(ring, self.rq_producer, consumer, wr_id, sges)?;
        Ok(())
    }

    /// Shows the NIC what was posted, and wakes it if it sleeps.
    #[inline]
    pub fn ring(&mut self) {
        let slot = self.hold.slot();
        if self.rq_rung != self.rq_producer {
            self.rq_rung = self.rq_producer;
            self.hold.function.ring_receives(slot, self.rq_producer);
        }
        if self.sq_rung != self.sq_producer {
            self.sq_rung = self.sq_producer;
            self.hold.function.ring_sends(slot, self.sq_producer);
        }
    }
}

impl Drop for Qp {
    fn drop(&mut self) {
        self.hold.destroy(AdminOp::QP_DESTROY, self.qpn.0);
    }
}
