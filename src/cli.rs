//! The command line as data: parsing only, nothing here touches the system.
//!
//! Place: `main` parses [`Cli`] and hands each command its arguments.
//! Invariants: doc comments are the help text; every command shows an example; hidden commands start with two underscores and are
//! how the binary starts itself.
//! Source: ours.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use nic_emu::device::Distribution;
use nic_emu::server::Loopback;

use crate::units;

mod bench;
mod explain;
mod sight;
mod stat;
mod up;

pub(crate) use bench::{
    BenchCompare, BenchEffort, BenchOutput, BenchPrograms, BenchRdma, BenchRing, BenchSocket,
    BenchedProgram, Benchmark, Placement, RingMetric, SocketMetric, SocketPattern, SocketRoad,
};
pub(crate) use explain::{Audit, Explain};
pub(crate) use sight::{Capture, Metrics, Top, Topo};
pub(crate) use stat::Stat;

const OVERVIEW: &str = "Example, in two terminals:
  sanlab up
  sanlab run --node a -- python3 -m http.server 8000
  sanlab run --node b -- curl http://a:8000/
  sanlab stat

Clusters live in a run directory of your own: $SANLAB_RUN_DIR, else
$XDG_RUNTIME_DIR/sanlab, else /tmp/sanlab-UID.";

pub(crate) use up::{
    Down, EmulatorOptions, Keeper, Logs, Node, NodeCommand, NodeLs, NodeProgram, Up,
};

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
    /// Show what the programs of a cluster file said, and what became of them.
    Logs(Logs),
    /// List the programs of a cluster file; kill, freeze, power off and restart nodes.
    Node(Node),
    /// Check a cluster file, and start nothing.
    Check(Check),
    /// End a cluster: its programs, its emulator, its sockets and its files.
    Down(Down),
    /// List the running clusters.
    Ls(Ls),
    /// Run a program on a node of a cluster.
    Run(Run),
    /// Show what the NICs and the connections of a cluster have done.
    Stat(Stat),
    /// Show and change how packets fare between two nodes.
    Link(Link),
    /// Cut the link between two nodes, in both directions or in one.
    Partition(LinkEnds),
    /// Mend links that were cut.
    Heal(Heal),
    /// Take the port of a node's NIC down, or up again.
    Port(Port),
    /// Make chosen pieces of work fail.
    Fault(Fault),
    /// Write what the ports of nodes see as a pcapng file of RoCEv2 frames, for Wireshark.
    Capture(Capture),
    /// Show a cluster on one screen while it runs: rates, links, connections, queues, findings.
    Top(Top),
    /// Show the nodes, the links between them and who talks to whom, as text or drawing.
    Topo(Topo),
    /// List connections, one a line: state, road, queues, credits, and why not the SAN.
    Ss(Ss),
    /// Check what this machine allows, and say how to get the rest.
    Doctor(Doctor),
    /// Measure queues, the NIC, sockets and programs beside a baseline in the same run.
    #[command(subcommand)]
    Bench(Benchmark),
    /// The process that emulates a cluster.
    #[command(name = "__emulator", hide = true)]
    Emulator(Emulator),
    /// Makes the namespaces of a cluster's nodes.
    #[command(name = "__netns", hide = true)]
    Netns,
    /// The process that stays with a cluster and its programs.
    #[command(name = "__keeper", hide = true)]
    Keeper(Keeper),
    /// Becomes a program of a node.
    #[command(name = "__node-program", hide = true)]
    NodeProgram(NodeProgram),
    /// Carries connections from the host's ports to those of a node.
    #[command(name = "__publish", hide = true)]
    Publish,
    /// Writes manual pages, completions and the schema, for packages.
    #[command(name = "__pages", hide = true)]
    Pages(Pages),
    /// The process that serves the metrics of a cluster.
    #[command(name = "__metrics", hide = true)]
    Metrics(Metrics),
    /// The demo's own programs.
    #[command(name = "__program", hide = true)]
    Program(Program),
    /// An end of `bench socket`.
    #[command(name = "__peer", hide = true)]
    Peer(Program),
    /// A program that ends with the one that starts it.
    #[command(name = "__leash", hide = true)]
    Leash(Program),
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
  sanlab check lab.toml
  sanlab check lab.toml --print-config
  sanlab check --schema > sanlab.schema.json

