//! Sockets of both families, and how an end waits for them.
//!
//! Place: used by both ends. Invariants: a call returns when all its bytes are through; an end of the stream where bytes are due is an error.

use std::io::{self, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context as _, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use sanlab::bench::control::Idle;

use super::work::Wait;

/// Where a server listens: `1.2.3.4:5`, or a path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.starts_with('/') {
            return Ok(Self::Unix(text.into()));
        }
        let address = text.parse();
        Ok(Self::Tcp(
            address.with_context(|| format!("no address: {text}"))?,
        ))
    }
}

/// A listening socket.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Binds and listens; says where.
    pub(super) fn bind(address: &Address) -> anyhow::Result<(Self, String)> {
        match address {
            Address::Tcp(at) => {
                let listener =
                    TcpListener::bind(at).with_context(|| format!("cannot listen on {at}"))?;
                let at = listener.local_addr().context("address of a listener")?;
                Ok((Self::Tcp(listener), at.to_string()))
            }
            Address::Unix(path) => {
                let listener = UnixListener::bind(path)
                    .with_context(|| format!("cannot listen on {}", path.display()))?;
                Ok((Self::Unix(listener), path.display().to_string()))
            }
        }
    }

    /// Waits for a connection.
    pub(super) fn accept(&self) -> anyhow::Result<Socket> {
        let socket = match self {
            Self::Tcp(listener) => Socket::Tcp(listener.accept().context("accept")?.0),
            Self::Unix(listener) => Socket::Unix(listener.accept().context("accept")?.0),
        };
        socket.prompt()
    }
}

/// A connected socket.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    /// Connects.
    pub(super) fn connect(address: &Address) -> anyhow::Result<Self> {
        let socket = match address {
            Address::Tcp(at) => Self::Tcp(
                TcpStream::connect(at).with_context(|| format!("cannot connect to {at}"))?,
            ),
            Address::Unix(path) => Self::Unix(
                UnixStream::connect(path)
                    .with_context(|| format!("cannot connect to {}", path.display()))?,
            ),
        };
        socket.prompt()
    }

    /// Without the delay that Nagle's algorithm makes.
    fn prompt(self) -> anyhow::Result<Self> {
        if let Self::Tcp(stream) = &self {
            stream.set_nodelay(true).context("TCP_NODELAY")?;
        }
        Ok(self)
    }

    /// Prepares it for a way of waiting.
    pub(super) fn waited_for(self, wait: Wait) -> anyhow::Result<Self> {
        let is_nonblocking = wait != Wait::Blocking;
        match &self {
            Self::Tcp(stream) => stream.set_nonblocking(is_nonblocking),
            Self::Unix(stream) => stream.set_nonblocking(is_nonblocking),
        }
        .context("O_NONBLOCK")?;
        Ok(self)
    }

    /// One read.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }

    /// One write.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    fn writev(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write_vectored(parts),
            Self::Unix(stream) => stream.write_vectored(parts),
        }
    }

    /// Writes all.
    pub(super) fn send(&mut self, mut bytes: &[u8], wait: Wait) -> anyhow::Result<()> {
        let mut idle = Idle::new();
        while !bytes.is_empty() {
            let written = self.write(bytes);
            let written = self.unless_full(written, wait, &mut idle)?;
            bytes = &bytes[written..];
        }
        Ok(())
    }

    /// Writes both parts by one call, as far as the kernel takes them.
    pub(super) fn send_parts(
        &mut self,
        head: &[u8],
        body: &[u8],
        wait: Wait,
    ) -> anyhow::Result<()> {
        let mut idle = Idle::new();
        let mut sent = 0;
        while sent < head.len() {
            let parts = [IoSlice::new(&head[sent..]), IoSlice::new(body)];
            let written = self.writev(&parts);
            sent += self.unless_full(written, wait, &mut idle)?;
        }
        self.send(&body[sent - head.len()..], wait)
    }

    /// What a write says; 0 after waiting for room.
    fn unless_full(
        &self,
        written: io::Result<usize>,
        wait: Wait,
        idle: &mut Idle,
    ) -> anyhow::Result<usize> {
        match written {
            Ok(0) => bail!("a write of nothing"),
            Ok(len) => {
                idle.moved();
                Ok(len)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.wait_for(PollFlags::POLLOUT, wait, idle)?;
                Ok(0)
            }
            Err(error) => Err(error).context("write"),
        }
    }

    /// One read that waits for something to come.
    pub(super) fn receive(&mut self, buffer: &mut [u8], wait: Wait) -> anyhow::Result<usize> {
        let mut idle = Idle::new();
        loop {
            if let Some(len) = self.look(buffer)? {
                return Ok(len);
            }
            self.wait_for(PollFlags::POLLIN, wait, &mut idle)?;
        }
    }

    /// One read; `None` when nothing has come.
    pub(super) fn look(&mut self, buffer: &mut [u8]) -> anyhow::Result<Option<usize>> {
        match self.read(buffer) {
            Ok(0) => bail!("the other end has closed the connection"),
            Ok(len) => Ok(Some(len)),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error).context("read"),
        }
    }

    /// Reads all of it.
    pub(super) fn receive_all(&mut self, mut buffer: &mut [u8], wait: Wait) -> anyhow::Result<()> {
        while !buffer.is_empty() {
            let len = self.receive(buffer, wait)?;
            buffer = &mut buffer[len..];
        }
        Ok(())
    }

    fn wait_for(&self, events: PollFlags, wait: Wait, idle: &mut Idle) -> anyhow::Result<()> {
        if wait == Wait::Busy {
            if !idle.wait() {
                bail!("nothing moves");
            }
            return Ok(());
        }
        match poll(&mut [PollFd::new(self.as_fd(), events)], PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(error) => Err(error).context("poll"),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_path_or_an_ip_and_port() {
        assert_eq!(
            "/a/b".parse::<Address>().unwrap(),
            Address::Unix("/a/b".into())
        );
        assert_eq!(
            "127.0.0.1:9".parse::<Address>().unwrap(),
            Address::Tcp(([127, 0, 0, 1], 9).into())
        );
        assert!("localhost".parse::<Address>().is_err());
    }

    #[test]
    fn parts_and_pieces_come_through_whole_in_every_way_of_waiting() {
        for wait in [Wait::Blocking, Wait::Epoll, Wait::Busy] {
            let (near, far) = UnixStream::pair().unwrap();
            let [mut near, mut far] =
                [near, far].map(|end| Socket::Unix(end).waited_for(wait).unwrap());
            let body = vec![7; 1 << 20];
            let sender = std::thread::spawn({
                let body = body.clone();
                move || near.send_parts(&[1, 2, 3], &body, wait).unwrap()
            });
            let mut got = vec![0; 3 + body.len()];
            far.receive_all(&mut got, wait).unwrap();
            sender.join().unwrap();
            assert_eq!(got[..3], [1, 2, 3]);
            assert!(got[3..] == body[..]);
            // The sender is gone with its socket.
            let error = far.receive(&mut [0], wait).unwrap_err();
            assert!(error.to_string().contains("closed"), "{error}");
        }
    }
}
