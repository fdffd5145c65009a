//! Completion queues: the ring of CQEs that the device writes and a client polls.
//!
//! Place: every finished WQE ends in [`Device::complete`]; the engine fires the armed vectors once per round.
//! Invariants: a CQE never overwrites one that was not consumed; a queue that overran takes nothing more, and its QPs go to ERR. The
//! client's consumer is believed only inside [what it had consumed, what was written]. Written CQEs are read back only when
//! a resize moves them.
//! Hot: [`Cq::push`], [`Function::complete`], [`Work::completed`]. Edges: cqe-publish (in `ring_proto::shared`). Source: verbs CQ; layout docs/device.md.

use ring_proto::cqe::{CQE_SOLICITED, Cqe, Publish};
use ring_proto::shared::{Bar2, CqeRing};
use ring_proto::status::{Syndrome, WcStatus};
use ring_proto::sync::Ordering;

use super::Device;
use super::counters::Counters;
use super::cq_change::Moderation;
use super::engine::{Fire, Work};
use super::fault::FaultPoint;
use super::function::Function;
use super::recorder::{Event, What};

/// Most CQs of a function.
pub(crate) const CQ_LIMIT: u32 = 32_767;

/// A completion queue.
#[derive(Debug)]
pub(crate) struct Cq {
    /// `None` after its window went.
    pub(crate) ring: Option<CqeRing>,
    /// IOVA of the ring, to know when its window goes.
    pub(crate) iova: u64,
    pub(crate) slot: u32,
    producer: u32,
    cached_consumer: u32,
    /// QP ends that complete here.
    pub(crate) users: u32,
    /// It overran, or its memory went: nothing is written any more.
    pub(crate) is_broken: bool,
    /// It stands on the engine's list of queues with news.
    pub(crate) is_queued: bool,
    /// A solicited entry or an error is among those without interrupt.
    pub(crate) has_solicited: bool,
    /// Entries since the last interrupt.
    pub(crate) unfired: u32,
    pub(crate) moderation: Moderation,
}

/// What happened to a CQE.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pushed {
    Written,
    /// The first one since the last interrupts: the queue has news now.
    News,
    /// No room: the queue is broken from now on.
    Overrun,
    /// The queue was broken before.
    Dropped,
}

/// A completion to be written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Completed {
    pub(crate) wr_id: u64,
    pub(crate) byte_len: u32,
    pub(crate) imm: u32,
    pub(crate) qpn: u32,
    pub(crate) opcode: u8,
    /// Sender's QPN and flags, for receives.
    pub(crate) src_qpn_flags: u32,
    pub(crate) wqe_counter: u32,
    pub(crate) status: WcStatus,
    pub(crate) syndrome: Syndrome,
}

impl Cq {
    pub(crate) fn new(ring: CqeRing, iova: u64, slot: u32) -> Self {
        Self {
            ring: Some(ring),
            iova,
            slot,
            producer: 0,
            cached_consumer: 0,
            users: 0,
            is_broken: false,
            is_queued: false,
            has_solicited: false,
            unfired: 0,
            moderation: Moderation::default(),
        }
    }

