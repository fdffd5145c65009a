//! The validation layer: what a driver does wrong although a NIC might let it pass.
//!
//! Place: the engine calls the `validate_*` hooks of [`Device`] where it reads doorbells, writes CQEs and frees keys; findings are read
//! through [`Device::findings`]. Invariants: it watches and never changes what the device does; everything it keeps is bounded by what
//! the client's own queues hold, or by a constant; a rule broken without end costs a count ([`finding`]).
//! Hot: nothing. Off, each hook is one branch that is never taken; on, it copies WQEs and allocates.
//! Source: ours, after the validation layers of graphics drivers; docs/validation.md. Leaves out: the payload of messages.
//!
//! ```text
//!  doorbell believed -> shadow: copy, reserved bits, room -> buffers: lend targets
//!  CQE written       -> shadow: compare with the copy     -> buffers: give back; consumer; stale keys; arms
//!  doorbell refused, key freed or invalid, tick of the clock      -> their rules
//! ```

use std::collections::{HashMap, VecDeque};

use ring_proto::ids::FunctionId;
use ring_proto::status::{Syndrome, WcStatus};
use ring_proto::sync::Ordering;

mod arms;
mod buffers;
mod finding;
mod rules;
mod shadow;
mod shared;

pub use finding::{DecodedSge, DecodedWqe, Finding, RuleCount};
pub use rules::{Rule, UnknownRule};

use self::arms::Arms;
use self::buffers::Buffers;
use self::finding::Findings;
use self::shadow::{Posted, Rewritten, Room, Shadow, Side};
use super::Device;
use super::cq::Completed;
use super::function::{Function, Functions};
use super::node::Nodes;
use super::qp::{Qp, QpRef, WorkQueue};
use super::timer::Timer;

/// Freed keys of a function that are remembered.
const DEAD_KEYS: usize = 256;
/// Refused doorbells that are remembered, so that one is not reported twice.
const REFUSED: usize = 64;

/// State of the layer.
#[derive(Debug, Default)]
pub(crate) struct Validator {
    findings: Findings,
    queues: HashMap<(FunctionId, u32, Side), Shadow>,
    functions: HashMap<FunctionId, Watched>,
    arms: Arms,
    refused: VecDeque<(FunctionId, u32, Side, u32)>,
    /// Rules broken since the engine last asked.
    fresh: Vec<Rule>,
}

/// What is watched of one function.
#[derive(Debug, Default)]
struct Watched {
    buffers: Buffers,
    dead_keys: VecDeque<u32>,
    /// Consumers of CQs, as far as they were believed, and the last one that was not.
    consumers: HashMap<u32, (u32, Option<u32>)>,
}

/// Where a rule was broken.
struct Spot<'a> {
    function: &'a Function,
    queue: &'static str,
    number: u32,
    index: u32,
    wqe: Option<DecodedWqe>,
}

/// What the layer sees of the device.
struct World<'a> {
    functions: &'a Functions,
    nodes: &'a Nodes,
    now_ns: u64,
}

impl World<'_> {
    fn end(&self, at: QpRef) -> Option<(&Function, &Qp)> {
        let function = self
            .functions
            .at(at.place)
            .filter(|f| f.id == at.function)?;
        Some((function, function.qps.find(at.qpn)?))
    }

    /// A work queue: that of a QP, or the SRQ of this number.
    fn queue(&self, at: QpRef, side: Side) -> Option<(&Function, &WorkQueue)> {
        if side == Side::Shared {
            return self.shared(at);
        }
        let (function, qp) = self.end(at)?;
        let queue = if side == Side::Send { &qp.sq } else { &qp.rq };
        Some((function, queue))
    }
}

impl Validator {
    fn report(
        &mut self,
        world: &World<'_>,
        rule: Rule,
        spot: Spot<'_>,
        detail: impl FnOnce() -> String,
    ) {
        self.fresh.push(rule);
        let node = world.nodes.find(spot.function.node);
        self.findings
            .add(rule, spot.function.id, |sequence| Finding {
                sequence,
                at_ns: world.now_ns,
                rule: rule.id().into(),
                node: node.map(|node| node.name.clone()).unwrap_or_default(),
                function: spot.function.id.0,
                queue: spot.queue.into(),
                number: spot.number,
                index: spot.index,
                wqe: spot.wqe,
                detail: detail(),
                explanation: rule.explanation().into(),
                remedy: rule.remedy().into(),
                suppressed: 0,
            });
    }

