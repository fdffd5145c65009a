//! A client of one function: admin commands, queues, doorbells, completions and events, written by hand.
//!
//! Place: [`super::rig`] makes them, cases drive them. Invariants: it keeps to docs/device.md unless a case tells it to lie; a wait ends
//! when the effect is there or the target's patience is over; what arrives is written into the trace of a target in virtual time.
//! Source: docs/device.md. Leaves out: speed.

use std::cell::RefCell;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ring_proto::admin::{
    Access, AdminOp, AdminStatus, Body, Command, Completion, CqResize, MrReg, Named, QpCreate,
    QpModify, QueueCreate,
};
use ring_proto::attach::{AttachError, Attachment};
use ring_proto::index::Depth;
use ring_proto::shared::{CommandRing, CqeRing, EqeRing, Ring, WqeRing};
use ring_proto::status::QpState;
use ring_proto::sync::Ordering;
use ring_proto::wqe::Sge;
use ring_proto::{doorbell, regs, uar};

use super::memory::{self, BASE, Doorbells, Memory};
use super::{Outcome, Stop, failed, same};

/// Entries of the admin rings.
pub(crate) const ADMIN_DEPTH: u32 = 16;
/// Entries of the EQ.
pub(crate) const EQ_DEPTH: u32 = 256;
/// Bytes where connection records go, before everything that is allocated.
const RECORD_LEN: u64 = 1024;

/// Lines of the run, shared by the clients of a case.
pub(crate) type Trace = Rc<RefCell<Vec<String>>>;

/// A failed attachment call, as a case's end.
pub(crate) fn refused(error: AttachError) -> Stop {
    Stop::Failed(error.to_string())
}

fn depth_of(entries: u32) -> Outcome<Depth> {
    Depth::new(entries).ok_or_else(|| Stop::Failed(format!("{entries} is no depth")))
}

/// Low half of a result.
pub(crate) fn low(word: u64) -> u32 {
    u32::try_from(word & 0xffff_ffff).unwrap_or(0)
}

/// High half of a result.
pub(crate) fn high(word: u64) -> u32 {
    u32::try_from(word >> 32).unwrap_or(0)
}

/// A CQ of a client, by place in its list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct CqId(usize);

#[derive(Debug)]
pub(super) struct Cq {
    cqn: u32,
    iova: u64,
    pub(super) slot: u32,
    pub(super) ring: CqeRing,
    pub(super) consumer: u32,
}

/// A QP of a client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Qp {
    pub(crate) qpn: u32,
    pub(crate) slot: u32,
    pub(crate) send_cq: CqId,
    pub(crate) recv_cq: CqId,
    pub(crate) sq: WqeRing,
    pub(crate) rq: WqeRing,
    pub(crate) sq_producer: u32,
    pub(crate) rq_producer: u32,
}

/// How a QP is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QpOptions {
    pub(crate) sq_depth: u32,
    pub(crate) rq_depth: u32,
    pub(crate) cq_depth: u32,
    /// What the peer may do.
    pub(crate) access: Access,
    /// Another PD than the client's first.
    pub(crate) pdn: Option<u32>,
    /// An existing CQ for both queues.
    pub(crate) cq: Option<CqId>,
}

impl Default for QpOptions {
    fn default() -> Self {
        Self {
            sq_depth: 64,
            rq_depth: 32,
            cq_depth: 128,
            access: full(),
            pdn: None,
            cq: None,
        }
    }
}

/// Every right that the first version of the device knows.
pub(crate) fn full() -> Access {
    Access::LOCAL_WRITE | Access::REMOTE_WRITE | Access::REMOTE_READ
}

/// A registered region.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Region {
    pub(crate) iova: u64,
    pub(crate) key: u32,
}

impl Region {
    pub(crate) fn sge(&self, offset: u64, len: u32) -> Sge {
        Sge {
            addr: self.iova.wrapping_add(offset),
            len,
            lkey: self.key,
        }
    }

    /// Address and rkey for the peer.
    pub(crate) fn remote(&self, offset: u64) -> (u64, u32) {
        (self.iova.wrapping_add(offset), self.key)
    }
}

