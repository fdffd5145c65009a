//! Raw system calls: descriptors, shared memory, waiting and message passing, none of it through the C library.
//!
//! Place: everything in `driver` and `switch` that needs the kernel comes here, because inside the preload library the C library's
//! `close`, `read` and `poll` are our own exports.
//! Invariants: an [`Fd`] is closed by a raw system call; its number is known to [`is_internal`] as long as it lives; nothing here is
//! a cancellation point or touches `errno`.
//! Leaves out: blocking waits of a program, which belong to the preload library.
#![expect(
    unsafe_code,
    reason = "closes descriptors by number and maps shared memory"
)]

use core::fmt;
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;

pub use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use ring_proto::sync::{AtomicI32, AtomicU32, AtomicU64, Ordering};

/// Answer of a system call.
pub type SysResult<T> = Result<T, Errno>;

/// Most descriptors that [`recv_message`] takes from one message.
pub const MAX_FDS: usize = 16;

/// The library's descriptors lie below this number: it keeps them apart from those of programs that raise their limit.
pub const INTERNAL_LIMIT: u64 = 4096;
/// Descriptor numbers kept for the library below the limit.
const RESERVE: u64 = 512;

/// Lowest number for descriptors of ours, or 0 to take what the kernel gives.
static FLOOR: AtomicI32 = AtomicI32::new(0);

/// One bit for each live [`Fd`] below 4096.
static INTERNAL: [AtomicU64; 64] = [const { AtomicU64::new(0) }; 64];

/// Asks that descriptors made from now on get numbers from `floor` upwards where the kernel allows it.
pub fn set_fd_floor(floor: RawFd) {
    // Relaxed: a hint, nothing is published by it.
    FLOOR.store(floor, Ordering::Relaxed);
}

/// Whether `fd` belongs to this library. Numbers from 4096 upwards are never known.
#[must_use]
pub fn is_internal(fd: RawFd) -> bool {
    mark_of(fd).is_some_and(|(word, bit)| {
        // Relaxed: who asks about a descriptor of another thread has no order with it anyway.
        word.load(Ordering::Relaxed) & bit != 0
    })
}

fn mark_of(fd: RawFd) -> Option<(&'static AtomicU64, u64)> {
    let fd = usize::try_from(fd).ok()?;
    Some((INTERNAL.get(fd / 64)?, 1 << (fd % 64)))
}

/// A descriptor that is closed by a raw system call.
pub struct Fd(RawFd);

impl Fd {
    /// Takes over a descriptor.
    ///
    /// # Safety
    /// `fd` is open and nobody else closes it.
    #[must_use]
    pub unsafe fn from_raw(fd: RawFd) -> Self {
        if let Some((word, bit)) = mark_of(fd) {
            // Relaxed: see `is_internal`.
            word.fetch_or(bit, Ordering::Relaxed);
        }
        Self(fd)
    }

    /// Takes over what rustix opened, and moves it up to the floor.
    #[must_use]
    pub fn from_owned(owned: OwnedFd) -> Self {
        // Relaxed: see `set_fd_floor`.
        let floor = FLOOR.load(Ordering::Relaxed);
        let raw = owned.into_raw_fd();
        // SAFETY: `raw` was owned a line above and is not closed by anybody else.
        let low = unsafe { Self::from_raw(raw) };
        if raw >= floor {
            return low;
        }
        match duplicate_high(borrow(raw)) {
            // SAFETY: as above.
            Ok(high) => unsafe { Self::from_raw(high.into_raw_fd()) },
            Err(_) => low, // The low number serves as well.
        }
    }

    /// The number.
    #[must_use]
    pub const fn raw(&self) -> RawFd {
        self.0
    }

    /// Gives the number away; the caller closes it.
    #[must_use]
    pub fn into_raw(self) -> RawFd {
        let raw = self.0;
        core::mem::forget(self);
        unmark(raw);
        raw
    }

