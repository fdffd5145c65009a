//! Blocking client of the control socket.
//!
//! Place: `sanlab` commands. Invariants: one connection a call; a reply that does not come within `TIMEOUT` is an error, so that a
//! stopped emulator hangs nobody. Source: ours.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{
    CaptureReply, ChannelReply, Clock, Done, Engine, FaultAdded, Faults, FaultsRemoved, Healed,
    Inspected, Links, Namespaces, NodeConfig, Note, Pong, Recorded, Refusal, Request, Stat,
};
use crate::capture::Reader;
use crate::device::{LinkChange, LinkParameters, Topic};
use crate::server::Namespace;
use crate::server::fd_pass::{self, Wait};

/// How long a single wait for the emulator lasts.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Most descriptors of a reply: the namespaces of a node.
const FD_LIMIT: usize = 8;
/// Longest reply: a `stat` of very many connections.
const REPLY_LIMIT: usize = 1 << 28;

/// Why a control request failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// Nobody serves the socket.
    #[error("no emulator serves {path}")]
    NotRunning {
        /// The socket.
        path: PathBuf,
    },
    /// The emulator refused.
    #[error("{0}")]
    Refused(String),
    /// The emulator did not answer in time.
    #[error("the emulator at {path} does not answer")]
    Silent {
        /// The socket.
        path: PathBuf,
    },
    /// The emulator ended while it answered.
    #[error("the emulator at {path} ended the connection without an answer")]
    Ended {
        /// The socket.
        path: PathBuf,
    },
    /// The answer is not what was asked for: another version, most likely.
    #[error("the emulator at {path} answered something unknown: {detail}")]
    BadReply {
        /// The socket.
        path: PathBuf,
        /// What the parser says.
        detail: String,
    },
    /// A socket operation failed.
    #[error("cannot talk to {path}: {source}")]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Asks who serves the socket.
///
/// # Errors
/// [`ControlError`].
pub fn ping(socket: &Path) -> Result<Pong, ControlError> {
    ask(socket, &Request::Ping).map(|(reply, _)| reply)
}

/// Asks for counters, connections and totals.
///
/// # Errors
/// [`ControlError`].
pub fn stat(socket: &Path) -> Result<Stat, ControlError> {
    ask(socket, &Request::Stat).map(|(reply, _)| reply)
}

/// Asks for a cluster channel for a program of `node`. The descriptor is close-on-exec.
///
/// # Errors
/// [`ControlError`]; `Refused` for an unknown node.
pub fn channel(socket: &Path, node: &str) -> Result<(NodeConfig, OwnedFd), ControlError> {
    let request = Request::Channel {
        node: node.to_owned(),
    };
    let (reply, fds): (ChannelReply, _) = ask(socket, &request)?;
    let fd = fds.into_iter().next();
    let fd = fd.ok_or_else(|| ControlError::BadReply {
        path: socket.to_owned(),
        detail: "no descriptor".into(),
    })?;
    Ok((reply.config, fd))
}

/// Asks for the namespaces of `node`, in the order in which a program enters them: none in loopback mode. The descriptors are close-on-exec.
///
/// # Errors
/// [`ControlError`]; `Refused` for an unknown node.
pub fn namespaces(socket: &Path, node: &str) -> Result<Vec<Namespace>, ControlError> {
    let request = Request::Namespaces {
        node: node.to_owned(),
    };
    let (reply, fds): (Namespaces, _) = ask(socket, &request)?;
    if reply.kinds.len() != fds.len() {
        return Err(ControlError::BadReply {
            path: socket.to_owned(),
            detail: format!("{} descriptors for {:?}", fds.len(), reply.kinds),
        });
    }
    let pairs = reply.kinds.into_iter().zip(fds);
    Ok(pairs.map(|(kind, fd)| Namespace { kind, fd }).collect())
}

/// Reports a program that runs without the preload library.
///
/// # Errors
/// [`ControlError`]; `Refused` for an unknown node or reason.
pub fn note(socket: &Path, note: Note) -> Result<(), ControlError> {
    ask(socket, &Request::Note(note)).map(|(Done { .. }, _)| ())
}

/// Sets how packets from one node to another are treated.
///
/// # Errors
/// [`ControlError`]; `Refused` for nodes that do not exist and impossible parameters.
pub fn link(
    socket: &Path,
    from: &str,
    to: &str,
    parameters: LinkParameters,
) -> Result<(), ControlError> {
    let request = Request::Link {
        from: from.to_owned(),
        to: to.to_owned(),
        parameters,
    };
    ask(socket, &request).map(|(Done { .. }, _)| ())
}

