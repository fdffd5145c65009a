//! System calls without the C library.
//!
//! Place: everything in the switch and in the preload library that talks to the kernel, blocking waits excepted: those go through
//! the real C function, because they are cancellation points.
//! Invariants: no call reaches a function that the preload library exports (`std`, `nix` and `libc::syscall` would), none touches
//! `errno`, none is a cancellation point, none allocates. Safe in signal handlers and in a `vfork` child.
//! Hot: `syscall`. Source: Linux system call ABI of x86-64 and aarch64. Leaves out: calls that nobody here makes.
#![expect(
    unsafe_code,
    reason = "system calls by inline assembly, and pointers handed to the kernel"
)]

use core::ffi::c_void;
use core::mem::size_of;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use core::ptr::{self, NonNull};
use std::os::fd::RawFd;
use std::sync::OnceLock;

/// A Linux error number, positive.
type Errno = i32;

/// Result of a raw system call: a value, or a positive error number.
pub type SysResult<T> = Result<T, Errno>;

/// Makes a system call.
///
/// # Errors
/// The kernel's error number.
/// # Safety
/// The arguments are as the kernel's documentation of call `number` demands; pointers among them stay valid for the call.
#[inline]
pub unsafe fn syscall(number: i64, args: [usize; 6]) -> SysResult<usize> {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "numbers of system calls are small"
    )]
    let number = number as isize;
    let value: isize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the ABI of `syscall`: number in rax, arguments in rdi, rsi, rdx, r10, r8, r9; rcx and r11 are overwritten. What the
    // kernel does with them is the caller's promise.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") number => value,
            in("rdi") args[0],
            in("rsi") args[1],
            in("rdx") args[2],
            in("r10") args[3],
            in("r8") args[4],
            in("r9") args[5],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the ABI of `svc 0`: number in x8, arguments in x0 to x5, result in x0. What the kernel does is the caller's promise.
    unsafe {
        core::arch::asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") args[0] => value,
            in("x1") args[1],
            in("x2") args[2],
            in("x3") args[3],
            in("x4") args[4],
            in("x5") args[5],
            options(nostack),
        );
    }
    if (-4095..0).contains(&value) {
        #[expect(clippy::cast_possible_truncation, reason = "in 1..4096")]
        Err(-value as i32)
    } else {
        Ok(value.cast_unsigned())
    }
}

/// Widens an `int` argument as the C calling convention does.
#[inline]
#[must_use]
pub const fn int(value: i32) -> usize {
    (value as isize).cast_unsigned()
}

/// Narrows a result that the kernel documents as an `int`.
#[inline]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the kernel returns an int in this register"
)]
#[must_use]
pub const fn to_int(value: usize) -> i32 {
    value.cast_signed() as i32
}

/// `close`. The descriptor is gone even when an error is reported.
///
/// # Errors
/// `EBADF`, `EINTR`, `EIO`.
pub fn close(fd: RawFd) -> SysResult<()> {
    // SAFETY: takes no pointer.
    unsafe { syscall(libc::SYS_close, [int(fd), 0, 0, 0, 0, 0]) }.map(drop)
}

/// `socket`.
///
/// # Errors
/// The kernel's.
pub fn socket(domain: i32, socket_type: i32, protocol: i32) -> SysResult<RawFd> {
    let args = [int(domain), int(socket_type), int(protocol), 0, 0, 0];
    // SAFETY: takes no pointer.
    unsafe { syscall(libc::SYS_socket, args) }.map(to_int)
}

/// `socketpair`.
///
/// # Errors
/// The kernel's.
pub fn socketpair(domain: i32, socket_type: i32) -> SysResult<[RawFd; 2]> {
    let mut pair = [-1; 2];
    let args = [
        int(domain),
        int(socket_type),
        0,
        (&raw mut pair).expose_provenance(),
        0,
        0,
    ];
    // SAFETY: the fourth argument is room for two ints.
    unsafe { syscall(libc::SYS_socketpair, args) }?;
    Ok(pair)
}

