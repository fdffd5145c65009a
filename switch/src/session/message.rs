//! Messages of the session protocol: layouts, encoding, and a decoder that trusts nothing.
//!
//! Place: `send` encodes into a message slot of the send ring; `recv` copies the head of a receive buffer once into private memory
//! and decodes the copy.
//! Invariants: every message starts with the same 32 bytes; reserved fields are zero and checked; negotiation messages are at most
//! 256 bytes. A [`Message`] proves that kind, flags, lengths and reserved fields are right; what depends on the state of
//! the connection (sequence, offsets, credits) is checked by its receiver.
//! Hot: [`Header::encode`], [`Message::decode`] for DATA and CREDIT.
//! Source; layout ours (docs/session.md). Leaves out: RDMA offers, suspension.

use core::mem::{offset_of, size_of};

use driver::spi::RdmaDescriptor;
use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

// Integers of the layouts are little-endian; the crates run on little-endian machines only.
const _: () = assert!(cfg!(target_endian = "little"));

/// Bytes of every message's header.
pub const HEADER_LEN: usize = 32;
/// Bytes of HELLO and HELLO_ACK.
pub const HELLO_LEN: usize = 128;
/// Most bytes of a negotiation message.
pub const MAX_NEGOTIATION_LEN: usize = 256;
/// Bytes of a message that its receiver copies before it decodes: no header is longer.
pub const MAX_HEAD: usize = HELLO_LEN;
/// Version of the protocol.
pub const VERSION: u16 = 1;
/// First word of a negotiation message: "SLSP".
pub const MAGIC: u32 = u32::from_le_bytes(*b"SLSP");
/// [`Header::place`] of a payload that follows the header.
pub const PLACE_INLINE: u32 = u32::MAX;
/// Feature bit: this side's provider can read remote memory, and its send ring may be read.
pub const FEATURE_RDMA_READ: u64 = 1;
/// Feature bits this version knows.
pub const KNOWN_FEATURES: u64 = FEATURE_RDMA_READ;
/// Flag: repeats a message whose sender died while posting it; the one before may never have left.
pub const FLAG_RESEND: u8 = 1;
/// Flag of DATA: its last byte is urgent.
pub const FLAG_URGENT: u8 = 2;

/// Fewest receives a peer may post: two of them are the reserve of R-131.
pub const MIN_RECEIVES: u32 = 4;
/// Most receives a peer may claim.
pub const MAX_RECEIVES: u32 = 4096;
/// Shortest receive buffer a peer may have.
pub const MIN_BUFFER: u32 = 512;
/// Longest receive buffer a peer may claim.
pub const MAX_BUFFER: u32 = 1 << 24;
/// Shortest send ring a peer may have.
pub const MIN_RING: u64 = 4096;
/// Longest send ring a peer may claim.
pub const MAX_RING: u64 = 1 << 30;

/// Kind of a message.
pub mod kind {
    /// First message of the connecting side.
    pub const HELLO: u8 = 1;
    /// Answer of the accepting side.
    pub const HELLO_ACK: u8 = 2;
    /// Stream bytes.
    pub const DATA: u8 = 3;
    /// Grants credits.
    pub const CREDIT: u8 = 4;
    /// No more stream bytes from this side.
    pub const FIN: u8 = 5;
    /// The connection ends here.
    pub const ABORT: u8 = 6;
}

/// Reason of an ABORT, in [`Header::place`].
pub mod abort {
    /// The program closed with unread data, or with linger 0, or data came after its close.
    pub const CLOSED: u32 = 1;
    /// The peer broke the protocol.
    pub const PROTOCOL: u32 = 2;
}

/// Head of every message.
#[repr(C)]
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Header {
    /// [`kind`].
    pub kind: u8,
    /// `FLAG_*`.
    pub flags: u8,
    /// Number of the message on this connection and direction, modulo 2^16.
    pub sequence: u16,
    /// Bytes of payload after the header.
    pub payload_len: u32,
    /// Offset of the payload's first byte in the sender's stream; of the end for CREDIT, FIN and ABORT.
    pub stream_offset: u64,
    /// Bytes of the receiver's stream that the sender's program has taken.
    pub consumed: u64,
    /// Receives the sender has posted since the start, modulo 2^32.
    pub credit_total: u32,
    /// Where the payload lies: [`PLACE_INLINE`]; reason of an ABORT.
    pub place: u32,
}

const _: () = {
    assert!(size_of::<Header>() == HEADER_LEN);
    assert!(offset_of!(Header, sequence) == 2);
    assert!(offset_of!(Header, payload_len) == 4);
    assert!(offset_of!(Header, stream_offset) == 8);
    assert!(offset_of!(Header, consumed) == 16);
    assert!(offset_of!(Header, credit_total) == 24);
    assert!(offset_of!(Header, place) == 28);
};

impl Header {
    /// The header's bytes.
    #[inline]
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        zerocopy::transmute!(*self)
    }
}

