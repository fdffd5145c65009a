//! The command line as data: parsing only, nothing here touches the system.
//!
//! Place: `main` parses [`Cli`] and hands each command its arguments.
//! Invariants: doc comments are the help text; every command shows an example; hidden commands start with two underscores and are
//! how the binary starts itself.
//! Source: ours.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use nic_emu::device::PauseOn;
use nic_emu::server::{Loopback, Sandbox};

const OVERVIEW: &str = "Example, in two terminals:
  sanlab up
  sanlab run --node a -- python3 -m http.server 8000
  sanlab run --node b -- curl http://a:8000/
  sanlab stat

Clusters live in a run directory of your own: $SANLAB_RUN_DIR, else
$XDG_RUNTIME_DIR/sanlab, else /tmp/sanlab-UID.";

/// A system-area network on one Linux machine: emulated SAN NICs that carry unmodified socket programs.
#[derive(Debug, Parser)]
#[command(name = "sanlab", version, after_help = OVERVIEW, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a cluster, run programs on it and prove that their bytes travelled over the emulated SAN.
    Demo(Demo),
    /// Start a cluster: the one in FILE, else the built-in one with nodes a, b and c.
    Up(Up),
    /// End a cluster: its emulator, its sockets and its files.
    Down(Down),
    /// List the running clusters.
    Ls(Ls),
    /// Run a program on a node of a cluster.
    Run(Run),
    /// Show what the NICs and the connections of a cluster have done.
    Stat(Stat),
    /// Check what this machine allows, and say how to get the rest.
    Doctor(Doctor),
    /// The process that emulates a cluster.
    #[command(name = "__emulator", hide = true)]
    Emulator(Emulator),
    /// The demo's own programs.
    #[command(name = "__program", hide = true)]
    Program(Program),
    /// Tries to make a user namespace.
    #[command(name = "__probe-user-namespace", hide = true)]
    ProbeUserNamespace,
    /// Tries to give up what the emulator gives up.
    #[command(name = "__probe-sandbox", hide = true)]
    ProbeSandbox,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:
  sanlab demo
  sanlab demo --json | jq .ok

Exits 0 only if every byte arrived right and the NICs' counters account for all of them.")]
pub(crate) struct Demo {
    /// Print one JSON object instead of tables.
    #[arg(long)]
    pub(crate) json: bool,
    /// How often each program runs on each road; the figures are medians.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=20))]
    pub(crate) rounds: u32,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sanlab up                         until Ctrl-C or `sanlab down`
  sanlab up --detach                returns when every node accepts
  sanlab up lab.toml --name lab2

A cluster file:
  [cluster]
  name = \"lab\"
  [[node]]
  name = \"a\"
  addresses = [\"127.77.0.1/24\"]
  [[node]]
  name = \"b\"                        # no addresses: assigned at start")]
pub(crate) struct Up {
    /// Cluster file, TOML (or JSON when it ends in .json).
    pub(crate) file: Option<PathBuf>,
    /// Name of the cluster [default: the file's, else `default`].
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Return as soon as the cluster is ready and leave it running.
    #[arg(long)]
    pub(crate) detach: bool,
    /// Print the configuration that would be in force, and start nothing.
    #[arg(long)]
    pub(crate) print_config: bool,
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
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sanlab down
  sanlab down lab2

Programs of `sanlab run` keep running; their SAN connections end with ECONNRESET.")]
pub(crate) struct Down {
    #[command(flatten)]
    pub(crate) choice: Choice,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sanlab ls
  sanlab ls --json | jq -r '.clusters[].name'")]
pub(crate) struct Ls {
    /// Print one JSON object instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sanlab run --node a -- redis-server --port 6379
  sanlab run --cluster lab2 --node b -- redis-cli -h a ping
  sanlab run --node a --loopback san -- make check      localhost rides the SAN

The program replaces `sanlab`: process id, signals, terminal and exit
status are its own. Exit codes of `sanlab run` itself: 125 when it fails,
126 when the program cannot be executed, 127 when it is not found. The
program finds SANLAB_CLUSTER, SANLAB_NODE and SANLAB_ADDR in its environment;
the names of the nodes are host names to it, and its own is that of its node.")]
pub(crate) struct Run {
    /// The cluster [default: the only one that runs].
    #[arg(long, value_name = "CLUSTER")]
    pub(crate) cluster: Option<String>,
    /// The node to run on.
    #[arg(long, value_name = "NODE")]
    pub(crate) node: String,
    /// Road of the program's connections to its own node, localhost included [default: the cluster's].
    #[arg(long, value_enum, value_name = "tcp|san", hide_possible_values = true)]
    pub(crate) loopback: Option<Loopback>,
    /// The program and its arguments.
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sanlab stat
  sanlab stat lab2 --json | jq '.connections[] | {program, road, reason}'
  sanlab stat --watch")]
pub(crate) struct Stat {
    #[command(flatten)]
    pub(crate) choice: Choice,
    /// Print one JSON object instead of tables.
    #[arg(long)]
    pub(crate) json: bool,
    /// Print again every second until Ctrl-C.
    #[arg(long, conflicts_with = "json")]
    pub(crate) watch: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sanlab doctor
  sanlab doctor --json | jq '.checks[] | select(.status != \"ok\")'

Exits 0 when clusters can run here, 1 when something they need is missing.")]
pub(crate) struct Doctor {
    /// Print one JSON object instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which cluster, as a word or as an option.
#[derive(Debug, Args)]
pub(crate) struct Choice {
    /// The cluster [default: the only one that runs].
    #[arg(value_name = "CLUSTER")]
    name: Option<String>,
    /// The cluster, as an option.
    #[arg(long, value_name = "CLUSTER", conflicts_with = "name")]
    cluster: Option<String>,
}

impl Choice {
    /// The name, if one was given.
    pub(crate) fn name(&self) -> Option<&str> {
        self.name.as_deref().or(self.cluster.as_deref())
    }
}

/// Arguments of the emulator process.
#[derive(Debug, Args)]
pub(crate) struct Emulator {
    /// Directory of the cluster; standard input is the lock on it.
    pub(crate) directory: PathBuf,
    /// The process that starts it; when that ends before its time, so does the emulator.
    #[arg(long)]
    pub(crate) parent: i32,
    /// Live on after the parent, once ready.
    #[arg(long)]
    pub(crate) detached: bool,
    /// Also remove the run directory at the end.
    #[arg(long)]
    pub(crate) own_run_directory: bool,
    /// Whether it gives up what it does not need.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) sandbox: Sandbox,
    /// Watch for what drivers do wrong although a NIC might let it pass; `stat` shows the findings.
    #[arg(long)]
    pub(crate) validate: bool,
    /// Make the emulator stand still at a failure, a finding, or findings of one rule (`nic-emu step` and `continue` go on).
    #[arg(long, value_name = "error|finding|RULE")]
    pub(crate) pause_on: Option<PauseOn>,
}

/// Arguments of the demo's own programs.
#[derive(Debug, Args)]
pub(crate) struct Program {
    /// The process that starts it and whose end ends it.
    #[arg(long)]
    pub(crate) parent: i32,
    /// What the program itself gets.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) arguments: Vec<String>,
}
