//! A scripted raw client of a device in this process: WQEs and commands written word by word, doorbells rung by hand. It may lie.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ffi::CStr;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::{Deref, DerefMut};
use std::os::fd::OwnedFd;

use nic_emu::device::{Device, DeviceOptions, Finding, WindowRequest};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd;
use ring_proto::admin::{
    Access, AdminOp, AdminStatus, Body, CmAccept, CmListen, Command, Hold, HoldClone, MrReg,
    MwAlloc, Named, QpModify, Refusal,
};
use ring_proto::eqe::EventType;
use ring_proto::ids::{FunctionId, NodeId};
use ring_proto::shared::CqeRing;
use ring_proto::status::{QpState, Syndrome};
use ring_proto::wqe::Sge;
use ring_proto::{regs, uar};

#[expect(dead_code, reason = "clients of the emulator process need more of it")]
#[path = "../client/mod.rs"]
mod parts;

pub(crate) use self::parts::wr::Send;
use self::parts::{ADMIN_CQ, Memory, Rings};
pub(crate) use self::parts::{
    ADMIN_DEPTH, BASE, RawQp, RawSrq, Region, Wc, full, high, low, recv_wqe,
};

/// Bytes of a client's memory.
pub(crate) const MEMORY: u64 = 8 << 20;
/// Blocks of an SQ made by [`Client::qp`].
pub(crate) const SQ_DEPTH: u32 = 64;
/// WQEs of an RQ made by [`Client::qp`].
pub(crate) const RQ_DEPTH: u32 = 32;
/// Entries of a CQ made by [`Client::qp`].
pub(crate) const CQ_DEPTH: u32 = 128;
/// Address of node a.
pub(crate) const A: Ipv4Addr = Ipv4Addr::new(127, 77, 0, 1);
/// Address of node b.
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

/// A client of one function. Memory, rings and doorbells are its [`Rings`].
pub(crate) struct Client {
    pub(crate) function: FunctionId,
    pub(crate) fd: OwnedFd,
    rings: Rings,
    pub(crate) pdn: u32,
}

impl Deref for Client {
    type Target = Rings;

    fn deref(&self) -> &Rings {
        &self.rings
    }
}

impl DerefMut for Client {
    fn deref_mut(&mut self) -> &mut Rings {
        &mut self.rings
    }
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
        let window = WindowRequest {
            fd: Some(fd.try_clone().unwrap()),
            offset: 0,
            iova: BASE,
            len: MEMORY,
            read: true,
            write: true,
        };
        device.map(function, window).unwrap();
        let rings = Rings::new(Memory::new(&fd, MEMORY), device.bar2(function).unwrap());
        Self {
            function,
            fd,
            rings,
            pdn: 0,
        }
    }

    /// Starts the admin queue, makes an EQ and a PD.
    pub(crate) fn start(&mut self, device: &mut Device) {
        let write = |device: &mut Device, register, len, value| {
            device
                .write_register(self.function, register, len, value)
                .unwrap();
        };
        write(device, regs::ADMIN_SQ_BASE, 8, BASE);
        write(device, regs::ADMIN_CQ_BASE, 8, ADMIN_CQ);
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
        self.begin();
        let events = self.plan_eq();
        self.ok(device, AdminOp::EQ_CREATE, events.to_body());
        self.pdn = self.pd(device);
    }

    // ---- doorbells ----

    /// Marks a slot dirty; kicks when the device says so.
    pub(crate) fn mark(&self, device: &mut Device, slot: u32) {
        if self.dirty(slot) {
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
        let command_id = self.admin_producer;
        self.post_admin(Command {
            opcode: op.0,
            flags: 0,
            command_id,
            body,
        });
        self.ring_admin(device);
        pump(device);
        self.admin_completion().expect("the command completed")
    }

    pub(crate) fn ring_admin(&self, device: &mut Device) {
        self.publish_admin();
        self.mark(device, uar::ADMIN_SLOT);
    }

    pub(crate) fn admin_completion(&mut self) -> Option<(AdminStatus, [u64; 2])> {
        let expected = self.admin_taken();
        let completion = self.take_completion()?;
        assert_eq!(completion.command_id, expected);
        if completion.status != AdminStatus::OK.0 {
            note(Refusal::unpack(completion.result[0]).syndrome);
        }
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
        let body = MrReg {
            owner_qpn,
            ..self.plan_region(len, pdn, access)
        };
        let result = self.ok(device, AdminOp::MR_REG, body.to_body());
        Region {
            iova: body.addr,
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
        let plan = self.plan_cq(depth);
        let cqn = low(self.ok(device, AdminOp::CQ_CREATE, plan.to_body())[0]);
        self.made_cq(&plan, cqn)
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
        cq: (u32, u32, CqeRing),
        access: Access,
        pdn: u32,
    ) -> RawQp {
        let plan = self.plan_qp((sq_depth, rq_depth), cq.0, pdn, access);
        let qpn = low(self.ok(device, AdminOp::QP_CREATE, plan.to_body())[0]);
        self.made_qp(&plan, qpn, cq)
    }

    /// An SRQ in a protection domain.
    pub(crate) fn srq(&mut self, device: &mut Device, depth: u32, pdn: u32) -> RawSrq {
        let plan = self.plan_srq(depth, pdn);
        let srqn = low(self.ok(device, AdminOp::SRQ_CREATE, plan.to_body())[0]);
        self.made_srq(&plan, srqn)
    }

    /// A QP in INIT that takes its receives from an SRQ.
    pub(crate) fn qp_on_srq(&mut self, device: &mut Device, srq: &RawSrq, pdn: u32) -> RawQp {
        let cq = self.cq(device, CQ_DEPTH);
        let plan = self.plan_qp_on_srq(srq, SQ_DEPTH, cq.0, pdn);
        let qpn = low(self.ok(device, AdminOp::QP_CREATE_SRQ, plan.to_body())[0]);
        let mut qp = self.made_qp_on_srq(&plan, qpn, cq, srq);
        self.modify(device, &mut qp, QpState::INIT);
        qp
    }

    /// Rings an SRQ's doorbell and lets the device work.
    pub(crate) fn ring_srq(&self, device: &mut Device, srq: &RawSrq) {
        self.publish_srq(srq);
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
        let body = self.plan_connect(qpn, (from, to), timeout_ms, private);
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
            status: 0,
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
        let (event, source, code) = self.take_event()?;
        let tells_syndrome = [
            EventType::QP_FATAL,
            EventType::QP_ACCESS,
            EventType::QP_REQ_ERR,
            EventType::DEVICE_FATAL,
        ];
        if tells_syndrome.contains(&event) {
            note(Syndrome(u16::try_from(code).unwrap()));
        }
        Some((event, source, code))
    }

    pub(crate) fn events(&mut self) -> Vec<(EventType, u32, u32)> {
        std::iter::from_fn(|| self.event()).collect()
    }

    pub(crate) fn poll(&self, qp: &mut RawQp) -> Option<Wc> {
        let wc = self.take_wc(qp)?;
        note(wc.syndrome);
        Some(wc)
    }

    pub(crate) fn completions(&self, qp: &mut RawQp) -> Vec<Wc> {
        std::iter::from_fn(|| self.poll(qp)).collect()
    }

    // ---- posting ----

    /// Rings both doorbells of a QP.
    pub(crate) fn ring_qp(&self, device: &mut Device, qp: &RawQp) {
        self.publish_qp(qp);
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
