//! A packet as RoCEv2 puts it on Ethernet: addresses, transport headers, payload, ICRC.
//!
//! Place: [`super::session`] gives what a record says, [`super::cm_mad`] the MADs; out comes the frame.
//! Invariants: every length and pad is that of the whole packet, also when only its beginning was captured. The ICRC is right unless the
//! packet was damaged on the way: then the same bit of the payload has flipped, or one of the ICRC, so that headers stay what they were.
//! Source: IBA vol. 1, chapters 5 and 9 (BTH, RETH, AETH, AtomicETH, IETH, ICRC), annex A17 (RoCEv2). UDP source ports are ours, by QP, as
//! adapters spread flows. Hot: nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ring_proto::status::{Opcode, WcStatus};

use crate::device::wire::{self, Header};

/// UDP port of RoCEv2.
const ROCE_PORT: u16 = 4791;
/// Default partition key.
const PKEY: u16 = 0xffff;
/// Credits of an AETH: none are counted.
const NO_CREDITS: u8 = 0x1f;
/// Bytes of the device's own header and check, for the place of a flipped bit.
const OWN_HEADER_BITS: u32 = 8 * 56;

const _: () = assert!(size_of::<Header>() == 56);

/// A port on Ethernet and IP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Endpoint {
    pub(crate) mac: [u8; 6],
    pub(crate) address: Option<Ipv4Addr>,
}

impl Endpoint {
    /// Of a node: its number makes the Ethernet address.
    pub(crate) fn of(node: u16, address: Option<Ipv4Addr>) -> Self {
        let [high, low] = node.to_be_bytes();
        Self {
            // Locally administered, "SAN".
            mac: [0x02, b'S', b'A', b'N', high, low],
            address,
        }
    }

    /// Its link-local address (RFC 4291, appendix A).
    fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.mac;
        let id = [a ^ 2, b, c, 0xff, 0xfe, d, e, f];
        let mut octets = [0; 16];
        octets[..2].copy_from_slice(&[0xfe, 0x80]);
        octets[8..].copy_from_slice(&id);
        octets.into()
    }
}

/// What makes a frame.
#[derive(Debug)]
pub(crate) struct Parts<'a> {
    pub(crate) from: Endpoint,
    pub(crate) to: Endpoint,
    /// Tells flows apart: QPNs of both ends.
    pub(crate) flow: (u32, u32),
    /// Base transport header.
    pub(crate) opcode: u8,
    pub(crate) is_solicited: bool,
    pub(crate) asks_ack: bool,
    pub(crate) qpn: u32,
    pub(crate) psn: u32,
    /// Extended transport headers.
    pub(crate) extended: Vec<u8>,
    /// The beginning of the payload, and how long it is.
    pub(crate) payload: &'a [u8],
    pub(crate) payload_len: usize,
    /// The bit that flipped, as [`super::record::Record`] counts.
    pub(crate) flipped: Option<u32>,
}

/// A frame, perhaps only its beginning.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Built {
    pub(crate) bytes: Vec<u8>,
    pub(crate) whole_len: usize,
}

