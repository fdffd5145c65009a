//! `sanlab run --explain`: the roads of a run, told at its end, and a parent that is not in the way.

mod harness;

use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;

use harness::{Cluster, Lab, Process, programs, wait_until};
use nix::sys::signal::Signal;
use serde_json::Value;

const PORT: u16 = 5555;

/// Answers `count` connections, each in a child.
const SERVER: &str = "
import os, socket, sys
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('', 5555))
s.listen()
for _ in range(int(sys.argv[1])):
    c, _ = s.accept()
    if os.fork() == 0:
        c.sendall(c.recv(100))
        os._exit(0)
    c.close()
while True:
    try:
        os.wait()
    except ChildProcessError:
        break
";

/// Asks twice.
const CLIENT: &str = "
import socket, sys
for _ in range(2):
    s = socket.create_connection((sys.argv[1], 5555))
    s.sendall(b'hello')
    assert s.recv(100) == b'hello'
    s.close()
";

fn run(lab: &Lab, cluster: &Cluster<'_>, node: &str, explain: &str, program: &[&str]) -> Process {
    let arguments = [
        "run",
        "--cluster",
        &cluster.name,
        "--node",
        node,
        explain,
        "--",
    ];
    let mut command = lab.sanlab(arguments.iter().chain(program));
    command.stdin(Stdio::piped());
    lab.spawn("explained", command)
}

fn row<'a>(told: &'a Value, what: &str, road: &str) -> Option<&'a Value> {
    let rows = told["roads"].as_array().expect("a list of roads");
    rows.iter()
        .find(|row| row["what"] == what && row["road"] == road)
}

#[test]
fn roads_are_told_with_their_reasons_also_of_forked_and_executed_programs() {
    let Some([python]) = programs::find(["python3"]) else {
        return;
    };
    let python = python.to_str().unwrap();
    let lab = Lab::new("roads_are_told_with_their_reasons_also_of_forked_and_executed_programs");
    let cluster = lab.up();
    let server = lab.write("server.py", SERVER);
    let client = lab.write("client.py", CLIENT);
    let (server, client) = (server.to_str().unwrap(), client.to_str().unwrap());
    let file = lab.directory().join("roads.json");
    let explain = format!("--explain=json:{}", file.display());
    let mut serving = run(&lab, &cluster, "b", &explain, &[python, server, "6"]);
    cluster.wait_listening("b", PORT);

    // A child, an image of its own, and the road to itself, which is TCP's.
    let script = format!("{python} {client} b; exec {python} {client} b");
    let mut asking = run(
        &lab,
        &cluster,
        "a",
        "--explain=json",
        &["sh", "-c", &script],
    );
    assert!(asking.wait().success(), "{}", asking.stderr());
    let told: Value = serde_json::from_str(&asking.stderr()).unwrap();
    assert_eq!(
        (&told["exit_code"], &told["signal"]),
        (&Value::from(0), &Value::Null)
    );
    let san = row(&told, "connect", "san").unwrap_or_else(|| panic!("{told:#}"));
    assert_eq!(san["count"], 4, "{told:#}");
    assert_eq!(san["address"], format!("{}:{PORT}", cluster.address("b")));
    assert_eq!(
        (&san["tx_bytes"], &san["rx_bytes"]),
        (&Value::from(20), &Value::from(20))
    );

    let mut own = run(
        &lab,
        &cluster,
        "b",
        "--explain",
        &[python, client, "127.0.0.1"],
    );
    assert!(own.wait().success(), "{}", own.stderr());
    let text = own.stderr();
    let line = text.lines().find(|line| line.contains("connect"));
    let line = line.unwrap_or_else(|| panic!("{text}"));
    assert!(line.contains("tcp") && line.contains("loopback"), "{text}");

    assert!(serving.wait().success(), "{}", serving.stderr());
    assert_eq!(serving.stderr(), "");
    let told: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let listener = row(&told, "listen", "san").unwrap_or_else(|| panic!("{told:#}"));
    assert_eq!(listener["count"], 1, "{told:#}");
    let san = row(&told, "accept", "san").unwrap_or_else(|| panic!("{told:#}"));
    // Each was accepted by the parent and served by a child.
    assert_eq!(
        (&san["count"], &san["inherited"]),
        (&Value::from(4), &Value::from(4))
    );
    assert_eq!(san["tx_bytes"], 20, "{told:#}");
    let tcp = row(&told, "accept", "tcp").unwrap_or_else(|| panic!("{told:#}"));
    assert_eq!(tcp["count"], 2, "{told:#}");
}

