//! An attached device function: registers, doorbells, arena, and the lock that its family of processes shares.
//!
//! Place: `opener` brings an attachment, [`Function::attach`] starts the device; `verbs` and `provider` make their objects on it.
//! Invariants: everything that changes shared state besides a posted WQE happens under `Function::lock`; who finds the lock
//! abandoned rings the admin doorbell for its dead owner and goes on; once the device is dead, nothing waits for it any more.
//! Hot: `Function::ring_sends`, `Function::ring_receives`. Source: docs/device.md, "Start".
#![expect(
    unsafe_code,
    reason = "views the mapped BAR2 and takes over a descriptor"
)]

use core::fmt;
use std::os::fd::RawFd;
use std::sync::Arc;

use ring_proto::admin::{Access, AdminOp, Body, MrReg, QueueCreate};
use ring_proto::attach::{AttachError, Attachment};
use ring_proto::doorbell;
use ring_proto::ids::{FunctionId, NodeId};
use ring_proto::index::Depth;
use ring_proto::regs;
use ring_proto::shared::{Bar2, EqeRing};
use ring_proto::sync::{AtomicU32, Ordering};
use ring_proto::uar;

use crate::arena::Arena;
use crate::error::FunctionError;
use crate::lock::{Identity, RobustLock, Taken};
use crate::pair::PairMaps;
use crate::provider::queues::spare_limit;
use crate::record::{self, Header, Process};
use crate::sys::{self, Fd, Mapping, Seen, SignalsBlocked};

/// A function of a SAN NIC that this process drives, alone or with the family it was inherited from.
pub struct Function {
    attachment: Arc<dyn Attachment>,
    bar: Bar2,
    /// Keeps `bar` valid.
    _bar_mapping: Mapping,
    arena: Arena,
    pub(crate) pairs: PairMaps,
    id: FunctionId,
    node: NodeId,
    vectors: u32,
    /// [`Identity`] of this process; changes when a child adopts its clone.
    me: AtomicU32,
    /// The device's sleep for which this process kicked last.
    kicked: AtomicU32,
    /// 1 once the device is gone, or not ours to use (a child without a clone).
    dead: AtomicU32,
}

/// What a new sharer of a function is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Share {
    pub(crate) id: FunctionId,
    pub(crate) node: NodeId,
    pub(crate) vectors: u32,
    /// Holder slot made for it.
    pub(crate) slot: u32,
    /// Its generation.
    pub(crate) generation: u32,
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Function")
            .field("id", &self.id)
            .field("node", &self.node)
            .field("dead", &self.is_dead())
            .finish_non_exhaustive()
    }
}

