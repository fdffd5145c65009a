//! Reading what a system call's arguments point at, and a file, in a signal handler.
//!
//! Place: `trap` and `touch` read arguments; `place` reads the list of mappings. Invariants: a bad pointer is no value, and no fault: the
//! kernel shall be the one to answer it. Source: process_vm_readv(2), on this process itself.
#![expect(unsafe_code, reason = "raw system calls, and values of any bytes")]

use core::ffi::CStr;
use core::mem::MaybeUninit;
use std::os::fd::RawFd;

use switch::sys::{self, SysResult};

/// Types of which any bytes are a value.
///
/// # Safety
/// So they are.
pub(super) unsafe trait Plain: Copy {}

// SAFETY: integers, and structs of them and of pointers that nobody follows.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}
// SAFETY: as above.
unsafe impl Plain for libc::pollfd {}
// SAFETY: as above.
unsafe impl Plain for libc::msghdr {}
// SAFETY: as above.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

/// The value at an address.
pub(super) fn peek<T: Plain>(address: usize) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    let read = copy(
        address,
        value.as_mut_ptr().expose_provenance(),
        size_of::<T>(),
    );
    // SAFETY: all its bytes were written, and any are a value.
    (read == Some(size_of::<T>())).then(|| unsafe { value.assume_init() })
}

/// Reads up to the length of `room` bytes.
pub(super) fn peek_bytes(address: usize, room: &mut [u8]) -> usize {
    let to = room.as_mut_ptr().expose_provenance();
    copy(address, to, room.len()).unwrap_or(0)
}

fn copy(from: usize, to: usize, len: usize) -> Option<usize> {
    if from == 0 || len == 0 {
        return None;
    }
    let local = [to, len];
    let remote = [from, len];
    let args = [
        sys::int(sys::getpid()),
        local.as_ptr().expose_provenance(),
        1,
        remote.as_ptr().expose_provenance(),
        1,
        0,
    ];
    // SAFETY: both lists have one element; the local one is room of the caller's, and the kernel checks the other.
    unsafe { sys::syscall(libc::SYS_process_vm_readv, args) }.ok()
}

/// Opens a file for reading.
pub(super) fn open(path: &CStr) -> SysResult<RawFd> {
    let flags = libc::O_RDONLY | libc::O_CLOEXEC;
    let args = [
        sys::int(libc::AT_FDCWD),
        path.as_ptr().expose_provenance(),
        sys::int(flags),
        0,
        0,
        0,
    ];
    // SAFETY: the second argument is a C string.
    unsafe { sys::syscall(libc::SYS_openat, args) }.map(sys::to_int)
}

/// Reads from a file.
pub(super) fn read(fd: RawFd, room: &mut [u8]) -> SysResult<usize> {
    let args = [
        sys::int(fd),
        room.as_mut_ptr().expose_provenance(),
        room.len(),
        0,
        0,
        0,
    ];
    // SAFETY: pointer and length describe `room`.
    unsafe { sys::syscall(libc::SYS_read, args) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_pointers_have_no_value() {
        let word = 77_u64;
        assert_eq!(peek((&raw const word).expose_provenance()), Some(77_u64));
        assert_eq!(peek::<u64>(0), None);
        assert_eq!(peek::<u64>(8), None);
        assert_eq!(peek_bytes(16, &mut [0; 4]), 0);
    }
}
