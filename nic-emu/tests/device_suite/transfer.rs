//! What moves, where to, and what both ends hear of it.

use ring_proto::cqe::{CQE_IMM, CQE_SOLICITED};
use ring_proto::status::{Opcode, Syndrome, WcOpcode, WcStatus};
use ring_proto::wqe::{MAX_INLINE, WqeFlags};

use crate::client::{Client, Pair, Send, device, establish, full, pump, sock};

/// Cases of a driver that does everything right, for the validation layer.
pub(crate) const CASES: &[(&str, fn())] = &[
    (
        "send_arrives_in_the_posted_receive",
        send_arrives_in_the_posted_receive,
    ),
    (
        "immediate_data_and_solicited_flag_arrive",
        immediate_data_and_solicited_flag_arrive,
    ),
    (
        "gather_lists_of_both_ends_need_not_match",
        gather_lists_of_both_ends_need_not_match,
    ),
    (
        "inline_data_of_every_length_arrives",
        inline_data_of_every_length_arrives,
    ),
    (
        "rdma_write_and_read_touch_exactly_their_range",
        rdma_write_and_read_touch_exactly_their_range,
    ),
    ("inline_rdma_write_arrives", inline_rdma_write_arrives),
    (
        "rdma_write_with_imm_takes_a_receive_and_leaves_its_memory",
        rdma_write_with_imm_takes_a_receive_and_leaves_its_memory,
    ),
    (
        "zero_length_rdma_needs_no_key",
        zero_length_rdma_needs_no_key,
    ),
    (
        "long_messages_arrive_whole_and_in_order_with_short_ones",
        long_messages_arrive_whole_and_in_order_with_short_ones,
    ),
    (
        "unsignaled_wqes_complete_silently_and_the_counter_covers_them",
        unsignaled_wqes_complete_silently_and_the_counter_covers_them,
    ),
    (
        "ring_is_used_around_its_end_many_times",
        ring_is_used_around_its_end_many_times,
    ),
    (
        "read_counts_as_sent_by_the_responder",
        read_counts_as_sent_by_the_responder,
    ),
    (
        "two_qps_of_one_function_talk_to_each_other",
        two_qps_of_one_function_talk_to_each_other,
    ),
    (
        "many_qps_share_the_device_without_mixing_streams",
        many_qps_share_the_device_without_mixing_streams,
    ),
];

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|i| seed.wrapping_add(u8::try_from(i * 7 % 251).unwrap()))
        .collect()
}

#[test]
fn send_arrives_in_the_posted_receive() {
    let mut pair = Pair::new();
    let source = pair.a.region(&mut pair.device, 4096, full());
    let target = pair.b.region(&mut pair.device, 4096, full());
    pair.a.write(source.iova, b"hello, san");
    pair.b
        .recv(&mut pair.device, &mut pair.qb, 77, &[target.sge(16, 100)]);
    pair.a.send(
        &mut pair.device,
        &mut pair.qa,
        &Send::new(Opcode::SEND, 5, &[source.sge(0, 10)]),
    );
    let sent = pair.a.poll(&mut pair.qa).unwrap();
    assert_eq!(
        (sent.wr_id, sent.status, sent.opcode, sent.wqe_counter),
        (5, WcStatus::SUCCESS, Opcode::SEND.0, 1)
    );
    assert_eq!((sent.qpn, sent.byte_len), (pair.qa.qpn, 10));
    let received = pair.b.poll(&mut pair.qb).unwrap();
    assert_eq!(
        (received.wr_id, received.status, received.syndrome),
        (77, WcStatus::SUCCESS, Syndrome::NONE)
    );
    assert_eq!(
        (received.opcode, received.byte_len, received.src_qpn),
        (WcOpcode::RECV.0, 10, pair.qa.qpn)
    );
    assert_eq!(
        (received.wqe_counter, received.imm, received.flags),
        (1, 0, 0)
    );
    assert_eq!(pair.b.read(target.iova + 16, 10), b"hello, san");
    assert_eq!(pair.b.read(target.iova + 26, 2), [0, 0]);
}

