//! Rows of a benchmark as tables.
//!
//! Place: [`super::finish`] prints them. Invariants: rows of one name stand together, in the order in which the names came; what rows do not have
//! takes no column.

use sanlab::bench::Row;
use sanlab::bench::matrix::Distance;
use sanlab::bench::stats::Tail;

use crate::output::{self, Table};

/// All rows.
pub(super) fn rows(rows: &[Row]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for row in rows {
        if !names.contains(&row.name.as_str()) {
            names.push(&row.name);
        }
    }
    let tables = names.into_iter().map(|name| {
        let own: Vec<&Row> = rows.iter().filter(|row| row.name == name).collect();
        table(name, &own)
    });
    tables.collect()
}

/// Distances between processors as a square.
pub(super) fn matrix(distances: &[Distance]) -> String {
    let mut cpus: Vec<usize> = distances
        .iter()
        .flat_map(|one| [one.near, one.far])
        .collect();
    cpus.sort_unstable();
    cpus.dedup();
    let cell = |a: usize, b: usize| {
        let found = distances
            .iter()
            .find(|one| (one.near, one.far) == (a, b) || (one.far, one.near) == (a, b));
        found.map_or("-".to_owned(), |one| output::time(one.ns))
    };
    let width = 9;
    let mut text = format!(
        "round trip of a cache line between processors\n{:>width$}",
        ""
    );
    for cpu in &cpus {
        text.push_str(&format!("{cpu:>width$}"));
    }
    for &a in &cpus {
        text.push_str(&format!("\n{a:>width$}"));
        for &b in &cpus {
            text.push_str(&format!("{:>width$}", cell(a, b)));
        }
    }
    text.push('\n');
    text
}

fn table(name: &str, rows: &[&Row]) -> String {
    let has_tails = rows.iter().any(|row| row.tail.is_some());
    let mut table = if has_tails {
        Table::new(&[
            "SUBJECT", ">P50", ">P99", ">P99.9", ">MAX", "BASELINE", ">P50", ">P99", ">RATIO",
            "INTERVAL",
        ])
    } else {
        Table::new(&[
            "SUBJECT", ">MEDIAN", "BASELINE", ">MEDIAN", ">RATIO", "INTERVAL",
        ])
    };
    for row in rows {
        let time = |tail: Option<Tail>, of: fn(&Tail) -> u64| {
            let value = tail.as_ref().map(of);
            value.map_or("-".to_owned(), |ns| output::time(output::as_f64(ns)))
        };
        let mut cells = vec![row.subject.clone(), value(row.subject_value, row.unit)];
        if has_tails {
            cells.extend([
                time(row.tail, |tail| tail.p99),
                time(row.tail, |tail| tail.p999),
                time(row.tail, |tail| tail.max),
            ]);
        }
        cells.extend([row.baseline.clone(), value(row.baseline_value, row.unit)]);
        if has_tails {
            cells.push(time(row.baseline_tail, |tail| tail.p99));
        }
        cells.extend([
            format!("{:.3}", row.ratio),
            format!(
                "{:.3}..{:.3} of {} pairs",
                row.ratio_low, row.ratio_high, row.samples
            ),
        ]);
        table.row(cells);
    }
    let mut text = format!("{name}\n{}", table.render("  "));
    if has_tails {
        text.push_str(if rows.iter().any(|row| row.is_open_loop) {
            "  open loop: from the time at which a message was due\n"
        } else {
            "  closed loop: one at a time, so a pause is one long round trip\n"
        });
    }
    for note in rows.iter().filter_map(|row| row.note.as_ref()) {
        text.push_str(&format!("  {note}\n"));
    }
    text.push('\n');
    text
}

/// A value with a unit that people read.
fn value(value: f64, unit: &str) -> String {
    match unit {
        "ns" => output::time(value),
        "B/s" => output::rate(value),
        "s/GB" | "s/million" => format!("{value:.3} {unit}"),
        _ => {
            let scaled = [(1e9, "G"), (1e6, "M"), (1e3, "k")].into_iter();
            let scaled = scaled
                .filter(|(limit, _)| value >= *limit)
                .map(|(limit, prefix)| format!("{:.2} {prefix}/s", value / limit));
            scaled
                .take(1)
                .next()
                .unwrap_or_else(|| format!("{value:.0} /s"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_is_a_square_whose_halves_agree() {
        let distance = |near, far, ns| Distance {
            near,
            far,
            ns,
            ns_low: ns,
            ns_high: ns,
        };
        let text = matrix(&[
            distance(0, 1, 100.0),
            distance(0, 4, 250.0),
            distance(1, 4, 900.0),
        ]);
        let lines: Vec<Vec<&str>> = text
            .lines()
            .skip(1)
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(lines[0], ["0", "1", "4"]);
        assert_eq!(lines[1], ["0", "-", "100", "ns", "250", "ns"]);
        assert_eq!(lines[2], ["1", "100", "ns", "-", "900", "ns"]);
        assert_eq!(lines[3], ["4", "250", "ns", "900", "ns", "-"]);
    }
}
