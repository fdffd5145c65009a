//! `sanlab bench`: from arguments to a report.
//!
//! Place: `main` calls [`bench`]; what is measured and how is the library's, `sanlab::bench`.
//! Invariants: a report is printed whole or not at all; a comparison that fails its limit ends with code 1. Says on a terminal what is
//! under way.

mod processes;
mod programs;
mod show;
mod socket;

use std::fs;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use sanlab::bench::alternate::{Effort, Subject, alternate};
use sanlab::bench::foreign::Foreign;
use sanlab::bench::machine::Machine;
use sanlab::bench::queue::Queue;
use sanlab::bench::saved::Saved;
use sanlab::bench::subjects::{ArrayQueue, Pipe, Rtrb, SendQueue, SleepingQueue};
use sanlab::bench::{BenchError, Place, Report, Row, matrix, plot, rdma, ring};
use serde_json::json;

use crate::cli::{self, BenchOutput, Benchmark};
use crate::exit::{self, Failure};
use crate::output::{self, Table};

/// Runs a benchmark.
pub(crate) fn bench(command: &Benchmark) -> Result<(), Failure> {
    match command {
        Benchmark::Ring(arguments) => rings(arguments),
        Benchmark::Rdma(arguments) => verbs(arguments),
        Benchmark::Socket(arguments) => sockets(arguments),
        Benchmark::Programs(arguments) => unmodified(arguments),
        Benchmark::Compare(arguments) => compare(arguments),
    }
}

fn rings(arguments: &cli::BenchRing) -> Result<(), Failure> {
    // Before anything of ours adds to the load.
    let machine = Machine::look();
    let effort = arguments.effort.effort();
    if arguments.matrix {
        return distances(&machine, effort, arguments.output.json);
    }
    let place = placed(&arguments.effort)?;
    let mut rows = Vec::new();
    for &size in &arguments.size {
        for &batch in &arguments.batch {
            for name in &arguments.subject {
                let plan = ring::Plan {
                    metric: arguments.metric.into(),
                    depth: arguments.depth,
                    batch: if arguments.metric == cli::RingMetric::Latency {
                        1
                    } else {
                        batch
                    },
                    between: arguments.between.into(),
                    place,
                };
                say(&format!("{name}, {size} B, batch {}", plan.batch));
                rows.push(ring_row(name, &arguments.vs, size, &plan, effort).map_err(failed)?);
            }
            if arguments.metric == cli::RingMetric::Latency {
                break;
            }
        }
    }
    finish(Report { machine, rows }, &arguments.output)
}

fn distances(machine: &Machine, effort: Effort, is_json: bool) -> Result<(), Failure> {
    say("the way between processors");
    let found = matrix::measure(effort).map_err(failed)?;
    if is_json {
        return output::json(
            &json!({"schema": 1, "machine": machine, "matrix": found, "ok": true}),
        );
    }
    output::answer(&format!("{}\n{}", machine.to_text(), show::matrix(&found)))
}

fn ring_row(
    subject: &str,
    baseline: &str,
    size: u32,
    plan: &ring::Plan,
    effort: Effort,
) -> Result<Row, BenchError> {
    let mut subject = by_size(subject, size, plan)?;
    let mut baseline = by_size(baseline, size, plan)?;
    let (name, direction) = ring::title(plan, size as usize);
    alternate(name, direction, subject.as_mut(), baseline.as_mut(), effort)
}

fn by_size(name: &str, size: u32, plan: &ring::Plan) -> Result<Box<dyn Subject>, BenchError> {
    match size {
        8 => by_name::<1>(name, plan),
        16 => by_name::<2>(name, plan),
        32 => by_name::<4>(name, plan),
        64 => by_name::<8>(name, plan),
        128 => by_name::<16>(name, plan),
        256 => by_name::<32>(name, plan),
        other => Err(BenchError::ElementSize(other)),
    }
}

