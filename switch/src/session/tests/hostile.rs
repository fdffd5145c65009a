//! A peer that lies: every malformed or impossible message ends in ABORT for it and ECONNRESET for the program.

use std::sync::Arc;

use driver::spi::{RdmaDescriptor, SpSocket};

use super::world::{DoubleWorld, recv, send, send_all, settle};
use crate::session::message::{HEADER_LEN, Header, Hello, PLACE_INLINE, kind};
use crate::session::{Conn, Phase, Role};

fn hello(receives: u32) -> Hello {
    Hello {
        features: 1,
        buffer_len: 16_416,
        receives,
        ring: RdmaDescriptor {
            addr: 0x1000,
            len: 8192,
            rkey: 1,
            access: 1,
        },
        ring_len: 4096,
        data_offset: 4096,
        rdma_threshold: 0,
    }
}

fn header(kind: u8, sequence: u16, payload_len: u32) -> Header {
    Header {
        kind,
        sequence,
        payload_len,
        credit_total: 16,
        place: PLACE_INLINE,
        ..Header::default()
    }
}

fn bytes(header: &Header, payload: usize) -> Vec<u8> {
    [header.encode().to_vec(), vec![b'p'; payload]].concat()
}

/// An established active end, and the socket of its lying peer. The peer posts no receives, so what is sent to it waits visibly.
fn victim(world: &DoubleWorld) -> (Arc<Conn>, SpSocket) {
    let (conn, peer) = world.end(Role::Active);
    let ack = hello(16).encode(&header(kind::HELLO_ACK, 0, Hello::PAYLOAD_LEN));
    world.fabric.inject(peer, &ack);
    settle(&[&conn]);
    assert_eq!(conn.phase(), Phase::Established);
    (conn, peer)
}

fn aborted(world: &DoubleWorld, conn: &Arc<Conn>, what: &str) {
    settle(&[conn]);
    assert_eq!(conn.phase(), Phase::Failed(libc::ECONNRESET), "{what}");
    let sends = world.fabric.waiting_sends(conn.sp());
    let last = sends.last().unwrap();
    assert_eq!((last[0], last.len()), (kind::ABORT, HEADER_LEN), "{what}");
    assert_eq!(recv(conn, 1), Err(libc::ECONNRESET), "{what}");
    assert_eq!(recv(conn, 1).unwrap(), b"", "{what}");
    assert_eq!(send(conn, b"x"), Err(libc::EPIPE), "{what}");
}

#[test]
fn r198_impossible_messages_abort_the_connection() {
    let data = |change: fn(&mut Header)| {
        let mut h = header(kind::DATA, 1, 4);
        change(&mut h);
        bytes(&h, 4)
    };
    let bare = |k, change: fn(&mut Header)| {
        let mut h = header(k, 1, 0);
        change(&mut h);
        bytes(&h, 0)
    };
    let table: Vec<(&str, Vec<u8>)> = vec![
        ("too short", vec![1; 5]),
        ("unknown kind", bare(99, |_| {})),
        ("unknown flag", data(|h| h.flags = 0x80)),
        ("sequence ahead", data(|h| h.sequence = 2)),
        ("sequence behind", data(|h| h.sequence = 0)),
        (
            "sequence ahead by two, as a repetition",
            data(|h| {
                h.sequence = 3;
                h.flags = 1;
            }),
        ),
        ("gap in the stream", data(|h| h.stream_offset = 1)),
        (
            "stream offset at its end",
            data(|h| h.stream_offset = u64::MAX),
        ),
        (
            "repetition beyond the end",
            data(|h| {
                h.stream_offset = 5;
                h.flags = 1;
            }),
        ),
        ("wrong length", data(|h| h.payload_len = 5)),
        ("payload elsewhere", data(|h| h.place = 64)),
        ("credit taken back", data(|h| h.credit_total = 15)),
        ("credit beyond the pool", data(|h| h.credit_total = 18)),
        ("credit far away", data(|h| h.credit_total = u32::MAX)),
        ("took what we never sent", data(|h| h.consumed = 1)),
        (
            "second HELLO_ACK",
            hello(16)
                .encode(&header(kind::HELLO_ACK, 1, Hello::PAYLOAD_LEN))
                .to_vec(),
        ),
        (
            "HELLO from the accepting side",
            hello(16)
                .encode(&header(kind::HELLO, 1, Hello::PAYLOAD_LEN))
                .to_vec(),
        ),
        ("FIN with a gap", bare(kind::FIN, |h| h.stream_offset = 9)),
        (
            "CREDIT with a gap",
            bare(kind::CREDIT, |h| h.stream_offset = 9),
        ),
    ];
    for (what, message) in table {
        let world = DoubleWorld::new();
        let (conn, peer) = victim(&world);
        world.fabric.inject(peer, &message);
        aborted(&world, &conn, what);
    }
}

