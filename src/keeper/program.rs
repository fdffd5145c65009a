//! One program of a node: its process, what it says, and where it stands.
//!
//! Place: the conductor starts programs in their order and decides what their ends mean. Invariants: a program is a child of the keeper, leads
//! a session of its own, and is killed by the kernel when the keeper dies; what it wrote before its end is in the log before its end is.
//! Source: ours; pipes as shells make them. Leaves out: when to start and stop, which the conductor knows.

use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use super::log::{Stream, Writer};
use super::{LAUNCHER, processes};
use crate::config::NodePlan;
use crate::config::programs::{Check, ProgramPlan};

/// Longest line in the log; a longer one is cut into pieces.
const LINE_MAX: usize = 16 << 10;

/// What all programs of a cluster are started with.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// Name of the cluster.
    pub(crate) cluster: String,
    /// Its directory.
    pub(crate) directory: PathBuf,
    /// The run directory.
    pub(crate) run: PathBuf,
    /// The file of this binary.
    pub(crate) binary: PathBuf,
    /// Directory of the cluster file.
    pub(crate) files: PathBuf,
    /// Where each node has its state folder; in the cluster's directory when absent.
    pub(crate) state: Option<PathBuf>,
    /// Whether listeners are on the SAN too.
    pub(crate) expects_san: bool,
    /// Process id of the emulator, a child like the programs.
    pub(crate) emulator: u32,
}

impl Setup {
    /// Whether a child is none of the programs.
    pub(crate) fn is_spared(&self, pid: u32) -> bool {
        pid == self.emulator
    }

    /// State folder of a node.
    pub(crate) fn state_of(&self, node: &str) -> PathBuf {
        match &self.state {
            Some(state) => state.join(node),
            None => self.directory.join(node).join("state"),
        }
    }

    /// The launcher of a command on a node, with everything but its output.
    pub(crate) fn launcher(&self, node: &NodePlan, dir: &Path, command: &[String]) -> Command {
        let mut launcher = Command::new(&self.binary);
        let (index, count) = node
            .group
            .as_ref()
            .map_or((1, 1), |group| (group.index, group.count));
        launcher
            .arg(LAUNCHER)
            .arg(format!("--parent={}", std::process::id()))
            .arg("--dir")
            .arg(dir)
            .args(["--cluster", &self.cluster, "--node", &node.name, "--"])
            .args(command)
            .env("SANLAB_RUN_DIR", &self.run)
            .env("SANLAB_FILES", &self.files)
            .env("SANLAB_STATE", self.state_of(&node.name))
            .env("SANLAB_INDEX", index.to_string())
            .env("SANLAB_COUNT", count.to_string())
            // So that a process that lost its parent can be told to belong to the node, from its first moment on.
            .env(ring_proto::channel::ENV_NODE, &node.name)
            .stdin(Stdio::null());
        launcher
    }

    /// The words to start a program with: one that is named by a path is seen from the cluster file.
    fn words(&self, plan: &ProgramPlan) -> Vec<String> {
        let mut words = plan.command.clone();
        if let Some(program) = words.first_mut()
            && program.contains('/')
            && !program.starts_with('/')
        {
            *program = self.files.join(&*program).to_string_lossy().into_owned();
        }
        words
    }
}

/// Where a program stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// For its turn.
    Waiting,
    /// It has a process.
    Running,
    /// It failed, and is started again at this time.
    Backoff(Instant),
    /// For good, unless somebody asks.
    Ended,
}

impl State {
    /// Name in tables and JSON.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Backoff(_) => "restarting",
            Self::Ended => "ended",
        }
    }
}

/// One program.
#[derive(Debug)]
pub(crate) struct Program {
    /// Its node, in the order of the plan.
    pub(crate) node: usize,
    pub(crate) plan: ProgramPlan,
    pub(crate) state: State,
    pub(crate) child: Option<Child>,
    pipes: Vec<Pipe>,
    /// Whether what makes it ready has held since its last start.
    pub(crate) is_ready: bool,
    /// Whether that has been told.
    pub(crate) is_announced: bool,
    /// Since when it has been tried to get ready.
    pub(crate) trying_since: Option<Instant>,
    /// A command that tells whether it is ready.
    pub(crate) probe: Option<Child>,
    /// When its port was first seen.
    pub(crate) listening_since: Option<Instant>,
    /// How often it was started again.
    pub(crate) restarts: u32,
    /// As a shell tells it, of its last process.
    pub(crate) exit_code: Option<i32>,
    /// When it is killed, having been asked to end.
    pub(crate) kill_at: Option<Instant>,
    /// Its end is nobody's failure: it was asked to end or killed on purpose.
    pub(crate) is_end_meant: bool,
}

/// One of a program's outputs.
#[derive(Debug)]
struct Pipe {
    source: Source,
    stream: Stream,
    part: Vec<u8>,
}

#[derive(Debug)]
enum Source {
    Stdout(std::process::ChildStdout),
    Stderr(std::process::ChildStderr),
}

impl Program {
    pub(crate) fn new(node: usize, plan: ProgramPlan) -> Self {
        Self {
            node,
            plan,
            state: State::Waiting,
            child: None,
            pipes: Vec::new(),
            is_ready: false,
            is_announced: false,
            trying_since: None,
            probe: None,
            listening_since: None,
            restarts: 0,
            exit_code: None,
            kill_at: None,
            is_end_meant: false,
        }
    }

