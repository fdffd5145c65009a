//! The control loop: everything that clients send, one event after the other.
//!
//! Place: the control thread runs [`Reactor::run`]. Invariants: no source is waited for, each gets a bounded turn; a descriptor leaves
//! epoll before it is closed; what a process sent before its end is acted on before its end is; the number of sources is bounded.
//! Source: ours. Leaves out: what the messages mean ([`super::vfio`], [`super::channel`], [`crate::control`]).

mod captures;
mod requests;

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use ring_proto::ids::{FunctionId, NodeId};
use tracing::{debug, info, warn};

use super::channel::{self, Channel, FamilyId, Next, Process};
use super::config::{ClusterConfig, EventSpec};
use super::epoll::{EventBuffer, Interest, Poller, Sources, Token, WakeFd};
use super::error::{ServeError, system};
use super::fd_pass;
use super::lab;
use super::listen::{Accepted, Listener};
use super::log_budget::{LogBudget, now_ns};
use super::runtime::{EngineGone, EngineHandle, EngineThread};
use super::signals::Signals;
use super::spaces::Namespace;
use super::stat::{Ledger, Live};
use super::vfio::DeviceGone;
use super::vfio::nic::Function;
use super::vfio::session::{self, Session};
use crate::control::connection::{self, Connection};
use crate::wire::WireCaptures;
use captures::Capture;

/// Most sources at once: connections, processes, channels, listeners.
const SOURCE_LIMIT: usize = 64 * 1024;
/// Most control connections at once; each lives for one request.
const CONTROL_LIMIT: usize = 64;
/// Most device connections at once that have not sent their VERSION.
const HALF_OPEN_LIMIT: usize = 512;
/// Time a device connection gets for its VERSION.
const HALF_OPEN_NS: u64 = 5_000_000_000;
/// Messages or connections taken from one source before the others get their turn.
const BATCH: usize = 64;
/// How long a listener rests when not even a refusal is possible.
const REST_NS: u64 = 100_000_000;

/// The control loop's state.
#[derive(Debug)]
pub(crate) struct Reactor {
    // Before the engine: connections end while it still runs.
    sources: Sources<Watched>,
    poller: Poller,
    stop: Arc<WakeFd>,
    stopping: bool,
    config: ClusterConfig,
    /// Those of each node; none in loopback mode.
    namespaces: Vec<Vec<Namespace>>,
    /// Captures of the Ethernet frames between them.
    ethernet: Option<WireCaptures>,
    ledger: Ledger,
    /// Families of functions that processes opened; functions of the listening sockets have none.
    families: HashMap<FunctionId, FamilyId>,
    next_family: u64,
    /// Listeners that rest because descriptors have run out.
    resting: Vec<Token>,
    /// Device connections that may still owe their VERSION, oldest first, each with the end of its time.
    half_open: VecDeque<(u64, Token)>,
    /// Control connections, oldest first.
    control_connections: VecDeque<Token>,
    log: LogBudget,
    /// What is still to happen by the clock, and when the clock started.
    events: VecDeque<EventSpec>,
    started_ns: u64,
    engine: EngineThread,
}

#[derive(Debug)]
struct Watched {
    source: Source,
    interest: Interest,
}

#[derive(Debug)]
enum Source {
    Stop(Arc<WakeFd>),
    Signals(Signals),
    ControlListener(Listener),
    DeviceListener {
        listener: Listener,
        node: NodeId,
    },
    Control(Connection),
    Session {
        session: Box<Session<Function>>,
        node: NodeId,
        family: Option<FamilyId>,
    },
    Channel(Channel),
    Process(Box<Process>),
    /// Whoever asked for a capture holds the other end.
    Capture {
        socket: OwnedFd,
        capture: Capture,
    },
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Stop(wake) => wake.as_fd(),
            Self::Signals(signals) => signals.as_fd(),
            Self::ControlListener(listener) | Self::DeviceListener { listener, .. } => {
                listener.as_fd()
            }
            Self::Control(connection) => connection.as_fd(),
            Self::Session { session, .. } => session.as_fd(),
            Self::Channel(channel) => channel.as_fd(),
            Self::Process(process) => process.as_fd(),
            Self::Capture { socket, .. } => socket.as_fd(),
        }
    }
}

