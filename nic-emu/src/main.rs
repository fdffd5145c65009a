//! `nic-emu`: the emulated SAN NIC on a socket, for driver developers who want nothing else.
//!
//! Place: a thin shell around [`nic_emu::server::serve_devices`]. Exit status: 0 after SIGINT or SIGTERM, 1 when it could not serve,
//! 2 for a wrong command line. Leaves out: clusters, programs, the switch; that is `sanlab`.

mod ask;

use std::io::Write;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use nic_emu::conformance::{self, EmbeddedTarget, SocketTarget};
use nic_emu::device::PauseOn;
use nic_emu::server::{self, DebugConfig, DeviceSocket, NodeAddress, NodeSpec, Sandbox};

const EXAMPLES: &str = "\
Examples:
  One NIC with the address 127.77.0.1, on a vfio-user socket:
      nic-emu --socket /tmp/nic.sock
  Two nodes that can reach each other, each with its own socket:
      nic-emu --socket '/tmp/nic-{node}.sock' --node a=10.0.0.1/24 --node b=10.0.0.2/24

  Watch what a driver does wrong, and stand still when a completion fails (docs/validation.md):
      nic-emu --socket /tmp/nic.sock --validate --pause-on error
      nic-emu inspect findings /tmp/nic.sock

  The layout of registers, doorbells, elements and messages for a driver in C:
      nic-emu header > sanlab_nic.h

  Whether a device keeps the rules of the verbs:
      nic-emu conformance
      nic-emu conformance /tmp/nic-a.sock --peer /tmp/nic-b.sock --address 10.0.0.1 --peer-address 10.0.0.2

Every connection to a socket is a PCI function of its own. When all sockets accept, `ready` is printed.
SIGINT and SIGTERM end it and remove the sockets. RUST_LOG=debug shows what clients do.
The programmer's reference of the device is docs/device.md.";

/// Serves an emulated SAN NIC over vfio-user.
#[derive(Parser, Debug)]
#[command(
    name = "nic-emu",
    version,
    after_help = EXAMPLES,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,

    /// Where to make the device socket; with several nodes, `{node}` in it stands for the node's name.
    #[arg(long, value_name = "PATH", required = true)]
    socket: Option<PathBuf>,

    /// A node with an address of its NIC; prefix length 24 unless given, no address at all without `=`. Repeat it for more nodes, or
    /// for more addresses of one.
    #[arg(long = "node", value_name = "NAME=ADDR", default_value = "a=127.77.0.1/24", value_parser = parse_node)]
    nodes: Vec<NodeSpec>,

    /// Whether the emulator gives up capabilities, files and system calls that it does not need.
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "on|off",
        hide_possible_values = true
    )]
    sandbox: Sandbox,

    /// Watch for what drivers do wrong although a NIC might let it pass; `nic-emu inspect findings` tells.
    #[arg(long)]
    validate: bool,

    /// Stand still at a failure (`error`), at any finding (`finding`), or at findings of one rule (`nic-emu rules` lists them).
    #[arg(long, value_name = "error|finding|RULE")]
    pause_on: Option<PauseOn>,

    /// Let time stand still but for `nic-emu advance`, so that retries and time limits run out when a test says so.
    #[arg(long)]
    virtual_time: bool,
}

/// What else it can do.
#[derive(Subcommand, Debug)]
enum Command {
    /// Shows what the device consists of, what drivers did wrong, or what happened last.
    Inspect(ask::Inspect),
    /// Makes the engine of a device or cluster stand still.
    Pause(ask::Place),
    /// Lets an engine that stands still do one piece of work.
    Step(ask::Place),
    /// Lets an engine that stands still go on.
    Continue(ask::Place),
    /// Lets virtual time pass, timer by timer, for a `nic-emu --virtual-time`; prints the device's time.
    Advance(ask::Advance),
    /// Lists the rules of the validation layer.
    Rules,
    /// Prints the whole layout as a C11 header, with assertions on every size and offset.
    Header,
    /// Judges a device by the rules of the InfiniBand verbs: the one inside this program, or one on vfio-user sockets.
    ///
    /// Exit status 1 when a rule is broken. The cases stand in docs/conformance.md.
    Conformance(Conformance),
}

#[derive(clap::Args, Debug)]
struct Conformance {
    /// Socket of the device; without it the embedded device is judged.
    socket: Option<PathBuf>,

    /// Socket of another node of the same fabric; the same socket again when it is not given.
    #[arg(long, value_name = "PATH", requires = "socket")]
    peer: Option<PathBuf>,

    /// Address of the socket's port; without it the cases about connections are skipped.
    #[arg(long, value_name = "ADDR", requires = "socket")]
    address: Option<Ipv4Addr>,

    /// Address of the peer's port; the same address again when it is not given.
    #[arg(long, value_name = "ADDR", requires = "address")]
    peer_address: Option<Ipv4Addr>,

