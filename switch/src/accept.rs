//! Accepting: connections of providers are taken by the service step into the listener's queue, and by `accept` out of it.
//!
//! Place: `Switch::serve_listener` runs in the service step of any process that shares the listener; [`Switch::accept`] is the
//! program's call. Invariants: a request is accepted while ready plus negotiating connections are not above the backlog, else it stays
//! with the provider; only a connection whose session is established is offered; the kernel's queue and the SAN's
//! are asked in turn; every failure but the listener's own means: skip this request and go on.
//! Source, OP-6.

use std::sync::Arc;

use driver::spi::{self, ConnectionRequest, FD_ACCEPT, SpSocket, Verdict, Waiter};
use driver::wsa::WsaError;
use ring_proto::sync::Ordering;

use crate::event::EventFd;
use crate::gate;
use crate::listen::{ListenCompanion, Listening};
use crate::options::{self, OptionStore};
use crate::outcome::{Errno, WaitPlan};
use crate::provider_table::ProviderRef;
use crate::ready_queue::Waiting;
use crate::session::{Conn, Phase, Role};
use crate::socket::{SocketState, Stage, SwitchSocket};
use crate::switch::{Accepted, Switch};

/// Requests one step takes from one companion, so that a flood on one listener starves no other.
const STEP_LIMIT: u32 = 256;

/// A connection whose session this process negotiates.
#[derive(Debug)]
pub(crate) struct Negotiation {
    conn: Arc<Conn>,
    position: u32,
    deadline_ns: u64,
    /// End of the wait for first data; 0: no such wait.
    defer_until_ns: u64,
}

/// What a step on a listener found.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ListenerStep {
    /// A connection became ready in an empty queue, or a provider failed: pollers must look.
    pub(crate) changed: bool,
    /// Something was done: more may have come meanwhile.
    pub(crate) progressed: bool,
    /// When to look again at the latest.
    pub(crate) deadline_ns: u64,
}

impl Switch {
    /// Takes one connection, from the SAN's queue or the kernel's, in turn. Does not block.
    ///
    /// # Units and shape
    /// `flags`: `SOCK_NONBLOCK`, `SOCK_CLOEXEC`; `O_NONBLOCK` is not inherited.
    /// # Errors
    /// `EAGAIN`: both are empty. `EMFILE`, `ENFILE`: the connection stays queued. Else TCP's.
    pub fn accept(&self, listener: &Arc<SwitchSocket>, flags: i32) -> Result<Accepted, Errno> {
        let mut wants_service = false;
        let result = {
            let _inside = gate::enter();
            let (listening, options) = {
                let state = listener.lock();
                (state.listening.clone(), state.options.clone())
            };
            match &listening {
                None => self.accept_tcp(listener, &options, flags),
                Some(listening) => {
                    let Some(_open) = listening.hold_open() else {
                        return Err(libc::EINVAL);
                    };
                    wants_service = self.adopt_listener(listening);
                    // Relaxed: fairness, nothing more.
                    let is_tcp_turn = listening.turn.fetch_xor(1, Ordering::Relaxed) == 1;
                    let san = || self.accept_san(listener, listening, &options, flags);
                    let tcp = || self.accept_tcp(listener, &options, flags);
                    let result = if is_tcp_turn {
                        or_if_empty(tcp(), san)
                    } else {
                        or_if_empty(san(), tcp)
                    };
                    wants_service |= listening.queue().is_deferred();
                    result
                }
            }
        };
        if wants_service {
            self.leave_to_service();
        }
        if let Ok(accepted) = &result
            && accepted.socket.stage() == Stage::SanConnected
        {
            self.host.established(&accepted.socket);
            self.leave_to_service();
        }
        result
    }

    /// Does for a listener what the service step does, so that a thread which waits for connections takes them itself. True when
    /// something moved: there may be a connection now that nobody has armed.
    pub fn drive_listener(&self, listener: &Arc<SwitchSocket>) -> bool {
        let step = {
            let _inside = gate::enter();
            let Some(listening) = listener.lock().listening.clone() else {
                return false;
            };
            for provider in self.provider_list() {
                if provider.waiting.progress() {
                    // Ends of other connections may be among them.
                    self.pace.filed();
                }
            }
            // Relaxed: any change will do.
            listening.driven.fetch_add(1, Ordering::Relaxed);
            let now_ns = self.host.now_ns();
            self.serve_listener(listener, &listening, now_ns)
        };
        if step.changed {
            self.host.socket_changed(listener);
        }
        step.progressed
    }

