//! What is kept of a run: everything that explains it, in one directory.
//!
//! Place: the keeper writes it when the programs have ended and the emulator still answers. Invariants: what cannot be got is named in
//! `summary.json` and keeps nothing else from being written. Source: ours, docs/cluster.md. Leaves out: captures.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use nic_emu::control::{SCHEMA, client};
use serde_json::{Value, json};

use super::conductor::Conductor;
use super::log::{Reader, Stream};
use crate::config::ClusterPlan;
use crate::paths;

/// Makes the directory; called before anything starts, so that one that cannot be made starts nothing.
pub(crate) fn make(directory: &Path) -> anyhow::Result<PathBuf> {
    let logs = directory.join("logs");
    fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
    std::path::absolute(directory).with_context(|| format!("no path: {}", directory.display()))
}

/// Writes everything.
pub(crate) fn write(
    to: &Path,
    plan: &ClusterPlan,
    conductor: &Conductor,
    code: i32,
) -> anyhow::Result<()> {
    let directory = &conductor.setup.directory;
    let socket = paths::control_socket(directory);
    let mut missing = Vec::new();
    let mut keep = |name: &str, got: Result<Value, String>| match got {
        Ok(value) => put(&to.join(name), format!("{value:#}\n").as_bytes()),
        Err(error) => {
            missing.push(format!("{name}: {error}"));
            Ok(())
        }
    };
    let value = |got: Result<Value, serde_json::Error>| got.map_err(|error| error.to_string());
    let stat = client::stat(&socket).map_err(|error| error.to_string());
    keep(
        "stat.json",
        stat.and_then(|stat| value(serde_json::to_value(stat))),
    )?;
    let links = client::links(&socket).map_err(|error| error.to_string());
    keep(
        "links.json",
        links.and_then(|links| value(serde_json::to_value(links))),
    )?;
    let faults = client::faults(&socket, None).map_err(|error| error.to_string());
    keep(
        "faults.json",
        faults.and_then(|faults| value(serde_json::to_value(faults))),
    )?;
    keep(
        "events.json",
        Ok(json!({ "schema": SCHEMA, "seed": plan.seed, "events": conductor.events.happened() })),
    )?;
    put(
        &to.join("cluster.toml"),
        plan.to_toml(&conductor.setup.cluster).as_bytes(),
    )?;
    if let Err(error) = write_logs(to, directory) {
        missing.push(format!("logs: {error:#}"));
    }
    let mut summary = conductor.describe();
    summary["seed"] = plan.seed.into();
    summary["exit_code"] = code.into();
    summary["failure"] = conductor.failure().into();
    summary["missing"] = missing.into();
    put(
        &to.join("summary.json"),
        format!("{summary:#}\n").as_bytes(),
    )
}

fn put(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}

/// One file for all, with times, and one for each node as its programs wrote it.
fn write_logs(to: &Path, directory: &Path) -> anyhow::Result<()> {
    let mut reader = Reader::open(directory)?;
    let mut entries = reader.older();
    entries.extend(reader.take()?);
    let logs = to.join("logs");
    let mut all = std::io::BufWriter::new(fs::File::create(logs.join("all.jsonl"))?);
    let mut nodes: std::collections::BTreeMap<String, Vec<u8>> = std::collections::BTreeMap::new();
    for entry in &entries {
        serde_json::to_writer(&mut all, entry)?;
        all.write_all(b"\n")?;
        if let Some(node) = &entry.node {
            let mark = if entry.stream == Stream::Lab {
                "sanlab: "
            } else {
                ""
            };
            let text = nodes.entry(node.clone()).or_default();
            text.extend_from_slice(format!("{mark}{}\n", entry.text).as_bytes());
        }
    }
    all.flush()?;
    for (node, text) in nodes {
        put(&logs.join(format!("{node}.log")), &text)?;
    }
    Ok(())
}
