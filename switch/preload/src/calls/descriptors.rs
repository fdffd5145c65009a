//! The life of descriptors: close, duplicate, and ranges of them.
//!
//! Place: `exports::descriptors` -> here -> the table. Invariants: an entry goes before the kernel closes its number and comes after
//! the kernel made it; in a `vfork` child the table is not changed, because it is the parent's; the library's own descriptors
//! are neither closed, nor copied, nor written over.

use core::ffi::{c_int, c_uint};

use switch::Errno;
use switch::sys;
use switch::table::{Kind, Removed};

use crate::calls::traffic;
use crate::runtime::{self, Runtime, TABLE};

fn own_process() -> Option<&'static Runtime> {
    runtime::get().filter(|r| !r.process.is_foreign())
}

fn finish(runtime: &Runtime, removed: Removed<'_>) {
    if let Removed::Last(slot) = removed {
        traffic::ended(runtime, &slot);
    }
}

/// Before the kernel closes `fd`. `Err`: it must not.
pub(crate) fn closing(fd: c_int) -> Result<(), Errno> {
    match TABLE.kind(fd) {
        Kind::None => {}
        Kind::Internal => return Err(libc::EBADF),
        Kind::Socket => {
            if let Some(runtime) = own_process() {
                finish(runtime, TABLE.remove(fd));
            }
        }
    }
    Ok(())
}

/// After the kernel duplicated `old` to `new`.
pub(crate) fn duplicated(old: c_int, new: c_int) {
    if old == new || (TABLE.kind(old) == Kind::None && TABLE.kind(new) == Kind::None) {
        return;
    }
    if let Some(runtime) = own_process() {
        finish(runtime, TABLE.duplicate(old, new));
    }
}

/// Before a duplicate of `old` is put over `new`. `Err`: it must not.
pub(crate) fn duplicating(old: c_int, new: c_int) -> Result<(), Errno> {
    if runtime::is_hidden(old) {
        return Err(libc::EBADF);
    }
    // As the kernel answers when a number is being opened meanwhile.
    if runtime::is_hidden(new) {
        return Err(libc::EBUSY);
    }
    Ok(())
}

/// `close_range`, around the library's own descriptors.
pub(crate) fn close_range(first: c_uint, last: c_uint, flags: c_int) -> Result<(), Errno> {
    if first > last {
        return Err(libc::EINVAL);
    }
    let is_closing = flags & CLOSE_RANGE_CLOEXEC == 0;
    if is_closing && let Some(runtime) = own_process() {
        for fd in TABLE.sockets_in(first, last) {
            finish(runtime, TABLE.remove(fd));
        }
    }
    let mut from = first;
    loop {
        let internal = TABLE
            .next_internal(from)
            .and_then(|fd| c_uint::try_from(fd).ok())
            .filter(|&fd| fd <= last);
        let Some(internal) = internal else {
            return sys::close_range(from, last, flags);
        };
        if internal > from {
            sys::close_range(from, internal - 1, flags)?;
        }
        match internal.checked_add(1) {
            Some(next) if next <= last => from = next,
            _ => return Ok(()),
        }
    }
}

const CLOSE_RANGE_CLOEXEC: c_int = 4;
