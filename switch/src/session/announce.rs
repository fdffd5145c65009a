//! Signals that tell of a connection: SIGIO, or what F_SETSIG chose, and SIGURG.
//!
//! Place: called wherever the kernel would call its `sk_wake_async`. The owner, the signal and `O_ASYNC` are those of the kernel socket
//! behind the program's descriptor, which every process of the family shares; the call that set them tells us where to look.
//! Invariants: whoever handles the event raises the signal, before anybody can see the event. A connection without an owner costs one
//! load.
//! Source: fcntl(2), F_SETOWN, F_SETSIG; socket(7). Leaves out: what signals to a process group carry
//! beside their number.
#![expect(unsafe_code, reason = "asks for the owner, and queues a signal")]

use ring_proto::sync::Ordering;

use super::conn::Conn;
use crate::sys;

/// What a signal tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Tidings {
    /// Data, or an end.
    In,
    /// Room.
    Out,
    /// An urgent byte.
    Urgent,
    /// An error.
    Error,
}

impl Tidings {
    /// `si_code` and `si_band` of siginfo.h.
    const fn told(self) -> (i32, i64) {
        let (code, band) = match self {
            Self::In => (1, libc::POLLIN | libc::POLLRDNORM),
            Self::Out => (2, libc::POLLOUT | libc::POLLWRNORM | libc::POLLWRBAND),
            Self::Error => (4, libc::POLLERR),
            Self::Urgent => (5, libc::POLLPRI | libc::POLLRDBAND),
        };
        (code, band as i64)
    }
}

impl Conn {
    /// Looks for an owner behind descriptor `fd` from now on; the service thread must be woken then.
    pub fn set_owned(&self, fd: i32) {
        // Relaxed: a number.
        self.owned_fd.store(fd, Ordering::Relaxed);
    }

    /// Looks for an owner behind descriptor `fd` if there is one.
    pub fn adopt_owner(&self, fd: i32) {
        if Owner::of(fd).is_some() {
            self.set_owned(fd);
        }
    }

    /// Whether events are to be signalled, so that somebody must look for them.
    #[inline]
    pub(super) fn is_owned(&self) -> bool {
        // Relaxed: a number.
        self.owned_fd.load(Ordering::Relaxed) >= 0
    }

    /// Tells the owner of an event, if the program asked for that (`O_ASYNC`).
    #[inline]
    pub(super) fn announce(&self, what: Tidings) {
        if self.is_owned() {
            self.signal_owner(what);
        }
    }

    /// Tells the owner of urgent data, and of the event.
    pub(super) fn announce_urgent(&self) {
        if self.is_owned() {
            let fd = self.owned_fd.load(Ordering::Relaxed);
            if let Some(owner) = Owner::of(fd) {
                owner.signal(libc::SIGURG);
            }
            self.signal_owner(Tidings::Urgent);
        }
    }

    fn signal_owner(&self, what: Tidings) {
        signal(self.owned_fd.load(Ordering::Relaxed), what);
    }
}

/// Tells the owner of listener `fd` that a connection waits.
pub(crate) fn arrival(fd: i32) {
    signal(fd, Tidings::In);
}

#[cold]
fn signal(fd: i32, what: Tidings) {
    let is_asynchronous =
        sys::fcntl(fd, libc::F_GETFL, 0).is_ok_and(|flags| flags & libc::O_ASYNC != 0);
    let Some(owner) = Owner::of(fd).filter(|_| is_asynchronous) else {
        return;
    };
    match sys::fcntl(fd, F_GETSIG, 0) {
        Ok(chosen) if chosen != 0 => owner.queue(chosen, fd, what),
        _ => owner.signal(libc::SIGIO),
    }
}

/// `F_GETSIG` of fcntl.h.
const F_GETSIG: i32 = 11;
/// `F_GETOWN_EX` of fcntl.h.
const F_GETOWN_EX: i32 = 16;

/// `struct f_owner_ex`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Owner {
    kind: i32,
    id: i32,
}

impl Owner {
    const THREAD: i32 = 0;
    const GROUP: i32 = 2;

    /// The owner of a descriptor.
    fn of(fd: i32) -> Option<Self> {
        let mut owner = Self::default();
        let at = (&raw mut owner).expose_provenance();
        sys::fcntl(fd, F_GETOWN_EX, at).ok()?;
        (owner.id != 0).then_some(owner)
    }

    fn signal(self, number: i32) {
        let (call, target) = match self.kind {
            Self::THREAD => (libc::SYS_tkill, self.id),
            Self::GROUP => (libc::SYS_kill, -self.id),
            _ => (libc::SYS_kill, self.id),
        };
        let args = [sys::int(target), sys::int(number), 0, 0, 0, 0];
        // SAFETY: takes no pointer. An owner that is gone hears nothing.
        let _gone = unsafe { sys::syscall(call, args) };
    }

    /// Signals with the descriptor and the event. The kernel lets a thread tell `POLL_*` to itself alone; to others goes `SI_SIGIO`.
    fn queue(self, number: i32, fd: i32, what: Tidings) {
        let (code, band) = what.told();
        let is_queued = [code, libc::SI_SIGIO]
            .into_iter()
            .any(|code| self.queue_as(code, number, fd, band));
        if !is_queued {
            self.signal(number);
        }
    }

    fn queue_as(self, code: i32, number: i32, fd: i32, band: i64) -> bool {
        if self.kind == Self::GROUP {
            return false;
        }
        // siginfo_t: number, errno, code, padding; then band and descriptor.
        let mut info = [0_u64; 16];
        info[0] = u64::from(number.cast_unsigned());
        info[1] = u64::from(code.cast_unsigned());
        info[2] = band.cast_unsigned();
        info[3] = u64::from(fd.cast_unsigned());
        let at = (&raw const info).expose_provenance();
        let own = sys::getpid();
        let (call, args) = match self.kind {
            Self::THREAD => (
                libc::SYS_rt_tgsigqueueinfo,
                [sys::int(own), sys::int(self.id), sys::int(number), at, 0, 0],
            ),
            _ => (
                libc::SYS_rt_sigqueueinfo,
                [sys::int(self.id), sys::int(number), at, 0, 0, 0],
            ),
        };
        // SAFETY: a whole siginfo_t, which the kernel copies.
        unsafe { sys::syscall(call, args) }.is_ok()
    }
}
