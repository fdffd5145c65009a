//! Message headers and file pieces of calls that move bytes.
//!
//! Place: `exports::data` and `exports::files`. Invariants: pointers are the program's and used only for the call they came with.
//! Source: sendmsg(2), recvmsg(2), sendfile(2).
#![expect(unsafe_code, reason = "reads and writes structures of the program")]

use core::ffi::{c_int, c_uint};

use libc::{iovec, mmsghdr, msghdr, off_t, socklen_t};
use switch::{Errno, sys};

use crate::calls::{pump, stream};
use crate::runtime;

/// The parts of a message.
///
/// # Safety
/// `message` is as of `sendmsg` or `recvmsg`.
pub(crate) unsafe fn parts(message: *const msghdr) -> (*const iovec, usize) {
    // SAFETY: by the caller's promise.
    let message = unsafe { message.read_unaligned() };
    (message.msg_iov.cast_const(), message.msg_iovlen)
}

/// After a receive of so many bytes on a connection: it has no name, and no control data but what `TCP_INQ` asks for.
///
/// # Safety
/// `message` is as of `recvmsg`.
pub(crate) unsafe fn received(fd: c_int, message: *mut msghdr, flags: c_int, count: usize) {
    // SAFETY: by the caller's promise.
    let mut header = unsafe { message.read_unaligned() };
    let left = (header.msg_controllen > 0)
        .then(|| stream::left_if_asked(fd))
        .flatten();
    header.msg_namelen = 0;
    header.msg_flags = match (flags & libc::MSG_OOB != 0, count) {
        (false, _) => 0,
        (true, 0) => libc::MSG_OOB | libc::MSG_TRUNC,
        (true, _) => libc::MSG_OOB,
    };
    match left {
        // SAFETY: the program's control data, of the length it says.
        Some(left) => unsafe {
            put_control(
                &mut header,
                (libc::SOL_TCP, TCP_CM_INQ),
                &left.to_ne_bytes(),
            );
        },
        None => header.msg_controllen = 0,
    }
    // SAFETY: as above.
    unsafe { message.write_unaligned(header) };
}

/// `TCP_CM_INQ` of linux/tcp.h.
const TCP_CM_INQ: c_int = 36;

/// Writes one piece of control data, cut at the room as the kernel cuts it.
///
/// # Safety
/// `header` has the program's control data, writable for the length it says.
pub(crate) unsafe fn put_control(header: &mut msghdr, (level, kind): (c_int, c_int), data: &[u8]) {
    let len = u32::try_from(data.len()).unwrap_or(0);
    // SAFETY: takes no pointer.
    let whole = unsafe { libc::CMSG_LEN(len) } as usize;
    // SAFETY: as above.
    let space = unsafe { libc::CMSG_SPACE(len) } as usize;
    let control = header.msg_control.cast::<libc::cmsghdr>();
    if control.is_null() || header.msg_controllen < size_of::<libc::cmsghdr>() {
        header.msg_flags |= libc::MSG_CTRUNC;
        header.msg_controllen = 0;
        return;
    }
    if header.msg_controllen < whole {
        header.msg_flags |= libc::MSG_CTRUNC;
    }
    let written = whole.min(header.msg_controllen);
    // SAFETY: zeros are a header.
    let mut head: libc::cmsghdr = unsafe { core::mem::zeroed() };
    (head.cmsg_len, head.cmsg_level, head.cmsg_type) = (written, level, kind);
    // SAFETY: there is room for a header, checked above.
    unsafe { control.write_unaligned(head) };
    let room = written - size_of::<libc::cmsghdr>();
    let behind = control.wrapping_add(1).cast::<u8>();
    // SAFETY: behind the header, inside the room.
    unsafe { core::ptr::copy_nonoverlapping(data.as_ptr(), behind, room.min(data.len())) };
    header.msg_controllen = space.min(header.msg_controllen);
}

/// Whether parts are no bytes at all.
///
/// # Safety
/// `parts` has `count` elements.
pub(crate) unsafe fn is_nothing(parts: *const iovec, count: usize) -> bool {
    (0..count.min(1024)).all(|index| {
        // SAFETY: by the caller's promise.
        let part = unsafe { parts.add(index) };
        // SAFETY: as above.
        unsafe { part.read_unaligned() }.iov_len == 0
    })
}

