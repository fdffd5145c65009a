//! The session: the protocol that makes a byte stream of a SAN connection, and one end of such a stream.
//!
//! Place: `switch` starts a [`Conn`] on a companion that its provider has connected; the program's calls end in it, the service
//! thread drives it while the program is elsewhere. Below it lies the SPI alone: messages, RDMA READ, shared memory.
//! Invariants: nothing here blocks, "not now" is `EAGAIN`; the state lies in shared memory, so that every process of a fork family
//! works on the same stream; a process may be killed at any instruction. After establishment there is no way back to TCP: what
//! fails is an error of the socket.
//! Hot: [`Conn::send`], [`Conn::recv`], [`Conn::progress`], [`Conn::readiness`]: no allocation, no system call, no log, and no lock
//! but the direction's token.
//! Source: the WDK pages on session protocol, completion, closing and failure (R-114 ff. of docs/wsd.md); wire format in docs/session.md. Leaves out: RDMA for large transfers,
//! suspension; a caller that waits.

pub(crate) mod alive;
pub mod announce;
mod buffers;
mod close;
mod conn;
mod credit;
mod flow;
mod hold;
pub mod message;
mod negotiate;
mod notice;
mod orphan;
mod patience;
mod readiness;
mod record;
mod recv;
pub mod ring;
mod send;
mod start;
#[cfg(test)]
mod tests;
mod urgent;

pub use alive::KeepAlive;
pub use buffers::MAX_CALL_BYTES;
pub use close::{CloseStep, How};
pub use conn::{Conn, Phase};
pub use flow::Flow;
pub use start::{ConnOptions, Role};
