//! Waiting: vectors for those who sleep, arming, and the state of a connection without polling it.
//!
//! Place: the switch's blocking calls, poll sets and service thread.
//! Invariants: a vector belongs to one process of the family, and to one waiter of it while vectors are plenty. When they run short,
//! the waiters of a process share one: it is then never drained, and each of them watches its edges through an epoll instance of its
//! own, so none steals another's wake-up. An armed waiter polls once more before it sleeps.
//! Hot: `link`, `mode`, `has_news`, `is_armed`. Source: design of arms in `ring_proto::arm`. Leaves out: the sleep itself.

use core::net::Ipv4Addr;
use std::os::fd::RawFd;

use ring_proto::admin::AdminOp;
use ring_proto::arm;
use ring_proto::sync::{AtomicU32, Ordering};

use super::Core;
use super::socket::{CONNECTED, DISCONNECTED, Sock, function_index};
use crate::fork_lock::Held;
use crate::function::{Function, Locked};
use crate::record::EVENT_SLOT;
use crate::spi::{Link, SpSocket, Waiter, Waiting};
use crate::sys::{self, Fd};
use crate::wsa::WsaError;

/// Vectors of a function left when waiters start to share.
const SCARCE: u32 = 8;
/// Unused vectors that a process keeps for its next waiter.
const KEEP: usize = 2;

/// A vector of this process.
#[derive(Debug)]
pub(crate) struct Vector {
    function: u32,
    number: u8,
    object: Fd,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// One waiter, or none for the moment.
    Single { is_used: bool },
    /// Any number of waiters, each with its own epoll instance.
    Shared { watchers: Vec<Fd> },
}

impl Locked<'_> {
    /// Takes a free vector number, or that of a dead process; `None` when fewer than `spare` are left.
    fn take_vector(&mut self, spare: u32) -> Option<u8> {
        let function = self.function;
        let header = function.header();
        // Relaxed throughout: the lock orders.
        let mut used = header.vectors.load(Ordering::Relaxed);
        for (number, owner) in header.vector_owner.iter().enumerate() {
            let owner = owner.load(Ordering::Relaxed);
            if used & 1 << number != 0 && !function.is_alive(owner) {
                used &= !(1 << number);
            }
        }
        let free = function.vector_limit().saturating_sub(used.count_ones());
        let number = used.trailing_ones();
        if free <= spare || number >= function.vector_limit() {
            header.vectors.store(used, Ordering::Relaxed);
            return None;
        }
        let place = header.vector_owner.get(usize::try_from(number).ok()?)?;
        place.store(function.identity().word(), Ordering::Relaxed);
        header.vectors.store(used | 1 << number, Ordering::Relaxed);
        u8::try_from(number).ok()
    }

    fn free_vector(&mut self, number: u8) {
        let vectors = &self.function.header().vectors;
        vectors.store(
            vectors.load(Ordering::Relaxed) & !(1 << number),
            Ordering::Relaxed,
        );
    }
}

/// Takes a vector and connects an eventfd to it.
fn connect(function: &Function, spare: u32) -> Option<(u8, Fd)> {
    let object = sys::eventfd().ok()?;
    let mut locked = function.lock();
    let number = locked.take_vector(spare)?;
    if function
        .attachment()
        .set_vector(number, Some(object.raw()))
        .is_err()
    {
        locked.free_vector(number);
        return None;
    }
    Some((number, object))
}

fn disconnect(function: &Function, number: u8) {
    let mut locked = function.lock();
    match function.attachment().set_vector(number, None) {
        Ok(()) | Err(_) => {} // The next owner connects its own.
    }
    locked.free_vector(number);
}

