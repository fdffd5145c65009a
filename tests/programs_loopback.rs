//! A node's connections to itself over the SAN: what insists on localhost runs there unchanged.

mod harness;

use std::path::Path;
use std::process::Command;

use harness::{Cluster, Lab, Peer, Road, programs, wait_until};

/// A cluster file with nodes a and b.
fn file(lab: &Lab, loopback: &str) -> String {
    let text = format!(
        "[cluster]\nsan_connect_limit = \"60 s\"\nloopback = \"{loopback}\"\n[[node]]\nname = \"a\"\n[[node]]\nname = \"b\"\n"
    );
    let path = lab.write("cluster.toml", &text);
    path.to_str()
        .expect("temporary directories have ASCII names")
        .to_owned()
}

/// A program on node a with `--loopback`.
fn run(lab: &Lab, cluster: &Cluster<'_>, loopback: &str, program: &Path) -> Command {
    let mut command = lab.sanlab(["run", "--cluster", &cluster.name, "--node", "a"]);
    command.args(["--loopback", loopback, "--"]).arg(program);
    command
}

/// All connections of node a rode the SAN, none fell back, and its NIC carried at least what its programs say they sent.
fn assert_all_on_the_san(cluster: &Cluster<'_>) {
    cluster.wait_no_connections();
    cluster.assert_road(Road::San, &["a"]);
    let stat = cluster.stat();
    assert_eq!(stat["fallbacks"], serde_json::json!([]), "{stat:#}");
    let total = |member| cluster.total("a", member);
    assert_eq!(total("san_tx_bytes"), total("san_rx_bytes"), "{stat:#}");
    assert!(total("san_tx_bytes") > 0, "{stat:#}");
    assert!(cluster.counter("a", "tx_payload_bytes") >= total("san_tx_bytes"));
}

#[test]
fn redis_benchmark_on_127_0_0_1_rides_the_san() {
    let Some([server, benchmark, cli]) =
        programs::find(["redis-server", "redis-benchmark", "redis-cli"])
    else {
        return;
    };
    let lab = Lab::new("redis_benchmark_on_127_0_0_1_rides_the_san");
    let cluster = lab.up_with(&[&file(&lab, "tcp")]);
    let mut command = run(&lab, &cluster, "san", &server);
    command.args(["--port", "6379", "--save", "", "--dir"]);
    command.arg(lab.directory());
    let mut server = lab.spawn("server", command);
    server.wait_output("Ready to accept connections");
    // 127.0.0.1 and ::1, which is what redis binds by default.
    wait_until(|| cluster.counter("a", "listeners") >= 2);

    let mut command = run(&lab, &cluster, "san", &benchmark);
    command.args("-h 127.0.0.1 -c 20 -P 8 -n 20000 -t set,get --csv".split(' '));
    let said = lab.spawn("benchmark", command).succeed();
    assert!(
        said.contains("\"SET\"") && said.contains("\"GET\""),
        "{said}"
    );
    assert!(!said.to_lowercase().contains("error"), "{said}");
    for host in ["127.0.0.1", "::1", "localhost"] {
        let mut command = run(&lab, &cluster, "san", &cli);
        command.args(["-h", host, "ping"]);
        assert_eq!(lab.spawn("cli", command).succeed().trim(), "PONG", "{host}");
    }
    let mut command = run(&lab, &cluster, "san", &cli);
    command.args(["shutdown", "nosave"]);
    lab.spawn("cli", command).wait();
    server.succeed();
    assert_all_on_the_san(&cluster);
}

#[test]
fn an_http_server_on_ip6_localhost_rides_the_san_and_shows_ip6_names() {
    let Some([python]) = programs::find(["python3"]) else {
        return;
    };
    let lab = Lab::new("an_http_server_on_ip6_localhost_rides_the_san_and_shows_ip6_names");
    let cluster = lab.up_with(&[&file(&lab, "san")]);
    lab.write("page.txt", "over the SAN");
    let mut command = cluster.run("a", [python.as_path()]);
    command.args(["-u", "-m", "http.server", "--bind", "::1", "8000"]);
    command.arg("--directory").arg(lab.directory());
    let mut server = lab.spawn("server", command);
    server.wait_output("Serving HTTP on ::1 port 8000");
    wait_until(|| cluster.counter("a", "listeners") > 0);

    let client = "
import socket, urllib.request
page = urllib.request.urlopen('http://[::1]:8000/page.txt').read()
assert page == b'over the SAN', page
end = socket.create_connection(('::1', 8000))
assert end.getpeername() == ('::1', 8000, 0, 0), end.getpeername()
assert end.getsockname()[0] == '::1', end.getsockname()
";
    let client = cluster.run("a", [python.as_os_str(), "-c".as_ref(), client.as_ref()]);
    lab.spawn("client", client).succeed();
    // The server writes who asked: the name that accept told it.
    wait_until(|| server.stderr().contains("::1 - - "));
    server.signal(nix::sys::signal::Signal::SIGINT);
    server.wait();
    assert_all_on_the_san(&cluster);
}

