//! `[[link]]` and `[[event]]` of a cluster file: how packets fare between nodes, and what changes when.
//!
//! Place: `config` hands the tables in once the nodes are known; the emulator sets the links at its start and runs the events by the clock.
//! Invariants: both ends of a link are nodes of the file and differ, no pair stands twice, every value is one that the device takes; events
//! are in the order of their times. Source: ours, docs/cluster.md.

use nic_emu::device::{Distribution, LinkChange};
use nic_emu::server::{EventSpec, LinkSpec, Trouble};
use serde::{Deserialize, Serialize};

use super::NodePlan;
use super::read::{Fault, boolean, choice, fault, table, unknown, wrong_kind};
use super::tree::{Entry, Node, Value};
use crate::units;

/// Parameters that both `[[link]]` and `set` take.
const PARAMETERS: [&str; 14] = [
    "bandwidth",
    "queue",
    "mtu",
    "latency",
    "jitter",
    "jitter_distribution",
    "loss",
    "burst_enter",
    "burst_leave",
    "burst_loss",
    "reorder",
    "reorder_by",
    "duplicate",
    "corrupt",
];

/// Why one direction cannot have its own.
const MTU_BOTH_WAYS: &str = "an MTU holds for both directions of a link";

/// A link as the file describes it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct LinkPlan {
    pub(crate) a: String,
    pub(crate) b: String,
    pub(crate) a_to_b: LinkChange,
    pub(crate) b_to_a: LinkChange,
}

impl LinkPlan {
    /// Its two directions.
    pub(crate) fn directions(&self) -> [LinkSpec; 2] {
        let direction = |from: &str, to: &str, change| LinkSpec {
            from: from.to_owned(),
            to: to.to_owned(),
            change,
        };
        [
            direction(&self.a, &self.b, self.a_to_b),
            direction(&self.b, &self.a, self.b_to_a),
        ]
    }

    /// The table of a cluster file.
    pub(crate) fn to_toml(&self) -> String {
        let mut text = format!("\n[[link]]\na = \"{}\"\nb = \"{}\"\n", self.a, self.b);
        if self.a_to_b == self.b_to_a {
            for (key, value) in shown(&self.a_to_b) {
                text.push_str(&format!("{key} = {value}\n"));
            }
        } else {
            text.push_str(&format!("a_to_b = {}\n", inline(&self.a_to_b)));
            text.push_str(&format!("b_to_a = {}\n", inline(&self.b_to_a)));
        }
        text
    }
}

/// An event as the file describes it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct EventPlan {
    /// Time since the cluster is ready, with its programs.
    pub(crate) at_ns: u64,
    pub(crate) what: Happening,
}

impl EventPlan {
    /// As the emulator takes it, which knows nothing of programs.
    pub(crate) fn of_fabric(&self) -> Option<EventSpec> {
        match &self.what {
            Happening::Fabric(what) => Some(EventSpec {
                at_ns: self.at_ns,
                what: what.clone(),
            }),
            Happening::Node { .. } => None,
        }
    }
}

/// What an event does.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Happening {
    /// Something to links or ports.
    Fabric(Trouble),
    /// Something to the programs of a node.
    Node { node: String, action: NodeAction },
}

/// What can happen to a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum NodeAction {
    /// Its programs are killed; their peers see the end.
    Kill,
    /// Silence: no link carries anything, programs stand still, and what they hold in memory is lost.
    Poweroff,
    /// Its programs stand still; the NIC goes on.
    Freeze,
    /// They go on.
    Thaw,
    /// They end and start again, on a node that was off too.
    Restart,
}

impl NodeAction {
    /// All of them by their names.
    pub(crate) const NAMES: [(&'static str, Self); 5] = [
        ("kill", Self::Kill),
        ("poweroff", Self::Poweroff),
        ("freeze", Self::Freeze),
        ("thaw", Self::Thaw),
        ("restart", Self::Restart),
    ];

    /// The action of this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let mut all = Self::NAMES.iter();
        all.find(|(other, _)| *other == name)
            .map(|(_, action)| *action)
    }

    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        let found = Self::NAMES.iter().find(|(_, action)| *action == self);
        found.map_or("", |(name, _)| name)
    }
}

