//! Programs of nodes: `run` and what goes with it, `count`, `after`.
//!
//! Place: `config` hands the keys of a `[[node]]` in; the keeper starts what is planned here. Invariants: a command has at least one word,
//! what a node is after are other nodes of the file, and nobody waits in a circle. Source: ours, docs/cluster.md; the words follow compose
//! files. Leaves out: whether the programs exist, which their start tells.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::NodePlan;
use super::read::{Fault, choice, fault, number, table, unknown, wrong_kind};
use super::tree::{Entry, Node, Value};
use crate::units;

/// Keys of a program, which a node has too, for all of its programs.
const SHARED: [&str; 5] = ["env", "restart", "ready", "dir", "stop_timeout"];
/// Time that a program gets to become ready when the file names none.
const READY_LIMIT_NS: u64 = 60_000_000_000;
/// Time that a program gets between SIGTERM and SIGKILL when the file names none.
const STOP_LIMIT_NS: u64 = 10_000_000_000;

/// A program of a node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct ProgramPlan {
    /// The program and its arguments.
    pub(crate) command: Vec<String>,
    /// What its environment has besides that of `up`.
    pub(crate) env: Vec<(String, String)>,
    /// Whether it is started again when it ends.
    pub(crate) restart: Restart,
    /// When it counts as ready; from its start on when absent.
    pub(crate) ready: Option<Ready>,
    /// Working directory, seen from the cluster file; the node's state folder when absent.
    pub(crate) dir: Option<PathBuf>,
    /// Time between SIGTERM and SIGKILL.
    pub(crate) stop_ns: u64,
}

/// Whether a program that ended is started again.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub(crate) enum Restart {
    /// Never.
    #[default]
    No,
    /// When it failed.
    OnFailure,
    /// Whatever its status.
    Always,
}

/// When a program is ready.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Ready {
    /// What has to hold.
    pub(crate) check: Check,
    /// How long that may take.
    pub(crate) limit_ns: u64,
}

/// What makes a program ready.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Check {
    /// Somebody on the node listens on this port.
    Tcp(u16),
    /// This command, run on the node, exits with 0.
    Command(Vec<String>),
    /// A line of its output has this text.
    Output(String),
    /// It has ended with 0.
    Exit,
}

impl ProgramPlan {
    /// Name of the program, for people.
    pub(crate) fn label(&self) -> &str {
        let file = self.command.first().map_or("", String::as_str);
        file.rsplit('/').next().unwrap_or(file)
    }

    fn to_toml(&self) -> String {
        let mut text = format!("\n[[node.run]]\ncommand = {}\n", quoted_list(&self.command));
        if !self.env.is_empty() {
            let all: Vec<_> = self
                .env
                .iter()
                .map(|(name, value)| format!("{} = {}", quoted(name), quoted(value)))
                .collect();
            text.push_str(&format!("env = {{ {} }}\n", all.join(", ")));
        }
        text.push_str(&format!("restart = \"{}\"\n", self.restart.name()));
        if let Some(ready) = &self.ready {
            let check = match &ready.check {
                Check::Tcp(port) => format!("tcp = {port}"),
                Check::Command(command) => format!("command = {}", quoted_list(command)),
                Check::Output(text) => format!("output = {}", quoted(text)),
                Check::Exit => "exit = true".to_owned(),
            };
            let limit = units::show_time(ready.limit_ns);
            text.push_str(&format!("ready = {{ {check}, timeout = \"{limit}\" }}\n"));
        }
        if let Some(dir) = &self.dir {
            text.push_str(&format!("dir = {}\n", quoted(&dir.to_string_lossy())));
        }
        let stop = units::show_time(self.stop_ns);
        text.push_str(&format!("stop_timeout = \"{stop}\"\n"));
        text
    }
}

