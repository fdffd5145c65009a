//! Control codes, and the parts of the interface this provider does not have.
//!
//! Place: `wsp_ioctl` at start-up and when addresses change; `wsp_get_qos_by_name`, `wsp_duplicate_socket`.
//! Invariants: the socket argument of the extension query is not looked at; no addresses is a success.
//! Source. Leaves out: quality of service, duplication (sharing goes by fork), registration cache.

use core::net::SocketAddrV4;

use super::Core;
use crate::spi::{Extension, Ioctl, IoctlReply, ProtocolInfo, SpSocket};
use crate::wsa::WsaError;

impl Core {
    /// `wsp_ioctl`.
    pub(crate) fn ioctl(&self, s: Option<SpSocket>, code: Ioctl) -> Result<IoctlReply, WsaError> {
        match code {
            Ioctl::ExtensionFunctionPointer(Extension::MemoryRegistrationCacheCallback) => {
                Err(WsaError::OpNotSupp)
            }
            Ioctl::ExtensionFunctionPointer(extension) => Ok(IoctlReply::Extension(extension)),
            Ioctl::AddressListQuery => {
                let sock = self.resolve(s.ok_or(WsaError::NotSock)?)?;
                if sock.function.is_dead() {
                    return Err(WsaError::NetDown);
                }
                let addresses = self.config.addresses.iter();
                let list = addresses.map(|&ip| SocketAddrV4::new(ip, 0)).collect();
                Ok(IoctlReply::AddressList(list))
            }
            Ioctl::Qos => {
                self.resolve(s.ok_or(WsaError::NotSock)?)?;
                Err(WsaError::OpNotSupp)
            }
        }
    }

    /// `wsp_get_qos_by_name`.
    pub(crate) fn qos(&self, s: SpSocket) -> Result<(), WsaError> {
        self.resolve(s)?;
        Err(WsaError::OpNotSupp)
    }

    /// `wsp_duplicate_socket`: processes share by fork, tokens are never given out.
    pub(crate) fn duplicate(&self, s: SpSocket) -> Result<ProtocolInfo, WsaError> {
        self.resolve(s)?;
        Err(WsaError::Inval)
    }
}
