//! `link`, `partition`, `heal`, `port`: what they say, and what connections meet.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: what cannot be unwrapped is the failure of the test"
)]

mod harness;

use std::process::Command;

use harness::{Cluster, Lab, echo, wait_until};

/// A program on node a that sends a byte for each line on its standard input file, and tells what comes back.
const ASK: &str = "
import socket, sys
peer = socket.create_connection(('b', 7000))
print('connected', flush=True)
for number in range(int(sys.argv[1])):
    blob = bytes([number % 251]) * 50_000
    peer.sendall(blob)
    left = blob
    while left:
        data = peer.recv(65536)
        assert data == left[:len(data)] and data, number
        left = left[len(data):]
    print('round', number, flush=True)
print('whole', flush=True)
";

fn ask(cluster: &Cluster<'_>, rounds: &str) -> Command {
    cluster.run("a", echo::python(ASK, &[rounds]))
}

#[test]
fn links_are_changed_one_value_at_a_time_and_shown() {
    let lab = Lab::new("links_are_changed_one_value_at_a_time_and_shown");
    let _cluster = lab.up();
    assert_eq!(lab.succeed(&["link", "show"]), "every link is perfect\n");
    let said = lab.succeed(&[
        "link",
        "set",
        "a",
        "b",
        "--latency",
        "1ms",
        "--loss",
        "0.1%",
    ]);
    assert_eq!(said, "a <-> b: set\n");
    lab.succeed(&[
        "link",
        "set",
        "a->b",
        "--bandwidth",
        "10 Mbit/s",
        "--jitter",
        "20 us",
    ]);
    let shown = lab.json(&["link", "show", "--json"]);
    assert_eq!(shown["schema"], 1);
    let there = &shown["links"][0];
    assert_eq!((&there["from"], &there["to"]), (&"a".into(), &"b".into()));
    let parameters = &there["parameters"];
    assert_eq!(parameters["latency_ns"], 1_000_000);
    assert_eq!(parameters["loss_ppm"], 1_000);
    assert_eq!(parameters["bandwidth_bps"], 10_000_000);
    assert_eq!(shown["links"][1]["parameters"]["bandwidth_bps"], 0);
    let table = lab.succeed(&["link", "show", "a", "b"]);
    for part in ["1ms", "0.1 %", "10 Mbit/s", "no limit", "20us"] {
        assert!(table.contains(part), "{table}");
    }
    lab.succeed(&[
        "link",
        "set",
        "a:b",
        "--jitter-distribution",
        "pareto",
        "--burst-enter",
        "0.2 %",
        "--burst-leave",
        "25 %",
    ]);
    let shown = lab.json(&["link", "show", "a:b", "--json"]);
    let parameters = &shown["links"][0]["parameters"];
    assert_eq!(parameters["jitter_distribution"], "pareto");
    assert_eq!(parameters["burst_enter_ppm"], 2_000);
    assert_eq!(parameters["loss_ppm"], 1_000);
    let table = lab.succeed(&["link", "show", "a", "b"]);
    for part in ["20us pareto", "0.1 %, bursts 0.2 %/25 %/100 %"] {
        assert!(table.contains(part), "{table}");
    }
    lab.succeed(&["link", "set", "a:b", "--queue", "64 KiB"]);
    lab.succeed(&["link", "set", "a", "b", "--mtu", "1500"]);
    let shown = lab.json(&["link", "show", "a", "b", "--json"]);
    let [there, back] = [0, 1].map(|row| &shown["links"][row]["parameters"]);
    assert_eq!(
        (&there["queue_bytes"], &back["queue_bytes"]),
        (&65_536.into(), &0.into())
    );
    assert_eq!(
        (&there["mtu_bytes"], &back["mtu_bytes"]),
        (&1_500.into(), &1_500.into())
    );
    assert_eq!(there["loss_ppm"], 1_000);
    let table = lab.succeed(&["link", "show", "a", "b"]);
    for part in ["64 KiB", "1500 (RDMA 1024)", "DROPPED"] {
        assert!(table.contains(part), "{table}");
    }
    let topo = lab.succeed(&["topo"]);
    for part in ["10 Mbit/s, queue 64 KiB", "MTU 1500"] {
        assert!(topo.contains(part), "{topo}");
    }
    let failure = lab.fail(1, &["link", "set", "a:b", "--mtu", "9000"]);
    assert!(failure.contains("both directions"), "{failure}");
    lab.succeed(&["link", "set", "a:b", "--queue", "no limit"]);
    let shown = lab.json(&["link", "show", "a:b", "--json"]);
    assert_eq!(shown["links"][0]["parameters"]["queue_bytes"], 0);
    let one = lab.json(&["link", "show", "c:a", "--json"]);
    assert_eq!(one["links"].as_array().unwrap().len(), 1);
    assert_eq!(one["links"][0]["parameters"]["up"], true);
    lab.succeed(&["link", "set", "a", "b", "--perfect", "--latency", "5us"]);
    let shown = lab.json(&["link", "show", "a", "b", "--json"]);
    assert_eq!(shown["links"][0]["parameters"]["latency_ns"], 5_000);
    assert_eq!(shown["links"][0]["parameters"]["loss_ppm"], 0);
}

