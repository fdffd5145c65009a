//! The service provider interface: what the switch asks of a SAN service provider, and what the provider asks back.
//!
//! Place: `switch` -> [`ServiceProvider`] -> provider; provider -> [`Upcalls`] -> `switch`.
//! Invariants: [`SpSocket`] is the provider's own descriptor, [`SwitchHandle`] the switch's; the compiler refuses a mix-up.
//! Both carry a generation, so a stale one is answered `NotSock`. No function blocks.
//! Source: the Windows Sockets Direct reference (SPI functions, SAN extensions, upcalls); functions keep their names in snake case. The private extension traits
//! ([`SharedMemory`], [`Waiting`], [`Sharing`]) are found the way R-19 finds extensions.

use core::net::{Ipv4Addr, SocketAddrV4};
use core::ptr::NonNull;
use std::os::fd::RawFd;
use std::sync::Arc;

use ring_proto::sync::{AtomicU32, AtomicU64};

use crate::wsa::WsaError;

/// The provider's own descriptor of a companion socket.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SpSocket(pub u64);

/// The switch's descriptor, made by [`Upcalls::wpu_create_socket_handle`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SwitchHandle(pub u64);

/// Version word of [`ServiceProvider::wsp_startup_ex`]: low byte major, high byte minor; WSD is 2.2.
pub const WSD_VERSION: u16 = 0x0202;

/// Protocol information of the caller; of TCP/IP when the switch calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProtocolInfo {
    /// Address family, `AF_INET`.
    pub family: i32,
    /// Socket type, `SOCK_STREAM`.
    pub socket_type: i32,
    /// Protocol, `IPPROTO_TCP`.
    pub protocol: i32,
    /// 0: a new socket; else the token of a duplicated one.
    pub provider_reserved: u32,
}

/// TCP/IP's protocol information.
pub const TCP_INFO: ProtocolInfo = ProtocolInfo {
    family: libc::AF_INET,
    socket_type: libc::SOCK_STREAM,
    protocol: libc::IPPROTO_TCP,
    provider_reserved: 0,
};

/// Flag of [`ServiceProvider::wsp_socket`]; always passed.
pub const WSA_FLAG_OVERLAPPED: u32 = 0x01;

/// What a provider tells of itself at start.
#[derive(Clone, Debug)]
pub struct StartupData {
    /// Version in use.
    pub version: u16,
    /// Name for logs and tables.
    pub name: &'static str,
    /// Most sends plus RDMA operations outstanding per socket.
    pub send_depth: u32,
    /// Most receives outstanding per socket.
    pub recv_depth: u32,
    /// Private extension: memory that the NIC can reach. Mandatory for the switch.
    pub memory: Arc<dyn SharedMemory>,
    /// Private extension: waiting by armed vectors. Mandatory for the switch.
    pub waiting: Arc<dyn Waiting>,
    /// Private extension: sharing of sockets between processes, if supported.
    pub sharing: Option<Arc<dyn Sharing>>,
}

/// Network events of [`ServiceProvider::wsp_event_select`]: accept.
pub const FD_ACCEPT: u32 = 0x08;
/// Network events of [`ServiceProvider::wsp_event_select`]: connect.
pub const FD_CONNECT: u32 = 0x10;

/// Recorded network events of a socket, with the error of each.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NetworkEvents {
    /// `FD_*` bits since the last call.
    pub events: u32,
    /// Error of the connect bit.
    pub connect_error: Option<WsaError>,
    /// [`ring_proto::eqe::CmStatus`] value behind the connect bit: why exactly a connect failed, for the switch to count.
    pub connect_detail: u32,
    /// Error of the accept bit.
    pub accept_error: Option<WsaError>,
}

/// Answer of the accept condition function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// CF_ACCEPT.
    Accept,
    /// CF_REJECT.
    Reject,
    /// CF_DEFER: back to the queue's head.
    Defer,
}

/// What the condition function sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConnectionRequest {
    /// Address of the peer.
    pub caller: SocketAddrV4,
    /// The exact local address the peer dialled.
    pub callee: SocketAddrV4,
}

/// A connection taken by [`ServiceProvider::wsp_accept`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Accepted {
    /// The provider's descriptor of the new socket, in state connected.
    pub socket: SpSocket,
    /// Its addresses.
    pub request: ConnectionRequest,
}

/// Handle of [`ServiceProvider::wsp_register_memory`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MemoryHandle(pub u64);

