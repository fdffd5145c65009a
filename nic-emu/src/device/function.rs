//! A device function: its BAR2 memory, kick, vectors, doorbell slots and tables.
//!
//! Place: one per attached client family; everything a client can name by number is looked up here.
//! Invariants: BAR2 is the device's own memfd, sealed SHRINK, GROW and SEAL; words that the device wrote there are never read back. A
//! doorbell slot belongs to at most one QP and at most one CQ or EQ. Views of a window are dropped before it is unmapped.
//! Source: design of a PCI function with doorbell pages (docs/device.md). Hot: nothing; the tables' look-ups are.
#![expect(
    unsafe_code,
    reason = "makes the view of the function's own BAR2 mapping"
)]

use std::collections::HashMap;
use std::ffi::CStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;

use memmap2::{MmapOptions, MmapRaw};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd;
use ring_proto::ids::{FunctionId, HolderSlot, NodeId};
use ring_proto::regs;
use ring_proto::shared::Bar2;
use ring_proto::sync::Ordering;
use ring_proto::uar;

use super::admin::AdminRings;
use super::cm::Listener;
use super::cq::{CQ_LIMIT, Cq};
use super::eq::EventQueue;
use super::holder::{self, HolderTable};
use super::limits::Resource;
use super::mr::Regions;
use super::pause;
use super::qp::{QP_LIMIT, Qp, QpRef};
use super::recorder::Recorder;
use super::registers::Registers;
use super::srq::{SRQ_LIMIT, Srq};
use super::table::Table;
use super::window::Windows;
use super::{Device, DeviceError, Vectors, WindowRequest};

/// Most PDs of a function.
pub(crate) const PD_LIMIT: u32 = 4096;
/// Most functions of a device, on all nodes together, orphaned ones included.
pub(crate) const FUNCTIONS_LIMIT: usize = 4096;
/// Most listeners of a function.
const LISTENER_LIMIT: u32 = 65_535;
/// Name of the doorbell memory in /proc.
const BAR2_NAME: &CStr = c"sanlab-bar2";

/// A protection domain.
#[derive(Debug, Default)]
pub(crate) struct Pd {
    /// QPs and regions in it.
    pub(crate) users: u32,
}

/// Who uses a doorbell slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct SlotUse {
    /// QPN whose producers are here, or 0.
    pub(crate) qpn: u32,
    /// SRQN whose producer and limit are here, or 0.
    pub(crate) srqn: u32,
    /// What has its consumer here.
    pub(crate) completion: CompletionUse,
}

/// Which ring of completions or events has its consumer in a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum CompletionUse {
    #[default]
    None,
    Cq,
    Eq,
}

/// An attached function.
#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) id: FunctionId,
    pub(crate) node: NodeId,
    pub(crate) bar: Bar2,
    pub(crate) bar_file: OwnedFd,
    _bar_map: MmapRaw,
    pub(crate) kick: EventFd,
    pub(crate) vectors: Vectors,
    pub(crate) registers: Registers,
    pub(crate) windows: Windows,
    pub(crate) regions: Regions,
    pub(crate) pds: Table<Pd>,
    pub(crate) cqs: Table<Cq>,
    pub(crate) qps: Table<Box<Qp>>,
    pub(crate) srqs: Table<Srq>,
    pub(crate) listeners: Table<Listener>,
    /// Waiting connection requests by number, as connects.
    pub(crate) requests: HashMap<u32, u64>,
    pub(crate) next_request: u32,
    pub(crate) events: EventQueue,
    pub(crate) admin: Option<AdminRings>,
    pub(crate) holders: HolderTable,
    slots: Vec<SlotUse>,
    /// The engine looks at its dirty words in every round.
    pub(crate) is_hot: bool,
    pub(crate) last_work_ns: u64,
    /// Its client is gone; only orphans are left.
    pub(crate) is_detached: bool,
    pub(crate) wqes: u64,
    pub(crate) tx_bytes: u64,
    pub(crate) recorder: Recorder,
    /// Process that attached it, when one did.
    pub(crate) client_pid: Option<i32>,
}