    /// Makes another descriptor of the same file.
    ///
    /// # Errors
    /// As `fcntl(F_DUPFD_CLOEXEC)`.
    pub fn duplicate(&self) -> SysResult<Self> {
        duplicate(self.0)
    }
}

impl Fd {
    /// Closes the descriptor at the next `exec`, as all of ours but those on their way to an heir.
    ///
    /// # Errors
    /// `EBADF` for a number that is not open.
    pub fn close_on_exec(&self) -> SysResult<()> {
        rustix::io::fcntl_setfd(self, rustix::io::FdFlags::CLOEXEC)
    }
}

fn unmark(fd: RawFd) {
    if let Some((word, bit)) = mark_of(fd) {
        // Relaxed: see `is_internal`.
        word.fetch_and(!bit, Ordering::Relaxed);
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        unmark(self.0);
        close(self.0);
    }
}

impl AsFd for Fd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        borrow(self.0)
    }
}

impl fmt::Debug for Fd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fd({})", self.0)
    }
}

/// Borrows a descriptor by number for one call.
fn borrow<'a>(fd: RawFd) -> BorrowedFd<'a> {
    // SAFETY: a borrowed number has no destructor; a wrong or closed one is answered EBADF by the kernel, which every caller passes
    // on. -1 alone is forbidden, and is replaced by another number that is never open.
    unsafe { BorrowedFd::borrow_raw(if fd == -1 { RawFd::MAX } else { fd }) }
}

/// Closes a descriptor by number, without the C library.
pub fn close(fd: RawFd) {
    // SAFETY: callers own the number; a number that is not open is answered EBADF, which `close` ignores.
    unsafe { rustix::io::close(fd) };
}

/// Duplicates a descriptor, close-on-exec.
///
/// # Errors
/// As `fcntl(F_DUPFD_CLOEXEC)`.
pub fn duplicate(fd: RawFd) -> SysResult<Fd> {
    duplicate_high(borrow(fd)).map(Fd::from_owned)
}

/// Duplicates a descriptor to a number from the floor upwards. The program may have lowered its limit below the floor since, or filled
/// what is above it.
fn duplicate_high(fd: BorrowedFd<'_>) -> SysResult<OwnedFd> {
    // Relaxed: see `set_fd_floor`.
    let floor = FLOOR.load(Ordering::Relaxed);
    let high = match rustix::io::fcntl_dupfd_cloexec(fd, floor) {
        Err(Errno::INVAL) if floor > 0 => {
            let floor = floor.min(highest_floor());
            set_fd_floor(floor);
            rustix::io::fcntl_dupfd_cloexec(fd, floor)
        }
        other => other,
    };
    match high {
        Err(Errno::MFILE | Errno::INVAL) => rustix::io::fcntl_dupfd_cloexec(fd, 0),
        other => other,
    }
}

/// The floor that the limit of descriptors leaves room above for what the library needs.
#[must_use]
pub fn highest_floor() -> RawFd {
    let soft = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let soft = soft.unwrap_or(INTERNAL_LIMIT).min(INTERNAL_LIMIT);
    RawFd::try_from(soft - RESERVE.min(soft / 2)).unwrap_or(0)
}

/// Makes a nonblocking eventfd.
///
/// # Errors
/// As `eventfd2`.
pub fn eventfd() -> SysResult<Fd> {
    use rustix::event::{EventfdFlags, eventfd};
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map(Fd::from_owned)
}

/// Adds 1 to an eventfd. A full or closed one is left alone: a wake-up is pending in it anyway, or nobody waits.
pub fn signal(fd: RawFd) {
    match rustix::io::write(borrow(fd), &1_u64.to_ne_bytes()) {
        Ok(_) | Err(_) => {} // see above
    }
}

/// Empties an eventfd. False: it is none.
pub fn drain(fd: RawFd) -> bool {
    let mut count = [0_u8; 8];
    // Anything else was empty already, which is what was wanted.
    rustix::io::read(borrow(fd), &mut count) != Err(Errno::INVAL)
}

