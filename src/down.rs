//! `sanlab down`: ends a cluster and returns when nothing of it is left.
//!
//! Place: asks the emulator through its control socket; a process that does not listen is killed.
//! Invariants: only the process that holds the cluster's lock is signalled, by a descriptor of it.
//! Source: ours, the command-line contract.

use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use crate::cli;
use crate::cluster::{self, Cluster, Record, State};
use crate::control;
use crate::emulator;
use crate::exit::{FAILED, Failure};
use crate::paths::RunDirectory;
use crate::signals;

/// How long the `up` in the foreground may take to notice that its emulator has ended, and to remove its directory.
const NOTICE_LIMIT: Duration = Duration::from_secs(10);

/// Ends a cluster.
pub(crate) fn down(arguments: &cli::Down) -> Result<(), Failure> {
    let cluster = cluster::select(arguments.choice.name())?;
    let record = cluster.record.as_ref().ok_or_else(|| {
        Failure::new(
            FAILED,
            format_args!(
                "the cluster `{}` is still starting; try again",
                cluster.name
            ),
        )
    })?;
    end(&cluster, record)?;
    wait_until_gone(&cluster, record)
}

fn end(cluster: &Cluster, record: &Record) -> Result<(), Failure> {
    let pid = u32::try_from(record.emulator_pid).unwrap_or_default();
    let Ok(process) = emulator::process_descriptor(pid) else {
        // It has ended since the cluster was looked at.
        return Ok(());
    };
    if cluster.state == State::Unresponsive {
        return Ok(emulator::kill_process(&process)?);
    }
    emulator::end_process(&process, || {
        // An emulator that does not answer is killed.
        let _ = control::shutdown(&cluster.directory);
    })?;
    Ok(())
}

fn wait_until_gone(cluster: &Cluster, record: &Record) -> Result<(), Failure> {
    if let Some(pid) = record.up_pid.and_then(|pid| u32::try_from(pid).ok())
        && let Ok(up) = emulator::process_descriptor(pid)
    {
        // Bounded, because the number may belong to another process by now; the directory below is what counts.
        signals::wait_readable(up.as_fd(), NOTICE_LIMIT)?;
    }
    let run = RunDirectory::of_user();
    let deadline = Instant::now() + NOTICE_LIMIT;
    loop {
        // Cleans the directory when the emulator had to be killed.
        if !run
            .lock()?
            .clean()?
            .iter()
            .any(|(name, _)| *name == cluster.name)
        {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Failure::new(
                FAILED,
                format_args!(
                    "the emulator of `{}` has ended, but another process keeps {}",
                    cluster.name,
                    cluster.directory.display()
                ),
            ));
        }
        signals::pause(Duration::from_millis(10));
    }
}