impl Function {
    /// Makes a function: cold, without windows.
    pub(crate) fn new(id: FunctionId, node: NodeId, seed: u64) -> Result<Self, DeviceError> {
        let bar_file = memfd_create(
            BAR2_NAME,
            MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING,
        )
        .map_err(|error| DeviceError::system("memfd_create", error))?;
        let len = i64::try_from(uar::BAR2_LEN).expect("BAR2 has 8 MiB");
        unistd::ftruncate(&bar_file, len)
            .map_err(|error| DeviceError::system("ftruncate", error))?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&bar_file, FcntlArg::F_ADD_SEALS(seals))
            .map_err(|error| DeviceError::system("F_ADD_SEALS", error))?;
        let bar_map = MmapOptions::new()
            .map_raw(bar_file.as_raw_fd())
            .map_err(|error| DeviceError::system("mmap", error))?;
        let base = NonNull::new(bar_map.as_mut_ptr())
            .ok_or_else(|| DeviceError::system("mmap", std::io::ErrorKind::Other))?;
        // SAFETY: 1. The mapping is page aligned, read-write, has BAR2_LEN bytes (the file cannot shrink) and lives in this struct, from
        //         which no copy of the view escapes a call of the device. 2. Nothing else reaches it in this process.
        let bar = unsafe { Bar2::new(base) };
        let kick = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|error| DeviceError::system("eventfd", error))?;
        // First tags: apart from those of other functions, and of devices with other seeds.
        let [tag, ..] = id.0.wrapping_mul(29).to_le_bytes();
        let seed = seed
            .to_le_bytes()
            .into_iter()
            .fold(tag, |mixed, byte| mixed.rotate_left(3) ^ byte);
        let function = Self {
            id,
            node,
            bar,
            bar_file,
            _bar_map: bar_map,
            kick,
            vectors: Vectors::new(regs::VECTORS),
            registers: Registers::default(),
            windows: Windows::default(),
            regions: Regions::new(seed),
            pds: Table::new(PD_LIMIT, seed),
            cqs: Table::new(CQ_LIMIT, seed),
            qps: Table::new(QP_LIMIT, seed),
            srqs: Table::new(SRQ_LIMIT, seed),
            listeners: Table::new(LISTENER_LIMIT, seed),
            requests: HashMap::new(),
            next_request: 1,
            events: EventQueue::default(),
            admin: None,
            holders: HolderTable::new(),
            slots: Vec::new(),
            is_hot: false,
            last_work_ns: 0,
            is_detached: false,
            wqes: 0,
            tx_bytes: 0,
            recorder: Recorder::new(),
            client_pid: None,
        };
        // Cold: whoever rings first kicks.
        ring_proto::doorbell::park(function.bar.parked(), ring_proto::doorbell::UNNUMBERED);
        function.publish_holder(HolderSlot::default().0);
        Ok(function)
    }

    /// Shows a holder slot's live generation in BAR2.
    pub(crate) fn publish_holder(&self, slot: u32) {
        if holder::is_published(slot) {
            // Release: whoever sees a holder gone also sees what the device did before.
            self.bar
                .holder_generation(slot)
                .store(self.holders.generation(slot), Ordering::Release);
        }
    }

    fn set_vector(&mut self, index: u8, eventfd: Option<OwnedFd>) -> Result<(), DeviceError> {
        self.vectors
            .connect(index.into(), eventfd)
            .map_err(|error| match error {
                Errno::EINVAL => DeviceError::Limit {
                    what: "vectors",
                    limit: u64::from(regs::VECTORS),
                },
                other => DeviceError::system("F_SETFL", other),
            })
    }

    /// Whether its process is stopped by a debugger or a signal.
    pub(crate) fn is_client_stopped(&self) -> bool {
        self.client_pid.is_some_and(pause::is_process_stopped)
    }

    /// Doorbell slots that were ever in use, all below this.
    pub(crate) fn slots_len(&self) -> u32 {
        u32::try_from(self.slots.len()).unwrap_or(uar::SLOTS)
    }

    /// Who uses a doorbell slot.
    #[inline]
    pub(crate) fn slot(&self, slot: u32) -> SlotUse {
        self.slots.get(slot as usize).copied().unwrap_or_default()
    }

    /// Whether a QP may take a slot. Slot 0 is the admin queue's.
    pub(crate) fn is_free_for_qp(&self, slot: u32) -> bool {
        (1..uar::SLOTS).contains(&slot) && self.slot(slot).qpn == 0
    }

    /// Whether a CQ or EQ may take a slot.
    pub(crate) fn is_free_for_completions(&self, slot: u32) -> bool {
        (1..uar::SLOTS).contains(&slot) && self.slot(slot).completion == CompletionUse::None
    }

    fn slot_mut(&mut self, slot: u32) -> Option<&mut SlotUse> {
        let index = usize::try_from(slot).ok()?;
        if self.slots.len() <= index && slot < uar::SLOTS {
            self.slots.resize(index + 1, SlotUse::default());
        }
        self.slots.get_mut(index)
    }

    /// Gives a slot to a QP and clears what an earlier life left in its producers.
    pub(crate) fn enter_slot_as_qp(&mut self, slot: u32, qpn: u32) {
        if let Some(entry) = self.slot_mut(slot) {
            entry.qpn = qpn;
        }
        let bar = self.bar;
        self.clear_producers(&bar, qpn);
        // Relaxed: a constant in this version.
        bar.mode(slot).store(uar::MODE_COPY, Ordering::Relaxed);
    }

    /// Zeroes the producers of a QP; its client does not ring before it knows of the change.
    pub(crate) fn clear_producers(&self, bar: &Bar2, qpn: u32) {
        if let Some(qp) = self.qps.find(qpn) {
            let line = bar.line(qp.slot);
            // Relaxed: the client learns of the change by a completion, which is published with Release.
            line.sq_producer().store(0, Ordering::Relaxed);
            line.rq_producer().store(0, Ordering::Relaxed);
        }
    }

    pub(crate) fn leave_slot_as_qp(&mut self, slot: u32, qpn: u32) {
        if let Some(entry) = self.slot_mut(slot)
            && entry.qpn == qpn
        {
            entry.qpn = 0;
        }
    }

    /// Whether an SRQ may take a slot.
    pub(crate) fn is_free_for_srq(&self, slot: u32) -> bool {
        (1..uar::SLOTS).contains(&slot) && self.slot(slot).srqn == 0
    }

    /// Gives a slot to an SRQ and clears what an earlier life left there.
    pub(crate) fn enter_slot_as_srq(&mut self, slot: u32, srqn: u32) {
        if let Some(entry) = self.slot_mut(slot) {
            entry.srqn = srqn;
        }
        let line = self.bar.line(slot);
        // Relaxed: as in `clear_producers`.
        line.srq_producer().store(0, Ordering::Relaxed);
        line.srq_limit().store(0, Ordering::Relaxed);
    }

    pub(crate) fn leave_slot_as_srq(&mut self, slot: u32) {
        if let Some(entry) = self.slot_mut(slot) {
            entry.srqn = 0;
        }
    }

    /// Gives a slot to a CQ or EQ and clears what an earlier life left there.
    pub(crate) fn enter_slot_as(&mut self, slot: u32, completion: CompletionUse) {
        if let Some(entry) = self.slot_mut(slot) {
            entry.completion = completion;
        }
        let line = self.bar.line(slot);
        // Relaxed: as in `clear_producers`.
        line.cq_consumer().store(0, Ordering::Relaxed);
        line.arm_vectors().store(0, Ordering::Relaxed);
        line.arm_solicited().store(0, Ordering::Relaxed);
    }

    pub(crate) fn leave_slot_as_completions(&mut self, slot: u32) {
        if let Some(entry) = self.slot_mut(slot) {
            entry.completion = CompletionUse::None;
        }
    }

    /// Empties every table. QPs and listeners have ended before; the EQ keeps its slot.
    pub(crate) fn clear_tables(&mut self) {
        self.cqs.clear();
        self.srqs.clear();
        self.regions.clear();
        self.pds.clear();
        self.requests.clear();
        self.slots.clear();
        if let Some(entry) = self.events.slot().and_then(|slot| self.slot_mut(slot)) {
            entry.completion = CompletionUse::Eq;
        }
    }

    /// Drops the CQs of a function that nobody polls any more.
    pub(crate) fn clear_cqs(&mut self) {
        self.cqs.clear();
    }

    /// Drops the EQ and all events.
    pub(crate) fn clear_events(&mut self) {
        if let Some(slot) = self.events.slot() {
            self.leave_slot_as_completions(slot);
        }
        self.events.clear();
    }
}

