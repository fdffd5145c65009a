//! The helper that makes namespaces and interfaces: a process of its own, which ends when it has handed them over.
//!
//! Place: `sanlab __netns`, started by [`super::make`]; standard input is the socket to talk over.
//! Invariants: each node's namespaces are made from the same clean ones, so that no node sees the mounts of another. Nothing that it mounts
//! reaches the host. What fails is told in one line that ends with a remedy.
//! Source: namespaces(7), mount_namespaces(7), user_namespaces(7). Leaves out: what programs do in there.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::Context as _;
use nic_emu::server::{NamespaceKind, NodeSpec};
use nic_emu::wire::mac_of;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{getegid, geteuid, sethostname};
use rustix::thread::{CapabilitySet, capabilities};

use super::{Answer, INTERFACE, Order, interface, receive, send, tap};
use crate::exit::{FAILED, Failure};

/// Does what it is asked for over standard input.
pub(crate) fn help() -> Result<(), Failure> {
    let socket = io::stdin();
    let (order, _) = receive::<Order>(&socket)?;
    let made = make_all(&order, &mut |kinds, fds| {
        send(&socket, &Answer::Made { kinds }, fds)
    });
    let Err(error) = made else {
        return Ok(());
    };
    let error = format!(
        "cannot make the namespaces of the nodes: {error:#}; {}",
        remedy_for(&error)
    );
    // Nobody listens any more: then nobody wants to know.
    let _ = send(&socket, &Answer::Failed { error }, &[]);
    Err(Failure::silent(FAILED))
}

type Hand<'a> = &'a mut dyn FnMut(Vec<NamespaceKind>, &[&OwnedFd]) -> anyhow::Result<()>;

fn make_all(order: &Order, hand: Hand<'_>) -> anyhow::Result<()> {
    let is_root = is_privileged();
    let group = getegid().as_raw();
    let user = if is_root {
        None
    } else {
        own_user_namespace()?;
        Some(namespace("user")?)
    };
    unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
    // What the host mounts and unmounts later is seen in here, never the reverse.
    let flags = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
        .context("cannot part the mounts from the host's")?;
    let clean = namespace("mnt")?;
    for ((number, node), &mtu) in (0u16..).zip(&order.nodes).zip(&order.mtus) {
        setns(&clean, CloneFlags::CLONE_NEWNS).context("cannot go back to the first mounts")?;
        let made = make_one(number, node, mtu, &order.hosts);
        let tap = made.with_context(|| format!("node {}", node.name))?;
        interface::open_to_users(group, is_root);
        let [mount, uts, network] = ["mnt", "uts", "net"].map(namespace);
        let (mount, uts, network) = (mount?, uts?, network?);
        let mut kinds = vec![
            NamespaceKind::Mount,
            NamespaceKind::Uts,
            NamespaceKind::Network,
        ];
        let mut fds = vec![&tap];
        if let Some(user) = &user {
            kinds.insert(0, NamespaceKind::User);
            fds.push(user);
        }
        fds.extend([&mount, &uts, &network]);
        hand(kinds, &fds)?;
    }
    Ok(())
}

/// Makes the namespaces of a node and leaves the process in them.
fn make_one(number: u16, node: &NodeSpec, mtu: u32, hosts: &Path) -> anyhow::Result<OwnedFd> {
    let own = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWNET;
    unshare(own).context("cannot make namespaces")?;
    sethostname(&node.name).context("cannot set the host name")?;
    let bound = mount(
        Some(hosts),
        "/etc/hosts",
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    );
    match bound {
        // A system without /etc/hosts has programs that know no names.
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(error) => return Err(error).context("cannot mount the node's /etc/hosts"),
    }
    let tap = tap::make(INTERFACE)?;
    interface::set_up(mac_of(number), mtu, &node.addresses)?;
    Ok(tap)
}

/// Whether namespaces can be made without a user namespace of their own.
fn is_privileged() -> bool {
    let needed = CapabilitySet::SYS_ADMIN | CapabilitySet::NET_ADMIN;
    capabilities(None).is_ok_and(|sets| sets.effective.contains(needed))
}

/// Makes a user namespace that knows this user and group, by their own numbers, and nobody else.
fn own_user_namespace() -> anyhow::Result<()> {
    let (user, group) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER).context("cannot make a user namespace")?;
    // Without it a group that a directory is closed to could be dropped; the kernel insists.
    let texts = [
        ("setgroups", "deny".to_owned()),
        ("gid_map", format!("{group} {group} 1")),
        ("uid_map", format!("{user} {user} 1")),
    ];
    for (file, text) in texts {
        fs::write(format!("/proc/self/{file}"), text)
            .with_context(|| format!("cannot write the {file} of the user namespace"))?;
    }
    Ok(())
}

/// A descriptor of a namespace that this process is in.
fn namespace(kind: &str) -> anyhow::Result<OwnedFd> {
    let path = format!("/proc/self/ns/{kind}");
    let file = File::open(&path).with_context(|| format!("cannot open {path}"))?;
    Ok(file.into())
}

fn remedy_for(error: &anyhow::Error) -> String {
    let is_of_device = error.to_string().contains(tap::DEVICE)
        || error
            .chain()
            .any(|cause| cause.to_string().contains(tap::DEVICE));
    let io = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<io::Error>());
    if is_of_device && let Some(io) = io {
        return tun_remedy(io.kind()).to_owned();
    }
    remedy()
}

/// What to do where /dev/net/tun cannot be opened.
pub(crate) fn tun_remedy(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::NotFound => "as root: `modprobe tun`; in a container: `--device /dev/net/tun`",
        _ => "give the user access to /dev/net/tun; as root: `chmod 666 /dev/net/tun`",
    }
}

/// What to do where user namespaces, or what they are made for, are refused.
pub(crate) fn remedy() -> String {
    const FORBIDS: [(&str, &str, &str); 3] = [
        (
            "/proc/sys/user/max_user_namespaces",
            "0",
            "as root: `sysctl user.max_user_namespaces=10000`",
        ),
        (
            "/proc/sys/kernel/unprivileged_userns_clone",
            "0",
            "as root: `sysctl kernel.unprivileged_userns_clone=1`",
        ),
        (
            "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "as root: `sysctl kernel.apparmor_restrict_unprivileged_userns=0`, or give sanlab an AppArmor profile that allows userns",
        ),
    ];
    let setting = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let found = FORBIDS
        .iter()
        .find(|(file, value, _)| setting(file).trim() == *value);
    match found {
        Some((file, value, remedy)) => format!("{file} is {value}; {remedy}"),
        None => "a seccomp profile or container forbids it; start the container with one that allows namespaces, or use `isolation = \"loopback\"`".to_owned(),
    }
}
