//! What the demo found: the tables, the JSON rows, and the judgement.
//!
//! Place: filled by the demo, judged against the cluster's counters.
//! Invariants: a check that cannot be made has failed. Figures are medians over the rounds; a ratio is taken within a round, because only there
//! both roads met the same machine.
//! Source: ours, the command-line contract ("Check of the demo").

use serde_json::{Value, json};

use super::{Measured, Road};
use crate::output::{self, Table};
use crate::stat;

/// One client in one round, on both roads.
#[derive(Clone, Debug)]
pub(super) struct Round {
    pub(super) node: &'static str,
    pub(super) target: String,
    pub(super) san: Measured,
    pub(super) tcp: Measured,
}

/// The client whose server is not on the SAN.
#[derive(Clone, Debug)]
pub(super) struct FallBack {
    pub(super) node: &'static str,
    pub(super) target: String,
    pub(super) measured: Measured,
}

/// Everything the demo found.
#[derive(Debug)]
pub(super) struct Report {
    rounds: Vec<Round>,
    fall_back: FallBack,
    checks: Vec<Check>,
}

#[derive(Clone, Debug)]
struct Check {
    what: &'static str,
    is_ok: bool,
    found: String,
}

/// The check that [`Report::name_errors`] adds to.
const NO_ERRORS: &str = "the NICs met no errors";
/// Reason of the fall-back that the demo provokes.
const EXPECTED_REASON: &str = "no_san_listener";

impl Report {
    pub(super) fn new(rounds: Vec<Round>, fall_back: FallBack) -> Self {
        Self {
            rounds,
            fall_back,
            checks: Vec::new(),
        }
    }

    /// Whether every check has passed.
    pub(super) fn is_ok(&self) -> bool {
        !self.checks.is_empty() && self.checks.iter().all(|check| check.is_ok)
    }

    /// Whether the NICs counted errors.
    pub(super) fn met_errors(&self) -> bool {
        let mut failed = self.checks.iter().filter(|check| !check.is_ok);
        failed.any(|check| check.what == NO_ERRORS)
    }

    /// Says beside their number what the errors were.
    pub(super) fn name_errors(&mut self, reasons: &[String]) {
        if reasons.is_empty() {
            return;
        }
        let mut checks = self.checks.iter_mut();
        if let Some(check) = checks.find(|check| check.what == NO_ERRORS) {
            check.found = format!("{} ({})", check.found, reasons.join("; "));
        }
    }

    /// Whether counters that are still under way could change the judgement: what the connections showed while they lived stands.
    pub(super) fn can_settle(&self) -> bool {
        self.rounds.iter().all(Round::is_on_san)
    }

    /// Holds the cluster's counters against what the programs counted.
    pub(super) fn judge(&mut self, stat: &Value) {
        let counted: u64 = self
            .rounds
            .iter()
            .map(|round| round.san.result.sent + round.san.result.received)
            .sum();
        let san_tx = sum(stat, "totals", |total| &total["san_tx_bytes"]);
        let san_rx = sum(stat, "totals", |total| &total["san_rx_bytes"]);
        let nic_tx = sum(stat, "nodes", |node| &node["counters"]["tx_payload_bytes"]);
        let nic_rx = sum(stat, "nodes", |node| &node["counters"]["rx_payload_bytes"]);
        let errors = sum(stat, "nodes", |node| &node["counters"]["errors"]);
        let tcp_connections = sum(stat, "totals", |total| &total["tcp_connections"]);
        let on_san = self.rounds.iter().filter(|round| round.is_on_san()).count();
        let fell_back = self.fall_back.measured.road.as_ref();
        let counted_fall_backs: u64 = rows(stat, "fallbacks")
            .iter()
            .filter(|row| row["reason"] == EXPECTED_REASON && row["node"] == self.fall_back.node)
            .filter_map(|row| row["count"].as_u64())
            .sum();
        let left = rows(stat, "connections").len();
        self.checks = vec![
            Check {
                what: "every byte arrived right, on every road",
                is_ok: true,
                found: format!("{} checked by the programs", output::bytes(counted)),
            },
            Check {
                what: "every connection to the SAN server took the SAN",
                is_ok: on_san == self.rounds.len(),
                found: format!("{on_san} of {}", self.rounds.len()),
            },
            Check {
                what: "the switches sent what they received, and what the programs counted",
                is_ok: san_tx == Some(counted) && san_rx == Some(counted),
                found: format!(
                    "sent {}, received {}, counted {counted} B",
                    show(san_tx),
                    show(san_rx)
                ),
            },
            Check {
                what: "the NICs carried all of it",
                is_ok: counted > 0
                    && nic_tx.is_some_and(|bytes| bytes >= counted)
                    && nic_rx.is_some_and(|bytes| bytes >= counted),
                found: format!(
                    "sent {}, received {}, with session headers",
                    show(nic_tx),
                    show(nic_rx)
                ),
            },
            Check {
                what: NO_ERRORS,
                is_ok: errors == Some(0),
                found: errors.map_or("no counter".to_owned(), |errors| errors.to_string()),
            },
            Check {
                what: "the server that is not on the SAN was reached over TCP, and the reason is known",
                is_ok: fell_back.is_some_and(|road| {
                    road.road == "tcp" && road.reason.as_deref() == Some(EXPECTED_REASON)
                }) && counted_fall_backs == 1,
                found: fell_back.map_or("no connection seen".to_owned(), Road::to_text),
            },
            Check {
                what: "nothing else took TCP",
                is_ok: tcp_connections == Some(1),
                found: tcp_connections.map_or("no counter".to_owned(), |count| {
                    format!(
                        "{count} TCP connection{}",
                        if count == 1 { "" } else { "s" }
                    )
                }),
            },
            Check {
                what: "ended programs left no connection behind",
                is_ok: left == 0,
                found: format!("{left} left"),
            },
        ];
    }

