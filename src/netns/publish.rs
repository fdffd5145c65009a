//! Published ports: what the host connects to, carried into a node.
//!
//! Place: the emulator process calls [`start`] before it serves; each node with published ports gets a proxy process, `sanlab __publish`, that
//! runs [`serve`]. Invariants: the emulator binds the host's ports, so that one in use is an error of `sanlab up`; a proxy is in the node's
//! network namespace and no other, has no capability, and reaches no file. It ends with the emulator, however that ends: [`Proxies`] waits for
//! it, and the kernel kills what nobody waits for.
//! Source: ours; what a publish means is container tools' word. Leaves out: datagrams, and the client's address, which the node does not see.

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use nic_emu::server::sandbox::{self, Reach};
use nic_emu::server::{NamespaceKind, NodeSpace, NodeSpec};
use nix::sched::{CloneFlags, setns};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use rustix::process::{Signal, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};

use super::{Answer, receive, send};
use crate::config::{NodePlan, Publish};
use crate::emulator::own_binary;
use crate::exit::Failure;

/// Connections of one node at once; more wait in the listener's backlog.
const CONNECTIONS: usize = 512;
/// How long a proxy may take to end.
const END: Duration = Duration::from_secs(5);

/// What a proxy is told first, with the namespaces; then come its listeners, one a message.
#[derive(Debug, Serialize, Deserialize)]
struct Job {
    kinds: Vec<NamespaceKind>,
    address: Ipv4Addr,
    ports: Vec<Publish>,
}

/// Running proxies. Dropping it ends them, and returns when they are gone.
#[derive(Debug, Default)]
pub(crate) struct Proxies(Vec<OwnedFd>);

/// Starts the proxies of a cluster.
pub(crate) fn start(
    plans: &[NodePlan],
    nodes: &[NodeSpec],
    spaces: &[NodeSpace],
) -> anyhow::Result<Proxies> {
    let mut proxies = Proxies::default();
    for ((plan, node), space) in plans.iter().zip(nodes).zip(spaces) {
        if plan.publish.is_empty() {
            continue;
        }
        let Some(address) = node.addresses.first() else {
            bail!("node {} has no address to publish ports of", node.name);
        };
        let started = start_one(&plan.publish, address.ip, space);
        proxies
            .0
            .push(started.with_context(|| format!("cannot publish ports of node {}", node.name))?);
    }
    Ok(proxies)
}

fn start_one(ports: &[Publish], address: Ipv4Addr, space: &NodeSpace) -> anyhow::Result<OwnedFd> {
    let mut listeners = Vec::new();
    for publish in ports {
        let listener = TcpListener::bind(publish.host)
            .with_context(|| format!("cannot listen on {}", publish.host))?;
        listeners.push(OwnedFd::from(listener));
    }
    let kind = SocketType::SEQPACKET;
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)
            .context("cannot make a socket pair")?;
    // It is not waited for: its end of the socket tells when it is gone, and it goes with this process.
    Command::new(own_binary()?)
        .arg("__publish")
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .spawn()
        .context("cannot start the proxy")?;
    let needed = [NamespaceKind::User, NamespaceKind::Network];
    let entered = space
        .namespaces
        .iter()
        .filter(|namespace| needed.contains(&namespace.kind));
    let (kinds, fds): (Vec<_>, Vec<_>) = entered
        .map(|namespace| (namespace.kind, &namespace.fd))
        .unzip();
    let job = Job {
        kinds,
        address,
        ports: ports.to_vec(),
    };
    send(&ours, &job, &fds)?;
    for listener in &listeners {
        send(&ours, &(), &[listener])?;
    }
    match receive::<Answer>(&ours)?.0 {
        Answer::Made { .. } => Ok(ours),
        Answer::Failed { error } => bail!("{error}"),
    }
}

impl Drop for Proxies {
    fn drop(&mut self) {
        for proxy in &self.0 {
            // Gone already: then there is nothing to end.
            let _ = rustix::net::shutdown(proxy, rustix::net::Shutdown::Write);
        }
        for proxy in &self.0 {
            // The end of its stream is the end of the process.
            let _ = set_socket_timeout(proxy, Timeout::Recv, Some(END));
            let _ = rustix::net::recv(proxy, &mut [0; 8], RecvFlags::empty());
        }
    }
}

