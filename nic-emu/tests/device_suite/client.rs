//! A scripted raw client: its own sealed memfd, WQEs and commands written word by word, doorbells rung by hand. It may lie.
#![expect(
    unsafe_code,
    reason = "maps its own memory and the device's BAR2, as a client does"
)]

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ffi::CStr;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;

use memmap2::{MmapOptions, MmapRaw};
use nic_emu::device::{Device, DeviceOptions, Finding, WindowRequest};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd;
use ring_proto::admin::{
    Access, AdminOp, AdminStatus, Body, CmAccept, CmConnect, CmListen, CmRecord, Command,
    Completion, Hold, HoldClone, MrReg, MwAlloc, Named, QpCreate, QpCreateSrq, QpModify,
    QueueCreate, Refusal, SrqCreate,
};
use ring_proto::cqe::{Cqe, Publish};
use ring_proto::eqe::{self, Eqe, EventType};
use ring_proto::ids::{FunctionId, NodeId};
use ring_proto::index::Depth;
use ring_proto::regs;
use ring_proto::shared::{Bar2, CommandRing, CqeRing, EqeRing, Ring, WqeRing};
use ring_proto::status::{Opcode, QpState, Syndrome, WcStatus};
use ring_proto::sync::{AtomicU64, Ordering};
use ring_proto::wqe::{RqWqe, Sge, SqWqe, WqeFlags};
use ring_proto::{copy, doorbell, uar};
use zerocopy::IntoBytes;

/// Where a client's memory starts in its IOVA space.
pub(crate) const BASE: u64 = 0x1_0000_0000;
/// Bytes of a client's memory.
pub(crate) const MEMORY: u64 = 8 << 20;
/// Where a client writes its connection records: behind the admin rings and the EQ.
const RECORD_AT: u64 = 0x8000;
/// Entries of the admin rings.
pub(crate) const ADMIN_DEPTH: u32 = 16;
/// Blocks of an SQ made by [`Client::qp`].
pub(crate) const SQ_DEPTH: u32 = 64;
/// WQEs of an RQ made by [`Client::qp`].
pub(crate) const RQ_DEPTH: u32 = 32;
/// Entries of a CQ made by [`Client::qp`].
pub(crate) const CQ_DEPTH: u32 = 128;

pub(crate) const A: Ipv4Addr = Ipv4Addr::new(127, 77, 0, 1);
pub(crate) const B: Ipv4Addr = Ipv4Addr::new(127, 77, 0, 2);

/// A device in virtual time with nodes a and b.
pub(crate) fn device() -> (Device, NodeId, NodeId) {
    device_with(DeviceOptions {
        virtual_time: true,
        validate: VALIDATING.get(),
        ..DeviceOptions::default()
    })
}

thread_local! {
    /// Devices of this thread are made with the validation layer.
    static VALIDATING: Cell<bool> = const { Cell::new(false) };
    /// How often they were looked at, and what was found.
    static FOUND: RefCell<(u64, Vec<Finding>)> = const { RefCell::new((0, Vec::new())) };
}

/// Runs a test with the validation layer on; how often it was looked at, and what was found.
pub(crate) fn validating(case: fn()) -> (u64, Vec<Finding>) {
    VALIDATING.set(true);
    case();
    VALIDATING.set(false);
    FOUND.take()
}

pub(crate) fn device_with(options: DeviceOptions) -> (Device, NodeId, NodeId) {
    let mut device = Device::new(options);
    let a = device.add_node("a", &[A]);
    let b = device.add_node("b", &[B]);
    (device, a, b)
}

thread_local! {
    /// Syndromes that clients of this thread were told.
    static TOLD: RefCell<BTreeSet<Syndrome>> = const { RefCell::new(BTreeSet::new()) };
}

/// A client was told this syndrome.
pub(crate) fn note(syndrome: Syndrome) {
    TOLD.with_borrow_mut(|told| told.insert(syndrome));
}

/// Takes what the clients of this thread were told so far.
pub(crate) fn told() -> BTreeSet<Syndrome> {
    TOLD.take()
}

/// Pumps until the device would sleep.
pub(crate) fn pump(device: &mut Device) {
    for _ in 0..100_000 {
        if device.pump().served == 0 && device.try_park() {
            if VALIDATING.get() {
                FOUND.with_borrow_mut(|(looks, found)| {
                    *looks += 1;
                    found.extend(device.findings());
                });
            }
            return;
        }
    }
    panic!("the device never comes to rest");
}

