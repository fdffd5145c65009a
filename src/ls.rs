//! `sanlab ls`: the running clusters.
//!
//! Place: prints what [`crate::cluster::running`] finds.
//! Invariants: leftovers are removed and not listed; nothing running is an empty answer and success.
//! Source: ours, the command-line contract.

use serde_json::{Value, json};

use crate::cli;
use crate::cluster::{self, Cluster};
use crate::control;
use crate::exit::Failure;
use crate::output::{self, Table};
use crate::paths::RunDirectory;

/// Lists the running clusters.
pub(crate) fn ls(arguments: &cli::Ls) -> Result<(), Failure> {
    let run = RunDirectory::of_user();
    let clusters = cluster::running(&run)?;
    if arguments.json {
        let clusters: Vec<Value> = clusters.iter().map(describe).collect();
        return output::json(&json!({ "schema": 1, "clusters": clusters }));
    }
    if clusters.is_empty() {
        crate::exit::diagnostic(format_args!(
            "no cluster runs in {}; start one with `sanlab up`",
            run.path().display()
        ));
        return Ok(());
    }
    let mut table = Table::new(&["CLUSTER", "STATE", ">EMULATOR", "NODES"]);
    for cluster in &clusters {
        let record = cluster.record.as_ref();
        let nodes = record.map_or_else(String::new, |record| {
            let nodes = record.nodes.iter().map(|node| {
                let addresses = node.addresses.iter().map(ToString::to_string);
                let addresses: Vec<String> = addresses.collect();
                format!("{} ({})", node.name, control::addresses_text(&addresses))
            });
            nodes.collect::<Vec<_>>().join(", ")
        });
        let pid = record.map_or_else(String::new, |record| record.emulator_pid.to_string());
        table.row([
            cluster.name.clone(),
            cluster.state.name().to_owned(),
            pid,
            nodes,
        ]);
    }
    output::answer(&table.render(""))
}

fn describe(cluster: &Cluster) -> Value {
    let record = cluster.record.as_ref();
    json!({
        "name": cluster.name,
        "emulator_pid": record.map(|record| record.emulator_pid),
        "nodes": record.map_or(&[][..], |record| &record.nodes),
        "state": cluster.state.name(),
    })
}
