//! The functions of the recording SAN provider.

use core::net::SocketAddrV4;
use core::ptr::NonNull;
use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::Arc;

use driver::spi::{
    Accepted, ConnectionRequest, FD_ACCEPT, FD_CONNECT, Ioctl, IoctlReply, MemoryHandle,
    NetworkEvents, OVERLAPPED_DONE, OVERLAPPED_PENDING, Overlapped, ProtocolInfo, RdmaDescriptor,
    ServiceProvider, SpBuffer, SpSocket, StartupData, Transfer, Upcalls, Verdict,
    WSA_FLAG_OVERLAPPED, WSD_VERSION, options,
};
use driver::wsa::WsaError;
use ring_proto::eqe::CmStatus;
use ring_proto::sync::Ordering;

use super::fabric::{Held, MockPhase, MockSocket, Posted, Request, complete};
use super::san::{Call, MockSan, MockWaiting};
use super::{lock, memory};

/// Longest message.
const MAX_MSG_SIZE: u32 = 1 << 20;
/// Sends and receives outstanding per socket.
const DEPTH: u32 = 32;

impl MockSan {
    /// A new structure, the switch's descriptor stored in it, and the provider's own as result.
    fn make_socket(
        &self,
        phase: MockPhase,
        bound: Option<SocketAddrV4>,
    ) -> Result<SpSocket, WsaError> {
        let upcalls = self.upcalls().ok_or(WsaError::NotInitialised)?;
        let id = {
            let mut state = self.fabric.lock();
            state.next_socket += 1;
            // The generation in the upper half never comes again.
            state.next_socket << 32 | state.next_socket & 0xffff_ffff
        };
        self.log.add(format!("{}.WPUCreateSocketHandle", self.name));
        let handle = upcalls.wpu_create_socket_handle(0, id)?;
        lock(&self.setup).last_handle = Some(handle);
        let socket = MockSocket {
            provider: self.id,
            handle,
            bound,
            phase,
            event: None,
            mask: 0,
            record: NetworkEvents::default(),
            receives: VecDeque::new(),
            held: VecDeque::new(),
            armed: Vec::new(),
            debug: 0,
        };
        self.fabric.lock().sockets.insert(id, socket);
        Ok(SpSocket(id))
    }

    fn transfer(
        &self,
        s: SpSocket,
        buffers: &[SpBuffer],
        remote: &RdmaDescriptor,
        offset: u64,
        overlapped: &Overlapped,
        is_read: bool,
    ) -> Result<(), WsaError> {
        let mut state = self.fabric.lock();
        match state.socket(s)?.phase {
            MockPhase::Connected { .. } => {}
            MockPhase::Disconnected(code) => return Err(code),
            _ => return Err(WsaError::NotConn),
        }
        let len: u64 = buffers.iter().map(|b| u64::from(b.len)).sum();
        if offset.checked_add(len).is_none_or(|end| end > remote.len) {
            return Err(WsaError::Inval);
        }
        // Relaxed: before the operation starts.
        overlapped
            .state
            .store(OVERLAPPED_PENDING, Ordering::Relaxed);
        let mut at = remote.addr + offset;
        for buffer in buffers {
            let address = usize::try_from(at).map_err(|_| WsaError::Fault)?;
            let there = NonNull::new(core::ptr::with_exposed_provenance_mut(address))
                .ok_or(WsaError::Fault)?;
            let (from, to) = if is_read {
                (there, buffer.address)
            } else {
                (buffer.address, there)
            };
            #[expect(unsafe_code, reason = "RDMA between registered buffers of one process")]
            // SAFETY: both are registered and in bounds (checked above); the two ends never register the same memory.
            unsafe {
                memory::copy(from, to, buffer.len as usize);
            }
            at += u64::from(buffer.len);
        }
        complete(
            NonNull::from(overlapped),
            None,
            u32::try_from(len).map_err(|_| WsaError::Inval)?,
        );
        state.fire(s.0);
        Ok(())
    }
}

