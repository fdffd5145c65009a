//! What a driver needs of an attached function, however it is attached.
//!
//! Place: implemented by the vfio-user client of `driver` and by the embedded device of `nic-emu`; used by `driver` when it sets a
//! function up. Invariants: nothing here is on the path of a posted WQE but [`Attachment::kick`], and that only while the NIC sleeps.

use std::os::fd::RawFd;

/// An attached device function.
///
/// # Errors
/// All methods fail with [`AttachError`]; after `Disconnected` the function is gone for good.
pub trait Attachment: Send + Sync {
    /// Reads a register of BAR0; `len` is 4 or 8.
    fn read_register(&self, offset: u64, len: u32) -> Result<u64, AttachError>;

    /// Writes a register of BAR0; `len` is 4 or 8.
    fn write_register(&self, offset: u64, len: u32, value: u64) -> Result<(), AttachError>;

    /// The memfd of BAR2 and its length. It stays open as long as the attachment.
    fn bar2(&self) -> Result<(RawFd, u64), AttachError>;

    /// Maps `len` bytes of a sealed memfd from `offset` at `iova`.
    fn dma_map(
        &self,
        fd: RawFd,
        offset: u64,
        iova: u64,
        len: u64,
        writable: bool,
    ) -> Result<(), AttachError>;

    /// Unmaps a window; when it returns the device no longer touches the memory.
    fn dma_unmap(&self, iova: u64, len: u64) -> Result<(), AttachError>;

    /// Fetches the memory of one of this function's own windows: a descriptor that the caller must close, the offset of the
    /// window in it, and its length. For members of a fork family that lack the mapping.
    fn window(&self, iova: u64) -> Result<(RawFd, u64, u64), AttachError> {
        let _ = iova; // the default has no windows to offer
        Err(AttachError::Refused {
            what: "a window's descriptor",
            // EOPNOTSUPP has the same number on every Linux architecture this runs on.
            errno: 95,
        })
    }

    /// Connects interrupt vector `index` to an eventfd, or disconnects it.
    fn set_vector(&self, index: u8, eventfd: Option<RawFd>) -> Result<(), AttachError>;

    /// Wakes a sleeping device. Cheap to call too often.
    fn kick(&self);

    /// Descriptors behind this attachment, for another process or program image that is to use it too; `None` when it has none.
    fn descriptors(&self) -> Option<Descriptors> {
        None
    }

    /// Counts the messages of all who share this attachment in a word of `memory` at `offset`, page aligned, from now on. Whoever
    /// comes to the attachment by its [`Descriptors`] counts there too.
    fn count_in(&self, memory: RawFd, offset: u64) -> Result<(), AttachError> {
        let _ = (memory, offset); // the default sends no messages
        Ok(())
    }

    /// Before the process forks: keeps its other threads out until [`Attachment::after_fork`].
    fn before_fork(&self) {}

    /// After a fork, in the parent and in the child.
    fn after_fork(&self) {}

    /// Descriptor that shows POLLHUP when the device is gone, or `None` when it cannot go. POLLIN says nothing: a reply may be
    /// under way to another thread.
    fn hangup_fd(&self) -> Option<RawFd>;
}

/// Descriptors of an attachment. They stay its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Descriptors {
    /// The stream to the device.
    pub stream: RawFd,
    /// The memfd of BAR2.
    pub bar2: RawFd,
    /// The eventfd behind the kick register, where there is one.
    pub kick: Option<RawFd>,
}

/// Why an attachment did not do what was asked.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// The device refused, with this errno.
    #[error("device refused {what}: errno {errno}")]
    Refused {
        /// What was asked.
        what: &'static str,
        /// errno of the reply.
        errno: i32,
    },
    /// The connection to the device broke.
    #[error("connection to the device is gone during {what}")]
    Disconnected {
        /// What was asked.
        what: &'static str,
    },
    /// The device answered something impossible.
    #[error("device answered {what} with {detail}")]
    Protocol {
        /// What was asked.
        what: &'static str,
        /// What was wrong.
        detail: &'static str,
    },
    /// A system call of this process failed.
    #[error("{what} failed: errno {errno}")]
    System {
        /// System call.
        what: &'static str,
        /// errno.
        errno: i32,
    },
}

impl AttachError {
    /// The errno a caller of the C library would see.
    #[must_use]
    pub const fn errno(&self) -> i32 {
        match self {
            Self::Refused { errno, .. } | Self::System { errno, .. } => *errno,
            // ENODEV and EPROTO have the same numbers on every Linux architecture.
            Self::Disconnected { .. } => 19,
            Self::Protocol { .. } => 71,
        }
    }
}