/// Changes some parameters of the packets from one node to another, or of both directions.
///
/// # Errors
/// [`ControlError`]; `Refused` for nodes that do not exist and impossible values.
pub fn change_link(
    socket: &Path,
    (from, to): (&str, &str),
    both: bool,
    change: LinkChange,
) -> Result<(), ControlError> {
    let change = match serde_json::to_value(change) {
        Ok(Value::Object(change)) => change,
        _ => Map::new(),
    };
    let request = Request::LinkChange {
        from: from.to_owned(),
        to: to.to_owned(),
        both,
        change,
    };
    ask(socket, &request).map(|(Done { .. }, _)| ())
}

/// Mends every cut direction; how many there were.
///
/// # Errors
/// [`ControlError`].
pub fn heal(socket: &Path) -> Result<usize, ControlError> {
    ask(socket, &Request::Heal).map(|(Healed { healed, .. }, _)| healed)
}

/// Asks how links treat packets, and for the ports.
///
/// # Errors
/// [`ControlError`].
pub fn links(socket: &Path) -> Result<Links, ControlError> {
    ask(socket, &Request::Links).map(|(reply, _)| reply)
}

/// Takes the port of a node down or up.
///
/// # Errors
/// [`ControlError`]; `Refused` for a node that does not exist.
pub fn port(socket: &Path, node: &str, up: bool) -> Result<(), ControlError> {
    let node = node.to_owned();
    ask(socket, &Request::Port { node, up }).map(|(Done { .. }, _)| ())
}

/// Adds a fault rule given by its fields; its number.
///
/// # Errors
/// [`ControlError`]; `Refused` names the field that is wrong.
pub fn add_fault(socket: &Path, rule: Map<String, Value>) -> Result<u32, ControlError> {
    ask(socket, &Request::FaultAdd { rule }).map(|(FaultAdded { id, .. }, _)| id)
}

/// Asks for the fault rules and what they did, or for one of them.
///
/// # Errors
/// [`ControlError`].
pub fn faults(socket: &Path, id: Option<u32>) -> Result<Faults, ControlError> {
    ask(socket, &Request::FaultLs { id }).map(|(reply, _)| reply)
}

/// Removes a fault rule, or all of them; how many.
///
/// # Errors
/// [`ControlError`]; `Refused` for a number that no rule has.
pub fn remove_fault(socket: &Path, id: Option<u32>) -> Result<usize, ControlError> {
    ask(socket, &Request::FaultRm { id }).map(|(FaultsRemoved { removed, .. }, _)| removed)
}

/// Lets virtual time pass; the device's time then.
///
/// # Errors
/// [`ControlError`]; `Refused` when the device's time is real or stands still.
pub fn advance(socket: &Path, ns: u64) -> Result<u64, ControlError> {
    ask(socket, &Request::Advance { ns }).map(|(Clock { now_ns, .. }, _)| now_ns)
}

/// Asks what the device consists of: some parts, or all when none is named.
///
/// # Errors
/// [`ControlError`].
pub fn inspect(socket: &Path, topics: &[Topic]) -> Result<Inspected, ControlError> {
    let topics = topics.to_vec();
    ask(socket, &Request::Inspect { topics }).map(|(reply, _)| reply)
}

/// Asks for the last events of all functions, or of one.
///
/// # Errors
/// [`ControlError`].
pub fn recorder(socket: &Path, function: Option<u32>) -> Result<Recorded, ControlError> {
    ask(socket, &Request::Recorder { function }).map(|(reply, _)| reply)
}

/// A capture under way.
#[derive(Debug)]
pub struct Captured {
    /// What the emulator says of it.
    pub reply: CaptureReply,
    /// What the nodes' NICs see.
    pub san: Reader,
    /// What their Ethernet interfaces see, in namespace mode.
    pub ethernet: Option<Reader>,
    /// Dropping it ends the capture; it hangs up when the emulator ends.
    pub lifeline: OwnedFd,
}