impl Happening {
    /// For people.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Fabric(Trouble::Heal) => "heal".to_owned(),
            Self::Fabric(Trouble::Port { node, up }) => format!("port {node} {}", word(*up)),
            Self::Fabric(Trouble::Link { links }) => {
                let all = links.iter().map(|link| {
                    let change: Vec<_> = shown(&link.change)
                        .into_iter()
                        .map(|(key, value)| format!("{key} = {value}"))
                        .collect();
                    format!("link {}->{} {}", link.from, link.to, change.join(", "))
                });
                all.collect::<Vec<_>>().join("; ")
            }
            Self::Node { node, action } => format!("{} {node}", action.name()),
        }
    }
}

/// The table of a cluster file.
pub(crate) fn event_to_toml(event: &EventPlan) -> String {
    let head = format!("\n[[event]]\nat = \"{}\"\n", units::show_time(event.at_ns));
    let trouble = match &event.what {
        Happening::Fabric(trouble) => trouble,
        Happening::Node { node, action } => {
            return format!("{head}node = \"{node}\"\naction = \"{}\"\n", action.name());
        }
    };
    let rest = match trouble {
        Trouble::Heal => "action = \"heal\"\n".to_owned(),
        Trouble::Port { node, up } => format!("node = \"{node}\"\naction = \"{}\"\n", word(*up)),
        Trouble::Link { links } => {
            let link = match links.as_slice() {
                [one] => format!("\"{}->{}\"", one.from, one.to),
                [one, ..] => format!("[\"{}\", \"{}\"]", one.from, one.to),
                [] => "[]".into(),
            };
            let change = links.first().map(|link| link.change).unwrap_or_default();
            match change.up {
                Some(up) => format!("link = {link}\naction = \"{}\"\n", word(up)),
                None => format!(
                    "link = {link}\naction = \"set\"\nset = {}\n",
                    inline(&change)
                ),
            }
        }
    };
    head + &rest
}

const fn word(up: bool) -> &'static str {
    if up { "up" } else { "down" }
}

fn shown(change: &LinkChange) -> Vec<(&'static str, String)> {
    let quoted = |text: String| format!("\"{text}\"");
    let time = |ns: Option<u64>| ns.map(|ns| quoted(units::show_time(ns)));
    let share = |ppm: Option<u32>| ppm.map(|ppm| quoted(units::show_share(ppm)));
    let values = [
        change
            .bandwidth_bps
            .map(|bps| quoted(units::show_rate(bps))),
        change
            .queue_bytes
            .map(|bytes| quoted(units::show_queue(bytes))),
        change.mtu_bytes.map(|bytes| bytes.to_string()),
        time(change.latency_ns),
        time(change.jitter_ns),
        change
            .jitter_distribution
            .map(|distribution| quoted(distribution.name().to_owned())),
        share(change.loss_ppm),
        share(change.burst_enter_ppm),
        share(change.burst_leave_ppm),
        share(change.burst_loss_ppm),
        share(change.reorder_ppm),
        time(change.reorder_ns),
        share(change.duplicate_ppm),
        share(change.corrupt_ppm),
    ];
    let mut all: Vec<_> = PARAMETERS
        .into_iter()
        .zip(values)
        .filter_map(|(key, value)| Some((key, value?)))
        .collect();
    if let Some(up) = change.up {
        all.push(("up", up.to_string()));
    }
    all
}

fn inline(change: &LinkChange) -> String {
    let all: Vec<_> = shown(change)
        .into_iter()
        .map(|(key, value)| format!("{key} = {value}"))
        .collect();
    format!("{{ {} }}", all.join(", "))
}

