//! What links cannot govern in loopback mode is told, or refused.

mod harness;

use std::time::Instant;

use nic_emu::control::{Note, client};

use harness::{Cluster, Lab, netns, programs, wait_until};

/// Sends a datagram by each way there is, and says what became of it.
const SENDER: &str = "
import errno, socket, sys
def tell(way, act):
    try: act(); print(way, 'sent')
    except OSError as error: print(way, errno.errorcode[error.errno])
make = lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
other, own = sys.argv[1:]
s = make()
tell('sendto', lambda: s.sendto(b'x', (other, 9)))
tell('sendmsg', lambda: s.sendmsg([b'x'], [], 0, (other, 9)))
tell('connect', lambda: make().connect((other, 9)))
tell('own', lambda: make().sendto(b'x', (own, 9)))
tell('localhost', lambda: make().sendto(b'x', ('127.0.0.1', 9)))
";

fn up<'a>(lab: &'a Lab, policy: &str) -> Cluster<'a> {
    let text = format!(
        "[cluster]\nungoverned = \"{policy}\"\n[[node]]\nname = \"a\"\n[[node]]\nname = \"b\"\n"
    );
    let file = lab.write("cluster.toml", &text);
    lab.up_with(&[file.to_str().expect("a path of ours")])
}

fn send(cluster: &Cluster<'_>, python: &std::path::Path) -> String {
    let [a, b] = ["a", "b"].map(|node| cluster.address(node).to_string());
    let sent = cluster
        .run("a", [python])
        .args(["-c", SENDER, &b, &a])
        .output()
        .expect("it runs");
    assert!(sent.status.success(), "{sent:?}");
    String::from_utf8(sent.stdout).expect("text")
}

#[test]
fn datagrams_to_other_nodes_are_told() {
    let Some([python]) = programs::find(["python3"]) else {
        return;
    };
    let lab = Lab::new("datagrams_to_other_nodes_are_told");
    let cluster = up(&lab, "warn");
    let said = send(&cluster, &python);
    assert_eq!(
        said,
        "sendto sent\nsendmsg sent\nconnect sent\nown sent\nlocalhost sent\n"
    );
    // Two sockets spoke to the other node.
    wait_until(|| cluster.fall_backs("a", "datagrams") == 2);
    let row = || {
        let stat = cluster.stat();
        let rows = stat["ungoverned"].as_array().cloned().unwrap_or_default();
        rows.into_iter().find(|row| row["what"] == "datagrams")
    };
    wait_until(|| row().is_some_and(|row| row["node"] == "a"));
    wait_until(|| {
        cluster
            .up
            .stderr()
            .contains("sent datagrams to other nodes")
    });
}

#[test]
fn datagrams_to_other_nodes_are_refused() {
    let Some([python]) = programs::find(["python3"]) else {
        return;
    };
    let lab = Lab::new("datagrams_to_other_nodes_are_refused");
    let cluster = up(&lab, "refuse");
    let said = send(&cluster, &python);
    assert_eq!(
        said,
        "sendto ENETUNREACH\nsendmsg ENETUNREACH\nconnect ENETUNREACH\nown sent\nlocalhost sent\n"
    );
    wait_until(|| cluster.fall_backs("a", "datagrams") == 2);
}

#[test]
fn a_program_without_the_library_is_named_or_does_not_start() {
    let Some([gcc]) = programs::find(["gcc"]) else {
        return;
    };
    let lab = Lab::new("a_program_without_the_library_is_named_or_does_not_start");
    let program = netns::static_peer(&lab, &gcc);
    for (policy, code) in [("warn", 0), ("refuse", 125)] {
        let cluster = up(&lab, policy);
        let ran = cluster.run("a", [&program]).output().expect("it runs");
        assert_eq!(ran.status.code(), Some(code), "{ran:?}");
        let said = String::from_utf8(ran.stderr).expect("text");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains("past every link"), "{said}");
        assert_eq!(said.contains("ungoverned = \"refuse\""), policy == "refuse");
        let listed = cluster.stat()["ungoverned"].clone();
        let rows = listed.as_array().map_or(0, Vec::len);
        assert_eq!(rows, usize::from(policy == "warn"), "{listed}");
        if policy == "warn" {
            wait_until(|| cluster.up.stderr().contains("runs without the library"));
        }
    }
}

#[test]
fn a_flood_of_notes_does_not_flood_the_log() {
    const NOTES: usize = 2000;
    let lab = Lab::new("a_flood_of_notes_does_not_flood_the_log");
    let cluster = up(&lab, "warn");
    let socket = cluster.directory().join("control.sock");
    let note = |program: &str| {
        let note = Note {
            node: "a".into(),
            program: program.into(),
            pid: 1,
            reason: "static_binary".into(),
        };
        client::note(&socket, note).expect("it is taken");
    };
    let start = Instant::now();
    for _ in 0..NOTES {
        note("flood");
    }
    // Five lines a second, whatever the machine made of a second: the first and the last one may be cut.
    let allowed = 5 * (start.elapsed().as_secs() + 2);
    assert_eq!(cluster.fall_backs("a", "static_binary"), 2000);
    // Where the next second has begun a line comes again, and tells what went before.
    wait_until(|| {
        note("probe");
        cluster.up.stderr().contains("held_back=")
    });
    let said = cluster.up.stderr();
    let lines = said.lines().filter(|line| line.contains("flood")).count();
    assert!(
        u64::try_from(lines).is_ok_and(|lines| (1..=allowed).contains(&lines)),
        "{lines} lines, {allowed} allowed"
    );
}
