//! Readiness: what `poll`, `select` and `epoll` show of SAN connections is what they show of kernel TCP's, line by line of one program
//! run natively and over the SAN; and waiting costs nothing.

#[path = "../harness/mod.rs"]
mod harness;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use harness::{Cluster, Lab, Road, programs, wait_until};

/// Compiles a program, `None` after a message without a compiler.
fn compile(lab: &Lab, name: &str, source: &str) -> Option<PathBuf> {
    let [gcc] = programs::find(["gcc"])?;
    let source = lab.write(&format!("{name}.c"), source);
    let program = lab.directory().join(name);
    let mut compile = Command::new(gcc);
    compile
        .args(["-O1", "-Wall", "-Werror", "-pthread", "-o"])
        .arg(&program)
        .arg(source);
    lab.spawn("gcc", compile).succeed();
    Some(program)
}

/// A cluster whose nodes speak to themselves over the SAN.
fn up(lab: &Lab) -> Cluster<'_> {
    let text =
        "[cluster]\nsan_connect_limit = \"60 s\"\nloopback = \"san\"\n[[node]]\nname = \"a\"\n";
    let file = lab.write("cluster.toml", text);
    lab.up_with(&[file.to_str().expect("an ASCII path")])
}

#[test]
fn one_program_sees_the_same_natively_and_over_the_san() {
    let lab = Lab::new("one_program_sees_the_same_natively_and_over_the_san");
    let Some(program) = compile(&lab, "readiness", include_str!("readiness.c")) else {
        return;
    };
    let native = lab.spawn("native", Command::new(&program)).succeed();
    let cases = native.lines().filter_map(|line| line.split(':').next());
    let cases: std::collections::BTreeSet<&str> = cases.collect();
    assert!(cases.len() >= 15, "{cases:?}");
    let cluster = up(&lab);
    let over_the_san = lab
        .spawn("san", cluster.run("a", [program.as_os_str()]))
        .succeed();
    for (expected, seen) in native.lines().zip(over_the_san.lines()) {
        assert_eq!(seen, expected, "in the right order:\n{over_the_san}");
    }
    assert_eq!(over_the_san, native);
    cluster.wait_no_connections();
    cluster.assert_road(Road::San, &["a"]);
    // One connect to nobody, which is also how the kernel answers it.
    assert_eq!(cluster.fall_backs("a", "no_san_listener"), 1);
}

/// Switches of all threads of a process so far.
fn switches(pid: u32) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
    let tasks = tasks.expect("the process runs").flatten();
    let status = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("status")).ok());
    let counts = |status: String| -> u64 {
        let lines = status
            .lines()
            .filter(|line| line.contains("voluntary_ctxt_switches"));
        lines.filter_map(last_number).sum()
    };
    status.map(counts).sum()
}

fn last_number(line: &str) -> Option<u64> {
    line.split_whitespace().next_back()?.parse().ok()
}

/// Ticks of processor time that a process has used.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
    let stat = stat.expect("the process runs");
    let after_name = stat.rsplit(") ").next().unwrap_or_default();
    let field = |n: usize| after_name.split(' ').nth(n).and_then(|f| f.parse().ok());
    field(11).unwrap_or(0_u64) + field(12).unwrap_or(0)
}

#[test]
fn a_program_that_waits_and_its_emulator_do_nothing_at_all() {
    let lab = Lab::new("a_program_that_waits_and_its_emulator_do_nothing_at_all");
    let Some(program) = compile(&lab, "idle", include_str!("idle.c")) else {
        return;
    };
    let cluster = up(&lab);
    let mut idle = lab.spawn("idle", cluster.run("a", [OsStr::new(&program)]));
    idle.wait_output("idle");
    cluster.assert_road(Road::San, &["a"]);
    let emulator = cluster.emulator_pid();
    let used = || {
        (
            switches(idle.pid()),
            switches(emulator),
            ticks(idle.pid()) + ticks(emulator),
        )
    };
    // A second of theirs is watched; what they still had to do may take the first ones. Who polls, however rarely, never gets there.
    wait_until(|| {
        let (program, device, before) = used();
        std::thread::sleep(Duration::from_secs(1));
        let (program, device, spent) = {
            let (p, d, after) = used();
            (p - program, d - device, after - before)
        };
        // Six threads that wait in the program and two in the emulator: not even one wake-up each.
        program <= 2 && device <= 2 && spent <= 1
    });
    idle.kill();
}