/// When a call with this time limit ends, on CLOCK_MONOTONIC.
///
/// # Errors
/// `EINVAL`: no time.
///
/// # Safety
/// `limit` is null or valid.
pub(crate) unsafe fn end_of(limit: *const libc::timespec) -> Result<u64, Errno> {
    if limit.is_null() {
        return Ok(u64::MAX);
    }
    // SAFETY: by the caller's promise.
    let limit = unsafe { limit.read_unaligned() };
    match (u64::try_from(limit.tv_sec), u64::try_from(limit.tv_nsec)) {
        (Ok(seconds), Ok(ns @ 0..1_000_000_000)) => Ok(switch::outcome::now_ns()
            .saturating_add(seconds.saturating_mul(1_000_000_000))
            .saturating_add(ns)),
        _ => Err(libc::EINVAL),
    }
}

/// A receive on a connection tells no name.
///
/// # Safety
/// `len` is null or valid.
pub(crate) unsafe fn no_name(len: *mut socklen_t) {
    if !len.is_null() {
        // SAFETY: by the caller's promise.
        unsafe { len.write_unaligned(0) };
    }
}

/// A message on its way to the kernel whose descriptors are not all the program's own.
#[derive(Debug)]
pub(crate) struct Passing {
    header: msghdr,
    /// Control data, in words so that it is aligned.
    _control: Vec<u64>,
    /// Kernel sockets that go in place of SAN sockets.
    stand_ins: Vec<c_int>,
}

/// Prepares a message that may carry descriptors: a connection of the SAN would arrive as a socket without a connection, so that a
/// stand-in goes in its place, and a listener goes as the kernel's alone. Null for a message that goes as it is; else [`passed`] takes
/// it back. A raw pointer, because a thread may be cancelled while the kernel sends.
///
/// # Safety
/// `message` is as of `sendmsg`.
pub(crate) unsafe fn passing(message: *const msghdr) -> Result<*mut Passing, Errno> {
    let none = core::ptr::null_mut();
    // SAFETY: by the caller's promise.
    if message.is_null() || !unsafe { has_sockets(message) } {
        return Ok(none);
    }
    let Some(runtime) = runtime::get() else {
        return Ok(none);
    };
    if runtime.process.is_foreign() {
        return Err(libc::EOPNOTSUPP);
    }
    // SAFETY: by the caller's promise.
    let mut header = unsafe { message.read_unaligned() };
    let mut control = vec![0_u64; header.msg_controllen.div_ceil(size_of::<u64>())];
    // SAFETY: room for as many bytes, and that many by the caller's promise.
    unsafe {
        core::ptr::copy_nonoverlapping(
            header.msg_control.cast::<u8>(),
            control.as_mut_ptr().cast::<u8>(),
            header.msg_controllen,
        );
    }
    header.msg_control = control.as_mut_ptr().cast();
    let mut passing = Passing {
        header,
        _control: control,
        stand_ins: Vec::new(),
    };
    let mut outcome = Ok(());
    let header = &raw const passing.header;
    let stand_ins = &mut passing.stand_ins;
    let replace = |fd| match pump::to_pass(runtime, fd) {
        Ok(stand_in) => {
            stand_ins.extend(stand_in);
            stand_in
        }
        Err(errno) => {
            outcome = Err(errno);
            None
        }
    };
    // SAFETY: a header of our own with a copy of the program's control data.
    unsafe { each_descriptor(header, replace) };
    let passing = Box::into_raw(Box::new(passing));
    if let Err(errno) = outcome {
        // SAFETY: made a line above.
        unsafe { passed(passing) };
        return Err(errno);
    }
    Ok(passing)
}

/// The header to send.
///
/// # Safety
/// `passing` came from [`passing`] and was not given back.
pub(crate) unsafe fn header_of(passing: *const Passing) -> *const msghdr {
    // SAFETY: by the caller's promise.
    unsafe { &raw const (*passing).header }
}

/// After the kernel took the message, or refused it.
///
/// # Safety
/// `passing` came from [`passing`], and is not used any more.
pub(crate) unsafe fn passed(passing: *mut Passing) {
    if passing.is_null() {
        return;
    }
    // SAFETY: by the caller's promise.
    let passing = unsafe { Box::from_raw(passing) };
    for fd in passing.stand_ins {
        // The message has a copy of its own.
        sys::close(fd).ok();
    }
}