impl ServiceProvider for MockSan {
    fn wsp_startup_ex(
        &self,
        version: u16,
        _caller: &ProtocolInfo,
        upcalls: Arc<dyn Upcalls>,
    ) -> Result<StartupData, WsaError> {
        self.call(Call::StartupEx, "WSPStartupEx")?;
        if version.to_le_bytes() < WSD_VERSION.to_le_bytes() {
            return Err(WsaError::VerNotSupported);
        }
        let mut setup = lock(&self.setup);
        setup.starts += 1;
        setup.upcalls = Some(upcalls);
        Ok(StartupData {
            version,
            name: self.name,
            send_depth: DEPTH,
            recv_depth: DEPTH,
            memory: Arc::clone(&self.memory) as _,
            waiting: Arc::new(MockWaiting {
                fabric: Arc::clone(&self.fabric),
                fds: std::sync::Mutex::default(),
            }),
            sharing: self.sharing.clone().map(|s| s as _),
        })
    }

    fn wsp_cleanup(&self) -> Result<(), WsaError> {
        self.log.add(format!("{}.WSPCleanup", self.name));
        let mut setup = lock(&self.setup);
        setup.starts = setup
            .starts
            .checked_sub(1)
            .ok_or(WsaError::NotInitialised)?;
        Ok(())
    }

    fn wsp_socket(
        &self,
        family: i32,
        socket_type: i32,
        protocol: i32,
        _info: &ProtocolInfo,
        flags: u32,
    ) -> Result<SpSocket, WsaError> {
        self.call(Call::Socket, "WSPSocket")?;
        if family != libc::AF_INET {
            return Err(WsaError::AfNoSupport);
        }
        if socket_type != libc::SOCK_STREAM {
            return Err(WsaError::Prototype);
        }
        if protocol != libc::IPPROTO_TCP {
            return Err(WsaError::ProtoNoSupport);
        }
        if flags & WSA_FLAG_OVERLAPPED == 0 {
            return Err(WsaError::Inval);
        }
        self.make_socket(MockPhase::Created, None)
    }

    fn wsp_bind(&self, s: SpSocket, name: SocketAddrV4) -> Result<(), WsaError> {
        self.call(Call::Bind, &format!("WSPBind {name}"))?;
        let mut state = self.fabric.lock();
        let is_mine = name.ip().is_unspecified()
            || state
                .addresses
                .get(&self.id)
                .is_some_and(|a| a.contains(name.ip()));
        let socket = state.socket(s)?;
        if socket.bound.is_some() || name.port() == 0 {
            return Err(WsaError::Inval);
        }
        if !is_mine {
            return Err(WsaError::AddrNotAvail);
        }
        socket.bound = Some(name);
        socket.phase = MockPhase::Bound;
        Ok(())
    }

    fn wsp_listen(&self, s: SpSocket, backlog: i32) -> Result<(), WsaError> {
        self.call(Call::Listen, &format!("WSPListen {backlog}"))?;
        let backlog = usize::try_from(backlog).map_err(|_| WsaError::Inval)?;
        let mut state = self.fabric.lock();
        let surplus: Vec<Request> = match &mut state.socket(s)?.phase {
            MockPhase::Listening {
                backlog: now,
                queue,
            } => {
                *now = backlog;
                queue.drain(backlog.min(queue.len())..).collect()
            }
            phase @ MockPhase::Bound => {
                *phase = MockPhase::Listening {
                    backlog,
                    queue: VecDeque::new(),
                };
                Vec::new()
            }
            _ => return Err(WsaError::Inval),
        };
        for request in surplus {
            let refused = Some(WsaError::ConnRefused);
            state.connect_ended(request.connector, refused, CmStatus::REJECTED);
        }
        Ok(())
    }

    fn wsp_event_select(
        &self,
        s: SpSocket,
        event: Option<RawFd>,
        mask: u32,
    ) -> Result<(), WsaError> {
        self.call(Call::EventSelect, &format!("WSPEventSelect {mask:#x}"))?;
        if mask & !(FD_ACCEPT | FD_CONNECT) != 0 {
            return Err(WsaError::Inval);
        }
        let mut state = self.fabric.lock();
        let socket = state.socket(s)?;
        (socket.event, socket.mask) = (event, mask);
        // recorded before the call arrived.
        if let Some(fd) = event.filter(|_| socket.record.events & mask != 0) {
            driver::sys::signal(fd);
        }
        Ok(())
    }