    /// Writes a CQE, or breaks the queue.
    #[inline]
    fn push(&mut self, bar: &Bar2, entry: &Completed) -> Pushed {
        let Some(ring) = self.ring.filter(|_| !self.is_broken) else {
            return Pushed::Dropped;
        };
        let depth = ring.depth();
        if depth.free(self.producer, self.cached_consumer) == 0 {
            // Touched only when the cached copy says full. Relaxed would do for the bound; Acquire keeps the reuse of the element
            // behind the client's reading of it.
            let claimed = bar.line(self.slot).cq_consumer().load(Ordering::Acquire);
            let believed = self.believed_consumer(claimed);
            if believed == self.cached_consumer {
                self.is_broken = true;
                return Pushed::Overrun;
            }
            self.cached_consumer = believed;
        }
        let cqe = Cqe {
            wr_id: entry.wr_id,
            byte_len: entry.byte_len,
            imm: entry.imm,
            qpn_opcode: entry.qpn | u32::from(entry.opcode) << 24,
            src_qpn_flags: entry.src_qpn_flags,
            publish: Publish {
                wqe_counter: entry.wqe_counter,
                status: entry.status,
                syndrome: entry.syndrome,
                phase: depth.phase(self.producer),
            }
            .pack(),
        };
        ring.publish(self.producer, &cqe.words());
        self.producer = self.producer.wrapping_add(1);
        self.unfired = self.unfired.saturating_add(1);
        self.has_solicited |=
            entry.src_qpn_flags & CQE_SOLICITED != 0 || entry.status != WcStatus::SUCCESS;
        if std::mem::replace(&mut self.is_queued, true) {
            Pushed::Written
        } else {
            Pushed::News
        }
    }

    /// The consumer to go by: the claimed one when it lies between what is known and what was written.
    #[inline]
    pub(crate) fn believed_consumer(&self, claimed: u32) -> u32 {
        let written = self.producer.wrapping_sub(self.cached_consumer);
        if claimed.wrapping_sub(self.cached_consumer) <= written {
            claimed
        } else {
            self.cached_consumer
        }
    }

    pub(crate) fn producer(&self) -> u32 {
        self.producer
    }

    /// Goes on in another ring, which holds the entries from `consumer` on.
    pub(crate) fn move_to(&mut self, ring: CqeRing, iova: u64, consumer: u32) {
        self.ring = Some(ring);
        self.iova = iova;
        self.cached_consumer = consumer;
    }
}

impl Function {
    /// Writes a CQE into a queue of the function, and tells the recorder; whoever calls hands the outcome to [`Work::completed`].
    #[inline]
    pub(crate) fn complete(&mut self, cqn: u32, entry: &Completed, now_ns: u64) -> Pushed {
        self.recorder.push(Event {
            at_ns: now_ns,
            wr_id: entry.wr_id,
            number: entry.qpn,
            index: entry.wqe_counter,
            len: entry.byte_len,
            code: u16::from(entry.opcode),
            syndrome: entry.syndrome.0,
            status: u16::from(entry.status.0),
            what: What::Cqe,
        });
        match self.cqs.find_mut(cqn) {
            Some(cq) => cq.push(&self.bar, entry),
            None => Pushed::Dropped,
        }
    }
}

impl Work {
    /// Notes what became of a CQE; an overrun is dealt with after the present piece of work.
    #[inline]
    pub(crate) fn completed(
        &mut self,
        place: u32,
        cqn: u32,
        pushed: Pushed,
        counters: &mut Counters,
    ) {
        match pushed {
            Pushed::Written => counters.cqes += 1,
            Pushed::News => {
                counters.cqes += 1;
                self.fire.push(Fire::Cq { place, cqn });
            }
            Pushed::Overrun => {
                counters.errors += 1;
                self.broken_cqs.push((place, cqn));
            }
            Pushed::Dropped => {}
        }
    }
}

impl Device {
    /// Writes a CQE of any kind.
    #[inline]
    pub(crate) fn complete(&mut self, place: u32, cqn: u32, entry: &Completed) {
        if self.faults.has(FaultPoint::Completion) && self.fault_completion(place, cqn, entry) {
            return;
        }
        if self.diagnosis.validator.is_some() {
            self.validate_completion(place, cqn, entry);
        }
        let Some(function) = self.functions.at_mut(place) else {
            return;
        };
        let pushed = function.complete(cqn, entry, self.work.now_ns);
        let counters = self.nodes.counters(function.node);
        self.work.completed(place, cqn, pushed, counters);
        let is_written = matches!(pushed, Pushed::Written | Pushed::News);
        if is_written && entry.status != WcStatus::SUCCESS && entry.status != WcStatus::WR_FLUSH_ERR
        {
            counters.errors += 1;
            self.completion_failed(place, entry);
        }
    }
}