#[test]
fn cuts_are_made_in_one_or_both_directions_and_healed() {
    let lab = Lab::new("cuts_are_made_in_one_or_both_directions_and_healed");
    let _cluster = lab.up();
    let up = |pair: &str| {
        let shown = lab.json(&["link", "show", pair, "--json"]);
        shown["links"][0]["parameters"]["up"].as_bool().unwrap()
    };
    assert_eq!(lab.succeed(&["partition", "a->b"]), "a -> b: down\n");
    assert!(!up("a:b") && up("b:a"));
    lab.succeed(&["link", "down", "b", "c"]);
    assert!(!up("b:c") && !up("c:b"));
    let healed = lab.json(&["heal", "b:c", "--json"]);
    assert_eq!(
        (&healed["from"], &healed["done"]),
        (&"b".into(), &"healed".into())
    );
    assert!(up("b:c") && !up("c:b"));
    let healed = lab.json(&["heal", "--json"]);
    assert_eq!(
        (&healed["schema"], &healed["healed"]),
        (&1.into(), &2.into())
    );
    assert_eq!(lab.succeed(&["heal"]), "no link was cut\n");
    lab.succeed(&["link", "down", "a:c"]);
    lab.succeed(&["link", "up", "a", "c"]);
    assert!(up("a:c"));
    assert_eq!(lab.succeed(&["port", "b", "down"]), "port of b: down\n");
    assert!(lab.succeed(&["link", "show"]).contains("ports down: b"));
    let port = lab.json(&["port", "b", "up", "--json"]);
    assert_eq!(port["up"], true);
}

#[test]
fn errors_name_the_thing_and_the_remedy() {
    let lab = Lab::new("errors_name_the_thing_and_the_remedy");
    let said = lab.fail(2, &["link", "show"]);
    assert!(said.contains("sanlab up"), "{said}");
    let _cluster = lab.up();
    for (arguments, part) in [
        (&["link", "set", "a", "b"][..], "--latency"),
        (&["link", "set", "a-", "--loss", "1%"], "quoted"),
        (&["partition", "a"], "a:b"),
        (&["link", "set", "a", "b", "--latency", "5"], "25 us"),
        (&["link", "set", "a", "b", "--loss", "101%"], "0 to 100 %"),
        (
            &["link", "set", "a", "b", "--burst-leave", "5"],
            "0 to 100 %",
        ),
        (
            &["link", "set", "a", "b", "--jitter-distribution", "gauss"],
            "uniform, normal, pareto",
        ),
        (&["link", "set", "a", "b", "--mtu", "100"], "576 to 9216"),
        (&["link", "set", "a", "b", "--queue", "0"], "64 KiB"),
        (
            &["link", "set", "a", "b", "--bandwidth", "fast"],
            "10 Gbit/s",
        ),
        (&["port", "a", "sideways"], "down, up"),
    ] {
        let said = lab.fail(2, arguments);
        assert!(said.contains(part), "{arguments:?}: {said}");
    }
    for arguments in [
        &["link", "set", "a", "z", "--loss", "1%"][..],
        &["link", "show", "a", "z"],
        &["partition", "z:a"],
        &["heal", "a", "z"],
        &["port", "z", "down"],
    ] {
        let said = lab.fail(1, arguments);
        assert!(
            said.contains("its nodes are a, b, c"),
            "{arguments:?}: {said}"
        );
    }
}