/// Makes an epoll instance.
///
/// # Errors
/// As `epoll_create1`.
pub fn epoll() -> SysResult<Fd> {
    use rustix::event::epoll;
    epoll::create(epoll::CreateFlags::CLOEXEC).map(Fd::from_owned)
}

/// Makes an epoll instance that has an edge whenever `fd` gets one: any number of them can watch the same eventfd.
///
/// # Errors
/// As `epoll_create1` and `epoll_ctl`.
pub fn edge_of(fd: RawFd) -> SysResult<Fd> {
    use rustix::event::epoll;
    let set = Fd::from_owned(epoll::create(epoll::CreateFlags::CLOEXEC)?);
    epoll::add(
        &set,
        borrow(fd),
        epoll::EventData::new_u64(0),
        epoll::EventFlags::IN | epoll::EventFlags::ET,
    )?;
    Ok(set)
}

/// Takes the edges out of a set of [`edge_of`].
pub fn drain_edges(set: RawFd) {
    use rustix::event::epoll;
    let mut events = [MaybeUninit::<epoll::Event>::uninit(); 4];
    let none = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    match epoll::wait(borrow(set), &mut events[..], Some(&none)) {
        Ok(_) | Err(_) => {} // Nothing to take is what was wanted.
    }
}

/// Makes a memfd of `len` bytes that can neither shrink nor grow.
///
/// # Errors
/// As `memfd_create`, `ftruncate` and `fcntl(F_ADD_SEALS)`.
pub fn sealed_memory(name: &str, len: u64) -> SysResult<Fd> {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
    let fd = Fd::from_owned(memfd_create(
        name,
        MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
    )?);
    ftruncate(&fd, len)?;
    fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW)?;
    Ok(fd)
}

/// A shared mapping, unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is an address range; what may be done with it is said where it is used, always through atomics or raw copies.
unsafe impl Send for Mapping {}
// SAFETY: as for Send.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `fd` from `offset`, shared, without reserving swap.
    ///
    /// # Errors
    /// As `mmap`; EINVAL when the length does not fit the address space.
    pub fn new(fd: RawFd, offset: u64, len: u64, writable: bool) -> SysResult<Self> {
        let len = usize::try_from(len).map_err(|_| Errno::INVAL)?;
        let mut protection = ProtFlags::READ;
        protection.set(ProtFlags::WRITE, writable);
        // SAFETY: a fresh range chosen by the kernel overlaps nothing that exists.
        let base = unsafe {
            rustix::mm::mmap(
                core::ptr::null_mut(),
                len,
                protection,
                MapFlags::SHARED | MapFlags::NORESERVE,
                borrow(fd),
                offset,
            )?
        };
        Ok(Self {
            base: NonNull::new(base.cast()).ok_or(Errno::NOMEM)?,
            len,
        })
    }

    /// Maps `len` bytes of fresh memory that a forked child shares.
    ///
    /// # Errors
    /// As `mmap`.
    pub fn anonymous(len: usize) -> SysResult<Self> {
        // SAFETY: a fresh range chosen by the kernel overlaps nothing that exists.
        let base = unsafe {
            rustix::mm::mmap_anonymous(
                core::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
            )?
        };
        Ok(Self {
            base: NonNull::new(base.cast()).ok_or(Errno::NOMEM)?,
            len,
        })
    }

    /// First byte.
    #[must_use]
    pub const fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Bytes.
    #[must_use]
    #[expect(
        clippy::len_without_is_empty,
        reason = "the kernel makes no empty mapping"
    )]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Gives the pages of a range back to the system; they read as zero afterwards, in every process.
    ///
    /// # Errors
    /// EINVAL for a range outside of the mapping; else as `madvise(MADV_REMOVE)`.
    pub fn punch(&self, offset: usize, len: usize) -> SysResult<()> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(Errno::INVAL);
        }
        // SAFETY: `offset` lies inside the mapping, checked above.
        let start = unsafe { self.base.as_ptr().add(offset) };
        // SAFETY: the range lies inside our own mapping, checked above; no reference covers it, only atomics and raw copies, for
        // which a page that turns to zero is a write by another process.
        unsafe { rustix::mm::madvise(start.cast(), len, Advice::LinuxRemove) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is ours since `new`, and whoever used it borrowed this object.
        match unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) } {
            Ok(()) | Err(_) => {} // It cannot fail for a range that mmap returned.
        }
    }
}

