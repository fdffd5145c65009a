//! A cluster inside the caller's process: named nodes, virtual time, a seed.
//!
//! Place: tests, examples and driver authors build one by [`Cluster::embedded`] and attach drivers to it; below it is the same device as
//! in the emulator process. Invariants: with virtual time (the default) nothing happens between two calls, and the same calls with the
//! same seed give the same completions and events at the same times. Source: ours. Leaves out: sockets and processes, which are
//! [`crate::server`]'s.
//!
//! Two nodes, a function on each, and time that passes only when told to:
//!
//! ```
//! use std::time::Duration;
//! use nic_emu::Cluster;
//! use ring_proto::{attach::Attachment, regs};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let cluster = Cluster::embedded().node("a").node("b").seed(7).build()?;
//! let (a, b) = (cluster.attach("a")?, cluster.attach("b")?);
//! assert_eq!(a.read_register(regs::MAGIC, 4)?, u64::from(regs::MAGIC_VALUE));
//! assert_ne!(a.function(), b.function());
//!
//! assert_eq!(cluster.now(), Duration::ZERO);
//! cluster.advance(Duration::from_millis(3));
//! assert_eq!(b.read_register(regs::CLOCK_NS, 8)?, 3_000_000);
//! # Ok(())
//! # }
//! ```
//!
//! Any driver that takes an [`Attachment`](ring_proto::attach::Attachment) runs on it; `examples/embedded.rs` does so with the crate
//! `driver`, a queue pair and an RDMA WRITE.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use ring_proto::ids::NodeId;

use crate::device::{
    BacklogFull, Counters, Device, DeviceError, DeviceOptions, LinkParameters, LinkTrace,
};
use crate::embedded::{Embedded, EmbeddedDevice};

/// Most nodes whose addresses are given by number.
const NODE_LIMIT: usize = 253;

/// Why a cluster could not be built, or a node not be attached to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClusterError {
    /// No node has this name.
    #[error("no node is called {name:?}")]
    NoNode {
        /// Name asked for.
        name: String,
    },
    /// Two nodes have this name.
    #[error("two nodes are called {name:?}")]
    SameName {
        /// The name.
        name: String,
    },
    /// Two nodes have this address.
    #[error("two nodes have the address {address}")]
    SameAddress {
        /// The address.
        address: Ipv4Addr,
    },
    /// A cluster has at least one node.
    #[error("a cluster needs a node")]
    Empty,
    /// More nodes than 127.77.0.0/24 has addresses.
    #[error("at most {NODE_LIMIT} nodes get addresses by number; name them with `node_at`")]
    TooMany,
    /// The device refused.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// What a cluster is to be; see [`Cluster::embedded`].
#[derive(Clone, Debug)]
#[must_use = "nothing exists before `build`"]
pub struct Builder {
    nodes: Vec<(String, Option<Vec<Ipv4Addr>>)>,
    options: DeviceOptions,
}

impl Builder {
    /// Adds a node. The k-th one has the address 127.77.0.k, as in the loopback mode of a cluster of processes.
    pub fn node(mut self, name: &str) -> Self {
        self.nodes.push((name.to_owned(), None));
        self
    }

    /// Adds a node with these addresses, or with none.
    pub fn node_at(mut self, name: &str, addresses: &[Ipv4Addr]) -> Self {
        self.nodes.push((name.to_owned(), Some(addresses.to_vec())));
        self
    }

    /// Sets what numbers are drawn: what links do to packets, first key tags, the device's cookie. 0 unless given.
    pub fn seed(mut self, seed: u64) -> Self {
        self.options.seed = seed;
        self
    }

    /// Lets the machine's clock run in place of the virtual one.
    pub fn real_time(mut self) -> Self {
        self.options.virtual_time = false;
        self
    }

    /// What a connect meets at a full backlog.
    pub fn backlog_full(mut self, what: BacklogFull) -> Self {
        self.options.backlog_full = what;
        self
    }

    /// Watches for what a driver does wrong although a NIC might let it pass.
    pub fn validate(mut self) -> Self {
        self.options.validate = true;
        self
    }

