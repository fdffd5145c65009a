//! What a program is told about its node: addresses, cluster, providers.
//!
//! Place: `sanlab run` passes it as JSON, the preload library parses it once, the switch keeps it for the process's life.
//! Invariants: parsing touches nothing but the text. Addresses may be absent: a NIC without address is no SAN NIC (R-27).
//! Source: R-12, R-22 with OP-1 (prefix lengths come from here, the providers know none), R-33.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use core::str::FromStr;

use ring_proto::channel::loopback_aliases;
use serde::{Deserialize, Deserializer};

/// A node as one of its programs sees it.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct NodeConfig {
    /// Name of the cluster.
    pub cluster: String,
    /// Name of this node.
    pub node: String,
    /// Number of this node in the cluster, from 1.
    pub node_id: u32,
    /// Addresses of this node's NIC; empty for a NIC that no address was assigned to (R-27).
    #[serde(default)]
    pub addresses: Vec<AddressPrefix>,
    /// Third octet of the cluster's subnet 127.77.C.0/24.
    #[serde(default)]
    pub subnet: u8,
    /// Whether wildcard listeners get companions (R-33).
    #[serde(default = "yes")]
    pub wildcard_on_san: bool,
    /// Time a provider gets to connect, in milliseconds, before TCP is tried (R-108).
    #[serde(default = "default_connect_limit_ms")]
    pub san_connect_limit_ms: u64,
    /// Road of the node's connections to itself (R-48, R-50).
    #[serde(default)]
    pub loopback: Loopback,
    /// What becomes of traffic to other nodes that links cannot govern.
    #[serde(default)]
    pub ungoverned: Ungoverned,
    /// All nodes of the cluster.
    #[serde(default)]
    pub nodes: Vec<NodeEntry>,
    /// The switch's list of SAN providers, in order of preference (R-12, OP-2).
    #[serde(default)]
    pub providers: Vec<ProviderEntry>,
}

/// Road of a node's connections to itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loopback {
    /// Kernel TCP.
    #[default]
    Tcp,
    /// The node's NIC, which then owns aliases of 127.0.0.1 and `::1` that exist for this node alone.
    San,
}

/// What becomes of traffic that links cannot govern.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ungoverned {
    /// There is none: the emulator is the wire.
    Nothing,
    /// It goes its way, and is told.
    #[default]
    Warn,
    /// `ENETUNREACH`.
    Refuse,
}

/// How the SAN calls the node's loopback addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Aliases {
    /// 127.0.0.1.
    pub localhost: Ipv4Addr,
    /// `::1`: providers speak IPv4 (R-50).
    pub localhost_v6: Ipv4Addr,
}

impl Aliases {
    /// The SAN's name of a loopback address that a program knows; of others their IPv4 form, if they have one.
    #[must_use]
    pub fn wire(&self, ip: IpAddr) -> Option<Ipv4Addr> {
        match ip {
            IpAddr::V6(Ipv6Addr::LOCALHOST) => Some(self.localhost_v6),
            IpAddr::V6(v6) => v6.to_ipv4_mapped().map(|v4| self.wire_v4(v4)),
            IpAddr::V4(v4) => Some(self.wire_v4(v4)),
        }
    }

    fn wire_v4(&self, ip: Ipv4Addr) -> Ipv4Addr {
        match ip {
            Ipv4Addr::LOCALHOST => self.localhost,
            ip => ip,
        }
    }
}

/// A node of the cluster.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct NodeEntry {
    /// Its name.
    pub name: String,
    /// Addresses of its NIC.
    #[serde(default)]
    pub addresses: Vec<AddressPrefix>,
}

/// An entry of the provider list.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct ProviderEntry {
    /// Unique id.
    pub id: String,
    /// Name for people.
    pub name: String,
    /// False: listed but not used.
    #[serde(default = "yes")]
    pub enabled: bool,
}

/// An IPv4 address with the length of its subnet's prefix, written `127.77.0.1/24`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AddressPrefix {
    /// The address.
    pub address: Ipv4Addr,
    /// Bits of the prefix, at most 32.
    pub prefix: u8,
}

impl NodeConfig {
    /// Parses the JSON that the launcher passes.
    ///
    /// # Errors
    /// The parser's message.
    pub fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// Whether `address` belongs to this node's NIC.
    #[must_use]
    pub fn is_own(&self, address: Ipv4Addr) -> bool {
        self.addresses.iter().any(|a| a.address == address)
    }

    /// Aliases of the loopback addresses, where they ride the SAN.
    #[must_use]
    pub fn aliases(&self) -> Option<Aliases> {
        if self.loopback != Loopback::San {
            return None;
        }
        let [localhost, localhost_v6] = loopback_aliases(self.addresses.first()?.address)?;
        Some(Aliases {
            localhost,
            localhost_v6,
        })
    }