/// Descriptor of [`ServiceProvider::wsp_register_rdma_memory`]; travels to the peer, which hands it to its own provider.
#[repr(C)]
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    Debug,
    Default,
    zerocopy::FromBytes,
    zerocopy::IntoBytes,
    zerocopy::Immutable,
)]
pub struct RdmaDescriptor {
    /// IOVA in the registering function.
    pub addr: u64,
    /// Bytes.
    pub len: u64,
    /// Remote key.
    pub rkey: u32,
    /// Access bits as passed at registration.
    pub access: u32,
}

/// Access of a registration: the SP may read.
pub const MEM_READ: u32 = 1;
/// Access of a registration: the SP may write.
pub const MEM_WRITE: u32 = 2;

/// A piece of registered memory in a send, receive or RDMA operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SpBuffer {
    /// First byte.
    pub address: NonNull<u8>,
    /// Bytes.
    pub len: u32,
    /// Registration that covers it. `None` only for a first send buffer small enough to go inline.
    pub handle: Option<MemoryHandle>,
}

// SAFETY-free: a buffer is a plain description; the pointer is only followed by the provider under the rules of the registration.

/// Completion slot of one operation: WSAOVERLAPPED. Lives in [`SharedMemory`] and may be polled by any process of the family.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Overlapped {
    /// [`OVERLAPPED_FREE`], [`OVERLAPPED_PENDING`] or [`OVERLAPPED_DONE`]; DONE is stored last, with Release.
    pub state: AtomicU32,
    /// Error code of a finished operation, 0 for success.
    pub error: AtomicU32,
    /// Bytes moved.
    pub bytes: AtomicU32,
    /// Immediate data or flags.
    pub flags: AtomicU32,
    /// Free for the switch.
    pub context: AtomicU64,
}

/// State of an [`Overlapped`] nobody uses.
pub const OVERLAPPED_FREE: u32 = 0;
/// State of an [`Overlapped`] whose operation runs (0x103 in Windows).
pub const OVERLAPPED_PENDING: u32 = 0x103;
/// State of an [`Overlapped`] whose operation has finished.
pub const OVERLAPPED_DONE: u32 = 1;

/// Result of a finished operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transfer {
    /// Bytes moved.
    pub bytes: u32,
    /// Immediate data or flags.
    pub flags: u32,
}

/// Option names of [`ServiceProvider::wsp_get_sock_opt`] at level `SOL_SOCKET` (values of the Winsock headers).
pub mod options {
    /// Provider tracing; the provider's flight recorder.
    pub const SO_DEBUG: u32 = 0x0001;
    /// Not supported without QoS.
    pub const SO_GROUP_PRIORITY: u32 = 0x2002;
    /// Longest message.
    pub const SO_MAX_MSG_SIZE: u32 = 0x2003;
    /// Longest RDMA operation.
    pub const SO_MAX_RDMA_SIZE: u32 = 0x700D;
    /// Transfers above this size should use RDMA.
    pub const SO_RDMA_THRESHOLD_SIZE: u32 = 0x700E;
}

/// Extension functions found by [`Ioctl::ExtensionFunctionPointer`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Extension {
    /// WSPRegisterMemory, C0B422F5-…
    RegisterMemory,
    /// WSPDeregisterMemory, C0B422F6-…
    DeregisterMemory,
    /// WSPRegisterRdmaMemory, C0B422F7-…
    RegisterRdmaMemory,
    /// WSPDeregisterRdmaMemory, C0B422F8-…
    DeregisterRdmaMemory,
    /// WSPRdmaWrite, C0B422F9-…
    RdmaWrite,
    /// WSPRdmaRead, C0B422FA-…; optional.
    RdmaRead,
    /// WSPMemoryRegistrationCacheCallback, E5DA4AF8-…; optional.
    MemoryRegistrationCacheCallback,
}

/// Control code of [`ServiceProvider::wsp_ioctl`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ioctl {
    /// SIO_GET_EXTENSION_FUNCTION_POINTER; the socket argument is not looked at.
    ExtensionFunctionPointer(Extension),
    /// SIO_ADDRESS_LIST_QUERY.
    AddressListQuery,
    /// SIO_GET_QOS, SIO_SET_QOS, SIO_GET_GROUP_QOS, SIO_SET_GROUP_QOS.
    Qos,
}

