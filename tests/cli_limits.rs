//! `limits` of a node: programs that meet one go by TCP, and nobody else does.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: what cannot be unwrapped is the failure of the test"
)]

mod harness;

use std::process::Stdio;

use harness::{Cluster, Lab, Process, echo};
use serde_json::Value;

/// Answers on port 7000 with what it reads, on all connections at once.
const SERVE: &str = "
import socket, threading
def serve(peer):
    try:
        while data := peer.recv(65536):
            peer.sendall(data)
    except OSError:
        pass
    peer.close()
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(('0.0.0.0', 7000))
listener.listen()
while True:
    peer, _ = listener.accept()
    threading.Thread(target=serve, args=(peer,), daemon=True).start()
";

/// Opens as many connections as asked for at once, speaks over all of them, closes them at the next line of its input, and at another one goes
/// on with the next number.
const ASK: &str = "
import socket, sys
for count in sys.argv[1:]:
    peers = [socket.create_connection(('b', 7000)) for _ in range(int(count))]
    for number, peer in enumerate(peers):
        left = bytes([number % 251]) * 20_000
        peer.sendall(left)
        while left:
            data = peer.recv(65536)
            assert data and data == left[:len(data)], number
            left = left[len(data):]
    print('whole', count, flush=True)
    sys.stdin.readline()
    for peer in peers:
        peer.close()
    print('closed', count, flush=True)
    sys.stdin.readline()
";

/// Has a function of the NIC, and nothing else, to the end of its input.
const LISTEN: &str = "
import socket, sys
listener = socket.socket()
listener.bind(('0.0.0.0', 7001))
listener.listen()
print('listening', flush=True)
sys.stdin.read()
";

/// Nodes a, b and c, one of them with these limits.
fn up<'a>(lab: &'a Lab, limited: &str, limits: &str) -> Cluster<'a> {
    let mut text = "[cluster]\nsan_connect_limit = \"60 s\"\n".to_owned();
    for node in ["a", "b", "c"] {
        text.push_str(&format!("[[node]]\nname = \"{node}\"\n"));
        if node == limited {
            text.push_str(&format!("limits = {{ {limits} }}\n"));
        }
    }
    let file = lab.write("limits.toml", &text);
    lab.up_with(&[file.to_str().unwrap()])
}

/// What node a has of something.
fn used(lab: &Lab, resource: &str) -> (u64, Value) {
    let told = lab.json(&["stat", "--objects=limits", "--node", "a", "--json"]);
    let rows = told["objects"]["limits"].as_array().unwrap();
    let row = rows.iter().find(|row| row["resource"] == resource).unwrap();
    (row["used"].as_u64().unwrap(), row["limit"].clone())
}

/// Roads of a program's live connections: so many on the SAN, so many on TCP.
fn roads(cluster: &Cluster<'_>, node: &str, pid: u32) -> (usize, usize) {
    let stat = cluster.stat();
    let all = stat["connections"].as_array().unwrap();
    let own = all
        .iter()
        .filter(|row| row["node"] == node && row["pid"] == pid);
    let (san, tcp): (Vec<_>, Vec<_>) = own.partition(|row| row["road"] == "san");
    (san.len(), tcp.len())
}

/// The server on node b.
fn serve(lab: &Lab, cluster: &Cluster<'_>) -> Process {
    let server = lab.spawn("server", cluster.run("b", echo::python(SERVE, &[])));
    harness::wait_until(|| cluster.counter("b", "listeners") > 0);
    server
}

fn start(lab: &Lab, cluster: &Cluster<'_>, code: &str, counts: &[&str]) -> Process {
    let mut program = cluster.run("a", echo::python(code, counts));
    program.stdin(Stdio::piped());
    lab.spawn("program", program)
}

