//! Reads our own sources and documents: rules that no compiler knows.
//!
//! Place: beside the end-to-end suites, over the whole tree. Invariants: knows nothing of the working directory or of a version control
//! system, so it works in an unpacked archive too.
//!
//! | rule | in words |
//! |---|---|
//! | module doors | every source file opens with `//!`; in `src` directories the door, or that of its directory, says its place |
//! | sync gate | atomics of libraries and programs come from `ring_proto::sync`; another import needs `// sync-gate: reason` above |
//! | fences only | sequential consistency stands at fences alone |
//! | edge labels | a label has a name and is release, acquire or acq-rel; every name has both ends somewhere |
//! | unsafe addresses | `unsafe` stands below an `expect(unsafe_code, reason)`, of the file or of its first user |
//! | deviations | every mark of a deviation stands in docs/limits.md with the path of its file, and none stands there that is gone |
//! | no leftovers | no absolute path of somebody's machine, no ignored test, no place left to be written |
//! | documents exist | every docs page and every relative link that is named is there |
//! | file habit | no file above 600 lines of code, tests and comments not counted |

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Most lines of a file before its tests.
const LINES: usize = 600;
/// Directories that hold nothing of ours.
const SKIPPED: [&str; 3] = ["target", ".git", "corpus"];

/// A text file, named relative to the root with `/`.
struct File {
    name: String,
    text: String,
}

impl File {
    fn is_rust(&self) -> bool {
        self.name.ends_with(".rs")
    }

    /// Whether the file is part of a library or program, not a test, bench or example of one.
    fn is_source(&self) -> bool {
        self.is_rust() && (self.name.starts_with("src/") || self.name.contains("/src/"))
    }

    /// Whether the file is a test module of its own.
    fn is_test(&self) -> bool {
        self.name.ends_with("/tests.rs") || self.name.contains("/tests/")
    }

    /// The lines of its module documentation.
    fn door(&self) -> impl Iterator<Item = &str> {
        self.text.lines().take_while(|line| line.starts_with("//!"))
    }

    /// The file of the module whose directory this one lies in: `mod.rs` or `main.rs` beside it, or the file of that name above.
    fn parent<'a>(&self, all: &'a [Self]) -> Option<&'a Self> {
        let (directory, own) = self.name.rsplit_once('/')?;
        let candidates = [
            format!("{directory}/mod.rs"),
            format!("{directory}/main.rs"),
            format!("{directory}.rs"),
        ];
        let is_root = ["mod.rs", "main.rs", "lib.rs"].contains(&own);
        all.iter()
            .find(|file| !is_root && candidates.contains(&file.name))
    }

    /// Numbered lines up to the tests at the end.
    fn before_tests(&self) -> impl Iterator<Item = (usize, &str)> {
        self.lines()
            .take_while(|(_, line)| *line != "#[cfg(test)]" && *line != "mod tests {")
    }

    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        (1..).zip(self.text.lines())
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every text file of the tree.
fn files() -> Vec<File> {
    let mut found = Vec::new();
    let mut directories = vec![root().to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).expect("a directory of ours") {
            let entry = entry.expect("an entry of ours");
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            let kind = entry.file_type().expect("an entry of ours");
            if kind.is_dir() {
                if !SKIPPED.contains(&name.as_str()) {
                    directories.push(path);
                }
            } else if kind.is_file()
                && !SKIPPED.contains(&name.as_str())
                && let Ok(text) = fs::read_to_string(&path)
            {
                let name = relative(&path);
                found.push(File { name, text });
            }
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(found.iter().any(|file| file.name == "tests/tidy.rs"));
    found
}

fn relative(path: &Path) -> String {
    let path = path.strip_prefix(root()).expect("below the root");
    let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
    parts.join("/")
}

fn rust() -> impl Iterator<Item = File> {
    files().into_iter().filter(File::is_rust)
}

/// The part of a line before its comment.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or(line)
}

fn report(rule: &str, problems: &[String]) {
    assert!(problems.is_empty(), "{rule}:\n{}\n", problems.join("\n"));
}

