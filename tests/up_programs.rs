//! Programs of cluster files: order, readiness, status, restarts, logs, and that nothing of them is left.

mod harness;

use std::path::PathBuf;

use harness::{Cluster, Lab, Process, kernel, wait_for, wait_until};
use nix::sys::signal::Signal;
use serde_json::Value;

/// A server for a test: it listens on a port of its node, and answers each line with its own name.
const SERVER: &str = r#"
import os, socket, sys
listener = socket.create_server(("", 7000))
print("listening", flush=True)
while True:
    stream, _ = listener.accept()
    with stream, stream.makefile("rw") as lines:
        for line in lines:
            lines.write(os.environ["SANLAB_NODE"] + " " + line)
            lines.flush()
"#;

/// A client for a test: asks a node again and again and tells each answer, and the end of the connection.
const CLIENT: &str = r#"
import socket, sys, time
stream = socket.create_connection((sys.argv[1], 7000))
lines = stream.makefile("rw")
number = 0
while True:
    try:
        lines.write(f"{number}\n"); lines.flush()
        answer = lines.readline()
    except OSError as error:
        answer = ""
    if not answer:
        print("end", flush=True)
        break
    print("got", answer.strip(), flush=True)
    number += 1
    time.sleep(0.01)
time.sleep(600)
"#;

/// These start many processes, and other tests run beside them.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(240);

fn file(lab: &Lab, text: &str) -> String {
    lab.write("server.py", SERVER);
    lab.write("client.py", CLIENT);
    let path = lab.write("lab.toml", text);
    path.to_str().expect("a path of text").to_owned()
}

fn sh(script: &str) -> String {
    format!("[\"sh\", \"-c\", {}]", Value::from(script))
}

/// `sanlab up` with programs, in the foreground.
fn up(lab: &Lab, arguments: &[&str]) -> Process {
    lab.spawn("up", lab.sanlab(["up"].iter().chain(arguments)))
}

/// Lets a program go on that waits for a file in its node's state folder.
fn go(lab: &Lab, node: &str) {
    let folder = lab.run_directory().join("default").join(node).join("state");
    std::fs::write(folder.join("go"), "").expect("a state folder");
}

/// Ends with this code; what it said.
fn ends(lab: &Lab, code: i32, arguments: &[&str]) -> String {
    let mut up = up(lab, arguments);
    let status = up.wait();
    let said = up.stdout() + &up.stderr();
    assert_eq!(status.code(), Some(code), "{said}");
    assert_eq!(lab.leftovers(), [""; 0], "{said}");
    said
}

fn programs(lab: &Lab) -> Vec<Value> {
    let answer = lab.json(&["node", "ls", "--json"]);
    answer["programs"].as_array().expect("a list").clone()
}

fn pid_of(lab: &Lab, node: &str) -> Option<u32> {
    let programs = programs(lab);
    let row = programs
        .iter()
        .find(|row| row["node"] == node)
        .expect("a row for the node");
    row["pid"]
        .as_u64()
        .map(|pid| u32::try_from(pid).expect("a process id"))
}

/// The log as text, from the log itself.
fn logs(lab: &Lab) -> String {
    lab.succeed(&["logs"])
}

#[test]
fn a_node_starts_once_those_it_is_after_are_ready_and_the_end_is_its_status() {
    let lab = Lab::patient("a_node_starts_once_those_it_is_after_are_ready", PATIENCE);
    let server = r#"run = ["python3", "-u", "server.py"]
dir = "."
ready = { tcp = 7000 }"#;
    let ask = "exec 2>&1; printf 'hello\\n' | timeout 50 python3 -c 'import socket; s=socket.create_connection((\"srv\",7000)); s.sendall(b\"hello\\n\"); print(s.makefile().readline().strip())'; exit 3";
    let path = file(
        &lab,
        &format!(
            "[[node]]\nname = \"cli\"\nafter = [\"srv\"]\nrun = {}\n[[node]]\nname = \"srv\"\n{server}\n",
            sh(ask)
        ),
    );
    let said = ends(&lab, 3, &["--exit-code-from", "cli", &path]);
    let at = |text: &str| {
        said.find(text)
            .unwrap_or_else(|| panic!("no {text:?} in {said}"))
    };
    assert!(
        at("srv    | python3 ready after") < at("cli    | sh started"),
        "{said}"
    );
    assert!(
        at("cli    | srv hello") < at("cli    | sh ended with 3"),
        "{said}"
    );
    // The server ends behind the client, by SIGTERM.
    assert!(
        at("cli    | sh ended") < at("srv    | python3 ended with 143 (SIGTERM)"),
        "{said}"
    );
    assert!(
        !said.contains('\u{1b}'),
        "colours without a terminal: {said}"
    );
}

