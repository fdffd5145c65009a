//! The device as a process: sockets, control thread, engine thread.
//!
//! Place: `sanlab up` and the `nic-emu` binary call [`serve`] or [`serve_devices`], which block until the end is asked for.
//! Invariants: one control thread reads everything that clients send and never waits for one of them; one engine thread owns the
//! device; in namespace mode a third thread carries the nodes' frames; what is made in the file system is removed at the end.
//! Source: ours (ARCHITECTURE.md). Leaves out: making processes of its own, privileges, name spaces.
//!
//! ```text
//!  control.sock ──┐                         ┌── calls ──> engine thread: Device
//!  a/nic0.sock ───┤                         │                 ^ doorbells (BAR2), kicks (eventfd)
//!  channels ──────┼──> control thread ──────┘                 │
//!  processes ─────┤     (epoll)                            clients
//!  functions ─────┘
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use ring_proto::channel::loopback_aliases;
use tracing::{debug, info, warn};

pub(crate) mod channel;
mod config;
pub(crate) mod epoll;
mod error;
pub(crate) mod fd_pass;
mod idle;
mod inspect;
mod lab;
mod listen;
pub(crate) mod log_budget;
mod reactor;
mod runtime;
pub mod sandbox;
mod signals;
mod spaces;
mod stat;
pub(crate) mod telemetry;
pub mod vfio;

pub use config::{
    BacklogFull, BadAddress, ClusterConfig, DebugConfig, EventSpec, LabConfig, LinkSpec, Loopback,
    NODE_LIMIT, NodeAddress, NodeSpec, Trouble, UngovernedPolicy,
};
pub use error::ServeError;
pub use runtime::{EngineGone, EngineHandle, EngineThread};
pub use sandbox::Sandbox;
pub use spaces::{Namespace, NamespaceKind, NodeSpace};

use self::error::system;
use self::listen::{Listener, RunDirectories};
use self::reactor::Reactor;
use self::sandbox::Reach;
use self::signals::Signals;
use crate::control;
use crate::device::{Device, DeviceOptions};
use crate::wire::Wire;

/// Name of a node's device socket in its directory.
pub const DEVICE_SOCKET_NAME: &str = "nic0.sock";

/// Serves a cluster until a shutdown request, SIGINT or SIGTERM; calls `on_ready` once everything accepts.
///
/// # Errors
/// [`ServeError`] when it could not start, or lost its engine.
pub fn serve(
    config: &ClusterConfig,
    sandbox: Sandbox,
    on_ready: impl FnOnce(),
) -> Result<(), ServeError> {
    serve_spaces(config, Vec::new(), sandbox, on_ready)
}

/// As [`serve`], in namespace mode: with what each node has of its own, in the order of the nodes. Without any, as [`serve`].
///
/// # Errors
/// As [`serve`].
pub fn serve_spaces(
    config: &ClusterConfig,
    spaces: Vec<NodeSpace>,
    sandbox: Sandbox,
    on_ready: impl FnOnce(),
) -> Result<(), ServeError> {
    // Before any thread is made: all of them inherit the mask.
    let signals = Signals::take().map_err(system("signalfd"))?;
    wake_on_time();
    let mut server = Server::start_in(config, sandbox, spaces)?;
    server.reactor.watch_signals(signals)?;
    seal(sandbox);
    on_ready();
    server.run()
}

/// Serves devices alone, each on a socket of its own, until SIGINT or SIGTERM.
///
/// # Errors
/// As [`serve`].
pub fn serve_devices(
    devices: Vec<DeviceSocket>,
    sandbox: Sandbox,
    debug: DebugConfig,
    on_ready: impl FnOnce(),
) -> Result<(), ServeError> {
    let signals = Signals::take().map_err(system("signalfd"))?;
    wake_on_time();
    let mut server = Server::start_devices_in(devices, sandbox, debug)?;
    server.reactor.watch_signals(signals)?;
    seal(sandbox);
    on_ready();
    server.run()
}

