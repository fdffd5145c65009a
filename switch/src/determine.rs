//! Service provider determination: which road a listen or a connect takes, and why not the SAN.
//!
//! Place: asked inside the program's listen or connect, never at creation or bind; answers from the subnet table, the bound
//! address and the stored options alone. Invariants: pure, no call to any provider; every refusal has a [`Reason`].
//! Source, OP-8, OP-10, OP-21.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};

use ring_proto::telemetry::Reason;

use crate::config::{Aliases, NodeConfig};
use crate::options::OptionStore;
use crate::provider_table::{ProviderRef, ProviderTable};

/// Road of a listen.
#[derive(Clone, Debug)]
pub enum ListenRoad {
    /// One companion per provider, bound to this address: a NIC's, or the wildcard.
    San {
        /// Providers, in order of preference.
        providers: Vec<ProviderRef>,
        /// Address for the companions, port included.
        local: SocketAddrV4,
    },
    /// TCP alone.
    Tcp(Reason),
}

/// Road of a connect.
#[derive(Clone, Debug)]
pub enum ConnectRoad {
    /// A companion of this provider.
    San {
        /// The provider.
        provider: ProviderRef,
        /// Its NIC's address on the destination's subnet: the source address unless the program chose one.
        nic: Ipv4Addr,
        /// The destination.
        destination: SocketAddrV4,
    },
    /// TCP.
    Tcp(Reason),
}

/// Determines the road of a listen on a socket bound to `local`.
#[must_use]
pub fn listen(
    config: &NodeConfig,
    table: &ProviderTable,
    local: SocketAddr,
    options: &OptionStore,
) -> ListenRoad {
    if options.needs_tcp() {
        return ListenRoad::Tcp(Reason::Option);
    }
    let aliases = config.aliases();
    if is_wildcard(local.ip()) && !config.wildcard_on_san {
        return ListenRoad::Tcp(Reason::BindNotSan);
    }
    let ip = match (local.ip(), aliases) {
        (IpAddr::V6(Ipv6Addr::UNSPECIFIED), _) if !is_v6_only(options) => Ipv4Addr::UNSPECIFIED,
        // Only `::1` leads there.
        (IpAddr::V6(Ipv6Addr::UNSPECIFIED), Some(aliases)) => aliases.localhost_v6,
        (IpAddr::V6(Ipv6Addr::LOCALHOST), None) => return ListenRoad::Tcp(Reason::Loopback),
        (ip, aliases) => match aliases.map_or_else(|| inner_v4(ip), |a| a.wire(ip)) {
            Some(ip) => ip,
            None => return ListenRoad::Tcp(Reason::BindNotSan),
        },
    };
    let local = SocketAddrV4::new(ip, local.port());
    let providers: Vec<ProviderRef> = if ip.is_unspecified() {
        let has_nic = |p: &&ProviderRef| !p.addresses().is_empty();
        table.providers().iter().filter(has_nic).cloned().collect()
    } else {
        let owner = table.providers().iter().find(|p| p.owns(ip));
        owner.cloned().into_iter().collect()
    };
    if !providers.is_empty() {
        return ListenRoad::San { providers, local };
    }
    let is_alias = aliases.is_some_and(|a| ip == a.localhost || ip == a.localhost_v6);
    ListenRoad::Tcp(if ip.is_unspecified() || config.is_own(ip) || is_alias {
        absent(table)
    } else if ip.is_loopback() {
        Reason::Loopback
    } else {
        Reason::BindNotSan
    })
}

