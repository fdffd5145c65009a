//! An embedded device with two functions whose rings the fuzz targets write.
//!
//! Place: the targets of rings. Invariants: all memory is written through descriptors, never mapped here; a rig is used for one input
//! after the other, its functions being reset in between; the device comes to rest after every ring.
//! Source: docs/device.md.

use std::cell::RefCell;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::uio::{pread, pwrite};
use ring_proto::admin::{
    Access, AdminOp, Body, CmAccept, CmConnect, CmListen, CmRecord, Command, Completion, MrReg,
    MwAlloc, QpCreate, QpCreateSrq, QpModify, QueueCreate, SrqCreate,
};
use ring_proto::eqe::{self, Eqe, EventType};
use ring_proto::ids::{FunctionId, NodeId};
use ring_proto::status::QpState;
use ring_proto::{regs, uar};
use zerocopy::{FromBytes, IntoBytes};

use crate::device::{Device, DeviceOptions, LinkParameters, WindowRequest};

/// Where a function's memory starts.
pub(crate) const BASE: u64 = 1 << 32;
/// Bytes of it.
pub(crate) const MEMORY: u64 = 1 << 20;
/// Entries of the admin rings.
pub(crate) const ADMIN_DEPTH: u32 = 64;
const ADMIN_CQ: u64 = 0x2000;
const EVENTS: u64 = 0x4000;
const EVENT_DEPTH: u32 = 64;
const RECORD: u64 = 0x6000;
/// Rings of the QP.
pub(crate) const SQ: u64 = 0x8000;
pub(crate) const RQ: u64 = 0x9000;
pub(crate) const DEPTH: u32 = 32;
const CQ: u64 = 0xa000;
const CQ_DEPTH: u32 = 256;
/// The registered region.
pub(crate) const REGION: u64 = 0x1_0000;
/// Bytes of it.
pub(crate) const REGION_LEN: u64 = 0x1_0000;
/// Doorbell slots.
const EVENT_SLOT: u32 = 1;
const CQ_SLOT: u32 = 2;
pub(crate) const QP_SLOT: u32 = 3;
/// Rounds after which a device that finds work still is taken for hung.
const ROUNDS: u32 = 20_000;
const ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)];
const PORT: u16 = 7;

/// Bytes of a command and of a block.
pub(crate) const ENTRY: usize = 64;

thread_local! {
    static RIG: RefCell<Rig> = RefCell::new(Rig::new());
}

/// Runs an input on the thread's rig, whose functions have just been reset.
pub(crate) fn with(input: impl FnOnce(&mut Rig)) {
    RIG.with_borrow_mut(|rig| {
        rig.restart();
        input(rig);
    });
}

/// A whole entry, and the byte that says what to do with it.
pub(crate) fn take_control(chunk: &[u8]) -> ([u8; ENTRY], u8) {
    let mut entry = [0; ENTRY];
    entry[..chunk.len()].copy_from_slice(chunk);
    (entry, entry[ENTRY - 1])
}

/// Keys of both sides.
pub(crate) struct Keys {
    /// Of a region with all rights.
    pub(crate) regions: [u32; 2],
    /// Of a memory window of type 2, not bound.
    pub(crate) windows: [u32; 2],
}

/// A device with a function on each of two nodes.
pub(crate) struct Rig {
    device: Device,
    nodes: [NodeId; 2],
    sides: [Side; 2],
}

struct Side {
    function: FunctionId,
    memory: OwnedFd,
    bar2: OwnedFd,
    producer: u32,
    /// Events read.
    events: u32,
    qpn: u32,
}

impl Rig {
    pub(crate) fn new() -> Self {
        let mut device = Device::new(DeviceOptions {
            virtual_time: true,
            ..DeviceOptions::default()
        });
        let nodes = ADDRESSES.map(|address| device.add_node("n", &[address]));
        let sides = nodes.map(|node| {
            let function = device.attach(node).expect("a fresh device has room");
            let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
            let memory = memfd_create(c"fuzz", flags).expect("memfd_create");
            nix::unistd::ftruncate(&memory, MEMORY.cast_signed()).expect("ftruncate");
            let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
            fcntl(&memory, FcntlArg::F_ADD_SEALS(seals)).expect("seals");
            let window = WindowRequest {
                fd: Some(memory.try_clone().expect("dup")),
                offset: 0,
                iova: BASE,
                len: MEMORY,
                read: true,
                write: true,
            };
            device.map(function, window).expect("a sound window");
            let bar2 = device.bar2(function).expect("attached");
            let bar2 = bar2.try_clone_to_owned().expect("dup");
            Side {
                function,
                memory,
                bar2,
                producer: 0,
                events: 0,
                qpn: 0,
            }
        });
        Self {
            device,
            nodes,
            sides,
        }
    }

