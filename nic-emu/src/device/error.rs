//! Why the device refuses a call of its owner (server, embedded program).
//!
//! Place: returned by the methods of [`super::Device`]; the server answers with [`DeviceError::errno`]. What a client does wrong in its
//! rings is not here: that ends in completions, events and a FAILED function.

use std::io;

use ring_proto::ids::{FunctionId, NodeId};

use super::MTU_BYTES;

/// Why the device refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// No function of that number is attached.
    #[error("function {0} is not attached")]
    NoFunction(FunctionId),
    /// No node of that number exists.
    #[error("node {0} does not exist")]
    NoNode(NodeId),
    /// A probability of a link is above one million parts per million.
    #[error("{ppm} parts per million")]
    BadLink {
        /// Value asked for.
        ppm: u32,
    },
    /// No link can have this MTU.
    #[error("an MTU of {bytes} bytes; allowed: 0, or {} to {}", MTU_BYTES.start(), MTU_BYTES.end())]
    BadMtu {
        /// Value asked for.
        bytes: u32,
    },
    /// An MTU for one direction alone.
    #[error("an MTU holds for both directions of a link: set it for both")]
    OneWayMtu,
    /// A limit of the device is reached.
    #[error("limit of {limit} {what} reached")]
    Limit {
        /// Kind of object.
        what: &'static str,
        /// Most of them.
        limit: u64,
    },
    /// A window's address, offset or length is not a multiple of the page size, is zero or overflows.
    #[error(
        "window of {len:#x} bytes at {iova:#x}, offset {offset:#x}, is empty, unaligned or overflows"
    )]
    BadWindow {
        /// IOVA asked for.
        iova: u64,
        /// Length asked for.
        len: u64,
        /// Offset in the file.
        offset: u64,
    },
    /// A window overlaps one that is mapped.
    #[error("window of {len:#x} bytes at {iova:#x} overlaps a mapped one")]
    Overlap {
        /// IOVA asked for.
        iova: u64,
        /// Length asked for.
        len: u64,
    },
    /// A range to unmap names no window, or only a part of one.
    #[error("range of {len:#x} bytes at {iova:#x} is not a set of whole windows")]
    NoWindow {
        /// IOVA asked for.
        iova: u64,
        /// Length asked for.
        len: u64,
    },
    /// The memory's file may shrink under the device.
    #[error("memory file is not sealed against shrinking (seals {seals:#x})")]
    Unsealed {
        /// Seals found.
        seals: i32,
    },
    /// The memory's file has no seals at all, or is of a kind whose pages may fail to appear.
    #[error("memory file is not a sealable memory file")]
    NotMemory,
    /// The memory's file ends inside the window.
    #[error("memory file of {size:#x} bytes is too small for a window up to {end:#x}")]
    TooSmall {
        /// Bytes of the file.
        size: u64,
        /// Bytes needed.
        end: u64,
    },
    /// No register at that offset with that length, or it cannot be written.
    #[error("no register at {offset:#x} of {len} bytes for this access")]
    BadRegister {
        /// Offset in BAR0.
        offset: u64,
        /// Bytes of the access.
        len: u32,
    },
    /// A holder slot is not of that generation.
    #[error("holder slot {slot} has generation {live}, not {asked}")]
    BadHolder {
        /// Slot.
        slot: u32,
        /// Its live generation, 0 when free.
        live: u32,
        /// Generation asked for.
        asked: u32,
    },
    /// The operation is not built.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    /// A system call of the device failed.
    #[error("{what} failed")]
    System {
        /// System call.
        what: &'static str,
        /// Its error.
        #[source]
        source: io::Error,
    },
}

impl DeviceError {
    pub(crate) fn system(what: &'static str, source: impl Into<io::Error>) -> Self {
        Self::System {
            what,
            source: source.into(),
        }
    }

    /// Errno for the reply to the client.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::NoFunction(_) | Self::NoNode(_) => libc::ENODEV,
            Self::BadLink { .. } | Self::BadMtu { .. } | Self::OneWayMtu => libc::EINVAL,
            Self::Limit { .. } => libc::ENOSPC,
            Self::BadWindow { .. }
            | Self::Unsealed { .. }
            | Self::NotMemory
            | Self::TooSmall { .. }
            | Self::BadRegister { .. } => libc::EINVAL,
            Self::Overlap { .. } => libc::EEXIST,
            Self::NoWindow { .. } => libc::ENOENT,
            Self::BadHolder { .. } => libc::ESTALE,
            Self::Unsupported(_) => libc::EOPNOTSUPP,
            Self::System { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
        }
    }
}
