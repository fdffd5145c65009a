//! The switch's calls as the preload library makes them, and what it asks of its host in return.

use core::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::Arc;

use ring_proto::telemetry::Reason;

use crate::outcome::Errno;
use crate::socket::SwitchSocket;

/// What the switch asks of the process around it. Called without any lock of a socket's state that the callee could need.
pub trait Host: Send + Sync {
    /// Work came up that must go on while the program is in no socket call: start the service thread, or wake it.
    fn wake_service(&self);
    /// Stage or readiness of a socket changed outside a call on it: register it anew in epoll sets, wake its waiters.
    fn socket_changed(&self, socket: &Arc<SwitchSocket>);
    /// A connect or listen of a socket goes, or stays, on TCP. Called once per decision; the count of `stat`'s fall-backs.
    fn fell_back(&self, socket: &SwitchSocket, reason: Reason);
    /// A SAN connection is established; its connection object is readable from now on.
    fn established(&self, socket: &Arc<SwitchSocket>);
}

/// Where a connect stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConnectStep {
    /// Established over the SAN: the call returns 0.
    Established,
    /// Goes on: `EINPROGRESS` for a non-blocking socket; a blocking caller waits as the plan of the socket says and asks again.
    Pending,
    /// The connect is the kernel's now: the caller makes the ordinary kernel connect, blocking or not. If the switch had to start it
    /// in the background, that connect joins it.
    UseTcp(Reason),
    /// Failed: the call's errno.
    Failed(Errno),
}

/// A connection given to the program.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// The new descriptor.
    pub fd: RawFd,
    /// Its switch socket, in stage `SanConnected` or `Tcp`.
    pub socket: Arc<SwitchSocket>,
    /// Address the peer dialled.
    pub local: SocketAddr,
    /// Address of the peer.
    pub peer: SocketAddr,
}
