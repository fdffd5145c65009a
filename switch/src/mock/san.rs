//! The recording SAN provider: what tests script and ask. Its functions stand in `spi.rs`.

use core::net::Ipv4Addr;
use std::collections::{HashMap, VecDeque};
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex};

use driver::spi::{Extension, Link, Sharing, SpSocket, SwitchHandle, Upcalls, Waiter, Waiting};
use driver::sys::Fd;
use driver::wsa::WsaError;
use ring_proto::sync::{AtomicU64, Ordering};

use super::{Log, MockFabric, MockMemory, lock};

/// A call that can be made to fail.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[expect(missing_docs, reason = "the WSP functions of these names")]
pub enum Call {
    StartupEx,
    Socket,
    Bind,
    Listen,
    EventSelect,
    EnumNetworkEvents,
    Accept,
    Connect,
    Send,
    Recv,
    SetSockOpt,
    Ioctl,
    RegisterMemory,
}

/// A provider of one node.
#[derive(Debug)]
pub struct MockSan {
    pub(super) name: &'static str,
    pub(super) id: u64,
    pub(super) log: Arc<Log>,
    pub(super) fabric: Arc<MockFabric>,
    pub(super) memory: Arc<MockMemory>,
    pub(super) sharing: Option<Arc<MockSharing>>,
    pub(super) setup: Mutex<Setup>,
}

#[derive(Default)]
pub(super) struct Setup {
    pub(super) script: HashMap<Call, VecDeque<WsaError>>,
    pub(super) supported: Vec<(i32, u32)>,
    pub(super) missing: Vec<Extension>,
    pub(super) is_down: bool,
    pub(super) starts: u32,
    pub(super) upcalls: Option<Arc<dyn Upcalls>>,
    pub(super) last_handle: Option<SwitchHandle>,
}

impl core::fmt::Debug for Setup {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Setup")
            .field("is_down", &self.is_down)
            .field("starts", &self.starts)
            .finish_non_exhaustive()
    }
}

impl MockSan {
    /// Makes a provider whose NICs have these addresses.
    #[must_use]
    pub fn new(
        name: &'static str,
        log: &Arc<Log>,
        fabric: &Arc<MockFabric>,
        addresses: &[Ipv4Addr],
    ) -> Arc<Self> {
        Arc::new(Self::with_sharing(name, log, fabric, addresses, None))
    }

    /// Makes a provider that plays sharing between processes.
    #[must_use]
    pub fn with_sharing(
        name: &'static str,
        log: &Arc<Log>,
        fabric: &Arc<MockFabric>,
        addresses: &[Ipv4Addr],
        sharing: Option<Arc<MockSharing>>,
    ) -> Self {
        let id = {
            let mut state = fabric.lock();
            state.next_provider += 1;
            let id = state.next_provider;
            state.addresses.insert(id, addresses.to_vec());
            id
        };
        Self {
            name,
            id,
            log: Arc::clone(log),
            fabric: Arc::clone(fabric),
            memory: Arc::default(),
            sharing,
            setup: Mutex::default(),
        }
    }

    /// Makes the next call of that kind fail.
    pub fn fail(&self, call: Call, error: WsaError) {
        lock(&self.setup)
            .script
            .entry(call)
            .or_default()
            .push_back(error);
    }

    /// Lets the provider support an option.
    pub fn support(&self, level: i32, name: u32) {
        lock(&self.setup).supported.push((level, name));
    }

    /// Takes an extension away.
    pub fn lack(&self, extension: Extension) {
        lock(&self.setup).missing.push(extension);
    }

    /// Lets every function answer `NetDown` from now on.
    pub fn go_down(&self) {
        lock(&self.setup).is_down = true;
    }

    /// Changes the addresses of the provider's NICs.
    pub fn set_addresses(&self, addresses: &[Ipv4Addr]) {
        self.fabric
            .lock()
            .addresses
            .insert(self.id, addresses.to_vec());
    }

    /// The memory its sockets get.
    #[must_use]
    pub fn memory(&self) -> &MockMemory {
        &self.memory
    }

    /// The upcalls it was started with.
    #[must_use]
    pub fn upcalls(&self) -> Option<Arc<dyn Upcalls>> {
        lock(&self.setup).upcalls.clone()
    }

    /// The switch's descriptor of the socket made last.
    #[must_use]
    pub fn last_handle(&self) -> Option<SwitchHandle> {
        lock(&self.setup).last_handle
    }

    /// Sockets this provider has.
    #[must_use]
    pub fn sockets(&self) -> Vec<SpSocket> {
        let state = self.fabric.lock();
        let mine = state.sockets.iter().filter(|(_, s)| s.provider == self.id);
        let mut ids: Vec<u64> = mine.map(|(&id, _)| id).collect();
        ids.sort_unstable();
        ids.into_iter().map(SpSocket).collect()
    }