impl Function {
    /// Starts the device behind `attachment` and makes its arena.
    ///
    /// # Errors
    /// [`FunctionError::Unsupported`] when it is no SAN NIC of our version; others as they come.
    pub fn attach(attachment: Arc<dyn Attachment>) -> Result<Arc<Self>, FunctionError> {
        let vectors = start(&*attachment)?;
        let (bar_fd, bar_len) = attachment.bar2()?;
        if bar_len < uar::BAR2_LEN {
            return Err(FunctionError::Unsupported {
                what: "doorbells of length",
                found: bar_len,
                needed: uar::BAR2_LEN,
            });
        }
        let bar_mapping = Mapping::new(bar_fd, 0, uar::BAR2_LEN, true)
            .map_err(FunctionError::system("mmap of the doorbells"))?;
        // SAFETY: 1. Mapped above for that length, page aligned, and kept in the same structure. 2. Nothing else references it.
        let bar = unsafe { Bar2::new(bar_mapping.base()) };
        let (arena, memory) = Arena::new().map_err(FunctionError::system("memfd of the arena"))?;
        attachment.dma_map(memory.raw(), 0, record::ARENA_IOVA, record::ARENA_LEN, true)?;
        attachment.count_in(memory.raw(), record::STREAM)?;
        drop(memory);
        attachment.write_register(
            regs::ADMIN_SQ_BASE,
            8,
            record::ARENA_IOVA + record::ADMIN_SQ,
        )?;
        attachment.write_register(
            regs::ADMIN_CQ_BASE,
            8,
            record::ARENA_IOVA + record::ADMIN_CQ,
        )?;
        attachment.write_register(regs::ADMIN_DEPTH, 4, u64::from(record::ADMIN_DEPTH))?;
        set_status(&*attachment, regs::STATUS_DRIVER_OK)?;
        // Relaxed: published by the device before it answered the attach.
        let generation = bar.holder_generation(0).load(Ordering::Relaxed).max(1);
        let me = Identity::new(0, generation).expect("slot 0 lies in the table");
        let mut function = Self {
            attachment,
            bar,
            _bar_mapping: bar_mapping,
            arena,
            pairs: PairMaps::new(),
            id: FunctionId(0),
            node: NodeId(0),
            vectors,
            me: AtomicU32::new(me.word()),
            kicked: AtomicU32::new(0),
            dead: AtomicU32::new(0),
        };
        function.name_process(0);
        let [first, _] = function.lock().admin(AdminOp::IDENTIFY, Body::default())?;
        let [a, b, c, d, e, f, ..] = first.to_le_bytes();
        function.id = FunctionId(u32::from_le_bytes([a, b, c, d]));
        function.node = NodeId(u16::from_le_bytes([e, f]));
        function.make_objects()?;
        Ok(Arc::new(function))
    }

    /// Uses a function that another process started, as the holder that was made for us. `memory` is its arena.
    pub(crate) fn share(
        attachment: Arc<dyn Attachment>,
        memory: &Fd,
        share: &Share,
    ) -> Result<Arc<Self>, FunctionError> {
        let (bar_fd, _) = attachment.bar2()?;
        let bar_mapping = Mapping::new(bar_fd, 0, uar::BAR2_LEN, true)
            .map_err(FunctionError::system("mmap of the doorbells"))?;
        // SAFETY: as in `attach`.
        let bar = unsafe { Bar2::new(bar_mapping.base()) };
        let arena = Arena::of(memory).map_err(FunctionError::system("mmap of the arena"))?;
        let me = Identity::new(share.slot, share.generation).ok_or(FunctionError::Unsupported {
            what: "holder slots beyond",
            found: share.slot.into(),
            needed: uar::HOLDERS.into(),
        })?;
        let function = Self {
            attachment,
            bar,
            _bar_mapping: bar_mapping,
            arena,
            pairs: PairMaps::new(),
            id: share.id,
            node: share.node,
            vectors: share.vectors,
            me: AtomicU32::new(me.word()),
            kicked: AtomicU32::new(0),
            dead: AtomicU32::new(0),
        };
        function.name_process(share.slot);
        Ok(Arc::new(function))
    }

    /// A new descriptor of the arena's memory, which the device keeps.
    pub(crate) fn memory(&self) -> Result<Fd, AttachError> {
        let _locked = self.lock();
        let (fd, ..) = self.attachment.window(record::ARENA_IOVA)?;
        // SAFETY: `window` gives the descriptor to its caller.
        Ok(unsafe { Fd::from_raw(fd) })
    }

    /// Protection domain and key of the arena, and the event queue.
    fn make_objects(&self) -> Result<(), FunctionError> {
        let qps = self.attachment.read_register(regs::MAX_QP, 4)?;
        let mut locked = self.lock();
        let header = self.header();
        let [pdn, _] = locked.admin(AdminOp::PD_ALLOC, Body::default())?;
        let pdn = low(pdn);
        let region = MrReg {
            addr: record::ARENA_IOVA,
            len: record::ARENA_LEN,
            pdn,
            access: Access::LOCAL_WRITE.bits(),
            ..Default::default()
        };
        let [key, _] = locked.admin(AdminOp::MR_REG, region.to_body())?;
        // Relaxed: before anybody shares this arena.
        header.pdn.store(pdn, Ordering::Relaxed);
        header.lkey.store(low(key), Ordering::Relaxed);
        header
            .spare_limit
            .store(spare_limit(qps), Ordering::Relaxed);
        let queue = QueueCreate {
            ring: record::ARENA_IOVA + record::EQ,
            depth: record::EQ_DEPTH,
            slot: record::EVENT_SLOT,
        };
        locked.admin(AdminOp::EQ_CREATE, queue.to_body())?;
        Ok(())
    }

