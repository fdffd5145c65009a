//! Made for debugging: the engine stands still at an error or a finding, goes on in steps, and waits for clients that a debugger holds.
//!
//! Place: [`Device::pump`] asks before each piece of work; control requests call [`Device::pause`], [`Device::step`] and
//! [`Device::resume`]. Invariants: while the engine stands still no WQE, command or timer runs and the device's clock stands too; calls
//! (registers, windows, inspection) go on. With a reason to pause every turn has one WQE, so nothing runs past the one that matters.
//! Source: ours; process states as in proc(5). Hot: [`Pause::is_frozen`], one load per turn.

use std::fmt;
use std::str::FromStr;

use ring_proto::status::Syndrome;
use serde::{Deserialize, Serialize};

use super::Device;
use super::cq::Completed;
use super::recorder::{Event, What};
use super::timer::Timer;
use super::validate::{Rule, UnknownRule};

/// Time between two looks whether a stopped client goes on.
const STOPPED_LOOK_NS: u64 = 100_000_000;
/// What a timer still has when its client goes on.
const GRACE_NS: u64 = 1_000_000_000;

/// What the engine pauses at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum PauseOn {
    /// A completion with an error, a QP or a function that fails.
    Error,
    /// A finding of any rule.
    Finding,
    /// A finding of this rule.
    Rule(Rule),
}

impl FromStr for PauseOn {
    type Err = UnknownRule;

    fn from_str(text: &str) -> Result<Self, UnknownRule> {
        match text {
            "error" => Ok(Self::Error),
            "finding" => Ok(Self::Finding),
            rule => rule.parse().map(Self::Rule),
        }
    }
}

impl TryFrom<String> for PauseOn {
    type Error = UnknownRule;

    fn try_from(text: String) -> Result<Self, UnknownRule> {
        text.parse()
    }
}

impl From<PauseOn> for String {
    fn from(from: PauseOn) -> Self {
        from.to_string()
    }
}

impl fmt::Display for PauseOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error => f.write_str("error"),
            Self::Finding => f.write_str("finding"),
            Self::Rule(rule) => rule.fmt(f),
        }
    }
}

impl PauseOn {
    /// Whether the validation layer has to be on for it.
    #[must_use]
    pub const fn needs_validation(self) -> bool {
        !matches!(self, Self::Error)
    }
}

/// Whether the engine stands still, and what for.
#[derive(Debug, Default)]
pub(crate) struct Pause {
    on: Option<PauseOn>,
    frozen: Option<String>,
    /// A step is under way.
    is_stepping: bool,
}

/// How a step went.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stepped {
    /// Pieces of work done; 0 when there was none.
    pub served: u64,
    /// Why the engine stands still now.
    pub paused: String,
}

impl Pause {
    pub(crate) fn new(on: Option<PauseOn>) -> Self {
        Self {
            on,
            frozen: None,
            is_stepping: false,
        }
    }

    #[inline]
    pub(crate) fn is_frozen(&self) -> bool {
        self.frozen.is_some()
    }

    /// Whether turns have to end after each WQE.
    #[inline]
    pub(crate) fn is_careful(&self) -> bool {
        self.on.is_some() || self.is_stepping
    }

    pub(crate) fn on(&self) -> Option<PauseOn> {
        self.on
    }

    pub(crate) fn reason(&self) -> Option<&str> {
        self.frozen.as_deref()
    }

    fn freeze(&mut self, reason: impl FnOnce() -> String) {
        self.frozen.get_or_insert_with(reason);
    }

    /// A rule was broken.
    pub(crate) fn found(&mut self, rule: Rule) {
        let applies = match self.on {
            Some(PauseOn::Finding) => true,
            Some(PauseOn::Rule(wanted)) => wanted == rule,
            _ => false,
        };
        if applies {
            self.freeze(|| format!("finding {rule}"));
        }
    }

    /// Something failed.
    fn failed(&mut self, reason: impl FnOnce() -> String) {
        if self.on == Some(PauseOn::Error) {
            self.freeze(reason);
        }
    }
}

