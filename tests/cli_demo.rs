//! `sanlab demo`: the proof, its JSON, and that nothing is left of it.

mod harness;

use harness::{Lab, kernel, wait_until};
use nix::sys::signal::Signal;

#[test]
fn the_demo_proves_that_its_bytes_took_the_san() {
    let lab = Lab::new("the_demo_proves_that_its_bytes_took_the_san");
    let output = lab.output(&["demo", "--json", "--rounds", "1"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["schema"], 1);
    assert_eq!(report["ok"], true, "{report:#}");
    assert_eq!(output.status.code(), Some(0));
    for row in report["rows"].as_array().unwrap() {
        for member in ["name", "subject", "baseline", "metric", "unit"] {
            assert!(row[member].is_string(), "{member}: {row:#}");
        }
        for member in [
            "subject_value",
            "baseline_value",
            "ratio",
            "ratio_low",
            "ratio_high",
            "samples",
        ] {
            assert!(row[member].is_number(), "{member}: {row:#}");
        }
    }
    assert_eq!(report["rows"].as_array().unwrap().len(), 6);
    assert_nothing_left(&lab);
}

#[test]
fn ctrl_c_leaves_nothing_of_the_demo() {
    let lab = Lab::new("ctrl_c_leaves_nothing_of_the_demo");
    let mut demo = lab.spawn("demo", lab.sanlab(["demo", "--rounds", "20"]));
    demo.wait_output("round 1");
    demo.signal(Signal::SIGINT);
    assert_eq!(demo.wait().code(), Some(130));
    assert_nothing_left(&lab);
}

#[test]
fn a_killed_demo_leaves_no_process_and_no_directory() {
    let lab = Lab::new("a_killed_demo_leaves_no_process_and_no_directory");
    let mut demo = lab.spawn("demo", lab.sanlab(["demo", "--rounds", "20"]));
    demo.wait_output("round 1");
    demo.kill();
    wait_until(|| lab.demo_directories().is_empty());
    assert_nothing_left(&lab);
}

fn assert_nothing_left(lab: &Lab) {
    assert_eq!(lab.demo_directories(), [""; 0]);
    assert_eq!(kernel::emulators_below(lab.directory()), [0; 0]);
    assert_eq!(lab.leftovers(), [""; 0]);
}