#[test]
fn r198_data_or_a_second_fin_after_fin_aborts() {
    for message in [
        bytes(&header(kind::DATA, 2, 1), 1),
        bytes(&header(kind::FIN, 2, 0), 0),
    ] {
        let world = DoubleWorld::new();
        let (conn, peer) = victim(&world);
        world
            .fabric
            .inject(peer, &bytes(&header(kind::FIN, 1, 0), 0));
        settle(&[&conn]);
        assert_eq!(conn.phase(), Phase::Established);
        world.fabric.inject(peer, &message);
        settle(&[&conn]);
        assert!(matches!(conn.phase(), Phase::Failed(_)));
    }
}

#[test]
fn r198_credit_overrun_aborts() {
    let world = DoubleWorld::new();
    let (conn, peer) = victim(&world);
    // 16 receives were granted and HELLO_ACK took one; no grant can leave, the peer goes on nevertheless, as fast as we read.
    world.fabric.fill_send_queues(true);
    let mut taken = 0;
    for number in 1..=40_u16 {
        let mut h = header(kind::DATA, number, 1);
        h.stream_offset = u64::from(number - 1);
        world.fabric.inject(peer, &bytes(&h, 1));
        match recv(&conn, 1) {
            Ok(_) => taken += 1,
            Err(errno) => {
                assert_eq!(errno, libc::ECONNRESET);
                break;
            }
        }
    }
    // Within its credit it was served.
    assert_eq!(taken, 15);
    assert!(matches!(conn.phase(), Phase::Failed(_)));
}

#[test]
fn data_before_a_bad_message_is_delivered_first() {
    let world = DoubleWorld::new();
    let (conn, peer) = victim(&world);
    world
        .fabric
        .inject(peer, &bytes(&header(kind::DATA, 1, 4), 4));
    world.fabric.inject(peer, &bytes(&header(99, 2, 0), 0));
    settle(&[&conn]);
    assert_eq!(recv(&conn, 100).unwrap(), b"pppp");
    assert_eq!(recv(&conn, 100), Err(libc::ECONNRESET));
}

#[test]
fn negotiation_answered_with_garbage_fails_the_connection() {
    let garbage: Vec<Vec<u8>> = vec![
        vec![0; 32],
        bytes(&header(kind::DATA, 0, 1), 1),
        bytes(&header(kind::CREDIT, 0, 0), 0),
        hello(2)
            .encode(&header(kind::HELLO_ACK, 0, Hello::PAYLOAD_LEN))
            .to_vec(),
        hello(16)
            .encode(&header(kind::HELLO, 0, Hello::PAYLOAD_LEN))
            .to_vec(),
        vec![kind::HELLO_ACK; 300],
    ];
    for message in garbage {
        let world = DoubleWorld::new();
        let (conn, peer) = world.end(Role::Active);
        world.fabric.inject(peer, &message);
        settle(&[&conn]);
        assert_eq!(conn.phase(), Phase::Failed(libc::ECONNRESET));
        assert_eq!(conn.take_error(), Some(libc::ECONNRESET));
    }
}

#[test]
fn peer_that_sends_before_it_was_granted_anything_is_refused() {
    let world = DoubleWorld::new();
    let (conn, peer) = world.end(Role::Passive);
    // Our answer is stuck, so nothing was granted.
    world.fabric.fill_send_queues(true);
    let h = hello(16).encode(&header(kind::HELLO, 0, Hello::PAYLOAD_LEN));
    world.fabric.inject(peer, &h);
    world
        .fabric
        .inject(peer, &bytes(&header(kind::DATA, 1, 1), 1));
    settle(&[&conn]);
    assert_eq!(conn.phase(), Phase::Failed(libc::ECONNRESET));
}

#[test]
fn peer_without_receives_gets_no_message_beyond_its_credit() {
    let world = DoubleWorld::new();
    let (conn, peer) = world.end(Role::Active);
    let ack = hello(6).encode(&Header {
        credit_total: 6,
        ..header(kind::HELLO_ACK, 0, Hello::PAYLOAD_LEN)
    });
    world.fabric.inject(peer, &ack);
    settle(&[&conn]);
    send_all(&conn, &[1; 500_000]);
    settle(&[&conn]);
    // HELLO, then payload while three credits are left: 6 - 1 - 2.
    let sends = world.fabric.waiting_sends(conn.sp());
    let data = sends.iter().filter(|m| m[0] == kind::DATA).count();
    assert_eq!(data, 3);
}
