//! `sanlab ss`: states, queues and credits of connections on both roads, and its filters.

mod harness;

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use harness::{Cluster, Lab, Peer, Road, programs, wait_until};
use serde_json::Value;

fn connections(lab: &Lab, words: &[&str]) -> Vec<Value> {
    let mut all = vec!["ss", "--json"];
    all.extend(words);
    let answer = lab.json(&all);
    let rows = answer["connections"].as_array();
    rows.unwrap_or_else(|| panic!("{answer:#}")).clone()
}

/// The one connection of a node.
fn row(lab: &Lab, node: &str) -> Value {
    let rows = connections(lab, &["--node", node]);
    let [row] = rows.as_slice() else {
        panic!("{rows:#?}");
    };
    row.clone()
}

fn pair(lab: &Lab, cluster: &Cluster<'_>, python: &std::path::Path) -> (Peer, Peer) {
    let mut server = Peer::start(lab, "server", cluster.run("a", [python]));
    server.expect("listen l 0.0.0.0 7000", "listening 0.0.0.0 7000");
    cluster.wait_listening("a", 7000);
    let mut client = Peer::start(lab, "client", cluster.run("b", [python]));
    client.ask(&format!("connect c {} 7000", cluster.address("a")));
    server.ask("accept s l");
    (server, client)
}

#[test]
fn queues_states_and_credits_follow_the_connection_on_both_roads() {
    let Some([python]) = programs::find(["python3"]) else {
        return;
    };
    for road in Road::BOTH {
        let lab = Lab::new("queues_states_and_credits_follow_the_connection_on_both_roads");
        let cluster = lab.up_on(road);
        let (mut server, mut client) = pair(&lab, &cluster, &python);
        client.expect("send c 5000", "sent 5000");
        // Sent and not read: with the sender or, once it has arrived, with the receiver; never lost from sight.
        wait_until(|| {
            let queued = |row: &Value, key: &str| row[key].as_u64().unwrap_or(0);
            let (a, b) = (row(&lab, "a"), row(&lab, "b"));
            queued(&a, "recv_queue") + queued(&b, "send_queue") == 5000
        });
        let a = row(&lab, "a");
        assert_eq!(a["state"], "ESTAB", "{a:#}");
        assert_eq!(a["road"], if road == Road::San { "san" } else { "tcp" });
        assert_eq!(a["credits"].is_u64(), road == Road::San, "{a:#}");
        server.expect("recv s 5000", "received 5000 right more");
        wait_until(|| row(&lab, "a")["recv_queue"] == 0 && row(&lab, "b")["send_queue"] == 0);

        client.expect("shutdown c", "shut");
        server.expect("drain s", "received 0 right eof");
        wait_until(|| row(&lab, "a")["state"] == "CLOSE-WAIT");
        wait_until(|| row(&lab, "b")["state"] == "FIN-WAIT");
    }
}

#[test]
fn filters_titles_and_processes_are_as_asked_for() {
    let Some([python]) = programs::find(["python3"]) else {
        return;
    };
    let lab = Lab::new("filters_titles_and_processes_are_as_asked_for");
    let cluster = lab.up_on(Road::San);
    let (_server, client) = pair(&lab, &cluster, &python);
    for (words, count) in [
        (&[][..], 2),
        (&["--node", "b"], 1),
        (&["--node", "c"], 0),
        (&["--port", "7000"], 2),
        (&["--port", "7001"], 0),
        (&["--road", "san"], 2),
        (&["--road", "tcp"], 0),
        (&["--state", "estab"], 2),
        (&["--state", "close-wait"], 0),
    ] {
        assert_eq!(connections(&lab, words).len(), count, "{words:?}");
    }
    let text = lab.succeed(&["ss", "-p", "--node", "b"]);
    assert!(text.starts_with("NODE"), "{text}");
    let process = format!("/{}", client.process.pid());
    assert!(text.contains(&process), "{text}");
    let bare = lab.succeed(&["ss", "-H"]);
    assert_eq!(bare.lines().count(), 2, "{bare}");
    let error = lab.fail(2, &["ss", "--road", "air"]);
    assert!(error.contains("air"), "{error}");
}

/// By a link to it, and a script by itself, as ps(1) and ss(8) show them; not by the file of the link or the interpreter.
#[test]
fn programs_are_named_as_they_were_started() {
    let Some([python]) = programs::find(["python3"]) else {
        return;
    };
    let lab = Lab::new("programs_are_named_as_they_were_started");
    let cluster = lab.up_on(Road::San);
    let link = lab.directory().join("our-server-by-a-longer-name");
    symlink(&python, &link).unwrap();
    let script = lab.directory().join("ask.py");
    let text = format!(
        "#!{} -u\n{}",
        python.display(),
        include_str!("harness/peer.py")
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();

    let mut server = Peer::start(&lab, "server", cluster.run("a", [&link]));
    server.expect("listen l 0.0.0.0 7000", "listening 0.0.0.0 7000");
    cluster.wait_listening("a", 7000);
    let mut client = Peer::lead(&lab, "client", cluster.run("b", [&script]));
    client.ask(&format!("connect c {} 7000", cluster.address("a")));
    server.ask("accept s l");
    assert_eq!(row(&lab, "a")["program"], "our-server-by-a-longer-name");
    assert_eq!(row(&lab, "b")["program"], "ask.py");
}
