//! Ports that go down and come back, and the other asynchronous events of a function.

use std::net::Ipv4Addr;

use nic_emu::device::{DeviceError, LinkParameters};
use ring_proto::admin::{AdminOp, AdminStatus, Named, QpAttributes, QpModify};
use ring_proto::eqe::{CmStatus, EventType};
use ring_proto::ids::NodeId;
use ring_proto::regs;
use ring_proto::status::{Opcode, QpState, Syndrome, WcStatus};
use ring_proto::sync::Ordering;

use crate::client::{A, B, Client, Pair, Send, device, full, note, pump, sock};

fn nodes(pair: &Pair) -> (NodeId, NodeId) {
    let node = |function| pair.device.node_of(function).unwrap();
    (node(pair.a.function), node(pair.b.function))
}

#[test]
fn port_events_reach_every_function_of_the_node_once_per_change() {
    let (mut device, a, b) = device();
    let mut one = Client::attach(&mut device, a);
    let mut two = Client::attach(&mut device, a);
    let mut other = Client::attach(&mut device, b);
    let down = (EventType::PORT_DOWN, 0, u32::from(a.0));
    let up = (EventType::PORT_UP, 0, u32::from(a.0));
    for (is_up, event) in [(false, down), (true, up), (false, down)] {
        for _ in 0..2 {
            device.set_port(a, is_up).unwrap();
            assert_eq!(device.is_port_up(a).unwrap(), is_up);
        }
        for client in [&mut one, &mut two] {
            assert_eq!(client.events(), [event]);
            let state = device.read_register(client.function, regs::LINK_STATE, 4);
            assert_eq!(state.unwrap(), u64::from(is_up));
        }
        assert_eq!(other.events(), []);
        let state = device.read_register(other.function, regs::LINK_STATE, 4);
        assert_eq!(state.unwrap(), 1);
    }
    let nobody = NodeId(9);
    for refused in [
        device.set_port(nobody, true),
        device.is_port_up(nobody).map(drop),
    ] {
        assert!(matches!(refused, Err(DeviceError::NoNode(node)) if node == nobody));
    }
}