    /// What a socket of `domain` shows of an address on the SAN (R-50).
    #[must_use]
    pub fn shown(&self, domain: i32, address: SocketAddrV4) -> SocketAddr {
        let (mut ip, port) = (*address.ip(), address.port());
        if let Some(aliases) = self.aliases() {
            if ip == aliases.localhost_v6 && domain == libc::AF_INET6 {
                return (Ipv6Addr::LOCALHOST, port).into();
            }
            if ip == aliases.localhost || ip == aliases.localhost_v6 {
                ip = Ipv4Addr::LOCALHOST;
            }
        }
        if domain == libc::AF_INET6 {
            SocketAddrV6::new(ip.to_ipv6_mapped(), port, 0, 0).into()
        } else {
            (ip, port).into()
        }
    }

    /// Time a provider gets to connect (R-108).
    #[must_use]
    pub fn connect_limit_ns(&self) -> u64 {
        self.san_connect_limit_ms.saturating_mul(1_000_000)
    }

    /// Time a connected but silent peer gets for the first exchange (R-120). Both programs must run for that, so who gives connects longer,
    /// on a slow machine, gives this longer too.
    #[must_use]
    pub fn negotiation_limit_ns(&self) -> u64 {
        const LEAST_NS: u64 = 5_000_000_000;
        self.connect_limit_ns().max(LEAST_NS)
    }

    /// Prefix of an address of this node, `None` for a foreign one (R-22, OP-1).
    #[must_use]
    pub fn prefix_of(&self, address: Ipv4Addr) -> Option<u8> {
        self.addresses
            .iter()
            .find(|a| a.address == address)
            .map(|a| a.prefix)
    }

    /// Whether `address` lies in a subnet of the cluster: of this node's NIC, or of another node's.
    #[must_use]
    pub fn is_in_cluster(&self, address: Ipv4Addr) -> bool {
        let others = self.nodes.iter().flat_map(|n| &n.addresses);
        self.addresses
            .iter()
            .chain(others)
            .any(|a| a.contains(address))
    }
}

impl AddressPrefix {
    /// Whether `address` lies in the subnet.
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        let mask = u32::MAX
            .checked_shl(32 - u32::from(self.prefix.min(32)))
            .unwrap_or(0);
        self.address.to_bits() & mask == address.to_bits() & mask
    }
}

/// Why a text is not an [`AddressPrefix`].
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{text:?} is not an IPv4 address with prefix length, such as 127.77.0.1/24")]
pub struct AddressPrefixError {
    /// The text.
    pub text: String,
}

impl FromStr for AddressPrefix {
    type Err = AddressPrefixError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || AddressPrefixError {
            text: text.to_owned(),
        };
        let (address, prefix) = text.split_once('/').ok_or_else(error)?;
        let prefix: u8 = prefix.parse().map_err(|_| error())?;
        if prefix > 32 {
            return Err(error());
        }
        Ok(Self {
            address: address.parse().map_err(|_| error())?,
            prefix,
        })
    }
}

impl fmt::Display for AddressPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl<'de> Deserialize<'de> for AddressPrefix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// R-108: far below TCP's own limit.
fn default_connect_limit_ms() -> u64 {
    1000
}

fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{"cluster":"demo","node":"a","node_id":1,"addresses":["127.77.3.1/24"],"subnet":3,
        "wildcard_on_san":false,"nodes":[{"name":"a","addresses":["127.77.3.1/24"]},{"name":"b","addresses":["127.77.3.2/24"]}],
        "providers":[{"id":"5a1ab000-0000-4000-8000-000000000001","name":"nic0","enabled":true}]}"#;

    #[test]
    fn launcher_text_is_parsed() {
        let config = NodeConfig::from_json(TEXT).unwrap();
        assert_eq!((config.node_id, config.subnet), (1, 3));
        assert!(!config.wildcard_on_san);
        assert!(config.is_own(Ipv4Addr::new(127, 77, 3, 1)));
        assert!(config.is_in_cluster(Ipv4Addr::new(127, 77, 3, 200)));
        assert!(!config.is_in_cluster(Ipv4Addr::new(127, 77, 4, 1)));
        assert_eq!(config.prefix_of(Ipv4Addr::new(127, 77, 3, 1)), Some(24));
    }

    #[test]
    fn bad_addresses_are_refused() {
        for text in [
            "127.77.0.1",
            "127.77.0.1/33",
            "x/24",
            "127.77.0.1/",
            "/24",
            "",
        ] {
            assert!(text.parse::<AddressPrefix>().is_err(), "{text}");
        }
    }

    #[test]
    fn prefix_lengths_at_both_ends_work() {
        let all: AddressPrefix = "10.0.0.1/0".parse().unwrap();
        assert!(all.contains(Ipv4Addr::new(192, 168, 0, 1)));
        let one: AddressPrefix = "10.0.0.1/32".parse().unwrap();
        assert!(!one.contains(Ipv4Addr::new(10, 0, 0, 2)));
    }
}
