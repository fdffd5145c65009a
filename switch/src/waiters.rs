//! Vectors of threads that sleep: one per thread and function, while it sleeps.
//!
//! Place: blocking calls and `poll` take one before they arm connections, and give it back when the wait is over.
//! Invariants: a thread that left its wait by cancellation or `longjmp` still owns its vector: it finds it again at its next wait,
//! and when it is dead others do. Nothing here is a destructor of a thread. After a fork all vectors are the parent's.
//! Edges: waiter-owner. Source: ours. Leaves out: vectors of epoll sets, which own theirs as long as they live.

use core::cell::Cell;

use driver::spi::Waiter;
use ring_proto::sync::{AtomicI32, AtomicU32, Ordering};

use crate::provider_table::ProviderRef;
use crate::readiness::BLIND_NS;
use crate::sys;

/// Threads of a process that can sleep with a vector of their own. Those beyond look again every few milliseconds.
const WAITERS: usize = 256;
/// Functions that one wait can sleep on.
pub const FUNCTIONS: usize = 8;

const EMPTY: u32 = 0;
const FILLED: u32 = 1;

/// The vectors of this process's threads.
#[derive(Debug)]
pub struct Waiters {
    places: [Place; WAITERS],
    /// Forks behind this process.
    epoch: AtomicU32,
}

#[derive(Debug)]
struct Place {
    /// Thread that owns the place, 0 for none. All other words belong to it.
    owner: AtomicU32,
    state: AtomicU32,
    provider: AtomicU32,
    function: AtomicU32,
    vector: AtomicU32,
    fd: AtomicI32,
    /// Shows the end of the device; -1 when it cannot end, or has.
    hangup: AtomicI32,
}

/// A vector taken for one wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Taken {
    place: usize,
    provider: u32,
    hangup: i32,
    /// For [`crate::session::Conn::arm`].
    pub waiter: Waiter,
}

/// What one wait sleeps on. Plain data: a thread may vanish while it exists.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sleep {
    taken: [Option<Taken>; FUNCTIONS],
    /// A connection could not be armed: look again soon.
    is_blind: bool,
    /// Longest sleep that a connection allows.
    limit_ns: Option<u64>,
}

thread_local! {
    /// Epoch and number of this thread; a cell without destructor.
    static THREAD: Cell<(u32, u32)> = const { Cell::new((u32::MAX, 0)) };
    /// Place used last.
    static HINT: Cell<usize> = const { Cell::new(0) };
}

impl Waiters {
    /// No vectors.
    #[must_use]
    #[expect(
        clippy::new_without_default,
        reason = "there is one, and it is a static"
    )]
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self {
            places: [const {
                Place {
                    owner: AtomicU32::new(0),
                    state: AtomicU32::new(EMPTY),
                    provider: AtomicU32::new(0),
                    function: AtomicU32::new(0),
                    vector: AtomicU32::new(0),
                    fd: AtomicI32::new(-1),
                    hangup: AtomicI32::new(-1),
                }
            }; WAITERS],
            epoch: AtomicU32::new(0),
        }
    }

    /// Number of the calling thread, as the kernel counts.
    fn thread(&self) -> u32 {
        // Relaxed: changes only in a child with one thread.
        let epoch = self.epoch.load(Ordering::Relaxed);
        THREAD.with(|thread| {
            let (known, number) = thread.get();
            if known == epoch {
                return number;
            }
            let number = sys::gettid().cast_unsigned();
            thread.set((epoch, number));
            number
        })
    }

    /// Takes a vector of a function for the calling thread. `None`: none can be had.
    fn take(&self, provider: &ProviderRef, function: u32) -> Option<Taken> {
        let me = self.thread();
        let hint = HINT.get() % WAITERS;
        let fits = |place: &Place| {
            // Relaxed: checked again by the owner.
            place.state.load(Ordering::Relaxed) == FILLED
                && place.provider.load(Ordering::Relaxed) == provider.index
                && place.function.load(Ordering::Relaxed) == function
        };
        let places = (0..WAITERS).map(|n| (hint + n) % WAITERS);
        let filled = places
            .clone()
            .find(|&n| fits(&self.places[n]) && self.claim(n, me) && self.keep_if(n, fits));
        let found = filled.or_else(|| {
            let empty = |place: &Place| place.state.load(Ordering::Relaxed) == EMPTY;
            let n = places
                .clone()
                .find(|&n| empty(&self.places[n]) && self.claim(n, me) && self.keep_if(n, empty))
                .or_else(|| self.bury(me))?;
            self.fill(n, provider, function)
        })?;
        HINT.set(found);
        let place = &self.places[found];
        // Relaxed: the place is ours.
        Some(Taken {
            place: found,
            provider: provider.index,
            hangup: place.hangup.load(Ordering::Relaxed),
            waiter: Waiter {
                function,
                vector: place.vector.load(Ordering::Relaxed),
                fd: place.fd.load(Ordering::Relaxed),
            },
        })
    }

    fn claim(&self, n: usize, me: u32) -> bool {
        let owner = &self.places[n].owner;
        // Relaxed: only this thread stores its own number.
        if owner.load(Ordering::Relaxed) == me {
            // Left behind by a wait of this thread that never came back.
            return true;
        }
        // EDGE waiter-owner (acquire): the place's words. Released in `give` and `keep_if`.
        owner
            .compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
    }

    /// Lets go of a claimed place that is not what it seemed.
    fn keep_if(&self, n: usize, condition: impl Fn(&Place) -> bool) -> bool {
        let keeps = condition(&self.places[n]);
        if !keeps {
            // EDGE waiter-owner (release): nothing was changed. Acquired in `claim`.
            self.places[n].owner.store(0, Ordering::Release);
        }
        keeps
    }

    /// Takes the place of a thread that is dead.
    fn bury(&self, me: u32) -> Option<usize> {
        self.places.iter().position(|place| {
            // Relaxed: the exchange decides.
            let owner = place.owner.load(Ordering::Relaxed);
            owner != 0
                && owner != me
                && !sys::thread_exists(owner.cast_signed())
                && place
                    .owner
                    .compare_exchange(owner, me, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
        })
    }

    fn fill(&self, n: usize, provider: &ProviderRef, function: u32) -> Option<usize> {
        let place = &self.places[n];
        if place.state.load(Ordering::Relaxed) == FILLED {
            // Of a dead thread, perhaps of another function: the vector is lost to that one, which has others.
            place.state.store(EMPTY, Ordering::Relaxed);
        }
        // The provider's own locks must be free when another thread forks.
        let inside = crate::gate::enter();
        let acquired = provider.waiting.acquire(function);
        drop(inside);
        let Ok(waiter) = acquired else {
            // EDGE waiter-owner (release): the place is empty. Acquired in `claim`.
            place.owner.store(0, Ordering::Release);
            return None;
        };
        let hangup = provider
            .waiting
            .functions()
            .into_iter()
            .find(|&(index, _)| index == function)
            .and_then(|(_, fd)| fd)
            .unwrap_or(-1);
        // Relaxed: the place is ours; published when it is given.
        place.provider.store(provider.index, Ordering::Relaxed);
        place.function.store(function, Ordering::Relaxed);
        place.vector.store(waiter.vector, Ordering::Relaxed);
        place.fd.store(waiter.fd, Ordering::Relaxed);
        place.hangup.store(hangup, Ordering::Relaxed);
        place.state.store(FILLED, Ordering::Relaxed);
        Some(n)
    }

    fn give(&self, taken: Taken) {
        // EDGE waiter-owner (release): the place's words. Acquired in `claim`.
        self.places[taken.place].owner.store(0, Ordering::Release);
    }

    /// Ends a wait.
    pub fn wake(&self, sleep: &mut Sleep) {
        for taken in &mut sleep.taken {
            if let Some(taken) = taken.take() {
                self.give(taken);
            }
        }
        sleep.is_blind = false;
        sleep.limit_ns = None;
    }

    /// Forgets the parent's vectors, in a forked child.
    pub fn after_fork_in_child(&self) {
        for place in &self.places {
            // Relaxed: the child has one thread.
            place.state.store(EMPTY, Ordering::Relaxed);
            place.owner.store(0, Ordering::Relaxed);
        }
        self.epoch.fetch_add(1, Ordering::Relaxed);
    }
}

