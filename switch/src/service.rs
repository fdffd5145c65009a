//! What must go on while the program is in no socket call: one step of the service thread.
//!
//! Place: the preload library's thread calls [`Switch::service_step`], polls what the plan says (and its own wake descriptor), and
//! calls again. Invariants: never blocks; before the plan is handed out every source is armed and then looked at once more, so no
//! wake-up is lost; without anything pending the plan is empty: an idle program uses no processor time.
//! Source; the dedicated threads of the documents are this one.

use std::os::fd::RawFd;
use std::sync::{Arc, MutexGuard, PoisonError, Weak};

use driver::spi::{Link, SpSocket, Waiter};
use driver::wsa::WsaError;
use ring_proto::sync::{Ordering, fence};

use crate::event;
use crate::gate;
use crate::listen::Listening;
use crate::pace::TICK_NS;
use crate::provider_table::ProviderRef;
use crate::session::{Conn, Phase};
use crate::socket::SwitchSocket;
use crate::switch::Switch;

/// Rounds one step makes before it hands out a plan that ends at once.
const MAX_ROUNDS: u32 = 16;
/// Connections beyond which they are not all looked at after every event.
const SCAN_AT_ONCE: usize = 256;
/// How long a look at all connections may wait beyond that.
const SCAN_PERIOD_NS: u64 = 20_000_000;

/// How the service thread waits.
#[derive(Clone, Debug)]
pub struct ServicePlan {
    /// Descriptors to poll, besides the thread's own.
    pub fds: Vec<libc::pollfd>,
    /// End of the wait on `CLOCK_MONOTONIC`; `u64::MAX`: none.
    pub deadline_ns: u64,
}

/// A connect that began this long ago is not driven by its caller alone.
const YOUNG_NS: u64 = 20_000_000;

/// What the service keeps between steps.
#[derive(Debug, Default)]
pub(crate) struct ServiceState {
    waiters: Vec<(ProviderRef, Waiter)>,
    /// Functions whose device is gone, by provider number.
    dead: Vec<(u32, u32)>,
    last_scan_ns: u64,
}

/// What the service step arms.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reach {
    /// Everything.
    All,
    /// Connections whose program has left them with work: all else is looked at within a tick.
    Left,
}

/// Result of a round.
#[derive(Clone, Copy, Debug)]
struct Round {
    progressed: bool,
    deadline_ns: u64,
}

