//! What a benchmark found, for people and programs.
//!
//! Place: [`super::ring`] and [`super::rdma`] make [`Row`]s; the command prints the [`Report`]. Invariants: field names of the JSON are
//! those of the command-line contract and are never renamed; what a row does not have is null. A latency row keeps its histograms.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::machine::Machine;
use super::stats::{Tail, histogram, median};

/// What one run gave.
#[derive(Clone, Debug)]
pub struct Sample {
    value: f64,
    trips: Option<Histogram<u64>>,
    cost: Option<f64>,
}

impl Sample {
    /// `count` things in so long a time: their rate per second.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a rate, for people")]
    pub fn rate(count: u64, time: Duration) -> Self {
        Self {
            value: count as f64 / time.as_secs_f64().max(1e-9),
            trips: None,
            cost: None,
        }
    }

    /// A rate that somebody else has taken.
    #[must_use]
    pub const fn given(rate: f64) -> Self {
        Self {
            value: rate,
            trips: None,
            cost: None,
        }
    }

    /// Round trips in ns: their median.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "nanoseconds of a round trip")]
    pub fn latency(trips: Histogram<u64>) -> Self {
        Self {
            value: trips.value_at_quantile(0.5) as f64,
            trips: Some(trips),
            cost: None,
        }
    }

    /// What the run cost besides, in the unit of [`Row::of_costs`].
    #[must_use]
    pub const fn costing(mut self, cost: f64) -> Self {
        self.cost = Some(cost);
        self
    }

    /// The figure of the run.
    #[must_use]
    pub const fn value(&self) -> f64 {
        self.value
    }
}

/// The unit of a metric, and which way is better.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// A rate, in this unit.
    MoreIsBetter(&'static str),
    /// A latency, in this unit.
    LessIsBetter(&'static str),
    /// Processor time of everybody who took part, in this unit.
    Cost(&'static str),
}

/// Subject beside baseline.
#[derive(Clone, PartialEq, Debug)]
pub struct Row {
    /// What was measured, with every parameter that matters.
    pub name: String,
    /// What was measured.
    pub subject: String,
    /// Beside what.
    pub baseline: String,
    /// `rate`, `latency` or `cost`.
    pub metric: &'static str,
    /// Unit of the values.
    pub unit: &'static str,
    /// Median over the runs.
    pub subject_value: f64,
    /// Median over the runs.
    pub baseline_value: f64,
    /// Median of subject by baseline over the pairs of runs.
    pub ratio: f64,
    /// Ends of the interval of that median, of 95 % from six pairs on.
    pub ratio_low: f64,
    /// See `ratio_low`.
    pub ratio_high: f64,
    /// Pairs of runs.
    pub samples: usize,
    /// The subject's round trips over all runs.
    pub tail: Option<Tail>,
    /// The baseline's.
    pub baseline_tail: Option<Tail>,
    /// Whether round trips were begun at times fixed before, and count from these.
    pub is_open_loop: bool,
    /// What else there is to know.
    pub note: Option<String>,
    /// Histograms behind the tails: subject, baseline.
    pub(crate) histograms: Option<[Histogram<u64>; 2]>,
    /// Ratio of each pair, in order.
    pub(crate) ratios: Vec<f64>,
}

impl Row {
    /// A row of pairs of runs, subject first; `None` without pairs.
    #[must_use]
    pub fn of_pairs(
        name: String,
        (subject, baseline): (String, String),
        direction: Direction,
        pairs: &[(Sample, Sample)],
    ) -> Option<Self> {
        let values = |of: fn(&(Sample, Sample)) -> f64| pairs.iter().map(of).collect::<Vec<_>>();
        let ratios = values(|(subject, baseline)| subject.value / baseline.value);
        let ratio = median(&ratios)?;
        let (metric, unit) = match direction {
            Direction::MoreIsBetter(unit) => ("rate", unit),
            Direction::LessIsBetter(unit) => ("latency", unit),
            Direction::Cost(unit) => ("cost", unit),
        };
        let merged = |of: fn(&(Sample, Sample)) -> &Sample| {
            let mut all = histogram();
            for sample in pairs.iter().map(of) {
                all.add(sample.trips.as_ref()?).ok()?;
            }
            Some(all)
        };
        let histograms = merged(|pair| &pair.0).zip(merged(|pair| &pair.1));
        Some(Self {
            name,
            subject,
            baseline,
            metric,
            unit,
            subject_value: median(&values(|pair| pair.0.value))?.value,
            baseline_value: median(&values(|pair| pair.1.value))?.value,
            ratio: ratio.value,
            ratio_low: ratio.low,
            ratio_high: ratio.high,
            samples: pairs.len(),
            tail: histograms.as_ref().map(|(subject, _)| Tail::of(subject)),
            baseline_tail: histograms.as_ref().map(|(_, baseline)| Tail::of(baseline)),
            is_open_loop: false,
            note: None,
            histograms: histograms.map(|(subject, baseline)| [subject, baseline]),
            ratios,
        })
    }

    /// A row of what the runs cost; `None` where one did not say.
    #[must_use]
    pub fn of_costs(
        name: String,
        names: (String, String),
        unit: &'static str,
        pairs: &[(Sample, Sample)],
    ) -> Option<Self> {
        let costs: Option<Vec<_>> = pairs
            .iter()
            .map(|(subject, baseline)| {
                Some((Sample::given(subject.cost?), Sample::given(baseline.cost?)))
            })
            .collect();
        Self::of_pairs(name, names, Direction::Cost(unit), &costs?)
    }

    /// The row as the command-line contract has it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let of = |get: fn(&Tail) -> u64| self.tail.as_ref().map(get);
        let beside = |get: fn(&Tail) -> u64| self.baseline_tail.as_ref().map(get);
        let looped = self
            .tail
            .map(|_| if self.is_open_loop { "open" } else { "closed" });
        json!({
            "name": self.name,
            "subject": self.subject,
            "baseline": self.baseline,
            "metric": self.metric,
            "unit": self.unit,
            "subject_value": self.subject_value,
            "baseline_value": self.baseline_value,
            "ratio": self.ratio,
            "ratio_low": self.ratio_low,
            "ratio_high": self.ratio_high,
            "samples": self.samples,
            "p50": of(|tail| tail.p50),
            "p99": of(|tail| tail.p99),
            "p999": of(|tail| tail.p999),
            "max": of(|tail| tail.max),
            "baseline_p50": beside(|tail| tail.p50),
            "baseline_p99": beside(|tail| tail.p99),
            "baseline_p999": beside(|tail| tail.p999),
            "baseline_max": beside(|tail| tail.max),
            "loop": looped,
            "note": self.note,
        })
    }
}

/// Rows of one invocation, and the machine they are of.
#[derive(Clone, Debug)]
pub struct Report {
    /// The machine.
    pub machine: Machine,
    /// The rows.
    pub rows: Vec<Row>,
}

impl Report {
    /// The object that `--json` prints.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "schema": 1,
            "machine": self.machine,
            "rows": self.rows.iter().map(Row::to_json).collect::<Vec<_>>(),
            "ok": true,
        })
    }

    /// Comma-separated values, with a line of names.
    #[must_use]
    pub fn to_csv(&self) -> String {
        const NAMES: [&str; 21] = [
            "name",
            "subject",
            "baseline",
            "metric",
            "unit",
            "subject_value",
            "baseline_value",
            "ratio",
            "ratio_low",
            "ratio_high",
            "samples",
            "p50",
            "p99",
            "p999",
            "max",
            "baseline_p50",
            "baseline_p99",
            "baseline_p999",
            "baseline_max",
            "loop",
            "note",
        ];
        let mut text = NAMES.join(",");
        text.push('\n');
        for row in self.rows.iter().map(Row::to_json) {
            let cells = NAMES.map(|name| match &row[name] {
                Value::String(text) => quoted(text),
                Value::Null => String::new(),
                number => number.to_string(),
            });
            text.push_str(&cells.join(","));
            text.push('\n');
        }
        text
    }
}

