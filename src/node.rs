//! `sanlab node`: the programs of a cluster file, and what is to happen to the nodes they run on.
//!
//! Place: asks the cluster's keeper. Invariants: a change has been made when the command returns; only `restart` goes on behind it.
//! Source: ours.

use serde_json::{Value, json};

use crate::cli;
use crate::cluster;
use crate::exit::Failure;
use crate::keeper::request;
use crate::output::{self, Table};

/// Lists programs, or does something to a node.
pub(crate) fn node(arguments: &cli::Node) -> Result<(), Failure> {
    if let cli::NodeCommand::Ls(arguments) = &arguments.command {
        return ls(arguments);
    }
    let Some((action, change)) = arguments.command.change() else {
        return Ok(());
    };
    let cluster = cluster::select(change.cluster.as_deref())?;
    let request = json!({ "cmd": "node", "node": change.node, "action": action.name() });
    request::ask(&cluster.directory, &request)?;
    Ok(())
}

fn ls(arguments: &cli::NodeLs) -> Result<(), Failure> {
    let cluster = cluster::select(arguments.cluster.as_deref())?;
    let answer = request::ask(&cluster.directory, &json!({ "cmd": "programs" }))?;
    if arguments.json {
        return output::json(&answer);
    }
    let mut table = Table::new(&[
        "NODE",
        "PROGRAM",
        "STATE",
        "READY",
        ">PID",
        ">RESTARTS",
        ">EXIT",
        "POWER",
    ]);
    for row in answer["programs"].as_array().into_iter().flatten() {
        let text = |key: &str| match &row[key] {
            Value::Null => "-".to_owned(),
            Value::String(text) => text.clone(),
            Value::Bool(truth) => if *truth { "yes" } else { "no" }.to_owned(),
            other => other.to_string(),
        };
        let keys = [
            "node",
            "program",
            "state",
            "ready",
            "pid",
            "restarts",
            "exit_code",
            "power",
        ];
        table.row(keys.map(text));
    }
    output::answer(&table.render(""))
}
