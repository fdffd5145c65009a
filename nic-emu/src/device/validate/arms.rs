//! Armed completion queues that hold CQEs nobody takes: who armed did not poll once more, and sleeps over them.
//!
//! Place: [`super::Validator`] watches a CQ from each CQE until it is empty. Invariants: arming is invisible to the NIC, so it looks each
//! [`TICK_NS`], and calls a queue stuck only when two looks see it armed at the same position with the same CQEs; the looks end
//! when nothing is armed for [`QUIET_LIMIT`] of them.

use std::collections::HashMap;

use ring_proto::ids::FunctionId;
use ring_proto::sync::Ordering;

use crate::device::function::Functions;

/// Time between two looks: far above what a client needs between arming and polling, even on a loaded machine.
pub(crate) const TICK_NS: u64 = 500_000_000;
/// Looks without anybody armed after which a queue is left alone until its next CQE.
const QUIET_LIMIT: u8 = 20;

/// The watched queues.
#[derive(Debug, Default)]
pub(crate) struct Arms {
    queues: HashMap<(FunctionId, u32), Look>,
}

/// What the last look saw.
#[derive(Clone, Copy, Debug, Default)]
struct Look {
    /// Consumer at which it was armed.
    armed_at: Option<u32>,
    quiet: u8,
}

/// A queue that is stuck.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stuck {
    pub(crate) place: u32,
    pub(crate) cqn: u32,
    pub(crate) consumer: u32,
    pub(crate) producer: u32,
}

impl Arms {
    /// A queue gets a CQE; true when looks have to begin.
    pub(crate) fn watch(&mut self, function: FunctionId, cqn: u32) -> bool {
        let begins = self.queues.is_empty();
        self.queues.entry((function, cqn)).or_default().quiet = 0;
        begins
    }

    /// One look at all of them; true when another one is due.
    pub(crate) fn tick(&mut self, functions: &Functions) -> (Vec<Stuck>, bool) {
        let mut found = Vec::new();
        self.queues.retain(|&(function, cqn), look| {
            let Some((place, owner)) = functions
                .place_of(function)
                .and_then(|place| Some((place, functions.at(place)?)))
            else {
                return false;
            };
            let Some(cq) = owner.cqs.find(cqn) else {
                return false;
            };
            let line = owner.bar.line(cq.slot);
            // Relaxed: three words of a client that may change any time; two looks that agree are what counts.
            let consumer = line.cq_consumer().load(Ordering::Relaxed);
            let sequence = line.arm_sequence().load(Ordering::Relaxed);
            let is_armed = line.arm_vectors().load(Ordering::Relaxed) != 0;
            if consumer == cq.producer() {
                return false;
            }
            if !is_armed || sequence != consumer {
                look.armed_at = None;
                look.quiet += 1;
                return look.quiet < QUIET_LIMIT;
            }
            if look.armed_at == Some(consumer) && !owner.is_client_stopped() {
                found.push(Stuck {
                    place,
                    cqn,
                    consumer,
                    producer: cq.producer(),
                });
                return false;
            }
            look.armed_at = Some(consumer);
            true
        });
        (found, !self.queues.is_empty())
    }
}
