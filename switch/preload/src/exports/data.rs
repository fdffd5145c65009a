//! Exports: calls that move bytes.
//!
//! Hot: all of them, on descriptors that are none of ours.
#![expect(unsafe_code, reason = "exports with the C library's names")]

use core::ffi::{c_int, c_uint, c_void};

use libc::{iovec, mmsghdr, msghdr, off_t, size_t, sockaddr, socklen_t, ssize_t, timespec};

use super::{exports, real, with_program};
use crate::calls::names;
use crate::calls::traffic;

/// Counts bytes that a call sent.
macro_rules! sending {
    ($fd:expr, $call:expr) => {{
        let result = $call;
        traffic::moved($fd, result, 0);
        result
    }};
}

/// Counts bytes that a call received.
macro_rules! receiving {
    ($fd:expr, $call:expr) => {{
        let result = $call;
        traffic::moved($fd, 0, result);
        result
    }};
}

exports! {
    fn send(fd: c_int, bytes: *const c_void, len: size_t, flags: c_int) -> ssize_t {
        sending!(fd, real!(send(fd, bytes, len, flags)))
    }

    fn __send(fd: c_int, bytes: *const c_void, len: size_t, flags: c_int) -> ssize_t {
        sending!(fd, real!(send(fd, bytes, len, flags)))
    }

    fn sendto(fd: c_int, bytes: *const c_void, len: size_t, flags: c_int, name: *const sockaddr, name_len: socklen_t) -> ssize_t {
        match with_program!(names::datagram_to(fd, name, name_len)) {
            None => sending!(fd, real!(sendto(fd, bytes, len, flags, name, name_len))),
            Some(to) => real!(sendto(fd, bytes, len, flags, to.const_pointer(), to.len)),
        }
    }

    fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t {
        if let Some(name) = with_program!(names::name_of_message(fd, message))
            && let Some(to) = with_program!(names::datagram_to(fd, name.0, name.1))
        {
            let placed = with_program!(names::readdressed(message, &to));
            return real!(sendmsg(fd, &raw const placed, flags));
        }
        sending!(fd, real!(sendmsg(fd, message, flags)))
    }

    fn sendmmsg(fd: c_int, messages: *mut mmsghdr, count: c_uint, flags: c_int) -> c_int {
        if names::is_datagram(fd) {
            // One by one, because each may have another destination.
            let mut sent = 0;
            while sent < count {
                let message = with_program!(names::message_at(messages, sent));
                // SAFETY: an element of the program's array.
                let result = unsafe { sendmsg(fd, message, flags) };
                if result < 0 {
                    return if sent == 0 { -1 } else { sent.cast_signed() };
                }
                with_program!(names::set_message_len(messages, sent, result));
                sent += 1;
            }
            return sent.cast_signed();
        }
        let result = real!(sendmmsg(fd, messages, count, flags));
        traffic::moved(fd, with_program!(names::bytes_of(messages, result)), 0);
        result
    }

    fn recv(fd: c_int, bytes: *mut c_void, len: size_t, flags: c_int) -> ssize_t {
        receiving!(fd, real!(recv(fd, bytes, len, flags)))
    }

    fn __recv_chk(fd: c_int, bytes: *mut c_void, len: size_t, room: size_t, flags: c_int) -> ssize_t {
        receiving!(fd, real!(__recv_chk(fd, bytes, len, room, flags)))
    }

    fn recvfrom(fd: c_int, bytes: *mut c_void, len: size_t, flags: c_int, name: *mut sockaddr, name_len: *mut socklen_t) -> ssize_t {
        let result = real!(recvfrom(fd, bytes, len, flags, name, name_len));
        if result >= 0 && !name_len.is_null() && names::has_redirect(fd) {
            with_program!(names::datagram_from(fd, name, name_len.read_unaligned()));
        }
        traffic::moved(fd, 0, result);
        result
    }

    fn __recvfrom_chk(fd: c_int, bytes: *mut c_void, len: size_t, room: size_t, flags: c_int, name: *mut sockaddr, name_len: *mut socklen_t) -> ssize_t {
        let result = real!(__recvfrom_chk(fd, bytes, len, room, flags, name, name_len));
        if result >= 0 && !name_len.is_null() && names::has_redirect(fd) {
            with_program!(names::datagram_from(fd, name, name_len.read_unaligned()));
        }
        traffic::moved(fd, 0, result);
        result
    }

    fn recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t {
        let result = real!(recvmsg(fd, message, flags));
        if result >= 0 && names::has_redirect(fd) {
            with_program!(names::message_from(fd, message));
        }
        traffic::moved(fd, 0, result);
        result
    }

    fn recvmmsg(fd: c_int, messages: *mut mmsghdr, count: c_uint, flags: c_int, timeout: *mut timespec) -> c_int {
        let result = real!(recvmmsg(fd, messages, count, flags, timeout));
        if result > 0 && names::has_redirect(fd) {
            with_program!(names::messages_from(fd, messages, result));
        }
        traffic::moved(fd, 0, with_program!(names::bytes_of(messages, result)));
        result
    }

    fn read(fd: c_int, bytes: *mut c_void, len: size_t) -> ssize_t {
        receiving!(fd, real!(read(fd, bytes, len)))
    }

    fn __read(fd: c_int, bytes: *mut c_void, len: size_t) -> ssize_t {
        receiving!(fd, real!(read(fd, bytes, len)))
    }

    fn __read_chk(fd: c_int, bytes: *mut c_void, len: size_t, room: size_t) -> ssize_t {
        receiving!(fd, real!(__read_chk(fd, bytes, len, room)))
    }

    fn write(fd: c_int, bytes: *const c_void, len: size_t) -> ssize_t {
        sending!(fd, real!(write(fd, bytes, len)))
    }

    fn __write(fd: c_int, bytes: *const c_void, len: size_t) -> ssize_t {
        sending!(fd, real!(write(fd, bytes, len)))
    }

    fn readv(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t {
        receiving!(fd, real!(readv(fd, parts, count)))
    }

    fn writev(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t {
        sending!(fd, real!(writev(fd, parts, count)))
    }

    fn sendfile(to: c_int, from: c_int, offset: *mut off_t, count: size_t) -> ssize_t {
        sending!(to, real!(sendfile(to, from, offset, count)))
    }

    fn sendfile64(to: c_int, from: c_int, offset: *mut off_t, count: size_t) -> ssize_t {
        sending!(to, real!(sendfile(to, from, offset, count)))
    }

    fn splice(from: c_int, from_offset: *mut off_t, to: c_int, to_offset: *mut off_t, len: size_t, flags: c_uint) -> ssize_t {
        receiving!(from, sending!(to, real!(splice(from, from_offset, to, to_offset, len, flags))))
    }
}
