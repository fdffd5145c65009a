//! The life of descriptors: close, duplicate, and ranges of them.
//!
//! Place: `exports::descriptors` -> here -> the table. Invariants: an entry goes before the kernel closes its number and comes after
//! the kernel made it; in a `vfork` child the table is not changed, because it is the parent's; the library's own descriptors
//! are neither closed, nor copied, nor written over. The companion is closed before the kernel's socket.

use core::ffi::{c_int, c_uint};

use driver::sys::INTERNAL_LIMIT;
use ring_proto::sync::Ordering;
use switch::outcome::now_ns;
use switch::session::{CloseStep, Conn};
use switch::table::{Kind, Removed, SlotRef};
use switch::{Errno, Stage, sys};

use crate::calls::{pump, readiness, traffic};
use crate::runtime::{self, Runtime, SETS, TABLE};

fn own_process() -> Option<&'static Runtime> {
    runtime::get().filter(|r| !r.process.is_foreign())
}

/// Ends what a removed entry named.
fn finish(runtime: &'static Runtime, fd: c_int, removed: Removed<'_>) {
    match removed {
        Removed::None => {}
        Removed::Shared(slot) => {
            if let Some(socket) = slot.socket().filter(|s| s.fd() == fd)
                && let Some(other) = TABLE.descriptors_of(&slot).next()
            {
                socket.set_fd(other);
            }
        }
        Removed::Last(slot) => last_closed(runtime, &slot),
    }
}

fn last_closed(runtime: &'static Runtime, slot: &SlotRef<'_>) {
    if let Some(set) = slot.set() {
        set.close();
        return;
    }
    traffic::ended(runtime, slot);
    let Some(socket) = slot.socket() else {
        return;
    };
    // Relaxed: a hint that only grows while the socket lives.
    if slot.sets.load(Ordering::Relaxed) > 0 {
        SETS.forget(socket);
    }
    let linger = lingers(socket);
    let step = runtime.switch.close(socket);
    if step == CloseStep::Draining
        && let Some(seconds) = linger
        && let Some(conn) = socket.conn()
    {
        drain(conn, seconds);
    }
}

/// Seconds that close waits for (SO_LINGER), on a blocking socket.
fn lingers(socket: &switch::SwitchSocket) -> Option<u64> {
    if socket.stage() != Stage::SanConnected || socket.is_nonblocking() {
        return None;
    }
    let mut value = [0; 8];
    sys::option(socket.fd(), libc::SOL_SOCKET, libc::SO_LINGER, &mut value).ok()?;
    let [a, b, c, d, e, f, g, h] = value;
    let is_on = i32::from_ne_bytes([a, b, c, d]) != 0;
    let seconds = u64::try_from(i32::from_ne_bytes([e, f, g, h])).ok()?;
    (is_on && seconds > 0).then_some(seconds)
}

/// Waits until everything has arrived, or the time is up; the service thread goes on either way. No cancellation point: the kernel
/// closes the number in any case.
fn drain(conn: &Conn, seconds: u64) {
    let end = now_ns().saturating_add(seconds.saturating_mul(1_000_000_000));
    while !conn.is_drained() && now_ns() < end {
        sys::poll(&mut [], Some(1_000_000)).ok();
        conn.progress();
    }
}

/// Before the kernel closes `fd`. `Err`: it must not.
pub(crate) fn closing(fd: c_int) -> Result<(), Errno> {
    if TABLE.kind(fd) == Kind::None {
        return if runtime::is_hidden(fd) {
            Err(libc::EBADF)
        } else {
            Ok(())
        };
    }
    if let Some(runtime) = own_process() {
        finish(runtime, fd, TABLE.remove(fd));
    }
    Ok(())
}

/// After the kernel duplicated `old` to `new`.
pub(crate) fn duplicated(old: c_int, new: c_int) {
    let is_nobodys = TABLE.kind(old) == Kind::None && TABLE.kind(new) == Kind::None;
    if old == new || (is_nobodys && !readiness::meet(old)) {
        return;
    }
    // In a `vfork` child the table is the parent's. What follows there is exec, which knows sockets without it.
    if let Some(runtime) = own_process() {
        finish(runtime, new, TABLE.duplicate(old, new));
        if new <= libc::STDERR_FILENO {
            // The C library's own streams are past our exports. What cannot be pumped can still be read and written by calls.
            pump::replace(runtime, new).ok();
        }
    }
}

/// Before `fd` becomes a stream of the C library, whose reads and writes are past our exports. `Err`: it cannot.
pub(crate) fn streaming(fd: c_int) -> Result<(), Errno> {
    let is_carried = TABLE
        .get(fd)
        .is_some_and(|slot| pump::connected(&slot).is_some());
    if !is_carried {
        return Ok(());
    }
    let runtime = own_process().ok_or(libc::EOPNOTSUPP)?;
    pump::replace(runtime, fd)
}

/// Ends what the library knows of `fd`, whose number stays open.
pub(crate) fn forget(runtime: &'static Runtime, fd: c_int) {
    finish(runtime, fd, TABLE.remove(fd));
}

/// Before a duplicate of `old` is put over `new`. `Err`: it must not.
pub(crate) fn duplicating(old: c_int, new: c_int) -> Result<(), Errno> {
    if runtime::is_hidden(old) {
        return Err(libc::EBADF);
    }
    // As the kernel answers when a number is being opened meanwhile.
    if runtime::is_hidden(new) {
        return Err(libc::EBUSY);
    }
    Ok(())
}

/// `close_range`, around the library's own descriptors.
pub(crate) fn close_range(first: c_uint, last: c_uint, flags: c_int) -> Result<(), Errno> {
    if first > last {
        return Err(libc::EINVAL);
    }
    let is_closing = flags & CLOSE_RANGE_CLOEXEC == 0;
    if is_closing && let Some(runtime) = own_process() {
        for fd in TABLE.tracked_in(first, last) {
            finish(runtime, fd, TABLE.remove(fd));
        }
    }
    let mut from = first;
    for internal in internal_in(first, last) {
        if internal > from {
            sys::close_range(from, internal - 1, flags)?;
        }
        from = internal + 1;
    }
    if from <= last {
        sys::close_range(from, last, flags)?;
    }
    Ok(())
}

/// The library's descriptors with numbers in `first..=last`, in order.
fn internal_in(first: c_uint, last: c_uint) -> impl Iterator<Item = c_uint> {
    let limit = c_uint::try_from(INTERNAL_LIMIT - 1).unwrap_or(0);
    (first..=last.min(limit)).filter(|&fd| c_int::try_from(fd).is_ok_and(runtime::is_hidden))
}

const CLOSE_RANGE_CLOEXEC: c_int = 4;
