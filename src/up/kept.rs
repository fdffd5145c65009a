//! `up` of a cluster with programs: the side of the terminal.
//!
//! Place: starts the keeper, shows what the log of the programs gets, and hands Ctrl-C on. Invariants: the exit code is the keeper's; a keeper that
//! is killed leaves nothing, because its orphans come to this process, which kills them. Source: ours; the behaviour follows compose tools.

use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::Context as _;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use rustix::process::{Signal as RawSignal, pidfd_send_signal};

use crate::cli;
use crate::config::ClusterPlan;
use crate::emulator;
use crate::exit::{self, FAILED, Failure};
use crate::keeper::log::Reader;
use crate::keeper::{Detach, Task, artifacts, processes};
use crate::logs::{Show, Watch};
use crate::output;
use crate::paths::RunDirectory;
use crate::signals::{StopSignals, Waited};

/// Starts a cluster with programs.
pub(super) fn up(arguments: &cli::Up, name: &str, plan: &ClusterPlan) -> Result<(), Failure> {
    let task = task_of(arguments, name, plan)?;
    let stop = StopSignals::catch()?;
    prctl::set_child_subreaper(true).map_err(|error| {
        Failure::new(FAILED, format_args!("cannot become a subreaper: {error}"))
    })?;
    let mut keeper = KeeperProcess::start(&task, arguments.options)?;
    let names = plan.nodes.iter().map(|node| node.name.clone()).collect();
    let mut view = View {
        show: Show::new(names, arguments.no_color),
        log: None,
        is_quiet: task.detach.is_some(),
        failure: None,
        stop: None,
    };
    let is_left = view.follow(&mut keeper, &task, &stop)?;
    if is_left {
        return Ok(());
    }
    let status = keeper.child.wait().context("cannot wait for the keeper")?;
    if let Some(signal) = status.signal() {
        processes::kill_all(|_| false);
        // Its directory is a leftover now.
        RunDirectory::of_user().lock()?.clean()?;
        return Err(Failure::new(
            FAILED,
            format_args!(
                "the keeper of the cluster `{name}` was killed (signal {signal}); its programs and leftovers have been removed"
            ),
        ));
    }
    if let Some(failure) = &view.failure {
        exit::diagnostic(format_args!("{failure}"));
    }
    let code = u8::try_from(status.code().unwrap_or(1)).unwrap_or(FAILED);
    match (view.stop, task.exit_from.is_empty()) {
        // The program was asked for its status and has none.
        (Some(Signal::SIGINT), false) if code != 0 => Err(Failure::silent(exit::INTERRUPTED)),
        _ if code == 0 => Ok(()),
        _ => Err(Failure::silent(code)),
    }
}

fn task_of(arguments: &cli::Up, name: &str, plan: &ClusterPlan) -> Result<Task, Failure> {
    let exit_from = match &arguments.exit_code_from {
        None => Vec::new(),
        Some(wanted) => {
            let is_it = |node: &&crate::config::NodePlan| {
                node.name == *wanted
                    || node
                        .group
                        .as_ref()
                        .is_some_and(|group| group.name == *wanted)
            };
            let nodes = plan
                .nodes
                .iter()
                .filter(is_it)
                .filter(|node| !node.programs.is_empty());
            let names: Vec<String> = nodes.map(|node| node.name.clone()).collect();
            if names.is_empty() {
                return Err(Failure::usage(format_args!(
                    "--exit-code-from: no node `{wanted}` has a program; `run` in a `[[node]]` gives it one"
                )));
            }
            names
        }
    };
    let absolute = |path: &Path| {
        std::path::absolute(path)
            .map_err(|error| Failure::usage(format_args!("{}: {error}", path.display())))
    };
    let files = arguments.file.as_deref().and_then(Path::parent);
    let files = files.filter(|path| !path.as_os_str().is_empty());
    Ok(Task {
        name: name.to_owned(),
        plan: plan.clone(),
        files: absolute(files.unwrap_or(Path::new(".")))?,
        state: arguments.state.as_deref().map(absolute).transpose()?,
        artifacts: arguments
            .artifacts
            .as_deref()
            .map(artifacts::make)
            .transpose()?,
        detach: match (arguments.wait, arguments.detach) {
            (true, _) => Some(Detach::Ready),
            (false, true) => Some(Detach::Started),
            (false, false) => None,
        },
        exit_from,
        timeout: arguments.timeout,
    })
}

/// The keeper as a child.
struct KeeperProcess {
    child: Child,
    pidfd: OwnedFd,
    reports: ChildStdout,
    said: Vec<u8>,
}

