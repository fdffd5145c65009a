//! Runs programs on nodes of a cluster without an emulator: the preload library, a configuration set by hand, and TCP.
//!
//! Every test has a subnet of its own, claimed as a cluster claims it, so tests and running clusters do not collide.

use std::cell::RefCell;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

/// How long a condition may take before a test gives up on a program that hangs.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(180);

/// A cluster of nodes 127.77.C.1 and up.
#[derive(Debug)]
pub(crate) struct Cluster {
    subnet: u8,
    _claim: UdpSocket,
}

impl Cluster {
    /// Claims a free subnet, from the upper end: clusters count up from 0.
    pub(crate) fn claim() -> Self {
        (100..250)
            .rev()
            .find_map(|subnet| {
                let claim = UdpSocket::bind((Ipv4Addr::new(127, 77, subnet, 254), 4791)).ok()?;
                Some(Self {
                    subnet,
                    _claim: claim,
                })
            })
            .expect("one of 150 subnets is free")
    }

    /// C of 127.77.C.0/24.
    pub(crate) fn subnet(&self) -> u8 {
        self.subnet
    }

    /// Address of node `k`, from 1.
    pub(crate) fn address(&self, k: u8) -> String {
        format!("127.77.{}.{k}", self.subnet)
    }

    /// What the launcher would put into the environment of a program on node `k`.
    pub(crate) fn config(&self, k: u8) -> String {
        let node = |k| {
            format!(
                r#"{{"name":"n{k}","addresses":["{}/24"]}}"#,
                self.address(k)
            )
        };
        format!(
            r#"{{"cluster":"test","node":"n{k}","node_id":{k},"addresses":["{}/24"],"subnet":{},"nodes":[{},{}],"providers":[]}}"#,
            self.address(k),
            self.subnet,
            node(1),
            node(2),
        )
    }

    /// A program on node `k`.
    pub(crate) fn command(&self, k: u8, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command
            .env("LD_PRELOAD", library())
            .env("SANLAB_CONFIG", self.config(k))
            .env("ADDR", self.address(k))
            .stdin(Stdio::null());
        command
    }
}

/// The library under test, which cargo has built beside the test.
pub(crate) fn library() -> PathBuf {
    let test = env::current_exe().expect("a test has a path");
    let deps = test.parent().expect("a test lies in a directory");
    let library = deps.join("libsanlab_preload.so");
    assert!(library.exists(), "{} is not built", library.display());
    library
}

thread_local! {
    /// Process ids of the programs that run for the test on this thread.
    static RUNNING: RefCell<Vec<Pid>> = const { RefCell::new(Vec::new()) };
}

/// A program that is killed when the test ends. One that fails while the test waits ends the wait.
#[derive(Debug)]
pub(crate) struct Running(Child);

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        let program = Self(command.spawn().expect("the program starts"));
        RUNNING.with_borrow_mut(|running| running.push(program.pid()));
        program
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id().cast_signed())
    }

    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let pid = self.pid();
        RUNNING.with_borrow_mut(|running| running.retain(|&one| one != pid));
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether a program of the machine is there. A missing one is told, and fails the test where the environment demands it.
pub(crate) fn has(program: &str) -> bool {
    let found = env::var_os("PATH")
        .is_some_and(|path| env::split_paths(&path).any(|dir| dir.join(program).is_file()));
    if !found {
        assert!(
            env::var_os("SANLAB_REQUIRE_PROGRAMS").is_none(),
            "{program} is not installed, and SANLAB_REQUIRE_PROGRAMS is set"
        );
        eprintln!("skipped: {program} is not installed");
    }
    found
}

/// Waits until `condition` gives a value.
pub(crate) fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + WATCHDOG;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert_none_failed(what);
        assert!(
            Instant::now() < end,
            "{what}: still waiting after {WATCHDOG:?}"
        );
        thread::yield_now();
        thread::park_timeout(Duration::from_millis(5));
    }
}

/// Fails the test when one of its programs has.
fn assert_none_failed(what: &str) {
    // Only a look: who waits for the program finds its end all the same.
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    for pid in RUNNING.with_borrow(Vec::clone) {
        let end = waitid(Id::Pid(pid), look);
        let is_well = !matches!(
            end,
            Ok(WaitStatus::Exited(_, 1..) | WaitStatus::Signaled(..))
        );
        assert!(is_well, "{what}: a program failed meanwhile: {end:?}");
    }
}

/// Runs a command to its end under the watchdog.
pub(crate) fn finish(command: &mut Command) -> Output {
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let pid = child.id();
    let (done, ended) = std::sync::mpsc::channel::<()>();
    let watchdog = thread::spawn(move || {
        if ended.recv_timeout(WATCHDOG).is_err() {
            // The program hangs: its end makes the test fail with what it printed.
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
        }
    });
    let output = child.wait_with_output().expect("output can be read");
    let _ = done.send(());
    watchdog.join().expect("the watchdog does not panic");
    output
}

/// As [`finish`], and the program must succeed. Returns what it printed.
pub(crate) fn succeed(command: &mut Command) -> String {
    let output = finish(command);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\nstdout:\n{text}\nstderr:\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// A directory of this test, removed at its end.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Self {
        let path =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a scratch directory");
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Compiles `tests/native/c/NAME.c`. `None` without a compiler.
pub(crate) fn compile(scratch: &Scratch, name: &str) -> Option<PathBuf> {
    if !has("gcc") {
        return None;
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/native/c/{name}.c"));
    let program = scratch.path().join(name);
    succeed(
        Command::new("gcc")
            .args(["-O2", "-D_GNU_SOURCE", "-D_FORTIFY_SOURCE=2", "-Wall", "-o"])
            .arg(&program)
            .arg(source)
            .arg("-lpthread"),
    );
    Some(program)
}