impl Restart {
    const NAMES: [(&'static str, Self); 3] = [
        ("no", Self::No),
        ("on-failure", Self::OnFailure),
        ("always", Self::Always),
    ];

    /// The word for it in a cluster file.
    pub(crate) fn name(self) -> &'static str {
        let found = Self::NAMES.iter().find(|(_, restart)| *restart == self);
        found.map_or("no", |(name, _)| name)
    }
}

/// What a node's tables say of its programs, as keys behind those of its name and addresses.
pub(super) fn to_toml(node: &NodePlan) -> String {
    let mut text = String::new();
    if let Some(group) = &node.group {
        text.push_str(&format!("count = {}\n", group.count));
    }
    if !node.after.is_empty() {
        text.push_str(&format!("after = {}\n", quoted_list(&node.after)));
    }
    for program in &node.programs {
        text.push_str(&program.to_toml());
    }
    text
}

fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

fn quoted_list(items: &[String]) -> String {
    let items: Vec<_> = items.iter().map(|item| quoted(item)).collect();
    format!("[{}]", items.join(", "))
}

/// Keys of a `[[node]]` that are about its programs.
#[derive(Default)]
pub(super) struct NodeKeys<'a> {
    run: Option<&'a Entry>,
    after: Option<&'a Entry>,
    shared: Vec<&'a Entry>,
}

impl<'a> NodeKeys<'a> {
    /// All of them.
    pub(super) const NAMES: [&'static str; 7] = [
        "run",
        "after",
        "env",
        "restart",
        "ready",
        "dir",
        "stop_timeout",
    ];

    /// Takes a key; false when it is none of them.
    pub(super) fn take(&mut self, entry: &'a Entry) -> bool {
        match entry.key.as_str() {
            "run" => self.run = Some(entry),
            "after" => self.after = Some(entry),
            key if SHARED.contains(&key) => self.shared.push(entry),
            _ => return false,
        }
        true
    }

    /// The programs, and the names of what the node is after.
    pub(super) fn read(&self, place: &str) -> Result<(Vec<ProgramPlan>, Vec<String>), Fault> {
        let Some(run) = self.run else {
            if let Some(entry) = self.shared.iter().copied().chain(self.after).next() {
                return fault(
                    entry.line,
                    format!("{place}.{} needs `run`, a program", entry.key),
                );
            }
            return Ok((Vec::new(), Vec::new()));
        };
        let mut common = ProgramPlan {
            command: Vec::new(),
            env: Vec::new(),
            restart: Restart::No,
            ready: None,
            dir: None,
            stop_ns: STOP_LIMIT_NS,
        };
        for entry in &self.shared {
            read_shared(entry, place, &mut common)?;
        }
        let programs = read_run(run, &format!("{place}.run"), &common)?;
        let after = match self.after {
            Some(entry) => texts(entry, &format!("{place}.after"), "a list of names of nodes")?,
            None => Vec::new(),
        };
        Ok((programs, after))
    }
}

/// One program as a list of words, or several as tables.
fn read_run(entry: &Entry, path: &str, common: &ProgramPlan) -> Result<Vec<ProgramPlan>, Fault> {
    const WANTED: &str =
        "a command as [\"redis-server\", \"--port\", \"6379\"], or tables with `command`,";
    let Value::Array(items) = &entry.node.value else {
        return wrong_kind(entry, path, WANTED);
    };
    if items
        .iter()
        .any(|item| matches!(item.value, Value::Table(_)))
    {
        let all = items.iter().enumerate();
        return all
            .map(|(index, item)| read_program(item, &format!("{path}[{index}]"), common))
            .collect();
    }
    Ok(vec![ProgramPlan {
        command: command(entry, path, WANTED)?,
        ..common.clone()
    }])
}

