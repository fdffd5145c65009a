//! The audit where it does not exist: on machines other than x86-64. The launcher says so before a program starts.
//!
//! Place: as of `audit/mod.rs`. Source: ours.

use core::ffi::{c_int, c_void};

use crate::runtime::Runtime;

pub(crate) const fn is_on() -> bool {
    false
}

pub(crate) fn begin(runtime: &Runtime) {
    runtime.process.telemetry.report.watched(false);
}

pub(crate) const fn handler_begins() -> u32 {
    0
}

pub(crate) const fn handler_ended(_before: u32) {}

pub(crate) const fn forking(_is_forking: bool) {}

pub(crate) const fn after_fork_in_child() {}

pub(crate) const fn is_kept(_signal: c_int) -> bool {
    false
}

pub(crate) const fn is_own_thread() -> bool {
    true
}

pub(crate) const fn start_of(_function: *mut c_void, _argument: *mut c_void) -> *mut c_void {
    core::ptr::null_mut()
}

pub(crate) const fn forget_start(_start: *mut c_void) {}

pub(crate) extern "C-unwind" fn posix_thread(_start: *mut c_void) -> *mut c_void {
    core::ptr::null_mut()
}

pub(crate) extern "C-unwind" fn c11_thread(_start: *mut c_void) -> c_int {
    0
}
