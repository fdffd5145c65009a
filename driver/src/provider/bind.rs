//! Binding a companion to the address and port that TCP's socket has.
//!
//! Place: `wsp_bind`, right after `wsp_socket`.
//! Invariants: the port is never 0; the address is one of the NIC's, or the wildcard for a listener. A specific address gets its
//! queues here, a listener needs none. Address reuse is TCP's business: `AddrInUse` does not exist.
//! Source.

use core::net::SocketAddrV4;

use ring_proto::sync::Ordering;

use super::queues::Holder;
use super::socket::{BOUND, CREATED, pack};
use super::{Core, code_of};
use crate::spi::SpSocket;
use crate::wsa::WsaError;

impl Core {
    /// `wsp_bind`.
    pub(crate) fn bind(&self, s: SpSocket, name: SocketAddrV4) -> Result<(), WsaError> {
        let sock = self.resolve(s)?;
        if sock.state() != CREATED || name.port() == 0 {
            return Err(WsaError::Inval);
        }
        let is_wildcard = name.ip().is_unspecified();
        if !is_wildcard && !self.config.addresses.contains(name.ip()) {
            return Err(WsaError::AddrNotAvail);
        }
        if !is_wildcard {
            sock.function
                .lock()
                .make_queues(&sock, Holder::Process)
                .map_err(code_of)?;
        }
        // Relaxed: published by the state.
        sock.record.local.store(pack(name), Ordering::Relaxed);
        sock.set_state(BOUND);
        Ok(())
    }
}
