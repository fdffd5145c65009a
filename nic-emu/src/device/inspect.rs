//! What a device consists of at this moment, as rows: functions, queue pairs, queues, regions, windows of both kinds, doorbells.
//!
//! Place: control requests ask by [`Device::inspect`] on the engine's own thread, so that a row never shows half a change. Invariants:
//! nothing is changed; words of clients are shown as they are found and believed by nobody. Field names are those of the JSON.
//! Source: ours; the tables follow `rdma resource show`. Hot: nothing.

use std::str::FromStr;

use ring_proto::admin::Access;
use ring_proto::ids::NodeId;
use ring_proto::shared::Bar2;
use ring_proto::status::{Syndrome, WcOpcode, WcStatus};
use ring_proto::sync::Ordering;
use ring_proto::{regs, uar};
use serde::{Deserialize, Serialize};

use super::Device;
use super::counters::PacketCounters;
use super::cq::Completed;
use super::function::{CompletionUse, Function};
use super::qp::{Qp, QpRef, WorkQueue};
use super::transfer::Hold;

/// A part of an inspection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Topic {
    /// Findings of the validation layer.
    Findings,
    /// Functions.
    Functions,
    /// Queue pairs.
    Qps,
    /// Completion queues.
    Cqs,
    /// Shared receive queues.
    Srqs,
    /// Memory regions.
    Mrs,
    /// Memory windows.
    Mws,
    /// Windows.
    Windows,
    /// Doorbell lines in use.
    Doorbells,
    /// What nodes have and may have.
    Limits,
}

impl Topic {
    /// Every topic, in the order of a page.
    pub const ALL: [Self; 10] = [
        Self::Functions,
        Self::Qps,
        Self::Cqs,
        Self::Srqs,
        Self::Mrs,
        Self::Mws,
        Self::Windows,
        Self::Doorbells,
        Self::Limits,
        Self::Findings,
    ];

    /// Its name in requests, options and answers.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Findings => "findings",
            Self::Functions => "functions",
            Self::Qps => "qps",
            Self::Cqs => "cqs",
            Self::Srqs => "srqs",
            Self::Mrs => "mrs",
            Self::Mws => "mws",
            Self::Windows => "windows",
            Self::Doorbells => "doorbells",
            Self::Limits => "limits",
        }
    }
}

/// No part of an inspection has this name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no part is called {0:?}; the parts are {parts}", parts = Topic::ALL.map(Topic::name).join(", "))]
pub struct UnknownTopic(String);

impl FromStr for Topic {
    type Err = UnknownTopic;

    fn from_str(name: &str) -> Result<Self, UnknownTopic> {
        let of_name = Self::ALL.into_iter().find(|topic| topic.name() == name);
        of_name.ok_or_else(|| UnknownTopic(name.to_owned()))
    }
}

/// The engine.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct EngineRow {
    /// Time of the device's clock.
    pub now_ns: u64,
    /// Why it stands still; nothing when it runs.
    pub paused: Option<String>,
    /// What it pauses at.
    pub pause_on: Option<String>,
    /// The validation layer is on.
    pub validate: bool,
    /// Functions whose doorbells are looked at in each round.
    pub hot_functions: u64,
    /// QPs that wait for their turn.
    pub active_qps: u64,
    /// When the next timer is due.
    pub next_timer_ns: Option<u64>,
}

/// A function.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FunctionRow {
    /// Number.
    pub function: u32,
    /// Name of its node.
    pub node: String,
    /// Process that attached it.
    pub pid: Option<i32>,
    /// `new`, `ready`, `failed` or `detached`.
    pub state: String,
    /// Why it failed.
    pub syndrome: Option<String>,
    /// Resets so far.
    pub generation: u32,
    /// The engine looks at its doorbells in each round; a client of one that is not must kick.
    pub is_hot: bool,
    /// Its clients have to kick: it is cold, or the engine sleeps.
    pub is_parked: bool,
    /// Queue pairs.
    pub qps: u64,
    /// Completion queues.
    pub cqs: u64,
    /// Memory regions.
    pub mrs: u64,
    /// Windows.
    pub windows: u64,
    /// Listeners.
    pub listeners: u64,
    /// Events that wait for room in the event queue.
    pub waiting_events: u64,
    /// WQEs done.
    pub wqes: u64,
    /// Payload bytes sent.
    pub tx_bytes: u64,
}

