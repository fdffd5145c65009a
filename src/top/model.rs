//! What `sanlab top` shows: rows of a view, made of two samples of the cluster, sorted and filtered.
//!
//! Place: [`super`] samples the emulator, [`super::view`] draws the rows. Invariants: no clock and no terminal inside; a rate is the change
//! of a counter over the time between the samples, 0 for what was not there before. Source: ours, after top(1) and iftop.

use std::cmp::Ordering;
use std::collections::HashMap;

use nic_emu::control::{Links, Stat};
use nic_emu::device::{QpRow, WorkQueueRow};

use crate::output;
use crate::topo::describe;

/// What the emulator said at one time.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    /// Seconds since some moment.
    pub(crate) at: f64,
    pub(crate) stat: Stat,
    pub(crate) links: Links,
    pub(crate) queues: Vec<QpRow>,
}

/// What is looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum View {
    Nodes,
    Links,
    Connections,
    Queues,
    Findings,
}

impl View {
    pub(crate) const ALL: [Self; 5] = [
        Self::Nodes,
        Self::Links,
        Self::Connections,
        Self::Queues,
        Self::Findings,
    ];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Nodes => "nodes",
            Self::Links => "links",
            Self::Connections => "connections",
            Self::Queues => "queues",
            Self::Findings => "findings",
        }
    }

    /// Titles of the columns with their widths; those of numbers stand right. The last one takes what is left.
    pub(crate) fn columns(self) -> &'static [(&'static str, u16, bool)] {
        match self {
            Self::Nodes => &[
                ("NODE", 10, false),
                ("PORT", 5, false),
                ("SENT/s", 10, true),
                ("RECV/s", 10, true),
                ("WQES/s", 9, true),
                ("AGAIN/s", 7, true),
                ("ERRORS", 6, true),
                ("QPS", 5, true),
                ("CONNS", 6, true),
            ],
            Self::Links => &[
                ("LINK", 15, false),
                ("PKTS/s", 9, true),
                ("LOST/s", 8, true),
                ("LOST", 9, true),
                ("AGAIN", 7, true),
                ("DAMAGED", 7, true),
                ("IMPAIRED BY", 20, false),
            ],
            Self::Connections => &[
                ("NODE", 6, false),
                ("ROAD", 4, false),
                ("LOCAL", 17, false),
                ("REMOTE", 17, false),
                ("SENT/s", 9, true),
                ("SEND-Q", 7, true),
                ("RECV-Q", 7, true),
                ("PROGRAM", 10, false),
            ],
            Self::Queues => &[
                ("NODE", 8, false),
                ("QPN", 8, false),
                ("STATE", 5, false),
                ("PEER", 8, false),
                ("SQ", 9, true),
                ("RQ", 9, true),
                ("WQES/s", 9, true),
                ("WAITS FOR / LAST ERROR", 16, false),
            ],
            Self::Findings => &[
                ("RULE", 26, false),
                ("NODE", 8, false),
                ("QUEUE", 12, false),
                ("COUNT", 6, true),
                ("WHAT", 20, false),
            ],
        }
    }
}

/// A value in a row: what is shown, and what it is sorted by.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Cell {
    pub(crate) text: String,
    key: Option<f64>,
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self { text, key: None }
    }
}

impl Cell {
    fn count(number: u64) -> Self {
        Self {
            text: output::count(number),
            key: Some(output::as_f64(number)),
        }
    }

    fn bytes(number: u64) -> Self {
        Self {
            text: output::bytes(number),
            key: Some(output::as_f64(number)),
        }
    }

    fn rate(per_second: f64) -> Self {
        Self {
            text: short(per_second),
            key: Some(per_second),
        }
    }

    fn byte_rate(per_second: f64) -> Self {
        Self {
            text: format!("{}B", short(per_second)),
            key: Some(per_second),
        }
    }

    fn compare(&self, other: &Self) -> Ordering {
        match (self.key, other.key) {
            (Some(one), Some(other)) => one.total_cmp(&other),
            _ => self.text.cmp(&other.text),
        }
    }
}

