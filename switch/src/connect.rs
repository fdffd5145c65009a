//! Connecting: a state machine that any thread drives, from the determination to an established session or back to TCP.
//!
//! Place: [`Switch::connect`] is the program's call, [`Switch::connect_progress`] the repeated question of a blocked one; the
//! service step and pollers drive the same machine. Invariants: WSPEventSelect, then WSPConnect (R-101); a failure before the
//! provider has connected closes the companion and goes to TCP, unless its code is final (R-105, R-106); a failure after that is
//! final (R-109); a new call after a failed one decides anew, with a fresh companion (R-113). Over a link that is cut nothing goes by
//! TCP instead: the connect fails.
//!
//! ```text
//! begin -> SanConnecting --FD_CONNECT--> Negotiating --> SanConnected
//!    |          |  code of R-106: Failed      |  R-109: Failed
//!    +----------+--> Tcp (the caller, or in the background the switch, makes the kernel's connect)
//! ```
//! Source: R-67, R-101 to R-113, R-115, R-120.

use core::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;

use driver::spi::{FD_CONNECT, Waiter};
use driver::wsa::WsaError;
use ring_proto::eqe::CmStatus;
use ring_proto::telemetry::Reason;

use crate::companion;
use crate::determine::{self, ConnectRoad, inner_v4, is_wildcard};
use crate::gate;
use crate::options::{self, OptionStore};
use crate::outcome::{Errno, WaitPlan};
use crate::provider_table::ProviderRef;
use crate::session::{Conn, ConnOptions, Phase, Role};
use crate::socket::{Attempt, SocketState, Stage, SwitchSocket};
use crate::switch::{ConnectStep, Notices, Switch};

impl Switch {
    /// Connects. Does not block.
    pub fn connect(&self, socket: &Arc<SwitchSocket>, destination: SocketAddr) -> ConnectStep {
        self.drive(socket, |state, notices| match socket.stage() {
            Stage::Fresh | Stage::TcpBound => self.begin(socket, state, destination, notices),
            Stage::Failed => match state.error.take() {
                // The program asks how its connect ended by connecting again.
                Some(error) => {
                    self.restart(socket, state);
                    ConnectStep::Failed(error)
                }
                None => self.begin(socket, state, destination, notices),
            },
            Stage::SanConnecting | Stage::Negotiating => {
                self.advance(socket, state, notices);
                match self.step_now(socket, state) {
                    ConnectStep::Pending if socket.is_nonblocking() => {
                        ConnectStep::Failed(libc::EALREADY)
                    }
                    step => step,
                }
            }
            // R-110: the first repeat after completion tells success.
            Stage::SanConnected if state.is_reported => ConnectStep::Failed(libc::EISCONN),
            Stage::SanListening => ConnectStep::Failed(libc::EISCONN),
            Stage::Tcp | Stage::SanConnected | Stage::Closed => self.step_now(socket, state),
        })
    }

    /// Drives a connect under way and says where it stands.
    pub fn connect_progress(&self, socket: &Arc<SwitchSocket>) -> ConnectStep {
        self.drive(socket, |state, notices| {
            self.advance(socket, state, notices);
            self.step_now(socket, state)
        })
    }

    /// How a blocking `connect` waits. `call_deadline_ns` comes from `SO_SNDTIMEO`; the attempt goes on when it passes (R-101).
    #[must_use]
    pub fn connect_plan(&self, socket: &SwitchSocket, call_deadline_ns: u64) -> WaitPlan {
        let mut plan = WaitPlan::new();
        match socket.connect_event() {
            Some((fd, deadline_ns)) => {
                plan.add(fd, libc::POLLIN);
                plan.limit(deadline_ns, 0);
            }
            // Settled meanwhile: ask again at once.
            None => plan.limit(0, 0),
        }
        plan.limit(call_deadline_ns, libc::EINPROGRESS);
        plan
    }

