//! The flight recorder: the last data-path events of a function, and what they were when something broke.
//!
//! Place: the engine pushes from its hot path, inspection copies the ring out on the same thread. Invariants: a push is a handful of plain
//! stores into a fixed ring; times are those of the engine's round, so no clock is read. Dumps are bounded in number and in rate.
//! Hot: [`Recorder::push`]. Source: ours. Leaves out: payload.

use std::collections::VecDeque;

use ring_proto::admin::AdminOp;
use ring_proto::ids::FunctionId;
use ring_proto::status::{QpState, Syndrome, WcOpcode, WcStatus};
use serde::{Deserialize, Serialize};

use super::Device;
use super::fault::FaultPoint;

/// Events of a function that are kept.
pub const EVENTS: usize = 1024;
/// Dumps that are kept.
const DUMPS: usize = 8;
/// Least time between two dumps of one function.
const DUMP_GAP_NS: u64 = 1_000_000_000;

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum What {
    #[default]
    Nothing,
    /// A doorbell slot was marked; number is the slot.
    Doorbell,
    /// A WQE without CQE is done.
    Done,
    /// A CQE was written.
    Cqe,
    /// A WQE waits for its peer.
    Hold,
    /// A QP went to a state; code is the state.
    State,
    /// An admin command was answered; code is the command, status the answer.
    Admin,
    /// A QP or the function failed.
    Fatal,
    /// A fault rule fired; code is its point, index its number.
    Fault,
}

/// An event as the engine stores it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Event {
    pub(crate) at_ns: u64,
    pub(crate) wr_id: u64,
    pub(crate) number: u32,
    pub(crate) index: u32,
    pub(crate) len: u32,
    pub(crate) code: u16,
    pub(crate) syndrome: u16,
    pub(crate) status: u16,
    pub(crate) what: What,
}

/// The ring of one function.
#[derive(Debug)]
pub(crate) struct Recorder {
    ring: Box<[Event; EVENTS]>,
    /// Events ever pushed.
    pushed: u64,
    dumped_ns: Option<u64>,
}

impl Recorder {
    pub(crate) fn new() -> Self {
        Self {
            ring: vec![Event::default(); EVENTS]
                .into_boxed_slice()
                .try_into()
                .expect("the vector has as many elements"),
            pushed: 0,
            dumped_ns: None,
        }
    }

    /// Stores an event over the oldest one.
    #[inline]
    pub(crate) fn push(&mut self, event: Event) {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "reduced to the ring's length"
        )]
        let at = self.pushed as usize % EVENTS;
        self.ring[at] = event;
        self.pushed += 1;
    }

    /// Oldest first.
    fn events(&self) -> Vec<EventRow> {
        let kept = self.pushed.min(EVENTS as u64);
        (self.pushed - kept..self.pushed)
            .filter_map(|sequence| {
                let at = usize::try_from(sequence % EVENTS as u64).ok()?;
                Some(row(sequence, self.ring.get(at)?))
            })
            .collect()
    }
}

/// An event in words.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EventRow {
    /// Counts events of the function from 0.
    pub sequence: u64,
    /// Time of the device's clock, as of the engine's round.
    pub at_ns: u64,
    /// `doorbell`, `done`, `cqe`, `hold`, `state`, `admin`, `fault` or `fatal`.
    pub event: String,
    /// QPN; the slot for a doorbell, the command's id for an admin command, 0 for the function itself.
    pub number: u32,
    /// Opcode, QP state or admin command.
    pub code: Option<String>,
    /// Position behind the WQE.
    pub index: u32,
    /// Bytes of the message.
    pub len: u32,
    /// From the WQE.
    pub wr_id: u64,
    /// Status of the completion or answer.
    pub status: Option<String>,
    /// The exact check that failed.
    pub syndrome: Option<String>,
}

/// The events of a function.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Recording {
    /// The function.
    pub function: u32,
    /// Name of its node.
    pub node: String,
    /// Why it was kept; nothing for a live one.
    pub reason: Option<String>,
    /// When, by the device's clock.
    pub at_ns: u64,
    /// Events, oldest first.
    pub events: Vec<EventRow>,
}

/// Dumps of all functions, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Dumps {
    kept: VecDeque<Recording>,
}

