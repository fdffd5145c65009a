//! `sanlab up`: starts a cluster and, in the foreground, stays with it.
//!
//! Place: reads the plan; starts the emulator process, or a keeper when the nodes have programs; prints `ready`.
//! Invariants: nothing is started when the configuration has a mistake; whatever way the command ends, nothing of its cluster is left,
//! unless it was told to detach.
//! Source: ours, the command-line contract.

mod kept;

use std::os::fd::AsFd as _;
use std::path::Path;

use crate::cli;
use crate::config::{self, ClusterPlan};
use crate::control;
use crate::emulator::{Emulator, StartOptions, Started};
use crate::exit::{FAILED, Failure};
use crate::metrics;
use crate::output::{self, Table};
use crate::paths::RunDirectory;
use crate::signals::{StopSignals, Waited};

/// Name of a cluster that nobody named.
pub(crate) const DEFAULT_NAME: &str = "default";

/// Starts a cluster.
pub(crate) fn up(arguments: &cli::Up) -> Result<(), Failure> {
    let plan = match &arguments.file {
        Some(file) => ClusterPlan::read(file).map_err(Failure::usage)?,
        None => ClusterPlan::built_in(),
    };
    let name = arguments
        .name
        .as_deref()
        .or(plan.name.as_deref())
        .unwrap_or(DEFAULT_NAME);
    if !config::is_name(name) {
        return Err(Failure::usage(format_args!(
            "--name: `{name}` is no name; a name has {}",
            config::NAME_RULE
        )));
    }
    if arguments.print_config {
        return output::answer(&plan.to_toml(name));
    }
    if plan.has_programs() || arguments.artifacts.is_some() || arguments.exit_code_from.is_some() {
        return kept::up(arguments, name, &plan);
    }
    let is_detached = arguments.detach || arguments.wait;
    let stop = StopSignals::catch()?;
    let options = StartOptions {
        is_detached,
        ..arguments.options.start_options()
    };
    let run = RunDirectory::of_user();
    let emulator = match Emulator::start(&run, name, &plan, options, &stop)? {
        Started::Ready(emulator) => emulator,
        Started::Stopped => return Ok(()),
    };
    output::answer(&(describe(name, emulator.directory())? + "ready\n"))?;
    if is_detached {
        emulator.release();
        return Ok(());
    }
    stay(name, emulator, &stop)
}

fn describe(name: &str, directory: &Path) -> anyhow::Result<String> {
    let info = control::ping(directory)?;
    let mut table = Table::new(&["NODE", "ADDRESSES"]);
    for node in &info.nodes {
        table.row([node.name.clone(), control::addresses_text(&node.addresses)]);
    }
    let first = info.nodes.first().map_or("", |node| node.name.as_str());
    Ok(format!(
        "cluster {name}, emulator process {}, in {}\n{}run a program on it: sanlab run --cluster {name} --node {first} -- COMMAND\n",
        info.emulator_pid,
        directory.display(),
        table.render("  "),
    ) + &metrics::describe(directory))
}

/// Stays until Ctrl-C or until the emulator ends.
fn stay(name: &str, mut emulator: Emulator, stop: &StopSignals) -> Result<(), Failure> {
    if stop.wait(&[emulator.process().as_fd()], None)? == Waited::Stop {
        emulator.stop()?;
        return Ok(());
    }
    let status = emulator.collect()?;
    if status.success() {
        return Ok(());
    }
    Err(Failure::new(
        FAILED,
        format_args!(
            "the emulator of the cluster `{name}` ended ({status}); its leftovers have been removed, start it again with `sanlab up`"
        ),
    ))
}