/// Cases that are enough where a tool makes everything slow: bits, sleeping threads, a forked child.
const SHORT: [&str; 3] = ["bits_of_states", "threads", "shared_over_fork"];

/// Runs a command natively and over the SAN; both must say the same. Skipped with a message where the tool does not work at all: tracing
/// may be forbidden, or the machine's memory lie where a runtime wants its own.
fn compare(lab: &Lab, tool: &str, words: &[&OsStr], told: impl Fn(String) -> String) {
    let cluster = up(lab);
    let mut native = Command::new(words[0]);
    native.args(&words[1..]);
    let mut native = lab.spawn("native", native);
    if !native.wait().success() {
        programs::skip(format_args!(
            "{tool} does not work here: {}",
            native.stderr()
        ));
        return;
    }
    let native = told(native.stdout());
    assert!(native.lines().count() > 20, "{native}");
    let mut process = lab.spawn("over-the-san", cluster.run("a", words));
    let status = process.wait();
    assert!(status.success(), "{tool}: {status}: {}", process.stderr());
    assert_eq!(told(process.stdout()), native, "{tool}");
    cluster.wait_no_connections();
    cluster.assert_road(Road::San, &["a"]);
}

fn with_sanitizer(test: &str, sanitizer: &str) {
    let lab = Lab::new(test);
    let Some([gcc]) = programs::find(["gcc"]) else {
        return;
    };
    let source = lab.write("readiness.c", include_str!("readiness.c"));
    let program = lab.directory().join("readiness");
    let mut compile = Command::new(gcc);
    compile.args(["-O1", "-g", "-pthread", sanitizer, "-o"]);
    compile.arg(&program).arg(source);
    let mut compile = lab.spawn("gcc", compile);
    if !compile.wait().success() {
        programs::skip(format_args!(
            "no runtime for {sanitizer}: {}",
            compile.stderr()
        ));
        return;
    }
    let mut words = vec![program.as_os_str()];
    words.extend(SHORT.map(OsStr::new));
    compare(&lab, sanitizer, &words, |said| said);
}

#[test]
fn a_program_built_with_address_sanitizer_sees_the_same() {
    with_sanitizer(
        "a_program_built_with_address_sanitizer_sees_the_same",
        "-fsanitize=address",
    );
}

#[test]
fn a_program_built_with_thread_sanitizer_sees_the_same() {
    with_sanitizer(
        "a_program_built_with_thread_sanitizer_sees_the_same",
        "-fsanitize=thread",
    );
}

fn under_tool(test: &str, tool: &str, arguments: &[&str]) {
    let lab = Lab::new(test);
    let Some([tool_file]) = programs::find([tool]) else {
        return;
    };
    let Some(program) = compile(&lab, "readiness", include_str!("readiness.c")) else {
        return;
    };
    let mut words = vec![tool_file.as_os_str()];
    words.extend(arguments.iter().map(OsStr::new));
    words.push(program.as_os_str());
    // Valgrind runs one thread at a time: the sleepers take minutes on a busy machine.
    let cases = SHORT
        .iter()
        .filter(|&&case| tool != "valgrind" || case != "threads");
    words.extend(cases.map(OsStr::new));
    // What the debugger says itself goes with its own words.
    let is_ours = |line: &&str| SHORT.iter().any(|case| line.starts_with(case));
    let told = |said: String| {
        said.lines()
            .filter(is_ours)
            .fold(String::new(), |all, line| all + line + "\n")
    };
    compare(&lab, tool, &words, told);
}

#[test]
fn a_program_under_gdb_sees_the_same() {
    under_tool(
        "a_program_under_gdb_sees_the_same",
        "gdb",
        &[
            "-q",
            "-nx",
            "-batch",
            "-return-child-result",
            "-ex",
            "run",
            "--args",
        ],
    );
}

#[test]
fn a_program_under_strace_sees_the_same() {
    under_tool(
        "a_program_under_strace_sees_the_same",
        "strace",
        &["-f", "-o", "/dev/null"],
    );
}

#[test]
fn a_program_under_valgrind_sees_the_same() {
    under_tool(
        "a_program_under_valgrind_sees_the_same",
        "valgrind",
        &["-q", "--error-exitcode=9"],
    );
}