fn row(sequence: u64, event: &Event) -> EventRow {
    let low = event.code.to_le_bytes()[0];
    let status = event.status.to_le_bytes()[0];
    let syndrome = (event.syndrome != 0).then(|| Syndrome(event.syndrome).to_string());
    let (name, code, status) = match event.what {
        What::Nothing => ("nothing", None, None),
        What::Doorbell => ("doorbell", None, None),
        What::Done => ("done", Some(WcOpcode(low).to_string()), None),
        What::Cqe => (
            "cqe",
            Some(WcOpcode(low).to_string()),
            Some(WcStatus(status).to_string()),
        ),
        What::Hold => ("hold", Some(WcOpcode(low).to_string()), None),
        What::State => ("state", Some(QpState(low).to_string()), None),
        What::Admin => (
            "admin",
            Some(AdminOp(event.code).to_string()),
            Some(ring_proto::admin::AdminStatus(event.status).to_string()),
        ),
        What::Fatal => ("fatal", None, None),
        What::Fault => {
            let at = FaultPoint::ALL.iter().find(|&&at| at as u16 == event.code);
            ("fault", at.map(|at| at.name().into()), None)
        }
    };
    EventRow {
        sequence,
        at_ns: event.at_ns,
        event: name.into(),
        number: event.number,
        code,
        index: event.index,
        len: event.len,
        wr_id: event.wr_id,
        status,
        syndrome,
    }
}

impl Device {
    /// The recorded events of every function, or of one.
    #[must_use]
    pub fn recordings(&self, only: Option<FunctionId>) -> Vec<Recording> {
        self.functions
            .iter()
            .filter(|(_, function)| only.is_none_or(|id| id == function.id))
            .map(|(_, function)| Recording {
                function: function.id.0,
                node: self.node_name(function.node),
                reason: None,
                at_ns: self.clock.now_ns(),
                events: function.recorder.events(),
            })
            .collect()
    }

    /// What was recorded when something broke, oldest first.
    #[must_use]
    pub fn dumps(&self, only: Option<FunctionId>) -> Vec<Recording> {
        let all = self.diagnosis.dumps.kept.iter();
        all.filter(|dump| only.is_none_or(|id| id.0 == dump.function))
            .cloned()
            .collect()
    }

    /// Stores an event that is not hot.
    pub(crate) fn record(&mut self, place: u32, event: Event) {
        let at_ns = self.work.now_ns;
        if let Some(function) = self.functions.at_mut(place) {
            function.recorder.push(Event { at_ns, ..event });
        }
    }

    /// Keeps what a function's recorder holds now, not too often.
    pub(crate) fn dump(&mut self, place: u32, reason: impl FnOnce() -> String) {
        let now_ns = self.clock.now_ns();
        let Some(function) = self.functions.at_mut(place) else {
            return;
        };
        let is_early = function
            .recorder
            .dumped_ns
            .is_some_and(|last| now_ns.saturating_sub(last) < DUMP_GAP_NS);
        if is_early {
            return;
        }
        function.recorder.dumped_ns = Some(now_ns);
        let node = function.node;
        let dump = Recording {
            function: function.id.0,
            node: String::new(),
            reason: Some(reason()),
            at_ns: now_ns,
            events: function.recorder.events(),
        };
        let node = self.node_name(node);
        let kept = &mut self.diagnosis.dumps.kept;
        if kept.len() == DUMPS {
            kept.pop_front();
        }
        kept.push_back(Recording { node, ..dump });
    }
}

#[cfg(test)]
mod tests {
    use super::{EVENTS, Event, Recorder, What};

    #[test]
    fn the_oldest_events_go_first() {
        let mut recorder = Recorder::new();
        assert!(recorder.events().is_empty());
        let count = u32::try_from(EVENTS).unwrap() + 3;
        for number in 0..count {
            recorder.push(Event {
                number,
                what: What::Doorbell,
                ..Event::default()
            });
        }
        let events = recorder.events();
        assert_eq!(events.len(), EVENTS);
        assert_eq!((events[0].sequence, events[0].number), (3, 3));
        let last = events.last().unwrap();
        assert_eq!((last.number, last.event.as_str()), (count - 1, "doorbell"));
    }
}