/// Makes a connected pair of Unix sockets.
///
/// # Errors
/// As `socketpair`.
pub fn socket_pair(packets: bool) -> SysResult<(Fd, Fd)> {
    let kind = if packets {
        SocketType::SEQPACKET
    } else {
        SocketType::STREAM
    };
    let (a, b) = rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    Ok((Fd::from_owned(a), Fd::from_owned(b)))
}

/// Connects a stream to a Unix socket of the file system.
///
/// # Errors
/// As `socket` and `connect`.
pub fn connect_path(path: &std::path::Path) -> SysResult<Fd> {
    use rustix::net::{SocketAddrUnix, connect, socket_with};
    let socket = Fd::from_owned(socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?);
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Sends `parts` as one message with `fds`, without SIGPIPE; returns the bytes that went.
///
/// # Errors
/// As `sendmsg`.
pub fn send_message(socket: RawFd, parts: &[&[u8]], fds: &[RawFd]) -> SysResult<usize> {
    let mut slices = [IoSlice::new(&[]); 4];
    let count = parts.len().min(slices.len());
    for (slice, part) in slices.iter_mut().zip(parts) {
        *slice = IoSlice::new(part);
    }
    let mut borrowed = [borrow(RawFd::MAX); MAX_FDS];
    let fd_count = fds.len().min(MAX_FDS);
    for (slot, &fd) in borrowed.iter_mut().zip(fds) {
        *slot = borrow(fd);
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if fd_count > 0 && !control.push(SendAncillaryMessage::ScmRights(&borrowed[..fd_count])) {
        return Err(Errno::INVAL);
    }
    loop {
        match rustix::net::sendmsg(
            borrow(socket),
            &slices[..count],
            &mut control,
            SendFlags::NOSIGNAL,
        ) {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// Looks at what waits in a stream without taking it.
///
/// # Errors
/// As `recv(MSG_PEEK)`.
pub fn peek(socket: RawFd, buffer: &mut [u8]) -> SysResult<usize> {
    loop {
        match rustix::net::recv(borrow(socket), &mut *buffer, RecvFlags::PEEK) {
            Err(Errno::INTR) => {}
            other => return other.map(|(read, _)| read),
        }
    }
}

/// Receives into `buffer` with whatever descriptors came along.
///
/// # Errors
/// As `recvmsg`.
pub fn recv_message(socket: RawFd, buffer: &mut [u8]) -> SysResult<(usize, Vec<Fd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut slices = [IoSliceMut::new(buffer)];
        match rustix::net::recvmsg(
            borrow(socket),
            &mut slices,
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        ) {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    };
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights.map(Fd::from_owned));
        }
    }
    Ok((received.bytes, fds))
}

/// Ends a stream in both directions, for every process that shares it.
pub fn shut_down(socket: RawFd) {
    match rustix::net::shutdown(borrow(socket), rustix::net::Shutdown::Both) {
        Ok(()) | Err(_) => {} // A stream that is gone already is what was wanted.
    }
}

/// What [`wait_readable`] saw.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// Nothing within the time.
    Nothing,
    /// Something can be read.
    Readable,
    /// The other end hung up; there may still be something to read.
    HungUp,
}

/// Waits until `fd` can be read or hangs up, at most `timeout_ms`; not a cancellation point.
///
/// # Errors
/// As `poll`.
pub fn wait_readable(fd: RawFd, timeout_ms: u32) -> SysResult<Seen> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let timeout = Timespec {
        tv_sec: i64::from(timeout_ms / 1000),
        tv_nsec: i64::from(timeout_ms % 1000) * 1_000_000,
    };
    let borrowed = borrow(fd);
    let mut set = [PollFd::new(&borrowed, PollFlags::IN)];
    match poll(&mut set, Some(&timeout)) {
        Ok(0) | Err(Errno::INTR) => Ok(Seen::Nothing),
        Ok(_) => {
            let events = set[0].revents();
            if events.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) {
                Ok(Seen::HungUp)
            } else {
                Ok(Seen::Readable)
            }
        }
        Err(errno) => Err(errno),
    }
}

