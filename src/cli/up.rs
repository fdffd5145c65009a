//! Arguments of `up`, `down`, `logs`, `node`, and of the processes that they start.
//!
//! Place: part of [`super::Cli`]. Invariants: as there. Source: ours; the options of `up` are named as in compose tools.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use nic_emu::device::PauseOn;
use nic_emu::server::{DebugConfig, Sandbox};

use super::{Choice, Run};
use crate::config::links::NodeAction;
use crate::emulator::StartOptions;
use crate::units;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sanlab up                         until Ctrl-C or `sanlab down`
  sanlab up --detach                returns when every node accepts
  sanlab up lab.toml --name lab2
  sanlab up lab.toml --wait --timeout 60s
  sanlab up test.toml --exit-code-from client --artifacts out

A cluster file:
  [[node]]
  name = \"a\"
  run = [\"redis-server\", \"--protected-mode\", \"no\"]
  ready = { tcp = 6379 }
  [[node]]
  name = \"b\"
  after = [\"a\"]
  run = [\"redis-benchmark\", \"-h\", \"a\", \"-q\"]

The first Ctrl-C ends programs in order, those first that need others; the
second ends all at once. docs/cluster.md has every key.")]
pub(crate) struct Up {
    /// Cluster file, TOML (or JSON when it ends in .json).
    pub(crate) file: Option<PathBuf>,
    /// Name of the cluster [default: the file's, else `default`].
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Return as soon as every program has been started, and leave the cluster running.
    #[arg(long, short = 'd')]
    pub(crate) detach: bool,
    /// Return when every program is ready, and leave the cluster running; fail when one does not become it.
    #[arg(long)]
    pub(crate) wait: bool,
    /// Time for all to become ready; with --exit-code-from for the whole run, which then exits with 124.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) timeout: Option<Duration>,
    /// End the cluster when the programs of this node have ended, and exit with their status.
    #[arg(long, value_name = "NODE", conflicts_with_all = ["detach", "wait"])]
    pub(crate) exit_code_from: Option<String>,
    /// Keep logs, counters, links, faults, events with their times and the seed in this directory.
    #[arg(long, value_name = "DIR")]
    pub(crate) artifacts: Option<PathBuf>,
    /// Where the nodes have their state folders, which then stay [default: with the cluster, and they go with it].
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    /// Output of programs without colours.
    #[arg(long)]
    pub(crate) no_color: bool,
    /// Print the configuration that would be in force, and start nothing.
    #[arg(long)]
    pub(crate) print_config: bool,
    #[command(flatten)]
    pub(crate) options: EmulatorOptions,
}

/// How an emulator runs.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct EmulatorOptions {
    /// Whether the emulator gives up capabilities, files and system calls that it does not need; `off` to debug it.
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "on|off",
        hide_possible_values = true
    )]
    pub(crate) sandbox: Sandbox,
    /// Watch for what drivers do wrong although a NIC might let it pass; `stat` shows the findings.
    #[arg(long)]
    pub(crate) validate: bool,
    /// Make the emulator stand still at a failure, a finding, or findings of one rule (`nic-emu step` and `continue` go on).
    #[arg(long, value_name = "error|finding|RULE")]
    pub(crate) pause_on: Option<PauseOn>,
    /// Serve metrics for Prometheus at this address, as 127.0.0.1:9477; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) metrics: Option<SocketAddr>,
}

impl EmulatorOptions {
    /// The options of its start.
    pub(crate) fn start_options(self) -> StartOptions {
        StartOptions {
            sandbox: self.sandbox,
            metrics: self.metrics,
            debug: DebugConfig {
                validate: self.validate,
                pause_on: self.pause_on,
                ..DebugConfig::default()
            },
            ..StartOptions::default()
        }
    }

