//! `fault`: rules by the command line, against programs that run.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: what cannot be unwrapped is the failure of the test"
)]

mod harness;

use std::process::Command;

use harness::{Cluster, Lab, echo};

/// Sends rounds and checks what comes back; tells the errno with which the connection ends, if it does.
const ASK: &str = "
import errno, socket, sys
peer = socket.socket()
if len(sys.argv) > 2:
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_DEBUG, 1)
peer.connect(('b', 7000))
try:
    for number in range(int(sys.argv[1])):
        left = bytes([number % 251]) * 20_000
        peer.sendall(left)
        while left:
            data = peer.recv(65536)
            assert data and data == left[:len(data)], number
            left = left[len(data):]
    print('whole', flush=True)
except OSError as error:
    print('ended', errno.errorcode[error.errno], flush=True)
";

fn ask(cluster: &Cluster<'_>, arguments: &[&str]) -> Command {
    cluster.run("a", echo::python(ASK, arguments))
}

fn say(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// How often rules have fired.
fn fired(lab: &Lab) -> u64 {
    let told = lab.json(&["fault", "ls", "--json"]);
    let rules = told["faults"].as_array().unwrap();
    rules
        .iter()
        .map(|rule| rule["fired"].as_u64().unwrap())
        .sum()
}

#[test]
fn rules_are_added_listed_and_removed() {
    let lab = Lab::new("rules_are_added_listed_and_removed");
    let _cluster = lab.up();
    assert_eq!(lab.succeed(&["fault", "ls"]), "no fault rules\n");
    let said = lab.succeed(&[
        "fault",
        "add",
        "packet",
        "delay=5ms",
        "--node",
        "a",
        "--opcode",
        "SEND",
        "--chance",
        "1%",
    ]);
    assert_eq!(said, "fault 1\n");
    let added = lab.json(&[
        "fault",
        "add",
        "call",
        "fail=WSAENOBUFS",
        "--call",
        "wsp_bind",
        "--count",
        "1",
        "--json",
    ]);
    assert_eq!((&added["schema"], &added["id"]), (&1.into(), &2.into()));
    let table = lab.succeed(&["fault", "ls"]);
    for part in [
        "delay=5ms",
        "a SEND",
        "1 %",
        "fail=WSAENOBUFS",
        "wsp_bind",
        "at most 1",
        "in force",
    ] {
        assert!(table.contains(part), "{part}: {table}");
    }
    let told = lab.json(&["fault", "ls", "--id", "2", "--json"]);
    assert_eq!(told["faults"].as_array().unwrap().len(), 1);
    assert_eq!(told["faults"][0]["call"], "wsp_bind");
    assert_eq!(lab.succeed(&["fault", "rm", "1"]), "1 fault rule removed\n");
    let said = lab.fail(1, &["fault", "rm", "1"]);
    assert!(said.contains("no fault rule 1; allowed: 2"), "{said}");
    let removed = lab.json(&["fault", "rm", "--all", "--json"]);
    assert_eq!(removed["removed"], 1);
}

#[test]
fn wrong_rules_name_the_field_and_what_it_may_be() {
    let lab = Lab::new("wrong_rules_name_the_field_and_what_it_may_be");
    let _cluster = lab.up();
    for (code, arguments, part) in [
        (
            1,
            &["wqe", "drop"][..],
            "allowed: delay, status, qp_err, nic_reset",
        ),
        (1, &["cable", "drop"], "allowed: wqe, packet"),
        (1, &["wqe", "status=SUCCESS"], "REM_OP_ERR"),
        (1, &["packet", "drop", "--node", "z"], "allowed: a, b, c"),
        (1, &["call", "fail=EPERM"], "WSAENOBUFS"),
        (2, &["packet", "delay"], "delay=5ms"),
        (2, &["packet", "delay=5"], "25 us"),
        (
            2,
            &["packet", "drop", "--nth", "1", "--every", "2"],
            "--every",
        ),
        (2, &["packet", "drop", "--qpn", "0xq"], "0x11"),
    ] {
        let all: Vec<&str> = ["fault", "add"].iter().chain(arguments).copied().collect();
        let said = lab.fail(code, &all);
        assert!(said.contains(part), "{arguments:?}: {said}");
    }
    lab.fail(2, &["fault", "rm"]);
    assert_eq!(lab.succeed(&["fault", "ls"]), "no fault rules\n");
}

#[test]
fn streams_arrive_whole_over_packets_that_rules_harm() {
    let lab = Lab::new("streams_arrive_whole_over_packets_that_rules_harm");
    if !echo::is_installed() {
        return;
    }
    let cluster = lab.up_on(harness::Road::San);
    let _server = echo::start(&lab, &cluster);
    for action in ["drop", "duplicate", "corrupt", "delay=200us"] {
        lab.succeed(&["fault", "add", "packet", action, "--every", "23"]);
    }
    lab.succeed(&[
        "fault", "add", "receive", "rnr", "--node", "b", "--every", "17",
    ]);
    lab.succeed(&[
        "fault",
        "add",
        "wqe",
        "delay=300us",
        "--node",
        "a",
        "--every",
        "9",
    ]);
    assert_eq!(say(&mut ask(&cluster, &["20"])), "whole\n");
    let told = lab.json(&["fault", "ls", "--json"]);
    for rule in told["faults"].as_array().unwrap() {
        assert!(rule["fired"].as_u64().unwrap() > 0, "{rule:#}");
    }
    assert!(cluster.counter("a", "retransmitted_packets") > 0);
    assert!(!told["log"].as_array().unwrap().is_empty());
}

#[test]
fn what_ends_a_connection_ends_that_one_alone() {
    let lab = Lab::new("what_ends_a_connection_ends_that_one_alone");
    if !echo::is_installed() {
        return;
    }
    let cluster = lab.up_on(harness::Road::San);
    let _server = echo::start(&lab, &cluster);
    for arguments in [
        &["wqe", "status=REM_OP_ERR"][..],
        &["wqe", "qp_err"],
        &["completion", "cq_overrun"],
        &["wqe", "nic_reset"],
    ] {
        // The third send of node a: the stream is under way by then.
        let mut all = vec!["fault", "add"];
        all.extend(arguments);
        all.extend(["--node", "a", "--nth", "3"]);
        lab.succeed(&all);
        let said = say(&mut ask(&cluster, &["20"]));
        assert_eq!(said, "ended ECONNRESET\n", "{arguments:?}");
        assert_eq!(fired(&lab), 1, "{arguments:?}");
        lab.succeed(&["fault", "rm", "--all"]);
        // The same server serves the next connection as before.
        assert_eq!(say(&mut ask(&cluster, &["3"])), "whole\n", "{arguments:?}");
    }
}

#[test]
fn provider_calls_that_fail_send_the_connection_over_tcp_with_its_reason() {
    let lab = Lab::new("provider_calls_that_fail_send_the_connection_over_tcp_with_its_reason");
    if !echo::is_installed() {
        return;
    }
    let cluster = lab.up_on(harness::Road::San);
    let _server = echo::start(&lab, &cluster);
    for (call, reason) in [
        ("wsp_socket", "sp_socket"),
        ("wsp_bind", "sp_bind"),
        ("wsp_set_sock_opt", "sp_setsockopt"),
        ("wsp_event_select", "sp_event_select"),
        ("wsp_connect", "sp_connect"),
    ] {
        // A program's first socket asks the NIC for its addresses and is none of a connection.
        let nth = if call == "wsp_socket" { "2" } else { "1" };
        let code = "fail=WSAENOBUFS";
        lab.succeed(&[
            "fault", "add", "call", code, "--call", call, "--node", "a", "--nth", nth,
        ]);
        assert_eq!(
            say(&mut ask(&cluster, &["2", "debug"])),
            "whole\n",
            "{call}"
        );
        assert_eq!(fired(&lab), 1, "{call}");
        let stat = cluster.stat();
        let fallbacks = stat["fallbacks"].as_array().unwrap();
        let row = fallbacks.iter().find(|row| row["reason"] == reason);
        assert_eq!(
            row.unwrap_or_else(|| panic!("{call}: {stat:#}"))["count"],
            1
        );
        lab.succeed(&["fault", "rm", "--all"]);
    }
}