impl KeeperProcess {
    fn start(task: &Task, options: cli::EmulatorOptions) -> anyhow::Result<Self> {
        let mut command = Command::new(emulator::own_binary()?);
        command
            .arg("__keeper")
            .arg(format!("--parent={}", std::process::id()))
            .args(options.words())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if task.detach.is_some() {
            // The terminal may go; what matters is in the logs.
            command.stderr(Stdio::null());
        }
        let text = serde_json::to_vec(task).context("cannot encode the cluster")?;
        let mut child = command.spawn().context("cannot start the keeper")?;
        let pidfd = emulator::process_descriptor(child.id())?;
        let reports = child.stdout.take().context("the keeper has no pipe")?;
        let mut stdin = child.stdin.take().context("the keeper has no pipe")?;
        // A keeper that ends before it has read everything says why itself.
        let _ = stdin.write_all(&text);
        drop(stdin);
        Ok(Self {
            child,
            pidfd,
            reports,
            said: Vec::new(),
        })
    }

    /// Lines that it has reported; `None` once it has ended.
    fn take_reports(&mut self) -> anyhow::Result<Option<Vec<String>>> {
        let mut piece = [0; 4096];
        let len = self
            .reports
            .read(&mut piece)
            .context("cannot hear the keeper")?;
        if len == 0 {
            return Ok(None);
        }
        self.said.extend_from_slice(&piece[..len]);
        let mut lines = Vec::new();
        while let Some(end) = self.said.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.said.drain(..=end).collect();
            lines.push(String::from_utf8_lossy(line.trim_ascii_end()).into_owned());
        }
        Ok(Some(lines))
    }

    fn signal(&self, signal: RawSignal) {
        // ESRCH: it ended by itself in between.
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }
}

/// What the terminal shows.
struct View {
    show: Show,
    log: Option<(Reader, Watch)>,
    /// Programs' output is not shown.
    is_quiet: bool,
    failure: Option<String>,
    stop: Option<Signal>,
}

impl View {
    /// Shows what happens until the keeper ends, or until it may be left alone: then true.
    fn follow(
        &mut self,
        keeper: &mut KeeperProcess,
        task: &Task,
        stop: &StopSignals,
    ) -> Result<bool, Failure> {
        loop {
            let (has_report, has_log) = {
                let mut fds: Vec<BorrowedFd<'_>> = vec![keeper.reports.as_fd()];
                fds.extend(self.log.iter().map(|(_, watch)| watch.fd.as_fd()));
                match stop.wait(&fds, None)? {
                    Waited::Stop => (false, false),
                    Waited::Ready(0) => (true, true),
                    Waited::Ready(_) | Waited::TimedOut => (false, true),
                }
            };
            while let Some(signal) = stop.take() {
                let is_again = self.stop.replace(signal).is_some();
                if !self.is_quiet {
                    exit::diagnostic(format_args!(
                        "{}",
                        match is_again {
                            true => "ending everything at once",
                            false => "ending the programs; again to end them at once",
                        }
                    ));
                }
                // The keeper takes SIGINT for "at once".
                keeper.signal(match is_again {
                    true => RawSignal::INT,
                    false => RawSignal::TERM,
                });
            }
            let reports = match has_report {
                true => keeper.take_reports()?,
                false => Some(Vec::new()),
            };
            if let Some((_, watch)) = &self.log {
                watch.drain();
            }
            if has_log {
                self.show_log()?;
            }
            let Some(reports) = reports else {
                return Ok(false);
            };
            for report in reports {
                if self.take_report(&report, task)? {
                    return Ok(true);
                }
            }
        }
    }

    /// True when the keeper may be left alone.
    fn take_report(&mut self, report: &str, task: &Task) -> Result<bool, Failure> {
        let (word, rest) = report.split_once(' ').unwrap_or((report, ""));
        match word {
            "cluster" => {
                let directory = PathBuf::from(rest);
                output::answer(&super::describe(&task.name, &directory)?)?;
                let watch = Watch::of(&directory)?;
                let reader = Reader::open(&directory).context("cannot read the log")?;
                self.log = Some((reader, watch));
                self.show_log()?;
            }
            "started" if task.detach == Some(Detach::Started) => {
                output::answer("ready\n")?;
                return Ok(true);
            }
            "ready" => {
                output::answer("ready\n")?;
                return Ok(task.detach.is_some());
            }
            "error" => {
                self.failure = Some(rest.to_owned());
                // Whoever waits for a cluster wants to know what its programs said.
                self.is_quiet = false;
                self.show_log()?;
            }
            _ => {}
        }
        Ok(false)
    }

    fn show_log(&mut self) -> Result<(), Failure> {
        if self.is_quiet {
            return Ok(());
        }
        if let Some((reader, _)) = &mut self.log {
            let entries = reader.take().context("cannot read the log")?;
            self.show.print(&entries)?;
        }
        Ok(())
    }
}
