//! The calling thread's `errno`.
//!
//! Place: the last step of every export. Invariants: only this file touches `errno`; it is written on failure alone, and put back
//! where a call of ours that succeeded may have changed it.
#![expect(unsafe_code, reason = "errno is behind a pointer")]

use core::ffi::c_int;

use switch::Errno;

/// Reads `errno`.
#[inline]
pub(crate) fn load() -> c_int {
    // SAFETY: takes nothing and returns the thread's own word.
    let word = unsafe { libc::__errno_location() };
    // SAFETY: valid for the thread's life.
    unsafe { *word }
}

/// Writes `errno`.
#[inline]
pub(crate) fn store(errno: Errno) {
    // SAFETY: as in `load`.
    let word = unsafe { libc::__errno_location() };
    // SAFETY: as in `load`, and nobody else writes it.
    unsafe { *word = errno };
}

/// The C library's way to return: the value, or -1 with `errno` set.
#[inline]
pub(crate) fn answer(result: Result<usize, Errno>) -> isize {
    match result {
        Ok(value) => value.cast_signed(),
        Err(errno) => {
            store(errno);
            -1
        }
    }
}

/// As [`answer`] for calls that return an int.
#[inline]
pub(crate) fn answer_int(result: Result<c_int, Errno>) -> c_int {
    result.unwrap_or_else(|errno| {
        store(errno);
        -1
    })
}

/// As [`answer_int`] for calls that return 0.
#[inline]
pub(crate) fn answer_unit(result: Result<(), Errno>) -> c_int {
    answer_int(result.map(|()| 0))
}