    /// Name of the socket's node, and of the peer's: ports are then taken down through the socket's control socket, and time passes there
    /// when it is virtual.
    #[arg(long, value_name = "NAME", num_args = 1..=2, requires = "socket")]
    nodes: Vec<String>,

    /// Run the cases whose id contains this.
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,

    /// Print one JSON object.
    #[arg(long)]
    json: bool,

    /// List the cases and run none.
    #[arg(long, conflicts_with = "json")]
    list: bool,
}

impl Conformance {
    fn run(self) -> anyhow::Result<ExitCode> {
        let mut out = std::io::stdout().lock();
        if self.list {
            for case in conformance::cases().filter(|case| case.id.contains(&self.filter)) {
                writeln!(out, "{}: {} [{}]", case.id, case.rule, case.source)?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        let report = match self.socket {
            None => conformance::run(&EmbeddedTarget::default(), &self.filter),
            Some(socket) => {
                let peer = self.peer.unwrap_or_else(|| socket.clone());
                let mut target = SocketTarget::new(socket, peer);
                if let [of_socket, others @ ..] = self.nodes.as_slice() {
                    let of_peer = others.first().unwrap_or(of_socket);
                    target.control_by(of_socket, of_peer);
                }
                target.a_address = self.address;
                target.b_address = self.peer_address.or(self.address);
                conformance::run(&target, &self.filter)
            }
        };
        if self.json {
            writeln!(out, "{}", report.to_json())?;
        } else {
            write!(out, "{}", report.to_text())?;
        }
        anyhow::ensure!(
            !report.results.is_empty(),
            "no case has {:?} in its id",
            self.filter
        );
        Ok(if report.failed() == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

/// The page that the header's comments come from.
const PAGE: &str = include_str!("../../docs/device.md");

fn parse_node(text: &str) -> Result<NodeSpec, String> {
    let (name, addresses) = match text.split_once('=') {
        None => (text, Vec::new()),
        Some((name, address)) => {
            let full = if address.contains('/') {
                address.to_owned()
            } else {
                format!("{address}/24")
            };
            let address: NodeAddress = full.parse().map_err(|_| {
                format!("{address:?} is not an IPv4 address such as 127.77.0.1 or 10.0.0.1/16")
            })?;
            (name, vec![address])
        }
    };
    Ok(NodeSpec {
        name: name.to_owned(),
        addresses,
        limits: nic_emu::device::Limits::default(),
    })
}

impl Arguments {
    /// One socket per node.
    fn devices(self) -> anyhow::Result<Vec<DeviceSocket>> {
        let mut nodes: Vec<NodeSpec> = Vec::new();
        for node in self.nodes {
            match nodes.iter_mut().find(|known| known.name == node.name) {
                Some(known) => known.addresses.extend(node.addresses),
                None => nodes.push(node),
            }
        }
        let socket = self.socket.unwrap_or_default();
        let path = socket
            .to_str()
            .with_context(|| format!("{} is not UTF-8", socket.display()))?;
        anyhow::ensure!(
            nodes.len() == 1 || path.contains("{node}"),
            "{} nodes need a socket each: put {{node}} into the path, as in --socket '/tmp/nic-{{node}}.sock'",
            nodes.len()
        );
        let place = |node: NodeSpec| DeviceSocket {
            path: path.replace("{node}", &node.name).into(),
            node,
        };
        Ok(nodes.into_iter().map(place).collect())
    }
}

fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    match arguments.command {
        Some(Command::Header) => {
            let header = ring_proto::c_header::generate(PAGE);
            std::io::stdout()
                .write_all(header.as_bytes())
                .context("cannot print the header")?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::Inspect(inspect)) => done(ask::inspect(&inspect)),
        Some(Command::Pause(place)) => done(ask::pause(&place)),
        Some(Command::Step(place)) => done(ask::step(&place)),
        Some(Command::Continue(place)) => done(ask::resume(&place)),
        Some(Command::Advance(advance)) => done(ask::advance(&advance)),
        Some(Command::Rules) => done(ask::rules()),
        Some(Command::Conformance(conformance)) => conformance.run(),
        None => done(serve(arguments)),
    }
}

fn done(result: anyhow::Result<()>) -> anyhow::Result<ExitCode> {
    result.map(|()| ExitCode::SUCCESS)
}

fn serve(arguments: Arguments) -> anyhow::Result<()> {
    let sandbox = arguments.sandbox;
    let debug = DebugConfig {
        validate: arguments.validate,
        pause_on: arguments.pause_on,
        virtual_time: arguments.virtual_time,
    };
    let devices = arguments.devices()?;
    let paths: Vec<_> = devices.iter().map(|device| device.path.clone()).collect();
    server::serve_devices(devices, sandbox, debug, || {
        let mut out = std::io::stdout().lock();
        for path in paths {
            // A closed stdout is no reason not to serve.
            let _ = writeln!(out, "{}", path.display());
        }
        let _ = writeln!(out, "ready");
    })?;
    Ok(())
}

fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "nic-emu: {error:#}");
            ExitCode::FAILURE
        }
    }
}