#[test]
fn a_status_that_is_asked_for_is_never_zero_without_success() {
    let lab = Lab::patient(
        "a_status_that_is_asked_for_is_never_zero_without_success",
        PATIENCE,
    );
    let one = |run: &str| {
        file(
            &lab,
            &format!(
                "[[node]]\nname = \"a\"\nrun = {run}\n[[node]]\nname = \"idle\"\nrun = [\"sleep\", \"600\"]\n"
            ),
        )
    };
    let from_a = ["--exit-code-from", "a"];
    let ends = |code: i32, more: &[&str]| ends(&lab, code, &[&from_a[..], more].concat());
    ends(0, &[&one("[\"true\"]")]);
    ends(1, &[&one("[\"false\"]")]);
    ends(137, &[&one(&sh("kill -9 $$"))]);
    let said = ends(127, &[&one("[\"sanlab-no-such-program\"]")]);
    assert!(
        said.contains("there is no program `sanlab-no-such-program`"),
        "{said}"
    );
    ends(126, &[&one("[\"/etc/passwd\"]")]);
    let said = ends(124, &["--timeout", "200ms", &one("[\"sleep\", \"600\"]")]);
    assert!(
        said.contains("when the time was over: sleep of node a"),
        "{said}"
    );
    // Success before it was what it had to be is none.
    let early = one("[\"true\"]\nready = { tcp = 7000 }");
    let said = ends(1, &[&early]);
    assert!(
        said.contains("true of node a ended before it was ready"),
        "{said}"
    );
    // It never starts, because what it is after fails.
    let path = file(
        &lab,
        "[[node]]\nname = \"a\"\nafter = [\"b\"]\nrun = [\"true\"]\n[[node]]\nname = \"b\"\nrun = [\"false\"]\nready = { tcp = 7000 }\n",
    );
    let said = ends(1, &[&path]);
    assert!(
        said.contains("false of node b ended with 1 before"),
        "{said}"
    );
    let said = lab.fail(2, &["up", "--exit-code-from", "nobody", &path]);
    assert!(said.contains("no node `nobody` has a program"), "{said}");
}

#[test]
fn programs_that_all_end_end_the_cluster_with_the_first_failure() {
    let lab = Lab::patient(
        "programs_that_all_end_end_the_cluster_with_the_first_failure",
        PATIENCE,
    );
    let path = file(
        &lab,
        "[[node]]\nname = \"w\"\ncount = 3\nrun = [\"sh\", \"-c\", \"echo I am $SANLAB_INDEX of $SANLAB_COUNT in $PWD\"]\n",
    );
    let said = ends(&lab, 0, &[&path]);
    for index in 1..=3 {
        let state = lab.run_directory().join(format!("default/w{index}/state"));
        let line = format!("w{index}     | I am {index} of 3 in {}\n", state.display());
        assert!(said.contains(&line), "{said}");
    }
    let path = file(
        &lab,
        &format!(
            "[[node]]\nname = \"a\"\nready = {{ output = \"up\" }}\nrun = {}\n",
            sh("echo up; while ! test -e go; do sleep 0.02; done; exit 7")
        ),
    );
    let mut up = up(&lab, &[&path]);
    up.wait_output("ready\n");
    go(&lab, "a");
    assert_eq!(up.wait().code(), Some(7), "{}", up.stdout());
}

