//! Exports: calls that move bytes.
//!
//! Hot: all of them, on descriptors that are none of ours.
#![expect(unsafe_code, reason = "exports with the C library's names")]

use core::ffi::{c_int, c_uint, c_void};

use libc::{iovec, mmsghdr, msghdr, off_t, size_t, sockaddr, socklen_t, ssize_t, timespec};
use switch::Errno;

use super::{exports, real, sleep, with_program};
use crate::calls::datagrams::{self, Destination};
use crate::calls::stream::{self, Step, Transfer, Way};
use crate::calls::{guarded, messages, notices, traffic};
use crate::errno;

/// Counts bytes that the kernel sent.
macro_rules! sending {
    ($fd:expr, $call:expr) => {{
        let result = $call;
        traffic::moved($fd, result, 0);
        result
    }};
}

/// Counts bytes that the kernel received.
macro_rules! receiving {
    ($fd:expr, $call:expr) => {{
        let result = $call;
        traffic::moved($fd, 0, result);
        result
    }};
}

/// Moves bytes over the SAN if it carries `fd`, and returns from the export then.
macro_rules! carried {
    ($fd:expr, $way:expr, $parts:expr, $count:expr, $flags:expr) => {
        if stream::concerns($fd)
            && let Some(result) = carry($fd, $way, $parts, $count, $flags)
        {
            return finish(result);
        }
    };
}

/// As [`carried`], for a call with one buffer.
macro_rules! carried_bytes {
    ($fd:expr, $way:expr, $bytes:expr, $len:expr, $flags:expr) => {
        if stream::concerns($fd) {
            let part = iovec {
                iov_base: $bytes.cast_mut(),
                iov_len: $len,
            };
            if let Some(result) = carry($fd, $way, &raw const part, 1, $flags) {
                return finish(result);
            }
        }
    };
}

/// Carries a call over the SAN, with all its waits. `None`: it is the kernel's.
pub(super) fn carry(
    fd: c_int,
    way: Way,
    parts: *const iovec,
    count: usize,
    flags: c_int,
) -> Option<Result<usize, Errno>> {
    let mut transfer = match with_program!(Transfer::new(fd, way, parts, count, flags)) {
        Ok(transfer) => transfer,
        Err(errno) => return Some(Err(errno)),
    };
    loop {
        let mut step = super::kept(|| stream::step(&mut transfer));
        if matches!(step, Step::Wait) {
            let wait = &mut transfer.wait;
            let errno = sleep!(wait);
            match guarded(|| stream::woken(&mut transfer, errno)) {
                Some(end) => step = end,
                None => continue,
            }
        }
        return match step {
            Step::Done(count) => Some(Ok(count)),
            Step::Failed(errno) => Some(Err(errno)),
            Step::Kernel | Step::Wait => None,
        };
    }
}

/// A message of too many parts has an error of its own.
fn too_many(count: usize, result: Result<usize, Errno>) -> Result<usize, Errno> {
    if count > libc::UIO_MAXIOV.unsigned_abs() as usize {
        return Err(libc::EMSGSIZE);
    }
    result
}

fn finish(result: Result<usize, Errno>) -> ssize_t {
    errno::answer(result)
}

