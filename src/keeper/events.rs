//! What happens to a cluster with programs by the clock, and on request: links, ports, and whole nodes.
//!
//! Place: the conductor asks what is due once everything is ready; requests come from the keeper's socket. Invariants: an event that cannot be
//! done is logged and stops nothing; what happened is kept, with its time, for the artifacts. Source: ours, docs/cluster.md.
//! Leaves out: clusters without programs, whose events the emulator does itself.

use std::time::{Duration, Instant};

use nic_emu::control::client;
use nic_emu::device::LinkChange;
use nic_emu::server::Trouble;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::conductor::{Conductor, Phase, Power};
use super::log::{Stream, now_ms};
use super::processes;
use super::program::State;
use crate::config::links::{EventPlan, Happening, NodeAction};
use crate::paths;

/// Events to come and events that were.
#[derive(Debug)]
pub(crate) struct Events {
    planned: Vec<EventPlan>,
    next: usize,
    start: Option<Instant>,
    happened: Vec<Value>,
}

impl Events {
    pub(crate) fn new(planned: &[EventPlan]) -> Self {
        Self {
            planned: planned.to_vec(),
            next: 0,
            start: None,
            happened: Vec::new(),
        }
    }

    /// The clock of the events starts.
    pub(crate) fn start(&mut self) {
        self.start.get_or_insert_with(Instant::now);
    }

    /// When the next one is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        let event = self.planned.get(self.next)?;
        Some(self.start? + Duration::from_nanos(event.at_ns))
    }

    /// Whether none is to come.
    pub(crate) fn is_over(&self) -> bool {
        self.next >= self.planned.len()
    }

    /// What happened so far.
    pub(crate) fn happened(&self) -> &[Value] {
        &self.happened
    }

    fn note(&mut self, at_ns: Option<u64>, what: &str, error: Option<&str>) {
        let since = self.start.map(|start| start.elapsed());
        let since_ns = since.map(|since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX));
        self.happened.push(json!({
            "planned_ns": at_ns, "since_ready_ns": since_ns, "at_ms": now_ms(), "what": what, "error": error,
        }));
    }
}

impl Conductor {
    /// Does what is due.
    pub(crate) fn do_events(&mut self) {
        while self
            .events
            .next()
            .is_some_and(|when| when <= Instant::now())
        {
            let event = self.events.planned[self.events.next].clone();
            self.events.next += 1;
            let what = event.what.text();
            let done = match &event.what {
                Happening::Fabric(trouble) => self.make(trouble),
                Happening::Node { node, action } => self.act(node, *action),
            };
            let error = done.err();
            self.events.note(Some(event.at_ns), &what, error.as_deref());
            let text = match error {
                None => format!("event: {what}"),
                Some(error) => format!("event failed: {what}: {error}"),
            };
            self.log.add(None, None, Stream::Lab, &text);
        }
    }

    fn make(&self, trouble: &Trouble) -> Result<(), String> {
        let socket = paths::control_socket(&self.setup.directory);
        let done = match trouble {
            Trouble::Link { links } => links.iter().try_for_each(|link| {
                client::change_link(&socket, (&link.from, &link.to), false, link.change)
            }),
            Trouble::Port { node, up } => client::port(&socket, node, *up),
            Trouble::Heal => client::heal(&socket).map(|_| ()),
        };
        done.map_err(|error| error.to_string())
    }

    /// Does something to a node on request.
    pub(crate) fn act_on_request(&mut self, node: &str, action: NodeAction) -> Result<(), String> {
        if !matches!(self.phase, Phase::Starting | Phase::Ready) {
            return Err("the cluster ends".to_owned());
        }
        self.act(node, action)?;
        let what = format!("{} {node}", action.name());
        self.events.note(None, &what, None);
        self.log
            .add(None, None, Stream::Lab, &format!("request: {what}"));
        Ok(())
    }