/// Makes a memory file of `len` bytes with these seals.
pub(crate) fn memfd(len: u64, seals: SealFlag) -> OwnedFd {
    const NAME: &CStr = c"sanlab-raw-client";
    let fd = memfd_create(NAME, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
    unistd::ftruncate(&fd, i64::try_from(len).unwrap()).unwrap();
    if !seals.is_empty() {
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).unwrap();
    }
    fd
}

/// A client of one function.
pub(crate) struct Client {
    pub(crate) function: FunctionId,
    pub(crate) fd: OwnedFd,
    map: MmapRaw,
    bar_map: MmapRaw,
    pub(crate) bar: Bar2,
    next: u64,
    next_slot: u32,
    admin_sq: CommandRing,
    admin_cq: CqeRing,
    pub(crate) admin_producer: u32,
    admin_consumer: u32,
    events: EqeRing,
    pub(crate) event_slot: u32,
    pub(crate) event_consumer: u32,
    pub(crate) pdn: u32,
}

/// A QP of a client with its CQ.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawQp {
    pub(crate) qpn: u32,
    pub(crate) slot: u32,
    pub(crate) cqn: u32,
    pub(crate) cq_slot: u32,
    pub(crate) sq: WqeRing,
    pub(crate) rq: WqeRing,
    pub(crate) cq: CqeRing,
    pub(crate) sq_producer: u32,
    pub(crate) rq_producer: u32,
    pub(crate) cq_consumer: u32,
}

/// A shared receive queue of a client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawSrq {
    pub(crate) srqn: u32,
    pub(crate) slot: u32,
    pub(crate) ring: WqeRing,
    pub(crate) producer: u32,
}

/// A CQE as tests look at it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Wc {
    pub(crate) wr_id: u64,
    pub(crate) byte_len: u32,
    pub(crate) imm: u32,
    pub(crate) qpn: u32,
    pub(crate) opcode: u8,
    pub(crate) src_qpn: u32,
    pub(crate) flags: u32,
    pub(crate) wqe_counter: u32,
    pub(crate) status: WcStatus,
    pub(crate) syndrome: Syndrome,
}

/// A registered part of a client's memory.
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

/// All rights.
pub(crate) fn full() -> Access {
    Access::all()
}

impl Client {
    /// Attaches, maps its memory, starts the admin queue, makes an EQ and a PD.
    pub(crate) fn attach(device: &mut Device, node: NodeId) -> Self {
        let mut client = Self::attach_bare(device, node);
        client.start(device);
        client
    }

    /// Attaches and maps its memory.
    pub(crate) fn attach_bare(device: &mut Device, node: NodeId) -> Self {
        let function = device.attach(node).unwrap();
        let fd = memfd(MEMORY, SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW);
        let map = MmapOptions::new().map_raw(fd.as_raw_fd()).unwrap();
        device
            .map(
                function,
                WindowRequest {
                    fd: Some(fd.try_clone().unwrap()),
                    offset: 0,
                    iova: BASE,
                    len: MEMORY,
                    read: true,
                    write: true,
                },
            )
            .unwrap();
        let bar_fd = device.bar2(function).unwrap().as_raw_fd();
        let bar_map = MmapOptions::new().map_raw(bar_fd).unwrap();
        let base = NonNull::new(bar_map.as_mut_ptr()).unwrap();
        // SAFETY: 1. A fresh mapping of all of BAR2, kept in the client. 2. Nothing else in the client reaches it.
        let bar = unsafe { Bar2::new(base) };
        let depth = Depth::new(ADMIN_DEPTH).unwrap();
        let (commands, completions) = (Ring::<8>::bytes(depth), Ring::<4>::bytes(depth));
        let place = |offset| NonNull::new(map.as_mut_ptr().wrapping_add(offset)).unwrap();
        // SAFETY: 1. The first pages of a fresh mapping of MEMORY bytes. 2. Reached through the views and `copy` only.
        let admin_sq = unsafe { Ring::new(place(0).cast(), depth) };
        let cq_at = usize::try_from(commands).unwrap();
        // SAFETY: as above, behind the commands.
        let admin_cq = unsafe { Ring::new(place(cq_at).cast(), depth) };
        let events = Depth::new(256).unwrap();
        let eq_at = usize::try_from(commands + completions).unwrap();
        // SAFETY: as above, behind the completions.
        let events = unsafe { Ring::new(place(eq_at).cast(), events) };
        Self {
            function,
            fd,
            map,
            bar_map,
            bar,
            next: 0x10_000,
            next_slot: 1,
            admin_sq,
            admin_cq,
            admin_producer: 0,
            admin_consumer: 0,
            events,
            event_slot: 0,
            event_consumer: 0,
            pdn: 0,
        }
    }

