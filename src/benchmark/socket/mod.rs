//! `sanlab bench socket`: the emulated SAN as programs meet it, beside kernel sockets.
//!
//! Place: from [`cli::BenchSocket`] to rows; [`side`] runs the two ends of each side, [`place`] says where. Invariants: both sides are the same program
//! ([`crate::peer`]), up at the same time on the same machine, and run in turn. What is said to have taken the SAN has: the
//! counters of the NICs and of the switches are asked after each run. Each figure comes with its price, the processor time of
//! all processes that took part, the NIC's included.

mod place;
mod side;

use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sanlab::bench::alternate::{Effort, pairs};
use sanlab::bench::report::Direction;
use sanlab::bench::{BenchError, Row};

use crate::cli::{self, SocketMetric, SocketRoad};
use crate::exit::Failure;
use crate::peer::work::{Mode, Pattern, Wait, Work};
use crate::stage::Stage;

use place::Places;
use side::Side;

/// Descriptors of an end beside its connections.
const SPARE_DESCRIPTORS: u64 = 128;

/// Measures all that is asked for.
pub(super) fn rows(arguments: &cli::BenchSocket) -> Result<Vec<Row>, Failure> {
    let works = works(arguments)?;
    let places = Places::of(&arguments.effort)?;
    let connections = arguments.connections.iter().copied().max().unwrap_or(1);
    allow_descriptors(connections)?;
    let effort = arguments.effort.effort();
    let stage = Stage::start("bench")?;
    let mut rows = Vec::new();
    for work in &works {
        for &subject in &arguments.subject {
            let name = title(arguments.metric, work, &places);
            super::say(&format!(
                "{name}: {} beside {}",
                subject.name(),
                arguments.vs.name()
            ));
            let mut found = measure(
                &stage,
                (subject, arguments.vs),
                work,
                &places,
                effort,
                &name,
            )
            .map_err(super::failed)?;
            rows.append(&mut found);
        }
    }
    stage.end()?;
    Ok(rows)
}

/// Everything that is asked for, one work after the other.
fn works(arguments: &cli::BenchSocket) -> Result<Vec<Work>, Failure> {
    let metric = arguments.metric;
    let is_lat = metric == SocketMetric::Lat;
    let thinks = match (arguments.sweep, &arguments.think[..]) {
        (true, _) => (3..=9).map(|power| 10_u64.pow(power)).collect(),
        (false, []) => vec![0],
        (false, thinks) => thinks.to_vec(),
    };
    let is_pacing = thinks != [0];
    for (is_given, option) in [
        (is_pacing, "--think and --sweep"),
        (arguments.pattern != cli::SocketPattern::Ping, "--pattern"),
        (arguments.rate.is_some(), "--rate"),
        (arguments.active > 1, "--active"),
    ] {
        if is_given && !is_lat {
            return Err(Failure::usage(format_args!(
                "{option} is for lat, round trips"
            )));
        }
    }
    let wait = arguments.wait.map_or_else(
        || match arguments.rate.is_some() || arguments.active > 1 {
            true => Wait::Epoll,
            false => Wait::Blocking,
        },
        Wait::from,
    );
    if arguments.active > 1 && wait != Wait::Epoll {
        return Err(Failure::usage("--active above 1 needs --wait epoll"));
    }
    if arguments.rate.is_some() && wait == Wait::Blocking {
        return Err(Failure::usage(
            "--rate needs --wait epoll or busy: an open loop sends while it waits",
        ));
    }
    if arguments.rate.is_some()
        && (is_pacing || arguments.active > 1 || arguments.pattern != cli::SocketPattern::Ping)
    {
        return Err(Failure::usage(
            "--rate fixes when messages are sent: it goes with neither --think, --active nor --pattern",
        ));
    }
    if is_pacing && arguments.active > 1 {
        return Err(Failure::usage("--think needs --active 1"));
    }
    if metric == SocketMetric::Conn && (wait != Wait::Blocking || arguments.connections != [1]) {
        return Err(Failure::usage(
            "conn makes one connection after the other: it takes neither --wait nor --connections",
        ));
    }
    let sizes = match (&arguments.size[..], metric) {
        ([], SocketMetric::Lat | SocketMetric::Rate) => vec![64],
        ([], SocketMetric::Bw) => vec![65_536],
        ([], SocketMetric::Conn) => vec![1],
        (sizes, _) => sizes.to_vec(),
    };
    if sizes.contains(&0) && metric != SocketMetric::Conn {
        return Err(Failure::usage(
            "a message has at least one byte; --size 0 is for conn",
        ));
    }
    let mode = match metric {
        SocketMetric::Lat => Mode::Trips,
        SocketMetric::Bw | SocketMetric::Rate => Mode::Stream,
        SocketMetric::Conn => Mode::Connections,
    };
    let mut works = Vec::new();
    for &size in &sizes {
        for &connections in &arguments.connections {
            for &think_ns in &thinks {
                works.push(Work {
                    mode,
                    pattern: arguments.pattern.into(),
                    wait,
                    size,
                    connections,
                    active: arguments.active.min(connections),
                    think_ns,
                    rate: arguments.rate,
                });
            }
        }
    }
    Ok(works)
}