/// The proxy process: carries connections until its standard input ends.
pub(crate) fn serve() -> Result<(), Failure> {
    let socket = io::stdin();
    let end = socket
        .as_fd()
        .try_clone_to_owned()
        .context("cannot keep the socket")?;
    match set_up(&end) {
        Ok(routes) => {
            send(&end, &Answer::Made { kinds: Vec::new() }, &[])?;
            for (listener, node) in routes {
                std::thread::spawn(move || carry_all(&listener, node));
            }
            // Nothing is ever sent: it waits for the end of the emulator, or for its word.
            let _ = rustix::net::recv(&end, &mut [0; 8], RecvFlags::empty());
            Ok(())
        }
        Err(error) => {
            let error = format!("{error:#}");
            send(&end, &Answer::Failed { error }, &[])?;
            Err(Failure::silent(crate::exit::FAILED))
        }
    }
}

fn set_up(socket: &OwnedFd) -> anyhow::Result<Vec<(TcpListener, SocketAddrV4)>> {
    let (job, fds) = receive::<Job>(socket)?;
    let mut routes = Vec::new();
    for publish in &job.ports {
        let ((), fds) = receive(socket)?;
        let listener = fds.into_iter().next().context("a listener is missing")?;
        routes.push((
            TcpListener::from(listener),
            SocketAddrV4::new(job.address, publish.port),
        ));
    }
    for (kind, fd) in job.kinds.iter().zip(&fds) {
        let flag = match kind {
            NamespaceKind::User => CloneFlags::CLONE_NEWUSER,
            _ => CloneFlags::CLONE_NEWNET,
        };
        setns(fd, flag).context("cannot enter the node's namespaces")?;
    }
    // What a kernel does not offer is left out, as in the emulator.
    let _walls = sandbox::confine(&Reach {
        connects: true,
        ..Reach::default()
    });
    // After the change of user namespace, which would take it back.
    set_parent_process_death_signal(Some(Signal::KILL)).context("cannot end with the emulator")?;
    Ok(routes)
}

/// Carries every connection of a listener to the node.
fn carry_all(listener: &TcpListener, node: SocketAddrV4) {
    let places = Arc::new(Places::default());
    loop {
        places.take();
        let Ok((client, _)) = listener.accept() else {
            // The client is gone, or no descriptor is free: one will be when a connection ends.
            places.give_back();
            std::thread::sleep(Duration::from_millis(10));
            continue;
        };
        let place = Arc::clone(&places);
        let spawned = std::thread::Builder::new().spawn(move || {
            carry(&client, node);
            place.give_back();
        });
        if spawned.is_err() {
            places.give_back();
        }
    }
}

/// Room for so many connections.
#[derive(Debug, Default)]
struct Places {
    taken: Mutex<usize>,
    freed: std::sync::Condvar,
}

impl Places {
    fn take(&self) {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |taken: &mut usize| *taken >= CONNECTIONS;
        let waited = self.freed.wait_while(taken, full);
        *waited.unwrap_or_else(PoisonError::into_inner) += 1;
    }

    fn give_back(&self) {
        *self.taken.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.freed.notify_one();
    }
}

/// Carries one connection. Nobody listens on the node: the client's connection ends.
fn carry(client: &TcpStream, node: SocketAddrV4) {
    let Ok(server) = TcpStream::connect(node) else {
        return;
    };
    for stream in [client, &server] {
        // Small messages must not wait twice.
        let _ = stream.set_nodelay(true);
    }
    std::thread::scope(|scope| {
        scope.spawn(|| one_way(client, &server));
        one_way(&server, client);
    });
}

fn one_way(mut from: &TcpStream, mut to: &TcpStream) {
    let ended = match io::copy(&mut from, &mut to) {
        Ok(_) => Shutdown::Write,
        // An end that broke breaks the other way too.
        Err(_) => {
            let _ = from.shutdown(Shutdown::Both);
            Shutdown::Both
        }
    };
    // The other end may be gone.
    let _ = to.shutdown(ended);
}