/// The functions of two connected QPs, which may be one.
#[derive(Debug)]
pub(crate) struct Ends<'a> {
    pub(crate) own: &'a mut Function,
    /// The peer's; `None` when it is `own`.
    other: Option<&'a mut Function>,
}

impl Ends<'_> {
    #[inline]
    pub(crate) fn peer(&self) -> &Function {
        self.other.as_deref().unwrap_or(self.own)
    }

    #[inline]
    pub(crate) fn peer_mut(&mut self) -> &mut Function {
        self.other.as_deref_mut().unwrap_or(self.own)
    }
}

/// All functions: by place, which may come back, and by number, which never does.
#[derive(Debug, Default)]
pub(crate) struct Functions {
    places: Vec<Option<Box<Function>>>,
    by_id: HashMap<FunctionId, u32>,
    last: u32,
}

impl Functions {
    #[inline]
    pub(crate) fn at(&self, place: u32) -> Option<&Function> {
        self.places.get(place as usize)?.as_deref()
    }

    #[inline]
    pub(crate) fn at_mut(&mut self, place: u32) -> Option<&mut Function> {
        self.places.get_mut(place as usize)?.as_deref_mut()
    }

    /// The functions that two QPs name, as far as both are still there.
    #[inline]
    pub(crate) fn ends(&mut self, at: QpRef, peer: QpRef) -> Option<Ends<'_>> {
        let (own, other) = if at.place == peer.place {
            (self.at_mut(at.place)?, None)
        } else {
            let places = [at.place as usize, peer.place as usize];
            let [own, other] = self.places.get_disjoint_mut(places).ok()?;
            (own.as_deref_mut()?, Some(other.as_deref_mut()?))
        };
        let ends = Ends { own, other };
        (ends.own.id == at.function && ends.peer().id == peer.function).then_some(ends)
    }

    pub(crate) fn place_of(&self, id: FunctionId) -> Option<u32> {
        self.by_id.get(&id).copied()
    }

    fn add(
        &mut self,
        make: impl FnOnce(FunctionId) -> Result<Function, DeviceError>,
    ) -> Result<FunctionId, DeviceError> {
        let limit = DeviceError::Limit {
            what: "functions",
            limit: FUNCTIONS_LIMIT as u64,
        };
        if self.by_id.len() >= FUNCTIONS_LIMIT {
            return Err(limit);
        }
        let Some(id) = self.last.checked_add(1).map(FunctionId) else {
            return Err(limit);
        };
        let function = make(id)?;
        self.last = id.0;
        let free = self.places.iter().position(Option::is_none);
        let index = free.unwrap_or(self.places.len());
        let place = u32::try_from(index).map_err(|_| limit)?;
        let entry = Some(Box::new(function));
        match self.places.get_mut(index) {
            Some(free) => *free = entry,
            None => self.places.push(entry),
        }
        self.by_id.insert(id, place);
        Ok(id)
    }

    pub(crate) fn remove(&mut self, place: u32) {
        if let Some(function) = self
            .places
            .get_mut(place as usize)
            .and_then(|entry| entry.take())
        {
            self.by_id.remove(&function.id);
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Function)> {
        (0u32..)
            .zip(&self.places)
            .filter_map(|(place, entry)| Some((place, entry.as_deref()?)))
    }
}

