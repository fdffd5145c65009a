//! The recording double of kernel TCP. Descriptors are invented numbers.

use core::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::collections::{HashMap, VecDeque};
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex};

use super::{Log, lock};
use crate::determine::is_wildcard;
use crate::outcome::Errno;
use crate::tcp_provider::{TcpAccepted, TcpProvider};

/// A call that can be made to fail.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[expect(missing_docs, reason = "the system calls of these names")]
pub enum TcpCall {
    Socket,
    Bind,
    Listen,
    Accept,
    Connect,
    SetOption,
    SetNonblocking,
    Shutdown,
}

/// The double.
#[derive(Debug)]
pub struct MockTcp {
    log: Arc<Log>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    next_fd: RawFd,
    next_port: u16,
    sockets: HashMap<RawFd, TcpSocket>,
    script: HashMap<TcpCall, VecDeque<Errno>>,
}

#[derive(Debug, Default)]
struct TcpSocket {
    domain: i32,
    local: Option<SocketAddr>,
    peer: Option<SocketAddr>,
    options: HashMap<(i32, i32), Vec<u8>>,
    incoming: VecDeque<(SocketAddr, SocketAddr)>,
    is_nonblocking: bool,
}

impl MockTcp {
    /// Makes a kernel without sockets.
    #[must_use]
    pub fn new(log: &Arc<Log>) -> Arc<Self> {
        Arc::new(Self {
            log: Arc::clone(log),
            state: Mutex::new(State {
                next_fd: 1000,
                next_port: 40000,
                sockets: HashMap::new(),
                script: HashMap::new(),
            }),
        })
    }

    /// Makes the next call of that kind fail.
    pub fn fail(&self, call: TcpCall, errno: Errno) {
        lock(&self.state)
            .script
            .entry(call)
            .or_default()
            .push_back(errno);
    }

    /// Puts a connection into the accept queue of a listener.
    pub fn arrive(&self, fd: RawFd, local: SocketAddr, peer: SocketAddr) {
        if let Some(socket) = lock(&self.state).sockets.get_mut(&fd) {
            socket.incoming.push_back((local, peer));
        }
    }

    /// Whether the descriptor is open.
    #[must_use]
    pub fn is_open(&self, fd: RawFd) -> bool {
        lock(&self.state).sockets.contains_key(&fd)
    }

    /// Whether the descriptor is non-blocking.
    #[must_use]
    pub fn is_nonblocking(&self, fd: RawFd) -> bool {
        lock(&self.state)
            .sockets
            .get(&fd)
            .is_some_and(|s| s.is_nonblocking)
    }

    /// Value of an option that was set.
    #[must_use]
    pub fn stored(&self, fd: RawFd, level: i32, name: i32) -> Option<Vec<u8>> {
        let state = lock(&self.state);
        state.sockets.get(&fd)?.options.get(&(level, name)).cloned()
    }

    fn with<T>(
        &self,
        fd: RawFd,
        call: Option<TcpCall>,
        work: impl FnOnce(&mut State) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let mut state = lock(&self.state);
        if let Some(errno) = call.and_then(|c| state.script.get_mut(&c)?.pop_front()) {
            return Err(errno);
        }
        if fd >= 0 && !state.sockets.contains_key(&fd) {
            return Err(libc::EBADF);
        }
        work(&mut state)
    }
}

impl State {
    fn socket(&mut self, fd: RawFd) -> Result<&mut TcpSocket, Errno> {
        self.sockets.get_mut(&fd).ok_or(libc::EBADF)
    }

    fn port(&mut self, wanted: u16) -> u16 {
        if wanted != 0 {
            return wanted;
        }
        self.next_port += 1;
        self.next_port
    }

    fn open(&mut self, socket: TcpSocket) -> RawFd {
        self.next_fd += 1;
        self.sockets.insert(self.next_fd, socket);
        self.next_fd
    }
}

impl TcpSocket {
    fn wildcard(&self) -> SocketAddr {
        if self.domain == libc::AF_INET6 {
            (Ipv6Addr::UNSPECIFIED, 0).into()
        } else {
            (Ipv4Addr::UNSPECIFIED, 0).into()
        }
    }
}

impl TcpProvider for MockTcp {
    fn socket(&self, domain: i32, socket_type: i32, protocol: i32) -> Result<RawFd, Errno> {
        let kind = socket_type & !(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC);
        self.log.add(match kind {
            libc::SOCK_STREAM => "tcp.WSPSocket".to_owned(),
            other => format!("tcp.WSPSocket type {other} protocol {protocol}"),
        });
        self.with(-1, Some(TcpCall::Socket), |state| {
            Ok(state.open(TcpSocket {
                domain,
                is_nonblocking: socket_type & libc::SOCK_NONBLOCK != 0,
                ..TcpSocket::default()
            }))
        })
    }

