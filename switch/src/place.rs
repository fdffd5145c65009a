//! Placed addresses: where the kernel socket of a logical address lies in loopback mode, and back.
//!
//! Place: `tcp.rs` asks before every bind and connect and after every name the kernel tells. Pure functions of the node's addresses.
//! Invariants: ports are never changed; a kernel address of another host, or of no node, passes through untouched; on an IPv6
//! socket everything placed is v4-mapped, so the kernel socket must not be V6ONLY, whatever the program was told.
//! Source: ours, because all nodes share one host and TCP listens first (R-76). Leaves out: namespace mode, where nothing is placed.
//!
//! ```text
//! what the program sees (node k of cluster subnet C)      what the kernel gets
//!   127.77.C.k      itself, 0.0.0.0, dual-stack ::    ->   127.77.C.k
//!   127.0.0.1                                         ->   127.78.C.k
//!   ::1, and :: of a V6ONLY socket                    ->   ::ffff:127.79.C.k
//! connect to 127.0.0.1, ::1 or 0.0.0.0                ->   the alias, then 127.77.C.k, then the host's own loopback
//! ```

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use ring_proto::channel::loopback_aliases;

use crate::sys;

/// What matters of a socket when its addresses are placed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Shape {
    /// `AF_INET6`.
    pub v6: bool,
    /// The program asked for `IPV6_V6ONLY`.
    pub v6only: bool,
    /// `SOCK_DGRAM`.
    pub datagram: bool,
}

/// Where a bind goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bind {
    /// Bind the kernel socket here; `wildcard`: the program named a wildcard and must go on seeing it.
    At {
        /// Kernel address.
        address: SocketAddr,
        /// Whether the logical address is a wildcard.
        wildcard: bool,
    },
    /// The address belongs to another node: `EADDRNOTAVAIL`, as on a machine of its own.
    Foreign,
    /// A v4-mapped address on a V6ONLY socket: `EINVAL`.
    Unfit,
}

/// Kernel addresses to try in this order, and how the peer is called afterwards.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Destinations {
    tries: [SocketAddr; 3],
    len: usize,
    /// Bind an unbound socket to this address first.
    pub source: Option<IpAddr>,
    /// The name of the peer, where the kernel's would be another.
    pub shown: Option<IpAddr>,
}

impl Destinations {
    pub(crate) const fn one(address: SocketAddr) -> Self {
        Self {
            tries: [address; 3],
            len: 1,
            source: None,
            shown: None,
        }
    }

    /// The kernel addresses.
    #[must_use]
    pub fn tries(&self) -> &[SocketAddr] {
        &self.tries[..self.len]
    }
}

/// The placement of one node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Placement {
    own: Ipv4Addr,
    /// What 127.0.0.1 and `::1` are in the kernel.
    aliases: [Ipv4Addr; 2],
    prefix: u8,
    addresses: Vec<Ipv4Addr>,
    nodes: Vec<Vec<Ipv4Addr>>,
}

impl Placement {
    /// Placement of a node with these addresses, each with its prefix length, in a cluster of `nodes`. `None` when its first
    /// address is not in 127.77.0.0/16, or absent: such a node is not in loopback mode.
    #[must_use]
    pub fn new(addresses: &[(Ipv4Addr, u8)], nodes: Vec<Vec<Ipv4Addr>>) -> Option<Self> {
        let &(own, prefix) = addresses.first()?;
        let aliases = loopback_aliases(own)?;
        Some(Self {
            own,
            aliases,
            prefix,
            addresses: addresses.iter().map(|&(a, _)| a).collect(),
            nodes,
        })
    }

    /// The node's first address.
    #[must_use]
    pub const fn own(&self) -> Ipv4Addr {
        self.own
    }

    /// Alias of the node's 127.0.0.1.
    #[must_use]
    pub const fn localhost(&self) -> Ipv4Addr {
        self.aliases[0]
    }

    /// Alias of the node's `::1`.
    #[must_use]
    pub const fn localhost_v6(&self) -> Ipv4Addr {
        self.aliases[1]
    }