#[test]
fn immediate_data_and_solicited_flag_arrive() {
    let mut pair = Pair::new();
    pair.b.recv(&mut pair.device, &mut pair.qb, 1, &[]);
    let mut wqe = Send::new(Opcode::SEND_WITH_IMM, 2, &[]).imm(0xdead_beef);
    wqe.head.flags |= WqeFlags::SOLICITED.bits();
    pair.a.send(&mut pair.device, &mut pair.qa, &wqe);
    let received = pair.b.poll(&mut pair.qb).unwrap();
    assert_eq!(
        (received.imm, received.flags, received.byte_len),
        (0xdead_beef, CQE_IMM | CQE_SOLICITED, 0)
    );
}

#[test]
fn gather_lists_of_both_ends_need_not_match() {
    let mut pair = Pair::new();
    let source = pair.a.region(&mut pair.device, 8192, full());
    let target = pair.b.region(&mut pair.device, 8192, full());
    let bytes = pattern(4200, 3);
    pair.a.write(source.iova, &bytes);
    let cuts = [1, 2, 300, 0, 7, 1000, 5, 64, 64, 900, 11, 13, 17, 1];
    let mut at = 0;
    let mut expected = Vec::new();
    let sges: Vec<_> = cuts
        .iter()
        .map(|&len| {
            // Overlapping on purpose: sources may.
            let sge = source.sge(at, len);
            let start = usize::try_from(at).unwrap();
            expected.extend_from_slice(&bytes[start..start + len as usize]);
            at += u64::from(len) / 2;
            sge
        })
        .collect();
    pair.b.recv(
        &mut pair.device,
        &mut pair.qb,
        1,
        &[
            target.sge(0, 100),
            target.sge(1000, 1),
            target.sge(2000, 4000),
        ],
    );
    pair.a.send(
        &mut pair.device,
        &mut pair.qa,
        &Send::new(Opcode::SEND, 2, &sges),
    );
    let sent = pair.a.poll(&mut pair.qa).unwrap();
    assert_eq!((sent.status, sent.wqe_counter), (WcStatus::SUCCESS, 4));
    let mut arrived = pair.b.read(target.iova, 100);
    arrived.extend(pair.b.read(target.iova + 1000, 1));
    arrived.extend(pair.b.read(target.iova + 2000, expected.len() - 101));
    assert!(arrived == expected);
    assert_eq!(
        pair.b
            .read(target.iova + 2000 + expected.len() as u64 - 101, 4),
        [0; 4]
    );
}

#[test]
fn inline_data_of_every_length_arrives() {
    let mut pair = Pair::new();
    let target = pair.b.region(&mut pair.device, 256, full());
    for len in [0, 1, 31, 32, 33, 95, 96, 97, 160, 161, MAX_INLINE] {
        let bytes = pattern(len.into(), len);
        pair.b
            .recv(&mut pair.device, &mut pair.qb, 1, &[target.sge(0, 256)]);
        pair.a.send(
            &mut pair.device,
            &mut pair.qa,
            &Send::inline(Opcode::SEND, 2, &bytes),
        );
        let wc = pair.a.poll(&mut pair.qa).unwrap();
        assert_eq!(
            (wc.status, wc.syndrome),
            (WcStatus::SUCCESS, Syndrome::NONE),
            "{len} bytes"
        );
        let received = pair.b.poll(&mut pair.qb).unwrap();
        assert_eq!(received.byte_len, u32::from(len));
        assert_eq!(pair.b.read(target.iova, len.into()), bytes);
    }
}

#[test]
fn rdma_write_and_read_touch_exactly_their_range() {
    let mut pair = Pair::new();
    let own = pair.a.region(&mut pair.device, 4096, full());
    let remote = pair.b.region(&mut pair.device, 4096, full());
    let bytes = pattern(100, 9);
    pair.a.write(own.iova, &bytes);
    let write = Send::new(Opcode::RDMA_WRITE, 1, &[own.sge(0, 60), own.sge(60, 40)])
        .remote(remote.iova + 50, remote.key);
    pair.a.send(&mut pair.device, &mut pair.qa, &write);
    assert_eq!(pair.b.read(remote.iova + 50, 100), bytes);
    assert_eq!(pair.b.read(remote.iova, 50), [0; 50]);
    assert_eq!(pair.b.read(remote.iova + 150, 50), [0; 50]);
    let read = Send::new(Opcode::RDMA_READ, 2, &[own.sge(1000, 99), own.sge(2000, 1)])
        .remote(remote.iova + 50, remote.key);
    pair.a.send(&mut pair.device, &mut pair.qa, &read);
    assert_eq!(pair.a.read(own.iova + 1000, 99), bytes[..99]);
    assert_eq!(pair.a.read(own.iova + 2000, 1), bytes[99..]);
    let done = pair.a.completions(&mut pair.qa);
    assert_eq!(
        done.iter()
            .map(|wc| (wc.wr_id, wc.status, wc.opcode, wc.byte_len))
            .collect::<Vec<_>>(),
        [
            (1, WcStatus::SUCCESS, Opcode::RDMA_WRITE.0, 100),
            (2, WcStatus::SUCCESS, Opcode::RDMA_READ.0, 100)
        ]
    );
    // The responder hears nothing.
    assert_eq!(pair.b.completions(&mut pair.qb), []);
    assert_eq!(pair.b.events(), []);
}