/// A queue we know, or the shared object of that path.
fn by_name<const W: usize>(name: &str, plan: &ring::Plan) -> Result<Box<dyn Subject>, BenchError> {
    fn boxed<const W: usize, Q: Queue<W> + 'static>(
        queue: Q,
        plan: &ring::Plan,
    ) -> Result<Box<dyn Subject>, BenchError> {
        Ok(Box::new(ring::measured::<W, Q>(queue, plan)?))
    }
    match name {
        "sq" => boxed::<W, _>(SendQueue, plan),
        "rtrb" => boxed::<W, _>(Rtrb, plan),
        "array-queue" => boxed::<W, _>(ArrayQueue, plan),
        "pipe" => boxed::<W, _>(Pipe, plan),
        "futex" => boxed::<W, _>(SleepingQueue, plan),
        path => boxed::<W, _>(Foreign::load(Path::new(path))?, plan),
    }
}

fn verbs(arguments: &cli::BenchRdma) -> Result<(), Failure> {
    // Before anything of ours adds to the load.
    let machine = Machine::look();
    let effort = arguments.effort.effort();
    let place = placed(&arguments.effort)?;
    let metric = arguments.metric.into();
    let operation = arguments.operation.into();
    let default = match metric {
        rdma::Metric::Latency => 8,
        rdma::Metric::Bandwidth => 65_536,
        rdma::Metric::Rate => 64,
    };
    let sizes = match (operation, &arguments.size[..]) {
        (rdma::Operation::Atomic, _) => vec![8],
        (_, []) => vec![default],
        (_, sizes) => sizes.to_vec(),
    };
    let mut rows = Vec::new();
    for size in sizes {
        let plan = rdma::Plan {
            operation,
            metric,
            size,
            tx_depth: arguments.tx_depth,
            cq_mod: arguments.cq_mod,
            via: arguments.via.into(),
            place,
        };
        say(&format!("{size} B"));
        rows.push(rdma::measure(&plan, effort).map_err(failed)?);
    }
    finish(Report { machine, rows }, &arguments.output)
}

fn sockets(arguments: &cli::BenchSocket) -> Result<(), Failure> {
    // Before anything of ours adds to the load.
    let machine = Machine::look();
    let rows = socket::rows(arguments)?;
    finish(Report { machine, rows }, &arguments.output)
}

fn unmodified(arguments: &cli::BenchPrograms) -> Result<(), Failure> {
    // Before anything of ours adds to the load.
    let machine = Machine::look();
    let programs::Outcome { rows, missing } = programs::measure(arguments)?;
    for programs::Missing { program, package } in &missing {
        exit::diagnostic(format_args!(
            "{program} is not installed; on Debian: apt-get install {package}"
        ));
    }
    let is_ok = missing.is_empty();
    let report = Report { machine, rows };
    if arguments.output.json {
        keep(&report, &arguments.output)?;
        let mut answer = report.to_json();
        answer["ok"] = is_ok.into();
        answer["missing"] = json!(missing);
        output::json(&answer)?;
    } else {
        finish(report, &arguments.output)?;
    }
    if is_ok {
        Ok(())
    } else {
        Err(Failure::silent(exit::FAILED))
    }
}

/// Where the sides run, as `--place` and `--cpus` say.
fn placed(effort: &cli::BenchEffort) -> Result<Place, Failure> {
    let allowed = sanlab::bench::pair::allowed().map_err(failed)?;
    let place = match (&effort.cpus[..], effort.place) {
        (&[near, far], _) => Place {
            near: Some(near),
            far: Some(far),
        },
        ([], cli::Placement::Free) => Place::default(),
        ([], cli::Placement::SameCore) => Place {
            near: allowed.first().copied(),
            far: allowed.first().copied(),
        },
        ([], cli::Placement::Split) if allowed.len() < 2 => {
            return Err(Failure::usage("--place split needs two processors"));
        }
        ([], cli::Placement::Split) => Place {
            near: allowed.first().copied(),
            far: allowed.get(1).copied(),
        },
        ([], cli::Placement::Best) => {
            return Err(Failure::usage("--place best is for sockets"));
        }
        _ => return Err(Failure::usage("--cpus takes two processors, as in 0,1")),
    };
    if let Some(cpu) = [place.near, place.far]
        .into_iter()
        .flatten()
        .find(|cpu| !allowed.contains(cpu))
    {
        return Err(Failure::usage(format_args!(
            "this process may not use processor {cpu}; it may use {allowed:?}"
        )));
    }
    Ok(place)
}