/// `bind`.
///
/// # Errors
/// The kernel's.
pub fn bind(fd: RawFd, name: SocketAddr) -> SysResult<()> {
    let name = Name::from(name);
    let args = [int(fd), name.address(), name.len as usize, 0, 0, 0];
    // SAFETY: address and length describe `name`, which lives until the end of the function.
    unsafe { syscall(libc::SYS_bind, args) }.map(drop)
}

/// `connect`. Blocks unless the descriptor is non-blocking.
///
/// # Errors
/// The kernel's.
pub fn connect(fd: RawFd, name: SocketAddr) -> SysResult<()> {
    let name = Name::from(name);
    let args = [int(fd), name.address(), name.len as usize, 0, 0, 0];
    // SAFETY: address and length describe `name`, which lives until the end of the function.
    unsafe { syscall(libc::SYS_connect, args) }.map(drop)
}

/// `connect` with `AF_UNSPEC`: dissolves the association.
///
/// # Errors
/// The kernel's.
pub fn disconnect(fd: RawFd) -> SysResult<()> {
    let name = [0_u64; 2];
    let args = [int(fd), (&raw const name).expose_provenance(), 16, 0, 0, 0];
    // SAFETY: `name` is 16 zero bytes, an address of family AF_UNSPEC.
    unsafe { syscall(libc::SYS_connect, args) }.map(drop)
}

/// `listen`.
///
/// # Errors
/// The kernel's.
pub fn listen(fd: RawFd, backlog: i32) -> SysResult<()> {
    // SAFETY: takes no pointer.
    unsafe { syscall(libc::SYS_listen, [int(fd), int(backlog), 0, 0, 0, 0]) }.map(drop)
}

/// `shutdown`.
///
/// # Errors
/// The kernel's.
pub fn shutdown(fd: RawFd, how: i32) -> SysResult<()> {
    // SAFETY: takes no pointer.
    unsafe { syscall(libc::SYS_shutdown, [int(fd), int(how), 0, 0, 0, 0]) }.map(drop)
}

/// `accept4`. Blocks unless the descriptor is non-blocking.
///
/// # Errors
/// The kernel's; `EAFNOSUPPORT` (and the connection is closed) for a peer that is not of an IP family.
pub fn accept(fd: RawFd, flags: i32) -> SysResult<(RawFd, SocketAddr)> {
    let mut name = Name::room();
    let args = [
        int(fd),
        name.address(),
        (&raw mut name.len).expose_provenance(),
        int(flags),
        0,
        0,
    ];
    // SAFETY: `name` is room of the length that the third argument points at.
    let new = to_int(unsafe { syscall(libc::SYS_accept4, args) }?);
    if let Some(peer) = name.decode() {
        Ok((new, peer))
    } else {
        // The descriptor was never given to anybody; nobody can be told of an error at close.
        close(new).ok();
        Err(libc::EAFNOSUPPORT)
    }
}

/// `getsockname` of an IP socket.
///
/// # Errors
/// The kernel's; `EAFNOSUPPORT` for other families.
pub fn local_name(fd: RawFd) -> SysResult<SocketAddr> {
    name_by(libc::SYS_getsockname, fd)
}

/// `getpeername` of an IP socket.
///
/// # Errors
/// The kernel's; `EAFNOSUPPORT` for other families.
pub fn peer_name(fd: RawFd) -> SysResult<SocketAddr> {
    name_by(libc::SYS_getpeername, fd)
}

fn name_by(number: i64, fd: RawFd) -> SysResult<SocketAddr> {
    let mut name = Name::room();
    let args = [
        int(fd),
        name.address(),
        (&raw mut name.len).expose_provenance(),
        0,
        0,
        0,
    ];
    // SAFETY: `name` is room of the length that the third argument points at.
    unsafe { syscall(number, args) }?;
    name.decode().ok_or(libc::EAFNOSUPPORT)
}

/// `setsockopt`.
///
/// # Errors
/// The kernel's.
pub fn set_option(fd: RawFd, level: i32, name: i32, value: &[u8]) -> SysResult<()> {
    let args = [
        int(fd),
        int(level),
        int(name),
        value.as_ptr().expose_provenance(),
        value.len(),
        0,
    ];
    // SAFETY: pointer and length describe `value`.
    unsafe { syscall(libc::SYS_setsockopt, args) }.map(drop)
}

