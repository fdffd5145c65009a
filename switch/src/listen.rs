//! Listening: TCP first, then one companion per provider that serves the bound address.
//!
//! Place: inside the program's `listen`. Invariants: TCP's refusal is the program's result and makes no companion; a
//! provider's failure is silent for the program, counted, and leaves the others and TCP as they are.
//! Source.

use core::net::SocketAddrV4;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use driver::spi::{FD_ACCEPT, SharedRegion};
use driver::sys::Fd;
use driver::wsa::WsaError;
use ring_proto::sync::{AtomicU32, Ordering};
use ring_proto::telemetry::Reason;

use crate::accept::Negotiation;
use crate::companion::{self, Companion};
use crate::determine::{self, ListenRoad};
use crate::event::EventFd;
use crate::gate;
use crate::options::{self, OptionStore};
use crate::outcome::Errno;
use crate::provider_table::ProviderRef;
use crate::ready_queue::{MAX_BACKLOG, ReadyQueue};
use crate::socket::{SocketState, Stage, SwitchSocket};
use crate::switch::{Notices, Switch};

/// Of an event object that no process of ours has named yet.
const NO_EPOCH: u32 = u32::MAX;

/// `net.core.somaxconn` of a kernel that does not say.
const DEFAULT_SOMAXCONN: i32 = 4096;

/// The SAN side of a listening socket.
#[derive(Debug)]
pub struct Listening {
    /// Address of the companions: a NIC's, or the wildcard.
    local: SocketAddrV4,
    backlog: AtomicU32,
    queue: ReadyQueue,
    /// Whether the queue may be used; written when the listener is closed, with nobody left inside.
    is_open: RwLock<bool>,
    companions: Mutex<Vec<ListenCompanion>>,
    /// Connections whose sessions this process negotiates.
    pub(crate) negotiations: Mutex<Vec<Negotiation>>,
    /// Whose turn it is to be asked first by `accept`: 0 the SAN's, 1 the kernel's.
    pub(crate) turn: AtomicU32,
    /// Looks of threads of this process that wait for connections.
    pub(crate) driven: AtomicU32,
    /// What the service thread saw of them last.
    pub(crate) driven_seen: AtomicU32,
}

/// One companion of a listener.
#[derive(Debug)]
pub(crate) struct ListenCompanion {
    pub(crate) companion: Companion,
    /// Event object of this process, and the fork epoch it was selected in.
    pub(crate) event: Option<EventFd>,
    pub(crate) epoch: u32,
    /// Its provider failed: closed with the listener, not called until then.
    pub(crate) is_dead: bool,
}

impl Listening {
    /// A listener that another process, or an earlier image of the program, made. Its event objects are named when it is first served.
    pub(crate) fn inherited(
        local: SocketAddrV4,
        backlog: u32,
        companions: Vec<Companion>,
        queue: SharedRegion,
        doorbell: RawFd,
    ) -> Option<Self> {
        let home = companions.first()?;
        let doorbell = EventFd::inherited(doorbell)?;
        let queue = ReadyQueue::inherited(&home.provider, home.socket, queue, doorbell)?;
        let companions = companions.into_iter().map(|companion| ListenCompanion {
            companion,
            event: None,
            epoch: NO_EPOCH,
            is_dead: false,
        });
        Some(Self {
            local,
            backlog: AtomicU32::new(backlog),
            queue,
            is_open: RwLock::new(true),
            companions: Mutex::new(companions.collect()),
            negotiations: Mutex::default(),
            turn: AtomicU32::new(0),
            driven: AtomicU32::new(0),
            driven_seen: AtomicU32::new(0),
        })
    }

    /// The accept queue.
    #[must_use]
    pub fn queue(&self) -> &ReadyQueue {
        &self.queue
    }

    /// Address of the companions.
    #[must_use]
    pub fn local(&self) -> SocketAddrV4 {
        self.local
    }

