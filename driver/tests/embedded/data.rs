//! Messages and slots of connected companions.

use driver::spi::{
    Link, OVERLAPPED_DONE, OVERLAPPED_PENDING, Overlapped, ServiceProvider, SpBuffer,
};
use driver::wsa::WsaError;
use ring_proto::regs::MESSAGE_LIMIT;
use ring_proto::sync::Ordering;

use crate::support::{Call, World, plain};

fn state(slot: &Overlapped) -> u32 {
    slot.state.load(Ordering::Acquire)
}

#[test]
fn one_send_fills_one_receive_in_posting_order() {
    let world = World::new();
    let (a, b) = world.connected();
    let (out, into) = (world.a.memory(a, 65_536), world.b.memory(b, 65_536));
    let slots: Vec<_> = (0..4).map(|_| world.b.slot(b)).collect();
    for (i, slot) in slots.iter().enumerate() {
        world
            .b
            .recv(b, &[into.buffer(i * 10_000, 10_000)], slot)
            .unwrap();
    }
    for i in 0..4_u8 {
        let len = 100 + 2000 * u32::from(i);
        out.write(0, &vec![i; 10_000]);
        let slot = world.a.slot(a);
        world.a.send(a, &[out.buffer(0, len)], slot).unwrap();
        assert_eq!(world.a.result(a, slot).map(|done| done.bytes), Ok(len));
        let got = world.b.result(b, slots[usize::from(i)]).unwrap();
        assert_eq!(got.bytes, len);
        let bytes = into.read(usize::from(i) * 10_000, usize::try_from(len).unwrap());
        assert!(bytes.iter().all(|&byte| byte == i));
    }
}

#[test]
fn a_small_message_of_own_memory_goes_inline() {
    let world = World::new();
    let (a, b) = world.connected();
    let into = world.b.memory(b, 4096);
    let received = world.b.slot(b);
    world.b.recv(b, &[into.buffer(0, 4096)], received).unwrap();
    let slot = world.a.slot(a);
    world.a.send(a, &[plain(&[7; 224])], slot).unwrap();
    assert_eq!(world.b.result(b, received).unwrap().bytes, 224);
    assert_eq!(into.read(0, 224), [7; 224]);
    assert_eq!(
        world.a.send(a, &[plain(&[7; 225])], slot),
        Err(WsaError::Fault)
    );
}

#[test]
fn several_buffers_are_gathered_and_scattered_in_order() {
    let world = World::new();
    let (a, b) = world.connected();
    let (out, into) = (world.a.memory(a, 65_536), world.b.memory(b, 65_536));
    out.write(0, &[1; 32]);
    out.write(5000, &[2; 3000]);
    out.write(20_000, &[3; 500]);
    let pieces = [
        out.buffer(0, 32),
        out.buffer(5000, 3000),
        out.buffer(20_000, 500),
    ];
    let places = [
        into.buffer(100, 1000),
        into.buffer(9000, 2000),
        into.buffer(30_000, 9000),
    ];
    let received = world.b.slot(b);
    world.b.recv(b, &places, received).unwrap();
    let slot = world.a.slot(a);
    world.a.send(a, &pieces, slot).unwrap();
    assert_eq!(world.b.result(b, received).unwrap().bytes, 3532);
    let mut expected = vec![1; 32];
    expected.extend([2; 3000]);
    expected.extend([3; 500]);
    let mut got = into.read(100, 1000);
    got.extend(into.read(9000, 2000));
    got.extend(into.read(30_000, 532));
    assert_eq!(got, expected);
}

#[test]
fn a_message_sent_before_any_receive_waits_without_being_lost() {
    let world = World::new();
    let (a, b) = world.connected();
    let first = world.a.slot(a);
    let second = world.a.slot(a);
    world.a.send(a, &[plain(b"hello")], first).unwrap();
    world.a.send(a, &[plain(b"again")], second).unwrap();
    // no time limit.
    world.device.advance(3_600_000_000_000);
    assert_eq!(world.a.result(a, first), Err(WsaError::IoIncomplete));
    assert_eq!(state(first), OVERLAPPED_PENDING);
    let into = world.b.memory(b, 4096);
    for expected in [b"hello", b"again"] {
        let received = world.b.slot(b);
        world.b.recv(b, &[into.buffer(0, 100)], received).unwrap();
        assert_eq!(world.b.result(b, received).unwrap().bytes, 5);
        assert_eq!(into.read(0, 5), expected);
    }
    assert_eq!(world.a.result(a, second).unwrap().bytes, 5);
}

