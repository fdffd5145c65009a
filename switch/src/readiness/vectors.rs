//! Vectors of an epoll set: one per function that its connections live on, and the kernel's set in which threads sleep for them.
//!
//! Place: [`super::epoll`] arms connections with them. Invariants: what is ours stays out of the program's own set, which others may
//! watch and a child shares; threads of this process sleep in a set of their own that holds the program's set beside the vectors.
//! It is made with the first vector, or when another set watches this one; else a set is slept on as it is. Everything carries a mark as data that
//! no program can have: the address of one of our own bytes. Vectors are edge-triggered, the program's set is not: whoever sleeps
//! next must find what the last one left.
//! Source: ours; Linux fs/eventpoll.c for sets within sets.
//!
//! ```text
//! threads sleep here: [ the program's set | wake | vector, hang-up | vector, hang-up | ... ]
//!                              | program's descriptors, listeners' doorbells
//! ```

use std::os::fd::RawFd;
use std::sync::Arc;

use driver::spi::Waiter;
use driver::sys::Fd;

use crate::gate;
use crate::provider_table::ProviderRef;
use crate::sys;

/// Of a vector: readable, by edges.
#[expect(clippy::cast_sign_loss, reason = "bits")]
pub(super) const OURS: u32 = (libc::EPOLLIN | libc::EPOLLET) as u32;
/// Functions that one set can wait on.
const VECTORS: usize = 64;
/// Bytes whose addresses are the marks: the wake descriptor, the program's set, then two for each vector.
static MARKS: [u8; 2 + 2 * VECTORS] = [0; 2 + 2 * VECTORS];

/// What an event of ours says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mark {
    /// Look again.
    Wake,
    /// The program's set has something.
    Set,
    /// A vector fired.
    Vector(usize),
    /// The device behind a vector hung up.
    HangUp(usize),
}

/// Vectors of one set in one process.
#[derive(Debug, Default)]
pub(super) struct Vectors {
    list: Vec<Vector>,
    /// Where threads sleep once there is a vector.
    waits: Option<Fd>,
}

#[derive(Debug)]
struct Vector {
    provider: ProviderRef,
    waiter: Waiter,
    /// Fired since it was drained.
    has_fired: bool,
    /// Its device hung up, or would not show it.
    is_doubtful: bool,
}

impl Vectors {
    /// Where a thread sleeps; `None`: in the program's set itself.
    pub(super) fn waits(&self) -> Option<RawFd> {
        self.waits.as_ref().map(Fd::raw)
    }

    /// Makes fired vectors fit for the next arm, and asks devices that may be gone.
    pub(super) fn refresh(&mut self) {
        for vector in self.list.iter_mut().filter(|v| v.has_fired) {
            vector.provider.waiting.drain(vector.waiter);
            vector.has_fired = false;
        }
        for vector in self.list.iter().filter(|v| v.is_doubtful) {
            vector.provider.waiting.check(vector.waiter.function);
        }
    }

    /// Takes note of an event.
    pub(super) fn note(&mut self, mark: Mark) {
        if let Mark::Vector(at) | Mark::HangUp(at) = mark
            && let Some(vector) = self.list.get_mut(at)
        {
            vector.has_fired = true;
            vector.is_doubtful |= matches!(mark, Mark::HangUp(_));
        }
    }

    /// The vector for a function, made when it is the first. `set`: the program's.
    pub(super) fn of(
        &mut self,
        set: RawFd,
        provider: &ProviderRef,
        function: u32,
    ) -> Option<Waiter> {
        let known = self
            .list
            .iter()
            .find(|v| v.provider.index == provider.index && v.waiter.function == function);
        if let Some(known) = known {
            return Some(known.waiter);
        }
        let at = self.list.len();
        if at == VECTORS {
            return None;
        }
        let waits = self.make_waits(set)?;
        // The provider's own locks must be free when another thread forks.
        let inside = gate::enter();
        let waiter = provider.waiting.acquire(function).ok();
        drop(inside);
        let waiter = waiter?;
        let add = libc::EPOLL_CTL_ADD;
        if sys::epoll_control(waits, add, waiter.fd, OURS, Mark::Vector(at).data()).is_err() {
            provider.waiting.release(waiter);
            return None;
        }
        let functions = provider.waiting.functions();
        let hangup = functions
            .into_iter()
            .find(|&(index, _)| index == function)
            .and_then(|(_, fd)| fd);
        if let Some(hangup) = hangup {
            // Reported unasked, once, because it is an edge. A device that cannot be watched is asked at each sleep.
            let edge = libc::EPOLLET.cast_unsigned();
            sys::epoll_control(waits, add, hangup, edge, Mark::HangUp(at).data()).ok();
        }
        self.list.push(Vector {
            provider: Arc::clone(provider),
            waiter,
            has_fired: false,
            is_doubtful: hangup.is_none(),
        });
        Some(waiter)
    }

    /// Makes the place where threads sleep, without need of a vector.
    pub(super) fn make_waits(&mut self, set: RawFd) -> Option<RawFd> {
        if self.waits.is_none() {
            let waits = driver::sys::epoll().ok()?;
            let readable = libc::EPOLLIN.cast_unsigned();
            let data = Mark::Set.data();
            sys::epoll_control(waits.raw(), libc::EPOLL_CTL_ADD, set, readable, data).ok()?;
            self.waits = Some(waits);
        }
        self.waits()
    }

    /// In a forked child: all of it is the parent's.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Gives the vectors back.
    pub(super) fn release(&mut self) {
        let vectors = core::mem::take(self);
        let _inside = gate::enter();
        for vector in vectors.list {
            vector.provider.waiting.release(vector.waiter);
        }
    }
}

impl Mark {
    /// The word that carries it.
    pub(super) fn data(self) -> u64 {
        let at = match self {
            Self::Wake => 0,
            Self::Set => 1,
            Self::Vector(n) => 2 + 2 * n,
            Self::HangUp(n) => 3 + 2 * n,
        };
        core::ptr::from_ref(&MARKS[at]).addr() as u64
    }

    /// The mark that a word carries, `None` for a word of the program's.
    pub(super) fn of(data: u64) -> Option<Self> {
        let offset = data.checked_sub(Self::Wake.data())?;
        let at = usize::try_from(offset).ok().filter(|&n| n < MARKS.len())?;
        Some(match at {
            0 => Self::Wake,
            1 => Self::Set,
            at if at % 2 == 0 => Self::Vector(at / 2 - 1),
            at => Self::HangUp(at / 2 - 1),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_come_back_and_words_of_programs_are_none() {
        for mark in [
            Mark::Wake,
            Mark::Set,
            Mark::Vector(0),
            Mark::HangUp(0),
            Mark::Vector(63),
            Mark::HangUp(63),
        ] {
            assert_eq!(Mark::of(mark.data()), Some(mark));
        }
        for data in [
            0,
            7,
            u64::MAX,
            Mark::Wake.data() - 1,
            Mark::HangUp(63).data() + 1,
        ] {
            assert_eq!(Mark::of(data), None, "{data:#x}");
        }
    }
}
