//! The frames of packet mode: header, payload, check.
//!
//! Place: requester and responder build and read them, the link carries the bytes.
//! Invariants: a frame whose check fits is exactly as it was sent; whatever else arrives is dropped. PSNs have 24 bits and are compared
//! by distance. Source: the transport headers of IBA vol. 1, chapter 9 (BTH, RETH, AETH, immediate) by their fields; the layout is
//! ours, one fixed header, and the acknowledge carries our syndrome beside the verbs status. The check is CRC-32 as in the ICRC.
//!
//! ```text
//!  0 opcode 1 flags 2 status 3 timer 4 psn | 8 from function, qpn | 16 to function, qpn | 24 total, offset | 32 remote address
//!  40 rkey 44 immediate 48 length 52 syndrome | 56 payload ... | check (4 bytes)
//! ```

use ring_proto::status::{Syndrome, WcStatus};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::attributes::PSN_MASK;

/// Header of a frame. Requests carry the WQE's opcode; what is not said is 0.
#[repr(C)]
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub(crate) struct Header {
    /// Opcode of a send WQE, or [`READ_RESPONSE`], [`ACK`], [`NAK`], [`RNR_NAK`].
    pub(crate) opcode: u8,
    /// [`FIRST`], [`LAST`], [`ACK_REQUEST`], [`SOLICITED`], [`ATOMIC`]. Of a READ response: within those of its request.
    pub(crate) flags: u8,
    /// NAK: status for the requester, or 0 for a gap in the sequence.
    pub(crate) status: u8,
    /// RNR NAK: timer code.
    pub(crate) timer: u8,
    pub(crate) psn: u32,
    pub(crate) from_function: u32,
    pub(crate) from_qpn: u32,
    pub(crate) to_function: u32,
    pub(crate) to_qpn: u32,
    /// Bytes of the whole message.
    pub(crate) total: u32,
    /// Place of the payload in the message; READ request: first byte wanted.
    pub(crate) offset: u32,
    pub(crate) remote_addr: u64,
    pub(crate) rkey: u32,
    /// Immediate; READ request: bytes of a full response; response: how many messages the responder has completed.
    pub(crate) imm: u32,
    /// Bytes of payload; READ request: bytes wanted.
    pub(crate) length: u32,
    /// NAK: the exact check that failed.
    pub(crate) syndrome: u32,
}

const _: () = assert!(size_of::<Header>() == 56);

/// Answer with data of a READ.
pub(crate) const READ_RESPONSE: u8 = 0x80;
/// Everything up to the PSN has arrived.
pub(crate) const ACK: u8 = 0x81;
/// The PSN is missing (status 0), or its request failed.
pub(crate) const NAK: u8 = 0x82;
/// The PSN found no receive.
pub(crate) const RNR_NAK: u8 = 0x83;

/// First packet of its message.
pub(crate) const FIRST: u8 = 1;
/// Last packet of its message.
pub(crate) const LAST: u8 = 2;
/// The requester wants an acknowledge.
pub(crate) const ACK_REQUEST: u8 = 4;
/// The message is solicited.
pub(crate) const SOLICITED: u8 = 8;

/// The response is the original value of an atomic.
pub(crate) const ATOMIC: u8 = 16;

impl Header {
    /// The frame with a payload.
    pub(crate) fn frame(self, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(size_of::<Self>() + payload.len() + 4);
        bytes.extend_from_slice(self.as_bytes());
        bytes.extend_from_slice(payload);
        let check = crc32(&bytes);
        bytes.extend_from_slice(&check.to_le_bytes());
        bytes
    }

    /// Header and payload of a frame; `None` when its check does not fit.
    pub(crate) fn open(frame: &[u8]) -> Option<(Self, &[u8])> {
        let (bytes, check) = frame.split_last_chunk::<4>()?;
        if crc32(bytes).to_le_bytes() != *check {
            return None;
        }
        let (header, payload) = Self::read_from_prefix(bytes).ok()?;
        Some((header, payload))
    }

    pub(crate) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// What a NAK tells the requester.
    pub(crate) fn error(&self) -> (WcStatus, Syndrome) {
        let syndrome = u16::try_from(self.syndrome).map_or(Syndrome::INTERNAL_ERROR, Syndrome);
        (WcStatus(self.status), syndrome)
    }
}

/// The PSN `by` packets later.
pub(crate) fn later(psn: u32, by: u32) -> u32 {
    psn.wrapping_add(by) & PSN_MASK
}

/// Packets from one PSN to another, going forward.
pub(crate) fn distance(from: u32, to: u32) -> u32 {
    to.wrapping_sub(from) & PSN_MASK
}

/// Whether a PSN lies before another, within half the space.
pub(crate) fn is_before(psn: u32, other: u32) -> bool {
    (1..=PSN_MASK / 2).contains(&distance(psn, other))
}

const CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0u32;
    while byte < 256 {
        let mut crc = byte;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & 0u32.wrapping_sub(crc & 1));
            bit += 1;
        }
        table[byte as usize] = crc;
        byte += 1;
    }
    table
};

/// CRC-32 as in IEEE 802.3 and the ICRC.
fn crc32(bytes: &[u8]) -> u32 {
    let crc = bytes.iter().fold(u32::MAX, |crc, &byte| {
        let [low, ..] = crc.to_le_bytes();
        (crc >> 8) ^ CRC_TABLE[usize::from(low ^ byte)]
    });
    !crc
}

#[cfg(test)]
mod tests {
    use super::{Header, PSN_MASK, crc32, distance, is_before, later};

    #[test]
    fn every_flipped_bit_is_found() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        let header = Header {
            psn: 7,
            ..Header::default()
        };
        let frame = header.frame(b"payload");
        assert_eq!(Header::open(&frame), Some((header, &b"payload"[..])));
        for bit in 0..frame.len() * 8 {
            let mut broken = frame.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::open(&broken), None, "bit {bit}");
        }
        for len in 0..frame.len() {
            assert_eq!(Header::open(&frame[..len]), None, "{len} bytes");
        }
    }

    #[test]
    fn psns_wrap_at_24_bits() {
        assert_eq!(later(PSN_MASK, 1), 0);
        assert_eq!(distance(PSN_MASK, 2), 3);
        assert!(is_before(PSN_MASK, 0) && !is_before(0, PSN_MASK) && !is_before(5, 5));
    }
}
