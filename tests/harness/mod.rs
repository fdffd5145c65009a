//! Harness of the end-to-end tests: a run directory, a cluster and processes of one test's own.
//!
//! Place: every `tests/cli_*.rs` and `tests/programs_*.rs` starts with [`Lab::new`].
//! Invariants: nothing is shared between tests but the binary; whatever a test starts ends with its [`Lab`], by process id. Nothing sleeps to
//! synchronise: tests wait for conditions, and a watchdog that dumps what it sees ends a test that waits for ever.
//! Source: ours.
#![allow(
    dead_code,
    unused_imports,
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "each test file uses another part of the harness, which fails by panicking and tells why on standard error"
)]

pub(crate) mod bench;
pub(crate) mod cluster;
pub(crate) mod content;
pub(crate) mod echo;
pub(crate) mod kernel;
pub(crate) mod netns;
pub(crate) mod peer;
pub(crate) mod process;
pub(crate) mod programs;
mod watchdog;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;

pub(crate) use cluster::Cluster;
pub(crate) use peer::Peer;
pub(crate) use process::Process;
use watchdog::Watchdog;

/// The road that connections between nodes take in a test. Suites run on both, and must see the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Road {
    /// Kernel TCP, through the hooks: listeners on the wildcard address stay off the SAN.
    Tcp,
    /// The emulated SAN.
    San,
}

impl Road {
    /// Both, the one under test first.
    pub(crate) const BOTH: [Self; 2] = [Self::San, Self::Tcp];
}

/// A test's own world: a temporary directory with a run directory in it, and a watchdog.
pub(crate) struct Lab {
    directory: PathBuf,
    watchdog: Watchdog,
    is_audited: AtomicBool,
}

/// Time after which a test that still waits has failed.
const PATIENCE: Duration = Duration::from_secs(180);

impl Lab {
    /// A world for the test of this name.
    pub(crate) fn new(test: &str) -> Self {
        Self::patient(test, PATIENCE)
    }

    /// A world for a test that takes longer than others.
    pub(crate) fn patient(test: &str, patience: Duration) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let directory = loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            // Short, because socket paths are.
            let name = format!("sl-{}-{number}", std::process::id());
            let directory = std::env::temp_dir().join(name);
            match std::fs::create_dir(&directory) {
                Ok(()) => break directory,
                // Left by a test that was killed, of a process with the same number.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => panic!("cannot make {}: {error}", directory.display()),
            }
        };
        Self {
            watchdog: Watchdog::start(test, &directory, patience),
            is_audited: AtomicBool::new(false),
            directory,
        }
    }

    /// From now on a system call past the library, told by an audit, fails the test.
    fn expect_no_call_past_the_library(&self) {
        self.is_audited.store(true, Ordering::Relaxed);
    }

    /// A directory for files of the test.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The run directory.
    pub(crate) fn run_directory(&self) -> PathBuf {
        self.directory.join("run")
    }

    /// The `sanlab` command in this world.
    pub(crate) fn sanlab<I: IntoIterator<Item = S>, S: AsRef<std::ffi::OsStr>>(
        &self,
        arguments: I,
    ) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sanlab"));
        command
            .args(arguments)
            .env("SANLAB_RUN_DIR", self.run_directory())
            .env("TMPDIR", &self.directory)
            .env_remove("LD_PRELOAD")
            .stdin(std::process::Stdio::null());
        command
    }

    /// Runs `sanlab` to its end.
    pub(crate) fn output(&self, arguments: &[&str]) -> Output {
        self.sanlab(arguments).output().unwrap()
    }

    /// Runs `sanlab`, which must succeed, and gives its standard output.
    pub(crate) fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert!(output.status.success(), "sanlab {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs `sanlab`, which must end with this code, and gives its standard error.
    pub(crate) fn fail(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert_eq!(
            output.status.code(),
            Some(code),
            "sanlab {arguments:?}: {output:?}"
        );
        String::from_utf8(output.stderr).unwrap()
    }

    /// Runs `sanlab … --json` and gives its answer.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let text = self.succeed(arguments);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Starts a process whose output is kept in files of this world.
    pub(crate) fn spawn(&self, label: &str, command: Command) -> Process {
        let process = Process::spawn(label, command, &self.directory);
        self.watchdog.watch(label, process.pid());
        process
    }

    /// Starts the built-in cluster in the foreground, and waits until it is ready.
    pub(crate) fn up(&self) -> Cluster<'_> {
        self.up_with(&[])
    }

    /// Starts a cluster of nodes a, b and c whose connections take this road.
    pub(crate) fn up_on(&self, road: Road) -> Cluster<'_> {
        // On a busy machine a connect may wait longer for its answer than is good for users, and would then take TCP.
        let mut text = "[cluster]\nsan_connect_limit = \"60 s\"\n".to_owned();
        if road == Road::Tcp {
            text.push_str("wildcard_on_san = false\n");
        }
        for node in ["a", "b", "c"] {
            text.push_str(&format!("[[node]]\nname = \"{node}\"\n"));
        }
        let file = self.write("cluster.toml", &text);
        let mut cluster = self.up_with(&[file.to_str().unwrap()]);
        cluster.road = road;
        cluster
    }

    /// Starts a cluster in the foreground with these arguments, and waits until it is ready.
    pub(crate) fn up_with(&self, arguments: &[&str]) -> Cluster<'_> {
        Cluster::start(self, arguments)
    }

    /// Writes a file of the test.
    pub(crate) fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.directory.join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// Names of everything in the run directory.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        names_in(&self.run_directory())
    }

    /// Names of the directories that demos have made for themselves.
    pub(crate) fn demo_directories(&self) -> Vec<String> {
        let mut names = names_in(&self.directory);
        names.retain(|name| name.starts_with("sanlab-demo"));
        names
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Detached emulators of the test end here; everything else has been dropped before.
        kernel::end_emulators_below(&self.directory);
        let past = if self.is_audited.load(Ordering::Relaxed) {
            process::calls_past_the_library(&self.directory)
        } else {
            Vec::new()
        };
        if std::thread::panicking() || !past.is_empty() {
            process::print_outputs(&self.directory);
        }
        // Leftovers would only take room.
        let _ = std::fs::remove_dir_all(&self.directory);
        // Also of servers, whose exit codes nobody looks at.
        assert!(
            past.is_empty() || std::thread::panicking(),
            "system calls went past the library:\n{}",
            past.join("\n")
        );
    }
}

fn names_in(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// Waits until a condition holds. A process of the test that fails meanwhile ends the wait, and the watchdog one that never ends.
pub(crate) fn wait_until(mut is_met: impl FnMut() -> bool) {
    wait_for(|| is_met().then_some(()));
}

/// Waits until a value is there, as [`wait_until`].
pub(crate) fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> T {
    loop {
        if let Some(value) = look() {
            return value;
        }
        process::assert_none_failed();
        pause();
    }
}

/// Writes a line to standard error itself: `eprintln!` is captured and lost when the test binary is aborted.
fn tell(line: std::fmt::Arguments<'_>) {
    use std::io::Write as _;
    // A closed standard error leaves nowhere to tell.
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn pause() {
    // An early return only means an early look.
    let _ = nix::poll::poll(&mut [], 5_u16);
}