impl Device {
    /// Why the engine stands still, if it does.
    #[must_use]
    pub fn paused(&self) -> Option<&str> {
        self.diagnosis.pause.reason()
    }

    /// Makes the engine stand still.
    pub fn pause(&mut self) {
        self.diagnosis.pause.freeze(|| "asked to".into());
        self.clock.freeze();
    }

    /// Lets an engine that stands still do one piece of work: a WQE, or the waiting doorbells and commands of a function.
    ///
    /// The clock goes on standing, so no timer runs out. `None` when the engine is not paused.
    pub fn step(&mut self) -> Option<Stepped> {
        self.diagnosis.pause.frozen.take()?;
        self.diagnosis.pause.is_stepping = true;
        let served = self.round(1);
        self.diagnosis.pause.is_stepping = false;
        self.diagnosis.pause.freeze(|| "stepped".into());
        Some(Stepped {
            served,
            paused: self.paused().unwrap_or_default().to_owned(),
        })
    }

    /// Lets the engine go on; false when it was not paused.
    pub fn resume(&mut self) -> bool {
        self.clock.thaw();
        self.diagnosis.pause.frozen.take().is_some()
    }

    /// A completion says that something failed.
    #[cold]
    pub(crate) fn completion_failed(&mut self, place: u32, entry: &Completed) {
        let words = || format!("{} ({})", entry.status, entry.syndrome);
        self.diagnosis
            .pause
            .failed(|| format!("qp {:#x} completed with {}", entry.qpn, words()));
        self.dump(place, || {
            format!("qp {:#x} completed with {}", entry.qpn, words())
        });
        self.note_error(place, entry);
    }

    /// A QP goes to ERR for a reason that no completion tells.
    #[cold]
    pub(crate) fn qp_failed(&mut self, place: u32, qpn: u32, syndrome: Syndrome) {
        self.failed(place, qpn, syndrome, || {
            format!("qp {qpn:#x} failed: {syndrome}")
        });
        self.note_fatal(place, qpn, syndrome);
    }

    /// A function failed.
    #[cold]
    pub(crate) fn function_failed(&mut self, place: u32, syndrome: Syndrome) {
        self.failed(place, 0, syndrome, || {
            format!("the function failed: {syndrome}")
        });
    }

    fn failed(&mut self, place: u32, number: u32, syndrome: Syndrome, reason: impl Fn() -> String) {
        let fatal = Event {
            number,
            syndrome: syndrome.0,
            what: What::Fatal,
            ..Event::default()
        };
        self.record(place, fatal);
        self.diagnosis.pause.failed(&reason);
        self.dump(place, &reason);
    }

    /// How long a timer that is due has to wait, and whether because the process of a function it is about is stopped by a debugger.
    ///
    /// One that waited gets some time of its own when the process goes on.
    pub(crate) fn hold_back(&self, timer: Timer, was_held_back: bool) -> Option<(u64, bool)> {
        let (one, other) = match timer {
            Timer::Hold(at) | Timer::Packets(at) => (
                Some(at.function),
                self.qp(at).and_then(|qp| qp.peer).map(|peer| peer.function),
            ),
            Timer::Connect(id) => self.connect_functions(id),
            Timer::Holder { function, .. } | Timer::Events(function) => (Some(function), None),
            _ => (None, None),
        };
        let is_stopped = [one, other]
            .into_iter()
            .flatten()
            .filter_map(|id| self.functions.at(self.functions.place_of(id)?))
            .any(super::function::Function::is_client_stopped);
        match (is_stopped, was_held_back) {
            (true, _) => Some((STOPPED_LOOK_NS, true)),
            (false, true) => Some((GRACE_NS, false)),
            (false, false) => None,
        }
    }
}

/// Whether a process is stopped, by a debugger or a signal.
///
/// A process that cannot be looked at counts as running.
pub(crate) fn is_process_stopped(pid: i32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    // The name may hold anything, so the state is what follows the last parenthesis.
    let state = stat.rsplit_once(')').map(|(_, rest)| rest.trim_start());
    state.is_some_and(|rest| rest.starts_with(['T', 't']))
}
