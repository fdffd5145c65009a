//! Nodes: a name, the addresses of its port, and its counters.
//!
//! Place: functions belong to a node; the connection manager asks which node owns an address.
//! Invariants: nodes are numbered from 0 and never go away. A node's aliases exist for that node alone: nobody else reaches them.

use std::net::Ipv4Addr;

use ring_proto::ids::NodeId;

use super::counters::Counters;
use super::limits::Limits;

/// One node of the cluster.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) addresses: Vec<Ipv4Addr>,
    /// What its programs call localhost, as scoped addresses.
    aliases: Vec<Ipv4Addr>,
    /// Cumulative counters; gauges stay 0 here.
    pub(crate) counters: Counters,
    pub(crate) is_port_up: bool,
    /// Of its own.
    pub(crate) limits: Limits,
}

/// A node as outsiders see it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeInfo {
    /// Number.
    pub id: NodeId,
    /// Name.
    pub name: String,
    /// Addresses of its port.
    pub addresses: Vec<Ipv4Addr>,
}

/// All nodes.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    all: Vec<Node>,
    ports_down: usize,
}

impl Nodes {
    pub(crate) fn add(&mut self, name: &str, addresses: &[Ipv4Addr]) -> NodeId {
        let id = u16::try_from(self.all.len()).expect("a cluster has fewer than 65536 nodes");
        self.all.push(Node {
            name: name.to_owned(),
            addresses: addresses.to_vec(),
            aliases: Vec::new(),
            counters: Counters::default(),
            is_port_up: true,
            limits: Limits::default(),
        });
        NodeId(id)
    }

    pub(crate) fn find(&self, id: NodeId) -> Option<&Node> {
        self.all.get(usize::from(id.0))
    }

    pub(crate) fn set_limits(&mut self, id: NodeId, limits: Limits) {
        if let Some(node) = self.all.get_mut(usize::from(id.0)) {
            node.limits = limits;
        }
    }

    /// Takes a port up or down; whether that changed something, or `None` without such a node.
    pub(crate) fn set_port(&mut self, id: NodeId, is_up: bool) -> Option<bool> {
        let node = self.all.get_mut(usize::from(id.0))?;
        let is_news = node.is_port_up != is_up;
        node.is_port_up = is_up;
        self.ports_down = self.all.iter().filter(|node| !node.is_port_up).count();
        Some(is_news)
    }

    #[inline]
    pub(crate) fn some_port_is_down(&self) -> bool {
        self.ports_down != 0
    }

    pub(crate) fn is_port_up(&self, id: NodeId) -> bool {
        self.find(id).is_some_and(|node| node.is_port_up)
    }

    /// Gives a node an address that exists for it alone.
    pub(crate) fn add_alias(&mut self, id: NodeId, alias: Ipv4Addr) {
        if let Some(node) = self.all.get_mut(usize::from(id.0)) {
            node.aliases.push(alias);
        }
    }

    /// Whether an address is one of the node's aliases.
    pub(crate) fn is_alias(&self, id: NodeId, address: Ipv4Addr) -> bool {
        self.find(id)
            .is_some_and(|node| node.aliases.contains(&address))
    }

    /// Whether functions of a node may call an address their own.
    pub(crate) fn is_own(&self, id: NodeId, address: Ipv4Addr) -> bool {
        self.owner(address) == Some(id) || self.is_alias(id, address)
    }

    /// The node that `from` reaches at an address: its owner, or `from` itself at an alias.
    pub(crate) fn reached(&self, from: NodeId, address: Ipv4Addr) -> Option<NodeId> {
        if self.is_alias(from, address) {
            return Some(from);
        }
        self.owner(address)
    }

    /// The node whose port owns an address.
    pub(crate) fn owner(&self, address: Ipv4Addr) -> Option<NodeId> {
        self.ids()
            .zip(&self.all)
            .find(|(_, node)| node.addresses.contains(&address))
            .map(|(id, _)| id)
    }

    /// Counters to add to.
    #[inline]
    pub(crate) fn counters(&mut self, id: NodeId) -> &mut Counters {
        &mut self
            .all
            .get_mut(usize::from(id.0))
            .expect("functions name nodes that exist, and nodes never go away")
            .counters
    }

    /// Notes a caught panic; one that names no node counts at the first.
    pub(crate) fn panicked(&mut self, id: Option<NodeId>) {
        let index = id.map_or(0, |id| usize::from(id.0));
        if let Some(node) = self.all.get_mut(index) {
            node.counters.panics += 1;
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.ids().zip(&self.all)
    }

    fn ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..=u16::MAX).map(NodeId)
    }
}
