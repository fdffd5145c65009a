//! The `nic-emu` binary as a process: start, idle, log, end.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ring_proto::{regs, vfio};

use super::harness::{PATIENCE, RawClient, Scratch, eventually};

pub(crate) struct Emulator {
    child: Child,
    stdout: BufReader<ChildStdout>,
    socket: PathBuf,
    _scratch: Scratch,
}

impl Emulator {
    fn start() -> Self {
        Self::start_by(command())
    }

    pub(crate) fn start_with(arguments: &[&str]) -> Self {
        let mut command = command();
        command.args(arguments);
        Self::start_by(command)
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    fn start_by(mut command: Command) -> Self {
        let scratch = Scratch::new();
        let socket = scratch.path().join("nic.sock");
        let mut child = command
            .arg("--socket")
            .arg(&socket)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut lines = String::new();
        while !lines.ends_with("ready\n") {
            assert_ne!(stdout.read_line(&mut lines).unwrap(), 0, "{lines:?}");
        }
        assert_eq!(lines, format!("{}\nready\n", socket.display()));
        Self {
            child,
            stdout,
            socket,
            _scratch: scratch,
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    /// Ends it by a signal; gives exit code and everything it wrote to stderr.
    fn end(&mut self, signal: Signal) -> (Option<i32>, String) {
        kill(self.pid(), signal).unwrap();
        let mut stderr = String::new();
        let mut pipe = self.child.stderr.take().unwrap();
        pipe.read_to_string(&mut stderr).unwrap();
        let status = self.child.wait().unwrap();
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "");
        (status.code(), stderr)
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // Already ended in most tests.
        drop(self.child.kill());
        drop(self.child.wait());
        if let (true, Some(mut pipe)) = (std::thread::panicking(), self.child.stderr.take()) {
            let mut stderr = String::new();
            drop(pipe.read_to_string(&mut stderr));
            let _ = writeln!(std::io::stderr(), "the emulator said:\n{stderr}");
        }
    }
}

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nic-emu"));
    command.env_remove("RUST_LOG");
    command
}

fn run(arguments: &[&str]) -> Output {
    command().args(arguments).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn signals_end_it_cleanly_and_remove_the_socket() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut emulator = Emulator::start();
        let mut client = RawClient::attached(&emulator.socket);
        assert_eq!(client.register(regs::MAGIC), regs::MAGIC_VALUE);
        let (code, stderr) = emulator.end(signal);
        assert_eq!((code, stderr.as_str()), (Some(0), ""));
        assert!(!emulator.socket.exists());
        assert!(client.reply().is_none());
    }
}

#[test]
fn a_socket_in_use_is_named_and_one_of_a_killed_emulator_is_replaced() {
    let mut first = Emulator::start();
    let path = first.socket.to_str().unwrap().to_owned();
    let second = run(&["--socket", &path]);
    assert_eq!(second.status.code(), Some(1));
    let text = stderr(&second);
    assert!(
        text.starts_with("nic-emu: ") && text.contains(&path),
        "{text}"
    );
    assert!(text.contains("served by a running process"), "{text}");
    first.end(Signal::SIGKILL);
    assert!(first.socket.exists());
    let mut third = command()
        .args(["--socket", &path])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut stdout = BufReader::new(third.stdout.take().unwrap());
    while line != "ready\n" {
        line.clear();
        assert_ne!(stdout.read_line(&mut line).unwrap(), 0);
    }
    RawClient::attached(Path::new(&path));
    third.kill().unwrap();
    third.wait().unwrap();
}

#[test]
fn help_shows_examples_and_mistakes_are_named() {
    let help = run(&["--help"]);
    assert!(help.status.success());
    let text = String::from_utf8(help.stdout).unwrap();
    assert!(text.contains("Examples:") && text.contains("nic-emu --socket /tmp/nic.sock"));
    for (arguments, code, words) in [
        (&[][..], 2, "--socket"),
        (&["--socket", "x", "--node", "a=1.2.3"], 2, "127.77.0.1"),
        (&["--socket", "x", "--node", "a/b"], 1, "a/b"),
        (
            &["--socket", "x", "--node", "a", "--node", "b"],
            1,
            "{node}",
        ),
        (
            &[
                "--socket",
                "{node}",
                "--node",
                "a=1.1.1.1",
                "--node",
                "b=1.1.1.1",
            ],
            1,
            "given twice",
        ),
        (
            &["--socket", "/nonexistent/nic.sock"],
            1,
            "/nonexistent/nic.sock",
        ),
        (&["--socket", "/etc/passwd"], 1, "not a socket"),
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        let text = stderr(&output);
        assert!(text.contains(words), "{text}");
    }
}

