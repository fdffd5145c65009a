//! What all suites of the driver share: a small world of nodes, upcalls that remember, and sockets with memory.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "each suite uses its part, and a test may panic"
)]
#![expect(
    unsafe_code,
    reason = "reaches shared memory of the provider by address"
)]

use std::net::{Ipv4Addr, SocketAddrV4};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use driver::opener::{Holding, Opener};
use driver::provider::{SanConfig, SanProvider};
use driver::spi::{
    Accepted, FD_ACCEPT, FD_CONNECT, MEM_READ, MEM_WRITE, MemoryHandle, NetworkEvents, Overlapped,
    ServiceProvider, SharedRegion, SpBuffer, SpSocket, StartupData, SwitchHandle, TCP_INFO,
    Transfer, Upcalls, Verdict, WSA_FLAG_OVERLAPPED, WSD_VERSION,
};
use driver::sys::{self, Fd};
use driver::wsa::WsaError;
use nic_emu::device::DeviceOptions;
use nic_emu::embedded::EmbeddedDevice;
use ring_proto::attach::{AttachError, Attachment};
use ring_proto::ids::NodeId;
use ring_proto::sync::Ordering;

/// Opens functions of an embedded device.
#[derive(Debug)]
pub struct EmbeddedOpener {
    pub device: EmbeddedDevice,
    pub node: NodeId,
    pub held: Mutex<Vec<Holding>>,
}

impl Opener for EmbeddedOpener {
    fn open(&self) -> Result<Arc<dyn Attachment>, AttachError> {
        let attached = self.device.attach(self.node);
        attached
            .map(|function| Arc::new(function) as Arc<dyn Attachment>)
            .map_err(|error| AttachError::Refused {
                what: "attach",
                errno: error.errno(),
            })
    }

    fn hold(&self, holding: Holding) -> Result<(), AttachError> {
        self.held.lock().unwrap().push(holding);
        let told = self
            .device
            .with(|device| device.hold_process(holding.function, holding.slot, holding.generation));
        told.map_err(|error| AttachError::Refused {
            what: "hold",
            errno: error.errno(),
        })
    }

    fn before_fork(&self, holdings: &[Holding]) -> Result<(), AttachError> {
        self.held.lock().unwrap().extend(holdings);
        Ok(())
    }

    fn after_fork_in_parent(&self) {}

    fn after_fork_in_child(&self) {}
}

/// What an upcall was about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    Create(SwitchHandle, u64),
    Close(SwitchHandle),
    Complete(SwitchHandle, u32, u32),
}

/// Upcalls that remember.
#[derive(Debug, Default)]
pub struct Recorder {
    pub calls: Mutex<Vec<Call>>,
    next: Mutex<u64>,
    /// The next creations fail.
    pub refuse: Mutex<bool>,
}

impl Upcalls for Recorder {
    fn wpu_create_socket_handle(&self, _: u32, context: u64) -> Result<SwitchHandle, WsaError> {
        if *self.refuse.lock().unwrap() {
            return Err(WsaError::NoBufs);
        }
        let mut next = self.next.lock().unwrap();
        *next += 1;
        let handle = SwitchHandle(*next);
        self.calls
            .lock()
            .unwrap()
            .push(Call::Create(handle, context));
        Ok(handle)
    }

    fn wpu_close_socket_handle(&self, handle: SwitchHandle) -> Result<(), WsaError> {
        self.calls.lock().unwrap().push(Call::Close(handle));
        Ok(())
    }

    fn wpu_query_socket_handle_context(&self, handle: SwitchHandle) -> Result<u64, WsaError> {
        let calls = self.calls.lock().unwrap();
        calls
            .iter()
            .find_map(|call| match call {
                Call::Create(known, context) if *known == handle => Some(*context),
                _ => None,
            })
            .ok_or(WsaError::NotSock)
    }

    fn wpu_complete_overlapped_request(
        &self,
        handle: SwitchHandle,
        _: &Overlapped,
        error: u32,
        bytes: u32,
    ) -> Result<(), WsaError> {
        self.calls
            .lock()
            .unwrap()
            .push(Call::Complete(handle, error, bytes));
        Ok(())
    }
}

impl Recorder {
    pub fn take(&self) -> Vec<Call> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }

    /// Completions by upcall so far: error and bytes.
    pub fn completions(&self) -> Vec<(u32, u32)> {
        let calls = self.calls.lock().unwrap();
        let completions = calls.iter().filter_map(|call| match call {
            Call::Complete(_, error, bytes) => Some((*error, *bytes)),
            _ => None,
        });
        completions.collect()
    }
}

