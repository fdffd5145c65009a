//! The keeper: the process that starts a cluster with programs, stays with it, and ends it.
//!
//! Place: `up` starts it and hands it its [`Task`] on standard input; the emulator and all programs are its descendants. It reports to `up` on
//! standard output, one line each: `cluster DIRECTORY`, `started`, `ready`, `error TEXT`. Invariants: it ends with `up` in the foreground; who loses
//! his parent below it becomes its child, so that it can end everything that its programs have started; programs are killed by the kernel when
//! it dies itself. Source: ours; PR_SET_CHILD_SUBREAPER and PR_SET_PDEATHSIG in prctl(2).

pub(crate) mod artifacts;
pub(crate) mod conductor;
mod events;
pub(crate) mod log;
pub(crate) mod processes;
mod program;
mod readiness;
pub(crate) mod request;

use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::poll::{PollFd, PollFlags};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::cli;
use crate::config::ClusterPlan;
use crate::emulator::{self, Emulator, StartOptions, Started};
use crate::exit::Failure;
use crate::paths::RunDirectory;
use crate::run;
use crate::signals::{self, StopSignals};
use conductor::{Conductor, Phase, Wishes};
use log::Writer;
use program::Setup;

/// The hidden command that becomes a program of a node.
pub(crate) const LAUNCHER: &str = "__node-program";
/// Exit code when the time was over, as timeout(1) has it.
pub(crate) const TIMED_OUT: i32 = 124;

/// What a keeper is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Task {
    /// Name of the cluster.
    pub(crate) name: String,
    /// The cluster.
    pub(crate) plan: ClusterPlan,
    /// Directory of the cluster file.
    pub(crate) files: PathBuf,
    /// Where the nodes' state folders are; with the cluster's own files when absent.
    pub(crate) state: Option<PathBuf>,
    /// Where to keep what explains the run.
    pub(crate) artifacts: Option<PathBuf>,
    /// It lives on without `up` once it has said so: when everything has been started, or when all is ready.
    pub(crate) detach: Option<Detach>,
    /// Nodes whose programs' end is the end, with their status.
    pub(crate) exit_from: Vec<String>,
    /// Time for everything to become ready.
    pub(crate) timeout: Option<Duration>,
}

/// When `up` leaves a cluster to its keeper.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Detach {
    /// When every program has been started.
    Started,
    /// When every program is ready.
    Ready,
}

/// The keeper process.
pub(crate) fn keep(arguments: &cli::Keeper) -> Result<(), Failure> {
    signals::end_with_parent(arguments.parent)?;
    let stop = StopSignals::catch()?;
    let ended = signals::ChildEnds::catch()?;
    // What the terminal tells its foreground is for `up` to hear.
    nix::unistd::setsid().context("cannot leave the session of the terminal")?;
    prctl::set_child_subreaper(true).context("cannot become the parent of orphans")?;
    match run_task(arguments.options, &stop, &ended) {
        Ok(code) => Err(Failure::silent(u8::try_from(code).unwrap_or(1))),
        Err(error) => {
            say(&format!("error {error:#}"));
            Err(Failure::silent(crate::exit::FAILED))
        }
    }
}

fn run_task(
    options: cli::EmulatorOptions,
    stop: &StopSignals,
    ended: &signals::ChildEnds,
) -> anyhow::Result<i32> {
    let mut text = Vec::new();
    io::stdin()
        .read_to_end(&mut text)
        .context("cannot read the task")?;
    let task: Task = serde_json::from_slice(&text).context("cannot read the task")?;
    if task.detach.is_some() {
        std::env::set_current_dir("/").context("cannot leave the working directory")?;
    }
    let run = RunDirectory::of_user();
    // With programs, the clock of the events starts when these are ready, and it runs here.
    let fabric = ClusterPlan {
        events: Vec::new(),
        ..task.plan.clone()
    };
    let options = StartOptions {
        is_kept: true,
        logs_to_file: task.detach.is_some(),
        ..options.start_options()
    };
    let mut emulator = match Emulator::start(&run, &task.name, &fabric, options, stop)? {
        Started::Ready(emulator) => emulator,
        Started::Stopped => return Ok(0),
    };
    let setup = Setup {
        cluster: task.name.clone(),
        directory: emulator.directory().to_owned(),
        run: run.path().to_owned(),
        binary: emulator::own_binary()?,
        files: task.files.clone(),
        state: task.state.clone(),
        expects_san: task.plan.wildcard_on_san,
        emulator: emulator.pid(),
    };
    let log = Writer::make(&setup.directory).context("cannot make the log of the programs")?;
    let listener = request::listen(&setup.directory)?;
    let wishes = Wishes {
        exit_from: task.exit_from.clone(),
        deadline: task.timeout.map(|time| Instant::now() + time),
        stays: task.detach.is_some(),
    };
    let mut conductor = Conductor::new(setup, &task.plan, log, wishes);
    conductor.make_folders()?;
    say(&format!("cluster {}", emulator.directory().display()));
    let is_alive = conduct(&task, &mut conductor, &emulator, &listener, stop, ended)?;
    let code = conductor.code();
    if let Some(to) = &task.artifacts {
        artifacts::write(to, &task.plan, &conductor, code)?;
    }
    match is_alive {
        true => emulator.stop()?,
        false => emulator.collect()?,
    };
    Ok(code)
}

