//! The NIC measured as perftest measures one: latency, bandwidth and rate of each operation, through a NIC process or embedded.
//!
//! Place: `sanlab bench rdma`; `nic` brings the NIC, this file drives two connected queue pairs of it. Invariants: both ends belong to this
//! process, as programs with the NIC's memory mapped; every completion's status is looked at, and what lies in the target memory at the end
//! is compared with what was sent. Latency is from post to the polled completion (of the receiver, for a SEND); a closed loop.
//! Baselines: a bare cache line that goes there and back, a bare ring of elements as large as a WQE, a copy by this process.
//! Source: perftest (`ib_send_lat` and its kin): operations, transmit depth, one completion in N.

mod baseline;
mod nic;

use std::time::Instant;

use driver::cq::Wc;
use driver::sq::{Payload, SendWr};
use driver::verbs::AtomicWr;
use ring_proto::status::{Opcode, WcStatus};
use ring_proto::wqe::WqeFlags;

use super::alternate::{Effort, Subject, alternate};
use super::control::{Idle, PATIENCE};
use super::report::{Direction, Row, Sample};
use super::stats::histogram;
use super::{BenchError, Place};

pub use nic::Via;
use nic::{End, Nic};

/// An operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// SEND into a posted receive.
    Send,
    /// RDMA WRITE.
    Write,
    /// RDMA READ.
    Read,
    /// Fetch and add of 8 bytes.
    Atomic,
}

/// What is measured of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Metric {
    /// Nanoseconds of one operation at a time.
    Latency,
    /// Bytes per second with many under way.
    Bandwidth,
    /// Operations per second with many under way.
    Rate,
}

/// How it is measured.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Plan {
    /// What is done.
    pub operation: Operation,
    /// What is measured.
    pub metric: Metric,
    /// Bytes of an operation; 8 for an atomic.
    pub size: u32,
    /// Operations under way at most, a power of two.
    pub tx_depth: u32,
    /// One completion in so many operations.
    pub cq_mod: u32,
    /// Where the NIC is.
    pub via: Via,
    /// Processors of this process and of the NIC's engine.
    pub place: Place,
}

impl Operation {
    const fn name(self) -> &'static str {
        match self {
            Self::Send => "SEND",
            Self::Write => "RDMA WRITE",
            Self::Read => "RDMA READ",
            Self::Atomic => "FETCH ADD",
        }
    }
}

/// Measures the NIC beside the bare thing.
///
/// # Errors
/// [`BenchError`]; the NIC is ended whatever happens.
pub fn measure(plan: &Plan, effort: Effort) -> Result<Row, BenchError> {
    if !plan.tx_depth.is_power_of_two() || !(2..=4096).contains(&plan.tx_depth) {
        return Err(BenchError::Depth(plan.tx_depth));
    }
    if !(1..=plan.tx_depth).contains(&plan.cq_mod) {
        return Err(BenchError::Batch {
            batch: plan.cq_mod,
            depth: plan.tx_depth,
        });
    }
    let operation = plan.operation.name();
    let via = plan.via.name();
    let (name, direction) = match plan.metric {
        Metric::Latency => (
            format!("{operation} latency, {} B, {via}", plan.size),
            Direction::LessIsBetter("ns"),
        ),
        Metric::Bandwidth => (
            format!("{operation} bandwidth, {} B, {via}", plan.size),
            Direction::MoreIsBetter("B/s"),
        ),
        Metric::Rate => (
            format!(
                "{operation} rate, {} B, {via}, 1 completion in {}",
                plan.size, plan.cq_mod
            ),
            Direction::MoreIsBetter("operations/s"),
        ),
    };
    // The NIC's process is forked here, before any thread is made.
    let mut subject = Verbs {
        pair: Pair::new(plan)?,
        plan: *plan,
    };
    let mut baseline = baseline::of(plan)?;
    alternate(name, direction, &mut subject, baseline.as_mut(), effort)
}

/// Two connected queue pairs of a NIC.
struct Pair {
    // Before the NIC: a driver outlives no device.
    near: End,
    far: End,
    _nic: Nic,
}

/// The NIC as a subject.
struct Verbs {
    pair: Pair,
    plan: Plan,
}

impl Subject for Verbs {
    fn name(&self) -> String {
        match self.plan.via {
            Via::Process => "nic-emu".into(),
            Via::Embedded => "nic-emu embedded".into(),
        }
    }

    fn run(&mut self, count: u64) -> Result<Sample, BenchError> {
        let Self { pair, plan } = self;
        pair.near.fill(plan.size, 0x5a);
        pair.far.fill(plan.size, 0xa5);
        let _pinned = super::pair::Pinned::to(plan.place.near)?;
        let sample = match plan.metric {
            Metric::Latency => Sample::latency(pair.latency(plan, count)?),
            Metric::Rate | Metric::Bandwidth => {
                let begin = Instant::now();
                pair.stream(plan, count)?;
                let bytes = match plan.metric {
                    Metric::Bandwidth => u64::from(plan.size),
                    _ => 1,
                };
                Sample::rate(count * bytes, begin.elapsed())
            }
        };
        pair.check(plan, count)?;
        Ok(sample)
    }
}