exports! {
    fn send(fd: c_int, bytes: *const c_void, len: size_t, flags: c_int) -> ssize_t {
        carried_bytes!(fd, Way::Send, bytes, len, flags);
        sending!(fd, real!(send(fd, bytes, len, flags)))
    }

    fn __send(fd: c_int, bytes: *const c_void, len: size_t, flags: c_int) -> ssize_t {
        // SAFETY: as of `send`.
        unsafe { send(fd, bytes, len, flags) }
    }

    fn sendto(fd: c_int, bytes: *const c_void, len: size_t, flags: c_int, name: *const sockaddr, name_len: socklen_t) -> ssize_t {
        carried_bytes!(fd, Way::Send, bytes, len, flags);
        match with_program!(datagrams::destination(fd, name, name_len)) {
            Destination::AsNamed => {
                sending!(fd, real!(sendto(fd, bytes, len, flags, name, name_len)))
            }
            Destination::At(to) => real!(sendto(fd, bytes, len, flags, to.const_pointer(), to.len)),
            Destination::Refused(errno) => finish(Err(errno)),
        }
    }

    fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t {
        if stream::concerns(fd) {
            let (parts, count) = with_program!(messages::parts(message));
            if let Some(result) = carry(fd, Way::Send, parts, count, flags) {
                return finish(too_many(count, result));
            }
        }
        if let Some(name) = with_program!(datagrams::name_of(fd, message)) {
            match with_program!(datagrams::destination(fd, name.0, name.1)) {
                Destination::AsNamed => {}
                Destination::At(to) => {
                    let placed = with_program!(datagrams::readdressed(message, &to));
                    return real!(sendmsg(fd, &raw const placed, flags));
                }
                Destination::Refused(errno) => return finish(Err(errno)),
            }
        }
        let passing = match with_program!(messages::passing(message)) {
            Ok(passing) => passing,
            Err(errno) => return finish(Err(errno)),
        };
        if passing.is_null() {
            return sending!(fd, real!(sendmsg(fd, message, flags)));
        }
        let header = with_program!(messages::header_of(passing));
        let result = sending!(fd, real!(sendmsg(fd, header, flags)));
        with_program!(messages::passed(passing));
        result
    }

    fn sendmmsg(fd: c_int, array: *mut mmsghdr, count: c_uint, flags: c_int) -> c_int {
        let is_plain = !stream::concerns(fd) && !datagrams::is_one(fd);
        if is_plain && !with_program!(messages::have_sockets(array, count)) {
            let result = real!(sendmmsg(fd, array, count, flags));
            traffic::moved(fd, with_program!(messages::bytes_of(array, result)), 0);
            return result;
        }
        // One by one: each may have another destination, or the SAN carries them.
        let mut sent = 0;
        while sent < count {
            let message = with_program!(messages::at(array, sent));
            // SAFETY: an element of the program's array.
            let result = unsafe { sendmsg(fd, message, flags) };
            if result < 0 {
                return if sent == 0 { -1 } else { sent.cast_signed() };
            }
            with_program!(messages::set_len(array, sent, result));
            sent += 1;
        }
        sent.cast_signed()
    }

    fn recv(fd: c_int, bytes: *mut c_void, len: size_t, flags: c_int) -> ssize_t {
        if flags & libc::MSG_ERRQUEUE != 0 && let Some(result) = notices::drop_next(fd) {
            return finish(result);
        }
        carried_bytes!(fd, Way::Receive, bytes.cast_const(), len, flags);
        receiving!(fd, real!(recv(fd, bytes, len, flags)))
    }

    fn __recv_chk(fd: c_int, bytes: *mut c_void, len: size_t, room: size_t, flags: c_int) -> ssize_t {
        if len <= room {
            carried_bytes!(fd, Way::Receive, bytes.cast_const(), len, flags);
        }
        receiving!(fd, real!(__recv_chk(fd, bytes, len, room, flags)))
    }

    fn recvfrom(fd: c_int, bytes: *mut c_void, len: size_t, flags: c_int, name: *mut sockaddr, name_len: *mut socklen_t) -> ssize_t {
        if flags & libc::MSG_ERRQUEUE != 0 && let Some(result) = notices::drop_next(fd) {
            return finish(result);
        }
        if stream::concerns(fd) {
            let part = iovec { iov_base: bytes, iov_len: len };
            if let Some(result) = carry(fd, Way::Receive, &raw const part, 1, flags) {
                if result.is_ok() {
                    with_program!(messages::no_name(name_len));
                }
                return finish(result);
            }
        }
        let result = real!(recvfrom(fd, bytes, len, flags, name, name_len));
        if result >= 0 && datagrams::has_redirect(fd) {
            with_program!(datagrams::translate_source(fd, name, name_len));
        }
        traffic::moved(fd, 0, result);
        result
    }

    fn __recvfrom_chk(fd: c_int, bytes: *mut c_void, len: size_t, room: size_t, flags: c_int, name: *mut sockaddr, name_len: *mut socklen_t) -> ssize_t {
        if len > room {
            return real!(__recvfrom_chk(fd, bytes, len, room, flags, name, name_len));
        }
        // SAFETY: as of `recvfrom`.
        unsafe { recvfrom(fd, bytes, len, flags, name, name_len) }
    }

    fn recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t {
        if flags & libc::MSG_ERRQUEUE != 0 && let Some(result) = with_program!(notices::next(fd, message)) {
            return finish(result);
        }
        if stream::concerns(fd) {
            let (parts, count) = with_program!(messages::parts(message));
            if let Some(result) = carry(fd, Way::Receive, parts, count, flags) {
                if let Ok(received) = result {
                    with_program!(messages::received(fd, message, flags, received));
                }
                return finish(too_many(count, result));
            }
        }
        let result = real!(recvmsg(fd, message, flags));
        if result >= 0 && datagrams::has_redirect(fd) {
            with_program!(datagrams::translate_message(fd, message));
        }
        traffic::moved(fd, 0, result);
        result
    }

    fn recvmmsg(fd: c_int, array: *mut mmsghdr, count: c_uint, flags: c_int, timeout: *mut timespec) -> c_int {
        if stream::concerns(fd) {
            let end_ns = match with_program!(messages::end_of(timeout)) {
                Ok(end_ns) => end_ns,
                Err(errno) => return errno::answer_int(Err(errno)),
            };
            let mut received = 0;
            while received < count {
                let message = with_program!(messages::at(array, received));
                let once = flags & !libc::MSG_WAITFORONE;
                let waits_for_one = flags & libc::MSG_WAITFORONE != 0 && received > 0;
                let once = if waits_for_one { once | libc::MSG_DONTWAIT } else { once };
                // SAFETY: an element of the program's array.
                let result = unsafe { recvmsg(fd, message, once) };
                if result < 0 {
                    return if received == 0 { -1 } else { received.cast_signed() };
                }
                with_program!(messages::set_len(array, received, result));
                received += 1;
                // As in the kernel, the time is looked at between messages only.
                if result == 0 || switch::outcome::now_ns() >= end_ns {
                    break;
                }
            }
            return received.cast_signed();
        }
        let result = real!(recvmmsg(fd, array, count, flags, timeout));
        if result > 0 && datagrams::has_redirect(fd) {
            with_program!(datagrams::translate_messages(fd, array, result));
        }
        traffic::moved(fd, 0, with_program!(messages::bytes_of(array, result)));
        result
    }

    fn read(fd: c_int, bytes: *mut c_void, len: size_t) -> ssize_t {
        // A read of nothing never waits; a receive of nothing does.
        if len > 0 {
            carried_bytes!(fd, Way::Receive, bytes.cast_const(), len, 0);
        } else if stream::concerns(fd) {
            return 0;
        }
        receiving!(fd, real!(read(fd, bytes, len)))
    }

    fn __read(fd: c_int, bytes: *mut c_void, len: size_t) -> ssize_t {
        // SAFETY: as of `read`.
        unsafe { read(fd, bytes, len) }
    }

    fn __read_chk(fd: c_int, bytes: *mut c_void, len: size_t, room: size_t) -> ssize_t {
        if len <= room {
            carried_bytes!(fd, Way::Receive, bytes.cast_const(), len, 0);
        }
        receiving!(fd, real!(__read_chk(fd, bytes, len, room)))
    }

    fn write(fd: c_int, bytes: *const c_void, len: size_t) -> ssize_t {
        carried_bytes!(fd, Way::Send, bytes, len, 0);
        sending!(fd, real!(write(fd, bytes, len)))
    }

    fn __write(fd: c_int, bytes: *const c_void, len: size_t) -> ssize_t {
        // SAFETY: as of `write`.
        unsafe { write(fd, bytes, len) }
    }

    fn readv(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t {
        if let Ok(parts_count) = usize::try_from(count) {
            if stream::concerns(fd) && with_program!(messages::is_nothing(parts, parts_count)) {
                return 0;
            }
            carried!(fd, Way::Receive, parts, parts_count, 0);
        }
        receiving!(fd, real!(readv(fd, parts, count)))
    }

    fn writev(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t {
        if let Ok(parts_count) = usize::try_from(count) {
            if stream::concerns(fd) && with_program!(messages::is_nothing(parts, parts_count)) {
                return 0;
            }
            carried!(fd, Way::Send, parts, parts_count, 0);
        }
        sending!(fd, real!(writev(fd, parts, count)))
    }

    fn preadv2(fd: c_int, parts: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t {
        if stream::concerns(fd) {
            if offset == -1 {
                // SAFETY: as of `readv`, which it is at this offset.
                return unsafe { readv(fd, parts, count) };
            }
            return finish(Err(libc::ESPIPE));
        }
        real!(preadv2(fd, parts, count, offset, flags))
    }

    fn pwritev2(fd: c_int, parts: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t {
        if stream::concerns(fd) {
            if offset == -1 {
                // SAFETY: as of `writev`, which it is at this offset.
                return unsafe { writev(fd, parts, count) };
            }
            return finish(Err(libc::ESPIPE));
        }
        real!(pwritev2(fd, parts, count, offset, flags))
    }

    fn preadv64v2(fd: c_int, parts: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t {
        // SAFETY: as of `preadv2`.
        unsafe { preadv2(fd, parts, count, offset, flags) }
    }

    fn pwritev64v2(fd: c_int, parts: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t {
        // SAFETY: as of `pwritev2`.
        unsafe { pwritev2(fd, parts, count, offset, flags) }
    }
}
