//! A configuration file as a tree of values that know where they stand.
//!
//! Place: [`parse_toml`] or [`parse_json`] reads the text; `config` walks the tree and checks it.
//! Invariants: keys keep the order of the file; lines count from 1. JSON carries no lines past the parser, so its values have none and
//! messages name the path of the key instead.
//! Source: toml.io, RFC 8259. Leaves out: fractions and dates, which no key has.

use toml::de::{DeTable, DeValue};

/// A value and the line on which it starts.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) line: Option<usize>,
}

/// The kinds of values that a cluster file can hold.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Value {
    Table(Vec<Entry>),
    Array(Vec<Node>),
    Text(String),
    Bool(bool),
    /// A whole number that is not negative.
    Number(u64),
    /// Something that no key takes, by its name.
    Other(&'static str),
}

/// A key of a table with its value.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) line: Option<usize>,
    pub(crate) node: Node,
}

/// A text that is no TOML or no JSON.
#[derive(Debug)]
pub(crate) struct SyntaxError {
    pub(crate) line: Option<usize>,
    pub(crate) message: String,
}

impl Value {
    /// What kind of value it is, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Table(_) => "a table",
            Self::Array(_) => "an array",
            Self::Text(_) => "a string",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "an integer",
            Self::Other(kind) => kind,
        }
    }
}

/// Reads TOML text.
pub(crate) fn parse_toml(text: &str) -> Result<Node, SyntaxError> {
    let table = DeTable::parse(text).map_err(|error| SyntaxError {
        line: error.span().map(|span| line_of(text, span.start)),
        message: error.message().to_owned(),
    })?;
    Ok(Node {
        line: Some(1),
        value: from_table(text, table.get_ref()),
    })
}

/// Reads JSON text.
pub(crate) fn parse_json(text: &str) -> Result<Node, SyntaxError> {
    let value: serde_json::Value = serde_json::from_str(text).map_err(|error| SyntaxError {
        line: Some(error.line()),
        message: error.to_string(),
    })?;
    Ok(from_json(value))
}

fn from_table(text: &str, table: &DeTable<'_>) -> Value {
    let mut entries: Vec<(usize, Entry)> = table
        .iter()
        .map(|(key, value)| {
            let start = key.span().start;
            let entry = Entry {
                key: key.get_ref().to_string(),
                line: Some(line_of(text, start)),
                node: Node {
                    line: Some(line_of(text, value.span().start)),
                    value: from_toml(text, value.get_ref()),
                },
            };
            (start, entry)
        })
        .collect();
    entries.sort_by_key(|&(start, _)| start);
    Value::Table(entries.into_iter().map(|(_, entry)| entry).collect())
}

fn from_toml(text: &str, value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(string) => Value::Text(string.to_string()),
        DeValue::Boolean(truth) => Value::Bool(*truth),
        DeValue::Table(table) => from_table(text, table),
        DeValue::Array(array) => Value::Array(
            array
                .iter()
                .map(|item| Node {
                    line: Some(line_of(text, item.span().start)),
                    value: from_toml(text, item.get_ref()),
                })
                .collect(),
        ),
        DeValue::Integer(integer) => u64::from_str_radix(integer.as_str(), integer.radix())
            .map_or(Value::Other("an integer"), Value::Number),
        DeValue::Float(_) => Value::Other("a float"),
        DeValue::Datetime(_) => Value::Other("a date"),
    }
}

fn from_json(value: serde_json::Value) -> Node {
    let value = match value {
        serde_json::Value::String(string) => Value::Text(string),
        serde_json::Value::Bool(truth) => Value::Bool(truth),
        serde_json::Value::Null => Value::Other("null"),
        serde_json::Value::Number(number) => number
            .as_u64()
            .map_or(Value::Other("a number"), Value::Number),
        serde_json::Value::Array(items) => Value::Array(items.into_iter().map(from_json).collect()),
        serde_json::Value::Object(map) => Value::Table(
            map.into_iter()
                .map(|(key, value)| Entry {
                    key,
                    line: None,
                    node: from_json(value),
                })
                .collect(),
        ),
    };
    Node { value, line: None }
}

fn line_of(text: &str, offset: usize) -> usize {
    let before = &text.as_bytes()[..offset.min(text.len())];
    before.iter().filter(|&&byte| byte == b'\n').count() + 1
}
