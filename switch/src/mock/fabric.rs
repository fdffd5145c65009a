//! The network between recording providers: sockets of all nodes in one table.

use core::net::{Ipv4Addr, SocketAddrV4};
use core::ptr::NonNull;
use std::collections::{HashMap, VecDeque};
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard};

use driver::spi::{
    FD_ACCEPT, FD_CONNECT, Link, NetworkEvents, OVERLAPPED_DONE, Overlapped, SpBuffer, SpSocket,
    SwitchHandle,
};
use driver::sys;
use driver::wsa::WsaError;
use ring_proto::eqe::CmStatus;
use ring_proto::sync::Ordering;

use super::memory;

/// The network.
#[derive(Debug, Default)]
pub struct MockFabric {
    state: Mutex<Fabric>,
}

#[derive(Debug, Default)]
pub(super) struct Fabric {
    pub(super) sockets: HashMap<u64, MockSocket>,
    /// Addresses of each provider's NICs.
    pub(super) addresses: HashMap<u64, Vec<Ipv4Addr>>,
    pub(super) next_provider: u64,
    pub(super) next_socket: u64,
    /// Requests to addresses listed here are not answered at all.
    pub(super) silent: Vec<Ipv4Addr>,
}

/// A descriptor of an eventfd that is signalled when the socket has something.
pub(super) type Armed = Vec<RawFd>;

#[derive(Debug)]
pub(super) struct MockSocket {
    pub(super) provider: u64,
    pub(super) handle: SwitchHandle,
    pub(super) bound: Option<SocketAddrV4>,
    pub(super) phase: MockPhase,
    pub(super) event: Option<RawFd>,
    pub(super) mask: u32,
    pub(super) record: NetworkEvents,
    pub(super) receives: VecDeque<Posted>,
    /// Messages to this socket that found no receive (receiver not ready).
    pub(super) held: VecDeque<Held>,
    pub(super) armed: Armed,
    pub(super) debug: u32,
}

#[derive(Debug)]
pub(super) enum MockPhase {
    Created,
    Bound,
    Listening {
        backlog: usize,
        queue: VecDeque<Request>,
    },
    Connecting,
    Connected {
        peer: u64,
    },
    Disconnected(WsaError),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) connector: u64,
    pub(super) caller: SocketAddrV4,
    pub(super) callee: SocketAddrV4,
}

/// A posted receive.
#[derive(Debug)]
pub(super) struct Posted {
    pub(super) buffers: Vec<SpBuffer>,
    pub(super) overlapped: NonNull<Overlapped>,
}

/// A message that waits for a receive.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) bytes: Vec<u8>,
    pub(super) overlapped: NonNull<Overlapped>,
}

// SAFETY-free: the pointers are only followed under the fabric's lock, while the operation is pending and its memory therefore
// valid; see `complete` and `deliver`.
#[expect(
    unsafe_code,
    reason = "operations are finished by whichever thread brings the other end"
)]
// SAFETY: see above.
unsafe impl Send for Posted {}
#[expect(unsafe_code, reason = "as for Posted")]
// SAFETY: see above.
unsafe impl Send for Held {}

impl MockFabric {
    /// Makes an empty network.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Lets connects to `address` go unanswered.
    pub fn silence(&self, address: Ipv4Addr) {
        self.lock().silent.push(address);
    }

    /// Breaks the connection under `s`, as a failing transport does.
    pub fn break_connection(&self, s: SpSocket) {
        self.lock().end(s.0, WsaError::ConnAborted);
    }

    /// Sockets that exist.
    #[must_use]
    pub fn live_sockets(&self) -> usize {
        self.lock().sockets.len()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Fabric> {
        super::lock(&self.state)
    }
}

impl Fabric {
    pub(super) fn socket(&mut self, s: SpSocket) -> Result<&mut MockSocket, WsaError> {
        self.sockets.get_mut(&s.0).ok_or(WsaError::NotSock)
    }

    pub(super) fn link(&self, s: SpSocket) -> Link {
        match self.sockets.get(&s.0).map(|s| &s.phase) {
            Some(MockPhase::Connected { .. }) => Link::Up,
            Some(MockPhase::Disconnected(code)) => Link::Ended(*code),
            _ => Link::Down,
        }
    }

    /// The listener that a connect to `callee` reaches: a specific address beats the wildcard.
    pub(super) fn listener(&self, callee: SocketAddrV4) -> Option<u64> {
        let mut found = None;
        for (&id, socket) in &self.sockets {
            let Some(bound) = socket.bound.filter(|b| b.port() == callee.port()) else {
                continue;
            };
            if !matches!(socket.phase, MockPhase::Listening { .. }) {
                continue;
            }
            if bound.ip() == callee.ip() {
                return Some(id);
            }
            let owned = self.addresses.get(&socket.provider);
            if bound.ip().is_unspecified() && owned.is_some_and(|a| a.contains(callee.ip())) {
                found = Some(id);
            }
        }
        found
    }

