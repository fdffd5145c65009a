//! Results in files, and what changed between two of them.
//!
//! Place: `--save` writes, `bench compare` reads. Invariants: a file has a schema version and is refused when it has another one; full
//! histograms are kept as pairs of value and count, so that any percentile can be asked for later. Source: ours.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::BenchError;
use super::machine::Machine;
use super::report::{Report, Row};

/// Version of the files.
const SCHEMA: u32 = 1;

/// A file.
#[derive(Serialize, Deserialize, Debug)]
pub struct Saved {
    schema: u32,
    machine: Machine,
    rows: Vec<SavedRow>,
}

#[derive(Serialize, Deserialize, Debug)]
struct SavedRow {
    name: String,
    subject: String,
    baseline: String,
    metric: String,
    unit: String,
    subject_value: f64,
    baseline_value: f64,
    ratio: f64,
    ratio_low: f64,
    ratio_high: f64,
    /// Of each pair of runs.
    ratios: Vec<f64>,
    /// Round trips in ns and how often each came: the subject's.
    subject_histogram: Option<Vec<(u64, u64)>>,
    /// The baseline's.
    baseline_histogram: Option<Vec<(u64, u64)>>,
}

impl SavedRow {
    fn of(row: &Row) -> Self {
        let pairs = |index: usize| {
            let histograms = row.histograms.as_ref()?;
            let recorded = histograms.get(index)?.iter_recorded();
            Some(
                recorded
                    .map(|step| (step.value_iterated_to(), step.count_at_value()))
                    .collect(),
            )
        };
        Self {
            name: row.name.clone(),
            subject: row.subject.clone(),
            baseline: row.baseline.clone(),
            metric: row.metric.to_owned(),
            unit: row.unit.to_owned(),
            subject_value: row.subject_value,
            baseline_value: row.baseline_value,
            ratio: row.ratio,
            ratio_low: row.ratio_low,
            ratio_high: row.ratio_high,
            ratios: row.ratios.clone(),
            subject_histogram: pairs(0),
            baseline_histogram: pairs(1),
        }
    }
}

/// What became of a row.
#[derive(Clone, PartialEq, Debug)]
pub struct Change {
    /// Row: its name, subject and baseline.
    pub name: String,
    /// Its ratio before.
    pub before: f64,
    /// Its ratio after.
    pub after: f64,
    /// How much worse it is, in percent of before; negative when it is better.
    pub worse_percent: f64,
    /// Whether the two intervals lie apart, so that it is more than noise.
    pub is_certain: bool,
}

impl Saved {
    /// What is to be kept of a report.
    #[must_use]
    pub fn of(report: &Report) -> Self {
        Self {
            schema: SCHEMA,
            machine: report.machine.clone(),
            rows: report.rows.iter().map(SavedRow::of).collect(),
        }
    }

    /// Writes a file.
    ///
    /// # Errors
    /// [`BenchError::Saved`].
    pub fn write(&self, path: &Path) -> Result<(), BenchError> {
        let text = serde_json::to_string(self).map_err(|error| problem(path, &error))?;
        fs::write(path, text + "\n").map_err(|error| problem(path, &error))
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`BenchError::Saved`], also for a file of another schema.
    pub fn read(path: &Path) -> Result<Self, BenchError> {
        let text = fs::read_to_string(path).map_err(|error| problem(path, &error))?;
        let saved: Self = serde_json::from_str(&text).map_err(|error| problem(path, &error))?;
        if saved.schema == SCHEMA {
            Ok(saved)
        } else {
            Err(problem(
                path,
                &format!("schema {}, this version reads {SCHEMA}", saved.schema),
            ))
        }
    }

    /// Rows that both have, as they changed from `self` to `after`. What is compared are the ratios to the baseline: they mean the same on
    /// a busy machine and on an idle one.
    #[must_use]
    pub fn changes(&self, after: &Self) -> Vec<Change> {
        let key = |row: &SavedRow| format!("{}: {} / {}", row.name, row.subject, row.baseline);
        let before: BTreeMap<_, _> = self.rows.iter().map(|row| (key(row), row)).collect();
        let changed = after.rows.iter().filter_map(|row| {
            let name = key(row);
            let old = before.get(&name)?;
            let growth = (row.ratio / old.ratio - 1.0) * 100.0;
            let is_rate = row.metric == "rate";
            Some(Change {
                before: old.ratio,
                after: row.ratio,
                worse_percent: if is_rate { -growth } else { growth },
                is_certain: row.ratio_low > old.ratio_high || row.ratio_high < old.ratio_low,
                name,
            })
        });
        changed.collect()
    }
}

fn problem(path: &Path, what: &impl ToString) -> BenchError {
    BenchError::Saved {
        path: path.to_owned(),
        problem: what.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::tests::row;

    fn saved(pairs: &[(u64, u64)]) -> Saved {
        Saved::of(&Report {
            machine: Machine::default(),
            rows: vec![row("trip", pairs)],
        })
    }

    #[test]
    fn a_longer_round_trip_is_worse_and_noise_is_not_certain() {
        let before = saved(&[(100, 100), (110, 100), (120, 100)]);
        let worse = saved(&[(200, 100), (220, 100), (240, 100)]);
        let [change] = &before.changes(&worse)[..] else {
            panic!("one row");
        };
        assert!((change.worse_percent - 100.0).abs() < 1.0, "{change:?}");
        assert!(change.is_certain);
        let noise = saved(&[(105, 100), (115, 100), (125, 100)]);
        assert!(!before.changes(&noise)[0].is_certain);
        assert!(worse.changes(&before)[0].worse_percent < 0.0);
    }

    #[test]
    fn a_file_comes_back_whole_and_one_of_another_schema_is_refused() {
        let directory = std::env::temp_dir();
        let path = directory.join(format!("sanlab-saved-{}.json", std::process::id()));
        let one = saved(&[(100, 90), (5000, 90)]);
        one.write(&path).unwrap();
        let back = Saved::read(&path).unwrap();
        let histogram = back.rows[0].subject_histogram.clone().unwrap();
        assert_eq!(histogram.iter().map(|&(_, count)| count).sum::<u64>(), 2);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("\"schema\":1", "\"schema\":2")).unwrap();
        let error = Saved::read(&path).unwrap_err().to_string();
        fs::remove_file(&path).unwrap();
        assert!(error.contains("schema 2"), "{error}");
    }
}