/// Answer of [`ServiceProvider::wsp_ioctl`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum IoctlReply {
    /// The extension is there: call the trait method of its name.
    Extension(Extension),
    /// Addresses of the NICs, port 0.
    AddressList(Vec<SocketAddrV4>),
}

/// A SAN service provider: every function of the dispatch table and of the SAN extensions.
///
/// # Errors
/// The codes that the Windows Sockets Direct reference gives the function, and no others; `NetDown` from any function says that the whole provider failed.
#[expect(
    missing_docs,
    reason = "each function is the WSP function of its name in the Windows Sockets Direct reference"
)]
pub trait ServiceProvider: Send + Sync {
    fn wsp_startup_ex(
        &self,
        version: u16,
        caller: &ProtocolInfo,
        upcalls: Arc<dyn Upcalls>,
    ) -> Result<StartupData, WsaError>;
    fn wsp_cleanup(&self) -> Result<(), WsaError>;
    fn wsp_socket(
        &self,
        family: i32,
        socket_type: i32,
        protocol: i32,
        info: &ProtocolInfo,
        flags: u32,
    ) -> Result<SpSocket, WsaError>;
    fn wsp_bind(&self, s: SpSocket, name: SocketAddrV4) -> Result<(), WsaError>;
    fn wsp_listen(&self, s: SpSocket, backlog: i32) -> Result<(), WsaError>;
    /// `event` is an eventfd of this process, or `None` to stop.
    fn wsp_event_select(
        &self,
        s: SpSocket,
        event: Option<RawFd>,
        mask: u32,
    ) -> Result<(), WsaError>;
    /// Clears the record and drains `event`.
    fn wsp_enum_network_events(
        &self,
        s: SpSocket,
        event: Option<RawFd>,
    ) -> Result<NetworkEvents, WsaError>;
    fn wsp_accept(
        &self,
        s: SpSocket,
        condition: &mut dyn FnMut(&ConnectionRequest) -> Verdict,
    ) -> Result<Accepted, WsaError>;
    /// `Err(WouldBlock)`: goes on; the end is an FD_CONNECT event.
    fn wsp_connect(&self, s: SpSocket, name: SocketAddrV4) -> Result<(), WsaError>;
    /// Starts a send of one message. `notify`: complete by upcall instead of silently.
    fn wsp_send(
        &self,
        s: SpSocket,
        buffers: &[SpBuffer],
        overlapped: &Overlapped,
        notify: bool,
    ) -> Result<(), WsaError>;
    fn wsp_recv(
        &self,
        s: SpSocket,
        buffers: &[SpBuffer],
        overlapped: &Overlapped,
        notify: bool,
    ) -> Result<(), WsaError>;
    /// Polls the completion queue, then the slot. `wait` true is refused with `Inval`: the switch never waits here.
    fn wsp_get_overlapped_result(
        &self,
        s: SpSocket,
        overlapped: &Overlapped,
        wait: bool,
    ) -> Result<Transfer, WsaError>;
    /// Abortive, never blocks; all slots are finished when it returns.
    fn wsp_close_socket(&self, s: SpSocket) -> Result<(), WsaError>;
    fn wsp_duplicate_socket(&self, s: SpSocket, target_pid: i32) -> Result<ProtocolInfo, WsaError>;
    fn wsp_get_sock_opt(&self, s: SpSocket, level: i32, name: u32) -> Result<u32, WsaError>;
    fn wsp_set_sock_opt(
        &self,
        s: SpSocket,
        level: i32,
        name: u32,
        value: &[u8],
    ) -> Result<(), WsaError>;
    fn wsp_ioctl(&self, s: Option<SpSocket>, code: Ioctl) -> Result<IoctlReply, WsaError>;
    fn wsp_get_qos_by_name(&self, s: SpSocket, name: &[u8]) -> Result<(), WsaError>;

    /// Whether the switch may replay this option: asked, never tried.
    fn supports_option(&self, level: i32, name: u32) -> bool;