    /// Makes the device and its nodes.
    ///
    /// # Errors
    /// [`ClusterError`] but for `NoNode`.
    pub fn build(self) -> Result<Cluster, ClusterError> {
        if self.nodes.is_empty() {
            return Err(ClusterError::Empty);
        }
        let seed = self.options.seed;
        let device = EmbeddedDevice::new(self.options);
        device.with(|device| device.seed_links(seed));
        let mut nodes = BTreeMap::new();
        let mut taken = Vec::new();
        for ((name, addresses), number) in self.nodes.into_iter().zip(1..) {
            let addresses = match addresses {
                Some(addresses) => addresses,
                None => vec![numbered(number)?],
            };
            for &address in &addresses {
                if taken.contains(&address) {
                    return Err(ClusterError::SameAddress { address });
                }
                taken.push(address);
            }
            if nodes.contains_key(&name) {
                return Err(ClusterError::SameName { name });
            }
            let id = device.add_node(&name, &addresses);
            nodes.insert(name, Node { id, addresses });
        }
        Ok(Cluster { device, nodes })
    }
}

/// Address of the `number`-th node, from 1.
fn numbered(number: usize) -> Result<Ipv4Addr, ClusterError> {
    match u8::try_from(number) {
        Ok(k) if number <= NODE_LIMIT => Ok(Ipv4Addr::new(127, 77, 0, k)),
        _ => Err(ClusterError::TooMany),
    }
}

#[derive(Clone, Debug)]
struct Node {
    id: NodeId,
    addresses: Vec<Ipv4Addr>,
}

/// A cluster in this process. Clones are the same cluster.
///
/// # Staleness
/// Work is done inside the calls of drivers: when a doorbell has rung, everything that it caused is done, on all nodes.
#[derive(Clone, Debug)]
pub struct Cluster {
    device: EmbeddedDevice,
    nodes: BTreeMap<String, Node>,
}

impl Cluster {
    /// A cluster inside the caller's process, in virtual time.
    pub fn embedded() -> Builder {
        Builder {
            nodes: Vec::new(),
            options: DeviceOptions {
                virtual_time: true,
                ..DeviceOptions::default()
            },
        }
    }

    fn node(&self, name: &str) -> Result<&Node, ClusterError> {
        self.nodes.get(name).ok_or_else(|| ClusterError::NoNode {
            name: name.to_owned(),
        })
    }

    /// Attaches a new function to a node; dropping it is the client's hang-up.
    ///
    /// # Errors
    /// [`ClusterError::NoNode`], [`ClusterError::Device`].
    pub fn attach(&self, node: &str) -> Result<Embedded, ClusterError> {
        Ok(self.device.attach(self.node(node)?.id)?)
    }

    /// First address of a node; `None` when it has none.
    ///
    /// # Errors
    /// [`ClusterError::NoNode`].
    pub fn address(&self, node: &str) -> Result<Option<Ipv4Addr>, ClusterError> {
        Ok(self.node(node)?.addresses.first().copied())
    }

    /// Number of a node, for calls of the device.
    ///
    /// # Errors
    /// [`ClusterError::NoNode`].
    pub fn node_id(&self, node: &str) -> Result<NodeId, ClusterError> {
        Ok(self.node(node)?.id)
    }