    /// The provider and function of a connect under way, for a waiter that wants to be woken by the device itself.
    #[must_use]
    pub fn connect_function(&self, socket: &SwitchSocket) -> Option<(ProviderRef, u32)> {
        let _inside = gate::enter();
        let state = socket.lock();
        let companion = &state.attempt.as_ref()?.companion;
        let function = companion.provider.waiting.function_of(companion.socket)?;
        Some((companion.provider.clone(), function))
    }

    /// Arms a connect under way for a waiter of its function. Call [`Self::connect_progress`] once more before sleeping. False: there
    /// is nothing to wait for here, or it cannot be armed; the service step drives the connect either way.
    pub fn arm_connect(&self, socket: &SwitchSocket, waiter: Waiter) -> bool {
        let _inside = gate::enter();
        let state = socket.lock();
        let Some(attempt) = &state.attempt else {
            return false;
        };
        let waiting = &attempt.companion.provider.waiting;
        waiting.arm_events(waiter).is_ok()
            && attempt.conn.as_ref().is_none_or(|c| c.arm(waiter).is_ok())
    }

    /// The result of the kernel's connect that [`ConnectStep::UseTcp`] asked for. After a failure the next call decides anew (R-113).
    pub fn tcp_connect_ended(&self, socket: &SwitchSocket, result: Result<(), Errno>) {
        let _inside = gate::enter();
        let mut state = socket.lock();
        if socket.stage() != Stage::Tcp || state.listening.is_some() {
            return;
        }
        match result {
            Ok(())
            | Err(
                libc::EINPROGRESS | libc::EALREADY | libc::EISCONN | libc::EINTR | libc::EAGAIN,
            ) => {}
            Err(_) => self.restart(socket, &mut state),
        }
    }

    /// `connect` with `AF_UNSPEC` (R-112): the companion is closed abortively, then the kernel's turn; the socket may connect again.
    ///
    /// # Errors
    /// TCP's.
    pub fn disconnect(&self, socket: &Arc<SwitchSocket>) -> Result<(), Errno> {
        let result = {
            let _inside = gate::enter();
            let mut state = socket.lock();
            match socket.stage() {
                Stage::SanConnected => {
                    if let Some(conn) = socket.conn() {
                        self.discard(Arc::clone(conn));
                    }
                    self.lock_registry().connected.remove(&socket.id());
                    socket.retire_conn();
                    self.restart(socket, &mut state);
                }
                Stage::SanConnecting | Stage::Negotiating => {
                    self.cancel_attempt(socket, &mut state);
                    self.restart(socket, &mut state);
                }
                Stage::SanListening => {
                    if let Some(listening) = state.listening.take() {
                        self.close_listener(&listening, true);
                    }
                    self.lock_registry()
                        .listeners
                        .retain(|l| l.upgrade().is_some_and(|l| l.id() != socket.id()));
                    self.tcp
                        .set_nonblocking(socket.fd(), socket.is_nonblocking())?;
                    self.restart(socket, &mut state);
                }
                _ => {}
            }
            let result = self.tcp.disconnect(socket.fd());
            if result.is_ok() && socket.stage() == Stage::Tcp {
                self.restart(socket, &mut state);
            }
            result
        };
        self.host.socket_changed(socket);
        result
    }

    /// Drives a connect for the service step. Returns whether it is still under way.
    pub(crate) fn connect_in_background(&self, socket: &Arc<SwitchSocket>) -> bool {
        self.drive(socket, |state, notices| {
            self.advance(socket, state, notices);
            ConnectStep::Pending
        });
        matches!(socket.stage(), Stage::SanConnecting | Stage::Negotiating)
    }

    /// Runs a step under gate and lock, then tells the host.
    fn drive(
        &self,
        socket: &Arc<SwitchSocket>,
        step: impl FnOnce(&mut SocketState, &mut Notices) -> ConnectStep,
    ) -> ConnectStep {
        let mut notices = Notices::default();
        let step = {
            let _inside = gate::enter();
            let mut state = socket.lock();
            step(&mut state, &mut notices)
        };
        self.tell(socket, &notices);
        step
    }

