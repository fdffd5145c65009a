//! What people read: tables, units, and writing to a standard output that may be closed.
//!
//! Place: every command builds its answer here and writes it once.
//! Invariants: an answer is written whole; a reader that went away ends the command quietly, as SIGPIPE would.
//! Source: ours; the look follows `ss` and `ip -s`. Leaves out: colours.

use std::fmt::Write as _;
use std::io::{ErrorKind, Write as _};

use crate::exit::{self, Failure};

/// Writes an answer to standard output.
pub(crate) fn answer(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {
            Err(Failure::silent(exit::BROKEN_PIPE))
        }
        Err(error) => Err(Failure::new(
            exit::FAILED,
            format_args!("cannot write to standard output: {error}"),
        )),
    }
}

/// Writes one JSON object to standard output.
pub(crate) fn json(value: &serde_json::Value) -> Result<(), Failure> {
    answer(&format!("{value:#}\n"))
}

/// Columns of text, as wide as they need to be.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

#[derive(Debug)]
struct Column {
    title: &'static str,
    is_number: bool,
}

impl Table {
    /// A table with these column titles; a title that starts with `>` is of numbers and stands right.
    pub(crate) fn new(titles: &[&'static str]) -> Self {
        let columns = titles
            .iter()
            .map(|title| match title.strip_prefix('>') {
                Some(title) => Column {
                    title,
                    is_number: true,
                },
                None => Column {
                    title,
                    is_number: false,
                },
            })
            .collect();
        Self {
            columns,
            rows: Vec::new(),
        }
    }

    /// Adds a row; missing cells stay empty.
    pub(crate) fn row<I: IntoIterator<Item = String>>(&mut self, cells: I) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Whether the table has no rows.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table as lines, each indented by `indent`.
    pub(crate) fn render(&self, indent: &str) -> String {
        let widths: Vec<usize> = self
            .columns
            .iter()
            .enumerate()
            .map(|(i, column)| {
                let cells = self.rows.iter().filter_map(|row| row.get(i));
                cells
                    .map(|cell| cell.chars().count())
                    .chain([column.title.len()])
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let mut text = String::new();
        let titles: Vec<String> = self
            .columns
            .iter()
            .map(|column| column.title.to_owned())
            .collect();
        for row in std::iter::once(&titles).chain(&self.rows) {
            let mut line = indent.to_owned();
            for ((column, &width), cell) in self.columns.iter().zip(&widths).zip(row) {
                // Writing to a string cannot fail.
                let _ = if column.is_number {
                    write!(line, "{cell:>width$}  ")
                } else {
                    write!(line, "{cell:<width$}  ")
                };
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Bytes with a binary unit: `417 B`, `1.5 KiB`, `256 MiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut scaled = as_f64(count);
    let mut unit = "";
    for next in UNITS {
        if scaled < 1024.0 {
            break;
        }
        scaled /= 1024.0;
        unit = next;
    }
    format!("{} {unit}", three_digits(scaled))
}

/// A rate in bytes each second with a decimal unit: `812 MB/s`, `5.5 GB/s`.
pub(crate) fn rate(bytes_per_second: f64) -> String {
    for (limit, unit) in [(1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s")] {
        if bytes_per_second >= limit {
            return format!("{} {unit}", three_digits(bytes_per_second / limit));
        }
    }
    format!("{} B/s", three_digits(bytes_per_second))
}

/// A time: `870 ns`, `1.75 us`, `12.0 ms`.
pub(crate) fn time(nanoseconds: f64) -> String {
    for (limit, unit) in [(1e9, "s"), (1e6, "ms"), (1e3, "us")] {
        if nanoseconds >= limit {
            return format!("{} {unit}", three_digits(nanoseconds / limit));
        }
    }
    format!("{} ns", three_digits(nanoseconds))
}

/// A number of things: `950`, `12.3 k`, `4.50 M`.
pub(crate) fn count(number: u64) -> String {
    let scaled = as_f64(number);
    for (limit, unit) in [(1e9, "G"), (1e6, "M"), (1e4, "k")] {
        if scaled >= limit {
            let unit_value = if unit == "k" { 1e3 } else { limit };
            return format!("{} {unit}", three_digits(scaled / unit_value));
        }
    }
    number.to_string()
}

fn three_digits(value: f64) -> String {
    if value >= 99.95 {
        format!("{value:.0}")
    } else if value >= 9.995 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

/// A count as a float, for a person to read.
#[expect(
    clippy::cast_precision_loss,
    reason = "figures for people need three digits"
)]
pub(crate) fn as_f64(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_have_three_digits_and_change_in_time() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.50 KiB");
        assert_eq!(bytes(256 << 20), "256 MiB");
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
        assert_eq!(rate(5_512_000_000.0), "5.51 GB/s");
        assert_eq!(rate(0.0), "0.00 B/s");
        assert_eq!(time(870.0), "870 ns");
        assert_eq!(time(1_750.0), "1.75 us");
        assert_eq!(count(9_999), "9999");
        assert_eq!(count(12_345), "12.3 k");
    }

    #[test]
    fn a_table_aligns_numbers_right_and_text_left() {
        let mut table = Table::new(&["NODE", ">TX"]);
        table.row(["a".to_owned(), "1 B".to_owned()]);
        table.row(["long".to_owned(), "1000 B".to_owned()]);
        assert_eq!(
            table.render("  "),
            "  NODE      TX\n  a        1 B\n  long  1000 B\n"
        );
    }
}
