//! Kernel TCP as a provider: system calls on the program's own socket, with logical names on this side and placed ones on that.
//!
//! Place: the preload library and the switch call it for everything that stays with TCP; below lies `sys`.
//! Invariants: names that go in and come out are logical; the kernel socket of an IPv6 socket is never V6ONLY while addresses are
//! placed, and the program's wish is kept in its [`Endpoint`]; nothing blocks longer than `REFUSAL_NS`, connect of a blocking
//! descriptor excepted, which is not made here.
//! Source; `place` for the addresses. Leaves out: data, which the program's own calls move.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::RawFd;

use ring_proto::sync::{AtomicU32, AtomicU64, Ordering};

use crate::place::{Bind, Destinations, Placement, Shape};
use crate::sys::{self, SysResult};
use crate::table::Table;
use crate::tcp_provider::{TcpAccepted, TcpProvider};

/// How long a non-blocking connect to the node's own loopback waits for a refusal before it settles on one of the addresses that
/// could be meant. A listener on the same host answers within microseconds.
const REFUSAL_NS: u64 = 20_000_000;

const V6: u32 = 1;
const V6ONLY: u32 = 1 << 1;
const DATAGRAM: u32 = 1 << 2;
/// Datagrams of it went to another node.
const UNGOVERNED: u32 = 1 << 31;
/// Bound to a wildcard, not connected since.
const WILDCARD: u32 = 1 << 3;
/// Bound to a wildcard and port 0 by the program, not yet in the kernel: whether that is a node address or the host's depends on
/// what the socket is used for.
const DEFERRED: u32 = 1 << 4;

/// What the kernel cannot tell about a socket whose addresses are placed.
#[derive(Debug)]
pub struct Endpoint {
    bits: AtomicU32,
    /// Name of the peer where the kernel's is another one: see [`pack`].
    shown: AtomicU64,
}

impl Endpoint {
    /// State of a new socket.
    #[must_use]
    pub fn new(shape: Shape) -> Self {
        let bit = |is, bit| if is { bit } else { 0 };
        let bits = bit(shape.v6, V6) | bit(shape.v6only, V6ONLY) | bit(shape.datagram, DATAGRAM);
        Self {
            bits: AtomicU32::new(bits),
            shown: AtomicU64::new(0),
        }
    }

    /// Family, type and V6ONLY.
    #[must_use]
    pub fn shape(&self) -> Shape {
        let bits = self.bits();
        Shape {
            v6: bits & V6 != 0,
            v6only: bits & V6ONLY != 0,
            datagram: bits & DATAGRAM != 0,
        }
    }

