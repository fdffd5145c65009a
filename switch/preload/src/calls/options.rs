//! Socket options.
//!
//! Place: `exports::names` -> here -> the switch for stream sockets, else the kernel.
//! Source; `IPV6_V6ONLY` is kept here while addresses are placed.
#![expect(unsafe_code, reason = "reads and writes values of the program")]

use core::ffi::c_int;

use libc::socklen_t;
use switch::Errno;

use crate::calls::names::placed;
use crate::runtime::TABLE;

const V6ONLY: (c_int, c_int) = (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY);
/// Longest value that the switch keeps.
const LONGEST: usize = 4096;

/// Sets an option, or `None` for the real function.
///
/// # Safety
/// `value` is null or readable for `len` bytes.
pub(crate) unsafe fn set(
    fd: c_int,
    (level, name): (c_int, c_int),
    value: *const u8,
    len: socklen_t,
) -> Option<Result<(), Errno>> {
    let len = len as usize;
    if value.is_null() || len > LONGEST {
        return None;
    }
    let runtime = placed(fd)?;
    // SAFETY: readable by the caller's promise.
    let bytes = unsafe { core::slice::from_raw_parts(value, len) };
    if (level, name) == V6ONLY
        && let Some(&[a, b, c, d]) = bytes.first_chunk()
        && let Some(result) = runtime
            .tcp
            .set_v6only(fd, i32::from_ne_bytes([a, b, c, d]) != 0)
    {
        if let Some(slot) = TABLE.get(fd)
            && let Some(socket) = slot.socket().filter(|_| result.is_ok())
        {
            // What the kernel is not told the determination has to know.
            socket.store_option(level, name, bytes);
        }
        return Some(result);
    }
    let slot = TABLE.get(fd)?;
    Some(
        runtime
            .switch
            .set_option(slot.socket()?, level, name, bytes),
    )
}

/// Answers an option, or `None` for the real function.
///
/// # Safety
/// `value` and `len` are as of `getsockopt`.
pub(crate) unsafe fn get(
    fd: c_int,
    (level, name): (c_int, c_int),
    value: *mut u8,
    len: *mut socklen_t,
) -> Option<Result<(), Errno>> {
    if value.is_null() || len.is_null() {
        return None;
    }
    let runtime = placed(fd)?;
    // SAFETY: by the caller's promise.
    let room = unsafe { len.read_unaligned() } as usize;
    if room > LONGEST {
        return None;
    }
    // SAFETY: writable by the caller's promise; as bytes whatever is there is valid.
    let bytes = unsafe { core::slice::from_raw_parts_mut(value, room) };
    let written = if (level, name) == V6ONLY
        && let Some(answer) = runtime.tcp.v6only(fd)
    {
        let answer = c_int::from(answer).to_ne_bytes();
        let count = room.min(answer.len());
        bytes[..count].copy_from_slice(&answer[..count]);
        Ok(count)
    } else {
        let slot = TABLE.get(fd)?;
        runtime.switch.option(slot.socket()?, level, name, bytes)
    };
    Some(written.map(|count| {
        // At most the room.
        let count = socklen_t::try_from(count).unwrap_or(0);
        // SAFETY: by the caller's promise.
        unsafe { len.write_unaligned(count) };
    }))
}