    /// Whether `accept` would find a connection of the SAN, as far as is known without a lock of the queue.
    #[must_use]
    pub fn has_ready(&self, listener: &SwitchSocket) -> bool {
        let _inside = gate::enter();
        let state = listener.lock();
        state
            .listening
            .as_ref()
            .is_some_and(|listening| listening.queue().ready_hint() > 0)
    }

    /// Functions that a waiter for a listener needs vectors of.
    #[must_use]
    pub fn listener_functions(&self, listener: &SwitchSocket) -> Vec<(ProviderRef, u32)> {
        let _inside = gate::enter();
        let Some(listening) = listener.lock().listening.clone() else {
            return Vec::new();
        };
        let companions = listening.companions();
        companions
            .iter()
            .filter(|c| !c.is_dead)
            .filter_map(|c| {
                let provider = &c.companion.provider;
                let function = provider.waiting.function_of(c.companion.socket)?;
                Some((provider.clone(), function))
            })
            .collect()
    }

    /// Arms a listener for a waiter of one of [`Self::listener_functions`]. Call [`Self::drive_listener`] once more before sleeping.
    /// What cannot be armed is the service thread's.
    pub fn arm_listener(&self, listener: &SwitchSocket, provider: &ProviderRef, waiter: Waiter) {
        let _inside = gate::enter();
        let Some(listening) = listener.lock().listening.clone() else {
            return;
        };
        if let Err(error) = provider.waiting.arm_events(waiter) {
            provider.note(error);
            return;
        }
        Self::each_negotiation(&listening, |conn| {
            let function = conn.provider().waiting.function_of(conn.sp());
            if conn.provider().index == provider.index
                && function == Some(waiter.function)
                && let Err(error) = conn.arm(waiter)
            {
                provider.note(error);
            }
        });
    }

    /// How a blocking `accept` waits: on the kernel's queue and on the doorbell. `call_deadline_ns` comes from `SO_RCVTIMEO`.
    #[must_use]
    pub fn accept_plan(&self, listener: &SwitchSocket, call_deadline_ns: u64) -> WaitPlan {
        let mut plan = WaitPlan::new();
        plan.add(listener.fd(), libc::POLLIN);
        if let Some(doorbell) = listener.doorbell_fd() {
            plan.add(doorbell, libc::POLLIN);
        }
        plan.limit(call_deadline_ns, libc::EAGAIN);
        plan
    }

    fn accept_tcp(
        &self,
        listener: &SwitchSocket,
        options: &OptionStore,
        flags: i32,
    ) -> Result<Accepted, Errno> {
        let taken = self.tcp.accept(listener.fd(), flags)?;
        let state = SocketState {
            options: options.inherit(),
            bound: Some(taken.local),
            ..SocketState::default()
        };
        let socket = SwitchSocket::with(
            listener.domain(),
            taken.fd,
            flags & libc::SOCK_NONBLOCK != 0,
            Stage::Tcp,
            state,
        );
        Ok(Accepted {
            fd: taken.fd,
            socket: Arc::new(socket),
            local: taken.local,
            peer: taken.peer,
        })
    }

    fn accept_san(
        &self,
        listener: &SwitchSocket,
        listening: &Listening,
        options: &OptionStore,
        flags: i32,
    ) -> Result<Accepted, Errno> {
        if listening.queue().ready_hint() == 0 {
            return Err(libc::EAGAIN);
        }
        // the placeholder first; without one the connection stays queued.
        let domain = listener.domain();
        let fd = self.tcp.socket(domain, libc::SOCK_STREAM | flags, 0)?;
        let Some((taken, conn)) = self.take_ready(listening) else {
            // Another thread was faster; the number was never given to anybody.
            self.tcp.close(fd).ok();
            return Err(libc::EAGAIN);
        };
        for option in options.inherited() {
            // The placeholder carries no data: an option it refuses is still answered from the store.
            self.tcp
                .set_option(fd, option.level, option.name, &option.value)
                .ok();
        }
        let local = self.config.shown(domain, taken.local);
        let peer = self.config.shown(domain, taken.peer);
        let state = SocketState {
            options: options.inherit(),
            local: Some(local),
            peer: Some(peer),
            is_reported: true,
            ..SocketState::default()
        };
        let is_nonblocking = flags & libc::SOCK_NONBLOCK != 0;
        let socket = Arc::new(SwitchSocket::with(
            domain,
            fd,
            is_nonblocking,
            Stage::SanConnected,
            state,
        ));
        options::follow_all(&socket.lock().options, &conn);
        self.expect(&conn);
        socket.publish(Arc::new(conn));
        self.register_connected(&socket);
        Ok(Accepted {
            fd,
            socket,
            local,
            peer,
        })
    }