#[test]
fn inline_rdma_write_arrives() {
    let mut pair = Pair::new();
    let remote = pair.b.region(&mut pair.device, 256, full());
    let bytes = pattern(200, 1);
    let write = Send::inline(Opcode::RDMA_WRITE, 1, &bytes).remote(remote.iova + 8, remote.key);
    pair.a.send(&mut pair.device, &mut pair.qa, &write);
    assert_eq!(pair.b.read(remote.iova + 8, 200), bytes);
}

#[test]
fn rdma_write_with_imm_takes_a_receive_and_leaves_its_memory() {
    let mut pair = Pair::new();
    let own = pair.a.region(&mut pair.device, 64, full());
    let remote = pair.b.region(&mut pair.device, 64, full());
    let buffer = pair.b.region(&mut pair.device, 64, full());
    pair.a.write(own.iova, &[8; 64]);
    pair.b
        .recv(&mut pair.device, &mut pair.qb, 4, &[buffer.sge(0, 1)]);
    let write = Send::new(Opcode::RDMA_WRITE_WITH_IMM, 1, &[own.sge(0, 64)])
        .remote(remote.iova, remote.key)
        .imm(99);
    pair.a.send(&mut pair.device, &mut pair.qa, &write);
    let received = pair.b.poll(&mut pair.qb).unwrap();
    assert_eq!(
        (received.wr_id, received.opcode, received.imm),
        (4, WcOpcode::RECV_RDMA_WITH_IMM.0, 99)
    );
    assert_eq!((received.byte_len, received.flags), (64, CQE_IMM));
    assert_eq!(pair.b.read(remote.iova, 64), [8; 64]);
    assert_eq!(pair.b.read(buffer.iova, 64), [0; 64]);
}

#[test]
fn zero_length_rdma_needs_no_key() {
    let mut pair = Pair::new();
    for opcode in [Opcode::RDMA_WRITE, Opcode::RDMA_READ] {
        let wqe = Send::new(opcode, 1, &[]).remote(0, 0);
        pair.a.send(&mut pair.device, &mut pair.qa, &wqe);
        assert_eq!(pair.a.poll(&mut pair.qa).unwrap().status, WcStatus::SUCCESS);
    }
}

#[test]
fn long_messages_arrive_whole_and_in_order_with_short_ones() {
    let mut pair = Pair::new();
    let len = 1_500_003;
    let source = pair.a.region(&mut pair.device, 2 << 20, full());
    let target = pair.b.region(&mut pair.device, 2 << 20, full());
    let bytes = pattern(len, 5);
    pair.a.write(source.iova, &bytes);
    let long = u32::try_from(len).unwrap();
    for wr_id in 0..2 {
        pair.b.write_recv(
            &mut pair.qb,
            crate::client::recv_wqe(
                wr_id,
                &[target.sge(0, 1 << 20), target.sge(1 << 20, 1 << 20)],
            ),
        );
    }
    pair.b.ring_qp(&mut pair.device, &pair.qb);
    let write = Send::new(
        Opcode::SEND,
        1,
        &[source.sge(0, 700_000), source.sge(700_000, long - 700_000)],
    );
    pair.a.write_send(&mut pair.qa, &write.blocks());
    let short = Send::inline(Opcode::SEND, 2, b"!");
    pair.a.write_send(&mut pair.qa, &short.blocks());
    let read =
        Send::new(Opcode::RDMA_READ, 3, &[source.sge(0, long)]).remote(target.iova, target.key);
    pair.a.write_send(&mut pair.qa, &read.blocks());
    pair.a.ring_qp(&mut pair.device, &pair.qa);
    let mut rounds = 0;
    while pair.device.pump().served > 0 {
        rounds += 1;
    }
    assert!(rounds > 5, "a long message is cut into turns");
    let order: Vec<_> = pair
        .a
        .completions(&mut pair.qa)
        .iter()
        .map(|wc| (wc.wr_id, wc.status, wc.byte_len))
        .collect();
    assert_eq!(
        order,
        [
            (1, WcStatus::SUCCESS, long),
            (2, WcStatus::SUCCESS, 1),
            (3, WcStatus::SUCCESS, long)
        ]
    );
    let received: Vec<_> = pair
        .b
        .completions(&mut pair.qb)
        .iter()
        .map(|wc| (wc.wr_id, wc.byte_len))
        .collect();
    assert_eq!(received, [(0, long), (1, 1)]);
    // The short message overwrote the first byte, and the READ brought it home.
    let mut expected = bytes;
    expected[0] = b'!';
    assert!(pair.b.read(target.iova, len) == expected);
    assert!(pair.a.read(source.iova, len) == expected);
}