    /// Starts the admin queue, makes an EQ and a PD.
    pub(crate) fn start(&mut self, device: &mut Device) {
        let depth = Depth::new(ADMIN_DEPTH).unwrap();
        let write = |device: &mut Device, register, len, value| {
            device
                .write_register(self.function, register, len, value)
                .unwrap();
        };
        write(device, regs::ADMIN_SQ_BASE, 8, BASE);
        write(
            device,
            regs::ADMIN_CQ_BASE,
            8,
            BASE + Ring::<8>::bytes(depth),
        );
        write(device, regs::ADMIN_DEPTH, 4, ADMIN_DEPTH.into());
        write(device, regs::DRIVER_FEATURES, 8, regs::FEATURES);
        let status = regs::STATUS_ACKNOWLEDGE
            | regs::STATUS_DRIVER
            | regs::STATUS_FEATURES_OK
            | regs::STATUS_DRIVER_OK;
        write(device, regs::STATUS, 4, status.into());
        assert_eq!(
            device
                .read_register(self.function, regs::STATUS, 4)
                .unwrap(),
            u64::from(status)
        );
        self.zero(BASE, 0x10_000);
        self.admin_producer = 0;
        self.admin_consumer = 0;
        self.event_consumer = 0;
        self.event_slot = self.slot();
        self.ok(
            device,
            AdminOp::EQ_CREATE,
            QueueCreate {
                ring: BASE + Ring::<8>::bytes(depth) + Ring::<4>::bytes(depth),
                depth: 256,
                slot: self.event_slot,
            }
            .to_body(),
        );
        self.pdn = self.pd(device);
    }

    // ---- memory ----

    pub(crate) fn alloc(&mut self, len: u64) -> u64 {
        let at = self.next;
        self.next += len.next_multiple_of(64);
        assert!(self.next <= MEMORY, "the client's memory is used up");
        BASE + at
    }

    pub(crate) fn slot(&mut self) -> u32 {
        let slot = self.next_slot;
        self.next_slot += 1;
        slot
    }

