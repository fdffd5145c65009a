//! `sanlab link`, `partition`, `heal`, `port`, `fault`: trouble on purpose, and its end.
//!
//! Place: each command is a request or two to the emulator's control socket, which checks names and values.
//! Invariants: nothing is remembered here; what the emulator refuses ends the command with its text and exit code 1.
//! Source: ours, docs/control.md; words after `ip link` and `tc`.

use serde::Serialize;

use crate::cluster::{self, Cluster};
use crate::exit::Failure;
use crate::output;
use crate::paths;

pub(crate) mod fault;
pub(crate) mod link;

/// The running cluster that an option means.
fn running(name: Option<&str>) -> Result<Cluster, Failure> {
    let cluster = cluster::select(name)?;
    cluster.require_running()?;
    Ok(cluster)
}

fn socket(cluster: &Cluster) -> std::path::PathBuf {
    paths::control_socket(&cluster.directory)
}

fn refused(error: nic_emu::control::client::ControlError) -> Failure {
    Failure::from(anyhow::Error::from(error))
}

/// Answers with one JSON object, or with what people read.
fn answer(is_json: bool, object: &impl Serialize, text: &str) -> Result<(), Failure> {
    if !is_json {
        return output::answer(text);
    }
    let object =
        serde_json::to_value(object).map_err(|error| Failure::from(anyhow::Error::from(error)))?;
    output::json(&object)
}