/// Body of HELLO and HELLO_ACK.
#[repr(C)]
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
struct RawHello {
    magic: u32,
    version: u16,
    reserved0: u16,
    features: u64,
    buffer_len: u32,
    receives: u32,
    ring: RawDescriptor,
    ring_len: u64,
    data_offset: u32,
    rdma_threshold: u32,
    reserved1: [u64; 4],
}

/// [`RdmaDescriptor`] as it travels.
#[repr(C)]
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
struct RawDescriptor {
    addr: u64,
    len: u64,
    rkey: u32,
    access: u32,
}

const _: () = {
    assert!(HEADER_LEN + size_of::<RawHello>() == HELLO_LEN);
    assert!(HELLO_LEN <= MAX_NEGOTIATION_LEN);
    assert!(offset_of!(RawHello, features) == 8);
    assert!(offset_of!(RawHello, buffer_len) == 16);
    assert!(offset_of!(RawHello, ring) == 24);
    assert!(offset_of!(RawHello, ring_len) == 48);
    assert!(offset_of!(RawHello, data_offset) == 56);
};

/// What a side tells of itself in HELLO and HELLO_ACK. Holding one from the decoder proves the bounds of this module's constants, and
/// that ring and header page lie inside the descriptor's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hello {
    /// Feature bits.
    pub features: u64,
    /// Longest message this side can receive, header included.
    pub buffer_len: u32,
    /// Receives posted.
    pub receives: u32,
    /// Send ring with its header page, readable by the peer.
    pub ring: RdmaDescriptor,
    /// Bytes of the ring's data part.
    pub ring_len: u64,
    /// Where the data part starts in the ring's memory.
    pub data_offset: u32,
    /// Transfers above this would use RDMA; 0: none.
    pub rdma_threshold: u32,
}

impl Hello {
    /// The whole message.
    #[must_use]
    pub fn encode(&self, header: &Header) -> [u8; HELLO_LEN] {
        let body = RawHello {
            magic: MAGIC,
            version: VERSION,
            features: self.features,
            buffer_len: self.buffer_len,
            receives: self.receives,
            ring: RawDescriptor {
                addr: self.ring.addr,
                len: self.ring.len,
                rkey: self.ring.rkey,
                access: self.ring.access,
            },
            ring_len: self.ring_len,
            data_offset: self.data_offset,
            rdma_threshold: self.rdma_threshold,
            ..RawHello::default()
        };
        let mut bytes = [0; HELLO_LEN];
        bytes[..HEADER_LEN].copy_from_slice(header.as_bytes());
        bytes[HEADER_LEN..].copy_from_slice(body.as_bytes());
        bytes
    }

    /// Payload length a negotiation message states.
    pub const PAYLOAD_LEN: u32 = {
        #[expect(clippy::cast_possible_truncation, reason = "96")]
        let len = (HELLO_LEN - HEADER_LEN) as u32;
        len
    };

    fn decode(head: &[u8]) -> Result<Self, Malformed> {
        let body = head
            .get(HEADER_LEN..HELLO_LEN)
            .ok_or(Malformed::Short(head.len()))?;
        let raw = RawHello::read_from_bytes(body).map_err(|_| Malformed::Short(head.len()))?;
        if raw.magic != MAGIC {
            return Err(Malformed::Magic(raw.magic));
        }
        if raw.version != VERSION {
            return Err(Malformed::Version(raw.version));
        }
        if raw.reserved0 != 0 || raw.reserved1 != [0; 4] {
            return Err(Malformed::Reserved);
        }
        if raw.features & !KNOWN_FEATURES != 0 {
            return Err(Malformed::Features(raw.features));
        }
        if !(MIN_BUFFER..=MAX_BUFFER).contains(&raw.buffer_len) {
            return Err(Malformed::Buffer(raw.buffer_len));
        }
        if !(MIN_RECEIVES..=MAX_RECEIVES).contains(&raw.receives) {
            return Err(Malformed::Receives(raw.receives));
        }
        let end = u64::from(raw.data_offset).checked_add(raw.ring_len);
        if !(MIN_RING..=MAX_RING).contains(&raw.ring_len)
            || u64::from(raw.data_offset) < super::ring::HEADER_BYTES
            || end.is_none_or(|end| end > raw.ring.len)
            || raw.ring.addr.checked_add(raw.ring.len).is_none()
        {
            return Err(Malformed::Ring {
                ring_len: raw.ring_len,
                data_offset: raw.data_offset,
                region_len: raw.ring.len,
            });
        }
        Ok(Self {
            features: raw.features,
            buffer_len: raw.buffer_len,
            receives: raw.receives,
            ring: RdmaDescriptor {
                addr: raw.ring.addr,
                len: raw.ring.len,
                rkey: raw.ring.rkey,
                access: raw.ring.access,
            },
            ring_len: raw.ring_len,
            data_offset: raw.data_offset,
            rdma_threshold: raw.rdma_threshold,
        })
    }
}