    /// Keeps the listener from being closed meanwhile; `None` when it is.
    pub(crate) fn hold_open(&self) -> Option<RwLockReadGuard<'_, bool>> {
        let open = self.is_open.read().unwrap_or_else(PoisonError::into_inner);
        open.then_some(open)
    }

    /// Keeps everybody out from now on. Returns whether this call did it.
    pub(crate) fn shut(&self) -> bool {
        let mut open = self.is_open.write().unwrap_or_else(PoisonError::into_inner);
        core::mem::replace(&mut *open, false)
    }

    pub(crate) fn companions(&self) -> MutexGuard<'_, Vec<ListenCompanion>> {
        self.companions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn negotiations(&self) -> MutexGuard<'_, Vec<Negotiation>> {
        self.negotiations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives an option set after `listen` to the companions. The listener stays up whatever a provider says of it.
    pub(crate) fn forward_option(&self, level: i32, name: i32, value: &[u8]) {
        let Some(_open) = self.hold_open() else {
            return;
        };
        for c in self.companions().iter().filter(|c| !c.is_dead) {
            let sp = &c.companion.provider.sp;
            if let Err(error) = options::forward(&**sp, c.companion.socket, level, name, value) {
                c.companion.provider.note(error);
            }
        }
    }

    /// For the service thread: whether threads of this process looked since it last asked, and so take the connections themselves.
    pub(crate) fn is_driven(&self) -> bool {
        // Relaxed: a number that only the service thread stores.
        let driven = self.driven.load(Ordering::Relaxed);
        self.driven_seen.swap(driven, Ordering::Relaxed) != driven
    }

    /// The backlog, as the queue counts it.
    pub(crate) fn limit(&self) -> u32 {
        // Relaxed: a number of its own.
        self.backlog.load(Ordering::Relaxed)
    }

    fn backlog(&self) -> i32 {
        i32::try_from(self.limit()).unwrap_or(DEFAULT_SOMAXCONN)
    }

    /// Notes the backlog of the providers, and how many may wait here.
    fn set_backlog(&self, backlog: i32, places: i32) {
        // Relaxed: as in `limit`.
        self.backlog
            .store(backlog.unsigned_abs(), Ordering::Relaxed);
        self.queue.lock().set_limit(places.unsigned_abs());
    }
}

impl Switch {
    /// Listens: on TCP, whose result is the program's, and on every provider that serves the bound address.
    ///
    /// # Errors
    /// TCP's alone.
    pub fn listen(&self, socket: &Arc<SwitchSocket>, backlog: i32) -> Result<(), Errno> {
        let mut failures = Vec::new();
        let mut notices = Notices::default();
        let result = {
            let _inside = gate::enter();
            let mut state = socket.lock();
            self.listen_locked(socket, &mut state, backlog, &mut failures, &mut notices)
        };
        for reason in failures {
            self.host.fell_back(socket, reason);
        }
        self.tell(socket, &notices);
        result
    }

    fn listen_locked(
        &self,
        socket: &Arc<SwitchSocket>,
        state: &mut SocketState,
        backlog: i32,
        failures: &mut Vec<Reason>,
        notices: &mut Notices,
    ) -> Result<(), Errno> {
        if socket.is_on_san() {
            // As the kernel answers for a connected socket; the parked one does not know.
            return Err(libc::EINVAL);
        }
        self.tcp.listen(socket.fd(), backlog)?;
        let places = places(backlog);
        let backlog = effective_backlog(backlog);
        if let Some(listening) = state.listening.clone() {
            let Some(_open) = listening.hold_open() else {
                return Ok(());
            };
            // a second listen changes the backlog.
            listening.set_backlog(backlog, places);
            for c in listening.companions().iter_mut().filter(|c| !c.is_dead) {
                if let Err(error) = listen_on(&c.companion, backlog) {
                    c.companion.provider.note(error);
                    c.is_dead |= error == WsaError::NetDown;
                }
            }
            return Ok(());
        }
        // an unbound socket has its port now, and R-62 wants the kernel's word.
        let Ok(local) = self.tcp.local_address(socket.fd()) else {
            socket.enter(Stage::Tcp);
            return Ok(());
        };
        state.bound = Some(local);
        let table = self.started_table();
        let road = determine::listen(&self.config, &table, local, &state.options);
        drop(table);
        let (providers, local) = match road {
            ListenRoad::San { providers, local } => (providers, local),
            ListenRoad::Tcp(reason) => {
                state.reason = Some(reason);
                socket.enter(Stage::Tcp);
                return Ok(());
            }
        };
        let mut companions = Vec::new();
        for provider in &providers {
            match self.listening_companion(provider, local, &state.options, backlog) {
                Ok(companion) => companions.push(companion),
                Err(reason) => failures.push(reason),
            }
        }
        let queue = companions.first().and_then(|first| {
            let doorbell = EventFd::new().ok()?;
            let home = &first.companion;
            ReadyQueue::new(&home.provider, home.socket, doorbell)
        });
        let Some(queue) = queue else {
            if !companions.is_empty() {
                failures.push(Reason::SpListen);
            }
            for c in companions {
                c.companion.close();
            }
            state.reason = failures.last().copied();
            socket.enter(Stage::Tcp);
            return Ok(());
        };
        let listening = Arc::new(Listening {
            local,
            backlog: AtomicU32::new(0),
            queue,
            is_open: RwLock::new(true),
            companions: Mutex::new(companions),
            negotiations: Mutex::default(),
            turn: AtomicU32::new(0),
            driven: AtomicU32::new(0),
            driven_seen: AtomicU32::new(0),
        });
        listening.set_backlog(backlog, places);
        state.listening = Some(listening);
        socket.enter(Stage::SanListening);
        let mut registry = self.lock_registry();
        registry.listeners.retain(|l| l.strong_count() > 0);
        registry.listeners.push(Arc::downgrade(socket));
        notices.wake_service = true;
        notices.changed = true;
        Ok(())
    }

