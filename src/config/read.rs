//! Reading single values of a cluster file, each with the error that its reader must get.
//!
//! Place: `config` and its parts walk the tree with these. Invariants: an error names the line, the path of the key, what stands there and
//! what belongs there. Source: ours.

use super::tree::{Entry, Node, Value};
use super::{NAME_RULE, is_name};

pub(super) struct Fault {
    pub(super) line: Option<usize>,
    pub(super) message: String,
}

pub(super) fn fault<T>(line: Option<usize>, message: String) -> Result<T, Fault> {
    Err(Fault { line, message })
}

pub(super) fn table<'a>(node: &'a Node, what: &str) -> Result<&'a [Entry], Fault> {
    match &node.value {
        Value::Table(entries) => Ok(entries),
        other => fault(
            node.line,
            format!("{what} must be a table, not {}", other.kind()),
        ),
    }
}

pub(super) fn unknown<T>(entry: &Entry, place: &str, allowed: &[&str]) -> Result<T, Fault> {
    let allowed: Vec<String> = allowed.iter().map(|key| format!("`{key}`")).collect();
    fault(
        entry.line,
        format!(
            "unknown key `{}` in {place}; the keys are {}",
            entry.key,
            allowed.join(", ")
        ),
    )
}

pub(super) fn wrong_kind<T>(entry: &Entry, path: &str, wanted: &str) -> Result<T, Fault> {
    fault(
        entry.node.line.or(entry.line),
        format!("{path}: {} where {wanted} belongs", entry.node.value.kind()),
    )
}

pub(super) fn boolean(entry: &Entry, path: &str) -> Result<bool, Fault> {
    match entry.node.value {
        Value::Bool(truth) => Ok(truth),
        _ => wrong_kind(entry, path, "true or false"),
    }
}

pub(super) fn number(entry: &Entry, path: &str) -> Result<u64, Fault> {
    match entry.node.value {
        Value::Number(number) => Ok(number),
        _ => wrong_kind(entry, path, "a whole number from 0"),
    }
}

pub(super) fn name(entry: &Entry, path: &str) -> Result<String, Fault> {
    match &entry.node.value {
        Value::Text(text) if is_name(text) => Ok(text.clone()),
        Value::Text(text) => fault(
            entry.node.line.or(entry.line),
            format!("{path}: `{text}` is no name; a name has {NAME_RULE}"),
        ),
        _ => wrong_kind(entry, path, "a name"),
    }
}

/// A time such as `500 ms`, `1 s` or `2 min`.
pub(super) fn duration_ms(entry: &Entry, path: &str) -> Result<u64, Fault> {
    const WANTED: &str = "a time from \"1 ms\" to \"60 min\", in ms, s or min,";
    let Value::Text(text) = &entry.node.value else {
        return wrong_kind(entry, path, WANTED);
    };
    let unit_at = text.find(|letter: char| !letter.is_ascii_digit());
    let (number, unit) = text.split_at(unit_at.unwrap_or(text.len()));
    let unit_ms = match unit.trim() {
        "ms" => 1,
        "s" => 1_000,
        "min" => 60_000,
        _ => 0,
    };
    let time_ms = number
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(unit_ms));
    match time_ms {
        Some(time_ms @ 1..=3_600_000) => Ok(time_ms),
        _ => fault(
            entry.node.line.or(entry.line),
            format!("{path}: \"{text}\" where {WANTED} belongs"),
        ),
    }
}

pub(super) fn choice<'a>(entry: &Entry, path: &str, allowed: &[&'a str]) -> Result<&'a str, Fault> {
    let quoted: Vec<String> = allowed.iter().map(|value| format!("\"{value}\"")).collect();
    let quoted = quoted.join(" or ");
    match &entry.node.value {
        Value::Text(text) => match allowed.iter().find(|value| *value == text) {
            Some(value) => Ok(value),
            None => fault(
                entry.node.line.or(entry.line),
                format!("{path}: \"{text}\" where {quoted} belongs"),
            ),
        },
        _ => wrong_kind(entry, path, &quoted),
    }
}
