//! The control socket from outside.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use nic_emu::control::client::{self, ControlError};
use nic_emu::control::{Note, Stat};
use nic_emu::device::LinkParameters;
use nic_emu::server::{ServeError, Server};

use super::harness::{Cluster, PATIENCE, RawClient, Scratch, config};

pub(crate) fn ask(socket: &Path, line: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(line.as_bytes()).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    reply
}

#[test]
fn ping_tells_who_serves() {
    let cluster = Cluster::start();
    let pong = client::ping(&cluster.control()).unwrap();
    assert_eq!(pong.cluster, "test");
    assert_eq!(pong.emulator_pid, std::process::id());
    let nodes: Vec<_> = pong
        .nodes
        .iter()
        .map(|node| (node.name.as_str(), node.addresses.concat()))
        .collect();
    let wanted = [
        ("a", "127.77.9.1/24".to_owned()),
        ("b", "127.77.9.2/24".to_owned()),
    ];
    assert_eq!(nodes, wanted);
}

#[test]
fn stat_is_one_line_with_the_documented_keys() {
    let cluster = Cluster::start();
    let _client = cluster.client();
    let reply = ask(&cluster.control(), "{\"cmd\":\"stat\"}\n");
    assert_eq!(reply.matches('\n').count(), 1);
    let value: serde_json::Value = serde_json::from_str(&reply).unwrap();
    let mut keys: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
    keys.sort();
    let wanted = [
        "cluster",
        "connections",
        "emulator_pid",
        "fallbacks",
        "findings",
        "nodes",
        "schema",
        "totals",
        "ungoverned",
    ];
    assert_eq!(keys, wanted);
    assert_eq!(value["schema"], 1);
    let counters = value["nodes"][0]["counters"].as_object().unwrap();
    for key in [
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
        assert!(counters[key].is_u64(), "{key}");
    }
    assert_eq!(counters["functions"], 1);
    serde_json::from_str::<Stat>(&reply).unwrap();
}

#[test]
fn a_channel_comes_with_what_the_switch_has_to_know() {
    let cluster = Cluster::start();
    let (config, _fd) = client::channel(&cluster.control(), "b").unwrap();
    assert_eq!((config.cluster.as_str(), config.node_id), ("test", 2));
    assert_eq!(config.addresses, ["127.77.9.2/24"]);
    assert_eq!((config.subnet, config.wildcard_on_san), (Some(9), true));
    assert_eq!(config.nodes.len(), 2);
    assert!(config.providers[0].enabled);
    let error = client::channel(&cluster.control(), "x").unwrap_err();
    assert_eq!(
        error.to_string(),
        "cluster test has no node \"x\"; its nodes are a, b"
    );
}

#[test]
fn notes_are_counted_and_listed() {
    let cluster = Cluster::start();
    let note = |node: &str, reason: &str| Note {
        node: node.into(),
        program: "busy\x1bbox".into(),
        pid: 12,
        reason: reason.into(),
    };
    let control = cluster.control();
    client::note(&control, note("b", "static_binary")).unwrap();
    for bad in [note("c", "static_binary"), note("a", "bad luck")] {
        let error = client::note(&control, bad).unwrap_err();
        assert!(matches!(error, ControlError::Refused(_)), "{error}");
    }
    let stat = client::stat(&control).unwrap();
    assert_eq!(stat.fallbacks.len(), 1);
    let fallback = &stat.fallbacks[0];
    assert_eq!(
        (
            fallback.node.as_str(),
            fallback.reason.as_str(),
            fallback.count
        ),
        ("b", "static_binary", 1)
    );
    let outside = &stat.ungoverned[0];
    assert_eq!((outside.pid, outside.program.as_str()), (12, "busy?box"));
    assert_eq!(
        (outside.node.as_str(), outside.what.as_str()),
        ("b", "static_binary")
    );
}

#[test]
fn shutdown_is_answered_and_leaves_nothing_behind() {
    let mut cluster = Cluster::start();
    let mut device = cluster.client();
    client::shutdown(&cluster.control()).unwrap();
    cluster.join().unwrap();
    assert!(device.reply().is_none(), "clients are hung up on");
    assert!(!cluster.dir().exists());
    let error = client::ping(&cluster.control()).unwrap_err();
    assert!(matches!(error, ControlError::NotRunning { .. }), "{error}");
}

#[test]
fn garbage_is_answered_and_idle_connections_lock_nobody_out() {
    let cluster = Cluster::start();
    let control = cluster.control();
    for line in [
        "\n",
        "x\n",
        "{\"cmd\":\"reboot\"}\n",
        "[]\n",
        "{\"cmd\":\"channel\"}\n",
    ] {
        let reply = ask(&control, line);
        assert!(reply.starts_with("{\"ok\":false,\"error\":\""), "{reply}");
    }
    let idle: Vec<_> = (0..200)
        .map(|n| {
            let mut stream = UnixStream::connect(&control).unwrap();
            if n % 2 == 0 {
                stream.write_all(b"{\"cmd\":").unwrap();
            }
            stream
        })
        .collect();
    client::ping(&control).unwrap();
    drop(idle);
    client::ping(&control).unwrap();
}

#[test]
fn the_sockets_are_private_and_served_once() {
    let cluster = Cluster::start();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&cluster.dir()), 0o700);
    assert_eq!(mode(&cluster.dir().join("a")), 0o700);
    assert_eq!(mode(&cluster.control()), 0o600);
    assert_eq!(mode(&cluster.device("b")), 0o600);
    let again = Server::start(&config(cluster.scratch.path()));
    assert!(matches!(again, Err(ServeError::InUse { .. })));
    // The attempt took nothing away.
    client::ping(&cluster.control()).unwrap();
    RawClient::attached(&cluster.device("b"));
}

#[test]
fn leftovers_of_a_crash_are_replaced() {
    let scratch = Scratch::new();
    let config = config(scratch.path());
    for directory in ["", "a"] {
        std::fs::create_dir_all(config.dir.join(directory)).unwrap();
    }
    for socket in ["control.sock", "a/nic0.sock"] {
        drop(std::os::unix::net::UnixListener::bind(config.dir.join(socket)).unwrap());
    }
    let server = Server::start(&config).unwrap();
    let stop = server.stop_handle();
    stop.stop();
    server.run().unwrap();
    assert!(!config.dir.join("control.sock").exists());
    assert!(!config.dir.join("b").exists());
}

#[test]
fn link_is_set_for_nodes_that_exist_with_possible_parameters() {
    let cluster = Cluster::start();
    let parameters = LinkParameters {
        latency_ns: 1_000_000,
        loss_ppm: 10_000,
        ..LinkParameters::default()
    };
    client::link(&cluster.control(), "a", "b", parameters).unwrap();
    let perfect = "{\"cmd\":\"link\",\"from\":\"a\",\"to\":\"b\"}\n";
    assert_eq!(ask(&cluster.control(), perfect), "{\"ok\":true}\n");
    for (from, to, ppm) in [
        ("a", "nobody", 0),
        ("nobody", "b", 0),
        ("a", "b", 1_000_001),
    ] {
        let wrong = LinkParameters {
            loss_ppm: ppm,
            ..parameters
        };
        let error = client::link(&cluster.control(), from, to, wrong).unwrap_err();
        assert!(matches!(error, ControlError::Refused(_)), "{error}");
    }
    let unknown = "{\"cmd\":\"link\",\"from\":\"a\",\"to\":\"b\",\"parameters\":{\"latency\":5}}\n";
    assert!(ask(&cluster.control(), unknown).starts_with("{\"ok\":false"));
}
