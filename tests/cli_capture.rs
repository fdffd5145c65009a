//! `sanlab capture`: files that tshark and our own rules find whole, and readers that stall, die or meet the emulator's end.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: what cannot be unwrapped is the failure of the test"
)]

mod harness;

use std::path::Path;
use std::process::{Command, Stdio};

use harness::{Cluster, Lab, Process, Road, wait_until};
use nix::sys::signal::Signal;
use serde_json::Value;

/// A program on node b that answers what it reads, for ever.
const ECHO: &str = "
import socket
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(('0.0.0.0', 7000))
listener.listen()
while True:
    peer, _ = listener.accept()
    while data := peer.recv(65536):
        peer.sendall(data)
";

/// A program on node a that sends blobs and compares what comes back.
const ASK: &str = "
import socket, sys
peer = socket.create_connection(('b', 7000))
for number in range(int(sys.argv[1])):
    blob = bytes([number % 251]) * 20_000
    peer.sendall(blob)
    left = blob
    while left:
        data = peer.recv(65536)
        assert data == left[:len(data)] and data, number
        left = left[len(data):]
peer.close()
print('whole', flush=True)
";

fn python(code: &str, arguments: &[&str]) -> Vec<String> {
    let mut words = vec!["python3".to_owned(), "-c".into(), code.into()];
    words.extend(arguments.iter().map(|&word| word.to_owned()));
    words
}

fn are_installed() -> bool {
    harness::programs::find(["python3", "tshark"]).is_some()
}

/// A cluster with an echo on node b.
fn stage(lab: &Lab) -> (Cluster<'_>, Process) {
    let cluster = lab.up_on(Road::San);
    let echo = lab.spawn("echo", cluster.run("b", python(ECHO, &[])));
    cluster.wait_listening("b", 7000);
    (cluster, echo)
}

fn talk(cluster: &Cluster<'_>, rounds: &str) {
    let output = cluster.run("a", python(ASK, &[rounds])).output().unwrap();
    assert_eq!(output.stdout, b"whole\n", "{output:?}");
}

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