/// Three digits and a prefix: `0`, `17`, `4.2 k`, `310 M`.
fn short(number: f64) -> String {
    let mut number = number.max(0.0);
    for prefix in ["", "k", "M", "G"] {
        if number < 999.5 {
            let digits = usize::from(!prefix.is_empty() && number < 9.95);
            let space = if prefix.is_empty() { "" } else { " " };
            return format!("{number:.digits$}{space}{prefix}");
        }
        number /= 1000.0;
    }
    format!("{number:.0} T")
}

/// Rows of a view.
pub(crate) type Rows = Vec<Vec<Cell>>;

/// The rows of a view, of the latest sample and the one before.
pub(crate) fn rows(view: View, before: Option<&Sample>, now: &Sample) -> Rows {
    let seconds = before.map_or(0.0, |before| now.at - before.at);
    let rate = |now: u64, before: Option<u64>| match before {
        Some(before) if seconds > 0.0 => output::as_f64(now.saturating_sub(before)) / seconds,
        _ => 0.0,
    };
    match view {
        View::Nodes => nodes(before, now, &rate),
        View::Links => links(before, now, &rate),
        View::Connections => connections(before, now, &rate),
        View::Queues => queues(before, now, &rate),
        View::Findings => now
            .stat
            .findings
            .iter()
            .map(|row| {
                vec![
                    row.rule.as_str().into(),
                    row.node.as_str().into(),
                    format!("{} {:#x}", row.queue, row.number).into(),
                    Cell::count(1 + row.suppressed),
                    row.detail.as_str().into(),
                ]
            })
            .collect(),
    }
}

type Rate<'a> = &'a dyn Fn(u64, Option<u64>) -> f64;

fn nodes(before: Option<&Sample>, now: &Sample, rate: Rate<'_>) -> Rows {
    let earlier = |name: &str| {
        let nodes = &before?.stat.nodes;
        nodes.iter().find(|row| row.name == name)
    };
    let row = |node: &nic_emu::control::NodeStat| {
        let (counters, past) = (&node.counters, earlier(&node.name).map(|row| row.counters));
        let is_up = now
            .links
            .ports
            .iter()
            .all(|port| port.node != node.name || port.up);
        let own = now
            .stat
            .connections
            .iter()
            .filter(|it| it.node == node.name);
        vec![
            node.name.as_str().into(),
            (if is_up { "up" } else { "down" }).into(),
            Cell::byte_rate(rate(
                counters.tx_payload_bytes,
                past.map(|it| it.tx_payload_bytes),
            )),
            Cell::byte_rate(rate(
                counters.rx_payload_bytes,
                past.map(|it| it.rx_payload_bytes),
            )),
            Cell::rate(rate(counters.wqes, past.map(|it| it.wqes))),
            Cell::rate(rate(
                counters.retransmitted_packets,
                past.map(|it| it.retransmitted_packets),
            )),
            Cell::count(counters.errors),
            Cell::count(counters.qps),
            Cell::count(own.count() as u64),
        ]
    };
    now.stat.nodes.iter().map(row).collect()
}

fn links(before: Option<&Sample>, now: &Sample, rate: Rate<'_>) -> Rows {
    let earlier = |from: &str, to: &str| {
        let links = &before?.links.links;
        let found = links.iter().find(|row| row.from == from && row.to == to);
        found.map(|row| row.counters)
    };
    let row = |link: &nic_emu::device::LinkRow| {
        let (counters, past) = (&link.counters, earlier(&link.from, &link.to));
        vec![
            format!("{} -> {}", link.from, link.to).into(),
            Cell::rate(rate(counters.sent, past.map(|it| it.sent))),
            Cell::rate(rate(counters.lost, past.map(|it| it.lost))),
            Cell::count(counters.lost),
            Cell::count(counters.duplicated),
            Cell::count(counters.corrupted),
            describe(Some(&link.parameters)).into(),
        ]
    };
    now.links.links.iter().map(row).collect()
}

fn connections(before: Option<&Sample>, now: &Sample, rate: Rate<'_>) -> Rows {
    let key =
        |row: &nic_emu::control::ConnectionStat| (row.pid, row.local.clone(), row.remote.clone());
    let past: HashMap<_, _> = before
        .into_iter()
        .flat_map(|sample| &sample.stat.connections)
        .map(|row| (key(row), row.tx_bytes))
        .collect();
    let row = |row: &nic_emu::control::ConnectionStat| {
        let program = match &row.reason {
            Some(reason) => format!("{} ({reason})", row.program),
            None => row.program.clone(),
        };
        vec![
            row.node.as_str().into(),
            row.road.as_str().into(),
            row.local.as_str().into(),
            row.remote.as_str().into(),
            Cell::byte_rate(rate(row.tx_bytes, past.get(&key(row)).copied())),
            Cell::bytes(row.send_queue.unwrap_or(0)),
            Cell::bytes(row.recv_queue.unwrap_or(0)),
            program.into(),
        ]
    };
    now.stat.connections.iter().map(row).collect()
}