/// A provider that was started.
#[derive(Debug)]
pub struct Host {
    pub provider: SanProvider,
    pub start: StartupData,
    pub upcalls: Arc<Recorder>,
    pub ip: Ipv4Addr,
}

/// Address of node `k`.
pub fn ip(k: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 77, 0, k)
}

impl Host {
    pub fn new(opener: Arc<dyn Opener>, ip: Ipv4Addr) -> Self {
        let config = SanConfig {
            addresses: vec![ip],
            ..SanConfig::default()
        };
        let provider = SanProvider::new(opener, config);
        let upcalls = Arc::new(Recorder::default());
        let start = provider
            .wsp_startup_ex(WSD_VERSION, &TCP_INFO, upcalls.clone())
            .unwrap();
        Self {
            provider,
            start,
            upcalls,
            ip,
        }
    }

    pub fn socket(&self) -> SpSocket {
        self.try_socket().unwrap()
    }

    pub fn try_socket(&self) -> Result<SpSocket, WsaError> {
        self.provider.wsp_socket(
            libc::AF_INET,
            libc::SOCK_STREAM,
            libc::IPPROTO_TCP,
            &TCP_INFO,
            WSA_FLAG_OVERLAPPED,
        )
    }

    pub fn bound(&self, ip: Ipv4Addr, port: u16) -> SpSocket {
        let s = self.socket();
        self.provider
            .wsp_bind(s, SocketAddrV4::new(ip, port))
            .unwrap();
        s
    }

    /// A listener on `ip` with its event object.
    pub fn listener(&self, ip: Ipv4Addr, port: u16, backlog: i32) -> (SpSocket, Fd) {
        let s = self.bound(ip, port);
        self.provider.wsp_listen(s, backlog).unwrap();
        let event = sys::eventfd().unwrap();
        self.provider
            .wsp_event_select(s, Some(event.raw()), FD_ACCEPT)
            .unwrap();
        (s, event)
    }

    /// Starts a connect from `port`.
    pub fn connecting(&self, port: u16, to: SocketAddrV4) -> (SpSocket, Fd) {
        let s = self.bound(self.ip, port);
        let event = sys::eventfd().unwrap();
        self.provider
            .wsp_event_select(s, Some(event.raw()), FD_CONNECT)
            .unwrap();
        assert_eq!(self.provider.wsp_connect(s, to), Err(WsaError::WouldBlock));
        (s, event)
    }

    /// Files events until the object is set, then asks what happened.
    pub fn events(&self, s: SpSocket, event: &Fd) -> NetworkEvents {
        eventually("an event object is set", || {
            self.start.waiting.progress();
            is_set(event)
        });
        self.provider
            .wsp_enum_network_events(s, Some(event.raw()))
            .unwrap()
    }

    pub fn accept(&self, listener: SpSocket) -> Result<Accepted, WsaError> {
        let accepted = self
            .provider
            .wsp_accept(listener, &mut |_| Verdict::Accept)?;
        let sharing = self.start.sharing.as_ref().unwrap();
        sharing.take_from_listener(accepted.socket, listener)?;
        Ok(accepted)
    }

    /// Memory of a connected socket, registered for everything.
    pub fn memory(&self, s: SpSocket, len: u64) -> Memory<'_> {
        let region = self.start.memory.alloc(s, len).unwrap();
        let address = self.start.memory.at(s, region.offset).unwrap();
        let handle = self
            .provider
            .wsp_register_memory(
                s,
                address,
                usize::try_from(len).unwrap(),
                MEM_READ | MEM_WRITE,
            )
            .unwrap();
        Memory {
            host: self,
            socket: s,
            region,
            address,
            handle,
        }
    }

    /// A slot in the arena.
    pub fn slot(&self, s: SpSocket) -> &Overlapped {
        let region = self.start.memory.alloc(s, 64).unwrap();
        let address = self.start.memory.at(s, region.offset).unwrap();
        // SAFETY: 64 zeroed or re-used bytes of the arena, aligned; an Overlapped consists of atomics, and nobody frees the region.
        let slot: &Overlapped = unsafe { address.cast().as_ref() };
        slot.state.store(0, Ordering::Relaxed);
        slot
    }

    pub fn send(
        &self,
        s: SpSocket,
        buffers: &[SpBuffer],
        slot: &Overlapped,
    ) -> Result<(), WsaError> {
        self.provider.wsp_send(s, buffers, slot, false)
    }

    pub fn recv(
        &self,
        s: SpSocket,
        buffers: &[SpBuffer],
        slot: &Overlapped,
    ) -> Result<(), WsaError> {
        self.provider.wsp_recv(s, buffers, slot, false)
    }

    pub fn result(&self, s: SpSocket, slot: &Overlapped) -> Result<Transfer, WsaError> {
        self.provider.wsp_get_overlapped_result(s, slot, false)
    }

    /// Polls until the slot is finished.
    pub fn finished(&self, s: SpSocket, slot: &Overlapped) -> Result<Transfer, WsaError> {
        let mut last = Err(WsaError::IoIncomplete);
        eventually("a slot is finished", || {
            last = self.result(s, slot);
            last != Err(WsaError::IoIncomplete)
        });
        last
    }
}