    /// Leaves a listener to the kernel alone, for everybody who shares it, and gives the connections that were ready. A session that
    /// still negotiates ends, and its peer connects over TCP.
    pub fn retire(&self, listener: &Arc<SwitchSocket>) -> Vec<Accepted> {
        let mut ready = Vec::new();
        {
            let _inside = gate::enter();
            let mut state = listener.lock();
            let Some(listening) = state.listening.take() else {
                return ready;
            };
            while let Ok(accepted) =
                self.accept_san(listener, &listening, &state.options, libc::SOCK_CLOEXEC)
            {
                ready.push(accepted);
            }
            self.close_listener(&listening, true);
            listener.enter(Stage::Tcp);
            // The kernel's socket of a listener with companions never blocks; now it is what the program made it.
            let is_nonblocking = listener.is_nonblocking();
            self.tcp.set_nonblocking(listener.fd(), is_nonblocking).ok();
        }
        self.host.socket_changed(listener);
        ready
    }

    /// Removes the oldest ready connection and takes its hold from the listener. A connection that died meanwhile is skipped.
    fn take_ready(&self, listening: &Listening) -> Option<(Waiting, Conn)> {
        // Before the queue's lock, which comes last.
        let listeners = listening.sockets();
        let queue = listening.queue().lock();
        loop {
            let waiting = queue.first_ready()?;
            let taken = self
                .provider_by_number(waiting.provider)
                .filter(|provider| take_hold(provider, waiting.socket, &listeners))
                .and_then(|p| Conn::attach(p, waiting.socket, waiting.record));
            queue.remove(waiting.position);
            if let Some(conn) = taken {
                return Some((waiting, conn));
            }
        }
    }

    /// In a forked child: names event objects of its own for an inherited listener. Returns whether the service must look at it.
    pub(crate) fn adopt_listener(&self, listening: &Listening) -> bool {
        let epoch = self.current_epoch();
        let mut adopted = false;
        for c in listening.companions().iter_mut() {
            if c.epoch == epoch || c.is_dead {
                continue;
            }
            c.epoch = epoch;
            match self.select_accept(&c.companion) {
                Ok(event) => c.event = Some(event),
                Err(_) => c.is_dead = true,
            }
            adopted = true;
        }
        adopted
    }

    /// One step on a listener: requests into negotiations, negotiations into the queue.
    pub(crate) fn serve_listener(
        &self,
        socket: &SwitchSocket,
        listening: &Listening,
        now_ns: u64,
    ) -> ListenerStep {
        let mut step = ListenerStep {
            deadline_ns: u64::MAX,
            ..ListenerStep::default()
        };
        let options = socket.lock().options.clone();
        let Some(_open) = listening.hold_open() else {
            return step;
        };
        // A child may wait for the listener and never call `accept` before something has come.
        step.progressed |= self.adopt_listener(listening);
        let epoch = self.current_epoch();
        let queue = listening.queue();
        // A full queue: the requests are the provider's until `accept` makes room and wakes the service.
        if !queue.is_deferred() || queue.lock().has_room() {
            let was_deferred = queue.is_deferred();
            let mut is_deferred = false;
            for c in listening.companions().iter_mut() {
                if !c.is_dead && c.epoch == epoch {
                    let look = was_deferred;
                    is_deferred |=
                        self.take_requests(c, socket, listening, &options, look, &mut step);
                }
            }
            if is_deferred != was_deferred {
                let locked = queue.lock();
                locked.set_deferred(is_deferred);
                // An `accept` between the refusal and this mark has made room and woken nobody.
                step.progressed |= is_deferred && locked.has_room();
            }
        }
        self.adopt_negotiations(listening, now_ns, &mut step);
        let mut negotiations = listening.negotiations();
        let mut index = 0;
        while let Some(negotiation) = negotiations.get_mut(index) {
            let settled = negotiation.step(&options, now_ns);
            if let Some(is_ready) = settled {
                let ended = negotiations.swap_remove(index);
                self.end_negotiation(ended, listening, is_ready, &mut step);
            } else {
                step.deadline_ns = step.deadline_ns.min(negotiation.next_deadline_ns());
                index += 1;
            }
        }
        step
    }