    /// Whether `ip` lies in the cluster's subnet.
    #[must_use]
    pub fn is_in_cluster(&self, ip: Ipv4Addr) -> bool {
        let shift = 32 - u32::from(self.prefix.min(32));
        let mask = u32::MAX.checked_shl(shift).unwrap_or(0);
        ip.to_bits() & mask == self.own.to_bits() & mask
    }

    /// Whether `ip` is an address of this node.
    #[must_use]
    pub fn is_own(&self, ip: Ipv4Addr) -> bool {
        self.addresses.contains(&ip)
    }

    /// Where a program's bind to `logical` goes.
    #[must_use]
    pub fn bind(&self, shape: Shape, logical: SocketAddr) -> Bind {
        let port = logical.port();
        let at = |ip: Ipv4Addr, wildcard| Bind::At {
            address: kernel_form(shape, ip, port),
            wildcard,
        };
        let as_named = Bind::At {
            address: logical,
            wildcard: false,
        };
        // A datagram socket without a port of its own is a client: it may talk to any host, which a node address could not.
        let is_client = shape.datagram && port == 0;
        match logical.ip() {
            IpAddr::V6(ip) if ip.is_unspecified() && !is_client => {
                at(self.wildcard(shape.v6only), true)
            }
            IpAddr::V6(Ipv6Addr::LOCALHOST) if !shape.datagram => at(self.localhost_v6(), false),
            ip => match sys::inner_v4(ip) {
                Some(_) if ip.is_ipv6() && shape.v6only => Bind::Unfit,
                Some(v4) if v4.is_unspecified() && !is_client => at(self.own, true),
                Some(Ipv4Addr::LOCALHOST) if !shape.datagram => at(self.localhost(), false),
                Some(v4) if self.is_in_cluster(v4) && !self.is_own(v4) => Bind::Foreign,
                _ => as_named,
            },
        }
    }

    const fn wildcard(&self, v6only: bool) -> Ipv4Addr {
        if v6only {
            self.localhost_v6()
        } else {
            self.own
        }
    }

    /// Address that `listen` on an unbound stream socket binds to, port 0 (R-38).
    #[must_use]
    pub fn autobind(&self, shape: Shape) -> SocketAddr {
        kernel_form(shape, self.wildcard(shape.v6only), 0)
    }