#[test]
fn unsignaled_wqes_complete_silently_and_the_counter_covers_them() {
    let mut pair = Pair::new();
    let remote = pair.b.region(&mut pair.device, 64, full());
    for i in 0..9 {
        let mut wqe = Send::inline(Opcode::RDMA_WRITE, i, &[u8::try_from(i).unwrap(); 8])
            .remote(remote.iova + 8 * (i % 8), remote.key);
        if i != 8 {
            wqe = wqe.unsignaled();
        }
        pair.a.write_send(&mut pair.qa, &wqe.blocks());
    }
    pair.a.ring_qp(&mut pair.device, &pair.qa);
    pump(&mut pair.device);
    let done = pair.a.completions(&mut pair.qa);
    assert_eq!(done.len(), 1);
    assert_eq!((done[0].wr_id, done[0].wqe_counter), (8, 9));
}

#[test]
fn ring_is_used_around_its_end_many_times() {
    let mut pair = Pair::new();
    let target = pair.b.region(&mut pair.device, 256, full());
    let mut sent = 0;
    for round in 0..500u64 {
        let len = u8::try_from(round % 225).unwrap();
        pair.b
            .recv(&mut pair.device, &mut pair.qb, round, &[target.sge(0, 256)]);
        let bytes = pattern(len.into(), len);
        pair.a.send(
            &mut pair.device,
            &mut pair.qa,
            &Send::inline(Opcode::SEND, round, &bytes),
        );
        let wc = pair.a.poll(&mut pair.qa).unwrap();
        assert_eq!((wc.wr_id, wc.status), (round, WcStatus::SUCCESS));
        assert_eq!(wc.wqe_counter, pair.qa.sq_producer);
        let received = pair.b.poll(&mut pair.qb).unwrap();
        assert_eq!(
            (received.wr_id, received.wqe_counter, received.byte_len),
            (round, pair.qb.rq_producer, u32::from(len))
        );
        assert_eq!(pair.b.read(target.iova, len.into()), bytes);
        sent += u64::from(len);
    }
    assert!(pair.qa.sq_producer > 10 * 64);
    let counters = pair.device.node_counters();
    assert_eq!(counters[0].counters.tx_payload_bytes, sent);
    assert_eq!(counters[1].counters.rx_payload_bytes, sent);
    assert_eq!(counters[0].counters.wqes, 500);
    assert_eq!(counters[0].counters.cqes, 500);
    assert_eq!(counters[1].counters.cqes, 500);
    assert_eq!(counters[0].counters.errors, 0);
}

#[test]
fn read_counts_as_sent_by_the_responder() {
    let mut pair = Pair::new();
    let own = pair.a.region(&mut pair.device, 64, full());
    let remote = pair.b.region(&mut pair.device, 64, full());
    let read = Send::new(Opcode::RDMA_READ, 1, &[own.sge(0, 50)]).remote(remote.iova, remote.key);
    pair.a.send(&mut pair.device, &mut pair.qa, &read);
    let counters = pair.device.node_counters();
    assert_eq!(counters[0].counters.rx_payload_bytes, 50);
    assert_eq!(counters[0].counters.tx_payload_bytes, 0);
    assert_eq!(counters[1].counters.tx_payload_bytes, 50);
}

