//! The SAN service provider: companion sockets over RC queue pairs of the emulated NIC.
//!
//! Place: `switch` -> [`SanProvider`] (the dispatch table) -> the files beside this one, one per part of the interface -> rings,
//! doorbells and admin commands; connection and data events come back by polling.
//! Invariants: state that forked processes share lies in the arena of the socket's function; this process alone has what is in
//! `Core`: mappings, descriptors, event objects, the switch's handles. No lock of this process is held while the function's lock
//! is taken, and none of either kind during an upcall or a condition function.
//! Hot: `wsp_send`, `wsp_recv`, `wsp_rdma_write`, `wsp_rdma_read`, `wsp_get_overlapped_result`: no lock, allocation or log, and no system call
//! while the NIC is awake and nobody else works on the same queue.
//! Source: the Windows Sockets Direct reference (SPI functions and their codes). Leaves out: decisions about roads, buffers and the session.

mod accept;
mod bind;
mod completing;
mod connect;
mod data;
mod events;
mod fault;
mod flight;
mod ioctl;
mod legacy;
mod listen;
mod memory;
mod options;
pub(crate) mod queues;
mod rdma;
mod reclaim;
mod sharing;
mod socket;
mod startup;
mod table;
mod waiting;

use core::net::{Ipv4Addr, SocketAddrV4};
use core::ptr::NonNull;
use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::RawFd;
use std::sync::{Arc, OnceLock};

use ring_proto::admin::{AdminStatus, ProviderCall};
use ring_proto::sync::{AtomicU32, Ordering};

use crate::error::AdminError;
use crate::fork_lock::{ForkLock, Held};
use crate::function::Function;
use crate::opener::Opener;
use crate::spi::{
    Accepted, ConnectionRequest, Ioctl, IoctlReply, MemoryHandle, NetworkEvents, Overlapped,
    ProtocolInfo, RdmaDescriptor, ServiceProvider, SpBuffer, SpSocket, StartupData, SwitchHandle,
    Transfer, Upcalls, Verdict,
};
use crate::wsa::WsaError;

pub use flight::{FlightEntry, FlightKind};

/// Most functions of one process: its own, and those it inherited.
const FUNCTIONS: usize = 64;

/// What a provider is told at start.
#[derive(Clone, Debug)]
pub struct SanConfig {
    /// Addresses of the node's NIC; may be empty.
    pub addresses: Vec<Ipv4Addr>,
    /// Limit of one connect attempt on the SAN.
    pub connect_timeout_ms: u32,
}

impl Default for SanConfig {
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            connect_timeout_ms: 1000,
        }
    }
}

/// SAN service provider of this process.
#[derive(Debug)]
pub struct SanProvider {
    core: Arc<Core>,
}

/// What this process alone has.
pub(crate) struct Core {
    opener: Arc<dyn Opener>,
    config: SanConfig,
    /// Starts that were not undone.
    starts: ForkLock<u32>,
    upcalls: ForkLock<Option<Arc<dyn Upcalls>>>,
    /// Functions by index; an index is the same in all processes that inherited the function.
    functions: [OnceLock<Arc<Function>>; FUNCTIONS],
    /// Index + 1 of the function for new sockets, 0 for none.
    own: AtomicU32,
    opening: ForkLock<()>,
    locals: ForkLock<BTreeMap<SpSocket, Local>>,
    vectors: ForkLock<Vec<waiting::Vector>>,
    /// Batches of events seen, by function.
    events_seen: [AtomicU32; FUNCTIONS],
    fork: ForkLock<Vec<sharing::Clone>>,
}

/// What this process alone has of a socket.
#[derive(Debug)]
struct Local {
    handle: SwitchHandle,
    /// Upcalls under way.
    upcalls: u32,
    is_closed: bool,
    events: events::Registration,
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core")
            .field("config", &self.config)
            .field("functions", &self.functions().count())
            .finish_non_exhaustive()
    }
}

impl SanProvider {
    /// Makes a provider; it opens its first function with the first socket.
    #[must_use]
    pub fn new(opener: Arc<dyn Opener>, config: SanConfig) -> Self {
        Self {
            core: Arc::new(Core {
                opener,
                config,
                starts: ForkLock::new(0),
                upcalls: ForkLock::new(None),
                functions: [const { OnceLock::new() }; FUNCTIONS],
                own: AtomicU32::new(0),
                opening: ForkLock::new(()),
                locals: ForkLock::new(BTreeMap::new()),
                vectors: ForkLock::new(Vec::new()),
                events_seen: [const { AtomicU32::new(0) }; FUNCTIONS],
                fork: ForkLock::new(Vec::new()),
            }),
        }
    }

