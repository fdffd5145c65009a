//! The exported functions: thin redirects, by family.
//!
//! Place: the dynamic linker binds the program's calls to these; they call `calls` or the real functions of `real`.
//! Invariants: each calls its real function with nothing alive that has a destructor; what else is to do is in `calls`.

pub(crate) mod data;
pub(crate) mod descriptors;
mod files;
mod hosts;
pub(crate) mod names;
mod outside;
mod printing;
mod programs;
pub(crate) mod ready;
mod signals;
mod splice;
mod threads;

use crate::calls::guarded;
use crate::errno;

/// Defines exports. The body may use `real!(name(arguments))` for the real function.
macro_rules! exports {
    ($($(#[$meta:meta])* fn $name:ident($($arg:ident: $type:ty),* $(,)?) -> $ret:ty $body:block)*) => {$(
        /// Redirect of the C library's function of this name.
        ///
        /// # Safety
        /// As of that function.
        $(#[$meta])*
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C-unwind" fn $name($($arg: $type),*) -> $ret $body
    )*};
}

/// Calls the real function.
macro_rules! real {
    ($name:ident($($arg:expr),* $(,)?)) => {
        // SAFETY: the arguments are the program's own, or ours of the same form: whoever called the export promised what the real
        // function asks for.
        unsafe { crate::real::$name($($arg),*) }
    };
}

/// Runs a part of `calls` that takes pointers of the program.
macro_rules! with_program {
    ($call:expr) => {
        crate::exports::kept(||
            // SAFETY: the pointers are the program's own: whoever called the export promised what the real function asks for.
            unsafe { $call })
    };
}

/// Carries out a wait with the real `ppoll`, where a thread may be cancelled or jump away. Gives its errno, 0 for none, and puts the
/// program's back.
macro_rules! sleep {
    ($wait:ident) => {{
        if $wait.has_signal() {
            libc::EINTR
        } else {
            $crate::exports::sleep_now!($wait)
        }
    }};
}

/// The sleep itself.
macro_rules! sleep_now {
    ($wait:ident) => {{
        let before = crate::errno::load();
        let timeout = $wait.timeout();
        let timeout = timeout
            .as_ref()
            .map_or(core::ptr::null(), core::ptr::from_ref);
        let result = $crate::exports::real!(ppoll(
            $wait.fds.as_mut_ptr(),
            $wait.len as libc::nfds_t,
            timeout,
            core::ptr::null()
        ));
        let errno = if result < 0 { crate::errno::load() } else { 0 };
        crate::errno::store(before);
        errno
    }};
}

/// Runs a part of `calls` and puts `errno` back: only an export's own answer changes it.
#[inline]
fn kept<T>(work: impl FnOnce() -> T) -> T {
    let before = errno::load();
    let value = guarded(work);
    errno::store(before);
    value
}

pub(crate) use {exports, real, sleep, sleep_now, with_program};