    /// Process id, while it has a process.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Working directory.
    fn directory(&self, setup: &Setup, node: &NodePlan) -> PathBuf {
        match &self.plan.dir {
            Some(dir) => setup.files.join(dir),
            None => setup.state_of(&node.name),
        }
    }

    /// Starts its process.
    pub(crate) fn start(&mut self, setup: &Setup, node: &NodePlan) -> io::Result<()> {
        let directory = self.directory(setup, node);
        let mut launcher = setup.launcher(node, &directory, &setup.words(&self.plan));
        launcher
            .envs(self.plan.env.iter().map(|(name, value)| (name, value)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = launcher.spawn()?;
        let outputs = [
            child
                .stdout
                .take()
                .map(|out| (Source::Stdout(out), Stream::Stdout)),
            child
                .stderr
                .take()
                .map(|err| (Source::Stderr(err), Stream::Stderr)),
        ];
        for (source, stream) in outputs.into_iter().flatten() {
            rustix::io::ioctl_fionbio(source.as_fd(), true)?;
            self.pipes.push(Pipe {
                source,
                stream,
                part: Vec::new(),
            });
        }
        self.child = Some(child);
        self.state = State::Running;
        self.is_ready = false;
        self.listening_since = None;
        self.kill_at = None;
        self.is_end_meant = false;
        self.trying_since.get_or_insert_with(Instant::now);
        Ok(())
    }

    /// Starts one look at whether it is ready.
    pub(crate) fn start_probe(
        &mut self,
        setup: &Setup,
        node: &NodePlan,
        command: &[String],
    ) -> io::Result<()> {
        let directory = self.directory(setup, node);
        let mut launcher = setup.launcher(node, &directory, command);
        launcher
            .envs(self.plan.env.iter().map(|(name, value)| (name, value)))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.probe = Some(launcher.spawn()?);
        Ok(())
    }

    /// Ends a look at whether it is ready.
    pub(crate) fn end_probe(&mut self) {
        if let Some(mut probe) = self.probe.take() {
            processes::signal(
                &processes::Processes::look().tree(probe.id()),
                nix::sys::signal::Signal::SIGKILL,
            );
            // It is our child and has been killed.
            let _ = probe.wait();
        }
    }

    /// Descriptors that tell of output.
    pub(crate) fn outputs(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.pipes.iter().map(|pipe| pipe.source.as_fd())
    }

    /// Moves what it said into the log.
    pub(crate) fn read_output(&mut self, node: &str, log: &mut Writer) {
        let label = self.plan.label().to_owned();
        let wanted = match &self.plan.ready {
            Some(ready) => match &ready.check {
                Check::Output(text) => Some(text.clone()),
                _ => None,
            },
            None => None,
        };
        let mut is_ready = false;
        self.pipes.retain_mut(|pipe| {
            pipe.read(|stream, line| {
                is_ready |= wanted.as_ref().is_some_and(|text| line.contains(text));
                log.add(Some(node), Some(&label), stream, line);
            })
        });
        self.is_ready |= is_ready;
    }

    /// Takes the status of its process when that has ended.
    pub(crate) fn take_end(&mut self, node: &str, log: &mut Writer) -> Option<i32> {
        let status = self.child.as_mut()?.try_wait().ok().flatten()?;
        self.child = None;
        self.kill_at = None;
        self.read_output(node, log);
        let code = exit_code(status);
        self.exit_code = Some(code);
        Some(code)
    }
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Stdout(out) => out.as_fd(),
            Self::Stderr(err) => err.as_fd(),
        }
    }
}

impl Pipe {
    /// Reads what is there; false at its end.
    fn read(&mut self, mut on_line: impl FnMut(Stream, &str)) -> bool {
        /// Reads in a row, so that one who writes without end does not keep the others waiting.
        const TURNS: usize = 16;
        let mut chunk = [0; 16 << 10];
        let mut is_open = true;
        for _ in 0..TURNS {
            let read = match &mut self.source {
                Source::Stdout(out) => out.read(&mut chunk),
                Source::Stderr(err) => err.read(&mut chunk),
            };
            match read {
                Ok(0) => is_open = false,
                Ok(len) => {
                    self.part.extend_from_slice(&chunk[..len]);
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => is_open = false,
            }
            break;
        }
        let mut rest = std::mem::take(&mut self.part);
        loop {
            let end = rest.iter().position(|&byte| byte == b'\n');
            let (len, skip) = match end {
                Some(end) if end <= LINE_MAX => (end, 1),
                _ if rest.len() > LINE_MAX => (LINE_MAX, 0),
                _ if !is_open && !rest.is_empty() => (rest.len(), 0),
                _ => break,
            };
            let line = String::from_utf8_lossy(&rest[..len]);
            on_line(self.stream, line.strip_suffix('\r').unwrap_or(&line));
            rest.drain(..len + skip);
        }
        self.part = rest;
        is_open
    }
}

/// As a shell tells it: the signal of one that was killed lies above 128.
pub(crate) fn exit_code(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// How an end is told to people.
pub(crate) fn end_text(code: i32) -> String {
    match code - 128 {
        signal @ 1..=64 => {
            let name = nix::sys::signal::Signal::try_from(signal)
                .map_or_else(|_| format!("signal {signal}"), |signal| signal.to_string());
            format!("ended with {code} ({name})")
        }
        _ => format!("ended with {code}"),
    }
}
