//! A device process whose time passes by request: the control request, the command, and who is refused.

use std::process::{Command, Output};

use nic_emu::control::client::{self, ControlError};
use nic_emu::server::DebugConfig;

use super::binary::Emulator;
use super::harness::Cluster;

const VIRTUAL: DebugConfig = DebugConfig {
    validate: false,
    pause_on: None,
    virtual_time: true,
};

fn nic_emu(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nic-emu"));
    command.env_remove("RUST_LOG").args(arguments);
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn virtual_time_stands_but_for_requests() {
    let cluster = Cluster::start_with(VIRTUAL);
    let control = cluster.control();
    assert_eq!(client::advance(&control, 0).unwrap(), 0);
    assert_eq!(client::advance(&control, 1_500).unwrap(), 1_500);
    let clock = || cluster.engine.call(|device| device.now_ns()).unwrap();
    assert_eq!(clock(), 1_500);
    assert_eq!(client::advance(&control, u64::MAX).unwrap(), u64::MAX);
    assert_eq!(clock(), u64::MAX);
}

#[test]
fn real_time_and_an_engine_that_stands_still_take_no_request() {
    let real = Cluster::start();
    let stopped = Cluster::start_with(VIRTUAL);
    client::pause(&stopped.control()).unwrap();
    for cluster in [&real, &stopped] {
        let error = client::advance(&cluster.control(), 5).unwrap_err();
        assert!(matches!(error, ControlError::Refused(_)), "{error}");
    }
    client::resume(&stopped.control()).unwrap();
    assert_eq!(client::advance(&stopped.control(), 5).unwrap(), 5);
}

#[test]
fn ports_of_unknown_nodes_are_refused() {
    let cluster = Cluster::start();
    client::port(&cluster.control(), "b", false).unwrap();
    client::port(&cluster.control(), "b", true).unwrap();
    let error = client::port(&cluster.control(), "c", false).unwrap_err();
    assert!(matches!(error, ControlError::Refused(_)), "{error}");
}

#[test]
fn the_command_lets_time_pass_and_the_suite_sees_what_needs_it() {
    let emulator = Emulator::start_with(&["--virtual-time"]);
    let socket = emulator.socket().to_str().unwrap();
    let output = nic_emu(&["advance", "20ms", socket]);
    assert_eq!(text(&output.stdout), "20000000 ns\n", "{output:?}");
    for bad in ["20", "fast", "-1s", "99999999999999999s"] {
        let output = nic_emu(&["advance", "--", bad, socket]);
        assert_eq!(output.status.code(), Some(2), "{bad}: {output:?}");
    }
    let filter = ["--filter", "rnr.retry"];
    let arguments = [&["conformance", socket, "--nodes", "a"], &filter[..]].concat();
    let output = nic_emu(&arguments);
    let told = text(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(
        told.contains("process, virtual time: ") && told.contains("0 failed, 0 skipped"),
        "{told}"
    );
    // Elsewhere time cannot be moved, and the suite says what it could not show.
    let real = Emulator::start_with(&[]);
    let socket = real.socket().to_str().unwrap();
    let output = nic_emu(&["advance", "1s", socket]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stderr).contains("real"), "{output:?}");
}