/// Reads all `[[link]]` tables.
pub(super) fn read_links(entry: &Entry, nodes: &[String]) -> Result<Vec<LinkPlan>, Fault> {
    let mut links: Vec<LinkPlan> = Vec::new();
    for (index, node) in tables(entry, "link")?.iter().enumerate() {
        let link = read_link(node, index, nodes)?;
        let twin = links.iter().position(|other| {
            (&other.a, &other.b) == (&link.a, &link.b) || (&other.a, &other.b) == (&link.b, &link.a)
        });
        if let Some(twin) = twin {
            return fault(
                node.line,
                format!(
                    "link[{index}]: link[{twin}] is between `{}` and `{}` too",
                    link.a, link.b
                ),
            );
        }
        links.push(link);
    }
    Ok(links)
}

fn read_link(node: &Node, index: usize, nodes: &[String]) -> Result<LinkPlan, Fault> {
    let place = format!("link[{index}]");
    let (mut a, mut b) = (None, None);
    let mut both = LinkChange::default();
    let mut over = [LinkChange::default(); 2];
    for entry in table(node, &place)? {
        let path = format!("{place}.{}", entry.key);
        match entry.key.as_str() {
            "a" => a = Some(known_node(entry, &path, nodes)?),
            "b" => b = Some(known_node(entry, &path, nodes)?),
            "a_to_b" => over[0] = read_direction(&entry.node, &path)?,
            "b_to_a" => over[1] = read_direction(&entry.node, &path)?,
            _ if is_parameter(&entry.key) => read_parameter(entry, &path, &mut both)?,
            _ => {
                let mut keys = vec!["a", "b", "a_to_b", "b_to_a", "up"];
                keys.extend(PARAMETERS);
                return unknown(entry, &place, &keys);
            }
        }
    }
    let (Some(a), Some(b)) = (a, b) else {
        return fault(
            node.line,
            format!("{place} needs two ends: `a` and `b`, names of nodes"),
        );
    };
    if a == b {
        return fault(node.line, format!("{place}: both ends are `{a}`"));
    }
    Ok(LinkPlan {
        a,
        b,
        a_to_b: over[0].or(both),
        b_to_a: over[1].or(both),
    })
}

fn known_node(entry: &Entry, path: &str, nodes: &[String]) -> Result<String, Fault> {
    let Value::Text(text) = &entry.node.value else {
        return wrong_kind(entry, path, "the name of a node");
    };
    check_node(entry, path, text, nodes)?;
    Ok(text.clone())
}

fn check_node(entry: &Entry, path: &str, text: &str, nodes: &[String]) -> Result<(), Fault> {
    if nodes.iter().any(|node| node == text) {
        return Ok(());
    }
    fault(
        entry.node.line.or(entry.line),
        format!(
            "{path}: there is no node `{text}`; the nodes are {}",
            nodes.join(", ")
        ),
    )
}

fn is_parameter(key: &str) -> bool {
    key == "up" || PARAMETERS.contains(&key)
}

fn read_change(node: &Node, path: &str) -> Result<LinkChange, Fault> {
    let mut change = LinkChange::default();
    for entry in table(node, path)? {
        if !is_parameter(&entry.key) {
            let mut keys = PARAMETERS.to_vec();
            keys.push("up");
            return unknown(entry, path, &keys);
        }
        read_parameter(entry, &format!("{path}.{}", entry.key), &mut change)?;
    }
    Ok(change)
}

/// Reads what holds for one direction.
fn read_direction(node: &Node, path: &str) -> Result<LinkChange, Fault> {
    for entry in table(node, path)? {
        if entry.key == "mtu" {
            return fault(
                entry.line,
                format!("{path}.mtu: {MTU_BOTH_WAYS}: write it beside `a` and `b`"),
            );
        }
    }
    read_change(node, path)
}

