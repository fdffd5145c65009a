//! Work that the library does in a process image of its own, in place of a program.
//!
//! Place: the constructor asks [`play`] after it has taken up an estate. The host is the file of the program that started us, because
//! that is known to carry the library; its `main` never runs.
//! Invariants: a role never returns. Source: ours.
//!
//! ```text
//! outside:PATH        gives the SAN sockets among its descriptors to pumps, then executes PATH without the library
//! pump:SAN:TCP        moves bytes between two descriptors
//! ```

use core::ffi::CStr;
#[cfg(not(test))]
use core::ffi::c_char;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

#[cfg(not(test))]
use {
    crate::calls::{flow, pump},
    crate::environment::{self, PRELOAD},
    crate::heir,
    crate::runtime::Runtime,
    ring_proto::channel,
    switch::sys,
};

/// The program that lends us its file.
pub(crate) const HOST: &CStr = c"/proc/self/exe";

/// Value of the variable for the image between a hooked parent and a program without the library.
pub(crate) fn outside(path: &Path) -> Vec<u8> {
    let mut role = b"outside:".to_vec();
    role.extend_from_slice(path.as_os_str().as_bytes());
    role
}

/// Value of the variable for a pump.
pub(crate) fn pump(san: i32, tcp: i32) -> Vec<u8> {
    format!("pump:{san}:{tcp}").into_bytes()
}

/// Whether a value of the variable is a pump's.
pub(crate) fn is_pump(role: &[u8]) -> bool {
    role.starts_with(b"pump:")
}

/// Plays the role that the environment names; returns when it names none.
#[cfg(not(test))]
#[expect(unsafe_code, reason = "ends the process")]
pub(crate) fn play(runtime: &'static Runtime, arguments: *const *const c_char) {
    let Some(role) = environment::take(channel::ENV_ROLE) else {
        return;
    };
    let role = role.to_bytes();
    if let Some(path) = role.strip_prefix(b"outside:") {
        let preload = environment::take(channel::ENV_PRELOAD);
        for carried in heir::carried(runtime, false) {
            if let Some(fd) = carried.fds.first() {
                // As in `calls::exec`.
                pump::replace(runtime, *fd).ok();
            }
        }
        become_program(path, preload.as_deref(), arguments);
    } else if let Some(ends) = role.strip_prefix(b"pump:") {
        let mut ends = ends
            .split(|&byte| byte == b':')
            .filter_map(|end| core::str::from_utf8(end).ok()?.parse().ok());
        if let (Some(san), Some(tcp)) = (ends.next(), ends.next()) {
            flow::run(san, tcp);
        }
    }
    // SAFETY: ends the process without running anything of the host.
    unsafe { libc::_exit(127) };
}

#[cfg(not(test))]
#[expect(unsafe_code, reason = "executes a program")]
fn become_program(path: &[u8], preload: Option<&CStr>, arguments: *const *const c_char) {
    let Ok(path) = std::ffi::CString::new(path) else {
        return;
    };
    let name = std::ffi::CString::new(PRELOAD).expect("a name without zero bytes");
    match preload {
        // SAFETY: C strings; no other thread of the program runs.
        Some(list) => unsafe { libc::setenv(name.as_ptr(), list.as_ptr(), 1) },
        // SAFETY: as above.
        None => unsafe { libc::unsetenv(name.as_ptr()) },
    };
    unsafe extern "C" {
        static environ: *const *const c_char;
    }
    let args = [
        path.as_ptr().expose_provenance(),
        arguments.expose_provenance(),
        // SAFETY: the C library's vector; no other thread changes it.
        unsafe { environ }.expose_provenance(),
        0,
        0,
        0,
    ];
    // SAFETY: a C string and two null-terminated vectors of them. Failure ends in our caller's exit.
    unsafe { sys::syscall(libc::SYS_execve, args) }.ok();
}