/// `getsockopt`; returns the bytes written.
///
/// # Errors
/// The kernel's.
pub fn option(fd: RawFd, level: i32, name: i32, value: &mut [u8]) -> SysResult<usize> {
    let mut len = u32::try_from(value.len()).unwrap_or(u32::MAX);
    let args = [
        int(fd),
        int(level),
        int(name),
        value.as_mut_ptr().expose_provenance(),
        (&raw mut len).expose_provenance(),
        0,
    ];
    // SAFETY: pointer and length describe `value`.
    unsafe { syscall(libc::SYS_getsockopt, args) }?;
    Ok((len as usize).min(value.len()))
}

/// `getsockopt` of an int.
///
/// # Errors
/// The kernel's.
pub fn int_option(fd: RawFd, level: i32, name: i32) -> SysResult<i32> {
    let mut value = [0; 4];
    option(fd, level, name, &mut value)?;
    Ok(i32::from_ne_bytes(value))
}

/// `fcntl` with an int argument.
///
/// # Errors
/// The kernel's.
pub fn fcntl(fd: RawFd, command: i32, argument: usize) -> SysResult<i32> {
    // SAFETY: callers pass commands with an int argument, or a pointer that the program passed for the kernel to check.
    unsafe { syscall(libc::SYS_fcntl, [int(fd), int(command), argument, 0, 0, 0]) }.map(to_int)
}

/// Sets or clears `O_NONBLOCK`.
///
/// # Errors
/// The kernel's.
pub fn set_nonblocking(fd: RawFd, nonblocking: bool) -> SysResult<()> {
    let flags = fcntl(fd, libc::F_GETFL, 0)?;
    let wanted = if nonblocking {
        flags | libc::O_NONBLOCK
    } else {
        flags & !libc::O_NONBLOCK
    };
    if wanted != flags {
        fcntl(fd, libc::F_SETFL, int(wanted))?;
    }
    Ok(())
}

/// `ppoll` without a signal mask and with a relative timeout in nanoseconds. Restarted by nobody: `EINTR` is returned.
///
/// # Errors
/// The kernel's.
pub fn poll(fds: &mut [libc::pollfd], timeout_ns: Option<u64>) -> SysResult<usize> {
    let timeout = timeout_ns.map(|ns| {
        [
            i64::try_from(ns / 1_000_000_000).unwrap_or(i64::MAX),
            i64::try_from(ns % 1_000_000_000).unwrap_or(0),
        ]
    });
    let timeout = timeout
        .as_ref()
        .map_or(0, |t| ptr::from_ref(t).expose_provenance());
    let args = [
        fds.as_mut_ptr().expose_provenance(),
        fds.len(),
        timeout,
        0,
        8,
        0,
    ];
    // SAFETY: pointer and length describe `fds`; the third argument is null or a timespec of two 64-bit words.
    unsafe { syscall(libc::SYS_ppoll, args) }
}

/// Process id, from the kernel: right in a `vfork` child too.
#[must_use]
pub fn getpid() -> i32 {
    // SAFETY: takes no argument and cannot fail.
    unsafe { syscall(libc::SYS_getpid, [0; 6]) }.map_or(0, to_int)
}

/// Number of the calling thread.
#[must_use]
pub fn gettid() -> i32 {
    // SAFETY: takes no argument and cannot fail.
    unsafe { syscall(libc::SYS_gettid, [0; 6]) }.map_or(0, to_int)
}

/// Whether a thread of this process lives.
#[must_use]
pub fn thread_exists(thread: i32) -> bool {
    let args = [int(getpid()), int(thread), 0, 0, 0, 0];
    // SAFETY: takes no pointer; signal 0 is sent to nobody.
    let result = unsafe { syscall(libc::SYS_tgkill, args) };
    result != Err(libc::ESRCH)
}

/// Sends a signal to the calling thread.
pub fn raise(signal: i32) {
    let args = [int(getpid()), int(gettid()), int(signal), 0, 0, 0];
    // SAFETY: takes no pointer. It can fail for a bad number only.
    unsafe { syscall(libc::SYS_tgkill, args) }.ok();
}

