//! Calls on sockets, and packets that carry a descriptor.

use core::mem::size_of;
use core::net::SocketAddr;
use std::os::fd::RawFd;

use super::{Name, SysResult, close, int, syscall, to_int};

/// `socket`.
///
/// # Errors
/// The kernel's.
pub fn socket(domain: i32, socket_type: i32, protocol: i32) -> SysResult<RawFd> {
    let args = [int(domain), int(socket_type), int(protocol), 0, 0, 0];
    // SAFETY: takes no pointer.
    unsafe { syscall(libc::SYS_socket, args) }.map(to_int)
}

/// `socketpair`.
///
/// # Errors
/// The kernel's.
pub fn socketpair(domain: i32, socket_type: i32) -> SysResult<[RawFd; 2]> {
    let mut pair = [-1; 2];
    let args = [
        int(domain),
        int(socket_type),
        0,
        (&raw mut pair).expose_provenance(),
        0,
        0,
    ];
    // SAFETY: the fourth argument is room for two ints.
    unsafe { syscall(libc::SYS_socketpair, args) }?;
    Ok(pair)
}

/// `bind`.
///
/// # Errors
/// The kernel's.
pub fn bind(fd: RawFd, name: SocketAddr) -> SysResult<()> {
    let name = Name::from(name);
    let args = [int(fd), name.address(), name.len as usize, 0, 0, 0];
    // SAFETY: address and length describe `name`, which lives until the end of the function.
    unsafe { syscall(libc::SYS_bind, args) }.map(drop)
}

/// `connect`. Blocks unless the descriptor is non-blocking.
///
/// # Errors
/// The kernel's.
pub fn connect(fd: RawFd, name: SocketAddr) -> SysResult<()> {
    let name = Name::from(name);
    let args = [int(fd), name.address(), name.len as usize, 0, 0, 0];
    // SAFETY: address and length describe `name`, which lives until the end of the function.
    unsafe { syscall(libc::SYS_connect, args) }.map(drop)
}

/// `connect` with `AF_UNSPEC`: dissolves the association.
///
/// # Errors
/// The kernel's.
pub fn disconnect(fd: RawFd) -> SysResult<()> {
    let name = [0_u64; 2];
    let args = [int(fd), (&raw const name).expose_provenance(), 16, 0, 0, 0];
    // SAFETY: `name` is 16 zero bytes, an address of family AF_UNSPEC.
    unsafe { syscall(libc::SYS_connect, args) }.map(drop)
}

/// `listen`.
///
/// # Errors
/// The kernel's.
pub fn listen(fd: RawFd, backlog: i32) -> SysResult<()> {
    // SAFETY: takes no pointer.
    unsafe { syscall(libc::SYS_listen, [int(fd), int(backlog), 0, 0, 0, 0]) }.map(drop)
}

/// `shutdown`.
///
/// # Errors
/// The kernel's.
pub fn shutdown(fd: RawFd, how: i32) -> SysResult<()> {
    // SAFETY: takes no pointer.
    unsafe { syscall(libc::SYS_shutdown, [int(fd), int(how), 0, 0, 0, 0]) }.map(drop)
}

/// `accept4`. Blocks unless the descriptor is non-blocking.
///
/// # Errors
/// The kernel's; `EAFNOSUPPORT` (and the connection is closed) for a peer that is not of an IP family.
pub fn accept(fd: RawFd, flags: i32) -> SysResult<(RawFd, SocketAddr)> {
    let mut name = Name::room();
    let args = [
        int(fd),
        name.address(),
        (&raw mut name.len).expose_provenance(),
        int(flags),
        0,
        0,
    ];
    // SAFETY: `name` is room of the length that the third argument points at.
    let new = to_int(unsafe { syscall(libc::SYS_accept4, args) }?);
    if let Some(peer) = name.decode() {
        Ok((new, peer))
    } else {
        // The descriptor was never given to anybody; nobody can be told of an error at close.
        close(new).ok();
        Err(libc::EAFNOSUPPORT)
    }
}

/// `getsockname` of an IP socket.
///
/// # Errors
/// The kernel's; `EAFNOSUPPORT` for other families.
pub fn local_name(fd: RawFd) -> SysResult<SocketAddr> {
    name_by(libc::SYS_getsockname, fd)
}

/// `getpeername` of an IP socket.
///
/// # Errors
/// The kernel's; `EAFNOSUPPORT` for other families.
pub fn peer_name(fd: RawFd) -> SysResult<SocketAddr> {
    name_by(libc::SYS_getpeername, fd)
}

fn name_by(number: i64, fd: RawFd) -> SysResult<SocketAddr> {
    let mut name = Name::room();
    let args = [
        int(fd),
        name.address(),
        (&raw mut name.len).expose_provenance(),
        0,
        0,
        0,
    ];
    // SAFETY: `name` is room of the length that the third argument points at.
    unsafe { syscall(number, args) }?;
    name.decode().ok_or(libc::EAFNOSUPPORT)
}

