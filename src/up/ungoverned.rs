//! What the links of a cluster cannot govern, told by the `up` that stays with it.
//!
//! Place: the loop of the foreground `up` calls [`Watch::tell`] now and then. Invariants: each program is told once. Nothing is asked where the
//! emulator is the wire. Source: `ungoverned` of the stat object. Leaves out: what is refused, which its own program hears of.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use crate::config::Isolation;
use crate::control;
use crate::exit;

/// How often it is asked.
const PERIOD: Duration = Duration::from_secs(1);

/// What has been told.
#[derive(Debug)]
pub(super) struct Watch {
    isolation: Isolation,
    told: HashSet<(u64, String)>,
}

impl Watch {
    pub(super) fn new(isolation: Isolation) -> Self {
        Self {
            isolation,
            told: HashSet::new(),
        }
    }

    /// How long to wait before the next look; for ever where there is nothing to see.
    pub(super) fn period(&self) -> Option<Duration> {
        (self.isolation == Isolation::Loopback).then_some(PERIOD)
    }

    /// Tells what is new.
    pub(super) fn tell(&mut self, directory: &Path) {
        // An emulator that ends meanwhile is noticed by who waits for it.
        let Ok(stat) = control::stat(directory) else {
            return;
        };
        for row in stat["ungoverned"].as_array().into_iter().flatten() {
            let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
            let (pid, what) = (row["pid"].as_u64().unwrap_or_default(), text("what"));
            if self.told.insert((pid, what.clone())) {
                let how = match what.as_str() {
                    "datagrams" => "sends datagrams to other nodes",
                    _ => "runs without the library",
                };
                exit::diagnostic(format_args!(
                    "node {}: {} (process {pid}) {how}, past every link ({what})",
                    text("node"),
                    text("program"),
                ));
            }
        }
    }
}
