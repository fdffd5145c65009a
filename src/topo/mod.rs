//! `sanlab topo`: the nodes of a cluster, the links between them, and who talks to whom.
//!
//! Place: asks the emulator for nodes, links and connections, and draws them as text, SVG or JSON. Invariants: every pair of nodes is
//! linked; links that are perfect and carry nothing are told in one line. Source: ours.

mod svg;

use std::collections::BTreeMap;

use anyhow::Context as _;
use nic_emu::control::{Links, Stat, client};
use nic_emu::device::LinkParameters;
use serde_json::{Value, json};

use crate::cli;
use crate::cluster;
use crate::control;
use crate::exit::Failure;
use crate::output::{self, Table};
use crate::paths;
use crate::units;

/// Shows the topology of a cluster.
pub(crate) fn topo(arguments: &cli::Topo) -> Result<(), Failure> {
    let cluster = cluster::select(arguments.choice.name())?;
    cluster.require_running()?;
    let socket = paths::control_socket(&cluster.directory);
    let stat = client::stat(&socket).map_err(anyhow::Error::from)?;
    let links = client::links(&socket).map_err(anyhow::Error::from)?;
    let topology = Topology::new(&stat, &links);
    if let Some(file) = &arguments.svg {
        let drawing = svg::draw(&topology);
        if file.as_os_str() == "-" {
            return output::answer(&drawing);
        }
        let name = file.display();
        std::fs::write(file, drawing).with_context(|| format!("cannot write {name}"))?;
        return Ok(());
    }
    if arguments.json {
        output::json(&topology.to_json())
    } else {
        output::answer(&topology.to_text())
    }
}

/// A cluster as a graph.
#[derive(Debug)]
pub(crate) struct Topology {
    cluster: String,
    nodes: Vec<Node>,
    /// Pairs that are worth telling, in the order of the nodes.
    pairs: Vec<Pair>,
}

#[derive(Debug)]
struct Node {
    name: String,
    addresses: Vec<String>,
    is_up: bool,
}

/// Two nodes, or one and itself.
#[derive(Debug, Default)]
struct Pair {
    ends: (usize, usize),
    /// There and back.
    directions: [Option<LinkParameters>; 2],
    /// Live connections by road.
    san: u64,
    tcp: u64,
    /// Stream bytes of these, both ways.
    bytes: u64,
}

impl Topology {
    pub(crate) fn new(stat: &Stat, links: &Links) -> Self {
        let nodes: Vec<_> = stat
            .nodes
            .iter()
            .map(|node| Node {
                name: node.name.clone(),
                addresses: node.addresses.clone(),
                is_up: links
                    .ports
                    .iter()
                    .all(|port| port.node != node.name || port.up),
            })
            .collect();
        let place = |name: &str| nodes.iter().position(|node| node.name == name);
        let owner = |socket: &str| {
            let address = socket
                .rsplit_once(':')
                .map_or(socket, |(address, _)| address);
            nodes.iter().position(|node| {
                let own = node.addresses.iter();
                own.filter_map(|it| it.split('/').next())
                    .any(|it| it == address)
            })
        };
        let mut found: BTreeMap<(usize, usize), Pair> = BTreeMap::new();
        for row in links
            .links
            .iter()
            .filter(|row| row.parameters.is_impaired())
        {
            if let (Some(from), Some(to)) = (place(&row.from), place(&row.to)) {
                let direction = usize::from(from > to);
                entry(&mut found, from, to).directions[direction] = Some(row.parameters);
            }
        }
        for row in &stat.connections {
            let Some(own) = place(&row.node) else {
                continue;
            };
            // Each end tells of it: the one whose address it dialled is told once, by the lower socket.
            let Some(peer) = owner(&row.remote) else {
                continue;
            };
            let pair = entry(&mut found, own, peer);
            pair.bytes += row.tx_bytes;
            if row.local <= row.remote {
                *if row.road == "san" {
                    &mut pair.san
                } else {
                    &mut pair.tcp
                } += 1;
            }
        }
        Self {
            cluster: stat.cluster.clone(),
            nodes,
            pairs: found.into_values().collect(),
        }
    }

    fn to_text(&self) -> String {
        let count = self.nodes.len();
        let mut text = format!(
            "cluster {}: {count} nodes, each linked with each\n\n",
            self.cluster
        );
        let mut nodes = Table::new(&["NODE", "ADDRESSES", "PORT"]);
        for node in &self.nodes {
            let port = if node.is_up { "up" } else { "down" };
            let addresses = control::addresses_text(&node.addresses);
            nodes.row([node.name.clone(), addresses, port.to_owned()]);
        }
        text.push_str(&nodes.render(""));
        let mut pairs = Table::new(&["LINK", "THERE", "BACK", ">SAN", ">TCP", ">BYTES"]);
        for pair in &self.pairs {
            let [there, back] = pair
                .directions
                .map(|direction| describe(direction.as_ref()));
            pairs.row([
                format!("{} - {}", self.name(pair.ends.0), self.name(pair.ends.1)),
                there,
                back,
                output::count(pair.san),
                output::count(pair.tcp),
                output::bytes(pair.bytes),
            ]);
        }
        if pairs.is_empty() {
            text.push_str("\nevery link is perfect, and none carries a connection\n");
        } else {
            text.push('\n');
            text.push_str(&pairs.render(""));
            text.push_str("\nlinks that are not listed are perfect and carry no connection\n");
        }
        text
    }

