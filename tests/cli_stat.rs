//! `stat`, `doctor`, help and the behaviour of standard output.

mod harness;

use std::io::Read as _;
use std::process::Stdio;

use harness::Lab;

#[test]
fn stat_has_every_member_of_the_contract() {
    let lab = Lab::new("stat_has_every_member_of_the_contract");
    let cluster = lab.up();
    let stat = cluster.stat();
    assert_eq!(stat["schema"], 1);
    assert_eq!(stat["cluster"], cluster.name.as_str());
    assert_eq!(stat["emulator_pid"], cluster.emulator_pid());
    for node in ["a", "b", "c"] {
        for counter in [
            "tx_payload_bytes",
            "rx_payload_bytes",
            "wqes",
            "cqes",
            "kicks",
            "parks",
            "errors",
            "qps",
            "cqs",
            "mrs",
            "functions",
        ] {
            assert_eq!(cluster.counter(node, counter), 0, "{counter}");
        }
        for member in [
            "san_tx_bytes",
            "san_rx_bytes",
            "tcp_connections",
            "san_connections",
        ] {
            assert_eq!(cluster.total(node, member), 0, "{member}");
        }
    }
    for list in ["connections", "fallbacks", "ungoverned", "findings"] {
        assert!(stat[list].is_array(), "{list}");
    }
}

#[test]
fn stat_for_people_shows_every_node() {
    let lab = Lab::new("stat_for_people_shows_every_node");
    let cluster = lab.up();
    let text = lab.succeed(&["stat"]);
    for node in ["a", "b", "c"] {
        assert!(
            text.contains(&format!("{}/24", cluster.address(node))),
            "{text}"
        );
    }
}

#[test]
fn watching_ends_with_a_signal() {
    let lab = Lab::new("watching_ends_with_a_signal");
    let _cluster = lab.up();
    let mut watch = lab.spawn("watch", lab.sanlab(["stat", "--watch"]));
    watch.wait_output("NODE");
    watch.signal(nix::sys::signal::Signal::SIGINT);
    assert!(watch.wait().success());
}

#[test]
fn a_reader_that_goes_away_ends_a_command_quietly() {
    let lab = Lab::new("a_reader_that_goes_away_ends_a_command_quietly");
    let _cluster = lab.up();
    for arguments in [
        &["stat"][..],
        &["stat", "--json"],
        &["ls"],
        &["doctor"],
        &["--help"],
    ] {
        let (read, write) = nix::unistd::pipe().unwrap();
        drop(read);
        let mut child = lab
            .sanlab(arguments)
            .stdout(Stdio::from(write))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        child.wait().unwrap();
        assert_eq!(said, "", "{arguments:?}");
    }
}

#[test]
fn doctor_gives_every_check_a_status_and_what_is_not_well_a_remedy() {
    let lab = Lab::new("doctor_gives_every_check_a_status_and_what_is_not_well_a_remedy");
    let report = lab.json(&["doctor", "--json"]);
    assert_eq!(report["schema"], 1);
    assert_eq!(report["ok"], true, "{report:#}");
    let checks = report["checks"].as_array().unwrap();
    for name in [
        "sealed memory",
        "sandbox",
        "user namespaces",
        "/dev/net/tun",
        "ptrace scope",
        "cores",
        "restrictions",
        "io_uring",
    ] {
        let check = checks.iter().find(|check| check["name"] == name);
        let check = check.unwrap_or_else(|| panic!("no check {name}"));
        assert_eq!(
            check["status"] == "ok",
            check["remedy"].is_null(),
            "{check:#}"
        );
    }
    assert!(lab.succeed(&["doctor"]).contains("clusters can run"));
    assert_eq!(lab.leftovers(), [""; 0], "doctor changes nothing");
    assert!(!lab.run_directory().exists(), "doctor changes nothing");
}

#[test]
fn every_command_has_help_with_an_example() {
    let lab = Lab::new("every_command_has_help_with_an_example");
    for command in ["demo", "up", "down", "ls", "run", "stat", "doctor"] {
        let help = lab.succeed(&[command, "--help"]);
        assert!(
            help.contains("Example") && help.contains(&format!("sanlab {command}")),
            "{help}"
        );
    }
    let help = lab.succeed(&["--help"]);
    assert!(help.contains("Example") && !help.contains("__"), "{help}");
    assert!(lab.succeed(&["--version"]).starts_with("sanlab "));
    lab.fail(2, &["stat", "--no-such-flag"]);
    lab.fail(2, &["no-such-command"]);
    lab.fail(2, &[]);
}

#[test]
fn a_validated_cluster_finds_nothing_wrong_with_our_own_driver() {
    let lab = Lab::new("a_validated_cluster_finds_nothing_wrong_with_our_own_driver");
    let cluster = lab.up_with(&["--validate"]);
    assert_eq!(cluster.stat()["findings"], serde_json::json!([]));
    let text = lab.succeed(&["up", "--help"]);
    assert!(
        text.contains("--validate") && text.contains("--pause-on"),
        "{text}"
    );
}
