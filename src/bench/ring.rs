//! Queues against queues: elements per second one way, or the round trip of one element.
//!
//! Place: `sanlab bench ring`, and programs with a queue of their own, call [`compare`]. Invariants: every element is checked. Round trips are a closed loop: one element is under way at a time, so a pause is one long round trip, not many.

use std::time::Instant;

use hdrhistogram::Histogram;

use super::alternate::{Effort, Subject, alternate};
use super::control::{Control, Idle, PATIENCE};
use super::memory::Memory;
use super::pair;
use super::queue::{Consumer, Producer, Queue, is_stamped, stamp};
use super::report::{Direction, Row, Sample};
use super::stats::histogram;
use super::{BenchError, Between, Place};

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Metric {
    /// Elements per second, one way.
    #[default]
    Rate,
    /// Nanoseconds from an element's push to its echo's pop.
    Latency,
}

/// How it is measured.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Plan {
    /// What.
    pub metric: Metric,
    /// Elements of a queue, a power of two.
    pub depth: u32,
    /// Elements of one push; one for a round trip.
    pub batch: u32,
    /// What the two sides are.
    pub between: Between,
    /// Where they are.
    pub place: Place,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            metric: Metric::Rate,
            depth: 1024,
            batch: 16,
            between: Between::Threads,
            place: Place::default(),
        }
    }
}

/// A queue with elements of `8 * W` bytes, as something that can be measured.
#[derive(Debug)]
pub struct Measured<const W: usize, Q> {
    queue: Q,
    plan: Plan,
}

/// Makes a queue measurable.
///
/// # Errors
/// [`BenchError::Depth`], [`BenchError::Batch`], [`BenchError::OneProcess`].
pub fn measured<const W: usize, Q: Queue<W>>(
    queue: Q,
    plan: &Plan,
) -> Result<Measured<W, Q>, BenchError> {
    if !plan.depth.is_power_of_two() || !(2..=65_536).contains(&plan.depth) {
        return Err(BenchError::Depth(plan.depth));
    }
    if !(1..=plan.depth).contains(&plan.batch) {
        return Err(BenchError::Batch {
            batch: plan.batch,
            depth: plan.depth,
        });
    }
    if plan.between == Between::Processes && !queue.spans_processes() {
        return Err(BenchError::OneProcess(queue.name()));
    }
    Ok(Measured { queue, plan: *plan })
}

/// Measures a queue of elements of `8 * W` bytes beside another one.
///
/// # Errors
/// Those of [`measured`], what the queues refuse, and what they do wrong.
pub fn compare<const W: usize, S: Queue<W>, B: Queue<W>>(
    subject: S,
    baseline: B,
    plan: &Plan,
    effort: Effort,
) -> Result<Row, BenchError> {
    let mut subject = measured(subject, plan)?;
    let mut baseline = measured(baseline, plan)?;
    let (name, direction) = title(plan, 8 * W);
    alternate(name, direction, &mut subject, &mut baseline, effort)
}

/// Name and direction of a row.
#[must_use]
pub fn title(plan: &Plan, bytes: usize) -> (String, Direction) {
    let between = match plan.between {
        Between::Threads => "threads",
        Between::Processes => "processes",
    };
    match plan.metric {
        Metric::Rate => (
            format!(
                "ring rate, {bytes} B, {between}, depth {}, batch {}",
                plan.depth, plan.batch
            ),
            Direction::MoreIsBetter("elements/s"),
        ),
        Metric::Latency => (
            format!("ring round trip, {bytes} B, {between}"),
            Direction::LessIsBetter("ns"),
        ),
    }
}

impl<const W: usize, Q: Queue<W>> Subject for Measured<W, Q> {
    fn name(&self) -> String {
        self.queue.name()
    }

