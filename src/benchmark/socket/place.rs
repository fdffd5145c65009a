//! Where the two ends and the NIC run.
//!
//! Place: [`super::measure`] settles it before the runs that count. Invariants: a place is in force again before each run, for threads made
//! since. "Best" is found out for each side by itself, by runs of equal length in turn, so that a baseline is never held back by a
//! place that suits the subject.

use sanlab::bench::BenchError;
use sanlab::bench::alternate::{Effort, Subject as _, probe};
use sanlab::bench::pair::allowed;
use sanlab::bench::stats::median;

use crate::cli;
use crate::exit::Failure;

use super::side::Side;

/// Runs in each place before one is chosen.
const TRIALS: usize = 3;

/// Processors of the end that asks, of the one that serves, and of the NIC; `None` leaves it to the scheduler.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Spot {
    pub(super) asking: Option<usize>,
    pub(super) serving: Option<usize>,
    pub(super) nic: Option<usize>,
    name: &'static str,
}

/// The place, or several to choose from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Places {
    spots: Vec<Spot>,
    title: &'static str,
}

impl Places {
    /// Places as `--place` and `--cpus` say.
    pub(super) fn of(effort: &cli::BenchEffort) -> Result<Self, Failure> {
        let allowed = allowed().map_err(super::super::failed)?;
        if let Some(cpu) = effort.cpus.iter().find(|cpu| !allowed.contains(cpu)) {
            return Err(Failure::usage(format_args!(
                "this process may not use processor {cpu}; it may use {allowed:?}"
            )));
        }
        let at = |index: usize| allowed.get(index).copied();
        let free = Spot {
            name: "free",
            ..Spot::default()
        };
        let same = Spot {
            asking: at(0),
            serving: at(0),
            nic: at(0),
            name: "same core",
        };
        let split = Spot {
            asking: at(0),
            serving: at(1),
            nic: at(2),
            name: "split",
        };
        let (spots, title) = match (&effort.cpus[..], effort.place) {
            ([], cli::Placement::Free) => (vec![free], ""),
            ([], cli::Placement::SameCore) => (vec![same], ", same core"),
            ([], cli::Placement::Split) if allowed.len() < 2 => {
                return Err(Failure::usage("--place split needs two processors"));
            }
            ([], cli::Placement::Split) => (vec![split], ", split"),
            ([], cli::Placement::Best) if allowed.len() < 2 => (vec![free], ", best place"),
            ([], cli::Placement::Best) => (vec![free, same, split], ", best place"),
            (&[asking, serving, ref nic @ ..], _) if nic.len() < 2 => (
                vec![Spot {
                    asking: Some(asking),
                    serving: Some(serving),
                    nic: nic.first().copied(),
                    name: "chosen",
                }],
                ", chosen processors",
            ),
            _ => {
                return Err(Failure::usage(
                    "--cpus takes two or three processors, as in 0,1: of the client, of the server, of the NIC",
                ));
            }
        };
        Ok(Self { spots, title })
    }

    /// The end of a row's name.
    pub(super) const fn title(&self) -> &'static str {
        self.title
    }

    /// Gives both sides their places; says which ones where there was a choice.
    pub(super) fn settle<'a>(
        &self,
        subject: &mut Side<'a>,
        baseline: &mut Side<'a>,
        effort: Effort,
    ) -> Result<Option<String>, BenchError> {
        if let [spot] = self.spots[..] {
            subject.place(spot);
            baseline.place(spot);
            return Ok(None);
        }
        let mut notes = Vec::new();
        for side in [subject, baseline] {
            let spot = self.best(side, effort)?;
            side.place(spot);
            notes.push(format!("{} {}", side.name(), spot.name));
        }
        Ok(Some(notes.join(", ")))
    }

    fn best(&self, side: &mut Side<'_>, effort: Effort) -> Result<Spot, BenchError> {
        let mut lengths = Vec::new();
        for &spot in &self.spots {
            side.place(spot);
            lengths.push(probe(side, effort.seconds)?);
        }
        let mut values = vec![Vec::new(); self.spots.len()];
        for _ in 0..TRIALS {
            for ((&spot, &length), values) in self.spots.iter().zip(&lengths).zip(&mut values) {
                side.place(spot);
                let value = side.run(length)?.value();
                values.push(if side.is_less_better() { -value } else { value });
            }
        }
        let middle = |values: &[f64]| median(values).map_or(f64::MIN, |median| median.value);
        let best = self.spots.iter().zip(&values);
        let best = best.max_by(|(_, a), (_, b)| middle(a).total_cmp(&middle(b)));
        best.map(|(&spot, _)| spot).ok_or(BenchError::NoRuns)
    }
}
