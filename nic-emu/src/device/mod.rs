//! The emulated NIC of a whole cluster, single-threaded.
//!
//! Place: the server's engine thread owns one [`Device`], the embedded device wraps one in a lock. Clients write rings and doorbells
//! in shared memory; [`Device::pump`] does what they say; completions, events and interrupts go back the same way.
//! Invariants: no thread, no lock, no socket inside; every number from a client is checked on a private copy; a client harms itself
//! only: its QP goes to ERR, or its function to FAILED. Ring bases, depths and indices are the device's own copies.
//! Hot: `pump` and what it calls for a WQE (`engine`, `serve`, `burst`, `queue`, `transfer`, `mr`, `cq`): no allocation, lock, log or system call.
//! Source: verbs semantics by name; docs/device.md. Leaves out: window mode.
//!
//! ```text
//!  engine   rounds: dirty words -> active QPs -> turns -> interrupts; parks
//!  serve    one turn of a QP                               queue      fetch and check a WQE
//!  burst    the plain WQEs of a turn, in one loop
//!  transfer one WQE between two QPs                        mr window  keys -> memory
//!  atomic   read-modify-writes of a peer's memory          mw        windows of a region, invalidation
//!  packet   the same over a link that is not perfect      link       loss, delay, order of packets
//!  cq eq    what the client polls; cq_change: resize, moderation
//!  qp life  states, flush, orphans; modify: QP_MODIFY      port       a node's port, up or down
//!  capture  what ports see, for readers outside
//!  validate recorder pause inspect diagnosis: what helps to find faults           fault     faults on purpose
//!  admin cm holder registers   control                     timer table node counters limits
//! ```

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ring_proto::ids::{FunctionId, NodeId};

use crate::capture::running::Captures;

mod admin;
mod atomic;
mod burst;
mod capture;
mod cm;
mod cm_link;
mod counters;
mod cq;
mod cq_change;
mod diagnosis;
mod engine;
mod eq;
mod error;
mod fault;
mod fields;
mod function;
mod holder;
mod inspect;
mod life;
mod limits;
mod link;
mod modify;
mod mr;
mod mw;
mod node;
mod packet;
mod pause;
mod port;
mod qp;
mod queue;
mod recorder;
mod registers;
mod serve;
mod srq;
mod table;
mod timer;
mod transfer;
mod validate;
mod vectors;
mod window;

pub use counters::{Counters, NodeCounters, PacketCounters};
pub use error::DeviceError;
pub use fault::{
    FaultAction, FaultError, FaultHit, FaultPoint, FaultReport, FaultRow, FaultRule, FaultWhen,
    call_codes,
};
pub use fields::FieldError;
pub use inspect::{
    CqRow, DoorbellRow, EngineRow, FunctionRow, Inspection, LastError, MrRow, MwRow, QpRow, SrqRow,
    Topic, UnknownTopic, WindowRow, WorkQueueRow,
};
pub use limits::{BadLimit, LimitRow, Limits, Resource};
pub(crate) use link::{Circumstances, Direction, ETHERNET_MTU, LinkTable, Passage};
pub use link::{
    Distribution, LinkChange, LinkCounters, LinkParameters, LinkRow, LinkTrace, MTU_BYTES,
};
pub use node::NodeInfo;
pub(crate) use packet::wire;
pub use pause::{PauseOn, Stepped};
pub use recorder::{EVENTS as RECORDER_EVENTS, EventRow, Recording};
pub use validate::{DecodedSge, DecodedWqe, Finding, Rule, RuleCount, UnknownRule};
pub use vectors::{VECTORS_LIMIT, Vectors};
pub(crate) use window::WINDOWS_LIMIT;

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
    /// Decides the numbers that the device draws in virtual time: first tags of keys, the cookie of IDENTIFY.
    pub seed: u64,
    /// See [`BacklogFull`].
    pub backlog_full: BacklogFull,
    /// Watches for what drivers do wrong although a NIC might let it pass: [`Device::findings`].
    pub validate: bool,
    /// Makes the engine stand still when that happens; a finding turns `validate` on.
    pub pause_on: Option<PauseOn>,
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
    /// It fired vectors: somebody was woken, who may have an answer.
    pub has_fired: bool,
}