impl Parts<'_> {
    pub(crate) fn build(&self) -> Built {
        let pad = self.payload_len.wrapping_neg() % 4;
        let pad_count = u8::try_from(pad).unwrap_or(0);
        let transport = 12 + self.extended.len() + self.payload_len + pad + 4;
        let mut bytes = Vec::with_capacity(14 + 40 + 8 + transport);
        bytes.extend_from_slice(&self.to.mac);
        bytes.extend_from_slice(&self.from.mac);
        let udp_len = 8 + transport;
        let ip = self.ip(udp_len, &mut bytes);
        let udp = bytes.len();
        bytes.extend_from_slice(&self.source_port().to_be_bytes());
        bytes.extend_from_slice(&ROCE_PORT.to_be_bytes());
        bytes.extend_from_slice(&short(udp_len).to_be_bytes());
        bytes.extend_from_slice(&[0, 0]);
        let bth = bytes.len();
        bytes.push(self.opcode);
        // Solicited event, migrated path, pad count, version 0.
        bytes.push(u8::from(self.is_solicited) << 7 | 1 << 6 | pad_count << 4);
        bytes.extend_from_slice(&PKEY.to_be_bytes());
        bytes.extend_from_slice(&self.qpn.to_be_bytes());
        bytes[bth + 4] = 0;
        bytes.extend_from_slice(&self.psn.to_be_bytes());
        bytes[bth + 8] = u8::from(self.asks_ack) << 7;
        bytes.extend_from_slice(&self.extended);
        let payload = bytes.len();
        bytes.extend_from_slice(self.payload);
        let is_whole = self.payload.len() == self.payload_len;
        if is_whole {
            bytes.resize(bytes.len() + pad, 0);
            let crc = icrc(&bytes[ip..], udp - ip);
            bytes.extend_from_slice(&crc.to_le_bytes());
            if bytes[ip] >> 4 == 6 {
                let sum = udp_checksum(&bytes[ip + 8..ip + 40], &bytes[udp..]);
                bytes[udp + 6..udp + 8].copy_from_slice(&sum.to_be_bytes());
            }
        }
        if let Some(bit) = self.flipped {
            damage(&mut bytes, payload, self.payload.len(), is_whole, bit);
        }
        Built {
            bytes,
            whole_len: udp + udp_len,
        }
    }

    /// Ethernet's type and the IP header; where the latter begins.
    fn ip(&self, udp_len: usize, bytes: &mut Vec<u8>) -> usize {
        if let (Some(from), Some(to)) = (self.from.address, self.to.address) {
            bytes.extend_from_slice(&[0x08, 0x00]);
            let ip = bytes.len();
            bytes.extend_from_slice(&[0x45, 0]);
            bytes.extend_from_slice(&short(20 + udp_len).to_be_bytes());
            // Not to be fragmented; 64 hops; UDP; checksum below.
            bytes.extend_from_slice(&[0, 0, 0x40, 0, 64, 17, 0, 0]);
            bytes.extend_from_slice(&from.octets());
            bytes.extend_from_slice(&to.octets());
            let sum = checksum(&[&bytes[ip..]]);
            bytes[ip + 10..ip + 12].copy_from_slice(&sum.to_be_bytes());
            ip
        } else {
            bytes.extend_from_slice(&[0x86, 0xdd]);
            let ip = bytes.len();
            bytes.extend_from_slice(&[0x60, 0, 0, 0]);
            bytes.extend_from_slice(&short(udp_len).to_be_bytes());
            bytes.extend_from_slice(&[17, 64]);
            bytes.extend_from_slice(&self.from.link_local().octets());
            bytes.extend_from_slice(&self.to.link_local().octets());
            ip
        }
    }

    /// In the dynamic range, the same for all packets of a direction of a connection.
    fn source_port(&self) -> u16 {
        let (one, other) = self.flow;
        let mixed = one.wrapping_mul(0x9e37_79b1) ^ other.wrapping_mul(0x85eb_ca77);
        0xc000 | (mixed >> 18) as u16
    }
}

fn short(len: usize) -> u16 {
    u16::try_from(len).expect("packets have at most 4096 bytes of payload")
}

/// Flips a bit that a link flipped in the device's own frame.
fn damage(bytes: &mut [u8], payload: usize, captured: usize, is_whole: bool, bit: u32) {
    let in_payload = bit
        .checked_sub(OWN_HEADER_BITS)
        .map(|bit| bit as usize)
        .filter(|bit| bit / 8 < captured);
    let place = match in_payload {
        Some(bit) => Some(payload + bit / 8),
        None if is_whole => Some(bytes.len() - 4 + (bit / 8 % 4) as usize),
        None => None,
    };
    if let Some(byte) = place.and_then(|place| bytes.get_mut(place)) {
        *byte ^= 1 << (bit % 8);
    }
}

/// The invariant CRC over an IP packet whose header has `header` bytes: what routers change counts as ones.
fn icrc(ip: &[u8], header: usize) -> u32 {
    let mut masked = [0xff; 8 + 40 + 8 + 12];
    let known = header + 8 + 12;
    masked[8..8 + known].copy_from_slice(&ip[..known]);
    let mask: &[usize] = if header == 20 {
        // Type of service, time to live, checksum.
        &[1, 8, 10, 11]
    } else {
        // Traffic class, flow label, hop limit; the version stays.
        &[1, 2, 3, 7]
    };
    for &at in mask {
        masked[8 + at] = 0xff;
    }
    if header != 20 {
        masked[8] |= 0x0f;
    }
    // UDP checksum; congestion bits of the BTH.
    for at in [header + 6, header + 7, header + 8 + 4] {
        masked[8 + at] = 0xff;
    }
    let mut crc = crc32fast::Hasher::new();
    crc.update(&masked[..8 + known]);
    crc.update(&ip[known..]);
    crc.finalize()
}