#[test]
fn what_is_not_ready_in_its_time_ends_the_start() {
    let lab = Lab::patient("what_is_not_ready_in_its_time_ends_the_start", PATIENCE);
    let path = file(
        &lab,
        "[[node]]\nname = \"a\"\nrun = [\"sleep\", \"600\"]\nready = { tcp = 7000, timeout = \"300 ms\" }\n",
    );
    let said = ends(&lab, 1, &["--wait", &path]);
    assert!(
        said.contains("sanlab: sleep of node a was not ready in its time\n"),
        "{said}"
    );
    // What it said is shown to whoever only waited.
    let path = file(
        &lab,
        "[[node]]\nname = \"a\"\nrun = [\"sh\", \"-c\", \"echo said before; exit 1\"]\nready = { tcp = 7000 }\n",
    );
    let said = ends(&lab, 1, &["--wait", &path]);
    assert!(said.contains("a      | said before\n"), "{said}");
    let path = file(
        &lab,
        "[[node]]\nname = \"a\"\nrun = [\"sleep\", \"600\"]\nready = { command = [\"false\"] }\n",
    );
    let said = ends(&lab, 1, &["--wait", "--timeout", "300ms", &path]);
    assert!(
        said.contains("not ready when the time was over: sleep of node a"),
        "{said}"
    );
}

#[test]
fn a_cluster_that_was_waited_for_lives_on_with_its_logs_until_down() {
    let lab = Lab::patient(
        "a_cluster_that_was_waited_for_lives_on_with_its_logs_until_down",
        PATIENCE,
    );
    // A program that goes into the background in a session of its own, as daemons do.
    let daemon = sh("echo one; echo two >&2; setsid sleep 1234 & echo $! > daemon; exec sleep 600");
    let path = file(
        &lab,
        &format!(
            "[[node]]\nname = \"a\"\nready = {{ command = [\"test\", \"-s\", \"daemon\"] }}\nrun = {daemon}\n[[node]]\nname = \"b\"\nrun = [\"sleep\", \"601\"]\n"
        ),
    );
    let said = lab.succeed(&["up", "--wait", "--name", "far", &path]);
    assert!(said.ends_with("ready\n") && !said.contains("one"), "{said}");
    let rows = programs(&lab);
    assert!(
        rows.iter()
            .all(|row| row["ready"] == true && row["state"] == "running"),
        "{rows:?}"
    );
    wait_until(|| {
        let text = logs(&lab);
        text.contains("a      | one\n") && text.contains("a      | two\n")
    });
    let of_b = lab.succeed(&["logs", "b"]);
    assert!(
        of_b.contains("b      | sleep started") && !of_b.contains("one"),
        "{of_b}"
    );
    assert_eq!(lab.succeed(&["logs", "--tail", "1"]).lines().count(), 1);
    let said = lab.fail(1, &["logs", "nobody"]);
    assert!(
        said.contains("there is no node `nobody`; the nodes are a, b"),
        "{said}"
    );
    let table = lab.succeed(&["node", "ls"]);
    assert!(table.contains("sleep"), "{table}");

    let state = lab.run_directory().join("far/a/state/daemon");
    let daemon: u32 = std::fs::read_to_string(state)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let pids: Vec<u32> = ["a", "b"]
        .iter()
        .filter_map(|node| pid_of(&lab, node))
        .chain([daemon])
        .collect();
    assert_eq!(pids.len(), 3);
    // A second cluster beside it, with the same programs.
    lab.succeed(&["up", "--wait", "--name", "near", &path]);
    let mut follow = lab.spawn("logs", lab.sanlab(["logs", "-f", "--cluster", "far"]));
    follow.wait_output("a      | two\n");
    lab.succeed(&["down", "far"]);
    assert!(follow.wait().success());
    assert!(
        follow
            .stdout()
            .contains("b      | sleep ended with 143 (SIGTERM)"),
        "{}",
        follow.stdout()
    );
    for pid in pids {
        assert!(!kernel::is_alive(pid));
    }
    assert_eq!(lab.leftovers(), ["near"]);
    assert!(programs(&lab).iter().all(|row| row["state"] == "running"));
    lab.succeed(&["down", "--now"]);
    assert_eq!(lab.leftovers(), [""; 0]);
}

/// Nodes whose programs do not end when they are asked; the processes of each.
fn stubborn(lab: &Lab, text: &str) -> (Process, Vec<u32>) {
    let path = file(lab, text);
    let mut up = up(lab, &[&path]);
    up.wait_output("ready\n");
    let pids = programs(lab)
        .iter()
        .filter_map(|row| u32::try_from(row["pid"].as_u64()?).ok())
        .collect();
    (up, pids)
}