    /// Where a connect of a stream socket to `logical` goes. `None`: a v4-mapped destination of a V6ONLY socket, `ENETUNREACH`.
    #[must_use]
    pub fn destinations(&self, shape: Shape, logical: SocketAddr) -> Option<Destinations> {
        let port = logical.port();
        let form = |ip| kernel_form(shape, ip, port);
        let ip = logical.ip();
        if ip.is_ipv6() != shape.v6 {
            // An IPv4 name on an IPv6 socket or the reverse: the kernel knows the error.
            return Some(Destinations::one(logical));
        }
        if let IpAddr::V6(v6) = ip
            && (v6.is_unspecified() || v6.is_loopback())
        {
            let host = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port);
            return Some(Destinations {
                tries: [form(self.localhost_v6()), form(self.own), host],
                len: 3,
                source: None,
                shown: Some(Ipv6Addr::LOCALHOST.into()),
            });
        }
        let Some(v4) = sys::inner_v4(ip) else {
            return Some(Destinations::one(logical));
        };
        if shape.v6only && ip.is_ipv6() {
            return None;
        }
        if v4.is_unspecified() || v4 == Ipv4Addr::LOCALHOST {
            let host = form(Ipv4Addr::LOCALHOST);
            return Some(Destinations {
                tries: [form(self.localhost()), form(self.own), host],
                len: 3,
                source: None,
                shown: Some(host.ip()),
            });
        }
        if !self.is_in_cluster(v4) {
            return Some(Destinations::one(logical));
        }
        let mut to = Destinations::one(form(v4));
        to.source = Some(kernel_form(shape, self.own, 0).ip());
        // A wildcard listener of a node lies on its first address only.
        let first = self
            .nodes
            .iter()
            .find(|n| n.contains(&v4))
            .and_then(|n| n.first())
            .copied();
        if let Some(first) = first.filter(|&f| f != v4) {
            to.tries[1] = form(first);
            to.len = 2;
            to.shown = Some(to.tries[0].ip());
        }
        Some(to)
    }

    /// What the program is told of its own address. `wildcard`: it bound to a wildcard and is not connected.
    #[must_use]
    pub fn shown_local(&self, shape: Shape, wildcard: bool, kernel: SocketAddr) -> SocketAddr {
        let port = kernel.port();
        match sys::inner_v4(kernel.ip()) {
            Some(_) if wildcard && shape.v6 => (Ipv6Addr::UNSPECIFIED, port).into(),
            Some(_) if wildcard => (Ipv4Addr::UNSPECIFIED, port).into(),
            Some(v4) if v4 == self.localhost() => kernel_form(shape, Ipv4Addr::LOCALHOST, port),
            Some(v4) if v4 == self.localhost_v6() && shape.v6 => (Ipv6Addr::LOCALHOST, port).into(),
            _ => kernel,
        }
    }

    /// What the program is told of its peer's address; `local` is the kernel's local address of the same connection.
    #[must_use]
    pub fn shown_peer(&self, shape: Shape, local: IpAddr, kernel: SocketAddr) -> SocketAddr {
        let port = kernel.port();
        match sys::inner_v4(kernel.ip()) {
            Some(v4) if v4 == self.localhost() => kernel_form(shape, Ipv4Addr::LOCALHOST, port),
            Some(v4) if v4 == self.localhost_v6() && shape.v6 => (Ipv6Addr::LOCALHOST, port).into(),
            // Who dials ::1 leaves from 127.0.0.1, because the alias is an IPv4 address.
            Some(Ipv4Addr::LOCALHOST)
                if shape.v6 && sys::inner_v4(local) == Some(self.localhost_v6()) =>
            {
                (Ipv6Addr::LOCALHOST, port).into()
            }
            _ => kernel,
        }
    }
}