/// The Internet checksum.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u64;
    for part in parts {
        for pair in part.chunks(2) {
            let low = pair.get(1).copied().unwrap_or(0);
            sum += u64::from(u16::from_be_bytes([pair[0], low]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

/// Of UDP over IPv6, which must have one; `addresses` are both, in order.
fn udp_checksum(addresses: &[u8], udp: &[u8]) -> u16 {
    let len = u32::try_from(udp.len()).unwrap_or(0).to_be_bytes();
    match checksum(&[addresses, &len, &[0, 0, 0, 17], udp]) {
        0 => 0xffff,
        sum => sum,
    }
}

/// Opcode of the BTH and extended headers of a packet of a QP. `None`: nothing that RoCE has.
pub(crate) fn headers(header: &Header, payload: &[u8]) -> Option<(u8, Vec<u8>)> {
    let is_first = header.has(wire::FIRST);
    let is_last = header.has(wire::LAST);
    // Place in its message: first, middle, last, only.
    let place = match (is_first, is_last) {
        (true, false) => 0,
        (false, false) => 1,
        (false, true) => 2,
        (true, true) => 3,
    };
    let imm = header.imm.to_be_bytes();
    let mut reth = Vec::new();
    let start = header.remote_addr.wrapping_add(header.offset.into());
    reth.extend_from_slice(&start.to_be_bytes());
    reth.extend_from_slice(&header.rkey.to_be_bytes());
    let opcode = match Opcode(header.opcode) {
        Opcode::SEND => ([0x00, 0x01, 0x02, 0x04][place], Vec::new()),
        Opcode::SEND_WITH_IMM if is_last => ([0, 0, 0x03, 0x05][place], imm.to_vec()),
        Opcode::SEND_WITH_INV if is_last => ([0, 0, 0x16, 0x17][place], imm.to_vec()),
        Opcode::SEND_WITH_IMM | Opcode::SEND_WITH_INV => ([0x00, 0x01, 0, 0][place], Vec::new()),
        Opcode::RDMA_WRITE | Opcode::RDMA_WRITE_WITH_IMM => {
            let has_imm = is_last && Opcode(header.opcode) == Opcode::RDMA_WRITE_WITH_IMM;
            let mut extended = Vec::new();
            if is_first {
                extended.extend_from_slice(&reth);
                extended.extend_from_slice(&header.total.to_be_bytes());
            }
            if has_imm {
                extended.extend_from_slice(&imm);
                ([0, 0, 0x09, 0x0b][place], extended)
            } else {
                ([0x06, 0x07, 0x08, 0x0a][place], extended)
            }
        }
        Opcode::RDMA_READ => {
            reth.extend_from_slice(&header.length.to_be_bytes());
            (0x0c, reth)
        }
        Opcode::ATOMIC_CMP_AND_SWP | Opcode::ATOMIC_FETCH_AND_ADD => {
            let (compare_add, swap) = payload.get(..16)?.split_at(8);
            let word = |bytes: &[u8]| {
                let mut bytes = bytes.to_vec();
                bytes.reverse();
                bytes
            };
            let mut extended = header.remote_addr.to_be_bytes().to_vec();
            extended.extend_from_slice(&header.rkey.to_be_bytes());
            // AtomicETH: swap or add, then compare.
            if Opcode(header.opcode) == Opcode::ATOMIC_CMP_AND_SWP {
                extended.extend(word(swap));
                extended.extend(word(compare_add));
                (0x13, extended)
            } else {
                extended.extend(word(compare_add));
                extended.extend([0; 8]);
                (0x14, extended)
            }
        }
        Opcode(wire::READ_RESPONSE) if header.has(wire::ATOMIC) => {
            let mut extended = aeth(NO_CREDITS, header);
            let mut original = payload.get(..8)?.to_vec();
            original.reverse();
            extended.extend(original);
            (0x12, extended)
        }
        Opcode(wire::READ_RESPONSE) => {
            let has_aeth = is_first || is_last;
            let extended = if has_aeth {
                aeth(NO_CREDITS, header)
            } else {
                Vec::new()
            };
            ([0x0d, 0x0e, 0x0f, 0x10][place], extended)
        }
        Opcode(wire::ACK) => (0x11, aeth(NO_CREDITS, header)),
        Opcode(wire::RNR_NAK) => (0x11, aeth(0x20 | header.timer & 0x1f, header)),
        Opcode(wire::NAK) => (0x11, aeth(0x60 | nak_code(WcStatus(header.status)), header)),
        _ => return None,
    };
    Some(opcode)
}

/// Whether the payload of a packet travels behind its headers, not in them.
pub(crate) fn carries_payload(header: &Header) -> bool {
    let is_atomic = matches!(
        Opcode(header.opcode),
        Opcode::ATOMIC_CMP_AND_SWP | Opcode::ATOMIC_FETCH_AND_ADD
    );
    let is_answer = header.opcode == wire::READ_RESPONSE && header.has(wire::ATOMIC);
    !is_atomic && !is_answer
}

fn aeth(syndrome: u8, header: &Header) -> Vec<u8> {
    let [_, msn @ ..] = header.imm.to_be_bytes();
    [&[syndrome][..], &msn].concat()
}

/// Source: IBA vol. 1, table of NAK codes.
fn nak_code(status: WcStatus) -> u8 {
    match status {
        WcStatus::SUCCESS => 0,
        WcStatus::REM_ACCESS_ERR => 2,
        WcStatus::REM_OP_ERR => 3,
        _ => 1,
    }
}

/// Addresses as the text of a node's has them, without the prefix.
pub(crate) fn address_of(text: &str) -> Option<Ipv4Addr> {
    let address = text.split('/').next()?;
    match address.parse().ok()? {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(payload: &[u8]) -> Parts<'_> {
        Parts {
            from: Endpoint::of(0, Some(Ipv4Addr::new(127, 77, 0, 1))),
            to: Endpoint::of(1, Some(Ipv4Addr::new(127, 77, 0, 2))),
            flow: (1, 2),
            opcode: 4,
            is_solicited: true,
            asks_ack: true,
            qpn: 0x1234,
            psn: 0xab_cdef,
            extended: Vec::new(),
            payload,
            payload_len: payload.len(),
            flipped: None,
        }
    }

    #[test]
    fn the_beginning_of_a_packet_is_that_of_the_whole() {
        let payload: Vec<u8> = (0..=255).collect();
        let whole = parts(&payload[..101]).build();
        assert_eq!(whole.bytes.len(), whole.whole_len);
        assert_eq!(whole.whole_len, 14 + 20 + 8 + 12 + 104 + 4);
        let part = Parts {
            payload_len: 101,
            ..parts(&payload[..40])
        }
        .build();
        assert_eq!(part.whole_len, whole.whole_len);
        assert_eq!(part.bytes[..], whole.bytes[..part.bytes.len()]);
    }

    #[test]
    fn damage_shows_where_it_happened_and_never_in_headers() {
        let payload = [7; 16];
        let sound = parts(&payload).build();
        for bit in 0..OWN_HEADER_BITS + 16 * 8 + 32 {
            let damaged = Parts {
                flipped: Some(bit),
                ..parts(&payload)
            }
            .build();
            let differing: Vec<_> = (0..sound.bytes.len())
                .filter(|&at| sound.bytes[at] != damaged.bytes[at])
                .collect();
            assert_eq!(differing.len(), 1, "bit {bit}");
            assert!(differing[0] >= 14 + 20 + 8 + 12, "bit {bit}");
        }
    }

    #[test]
    fn ports_without_addresses_speak_ipv6() {
        let built = Parts {
            to: Endpoint::of(1, None),
            ..parts(&[1, 2, 3])
        }
        .build();
        assert_eq!(built.bytes[12..14], [0x86, 0xdd]);
        assert_eq!(built.bytes.len(), built.whole_len);
        // The sum over everything with its checksum is that of ones.
        let udp = &built.bytes[54..];
        let len = u32::try_from(udp.len()).unwrap().to_be_bytes();
        let sum = checksum(&[&built.bytes[22..54], &len, &[0, 0, 0, 17], udp]);
        assert_eq!(sum, 0);
    }
}
