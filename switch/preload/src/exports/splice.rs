//! Exports: `splice` between a pipe and a connection that the SAN carries, by copying.
//!
//! Invariants: bytes leave their source only when their target has room for them: out of a connection they are peeked at, written to
//! the pipe, and then dropped; out of a pipe no more is read than the connection takes. As in the kernel, the first piece may wait,
//! the others are what is there.
//! Source: splice(2); the kernel's `do_splice` for the order of its errors. Leaves out: moving pages.
#![expect(unsafe_code, reason = "an export with the C library's name")]

use core::ffi::{c_int, c_uint};
use core::ptr;

use libc::{iovec, off_t, pollfd, size_t, ssize_t};
use switch::{Errno, sys};

use super::data::carry;
use super::{exports, kept, real};
use crate::calls::stream::{self, Way};
use crate::calls::traffic;
use crate::errno;

/// Bytes copied at once.
const PIECE: usize = 16 * 1024;
/// Bytes that a pipe takes whole when it says that it has room.
const PIPE_BUF: usize = 4096;
/// All flags there are: move, nonblock, more, gift.
const KNOWN: c_uint = 15;

exports! {
    fn splice(from: c_int, from_offset: *mut off_t, to: c_int, to_offset: *mut off_t, len: size_t, flags: c_uint) -> ssize_t {
        if !stream::concerns(from) && !stream::concerns(to) {
            let result = real!(splice(from, from_offset, to, to_offset, len, flags));
            traffic::moved(to, result, 0);
            traffic::moved(from, 0, result);
            return result;
        }
        let checked = if len == 0 {
            Ok(None)
        } else if !from_offset.is_null() || !to_offset.is_null() {
            Err(libc::EINVAL)
        } else {
            kept(|| check(from, to, flags)).map(Some)
        };
        let result = match checked {
            Ok(None) => Ok(Some(0)),
            Ok(Some(Direction::Out)) => out_of_connection(from, to, len, flags),
            Ok(Some(Direction::In)) => into_connection(from, to, len, flags),
            Err(errno) => Err(errno),
        };
        match result {
            Ok(Some(count)) => errno::answer(Ok(count)),
            Err(errno) => errno::answer(Err(errno)),
            // The socket is the kernel's after all.
            Ok(None) => real!(splice(from, from_offset, to, to_offset, len, flags)),
        }
    }
}

#[derive(Clone, Copy)]
enum Direction {
    /// From a connection to a pipe.
    Out,
    /// From a pipe to a connection.
    In,
}

fn check(from: c_int, to: c_int, flags: c_uint) -> Result<Direction, Errno> {
    if flags & !KNOWN != 0 {
        return Err(libc::EINVAL);
    }
    let mode = |fd| sys::fcntl(fd, libc::F_GETFL, 0).map(|flags| flags & libc::O_ACCMODE);
    if mode(from)? == libc::O_WRONLY || mode(to)? == libc::O_RDONLY {
        return Err(libc::EBADF);
    }
    let is_pipe = |fd| sys::fcntl(fd, libc::F_GETPIPE_SZ, 0).is_ok();
    if is_pipe(to) {
        Ok(Direction::Out)
    } else if is_pipe(from) {
        Ok(Direction::In)
    } else {
        Err(libc::EINVAL)
    }
}

/// Whether a pipe is ready now.
fn is_ready(pipe: c_int, events: i16) -> bool {
    let mut fds = [pollfd {
        fd: pipe,
        events,
        revents: 0,
    }];
    sys::poll(&mut fds, Some(0)).is_ok_and(|n| n > 0)
}

fn part(bytes: &mut [u8]) -> iovec {
    iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    }
}

fn out_of_connection(
    from: c_int,
    to: c_int,
    len: usize,
    flags: c_uint,
) -> Result<Option<usize>, Errno> {
    let mut piece = [0_u8; PIECE];
    let mut moved = 0;
    while moved < len {
        let may_wait = moved == 0 && flags & libc::SPLICE_F_NONBLOCK == 0;
        if !may_wait && !is_ready(to, libc::POLLOUT) {
            return done(moved, libc::EAGAIN);
        }
        let most = if may_wait { PIECE } else { PIPE_BUF };
        let room = part(&mut piece[..most.min(len - moved)]);
        let peek = libc::MSG_PEEK | if moved == 0 { 0 } else { libc::MSG_DONTWAIT };
        let here = match carry(from, Way::Receive, &raw const room, 1, peek) {
            None => return Ok(some(moved)),
            Some(Ok(0)) => break,
            Some(Ok(here)) => here,
            Some(Err(errno)) => return done(moved, errno),
        };
        let written = real!(write(to, room.iov_base, here));
        let Ok(written) = usize::try_from(written) else {
            return done(moved, errno::load());
        };
        let drop = iovec {
            iov_base: ptr::null_mut(),
            iov_len: written,
        };
        let flags = libc::MSG_TRUNC | libc::MSG_DONTWAIT;
        match carry(from, Way::Receive, &raw const drop, 1, flags) {
            Some(Ok(dropped)) => moved += dropped,
            // Another reader was faster than the two steps: what it took was also written here.
            Some(Err(errno)) => return done(moved, errno),
            None => break,
        }
        if written < here {
            break;
        }
    }
    Ok(Some(moved))
}

fn into_connection(
    from: c_int,
    to: c_int,
    len: usize,
    flags: c_uint,
) -> Result<Option<usize>, Errno> {
    let mut piece = [0_u8; PIECE];
    let mut moved = 0;
    let more = if flags & libc::SPLICE_F_MORE == 0 {
        0
    } else {
        libc::MSG_MORE
    };
    while moved < len {
        let may_wait = moved == 0 && flags & libc::SPLICE_F_NONBLOCK == 0;
        if !may_wait && !is_ready(from, libc::POLLIN) {
            return done(moved, libc::EAGAIN);
        }
        let room = match kept(|| stream::send_room(to)) {
            None => return Ok(some(moved)),
            Some(Err(errno)) => return done(moved, errno),
            Some(Ok(room)) => room,
        };
        if room == 0 {
            if !may_wait || kept(|| stream::is_nonblocking(to)) {
                return done(moved, libc::EAGAIN);
            }
            wait_for_room(to);
            continue;
        }
        let most = room.min(PIECE).min(len - moved);
        let read = real!(read(from, piece.as_mut_ptr().cast(), most));
        let read = match usize::try_from(read) {
            Ok(0) => break,
            Ok(read) => read,
            Err(_) => return done(moved, errno::load()),
        };
        let mut sent = 0;
        while sent < read {
            let rest = part(&mut piece[sent..read]);
            match carry(to, Way::Send, &raw const rest, 1, more) {
                Some(Ok(count)) => sent += count,
                Some(Err(libc::EAGAIN)) => wait_for_room(to),
                Some(Err(errno)) => return done(moved + sent, errno),
                None => return Ok(Some(moved + sent)),
            }
        }
        moved += sent;
    }
    Ok(Some(moved))
}

fn wait_for_room(to: c_int) {
    let mut one = pollfd {
        fd: to,
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one element, which lives as long as the call. Interrupted or not, the caller looks again.
    unsafe { super::ready::poll(&raw mut one, 1, -1) };
}

/// What was moved, or why nothing was.
fn done(moved: usize, errno: Errno) -> Result<Option<usize>, Errno> {
    some(moved).map_or(Err(errno), |moved| Ok(Some(moved)))
}

fn some(moved: usize) -> Option<usize> {
    (moved > 0).then_some(moved)
}