/// Lets this program and those it starts have so many connections.
fn allow_descriptors(connections: usize) -> Result<(), Failure> {
    let wanted = u64::try_from(connections)
        .unwrap_or(u64::MAX)
        .saturating_add(SPARE_DESCRIPTORS);
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)
        .map_err(|error| Failure::from(anyhow::Error::new(error).context("descriptor limit")))?;
    if hard < wanted {
        return Err(Failure::usage(format_args!(
            "{connections} connections need {wanted} descriptors, and `ulimit -Hn` is {hard}; raise it, or measure fewer"
        )));
    }
    if soft < wanted {
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).map_err(|error| {
            Failure::from(anyhow::Error::new(error).context("descriptor limit"))
        })?;
    }
    Ok(())
}

/// Both sides of a work in turn: the row of its figure, and that of its price.
fn measure(
    stage: &Stage,
    (subject, baseline): (SocketRoad, SocketRoad),
    work: &Work,
    places: &Places,
    effort: Effort,
    name: &str,
) -> Result<Vec<Row>, BenchError> {
    let [mut subject, mut baseline] = [
        Side::start(stage, subject, work)?,
        Side::start(stage, baseline, work)?,
    ];
    let note = places.settle(&mut subject, &mut baseline, effort)?;
    let pairs = pairs(&mut subject, &mut baseline, effort)?;
    let names = || {
        (
            subject.road().name().to_owned(),
            baseline.road().name().to_owned(),
        )
    };
    let (direction, unit) = units(work);
    let mut row =
        Row::of_pairs(name.to_owned(), names(), direction, &pairs).ok_or(BenchError::NoRuns)?;
    row.is_open_loop = work.rate.is_some();
    row.note.clone_from(&note);
    let cost = Row::of_costs(format!("{name}: CPU"), names(), unit, &pairs);
    Ok(std::iter::once(row)
        .chain(cost.map(|mut cost| {
            cost.note = note;
            cost
        }))
        .collect())
}

/// Units of the figure and of its price.
fn units(work: &Work) -> (Direction, &'static str) {
    match work.mode {
        Mode::Trips => (Direction::LessIsBetter("ns"), "s/million"),
        Mode::Connections => (Direction::MoreIsBetter("connections/s"), "s/million"),
        Mode::Stream if side::is_counted_in_bytes(work) => (Direction::MoreIsBetter("B/s"), "s/GB"),
        Mode::Stream => (Direction::MoreIsBetter("messages/s"), "s/million"),
    }
}

/// What is measured, with every parameter that matters.
fn title(metric: SocketMetric, work: &Work, places: &Places) -> String {
    let mut name = format!(
        "socket {}, {} B, {}",
        match metric {
            SocketMetric::Lat => "round trip",
            SocketMetric::Bw => "stream",
            SocketMetric::Rate => "messages",
            SocketMetric::Conn => "connections",
        },
        work.size,
        match work.wait {
            Wait::Blocking => "blocking",
            Wait::Epoll => "epoll",
            Wait::Busy => "busy",
        }
    );
    match work.pattern {
        Pattern::Ping => {}
        Pattern::SmallLarge => name.push_str(", behind a small send"),
        Pattern::Writev => name.push_str(", header and body by writev"),
    }
    if work.connections > 1 {
        name.push_str(&format!(", {} connections", work.connections));
    }
    if work.connections > 1 && work.mode == Mode::Trips && work.rate.is_none() {
        name.push_str(&format!(", {} active", work.active));
    }
    if work.think_ns > 0 {
        let time = humantime::format_duration(Duration::from_nanos(work.think_ns));
        name.push_str(&format!(", {time} think time"));
    }
    if let Some(rate) = work.rate {
        name.push_str(&format!(", open loop at {rate}/s"));
    }
    name.push_str(places.title());
    name
}
