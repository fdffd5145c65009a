//! Whether a program is ready.
//!
//! Place: the conductor asks while a program has not been. Invariants: nothing is sent to the program; who listens is asked of the kernel, and
//! whether the SAN has a listener too of the emulator, so that a connection in between does not fall back. Source: ours.

use std::time::{Duration, Instant};

use super::conductor::Conductor;
use super::log::Stream;
use super::processes;
use super::program::State;
use crate::config::programs::Check;
use crate::control;

/// How long after the kernel's listener the one on the SAN may come. One call of the program makes both.
const SAN_LISTENER_LIMIT: Duration = Duration::from_secs(10);

impl Conductor {
    /// Looks at every program that runs and was not ready.
    pub(crate) fn look_for_readiness(&mut self) {
        for at in 0..self.programs.len() {
            if self.programs[at].state != State::Running || self.programs[at].is_announced {
                continue;
            }
            if !self.programs[at].is_ready {
                let is_ready = self.looks_ready(at);
                self.programs[at].is_ready |= is_ready;
            }
            if self.programs[at].is_ready {
                self.programs[at].is_announced = true;
                self.programs[at].end_probe();
                if self.programs[at].plan.ready.is_some() {
                    let since = self.programs[at].trying_since.take();
                    let took = since.map_or(Duration::ZERO, |since| since.elapsed());
                    let done = self.programs.iter().filter(|program| program.is_ready);
                    let text = format!(
                        "ready after {:.2} s ({} of {})",
                        took.as_secs_f64(),
                        done.count(),
                        self.programs.len()
                    );
                    self.say(at, &text);
                }
            }
        }
    }

    fn looks_ready(&mut self, at: usize) -> bool {
        let Some(pid) = self.programs[at].pid() else {
            return false;
        };
        let check = self.programs[at].plan.ready.as_ref();
        match check.map(|ready| ready.check.clone()) {
            None => !processes::is_launcher(pid),
            // Its output and its end tell.
            Some(Check::Output(_) | Check::Exit) => false,
            Some(Check::Tcp(port)) => self.listens(at, pid, port),
            Some(Check::Command(command)) => self.command_agrees(at, &command),
        }
    }

    fn listens(&mut self, at: usize, pid: u32, port: u16) -> bool {
        let inodes = processes::listeners(pid, port);
        if inodes.is_empty() {
            return false;
        }
        let own = self.processes_of(self.programs[at].node);
        let is_own = |&inode: &u64| own.iter().any(|&pid| processes::holds_socket(pid, inode));
        if !inodes.iter().any(is_own) {
            return false;
        }
        let since = *self.programs[at]
            .listening_since
            .get_or_insert_with(Instant::now);
        !self.setup.expects_san
            || since.elapsed() >= SAN_LISTENER_LIMIT
            || !self.waits_for_san(at, &own)
    }

    /// Whether a listener on the SAN may still come.
    fn waits_for_san(&self, at: usize, processes: &[u32]) -> bool {
        let Ok(stat) = control::stat(&self.setup.directory) else {
            return false;
        };
        let is_unhooked = stat["ungoverned"].as_array().is_some_and(|rows| {
            let pids = rows.iter().filter_map(|row| row["pid"].as_u64());
            pids.into_iter()
                .any(|pid| processes.iter().any(|&own| u64::from(own) == pid))
        });
        let name = self.nodes[self.programs[at].node].name.as_str();
        let rows = stat["nodes"].as_array();
        let row = rows.and_then(|rows| rows.iter().find(|row| row["name"] == name));
        let listeners = row.and_then(|row| row["counters"]["listeners"].as_u64());
        !is_unhooked && listeners == Some(0)
    }

    fn command_agrees(&mut self, at: usize, command: &[String]) -> bool {
        let node = self.programs[at].node;
        let program = &mut self.programs[at];
        if let Some(probe) = &mut program.probe {
            return match probe.try_wait() {
                Ok(None) => false,
                Ok(Some(status)) => {
                    program.probe = None;
                    status.success()
                }
                Err(_) => {
                    program.probe = None;
                    false
                }
            };
        }
        if let Err(error) = program.start_probe(&self.setup, &self.nodes[node], command) {
            let name = self.nodes[node].name.clone();
            let text = format!("cannot ask whether it is ready: {error}");
            self.log.add(Some(&name), None, Stream::Lab, &text);
        }
        false
    }
}