/// Runs ASK on a node to its end.
fn ask(cluster: &Cluster<'_>, node: &str, count: &str) {
    let mut program = cluster.run(node, echo::python(ASK, &[count]));
    let output = program.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn the_fifth_connection_of_a_node_with_four_queue_pairs_takes_tcp() {
    let lab = Lab::new("the_fifth_connection_of_a_node_with_four_queue_pairs_takes_tcp");
    if !echo::is_installed() {
        return;
    }
    let cluster = up(&lab, "a", "qps = 4");
    let _server = serve(&lab, &cluster);
    assert_eq!(used(&lab, "qps"), (0, 4.into()));
    let mut many = start(&lab, &cluster, ASK, &["6", "4"]);
    many.wait_output("whole 6");
    assert_eq!(roads(&cluster, "a", many.pid()), (4, 2));
    assert_eq!(used(&lab, "qps").0, 4);
    assert_eq!(cluster.fall_backs("a", "sp_bind"), 2);
    // Another program of the node has nothing left; one of another node has what it wants.
    ask(&cluster, "a", "1");
    assert_eq!(cluster.fall_backs("a", "sp_bind"), 3);
    ask(&cluster, "c", "5");
    assert_eq!(cluster.total("c", "san_connections"), 5);
    // What is closed serves the next ones, of this program and of others.
    many.write("\n");
    many.wait_output("closed 6");
    harness::wait_until(|| used(&lab, "qps").0 == 0);
    many.write("\n");
    many.wait_output("whole 4");
    assert_eq!(roads(&cluster, "a", many.pid()), (4, 0));
    many.close_stdin();
    many.wait();
    harness::wait_until(|| used(&lab, "qps").0 == 0);
    ask(&cluster, "a", "4");
    assert_eq!(cluster.total("a", "san_connections"), 12);
    assert_eq!(cluster.fall_backs("a", "sp_bind"), 3);
}

#[test]
fn a_node_with_few_queue_pairs_keeps_none_that_is_not_in_use() {
    let lab = Lab::new("a_node_with_few_queue_pairs_keeps_none_that_is_not_in_use");
    if !echo::is_installed() {
        return;
    }
    let cluster = up(&lab, "a", "qps = 4");
    let _server = serve(&lab, &cluster);
    let mut program = start(&lab, &cluster, ASK, &["4"]);
    program.wait_output("whole 4");
    program.write("\n");
    program.wait_output("closed 4");
    harness::wait_until(|| used(&lab, "qps").0 == 0);
    ask(&cluster, "a", "4");
    assert_eq!(cluster.total("a", "san_connections"), 8);
    program.close_stdin();
    program.wait();
}

#[test]
fn a_server_without_queue_pairs_is_reached_over_tcp() {
    let lab = Lab::new("a_server_without_queue_pairs_is_reached_over_tcp");
    if !echo::is_installed() {
        return;
    }
    let cluster = up(&lab, "b", "qps = 2");
    let _server = serve(&lab, &cluster);
    let mut many = start(&lab, &cluster, ASK, &["5"]);
    many.wait_output("whole 5");
    assert_eq!(roads(&cluster, "a", many.pid()), (2, 3));
    assert_eq!(cluster.fall_backs("a", "peer_limit"), 3);
    let text = lab.succeed(&["stat"]);
    let meaning = "the other node's NIC had nothing left for it";
    assert!(text.contains(meaning), "{text}");
    many.close_stdin();
    many.wait();
}

#[test]
fn a_process_without_a_function_takes_tcp_until_there_is_one() {
    let lab = Lab::new("a_process_without_a_function_takes_tcp_until_there_is_one");
    if !echo::is_installed() {
        return;
    }
    for limits in [
        "functions = 1",
        "memory = \"1 GiB\"",
        "windows = 1",
        "pds = 1",
    ] {
        let cluster = up(&lab, "a", limits);
        let _server = serve(&lab, &cluster);
        let mut first = start(&lab, &cluster, LISTEN, &[]);
        first.wait_output("listening");
        let mut second = start(&lab, &cluster, ASK, &["1", "2"]);
        second.wait_output("whole 1");
        assert_eq!(roads(&cluster, "a", second.pid()), (0, 1), "{limits}");
        assert_eq!(cluster.fall_backs("a", "sp_socket"), 1, "{limits}");
        first.close_stdin();
        first.wait();
        harness::wait_until(|| used(&lab, "functions").0 == 0);
        // The same process, now that there is room.
        second.write("\n\n");
        second.wait_output("whole 2");
        assert_eq!(roads(&cluster, "a", second.pid()), (2, 0), "{limits}");
        second.close_stdin();
        second.wait();
    }
}

/// the memory of a session is registered once the connection stands, and without it there is none.
#[test]
fn a_connection_without_a_region_fails_and_leaves_the_others() {
    let lab = Lab::new("a_connection_without_a_region_fails_and_leaves_the_others");
    if !echo::is_installed() {
        return;
    }
    // Of a process, of the process that it speaks to, and of one connection.
    let cluster = up(&lab, "a", "mrs = 3");
    let _server = serve(&lab, &cluster);
    let mut first = start(&lab, &cluster, ASK, &["1", "1"]);
    first.wait_output("whole 1");
    let mut program = cluster.run("a", echo::python(ASK, &["1"]));
    let output = program.stdin(Stdio::null()).output().unwrap();
    // Another process has not even a function.
    assert!(output.status.success(), "{output:?}");
    assert_eq!(cluster.fall_backs("a", "sp_socket"), 1);
    first.write("\n");
    first.wait_output("closed 1");
    harness::wait_until(|| used(&lab, "mrs").0 <= 2);
    first.write("\n");
    harness::wait_until(|| roads(&cluster, "a", first.pid()) == (1, 0));
    first.close_stdin();
    first.wait();
    let mut program = cluster.run("a", echo::python(ASK, &["2"]));
    let output = program.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("No buffer space available"), "{output:?}");
}

#[test]
fn limits_are_shown_as_they_were_given() {
    let lab = Lab::new("limits_are_shown_as_they_were_given");
    let text = "[[node]]\nname = \"a\"\ncount = 2\n[node.limits]\nqps = 4\nmemory = \"3072 MiB\"\n[[node]]\nname = \"b\"\n";
    let file = lab.write("shown.toml", text);
    let file = file.to_str().unwrap();
    let shown = lab.succeed(&["up", "--print-config", file]);
    assert!(
        shown.contains("limits = { qps = 4, memory = \"3 GiB\" }\n"),
        "{shown}"
    );
    assert_eq!(shown.matches("limits").count(), 1, "{shown}");
    let again = lab.write("again.toml", &shown);
    let again = lab.succeed(&["up", "--print-config", again.to_str().unwrap()]);
    assert_eq!(again, shown);
    let _cluster = lab.up_with(&[file]);
    let table = lab.succeed(&["stat", "--objects=limits"]);
    assert!(
        table.contains("0/4") && table.contains("0/3221225472"),
        "{table}"
    );
}
