//! The emulator as a child process: started by `up` and `demo`, and the hidden command that it runs.
//!
//! Place: [`Emulator::start`] in the parent; [`serve`] in the child, which claims addresses and hands over to `nic_emu::server`.
//! Invariants: the child inherits the lock on the cluster's directory as its standard input and holds it to its end, so nobody mistakes a living
//! cluster for a leftover. Its standard output is a pipe with one line, `ready` or `error …`. Until it is ready, and in the foreground
//! always, it ends with its parent. It removes its directory itself; the parent does so when the child could not.
//! Source: ours.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nic_emu::server::{ClusterConfig, DebugConfig, NodeSpace, Sandbox};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::claim::Claim;
use crate::cli;
use crate::cluster::Record;
use crate::config::{ClusterPlan, Isolation};
use crate::control;
use crate::exit::Failure;
use crate::metrics;
use crate::netns::{self, Proxies};
use crate::paths::{self, ClusterHome, RunDirectory};
use crate::signals::{self, StopSignals, Waited};

/// How long a start may take.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long the emulator gets to end by itself.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// How an emulator is started.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StartOptions {
    /// It lives on without its parent, and logs into its directory.
    pub(crate) is_detached: bool,
    /// The run directory was made for this cluster alone and goes with it.
    pub(crate) owns_run_directory: bool,
    /// Whether it confines itself.
    pub(crate) sandbox: Sandbox,
    /// Where its metrics are served.
    pub(crate) metrics: Option<SocketAddr>,
    /// What helps to find faults in drivers.
    pub(crate) debug: DebugConfig,
    /// Its parent starts and ends programs, and ends the cluster.
    pub(crate) is_kept: bool,
    /// It logs into its directory although it ends with its parent.
    pub(crate) logs_to_file: bool,
}

/// A running emulator process. Dropping it ends the process and removes its directory.
#[derive(Debug)]
pub(crate) struct Emulator {
    child: Child,
    pidfd: OwnedFd,
    home: ClusterHome,
    is_released: bool,
}

/// How the start of an emulator ended.
#[derive(Debug)]
pub(crate) enum Started {
    /// Every node accepts.
    Ready(Emulator),
    /// The user wanted to stop before that; nothing is left.
    Stopped,
}

impl Emulator {
    /// Starts the emulator of a new cluster and waits until every node accepts.
    pub(crate) fn start(
        run: &RunDirectory,
        name: &str,
        plan: &ClusterPlan,
        options: StartOptions,
        stop: &StopSignals,
    ) -> anyhow::Result<Started> {
        // Bound before anything starts: an address that is taken is told at once.
        let metrics = options.metrics.map(metrics::bind).transpose()?;
        paths::check_socket_paths(run, name, plan.nodes.iter().map(|node| node.name.as_str()))?;
        let home = {
            let lock = run.lock()?;
            let live = lock.clean()?;
            if live.iter().any(|(other, _)| other == name) {
                bail!(
                    "the cluster `{name}` runs already; end it with `sanlab down {name}`, or choose another name with `--name`"
                );
            }
            lock.make(name)?
        };
        let mut emulator = match Self::spawn(home, plan, options) {
            Ok(emulator) => emulator,
            Err((home, error)) => {
                home.remove()?;
                return Err(error);
            }
        };
        match emulator.wait_ready(stop)? {
            true => {
                if let Some(listener) = metrics {
                    metrics::start(listener, &emulator.home.path, emulator.child.id())?;
                }
                Ok(Started::Ready(emulator))
            }
            false => {
                emulator.stop()?;
                Ok(Started::Stopped)
            }
        }
    }

    fn spawn(
        home: ClusterHome,
        plan: &ClusterPlan,
        options: StartOptions,
    ) -> Result<Self, (ClusterHome, anyhow::Error)> {
        match Self::spawn_child(&home, plan, options) {
            Ok((child, pidfd)) => Ok(Self {
                child,
                pidfd,
                home,
                is_released: false,
            }),
            Err(error) => Err((home, error)),
        }
    }

