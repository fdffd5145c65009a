//! `sanlab down`: ends a cluster and returns when nothing of it is left.
//!
//! Place: asks the emulator through its control socket; a process that does not listen is killed.
//! Invariants: only the process that holds the cluster's lock is signalled, by a descriptor of it.
//! Source: ours, the command-line contract.

use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use rustix::process::{Signal, pidfd_send_signal};

use crate::cli;
use crate::cluster::{self, Cluster, Record, State};
use crate::control;
use crate::emulator;
use crate::exit::{FAILED, Failure, diagnostic};
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
    if record.is_kept {
        end_programs(record, arguments.now)?;
    }
    end(&cluster, record)?;
    wait_until_gone(&cluster, record)
}

/// Lets the keeper end the programs of the cluster file, and waits as long as they take.
fn end_programs(record: &Record, now: bool) -> Result<(), Failure> {
    let Some(keeper) = record
        .up_pid
        .filter(|&pid| is_parent(pid, record.emulator_pid))
    else {
        // It has been killed, and its programs with it.
        return Ok(());
    };
    let Ok(process) = emulator::process_descriptor(u32::try_from(keeper).unwrap_or_default())
    else {
        return Ok(());
    };
    let signal = match now {
        true => Signal::INT,
        false => Signal::TERM,
    };
    // ESRCH: it ended by itself in between.
    let _ = pidfd_send_signal(&process, signal);
    if !signals::wait_readable(process.as_fd(), NOTICE_LIMIT)? {
        diagnostic(format_args!(
            "waiting for programs that have not ended yet; `sanlab down --now` kills them"
        ));
        while !signals::wait_readable(process.as_fd(), NOTICE_LIMIT)? {}
    }
    Ok(())
}

/// Whether a process is the parent of another one, so that its number means what it meant.
fn is_parent(parent: i32, child: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
    let words = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace());
    words.and_then(|mut words| words.nth(1)?.parse().ok()) == Some(parent)
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