    fn place(&self, iova: u64, len: usize) -> *mut u8 {
        let offset = usize::try_from(iova - BASE).unwrap();
        assert!(offset + len <= self.map.len());
        self.map.as_mut_ptr().wrapping_add(offset)
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

    /// A word of its memory, as its program shares it with the device.
    pub(crate) fn word(&self, iova: u64) -> &AtomicU64 {
        let place = NonNull::new(self.place(iova, 8)).unwrap();
        // SAFETY: 1. `place` checks the range, callers pass multiples of 8, and the mapping lives in `self`. 2. Nothing but views,
        //         atomics and `copy` reach it.
        unsafe { ring_proto::shared::word(place.cast()) }
    }

    pub(crate) fn zero(&self, iova: u64, len: usize) {
        self.write(iova, &vec![0; len]);
    }

    /// Writes one byte anywhere in BAR2, as a broken client may.
    pub(crate) fn scribble_bar(&self, offset: usize, byte: u8) {
        assert!(offset < self.bar_map.len());
        let place = self.bar_map.as_mut_ptr().wrapping_add(offset);
        // SAFETY: in bounds by the assertion, and no reference other than to atomics covers the mapping.
        unsafe { place.write_volatile(byte) };
    }

    pub(crate) fn ring<const WORDS: usize>(&self, iova: u64, depth: u32) -> Ring<WORDS> {
        let depth = Depth::new(depth).unwrap();
        let len = usize::try_from(Ring::<WORDS>::bytes(depth)).unwrap();
        let place = NonNull::new(self.place(iova, len)).unwrap();
        // SAFETY: 1. `place` checks the range, aligned by `alloc`. 2. Reached through views and `copy` only.
        unsafe { Ring::new(place.cast(), depth) }
    }

    // ---- doorbells ----

    /// Marks a slot dirty; kicks when the device says so.
    pub(crate) fn mark(&self, device: &mut Device, slot: u32) {
        if doorbell::mark(self.bar.dirty_bits(slot), self.bar.parked()) {
            device.kicked(self.function);
        }
    }

    // ---- admin ----

    /// Posts one command and returns its completion.
    pub(crate) fn admin(
        &mut self,
        device: &mut Device,
        op: AdminOp,
        body: Body,
    ) -> (AdminStatus, [u64; 2]) {
        self.post_admin(Command {
            opcode: op.0,
            flags: 0,
            command_id: self.admin_producer,
            body,
        });
        self.ring_admin(device);
        pump(device);
        self.admin_completion().expect("the command completed")
    }

    pub(crate) fn post_admin(&mut self, command: Command) {
        self.admin_sq
            .write(self.admin_producer, &zerocopy::transmute!(command));
        self.admin_producer = self.admin_producer.wrapping_add(1);
    }

    pub(crate) fn ring_admin(&self, device: &mut Device) {
        self.bar
            .line(uar::ADMIN_SLOT)
            .sq_producer()
            .store(self.admin_producer, Ordering::Release);
        self.mark(device, uar::ADMIN_SLOT);
    }

    pub(crate) fn admin_completion(&mut self) -> Option<(AdminStatus, [u64; 2])> {
        let words = self.admin_cq.published(self.admin_consumer)?;
        let completion: Completion = zerocopy::transmute!(words);
        assert_eq!(completion.command_id, self.admin_consumer);
        if completion.status != AdminStatus::OK.0 {
            note(Refusal::unpack(completion.result[0]).syndrome);
        }
        self.admin_consumer = self.admin_consumer.wrapping_add(1);
        self.bar
            .line(uar::ADMIN_SLOT)
            .cq_consumer()
            .store(self.admin_consumer, Ordering::Release);
        Some((AdminStatus(completion.status), completion.result))
    }

    /// A command that must succeed.
    pub(crate) fn ok(&mut self, device: &mut Device, op: AdminOp, body: Body) -> [u64; 2] {
        let (status, result) = self.admin(device, op, body);
        assert_eq!(status, AdminStatus::OK, "{op}");
        result
    }

    pub(crate) fn status(&mut self, device: &mut Device, op: AdminOp, body: Body) -> AdminStatus {
        self.admin(device, op, body).0
    }

    pub(crate) fn named(&mut self, device: &mut Device, op: AdminOp, id: u32) -> AdminStatus {
        self.status(device, op, Named { id, reserved: 0 }.to_body())
    }

    pub(crate) fn pd(&mut self, device: &mut Device) -> u32 {
        low(self.ok(device, AdminOp::PD_ALLOC, Body::default())[0])
    }

    pub(crate) fn region(&mut self, device: &mut Device, len: u64, access: Access) -> Region {
        self.region_of(device, len, access, self.pdn, 0)
    }

    pub(crate) fn region_of(
        &mut self,
        device: &mut Device,
        len: u64,
        access: Access,
        pdn: u32,
        owner_qpn: u32,
    ) -> Region {
        let iova = self.alloc(len);
        let body = MrReg {
            addr: iova,
            len,
            pdn,
            access: access.bits(),
            owner_qpn,
            reserved: 0,
        };
        let result = self.ok(device, AdminOp::MR_REG, body.to_body());
        Region {
            iova,
            key: low(result[0]),
        }
    }

    /// A memory window in a protection domain.
    pub(crate) fn mw(&mut self, device: &mut Device, pdn: u32, kind: u32) -> u32 {
        let body = MwAlloc { pdn, kind };
        low(self.ok(device, AdminOp::MW_ALLOC, body.to_body())[0])
    }

    /// A CQ; its number, slot and ring.
    pub(crate) fn cq(&mut self, device: &mut Device, depth: u32) -> (u32, u32, CqeRing) {
        let depth_of = Depth::new(depth).unwrap();
        let iova = self.alloc(Ring::<4>::bytes(depth_of));
        let slot = self.slot();
        let body = QueueCreate {
            ring: iova,
            depth,
            slot,
        };
        let cqn = low(self.ok(device, AdminOp::CQ_CREATE, body.to_body())[0]);
        (cqn, slot, self.ring(iova, depth))
    }

    /// A QP in INIT with a CQ of its own.
    pub(crate) fn qp(&mut self, device: &mut Device) -> RawQp {
        self.qp_with(device, SQ_DEPTH, RQ_DEPTH, CQ_DEPTH, full(), self.pdn)
    }

    pub(crate) fn qp_with(
        &mut self,
        device: &mut Device,
        sq_depth: u32,
        rq_depth: u32,
        cq_depth: u32,
        access: Access,
        pdn: u32,
    ) -> RawQp {
        let (cqn, cq_slot, cq) = self.cq(device, cq_depth);
        let mut qp = self.qp_on(device, sq_depth, rq_depth, (cqn, cq_slot, cq), access, pdn);
        self.modify(device, &mut qp, QpState::INIT);
        qp
    }

    /// A QP in RESET on a CQ that exists.
    pub(crate) fn qp_on(
        &mut self,
        device: &mut Device,
        sq_depth: u32,
        rq_depth: u32,
        (cqn, cq_slot, cq): (u32, u32, CqeRing),
        access: Access,
        pdn: u32,
    ) -> RawQp {
        let sq_ring = self.alloc(64 * u64::from(sq_depth));
        let rq_ring = self.alloc(64 * u64::from(rq_depth));
        let slot = self.slot();
        let body = QpCreate {
            sq_ring,
            rq_ring,
            sq_depth,
            rq_depth,
            pdn,
            send_cqn: cqn,
            recv_cqn: cqn,
            slot,
            holder: 0,
            access: access.bits(),
        };
        let qpn = low(self.ok(device, AdminOp::QP_CREATE, body.to_body())[0]);
        RawQp {
            qpn,
            slot,
            cqn,
            cq_slot,
            sq: self.ring(sq_ring, sq_depth),
            rq: self.ring(rq_ring, rq_depth),
            cq,
            sq_producer: 0,
            rq_producer: 0,
            cq_consumer: 0,
        }
    }

    /// An SRQ in a protection domain.
    pub(crate) fn srq(&mut self, device: &mut Device, depth: u32, pdn: u32) -> RawSrq {
        let ring = self.alloc(64 * u64::from(depth));
        let slot = self.slot();
        let body = SrqCreate {
            ring,
            depth,
            pdn,
            slot,
            limit: 0,
        };
        let srqn = low(self.ok(device, AdminOp::SRQ_CREATE, body.to_body())[0]);
        RawSrq {
            srqn,
            slot,
            ring: self.ring(ring, depth),
            producer: 0,
        }
    }

    /// A QP in INIT that takes its receives from an SRQ.
    pub(crate) fn qp_on_srq(&mut self, device: &mut Device, srq: &RawSrq, pdn: u32) -> RawQp {
        let (cqn, cq_slot, cq) = self.cq(device, CQ_DEPTH);
        let sq_ring = self.alloc(64 * u64::from(SQ_DEPTH));
        let slot = self.slot();
        let body = QpCreateSrq {
            sq_ring,
            sq_depth: SQ_DEPTH,
            srqn: srq.srqn,
            pdn,
            send_cqn: cqn,
            recv_cqn: cqn,
            slot,
            holder: 0,
            access: full().bits(),
        };
        let qpn = low(self.ok(device, AdminOp::QP_CREATE_SRQ, body.to_body())[0]);
        let mut qp = RawQp {
            qpn,
            slot,
            cqn,
            cq_slot,
            sq: self.ring(sq_ring, SQ_DEPTH),
            rq: srq.ring,
            cq,
            sq_producer: 0,
            rq_producer: 0,
            cq_consumer: 0,
        };
        self.modify(device, &mut qp, QpState::INIT);
        qp
    }

    /// Writes a receive into an SRQ without ringing.
    pub(crate) fn write_srq(&self, srq: &mut RawSrq, wr_id: u64, sges: &[Sge]) {
        let wqe = recv_wqe(wr_id, sges);
        srq.ring.write(srq.producer, &zerocopy::transmute!(wqe));
        srq.producer = srq.producer.wrapping_add(1);
    }

    /// Rings an SRQ's doorbell and lets the device work.
    pub(crate) fn ring_srq(&self, device: &mut Device, srq: &RawSrq) {
        self.bar
            .line(srq.slot)
            .srq_producer()
            .store(srq.producer, Ordering::Release);
        self.mark(device, srq.slot);
        pump(device);
    }

    pub(crate) fn modify(&mut self, device: &mut Device, qp: &mut RawQp, state: QpState) {
        let body = QpModify {
            qpn: qp.qpn,
            state: state.0.into(),
            ..QpModify::default()
        };
        self.ok(device, AdminOp::QP_MODIFY, body.to_body());
    }

    pub(crate) fn query(&mut self, device: &mut Device, qpn: u32) -> Option<QpState> {
        let body = Named {
            id: qpn,
            reserved: 0,
        };
        match self.admin(device, AdminOp::QP_QUERY, body.to_body()) {
            (AdminStatus::OK, [state, _]) => Some(QpState(state.to_le_bytes()[0])),
            (AdminStatus::NO_OBJECT, _) => None,
            (status, _) => panic!("QP_QUERY answered {status}"),
        }
    }

    // ---- connection manager ----

    pub(crate) fn listen(&mut self, device: &mut Device, at: SocketAddr, backlog: u32) -> u32 {
        let (status, result) = self.try_listen(device, at, backlog, 0);
        assert_eq!(status, AdminStatus::OK);
        low(result[0])
    }

    pub(crate) fn try_listen(
        &mut self,
        device: &mut Device,
        at: SocketAddr,
        backlog: u32,
        flags: u32,
    ) -> (AdminStatus, [u64; 2]) {
        let body = CmListen {
            local: at.into(),
            backlog,
            holder: 0,
            flags,
            reserved: 0,
        };
        self.admin(device, AdminOp::CM_LISTEN, body.to_body())
    }

    pub(crate) fn connect(
        &mut self,
        device: &mut Device,
        qpn: u32,
        from: SocketAddr,
        to: SocketAddr,
        timeout_ms: u32,
        private: &[u8],
    ) -> AdminStatus {
        let mut record = CmRecord {
            source: from.into(),
            destination: to.into(),
            private_len: u32::try_from(private.len()).unwrap(),
            ..CmRecord::default()
        };
        record.private_data[..private.len()].copy_from_slice(private);
        let at = BASE + RECORD_AT;
        self.write(at, record.as_bytes());
        let body = CmConnect {
            record: at,
            qpn,
            timeout_ms,
        };
        self.status(device, AdminOp::CM_CONNECT, body.to_body())
    }

    pub(crate) fn accept(
        &mut self,
        device: &mut Device,
        request: u32,
        qpn: u32,
        listener: u32,
    ) -> AdminStatus {
        let body = CmAccept {
            request,
            qpn,
            listener,
            reserved: 0,
        };
        self.status(device, AdminOp::CM_ACCEPT, body.to_body())
    }

    pub(crate) fn hold(
        &mut self,
        device: &mut Device,
        op: AdminOp,
        id: u32,
        kind: u32,
        slot: u32,
        flags: u32,
    ) -> (AdminStatus, u64) {
        let body = Hold {
            id,
            kind,
            slot,
            flags,
        };
        let (status, result) = self.admin(device, op, body.to_body());
        (status, result[0])
    }

    /// HOLD_CLONE of slot 0: new slot and generation.
    pub(crate) fn clone_holder(&mut self, device: &mut Device, from: u32) -> (u32, u32) {
        let body = HoldClone { from, reserved: 0 };
        let result = self.ok(device, AdminOp::HOLD_CLONE, body.to_body());
        (low(result[0]), high(result[0]))
    }

    // ---- events and completions ----

    pub(crate) fn event(&mut self) -> Option<(EventType, u32, u32)> {
        let element: Eqe = zerocopy::transmute!(self.events.published(self.event_consumer)?);
        self.event_consumer = self.event_consumer.wrapping_add(1);
        self.bar
            .line(self.event_slot)
            .cq_consumer()
            .store(self.event_consumer, Ordering::Release);
        let event = eqe::event_type(element.publish);
        let tells_syndrome = [
            EventType::QP_FATAL,
            EventType::QP_ACCESS,
            EventType::QP_REQ_ERR,
            EventType::DEVICE_FATAL,
        ];
        if tells_syndrome.contains(&event) {
            note(Syndrome(u16::try_from(element.code).unwrap()));
        }
        Some((event, element.source, element.code))
    }

    pub(crate) fn events(&mut self) -> Vec<(EventType, u32, u32)> {
        std::iter::from_fn(|| self.event()).collect()
    }

    pub(crate) fn poll(&self, qp: &mut RawQp) -> Option<Wc> {
        let cqe: Cqe = zerocopy::transmute!(qp.cq.published(qp.cq_consumer)?);
        qp.cq_consumer = qp.cq_consumer.wrapping_add(1);
        self.bar
            .line(qp.cq_slot)
            .cq_consumer()
            .store(qp.cq_consumer, Ordering::Release);
        let publish = Publish::unpack(cqe.publish);
        note(publish.syndrome);
        Some(Wc {
            wr_id: cqe.wr_id,
            byte_len: cqe.byte_len,
            imm: cqe.imm,
            qpn: cqe.qpn_opcode & 0xff_ffff,
            opcode: cqe.qpn_opcode.to_le_bytes()[3],
            src_qpn: cqe.src_qpn_flags & 0xff_ffff,
            flags: cqe.src_qpn_flags & 0xff00_0000,
            wqe_counter: publish.wqe_counter,
            status: publish.status,
            syndrome: publish.syndrome,
        })
    }

    pub(crate) fn completions(&self, qp: &mut RawQp) -> Vec<Wc> {
        std::iter::from_fn(|| self.poll(qp)).collect()
    }

    // ---- posting ----

    /// Writes a WQE of any blocks without ringing; fills up to the end of the ring first when it would wrap.
    pub(crate) fn write_send(&self, qp: &mut RawQp, blocks: &[[u64; 8]]) {
        let count = u32::try_from(blocks.len()).unwrap();
        let left = qp.sq.depth().until_end(qp.sq_producer);
        if count > left {
            let filler = SqWqe {
                opcode: Opcode::NOP.0,
                blocks: u8::try_from(left).unwrap(),
                ..SqWqe::default()
            };
            qp.sq.write(qp.sq_producer, &zerocopy::transmute!(filler));
            qp.sq_producer = qp.sq_producer.wrapping_add(left);
        }
        for block in blocks {
            qp.sq.write(qp.sq_producer, block);
            qp.sq_producer = qp.sq_producer.wrapping_add(1);
        }
    }

    pub(crate) fn write_recv(&self, qp: &mut RawQp, wqe: RqWqe) {
        qp.rq.write(qp.rq_producer, &zerocopy::transmute!(wqe));
        qp.rq_producer = qp.rq_producer.wrapping_add(1);
    }

    /// Rings both doorbells of a QP.
    pub(crate) fn ring_qp(&self, device: &mut Device, qp: &RawQp) {
        let line = self.bar.line(qp.slot);
        line.sq_producer().store(qp.sq_producer, Ordering::Release);
        line.rq_producer().store(qp.rq_producer, Ordering::Release);
        self.mark(device, qp.slot);
    }

    /// Posts a WQE, rings, and lets the device work.
    pub(crate) fn send(&self, device: &mut Device, qp: &mut RawQp, wqe: &Send) {
        self.write_send(qp, &wqe.blocks());
        self.ring_qp(device, qp);
        pump(device);
    }

    /// Posts a receive, rings, and lets the device work.
    pub(crate) fn recv(&self, device: &mut Device, qp: &mut RawQp, wr_id: u64, sges: &[Sge]) {
        self.write_recv(qp, recv_wqe(wr_id, sges));
        self.ring_qp(device, qp);
        pump(device);
    }
}

pub(crate) fn recv_wqe(wr_id: u64, sges: &[Sge]) -> RqWqe {
    let mut wqe = RqWqe {
        wr_id,
        count: u8::try_from(sges.len()).unwrap(),
        ..RqWqe::default()
    };
    wqe.sges[..sges.len()].copy_from_slice(sges);
    wqe
}

/// A send WQE in the making; fields are free to be wrong.
#[derive(Clone, Debug)]
pub(crate) struct Send {
    pub(crate) head: SqWqe,
    pub(crate) sges: Vec<Sge>,
    pub(crate) inline: Vec<u8>,
}

impl Send {
    /// A signaled WQE with these SGEs.
    pub(crate) fn new(opcode: Opcode, wr_id: u64, sges: &[Sge]) -> Self {
        let count = u8::try_from(sges.len()).unwrap();
        Self {
            head: SqWqe {
                opcode: opcode.0,
                flags: WqeFlags::SIGNALED.bits(),
                blocks: ring_proto::wqe::blocks_for_sges(count),
                count,
                wr_id,
                total: sges.iter().map(|sge| sge.len).sum(),
                ..SqWqe::default()
            },
            sges: sges.to_vec(),
            inline: Vec::new(),
        }
    }

