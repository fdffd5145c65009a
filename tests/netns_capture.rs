//! Captures in namespace mode: what goes through the nodes' Ethernet interfaces, beside what their NICs see.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: what cannot be unwrapped is the failure of the test"
)]

mod harness;

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use harness::{Cluster, Lab, Process, netns, programs, wait_until};
use nix::sys::signal::Signal;

const PORT: u16 = 7300;

/// A program on node b that answers one connection, and one on node a that asks it.
const ANSWER: &str = "
import socket
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(('0.0.0.0', 7000))
listener.listen()
print('listening', flush=True)
peer, _ = listener.accept()
while data := peer.recv(65536):
    peer.sendall(data)
";
const ASK: &str = "
import socket
peer = socket.create_connection(('b', 7000))
for _ in range(20):
    peer.sendall(b'x' * 1000)
    left = 1000
    while left:
        left -= len(peer.recv(left))
";

/// Starts a capture, which has begun when this returns.
fn capture(lab: &Lab, file: &Path, arguments: &[&str]) -> Process {
    let mut command = lab.sanlab(["capture", "-o"]);
    command.arg(file).args(arguments);
    let mut capture = lab.spawn("capture", command);
    wait_until(|| {
        assert!(capture.is_running(), "{}", capture.stderr());
        capture.stderr().contains("Ctrl-C ends it")
    });
    capture
}

/// Ends a capture as Ctrl-C does.
fn interrupt(mut capture: Process) -> String {
    capture.signal(Signal::SIGINT);
    let status = capture.wait();
    assert!(status.success(), "{status}: {}", capture.stderr());
    capture.stderr()
}

/// Fields of a frame, by name.
type Row = HashMap<&'static str, String>;

const FIELDS: [&str; 15] = [
    "frame.interface_name",
    "frame.interface_description",
    "frame.packet_flags_direction",
    "frame.time_epoch",
    "frame.protocols",
    "frame.comment",
    "frame.len",
    "frame.cap_len",
    "tcp.checksum.status",
    "icmp.type",
    "icmp.seq",
    "arp.opcode",
    "udp.dstport",
    "tcp.dstport",
    "tcp.len",
];