/// A client of one function.
pub(crate) struct Client {
    pub(crate) attachment: Box<dyn Attachment>,
    name: &'static str,
    pub(crate) memory: Memory,
    pub(super) doorbells: Doorbells,
    trace: Option<Trace>,
    pub(super) patience: Duration,
    admin_sq: CommandRing,
    admin_cq: CqeRing,
    admin_producer: u32,
    admin_consumer: u32,
    pub(super) events: Option<(EqeRing, u32, u32)>,
    next_slot: u32,
    cqs: Vec<Cq>,
    /// Function id.
    pub(crate) function: u32,
    /// The client's first PD.
    pub(crate) pdn: u32,
}

impl Client {
    /// Maps memory and doorbells of a fresh attachment; the admin queue does not run yet.
    pub(crate) fn bare(
        attachment: Box<dyn Attachment>,
        name: &'static str,
        trace: Option<Trace>,
        patience: Duration,
    ) -> Outcome<Self> {
        let memory = Memory::new()?;
        attachment
            .dma_map(memory.fd.as_raw_fd(), 0, BASE, memory::LEN, true)
            .map_err(refused)?;
        let (bar2, len) = attachment.bar2().map_err(refused)?;
        let doorbells = Doorbells::map(bar2, len)?;
        let depth = depth_of(ADMIN_DEPTH)?;
        let admin_sq = memory.ring(BASE, depth)?;
        let admin_cq = memory.ring(BASE + Ring::<8>::bytes(depth), depth)?;
        Ok(Self {
            attachment,
            name,
            memory,
            doorbells,
            trace,
            patience,
            admin_sq,
            admin_cq,
            admin_producer: 0,
            admin_consumer: 0,
            events: None,
            next_slot: 1,
            cqs: Vec::new(),
            function: 0,
            pdn: 0,
        })
    }

    /// Starts the admin queue, makes EQ and PD. Everything made before a reset is forgotten.
    pub(crate) fn start(&mut self) -> Outcome {
        self.start_admin()?;
        self.events = None;
        let iova = self.memory.alloc(Ring::<2>::bytes(depth_of(EQ_DEPTH)?))?;
        self.create_eq(iova, EQ_DEPTH)?;
        self.pdn = self.pd()?;
        let identity = self.ok(AdminOp::IDENTIFY, Body::default())?;
        self.function = low(identity[0]);
        Ok(())
    }

    /// The register dance alone.
    pub(crate) fn start_admin(&mut self) -> Outcome {
        self.memory.restart();
        let depth = depth_of(ADMIN_DEPTH)?;
        let commands = self.memory.alloc(Ring::<8>::bytes(depth))?;
        let completions = self.memory.alloc(Ring::<4>::bytes(depth))?;
        self.memory.alloc(RECORD_LEN)?;
        self.admin_sq = self.memory.ring(commands, depth)?;
        self.admin_cq = self.memory.ring(completions, depth)?;
        self.admin_producer = 0;
        self.admin_consumer = 0;
        self.next_slot = 1;
        self.cqs.clear();
        let mut status = regs::STATUS_ACKNOWLEDGE | regs::STATUS_DRIVER;
        self.write_register(regs::STATUS, 4, status.into())?;
        let offered = self.read_register(regs::DEVICE_FEATURES, 8)?;
        self.write_register(regs::DRIVER_FEATURES, 8, offered & regs::FEATURES)?;
        status |= regs::STATUS_FEATURES_OK;
        self.write_register(regs::STATUS, 4, status.into())?;
        self.write_register(regs::ADMIN_SQ_BASE, 8, commands)?;
        self.write_register(regs::ADMIN_CQ_BASE, 8, completions)?;
        self.write_register(regs::ADMIN_DEPTH, 4, ADMIN_DEPTH.into())?;
        status |= regs::STATUS_DRIVER_OK;
        self.write_register(regs::STATUS, 4, status.into())?;
        let seen = self.read_register(regs::STATUS, 4)?;
        same("STATUS after DRIVER_OK", seen, status.into())
    }