    /// A signaled WQE with inline bytes.
    pub(crate) fn inline(opcode: Opcode, wr_id: u64, bytes: &[u8]) -> Self {
        let count = u8::try_from(bytes.len()).unwrap();
        Self {
            head: SqWqe {
                opcode: opcode.0,
                flags: (WqeFlags::SIGNALED | WqeFlags::INLINE).bits(),
                blocks: ring_proto::wqe::blocks_for_inline(count),
                count,
                wr_id,
                total: count.into(),
                ..SqWqe::default()
            },
            sges: Vec::new(),
            inline: bytes.to_vec(),
        }
    }

    /// A signaled atomic on the word at `addr` of the peer; the original goes to `into`.
    pub(crate) fn atomic(
        opcode: Opcode,
        wr_id: u64,
        into: Sge,
        (addr, rkey): (u64, u32),
        (compare_add, swap): (u64, u64),
    ) -> Self {
        let mut wqe = Self::new(opcode, wr_id, &[into]).remote(addr, rkey);
        // The operands stand where the second element would.
        wqe.sges.push(Sge {
            addr: compare_add,
            len: low(swap),
            lkey: high(swap),
        });
        wqe
    }

    /// A signaled BIND_MW of `len` bytes at `addr`.
    pub(crate) fn bind(
        wr_id: u64,
        (rkey, new_rkey): (u32, u32),
        lkey: u32,
        (addr, len): (u64, u64),
        access: Access,
    ) -> Self {
        let mut wqe = Self::new(Opcode::BIND_MW, wr_id, &[])
            .remote(addr, rkey)
            .imm(new_rkey);
        wqe.sges.push(Sge {
            addr: len,
            len: lkey,
            lkey: access.bits(),
        });
        wqe
    }