    fn wsp_register_memory(
        &self,
        s: SpSocket,
        buffer: NonNull<u8>,
        len: usize,
        access: u32,
    ) -> Result<MemoryHandle, WsaError>;
    fn wsp_deregister_memory(&self, s: SpSocket, handle: MemoryHandle) -> Result<(), WsaError>;
    fn wsp_register_rdma_memory(
        &self,
        s: SpSocket,
        buffer: NonNull<u8>,
        len: usize,
        access: u32,
    ) -> Result<RdmaDescriptor, WsaError>;
    fn wsp_deregister_rdma_memory(
        &self,
        s: SpSocket,
        descriptor: &RdmaDescriptor,
    ) -> Result<(), WsaError>;
    fn wsp_rdma_write(
        &self,
        s: SpSocket,
        buffers: &[SpBuffer],
        target: &RdmaDescriptor,
        target_offset: u64,
        overlapped: &Overlapped,
        notify: bool,
    ) -> Result<(), WsaError>;
    fn wsp_rdma_read(
        &self,
        s: SpSocket,
        buffers: &[SpBuffer],
        source: &RdmaDescriptor,
        source_offset: u64,
        overlapped: &Overlapped,
        notify: bool,
    ) -> Result<(), WsaError>;
    fn wsp_memory_registration_cache_callback(
        &self,
        address: NonNull<u8>,
        len: usize,
    ) -> Result<(), WsaError>;
}

/// What a provider may ask of the switch.
///
/// # Errors
/// `NotSock`, and `Inval` for completion, when the handle is not of [`Upcalls::wpu_create_socket_handle`].
#[expect(
    missing_docs,
    reason = "each function is the WPU function of its name in the Windows Sockets Direct reference"
)]
pub trait Upcalls: Send + Sync {
    fn wpu_create_socket_handle(
        &self,
        provider: u32,
        context: u64,
    ) -> Result<SwitchHandle, WsaError>;
    fn wpu_close_socket_handle(&self, handle: SwitchHandle) -> Result<(), WsaError>;
    fn wpu_query_socket_handle_context(&self, handle: SwitchHandle) -> Result<u64, WsaError>;
    fn wpu_complete_overlapped_request(
        &self,
        handle: SwitchHandle,
        overlapped: &Overlapped,
        error: u32,
        bytes: u32,
    ) -> Result<(), WsaError>;
}

/// A range of memory that the NIC can reach and that a forked child shares.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SharedRegion {
    /// Offset from [`SharedMemory::at`]'s base; the same in every process of the family. 0 is never handed out.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// Memory for switch records, buffers and send rings, per companion socket (private extension).
///
/// All of it is zero when handed out for the first time; re-used memory keeps what was there.
pub trait SharedMemory: Send + Sync + core::fmt::Debug {
    /// Allocates in the arena of the function that `s` belongs to. `None` when it is exhausted.
    fn alloc(&self, s: SpSocket, len: u64) -> Option<SharedRegion>;
    /// Gives a region back.
    fn free(&self, s: SpSocket, region: SharedRegion);
    /// Allocates a send ring in the pair arena toward the peer of the connected socket `s`.
    fn alloc_ring(&self, s: SpSocket, len: u64) -> Option<SharedRegion>;
    /// Gives a send ring back.
    fn free_ring(&self, s: SpSocket, region: SharedRegion);
    /// Address of an offset in this process, for regions of either kind.
    fn at(&self, s: SpSocket, offset: u64) -> Option<NonNull<u8>>;
}

/// A vector that one waiter owns while it waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Waiter {
    /// Function of the provider the vector belongs to.
    pub function: u32,
    /// Vector number.
    pub vector: u32,
    /// Readable in this process after a fire. [`Waiting::drain`] it before the next arm.
    pub fd: RawFd,
}

/// Condition of the connection under a companion, as the provider knows it without polling.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Link {
    /// Not connected yet, or listening.
    Down,
    /// Established.
    Up,
    /// The peer has no holder left; its memory can still be read (orphan).
    Orphaned,
    /// Ended; the code is sticky.
    Ended(WsaError),
}

