//! What a cluster consists of: its name, its run directory, its nodes.
//!
//! Place: the command line makes one and hands it to [`super::serve`]. Invariants: names are safe in paths and unique, addresses are
//! unique; checked by [`ClusterConfig::check`] before anything is touched.
//! Source: ours (docs/cluster.md). Leaves out: parsing of cluster files, which is the command line's.

use std::collections::HashSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::ServeError;
use crate::device::{self, Limits, LinkChange, PauseOn};

/// Most nodes of a cluster: what a /24 of node addresses has room for.
pub const NODE_LIMIT: usize = 253;
/// Longest node or cluster name in bytes.
const NAME_LIMIT: usize = 64;

/// A cluster to serve.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClusterConfig {
    /// Name of the cluster.
    pub name: String,
    /// Directory for `control.sock` and the nodes' device sockets; made with mode 0700 when it does not exist.
    pub dir: PathBuf,
    /// Nodes, in the order of their numbers.
    pub nodes: Vec<NodeSpec>,
    /// C of the cluster's subnet 127.77.C.0/24, in loopback mode.
    #[serde(default)]
    pub subnet: Option<u8>,
    /// Whether listeners on the wildcard address are on the SAN too.
    #[serde(default = "yes")]
    pub wildcard_on_san: bool,
    /// What a connect meets at a full backlog.
    #[serde(default)]
    pub backlog_full: BacklogFull,
    /// Time a connect gets on the SAN before TCP is tried; the switch's own when absent.
    #[serde(default)]
    pub san_connect_limit_ms: Option<u64>,
    /// Road of a node's connections to itself.
    #[serde(default)]
    pub loopback: Loopback,
    /// What helps to find faults in drivers.
    #[serde(default)]
    pub debug: DebugConfig,
    /// Links, events and the seed of what is drawn.
    #[serde(default)]
    pub lab: LabConfig,
}

/// Trouble that a cluster is made with, and that comes by the clock.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct LabConfig {
    /// Decides what links and fault rules draw.
    #[serde(default)]
    pub seed: u64,
    /// How links differ from perfect ones at the start.
    #[serde(default)]
    pub links: Vec<LinkSpec>,
    /// What changes later, in the order of the times.
    #[serde(default)]
    pub events: Vec<EventSpec>,
    /// What becomes of traffic between nodes that links cannot govern.
    #[serde(default)]
    pub ungoverned: UngovernedPolicy,
}

/// What becomes of traffic between nodes that links cannot govern.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UngovernedPolicy {
    /// There is none: the emulator is the wire.
    Nothing,
    /// It goes its way, and is told.
    #[default]
    Warn,
    /// Programs do not start, datagrams meet ENETUNREACH.
    Refuse,
}

impl UngovernedPolicy {
    /// Whether it is what clusters do unless told otherwise.
    #[must_use]
    pub fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

/// A change of one direction of a link.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LinkSpec {
    /// Node that packets come from.
    pub from: String,
    /// Node that they go to.
    pub to: String,
    /// What is not as it was.
    pub change: LinkChange,
}

/// Something that happens by the clock.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EventSpec {
    /// Time since the cluster accepts programs.
    pub at_ns: u64,
    /// What.
    pub what: Trouble,
}

/// What an [`EventSpec`] does.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trouble {
    /// Directions of links change.
    Link {
        /// Each of them.
        links: Vec<LinkSpec>,
    },
    /// A port goes down or comes up.
    Port {
        /// Its node.
        node: String,
        /// Up or down.
        up: bool,
    },
    /// Every cut is mended.
    Heal,
}

/// What helps to find faults in drivers (docs/validation.md).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct DebugConfig {
    /// The validation layer is on.
    #[serde(default)]
    pub validate: bool,
    /// The engine stands still when this happens.
    #[serde(default)]
    pub pause_on: Option<PauseOn>,
    /// The device's time moves by the request ADVANCE alone.
    #[serde(default)]
    pub virtual_time: bool,
}

/// A node to serve.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeSpec {
    /// Name.
    pub name: String,
    /// Addresses of its NIC; a node may have none.
    #[serde(default)]
    pub addresses: Vec<NodeAddress>,
    /// How much its functions may have together, where it has limits of its own.
    #[serde(default, skip_serializing_if = "Limits::is_empty")]
    pub limits: Limits,
}

/// See [`device::BacklogFull`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BacklogFull {
    /// The request waits up to its limit.
    #[default]
    Hold,
    /// The request is refused at once.
    Refuse,
}

/// Road of a node's connections to itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Loopback {
    /// Kernel TCP.
    #[default]
    Tcp,
    /// The node's NIC.
    San,
}

impl From<BacklogFull> for device::BacklogFull {
    fn from(from: BacklogFull) -> Self {
        match from {
            BacklogFull::Hold => Self::Hold,
            BacklogFull::Refuse => Self::Refuse,
        }
    }
}