/// A work queue of a QP.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WorkQueueRow {
    /// IOVA of the ring.
    pub ring: u64,
    /// Entries; 0 when the ring is gone.
    pub depth: u32,
    /// Position up to which the doorbell is believed.
    pub producer: u32,
    /// Position up to which the NIC has taken WQEs.
    pub consumer: u32,
}

/// The last error of a QP.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LastError {
    /// When, by the device's clock.
    pub at_ns: u64,
    /// Status of the completion; nothing for an error that none tells.
    pub status: Option<String>,
    /// The exact check that failed.
    pub syndrome: String,
    /// Opcode of the WQE.
    pub opcode: Option<String>,
    /// From the WQE.
    pub wr_id: u64,
    /// Position behind the WQE.
    pub index: u32,
    /// Errors of the QP so far.
    pub count: u64,
}

/// A queue pair.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct QpRow {
    /// Function.
    pub function: u32,
    /// Name of its node.
    pub node: String,
    /// Number.
    pub qpn: u32,
    /// State.
    pub state: String,
    /// Peer's function, or 0.
    pub peer_function: u32,
    /// Peer's number, or 0.
    pub peer_qpn: u32,
    /// Protection domain.
    pub pdn: u32,
    /// CQ of sends.
    pub send_cqn: u32,
    /// CQ of receives.
    pub recv_cqn: u32,
    /// SRQ that it takes receives from, or 0.
    pub srqn: u32,
    /// Doorbell slot.
    pub slot: u32,
    /// What the peer may do.
    pub access: String,
    /// Send queue; its consumer counts the blocks executed since RESET.
    pub sq: WorkQueueRow,
    /// Receive queue; its consumer counts the receives taken since RESET.
    pub rq: WorkQueueRow,
    /// What its send waits for: `receive`, `connection`.
    pub waits_for: Option<String>,
    /// It waits for its turn.
    pub is_active: bool,
    /// Without holder; only its memory serves the peer.
    pub is_orphan: bool,
    /// Processes that hold it.
    pub holders: u64,
    /// Its last error.
    pub last_error: Option<LastError>,
    /// What it met by packets; nothing while every link that it used was perfect.
    #[serde(default)]
    pub packets: Option<PacketCounters>,
}

/// A completion queue.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CqRow {
    /// Function.
    pub function: u32,
    /// Name of its node.
    pub node: String,
    /// Number.
    pub cqn: u32,
    /// IOVA of the ring.
    pub ring: u64,
    /// Entries; 0 when the ring is gone.
    pub depth: u32,
    /// Position up to which CQEs were written.
    pub producer: u32,
    /// Position that the client claims to have consumed.
    pub consumer: u32,
    /// Doorbell slot.
    pub slot: u32,
    /// Vectors that are armed.
    pub armed: u64,
    /// QP ends that complete here.
    pub users: u32,
    /// It overran or lost its memory.
    pub is_broken: bool,
}

/// A shared receive queue.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SrqRow {
    /// Function.
    pub function: u32,
    /// Name of its node.
    pub node: String,
    /// Number.
    pub srqn: u32,
    /// Protection domain of its buffers.
    pub pdn: u32,
    /// The ring; its consumer counts the receives that QPs took.
    pub queue: WorkQueueRow,
    /// Fewer receives than this fire SRQ_LIMIT; 0 when not armed.
    pub limit: u32,
    /// Doorbell slot.
    pub slot: u32,
    /// QPs that take their receives here.
    pub users: u32,
    /// QPs whose peer waits for a receive.
    pub waiting: u64,
    /// It lost its memory, or its doorbell lied.
    pub is_broken: bool,
}

/// A memory region.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MrRow {
    /// Function.
    pub function: u32,
    /// Name of its node.
    pub node: String,
    /// lkey and rkey.
    pub key: u32,
    /// First byte.
    pub iova: u64,
    /// Bytes.
    pub len: u64,
    /// Protection domain.
    pub pdn: u32,
    /// Rights.
    pub access: String,
    /// The one QP through which a peer may reach it, or 0.
    pub owner_qpn: u32,
    /// Its memory is there.
    pub has_memory: bool,
}

