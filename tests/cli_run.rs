//! `sanlab run`: it becomes the program, and says what is wrong before.

mod harness;

use harness::{Lab, Process, programs, wait_until};
use nix::sys::signal::Signal;

#[test]
fn the_program_finds_its_place_in_the_environment_and_keeps_its_own() {
    let lab = Lab::new("the_program_finds_its_place_in_the_environment_and_keeps_its_own");
    let cluster = lab.up_with(&["--name", "env"]);
    let script = "echo $SANLAB_CLUSTER $SANLAB_NODE $SANLAB_ADDR $OWN; echo \"$LD_PRELOAD\"";
    let mut command = cluster.run("b", ["sh", "-c", script]);
    command.env("OWN", "kept").env("LD_PRELOAD", "");
    let said = lab.spawn("env", command).succeed();
    let mut lines = said.lines();
    assert_eq!(
        lines.next().unwrap(),
        format!("env b {} kept", cluster.address("b"))
    );
    assert!(
        lines.next().unwrap().ends_with("libsanlab_preload.so"),
        "{said}"
    );
}

#[test]
fn the_channel_is_a_descriptor_just_below_the_limit() {
    let lab = Lab::new("the_channel_is_a_descriptor_just_below_the_limit");
    let cluster = lab.up();
    let script = "ulimit -n; echo $SANLAB_CHANNEL";
    let said = lab
        .spawn("limit", cluster.run("a", ["sh", "-c", script]))
        .succeed();
    let numbers: Vec<u64> = said.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(numbers[1], numbers[0].min(4096) - 1, "{said}");
}

#[test]
fn exit_status_signals_and_process_id_are_the_programs_own() {
    let lab = Lab::new("exit_status_signals_and_process_id_are_the_programs_own");
    let cluster = lab.up();
    let mut program = lab.spawn("exit", cluster.run("a", ["sh", "-c", "exit 42"]));
    assert_eq!(program.wait().code(), Some(42));

    let mut program = lab.spawn(
        "pid",
        cluster.run("a", ["sh", "-c", "echo pid $$; exec cat"]),
    );
    let pid = program.pid();
    program.wait();
    assert_eq!(program.stdout(), format!("pid {pid}\n"));

    let mut program = lab.spawn(
        "signal",
        piped(cluster.run("a", ["sh", "-c", "echo up; exec cat"])),
    );
    program.wait_output("up");
    program.signal(Signal::SIGTERM);
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&program.wait()),
        Some(15)
    );
}

#[test]
fn broken_pipes_end_the_program_as_without_sanlab() {
    let lab = Lab::new("broken_pipes_end_the_program_as_without_sanlab");
    let cluster = lab.up();
    let script = "yes | head -n 1; echo ${PIPESTATUS[0]}";
    let said = lab
        .spawn("pipe", cluster.run("a", ["bash", "-c", script]))
        .succeed();
    assert_eq!(said, "y\n141\n");
}

#[test]
fn failures_before_the_program_have_codes_of_their_own() {
    let lab = Lab::new("failures_before_the_program_have_codes_of_their_own");
    let cluster = lab.up();
    let said = lab.fail(127, &["run", "--node", "a", "--", "sanlab-no-such-program"]);
    assert!(said.contains("`sanlab-no-such-program`"), "{said}");
    let file = lab.write("plain.txt", "text");
    let said = lab.fail(126, &["run", "--node", "a", "--", file.to_str().unwrap()]);
    assert!(said.contains("not an executable"), "{said}");
    let said = lab.fail(125, &["run", "--node", "z", "--", "true"]);
    assert!(said.contains("`z`") && said.contains("a, b, c"), "{said}");
    let said = lab.fail(
        125,
        &["run", "--cluster", "zz", "--node", "a", "--", "true"],
    );
    assert!(
        said.contains("`zz`") && said.contains(&cluster.name),
        "{said}"
    );
    lab.fail(125, &["run", "--", "true"]);
    lab.fail(125, &["run", "--node", "a"]);
}

#[test]
fn a_static_program_runs_on_tcp_with_one_line_and_is_counted() {
    let Some([compiler]) = programs::find(["cc"]) else {
        return;
    };
    let lab = Lab::new("a_static_program_runs_on_tcp_with_one_line_and_is_counted");
    let cluster = lab.up();
    let source = lab.write(
        "static.c",
        "#include <stdio.h>\nint main(void) { puts(\"up\"); fflush(stdout); getchar(); return 7; }\n",
    );
    let program = lab.directory().join("static");
    let built = std::process::Command::new(compiler)
        .args(["-static", "-o"])
        .args([&program, &source])
        .output()
        .unwrap();
    assert!(built.status.success(), "{built:?}");

    let mut program: Process = lab.spawn("static", piped(cluster.run("c", [&program])));
    program.wait_output("up");
    let said = program.stderr();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("static_binary"), "{said}");
    assert_eq!(cluster.fall_backs("c", "static_binary"), 1);
    let ungoverned = cluster.stat()["ungoverned"].clone();
    assert_eq!(ungoverned[0]["pid"], program.pid());
    assert_eq!(ungoverned[0]["node"], "c");
    assert_eq!(program.wait().code(), Some(7));
}

#[test]
fn a_script_runs_with_the_library_through_its_interpreter() {
    let lab = Lab::new("a_script_runs_with_the_library_through_its_interpreter");
    let cluster = lab.up();
    let script = lab.write("script", "#!/bin/sh\necho \"$0 $1 $LD_PRELOAD\"\n");
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let said = lab
        .spawn(
            "script",
            cluster.run("a", [script.as_os_str(), "one".as_ref()]),
        )
        .succeed();
    assert!(
        said.starts_with(&format!("{} one /", script.display())),
        "{said}"
    );
}

#[test]
fn programs_outlive_their_cluster() {
    let lab = Lab::new("programs_outlive_their_cluster");
    let cluster = lab.up();
    let mut program = lab.spawn(
        "survivor",
        piped(cluster.run("a", ["sh", "-c", "echo up; exec cat"])),
    );
    program.wait_output("up");
    lab.succeed(&["down"]);
    program.write("still here\n");
    wait_until(|| program.stdout().contains("still here"));
    assert!(program.wait().success());
}

fn piped(mut command: std::process::Command) -> std::process::Command {
    command.stdin(std::process::Stdio::piped());
    command
}