    /// Resets both functions, empties what they use of their memory, starts their admin queues.
    pub(crate) fn restart(&mut self) {
        for side in 0..2 {
            let function = self.sides[side].function;
            self.device.reset(function);
            // What earlier inputs left behind must not make this one behave otherwise.
            self.write(side, 0, &[0; 0x2_0000]);
            self.sides[side].producer = 0;
            self.sides[side].events = 0;
            let mut register = |at, len, value: u64| {
                let written = self.device.write_register(function, at, len, value);
                written.expect("a sound register");
            };
            register(regs::ADMIN_SQ_BASE, 8, BASE);
            register(regs::ADMIN_CQ_BASE, 8, BASE + ADMIN_CQ);
            register(regs::ADMIN_DEPTH, 4, ADMIN_DEPTH.into());
            register(regs::DRIVER_FEATURES, 8, regs::FEATURES);
            let status = regs::STATUS_ACKNOWLEDGE
                | regs::STATUS_DRIVER
                | regs::STATUS_FEATURES_OK
                | regs::STATUS_DRIVER_OK;
            register(regs::STATUS, 4, status.into());
        }
    }

    /// Makes an EQ, a PD, a region, a window, a CQ and a QP on both sides and connects the QPs. That of the second side has an SRQ.
    pub(crate) fn connect(&mut self) -> Keys {
        let mut keys = Keys {
            regions: [0; 2],
            windows: [0; 2],
        };
        for side in 0..2 {
            let queue = |ring, depth, slot| QueueCreate {
                ring: BASE + ring,
                depth,
                slot,
            };
            let eq = queue(EVENTS, EVENT_DEPTH, EVENT_SLOT);
            self.ok(side, AdminOp::EQ_CREATE, eq.to_body());
            let pdn = self.ok(side, AdminOp::PD_ALLOC, Body::default());
            let region = MrReg {
                addr: BASE + REGION,
                len: REGION_LEN,
                pdn,
                access: Access::all().bits(),
                ..MrReg::default()
            };
            keys.regions[side] = self.ok(side, AdminOp::MR_REG, region.to_body());
            let window = MwAlloc { pdn, kind: 2 };
            keys.windows[side] = self.ok(side, AdminOp::MW_ALLOC, window.to_body());
            let cq = queue(CQ, CQ_DEPTH, CQ_SLOT);
            let cqn = self.ok(side, AdminOp::CQ_CREATE, cq.to_body());
            let qpn = if side == 0 {
                self.qp_of_its_own(side, pdn, cqn)
            } else {
                self.qp_with_srq(side, pdn, cqn)
            };
            let modify = QpModify {
                qpn,
                state: QpState::INIT.0.into(),
                ..QpModify::default()
            };
            self.ok(side, AdminOp::QP_MODIFY, modify.to_body());
            self.sides[side].qpn = qpn;
        }
        self.join([self.sides[0].qpn, self.sides[1].qpn]);
        keys
    }

    fn qp_of_its_own(&mut self, side: usize, pdn: u32, cqn: u32) -> u32 {
        let qp = QpCreate {
            sq_ring: BASE + SQ,
            rq_ring: BASE + RQ,
            sq_depth: DEPTH,
            rq_depth: DEPTH,
            pdn,
            send_cqn: cqn,
            recv_cqn: cqn,
            slot: QP_SLOT,
            access: Access::all().bits(),
            ..QpCreate::default()
        };
        self.ok(side, AdminOp::QP_CREATE, qp.to_body())
    }

    fn qp_with_srq(&mut self, side: usize, pdn: u32, cqn: u32) -> u32 {
        let srq = SrqCreate {
            ring: BASE + RQ,
            depth: DEPTH,
            pdn,
            slot: QP_SLOT,
            limit: 4,
        };
        let qp = QpCreateSrq {
            sq_ring: BASE + SQ,
            sq_depth: DEPTH,
            srqn: self.ok(side, AdminOp::SRQ_CREATE, srq.to_body()),
            pdn,
            send_cqn: cqn,
            recv_cqn: cqn,
            slot: QP_SLOT,
            access: Access::all().bits(),
            ..QpCreateSrq::default()
        };
        self.ok(side, AdminOp::QP_CREATE_SRQ, qp.to_body())
    }

    /// Connects the QPs through the connection manager.
    fn join(&mut self, qpns: [u32; 2]) {
        let listen = CmListen {
            local: (ADDRESSES[1], PORT).into_sock(),
            backlog: 1,
            ..CmListen::default()
        };
        self.ok(1, AdminOp::CM_LISTEN, listen.to_body());
        let record = CmRecord {
            source: (ADDRESSES[0], PORT).into_sock(),
            destination: (ADDRESSES[1], PORT).into_sock(),
            ..CmRecord::default()
        };
        self.write(0, RECORD, record.as_bytes());
        let connect = CmConnect {
            record: BASE + RECORD,
            qpn: qpns[0],
            timeout_ms: 0,
        };
        self.ok(0, AdminOp::CM_CONNECT, connect.to_body());
        // The SRQ has told before that it is empty.
        let request = loop {
            let event = self.event(1);
            if eqe::event_type(event.publish) == EventType::CM_REQUEST {
                break event.code;
            }
        };
        let accept = CmAccept {
            request,
            qpn: qpns[1],
            ..CmAccept::default()
        };
        self.ok(1, AdminOp::CM_ACCEPT, accept.to_body());
    }

