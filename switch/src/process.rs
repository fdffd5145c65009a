//! This process before the emulator: the inherited channel, the process socket, and what a fork does to them.
//!
//! Place: the preload library introduces the process when it makes its first IP socket, and calls the fork steps from its
//! `pthread_atfork` handlers; the provider opens functions and names its holdings through [`Opener`].
//! Invariants: nothing here waits for the emulator's control thread but the opening of a function; a process without a channel, or
//! with a dead one, works on without it. The process socket's end in this process is held by this process alone: a child gets one
//! of its own before it exists, so that the emulator sees each of them end.
//! Source: `ring_proto::channel`. Leaves out: the functions themselves (driver), and the service thread.
#![expect(unsafe_code, reason = "takes over descriptors that it keeps by number")]

use std::os::fd::RawFd;
use std::sync::Arc;

use driver::opener::{Holding, Opener};
use driver::sys::{Errno as SysErrno, Fd};
use driver::vfio::client::Client;
use ring_proto::attach::{AttachError, Attachment};
use ring_proto::channel::{self, Message};
use ring_proto::sync::{AtomicI32, AtomicU32, Ordering};
use zerocopy::IntoBytes;

use crate::sys::{self, SysResult};
use crate::telemetry::Telemetry;

const NOT_INTRODUCED: u32 = 0;
const BUSY: u32 = 1;
const INTRODUCED: u32 = 2;

/// The process as the emulator knows it.
#[derive(Debug)]
pub struct Process {
    channel: AtomicI32,
    /// Numbers of descriptors that this value owns; -1 for none.
    socket: AtomicI32,
    child: AtomicI32,
    state: AtomicU32,
    /// Process id, so that a `vfork` child can be told apart.
    pid: AtomicI32,
    /// What the emulator reads of this process.
    pub telemetry: Telemetry,
}

impl Process {
    /// A process that has told nobody of itself; `channel` is the inherited descriptor.
    #[must_use]
    pub fn new(channel: Option<RawFd>) -> Self {
        let channel = channel.filter(|&fd| is_channel(fd));
        if let Some(fd) = channel {
            // SAFETY: the launcher left the descriptor to the library; it is never closed, but known as the library's from now on.
            core::mem::forget(unsafe { Fd::from_raw(fd) });
        }
        driver::sys::set_fd_floor(driver::sys::highest_floor());
        Self {
            channel: AtomicI32::new(channel.unwrap_or(-1)),
            socket: AtomicI32::new(-1),
            child: AtomicI32::new(-1),
            state: AtomicU32::new(NOT_INTRODUCED),
            pid: AtomicI32::new(sys::getpid()),
            telemetry: Telemetry::new(),
        }
    }

    /// Takes part in the report of the run behind an inherited descriptor, which is the library's from now on.
    pub fn join(&self, report: RawFd) -> bool {
        let is_joined = self.telemetry.report.join(report);
        if is_joined {
            // SAFETY: the launcher left the descriptor to the library; it is never closed.
            core::mem::forget(unsafe { Fd::from_raw(report) });
        }
        is_joined
    }

    /// Whether there is an emulator to talk to.
    #[must_use]
    pub fn has_channel(&self) -> bool {
        // Relaxed, here and below: numbers that change only while one thread runs, or under the claim of `introduce`.
        self.channel.load(Ordering::Relaxed) >= 0
    }

    /// The inherited channel.
    #[must_use]
    pub fn channel(&self) -> Option<RawFd> {
        let channel = self.channel.load(Ordering::Relaxed);
        (channel >= 0).then_some(channel)
    }

    /// Whether the caller runs in a `vfork` child (or in another process that shares or copied this memory without `fork`): it may
    /// change nothing but the kernel's state.
    #[must_use]
    pub fn is_foreign(&self) -> bool {
        self.pid.load(Ordering::Relaxed) != sys::getpid()
    }

    /// Introduces this process, once. Cheap to call again. On return it is done, whichever thread did it: who went on earlier would find
    /// no emulator, and stay on TCP for good.
    #[inline]
    pub fn introduce(&self) {
        // Acquire: the socket; pairs with the end of `introduce_now`.
        if self.state.load(Ordering::Acquire) != INTRODUCED {
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
            // Acquire: as in `introduce`.
            while self.state.load(Ordering::Acquire) == BUSY {
                driver::sys::yield_now();
            }
            return;
        }
        if channel >= 0 && self.socket.load(Ordering::Relaxed) < 0 {
            // An emulator that is gone or does not listen is no emulator; sockets stay on TCP.
            self.connect(channel).ok();
        }
        if self.socket.load(Ordering::Relaxed) >= 0 {
            self.open_telemetry().ok();
        }
        // Release: the socket; pairs with `send`.
        self.state.store(INTRODUCED, Ordering::Release);
    }