/// Sends a signal to the calling thread with what it carried before.
pub fn queue_to_self(info: &libc::siginfo_t) {
    let address = ptr::from_ref(info).expose_provenance();
    let args = [
        int(getpid()),
        int(gettid()),
        int(info.si_signo),
        address,
        0,
        0,
    ];
    // SAFETY: the fourth argument points at a siginfo. The kernel lets a process say anything to itself.
    unsafe { syscall(libc::SYS_rt_tgsigqueueinfo, args) }.ok();
}

/// Gives the processor away.
pub fn yield_now() {
    // SAFETY: takes no argument and cannot fail.
    unsafe { syscall(libc::SYS_sched_yield, [0; 6]) }.ok();
}

/// `epoll_ctl`.
///
/// # Errors
/// The kernel's.
pub fn epoll_control(
    set: RawFd,
    operation: i32,
    fd: RawFd,
    events: u32,
    data: u64,
) -> SysResult<()> {
    let mut event = libc::epoll_event { events, u64: data };
    let args = [
        int(set),
        int(operation),
        int(fd),
        (&raw mut event).expose_provenance(),
        0,
        0,
    ];
    // SAFETY: the fourth argument points at an event.
    unsafe { syscall(libc::SYS_epoll_ctl, args) }.map(drop)
}

/// `epoll_wait` without waiting; returns the events written.
///
/// # Errors
/// The kernel's: `EFAULT` for room that is none.
pub fn epoll_look(set: RawFd, events: *mut libc::epoll_event, room: usize) -> SysResult<usize> {
    let room = room.min(i32::MAX as usize);
    let args = [int(set), events.expose_provenance(), room, 0, 0, 8];
    // SAFETY: the kernel checks the room; it is the program's own for the call of the same name.
    unsafe { syscall(libc::SYS_epoll_pwait, args) }
}

/// `eventfd2`.
///
/// # Errors
/// The kernel's.
pub fn eventfd(flags: i32) -> SysResult<RawFd> {
    // SAFETY: takes no pointer.
    unsafe { syscall(libc::SYS_eventfd2, [0, int(flags), 0, 0, 0, 0]) }.map(to_int)
}

/// Adds 1 to an eventfd. A full counter is as good as a signal, so nothing is reported.
pub fn signal(eventfd: RawFd) {
    let one = 1_u64;
    let args = [
        int(eventfd),
        (&raw const one).expose_provenance(),
        8,
        0,
        0,
        0,
    ];
    // SAFETY: the second argument points at 8 bytes.
    unsafe { syscall(libc::SYS_write, args) }.ok();
}

/// Empties a non-blocking eventfd.
pub fn drain(eventfd: RawFd) {
    let mut count = 0_u64;
    let args = [
        int(eventfd),
        (&raw mut count).expose_provenance(),
        8,
        0,
        0,
        0,
    ];
    // SAFETY: the second argument is room for 8 bytes.
    unsafe { syscall(libc::SYS_read, args) }.ok();
}

/// Makes a memfd that may be sealed.
///
/// # Errors
/// The kernel's.
pub fn memfd(name: &core::ffi::CStr) -> SysResult<RawFd> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    let args = [
        name.as_ptr().expose_provenance(),
        flags as usize,
        0,
        0,
        0,
        0,
    ];
    // SAFETY: the first argument is a C string.
    unsafe { syscall(libc::SYS_memfd_create, args) }.map(to_int)
}

/// `ftruncate`.
///
/// # Errors
/// The kernel's.
pub fn truncate(fd: RawFd, len: usize) -> SysResult<()> {
    // SAFETY: takes no pointer.
    unsafe { syscall(libc::SYS_ftruncate, [int(fd), len, 0, 0, 0, 0]) }.map(drop)
}

/// Puts a duplicate of `fd` over `over`; `flags` as of `dup3`.
///
/// # Errors
/// The kernel's.
pub fn duplicate_to(fd: RawFd, over: RawFd, flags: i32) -> SysResult<()> {
    // SAFETY: takes no pointer.
    unsafe { syscall(libc::SYS_dup3, [int(fd), int(over), int(flags), 0, 0, 0]) }.map(drop)
}