/// Address with the length of its subnet's prefix, written `127.77.0.1/24`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeAddress {
    /// The address.
    pub ip: Ipv4Addr,
    /// Bits of the prefix.
    pub prefix: u8,
}

/// A text that is no [`NodeAddress`].
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is not an IPv4 address with a prefix length, such as 127.77.0.1/24")]
pub struct BadAddress(pub String);

impl FromStr for NodeAddress {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let bad = || BadAddress(text.to_owned());
        let (ip, prefix) = text.split_once('/').ok_or_else(bad)?;
        let ip = ip.parse().map_err(|_| bad())?;
        match prefix.parse() {
            Ok(prefix) if prefix <= 32 => Ok(Self { ip, prefix }),
            _ => Err(bad()),
        }
    }
}

impl TryFrom<String> for NodeAddress {
    type Error = BadAddress;

    fn try_from(text: String) -> Result<Self, BadAddress> {
        text.parse()
    }
}

impl From<NodeAddress> for String {
    fn from(from: NodeAddress) -> Self {
        from.to_string()
    }
}

impl fmt::Display for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

impl ClusterConfig {
    /// Checks names and addresses; touches nothing.
    ///
    /// # Errors
    /// [`ServeError::Config`] with the name or address at fault.
    pub fn check(&self) -> Result<(), ServeError> {
        let refuse = |problem: String| {
            Err(ServeError::Config {
                cluster: self.name.clone(),
                problem,
            })
        };
        if !is_name(&self.name) {
            return refuse(format!("{:?} is not a name: {NAME_RULE}", self.name));
        }
        if self.nodes.is_empty() || self.nodes.len() > NODE_LIMIT {
            return refuse(format!(
                "{} nodes; a cluster has 1 to {NODE_LIMIT}",
                self.nodes.len()
            ));
        }
        let mut names = HashSet::new();
        let mut addresses = HashSet::new();
        for node in &self.nodes {
            if !is_name(&node.name) {
                return refuse(format!("{:?} is not a node name: {NAME_RULE}", node.name));
            }
            if !names.insert(&node.name) {
                return refuse(format!("two nodes are called {}", node.name));
            }
            for address in &node.addresses {
                if !addresses.insert(address.ip) {
                    return refuse(format!("address {} is given twice", address.ip));
                }
            }
        }
        Ok(())
    }
}

const NAME_RULE: &str = "1 to 64 letters, digits, '-' and '_', not starting with '-'";

fn is_name(name: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    (1..=NAME_LIMIT).contains(&name.len()) && name.bytes().all(word) && !name.starts_with('-')
}

fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(nodes: &[(&str, &str)]) -> ClusterConfig {
        ClusterConfig {
            name: "c".into(),
            dir: "/nowhere".into(),
            nodes: nodes
                .iter()
                .map(|(name, address)| NodeSpec {
                    name: (*name).into(),
                    addresses: vec![address.parse().unwrap()],
                    limits: Limits::default(),
                })
                .collect(),
            subnet: Some(0),
            wildcard_on_san: true,
            backlog_full: BacklogFull::Hold,
            san_connect_limit_ms: None,
            loopback: Loopback::Tcp,
            debug: DebugConfig::default(),
            lab: LabConfig::default(),
        }
    }

    #[test]
    fn sound_clusters_pass_and_survive_json() {
        let config = cluster(&[("a", "127.77.0.1/24"), ("b", "127.77.0.2/24")]);
        config.check().unwrap();
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(
            serde_json::from_str::<ClusterConfig>(&text).unwrap(),
            config
        );
        let text = r#"{"name":"c","dir":"/d","nodes":[{"name":"a"}],"backlog_full":"refuse"}"#;
        let config: ClusterConfig = serde_json::from_str(text).unwrap();
        assert_eq!(config.backlog_full, BacklogFull::Refuse);
        assert!(config.wildcard_on_san && config.subnet.is_none());
    }

    #[test]
    fn bad_names_and_duplicates_are_named() {
        let a = "127.77.0.1/24";
        for (nodes, word) in [
            (vec![], "0 nodes"),
            (vec![("..", a)], ".."),
            (vec![("a/b", a)], "a/b"),
            (vec![("", a)], "node name"),
            (vec![("a", a), ("a", "127.77.0.2/24")], "called a"),
            (vec![("a", a), ("b", "127.77.0.1/16")], "127.77.0.1"),
        ] {
            let error = cluster(&nodes).check().unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn addresses_need_a_prefix() {
        for text in ["127.77.0.1", "127.77.0.1/33", "x/24", "127.77.0.1/", ""] {
            assert!(text.parse::<NodeAddress>().is_err(), "{text}");
        }
        let address: NodeAddress = "10.0.0.1/8".parse().unwrap();
        assert_eq!(address.to_string(), "10.0.0.1/8");
    }
}