impl Core {
    fn vectors(&self) -> Held<'_, Vec<Vector>> {
        self.vectors.lock()
    }

    /// A child closes its copies of the parent's objects; the vectors stay the parent's.
    pub(crate) fn forget_vectors(&self) {
        self.vectors().clear();
    }

    fn acquire_single(&self, index: u32, function: &Function) -> Option<Waiter> {
        let kept = self
            .vectors()
            .iter_mut()
            .find_map(|vector| match &mut vector.kind {
                Kind::Single { is_used } if vector.function == index && !*is_used => {
                    *is_used = true;
                    Some((vector.number, vector.object.raw()))
                }
                _ => None,
            });
        let (number, fd) = match kept {
            Some(kept) => kept,
            None => {
                let (number, object) = connect(function, SCARCE)?;
                let fd = object.raw();
                self.vectors().push(Vector {
                    function: index,
                    number,
                    object,
                    kind: Kind::Single { is_used: true },
                });
                (number, fd)
            }
        };
        sys::drain(fd);
        Some(waiter(index, number, fd))
    }

    fn acquire_shared(&self, index: u32, function: &Function) -> Option<Waiter> {
        if let Some(waiter) = watch(&mut self.vectors(), index) {
            return Some(waiter);
        }
        let (number, object) = connect(function, 0)?;
        let mut vectors = self.vectors();
        // Another thread may have been faster: then there are two, which does no harm.
        vectors.push(Vector {
            function: index,
            number,
            object,
            kind: Kind::Shared {
                watchers: Vec::new(),
            },
        });
        watch(&mut vectors, index)
    }
}

fn waiter(function: u32, number: u8, fd: RawFd) -> Waiter {
    Waiter {
        function,
        vector: number.into(),
        fd,
    }
}

/// A new watcher of the shared vector of a function.
fn watch(vectors: &mut [Vector], index: u32) -> Option<Waiter> {
    vectors
        .iter_mut()
        .find_map(|vector| match &mut vector.kind {
            Kind::Shared { watchers } if vector.function == index => {
                let watcher = sys::edge_of(vector.object.raw()).ok()?;
                let fd = watcher.raw();
                sys::drain_edges(fd);
                watchers.push(watcher);
                Some(waiter(index, vector.number, fd))
            }
            _ => None,
        })
}

impl Waiting for Core {
    fn is_cut(&self, to: Ipv4Addr) -> bool {
        let Ok((_, function)) = self.open_own() else {
            return false;
        };
        // Relaxed: a hint to ask; the answer comes by the admin queue.
        if function.bar().link_cuts().load(Ordering::Relaxed) == 0 {
            return false;
        }
        let asked = function.lock().admin_on(AdminOp::LINK_QUERY, to.to_bits());
        matches!(asked, Ok([cut, _]) if cut != 0)
    }

    fn function_of(&self, s: SpSocket) -> Option<u32> {
        self.resolve(s).ok().map(|sock| function_index(sock.handle))
    }

    fn functions(&self) -> Vec<(u32, Option<RawFd>)> {
        Self::functions(self)
            .map(|(index, function)| (index, function.hangup_fd()))
            .collect()
    }

    fn acquire(&self, function: u32) -> Result<Waiter, WsaError> {
        let device = self.function_at(function).ok_or(WsaError::Inval)?;
        if device.check() {
            return Err(WsaError::NetDown);
        }
        self.acquire_single(function, device)
            .or_else(|| self.acquire_shared(function, device))
            .ok_or(WsaError::NoBufs)
    }

    fn release(&self, waiter: Waiter) {
        let mut vectors = self.vectors();
        let found = vectors.iter_mut().position(|vector| {
            vector.function == waiter.function && u32::from(vector.number) == waiter.vector
        });
        let Some(at) = found else {
            return; // Acquired before a fork, by the parent.
        };
        let idle = vectors.iter().filter(|vector| {
            vector.function == waiter.function
                && matches!(vector.kind, Kind::Single { is_used: false })
        });
        let keep = idle.count() < KEEP;
        let unused = match &mut vectors[at].kind {
            Kind::Single { is_used } => {
                *is_used = false;
                !keep
            }
            Kind::Shared { watchers } => {
                watchers.retain(|watcher| watcher.raw() != waiter.fd);
                watchers.is_empty()
            }
        };
        if !unused {
            return;
        }
        let vector = vectors.swap_remove(at);
        drop(vectors);
        if let Some(function) = self.function_at(vector.function) {
            disconnect(function, vector.number);
        }
    }