    /// The tables.
    pub(super) fn to_text(&self) -> String {
        let mut table = Table::new(&[
            "FROM",
            "TO",
            "ROAD",
            ">SENT",
            ">RECEIVED",
            ">ROUND TRIP",
            ">TCP",
            ">THERE",
            ">TCP",
            ">BACK",
            ">TCP",
        ]);
        for node in self.nodes() {
            let rounds: Vec<&Round> = self
                .rounds
                .iter()
                .filter(|round| round.node == node)
                .collect();
            let Some(first) = rounds.first() else {
                continue;
            };
            let both = |value: fn(&Measured) -> f64, text: fn(f64) -> String| {
                let (san, tcp) = (
                    median(&rounds, |r| value(&r.san)),
                    median(&rounds, |r| value(&r.tcp)),
                );
                [text(san), text(tcp)]
            };
            let mut cells = vec![
                format!("node {node}"),
                first.target.clone(),
                first
                    .san
                    .road
                    .as_ref()
                    .map_or("unknown".to_owned(), Road::to_text),
                output::bytes(rounds.iter().map(|round| round.san.result.sent).sum()),
                output::bytes(rounds.iter().map(|round| round.san.result.received).sum()),
            ];
            cells.extend(both(round_trip, output::time));
            cells.extend(both(up, output::rate));
            cells.extend(both(down, output::rate));
            table.row(cells);
        }
        let fall_back = &self.fall_back;
        let result = &fall_back.measured;
        table.row([
            format!("node {}", fall_back.node),
            fall_back.target.clone(),
            result
                .road
                .as_ref()
                .map_or("unknown".to_owned(), Road::to_text),
            output::bytes(result.result.sent),
            output::bytes(result.result.received),
            output::time(round_trip(result)),
            String::new(),
            output::rate(up(result)),
            String::new(),
            output::rate(down(result)),
        ]);
        let mut text = format!(
            "\nconnections (medians; the columns TCP: the same programs without sanlab):\n{}",
            table.render("  ")
        );
        if let Some(reason) = fall_back
            .measured
            .road
            .as_ref()
            .and_then(|road| road.reason.as_ref())
        {
            text.push_str(&format!("  {reason}: {}\n", stat::meaning(reason)));
        }
        text.push_str("\nproof:\n");
        for check in &self.checks {
            let mark = if check.is_ok { "ok  " } else { "FAIL" };
            text.push_str(&format!("  {mark}  {}: {}\n", check.what, check.found));
        }
        text.push_str(if self.is_ok() {
            "\nall bytes arrived right, and the counters account for all of them\n"
        } else {
            "\nthe demo failed: see the lines marked FAIL\n"
        });
        text
    }