/// A node with the path of its device socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceSocket {
    /// Node.
    pub node: NodeSpec,
    /// Where its device is served.
    pub path: PathBuf,
}

/// A server in the caller's process, for tests and embedders: accepts once started, works in [`Server::run`].
#[derive(Debug)]
pub struct Server {
    // First to go: connections and socket files, then the directories they lay in.
    reactor: Reactor,
    _wire: Option<Wire>,
    _directories: RunDirectories,
}

/// Ends a [`Server`] from another thread.
#[derive(Clone, Debug)]
pub struct StopHandle(Arc<epoll::WakeFd>);

impl StopHandle {
    /// Makes [`Server::run`] return.
    pub fn stop(&self) {
        self.0.wake();
    }
}

impl Server {
    /// Makes directory, sockets, device and engine of a cluster.
    ///
    /// # Errors
    /// [`ServeError`]; nothing is left behind.
    pub fn start(config: &ClusterConfig) -> Result<Self, ServeError> {
        // The process is the caller's.
        Self::start_in(config, Sandbox::Off, Vec::new())
    }

    fn start_in(
        config: &ClusterConfig,
        sandbox: Sandbox,
        spaces: Vec<NodeSpace>,
    ) -> Result<Self, ServeError> {
        config.check()?;
        let mut directories = RunDirectories::default();
        directories.ensure(&config.dir)?;
        let control = Listener::bind(&config.dir.join(control::SOCKET_NAME))?;
        let mut devices = Vec::new();
        for node in &config.nodes {
            let directory = config.dir.join(&node.name);
            directories.ensure(&directory)?;
            devices.push(Listener::bind(&directory.join(DEVICE_SOCKET_NAME))?);
        }
        confine(sandbox, || reach_of_cluster(&config.dir));
        Self::assemble(config.clone(), vec![control], devices, directories, spaces)
    }

    /// Makes device, engine, and per node a device socket with a control socket beside it ([`control::beside`]).
    ///
    /// # Errors
    /// [`ServeError`]; nothing is left behind.
    pub fn start_devices(devices: Vec<DeviceSocket>) -> Result<Self, ServeError> {
        Self::start_devices_with(devices, DebugConfig::default())
    }

    /// As [`Server::start_devices`], with what helps to find faults.
    ///
    /// # Errors
    /// [`ServeError`]; nothing is left behind.
    pub fn start_devices_with(
        devices: Vec<DeviceSocket>,
        debug: DebugConfig,
    ) -> Result<Self, ServeError> {
        Self::start_devices_in(devices, Sandbox::Off, debug)
    }

    fn start_devices_in(
        devices: Vec<DeviceSocket>,
        sandbox: Sandbox,
        debug: DebugConfig,
    ) -> Result<Self, ServeError> {
        let (nodes, paths): (Vec<_>, Vec<_>) =
            devices.into_iter().map(|d| (d.node, d.path)).unzip();
        let config = ClusterConfig {
            name: "nic-emu".into(),
            dir: PathBuf::new(),
            nodes,
            subnet: None,
            wildcard_on_san: true,
            backlog_full: BacklogFull::default(),
            san_connect_limit_ms: None,
            loopback: Loopback::default(),
            debug,
            lab: LabConfig::default(),
        };
        config.check()?;
        let listeners = paths
            .iter()
            .map(|path| Listener::bind(path))
            .collect::<Result<_, _>>()?;
        let controls = paths
            .iter()
            .map(|path| Listener::bind(&control::beside(path)))
            .collect::<Result<_, _>>()?;
        confine(sandbox, || Reach {
            removals: paths.iter().map(|path| directory_of(path)).collect(),
            ..Reach::default()
        });
        let directories = RunDirectories::default();
        Self::assemble(config, controls, listeners, directories, Vec::new())
    }