    // ---- registers ----

    pub(crate) fn read_register(&self, register: u64, len: u32) -> Outcome<u64> {
        self.attachment
            .read_register(register, len)
            .map_err(refused)
    }

    pub(crate) fn write_register(&self, register: u64, len: u32, value: u64) -> Outcome {
        self.attachment
            .write_register(register, len, value)
            .map_err(refused)
    }

    // ---- waiting ----

    /// Waits until `look` finds something.
    pub(super) fn wait<T>(
        &mut self,
        what: &str,
        mut look: impl FnMut(&mut Self) -> Option<T>,
    ) -> Outcome<T> {
        let start = Instant::now();
        loop {
            if let Some(found) = look(self) {
                return Ok(found);
            }
            if start.elapsed() >= self.patience {
                return failed(format!("{}: no {what} came", self.name));
            }
            std::thread::yield_now();
        }
    }

    /// Returns when the device has done everything that this client asked for: a command is answered, then the device parks.
    pub(crate) fn settle(&mut self) -> Outcome {
        self.admin(AdminOp::STATS, Body::default())?;
        let bar = self.doorbells.bar;
        self.wait("rest of the device", |_| {
            (bar.parked().load(Ordering::Acquire) != 0).then_some(())
        })
    }

    pub(super) fn note(&self, what: std::fmt::Arguments<'_>) {
        if let Some(trace) = &self.trace {
            let now = self
                .attachment
                .read_register(regs::CLOCK_NS, 8)
                .unwrap_or(0);
            trace
                .borrow_mut()
                .push(format!("{now} {} {what}", self.name));
        }
    }

    // ---- admin ----

    /// Posts one command and returns its completion.
    pub(crate) fn admin(&mut self, op: AdminOp, body: Body) -> Outcome<(AdminStatus, [u64; 2])> {
        self.post_admin(Command {
            opcode: op.0,
            flags: 0,
            command_id: self.admin_producer,
            body,
        });
        self.ring_admin(self.admin_producer);
        self.admin_completion()
    }

    pub(crate) fn post_admin(&mut self, command: Command) {
        self.admin_sq
            .write(self.admin_producer, &zerocopy::transmute!(command));
        self.admin_producer = self.admin_producer.wrapping_add(1);
    }

    /// Rings the admin doorbell with any producer.
    pub(crate) fn ring_admin(&self, producer: u32) {
        let line = self.doorbells.bar.line(uar::ADMIN_SLOT);
        let bits = self.doorbells.bar.dirty_bits(uar::ADMIN_SLOT);
        if doorbell::ring(
            line.sq_producer(),
            producer,
            bits,
            self.doorbells.bar.parked(),
        ) {
            self.attachment.kick();
        }
    }

    pub(crate) fn admin_producer(&self) -> u32 {
        self.admin_producer
    }

    pub(crate) fn admin_completion(&mut self) -> Outcome<(AdminStatus, [u64; 2])> {
        let position = self.admin_consumer;
        let ring = self.admin_cq;
        let words = self.wait("admin completion", |_| ring.published(position))?;
        let completion: Completion = zerocopy::transmute!(words);
        self.admin_consumer = position.wrapping_add(1);
        self.doorbells
            .bar
            .line(uar::ADMIN_SLOT)
            .cq_consumer()
            .store(self.admin_consumer, Ordering::Release);
        let status = AdminStatus(completion.status);
        self.note(format_args!(
            "admin {} {status} {:x?}",
            completion.command_id, completion.result
        ));
        same(
            "command id of a completion",
            completion.command_id,
            position,
        )?;
        Ok((status, completion.result))
    }

    /// A command that must succeed.
    pub(crate) fn ok(&mut self, op: AdminOp, body: Body) -> Outcome<[u64; 2]> {
        match self.admin(op, body)? {
            (AdminStatus::OK, result) => Ok(result),
            (status, _) => failed(format!("{op} answered {status}")),
        }
    }