    /// Where the socket stands, as the program's call must be told; marks what it then knows.
    fn step_now(&self, socket: &SwitchSocket, state: &mut SocketState) -> ConnectStep {
        match socket.stage() {
            Stage::SanConnecting | Stage::Negotiating => ConnectStep::Pending,
            Stage::SanConnected => {
                state.is_reported = true;
                ConnectStep::Established
            }
            Stage::Tcp => ConnectStep::UseTcp(state.reason.unwrap_or(Reason::NoProvider)),
            Stage::Closed => ConnectStep::Failed(libc::EBADF),
            Stage::SanListening => ConnectStep::Failed(libc::EISCONN),
            Stage::Failed => {
                let error = state.error.take().unwrap_or(libc::ECONNABORTED);
                self.restart(socket, state);
                ConnectStep::Failed(error)
            }
            // Another thread was told the error, or dissolved the socket.
            Stage::Fresh | Stage::TcpBound => ConnectStep::Failed(libc::ECONNABORTED),
        }
    }

    /// A fresh decision and, if the SAN is chosen, a fresh companion.
    fn begin(
        &self,
        socket: &Arc<SwitchSocket>,
        state: &mut SocketState,
        destination: SocketAddr,
        notices: &mut Notices,
    ) -> ConnectStep {
        let started = self.start_attempt(socket, state, destination);
        match started {
            Ok(attempt) => {
                state.attempt = Some(attempt);
                socket.enter(Stage::SanConnecting);
                self.lock_registry().connecting.push(Arc::clone(socket));
                self.start_connect(socket, state, notices);
                self.advance(socket, state, notices);
                if let Some(attempt) = &mut state.attempt {
                    attempt.is_pending = true;
                    notices.wake_service = true;
                }
                notices.changed = true;
                self.step_now(socket, state)
            }
            Err(_) if self.is_cut(destination) => {
                Self::cut_off(socket, state, notices);
                self.step_now(socket, state)
            }
            Err(reason) => {
                self.use_tcp(socket, state, reason, notices);
                self.step_now(socket, state)
            }
        }
    }

    /// Determination, source address, companion, WSPEventSelect: everything before WSPConnect.
    fn start_attempt(
        &self,
        socket: &SwitchSocket,
        state: &mut SocketState,
        destination: SocketAddr,
    ) -> Result<Attempt, Reason> {
        if destination.is_ipv6() != (socket.domain() == libc::AF_INET6) {
            // The kernel has its own opinion of that.
            return Err(Reason::OffSubnet);
        }
        let bound = self.tcp.local_address(socket.fd()).ok();
        let named = bound.filter(|b| b.port() != 0 || !is_wildcard(b.ip()));
        let table = self.started_table();
        let road = determine::connect(&self.config, &table, named, destination, &state.options);
        drop(table);
        let (provider, nic, target) = match road {
            ConnectRoad::San {
                provider,
                nic,
                destination,
            } => (provider, nic, destination),
            ConnectRoad::Tcp(reason) => return Err(reason),
        };
        let local = self.qualify(socket, named, nic)?;
        let companion = companion::create(&provider, local, &state.options)?;
        let event = self.events.take();
        let selected = match &event {
            Ok(event) => {
                provider
                    .sp
                    .wsp_event_select(companion.socket, Some(event.fd()), FD_CONNECT)
            }
            Err(_) => Err(WsaError::Mfile),
        };
        if let Err(error) = selected {
            provider.note(error);
            companion.close();
            if let Ok(event) = event {
                self.events.give(event);
            }
            return Err(Reason::SpEventSelect);
        }
        let bound = self.config.shown(socket.domain(), local);
        state.bound = Some(bound);
        state.local = Some(bound);
        // 0.0.0.0 has become 127.0.0.1, as in the kernel.
        state.peer = Some(self.config.shown(socket.domain(), target));
        state.reason = None;
        state.is_reported = false;
        Ok(Attempt {
            companion,
            destination: target,
            event: event.ok(),
            deadline_ns: self
                .host
                .now_ns()
                .saturating_add(self.config.connect_limit_ns()),
            conn: None,
            begun_ns: self.host.now_ns(),
            is_pending: false,
        })
    }

