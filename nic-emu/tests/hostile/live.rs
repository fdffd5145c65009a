//! A client of the emulator process with everything mapped: rings, doorbells, payload. What it does is up to the test.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use ring_proto::admin::{
    Access, AdminOp, AdminStatus, Body, CmAccept, CmListen, Command, QpModify,
};
use ring_proto::eqe::EventType;
use ring_proto::status::{Opcode, QpState};
use ring_proto::sync::Ordering;
use ring_proto::wqe::{Sge, SqWqe, WqeFlags, blocks_for_sges};
use ring_proto::{regs, uar, vfio};
use zerocopy::IntoBytes;

pub(crate) use super::client::memory::HEAP;
use super::client::{ADMIN_CQ, ADMIN_DEPTH, Memory, Rings, recv_wqe};
pub(crate) use super::client::{BASE, RawQp, RawSrq, Region, Wc, full, low};
use super::harness::{PATIENCE, RawClient, sealed};

/// Bytes of memory: what the client keeps for itself, then what the test allocates.
pub(crate) const MEMORY: u64 = 2 << 20;
pub(crate) const SQ_DEPTH: u32 = 32;
pub(crate) const RQ_DEPTH: u32 = 32;
const CQ_DEPTH: u32 = 128;

/// The device did not do what a sound client may expect: the function failed, or a status came that nobody wanted.
#[derive(Debug)]
pub(crate) struct Trouble(
    #[expect(dead_code, reason = "shown when a test fails")] pub(crate) String,
);

type Outcome<T> = Result<T, Trouble>;

/// A client of one function. Memory, rings and doorbells are its [`Rings`].
pub(crate) struct Live {
    pub(crate) raw: RawClient,
    rings: Rings,
    kick: OwnedFd,
    pdn: u32,
}

impl Deref for Live {
    type Target = Rings;

    fn deref(&self) -> &Rings {
        &self.rings
    }
}

impl DerefMut for Live {
    fn deref_mut(&mut self) -> &mut Rings {
        &mut self.rings
    }
}

impl Live {
    /// Attaches to the device socket at `path`, maps memory and doorbells, starts the function.
    pub(crate) fn attach(path: &Path) -> Self {
        let mut raw = RawClient::attached(path);
        let file = sealed(MEMORY);
        let number = std::os::fd::AsRawFd::as_raw_fd(&file);
        raw.map(Some(number), BASE, MEMORY).unwrap();
        let bar2 = raw.region_info(regs::REGION_BAR2).unwrap().1.remove(0);
        let info = vfio::RegionIoFds {
            argsz: 56,
            ..Default::default()
        };
        let mut reply = raw
            .call(vfio::CMD_DEVICE_GET_REGION_IO_FDS, info.as_bytes(), &[])
            .unwrap();
        let mut live = Self {
            raw,
            rings: Rings::new(Memory::new(&file, MEMORY), bar2.as_fd()),
            kick: reply.fds.remove(0),
            pdn: 0,
        };
        live.start().unwrap();
        live
    }

    /// Resets the function whatever state it is in, and starts it with empty memory.
    pub(crate) fn restart(&mut self) -> Outcome<()> {
        self.raw.call(vfio::CMD_DEVICE_RESET, &[], &[]).unwrap();
        // The word that says whether a kick is needed may have been scribbled on while the device slept.
        self.kick();
        self.start()
    }

    fn start(&mut self) -> Outcome<()> {
        self.forget();
        let raw = &mut self.raw;
        let mut register = |offset, value: u64, len: usize| {
            raw.write_region(0, offset, &value.to_le_bytes()[..len])
                .unwrap();
        };
        let status = regs::STATUS_ACKNOWLEDGE | regs::STATUS_DRIVER;
        register(regs::STATUS, status.into(), 4);
        register(regs::DRIVER_FEATURES, regs::FEATURES, 8);
        let status = status | regs::STATUS_FEATURES_OK;
        register(regs::STATUS, status.into(), 4);
        register(regs::ADMIN_SQ_BASE, BASE, 8);
        register(regs::ADMIN_CQ_BASE, ADMIN_CQ, 8);
        register(regs::ADMIN_DEPTH, ADMIN_DEPTH.into(), 4);
        register(regs::STATUS, (status | regs::STATUS_DRIVER_OK).into(), 4);
        self.begin();
        let events = self.plan_eq();
        self.admin(AdminOp::EQ_CREATE, events.to_body())?;
        self.pdn = low(self.admin(AdminOp::PD_ALLOC, Body::default())?[0]);
        Ok(())
    }