    fn wsp_enum_network_events(
        &self,
        s: SpSocket,
        event: Option<RawFd>,
    ) -> Result<NetworkEvents, WsaError> {
        self.check(Call::EnumNetworkEvents)?;
        let mut state = self.fabric.lock();
        let socket = state.socket(s)?;
        // Drain first, take second: no lost wake-up.
        if let Some(fd) = event {
            driver::sys::drain(fd);
        }
        let events = core::mem::take(&mut socket.record);
        if events.events != 0 {
            self.log.add(format!("{}.WSPEnumNetworkEvents", self.name));
        }
        Ok(events)
    }

    fn wsp_accept(
        &self,
        s: SpSocket,
        condition: &mut dyn FnMut(&ConnectionRequest) -> Verdict,
    ) -> Result<Accepted, WsaError> {
        self.check(Call::Accept)?;
        let request = match &mut self.fabric.lock().socket(s)?.phase {
            MockPhase::Listening { queue, .. } => queue.pop_front().ok_or(WsaError::WouldBlock)?,
            _ => return Err(WsaError::Inval),
        };
        self.log.add(format!("{}.WSPAccept", self.name));
        let shown = ConnectionRequest {
            caller: request.caller,
            callee: request.callee,
        };
        // the condition function, on this thread, outside of the provider's locks.
        match condition(&shown) {
            Verdict::Accept => {}
            Verdict::Defer => {
                let mut state = self.fabric.lock();
                if let MockPhase::Listening { queue, .. } = &mut state.socket(s)?.phase {
                    queue.push_front(request);
                }
                // queued still, so signalled still.
                state.signal(s.0, FD_ACCEPT);
                return Err(WsaError::TryAgain);
            }
            Verdict::Reject => {
                let mut state = self.fabric.lock();
                let refused = Some(WsaError::ConnRefused);
                state.connect_ended(request.connector, refused, CmStatus::REJECTED);
                return Err(WsaError::ConnRefused);
            }
        }
        let peer = request.connector;
        let made = self.make_socket(MockPhase::Connected { peer }, Some(request.callee))?;
        let mut state = self.fabric.lock();
        // The peer may have given up meanwhile.
        let Some(connector) = state.sockets.get_mut(&peer) else {
            state.sockets.remove(&made.0);
            return Err(WsaError::ConnReset);
        };
        connector.phase = MockPhase::Connected { peer: made.0 };
        state.connect_ended(peer, None, CmStatus::OK);
        // more are queued: signal again.
        if let MockPhase::Listening { queue, .. } = &state.socket(s)?.phase
            && !queue.is_empty()
        {
            state.signal(s.0, FD_ACCEPT);
        }
        Ok(Accepted {
            socket: made,
            request: shown,
        })
    }

    fn wsp_connect(&self, s: SpSocket, name: SocketAddrV4) -> Result<(), WsaError> {
        self.call(Call::Connect, &format!("WSPConnect {name}"))?;
        self.fabric.lock().connect(s.0, name)?;
        Err(WsaError::WouldBlock)
    }

    fn wsp_send(
        &self,
        s: SpSocket,
        buffers: &[SpBuffer],
        overlapped: &Overlapped,
        _notify: bool,
    ) -> Result<(), WsaError> {
        self.check(Call::Send)?;
        let mut state = self.fabric.lock();
        let peer = match state.socket(s)?.phase {
            MockPhase::Connected { peer } => peer,
            MockPhase::Disconnected(code) => return Err(code),
            _ => return Err(WsaError::NotConn),
        };
        let mut bytes = Vec::new();
        for buffer in buffers {
            let start = bytes.len();
            bytes.resize(start + buffer.len as usize, 0);
            let to = NonNull::from(&mut bytes[start..]).cast();
            #[expect(unsafe_code, reason = "send buffers are named by pointer")]
            // SAFETY: a send buffer is readable until its operation completes; the copy is private.
            unsafe {
                memory::copy(buffer.address, to, buffer.len as usize);
            }
        }
        // Relaxed: before the operation starts.
        overlapped
            .state
            .store(OVERLAPPED_PENDING, Ordering::Relaxed);
        let message = Held {
            bytes,
            overlapped: NonNull::from(overlapped),
        };
        match state.sockets.get_mut(&peer) {
            Some(socket) => socket.held.push_back(message),
            None => return Err(WsaError::ConnReset),
        }
        state.deliver(peer);
        Ok(())
    }