    /// The companion's fully qualified address (R-62, R-63, R-67): the TCP socket's own, with the NIC's address in place of the
    /// wildcard. An unbound TCP socket is bound to the NIC first, so that the kernel reserves the port (R-75).
    fn qualify(
        &self,
        socket: &SwitchSocket,
        named: Option<SocketAddr>,
        nic: Ipv4Addr,
    ) -> Result<SocketAddrV4, Reason> {
        let specific =
            named
                .filter(|n| !is_wildcard(n.ip()))
                .and_then(|n| match self.config.aliases() {
                    Some(aliases) => aliases.wire(n.ip()),
                    None => inner_v4(n.ip()),
                });
        let ip = specific.unwrap_or(nic);
        let mut port = named.map_or(0, |n| n.port());
        if port == 0 {
            let wanted = self.config.shown(socket.domain(), SocketAddrV4::new(ip, 0));
            let fd = socket.fd();
            let bound = self
                .tcp
                .bind(fd, wanted)
                .and_then(|()| self.tcp.local_address(fd));
            // R-67: TCP is as it was and connects by itself.
            port = bound.map_err(|_| Reason::SpBind)?.port();
        }
        Ok(SocketAddrV4::new(ip, port))
    }

    /// WSPConnect.
    fn start_connect(&self, socket: &SwitchSocket, state: &mut SocketState, notices: &mut Notices) {
        let Some(attempt) = &state.attempt else {
            return;
        };
        let companion = &attempt.companion;
        let sp = &companion.provider.sp;
        match sp.wsp_connect(companion.socket, attempt.destination) {
            Err(WsaError::WouldBlock) => {}
            Ok(()) => self.start_session(socket, state),
            Err(error) => {
                let event = attempt.event.as_ref().map(|e| e.fd());
                let detail = sp
                    .wsp_enum_network_events(companion.socket, event)
                    .map_or(0, |e| e.connect_detail);
                self.connect_failed(socket, state, error, detail, notices);
            }
        }
    }

    /// Drives the attempt as far as it goes now.
    fn advance(&self, socket: &Arc<SwitchSocket>, state: &mut SocketState, notices: &mut Notices) {
        if socket.stage() == Stage::SanConnecting {
            self.poll_connect(socket, state, notices);
        }
        if socket.stage() == Stage::Negotiating {
            self.poll_negotiation(socket, state, notices);
        }
    }

    fn poll_connect(&self, socket: &SwitchSocket, state: &mut SocketState, notices: &mut Notices) {
        let Some(attempt) = &state.attempt else {
            return;
        };
        let provider = attempt.companion.provider.clone();
        provider.waiting.progress();
        let event = attempt.event.as_ref().map(|e| e.fd());
        let events = provider
            .sp
            .wsp_enum_network_events(attempt.companion.socket, event);
        match events {
            Ok(events) if events.events & FD_CONNECT != 0 => match events.connect_error {
                None => self.start_session(socket, state),
                Some(error) => {
                    self.connect_failed(socket, state, error, events.connect_detail, notices);
                }
            },
            Ok(_) if self.host.now_ns() < attempt.deadline_ns => {}
            // R-108: no answer in time is no proof of anything: TCP is tried.
            Ok(_) => {
                let detail = CmStatus::TIMED_OUT.0;
                self.connect_failed(socket, state, WsaError::TimedOut, detail, notices);
            }
            Err(error) => self.connect_failed(socket, state, error, 0, notices),
        }
    }