const STUBBORN: &str = "[[node]]\nname = \"a\"\nstop_timeout = \"1 h\"\nready = { output = \"deaf\" }\n\
    run = [\"sh\", \"-c\", \"trap '' TERM; echo deaf; while :; do sleep 0.05; done\"]\n";

#[test]
fn ctrl_c_ends_in_order_and_a_second_one_at_once() {
    let lab = Lab::patient("ctrl_c_ends_in_order_and_a_second_one_at_once", PATIENCE);
    let chain = "[[node]]\nname = \"a\"\nrun = [\"sleep\", \"600\"]\n[[node]]\nname = \"b\"\nafter = [\"a\"]\nrun = [\"sleep\", \"600\"]\n\
        [[node]]\nname = \"c\"\nafter = [\"b\"]\nrun = [\"sleep\", \"600\"]\n";
    let (mut up, _) = stubborn(&lab, chain);
    up.signal(Signal::SIGINT);
    assert!(up.wait().success());
    let said = up.stdout();
    let at = |node: &str| {
        said.find(&format!("{node}      | sleep ended"))
            .unwrap_or_else(|| panic!("{said}"))
    };
    assert!(at("c") < at("b") && at("b") < at("a"), "{said}");
    assert_eq!(lab.leftovers(), [""; 0]);

    let (mut up, pids) = stubborn(&lab, STUBBORN);
    up.signal(Signal::SIGINT);
    wait_until(|| up.stderr().contains("again to end them at once"));
    assert!(pids.iter().all(|&pid| kernel::is_alive(pid)));
    up.signal(Signal::SIGINT);
    assert!(up.wait().success());
    assert!(!pids.iter().any(|&pid| kernel::is_alive(pid)));
    assert_eq!(lab.leftovers(), [""; 0]);
}

/// The keeper of a foreground `up`, its one child.
fn keeper_of(up: &Process) -> u32 {
    wait_for(|| kernel::children(up.pid()).first().copied())
}

#[test]
fn whoever_is_killed_leaves_no_program() {
    let lab = Lab::patient("whoever_is_killed_leaves_no_program", PATIENCE);
    let text = "[[node]]\nname = \"a\"\nready = { command = [\"test\", \"-s\", \"daemon\"] }\n\
        run = [\"sh\", \"-c\", \"setsid sleep 1234 & echo $! > daemon; exec sleep 600\"]\n";
    for victim in ["up", "keeper", "emulator"] {
        let (mut up, mut pids) = stubborn(&lab, text);
        let state = lab.run_directory().join("default/a/state/daemon");
        pids.push(
            std::fs::read_to_string(state)
                .unwrap()
                .trim()
                .parse()
                .unwrap(),
        );
        let list = lab.json(&["ls", "--json"]);
        let emulator =
            u32::try_from(list["clusters"][0]["emulator_pid"].as_u64().unwrap()).unwrap();
        match victim {
            "up" => up.kill(),
            "keeper" => kernel::kill_9(keeper_of(&up)),
            _ => kernel::kill_9(emulator),
        }
        if victim != "up" {
            assert_eq!(up.wait().code(), Some(1), "{victim}: {}", up.stderr());
        }
        pids.push(emulator);
        wait_until(|| !pids.iter().any(|&pid| kernel::is_alive(pid)));
        wait_until(|| lab.leftovers().is_empty());
    }
}

#[test]
fn a_program_that_fails_is_started_again_as_its_policy_says() {
    let lab = Lab::patient(
        "a_program_that_fails_is_started_again_as_its_policy_says",
        PATIENCE,
    );
    // Its state folder outlives its processes: it succeeds at the third start.
    let count = sh(
        "echo x >> starts; test $(wc -l < starts) -ge 3 && echo third; test $(wc -l < starts) -ge 3",
    );
    let path = file(
        &lab,
        &format!(
            "[[node]]\nname = \"a\"\nrestart = \"on-failure\"\nready = {{ output = \"third\" }}\nrun = {count}\n"
        ),
    );
    let said = ends(&lab, 0, &[&path]);
    assert_eq!(said.matches("a      | sh started").count(), 3, "{said}");
    assert_eq!(
        said.matches("a      | sh ended with 1").count(),
        2,
        "{said}"
    );
    // State folders that were asked for stay.
    let kept = lab.directory().join("kept");
    let path = file(
        &lab,
        &format!("[[node]]\nname = \"a\"\nrun = {}\n", sh("echo mine > file")),
    );
    ends(&lab, 0, &["--state", kept.to_str().unwrap(), &path]);
    assert_eq!(
        std::fs::read_to_string(kept.join("a/file")).unwrap(),
        "mine\n"
    );
    // `always` means success too, and `down` is stronger.
    let path = file(
        &lab,
        "[[node]]\nname = \"a\"\nrestart = \"always\"\nrun = [\"true\"]\n",
    );
    lab.succeed(&["up", "--detach", &path]);
    wait_until(|| programs(&lab)[0]["restarts"].as_u64().unwrap() >= 2);
    lab.succeed(&["down"]);
    assert_eq!(lab.leftovers(), [""; 0]);
}

