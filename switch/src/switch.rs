//! The process-wide switch: creation, bind, options and names of sockets, and what it asks of its host in return.
//!
//! Place: the preload library calls it from every hooked function on a stream socket; [`crate::listen`], [`crate::accept`],
//! [`crate::connect`], [`crate::close`] and [`crate::service`] hold the rest of its calls.
//! Invariants: TCP is asked first and its refusal is the program's result; no provider is called at
//! creation or bind; providers are started at the first determination. Lock order: the service's state, a socket's state, a listener's
//! companions, its negotiations, its queue, the registry; none is held across a callback of [`Host`] or across `fork`
//! ([`crate::gate`]).
//! Source.

use core::net::SocketAddr;
use std::collections::HashMap;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use driver::spi::{ServiceProvider, options as sp_options};
use driver::sys::SignalsBlocked;
use ring_proto::sync::{AtomicU32, AtomicU64, Ordering};
use ring_proto::telemetry::Reason;

use crate::config::NodeConfig;
use crate::event::EventPool;
use crate::gate;
use crate::options;
use crate::outcome::{Errno, now_ns};
use crate::pace::Pace;
use crate::provider_table::{Provider, ProviderRef, ProviderTable};
use crate::service::ServiceState;
use crate::session::{CloseStep, Conn};
use crate::socket::{Stage, SwitchSocket};
use crate::tcp_provider::TcpProvider;

/// What the switch asks of the process around it. Called without any of the switch's locks.
pub trait Host: Send + Sync {
    /// Work came up that must go on while the program is in no socket call: start the service thread, or wake it.
    fn wake_service(&self);
    /// Stage or readiness of a socket changed outside a call on it: register it anew in epoll sets, wake its waiters.
    fn socket_changed(&self, socket: &Arc<SwitchSocket>);
    /// A connect or listen of a socket goes, or stays, on TCP. Called once per decision; the count of `stat`'s fall-backs.
    fn fell_back(&self, socket: &SwitchSocket, reason: Reason);

    /// A connect failed because the link to its destination is cut: it took no road.
    fn cut_off(&self) {}
    /// A SAN connection is established; its connection object is readable from now on.
    fn established(&self, socket: &Arc<SwitchSocket>);
    /// Now, in nanoseconds of `CLOCK_MONOTONIC`.
    fn now_ns(&self) -> u64 {
        now_ns()
    }
}

/// Where a connect stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConnectStep {
    /// Established over the SAN: the call returns 0.
    Established,
    /// Goes on: `EINPROGRESS` for a non-blocking socket; a blocking caller waits as [`Switch::connect_plan`] says and asks again.
    Pending,
    /// The connect is the kernel's now: the caller makes the ordinary kernel connect, blocking or not, and tells its result to
    /// [`Switch::tcp_connect_ended`]. If the switch had to start it in the background, that connect joins it.
    UseTcp(Reason),
    /// Failed: the call's errno.
    Failed(Errno),
}

/// A connection given to the program.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// The new descriptor.
    pub fd: RawFd,
    /// Its switch socket, in stage `SanConnected` or `Tcp`.
    pub socket: Arc<SwitchSocket>,
    /// Address the peer dialled.
    pub local: SocketAddr,
    /// Address of the peer.
    pub peer: SocketAddr,
}

/// A provider that is compiled in, with the id under which the configuration may list it.
#[derive(Clone)]
pub struct Installed {
    /// Unique id.
    pub id: String,
    /// Its functions.
    pub sp: Arc<dyn ServiceProvider>,
}

/// The switch.
pub struct Switch {
    pub(crate) config: NodeConfig,
    pub(crate) tcp: Arc<dyn TcpProvider>,
    pub(crate) host: Arc<dyn Host>,
    pub(crate) events: EventPool,
    pub(crate) registry: Mutex<Registry>,
    pub(crate) service: Mutex<ServiceState>,
    /// Until when the service thread means to sleep, on CLOCK_MONOTONIC; `u64::MAX`: for ever, or it is awake.
    pub(crate) sleeps_until_ns: AtomicU64,
    /// Who drives what is under way.
    pub(crate) pace: Pace,
    /// Forks behind this process; event objects of earlier ones are not ours.
    pub(crate) epoch: AtomicU32,
    /// Signals of the forking thread, blocked until the fork is over.
    pub(crate) fork_signals: Mutex<Option<SignalsBlocked>>,
    installed: Vec<Installed>,
    started: OnceLock<()>,
    table: Mutex<ProviderTable>,
}