/// Writes all of `bytes` at the start of a file in memory.
///
/// # Errors
/// The kernel's; `EIO` for a file that takes no more.
pub fn write_all(fd: RawFd, bytes: &[u8]) -> SysResult<()> {
    let mut done = 0;
    while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
        let at = rest.as_ptr().expose_provenance();
        let args = [int(fd), at, rest.len(), done, 0, 0];
        // SAFETY: the bytes live until the end of the function.
        match unsafe { syscall(libc::SYS_pwrite64, args) }? {
            0 => return Err(libc::EIO),
            written => done += written,
        }
    }
    Ok(())
}

/// The kernel's name of the open socket behind a descriptor: one for all its descriptors in all processes, and never used again.
///
/// # Errors
/// `EBADF`, `ENOTSOCK`.
pub fn cookie(fd: RawFd) -> SysResult<u64> {
    let mut value = [0; 8];
    option(fd, libc::SOL_SOCKET, libc::SO_COOKIE, &mut value)?;
    Ok(u64::from_ne_bytes(value))
}

/// The numbers of this process's open descriptors, in no order. Without `/proc` those below 4096.
#[must_use]
pub fn open_descriptors() -> Vec<RawFd> {
    listed_descriptors().unwrap_or_else(|| {
        (0..4096)
            .filter(|&fd| fcntl(fd, libc::F_GETFD, 0).is_ok())
            .collect()
    })
}

fn listed_descriptors() -> Option<Vec<RawFd>> {
    use rustix::fs::{Mode, OFlags, RawDir};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(c"/proc/self/fd", flags, Mode::empty()).ok()?;
    let directory = driver::sys::Fd::from_owned(directory);
    let mut room = [const { core::mem::MaybeUninit::uninit() }; 4096];
    let mut entries = RawDir::new(&directory, &mut room);
    let mut found = Vec::new();
    while let Some(entry) = entries.next() {
        let name = entry.ok()?.file_name().to_str().ok()?.parse::<RawFd>();
        found.extend(name.ok().filter(|&fd| fd != directory.raw()));
    }
    Some(found)
}

/// `lseek`.
///
/// # Errors
/// The kernel's.
pub fn seek(fd: RawFd, offset: i64, from: i32) -> SysResult<i64> {
    #[expect(clippy::cast_possible_truncation, reason = "64-bit architectures")]
    let args = [int(fd), offset.cast_unsigned() as usize, int(from), 0, 0, 0];
    // SAFETY: takes no pointer.
    unsafe { syscall(libc::SYS_lseek, args) }.map(|at| at.cast_signed() as i64)
}

/// `pread`.
///
/// # Errors
/// The kernel's.
pub fn read_at(fd: RawFd, bytes: &mut [u8], offset: i64) -> SysResult<usize> {
    let room = bytes.as_mut_ptr().expose_provenance();
    #[expect(clippy::cast_possible_truncation, reason = "64-bit architectures")]
    let args = [
        int(fd),
        room,
        bytes.len(),
        offset.cast_unsigned() as usize,
        0,
        0,
    ];
    // SAFETY: pointer and length describe `bytes`.
    unsafe { syscall(libc::SYS_pread64, args) }
}

/// Maps `len` bytes of a descriptor, shared and writable.
///
/// # Errors
/// The kernel's.
pub fn map_shared(fd: RawFd, len: usize) -> SysResult<NonNull<u8>> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    map(len, protection, libc::MAP_SHARED, fd)
}

/// Maps `len` bytes of private zero memory.
///
/// # Errors
/// The kernel's.
pub fn map_private(len: usize) -> SysResult<NonNull<u8>> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let memory = map(len, protection, flags, -1)?;
    if let Some(told) = LEAK_CHECKER.get() {
        told(memory.as_ptr().cast(), len);
    }
    Ok(memory)
}

/// A leak checker's function that takes memory in which it should look for pointers.
pub type RootRegion = extern "C" fn(*const c_void, usize);

static LEAK_CHECKER: OnceLock<RootRegion> = OnceLock::new();

/// Names a leak checker in this process: what lies behind pointers in [`map_private`] memory is not lost. Before there is a second
/// thread.
pub fn set_leak_checker(told: RootRegion) {
    // A second one would be the same.
    LEAK_CHECKER.set(told).ok();
}

