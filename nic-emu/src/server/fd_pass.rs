//! Bytes and descriptors over Unix sockets.
//!
//! Place: everything the process side sends or receives over a socket goes through here, and the blocking client of `control` too.
//! Invariants: never blocks unless asked, whatever the other holder of the socket did to its flags; every descriptor that arrives is
//! owned or closed, also those beyond the limit, those the kernel could not number, and the pidfd of SO_PASSPIDFD; nothing a peer
//! sends makes us allocate.
//! Source: unix(7), recvmsg(2), cmsg(3). Leaves out: framing.
#![expect(
    unsafe_code,
    reason = "recvmsg with a control buffer of its own, because the wrapper of nix leaks descriptors of truncated messages; poll, because \
              that of nix drops POLLRDHUP"
)]

use std::io::IoSlice;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::socket::{ControlMessage, MsgFlags, getsockopt, sendmsg, sockopt};

/// Words of the control buffer: the 253 descriptors that the kernel allows in one message, credentials, a pidfd, a security label.
const CONTROL_WORDS: usize = 256;

/// What one receive brought.
#[derive(Debug, Default)]
pub(crate) struct Received {
    /// Bytes; 0 at the end of a stream.
    pub(crate) bytes: usize,
    /// Descriptors, close-on-exec.
    pub(crate) fds: Vec<OwnedFd>,
    /// Descriptors were sent beyond the limit, or could not be received.
    pub(crate) lost_fds: bool,
    /// The packet was longer than the buffer.
    pub(crate) truncated: bool,
}

/// How long a call may wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wait {
    /// Not at all.
    No,
    /// As the socket's own timeouts say.
    Yes,
}

impl Wait {
    const fn flag(self) -> libc::c_int {
        match self {
            Self::No => libc::MSG_DONTWAIT,
            Self::Yes => 0,
        }
    }
}

/// Receives into `buffer`, keeping at most `max_fds` descriptors.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    max_fds: usize,
    wait: Wait,
) -> Result<Received, Errno> {
    let mut control = [0u64; CONTROL_WORDS];
    let mut iov = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: an all-zero msghdr is a valid one: null pointers with zero lengths.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of::<[u64; CONTROL_WORDS]>();
    let flags = wait.flag() | libc::MSG_CMSG_CLOEXEC;
    let n = loop {
        // SAFETY: `message` names one iovec over `buffer` and the control buffer, all alive and writable during the call.
        let n = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
        match Errno::result(n) {
            Err(Errno::EINTR) => {}
            other => break other?,
        }
    };
    let mut received = Received {
        bytes: usize::try_from(n).unwrap_or(0),
        truncated: message.msg_flags & libc::MSG_TRUNC != 0,
        // Set when the process is out of descriptors too: the kernel drops those it cannot number.
        lost_fds: message.msg_flags & libc::MSG_CTRUNC != 0,
        ..Received::default()
    };
    let used = message
        .msg_controllen
        .min(size_of::<[u64; CONTROL_WORDS]>());
    let mut bytes = [0u8; CONTROL_WORDS * 8];
    for (to, from) in bytes.chunks_exact_mut(8).zip(control) {
        to.copy_from_slice(&from.to_ne_bytes());
    }
    for_each_descriptor(&bytes[..used], |fd, is_right| {
        // SAFETY: the kernel just gave us this descriptor with the message; nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        if !is_right {
            // A pidfd nobody asked for: closed here.
        } else if received.fds.len() < max_fds {
            received.fds.push(fd);
        } else {
            received.lost_fds = true;
        }
    });
    Ok(received)
}

/// Calls `each` for the descriptors in a control buffer that the kernel filled; the flag says whether it came by SCM_RIGHTS.
fn for_each_descriptor(control: &[u8], mut each: impl FnMut(RawFd, bool)) {
    const HEADER: usize = size_of::<libc::cmsghdr>();
    const ALIGN: usize = size_of::<usize>();
    const SCM_PIDFD: libc::c_int = 4;
    let mut rest = control;
    while rest.len() >= HEADER {
        let (len, fields) = rest.split_at(size_of::<usize>());
        let len = usize::from_ne_bytes(len.try_into().expect("split at the size of usize"));
        let field = |at: usize| {
            let bytes = fields[at..at + 4].try_into().expect("four bytes");
            libc::c_int::from_ne_bytes(bytes)
        };
        let (level, kind) = (field(0), field(4));
        if len < HEADER || len > rest.len() {
            return;
        }
        if level == libc::SOL_SOCKET && (kind == libc::SCM_RIGHTS || kind == SCM_PIDFD) {
            for fd in rest[HEADER..len].chunks_exact(size_of::<RawFd>()) {
                let fd = RawFd::from_ne_bytes(fd.try_into().expect("chunks of one descriptor"));
                if fd >= 0 {
                    each(fd, kind == libc::SCM_RIGHTS);
                }
            }
        }
        rest = rest.get(len.next_multiple_of(ALIGN)..).unwrap_or(&[]);
    }
}

