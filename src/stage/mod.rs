//! A cluster of a command's own, and the programs on it.
//!
//! Place: `demo` and `bench` bring up their world with it. Invariants: everything lives in a run directory of its own and is gone at the end,
//! also after Ctrl-C; every wait ends at a deadline or at Ctrl-C; dropping a value ends its process. All processes are children of the
//! main thread, which they do not outlive. Source: ours.

mod talker;

use std::cell::OnceCell;
use std::ffi::OsStr;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use nic_emu::server::{DebugConfig, Sandbox};
use serde_json::Value;

use crate::cli;
use crate::config::ClusterPlan;
use crate::control;
use crate::emulator::{self, Emulator, StartOptions, Started};
use crate::exit::{self, Failure};
use crate::paths::RunDirectory;
use crate::signals::{self, StopSignals, Waited};

pub(crate) use talker::Talker;

/// A cluster of nodes a, b and c that ends with this value.
#[derive(Debug)]
pub(crate) struct Stage {
    // Dropped in this order: the emulator removes its own directory first.
    emulator: Emulator,
    run: RunDirectory,
    directory: TemporaryDirectory,
    files: OnceCell<TemporaryDirectory>,
    stop: StopSignals,
    name: &'static str,
}

impl Stage {
    /// Starts the cluster of a command of this name.
    pub(crate) fn start(name: &'static str) -> Result<Self, Failure> {
        let stop = StopSignals::catch()?;
        let directory = TemporaryDirectory::make(name)?;
        let run = RunDirectory::at(directory.path.clone());
        let options = StartOptions {
            is_detached: false,
            owns_run_directory: true,
            sandbox: Sandbox::On,
            debug: DebugConfig::default(),
            ..StartOptions::default()
        };
        let plan = ClusterPlan {
            // What is shown are the roads, not how busy the machine is.
            san_connect_limit_ms: Some(30_000),
            ..ClusterPlan::built_in()
        };
        match Emulator::start(&run, name, &plan, options, &stop)? {
            Started::Ready(emulator) => Ok(Self {
                emulator,
                run,
                directory,
                files: OnceCell::new(),
                stop,
                name,
            }),
            Started::Stopped => Err(Failure::silent(exit::INTERRUPTED)),
        }
    }

    /// Ends the cluster.
    pub(crate) fn end(mut self) -> Result<(), Failure> {
        self.emulator.stop()?;
        Ok(())
    }

    /// Process of the NICs.
    pub(crate) fn emulator_pid(&self) -> u32 {
        self.emulator.pid()
    }

    /// The run directory, for sockets; directories in it are clusters, and cleaned away when they are none.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory.path
    }

    /// Makes a directory for the files of programs, which goes with this value.
    pub(crate) fn make_directory(&self, name: &str) -> anyhow::Result<PathBuf> {
        let all = match self.files.get() {
            Some(all) => all,
            None => {
                let made = TemporaryDirectory::make(&format!("{}-files", self.name))?;
                self.files.get_or_init(|| made)
            }
        };
        let path = all.path.join(name);
        std::fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    /// Nodes with their first addresses.
    pub(crate) fn addresses(&self) -> Result<Vec<(String, String)>, Failure> {
        let info = control::ping(self.emulator.directory())?;
        Ok(info
            .nodes
            .into_iter()
            .map(|node| {
                let address = node.addresses.first().map_or("", String::as_str);
                let ip = address.split_once('/').map_or(address, |(ip, _)| ip);
                (node.name, ip.to_owned())
            })
            .collect())
    }

    /// First address of a node.
    pub(crate) fn address(&self, node: &str) -> Result<String, Failure> {
        let found = self.addresses()?.into_iter().find(|(name, _)| name == node);
        let (_, address) =
            found.with_context(|| format!("the built-in cluster has no node {node}"))?;
        Ok(address)
    }

    /// The cluster's counters.
    pub(crate) fn stat(&self) -> Result<Value, Failure> {
        Ok(control::stat(self.emulator.directory())?)
    }

    /// What the NICs met that they keep a recording of.
    pub(crate) fn kept_reasons(&self) -> Result<Vec<String>, Failure> {
        Ok(control::kept_reasons(self.emulator.directory())?)
    }

    /// Rests for a moment.
    pub(crate) fn pause(&self, time: Duration) -> Result<(), Failure> {
        match self.stop.wait(&[], Some(time))? {
            Waited::Stop => Err(Failure::silent(exit::INTERRUPTED)),
            _ => Ok(()),
        }
    }

    /// How the user ends this command.
    pub(crate) fn stop(&self) -> &StopSignals {
        &self.stop
    }

    /// A program on a node, or without sanlab.
    pub(crate) fn command(&self, node: Option<&str>, program: &OsStr) -> anyhow::Result<Command> {
        let Some(node) = node else {
            return Ok(Command::new(program));
        };
        let mut command = Command::new(emulator::own_binary()?);
        command
            .args(["run", "--cluster", self.name, "--node", node, "--"])
            .arg(program)
            .env("SANLAB_RUN_DIR", self.run.path());
        Ok(command)
    }

    /// This binary under one of its hidden names, on a node or without sanlab.
    pub(crate) fn own_program(&self, node: Option<&str>, name: &str) -> anyhow::Result<Command> {
        let binary = emulator::own_binary()?;
        let mut command = self.command(node, binary.as_os_str())?;
        command
            .arg(name)
            .arg(format!("--parent={}", std::process::id()))
            .arg("--");
        Ok(command)
    }
}

/// Becomes a program of somebody else, with the signal mask of a fresh one and an end when its parent's comes. Returns only when that failed.
pub(crate) fn leash(program: &cli::Program) -> Result<(), Failure> {
    signals::end_with_parent(program.parent)?;
    signals::unblock_all()?;
    let (name, arguments) = program
        .arguments
        .split_first()
        .context("there is no program to run")?;
    let error = Command::new(name).args(arguments).exec();
    Err(Failure::new(
        exit::NOT_EXECUTABLE,
        format_args!("cannot execute {name}: {error}"),
    ))
}

/// A directory of the command's own. Dropping it removes it.
#[derive(Debug)]
struct TemporaryDirectory {
    path: PathBuf,
}

impl TemporaryDirectory {
    fn make(name: &str) -> anyhow::Result<Self> {
        let name = format!("sanlab-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| {
                format!(
                    "cannot make {} (set TMPDIR to another place)",
                    path.display()
                )
            })?;
        Ok(Self { path })
    }
}

impl Drop for TemporaryDirectory {
    fn drop(&mut self) {
        // The emulator removes it when it ends; this is for one that never came so far, and for files of others in it.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}