#[test]
fn module_doors() {
    let mut problems = Vec::new();
    let all: Vec<_> = rust().collect();
    for file in &all {
        let says_place = |file: &File| file.door().any(|line| line.contains("Place:"));
        let parent = file.parent(&all);
        if file.door().next().is_none() {
            problems.push(format!("{}: no `//!` at the top", file.name));
        } else if file.is_source()
            && !file.is_test()
            && !says_place(file)
            && !parent.is_some_and(says_place)
        {
            problems.push(format!("{}: the door does not say its place", file.name));
        }
    }
    report("module doors", &problems);
}

#[test]
fn atomics_come_through_the_sync_gate() {
    let modules = ["core", "std", "loom"].map(|krate| format!("{krate}::sync::atomic"));
    let mut problems = Vec::new();
    for file in rust().filter(|file| file.is_source() && file.name != "ring-proto/src/sync.rs") {
        let mut above = "";
        for (number, line) in file.before_tests() {
            let names_one = modules.iter().any(|module| code(line).contains(module));
            if names_one && !above.contains("// sync-gate: ") {
                problems.push(format!("{}:{number}: {}", file.name, line.trim()));
            }
            above = line;
        }
    }
    report(
        "atomics by another door than ring_proto::sync, without a `// sync-gate:` reason",
        &problems,
    );
}

#[test]
fn sequential_consistency_comes_from_fences() {
    let ordering = concat!("Seq", "Cst");
    let mut problems = Vec::new();
    for file in rust() {
        for (number, line) in file.lines() {
            if code(line).contains(ordering) && !code(line).contains("fence(") {
                problems.push(format!("{}:{number}: {}", file.name, line.trim()));
            }
        }
    }
    report("sequential consistency at an access", &problems);
}

#[test]
fn edges_have_both_ends() {
    let mark = concat!(" ED", "GE ");
    let mut problems = Vec::new();
    let mut ends: BTreeMap<String, (bool, bool, String)> = BTreeMap::new();
    for file in rust() {
        for (number, line) in file.lines() {
            for label in line.split(mark).skip(1) {
                let place = format!("{}:{number}", file.name);
                let mut parts = label.splitn(2, " (");
                let name = parts.next().unwrap_or_default();
                let kind = parts.next().and_then(|rest| rest.split([')', ',']).next());
                let (releases, acquires) = match kind {
                    Some("release") => (true, false),
                    Some("acquire") => (false, true),
                    Some("acq-rel") => (true, true),
                    _ => {
                        problems.push(format!("{place}: neither release, acquire nor acq-rel"));
                        continue;
                    }
                };
                let known = ends.entry(name.to_owned()).or_insert((false, false, place));
                known.0 |= releases;
                known.1 |= acquires;
            }
        }
    }
    for (name, (releases, acquires, place)) in ends {
        if !releases || !acquires {
            let end = if releases { "acquiring" } else { "releasing" };
            problems.push(format!("{place}: {name} has no {end} end"));
        }
    }
    report("edges", &problems);
}

#[test]
fn unsafe_code_is_announced() {
    let keyword = concat!("un", "safe");
    let announced = format!("{keyword}_code");
    let is_used = |line: &str| {
        ["{", "fn", "impl", "extern", "trait", "("]
            .iter()
            .any(|next| {
                code(line).contains(&format!("{keyword} {next}"))
                    || code(line).contains(&format!("{keyword}{next}"))
            })
    };
    // The attribute stands below the door, or at the first item or test module with such code; on one line or on several.
    let announces = |text: &str| {
        text.split("[expect(")
            .skip(1)
            .any(|rest| rest.trim_start().starts_with(&announced) && rest.contains("reason = "))
    };
    let mut problems = Vec::new();
    let all: Vec<_> = rust().collect();
    for file in &all {
        // A macro's code is judged where it is used.
        let mut is_in_macro = false;
        let mut head = String::new();
        let found = file.lines().find(|(_, line)| {
            is_in_macro = (is_in_macro || line.starts_with("macro_rules!")) && *line != "}";
            head.push_str(line);
            !is_in_macro && is_used(line)
        });
        let Some((number, _)) = found else { continue };
        let parent = file
            .parent(&all)
            .is_some_and(|parent| parent.text.contains("#![expect(") && announces(&parent.text));
        if !announces(&head) && !parent {
            problems.push(format!("{}:{number}", file.name));
        }
    }
    report(
        "unsafe without `expect(unsafe_code, reason = ..)` above",
        &problems,
    );
}