#[test]
fn streams_arrive_whole_over_a_bad_link_that_is_cut_and_healed() {
    let lab = Lab::new("streams_arrive_whole_over_a_bad_link_that_is_cut_and_healed");
    if !echo::is_installed() {
        return;
    }
    let cluster = lab.up_on(harness::Road::San);
    let _server = echo::start(&lab, &cluster);
    lab.succeed(&[
        "link",
        "set",
        "a",
        "b",
        "--latency",
        "100us",
        "--loss",
        "2%",
        "--reorder",
        "2%",
        "--reorder-by",
        "300us",
        "--duplicate",
        "2%",
        "--corrupt",
        "2%",
    ]);
    let mut client = lab.spawn("ask", ask(&cluster, "12"));
    client.wait_output("round 2\n");
    lab.succeed(&["partition", "a", "b"]);
    // Who has something under way tries again, and loses it; that may be either.
    let lost = || {
        let shown = lab.json(&["link", "show", "a", "b", "--json"]);
        let links = shown["links"].as_array().unwrap().clone();
        let each = links
            .iter()
            .map(|link| link["counters"]["lost"].as_u64().unwrap());
        each.sum::<u64>()
    };
    let before = lost();
    wait_until(|| lost() > before + 1);
    lab.succeed(&["heal"]);
    client.wait_output("whole\n");
    assert!(client.wait().success());
    assert!(cluster.counter("a", "retransmitted_packets") > 0);
    let stat = cluster.stat();
    assert_eq!(stat["fallbacks"], serde_json::json!([]), "{stat:#}");
}

/// Connects to an echo server and says how that ended.
const CONNECT: &str = "
import errno, socket, sys
peer = socket.socket()
try:
    if len(sys.argv) > 1:
        peer.bind((sys.argv[1], 0))
    peer.connect(('b', 7000))
    peer.sendall(b'x')
    print('connected', peer.recv(1) == b'x')
except OSError as error:
    print(errno.errorcode[error.errno])
";

fn connect(cluster: &Cluster<'_>, arguments: &[&str]) -> String {
    let output = cluster
        .run("a", echo::python(CONNECT, arguments))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn nothing_crosses_a_cut_link_by_falling_back() {
    let lab = Lab::new("nothing_crosses_a_cut_link_by_falling_back");
    if !echo::is_installed() {
        return;
    }
    for road in ["true", "false"] {
        let nodes = ["a", "b"].map(|node| format!("[[node]]\nname = \"{node}\"\n"));
        let text = format!(
            "[cluster]\nsan_connect_limit = \"300 ms\"\nwildcard_on_san = {road}\n{}",
            nodes.concat()
        );
        let file = lab.write("cluster.toml", &text);
        let mut cluster = lab.up_with(&[file.to_str().unwrap()]);
        if road == "false" {
            cluster.road = harness::Road::Tcp;
        }
        let _server = echo::start(&lab, &cluster);
        let mut cut_off = 0;
        for direction in [&["a", "b"][..], &["a:b"], &["b:a"]] {
            let mut partition = vec!["partition"];
            partition.extend(direction);
            lab.succeed(&partition);
            // By the SAN, and with a source address that only TCP could serve.
            for source in [&[][..], &["127.0.0.1"]] {
                let said = connect(&cluster, source);
                assert_eq!(said, "EHOSTUNREACH", "{direction:?} {source:?}");
                cut_off += 1;
            }
            lab.succeed(&["heal"]);
        }
        let stat = cluster.stat();
        let fallbacks = stat["fallbacks"].as_array().unwrap();
        assert_eq!(fallbacks.len(), 1, "{stat:#}");
        assert_eq!(fallbacks[0]["reason"], "link_cut");
        assert_eq!(fallbacks[0]["count"], cut_off);
        // The link is whole again, and another one never was cut.
        assert_eq!(connect(&cluster, &[]), "connected True");
    }
}

#[test]
fn a_connect_that_waits_at_a_cut_goes_through_once_it_is_healed() {
    let lab = Lab::new("a_connect_that_waits_at_a_cut_goes_through_once_it_is_healed");
    if !echo::is_installed() {
        return;
    }
    let cluster = lab.up_on(harness::Road::San);
    let _server = echo::start(&lab, &cluster);
    lab.succeed(&["partition", "a", "b"]);
    let mut client = lab.spawn("connect", cluster.run("a", echo::python(CONNECT, &[])));
    let lost = || {
        let shown = lab.json(&["link", "show", "a:b", "--json"]);
        shown["links"][0]["counters"]["lost"].as_u64().unwrap()
    };
    wait_until(|| lost() > 1);
    lab.succeed(&["heal"]);
    client.wait_output("connected True\n");
    assert_eq!(cluster.stat()["fallbacks"], serde_json::json!([]));
}
