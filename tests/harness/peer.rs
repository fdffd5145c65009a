//! A small socket program that a test leads step by step.
//!
//! Place: tests of roads, kills and addresses, where a ready-made program does not wait at the right moment. Invariants: an answer is one line; a
//! command that blocks simply has not answered yet.

use std::path::Path;
use std::process::{Command, Stdio};

use super::{Lab, Process};

/// The program: Python, so that it goes through the C library like any other.
const SCRIPT: &str = include_str!("peer.py");

pub(crate) struct Peer {
    /// Its process.
    pub(crate) process: Process,
    answers: usize,
}

impl Peer {
    /// Starts the program; `prefix` is the interpreter's command, on a node or without sanlab.
    pub(crate) fn start(lab: &Lab, label: &str, mut interpreter: Command) -> Self {
        interpreter.args(["-u", "-c", SCRIPT]);
        Self::lead(lab, label, interpreter)
    }

    /// Starts another program that takes a command a line and answers with a line.
    pub(crate) fn lead(lab: &Lab, label: &str, mut program: Command) -> Self {
        program.stdin(Stdio::piped());
        Self {
            process: lab.spawn(label, program),
            answers: 0,
        }
    }

    /// Starts the program without sanlab.
    pub(crate) fn start_unhooked(lab: &Lab, label: &str, python: &Path) -> Self {
        Self::start(lab, label, Command::new(python))
    }

    /// Gives a command without waiting for its answer.
    pub(crate) fn post(&mut self, command: &str) {
        self.process.write(&format!("{command}\n"));
    }

    /// Waits for the answer to the oldest command without one.
    pub(crate) fn answer(&mut self) -> String {
        let number = self.answers;
        self.answers += 1;
        super::wait_for(|| {
            let said = self.process.stdout();
            let whole = said.rsplit_once('\n').map_or("", |(whole, _)| whole);
            if let Some(line) = whole.lines().nth(number) {
                return Some(line.to_owned());
            }
            assert!(
                self.process.is_running(),
                "the peer ended: {}",
                self.process.stderr()
            );
            None
        })
    }

    /// Gives a command and waits for its answer.
    pub(crate) fn ask(&mut self, command: &str) -> String {
        self.post(command);
        self.answer()
    }

    /// Gives a command, whose answer must be this.
    pub(crate) fn expect(&mut self, command: &str, answer: &str) {
        assert_eq!(self.ask(command), answer, "{command}");
    }

    /// Whether the oldest command without an answer is still at work.
    pub(crate) fn is_blocked(&self) -> bool {
        self.process.stdout().lines().count() == self.answers
    }
}