/// A decoded message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    /// Number, modulo 2^16.
    pub sequence: u16,
    /// Whether it repeats one that may have been lost with its sender.
    pub is_resend: bool,
    /// Offset in the sender's stream.
    pub stream_offset: u64,
    /// Bytes of ours that the peer's program has taken.
    pub consumed: u64,
    /// Receives the peer has posted, modulo 2^32.
    pub credit_total: u32,
    /// What it says.
    pub body: Body,
}

/// What a message says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Body {
    /// HELLO.
    Hello(Hello),
    /// HELLO_ACK.
    HelloAck(Hello),
    /// DATA with so many bytes behind the header, at least one.
    Data {
        /// Bytes.
        len: u32,
        /// Whether the last of them is urgent.
        is_urgent: bool,
    },
    /// CREDIT.
    Credit,
    /// FIN.
    Fin,
    /// ABORT.
    Abort {
        /// [`abort`]; unknown reasons are legal.
        reason: u32,
    },
}

/// Why a message is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum Malformed {
    /// Fewer bytes than its kind needs.
    #[error("message of {0} bytes is too short")]
    Short(usize),
    /// Unknown kind.
    #[error("unknown message kind {0}")]
    Kind(u8),
    /// Unknown flags.
    #[error("unknown message flags {0:#x}")]
    Flags(u8),
    /// A reserved field is not zero.
    #[error("reserved field is not zero")]
    Reserved,
    /// The payload length contradicts the message's.
    #[error("payload of {claimed} bytes in a message of {received}")]
    Length {
        /// Length in the header.
        claimed: u32,
        /// Bytes that came.
        received: usize,
    },
    /// The payload lies where it must not.
    #[error("payload at {0:#x}")]
    Place(u32),
    /// Not our protocol.
    #[error("negotiation magic {0:#x}")]
    Magic(u32),
    /// A version we do not speak.
    #[error("protocol version {0}")]
    Version(u16),
    /// Feature bits nobody told us of.
    #[error("unknown features {0:#x}")]
    Features(u64),
    /// Receive buffer out of bounds.
    #[error("receive buffers of {0} bytes")]
    Buffer(u32),
    /// Number of receives out of bounds.
    #[error("{0} receives")]
    Receives(u32),
    /// Send ring out of bounds.
    #[error("ring of {ring_len} bytes at {data_offset} in {region_len}")]
    Ring {
        /// Claimed data bytes.
        ring_len: u64,
        /// Claimed start.
        data_offset: u32,
        /// Length of the descriptor.
        region_len: u64,
    },
}

impl Message {
    /// Decodes the private copy `head` of the first bytes of a message of `received` bytes. `head` holds all of them, or
    /// [`MAX_HEAD`].
    ///
    /// # Errors
    /// [`Malformed`]: the peer broke the protocol.
    pub fn decode(head: &[u8], received: usize) -> Result<Self, Malformed> {
        let header = head
            .get(..HEADER_LEN)
            .and_then(|bytes| Header::read_from_bytes(bytes).ok())
            .ok_or(Malformed::Short(received))?;
        let is_urgent = header.flags & FLAG_URGENT != 0;
        if header.flags & !(FLAG_RESEND | FLAG_URGENT) != 0
            || (is_urgent && header.kind != kind::DATA)
        {
            return Err(Malformed::Flags(header.flags));
        }
        let length = Malformed::Length {
            claimed: header.payload_len,
            received,
        };
        // A length that does not fit `usize` cannot equal what came.
        let claimed = usize::try_from(header.payload_len).map_err(|_| length)?;
        if received.checked_sub(HEADER_LEN) != Some(claimed) {
            return Err(length);
        }
        let bare = |body| match (header.payload_len, header.place) {
            (0, PLACE_INLINE) => Ok(body),
            (0, place) => Err(Malformed::Place(place)),
            _ => Err(length),
        };
        let hello = || {
            if header.payload_len != Hello::PAYLOAD_LEN {
                return Err(length);
            }
            if header.place != PLACE_INLINE {
                return Err(Malformed::Place(header.place));
            }
            Hello::decode(head)
        };
        let body = match header.kind {
            kind::HELLO => Body::Hello(hello()?),
            kind::HELLO_ACK => Body::HelloAck(hello()?),
            kind::DATA if header.payload_len == 0 => return Err(length),
            kind::DATA if header.place != PLACE_INLINE => {
                return Err(Malformed::Place(header.place));
            }
            kind::DATA => Body::Data {
                len: header.payload_len,
                is_urgent,
            },
            kind::CREDIT => bare(Body::Credit)?,
            kind::FIN => bare(Body::Fin)?,
            kind::ABORT if header.payload_len != 0 => return Err(length),
            kind::ABORT => Body::Abort {
                reason: header.place,
            },
            unknown => return Err(Malformed::Kind(unknown)),
        };
        Ok(Self {
            sequence: header.sequence,
            is_resend: header.flags & FLAG_RESEND != 0,
            stream_offset: header.stream_offset,
            consumed: header.consumed,
            credit_total: header.credit_total,
            body,
        })
    }
}