    /// Function and number of a side's QP.
    pub(crate) fn qp(&self, side: usize) -> (u32, u32) {
        let side = &self.sides[side];
        (side.function.0, side.qpn)
    }

    /// How packets are treated in both directions.
    pub(crate) fn set_links(&mut self, parameters: LinkParameters) {
        let [a, b] = self.nodes;
        for (from, to) in [(a, b), (b, a)] {
            let set = self.device.set_link(from, to, parameters);
            set.expect("both nodes exist, and no share is above all");
        }
    }

    /// A packet with these bytes comes off a link.
    pub(crate) fn packet_arrives(&mut self, bytes: &[u8]) {
        self.device.bytes_arrived(bytes);
        self.settle();
    }

    /// Puts a command into the admin ring without ringing.
    pub(crate) fn post_command(&mut self, side: usize, bytes: &[u8]) {
        let producer = self.sides[side].producer;
        self.write(side, 64 * u64::from(producer % ADMIN_DEPTH), bytes);
        self.sides[side].producer = producer.wrapping_add(1);
    }

    /// Rings the admin doorbell, takes the completions, and lets the device work.
    pub(crate) fn ring_admin(&mut self, side: usize) {
        let producer = self.sides[side].producer;
        let line = uar::line_offset(uar::ADMIN_SLOT);
        self.write_bar(side, line, &producer.to_le_bytes());
        // All that came before has been taken: the ring holds as many commands as fit.
        let taken = producer.wrapping_sub(1);
        self.write_bar(side, line + 8, &taken.to_le_bytes());
        self.mark(side, uar::ADMIN_SLOT);
    }

    /// A command that succeeds; its first result.
    fn ok(&mut self, side: usize, op: AdminOp, body: Body) -> u32 {
        let position = self.sides[side].producer;
        let command = Command {
            opcode: op.0,
            flags: 0,
            command_id: position,
            body,
        };
        self.post_command(side, command.as_bytes());
        self.ring_admin(side);
        let mut bytes = [0; 32];
        let at = ADMIN_CQ + 32 * u64::from(position % ADMIN_DEPTH);
        self.read(side, at, &mut bytes);
        let completion = Completion::read_from_bytes(&bytes).expect("the size of a completion");
        assert_eq!(
            (completion.command_id, completion.status),
            (position, 0),
            "{op}"
        );
        u32::try_from(completion.result[0] & 0xffff_ffff).expect("masked")
    }

    fn event(&mut self, side: usize) -> Eqe {
        let position = self.sides[side].events;
        self.sides[side].events += 1;
        let mut bytes = [0; 16];
        self.read(side, EVENTS + 16 * u64::from(position), &mut bytes);
        Eqe::read_from_bytes(&bytes).expect("the size of an event")
    }

    pub(crate) fn write(&self, side: usize, at: u64, bytes: &[u8]) {
        let written = pwrite(&self.sides[side].memory, bytes, at.cast_signed());
        assert_eq!(written, Ok(bytes.len()));
    }

    fn read(&self, side: usize, at: u64, bytes: &mut [u8]) {
        let read = pread(&self.sides[side].memory, bytes, at.cast_signed());
        assert_eq!(read, Ok(bytes.len()));
    }

    pub(crate) fn write_bar(&self, side: usize, at: u64, bytes: &[u8]) {
        let written = pwrite(&self.sides[side].bar2, bytes, at.cast_signed());
        assert_eq!(written, Ok(bytes.len()));
    }

    /// Marks a slot dirty, kicks, and lets the device work until nothing is left.
    pub(crate) fn mark(&mut self, side: usize, slot: u32) {
        let uar_of_slot = slot / uar::LINES;
        let bit = 1u64 << (slot % uar::LINES);
        self.write_bar(side, uar::uar_offset(slot), &bit.to_le_bytes());
        let word = u64::from(uar_of_slot / 64);
        let bit = 1u64 << (uar_of_slot % 64);
        self.write_bar(side, 8 * word, &bit.to_le_bytes());
        self.device.kicked(self.sides[side].function);
        self.settle();
    }

    /// Lets the device work, and its timers run out.
    pub(crate) fn advance(&mut self, ns: u64) {
        self.device.advance(ns);
        self.settle();
    }

    fn settle(&mut self) {
        self.device.unpark();
        for _ in 0..ROUNDS {
            if self.device.pump().served == 0 && self.device.try_park() {
                return;
            }
        }
        panic!("the device never comes to rest");
    }

    /// The device itself did nothing wrong.
    pub(crate) fn check(&self) {
        for node in self.device.node_counters() {
            assert_eq!(node.counters.panics, 0, "the device panicked");
        }
    }
}

trait IntoSock {
    fn into_sock(self) -> ring_proto::admin::SockAddr;
}

impl IntoSock for (Ipv4Addr, u16) {
    fn into_sock(self) -> ring_proto::admin::SockAddr {
        std::net::SocketAddr::from(self).into()
    }
}
