//! The books of a cluster: totals per node, programs outside of it, and the answer to STAT.
//!
//! Place: the control thread keeps one [`Ledger`]. Invariants: totals never go down; what processes tell is folded once, at their end;
//! the list of programs outside is bounded.
//! Source: ours (docs/cluster.md, section "stat"). Leaves out: where the numbers come from ([`super::telemetry`], the device).

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

use ring_proto::ids::NodeId;
use ring_proto::telemetry::Reason;
use tracing::warn;

use super::config::{ClusterConfig, UngovernedPolicy};
use super::log_budget::{LogBudget, now_ns};
use super::telemetry::{Connection, Flow, Report, Totals, printable};
use crate::control::{
    ConnectionStat, Fallback, NodeEntry, NodeStat, NodeTotals, Note, SCHEMA, Stat, Ungoverned,
};
use crate::device::{Counters, Finding, NodeCounters};

/// Most programs outside of the cluster that are remembered, newest kept.
const UNGOVERNED_LIMIT: usize = 1024;

/// The books.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// Per node, of processes that have ended, and of notes.
    ended: Vec<Totals>,
    ungoverned: VecDeque<Ungoverned>,
    /// Of lines about them: whoever reaches the control socket can cause one.
    log: LogBudget,
}

/// A process that lives while STAT is answered.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) node: NodeId,
    pub(crate) totals: Totals,
    pub(crate) report: Report,
}

impl Ledger {
    pub(crate) fn new(nodes: usize) -> Self {
        Self {
            ended: vec![Totals::default(); nodes],
            ungoverned: VecDeque::new(),
            log: LogBudget::default(),
        }
    }

    /// Folds the numbers of a process that has ended.
    pub(crate) fn fold(
        &mut self,
        config: &ClusterConfig,
        node: NodeId,
        totals: &Totals,
        report: &Report,
    ) {
        if let Some(ended) = self.ended.get_mut(usize::from(node.0)) {
            ended.add(totals);
        }
        if let Some(row) = datagrams(config, node, totals, report) {
            self.push(config, row);
        }
    }

    /// Notes a program that cannot be hooked: its connections are TCP, and nothing governs them.
    pub(crate) fn note(
        &mut self,
        config: &ClusterConfig,
        node: NodeId,
        reason: Reason,
        note: &Note,
    ) {
        if let Some(ended) = self.ended.get_mut(usize::from(node.0)) {
            ended.count(reason);
        }
        let row = Ungoverned {
            node: note.node.clone(),
            pid: u64::from(note.pid),
            program: printable(note.program.as_bytes()),
            what: reason.name().to_owned(),
        };
        self.push(config, row);
    }

    /// Told when it is known for good, so that nobody has to ask again and again: standard error is the terminal of a foreground `up`.
    fn push(&mut self, config: &ClusterConfig, row: Ungoverned) {
        if config.lab.ungoverned == UngovernedPolicy::Warn
            && let Some(held_back) = self.log.spend(now_ns())
        {
            let how = if row.what == Reason::Datagrams.name() {
                "sent datagrams to other nodes"
            } else {
                "runs without the library"
            };
            let Ungoverned {
                node,
                pid,
                program,
                what,
            } = &row;
            warn!(
                held_back = (held_back > 0).then_some(held_back),
                "node {node}: {program} (process {pid}) {how}, past every link ({what})"
            );
        }
        if self.ungoverned.len() == UNGOVERNED_LIMIT {
            self.ungoverned.pop_front();
        }
        self.ungoverned.push_back(row);
    }

