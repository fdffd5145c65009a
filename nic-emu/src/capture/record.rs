//! One record of a capture: what a port saw, when, and what became of it.
//!
//! Place: [`crate::device`] fills it, the ring carries it with its bytes behind it, [`super::frame`] makes a frame of it.
//! Invariants: plain integers, 128 bytes; a reader that finds an unknown kind skips it. Source: ours.

use ring_proto::admin::CmRecord;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::device::wire::Header;

/// Kind: a packet of a QP; its payload follows.
pub(crate) const PACKET: u8 = 1;
/// Kind: a message of the connection manager; a [`CmMessage`] and a [`CmRecord`] follow.
pub(crate) const CM: u8 = 2;

/// Kind: a frame of the wire of namespace mode; it follows.
pub(crate) const FRAME: u8 = 3;

/// Receiver of a frame that goes to several ports.
pub(crate) const EVERYBODY: u16 = u16::MAX;

/// Direction: it came in by the port.
pub(crate) const INBOUND: u8 = 1;
/// Direction: it left by the port.
pub(crate) const OUTBOUND: u8 = 2;

/// Fate: the link will lose it.
pub(crate) const LOST: u8 = 1;
/// Fate: the link is cut, or a port is down.
pub(crate) const CUT: u8 = 2;
/// Fate: later ones will overtake it.
pub(crate) const HELD: u8 = 4;
/// Fate: it will arrive twice.
pub(crate) const DOUBLED: u8 = 8;
/// Fate: outbound, a bit will flip; inbound, the bit at `damaged_bit` has flipped.
pub(crate) const DAMAGED: u8 = 16;

/// Head of a record.
#[repr(C)]
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub(crate) struct Record {
    /// Bytes behind the head.
    pub(crate) bytes: u32,
    /// Bytes there were; more than `bytes` when the capture wants no more.
    pub(crate) whole_bytes: u32,
    /// Time of the device's clock.
    pub(crate) at_ns: u64,
    /// Which flipped, counted over header, payload and check of the device's own frame.
    pub(crate) damaged_bit: u32,
    pub(crate) kind: u8,
    pub(crate) direction: u8,
    pub(crate) fate: u8,
    pub(crate) reserved: u8,
    /// Node whose port saw it.
    pub(crate) port: u16,
    pub(crate) from: u16,
    pub(crate) to: u16,
    pub(crate) reserved_too: u16,
    /// Of a packet: its transport header.
    pub(crate) header: Header,
    pub(crate) unused: [u64; 5],
}

/// Bytes of a record's head.
pub(crate) const HEAD: usize = size_of::<Record>();

const _: () = assert!(HEAD == 128);

/// Message: connection request.
pub(crate) const REQ: u8 = 1;
/// Message: the request is refused.
pub(crate) const REJ: u8 = 2;
/// Message: the request is accepted.
pub(crate) const REP: u8 = 3;
/// Message: the connector is ready to use.
pub(crate) const RTU: u8 = 4;
/// Message: the connection is over.
pub(crate) const DREQ: u8 = 5;
/// Message: answer to that.
pub(crate) const DREP: u8 = 6;

/// A message of the connection manager.
#[repr(C)]
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub(crate) struct CmMessage {
    /// QPN of the sender and of its peer; 0 where it has none.
    pub(crate) qpn: u32,
    pub(crate) peer_qpn: u32,
    /// Functions, which with the QPNs name the connection.
    pub(crate) function: u32,
    pub(crate) peer_function: u32,
    /// First PSN of the sender.
    pub(crate) psn: u32,
    pub(crate) message: u8,
    /// REJ: status of the connection manager.
    pub(crate) status: u8,
    pub(crate) path_mtu: u8,
    pub(crate) timeout: u8,
    pub(crate) retry_cnt: u8,
    pub(crate) rnr_retry: u8,
    pub(crate) responder_resources: u8,
    pub(crate) initiator_depth: u8,
    pub(crate) has_srq: u8,
    pub(crate) reserved: [u8; 3],
}

const _: () = assert!(size_of::<CmMessage>() == 32);

/// Splits the bytes of a CM record.
pub(crate) fn open_cm(bytes: &[u8]) -> Option<(CmMessage, CmRecord)> {
    let (message, rest) = CmMessage::read_from_prefix(bytes).ok()?;
    let (record, _) = CmRecord::read_from_prefix(rest).ok()?;
    Some((message, record))
}
