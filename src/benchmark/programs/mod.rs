//! `sanlab bench programs`: redis, nginx and iperf3 as they are, over the SAN beside TCP.
//!
//! Place: from [`cli::BenchPrograms`] to rows; [`redis`], [`nginx`] and [`iperf3`] know their programs, [`world`] runs them. Invariants: both
//! servers are up all the time and asked in turn; a run over the SAN in which a connection took TCP is an error. A program that
//! is missing is named with its Debian package, and the others are measured.

mod iperf3;
mod nginx;
mod redis;
mod tools;
mod world;

use sanlab::bench::alternate::{Effort, Subject, pairs};
use sanlab::bench::report::Direction;
use sanlab::bench::{BenchError, Row};
use serde::Serialize;

use crate::cli::{self, BenchedProgram};
use crate::exit::Failure;
use crate::stage::Stage;

/// What was found.
pub(super) struct Outcome {
    pub(super) rows: Vec<Row>,
    pub(super) missing: Vec<Missing>,
}

/// A program that is not here.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(super) struct Missing {
    /// Its name.
    pub(super) program: String,
    /// The Debian package that has it.
    pub(super) package: String,
}

/// Measures all that is asked for and installed.
pub(super) fn measure(arguments: &cli::BenchPrograms) -> Result<Outcome, Failure> {
    let effort = Effort {
        repetitions: arguments.rounds,
        seconds: arguments.seconds,
    };
    let all = [
        BenchedProgram::Redis,
        BenchedProgram::Nginx,
        BenchedProgram::Iperf3,
    ];
    let asked: Vec<_> = all
        .into_iter()
        .filter(|program| arguments.only.is_empty() || arguments.only.contains(program))
        .collect();
    let mut outcome = Outcome {
        rows: Vec::new(),
        missing: Vec::new(),
    };
    let stage = Stage::start("bench")?;
    for program in asked {
        let found = match program {
            BenchedProgram::Redis => redis::rows(&stage, effort),
            BenchedProgram::Nginx => nginx::rows(&stage, effort),
            BenchedProgram::Iperf3 => iperf3::rows(&stage, effort),
        };
        match found {
            Ok(rows) => outcome.rows.extend(rows),
            Err(Lack::Missing(missing)) => outcome.missing.extend(missing),
            Err(Lack::Failed(failure)) => return Err(failure),
        }
    }
    stage.end()?;
    Ok(outcome)
}

/// Why there are no rows of a program.
enum Lack {
    Missing(Vec<Missing>),
    Failed(Failure),
}

impl From<Failure> for Lack {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<anyhow::Error> for Lack {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error.into())
    }
}

impl From<BenchError> for Lack {
    fn from(error: BenchError) -> Self {
        Self::Failed(super::failed(error))
    }
}

/// Both roads in turn: the row of the figure, and that of its price.
fn compare(
    name: &str,
    direction: Direction,
    cost_unit: &'static str,
    [san, tcp]: [&mut dyn Subject; 2],
    effort: Effort,
) -> Result<Vec<Row>, BenchError> {
    super::say(name);
    let pairs = pairs(san, tcp, effort)?;
    let names = || (san.name(), tcp.name());
    let row = Row::of_pairs(name.to_owned(), names(), direction, &pairs);
    let row = row.ok_or(BenchError::NoRuns)?;
    let cost = Row::of_costs(format!("{name}: CPU"), names(), cost_unit, &pairs);
    Ok(std::iter::once(row).chain(cost).collect())
}
