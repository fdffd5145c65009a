//! What one program image leaves to the next: SAN sockets across `exec`, and to processes that are no forked children.
//!
//! Place: the preload library describes the sockets that go along ([`Switch::bequeath`]) before the image is replaced; the library in
//! the heir asks [`Switch::inherit`] for each descriptor that turns out to be one of them.
//! Invariants: a socket is known again by the kernel's cookie of its descriptor, so copies, moves and closes between the two images
//! need not be followed. The heir holds what it was left before the giver ends; what it does not find among its descriptors it
//! closes. An estate is text of our own that nobody else wrote; one that does not parse is none.
//! Source. Leaves out: epoll sets, which the heir makes anew.

use core::net::{SocketAddr, SocketAddrV4};
use std::os::fd::RawFd;
use std::sync::Arc;

use driver::spi::{Legacy, SharedRegion, SpSocket};
use driver::wsa::WsaError;
use serde::{Deserialize, Serialize};

use crate::companion::Companion;
use crate::gate;
use crate::listen::Listening;
use crate::options::OptionStore;
use crate::outcome::{Errno, now_ns};
use crate::session::Conn;
use crate::socket::{SocketState, Stage, SwitchSocket};
use crate::switch::Switch;
use crate::sys;

/// Everything that is left.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Estate {
    /// The provider's part, for its heir's constructor.
    pub words: Vec<u64>,
    /// The heir's process socket.
    pub life: RawFd,
    /// The sockets.
    pub sockets: Vec<Heirloom>,
}

/// A socket that is left.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Heirloom {
    /// The kernel's name of the open socket behind the descriptors.
    pub cookie: u64,
    /// What the preload library remembers of its addresses.
    pub endpoint: [u64; 2],
    domain: i32,
    is_nonblocking: bool,
    options: OptionStore,
    bound: Option<SocketAddr>,
    local: Option<SocketAddr>,
    peer: Option<SocketAddr>,
    kind: Kind,
}

/// What its companion is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
enum Kind {
    Connected {
        companion: Named,
        record: u64,
    },
    Listening {
        local: SocketAddrV4,
        backlog: u32,
        companions: Vec<Named>,
        queue: [u64; 2],
        doorbell: RawFd,
    },
    /// The kernel's alone: only its names need to be known.
    Plain,
}

/// A companion by name: its provider's number, and the provider's for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Named {
    provider: u32,
    socket: u64,
}

/// A socket that is to be left.
#[derive(Clone, Debug)]
pub struct Leaving {
    /// As in [`Heirloom`].
    pub cookie: u64,
    /// As in [`Heirloom`].
    pub endpoint: [u64; 2],
    /// The switch's part of it, if there is one.
    pub socket: Option<Arc<SwitchSocket>>,
}

/// An estate that is under way: what the giver must let the heir have.
#[derive(Debug, Default)]
pub struct Parting {
    /// Descriptors the heir needs, under their numbers.
    pub needed: Vec<RawFd>,
    /// Those of them that were made for the heir, and are the caller's to close.
    pub made: Vec<RawFd>,
}

/// Longest wait for a connect to settle before its socket goes to an heir.
const SETTLE_NS: u64 = 2_000_000_000;

impl Switch {
    /// Describes `sockets` for an heir, and makes it a holder of them. Of those that have no companion only the names are told.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for a provider that shares with forked children only, `ENETDOWN`.
    pub fn bequeath(&self, sockets: &[Leaving]) -> Result<(Estate, Parting), Errno> {
        let _inside = gate::enter();
        let heirlooms: Vec<Heirloom> = sockets
            .iter()
            .map(|l| heirloom(l.cookie, l.endpoint, l.socket.as_deref()))
            .collect();
        // One provider shares with heirs, if any: its functions keep their indices.
        let companions: Vec<Named> = heirlooms.iter().flat_map(Heirloom::companions).collect();
        let Some(number) = companions.first().map(|first| first.provider) else {
            let estate = Estate {
                words: Vec::new(),
                life: -1,
                sockets: heirlooms,
            };
            return Ok((estate, Parting::default()));
        };
        if companions.iter().any(|c| c.provider != number) {
            return Err(libc::EOPNOTSUPP);
        }
        let provider = self.provider_by_number(number).ok_or(libc::ENETDOWN)?;
        let sharing = provider.sharing.as_ref().ok_or(libc::EOPNOTSUPP)?;
        let held: Vec<SpSocket> = companions.iter().map(|c| SpSocket(c.socket)).collect();
        let Legacy {
            life,
            mut made,
            lent,
            words,
        } = sharing.bequeath(&held).map_err(WsaError::errno)?;
        made.push(life);
        let doorbells = heirlooms.iter().filter_map(|h| match h.kind {
            Kind::Listening { doorbell, .. } => Some(doorbell),
            Kind::Connected { .. } | Kind::Plain => None,
        });
        let needed = lent.iter().chain(&made).copied().chain(doorbells).collect();
        let estate = Estate {
            words,
            life,
            sockets: heirlooms,
        };
        Ok((estate, Parting { needed, made }))
    }