/// `setsockopt`.
///
/// # Errors
/// The kernel's.
pub fn set_option(fd: RawFd, level: i32, name: i32, value: &[u8]) -> SysResult<()> {
    let args = [
        int(fd),
        int(level),
        int(name),
        value.as_ptr().expose_provenance(),
        value.len(),
        0,
    ];
    // SAFETY: pointer and length describe `value`.
    unsafe { syscall(libc::SYS_setsockopt, args) }.map(drop)
}

/// `getsockopt`; returns the bytes written.
///
/// # Errors
/// The kernel's.
pub fn option(fd: RawFd, level: i32, name: i32, value: &mut [u8]) -> SysResult<usize> {
    let mut len = u32::try_from(value.len()).unwrap_or(u32::MAX);
    let args = [
        int(fd),
        int(level),
        int(name),
        value.as_mut_ptr().expose_provenance(),
        (&raw mut len).expose_provenance(),
        0,
    ];
    // SAFETY: pointer and length describe `value`.
    unsafe { syscall(libc::SYS_getsockopt, args) }?;
    Ok((len as usize).min(value.len()))
}

/// `getsockopt` of an int.
///
/// # Errors
/// The kernel's.
pub fn int_option(fd: RawFd, level: i32, name: i32) -> SysResult<i32> {
    let mut value = [0; 4];
    option(fd, level, name, &mut value)?;
    Ok(i32::from_ne_bytes(value))
}

/// The kernel's name of the open socket behind a descriptor: one for all its descriptors in all processes, and never used again.
///
/// # Errors
/// `EBADF`, `ENOTSOCK`.
pub fn cookie(fd: RawFd) -> SysResult<u64> {
    let mut value = [0; 8];
    option(fd, libc::SOL_SOCKET, libc::SO_COOKIE, &mut value)?;
    Ok(u64::from_ne_bytes(value))
}

/// Sends one packet with at most one descriptor, without `SIGPIPE` and without waiting.
///
/// # Errors
/// The kernel's.
pub fn send_with_fd(socket: RawFd, bytes: &[u8], fd: Option<RawFd>) -> SysResult<()> {
    let mut part = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let mut rights = Rights {
        len: Rights::LEN,
        level: libc::SOL_SOCKET,
        kind: libc::SCM_RIGHTS,
        fd: fd.unwrap_or(-1),
        pad: 0,
    };
    // SAFETY: all bytes zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    if fd.is_some() {
        message.msg_control = (&raw mut rights).cast();
        message.msg_controllen = size_of::<Rights>();
    }
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    let args = [
        int(socket),
        (&raw const message).expose_provenance(),
        int(flags),
        0,
        0,
        0,
    ];
    // SAFETY: the message describes `bytes` and `rights`, which live until the end of the function.
    unsafe { syscall(libc::SYS_sendmsg, args) }.map(drop)
}

/// Receives one packet with at most one descriptor (close-on-exec), without waiting. An empty packet is the peer's end.
///
/// # Errors
/// The kernel's.
pub fn receive_with_fd(socket: RawFd, bytes: &mut [u8]) -> SysResult<(usize, Option<RawFd>)> {
    let mut part = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    let mut rights = Rights::default();
    // SAFETY: all bytes zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut rights).cast();
    message.msg_controllen = size_of::<Rights>();
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    let args = [
        int(socket),
        (&raw mut message).expose_provenance(),
        int(flags),
        0,
        0,
        0,
    ];
    // SAFETY: the message describes `bytes` and `rights`, which live until the end of the function.
    let len = unsafe { syscall(libc::SYS_recvmsg, args) }?;
    let is_rights = message.msg_controllen >= Rights::LEN
        && (rights.level, rights.kind) == (libc::SOL_SOCKET, libc::SCM_RIGHTS);
    Ok((len, is_rights.then_some(rights.fd)))
}

/// A control message with one descriptor: header, the number, padding.
#[repr(C)]
#[derive(Default)]
struct Rights {
    len: usize,
    level: i32,
    kind: i32,
    fd: i32,
    pad: i32,
}

impl Rights {
    /// Header and one descriptor, without the padding.
    const LEN: usize = 20;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{close, getpid};

    #[test]
    fn kernel_calls_answer_and_refuse() {
        assert_eq!(getpid().cast_unsigned(), std::process::id());
        assert_eq!(close(-1), Err(libc::EBADF));
        let listener = socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0).unwrap();
        bind(listener, "127.0.0.1:0".parse().unwrap()).unwrap();
        listen(listener, 5).unwrap();
        assert_eq!(accept(listener, 0), Err(libc::EAGAIN));
        let address = local_name(listener).unwrap();
        let client = socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
        connect(client, address).unwrap();
        let (server, peer) = accept(listener, 0).unwrap();
        assert_eq!(peer, local_name(client).unwrap());
        assert_eq!(peer_name(client).unwrap(), address);
        for fd in [listener, client, server] {
            close(fd).unwrap();
        }
    }
}
