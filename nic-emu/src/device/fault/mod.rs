//! Faults on purpose: rules that make chosen pieces of work fail, and the log of what they did.
//!
//! Place: embedded programs call [`Device::add_fault`], the control socket hands JSON to [`Device::add_fault_fields`]; the engine asks
//! [`Faults::has`] at each point where a rule can look, and goes into [`act`] only when one does.
//! Invariants: a rule touches what its scope names and nothing else; rules are asked in the order of their numbers, and one that fires acts
//! alone: those behind it do not see the occasion. With the same seeds the same work meets the same faults. What a rule did stays in the
//! log when the rule is gone. Hot: [`Faults::has`], one load and one branch. Source: ours (docs/control.md).
//! Leaves out: links, which have models of their own.

use std::collections::{HashMap, VecDeque};

use ring_proto::ids::{FunctionId, NodeId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

mod act;
mod call;
mod error;
mod fields;
mod rule;

pub use call::call_codes;
pub use error::FaultError;
pub use rule::{FaultAction, FaultPoint, FaultRule, FaultWhen};

pub(crate) use act::{Fate, Pending};

use super::Device;
use super::cq::Completed;
use super::fields::FieldError;
use super::link::Random;
use super::qp::QpRef;

/// Most rules at once.
const RULES: usize = 256;
/// Latest faults that are kept.
const LOG: usize = 1024;

/// A rule of a device.
#[derive(Debug)]
struct Rule {
    id: u32,
    rule: FaultRule,
    node: Option<NodeId>,
    opcode: Option<u8>,
    random: Random,
    seen: u64,
    fired: u64,
    last_ns: Option<u64>,
}

/// Something that a rule may be about.
#[derive(Clone, Copy, Debug)]
struct Occasion {
    at: FaultPoint,
    node: NodeId,
    function: FunctionId,
    qpn: u32,
    opcode: u8,
}

/// All rules, what they hold back, and the log.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// A bit for each point where a rule may fire or something is held back.
    on: u8,
    rules: Vec<Rule>,
    last_id: u32,
    log: VecDeque<FaultHit>,
    logged: u64,
    /// Position behind the WQE of each QP that rules have seen last.
    judged: HashMap<(FunctionId, u32), u32>,
    /// WQEs that have to wait: position behind, and until when.
    delayed: HashMap<(FunctionId, u32), (u32, u64)>,
    /// What happens later, by the number of its timer.
    pending: HashMap<u64, Pending>,
    last_pending: u64,
    /// Completions behind one that is delayed, each with its time.
    completions: HashMap<(FunctionId, u32), VecDeque<(u64, Completed)>>,
    /// QPs that go to ERR once the present piece of work is over.
    to_err: Vec<QpRef>,
}

/// A rule and what became of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FaultRow {
    /// Its number.
    pub id: u32,
    /// Where it looks.
    pub at: String,
    /// What it does.
    pub action: String,
    /// How much later, of `delay`.
    pub delay_ns: Option<u64>,
    /// Of `status`.
    pub status: Option<String>,
    /// Node it is about.
    pub node: Option<String>,
    /// Function it is about.
    pub function: Option<u32>,
    /// QP it is about.
    pub qpn: Option<u32>,
    /// Operation it is about.
    pub opcode: Option<String>,
    /// Provider call it is about.
    pub call: Option<String>,
    /// Of `fail`.
    pub code: Option<String>,
    /// The one occasion.
    pub nth: Option<u64>,
    /// Each so-manieth occasion.
    pub every: Option<u64>,
    /// Chance in parts per million.
    pub ppm: Option<u32>,
    /// Most times it fires.
    pub count: Option<u64>,
    /// Of the draws.
    pub seed: u64,
    /// Occasions so far.
    pub seen: u64,
    /// Times it has fired.
    pub fired: u64,
    /// When it fired last, by the device's clock.
    pub last_ns: Option<u64>,
    /// It will not fire again.
    pub is_spent: bool,
}

/// A fault that happened.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FaultHit {
    /// Counts faults of the device from 0.
    pub sequence: u64,
    /// By the device's clock.
    pub at_ns: u64,
    /// Number of the rule.
    pub id: u32,
    /// Which of the rule's faults it is, from 1.
    pub fired: u64,
    /// Where.
    pub at: String,
    /// What.
    pub action: String,
    /// Node of the function.
    pub node: String,
    /// The function.
    pub function: u32,
    /// The QP, where there is one.
    pub qpn: Option<u32>,
    /// The operation, where there is one.
    pub opcode: Option<String>,
    /// The provider call, where it is one.
    pub call: Option<String>,
}

