//! Subnets of this machine's loopback interface: which one a cluster gets, and how it keeps others away.
//!
//! Place: the emulator process claims before it serves.
//! Invariants: a claim is a datagram socket on 127.77.C.254:4791, so it holds against clusters of all users and run directories, and ends with the
//! process. A subnet without a claim may still be in use by programs that outlived their cluster; it is not handed out as long as one of them
//! listens.
//! Source: ours. Leaves out: other network namespaces, which have a loopback interface of their own.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};

use anyhow::{Context as _, anyhow, bail};
use nic_emu::server::NodeSpec;

use crate::config::{CLAIM_HOST, ClusterPlan, Isolation};

/// Port of the datagram socket whose address claims a subnet.
const CLAIM_PORT: u16 = 4791;

/// Addresses that this process holds for its cluster as long as it lives.
#[derive(Debug)]
pub(crate) struct Claim {
    /// The nodes with their addresses.
    pub(crate) nodes: Vec<NodeSpec>,
    /// C of 127.77.C.0/24; `None` when no node has an address.
    pub(crate) subnet: Option<u8>,
    _sockets: Vec<UdpSocket>,
}

impl Claim {
    /// Claims the subnets of a cluster on this machine and settles its addresses.
    pub(crate) fn of(plan: &ClusterPlan) -> anyhow::Result<Self> {
        let mut sockets = Vec::new();
        if plan.isolation == Isolation::Netns {
            // Its addresses are nobody else's business.
            return Ok(Self {
                nodes: plan.resolve(None),
                subnet: None,
                _sockets: sockets,
            });
        }
        let static_subnets = plan.static_subnets();
        for &subnet in &static_subnets {
            sockets.push(claim_named(subnet)?);
        }
        let mut subnet = static_subnets.first().copied();
        if subnet.is_none() && plan.wants_assignment() {
            let (free, socket) = claim_first_free()?;
            subnet = Some(free);
            sockets.push(socket);
        }
        Ok(Self {
            nodes: plan.resolve(subnet),
            subnet,
            _sockets: sockets,
        })
    }
}

fn claim_named(subnet: u8) -> anyhow::Result<UdpSocket> {
    claim(subnet).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => anyhow!(
            "127.77.{subnet}.0/24 is in use by another cluster on this machine; end that one (`sanlab ls`), or give the nodes other addresses"
        ),
        _ => anyhow!(error).context(format!(
            "cannot claim 127.77.{subnet}.0/24; the loopback interface must carry 127.0.0.0/8"
        )),
    })
}

fn claim_first_free() -> anyhow::Result<(u8, UdpSocket)> {
    let in_use = subnets_in_use();
    let is_quiet = |subnet: &u8| !in_use.contains(subnet);
    // A subnet in which old programs listen is better than none.
    let subnets = (0..=u8::MAX)
        .filter(is_quiet)
        .chain((0..=u8::MAX).filter(|subnet| !is_quiet(subnet)));
    for subnet in subnets {
        match claim(subnet) {
            Ok(socket) => return Ok((subnet, socket)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => {
                return Err(error).context(
                    "cannot claim a subnet; the loopback interface must carry 127.0.0.0/8",
                );
            }
        }
    }
    bail!("all 256 subnets of 127.77.0.0/16 are in use by other clusters on this machine")
}

fn claim(subnet: u8) -> io::Result<UdpSocket> {
    UdpSocket::bind((Ipv4Addr::new(127, 77, subnet, CLAIM_HOST), CLAIM_PORT))
}

/// Subnets in whose addresses, or their aliases, somebody listens. What cannot be read is in nobody's use.
fn subnets_in_use() -> Vec<u8> {
    ["tcp", "tcp6", "udp", "udp6"]
        .iter()
        .flat_map(|table| {
            let text = fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default();
            let subnets: Vec<u8> = text.lines().skip(1).filter_map(listener_subnet).collect();
            subnets
        })
        .collect()
}

/// The third octet of a node's address on which this row of /proc/net/tcp or its like listens.
fn listener_subnet(row: &str) -> Option<u8> {
    /// States of a listener and of an unconnected datagram socket.
    const LISTENING: [&str; 2] = ["0A", "07"];
    let mut words = row.split_whitespace().skip(1);
    let (local, _remote, state) = (words.next()?, words.next()?, words.next()?);
    if !LISTENING.contains(&state) {
        return None;
    }
    // The last word of the address holds the IPv4 address, also of a mapped one.
    let (ip, _port) = local.split_once(':')?;
    let word = ip.get(ip.len().checked_sub(8)?..)?;
    let [first, second, subnet, _host] = u32::from_str_radix(word, 16).ok()?.to_ne_bytes();
    (first == 127 && (77..=79).contains(&second)).then_some(subnet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_on_addresses_and_aliases_of_nodes_keep_their_subnet() {
        let row = |local: &str, state: &str| {
            listener_subnet(&format!(
                "   0: {local} 00000000:0000 {state} 0:0 0:0 0 0 0"
            ))
        };
        assert_eq!(row("01024D7F:1451", "0A"), Some(2));
        assert_eq!(row("01034E7F:1451", "0A"), Some(3));
        assert_eq!(row("0000000000000000FFFF000001024F7F:1451", "0A"), Some(2));
        assert_eq!(row("01024D7F:1451", "07"), Some(2));
        assert_eq!(row("01024D7F:1451", "06"), None);
        assert_eq!(row("0100007F:1451", "0A"), None);
        assert_eq!(row("7F:1451", "0A"), None);
        assert_eq!(listener_subnet(""), None);
    }

    #[test]
    fn a_subnet_in_which_somebody_listens_is_found() {
        let listener = std::net::TcpListener::bind((Ipv4Addr::new(127, 78, 250, 9), 0)).unwrap();
        assert!(subnets_in_use().contains(&250));
        drop(listener);
    }
}