    fn wsp_recv(
        &self,
        s: SpSocket,
        buffers: &[SpBuffer],
        overlapped: &Overlapped,
        _notify: bool,
    ) -> Result<(), WsaError> {
        self.check(Call::Recv)?;
        let mut state = self.fabric.lock();
        let socket = state.socket(s)?;
        match socket.phase {
            MockPhase::Connected { .. } => {}
            MockPhase::Disconnected(code) => return Err(code),
            _ => return Err(WsaError::NotConn),
        }
        // Relaxed: before the operation starts.
        overlapped
            .state
            .store(OVERLAPPED_PENDING, Ordering::Relaxed);
        socket.receives.push_back(Posted {
            buffers: buffers.to_vec(),
            overlapped: NonNull::from(overlapped),
        });
        state.deliver(s.0);
        Ok(())
    }

    fn wsp_get_overlapped_result(
        &self,
        s: SpSocket,
        overlapped: &Overlapped,
        wait: bool,
    ) -> Result<Transfer, WsaError> {
        self.fabric.lock().socket(s)?;
        if wait {
            return Err(WsaError::Inval);
        }
        // EDGE overlapped-done (acquire): error, bytes and flags. Released in `complete` and in the upcall table.
        if overlapped.state.load(Ordering::Acquire) != OVERLAPPED_DONE {
            return Err(WsaError::IoIncomplete);
        }
        // Relaxed: ordered by the state word.
        let error = overlapped.error.load(Ordering::Relaxed);
        if error != 0 {
            return Err(WsaError::from_code(error).unwrap_or(WsaError::ConnAborted));
        }
        Ok(Transfer {
            bytes: overlapped.bytes.load(Ordering::Relaxed),
            flags: overlapped.flags.load(Ordering::Relaxed),
        })
    }

    fn wsp_close_socket(&self, s: SpSocket) -> Result<(), WsaError> {
        self.log.add(format!("{}.WSPCloseSocket", self.name));
        let mut state = self.fabric.lock();
        // abortive, every pending operation ends.
        if !matches!(state.socket(s)?.phase, MockPhase::Listening { .. }) {
            state.end(s.0, WsaError::OperationAborted);
        }
        let Some(socket) = state.sockets.remove(&s.0) else {
            return Err(WsaError::NotSock);
        };
        for other in state.sockets.values_mut() {
            if let MockPhase::Listening { queue, .. } = &mut other.phase {
                queue.retain(|r| r.connector != s.0);
            }
        }
        if let MockPhase::Listening { queue, .. } = socket.phase {
            for request in queue {
                let refused = Some(WsaError::ConnRefused);
                state.connect_ended(request.connector, refused, CmStatus::REJECTED);
            }
        }
        drop(state);
        // the last upcall of the socket.
        self.log.add(format!("{}.WPUCloseSocketHandle", self.name));
        let upcalls = self.upcalls().ok_or(WsaError::NotInitialised)?;
        upcalls.wpu_close_socket_handle(socket.handle)
    }

    fn wsp_duplicate_socket(
        &self,
        s: SpSocket,
        _target_pid: i32,
    ) -> Result<ProtocolInfo, WsaError> {
        self.fabric.lock().socket(s)?;
        Err(WsaError::OpNotSupp)
    }

    fn wsp_get_sock_opt(&self, s: SpSocket, level: i32, name: u32) -> Result<u32, WsaError> {
        let mut state = self.fabric.lock();
        let socket = state.socket(s)?;
        if level != libc::SOL_SOCKET {
            return Err(WsaError::Inval);
        }
        match name {
            options::SO_DEBUG => Ok(socket.debug),
            options::SO_MAX_MSG_SIZE | options::SO_MAX_RDMA_SIZE => Ok(MAX_MSG_SIZE),
            _ => Err(WsaError::NoProtoOpt),
        }
    }