    pub(crate) fn remote(mut self, addr: u64, rkey: u32) -> Self {
        self.head.remote_addr = addr;
        self.head.rkey = rkey;
        self
    }

    pub(crate) fn imm(mut self, imm: u32) -> Self {
        self.head.imm = imm;
        self
    }

    pub(crate) fn unsignaled(mut self) -> Self {
        self.head.flags &= !WqeFlags::SIGNALED.bits();
        self
    }

    /// The blocks of the WQE, as many as the payload needs (at least one).
    pub(crate) fn blocks(&self) -> Vec<[u64; 8]> {
        let head: [u64; 8] = zerocopy::transmute!(self.head);
        let mut words = head[..4].to_vec();
        for sge in &self.sges {
            let pair: [u64; 2] = zerocopy::transmute!(*sge);
            words.extend(pair);
        }
        for chunk in self.inline.chunks(8) {
            let mut bytes = [0; 8];
            bytes[..chunk.len()].copy_from_slice(chunk);
            words.push(u64::from_le_bytes(bytes));
        }
        words.resize(words.len().next_multiple_of(8), 0);
        words
            .chunks_exact(8)
            .map(|block| block.try_into().unwrap())
            .collect()
    }
}

pub(crate) fn low(word: u64) -> u32 {
    u32::try_from(word & 0xffff_ffff).unwrap()
}

pub(crate) fn high(word: u64) -> u32 {
    u32::try_from(word >> 32).unwrap()
}

pub(crate) fn sock(address: Ipv4Addr, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), port)
}