    /// Takes up the functions of a legacy ([`crate::spi::Legacy::words`]) whose descriptors this process has. Before the provider is
    /// started; the sockets are taken up one by one after that.
    ///
    /// # Errors
    /// `Inval` for words that no provider wrote, or descriptors that are not there.
    pub fn inherit(&self, words: &[u64]) -> Result<(), WsaError> {
        self.core.inherit_functions(words)
    }

    /// Function for new sockets, when it is open already. For tests and tools.
    #[must_use]
    pub fn function(&self) -> Option<Arc<Function>> {
        let (_, function) = self.core.own_function()?;
        Some(Arc::clone(function))
    }
}

impl Core {
    fn functions(&self) -> impl Iterator<Item = (u32, &Arc<Function>)> {
        (0..)
            .zip(&self.functions)
            .filter_map(|(index, cell)| Some((index, cell.get()?)))
    }

    fn own_function(&self) -> Option<(u32, &Arc<Function>)> {
        // Relaxed: the cell orders its content.
        let index = self.own.load(Ordering::Relaxed).checked_sub(1)?;
        let function = self.functions.get(usize::try_from(index).ok()?)?.get()?;
        Some((index, function))
    }

    fn locals(&self) -> Held<'_, BTreeMap<SpSocket, Local>> {
        self.locals.lock()
    }

    fn upcalls(&self) -> Result<Arc<dyn Upcalls>, WsaError> {
        self.upcalls.lock().clone().ok_or(WsaError::NetDown)
    }
}

/// What a refused command means to the switch.
fn code_of(error: AdminError) -> WsaError {
    match error.status() {
        None => WsaError::NetDown,
        Some(AdminStatus::BAD_NODE_ADDRESS) => WsaError::AddrNotAvail,
        Some(AdminStatus::BAD_ADDRESS) => WsaError::Fault,
        Some(_) => WsaError::NoBufs,
    }
}

impl ServiceProvider for SanProvider {
    fn wsp_startup_ex(
        &self,
        version: u16,
        caller: &ProtocolInfo,
        upcalls: Arc<dyn Upcalls>,
    ) -> Result<StartupData, WsaError> {
        startup::start(&self.core, version, caller, upcalls)
    }

    fn wsp_cleanup(&self) -> Result<(), WsaError> {
        self.core.cleanup()
    }

    fn wsp_socket(
        &self,
        family: i32,
        socket_type: i32,
        protocol: i32,
        info: &ProtocolInfo,
        flags: u32,
    ) -> Result<SpSocket, WsaError> {
        socket::check(family, socket_type, protocol, info, flags)?;
        let (_, function) = self.core.open_own()?;
        fault::pass(function, ProviderCall::WSP_SOCKET)?;
        self.core.create()
    }

    fn wsp_bind(&self, s: SpSocket, name: SocketAddrV4) -> Result<(), WsaError> {
        self.core.pass(s, ProviderCall::WSP_BIND)?;
        self.core.bind(s, name)
    }

    fn wsp_listen(&self, s: SpSocket, backlog: i32) -> Result<(), WsaError> {
        self.core.pass(s, ProviderCall::WSP_LISTEN)?;
        self.core.listen(s, backlog)
    }

    fn wsp_event_select(
        &self,
        s: SpSocket,
        event: Option<RawFd>,
        mask: u32,
    ) -> Result<(), WsaError> {
        self.core.pass(s, ProviderCall::WSP_EVENT_SELECT)?;
        self.core.event_select(s, event, mask)
    }

    fn wsp_enum_network_events(
        &self,
        s: SpSocket,
        event: Option<RawFd>,
    ) -> Result<NetworkEvents, WsaError> {
        self.core.enum_network_events(s, event)
    }

    fn wsp_accept(
        &self,
        s: SpSocket,
        condition: &mut dyn FnMut(&ConnectionRequest) -> Verdict,
    ) -> Result<Accepted, WsaError> {
        self.core.pass(s, ProviderCall::WSP_ACCEPT)?;
        self.core.accept(s, condition)
    }