#[test]
fn deviations_are_listed() {
    let mark = concat!("DEVIA", "TION:");
    let page = fs::read_to_string(root().join("docs/limits.md")).expect("docs/limits.md is there");
    let section = page
        .split("\n## ")
        .find(|section| section.starts_with("Deviations"))
        .expect("a section Deviations");
    let mut listed: BTreeMap<&str, usize> = BTreeMap::new();
    for path in section.split("(`").skip(1) {
        let path = path.split("`)").next().unwrap_or(path);
        *listed.entry(path).or_default() += 1;
    }
    let mut problems = Vec::new();
    let mut seen = BTreeSet::new();
    for file in rust() {
        let count = file.text.matches(mark).count();
        if count == 0 {
            continue;
        }
        let entries = listed.get(file.name.as_str()).copied().unwrap_or(0);
        if entries < count {
            problems.push(format!(
                "{}: {count} in the code, {entries} in docs/limits.md with (`{}`)",
                file.name, file.name
            ));
        }
        seen.insert(file.name);
    }
    for path in listed.keys() {
        if !seen.contains(*path) {
            problems.push(format!(
                "docs/limits.md names {path}, which deviates in nothing"
            ));
        }
    }
    report("deviations", &problems);
}

#[test]
fn no_leftovers() {
    // Put together here, or this file would be its own finding.
    let words = [
        ("/wo", "rk/"),
        ("/tmp/", "wt"),
        ("/ho", "me/"),
        ("/Us", "ers/"),
        ("/ro", "ot/"),
        ("#[ig", "nore"),
        ("to", "do!("),
        ("unimple", "mented!("),
        ("FIX", "ME"),
    ]
    .map(|(a, b)| format!("{a}{b}"));
    let mut problems = Vec::new();
    for file in files() {
        for (number, line) in file.lines() {
            for word in words.iter().filter(|word| line.contains(word.as_str())) {
                problems.push(format!("{}:{number}: {word}", file.name));
            }
        }
    }
    report("leftovers", &problems);
}

#[test]
fn named_documents_exist() {
    let mut problems = Vec::new();
    for file in files() {
        for (number, line) in file.lines() {
            let mut named: Vec<(PathBuf, &str)> = Vec::new();
            for rest in line.split("docs/").skip(1) {
                if let Some(end) = rest.find(".md")
                    && rest[..end]
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || b == b'-')
                {
                    named.push((root().join("docs"), &rest[..end + 3]));
                }
            }
            if file.name.ends_with(".md") {
                for rest in line.split("](").skip(1) {
                    let target = rest.split([')', '#']).next().unwrap_or(rest);
                    if !target.is_empty() && !target.contains("://") {
                        let from = root().join(&file.name);
                        named.push((from.parent().expect("below the root").to_owned(), target));
                    }
                }
            }
            // Pages of other projects carry their project's name before them.
            let is_foreign = line.contains("libvfio-user");
            for (directory, target) in named {
                if !is_foreign && !directory.join(target).exists() {
                    problems.push(format!("{}:{number}: {target}", file.name));
                }
            }
        }
    }
    report("documents that do not exist", &problems);
}

#[test]
fn files_stay_small() {
    let mut problems = Vec::new();
    for file in rust().filter(File::is_source) {
        if file.is_test() {
            continue;
        }
        let lines = file
            .before_tests()
            .filter(|(_, line)| !code(line).trim().is_empty())
            .count();
        if lines > LINES {
            problems.push(format!("{}: {lines} lines", file.name));
        }
    }
    report(
        "files above 600 lines: which second concept lives there?",
        &problems,
    );
}