    /// The provider has connected: the session begins at once (R-115). From here on there is no fall-back (R-109).
    fn start_session(&self, socket: &SwitchSocket, state: &mut SocketState) {
        let options = self.session_options(&state.options);
        let Some(attempt) = &mut state.attempt else {
            return;
        };
        socket.enter(Stage::Negotiating);
        let now = self.host.now_ns();
        attempt.deadline_ns = now.saturating_add(self.config.negotiation_limit_ns());
        let companion = &attempt.companion;
        let provider = companion.provider.clone();
        match Conn::start(Role::Active, provider, companion.socket, options) {
            Ok(conn) => attempt.conn = Some(Arc::new(conn)),
            Err(error) => {
                companion.provider.note(error);
                state.error = Some(error.errno());
            }
        }
    }

    fn poll_negotiation(
        &self,
        socket: &Arc<SwitchSocket>,
        state: &mut SocketState,
        notices: &mut Notices,
    ) {
        let Some(attempt) = &state.attempt else {
            return;
        };
        let phase = match &attempt.conn {
            None => Phase::Failed(state.error.unwrap_or(libc::ENOBUFS)),
            Some(conn) => {
                conn.progress();
                conn.phase()
            }
        };
        let is_late = self.host.now_ns() >= attempt.deadline_ns;
        match phase {
            Phase::Negotiating if is_late => {
                self.negotiation_failed(socket, state, libc::ETIMEDOUT, notices);
            }
            Phase::Negotiating => {}
            Phase::Failed(error) => self.negotiation_failed(socket, state, error, notices),
            Phase::Closed => self.negotiation_failed(socket, state, libc::ECONNRESET, notices),
            Phase::Established => {
                let Some(mut attempt) = state.attempt.take() else {
                    return;
                };
                if let Some(conn) = attempt.conn.take() {
                    options::follow_all(&state.options, &conn);
                    // An owner that was set before wants to hear of it.
                    conn.adopt_owner(socket.fd());
                    socket.publish(conn);
                }
                self.end_attempt(attempt);
                socket.enter(Stage::SanConnected);
                self.register_connected(socket);
                notices.established = true;
                notices.changed = true;
                notices.wake_service = true;
            }
        }
    }

    /// R-105, R-106: closes the companion, then TCP, or the program's error where the code is final.
    fn connect_failed(
        &self,
        socket: &SwitchSocket,
        state: &mut SocketState,
        error: WsaError,
        detail: u32,
        notices: &mut Notices,
    ) {
        let Some(attempt) = state.attempt.take() else {
            return;
        };
        attempt.companion.provider.note(error);
        attempt.companion.close();
        let is_cut = final_errno(error).is_none() && self.is_cut(attempt.destination.into());
        let is_pending = attempt.is_pending;
        self.end_attempt(attempt);
        notices.changed = true;
        if let Some(errno) = final_errno(error) {
            state.error = Some(errno);
            socket.enter(Stage::Failed);
            return;
        }
        if is_cut {
            Self::cut_off(socket, state, notices);
            return;
        }
        let destination = state.peer;
        self.use_tcp(socket, state, fallback_reason(error, detail), notices);
        // The program's call has returned, or waits without knowing: the kernel's connect runs in the background, and a blocked
        // caller's own joins it.
        if let Some(destination) = destination.filter(|_| is_pending) {
            match self.tcp.connect(socket.fd(), destination) {
                Ok(()) | Err(libc::EINPROGRESS) => {}
                Err(errno) => {
                    state.error = Some(errno);
                    socket.enter(Stage::Failed);
                }
            }
        }
    }

    /// What a session takes over from the socket's options (R-178).
    pub(crate) fn session_options(&self, options: &OptionStore) -> ConnOptions {
        ConnOptions {
            send_buffer: options::buffer(options, libc::SO_SNDBUF).unwrap_or(0),
            recv_buffer: options::buffer(options, libc::SO_RCVBUF).unwrap_or(0),
            ring: 0,
            // The switch ends it first.
            negotiation_ns: self.config.negotiation_limit_ns().saturating_mul(2),
        }
    }