fn map(len: usize, protection: i32, flags: i32, fd: RawFd) -> SysResult<NonNull<u8>> {
    let args = [0, len, int(protection), int(flags), int(fd), 0];
    // SAFETY: without MAP_FIXED no existing mapping is touched.
    let address = unsafe { syscall(libc::SYS_mmap, args) }?;
    NonNull::new(ptr::with_exposed_provenance_mut(address)).ok_or(libc::ENOMEM)
}

/// Unmaps what [`map_shared`] or [`map_private`] mapped.
///
/// # Safety
/// Nobody uses the memory any more.
pub unsafe fn unmap(address: NonNull<u8>, len: usize) {
    let args = [address.as_ptr().expose_provenance(), len, 0, 0, 0, 0];
    // SAFETY: by the caller's promise. A refusal leaves the mapping, which harms nobody.
    unsafe { syscall(libc::SYS_munmap, args) }.ok();
}

/// Sends one packet with at most one descriptor, without `SIGPIPE` and without waiting.
///
/// # Errors
/// The kernel's.
pub fn send_with_fd(socket: RawFd, bytes: &[u8], fd: Option<RawFd>) -> SysResult<()> {
    let mut part = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let mut rights = Rights {
        len: Rights::LEN,
        level: libc::SOL_SOCKET,
        kind: libc::SCM_RIGHTS,
        fd: fd.unwrap_or(-1),
        pad: 0,
    };
    // SAFETY: all bytes zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    if fd.is_some() {
        message.msg_control = (&raw mut rights).cast();
        message.msg_controllen = size_of::<Rights>();
    }
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    let args = [
        int(socket),
        (&raw const message).expose_provenance(),
        int(flags),
        0,
        0,
        0,
    ];
    // SAFETY: the message describes `bytes` and `rights`, which live until the end of the function.
    unsafe { syscall(libc::SYS_sendmsg, args) }.map(drop)
}

/// Receives one packet with at most one descriptor (close-on-exec), without waiting. An empty packet is the peer's end.
///
/// # Errors
/// The kernel's.
pub fn receive_with_fd(socket: RawFd, bytes: &mut [u8]) -> SysResult<(usize, Option<RawFd>)> {
    let mut part = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    let mut rights = Rights::default();
    // SAFETY: all bytes zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut rights).cast();
    message.msg_controllen = size_of::<Rights>();
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    let args = [
        int(socket),
        (&raw mut message).expose_provenance(),
        int(flags),
        0,
        0,
        0,
    ];
    // SAFETY: the message describes `bytes` and `rights`, which live until the end of the function.
    let len = unsafe { syscall(libc::SYS_recvmsg, args) }?;
    let is_rights = message.msg_controllen >= Rights::LEN
        && (rights.level, rights.kind) == (libc::SOL_SOCKET, libc::SCM_RIGHTS);
    Ok((len, is_rights.then_some(rights.fd)))
}

/// A control message with one descriptor: header, the number, padding.
#[repr(C)]
#[derive(Default)]
struct Rights {
    len: usize,
    level: i32,
    kind: i32,
    fd: i32,
    pad: i32,
}

impl Rights {
    /// Header and one descriptor, without the padding.
    const LEN: usize = 20;
}

/// `close_range`.
///
/// # Errors
/// The kernel's.
pub fn close_range(first: u32, last: u32, flags: i32) -> SysResult<()> {
    let args = [first as usize, last as usize, int(flags), 0, 0, 0];
    // SAFETY: takes no pointer.
    unsafe { syscall(libc::SYS_close_range, args) }.map(drop)
}

/// Writes the path of the program's file to `path`, cut to its length, and returns the bytes written.
pub fn executable(path: &mut [u8]) -> usize {
    let link = c"/proc/self/exe";
    let args = [
        int(libc::AT_FDCWD),
        link.as_ptr().expose_provenance(),
        path.as_mut_ptr().expose_provenance(),
        path.len(),
        0,
        0,
    ];
    // SAFETY: a C string, and room of the length given.
    unsafe { syscall(libc::SYS_readlinkat, args) }.unwrap_or(0)
}

