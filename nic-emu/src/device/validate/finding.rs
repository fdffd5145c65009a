//! Findings: one structured record per broken rule, bounded in number.
//!
//! Place: [`super::Validator`] adds, the control socket and `sanlab stat` read. Invariants: at most [`KEPT_PER_KEY`] records per rule and
//! function and [`KEPT`] in all; what is not kept is counted, and costs no formatting.

use std::collections::{HashMap, VecDeque};
use std::fmt;

use ring_proto::ids::FunctionId;
use ring_proto::status::Opcode;
use ring_proto::wqe::{RqWqe, Sge, SqWqe, WqeFlags};
use serde::{Deserialize, Serialize};

use super::Rule;

/// Most records of one rule and function.
pub(crate) const KEPT_PER_KEY: u64 = 8;
/// Most records in all; the oldest go first.
pub(crate) const KEPT: usize = 512;
/// Most rule and function pairs that are counted apart.
const KEYS: usize = 4096;

/// A broken rule.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Finding {
    /// Counts findings of the device from 1, suppressed ones included.
    pub sequence: u64,
    /// Time of the device's clock.
    pub at_ns: u64,
    /// Id of the rule.
    pub rule: String,
    /// Name of the node.
    pub node: String,
    /// The function whose driver broke it.
    pub function: u32,
    /// The queue: `sq`, `rq`, `srq`, `cq` or `admin`.
    pub queue: String,
    /// Number of its QP, SRQ or CQ.
    pub number: u32,
    /// Position in the queue.
    pub index: u32,
    /// The WQE at that position, when there is one.
    pub wqe: Option<DecodedWqe>,
    /// What was seen.
    pub detail: String,
    /// What is wrong with it.
    pub explanation: String,
    /// What to do.
    pub remedy: String,
    /// Later ones of the same rule and function that were not kept.
    pub suppressed: u64,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} function {} of node {}, {} {:#x}, index {}: {}",
            self.rule, self.function, self.node, self.queue, self.number, self.index, self.detail
        )?;
        if let Some(wqe) = &self.wqe {
            writeln!(f, "  wqe:     {wqe}")?;
        }
        writeln!(f, "  why:     {}", self.explanation)?;
        write!(f, "  instead: {}", self.remedy)?;
        if self.suppressed > 0 {
            write!(f, "\n  and {} more like it", self.suppressed)?;
        }
        Ok(())
    }
}

/// How often a rule was broken.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RuleCount {
    /// Id of the rule.
    pub rule: String,
    /// How often, suppressed ones included.
    pub count: u64,
    /// How many of them were not kept.
    pub suppressed: u64,
}

/// A WQE in words.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DecodedWqe {
    /// Name of the opcode, or its number; `RECV` for a receive.
    pub opcode: String,
    /// Names of the flags; what has none is a number.
    pub flags: Vec<String>,
    /// Blocks of 64 bytes.
    pub blocks: u8,
    /// SGEs, or inline bytes.
    pub count: u8,
    /// Immediate data.
    pub imm: u32,
    /// For the CQE.
    pub wr_id: u64,
    /// Remote address.
    pub remote_addr: u64,
    /// Remote key.
    pub rkey: u32,
    /// Bytes of the message.
    pub total: u32,
    /// Where its bytes are.
    pub sges: Vec<DecodedSge>,
}

/// An SGE in words.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DecodedSge {
    /// IOVA.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// Key.
    pub lkey: u32,
}

impl DecodedWqe {
    /// Decodes a send WQE and the SGEs that were found with it.
    pub(crate) fn send(head: &SqWqe, sges: &[Sge]) -> Self {
        let known = WqeFlags::from_bits_truncate(head.flags);
        let mut flags: Vec<_> = known
            .iter_names()
            .map(|(name, _)| name.to_owned())
            .collect();
        let unknown = head.flags & !WqeFlags::all().bits();
        if unknown != 0 {
            flags.push(format!("{unknown:#x}"));
        }
        Self {
            opcode: Opcode(head.opcode).to_string(),
            flags,
            blocks: head.blocks,
            count: head.count,
            imm: head.imm,
            wr_id: head.wr_id,
            remote_addr: head.remote_addr,
            rkey: head.rkey,
            total: head.total,
            sges: decode(sges),
        }
    }

    /// Decodes a receive WQE.
    pub(crate) fn receive(wqe: &RqWqe) -> Self {
        let count = usize::from(wqe.count).min(wqe.sges.len());
        Self {
            opcode: "RECV".into(),
            flags: Vec::new(),
            blocks: 1,
            count: wqe.count,
            imm: 0,
            wr_id: wqe.wr_id,
            remote_addr: 0,
            rkey: 0,
            total: 0,
            sges: decode(&wqe.sges[..count]),
        }
    }
}

fn decode(sges: &[Sge]) -> Vec<DecodedSge> {
    let one = |sge: &Sge| DecodedSge {
        addr: sge.addr,
        len: sge.len,
        lkey: sge.lkey,
    };
    sges.iter().map(one).collect()
}

impl fmt::Display for DecodedWqe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} wr_id {:#x}", self.opcode, self.wr_id)?;
        if !self.flags.is_empty() {
            write!(f, " flags {}", self.flags.join("|"))?;
        }
        write!(
            f,
            " blocks {} count {} total {}",
            self.blocks, self.count, self.total
        )?;
        if self.rkey != 0 || self.remote_addr != 0 {
            write!(
                f,
                " remote {:#x} rkey {:#010x}",
                self.remote_addr, self.rkey
            )?;
        }
        for sge in &self.sges {
            write!(f, " [{:#x} +{} lkey {:#010x}]", sge.addr, sge.len, sge.lkey)?;
        }
        Ok(())
    }
}

/// All findings of a device.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    kept: VecDeque<Finding>,
    sequence: u64,
    by_key: HashMap<(Rule, FunctionId), u64>,
    by_rule: HashMap<Rule, (u64, u64)>,
}

impl Findings {
    /// Adds one; `make` runs only when it is kept.
    pub(crate) fn add(
        &mut self,
        rule: Rule,
        function: FunctionId,
        make: impl FnOnce(u64) -> Finding,
    ) {
        self.sequence += 1;
        let totals = self.by_rule.entry(rule).or_default();
        totals.0 += 1;
        if self.by_key.len() >= KEYS && !self.by_key.contains_key(&(rule, function)) {
            // Functions beyond counting start anew: their old ones are gone by now.
            self.by_key.clear();
        }
        let seen = self.by_key.entry((rule, function)).or_default();
        *seen += 1;
        if *seen > KEPT_PER_KEY {
            totals.1 += 1;
            let last = self
                .kept
                .iter_mut()
                .rev()
                .find(|kept| kept.function == function.0 && kept.rule == rule.id());
            if let Some(last) = last {
                last.suppressed += 1;
            }
            return;
        }
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(make(self.sequence));
    }

    pub(crate) fn all(&self) -> Vec<Finding> {
        self.kept.iter().cloned().collect()
    }

    /// Rules that were broken, in the order of the table.
    pub(crate) fn counts(&self) -> Vec<RuleCount> {
        let count = |rule: &Rule| {
            let &(count, suppressed) = self.by_rule.get(rule)?;
            Some(RuleCount {
                rule: rule.id().into(),
                count,
                suppressed,
            })
        };
        Rule::ALL.iter().filter_map(count).collect()
    }
}
