//! `fcntl` and `ioctl` on sockets that the switch knows.
//!
//! Place: `exports::descriptors` -> here. Invariants: `O_NONBLOCK` of kernel socket and switch agree, but for listeners with
//! companions, which are always non-blocking in the kernel. Close-on-exec is the kernel's alone.
#![expect(unsafe_code, reason = "reads and writes ints of the program")]

use core::ffi::c_int;
use std::sync::Arc;

use switch::{Errno, Stage, SwitchSocket, sys};

use crate::calls::stream;
use crate::runtime::{self, Runtime, SERVICE, TABLE};

/// `fcntl`, or `None` for the real function.
pub(crate) fn fcntl(fd: c_int, command: c_int, argument: usize) -> Option<Result<c_int, Errno>> {
    if !matches!(
        command,
        libc::F_GETFL | libc::F_SETFL | libc::F_SETOWN | F_SETOWN_EX
    ) {
        return None;
    }
    let (runtime, socket) = known(fd)?;
    if matches!(command, libc::F_SETOWN | F_SETOWN_EX) {
        own(&socket);
        return None;
    }
    let is_listening = socket.stage() == Stage::SanListening;
    match command {
        libc::F_GETFL if is_listening => Some(sys::fcntl(fd, command, 0).map(|flags| {
            let rest = flags & !libc::O_NONBLOCK;
            rest | if socket.is_nonblocking() {
                libc::O_NONBLOCK
            } else {
                0
            }
        })),
        libc::F_SETFL => {
            let flags = sys::to_int(argument);
            Some(set_flags(runtime, fd, &socket, flags).map(|()| 0))
        }
        _ => None,
    }
}

fn set_flags(
    runtime: &Runtime,
    fd: c_int,
    socket: &Arc<SwitchSocket>,
    flags: c_int,
) -> Result<(), Errno> {
    sys::fcntl(fd, libc::F_SETFL, sys::int(flags))?;
    runtime
        .switch
        .set_nonblocking(socket, flags & libc::O_NONBLOCK != 0)?;
    hold_listener(fd, socket);
    Ok(())
}

/// The kernel keeps the owner of a socket; a connection that the SAN carries looks there before it signals.
fn own(socket: &SwitchSocket) {
    socket.set_owned();
    if socket.is_on_san() {
        SERVICE.wake();
    }
}

/// A listener with companions stays non-blocking in the kernel.
fn hold_listener(fd: c_int, socket: &SwitchSocket) {
    if socket.stage() == Stage::SanListening {
        sys::set_nonblocking(fd, true).ok();
    }
}

/// `ioctl`, or `None` for the real function.
///
/// # Safety
/// `argument` is as of the request.
pub(crate) unsafe fn ioctl(
    fd: c_int,
    request: libc::c_ulong,
    argument: *mut c_int,
) -> Option<Result<(), Errno>> {
    if matches!(request, FIOSETOWN | SIOCSPGRP) {
        let (_, socket) = known(fd)?;
        own(&socket);
        return None;
    }
    if !matches!(
        request,
        libc::FIONBIO | libc::FIONREAD | libc::TIOCOUTQ | SIOCOUTQNSD | SIOCATMARK
    ) || argument.is_null()
    {
        return None;
    }
    let (runtime, socket) = known(fd)?;
    if request == libc::FIONBIO {
        // SAFETY: an int by the caller's promise.
        let is_nonblocking = unsafe { argument.read_unaligned() } != 0;
        let result = runtime.switch.set_nonblocking(&socket, is_nonblocking);
        hold_listener(fd, &socket);
        return Some(result);
    }
    let queued = stream::queued(fd)?;
    let answer = match request {
        libc::FIONREAD => queued.readable,
        libc::TIOCOUTQ => queued.unsent,
        SIOCOUTQNSD => queued.unposted,
        _ => usize::from(queued.is_at_mark),
    };
    let answer = c_int::try_from(answer).unwrap_or(c_int::MAX);
    // SAFETY: an int by the caller's promise.
    unsafe { argument.write_unaligned(answer) };
    Some(Ok(()))
}

// As in `asm-generic/sockios.h`, `linux/sockios.h` and `asm-generic/fcntl.h`.
const FIOSETOWN: libc::c_ulong = 0x8901;
const SIOCSPGRP: libc::c_ulong = 0x8902;
const SIOCATMARK: libc::c_ulong = 0x8905;
const SIOCOUTQNSD: libc::c_ulong = 0x894B;
const F_SETOWN_EX: c_int = 15;

fn known(fd: c_int) -> Option<(&'static Runtime, Arc<SwitchSocket>)> {
    let runtime = runtime::get()?;
    Some((runtime, Arc::clone(TABLE.get(fd)?.socket()?)))
}