#[test]
fn names_of_own_connections_are_those_of_a_machine_of_its_own() {
    let Some([python]) = programs::find(["python3"]) else {
        return;
    };
    let lab = Lab::new("names_of_own_connections_are_those_of_a_machine_of_its_own");
    let cluster = lab.up_with(&[&file(&lab, "san")]);
    let own = cluster.address("a").to_string();
    // Where it listens, where the client dials, and what both ends then see.
    for (number, (listen, dial, seen)) in [
        ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "localhost", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "0.0.0.0", "127.0.0.1"),
        ("0.0.0.0", own.as_str(), own.as_str()),
        (own.as_str(), own.as_str(), own.as_str()),
        ("::1", "::1", "::1"),
        ("::", "::1", "::1"),
        ("::", "::", "::1"),
    ]
    .into_iter()
    .enumerate()
    {
        let port = 7000 + number;
        let peer = |label: &str| Peer::start(&lab, label, cluster.run("a", [&python]));
        let mut server = peer(&format!("server{number}"));
        server.expect(
            &format!("listen l {listen} {port}"),
            &format!("listening {listen} {port}"),
        );
        wait_until(|| cluster.counter("a", "listeners") > 0);
        let mut client = peer(&format!("client{number}"));
        client.expect(
            &format!("connect c {dial} {port}"),
            &format!("connected {seen} {port}"),
        );
        let accepted = server.ask("accept s l");
        let source = client.ask("local c");
        assert_eq!(
            accepted.strip_prefix("accepted "),
            source.strip_prefix("local "),
            "{listen} {dial}"
        );
        assert!(
            source.starts_with(&format!("local {seen} ")),
            "{listen} {dial}: {source}"
        );
        server.expect("local s", &format!("local {seen} {port}"));
        client.expect("send c 300000", "sent 300000");
        client.expect("shutdown c", "shut");
        server.expect("drain s", "received 300000 right eof");
        drop((client, server));
        wait_until(|| cluster.counter("a", "listeners") == 0);
    }
    assert_all_on_the_san(&cluster);
}