/// All frames of a file as tshark dissects them: in one pass, because each start of tshark takes seconds on a busy machine.
fn dissect(file: &Path) -> Vec<Row> {
    let mut command = Command::new("tshark");
    command.arg("-n").arg("-r").arg(file);
    command.args(["-o", "tcp.check_checksum:TRUE"]);
    command.args(["-T", "fields"]);
    for field in FIELDS {
        command.args(["-e", field]);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let row = |line: &str| {
        let fields: Vec<_> = line.split('\t').map(str::to_owned).collect();
        assert_eq!(fields.len(), FIELDS.len(), "{line}");
        FIELDS.into_iter().zip(fields).collect()
    };
    text.lines().map(row).collect()
}

/// Time since 1970, in nanoseconds.
fn at_ns(row: &Row) -> u64 {
    let (seconds, rest) = row["frame.time_epoch"].split_once('.').unwrap();
    let seconds: u64 = seconds.parse().unwrap();
    seconds * 1_000_000_000 + rest.parse::<u64>().unwrap()
}

fn is_at(row: &Row, interface: &str, direction: &str) -> bool {
    row["frame.interface_name"] == interface
        && row["frame.packet_flags_direction"].ends_with(direction)
}

/// How many frames have these values.
fn count(rows: &[&Row], wanted: &[(&str, &str)]) -> usize {
    let has = |row: &&&Row| wanted.iter().all(|&(field, value)| row[field] == value);
    rows.iter().filter(has).count()
}

fn ping(cluster: &Cluster<'_>, ping: &Path, times: &str) -> bool {
    let mut command = cluster.run("a", [ping]);
    command.args(["-c", times, "-i", "0.2", "-W", "1", "b"]);
    command.output().unwrap().status.success()
}

/// Times of echo requests, by sequence number.
fn requests(rows: &[&Row]) -> HashMap<String, u64> {
    let is_request = |row: &&&Row| row["icmp.type"] == "8";
    let entry = |row: &&Row| (row["icmp.seq"].clone(), at_ns(row));
    rows.iter().filter(is_request).map(entry).collect()
}

#[test]
fn frames_of_unhooked_programs_and_pings_stand_beside_those_of_the_san() {
    let Some([gcc, pinger, _, python]) = programs::find(["gcc", "ping", "tshark", "python3"])
    else {
        return;
    };
    let lab = Lab::new("frames_of_unhooked_programs_and_pings_stand_beside_those_of_the_san");
    if !netns::is_possible(&lab) {
        return;
    }
    let program = netns::static_peer(&lab, &gcc);
    let link = "[[link]]\na = \"a\"\nb = \"b\"\nlatency = \"5 ms\"\n";
    let cluster = netns::up(&lab, &["a", "b", "c"], link);
    let file = lab.directory().join("both.pcapng");
    let running = capture(&lab, &file, &[]);

    assert!(ping(&cluster, &pinger, "3"));
    let mut server = netns::start(&lab, &cluster, "b", &program);
    let mut client = netns::start(&lab, &cluster, "a", &program);
    server.expect(&format!("listen {PORT}"), "listening");
    let address = cluster.address("b");
    client.expect(&format!("connect {address} {PORT}"), "connected");
    server.expect("accept", "accepted");
    client.expect("send 20000", "sent 20000");
    server.expect("recv 20000", "received 20000 right more");
    server.expect(&format!("datagrams {PORT}"), "bound");
    client.expect(&format!("address {address} {PORT}"), "addressed");
    server.post("return 5");
    client.ask("measure datagrams 5");
    assert_eq!(server.answer(), "returned 5");
    let python = |code: &str| [python.to_str().unwrap(), "-c", code].map(str::to_owned);
    let mut answering = lab.spawn("answer", cluster.run("b", python(ANSWER)));
    answering.wait_output("listening");
    let asked = lab.spawn("ask", cluster.run("a", python(ASK)));
    asked.succeed();
    answering.succeed();
    let said = interrupt(running);

    assert!(said.contains("\n0 packets dropped\n"), "{said}");
    let rows = dissect(&file);
    let all = rows.len();
    assert!(
        said.contains(&format!("{all} packets captured\n")),
        "{said}"
    );
    let mut latest = 0;
    for row in &rows {
        let carried = &row["frame.protocols"];
        assert!(!carried.contains("malformed"), "{row:?}");
        // 1 is good; what is no TCP has none.
        assert!(
            ["", "1"].contains(&row["tcp.checksum.status"].as_str()),
            "{row:?}"
        );
        let is_roce = carried.contains("infiniband");
        assert_eq!(is_roce, !row["frame.interface_name"].contains("eth0"));
        assert!(at_ns(row) >= latest, "time runs backwards: {row:?}");
        latest = at_ns(row);
    }
    let at = |interface: &str, direction: &str| -> Vec<&Row> {
        let here = |row: &&Row| is_at(row, interface, direction);
        rows.iter().filter(here).collect()
    };
    // Each frame leaves and arrives, 5 ms later.
    let (left, arrived) = (at("a/eth0", "2"), at("b/eth0", "1"));
    let (sent, came) = (requests(&left), requests(&arrived));
    assert_eq!((sent.len(), came.len()), (3, 3));
    for (number, at) in &sent {
        let took = came[number] - at;
        assert!(took >= 5_000_000, "{number}: {took} ns");
    }
    let port = PORT.to_string();
    for seen in [&left, &arrived] {
        assert!(count(seen, &[("arp.opcode", "1")]) > 0);
        assert_eq!(count(seen, &[("udp.dstport", &port)]), 5);
        let segments = seen.iter().filter(|row| row["tcp.dstport"] == port);
        let bytes = segments.map(|row| row["tcp.len"].parse::<u64>().unwrap());
        assert!(bytes.sum::<u64>() >= 20_000);
    }
    for node in ["a", "b"] {
        assert!(
            at(node, "1").len() > 20 && at(node, "2").len() > 20,
            "{node}"
        );
    }
    let description = |interface| &at(interface, "2")[0]["frame.interface_description"];
    let address = cluster.address("a");
    let expected = format!("eth0 of node a ({address}/");
    assert!(description("a/eth0").starts_with(&expected));
    assert!(description("a").starts_with("SAN NIC of node a"));
}

#[test]
fn filters_snaplen_and_fates_mean_ethernet_frames_too() {
    let Some([pinger, _]) = programs::find(["ping", "tshark"]) else {
        return;
    };
    let lab = Lab::new("filters_snaplen_and_fates_mean_ethernet_frames_too");
    if !netns::is_possible(&lab) {
        return;
    }
    let cluster = netns::up(&lab, &["a", "b"], "");
    // The neighbour is known: what a lossy link loses is the ping itself.
    assert!(ping(&cluster, &pinger, "1"));
    let file = lab.directory().join("lost.pcapng");
    let arguments = [
        "a",
        "--snaplen",
        "64",
        "--filter",
        "kind=ethernet operation=ICMP",
    ];
    let running = capture(&lab, &file, &arguments);
    lab.succeed(&["link", "set", "a", "b", "--loss", "100%"]);
    assert!(!ping(&cluster, &pinger, "1"));
    lab.succeed(&[
        "link",
        "set",
        "a",
        "b",
        "--loss",
        "0",
        "--duplicate",
        "100%",
    ]);
    assert!(ping(&cluster, &pinger, "1"));
    interrupt(running);
    let rows = dissect(&file);
    for row in &rows {
        assert!(row["frame.protocols"].contains("icmp"), "{row:?}");
        assert_eq!(row["frame.interface_name"], "a/eth0");
        assert!(
            row["frame.cap_len"].parse::<u64>().unwrap() <= 64,
            "{row:?}"
        );
    }
    let pings = rows.iter().filter(|row| row["icmp.type"] == "8");
    let pings: Vec<_> = pings
        .map(|row| {
            assert!(is_at(row, "a/eth0", "2"));
            (row["frame.comment"].as_str(), row["frame.len"].as_str())
        })
        .collect();
    // An Ethernet header, an IPv4 header, and 64 bytes of ICMP.
    assert_eq!(pings, [("lost on the link", "98"), ("arrives twice", "98")]);
    for (filter, says) in [
        ("operation=ARPA", "ICMP"),
        ("kind=wire", "allowed: cm, request, response, ethernet"),
    ] {
        let error = lab.fail(2, &["capture", "-o", "/dev/null", "--filter", filter]);
        assert!(error.contains(says), "{error}");
    }
}
