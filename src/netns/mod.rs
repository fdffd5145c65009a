//! Namespace mode: a network, mount and host-name namespace per node, with the emulator as the wire between them.
//!
//! Place: the emulator process calls [`make`] before it serves and gives what it gets to `nic_emu::server`; `run` calls [`enter`] before it
//! becomes the program.
//! Invariants: the emulator itself never has a privilege more than its caller: a short-lived helper makes the namespaces and interfaces and
//! hands over descriptors. These are all that holds them, so nothing is left behind however the emulator ends. As root the helper stays in
//! the caller's user namespace; without root it makes one that knows the caller's user alone.
//! Source: namespaces(7), user_namespaces(7), tuntap.txt. Leaves out: process ids and files, which the nodes share with the host.

mod enter;
mod helper;
mod interface;
mod netlink;
mod publish;
mod tap;

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use nic_emu::server::{Namespace, NamespaceKind, NodeSpace, NodeSpec};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::{Deserialize, Serialize};

use crate::emulator::own_binary;

pub(crate) use enter::enter;
pub(crate) use helper::{help, remedy, tun_remedy};
pub(crate) use publish::{Proxies, serve as serve_published, start as publish};

/// Name of the interface of a node.
const INTERFACE: &str = "eth0";
/// Longest message between helper and emulator: the names and addresses of all nodes.
const MESSAGE_LIMIT: usize = 128 << 10;
/// Descriptors of one node, at most.
const FD_LIMIT: usize = 8;

/// What the helper is asked for.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    nodes: Vec<NodeSpec>,
    /// MTU of each node's interface.
    mtus: Vec<u32>,
    /// The nodes' /etc/hosts.
    hosts: PathBuf,
}

/// What it answers for each node, with the TAP and the namespaces.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Made { kinds: Vec<NamespaceKind> },
    Failed { error: String },
}

/// Makes the namespaces and interfaces of a cluster's nodes.
pub(crate) fn make(
    nodes: &[NodeSpec],
    mtus: Vec<u32>,
    directory: &Path,
) -> anyhow::Result<Vec<NodeSpace>> {
    // Each node costs five descriptors. The server asks for the same.
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // Where it is refused, the limit says so below.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    let hosts = directory.join("hosts");
    std::fs::write(&hosts, hosts_text(nodes))
        .with_context(|| format!("cannot write {}", hosts.display()))?;
    order(&Order {
        nodes: nodes.to_vec(),
        mtus,
        hosts,
    })
}

/// Makes a node and lets it go, to see whether this machine allows it; whether it takes a user namespace.
pub(crate) fn probe() -> anyhow::Result<bool> {
    let spaces = order(&Order {
        nodes: vec![NodeSpec {
            name: "probe".to_owned(),
            addresses: Vec::new(),
            limits: nic_emu::device::Limits::default(),
        }],
        mtus: vec![1500],
        hosts: PathBuf::from("/etc/hosts"),
    })?;
    let mut kinds = spaces.iter().flat_map(|space| &space.namespaces);
    Ok(kinds.any(|namespace| namespace.kind == NamespaceKind::User))
}

/// Has the helper make what is ordered.
fn order(order: &Order) -> anyhow::Result<Vec<NodeSpace>> {
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .context("cannot make a socket pair")?;
    let mut helper = Command::new(own_binary()?)
        .arg("__netns")
        .stdin(Stdio::from(theirs))
        // Standard output is the parent's, for one line of the emulator's own.
        .stdout(Stdio::null())
        .spawn()
        .context("cannot start the helper that makes namespaces")?;
    let made = converse(&ours, order);
    drop(ours);
    helper
        .wait()
        .context("cannot wait for the helper that makes namespaces")?;
    made
}

fn converse(socket: &OwnedFd, order: &Order) -> anyhow::Result<Vec<NodeSpace>> {
    send(socket, order, &[]).context("cannot talk to the helper that makes namespaces")?;
    let mut spaces = Vec::new();
    for node in &order.nodes {
        let (answer, fds) = receive::<Answer>(socket)
            .with_context(|| format!("cannot make the namespaces of node {}", node.name))?;
        let kinds = match answer {
            Answer::Made { kinds } => kinds,
            Answer::Failed { error } => bail!("{error}"),
        };
        let mut fds = fds.into_iter();
        let tap = fds.next().context("the helper sent no interface")?;
        let namespaces = kinds.into_iter().zip(fds);
        spaces.push(NodeSpace {
            tap,
            namespaces: namespaces
                .map(|(kind, fd)| Namespace { kind, fd })
                .collect(),
        });
    }
    Ok(spaces)
}

/// /etc/hosts of every node: itself as localhost, and all nodes by their first address.
fn hosts_text(nodes: &[NodeSpec]) -> String {
    let mut text = String::from("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n");
    for node in nodes {
        if let Some(address) = node.addresses.first() {
            text.push_str(&format!("{} {}\n", address.ip, node.name));
        }
    }
    text
}

fn send(socket: impl AsFd, message: &impl Serialize, fds: &[&OwnedFd]) -> anyhow::Result<()> {
    let text = serde_json::to_vec(message).context("cannot encode a message")?;
    let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FD_LIMIT))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        bail!("{} descriptors are too many for a message", fds.len());
    }
    let flags = SendFlags::NOSIGNAL;
    rustix::net::sendmsg(socket, &[IoSlice::new(&text)], &mut control, flags)?;
    Ok(())
}

fn receive<T: serde::de::DeserializeOwned>(socket: impl AsFd) -> anyhow::Result<(T, Vec<OwnedFd>)> {
    let mut text = vec![0; MESSAGE_LIMIT];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FD_LIMIT))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut text)],
        &mut control,
        flags,
    )?;
    let fds = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    if received.bytes == 0 {
        bail!("the helper ended without a word");
    }
    let message = serde_json::from_slice(&text[..received.bytes]);
    Ok((message.context("not understood")?, fds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_name_every_node_that_has_an_address() {
        let node = |name: &str, address: &str| NodeSpec {
            name: name.to_owned(),
            addresses: address.parse().into_iter().collect(),
            limits: nic_emu::device::Limits::default(),
        };
        let text = hosts_text(&[node("a", "10.77.0.1/24"), node("b", "")]);
        assert!(text.contains("127.0.0.1 localhost\n"), "{text}");
        assert!(text.ends_with("10.77.0.1 a\n"), "{text}");
    }

    #[test]
    fn messages_carry_descriptors() {
        let (a, b) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let kinds = vec![NamespaceKind::Network];
        let null = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        send(&a, &Answer::Made { kinds }, &[&null, &null]).unwrap();
        let (answer, fds) = receive::<Answer>(&b).unwrap();
        assert!(matches!(answer, Answer::Made { kinds } if kinds == [NamespaceKind::Network]));
        assert_eq!(fds.len(), 2);
        drop(a);
        let error = receive::<Answer>(&b).unwrap_err().to_string();
        assert!(error.contains("without a word"), "{error}");
    }
}
