//! The switch's private structure of one stream socket (R-29): one per open file description, whatever the number of descriptors.
//!
//! Place: the preload library's table maps descriptors to `Arc<SwitchSocket>`; the calls of [`crate::Switch`] take it.
//! Invariants: [`Stage`] has no way from [`Stage::SanConnected`] back to [`Stage::Tcp`] (R-72), `SwitchSocket::enter` refuses it;
//! the state's mutex is never held across a wait; stage and connection are readable without it. Hot: `conn`, `stage`.
//!
//! ```text
//! Fresh -> TcpBound -> Tcp                          (determination: TCP; or fall-back)
//!                   -> SanListening                 (TCP listens too)
//!                   -> SanConnecting -> Negotiating -> SanConnected
//!                            |  |          |               |
//!                            |  +-> Tcp    +-> Failed      +-> Failed
//!                            +-> Failed (final code)            every state -> Closed
//! ```
//! Source: R-29, R-35, R-36.

use core::net::{SocketAddr, SocketAddrV4};
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use ring_proto::sync::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use ring_proto::telemetry::Reason;

use crate::companion::Companion;
use crate::event::EventFd;
use crate::gate;
use crate::listen::Listening;
use crate::options::OptionStore;
use crate::outcome::Errno;
use crate::session::{Conn, announce};

/// Where a socket stands.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Created, not bound.
    Fresh = 0,
    /// Bound by the program.
    TcpBound = 1,
    /// Determined for TCP: every later call is the kernel's.
    Tcp = 2,
    /// Listening on TCP and on at least one provider.
    SanListening = 3,
    /// A provider's connect is under way.
    SanConnecting = 4,
    /// Connected by the provider, the session negotiates.
    Negotiating = 5,
    /// The SAN carries the stream.
    SanConnected = 6,
    /// A connect failed with a final code; the program may connect again (R-113).
    Failed = 7,
    /// Closed.
    Closed = 8,
}

impl Stage {
    const ALL: [Self; 9] = [
        Self::Fresh,
        Self::TcpBound,
        Self::Tcp,
        Self::SanListening,
        Self::SanConnecting,
        Self::Negotiating,
        Self::SanConnected,
        Self::Failed,
        Self::Closed,
    ];

    /// Whether a socket may go from here to `next`.
    #[must_use]
    pub const fn leads_to(self, next: Self) -> bool {
        match self {
            // R-72: established over the SAN, TCP can no longer serve the socket. A dissolved one starts anew (R-112).
            Self::SanConnected => matches!(
                next,
                Self::Failed | Self::Closed | Self::TcpBound | Self::Fresh
            ),
            Self::Negotiating => matches!(
                next,
                Self::SanConnected | Self::Failed | Self::Closed | Self::TcpBound | Self::Fresh
            ),
            Self::Closed => false,
            _ => true,
        }
    }
}

/// What pollers see of a failed connect until its error is taken (R-73).
const FAILED_BITS: i32 =
    libc::EPOLLERR | libc::EPOLLHUP | libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP;

/// One stream socket of the program.
#[derive(Debug)]
pub struct SwitchSocket {
    id: u64,
    domain: i32,
    fd: AtomicI32,
    stage: AtomicU32,
    nonblocking: AtomicU32,
    /// 1: the program set an owner for signals.
    owned: AtomicU32,
    conns: ConnChain,
    state: Mutex<SocketState>,
}

/// What the mutex protects. Lock order: see [`crate::switch`].
#[derive(Debug, Default)]
pub(crate) struct SocketState {
    /// What the program set.
    pub(crate) options: OptionStore,
    /// Address of the TCP socket, from the kernel, once bound (R-34).
    pub(crate) bound: Option<SocketAddr>,
    /// Name of this end of a SAN connection, as the program sees it (R-35).
    pub(crate) local: Option<SocketAddr>,
    /// Name of the other end.
    pub(crate) peer: Option<SocketAddr>,
    /// The listener's companions and queue.
    pub(crate) listening: Option<Arc<Listening>>,
    /// The connect under way.
    pub(crate) attempt: Option<Attempt>,
    /// Why the socket is on TCP.
    pub(crate) reason: Option<Reason>,
    /// Error of a connect that nobody was told yet: `SO_ERROR`.
    pub(crate) error: Option<Errno>,
    /// Whether the program knows that its connect succeeded (R-110).
    pub(crate) is_reported: bool,
}

