//! Two sides of a run: threads of this process, or this one and a fork of it, where they are asked to be.
//!
//! Place: [`super::ring`] and [`super::rdma`] say what each side does. Invariants: the near side is the caller; its placement is given
//! back; a far side that hangs, fails or dies is an error of the run, and no process is left behind. Forks only while the program has one
//! thread.
#![expect(unsafe_code, reason = "forks, and ends the fork")]

use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

use super::BenchError;
use super::control::Control;

/// What the two sides are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Between {
    /// Threads of one process.
    #[default]
    Threads,
    /// Two processes.
    Processes,
}

/// The processors of the two sides.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Place {
    /// That of the side that is measured at; `None` leaves it to the scheduler.
    pub near: Option<usize>,
    /// That of the other side.
    pub far: Option<usize>,
}

/// Runs both sides; `far` says whether it did all of its work.
pub(crate) fn run<R>(
    (between, place): (Between, Place),
    control: &Control,
    name: &str,
    far: impl FnOnce() -> bool + Send,
    near: impl FnOnce() -> Result<R, BenchError>,
) -> Result<R, BenchError> {
    let far = || {
        let is_well = catch_unwind(AssertUnwindSafe(|| {
            pin(place.far).is_ok() && control.meet(false) && far()
        }));
        let is_well = is_well.unwrap_or(false);
        control.far_ends(is_well);
        is_well
    };
    let near = || {
        let _pinned = Pinned::to(place.near)?;
        if control.meet(true) {
            near()
        } else {
            Err(ended(name, "it never began"))
        }
    };
    match between {
        Between::Threads => std::thread::scope(|scope| {
            let far = scope.spawn(far);
            let result = near();
            match far.join() {
                Ok(true) => result,
                // What the near side found says more than that the other one gave up.
                _ => result.and_then(|_| Err(ended(name, "it gave up"))),
            }
        }),
        Between::Processes => {
            // SAFETY: the program has one thread (module), so the child finds no lock held by another.
            match unsafe { fork() }.map_err(BenchError::errno("fork"))? {
                ForkResult::Child => {
                    let code = i32::from(!far());
                    // SAFETY: ends the child at once: nothing of the parent's is flushed or dropped twice.
                    unsafe { libc::_exit(code) }
                }
                ForkResult::Parent { child } => finish(child, name, near()),
            }
        }
    }
}

/// Waits for the fork, which has done its work if all is well.
fn finish<R>(child: Pid, name: &str, result: Result<R, BenchError>) -> Result<R, BenchError> {
    if result.is_err() {
        if let Ok(WaitStatus::Signaled(_, signal, _)) = waitpid(child, Some(WaitPidFlag::WNOHANG)) {
            return Err(ended(name, &format!("killed by {signal}")));
        }
        // It may be gone already.
        let _ = kill(child, Signal::SIGKILL);
        let _ = waitpid(child, None);
        return result;
    }
    match waitpid(child, None) {
        Ok(WaitStatus::Exited(_, 0)) => result,
        Ok(WaitStatus::Signaled(_, signal, _)) => Err(ended(name, &format!("killed by {signal}"))),
        _ => Err(ended(name, "it gave up")),
    }
}

fn ended(name: &str, how: &str) -> BenchError {
    BenchError::OtherSide {
        queue: name.to_owned(),
        how: how.to_owned(),
    }
}

fn own() -> Pid {
    Pid::from_raw(0)
}

/// The calling thread stays on a processor as long as this lives.
#[derive(Debug)]
pub(crate) struct Pinned(Option<CpuSet>);

impl Pinned {
    /// Puts it there; `None` leaves it to the scheduler.
    pub(crate) fn to(cpu: Option<usize>) -> Result<Self, BenchError> {
        if cpu.is_none() {
            return Ok(Self(None));
        }
        let before = sched_getaffinity(own()).map_err(BenchError::errno("sched_getaffinity"))?;
        pin(cpu).map_err(BenchError::errno("sched_setaffinity"))?;
        Ok(Self(Some(before)))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some(before) = self.0 {
            // It was allowed before; if it is no more, the kernel keeps the thread where it may be.
            let _ = sched_setaffinity(own(), &before);
        }
    }
}

/// Puts the calling thread on a processor.
pub(crate) fn pin(cpu: Option<usize>) -> nix::Result<()> {
    let Some(cpu) = cpu else {
        return Ok(());
    };
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(own(), &set)
}

/// Processors that this process may use, in order.
///
/// # Errors
/// The system's.
pub fn allowed() -> Result<Vec<usize>, BenchError> {
    let set = sched_getaffinity(own()).map_err(BenchError::errno("sched_getaffinity"))?;
    Ok((0..CpuSet::count())
        .filter(|&cpu| set.is_set(cpu).unwrap_or(false))
        .collect())
}