#[test]
fn silent_slots_make_no_upcall_and_others_make_exactly_one() {
    let world = World::new();
    let (a, b) = world.connected();
    let into = world.b.memory(b, 4096);
    let (silent, loud) = (world.b.slot(b), world.b.slot(b));
    world.b.recv(b, &[into.buffer(0, 100)], silent).unwrap();
    world
        .b
        .provider
        .wsp_recv(b, &[into.buffer(0, 100)], loud, true)
        .unwrap();
    for _ in 0..2 {
        world.a.send(a, &[plain(b"abc")], world.a.slot(a)).unwrap();
    }
    world.b.upcalls.take();
    // One poll files both.
    assert_eq!(world.b.result(b, silent).unwrap().bytes, 3);
    assert_eq!(world.b.upcalls.completions(), [(0, 3)]);
    assert_eq!(state(loud), OVERLAPPED_DONE);
    assert_eq!(world.b.result(b, loud).unwrap().bytes, 3);
    assert_eq!(world.b.upcalls.completions().len(), 1);
}

#[test]
fn close_aborts_every_slot_and_is_the_last_upcall() {
    let world = World::new();
    let (a, b) = world.connected();
    let into = world.b.memory(b, 4096);
    let slots: Vec<_> = (0..6).map(|_| world.b.slot(b)).collect();
    for (i, slot) in slots.iter().enumerate() {
        world
            .b
            .provider
            .wsp_recv(b, &[into.buffer(0, 100)], slot, i % 2 == 1)
            .unwrap();
    }
    let waits = world.b.slot(b);
    world
        .b
        .send(b, &[plain(b"nobody receives")], waits)
        .unwrap();
    world.a.send(a, &[plain(b"abc")], world.a.slot(a)).unwrap();
    world.b.upcalls.take();
    world.b.provider.wsp_close_socket(b).unwrap();
    let aborted = WsaError::OperationAborted.code();
    let errors: Vec<u32> = slots
        .iter()
        .map(|slot| slot.error.load(Ordering::Relaxed))
        .collect();
    // What had come before is reported as it was.
    assert_eq!(errors, [0, aborted, aborted, aborted, aborted, aborted]);
    for slot in slots.iter().chain([&waits]) {
        assert_eq!(state(slot), OVERLAPPED_DONE);
    }
    assert_eq!(slots[0].bytes.load(Ordering::Relaxed), 3);
    assert_eq!(waits.error.load(Ordering::Relaxed), aborted);
    let calls = world.b.upcalls.take();
    assert!(
        matches!(calls[..], [
        Call::Complete(one, ..),
        Call::Complete(two, ..),
        Call::Complete(three, ..),
        Call::Close(closed),
    ] if [one, two, three] == [closed; 3]),
        "{calls:?}"
    );
}

#[test]
fn the_peer_hears_of_a_close_as_a_reset() {
    let world = World::new();
    let (a, b) = world.connected();
    let into = world.b.memory(b, 4096);
    let (early, late) = (world.b.slot(b), world.b.slot(b));
    world.b.recv(b, &[into.buffer(0, 100)], early).unwrap();
    world.b.recv(b, &[into.buffer(0, 100)], late).unwrap();
    world
        .a
        .send(a, &[plain(b"last words")], world.a.slot(a))
        .unwrap();
    world.a.provider.wsp_close_socket(a).unwrap();
    // What arrived before is delivered first.
    assert_eq!(world.b.result(b, early).unwrap().bytes, 10);
    assert_eq!(world.b.result(b, late), Err(WsaError::ConnReset));
    assert_eq!(
        world.b.start.waiting.link(b),
        Link::Ended(WsaError::ConnReset)
    );
    // New operations fail with the same code.
    let slot = world.b.slot(b);
    assert_eq!(
        world.b.send(b, &[plain(b"x")], slot),
        Err(WsaError::ConnReset)
    );
    assert_eq!(
        world.b.recv(b, &[into.buffer(0, 1)], slot),
        Err(WsaError::ConnReset)
    );
    // the descriptor lives until it is closed, and not longer.
    assert_eq!(world.b.provider.wsp_close_socket(b), Ok(()));
    assert_eq!(
        world.b.send(b, &[plain(b"x")], slot),
        Err(WsaError::NotSock)
    );
}

#[test]
fn a_message_longer_than_its_receive_ends_the_connection_for_both() {
    let world = World::new();
    let (a, b) = world.connected();
    let into = world.b.memory(b, 4096);
    let received = world.b.slot(b);
    world.b.recv(b, &[into.buffer(0, 4)], received).unwrap();
    let sent = world.a.slot(a);
    world.a.send(a, &[plain(b"too long")], sent).unwrap();
    assert_eq!(world.b.result(b, received), Err(WsaError::ConnAborted));
    assert_eq!(world.a.result(a, sent), Err(WsaError::ConnAborted));
    assert_eq!(
        world.a.start.waiting.link(a),
        Link::Ended(WsaError::ConnAborted)
    );
}