    fn act(&mut self, name: &str, action: NodeAction) -> Result<(), String> {
        let Some(node) = self.nodes.iter().position(|node| node.name == name) else {
            let names: Vec<_> = self.nodes.iter().map(|node| node.name.as_str()).collect();
            return Err(format!(
                "there is no node `{name}`; the nodes are {}",
                names.join(", ")
            ));
        };
        if self.nodes[node].programs.is_empty() {
            return Err(format!(
                "the node `{name}` has no program of the cluster file"
            ));
        }
        match action {
            NodeAction::Kill => {
                self.mean_ends(node);
                processes::signal(&self.processes_of(node), Signal::SIGKILL);
            }
            NodeAction::Freeze => {
                processes::signal(&self.processes_of(node), Signal::SIGSTOP);
                if self.states[node].power == Power::On {
                    self.states[node].power = Power::Frozen;
                }
            }
            NodeAction::Thaw => {
                if self.states[node].power == Power::Off {
                    return Err(format!(
                        "the node `{name}` is off; `restart` switches it on"
                    ));
                }
                processes::signal(&self.processes_of(node), Signal::SIGCONT);
                self.states[node].power = Power::On;
            }
            NodeAction::Poweroff => {
                // Silence first: what its programs would still say must not get out.
                self.states[node].cut = self.cut_off(name)?;
                processes::signal(&self.processes_of(node), Signal::SIGSTOP);
                self.states[node].power = Power::Off;
            }
            NodeAction::Restart => self.begin_restart(node),
        }
        Ok(())
    }

    fn mean_ends(&mut self, node: usize) {
        for program in self
            .programs
            .iter_mut()
            .filter(|program| program.node == node)
        {
            program.is_end_meant = true;
        }
    }

    fn begin_restart(&mut self, node: usize) {
        self.states[node].restarts = true;
        let is_still = self.states[node].power != Power::On;
        self.mean_ends(node);
        if is_still {
            // Its memory is lost; nobody may hear of its end before it is back.
            processes::signal(&self.processes_of(node), Signal::SIGKILL);
            return;
        }
        for at in 0..self.programs.len() {
            if self.programs[at].node == node && self.programs[at].child.is_some() {
                self.ask_to_end(at);
            }
        }
    }

    /// Starts the programs of nodes that were asked to restart, once they have ended.
    pub(crate) fn restart_nodes(&mut self) {
        for node in 0..self.states.len() {
            if !self.states[node].restarts {
                continue;
            }
            let now = Instant::now();
            let of_node = |at: &usize| self.programs[*at].node == node;
            let own: Vec<usize> = (0..self.programs.len()).filter(of_node).collect();
            let is_late = own
                .iter()
                .any(|&at| self.programs[at].kill_at.is_some_and(|when| when <= now));
            let is_running = own.iter().any(|&at| self.programs[at].child.is_some());
            if is_late || !is_running {
                processes::signal(&self.processes_of(node), Signal::SIGKILL);
            }
            if is_running {
                continue;
            }
            self.states[node].restarts = false;
            let name = self.nodes[node].name.clone();
            if self.states[node].power == Power::Off
                && let Err(error) = self.plug_in(node)
            {
                self.log.add(
                    Some(&name),
                    None,
                    Stream::Lab,
                    &format!("cannot mend its links: {error}"),
                );
            }
            self.states[node].power = Power::On;
            for at in own {
                self.programs[at].state = State::Waiting;
                self.programs[at].is_ready = false;
                self.programs[at].is_announced = false;
                self.programs[at].trying_since = None;
            }
        }
    }

    /// Cuts every link of a node; the directions that were not cut before.
    fn cut_off(&self, name: &str) -> Result<Vec<(String, String)>, String> {
        let socket = paths::control_socket(&self.setup.directory);
        let links = client::links(&socket).map_err(|error| error.to_string())?;
        let is_cut = |from: &str, to: &str| {
            links
                .links
                .iter()
                .any(|row| row.from == from && row.to == to && !row.parameters.up)
        };
        let mut cut = Vec::new();
        for other in self.nodes.iter().filter(|other| other.name != name) {
            for (from, to) in [(name, other.name.as_str()), (other.name.as_str(), name)] {
                if !is_cut(from, to) {
                    let set = client::change_link(&socket, (from, to), false, up(false));
                    set.map_err(|error| error.to_string())?;
                    cut.push((from.to_owned(), to.to_owned()));
                }
            }
        }
        Ok(cut)
    }

    /// Mends what [`Self::cut_off`] cut, but for links to nodes that are off themselves.
    fn plug_in(&mut self, node: usize) -> Result<(), String> {
        let socket = paths::control_socket(&self.setup.directory);
        let own = self.nodes[node].name.clone();
        for (from, to) in std::mem::take(&mut self.states[node].cut) {
            let other = if from == own { &to } else { &from };
            let off = self
                .nodes
                .iter()
                .zip(&mut self.states)
                .find(|(plan, state)| plan.name == *other && state.power == Power::Off);
            match off {
                Some((_, state)) => state.cut.push((from, to)),
                None => client::change_link(&socket, (&from, &to), false, up(true))
                    .map_err(|error| error.to_string())?,
            }
        }
        Ok(())
    }
}

fn up(up: bool) -> LinkChange {
    LinkChange {
        up: Some(up),
        ..LinkChange::default()
    }
}
