//! `sanlab bench socket` from outside: every mode runs over the SAN and beside kernel sockets, wrong bytes and dead peers are caught, and
//! nothing is left behind.
//!
//! Runs are as short as they can be: what a figure says is not this test's business, that it is one is.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests fail by panicking, as tests do"
)]

mod harness;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use harness::bench::{QUICK, rows, subjects};
use harness::{Lab, kernel, wait_for, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Many short runs, by programs without optimisation, take their time where other tests run.
const PATIENCE: Duration = Duration::from_secs(240);

/// Rows of `bench socket`: each figure is followed by its price.
fn measured(lab: &Lab, arguments: &[&str], count: usize) -> Vec<serde_json::Value> {
    let found = rows(lab, &[&["socket"], arguments].concat());
    assert_eq!(found.len(), 2 * count, "{found:#?}");
    for pair in found.chunks(2) {
        let [figure, price] = pair else {
            panic!("{pair:?}");
        };
        assert_ne!(figure["metric"], "cost");
        assert_eq!(price["metric"], "cost");
        assert_eq!(
            price["name"].as_str(),
            Some(format!("{}: CPU", figure["name"].as_str().unwrap()).as_str())
        );
    }
    found
}

fn name(row: &serde_json::Value) -> &str {
    row["name"].as_str().unwrap()
}

#[test]
fn round_trips_are_measured_in_every_way_of_waiting() {
    let lab = Lab::patient("round_trips_are_measured_in_every_way_of_waiting", PATIENCE);
    for wait in ["blocking", "epoll", "busy"] {
        let found = measured(&lab, &["lat", "--wait", wait, "--size", "1,5000"], 2);
        assert_eq!(subjects(&found), ["san"; 4]);
        assert_eq!(found[0]["baseline"], "tcp");
        assert_eq!(found[0]["loop"], "closed");
        assert_eq!(
            name(&found[2]),
            format!("socket round trip, 5000 B, {wait}")
        );
        assert_eq!(found[1]["unit"], "s/million");
    }
}

#[test]
fn round_trips_over_many_connections_have_some_of_them_active() {
    let lab = Lab::patient(
        "round_trips_over_many_connections_have_some_of_them_active",
        PATIENCE,
    );
    let found = measured(
        &lab,
        &[
            "lat",
            "--connections",
            "3,40",
            "--active",
            "8",
            "--vs",
            "unix",
        ],
        2,
    );
    assert_eq!(found[0]["baseline"], "unix");
    assert!(name(&found[0]).ends_with("3 connections, 3 active"));
    assert!(name(&found[2]).ends_with("40 connections, 8 active"));
    measured(&lab, &["lat", "--connections", "5", "--wait", "busy"], 1);
    measured(&lab, &["lat", "--connections", "5"], 1);
}

#[test]
fn the_patterns_of_requests_are_measured() {
    let lab = Lab::patient("the_patterns_of_requests_are_measured", PATIENCE);
    for (pattern, words) in [
        ("small-large", "behind a small send"),
        ("writev", "header and body by writev"),
    ] {
        let arguments = ["lat", "--pattern", pattern, "--size", "300000"];
        let found = measured(&lab, &arguments, 1);
        assert!(name(&found[0]).ends_with(words), "{found:?}");
        let busy = [&arguments[..], &["--wait", "busy"]].concat();
        measured(&lab, &busy, 1);
    }
}

#[test]
fn pauses_between_messages_are_kept() {
    let lab = Lab::patient("pauses_between_messages_are_kept", PATIENCE);
    let found = measured(&lab, &["lat", "--think", "1us,200us,30ms"], 3);
    assert!(name(&found[2]).ends_with("200us think time"), "{found:?}");
    assert!(name(&found[4]).ends_with("30ms think time"), "{found:?}");
}

#[test]
fn an_open_loop_counts_from_the_time_at_which_a_message_was_due() {
    let lab = Lab::patient(
        "an_open_loop_counts_from_the_time_at_which_a_message_was_due",
        PATIENCE,
    );
    for wait in ["epoll", "busy"] {
        let arguments = [
            "lat",
            "--rate",
            "5000",
            "--wait",
            wait,
            "--connections",
            "2",
        ];
        let found = measured(&lab, &arguments, 1);
        assert_eq!(found[0]["loop"], "open");
        assert!(name(&found[0]).ends_with("open loop at 5000/s"));
    }
}

#[test]
fn a_pause_of_the_server_shows_in_every_message_that_was_due_meanwhile() {
    const LEN: usize = 1 << 20;
    const COUNT: u8 = 50;
    let lab = Lab::patient(
        "a_pause_of_the_server_shows_in_every_message_that_was_due_meanwhile",
        PATIENCE,
    );
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let work = format!(
        r#"{{"mode":"Trips","pattern":"Ping","wait":"Epoll","size":{LEN},"connections":1,"active":1,"think_ns":0,"rate":1000.0}}"#
    );
    let parent = format!("--parent={}", std::process::id());
    let at = listener.local_addr().unwrap().to_string();
    let mut command = lab.sanlab(["__peer", &parent, "--", "ask", &work, &at]);
    command.stdin(Stdio::piped());
    let mut asking = lab.spawn("ask", command);
    let (mut control, _) = listener.accept().unwrap();
    let (mut end, _) = listener.accept().unwrap();
    asking.write(&format!("run {COUNT}\n"));
    let mut order = [0; 9];
    control.read_exact(&mut order).unwrap();
    assert_eq!(order[0], COUNT);
    control.write_all(b"r").unwrap();
    let mut message = vec![0; LEN];
    end.read_exact(&mut message[..1]).unwrap();
    // The first message is on its way, so the times of all others are fixed: the last one is due 49 ms behind it. Most of them do
    // not even fit into the socket before the pause is over.
    std::thread::sleep(Duration::from_millis(100));
    end.read_exact(&mut message[1..]).unwrap();
    end.write_all(&message).unwrap();
    for _ in 1..COUNT {
        end.read_exact(&mut message).unwrap();
        end.write_all(&message).unwrap();
    }
    control.write_all(b"d").unwrap();
    let said = asking.succeed();
    let found: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    let trips = found["trips"].as_array().unwrap();
    let counts = trips.iter().map(|trip| trip[1].as_u64().unwrap());
    assert_eq!(counts.sum::<u64>(), u64::from(COUNT));
    let shortest = trips.iter().map(|trip| trip[0].as_u64().unwrap()).min();
    assert!(shortest.unwrap() > 50_000_000, "{said}");
}

#[test]
fn streams_and_messages_one_way_are_measured() {
    let lab = Lab::patient("streams_and_messages_one_way_are_measured", PATIENCE);
    for wait in ["blocking", "epoll", "busy"] {
        let found = measured(&lab, &["bw", "--wait", wait, "--connections", "1,3"], 2);
        assert_eq!(found[0]["unit"], "B/s");
        assert_eq!(found[1]["unit"], "s/GB");
        let found = measured(&lab, &["rate", "--wait", wait, "--size", "64,7"], 2);
        assert_eq!(found[0]["unit"], "messages/s");
    }
}

#[test]
fn connections_are_made_and_ended() {
    let lab = Lab::patient("connections_are_made_and_ended", PATIENCE);
    let found = measured(&lab, &["conn", "--size", "0,1,1000"], 3);
    assert_eq!(found[0]["unit"], "connections/s");
}

#[test]
fn every_road_can_be_subject_and_has_its_places() {
    let lab = Lab::patient("every_road_can_be_subject_and_has_its_places", PATIENCE);
    let all = "san,hooked-tcp,tcp,unix";
    let found = measured(&lab, &["lat", "--subject", all, "--place", "same-core"], 4);
    let named: Vec<&str> = subjects(&found).into_iter().step_by(2).collect();
    assert_eq!(named, all.split(',').collect::<Vec<_>>());
    assert!(name(&found[0]).ends_with("same core"));
    let found = measured(&lab, &["bw", "--place", "best"], 1);
    assert!(name(&found[0]).ends_with("best place"));
    let text = lab.succeed(&[&["bench", "socket", "lat"], &QUICK[..]].concat());
    for words in ["P99.9", "closed loop", ": CPU", "s/million"] {
        assert!(text.contains(words), "{text}");
    }
}

#[test]
fn what_fits_not_together_is_refused() {
    let lab = Lab::patient("what_fits_not_together_is_refused", PATIENCE);
    for (arguments, words) in [
        (
            &["bw", "--think", "1ms"][..],
            "--think and --sweep is for lat",
        ),
        (&["conn", "--sweep"], "--think and --sweep is for lat"),
        (&["rate", "--pattern", "writev"], "--pattern is for lat"),
        (&["bw", "--rate", "10"], "--rate is for lat"),
        (&["bw", "--active", "2"], "--active is for lat"),
        (
            &["lat", "--active", "2", "--wait", "busy"],
            "needs --wait epoll",
        ),
        (&["lat", "--rate", "10", "--wait", "blocking"], "open loop"),
        (&["lat", "--rate", "10", "--think", "1ms"], "--rate fixes"),
        (&["lat", "--active", "2", "--think", "1ms"], "--think needs"),
        (&["lat", "--size", "0"], "at least one byte"),
        (&["lat", "--think", "7"], "no time"),
        (&["lat", "--connections", "10001"], "10000 connections"),
        (
            &["conn", "--connections", "2"],
            "one connection after the other",
        ),
        (&["lat", "--cpus", "0"], "two or three processors"),
        (&["lat", "--cpus", "0,4095"], "4095"),
    ] {
        let said = lab.fail(2, &[&["bench", "socket"], arguments].concat());
        assert!(said.contains(words), "{said}");
    }
    let said = lab.fail(2, &["bench", "ring", "--place", "best"]);
    assert!(said.contains("for sockets"), "{said}");
}

/// The end that serves, and its address.
fn server(lab: &Lab) -> (Child, String) {
    let work = r#"{"mode":"Trips","pattern":"Ping","wait":"Blocking","size":64,"connections":1,"active":1,"think_ns":0,"rate":null}"#;
    let parent = format!("--parent={}", std::process::id());
    let mut command: Command = lab.sanlab(["__peer", &parent, "--", "serve", work, "127.0.0.1:0"]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let stdout = child.stdout.as_mut().unwrap();
    BufReader::new(stdout).read_line(&mut line).unwrap();
    let at = line.trim().strip_prefix("listening ").expect(&line);
    let at = at.to_owned();
    (child, at)
}

/// Connects, and orders three messages.
fn ordered(at: &str) -> [TcpStream; 2] {
    let mut control = TcpStream::connect(at).unwrap();
    let end = TcpStream::connect(at).unwrap();
    control.write_all(&[3, 0, 0, 0, 0, 0, 0, 0, 1]).unwrap();
    let mut word = [0];
    control.read_exact(&mut word).unwrap();
    assert_eq!(word, *b"r");
    [control, end]
}

#[test]
fn wrong_bytes_end_a_run_and_right_ones_are_answered() {
    let lab = Lab::patient(
        "wrong_bytes_end_a_run_and_right_ones_are_answered",
        PATIENCE,
    );
    let message = |number: u8| {
        let mut message = [0x5a; 64];
        message[..8].copy_from_slice(&[number, 0, 0, 0, 0, 0, 0, 0]);
        message[63] = !number;
        message
    };
    let (mut serving, at) = server(&lab);
    let [mut control, mut end] = ordered(&at);
    for number in 0..3 {
        end.write_all(&message(number)).unwrap();
        let mut reply = [0; 64];
        end.read_exact(&mut reply).unwrap();
        assert_eq!(reply, message(number));
    }
    let mut word = [0];
    control.read_exact(&mut word).unwrap();
    assert_eq!(word, *b"d");
    drop((control, end));
    assert!(serving.wait().unwrap().success());

    let (serving, at) = server(&lab);
    let [_control, mut end] = ordered(&at);
    end.write_all(&message(0)).unwrap();
    // Number 1 is lost.
    end.write_all(&message(2)).unwrap();
    let output = serving.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("wrong bytes in message 1"), "{said}");
}

/// Processes that a process has started, and is not done with.
fn children(pid: u32) -> Vec<u32> {
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let list = list.unwrap_or_default();
    list.split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}

fn is_peer(pid: u32, role: &str) -> bool {
    let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<&[u8]> = words.split(|&byte| byte == 0).collect();
    // Not the `sanlab run` that becomes it.
    words.get(1) == Some(&&b"__peer"[..]) && words.contains(&role.as_bytes())
}

fn assert_nothing_left(lab: &Lab) {
    let entries = std::fs::read_dir(lab.directory()).unwrap().flatten();
    let left = entries.filter(|entry| {
        let name = entry.file_name();
        name.to_string_lossy().starts_with("sanlab-bench")
    });
    assert_eq!(left.count(), 0);
    assert_eq!(kernel::emulators_below(lab.directory()), [0; 0]);
}

#[test]
fn a_killed_end_is_an_error_and_leaves_nothing() {
    let lab = Lab::patient("a_killed_end_is_an_error_and_leaves_nothing", PATIENCE);
    for role in ["serve", "ask"] {
        let command = lab.sanlab(["bench", "socket", "lat", "--seconds", "60"]);
        let mut bench = lab.spawn("bench", command);
        let end = wait_for(|| {
            assert!(bench.is_running(), "{}", bench.stderr());
            children(bench.pid())
                .into_iter()
                .find(|&pid| is_peer(pid, role))
        });
        kill(Pid::from_raw(end.try_into().unwrap()), Signal::SIGKILL).unwrap();
        assert_eq!(bench.wait().code(), Some(1), "{}", bench.stderr());
        assert!(bench.stderr().contains("end of"), "{}", bench.stderr());
        assert_nothing_left(&lab);
    }
}

#[test]
fn ctrl_c_ends_a_run_and_leaves_nothing() {
    let lab = Lab::patient("ctrl_c_ends_a_run_and_leaves_nothing", PATIENCE);
    let command = lab.sanlab(["bench", "socket", "lat", "--seconds", "60"]);
    let mut bench = lab.spawn("bench", command);
    wait_until(|| {
        children(bench.pid())
            .into_iter()
            .any(|pid| is_peer(pid, "ask"))
    });
    bench.signal(Signal::SIGINT);
    assert_eq!(bench.wait().code(), Some(130), "{}", bench.stderr());
    assert_nothing_left(&lab);
}
