//! RDMA: one-sided operations on memory that the peer registered for them.
//!
//! Place: `wsp_rdma_write`, `wsp_rdma_read`; posted through `data`.
//! Invariants: the descriptor's range and rights are checked here for the caller's sake, and by the NIC for the peer's; a send after
//! a read waits for it.
//! Hot: everything here. Source.

use ring_proto::status::Opcode;

use super::Core;
use super::data::{Gathered, Request};
use crate::spi::{MEM_READ, MEM_WRITE, Overlapped, RdmaDescriptor, SpBuffer, SpSocket};
use crate::wsa::WsaError;

/// Which way the bytes go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Direction {
    /// From our buffers to the peer.
    Write,
    /// From the peer to our buffers.
    Read,
}

impl Core {
    /// Both RDMA functions.
    #[expect(
        clippy::too_many_arguments,
        reason = "the arguments of WSPRdmaWrite and WSPRdmaRead, and which of them it is"
    )]
    pub(crate) fn rdma(
        &self,
        direction: Direction,
        s: SpSocket,
        buffers: &[SpBuffer],
        remote: &RdmaDescriptor,
        remote_offset: u64,
        overlapped: &Overlapped,
        notify: bool,
    ) -> Result<(), WsaError> {
        let sock = self.resolve(s)?;
        sock.must_be_connected()?;
        let (opcode, local, far) = match direction {
            Direction::Write => (Opcode::RDMA_WRITE, MEM_READ, MEM_WRITE),
            Direction::Read => (Opcode::RDMA_READ, MEM_WRITE, MEM_READ),
        };
        let gathered = match Gathered::new(&sock, buffers, local) {
            // Too long is EINVAL for RDMA.
            Err(WsaError::MsgSize) => return Err(WsaError::Inval),
            other => other?,
        };
        if !gathered.is_registered() {
            return Err(WsaError::Fault);
        }
        let end = remote_offset.checked_add(gathered.total.into());
        let fits = end.is_some_and(|end| end <= remote.len);
        let remote_addr = remote
            .addr
            .checked_add(remote_offset)
            .ok_or(WsaError::Inval)?;
        if !fits || remote.access & far == 0 {
            return Err(WsaError::Inval);
        }
        let request = Request {
            opcode,
            remote_addr,
            rkey: remote.rkey,
        };
        self.post(&sock, request, &gathered, None, overlapped, notify)
    }
}