/// Sleeps while `word` equals `value`, across processes, at most `timeout_ms`. May return early.
pub fn futex_wait(word: &AtomicU32, value: u32, timeout_ms: u32) {
    use rustix::thread::futex::{Flags, Timespec, wait};
    let timeout = Timespec {
        tv_sec: i64::from(timeout_ms / 1000),
        tv_nsec: i64::from(timeout_ms % 1000) * 1_000_000,
    };
    match wait(word, Flags::empty(), value, Some(&timeout)) {
        Ok(()) | Err(_) => {} // The caller looks again in every case.
    }
}

/// Wakes up to `count` sleepers of [`futex_wait`].
pub fn futex_wake(word: &AtomicU32, count: u32) {
    match rustix::thread::futex::wake(word, rustix::thread::futex::Flags::empty(), count) {
        Ok(_) | Err(_) => {} // Nobody slept.
    }
}

/// Lets another thread run.
pub fn yield_now() {
    rustix::thread::sched_yield();
}

/// Sleeps about so long; a signal may end it early.
pub fn doze(ns: u64) {
    let span = rustix::thread::Timespec {
        tv_sec: 0,
        tv_nsec: i64::try_from(ns.min(999_999_999)).unwrap_or(0),
    };
    let _rest = rustix::thread::nanosleep(&span);
}

/// This process.
#[must_use]
pub fn pid() -> u32 {
    rustix::process::getpid()
        .as_raw_nonzero()
        .get()
        .unsigned_abs()
}

/// Whether a process of that number exists.
#[must_use]
pub fn process_exists(pid: u32) -> bool {
    let Ok(raw) = i32::try_from(pid) else {
        return false;
    };
    let Some(pid) = rustix::process::Pid::from_raw(raw) else {
        return false;
    };
    !matches!(rustix::process::test_kill_process(pid), Err(Errno::SRCH))
}

/// Nanoseconds of the monotonic clock.
#[must_use]
pub fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds * 1_000_000_000 + nanoseconds
}

/// A number that no other living thread of this process has.
#[must_use]
pub fn thread_mark() -> u32 {
    thread_local! {
        static HERE: u8 = const { 0 };
    }
    // The place of a thread-local, in lines of 64 B. It survives fork, needs no system call, and is 0 for nobody.
    let place = HERE
        .try_with(|here| core::ptr::from_ref(here).addr())
        .unwrap_or(0);
    let [a, b, c, d, ..] = ((place >> 6) as u64).to_le_bytes();
    u32::from_le_bytes([a, b, c, d]).max(1)
}

/// Tells whether the caller's own means keep signal handlers off this thread for the moment.
static PUT_OFF: OnceLock<fn() -> bool> = OnceLock::new();

/// Names who keeps signal handlers off threads without a system call: [`SignalsBlocked::unless_put_off`] asks it. The first call
/// counts.
pub fn handlers_are_put_off_by(is_put_off: fn() -> bool) {
    PUT_OFF.get_or_init(|| is_put_off);
}

/// Signals of this thread, blocked until dropped: a handler that longjmps must not leave a shared lock behind.
#[derive(Debug)]
pub struct SignalsBlocked {
    /// `None`: nothing had to be blocked.
    before: Option<libc::sigset_t>,
}

