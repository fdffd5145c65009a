//! From records to frames, with what is needed to choose among them.
//!
//! Place: `sanlab capture` takes frames from [`Frames`] and writes them. Invariants: a record that makes no frame is skipped and
//! counted; what the ring holds is believed as far as it is sound. Source: ours. Hot: nothing.

use ring_proto::status::Opcode;

use super::cm_mad;
use super::error::CaptureError;
use super::frame::{self, Built, Endpoint, Parts};
use super::merge::Merge;
use super::record::{self, Record};
use super::ring::{Counts, Reader};
use crate::device::wire;

/// A node of the cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Port {
    /// Name.
    pub name: String,
    /// Addresses with prefix length.
    pub addresses: Vec<String>,
}

/// What carries a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Medium {
    /// The node's NIC on the SAN.
    San,
    /// The node's Ethernet interface, in namespace mode.
    Ethernet,
}

impl Medium {
    /// Both.
    pub const ALL: [Self; 2] = [Self::San, Self::Ethernet];

    /// Place of its ring.
    fn ring(self) -> usize {
        match self {
            Self::San => 0,
            Self::Ethernet => 1,
        }
    }
}

/// A frame that a port saw.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// Time of the device's clock.
    pub at_ns: u64,
    /// What carries it.
    pub medium: Medium,
    /// Number of the node.
    pub port: u16,
    /// It came in; else it went out.
    pub is_inbound: bool,
    /// Nodes it goes from and to; 65535 is several.
    pub ends: (u16, u16),
    /// The operation, by the names of fault rules; a message of the connection manager by that of its MAD, a frame of the wire by its
    /// protocol.
    pub operation: &'static str,
    /// QPNs of both ends; 0 where there is none.
    pub qpns: (u32, u32),
    /// Bits of the record.
    pub(crate) fate: u8,
    /// The frame, or its beginning.
    pub bytes: Vec<u8>,
    /// Bytes it had.
    pub whole_len: usize,
}

/// Names of what links do to packets, with the bit of the record, and what is said of it.
pub(crate) const FATES: [(&str, u8, &str, &str); 5] = [
    ("lost", record::LOST, "lost on the link", ""),
    ("cut", record::CUT, "lost: the link is cut", ""),
    ("held", record::HELD, "held back on the link", ""),
    ("doubled", record::DOUBLED, "arrives twice", ""),
    (
        "damaged",
        record::DAMAGED,
        "a bit flips on the link",
        "a bit flipped on the link",
    ),
];

impl Frame {
    /// What became of it, for people.
    pub(crate) fn fates(&self) -> impl Iterator<Item = &'static str> + use<> {
        let (fate, is_inbound) = (self.fate, self.is_inbound);
        FATES
            .iter()
            .filter(move |(_, bit, _, _)| fate & bit != 0)
            .map(move |&(_, _, outbound, inbound)| if is_inbound { inbound } else { outbound })
    }
}

/// The frames of a capture.
#[derive(Debug)]
pub struct Frames {
    records: Merge,
    endpoints: Vec<Endpoint>,
    bytes: Vec<u8>,
    skipped: u64,
}

impl Frames {
    /// Frames of a ring between these nodes, by number.
    #[must_use]
    pub fn new(reader: Reader, ports: &[Port]) -> Self {
        Self::of(Merge::new(vec![reader], 0), ports)
    }

    /// The same with those of a second ring, of the Ethernet interfaces. `now_ns`: the device's clock, a moment ago.
    #[must_use]
    pub fn with_ethernet(reader: Reader, ethernet: Reader, ports: &[Port], now_ns: u64) -> Self {
        Self::of(Merge::new(vec![reader, ethernet], now_ns), ports)
    }

    fn of(records: Merge, ports: &[Port]) -> Self {
        let endpoints = (0u16..)
            .zip(ports)
            .map(|(node, port)| {
                let address = port.addresses.iter().find_map(|it| frame::address_of(it));
                Endpoint::of(node, address)
            })
            .collect();
        Self {
            records,
            endpoints,
            bytes: Vec::new(),
            skipped: 0,
        }
    }

    /// The next frame, `None` when there is none now.
    ///
    /// # Errors
    /// [`CaptureError::BadRing`].
    pub fn next_frame(&mut self) -> Result<Option<Frame>, CaptureError> {
        loop {
            let Some(record) = self.records.next(&mut self.bytes)? else {
                return Ok(None);
            };
            match self.frame(&record) {
                Some(frame) => return Ok(Some(frame)),
                None => self.skipped += 1,
            }
        }
    }

    /// What the port of a node saw so far.
    #[must_use]
    pub fn counts(&self, medium: Medium, node: u16) -> Counts {
        self.records.counts(medium.ring(), node)
    }

    /// The capture has ended: nothing waits for older frames any more.
    pub fn end(&mut self) {
        self.records.end();
    }

