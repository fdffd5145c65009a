//! Calls on any descriptor; files in memory and event counters.

use std::os::fd::RawFd;

use super::{SysResult, int, syscall, to_int};

/// `close`. The descriptor is gone even when an error is reported.
///
/// # Errors
/// `EBADF`, `EINTR`, `EIO`.
pub fn close(fd: RawFd) -> SysResult<()> {
    // SAFETY: takes no pointer.
    unsafe { syscall(libc::SYS_close, [int(fd), 0, 0, 0, 0, 0]) }.map(drop)
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

/// `close_range`.
///
/// # Errors
/// The kernel's.
pub fn close_range(first: u32, last: u32, flags: i32) -> SysResult<()> {
    let args = [first as usize, last as usize, int(flags), 0, 0, 0];
    // SAFETY: takes no pointer.
    unsafe { syscall(libc::SYS_close_range, args) }.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::poll;

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