#[test]
fn one_process_and_one_thread_may_be_both_ends() {
    let Some([python]) = programs::find(["python3"]) else {
        return;
    };
    let lab = Lab::new("one_process_and_one_thread_may_be_both_ends");
    let cluster = lab.up_with(&[&file(&lab, "san")]);
    let script = r"
import asyncio, socket
# Blocking, in one thread: connect returns before accept is called, and both ends write before either reads.
listener = socket.create_server(('127.0.0.1', 0))
for size in (1, 50_000):
    one = socket.create_connection(listener.getsockname())
    two, peer = listener.accept()
    assert peer == one.getsockname() and two.getsockname() == one.getpeername()
    for end in (one, two): end.sendall(bytes(size))
    for end in (one, two):
        left = size
        while left: left -= len(end.recv(left))
    one.close()
    assert two.recv(1) == b''

async def serve(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()

async def ask(host, port, n):
    reader, writer = await asyncio.open_connection(host, port)
    data = bytes([n]) * 200_000
    writer.write(data)
    writer.write_eof()
    assert await reader.read() == data
    writer.close()

async def main():
    for host in ('127.0.0.1', '::1', 'localhost'):
        server = await asyncio.start_server(serve, host, 0 if host != 'localhost' else 7600)
        port = server.sockets[0].getsockname()[1]
        await asyncio.gather(*(ask(host, port, n) for n in range(20)))
        server.close()
        await server.wait_closed()

asyncio.run(main())
";
    let script = cluster.run("a", [python.as_os_str(), "-c".as_ref(), script.as_ref()]);
    lab.spawn("script", script).succeed();
    assert_all_on_the_san(&cluster);
}

#[test]
fn localhost_of_one_node_is_not_that_of_another() {
    let Some([python]) = programs::find(["python3"]) else {
        return;
    };
    let lab = Lab::new("localhost_of_one_node_is_not_that_of_another");
    let cluster = lab.up_with(&[&file(&lab, "san")]);
    let mut server = Peer::start(&lab, "server", cluster.run("a", [&python]));
    server.expect("listen l 127.0.0.1 7000", "listening 127.0.0.1 7000");
    wait_until(|| cluster.counter("a", "listeners") > 0);
    let mut other = Peer::start(&lab, "other", cluster.run("b", [&python]));
    other.expect("connect c 127.0.0.1 7000", "error ECONNREFUSED");
    other.expect(
        &format!("connect c {} 7000", cluster.address("a")),
        "error ECONNREFUSED",
    );
    // An IPv4 listener is none at ::1, whose refusal is final.
    server.expect("listen w 0.0.0.0 7001", "listening 0.0.0.0 7001");
    wait_until(|| cluster.counter("a", "listeners") > 1);
    let mut client = Peer::start(&lab, "client", cluster.run("a", [&python]));
    client.expect("connect c ::1 7001", "error ECONNREFUSED");
}

#[test]
fn by_default_and_by_option_own_connections_stay_on_tcp() {
    let Some([python]) = programs::find(["python3"]) else {
        return;
    };
    for (of_the_file, option) in [("tcp", None), ("san", Some("tcp"))] {
        let lab = Lab::new("by_default_and_by_option_own_connections_stay_on_tcp");
        let cluster = lab.up_with(&[&file(&lab, of_the_file)]);
        let start = |label: &str| {
            let command = match option {
                Some(option) => run(&lab, &cluster, option, &python),
                None => cluster.run("a", [&python]),
            };
            Peer::start(&lab, label, command)
        };
        let (mut server, mut client) = (start("server"), start("client"));
        server.expect("listen l 127.0.0.1 7000", "listening 127.0.0.1 7000");
        client.expect("connect c 127.0.0.1 7000", "connected 127.0.0.1 7000");
        server.ask("accept s l");
        client.expect("send c 1000", "sent 1000");
        server.expect("recv s 1000", "received 1000 right more");
        cluster.assert_road(Road::Tcp, &["a"]);
        assert_eq!(cluster.fall_backs("a", "loopback"), 2);
    }
}

#[test]
fn regression_wildcards_of_both_families_on_one_port_do_not_share_connections() {
    let Some([python]) = programs::find(["python3"]) else {
        return;
    };
    let server = r"
import select, socket
four = socket.create_server(('0.0.0.0', 7700))
six = socket.socket(socket.AF_INET6)
six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
six.bind(('::', 7700))
six.listen(16)
print('up', flush=True)
seen = []
while len(seen) < 12:
    for ready in select.select([four, six], [], [])[0]:
        end, peer = ready.accept()
        seen.append((ready is six, peer[0], end.recv(3)))
        end.close()
fours = [(a, b) for (a, b, said) in seen if said == b'ip4']
sixes = [(a, b) for (a, b, said) in seen if said == b'ip6']
assert len(fours) == 8 and set(a for a, b in fours) == {False}, seen
assert sixes == [(True, '::1')] * 4, seen
";
    let dial = r"
import socket, sys
for n in range(4):
    end = socket.create_connection((sys.argv[1], 7700))
    end.sendall(sys.argv[2].encode())
    assert end.recv(1) == b''
";
    let lab =
        Lab::new("regression_wildcards_of_both_families_on_one_port_do_not_share_connections");
    let cluster = lab.up_with(&[&file(&lab, "san")]);
    let start = |label: &str, node: &str, script: &str, words: &[&str]| {
        let mut command = cluster.run(node, [python.as_os_str(), "-c".as_ref(), script.as_ref()]);
        command.args(words);
        lab.spawn(label, command)
    };
    let mut server = start("server", "a", server, &[]);
    server.wait_output("up");
    wait_until(|| cluster.counter("a", "listeners") == 2);
    start("far", "b", dial, &["a", "ip4"]).succeed();
    start("near", "a", dial, &["127.0.0.1", "ip4"]).succeed();
    start("six", "a", dial, &["::1", "ip6"]).succeed();
    server.succeed();
    cluster.wait_no_connections();
    cluster.assert_road(Road::San, &["a", "b"]);
}