/// Two clients on nodes a and b, with a connected QP each.
pub(crate) struct Pair {
    pub(crate) device: Device,
    pub(crate) a: Client,
    pub(crate) b: Client,
    pub(crate) qa: RawQp,
    pub(crate) qb: RawQp,
}

impl Pair {
    pub(crate) fn new() -> Self {
        Self::with_access(full())
    }

    /// The QP of b grants `access` to its peer.
    pub(crate) fn with_access(access: Access) -> Self {
        Self::on(device(), access)
    }

    pub(crate) fn with_options(options: DeviceOptions) -> Self {
        Self::on(device_with(options), full())
    }

    fn on((mut device, a, b): (Device, NodeId, NodeId), access: Access) -> Self {
        let mut a = Client::attach(&mut device, a);
        let mut b = Client::attach(&mut device, b);
        let qa = a.qp(&mut device);
        let pdn = b.pdn;
        let qb = b.qp_with(&mut device, SQ_DEPTH, RQ_DEPTH, CQ_DEPTH, access, pdn);
        let mut pair = Self {
            device,
            a,
            b,
            qa,
            qb,
        };
        pair.join();
        pair
    }

    /// QPs in INIT that nobody has connected yet.
    pub(crate) fn unjoined() -> Self {
        let (mut device, a, b) = device();
        let mut a = Client::attach(&mut device, a);
        let mut b = Client::attach(&mut device, b);
        let (qa, qb) = (a.qp(&mut device), b.qp(&mut device));
        Self {
            device,
            a,
            b,
            qa,
            qb,
        }
    }

