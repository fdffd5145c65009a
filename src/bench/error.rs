//! Why a benchmark gave no figure.
//!
//! Place: every part of [`super`] returns it; the command prints it. Invariants: names the queue and what it did.

use std::io;
use std::path::PathBuf;

/// Why a benchmark gave no figure.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// A system call failed.
    #[error("{what}: {error}")]
    System {
        /// Which.
        what: &'static str,
        /// How.
        error: io::Error,
    },
    /// The depth is no power of two, or out of bounds.
    #[error("a depth of {0} is not a power of two between 2 and 65536")]
    Depth(u32),
    /// No such element size.
    #[error("elements have 8, 16, 32, 64, 128 or 256 bytes, not {0}")]
    ElementSize(u32),
    /// The batch is out of bounds.
    #[error("a batch of {batch} does not fit into a queue of {depth}")]
    Batch {
        /// Elements at once.
        batch: u32,
        /// Elements of the queue.
        depth: u32,
    },
    /// There is nothing between a processor and itself.
    #[error("a matrix needs two processors, and this process may use one")]
    OneProcessor,
    /// Nothing was measured.
    #[error("no pair of runs was asked for")]
    NoRuns,
    /// The queue lives in the memory of one process.
    #[error("{0} cannot be shared by two processes: measure it between threads")]
    OneProcess(String),
    /// An element that was never sent, or not now.
    #[error("{queue} gave a wrong element: {seen:#x} in place of {expected:#x}")]
    WrongElement {
        /// Name of the queue.
        queue: String,
        /// Its first word.
        seen: u64,
        /// What it should have been.
        expected: u64,
    },
    /// Nothing came.
    #[error("{queue} gave nothing for {seconds} s")]
    Stuck {
        /// Name of the queue.
        queue: String,
        /// How long.
        seconds: u64,
    },
    /// The other side ended before its work was done.
    #[error("the other side of {queue} ended early: {how}")]
    OtherSide {
        /// Name of the queue.
        queue: String,
        /// How.
        how: String,
    },
    /// A shared object that is no queue.
    #[error("{}: {problem}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The NIC refused or failed something.
    #[error("the NIC: {0}")]
    Nic(String),
    /// A program that takes part did not do its work.
    #[error("{0}")]
    Program(String),
    /// The user wants to stop.
    #[error("interrupted")]
    Interrupted,
    /// A saved result that cannot be used.
    #[error("{}: {problem}", path.display())]
    Saved {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

impl BenchError {
    pub(crate) fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::System { what, error }
    }

    pub(crate) fn errno(what: &'static str) -> impl FnOnce(nix::errno::Errno) -> Self {
        move |errno| Self::System {
            what,
            error: errno.into(),
        }
    }
}
