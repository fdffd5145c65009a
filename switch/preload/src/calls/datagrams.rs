//! Names in datagrams: destinations are placed, sources translated back.
//!
//! Place: the message calls of `exports::data`. Invariants: only messages to and from the node's own loopback are touched.
//! Source: `switch::tcp`. Leaves out: the bytes.
#![expect(unsafe_code, reason = "reads and writes addresses of the program")]

use core::ffi::{c_int, c_uint};
use core::net::SocketAddr;

use libc::{mmsghdr, msghdr, sockaddr, socklen_t};
use ring_proto::telemetry::Reason;
use switch::Errno;
use switch::config::Ungoverned;
use switch::datagram::Course;
use switch::sys::Name;

use crate::calls::messages;
use crate::runtime::{self, Runtime, TABLE};

/// Where a datagram goes.
pub(crate) enum Destination {
    /// As the program says.
    AsNamed,
    /// To another address of the kernel.
    At(Name),
    /// Nowhere: the call fails.
    Refused(Errno),
}

/// Where a datagram to `name` goes.
///
/// # Safety
/// `name` is null or readable for `len` bytes.
pub(crate) unsafe fn destination(fd: c_int, name: *const sockaddr, len: socklen_t) -> Destination {
    if name.is_null() || !is_one(fd) {
        return Destination::AsNamed;
    }
    // SAFETY: by the caller's promise.
    let to = unsafe { Name::read(name.cast(), len) };
    let (Some(runtime), Some(to)) = (runtime::get(), to) else {
        return Destination::AsNamed;
    };
    if let Err(errno) = admit(runtime, fd, to) {
        return Destination::Refused(errno);
    }
    let kernel = runtime.tcp.send_destination(fd, to);
    if kernel == to {
        Destination::AsNamed
    } else {
        Destination::At(Name::from(kernel))
    }
}

/// Looks whether a datagram of `fd` to the logical name `to` goes past the links: that is told once a socket, or refused.
///
/// # Errors
/// `ENETUNREACH` where the cluster refuses what links cannot govern.
pub(crate) fn admit(runtime: &Runtime, fd: c_int, to: SocketAddr) -> Result<(), Errno> {
    let Course::PastLinks { is_news } = runtime.tcp.course(fd, to) else {
        return Ok(());
    };
    if is_news {
        runtime.process.introduce();
        runtime.process.telemetry.fell_back(Reason::Datagrams);
    }
    match runtime.ungoverned {
        Ungoverned::Refuse => Err(libc::ENETUNREACH),
        Ungoverned::Nothing | Ungoverned::Warn => Ok(()),
    }
}

/// Whether the source of a datagram on `fd` may need a translation.
#[inline]
pub(crate) fn has_redirect(fd: c_int) -> bool {
    TABLE
        .peek(fd)
        .is_some_and(|s| s.endpoint.has_redirect() && s.endpoint.shape().datagram)
}

/// Translates the source of a datagram where the program will read it.
///
/// # Safety
/// `name` is null or holds `len` bytes that the kernel wrote, and is writable.
unsafe fn translate(fd: c_int, name: *mut sockaddr, len: socklen_t) {
    let Some(runtime) = runtime::get() else {
        return;
    };
    // SAFETY: by the caller's promise.
    let Some(kernel) = (unsafe { Name::read(name.cast_const().cast(), len) }) else {
        return;
    };
    let source = runtime.tcp.receive_source(fd, kernel);
    if source != kernel {
        let mut room = len;
        // SAFETY: by the caller's promise; the family and so the length stay the same.
        unsafe { Name::write(source, name.cast(), &raw mut room) };
    }
}

/// Whether `fd` is a datagram socket.
#[inline]
pub(crate) fn is_one(fd: c_int) -> bool {
    TABLE.peek(fd).is_some_and(|s| s.endpoint.shape().datagram)
}

/// Destination named in a message of a datagram socket.
///
/// # Safety
/// `message` is as of `sendmsg`.
pub(crate) unsafe fn name_of(
    fd: c_int,
    message: *const msghdr,
) -> Option<(*const sockaddr, socklen_t)> {
    if message.is_null() || !is_one(fd) {
        return None;
    }
    // SAFETY: by the caller's promise.
    let message = unsafe { message.read_unaligned() };
    Some((message.msg_name.cast_const().cast(), message.msg_namelen))
}

/// A copy of a message with another destination, which must outlive it.
///
/// # Safety
/// `message` is as of `sendmsg`.
pub(crate) unsafe fn readdressed(message: *const msghdr, to: &Name) -> msghdr {
    // SAFETY: by the caller's promise.
    let mut message = unsafe { message.read_unaligned() };
    // The kernel reads it only.
    message.msg_name = to.const_pointer().cast_mut().cast();
    message.msg_namelen = to.len;
    message
}

/// Translates the source of a received message.
///
/// # Safety
/// `message` is as of a `recvmsg` that has succeeded.
pub(crate) unsafe fn translate_message(fd: c_int, message: *mut msghdr) {
    // SAFETY: by the caller's promise.
    let message = unsafe { message.read_unaligned() };
    // SAFETY: as above.
    unsafe { translate(fd, message.msg_name.cast(), message.msg_namelen) };
}

/// Translates the sources of received messages.
///
/// # Safety
/// `array` is as of a `recvmmsg` that has returned `count`.
pub(crate) unsafe fn translate_messages(fd: c_int, array: *mut mmsghdr, count: c_int) {
    for index in 0..c_uint::try_from(count).unwrap_or(0) {
        // SAFETY: by the caller's promise.
        let message = unsafe { messages::at(array, index) };
        // SAFETY: as above.
        unsafe { translate_message(fd, message) };
    }
}

/// Translates the source that a `recvfrom` told.
///
/// # Safety
/// `name` and `len` are as of a `recvfrom` that has succeeded.
pub(crate) unsafe fn translate_source(fd: c_int, name: *mut sockaddr, len: *const socklen_t) {
    if !len.is_null() {
        // SAFETY: by the caller's promise.
        let len = unsafe { len.read_unaligned() };
        // SAFETY: as above.
        unsafe { translate(fd, name, len) };
    }
}