    /// The answer as JSON.
    pub(super) fn to_json(&self) -> Value {
        let mut rows = Vec::new();
        for node in self.nodes() {
            let rounds: Vec<&Round> = self
                .rounds
                .iter()
                .filter(|round| round.node == node)
                .collect();
            rows.push(row(node, &rounds, "round_trip", "ns", round_trip));
            rows.push(row(node, &rounds, "throughput_to_server", "B/s", up));
            rows.push(row(node, &rounds, "throughput_from_server", "B/s", down));
        }
        let connections = self
            .rounds
            .iter()
            .map(|round| connection(round.node, &round.target, &round.san));
        let fall_back = &self.fall_back;
        let connections: Vec<Value> = connections
            .chain([connection(
                fall_back.node,
                &fall_back.target,
                &fall_back.measured,
            )])
            .collect();
        let checks: Vec<Value> = self
            .checks
            .iter()
            .map(|check| json!({ "what": check.what, "ok": check.is_ok, "found": check.found }))
            .collect();
        json!({ "schema": 1, "rows": rows, "connections": connections, "checks": checks, "ok": self.is_ok() })
    }

    fn nodes(&self) -> Vec<&'static str> {
        let mut nodes: Vec<&'static str> = self.rounds.iter().map(|round| round.node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }
}

impl Round {
    fn is_on_san(&self) -> bool {
        self.san
            .road
            .as_ref()
            .is_some_and(|road| road.road == "san")
    }
}

impl Road {
    fn to_text(&self) -> String {
        match &self.reason {
            Some(reason) => format!("{} ({reason})", self.road),
            None => self.road.clone(),
        }
    }
}

fn connection(node: &str, target: &str, measured: &Measured) -> Value {
    let road = measured.road.as_ref();
    json!({
        "node": node,
        "remote": target,
        "road": road.map(|road| &road.road),
        "reason": road.and_then(|road| road.reason.as_ref()),
        "tx_bytes": measured.result.sent,
        "rx_bytes": measured.result.received,
    })
}

fn row(
    node: &str,
    rounds: &[&Round],
    metric: &str,
    unit: &str,
    value: fn(&Measured) -> f64,
) -> Value {
    let ratios: Vec<f64> = rounds
        .iter()
        .map(|round| value(&round.san) / value(&round.tcp))
        .filter(|ratio| ratio.is_finite())
        .collect();
    let quantile = |pick: fn(&Measured) -> u64| {
        let is_time = unit == "ns";
        is_time.then(|| median(rounds, |round| output::as_f64(pick(&round.san))))
    };
    let samples: u64 = match unit {
        "ns" => rounds.iter().map(|round| round.san.result.trips).sum(),
        _ => u64::try_from(rounds.len()).unwrap_or(u64::MAX),
    };
    json!({
        "name": format!("node {node}, {metric}"),
        "subject": "san",
        "baseline": "tcp",
        "metric": metric,
        "unit": unit,
        "subject_value": median(rounds, |round| value(&round.san)),
        "baseline_value": median(rounds, |round| value(&round.tcp)),
        "ratio": middle(ratios.clone()),
        "ratio_low": ratios.iter().copied().reduce(f64::min),
        "ratio_high": ratios.iter().copied().reduce(f64::max),
        "samples": samples,
        "p50": quantile(|measured| measured.result.p50_ns),
        "p99": quantile(|measured| measured.result.p99_ns),
        "p999": quantile(|measured| measured.result.p999_ns),
        "max": rounds.iter().map(|round| round.san.result.max_ns).max().filter(|_| unit == "ns"),
    })
}

fn round_trip(measured: &Measured) -> f64 {
    output::as_f64(measured.result.p50_ns)
}

fn up(measured: &Measured) -> f64 {
    measured.result.up_bytes_per_second
}

fn down(measured: &Measured) -> f64 {
    measured.result.down_bytes_per_second
}

fn median(rounds: &[&Round], value: impl Fn(&Round) -> f64) -> f64 {
    middle(rounds.iter().map(|round| value(round)).collect()).unwrap_or(0.0)
}

fn middle(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = values.get(values.len() / 2).copied()?;
    let lower = values.get(values.len().saturating_sub(1) / 2).copied()?;
    Some(f64::midpoint(lower, upper))
}

fn rows<'a>(stat: &'a Value, key: &str) -> &'a [Value] {
    stat[key].as_array().map_or(&[], Vec::as_slice)
}