impl SignalsBlocked {
    /// Blocks all signals that may be blocked.
    #[must_use]
    pub fn new() -> Self {
        let mut all = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigfillset initialises the set it is given.
        unsafe { libc::sigfillset(all.as_mut_ptr()) };
        let mut before = MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: both sets are valid; the C library spares the signals it needs for setuid.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) };
        // SAFETY: all-zero is a valid set, and the call above fills it in.
        let before = unsafe { before.assume_init() };
        Self {
            before: Some(before),
        }
    }

    /// Blocks all signals that may be blocked, unless their handlers are kept off this thread anyway: two system calls less.
    #[must_use]
    #[inline]
    pub fn unless_put_off() -> Self {
        if PUT_OFF.get().is_some_and(|is_put_off| is_put_off()) {
            return Self { before: None };
        }
        Self::new()
    }
}

impl Default for SignalsBlocked {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        let Some(before) = &self.before else {
            return;
        };
        // SAFETY: `before` was filled in by `new`; the old set is not asked for.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before, core::ptr::null_mut()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_live_descriptor_is_internal_and_a_closed_one_is_not() {
        let fd = eventfd().unwrap();
        let raw = fd.raw();
        assert!(is_internal(raw));
        // A number of our own choosing, so that no parallel test re-uses it between the drop and the look.
        let high = rustix::io::fcntl_dupfd_cloexec(&fd, 3900).unwrap();
        let high = Fd::from_owned(high);
        let number = high.raw();
        assert!(number >= 3900 && is_internal(number));
        drop(high);
        assert!(!is_internal(number));
        assert!(!is_internal(-1) && !is_internal(100_000));
    }

    #[test]
    fn descriptors_travel_with_a_message() {
        let (a, b) = socket_pair(false).unwrap();
        let event = eventfd().unwrap();
        assert_eq!(send_message(a.raw(), &[b"ab", b"c"], &[event.raw()]), Ok(3));
        let mut buffer = [0; 8];
        assert_eq!(peek(b.raw(), &mut buffer), Ok(3));
        let (len, fds) = recv_message(b.raw(), &mut buffer).unwrap();
        assert_eq!((len, &buffer[..3], fds.len()), (3, b"abc".as_slice(), 1));
        signal(fds[0].raw());
        assert_eq!(wait_readable(event.raw(), 0), Ok(Seen::Readable));
        drain(event.raw());
        assert_eq!(wait_readable(event.raw(), 0), Ok(Seen::Nothing));
    }

    #[test]
    fn a_sealed_memory_keeps_its_size_and_a_punched_page_is_zero() {
        let fd = sealed_memory("test", 8192).unwrap();
        assert!(rustix::fs::ftruncate(&fd, 4096).is_err());
        let map = Mapping::new(fd.raw(), 0, 8192, true).unwrap();
        let at = map.base().as_ptr().wrapping_add(5000);
        // SAFETY: inside the mapping, which this test alone uses.
        unsafe { at.write_volatile(7) };
        map.punch(4096, 4096).unwrap();
        // SAFETY: as above.
        assert_eq!(unsafe { at.read_volatile() }, 0);
        assert_eq!(map.punch(4096, 8192), Err(Errno::INVAL));
    }

    #[test]
    fn every_edge_watcher_sees_every_signal() {
        let event = eventfd().unwrap();
        let (one, two) = (edge_of(event.raw()).unwrap(), edge_of(event.raw()).unwrap());
        signal(event.raw());
        assert_eq!(wait_readable(one.raw(), 0), Ok(Seen::Readable));
        drain_edges(one.raw());
        assert_eq!(wait_readable(one.raw(), 0), Ok(Seen::Nothing));
        assert_eq!(wait_readable(two.raw(), 0), Ok(Seen::Readable));
        signal(event.raw());
        assert_eq!(wait_readable(one.raw(), 0), Ok(Seen::Readable));
    }
}
