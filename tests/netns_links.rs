//! Namespace mode: programs that no library can hook meet the same links as all others.

mod harness;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use harness::{Cluster, Lab, Peer, Road, netns, programs, wait_until};
use nic_emu::control::client;
use nic_emu::device::{LinkChange, LinkCounters};

const PORT: u16 = 7300;
/// Time on the way of the slow link.
const LATENCY: Duration = Duration::from_millis(5);

/// A world, a static program, and room for a cluster; `None` where the machine has not what it takes.
fn world(test: &str) -> Option<(Lab, PathBuf)> {
    let [gcc] = programs::find(["gcc"])?;
    let lab = Lab::patient(test, Duration::from_secs(240));
    if !netns::is_possible(&lab) {
        return None;
    }
    let program = netns::static_peer(&lab, &gcc);
    Some((lab, program))
}

fn link(a: &str, b: &str, parameters: &str) -> String {
    format!("[[link]]\na = \"{a}\"\nb = \"{b}\"\n{parameters}\n")
}

/// Connects two static programs: the first on `node` listens.
fn connect(cluster: &Cluster<'_>, node: &str, server: &mut Peer, client: &mut Peer) {
    server.expect(&format!("listen {PORT}"), "listening");
    let address = cluster.address(node);
    client.expect(&format!("connect {address} {PORT}"), "connected");
    server.expect("accept", "accepted");
}

fn round_trip(said: &str) -> Duration {
    let ns = said
        .strip_prefix("round trip ")
        .and_then(|rest| rest.strip_suffix(" ns"));
    let ns = ns.unwrap_or_else(|| panic!("{said}"));
    Duration::from_nanos(ns.parse().expect("a number"))
}

fn counters(cluster: &Cluster<'_>, from: &str, to: &str) -> LinkCounters {
    let control = cluster.directory().join("control.sock");
    let links = client::links(&control).expect("the links").links;
    let row = links.iter().find(|row| row.from == from && row.to == to);
    row.map_or_else(LinkCounters::default, |row| row.counters)
}

fn change(cluster: &Cluster<'_>, ends: (&str, &str), both: bool, change: LinkChange) {
    let control = cluster.directory().join("control.sock");
    client::change_link(&control, ends, both, change).expect("changed");
}

fn cut() -> LinkChange {
    LinkChange {
        up: Some(false),
        ..LinkChange::default()
    }
}