    fn assemble(
        config: ClusterConfig,
        controls: Vec<Listener>,
        devices: Vec<Listener>,
        directories: RunDirectories,
        spaces: Vec<NodeSpace>,
    ) -> Result<Self, ServeError> {
        raise_descriptor_limit();
        let mut device = Device::new(DeviceOptions {
            backlog_full: config.backlog_full.into(),
            validate: config.debug.validate,
            pause_on: config.debug.pause_on,
            virtual_time: config.debug.virtual_time,
            seed: config.lab.seed,
        });
        let nodes: Vec<_> = config
            .nodes
            .iter()
            .map(|node| {
                let addresses: Vec<_> = node.addresses.iter().map(|a| a.ip).collect();
                let id = device.add_node(&node.name, &addresses);
                device.limit_node(id, node.limits);
                let aliases = addresses.first().copied().and_then(loopback_aliases);
                for alias in aliases.into_iter().flatten() {
                    device.add_alias(id, alias);
                }
                id
            })
            .collect();
        device.seed_links(config.lab.seed);
        for link in &config.lab.links {
            lab::set_link(&mut device, link).map_err(|problem| ServeError::Config {
                cluster: config.name.clone(),
                problem,
            })?;
        }
        let (taps, namespaces): (Vec<_>, Vec<_>) = spaces
            .into_iter()
            .map(|space| (space.tap, space.namespaces))
            .unzip();
        let wire = (!taps.is_empty())
            .then(|| Wire::start(taps, &device))
            .transpose()
            .map_err(system("starting the wire"))?;
        let engine = EngineThread::start(device)?;
        let ethernet = wire.as_ref().map(Wire::captures);
        let mut reactor = Reactor::new(config, engine, namespaces, ethernet)?;
        for control in controls {
            reactor.serve_control(control)?;
        }
        for (node, listener) in nodes.into_iter().zip(devices) {
            info!(node = node.0, path = %listener.path().display(), "device socket");
            reactor.serve_device(node, listener)?;
        }
        Ok(Self {
            reactor,
            _wire: wire,
            _directories: directories,
        })
    }

    /// Hands work to the engine from outside of the control thread.
    #[must_use]
    pub fn engine(&self) -> EngineHandle {
        self.reactor.engine()
    }

    /// A handle that ends the server.
    #[must_use]
    pub fn stop_handle(&self) -> StopHandle {
        StopHandle(self.reactor.stop_fd())
    }

    /// Works until somebody asks for the end, then closes and removes everything.
    ///
    /// # Errors
    /// [`ServeError::EngineGone`], [`ServeError::System`].
    pub fn run(mut self) -> Result<(), ServeError> {
        self.reactor.run()
    }
}

/// Before the engine thread starts, so that it inherits all of it.
fn confine(sandbox: Sandbox, reach: impl FnOnce() -> Reach) {
    if sandbox == Sandbox::On {
        // What it reached has been logged.
        let _walls = sandbox::confine(&reach());
    }
}

/// Links and timers mean microseconds, and the kernel lets sleepers lie for 50 of them unless told otherwise. For this thread and those it
/// starts.
fn wake_on_time() {
    if let Err(errno) = nix::sys::prctl::set_timerslack(1) {
        debug!(%errno, "timers stay as slack as they are");
    }
}

/// Once every thread runs.
fn seal(sandbox: Sandbox) {
    if sandbox == Sandbox::On
        && let Err(error) = sandbox::seal()
    {
        // A container may forbid it; that is no reason not to serve.
        warn!(%error, "sandbox");
    }
}

/// The cluster's directory, and the places where it and the directories it was made in are removed.
fn reach_of_cluster(directory: &Path) -> Reach {
    Reach {
        directories: vec![directory.to_owned()],
        removals: directory
            .ancestors()
            .skip(1)
            .take(2)
            .map(Path::to_owned)
            .collect(),
        connects: false,
    }
}

/// Where a path lies; the working directory for a bare name.
fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Every function costs a handful of descriptors: take as many as we may have.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(errno) = raised {
        debug!(%errno, "descriptor limit stays as it is");
    }
}