    /// Adds a companion of a new provider to a wildcard listener. Its failure leaves the listener as it was.
    pub(crate) fn extend_listener(&self, socket: &Arc<SwitchSocket>, provider: &ProviderRef) {
        let mut failure = None;
        {
            let _inside = gate::enter();
            let state = socket.lock();
            let Some(listening) = state.listening.clone() else {
                return;
            };
            if !listening.local.ip().is_unspecified() {
                return;
            }
            let backlog = listening.backlog();
            match self.listening_companion(provider, listening.local, &state.options, backlog) {
                Ok(companion) => match listening.hold_open() {
                    Some(_open) => listening.companions().push(companion),
                    None => companion.companion.close(),
                },
                Err(reason) => failure = Some(reason),
            }
        }
        match failure {
            Some(reason) => self.host.fell_back(socket, reason),
            None => self.host.wake_service(),
        }
    }

    /// Steps 3 to 7 of the seed's figure for a listener: socket, bind, options, WSPListen, then WSPEventSelect.
    fn listening_companion(
        &self,
        provider: &ProviderRef,
        local: SocketAddrV4,
        options: &OptionStore,
        backlog: i32,
    ) -> Result<ListenCompanion, Reason> {
        let companion = companion::create(provider, local, options)?;
        if let Err(error) = listen_on(&companion, backlog) {
            provider.note(error);
            companion.close();
            return Err(Reason::SpListen);
        }
        match self.select_accept(&companion) {
            Ok(event) => Ok(ListenCompanion {
                companion,
                event: Some(event),
                epoch: self.current_epoch(),
                is_dead: false,
            }),
            Err(reason) => {
                companion.close();
                Err(reason)
            }
        }
    }

    /// Names an event object for a listening companion.
    pub(crate) fn select_accept(&self, companion: &Companion) -> Result<EventFd, Reason> {
        let event = EventFd::new().map_err(|_| Reason::SpEventSelect)?;
        let sp = &companion.provider.sp;
        sp.wsp_event_select(companion.socket, Some(event.fd()), FD_ACCEPT)
            .map_err(|error| {
                companion.provider.note(error);
                Reason::SpEventSelect
            })?;
        Ok(event)
    }
}

fn listen_on(companion: &Companion, backlog: i32) -> Result<(), WsaError> {
    companion.provider.sp.wsp_listen(companion.socket, backlog)
}

/// The backlog as the kernel understands it: negative means the most, 0 lets one connection in.
fn effective_backlog(backlog: i32) -> i32 {
    let most = somaxconn().min(MAX_BACKLOG.cast_signed());
    if backlog < 0 {
        most
    } else {
        backlog.clamp(1, most)
    }
}

/// How many connections may wait for a backlog: the kernel's queue is full when there are more than that, so one more.
fn places(backlog: i32) -> i32 {
    let most = somaxconn().min(MAX_BACKLOG.cast_signed());
    if (0..most).contains(&backlog) {
        backlog + 1
    } else {
        most
    }
}

fn somaxconn() -> i32 {
    let path = c"/proc/sys/net/core/somaxconn";
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
    let mut text = [0; 16];
    rustix::fs::open(path, flags, rustix::fs::Mode::empty())
        .ok()
        .map(Fd::from_owned)
        .and_then(|file| rustix::io::read(&file, &mut text).ok())
        .and_then(|len| core::str::from_utf8(&text[..len]).ok()?.trim().parse().ok())
        .unwrap_or(DEFAULT_SOMAXCONN)
}
