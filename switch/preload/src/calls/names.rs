//! Calls about sockets' names: create, bind, listen, accept, connect, and the options that change what a name means.
//!
//! Place: `exports::names` -> here -> `switch::tcp`. Invariants: a socket of another family, or one whose number is too high to be
//! tracked, stays an ordinary one. A descriptor that an earlier program image left is taken in when its name first matters.
#![expect(unsafe_code, reason = "reads and writes addresses of the program")]

use core::ffi::{c_int, c_uint};

use libc::{mmsghdr, msghdr, sockaddr, socklen_t};
use switch::Errno;
use switch::place::Destinations;
use switch::sys::{self, Name};
use switch::table::Kind;
use switch::tcp::{self, Endpoint, KernelTcp};

use crate::calls::traffic;
use crate::runtime::{self, Runtime, TABLE};

/// Takes in a socket that was just made.
pub(crate) fn made(fd: c_int, domain: c_int, socket_type: c_int) {
    let Some(runtime) = runtime::get() else {
        return;
    };
    let Some(mut shape) = tcp::shape_of(domain, socket_type) else {
        return;
    };
    if runtime.process.is_foreign() {
        return;
    }
    if !shape.datagram {
        runtime.process.introduce();
    }
    if shape.v6 && runtime.tcp.placement().is_some() {
        let v6only = sys::int_option(fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY);
        if v6only.is_ok_and(|v| v != 0) {
            // The system's default; placed addresses are v4-mapped, so the kernel must not know.
            shape.v6only = true;
            sys::set_option(
                fd,
                libc::IPPROTO_IPV6,
                libc::IPV6_V6ONLY,
                &0_i32.to_ne_bytes(),
            )
            .ok();
        }
    }
    // A number past the table is an ordinary socket's.
    drop(TABLE.insert(fd, &Endpoint::new(shape)));
}

/// The state, when `fd` is a socket whose name may differ from the kernel's.
pub(crate) fn placed(fd: c_int) -> Option<&'static Runtime> {
    let runtime = runtime::get()?;
    match TABLE.kind(fd) {
        Kind::Socket => Some(runtime),
        Kind::Internal => None,
        Kind::None => {
            runtime.tcp.placement()?;
            if runtime.process.is_foreign() {
                return None;
            }
            let endpoint = KernelTcp::inherited(fd)?;
            drop(TABLE.insert(fd, &endpoint)?);
            Some(runtime)
        }
    }
}

/// Binds, or `None` for the real function.
///
/// # Safety
/// `name` is null or readable for `len` bytes.
pub(crate) unsafe fn bind(
    fd: c_int,
    name: *const sockaddr,
    len: socklen_t,
) -> Option<Result<(), Errno>> {
    let runtime = placed(fd)?;
    // SAFETY: by the caller's promise.
    let name = unsafe { Name::read(name.cast(), len) }?;
    Some(runtime.tcp.bind_name(fd, name))
}

/// Listens, or `None` for the real function.
pub(crate) fn listen(fd: c_int, backlog: c_int) -> Option<Result<(), Errno>> {
    Some(placed(fd)?.tcp.listen_on(fd, backlog))
}

/// Takes in a connection that the kernel has accepted on `listener`, and tells the program its peer.
///
/// # Safety
/// `from` is what the kernel wrote; `name` and `len` are as of `accept`.
pub(crate) unsafe fn accepted(
    listener: c_int,
    fd: c_int,
    from: &Name,
    name: *mut sockaddr,
    len: *mut socklen_t,
) {
    let Some(kernel) = from.decode() else {
        // SAFETY: by the caller's promise.
        unsafe { from.copy_out(name.cast(), len) };
        return;
    };
    let Some(runtime) = runtime::get() else {
        // SAFETY: by the caller's promise.
        unsafe { Name::write(kernel, name.cast(), len) };
        return;
    };
    let (endpoint, peer) = runtime.tcp.accepted(fd, listener, kernel);
    if !runtime.process.is_foreign() {
        runtime.process.introduce();
        drop(TABLE.insert(fd, &endpoint));
        traffic::connected(runtime, fd, true);
    }
    // SAFETY: by the caller's promise.
    unsafe { Name::write(peer, name.cast(), len) };
}

/// What a connect does next.
pub(crate) enum Connect {
    /// The real function with the program's arguments.
    Real,
    /// Fails.
    Failed(Errno),
    /// These addresses in turn.
    Try(Destinations),
}