/// Sockets that need attention without a call on them.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    pub(crate) listeners: Vec<Weak<SwitchSocket>>,
    pub(crate) connecting: Vec<Arc<SwitchSocket>>,
    pub(crate) connected: HashMap<u64, Weak<SwitchSocket>>,
    pub(crate) draining: Vec<Arc<Conn>>,
}

/// What is to be told to the host once all locks are released.
#[derive(Debug, Default)]
pub(crate) struct Notices {
    pub(crate) wake_service: bool,
    pub(crate) changed: bool,
    pub(crate) fell_back: Option<Reason>,
    /// A connect failed because the link was cut.
    pub(crate) cut_off: bool,
    pub(crate) established: bool,
}

impl Switch {
    /// Makes the switch of a process. Nothing is called yet.
    #[must_use]
    pub fn new(
        config: NodeConfig,
        installed: Vec<Installed>,
        tcp: Arc<dyn TcpProvider>,
        host: Arc<dyn Host>,
    ) -> Self {
        Self {
            config,
            tcp,
            host,
            events: EventPool::default(),
            registry: Mutex::default(),
            service: Mutex::default(),
            sleeps_until_ns: AtomicU64::new(u64::MAX),
            pace: Pace::default(),
            epoch: AtomicU32::new(0),
            fork_signals: Mutex::default(),
            installed,
            started: OnceLock::new(),
            table: Mutex::default(),
        }
    }

    /// Creates a socket: TCP's, always. Streams over IP get a structure; raw, datagram and other sockets never do (R-44,
    /// R-46) and so never reach a provider.
    ///
    /// # Errors
    /// TCP's.
    pub fn socket(
        &self,
        domain: i32,
        socket_type: i32,
        protocol: i32,
    ) -> Result<(RawFd, Option<Arc<SwitchSocket>>), Errno> {
        let fd = self.tcp.socket(domain, socket_type, protocol)?;
        let is_nonblocking = socket_type & libc::SOCK_NONBLOCK != 0;
        let socket = is_candidate(domain, socket_type, protocol)
            .then(|| SwitchSocket::new(domain, fd, is_nonblocking));
        Ok((fd, socket))
    }

    /// Binds: TCP's business alone; the resolved address is kept.
    ///
    /// # Errors
    /// TCP's.
    pub fn bind(&self, socket: &SwitchSocket, address: SocketAddr) -> Result<(), Errno> {
        let _inside = gate::enter();
        let mut state = socket.lock();
        if socket.is_on_san() {
            // The parked kernel socket would not know.
            return Err(libc::EINVAL);
        }
        self.tcp.bind(socket.fd(), address)?;
        state.bound = Some(self.tcp.local_address(socket.fd()).unwrap_or(address));
        if socket.stage() == Stage::Fresh {
            socket.enter(Stage::TcpBound);
        }
        Ok(())
    }

    /// `getsockname`: from the switch while the SAN carries the socket, else from TCP.
    ///
    /// # Errors
    /// TCP's.
    pub fn local_address(&self, socket: &SwitchSocket) -> Result<SocketAddr, Errno> {
        let _inside = gate::enter();
        let cached = socket.lock().local;
        cached.map_or_else(|| self.tcp.local_address(socket.fd()), Ok)
    }

    /// `getpeername`.
    ///
    /// # Errors
    /// `ENOTCONN` before establishment; TCP's.
    pub fn peer_address(&self, socket: &SwitchSocket) -> Result<SocketAddr, Errno> {
        let _inside = gate::enter();
        match socket.stage() {
            Stage::SanConnected if socket.conn().is_none_or(|conn| conn.has_no_peer()) => {
                Err(libc::ENOTCONN)
            }
            Stage::SanConnected => socket.lock().peer.ok_or(libc::ENOTCONN),
            Stage::SanConnecting | Stage::Negotiating | Stage::SanListening => Err(libc::ENOTCONN),
            _ => self.tcp.peer_address(socket.fd()),
        }
    }