    /// Writes a call into the log, and says how it is to end.
    pub(super) fn call(&self, call: Call, line: &str) -> Result<(), WsaError> {
        self.log.add(format!("{}.{line}", self.name));
        self.check(call)
    }

    /// How a call is to end.
    pub(super) fn check(&self, call: Call) -> Result<(), WsaError> {
        let mut setup = lock(&self.setup);
        if setup.is_down {
            return Err(WsaError::NetDown);
        }
        let scripted = setup.script.get_mut(&call).and_then(VecDeque::pop_front);
        scripted.map_or(Ok(()), Err)
    }
}

/// Waiting over heap memory: eventfds that the fabric signals.
#[derive(Debug)]
pub(super) struct MockWaiting {
    pub(super) fabric: Arc<MockFabric>,
    pub(super) fds: Mutex<Vec<Fd>>,
}

impl Waiting for MockWaiting {
    fn function_of(&self, _s: SpSocket) -> Option<u32> {
        Some(0)
    }

    fn functions(&self) -> Vec<(u32, Option<RawFd>)> {
        vec![(0, None)]
    }

    fn acquire(&self, function: u32) -> Result<Waiter, WsaError> {
        let fd = driver::sys::eventfd().map_err(|_| WsaError::Mfile)?;
        let mut fds = lock(&self.fds);
        let waiter = Waiter {
            function,
            vector: u32::try_from(fds.len()).map_err(|_| WsaError::Mfile)?,
            fd: fd.raw(),
        };
        fds.push(fd);
        Ok(waiter)
    }

    fn release(&self, _waiter: Waiter) {}

    fn arm(&self, s: SpSocket, waiter: Waiter) -> Result<(), WsaError> {
        self.fabric.lock().socket(s)?.armed.push(waiter.fd);
        Ok(())
    }

    fn check(&self, _function: u32) {}

    fn arm_events(&self, _waiter: Waiter) -> Result<(), WsaError> {
        // Events are filed at once and signal their objects: there is nothing to arm.
        Ok(())
    }

    fn progress(&self) -> bool {
        false
    }

    fn link(&self, s: SpSocket) -> Link {
        self.fabric.lock().link(s)
    }

    fn mode(&self, _s: SpSocket) -> u32 {
        0
    }
}

/// Plays the processes of a fork family.
#[derive(Debug)]
pub struct MockSharing {
    log: Arc<Log>,
    me: AtomicU64,
    dead: Mutex<Vec<u64>>,
    shared: Mutex<Vec<SpSocket>>,
    untakeable: Mutex<Vec<SpSocket>>,
}

impl MockSharing {
    /// Makes a family in which this process is number `me`.
    #[must_use]
    pub fn new(log: &Arc<Log>, me: u64) -> Arc<Self> {
        Arc::new(Self {
            log: Arc::clone(log),
            me: AtomicU64::new(me),
            dead: Mutex::default(),
            shared: Mutex::default(),
            untakeable: Mutex::default(),
        })
    }

    /// Lets this process be another one from now on.
    pub fn become_process(&self, me: u64) {
        // Relaxed: a test's number.
        self.me.store(me, Ordering::Relaxed);
    }

    /// Lets a process be dead.
    pub fn kill(&self, id: u64) {
        lock(&self.dead).push(id);
    }

    /// Lets others hold a socket too.
    pub fn share(&self, s: SpSocket) {
        lock(&self.shared).push(s);
    }

    /// Lets a socket refuse to be taken from its listener, as one whose connection is gone.
    pub fn spoil(&self, s: SpSocket) {
        lock(&self.untakeable).push(s);
    }
}

impl Sharing for MockSharing {
    fn before_fork(&self) -> Result<(), WsaError> {
        self.log.add("sharing.before_fork");
        Ok(())
    }

    fn after_fork_in_parent(&self, forked: bool) {
        self.log
            .add(format!("sharing.after_fork_in_parent {forked}"));
    }

    fn after_fork_in_child(&self) {
        self.log.add("sharing.after_fork_in_child");
    }

    fn release(&self, s: SpSocket) -> Result<bool, WsaError> {
        self.log.add("sharing.release");
        let mut shared = lock(&self.shared);
        let before = shared.len();
        shared.retain(|&other| other != s);
        Ok(shared.len() < before)
    }

    fn take_from_listener(&self, s: SpSocket, _listener: SpSocket) -> Result<(), WsaError> {
        self.log.add("sharing.take_from_listener");
        if lock(&self.untakeable).contains(&s) {
            return Err(WsaError::NotSock);
        }
        Ok(())
    }

    fn self_id(&self) -> u64 {
        // Relaxed: as in `become_process`.
        self.me.load(Ordering::Relaxed)
    }

    fn is_alive(&self, id: u64) -> bool {
        !lock(&self.dead).contains(&id)
    }
}