    /// R-109: no TCP any more; the program is told.
    fn negotiation_failed(
        &self,
        socket: &SwitchSocket,
        state: &mut SocketState,
        errno: Errno,
        notices: &mut Notices,
    ) {
        let Some(attempt) = state.attempt.take() else {
            return;
        };
        self.end_companion(attempt);
        state.error = Some(errno);
        socket.enter(Stage::Failed);
        notices.changed = true;
    }

    /// Ends an attempt for good, without a result (R-111, R-112).
    pub(crate) fn cancel_attempt(&self, socket: &SwitchSocket, state: &mut SocketState) {
        let Some(attempt) = state.attempt.take() else {
            return;
        };
        self.end_companion(attempt);
        self.lock_registry()
            .connecting
            .retain(|s| s.id() != socket.id());
    }

    /// Whether the link to another node of the cluster is cut: then TCP must not cross it either.
    fn is_cut(&self, destination: SocketAddr) -> bool {
        let Some(ip) = inner_v4(destination.ip()) else {
            return false;
        };
        if self.config.is_own(ip) || !self.config.is_in_cluster(ip) {
            return false;
        }
        let table = self.started_table();
        let entry = table.subnets().lookup(ip);
        let provider = entry.map(|entry| table.providers()[entry.provider].clone());
        drop(table);
        provider.is_some_and(|provider| provider.is_up() && provider.waiting.is_cut(ip))
    }

    /// The connect fails as the kernel's does when nobody answers behind the cable.
    fn cut_off(socket: &SwitchSocket, state: &mut SocketState, notices: &mut Notices) {
        state.error = Some(libc::EHOSTUNREACH);
        socket.enter(Stage::Failed);
        notices.cut_off = true;
    }

    fn use_tcp(
        &self,
        socket: &SwitchSocket,
        state: &mut SocketState,
        reason: Reason,
        notices: &mut Notices,
    ) {
        state.reason = Some(reason);
        state.local = None;
        state.peer = None;
        socket.enter(Stage::Tcp);
        notices.fell_back = Some(reason);
    }

    /// Ends an attempt together with its companion, which the session closes once there is one.
    fn end_companion(&self, mut attempt: Attempt) {
        match attempt.conn.take() {
            Some(conn) => self.discard(conn),
            None => attempt.companion.close(),
        }
        self.end_attempt(attempt);
    }

    /// Wakes who waits for the attempt, and keeps its event object for the next one.
    fn end_attempt(&self, attempt: Attempt) {
        if let Some(event) = attempt.event {
            self.events.give(event);
        }
    }
}

/// The codes after which no TCP connect is tried, as the program sees them (R-106); `None`: try TCP.
#[must_use]
pub const fn final_errno(error: WsaError) -> Option<Errno> {
    match error {
        WsaError::ConnReset | WsaError::ConnRefused => Some(libc::ECONNREFUSED),
        WsaError::HostUnreach => Some(libc::EHOSTUNREACH),
        _ => None,
    }
}

/// Why a provider's connect sends the socket to TCP.
#[must_use]
pub fn fallback_reason(error: WsaError, detail: u32) -> Reason {
    match (error, CmStatus(detail)) {
        (WsaError::NetDown, _) => Reason::ProviderDown,
        (_, CmStatus::NO_LISTENER) => Reason::NoSanListener,
        (_, CmStatus::BACKLOG_FULL) => Reason::BacklogFull,
        (_, CmStatus::PORT_DOWN) => Reason::LinkDown,
        (_, CmStatus::NO_RESOURCE) => Reason::PeerLimit,
        (_, CmStatus::TIMED_OUT) | (WsaError::TimedOut, CmStatus::OK) => Reason::SanTimeout,
        _ => Reason::SpConnect,
    }
}