    /// Takes notice of everything posted on a QP.
    fn posted(&mut self, world: &World<'_>, at: QpRef) {
        for side in [Side::Send, Side::Receive] {
            self.posted_on(world, at, side);
        }
    }

    fn posted_on(&mut self, world: &World<'_>, at: QpRef, side: Side) {
        let Some((function, queue)) = world.queue(at, side) else {
            return;
        };
        let Some(ring) = &queue.ring else {
            return;
        };
        let key = (at.function, at.qpn, side);
        if queue.producer == 0 && !self.queues.contains_key(&key) {
            return;
        }
        let shadow = self
            .queues
            .entry(key)
            .or_insert_with(|| Shadow::new(side, ring.depth()));
        let (fresh, room) = shadow.post(ring, queue.producer);
        let spot = |index, wqe| Spot {
            function,
            queue: side.name(),
            number: at.qpn,
            index,
            wqe,
        };
        for posted in &fresh {
            self.check_reserved(world, posted, &spot);
            self.lend(world, at, side, posted, &spot);
        }
        let depth = ring.depth().entries();
        let last = fresh.last();
        match room {
            Room::Fine => {}
            Room::Overrun(outstanding) => {
                let wqe = last.map(|posted| posted.wqe.words());
                let index = last.map_or(0, |posted| posted.start);
                self.report(world, Rule::WqOverrun, spot(index, wqe), || {
                    format!("{outstanding} places are posted and not reported complete; the queue has {depth}")
                });
            }
            Room::NoSignal(outstanding) => {
                let wqe = last.map(|posted| posted.wqe.words());
                let index = last.map_or(0, |posted| posted.start);
                self.report(world, Rule::SqNoSignal, spot(index, wqe), || {
                    format!("{outstanding} places of a queue of {depth} are posted and none of their WQEs is signaled")
                });
            }
        }
    }

