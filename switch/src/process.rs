//! This process before the emulator: the inherited channel, the process socket, and what a fork does to them.
//!
//! Place: the preload library introduces the process when it makes its first IP socket, and calls the fork steps from its
//! `pthread_atfork` handlers; the opener of the provider sends its messages through [`Process::send`].
//! Invariants: nothing here waits for the emulator; a process without a channel, or with a dead one, works on without it. The
//! process socket's end in this process is held by this process alone: a child gets one of its own before it exists, so that the
//! emulator sees each of them end.
//! Source: `ring_proto::channel`. Leaves out: the functions themselves (driver), and the service thread.

use std::os::fd::RawFd;

use ring_proto::channel::{self, Message};
use ring_proto::sync::{AtomicI32, AtomicU32, Ordering};
use zerocopy::IntoBytes;

use crate::sys::{self, SysResult};
use crate::table::{INTERNAL_LIMIT, Table};
use crate::telemetry::Telemetry;

const NOT_INTRODUCED: u32 = 0;
const BUSY: u32 = 1;
const INTRODUCED: u32 = 2;

/// Descriptor numbers kept for the library below the limit.
const RESERVE: u64 = 512;

/// The process as the emulator knows it.
#[derive(Debug)]
pub struct Process {
    table: &'static Table,
    channel: AtomicI32,
    socket: AtomicI32,
    state: AtomicU32,
    /// The end of a child about to be forked.
    child: AtomicI32,
    /// Process id, so that a `vfork` child can be told apart.
    pid: AtomicI32,
    /// What the emulator reads of this process.
    pub telemetry: Telemetry,
}

impl Process {
    /// A process that has told nobody of itself; `channel` is the inherited descriptor.
    #[must_use]
    pub fn new(table: &'static Table, channel: Option<RawFd>) -> Self {
        let channel = channel.filter(|&fd| is_channel(fd));
        if let Some(fd) = channel {
            table.hide(fd);
        }
        Self {
            table,
            channel: AtomicI32::new(channel.unwrap_or(-1)),
            socket: AtomicI32::new(-1),
            state: AtomicU32::new(NOT_INTRODUCED),
            child: AtomicI32::new(-1),
            pid: AtomicI32::new(sys::getpid()),
            telemetry: Telemetry::new(),
        }
    }

    /// Whether there is an emulator to talk to.
    #[must_use]
    pub fn has_channel(&self) -> bool {
        self.channel.load(Ordering::Relaxed) >= 0
    }

    /// Whether the caller runs in a `vfork` child (or in another process that shares or copied this memory without `fork`): it may
    /// change nothing but the kernel's state.
    #[must_use]
    pub fn is_foreign(&self) -> bool {
        self.pid.load(Ordering::Relaxed) != sys::getpid()
    }

    /// Introduces this process, once. Cheap to call again.
    #[inline]
    pub fn introduce(&self) {
        // Relaxed: the slow path decides.
        if self.state.load(Ordering::Relaxed) != INTRODUCED {
            self.introduce_now();
        }
    }

    #[cold]
    fn introduce_now(&self) {
        let channel = self.channel.load(Ordering::Relaxed);
        let claimed =
            self.state
                .compare_exchange(NOT_INTRODUCED, BUSY, Ordering::Acquire, Ordering::Relaxed);
        if claimed.is_err() {
            return;
        }
        if channel >= 0 && self.socket.load(Ordering::Relaxed) < 0 {
            // An emulator that is gone or does not listen is no emulator; sockets stay on TCP.
            self.connect(channel).ok();
        }
        if self.socket.load(Ordering::Relaxed) >= 0 {
            self.open_telemetry().ok();
        }
        // Release: pairs with the claim of a later thread, which needs nothing, and with `send`.
        self.state.store(INTRODUCED, Ordering::Release);
    }

    fn connect(&self, channel: RawFd) -> SysResult<()> {
        let [mine, theirs] = self.pair()?;
        let message = Message::new(channel::PROCESS, 0, 0, 0);
        let sent = sys::send_with_fd(channel, message.as_bytes(), Some(theirs));
        // The emulator has its own descriptor now.
        sys::close(theirs).ok();
        if let Err(errno) = sent {
            self.close_internal(mine);
            return Err(errno);
        }
        self.socket.store(mine, Ordering::Release);
        Ok(())
    }

