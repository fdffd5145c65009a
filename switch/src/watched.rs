//! System calls that mean something else to the library than to the kernel, and which of their arguments name descriptors.
//!
//! Place: the audit of the preload library asks [`call`] for every system call past it; `sanlab run --audit` names findings by it.
//! Invariants: a call stands here exactly if the kernel's answer for a SAN socket, or for a set with such sockets, is not the program's
//! truth, or if it changes what the library must know. `fstat` of a SAN socket is a socket's and right: it is not here.
//! Source: syscalls(2), numbers of x86-64. Leaves out: what the call does.

/// How a call names descriptors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// Uses the descriptor in this argument.
    Uses(u8),
    /// Changes what is known of the descriptor in this argument, also of one that is not the SAN's yet.
    Changes(u8),
    /// Uses the descriptors in these arguments.
    UsesBoth(u8, u8),
    /// Puts a duplicate of the first over the second.
    Duplicates,
    /// `fcntl`: it depends on the command.
    Fcntl,
    /// `ioctl`: it depends on the request.
    Ioctl,
    /// An array of `pollfd` and its length.
    Polls,
    /// Three sets of descriptors.
    Selects,
    /// `epoll_ctl`: a set and a descriptor.
    Controls,
    /// A range of descriptors.
    Range,
    /// A message, which may carry descriptors.
    Sends,
    /// Makes a socket of this family and type.
    Makes,
    /// Starts another image.
    Image,
    /// Makes a copy of the process.
    Copies,
    /// Makes a ring through which any descriptor can be used.
    Ring,
}

/// A call and how it names descriptors.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Number.
    pub number: u32,
    /// Name.
    pub name: &'static str,
    /// Descriptors.
    pub shape: Shape,
}

macro_rules! calls {
    ($($number:literal $name:literal $shape:expr;)*) => {
        /// All of them, by number.
        const CALLS: &[Call] = &[$(Call { number: $number, name: $name, shape: $shape },)*];
    };
}

calls! {
    0 "read" Shape::Uses(0);
    1 "write" Shape::Uses(0);
    3 "close" Shape::Changes(0);
    7 "poll" Shape::Polls;
    16 "ioctl" Shape::Ioctl;
    19 "readv" Shape::Uses(0);
    20 "writev" Shape::Uses(0);
    23 "select" Shape::Selects;
    32 "dup" Shape::Changes(0);
    33 "dup2" Shape::Duplicates;
    40 "sendfile" Shape::UsesBoth(0, 1);
    41 "socket" Shape::Makes;
    42 "connect" Shape::Changes(0);
    43 "accept" Shape::Changes(0);
    44 "sendto" Shape::Uses(0);
    45 "recvfrom" Shape::Uses(0);
    46 "sendmsg" Shape::Sends;
    47 "recvmsg" Shape::Uses(0);
    48 "shutdown" Shape::Uses(0);
    49 "bind" Shape::Changes(0);
    50 "listen" Shape::Changes(0);
    51 "getsockname" Shape::Uses(0);
    52 "getpeername" Shape::Uses(0);
    54 "setsockopt" Shape::Changes(0);
    55 "getsockopt" Shape::Uses(0);
    56 "clone" Shape::Copies;
    57 "fork" Shape::Copies;
    59 "execve" Shape::Image;
    72 "fcntl" Shape::Fcntl;
    232 "epoll_wait" Shape::Uses(0);
    233 "epoll_ctl" Shape::Controls;
    270 "pselect6" Shape::Selects;
    271 "ppoll" Shape::Polls;
    275 "splice" Shape::UsesBoth(0, 2);
    281 "epoll_pwait" Shape::Uses(0);
    288 "accept4" Shape::Changes(0);
    292 "dup3" Shape::Duplicates;
    299 "recvmmsg" Shape::Uses(0);
    307 "sendmmsg" Shape::Uses(0);
    322 "execveat" Shape::Image;
    327 "preadv2" Shape::Uses(0);
    328 "pwritev2" Shape::Uses(0);
    425 "io_uring_setup" Shape::Ring;
    435 "clone3" Shape::Copies;
    436 "close_range" Shape::Range;
    441 "epoll_pwait2" Shape::Uses(0);
}

/// One past the highest number.
const END: usize = 442;

/// Place in [`CALLS`] plus one, by number.
static PLACES: [u8; END] = {
    let mut places = [0; END];
    let mut n = 0;
    while n < CALLS.len() {
        #[expect(clippy::cast_possible_truncation, reason = "a short list")]
        let place = n as u8 + 1;
        places[CALLS[n].number as usize] = place;
        n += 1;
    }
    places
};

/// The call of this number, if it is one to be watched.
#[must_use]
pub fn call(number: usize) -> Option<&'static Call> {
    let place = usize::from(*PLACES.get(number)?);
    CALLS.get(place.checked_sub(1)?)
}

/// Name of a call of the list.
#[must_use]
pub fn name_of(number: u32) -> Option<&'static str> {
    call(number as usize).map(|call| call.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn numbers_are_the_kernels() {
        let named = [
            (libc::SYS_read, "read"),
            (libc::SYS_close, "close"),
            (libc::SYS_ioctl, "ioctl"),
            (libc::SYS_sendfile, "sendfile"),
            (libc::SYS_accept4, "accept4"),
            (libc::SYS_epoll_ctl, "epoll_ctl"),
            (libc::SYS_pselect6, "pselect6"),
            (libc::SYS_ppoll, "ppoll"),
            (libc::SYS_splice, "splice"),
            (libc::SYS_dup2, "dup2"),
            (libc::SYS_dup3, "dup3"),
            (libc::SYS_fcntl, "fcntl"),
            (libc::SYS_recvmmsg, "recvmmsg"),
            (libc::SYS_sendmmsg, "sendmmsg"),
            (libc::SYS_preadv2, "preadv2"),
            (libc::SYS_pwritev2, "pwritev2"),
            (libc::SYS_close_range, "close_range"),
            (libc::SYS_epoll_pwait2, "epoll_pwait2"),
            (libc::SYS_io_uring_setup, "io_uring_setup"),
            (libc::SYS_clone, "clone"),
            (libc::SYS_clone3, "clone3"),
            (libc::SYS_execve, "execve"),
            (libc::SYS_execveat, "execveat"),
            (libc::SYS_getsockopt, "getsockopt"),
        ];
        for (number, name) in named {
            let number = u32::try_from(number).unwrap();
            assert_eq!(name_of(number), Some(name));
        }
    }

    #[test]
    fn numbers_grow_and_others_are_not_watched() {
        assert!(CALLS.windows(2).all(|w| w[0].number < w[1].number));
        assert!(call(5).is_none(), "fstat tells the truth");
        assert!(call(15).is_none());
        assert!(call(usize::MAX).is_none());
        assert!(call(END).is_none());
    }
}
