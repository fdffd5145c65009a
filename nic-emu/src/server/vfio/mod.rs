//! The vfio-user server: one connection is one function of the device.
//!
//! Place: the control thread hands sockets in, this module turns messages into calls of the engine thread and answers.
//! Invariants: a client owns its function alone; whatever it sends ends in a reply, an error reply or the end of its connection;
//! buffers and descriptors of a connection are bounded.
//! Source: vfio-user protocol 0.1; PCI shape of the device in docs/device.md. Leaves out: migration, twin socket, DMA by message.

pub(crate) mod config_space;
pub(crate) mod dma;
pub(crate) mod irqs;
pub(crate) mod message;
pub(crate) mod msix;
pub(crate) mod regions;
pub(crate) mod session;

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use ring_proto::ids::FunctionId;

use self::config_space::ConfigSpace;
use self::msix::MsixTable;
use super::runtime::EngineGone;
use crate::device::DeviceError;

/// What a connection's function consists of on the control side.
#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) id: FunctionId,
    pub(crate) config: ConfigSpace,
    pub(crate) msix: MsixTable,
}

impl Function {
    pub(crate) fn new(id: FunctionId) -> Self {
        Self {
            id,
            config: ConfigSpace::new(),
            msix: MsixTable::new(),
        }
    }
}

/// Payload and descriptors of a good reply.
#[derive(Debug, Default)]
pub(crate) struct Reply {
    pub(crate) payload: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

impl Reply {
    /// A reply of plain bytes.
    pub(crate) fn bytes(payload: impl Into<Vec<u8>>) -> Self {
        Self {
            payload: payload.into(),
            fds: Vec::new(),
        }
    }
}

/// Why a command was not done.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The client is told so.
    Refused(Errno),
    /// There is no device any more.
    Gone(EngineGone),
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::Refused(errno)
    }
}

impl From<EngineGone> for Failure {
    fn from(gone: EngineGone) -> Self {
        Self::Gone(gone)
    }
}

impl From<DeviceError> for Failure {
    fn from(error: DeviceError) -> Self {
        Self::Refused(Errno::from_raw(error.errno()))
    }
}
