//! The engine thread: the one owner of the device, with its calls, its pumping and its sleep.
//!
//! Place: the control thread hands work in by [`EngineHandle::call`]; clients reach the engine by doorbells and kicks alone.
//! Invariants: only this thread touches the [`Device`]; between two calls or kicks an idle engine sleeps in epoll and uses no CPU; a
//! call or a kick that comes while it falls asleep wakes it, because their eventfds are watched edge-triggered, so that every write
//! is an event.
//! Hot: the pump loop of [`Engine::run`]: no allocation, log or lock while no call waits.
//! Source: ours (docs/device.md, section "Doorbells", and the measurements there).

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use ring_proto::ids::{FunctionId, NodeId};
use ring_proto::sync::{AtomicU32, Ordering};

use super::epoll::{EventBuffer, Poller, Token, WakeFd};
use super::error::{ServeError, system};
use super::idle::{Idle, Next};
use crate::device::{Device, DeviceError};

/// How often a busy engine looks for kicks of cold functions.
const KICK_CHECK: Duration = Duration::from_micros(50);
/// Token of the call eventfd; function ids are never 0.
const CALLS: Token = Token(0);

/// The engine thread has ended, or the call panicked in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the device engine has stopped")]
pub struct EngineGone;

type Call = Box<dyn FnOnce(&mut Engine) + Send>;

/// What calls go through.
struct Shared {
    /// Waiting calls; `None` once the engine has ended.
    calls: Mutex<Option<VecDeque<Call>>>,
    /// Number of waiting calls. Written under the lock of `calls`; the engine looks at it without.
    waiting: AtomicU32,
    wake: WakeFd,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Option<VecDeque<Call>>> {
        // No call runs under the lock, so nothing can panic under it.
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hands work to the engine thread.
#[derive(Clone)]
pub struct EngineHandle {
    shared: Arc<Shared>,
}

impl fmt::Debug for EngineHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineHandle").finish_non_exhaustive()
    }
}

/// The engine thread. Dropping it ends the engine and waits for that.
#[derive(Debug)]
pub struct EngineThread {
    handle: EngineHandle,
    thread: Option<JoinHandle<()>>,
}

struct Engine {
    device: Device,
    poller: Poller,
    stop: bool,
}

impl EngineThread {
    /// Starts the engine of `device`.
    ///
    /// # Errors
    /// [`ServeError::System`] when the kernel gives no epoll, eventfd or thread.
    pub fn start(device: Device) -> Result<Self, ServeError> {
        let poller = Poller::new().map_err(system("epoll_create1"))?;
        let wake = WakeFd::new().map_err(system("eventfd"))?;
        poller
            .add_eventfd(&wake, CALLS)
            .map_err(system("epoll_ctl"))?;
        let shared = Arc::new(Shared {
            calls: Mutex::new(Some(VecDeque::new())),
            waiting: AtomicU32::new(0),
            wake,
        });
        let mut engine = Engine {
            device,
            poller,
            stop: false,
        };
        let ours = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("nic-engine".into())
            .spawn(move || {
                // Also runs when a call panics: whoever waits for an answer learns that none will come.
                let _closed = CloseOnDrop(&ours);
                engine.run(&ours);
            })
            .map_err(|error| system("clone")(Errno::from_raw(error.raw_os_error().unwrap_or(0))))?;
        Ok(Self {
            handle: EngineHandle { shared },
            thread: Some(thread),
        })
    }

    /// A handle for other owners of work.
    #[must_use]
    pub fn handle(&self) -> EngineHandle {
        self.handle.clone()
    }
}

impl Drop for EngineThread {
    fn drop(&mut self) {
        // An engine that is gone already needs no stopping.
        let _ = self.handle.run(|engine| engine.stop = true);
        if let Some(thread) = self.thread.take() {
            // A panic of the engine has been reported by its hook and to every caller.
            drop(thread.join());
        }
    }
}

struct CloseOnDrop<'a>(&'a Shared);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        // Dropping the calls drops their reply channels, which is the answer.
        drop(self.0.lock().take());
    }
}