    /// Takes over the state of another socket.
    pub fn copy_from(&self, other: &Self) {
        // Relaxed, here and below: each word stands alone, and calls that change a socket's name are ordered by the program.
        self.bits.store(other.bits(), Ordering::Relaxed);
        self.shown
            .store(other.shown.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// The state as numbers, for [`Self::of_words`] in another process.
    #[must_use]
    pub fn words(&self) -> [u64; 2] {
        [u64::from(self.bits()), self.shown.load(Ordering::Relaxed)]
    }

    /// Whether the kernel alone could tell nothing else.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        !self.has(WILDCARD | DEFERRED | V6ONLY) && self.shown.load(Ordering::Relaxed) == 0
    }

    /// The state that [`Self::words`] told.
    #[must_use]
    pub fn of_words([bits, shown]: [u64; 2]) -> Self {
        Self {
            bits: AtomicU32::new(u32::try_from(bits).unwrap_or(0)),
            shown: AtomicU64::new(shown),
        }
    }

    fn bits(&self) -> u32 {
        self.bits.load(Ordering::Relaxed)
    }

    fn set(&self, bits: u32, on: bool) {
        if on {
            self.bits.fetch_or(bits, Ordering::Relaxed);
        } else {
            self.bits.fetch_and(!bits, Ordering::Relaxed);
        }
    }

    fn has(&self, bits: u32) -> bool {
        self.bits() & bits != 0
    }

    fn show(&self, peer: Option<IpAddr>) {
        self.shown.store(pack(peer), Ordering::Relaxed);
    }

    fn shown(&self) -> Option<IpAddr> {
        unpack(self.shown.load(Ordering::Relaxed))
    }

    /// Remembers that datagrams of the socket go past every link; whether that is news.
    pub(crate) fn mark_ungoverned(&self) -> bool {
        self.bits.fetch_or(UNGOVERNED, Ordering::Relaxed) & UNGOVERNED == 0
    }

    /// Remembers that datagrams for 127.0.0.1 at `port` go to the node's own address.
    fn redirect(&self, port: u16) {
        self.shown
            .store(REDIRECTED | u64::from(port), Ordering::Relaxed);
    }

    /// Whether datagrams from the node's own address at `port` come from what the program knows as 127.0.0.1.
    fn is_redirected(&self, port: u16) -> bool {
        self.shown.load(Ordering::Relaxed) == REDIRECTED | u64::from(port)
    }

    /// Whether any datagram's source may need a translation.
    #[inline]
    #[must_use]
    pub fn has_redirect(&self) -> bool {
        self.shown.load(Ordering::Relaxed) != 0
    }
}

const REDIRECTED: u64 = 4 << 32;

/// One word for an address: kind 1 IPv4, 2 v4-mapped, 3 `::1`; 0 for none. No other address is ever shown in place of another.
fn pack(ip: Option<IpAddr>) -> u64 {
    match ip {
        Some(IpAddr::V4(v4)) => (1 << 32) | u64::from(v4.to_bits()),
        Some(IpAddr::V6(v6)) => v6
            .to_ipv4_mapped()
            .map_or(3 << 32, |v4| (2 << 32) | u64::from(v4.to_bits())),
        None => 0,
    }
}

fn unpack(word: u64) -> Option<IpAddr> {
    #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
    let v4 = Ipv4Addr::from_bits(word as u32);
    match word >> 32 {
        1 => Some(v4.into()),
        2 => Some(v4.to_ipv6_mapped().into()),
        3 => Some(Ipv6Addr::LOCALHOST.into()),
        _ => None,
    }
}

/// Kernel TCP (and the names of UDP sockets) of one process.
#[derive(Debug)]
pub struct KernelTcp {
    placement: Option<Placement>,
    table: &'static Table,
}

impl KernelTcp {
    /// Kernel TCP with the placement of this node, `None` when addresses are the kernel's own.
    #[must_use]
    pub const fn new(placement: Option<Placement>, table: &'static Table) -> Self {
        Self { placement, table }
    }

    /// The placement in force.
    #[must_use]
    pub const fn placement(&self) -> Option<&Placement> {
        self.placement.as_ref()
    }

    fn endpoint(&self, fd: RawFd) -> Option<&Endpoint> {
        Some(&self.table.peek(fd)?.endpoint)
    }

    /// Placement and endpoint, when names of `fd` need a translation.
    pub(crate) fn placed(&self, fd: RawFd) -> Option<(&Placement, &Endpoint)> {
        Some((self.placement.as_ref()?, self.endpoint(fd)?))
    }

    /// Binds to a logical name.
    ///
    /// # Errors
    /// The kernel's; `EADDRNOTAVAIL` for an address of another node.
    pub fn bind_name(&self, fd: RawFd, name: SocketAddr) -> SysResult<()> {
        let Some((placement, endpoint)) = self.placed(fd) else {
            return sys::bind(fd, name);
        };
        let shape = endpoint.shape();
        if name.is_ipv6() != shape.v6 {
            return sys::bind(fd, name);
        }
        if endpoint.has(DEFERRED) {
            return Err(libc::EINVAL);
        }
        match placement.bind(shape, name) {
            Bind::Foreign => Err(libc::EADDRNOTAVAIL),
            Bind::Unfit => Err(libc::EINVAL),
            Bind::At {
                wildcard: true,
                address,
            } if address.port() == 0 && !shape.datagram => {
                if sys::local_name(fd)?.port() != 0 {
                    return Err(libc::EINVAL);
                }
                endpoint.set(DEFERRED | WILDCARD, true);
                Ok(())
            }
            Bind::At { address, wildcard } => {
                sys::bind(fd, address)?;
                endpoint.set(WILDCARD, wildcard);
                Ok(())
            }
        }
    }