    pub(crate) fn pdn(&self) -> u32 {
        self.pdn
    }

    // ---- doorbells ----

    pub(crate) fn mark(&self, slot: u32) {
        if self.dirty(slot) {
            self.kick();
        }
    }

    pub(crate) fn kick(&self) {
        nix::unistd::write(&self.kick, &1u64.to_ne_bytes()).unwrap();
    }

    /// Whether the device gave the function up.
    pub(crate) fn is_failed(&self) -> bool {
        self.bar.failed().load(Ordering::Acquire) != 0
    }

    /// Waits for `look` to see something.
    fn wait<T>(&mut self, what: &str, mut look: impl FnMut(&mut Self) -> Option<T>) -> Outcome<T> {
        let start = Instant::now();
        loop {
            if let Some(seen) = look(self) {
                return Ok(seen);
            }
            if self.is_failed() {
                return Err(Trouble(format!("{what}: the function failed")));
            }
            assert!(start.elapsed() < PATIENCE, "never: {what}");
            std::thread::yield_now();
        }
    }

    // ---- admin ----

    pub(crate) fn admin(&mut self, op: AdminOp, body: Body) -> Outcome<[u64; 2]> {
        match self.answer(op, body)? {
            (AdminStatus::OK, result) => Ok(result),
            (status, _) => Err(Trouble(format!("{op}: {status}"))),
        }
    }

    /// Posts a command and waits for its completion.
    pub(crate) fn answer(&mut self, op: AdminOp, body: Body) -> Outcome<(AdminStatus, [u64; 2])> {
        let command_id = self.admin_producer;
        self.post_admin(Command {
            opcode: op.0,
            flags: 0,
            command_id,
            body,
        });
        self.publish_admin();
        self.mark(uar::ADMIN_SLOT);
        let completion = self.wait("admin completion", |live| live.take_completion())?;
        Ok((AdminStatus(completion.status), completion.result))
    }

    pub(crate) fn region(&mut self, len: u64, access: Access) -> Outcome<Region> {
        let pdn = self.pdn;
        let plan = self.plan_region(len, pdn, access);
        let key = low(self.admin(AdminOp::MR_REG, plan.to_body())?[0]);
        Ok(Region {
            iova: plan.addr,
            key,
        })
    }

    fn cq(&mut self) -> Outcome<(u32, u32, ring_proto::shared::CqeRing)> {
        let plan = self.plan_cq(CQ_DEPTH);
        let cqn = low(self.admin(AdminOp::CQ_CREATE, plan.to_body())?[0]);
        Ok(self.made_cq(&plan, cqn))
    }

    fn initialize(&mut self, qp: RawQp) -> Outcome<RawQp> {
        let body = QpModify {
            qpn: qp.qpn,
            state: QpState::INIT.0.into(),
            ..QpModify::default()
        };
        self.admin(AdminOp::QP_MODIFY, body.to_body())?;
        Ok(qp)
    }

    /// A QP in INIT with a CQ of its own.
    pub(crate) fn qp(&mut self) -> Outcome<RawQp> {
        let cq = self.cq()?;
        let pdn = self.pdn;
        let plan = self.plan_qp((SQ_DEPTH, RQ_DEPTH), cq.0, pdn, full());
        let qpn = low(self.admin(AdminOp::QP_CREATE, plan.to_body())?[0]);
        let qp = self.made_qp(&plan, qpn, cq);
        self.initialize(qp)
    }

