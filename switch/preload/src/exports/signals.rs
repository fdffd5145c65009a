//! Exports: signal handlers.
#![expect(unsafe_code, reason = "exports with the C library's names")]

use core::ffi::c_int;

use libc::{sigaction as Action, sighandler_t};

use super::{exports, real, with_program};
use crate::{audit, runtime, signals};

exports! {
    fn sigaction(signal: c_int, action: *const Action, old: *mut Action) -> c_int {
        // A `vfork` child changes its own handlers, not its parent's table.
        if runtime::get().is_none_or(|r| r.process.is_foreign()) {
            return real!(sigaction(signal, action, old));
        }
        let change = if action.is_null() {
            None
        } else {
            with_program!(signals::change(signal, &*action))
        };
        if audit::is_kept(signal) {
            // Known, and called where the kernel means the program.
            if !old.is_null() {
                with_program!(signals::show_kept(signal, &mut *old, change.as_ref()));
            }
            return 0;
        }
        let new = change.as_ref().map_or(action, |c| &raw const c.action);
        let result = real!(sigaction(signal, new, old));
        if result == 0 {
            if !old.is_null() {
                with_program!(signals::show(signal, &mut *old, change.as_ref()));
            }
        } else if let Some(change) = &change {
            signals::revert(signal, change);
        }
        result
    }

    fn __sigaction(signal: c_int, action: *const Action, old: *mut Action) -> c_int {
        // SAFETY: as of `sigaction`.
        unsafe { sigaction(signal, action, old) }
    }

    fn signal(number: c_int, handler: sighandler_t) -> sighandler_t {
        install(number, handler, libc::SA_RESTART)
    }

    fn bsd_signal(number: c_int, handler: sighandler_t) -> sighandler_t {
        install(number, handler, libc::SA_RESTART)
    }

    fn ssignal(number: c_int, handler: sighandler_t) -> sighandler_t {
        install(number, handler, libc::SA_RESTART)
    }

    fn __sysv_signal(number: c_int, handler: sighandler_t) -> sighandler_t {
        install(number, handler, libc::SA_RESETHAND | libc::SA_NODEFER)
    }

    fn sysv_signal(number: c_int, handler: sighandler_t) -> sighandler_t {
        install(number, handler, libc::SA_RESETHAND | libc::SA_NODEFER)
    }
}

fn install(number: c_int, handler: sighandler_t, flags: c_int) -> sighandler_t {
    // SAFETY: all bytes zero is a valid action.
    let mut action: Action = unsafe { core::mem::zeroed() };
    // SAFETY: as above.
    let mut old: Action = unsafe { core::mem::zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = flags;
    // SAFETY: both actions are valid.
    let result = unsafe { sigaction(number, &raw const action, &raw mut old) };
    if result == 0 {
        old.sa_sigaction
    } else {
        libc::SIG_ERR
    }
}
