//! The decoder: what goes out comes back, what is wrong is named, nothing panics.

use driver::spi::RdmaDescriptor;
use proptest::prelude::*;
use zerocopy::IntoBytes;

use crate::session::message::{
    Body, FLAG_RESEND, FLAG_URGENT, HEADER_LEN, HELLO_LEN, Header, Hello, MAX_HEAD, Malformed,
    Message, PLACE_INLINE, kind,
};

fn hello() -> Hello {
    Hello {
        features: 1,
        buffer_len: 16_416,
        receives: 16,
        ring: RdmaDescriptor {
            addr: 0x1_0000_0000,
            len: 4096 + 65_536,
            rkey: 77,
            access: 1,
        },
        ring_len: 65_536,
        data_offset: 4096,
        rdma_threshold: 0,
    }
}

fn header(kind: u8, payload_len: u32) -> Header {
    Header {
        kind,
        flags: 0,
        sequence: 9,
        payload_len,
        stream_offset: 1 << 40,
        consumed: 5,
        credit_total: 20,
        place: PLACE_INLINE,
    }
}

/// Decodes a message as the receiver does: its head, and its length.
fn decode(bytes: &[u8]) -> Result<Message, Malformed> {
    Message::decode(&bytes[..bytes.len().min(MAX_HEAD)], bytes.len())
}

#[test]
fn every_kind_comes_back_as_it_was_sent() {
    let with = |h: Header, payload: usize| [h.encode().to_vec(), vec![7; payload]].concat();
    for (bytes, body) in [
        (
            with(header(kind::DATA, 3), 3),
            Body::Data {
                len: 3,
                is_urgent: false,
            },
        ),
        (
            with(header(kind::DATA, 16_384), 16_384),
            Body::Data {
                len: 16_384,
                is_urgent: false,
            },
        ),
        (with(header(kind::CREDIT, 0), 0), Body::Credit),
        (with(header(kind::FIN, 0), 0), Body::Fin),
        (
            with(
                Header {
                    place: 2,
                    ..header(kind::ABORT, 0)
                },
                0,
            ),
            Body::Abort { reason: 2 },
        ),
        (
            hello()
                .encode(&header(kind::HELLO, Hello::PAYLOAD_LEN))
                .to_vec(),
            Body::Hello(hello()),
        ),
        (
            hello()
                .encode(&header(kind::HELLO_ACK, Hello::PAYLOAD_LEN))
                .to_vec(),
            Body::HelloAck(hello()),
        ),
    ] {
        let message = decode(&bytes).unwrap();
        assert_eq!(message.body, body);
        assert_eq!(
            (
                message.sequence,
                message.stream_offset,
                message.consumed,
                message.credit_total
            ),
            (9, 1 << 40, 5, 20)
        );
        assert!(!message.is_resend);
        let mut repeated = bytes.clone();
        repeated[1] = FLAG_RESEND;
        assert!(decode(&repeated).unwrap().is_resend);
    }
}

#[test]
fn the_fuzz_corpus_is_replayed() {
    let corpus = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../nic-emu/fuzz/corpus/session"
    );
    let files = std::fs::read_dir(corpus).unwrap();
    let mut kinds = Vec::new();
    for file in files {
        let path = file.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        // Seeds are messages; what a crash left there may be anything.
        if decode(&bytes).is_ok() {
            kinds.push(bytes[0]);
        }
    }
    kinds.sort_unstable();
    kinds.dedup();
    assert_eq!(kinds, [1, 2, 3, 4, 5, 6]);
}

#[test]
fn urgency_is_a_matter_of_data_alone() {
    let urgent = |kind, len: u32| {
        let h = Header {
            flags: FLAG_URGENT,
            ..header(kind, len)
        };
        decode(&[h.encode().to_vec(), vec![7; len as usize]].concat()).map(|m| m.body)
    };
    let data = Body::Data {
        len: 3,
        is_urgent: true,
    };
    assert_eq!(urgent(kind::DATA, 3), Ok(data));
    for kind in [kind::CREDIT, kind::FIN, kind::ABORT] {
        assert_eq!(urgent(kind, 0), Err(Malformed::Flags(FLAG_URGENT)));
    }
}

#[test]
fn every_bad_header_field_is_named() {
    let length = |claimed, received| Malformed::Length { claimed, received };
    for kind in [0, 7, 8, 127, 255] {
        assert_eq!(
            decode(&header(kind, 0).encode()),
            Err(Malformed::Kind(kind))
        );
    }
    for flag in (0..8).map(|bit| 1_u8 << bit).filter(|&f| f != FLAG_RESEND) {
        let h = Header {
            flags: flag,
            ..header(kind::CREDIT, 0)
        };
        assert_eq!(decode(&h.encode()), Err(Malformed::Flags(flag)));
    }
    for len in 0..HEADER_LEN {
        let bytes = header(kind::CREDIT, 0).encode();
        assert_eq!(decode(&bytes[..len]), Err(Malformed::Short(len)));
    }
    for kind in [kind::CREDIT, kind::FIN, kind::ABORT, kind::DATA] {
        // The length of a bare header with a payload claimed, and the other way round.
        assert_eq!(decode(&header(kind, 1).encode()), Err(length(1, 32)));
        assert_eq!(
            decode(&header(kind, u32::MAX).encode()),
            Err(length(u32::MAX, 32))
        );
        let long = [header(kind, 0).encode().to_vec(), vec![0; 4]].concat();
        assert_eq!(decode(&long), Err(length(0, 36)));
    }
    for kind in [kind::CREDIT, kind::FIN, kind::ABORT] {
        let bytes = [header(kind, 2).encode().to_vec(), vec![0; 2]].concat();
        assert_eq!(decode(&bytes), Err(length(2, 34)));
    }
    assert_eq!(decode(&header(kind::DATA, 0).encode()), Err(length(0, 32)));
    for kind in [kind::CREDIT, kind::FIN] {
        let h = Header {
            place: 0,
            ..header(kind, 0)
        };
        assert_eq!(decode(&h.encode()), Err(Malformed::Place(0)));
    }
    let h = Header {
        place: 4096,
        ..header(kind::DATA, 1)
    };
    let bytes = [h.encode().to_vec(), vec![1]].concat();
    assert_eq!(decode(&bytes), Err(Malformed::Place(4096)));
}