/// Sum over all rows; `None` when there is no row or one lacks the number.
fn sum(stat: &Value, key: &str, number: impl Fn(&Value) -> &Value) -> Option<u64> {
    let rows = rows(stat, key);
    let numbers: Option<Vec<u64>> = rows.iter().map(|row| number(row).as_u64()).collect();
    numbers
        .filter(|numbers| !numbers.is_empty())
        .map(|numbers| numbers.iter().sum())
}

fn show(bytes: Option<u64>) -> String {
    bytes.map_or("no counter".to_owned(), |bytes| format!("{bytes} B"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::world::ClientResult;

    fn measured(road: Option<&str>, reason: Option<&str>) -> Measured {
        Measured {
            result: ClientResult {
                sent: 60,
                received: 40,
                trips: 10,
                p50_ns: 2_000,
                p99_ns: 3_000,
                p999_ns: 4_000,
                max_ns: 5_000,
                up_bytes_per_second: 2e9,
                down_bytes_per_second: 1e9,
            },
            road: road.map(|road| Road {
                road: road.to_owned(),
                reason: reason.map(str::to_owned),
            }),
        }
    }

    fn report(road: &str) -> Report {
        let round = |node| Round {
            node,
            target: "127.77.0.1:7000".to_owned(),
            san: measured(Some(road), None),
            tcp: measured(None, None),
        };
        let fall_back = FallBack {
            node: "c",
            target: "127.77.0.2:7001".to_owned(),
            measured: measured(Some("tcp"), Some("no_san_listener")),
        };
        Report::new(vec![round("b"), round("c")], fall_back)
    }

    fn counters() -> Value {
        json!({
            "nodes": [{"counters": {"tx_payload_bytes": 300, "rx_payload_bytes": 300, "errors": 0}}],
            "totals": [
                {"node": "a", "san_tx_bytes": 80, "san_rx_bytes": 120, "tcp_connections": 0},
                {"node": "b", "san_tx_bytes": 120, "san_rx_bytes": 80, "tcp_connections": 1},
            ],
            "fallbacks": [{"node": "c", "reason": "no_san_listener", "count": 1}],
            "connections": [],
        })
    }

    #[test]
    fn counters_that_account_for_every_byte_pass() {
        let mut report = report("san");
        report.judge(&counters());
        assert!(report.is_ok(), "{}", report.to_text());
        assert_eq!(report.to_json()["ok"], true);
        assert_eq!(report.to_json()["rows"][0]["ratio"], 1.0);
    }

    #[test]
    fn each_counter_that_does_not_account_fails() {
        let wrong: [(&str, Value); 8] = [
            ("/totals/0/san_tx_bytes", json!(79)),
            ("/totals/1/san_rx_bytes", json!(81)),
            ("/nodes/0/counters/tx_payload_bytes", json!(199)),
            ("/nodes/0/counters/rx_payload_bytes", json!(null)),
            ("/nodes/0/counters/errors", json!(1)),
            ("/totals/1/tcp_connections", json!(2)),
            ("/fallbacks/0/reason", json!("san_timeout")),
            ("/connections", json!([{}])),
        ];
        for (place, value) in wrong {
            let mut stat = counters();
            *stat.pointer_mut(place).unwrap() = value;
            let mut report = report("san");
            report.judge(&stat);
            assert!(!report.is_ok(), "{place}");
        }
    }

    #[test]
    fn errors_are_named() {
        let mut stat = counters();
        *stat.pointer_mut("/nodes/0/counters/errors").unwrap() = json!(1);
        let mut report = report("san");
        report.judge(&stat);
        assert!(report.met_errors());
        report.name_errors(&["node a: qp 0x1 completed with RETRY_EXC_ERR".to_owned()]);
        let text = report.to_text();
        let line = "the NICs met no errors: 1 (node a: qp 0x1 completed with RETRY_EXC_ERR)";
        assert!(text.contains(line), "{text}");
    }

    #[test]
    fn a_connection_that_took_tcp_fails_and_is_not_waited_for() {
        let mut report = report("tcp");
        report.judge(&counters());
        assert!(!report.is_ok());
        assert!(!report.can_settle());
        assert!(report.to_text().contains("FAIL"));
    }

    #[test]
    fn no_answer_is_no_success() {
        let mut report = report("san");
        assert!(!report.is_ok());
        report.judge(&json!({}));
        assert!(!report.is_ok());
    }
}
