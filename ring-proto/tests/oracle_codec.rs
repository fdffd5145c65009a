//! What is packed comes back, and what must be zero is refused when it is not.
#![cfg(not(loom))]

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};
use zerocopy::IntoBytes;

use ring_proto::admin::{
    Body, CmAccept, CmConnect, CmListen, CmQuery, CqModerate, CqResize, Hold, HoldClone, MrReg,
    Named, QpCreate, QpModify, QueueCreate, SockAddr,
};
use ring_proto::cqe::{Publish, phase_of};
use ring_proto::eqe::{self, EventType};
use ring_proto::ids::{INDEX_LIMIT, key, key_parts};
use ring_proto::status::{Syndrome, WcStatus};
use ring_proto::wqe;

proptest! {
    #[test]
    fn key_and_its_parts(index in 0..INDEX_LIMIT, tag in any::<u8>()) {
        prop_assert_eq!(key_parts(key(index, tag)), (index, tag));
    }

    #[test]
    fn every_number_is_a_key(raw in any::<u32>()) {
        let (index, tag) = key_parts(raw);
        prop_assert!(index < INDEX_LIMIT);
        prop_assert_eq!(key(index, tag), raw);
    }

    #[test]
    fn publish_word(counter in any::<u32>(), status in any::<u8>(), syndrome in any::<u16>(), phase in any::<u8>()) {
        let publish = Publish { wqe_counter: counter, status: WcStatus(status), syndrome: Syndrome(syndrome), phase };
        let word = publish.pack();
        prop_assert_eq!(Publish::unpack(word), publish);
        prop_assert_eq!(phase_of(word), phase);
        prop_assert_eq!(word & 0xffff_ffff, u64::from(counter));
        prop_assert_eq!(word >> 32 & 0xff, u64::from(status));
        prop_assert_eq!(word >> 40 & 0xffff, u64::from(syndrome));
    }

    #[test]
    fn every_word_is_a_publish_word(word in any::<u64>()) {
        prop_assert_eq!(Publish::unpack(word).pack(), word);
    }

    #[test]
    fn event_word(event in any::<u16>(), second in any::<u16>(), phase in any::<u8>()) {
        let word = eqe::pack(EventType(event), second, phase);
        prop_assert_eq!(eqe::event_type(word), EventType(event));
        prop_assert_eq!(word >> 16 & 0xffff, u64::from(second));
        prop_assert_eq!(phase_of(word), phase);
    }

    #[test]
    fn socket_addresses_survive(v4 in any::<u32>(), v6 in any::<u128>(), port in any::<u16>()) {
        for address in [
            SocketAddr::new(Ipv4Addr::from(v4).into(), port),
            SocketAddr::new(Ipv6Addr::from(v6).into(), port),
        ] {
            prop_assert_eq!(SocketAddr::try_from(SockAddr::from(address)).unwrap(), address);
        }
    }

    #[test]
    fn an_unsound_socket_address_is_refused(
        family in any::<u16>(),
        addr in any::<[u8; 16]>(),
        port in any::<u16>(),
        reserved in 1..=u32::MAX,
        tail in 4..16_usize,
    ) {
        let unknown = SockAddr { family, port, reserved: 0, addr };
        prop_assert_eq!(SocketAddr::try_from(unknown).is_ok(), family == 6 || family == 4 && addr[4..] == [0; 12]);
        let mut four = SockAddr::from(SocketAddr::new(Ipv4Addr::new(addr[0], addr[1], addr[2], addr[3]).into(), port));
        four.addr[tail] = 1;
        prop_assert!(SocketAddr::try_from(four).is_err());
        for family in [4, 6] {
            let unsound = SockAddr { family, port, reserved, addr: [0; 16] };
            prop_assert!(SocketAddr::try_from(unsound).is_err());
        }
    }
}

/// Tests one body type: `size` bytes in use, the reserved field at `reserved`.
macro_rules! body_tests {
    ($($test:ident: $body:ident, reserved $reserved:expr;)*) => {
        proptest! {$(
            #[test]
            fn $test(raw in any::<[u8; 56]>(), pick in any::<usize>(), value in 1..=u8::MAX) {
                let size = size_of::<$body>();
                let reserved: Option<std::ops::Range<usize>> = $reserved;
                let is_reserved = |at: usize| reserved.as_ref().is_some_and(|r| r.contains(&at));
                let mut body = Body::default();
                for (i, byte) in body.as_mut_bytes().iter_mut().enumerate() {
                    if i < size && !is_reserved(i) {
                        *byte = raw[i];
                    }
                }
                // Any content of the own fields goes through unchanged.
                let own = $body::from_body(&body).expect("the tail is zero");
                prop_assert_eq!(own.to_body(), body);
                prop_assert_eq!(own.as_bytes(), &body.as_bytes()[..size]);
                // A byte that must be zero and is not.
                let zeros: Vec<usize> = (0..56).filter(|&at| at >= size || is_reserved(at)).collect();
                let at = zeros[pick % zeros.len()];
                body.as_mut_bytes()[at] = value;
                prop_assert_eq!($body::from_body(&body), None);
            }
        )*}
    };
}

body_tests! {
    named: Named, reserved Some(4..8);
    mr_reg: MrReg, reserved Some(28..32);
    queue_create: QueueCreate, reserved None;
    cq_resize: CqResize, reserved None;
    cq_moderate: CqModerate, reserved None;
    qp_create: QpCreate, reserved None;
    qp_modify: QpModify, reserved Some(48..52);
    cm_listen: CmListen, reserved Some(36..40);
    cm_query: CmQuery, reserved None;
    cm_connect: CmConnect, reserved None;
    cm_accept: CmAccept, reserved None;
    hold: Hold, reserved None;
    hold_clone: HoldClone, reserved Some(4..8);
}

#[test]
fn blocks_hold_what_they_are_counted_for() {
    for count in 0..=wqe::MAX_SGES {
        let blocks = wqe::blocks_for_sges(count);
        let room = |blocks: u8| wqe::FIRST_SGES + (blocks - 1) * wqe::BLOCK_SGES;
        assert!(blocks <= wqe::MAX_BLOCKS && count <= room(blocks));
        assert!(blocks == 1 || count > room(blocks - 1));
    }
    for len in 0..=wqe::MAX_INLINE {
        let blocks = wqe::blocks_for_inline(len);
        let room = |blocks: u8| u16::from(blocks) * 64 - 32;
        assert!(blocks <= wqe::MAX_BLOCKS && u16::from(len) <= room(blocks));
        assert!(blocks == 1 || u16::from(len) > room(blocks - 1));
    }
    assert!(wqe::blocks_for_sges(wqe::MAX_SGES + 1) > wqe::MAX_BLOCKS);
    assert!(wqe::blocks_for_inline(wqe::MAX_INLINE + 1) > wqe::MAX_BLOCKS);
}