    /// Connects the QPs through the connection manager.
    pub(crate) fn join(&mut self) {
        let listener = self.b.listen(&mut self.device, sock(B, 4000), 8);
        establish(
            &mut self.device,
            (&mut self.a, self.qa.qpn),
            (&mut self.b, self.qb.qpn),
            4000,
        );
        let unlisten = self
            .b
            .named(&mut self.device, AdminOp::CM_UNLISTEN, listener);
        assert_eq!(unlisten, AdminStatus::OK);
    }

    pub(crate) fn pump(&mut self) {
        pump(&mut self.device);
    }
}

/// Connects a QP of a client on node a to one on node b, where somebody listens on `port`.
pub(crate) fn establish(
    device: &mut Device,
    (a, qa): (&mut Client, u32),
    (b, qb): (&mut Client, u32),
    port: u16,
) {
    assert_eq!(
        a.connect(device, qa, sock(A, 999), sock(B, port), 0, b""),
        AdminStatus::OK
    );
    let (event, _, request) = b.event().expect("a request");
    assert_eq!(event, EventType::CM_REQUEST);
    assert_eq!(b.accept(device, request, qb, 0), AdminStatus::OK);
    assert_eq!(
        a.event(),
        Some((EventType::CM_ESTABLISHED, qa, b.function.0))
    );
}