/// An IPv4 address as a kernel socket of this shape takes it.
fn kernel_form(shape: Shape, ip: Ipv4Addr, port: u16) -> SocketAddr {
    if shape.v6 {
        SocketAddrV6::new(ip.to_ipv6_mapped(), port, 0, 0).into()
    } else {
        (ip, port).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: Shape = Shape {
        v6: false,
        v6only: false,
        datagram: false,
    };
    const V6: Shape = Shape {
        v6: true,
        v6only: false,
        datagram: false,
    };
    const V6ONLY: Shape = Shape {
        v6: true,
        v6only: true,
        datagram: false,
    };
    const UDP: Shape = Shape {
        v6: false,
        v6only: false,
        datagram: true,
    };
    const UDP6: Shape = Shape {
        v6: true,
        v6only: false,
        datagram: true,
    };

    fn node() -> Placement {
        let own = [
            (Ipv4Addr::new(127, 77, 3, 1), 24),
            (Ipv4Addr::new(127, 77, 3, 11), 24),
        ];
        let nodes = vec![
            own.iter().map(|&(a, _)| a).collect(),
            vec![Ipv4Addr::new(127, 77, 3, 2), Ipv4Addr::new(127, 77, 3, 12)],
        ];
        Placement::new(&own, nodes).unwrap()
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn binds_are_placed() {
        let node = node();
        for (shape, logical, kernel, wildcard) in [
            (V4, "0.0.0.0:80", "127.77.3.1:80", true),
            (V4, "0.0.0.0:0", "127.77.3.1:0", true),
            (V4, "127.0.0.1:80", "127.78.3.1:80", false),
            (V4, "127.77.3.1:80", "127.77.3.1:80", false),
            (V4, "127.77.3.11:80", "127.77.3.11:80", false),
            (V4, "127.0.0.53:53", "127.0.0.53:53", false),
            (V4, "127.77.4.9:1", "127.77.4.9:1", false),
            (V4, "192.0.2.1:80", "192.0.2.1:80", false),
            (V6, "[::]:80", "[::ffff:127.77.3.1]:80", true),
            (V6, "[::1]:80", "[::ffff:127.79.3.1]:80", false),
            (V6, "[::ffff:0.0.0.0]:80", "[::ffff:127.77.3.1]:80", true),
            (V6, "[::ffff:127.0.0.1]:80", "[::ffff:127.78.3.1]:80", false),
            (V6, "[2001:db8::1]:80", "[2001:db8::1]:80", false),
            (V6ONLY, "[::]:80", "[::ffff:127.79.3.1]:80", true),
            (V6ONLY, "[::1]:80", "[::ffff:127.79.3.1]:80", false),
            (UDP, "0.0.0.0:53", "127.77.3.1:53", true),
            (UDP, "0.0.0.0:0", "0.0.0.0:0", false),
            (UDP, "127.0.0.1:53", "127.0.0.1:53", false),
            (UDP6, "[::]:53", "[::ffff:127.77.3.1]:53", true),
            (UDP6, "[::]:0", "[::]:0", false),
            (UDP6, "[::1]:53", "[::1]:53", false),
        ] {
            let expected = Bind::At {
                address: at(kernel),
                wildcard,
            };
            assert_eq!(
                node.bind(shape, at(logical)),
                expected,
                "{shape:?} {logical}"
            );
        }
        assert_eq!(node.bind(V4, at("127.77.3.2:80")), Bind::Foreign);
        assert_eq!(node.bind(V6, at("[::ffff:127.77.3.2]:80")), Bind::Foreign);
        assert_eq!(node.bind(V6ONLY, at("[::ffff:1.2.3.4]:80")), Bind::Unfit);
    }

    #[test]
    fn connects_are_placed() {
        let node = node();
        for (shape, logical, tries, has_source, shown) in [
            (
                V4,
                "127.0.0.1:80",
                &["127.78.3.1:80", "127.77.3.1:80", "127.0.0.1:80"][..],
                false,
                Some("127.0.0.1"),
            ),
            (
                V4,
                "0.0.0.0:80",
                &["127.78.3.1:80", "127.77.3.1:80", "127.0.0.1:80"],
                false,
                Some("127.0.0.1"),
            ),
            (V4, "127.77.3.2:80", &["127.77.3.2:80"], true, None),
            (V4, "127.77.3.1:80", &["127.77.3.1:80"], true, None),
            (
                V4,
                "127.77.3.12:80",
                &["127.77.3.12:80", "127.77.3.2:80"],
                true,
                Some("127.77.3.12"),
            ),
            (V4, "127.77.4.2:80", &["127.77.4.2:80"], false, None),
            (V4, "192.0.2.1:80", &["192.0.2.1:80"], false, None),
            (V4, "[::1]:80", &["[::1]:80"], false, None),
            (V6, "127.0.0.1:80", &["127.0.0.1:80"], false, None),
            (
                V6,
                "[::1]:80",
                &[
                    "[::ffff:127.79.3.1]:80",
                    "[::ffff:127.77.3.1]:80",
                    "[::1]:80",
                ],
                false,
                Some("::1"),
            ),
            (
                V6,
                "[::]:80",
                &[
                    "[::ffff:127.79.3.1]:80",
                    "[::ffff:127.77.3.1]:80",
                    "[::1]:80",
                ],
                false,
                Some("::1"),
            ),
            (
                V6,
                "[::ffff:127.0.0.1]:80",
                &[
                    "[::ffff:127.78.3.1]:80",
                    "[::ffff:127.77.3.1]:80",
                    "[::ffff:127.0.0.1]:80",
                ],
                false,
                Some("::ffff:127.0.0.1"),
            ),
            (
                V6,
                "[::ffff:127.77.3.2]:80",
                &["[::ffff:127.77.3.2]:80"],
                true,
                None,
            ),
            (V6, "[2001:db8::1]:80", &["[2001:db8::1]:80"], false, None),
        ] {
            let to = node.destinations(shape, at(logical)).unwrap();
            let expected: Vec<SocketAddr> = tries.iter().map(|t| at(t)).collect();
            assert_eq!(to.tries(), expected, "{shape:?} {logical}");
            assert_eq!(to.source.is_some(), has_source, "{shape:?} {logical}");
            let shown = shown.map(|s| s.parse::<IpAddr>().unwrap());
            assert_eq!(to.shown, shown, "{shape:?} {logical}");
        }
        assert_eq!(node.destinations(V6ONLY, at("[::ffff:1.2.3.4]:1")), None);
        let own: IpAddr = "::ffff:127.77.3.1".parse().unwrap();
        let to = node.destinations(V6, at("[::ffff:127.77.3.2]:1")).unwrap();
        assert_eq!(to.source, Some(own));
    }

    #[test]
    fn kernel_names_are_translated_back() {
        let node = node();
        for (shape, wildcard, kernel, shown) in [
            (V4, true, "127.77.3.1:80", "0.0.0.0:80"),
            (V4, false, "127.77.3.1:80", "127.77.3.1:80"),
            (V4, false, "127.78.3.1:80", "127.0.0.1:80"),
            (V4, false, "127.78.3.2:80", "127.78.3.2:80"),
            (V6, true, "[::ffff:127.77.3.1]:80", "[::]:80"),
            (V6ONLY, true, "[::ffff:127.79.3.1]:80", "[::]:80"),
            (V6, false, "[::ffff:127.79.3.1]:80", "[::1]:80"),
            (V6, false, "[::ffff:127.78.3.1]:80", "[::ffff:127.0.0.1]:80"),
            (V6, false, "[2001:db8::1]:80", "[2001:db8::1]:80"),
            (V4, false, "192.0.2.1:80", "192.0.2.1:80"),
        ] {
            assert_eq!(
                node.shown_local(shape, wildcard, at(kernel)),
                at(shown),
                "{shape:?} {kernel}"
            );
        }
        for (shape, local, kernel, shown) in [
            (V4, "127.77.3.1", "127.77.3.2:9", "127.77.3.2:9"),
            (V4, "127.78.3.1", "127.0.0.1:9", "127.0.0.1:9"),
            (V4, "127.77.3.1", "127.78.3.1:9", "127.0.0.1:9"),
            (V6, "::ffff:127.79.3.1", "[::ffff:127.0.0.1]:9", "[::1]:9"),
            (
                V6,
                "::ffff:127.77.3.1",
                "[::ffff:127.0.0.1]:9",
                "[::ffff:127.0.0.1]:9",
            ),
        ] {
            let local: IpAddr = local.parse().unwrap();
            assert_eq!(
                node.shown_peer(shape, local, at(kernel)),
                at(shown),
                "{shape:?} {kernel}"
            );
        }
    }

    #[test]
    fn what_is_bound_is_seen_as_it_was_named() {
        let node = node();
        for (shape, logical) in [
            (V4, "0.0.0.0:1"),
            (V4, "127.0.0.1:1"),
            (V4, "127.77.3.11:1"),
            (V6, "[::]:1"),
            (V6, "[::1]:1"),
            (V6, "[::ffff:127.0.0.1]:1"),
            (V6ONLY, "[::]:1"),
            (UDP, "0.0.0.0:1"),
            (UDP6, "[::]:1"),
        ] {
            let Bind::At { address, wildcard } = node.bind(shape, at(logical)) else {
                panic!("{logical} is refused");
            };
            assert_eq!(node.shown_local(shape, wildcard, address), at(logical));
        }
    }

    #[test]
    fn only_loopback_clusters_are_placed() {
        assert!(Placement::new(&[], vec![]).is_none());
        assert!(Placement::new(&[(Ipv4Addr::new(10, 0, 0, 1), 24)], vec![]).is_none());
    }
}