    /// Sockets this process negotiates for a listener, for arming.
    pub(crate) fn each_negotiation(listening: &Listening, mut visit: impl FnMut(&Conn)) {
        for negotiation in listening.negotiations().iter() {
            visit(&negotiation.conn);
        }
    }

    /// Takes the requests of one companion. `look`: whether or not an event tells of any. Returns whether some were left.
    fn take_requests(
        &self,
        c: &mut ListenCompanion,
        socket: &SwitchSocket,
        listening: &Listening,
        options: &OptionStore,
        look: bool,
        step: &mut ListenerStep,
    ) -> bool {
        let provider = c.companion.provider.clone();
        let event = c.event.as_ref().map(EventFd::fd);
        let events = provider
            .sp
            .wsp_enum_network_events(c.companion.socket, event)
            .and_then(|events| match events.accept_error {
                Some(error) => Err(error),
                None => Ok(events.events),
            });
        let is_due = match events {
            Ok(events) => look || events & FD_ACCEPT != 0,
            Err(error) => {
                // the TCP listener continues, the companion is closed with it.
                provider.note(error);
                c.is_dead = true;
                step.changed = true;
                false
            }
        };
        if !is_due {
            return false;
        }
        for _ in 0..STEP_LIMIT {
            match self.accept_request(&provider, c.companion.socket, socket.domain(), listening) {
                Ok(accepted) => {
                    step.progressed = true;
                    self.start_passive(&provider, accepted, listening, options);
                }
                Err(WsaError::WouldBlock) => return false,
                Err(WsaError::TryAgain) => return true,
                Err(error @ (WsaError::NetDown | WsaError::NotSock | WsaError::Inval)) => {
                    provider.note(error);
                    c.is_dead = true;
                    step.changed = true;
                    return false;
                }
                // that request is gone, the next one may be there.
                Err(_) => step.progressed = true,
            }
        }
        // More may be queued than one step takes.
        step.progressed = true;
        true
    }

    fn start_passive(
        &self,
        provider: &ProviderRef,
        accepted: spi::Accepted,
        listening: &Listening,
        options: &OptionStore,
    ) {
        let now_ns = self.host.now_ns();
        let started = Conn::start(
            Role::Passive,
            provider.clone(),
            accepted.socket,
            self.session_options(options),
        );
        // without memory for the session the connection cannot be used; the program never sees it.
        let Ok(conn) = started.map(Arc::new) else {
            close_accepted(provider, accepted.socket);
            return;
        };
        let request = accepted.request;
        let position = listening.queue().lock().reserve(
            provider.index,
            accepted.socket,
            conn.record_offset(),
            request.caller,
            request.callee,
        );
        match position {
            Some(position) => listening.negotiations().push(Negotiation {
                conn,
                position,
                deadline_ns: now_ns.saturating_add(self.config.negotiation_limit_ns()),
                defer_until_ns: 0,
            }),
            None => self.discard(conn),
        }
    }

    fn accept_request(
        &self,
        provider: &ProviderRef,
        listener: SpSocket,
        domain: i32,
        listening: &Listening,
    ) -> Result<spi::Accepted, WsaError> {
        // an IPv4 listener is none at `::1`, and its wildcard does not cover it.
        let not_for_v4 = self.config.aliases().filter(|_| domain == libc::AF_INET);
        let mut condition = |request: &ConnectionRequest| {
            if not_for_v4.is_some_and(|aliases| *request.callee.ip() == aliases.localhost_v6) {
                Verdict::Reject
            } else if listening.queue().lock().has_room() {
                Verdict::Accept
            } else {
                Verdict::Defer
            }
        };
        provider.sp.wsp_accept(listener, &mut condition)
    }

    fn end_negotiation(
        &self,
        ended: Negotiation,
        listening: &Listening,
        is_ready: bool,
        step: &mut ListenerStep,
    ) {
        step.progressed = true;
        if !is_ready {
            // never seen by the program.
            self.discard(ended.conn);
        }
        step.changed |= listening.queue().lock().settle(ended.position, is_ready);
    }

