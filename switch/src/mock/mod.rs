//! Recording doubles: a SAN provider, kernel TCP and a host that write every call into one common log.
//!
//! Place: tests of the switch; nothing else uses them. The common log proves the order of calls over both kinds of provider.
//! Invariants: the SAN double is a whole provider over heap memory: sockets with generations, listeners, accept with condition,
//! messages in order, receiver-not-ready hold, RDMA, aborts. Any call can be made to fail, next time, with any code.
//! Leaves out: other processes, unless [`san::MockSharing`] is told to play them.

mod fabric;
mod memory;
pub mod san;
mod spi;
pub mod tcp;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ring_proto::sync::{AtomicU64, Ordering};
use ring_proto::telemetry::Reason;

use crate::socket::SwitchSocket;
use crate::switch::Host;

pub use fabric::MockFabric;
pub use memory::MockMemory;
pub use san::{Call, MockSan, MockSharing};
pub use tcp::{MockTcp, TcpCall};

/// The common log.
#[derive(Debug, Default)]
pub struct Log {
    lines: Mutex<Vec<String>>,
}

impl Log {
    /// Makes an empty log.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Adds a call.
    pub fn add(&self, line: impl Into<String>) {
        lock(&self.lines).push(line.into());
    }

    /// Takes everything out.
    #[must_use]
    pub fn take(&self) -> Vec<String> {
        core::mem::take(&mut *lock(&self.lines))
    }

    /// Calls whose line contains `part`.
    #[must_use]
    pub fn count(&self, part: &str) -> usize {
        lock(&self.lines)
            .iter()
            .filter(|l| l.contains(part))
            .count()
    }
}

/// A host that records what the switch tells it, with a clock that stands still until it is moved.
#[derive(Debug)]
pub struct MockHost {
    log: Arc<Log>,
    now_ns: AtomicU64,
}

impl MockHost {
    /// Makes a host that writes into `log`.
    #[must_use]
    pub fn new(log: &Arc<Log>) -> Arc<Self> {
        Arc::new(Self {
            log: Arc::clone(log),
            now_ns: AtomicU64::new(1),
        })
    }

    /// Lets time pass.
    pub fn advance_ns(&self, ns: u64) {
        // Relaxed: a clock of a test.
        self.now_ns.fetch_add(ns, Ordering::Relaxed);
    }
}

impl Host for MockHost {
    fn wake_service(&self) {}

    fn socket_changed(&self, socket: &Arc<SwitchSocket>) {
        self.log
            .add(format!("host.socket_changed {:?}", socket.stage()));
    }

    fn fell_back(&self, _socket: &SwitchSocket, reason: Reason) {
        self.log.add(format!("host.fell_back {}", reason.name()));
    }

    fn established(&self, _socket: &Arc<SwitchSocket>) {
        self.log.add("host.established");
    }

    fn now_ns(&self) -> u64 {
        // Relaxed: as in `advance_ns`.
        self.now_ns.load(Ordering::Relaxed)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