/// Prepares a connect.
///
/// # Safety
/// `name` is null or readable for `len` bytes.
pub(crate) unsafe fn connect(fd: c_int, name: *const sockaddr, len: socklen_t) -> Connect {
    let Some(runtime) = placed(fd) else {
        return Connect::Real;
    };
    // SAFETY: by the caller's promise.
    let Some(to) = (unsafe { Name::read(name.cast(), len) }) else {
        // SAFETY: by the caller's promise.
        if unsafe { is_unspecified(name, len) } {
            return match runtime.tcp.dissolve(fd) {
                Ok(()) => {
                    if let Some(slot) = TABLE.get(fd) {
                        traffic::ended(runtime, &slot);
                    }
                    Connect::Failed(0)
                }
                Err(errno) => Connect::Failed(errno),
            };
        }
        return Connect::Real;
    };
    match runtime.tcp.route(fd, to) {
        Ok(destinations) => Connect::Try(destinations),
        Err(errno) => Connect::Failed(errno),
    }
}

/// Whether an address has the family that dissolves an association.
///
/// # Safety
/// `name` is null or readable for `len` bytes.
unsafe fn is_unspecified(name: *const sockaddr, len: socklen_t) -> bool {
    if name.is_null() || len < 2 {
        return false;
    }
    // SAFETY: two bytes are readable by the caller's promise.
    let family = unsafe { name.cast::<u16>().read_unaligned() };
    i32::from(family) == libc::AF_UNSPEC
}

/// Whether the next address should be tried after a connect failed with `errno`.
pub(crate) fn is_next_wanted(fd: c_int, errno: Errno) -> bool {
    match errno {
        libc::ECONNREFUSED => true,
        libc::EINPROGRESS => KernelTcp::is_refused(fd),
        _ => false,
    }
}

/// Ends a connect: `errno` is 0 or the last attempt's.
pub(crate) fn connect_ended(fd: c_int, to: &Destinations, errno: Errno) {
    let Some(runtime) = runtime::get() else {
        return;
    };
    if errno == 0 || errno == libc::EINPROGRESS || errno == libc::EINTR {
        runtime.tcp.connected(fd, to);
        traffic::connected(runtime, fd, errno == 0);
    }
}

/// Own name, or `None` for the real function.
///
/// # Safety
/// `name` and `len` are as of `getsockname`.
pub(crate) unsafe fn local(
    fd: c_int,
    name: *mut sockaddr,
    len: *mut socklen_t,
) -> Option<Result<(), Errno>> {
    let local = placed(fd)?.tcp.local(fd);
    // SAFETY: by the caller's promise.
    Some(local.map(|local| unsafe { Name::write(local, name.cast(), len) }))
}

/// Name of the peer, or `None` for the real function.
///
/// # Safety
/// `name` and `len` are as of `getpeername`.
pub(crate) unsafe fn peer(
    fd: c_int,
    name: *mut sockaddr,
    len: *mut socklen_t,
) -> Option<Result<(), Errno>> {
    let peer = placed(fd)?.tcp.peer(fd);
    // SAFETY: by the caller's promise.
    Some(peer.map(|peer| unsafe { Name::write(peer, name.cast(), len) }))
}

const V6ONLY: (c_int, c_int) = (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY);

/// Stores an option that the library keeps, or `None` for the real function.
///
/// # Safety
/// `value` is null or readable for `len` bytes.
pub(crate) unsafe fn set_option(
    fd: c_int,
    option: (c_int, c_int),
    value: *const u8,
    len: socklen_t,
) -> Option<Result<(), Errno>> {
    if option != V6ONLY || value.is_null() || (len as usize) < size_of::<c_int>() {
        return None;
    }
    let runtime = placed(fd)?;
    // SAFETY: four bytes are readable by the caller's promise.
    let value = unsafe { value.cast::<c_int>().read_unaligned() };
    runtime.tcp.set_v6only(fd, value != 0)
}

