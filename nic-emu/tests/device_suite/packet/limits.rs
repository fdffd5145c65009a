//! The MTU of a link and the length of its queue: how long packets are, how many, and which of them find no room.

use nic_emu::capture::{Frames, Port, Reader, Writer};
use nic_emu::device::{DeviceError, LinkChange, LinkCounters, LinkParameters};
use ring_proto::admin::{AdminOp, QpAttributes, QpModify};
use ring_proto::status::{Opcode, QpState, WcStatus};

use super::{A, B, MS, both, counters, run, run_until, slow};
use crate::client::{Pair, Send, full};

const LEN: u32 = 40_960;

fn with_mtu(mtu_bytes: u32) -> LinkParameters {
    LinkParameters {
        mtu_bytes,
        ..slow()
    }
}

/// Moves [`LEN`] bytes from A to B with a WRITE, or from B to A with a READ, and compares them.
fn transfer(pair: &mut Pair, opcode: Opcode, during: impl FnOnce(&mut Pair)) {
    let own = pair.a.region(&mut pair.device, 1 << 16, full());
    let other = pair.b.region(&mut pair.device, 1 << 16, full());
    let bytes: Vec<u8> = (0..LEN).map(|at| (at * 7 % 251) as u8).collect();
    if opcode == Opcode::RDMA_READ {
        pair.b.write(other.iova, &bytes);
    } else {
        pair.a.write(own.iova, &bytes);
    }
    let wqe = Send::new(opcode, 1, &[own.sge(0, LEN)]).remote(other.iova, other.key);
    pair.a.send(&mut pair.device, &mut pair.qa, &wqe);
    during(pair);
    let mut wc = None;
    run_until(pair, u64::MAX, |pair| {
        wc = pair.a.poll(&mut pair.qa);
        wc.is_some()
    });
    assert_eq!(wc.expect("a completion").status, WcStatus::SUCCESS);
    assert!(pair.a.read(own.iova, LEN as usize) == bytes, "{opcode:?}");
    assert!(pair.b.read(other.iova, LEN as usize) == bytes, "{opcode:?}");
}

fn link_counters(pair: &Pair) -> [LinkCounters; 2] {
    [
        pair.device.link_counters(A, B),
        pair.device.link_counters(B, A),
    ]
}

#[test]
fn the_mtu_of_a_link_says_how_many_packets_a_message_has() {
    for (mtu, packets) in [
        (0, 10),
        (9000, 10),
        (2200, 20),
        (1500, 40),
        (1000, 80),
        (576, 160),
    ] {
        let mut pair = Pair::new();
        both(&mut pair, with_mtu(mtu));
        transfer(&mut pair, Opcode::RDMA_WRITE, |_| ());
        assert_eq!(counters(&pair, A).tx_packets, packets, "{mtu}");
        assert_eq!(counters(&pair, A).retransmitted_packets, 0);
        // Data of a READ comes back in as many.
        let before = link_counters(&pair)[1].delivered;
        transfer(&mut pair, Opcode::RDMA_READ, |_| ());
        let responses = link_counters(&pair)[1].delivered - before;
        assert_eq!(responses, packets, "{mtu}");
    }
}

#[test]
fn the_mtu_alone_makes_packets_of_messages() {
    let mut pair = Pair::new();
    let parameters = LinkParameters {
        mtu_bytes: 1500,
        ..LinkParameters::default()
    };
    both(&mut pair, parameters);
    transfer(&mut pair, Opcode::RDMA_WRITE, |_| ());
    assert_eq!(counters(&pair, A).tx_packets, 40);
    both(&mut pair, LinkParameters::default());
    transfer(&mut pair, Opcode::RDMA_WRITE, |_| ());
    assert_eq!(counters(&pair, A).tx_packets, 40, "message mode again");
}

#[test]
fn a_queue_pair_with_a_smaller_path_mtu_keeps_it() {
    let mut pair = Pair::unjoined();
    let body = QpModify {
        qpn: pair.qa.qpn,
        state: QpState::INIT.0.into(),
        attributes: QpAttributes::PATH_MTU.bits(),
        path_mtu: 2,
        ..QpModify::default()
    };
    pair.a
        .ok(&mut pair.device, AdminOp::QP_MODIFY, body.to_body());
    pair.join();
    both(&mut pair, with_mtu(1500));
    transfer(&mut pair, Opcode::RDMA_WRITE, |_| ());
    assert_eq!(counters(&pair, A).tx_packets, u64::from(LEN / 512));
}

