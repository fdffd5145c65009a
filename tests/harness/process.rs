//! Processes of a test, with their output in files.
//!
//! Place: [`super::Lab::spawn`] makes them. Invariants: dropping one kills it by its id and waits for it; one that fails while the test waits
//! for anything else ends that wait at once with what it said, unless the test has signalled it, waits for its end, or expects that.

use std::cell::RefCell;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

thread_local! {
    /// Processes of the test that runs on this thread.
    static OURS: RefCell<Vec<Weak<Watched>>> = const { RefCell::new(Vec::new()) };
}

/// What a wait must know of a process.
struct Watched {
    pid: Pid,
    label: String,
    stdout: PathBuf,
    stderr: PathBuf,
    /// Its failure is what the test is about.
    may_fail: AtomicBool,
}

/// A running process.
pub(crate) struct Process {
    child: Child,
    watched: Arc<Watched>,
    is_done: bool,
}

impl Process {
    pub(crate) fn spawn(label: &str, mut command: Command, directory: &Path) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let stdout = directory.join(format!("{number:03}-{label}.out"));
        let stderr = directory.join(format!("{number:03}-{label}.err"));
        let child = command
            .stdout(Stdio::from(File::create(&stdout).unwrap()))
            .stderr(Stdio::from(File::create(&stderr).unwrap()))
            .spawn()
            .unwrap_or_else(|error| panic!("{label}: {error}"));
        let watched = Arc::new(Watched {
            pid: Pid::from_raw(i32::try_from(child.id()).unwrap()),
            label: label.to_owned(),
            stdout,
            stderr,
            may_fail: AtomicBool::new(false),
        });
        OURS.with_borrow_mut(|ours| {
            ours.retain(|one| one.strong_count() > 0);
            ours.push(Arc::downgrade(&watched));
        });
        Self {
            child,
            watched,
            is_done: false,
        }
    }

    /// Tells that the process may fail while the test waits for something else.
    pub(crate) fn may_fail(&self) {
        self.watched.may_fail.store(true, Ordering::Relaxed);
    }

    /// Process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to standard output.
    pub(crate) fn stdout(&self) -> String {
        read(&self.watched.stdout)
    }

    /// What it has written to standard error.
    pub(crate) fn stderr(&self) -> String {
        read(&self.watched.stderr)
    }

    /// Writes to its standard input, which must be a pipe.
    pub(crate) fn write(&mut self, text: &str) {
        use std::io::Write as _;
        let stdin = self.child.stdin.as_mut().expect("no pipe to the process");
        stdin.write_all(text.as_bytes()).unwrap();
        stdin.flush().unwrap();
    }

    /// Ends its standard input.
    pub(crate) fn close_stdin(&mut self) {
        drop(self.child.stdin.take());
    }

    /// Waits until its standard output has this text; the process must not end before.
    pub(crate) fn wait_output(&mut self, text: &str) {
        super::wait_until(|| {
            let ended = self.child.try_wait().unwrap();
            if self.stdout().contains(text) {
                return true;
            }
            if let Some(status) = ended {
                panic!(
                    "{} ended ({status}) before it said {text:?}: {}{}",
                    self.watched.label,
                    self.stdout(),
                    self.stderr()
                );
            }
            false
        });
    }

    /// Whether it still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        self.may_fail();
        kill(self.watched.pid, signal).unwrap();
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.close_stdin();
        self.may_fail();
        let status = super::wait_for(|| self.child.try_wait().unwrap());
        self.is_done = true;
        status
    }

    /// Waits for its end, which must be a success, and gives its standard output.
    pub(crate) fn succeed(mut self) -> String {
        let status = self.wait();
        assert!(
            status.success(),
            "{} ({status}): {}{}",
            self.watched.label,
            self.stdout(),
            self.stderr()
        );
        self.stdout()
    }

    /// Kills it with SIGKILL and waits for its end.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.is_done {
            // Fails only for a process that has ended.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Fails the test when one of its processes has failed that should not.
pub(super) fn assert_none_failed() {
    let ours: Vec<Arc<Watched>> =
        OURS.with_borrow(|ours| ours.iter().filter_map(Weak::upgrade).collect());
    for one in ours {
        // Only a look: who waits for the process finds its end all the same.
        let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let failed = match waitid(Id::Pid(one.pid), look) {
            Ok(WaitStatus::Exited(_, code)) if code != 0 => format!("exit status {code}"),
            Ok(WaitStatus::Signaled(_, signal, _)) => signal.to_string(),
            // It runs, it ended well, or its end has been taken.
            _ => continue,
        };
        assert!(
            one.may_fail.load(Ordering::Relaxed),
            "{} failed ({failed}) while the test waited: {}{}",
            one.label,
            read(&one.stdout),
            read(&one.stderr)
        );
    }
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

/// What the audits of programs have told on their standard errors.
pub(crate) fn calls_past_the_library(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths
        .filter(|path| path.extension().is_some_and(|end| end == "err"))
        .flat_map(|path| {
            let text = read(&path);
            let told = |line: &&str| {
                line.starts_with("sanlab: audit: ") && line.contains(" past the library on ")
            };
            let lines: Vec<String> = text.lines().filter(told).map(str::to_owned).collect();
            lines
        })
        .collect()
}

/// Prints the outputs of all processes of a test that has failed.
pub(crate) fn print_outputs(directory: &Path) {
    /// More of one output would hide the others.
    const SHOWN: usize = 8 << 10;
    let mut paths: Vec<PathBuf> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.extension()
                .is_some_and(|end| end == "out" || end == "err")
        })
        .collect();
    paths.sort();
    for path in paths {
        let text = read(&path);
        let text = text
            .get(text.len().saturating_sub(SHOWN)..)
            .unwrap_or(&text);
        if !text.trim().is_empty() {
            let name = path.file_name().unwrap_or_default().display();
            super::tell(format_args!("--- {name}\n{}", text.trim_end()));
        }
    }
}
