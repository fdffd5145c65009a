//! Clusters in namespace mode, and a static program to put on their nodes.
//!
//! Place: `tests/netns_*.rs` ask [`is_possible`] first. Invariants: where the machine forbids namespaces or TAP devices a suite says so and is
//! skipped; with `SANLAB_REQUIRE_PROGRAMS=1` that is a failure.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Cluster, Lab, Peer, programs};

/// The static program's source.
const SOURCE: &str = include_str!("peer.c");

/// Whether this machine lets `sanlab up` make nodes with namespaces.
pub(crate) fn is_possible(lab: &Lab) -> bool {
    has(lab, "node namespaces")
}

/// Whether the test may make user namespaces, with or without that.
pub(crate) fn has_user_namespaces(lab: &Lab) -> bool {
    has(lab, "user namespaces")
}

fn has(lab: &Lab, name: &str) -> bool {
    let output = lab.output(&["doctor", "--json"]);
    let checks: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = checks["checks"].as_array().unwrap();
    let check = checks.iter().find(|row| row["name"] == name);
    let check = check.unwrap_or_else(|| panic!("{checks:?}"));
    if check["status"] == "ok" {
        return true;
    }
    assert!(
        std::env::var_os("SANLAB_REQUIRE_PROGRAMS").is_none_or(|value| value != "1"),
        "no namespaces, and SANLAB_REQUIRE_PROGRAMS=1 asks for them: {check}"
    );
    programs::skip(format_args!("{check}"));
    false
}

/// A cluster file in namespace mode with nodes of these names; `links` stands behind them.
pub(crate) fn file(lab: &Lab, nodes: &[&str], links: &str) -> PathBuf {
    let mut text = "[cluster]\nisolation = \"netns\"\nsan_connect_limit = \"60 s\"\n".to_owned();
    for node in nodes {
        text.push_str(&format!("[[node]]\nname = \"{node}\"\n"));
    }
    text.push_str(links);
    lab.write("netns.toml", &text)
}

/// Starts it in the foreground.
pub(crate) fn up<'a>(lab: &'a Lab, nodes: &[&str], links: &str) -> Cluster<'a> {
    let file = file(lab, nodes, links);
    lab.up_with(&[file.to_str().unwrap()])
}

/// Builds the static program.
pub(crate) fn static_peer(lab: &Lab, gcc: &Path) -> PathBuf {
    let (source, program) = (lab.write("peer.c", SOURCE), lab.directory().join("peer"));
    let built = Command::new(gcc)
        .args(["-static", "-O1", "-o"])
        .args([&program, &source])
        .output()
        .unwrap();
    assert!(built.status.success(), "{built:?}");
    program
}

/// Starts the static program on a node.
pub(crate) fn start(lab: &Lab, cluster: &Cluster<'_>, node: &str, program: &Path) -> Peer {
    Peer::lead(lab, node, cluster.run(node, [program]))
}