/// What tshark says to a display filter.
fn tshark(file: &Path, filter: &str, fields: &[&str]) -> Vec<String> {
    let mut command = Command::new("tshark");
    command.arg("-n").arg("-r").arg(file).args(["-Y", filter]);
    command.args(["-T", "fields"]);
    for field in fields {
        command.args(["-e", field]);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// Asserts that a file is whole by tshark and by our own rules; what those found.
fn check(file: &Path) -> Value {
    let wrong = tshark(file, "_ws.malformed or !infiniband", &["frame.number"]);
    assert_eq!(wrong, Vec::<String>::new());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/harness/roce_check.py");
    let output = Command::new("python3").arg(script).arg(file).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_run_without_loss_and_one_with_it_are_sound_to_the_last_frame() {
    if !are_installed() {
        return;
    }
    let lab = Lab::new("a_run_without_loss_and_one_with_it_are_sound_to_the_last_frame");
    let (cluster, _echo) = stage(&lab);
    let file = lab.directory().join("clean.pcapng");
    let running = capture(&lab, &file, &[]);
    talk(&cluster, "20");
    let said = interrupt(running);
    let report = check(&file);
    let frames = report["frames"].as_u64().unwrap();
    assert!(frames > 500, "{report:#}");
    assert!(
        said.contains(&format!("{frames} packets captured\n")),
        "{said}"
    );
    assert!(said.contains("\n0 packets dropped\n"), "{said}");
    assert_eq!(report["icrc_good"], frames, "{report:#}");
    assert!(report["REQ"].as_u64() >= Some(2), "{report:#}");
    // Each node is an interface, and what arrived at one has left the other. (What is on its way to a QP that ends never arrives.)
    let seen = |direction: &str, name: &str| {
        let filter = format!(
            "frame.packet_flags_direction == {direction} and frame.interface_name == {name}"
        );
        tshark(&file, &filter, &["frame.number"]).len()
    };
    for (from, to) in [("a", "b"), ("b", "a")] {
        let (sent, arrived) = (seen("2", from), seen("1", to));
        assert!(arrived > 100 && arrived <= sent, "{sent} {arrived}");
    }

    lab.succeed(&["link", "set", "a", "b", "--loss", "5%", "--duplicate", "5%"]);
    let file = lab.directory().join("lossy.pcapng");
    let running = capture(&lab, &file, &["a", "b"]);
    talk(&cluster, "20");
    // The counters of the link and the frames of the file tell of the same packets.
    interrupt(running);
    let report = check(&file);
    assert!(
        report["lost on the link"].as_u64() > Some(0)
            && report["sent_again"].as_u64() > Some(0)
            && report["arrives twice"].as_u64() > Some(0),
        "{report:#}"
    );
    assert_eq!(report["interfaces"].as_array().unwrap().len(), 2);
    println!("with loss: {report}");
}

#[test]
fn readers_that_stall_or_die_cost_nobody_anything() {
    if !are_installed() {
        return;
    }
    let lab = Lab::new("readers_that_stall_or_die_cost_nobody_anything");
    let (cluster, _echo) = stage(&lab);
    let stalled = lab.directory().join("stalled.pcapng");
    let running = capture(&lab, &stalled, &["--ring", "64 KiB"]);
    running.signal(Signal::SIGSTOP);
    let dead = lab.directory().join("dead.pcapng");
    let mut killed = capture(&lab, &dead, &["a"]);
    talk(&cluster, "5");
    killed.kill();
    talk(&cluster, "5");
    running.signal(Signal::SIGCONT);
    let said = interrupt(running);
    assert!(!said.contains("\n0 packets dropped\n"), "{said}");
    let report = check_dropped(&stalled);
    assert!(report > 0);
    // Nothing of them is left: as many captures as there may be can start.
    let all: Vec<_> = (0..8)
        .map(|number| capture(&lab, &lab.directory().join(format!("{number}.pcapng")), &[]))
        .collect();
    let error = lab.fail(1, &["capture", "-o", "/dev/null"]);
    assert!(error.contains("8 captures run already"), "{error}");
    talk(&cluster, "1");
    for running in all {
        interrupt(running);
    }
}

/// What the statistics of a file say was dropped. Frames are missing, so PSNs have gaps.
fn check_dropped(file: &Path) -> u64 {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/harness/roce_check.py");
    let output = Command::new("python3").arg(script).arg(file).output();
    let report: Value = serde_json::from_slice(&output.unwrap().stdout).unwrap();
    assert_eq!(report["icrc_good"], report["frames"], "{report:#}");
    let rows = report["interfaces"].as_array().unwrap();
    rows.iter()
        .map(|row| row["dropped"].as_u64().unwrap())
        .sum()
}

#[test]
fn a_pipe_a_count_a_filter_and_the_end_of_the_emulator_end_it_whole() {
    if !are_installed() {
        return;
    }
    let lab = Lab::new("a_pipe_a_count_a_filter_and_the_end_of_the_emulator_end_it_whole");
    let (cluster, _echo) = stage(&lab);
    // Into a pipe that tshark reads while it is written.
    let mut piped = lab
        .sanlab(["capture", "-c", "12", "-o", "-", "--filter", "kind!=cm"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let reader = Command::new("tshark")
        .args(["-n", "-r", "-", "-T", "fields", "-e", "infiniband.bth.psn"])
        .stdin(piped.stdout.take().unwrap())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    wait_until(|| {
        talk(&cluster, "1");
        piped.try_wait().unwrap().is_some()
    });
    assert!(piped.wait().unwrap().success());
    let output = reader.wait_with_output().unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap().lines().count(),
        12
    );
    // A filter leaves the rest out.
    let file = lab.directory().join("acks.pcapng");
    let running = capture(&lab, &file, &["a", "--filter", "operation=ACK dir=in"]);
    talk(&cluster, "2");
    interrupt(running);
    assert!(!tshark(&file, "infiniband.bth.opcode == 17", &["frame.number"]).is_empty());
    let others = tshark(&file, "infiniband.bth.opcode != 17", &["frame.number"]);
    assert_eq!(others, Vec::<String>::new());
    for (arguments, says) in [
        (&["--filter", "color=red"][..], "keys are from"),
        (&["z"], "its nodes are a, b, c"),
        (&["--snaplen", "3"], "64..=65535"),
        (&["--ring", "many"], "is no size"),
    ] {
        let all = [&["capture", "-o", "/dev/null"], arguments].concat();
        let error = lab.fail(2, &all);
        assert!(error.contains(says), "{error}");
    }
    let error = lab.fail(1, &["capture", "-o", "/nonexistent/x.pcapng"]);
    assert!(
        error.contains("cannot make /nonexistent/x.pcapng"),
        "{error}"
    );
    // The emulator ends first.
    let file = lab.directory().join("last.pcapng");
    let mut running = capture(&lab, &file, &[]);
    talk(&cluster, "2");
    lab.succeed(&["down"]);
    assert_eq!(running.wait().code(), Some(1));
    assert!(
        running.stderr().contains("is whole"),
        "{}",
        running.stderr()
    );
    check(&file);
}
