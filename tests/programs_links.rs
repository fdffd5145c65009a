//! Established connections over a link that is cut and mended: as over a pulled cable, the stream waits, and then goes on.

mod harness;

use std::path::Path;
use std::time::Duration;

use harness::{Cluster, Lab, Peer, Road, programs, wait_until};
use nic_emu::control::client;
use nic_emu::device::LinkChange;

/// Bytes of the stream.
const BYTES: u64 = 8_000_000;
/// What the link carries: slow enough to be cut in the middle.
const BITS_A_SECOND: u64 = 40_000_000;
/// Packets lost to the cut, by which a queue pair that counts its retries would long have given up.
const LOST: u64 = 12;

#[test]
fn a_stream_goes_on_after_a_cut_that_outlasts_the_retries_of_hardware() {
    let Some([python]) = programs::find(["python3"]) else {
        return;
    };
    let lab = Lab::patient("a_stream_goes_on_after_a_cut", Duration::from_secs(240));
    let cluster = lab.up_on(Road::San);
    let control = cluster.directory().join("control.sock");
    let (mut server, mut peer) = connected(&lab, &cluster, &python);

    change(
        &control,
        LinkChange {
            bandwidth_bps: Some(BITS_A_SECOND),
            ..LinkChange::default()
        },
    );
    server.post("drain s");
    peer.post(&format!("send c {BYTES}"));
    wait_until(|| cluster.counter("b", "tx_payload_bytes") > BYTES / 8);
    change(&control, cut());
    let before = lost(&control);
    wait_until(|| lost(&control) >= before + LOST);
    assert!(
        cluster.counter("b", "tx_payload_bytes") < BYTES,
        "the cut came after the last byte"
    );
    assert!(peer.process.is_running() && server.process.is_running());

    assert_eq!(client::heal(&control).expect("mended"), 2);
    assert_eq!(peer.answer(), format!("sent {BYTES}"));
    peer.expect("close c", "closed");
    assert_eq!(server.answer(), format!("received {BYTES} right eof"));
    drop((peer, server));
    cluster.wait_no_connections();
    cluster.assert_road(Road::San, &["a", "b"]);
}

#[test]
fn a_time_limit_of_the_program_ends_what_a_cut_link_holds() {
    let Some([python]) = programs::find(["python3"]) else {
        return;
    };
    let lab = Lab::new("a_time_limit_of_the_program_ends_what_a_cut_link_holds");
    let cluster = lab.up_on(Road::San);
    let control = cluster.directory().join("control.sock");
    let (mut server, mut peer) = connected(&lab, &cluster, &python);
    let delay = LinkChange {
        latency_ns: Some(1000),
        ..LinkChange::default()
    };
    change(&control, delay);
    peer.expect("send c 1000", "sent 1000");
    server.expect("recv s 1000", "received 1000 right more");

    change(&control, cut());
    // Not before: on a busy machine a whole link may take as long.
    peer.expect("patience c 300", "patient for 300");
    peer.expect("send c 1000", "sent 1000");
    // The program sits in a receive: it is told without a call of its own.
    peer.expect("drain c", "received 0 right ETIMEDOUT");
    peer.expect("send c 1", "error EPIPE");
    assert!(server.process.is_running());
}

#[test]
fn an_idle_peer_behind_a_cut_link_is_found_dead_by_probes() {
    let Some([python]) = programs::find(["python3"]) else {
        return;
    };
    let lab = Lab::new("an_idle_peer_behind_a_cut_link_is_found_dead_by_probes");
    let cluster = lab.up_on(Road::San);
    let control = cluster.directory().join("control.sock");
    let (mut server, mut peer) = connected(&lab, &cluster, &python);
    peer.expect("send c 1000", "sent 1000");
    server.expect("recv s 1000", "received 1000 right more");

    change(&control, cut());
    peer.expect("keepalive c 1 1 2", "alive after 1");
    peer.expect("drain c", "received 0 right ETIMEDOUT");
    // The other end never asked.
    server.post("drain s");
    change(&control, mended());
    assert!(server.is_blocked());
    peer.expect("close c", "closed");
}

/// A connection from b to a: server `s`, client `c`.
fn connected(lab: &Lab, cluster: &Cluster<'_>, python: &Path) -> (Peer, Peer) {
    let address = cluster.address("a");
    let mut server = Peer::start(lab, "server", cluster.run("a", [python]));
    server.expect("listen l 0.0.0.0 7100", "listening 0.0.0.0 7100");
    let mut peer = Peer::start(lab, "client", cluster.run("b", [python]));
    let connected = format!("connected {address} 7100");
    peer.expect(&format!("connect c {address} 7100"), &connected);
    assert!(server.ask("accept s l").starts_with("accepted "));
    (server, peer)
}

fn cut() -> LinkChange {
    LinkChange {
        up: Some(false),
        ..LinkChange::default()
    }
}

fn mended() -> LinkChange {
    LinkChange {
        up: Some(true),
        ..LinkChange::default()
    }
}

/// Changes the link between a and b in both directions.
fn change(control: &Path, change: LinkChange) {
    client::change_link(control, ("a", "b"), true, change).expect("changed");
}

/// Packets lost on all links so far.
fn lost(control: &Path) -> u64 {
    let links = client::links(control).expect("the links");
    links.links.iter().map(|row| row.counters.lost).sum()
}
