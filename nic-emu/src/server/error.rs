//! Why the process side of the device could not start or go on.
//!
//! Place: returned by [`super::serve`] and the socket makers; the command line prints it. Invariants: a message names the thing and,
//! where there is one, the remedy. What a peer does wrong is never an error of the process: it is answered, counted, or its
//! connection closed.

use std::io;
use std::path::PathBuf;

use nix::errno::Errno;

/// The server could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The cluster's configuration makes no sense.
    #[error("cluster {cluster}: {problem}")]
    Config {
        /// Name of the cluster.
        cluster: String,
        /// What is wrong, in words.
        problem: String,
    },
    /// Another process serves this socket.
    #[error("{path} is served by a running process; stop it or choose another path")]
    InUse {
        /// Path of the socket.
        path: PathBuf,
    },
    /// Something else than a socket lies where the socket should be.
    #[error("{path} exists and is not a socket; remove it or choose another path")]
    NotASocket {
        /// Path of the file.
        path: PathBuf,
    },
    /// A socket's path is longer than the kernel allows.
    #[error(
        "{path} is {len} bytes long, a socket path has at most {limit}; choose a shorter run directory"
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its bytes.
        len: usize,
        /// Most bytes.
        limit: usize,
    },
    /// A directory belongs to somebody else.
    #[error("{path} belongs to user {owner}, not to user {own}; choose another run directory")]
    ForeignDirectory {
        /// The directory.
        path: PathBuf,
        /// Who owns it.
        owner: u32,
        /// Who we are.
        own: u32,
    },
    /// A file operation failed.
    #[error("cannot {what} {path}: {source}")]
    File {
        /// What was tried.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A system call failed that does not depend on any path.
    #[error("{what} failed: {source}")]
    System {
        /// System call.
        what: &'static str,
        /// Why.
        source: Errno,
    },
    /// The engine thread is gone.
    #[error("the device engine has stopped")]
    EngineGone,
}

impl ServeError {
    /// The errno that describes it best.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::Config { .. } => libc::EINVAL,
            Self::InUse { .. } => libc::EADDRINUSE,
            Self::NotASocket { .. } => libc::EEXIST,
            Self::PathTooLong { .. } => libc::ENAMETOOLONG,
            Self::ForeignDirectory { .. } => libc::EACCES,
            Self::File { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
            Self::System { source, .. } => *source as i32,
            Self::EngineGone => libc::EIO,
        }
    }
}

/// Names a system call that failed.
pub(crate) fn system(what: &'static str) -> impl Fn(Errno) -> ServeError {
    move |source| ServeError::System { what, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_an_errno_and_names_its_subject() {
        let path = PathBuf::from("/run/x");
        let errors = [
            ServeError::Config {
                cluster: "c".into(),
                problem: "p".into(),
            },
            ServeError::InUse { path: path.clone() },
            ServeError::NotASocket { path: path.clone() },
            ServeError::PathTooLong {
                path: path.clone(),
                len: 200,
                limit: 107,
            },
            ServeError::ForeignDirectory {
                path: path.clone(),
                owner: 1,
                own: 2,
            },
            ServeError::File {
                what: "bind",
                path,
                source: io::Error::from_raw_os_error(libc::EACCES),
            },
            system("epoll_create1")(Errno::EMFILE),
            ServeError::EngineGone,
        ];
        for error in errors {
            assert_ne!(error.errno(), 0, "{error}");
            assert!(!error.to_string().ends_with('.'));
        }
    }
}
