//! Socket options of the provider.
//!
//! Place: `wsp_get_sock_opt`, `wsp_set_sock_opt`, `supports_option`.
//! Invariants: options can be read in any state; what the provider does not know is `NoProtoOpt`, and the switch never tries it on a
//! companion. SO_DEBUG is the one option that a program's socket has too.
//! Source.

use ring_proto::regs::MESSAGE_LIMIT;
use ring_proto::sync::Ordering;

use super::Core;
use crate::spi::{SpSocket, options};
use crate::wsa::WsaError;

/// Transfers above this size move faster by RDMA than by messages of the session protocol.
const RDMA_THRESHOLD: u32 = 64 * 1024;

/// Whether the switch may replay an option.
pub(crate) fn is_supported(level: i32, name: u32) -> bool {
    level == libc::SOL_SOCKET && name == options::SO_DEBUG
}

impl Core {
    /// `wsp_get_sock_opt`.
    pub(crate) fn option(&self, s: SpSocket, level: i32, name: u32) -> Result<u32, WsaError> {
        let sock = self.resolve(s)?;
        if level != libc::SOL_SOCKET {
            return Err(WsaError::Inval);
        }
        match name {
            // Relaxed: a flag of its own.
            options::SO_DEBUG => Ok(sock.record.debug.load(Ordering::Relaxed)),
            options::SO_MAX_MSG_SIZE | options::SO_MAX_RDMA_SIZE => Ok(MESSAGE_LIMIT),
            options::SO_RDMA_THRESHOLD_SIZE => Ok(RDMA_THRESHOLD),
            _ => Err(WsaError::NoProtoOpt),
        }
    }

    /// `wsp_set_sock_opt`.
    pub(crate) fn set_option(
        &self,
        s: SpSocket,
        level: i32,
        name: u32,
        value: &[u8],
    ) -> Result<(), WsaError> {
        let sock = self.resolve(s)?;
        if level != libc::SOL_SOCKET {
            return Err(WsaError::Inval);
        }
        if name != options::SO_DEBUG {
            return Err(WsaError::NoProtoOpt);
        }
        let value: [u8; 4] = value
            .get(..4)
            .and_then(|value| value.try_into().ok())
            .ok_or(WsaError::Fault)?;
        let on = u32::from(u32::from_ne_bytes(value) != 0);
        // Relaxed: a flag of its own.
        sock.record.debug.store(on, Ordering::Relaxed);
        Ok(())
    }
}
