//! Exports: create, name, connect, accept, options.
#![expect(unsafe_code, reason = "exports with the C library's names")]

use core::ffi::{c_int, c_void};

use libc::{sockaddr, socklen_t};
use switch::sys::Name;

use super::{exports, kept, real, sleep, with_program};
use crate::calls::names::{self, Accept, Connect};
use crate::calls::wait::Wait;
use crate::calls::{guarded, options, stream};
use crate::{errno, runtime};

exports! {
    fn socket(domain: c_int, socket_type: c_int, protocol: c_int) -> c_int {
        match kept(|| names::socket(domain, socket_type, protocol)) {
            Some(result) => errno::answer_int(result),
            None => real!(socket(domain, socket_type, protocol)),
        }
    }

    fn bind(fd: c_int, name: *const sockaddr, len: socklen_t) -> c_int {
        match with_program!(names::bind(fd, name, len)) {
            Some(result) => errno::answer_unit(result),
            None if runtime::is_hidden(fd) => errno::answer_unit(Err(libc::EBADF)),
            None => real!(bind(fd, name, len)),
        }
    }

    fn listen(fd: c_int, backlog: c_int) -> c_int {
        match kept(|| names::listen(fd, backlog)) {
            Some(result) => errno::answer_unit(result),
            None if runtime::is_hidden(fd) => errno::answer_unit(Err(libc::EBADF)),
            None => real!(listen(fd, backlog)),
        }
    }

    fn accept(fd: c_int, name: *mut sockaddr, len: *mut socklen_t) -> c_int {
        // SAFETY: as of `accept4`.
        unsafe { accept4(fd, name, len, 0) }
    }

    fn accept4(fd: c_int, name: *mut sockaddr, len: *mut socklen_t, flags: c_int) -> c_int {
        if runtime::get().is_none() {
            return real!(accept4(fd, name, len, flags));
        }
        if with_program!(names::has_no_room(name, len)) {
            return errno::answer_int(Err(libc::EINVAL));
        }
        if stream::concerns(fd) {
            let mut wait = Wait::new();
            loop {
                match with_program!(names::accept(fd, name, len, flags, &mut wait)) {
                    Accept::Done(new) => return new,
                    Accept::Failed(errno) => return errno::answer_int(Err(errno)),
                    Accept::Kernel => break,
                    Accept::Wait => {}
                }
                let errno = sleep!(wait);
                if let Some(errno) = guarded(|| names::accept_woken(&mut wait, errno)) {
                    return errno::answer_int(Err(errno));
                }
            }
        }
        let mut from = Name::wide_room();
        let new = real!(accept4(fd, from.pointer(), from.len_pointer(), flags));
        if new >= 0 {
            with_program!(names::accepted(fd, new, &from, name, len));
        }
        new
    }

    fn connect(fd: c_int, name: *const sockaddr, len: socklen_t) -> c_int {
        let mut wait = Wait::new();
        let mut is_first = true;
        let destinations = loop {
            match with_program!(names::connect(fd, name, len, is_first, &mut wait)) {
                Connect::Real if runtime::is_hidden(fd) => return errno::answer_unit(Err(libc::EBADF)),
                Connect::Real => return real!(connect(fd, name, len)),
                Connect::Done => return 0,
                Connect::Failed(errno) => return errno::answer_unit(Err(errno)),
                Connect::Try(destinations) => break destinations,
                Connect::Wait => {}
            }
            let errno = sleep!(wait);
            if let Some(errno) = guarded(|| names::connect_woken(&mut wait, errno)) {
                return errno::answer_unit(Err(errno));
            }
            is_first = false;
        };
        let before = errno::load();
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
            errno::store(if result == 0 { before } else { failed });
            return result;
        }
    }

    fn __connect(fd: c_int, name: *const sockaddr, len: socklen_t) -> c_int {
        // SAFETY: as of `connect`.
        unsafe { connect(fd, name, len) }
    }

    fn shutdown(fd: c_int, how: c_int) -> c_int {
        match kept(|| names::shutdown(fd, how)) {
            Some(result) => errno::answer_unit(result),
            None if runtime::is_hidden(fd) => errno::answer_unit(Err(libc::EBADF)),
            None => real!(shutdown(fd, how)),
        }
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
        match with_program!(options::get(fd, (level, name), value.cast(), len)) {
            Some(result) => errno::answer_unit(result),
            None if runtime::is_hidden(fd) => errno::answer_unit(Err(libc::EBADF)),
            None => real!(getsockopt(fd, level, name, value, len)),
        }
    }

    fn setsockopt(fd: c_int, level: c_int, name: c_int, value: *const c_void, len: socklen_t) -> c_int {
        match with_program!(options::set(fd, (level, name), value.cast(), len)) {
            Some(result) => errno::answer_unit(result),
            None if runtime::is_hidden(fd) => errno::answer_unit(Err(libc::EBADF)),
            None => real!(setsockopt(fd, level, name, value, len)),
        }
    }

    fn sockatmark(fd: c_int) -> c_int {
        if let Some(queued) = kept(|| stream::queued(fd)) {
            return c_int::from(queued.is_at_mark);
        }
        real!(sockatmark(fd))
    }
}