    fn wsp_connect(&self, s: SpSocket, name: SocketAddrV4) -> Result<(), WsaError> {
        self.core.pass(s, ProviderCall::WSP_CONNECT)?;
        self.core.connect(s, name)
    }

    fn wsp_send(
        &self,
        s: SpSocket,
        buffers: &[SpBuffer],
        overlapped: &Overlapped,
        notify: bool,
    ) -> Result<(), WsaError> {
        self.core.send(s, buffers, overlapped, notify)
    }

    fn wsp_recv(
        &self,
        s: SpSocket,
        buffers: &[SpBuffer],
        overlapped: &Overlapped,
        notify: bool,
    ) -> Result<(), WsaError> {
        self.core.recv(s, buffers, overlapped, notify)
    }

    fn wsp_get_overlapped_result(
        &self,
        s: SpSocket,
        overlapped: &Overlapped,
        wait: bool,
    ) -> Result<Transfer, WsaError> {
        self.core.overlapped_result(s, overlapped, wait)
    }

    fn wsp_close_socket(&self, s: SpSocket) -> Result<(), WsaError> {
        self.core.close(s, true)
    }

    fn wsp_duplicate_socket(&self, s: SpSocket, _: i32) -> Result<ProtocolInfo, WsaError> {
        self.core.duplicate(s)
    }

    fn wsp_get_sock_opt(&self, s: SpSocket, level: i32, name: u32) -> Result<u32, WsaError> {
        self.core.pass(s, ProviderCall::WSP_GET_SOCK_OPT)?;
        self.core.option(s, level, name)
    }

    fn wsp_set_sock_opt(
        &self,
        s: SpSocket,
        level: i32,
        name: u32,
        value: &[u8],
    ) -> Result<(), WsaError> {
        self.core.pass(s, ProviderCall::WSP_SET_SOCK_OPT)?;
        self.core.set_option(s, level, name, value)
    }

    fn wsp_ioctl(&self, s: Option<SpSocket>, code: Ioctl) -> Result<IoctlReply, WsaError> {
        self.core.ioctl(s, code)
    }

    fn wsp_get_qos_by_name(&self, s: SpSocket, _: &[u8]) -> Result<(), WsaError> {
        self.core.qos(s)
    }

    fn supports_option(&self, level: i32, name: u32) -> bool {
        options::is_supported(level, name)
    }

    fn wsp_register_memory(
        &self,
        s: SpSocket,
        buffer: NonNull<u8>,
        len: usize,
        access: u32,
    ) -> Result<MemoryHandle, WsaError> {
        self.core.register(s, buffer, len, access)
    }

    fn wsp_deregister_memory(&self, s: SpSocket, handle: MemoryHandle) -> Result<(), WsaError> {
        self.core.deregister(s, handle)
    }

    fn wsp_register_rdma_memory(
        &self,
        s: SpSocket,
        buffer: NonNull<u8>,
        len: usize,
        access: u32,
    ) -> Result<RdmaDescriptor, WsaError> {
        self.core.register_rdma(s, buffer, len, access)
    }

    fn wsp_deregister_rdma_memory(
        &self,
        s: SpSocket,
        descriptor: &RdmaDescriptor,
    ) -> Result<(), WsaError> {
        self.core.deregister_rdma(s, descriptor)
    }

    fn wsp_rdma_write(
        &self,
        s: SpSocket,
        buffers: &[SpBuffer],
        target: &RdmaDescriptor,
        target_offset: u64,
        overlapped: &Overlapped,
        notify: bool,
    ) -> Result<(), WsaError> {
        self.core.rdma(
            rdma::Direction::Write,
            s,
            buffers,
            target,
            target_offset,
            overlapped,
            notify,
        )
    }

    fn wsp_rdma_read(
        &self,
        s: SpSocket,
        buffers: &[SpBuffer],
        source: &RdmaDescriptor,
        source_offset: u64,
        overlapped: &Overlapped,
        notify: bool,
    ) -> Result<(), WsaError> {
        self.core.rdma(
            rdma::Direction::Read,
            s,
            buffers,
            source,
            source_offset,
            overlapped,
            notify,
        )
    }

    fn wsp_memory_registration_cache_callback(
        &self,
        _: NonNull<u8>,
        _: usize,
    ) -> Result<(), WsaError> {
        // Nothing is ever cached: only arena memory can be registered.
        Err(WsaError::Inval)
    }
}