impl Sleep {
    /// A wait on nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            taken: [None; FUNCTIONS],
            is_blind: false,
            limit_ns: None,
        }
    }

    /// Vector for connections of `function`, drained when it is new to this wait.
    pub fn waiter(
        &mut self,
        waiters: &Waiters,
        provider: &ProviderRef,
        function: u32,
    ) -> Option<Waiter> {
        let known = self
            .taken
            .iter()
            .flatten()
            .find(|t| t.provider == provider.index && t.waiter.function == function);
        if let Some(known) = known {
            return Some(known.waiter);
        }
        let free = self.taken.iter_mut().find(|t| t.is_none());
        let taken = free.and_then(|free| {
            let taken = waiters.take(provider, function)?;
            provider.waiting.drain(taken.waiter);
            if taken.hangup < 0 {
                // Nothing will show the end of the device, or has shown it already.
                provider.waiting.check(function);
            }
            *free = Some(taken);
            Some(taken.waiter)
        });
        self.is_blind |= taken.is_none();
        taken
    }

    /// Longest sleep, whatever the program's limit: short when something could not be armed.
    #[must_use]
    pub fn limit_ns(&self) -> Option<u64> {
        if self.is_blind {
            return Some(BLIND_NS);
        }
        self.limit_ns
    }

    /// Notes that the wait must end within this time.
    pub fn limit(&mut self, ns: u64) {
        self.limit_ns = Some(self.limit_ns.map_or(ns, |limit| limit.min(ns)));
    }

    /// Notes that something could not be armed.
    pub const fn set_blind(&mut self) {
        self.is_blind = true;
    }

    /// Descriptors to poll.
    pub fn fds(&self) -> impl Iterator<Item = libc::pollfd> + '_ {
        let entry = |fd, events| libc::pollfd {
            fd,
            events,
            revents: 0,
        };
        self.taken.iter().flatten().flat_map(move |taken| {
            // The end of the device is reported unasked.
            [entry(taken.waiter.fd, libc::POLLIN), entry(taken.hangup, 0)]
        })
    }

    /// Looks at what the wait found: a device that is gone is not waited for again.
    pub fn look(&self, waiters: &Waiters, polled: &[libc::pollfd]) {
        for taken in self.taken.iter().flatten().filter(|t| t.hangup >= 0) {
            let is_gone = polled
                .iter()
                .any(|p| p.fd == taken.hangup && p.revents != 0);
            if is_gone {
                // Relaxed: the place is ours.
                waiters.places[taken.place]
                    .hangup
                    .store(-1, Ordering::Relaxed);
            }
        }
    }
}