    /// A socket pair whose first end is internal.
    fn pair(&self) -> SysResult<[RawFd; 2]> {
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        let [mine, theirs] = sys::socketpair(libc::AF_UNIX, kind)?;
        Ok([self.adopt(mine), theirs])
    }

    fn open_telemetry(&self) -> SysResult<()> {
        let fd = self.telemetry.open(&program_name())?;
        let result = self.send(&Message::new(channel::TELEMETRY, 0, 0, 0), Some(fd));
        // The mapping stays.
        sys::close(fd).ok();
        result
    }

    /// Sends a message over the process socket.
    ///
    /// # Errors
    /// `ENOTCONN` without an emulator, else the kernel's; `EAGAIN` when the emulator does not keep up.
    pub fn send(&self, message: &Message, fd: Option<RawFd>) -> SysResult<()> {
        let socket = self.socket.load(Ordering::Acquire);
        if socket < 0 {
            return Err(libc::ENOTCONN);
        }
        sys::send_with_fd(socket, message.as_bytes(), fd)
    }

    /// Before a fork: introduces the child.
    pub fn before_fork(&self) {
        if self.socket.load(Ordering::Acquire) < 0 {
            return;
        }
        let Ok([child, theirs]) = self.pair() else {
            return;
        };
        let sent = self.send(&Message::new(channel::PROCESS, 0, 0, 0), Some(theirs));
        sys::close(theirs).ok();
        if sent.is_ok() {
            self.child.store(child, Ordering::Relaxed);
        } else {
            self.close_internal(child);
        }
    }

    /// The descriptor of the child's process socket between [`Self::before_fork`] and the fork: messages about the child.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn send_for_child(&self, message: &Message, fd: Option<RawFd>) -> SysResult<()> {
        let socket = self.child.load(Ordering::Relaxed);
        if socket < 0 {
            return Err(libc::ENOTCONN);
        }
        sys::send_with_fd(socket, message.as_bytes(), fd)
    }

    /// After a fork, in the parent. If the fork failed, the child's socket hangs up here.
    pub fn after_fork_in_parent(&self) {
        let child = self.child.swap(-1, Ordering::Relaxed);
        if child >= 0 {
            self.close_internal(child);
        }
    }

    /// After a fork, in the child: lets go of the parent's socket, or the parent's death would never be seen.
    pub fn after_fork_in_child(&self) {
        self.pid.store(sys::getpid(), Ordering::Relaxed);
        let child = self.child.swap(-1, Ordering::Relaxed);
        let parents = self.socket.swap(child, Ordering::Relaxed);
        if parents >= 0 {
            self.close_internal(parents);
        }
        self.telemetry.forked();
        // Another thread of the parent may have been at it; without a socket of its own the child introduces itself.
        self.state.store(NOT_INTRODUCED, Ordering::Relaxed);
    }

    /// Moves a descriptor of the library up, out of the program's way, and hides it. On failure the number stays.
    #[must_use]
    pub fn adopt(&self, fd: RawFd) -> RawFd {
        let high = sys::fcntl(fd, libc::F_DUPFD_CLOEXEC, lowest_internal());
        let fd = match high {
            Ok(high) if usize::try_from(high).is_ok_and(|h| h < INTERNAL_LIMIT) => {
                // The duplicate keeps the object.
                sys::close(fd).ok();
                high
            }
            Ok(high) => {
                sys::close(high).ok();
                fd
            }
            Err(_) => fd,
        };
        self.table.hide(fd);
        fd
    }

    /// Closes a descriptor of the library.
    pub fn close_internal(&self, fd: RawFd) {
        self.table.unhide(fd);
        // Nothing of the library's descriptors is written back at close.
        sys::close(fd).ok();
    }
}

fn is_channel(fd: RawFd) -> bool {
    sys::int_option(fd, libc::SOL_SOCKET, libc::SO_DOMAIN) == Ok(libc::AF_UNIX)
        && sys::int_option(fd, libc::SOL_SOCKET, libc::SO_TYPE) == Ok(libc::SOCK_SEQPACKET)
}

/// Where the library's descriptors begin: a reserve below the soft limit, and never above [`INTERNAL_LIMIT`], so that a program
/// that raises its limit later finds them where they were.
fn lowest_internal() -> usize {
    let soft = sys::descriptor_limit().min(INTERNAL_LIMIT as u64);
    let reserve = RESERVE.min(soft / 2);
    usize::try_from(soft - reserve).unwrap_or(0)
}

