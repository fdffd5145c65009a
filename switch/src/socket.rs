//! The switch's private structure of one stream socket (R-29): one per open file description, whatever the number of descriptors.
//!
//! Place: the preload library's table maps descriptors to `Arc<SwitchSocket>`; the calls of [`crate::Switch`] take it.
//! Invariants: [`Stage`] has no way from [`Stage::SanConnected`] back to [`Stage::Tcp`] (R-72); the state's mutex is never held
//! across a wait; the stage is readable without it.
//!
//! ```text
//! Fresh -> TcpBound -> Tcp                          (determination: TCP; or fall-back)
//!                   -> SanListening                 (TCP listens too)
//!                   -> SanConnecting -> Negotiating -> SanConnected
//!                            |  |          |               |
//!                            |  +-> Tcp    +-> Failed      +-> Failed
//!                            +-> Failed (final code)            every state -> Closed
//! ```
//! Source: R-29, R-35, R-36, wsd-reference section 20.

use std::os::fd::RawFd;

use ring_proto::sync::{AtomicI32, AtomicU32, Ordering};

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
}

/// One stream socket of the program.
#[derive(Debug)]
pub struct SwitchSocket {
    domain: i32,
    fd: AtomicI32,
    stage: AtomicU32,
}

impl SwitchSocket {
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

    /// Where the socket stands, without a lock.
    #[must_use]
    pub fn stage(&self) -> Stage {
        // Relaxed: what a stage implies is read under the state's lock or from a cell with its own ordering.
        let number = self.stage.load(Ordering::Relaxed) as usize;
        Stage::ALL.get(number).copied().unwrap_or(Stage::Closed)
    }
}
