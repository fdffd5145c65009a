//! What helps to find faults, over the control socket and as commands of the binary.

use std::path::Path;
use std::process::{Command, Output};

use nic_emu::control::client::{self, ControlError};
use nic_emu::control::{self, text};
use nic_emu::device::{PauseOn, Rule, Topic};
use nic_emu::server::DebugConfig;
use ring_proto::admin::AdminOp;

use super::harness::{Cluster, RawClient, eventually};
use super::rings::Admin;

const VALIDATE: DebugConfig = DebugConfig {
    validate: true,
    pause_on: None,
    virtual_time: false,
};

/// Rings an admin doorbell that cannot be true.
fn lie(admin: &mut Admin) {
    admin.producer += 1000;
    admin.ring();
    admin.kick();
}

#[test]
fn findings_rows_and_dumps_come_over_the_control_socket() {
    let cluster = Cluster::start_with(VALIDATE);
    let mut admin = Admin::start(&cluster);
    lie(&mut admin);
    let look = || client::inspect(&cluster.control(), &[]).unwrap().inspection;
    let found = eventually("found", look, |found| !found.findings.is_empty());
    let finding = &found.findings[0];
    assert_eq!(finding.rule, Rule::DbPastQueue.id());
    assert_eq!(
        (finding.queue.as_str(), finding.node.as_str()),
        ("admin", "a")
    );
    let function = &found.functions[0];
    assert_eq!((function.state.as_str(), function.windows), ("failed", 1));
    // The socket's other end is this very process.
    assert_eq!(function.pid, i32::try_from(std::process::id()).ok());
    assert!(found.engine.validate && found.engine.paused.is_none());

    let stat = client::stat(&cluster.control()).unwrap();
    assert_eq!(stat.findings, found.findings);
    let recorded = client::recorder(&cluster.control(), Some(function.function)).unwrap();
    let reason = recorded.dumps[0].reason.as_deref().unwrap();
    assert!(reason.contains("DOORBELL_OUT_OF_RANGE"), "{reason}");
    assert_eq!(recorded.live[0].function, function.function);
    assert!(text::recorder(&recorded).contains("DOORBELL_OUT_OF_RANGE"));
    let none = client::recorder(&cluster.control(), Some(99)).unwrap();
    assert!(none.live.is_empty() && none.dumps.is_empty());
}

#[test]
fn without_validation_there_are_no_findings() {
    let cluster = Cluster::start();
    let mut admin = Admin::start(&cluster);
    lie(&mut admin);
    let look = || {
        client::inspect(&cluster.control(), &[Topic::Functions])
            .unwrap()
            .inspection
    };
    eventually("failed", look, |found| found.functions[0].state == "failed");
    assert_eq!(client::stat(&cluster.control()).unwrap().findings, []);
}

#[test]
fn an_engine_that_stands_still_serves_by_steps_and_goes_on() {
    let cluster = Cluster::start();
    let control = cluster.control();
    let mut admin = Admin::start(&cluster);
    for refused in [client::step(&control), client::resume(&control)] {
        assert!(
            matches!(refused, Err(ControlError::Refused(_))),
            "{refused:?}"
        );
    }
    let paused = client::pause(&control).unwrap();
    assert_eq!(paused.paused.as_deref(), Some("asked to"));
    admin.post(AdminOp::IDENTIFY);
    admin.kick();
    // Registers are answered meanwhile, and nothing else is.
    assert_eq!(
        admin.client.register(ring_proto::regs::MAGIC),
        ring_proto::regs::MAGIC_VALUE
    );
    assert!(!admin.is_completed());
    let steps = || client::step(&control).unwrap().served;
    eventually("stepped", steps, |&served| served > 0);
    assert!(admin.is_completed());
    assert_eq!(client::resume(&control).unwrap().paused, None);
    admin.post(AdminOp::IDENTIFY);
    admin.kick();
    assert_eq!(admin.completion().status, 0);
}