#[test]
fn two_qps_of_one_function_talk_to_each_other() {
    let (mut device, node, _) = device();
    let mut client = Client::attach(&mut device, node);
    let mut one = client.qp(&mut device);
    let mut other = client.qp(&mut device);
    client.listen(&mut device, sock(crate::client::A, 4000), 1);
    client.connect(
        &mut device,
        one.qpn,
        sock(crate::client::A, 1),
        sock(crate::client::A, 4000),
        0,
        b"",
    );
    let (_, _, request) = client.event().unwrap();
    client.accept(&mut device, request, other.qpn, 0);
    let memory = client.region(&mut device, 4096, full());
    client.write(memory.iova, &pattern(1000, 1));
    // Source and target overlap: what arrives is still as a copy through a third place, piece by piece.
    client.recv(&mut device, &mut other, 1, &[memory.sge(100, 1000)]);
    client.send(
        &mut device,
        &mut one,
        &Send::new(Opcode::SEND, 1, &[memory.sge(0, 1000)]),
    );
    assert_eq!(client.poll(&mut one).unwrap().status, WcStatus::SUCCESS);
    assert_eq!(client.poll(&mut other).unwrap().byte_len, 1000);
    assert_eq!(client.read(memory.iova + 100, 1000), pattern(1000, 1));
    // And the other way round.
    client.recv(&mut device, &mut one, 1, &[memory.sge(50, 1000)]);
    client.send(
        &mut device,
        &mut other,
        &Send::new(Opcode::SEND, 1, &[memory.sge(100, 1000)]),
    );
    assert_eq!(client.read(memory.iova + 50, 1000), pattern(1000, 1));
}

#[test]
fn many_qps_share_the_device_without_mixing_streams() {
    let (mut device, a, b) = device();
    let mut a = Client::attach(&mut device, a);
    let mut b = Client::attach(&mut device, b);
    b.listen(&mut device, sock(crate::client::B, 4000), 8);
    let mut qps = Vec::new();
    for i in 0..40u8 {
        let qa = a.qp(&mut device);
        let mut qb = b.qp(&mut device);
        establish(&mut device, (&mut a, qa.qpn), (&mut b, qb.qpn), 4000);
        let target = b.region(&mut device, 64, full());
        b.recv(&mut device, &mut qb, u64::from(i), &[target.sge(0, 64)]);
        qps.push((qa, qb, target));
    }
    for (i, (qa, _, _)) in qps.iter_mut().enumerate() {
        let byte = u8::try_from(i).unwrap();
        a.write_send(qa, &Send::inline(Opcode::SEND, 1, &[byte; 33]).blocks());
        a.ring_qp(&mut device, qa);
    }
    pump(&mut device);
    for (i, (qa, qb, target)) in qps.iter_mut().enumerate() {
        let byte = u8::try_from(i).unwrap();
        assert_eq!(a.poll(qa).unwrap().status, WcStatus::SUCCESS);
        let received = b.poll(qb).unwrap();
        assert_eq!((received.wr_id, received.src_qpn), (i as u64, qa.qpn));
        assert_eq!(b.read(target.iova, 33), [byte; 33]);
    }
}

#[test]
fn region_deregistered_in_the_middle_of_a_message_ends_it() {
    let mut pair = Pair::new();
    let source = pair.a.region(&mut pair.device, 2 << 20, full());
    let remote = pair.b.region(&mut pair.device, 2 << 20, full());
    let write =
        Send::new(Opcode::RDMA_WRITE, 1, &[source.sge(0, 2 << 20)]).remote(remote.iova, remote.key);
    pair.a.write_send(&mut pair.qa, &write.blocks());
    pair.a.ring_qp(&mut pair.device, &pair.qa);
    pair.device.pump();
    assert_eq!(pair.a.poll(&mut pair.qa), None, "under way");
    let key = pair.b.named(
        &mut pair.device,
        ring_proto::admin::AdminOp::MR_DEREG,
        remote.key,
    );
    assert_eq!(key, ring_proto::admin::AdminStatus::OK);
    let wc = pair.a.poll(&mut pair.qa).unwrap();
    // The command may have come after the last turn only if the whole message was one turn.
    assert_eq!(
        (wc.status, wc.syndrome),
        (WcStatus::REM_ACCESS_ERR, Syndrome::RKEY_UNKNOWN)
    );
}