    fn connect(&self, channel: RawFd) -> SysResult<()> {
        let (mine, theirs) = driver::sys::socket_pair(true).map_err(SysErrno::raw_os_error)?;
        let message = Message::new(channel::PROCESS, 0, 0, 0);
        sys::send_with_fd(channel, message.as_bytes(), Some(theirs.raw()))?;
        self.socket.store(keep(mine), Ordering::Release);
        Ok(())
    }

    fn open_telemetry(&self) -> SysResult<()> {
        let fd = self.telemetry.open(program_name(&mut [0; 64]))?;
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

    /// Before a fork, after the providers have made their preparations: introduces the child, if that has not been done.
    pub fn before_fork(&self) {
        if self.child.load(Ordering::Relaxed) < 0 && self.socket.load(Ordering::Acquire) >= 0 {
            // A child that cannot be introduced now introduces itself over the channel.
            self.introduce_child(&[]).ok();
        }
    }

    fn introduce_child(&self, holdings: &[Holding]) -> SysResult<()> {
        let child = self.introduce_heir(holdings)?;
        give_up(self.child.swap(keep(child), Ordering::Relaxed));
        Ok(())
    }

    /// Makes the process socket of another process, with `holdings` in it.
    fn introduce_heir(&self, holdings: &[Holding]) -> SysResult<Fd> {
        let (heir, theirs) = driver::sys::socket_pair(true).map_err(SysErrno::raw_os_error)?;
        for holding in holdings {
            sys::send_with_fd(heir.raw(), holder(holding).as_bytes(), None)?;
        }
        self.send(&Message::new(channel::PROCESS, 0, 0, 0), Some(theirs.raw()))?;
        Ok(heir)
    }

    /// Takes over the process socket that an earlier image of the program, or another process, made for this one. Before
    /// [`Self::introduce`], which then has nothing to do but to show the telemetry.
    pub fn inherit(&self, socket: RawFd) {
        if !is_channel(socket) {
            return;
        }
        // SAFETY: the giver left the number to this library.
        let fd = unsafe { Fd::from_raw(socket) };
        // Open, as was seen above.
        fd.close_on_exec().ok();
        give_up(self.socket.swap(keep(fd), Ordering::Relaxed));
    }

    /// After a fork, in the parent. If the fork failed, the child's socket hangs up here.
    pub fn after_fork_in_parent(&self) {
        give_up(self.child.swap(-1, Ordering::Relaxed));
    }

    /// After a fork, in the child: lets go of the parent's socket, or the parent's death would never be seen. Once per fork, and
    /// before any provider's own step.
    pub fn after_fork_in_child(&self) {
        self.pid.store(sys::getpid(), Ordering::Relaxed);
        let child = self.child.swap(-1, Ordering::Relaxed);
        give_up(self.socket.swap(child, Ordering::Relaxed));
        self.telemetry.forked();
        // Another thread of the parent may have been at it; without a socket of its own the child introduces itself.
        self.state.store(NOT_INTRODUCED, Ordering::Relaxed);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        give_up(self.socket.swap(-1, Ordering::Relaxed));
        give_up(self.child.swap(-1, Ordering::Relaxed));
    }
}

/// The provider's way to functions: as this process.
#[derive(Clone, Debug)]
pub struct ProcessOpener(pub Arc<Process>);

impl Opener for ProcessOpener {
    fn open(&self) -> Result<Arc<dyn Attachment>, AttachError> {
        self.0.introduce();
        let (ours, theirs) =
            driver::sys::socket_pair(false).map_err(|e| system("socketpair")(e.raw_os_error()))?;
        let message = Message::new(channel::OPEN_FUNCTION, 0, 0, 0);
        self.0
            .send(&message, Some(theirs.raw()))
            .map_err(failed_to_send)?;
        drop(theirs);
        Ok(Arc::new(Client::attach(ours)?))
    }

    fn hold(&self, holding: Holding) -> Result<(), AttachError> {
        self.0.send(&holder(&holding), None).map_err(failed_to_send)
    }

    fn before_fork(&self, holdings: &[Holding]) -> Result<(), AttachError> {
        self.0.introduce_child(holdings).map_err(failed_to_send)
    }

    fn introduce_heir(&self, holdings: &[Holding]) -> Result<Fd, AttachError> {
        self.0.introduce_heir(holdings).map_err(failed_to_send)
    }

    /// The process does it once for all its providers, see [`Process::after_fork_in_parent`].
    fn after_fork_in_parent(&self) {}