/// A socket address in the kernel's form.
#[repr(C, align(8))]
#[derive(Debug)]
pub struct Name {
    bytes: [u8; ROOM],
    /// Bytes in use, or after a call the bytes the kernel would have written.
    pub len: u32,
}

/// Bytes of the longest address of any family: `struct sockaddr_storage`.
const ROOM: usize = 128;
/// Bytes of an IPv6 address.
const IP_ROOM: u32 = 28;

/// `sizeof(struct sockaddr_storage)`.
const LONGEST: u32 = 128;

impl Name {
    /// Room for an address of any IP family.
    #[must_use]
    pub const fn room() -> Self {
        Self {
            bytes: [0; ROOM],
            len: IP_ROOM,
        }
    }

    /// Room for an address of any family.
    #[must_use]
    pub const fn wide_room() -> Self {
        Self {
            bytes: [0; ROOM],
            len: 128,
        }
    }

    /// Address of the bytes, for a C function that reads them.
    #[must_use]
    pub const fn const_pointer(&self) -> *const libc::sockaddr {
        self.bytes.as_ptr().cast()
    }

    /// Address of the bytes, for a C function that writes them.
    pub const fn pointer(&mut self) -> *mut libc::sockaddr {
        self.bytes.as_mut_ptr().cast()
    }

    /// Address of the length, for a C function that writes it.
    pub const fn len_pointer(&mut self) -> *mut u32 {
        &raw mut self.len
    }

    /// Copies the bytes out as [`Self::write`] does, of whatever family they are.
    ///
    /// # Safety
    /// As of [`Self::write`].
    pub unsafe fn copy_out(&self, address: *mut u8, len: *mut u32) {
        if address.is_null() || len.is_null() {
            return;
        }
        // SAFETY: `len` is valid by the caller's promise.
        let room = unsafe { len.read_unaligned() } as usize;
        let count = room.min(self.len as usize).min(ROOM);
        // SAFETY: `count` is at most the room that the caller promises and at most ROOM.
        unsafe { ptr::copy_nonoverlapping(self.bytes.as_ptr(), address, count) };
        // SAFETY: as above.
        unsafe { len.write_unaligned(self.len) };
    }

    /// Reads an address as a program passes it. `None` for other families and for lengths that the kernel would refuse.
    ///
    /// # Safety
    /// `address` is null or readable for `len` bytes.
    #[must_use]
    pub unsafe fn read(address: *const u8, len: u32) -> Option<SocketAddr> {
        let mut name = Self::room();
        let wanted = (len as usize).min(IP_ROOM as usize);
        // Longer than any address of the kernel.
        if address.is_null() || wanted < 2 || len > LONGEST {
            return None;
        }
        // SAFETY: the source is readable by the caller's promise, the room is longer, and they cannot overlap: `name` is new.
        unsafe { ptr::copy_nonoverlapping(address, name.bytes.as_mut_ptr(), wanted) };
        name.len = len;
        name.decode()
    }

    /// Writes an address as the kernel would: cut at `*len`, which then tells the whole length.
    ///
    /// # Safety
    /// `address` and `len` are both null, or `len` is valid and `address` is writable for `*len` bytes.
    pub unsafe fn write(from: SocketAddr, address: *mut u8, len: *mut u32) {
        // SAFETY: by the caller's promise.
        unsafe { Self::from(from).copy_out(address, len) };
    }

    /// Address of the bytes, for a system call.
    #[must_use]
    pub fn address(&self) -> usize {
        ptr::from_ref(&self.bytes).expose_provenance()
    }

    /// The address, `None` for other families or a length too short for its family.
    #[must_use]
    pub fn decode(&self) -> Option<SocketAddr> {
        let b = &self.bytes;
        let port = u16::from_be_bytes([b[2], b[3]]);
        match i32::from(u16::from_ne_bytes([b[0], b[1]])) {
            libc::AF_INET if self.len >= 16 => {
                let ip = Ipv4Addr::new(b[4], b[5], b[6], b[7]);
                Some(SocketAddrV4::new(ip, port).into())
            }
            // The kernel accepts the form without a scope id too (RFC 2133).
            libc::AF_INET6 if self.len >= 24 => {
                let flow = u32::from_be_bytes([b[4], b[5], b[6], b[7]]);
                let mut ip = [0; 16];
                ip.copy_from_slice(&b[8..24]);
                let scope = u32::from_ne_bytes([b[24], b[25], b[26], b[27]]);
                Some(SocketAddrV6::new(Ipv6Addr::from(ip), port, flow, scope).into())
            }
            _ => None,
        }
    }
}