#[test]
fn requests_wait_for_the_port_and_go_on_in_order() {
    for end in [0, 1] {
        let mut pair = Pair::new();
        let node = [nodes(&pair).0, nodes(&pair).1][end];
        let remote = pair.b.region(&mut pair.device, 64, full());
        let local = pair.a.region(&mut pair.device, 64, full());
        pair.device.set_port(node, false).unwrap();
        let write = Send::inline(Opcode::RDMA_WRITE, 1, &[5; 8]).remote(remote.iova, remote.key);
        let read =
            Send::new(Opcode::RDMA_READ, 2, &[local.sge(0, 8)]).remote(remote.iova, remote.key);
        for wqe in [write, read] {
            pair.a.write_send(&mut pair.qa, &wqe.blocks());
        }
        pair.a.ring_qp(&mut pair.device, &pair.qa);
        pair.pump();
        assert_eq!(pair.a.completions(&mut pair.qa), []);
        assert_eq!(pair.b.read(remote.iova, 8), [0; 8]);
        assert!(pair.device.try_park(), "waiting costs no work");
        pair.device.unpark();
        pair.device.set_port(node, true).unwrap();
        pair.pump();
        let done: Vec<_> = pair.a.completions(&mut pair.qa);
        assert_eq!(done.iter().map(|wc| wc.wr_id).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(pair.a.read(local.iova, 8), [5; 8]);
        assert_eq!(pair.device.pump().next_timer_ns, None, "the timer is gone");
    }
}

#[test]
pub(crate) fn port_that_stays_down_ends_the_retries() {
    let mut pair = Pair::new();
    let (_, b) = nodes(&pair);
    pair.device.set_port(b, false).unwrap();
    let send = Send::inline(Opcode::SEND, 7, b"x");
    pair.a.send(&mut pair.device, &mut pair.qa, &send);
    // timeout 14, retry_cnt 7.
    pair.device.advance(8 * (4_096 << 14) - 1);
    pair.pump();
    assert_eq!(pair.a.poll(&mut pair.qa), None);
    pair.device.advance(1);
    pair.pump();
    let wc = pair.a.poll(&mut pair.qa).unwrap();
    assert_eq!(
        (wc.wr_id, wc.status, wc.syndrome),
        (7, WcStatus::RETRY_EXC_ERR, Syndrome::PORT_DOWN)
    );
    let state = pair.a.query(&mut pair.device, pair.qa.qpn);
    assert_eq!(state, Some(QpState::ERR));
    let state = pair.b.query(&mut pair.device, pair.qb.qpn);
    assert_eq!(state, Some(QpState::RTS), "the other end hears of nothing");
}

#[test]
fn message_under_way_stops_at_the_port_and_arrives_whole_later() {
    let mut pair = Pair::new();
    let len = 1 << 20;
    let local = pair.a.region(&mut pair.device, len.into(), full());
    let remote = pair.b.region(&mut pair.device, len.into(), full());
    pair.a.write(local.iova, &vec![9; 1 << 20]);
    let write =
        Send::new(Opcode::RDMA_WRITE, 1, &[local.sge(0, len)]).remote(remote.iova, remote.key);
    pair.a.write_send(&mut pair.qa, &write.blocks());
    pair.a.ring_qp(&mut pair.device, &pair.qa);
    assert!(pair.device.pump().served > 0);
    let (a, _) = nodes(&pair);
    pair.device.set_port(a, false).unwrap();
    pair.pump();
    assert_eq!(pair.b.read(remote.iova + (1 << 20) - 1, 1), [0]);
    pair.device.set_port(a, true).unwrap();
    pair.pump();
    assert_eq!(pair.a.poll(&mut pair.qa).unwrap().status, WcStatus::SUCCESS);
    assert_eq!(pair.b.read(remote.iova, 1 << 20), vec![9; 1 << 20]);
}

#[test]
fn wait_for_a_port_does_not_shorten_the_wait_for_a_receive() {
    let mut pair = Pair::new();
    let (_, b) = nodes(&pair);
    pair.device.set_port(b, false).unwrap();
    let send = Send::inline(Opcode::SEND, 7, b"");
    pair.a.send(&mut pair.device, &mut pair.qa, &send);
    pair.device.advance(100_000_000);
    pair.device.set_port(b, true).unwrap();
    pair.pump();
    // rnr_retry 7: from here on it waits without end.
    assert_eq!(pair.device.pump().next_timer_ns, None);
    pair.device.advance(3_600_000_000_000);
    pair.pump();
    assert_eq!(pair.a.poll(&mut pair.qa), None);
    pair.b.recv(&mut pair.device, &mut pair.qb, 1, &[]);
    assert_eq!(pair.a.poll(&mut pair.qa).unwrap().status, WcStatus::SUCCESS);
}

#[test]
fn packets_meet_the_port_too_and_are_sent_again() {
    let mut pair = Pair::new();
    let (a, b) = nodes(&pair);
    let slow = LinkParameters {
        latency_ns: 50_000,
        ..LinkParameters::default()
    };
    for (from, to) in [(a, b), (b, a)] {
        pair.device.set_link(from, to, slow).unwrap();
    }
    let remote = pair.b.region(&mut pair.device, 64, full());
    pair.device.set_port(b, false).unwrap();
    let write = Send::inline(Opcode::RDMA_WRITE, 1, &[5; 8]).remote(remote.iova, remote.key);
    pair.a.send(&mut pair.device, &mut pair.qa, &write);
    // Shorter than the retries last, which is half a second.
    for _ in 0..100 {
        pair.device.advance(1_000_000);
        pair.pump();
    }
    assert_eq!(pair.a.poll(&mut pair.qa), None);
    assert_eq!(pair.b.read(remote.iova, 8), [0; 8]);
    pair.device.set_port(b, true).unwrap();
    for _ in 0..200 {
        pair.device.advance(1_000_000);
        pair.pump();
    }
    assert_eq!(pair.a.poll(&mut pair.qa).unwrap().status, WcStatus::SUCCESS);
    assert_eq!(pair.b.read(remote.iova, 8), [5; 8]);
}

#[test]
fn nobody_connects_through_a_port_that_is_down() {
    for end in [0, 1] {
        let (mut device, a, b) = device();
        let mut one = Client::attach(&mut device, a);
        let mut other = Client::attach(&mut device, b);
        other.listen(&mut device, sock(B, 80), 8);
        let qp = one.qp(&mut device);
        device.set_port([a, b][end], false).unwrap();
        drop((one.events(), other.events()));
        let status = one.connect(&mut device, qp.qpn, sock(A, 9), sock(B, 80), 0, b"");
        assert_eq!(status, AdminStatus::OK);
        let rejected = (EventType::CM_REJECTED, qp.qpn, CmStatus::PORT_DOWN.0);
        assert_eq!(one.events(), [rejected]);
        device.set_port([a, b][end], true).unwrap();
        drop((one.events(), other.events()));
        let status = one.connect(&mut device, qp.qpn, sock(A, 9), sock(B, 80), 0, b"");
        assert_eq!(status, AdminStatus::OK);
        assert_eq!(other.event().unwrap().0, EventType::CM_REQUEST);
    }
}

#[test]
fn node_does_not_reach_itself_through_a_port_that_is_down() {
    let (mut device, node, _) = device();
    let mut client = Client::attach(&mut device, node);
    let mut qp = client.qp(&mut device);
    for state in [QpState::RTR, QpState::RTS] {
        let names_peer = state == QpState::RTR;
        let body = QpModify {
            qpn: qp.qpn,
            state: state.0.into(),
            peer_function: if names_peer { client.function.0 } else { 0 },
            peer_qpn: if names_peer { qp.qpn } else { 0 },
            attributes: if names_peer {
                0
            } else {
                QpAttributes::TIMEOUT.bits()
            },
            ..QpModify::default()
        };
        client.ok(&mut device, AdminOp::QP_MODIFY, body.to_body());
    }
    let remote = client.region(&mut device, 64, full());
    device.set_port(node, false).unwrap();
    let write = Send::inline(Opcode::RDMA_WRITE, 1, b"x").remote(remote.iova, remote.key);
    client.send(&mut device, &mut qp, &write);
    // Timeout 0 waits without end.
    device.advance(3_600_000_000_000);
    pump(&mut device);
    assert_eq!(client.poll(&mut qp), None);
    device.set_port(node, true).unwrap();
    pump(&mut device);
    assert_eq!(client.poll(&mut qp).unwrap().status, WcStatus::SUCCESS);
}

#[test]
pub(crate) fn events_that_nobody_takes_fail_the_function_in_the_end() {
    let (mut device, a, b) = device();
    let mut deaf = Client::attach(&mut device, a);
    let mut other = Client::attach(&mut device, b);
    let syndrome = |device: &mut nic_emu::device::Device, client: &Client| {
        let value = device
            .read_register(client.function, regs::ERROR_SYNDROME, 4)
            .unwrap();
        Syndrome(u16::try_from(value).unwrap())
    };
    // The ring holds 256 events, the device 2^18 more.
    let room = 256 + (1 << 18);
    for index in 0..room {
        device.set_port(a, index % 2 == 1).unwrap();
    }
    assert_eq!(syndrome(&mut device, &deaf), Syndrome::NONE);
    device.set_port(a, room % 2 == 1).unwrap();
    assert_eq!(syndrome(&mut device, &deaf), Syndrome::EQ_OVERRUN);
    note(syndrome(&mut device, &deaf));
    assert_eq!(syndrome(&mut device, &other), Syndrome::NONE);
    assert_eq!(other.events(), []);
    device.reset(deaf.function);
    deaf.start(&mut device);
    assert_eq!(deaf.events(), []);
}

#[test]
fn failed_function_tells_of_it_by_an_event() {
    let (mut device, a, _) = device();
    let mut client = Client::attach(&mut device, a);
    // The admin doorbell runs further than its queue is deep.
    client.admin_producer = client.admin_producer.wrapping_add(4096);
    client.ring_admin(&mut device);
    pump(&mut device);
    let code = u32::from(Syndrome::DOORBELL_OUT_OF_RANGE.0);
    assert_eq!(client.events(), [(EventType::DEVICE_FATAL, 0, code)]);
}

#[test]
fn cuts_of_links_show_in_the_summary_page_and_by_query() {
    let mut pair = Pair::new();
    let late = |pair: &mut Pair| Client::attach(&mut pair.device, NodeId(0));
    let shown = |client: &Client| client.bar.link_cuts().load(Ordering::Relaxed);
    let query = |pair: &mut Pair, on_a: bool, to: Ipv4Addr| {
        let body = Named {
            id: to.to_bits(),
            reserved: 0,
        };
        let client = if on_a { &mut pair.a } else { &mut pair.b };
        client.admin(&mut pair.device, AdminOp::LINK_QUERY, body.to_body())
    };
    assert_eq!((shown(&pair.a), shown(&pair.b)), (0, 0));
    let cut = LinkParameters {
        up: false,
        ..LinkParameters::default()
    };
    pair.device.set_link(NodeId(0), NodeId(1), cut).unwrap();
    assert_eq!((shown(&pair.a), shown(&pair.b)), (1, 1));
    assert_eq!(shown(&late(&mut pair)), 1);
    assert_eq!(query(&mut pair, true, B), (AdminStatus::OK, [1, 0]));
    assert_eq!(query(&mut pair, false, A), (AdminStatus::OK, [2, 0]));
    let nobody = Ipv4Addr::new(127, 77, 0, 9);
    let (status, _) = query(&mut pair, true, nobody);
    assert_eq!(status, AdminStatus::BAD_NODE_ADDRESS);
    assert_eq!(pair.device.heal(), 1);
    assert_eq!((shown(&pair.a), shown(&pair.b)), (0, 0));
    assert_eq!(query(&mut pair, true, B), (AdminStatus::OK, [0, 0]));
}