    /// The same as words of a command line.
    pub(crate) fn words(self) -> Vec<String> {
        let mut words = Vec::new();
        if self.sandbox == Sandbox::Off {
            words.push("--sandbox=off".to_owned());
        }
        if self.validate {
            words.push("--validate".to_owned());
        }
        if let Some(on) = self.pause_on {
            words.push(format!("--pause-on={on}"));
        }
        if let Some(address) = self.metrics {
            words.push(format!("--metrics={address}"));
        }
        words
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    match units::time_ns(text)? {
        0 => Err("no time at all".to_owned()),
        ns => Ok(Duration::from_nanos(ns)),
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sanlab down
  sanlab down lab2

Programs of the cluster file end in order, SIGTERM first. Programs of
`sanlab run` keep running; their SAN connections end with ECONNRESET.")]
pub(crate) struct Down {
    #[command(flatten)]
    pub(crate) choice: Choice,
    /// Kill the programs of the cluster file at once.
    #[arg(long)]
    pub(crate) now: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sanlab logs
  sanlab logs -f a b
  sanlab logs --cluster lab2 --tail 20")]
pub(crate) struct Logs {
    /// Only these nodes.
    #[arg(value_name = "NODE")]
    pub(crate) nodes: Vec<String>,
    /// Go on until Ctrl-C or the end of the cluster.
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// At most so many lines of what was.
    #[arg(long, value_name = "N")]
    pub(crate) tail: Option<usize>,
    /// Show when each line came, in UTC.
    #[arg(long, short)]
    pub(crate) timestamps: bool,
    /// Without colours.
    #[arg(long)]
    pub(crate) no_color: bool,
    /// Print one JSON object a line.
    #[arg(long)]
    pub(crate) json: bool,
    /// The cluster [default: the only one that runs].
    #[arg(long, value_name = "CLUSTER")]
    pub(crate) cluster: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sanlab node ls
  sanlab node poweroff b; sleep 5; sanlab node restart b

They mean the programs that a cluster file has under `run`; those of
`sanlab run` are their caller's.")]
pub(crate) struct Node {
    #[command(subcommand)]
    pub(crate) command: NodeCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// List the programs with their state.
    #[command(after_help = "Example:
  sanlab node ls --json | jq '.programs[] | select(.ready | not)'")]
    Ls(NodeLs),
    /// Kill the programs of a node; their peers see the end.
    #[command(after_help = "Example:\n  sanlab node kill b")]
    Kill(NodeChange),
    /// Silence: nothing reaches or leaves the node, its programs stand still, and what they hold in memory is lost.
    #[command(after_help = "Example:\n  sanlab node poweroff b")]
    Poweroff(NodeChange),
    /// Make the programs of a node stand still; its NIC goes on.
    #[command(after_help = "Example:\n  sanlab node freeze b")]
    Freeze(NodeChange),
    /// Let frozen programs go on.
    #[command(after_help = "Example:\n  sanlab node thaw b")]
    Thaw(NodeChange),
    /// End the programs of a node and start them again; switches on a node that is off.
    #[command(after_help = "Example:\n  sanlab node restart b")]
    Restart(NodeChange),
}

impl NodeCommand {
    /// What it does to which node; `None` for a list.
    pub(crate) fn change(&self) -> Option<(NodeAction, &NodeChange)> {
        Some(match self {
            Self::Ls(_) => return None,
            Self::Kill(change) => (NodeAction::Kill, change),
            Self::Poweroff(change) => (NodeAction::Poweroff, change),
            Self::Freeze(change) => (NodeAction::Freeze, change),
            Self::Thaw(change) => (NodeAction::Thaw, change),
            Self::Restart(change) => (NodeAction::Restart, change),
        })
    }
}

#[derive(Debug, Args)]
pub(crate) struct NodeLs {
    /// Print one JSON object instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
    /// The cluster [default: the only one that runs].
    #[arg(long, value_name = "CLUSTER")]
    pub(crate) cluster: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct NodeChange {
    /// The node.
    pub(crate) node: String,
    /// The cluster [default: the only one that runs].
    #[arg(long, value_name = "CLUSTER")]
    pub(crate) cluster: Option<String>,
}

/// Arguments of the keeper; its task comes on standard input.
#[derive(Debug, Args)]
pub(crate) struct Keeper {
    /// The process that starts it; when that ends before its time, so does the keeper.
    #[arg(long)]
    pub(crate) parent: i32,
    #[command(flatten)]
    pub(crate) options: EmulatorOptions,
}

/// Arguments of a program of a node before it is the program.
#[derive(Debug, Args)]
pub(crate) struct NodeProgram {
    /// The keeper, with which it ends.
    #[arg(long)]
    pub(crate) parent: i32,
    /// Working directory.
    #[arg(long)]
    pub(crate) dir: PathBuf,
    #[command(flatten)]
    pub(crate) run: Run,
}
