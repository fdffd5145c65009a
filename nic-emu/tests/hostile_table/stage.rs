//! A device and a client that has one of everything, for the tables of what lies in rings.

use nic_emu::device::Device;
use ring_proto::admin::{
    AdminOp, AdminStatus, Body, CmConnect, CmRecord, Command, MrReg, Refusal, SockAddr,
};
use ring_proto::eqe::EventType;
use ring_proto::status::Syndrome;
use zerocopy::IntoBytes;

use crate::client::{A, BASE, Client, MEMORY, RawQp, device, full, low, pump, sock};

/// First byte behind the client's memory.
pub(crate) const OUTSIDE: u64 = BASE + MEMORY;
/// Port of the listener.
pub(crate) const PORT: u16 = 40;

/// Status of a command, with the check that failed where there is more to say.
pub(crate) type Answer = (AdminStatus, Syndrome);

pub(crate) const fn plain(status: AdminStatus) -> Answer {
    (status, Syndrome::NONE)
}

pub(crate) const OK: Answer = plain(AdminStatus::OK);
pub(crate) const INVALID: Answer = plain(AdminStatus::INVALID);
pub(crate) const NO_OBJECT: Answer = plain(AdminStatus::NO_OBJECT);
pub(crate) const BAD_ADDRESS: Answer = plain(AdminStatus::BAD_ADDRESS);
pub(crate) const BAD_STATE: Answer = plain(AdminStatus::BAD_STATE);
pub(crate) const BUSY: Answer = plain(AdminStatus::BUSY);

/// A client on node a. Its objects have the first numbers of their kinds.
pub(crate) struct Stage {
    pub(crate) device: Device,
    pub(crate) client: Client,
    pub(crate) qp: RawQp,
    pub(crate) listener: u32,
    /// Memory that nothing uses.
    pub(crate) free: u64,
}

impl Stage {
    pub(crate) fn new() -> Self {
        let (mut device, node, _) = device();
        let mut client = Client::attach(&mut device, node);
        let qp = client.qp(&mut device);
        let listener = client.listen(&mut device, sock(A, PORT), 4);
        let free = client.alloc(0x1_0000);
        Self {
            device,
            client,
            qp,
            listener,
            free,
        }
    }

    /// A number that a command gives.
    pub(crate) fn make(&mut self, op: AdminOp, body: Body) -> u32 {
        low(self.client.ok(&mut self.device, op, body)[0])
    }

    /// A second QP, in INIT.
    pub(crate) fn second(&mut self) -> RawQp {
        self.client.qp(&mut self.device)
    }

    /// A region of all rights over the free memory; its key.
    pub(crate) fn region(&mut self) -> u32 {
        let region = MrReg {
            addr: self.free,
            len: 4096,
            pdn: self.client.pdn,
            access: full().bits(),
            ..MrReg::default()
        };
        self.make(AdminOp::MR_REG, region.to_body())
    }

    /// Writes a sound connection record; where it lies.
    pub(crate) fn record(&mut self) -> u64 {
        let record = CmRecord {
            source: sock(A, 41).into(),
            destination: sock(A, PORT).into(),
            ..CmRecord::default()
        };
        self.client.write(self.free, record.as_bytes());
        self.free
    }

    /// The QP asks to be connected to the own listener; the number of the request.
    pub(crate) fn request(&mut self) -> u32 {
        let connect = CmConnect {
            record: self.record(),
            qpn: self.qp.qpn,
            timeout_ms: 0,
        };
        self.client
            .ok(&mut self.device, AdminOp::CM_CONNECT, connect.to_body());
        let (event, _, request) = self.client.event().unwrap();
        assert_eq!(event, EventType::CM_REQUEST);
        request
    }

    /// The QP, connected to a second one.
    pub(crate) fn connected(&mut self) -> u32 {
        let request = self.request();
        let second = self.second();
        let status = self.client.accept(&mut self.device, request, second.qpn, 0);
        assert_eq!(status, AdminStatus::OK);
        self.qp.qpn
    }

    /// What answers a command.
    pub(crate) fn answer(&mut self, command: Command) -> Answer {
        self.client.post_admin(command);
        self.client.ring_admin(&mut self.device);
        pump(&mut self.device);
        let (status, result) = self.client.admin_completion().unwrap();
        if status == AdminStatus::OK {
            return OK;
        }
        (status, Refusal::unpack(result[0]).syndrome)
    }
}

/// An address of node a as commands have it.
pub(crate) fn own(port: u16) -> SockAddr {
    sock(A, port).into()
}