/// Registered memory in the arena.
#[derive(Clone, Copy, Debug)]
pub struct Memory<'a> {
    pub host: &'a Host,
    pub socket: SpSocket,
    pub region: SharedRegion,
    pub address: NonNull<u8>,
    pub handle: MemoryHandle,
}

impl Memory<'_> {
    fn at(&self, offset: usize) -> NonNull<u8> {
        // SAFETY: tests pass offsets inside their region.
        unsafe { self.address.add(offset) }
    }

    pub fn buffer(&self, offset: usize, len: u32) -> SpBuffer {
        SpBuffer {
            address: self.at(offset),
            len,
            handle: Some(self.handle),
        }
    }

    pub fn write(&self, offset: usize, bytes: &[u8]) {
        assert!((offset + bytes.len()) as u64 <= self.region.len);
        // SAFETY: inside the region, which only this test and the device use.
        unsafe {
            self.at(offset)
                .copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len())
        };
    }

    pub fn read(&self, offset: usize, len: usize) -> Vec<u8> {
        assert!((offset + len) as u64 <= self.region.len);
        let mut bytes = vec![0; len];
        // SAFETY: as for `write`.
        unsafe {
            self.at(offset)
                .copy_to_nonoverlapping(NonNull::from(&mut bytes[..]).cast(), len)
        };
        bytes
    }
}

/// A buffer of this process's own memory, without registration.
pub fn plain(bytes: &[u8]) -> SpBuffer {
    SpBuffer {
        address: NonNull::from(bytes).cast(),
        len: u32::try_from(bytes.len()).unwrap(),
        handle: None,
    }
}

/// Nodes a and b of an embedded device.
#[derive(Debug)]
pub struct World {
    pub device: EmbeddedDevice,
    pub a: Host,
    pub b: Host,
}

impl World {
    pub fn new() -> Self {
        Self::with(DeviceOptions {
            virtual_time: true,
            ..DeviceOptions::default()
        })
    }

    pub fn with(options: DeviceOptions) -> Self {
        let device = EmbeddedDevice::new(options);
        let host = |k, name: &str| {
            let node = device.add_node(name, &[ip(k)]);
            let opener = EmbeddedOpener {
                device: device.clone(),
                node,
                held: Mutex::default(),
            };
            Host::new(Arc::new(opener), ip(k))
        };
        let (a, b) = (host(1, "a"), host(2, "b"));
        Self { device, a, b }
    }

    /// A connection from a to b.
    pub fn connected(&self) -> (SpSocket, SpSocket) {
        connect(&self.a, &self.b, 4000, 5000)
    }
}

/// Connects `from` to `to`, and closes the listener.
pub fn connect(from: &Host, to: &Host, from_port: u16, to_port: u16) -> (SpSocket, SpSocket) {
    let (listener, wakes) = to.listener(to.ip, to_port, 5);
    let (active, ends) = from.connecting(from_port, SocketAddrV4::new(to.ip, to_port));
    assert_eq!(to.events(listener, &wakes).events, FD_ACCEPT);
    let passive = to.accept(listener).unwrap().socket;
    let ended = from.events(active, &ends);
    assert_eq!((ended.events, ended.connect_error), (FD_CONNECT, None));
    to.provider.wsp_close_socket(listener).unwrap();
    (active, passive)
}

pub fn is_set(event: &Fd) -> bool {
    matches!(sys::wait_readable(event.raw(), 0), Ok(sys::Seen::Readable))
}

/// Waits for a condition under a watchdog.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let watchdog = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !holds() {
        assert!(
            std::time::Instant::now() < watchdog,
            "waited in vain until {what}"
        );
        std::thread::yield_now();
    }
}