    fn to_json(&self) -> Value {
        let nodes = self.nodes.iter().map(
            |node| json!({"name": node.name, "addresses": node.addresses, "port_up": node.is_up}),
        );
        let links = self.pairs.iter().map(|pair| {
            let [there, back] = pair.directions.map(Option::unwrap_or_default);
            json!({
                "a": self.name(pair.ends.0), "b": self.name(pair.ends.1), "a_to_b": there, "b_to_a": back,
                "san_connections": pair.san, "tcp_connections": pair.tcp, "bytes": pair.bytes,
            })
        });
        json!({
            "schema": 1, "cluster": self.cluster, "nodes": nodes.collect::<Vec<_>>(), "links": links.collect::<Vec<_>>(),
        })
    }

    fn name(&self, node: usize) -> &str {
        self.nodes.get(node).map_or("?", |node| node.name.as_str())
    }
}

fn entry(found: &mut BTreeMap<(usize, usize), Pair>, one: usize, other: usize) -> &mut Pair {
    let ends = (one.min(other), one.max(other));
    found.entry(ends).or_insert_with(|| Pair {
        ends,
        ..Pair::default()
    })
}

/// What a direction does to packets, in words.
pub(crate) fn describe(parameters: Option<&LinkParameters>) -> String {
    let Some(parameters) = parameters else {
        return "perfect".to_owned();
    };
    if !parameters.up {
        return "cut".to_owned();
    }
    let mut words = Vec::new();
    for (ns, name) in [
        (parameters.latency_ns, ""),
        (parameters.jitter_ns, " jitter"),
    ] {
        if ns != 0 {
            words.push(format!("{}{name}", units::show_time(ns)));
        }
    }
    if parameters.bandwidth_bps != 0 {
        words.push(units::show_rate(parameters.bandwidth_bps));
        if parameters.queue_bytes != 0 {
            words.push(format!(
                "queue {}",
                units::show_queue(parameters.queue_bytes)
            ));
        }
    }
    if parameters.mtu_bytes != 0 {
        words.push(format!("MTU {}", parameters.mtu_bytes));
    }
    for (ppm, name) in [
        (parameters.loss_ppm, "loss"),
        (parameters.burst_enter_ppm, "bursts"),
        (parameters.reorder_ppm, "reorder"),
        (parameters.duplicate_ppm, "duplicate"),
        (parameters.corrupt_ppm, "corrupt"),
    ] {
        if ppm != 0 {
            words.push(format!("{} {name}", units::show_share(ppm)));
        }
    }
    if words.is_empty() {
        "perfect".to_owned()
    } else {
        words.join(", ")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Three nodes; a and b are linked badly and talk.
    pub(crate) fn sample() -> (Stat, Links) {
        let node = |name, last| json!({"name": name, "addresses": [format!("127.77.0.{last}/24")], "counters": {"wqes": last}});
        let connection = |node, local, remote, road| {
            json!({"node": node, "pid": 9, "program": "x<y>", "local": local, "remote": remote, "road": road, "reason": null,
                "mode": null, "tx_bytes": 100, "rx_bytes": 100, "send_queue": 7, "recv_queue": 0})
        };
        let stat = json!({
            "schema": 1, "cluster": "lab", "emulator_pid": 7, "nodes": [node("a", 1), node("b", 2), node("c", 3)],
            "connections": [
                connection("a", "127.77.0.1:5", "127.77.0.2:6", "san"), connection("b", "127.77.0.2:6", "127.77.0.1:5", "san"),
                connection("c", "127.77.0.3:8", "127.77.0.1:9", "tcp"), connection("a", "127.77.0.1:9", "127.77.0.3:8", "tcp"),
            ],
            "totals": [], "fallbacks": [], "ungoverned": [], "findings": [],
        });
        let links = json!({
            "schema": 1, "cluster": "lab", "ports": [{"node": "a", "up": true}, {"node": "b", "up": true}, {"node": "c", "up": false}],
            "links": [
                {"from": "b", "to": "a", "parameters": {"up": false}, "counters": zero()},
                {"from": "a", "to": "b", "parameters": {"latency_ns": 1_000_000, "loss_ppm": 1000}, "counters": zero()},
                {"from": "a", "to": "c", "parameters": {}, "counters": zero()},
            ],
        });
        (
            serde_json::from_value(stat).unwrap(),
            serde_json::from_value(links).unwrap(),
        )
    }

    fn zero() -> Value {
        json!({"sent": 10, "delivered": 9, "lost": 1, "reordered": 0, "duplicated": 0, "corrupted": 0})
    }

    #[test]
    fn what_is_not_perfect_or_carries_something_is_told() {
        let (stat, links) = sample();
        let topology = Topology::new(&stat, &links);
        let text = topology.to_text();
        for part in [
            "cluster lab: 3 nodes",
            "a - b  1ms, 0.1 % loss  cut",
            "a - c  perfect",
            "c     127.77.0.3/24  down",
        ] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains("b - c"), "{text}");
        let json = topology.to_json();
        assert_eq!(json["links"][0]["san_connections"], 1, "{json:#}");
        assert_eq!(json["links"][0]["bytes"], 200);
        assert_eq!(json["links"][1]["tcp_connections"], 1);
        assert_eq!(json["links"][0]["b_to_a"]["up"], false);
    }
}