impl EngineHandle {
    /// Runs `work` on the engine thread and returns what it returns.
    ///
    /// # Errors
    /// [`EngineGone`].
    pub fn call<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Device) -> R + Send + 'static,
    ) -> Result<R, EngineGone> {
        self.run(|engine| work(&mut engine.device))
    }

    /// Attaches a function and watches its kick.
    ///
    /// # Errors
    /// Outer: [`EngineGone`]. Inner: as [`Device::attach`].
    pub fn attach(&self, node: NodeId) -> Result<Result<FunctionId, DeviceError>, EngineGone> {
        self.run(move |engine| {
            let function = engine.device.attach(node)?;
            let watched = engine.device.kick_fd(function).and_then(|kick| {
                engine
                    .poller
                    .add_eventfd(kick, token(function))
                    .map_err(|error| DeviceError::system("epoll_ctl", error))
            });
            if let Err(error) = watched {
                engine.device.detach(function);
                return Err(error);
            }
            Ok(function)
        })
    }

    /// Detaches a function.
    ///
    /// # Errors
    /// [`EngineGone`].
    pub fn detach(&self, function: FunctionId) -> Result<(), EngineGone> {
        self.run(move |engine| {
            if let Ok(kick) = engine.device.kick_fd(function) {
                // Clients may hold the eventfd for ever, and epoll watches the file, not the descriptor.
                let _ = engine.poller.remove(kick);
            }
            engine.device.detach(function);
        })
    }

    /// Lets virtual time pass, each timer at its own time, once everything is done that clients have asked for so far; the device's time
    /// then, `None` when it is real or stands still.
    ///
    /// # Errors
    /// [`EngineGone`].
    pub fn advance(&self, ns: u64) -> Result<Option<u64>, EngineGone> {
        self.run(move |engine| engine.advance(ns))
    }

    /// Whether the engine still takes calls: when one ended in [`EngineGone`] all the same, that call panicked.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.shared.lock().is_some()
    }

    fn run<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Engine) -> R + Send + 'static,
    ) -> Result<R, EngineGone> {
        let (reply, answer) = mpsc::sync_channel(1);
        {
            let mut calls = self.shared.lock();
            let calls = calls.as_mut().ok_or(EngineGone)?;
            calls.push_back(Box::new(move |engine| {
                // The caller waits below until the reply or the end of the engine.
                drop(reply.send(work(engine)));
            }));
            // Relaxed: a hint that the eventfd backs; the call itself is published by the lock.
            self.shared.waiting.fetch_add(1, Ordering::Relaxed);
        }
        self.shared.wake.wake();
        answer.recv().map_err(|_| EngineGone)
    }
}

fn token(function: FunctionId) -> Token {
    Token(u64::from(function.0))
}

impl Engine {
    fn run(&mut self, shared: &Shared) {
        let mut events = EventBuffer::new(64);
        let mut kicks_checked = Instant::now();
        let mut idle = Idle::new(kicks_checked);
        while !self.stop {
            // Relaxed: a hint; the calls themselves come from under the lock, and a missed hint still has its eventfd.
            if shared.waiting.load(Ordering::Relaxed) != 0 {
                self.run_calls(shared);
                if self.stop {
                    // Not one more round: it may park, and nobody would wake it.
                    break;
                }
            }
            let pumped = self.device.pump();
            let now = Instant::now();
            if pumped.served > 0 {
                idle.worked(pumped.has_fired);
                if now.duration_since(kicks_checked) >= KICK_CHECK {
                    kicks_checked = now;
                    self.take_events(&mut events, Some(0));
                }
                continue;
            }
            if idle.next(now) == Next::Yield {
                // Not a pause: the parties may share this core.
                let _ = nix::sched::sched_yield();
                idle.yielded(now, Instant::now());
                continue;
            }
            if self.device.try_park() {
                let timeout = pumped
                    .next_timer_ns
                    .filter(|_| !self.device.is_time_virtual())
                    .map(|at| at.saturating_sub(self.device.now_ns()));
                let is_kicked = self.take_events(&mut events, timeout);
                self.device.unpark();
                kicks_checked = Instant::now();
                if is_kicked {
                    idle.slept(now, kicks_checked);
                }
            }
        }
    }

