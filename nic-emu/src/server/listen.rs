//! Listening sockets in the file system, and the directory they lie in.
//!
//! Place: one for control, one per node for the device; the control thread accepts on them.
//! Invariants: mode 0600 before the first connection can come; a socket left by a dead process is replaced, one of a live process
//! never; what we made is removed at the end, what somebody put in its place is not; only our own user and root get in.
//! Source: unix(7). Leaves out: what is spoken over the connections.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};

use super::error::{ServeError, system};
use super::fd_pass;

/// Longest socket path in bytes: `sun_path` without its NUL.
const PATH_LIMIT: usize = 107;

/// A listening stream socket with its path.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Device and inode of the socket file, to recognise it at the end.
    identity: (u64, u64),
    /// A descriptor kept for the day when there are no others, so that connections can be refused and not spin.
    reserve: Option<OwnedFd>,
}

/// What an accept brought.
#[derive(Debug)]
pub(crate) enum Accepted {
    /// A connection of an allowed user.
    Connection(OwnedFd),
    /// A connection that was closed at once, with the reason.
    Refused(&'static str),
    /// None is waiting.
    Nothing,
    /// One is waiting, but there is no descriptor for it, not even to refuse it. Try again later, not at once.
    Stuck,
}

impl Listener {
    /// Binds and listens on `path`.
    pub(crate) fn bind(path: &Path) -> Result<Self, ServeError> {
        let len = path.as_os_str().len();
        if len > PATH_LIMIT {
            return Err(ServeError::PathTooLong {
                path: path.to_owned(),
                len,
                limit: PATH_LIMIT,
            });
        }
        let fd = socket(
            AddressFamily::Unix,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            None,
        )
        .map_err(system("socket"))?;
        let address = UnixAddr::new(path).map_err(file("bind", path))?;
        match bind(fd.as_raw_fd(), &address) {
            Err(Errno::EADDRINUSE) => {
                remove_if_dead(path)?;
                bind(fd.as_raw_fd(), &address).map_err(file("bind", path))?;
            }
            other => other.map_err(file("bind", path))?,
        }
        let listener = Self {
            identity: identity(path).map_err(io_file("look at", path))?,
            socket: fd.into(),
            path: path.to_owned(),
            reserve: reserve(),
        };
        // Nobody can connect before `listen`, so nobody gets in under the mode that the umask made.
        fs::set_permissions(path, Permissions::from_mode(0o600))
            .map_err(io_file("set the mode of", path))?;
        listen(&listener.socket, Backlog::MAXCONN).map_err(file("listen on", path))?;
        Ok(listener)
    }

    /// Path of the socket.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the next connection. Its blocking mode is of no matter: all calls on it say how long they wait.
    pub(crate) fn accept(&mut self) -> io::Result<Accepted> {
        let error = match self.accept_any() {
            Ok(connection) => {
                return Ok(match fd_pass::peer_uid(connection.as_fd()) {
                    Ok(uid) if uid == 0 || uid == nix::unistd::geteuid().as_raw() => {
                        Accepted::Connection(connection)
                    }
                    _ => Accepted::Refused("another user"),
                });
            }
            Err(error) => error,
        };
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::ECONNABORTED | libc::EINTR) => Ok(Accepted::Nothing),
            Some(libc::EMFILE | libc::ENFILE) => {
                // The connection would stay readable for ever: take it with the reserved descriptor and hang up.
                self.reserve = None;
                let refused = self.accept_any().is_ok();
                self.reserve = reserve();
                Ok(if refused {
                    Accepted::Refused("out of descriptors")
                } else {
                    // Another thread was quicker to take the one that we let go.
                    Accepted::Stuck
                })
            }
            _ => Err(error),
        }
    }

    fn accept_any(&self) -> io::Result<OwnedFd> {
        self.socket.accept().map(|(stream, _)| stream.into())
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == self.identity) {
            // Nothing is left to tell anybody: the process is on its way out.
            drop(fs::remove_file(&self.path));
        }
    }
}

