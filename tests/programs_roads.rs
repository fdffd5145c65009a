//! Which road a connection takes where one end is not on the SAN, and where programs of several nodes use equal addresses.

mod harness;

use std::path::{Path, PathBuf};

use harness::{Cluster, Lab, Peer, Road, programs};

#[test]
fn a_server_without_sanlab_is_reached_over_tcp_and_the_reason_is_told() {
    let Some([python]) = programs::find(["python3"]) else {
        return;
    };
    let lab = Lab::new("a_server_without_sanlab_is_reached_over_tcp_and_the_reason_is_told");
    let cluster = lab.up();
    let address = cluster.address("a");
    let mut server = Peer::start_unhooked(&lab, "server", &python);
    server.expect(
        &format!("listen l {address} 7000"),
        &format!("listening {address} 7000"),
    );
    let mut client = peer(&lab, &cluster, &python, "b");
    client.expect(
        &format!("connect c {address} 7000"),
        &format!("connected {address} 7000"),
    );
    let accepted = server.ask("accept s l");
    assert!(
        accepted.starts_with(&format!("accepted {} ", cluster.address("b"))),
        "{accepted}"
    );
    exchange(&mut client, "c", &mut server, "s");
    let stat = cluster.stat();
    let connection = &stat["connections"][0];
    assert_eq!(connection["road"], "tcp", "{stat:#}");
    assert_eq!(connection["reason"], "no_san_listener", "{stat:#}");
    assert_eq!(cluster.fall_backs("b", "no_san_listener"), 1);
    client.expect("shutdown c", "shut");
    server.expect("drain s", "received 0 right eof");
}

#[test]
fn programs_that_lower_their_limit_or_connect_in_many_threads_ride_the_san() {
    let Some([python]) = programs::find(["python3"]) else {
        return;
    };
    let server = r"
import resource, socket
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
listener = socket.create_server(('', 7100))
ends = [listener.accept()[0] for _ in range(16)]
for end in ends:
    end.sendall(end.recv(100))
";
    let client = r"
import resource, socket, threading
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
begin = threading.Barrier(16)
right = []
def use(k):
    begin.wait()
    end = socket.create_connection(('a', 7100))
    end.sendall(b'from %d' % k)
    right.append(end.recv(100) == b'from %d' % k)
threads = [threading.Thread(target=use, args=(k,)) for k in range(16)]
for t in threads: t.start()
for t in threads: t.join()
assert right == [True] * 16, right
";
    let lab = Lab::new("programs_that_lower_their_limit_or_connect_in_many_threads_ride_the_san");
    let cluster = lab.up_on(Road::San);
    let run = |node, script: &str| {
        cluster.run(node, [python.as_os_str(), "-c".as_ref(), script.as_ref()])
    };
    let server = lab.spawn("server", run("a", server));
    cluster.wait_listening("a", 7100);
    lab.spawn("client", run("b", client)).succeed();
    server.succeed();
    cluster.wait_no_connections();
    cluster.assert_road(Road::San, &["a", "b"]);
}

#[test]
fn a_client_without_sanlab_reaches_a_server_on_a_node_over_tcp() {
    let Some([python]) = programs::find(["python3"]) else {
        return;
    };
    let lab = Lab::new("a_client_without_sanlab_reaches_a_server_on_a_node_over_tcp");
    let cluster = lab.up();
    let address = cluster.address("a");
    let mut server = peer(&lab, &cluster, &python, "a");
    server.expect("listen l 0.0.0.0 7000", "listening 0.0.0.0 7000");
    let mut client = Peer::start_unhooked(&lab, "client", &python);
    client.expect(
        &format!("connect c {address} 7000"),
        &format!("connected {address} 7000"),
    );
    server.ask("poll_accept s l");
    exchange(&mut client, "c", &mut server, "s");
    let stat = cluster.stat();
    assert_eq!(stat["connections"][0]["road"], "tcp", "{stat:#}");
    assert_eq!(stat["connections"][0]["reason"], "off_subnet", "{stat:#}");
    assert_eq!(cluster.fall_backs("a", "off_subnet"), 1);
}

