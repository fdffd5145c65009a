//! A picture of a report.
//!
//! Place: `--plot FILE.svg`. Invariants: the file stands alone and can be read without an explanation: title, axes with units, both
//! subjects named in every row; numbers are those of the report. Source: SVG 1.1. Leaves out: styles to choose from.

use std::fmt::Write as _;

use hdrhistogram::Histogram;

use super::report::{Report, Row};

const WIDTH: f64 = 860.0;
const LEFT: f64 = 80.0;
const PANEL: f64 = 300.0;
const BAR: f64 = 18.0;
/// Colours of subject and baseline.
const COLOURS: [&str; 2] = ["#1b6ca8", "#b0b0b0"];

/// The report as SVG: rates as bars, round trips as cumulative distributions.
#[must_use]
pub fn svg(report: &Report) -> String {
    let mut body = String::new();
    let mut top = 30.0;
    let (latencies, rates): (Vec<_>, Vec<_>) =
        report.rows.iter().partition(|row| row.histograms.is_some());
    if !rates.is_empty() {
        top = bars(&mut body, &rates, top);
    }
    for row in latencies {
        top = distribution(&mut body, row, top);
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{top:.0}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{body}</svg>\n"
    )
}

/// A bar for each side of each row; returns where the next picture may begin.
fn bars(body: &mut String, rows: &[&Row], top: f64) -> f64 {
    let mut y = top;
    for row in rows {
        let most = row.subject_value.max(row.baseline_value).max(1e-9);
        text(
            body,
            LEFT,
            y,
            "start",
            &format!("{} [{}]", row.name, row.unit),
        );
        y += 8.0;
        let sides = [
            (&row.subject, row.subject_value),
            (&row.baseline, row.baseline_value),
        ];
        for ((name, value), colour) in sides.into_iter().zip(COLOURS) {
            let width = (WIDTH - LEFT - 260.0) * value / most;
            let _ = writeln!(
                body,
                "<rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>"
            );
            let label = format!("{name}  {}", figure(value));
            text(body, LEFT + width + 6.0, y + 13.0, "start", &label);
            y += BAR + 3.0;
        }
        let ratio = format!(
            "ratio {:.2} ({:.2} to {:.2}, {} pairs)",
            row.ratio, row.ratio_low, row.ratio_high, row.samples
        );
        text(body, LEFT, y + 11.0, "start", &ratio);
        y += 40.0;
    }
    y
}

/// Cumulative distributions of a row's round trips over a logarithmic axis of time.
fn distribution(body: &mut String, row: &Row, top: f64) -> f64 {
    let Some(histograms) = &row.histograms else {
        return top;
    };
    let low = histograms.iter().map(|h| h.min().max(1)).min().unwrap_or(1);
    let high = histograms
        .iter()
        .map(|h| h.value_at_quantile(0.9999))
        .max()
        .unwrap_or(10);
    let (first, last) = (decade(low), decade(high) + 1);
    let x = |ns: u64| {
        let share = (logarithm(ns) - f64::from(first)) / f64::from(last - first);
        LEFT + (WIDTH - LEFT - 40.0) * share.clamp(0.0, 1.0)
    };
    let y = |share: f64| top + 20.0 + PANEL * (1.0 - share);
    text(
        body,
        LEFT,
        top,
        "start",
        &format!(
            "{}: share of round trips that took at most so long",
            row.name
        ),
    );
    for power in first..=last {
        let ns = 10_u64.saturating_pow(power);
        let place = x(ns);
        let _ = writeln!(
            body,
            "<line x1=\"{place:.1}\" y1=\"{:.1}\" x2=\"{place:.1}\" y2=\"{:.1}\" stroke=\"#e0e0e0\"/>",
            y(1.0),
            y(0.0)
        );
        text(body, place, y(0.0) + 16.0, "middle", &time(ns));
    }
    for (share, label) in [(0.0, "0 %"), (0.5, "50 %"), (0.9, "90 %"), (1.0, "100 %")] {
        let _ = writeln!(
            body,
            "<line x1=\"{LEFT}\" y1=\"{0:.1}\" x2=\"{1:.1}\" y2=\"{0:.1}\" stroke=\"#e0e0e0\"/>",
            y(share),
            WIDTH - 40.0
        );
        text(body, LEFT - 8.0, y(share) + 4.0, "end", label);
    }
    let sides = [&row.subject, &row.baseline];
    for (index, ((histogram, name), colour)) in
        histograms.iter().zip(sides).zip(COLOURS).enumerate()
    {
        let _ = writeln!(
            body,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" points=\"{}\"/>",
            points(histogram, x, y)
        );
        #[expect(clippy::cast_precision_loss, reason = "0 or 1")]
        let at = y(0.15) + 16.0 * index as f64;
        let label = format!(
            "{name}: p50 {}, p99 {}",
            time(histogram.value_at_quantile(0.5)),
            time(histogram.value_at_quantile(0.99))
        );
        let _ = writeln!(
            body,
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"10\" height=\"10\" fill=\"{colour}\"/>",
            WIDTH - 330.0,
            at - 9.0
        );
        text(body, WIDTH - 314.0, at, "start", &label);
    }
    top + PANEL + 80.0
}

fn points(histogram: &Histogram<u64>, x: impl Fn(u64) -> f64, y: impl Fn(f64) -> f64) -> String {
    let mut points = format!("{:.1},{:.1} ", x(histogram.min().max(1)), y(0.0));
    for step in histogram.iter_recorded() {
        let (ns, share) = (step.value_iterated_to().max(1), step.quantile());
        let _ = write!(points, "{:.1},{:.1} ", x(ns), y(share)); // a String takes everything
    }
    points
}

fn text(body: &mut String, x: f64, y: f64, anchor: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        body,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>"
    );
}

fn decade(ns: u64) -> u32 {
    ns.max(1).ilog10()
}

#[expect(clippy::cast_precision_loss, reason = "a place in a picture")]
fn logarithm(ns: u64) -> f64 {
    (ns.max(1) as f64).log10()
}

fn time(ns: u64) -> String {
    match ns {
        0..1000 => format!("{ns} ns"),
        1000..1_000_000 => format!("{} us", ns / 1000),
        1_000_000..1_000_000_000 => format!("{} ms", ns / 1_000_000),
        _ => format!("{} s", ns / 1_000_000_000),
    }
}

fn figure(value: f64) -> String {
    for (limit, unit) in [(1e9, " G"), (1e6, " M"), (1e3, " k")] {
        if value >= limit {
            return format!("{:.2}{unit}", value / limit);
        }
    }
    format!("{value:.2}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::machine::Machine;
    use crate::bench::report::tests::row;

    #[test]
    fn a_picture_names_its_row_both_sides_and_the_unit() {
        let report = Report {
            machine: Machine::default(),
            rows: vec![row("trip <8 B>", &[(100, 200), (5000, 300)])],
        };
        let picture = svg(&report);
        assert!(picture.starts_with("<svg") && picture.ends_with("</svg>\n"));
        assert!(picture.contains("trip &lt;8 B>: share"));
        for words in ["x: p50", "y: p50", "100 ns", "90 %"] {
            assert!(picture.contains(words), "{words}");
        }
        assert_eq!(picture.matches("<polyline").count(), 2);
    }
}