/// A connect under way on a provider.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) companion: Companion,
    pub(crate) destination: SocketAddrV4,
    /// Event object of the companion, and what waiters of this connect wait on.
    pub(crate) event: Option<EventFd>,
    /// End of the provider's time, then of the negotiation's.
    pub(crate) deadline_ns: u64,
    /// The session, once the provider has connected.
    pub(crate) conn: Option<Arc<Conn>>,
    /// When the program called.
    pub(crate) begun_ns: u64,
    /// Whether the program's call has returned or waits: a fall-back then starts the kernel's connect by itself.
    pub(crate) is_pending: bool,
}

impl SwitchSocket {
    /// Makes the structure of a socket that TCP has created (R-29).
    #[must_use]
    pub fn new(domain: i32, fd: RawFd, is_nonblocking: bool) -> Arc<Self> {
        Arc::new(Self::with(
            domain,
            fd,
            is_nonblocking,
            Stage::Fresh,
            SocketState::default(),
        ))
    }

    /// Makes the structure of a socket that is not fresh.
    pub(crate) fn with(
        domain: i32,
        fd: RawFd,
        is_nonblocking: bool,
        stage: Stage,
        state: SocketState,
    ) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            // Relaxed: only uniqueness counts.
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            domain,
            fd: AtomicI32::new(fd),
            stage: AtomicU32::new(stage as u32),
            nonblocking: AtomicU32::new(u32::from(is_nonblocking)),
            owned: AtomicU32::new(0),
            conns: ConnChain::default(),
            state: Mutex::new(state),
        }
    }

    /// Number of this socket in its process.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// `AF_INET` or `AF_INET6`.
    #[must_use]
    pub fn domain(&self) -> i32 {
        self.domain
    }

    /// A descriptor by which this process reaches the kernel socket now.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        // Relaxed: a plain number; the caller's table orders descriptor changes.
        self.fd.load(Ordering::Relaxed)
    }

    /// Tells another descriptor for the kernel socket, after the old one was closed while a duplicate lives on.
    pub fn set_fd(&self, fd: RawFd) {
        // Relaxed: as in `fd`.
        self.fd.store(fd, Ordering::Relaxed);
    }

    /// Stores an option that the program set and its kernel socket must not have (R-36).
    pub fn store_option(&self, level: i32, name: i32, value: &[u8]) {
        let _inside = gate::enter();
        self.lock().options.store(level, name, value);
    }

    /// Where the socket stands, without a lock.
    #[must_use]
    pub fn stage(&self) -> Stage {
        // Relaxed: what a stage implies is read under the state's lock or from a cell with its own ordering.
        let number = self.stage.load(Ordering::Relaxed) as usize;
        Stage::ALL.get(number).copied().unwrap_or(Stage::Closed)
    }

    /// Whether the program made the socket non-blocking.
    #[must_use]
    pub fn is_nonblocking(&self) -> bool {
        // Relaxed: a flag of its own.
        self.nonblocking.load(Ordering::Relaxed) != 0
    }

    /// Stores the program's `O_NONBLOCK`, after the kernel socket took it (R-179).
    pub(crate) fn store_nonblocking(&self, is_nonblocking: bool) {
        // Relaxed: as in `is_nonblocking`.
        self.nonblocking
            .store(u32::from(is_nonblocking), Ordering::Relaxed);
    }

    /// The established SAN connection, without a lock. It stays valid, if dead, after a disconnect.
    #[must_use]
    pub fn conn(&self) -> Option<&Arc<Conn>> {
        self.conns.current()
    }

    /// Readiness as `EPOLL*` bits (R-147); `None`: the kernel socket's own. A listener is readable when the kernel's socket or the
    /// doorbell is.
    #[must_use]
    pub fn readiness(&self) -> Option<u32> {
        match self.stage() {
            Stage::SanConnected => self.conn().map(|c| c.readiness()),
            Stage::SanConnecting | Stage::Negotiating => Some(0),
            Stage::Failed if self.has_error() => Some(FAILED_BITS.cast_unsigned()),
            _ => None,
        }
    }

    /// Why the socket is on TCP, if it is.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        let _inside = gate::enter();
        self.lock().reason
    }

    /// Takes note that the program set an owner for signals.
    pub fn set_owned(&self) {
        // Relaxed: a flag; the kernel keeps the owner.
        self.owned.store(1, Ordering::Relaxed);
        if let Some(conn) = self.conn() {
            conn.set_owned(self.fd());
        }
    }

    /// Signals the owner of a listener that somebody waits.
    pub(crate) fn announce_arrival(&self) {
        // Relaxed: as in `set_owned`.
        if self.owned.load(Ordering::Relaxed) != 0 {
            announce::arrival(self.fd());
        }
    }

    /// Value of an option of type `int` that the program set.
    #[must_use]
    pub fn int_option(&self, level: i32, name: i32) -> Option<i32> {
        self.lock().options.int(level, name)
    }

    /// Limit of blocking calls: `SO_RCVTIMEO` or `SO_SNDTIMEO`, in nanoseconds.
    #[must_use]
    pub fn timeout_ns(&self, name: i32) -> Option<u64> {
        let _inside = gate::enter();
        self.lock().options.timeout_ns(name)
    }

    /// Descriptor that is readable while a listener has a SAN connection ready.
    #[must_use]
    pub fn doorbell_fd(&self) -> Option<RawFd> {
        let _inside = gate::enter();
        let state = self.lock();
        state.listening.as_ref().map(|l| l.queue().doorbell().fd())
    }

    /// Descriptor that becomes readable when a connect under way has come further, and the end of its present step.
    #[must_use]
    pub fn connect_event(&self) -> Option<(RawFd, u64)> {
        let _inside = gate::enter();
        let state = self.lock();
        let attempt = state.attempt.as_ref()?;
        Some((attempt.event.as_ref()?.fd(), attempt.deadline_ns))
    }

    /// Whether an error of a connect waits to be told: pollers see `ERR|HUP|IN|OUT|RDHUP`.
    #[must_use]
    pub fn has_error(&self) -> bool {
        let _inside = gate::enter();
        self.lock().error.is_some()
    }

    /// Whether a connect over a provider is under way.
    #[must_use]
    pub fn is_connecting(&self) -> bool {
        matches!(self.stage(), Stage::SanConnecting | Stage::Negotiating)
    }

    /// Whether its connect began longer than `span_ns` ago, or has ended; false while somebody works on it.
    pub(crate) fn is_connect_older(&self, now_ns: u64, span_ns: u64) -> bool {
        let is_old = |attempt: &Attempt| now_ns.saturating_sub(attempt.begun_ns) >= span_ns;
        self.state
            .try_lock()
            .is_ok_and(|state| state.attempt.as_ref().is_none_or(is_old))
    }

    /// Whether the socket is connected, or connecting, over a provider.
    #[must_use]
    pub fn is_on_san(&self) -> bool {
        self.is_connecting() || self.stage() == Stage::SanConnected
    }

    /// The state, for those inside the gate.
    pub(crate) fn lock(&self) -> MutexGuard<'_, SocketState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves to another stage; under the state's lock.
    pub(crate) fn enter(&self, next: Stage) {
        let now = self.stage();
        debug_assert!(now == next || now.leads_to(next), "{now:?} -> {next:?}");
        if now == next || now.leads_to(next) {
            // Relaxed: as in `stage`.
            self.stage.store(next as u32, Ordering::Relaxed);
        }
    }

    /// Makes an established connection readable; under the state's lock, before the stage says so.
    pub(crate) fn publish(&self, conn: Arc<Conn>) {
        self.conns.publish(conn);
    }

    /// Forgets the established connection, for a socket that is dissolved and may connect again.
    pub(crate) fn retire_conn(&self) {
        self.conns.retire();
    }
}

