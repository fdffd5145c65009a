//! `limits` of a `[[node]]`: how much the programs of a node may take of its NIC together.
//!
//! Place: `config` hands the table in; the emulator gives it to the device with the node. Invariants: a limit is one that the device can
//! have. Source: ours, docs/cluster.md; the names are those of the counters that `stat` shows.

use nic_emu::device::{Limits, Resource};

use super::read::{Fault, fault, number, table, unknown, wrong_kind};
use super::tree::{Entry, Value};
use crate::units;

/// Reads the table.
pub(super) fn read(entry: &Entry, path: &str) -> Result<Limits, Fault> {
    let mut limits = Limits::default();
    for key in table(&entry.node, path)? {
        let mut all = Resource::ALL.into_iter();
        let Some(resource) = all.find(|resource| resource.name() == key.key) else {
            let names = Resource::ALL.map(Resource::name);
            return unknown(key, path, &names);
        };
        let path = format!("{path}.{}", resource.name());
        let limit = match resource {
            Resource::Memory => size(key, &path)?,
            _ => number(key, &path)?,
        };
        if limits.set(resource, limit).is_err() {
            let most = shown(resource, resource.most());
            return fault(
                key.node.line.or(key.line),
                format!("{path}: a limit is from 0 to {most}, which is the device's own"),
            );
        }
    }
    Ok(limits)
}

fn size(entry: &Entry, path: &str) -> Result<u64, Fault> {
    let wanted = "a size as \"4 GiB\"";
    let Value::Text(text) = &entry.node.value else {
        return wrong_kind(entry, path, wanted);
    };
    let wrong = |_| Fault {
        line: entry.node.line.or(entry.line),
        message: format!("{path}: \"{text}\" where {wanted} belongs"),
    };
    units::size_bytes(text).map_err(wrong)
}

/// The line of a cluster file, where there are any.
pub(super) fn to_toml(limits: &Limits) -> String {
    if limits.is_empty() {
        return String::new();
    }
    let keys = limits.iter().map(|(resource, limit)| {
        let value = shown(resource, limit);
        match resource {
            Resource::Memory => format!("{} = \"{value}\"", resource.name()),
            _ => format!("{} = {value}", resource.name()),
        }
    });
    let keys: Vec<_> = keys.collect();
    format!("limits = {{ {} }}\n", keys.join(", "))
}

fn shown(resource: Resource, limit: u64) -> String {
    match resource {
        Resource::Memory => units::show_size(limit),
        _ => limit.to_string(),
    }
}