    /// Whether the program has bound the socket and the kernel does not know yet.
    #[must_use]
    pub fn is_deferred(&self, fd: RawFd) -> bool {
        self.endpoint(fd).is_some_and(|e| e.has(DEFERRED))
    }

    /// Carries out a deferred bind: the program is to see the port.
    ///
    /// # Errors
    /// The kernel's.
    pub fn settle(&self, fd: RawFd) -> SysResult<()> {
        let Some((placement, endpoint)) = self.placed(fd) else {
            return Ok(());
        };
        if endpoint.has(DEFERRED) {
            endpoint.set(DEFERRED, false);
            sys::bind(fd, placement.autobind(endpoint.shape()))?;
        }
        Ok(())
    }

    /// Listens; an unbound socket is bound as a wildcard with port 0 first.
    ///
    /// # Errors
    /// The kernel's.
    pub fn listen_on(&self, fd: RawFd, backlog: i32) -> SysResult<()> {
        if let Some((placement, endpoint)) = self.placed(fd) {
            self.settle(fd)?;
            let shape = endpoint.shape();
            if !shape.datagram && sys::local_name(fd)?.port() == 0 {
                sys::bind(fd, placement.autobind(shape))?;
                endpoint.set(WILDCARD, true);
            }
        }
        sys::listen(fd, backlog)
    }

    /// Logical local name.
    ///
    /// # Errors
    /// The kernel's.
    pub fn local(&self, fd: RawFd) -> SysResult<SocketAddr> {
        self.settle(fd)?;
        self.seen(fd)
    }

    fn seen(&self, fd: RawFd) -> SysResult<SocketAddr> {
        let kernel = sys::local_name(fd)?;
        let Some((placement, endpoint)) = self.placed(fd) else {
            return Ok(kernel);
        };
        let shape = endpoint.shape();
        if let (Some(IpAddr::V6(Ipv6Addr::LOCALHOST)), Some(Ipv4Addr::LOCALHOST)) =
            (endpoint.shown(), sys::inner_v4(kernel.ip()))
        {
            return Ok((Ipv6Addr::LOCALHOST, kernel.port()).into());
        }
        Ok(placement.shown_local(shape, endpoint.has(WILDCARD), kernel))
    }

    /// Logical name of the peer.
    ///
    /// # Errors
    /// The kernel's.
    pub fn peer(&self, fd: RawFd) -> SysResult<SocketAddr> {
        let kernel = sys::peer_name(fd)?;
        let Some((placement, endpoint)) = self.placed(fd) else {
            return Ok(kernel);
        };
        if let Some(shown) = endpoint.shown() {
            return Ok((shown, kernel.port()).into());
        }
        Ok(Self::shown_peer(placement, endpoint.shape(), fd, kernel))
    }

    fn shown_peer(
        placement: &Placement,
        shape: Shape,
        fd: RawFd,
        kernel: SocketAddr,
    ) -> SocketAddr {
        // Only a peer on the host's loopback depends on the local name: spare all others the system call.
        let is_local = shape.v6 && sys::inner_v4(kernel.ip()) == Some(Ipv4Addr::LOCALHOST);
        let local = is_local
            .then(|| sys::local_name(fd).ok())
            .flatten()
            .map_or(kernel.ip(), |l| l.ip());
        placement.shown_peer(shape, local, kernel)
    }

    /// Endpoint of a connection that the kernel has just accepted, and the logical name of its peer.
    #[must_use]
    pub fn accepted(
        &self,
        fd: RawFd,
        listener: RawFd,
        kernel: SocketAddr,
    ) -> (Endpoint, SocketAddr) {
        let shape = self.endpoint(listener).map_or(
            Shape {
                v6: kernel.is_ipv6(),
                ..Shape::default()
            },
            Endpoint::shape,
        );
        let peer = self.placement.as_ref().map_or(kernel, |placement| {
            Self::shown_peer(placement, shape, fd, kernel)
        });
        (Endpoint::new(shape), peer)
    }

