//! `stat`, `doctor`, help and the behaviour of standard output.

mod harness;

use std::io::Read as _;
use std::process::Stdio;

use harness::{Lab, Peer, Road, programs, wait_until};
use serde_json::Value;

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

/// Members of `objects`, and the title that each has in the tables.
const PARTS: [(&str, &str); 10] = [
    ("functions", "functions:"),
    ("qps", "queue pairs:"),
    ("cqs", "completion queues:"),
    ("srqs", "shared receive queues:"),
    ("mrs", "memory regions:"),
    ("mws", "memory windows:"),
    ("windows", "windows:"),
    ("doorbells", "doorbells:"),
    ("limits", "limits:"),
    ("findings", "findings:"),
];

#[test]
fn objects_of_the_nics_are_shown_for_each_node() {
    let Some([python]) = programs::find(["python3"]) else {
        return;
    };
    let lab = Lab::new("objects_of_the_nics_are_shown_for_each_node");
    let cluster = lab.up_on(Road::San);
    let mut server = Peer::start(&lab, "server", cluster.run("a", [&python]));
    server.expect("listen l 0.0.0.0 7000", "listening 0.0.0.0 7000");
    cluster.wait_listening("a", 7000);
    let mut client = Peer::start(&lab, "client", cluster.run("b", [&python]));
    client.ask(&format!("connect c {} 7000", cluster.address("a")));
    server.ask("accept s l");
    client.expect("send c 5000", "sent 5000");
    server.expect("recv s 5000", "received 5000 right more");

    let rows = |answer: &Value, part: &str| {
        let rows = answer["objects"][part].as_array();
        rows.unwrap_or_else(|| panic!("no {part}: {answer:#}"))
            .clone()
    };
    let all = lab.json(&["stat", "--json", "--objects"]);
    assert!(all["nodes"].is_array() && all["connections"].is_array());
    assert_eq!(all["objects"]["engine"]["validate"], false);
    for (node, pid) in [("a", server.process.pid()), ("b", client.process.pid())] {
        let of = |part| {
            let mut rows = rows(&all, part);
            rows.retain(|row| row["node"] == node);
            assert_ne!(rows, [Value::Null; 0], "{node} has no {part}: {all:#}");
            rows
        };
        let functions = of("functions");
        assert_eq!(
            (functions.len(), &functions[0]["pid"]),
            (1, &pid.into()),
            "{functions:#?}"
        );
        assert_eq!(functions[0]["state"], "ready");
        assert!(functions[0]["is_parked"].is_boolean());
        let qps = of("qps");
        let qp = qps.iter().find(|qp| qp["state"] == "RTS");
        let qp = qp.unwrap_or_else(|| panic!("{qps:#?}"));
        assert!(qp["sq"]["consumer"].as_u64().unwrap() > 0, "{qp:#}");
        assert_eq!(qp["last_error"], Value::Null);
        for part in ["cqs", "mrs", "windows", "doorbells"] {
            of(part);
        }
        // The same through the filter, and nothing of another node.
        let own = ["stat", "--json", "--objects", "--node", node];
        let own = lab.json(&own);
        for (part, _) in PARTS {
            assert!(rows(&own, part).iter().all(|row| row["node"] == node));
        }
        assert_eq!(rows(&own, "qps").len(), qps.len());
        assert_eq!(own["nodes"].as_array().map(Vec::len), Some(1));
    }

    let text = lab.succeed(&["stat", "--objects"]);
    for (_, title) in PARTS {
        assert!(text.contains(title), "{title} {text}");
    }
    assert!(text.contains("RTS") && text.contains("PARKED"), "{text}");
    let text = lab.succeed(&["stat", "--objects=qps,cqs", "--node", "b"]);
    for (part, title) in PARTS {
        let is_asked = part == "qps" || part == "cqs";
        assert_eq!(text.contains(&format!("\n{title}")), is_asked, "{text}");
    }
    assert!(text.contains(" b ") && !text.contains(" a "), "{text}");
    // What has gone is not shown: a killed program's function, or its state as long as its bytes serve the peer.
    server.process.kill();
    wait_until(|| {
        let left = lab.json(&["stat", "--json", "--objects", "--node", "a"]);
        let left = rows(&left, "functions");
        left.iter().all(|row| row["state"] != "ready")
    });
}

#[test]
fn stat_of_a_node_is_of_that_node_alone() {
    let lab = Lab::new("stat_of_a_node_is_of_that_node_alone");
    let cluster = lab.up();
    let stat = lab.json(&["stat", "--json", "--node", "b"]);
    let nodes = stat["nodes"].as_array().unwrap();
    assert_eq!((nodes.len(), &nodes[0]["name"]), (1, &"b".into()));
    assert_eq!(stat["objects"], Value::Null);
    let text = lab.succeed(&["stat", "--node", "b"]);
    let of = |node| text.contains(&format!("{}/24", cluster.address(node)));
    assert!(of("b") && !of("a"), "{text}");
    for arguments in [
        &["stat", "--node", "x"][..],
        &["stat", "--objects", "--node", "x"],
    ] {
        let said = lab.fail(2, arguments);
        assert!(said.contains("its nodes are a, b, c"), "{said}");
    }
    let said = lab.fail(2, &["stat", "--objects=queues"]);
    assert!(said.contains("doorbells"), "{said}");
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
