//! What the NIC's engine takes for a validated RDMA WRITE of 64 bytes, beside bare rings of elements as large as its WQE.
//!
//! Run: `cargo bench --bench engine`. One thread and warm caches: the work itself, without the way of a line from core to core
//! (`sanlab bench rdma write rate` has that). Posting and polling are not timed. Behind criterion's estimates stand ratios whose two sides
//! were measured in turn. Instructions of the same: `cargo test --release --test hot_path`.
#![expect(unsafe_code, reason = "the stage maps doorbells")]
#![expect(clippy::print_stdout, reason = "a benchmark without the test harness")]

use std::cell::RefCell;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group};
use sanlab::bench::BenchError;
use sanlab::bench::alternate::{self, Effort, Subject};
use sanlab::bench::report::{Direction, Sample};
use sanlab::bench::stats::histogram;

#[path = "../tests/hot_path/stage.rs"]
#[expect(dead_code, reason = "the test measures more of it")]
mod stage;

use stage::{Stage, WRITES};

fn engine(c: &mut Criterion) {
    let stage = RefCell::new(Stage::new());
    let mut group = c.benchmark_group("64 bytes");
    group.throughput(Throughput::Elements(WRITES.into()));
    for subject in Measured::ALL {
        group.bench_function(subject.name(), |b| {
            b.iter_custom(|batches| subject.batches(&mut stage.borrow_mut(), batches));
        });
    }
    group.finish();
}

/// What is measured, in batches of [`WRITES`].
#[derive(Clone, Copy)]
enum Measured {
    /// The engine's part of RDMA WRITEs with one completion.
    Engine,
    /// Our ring: an element in and out.
    OwnRing,
    /// rtrb's.
    Rtrb,
}

impl Measured {
    const ALL: [Self; 3] = [Self::Engine, Self::OwnRing, Self::Rtrb];

    fn name(self) -> &'static str {
        match self {
            Self::Engine => "engine: RDMA WRITE, 1 completion in 64",
            Self::OwnRing => "baseline: our ring, in and out",
            Self::Rtrb => "baseline: rtrb, in and out",
        }
    }

    fn batches(self, stage: &mut Stage, batches: u64) -> Duration {
        if matches!(self, Self::Engine) {
            let mut taken = Duration::ZERO;
            for _ in 0..batches {
                stage.post_writes();
                let begin = Instant::now();
                stage.serve_writes();
                taken += begin.elapsed();
                stage.take_writes();
            }
            return taken;
        }
        let begin = Instant::now();
        for _ in 0..batches {
            stage.bare(matches!(self, Self::OwnRing));
        }
        begin.elapsed()
    }
}

/// One of them as a side of an alternation.
struct Side<'a>(Measured, &'a RefCell<Stage>);

impl Subject for Side<'_> {
    fn name(&self) -> String {
        self.0.name().to_owned()
    }

    /// Picoseconds of an operation in each of many short pieces: a piece in which the machine did something else is one of many.
    fn run(&mut self, count: u64) -> Result<Sample, BenchError> {
        // A piece is so long that reading the clock is nothing beside it.
        let batches = if matches!(self.0, Measured::Engine) {
            1
        } else {
            16
        };
        let operations = batches * u64::from(WRITES);
        let mut stage = self.1.borrow_mut();
        let mut pieces = histogram();
        for _ in 0..count.div_ceil(operations) {
            let taken = self.0.batches(&mut stage, batches).as_nanos();
            let each = u64::try_from(taken * 1000).unwrap_or(u64::MAX) / operations;
            pieces.saturating_record(each);
        }
        Ok(Sample::latency(pieces))
    }
}

/// The engine beside both rings, in turn.
fn beside() -> Result<(), BenchError> {
    let effort = Effort {
        repetitions: 20,
        seconds: 0.1,
    };
    let stage = RefCell::new(Stage::new());
    println!("medians of short pieces, in turn:");
    for baseline in [Measured::OwnRing, Measured::Rtrb] {
        let row = alternate::alternate(
            String::new(),
            Direction::LessIsBetter("ps"),
            &mut Side(Measured::Engine, &stage),
            &mut Side(baseline, &stage),
            effort,
        )?;
        println!(
            "{}: {:.1} ns; {}: {:.2} ns; {:.1} times ({:.1}..{:.1}, {} pairs)",
            row.subject,
            row.subject_value / 1000.0,
            row.baseline,
            row.baseline_value / 1000.0,
            row.ratio,
            row.ratio_low,
            row.ratio_high,
            row.samples,
        );
    }
    Ok(())
}

criterion_group!(benches, engine);

fn main() -> Result<(), BenchError> {
    benches();
    // As a test it shows that it runs.
    if !std::env::args().any(|argument| argument == "--test") {
        beside()?;
    }
    Criterion::default().configure_from_args().final_summary();
    Ok(())
}