    /// A command that must be answered with `wanted`.
    pub(crate) fn refuse(&mut self, op: AdminOp, body: Body, wanted: AdminStatus) -> Outcome {
        let (status, _) = self.admin(op, body)?;
        same(&format!("answer of {op}"), status, wanted)
    }

    /// A command about one object that must be answered with `wanted`.
    pub(crate) fn named(&mut self, op: AdminOp, id: u32, wanted: AdminStatus) -> Outcome {
        self.refuse(op, Named { id, reserved: 0 }.to_body(), wanted)
    }

    pub(crate) fn pd(&mut self) -> Outcome<u32> {
        Ok(low(self.ok(AdminOp::PD_ALLOC, Body::default())?[0]))
    }

    pub(crate) fn region(&mut self, len: u64, access: Access) -> Outcome<Region> {
        self.region_of(len, access, self.pdn, 0)
    }

    pub(crate) fn region_of(
        &mut self,
        len: u64,
        access: Access,
        pdn: u32,
        owner_qpn: u32,
    ) -> Outcome<Region> {
        let iova = self.memory.alloc(len)?;
        let body = MrReg {
            addr: iova,
            len,
            pdn,
            access: access.bits(),
            owner_qpn,
            reserved: 0,
        };
        let result = self.ok(AdminOp::MR_REG, body.to_body())?;
        Ok(Region {
            iova,
            key: low(result[0]),
        })
    }

    pub(crate) fn slot(&mut self) -> u32 {
        let slot = self.next_slot;
        self.next_slot += 1;
        slot
    }

    pub(crate) fn create_eq(&mut self, iova: u64, depth: u32) -> Outcome {
        let slot = self.slot();
        let ring = self.memory.ring(iova, depth_of(depth)?)?;
        let body = QueueCreate {
            ring: iova,
            depth,
            slot,
        };
        self.ok(AdminOp::EQ_CREATE, body.to_body())?;
        self.events = Some((ring, slot, 0));
        Ok(())
    }

    pub(crate) fn cq(&mut self, depth: u32) -> Outcome<CqId> {
        let of = depth_of(depth)?;
        let iova = self.memory.alloc(Ring::<4>::bytes(of))?;
        let ring = self.memory.ring(iova, of)?;
        let slot = self.slot();
        let body = QueueCreate {
            ring: iova,
            depth,
            slot,
        };
        let cqn = low(self.ok(AdminOp::CQ_CREATE, body.to_body())?[0]);
        self.cqs.push(Cq {
            cqn,
            iova,
            slot,
            ring,
            consumer: 0,
        });
        Ok(CqId(self.cqs.len() - 1))
    }

    /// CQ_RESIZE to a fresh ring; result 0 of a refusal. The CQ is polled in the new ring then.
    pub(crate) fn resize(&mut self, id: CqId, depth: u32) -> Outcome<(AdminStatus, u64)> {
        let of = depth_of(depth)?;
        let iova = self.memory.alloc(Ring::<4>::bytes(of))?;
        let new = self.memory.ring(iova, of)?;
        let body = CqResize {
            ring: iova,
            cqn: self.cqn(id)?,
            depth,
        };
        let (status, [why, _]) = self.admin(AdminOp::CQ_RESIZE, body.to_body())?;
        if status == AdminStatus::OK {
            let cq = self.cq_of(id)?;
            (cq.ring, cq.iova) = (new, iova);
        }
        Ok((status, why))
    }

    pub(super) fn cq_of(&mut self, id: CqId) -> Outcome<&mut Cq> {
        self.cqs
            .get_mut(id.0)
            .ok_or_else(|| Stop::Failed("a CQ of before the reset".into()))
    }

    pub(crate) fn cqn(&mut self, id: CqId) -> Outcome<u32> {
        Ok(self.cq_of(id)?.cqn)
    }

    /// Where the CQ's ring lies.
    pub(crate) fn cq_iova(&mut self, id: CqId) -> Outcome<u64> {
        Ok(self.cq_of(id)?.iova)
    }