    /// Where a connect to the logical name `to` goes, after the socket was bound as that needs. The caller tries the addresses in
    /// turn as long as they are refused, and then calls [`Self::connected`].
    ///
    /// # Errors
    /// `ENETUNREACH` for an IPv4 destination of a V6ONLY socket.
    pub fn route(&self, fd: RawFd, to: SocketAddr) -> SysResult<Destinations> {
        let Some((placement, endpoint)) = self.placed(fd) else {
            return Ok(Destinations::one(to));
        };
        let shape = endpoint.shape();
        if shape.datagram {
            let (kernel, is_redirected) = self.datagram_destination(endpoint, to);
            let mut destinations = Destinations::one(kernel);
            destinations.shown = is_redirected.then(|| to.ip());
            return Ok(destinations);
        }
        let destinations = placement.destinations(shape, to).ok_or(libc::ENETUNREACH)?;
        if let Some(source) = destinations.source {
            self.settle(fd)?;
            if sys::local_name(fd)?.port() == 0 {
                // The companion needs a port of its own too, so it is reserved now. Out of ports: the kernel's own choice of
                // a source may still find one.
                sys::bind(fd, (source, 0).into()).ok();
            }
        }
        endpoint.set(DEFERRED, false);
        Ok(destinations)
    }

    /// Remembers what the peer is called once a connect to one of [`Self::route`]'s addresses has begun.
    pub fn connected(&self, fd: RawFd, destinations: &Destinations) {
        if let Some(endpoint) = self.endpoint(fd) {
            endpoint.set(WILDCARD, false);
            endpoint.show(destinations.shown);
        }
    }

    /// Whether a connect that has begun was refused, so that the next address may be tried; waits for the answer a little.
    #[must_use]
    pub fn is_refused(fd: RawFd) -> bool {
        let mut polled = [libc::pollfd {
            fd,
            events: libc::POLLOUT,
            revents: 0,
        }];
        let is_answered = sys::poll(&mut polled, Some(REFUSAL_NS)) == Ok(1);
        is_answered && polled[0].revents & libc::POLLERR != 0
    }

    /// Starts a connect to a logical name: `EINPROGRESS` when it goes on. The descriptor must be non-blocking.
    ///
    /// # Errors
    /// The kernel's.
    pub fn connect_name(&self, fd: RawFd, to: SocketAddr) -> SysResult<()> {
        let destinations = self.route(fd, to)?;
        let (last, first) = destinations
            .tries()
            .split_last()
            .ok_or(libc::EADDRNOTAVAIL)?;
        for &address in first {
            match sys::connect(fd, address) {
                Err(libc::ECONNREFUSED) => {}
                Err(libc::EINPROGRESS) if Self::is_refused(fd) => {
                    // Takes the error off the socket, which makes it fit for the next connect.
                    sys::connect(fd, address).ok();
                }
                result => {
                    self.connected(fd, &destinations);
                    return result;
                }
            }
        }
        let result = sys::connect(fd, *last);
        self.connected(fd, &destinations);
        result
    }

    /// Kernel address for a datagram to the logical name `to`, and whether it is another.
    ///
    /// Datagrams for 127.0.0.1 go to the node's own address when a socket is bound to that port there, because that is where a
    /// wildcard bind was placed, else to the host's loopback.
    fn datagram_destination(&self, endpoint: &Endpoint, to: SocketAddr) -> (SocketAddr, bool) {
        let Some(placement) = &self.placement else {
            return (to, false);
        };
        let is_local = match to.ip() {
            IpAddr::V6(v6) if v6.is_unspecified() || v6.is_loopback() => true,
            ip => sys::inner_v4(ip).is_some_and(|v4| v4.is_unspecified() || v4.is_loopback()),
        };
        let is_alias_of_own = match sys::inner_v4(to.ip()) {
            Some(v4) => v4.is_unspecified() || v4 == Ipv4Addr::LOCALHOST,
            None => is_local,
        };
        if !is_local || !is_alias_of_own || to.is_ipv6() != endpoint.shape().v6 {
            return (to, false);
        }
        let own = SocketAddr::from((placement.own(), to.port()));
        if endpoint.is_redirected(to.port()) || is_datagram_port_in_use(own) {
            let ip = if to.is_ipv6() {
                placement.own().to_ipv6_mapped().into()
            } else {
                placement.own().into()
            };
            return (SocketAddr::new(ip, to.port()), true);
        }
        (to, false)
    }

