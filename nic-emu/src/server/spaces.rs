//! What namespace mode adds to a node: its interface on the wire, and the namespaces that its programs enter.
//!
//! Place: the command line makes them, with the privileges that takes, before the server starts; the server carries the frames and gives the
//! namespaces to `sanlab run`, by the control request NAMESPACES. Invariants: the descriptors are all that holds the namespaces and
//! interfaces, so they go with the process, however it ends, once no program is in them.
//! Source: namespaces(7), tuntap.txt of the kernel's documentation. Leaves out: making and entering them.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

/// A node of namespace mode.
#[derive(Debug)]
pub struct NodeSpace {
    /// The TAP device that is its interface: read and written as whole Ethernet frames.
    pub tap: OwnedFd,
    /// Its namespaces, in the order in which a program enters them.
    pub namespaces: Vec<Namespace>,
}

/// A namespace that is held by a descriptor.
#[derive(Debug)]
pub struct Namespace {
    /// What it isolates.
    pub kind: NamespaceKind,
    /// Descriptor of it, for setns.
    pub fd: OwnedFd,
}

/// What a namespace isolates.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NamespaceKind {
    /// Users and capabilities: only where the others could not be made without.
    User,
    /// Mounts: the node's /etc/hosts.
    Mount,
    /// The host name.
    Uts,
    /// Interfaces, addresses, ports.
    Network,
}
