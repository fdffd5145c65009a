//! A client of the emulator process with everything mapped: rings, doorbells, payload. What it does is up to the test.
#![expect(
    unsafe_code,
    reason = "maps its own memory and the device's BAR2, as a client does"
)]

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::ptr::NonNull;
use std::time::Instant;

use memmap2::{MmapOptions, MmapRaw};
use ring_proto::admin::{
    Access, AdminOp, AdminStatus, Body, CmAccept, CmConnect, CmListen, CmRecord, Command,
    Completion, MrReg, QpCreate, QpModify, QueueCreate,
};
use ring_proto::cqe::{Cqe, Publish};
use ring_proto::eqe::{self, Eqe, EventType};
use ring_proto::index::Depth;
use ring_proto::shared::{Bar2, CommandRing, CqeRing, EqeRing, Ring, WqeRing};
use ring_proto::status::{Opcode, QpState, Syndrome, WcStatus};
use ring_proto::sync::Ordering;
use ring_proto::wqe::{RqWqe, Sge, SqWqe, WqeFlags, blocks_for_sges};
use ring_proto::{copy, doorbell, regs, uar, vfio};
use zerocopy::IntoBytes;

use super::harness::{PATIENCE, RawClient, sealed};

/// Where the memory starts in the function's IOVA space.
pub(crate) const BASE: u64 = 1 << 32;
/// Bytes of memory: admin rings, EQ, connection record, then what the test allocates.
pub(crate) const MEMORY: u64 = 2 << 20;
/// First byte behind what the client keeps for itself.
pub(crate) const HEAP: u64 = 0x1_0000;
const ADMIN_CQ: u64 = 0x1000;
const EVENTS: u64 = 0x2000;
const RECORD: u64 = 0x8000;
const ADMIN_DEPTH: u32 = 16;
const EVENT_DEPTH: u32 = 256;
pub(crate) const SQ_DEPTH: u32 = 32;
pub(crate) const RQ_DEPTH: u32 = 32;
const CQ_DEPTH: u32 = 128;

/// The device did not do what a sound client may expect: the function failed, or a status came that nobody wanted.
#[derive(Debug)]
pub(crate) struct Trouble(
    #[expect(dead_code, reason = "shown when a test fails")] pub(crate) String,
);

type Outcome<T> = Result<T, Trouble>;

/// A client of one function.
pub(crate) struct Live {
    pub(crate) raw: RawClient,
    pub(crate) memory: MmapRaw,
    pub(crate) bar_map: MmapRaw,
    pub(crate) bar: Bar2,
    kick: OwnedFd,
    commands: CommandRing,
    completions: CqeRing,
    events: EqeRing,
    producer: u32,
    consumer: u32,
    event_consumer: u32,
    event_slot: u32,
    next: u64,
    next_slot: u32,
    pdn: u32,
}

/// A QP with its CQ.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LiveQp {
    pub(crate) qpn: u32,
    pub(crate) slot: u32,
    pub(crate) cq_slot: u32,
    pub(crate) sq: WqeRing,
    pub(crate) rq: WqeRing,
    cq: CqeRing,
    pub(crate) sq_producer: u32,
    pub(crate) rq_producer: u32,
    pub(crate) cq_consumer: u32,
}

/// A completion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Wc {
    pub(crate) wr_id: u64,
    pub(crate) byte_len: u32,
    pub(crate) status: WcStatus,
    pub(crate) syndrome: Syndrome,
    pub(crate) opcode: u8,
}

/// A registered range.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Region {
    pub(crate) iova: u64,
    pub(crate) key: u32,
}

impl Region {
    pub(crate) fn sge(&self, offset: u64, len: u32) -> Sge {
        Sge {
            addr: self.iova + offset,
            len,
            lkey: self.key,
        }
    }
}

fn depth(entries: u32) -> Depth {
    Depth::new(entries).unwrap()
}