fn queues(before: Option<&Sample>, now: &Sample, rate: Rate<'_>) -> Rows {
    let past: HashMap<_, _> = before
        .into_iter()
        .flat_map(|sample| &sample.queues)
        .map(|row| ((row.function, row.qpn), row.sq.consumer))
        .collect();
    let used = |queue: &WorkQueueRow| {
        let used = queue.producer.wrapping_sub(queue.consumer);
        Cell {
            text: format!("{used}/{}", queue.depth),
            key: Some(f64::from(used)),
        }
    };
    let row = |row: &QpRow| {
        let peer = match row.peer_qpn {
            0 => "-".to_owned(),
            qpn => format!("{qpn:#x}"),
        };
        let trouble = match (&row.waits_for, &row.last_error) {
            (Some(what), _) => what.clone(),
            (None, Some(error)) => error.syndrome.clone(),
            (None, None) => String::new(),
        };
        // Positions wrap: the distance is what counts.
        let past = past.get(&(row.function, row.qpn));
        let done = past.map(|&past| u64::from(row.sq.consumer.wrapping_sub(past)));
        vec![
            row.node.as_str().into(),
            format!("{:#x}", row.qpn).into(),
            row.state.as_str().into(),
            peer.into(),
            used(&row.sq),
            used(&row.rq),
            Cell::rate(done.map_or(0.0, |done| rate(done, Some(0)))),
            trouble.into(),
        ]
    };
    now.queues.iter().map(row).collect()
}

/// Keeps rows in which some cell contains the filter, and sorts them by a column.
pub(crate) fn arrange(rows: &mut Rows, filter: &str, column: usize, is_descending: bool) {
    let filter = filter.to_lowercase();
    rows.retain(|row| {
        row.iter()
            .any(|cell| cell.text.to_lowercase().contains(&filter))
    });
    rows.sort_by(|one, other| {
        let order = match (one.get(column), other.get(column)) {
            (Some(one), Some(other)) => one.compare(other),
            _ => Ordering::Equal,
        };
        if is_descending {
            order.reverse()
        } else {
            order
        }
    });
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A sample of the cluster of `topo`'s tests, at a second, with so many WQEs done.
    pub(crate) fn sample(at: f64, wqes: u64) -> Sample {
        let (mut stat, links) = crate::topo::tests::sample();
        for node in &mut stat.nodes {
            node.counters.wqes *= wqes;
            node.counters.tx_payload_bytes = wqes * 1000;
        }
        Sample {
            at,
            stat,
            links,
            queues: Vec::new(),
        }
    }

    #[test]
    fn rates_are_changes_over_time() {
        let (before, now) = (sample(1.0, 100), sample(3.0, 300));
        let mut all = rows(View::Nodes, Some(&before), &now);
        assert_eq!(all[1][4].text, "200");
        assert_eq!(all[1][2].text, "100 kB");
        assert_eq!(all[2][1].text, "down");
        arrange(&mut all, "", 4, true);
        let names: Vec<_> = all.iter().map(|row| row[0].text.as_str()).collect();
        assert_eq!(names, ["c", "b", "a"]);
        arrange(&mut all, "DOWN", 0, false);
        assert_eq!(all.len(), 1);
        assert_eq!(rows(View::Nodes, None, &now)[1][4].text, "0");
        let links = rows(View::Links, Some(&before), &now);
        assert_eq!(links.iter().filter(|row| row[6].text == "cut").count(), 1);
        assert_eq!(rows(View::Connections, None, &now).len(), 4);
    }

    #[test]
    fn numbers_are_short() {
        for (number, text) in [
            (0.0, "0"),
            (17.4, "17"),
            (999.4, "999"),
            (4200.0, "4.2 k"),
            (310e6, "310 M"),
            (5e13, "50 T"),
        ] {
            assert_eq!(short(number), text);
        }
    }
}