    fn spawn_child(
        home: &ClusterHome,
        plan: &ClusterPlan,
        options: StartOptions,
    ) -> anyhow::Result<(Child, OwnedFd)> {
        let plan = serde_json::to_vec(plan).context("cannot encode the cluster")?;
        let plan_file = paths::plan_file(&home.path);
        fs::write(&plan_file, plan)
            .with_context(|| format!("cannot write {}", plan_file.display()))?;
        let lock = home
            .lock
            .try_clone()
            .context("cannot hand over the lock of the cluster")?;
        let mut command = Command::new(own_binary()?);
        command
            .arg("__emulator")
            .arg(&home.path)
            .arg(format!("--parent={}", std::process::id()))
            .stdin(Stdio::from(lock))
            .stdout(Stdio::piped())
            // A preloaded library of the caller has no business in the emulator.
            .env_remove("LD_PRELOAD");
        if options.is_detached || options.logs_to_file {
            let log = paths::log_file(&home.path);
            let log =
                File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
            command.stderr(Stdio::from(log));
        }
        if options.is_detached {
            command.arg("--detached");
        }
        if options.is_kept {
            command.arg("--kept");
        }
        if options.owns_run_directory {
            command.arg("--own-run-directory");
        }
        if options.debug.validate {
            command.arg("--validate");
        }
        if let Some(on) = options.debug.pause_on {
            command.arg(format!("--pause-on={on}"));
        }
        if options.sandbox == Sandbox::Off {
            command.arg("--sandbox=off");
        }
        let mut child = command.spawn().context("cannot start the emulator")?;
        match process_descriptor(child.id()) {
            Ok(pidfd) => Ok((child, pidfd)),
            Err(error) => {
                // It is our child and has not been waited for, so the kill cannot miss; it holds nothing yet.
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    /// Waits for the child's one line; false when the user wants to stop.
    fn wait_ready(&mut self, stop: &StopSignals) -> anyhow::Result<bool> {
        let mut pipe = self
            .child
            .stdout
            .take()
            .context("the emulator has no pipe to report through")?;
        let deadline = Instant::now() + START_LIMIT;
        let mut said = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match stop.wait(&[pipe.as_fd()], Some(left))? {
                Waited::Stop => return Ok(false),
                Waited::TimedOut => bail!(
                    "the emulator was not ready after {} s",
                    START_LIMIT.as_secs()
                ),
                Waited::Ready(_) => {}
            }
            let mut piece = [0; 4096];
            let len = pipe
                .read(&mut piece)
                .context("cannot hear from the emulator")?;
            said.extend_from_slice(&piece[..len]);
            if len != 0 && !said.ends_with(b"\n") {
                continue;
            }
            let said = String::from_utf8_lossy(&said);
            let said = said.trim();
            if said == "ready" {
                return Ok(true);
            }
            if let Some(error) = said.strip_prefix("error ") {
                bail!("{error}");
            }
            let log = fs::read_to_string(paths::log_file(&self.home.path)).unwrap_or_default();
            let status = self.child.wait().context("cannot wait for the emulator")?;
            bail!("the emulator ended at its start ({status}) {}", log.trim());
        }
    }

    /// Process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Readable once the process has ended.
    pub(crate) fn process(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// Directory of the cluster.
    pub(crate) fn directory(&self) -> &Path {
        &self.home.path
    }

    /// Leaves the emulator running after this process.
    pub(crate) fn release(mut self) {
        self.is_released = true;
    }

    /// Ends the process, by force if it takes too long, and removes what it left.
    pub(crate) fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        end_process(&self.pidfd, || {
            // ESRCH: it ended by itself in between.
            let _ = pidfd_send_signal(&self.pidfd, Signal::TERM);
        })?;
        self.collect()
    }

    /// Waits for the ended process and removes what it left.
    pub(crate) fn collect(&mut self) -> anyhow::Result<ExitStatus> {
        let status = self.child.wait().context("cannot wait for the emulator")?;
        self.home.remove()?;
        Ok(status)
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        if !self.is_released
            && let Err(error) = self.stop()
        {
            crate::exit::diagnostic(format_args!("{error:#}"));
        }
    }
}

/// Asks a process to end by `ask`, and kills it when it does not. Returns once it has ended.
pub(crate) fn end_process(pidfd: &OwnedFd, ask: impl FnOnce()) -> anyhow::Result<()> {
    ask();
    if signals::wait_readable(pidfd.as_fd(), STOP_LIMIT)? {
        return Ok(());
    }
    kill_process(pidfd)
}

/// Kills a process. Returns once it has ended.
pub(crate) fn kill_process(pidfd: &OwnedFd) -> anyhow::Result<()> {
    // ESRCH: it ended by itself in between.
    let _ = pidfd_send_signal(pidfd, Signal::KILL);
    if signals::wait_readable(pidfd.as_fd(), STOP_LIMIT)? {
        return Ok(());
    }
    bail!("the emulator cannot be killed; look at its state in /proc")
}

/// A descriptor of a process: it names that process only, and becomes readable when it ends.
pub(crate) fn process_descriptor(pid: u32) -> anyhow::Result<OwnedFd> {
    let raw = i32::try_from(pid).with_context(|| format!("no process id: {pid}"))?;
    let pid = Pid::from_raw(raw).with_context(|| format!("no process id: {pid}"))?;
    pidfd_open(pid, PidfdFlags::empty()).with_context(|| format!("cannot watch process {raw}"))
}

/// The file of this very program, which starts itself for its hidden commands.
pub(crate) fn own_binary() -> anyhow::Result<std::path::PathBuf> {
    std::env::current_exe().context("cannot find the file of this program")
}

/// The emulator process: serves a cluster until it is told to end.
pub(crate) fn serve(arguments: &cli::Emulator) -> Result<(), Failure> {
    let directory = &arguments.directory;
    let mut is_ready = false;
    let served = prepare(arguments).and_then(|(plan, claim, spaces, proxies)| {
        start_log();
        let record = Record {
            emulator_pid: i32::try_from(std::process::id()).unwrap_or_default(),
            up_pid: (!arguments.detached).then_some(arguments.parent),
            is_kept: arguments.kept,
            nodes: claim.nodes.clone(),
        };
        let config = ClusterConfig {
            name: cluster_name(directory),
            dir: directory.clone(),
            nodes: claim.nodes.clone(),
            subnet: claim.subnet,
            wildcard_on_san: plan.wildcard_on_san,
            backlog_full: plan.backlog_full,
            san_connect_limit_ms: plan.san_connect_limit_ms,
            loopback: plan.loopback,
            debug: DebugConfig {
                validate: arguments.options.validate,
                pause_on: arguments.options.pause_on,
                ..DebugConfig::default()
            },
            lab: plan.lab(),
        };
        // Published ports are free again when the cluster is down.
        let _proxies = proxies;
        control::serve(&config, spaces, arguments.options.sandbox, || {
            let announced = record
                .write(directory)
                .and_then(|()| match arguments.detached {
                    true => signals::outlive_parent(),
                    false => Ok(()),
                });
            match announced {
                Ok(()) => is_ready = say("ready"),
                Err(error) => tracing::error!("{error:#}"),
            }
        })
    });
    // The lock, our standard input, is held until this process ends.
    let removed = fs::remove_dir_all(directory)
        .with_context(|| format!("cannot remove {}", directory.display()));
    if arguments.own_run_directory
        && let Some(run) = directory.parent()
    {
        // Not empty when somebody else uses it; then it is not ours to remove.
        let _ = fs::remove_dir(run);
    }
    match (served, removed) {
        (Ok(()), Ok(())) => Ok(()),
        (Err(error), _) if !is_ready => {
            say(&format!("error {error:#}"));
            Err(Failure::silent(crate::exit::FAILED))
        }
        (Err(error), _) | (Ok(()), Err(error)) => Err(error.into()),
    }
}

/// A cluster's directory has its name.
fn cluster_name(directory: &Path) -> String {
    let name = directory.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

fn prepare(
    arguments: &cli::Emulator,
) -> anyhow::Result<(ClusterPlan, Claim, Vec<NodeSpace>, Proxies)> {
    signals::unblock_all()?;
    signals::end_with_parent(arguments.parent)?;
    if arguments.detached {
        signals::leave_terminal()?;
        // Nobody shall find a directory in use because a cluster was started there.
        std::env::set_current_dir("/").context("cannot leave the working directory")?;
    }
    let path = paths::plan_file(&arguments.directory);
    let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let plan: ClusterPlan =
        serde_json::from_slice(&text).with_context(|| format!("cannot read {}", path.display()))?;
    let claim = Claim::of(&plan)?;
    let spaces = match plan.isolation {
        Isolation::Loopback => Vec::new(),
        Isolation::Netns => netns::make(&claim.nodes, plan.interface_mtus(), &arguments.directory)?,
    };
    let proxies = netns::publish(&plan.nodes, &claim.nodes, &spaces)?;
    Ok((plan, claim, spaces, proxies))
}

/// Reports to the parent; false when it is gone.
fn say(line: &str) -> bool {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{}", line.replace('\n', " "))
        .and_then(|()| stdout.flush())
        .is_ok()
}

fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("SANLAB_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    // Fails only when a log was set up before, which is as good.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(false)
        .try_init();
}