impl Live {
    /// Attaches to the device socket at `path`, maps memory and doorbells, starts the function.
    pub(crate) fn attach(path: &Path) -> Self {
        let mut raw = RawClient::attached(path);
        let fd = sealed(MEMORY);
        let memory = MmapOptions::new().map_raw(fd.as_raw_fd()).unwrap();
        raw.map(Some(fd.as_raw_fd()), BASE, MEMORY).unwrap();
        let bar_fd = raw.region_info(regs::REGION_BAR2).unwrap().1.remove(0);
        let bar_map = MmapOptions::new().map_raw(bar_fd.as_raw_fd()).unwrap();
        let base = NonNull::new(bar_map.as_mut_ptr()).unwrap();
        // SAFETY: 1. A fresh mapping of all of BAR2, kept in the client. 2. Reached through this view and volatile bytes only.
        let bar = unsafe { Bar2::new(base) };
        let info = vfio::RegionIoFds {
            argsz: 56,
            ..Default::default()
        };
        let mut reply = raw
            .call(vfio::CMD_DEVICE_GET_REGION_IO_FDS, info.as_bytes(), &[])
            .unwrap();
        let place = |offset| {
            let offset = usize::try_from(offset).unwrap();
            NonNull::new(memory.as_mut_ptr().wrapping_add(offset))
                .unwrap()
                .cast()
        };
        // SAFETY: 1. Inside the fresh mapping of MEMORY bytes. 2. Reached through the views, `copy` and volatile bytes only.
        let commands = unsafe { Ring::new(place(0), depth(ADMIN_DEPTH)) };
        // SAFETY: as above, behind the commands.
        let completions = unsafe { Ring::new(place(ADMIN_CQ), depth(ADMIN_DEPTH)) };
        // SAFETY: as above, behind the completions.
        let events = unsafe { Ring::new(place(EVENTS), depth(EVENT_DEPTH)) };
        let mut live = Self {
            raw,
            memory,
            bar_map,
            bar,
            kick: reply.fds.remove(0),
            commands,
            completions,
            events,
            producer: 0,
            consumer: 0,
            event_consumer: 0,
            event_slot: 0,
            next: HEAP,
            next_slot: 1,
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
        self.write(BASE, &vec![0; usize::try_from(MEMORY).unwrap()]);
        (self.producer, self.consumer, self.event_consumer) = (0, 0, 0);
        (self.next, self.next_slot) = (HEAP, 1);
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
        register(regs::ADMIN_CQ_BASE, BASE + ADMIN_CQ, 8);
        register(regs::ADMIN_DEPTH, ADMIN_DEPTH.into(), 4);
        register(regs::STATUS, (status | regs::STATUS_DRIVER_OK).into(), 4);
        self.event_slot = self.slot();
        let events = QueueCreate {
            ring: BASE + EVENTS,
            depth: EVENT_DEPTH,
            slot: self.event_slot,
        };
        self.admin(AdminOp::EQ_CREATE, events.to_body())?;
        self.pdn = low(self.admin(AdminOp::PD_ALLOC, Body::default())?[0]);
        Ok(())
    }

    // ---- memory ----

    pub(crate) fn alloc(&mut self, len: u64) -> u64 {
        let at = self.next;
        self.next += len.next_multiple_of(64);
        assert!(self.next <= MEMORY, "the client's memory is used up");
        BASE + at
    }

    pub(crate) fn pdn(&self) -> u32 {
        self.pdn
    }

    fn slot(&mut self) -> u32 {
        self.next_slot += 1;
        self.next_slot - 1
    }

    fn place(&self, iova: u64, len: usize) -> *mut u8 {
        let offset = usize::try_from(iova - BASE).unwrap();
        assert!(offset + len <= self.memory.len());
        self.memory.as_mut_ptr().wrapping_add(offset)
    }

    pub(crate) fn write(&self, iova: u64, bytes: &[u8]) {
        // SAFETY: 1. `place` checks the range; `bytes` is ours. 2. Disjoint memory. 3. No reference covers the mapping.
        unsafe { copy::copy(self.place(iova, bytes.len()), bytes.as_ptr(), bytes.len()) };
    }

    pub(crate) fn read(&self, iova: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        // SAFETY: 1. `place` checks the range; `bytes` is ours. 2. Disjoint memory. 3. No reference covers the mapping.
        unsafe { copy::copy(bytes.as_mut_ptr(), self.place(iova, len), len) };
        bytes
    }

    /// Flips a bit of the memory, while the device reads and writes it.
    pub(crate) fn flip_memory(&self, offset: u64, bit: u32) {
        flip(&self.memory, offset, bit);
    }

    /// Flips a bit of BAR2.
    pub(crate) fn flip_bar(&self, offset: u64, bit: u32) {
        flip(&self.bar_map, offset, bit);
    }

    fn ring<const WORDS: usize>(&self, iova: u64, entries: u32) -> Ring<WORDS> {
        let depth = depth(entries);
        let len = usize::try_from(Ring::<WORDS>::bytes(depth)).unwrap();
        let place = NonNull::new(self.place(iova, len)).unwrap();
        // SAFETY: 1. `place` checks the range, aligned by `alloc`. 2. Reached through views, `copy` and volatile bytes only.
        unsafe { Ring::new(place.cast(), depth) }
    }

    // ---- doorbells ----

    pub(crate) fn mark(&self, slot: u32) {
        if doorbell::mark(self.bar.dirty_bits(slot), self.bar.parked()) {
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
    pub(crate) fn wait<T>(
        &mut self,
        what: &str,
        mut look: impl FnMut(&mut Self) -> Option<T>,
    ) -> Outcome<T> {
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
        let command = Command {
            opcode: op.0,
            flags: 0,
            command_id: self.producer,
            body,
        };
        self.commands
            .write(self.producer, &zerocopy::transmute!(command));
        self.producer = self.producer.wrapping_add(1);
        let line = self.bar.line(uar::ADMIN_SLOT);
        line.sq_producer().store(self.producer, Ordering::Release);
        self.mark(uar::ADMIN_SLOT);
        let words = self.wait("admin completion", |live| {
            live.completions.published(live.consumer)
        })?;
        self.consumer = self.consumer.wrapping_add(1);
        let line = self.bar.line(uar::ADMIN_SLOT);
        line.cq_consumer().store(self.consumer, Ordering::Release);
        let completion: Completion = zerocopy::transmute!(words);
        Ok((AdminStatus(completion.status), completion.result))
    }

    pub(crate) fn region(&mut self, len: u64, access: Access) -> Outcome<Region> {
        let iova = self.alloc(len);
        self.region_at(iova, len, access)
    }

    pub(crate) fn region_at(&mut self, iova: u64, len: u64, access: Access) -> Outcome<Region> {
        let body = MrReg {
            addr: iova,
            len,
            pdn: self.pdn,
            access: access.bits(),
            ..MrReg::default()
        };
        let key = low(self.admin(AdminOp::MR_REG, body.to_body())?[0]);
        Ok(Region { iova, key })
    }

    /// A QP in INIT with a CQ of its own.
    pub(crate) fn qp(&mut self) -> Outcome<LiveQp> {
        let cq_ring = self.alloc(Ring::<4>::bytes(depth(CQ_DEPTH)));
        let cq_slot = self.slot();
        let body = QueueCreate {
            ring: cq_ring,
            depth: CQ_DEPTH,
            slot: cq_slot,
        };
        let cqn = low(self.admin(AdminOp::CQ_CREATE, body.to_body())?[0]);
        let sq_ring = self.alloc(64 * u64::from(SQ_DEPTH));
        let rq_ring = self.alloc(64 * u64::from(RQ_DEPTH));
        let slot = self.slot();
        let body = QpCreate {
            sq_ring,
            rq_ring,
            sq_depth: SQ_DEPTH,
            rq_depth: RQ_DEPTH,
            pdn: self.pdn,
            send_cqn: cqn,
            recv_cqn: cqn,
            slot,
            access: everything().bits(),
            ..QpCreate::default()
        };
        let qpn = low(self.admin(AdminOp::QP_CREATE, body.to_body())?[0]);
        let body = QpModify {
            qpn,
            state: QpState::INIT.0.into(),
            ..QpModify::default()
        };
        self.admin(AdminOp::QP_MODIFY, body.to_body())?;
        Ok(LiveQp {
            qpn,
            slot,
            cq_slot,
            sq: self.ring(sq_ring, SQ_DEPTH),
            rq: self.ring(rq_ring, RQ_DEPTH),
            cq: self.ring(cq_ring, CQ_DEPTH),
            sq_producer: 0,
            rq_producer: 0,
            cq_consumer: 0,
        })
    }

    // ---- connections ----

    pub(crate) fn listen(&mut self, at: SocketAddr) -> Outcome<()> {
        let body = CmListen {
            local: at.into(),
            backlog: 8,
            ..CmListen::default()
        };
        self.admin(AdminOp::CM_LISTEN, body.to_body()).map(drop)
    }

    pub(crate) fn connect(&mut self, qpn: u32, from: SocketAddr, to: SocketAddr) -> Outcome<()> {
        let record = CmRecord {
            source: from.into(),
            destination: to.into(),
            ..CmRecord::default()
        };
        self.write(BASE + RECORD, record.as_bytes());
        let body = CmConnect {
            record: BASE + RECORD,
            qpn,
            timeout_ms: 0,
        };
        self.admin(AdminOp::CM_CONNECT, body.to_body()).map(drop)
    }

    pub(crate) fn accept(&mut self, qpn: u32) -> Outcome<()> {
        let request = self.await_event(EventType::CM_REQUEST)?;
        let body = CmAccept {
            request,
            qpn,
            ..CmAccept::default()
        };
        self.admin(AdminOp::CM_ACCEPT, body.to_body()).map(drop)
    }

    /// Waits for an event of a kind; gives its code. Others are dropped.
    pub(crate) fn await_event(&mut self, wanted: EventType) -> Outcome<u32> {
        self.wait("event", |live| {
            let element: Eqe = zerocopy::transmute!(live.events.published(live.event_consumer)?);
            live.event_consumer = live.event_consumer.wrapping_add(1);
            let line = live.bar.line(live.event_slot);
            line.cq_consumer()
                .store(live.event_consumer, Ordering::Release);
            (eqe::event_type(element.publish) == wanted).then_some(element.code)
        })
    }

    // ---- posting ----

    pub(crate) fn post_send(&self, qp: &mut LiveQp, wqe: &SqWqe) {
        qp.sq.write(qp.sq_producer, &zerocopy::transmute!(*wqe));
        qp.sq_producer = qp.sq_producer.wrapping_add(1);
        let line = self.bar.line(qp.slot);
        line.sq_producer().store(qp.sq_producer, Ordering::Release);
        self.mark(qp.slot);
    }

    pub(crate) fn post_recv(&self, qp: &mut LiveQp, wr_id: u64, sge: Sge) {
        let mut wqe = RqWqe {
            wr_id,
            count: 1,
            ..RqWqe::default()
        };
        wqe.sges[0] = sge;
        qp.rq.write(qp.rq_producer, &zerocopy::transmute!(wqe));
        qp.rq_producer = qp.rq_producer.wrapping_add(1);
        let line = self.bar.line(qp.slot);
        line.rq_producer().store(qp.rq_producer, Ordering::Release);
        self.mark(qp.slot);
    }

    pub(crate) fn poll(&self, qp: &mut LiveQp) -> Option<Wc> {
        let cqe: Cqe = zerocopy::transmute!(qp.cq.published(qp.cq_consumer)?);
        qp.cq_consumer = qp.cq_consumer.wrapping_add(1);
        let line = self.bar.line(qp.cq_slot);
        line.cq_consumer().store(qp.cq_consumer, Ordering::Release);
        let publish = Publish::unpack(cqe.publish);
        Some(Wc {
            wr_id: cqe.wr_id,
            byte_len: cqe.byte_len,
            status: publish.status,
            syndrome: publish.syndrome,
            opcode: cqe.qpn_opcode.to_le_bytes()[3],
        })
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

/// The rights of this suite's QPs and regions.
pub(crate) fn everything() -> Access {
    Access::LOCAL_WRITE | Access::REMOTE_WRITE | Access::REMOTE_READ
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

pub(crate) fn low(word: u64) -> u32 {
    u32::try_from(word & 0xffff_ffff).unwrap()
}

fn flip(map: &MmapRaw, offset: u64, bit: u32) {
    let offset = usize::try_from(offset).unwrap();
    assert!(offset < map.len());
    let place = map.as_mut_ptr().wrapping_add(offset);
    // SAFETY: in bounds by the assertion, valid for the life of the mapping; no reference but to atomics covers it.
    let byte = unsafe { place.read_volatile() };
    // SAFETY: as above.
    unsafe { place.write_volatile(byte ^ (1 << (bit % 8))) };
}