/// A memory window.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MwRow {
    /// Function.
    pub function: u32,
    /// Name of its node.
    pub node: String,
    /// rkey, as it is now.
    pub key: u32,
    /// 1: bound by command, for every QP. 2: bound by WQE, for one.
    pub kind: u32,
    /// Protection domain.
    pub pdn: u32,
    /// It shows a part of a region; if not, what follows is 0.
    pub is_bound: bool,
    /// Key of the region.
    pub mr_key: u32,
    /// First byte.
    pub iova: u64,
    /// Bytes.
    pub len: u64,
    /// What peers may do.
    pub access: String,
    /// The QP of a type 2 window, or 0.
    pub qpn: u32,
}

/// A window: a part of the client's memory that the NIC can reach.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WindowRow {
    /// Function.
    pub function: u32,
    /// Name of its node.
    pub node: String,
    /// First byte.
    pub iova: u64,
    /// Bytes.
    pub len: u64,
    /// First byte in the file.
    pub offset: u64,
    /// The device may write it.
    pub write: bool,
    /// It has memory.
    pub has_memory: bool,
}

/// A doorbell line in use, with the words that the client left there.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DoorbellRow {
    /// Function.
    pub function: u32,
    /// Name of its node.
    pub node: String,
    /// Slot.
    pub slot: u32,
    /// QP whose producers are here, or 0.
    pub qpn: u32,
    /// What has its consumer here: `cq`, `eq` or `admin`.
    pub completions: Option<String>,
    /// Word of the line.
    pub sq_producer: u32,
    /// Word of the line.
    pub rq_producer: u32,
    /// Word of the line.
    pub cq_consumer: u32,
    /// Word of the line.
    pub arm_vectors: u64,
    /// Word of the line.
    pub arm_sequence: u32,
    /// The NIC has not taken its mark yet.
    pub is_dirty: bool,
}

/// Rows of the parts that were asked for; the others are empty.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Inspection {
    /// The engine.
    pub engine: EngineRow,
    /// Functions.
    pub functions: Vec<FunctionRow>,
    /// Queue pairs.
    pub qps: Vec<QpRow>,
    /// Completion queues.
    pub cqs: Vec<CqRow>,
    /// Shared receive queues.
    pub srqs: Vec<SrqRow>,
    /// Memory regions.
    pub mrs: Vec<MrRow>,
    /// Memory windows.
    pub mws: Vec<MwRow>,
    /// Windows.
    pub windows: Vec<WindowRow>,
    /// Doorbell lines.
    pub doorbells: Vec<DoorbellRow>,
    /// What nodes have and may have.
    #[serde(default)]
    pub limits: Vec<super::LimitRow>,
    /// Findings.
    pub findings: Vec<super::Finding>,
    /// How often each rule was broken.
    pub rules: Vec<super::RuleCount>,
}

impl Device {
    /// Rows of some parts, of all when none is named.
    #[must_use]
    pub fn inspect(&self, topics: &[Topic]) -> Inspection {
        let wants = |topic| topics.is_empty() || topics.contains(&topic);
        let mut inspection = Inspection {
            engine: self.engine_row(),
            ..Inspection::default()
        };
        if wants(Topic::Findings) {
            inspection.findings = self.findings();
            inspection.rules = self.rule_counts();
        }
        if wants(Topic::Limits) {
            inspection.limits = self.limit_rows();
        }
        for (_, function) in self.functions.iter() {
            if wants(Topic::Functions) {
                inspection.functions.push(self.function_row(function));
            }
            if wants(Topic::Qps) {
                let qps = function.qps.iter();
                let rows = qps.map(|(qpn, qp)| self.qp_row(function, qpn, qp));
                inspection.qps.extend(rows);
            }
            let node = self.node_name(function.node);
            if wants(Topic::Cqs) {
                inspection.cqs.extend(cq_rows(function, &node));
            }
            if wants(Topic::Srqs) {
                let srqs = function.srqs.iter();
                let rows = srqs.map(|(srqn, srq)| srq.row(function.id.0, srqn, &node));
                inspection.srqs.extend(rows);
            }
            if wants(Topic::Mrs) {
                inspection.mrs.extend(mr_rows(function, &node));
            }
            if wants(Topic::Mws) {
                let rows = function.regions.mw_rows(function.id.0, &node);
                inspection.mws.extend(rows);
            }
            if wants(Topic::Windows) {
                let rows = function.windows.rows(function.id.0, &node);
                inspection.windows.extend(rows);
            }
            if wants(Topic::Doorbells) {
                inspection.doorbells.extend(doorbell_rows(function, &node));
            }
        }
        inspection
    }

