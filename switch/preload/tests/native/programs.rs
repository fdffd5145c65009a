//! Unmodified programs on two nodes, on kernel TCP through the library's exports.

use std::fs::{self, File};
use std::io::Read;
use std::net::{Ipv4Addr, TcpStream};
use std::process::Stdio;

use crate::harness::{Cluster, Running, Scratch, finish, has, library, succeed, wait_for};

const PAIR: [u8; 2] = [1, 2];

/// Waits until something accepts connections at the kernel address.
fn wait_until_listening(address: &str, port: u16) {
    wait_for("a listener", || TcpStream::connect((address, port)).ok());
}

#[test]
fn without_configuration_the_library_does_nothing() {
    if !has("python3") {
        return;
    }
    let script = "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[0]); \
                  f = open('/proc/self/maps').read(); print('libsanlab_preload' in f)";
    let mut command = std::process::Command::new("python3");
    command.args(["-c", script]).env("LD_PRELOAD", library());
    assert_eq!(succeed(&mut command), "127.0.0.1\nTrue\n");
}

#[test]
fn names_are_logical_on_both_nodes_at_once() {
    if !has("python3") {
        return;
    }
    let script = r"
import os, socket, sys
own, port = os.environ['ADDR'], int(sys.argv[1])
def pair(server, address, family):
    client = socket.socket(family)
    client.connect(address)
    accepted, peer = server.accept()
    assert client.getpeername()[:2] == address, client.getpeername()
    assert accepted.getpeername() == peer
    assert client.getsockname()[1] == peer[1]
    client.sendall(b'ping')
    assert accepted.recv(4) == b'ping'
    return client.getsockname()[0], peer[0], accepted.getsockname()[0]
def server(family, address, v6only=None):
    s = socket.socket(family)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if v6only is not None:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
        assert s.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == v6only
    s.bind(address)
    s.listen()
    assert s.getsockname()[:2] == address, s.getsockname()
    return s
four, six = socket.AF_INET, socket.AF_INET6
wildcard = server(four, ('0.0.0.0', port))
local = server(four, ('127.0.0.1', port + 1))
assert pair(wildcard, (own, port), four) == (own, own, own)
assert pair(wildcard, ('127.0.0.1', port), four)[1] == '127.0.0.1'
assert pair(local, ('127.0.0.1', port + 1), four) == ('127.0.0.1', '127.0.0.1', '127.0.0.1')
dual = server(six, ('::', port + 2), 0)
assert pair(dual, ('::ffff:' + own, port + 2), six)[2] == '::ffff:' + own
assert pair(dual, ('::1', port + 2), six)[0] == '::1'
only = server(six, ('::', port + 3), 1)
both = server(four, ('0.0.0.0', port + 3))
assert pair(only, ('::1', port + 3), six) == ('::1', '::1', '::1')
assert pair(both, (own, port + 3), four)[2] == own
named = server(six, ('::1', port + 4))
assert pair(named, ('::1', port + 4), six) == ('::1', '::1', '::1')
try:
    socket.create_connection((own, port + 1))
    raise AssertionError('a localhost listener is reached by the node address')
except ConnectionRefusedError:
    pass
udp = socket.socket(four, socket.SOCK_DGRAM)
udp.bind(('0.0.0.0', port))
assert udp.getsockname() == ('0.0.0.0', port)
client = socket.socket(four, socket.SOCK_DGRAM)
client.sendto(b'question', ('127.0.0.1', port))
question, who = udp.recvfrom(100)
udp.sendto(b'answer', who)
assert client.recvfrom(100) == (b'answer', ('127.0.0.1', port))
client.sendmsg([b'question'], [], 0, ('127.0.0.1', port))
question, _, _, who = udp.recvmsg(100)
udp.sendto(b'answer', who)
assert client.recvmsg(100)[3] == ('127.0.0.1', port)
# Both nodes hold all their listeners at once.
print('ready', flush=True)
sys.stdin.read()
";
    let cluster = Cluster::claim();
    let nodes = PAIR.map(|k| {
        let mut command = cluster.command(k, "python3");
        command
            .args(["-c", script, "17310"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        Running::start(&mut command)
    });
    for mut node in nodes {
        let mut ready = [0; 6];
        let stdout = node.child().stdout.as_mut().unwrap();
        stdout.read_exact(&mut ready).unwrap();
        assert_eq!(&ready, b"ready\n");
        drop(node.child().stdin.take());
        assert!(node.child().wait().unwrap().success());
    }
}

#[test]
fn python_serves_files_to_curl_on_equal_ports() {
    if !has("python3") || !has("curl") {
        return;
    }
    let cluster = Cluster::claim();
    let scratch = Scratch::new("http");
    let servers = PAIR.map(|k| {
        let dir = scratch.path().join(format!("n{k}"));
        fs::create_dir_all(&dir).unwrap();
        let content: Vec<u8> = (0..4_000_000_u32)
            .flat_map(|n| (n ^ u32::from(k)).to_le_bytes())
            .collect();
        fs::write(dir.join("file"), content).unwrap();
        fs::write(dir.join("name"), format!("n{k}")).unwrap();
        let mut command = cluster.command(k, "python3");
        command
            .args(["-m", "http.server", "17320", "--directory"])
            .arg(&dir)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Running::start(&mut command)
    });
    for k in PAIR {
        wait_until_listening(&cluster.address(k), 17320);
    }
    for (client, server) in [(1, 2), (2, 1), (1, 1)] {
        let received = scratch.path().join("received");
        let url = format!("http://{}:17320/file", cluster.address(server));
        succeed(
            cluster
                .command(client, "curl")
                .args(["-sS", "--fail", "-o"])
                .arg(&received)
                .arg(url),
        );
        let sent = fs::read(scratch.path().join(format!("n{server}/file"))).unwrap();
        assert!(
            fs::read(&received).unwrap() == sent,
            "{client} from {server}"
        );
    }
    // Localhost is each node's own.
    let local =
        succeed(
            cluster
                .command(2, "curl")
                .args(["-sS", "--fail", "http://localhost:17320/name"]),
        );
    assert_eq!(local, "n2");
    drop(servers);
}

#[test]
fn redis_runs_on_two_nodes_on_one_port() {
    if !has("redis-server") || !has("redis-cli") || !has("redis-benchmark") {
        return;
    }
    let cluster = Cluster::claim();
    let scratch = Scratch::new("redis");
    let servers = PAIR.map(|k| {
        let log = File::create(scratch.path().join(format!("log{k}"))).unwrap();
        let mut command = cluster.command(k, "redis-server");
        command
            .args(["--port", "17330", "--save", "", "--protected-mode", "no"])
            .current_dir(scratch.path())
            .stdout(log);
        Running::start(&mut command)
    });
    for k in PAIR {
        wait_until_listening(&cluster.address(k), 17330);
        let own = cluster.address(k);
        for host in [own.as_str(), "127.0.0.1"] {
            let reply = succeed(
                cluster
                    .command(k, "redis-cli")
                    .args(["-h", host, "-p", "17330", "APPEND", "node"])
                    .arg(k.to_string()),
            );
            assert!(reply.trim().parse::<u32>().is_ok(), "{reply}");
        }
    }
    for (client, server) in [(1_u8, 2_u8), (2, 1)] {
        let host = cluster.address(server);
        let value = succeed(
            cluster
                .command(client, "redis-cli")
                .args(["-h", &host, "-p", "17330", "GET", "node"]),
        );
        assert_eq!(value.trim(), format!("{server}{server}"));
    }
    let host = cluster.address(1);
    let bench = succeed(cluster.command(2, "redis-benchmark").args([
        "-h", &host, "-p", "17330", "-n", "20000", "-c", "50", "-P", "16", "-q", "-t", "set,get",
    ]));
    assert!(bench.contains("GET:"), "{bench}");
    assert!(!bench.to_lowercase().contains("error"), "{bench}");
    drop(servers);
}

#[test]
fn iperf3_measures_between_nodes_in_all_its_ways() {
    if !has("iperf3") {
        return;
    }
    let cluster = Cluster::claim();
    let servers = PAIR.map(|k| {
        let mut command = cluster.command(k, "iperf3");
        command
            .args(["-s", "-p", "17340"])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Running::start(&mut command)
    });
    for k in PAIR {
        // iperf3 takes a stray connection for a client, so look without dialling.
        wait_for("iperf3", || {
            is_listening(&cluster.address(k), 17340).then_some(())
        });
    }
    let host = cluster.address(2);
    for arguments in [&[][..], &["-P", "4"], &["-R"], &["-u", "-b", "10M"]] {
        // Between two tests the server closes its listener and opens another: who comes then is told to come again, or reset.
        let between = [
            "the server is busy running a test",
            "unable to send cookie to server",
        ];
        wait_for("a server between two tests", || {
            let output = finish(
                cluster
                    .command(1, "iperf3")
                    .args(["-c", &host, "-p", "17340", "-t", "1", "-J"])
                    .args(arguments),
            );
            let text = String::from_utf8_lossy(&output.stdout);
            if between.iter().any(|told| text.contains(told)) {
                return None;
            }
            assert!(output.status.success(), "{arguments:?}: {text}");
            assert!(!text.contains("\"error\""), "{arguments:?}: {text}");
            Some(())
        });
    }
    drop(servers);
}

/// Whether the kernel has a TCP listener (state 0A) there.
fn is_listening(address: &str, port: u16) -> bool {
    let ip: Ipv4Addr = address.parse().expect("an address of this test");
    let ip = u32::from_ne_bytes(ip.octets());
    ["/proc/net/tcp", "/proc/net/tcp6"].iter().any(|table| {
        fs::read_to_string(table)
            .unwrap_or_default()
            .lines()
            .any(|line| {
                let mut words = line.split_whitespace();
                let local = words.nth(1).unwrap_or_default();
                let state = words.nth(1).unwrap_or_default();
                state == "0A" && local.ends_with(&format!("{ip:08X}:{port:04X}"))
            })
    })
}

#[test]
fn programs_know_nodes_by_name() {
    if !has("python3") {
        return;
    }
    let script = r"
import ctypes, os, socket
one, two = os.environ['ONE'], os.environ['ADDR']
def refused(name, **hints):
    try:
        socket.getaddrinfo(name, 80, **hints)
    except socket.gaierror:
        return True
    return False
assert socket.gethostname() == os.uname().nodename == 'n2'
assert socket.gethostbyname('n1') == socket.gethostbyname('N1.') == one
assert socket.gethostbyname_ex('n1') == ('n1', [], [one])
assert socket.gethostbyaddr(one) == ('n1', [], [one])
found = socket.getaddrinfo('n1', 'http', socket.AF_UNSPEC, socket.SOCK_STREAM, 0, socket.AI_CANONNAME)
assert found == [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, 'n1', (one, 80))], found
mapped = socket.getaddrinfo('n1', 80, socket.AF_INET6, socket.SOCK_STREAM, 0, socket.AI_V4MAPPED)
assert mapped[0][4][:2] == ('::ffff:' + one, 80), mapped
assert refused('n1', family=socket.AF_INET6)
assert refused('n1', flags=socket.AI_NUMERICHOST)
assert refused('n9.invalid')
assert socket.getnameinfo((one, 80), 0) == ('n1', 'http')
assert socket.getnameinfo(('::ffff:' + two, 80), socket.NI_NAMEREQD | socket.NI_NUMERICSERV) == ('n2', '80')
assert socket.getnameinfo((one, 80), socket.NI_NUMERICHOST)[0] == one
libc, room = ctypes.CDLL(None, use_errno=True), ctypes.create_string_buffer(2)
assert libc.gethostname(room, 2) == -1 and ctypes.get_errno() == 36 and room.raw == b'n2'
server = socket.create_server(('n2', 0))
client = socket.create_connection(('n2', server.getsockname()[1]))
assert client.getpeername()[0] == two
print('ok')
";
    let cluster = Cluster::claim();
    let mut command = cluster.command(2, "python3");
    command.args(["-c", script]).env("ONE", cluster.address(1));
    assert_eq!(succeed(&mut command), "ok\n");
}
