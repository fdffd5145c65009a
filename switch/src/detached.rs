//! System calls around a process that belongs to nobody: the pump's.
//!
//! Place: the preload library's `calls::pump`, in the program, in the copy of it that begets the pump, and there.
//! Invariants: as of [`crate::sys`]; nothing allocates, so all is sound in a copy of a process with threads.
//! Source: Linux system calls; a pipe that closes at `exec` tells whether one happened. Leaves out: the `clone` itself.
#![expect(unsafe_code, reason = "pointers handed to the kernel")]

use std::os::fd::RawFd;

use crate::sys::{SysResult, int, syscall};

/// A pipe, close-on-exec: the end to read from, then the other.
///
/// # Errors
/// The kernel's.
pub fn pipe() -> SysResult<[RawFd; 2]> {
    let mut ends = [-1; 2];
    let at = ends.as_mut_ptr().expose_provenance();
    // SAFETY: room for two numbers.
    unsafe { syscall(libc::SYS_pipe2, [at, int(libc::O_CLOEXEC), 0, 0, 0, 0]) }?;
    Ok(ends)
}

/// Writes one byte to a pipe.
pub fn send_byte(fd: RawFd) {
    let byte = 0_u8;
    let args = [int(fd), (&raw const byte).expose_provenance(), 1, 0, 0, 0];
    // SAFETY: one byte.
    unsafe { syscall(libc::SYS_write, args) }.ok();
}

/// Waits until a byte is in a pipe, or nobody can write to it any more. Whether there was one.
#[must_use]
pub fn has_byte(fd: RawFd) -> bool {
    let mut byte = 0_u8;
    let args = [int(fd), (&raw mut byte).expose_provenance(), 1, 0, 0, 0];
    loop {
        // SAFETY: room for one byte.
        match unsafe { syscall(libc::SYS_read, args) } {
            Err(libc::EINTR) => {}
            read => return read == Ok(1),
        }
    }
}

/// Ends the process, and runs nothing.
pub fn exit(code: i32) -> ! {
    loop {
        // SAFETY: takes no pointer, and does not return.
        unsafe { syscall(libc::SYS_exit_group, [int(code), 0, 0, 0, 0, 0]) }.ok();
    }
}

/// Waits for the end of a child that raises no signal.
pub fn reap_clone(child: i32) {
    let args = [int(child), 0, int(libc::__WCLONE), 0, 0, 0];
    // SAFETY: no status is asked for.
    while unsafe { syscall(libc::SYS_wait4, args) } == Err(libc::EINTR) {}
}

/// Leaves the session and its terminal.
pub fn new_session() {
    // SAFETY: takes no pointer. A leader of a group stays what it is.
    unsafe { syscall(libc::SYS_setsid, [0; 6]) }.ok();
}

/// Lets every signal through to this thread.
pub fn unblock_all_signals() {
    let none = 0_u64;
    let at = (&raw const none).expose_provenance();
    let args = [int(libc::SIG_SETMASK), at, 0, 8, 0, 0];
    // SAFETY: a set of 64 signals.
    unsafe { syscall(libc::SYS_rt_sigprocmask, args) }.ok();
}