#[test]
fn an_engine_pauses_on_an_error_and_others_can_still_be_looked_at() {
    let cluster = Cluster::start_with(DebugConfig {
        validate: false,
        pause_on: Some(PauseOn::Error),
        ..DebugConfig::default()
    });
    let mut admin = Admin::start(&cluster);
    lie(&mut admin);
    let look = || {
        client::inspect(&cluster.control(), &[Topic::Findings])
            .unwrap()
            .inspection
            .engine
    };
    let engine = eventually("paused", look, |engine| engine.paused.is_some());
    assert_eq!(engine.pause_on.as_deref(), Some("error"));
    assert!(engine.paused.unwrap().contains("DOORBELL_OUT_OF_RANGE"));
    let mut other = Admin::start(&cluster);
    other.post(AdminOp::IDENTIFY);
    other.kick();
    client::resume(&cluster.control()).unwrap();
    assert_eq!(other.completion().status, 0);
}

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nic-emu"))
        .args(arguments)
        .output()
        .unwrap()
}

fn answer(arguments: &[&str]) -> String {
    let output = run(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// What the commands say about a device at `place` whose one client lied.
fn commands_tell(place: &str) {
    let look = || answer(&["inspect", "findings", place]);
    let text = eventually("found", look, |text| text.contains("V-DB-PAST-QUEUE"));
    assert!(
        text.contains("instead: ") && text.contains("SUPPRESSED"),
        "{text}"
    );
    let text = answer(&["inspect", place]);
    for title in [
        "functions:",
        "queue pairs:",
        "completion queues:",
        "memory regions:",
        "windows:",
        "doorbells:",
        "findings:",
    ] {
        assert!(text.contains(title), "{text}");
    }
    let json = answer(&["inspect", "functions", "--json", place]);
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value["schema"], 1);
    assert_eq!(value["functions"][0]["state"], "failed");
    assert_eq!(value["findings"].as_array().map(Vec::len), Some(0));
    let text = answer(&["inspect", "recorder", place]);
    assert!(text.contains("kept at") && text.contains("live"), "{text}");
    assert_eq!(answer(&["pause", place]), "served 0, paused (asked to)\n");
    assert_eq!(answer(&["step", place]), "served 0, paused (stepped)\n");
    assert_eq!(answer(&["continue", place]), "running\n");
    let unknown = run(&["inspect", "nonsense", place]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&unknown.stderr).contains("doorbells, limits, findings, recorder")
    );
    let refused = run(&["step", place]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("not paused"));
}

#[test]
fn commands_reach_a_cluster_by_its_directory_and_by_its_device_sockets() {
    let cluster = Cluster::start_with(VALIDATE);
    let mut admin = Admin::start(&cluster);
    lie(&mut admin);
    let directory = cluster.dir();
    commands_tell(directory.to_str().unwrap());
    assert_eq!(control::locate(&directory), cluster.control());
    assert_eq!(control::locate(&cluster.device("a")), cluster.control());
    assert_eq!(control::locate(&cluster.control()), cluster.control());
}

#[test]
fn commands_reach_a_device_alone_by_its_socket() {
    let emulator = super::binary::Emulator::start_with(&["--validate"]);
    let mut admin = Admin::over(RawClient::attached(emulator.socket()));
    lie(&mut admin);
    commands_tell(emulator.socket().to_str().unwrap());
    let socket = control::beside(emulator.socket());
    assert!(socket.exists());
    drop(emulator);
    let gone = run(&["inspect", socket.to_str().unwrap()]);
    assert_eq!(gone.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&gone.stderr).contains("no emulator serves"));
}

#[test]
fn rules_are_listed_and_a_wrong_one_is_named() {
    let text = answer(&["rules"]);
    for rule in Rule::ALL {
        assert!(text.contains(rule.id()), "{text}");
    }
    let wrong = run(&["--socket", "x", "--pause-on", "V-NONSENSE"]);
    assert_eq!(wrong.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(
        stderr.contains("V-NONSENSE") && stderr.contains("nic-emu rules"),
        "{stderr}"
    );
    let help = answer(&["inspect", "--help"]);
    assert!(
        help.contains("Examples:") && help.contains("findings"),
        "{help}"
    );
    assert!(!Path::new("x.ctl").exists());
}