fn read_program(node: &Node, path: &str, common: &ProgramPlan) -> Result<ProgramPlan, Fault> {
    let mut program = common.clone();
    for entry in table(node, path)? {
        match entry.key.as_str() {
            "command" => {
                let wanted = "a command as [\"redis-server\", \"--port\", \"6379\"]";
                program.command = command(entry, &format!("{path}.command"), wanted)?;
            }
            key if SHARED.contains(&key) => read_shared(entry, path, &mut program)?,
            _ => {
                let mut keys = vec!["command"];
                keys.extend(SHARED);
                return unknown(entry, path, &keys);
            }
        }
    }
    if program.command.is_empty() {
        return fault(
            node.line,
            format!("{path} has no `command`, as [\"redis-server\"]"),
        );
    }
    Ok(program)
}

fn read_shared(entry: &Entry, place: &str, program: &mut ProgramPlan) -> Result<(), Fault> {
    let path = format!("{place}.{}", entry.key);
    match entry.key.as_str() {
        "env" => {
            for (name, value) in read_env(entry, &path)? {
                program.env.retain(|(other, _)| *other != name);
                program.env.push((name, value));
            }
        }
        "restart" => {
            let names = Restart::NAMES.map(|(name, _)| name);
            let name = choice(entry, &path, &names)?;
            let found = Restart::NAMES.into_iter().find(|(other, _)| *other == name);
            program.restart = found.map_or(Restart::No, |(_, restart)| restart);
        }
        "ready" => program.ready = Some(read_ready(entry, &path)?),
        "dir" => match &entry.node.value {
            Value::Text(text) if !text.is_empty() => program.dir = Some(PathBuf::from(text)),
            _ => return wrong_kind(entry, &path, "a directory, seen from the cluster file,"),
        },
        _ => program.stop_ns = time(entry, &path)?,
    }
    Ok(())
}

fn read_env(entry: &Entry, path: &str) -> Result<Vec<(String, String)>, Fault> {
    let mut all = Vec::new();
    for variable in table(&entry.node, path)? {
        let path = format!("{path}.{}", variable.key);
        let Value::Text(value) = &variable.node.value else {
            return wrong_kind(variable, &path, "a string");
        };
        let is_name = !variable.key.is_empty() && !variable.key.contains(['=', '\0']);
        if !is_name || value.contains('\0') {
            return fault(
                variable.line,
                format!(
                    "{path}: no environment can hold it; a name has no `=`, neither has a zero byte"
                ),
            );
        }
        all.push((variable.key.clone(), value.clone()));
    }
    Ok(all)
}

fn read_ready(entry: &Entry, path: &str) -> Result<Ready, Fault> {
    let wanted = "{ tcp = 6379 }, { command = [\"redis-cli\", \"ping\"] }, { output = \"Ready\" } or { exit = true }";
    let Value::Table(entries) = &entry.node.value else {
        return wrong_kind(entry, path, wanted);
    };
    let mut checks = Vec::new();
    let mut limit_ns = READY_LIMIT_NS;
    for key in entries {
        let path = format!("{path}.{}", key.key);
        match key.key.as_str() {
            "tcp" => {
                let port = u16::try_from(number(key, &path)?)
                    .ok()
                    .filter(|&port| port != 0);
                let Some(port) = port else {
                    return fault(key.line, format!("{path}: a port is from 1 to 65535"));
                };
                checks.push(Check::Tcp(port));
            }
            "command" => {
                let wanted = "a command as [\"redis-cli\", \"ping\"]";
                checks.push(Check::Command(command(key, &path, wanted)?));
            }
            "output" => match &key.node.value {
                Value::Text(text) if !text.is_empty() => checks.push(Check::Output(text.clone())),
                _ => return wrong_kind(key, &path, "a text that a line of output has"),
            },
            "exit" => match key.node.value {
                Value::Bool(true) => checks.push(Check::Exit),
                _ => return wrong_kind(key, &path, "true"),
            },
            "timeout" => limit_ns = time(key, &path)?,
            _ => {
                let keys = ["tcp", "command", "output", "exit", "timeout"];
                return unknown(key, &path[..path.len() - key.key.len() - 1], &keys);
            }
        }
    }
    match <[Check; 1]>::try_from(checks) {
        Ok([check]) => Ok(Ready { check, limit_ns }),
        Err(_) => fault(
            entry.line,
            format!("{path} needs exactly one of `tcp`, `command`, `output` and `exit`: {wanted}"),
        ),
    }
}