Exits 2 with the file, line, key and what it may be when something is wrong.")]
pub(crate) struct Check {
    /// Cluster file, TOML (or JSON when it ends in .json).
    #[arg(required_unless_present = "schema")]
    pub(crate) file: Option<PathBuf>,
    /// Print the JSON schema of cluster files, for editors and CI.
    #[arg(long, conflicts_with_all = ["file", "json", "print_config"])]
    pub(crate) schema: bool,
    /// Print the configuration that would be in force, as a cluster file.
    #[arg(long, conflicts_with = "json")]
    pub(crate) print_config: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
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
  sanlab run --node b --explain -- curl http://a/       tells the roads at the end
  sanlab run --node a --audit=fail -- ./my-server       no system call goes past us

The program replaces `sanlab`: process id, signals, terminal and exit
status are its own. With --explain or --audit it is a child, to which signals
are forwarded and whose end is passed on. Exit codes of `sanlab run` itself: 125 when it fails,
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
    /// Stay as the program's parent, and tell at its end which connections took which road and why.
    ///
    /// On standard error: as `text` (the default), as one `json` object, or into a file as `text:FILE` or `json:FILE`.
    #[arg(
        long,
        value_name = "FORMAT[:FILE]",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "text"
    )]
    pub(crate) explain: Option<Explain>,
    /// Stay as the program's parent, and report every system call that touches a SAN socket without passing through the library.
    ///
    /// Each call and place in the code once on standard error, all with their counts at the end. With `fail` the exit code is 123 when
    /// there was one and the program itself succeeded.
    #[arg(
        long,
        value_enum,
        value_name = "report|fail",
        hide_possible_values = true,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "report"
    )]
    pub(crate) audit: Option<Audit>,
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
  sanlab link set a b --latency 1ms --loss 0.1%
  sanlab link set 'a->b' --bandwidth '10 Mbit/s'       one direction
  sanlab link show
  sanlab link down a b

