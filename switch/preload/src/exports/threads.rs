//! Exports: threads, which the audit arms as they begin.
#![expect(unsafe_code, reason = "exports with the C library's names")]

use core::ffi::{c_int, c_void};

use libc::{pthread_attr_t, pthread_t};

use super::{exports, real};
use crate::audit;

/// `thrd_nomem` of threads.h.
const NO_MEMORY: c_int = 3;

exports! {
    fn pthread_create(
        thread: *mut pthread_t,
        attributes: *const pthread_attr_t,
        function: *mut c_void,
        argument: *mut c_void,
    ) -> c_int {
        if !audit::is_on() || audit::is_own_thread() {
            return real!(pthread_create(thread, attributes, function, argument));
        }
        let start = audit::start_of(function, argument);
        if start.is_null() {
            return libc::EAGAIN;
        }
        let failed = real!(pthread_create(thread, attributes, audit::posix_thread as *mut c_void, start));
        if failed != 0 {
            audit::forget_start(start);
        }
        failed
    }

    fn thrd_create(thread: *mut c_void, function: *mut c_void, argument: *mut c_void) -> c_int {
        if !audit::is_on() {
            return real!(thrd_create(thread, function, argument));
        }
        let start = audit::start_of(function, argument);
        if start.is_null() {
            return NO_MEMORY;
        }
        let failed = real!(thrd_create(thread, audit::c11_thread as *mut c_void, start));
        if failed != 0 {
            audit::forget_start(start);
        }
        failed
    }
}