    /// Kernel address for `sendto` of a datagram socket.
    #[must_use]
    pub fn send_destination(&self, fd: RawFd, to: SocketAddr) -> SocketAddr {
        let Some(endpoint) = self.endpoint(fd).filter(|e| e.has(DATAGRAM)) else {
            return to;
        };
        let (kernel, is_redirected) = self.datagram_destination(endpoint, to);
        if is_redirected {
            endpoint.redirect(to.port());
        }
        kernel
    }

    /// Logical source of a datagram.
    #[must_use]
    pub fn receive_source(&self, fd: RawFd, kernel: SocketAddr) -> SocketAddr {
        let Some((placement, endpoint)) = self.placed(fd) else {
            return kernel;
        };
        let is_own = sys::inner_v4(kernel.ip()) == Some(placement.own());
        if let Some(shown) = endpoint.shown().filter(|_| is_own) {
            return (shown, kernel.port()).into();
        }
        if !is_own || !endpoint.is_redirected(kernel.port()) {
            return kernel;
        }
        let ip: IpAddr = match kernel {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        };
        (ip, kernel.port()).into()
    }

    /// Dissolves the association of a socket.
    ///
    /// # Errors
    /// The kernel's.
    pub fn dissolve(&self, fd: RawFd) -> SysResult<()> {
        sys::disconnect(fd)?;
        if let Some(endpoint) = self.endpoint(fd) {
            endpoint.show(None);
        }
        Ok(())
    }

    /// Answers `IPV6_V6ONLY` for a socket whose kernel side must stay dual; `None`: ask the kernel.
    #[must_use]
    pub fn v6only(&self, fd: RawFd) -> Option<bool> {
        let (_, endpoint) = self.placed(fd)?;
        endpoint.has(V6).then(|| endpoint.has(V6ONLY))
    }

    /// Stores `IPV6_V6ONLY`; `None`: the kernel's business.
    pub fn set_v6only(&self, fd: RawFd, on: bool) -> Option<SysResult<()>> {
        let (_, endpoint) = self.placed(fd)?;
        if !endpoint.has(V6) {
            return None;
        }
        let is_bound = endpoint.has(DEFERRED) || sys::local_name(fd).is_ok_and(|n| n.port() != 0);
        if is_bound {
            // As the kernel answers once the port is chosen.
            return Some(Err(libc::EINVAL));
        }
        endpoint.set(V6ONLY, on);
        Some(Ok(()))
    }

    /// Endpoint for a descriptor that the library has not seen being made, because an earlier program image made it. `None` when
    /// it is no IP socket.
    #[must_use]
    pub fn inherited(fd: RawFd) -> Option<Endpoint> {
        let domain = sys::int_option(fd, libc::SOL_SOCKET, libc::SO_DOMAIN).ok()?;
        let kind = sys::int_option(fd, libc::SOL_SOCKET, libc::SO_TYPE).ok()?;
        shape_of(domain, kind).map(Endpoint::new)
    }
}

impl TcpProvider for KernelTcp {
    fn socket(&self, domain: i32, socket_type: i32, protocol: i32) -> SysResult<RawFd> {
        sys::socket(domain, socket_type, protocol)
    }

    fn bind(&self, fd: RawFd, address: SocketAddr) -> SysResult<()> {
        if let Some(endpoint) = self.endpoint(fd)
            && endpoint.has(DEFERRED)
            && !address.ip().is_unspecified()
        {
            // The switch gives the socket the address of a NIC, which settles what was deferred.
            endpoint.set(DEFERRED | WILDCARD, false);
        }
        self.bind_name(fd, address)
    }

    fn listen(&self, fd: RawFd, backlog: i32) -> SysResult<()> {
        self.listen_on(fd, backlog)
    }