    /// The process does it once for all its providers, see [`Process::after_fork_in_child`].
    fn after_fork_in_child(&self) {}
}

fn system(what: &'static str) -> impl FnOnce(i32) -> AttachError {
    move |errno| AttachError::System { what, errno }
}

fn failed_to_send(errno: i32) -> AttachError {
    let what = "a message over the process socket";
    match errno {
        libc::EPIPE | libc::ECONNRESET | libc::ENOTCONN | libc::ECONNREFUSED => {
            AttachError::Disconnected { what }
        }
        errno => AttachError::System { what, errno },
    }
}

fn holder(holding: &Holding) -> Message {
    let (function, slot) = (holding.function.0, holding.slot.0);
    Message::new(channel::HOLDER, function, slot, holding.generation)
}

/// Keeps a descriptor open by its number; it stays known as the library's.
fn keep(fd: Fd) -> RawFd {
    let number = fd.raw();
    core::mem::forget(fd);
    number
}

/// Closes what [`keep`] kept.
fn give_up(number: RawFd) {
    if number >= 0 {
        // SAFETY: the number was kept by `keep`, and its owner swapped it out.
        drop(unsafe { Fd::from_raw(number) });
    }
}

fn is_channel(fd: RawFd) -> bool {
    sys::int_option(fd, libc::SOL_SOCKET, libc::SO_DOMAIN) == Ok(libc::AF_UNIX)
        && sys::int_option(fd, libc::SOL_SOCKET, libc::SO_TYPE) == Ok(libc::SOCK_SEQPACKET)
}

/// Name of the program as it was started: that of a link to it, of a script and not of its interpreter. What ps(1) and ss(8) show, whole.
pub fn program_name(room: &mut [u8; 64]) -> &[u8] {
    let mut path = [0; 512];
    let mut name = file_name(sys::executed_as());
    if name.iter().all(u8::is_ascii_digit) {
        // Executed by its descriptor (fexecve): the kernel says `/dev/fd/3`.
        let len = sys::executable(&mut path);
        name = file_name(&path[..len]);
    }
    let len = name.len().min(room.len());
    room[..len].copy_from_slice(&name[..len]);
    &room[..len]
}

fn file_name(path: &[u8]) -> &[u8] {
    let start = path.iter().rposition(|&b| b == b'/').map_or(0, |n| n + 1);
    &path[start..]
}

#[cfg(test)]
mod tests {
    use zerocopy::FromBytes;

    use super::*;

    #[test]
    fn a_program_is_named_as_it_was_started() {
        assert_eq!(file_name(b"/usr/bin/redis-server"), b"redis-server");
        assert_eq!(file_name(b"x.py"), b"x.py");
        assert_eq!(file_name(b""), b"");
        let mut room = [0; 64];
        let name = program_name(&mut room);
        assert!(name.starts_with(b"switch-"), "{}", name.escape_ascii());
    }

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
        let [emulator, inherited] = channel();
        let process = Process::new(Some(inherited));
        assert!(process.has_channel());
        assert!(driver::sys::is_internal(inherited));
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
    fn every_thread_finds_the_process_introduced() {
        for _ in 0..50 {
            let [emulator, inherited] = channel();
            let process = Process::new(Some(inherited));
            let begin = std::sync::Barrier::new(8);
            std::thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| {
                        begin.wait();
                        process.introduce();
                        process
                            .send(&Message::new(channel::HOLDER, 1, 1, 1), None)
                            .unwrap();
                    });
                }
            });
            assert_eq!(receive(emulator).unwrap().0.kind, channel::PROCESS);
            assert!(receive(emulator).is_none());
        }
    }

    #[test]
    fn a_child_gets_a_socket_before_it_exists() {
        let [emulator, inherited] = channel();
        let process = Process::new(Some(inherited));
        process.introduce();
        let parent = receive(emulator).unwrap().1.unwrap();
        assert!(receive(parent).is_some());
        let holding = Holding {
            function: ring_proto::ids::FunctionId(1),
            slot: ring_proto::ids::HolderSlot(2),
            generation: 3,
        };
        let process = Arc::new(process);
        let opener = ProcessOpener(Arc::clone(&process));
        opener.before_fork(&[holding]).unwrap();
        process.before_fork();
        let (message, child) = receive(parent).unwrap();
        assert_eq!(message.kind, channel::PROCESS);
        let child = child.unwrap();
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
        for fd in [None, Some(-1), Some(1_000_000), Some(0)] {
            let process = Process::new(fd);
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
        let [emulator, inherited] = channel();
        sys::close(emulator).unwrap();
        let process = Process::new(Some(inherited));
        process.introduce();
        let message = Message::new(channel::HOLDER, 0, 0, 0);
        assert_eq!(process.send(&message, None), Err(libc::ENOTCONN));
    }

    #[test]
    fn internal_descriptors_lie_high() {
        let [emulator, inherited] = channel();
        let process = Process::new(Some(inherited));
        process.introduce();
        let socket = process.socket.load(Ordering::Relaxed);
        assert!(socket >= driver::sys::highest_floor());
        assert!(driver::sys::is_internal(socket));
        sys::close(emulator).unwrap();
    }

    #[test]
    fn numbers_are_the_programs_again_when_the_process_ends() {
        // Another test may take the number at once for a descriptor of its own: one look that finds it free is enough.
        let is_free_again = || {
            let [emulator, inherited] = channel();
            let process = Process::new(Some(inherited));
            process.introduce();
            let socket = process.socket.load(Ordering::Relaxed);
            drop(process);
            sys::close(emulator).unwrap();
            !driver::sys::is_internal(socket)
        };
        assert!((0..1000).any(|_| is_free_again()));
    }
}