/// Waiting for completions and events without a descriptor per connection (private extension).
pub trait Waiting: Send + Sync + core::fmt::Debug {
    /// Index of the function that `s` belongs to, in this process.
    fn function_of(&self, s: SpSocket) -> Option<u32>;
    /// Functions this process uses now, by index, with the descriptor that shows POLLHUP (never wait for
    /// POLLIN on it) when the device is gone.
    fn functions(&self) -> Vec<(u32, Option<RawFd>)>;
    /// Takes a vector of a function for one waiter; it is drained and belongs to the caller until released.
    fn acquire(&self, function: u32) -> Result<Waiter, WsaError>;
    /// Gives a vector back.
    fn release(&self, waiter: Waiter);
    /// Looks whether the device behind a function is gone, for who saw its descriptor hung up, or has none to see. Arming fails
    /// from then on.
    fn check(&self, function: u32);
    /// Empties the waiter's descriptor. It need not be an eventfd: where vectors are scarce, several waiters watch one.
    fn drain(&self, waiter: Waiter) {
        crate::sys::drain(waiter.fd);
    }
    /// Makes the waiter's descriptor readable as a fire does, for a change that no completion tells of. Nothing happens when the
    /// waiter was released meanwhile; a new owner of its vector is woken for nothing.
    fn wake(&self, waiter: Waiter) {
        crate::sys::signal(waiter.fd);
    }
    /// Arms the completion queue of `s`; poll once more before sleeping.
    fn arm(&self, s: SpSocket, waiter: Waiter) -> Result<(), WsaError>;
    /// Whether `waiter` is armed there still: nothing has fired since. For who waits by a vector that is drained before this is asked: a
    /// fire that the answer misses has its descriptor readable.
    fn is_armed(&self, s: SpSocket, waiter: Waiter) -> bool {
        let _ = (s, waiter);
        false
    }
    /// Whether a completion, an event or an end waits to be taken note of. Cheap, and true when in doubt.
    fn has_news(&self, s: SpSocket) -> bool {
        let _ = s;
        true
    }
    /// Arms the event queue of the waiter's function (connection events); call [`Waiting::progress`] once more before sleeping.
    fn arm_events(&self, waiter: Waiter) -> Result<(), WsaError>;
    /// Takes events from all event queues and files them; signals the event objects of this process. Returns whether any came.
    fn progress(&self) -> bool;
    /// State of the connection under `s`.
    fn link(&self, s: SpSocket) -> Link;
    /// Whether the link to the node with this address is cut, in either direction.
    fn is_cut(&self, to: Ipv4Addr) -> bool {
        let _ = to;
        false
    }
    /// Copy mode or window mode, as the NIC publishes it for `s`.
    fn mode(&self, s: SpSocket) -> u32;
}

/// Sharing of sockets between processes (private extension).
pub trait Sharing: Send + Sync + core::fmt::Debug {
    /// In the parent before a fork: clones the holds for the child. Nobody may use the provider until one of the next three.
    fn before_fork(&self) -> Result<(), WsaError>;
    /// In the parent after the fork; `forked` false takes the clone back.
    fn after_fork_in_parent(&self, forked: bool);
    /// In the child: adopts the clone. Event objects and vectors of the parent are forgotten, sockets stay usable.
    fn after_fork_in_child(&self);
    /// Gives up this process's hold on `s`. `Ok(true)`: others hold it still, the socket is closed here only. `Ok(false)`: this
    /// process is the last holder and keeps the hold: it finishes the connection and calls `wsp_close_socket`.
    fn release(&self, s: SpSocket) -> Result<bool, WsaError>;
    /// Takes over an accepted socket that its listener holds, for this process.
    fn take_from_listener(&self, s: SpSocket, listener: SpSocket) -> Result<(), WsaError>;
    /// Number that names this process among all of the family, and stays unique while any of them lives. Never 0.
    fn self_id(&self) -> u64;
    /// Whether the process of that number is alive.
    fn is_alive(&self, id: u64) -> bool;
    /// Makes a share of `sockets` for another process or for the next image of this program, which holds them from now on whether or
    /// not it ever takes them up: it ends with the descriptor [`Legacy::life`].
    ///
    /// # Errors
    /// `OpNotSupp` for a provider that shares with forked children only; `NetDown`.
    fn bequeath(&self, sockets: &[SpSocket]) -> Result<Legacy, WsaError> {
        let _ = sockets; // the default has nothing to give
        Err(WsaError::OpNotSupp)
    }
    /// Takes up `s`, which came with a legacy that the provider was made with.
    ///
    /// # Errors
    /// `NotSock` when it was not among them.
    fn take_up(&self, s: SpSocket) -> Result<(), WsaError> {
        let _ = s; // as above
        Err(WsaError::NotSock)
    }
}

/// A share of sockets on its way to another process or program image.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Legacy {
    /// The heir's life: when all its descriptors are closed, the share has ended.
    pub life: RawFd,
    /// Further descriptors that were made for the heir. They and `life` are the caller's to close.
    pub made: Vec<RawFd>,
    /// Descriptors of the giver that the heir needs copies of, under the same numbers.
    pub lent: Vec<RawFd>,
    /// What the provider of the heir is told.
    pub words: Vec<u64>,
}