impl Device {
    /// Attaches a new function to a node.
    ///
    /// # Errors
    /// [`DeviceError::NoNode`], [`DeviceError::Limit`], [`DeviceError::System`].
    pub fn attach(&mut self, node: NodeId) -> Result<FunctionId, DeviceError> {
        if self.nodes.find(node).is_none() {
            return Err(DeviceError::NoNode(node));
        }
        self.may_have(node, Resource::Functions, 1)?;
        let seed = self.options.seed;
        let function = self.functions.add(|id| Function::new(id, node, seed))?;
        self.publish_call_faults();
        self.publish_link_cuts();
        self.validate_attached();
        Ok(function)
    }

    /// Tells which process a function's client is: while that process is stopped, the function's timers wait.
    ///
    /// # Errors
    /// [`DeviceError::NoFunction`].
    pub fn set_client_process(
        &mut self,
        function: FunctionId,
        pid: i32,
    ) -> Result<(), DeviceError> {
        self.function_mut(function)?.client_pid = Some(pid);
        Ok(())
    }

    /// Connects interrupt vector `index` (0..64) to an eventfd, or disconnects it. The eventfd is made non-blocking.
    ///
    /// # Errors
    /// [`DeviceError::NoFunction`], [`DeviceError::Limit`] for an index past the last vector.
    pub fn set_vector(
        &mut self,
        function: FunctionId,
        index: u8,
        eventfd: Option<OwnedFd>,
    ) -> Result<(), DeviceError> {
        self.function_mut(function)?.set_vector(index, eventfd)
    }

    /// Fires a vector, as a test of the client's wiring does.
    pub fn fire_vector(&mut self, function: FunctionId, index: u8) {
        if u32::from(index) < regs::VECTORS {
            self.change_vectors(function, |vectors| vectors.fire(1 << index));
        }
    }