    fn bind(&self, fd: RawFd, address: SocketAddr) -> Result<(), Errno> {
        self.log.add(format!("tcp.WSPBind {address}"));
        self.with(fd, Some(TcpCall::Bind), |state| {
            let port = state.port(address.port());
            state.socket(fd)?.local = Some((address.ip(), port).into());
            Ok(())
        })
    }

    fn listen(&self, fd: RawFd, backlog: i32) -> Result<(), Errno> {
        self.log.add(format!("tcp.WSPListen {backlog}"));
        self.with(fd, Some(TcpCall::Listen), |state| {
            let port = state.port(0);
            let socket = state.socket(fd)?;
            let wildcard = socket.wildcard();
            socket.local.get_or_insert((wildcard.ip(), port).into());
            Ok(())
        })
    }

    fn accept(&self, fd: RawFd, flags: i32) -> Result<TcpAccepted, Errno> {
        self.with(fd, Some(TcpCall::Accept), |state| {
            let listener = state.socket(fd)?;
            let (local, peer) = listener.incoming.pop_front().ok_or(libc::EAGAIN)?;
            let accepted = TcpSocket {
                domain: listener.domain,
                local: Some(local),
                peer: Some(peer),
                is_nonblocking: flags & libc::SOCK_NONBLOCK != 0,
                ..TcpSocket::default()
            };
            self.log.add("tcp.WSPAccept");
            Ok(TcpAccepted {
                fd: state.open(accepted),
                local,
                peer,
            })
        })
    }

    fn connect(&self, fd: RawFd, address: SocketAddr) -> Result<(), Errno> {
        self.log.add(format!("tcp.WSPConnect {address}"));
        self.with(fd, Some(TcpCall::Connect), |state| {
            state.socket(fd)?.peer = Some(address);
            Ok(())
        })
    }

    fn disconnect(&self, fd: RawFd) -> Result<(), Errno> {
        self.log.add("tcp.disconnect");
        self.with(fd, None, |state| {
            state.socket(fd)?.peer = None;
            Ok(())
        })
    }

    fn local_address(&self, fd: RawFd) -> Result<SocketAddr, Errno> {
        self.with(fd, None, |state| {
            let socket = state.socket(fd)?;
            Ok(socket.local.unwrap_or_else(|| socket.wildcard()))
        })
    }

    fn peer_address(&self, fd: RawFd) -> Result<SocketAddr, Errno> {
        self.with(fd, None, |state| {
            let peer = state.socket(fd)?.peer;
            peer.filter(|p| !is_wildcard(p.ip())).ok_or(libc::ENOTCONN)
        })
    }

    fn set_option(&self, fd: RawFd, level: i32, name: i32, value: &[u8]) -> Result<(), Errno> {
        self.log.add(format!("tcp.WSPSetSockOpt {level}/{name}"));
        self.with(fd, Some(TcpCall::SetOption), |state| {
            let options = &mut state.socket(fd)?.options;
            options.insert((level, name), value.to_vec());
            Ok(())
        })
    }

    fn get_option(
        &self,
        fd: RawFd,
        level: i32,
        name: i32,
        value: &mut [u8],
    ) -> Result<usize, Errno> {
        self.with(fd, None, |state| {
            let options = &state.socket(fd)?.options;
            let stored = options.get(&(level, name)).cloned().unwrap_or(vec![0; 4]);
            let len = stored.len().min(value.len());
            value[..len].copy_from_slice(&stored[..len]);
            Ok(len)
        })
    }

    fn set_nonblocking(&self, fd: RawFd, nonblocking: bool) -> Result<(), Errno> {
        self.with(fd, Some(TcpCall::SetNonblocking), |state| {
            state.socket(fd)?.is_nonblocking = nonblocking;
            Ok(())
        })
    }

    fn shutdown(&self, fd: RawFd, how: i32) -> Result<(), Errno> {
        self.log.add(format!("tcp.WSPShutdown {how}"));
        self.with(fd, Some(TcpCall::Shutdown), |_| Ok(()))
    }

    fn close(&self, fd: RawFd) -> Result<(), Errno> {
        self.log.add("tcp.WSPCloseSocket");
        self.with(fd, None, |state| {
            state.sockets.remove(&fd).map(drop).ok_or(libc::EBADF)
        })
    }
}