/// Every rule, and the latest faults.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FaultReport {
    /// Time of the device's clock.
    pub now_ns: u64,
    /// Rules in the order of their numbers, spent ones included.
    pub faults: Vec<FaultRow>,
    /// Faults, oldest first, those of removed rules included.
    pub log: Vec<FaultHit>,
    /// Faults that the log no longer has.
    pub log_lost: u64,
}

const fn bit(at: FaultPoint) -> u8 {
    1 << at as u8
}

impl Rule {
    fn is_spent(&self) -> bool {
        let counted = self.rule.count.is_some_and(|count| self.fired >= count);
        let passed = matches!(self.rule.when, FaultWhen::Nth(n) if self.seen >= n);
        counted || passed
    }

    /// Whether it is about a function, whatever the operation.
    fn concerns(&self, node: NodeId, function: FunctionId, qpn: u32) -> bool {
        self.node.is_none_or(|own| own == node)
            && self.rule.function.is_none_or(|own| own == function.0)
            && self.rule.qpn.is_none_or(|own| own == qpn)
    }

    fn is_about(&self, what: &Occasion) -> bool {
        self.rule.at == what.at
            && self.concerns(what.node, what.function, what.qpn)
            && self.opcode.is_none_or(|own| own == what.opcode)
    }

    /// Sees an occasion that it is about; whether it fires.
    fn sees(&mut self) -> bool {
        self.seen += 1;
        match self.rule.when {
            FaultWhen::Always => true,
            FaultWhen::Nth(n) => self.seen == n,
            FaultWhen::Every(n) => self.seen.is_multiple_of(n),
            FaultWhen::Random { ppm } => self.random.hits(ppm),
        }
    }
}

impl Faults {
    /// Whether a rule may fire at a point.
    #[inline]
    pub(crate) fn has(&self, at: FaultPoint) -> bool {
        self.on & bit(at) != 0
    }

    /// Whether a rule may fire anywhere, or something that one held back waits.
    #[inline]
    pub(crate) fn has_any(&self) -> bool {
        self.on != 0
    }

    /// Looks again which points have something to do.
    fn refresh(&mut self) {
        let live = self.rules.iter().filter(|rule| !rule.is_spent());
        self.on = live.fold(0, |on, rule| on | bit(rule.rule.at));
        if !self.completions.is_empty() {
            self.on |= bit(FaultPoint::Completion);
        }
        if !self.delayed.is_empty() {
            self.on |= bit(FaultPoint::Wqe);
        }
        if !self.has(FaultPoint::Wqe) {
            self.judged.clear();
        }
    }

    /// The action of the first rule that fires, and its number.
    fn meet(&mut self, now_ns: u64, what: &Occasion) -> Option<(FaultAction, u32)> {
        let rule = self
            .rules
            .iter_mut()
            .filter(|rule| !rule.is_spent() && rule.is_about(what))
            .find_map(|rule| rule.sees().then_some(rule));
        let Some(rule) = rule else {
            // A rule for the n-th occasion may be over all the same.
            self.refresh();
            return None;
        };
        rule.fired += 1;
        rule.last_ns = Some(now_ns);
        let (action, id) = (rule.rule.action, rule.id);
        let is_call = what.at == FaultPoint::Call;
        let name = what.at.opcode_name(what.opcode);
        let hit = FaultHit {
            sequence: self.logged,
            at_ns: now_ns,
            id,
            fired: rule.fired,
            at: what.at.name().into(),
            action: action.name().into(),
            node: String::new(),
            function: what.function.0,
            qpn: (what.qpn != 0).then_some(what.qpn),
            opcode: name.filter(|_| !is_call).map(Into::into),
            call: name.filter(|_| is_call).map(Into::into),
        };
        if self.log.len() == LOG {
            self.log.pop_front();
        }
        self.log.push_back(hit);
        self.logged += 1;
        self.refresh();
        Some((action, id))
    }

    /// Whether packets of a QP are looked at.
    pub(crate) fn wants_packets(&self, node: NodeId, function: FunctionId, qpn: u32) -> bool {
        self.rules.iter().any(|rule| {
            rule.rule.at == FaultPoint::Packet
                && !rule.is_spent()
                && rule.concerns(node, function, qpn)
        })
    }

    /// Forgets what it knows of a QP.
    pub(crate) fn forget_qp(&mut self, at: QpRef) {
        self.judged.remove(&(at.function, at.qpn));
        if self.delayed.remove(&(at.function, at.qpn)).is_some() {
            self.refresh();
        }
    }
}