/// Determines the road of a connect to `destination` from a socket bound to `bound`, if it is.
#[must_use]
pub fn connect(
    config: &NodeConfig,
    table: &ProviderTable,
    bound: Option<SocketAddr>,
    destination: SocketAddr,
    options: &OptionStore,
) -> ConnectRoad {
    if options.needs_tcp() {
        return ConnectRoad::Tcp(Reason::Option);
    }
    if let Some(aliases) = config.aliases()
        && let Some(ip) = own_address(config, aliases, destination.ip())
    {
        return connect_to_self(table, aliases, bound, (ip, destination.port()), options);
    }
    let ip = match destination.ip() {
        IpAddr::V6(Ipv6Addr::LOCALHOST | Ipv6Addr::UNSPECIFIED) => {
            return ConnectRoad::Tcp(Reason::Loopback);
        }
        ip => match inner_v4(ip) {
            Some(ip) => ip,
            None => return ConnectRoad::Tcp(Reason::OffSubnet),
        },
    };
    // the node's own addresses, not the host's: in an emulated cluster every address is local to the host. R-49: 0.0.0.0.
    let is_self = ip.is_unspecified() || config.is_own(ip);
    if is_self || (ip.is_loopback() && !config.is_in_cluster(ip)) {
        return ConnectRoad::Tcp(Reason::Loopback);
    }
    if destination.port() == 0 || ip.is_multicast() || ip.is_broadcast() {
        return ConnectRoad::Tcp(Reason::OffSubnet);
    }
    let Some(entry) = table.subnets().lookup(ip) else {
        return ConnectRoad::Tcp(if config.is_in_cluster(ip) {
            absent(table)
        } else {
            Reason::OffSubnet
        });
    };
    let provider = &table.providers()[entry.provider];
    if !provider.is_up() {
        return ConnectRoad::Tcp(Reason::ProviderDown);
    }
    if let Some(bound) = bound.filter(|b| !is_wildcard(b.ip())) {
        // the companion could not be bound there.
        if !inner_v4(bound.ip()).is_some_and(|own| provider.owns(own)) {
            return ConnectRoad::Tcp(Reason::BindNotSan);
        }
    } else if bound.is_some_and(|b| b.is_ipv6()) && is_v6_only(options) {
        return ConnectRoad::Tcp(Reason::BindNotSan);
    }
    ConnectRoad::San {
        provider: provider.clone(),
        nic: entry.nic.address,
        destination: SocketAddrV4::new(ip, destination.port()),
    }
}

/// The node's own address that a destination means, as the SAN calls it; `None` for any other destination.
fn own_address(config: &NodeConfig, aliases: Aliases, ip: IpAddr) -> Option<Ipv4Addr> {
    match ip {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Some(aliases.localhost_v6),
        ip if is_wildcard(ip) => Some(aliases.localhost),
        ip => aliases.wire(ip).filter(|&ip| {
            ip == aliases.localhost || ip == aliases.localhost_v6 || config.is_own(ip)
        }),
    }
}

/// The road of a node's connect to itself, under `loopback = "san"`. The source is the destination unless the program chose another,
/// as the kernel has it.
fn connect_to_self(
    table: &ProviderTable,
    aliases: Aliases,
    bound: Option<SocketAddr>,
    (ip, port): (Ipv4Addr, u16),
    options: &OptionStore,
) -> ConnectRoad {
    if port == 0 {
        return ConnectRoad::Tcp(Reason::Loopback);
    }
    let Some(provider) = table.providers().iter().find(|p| p.owns(ip)) else {
        return ConnectRoad::Tcp(absent(table));
    };
    let is_v6 = ip == aliases.localhost_v6;
    let fits = match bound {
        Some(bound) if !is_wildcard(bound.ip()) => {
            // No IPv4 address speaks to `::1`, nor the reverse.
            let own = aliases.wire(bound.ip());
            own.is_some_and(|own| provider.owns(own) && (own == aliases.localhost_v6) == is_v6)
        }
        _ => is_v6 || !is_v6_only(options),
    };
    if !fits {
        return ConnectRoad::Tcp(Reason::BindNotSan);
    }
    ConnectRoad::San {
        provider: provider.clone(),
        nic: ip,
        destination: SocketAddrV4::new(ip, port),
    }
}

/// The IPv4 address inside an address: itself, or of a v4-mapped one.
#[must_use]
pub fn inner_v4(ip: IpAddr) -> Option<Ipv4Addr> {
    match ip {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(ip) => ip.to_ipv4_mapped(),
    }
}

/// Whether an address is a wildcard of its family.
#[must_use]
pub fn is_wildcard(ip: IpAddr) -> bool {
    ip.is_unspecified() || inner_v4(ip).is_some_and(|ip| ip.is_unspecified())
}

/// Why no provider serves an address of the node.
fn absent(table: &ProviderTable) -> Reason {
    if table.is_starved() {
        Reason::SpSocket
    } else if table.providers().iter().any(|p| !p.is_up()) {
        Reason::ProviderDown
    } else {
        Reason::NoProvider
    }
}

fn is_v6_only(options: &OptionStore) -> bool {
    options
        .int(libc::SOL_IPV6, libc::IPV6_V6ONLY)
        .is_some_and(|v| v != 0)
}