fn reserve() -> Option<OwnedFd> {
    fs::File::open("/dev/null").ok().map(OwnedFd::from)
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|m| (m.dev(), m.ino()))
}

/// Removes the socket of a process that has ended.
fn remove_if_dead(path: &Path) -> Result<(), ServeError> {
    let metadata = fs::symlink_metadata(path).map_err(io_file("look at", path))?;
    if !metadata.file_type().is_socket() {
        return Err(ServeError::NotASocket {
            path: path.to_owned(),
        });
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(io_file("remove", path))
        }
        // EAGAIN means a full backlog, thus a live process; EPERM and others are no proof of death either.
        _ => Err(ServeError::InUse {
            path: path.to_owned(),
        }),
    }
}

/// Directories that we made and shall remove.
#[derive(Debug, Default)]
pub(crate) struct RunDirectories {
    made: Vec<PathBuf>,
}

impl RunDirectories {
    /// Makes sure that `path` is a directory of ours with mode 0700.
    pub(crate) fn ensure(&mut self, path: &Path) -> Result<(), ServeError> {
        let mut missing: Vec<&Path> = path.ancestors().take_while(|p| !p.exists()).collect();
        while let Some(directory) = missing.pop() {
            match DirBuilder::new().mode(0o700).create(directory) {
                Ok(()) => self.made.push(directory.to_owned()),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(io_file("make", directory)(error)),
            }
        }
        let metadata = fs::metadata(path).map_err(io_file("look at", path))?;
        let own = nix::unistd::geteuid().as_raw();
        if metadata.uid() != own {
            return Err(ServeError::ForeignDirectory {
                path: path.to_owned(),
                owner: metadata.uid(),
                own,
            });
        }
        if metadata.permissions().mode() & 0o077 != 0 {
            fs::set_permissions(path, Permissions::from_mode(0o700))
                .map_err(io_file("set the mode of", path))?;
        }
        Ok(())
    }
}

impl Drop for RunDirectories {
    fn drop(&mut self) {
        for directory in self.made.iter().rev() {
            // Not empty means that somebody else uses it.
            drop(fs::remove_dir(directory));
        }
    }
}

fn file<'a>(what: &'static str, path: &'a Path) -> impl Fn(Errno) -> ServeError + 'a {
    move |error| io_file(what, path)(error.into())
}

fn io_file<'a>(what: &'static str, path: &'a Path) -> impl Fn(io::Error) -> ServeError + 'a {
    move |source| ServeError::File {
        what,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("nic-emu-listen-{name}-{}", std::process::id()))
    }

    #[test]
    fn sockets_are_private_and_removed_with_their_directories() {
        let root = scratch("private");
        let nested = root.join("a/b");
        let mut directories = RunDirectories::default();
        directories.ensure(&nested).unwrap();
        let path = nested.join("s.sock");
        let mut listener = Listener::bind(&path).unwrap();
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&nested)), (0o600, 0o700));
        assert!(matches!(listener.accept(), Ok(Accepted::Nothing)));
        let _client = UnixStream::connect(&path).unwrap();
        assert!(matches!(listener.accept(), Ok(Accepted::Connection(_))));
        drop(listener);
        drop(directories);
        assert!(!root.exists());
    }

    #[test]
    fn a_live_socket_is_refused_a_dead_one_replaced_and_a_file_kept() {
        let root = scratch("stale");
        let mut directories = RunDirectories::default();
        directories.ensure(&root).unwrap();
        let path = root.join("s.sock");
        let first = Listener::bind(&path).unwrap();
        assert!(matches!(
            Listener::bind(&path),
            Err(ServeError::InUse { .. })
        ));
        drop(first);
        drop(UnixListener::bind(&path).unwrap());
        let second = Listener::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "mine").unwrap();
        drop(second);
        assert!(matches!(
            Listener::bind(&path),
            Err(ServeError::NotASocket { .. })
        ));
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_long_path_is_named() {
        let path = PathBuf::from("/").join("x".repeat(200));
        let error = Listener::bind(&path).unwrap_err();
        assert!(matches!(error, ServeError::PathTooLong { len: 201, .. }));
    }
}