    /// `setsockopt`: TCP first, stored only if TCP took it, then given to the companions whose provider supports it.
    ///
    /// # Errors
    /// TCP's; `ENOPROTOOPT` for an option of kernel TCP alone once the SAN carries the socket; the provider's after
    /// establishment.
    pub fn set_option(
        &self,
        socket: &SwitchSocket,
        level: i32,
        name: i32,
        value: &[u8],
    ) -> Result<(), Errno> {
        let _inside = gate::enter();
        let mut state = socket.lock();
        if socket.is_on_san() && options::is_tcp_only(level, name) {
            return Err(libc::ENOPROTOOPT);
        }
        self.tcp.set_option(socket.fd(), level, name, value)?;
        state.options.store(level, name, value);
        if let Some(conn) = socket.conn() {
            options::forward(&*conn.provider().sp, conn.sp(), level, name, value)
                .map_err(|e| e.errno())?;
            options::follow(&state.options, conn, level, name);
            self.expect(conn);
        } else if let Some(attempt) = &state.attempt {
            let companion = &attempt.companion;
            options::forward(
                &*companion.provider.sp,
                companion.socket,
                level,
                name,
                value,
            )
            .map_err(|e| e.errno())?;
        } else if let Some(listening) = state.listening.clone() {
            drop(state);
            listening.forward_option(level, name, value);
        }
        Ok(())
    }

    /// `getsockopt`: the switch answers what the kernel socket cannot know; everything else is TCP's.
    ///
    /// # Errors
    /// TCP's.
    pub fn option(
        &self,
        socket: &SwitchSocket,
        level: i32,
        name: i32,
        value: &mut [u8],
    ) -> Result<usize, Errno> {
        let _inside = gate::enter();
        match (level, name) {
            (libc::SOL_SOCKET, libc::SO_ERROR) => {
                if let Some(error) = self.take_error(socket) {
                    return Ok(put_int(value, error));
                }
            }
            (libc::SOL_SOCKET, libc::SO_DEBUG) => {
                let told = socket
                    .conn()
                    .and_then(|conn| conn.provider().limit(conn.sp(), sp_options::SO_DEBUG));
                if let Some(told) = told.and_then(|v| i32::try_from(v).ok()) {
                    return Ok(put_int(value, told));
                }
            }
            (libc::SOL_TCP, libc::TCP_INFO) if socket.stage() == Stage::SanConnected => {
                let len = self.tcp.get_option(socket.fd(), level, name, value)?;
                if let (Some(conn), Some(info)) = (socket.conn(), value.get_mut(..len)) {
                    conn.progress();
                    conn.describe(info);
                }
                return Ok(len);
            }
            _ => {}
        }
        self.tcp.get_option(socket.fd(), level, name, value)
    }

    /// Takes the error that waits for `SO_ERROR`: of a failed connect, or of the connection. `None`: ask the kernel.
    pub(crate) fn take_error(&self, socket: &SwitchSocket) -> Option<Errno> {
        let mut state = socket.lock();
        match socket.stage() {
            Stage::SanConnected => Some(socket.conn().and_then(|c| c.take_error()).unwrap_or(0)),
            Stage::SanConnecting | Stage::Negotiating => Some(0),
            Stage::Failed => {
                let error = state.error.take();
                self.restart(socket, &mut state);
                error
            }
            _ => None,
        }
    }

    /// `O_NONBLOCK` or `FIONBIO`: the kernel socket first, so that both agree.
    ///
    /// # Errors
    /// TCP's.
    pub fn set_nonblocking(
        &self,
        socket: &SwitchSocket,
        is_nonblocking: bool,
    ) -> Result<(), Errno> {
        let _inside = gate::enter();
        self.tcp.set_nonblocking(socket.fd(), is_nonblocking)?;
        socket.store_nonblocking(is_nonblocking);
        Ok(())
    }

    /// Asks every provider for its addresses again and rebuilds the subnets.
    pub fn addresses_changed(&self) {
        if self.started.get().is_none() {
            return;
        }
        let _inside = gate::enter();
        for provider in &self.provider_list() {
            if let Err(error) = provider.refresh() {
                provider.note(error);
            }
        }
        self.lock_table().rebuild(&self.config);
    }

    /// Takes a newly installed provider into use: started like the others, then one companion more for each wildcard listener.
    ///
    /// # Errors
    /// The provider's code at start; it is not used then.
    pub fn add_provider(&self, sp: Arc<dyn ServiceProvider>) -> Result<(), driver::wsa::WsaError> {
        let (provider, listeners) = {
            let _inside = gate::enter();
            self.start_providers();
            let index = self.lock_table().providers().len();
            let provider = self.start_provider(index, sp)?;
            self.lock_table().add(provider.clone(), &self.config);
            (provider, self.listeners())
        };
        for socket in listeners {
            self.extend_listener(&socket, &provider);
        }
        Ok(())
    }

    /// Providers in use.
    #[must_use]
    pub fn providers(&self) -> Vec<ProviderRef> {
        let _inside = gate::enter();
        self.provider_list()
    }

