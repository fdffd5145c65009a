//! Who starts when, what an end means, and how everything ends in order.
//!
//! Place: the keeper's loop calls [`Conductor::turn`] whenever something may have changed, and waits as long as it says. Invariants: a node starts
//! once every program of the nodes that it is after was ready; it is asked to end once those that are after it have ended; no program
//! outlives the last turn. A start that fails ends the whole. Source: ours; compose tools have the same order.

use std::fs;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::events::Events;
use super::log::{Stream, Writer};
use super::processes::{self, Processes};
use super::program::{Program, Setup, State, end_text};
use crate::config::programs::{Check, Restart};
use crate::config::{ClusterPlan, NodePlan};
use crate::exit::FAILED;

/// Time between looks at something that gives no descriptor to wait on.
const LOOK: Duration = Duration::from_millis(20);
/// First wait before a failed program is started again; it doubles up to [`BACKOFF_MAX`].
const BACKOFF: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// Where the whole stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    /// Not every program was ready yet.
    Starting,
    /// Every program was.
    Ready,
    /// Programs end, those first which others need least.
    Stopping,
    /// No program has a process.
    Done,
}

/// Whether a node's programs can do anything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Power {
    /// As always.
    On,
    /// They stand still.
    Frozen,
    /// They stand still, and no link of the node carries anything.
    Off,
}

/// A node at run time.
#[derive(Debug)]
pub(crate) struct NodeState {
    pub(crate) power: Power,
    /// Directions that were cut when it was powered off.
    pub(crate) cut: Vec<(String, String)>,
    /// Its programs are to be started again once they have ended.
    pub(crate) restarts: bool,
}

/// What `up` asked for.
#[derive(Clone, Default, Debug)]
pub(crate) struct Wishes {
    /// The cluster ends when the programs of these nodes have, with their status.
    pub(crate) exit_from: Vec<String>,
    /// Everything has to be ready by then.
    pub(crate) deadline: Option<Instant>,
    /// The cluster stays when its programs have ended.
    pub(crate) stays: bool,
}

/// All programs of a cluster.
#[derive(Debug)]
pub(crate) struct Conductor {
    pub(crate) setup: Setup,
    pub(crate) nodes: Vec<NodePlan>,
    pub(crate) states: Vec<NodeState>,
    pub(crate) programs: Vec<Program>,
    pub(crate) log: Writer,
    pub(crate) phase: Phase,
    pub(crate) events: Events,
    wishes: Wishes,
    started: Instant,
    /// Why it has to end, when that is a failure.
    failure: Option<String>,
    code: Option<i32>,
    first_failed: Option<i32>,
    /// No more patience with programs that take their time to end.
    at_once: bool,
}

impl Conductor {
    pub(crate) fn new(setup: Setup, plan: &ClusterPlan, log: Writer, wishes: Wishes) -> Self {
        let programs = plan.nodes.iter().enumerate().flat_map(|(at, node)| {
            let plans = node.programs.iter().cloned();
            plans.map(move |plan| Program::new(at, plan))
        });
        let state = |_: &NodePlan| NodeState {
            power: Power::On,
            cut: Vec::new(),
            restarts: false,
        };
        Self {
            setup,
            states: plan.nodes.iter().map(state).collect(),
            programs: programs.collect(),
            nodes: plan.nodes.clone(),
            log,
            phase: Phase::Starting,
            events: Events::new(&plan.events),
            wishes,
            started: Instant::now(),
            failure: None,
            code: None,
            first_failed: None,
            at_once: false,
        }
    }

