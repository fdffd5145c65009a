//! The emulated NIC of a whole cluster, single-threaded.
//!
//! Place: the server's engine thread owns one [`Device`], the embedded device wraps one in a lock.
//! Invariants: no thread, no lock, no socket inside; all numbers from clients are checked copies.

use std::net::Ipv4Addr;
use std::os::fd::{BorrowedFd, OwnedFd};

use ring_proto::ids::{FunctionId, HolderSlot, NodeId};

mod counters;
mod error;

pub use counters::{Counters, NodeCounters};
pub use error::DeviceError;

/// What a connect meets whose listener already has its backlog of waiting requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum BacklogFull {
    /// The request is held up to its limit, then fails with BACKLOG_FULL.
    #[default]
    Hold,
    /// The request is rejected at once.
    Refuse,
}

/// How a device is made.
#[derive(Clone, Debug, Default)]
pub struct DeviceOptions {
    /// The clock stands still and moves only by [`Device::advance`].
    pub virtual_time: bool,
    /// See [`BacklogFull`].
    pub backlog_full: BacklogFull,
}

/// Memory that a client lends to its function.
#[derive(Debug)]
pub struct WindowRequest {
    /// The memory: a memfd sealed against shrinking. Without it the window is inaccessible.
    pub fd: Option<OwnedFd>,
    /// First byte in the file.
    pub offset: u64,
    /// First byte as the client's queues and regions name it.
    pub iova: u64,
    /// Bytes.
    pub len: u64,
    /// The device may read it.
    pub read: bool,
    /// The device may write it.
    pub write: bool,
}

/// What one round of [`Device::pump`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pumped {
    /// Pieces of work done: WQEs, admin commands, doorbells, timers. 0 means idle.
    pub served: u64,
    /// Time of the device's clock ([`Device::now_ns`]) at which a timer runs out.
    pub next_timer_ns: Option<u64>,
}

/// A node and its addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeInfo {
    /// Number.
    pub id: NodeId,
    /// Name.
    pub name: String,
    /// Addresses of its port.
    pub addresses: Vec<Ipv4Addr>,
}

/// The device. See the module.
#[derive(Debug)]
pub struct Device {}

#[expect(
    unused_variables,
    clippy::unused_self,
    reason = "signatures first; bodies follow in the next commits"
)]
impl Device {
    /// Makes a device without nodes.
    #[must_use]
    pub fn new(options: DeviceOptions) -> Self {
        Self {}
    }

    /// Adds a node whose port owns `addresses`.
    pub fn add_node(&mut self, name: &str, addresses: &[Ipv4Addr]) -> NodeId {
        NodeId(0)
    }

    /// Attaches a new function to a node.
    ///
    /// # Errors
    /// [`DeviceError::NoNode`], [`DeviceError::Limit`], [`DeviceError::System`].
    pub fn attach(&mut self, node: NodeId) -> Result<FunctionId, DeviceError> {
        Err(DeviceError::Unsupported("attach"))
    }

    /// The memfd of the function's BAR2.
    ///
    /// # Errors
    /// [`DeviceError::NoFunction`].
    pub fn bar2(&self, function: FunctionId) -> Result<BorrowedFd<'_>, DeviceError> {
        Err(DeviceError::Unsupported("bar2"))
    }

    /// The eventfd with which the function's clients wake a parked device.
    ///
    /// # Errors
    /// [`DeviceError::NoFunction`].
    pub fn kick_fd(&self, function: FunctionId) -> Result<BorrowedFd<'_>, DeviceError> {
        Err(DeviceError::Unsupported("kick_fd"))
    }

    /// Maps client memory.
    ///
    /// # Errors
    /// Whatever [`DeviceError`] says about windows.
    pub fn map(&mut self, function: FunctionId, request: WindowRequest) -> Result<(), DeviceError> {
        Err(DeviceError::Unsupported("map"))
    }

    /// Unmaps the windows in a range; when it returns nothing touches the memory any more.
    ///
    /// # Errors
    /// [`DeviceError::NoWindow`], [`DeviceError::NoFunction`].
    pub fn unmap(&mut self, function: FunctionId, iova: u64, len: u64) -> Result<(), DeviceError> {
        Err(DeviceError::Unsupported("unmap"))
    }

    /// Unmaps every window of a function.
    ///
    /// # Errors
    /// [`DeviceError::NoFunction`].
    pub fn unmap_all(&mut self, function: FunctionId) -> Result<(), DeviceError> {
        Err(DeviceError::Unsupported("unmap_all"))
    }

    /// File, offset and length of the window that starts at `iova`.
    #[must_use]
    pub fn window_fd(&self, function: FunctionId, iova: u64) -> Option<(BorrowedFd<'_>, u64, u64)> {
        None
    }

    /// Reads a register of BAR0.
    ///
    /// # Errors
    /// [`DeviceError::BadRegister`], [`DeviceError::NoFunction`].
    pub fn read_register(
        &mut self,
        function: FunctionId,
        offset: u64,
        len: u32,
    ) -> Result<u64, DeviceError> {
        Err(DeviceError::Unsupported("read_register"))
    }

    /// Writes a register of BAR0.
    ///
    /// # Errors
    /// [`DeviceError::BadRegister`], [`DeviceError::NoFunction`].
    pub fn write_register(
        &mut self,
        function: FunctionId,
        offset: u64,
        len: u32,
        value: u64,
    ) -> Result<(), DeviceError> {
        Err(DeviceError::Unsupported("write_register"))
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
        Err(DeviceError::Unsupported("set_vector"))
    }

    /// Fires a vector, as a test of the client's wiring does.
    pub fn fire_vector(&mut self, function: FunctionId, index: u8) {}

    /// A process answers for a holder slot from now on.
    ///
    /// # Errors
    /// [`DeviceError::BadHolder`], [`DeviceError::NoFunction`].
    pub fn hold_process(
        &mut self,
        function: FunctionId,
        slot: HolderSlot,
        generation: u32,
    ) -> Result<(), DeviceError> {
        Err(DeviceError::Unsupported("hold_process"))
    }

    /// The process that answered for a holder slot has ended: all its holds are released.
    pub fn drop_holder(&mut self, function: FunctionId, slot: HolderSlot, generation: u32) {}

    /// Destroys every object of a function; its windows, vectors and holder slots stay.
    pub fn reset(&mut self, function: FunctionId) {}

    /// The function's client has hung up: releases every holder and frees the function when no orphan needs it.
    pub fn detach(&mut self, function: FunctionId) {}

    /// Works one bounded round.
    pub fn pump(&mut self) -> Pumped {
        Pumped::default()
    }

    /// Publishes that the device is about to sleep; false when there is work after all, and then it is awake again.
    #[must_use]
    pub fn try_park(&mut self) -> bool {
        true
    }

    /// The device is awake again.
    pub fn unpark(&mut self) {}

    /// The function's kick eventfd was written: drains it and makes the function hot.
    pub fn kicked(&mut self, function: FunctionId) {}

    /// The device's clock.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        0
    }

    /// Moves the virtual clock.
    pub fn advance(&mut self, ns: u64) {}

    /// Counters of every node.
    #[must_use]
    pub fn node_counters(&self) -> Vec<NodeCounters> {
        Vec::new()
    }

    /// Every node.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeInfo> {
        Vec::new()
    }

    /// Node of an attached function.
    #[must_use]
    pub fn node_of(&self, function: FunctionId) -> Option<NodeId> {
        None
    }
}