fn read_parameter(entry: &Entry, path: &str, change: &mut LinkChange) -> Result<(), Fault> {
    if entry.key == "up" {
        change.up = Some(boolean(entry, path)?);
        return Ok(());
    }
    if entry.key == "mtu" {
        let Value::Number(number) = entry.node.value else {
            return wrong_kind(entry, path, "a whole number from 576 to 9216");
        };
        change.mtu_bytes = Some(units::mtu_bytes(&number.to_string()).or_else(|message| {
            fault(entry.node.line.or(entry.line), format!("{path}: {message}"))
        })?);
        return Ok(());
    }
    if entry.key == "jitter_distribution" {
        let name = choice(entry, path, &Distribution::NAMES.map(|(name, _)| name))?;
        change.jitter_distribution = Distribution::named(name);
        return Ok(());
    }
    let wanted = match entry.key.as_str() {
        "bandwidth" => "a rate, as \"10 Gbit/s\",",
        "queue" => "the length of a queue, as \"64 KiB\",",
        "latency" | "jitter" | "reorder_by" => "a time, as \"25 us\",",
        _ => "a share, as \"0.1 %\",",
    };
    let Value::Text(text) = &entry.node.value else {
        return wrong_kind(entry, path, wanted);
    };
    let wrong = |message: String| Fault {
        line: entry.node.line.or(entry.line),
        message: format!("{path}: {message}"),
    };
    let time = || units::time_ns(text).map(Some).map_err(wrong);
    let share = || units::share_ppm(text).map(Some).map_err(wrong);
    match entry.key.as_str() {
        "bandwidth" => change.bandwidth_bps = units::rate_bps(text).map(Some).map_err(wrong)?,
        "queue" => change.queue_bytes = units::queue_bytes(text).map(Some).map_err(wrong)?,
        "latency" => change.latency_ns = time()?,
        "jitter" => change.jitter_ns = time()?,
        "loss" => change.loss_ppm = share()?,
        "burst_enter" => change.burst_enter_ppm = share()?,
        "burst_leave" => change.burst_leave_ppm = share()?,
        "burst_loss" => change.burst_loss_ppm = share()?,
        "reorder" => change.reorder_ppm = share()?,
        "reorder_by" => change.reorder_ns = time()?,
        "duplicate" => change.duplicate_ppm = share()?,
        _ => change.corrupt_ppm = share()?,
    }
    Ok(())
}

/// Reads all `[[event]]` tables.
pub(super) fn read_events(entry: &Entry, nodes: &[NodePlan]) -> Result<Vec<EventPlan>, Fault> {
    let mut events = Vec::new();
    for (index, node) in tables(entry, "event")?.iter().enumerate() {
        events.push(read_event(node, index, nodes)?);
    }
    events.sort_by_key(|event| event.at_ns);
    Ok(events)
}