    fn accept(&self, fd: RawFd, flags: i32) -> SysResult<TcpAccepted> {
        // On a blocking descriptor a second taker could still leave this call waiting; listeners with companions are therefore
        // non-blocking in the kernel, whatever the program asked for.
        let mut polled = [libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        }];
        if sys::poll(&mut polled, Some(0))? == 0 {
            return Err(libc::EAGAIN);
        }
        let (new, kernel) = sys::accept(fd, flags)?;
        let (endpoint, peer) = self.accepted(new, fd, kernel);
        // A number too high to be tracked belongs to an ordinary socket.
        drop(self.table.insert(new, &endpoint, None));
        let local = self.local(new).unwrap_or(peer);
        Ok(TcpAccepted {
            fd: new,
            local,
            peer,
        })
    }

    fn connect(&self, fd: RawFd, address: SocketAddr) -> SysResult<()> {
        let flags = sys::fcntl(fd, libc::F_GETFL, 0)?;
        if flags & libc::O_NONBLOCK != 0 {
            return self.connect_name(fd, address);
        }
        sys::set_nonblocking(fd, true)?;
        let result = self.connect_name(fd, address);
        sys::set_nonblocking(fd, false)?;
        result
    }

    fn disconnect(&self, fd: RawFd) -> SysResult<()> {
        self.dissolve(fd)
    }

    /// A deferred bind is not carried out by the switch's question, see [`KernelTcp::settle`].
    fn local_address(&self, fd: RawFd) -> SysResult<SocketAddr> {
        self.seen(fd)
    }

    fn peer_address(&self, fd: RawFd) -> SysResult<SocketAddr> {
        self.peer(fd)
    }

    fn set_option(&self, fd: RawFd, level: i32, name: i32, value: &[u8]) -> SysResult<()> {
        sys::set_option(fd, level, name, value)
    }

    fn get_option(&self, fd: RawFd, level: i32, name: i32, value: &mut [u8]) -> SysResult<usize> {
        sys::option(fd, level, name, value)
    }

    fn set_nonblocking(&self, fd: RawFd, nonblocking: bool) -> SysResult<()> {
        sys::set_nonblocking(fd, nonblocking)
    }

    fn shutdown(&self, fd: RawFd, how: i32) -> SysResult<()> {
        sys::shutdown(fd, how)
    }

    fn close(&self, fd: RawFd) -> SysResult<()> {
        drop(self.table.remove(fd));
        sys::close(fd)
    }
}

/// Shape of a socket with this domain and type, `None` for one that the library leaves alone.
#[must_use]
pub fn shape_of(domain: i32, socket_type: i32) -> Option<Shape> {
    let kind = socket_type & !(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC);
    let is_ip = domain == libc::AF_INET || domain == libc::AF_INET6;
    let is_known = kind == libc::SOCK_STREAM || kind == libc::SOCK_DGRAM;
    (is_ip && is_known).then_some(Shape {
        v6: domain == libc::AF_INET6,
        v6only: false,
        datagram: kind == libc::SOCK_DGRAM,
    })
}

