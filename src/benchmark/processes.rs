//! Other processes, watched from outside: their processor time, and where they run.
//!
//! Place: both ends of a benchmark, programs with their children, and the process of the NICs. Invariants: time is that of all threads
//! of a process, in nanoseconds, of the dead ones too; what the kernel does in nobody's name is not in it.
//! Source: clock_getcpuclockid(3), sched_setaffinity(2), proc(5).

use std::fs;
use std::time::Duration;

use anyhow::Context as _;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// Processor time that a process has used so far.
pub(super) fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let clock = clock_getcpuclockid(raw(pid)?)
        .with_context(|| format!("processor time of process {pid}"))?;
    let time = clock_gettime(clock).with_context(|| format!("processor time of process {pid}"))?;
    Ok(time.into())
}

/// Processor time of a process and of the children that it has now.
pub(super) fn cpu_time_of_family(pid: u32) -> anyhow::Result<Duration> {
    let mut time = cpu_time(pid)?;
    for child in children(pid) {
        // It may have ended in between.
        time += cpu_time_of_family(child).unwrap_or_default();
    }
    Ok(time)
}

/// Puts every thread of a process on a processor, or wherever this one may be.
pub(super) fn place(pid: u32, cpu: Option<usize>) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    match cpu {
        Some(cpu) => set.set(cpu).context("no such processor")?,
        None => {
            for cpu in sanlab::bench::pair::allowed()? {
                set.set(cpu).context("no such processor")?;
            }
        }
    }
    for thread in threads(pid)? {
        match sched_setaffinity(raw(thread)?, &set) {
            // It has ended since.
            Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot place process {pid}"));
            }
        }
    }
    Ok(())
}

fn raw(pid: u32) -> anyhow::Result<Pid> {
    let raw = i32::try_from(pid).with_context(|| format!("no process id: {pid}"))?;
    Ok(Pid::from_raw(raw))
}

fn threads(pid: u32) -> anyhow::Result<Vec<u32>> {
    let path = format!("/proc/{pid}/task");
    let entries = fs::read_dir(&path).with_context(|| format!("cannot read {path}"))?;
    let names = entries.flatten().map(|entry| entry.file_name());
    Ok(names
        .filter_map(|name| name.to_str()?.parse().ok())
        .collect())
}

fn children(pid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    for thread in threads(pid).unwrap_or_default() {
        let list = fs::read_to_string(format!("/proc/{pid}/task/{thread}/children"));
        let list = list.unwrap_or_default();
        found.extend(
            list.split_whitespace()
                .filter_map(|pid| pid.parse::<u32>().ok()),
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_process_grows_while_it_computes() {
        let own = std::process::id();
        let before = cpu_time(own).unwrap();
        let mut sum = 0_u64;
        while cpu_time(own).unwrap() <= before {
            sum = sum.wrapping_add(std::hint::black_box(1));
        }
        assert!(cpu_time_of_family(own).unwrap() >= before);
        // A number that no process has: larger than the kernel's greatest.
        assert!(cpu_time(0x7fff_fff0).is_err());
    }

    #[test]
    fn a_child_is_placed_and_belongs_to_the_family() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        assert!(children(std::process::id()).contains(&child.id()));
        let first = sanlab::bench::pair::allowed().unwrap()[0];
        place(child.id(), Some(first)).unwrap();
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        assert!(
            status.contains(&format!("Cpus_allowed_list:\t{first}\n")),
            "{status}"
        );
        place(child.id(), None).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