/// A server on `srv` and its client on `cli`, with events; the foreground `up`, ready, and how often the client got an answer.
fn pair(lab: &Lab, events: &str) -> Process {
    let path = file(
        lab,
        &format!(
            "[cluster]\nsan_connect_limit = \"60 s\"\n[[node]]\nname = \"srv\"\ndir = \".\"\nready = {{ tcp = 7000 }}\nrun = [\"python3\", \"-u\", \"server.py\"]\n\
             [[node]]\nname = \"cli\"\nafter = [\"srv\"]\ndir = \".\"\nready = {{ output = \"got srv 3\" }}\nrun = [\"python3\", \"-u\", \"client.py\", \"srv\"]\n{events}"
        ),
    );
    let mut up = up(lab, &[&path]);
    up.wait_output("ready\n");
    up
}

fn answers(up: &Process) -> usize {
    up.stdout().matches("got srv").count()
}

/// Waits until the client has got answers that it had not before.
fn wait_more_answers(up: &Process) {
    let before = answers(up);
    wait_until(|| answers(up) > before);
}

#[test]
fn the_peers_of_a_killed_node_see_the_end_and_those_of_one_without_power_nothing() {
    let lab = Lab::patient("the_peers_of_a_killed_node_see_the_end", PATIENCE);
    let killed = pair(
        &lab,
        "[[event]]\nat = \"0\"\nnode = \"srv\"\naction = \"kill\"\n",
    );
    wait_until(|| killed.stdout().contains("cli    | end\n"));
    assert!(
        killed.stdout().contains("event: kill srv"),
        "{}",
        killed.stdout()
    );
    drop(end(killed));

    let mut off = pair(&lab, "");
    let server = pid_of(&lab, "srv").unwrap();
    lab.succeed(&["node", "poweroff", "srv"]);
    let rows = lab.json(&["link", "show", "--json"]);
    assert!(
        rows["links"]
            .as_array()
            .unwrap()
            .iter()
            .all(|row| row["parameters"]["up"] == false),
        "{rows}"
    );
    // A new connection meets silence too, on every road: it must not get through while the node is off.
    let mut connect = lab.sanlab(["run", "--node", "cli", "--", "python3", "-c"]);
    connect.arg("import socket\ntry:\n  socket.create_connection(('srv', 7000), timeout=0.5)\nexcept OSError:\n  print('silence')");
    assert_eq!(lab.spawn("connect", connect).succeed(), "silence\n");
    assert!(!off.stdout().contains("end\n"), "{}", off.stdout());
    assert!(kernel::is_alive(server));
    let said = lab.fail(1, &["node", "thaw", "srv"]);
    assert!(said.contains("`restart` switches it on"), "{said}");
    lab.succeed(&["node", "restart", "srv"]);
    // It is another process, which knows nothing of the old connection; its peer learns that now.
    wait_until(|| pid_of(&lab, "srv").is_some_and(|pid| pid != server));
    wait_until(|| off.stdout().contains("cli    | end\n"));
    wait_until(|| programs(&lab)[0]["ready"] == true);
    let rows = lab.json(&["link", "show", "--json"]);
    assert!(
        rows["links"]
            .as_array()
            .unwrap()
            .iter()
            .all(|row| row["parameters"]["up"] == true),
        "{rows}"
    );
    lab.succeed(&["node", "restart", "cli"]);
    wait_more_answers(&off);
    off.signal(Signal::SIGTERM);
    assert!(off.wait().success());
}