/// Name of the program, as `comm` shows it.
fn program_name() -> Vec<u8> {
    let mut name = [0_u8; 64];
    let len = sys::executable(&mut name);
    let path = &name[..len];
    let start = path.iter().rposition(|&b| b == b'/').map_or(0, |n| n + 1);
    path[start..].to_vec()
}

#[cfg(test)]
mod tests {
    use zerocopy::FromBytes;

    use super::*;
    use crate::table::Kind;

    fn receive(socket: RawFd) -> Option<(Message, Option<RawFd>)> {
        let mut bytes = [0_u8; 32];
        let (len, fd) = sys::receive_with_fd(socket, &mut bytes).ok()?;
        assert_eq!(len, 32);
        Some((Message::read_from_bytes(&bytes).unwrap(), fd))
    }

    fn channel() -> [RawFd; 2] {
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        sys::socketpair(libc::AF_UNIX, kind).unwrap()
    }

    #[test]
    fn a_process_introduces_itself_once_with_telemetry() {
        static TABLE: Table = Table::new();
        let [emulator, inherited] = channel();
        let process = Process::new(&TABLE, Some(inherited));
        assert!(process.has_channel());
        assert_eq!(TABLE.kind(inherited), Kind::Internal);
        process.introduce();
        process.introduce();
        let (message, socket) = receive(emulator).unwrap();
        assert!(message.is_sound());
        assert_eq!(message.kind, channel::PROCESS);
        let socket = socket.unwrap();
        let (message, memfd) = receive(socket).unwrap();
        assert_eq!(message.kind, channel::TELEMETRY);
        assert!(memfd.is_some());
        assert!(receive(emulator).is_none());
        assert!(receive(socket).is_none());
        assert!(process.telemetry.is_open());
    }

    #[test]
    fn a_child_gets_a_socket_before_it_exists() {
        static TABLE: Table = Table::new();
        let [emulator, inherited] = channel();
        let process = Process::new(&TABLE, Some(inherited));
        process.introduce();
        let parent = receive(emulator).unwrap().1.unwrap();
        assert!(receive(parent).is_some());
        process.before_fork();
        let (message, child) = receive(parent).unwrap();
        assert_eq!(message.kind, channel::PROCESS);
        let child = child.unwrap();
        process
            .send_for_child(&Message::new(channel::HOLDER, 1, 2, 3), None)
            .unwrap();
        let (message, _) = receive(child).unwrap();
        assert_eq!((message.a, message.b, message.c), (1, 2, 3));
        // This process plays the child: the parent's socket hangs up, the child's speaks.
        process.after_fork_in_child();
        process.introduce();
        assert_eq!(sys::receive_with_fd(parent, &mut [0; 32]), Ok((0, None)));
        let (message, _) = receive(child).unwrap();
        assert_eq!(message.kind, channel::TELEMETRY);
    }

    #[test]
    fn without_a_channel_nothing_happens() {
        static TABLE: Table = Table::new();
        for fd in [None, Some(-1), Some(1_000_000), Some(0)] {
            let process = Process::new(&TABLE, fd);
            assert!(!process.has_channel());
            process.introduce();
            process.before_fork();
            process.after_fork_in_parent();
            let message = Message::new(channel::HOLDER, 0, 0, 0);
            assert_eq!(process.send(&message, None), Err(libc::ENOTCONN));
        }
    }

    #[test]
    fn a_dead_emulator_is_no_emulator() {
        static TABLE: Table = Table::new();
        let [emulator, inherited] = channel();
        sys::close(emulator).unwrap();
        let process = Process::new(&TABLE, Some(inherited));
        process.introduce();
        let message = Message::new(channel::HOLDER, 0, 0, 0);
        assert_eq!(process.send(&message, None), Err(libc::ENOTCONN));
    }

    #[test]
    fn internal_descriptors_lie_high() {
        static TABLE: Table = Table::new();
        let process = Process::new(&TABLE, None);
        let [a, b] = channel();
        let high = process.adopt(a);
        assert!(usize::try_from(high).unwrap() >= lowest_internal());
        assert_eq!(TABLE.kind(high), Kind::Internal);
        assert_eq!(sys::fcntl(a, libc::F_GETFD, 0), Err(libc::EBADF));
        process.close_internal(high);
        assert_eq!(TABLE.kind(high), Kind::None);
        sys::close(b).unwrap();
    }
}
