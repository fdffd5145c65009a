//! A cluster of many nodes and queue pairs in one device: all of them work, what each costs in memory, and that all of it comes back.
//!
//! What a queue pair costs the others on the hot path, which is nothing, is counted in instructions by `cargo test --release --test hot_path`.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: what cannot be unwrapped is the failure of the test"
)]

mod memory;

#[path = "../device_suite/client.rs"]
#[expect(dead_code, reason = "the device suite needs more of it")]
mod client;

use std::net::Ipv4Addr;

use client::{Client, RawQp, Region, Send, full, low, pump};
use nic_emu::device::{Device, DeviceOptions, Topic};
use ring_proto::admin::{AdminOp, AdminStatus, QpModify};
use ring_proto::status::{Opcode, QpState, WcStatus};

/// Nodes, with a function each.
const NODES: usize = 64;
/// Queue pairs of all of them together.
const QPS: usize = 10_000;
/// Most bytes of the device's own memory for one queue pair with its CQ, work queues of 8 and 2 entries.
const BYTES_PER_QP: isize = 2048;
/// Most bytes of it for a function without any.
const BYTES_PER_FUNCTION: isize = 1 << 20;

/// One end of a connection.
struct End {
    node: usize,
    qp: RawQp,
}

struct Scene {
    device: Device,
    clients: Vec<Client>,
    regions: Vec<Region>,
    /// Ends 2k and 2k + 1 are connected.
    ends: Vec<End>,
}

impl Scene {
    fn new() -> Self {
        let mut device = Device::new(DeviceOptions {
            virtual_time: true,
            ..DeviceOptions::default()
        });
        let mut clients = Vec::new();
        let mut regions = Vec::new();
        for node in 0..NODES {
            let host = u8::try_from(node + 1).unwrap();
            let id = device.add_node(&format!("n{node}"), &[Ipv4Addr::new(127, 77, 0, host)]);
            let mut client = Client::attach(&mut device, id);
            regions.push(client.region(&mut device, 8 * QPS as u64, full()));
            clients.push(client);
        }
        Self {
            device,
            clients,
            regions,
            ends: Vec::with_capacity(QPS),
        }
    }

    /// Functions that do nothing turn cold: a round passes them by.
    fn sleep(&mut self) {
        self.device.advance(1_000_000_000);
        pump(&mut self.device);
    }

    /// Adds a queue pair to a node, with a CQ of its own.
    fn add(&mut self, node: usize) {
        let client = &mut self.clients[node];
        let pdn = client.pdn;
        let qp = client.qp_with(&mut self.device, 8, 2, 16, full(), pdn);
        self.ends.push(End { node, qp });
    }

    /// Takes both ends of a connection to RTS.
    fn join(&mut self, connection: usize) {
        let pair = [2 * connection, 2 * connection + 1];
        let names = pair.map(|end| {
            let End { node, qp } = &self.ends[end];
            (*node, self.clients[*node].function.0, qp.qpn)
        });
        for (own, peer) in [(names[0], names[1]), (names[1], names[0])] {
            let rtr = QpModify {
                qpn: own.2,
                state: QpState::RTR.0.into(),
                peer_function: peer.1,
                peer_qpn: peer.2,
                ..QpModify::default()
            };
            let rts = QpModify {
                qpn: own.2,
                state: QpState::RTS.0.into(),
                rnr_retry: 7,
                ..QpModify::default()
            };
            for body in [rtr, rts] {
                self.clients[own.0].ok(&mut self.device, AdminOp::QP_MODIFY, body.to_body());
            }
        }
    }
}

#[test]
fn sixty_four_nodes_and_ten_thousand_queue_pairs_work_in_little_memory() {
    let bare = memory::held();
    let mut scene = Scene::new();
    let functions = memory::held() - bare;
    let limit = BYTES_PER_FUNCTION * NODES.cast_signed();
    assert!(functions < limit, "{functions} bytes for {NODES} functions");

    let before = memory::held();
    while scene.ends.len() < QPS {
        // Two nodes at a time, as even as it can be; the others sleep.
        let left = (QPS - scene.ends.len()) / 2;
        let node = scene.ends.last().map_or(0, |end| end.node + 1);
        for _ in 0..left.div_ceil((NODES - node) / 2) {
            scene.add(node);
            scene.add(node + 1);
            scene.join(scene.ends.len() / 2 - 1);
        }
        scene.sleep();
    }
    let each = (memory::held() - before) / QPS.cast_signed();
    println!("{functions} bytes for {NODES} functions, {each} bytes for each of {QPS} queue pairs");
    assert!(each < BYTES_PER_QP, "{each} bytes for each queue pair");
    let rows = scene.device.inspect(&[Topic::Functions, Topic::Qps]);
    assert_eq!((rows.functions.len(), rows.qps.len()), (NODES, QPS));
    assert!(rows.qps.iter().all(|row| row.state == "RTS"));
    drop(rows);

    // All of them at once: each writes its number into the peer's memory.
    let Scene {
        device,
        clients,
        regions,
        ends,
    } = &mut scene;
    for end in 0..QPS {
        let (target, at) = (regions[ends[end ^ 1].node], 8 * end as u64);
        let End { node, qp } = &mut ends[end];
        let number = (end as u64 + 1).to_le_bytes();
        let wqe = Send::inline(Opcode::RDMA_WRITE, end as u64, &number)
            .remote(target.iova + at, target.key);
        clients[*node].write_send(qp, &wqe.blocks());
        clients[*node].ring_qp(device, qp);
    }
    pump(device);
    for end in 0..QPS {
        let peer = ends[end ^ 1].node;
        let End { node, qp } = &mut ends[end];
        let wc = clients[*node].poll(qp).expect("a completion");
        assert_eq!((wc.wr_id, wc.status), (end as u64, WcStatus::SUCCESS));
        assert_eq!(clients[*node].poll(qp), None);
        let seen = clients[peer].read(regions[peer].iova + 8 * end as u64, 8);
        assert_eq!(seen, (end as u64 + 1).to_le_bytes());
    }

    // What it took comes back but for the tables' own room, which the next queue pairs find.
    let full = memory::held();
    for (end, End { node, qp }) in ends.iter().enumerate() {
        let client = &mut clients[*node];
        if end % 100 == 0 {
            device.advance(1_000_000_000);
        }
        for (op, id) in [(AdminOp::QP_DESTROY, qp.qpn), (AdminOp::CQ_DESTROY, qp.cqn)] {
            assert_eq!(client.named(device, op, id), AdminStatus::OK);
        }
    }
    let left = memory::held() - before;
    println!("{left} bytes of {} are left behind them", full - before);
    for client in clients {
        device.detach(client.function);
    }
    pump(device);
    let rows = device.inspect(&[]);
    assert_eq!((rows.functions.len(), rows.qps.len()), (0, 0));
    let left = memory::held() - bare;
    assert!(left < functions, "{left} bytes are left of {functions}");
}

/// A number that looks like a limit must not be one.
#[test]
fn a_node_has_as_many_functions_as_programs() {
    let mut device = Device::new(DeviceOptions {
        virtual_time: true,
        ..DeviceOptions::default()
    });
    let node = device.add_node("a", &[Ipv4Addr::new(127, 77, 0, 1)]);
    let mut clients: Vec<_> = (0..NODES)
        .map(|_| Client::attach(&mut device, node))
        .collect();
    for client in &mut clients {
        let pdn = low(client.ok(&mut device, AdminOp::PD_ALLOC, Default::default())[0]);
        assert_ne!(pdn, 0);
    }
    assert_eq!(device.inspect(&[Topic::Functions]).functions.len(), NODES);
}