    fn check_reserved<'a>(
        &mut self,
        world: &World<'_>,
        posted: &Posted,
        spot: &impl Fn(u32, Option<DecodedWqe>) -> Spot<'a>,
    ) {
        if let Some(what) = posted.wqe.reserved() {
            let spot = spot(posted.start, Some(posted.wqe.words()));
            self.report(world, Rule::WqeReserved, spot, || what);
        }
    }

    /// The NIC may write the targets of a WQE from now on.
    fn lend<'a>(
        &mut self,
        world: &World<'_>,
        at: QpRef,
        side: Side,
        posted: &Posted,
        spot: &impl Fn(u32, Option<DecodedWqe>) -> Spot<'a>,
    ) {
        if !posted.wqe.is_written() {
            return;
        }
        for sge in posted.wqe.sges() {
            let watched = self.functions.entry(at.function).or_default();
            let Some(other) = watched.buffers.lend(sge, at.qpn, side, posted.start) else {
                continue;
            };
            let spot = spot(posted.start, Some(posted.wqe.words()));
            self.report(world, Rule::BufOverlap, spot, || {
                format!(
                    "[{:#x} +{}] overlaps [{:#x} +{}] of the {} {:#x}, index {}",
                    sge.addr,
                    sge.len,
                    other.start,
                    other.len(),
                    other.side.name(),
                    other.qpn,
                    other.index
                )
            });
        }
    }

    fn give_back(&mut self, function: FunctionId, qpn: u32, side: Side, done: &[Posted]) {
        let Some(watched) = self.functions.get_mut(&function) else {
            return;
        };
        for posted in done.iter().filter(|posted| posted.wqe.is_written()) {
            for sge in posted.wqe.sges() {
                watched.buffers.give_back(sge, qpn, side, posted.start);
            }
        }
    }

    /// A CQE is about to be written.
    fn completed(&mut self, world: &World<'_>, at: QpRef, cqn: u32, entry: &Completed) {
        let Some((function, qp)) = world.end(at) else {
            return;
        };
        self.posted(world, at);
        self.check_consumer(world, function, cqn);
        if entry.opcode & 0x80 != 0 && qp.srqn != 0 {
            self.shared_completed(world, at, qp.srqn, entry);
            return;
        }
        let (side, queue) = if entry.opcode & 0x80 == 0 {
            (Side::Send, &qp.sq)
        } else {
            (Side::Receive, &qp.rq)
        };
        let Some(shadow) = self.queues.get_mut(&(at.function, at.qpn, side)) else {
            return;
        };
        let (done, changed) = shadow.complete(queue.ring.as_ref(), entry.wqe_counter);
        self.give_back(at.function, at.qpn, side, &done);
        if let Some((change, of)) = changed {
            self.rewritten(world, function, (at.qpn, side), &change, of);
        }
        if let Some(last) = done.last() {
            self.check_keys(world, at, (at.qpn, side), entry, last);
        }
    }

    fn rewritten(
        &mut self,
        world: &World<'_>,
        function: &Function,
        (number, side): (u32, Side),
        change: &Rewritten,
        of: Option<Posted>,
    ) {
        let spot = Spot {
            function,
            queue: side.name(),
            number,
            index: change.index,
            wqe: of.map(|posted| posted.wqe.words()),
        };
        self.report(world, Rule::WqeRewritten, spot, || {
            format!(
                "word {} was {:#018x} at the doorbell and is {:#018x} at the completion",
                change.word, change.was, change.is
            )
        });
    }

    /// A WQE failed over a key: was it one that was freed, or invalidated?
    fn check_keys(
        &mut self,
        world: &World<'_>,
        at: QpRef,
        (number, side): (u32, Side),
        entry: &Completed,
        failed: &Posted,
    ) {
        let Some((function, qp)) = world.end(at) else {
            return;
        };
        let dead = |owner: FunctionId, key: u32| {
            let watched = self.functions.get(&owner);
            watched.is_some_and(|watched| watched.dead_keys.contains(&key))
        };
        let of_peer = qp.peer.map_or(at.function, |peer| peer.function);
        let mut rule = Rule::KeyStale;
        let (owner, key) = match entry.syndrome {
            _ if entry.status == WcStatus::SUCCESS => return,
            Syndrome::LKEY_UNKNOWN => {
                let mut keys = failed.wqe.sges().iter().map(|sge| sge.lkey);
                (at.function, keys.find(|&key| dead(at.function, key)))
            }
            Syndrome::RKEY_UNKNOWN => {
                let key = failed.wqe.rkey();
                (of_peer, dead(of_peer, key).then_some(key))
            }
            Syndrome::KEY_INVALIDATED => {
                rule = Rule::KeyInvalidated;
                if entry.status == WcStatus::REM_ACCESS_ERR {
                    (of_peer, Some(failed.wqe.rkey()))
                } else {
                    let mut keys = failed.wqe.sges().iter().map(|sge| sge.lkey);
                    let lkey = failed.wqe.bound_lkey().or_else(|| keys.next());
                    (at.function, lkey)
                }
            }
            _ => return,
        };
        let Some(key) = key else {
            return;
        };
        let spot = Spot {
            function,
            queue: side.name(),
            number,
            index: failed.start,
            wqe: Some(failed.wqe.words()),
        };
        self.report(world, rule, spot, || match rule {
            Rule::KeyInvalidated => {
                format!("key {key:#010x} of function {owner} is not valid now")
            }
            _ => format!("key {key:#010x} of function {owner} is gone"),
        });
    }

    fn check_consumer(&mut self, world: &World<'_>, function: &Function, cqn: u32) {
        let Some(cq) = function.cqs.find(cqn) else {
            return;
        };
        // Relaxed: compared with what was written, and nothing is read by it.
        let claimed = function
            .bar
            .line(cq.slot)
            .cq_consumer()
            .load(Ordering::Relaxed);
        let produced = cq.producer();
        let watched = self.functions.entry(function.id).or_default();
        let (known, refused) = watched.consumers.entry(cqn).or_default();
        if claimed.wrapping_sub(*known) <= produced.wrapping_sub(*known) {
            *known = claimed;
            *refused = None;
            return;
        }
        if refused.replace(claimed) == Some(claimed) {
            return;
        }
        let known = *known;
        let spot = Spot {
            function,
            queue: "cq",
            number: cqn,
            index: claimed,
            wqe: None,
        };
        self.report(world, Rule::CqConsumer, spot, || {
            format!("consumer {claimed} lies outside of [{known}, {produced}]")
        });
    }

    /// A doorbell was not believed.
    fn doorbell(
        &mut self,
        world: &World<'_>,
        function: &Function,
        (number, side): (u32, Side),
        (claimed, producer, consumer, depth): (u32, u32, u32, u32),
    ) {
        let seen = (function.id, number, side, claimed);
        if self.refused.contains(&seen) {
            return;
        }
        if self.refused.len() == REFUSED {
            self.refused.pop_front();
        }
        self.refused.push_back(seen);
        // A step back is a short one in the wrong direction.
        let back = producer.wrapping_sub(claimed);
        let is_back = back != 0 && back < claimed.wrapping_sub(producer);
        let rule = if is_back {
            Rule::DbBackwards
        } else {
            Rule::DbPastQueue
        };
        let spot = Spot {
            function,
            queue: if number == 0 { "admin" } else { side.name() },
            number,
            index: claimed,
            wqe: None,
        };
        self.report(world, rule, spot, || {
            format!("producer {claimed} after {producer}; the NIC has taken {consumer} of a queue of {depth}")
        });
    }

    fn deregistered(&mut self, world: &World<'_>, function: &Function, key: u32) {
        let watched = self.functions.entry(function.id).or_default();
        if watched.dead_keys.len() == DEAD_KEYS {
            watched.dead_keys.pop_front();
        }
        watched.dead_keys.push_back(key);
        self.not_valid(world, function, key, "deregistered");
    }

    /// A region is of no more use: does the NIC still own something in it?
    fn not_valid(&mut self, world: &World<'_>, function: &Function, key: u32, how: &str) {
        let watched = self.functions.get(&function.id);
        let Some(owned) = watched.and_then(|watched| watched.buffers.of_key(key)) else {
            return;
        };
        let wqe = self
            .queues
            .get(&(function.id, owned.qpn, owned.side))
            .and_then(|shadow| shadow.owned().find(|posted| posted.start == owned.index))
            .map(|posted| posted.wqe.words());
        let spot = Spot {
            function,
            queue: owned.side.name(),
            number: owned.qpn,
            index: owned.index,
            wqe,
        };
        self.report(world, Rule::KeyInUse, spot, || {
            format!(
                "key {key:#010x} was {how}; the NIC may still write [{:#x} +{}]",
                owned.start,
                owned.len()
            )
        });
    }

    fn forget_qp(&mut self, function: FunctionId, qpn: u32) {
        for side in [Side::Send, Side::Receive] {
            if let Some(shadow) = self.queues.remove(&(function, qpn, side)) {
                let owned: Vec<_> = shadow.owned().cloned().collect();
                self.give_back(function, qpn, side, &owned);
            }
        }
        self.refused
            .retain(|&(of, number, ..)| (of, number) != (function, qpn));
    }
}