/// What becomes of a source after its turn.
enum Turn {
    Wait(Interest),
    Close,
}

impl Reactor {
    /// `namespaces`: those of each node, in namespace mode, with captures of what goes between them.
    pub(crate) fn new(
        config: ClusterConfig,
        engine: EngineThread,
        namespaces: Vec<Vec<Namespace>>,
        ethernet: Option<WireCaptures>,
    ) -> Result<Self, ServeError> {
        let stop = Arc::new(WakeFd::new().map_err(system("eventfd"))?);
        let mut reactor = Self {
            sources: Sources::new(SOURCE_LIMIT),
            poller: Poller::new().map_err(system("epoll_create1"))?,
            stop: Arc::clone(&stop),
            stopping: false,
            ledger: Ledger::new(config.nodes.len()),
            events: config.lab.events.iter().cloned().collect(),
            config,
            namespaces,
            ethernet,
            started_ns: now_ns(),
            families: HashMap::new(),
            next_family: 1,
            resting: Vec::new(),
            half_open: VecDeque::new(),
            control_connections: VecDeque::new(),
            log: LogBudget::default(),
            engine,
        };
        reactor.watch(Source::Stop(stop))?;
        Ok(reactor)
    }

    pub(crate) fn engine(&self) -> EngineHandle {
        self.engine.handle()
    }

    pub(crate) fn stop_fd(&self) -> Arc<WakeFd> {
        Arc::clone(&self.stop)
    }

    pub(crate) fn watch_signals(&mut self, signals: Signals) -> Result<(), ServeError> {
        self.watch(Source::Signals(signals))
    }

    pub(crate) fn serve_control(&mut self, listener: Listener) -> Result<(), ServeError> {
        self.watch(Source::ControlListener(listener))
    }

    pub(crate) fn serve_device(
        &mut self,
        node: NodeId,
        listener: Listener,
    ) -> Result<(), ServeError> {
        self.watch(Source::DeviceListener { listener, node })
    }

    /// Works until somebody asks for the end.
    pub(crate) fn run(&mut self) -> Result<(), ServeError> {
        let mut buffer = EventBuffer::new(128);
        self.started_ns = now_ns();
        while !self.stopping {
            let timeout = self.next_wait();
            let mut ready: Vec<_> = self
                .poller
                .wait(&mut buffer, timeout)
                .map_err(system("epoll_wait"))?
                .collect();
            ready.append(&mut self.resting);
            for token in ready {
                self.turn(token)
                    .map_err(|EngineGone| ServeError::EngineGone)?;
            }
            self.end_half_open()
                .and_then(|()| self.run_events())
                .map_err(|EngineGone| ServeError::EngineGone)?;
        }
        Ok(())
    }

    /// How long nothing has to be done if nothing happens.
    fn next_wait(&self) -> Option<u64> {
        let rest = (!self.resting.is_empty()).then_some(REST_NS);
        let first = self.half_open.front();
        let handshake = first.map(|&(deadline, _)| deadline.saturating_sub(now_ns()));
        let event = self.events.front();
        let event = event.map(|event| self.due_ns(event).saturating_sub(now_ns()));
        rest.into_iter().chain(handshake).chain(event).min()
    }

    fn due_ns(&self, event: &EventSpec) -> u64 {
        self.started_ns.saturating_add(event.at_ns)
    }

    /// Does what is due by the clock.
    fn run_events(&mut self) -> Result<(), EngineGone> {
        while let Some(event) = self.events.front()
            && now_ns() >= self.due_ns(event)
            && let Some(event) = self.events.pop_front()
        {
            let EventSpec { at_ns, what } = event;
            info!(at_ns, ?what, "event of the cluster");
            let made = self
                .engine
                .handle()
                .call(move |device| lab::make(device, &what))?;
            if let Err(error) = made {
                warn!(at_ns, error, "event of the cluster");
            }
        }
        Ok(())
    }

    /// Notes a device connection that owes its VERSION; with too many of them the oldest goes.
    fn expect_version(&mut self, token: Token) -> Result<(), EngineGone> {
        if self.half_open.len() >= HALF_OPEN_LIMIT
            && let Some((_, oldest)) = self.half_open.pop_front()
        {
            self.end_if_half_open(oldest, "too many connections without a VERSION")?;
        }
        let deadline = now_ns().saturating_add(HALF_OPEN_NS);
        self.half_open.push_back((deadline, token));
        Ok(())
    }