    /// A QP in INIT with a CQ of its own that takes its receives from an SRQ.
    pub(crate) fn qp_on_srq(&mut self) -> Outcome<(RawQp, RawSrq)> {
        let cq = self.cq()?;
        let pdn = self.pdn;
        let plan = self.plan_srq(RQ_DEPTH, pdn);
        let srqn = low(self.admin(AdminOp::SRQ_CREATE, plan.to_body())?[0]);
        let srq = self.made_srq(&plan, srqn);
        let plan = self.plan_qp_on_srq(&srq, SQ_DEPTH, cq.0, pdn);
        let qpn = low(self.admin(AdminOp::QP_CREATE_SRQ, plan.to_body())?[0]);
        let qp = self.made_qp_on_srq(&plan, qpn, cq, &srq);
        Ok((self.initialize(qp)?, srq))
    }

    // ---- connections ----

    fn listen(&mut self, at: SocketAddr) -> Outcome<()> {
        let body = CmListen {
            local: at.into(),
            backlog: 8,
            ..CmListen::default()
        };
        self.admin(AdminOp::CM_LISTEN, body.to_body()).map(drop)
    }

    fn connect(&mut self, qpn: u32, from: SocketAddr, to: SocketAddr) -> Outcome<()> {
        let body = self.plan_connect(qpn, (from, to), 0, b"");
        self.admin(AdminOp::CM_CONNECT, body.to_body()).map(drop)
    }

    fn accept(&mut self, qpn: u32) -> Outcome<()> {
        let request = self.await_event(EventType::CM_REQUEST)?;
        let body = CmAccept {
            request,
            qpn,
            ..CmAccept::default()
        };
        self.admin(AdminOp::CM_ACCEPT, body.to_body()).map(drop)
    }

    /// Waits for an event of a kind; gives its code. Others are dropped.
    fn await_event(&mut self, wanted: EventType) -> Outcome<u32> {
        self.wait("event", |live| {
            let (event, _, code) = live.take_event()?;
            (event == wanted).then_some(code)
        })
    }

    // ---- posting ----

    pub(crate) fn post_send(&self, qp: &mut RawQp, wqe: &SqWqe) {
        self.write_send(qp, &[zerocopy::transmute!(*wqe)]);
        self.publish_qp(qp);
        self.mark(qp.slot);
    }

    pub(crate) fn post_recv(&self, qp: &mut RawQp, wr_id: u64, sge: Sge) {
        self.write_recv(qp, recv_wqe(wr_id, &[sge]));
        self.publish_qp(qp);
        self.mark(qp.slot);
    }

    pub(crate) fn post_shared(&self, srq: &mut RawSrq, wr_id: u64, sge: Sge) {
        self.write_srq(srq, wr_id, &[sge]);
        self.publish_srq(srq);
        self.mark(srq.slot);
    }
}

/// A signaled WQE with one SGE.
pub(crate) fn wqe(opcode: Opcode, wr_id: u64, sge: Sge) -> SqWqe {
    let mut wqe = SqWqe {
        opcode: opcode.0,
        flags: WqeFlags::SIGNALED.bits(),
        blocks: blocks_for_sges(1),
        count: 1,
        wr_id,
        total: sge.len,
        ..SqWqe::default()
    };
    wqe.sges[0] = sge;
    wqe
}

/// Address of node a or b, as the harness gives them.
pub(crate) fn at(node: u8, port: u16) -> SocketAddr {
    (Ipv4Addr::new(127, 77, 9, node), port).into()
}

/// Connects two QPs, of a client on node a and of one on node b.
pub(crate) fn join((a, qa): (&mut Live, u32), (b, qb): (&mut Live, u32), port: u16) -> Outcome<()> {
    b.listen(at(2, port))?;
    a.connect(qa, at(1, 999), at(2, port))?;
    b.accept(qb)?;
    a.await_event(EventType::CM_ESTABLISHED).map(drop)
}
