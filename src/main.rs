//! The `sanlab` command: clusters of emulated SAN nodes, and ordinary programs on them.
//!
//! Place: outermost. It parses, starts processes and prints; the device lives in `nic-emu`, the switch in the preload library.
//! Invariants: standard output carries answers and nothing else; every failure says what to do and ends with the code of [`exit`].
//! Source: ours. Leaves out: every decision about roads and packets.

use std::process::ExitCode;

use clap::Parser;

mod benchmark;
mod capture;
mod check;
mod claim;
mod cli;
mod cluster;
mod config;
mod control;
mod demo;
mod doctor;
mod down;
mod emulator;
mod exit;
mod keeper;
#[path = "../examples/kv/kv.rs"]
mod kv;
mod lab;
mod logs;
mod ls;
mod metrics;
mod netns;
mod node;
mod objects;
mod output;
mod pages;
mod paths;
mod peer;
mod run;
mod signals;
mod ss;
mod stage;
mod stat;
mod top;
mod topo;
mod units;
mod up;

use cli::{Cli, Command, Program};
use exit::Failure;

fn main() -> ExitCode {
    let result = match Cli::try_parse() {
        Ok(cli) => dispatch(cli.command),
        Err(error) => return exit::usage(&error),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn dispatch(command: Command) -> Result<(), Failure> {
    match command {
        Command::Demo(arguments) => demo::demo(&arguments),
        Command::Up(arguments) => up::up(&arguments),
        Command::Logs(arguments) => logs::logs(&arguments),
        Command::Node(arguments) => node::node(&arguments),
        Command::Check(arguments) => check::check(&arguments),
        Command::Down(arguments) => down::down(&arguments),
        Command::Ls(arguments) => ls::ls(&arguments),
        Command::Run(arguments) => run::run(&arguments),
        Command::Stat(arguments) => stat::stat(&arguments),
        Command::Link(arguments) => lab::link::link(&arguments),
        Command::Partition(arguments) => lab::link::partition(&arguments),
        Command::Heal(arguments) => lab::link::heal(&arguments),
        Command::Port(arguments) => lab::link::port(&arguments),
        Command::Fault(arguments) => lab::fault::fault(&arguments),
        Command::Capture(arguments) => capture::capture(&arguments),
        Command::Top(arguments) => top::top(&arguments),
        Command::Topo(arguments) => topo::topo(&arguments),
        Command::Ss(arguments) => ss::ss(&arguments),
        Command::Doctor(arguments) => doctor::doctor(&arguments),
        Command::Bench(command) => benchmark::bench(&command),
        Command::Emulator(arguments) => emulator::serve(&arguments),
        Command::Netns => netns::help(),
        Command::Keeper(arguments) => keeper::keep(&arguments),
        Command::NodeProgram(arguments) => keeper::become_program(&arguments),
        Command::Publish => netns::serve_published(),
        Command::Pages(arguments) => pages::pages(&arguments),
        Command::Metrics(arguments) => metrics::serve(&arguments),
        Command::Program(program) => program_of_the_demo(program),
        Command::Peer(program) => peer::run(&program),
        Command::Leash(program) => stage::leash(&program),
        Command::ProbeUserNamespace => doctor::probe_user_namespace(),
        Command::ProbeSandbox => doctor::probe_sandbox(),
    }
}

/// Runs one of the programs that the demo starts, which are the programs of `examples/`.
fn program_of_the_demo(program: Program) -> Result<(), Failure> {
    signals::end_with_parent(program.parent)?;
    signals::unblock_all()?;
    kv::run(program.arguments).map_err(|error| Failure::from(anyhow::Error::msg(error.to_string())))
}
