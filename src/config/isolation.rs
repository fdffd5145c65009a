//! Keys of a cluster's isolation: what keeps its nodes apart, what happens to traffic that links cannot govern, ports that the host publishes.
//!
//! Place: `config` reads `[cluster] isolation`, `[cluster] ungoverned` and `[[node]] publish` through here. Invariants: parsing touches
//! nothing. Source: ours, docs/cluster.md; the words of `publish` are those of container tools.

use std::net::{Ipv4Addr, SocketAddrV4};

use nic_emu::server::{NodeAddress, UngovernedPolicy};
use serde::{Deserialize, Serialize};

use super::tree::{Entry, Value};
use super::{CLAIM_HOST, ClusterPlan, Fault, NodePlan, choice, fault, wrong_kind};

/// What keeps the nodes of a cluster apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Isolation {
    /// The switch: all nodes share the host's loopback interface.
    #[default]
    Loopback,
    /// Namespaces of the kernel, with the emulator as the wire between them.
    Netns,
}

impl Isolation {
    /// The words in a cluster file.
    pub(crate) const WORDS: [&'static str; 2] = ["loopback", "netns"];

    /// The word for it in a cluster file.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::Netns => "netns",
        }
    }

    /// Reads an address, and checks that a node can have it.
    pub(super) fn read_address(self, text: &str) -> Result<NodeAddress, String> {
        match self {
            Self::Loopback => read_loopback_address(text),
            Self::Netns => read_netns_address(text),
        }
    }
}

/// The words of `cluster.ungoverned`.
const UNGOVERNED: [&str; 2] = ["warn", "refuse"];

/// Reads `cluster.ungoverned`.
pub(super) fn read_ungoverned(entry: &Entry) -> Result<UngovernedPolicy, Fault> {
    Ok(match choice(entry, "cluster.ungoverned", &UNGOVERNED)? {
        "refuse" => UngovernedPolicy::Refuse,
        _ => UngovernedPolicy::Warn,
    })
}

/// The line of a cluster file for it, where it is not the usual.
pub(super) fn ungoverned_line(ungoverned: UngovernedPolicy) -> &'static str {
    match ungoverned {
        UngovernedPolicy::Refuse => "ungoverned = \"refuse\"\n",
        UngovernedPolicy::Warn | UngovernedPolicy::Nothing => "",
    }
}

/// A port of a node that the host's loopback interface, or another of its addresses, offers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Publish {
    /// Where the host listens.
    pub(crate) host: SocketAddrV4,
    /// Port of the node.
    pub(crate) port: u16,
}

impl Publish {
    /// Reads `127.0.0.1:8080:80` or `8080:80`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no published port; write it as \"127.0.0.1:8080:80\"");
        let parts: Vec<&str> = text.split(':').collect();
        let (ip, host, port) = match parts.as_slice() {
            [host, port] => ("127.0.0.1", host, port),
            [ip, host, port] => (*ip, host, port),
            _ => return Err(wrong()),
        };
        let ip: Ipv4Addr = ip.parse().map_err(|_| wrong())?;
        let number = |text: &str| text.parse::<u16>().ok().filter(|&port| port != 0);
        let (Some(host), Some(port)) = (number(host), number(port)) else {
            return Err(wrong());
        };
        Ok(Self {
            host: SocketAddrV4::new(ip, host),
            port,
        })
    }
}