/// Whether a datagram socket is bound to `address`: a bind without address sharing then fails.
fn is_datagram_port_in_use(address: SocketAddr) -> bool {
    let Ok(probe) = sys::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) else {
        return false;
    };
    let in_use = sys::bind(probe, address) == Err(libc::EADDRINUSE);
    // A probe has nothing to lose at close.
    sys::close(probe).ok();
    in_use
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: i32 = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;

    /// A node of subnet 127.77.250.0/24, which no running cluster takes: clusters count up from 0.
    fn node(k: u8, table: &'static Table) -> KernelTcp {
        let own = |k| Ipv4Addr::new(127, 77, 250, k);
        let nodes = vec![vec![own(1)], vec![own(2)]];
        KernelTcp::new(Placement::new(&[(own(k), 24)], nodes), table)
    }

    fn make(table: &'static Table, domain: i32, socket_type: i32) -> RawFd {
        let fd = sys::socket(domain, socket_type | FLAGS, 0).unwrap();
        let shape = shape_of(domain, socket_type | FLAGS).unwrap();
        drop(table.insert(fd, &Endpoint::new(shape), None).unwrap());
        fd
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn listen(node: &KernelTcp, domain: i32, name: SocketAddr) -> (RawFd, u16) {
        let fd = make(node.table, domain, libc::SOCK_STREAM);
        node.bind_name(fd, name).unwrap();
        node.listen_on(fd, 8).unwrap();
        (fd, node.local(fd).unwrap().port())
    }

    fn dial(node: &KernelTcp, domain: i32, to: SocketAddr) -> Result<RawFd, i32> {
        let fd = make(node.table, domain, libc::SOCK_STREAM);
        match node.connect_name(fd, to) {
            Ok(()) => Ok(fd),
            Err(libc::EINPROGRESS) => {
                let mut polled = [libc::pollfd {
                    fd,
                    events: libc::POLLOUT,
                    revents: 0,
                }];
                assert_eq!(sys::poll(&mut polled, Some(10_000_000_000)), Ok(1));
                match sys::int_option(fd, libc::SOL_SOCKET, libc::SO_ERROR).unwrap() {
                    0 => Ok(fd),
                    errno => Err(errno),
                }
            }
            Err(errno) => Err(errno),
        }
    }

    fn take(node: &KernelTcp, listener: RawFd) -> TcpAccepted {
        let mut polled = [libc::pollfd {
            fd: listener,
            events: libc::POLLIN,
            revents: 0,
        }];
        assert_eq!(sys::poll(&mut polled, Some(10_000_000_000)), Ok(1));
        node.accept(listener, FLAGS).unwrap()
    }

    #[test]
    fn two_nodes_listen_on_one_port_and_are_told_apart() {
        static TABLE: Table = Table::new();
        let (a, b) = (node(1, &TABLE), node(2, &TABLE));
        let (on_a, port) = listen(&a, libc::AF_INET, at("0.0.0.0:0"));
        let (on_b, _) = listen(&b, libc::AF_INET, (Ipv4Addr::UNSPECIFIED, port).into());
        assert_eq!(a.local(on_a), Ok((Ipv4Addr::UNSPECIFIED, port).into()));
        let to_b = SocketAddr::from(([127, 77, 250, 2], port));
        let client = dial(&a, libc::AF_INET, to_b).unwrap();
        let accepted = take(&b, on_b);
        assert_eq!(a.peer(client), Ok(to_b));
        assert_eq!(accepted.local, to_b);
        assert_eq!(accepted.peer, a.local(client).unwrap());
        assert_eq!(accepted.peer.ip(), at("127.77.250.1:0").ip());
        assert_eq!(a.accept(on_a, 0), Err(libc::EAGAIN));
    }

    #[test]
    fn localhost_is_each_nodes_own() {
        static TABLE: Table = Table::new();
        let (a, b) = (node(1, &TABLE), node(2, &TABLE));
        let (on_a, port) = listen(&a, libc::AF_INET, at("127.0.0.1:0"));
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        assert_eq!(a.local(on_a), Ok(local));
        let client = dial(&a, libc::AF_INET, local).unwrap();
        let accepted = take(&a, on_a);
        assert_eq!(a.peer(client), Ok(local));
        assert_eq!(accepted.local, local);
        assert_eq!(accepted.peer, a.local(client).unwrap());
        assert_eq!(dial(&b, libc::AF_INET, local), Err(libc::ECONNREFUSED));
    }

    #[test]
    fn localhost_reaches_the_wildcard_and_then_the_host() {
        static TABLE: Table = Table::new();
        let a = node(1, &TABLE);
        for (domain, wildcard, loopback) in [
            (libc::AF_INET, "0.0.0.0:0", "127.0.0.1"),
            (libc::AF_INET6, "[::]:0", "::1"),
            (libc::AF_INET6, "[::]:0", "::ffff:127.0.0.1"),
        ] {
            let (on_a, port) = listen(&a, domain, at(wildcard));
            let to = SocketAddr::new(loopback.parse().unwrap(), port);
            let client = dial(&a, domain, to).unwrap();
            take(&a, on_a);
            assert_eq!(a.peer(client), Ok(to));
        }
        // A program outside of the cluster.
        let outside = sys::socket(libc::AF_INET, libc::SOCK_STREAM | FLAGS, 0).unwrap();
        sys::bind(outside, at("127.0.0.1:0")).unwrap();
        sys::listen(outside, 8).unwrap();
        let to = sys::local_name(outside).unwrap();
        let client = dial(&a, libc::AF_INET, to).unwrap();
        assert_eq!(a.peer(client), Ok(to));
    }

    #[test]
    fn a_v6only_listener_leaves_the_port_to_ipv4() {
        static TABLE: Table = Table::new();
        let a = node(1, &TABLE);
        let six = make(&TABLE, libc::AF_INET6, libc::SOCK_STREAM);
        assert_eq!(a.v6only(six), Some(false));
        assert_eq!(a.set_v6only(six, true), Some(Ok(())));
        assert_eq!(a.v6only(six), Some(true));
        a.bind_name(six, at("[::]:0")).unwrap();
        assert_eq!(a.set_v6only(six, false), Some(Err(libc::EINVAL)));
        a.listen_on(six, 8).unwrap();
        let name = a.local(six).unwrap();
        assert_eq!(name.ip(), at("[::]:0").ip());
        let (four, _) = listen(
            &a,
            libc::AF_INET,
            (Ipv4Addr::UNSPECIFIED, name.port()).into(),
        );
        let to = SocketAddr::from((Ipv6Addr::LOCALHOST, name.port()));
        let client = dial(&a, libc::AF_INET6, to).unwrap();
        let accepted = take(&a, six);
        assert_eq!(accepted.peer.ip(), to.ip());
        assert_eq!(a.local(client), Ok(accepted.peer));
        assert_eq!(a.accept(four, 0), Err(libc::EAGAIN));
        let mapped = SocketAddr::from((Ipv4Addr::LOCALHOST.to_ipv6_mapped(), name.port()));
        let only = make(&TABLE, libc::AF_INET6, libc::SOCK_STREAM);
        a.set_v6only(only, true);
        assert_eq!(a.connect_name(only, mapped), Err(libc::ENETUNREACH));
    }

    #[test]
    fn a_foreign_address_is_not_available() {
        static TABLE: Table = Table::new();
        let a = node(1, &TABLE);
        let fd = make(&TABLE, libc::AF_INET, libc::SOCK_STREAM);
        assert_eq!(
            a.bind_name(fd, at("127.77.250.2:0")),
            Err(libc::EADDRNOTAVAIL)
        );
    }

    #[test]
    fn a_second_bind_is_refused_also_while_the_first_is_deferred() {
        static TABLE: Table = Table::new();
        let a = node(1, &TABLE);
        let fd = make(&TABLE, libc::AF_INET, libc::SOCK_STREAM);
        a.bind_name(fd, at("0.0.0.0:0")).unwrap();
        assert_eq!(a.bind_name(fd, at("0.0.0.0:0")), Err(libc::EINVAL));
        assert_eq!(a.bind_name(fd, at("127.0.0.1:0")), Err(libc::EINVAL));
    }

    #[test]
    fn datagrams_to_localhost_find_a_wildcard_server_of_the_node() {
        static TABLE: Table = Table::new();
        let a = node(1, &TABLE);
        let probe = make(&TABLE, libc::AF_INET, libc::SOCK_DGRAM);
        a.bind_name(probe, at("0.0.0.0:0")).unwrap();
        let port = a.local(probe).unwrap().port();
        drop(TABLE.remove(probe));
        sys::close(probe).unwrap();
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let client = make(&TABLE, libc::AF_INET, libc::SOCK_DGRAM);
        assert_eq!(a.send_destination(client, to), to);
        let server = make(&TABLE, libc::AF_INET, libc::SOCK_DGRAM);
        a.bind_name(server, (Ipv4Addr::UNSPECIFIED, port).into())
            .unwrap();
        assert_eq!(a.local(server), Ok((Ipv4Addr::UNSPECIFIED, port).into()));
        let own = SocketAddr::from(([127, 77, 250, 1], port));
        assert_eq!(a.send_destination(client, to), own);
        assert_eq!(a.receive_source(client, own), to);
        assert_eq!(a.receive_source(server, own), own);
        a.connect_name(client, to).unwrap();
        assert_eq!(sys::peer_name(client), Ok(own));
        assert_eq!(a.peer(client), Ok(to));
    }
}