    pub(crate) fn node_name(&self, id: NodeId) -> String {
        let node = self.nodes.find(id);
        node.map(|node| node.name.clone()).unwrap_or_default()
    }

    fn engine_row(&self) -> EngineRow {
        let pause = &self.diagnosis.pause;
        EngineRow {
            now_ns: self.clock.now_ns(),
            paused: pause.reason().map(str::to_owned),
            pause_on: pause.on().map(|on| on.to_string()),
            validate: self.diagnosis.validator.is_some(),
            hot_functions: self.work.hot.len() as u64,
            active_qps: self.work.active.len() as u64,
            next_timer_ns: self.timers.next_ns(),
        }
    }

    fn function_row(&self, function: &Function) -> FunctionRow {
        let status = function.registers.status;
        let is_failed = status & regs::STATUS_FAILED != 0;
        let state = if function.is_detached {
            "detached"
        } else if is_failed {
            "failed"
        } else if status & regs::STATUS_DRIVER_OK != 0 {
            "ready"
        } else {
            "new"
        };
        FunctionRow {
            function: function.id.0,
            node: self.node_name(function.node),
            pid: function.client_pid,
            state: state.into(),
            syndrome: is_failed.then(|| function.registers.syndrome.to_string()),
            generation: function.registers.reset_generation,
            is_hot: function.is_hot,
            // A row is made by an engine that is awake: it shows `parked` for cold functions only.
            is_parked: !function.is_hot,
            qps: function.qps.len() as u64,
            cqs: function.cqs.len() as u64,
            mrs: function.regions.table.len() as u64,
            windows: function.windows.len() as u64,
            listeners: function.listeners.len() as u64,
            waiting_events: function.events.waiting_len() as u64,
            wqes: function.wqes,
            tx_bytes: function.tx_bytes,
        }
    }

    fn qp_row(&self, function: &Function, qpn: u32, qp: &Qp) -> QpRow {
        let (peer_function, peer_qpn) = qp.peer.map_or((0, 0), |peer| (peer.function.0, peer.qpn));
        let waits_for = qp.is_held.then_some(match qp.hold_kind {
            Hold::Receive => "receive",
            Hold::Connection => "connection",
            Hold::Port => "port",
            Hold::Fault => "fault",
        });
        QpRow {
            function: function.id.0,
            node: self.node_name(function.node),
            qpn,
            state: qp.state.to_string(),
            peer_function,
            peer_qpn,
            pdn: qp.pdn,
            send_cqn: qp.send_cqn,
            recv_cqn: qp.recv_cqn,
            srqn: qp.srqn,
            slot: qp.slot,
            access: access_names(qp.access),
            sq: work_queue_row(&qp.sq),
            rq: work_queue_row(&qp.rq),
            waits_for: waits_for.map(str::to_owned),
            is_active: qp.is_active,
            is_orphan: qp.is_orphan,
            holders: u64::from(qp.holders.count()),
            last_error: self.diagnosis.last_errors.get(&(function.id, qpn)).cloned(),
            packets: qp.packet_counters.as_deref().copied(),
        }
    }

    /// A QP starts anew, or is gone.
    pub(crate) fn forget_qp(&mut self, at: QpRef) {
        self.diagnosis.last_errors.remove(&(at.function, at.qpn));
        self.validate_forget_qp(at);
        self.faults.forget_qp(at);
    }

    /// Keeps the error that a completion tells.
    pub(crate) fn note_error(&mut self, place: u32, entry: &Completed) {
        self.keep_error(place, entry.qpn, |at_ns, count| LastError {
            at_ns,
            status: Some(WcStatus(entry.status.0).to_string()),
            syndrome: entry.syndrome.to_string(),
            opcode: Some(WcOpcode(entry.opcode).to_string()),
            wr_id: entry.wr_id,
            index: entry.wqe_counter,
            count,
        });
    }

