//! Companion sockets: created, bound and given their options in exactly the order of the seed's figure.
//!
//! Place: made inside the program's listen or connect, after the TCP socket was created and bound.
//! Invariants: WSPSocket (with the upcall inside), WSPBind, WSPSetSockOpt for each supported option, nothing in between (R-53,
//! R-61); whatever fails, WSPCloseSocket follows if there is a descriptor (R-70, OP-3). No drop glue: a forked child must be able to
//! forget a companion that its parent keeps.

use core::net::SocketAddrV4;

use driver::spi::SpSocket;
use driver::wsa::WsaError;
use ring_proto::telemetry::Reason;

use crate::options::OptionStore;
use crate::provider_table::ProviderRef;

/// A companion: the provider's descriptor, by which alone the switch names the socket to it.
#[derive(Clone, Debug)]
pub struct Companion {
    /// Its provider.
    pub provider: ProviderRef,
    /// The provider's descriptor.
    pub socket: SpSocket,
    /// Address and port: those of the TCP socket.
    pub local: SocketAddrV4,
}

/// Makes a companion bound to `local`, with every stored option that the provider supports.
///
/// # Errors
/// Which step failed; the companion is closed then.
pub fn create(
    provider: &ProviderRef,
    local: SocketAddrV4,
    options: &OptionStore,
) -> Result<Companion, Reason> {
    let failed = |error: WsaError, reason| {
        provider.note(error);
        if error == WsaError::NetDown {
            Reason::ProviderDown
        } else {
            reason
        }
    };
    // a zero port is no name; it would be the switch's mistake and is not handed on.
    if local.port() == 0 {
        return Err(Reason::SpBind);
    }
    let socket = provider.socket().map_err(|e| failed(e, Reason::SpSocket))?;
    let companion = Companion {
        provider: provider.clone(),
        socket,
        local,
    };
    let ready = provider
        .sp
        .wsp_bind(socket, local)
        .map_err(|e| failed(e, Reason::SpBind))
        .and_then(|()| {
            options
                .replay(&*provider.sp, socket)
                .map_err(|e| failed(e, Reason::SpSetsockopt))
        });
    match ready {
        Ok(()) => Ok(companion),
        Err(reason) => {
            companion.close();
            Err(reason)
        }
    }
}

impl Companion {
    /// Destroys the companion. A second close is answered `NotSock` by the provider and changes nothing.
    pub fn close(&self) {
        if let Err(error) = self.provider.sp.wsp_close_socket(self.socket) {
            self.provider.note(error);
        }
    }

    /// Gives up this process's hold. Returns whether others keep the companion; if not, it is still to be closed.
    #[must_use]
    pub fn is_kept_by_others(&self) -> bool {
        self.provider
            .sharing
            .as_ref()
            .is_some_and(|s| s.release(self.socket).unwrap_or(false))
    }
}
