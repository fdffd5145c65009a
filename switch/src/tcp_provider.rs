//! The TCP/IP service provider: kernel TCP sockets, as the switch asks for them.
//!
//! Place: the switch calls it beside the SAN providers, in the order of R-53; implemented over raw system calls in `tcp.rs` and by
//! the recording double of `mock.rs`.
//! Invariants: no call blocks, whatever the descriptor's mode is; addresses are logical, what the program and the companion see
//! (the implementation places them, and translates back); no call reaches a function that the preload library exports.

use core::net::SocketAddr;
use std::os::fd::RawFd;

use crate::outcome::Errno;

/// A connection taken from the kernel's accept queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TcpAccepted {
    /// The new descriptor.
    pub fd: RawFd,
    /// Address the peer dialled, logical.
    pub local: SocketAddr,
    /// Address of the peer, logical.
    pub peer: SocketAddr,
}

/// Kernel TCP.
///
/// # Errors
/// The errno of the system call.
#[expect(
    missing_docs,
    reason = "each function is the system call of its name on the kernel socket"
)]
pub trait TcpProvider: Send + Sync {
    /// `socket_type` may carry `SOCK_NONBLOCK` and `SOCK_CLOEXEC`.
    fn socket(&self, domain: i32, socket_type: i32, protocol: i32) -> Result<RawFd, Errno>;
    fn bind(&self, fd: RawFd, address: SocketAddr) -> Result<(), Errno>;
    fn listen(&self, fd: RawFd, backlog: i32) -> Result<(), Errno>;
    /// `EAGAIN` when the queue is empty, also on a blocking descriptor. `flags`: `SOCK_NONBLOCK`, `SOCK_CLOEXEC`.
    fn accept(&self, fd: RawFd, flags: i32) -> Result<TcpAccepted, Errno>;
    /// Starts a connect; `EINPROGRESS` when it goes on, also on a blocking descriptor.
    fn connect(&self, fd: RawFd, address: SocketAddr) -> Result<(), Errno>;
    /// Dissolves the association of a socket: `connect` with `AF_UNSPEC`.
    fn disconnect(&self, fd: RawFd) -> Result<(), Errno>;
    fn local_address(&self, fd: RawFd) -> Result<SocketAddr, Errno>;
    fn peer_address(&self, fd: RawFd) -> Result<SocketAddr, Errno>;
    fn set_option(&self, fd: RawFd, level: i32, name: i32, value: &[u8]) -> Result<(), Errno>;
    /// Returns the number of bytes written to `value`.
    fn get_option(
        &self,
        fd: RawFd,
        level: i32,
        name: i32,
        value: &mut [u8],
    ) -> Result<usize, Errno>;
    fn set_nonblocking(&self, fd: RawFd, nonblocking: bool) -> Result<(), Errno>;
    /// `how`: `SHUT_RD`, `SHUT_WR`, `SHUT_RDWR`.
    fn shutdown(&self, fd: RawFd, how: i32) -> Result<(), Errno>;
    fn close(&self, fd: RawFd) -> Result<(), Errno>;
}
