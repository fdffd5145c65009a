//! A small double of a SAN provider in one process: messages with receiver-not-ready hold, RDMA READ, orphans, death of the device.
//!
//! Place: the session's tests run over it without a device. Invariants: completions wait in a queue until somebody polls, as with a
//! NIC; sends are served in order, a held one holds all behind it. Source: the SPI's contract.
#![expect(unsafe_code, reason = "moves bytes between addresses, as a NIC does")]

use core::net::SocketAddrV4;
use core::ptr::NonNull;
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard};

use driver::spi::{
    Accepted, ConnectionRequest, Extension, Ioctl, IoctlReply, Link, MemoryHandle, NetworkEvents,
    OVERLAPPED_DONE, OVERLAPPED_PENDING, Overlapped, ProtocolInfo, RdmaDescriptor, ServiceProvider,
    SharedMemory, SharedRegion, Sharing, SpBuffer, SpSocket, StartupData, Transfer, Upcalls,
    Verdict, WSD_VERSION, Waiter, Waiting, options,
};
use driver::wsa::WsaError;
use ring_proto::sync::{AtomicU64, Ordering};

use crate::provider_table::{Provider, ProviderRef};

/// Receives and sends a socket takes.
const DEPTH: u32 = 24;
/// Bytes of shared memory.
const MEMORY: usize = 512 << 20;

/// One fabric with its sockets and its memory.
pub(crate) struct Fabric {
    state: Mutex<State>,
    /// Shared memory of all ends: reserved, touched page by page.
    memory: Memory,
    /// Id that the double answers as `self_id`; tests change it to play another process.
    pub(crate) self_id: AtomicU64,
    /// Processes that are dead.
    dead: Mutex<Vec<u64>>,
}

struct Memory(NonNull<u8>);

// SAFETY: plain bytes, used through raw pointers only.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

#[derive(Default)]
struct State {
    sockets: BTreeMap<u64, Socket>,
    next_socket: u64,
    next_key: u64,
    next_byte: u64,
    /// Registrations: key -> (address, bytes, owner, access).
    regions: BTreeMap<u64, (usize, usize, u64, u32)>,
    allocated: u64,
    /// Sends that would be posted fail with `NoBufs` while this is set.
    is_send_queue_full: bool,
    is_dead: bool,
    kill: Option<(u32, Moment)>,
}

/// When, inside a posting call, the caller is killed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Moment {
    /// Before anything was done.
    Before,
    /// The slot is marked, the NIC has nothing.
    Marked,
    /// The NIC has it.
    After,
}

#[derive(Default)]
struct Socket {
    peer: u64,
    link: Option<Link>,
    is_orphan: bool,
    /// Served SENDs stop here: the tests hold the wire.
    is_held: bool,
    sends: VecDeque<Operation>,
    receives: VecDeque<Operation>,
    /// Completions that nobody has polled.
    completions: VecDeque<Completion>,
}

struct Operation {
    overlapped: usize,
    /// Bytes of a send; place and length of a receive or of the target of a READ.
    bytes: Vec<u8>,
    place: (usize, usize),
    /// Source of an RDMA READ.
    read_from: Option<(RdmaDescriptor, u64)>,
}

struct Completion {
    overlapped: usize,
    error: u32,
    bytes: u32,
}

fn layout() -> std::alloc::Layout {
    std::alloc::Layout::from_size_align(MEMORY, 16).unwrap()
}

fn code(error: WsaError) -> u32 {
    error.code()
}