    /// Number of the function; unique for the life of the device.
    #[must_use]
    pub const fn id(&self) -> FunctionId {
        self.id
    }

    /// Node whose port it uses.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        self.node
    }

    /// Descriptor that shows POLLHUP when the device is gone.
    #[must_use]
    pub fn hangup_fd(&self) -> Option<RawFd> {
        self.attachment.hangup_fd()
    }

    /// Whether the device is known to be gone or FAILED. No system call; see [`Function::check`].
    #[inline]
    #[must_use]
    pub fn is_dead(&self) -> bool {
        // Relaxed: the end of the device publishes nothing.
        self.dead.load(Ordering::Relaxed) != 0
            || self.bar.failed().load(Ordering::Relaxed) != 0
            || self.header().dead.load(Ordering::Relaxed) != 0
    }

    /// Looks whether the device is gone, by one system call.
    pub fn check(&self) -> bool {
        if self.is_dead() {
            return true;
        }
        let gone = self
            .hangup_fd()
            .is_some_and(|fd| matches!(sys::wait_readable(fd, 0), Ok(Seen::HungUp)));
        if gone {
            self.mark_dead();
        }
        gone
    }

    /// Tells the family that the device is gone.
    pub(crate) fn mark_dead(&self) {
        // Relaxed: see `is_dead`.
        self.dead.store(1, Ordering::Relaxed);
        self.header().dead.store(1, Ordering::Relaxed);
    }

    pub(crate) fn attachment(&self) -> &dyn Attachment {
        &*self.attachment
    }

    pub(crate) const fn bar(&self) -> &Bar2 {
        &self.bar
    }

    pub(crate) const fn arena(&self) -> &Arena {
        &self.arena
    }

    #[inline]
    pub(crate) fn header(&self) -> &Header {
        self.arena.header()
    }

    pub(crate) const fn vector_limit(&self) -> u32 {
        self.vectors
    }

    pub(crate) fn event_ring(&self) -> EqeRing {
        let depth = Depth::new(record::EQ_DEPTH).expect("a power of two");
        self.arena
            .ring(record::EQ, depth)
            .expect("the event queue lies in every arena")
    }

    /// Name of this process among the sharers of the function.
    #[inline]
    pub(crate) fn identity(&self) -> Identity {
        // Relaxed: changes only in a freshly forked child, which has one thread.
        Identity::from_word(self.me.load(Ordering::Relaxed)).expect("set when attached or adopted")
    }

    /// Generation of this process's holder slot, as the device counts it.
    pub(crate) fn generation(&self) -> u32 {
        let slot = Identity::slot_of(self.identity().word());
        // Relaxed: it stays as long as this process lives.
        self.bar
            .holder_generation(slot)
            .load(Ordering::Relaxed)
            .max(1)
    }

    /// A forked child takes over the holder slot that its parent cloned for it.
    pub(crate) fn adopt(&self, slot: u32, generation: u32) {
        match Identity::new(slot, generation) {
            Some(me) => {
                // Relaxed: see `identity`.
                self.me.store(me.word(), Ordering::Relaxed);
                self.name_process(slot);
            }
            // Beyond the table nobody could see this process live or die.
            None => self.disown(),
        }
    }

    /// A forked child without a clone must not touch what its parent owns.
    pub(crate) fn disown(&self) {
        // Relaxed: see `is_dead`. Only in this process: the parent goes on.
        self.dead.store(1, Ordering::Relaxed);
    }

    fn name_process(&self, slot: u32) {
        let offset = record::PROCESSES + 4 * u64::from(slot);
        if let Some(process) = self.arena.record::<Process>(offset) {
            // Relaxed: read only when the NIC is gone, long after.
            process.pid.store(sys::pid(), Ordering::Relaxed);
        }
    }

    /// Whether the process of an [`Identity`] word lives, as the NIC says; when that is gone, as the kernel says.
    pub(crate) fn is_alive(&self, word: u32) -> bool {
        let slot = Identity::slot_of(word);
        // Relaxed: what the dead did before is ordered by the NIC's own publication of its end.
        let live = self.bar.holder_generation(slot).load(Ordering::Acquire);
        if Identity::fold(live) != Identity::generation_of(word) {
            return false;
        }
        if !self.is_dead() {
            return true;
        }
        let offset = record::PROCESSES + 4 * u64::from(slot);
        self.arena.record::<Process>(offset).is_some_and(|process| {
            // Relaxed: see `name_process`.
            sys::process_exists(process.pid.load(Ordering::Relaxed))
        })
    }

    /// Takes the lock over everything that is shared. Never held across a call into foreign code, and not re-entrant.
    pub(crate) fn lock(&self) -> Locked<'_> {
        let signals = SignalsBlocked::unless_put_off();
        let taken = RobustLock::new(&self.header().lock)
            .lock(self.identity(), |owner| self.is_alive(owner));
        let locked = Locked {
            function: self,
            _signals: signals,
        };
        if taken == Taken::Abandoned {
            locked.ring_admin();
            self.attachment.kick();
        }
        locked
    }

    /// Wakes the device if it sleeps still; a doorbell said that it did.
    pub(crate) fn kick(&self) {
        if let Some(sleep) = doorbell::kick_due(self.bar.parked(), &self.kicked) {
            self.attachment.kick();
            doorbell::kick_done(&self.kicked, sleep);
        }
    }

    /// Publishes an SQ producer, and wakes the device if it sleeps.
    #[inline]
    pub(crate) fn ring_sends(&self, slot: u32, producer: u32) {
        let doorbell = self.bar.line(slot).sq_producer();
        if doorbell::ring(
            doorbell,
            producer,
            self.bar.dirty_bits(slot),
            self.bar.parked(),
        ) {
            self.kick();
        }
    }

    /// Publishes an RQ producer, and wakes the device if it sleeps.
    #[inline]
    pub(crate) fn ring_receives(&self, slot: u32, producer: u32) {
        let doorbell = self.bar.line(slot).rq_producer();
        if doorbell::ring(
            doorbell,
            producer,
            self.bar.dirty_bits(slot),
            self.bar.parked(),
        ) {
            self.kick();
        }
    }

    /// Publishes an SRQ producer, and wakes the device if it sleeps.
    #[inline]
    pub(crate) fn ring_srq(&self, slot: u32, producer: u32) {
        let doorbell = self.bar.line(slot).srq_producer();
        if doorbell::ring(
            doorbell,
            producer,
            self.bar.dirty_bits(slot),
            self.bar.parked(),
        ) {
            self.kick();
        }
    }

    /// Changes the limit word of an SRQ, which arms it.
    pub(crate) fn arm_srq(&self, slot: u32, word: u32) {
        // Relaxed: the mark behind it orders it before the device's look.
        self.bar
            .line(slot)
            .srq_limit()
            .store(word, Ordering::Relaxed);
        if doorbell::mark(self.bar.dirty_bits(slot), self.bar.parked()) {
            self.kick();
        }
    }

    /// Makes a doorbell line ready for a new object; the one before left its positions there.
    pub(crate) fn clear_line(&self, slot: u32) {
        let line = self.bar.line(slot);
        // Relaxed: published by the admin command that creates the object.
        line.sq_producer().store(0, Ordering::Relaxed);
        line.rq_producer().store(0, Ordering::Relaxed);
        line.srq_producer().store(0, Ordering::Relaxed);
        line.srq_limit().store(0, Ordering::Relaxed);
        line.cq_consumer().store(0, Ordering::Relaxed);
        line.arm_vectors().store(0, Ordering::Relaxed);
        line.arm_sequence().store(0, Ordering::Relaxed);
    }

    /// Publishes how far a CQ or EQ was read.
    #[inline]
    pub(crate) fn publish_consumer(&self, slot: u32, consumer: u32) {
        // EDGE cq-consume (release): the CQEs below were read. Acquired by the NIC before it writes over them.
        self.bar
            .line(slot)
            .cq_consumer()
            .store(consumer, Ordering::Release);
    }
}