/// The device. See the module.
pub struct Device {
    options: DeviceOptions,
    /// Tells this device from another one, in IDENTIFY.
    pub(crate) cookie: u64,
    clock: timer::Clock,
    timers: timer::Timers,
    nodes: node::Nodes,
    links: link::Links,
    functions: function::Functions,
    cm: cm::Cm,
    work: engine::Work,
    diagnosis: diagnosis::Diagnosis,
    faults: fault::Faults,
    captures: Captures,
}

impl Device {
    /// Makes a device without nodes.
    #[must_use]
    pub fn new(options: DeviceOptions) -> Self {
        let cookie = if options.virtual_time {
            options.seed
        } else {
            RandomState::new().build_hasher().finish()
        };
        Self {
            clock: timer::Clock::new(options.virtual_time),
            diagnosis: diagnosis::Diagnosis::new(&options),
            options,
            cookie,
            timers: timer::Timers::default(),
            nodes: node::Nodes::default(),
            links: link::Links::default(),
            functions: function::Functions::default(),
            cm: cm::Cm::default(),
            work: engine::Work::default(),
            faults: fault::Faults::default(),
            captures: Captures::default(),
        }
    }

    /// Adds a node whose port owns `addresses`.
    pub fn add_node(&mut self, name: &str, addresses: &[Ipv4Addr]) -> NodeId {
        self.nodes.add(name, addresses)
    }

    /// Gives a node's port an address that exists for that node alone: its functions listen there, connect to it and from it, and no
    /// other node can.
    pub fn add_alias(&mut self, node: NodeId, alias: Ipv4Addr) {
        self.nodes.add_alias(node, alias);
    }

    /// The memfd of the function's BAR2.
    ///
    /// # Errors
    /// [`DeviceError::NoFunction`].
    pub fn bar2(&self, function: FunctionId) -> Result<BorrowedFd<'_>, DeviceError> {
        Ok(self.function(function)?.bar_file.as_fd())
    }

    /// The eventfd with which the function's clients wake a parked device.
    ///
    /// # Errors
    /// [`DeviceError::NoFunction`].
    pub fn kick_fd(&self, function: FunctionId) -> Result<BorrowedFd<'_>, DeviceError> {
        Ok(self.function(function)?.kick.as_fd())
    }

    /// File, offset and length of the window that starts at `iova`.
    #[must_use]
    pub fn window_fd(&self, function: FunctionId, iova: u64) -> Option<(BorrowedFd<'_>, u64, u64)> {
        self.function(function).ok()?.windows.file(iova)
    }

    /// The device's clock: nanoseconds since it was made.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        self.clock.now_ns()
    }

    /// Whether time moves by [`Device::advance`] alone.
    #[must_use]
    pub fn is_time_virtual(&self) -> bool {
        self.clock.is_virtual()
    }

    /// Moves the virtual clock; without virtual time it does nothing.
    pub fn advance(&mut self, ns: u64) {
        self.clock.advance(ns);
    }

    /// Counters of every node.
    #[must_use]
    pub fn node_counters(&self) -> Vec<NodeCounters> {
        self.nodes
            .iter()
            .map(|(id, node)| {
                let mut counters = node.counters;
                for (_, function) in self.functions.iter().filter(|(_, f)| f.node == id) {
                    let orphans = function.qps.iter().filter(|(_, qp)| qp.is_orphan).count();
                    counters.functions += u64::from(!function.is_detached);
                    counters.qps += function.qps.len() as u64;
                    counters.orphans += orphans as u64;
                    counters.cqs += function.cqs.len() as u64;
                    counters.mrs += function.regions.table.len() as u64;
                    counters.windows += function.windows.len() as u64;
                    counters.listeners += function.listeners.len() as u64;
                }
                NodeCounters { node: id, counters }
            })
            .collect()
    }

    /// Every node.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeInfo> {
        self.nodes
            .iter()
            .map(|(id, node)| NodeInfo {
                id,
                name: node.name.clone(),
                addresses: node.addresses.clone(),
            })
            .collect()
    }

    /// Node of an attached function.
    #[must_use]
    pub fn node_of(&self, function: FunctionId) -> Option<NodeId> {
        self.function(function).ok().map(|function| function.node)
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device")
            .field("options", &self.options)
            .field("nodes", &self.nodes())
            .finish_non_exhaustive()
    }
}
