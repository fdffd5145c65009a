//! Objects of a cluster's NICs: what `sanlab stat --objects` shows.
//!
//! Place: `stat` asks here; the rows are the emulator's, and the tables those of `nic-emu inspect`.
//! Invariants: of a node's objects none is left out. Source: ours, after `rdma resource show`.

use nic_emu::control::{Inspected, text};
use nic_emu::device::{Inspection, Topic};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::control;
use crate::exit::Failure;

/// Parts of an inspection, of one node or of all.
#[derive(Debug)]
pub(crate) struct Objects<'a> {
    inspected: Inspected,
    parts: &'a [Topic],
}

impl<'a> Objects<'a> {
    /// Asks the emulator of a cluster; no part is every part.
    pub(crate) fn look(
        cluster: &Cluster,
        parts: &'a [Topic],
        node: Option<&str>,
    ) -> Result<Self, Failure> {
        let mut inspected = control::inspect(&cluster.directory, parts)?;
        if let Some(node) = node {
            keep_node(&mut inspected.inspection, node);
        }
        Ok(Self { inspected, parts })
    }

    /// Tables, one per part.
    pub(crate) fn render(&self) -> String {
        text::inspection(&self.inspected, self.parts)
    }

    /// The member `objects` of the JSON.
    pub(crate) fn to_json(&self) -> Result<Value, Failure> {
        serde_json::to_value(&self.inspected.inspection).map_err(|error| {
            let text = format_args!("cannot encode the emulator's answer: {error}");
            Failure::new(crate::exit::FAILED, text)
        })
    }
}

/// Drops what belongs to other nodes; counts of rules are of all nodes together.
fn keep_node(all: &mut Inspection, node: &str) {
    all.functions.retain(|row| row.node == node);
    all.qps.retain(|row| row.node == node);
    all.cqs.retain(|row| row.node == node);
    all.srqs.retain(|row| row.node == node);
    all.mrs.retain(|row| row.node == node);
    all.mws.retain(|row| row.node == node);
    all.windows.retain(|row| row.node == node);
    all.doorbells.retain(|row| row.node == node);
    all.limits.retain(|row| row.node == node);
    all.findings.retain(|row| row.node == node);
    all.rules.clear();
}
