//! The wire of namespace mode: carries Ethernet frames between the nodes' interfaces, under the links of the cluster.
//!
//! Place: the server starts one when it is given TAP devices; a thread of its own reads frames from them and writes what arrives. The engine
//! shares nothing with it but the links' models, so RDMA traffic never waits for it.
//! Invariants: nobody is trusted: a frame is bytes with two addresses. A TAP that fails stops its own node's frames, nobody else's. An idle
//! wire sleeps and uses no CPU.
//! Source: tuntap.txt of the kernel's documentation. Leaves out: making the devices, which asks for privileges that the emulator never has.

mod forward;
mod macs;
mod sight;
mod too_big;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use ring_proto::sync::{AtomicU32, Ordering};
use tracing::warn;

use crate::device::Device;
use crate::server::epoll::{EventBuffer, Interest, Poller, Token, WakeFd};

use forward::Forwarder;
pub use macs::mac_of;
pub(crate) use sight::WireCaptures;

/// Longest frame: what a TAP with the largest MTU gives out.
const FRAME_LIMIT: usize = (64 << 10) + 18;
/// Frames of one node in a row, so that no node starves the others.
const TURN: usize = 64;
/// The last part of a wait is yielded through: a sleeper wakes this much late.
const SPIN_NS: u64 = 60_000;
/// Token of the descriptor that ends the thread.
const STOP: Token = Token(u64::MAX);

/// The thread. Dropping it ends it, and closes the devices.
#[derive(Debug)]
pub(crate) struct Wire {
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
    captures: WireCaptures,
}

#[derive(Debug)]
struct Stop {
    wake: WakeFd,
    is_over: AtomicU32,
}

/// What the thread owns.
#[derive(Debug)]
struct Carrier {
    taps: Vec<OwnedFd>,
    forwarder: Forwarder,
    poller: Poller,
    start: Instant,
}

impl Wire {
    /// Carries frames between these TAP devices, that of node k at place k, over the links of `device` and by its clock.
    pub(crate) fn start(taps: Vec<OwnedFd>, device: &Device) -> Result<Self, Errno> {
        let start = Instant::now()
            .checked_sub(Duration::from_nanos(device.now_ns()))
            .unwrap_or_else(Instant::now);
        let poller = Poller::new()?;
        for (token, tap) in (0u64..).zip(&taps) {
            set_nonblocking(tap)?;
            poller.add(tap, Token(token), Interest::READ)?;
        }
        let stop = Arc::new(Stop {
            wake: WakeFd::new()?,
            is_over: AtomicU32::new(0),
        });
        poller.add(&stop.wake, STOP, Interest::READ)?;
        let captures = WireCaptures::default();
        let macs = (0u16..).take(taps.len()).map(mac_of).collect();
        let mut carrier = Carrier {
            taps,
            forwarder: Forwarder::new(macs, device.link_table(), captures.clone()),
            poller,
            start,
        };
        let theirs = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("nic-wire".into())
            .spawn(move || carrier.run(&theirs))
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))?;
        Ok(Self {
            stop,
            thread: Some(thread),
            captures,
        })
    }

    /// Who sees the frames.
    pub(crate) fn captures(&self) -> WireCaptures {
        self.captures.clone()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        // Relaxed: the thread does not act on anything else that we wrote.
        self.stop.is_over.store(1, Ordering::Relaxed);
        self.stop.wake.wake();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported by its hook.
            drop(thread.join());
        }
    }
}

fn set_nonblocking(tap: &OwnedFd) -> Result<(), Errno> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    fcntl(tap, FcntlArg::F_SETFL(OFlag::O_NONBLOCK | OFlag::O_RDWR)).map(drop)
}

impl Carrier {
    fn run(&mut self, stop: &Stop) {
        let mut events = EventBuffer::new(64);
        let mut buffer = vec![0; FRAME_LIMIT];
        // Relaxed: a lone flag.
        while stop.is_over.load(Ordering::Relaxed) == 0 {
            let now_ns = self.now_ns();
            let taps = &self.taps;
            self.forwarder
                .arrive(now_ns, &mut |to, frame| put(taps, to, frame));
            let left_ns = self.forwarder.next_ns().map(|at| at.saturating_sub(now_ns));
            let is_near = left_ns.is_some_and(|left| left < SPIN_NS);
            let timeout_ns = match left_ns {
                Some(_) if is_near => Some(0),
                Some(left) => Some(left - SPIN_NS),
                None => None,
            };
            // epoll_wait fails for a bad buffer or descriptor only, and both are ours.
            let Ok(ready) = self.poller.wait(&mut events, timeout_ns) else {
                return;
            };
            let ready: Vec<_> = ready.collect();
            if ready.is_empty() && is_near {
                // Yield, not pause: the nodes' programs may share this core.
                let _ = nix::sched::sched_yield();
            }
            for token in ready {
                if let Ok(port) = usize::try_from(token.0) {
                    self.take(port, &mut buffer);
                }
            }
        }
    }

    /// Takes the next frames of a node.
    fn take(&mut self, port: usize, buffer: &mut [u8]) {
        for _ in 0..TURN {
            let Some(tap) = self.taps.get(port) else {
                return;
            };
            let len = match nix::unistd::read(tap, buffer) {
                Ok(len) => len,
                Err(Errno::EAGAIN) => return,
                Err(Errno::EINTR) => continue,
                Err(error) => {
                    // Its node shut the interface down: frames come again when it is up, or never.
                    if error != Errno::EIO {
                        warn!(port, %error, "a node's interface is gone");
                        // It was added, and is closed with the thread.
                        let _ = self.poller.remove(tap);
                    }
                    return;
                }
            };
            let now_ns = self.now_ns();
            let taps = &self.taps;
            let mut deliver = |to, frame: &[u8]| put(taps, to, frame);
            self.forwarder
                .receive(now_ns, port, &buffer[..len], &mut deliver);
        }
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Hands a frame to a node's interface. One that is down or full drops it, as a real one would.
fn put(taps: &[OwnedFd], to: usize, frame: &[u8]) {
    if let Some(tap) = taps.get(to) {
        let _ = nix::unistd::write(tap, frame);
    }
}
