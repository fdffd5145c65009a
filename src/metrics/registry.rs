//! The metrics of a cluster, from what its emulator answers.
//!
//! Place: [`super`] asks for them at each scrape. Invariants: made anew from cumulative numbers of the emulator, so a restart of this
//! process changes nothing; names end in their unit and, for counters, in `_total`. Source: the naming rules of Prometheus. Leaves out: what
//! has no bound on its labels, as single connections.

use std::collections::BTreeMap;
use std::fmt::Error;
// sync-gate: the gauge type of prometheus-client asks for it.
use std::sync::atomic::AtomicU64;

use nic_emu::control::{Links, Stat};
use nic_emu::device::{Counters, LinkCounters, LinkParameters};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

/// Name, help, and the number that it tells of a `T`.
type Told<T, N> = (&'static str, &'static str, fn(&T) -> N);
type Labels = Vec<(&'static str, String)>;
/// Label and value of a series.
type Series<N> = Vec<(Labels, N)>;

/// Counters of a node's NIC: name, help, number.
const NIC_COUNTERS: [Told<Counters, u64>; 10] = [
    (
        "transmitted_bytes",
        "Payload bytes that left memory of the node",
        |c| c.tx_payload_bytes,
    ),
    (
        "received_bytes",
        "Payload bytes that arrived in memory of the node",
        |c| c.rx_payload_bytes,
    ),
    ("work_requests", "Send work requests executed", |c| c.wqes),
    ("completions", "Completion queue entries written", |c| {
        c.cqes
    }),
    (
        "packets",
        "Requests sent as packets, on links that are impaired or captured",
        |c| c.tx_packets,
    ),
    (
        "retransmitted_packets",
        "Requests among them that were sent again",
        |c| c.retransmitted_packets,
    ),
    ("kicks", "Times a sleeping NIC was woken", |c| c.kicks),
    ("parks", "Times the NIC went to sleep", |c| c.parks),
    (
        "errors",
        "Completions with an error, bad doorbells, failed functions",
        |c| c.errors,
    ),
    ("panics", "Panics of the emulator that were caught", |c| {
        c.panics
    }),
];

/// Gauges of a node's NIC.
const NIC_GAUGES: [Told<Counters, u64>; 7] = [
    ("queue_pairs", "Queue pairs that exist", |c| c.qps),
    ("completion_queues", "Completion queues that exist", |c| {
        c.cqs
    }),
    ("memory_regions", "Memory regions that exist", |c| c.mrs),
    ("functions", "Functions that are attached", |c| c.functions),
    (
        "memory_windows_mapped",
        "Windows of client memory that are mapped",
        |c| c.windows,
    ),
    ("listeners", "Listeners of the connection manager", |c| {
        c.listeners
    }),
    (
        "orphans",
        "Queue pairs without holder whose memory still serves their peer",
        |c| c.orphans,
    ),
];

/// Counters of a direction of a link.
const LINK_COUNTERS: [Told<LinkCounters, u64>; 7] = [
    ("packets_sent", "Packets put on the link", |c| c.sent),
    ("packets_delivered", "Packets taken off the link", |c| {
        c.delivered
    }),
    ("packets_lost", "Packets lost on the link", |c| c.lost),
    (
        "packets_dropped",
        "Packets lost that found the queue full",
        |c| c.dropped,
    ),
    ("packets_reordered", "Packets held back on the link", |c| {
        c.reordered
    }),
    ("packets_duplicated", "Packets that arrived twice", |c| {
        c.duplicated
    }),
    (
        "packets_corrupted",
        "Packets whose check failed on arrival",
        |c| c.corrupted,
    ),
];

const NS: f64 = 1e-9;

/// What a direction of a link is set to.
const LINK_GAUGES: [Told<LinkParameters, f64>; 13] = [
    ("up", "Whether anything arrives", |p| {
        f64::from(u8::from(p.up))
    }),
    ("latency_seconds", "Time on the way", |p| {
        as_f64(p.latency_ns) * NS
    }),
    ("jitter_seconds", "Largest extra time on the way", |p| {
        as_f64(p.jitter_ns) * NS
    }),
    ("loss_ratio", "Share of packets lost on purpose", |p| {
        f64::from(p.loss_ppm) / 1e6
    }),
    (
        "queue_bytes",
        "Bytes that wait for a limited bandwidth at most; 0 is without limit",
        |p| as_f64(p.queue_bytes),
    ),
    ("mtu_bytes", "Longest IP packet; 0 is not told", |p| {
        f64::from(p.mtu_bytes)
    }),
    (
        "burst_enter_ratio",
        "Share of packets that begin a burst of losses",
        |p| f64::from(p.burst_enter_ppm) / 1e6,
    ),
    (
        "burst_leave_ratio",
        "Share of packets that end a burst of losses",
        |p| f64::from(p.burst_leave_ppm) / 1e6,
    ),
    (
        "burst_loss_ratio",
        "Share of packets lost in a burst",
        |p| f64::from(p.burst_loss_ppm) / 1e6,
    ),
    (
        "reorder_ratio",
        "Share of packets held back on purpose",
        |p| f64::from(p.reorder_ppm) / 1e6,
    ),
    (
        "duplicate_ratio",
        "Share of packets doubled on purpose",
        |p| f64::from(p.duplicate_ppm) / 1e6,
    ),
    (
        "corrupt_ratio",
        "Share of packets damaged on purpose",
        |p| f64::from(p.corrupt_ppm) / 1e6,
    ),
    (
        "speed_bytes",
        "Bytes per second that the link carries; 0 is without limit",
        |p| as_f64(p.bandwidth_bps) / 8.0,
    ),
];

fn as_f64(number: u64) -> f64 {
    crate::output::as_f64(number)
}

/// The text of OpenMetrics.
pub(crate) fn text(stat: &Stat, links: &Links) -> Result<String, Error> {
    let mut registry = Registry::with_prefix("sanlab");
    let version = Info::new(vec![
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("cluster", stat.cluster.clone()),
    ]);
    registry.register(
        "build",
        "Version of the program, and the cluster it tells of",
        version,
    );
    nics(&mut registry, stat);
    connections(&mut registry, stat);
    directions(&mut registry, links);
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

fn nics(registry: &mut Registry, stat: &Stat) {
    let by_node = |number: fn(&Counters) -> u64| {
        let nodes = stat.nodes.iter();
        nodes
            .map(|node| (vec![("node", node.name.clone())], number(&node.counters)))
            .collect()
    };
    for (name, help, number) in NIC_COUNTERS {
        counter(registry, &format!("nic_{name}"), help, by_node(number));
    }
    for (name, help, number) in NIC_GAUGES {
        gauge(registry, &format!("nic_{name}"), help, by_node(number));
    }
}

fn connections(registry: &mut Registry, stat: &Stat) {
    let totals = || stat.totals.iter();
    let node = |name: &str| ("node", name.to_owned());
    for (name, help, series) in [
        (
            "san_transmitted_bytes",
            "Stream bytes that programs sent over the SAN",
            totals()
                .map(|row| (vec![node(&row.node)], row.san_tx_bytes))
                .collect::<Series<_>>(),
        ),
        (
            "san_received_bytes",
            "Stream bytes that programs received over the SAN",
            totals()
                .map(|row| (vec![node(&row.node)], row.san_rx_bytes))
                .collect(),
        ),
        (
            "connections",
            "Connections that were made, by the road they took",
            totals()
                .flat_map(|row| {
                    [("san", row.san_connections), ("tcp", row.tcp_connections)].map(
                        |(road, count)| (vec![node(&row.node), ("road", road.to_owned())], count),
                    )
                })
                .collect(),
        ),
        (
            "fallbacks",
            "Connections that took TCP, by reason",
            stat.fallbacks
                .iter()
                .map(|row| {
                    (
                        vec![node(&row.node), ("reason", row.reason.clone())],
                        row.count,
                    )
                })
                .collect(),
        ),
    ] {
        counter(registry, name, help, series);
    }
    // By node and road, zeroes included.
    let mut open: BTreeMap<(&str, &str), [u64; 3]> = BTreeMap::new();
    for row in &stat.nodes {
        for road in ["san", "tcp"] {
            open.insert((&row.name, road), [0; 3]);
        }
    }
    for row in &stat.connections {
        let sum = open.entry((&row.node, &row.road)).or_default();
        sum[0] += 1;
        sum[1] += row.send_queue.unwrap_or(0);
        sum[2] += row.recv_queue.unwrap_or(0);
    }
    for (place, (name, help)) in [
        ("open_connections", "Connections that exist"),
        (
            "send_queue_bytes",
            "Stream bytes that were sent and have not arrived",
        ),
        (
            "receive_queue_bytes",
            "Stream bytes that have come and that no program has taken",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let series = open.iter().map(|((name, road), sums)| {
            let labels = vec![node(name), ("road", (*road).to_owned())];
            (labels, sums.get(place).copied().unwrap_or(0))
        });
        gauge(registry, name, help, series.collect());
    }
    let mut rules: BTreeMap<&str, u64> = BTreeMap::new();
    for finding in &stat.findings {
        *rules.entry(&finding.rule).or_default() += 1 + finding.suppressed;
    }
    let series = rules
        .into_iter()
        .map(|(rule, count)| (vec![("rule", rule.to_owned())], count));
    gauge(
        registry,
        "validation_findings",
        "Findings of the validation layer that are kept",
        series.collect(),
    );
    let programs = u64::try_from(stat.ungoverned.len()).unwrap_or(u64::MAX);
    gauge(
        registry,
        "ungoverned_programs",
        "Programs whose traffic the cluster does not see",
        vec![(Vec::new(), programs)],
    );
}

fn directions(registry: &mut Registry, links: &Links) {
    let ports = links.ports.iter();
    let ports = ports.map(|row| (vec![("node", row.node.clone())], u64::from(row.up)));
    gauge(
        registry,
        "port_up",
        "Whether anything passes the port of the node",
        ports.collect(),
    );
    let labels = |from: &str, to: &str| vec![("from", from.to_owned()), ("to", to.to_owned())];
    for (name, help, number) in LINK_COUNTERS {
        let rows = links.links.iter();
        let series = rows.map(|row| (labels(&row.from, &row.to), number(&row.counters)));
        counter(registry, &format!("link_{name}"), help, series.collect());
    }
    for (name, help, number) in LINK_GAUGES {
        let family = Family::<Labels, Gauge<f64, AtomicU64>>::default();
        for row in &links.links {
            let labels = labels(&row.from, &row.to);
            family.get_or_create(&labels).set(number(&row.parameters));
        }
        registry.register(format!("link_{name}"), help, family);
    }
}

fn counter(registry: &mut Registry, name: &str, help: &str, series: Series<u64>) {
    let family = Family::<Labels, Counter>::default();
    for (labels, number) in series {
        family.get_or_create(&labels).inc_by(number);
    }
    registry.register(name, help, family);
}

fn gauge(registry: &mut Registry, name: &str, help: &str, series: Series<u64>) {
    let family = Family::<Labels, Gauge>::default();
    for (labels, number) in series {
        let number = i64::try_from(number).unwrap_or(i64::MAX);
        family.get_or_create(&labels).set(number);
    }
    registry.register(name, help, family);
}

/// The same in the older text format, for who does not ask for OpenMetrics: there a counter has the name of its series.
pub(crate) fn as_plain_text(open_metrics: &str) -> String {
    let mut plain = String::with_capacity(open_metrics.len());
    let mut lines = open_metrics.lines().peekable();
    let mut help = None;
    while let Some(line) = lines.next() {
        let words: Vec<_> = line.splitn(4, ' ').collect();
        match words[..] {
            ["#", "HELP", name, text] => help = Some((name, text)),
            ["#", "TYPE", name, kind] => {
                let (suffix, kind) = match kind {
                    "counter" => ("_total", kind),
                    "info" => ("_info", "gauge"),
                    _ => ("", kind),
                };
                // A family without series has nothing to describe.
                let has_series = lines.peek().is_some_and(|next| !next.starts_with('#'));
                if has_series {
                    if let Some((_, text)) = help.filter(|(of, _)| *of == name) {
                        plain.push_str(&format!("# HELP {name}{suffix} {text}\n"));
                    }
                    plain.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
                }
            }
            ["#", ..] => {}
            _ => {
                plain.push_str(line);
                plain.push('\n');
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_have_the_name_of_their_series_in_plain_text() {
        let open = "# HELP sanlab_x Things.\n# TYPE sanlab_x counter\nsanlab_x_total{node=\"a\"} 3\n# HELP sanlab_none Nothing.\n# TYPE sanlab_none counter\n# HELP sanlab_y Size.\n# TYPE sanlab_y gauge\nsanlab_y 4\n# EOF\n";
        let plain = "# HELP sanlab_x_total Things.\n# TYPE sanlab_x_total counter\nsanlab_x_total{node=\"a\"} 3\n# HELP sanlab_y Size.\n# TYPE sanlab_y gauge\nsanlab_y 4\n";
        assert_eq!(as_plain_text(open), plain);
    }
}