    /// Masks, unmasks or fires vectors of a function, as far as it exists.
    pub fn change_vectors(&mut self, function: FunctionId, change: impl FnOnce(&mut Vectors)) {
        if let Ok(function) = self.function_mut(function) {
            change(&mut function.vectors);
        }
    }

    /// Vectors that fired while they were masked, one bit each.
    #[must_use]
    pub fn pending_vectors(&self, function: FunctionId) -> u64 {
        self.function(function)
            .map_or(0, |function| function.vectors.pending())
    }

    /// Maps client memory.
    ///
    /// # Errors
    /// Whatever [`DeviceError`] says about windows.
    pub fn map(&mut self, function: FunctionId, request: WindowRequest) -> Result<(), DeviceError> {
        let node = self.function(function)?.node;
        self.may_have(node, Resource::Windows, 1)?;
        self.may_have(node, Resource::Memory, request.len)?;
        self.function_mut(function)?.windows.map(request)
    }

    /// Unmaps the windows in a range; when it returns nothing touches the memory any more.
    ///
    /// Queues in it end with WINDOW_GONE, regions in it stay and refuse every access.
    ///
    /// # Errors
    /// [`DeviceError::NoWindow`], [`DeviceError::NoFunction`].
    pub fn unmap(&mut self, function: FunctionId, iova: u64, len: u64) -> Result<(), DeviceError> {
        let place = self.place_of(function)?;
        let windows = self.function(function)?.windows.inside(iova, len)?;
        self.unmap_windows(place, windows);
        Ok(())
    }

    /// Unmaps every window of a function.
    ///
    /// # Errors
    /// [`DeviceError::NoFunction`].
    pub fn unmap_all(&mut self, function: FunctionId) -> Result<(), DeviceError> {
        let place = self.place_of(function)?;
        let windows = self.function(function)?.windows.all();
        self.unmap_windows(place, windows);
        Ok(())
    }

    fn unmap_windows(&mut self, place: u32, windows: Vec<(u64, u64)>) {
        for (iova, len) in windows {
            self.forget_window(place, iova, len);
            if let Some(function) = self.functions.at_mut(place) {
                function.windows.remove(iova);
            }
        }
        self.settle();
    }

    /// Drops every view of a window.
    fn forget_window(&mut self, place: u32, iova: u64, len: u64) {
        let Some(function) = self.functions.at_mut(place) else {
            return;
        };
        function.regions.forget(iova, len);
        if function.events.is_inside(iova, len) {
            if let Some(slot) = function.events.slot() {
                function.leave_slot_as_completions(slot);
            }
            function.events.close();
        }
        for (cqn, cq) in function.cqs.iter_mut() {
            if cq.ring.is_some() && cq.iova >= iova && cq.iova - iova < len {
                cq.ring = None;
                cq.is_broken = true;
                self.work.broken_cqs.push((place, cqn));
            }
        }
        for srqn in function.break_srqs_inside(iova, len) {
            let gone = ring_proto::status::Syndrome::WINDOW_GONE;
            self.work.broken_srqs.push((place, srqn, gone));
        }
        let has_admin = function
            .admin
            .as_ref()
            .is_some_and(|admin| admin.is_inside(iova, len));
        if has_admin {
            function.admin = None;
            self.work
                .failing
                .push((place, ring_proto::status::Syndrome::WINDOW_GONE));
        }
        self.fail_qps_inside(place, iova, len);
    }

    /// Frees a detached function when its last orphan is gone.
    pub(crate) fn free_if_over(&mut self, place: u32) {
        let is_over = self
            .functions
            .at(place)
            .is_some_and(|function| function.is_detached && function.qps.len() == 0);
        if is_over {
            self.work.hot.retain(|&hot| hot != place);
            self.functions.remove(place);
        }
    }

    pub(crate) fn place_of(&self, id: FunctionId) -> Result<u32, DeviceError> {
        self.functions
            .place_of(id)
            .ok_or(DeviceError::NoFunction(id))
    }

    pub(crate) fn function(&self, id: FunctionId) -> Result<&Function, DeviceError> {
        let place = self.place_of(id)?;
        self.functions
            .at(place)
            .filter(|function| !function.is_detached)
            .ok_or(DeviceError::NoFunction(id))
    }

    pub(crate) fn function_mut(&mut self, id: FunctionId) -> Result<&mut Function, DeviceError> {
        let place = self.place_of(id)?;
        self.functions
            .at_mut(place)
            .filter(|function| !function.is_detached)
            .ok_or(DeviceError::NoFunction(id))
    }
}
