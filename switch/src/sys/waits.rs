//! Looks at many descriptors at once.

use core::ptr;
use std::os::fd::RawFd;

use super::{SysResult, int, syscall};

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