#[test]
fn the_header_is_printed_and_compiles_as_c11() {
    let output = run(&["header"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let header = String::from_utf8(output.stdout).unwrap();
    let committed = include_str!("../../../examples/minidriver/sanlab_nic.h");
    assert!(header == committed, "the committed header is another one");
    let scratch = Scratch::new();
    std::fs::write(scratch.path().join("sanlab_nic.h"), header).unwrap();
    let program = scratch.path().join("program.c");
    std::fs::write(
        &program,
        "#include \"sanlab_nic.h\"\nint main(void) { return 0; }\n",
    )
    .unwrap();
    let compiled = Command::new("cc")
        .args("-std=c11 -Wall -Wextra -Werror -pedantic -fsyntax-only".split(' '))
        .arg(&program)
        .output();
    match compiled {
        Ok(output) => assert!(output.status.success(), "{}", stderr(&output)),
        Err(error) => super::harness::skip("cc", &error),
    }
}

/// CPU ticks of a process, and how often its threads were switched: an idle one is never.
fn activity(pid: Pid) -> (u64, u64) {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    let ticks = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    let mut switches = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        switches += status
            .lines()
            .filter(|line| line.contains("ctxt_switches"))
            .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
            .sum::<u64>();
    }
    (ticks, switches)
}

#[test]
fn an_idle_emulator_uses_no_cpu() {
    let emulator = Emulator::start();
    let mut clients: Vec<_> = (0..4)
        .map(|_| RawClient::attached(&emulator.socket))
        .collect();
    for client in &mut clients {
        assert_eq!(client.register(regs::MAGIC), regs::MAGIC_VALUE);
    }
    // An observation: nothing comes on a connection for a while. Busy is what never shows ten quiet ones in a row.
    let mut quiet = 0;
    let mut before = activity(emulator.pid());
    for _ in 0..200 {
        let stream = &clients[0].stream;
        stream
            .set_read_timeout(Some(std::time::Duration::from_millis(50)))
            .unwrap();
        let nothing = nix::sys::socket::recv(
            std::os::fd::AsRawFd::as_raw_fd(stream),
            &mut [0],
            nix::sys::socket::MsgFlags::empty(),
        );
        // EINTR: the whole machine was stopped for a moment.
        let is_quiet = matches!(nothing, Err(Errno::EAGAIN | Errno::EINTR));
        assert!(is_quiet, "{nothing:?}");
        let now = activity(emulator.pid());
        quiet = if now == before { quiet + 1 } else { 0 };
        before = now;
        if quiet == 10 {
            clients[0].stream.set_read_timeout(Some(PATIENCE)).unwrap();
            assert_eq!(clients[0].register(regs::MAGIC), regs::MAGIC_VALUE);
            return;
        }
    }
    panic!("never idle: {before:?}");
}

#[test]
fn a_flood_of_bad_messages_fills_neither_log_nor_memory() {
    let mut emulator = Emulator::start();
    let mut client = RawClient::attached(&emulator.socket);
    for _ in 0..5_000 {
        let answer = client.call(999, &[0; 64], &[]);
        assert_eq!(answer.unwrap_err(), Errno::ENOTSUP);
    }
    let read = vfio::RegionAccess {
        offset: 0,
        region: 2,
        count: 1 << 30,
    };
    let answer = client.call(
        vfio::CMD_REGION_READ,
        zerocopy::IntoBytes::as_bytes(&read),
        &[],
    );
    assert_eq!(answer.unwrap_err(), Errno::EINVAL);
    for _ in 0..200 {
        RawClient::connect(&emulator.socket)
            .send(&[0xff; 16], &[])
            .unwrap();
    }
    assert_eq!(client.register(regs::MAGIC), regs::MAGIC_VALUE);
    let status = std::fs::read_to_string(format!("/proc/{}/status", emulator.pid())).unwrap();
    let peak = status.lines().find(|l| l.starts_with("VmHWM")).unwrap();
    let kib: u64 = peak.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kib < 200 * 1024, "{peak}");
    let (code, stderr) = emulator.end(Signal::SIGTERM);
    assert_eq!(code, Some(0));
    // A handful a second; nothing here takes minutes.
    assert!(stderr.lines().count() < 1000, "{}", stderr.lines().count());
    assert!(stderr.contains("refused a device message"), "{stderr}");
}