/// Whether a message carries a descriptor of a socket that is the SAN's.
///
/// # Safety
/// `message` is as of `sendmsg`.
pub(crate) unsafe fn has_sockets(message: *const msghdr) -> bool {
    let mut found = false;
    let look = |fd| {
        found |= stream::concerns(fd);
        None
    };
    // SAFETY: by the caller's promise.
    unsafe { each_descriptor(message, look) };
    found
}

/// Whether one of an array of messages does.
///
/// # Safety
/// `messages` has `count` elements as of `sendmmsg`.
pub(crate) unsafe fn have_sockets(messages: *mut mmsghdr, count: c_uint) -> bool {
    if messages.is_null() {
        return false;
    }
    (0..count).any(|n| {
        // SAFETY: by the caller's promise.
        let message = unsafe { at(messages, n) };
        // SAFETY: as above.
        unsafe { has_sockets(message) }
    })
}

/// Visits the descriptors that a message carries, and writes what comes back in their places.
///
/// # Safety
/// `message` is as of `sendmsg`; its control data may be written if `visit` ever answers.
unsafe fn each_descriptor(message: *const msghdr, mut visit: impl FnMut(c_int) -> Option<c_int>) {
    // SAFETY: by the caller's promise; the macros below stay inside its control data.
    let mut control = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !control.is_null() {
        // SAFETY: a header inside the control data.
        let header = unsafe { control.read_unaligned() };
        if (header.cmsg_level, header.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: as above.
            let fds = unsafe { libc::CMSG_DATA(control) };
            // SAFETY: takes no pointer.
            let head = unsafe { libc::CMSG_LEN(0) } as usize;
            let count = header.cmsg_len.saturating_sub(head) / size_of::<c_int>();
            for n in 0..count {
                let at = fds.wrapping_add(n * size_of::<c_int>()).cast::<c_int>();
                // SAFETY: inside the data of this header.
                if let Some(other) = visit(unsafe { at.read_unaligned() }) {
                    // SAFETY: as above, and by the caller's promise.
                    unsafe { at.write_unaligned(other) };
                }
            }
        }
        // SAFETY: as above.
        control = unsafe { libc::CMSG_NXTHDR(message, control) };
    }
}

/// Header of one message of an array.
///
/// # Safety
/// `messages` has more than `index` elements.
pub(crate) unsafe fn at(messages: *mut mmsghdr, index: c_uint) -> *mut msghdr {
    // SAFETY: by the caller's promise.
    let message = unsafe { messages.add(index as usize) };
    // SAFETY: as above.
    unsafe { &raw mut (*message).msg_hdr }
}

/// Notes the bytes moved of one message of an array.
///
/// # Safety
/// `messages` has more than `index` elements.
pub(crate) unsafe fn set_len(messages: *mut mmsghdr, index: c_uint, len: isize) {
    // SAFETY: by the caller's promise.
    let message = unsafe { messages.add(index as usize) };
    let len = c_uint::try_from(len).unwrap_or(c_uint::MAX);
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

/// Reads a piece of a file, at `*offset`, or where the file stands when that is null; neither moves.
///
/// # Safety
/// `offset` is null or valid.
pub(crate) unsafe fn read_at(
    file: c_int,
    offset: *const off_t,
    room: &mut [u8],
) -> Result<usize, Errno> {
    let at = if offset.is_null() {
        sys::seek(file, 0, libc::SEEK_CUR)?
    } else {
        // SAFETY: by the caller's promise.
        unsafe { offset.read_unaligned() }
    };
    sys::read_at(file, room, at).map_err(|errno| match errno {
        // What cannot be read at an offset cannot be sent either.
        libc::ESPIPE => libc::EINVAL,
        errno => errno,
    })
}

/// Moves on by what was sent.
///
/// # Safety
/// `offset` is null or valid.
pub(crate) unsafe fn advance(file: c_int, offset: *mut off_t, count: usize) {
    let count = off_t::try_from(count).unwrap_or(0);
    if offset.is_null() {
        // The file could be read at its place a moment ago.
        sys::seek(file, count, libc::SEEK_CUR).ok();
        return;
    }
    // SAFETY: by the caller's promise.
    let at = unsafe { offset.read_unaligned() };
    // SAFETY: as above.
    unsafe { offset.write_unaligned(at.saturating_add(count)) };
}