    /// Makes the socket behind `fd` from what was left of it. `None`: its provider does not know it any more, it is the kernel's
    /// socket alone now.
    #[must_use]
    pub fn inherit(&self, heirloom: &Heirloom, fd: RawFd) -> Option<Arc<SwitchSocket>> {
        let _inside = gate::enter();
        // Providers must be there, as after the first connect or listen of an image.
        drop(self.started_table());
        let state = SocketState {
            options: heirloom.options.clone(),
            bound: heirloom.bound,
            local: heirloom.local,
            peer: heirloom.peer,
            is_reported: true,
            ..SocketState::default()
        };
        let make = |stage, state| {
            let is_nonblocking = heirloom.is_nonblocking;
            Arc::new(SwitchSocket::with(
                heirloom.domain,
                fd,
                is_nonblocking,
                stage,
                state,
            ))
        };
        match &heirloom.kind {
            Kind::Plain => None,
            Kind::Connected { companion, record } => {
                let provider = self.provider_by_number(companion.provider)?;
                let sp = SpSocket(companion.socket);
                provider.sharing.as_ref()?.take_up(sp).ok()?;
                let conn = Conn::attach(provider, sp, *record)?;
                let socket = make(Stage::SanConnected, state);
                socket.publish(Arc::new(conn));
                self.register_connected(&socket);
                Some(socket)
            }
            Kind::Listening {
                local,
                backlog,
                companions,
                queue: [offset, len],
                doorbell,
            } => {
                let companions: Vec<Companion> = companions
                    .iter()
                    .filter_map(|named| {
                        let provider = self.provider_by_number(named.provider)?;
                        let socket = SpSocket(named.socket);
                        provider.sharing.as_ref()?.take_up(socket).ok()?;
                        Some(Companion {
                            provider,
                            socket,
                            local: *local,
                        })
                    })
                    .collect();
                let region = SharedRegion {
                    offset: *offset,
                    len: *len,
                };
                let listening =
                    Listening::inherited(*local, *backlog, companions, region, *doorbell)?;
                let state = SocketState {
                    listening: Some(Arc::new(listening)),
                    ..state
                };
                let socket = make(Stage::SanListening, state);
                let mut registry = self.lock_registry();
                registry.listeners.push(Arc::downgrade(&socket));
                Some(socket)
            }
        }
    }

    /// Waits, for a moment, until a connect under way has ended: an heir could not go on with it.
    pub fn settle_connect(&self, socket: &Arc<SwitchSocket>) {
        let end = now_ns().saturating_add(SETTLE_NS);
        while socket.is_connecting() && now_ns() < end {
            // What it ends with is in the socket.
            let _step = self.connect_progress(socket);
            sys::poll(&mut [], Some(100_000)).ok();
        }
    }
}

impl Heirloom {
    fn companions(&self) -> impl Iterator<Item = Named> + '_ {
        let (one, many) = match &self.kind {
            Kind::Connected { companion, .. } => (Some(*companion), &[][..]),
            Kind::Listening { companions, .. } => (None, companions.as_slice()),
            Kind::Plain => (None, &[][..]),
        };
        one.into_iter().chain(many.iter().copied())
    }

    /// Whether it is a connection.
    #[must_use]
    pub const fn is_connection(&self) -> bool {
        matches!(self.kind, Kind::Connected { .. })
    }

    /// Whether nothing but its names is told.
    #[must_use]
    pub const fn is_plain(&self) -> bool {
        matches!(self.kind, Kind::Plain)
    }
}

fn heirloom(cookie: u64, endpoint: [u64; 2], socket: Option<&SwitchSocket>) -> Heirloom {
    socket
        .and_then(|socket| companion_of(cookie, endpoint, socket))
        .unwrap_or(Heirloom {
            cookie,
            endpoint,
            domain: 0,
            is_nonblocking: false,
            options: OptionStore::default(),
            bound: None,
            local: None,
            peer: None,
            kind: Kind::Plain,
        })
}

fn companion_of(cookie: u64, endpoint: [u64; 2], socket: &SwitchSocket) -> Option<Heirloom> {
    let state = socket.lock();
    let kind = match socket.stage() {
        Stage::SanConnected => {
            let conn = socket.conn()?;
            Kind::Connected {
                companion: Named {
                    provider: conn.provider().index,
                    socket: conn.sp().0,
                },
                record: conn.record_offset(),
            }
        }
        Stage::SanListening => {
            let listening = state.listening.as_ref()?;
            let region = listening.queue().region();
            Kind::Listening {
                local: listening.local(),
                backlog: listening.limit(),
                companions: listening
                    .companions()
                    .iter()
                    .filter(|c| !c.is_dead)
                    .map(|c| Named {
                        provider: c.companion.provider.index,
                        socket: c.companion.socket.0,
                    })
                    .collect(),
                queue: [region.offset, region.len],
                doorbell: listening.queue().doorbell().fd(),
            }
        }
        _ => return None,
    };
    Some(Heirloom {
        cookie,
        endpoint,
        domain: socket.domain(),
        is_nonblocking: socket.is_nonblocking(),
        options: state.options.clone(),
        bound: state.bound,
        local: state.local,
        peer: state.peer,
        kind,
    })
}