impl std::fmt::Display for Publish {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Reads the published ports of a node.
pub(super) fn read_publish(
    entry: &Entry,
    path: &str,
    isolation: Isolation,
) -> Result<Vec<Publish>, Fault> {
    let wanted = "an array of published ports, as [\"127.0.0.1:8080:80\"]";
    let Value::Array(items) = &entry.node.value else {
        return wrong_kind(entry, path, wanted);
    };
    if isolation == Isolation::Loopback && !items.is_empty() {
        return fault(
            entry.line,
            format!(
                "{path}: ports are published with `isolation = \"netns\"` in `[cluster]`; without it the host reaches the nodes' addresses as they are"
            ),
        );
    }
    let mut all: Vec<Publish> = Vec::with_capacity(items.len());
    for item in items {
        let line = item.line.or(entry.line);
        let Value::Text(text) = &item.value else {
            return wrong_kind(entry, path, wanted);
        };
        match Publish::parse(text) {
            Ok(publish) if all.iter().any(|p| p.host == publish.host) => {
                return fault(line, format!("{path}: {} stands twice", publish.host));
            }
            Ok(publish) => all.push(publish),
            Err(message) => return fault(line, format!("{path}: {message}")),
        }
    }
    Ok(all)
}

/// MTU of an interface on a link that tells none: Ethernet's.
const ETHERNET_MTU: u32 = 1500;

impl ClusterPlan {
    /// MTU of each node's interface: the longest packet that any of its links takes. What is too long for another is told to its sender.
    pub(crate) fn interface_mtus(&self) -> Vec<u32> {
        let told = |one: &str, other: &str| {
            let link = self.links.iter().find(|link| {
                (link.a.as_str(), link.b.as_str()) == (one, other)
                    || (link.b.as_str(), link.a.as_str()) == (one, other)
            });
            let mtu = link.and_then(|link| link.a_to_b.mtu_bytes);
            mtu.unwrap_or(ETHERNET_MTU)
        };
        let mtu = |node: &NodePlan| {
            let others = self.nodes.iter().filter(|other| other.name != node.name);
            let mtus = others.map(|other| told(&node.name, &other.name));
            mtus.max().unwrap_or(ETHERNET_MTU)
        };
        self.nodes.iter().map(mtu).collect()
    }
}

/// Network of nodes in namespace mode that the file gives no address.
pub(super) const DEFAULT_NETWORK: NodeAddress = NodeAddress {
    ip: Ipv4Addr::new(10, 77, 0, 0),
    prefix: 24,
};

/// Reads an address of a node in namespace mode. Without a prefix length it is one of a /24.
fn read_netns_address(text: &str) -> Result<NodeAddress, String> {
    let remedy = "write it as \"10.77.0.1/24\"";
    let (ip, prefix) = text.split_once('/').unwrap_or((text, "24"));
    let ip: Ipv4Addr = ip
        .parse()
        .map_err(|_| format!("`{text}` is no IPv4 address; {remedy}"))?;
    let prefix: u8 = prefix
        .parse()
        .ok()
        .filter(|prefix| (8..=30).contains(prefix))
        .ok_or_else(|| format!("`{text}` has no prefix length between 8 and 30; {remedy}"))?;
    let hosts = u32::MAX >> prefix;
    let host = ip.to_bits() & hosts;
    if ip.is_loopback() || ip.is_multicast() || ip.octets()[0] == 0 || ip.octets()[0] >= 240 {
        return Err(format!(
            "the address {ip} cannot belong to an interface; {remedy}"
        ));
    }
    if host == 0 || host == hosts {
        return Err(format!(
            "the address {ip} is that of its network, or its broadcast, and not a node's"
        ));
    }
    Ok(NodeAddress { ip, prefix })
}

/// Reads an address, and checks that a node can have it. Without a prefix length it is one of a /24.
fn read_loopback_address(text: &str) -> Result<NodeAddress, String> {
    let remedy = "write it as \"127.77.0.1/24\"";
    let (ip, prefix) = text.split_once('/').unwrap_or((text, "24"));
    let ip: Ipv4Addr = ip
        .parse()
        .map_err(|_| format!("`{text}` is no IPv4 address; {remedy}"))?;
    let prefix: u8 = prefix
        .parse()
        .ok()
        .filter(|prefix| (16..=30).contains(prefix))
        .ok_or_else(|| format!("`{text}` has no prefix length between 16 and 30; {remedy}"))?;
    let [first, second, _, host] = ip.octets();
    if (first, second) != (127, 77) {
        return Err(format!(
            "the address {ip} lies outside 127.77.0.0/16: without privileges every node address must lie there; any other address \
             needs `isolation = \"netns\"` in `[cluster]`"
        ));
    }
    if host == 0 || host >= CLAIM_HOST {
        return Err(format!(
            "the address {ip} cannot belong to a node: its last number must lie between 1 and {}",
            CLAIM_HOST - 1
        ));
    }
    Ok(NodeAddress { ip, prefix })
}

/// Host `number` of a network, while that is a host.
pub(super) fn host_of(network: NodeAddress, number: usize) -> Option<Ipv4Addr> {
    let hosts = u32::MAX >> network.prefix;
    let number = u32::try_from(number).ok()?;
    let base = network.ip.to_bits() & !hosts;
    (number > 0 && number < hosts).then(|| Ipv4Addr::from_bits(base | number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_ports_are_read_and_shown_alike() {
        let full = Publish::parse("127.0.0.1:8080:80").unwrap();
        assert_eq!(full.to_string(), "127.0.0.1:8080:80");
        assert_eq!(Publish::parse("8080:80").unwrap(), full);
        for text in [
            "80",
            "8080:0",
            "0:80",
            "x:80",
            "1:2:3",
            "::1:80:80",
            "70000:80",
            "",
        ] {
            let error = Publish::parse(text).unwrap_err();
            assert!(error.contains("127.0.0.1:8080:80"), "{error}");
        }
    }

    #[test]
    fn addresses_that_no_interface_can_have_are_refused() {
        assert_eq!(
            read_netns_address("10.1.2.3").unwrap().to_string(),
            "10.1.2.3/24"
        );
        for text in [
            "127.0.0.1/8",
            "224.0.0.1/24",
            "0.1.2.3/24",
            "10.0.0.0/24",
            "10.0.0.255/24",
            "10.0.0.1/31",
            "fe80::1/64",
        ] {
            assert!(read_netns_address(text).is_err(), "{text}");
        }
        let network = read_netns_address("10.1.2.2/30").unwrap();
        let hosts: Vec<_> = (0..5).filter_map(|n| host_of(network, n)).collect();
        assert_eq!(
            hosts,
            [Ipv4Addr::new(10, 1, 2, 1), Ipv4Addr::new(10, 1, 2, 2)]
        );
    }
}