impl Device {
    /// Adds a fault rule, in force at once; its number.
    ///
    /// # Errors
    /// [`FaultError`]: it names the field and what it may be.
    pub fn add_fault(&mut self, rule: FaultRule) -> Result<u32, FaultError> {
        let opcode = rule.check()?;
        let node = match &rule.node {
            None => None,
            Some(name) => Some(self.node_named(name)?),
        };
        if self.faults.rules.len() >= RULES {
            return Err(FaultError::Full { limit: RULES });
        }
        self.faults.last_id += 1;
        let id = self.faults.last_id;
        let mut mixed = Random::new(self.options.seed ^ rule.seed);
        let seed = mixed.next() ^ u64::from(id).wrapping_mul(0x9e6c_63d0_876a_3f6b);
        if rule.at == FaultPoint::Packet {
            self.links.is_used = true;
        }
        self.faults.rules.push(Rule {
            id,
            rule,
            node,
            opcode,
            random: Random::new(seed),
            seen: 0,
            fired: 0,
            last_ns: None,
        });
        self.faults.refresh();
        self.publish_call_faults();
        Ok(id)
    }

    /// Adds a fault rule that is given as a JSON object.
    ///
    /// # Errors
    /// As [`Device::add_fault`].
    pub fn add_fault_fields(&mut self, fields: &Map<String, Value>) -> Result<u32, FaultError> {
        self.add_fault(FaultRule::from_fields(fields)?)
    }

    fn node_named(&self, name: &str) -> Result<NodeId, FaultError> {
        let found = self.nodes.iter().find(|(_, node)| node.name == name);
        found.map(|(id, _)| id).ok_or_else(|| {
            let names: Vec<_> = self
                .nodes
                .iter()
                .map(|(_, node)| node.name.as_str())
                .collect();
            FieldError::value("node", format!("{name:?}"), names.join(", ")).into()
        })
    }

    /// Removes a rule, or all of them; how many. What they delayed still comes.
    ///
    /// # Errors
    /// [`FaultError::NoRule`].
    pub fn remove_fault(&mut self, id: Option<u32>) -> Result<usize, FaultError> {
        let rules = &mut self.faults.rules;
        let before = rules.len();
        if let Some(id) = id
            && !rules.iter().any(|rule| rule.id == id)
        {
            let mut known: Vec<_> = rules.iter().map(|rule| rule.id.to_string()).collect();
            if known.is_empty() {
                known.push("none is set".into());
            }
            return Err(FaultError::NoRule {
                id,
                known: known.join(", "),
            });
        }
        rules.retain(|rule| id.is_some_and(|id| id != rule.id));
        let removed = before - rules.len();
        self.faults.refresh();
        self.publish_call_faults();
        Ok(removed)
    }

    /// Every rule, and the latest faults; of one rule alone when `only` names it.
    #[must_use]
    pub fn faults(&self, only: Option<u32>) -> FaultReport {
        let is_meant = |id: u32| only.is_none_or(|only| only == id);
        let rules = self.faults.rules.iter();
        let hits = self.faults.log.iter();
        FaultReport {
            now_ns: self.clock.now_ns(),
            faults: rules.filter(|rule| is_meant(rule.id)).map(row).collect(),
            log: hits.filter(|hit| is_meant(hit.id)).cloned().collect(),
            log_lost: self.faults.logged - self.faults.log.len() as u64,
        }
    }
}

fn row(rule: &Rule) -> FaultRow {
    let wanted = &rule.rule;
    let (mut nth, mut every, mut ppm) = (None, None, None);
    match wanted.when {
        FaultWhen::Always => {}
        FaultWhen::Nth(n) => nth = Some(n),
        FaultWhen::Every(n) => every = Some(n),
        FaultWhen::Random { ppm: chance } => ppm = Some(chance),
    }
    let (mut delay_ns, mut status, mut code) = (None, None, None);
    match wanted.action {
        FaultAction::Delay { ns } => delay_ns = Some(ns),
        FaultAction::Status { status: chosen } => status = Some(chosen.to_string()),
        FaultAction::Fail { code: chosen } => code = call::code_name(chosen).map(Into::into),
        _ => {}
    }
    let is_call = wanted.at == FaultPoint::Call;
    FaultRow {
        id: rule.id,
        at: wanted.at.name().into(),
        action: wanted.action.name().into(),
        delay_ns,
        status,
        node: wanted.node.clone(),
        function: wanted.function,
        qpn: wanted.qpn,
        opcode: wanted.opcode.clone().filter(|_| !is_call),
        call: wanted.opcode.clone().filter(|_| is_call),
        code,
        nth,
        every,
        ppm,
        count: wanted.count,
        seed: wanted.seed,
        seen: rule.seen,
        fired: rule.fired,
        last_ns: rule.last_ns,
        is_spent: rule.is_spent(),
    }
}