#[test]
fn streams_datagrams_and_pings_of_static_programs_take_the_declared_time() {
    let Some([ping]) = programs::find(["ping"]) else {
        return;
    };
    let Some((lab, program)) = world("streams_datagrams_and_pings_take_the_declared_time") else {
        return;
    };
    let cluster = netns::up(
        &lab,
        &["a", "b", "c"],
        &link("a", "b", "latency = \"5 ms\""),
    );
    let mut server = netns::start(&lab, &cluster, "b", &program);
    let mut near = netns::start(&lab, &cluster, "a", &program);
    connect(&cluster, "b", &mut server, &mut near);
    server.post("echo 5");
    let took = round_trip(&near.ask("measure stream 5"));
    assert_eq!(server.answer(), "echoed 5");
    assert!(took >= 2 * LATENCY, "{took:?}");

    let address = cluster.address("b");
    server.expect(&format!("datagrams {PORT}"), "bound");
    near.expect(&format!("address {address} {PORT}"), "addressed");
    server.post("return 5");
    let took = round_trip(&near.ask("measure datagrams 5"));
    assert_eq!(server.answer(), "returned 5");
    assert!(took >= 2 * LATENCY, "{took:?}");

    let pinged = cluster
        .run("a", [&ping])
        .args(["-c", "3", "-i", "0.2", "b"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&pinged.stdout).into_owned();
    assert!(pinged.status.success(), "{pinged:?}");
    let times = said.lines().filter_map(|line| {
        let (_, rest) = line.split_once("time=")?;
        rest.split_whitespace().next()?.parse::<f64>().ok()
    });
    let times: Vec<f64> = times.collect();
    assert!(
        times.len() == 3 && times.iter().all(|&ms| ms >= 10.0),
        "{said}"
    );

    // A link that nobody declared is there too, and perfect.
    let mut other = netns::start(&lab, &cluster, "c", &program);
    connect(&cluster, "c", &mut other, &mut near);
    near.expect("send 100000", "sent 100000");
    other.expect("recv 100000", "received 100000 right more");
    assert_eq!(counters(&cluster, "a", "c").lost, 0);
    assert!(counters(&cluster, "a", "b").delivered >= 5 + 5 + 3);
    assert!(cluster.stat()["connections"].as_array().unwrap().is_empty());
}

#[test]
fn a_cut_is_a_pulled_cable_and_a_stream_goes_on_after_it() {
    let Some((lab, program)) = world("a_cut_is_a_pulled_cable") else {
        return;
    };
    // The cut comes in the first of four seconds.
    let slow = "bandwidth = \"16 Mbit/s\"";
    let cluster = netns::up(&lab, &["a", "b", "c"], &link("a", "b", slow));
    let mut server = netns::start(&lab, &cluster, "b", &program);
    let mut sender = netns::start(&lab, &cluster, "a", &program);
    connect(&cluster, "b", &mut server, &mut sender);
    server.post("recv 8000000");
    sender.post("send 8000000");
    wait_until(|| counters(&cluster, "a", "b").delivered > 200);
    change(&cluster, ("a", "b"), true, cut());
    let before = counters(&cluster, "a", "b");
    wait_until(|| counters(&cluster, "a", "b").lost > before.lost);
    assert!(server.is_blocked(), "the cut came after the last byte");

    // To a node that nobody has spoken to, nor can speak to: the kernel finds no neighbour.
    change(&cluster, ("a", "c"), true, cut());
    let mut late = netns::start(&lab, &cluster, "a", &program);
    let address = cluster.address("c");
    late.expect(&format!("connect {address} {PORT}"), "error EHOSTUNREACH");
    assert!(server.is_blocked(), "the stream waits");

    let control = cluster.directory().join("control.sock");
    assert_eq!(client::heal(&control).expect("mended"), 4);
    assert_eq!(sender.answer(), "sent 8000000");
    assert_eq!(server.answer(), "received 8000000 right more");
    let mut other = netns::start(&lab, &cluster, "c", &program);
    connect(&cluster, "c", &mut other, &mut late);
}

#[test]
fn a_partition_one_way_lets_the_other_way_through() {
    let Some((lab, program)) = world("a_partition_one_way") else {
        return;
    };
    let cluster = netns::up(&lab, &["a", "b"], "");
    let mut a = netns::start(&lab, &cluster, "a", &program);
    let mut b = netns::start(&lab, &cluster, "b", &program);
    let (to_a, to_b) = (cluster.address("a"), cluster.address("b"));
    a.expect(&format!("datagrams {PORT}"), "bound");
    b.expect(&format!("address {to_a} {PORT}"), "addressed");
    // Both learn the other's address.
    a.post("return 1");
    b.ask("measure datagrams 1");
    assert_eq!(a.answer(), "returned 1");
    change(&cluster, ("a", "b"), false, cut());
    let before = (counters(&cluster, "a", "b"), counters(&cluster, "b", "a"));
    a.post("return 1");
    b.post("measure datagrams 1");
    assert_eq!(a.answer(), "returned 1", "what b sends arrives");
    wait_until(|| counters(&cluster, "a", "b").lost > before.0.lost);
    assert!(counters(&cluster, "b", "a").delivered > before.1.delivered);
    assert!(b.is_blocked(), "what a sends to {to_b} does not");
}

#[test]
fn a_stream_is_no_faster_than_its_link() {
    let Some((lab, program)) = world("a_stream_is_no_faster_than_its_link") else {
        return;
    };
    const BYTES: u64 = 2_000_000;
    const BITS_A_SECOND: u64 = 20_000_000;
    let slow = "bandwidth = \"20 Mbit/s\"";
    let cluster = netns::up(&lab, &["a", "b"], &link("a", "b", slow));
    let mut server = netns::start(&lab, &cluster, "b", &program);
    let mut sender = netns::start(&lab, &cluster, "a", &program);
    connect(&cluster, "b", &mut server, &mut sender);
    server.post(&format!("recv {BYTES}"));
    let start = Instant::now();
    sender.expect(&format!("send {BYTES}"), &format!("sent {BYTES}"));
    assert_eq!(server.answer(), format!("received {BYTES} right more"));
    let least = Duration::from_nanos(BYTES * 8 * 1_000_000_000 / BITS_A_SECOND);
    assert!(start.elapsed() >= least, "{:?}", start.elapsed());
}

#[test]
fn what_a_bad_link_does_is_retransmitted_and_never_seen() {
    let Some((lab, program)) = world("what_a_bad_link_does_is_retransmitted") else {
        return;
    };
    let bad = "latency = \"200 us\"\njitter = \"100 us\"\nloss = \"3 %\"\ncorrupt = \"1 %\"\nduplicate = \"2 %\"\nreorder = \"2 %\"\nreorder_by = \"1 ms\"";
    let cluster = netns::up(&lab, &["a", "b"], &link("a", "b", bad));
    let mut server = netns::start(&lab, &cluster, "b", &program);
    let mut sender = netns::start(&lab, &cluster, "a", &program);
    connect(&cluster, "b", &mut server, &mut sender);
    server.post("recv 1000000");
    sender.expect("send 1000000", "sent 1000000");
    assert_eq!(server.answer(), "received 1000000 right more");
    // 700 frames at least: the seed decides, and it is the same every time.
    let counters = counters(&cluster, "a", "b");
    let kinds = [
        counters.lost,
        counters.corrupted,
        counters.duplicated,
        counters.reordered,
    ];
    assert!(kinds.iter().all(|&count| count > 0), "{counters:?}");
}

#[test]
fn hooked_programs_keep_the_san() {
    let Some([python]) = programs::find(["python3"]) else {
        return;
    };
    let lab = Lab::patient("hooked_programs_keep_the_san", Duration::from_secs(120));
    if !netns::is_possible(&lab) {
        return;
    }
    let cluster = netns::up(&lab, &["a", "b"], "");
    let mut server = Peer::start(&lab, "server", cluster.run("b", [&python]));
    server.expect("listen l 0.0.0.0 7301", "listening 0.0.0.0 7301");
    let mut peer = Peer::start(&lab, "client", cluster.run("a", [&python]));
    let address = cluster.address("b");
    peer.expect("connect c b 7301", &format!("connected {address} 7301"));
    let from = cluster.address("a");
    let accepted = server.ask("accept s l");
    assert!(
        accepted.starts_with(&format!("accepted {from} ")),
        "{accepted}"
    );
    peer.expect("send c 300000", "sent 300000");
    server.expect("recv s 300000", "received 300000 right more");
    drop((peer, server));
    cluster.wait_no_connections();
    cluster.assert_road(Road::San, &["a", "b"]);
}

#[test]
fn the_mtu_of_links_is_that_of_interfaces_and_of_streams() {
    let Some([ping]) = programs::find(["ping"]) else {
        return;
    };
    let Some((lab, program)) = world("the_mtu_of_links_is_that_of_interfaces_and_of_streams")
    else {
        return;
    };
    let cluster = netns::up(&lab, &["a", "b", "c"], &link("a", "b", "mtu = 9000"));
    // With the headers of IP and ICMP, and a packet that must not be cut.
    let pings = |to: &str, len: u32| {
        let size = (len - 28).to_string();
        let command = [
            ping.to_str().unwrap(),
            "-M",
            "do",
            "-c",
            "1",
            "-W",
            "60",
            "-s",
            &size,
            to,
        ];
        let output = cluster.run("a", command).output().unwrap();
        (
            output.status.success(),
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
        )
    };
    assert!(pings("b", 9000).0, "{:?}", pings("b", 9000));
    assert!(!pings("b", 9001).0);
    // The interface would take it, the link does not, and the sender is told.
    let (passed, said) = pings("c", 1501);
    assert!(!passed && said.contains("1500"), "{said}");
    assert!(pings("c", 1500).0, "{:?}", pings("c", 1500));

    // A stream goes on when the MTU falls under it.
    let mut server = netns::start(&lab, &cluster, "b", &program);
    let mut sender = netns::start(&lab, &cluster, "a", &program);
    connect(&cluster, "b", &mut server, &mut sender);
    server.post("recv 500000");
    sender.expect("send 500000", "sent 500000");
    assert_eq!(server.answer(), "received 500000 right more");
    let before = counters(&cluster, "a", "b");
    // In jumbo frames.
    assert!(before.sent < 300, "{before:?}");
    let less = LinkChange {
        mtu_bytes: Some(1000),
        ..LinkChange::default()
    };
    change(&cluster, ("a", "b"), true, less);
    server.post("recv 500000");
    sender.expect("send 500000", "sent 500000");
    assert_eq!(server.answer(), "received 500000 right more");
    let after = counters(&cluster, "a", "b");
    assert!(after.lost > before.lost, "{after:?}");
    assert!(after.sent - before.sent > 500, "{after:?}");
}

#[test]
fn frames_that_find_the_queue_full_are_dropped_and_streams_go_on() {
    let Some((lab, program)) = world("frames_that_find_the_queue_full_are_dropped") else {
        return;
    };
    let short = "bandwidth = \"20 Mbit/s\"\nb_to_a = { queue = \"no limit\" }\na_to_b = { queue = \"8 KiB\" }";
    let cluster = netns::up(&lab, &["a", "b"], &link("a", "b", short));
    let mut server = netns::start(&lab, &cluster, "b", &program);
    let mut sender = netns::start(&lab, &cluster, "a", &program);
    connect(&cluster, "b", &mut server, &mut sender);
    server.post("recv 1000000");
    sender.expect("send 1000000", "sent 1000000");
    assert_eq!(server.answer(), "received 1000000 right more");
    let there = counters(&cluster, "a", "b");
    assert!(
        there.dropped > 0 && there.lost == there.dropped,
        "{there:?}"
    );
    assert_eq!(counters(&cluster, "b", "a").dropped, 0);
}