/// A cell, in quotes where it needs them (RFC 4180).
fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A row of round trips: each pair is the subject's and the baseline's one trip.
    pub(crate) fn row(name: &str, pairs: &[(u64, u64)]) -> Row {
        let sample = |ns| {
            let mut trips = histogram();
            trips.record(ns).unwrap();
            Sample::latency(trips)
        };
        let pairs: Vec<_> = pairs.iter().map(|&(a, b)| (sample(a), sample(b))).collect();
        let direction = Direction::LessIsBetter("ns");
        Row::of_pairs(name.into(), ("x".into(), "y".into()), direction, &pairs).unwrap()
    }

    #[test]
    fn a_ratio_is_taken_within_each_pair() {
        // The second pair met a machine ten times slower; the ratio does not see it.
        let row = row("trip, 8 B", &[(100, 200), (1000, 2000), (100, 200)]);
        assert!((row.ratio - 0.5).abs() < 0.01, "{}", row.ratio);
        assert_eq!(row.samples, 3);
        let tail = row.tail.unwrap();
        assert!(tail.p50 <= 101 && tail.max >= 1000, "{tail:?}");
    }

    #[test]
    fn a_cost_is_a_row_only_if_every_run_has_one() {
        let sample = |cost| Sample::given(1.0).costing(cost);
        let names = || ("x".to_owned(), "y".to_owned());
        let pairs = [(sample(2.0), sample(4.0)), (sample(3.0), sample(6.0))];
        let row = Row::of_costs("CPU".into(), names(), "s/GB", &pairs).unwrap();
        assert_eq!((row.metric, row.unit), ("cost", "s/GB"));
        assert!((row.ratio - 0.5).abs() < 1e-9 && (row.subject_value - 2.5).abs() < 1e-9);
        let pairs = [(sample(2.0), Sample::given(1.0))];
        assert_eq!(Row::of_costs("CPU".into(), names(), "s/GB", &pairs), None);
    }

    #[test]
    fn a_rate_has_no_percentiles_and_a_cell_with_commas_has_quotes() {
        let sample = |count| Sample::rate(count, Duration::from_secs(1));
        let direction = Direction::MoreIsBetter("elements/s");
        let pairs = [(sample(30), sample(10))];
        let row = Row::of_pairs(
            "a, \"b\"".into(),
            ("x".into(), "y".into()),
            direction,
            &pairs,
        );
        let row = row.unwrap();
        assert_eq!(row.to_json()["p50"], Value::Null);
        let report = Report {
            machine: Machine::default(),
            rows: vec![row],
        };
        let csv = report.to_csv();
        let line = csv.lines().nth(1).unwrap();
        assert_eq!(
            line,
            "\"a, \"\"b\"\"\",x,y,rate,elements/s,30.0,10.0,3.0,3.0,3.0,1,,,,,,,,,,"
        );
    }
}