fn say(text: &str) {
    let mut stderr = std::io::stderr();
    if stderr.is_terminal() {
        // A closed terminal must not change what is measured.
        let _ = writeln!(stderr, "measuring {text}");
    }
}

fn finish(report: Report, to: &BenchOutput) -> Result<(), Failure> {
    keep(&report, to)?;
    if to.json {
        return output::json(&report.to_json());
    }
    if to.csv {
        return output::answer(&report.to_csv());
    }
    output::answer(&format!(
        "{}\n{}",
        report.machine.to_text(),
        show::rows(&report.rows)
    ))
}

/// Writes the files that are asked for.
fn keep(report: &Report, to: &BenchOutput) -> Result<(), Failure> {
    if let Some(path) = &to.save {
        Saved::of(report).write(path).map_err(failed)?;
    }
    if let Some(path) = &to.plot {
        write(path, &plot::svg(report))?;
    }
    Ok(())
}

fn write(path: &PathBuf, text: &str) -> Result<(), Failure> {
    fs::write(path, text)
        .map_err(|error| Failure::new(exit::FAILED, format_args!("{}: {error}", path.display())))
}

fn compare(arguments: &cli::BenchCompare) -> Result<(), Failure> {
    let before = Saved::read(&arguments.before).map_err(failed)?;
    let after = Saved::read(&arguments.after).map_err(failed)?;
    let changes = before.changes(&after);
    if changes.is_empty() {
        return Err(Failure::new(
            exit::FAILED,
            "the two files have no row in common",
        ));
    }
    let limit = arguments.fail_above;
    let is_over = |change: &sanlab::bench::saved::Change| {
        limit.is_some_and(|limit| change.is_certain && change.worse_percent > limit)
    };
    let is_ok = !changes.iter().any(is_over);
    if arguments.json {
        let rows = changes.iter().map(|change| {
            json!({
                "name": change.name,
                "before": change.before,
                "after": change.after,
                "worse_percent": change.worse_percent,
                "certain": change.is_certain,
            })
        });
        output::json(&json!({"schema": 1, "rows": rows.collect::<Vec<_>>(), "ok": is_ok}))?;
    } else {
        let mut table = Table::new(&["ROW", ">RATIO BEFORE", ">AFTER", ">WORSE", "VERDICT"]);
        for change in &changes {
            let verdict = match (change.is_certain, is_over(change)) {
                (false, _) => "within the noise",
                (true, true) => "above the limit",
                (true, false) => "certain",
            };
            table.row([
                change.name.clone(),
                format!("{:.3}", change.before),
                format!("{:.3}", change.after),
                format!("{:+.1} %", change.worse_percent),
                verdict.to_owned(),
            ]);
        }
        output::answer(&table.render(""))?;
    }
    if is_ok {
        Ok(())
    } else {
        Err(Failure::silent(exit::FAILED))
    }
}

fn as_bench(failure: Failure) -> BenchError {
    if failure.is_interrupted() {
        BenchError::Interrupted
    } else {
        BenchError::Program(failure.to_string())
    }
}

fn failed(error: BenchError) -> Failure {
    match error {
        BenchError::Depth(_)
        | BenchError::OneProcessor
        | BenchError::ElementSize(_)
        | BenchError::Batch { .. }
        | BenchError::OneProcess(_)
        | BenchError::Foreign { .. } => Failure::usage(error),
        BenchError::Interrupted => Failure::silent(exit::INTERRUPTED),
        other => Failure::new(exit::FAILED, other),
    }
}
