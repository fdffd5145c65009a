//! The connection manager's messages as management datagrams on QP1.
//!
//! Place: [`super::session`] makes frames of CM records with it. Invariants: a MAD has 256 bytes; reserved fields are 0. The service id and
//! the first 36 bytes of private data are those of the IP service of the CM, so addresses and ports can be read.
//! Source: IBA vol. 1, section 12.6 (REQ, REJ, REP, RTU, DREQ, DREP), 13.4 (MAD header), annex A11 (RDMA IP CM service).
//! What does not fit into their private data is cut. Hot: nothing.

use std::net::{IpAddr, SocketAddr};

use ring_proto::admin::{CmRecord, SockAddr};
use ring_proto::eqe::CmStatus;

use super::record::{self, CmMessage};

/// Bytes of a MAD.
pub(crate) const MAD: usize = 256;
/// QPN of the general service interface.
pub(crate) const GSI: u32 = 1;
/// Opcode of the BTH: unreliable datagram, send only.
pub(crate) const UD_SEND_ONLY: u8 = 0x64;
/// Q_Key of QP1.
const GSI_QKEY: u32 = 0x8001_0000;
/// Bytes of the MAD header.
const HEADER: usize = 24;
/// Private data of a REQ: where it begins in the MAD, and that of the consumer behind the addresses.
const REQ_PRIVATE: usize = HEADER + 140;
const REP_PRIVATE: usize = HEADER + 36;

/// Datagram extended transport header of QP1.
pub(crate) fn deth() -> Vec<u8> {
    [GSI_QKEY.to_be_bytes(), GSI.to_be_bytes()].concat()
}

/// The MAD of a message; `None` for one that is unknown.
pub(crate) fn mad(message: &CmMessage, record: &CmRecord) -> Option<[u8; MAD]> {
    let mut mad = Mad([0; MAD]);
    let (own, peer) = (message.qpn, message.peer_qpn);
    // Attribute id, and the exchange it belongs to: named by who began it.
    let (attribute, exchange) = match message.message {
        record::REQ => (0x10, u64::from(own) << 32 | 1),
        record::REJ | record::REP => (
            if message.message == record::REJ {
                0x12
            } else {
                0x13
            },
            u64::from(peer) << 32 | 1,
        ),
        record::RTU => (0x14, u64::from(own) << 32 | 1),
        record::DREQ => (0x15, u64::from(own) << 32 | 2),
        record::DREP => (0x16, u64::from(peer) << 32 | 2),
        _ => return None,
    };
    // Base version 1, class CM, class version 2, method Send.
    mad.put(0, &[1, 7, 2, 3]);
    mad.put(8, &exchange.to_be_bytes());
    mad.put(16, &u16::to_be_bytes(attribute));
    let data = HEADER;
    mad.put(data, &own.to_be_bytes());
    match message.message {
        record::REQ => request(&mut mad, message, record),
        record::REJ => {
            mad.put(data + 4, &peer.to_be_bytes());
            // A REQ is rejected; no further information.
            mad.put(data + 10, &reason(message.status).to_be_bytes());
        }
        record::REP => reply(&mut mad, message, record),
        record::DREQ => {
            mad.put(data + 4, &peer.to_be_bytes());
            mad.put_24(data + 8, peer);
        }
        _ => mad.put(data + 4, &peer.to_be_bytes()),
    }
    Some(mad.0)
}

struct Mad([u8; MAD]);

impl Mad {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn put_24(&mut self, at: usize, number: u32) {
        self.put(at, &number.to_be_bytes()[1..]);
    }
}

fn request(mad: &mut Mad, message: &CmMessage, record: &CmRecord) {
    let data = HEADER;
    let (source, destination) = (socket(record.source), socket(record.destination));
    // IP CM service, protocol TCP, port.
    let service = 0x0106_0000 | u64::from(destination.port());
    mad.put(data + 8, &service.to_be_bytes());
    mad.put(data + 16, &guid(message.function));
    mad.put_24(data + 32, message.qpn);
    mad.put(data + 35, &[message.responder_resources]);
    mad.put(data + 39, &[message.initiator_depth]);
    // Response timeout of 2^20 * 4.096 us; reliable connection; no end-to-end flow control.
    mad.put(data + 43, &[20 << 3]);
    mad.put_24(data + 44, message.psn);
    mad.put(data + 47, &[20 << 3 | message.retry_cnt & 7]);
    mad.put(data + 48, &[0xff, 0xff]);
    mad.put(data + 50, &[message.path_mtu << 4 | message.rnr_retry & 7]);
    // 15 retries of the CM; a shared receive queue or not.
    mad.put(data + 51, &[15 << 4 | message.has_srq << 3]);
    // Routed: permissive local identifiers, so the global ones count.
    mad.put(data + 52, &[0xff; 4]);
    mad.put(data + 56, &gid(source.ip()));
    mad.put(data + 72, &gid(destination.ip()));
    // 10 Gbit/s; 64 hops.
    mad.put(data + 91, &[3]);
    mad.put(data + 93, &[64]);
    mad.put(data + 95, &[message.timeout << 3]);
    // Version 0 of the IP service; the version of IP; port and addresses.
    let version = if source.is_ipv4() { 4 } else { 6 };
    mad.put(REQ_PRIVATE + 1, &[version << 4]);
    mad.put(REQ_PRIVATE + 2, &source.port().to_be_bytes());
    mad.put(REQ_PRIVATE + 4, &padded(source.ip()));
    mad.put(REQ_PRIVATE + 20, &padded(destination.ip()));
    private(mad, REQ_PRIVATE + 36, record);
}

fn reply(mad: &mut Mad, message: &CmMessage, record: &CmRecord) {
    let data = HEADER;
    mad.put(data + 4, &message.peer_qpn.to_be_bytes());
    mad.put_24(data + 12, message.qpn);
    mad.put_24(data + 20, message.psn);
    mad.put(
        data + 24,
        &[message.responder_resources, message.initiator_depth],
    );
    mad.put(data + 26, &[message.timeout << 3]);
    mad.put(data + 27, &[message.rnr_retry << 5 | message.has_srq << 4]);
    mad.put(data + 28, &guid(message.function));
    private(mad, REP_PRIVATE, record);
}

/// Private data, as much as fits.
fn private(mad: &mut Mad, at: usize, record: &CmRecord) {
    let len = (record.private_len as usize)
        .min(record.private_data.len())
        .min(MAD - at);
    mad.put(at, &record.private_data[..len]);
}

fn socket(address: SockAddr) -> SocketAddr {
    SocketAddr::try_from(address).unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)))
}

/// Of an address: itself, IPv4 mapped.
fn gid(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// As the IP service has it: IPv4 in the last four bytes, zeroes before it.
fn padded(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let mut bytes = [0; 16];
            bytes[12..].copy_from_slice(&address.octets());
            bytes
        }
        IpAddr::V6(address) => address.octets(),
    }
}

/// Of a function.
fn guid(function: u32) -> [u8; 8] {
    let [a, b, c, d] = function.to_be_bytes();
    [0x02, b'S', b'A', b'N', a, b, c, d]
}

/// Source: IBA vol. 1, table of REJ reasons.
fn reason(status: u8) -> u16 {
    match CmStatus(status.into()) {
        CmStatus::NO_LISTENER => 8,
        CmStatus::BACKLOG_FULL | CmStatus::NO_RESOURCE => 3,
        CmStatus::TIMED_OUT => 4,
        _ => 28,
    }
}