fn read_event(node: &Node, index: usize, all: &[NodePlan]) -> Result<EventPlan, Fault> {
    let names: Vec<String> = all.iter().map(|node| node.name.clone()).collect();
    let nodes = names.as_slice();
    let place = format!("event[{index}]");
    let (mut at_ns, mut ends, mut port, mut action, mut set) = (None, None, None, None, None);
    for entry in table(node, &place)? {
        let path = format!("{place}.{}", entry.key);
        match entry.key.as_str() {
            "at" => at_ns = Some(read_time(entry, &path)?),
            "link" => ends = Some(read_ends(entry, &path, nodes)?),
            "node" => port = Some(known_node(entry, &path, nodes)?),
            "action" => {
                let mut known = vec!["set", "down", "up", "partition", "heal"];
                known.extend(NodeAction::NAMES.map(|(name, _)| name));
                action = Some(choice(entry, &path, &known)?);
            }
            "set" => set = Some(read_change(&entry.node, &path)?),
            _ => return unknown(entry, &place, &["at", "link", "node", "action", "set"]),
        }
    }
    let wrong = |message: &str| fault(node.line, format!("{place}: {message}"));
    let Some(at_ns) = at_ns else {
        return wrong("`at` is missing: the time since the start, as \"5 s\"");
    };
    let Some(action) = action else {
        return wrong(
            "`action` is missing: \"set\", \"down\", \"up\", \"partition\", \"heal\" or what happens to a node",
        );
    };
    if let Some(action) = NodeAction::named(action) {
        let Some(node) = port.filter(|_| ends.is_none()) else {
            return wrong("`node` is missing: the node that it happens to");
        };
        let has_programs = |plan: &NodePlan| plan.name == node && !plan.programs.is_empty();
        if !all.iter().any(has_programs) {
            return wrong(&format!(
                "the node `{node}` has no `run`, a program that it could happen to"
            ));
        }
        return Ok(EventPlan {
            at_ns,
            what: Happening::Node { node, action },
        });
    }
    if (action == "set") != set.is_some() {
        return wrong("`action = \"set\"` and `set = { latency = \"1 ms\" }` need each other");
    }
    let what = match (action, ends, port) {
        ("heal", None, None) => Trouble::Heal,
        ("down" | "up", None, Some(node)) => Trouble::Port {
            node,
            up: action == "up",
        },
        ("set", Some(ends), None)
            if ends.len() == 1 && set.is_some_and(|set: LinkChange| set.mtu_bytes.is_some()) =>
        {
            return wrong(&format!("{MTU_BOTH_WAYS}: write `link = [\"a\", \"b\"]`"));
        }
        ("set" | "down" | "up" | "partition" | "heal", Some(ends), None) => {
            let change = set.unwrap_or(LinkChange {
                up: Some(matches!(action, "up" | "heal")),
                ..LinkChange::default()
            });
            let links = ends
                .into_iter()
                .map(|(from, to)| LinkSpec { from, to, change });
            Trouble::Link {
                links: links.collect(),
            }
        }
        (_, Some(_), Some(_)) => return wrong("`link` and `node` exclude each other"),
        (_, None, Some(_)) => {
            return wrong(
                "with `node`, `action` is \"down\", \"up\" or what happens to its programs",
            );
        }
        _ => {
            return wrong(
                "`link` is missing: [\"a\", \"b\"] for both directions, \"a->b\" for one",
            );
        }
    };
    Ok(EventPlan {
        at_ns,
        what: Happening::Fabric(what),
    })
}

fn read_time(entry: &Entry, path: &str) -> Result<u64, Fault> {
    let Value::Text(text) = &entry.node.value else {
        return wrong_kind(entry, path, "a time, as \"5 s\",");
    };
    units::time_ns(text)
        .or_else(|message| fault(entry.node.line.or(entry.line), format!("{path}: {message}")))
}

/// The directions that a text or a pair of names means.
fn read_ends(entry: &Entry, path: &str, nodes: &[String]) -> Result<Vec<(String, String)>, Fault> {
    const WANTED: &str = "[\"a\", \"b\"] for both directions or \"a->b\" for one";
    let (from, to, both) = match &entry.node.value {
        Value::Text(text) => match text.split_once("->") {
            Some((from, to)) => (from.trim().to_owned(), to.trim().to_owned(), false),
            None => {
                return fault(
                    entry.node.line.or(entry.line),
                    format!("{path}: \"{text}\" where {WANTED} belongs"),
                );
            }
        },
        Value::Array(items) => {
            let names: Vec<_> = items
                .iter()
                .filter_map(|item| match &item.value {
                    Value::Text(text) => Some(text.clone()),
                    _ => None,
                })
                .collect();
            match <[String; 2]>::try_from(names) {
                Ok([from, to]) if items.len() == 2 => (from, to, true),
                _ => return wrong_kind(entry, path, WANTED),
            }
        }
        _ => return wrong_kind(entry, path, WANTED),
    };
    for name in [&from, &to] {
        check_node(entry, path, name, nodes)?;
    }
    if from == to {
        return fault(
            entry.node.line.or(entry.line),
            format!("{path}: both ends are `{from}`"),
        );
    }
    let mut ends = vec![(from.clone(), to.clone())];
    if both {
        ends.push((to, from));
    }
    Ok(ends)
}

fn tables<'a>(entry: &'a Entry, key: &str) -> Result<&'a [Node], Fault> {
    match &entry.node.value {
        Value::Array(items) => Ok(items),
        _ => fault(
            entry.line,
            format!("`{key}` must be an array of tables: write `[[{key}]]`"),
        ),
    }
}
