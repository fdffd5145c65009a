//! Errors of the driver below the service provider: attaching, commanding, posting.
//!
//! Place: `provider` turns them into Winsock codes; driver developers see them as they are.
//! Invariants: each enum has its errno beside it.

use ring_proto::admin::{AdminOp, AdminStatus};
use ring_proto::attach::AttachError;

/// An admin command did not succeed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// The device is gone or FAILED.
    #[error("device is gone")]
    Dead,
    /// The device refused.
    #[error("device answered {op} with {status}")]
    Refused {
        /// What was asked.
        op: AdminOp,
        /// Its answer.
        status: AdminStatus,
    },
}

impl AdminError {
    /// The errno a caller of the C library would see.
    #[must_use]
    pub const fn errno(self) -> i32 {
        match self {
            Self::Dead => libc::ENODEV,
            Self::Refused { status, .. } => status.0 as i32,
        }
    }

    /// The status the device answered, `None` when it did not answer.
    #[must_use]
    pub const fn status(self) -> Option<AdminStatus> {
        match self {
            Self::Dead => None,
            Self::Refused { status, .. } => Some(status),
        }
    }
}

/// A function could not be attached, or an object of it not be made.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FunctionError {
    /// The attachment failed.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The device is no SAN NIC, or speaks another version.
    #[error("device has {what} {found:#x}, this driver needs {needed:#x}")]
    Unsupported {
        /// Register.
        what: &'static str,
        /// Its value.
        found: u64,
        /// Value wanted.
        needed: u64,
    },
    /// A system call of this process failed.
    #[error("{what} failed: errno {errno}")]
    System {
        /// System call.
        what: &'static str,
        /// errno.
        errno: i32,
    },
    /// An admin command failed.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The arena has no room for `len` bytes.
    #[error("arena has no room for {len} bytes")]
    ArenaFull {
        /// Bytes wanted.
        len: u64,
    },
    /// No doorbell slot is free.
    #[error("no doorbell slot is free")]
    NoSlot,
    /// A size is not possible.
    #[error("{what} of {value} is not possible")]
    Invalid {
        /// What was asked for.
        what: &'static str,
        /// Value seen.
        value: u64,
    },
}

impl FunctionError {
    /// The errno a caller of the C library would see.
    #[must_use]
    pub const fn errno(&self) -> i32 {
        match self {
            Self::Attach(error) => error.errno(),
            Self::Unsupported { .. } => libc::EPROTONOSUPPORT,
            Self::System { errno, .. } => *errno,
            Self::Admin(error) => error.errno(),
            Self::ArenaFull { .. } => libc::ENOMEM,
            Self::NoSlot => libc::ENOSPC,
            Self::Invalid { .. } => libc::EINVAL,
        }
    }

    pub(crate) fn system(what: &'static str) -> impl FnOnce(crate::sys::Errno) -> Self {
        move |errno| Self::System {
            what,
            errno: errno.raw_os_error(),
        }
    }
}

/// A work request was not posted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PostError {
    /// The queue has no room; poll for completions and try again.
    #[error("queue is full")]
    QueueFull,
    /// More scatter/gather elements than a WQE can hold.
    #[error("{count} scatter/gather elements, a WQE holds {limit}")]
    TooManySges {
        /// Elements asked for.
        count: usize,
        /// Most that fit.
        limit: usize,
    },
    /// More inline bytes than a WQE can hold.
    #[error("{len} inline bytes, a WQE holds {limit}")]
    InlineTooLong {
        /// Bytes asked for.
        len: usize,
        /// Most that fit.
        limit: usize,
    },
    /// The lengths of the elements do not sum up to a u32.
    #[error("message is longer than 4 GiB")]
    TooLong,
    /// The QP takes its receives from a shared receive queue.
    #[error("the QP has a shared receive queue in place of its own")]
    SharedReceives,
}

impl PostError {
    /// The errno a caller of the C library would see.
    #[must_use]
    pub const fn errno(self) -> i32 {
        match self {
            Self::QueueFull => libc::EAGAIN,
            Self::TooManySges { .. } | Self::InlineTooLong { .. } | Self::SharedReceives => {
                libc::EINVAL
            }
            Self::TooLong => libc::EMSGSIZE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_has_the_errno_of_its_kind() {
        assert_eq!(AdminError::Dead.errno(), libc::ENODEV);
        let refused = AdminError::Refused {
            op: AdminOp::CM_LISTEN,
            status: AdminStatus::BAD_NODE_ADDRESS,
        };
        assert_eq!(refused.errno(), libc::EADDRNOTAVAIL);
        assert_eq!(refused.status(), Some(AdminStatus::BAD_NODE_ADDRESS));
        assert_eq!(FunctionError::from(refused).errno(), libc::EADDRNOTAVAIL);
        assert_eq!(FunctionError::ArenaFull { len: 1 }.errno(), libc::ENOMEM);
        assert_eq!(FunctionError::NoSlot.errno(), libc::ENOSPC);
        assert_eq!(PostError::QueueFull.errno(), libc::EAGAIN);
        assert_eq!(PostError::TooLong.errno(), libc::EMSGSIZE);
        assert_eq!(
            PostError::InlineTooLong {
                len: 300,
                limit: 224
            }
            .errno(),
            libc::EINVAL
        );
    }
}