impl From<SocketAddr> for Name {
    fn from(from: SocketAddr) -> Self {
        let mut name = Self::room();
        let family = match from {
            SocketAddr::V4(_) => libc::AF_INET,
            SocketAddr::V6(_) => libc::AF_INET6,
        };
        // Families are below 2^16.
        name.bytes[0..2].copy_from_slice(&u16::try_from(family).unwrap_or(0).to_ne_bytes());
        name.bytes[2..4].copy_from_slice(&from.port().to_be_bytes());
        match from {
            SocketAddr::V4(v4) => {
                name.bytes[4..8].copy_from_slice(&v4.ip().octets());
                name.len = 16;
            }
            SocketAddr::V6(v6) => {
                name.bytes[4..8].copy_from_slice(&v6.flowinfo().to_be_bytes());
                name.bytes[8..24].copy_from_slice(&v6.ip().octets());
                name.bytes[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
            }
        }
        name
    }
}

/// The IPv4 address inside: of an IPv4 address itself, or of a v4-mapped one.
#[must_use]
pub const fn inner_v4(ip: IpAddr) -> Option<Ipv4Addr> {
    match ip {
        IpAddr::V4(v4) => Some(v4),
        IpAddr::V6(v6) => v6.to_ipv4_mapped(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_the_round_trip() {
        for text in [
            "127.0.0.1:80",
            "0.0.0.0:0",
            "[::1]:65535",
            "[::ffff:127.77.0.1]:6379",
            "[fe80::1%3]:1",
        ] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(Name::from(address).decode(), Some(address));
        }
    }

    #[test]
    fn short_and_foreign_names_are_none() {
        let mut name = Name::from(SocketAddr::from(([127, 0, 0, 1], 80)));
        name.len = 15;
        assert_eq!(name.decode(), None);
        let unix = [1_u8, 0, b'/', b'x'];
        // SAFETY: pointer and length of an array.
        assert_eq!(unsafe { Name::read(unix.as_ptr(), 4) }, None);
        // SAFETY: a null pointer is not read.
        assert_eq!(unsafe { Name::read(ptr::null(), 16) }, None);
    }

    #[test]
    fn written_names_are_cut_but_tell_their_length() {
        let mut bytes = [0xff_u8; 8];
        let mut len = 4_u32;
        let address = SocketAddr::from(([1, 2, 3, 4], 0x0506));
        // SAFETY: room of at least `len` bytes.
        unsafe { Name::write(address, bytes.as_mut_ptr(), &raw mut len) };
        assert_eq!(len, 16);
        assert_eq!(bytes[..6], [2, 0, 5, 6, 0xff, 0xff]);
    }

    #[test]
    fn kernel_calls_answer_and_refuse() {
        assert_eq!(getpid().cast_unsigned(), std::process::id());
        assert_eq!(close(-1), Err(libc::EBADF));
        let listener = socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0).unwrap();
        bind(listener, "127.0.0.1:0".parse().unwrap()).unwrap();
        listen(listener, 5).unwrap();
        assert_eq!(accept(listener, 0), Err(libc::EAGAIN));
        let address = local_name(listener).unwrap();
        let client = socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
        connect(client, address).unwrap();
        let (server, peer) = accept(listener, 0).unwrap();
        assert_eq!(peer, local_name(client).unwrap());
        assert_eq!(peer_name(client).unwrap(), address);
        for fd in [listener, client, server] {
            close(fd).unwrap();
        }
    }

    #[test]
    fn a_drained_eventfd_is_not_readable() {
        let fd = eventfd(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).unwrap();
        let mut polled = [libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        }];
        signal(fd);
        assert_eq!(poll(&mut polled, Some(0)), Ok(1));
        drain(fd);
        drain(fd);
        assert_eq!(poll(&mut polled, Some(0)), Ok(0));
        close(fd).unwrap();
    }
}