/// Low half of a result word.
pub(crate) const fn low(word: u64) -> u32 {
    let [a, b, c, d, ..] = word.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// High half of a result word.
pub(crate) const fn high(word: u64) -> u32 {
    let [.., a, b, c, d] = word.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// Proof that this thread holds the function's lock; the shared state may be changed through it.
#[derive(Debug)]
pub(crate) struct Locked<'a> {
    pub(crate) function: &'a Function,
    _signals: SignalsBlocked,
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        RobustLock::new(&self.function.header().lock).unlock();
    }
}

/// Discovery up to FEATURES_OK; returns the number of vectors.
fn start(attachment: &dyn Attachment) -> Result<u32, FunctionError> {
    let expect = |what, register, needed: u64, mask: u64| {
        let found = attachment.read_register(register, 4)?;
        if found & mask == needed & mask {
            Ok(())
        } else {
            Err(FunctionError::Unsupported {
                what,
                found,
                needed,
            })
        }
    };
    expect(
        "magic number",
        regs::MAGIC,
        regs::MAGIC_VALUE.into(),
        u64::MAX,
    )?;
    expect(
        "interface version",
        regs::ABI,
        regs::ABI_VALUE.into(),
        0xffff_0000,
    )?;
    attachment.write_register(regs::STATUS, 4, 0)?;
    set_status(attachment, regs::STATUS_ACKNOWLEDGE | regs::STATUS_DRIVER)?;
    let offered = attachment.read_register(regs::DEVICE_FEATURES, 8)?;
    if offered & regs::FEATURES != regs::FEATURES {
        return Err(FunctionError::Unsupported {
            what: "features",
            found: offered,
            needed: regs::FEATURES,
        });
    }
    attachment.write_register(regs::DRIVER_FEATURES, 8, regs::FEATURES)?;
    set_status(attachment, regs::STATUS_FEATURES_OK)?;
    let slots = attachment.read_register(regs::MAX_SLOT, 4)?;
    if slots < u64::from(uar::SLOTS) {
        return Err(FunctionError::Unsupported {
            what: "doorbell slots",
            found: slots,
            needed: uar::SLOTS.into(),
        });
    }
    let vectors = attachment.read_register(regs::MAX_VECTOR, 4)?;
    Ok(u32::try_from(vectors).unwrap_or(0).min(regs::VECTORS))
}

