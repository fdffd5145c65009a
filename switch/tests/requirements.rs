//! docs/wsd.md against the sources: every requirement has a row, every sentence of the seed page a test, every named test exists.
#![expect(clippy::unwrap_used, reason = "reads our own files")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The requirements that the seed page states.
const SEED: &[u32] = &[
    1, 2, 3, 4, 5, 27, 28, 29, 30, 31, 32, 33, 34, 36, 39, 42, 43, 44, 45, 53, 55, 56, 57, 58, 59,
    60, 61, 62, 63, 64, 65, 68, 69, 70, 71, 72, 73, 193,
];
/// The last requirement.
const LAST: u32 = 219;

struct Row {
    numbers: Vec<u32>,
    is_seed: bool,
    code: Vec<String>,
    tests: Vec<String>,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn rows() -> Vec<Row> {
    let text = fs::read_to_string(root().join("docs/wsd.md")).unwrap();
    let mut rows = Vec::new();
    for line in text.lines().filter(|l| l.starts_with('|')) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [numbers, _, code, tests] = cells[..] else {
            panic!("not four cells: {line}");
        };
        if numbers == "R" || numbers.starts_with('-') {
            continue;
        }
        let plain = numbers.replace("**", "");
        let numbers_read = plain.split(", ").map(|n| n.parse().unwrap()).collect();
        rows.push(Row {
            numbers: numbers_read,
            is_seed: numbers.starts_with("**"),
            code: ticked(code),
            tests: ticked(tests),
        });
    }
    rows
}

/// What stands between backticks.
fn ticked(cell: &str) -> Vec<String> {
    cell.split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

/// Names of the functions below some directories of sources.
fn functions() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut left: Vec<PathBuf> = ["switch", "driver", "nic-emu", "tests"]
        .iter()
        .map(|d| root().join(d))
        .collect();
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(fs::read_dir(path).unwrap().map(|e| e.unwrap().path()));
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(path).unwrap();
            for rest in text.split("fn ").skip(1) {
                let end = rest.find(|c: char| c != '_' && !c.is_ascii_alphanumeric());
                names.insert(rest[..end.unwrap_or(rest.len())].to_owned());
            }
        }
    }
    names
}

#[test]
fn every_requirement_has_exactly_one_row() {
    let mut seen = BTreeSet::new();
    for number in rows().iter().flat_map(|r| &r.numbers) {
        assert!(seen.insert(*number), "R-{number} has two rows");
    }
    let missing: Vec<u32> = (1..=LAST).filter(|n| !seen.contains(n)).collect();
    assert!(missing.is_empty(), "without a row: {missing:?}");
}

#[test]
fn every_sentence_of_the_seed_page_has_a_test_named_by_its_number() {
    let rows = rows();
    for &number in SEED {
        let row = rows.iter().find(|r| r.numbers == [number]);
        let row = row.unwrap_or_else(|| panic!("R-{number} has no row of its own"));
        assert!(row.is_seed, "R-{number} is not marked");
        let wanted = format!("r{number:03}_");
        assert!(
            row.tests.iter().any(|t| t.starts_with(&wanted)),
            "R-{number} has no test of its name"
        );
    }
    let marked = rows.iter().filter(|r| r.is_seed).count();
    assert_eq!(
        marked,
        SEED.len(),
        "marked rows that the page does not state"
    );
}

#[test]
fn every_named_test_and_every_named_file_exists() {
    let functions = functions();
    for row in rows() {
        for test in &row.tests {
            assert!(
                functions.contains(test),
                "R-{:?}: no test {test}",
                row.numbers
            );
        }
        for file in &row.code {
            let here = root().join("switch/src").join(file);
            let there = root().join(file);
            assert!(
                here.exists() || there.exists(),
                "R-{:?}: no file {file}",
                row.numbers
            );
        }
    }
}