    /// Makes the nodes' state folders.
    pub(crate) fn make_folders(&self) -> anyhow::Result<()> {
        use anyhow::Context as _;
        for node in &self.nodes {
            let path = self.setup.state_of(&node.name);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        Ok(())
    }

    /// Descriptors that tell of output.
    pub(crate) fn outputs(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.programs.iter().flat_map(Program::outputs)
    }

    /// Whether every program has been started at least once.
    pub(crate) fn is_started(&self) -> bool {
        self.programs
            .iter()
            .all(|program| program.state != State::Waiting)
    }

    /// Why it ends, when that is a failure.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// What `up` exits with.
    pub(crate) fn code(&self) -> i32 {
        self.code.or(self.first_failed).unwrap_or(0)
    }

    /// Ends everything: in order, or at once.
    pub(crate) fn stop(&mut self, at_once: bool) {
        self.at_once |= at_once;
        if matches!(self.phase, Phase::Starting | Phase::Ready) {
            if self.code.is_none() && !self.wishes.exit_from.is_empty() {
                // As of a program that was ended by SIGTERM: never a success.
                self.code = Some(128 + Signal::SIGTERM as i32);
            }
            // Nobody's failure from here on.
            self.first_failed = self.first_failed.filter(|_| !self.wishes.stays);
            self.phase = Phase::Stopping;
        }
    }

    /// The emulator has died.
    pub(crate) fn lose_emulator(&mut self) {
        let text = format!(
            "the emulator of the cluster `{}` has died, and with it the SAN",
            self.setup.cluster
        );
        self.fail(FAILED.into(), text);
    }

    fn fail(&mut self, code: i32, text: String) {
        if self.failure.is_some() || !matches!(self.phase, Phase::Starting | Phase::Ready) {
            return;
        }
        self.log.add(None, None, Stream::Lab, &text);
        self.failure = Some(text);
        self.code = Some(code);
        self.phase = Phase::Stopping;
    }

    /// Looks at everything once, and does what it is time for. Returns how long nothing has to be looked at again.
    pub(crate) fn turn(&mut self) -> Option<Duration> {
        self.take_outputs();
        self.take_ends();
        if matches!(self.phase, Phase::Starting | Phase::Ready) {
            self.restart_nodes();
            self.look_for_readiness();
            self.start_due();
            self.check_times();
            self.check_whole();
        }
        if self.phase == Phase::Ready {
            self.do_events();
        }
        if self.phase == Phase::Stopping {
            self.stop_next();
        }
        self.next_look()
    }

    fn take_outputs(&mut self) {
        for program in &mut self.programs {
            program.read_output(&self.nodes[program.node].name, &mut self.log);
        }
    }

    fn take_ends(&mut self) {
        for at in 0..self.programs.len() {
            let node = self.programs[at].node;
            let name = self.nodes[node].name.clone();
            let Some(code) = self.programs[at].take_end(&name, &mut self.log) else {
                continue;
            };
            self.programs[at].end_probe();
            self.say(at, &end_text(code));
            self.on_end(at, code);
        }
        let known: Vec<u32> = self.known();
        processes::reap_adopted(|pid| known.contains(&pid) || self.setup.is_spared(pid));
    }

    /// Processes that somebody else takes the status of.
    fn known(&self) -> Vec<u32> {
        let probes = self
            .programs
            .iter()
            .filter_map(|program| program.probe.as_ref());
        let probes = probes.map(std::process::Child::id);
        self.programs
            .iter()
            .filter_map(Program::pid)
            .chain(probes)
            .collect()
    }

    fn on_end(&mut self, at: usize, code: i32) {
        let program = &mut self.programs[at];
        let is_stopping = !matches!(self.phase, Phase::Starting | Phase::Ready);
        if is_stopping || self.states[program.node].restarts {
            program.state = State::Ended;
            return;
        }
        let is_exit_wanted = code == 0
            && program
                .plan
                .ready
                .as_ref()
                .is_some_and(|ready| ready.check == Check::Exit);
        // One without a condition was there, if only for a moment; a launcher that failed was not.
        let was_there = program.plan.ready.is_none() && !(125..=127).contains(&code);
        program.is_ready |= is_exit_wanted || was_there;
        let is_again = match program.plan.restart {
            Restart::No => false,
            Restart::OnFailure => code != 0,
            Restart::Always => true,
        };
        if is_again {
            let wait = BACKOFF * 2_u32.saturating_pow(program.restarts.min(10));
            program.state = State::Backoff(Instant::now() + wait.min(BACKOFF_MAX));
            program.restarts += 1;
            return;
        }
        program.state = State::Ended;
        let (is_ready, is_meant) = (program.is_ready, program.is_end_meant);
        if code != 0 && !is_meant {
            self.first_failed.get_or_insert(code);
        }
        let (node, label) = self.name_of(at);
        let is_asked_for = self.wishes.exit_from.contains(&node);
        if self.phase == Phase::Starting && !is_asked_for && (code != 0 || !is_ready) && !is_meant {
            let was = if is_ready {
                "all was ready"
            } else {
                "it was ready"
            };
            self.fail(
                FAILED.into(),
                format!("{label} of node {node} {} before {was}", end_text(code)),
            );
        } else if self.phase == Phase::Starting
            && is_asked_for
            && code == 0
            && !is_ready
            && self.programs[at].plan.ready.is_some()
        {
            self.fail(
                FAILED.into(),
                format!("{label} of node {node} ended before it was ready"),
            );
        }
    }

    fn name_of(&self, at: usize) -> (String, String) {
        let program = &self.programs[at];
        let label = program.plan.label().to_owned();
        (self.nodes[program.node].name.clone(), label)
    }

    /// Tells something about a program.
    pub(crate) fn say(&mut self, at: usize, text: &str) {
        let (node, label) = self.name_of(at);
        self.log.add(Some(&node), Some(&label), Stream::Lab, text);
    }

    fn start_due(&mut self) {
        let now = Instant::now();
        for at in 0..self.programs.len() {
            let is_due = match self.programs[at].state {
                State::Waiting => self.is_turn(self.programs[at].node),
                State::Backoff(when) => {
                    when <= now && self.states[self.programs[at].node].power == Power::On
                }
                State::Running | State::Ended => false,
            };
            if is_due {
                self.start(at);
            }
        }
    }

    /// Whether the programs of all nodes that this one is after were ready.
    fn is_turn(&self, node: usize) -> bool {
        let after = &self.nodes[node].after;
        self.programs
            .iter()
            .all(|program| program.is_ready || !after.contains(&self.nodes[program.node].name))
    }

    fn start(&mut self, at: usize) {
        let node = self.programs[at].node;
        match self.programs[at].start(&self.setup, &self.nodes[node]) {
            Ok(()) => {
                let pid = self.programs[at].pid().unwrap_or(0);
                self.say(at, &format!("started, process {pid}"));
            }
            Err(error) => {
                self.programs[at].state = State::Ended;
                let (node, label) = self.name_of(at);
                self.fail(
                    FAILED.into(),
                    format!("cannot start {label} of node {node}: {error}"),
                );
            }
        }
    }

    fn check_times(&mut self) {
        let now = Instant::now();
        if self.wishes.deadline.is_some_and(|deadline| deadline <= now)
            && (self.phase == Phase::Starting || !self.wishes.exit_from.is_empty())
        {
            let late: Vec<String> = (0..self.programs.len())
                .filter(|&at| match self.phase {
                    Phase::Starting => !self.programs[at].is_ready,
                    _ => {
                        self.wishes.exit_from.contains(&self.name_of(at).0)
                            && self.programs[at].state != State::Ended
                    }
                })
                .map(|at| {
                    let (node, label) = self.name_of(at);
                    format!("{label} of node {node}")
                })
                .collect();
            let what = match self.phase {
                Phase::Starting => "not ready",
                _ => "still running",
            };
            let code = match self.wishes.exit_from.is_empty() {
                true => FAILED.into(),
                false => super::TIMED_OUT,
            };
            self.fail(
                code,
                format!("{what} when the time was over: {}", late.join(", ")),
            );
        }
        let late = self.programs.iter().position(|program| {
            !program.is_ready
                && match (&program.plan.ready, program.trying_since) {
                    (Some(ready), Some(since)) => {
                        now.duration_since(since) >= Duration::from_nanos(ready.limit_ns)
                    }
                    _ => false,
                }
        });
        if let Some(at) = late
            && self.phase == Phase::Starting
        {
            let (node, label) = self.name_of(at);
            self.fail(
                FAILED.into(),
                format!("{label} of node {node} was not ready in its time"),
            );
        }
    }

    /// Whether the whole has become ready, or has nothing left to do.
    fn check_whole(&mut self) {
        if self.phase == Phase::Starting && self.programs.iter().all(|program| program.is_ready) {
            self.phase = Phase::Ready;
            let took = self.started.elapsed();
            self.events.start();
            self.log.add(
                None,
                None,
                Stream::Lab,
                &format!("all programs are ready after {:.2} s", took.as_secs_f64()),
            );
        }
        if !matches!(self.phase, Phase::Starting | Phase::Ready) {
            return;
        }
        let is_over = |program: &Program| {
            program.state == State::Ended && !self.states[program.node].restarts
        };
        if !self.wishes.exit_from.is_empty() {
            let asked: Vec<&Program> = self
                .programs
                .iter()
                .filter(|program| {
                    self.wishes
                        .exit_from
                        .contains(&self.nodes[program.node].name)
                })
                .collect();
            if asked.iter().all(|program| is_over(program)) {
                let codes = asked
                    .iter()
                    .map(|program| program.exit_code.unwrap_or(FAILED.into()));
                self.code = Some(codes.into_iter().find(|&code| code != 0).unwrap_or(0));
                self.phase = Phase::Stopping;
            }
            return;
        }
        if self.phase == Phase::Ready
            && !self.wishes.stays
            && self.programs.iter().all(is_over)
            && self.events.is_over()
        {
            self.phase = Phase::Stopping;
        }
    }

    fn stop_next(&mut self) {
        for at in 0..self.programs.len() {
            let program = &mut self.programs[at];
            if program.child.is_none() {
                program.state = State::Ended;
            }
        }
        let processes = Processes::look();
        let now = Instant::now();
        for at in 0..self.programs.len() {
            let node = self.programs[at].node;
            if self.programs[at].child.is_none() {
                continue;
            }
            match self.programs[at].kill_at {
                None if self.at_once || self.states[node].power == Power::Off => {
                    self.programs[at].kill_at = Some(now);
                }
                None if self.has_dependents(node) => continue,
                None => self.ask_to_end(at),
                Some(_) => {}
            }
            let is_over = self.programs[at].kill_at.is_some_and(|when| when <= now);
            if self.at_once || is_over {
                processes::signal(&self.tree_of(at, &processes), Signal::SIGKILL);
            }
        }
        if self.programs.iter().all(|program| program.child.is_none()) {
            for program in &mut self.programs {
                program.end_probe();
            }
            processes::kill_all(|pid| self.setup.is_spared(pid));
            self.take_outputs();
            self.phase = Phase::Done;
        }
    }

    /// Asks a program to end, and remembers when it has to have.
    pub(crate) fn ask_to_end(&mut self, at: usize) {
        let program = &mut self.programs[at];
        program.is_end_meant = true;
        program.kill_at = Some(Instant::now() + Duration::from_nanos(program.plan.stop_ns));
        if let Some(pid) = program.pid() {
            processes::signal(&[pid], Signal::SIGTERM);
            // One that stands still hears of it when it goes on.
            processes::signal(&Processes::look().tree(pid), Signal::SIGCONT);
        }
    }

    /// Whether a node that is after this one has a process left.
    fn has_dependents(&self, node: usize) -> bool {
        let name = &self.nodes[node].name;
        self.programs
            .iter()
            .any(|program| program.child.is_some() && self.nodes[program.node].after.contains(name))
    }

    fn tree_of(&self, at: usize, processes: &Processes) -> Vec<u32> {
        self.programs[at]
            .pid()
            .map_or_else(Vec::new, |pid| processes.tree(pid))
    }

    /// All processes of a node.
    pub(crate) fn processes_of(&self, node: usize) -> Vec<u32> {
        let own: Vec<u32> = self
            .programs
            .iter()
            .filter(|program| program.node == node)
            .filter_map(Program::pid)
            .collect();
        let known = self.known();
        Processes::look().of_node(&self.nodes[node].name, &own, |pid| {
            known.contains(&pid) || self.setup.is_spared(pid)
        })
    }

    fn next_look(&self) -> Option<Duration> {
        let now = Instant::now();
        let is_looking = self.phase == Phase::Stopping
            || self.states.iter().any(|state| state.restarts)
            || self
                .programs
                .iter()
                .any(|program| program.state == State::Running && !program.is_ready);
        let times = self
            .programs
            .iter()
            .filter_map(|program| match program.state {
                State::Backoff(when) => Some(when),
                _ => program.kill_at,
            });
        let next = times
            .chain(
                self.wishes
                    .deadline
                    .filter(|_| self.phase == Phase::Starting || !self.wishes.exit_from.is_empty()),
            )
            .chain(self.events.next())
            .chain(is_looking.then(|| now + LOOK))
            .min()?;
        // A time that has passed and changes nothing must not keep the processor busy.
        Some(
            next.saturating_duration_since(now)
                .max(Duration::from_millis(1)),
        )
    }
}
