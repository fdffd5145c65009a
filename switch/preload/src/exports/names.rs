//! Exports: create, name, connect, options.
#![expect(unsafe_code, reason = "exports with the C library's names")]

use core::ffi::{c_int, c_void};

use libc::{sockaddr, socklen_t};
use switch::sys::Name;

use super::{exports, real, with_program};
use crate::calls::guarded;
use crate::calls::names::{self, Connect};
use crate::{errno, runtime};

exports! {
    fn socket(domain: c_int, socket_type: c_int, protocol: c_int) -> c_int {
        let fd = real!(socket(domain, socket_type, protocol));
        if fd >= 0 {
            let kept = errno::load();
            guarded(|| names::made(fd, domain, socket_type));
            errno::store(kept);
        }
        fd
    }

    fn bind(fd: c_int, name: *const sockaddr, len: socklen_t) -> c_int {
        match with_program!(names::bind(fd, name, len)) {
            Some(result) => errno::answer_unit(result),
            None if runtime::is_hidden(fd) => errno::answer_unit(Err(libc::EBADF)),
            None => real!(bind(fd, name, len)),
        }
    }

    fn listen(fd: c_int, backlog: c_int) -> c_int {
        match guarded(|| names::listen(fd, backlog)) {
            Some(result) => errno::answer_unit(result),
            None if runtime::is_hidden(fd) => errno::answer_unit(Err(libc::EBADF)),
            None => real!(listen(fd, backlog)),
        }
    }

    fn accept(fd: c_int, name: *mut sockaddr, len: *mut socklen_t) -> c_int {
        if runtime::get().is_none() {
            return real!(accept(fd, name, len));
        }
        let mut from = Name::wide_room();
        let new = real!(accept(fd, from.pointer(), from.len_pointer()));
        if new >= 0 {
            let kept = errno::load();
            with_program!(names::accepted(fd, new, &from, name, len));
            errno::store(kept);
        }
        new
    }

    fn accept4(fd: c_int, name: *mut sockaddr, len: *mut socklen_t, flags: c_int) -> c_int {
        if runtime::get().is_none() {
            return real!(accept4(fd, name, len, flags));
        }
        let mut from = Name::wide_room();
        let new = real!(accept4(fd, from.pointer(), from.len_pointer(), flags));
        if new >= 0 {
            let kept = errno::load();
            with_program!(names::accepted(fd, new, &from, name, len));
            errno::store(kept);
        }
        new
    }

    fn connect(fd: c_int, name: *const sockaddr, len: socklen_t) -> c_int {
        let destinations = match with_program!(names::connect(fd, name, len)) {
            Connect::Real if runtime::is_hidden(fd) => return errno::answer_unit(Err(libc::EBADF)),
            Connect::Real => return real!(connect(fd, name, len)),
            Connect::Failed(0) => return 0,
            Connect::Failed(errno) => return errno::answer_unit(Err(errno)),
            Connect::Try(destinations) => destinations,
        };
        let kept = errno::load();
        let count = destinations.tries().len();
        let mut tried = 0;
        loop {
            let to = Name::from(destinations.tries()[tried]);
            let result = real!(connect(fd, to.const_pointer(), to.len));
            let failed = if result == 0 { 0 } else { errno::load() };
            tried += 1;
            if tried < count && guarded(|| names::is_next_wanted(fd, failed)) {
                if failed == libc::EINPROGRESS {
                    // Takes the refusal off the socket, which makes it fit for the next connect.
                    real!(connect(fd, to.const_pointer(), to.len));
                }
                continue;
            }
            guarded(|| names::connect_ended(fd, &destinations, failed));
            errno::store(if result == 0 { kept } else { failed });
            return result;
        }
    }

    fn __connect(fd: c_int, name: *const sockaddr, len: socklen_t) -> c_int {
        // SAFETY: as of `connect`.
        unsafe { connect(fd, name, len) }
    }

    fn getsockname(fd: c_int, name: *mut sockaddr, len: *mut socklen_t) -> c_int {
        match with_program!(names::local(fd, name, len)) {
            Some(result) => errno::answer_unit(result),
            None if runtime::is_hidden(fd) => errno::answer_unit(Err(libc::EBADF)),
            None => real!(getsockname(fd, name, len)),
        }
    }

    fn getpeername(fd: c_int, name: *mut sockaddr, len: *mut socklen_t) -> c_int {
        match with_program!(names::peer(fd, name, len)) {
            Some(result) => errno::answer_unit(result),
            None if runtime::is_hidden(fd) => errno::answer_unit(Err(libc::EBADF)),
            None => real!(getpeername(fd, name, len)),
        }
    }

    fn getsockopt(fd: c_int, level: c_int, name: c_int, value: *mut c_void, len: *mut socklen_t) -> c_int {
        match with_program!(names::option(fd, (level, name), value.cast(), len)) {
            Some(result) => errno::answer_unit(result),
            None if runtime::is_hidden(fd) => errno::answer_unit(Err(libc::EBADF)),
            None => real!(getsockopt(fd, level, name, value, len)),
        }
    }

    fn setsockopt(fd: c_int, level: c_int, name: c_int, value: *const c_void, len: socklen_t) -> c_int {
        match with_program!(names::set_option(fd, (level, name), value.cast(), len)) {
            Some(result) => errno::answer_unit(result),
            None if runtime::is_hidden(fd) => errno::answer_unit(Err(libc::EBADF)),
            None => real!(setsockopt(fd, level, name, value, len)),
        }
    }
}
