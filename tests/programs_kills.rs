//! Sudden ends: of a program, and of the emulator under its connections.

mod harness;

use std::path::Path;
use std::time::{Duration, Instant};

use harness::{Cluster, Lab, Peer, Road, kernel, programs, wait_until};

#[test]
fn a_killed_programs_peer_gets_all_it_wrote_and_then_the_end() {
    let Some([python]) = programs::find(["python3"]) else {
        return;
    };
    for road in Road::BOTH {
        let lab = Lab::new("a_killed_programs_peer_gets_all_it_wrote_and_then_the_end");
        let cluster = lab.up_on(road);
        for killed in ["a", "b"] {
            let (mut pair, _) = connected(&lab, &cluster, &python);
            let (victim, survivor) = pair.split(killed);
            victim
                .0
                .expect(&format!("send {} 100000", victim.1), "sent 100000");
            let pid = victim.0.process.pid();
            victim.0.process.kill();
            survivor.0.expect(
                &format!("drain {}", survivor.1),
                "received 100000 right eof",
            );
            wait_until(|| {
                let stat = cluster.stat();
                let connections = stat["connections"].as_array().expect("a list").clone();
                connections
                    .iter()
                    .all(|connection| connection["pid"] != pid)
            });
        }
        wait_until(|| cluster.counter("a", "orphans") + cluster.counter("b", "orphans") == 0);
    }
}

#[test]
fn a_killed_receiver_ends_its_sender_with_an_error() {
    let Some([python]) = programs::find(["python3"]) else {
        return;
    };
    for road in Road::BOTH {
        let lab = Lab::new("a_killed_receiver_ends_its_sender_with_an_error");
        let cluster = lab.up_on(road);
        let (mut pair, _) = connected(&lab, &cluster, &python);
        // More than all buffers hold, so the sender blocks until its peer is gone.
        pair.client.post("send c 64000000");
        pair.server
            .expect("recv s 1000", "received 1000 right more");
        pair.server.process.kill();
        let ended = pair.client.answer();
        assert!(
            ["error ECONNRESET", "error EPIPE"].contains(&ended.as_str()),
            "{ended}"
        );
    }
}

#[test]
fn a_killed_emulator_resets_san_connections_and_leaves_tcp_alone() {
    let Some([python]) = programs::find(["python3"]) else {
        return;
    };
    for road in Road::BOTH {
        let lab = Lab::new("a_killed_emulator_resets_san_connections_and_leaves_tcp_alone");
        let cluster = lab.up_on(road);
        let (mut pair, address) = connected(&lab, &cluster, &python);
        pair.client.post("drain c");
        pair.server.post("drain s");
        cluster.kill_emulator();
        if road == Road::San {
            assert_eq!(pair.client.answer(), "received 0 right ECONNRESET");
            assert_eq!(pair.server.answer(), "received 0 right ECONNRESET");
        } else {
            assert!(pair.client.is_blocked() && pair.server.is_blocked());
            continue;
        }
        // New connections of programs that run already fall back, and listeners go on accepting.
        for accept in ["accept", "poll_accept"] {
            pair.server.post(&format!("{accept} s l"));
            pair.client.expect(
                &format!("connect c {address} 7000"),
                &format!("connected {address} 7000"),
            );
            assert!(pair.server.answer().starts_with("accepted "));
            pair.client.expect("send c 5000", "sent 5000");
            pair.server
                .expect("recv s 5000", "received 5000 right more");
        }
    }
}

#[test]
fn a_finished_peer_stays_finished_when_the_emulator_is_killed() {
    let Some([python]) = programs::find(["python3"]) else {
        return;
    };
    for road in Road::BOTH {
        let lab = Lab::new("a_finished_peer_stays_finished_when_the_emulator_is_killed");
        let cluster = lab.up_on(road);
        let (mut pair, _) = connected(&lab, &cluster, &python);
        pair.client.expect("send c 3000", "sent 3000");
        pair.client.expect("shutdown c", "shut");
        pair.server
            .expect("recv s 3000", "received 3000 right more");
        pair.server.expect("drain s", "received 0 right eof");
        cluster.kill_emulator();
        pair.server.expect("drain s", "received 0 right eof");
    }
}

#[test]
fn a_killed_emulator_in_the_middle_of_a_stream_shows_no_false_end() {
    let Some([python]) = programs::find(["python3"]) else {
        return;
    };
    for road in Road::BOTH {
        let lab = Lab::new("a_killed_emulator_in_the_middle_of_a_stream_shows_no_false_end");
        let cluster = lab.up_on(road);
        let (mut pair, _) = connected(&lab, &cluster, &python);
        pair.client.post("send c 64000000");
        pair.server
            .expect("recv s 1000000", "received 1000000 right more");
        cluster.kill_emulator();
        if road == Road::San {
            let sent = pair.client.answer();
            assert!(
                ["error ECONNRESET", "error EPIPE"].contains(&sent.as_str()),
                "{sent}"
            );
            let got = pair.server.ask("drain s");
            assert!(got.ends_with("ECONNRESET"), "{got}");
        } else {
            let got = pair.server.ask("recv s 63000000");
            assert!(got.starts_with("received 63000000 "), "{got}");
        }
    }
}

#[test]
fn an_idle_cluster_with_open_connections_uses_no_processor() {
    let Some([python]) = programs::find(["python3"]) else {
        return;
    };
    for road in Road::BOTH {
        let lab = Lab::new("an_idle_cluster_with_open_connections_uses_no_processor");
        let cluster = lab.up_on(road);
        let (mut pair, _) = connected(&lab, &cluster, &python);
        pair.client.expect("send c 5000", "sent 5000");
        pair.server
            .expect("recv s 5000", "received 5000 right more");
        pair.client.post("drain c");
        pair.server.post("drain s");
        let pids = [
            pair.client.process.pid(),
            pair.server.process.pid(),
            cluster.emulator_pid(),
        ];
        let used = || pids.map(kernel::cpu_ticks);
        // They settle first: a spin budget ends, an engine parks.
        let mut before = used();
        wait_until(|| {
            let second = Instant::now() + Duration::from_secs(1);
            wait_until(|| Instant::now() >= second);
            let after = used();
            let is_idle = after
                .iter()
                .zip(before)
                .all(|(after, before)| after - before <= 1);
            before = after;
            is_idle
        });
    }
}

/// A client on node b and a server on node a, connected.
struct Pair {
    client: Peer,
    server: Peer,
}

impl Pair {
    /// The ends as (who is killed, who survives), each with the name of its socket.
    fn split(&mut self, killed: &str) -> ((&mut Peer, &'static str), (&mut Peer, &'static str)) {
        let client = (&mut self.client, "c");
        let server = (&mut self.server, "s");
        if killed == "a" {
            (server, client)
        } else {
            (client, server)
        }
    }
}

fn connected(lab: &Lab, cluster: &Cluster<'_>, python: &Path) -> (Pair, std::net::Ipv4Addr) {
    let address = cluster.address("a");
    let mut server = Peer::start(lab, "server", cluster.run("a", [python]));
    server.expect("listen l 0.0.0.0 7000", "listening 0.0.0.0 7000");
    let mut client = Peer::start(lab, "client", cluster.run("b", [python]));
    client.expect(
        &format!("connect c {address} 7000"),
        &format!("connected {address} 7000"),
    );
    let accepted = server.ask("accept s l");
    assert!(accepted.starts_with("accepted "), "{accepted}");
    (Pair { client, server }, address)
}