fn set_status(attachment: &dyn Attachment, bits: u32) -> Result<(), FunctionError> {
    let before = attachment.read_register(regs::STATUS, 4)?;
    let wanted = before | u64::from(bits);
    attachment.write_register(regs::STATUS, 4, wanted)?;
    let after = attachment.read_register(regs::STATUS, 4)?;
    if after & wanted == wanted && after & u64::from(regs::STATUS_FAILED) == 0 {
        Ok(())
    } else {
        Err(FunctionError::Unsupported {
            what: "status",
            found: after,
            needed: wanted,
        })
    }
}

#[cfg(test)]
mod tests {
    use nic_emu::device::DeviceOptions;
    use nic_emu::embedded::EmbeddedDevice;
    use nix::sys::signal::{Signal, raise};
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::ForkResult;
    use ring_proto::admin::{Command, HoldClone};
    use ring_proto::ids::HolderSlot;
    use ring_proto::shared::CommandRing;

    use super::*;
    use crate::alloc::Links;
    use crate::lock::Token;

    /// A function, and what lets the device know that the holder of a slot died.
    fn attached() -> (Arc<Function>, EmbeddedDevice) {
        let device = EmbeddedDevice::new(DeviceOptions::default());
        let node = device.add_node("a", &[[127, 77, 0, 1].into()]);
        let function = Function::attach(Arc::new(device.attach(node).unwrap())).unwrap();
        (function, device)
    }

