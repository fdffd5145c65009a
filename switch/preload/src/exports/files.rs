//! Exports: calls between sockets and files.
//!
//! Invariants: the file moves on by what was sent.
#![expect(unsafe_code, reason = "exports with the C library's names")]

use core::ffi::c_int;

use libc::{iovec, off_t, size_t, ssize_t};

use super::data::carry;
use super::{exports, real, with_program};
use crate::calls::stream::{self, Way};
use crate::calls::{messages, traffic};
use crate::errno;

/// Bytes copied at once by `sendfile`.
const PIECE: usize = 16 * 1024;

exports! {
    fn sendfile(to: c_int, from: c_int, offset: *mut off_t, count: size_t) -> ssize_t {
        if stream::concerns(from) {
            return errno::answer(Err(libc::EINVAL));
        }
        if !stream::concerns(to) {
            let result = real!(sendfile(to, from, offset, count));
            traffic::moved(to, result, 0);
            return result;
        }
        let mut piece = [0_u8; PIECE];
        let mut sent = 0;
        while sent < count {
            let room = &mut piece[..PIECE.min(count - sent)];
            let read = match with_program!(messages::read_at(from, offset, room)) {
                Ok(0) => break,
                Ok(read) => read,
                Err(_) if sent > 0 => break,
                Err(errno) => return errno::answer(Err(errno)),
            };
            let part = iovec { iov_base: room.as_mut_ptr().cast(), iov_len: read };
            match carry(to, Way::Send, &raw const part, 1, 0) {
                Some(Ok(written)) => {
                    with_program!(messages::advance(from, offset, written));
                    sent += written;
                    if written < read {
                        break;
                    }
                }
                Some(Err(_)) | None if sent > 0 => break,
                Some(Err(errno)) => return errno::answer(Err(errno)),
                // The socket is the kernel's after all.
                None => return real!(sendfile(to, from, offset, count)),
            }
        }
        sent.cast_signed()
    }

    fn sendfile64(to: c_int, from: c_int, offset: *mut off_t, count: size_t) -> ssize_t {
        // SAFETY: as of `sendfile`: the offsets have one size on the supported architectures.
        unsafe { sendfile(to, from, offset, count) }
    }
}