#[test]
fn what_a_killed_program_had_reported_is_told() {
    let Some([python]) = programs::find(["python3"]) else {
        return;
    };
    let lab = Lab::new("what_a_killed_program_had_reported_is_told");
    let cluster = lab.up();
    let server = lab.write("server.py", SERVER);
    let client = lab.write("client.py", CLIENT);
    let (python, server) = (python.to_str().unwrap(), server.to_str().unwrap());
    let _serving = run(&lab, &cluster, "b", "--explain", &[python, server, "2"]);
    cluster.wait_listening("b", PORT);
    let script = format!("{python} {} b; kill -KILL $$", client.display());
    let mut asking = run(
        &lab,
        &cluster,
        "a",
        "--explain=json",
        &["sh", "-c", &script],
    );
    assert_eq!(asking.wait().signal(), Some(9), "{}", asking.stderr());
    let told: Value = serde_json::from_str(&asking.stderr()).unwrap();
    assert_eq!(
        (&told["exit_code"], &told["signal"]),
        (&Value::Null, &Value::from("SIGKILL"))
    );
    let san = row(&told, "connect", "san").unwrap_or_else(|| panic!("{told:#}"));
    assert_eq!(
        (&san["count"], &san["tx_bytes"]),
        (&Value::from(2), &Value::from(10))
    );
}

#[test]
fn exit_code_signals_and_standard_input_are_the_programs() {
    let lab = Lab::new("exit_code_signals_and_standard_input_are_the_programs");
    let cluster = lab.up();
    let shell = |script: &str| run(&lab, &cluster, "a", "--explain", &["sh", "-c", script]);

    assert_eq!(shell("exit 42").wait().code(), Some(42));
    assert_eq!(shell("kill -TERM $$").wait().signal(), Some(15));
    assert_eq!(shell("kill -SEGV $$").wait().signal(), Some(11));

    let mut echo = shell("cat");
    echo.write("to the program\n");
    assert!(echo.wait().success());
    assert_eq!(echo.stdout(), "to the program\n");

    let mut trapping =
        shell("trap 'echo got it; exit 3' USR1; echo up; while :; do read line; done");
    trapping.wait_output("up");
    trapping.signal(Signal::SIGUSR1);
    wait_until(|| trapping.stdout().contains("got it"));
    assert_eq!(trapping.wait().code(), Some(3));
    assert_eq!(trapping.stdout(), "up\ngot it\n");

    let said = lab.fail(
        127,
        &[
            "run",
            "--node",
            "a",
            "--explain",
            "--",
            "sanlab-no-such-program",
        ],
    );
    assert!(said.contains("sanlab-no-such-program"), "{said}");
    let said = lab.fail(125, &["run", "--node", "a", "--explain=yaml", "--", "true"]);
    assert!(said.contains("neither `text` nor `json`"), "{said}");
    let said = lab.fail(
        125,
        &[
            "run",
            "--node",
            "a",
            "--explain=json:/nonexistent/x",
            "--",
            "true",
        ],
    );
    assert!(said.contains("/nonexistent/x"), "{said}");
}

