//! Exports: host names.
//!
//! Invariants: where an answer names its host, it names the node; addresses, ports and errors are the real function's.
#![expect(unsafe_code, reason = "exports with the C library's names")]

use core::ffi::{c_char, c_int, c_void};

use libc::{addrinfo, hostent, size_t, sockaddr, socklen_t, utsname};

use super::{exports, real, with_program};
use crate::calls::hosts::{self, Host};
use crate::errno;

/// Room for an address in digits, v4-mapped too.
const DIGITS: socklen_t = 64;

exports! {
    fn getaddrinfo(name: *const c_char, service: *const c_char, hints: *const addrinfo, result: *mut *mut addrinfo) -> c_int {
        let wants_digits = with_program!(hints.as_ref().is_some_and(|h| h.ai_flags & libc::AI_NUMERICHOST != 0));
        let host = if wants_digits { None } else { with_program!(hosts::named(name)) };
        let Some(host) = host else {
            return real!(getaddrinfo(name, service, hints, result));
        };
        let failed = real!(getaddrinfo(host.digits.as_ptr(), service, hints, result));
        if failed == 0 {
            with_program!(name_first(*result, host));
        }
        failed
    }

    fn getnameinfo(address: *const sockaddr, len: socklen_t, name: *mut c_char, name_room: socklen_t, service: *mut c_char, service_room: socklen_t, flags: c_int) -> c_int {
        let wants_name = !name.is_null() && name_room > 0 && flags & libc::NI_NUMERICHOST == 0;
        let host = if wants_name { with_program!(hosts::at(address, len)) } else { None };
        let Some(host) = host else {
            return real!(getnameinfo(address, len, name, name_room, service, service_room, flags));
        };
        let mut digits: [c_char; room(DIGITS)] = [0; room(DIGITS)];
        let flags = flags & !libc::NI_NAMEREQD | libc::NI_NUMERICHOST;
        let failed = real!(getnameinfo(address, len, digits.as_mut_ptr(), DIGITS, service, service_room, flags));
        if failed != 0 {
            return failed;
        }
        if with_program!(hosts::put(&host.name, name, room(name_room))) { 0 } else { libc::EAI_OVERFLOW }
    }

    fn gethostbyname(name: *const c_char) -> *mut hostent {
        match with_program!(hosts::named(name)) {
            Some(host) => named(real!(gethostbyname(host.digits.as_ptr())), host),
            None => real!(gethostbyname(name)),
        }
    }

    fn gethostbyname2(name: *const c_char, family: c_int) -> *mut hostent {
        match with_program!(hosts::named(name)) {
            Some(host) => named(real!(gethostbyname2(host.digits.as_ptr(), family)), host),
            None => real!(gethostbyname2(name, family)),
        }
    }

    fn gethostbyname_r(name: *const c_char, entry: *mut hostent, work: *mut c_char, work_len: size_t, result: *mut *mut hostent, error: *mut c_int) -> c_int {
        let Some(host) = with_program!(hosts::named(name)) else {
            return real!(gethostbyname_r(name, entry, work, work_len, result, error));
        };
        let failed = real!(gethostbyname_r(host.digits.as_ptr(), entry, work, work_len, result, error));
        if failed == 0 {
            named(with_program!(*result), host);
        }
        failed
    }

    fn gethostbyname2_r(name: *const c_char, family: c_int, entry: *mut hostent, work: *mut c_char, work_len: size_t, result: *mut *mut hostent, error: *mut c_int) -> c_int {
        let Some(host) = with_program!(hosts::named(name)) else {
            return real!(gethostbyname2_r(name, family, entry, work, work_len, result, error));
        };
        let failed = real!(gethostbyname2_r(host.digits.as_ptr(), family, entry, work, work_len, result, error));
        if failed == 0 {
            named(with_program!(*result), host);
        }
        failed
    }

    fn gethostbyaddr(address: *const c_void, len: socklen_t, family: c_int) -> *mut hostent {
        match with_program!(hosts::at_bytes(address, len, family)) {
            Some(host) => named(real!(gethostbyname(host.digits.as_ptr())), host),
            None => real!(gethostbyaddr(address, len, family)),
        }
    }

    fn gethostbyaddr_r(address: *const c_void, len: socklen_t, family: c_int, entry: *mut hostent, work: *mut c_char, work_len: size_t, result: *mut *mut hostent, error: *mut c_int) -> c_int {
        let Some(host) = with_program!(hosts::at_bytes(address, len, family)) else {
            return real!(gethostbyaddr_r(address, len, family, entry, work, work_len, result, error));
        };
        let failed = real!(gethostbyname_r(host.digits.as_ptr(), entry, work, work_len, result, error));
        if failed == 0 {
            named(with_program!(*result), host);
        }
        failed
    }

    fn gethostname(name: *mut c_char, len: size_t) -> c_int {
        let Some(own) = hosts::own() else {
            return real!(gethostname(name, len));
        };
        let fits = with_program!(hosts::put(own, name, len));
        errno::answer_unit(if fits { Ok(()) } else { Err(libc::ENAMETOOLONG) })
    }

    fn uname(to: *mut utsname) -> c_int {
        let result = real!(uname(to));
        if result == 0 && let Some(own) = hosts::own() {
            with_program!(hosts::put(own, (*to).nodename.as_mut_ptr(), (*to).nodename.len()));
        }
        result
    }
}

/// Puts the node's name where its digits stand.
fn named(entry: *mut hostent, host: &'static Host) -> *mut hostent {
    // SAFETY: null, or the C library's answer, which is the caller's to write.
    if let Some(entry) = unsafe { entry.as_mut() } {
        entry.h_name = host.name.as_ptr().cast_mut();
    }
    entry
}

/// As [`named`], for the list of `getaddrinfo`, whose first entry alone may bear a name.
///
/// # Safety
/// `first` is null or begins a list of the C library.
unsafe fn name_first(first: *mut addrinfo, host: &'static Host) {
    // SAFETY: by the caller's promise.
    let Some(first) = (unsafe { first.as_mut() }) else {
        return;
    };
    if first.ai_canonname.is_null() {
        return;
    }
    // SAFETY: a C string. `freeaddrinfo` gives it to `free`.
    let name = unsafe { libc::strdup(host.name.as_ptr()) };
    if !name.is_null() {
        // SAFETY: the C library allocated it for this list alone.
        unsafe { libc::free(first.ai_canonname.cast()) };
        first.ai_canonname = name;
    }
}

/// Room for a name, as a size.
const fn room(room: socklen_t) -> usize {
    room as usize
}