    /// Ends connections whose VERSION has not come in time, whole or at all.
    fn end_half_open(&mut self) -> Result<(), EngineGone> {
        while let Some(&(deadline, token)) = self.half_open.front()
            && now_ns() >= deadline
        {
            self.half_open.pop_front();
            self.end_if_half_open(token, "no VERSION in time")?;
        }
        Ok(())
    }

    fn end_if_half_open(&mut self, token: Token, reason: &str) -> Result<(), EngineGone> {
        // Nothing there: it has ended.
        let Some(watched) = self.sources.take(token) else {
            return Ok(());
        };
        let owes_version = match &watched.source {
            Source::Session { session, .. } => session.device().is_none(),
            _ => false,
        };
        if owes_version {
            self.complain("connection", reason);
            return self.close(token, watched.source);
        }
        self.sources.put_back(token, watched);
        Ok(())
    }

    /// Adds a source that the server cannot do without.
    fn watch(&mut self, source: Source) -> Result<(), ServeError> {
        self.add(source).map(|_| ()).map_err(system("epoll_ctl"))
    }

    /// Adds a source; when that is not possible it is closed.
    fn add(&mut self, source: Source) -> Result<Token, Errno> {
        let watched = Watched {
            source,
            interest: Interest::READ,
        };
        let token = self.sources.insert(watched).map_err(|_| Errno::ENFILE)?;
        let watched = self.sources.take(token).expect("inserted above");
        match self
            .poller
            .add(watched.source.as_fd(), token, watched.interest)
        {
            Ok(()) => {
                self.sources.put_back(token, watched);
                Ok(token)
            }
            Err(errno) => {
                self.sources.retire(token);
                Err(errno)
            }
        }
    }

    /// Adds a source that a peer asked for.
    fn add_or_drop(&mut self, source: Source) -> Option<Token> {
        self.add(source)
            .inspect_err(|errno| self.complain("connection", &format!("dropped: {errno}")))
            .ok()
    }

    /// Ends the oldest control connection when there are too many: it had its time, and idle ones must not lock others out.
    fn make_room_for_control(&mut self) -> Result<(), EngineGone> {
        if self.control_connections.len() == CONTROL_LIMIT
            && let Some(oldest) = self.control_connections.pop_front()
            && let Some(watched) = self.sources.take(oldest)
        {
            self.complain("control", "too many connections");
            self.close(oldest, watched.source)?;
        }
        Ok(())
    }

    /// Gives one source its turn.
    fn turn(&mut self, token: Token) -> Result<(), EngineGone> {
        // An earlier event of the same batch may have ended it.
        let Some(mut watched) = self.sources.take(token) else {
            return Ok(());
        };
        let turn = match self.work(token, &mut watched.source) {
            // A call for this source panicked in the engine: the source is over, the others go on.
            Err(EngineGone) if self.engine.handle().is_alive() => Turn::Close,
            other => other?,
        };
        match turn {
            Turn::Wait(interest) if interest == watched.interest => {
                self.sources.put_back(token, watched);
            }
            Turn::Wait(interest) => {
                watched.interest = interest;
                let source = watched.source.as_fd();
                if self.poller.modify(source, token, interest).is_ok() {
                    self.sources.put_back(token, watched);
                } else {
                    self.close(token, watched.source)?;
                }
            }
            Turn::Close => self.close(token, watched.source)?,
        }
        Ok(())
    }

