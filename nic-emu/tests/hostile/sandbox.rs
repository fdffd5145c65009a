//! What the emulator process gives up: as the kernel shows it, and as calls that it may not make find out.

use std::fs;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Output};

use nic_emu::server::sandbox::{self, Reach};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket, socketpair};

use super::harness::{Scratch, eventually};

/// Names what to try; set in confined processes alone.
const TRY: &str = "NIC_EMU_TEST_TRY";
/// Directory that the confined process keeps.
const KEPT: &str = "NIC_EMU_TEST_KEPT";

/// Not a test: the way in of a confined process, done at once everywhere else.
#[test]
fn confined() {
    let Some(what) = std::env::var_os(TRY) else {
        return;
    };
    let kept = std::env::var_os(KEPT).unwrap();
    let kept = Path::new(&kept);
    let walls = sandbox::enter(&Reach {
        directories: vec![kept.to_owned()],
        removals: vec![kept.parent().unwrap().to_owned()],
        ..Reach::default()
    });
    println!("walls {walls:?}");
    match what.to_str().unwrap() {
        "work" => {
            let file = kept.join("file");
            fs::write(&file, "own").unwrap();
            assert_eq!(fs::read(&file).unwrap(), b"own");
            fs::rename(&file, kept.join("other")).unwrap();
            fs::remove_dir_all(kept).unwrap();
            let (family, kind) = (AddressFamily::Unix, SockType::SeqPacket);
            socketpair(family, kind, None, SockFlag::empty()).unwrap();
        }
        "files" => {
            let refused = |result: io::Result<()>| {
                assert_eq!(result.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
            };
            if walls.files {
                refused(fs::read("/etc/passwd").map(drop));
                refused(fs::read_dir("/").map(drop));
                refused(fs::write(kept.parent().unwrap().join("new"), ""));
            }
        }
        "calls" => {
            let network = socket(
                AddressFamily::Inet,
                SockType::Stream,
                SockFlag::empty(),
                None,
            );
            assert_eq!(network.unwrap_err(), Errno::EPERM);
            let pair = socketpair(
                AddressFamily::Tipc,
                SockType::Stream,
                None,
                SockFlag::empty(),
            );
            assert_eq!(pair.unwrap_err(), Errno::EPERM);
            let parent = nix::unistd::getppid();
            assert_eq!(nix::sys::signal::kill(parent, None), Err(Errno::EPERM));
            assert!(std::thread::Builder::new().spawn(|| ()).is_err());
            assert!(
                memmap2::MmapOptions::new()
                    .len(4096)
                    .map_anon()
                    .unwrap()
                    .make_exec()
                    .is_err()
            );
        }
        "exec" => {
            let error = Command::new("/bin/true").exec();
            println!("lived on: {error}");
        }
        "unshare" => {
            let result = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER);
            println!("lived on: {result:?}");
        }
        other => panic!("{other}"),
    }
}

fn attempt(what: &str) -> (Output, bool) {
    let scratch = Scratch::new();
    let kept = scratch.path().join("kept");
    fs::create_dir(&kept).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sandbox::confined", "--nocapture"])
        .env(TRY, what)
        .env(KEPT, &kept)
        .output()
        .unwrap();
    (output, kept.exists())
}

/// Whether this kernel and container let a process filter its system calls.
fn has_filter(output: &Output) -> bool {
    String::from_utf8_lossy(&output.stdout).contains("system_calls: true")
}

#[test]
fn a_confined_process_works_in_its_directory_and_removes_it() {
    let (output, is_left) = attempt("work");
    assert!(output.status.success(), "{output:?}");
    assert!(!is_left);
}

#[test]
fn files_and_calls_that_are_not_needed_are_refused() {
    let (output, _) = attempt("files");
    assert!(output.status.success(), "{output:?}");
    let (output, _) = attempt("calls");
    if has_filter(&output) {
        assert!(output.status.success(), "{output:?}");
    }
}

#[test]
fn calls_that_leave_the_sandbox_end_the_process() {
    for what in ["exec", "unshare"] {
        let (output, _) = attempt(what);
        if has_filter(&output) {
            assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{output:?}");
        }
    }
}

/// A field of every thread of a process.
fn threads(pid: u32, field: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of_one = |task: io::Result<fs::DirEntry>| {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let line = status.lines().find(|line| line.starts_with(field));
        line.unwrap()[field.len() + 1..].trim().to_owned()
    };
    tasks.map(of_one).collect()
}

#[test]
fn the_binary_is_confined_in_every_thread_unless_told_not_to() {
    for (argument, is_confined) in [("--sandbox=on", true), ("--sandbox=off", false)] {
        let scratch = Scratch::new();
        let socket = scratch.path().join("nic.sock");
        let mut child = Command::new(env!("CARGO_BIN_EXE_nic-emu"))
            .arg(argument)
            .arg("--socket")
            .arg(&socket)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let pid = child.id();
        let of_threads = || (socket.exists(), threads(pid, "Seccomp_filters"));
        // A container may have set filters of its own.
        let inherited: u32 = threads(std::process::id(), "Seccomp_filters")[0]
            .parse()
            .unwrap();
        let wanted = (inherited + if is_confined { 2 } else { 0 }).to_string();
        let is_so = |(is_there, modes): &(bool, Vec<String>)| {
            *is_there && modes.len() == 2 && modes.iter().all(|mode| *mode == wanted)
        };
        eventually("confined as told", of_threads, is_so);
        if is_confined {
            for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
                let sets = threads(pid, set);
                assert!(
                    sets.iter().all(|set| set.trim_matches('0').is_empty()),
                    "{sets:?}"
                );
            }
            assert_eq!(threads(pid, "NoNewPrivs"), ["1", "1"]);
            assert_eq!(threads(pid, "Seccomp"), ["2", "2"]);
        }
        let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert!(child.wait().unwrap().success());
        assert!(!socket.exists());
    }
}