impl Fabric {
    pub(crate) fn new() -> Arc<Self> {
        // SAFETY: the layout has a size; at this alignment zeroed pages come from the system untouched. Freed in `drop`.
        let base = unsafe { std::alloc::alloc_zeroed(layout()) };
        Arc::new(Self {
            state: Mutex::new(State {
                next_socket: 1,
                next_key: 1,
                next_byte: 4096,
                ..State::default()
            }),
            memory: Memory(NonNull::new(base).unwrap()),
            self_id: AtomicU64::new(1),
            dead: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// A provider of this fabric.
    pub(crate) fn provider(self: &Arc<Self>, index: u32) -> ProviderRef {
        let sp = Arc::new(Double {
            fabric: Arc::clone(self),
        });
        Provider::start(index, sp, Box::new(|| {})).unwrap()
    }

    /// Two connected sockets.
    pub(crate) fn connect(&self) -> (SpSocket, SpSocket) {
        let mut state = self.lock();
        let (a, b) = (state.next_socket, state.next_socket + 1);
        state.next_socket += 2;
        for (one, other) in [(a, b), (b, a)] {
            let socket = Socket {
                peer: other,
                link: Some(Link::Up),
                ..Socket::default()
            };
            state.sockets.insert(one, socket);
        }
        (SpSocket(a), SpSocket(b))
    }

    /// The last holder of `s` is gone.
    pub(crate) fn orphan(&self, s: SpSocket) {
        let mut state = self.lock();
        let socket = state.sockets.get_mut(&s.0).unwrap();
        socket.is_orphan = true;
        socket.sends.clear();
        let peer = socket.peer;
        if let Some(other) = state.sockets.get_mut(&peer) {
            other.link = Some(Link::Orphaned);
        }
        state.serve(peer);
    }

    /// Ends the connection of `s` from its side, without a word of its session.
    pub(crate) fn end(&self, s: SpSocket) {
        let peer = self.lock().sockets[&s.0].peer;
        let mut state = self.lock();
        state.flush(peer, WsaError::OperationAborted);
        state.sockets.get_mut(&peer).unwrap().link = Some(Link::Ended(WsaError::ConnReset));
    }

    /// The device is gone.
    pub(crate) fn die(&self) {
        let mut state = self.lock();
        state.is_dead = true;
        for socket in state.sockets.values_mut() {
            socket.link = Some(Link::Ended(WsaError::NetDown));
        }
    }

    /// Lets sends of `s` pile up, or serves them again.
    pub(crate) fn hold(&self, s: SpSocket, is_held: bool) {
        let mut state = self.lock();
        state.sockets.get_mut(&s.0).unwrap().is_held = is_held;
        state.serve(s.0);
    }

    /// Bytes of the sends that wait for a receive of the peer.
    pub(crate) fn waiting_sends(&self, s: SpSocket) -> Vec<Vec<u8>> {
        let state = self.lock();
        state.sockets[&s.0]
            .sends
            .iter()
            .map(|o| o.bytes.clone())
            .collect()
    }

    /// Makes the `nth` posting call from now on panic, as if its process were killed there.
    pub(crate) fn kill_at(&self, nth: u32, moment: Moment) {
        self.lock().kill = Some((nth, moment));
    }

    /// Whether the kill of [`Self::kill_at`] has not happened; it will not any more.
    pub(crate) fn disarm_kill(&self) -> bool {
        // A panic poisons nothing: it happens outside the lock.
        self.lock().kill.take().is_some()
    }

    /// The kill of this call, if it is its turn.
    fn doom(&self) -> Option<Moment> {
        let mut state = self.lock();
        let (left, moment) = state.kill?;
        if left > 0 {
            state.kill = Some((left - 1, moment));
            return None;
        }
        state.kill = None;
        Some(moment)
    }

    /// Lets every send fail with `NoBufs`, or not.
    pub(crate) fn fill_send_queues(&self, is_full: bool) {
        self.lock().is_send_queue_full = is_full;
    }

    /// Sends a message as if `s`'s session had.
    pub(crate) fn inject(&self, s: SpSocket, bytes: &[u8]) {
        let mut state = self.lock();
        let operation = Operation {
            overlapped: 0,
            bytes: bytes.to_vec(),
            place: (0, 0),
            read_from: None,
        };
        state
            .sockets
            .get_mut(&s.0)
            .unwrap()
            .sends
            .push_back(operation);
        state.serve(s.0);
    }

    /// Declares a process dead.
    pub(crate) fn bury(&self, id: u64) {
        self.dead.lock().unwrap().push(id);
    }

    /// Bytes of shared memory in use.
    pub(crate) fn allocated(&self) -> u64 {
        self.lock().allocated
    }

    /// Whether the socket is closed.
    pub(crate) fn is_closed(&self, s: SpSocket) -> bool {
        !self.lock().sockets.contains_key(&s.0)
    }
}

impl Drop for Fabric {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `new`.
        unsafe { std::alloc::dealloc(self.memory.0.as_ptr(), layout()) };
    }
}

impl State {
    /// Serves the sends of a socket as far as they go.
    fn serve(&mut self, s: u64) {
        if self.is_dead {
            return;
        }
        loop {
            let Some(socket) = self.sockets.get_mut(&s) else {
                return;
            };
            if socket.is_orphan || socket.is_held || socket.sends.is_empty() {
                return;
            }
            let peer = socket.peer;
            let is_read = socket.sends[0].read_from.is_some();
            let Some(other) = self.sockets.get_mut(&peer) else {
                return;
            };
            if !is_read && !other.is_orphan && other.receives.is_empty() {
                // Receiver not ready: held.
                return;
            }
            let receive = if is_read || other.is_orphan {
                None
            } else {
                other.receives.pop_front()
            };
            let operation = self
                .sockets
                .get_mut(&s)
                .and_then(|socket| socket.sends.pop_front())
                .unwrap();
            let mut error = 0;
            let mut len = operation.bytes.len();
            if let Some((descriptor, offset)) = operation.read_from {
                len = operation.place.1;
                let known = self.regions.get(&u64::from(descriptor.rkey));
                match known {
                    Some(&(base, size, owner, access))
                        if owner == peer
                            && access & 1 != 0
                            && usize::try_from(offset).unwrap() + len <= size =>
                    {
                        let from = base + usize::try_from(offset).unwrap();
                        // SAFETY: both ranges lie in the fabric's memory, as checked here and at the post.
                        unsafe {
                            core::ptr::copy(from as *const u8, operation.place.0 as *mut u8, len);
                        }
                    }
                    _ => error = code(WsaError::ConnAborted),
                }
            }
            if let Some(receive) = receive {
                assert!(operation.bytes.len() <= receive.place.1, "message too long");
                // SAFETY: the receive's place was checked when it was posted.
                unsafe {
                    core::ptr::copy_nonoverlapping(
                        operation.bytes.as_ptr(),
                        receive.place.0 as *mut u8,
                        operation.bytes.len(),
                    );
                }
                let bytes = u32::try_from(operation.bytes.len()).unwrap();
                self.complete(peer, receive.overlapped, 0, bytes);
            }
            self.complete(s, operation.overlapped, error, u32::try_from(len).unwrap());
        }
    }

    fn complete(&mut self, s: u64, overlapped: usize, error: u32, bytes: u32) {
        if overlapped == 0 {
            return;
        }
        if let Some(socket) = self.sockets.get_mut(&s) {
            socket.completions.push_back(Completion {
                overlapped,
                error,
                bytes,
            });
        }
    }

    /// Ends a socket's operations with `error`.
    fn flush(&mut self, s: u64, error: WsaError) {
        let Some(socket) = self.sockets.get_mut(&s) else {
            return;
        };
        let ended: Vec<usize> = socket
            .receives
            .drain(..)
            .chain(socket.sends.drain(..))
            .map(|o| o.overlapped)
            .collect();
        for overlapped in ended {
            self.complete(s, overlapped, code(error), 0);
        }
    }

    fn checked(&self, s: SpSocket, buffer: &SpBuffer) -> Result<(usize, usize), WsaError> {
        let at = buffer.address.as_ptr() as usize;
        let len = buffer.len as usize;
        let handle = buffer.handle.ok_or(WsaError::Fault)?;
        let &(base, size, owner, _) = self.regions.get(&handle.0).ok_or(WsaError::Fault)?;
        if owner != s.0 || at < base || at + len > base + size {
            return Err(WsaError::Fault);
        }
        Ok((at, len))
    }

    fn usable(&mut self, s: SpSocket) -> Result<&mut Socket, WsaError> {
        if self.is_dead {
            return Err(WsaError::NetDown);
        }
        let socket = self.sockets.get_mut(&s.0).ok_or(WsaError::NotSock)?;
        match socket.link {
            Some(Link::Ended(error)) => Err(error),
            _ => Ok(socket),
        }
    }
}

fn file(completion: &Completion) {
    // SAFETY: slots live in the fabric's memory or in the test, until their operation has completed.
    let slot = unsafe { &*(completion.overlapped as *const Overlapped) };
    slot.error.store(completion.error, Ordering::Relaxed);
    slot.bytes.store(completion.bytes, Ordering::Relaxed);
    slot.state.store(OVERLAPPED_DONE, Ordering::Release);
}

struct Double {
    fabric: Arc<Fabric>,
}

impl core::fmt::Debug for Fabric {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Fabric")
    }
}

impl ServiceProvider for Double {
    fn wsp_startup_ex(
        &self,
        _version: u16,
        _caller: &ProtocolInfo,
        _upcalls: Arc<dyn Upcalls>,
    ) -> Result<StartupData, WsaError> {
        Ok(StartupData {
            version: WSD_VERSION,
            name: "double",
            send_depth: 16,
            recv_depth: DEPTH,
            memory: Arc::clone(&self.fabric) as _,
            waiting: Arc::clone(&self.fabric) as _,
            sharing: Some(Arc::clone(&self.fabric) as _),
        })
    }
    fn wsp_cleanup(&self) -> Result<(), WsaError> {
        Ok(())
    }
    fn wsp_socket(
        &self,
        _family: i32,
        _socket_type: i32,
        _protocol: i32,
        _info: &ProtocolInfo,
        _flags: u32,
    ) -> Result<SpSocket, WsaError> {
        let mut state = self.fabric.lock();
        let id = state.next_socket;
        state.next_socket += 1;
        state.sockets.insert(id, Socket::default());
        Ok(SpSocket(id))
    }
    fn wsp_bind(&self, _s: SpSocket, _name: SocketAddrV4) -> Result<(), WsaError> {
        Err(WsaError::Inval)
    }
    fn wsp_listen(&self, _s: SpSocket, _backlog: i32) -> Result<(), WsaError> {
        Err(WsaError::Inval)
    }
    fn wsp_event_select(
        &self,
        _s: SpSocket,
        _event: Option<RawFd>,
        _mask: u32,
    ) -> Result<(), WsaError> {
        Err(WsaError::Inval)
    }
    fn wsp_enum_network_events(
        &self,
        _s: SpSocket,
        _event: Option<RawFd>,
    ) -> Result<NetworkEvents, WsaError> {
        Err(WsaError::Inval)
    }
    fn wsp_accept(
        &self,
        _s: SpSocket,
        _condition: &mut dyn FnMut(&ConnectionRequest) -> Verdict,
    ) -> Result<Accepted, WsaError> {
        Err(WsaError::WouldBlock)
    }
    fn wsp_connect(&self, _s: SpSocket, _name: SocketAddrV4) -> Result<(), WsaError> {
        Err(WsaError::Inval)
    }
    fn wsp_send(
        &self,
        s: SpSocket,
        buffers: &[SpBuffer],
        overlapped: &Overlapped,
        _notify: bool,
    ) -> Result<(), WsaError> {
        let doom = self.fabric.doom();
        if doom == Some(Moment::Before) {
            std::panic::resume_unwind(Box::new("killed"));
        }
        if doom == Some(Moment::Marked) {
            overlapped
                .state
                .store(OVERLAPPED_PENDING, Ordering::Relaxed);
            std::panic::resume_unwind(Box::new("killed"));
        }
        let mut state = self.fabric.lock();
        if state.is_send_queue_full {
            return Err(WsaError::NoBufs);
        }
        state.usable(s)?;
        let mut bytes = Vec::new();
        for buffer in buffers {
            if buffer.handle.is_none() {
                assert!(buffers.len() == 1 && buffer.len <= 224, "not inline");
            } else {
                state.checked(s, buffer)?;
            }
            // SAFETY: registered memory as checked, or the caller's own bytes.
            let piece = unsafe {
                core::slice::from_raw_parts(buffer.address.as_ptr(), buffer.len as usize)
            };
            bytes.extend_from_slice(piece);
        }
        overlapped
            .state
            .store(OVERLAPPED_PENDING, Ordering::Relaxed);
        let operation = Operation {
            overlapped: core::ptr::from_ref(overlapped) as usize,
            bytes,
            place: (0, 0),
            read_from: None,
        };
        state.usable(s)?.sends.push_back(operation);
        state.serve(s.0);
        drop(state);
        if doom.is_some() {
            std::panic::resume_unwind(Box::new("killed"));
        }
        Ok(())
    }
    fn wsp_recv(
        &self,
        s: SpSocket,
        buffers: &[SpBuffer],
        overlapped: &Overlapped,
        _notify: bool,
    ) -> Result<(), WsaError> {
        let doom = self.fabric.doom();
        if doom == Some(Moment::Before) {
            std::panic::resume_unwind(Box::new("killed"));
        }
        if doom == Some(Moment::Marked) {
            overlapped
                .state
                .store(OVERLAPPED_PENDING, Ordering::Relaxed);
            std::panic::resume_unwind(Box::new("killed"));
        }
        let mut state = self.fabric.lock();
        let place = state.checked(s, &buffers[0])?;
        let socket = state.usable(s)?;
        assert!(
            socket.receives.len() < DEPTH as usize,
            "receive queue overrun"
        );
        overlapped
            .state
            .store(OVERLAPPED_PENDING, Ordering::Relaxed);
        socket.receives.push_back(Operation {
            overlapped: core::ptr::from_ref(overlapped) as usize,
            bytes: Vec::new(),
            place,
            read_from: None,
        });
        let peer = socket.peer;
        state.serve(peer);
        drop(state);
        if doom.is_some() {
            std::panic::resume_unwind(Box::new("killed"));
        }
        Ok(())
    }
    fn wsp_get_overlapped_result(
        &self,
        s: SpSocket,
        overlapped: &Overlapped,
        _wait: bool,
    ) -> Result<Transfer, WsaError> {
        let mut state = self.fabric.lock();
        if let Some(socket) = state.sockets.get_mut(&s.0) {
            // A small batch, as a NIC's poll.
            for _ in 0..4 {
                if let Some(completion) = socket.completions.pop_front() {
                    file(&completion);
                }
            }
        }
        match overlapped.state.load(Ordering::Acquire) {
            OVERLAPPED_DONE => Ok(Transfer {
                bytes: overlapped.bytes.load(Ordering::Relaxed),
                flags: 0,
            }),
            _ => Err(WsaError::IoIncomplete),
        }
    }
    fn wsp_close_socket(&self, s: SpSocket) -> Result<(), WsaError> {
        let mut state = self.fabric.lock();
        state.flush(s.0, WsaError::OperationAborted);
        let socket = state.sockets.remove(&s.0).ok_or(WsaError::NotSock)?;
        for completion in &socket.completions {
            file(completion);
        }
        state.regions.retain(|_, region| region.2 != s.0);
        state.flush(socket.peer, WsaError::OperationAborted);
        if let Some(peer) = state.sockets.get_mut(&socket.peer)
            && peer.link == Some(Link::Up)
        {
            peer.link = Some(Link::Ended(WsaError::ConnReset));
        }
        Ok(())
    }
    fn wsp_duplicate_socket(
        &self,
        _s: SpSocket,
        _target_pid: i32,
    ) -> Result<ProtocolInfo, WsaError> {
        Err(WsaError::Inval)
    }
    fn wsp_get_sock_opt(&self, _s: SpSocket, _level: i32, name: u32) -> Result<u32, WsaError> {
        match name {
            options::SO_MAX_MSG_SIZE => Ok(1 << 20),
            options::SO_MAX_RDMA_SIZE => Ok(50_000),
            _ => Err(WsaError::NoProtoOpt),
        }
    }
    fn wsp_set_sock_opt(
        &self,
        _s: SpSocket,
        _level: i32,
        _name: u32,
        _value: &[u8],
    ) -> Result<(), WsaError> {
        Err(WsaError::NoProtoOpt)
    }
    fn wsp_ioctl(&self, _s: Option<SpSocket>, code: Ioctl) -> Result<IoctlReply, WsaError> {
        match code {
            Ioctl::ExtensionFunctionPointer(Extension::MemoryRegistrationCacheCallback)
            | Ioctl::Qos => Err(WsaError::OpNotSupp),
            Ioctl::ExtensionFunctionPointer(extension) => Ok(IoctlReply::Extension(extension)),
            Ioctl::AddressListQuery => Ok(IoctlReply::AddressList(Vec::new())),
        }
    }
    fn wsp_get_qos_by_name(&self, _s: SpSocket, _name: &[u8]) -> Result<(), WsaError> {
        Err(WsaError::OpNotSupp)
    }
    fn supports_option(&self, _level: i32, _name: u32) -> bool {
        false
    }
    fn wsp_register_memory(
        &self,
        s: SpSocket,
        buffer: NonNull<u8>,
        len: usize,
        access: u32,
    ) -> Result<MemoryHandle, WsaError> {
        let mut state = self.fabric.lock();
        state.usable(s)?;
        let key = state.next_key;
        state.next_key += 1;
        state
            .regions
            .insert(key, (buffer.as_ptr() as usize, len, s.0, access));
        Ok(MemoryHandle(key))
    }
    fn wsp_deregister_memory(&self, _s: SpSocket, handle: MemoryHandle) -> Result<(), WsaError> {
        let mut state = self.fabric.lock();
        state
            .regions
            .remove(&handle.0)
            .map(drop)
            .ok_or(WsaError::Inval)
    }
    fn wsp_register_rdma_memory(
        &self,
        s: SpSocket,
        buffer: NonNull<u8>,
        len: usize,
        access: u32,
    ) -> Result<RdmaDescriptor, WsaError> {
        let handle = self.wsp_register_memory(s, buffer, len, access)?;
        Ok(RdmaDescriptor {
            addr: 0x1000,
            len: len as u64,
            rkey: u32::try_from(handle.0).unwrap(),
            access,
        })
    }
    fn wsp_deregister_rdma_memory(
        &self,
        s: SpSocket,
        descriptor: &RdmaDescriptor,
    ) -> Result<(), WsaError> {
        self.wsp_deregister_memory(s, MemoryHandle(u64::from(descriptor.rkey)))
    }
    fn wsp_rdma_write(
        &self,
        _s: SpSocket,
        _buffers: &[SpBuffer],
        _target: &RdmaDescriptor,
        _target_offset: u64,
        _overlapped: &Overlapped,
        _notify: bool,
    ) -> Result<(), WsaError> {
        Err(WsaError::OpNotSupp)
    }
    fn wsp_rdma_read(
        &self,
        s: SpSocket,
        buffers: &[SpBuffer],
        source: &RdmaDescriptor,
        source_offset: u64,
        overlapped: &Overlapped,
        _notify: bool,
    ) -> Result<(), WsaError> {
        let mut state = self.fabric.lock();
        let place = state.checked(s, &buffers[0])?;
        assert!(place.1 <= 50_000, "longer than SO_MAX_RDMA_SIZE");
        overlapped
            .state
            .store(OVERLAPPED_PENDING, Ordering::Relaxed);
        let operation = Operation {
            overlapped: core::ptr::from_ref(overlapped) as usize,
            bytes: Vec::new(),
            place,
            read_from: Some((*source, source_offset)),
        };
        state.usable(s)?.sends.push_back(operation);
        state.serve(s.0);
        Ok(())
    }
    fn wsp_memory_registration_cache_callback(
        &self,
        _address: NonNull<u8>,
        _len: usize,
    ) -> Result<(), WsaError> {
        Err(WsaError::Inval)
    }
}

impl SharedMemory for Fabric {
    fn alloc(&self, _s: SpSocket, len: u64) -> Option<SharedRegion> {
        let mut state = self.lock();
        let offset = state.next_byte;
        let end = offset + len.next_multiple_of(4096);
        if end > MEMORY as u64 {
            return None;
        }
        state.next_byte = end;
        state.allocated += len;
        Some(SharedRegion { offset, len })
    }
    fn free(&self, _s: SpSocket, region: SharedRegion) {
        self.lock().allocated -= region.len;
    }
    fn alloc_ring(&self, s: SpSocket, len: u64) -> Option<SharedRegion> {
        self.alloc(s, len)
    }
    fn free_ring(&self, s: SpSocket, region: SharedRegion) {
        self.free(s, region);
    }
    fn at(&self, _s: SpSocket, offset: u64) -> Option<NonNull<u8>> {
        let offset = usize::try_from(offset).ok().filter(|&o| o < MEMORY)?;
        // SAFETY: inside the memory.
        Some(unsafe { self.memory.0.add(offset) })
    }
}

impl Waiting for Fabric {
    fn function_of(&self, _s: SpSocket) -> Option<u32> {
        Some(0)
    }
    fn functions(&self) -> Vec<(u32, Option<RawFd>)> {
        Vec::new()
    }
    fn acquire(&self, _function: u32) -> Result<Waiter, WsaError> {
        Err(WsaError::NoBufs)
    }
    fn release(&self, _waiter: Waiter) {}
    fn arm(&self, _s: SpSocket, _waiter: Waiter) -> Result<(), WsaError> {
        Ok(())
    }
    fn check(&self, _function: u32) {}

    fn arm_events(&self, _waiter: Waiter) -> Result<(), WsaError> {
        Ok(())
    }
    fn progress(&self) -> bool {
        false
    }
    fn link(&self, s: SpSocket) -> Link {
        let state = self.lock();
        state
            .sockets
            .get(&s.0)
            .and_then(|socket| socket.link)
            .unwrap_or(Link::Ended(WsaError::NotSock))
    }
    fn mode(&self, _s: SpSocket) -> u32 {
        0
    }
}

impl Sharing for Fabric {
    fn before_fork(&self) -> Result<(), WsaError> {
        Ok(())
    }
    fn after_fork_in_parent(&self, _forked: bool) {}
    fn after_fork_in_child(&self) {}
    fn release(&self, _s: SpSocket) -> Result<bool, WsaError> {
        Ok(false)
    }
    fn take_from_listener(&self, _s: SpSocket, _listener: SpSocket) -> Result<(), WsaError> {
        Ok(())
    }
    fn self_id(&self) -> u64 {
        self.self_id.load(Ordering::Relaxed)
    }
    fn is_alive(&self, id: u64) -> bool {
        !self.dead.lock().unwrap().contains(&id)
    }
}