    fn wsp_set_sock_opt(
        &self,
        s: SpSocket,
        level: i32,
        name: u32,
        value: &[u8],
    ) -> Result<(), WsaError> {
        self.call(Call::SetSockOpt, &format!("WSPSetSockOpt {level}/{name}"))?;
        let mut state = self.fabric.lock();
        let socket = state.socket(s)?;
        if !self.supports_option(level, name) {
            return Err(WsaError::NoProtoOpt);
        }
        if (level, name) == (libc::SOL_SOCKET, options::SO_DEBUG) {
            socket.debug = u32::from(value.iter().any(|&b| b != 0));
        }
        Ok(())
    }

    fn wsp_ioctl(&self, s: Option<SpSocket>, code: Ioctl) -> Result<IoctlReply, WsaError> {
        self.check(Call::Ioctl)?;
        match code {
            // the socket argument is not looked at.
            Ioctl::ExtensionFunctionPointer(extension) => {
                if lock(&self.setup).missing.contains(&extension) {
                    return Err(WsaError::OpNotSupp);
                }
                Ok(IoctlReply::Extension(extension))
            }
            Ioctl::AddressListQuery => {
                self.log
                    .add(format!("{}.WSPIoctl SIO_ADDRESS_LIST_QUERY", self.name));
                let mut state = self.fabric.lock();
                state.socket(s.ok_or(WsaError::NotSock)?)?;
                let own = state.addresses.get(&self.id).cloned().unwrap_or_default();
                let list = own.into_iter().map(|a| SocketAddrV4::new(a, 0)).collect();
                Ok(IoctlReply::AddressList(list))
            }
            Ioctl::Qos => Err(WsaError::OpNotSupp),
        }
    }

    fn wsp_get_qos_by_name(&self, _s: SpSocket, _name: &[u8]) -> Result<(), WsaError> {
        Err(WsaError::OpNotSupp)
    }

    fn supports_option(&self, level: i32, name: u32) -> bool {
        lock(&self.setup).supported.contains(&(level, name))
    }

    fn wsp_register_memory(
        &self,
        s: SpSocket,
        buffer: NonNull<u8>,
        len: usize,
        _access: u32,
    ) -> Result<MemoryHandle, WsaError> {
        self.check(Call::RegisterMemory)?;
        self.fabric.lock().socket(s)?;
        if len == 0 {
            return Err(WsaError::Inval);
        }
        Ok(MemoryHandle(buffer.as_ptr().expose_provenance() as u64))
    }

    fn wsp_deregister_memory(&self, s: SpSocket, _handle: MemoryHandle) -> Result<(), WsaError> {
        self.fabric.lock().socket(s).map(drop)
    }

    fn wsp_register_rdma_memory(
        &self,
        s: SpSocket,
        buffer: NonNull<u8>,
        len: usize,
        access: u32,
    ) -> Result<RdmaDescriptor, WsaError> {
        self.check(Call::RegisterMemory)?;
        self.fabric.lock().socket(s)?;
        Ok(RdmaDescriptor {
            addr: buffer.as_ptr().expose_provenance() as u64,
            len: len as u64,
            rkey: 1,
            access,
        })
    }

    fn wsp_deregister_rdma_memory(
        &self,
        s: SpSocket,
        _descriptor: &RdmaDescriptor,
    ) -> Result<(), WsaError> {
        self.fabric.lock().socket(s).map(drop)
    }

    fn wsp_rdma_write(
        &self,
        s: SpSocket,
        buffers: &[SpBuffer],
        target: &RdmaDescriptor,
        target_offset: u64,
        overlapped: &Overlapped,
        _notify: bool,
    ) -> Result<(), WsaError> {
        self.transfer(s, buffers, target, target_offset, overlapped, false)
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
        self.transfer(s, buffers, source, source_offset, overlapped, true)
    }

    fn wsp_memory_registration_cache_callback(
        &self,
        _address: NonNull<u8>,
        _len: usize,
    ) -> Result<(), WsaError> {
        Err(WsaError::OpNotSupp)
    }
}