    /// Runs `work` in a forked member of the family, which is then killed; returns its slot and generation.
    fn killed_after(function: &Function, work: impl FnOnce()) -> (u32, u32) {
        let body = HoldClone::default().to_body();
        let [word, _] = function.lock().admin(AdminOp::HOLD_CLONE, body).unwrap();
        let (slot, generation) = (low(word), high(word));
        // SAFETY: the child works on shared memory only, and is killed.
        match unsafe { nix::unistd::fork() }.unwrap() {
            ForkResult::Parent { child } => {
                let end = waitpid(child, None).unwrap();
                assert!(matches!(end, WaitStatus::Signaled(_, Signal::SIGKILL, _)));
                (slot, generation)
            }
            ForkResult::Child => {
                function.adopt(slot, generation);
                work();
                raise(Signal::SIGKILL).unwrap();
                unreachable!("killed");
            }
        }
    }

    #[test]
    fn the_lock_of_a_killed_member_is_taken_over_with_its_open_command() {
        let (function, device) = attached();
        let (slot, generation) = killed_after(&function, || {
            let locked = function.lock();
            // A command that exists, and was never rung.
            let header = function.header();
            let producer = header.admin_producer.load(Ordering::Relaxed);
            let depth = Depth::new(record::ADMIN_DEPTH).unwrap();
            let ring: CommandRing = function.arena().ring(record::ADMIN_SQ, depth).unwrap();
            let command = Command {
                opcode: AdminOp::PD_ALLOC.0,
                command_id: 0xdead,
                ..Command::default()
            };
            ring.write(producer, &zerocopy::transmute!(command));
            header
                .admin_producer
                .store(producer.wrapping_add(1), Ordering::Relaxed);
            core::mem::forget(locked);
        });
        device.with(|device| device.drop_holder(function.id(), HolderSlot(slot), generation));
        for _ in 0..100 {
            let mut locked = function.lock();
            let [first, _] = locked.admin(AdminOp::IDENTIFY, Body::default()).unwrap();
            assert_eq!(low(first), function.id().0);
        }
    }

    #[test]
    fn the_token_of_a_killed_member_is_taken_over_once_the_device_knows_of_its_death() {
        let (function, device) = attached();
        let offset = function.lock().alloc(64).unwrap();
        let word = function.arena().link(offset).unwrap();
        word.store(0, Ordering::Relaxed);
        let token = Token::new(word);
        let take = || token.try_take(function.identity(), |owner| function.is_alive(owner));
        let (slot, generation) = killed_after(&function, || assert_eq!(take(), Some(Taken::Clean)));
        assert_eq!(take(), None);
        device.with(|device| device.drop_holder(function.id(), HolderSlot(slot), generation));
        assert_eq!(take(), Some(Taken::Abandoned));
    }

    #[test]
    fn without_the_device_the_kernel_says_who_lives() {
        let (function, _device) = attached();
        let me = function.identity().word();
        let (slot, generation) = killed_after(&function, || {});
        let theirs = Identity::new(slot, generation).unwrap().word();
        assert!(function.is_alive(me) && function.is_alive(theirs));
        function.mark_dead();
        assert!(function.is_alive(me) && !function.is_alive(theirs));
    }
}
