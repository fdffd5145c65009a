//! The interfaces of a node: loopback and the one on the wire.
//!
//! Place: the helper calls [`set_up`] inside a node's network namespace. Invariants: there is no route but to the node's own subnets, so
//! whatever lies off the cluster is unreachable at once.
//! Source: rtnetlink(7), ip-sysctl of the kernel's documentation. Leaves out: routers between nodes; IPv6 beyond link-local addresses, which
//! the kernel makes by itself.

use anyhow::Context as _;
use nic_emu::server::NodeAddress;

use super::INTERFACE;
use super::netlink::{CREATE, Netlink, Request};

const NEW_LINK: u16 = 16;
const NEW_ADDRESS: u16 = 20;
const LINK_ADDRESS: u16 = 1;
const LINK_MTU: u16 = 4;
const PEER_ADDRESS: u16 = 1;
const LOCAL_ADDRESS: u16 = 2;
const BROADCAST_ADDRESS: u16 = 4;
/// Index of the loopback interface in every network namespace.
const LOOPBACK: u32 = 1;

/// Brings both up, with a MAC address, an MTU and the node's addresses.
pub(super) fn set_up(mac: [u8; 6], mtu: u32, addresses: &[NodeAddress]) -> anyhow::Result<()> {
    let netlink = Netlink::open()?;
    let up = |index| Request::new(NEW_LINK, 0, &link(index, libc::IFF_UP));
    netlink
        .ask(up(LOOPBACK))
        .context("cannot bring up the loopback interface")?;
    let index = nix::net::if_::if_nametoindex(INTERFACE)
        .with_context(|| format!("cannot find {INTERFACE}"))?;
    let own = up(index).attribute(LINK_ADDRESS, &mac);
    netlink
        .ask(own.attribute(LINK_MTU, &mtu.to_ne_bytes()))
        .with_context(|| format!("cannot bring up {INTERFACE} with an MTU of {mtu}"))?;
    for address in addresses {
        netlink
            .ask(add(index, *address))
            .with_context(|| format!("cannot give {INTERFACE} the address {address}"))?;
    }
    Ok(())
}

/// What a node's programs may do without being root, as on a machine of their own: ping, and listen on any port.
pub(super) fn open_to_users(group: u32, is_root: bool) {
    let last = if is_root {
        i32::MAX.unsigned_abs()
    } else {
        group
    };
    let first = if is_root { 0 } else { group };
    let settings = [
        ("ping_group_range", format!("{first} {last}")),
        ("ip_unprivileged_port_start", "0".to_owned()),
    ];
    for (name, value) in settings {
        // A container may have /proc/sys read-only; then it is as the kernel has it.
        let _ = std::fs::write(format!("/proc/sys/net/ipv4/{name}"), value);
    }
}

/// An `ifinfomsg`.
fn link(index: u32, flags: i32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    bytes[12..].copy_from_slice(&flags.to_ne_bytes());
    bytes
}

fn add(index: u32, address: NodeAddress) -> Request {
    const INET: u8 = 2;
    // An `ifaddrmsg`: family, prefix length, flags, scope, index.
    let mut fixed = [INET, address.prefix, 0, 0, 0, 0, 0, 0];
    fixed[4..].copy_from_slice(&index.to_ne_bytes());
    let octets = address.ip.octets();
    let hosts = u32::MAX.checked_shr(address.prefix.into()).unwrap_or(0);
    let broadcast = address.ip.to_bits() | hosts;
    Request::new(NEW_ADDRESS, CREATE, &fixed)
        .attribute(LOCAL_ADDRESS, &octets)
        .attribute(PEER_ADDRESS, &octets)
        .attribute(BROADCAST_ADDRESS, &broadcast.to_be_bytes())
}