/// Answers an option that the library keeps, or `None` for the real function.
///
/// # Safety
/// `value` and `len` are as of `getsockopt`.
pub(crate) unsafe fn option(
    fd: c_int,
    option: (c_int, c_int),
    value: *mut u8,
    len: *mut socklen_t,
) -> Option<Result<(), Errno>> {
    if option != V6ONLY || value.is_null() || len.is_null() {
        return None;
    }
    let answer = c_int::from(placed(fd)?.tcp.v6only(fd)?).to_ne_bytes();
    // SAFETY: by the caller's promise.
    let room = unsafe { len.read_unaligned() } as usize;
    let count = room.min(answer.len());
    // SAFETY: `count` is at most the room that the caller promises.
    unsafe { core::ptr::copy_nonoverlapping(answer.as_ptr(), value, count) };
    // At most four.
    let written = socklen_t::try_from(count).unwrap_or(0);
    // SAFETY: by the caller's promise.
    unsafe { len.write_unaligned(written) };
    Some(Ok(()))
}

/// Kernel address for a datagram to `name`; `None`: as it is.
///
/// # Safety
/// `name` is null or readable for `len` bytes.
pub(crate) unsafe fn datagram_to(fd: c_int, name: *const sockaddr, len: socklen_t) -> Option<Name> {
    if name.is_null() || !TABLE.peek(fd)?.endpoint.shape().datagram {
        return None;
    }
    let runtime = runtime::get()?;
    // SAFETY: by the caller's promise.
    let to = unsafe { Name::read(name.cast(), len) }?;
    let kernel = runtime.tcp.send_destination(fd, to);
    (kernel != to).then(|| Name::from(kernel))
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
pub(crate) unsafe fn datagram_from(fd: c_int, name: *mut sockaddr, len: socklen_t) {
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
pub(crate) fn is_datagram(fd: c_int) -> bool {
    TABLE.peek(fd).is_some_and(|s| s.endpoint.shape().datagram)
}

/// Destination named in a message of a datagram socket.
///
/// # Safety
/// `message` is as of `sendmsg`.
pub(crate) unsafe fn name_of_message(
    fd: c_int,
    message: *const msghdr,
) -> Option<(*const sockaddr, socklen_t)> {
    if message.is_null() || !is_datagram(fd) {
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

/// Header of one message of an array.
///
/// # Safety
/// `messages` has more than `index` elements.
pub(crate) unsafe fn message_at(messages: *mut mmsghdr, index: c_uint) -> *mut msghdr {
    // SAFETY: by the caller's promise.
    let message = unsafe { messages.add(index as usize) };
    // SAFETY: as above.
    unsafe { &raw mut (*message).msg_hdr }
}

/// Notes the bytes sent of one message of an array.
///
/// # Safety
/// `messages` has more than `index` elements.
pub(crate) unsafe fn set_message_len(messages: *mut mmsghdr, index: c_uint, len: isize) {
    // SAFETY: by the caller's promise.
    let message = unsafe { messages.add(index as usize) };
    // A datagram has less than 64 KiB.
    let len = c_uint::try_from(len).unwrap_or(0);
    // SAFETY: as above.
    unsafe { (*message).msg_len = len };
}

/// Bytes of the first `count` messages of an array, as the kernel noted them.
///
/// # Safety
/// `messages` has `count` elements.
pub(crate) unsafe fn bytes_of(messages: *mut mmsghdr, count: c_int) -> isize {
    let mut bytes = 0_isize;
    for index in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: by the caller's promise.
        let message = unsafe { messages.add(index) };
        // SAFETY: as above.
        let len = unsafe { (*message).msg_len };
        bytes = bytes.saturating_add(isize::try_from(len).unwrap_or(0));
    }
    bytes
}

/// Translates the source of a received message.
///
/// # Safety
/// `message` is as of a `recvmsg` that has succeeded.
pub(crate) unsafe fn message_from(fd: c_int, message: *mut msghdr) {
    // SAFETY: by the caller's promise.
    let message = unsafe { message.read_unaligned() };
    // SAFETY: as above.
    unsafe { datagram_from(fd, message.msg_name.cast(), message.msg_namelen) };
}

/// Translates the sources of received messages.
///
/// # Safety
/// `messages` is as of a `recvmmsg` that has returned `count`.
pub(crate) unsafe fn messages_from(fd: c_int, messages: *mut mmsghdr, count: c_int) {
    for index in 0..c_uint::try_from(count).unwrap_or(0) {
        // SAFETY: by the caller's promise.
        let message = unsafe { message_at(messages, index) };
        // SAFETY: as above.
        unsafe { message_from(fd, message) };
    }
}