Two names are both directions of a link, 'a->b' (quoted) or a:b is one.
Links carry the SAN; what runs over TCP does not meet them.")]
pub(crate) struct Link {
    #[command(subcommand)]
    pub(crate) command: LinkCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum LinkCommand {
    /// Show links that are or were anything but perfect, or the one that is named.
    #[command(after_help = "Examples:
  sanlab link show
  sanlab link show a b --json | jq '.links[].counters'")]
    Show(LinkShow),
    /// Change what is given, and leave the rest.
    #[command(after_help = "Examples:
  sanlab link set a b --latency 1ms --jitter 200us --loss 0.1%
  sanlab link set a:b --bandwidth '10 Mbit/s'
  sanlab link set a b --perfect")]
    Set(LinkSet),
    /// Cut a link.
    #[command(after_help = "Example:
  sanlab link down a b")]
    Down(LinkEnds),
    /// Mend a link that was cut; what else it does to packets stays.
    #[command(after_help = "Example:
  sanlab link up a b")]
    Up(LinkEnds),
}

#[derive(Debug, Args)]
pub(crate) struct LinkShow {
    /// Two nodes, or a direction.
    #[arg(value_name = "A B|A:B", num_args = 0..=2)]
    pub(crate) ends: Vec<String>,
    /// The cluster [default: the only one that runs].
    #[arg(long, value_name = "CLUSTER")]
    pub(crate) cluster: Option<String>,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

/// A distribution by its name.
fn distribution(text: &str) -> Result<Distribution, String> {
    let names = || Distribution::NAMES.map(|(name, _)| name).join(", ");
    Distribution::named(text).ok_or_else(|| format!("the distributions are {}", names()))
}

#[derive(Debug, Args)]
pub(crate) struct LinkSet {
    /// Two nodes, or a direction.
    #[arg(value_name = "A B|A:B", num_args = 1..=2, required = true)]
    pub(crate) ends: Vec<String>,
    /// Time on the way.
    #[arg(long, value_name = "TIME", value_parser = units::time_ns)]
    pub(crate) latency: Option<u64>,
    /// Largest extra time on the way; order is kept.
    #[arg(long, value_name = "TIME", value_parser = units::time_ns)]
    pub(crate) jitter: Option<u64>,
    /// How often which extra time comes: uniform, normal or pareto.
    #[arg(long, value_name = "NAME", value_parser = distribution)]
    pub(crate) jitter_distribution: Option<Distribution>,
    /// Packets lost; between bursts, where there are bursts.
    #[arg(long, value_name = "SHARE", value_parser = units::share_ppm)]
    pub(crate) loss: Option<u32>,
    /// Packets that begin a burst of losses (Gilbert-Elliott); 0 is no bursts.
    #[arg(long, value_name = "SHARE", value_parser = units::share_ppm)]
    pub(crate) burst_enter: Option<u32>,
    /// Packets that end it.
    #[arg(long, value_name = "SHARE", value_parser = units::share_ppm)]
    pub(crate) burst_leave: Option<u32>,
    /// Packets lost in a burst.
    #[arg(long, value_name = "SHARE", value_parser = units::share_ppm)]
    pub(crate) burst_loss: Option<u32>,
    /// Packets held back so that later ones overtake them.
    #[arg(long, value_name = "SHARE", value_parser = units::share_ppm)]
    pub(crate) reorder: Option<u32>,
    /// Longest time a packet is held back.
    #[arg(long, value_name = "TIME", value_parser = units::time_ns)]
    pub(crate) reorder_by: Option<u64>,
    /// Packets that arrive twice.
    #[arg(long, value_name = "SHARE", value_parser = units::share_ppm)]
    pub(crate) duplicate: Option<u32>,
    /// Packets that arrive damaged, which is found, and are sent again.
    #[arg(long, value_name = "SHARE", value_parser = units::share_ppm)]
    pub(crate) corrupt: Option<u32>,
    /// Bits each second; 0 is without limit.
    #[arg(long, value_name = "RATE", value_parser = units::rate_bps)]
    pub(crate) bandwidth: Option<u64>,
    /// Bytes that wait for that bandwidth at most, as 64KiB; what finds no room is dropped. 'no limit' takes the limit away.
    #[arg(long, value_name = "SIZE", value_parser = units::queue_bytes)]
    pub(crate) queue: Option<u64>,
    /// Longest IP packet in bytes, 576 to 9216, of both directions.
    #[arg(long, value_name = "BYTES", value_parser = units::mtu_bytes)]
    pub(crate) mtu: Option<u32>,
    /// Everything that is not given as on a perfect link, and not cut.
    #[arg(long)]
    pub(crate) perfect: bool,
    /// The cluster [default: the only one that runs].
    #[arg(long, value_name = "CLUSTER")]
    pub(crate) cluster: Option<String>,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Two names are both directions, 'a->b' (quoted) or a:b is one.")]
pub(crate) struct LinkEnds {
    /// Two nodes, or a direction.
    #[arg(value_name = "A B|A:B", num_args = 1..=2, required = true)]
    pub(crate) ends: Vec<String>,
    /// The cluster [default: the only one that runs].
    #[arg(long, value_name = "CLUSTER")]
    pub(crate) cluster: Option<String>,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sanlab partition a b; sleep 5; sanlab heal
  sanlab heal a b")]
pub(crate) struct Heal {
    /// Two nodes, or a direction [default: every link that is cut].
    #[arg(value_name = "A B|A:B", num_args = 0..=2)]
    pub(crate) ends: Vec<String>,
    /// The cluster [default: the only one that runs].
    #[arg(long, value_name = "CLUSTER")]
    pub(crate) cluster: Option<String>,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:
  sanlab port b down

Programs on the node go on; their NIC has no cable.")]
pub(crate) struct Port {
    /// The node.
    pub(crate) node: String,
    /// Whether anything passes.
    pub(crate) state: PortState,
    /// The cluster [default: the only one that runs].
    #[arg(long, value_name = "CLUSTER")]
    pub(crate) cluster: Option<String>,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Of a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum PortState {
    /// Nothing passes.
    Down,
    /// As it was.
    Up,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sanlab fault add packet drop --node a --chance 1%
  sanlab fault add wqe status=REM_OP_ERR --node b --nth 100
  sanlab fault add call fail=WSAENOBUFS --call wsp_bind --count 1
  sanlab fault ls
  sanlab fault rm 2

Points, actions and fields: docs/control.md.")]
pub(crate) struct Fault {
    #[command(subcommand)]
    pub(crate) command: FaultCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum FaultCommand {
    /// Put a rule in force.
    #[command(after_help = "Examples:
  sanlab fault add packet delay=5ms --node a --opcode SEND --every 10
  sanlab fault add completion drop --node b --nth 3
  sanlab fault add doorbell drop --node a --count 1
  sanlab fault add receive rnr --node b --chance 5%")]
    Add(FaultAdd),
    /// List rules with what they did, and the latest faults.
    #[command(after_help = "Examples:
  sanlab fault ls
  sanlab fault ls --id 3 --json | jq '.log | length'")]
    Ls(FaultLs),
    /// Remove a rule, or all of them.
    #[command(after_help = "Examples:
  sanlab fault rm 3
  sanlab fault rm --all")]
    Rm(FaultRm),
}

#[derive(Debug, Args)]
pub(crate) struct FaultAdd {
    /// Where it looks: wqe, packet, receive, completion, doorbell, interrupt or call.
    pub(crate) at: String,
    /// What it does: drop, duplicate, corrupt, delay=TIME, status=STATUS, qp_err, cq_overrun, nic_reset, rnr or fail=CODE.
    #[arg(value_name = "ACTION[=VALUE]")]
    pub(crate) action: String,
    /// Only for this node.
    #[arg(long, value_name = "NODE")]
    pub(crate) node: Option<String>,
    /// Only for this function of a NIC.
    #[arg(long, value_name = "NUMBER", value_parser = clap_number)]
    pub(crate) function: Option<u32>,
    /// Only for this QP, as 17 or 0x11.
    #[arg(long, value_name = "NUMBER", value_parser = clap_number)]
    pub(crate) qpn: Option<u32>,
    /// Only for this operation: SEND, RDMA_WRITE, RDMA_READ, ...
    #[arg(long, value_name = "OPERATION")]
    pub(crate) opcode: Option<String>,
    /// Only for this provider call: wsp_socket, wsp_bind, ...
    #[arg(long, value_name = "CALL")]
    pub(crate) call: Option<String>,
    /// At the n-th occasion alone.
    #[arg(long, value_name = "N", conflicts_with_all = ["every", "chance"])]
    pub(crate) nth: Option<u64>,
    /// At each n-th occasion.
    #[arg(long, value_name = "N", conflicts_with = "chance")]
    pub(crate) every: Option<u64>,
    /// By chance.
    #[arg(long, value_name = "SHARE", value_parser = units::share_ppm)]
    pub(crate) chance: Option<u32>,
    /// At most so often.
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<u64>,
    /// Of the chance.
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// The cluster [default: the only one that runs].
    #[arg(long, value_name = "CLUSTER")]
    pub(crate) cluster: Option<String>,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct FaultLs {
    /// This rule alone, also when it is removed.
    #[arg(long, value_name = "ID")]
    pub(crate) id: Option<u32>,
    /// The cluster [default: the only one that runs].
    #[arg(long, value_name = "CLUSTER")]
    pub(crate) cluster: Option<String>,
    /// Print one JSON object instead of tables.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct FaultRm {
    /// The rule.
    #[arg(required_unless_present = "all")]
    pub(crate) id: Option<u32>,
    /// Every rule.
    #[arg(long, conflicts_with = "id")]
    pub(crate) all: bool,
    /// The cluster [default: the only one that runs].
    #[arg(long, value_name = "CLUSTER")]
    pub(crate) cluster: Option<String>,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// A number, in hexadecimal behind `0x`.
fn clap_number(text: &str) -> Result<u32, String> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map_err(|_| "a number from 0 to 4294967295, also in hexadecimal as 0x11".into())
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sanlab ss
  sanlab ss --road tcp -p                 who is not on the SAN, and why
  sanlab ss --node a --port 6379 --state estab
  sanlab ss -H | awk '$5 > 0'             connections with bytes under way

Recv-Q: bytes that have come and that no program has taken. Send-Q: bytes
sent that have not arrived. Credits: messages the peer lets this end send.")]
pub(crate) struct Ss {
    #[command(flatten)]
    pub(crate) choice: Choice,
    /// Connections of this node.
    #[arg(long, value_name = "NODE")]
    pub(crate) node: Option<String>,
    /// Connections in this state, such as estab or close-wait.
    #[arg(long, value_name = "STATE", ignore_case = true)]
    pub(crate) state: Option<String>,
    /// Connections with this port at either end.
    #[arg(long, value_name = "PORT")]
    pub(crate) port: Option<u16>,
    /// Connections that took this road.
    #[arg(long, value_name = "san|tcp", value_parser = ["san", "tcp"], hide_possible_values = true)]
    pub(crate) road: Option<String>,
    /// Show the program and its process id.
    #[arg(short, long)]
    pub(crate) processes: bool,
    /// Leave out the line of titles.
    #[arg(short = 'H', long)]
    pub(crate) no_header: bool,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
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
    /// Its parent starts and ends programs, and ends the cluster.
    #[arg(long)]
    pub(crate) kept: bool,
    #[command(flatten)]
    pub(crate) options: EmulatorOptions,
}

/// Where a package's pages go.
#[derive(Debug, Args)]
pub(crate) struct Pages {
    /// The directory, which is made.
    pub(crate) directory: PathBuf,
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