    fn run(&mut self, count: u64) -> Result<Sample, BenchError> {
        let Self { queue, plan } = self;
        let control = Control::new(Memory::new(Control::BYTES)?);
        let memory = Memory::new(queue.bytes(plan.depth))?;
        let (mut producer, mut consumer) = queue.make(plan.depth, &memory)?;
        let sides = (plan.between, plan.place);
        let name = queue.name();
        match plan.metric {
            Metric::Rate => {
                let batch = plan.batch as usize;
                let far = || send(&mut producer, batch, count);
                pair::run(sides, &control, &name, far, || {
                    let begin = Instant::now();
                    receive(&mut consumer, &name, batch, count)?;
                    Ok(Sample::rate(count, begin.elapsed()))
                })
            }
            Metric::Latency => {
                let back = Memory::new(queue.bytes(plan.depth))?;
                let (mut echo_producer, mut echo_consumer) = queue.make(plan.depth, &back)?;
                let far = || echo(&mut consumer, &mut echo_producer, count);
                pair::run(sides, &control, &name, far, || {
                    let trips = round_trips(&mut producer, &mut echo_consumer, &name, count)?;
                    Ok(Sample::latency(trips))
                })
            }
        }
    }
}

/// Pushes `count` elements; false when there is no room for too long.
fn send<const W: usize>(producer: &mut impl Producer<W>, batch: usize, count: u64) -> bool {
    let mut elements = vec![[0; W]; batch];
    let mut sent = 0;
    while sent < count {
        let now = usize::try_from(count - sent).map_or(batch, |left| left.min(batch));
        for (element, sequence) in elements.iter_mut().zip(sent..) {
            stamp(element, sequence);
        }
        if !push_all(producer, &elements[..now]) {
            return false;
        }
        sent += now as u64;
    }
    true
}

#[inline]
fn push_all<const W: usize>(producer: &mut impl Producer<W>, mut elements: &[[u64; W]]) -> bool {
    let mut idle = Idle::new();
    loop {
        let pushed = producer.push(elements);
        elements = elements.get(pushed..).unwrap_or(&[]);
        if elements.is_empty() {
            return true;
        }
        if pushed > 0 {
            idle.moved();
        } else if !idle.wait() {
            return false;
        }
    }
}

/// Takes `count` elements and looks at each of them.
fn receive<const W: usize>(
    consumer: &mut impl Consumer<W>,
    name: &str,
    batch: usize,
    count: u64,
) -> Result<(), BenchError> {
    let mut room = vec![[0; W]; batch];
    let mut idle = Idle::new();
    let mut received = 0;
    while received < count {
        let popped = consumer.pop(&mut room);
        if popped == 0 {
            if idle.wait() {
                continue;
            }
            return Err(stuck(name));
        }
        idle.moved();
        for element in room.iter().take(popped) {
            if !is_stamped(element, received) {
                return Err(wrong(name, element[0], received));
            }
            received += 1;
        }
    }
    Ok(())
}

/// Sends back what comes; false when nothing comes for too long.
fn echo<const W: usize>(
    consumer: &mut impl Consumer<W>,
    producer: &mut impl Producer<W>,
    count: u64,
) -> bool {
    let mut room = [[0; W]; 1];
    let mut idle = Idle::new();
    for _ in 0..count {
        while consumer.pop(&mut room) == 0 {
            if !idle.wait() {
                return false;
            }
        }
        idle.moved();
        if !push_all(producer, &room) {
            return false;
        }
    }
    true
}

fn round_trips<const W: usize>(
    producer: &mut impl Producer<W>,
    consumer: &mut impl Consumer<W>,
    name: &str,
    count: u64,
) -> Result<Histogram<u64>, BenchError> {
    let mut trips = histogram();
    let mut element = [[0; W]; 1];
    let mut room = [[0; W]; 1];
    let mut idle = Idle::new();
    for sequence in 0..count {
        stamp(&mut element[0], sequence);
        let begin = Instant::now();
        if !push_all(producer, &element) {
            return Err(stuck(name));
        }
        while consumer.pop(&mut room) == 0 {
            if !idle.wait() {
                return Err(stuck(name));
            }
        }
        let ns = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        idle.moved();
        if !is_stamped(&room[0], sequence) {
            return Err(wrong(name, room[0][0], sequence));
        }
        trips.saturating_record(ns);
    }
    Ok(trips)
}

pub(crate) fn stuck(name: &str) -> BenchError {
    BenchError::Stuck {
        queue: name.to_owned(),
        seconds: PATIENCE.as_secs(),
    }
}

pub(crate) fn wrong(name: &str, seen: u64, expected: u64) -> BenchError {
    BenchError::WrongElement {
        queue: name.to_owned(),
        seen,
        expected,
    }
}
