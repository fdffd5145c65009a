//! `sanlab check`: whether a cluster file can be started.
//!
//! Place: the same reading that `up` does, and nothing else. Invariants: nothing is touched but the file. Source: ours.

use nic_emu::control::SCHEMA;
use serde_json::json;

use crate::cli;
use crate::config::{ClusterPlan, schema};
use crate::exit::Failure;
use crate::output;
use crate::up::DEFAULT_NAME;

/// Checks a cluster file.
pub(crate) fn check(arguments: &cli::Check) -> Result<(), Failure> {
    let Some(file) = arguments.file.as_deref() else {
        return output::json(schema::schema().as_value());
    };
    let plan = ClusterPlan::read(file).map_err(Failure::usage)?;
    let name = plan.name.as_deref().unwrap_or(DEFAULT_NAME);
    if arguments.print_config {
        return output::answer(&plan.to_toml(name));
    }
    let (nodes, links, events) = (plan.nodes.len(), plan.links.len(), plan.events.len());
    if arguments.json {
        return output::json(&json!({
            "schema": SCHEMA, "ok": true, "name": name, "nodes": nodes, "links": links, "events": events,
        }));
    }
    output::answer(&format!(
        "{}: cluster {name}, nodes: {nodes}, links: {links}, events: {events}\n",
        file.display()
    ))
}