    /// Records that made no frame: of an emulator that knows more than this program.
    #[must_use]
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    fn frame(&self, record: &Record) -> Option<Frame> {
        if record.kind == record::FRAME {
            return Some(self.ethernet(record));
        }
        let from = *self.endpoints.get(usize::from(record.from))?;
        let to = *self.endpoints.get(usize::from(record.to))?;
        let flipped = (record.direction == record::INBOUND && record.fate & record::DAMAGED != 0)
            .then_some(record.damaged_bit);
        let (operation, qpns, built) = match record.kind {
            record::PACKET => self.packet(record, from, to, flipped)?,
            record::CM => self.cm(from, to, flipped)?,
            _ => return None,
        };
        Some(Frame {
            at_ns: record.at_ns,
            medium: Medium::San,
            port: record.port,
            is_inbound: record.direction == record::INBOUND,
            ends: (record.from, record.to),
            operation,
            qpns,
            fate: record.fate,
            bytes: built.bytes,
            whole_len: built.whole_len,
        })
    }

    fn ethernet(&self, record: &Record) -> Frame {
        Frame {
            at_ns: record.at_ns,
            medium: Medium::Ethernet,
            port: record.port,
            is_inbound: record.direction == record::INBOUND,
            ends: (record.from, record.to),
            operation: protocol(&self.bytes),
            qpns: (0, 0),
            fate: record.fate,
            bytes: self.bytes.clone(),
            whole_len: record.whole_bytes as usize,
        }
    }

    fn packet(
        &self,
        record: &Record,
        from: Endpoint,
        to: Endpoint,
        flipped: Option<u32>,
    ) -> Option<(&'static str, (u32, u32), Built)> {
        let header = &record.header;
        let (opcode, extended) = frame::headers(header, &self.bytes)?;
        let (payload, whole) = if frame::carries_payload(header) {
            (&self.bytes[..], record.whole_bytes as usize)
        } else {
            (&[][..], 0)
        };
        let qpns = (header.from_qpn & 0xff_ffff, header.to_qpn & 0xff_ffff);
        let built = Parts {
            from,
            to,
            flow: qpns,
            opcode,
            is_solicited: header.has(wire::SOLICITED) && header.has(wire::LAST),
            asks_ack: header.opcode < wire::READ_RESPONSE && header.has(wire::ACK_REQUEST),
            qpn: qpns.1,
            psn: header.psn & 0xff_ffff,
            extended,
            payload,
            payload_len: whole.min(usize::from(u16::MAX) / 2),
            flipped,
        }
        .build();
        Some((
            operation(header.opcode, header.has(wire::ATOMIC))?,
            qpns,
            built,
        ))
    }

    fn cm(
        &self,
        from: Endpoint,
        to: Endpoint,
        flipped: Option<u32>,
    ) -> Option<(&'static str, (u32, u32), Built)> {
        let (message, record) = record::open_cm(&self.bytes)?;
        let mad = cm_mad::mad(&message, &record)?;
        let built = Parts {
            from,
            to,
            flow: (cm_mad::GSI, cm_mad::GSI),
            opcode: cm_mad::UD_SEND_ONLY,
            is_solicited: false,
            asks_ack: false,
            qpn: cm_mad::GSI,
            psn: 0,
            extended: cm_mad::deth(),
            payload: &mad,
            payload_len: mad.len(),
            flipped,
        }
        .build();
        let name = *CM_NAMES.get(usize::from(message.message).checked_sub(1)?)?;
        Some((name, (message.qpn, message.peer_qpn), built))
    }
}

/// Names of the connection manager's messages, by number from 1.
pub(crate) const CM_NAMES: [&str; 6] = ["REQ", "REJ", "REP", "RTU", "DREQ", "DREP"];

/// Names of what answers, with the number of each.
pub(crate) const RESPONSES: [(&str, u8); 4] = [
    ("READ_RESPONSE", wire::READ_RESPONSE),
    ("ACK", wire::ACK),
    ("NAK", wire::NAK),
    ("RNR_NAK", wire::RNR_NAK),
];
/// Name of the answer to an atomic.
pub(crate) const ATOMIC_RESPONSE: &str = "ATOMIC_RESPONSE";

/// Names of what Ethernet frames carry.
pub(crate) const PROTOCOLS: [&str; 6] = ["TCP", "UDP", "ICMP", "ARP", "IP", "ETHERNET"];

/// What an Ethernet frame carries.
fn protocol(frame: &[u8]) -> &'static str {
    let [tcp, udp, icmp, arp, ip, ethernet] = PROTOCOLS;
    let at = |place: usize| frame.get(place).copied();
    let carried = match (at(12), at(13)) {
        (Some(0x08), Some(0x06)) => return arp,
        (Some(0x08), Some(0x00)) => at(23),
        (Some(0x86), Some(0xdd)) => at(20),
        _ => return ethernet,
    };
    match carried {
        Some(6) => tcp,
        Some(17) => udp,
        Some(1 | 58) => icmp,
        _ => ip,
    }
}

fn operation(opcode: u8, is_atomic: bool) -> Option<&'static str> {
    if is_atomic {
        return Some(ATOMIC_RESPONSE);
    }
    let response = RESPONSES.iter().find(|(_, number)| *number == opcode);
    response.map_or_else(|| Opcode(opcode).name(), |(name, _)| Some(name))
}