/// A time that is not nothing.
fn time(entry: &Entry, path: &str) -> Result<u64, Fault> {
    let wanted = "a time from \"1 ms\" to \"1 day\"";
    let Value::Text(text) = &entry.node.value else {
        return wrong_kind(entry, path, wanted);
    };
    match units::time_ns(text) {
        Ok(time_ns @ 1_000_000..=86_400_000_000_000) => Ok(time_ns),
        _ => fault(
            entry.node.line.or(entry.line),
            format!("{path}: \"{text}\" where {wanted} belongs"),
        ),
    }
}

/// At least one word, none with a zero byte.
fn command(entry: &Entry, path: &str, wanted: &str) -> Result<Vec<String>, Fault> {
    let words = texts(entry, path, wanted)?;
    let is_runnable = words.first().is_some_and(|word| !word.is_empty());
    if !is_runnable || words.iter().any(|word| word.contains('\0')) {
        return fault(
            entry.line,
            format!(
                "{path}: nothing to run; write {}",
                wanted.trim_end_matches(',')
            ),
        );
    }
    Ok(words)
}

fn texts(entry: &Entry, path: &str, wanted: &str) -> Result<Vec<String>, Fault> {
    let Value::Array(items) = &entry.node.value else {
        return wrong_kind(entry, path, wanted);
    };
    items
        .iter()
        .map(|item| match &item.value {
            Value::Text(text) => Ok(text.clone()),
            other => fault(
                item.line.or(entry.line),
                format!("{path}: {} where {wanted} belongs", other.kind()),
            ),
        })
        .collect()
}

/// Replaces names of groups by those of their members, and checks that everybody's turn comes.
pub(super) fn settle_order(
    nodes: &mut [NodePlan],
    places: &[(usize, Option<usize>)],
) -> Result<(), Fault> {
    let known: Vec<(String, Option<String>)> = nodes
        .iter()
        .map(|node| {
            (
                node.name.clone(),
                node.group.as_ref().map(|group| group.name.clone()),
            )
        })
        .collect();
    for (at, node) in nodes.iter_mut().enumerate() {
        let line = places.get(at).and_then(|place| place.1);
        let mut after = Vec::new();
        for word in &node.after {
            let meant: Vec<String> = known
                .iter()
                .filter(|(name, group)| name == word || group.as_ref() == Some(word))
                .map(|(name, _)| name.clone())
                .collect();
            if meant.is_empty() {
                let names: Vec<_> = known.iter().map(|(name, _)| name.as_str()).collect();
                return fault(
                    line,
                    format!(
                        "node `{}` is after `{word}`, which is no node; the nodes are {}",
                        node.name,
                        names.join(", ")
                    ),
                );
            }
            after.extend(meant);
        }
        after.dedup();
        node.after = after;
    }
    // Whoever waits only for those who had their turn gets his.
    let mut done: Vec<&str> = Vec::new();
    while done.len() < nodes.len() {
        let is_free = |node: &&NodePlan| {
            !done.contains(&node.name.as_str())
                && node.after.iter().all(|name| done.contains(&name.as_str()))
        };
        let free: Vec<&str> = nodes
            .iter()
            .filter(is_free)
            .map(|node| node.name.as_str())
            .collect();
        if free.is_empty() {
            let stuck = nodes
                .iter()
                .position(|node| !done.contains(&node.name.as_str()))
                .unwrap_or(0);
            let line = places.get(stuck).and_then(|place| place.1);
            let circle: Vec<_> = nodes
                .iter()
                .filter(|node| !done.contains(&node.name.as_str()))
                .map(|node| node.name.as_str())
                .collect();
            return fault(
                line,
                format!(
                    "`after` goes in a circle: none of {} can start first",
                    circle.join(", ")
                ),
            );
        }
        done.extend(free);
    }
    Ok(())
}
