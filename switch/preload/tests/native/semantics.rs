//! Socket semantics that must be the same everywhere: C programs, each with a peer, on plain Linux, on two nodes over kernel TCP
//! through the library, and on two nodes over the SAN.

use std::process::{Command, Stdio};

use crate::emulator::Emulator;
use crate::harness::{Cluster, Scratch, compile, succeed, wait_for};

/// Runs a program in all worlds: it must succeed and print the same. `carried`: its connections to the peer are the SAN's.
fn in_all_worlds(name: &str, carried: bool) {
    let scratch = Scratch::new(name);
    let Some(program) = compile(&scratch, name) else {
        return;
    };
    let plain = succeed(Command::new(&program).stdin(Stdio::null()));
    assert!(!plain.is_empty(), "{name} checks nothing");

    let cluster = Cluster::claim();
    let mut command = cluster.command(1, &program);
    command
        .env("PEER_CONFIG", cluster.config(2))
        .env("PEER_ADDR", cluster.address(2));
    let hooked = succeed(&mut command);
    assert_eq!(plain, hooked, "{name} on plain Linux (left) and over TCP");

    let emulator = Emulator::start(name);
    let san = succeed(&mut emulator.command(&program));
    assert_eq!(plain, san, "{name} on plain Linux (left) and over the SAN");
    if carried {
        wait_for("the end of both programs", || {
            emulator.stat().connections.is_empty().then_some(())
        });
        let stat = emulator.stat();
        for totals in &stat.totals {
            assert!(totals.san_connections > 0, "{stat:#?}");
        }
        // Pumps end by themselves, after the programs.
        wait_for("the end of all queue pairs", || {
            let nodes = emulator.stat().nodes;
            nodes.iter().all(|n| n.counters.qps == 0).then_some(())
        });
    }
}

#[test]
fn every_program_runs_in_a_test() {
    let mut sources = crate::emulator::sources();
    sources.sort();
    assert_eq!(sources, PROGRAMS);
}

/// The programs of the tests below.
const PROGRAMS: [&str; 10] = [
    "cancel",
    "children",
    "descriptors",
    "epoll",
    "exec",
    "longjmp",
    "rights",
    "stdio",
    "stream",
    "waiting",
];

#[test]
fn a_thread_can_be_cancelled_wherever_it_blocks() {
    in_all_worlds("cancel", true);
}

#[test]
fn a_handler_can_jump_out_of_any_call() {
    in_all_worlds("longjmp", true);
}

#[test]
fn forked_and_spawned_children_share_and_close_sockets_as_ever() {
    in_all_worlds("children", true);
}

#[test]
fn duplicates_and_ranges_of_descriptors_behave() {
    in_all_worlds("descriptors", true);
}

#[test]
fn a_stream_of_the_c_library_works_on_a_kernel_socket() {
    in_all_worlds("stdio", false);
}

#[test]
fn sockets_go_on_in_the_next_image_whatever_it_is() {
    in_all_worlds("exec", true);
}

#[test]
fn sockets_go_to_other_processes_with_the_library_and_without() {
    in_all_worlds("rights", true);
}

#[test]
fn waits_sleep_wake_and_keep_errno() {
    in_all_worlds("waiting", true);
}

#[test]
fn epoll_is_level_edge_and_oneshot() {
    in_all_worlds("epoll", true);
}

#[test]
fn bytes_flags_and_ends_of_streams_are_tcps() {
    in_all_worlds("stream", true);
}