    fn advance(&mut self, ns: u64) -> Option<u64> {
        if !self.device.is_time_virtual() || self.device.paused().is_some() {
            return None;
        }
        // Kicks that came before the call count as asked for.
        self.take_events(&mut EventBuffer::new(64), Some(0));
        let until = self.device.now_ns().saturating_add(ns);
        loop {
            let pumped = self.device.pump();
            if self.device.paused().is_some() {
                return Some(self.device.now_ns());
            }
            if pumped.served > 0 {
                continue;
            }
            let now = self.device.now_ns();
            let next = pumped.next_timer_ns.unwrap_or(until).clamp(now, until);
            if now == until {
                return Some(now);
            }
            self.device.advance(next - now);
        }
    }

    /// Runs the calls that wait now; later ones wait for the next round, so that callers cannot starve the rings.
    fn run_calls(&mut self, shared: &Shared) {
        let batch = shared.lock().as_mut().map(std::mem::take);
        for call in batch.into_iter().flatten() {
            shared.waiting.fetch_sub(1, Ordering::Relaxed);
            // The panic drops the caller's reply channel: it alone learns that no answer comes. What the call left behind belongs to one
            // function, which its caller closes.
            if catch_unwind(AssertUnwindSafe(|| call(self))).is_err() {
                self.device.call_panicked();
            }
        }
    }

    /// Waits for calls and kicks and makes the kicked functions hot. Whether there were any.
    fn take_events(&mut self, events: &mut EventBuffer, timeout_ns: Option<u64>) -> bool {
        // epoll_wait fails for a bad buffer or descriptor only, and both are ours.
        let Ok(events) = self.poller.wait(events, timeout_ns) else {
            return false;
        };
        let mut is_kicked = false;
        for token in events {
            if token != CALLS
                && let Ok(function) = u32::try_from(token.0)
            {
                self.device.kicked(FunctionId(function));
                is_kicked = true;
            }
        }
        is_kicked
    }
}

/// Borrowed for the server's use: the file behind a function's BAR2 or kick, as a descriptor of the caller's own.
pub(crate) fn duplicate(
    fd: Result<std::os::fd::BorrowedFd<'_>, DeviceError>,
) -> Result<std::os::fd::OwnedFd, DeviceError> {
    fd?.as_fd()
        .try_clone_to_owned()
        .map_err(|error| DeviceError::system("dup", error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DeviceOptions;

    #[test]
    fn an_engine_in_a_crowd_ends_when_told_to() {
        let is_over = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                // A crowd: who yields to it waits for a slice. Relaxed: one word.
                scope.spawn(|| while is_over.load(Ordering::Relaxed) == 0 {});
            }
            for _ in 0..20 {
                let engine = EngineThread::start(Device::new(DeviceOptions::default())).unwrap();
                // Long enough to meet the crowd, and to park because of it.
                for _ in 0..3 {
                    std::thread::sleep(Duration::from_millis(2));
                    engine.handle().call(|device| device.now_ns()).unwrap();
                }
                drop(engine);
            }
            is_over.store(1, Ordering::Relaxed);
        });
    }

    #[test]
    fn calls_run_in_order_on_one_thread_and_answer() {
        let engine = EngineThread::start(Device::new(DeviceOptions::default())).unwrap();
        let handle = engine.handle();
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let handle = handle.clone();
                std::thread::spawn(move || {
                    let mut names = std::collections::HashSet::new();
                    for _ in 0..500 {
                        names.insert(
                            handle
                                .call(|_| std::thread::current().name().map(str::to_owned))
                                .unwrap(),
                        );
                    }
                    names
                })
            })
            .collect();
        for thread in threads {
            let names = thread.join().unwrap();
            assert_eq!(names.len(), 1);
            assert!(names.contains(&Some("nic-engine".to_owned())));
        }
        drop(engine);
        assert_eq!(handle.call(|_| ()), Err(EngineGone));
    }

    #[test]
    fn a_panic_in_a_call_is_told_to_its_caller_counted_and_survived() {
        let mut device = Device::new(DeviceOptions::default());
        device.add_node("a", &[]);
        let engine = EngineThread::start(device).unwrap();
        let handle = engine.handle();
        let answer: Result<(), _> = handle.call(|_| panic!("on purpose"));
        assert_eq!(answer, Err(EngineGone));
        assert!(handle.is_alive());
        let panics = handle.call(|device| device.node_counters()[0].counters.panics);
        assert_eq!(panics, Ok(1));
        drop(engine);
        assert!(!handle.is_alive());
    }
}