impl Pair {
    fn new(plan: &Plan) -> Result<Self, BenchError> {
        let nic = Nic::start(plan.via, plan.place.far)?;
        let mut near = End::new(nic.attach()?, plan)?;
        let mut far = End::new(nic.attach()?, plan)?;
        near.connect(&far)?;
        far.connect(&near)?;
        Ok(Self {
            near,
            far,
            _nic: nic,
        })
    }

    fn post(&mut self, plan: &Plan, wr_id: u64, is_signaled: bool) -> Result<(), BenchError> {
        let flags = if is_signaled {
            WqeFlags::SIGNALED
        } else {
            WqeFlags::empty()
        };
        let sges = [self.near.memory.sge(0, plan.size)];
        let (remote_addr, rkey) = (self.far.memory.addr(), self.far.memory.rkey().0);
        let opcode = match plan.operation {
            Operation::Send => Opcode::SEND,
            Operation::Write => Opcode::RDMA_WRITE,
            Operation::Read => Opcode::RDMA_READ,
            Operation::Atomic => Opcode::ATOMIC_FETCH_AND_ADD,
        };
        let posted = if plan.operation == Operation::Atomic {
            self.near.qp.post_atomic(&AtomicWr {
                wr_id,
                opcode,
                flags,
                original: sges[0],
                remote_addr,
                rkey,
                compare_add: 1,
                swap: 0,
            })
        } else {
            self.near.qp.post_send(&SendWr {
                wr_id,
                opcode,
                flags,
                imm: 0,
                payload: Payload::Sges(&sges),
                remote_addr,
                rkey,
            })
        };
        posted.map_err(|error| BenchError::Nic(error.to_string()))
    }

    /// One operation at a time.
    fn latency(
        &mut self,
        plan: &Plan,
        count: u64,
    ) -> Result<hdrhistogram::Histogram<u64>, BenchError> {
        let mut times = histogram();
        let is_send = plan.operation == Operation::Send;
        for wr_id in 1..=count {
            if is_send {
                self.far.post_receive(plan.size)?;
                self.far.qp.ring();
            }
            let begin = Instant::now();
            self.post(plan, wr_id, true)?;
            self.near.qp.ring();
            if is_send {
                self.far.wait()?;
            } else {
                self.near.wait()?;
            }
            let ns = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
            times.saturating_record(ns);
            if is_send {
                self.near.wait()?;
            }
        }
        Ok(times)
    }

    /// As many at once as the depth allows.
    fn stream(&mut self, plan: &Plan, count: u64) -> Result<(), BenchError> {
        let is_send = plan.operation == Operation::Send;
        let depth = u64::from(plan.tx_depth);
        let cq_mod = u64::from(plan.cq_mod);
        let (mut posted, mut done, mut receives, mut received) = (0, 0, 0, 0);
        let mut idle = Idle::new();
        while done < count || (is_send && received < count) {
            let mut moved = false;
            if is_send {
                let before = receives;
                while receives < count && receives - received < depth {
                    self.far.post_receive(plan.size)?;
                    receives += 1;
                }
                if receives > before {
                    self.far.qp.ring();
                }
            }
            let before = posted;
            while posted < count && posted - done < depth {
                posted += 1;
                self.post(plan, posted, posted % cq_mod == 0 || posted == count)?;
            }
            if posted > before {
                self.near.qp.ring();
                moved = true;
            }
            while let Some(wc) = self.near.poll()? {
                done = wc.wr_id;
                moved = true;
            }
            if is_send {
                while self.far.poll()?.is_some() {
                    received += 1;
                    moved = true;
                }
            }
            if moved {
                idle.moved();
            } else if !idle.wait() {
                return Err(stuck());
            }
        }
        Ok(())
    }

    /// Whether the bytes are where they belong.
    fn check(&self, plan: &Plan, count: u64) -> Result<(), BenchError> {
        let is_right = match plan.operation {
            // The NIC has copied the near pattern over the far one.
            Operation::Send => self.far.holds(nic::RECEIVES, plan.size, 0x5a),
            Operation::Write => self.far.holds(0, plan.size, 0x5a),
            Operation::Read => self.near.holds(0, plan.size, 0xa5),
            Operation::Atomic => {
                let start = u64::from_le_bytes([0xa5; 8]);
                self.far.word() == start.wrapping_add(count)
                    && self.near.word() == start.wrapping_add(count - 1)
            }
        };
        if is_right {
            Ok(())
        } else {
            Err(BenchError::Nic(format!(
                "the memory does not hold what {} should have left there",
                plan.operation.name()
            )))
        }
    }
}

impl End {
    fn poll(&mut self) -> Result<Option<Wc>, BenchError> {
        match self.cq.poll() {
            Some(wc) if wc.status != WcStatus::SUCCESS => Err(BenchError::Nic(format!(
                "completion {} ({})",
                wc.status, wc.syndrome
            ))),
            other => Ok(other),
        }
    }

    fn wait(&mut self) -> Result<Wc, BenchError> {
        let mut idle = Idle::new();
        loop {
            if let Some(wc) = self.poll()? {
                return Ok(wc);
            }
            if !idle.wait() {
                return Err(stuck());
            }
        }
    }
}

fn stuck() -> BenchError {
    BenchError::Stuck {
        queue: "the NIC".into(),
        seconds: PATIENCE.as_secs(),
    }
}