#[test]
fn without_descriptors_newcomers_are_refused_and_nothing_spins() {
    let mut shell = Command::new("sh");
    let script = "ulimit -n 24; exec \"$0\" \"$@\"";
    shell.args(["-c", script, env!("CARGO_BIN_EXE_nic-emu")]);
    let emulator = Emulator::start_by(shell);
    let mut first = RawClient::attached(&emulator.socket);
    let mut crowd: Vec<_> = (0..60)
        .map(|_| RawClient::connect(&emulator.socket))
        .collect();
    // Those beyond the limit are hung up on; a VERSION that costs more descriptors than are left is refused.
    let refused = crowd
        .iter_mut()
        .filter_map(|client| {
            let header = client.header(vfio::CMD_VERSION, 4);
            let bytes = [zerocopy::IntoBytes::as_bytes(&header), &[0, 0, 1, 0]].concat();
            client.send(&bytes, &[]).ok()?;
            client.reply()
        })
        .filter(|reply| reply.header.error == 0)
        .count();
    assert!(refused < 20, "{refused}");
    assert_eq!(first.register(regs::MAGIC), regs::MAGIC_VALUE);
    drop(crowd);
    // Room again, as soon as the server has seen the others go.
    let attach = || {
        let mut client = RawClient::connect(&emulator.socket);
        let header = client.header(vfio::CMD_VERSION, 4);
        let bytes = [zerocopy::IntoBytes::as_bytes(&header), &[0, 0, 1, 0]].concat();
        let sent = client.send(&bytes, &[]).is_ok();
        sent && client.reply().is_some_and(|reply| reply.header.error == 0)
    };
    eventually("room again", attach, |&attached| attached);
}

#[test]
fn descriptors_are_given_back() {
    let emulator = Emulator::start();
    let count = || {
        std::fs::read_dir(format!("/proc/{}/fd", emulator.pid()))
            .unwrap()
            .count()
    };
    let before = count();
    for _ in 0..50 {
        let mut client = RawClient::attached(&emulator.socket);
        let memory = super::harness::sealed(1 << 20);
        let fd = std::os::fd::AsRawFd::as_raw_fd(&memory);
        client.map(Some(fd), 1 << 30, 1 << 20).unwrap();
        assert_eq!(client.region_info(2).unwrap().1.len(), 1);
    }
    eventually("given back", count, |&n| n == before);
}

#[test]
fn conformance_judges_the_embedded_device_and_one_on_a_socket() {
    let emulator = Emulator::start();
    let socket = emulator.socket.to_str().unwrap();
    for target in [&[][..], &[socket, "--address", "127.77.0.1"][..]] {
        let output = command()
            .arg("conformance")
            .args(target)
            .args(["--filter", "cm.connect", "--json"])
            .output()
            .unwrap();
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(output.status.success(), "{report:#}");
        assert_eq!(report["failed"], 0, "{report:#}");
        assert!(report["passed"].as_u64() > Some(5), "{report:#}");
    }
    let output = command().args(["conformance", "--list"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("qp.modify.init-to-rts-refused: "), "{text}");
    // A device that does not answer keeps no rule, and nothing hangs.
    let gone = [
        "conformance",
        "/nowhere/nic.sock",
        "--filter",
        "register.magic",
    ];
    let output = command().args(gone).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let output = command()
        .args(["conformance", "--filter", "no such"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
}