#[test]
fn a_stopped_program_is_a_stopped_job_and_goes_on() {
    let lab = Lab::new("a_stopped_program_is_a_stopped_job_and_goes_on");
    let cluster = lab.up();
    let script = "kill -STOP $$; echo on";
    let mut stopped = run(&lab, &cluster, "a", "--explain", &["sh", "-c", script]);
    let status = format!("/proc/{}/stat", stopped.pid());
    let is_stopped = || {
        let text = std::fs::read_to_string(&status).unwrap();
        text.rsplit_once(") ").unwrap().1.starts_with('T')
    };
    wait_until(is_stopped);
    stopped.signal(Signal::SIGCONT);
    assert!(stopped.wait().success(), "{}", stopped.stderr());
    assert_eq!(stopped.stdout(), "on\n");
}

#[test]
fn a_killed_parent_takes_its_program_along() {
    let lab = Lab::new("a_killed_parent_takes_its_program_along");
    let cluster = lab.up();
    let mut parent = run(
        &lab,
        &cluster,
        "a",
        "--explain",
        &["sh", "-c", "echo $$; exec cat"],
    );
    parent.wait_output("\n");
    let program = format!("/proc/{}", parent.stdout().trim());
    assert!(std::path::Path::new(&program).exists());
    // The pipe of its standard input stays open meanwhile.
    parent.signal(Signal::SIGKILL);
    wait_until(|| {
        let state = std::fs::read_to_string(format!("{program}/stat")).unwrap_or_default();
        state.is_empty() || state.contains(") Z")
    });
    parent.wait();
}

#[test]
fn the_terminal_reaches_the_program_once() {
    /// Types Ctrl-C once the program is up, and shows what it said and how it ended.
    const TYPIST: &str = "
import os, pty, sys
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:])
said = b''
typed = False
while True:
    try:
        piece = os.read(terminal, 1000)
    except OSError:
        break
    if not piece:
        break
    said += piece
    if b'up' in said and not typed:
        typed = True
        os.write(terminal, b'\\x03')
_, status = os.waitpid(pid, 0)
print(said.count(b'interrupted'), os.waitstatus_to_exitcode(status))
";
    let Some([python]) = programs::find(["python3"]) else {
        return;
    };
    let lab = Lab::new("the_terminal_reaches_the_program_once");
    let cluster = lab.up();
    let typist = lab.write("typist.py", TYPIST);
    let mut command = std::process::Command::new(python);
    let script = "trap 'echo interrupted; exit 4' INT; echo up; while :; do read line; done";
    command
        .arg(typist)
        .arg(env!("CARGO_BIN_EXE_sanlab"))
        .args([
            "run",
            "--cluster",
            &cluster.name,
            "--node",
            "a",
            "--explain",
            "--",
            "bash",
            "-c",
        ])
        .arg(script)
        .env("SANLAB_RUN_DIR", lab.run_directory());
    assert_eq!(lab.spawn("typist", command).succeed(), "1 4\n");
}

#[test]
fn a_program_without_the_library_is_told_with_its_reason() {
    let Some([compiler]) = programs::find(["cc"]) else {
        return;
    };
    let lab = Lab::new("a_program_without_the_library_is_told_with_its_reason");
    let cluster = lab.up();
    let source = lab.write("static.c", "int main(void) { return 0; }\n");
    let program = lab.directory().join("static");
    let built = std::process::Command::new(compiler)
        .args(["-static", "-o"])
        .args([&program, &source])
        .output()
        .unwrap();
    assert!(built.status.success(), "{built:?}");
    let program = program.to_str().unwrap();
    for command in [vec![program], vec!["sh", "-c", program]] {
        let file = lab.directory().join("roads.json");
        let explain = format!("--explain=json:{}", file.display());
        let mut process = run(&lab, &cluster, "a", &explain, &command);
        assert!(process.wait().success(), "{}", process.stderr());
        let told: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
        let row = row(&told, "program", "tcp").unwrap_or_else(|| panic!("{told:#}"));
        assert_eq!(
            (&row["program"], &row["reason"]),
            (&Value::from("static"), &Value::from("static_binary"))
        );
    }
}