impl Switch {
    /// Does everything that can be done now, arms everything that may come, and says how to wait.
    pub fn service_step(&self) -> ServicePlan {
        // EDGE service-timer (acq-rel): whoever sets an option from here on wakes the thread, or is seen below. The other side is in
        // `expect`.
        self.sleeps_until_ns.store(u64::MAX, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let plan = self.step();
        self.sleeps_until_ns
            .store(plan.deadline_ns, Ordering::Relaxed);
        plan
    }

    fn step(&self) -> ServicePlan {
        if self.pace.is_driven() {
            let round = self.round(Reach::Left);
            let now_ns = self.host.now_ns();
            let (fds, rest_until_ns) = self.arm(now_ns, Reach::Left);
            let deadline_ns = round.deadline_ns.min(rest_until_ns);
            return ServicePlan {
                fds,
                deadline_ns: deadline_ns.min(now_ns.saturating_add(TICK_NS)),
            };
        }
        let mut deadline_ns = u64::MAX;
        for _ in 0..MAX_ROUNDS {
            if self.round(Reach::All).progressed {
                continue;
            }
            let (fds, rest_until_ns) = self.arm(self.host.now_ns(), Reach::All);
            // Armed: whatever came before is found by this round, whatever comes later fires.
            let last = self.round(Reach::All);
            if !last.progressed {
                return ServicePlan {
                    fds,
                    deadline_ns: last.deadline_ns.min(rest_until_ns),
                };
            }
            deadline_ns = last.deadline_ns;
        }
        // Too busy to wait: let others have the processor, then come back.
        ServicePlan {
            fds: Vec::new(),
            deadline_ns: deadline_ns.min(self.host.now_ns()),
        }
    }

    fn round(&self, reach: Reach) -> Round {
        let now_ns = self.host.now_ns();
        let mut round = Round {
            progressed: false,
            deadline_ns: u64::MAX,
        };
        let had_events = {
            let _inside = gate::enter();
            self.provider_list()
                .iter()
                .filter(|p| p.waiting.progress())
                .count()
                > 0
        };
        let had_events = self.pace.take_filed() || had_events;
        round.progressed |= had_events;
        self.serve_connects(reach, now_ns, &mut round);
        let listeners = {
            let _inside = gate::enter();
            self.listeners()
        };
        for socket in listeners {
            self.serve_one_listener(&socket, reach, now_ns, &mut round);
        }
        self.serve_draining(&mut round);
        self.serve_connected(had_events, now_ns, &mut round);
        round
    }

    fn serve_connects(&self, reach: Reach, now_ns: u64, round: &mut Round) {
        let connecting: Vec<_> = {
            let _inside = gate::enter();
            // Its lock would keep waiting who drives it.
            let is_left =
                |s: &Arc<SwitchSocket>| reach == Reach::All || s.is_connect_older(now_ns, YOUNG_NS);
            self.connecting().into_iter().filter(is_left).collect()
        };
        let ended: Vec<u64> = connecting
            .iter()
            .filter(|socket| !self.connect_in_background(socket))
            .map(|socket| socket.id())
            .collect();
        for (_, deadline_ns) in connecting.iter().filter_map(|s| s.connect_event()) {
            round.deadline_ns = round.deadline_ns.min(deadline_ns);
        }
        if !ended.is_empty() {
            round.progressed = true;
            let _inside = gate::enter();
            // A socket may have begun a new connect meanwhile: keep those that are under way.
            self.lock_registry()
                .connecting
                .retain(|s| !ended.contains(&s.id()) || s.is_connecting());
        }
    }

    fn serve_one_listener(
        &self,
        socket: &Arc<SwitchSocket>,
        reach: Reach,
        now_ns: u64,
        round: &mut Round,
    ) {
        let step = {
            let _inside = gate::enter();
            let listening = socket.lock().listening.clone();
            let left = listening.filter(|l| !l.is_driven() || reach == Reach::All);
            left.map(|l| self.serve_listener(socket, &l, now_ns))
        };
        let Some(step) = step else {
            return;
        };
        round.progressed |= step.progressed;
        round.deadline_ns = round.deadline_ns.min(step.deadline_ns);
        if step.changed {
            socket.announce_arrival();
            self.host.socket_changed(socket);
        }
    }

    fn serve_draining(&self, round: &mut Round) {
        let _inside = gate::enter();
        // Not under the registry's lock, which every connect and close takes.
        let mut draining = core::mem::take(&mut self.lock_registry().draining);
        let before = draining.len();
        draining.retain(|conn| {
            conn.progress();
            round.deadline_ns = round.deadline_ns.min(conn.deadline_ns());
            conn.phase() != Phase::Closed
        });
        round.progressed |= draining.len() < before;
        self.lock_registry().draining.append(&mut draining);
    }

    /// Connections with work of their own, and those whose end or orphan came with an event.
    fn serve_connected(&self, had_events: bool, now_ns: u64, round: &mut Round) {
        let (connected, last_scan_ns) = {
            let _inside = gate::enter();
            (self.connected(), self.lock_service().last_scan_ns)
        };
        let next_scan_ns = last_scan_ns.saturating_add(SCAN_PERIOD_NS);
        let scans = connected.len() <= SCAN_AT_ONCE || now_ns >= next_scan_ns;
        if scans {
            let _inside = gate::enter();
            self.lock_service().last_scan_ns = now_ns;
        } else if had_events {
            round.deadline_ns = round.deadline_ns.min(next_scan_ns);
        }
        for socket in &connected {
            let Some(conn) = socket.conn() else {
                continue;
            };
            let _inside = gate::enter();
            let is_odd = || {
                let link = conn.provider().waiting.link(conn.sp());
                matches!(link, Link::Orphaned | Link::Ended(_))
            };
            let is_idle = || conn.wants_service() && !conn.is_resting(now_ns);
            if is_idle() || (scans && is_odd()) {
                conn.progress();
                conn.lose_patience();
                round.deadline_ns = round.deadline_ns.min(conn.deadline_ns());
            }
            round.deadline_ns = round.deadline_ns.min(conn.keep_alive(now_ns));
        }
    }

    /// A connection wants to be looked at in time, by an option of the program: wakes the service thread if it sleeps for longer.
    pub(crate) fn expect(&self, conn: &Conn) {
        let first_ns = conn.first_look_ns(self.host.now_ns());
        if first_ns == u64::MAX {
            return;
        }
        // EDGE service-timer (acq-rel): the option, then the look at the thread's sleep. The other side is in `service_step`.
        fence(Ordering::SeqCst);
        // Relaxed: the fences order.
        if first_ns < self.sleeps_until_ns.load(Ordering::Relaxed) {
            self.host.wake_service();
        }
    }

    /// Arms sources for the service's vectors, but connections that their program drives itself. Returns what to poll, and when to
    /// look at those.
    fn arm(&self, now_ns: u64, reach: Reach) -> (Vec<libc::pollfd>, u64) {
        let _inside = gate::enter();
        let mut fds = Vec::new();
        let mut rest_until_ns = u64::MAX;
        let mut state = self.lock_service();
        for provider in self.provider_list() {
            for (function, hangup) in provider.waiting.functions() {
                if state.dead.contains(&(provider.index, function)) {
                    continue;
                }
                if let Some(fd) = hangup {
                    if event::is_hung_up(fd) {
                        // the device is gone. Connections find out by themselves, new work goes elsewhere.
                        provider.waiting.check(function);
                        provider.note(WsaError::NetDown);
                        state.dead.push((provider.index, function));
                        continue;
                    }
                    // Hang-ups are reported unasked; data on it is none of ours.
                    push(&mut fds, fd, 0);
                }
                if let Some(waiter) = state.waiter(&provider, function) {
                    provider.waiting.drain(waiter);
                    push(&mut fds, waiter.fd, libc::POLLIN);
                }
            }
        }
        let connected = self.connected();
        for socket in &connected {
            if let Some(conn) = socket.conn().filter(|c| c.is_watched()) {
                match conn.rests_until(now_ns) {
                    Some(until_ns) => rest_until_ns = rest_until_ns.min(until_ns),
                    None => state.arm(conn),
                }
            }
        }
        if reach == Reach::Left {
            return (fds, rest_until_ns);
        }
        let listeners = self.listeners();
        let connecting = self.connecting();
        let (has_listeners, has_connections) = (
            !listeners.is_empty(),
            !connected.is_empty() || !connecting.is_empty(),
        );
        if has_listeners || has_connections {
            for (provider, waiter) in &state.waiters {
                if let Err(error) = provider.waiting.arm_events(*waiter) {
                    provider.note(error);
                }
            }
        }
        for socket in &listeners {
            let listening = socket.lock().listening.clone();
            if let Some(listening) = listening {
                arm_listener(&state, &listening, &mut fds);
            }
        }
        for socket in &connecting {
            let locked = socket.lock();
            let Some(attempt) = &locked.attempt else {
                continue;
            };
            if let Some(event) = &attempt.event {
                push(&mut fds, event.fd(), libc::POLLIN);
            }
            if let Some(conn) = &attempt.conn {
                state.arm(conn);
            }
        }
        for conn in &self.lock_registry().draining {
            state.arm(conn);
        }
        (fds, rest_until_ns)
    }

    /// Listeners of this process; inside the gate, like the next two.
    pub(crate) fn listeners(&self) -> Vec<Arc<SwitchSocket>> {
        let registry = self.lock_registry();
        let live = registry.listeners.iter().filter_map(Weak::upgrade);
        live.collect()
    }

    fn connecting(&self) -> Vec<Arc<SwitchSocket>> {
        self.lock_registry().connecting.clone()
    }

    fn connected(&self) -> Vec<Arc<SwitchSocket>> {
        let mut registry = self.lock_registry();
        registry.connected.retain(|_, s| s.strong_count() > 0);
        let live = registry.connected.values().filter_map(Weak::upgrade);
        live.collect()
    }

    pub(crate) fn lock_service(&self) -> MutexGuard<'_, ServiceState> {
        self.service.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ServiceState {
    /// The service's vector of a function.
    fn waiter(&mut self, provider: &ProviderRef, function: u32) -> Option<Waiter> {
        let known = self
            .waiters
            .iter()
            .find(|(p, w)| p.index == provider.index && w.function == function);
        if let Some((_, waiter)) = known {
            return Some(*waiter);
        }
        match provider.waiting.acquire(function) {
            Ok(waiter) => {
                self.waiters.push((provider.clone(), waiter));
                Some(waiter)
            }
            Err(error) => {
                provider.note(error);
                None
            }
        }
    }

    fn arm(&self, conn: &Conn) {
        if let Some(waiter) = self.waiter_for(conn.provider(), conn.sp()) {
            // A connection that cannot be armed has failed, which its own progress finds.
            if let Err(error) = conn.arm(waiter) {
                conn.provider().note(error);
            }
        }
    }

    fn waiter_for(&self, provider: &ProviderRef, socket: SpSocket) -> Option<Waiter> {
        let function = provider.waiting.function_of(socket)?;
        self.waiters
            .iter()
            .find(|(p, w)| p.index == provider.index && w.function == function)
            .map(|(_, w)| *w)
    }
}

fn arm_listener(state: &ServiceState, listening: &Listening, fds: &mut Vec<libc::pollfd>) {
    // While requests wait for room their event stays signalled, and says nothing new.
    if !listening.queue().is_deferred() {
        for c in listening.companions().iter().filter(|c| !c.is_dead) {
            if let Some(event) = &c.event {
                push(fds, event.fd(), libc::POLLIN);
            }
        }
    }
    Switch::each_negotiation(listening, |conn| state.arm(conn));
}

fn push(fds: &mut Vec<libc::pollfd>, fd: RawFd, events: i16) {
    fds.push(libc::pollfd {
        fd,
        events,
        revents: 0,
    });
}