/// Ends an `up` in the foreground.
fn end(mut up: Process) -> Process {
    up.signal(Signal::SIGTERM);
    assert!(up.wait().success(), "{}", up.stderr());
    up
}

#[test]
fn a_frozen_node_goes_on_where_it_stood() {
    let lab = Lab::patient("a_frozen_node_goes_on_where_it_stood", PATIENCE);
    let up = pair(&lab, "");
    let server = pid_of(&lab, "srv").unwrap();
    lab.succeed(&["node", "freeze", "srv"]);
    wait_until(|| {
        let status = std::fs::read_to_string(format!("/proc/{server}/status")).unwrap();
        status.contains("State:\tT")
    });
    lab.succeed(&["node", "thaw", "srv"]);
    wait_more_answers(&up);
    assert_eq!(pid_of(&lab, "srv"), Some(server));
    let said = lab.fail(1, &["node", "kill", "nobody"]);
    assert!(
        said.contains("there is no node `nobody`; the nodes are srv, cli"),
        "{said}"
    );
    // What stands still ends all the same.
    lab.succeed(&["node", "freeze", "cli"]);
    end(up);
    assert_eq!(lab.leftovers(), [""; 0]);
}

#[test]
fn artifacts_tell_the_whole_run() {
    let lab = Lab::patient("artifacts_tell_the_whole_run", PATIENCE);
    let to = lab.directory().join("out/run");
    let path = file(
        &lab,
        &format!(
            "[cluster]\nseed = 77\n[[node]]\nname = \"a\"\nrun = {}\n[[node]]\nname = \"b\"\n[[link]]\na = \"a\"\nb = \"b\"\nlatency = \"1 ms\"\n\
             [[event]]\nat = \"10 ms\"\nlink = \"a->b\"\naction = \"down\"\n",
            sh("echo before; while ! test -e go; do sleep 0.02; done; exit 5")
        ),
    );
    let mut up = up(&lab, &["--artifacts", to.to_str().unwrap(), &path]);
    up.wait_output("event: link a->b");
    go(&lab, "a");
    assert_eq!(up.wait().code(), Some(5), "{}", up.stdout());
    let json = |name: &str| -> Value {
        serde_json::from_slice(&std::fs::read(to.join(name)).unwrap()).unwrap()
    };
    let summary = json("summary.json");
    assert_eq!(
        (&summary["seed"], &summary["exit_code"]),
        (&77.into(), &5.into())
    );
    assert_eq!(summary["missing"], Value::Array(Vec::new()), "{summary}");
    assert_eq!(summary["programs"][0]["exit_code"], 5);
    let events = json("events.json");
    let event = &events["events"][0];
    assert_eq!(event["planned_ns"], 10_000_000);
    assert!(
        event["since_ready_ns"].as_u64().unwrap() >= 10_000_000,
        "{event}"
    );
    assert_eq!(event["error"], Value::Null);
    assert_eq!(json("links.json")["links"][0]["parameters"]["up"], false);
    assert_eq!(json("stat.json")["nodes"][0]["name"], "a");
    assert!(json("faults.json")["faults"].is_array());
    let log = std::fs::read_to_string(to.join("logs/a.log")).unwrap();
    assert!(log.contains("before\nsanlab: ended with 5\n"), "{log}");
    // The file is the one that ran.
    let again: PathBuf = to.join("cluster.toml");
    lab.succeed(&["check", again.to_str().unwrap()]);
    // A place that cannot be is found before anything starts.
    let said = lab.fail(1, &["up", "--artifacts", "/proc/nowhere", &path]);
    assert!(said.contains("cannot make /proc/nowhere"), "{said}");
    assert_eq!(lab.leftovers(), [""; 0]);
}

#[test]
fn without_programs_there_is_no_log_and_it_is_said() {
    let lab = Lab::patient("without_programs_there_is_no_log_and_it_is_said", PATIENCE);
    let cluster: Cluster<'_> = lab.up();
    for command in [&["logs"][..], &["node", "ls"], &["node", "kill", "a"]] {
        let said = lab.fail(1, command);
        assert!(said.contains("`run` in a `[[node]]`"), "{said}");
    }
    drop(cluster);
}