/// Stays with the programs until they have ended; whether the emulator lives on.
fn conduct(
    task: &Task,
    conductor: &mut Conductor,
    emulator: &Emulator,
    listener: &UnixListener,
    stop: &StopSignals,
    ended: &signals::ChildEnds,
) -> anyhow::Result<bool> {
    let mut reports = Reports::default();
    let mut is_alive = true;
    loop {
        let wait = conductor.turn();
        reports.tell(task, conductor)?;
        if conductor.phase == Phase::Done {
            return Ok(is_alive);
        }
        let fixed = [
            stop.as_fd(),
            ended.as_fd(),
            listener.as_fd(),
            emulator.process().as_fd(),
        ];
        let fixed = &fixed[..if is_alive { 4 } else { 3 }];
        let mut fds: Vec<PollFd<'_>> = fixed
            .iter()
            .copied()
            .chain(conductor.outputs())
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        signals::poll(&mut fds, wait)?;
        let is_ready = |at: usize| signals::is_ready(&fds[at]);
        let (has_request, has_ended) = (is_ready(2), is_alive && is_ready(3));
        drop(fds);
        while let Some(signal) = stop.take() {
            let is_again = conductor.phase == Phase::Stopping && conductor.failure().is_none();
            conductor.stop(is_again || signal == Signal::SIGINT);
        }
        ended.drain();
        if has_request {
            request::serve(listener, conductor);
        }
        if has_ended {
            is_alive = false;
            conductor.lose_emulator();
        }
    }
}

/// What `up` has been told.
#[derive(Default)]
struct Reports {
    is_started: bool,
    is_ready: bool,
    is_failed: bool,
}

impl Reports {
    fn tell(&mut self, task: &Task, conductor: &Conductor) -> anyhow::Result<()> {
        if let Some(failure) = conductor.failure()
            && !std::mem::replace(&mut self.is_failed, true)
        {
            say(&format!("error {failure}"));
        }
        let is_up = conductor.failure().is_none();
        if is_up && conductor.is_started() && !std::mem::replace(&mut self.is_started, true) {
            if task.detach == Some(Detach::Started) {
                signals::outlive_parent()?;
            }
            say("started");
        }
        if conductor.phase == Phase::Ready && !std::mem::replace(&mut self.is_ready, true) {
            if task.detach.is_some() {
                signals::outlive_parent()?;
            }
            say("ready");
        }
        Ok(())
    }
}

/// Tells `up`, which may have gone.
fn say(line: &str) {
    let mut stdout = io::stdout().lock();
    // Nobody listens any more: then nobody needs to hear it.
    let _ = writeln!(stdout, "{}", line.replace('\n', " ")).and_then(|()| stdout.flush());
}

/// Becomes a program of a node; a child of the keeper. Returns only when that failed.
pub(crate) fn become_program(arguments: &cli::NodeProgram) -> Result<(), Failure> {
    signals::die_with_parent(arguments.parent)?;
    nix::unistd::setsid().context("cannot make a session")?;
    std::env::set_current_dir(&arguments.dir).map_err(|error| {
        Failure::new(
            crate::exit::RUN_FAILED,
            format_args!("cannot go to {}: {error}", arguments.dir.display()),
        )
    })?;
    signals::unblock_all()?;
    run::run(&arguments.run)
}