impl Device {
    /// Every finding that is kept, oldest first; none without [`super::DeviceOptions::validate`].
    #[must_use]
    pub fn findings(&self) -> Vec<Finding> {
        let validator = self.diagnosis.validator.as_ref();
        validator.map(|v| v.findings.all()).unwrap_or_default()
    }

    /// How often each rule was broken, in the order of the rules.
    #[must_use]
    pub fn rule_counts(&self) -> Vec<RuleCount> {
        let validator = self.diagnosis.validator.as_ref();
        validator.map(|v| v.findings.counts()).unwrap_or_default()
    }

    /// Runs a part of the layer, then tells the engine what it found.
    fn validating(&mut self, work: impl FnOnce(&mut Validator, &World<'_>)) {
        let Some(validator) = &mut self.diagnosis.validator else {
            return;
        };
        let world = World {
            functions: &self.functions,
            nodes: &self.nodes,
            now_ns: self.clock.now_ns(),
        };
        work(validator, &world);
        for rule in std::mem::take(&mut validator.fresh) {
            self.diagnosis.pause.found(rule);
        }
    }

    /// The doorbells of a QP were believed.
    #[cold]
    pub(crate) fn validate_posted(&mut self, at: QpRef) {
        self.validating(|validator, world| validator.posted(world, at));
    }

    /// A CQE is about to be written.
    #[cold]
    pub(crate) fn validate_completion(&mut self, place: u32, cqn: u32, entry: &Completed) {
        let Some(function) = self.functions.at(place) else {
            return;
        };
        let at = QpRef {
            place,
            function: function.id,
            qpn: entry.qpn,
        };
        self.validating(|validator, world| validator.completed(world, at, cqn, entry));
        self.watch_arms(at.function, cqn);
    }

    /// A doorbell of a QP was refused; says so once.
    #[cold]
    pub(crate) fn validate_doorbell(&mut self, at: QpRef) {
        if self.diagnosis.validator.is_none() {
            return;
        }
        let Some(qp) = self.qp_mut(at) else {
            return;
        };
        let mut lies = Vec::new();
        for (side, queue) in [(Side::Send, &mut qp.sq), (Side::Receive, &mut qp.rq)] {
            let depth = queue.ring.map_or(0, |ring| ring.depth().entries());
            if let Some(claimed) = queue.refused.take() {
                lies.push((side, (claimed, queue.producer, queue.consumer, depth)));
            }
        }
        for (side, lie) in lies {
            self.validating(|validator, world| {
                if let Some((function, _)) = world.end(at) {
                    validator.doorbell(world, function, (at.qpn, side), lie);
                }
            });
        }
    }

    /// The doorbell of an admin queue was refused.
    #[cold]
    pub(crate) fn validate_admin_doorbell(&mut self, place: u32, lie: (u32, u32, u32, u32)) {
        self.validating(|validator, world| {
            if let Some(function) = world.functions.at(place) {
                validator.doorbell(world, function, (0, Side::Send), lie);
            }
        });
    }

    /// A region was deregistered.
    pub(crate) fn validate_deregistered(&mut self, place: u32, key: u32) {
        self.validating(|validator, world| {
            if let Some(function) = world.functions.at(place) {
                validator.deregistered(world, function, key);
            }
        });
    }

    /// A region was invalidated.
    pub(crate) fn validate_invalidated(&mut self, place: u32, key: u32) {
        self.validating(|validator, world| {
            if let Some(function) = world.functions.at(place) {
                validator.not_valid(world, function, key, "invalidated");
            }
        });
    }

    /// A QP was reset or destroyed.
    pub(crate) fn validate_forget_qp(&mut self, at: QpRef) {
        self.validating(|validator, world| {
            validator.forget_qp(at.function, at.qpn);
            validator.forget_taken(world, at);
        });
    }

    /// A CQ was destroyed.
    pub(crate) fn validate_forget_cq(&mut self, place: u32, cqn: u32) {
        self.validating(|validator, world| {
            if let Some(function) = world.functions.at(place)
                && let Some(watched) = validator.functions.get_mut(&function.id)
            {
                watched.consumers.remove(&cqn);
            }
        });
    }

    /// A function was attached: what is known of those that are gone goes too.
    pub(crate) fn validate_attached(&mut self) {
        self.validating(|validator, world| {
            let is_there = |function: &FunctionId| world.functions.place_of(*function).is_some();
            validator.functions.retain(|function, _| is_there(function));
            validator
                .queues
                .retain(|(function, ..), _| is_there(function));
        });
    }

    fn watch_arms(&mut self, function: FunctionId, cqn: u32) {
        if let Some(validator) = &mut self.diagnosis.validator
            && validator.arms.watch(function, cqn)
        {
            let at = self.clock.now_ns().saturating_add(arms::TICK_NS);
            self.timers.set(at, Timer::Validate);
        }
    }

    /// The time has come to look at armed CQs.
    pub(crate) fn validate_timer(&mut self) {
        let mut goes_on = false;
        self.validating(|validator, world| {
            let (found, left) = validator.arms.tick(world.functions);
            goes_on = left;
            for stuck in found {
                let Some(function) = world.functions.at(stuck.place) else {
                    continue;
                };
                let spot = Spot {
                    function,
                    queue: "cq",
                    number: stuck.cqn,
                    index: stuck.consumer,
                    wqe: None,
                };
                validator.report(world, Rule::ArmNoPoll, spot, || {
                    format!(
                        "armed at {} with CQEs up to {}, and nothing was taken for {} ms",
                        stuck.consumer,
                        stuck.producer,
                        arms::TICK_NS / 1_000_000
                    )
                });
            }
        });
        if goes_on {
            let at = self.clock.now_ns().saturating_add(arms::TICK_NS);
            self.timers.set(at, Timer::Validate);
        }
    }
}