    /// Answers STAT.
    pub(crate) fn stat(
        &self,
        config: &ClusterConfig,
        counters: &[NodeCounters],
        processes: &[Live],
        findings: Vec<Finding>,
    ) -> Stat {
        let mut sums = self.ended.clone();
        let mut connections = Vec::new();
        let mut ungoverned: Vec<_> = self.ungoverned.iter().cloned().collect();
        for process in processes {
            let at = usize::from(process.node.0);
            let (Some(sum), Some(node)) = (sums.get_mut(at), config.nodes.get(at)) else {
                continue;
            };
            sum.add(&process.totals);
            let report = &process.report;
            ungoverned.extend(datagrams(config, process.node, &process.totals, report));
            connections.extend(
                report
                    .connections
                    .iter()
                    .map(|connection| connection_stat(&node.name, report, connection)),
            );
        }
        queues(processes, &mut connections);
        let by_node = || config.nodes.iter().zip(&sums);
        Stat {
            schema: SCHEMA,
            cluster: config.name.clone(),
            emulator_pid: std::process::id(),
            nodes: (0u16..)
                .zip(node_entries(config))
                .map(|(id, NodeEntry { name, addresses })| NodeStat {
                    name,
                    addresses,
                    counters: counters
                        .iter()
                        .find(|counters| counters.node == NodeId(id))
                        .map_or_else(Counters::default, |counters| counters.counters),
                })
                .collect(),
            connections,
            totals: by_node()
                .map(|(node, sum)| NodeTotals {
                    node: node.name.clone(),
                    san_tx_bytes: sum.san_tx_bytes,
                    san_rx_bytes: sum.san_rx_bytes,
                    tcp_connections: sum.tcp_connections,
                    san_connections: sum.san_connections,
                })
                .collect(),
            fallbacks: by_node()
                .flat_map(|(node, sum)| {
                    sum.named_fallbacks().map(|(reason, count)| Fallback {
                        node: node.name.clone(),
                        reason: reason.name().to_owned(),
                        count,
                    })
                })
                .collect(),
            ungoverned,
            findings,
        }
    }
}

/// The row of a process whose datagrams went to other nodes.
fn datagrams(
    config: &ClusterConfig,
    node: NodeId,
    totals: &Totals,
    report: &Report,
) -> Option<Ungoverned> {
    let mut reasons = totals.named_fallbacks();
    reasons.find(|&(reason, _)| reason == Reason::Datagrams)?;
    Some(Ungoverned {
        node: config.nodes.get(usize::from(node.0))?.name.clone(),
        pid: report.pid,
        program: report.program.clone(),
        what: Reason::Datagrams.name().to_owned(),
    })
}

/// The nodes of a cluster as control messages name them.
pub(crate) fn node_entries(config: &ClusterConfig) -> Vec<NodeEntry> {
    config
        .nodes
        .iter()
        .map(|node| NodeEntry {
            name: node.name.clone(),
            addresses: node.addresses.iter().map(ToString::to_string).collect(),
        })
        .collect()
}

fn connection_stat(node: &str, report: &Report, connection: &Connection) -> ConnectionStat {
    let flow = connection.is_san.then_some(&connection.flow);
    ConnectionStat {
        node: node.to_owned(),
        pid: report.pid,
        program: report.program.clone(),
        local: connection.local.to_string(),
        remote: connection.remote.to_string(),
        road: if connection.is_san { "san" } else { "tcp" }.to_owned(),
        reason: connection.reason.map(|reason| reason.name().to_owned()),
        mode: connection.mode.map(str::to_owned),
        tx_bytes: connection.tx_bytes,
        rx_bytes: connection.rx_bytes,
        state: flow.map(|flow| flow.state.name().to_owned()),
        recv_queue: None,
        send_queue: flow.map(|flow| flow.unsent),
        credits: flow.map(|flow| flow.credits),
    }
}

/// Fills in the queues of SAN connections whose both ends are known: what one end's session took and the other's did not give out yet
/// lies in the sender's queue as far as the sender knows, else in the receiver's. Processes that share an end look at it at different
/// times: the latest counts.
fn queues(processes: &[Live], stats: &mut [ConnectionStat]) {
    let live = || processes.iter().flat_map(|p| &p.report.connections);
    let mut ends: HashMap<(SocketAddr, SocketAddr), Flow> = HashMap::new();
    for c in live().filter(|c| c.is_san) {
        let end = ends.entry((c.local, c.remote)).or_default();
        if c.flow.accepted >= end.accepted {
            end.unsent = c.flow.unsent;
        }
        end.accepted = end.accepted.max(c.flow.accepted);
        end.taken = end.taken.max(c.flow.taken);
    }
    for (stat, c) in stats.iter_mut().zip(live()) {
        let own = ends.get(&(c.local, c.remote));
        let peer = ends.get(&(c.remote, c.local));
        let (Some(own), Some(peer)) = (own, peer) else {
            continue;
        };
        let to_peer = own.accepted.saturating_sub(peer.taken);
        let to_own = peer.accepted.saturating_sub(own.taken);
        stat.send_queue = Some(own.unsent.min(to_peer));
        stat.recv_queue = Some(to_own - peer.unsent.min(to_own));
    }
}