    /// Goes on with sessions whose negotiating process died or closed the listener.
    fn adopt_negotiations(&self, listening: &Listening, now_ns: u64, step: &mut ListenerStep) {
        let queue = listening.queue().lock();
        let adopted = queue.adopt();
        if queue.has_foreign() {
            // Their owner may die without a sign: look again now and then, while there are any.
            step.deadline_ns = step
                .deadline_ns
                .min(now_ns.saturating_add(ADOPTION_PERIOD_NS));
        }
        drop(queue);
        for waiting in adopted {
            step.progressed = true;
            let conn = self
                .provider_by_number(waiting.provider)
                .and_then(|p| Conn::attach(p, waiting.socket, waiting.record));
            match conn {
                Some(conn) => listening.negotiations().push(Negotiation {
                    conn: Arc::new(conn),
                    position: waiting.position,
                    deadline_ns: now_ns.saturating_add(self.config.negotiation_limit_ns()),
                    defer_until_ns: 0,
                }),
                None => drop(listening.queue().lock().settle(waiting.position, false)),
            }
        }
    }

    pub(crate) fn provider_by_number(&self, number: u32) -> Option<ProviderRef> {
        let index = usize::try_from(number).ok()?;
        self.lock_table().providers().get(index).cloned()
    }

    pub(crate) fn register_connected(&self, socket: &Arc<SwitchSocket>) {
        self.lock_registry()
            .connected
            .insert(socket.id(), Arc::downgrade(socket));
    }
}

/// How often members look for negotiations that nobody carries on.
const ADOPTION_PERIOD_NS: u64 = 500_000_000;

impl Listening {
    /// The listening socket of each provider, by its number.
    fn sockets(&self) -> Vec<(u32, SpSocket)> {
        self.companions()
            .iter()
            .map(|c| (c.companion.provider.index, c.companion.socket))
            .collect()
    }
}

impl Negotiation {
    /// Drives the session. `Some(true)`: ready for `accept`; `Some(false)`: failed.
    fn step(&mut self, options: &OptionStore, now_ns: u64) -> Option<bool> {
        self.conn.progress();
        match self.conn.phase() {
            Phase::Failed(_) | Phase::Closed => Some(false),
            Phase::Negotiating => (now_ns >= self.deadline_ns).then_some(false),
            Phase::Established => {
                let seconds = options.int(libc::SOL_TCP, libc::TCP_DEFER_ACCEPT);
                let Some(seconds) = seconds.filter(|&s| s > 0) else {
                    return Some(true);
                };
                // offered with its first data, or after the time the program gave.
                if self.defer_until_ns == 0 {
                    let ns = u64::from(seconds.unsigned_abs()).saturating_mul(1_000_000_000);
                    self.defer_until_ns = now_ns.saturating_add(ns);
                }
                let has_come = self.conn.readable_bytes() > 0 || now_ns >= self.defer_until_ns;
                has_come.then_some(true)
            }
        }
    }

    fn next_deadline_ns(&self) -> u64 {
        if self.defer_until_ns == 0 {
            self.deadline_ns
        } else {
            self.defer_until_ns
        }
    }
}

/// Takes the hold on an accepted socket from its listener. Before the connection leaves the queue: should this process die in
/// between, the next one finds a socket without holder and skips it.
fn take_hold(provider: &ProviderRef, socket: SpSocket, listeners: &[(u32, SpSocket)]) -> bool {
    let Some(sharing) = &provider.sharing else {
        return true;
    };
    let listener = listeners.iter().find(|(p, _)| *p == provider.index);
    listener.is_some_and(|&(_, l)| sharing.take_from_listener(socket, l).is_ok())
}

/// Closes an accepted socket that the program never saw.
pub(crate) fn close_accepted(provider: &ProviderRef, socket: SpSocket) {
    if let Err(error) = provider.sp.wsp_close_socket(socket) {
        provider.note(error);
    }
}

fn or_if_empty(
    first: Result<Accepted, Errno>,
    second: impl FnOnce() -> Result<Accepted, Errno>,
) -> Result<Accepted, Errno> {
    match first {
        Err(libc::EAGAIN) => second(),
        result => result,
    }
}
