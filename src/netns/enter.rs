//! Entering a node: what `sanlab run` does before it becomes the program.
//!
//! Place: `run`, and whoever else starts a program on a node, calls [`enter`] last of all. Invariants: afterwards the process is in all
//! namespaces of the node and in the directory where it was, or it has an error and must not go on. In loopback mode nothing happens.
//! Source: setns(2), user_namespaces(7). Leaves out: the way back.

use std::path::Path;

use anyhow::{Context as _, bail};
use nic_emu::control::client;
use nic_emu::server::NamespaceKind;
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::fstat;

use crate::paths;

/// Puts this process, which has one thread, on a node of a cluster. Whether there was something to enter.
pub(crate) fn enter(directory: &Path, node: &str) -> anyhow::Result<bool> {
    let namespaces = client::namespaces(&paths::control_socket(directory), node)?;
    if namespaces.is_empty() {
        return Ok(false);
    }
    let place = std::env::current_dir().context("the working directory is gone")?;
    for namespace in namespaces {
        let (flag, name) = match namespace.kind {
            NamespaceKind::User => (CloneFlags::CLONE_NEWUSER, "user"),
            NamespaceKind::Mount => (CloneFlags::CLONE_NEWNS, "mnt"),
            NamespaceKind::Uts => (CloneFlags::CLONE_NEWUTS, "uts"),
            NamespaceKind::Network => (CloneFlags::CLONE_NEWNET, "net"),
        };
        // One's own user namespace cannot be entered again; the others can.
        let own = nix::sys::stat::stat(format!("/proc/self/ns/{name}").as_str());
        let is_own =
            own.is_ok_and(|own| fstat(&namespace.fd).is_ok_and(|it| it.st_ino == own.st_ino));
        if is_own {
            continue;
        }
        if let Err(error) = setns(&namespace.fd, flag) {
            bail!(
                "cannot enter the {name} namespace of node {node}: {error}; run it as the user who started the cluster, outside of other namespaces"
            );
        }
    }
    std::env::set_current_dir(&place)
        .with_context(|| format!("{} is not there on the node", place.display()))?;
    Ok(true)
}