    fn check(&self, function: u32) {
        if let Some(device) = self.function_at(function) {
            // What it finds stays with the function.
            device.check();
        }
    }

    fn drain(&self, waiter: Waiter) {
        // A watcher of a shared vector cannot be read: so its kind is known without the table and its lock.
        if !sys::drain(waiter.fd) {
            sys::drain_edges(waiter.fd);
        }
    }

    fn wake(&self, waiter: Waiter) {
        // Under the table's lock nobody closes the object, so its number cannot be another descriptor's by now.
        for vector in self.vectors().iter() {
            if vector.function == waiter.function && u32::from(vector.number) == waiter.vector {
                sys::signal(vector.object.raw());
            }
        }
    }

    fn arm(&self, s: SpSocket, waiter: Waiter) -> Result<(), WsaError> {
        let sock = self.resolve(s)?;
        if function_index(s) != waiter.function {
            return Err(WsaError::Inval);
        }
        arm_slot(
            sock.function,
            sock.cq_slot(),
            &sock.record.cq_consumer,
            waiter,
        )
    }

    fn is_armed(&self, s: SpSocket, waiter: Waiter) -> bool {
        let Some(bit) = 1_u64.checked_shl(waiter.vector) else {
            return false;
        };
        // Relaxed: a bit seen too late has its vector fired, and the caller drained that before.
        let is_set = |sock: Sock<'_>| {
            let line = sock.function.bar().line(sock.cq_slot());
            line.arm_vectors().load(Ordering::Relaxed) & bit != 0 && !sock.function.is_dead()
        };
        function_index(s) == waiter.function && self.resolve(s).is_ok_and(is_set)
    }

    fn has_news(&self, s: SpSocket) -> bool {
        let Ok(sock) = self.resolve(s) else {
            return true;
        };
        sock.has_completion()
            || sock.function.has_event()
            || !matches!(link_of(&sock), Link::Up | Link::Down)
    }

    fn arm_events(&self, waiter: Waiter) -> Result<(), WsaError> {
        let function = self.function_at(waiter.function).ok_or(WsaError::Inval)?;
        arm_slot(function, EVENT_SLOT, &function.header().eq_consumer, waiter)
    }

    fn progress(&self) -> bool {
        self.progress_events()
    }

    fn link(&self, s: SpSocket) -> Link {
        match self.resolve(s) {
            Ok(sock) => link_of(&sock),
            // Closed by another process of the family.
            Err(_) => Link::Ended(WsaError::ConnAborted),
        }
    }

    fn mode(&self, s: SpSocket) -> u32 {
        self.resolve(s).map_or(ring_proto::uar::MODE_COPY, |sock| {
            // Relaxed: a hint for the next message; either mode is right.
            sock.function
                .bar()
                .mode(sock.qp_slot())
                .load(Ordering::Relaxed)
        })
    }
}

fn arm_slot(
    function: &Function,
    slot: u32,
    consumer: &AtomicU32,
    waiter: Waiter,
) -> Result<(), WsaError> {
    // No system call: who sleeps waits on the hang-up descriptor too, and has the device checked when that shows.
    if function.is_dead() {
        return Err(WsaError::NetDown);
    }
    let bit = 1_u64.checked_shl(waiter.vector).ok_or(WsaError::Inval)?;
    let line = function.bar().line(slot);
    // Relaxed: diagnostic only.
    let consumer = consumer.load(Ordering::Relaxed);
    arm::arm(line.arm_vectors(), line.arm_sequence(), consumer, bit);
    Ok(())
}

fn link_of(sock: &Sock<'_>) -> Link {
    match sock.state() {
        DISCONNECTED => Link::Ended(sock.sticky().unwrap_or(WsaError::ConnAborted)),
        CONNECTED if sock.function.is_dead() => Link::Ended(WsaError::ConnAborted),
        // EDGE orphaned (acquire): pairs with the filing of the event.
        CONNECTED if sock.record.orphaned.load(Ordering::Acquire) != 0 => Link::Orphaned,
        CONNECTED => Link::Up,
        _ => Link::Down,
    }
}