    /// Keeps an error that no completion tells.
    pub(crate) fn note_fatal(&mut self, place: u32, qpn: u32, syndrome: Syndrome) {
        self.keep_error(place, qpn, |at_ns, count| LastError {
            at_ns,
            status: None,
            syndrome: syndrome.to_string(),
            opcode: None,
            wr_id: 0,
            index: 0,
            count,
        });
    }

    fn keep_error(&mut self, place: u32, qpn: u32, make: impl FnOnce(u64, u64) -> LastError) {
        let now_ns = self.clock.now_ns();
        if let Some(function) = self.functions.at(place)
            && function.qps.find(qpn).is_some()
        {
            let errors = &mut self.diagnosis.last_errors;
            let count = errors.get(&(function.id, qpn)).map_or(1, |e| e.count + 1);
            errors.insert((function.id, qpn), make(now_ns, count));
        }
    }
}

pub(crate) fn work_queue_row(queue: &WorkQueue) -> WorkQueueRow {
    WorkQueueRow {
        ring: queue.iova,
        depth: queue.ring.map_or(0, |ring| ring.depth().entries()),
        producer: queue.producer,
        consumer: queue.consumer,
    }
}

/// Names of rights, as verbs writes them.
pub(crate) fn access_names(access: Access) -> String {
    let names: Vec<_> = access.iter_names().map(|(name, _)| name).collect();
    names.join("|")
}

fn cq_rows(function: &Function, node: &str) -> impl Iterator<Item = CqRow> {
    function.cqs.iter().map(|(cqn, cq)| {
        let line = function.bar.line(cq.slot);
        // Relaxed, here and below: words to look at.
        CqRow {
            function: function.id.0,
            node: node.to_owned(),
            cqn,
            ring: cq.iova,
            depth: cq.ring.map_or(0, |ring| ring.depth().entries()),
            producer: cq.producer(),
            consumer: line.cq_consumer().load(Ordering::Relaxed),
            slot: cq.slot,
            armed: line.arm_vectors().load(Ordering::Relaxed),
            users: cq.users,
            is_broken: cq.is_broken,
        }
    })
}

fn mr_rows(function: &Function, node: &str) -> impl Iterator<Item = MrRow> {
    function.regions.table.iter().map(|(key, mr)| MrRow {
        function: function.id.0,
        node: node.to_owned(),
        key,
        iova: mr.iova,
        len: mr.len,
        pdn: mr.pdn,
        access: access_names(mr.access),
        owner_qpn: mr.owner_qpn,
        has_memory: mr.memory.is_some(),
    })
}

fn doorbell_rows(function: &Function, node: &str) -> impl Iterator<Item = DoorbellRow> {
    (0..function.slots_len()).filter_map(|slot| {
        let used = function.slot(slot);
        let completions = match used.completion {
            _ if slot == uar::ADMIN_SLOT => Some("admin"),
            CompletionUse::Cq => Some("cq"),
            CompletionUse::Eq => Some("eq"),
            CompletionUse::None => None,
        };
        (used.qpn != 0 || completions.is_some())
            .then(|| doorbell_row(function, node, slot, used.qpn, completions))
    })
}

fn doorbell_row(
    function: &Function,
    node: &str,
    slot: u32,
    qpn: u32,
    completions: Option<&str>,
) -> DoorbellRow {
    let bar: &Bar2 = &function.bar;
    let line = bar.line(slot);
    let bits = bar.dirty_bits(slot);
    DoorbellRow {
        function: function.id.0,
        node: node.to_owned(),
        slot,
        qpn,
        completions: completions.map(str::to_owned),
        sq_producer: line.sq_producer().load(Ordering::Relaxed),
        rq_producer: line.rq_producer().load(Ordering::Relaxed),
        cq_consumer: line.cq_consumer().load(Ordering::Relaxed),
        arm_vectors: line.arm_vectors().load(Ordering::Relaxed),
        arm_sequence: line.arm_sequence().load(Ordering::Relaxed),
        is_dirty: bits.slots.load(Ordering::Relaxed) & bits.slot_bit != 0,
    }
}