    /// Starts a connect; its end is an event.
    pub(super) fn connect(&mut self, connector: u64, callee: SocketAddrV4) -> Result<(), WsaError> {
        let caller = self
            .socket(SpSocket(connector))?
            .bound
            .ok_or(WsaError::Inval)?;
        self.socket(SpSocket(connector))?.phase = MockPhase::Connecting;
        if self.silent.contains(callee.ip()) {
            return Ok(());
        }
        let Some(listener) = self.listener(callee) else {
            self.connect_ended(connector, Some(WsaError::TimedOut), CmStatus::NO_LISTENER);
            return Ok(());
        };
        let request = Request {
            connector,
            caller,
            callee,
        };
        let socket = self.socket(SpSocket(listener))?;
        if let MockPhase::Listening { backlog, queue } = &mut socket.phase {
            if queue.len() >= *backlog {
                //
                self.connect_ended(connector, Some(WsaError::ConnRefused), CmStatus::REJECTED);
                return Ok(());
            }
            queue.push_back(request);
            self.signal(listener, FD_ACCEPT);
        }
        Ok(())
    }

    /// Records the end of a connect, then signals.
    pub(super) fn connect_ended(
        &mut self,
        connector: u64,
        error: Option<WsaError>,
        status: CmStatus,
    ) {
        if let Some(socket) = self.sockets.get_mut(&connector) {
            socket.record.connect_error = error;
            socket.record.connect_detail = status.0;
            if error.is_some() {
                socket.phase = MockPhase::Bound;
            }
        }
        self.signal(connector, FD_CONNECT);
    }

    /// Records an event, then signals the object.
    pub(super) fn signal(&mut self, id: u64, event: u32) {
        if let Some(socket) = self.sockets.get_mut(&id) {
            socket.record.events |= event;
            if let Some(fd) = socket.event.filter(|_| socket.mask & event != 0) {
                sys::signal(fd);
            }
        }
    }

    /// Delivers held messages to posted receives, in order.
    pub(super) fn deliver(&mut self, id: u64) {
        let mut delivered = false;
        let mut too_long = false;
        if let Some(socket) = self.sockets.get_mut(&id) {
            while !socket.held.is_empty() && !socket.receives.is_empty() {
                let (Some(message), Some(posted)) =
                    (socket.held.pop_front(), socket.receives.pop_front())
                else {
                    break;
                };
                delivered = true;
                let len = u32::try_from(message.bytes.len()).unwrap_or(u32::MAX);
                if scatter(&message.bytes, &posted.buffers) {
                    complete(posted.overlapped, None, len);
                    complete(message.overlapped, None, len);
                } else {
                    // longer than the receive is fatal.
                    complete(posted.overlapped, Some(WsaError::ConnAborted), 0);
                    complete(message.overlapped, Some(WsaError::ConnAborted), 0);
                    too_long = true;
                    break;
                }
            }
        }
        if too_long {
            self.end(id, WsaError::ConnAborted);
        }
        if delivered {
            self.fire(id);
            if let Some(peer) = self.peer(id) {
                self.fire(peer);
            }
        }
    }

    pub(super) fn peer(&self, id: u64) -> Option<u64> {
        match self.sockets.get(&id)?.phase {
            MockPhase::Connected { peer } => Some(peer),
            _ => None,
        }
    }

    /// Wakes who armed the socket.
    pub(super) fn fire(&mut self, id: u64) {
        if let Some(socket) = self.sockets.get_mut(&id) {
            for fd in socket.armed.drain(..) {
                sys::signal(fd);
            }
        }
    }

    /// Ends a connection on both sides: `code` here, a reset over there.
    pub(super) fn end(&mut self, id: u64, code: WsaError) {
        let peer = self.peer(id);
        self.flush(id, code);
        if let Some(peer) = peer {
            let code = if code == WsaError::ConnAborted {
                code
            } else {
                WsaError::ConnReset
            };
            self.flush(peer, code);
        }
    }

    fn flush(&mut self, id: u64, code: WsaError) {
        let Some(socket) = self.sockets.get_mut(&id) else {
            return;
        };
        socket.phase = MockPhase::Disconnected(code);
        for posted in socket.receives.drain(..) {
            complete(posted.overlapped, Some(code), 0);
        }
        for held in socket.held.drain(..) {
            complete(held.overlapped, Some(WsaError::OperationAborted), 0);
        }
        self.fire(id);
    }
}

/// Copies a message into the buffers of a receive. False: it is too long.
fn scatter(bytes: &[u8], buffers: &[SpBuffer]) -> bool {
    let room: usize = buffers.iter().map(|b| b.len as usize).sum();
    if bytes.len() > room {
        return false;
    }
    let mut left = bytes;
    for buffer in buffers {
        let (part, rest) = left.split_at(left.len().min(buffer.len as usize));
        let from = NonNull::from(part).cast();
        #[expect(unsafe_code, reason = "buffers are registered memory named by pointer")]
        // SAFETY: a posted buffer is valid for its length until its operation completes; a private copy cannot overlap it.
        unsafe {
            memory::copy(from, buffer.address, part.len());
        }
        left = rest;
    }
    true
}

/// Finishes an operation: error and count first, the state last.
pub(super) fn complete(overlapped: NonNull<Overlapped>, error: Option<WsaError>, bytes: u32) {
    #[expect(unsafe_code, reason = "slots are the switch's memory named by pointer")]
    // SAFETY: a slot stays valid until its operation completes, which it does here, once.
    let overlapped = unsafe { overlapped.as_ref() };
    // Relaxed: published by the state word.
    overlapped
        .error
        .store(error.map_or(0, WsaError::code), Ordering::Relaxed);
    overlapped.bytes.store(bytes, Ordering::Relaxed);
    // EDGE overlapped-done (release): error and bytes. Acquired where the state is polled.
    overlapped.state.store(OVERLAPPED_DONE, Ordering::Release);
}