    /// Providers in use, for those inside the gate.
    pub(crate) fn provider_list(&self) -> Vec<ProviderRef> {
        self.lock_table().providers().to_vec()
    }

    /// The node's configuration.
    #[must_use]
    pub fn config(&self) -> &NodeConfig {
        &self.config
    }

    /// The table, with the providers started.
    pub(crate) fn started_table(&self) -> MutexGuard<'_, ProviderTable> {
        self.start_providers();
        let table = self.lock_table();
        if !table.is_starved() {
            return table;
        }
        drop(table);
        // Others of the node may have given back meanwhile what the provider needs.
        for provider in self.provider_list().iter().filter(|p| p.is_starved()) {
            // A failure leaves it starved, or down.
            if let Err(error) = provider.refresh() {
                provider.note(error);
            }
        }
        let mut table = self.lock_table();
        table.rebuild(&self.config);
        table
    }

    /// Tells the host what happened to `socket`.
    pub(crate) fn tell(&self, socket: &Arc<SwitchSocket>, notices: &Notices) {
        if let Some(reason) = notices.fell_back {
            self.host.fell_back(socket, reason);
        }
        if notices.cut_off {
            self.host.cut_off();
        }
        if notices.established {
            self.host.established(socket);
        }
        if notices.changed {
            self.host.socket_changed(socket);
        }
        if notices.wake_service {
            self.leave_to_service();
        }
    }

    /// A call left something that must go on without it: the service thread looks soon, woken only if it sleeps for longer.
    pub(crate) fn leave_to_service(&self) {
        if self.pace.call() {
            self.host.wake_service();
        }
    }

    /// After a failed connect whose error was told: the socket is as before, and may connect again.
    pub(crate) fn restart(&self, socket: &SwitchSocket, state: &mut crate::socket::SocketState) {
        state.local = None;
        state.peer = None;
        state.is_reported = false;
        socket.enter(if state.bound.is_some() {
            Stage::TcpBound
        } else {
            Stage::Fresh
        });
    }

    /// Ends a connection that no program has, at once. What is left to do goes on in the service step.
    pub(crate) fn discard(&self, conn: Arc<Conn>) {
        if conn.abort() == CloseStep::Draining {
            self.lock_registry().draining.push(conn);
        }
    }

    pub(crate) fn lock_registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn lock_table(&self) -> MutexGuard<'_, ProviderTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn current_epoch(&self) -> u32 {
        // Relaxed: changed in a forked child only, before it has threads.
        self.epoch.load(Ordering::Relaxed)
    }

    /// Starts the providers that are listed and compiled in, in the list's order; the others are ignored. One that fails to
    /// start is left out.
    fn start_providers(&self) {
        self.started.get_or_init(|| {
            for entry in self.config.providers.iter().filter(|e| e.enabled) {
                let Some(found) = self.installed.iter().find(|i| i.id == entry.id) else {
                    continue;
                };
                let index = self.lock_table().providers().len();
                if let Ok(provider) = self.start_provider(index, Arc::clone(&found.sp)) {
                    self.lock_table().add(provider, &self.config);
                }
            }
        });
    }

    fn start_provider(
        &self,
        index: usize,
        sp: Arc<dyn ServiceProvider>,
    ) -> Result<ProviderRef, driver::wsa::WsaError> {
        let host = Arc::clone(&self.host);
        let index = u32::try_from(index).map_err(|_| driver::wsa::WsaError::ProcLim)?;
        Provider::start(index, sp, Box::new(move || host.wake_service()))
    }
}

impl core::fmt::Debug for Switch {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Switch")
            .field("config", &self.config)
            .field("table", &*self.lock_table())
            .finish_non_exhaustive()
    }
}

impl core::fmt::Debug for Installed {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Installed")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// Whether sockets of this kind may ever have a companion.
#[must_use]
pub fn is_candidate(domain: i32, socket_type: i32, protocol: i32) -> bool {
    let kind = socket_type & !(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC);
    matches!(domain, libc::AF_INET | libc::AF_INET6)
        && kind == libc::SOCK_STREAM
        && matches!(protocol, 0 | libc::IPPROTO_TCP)
}

/// Writes an `int` option as the kernel does: cut at the room. Returns the bytes written.
fn put_int(value: &mut [u8], number: i32) -> usize {
    let bytes = number.to_ne_bytes();
    let len = bytes.len().min(value.len());
    value[..len].copy_from_slice(&bytes[..len]);
    len
}