    fn work(&mut self, token: Token, source: &mut Source) -> Result<Turn, EngineGone> {
        match source {
            Source::Stop(_) => {
                self.stopping = true;
                Ok(Turn::Wait(Interest::READ))
            }
            Source::Signals(signals) => {
                if let Some(signal) = signals.read() {
                    info!(signal, "asked to end");
                    self.stopping = true;
                }
                Ok(Turn::Wait(Interest::READ))
            }
            Source::ControlListener(listener) => {
                let (connections, turn) = self.accept(token, listener);
                for connection in connections {
                    self.make_room_for_control()?;
                    let connection = Source::Control(Connection::new(connection));
                    let added = self.add_or_drop(connection);
                    self.control_connections.extend(added);
                }
                Ok(turn)
            }
            Source::DeviceListener { listener, node } => {
                let (connections, turn) = self.accept(token, listener);
                for connection in connections {
                    let added = self.add_or_drop(Source::Session {
                        session: session_on(connection, *node),
                        node: *node,
                        family: None,
                    });
                    if let Some(token) = added {
                        self.expect_version(token)?;
                    }
                }
                Ok(turn)
            }
            Source::Control(connection) => self.control(connection),
            Source::Session {
                session,
                node,
                family,
            } => self.session(session, *node, *family),
            Source::Channel(channel) => Ok(self.channel(channel)),
            Source::Process(process) => self.process(process),
            // Nothing is ever said over it: it has hung up.
            Source::Capture { .. } => Ok(Turn::Close),
        }
    }

    /// Ends a source and what hangs on it.
    fn close(&mut self, token: Token, source: Source) -> Result<(), EngineGone> {
        match self.release(token, source) {
            // As in `turn`: what cannot be torn down stays behind, and counts as a panic.
            Err(EngineGone) if self.engine.handle().is_alive() => Ok(()),
            other => other,
        }
    }

    fn release(&mut self, token: Token, source: Source) -> Result<(), EngineGone> {
        // Peers may hold our end too, so closing it would not take it out of epoll.
        let _ = self.poller.remove(source.as_fd());
        self.sources.retire(token);
        let engine = self.engine.handle();
        match source {
            Source::Control(_) => self.control_connections.retain(|&known| known != token),
            Source::Session { session, .. } => {
                if let Some(function) = session.device().map(Function::id) {
                    self.families.remove(&function);
                    debug!(function = function.0, "function hung up");
                }
                session.close().map_err(|DeviceGone| EngineGone)?;
            }
            Source::Process(mut process) => {
                let holders = process.take_holders();
                engine.call(move |device| {
                    for holder in holders {
                        device.drop_holder(holder.function, holder.slot, holder.generation);
                    }
                })?;
                if let Some(telemetry) = &mut process.telemetry {
                    let totals = *telemetry.totals();
                    let report = telemetry.report();
                    self.ledger
                        .fold(&self.config, process.node, &totals, &report);
                }
            }
            Source::Capture { capture, .. } => self.stop_capture(capture)?,
            Source::Stop(_)
            | Source::Signals(_)
            | Source::ControlListener(_)
            | Source::DeviceListener { .. }
            | Source::Channel(_) => {}
        }
        Ok(())
    }

    fn accept(&mut self, token: Token, listener: &mut Listener) -> (Vec<OwnedFd>, Turn) {
        let mut connections = Vec::new();
        for _ in 0..BATCH {
            match listener.accept() {
                Ok(Accepted::Connection(connection)) => connections.push(connection),
                Ok(Accepted::Refused(reason)) => self.complain("connection", reason),
                Ok(Accepted::Nothing) => break,
                Ok(Accepted::Stuck) => {
                    self.complain("connection", "waits for a free descriptor");
                    return (connections, self.rest(token));
                }
                Err(error) => {
                    self.complain("accept", &error.to_string());
                    return (connections, self.rest(token));
                }
            }
        }
        (connections, Turn::Wait(Interest::READ))
    }

    /// Lets a listener rest that cannot go on: a connection that waits would otherwise be an event without end.
    fn rest(&mut self, token: Token) -> Turn {
        self.resting.push(token);
        Turn::Wait(Interest::NONE)
    }

    fn session(
        &mut self,
        session: &mut Session<Function>,
        node: NodeId,
        family: Option<FamilyId>,
    ) -> Result<Turn, EngineGone> {
        let before = session.device().map(Function::id);
        let engine = self.engine.handle();
        let step = session
            .ready(&mut || Function::attach(&engine, node), &mut self.log)
            .map_err(|DeviceGone| EngineGone)?;
        let after = session.device().map(Function::id);
        if let (None, Some(function)) = (before, after) {
            if let Some(family) = family {
                self.families.insert(function, family);
            }
            if let Some(pid) = fd_pass::peer_pid(session.as_fd()) {
                // It may be gone by now, and then has no timers either.
                let _ = engine.call(move |device| device.set_client_process(function, pid))?;
            }
        }
        Ok(match step {
            session::Step::Open(interest) => Turn::Wait(interest),
            session::Step::Closed => Turn::Close,
        })
    }