#[test]
fn an_mtu_that_changes_meanwhile_costs_no_byte() {
    for opcode in [Opcode::RDMA_WRITE, Opcode::RDMA_READ] {
        for (first, then) in [(9000, 576), (576, 9000), (1500, 0), (0, 1500)] {
            let mut pair = Pair::new();
            let crawling = |mtu| LinkParameters {
                bandwidth_bps: 8_000_000,
                loss_ppm: 20_000,
                ..with_mtu(mtu)
            };
            both(&mut pair, crawling(first));
            transfer(&mut pair, opcode, |pair| {
                run(pair, 10 * MS);
                both(pair, crawling(then));
                // Another WQE behind it has the new length.
                let target = pair.b.region(&mut pair.device, 4096, full());
                let source = pair.a.region(&mut pair.device, 4096, full());
                let wqe = Send::new(Opcode::RDMA_WRITE, 2, &[source.sge(0, 4096)]);
                let wqe = wqe.remote(target.iova, target.key);
                pair.a.send(&mut pair.device, &mut pair.qa, &wqe);
            });
            run(&mut pair, 1_000 * MS);
            let wc = pair.a.poll(&mut pair.qa).expect("the second");
            assert_eq!(wc.status, WcStatus::SUCCESS);
        }
    }
}

#[test]
fn a_capture_shows_packets_of_that_length() {
    let mut pair = Pair::new();
    both(&mut pair, with_mtu(1500));
    let geometry: nic_emu::capture::Geometry =
        serde_json::from_value(serde_json::json!({"head": 64, "data": 1 << 16, "nodes": 2}))
            .unwrap();
    let (writer, fd) = Writer::new(geometry).unwrap();
    let ports = ["a", "b"].map(|name| Port {
        name: name.to_owned(),
        addresses: Vec::new(),
    });
    let mut frames = Frames::new(Reader::new(&fd, geometry).unwrap(), &ports);
    let id = pair.device.start_capture(&[A], 65_535, writer).unwrap();
    transfer(&mut pair, Opcode::RDMA_WRITE, |_| ());
    pair.device.stop_capture(id);
    let mut lens = Vec::new();
    while let Some(frame) = frames.next_frame().unwrap() {
        lens.push(frame.bytes.len());
    }
    // Payload with Ethernet 14, IPv6 40, UDP 8, BTH 12, ICRC 4, and RETH 16 in the first.
    let full = 1024 + 78;
    assert_eq!(lens.iter().max(), Some(&(full + 16)));
    assert_eq!(lens.iter().filter(|&&len| len == full).count(), 39);
}

#[test]
fn what_does_not_fit_in_the_queue_is_dropped_and_sent_again() {
    // 40 packets of 1 KiB at once, at a byte in a microsecond.
    let limited = |queue_bytes| LinkParameters {
        bandwidth_bps: 8_000_000,
        queue_bytes,
        ..with_mtu(1500)
    };
    let mut pair = Pair::new();
    both(&mut pair, limited(16 << 10));
    transfer(&mut pair, Opcode::RDMA_WRITE, |_| ());
    let [there, back] = link_counters(&pair);
    assert!(there.dropped >= 20, "{there:?}");
    assert_eq!(there.lost, there.dropped);
    assert_eq!(back.dropped, 0);
    assert!(counters(&pair, A).retransmitted_packets >= there.dropped);

    let mut pair = Pair::new();
    both(&mut pair, limited(64 << 10));
    transfer(&mut pair, Opcode::RDMA_WRITE, |_| ());
    assert_eq!(link_counters(&pair)[0].lost, 0, "all of it fits");
    assert_eq!(counters(&pair, A).retransmitted_packets, 0);

    let mut pair = Pair::new();
    both(&mut pair, limited(0));
    transfer(&mut pair, Opcode::RDMA_WRITE, |_| ());
    assert_eq!(link_counters(&pair)[0].lost, 0, "without limit");
}

#[test]
fn a_queue_without_bandwidth_holds_nothing_and_changes_nothing() {
    let mut pair = Pair::new();
    let parameters = LinkParameters {
        queue_bytes: 1,
        ..LinkParameters::default()
    };
    assert!(!parameters.is_impaired());
    both(&mut pair, parameters);
    transfer(&mut pair, Opcode::RDMA_WRITE, |_| ());
    assert_eq!(counters(&pair, A).tx_packets, 0);
    both(
        &mut pair,
        LinkParameters {
            queue_bytes: 1,
            ..slow()
        },
    );
    transfer(&mut pair, Opcode::RDMA_WRITE, |_| ());
    assert_eq!(link_counters(&pair)[0].lost, 0);
}

#[test]
fn an_mtu_is_checked_and_the_same_both_ways() {
    let mut pair = Pair::new();
    for mtu in [1, 575, 9217, u32::MAX] {
        let refused = pair.device.set_link(A, B, with_mtu(mtu));
        assert!(matches!(refused, Err(DeviceError::BadMtu { bytes }) if bytes == mtu));
    }
    let change = LinkChange {
        mtu_bytes: Some(1500),
        ..LinkChange::default()
    };
    let refused = pair.device.change_links((A, B), false, change);
    assert!(matches!(refused, Err(DeviceError::OneWayMtu)));
    assert_eq!(pair.device.link(A, B), LinkParameters::default());
    pair.device.change_links((A, B), true, change).unwrap();
    assert_eq!(pair.device.link(B, A).mtu_bytes, 1500);
    pair.device.change_links((A, B), false, change).unwrap();
}
