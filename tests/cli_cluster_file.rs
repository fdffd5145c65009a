//! Links and events of cluster files, `check`, and a corpus of wrong files.

mod harness;

use harness::{Lab, wait_until};

/// Files that are wrong, each below the error that it must end with.
const WRONG: &str = include_str!("wrong_clusters.txt");

const GOOD: &str = r#"
[cluster]
name = "lab"
seed = 7

[[node]]
name = "a"
[[node]]
name = "b"
[[node]]
name = "c"

[[link]]
a = "a"
b = "b"
bandwidth = "10 Gbit/s"
latency = "25 us"
jitter = "5 us"
loss = "0.1 %"
b_to_a = { latency = "1 ms", duplicate = "2 %" }

[[link]]
a = "c"
b = "a"
up = false

[[event]]
at = "0"
link = "b->c"
action = "set"
set = { reorder = "1 %", reorder_by = "300 us", corrupt = "10 ppm" }

[[event]]
at = "100 ms"
link = ["a", "b"]
action = "down"

[[event]]
at = "150 ms"
node = "c"
action = "down"
"#;

#[test]
fn links_are_as_the_file_says_and_events_come_by_the_clock() {
    let lab = Lab::new("links_are_as_the_file_says_and_events_come_by_the_clock");
    let file = lab.write("lab.toml", GOOD);
    let _cluster = lab.up_with(&[file.to_str().unwrap()]);
    let look = || lab.json(&["link", "show", "--json"]);
    // Every event has come once the last one has.
    wait_until(|| look()["ports"][2]["up"] == false);
    let shown = look();
    let parameters = |from: &str, to: &str| {
        let links = shown["links"].as_array().unwrap();
        let mut found = links
            .iter()
            .filter(|row| row["from"] == from && row["to"] == to);
        found.next().unwrap()["parameters"].clone()
    };
    let (there, back) = (parameters("a", "b"), parameters("b", "a"));
    assert_eq!(there["bandwidth_bps"], 10_000_000_000_u64);
    assert_eq!(there["latency_ns"], 25_000);
    assert_eq!(there["loss_ppm"], 1_000);
    assert_eq!(back["latency_ns"], 1_000_000);
    assert_eq!(back["jitter_ns"], 5_000);
    assert_eq!(back["duplicate_ppm"], 20_000);
    assert_eq!((&there["up"], &back["up"]), (&false.into(), &false.into()));
    for (from, to) in [("a", "c"), ("c", "a")] {
        assert_eq!(parameters(from, to)["up"], false);
    }
    let set = parameters("b", "c");
    assert_eq!(set["reorder_ns"], 300_000);
    assert_eq!(set["corrupt_ppm"], 10);
    lab.succeed(&["heal"]);
    assert_eq!(look()["links"][0]["parameters"]["up"], true);
}

#[test]
fn check_tells_what_a_file_is_and_starts_nothing() {
    let lab = Lab::new("check_tells_what_a_file_is_and_starts_nothing");
    let file = lab.write("lab.toml", GOOD);
    let file = file.to_str().unwrap();
    let said = lab.succeed(&["check", file]);
    assert!(
        said.ends_with(": cluster lab, nodes: 3, links: 2, events: 3\n"),
        "{said}"
    );
    let json = lab.json(&["check", file, "--json"]);
    assert_eq!((&json["ok"], &json["links"]), (&true.into(), &2.into()));
    // What is printed is a file of the same meaning.
    let printed = lab.succeed(&["check", file, "--print-config"]);
    let again = lab.write("again.toml", &printed);
    let twice = lab.succeed(&["check", again.to_str().unwrap(), "--print-config"]);
    assert_eq!(printed, twice);
    assert!(
        printed.contains("seed = 7") && printed.contains("link = \"b->c\""),
        "{printed}"
    );
    assert_eq!(lab.leftovers(), [""; 0]);
    let said = lab.fail(2, &["check", "/nowhere/lab.toml"]);
    assert!(said.contains("/nowhere/lab.toml: cannot read"), "{said}");
}

#[test]
fn every_wrong_file_ends_with_its_error() {
    let lab = Lab::new("every_wrong_file_ends_with_its_error");
    let mut cases = 0;
    for case in WRONG.split("\n=== ").skip(1) {
        let (error, text) = case.split_once('\n').unwrap();
        let file = lab.write("wrong.toml", text);
        let said = lab.fail(2, &["check", file.to_str().unwrap()]);
        let wanted = format!("sanlab: {}{error}\n", file.display());
        assert_eq!(said, wanted, "{text}");
        cases += 1;
    }
    assert!(cases >= 60, "{cases} cases");
}