    fn channel(&mut self, channel: &mut Channel) -> Turn {
        for _ in 0..BATCH {
            match channel::next(channel.as_fd()) {
                Next::Request(channel::Request::Process(socket)) => {
                    let family = FamilyId(self.next_family);
                    self.next_family += 1;
                    let process = Process::new(socket, channel.node, family);
                    self.add_or_drop(Source::Process(Box::new(process)));
                }
                Next::Request(_) => self.complain("channel", "message of another socket"),
                // The channel is shared by all programs of a run: one that talks nonsense must not cut off the others.
                Next::Unsound(reason) => self.complain("channel", reason),
                Next::Nothing => break,
                Next::End => return Turn::Close,
            }
        }
        Turn::Wait(Interest::READ)
    }

    fn process(&mut self, process: &mut Process) -> Result<Turn, EngineGone> {
        for _ in 0..BATCH {
            match channel::next(process.as_fd()) {
                Next::Request(channel::Request::Process(socket)) => {
                    let child = Process::new(socket, process.node, process.family);
                    self.add_or_drop(Source::Process(Box::new(child)));
                }
                Next::Request(channel::Request::Telemetry(telemetry)) => {
                    if process.telemetry.is_none() {
                        process.telemetry = Some(telemetry);
                    } else {
                        self.complain("process", "second telemetry");
                    }
                }
                Next::Request(channel::Request::OpenFunction(socket)) => {
                    let added = self.add_or_drop(Source::Session {
                        session: session_on(socket, process.node),
                        node: process.node,
                        family: Some(process.family),
                    });
                    if let Some(token) = added {
                        self.expect_version(token)?;
                    }
                }
                Next::Request(channel::Request::Holder(holder)) => {
                    self.hold(process, holder)?;
                }
                Next::Unsound(reason) => self.complain("process", reason),
                Next::Nothing => break,
                Next::End => return Ok(Turn::Close),
            }
        }
        Ok(Turn::Wait(Interest::READ))
    }

    fn hold(&mut self, process: &mut Process, holder: channel::Holder) -> Result<(), EngineGone> {
        if self.families.get(&holder.function) != Some(&process.family) {
            self.complain("process", "holder slot of a function of another family");
            return Ok(());
        }
        let held = self.engine.handle().call(move |device| {
            device.hold_process(holder.function, holder.slot, holder.generation)
        })?;
        match held {
            Ok(()) if process.add_holder(holder) => {}
            Ok(()) => self.complain("process", "too many holder slots"),
            Err(error) => self.complain("process", &error.to_string()),
        }
        Ok(())
    }

    fn control(&mut self, connection: &mut Connection) -> Result<Turn, EngineGone> {
        loop {
            match connection.ready() {
                connection::Step::Open(interest) => return Ok(Turn::Wait(interest)),
                connection::Step::Closed => return Ok(Turn::Close),
                connection::Step::Request(request) => self.answer(connection, request)?,
            }
        }
    }

    /// Logs what a peer did wrong, not too often.
    fn complain(&mut self, whom: &'static str, what: &str) {
        if let Some(held_back) = self.log.spend(now_ns()) {
            warn!(whom, what, held_back, "peer broke the rules");
        }
    }
}

/// A session of a node's NIC.
fn session_on(socket: OwnedFd, node: NodeId) -> Box<Session<Function>> {
    Box::new(Session::new(socket, format!("node {}", node.0)))
}

/// What a process tells now, when the source is one that tells.
fn live((_, watched): (Token, &mut Watched)) -> Option<Live> {
    let Source::Process(process) = &mut watched.source else {
        return None;
    };
    let node = process.node;
    let telemetry = process.telemetry.as_mut()?;
    Some(Live {
        node,
        totals: *telemetry.totals(),
        report: telemetry.report(),
    })
}

const _: () = {
    // Node numbers are u16, and so are the indices of the configuration.
    assert!(super::config::NODE_LIMIT <= u16::MAX as usize);
    assert!(SOURCE_LIMIT <= u32::MAX as usize);
};