#[test]
fn nodes_show_their_own_addresses_to_each_other() {
    let Some([python]) = programs::find(["python3"]) else {
        return;
    };
    for road in Road::BOTH {
        let lab = Lab::new("nodes_show_their_own_addresses_to_each_other");
        let cluster = lab.up_on(road);
        let (a, b) = (cluster.address("a"), cluster.address("b"));
        let mut server = peer(&lab, &cluster, &python, "a");
        server.expect("listen l 0.0.0.0 7000", "listening 0.0.0.0 7000");
        let mut client = peer(&lab, &cluster, &python, "b");
        client.expect(
            &format!("connect c {a} 7000"),
            &format!("connected {a} 7000"),
        );
        let accepted = server.ask("accept s l");
        let own = client.ask("local c");
        assert!(own.starts_with(&format!("local {b} ")), "{own}");
        assert_eq!(accepted.replace("accepted", "local"), own);
        server.expect("local s", &format!("local {a} 7000"));
        exchange(&mut client, "c", &mut server, "s");
        exchange(&mut server, "s", &mut client, "c");
        cluster.assert_road(road, &["a", "b"]);
    }
}

#[test]
fn localhost_and_wildcard_belong_to_their_node() {
    let Some([python]) = programs::find(["python3"]) else {
        return;
    };
    for road in Road::BOTH {
        let lab = Lab::new("localhost_and_wildcard_belong_to_their_node");
        let cluster = lab.up_on(road);
        let mut peers = ["a", "b"].map(|node| peer(&lab, &cluster, &python, node));
        for peer in &mut peers {
            peer.expect("listen wild 0.0.0.0 7000", "listening 0.0.0.0 7000");
            peer.expect("listen six :: 7001", "listening :: 7001");
            peer.expect("listen local 127.0.0.1 7002", "listening 127.0.0.1 7002");
            peer.expect("listen local6 ::1 7003", "listening ::1 7003");
        }
        for peer in &mut peers {
            for (host, port, listener) in [
                ("127.0.0.1", 7000, "wild"),
                ("127.0.0.1", 7001, "six"),
                ("127.0.0.1", 7002, "local"),
                ("::1", 7003, "local6"),
            ] {
                peer.expect(
                    &format!("connect c {host} {port}"),
                    &format!("connected {host} {port}"),
                );
                let accepted = peer.ask(&format!("accept s {listener}"));
                assert!(accepted.starts_with("accepted "), "{accepted}");
                peer.expect("send c 1000", "sent 1000");
                peer.expect("recv s 1000", "received 1000 right more");
                peer.expect("close c", "closed");
                peer.expect("drain s", "received 0 right eof");
                peer.expect("close s", "closed");
            }
        }
        // What a node binds to its localhost is out of other nodes' reach.
        let a = cluster.address("a");
        let [_, other] = &mut peers;
        other.expect(&format!("connect c {a} 7002"), "error ECONNREFUSED");
        other.expect(
            &format!("connect c {a} 7000"),
            &format!("connected {a} 7000"),
        );
    }
}

#[test]
fn http_servers_on_equal_ports_serve_their_own_files() {
    let Some([python, curl]) = programs::find(["python3", "curl"]) else {
        return;
    };
    for road in Road::BOTH {
        let lab = Lab::new("http_servers_on_equal_ports_serve_their_own_files");
        let cluster = lab.up_on(road);
        let _servers = ["a", "b"].map(|node| {
            let site = lab.directory().join(node);
            std::fs::create_dir(&site).expect("a fresh directory");
            std::fs::write(site.join("who"), node).expect("room for a file");
            let mut server = cluster.run(
                node,
                [
                    python.as_os_str(),
                    "-m".as_ref(),
                    "http.server".as_ref(),
                    "8000".as_ref(),
                ],
            );
            server.current_dir(&site);
            let process = lab.spawn(&format!("http-{node}"), server);
            cluster.wait_listening(node, 8000);
            process
        });
        for node in ["a", "b"] {
            let far = fetch(
                &lab,
                &cluster,
                &curl,
                "c",
                &cluster.address(node).to_string(),
            );
            assert_eq!(far, node);
            let near = fetch(&lab, &cluster, &curl, node, "127.0.0.1");
            assert_eq!(near, node);
        }
    }
}

fn fetch(lab: &Lab, cluster: &Cluster<'_>, curl: &PathBuf, node: &str, host: &str) -> String {
    let mut client = cluster.run(node, [curl]);
    client.args(["-sS", "--fail", &format!("http://{host}:8000/who")]);
    lab.spawn("curl", client).succeed()
}

fn peer(lab: &Lab, cluster: &Cluster<'_>, python: &Path, node: &str) -> Peer {
    Peer::start(lab, &format!("peer-{node}"), cluster.run(node, [python]))
}

fn exchange(from: &mut Peer, out: &str, to: &mut Peer, into: &str) {
    from.expect(&format!("send {out} 5000"), "sent 5000");
    to.expect(&format!("recv {into} 5000"), "received 5000 right more");
}
