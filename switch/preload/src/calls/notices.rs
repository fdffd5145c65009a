//! The error queue of a connection: completion notices of zero-copy sends.
//!
//! Place: the receiving exports come here with `MSG_ERRQUEUE`. Invariants: a receive of the queue never waits and never takes a byte of
//! the stream. Source: recv(2), MSG_ERRQUEUE; Linux Documentation/networking/msg_zerocopy.rst. Leaves out: errors of the network, which
//! the SAN does not have.
#![expect(unsafe_code, reason = "writes structures of the program")]

use core::ffi::c_int;

use libc::msghdr;
use switch::{Errno, Stage};

use crate::calls::messages;
use crate::runtime::TABLE;

/// `SO_EE_ORIGIN_ZEROCOPY` and `SO_EE_CODE_ZEROCOPY_COPIED` of linux/errqueue.h.
const ORIGIN_ZEROCOPY: u8 = 5;
const CODE_COPIED: u8 = 1;
/// Bytes of `struct sock_extended_err`.
const EXTENDED: usize = 16;

/// The next notice of the connection behind `fd`, with its domain; `None`: the kernel's queue.
fn take(fd: c_int) -> Option<Result<(c_int, u32, u32), Errno>> {
    let slot = TABLE.get(fd)?;
    let socket = slot.socket()?;
    if socket.stage() != Stage::SanConnected {
        return None;
    }
    let notice = socket.conn()?.take_notice();
    Some(
        notice
            .map(|(first, last)| (socket.domain(), first, last))
            .ok_or(libc::EAGAIN),
    )
}

/// Takes the next notice without telling what it says; `None` for the kernel.
pub(crate) fn drop_next(fd: c_int) -> Option<Result<usize, Errno>> {
    take(fd).map(|taken| taken.map(|_| 0))
}

/// Tells the next notice; `None` for the kernel.
///
/// # Safety
/// `message` is as of `recvmsg`.
pub(crate) unsafe fn next(fd: c_int, message: *mut msghdr) -> Option<Result<usize, Errno>> {
    let (domain, first, last) = match take(fd)? {
        Ok(notice) => notice,
        Err(errno) => return Some(Err(errno)),
    };
    // The error is 0; an empty address of the offender follows it.
    let mut data = [0_u8; EXTENDED + size_of::<libc::sockaddr_in6>()];
    data[4] = ORIGIN_ZEROCOPY;
    data[6] = CODE_COPIED;
    data[8..12].copy_from_slice(&first.to_ne_bytes());
    data[12..16].copy_from_slice(&last.to_ne_bytes());
    let (kind, offender) = if domain == libc::AF_INET6 {
        (
            (libc::SOL_IPV6, libc::IPV6_RECVERR),
            size_of::<libc::sockaddr_in6>(),
        )
    } else {
        (
            (libc::SOL_IP, libc::IP_RECVERR),
            size_of::<libc::sockaddr_in>(),
        )
    };
    // SAFETY: by the caller's promise.
    let mut header = unsafe { message.read_unaligned() };
    header.msg_flags = libc::MSG_ERRQUEUE;
    header.msg_namelen = 0;
    // SAFETY: the program's control data, of the length it says.
    unsafe { messages::put_control(&mut header, kind, &data[..EXTENDED + offender]) };
    // SAFETY: as above.
    unsafe { message.write_unaligned(header) };
    Some(Ok(0))
}