/// Starts a capture of the ports of `nodes`, or of all when none is named, of at most `snaplen` bytes of a packet, through a ring of about
/// `ring_bytes`.
///
/// # Errors
/// [`ControlError`]; `Refused` for unknown nodes, impossible sizes, and when too many captures run.
pub fn capture(
    socket: &Path,
    nodes: &[String],
    snaplen: u32,
    ring_bytes: u64,
) -> Result<Captured, ControlError> {
    let request = Request::Capture {
        nodes: nodes.to_vec(),
        snaplen,
        ring_bytes,
    };
    let (reply, fds): (CaptureReply, _) = ask(socket, &request)?;
    let bad = |detail: String| ControlError::BadReply {
        path: socket.to_owned(),
        detail,
    };
    let expected = 2 + usize::from(reply.ethernet);
    if fds.len() != expected {
        return Err(bad(format!(
            "{} descriptors instead of {expected}",
            fds.len()
        )));
    }
    let reader = |ring| Reader::new(ring, reply.ring).map_err(|error| bad(error.to_string()));
    let (san, ethernet) = (reader(&fds[0])?, fds.get(2).map(reader).transpose()?);
    let lifeline = fds.into_iter().nth(1);
    Ok(Captured {
        lifeline: lifeline.ok_or_else(|| bad("no connection".to_owned()))?,
        reply,
        san,
        ethernet,
    })
}

/// Makes the engine stand still.
///
/// # Errors
/// [`ControlError`].
pub fn pause(socket: &Path) -> Result<Engine, ControlError> {
    ask(socket, &Request::Pause).map(|(reply, _)| reply)
}

/// Lets an engine that stands still do one piece of work.
///
/// # Errors
/// [`ControlError`]; `Refused` when it does not stand still.
pub fn step(socket: &Path) -> Result<Engine, ControlError> {
    ask(socket, &Request::Step).map(|(reply, _)| reply)
}

/// Lets an engine that stands still go on.
///
/// # Errors
/// [`ControlError`]; `Refused` when it does not stand still.
pub fn resume(socket: &Path) -> Result<Engine, ControlError> {
    ask(socket, &Request::Continue).map(|(reply, _)| reply)
}

/// Ends the emulator. When it returns the end is under way, not over.
///
/// # Errors
/// [`ControlError`].
pub fn shutdown(socket: &Path) -> Result<(), ControlError> {
    ask(socket, &Request::Shutdown).map(|(Done { .. }, _)| ())
}

fn ask<T: DeserializeOwned>(
    path: &Path,
    request: &Request,
) -> Result<(T, Vec<OwnedFd>), ControlError> {
    let stream = UnixStream::connect(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ControlError::NotRunning {
            path: path.to_owned(),
        },
        _ => socket_error(path)(source),
    })?;
    for set in [UnixStream::set_read_timeout, UnixStream::set_write_timeout] {
        set(&stream, Some(TIMEOUT)).map_err(socket_error(path))?;
    }
    let mut line = serde_json::to_vec(request).expect("requests are made of strings and numbers");
    line.push(b'\n');
    send_all(&stream, &line).map_err(|errno| broken(path, errno))?;
    let (reply, fds) = receive_line(&stream, path)?;
    if let Ok(Refusal { ok: false, error }) = serde_json::from_slice(&reply) {
        return Err(ControlError::Refused(error));
    }
    let reply = serde_json::from_slice(&reply).map_err(|error| ControlError::BadReply {
        path: path.to_owned(),
        detail: error.to_string(),
    })?;
    Ok((reply, fds))
}

fn send_all(stream: &UnixStream, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        let sent = fd_pass::send(stream.as_fd(), bytes, &[], Wait::Yes)?;
        bytes = &bytes[sent..];
    }
    Ok(())
}

fn receive_line(stream: &UnixStream, path: &Path) -> Result<(Vec<u8>, Vec<OwnedFd>), ControlError> {
    let mut line = Vec::new();
    let mut fds = Vec::new();
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let received = fd_pass::receive(stream.as_fd(), &mut chunk, FD_LIMIT, Wait::Yes)
            .map_err(|errno| broken(path, errno))?;
        fds.extend(received.fds);
        let got = &chunk[..received.bytes];
        if let Some(end) = got.iter().position(|&b| b == b'\n') {
            line.extend_from_slice(&got[..end]);
            return Ok((line, fds));
        }
        if got.is_empty() || line.len() > REPLY_LIMIT {
            return Err(ControlError::Ended {
                path: path.to_owned(),
            });
        }
        line.extend_from_slice(got);
    }
}

fn broken(path: &Path, errno: Errno) -> ControlError {
    let path = path.to_owned();
    match errno {
        Errno::EAGAIN => ControlError::Silent { path },
        Errno::EPIPE | Errno::ECONNRESET => ControlError::Ended { path },
        errno => ControlError::Socket {
            path,
            source: errno.into(),
        },
    }
}

fn socket_error(path: &Path) -> impl Fn(io::Error) -> ControlError + '_ {
    move |source| ControlError::Socket {
        path: path.to_owned(),
        source,
    }
}