#[test]
fn every_bad_field_of_a_negotiation_message_is_named() {
    type Change = fn(&mut [u8]);
    let put = |bytes: &mut [u8], at: usize, value: &[u8]| {
        bytes[HEADER_LEN + at..HEADER_LEN + at + value.len()].copy_from_slice(value);
    };
    let ring = |ring_len, data_offset, region_len| Malformed::Ring {
        ring_len,
        data_offset,
        region_len,
    };
    let (len, region) = (65_536_u64, 4096 + 65_536_u64);
    let table: Vec<(usize, Vec<u8>, Malformed)> = vec![
        (0, 7_u32.to_le_bytes().to_vec(), Malformed::Magic(7)),
        (4, 0_u16.to_le_bytes().to_vec(), Malformed::Version(0)),
        (4, 2_u16.to_le_bytes().to_vec(), Malformed::Version(2)),
        (6, vec![1, 0], Malformed::Reserved),
        (64, vec![1], Malformed::Reserved),
        (95, vec![1], Malformed::Reserved),
        (8, 2_u64.to_le_bytes().to_vec(), Malformed::Features(2)),
        (
            8,
            (1_u64 << 63).to_le_bytes().to_vec(),
            Malformed::Features(1 << 63),
        ),
        (16, 0_u32.to_le_bytes().to_vec(), Malformed::Buffer(0)),
        (16, 511_u32.to_le_bytes().to_vec(), Malformed::Buffer(511)),
        (
            16,
            u32::MAX.to_le_bytes().to_vec(),
            Malformed::Buffer(u32::MAX),
        ),
        (20, 0_u32.to_le_bytes().to_vec(), Malformed::Receives(0)),
        (20, 3_u32.to_le_bytes().to_vec(), Malformed::Receives(3)),
        (
            20,
            4097_u32.to_le_bytes().to_vec(),
            Malformed::Receives(4097),
        ),
        (48, 0_u64.to_le_bytes().to_vec(), ring(0, 4096, region)),
        (
            48,
            u64::MAX.to_le_bytes().to_vec(),
            ring(u64::MAX, 4096, region),
        ),
        (
            48,
            (len + 1).to_le_bytes().to_vec(),
            ring(len + 1, 4096, region),
        ),
        (56, 0_u32.to_le_bytes().to_vec(), ring(len, 0, region)),
        (56, 4097_u32.to_le_bytes().to_vec(), ring(len, 4097, region)),
        (
            32,
            (region - 1).to_le_bytes().to_vec(),
            ring(len, 4096, region - 1),
        ),
        (24, u64::MAX.to_le_bytes().to_vec(), ring(len, 4096, region)),
    ];
    for kind in [kind::HELLO, kind::HELLO_ACK] {
        let good = hello().encode(&header(kind, Hello::PAYLOAD_LEN));
        for (at, value, expected) in &table {
            let mut bytes = good;
            put(&mut bytes, *at, value);
            assert_eq!(decode(&bytes), Err(*expected), "field at {at}");
        }
        let short = &good[..HELLO_LEN - 1];
        assert!(decode(short).is_err());
        let changes: [Change; 2] = [|b| b[4] = 95, |b| b[28] = 0];
        for change in changes {
            let mut bytes = good;
            change(&mut bytes);
            assert!(decode(&bytes).is_err());
        }
    }
}

proptest! {
    /// Nothing panics, and what is accepted is within bounds.
    #[test]
    fn random_bytes_are_refused_or_within_bounds(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(Message { body: Body::Data { len, .. }, .. }) = decode(&bytes) {
            prop_assert_eq!(len as usize, bytes.len() - HEADER_LEN);
        }
    }

    /// One flipped bit of a negotiation message never yields rings outside their memory.
    #[test]
    fn flipped_bits_never_yield_rings_outside_their_memory(bit in 0_usize..HELLO_LEN * 8) {
        let mut bytes = hello().encode(&header(kind::HELLO, Hello::PAYLOAD_LEN));
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Ok(Message { body: Body::Hello(h) | Body::HelloAck(h), .. }) = decode(&bytes) {
            prop_assert!(u64::from(h.data_offset) + h.ring_len <= h.ring.len);
            prop_assert!(h.receives >= 4 && h.buffer_len >= 512);
        }
    }
}

#[test]
fn header_has_no_hidden_bytes() {
    let bytes = header(kind::DATA, 1);
    assert_eq!(bytes.as_bytes().len(), 32);
}