    /// Time of the cluster's clock since it was made.
    #[must_use]
    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.device.with(|device| device.now_ns()))
    }

    /// Moves the virtual clock and does what became due on the way, each thing at its own time. With real time it only does what is due.
    pub fn advance(&self, by: Duration) {
        let until = self.now().saturating_add(by);
        // Retries set the next timer when one ran out: a single step would fire them all at its end.
        while self.next_timer().is_some_and(|at| at <= until) {
            if !self.advance_to_next_timer() {
                break;
            }
        }
        let left = until.saturating_sub(self.now());
        self.device.advance(nanoseconds(left));
    }

    /// When the next timer runs out: a retry, a limit, the end of an orphan. `None` when none is set.
    #[must_use]
    pub fn next_timer(&self) -> Option<Duration> {
        let next = self.device.with(|device| device.pump().next_timer_ns);
        next.map(Duration::from_nanos)
    }

    /// Moves the virtual clock to the next timer and does what it says; false when none is set, or the clock is the machine's.
    pub fn advance_to_next_timer(&self) -> bool {
        let Some(at) = self.next_timer() else {
            return false;
        };
        let before = self.now();
        self.device.advance(nanoseconds(at.saturating_sub(before)));
        self.now() >= at
    }

    /// Sets how packets from one node to another fare; the other direction has parameters of its own.
    ///
    /// # Errors
    /// [`ClusterError::NoNode`]; [`ClusterError::Device`] for parts per million above a million.
    pub fn set_link(
        &self,
        from: &str,
        to: &str,
        parameters: LinkParameters,
    ) -> Result<(), ClusterError> {
        let (from, to) = (self.node(from)?.id, self.node(to)?.id);
        self.device
            .with(|device| device.set_link(from, to, parameters))?;
        Ok(())
    }

    /// What all links together did so far, in one number: equal for equal runs.
    #[must_use]
    pub fn link_trace(&self) -> LinkTrace {
        self.device.with(|device| device.link_trace())
    }

    /// Counters of a node.
    ///
    /// # Errors
    /// [`ClusterError::NoNode`].
    pub fn counters(&self, node: &str) -> Result<Counters, ClusterError> {
        let id = self.node(node)?.id;
        let all = self.device.with(|device| device.node_counters());
        let own = all.into_iter().find(|of| of.node == id);
        Ok(own.map_or_else(Counters::default, |of| of.counters))
    }

    /// Runs `work` on the device itself, then does everything that it caused.
    pub fn with<R>(&self, work: impl FnOnce(&mut Device) -> R) -> R {
        self.device.with(work)
    }

    /// The device below.
    #[must_use]
    pub fn device(&self) -> &EmbeddedDevice {
        &self.device
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use ring_proto::attach::Attachment;
    use ring_proto::regs;

    use super::*;

    #[test]
    fn nodes_have_names_and_addresses() {
        let far = Ipv4Addr::new(10, 1, 2, 3);
        let cluster = Cluster::embedded()
            .node("a")
            .node_at("b", &[far])
            .node_at("mute", &[])
            .node("d")
            .build()
            .unwrap();
        let address = |name| cluster.address(name).unwrap();
        assert_eq!(address("a"), Some(Ipv4Addr::new(127, 77, 0, 1)));
        assert_eq!((address("b"), address("mute")), (Some(far), None));
        assert_eq!(address("d"), Some(Ipv4Addr::new(127, 77, 0, 4)));
        let a = cluster.attach("a").unwrap();
        let id = cluster.node_id("d").unwrap();
        assert_eq!(a.read_register(regs::NODE, 4), Ok(0));
        assert_eq!(u64::from(id.0), 3);
        assert_eq!(cluster.counters("a").unwrap().functions, 1);
        drop(a);
        assert_eq!(cluster.counters("a").unwrap().functions, 0);
    }

    #[test]
    fn impossible_clusters_are_named() {
        let text = |builder: Builder| builder.build().unwrap_err().to_string();
        assert!(text(Cluster::embedded()).contains("needs a node"));
        assert!(text(Cluster::embedded().node("a").node("a")).contains("\"a\""));
        let one = [Ipv4Addr::new(127, 77, 0, 1)];
        let twice = Cluster::embedded().node("a").node_at("b", &one);
        assert!(text(twice).contains("127.77.0.1"));
        let many = (0..254).fold(Cluster::embedded(), |all, n| all.node(&format!("n{n}")));
        assert!(text(many).contains("253"));
        let cluster = Cluster::embedded().node("a").build().unwrap();
        let error = cluster.attach("b").unwrap_err();
        assert!(matches!(error, ClusterError::NoNode { name } if name == "b"));
    }

    #[test]
    fn the_virtual_clock_moves_when_told_to() {
        let cluster = Cluster::embedded().node("a").build().unwrap();
        assert_eq!(
            (cluster.now(), cluster.next_timer()),
            (Duration::ZERO, None)
        );
        assert!(!cluster.advance_to_next_timer());
        cluster.advance(Duration::from_secs(5));
        assert_eq!(cluster.now(), Duration::from_secs(5));
        let real = Cluster::embedded().real_time().node("a").build().unwrap();
        real.advance(Duration::from_secs(3600));
        assert!(real.now() < Duration::from_secs(3600));
    }

    #[test]
    fn links_have_names_too() {
        let cluster = Cluster::embedded().node("a").node("b").build().unwrap();
        let slow = LinkParameters {
            latency_ns: 1000,
            ..LinkParameters::default()
        };
        cluster.set_link("a", "b", slow).unwrap();
        let (a, b) = (cluster.node_id("a").unwrap(), cluster.node_id("b").unwrap());
        assert_eq!(cluster.with(|device| device.link(a, b)), slow);
        assert!(cluster.set_link("a", "c", slow).is_err());
        let impossible = LinkParameters {
            loss_ppm: 1_000_001,
            ..slow
        };
        let refused = cluster.set_link("a", "b", impossible);
        assert!(matches!(refused, Err(ClusterError::Device(_))));
    }

    #[test]
    fn the_seed_decides_the_cookie() {
        let cookie = |seed| {
            let cluster = Cluster::embedded().seed(seed).node("a").build().unwrap();
            cluster.with(|device| device.cookie)
        };
        assert_eq!(cookie(7), cookie(7));
        assert_ne!(cookie(7), cookie(8));
    }
}
