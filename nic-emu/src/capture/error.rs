//! Why a capture fails.
//!
//! Place: all of `capture` and its requests. Invariants: messages are for people and name the limit that was met.

use nix::errno::Errno;

/// Why a capture cannot start, or ends.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaptureError {
    /// The ring asked for is too small or too large.
    #[error("field \"ring_bytes\" cannot be {bytes}; allowed: {least} to {most}")]
    RingBytes {
        /// Asked for.
        bytes: u64,
        /// Fewest.
        least: u64,
        /// Most.
        most: u64,
    },
    /// So many bytes of a packet make no sense.
    #[error("field \"snaplen\" cannot be {snaplen}; allowed: {least} to {most}")]
    Snaplen {
        /// Asked for.
        snaplen: u32,
        /// Fewest.
        least: u32,
        /// Most.
        most: u32,
    },
    /// Too many captures run.
    #[error("{limit} captures run already, which is the limit")]
    Limit {
        /// Most at once.
        limit: usize,
    },
    /// The ring is not what was announced, or its contents are not.
    #[error("the ring of the capture is not sound")]
    BadRing,
    /// A filter that is none.
    #[error("filter: {0}")]
    BadFilter(String),
    /// A system call failed.
    #[error("{what}: {source}")]
    System {
        /// The call.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

impl CaptureError {
    pub(crate) fn system(what: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::System {
            what,
            source: errno.into(),
        }
    }
}