    /// A sound body for QP_CREATE with fresh rings, slot and CQ.
    pub(crate) fn qp_body(&mut self, options: QpOptions) -> Outcome<(QpCreate, CqId)> {
        let cq = match options.cq {
            Some(cq) => cq,
            None => self.cq(options.cq_depth)?,
        };
        let cqn = self.cqn(cq)?;
        Ok((
            QpCreate {
                sq_ring: self.memory.alloc(64 * u64::from(options.sq_depth))?,
                rq_ring: self.memory.alloc(64 * u64::from(options.rq_depth))?,
                sq_depth: options.sq_depth,
                rq_depth: options.rq_depth,
                pdn: options.pdn.unwrap_or(self.pdn),
                send_cqn: cqn,
                recv_cqn: cqn,
                slot: self.slot(),
                access: options.access.bits(),
                ..QpCreate::default()
            },
            cq,
        ))
    }

    /// A QP in RESET.
    pub(crate) fn qp(&mut self, options: QpOptions) -> Outcome<Qp> {
        let (body, cq) = self.qp_body(options)?;
        self.qp_from(body, cq, cq)
    }

    /// A QP in RESET of this body.
    pub(crate) fn qp_from(&mut self, body: QpCreate, send_cq: CqId, recv_cq: CqId) -> Outcome<Qp> {
        let sq = self.memory.ring(body.sq_ring, depth_of(body.sq_depth)?)?;
        let rq = self.memory.ring(body.rq_ring, depth_of(body.rq_depth)?)?;
        let qpn = low(self.ok(AdminOp::QP_CREATE, body.to_body())?[0]);
        Ok(Qp {
            qpn,
            slot: body.slot,
            send_cq,
            recv_cq,
            sq,
            rq,
            sq_producer: 0,
            rq_producer: 0,
        })
    }

    /// A QP in INIT.
    pub(crate) fn init_qp(&mut self, options: QpOptions) -> Outcome<Qp> {
        let qp = self.qp(options)?;
        self.modify(qp.qpn, QpState::INIT)?;
        Ok(qp)
    }

    pub(crate) fn modify(&mut self, qpn: u32, state: QpState) -> Outcome {
        self.ok(AdminOp::QP_MODIFY, to_state(qpn, state).to_body())
            .map(drop)
    }

    pub(crate) fn modify_to_rtr(&mut self, qpn: u32, peer: (u32, u32)) -> Outcome {
        self.ok(AdminOp::QP_MODIFY, to_rtr(qpn, peer).to_body())
            .map(drop)
    }

    pub(crate) fn modify_to_rts(&mut self, qpn: u32, rnr_retry: u32) -> Outcome {
        let body = QpModify {
            rnr_retry,
            ..to_state(qpn, QpState::RTS)
        };
        self.ok(AdminOp::QP_MODIFY, body.to_body()).map(drop)
    }

    pub(crate) fn state(&mut self, qpn: u32) -> Outcome<QpState> {
        let body = Named {
            id: qpn,
            reserved: 0,
        };
        let result = self.ok(AdminOp::QP_QUERY, body.to_body())?;
        Ok(QpState(result[0].to_le_bytes()[0]))
    }

    pub(crate) fn expect_state(&mut self, qpn: u32, wanted: QpState) -> Outcome {
        let state = self.state(qpn)?;
        same("QP state", state, wanted)
    }

    /// Where a connection record may be written.
    pub(crate) fn record_at(&self) -> Outcome<u64> {
        let depth = depth_of(ADMIN_DEPTH)?;
        Ok(BASE + Ring::<8>::bytes(depth) + Ring::<4>::bytes(depth))
    }
}

/// QP_MODIFY to a state, nothing else.
pub(crate) fn to_state(qpn: u32, state: QpState) -> QpModify {
    QpModify {
        qpn,
        state: state.0.into(),
        ..QpModify::default()
    }
}

/// QP_MODIFY to RTR with a peer: function and QPN.
pub(crate) fn to_rtr(qpn: u32, (peer_function, peer_qpn): (u32, u32)) -> QpModify {
    QpModify {
        peer_function,
        peer_qpn,
        ..to_state(qpn, QpState::RTR)
    }
}