#[test]
fn the_queues_hold_what_the_provider_promised_and_no_more() {
    let world = World::new();
    let (a, b) = world.connected();
    let into = world.b.memory(b, 4096);
    let sends: Vec<_> = (0..world.a.start.send_depth)
        .map(|_| world.a.slot(a))
        .collect();
    // Shift the ring so that the longest WQEs also need fillers.
    for _ in 0..3 {
        let received = world.b.slot(b);
        world.b.recv(b, &[into.buffer(0, 4096)], received).unwrap();
        world.a.send(a, &[plain(b"x")], world.a.slot(a)).unwrap();
        assert_eq!(world.b.result(b, received).unwrap().bytes, 1);
    }
    for round in 0..20 {
        for slot in &sends {
            world.a.send(a, &[plain(&[round; 224])], slot).unwrap();
        }
        assert_eq!(
            world.a.send(a, &[plain(b"more")], world.a.slot(a)),
            Err(WsaError::NoBufs)
        );
        for slot in &sends {
            let received = world.b.slot(b);
            world.b.recv(b, &[into.buffer(0, 4096)], received).unwrap();
            assert_eq!(world.b.result(b, received).unwrap().bytes, 224);
            assert_eq!(world.a.result(a, slot).unwrap().bytes, 224);
        }
    }
    for _ in 0..world.b.start.recv_depth {
        world
            .b
            .recv(b, &[into.buffer(0, 10)], world.b.slot(b))
            .unwrap();
    }
    let one_more = world.b.recv(b, &[into.buffer(0, 10)], world.b.slot(b));
    assert_eq!(one_more, Err(WsaError::Inval));
}

#[test]
fn impossible_buffers_and_slots_are_refused_before_anything_starts() {
    let world = World::new();
    let (a, _b) = world.connected();
    let memory = world.a.memory(a, 4096);
    let slot = world.a.slot(a);
    let send = |buffers: &[SpBuffer]| world.a.send(a, buffers, slot);
    let recv = |buffers: &[SpBuffer]| world.a.recv(a, buffers, slot);
    let good = memory.buffer(0, 100);
    let beyond = memory.buffer(4000, 97);
    let long = SpBuffer {
        len: MESSAGE_LIMIT,
        ..good
    };
    assert_eq!(send(&[]), Err(WsaError::Inval));
    assert_eq!(send(&[good; 5]), Err(WsaError::Inval));
    assert_eq!(recv(&[good; 4]), Err(WsaError::Inval));
    assert_eq!(send(&[memory.buffer(0, 0)]), Err(WsaError::Inval));
    assert_eq!(send(&[beyond]), Err(WsaError::Fault));
    assert_eq!(recv(&[beyond]), Err(WsaError::Fault));
    assert_eq!(send(&[good, long]), Err(WsaError::MsgSize));
    assert_eq!(recv(&[plain(b"unregistered")]), Err(WsaError::Fault));
    assert_eq!(slot.state.load(Ordering::Relaxed), 0);
    // A slot that the family could not complete.
    let private = Overlapped::default();
    assert_eq!(world.a.send(a, &[good], &private), Err(WsaError::Fault));
    assert_eq!(world.a.result(a, &private), Err(WsaError::Inval));
    assert_eq!(
        world.a.provider.wsp_get_overlapped_result(a, slot, true),
        Err(WsaError::Inval)
    );
    let unconnected = world.a.socket();
    assert_eq!(
        world.a.send(unconnected, &[good], slot),
        Err(WsaError::NotConn)
    );
    assert_eq!(
        world.a.recv(unconnected, &[good], slot),
        Err(WsaError::NotConn)
    );
}

#[test]
fn a_stale_handle_is_no_socket_even_when_its_record_lives_again() {
    let world = World::new();
    let first = world.a.socket();
    world.a.provider.wsp_close_socket(first).unwrap();
    let second = world.a.socket();
    assert_ne!(first, second);
    let slot = world.a.slot(second);
    assert_eq!(world.a.result(first, slot), Err(WsaError::NotSock));
    assert_eq!(
        world.a.provider.wsp_listen(first, 1),
        Err(WsaError::NotSock)
    );
    assert_eq!(
        world.a.provider.wsp_close_socket(first),
        Err(WsaError::NotSock)
    );
    assert_eq!(world.a.provider.wsp_close_socket(second), Ok(()));
}