/// Connections of a socket over its life, nearly always one. Readers need no lock, so none is ever removed.
#[derive(Debug, Default)]
struct ConnChain {
    conn: OnceLock<Arc<Conn>>,
    next: OnceLock<Box<ConnChain>>,
}

impl ConnChain {
    fn last(&self) -> &Self {
        let mut link = self;
        while let Some(next) = link.next.get() {
            link = next;
        }
        link
    }

    fn current(&self) -> Option<&Arc<Conn>> {
        self.last().conn.get()
    }

    fn publish(&self, conn: Arc<Conn>) {
        if let Err(conn) = self.last().conn.set(conn) {
            self.retire();
            // A fresh link is empty, and the state's lock keeps others out.
            self.last().conn.get_or_init(|| conn);
        }
    }

    fn retire(&self) {
        let last = self.last();
        if last.conn.get().is_some() {
            last.next.get_or_init(Box::default);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r072_no_way_leads_from_an_established_san_connection_to_tcp() {
        for stage in [Stage::SanConnected, Stage::Negotiating, Stage::Closed] {
            assert!(!stage.leads_to(Stage::Tcp));
            assert!(!stage.leads_to(Stage::SanConnecting));
        }
        assert!(Stage::SanConnecting.leads_to(Stage::Tcp));
        assert!(Stage::SanConnected.leads_to(Stage::Failed));
    }
}