/// Sends `bytes` with descriptors on the first of them; returns how many bytes went.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[OwnedFd],
    wait: Wait,
) -> Result<usize, Errno> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights[..] };
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::from_bits_retain(wait.flag());
    loop {
        let iov = [IoSlice::new(bytes)];
        match sendmsg::<()>(socket.as_raw_fd(), &iov, control, flags, None) {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

/// Whether `fd` is a Unix socket of this type: what a peer passed may be anything.
pub(crate) fn is_unix_socket(fd: BorrowedFd<'_>, kind: nix::sys::socket::SockType) -> bool {
    let is_unix =
        nix::sys::socket::getsockname::<nix::sys::socket::SockaddrStorage>(fd.as_raw_fd())
            .is_ok_and(|name| {
                use nix::sys::socket::{AddressFamily, SockaddrLike};
                name.family() == Some(AddressFamily::Unix)
            });
    is_unix && getsockopt(&fd, sockopt::SockType) == Ok(kind)
}

/// User at the other end, as the kernel recorded it when the socket was connected.
pub(crate) fn peer_uid(socket: BorrowedFd<'_>) -> Result<u32, Errno> {
    getsockopt(&socket, sockopt::PeerCredentials).map(|credentials| credentials.uid())
}

/// Process at the other end, as the kernel recorded it when the socket was connected or made.
pub(crate) fn peer_pid(socket: BorrowedFd<'_>) -> Option<i32> {
    let credentials = getsockopt(&socket, sockopt::PeerCredentials).ok()?;
    // 0: a process of a pid namespace that we do not see.
    Some(credentials.pid()).filter(|&pid| pid > 0)
}

/// Whether the other end sends nothing any more. Asked when a read brought no bytes, which an empty packet does too.
pub(crate) fn is_hung_up(socket: BorrowedFd<'_>) -> bool {
    let mut poll = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: libc::POLLRDHUP,
        revents: 0,
    };
    // SAFETY: one pollfd, alive and writable during the call, which does not wait.
    let n = unsafe { libc::poll(&raw mut poll, 1, 0) };
    // A poll that fails cannot tell; a socket that cannot be polled is of no more use.
    n < 0 || poll.revents & (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR | libc::POLLNVAL) != 0
}

/// Whether `fd` is a memfd that can never become shorter.
pub(crate) fn is_sealed_memfd(fd: BorrowedFd<'_>) -> bool {
    fcntl(fd.as_fd(), FcntlArg::F_GET_SEALS)
        .is_ok_and(|seals| SealFlag::from_bits_retain(seals).contains(SealFlag::F_SEAL_SHRINK))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    fn pair(kind: SockType) -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).unwrap()
    }

    fn pipe_ends(n: usize) -> (OwnedFd, Vec<OwnedFd>) {
        let (read, write) = nix::unistd::pipe().unwrap();
        let ends = (0..n).map(|_| write.try_clone().unwrap()).collect();
        (read, ends)
    }

    /// All write ends are closed exactly when a read shows the end of file.
    fn all_closed(read: &OwnedFd) -> bool {
        fcntl(read, FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).unwrap();
        nix::unistd::read(read, &mut [0; 1]) == Ok(0)
    }

    #[test]
    fn surplus_descriptors_are_closed() {
        let (a, b) = pair(SockType::Stream);
        let (read, ends) = pipe_ends(253);
        assert_eq!(send(a.as_fd(), b"x", &ends, Wait::No), Ok(1));
        drop(ends);
        let received = receive(b.as_fd(), &mut [0; 8], 16, Wait::No).unwrap();
        assert_eq!((received.bytes, received.fds.len()), (1, 16));
        assert!(received.lost_fds);
        assert!(!all_closed(&read));
        drop(received);
        assert!(all_closed(&read));
    }

    #[test]
    fn a_peer_that_asks_for_credentials_on_our_socket_changes_nothing() {
        let (a, b) = pair(SockType::SeqPacket);
        nix::sys::socket::setsockopt(&b, sockopt::PassCred, &true).unwrap();
        let (read, ends) = pipe_ends(1);
        send(a.as_fd(), b"hello", &ends, Wait::No).unwrap();
        drop(ends);
        let received = receive(b.as_fd(), &mut [0; 3], 16, Wait::No).unwrap();
        assert_eq!((received.bytes, received.fds.len()), (3, 1));
        assert!(received.truncated && !received.lost_fds);
        drop(received);
        assert!(all_closed(&read));
    }

    #[test]
    fn an_empty_socket_is_eagain_and_a_closed_one_is_zero_bytes() {
        let (a, b) = pair(SockType::Stream);
        assert_eq!(
            receive(b.as_fd(), &mut [0; 1], 0, Wait::No).unwrap_err(),
            Errno::EAGAIN
        );
        drop(a);
        assert_eq!(
            receive(b.as_fd(), &mut [0; 1], 0, Wait::No).unwrap().bytes,
            0
        );
    }

    #[test]
    fn only_unix_sockets_of_the_right_type_pass() {
        let (stream, _other) = pair(SockType::Stream);
        let (read, _write) = nix::unistd::pipe().unwrap();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(is_unix_socket(stream.as_fd(), SockType::Stream));
        assert!(!is_unix_socket(stream.as_fd(), SockType::SeqPacket));
        assert!(!is_unix_socket(read.as_fd(), SockType::Stream));
        assert!(!is_unix_socket(tcp.as_fd(), SockType::Stream));
        assert_eq!(peer_uid(stream.as_fd()), Ok(nix::unistd::getuid().as_raw()));
        assert!(!is_sealed_memfd(read.as_fd()));
    }
}
