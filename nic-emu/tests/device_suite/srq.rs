//! Shared receive queues: who gets a receive, the limit, errors, the end.

use nic_emu::device::Device;
use ring_proto::admin::{AdminOp, AdminStatus, QpCreateSrq, SrqCreate, SrqModify};
use ring_proto::eqe::EventType;
use ring_proto::status::{Opcode, QpState, Syndrome, WcOpcode, WcStatus};
use ring_proto::sync::Ordering;
use ring_proto::{uar, wqe::Sge};

use crate::client::{
    A, B, BASE, CQ_DEPTH, Client, RawQp, RawSrq, Region, SQ_DEPTH, Send, device, full, high, low,
    pump, sock,
};

const DEPTH: u32 = 16;

/// Client a with `qps` QPs, each connected to one of client b; those share an SRQ.
struct Scene {
    device: Device,
    a: Client,
    b: Client,
    srq: RawSrq,
    qas: Vec<RawQp>,
    qbs: Vec<RawQp>,
    own: Region,
    into: Region,
}

impl Scene {
    fn new(qps: usize) -> Self {
        let (mut device, a, b) = device();
        let mut a = Client::attach(&mut device, a);
        let mut b = Client::attach(&mut device, b);
        let pdn = b.pdn;
        let srq = b.srq(&mut device, DEPTH, pdn);
        let own = a.region(&mut device, 4096, full());
        let into = b.region(&mut device, 4096, full());
        let mut scene = Self {
            device,
            a,
            b,
            srq,
            qas: Vec::new(),
            qbs: Vec::new(),
            own,
            into,
        };
        scene.b.listen(&mut scene.device, sock(B, 4000), 8);
        for _ in 0..qps {
            scene.join(pdn);
        }
        scene
    }

    /// One more connected pair, b's QP in that protection domain.
    fn join(&mut self, pdn: u32) {
        let Self {
            device,
            a,
            b,
            srq,
            qas,
            qbs,
            ..
        } = self;
        let (qa, qb) = (a.qp(device), b.qp_on_srq(device, srq, pdn));
        let from = sock(A, 999);
        let status = a.connect(device, qa.qpn, from, sock(B, 4000), 0, b"");
        assert_eq!(status, AdminStatus::OK);
        let (event, _, request) = b.event().expect("a request");
        assert_eq!(event, EventType::CM_REQUEST);
        assert_eq!(b.accept(device, request, qb.qpn, 0), AdminStatus::OK);
        assert_eq!(
            a.event(),
            Some((EventType::CM_ESTABLISHED, qa.qpn, b.function.0))
        );
        qas.push(qa);
        qbs.push(qb);
    }

    fn post(&mut self, wr_id: u64, sges: &[Sge]) {
        self.b.write_srq(&mut self.srq, wr_id, sges);
        self.b.ring_srq(&mut self.device, &self.srq);
    }

    fn send(&mut self, pair: usize, bytes: &[u8]) {
        let wqe = Send::inline(Opcode::SEND, pair as u64, bytes);
        self.a.send(&mut self.device, &mut self.qas[pair], &wqe);
    }

    fn sent(&mut self, pair: usize) -> Option<(WcStatus, Syndrome)> {
        let wc = self.a.poll(&mut self.qas[pair])?;
        Some((wc.status, wc.syndrome))
    }

    /// wr_ids of the receives that a QP of b has completed well.
    fn received(&mut self, pair: usize) -> Vec<u64> {
        let all = self.b.completions(&mut self.qbs[pair]);
        assert!(all.iter().all(|wc| wc.status == WcStatus::SUCCESS));
        all.iter().map(|wc| wc.wr_id).collect()
    }

    fn arm_by_command(&mut self, limit: u32) -> AdminStatus {
        let body = SrqModify {
            srqn: self.srq.srqn,
            limit,
        };
        self.b
            .status(&mut self.device, AdminOp::SRQ_MODIFY, body.to_body())
    }

    fn arm_by_doorbell(&mut self, limit: u32, number: u32) {
        let word = limit | number << 24;
        let line = self.b.bar.line(self.srq.slot);
        line.srq_limit().store(word, Ordering::Relaxed);
        self.b.ring_srq(&mut self.device, &self.srq);
    }

    fn events(&mut self, event: EventType) -> Vec<(u32, u32)> {
        let all = self.b.events();
        let of = all.into_iter().filter(|&(kind, ..)| kind == event);
        of.map(|(_, source, code)| (source, code)).collect()
    }

    /// Depth, limit, receives posted, QPs.
    fn query(&mut self) -> (u32, u32, u32, u32) {
        let named = ring_proto::admin::Named {
            id: self.srq.srqn,
            reserved: 0,
        };
        let [first, second] = self
            .b
            .ok(&mut self.device, AdminOp::SRQ_QUERY, named.to_body());
        (low(first), high(first), low(second), high(second))
    }

    fn state(&mut self, pair: usize) -> Option<QpState> {
        self.b.query(&mut self.device, self.qbs[pair].qpn)
    }
}

#[test]
fn messages_of_several_qps_take_receives_in_posting_order() {
    let mut scene = Scene::new(3);
    let sges = [scene.into.sge(0, 64)];
    for wr_id in 0..6 {
        scene.post(wr_id, &sges);
    }
    for pair in [2, 0, 1, 1, 2, 0] {
        scene.send(pair, b"x");
        assert_eq!(scene.sent(pair), Some((WcStatus::SUCCESS, Syndrome::NONE)));
    }
    assert_eq!(scene.received(0), [1, 5]);
    assert_eq!(scene.received(1), [2, 3]);
    assert_eq!(scene.received(2), [0, 4]);
}

#[test]
fn a_completion_tells_the_qp_and_how_far_the_srq_is_free() {
    let mut scene = Scene::new(2);
    scene.post(7, &[scene.into.sge(8, 64)]);
    scene.send(1, b"hello");
    let wc = scene.b.poll(&mut scene.qbs[1]).unwrap();
    assert_eq!(
        (wc.wr_id, wc.opcode, wc.byte_len, wc.wqe_counter),
        (7, WcOpcode::RECV.0, 5, 1)
    );
    assert_eq!((wc.qpn, wc.src_qpn), (scene.qbs[1].qpn, scene.qas[1].qpn));
    assert_eq!(scene.b.read(scene.into.iova + 8, 5), b"hello");
}

#[test]
fn waiting_senders_are_served_in_their_order_as_receives_come() {
    let mut scene = Scene::new(3);
    for pair in [1, 2, 0] {
        scene.send(pair, b"x");
        assert_eq!(scene.sent(pair), None);
    }
    scene.post(10, &[]);
    // A receive without room fails its message; give room from here on.
    assert_eq!(
        scene.sent(1),
        Some((WcStatus::REM_INV_REQ_ERR, Syndrome::RECV_TOO_SHORT))
    );
    let sges = [scene.into.sge(0, 8)];
    scene.post(11, &sges);
    assert_eq!(scene.sent(2), Some((WcStatus::SUCCESS, Syndrome::NONE)));
    assert_eq!(scene.sent(0), None);
    scene.post(12, &sges);
    assert_eq!(scene.sent(0), Some((WcStatus::SUCCESS, Syndrome::NONE)));
    assert_eq!((scene.received(2), scene.received(0)), (vec![11], vec![12]));
}

#[test]
fn many_receives_wake_many_senders_at_once() {
    let mut scene = Scene::new(4);
    for pair in 0..4 {
        scene.send(pair, b"x");
    }
    for wr_id in 0..4 {
        scene
            .b
            .write_srq(&mut scene.srq, wr_id, &[scene.into.sge(0, 8)]);
    }
    scene.b.ring_srq(&mut scene.device, &scene.srq);
    for pair in 0..4 {
        assert_eq!(scene.received(pair), [pair as u64]);
    }
}

#[test]
fn the_ring_goes_round_many_times() {
    let mut scene = Scene::new(2);
    let sges = [scene.into.sge(0, 8)];
    for round in 0..10 * u64::from(DEPTH) {
        scene.post(round, &sges);
        let pair = usize::from(round % 3 == 0);
        scene.send(pair, &round.to_le_bytes());
        assert_eq!(scene.received(pair), [round]);
        assert_eq!(scene.b.read(scene.into.iova, 8), round.to_le_bytes());
        assert!(scene.sent(pair).is_some());
    }
}

#[test]
fn a_message_under_way_keeps_its_receive_while_others_pass() {
    let mut scene = Scene::new(2);
    let len = 1 << 20;
    let from = scene.a.region(&mut scene.device, len, full());
    let big = scene.b.region(&mut scene.device, len, full());
    let len = u32::try_from(len).unwrap();
    let big = [big.sge(0, len)];
    scene.b.write_srq(&mut scene.srq, 1, &big);
    let small = [scene.into.sge(0, 8)];
    scene.b.write_srq(&mut scene.srq, 2, &small);
    scene.b.ring_srq(&mut scene.device, &scene.srq);
    // Both are posted before the device works: the long one needs several turns.
    let long = Send::new(Opcode::SEND, 1, &[from.sge(0, len)]);
    scene.a.write_send(&mut scene.qas[0], &long.blocks());
    scene.a.ring_qp(&mut scene.device, &scene.qas[0]);
    scene.device.pump();
    let short = Send::inline(Opcode::SEND, 2, b"short");
    scene.a.send(&mut scene.device, &mut scene.qas[1], &short);
    let first = scene.b.poll(&mut scene.qbs[0]).unwrap();
    assert_eq!((first.wr_id, first.byte_len), (1, len));
    let second = scene.b.poll(&mut scene.qbs[1]).unwrap();
    assert_eq!((second.wr_id, second.wqe_counter), (2, 2));
}

#[test]
fn rdma_write_with_immediate_takes_a_receive() {
    let mut scene = Scene::new(1);
    scene.post(5, &[]);
    let wqe = Send::new(Opcode::RDMA_WRITE_WITH_IMM, 1, &[scene.own.sge(0, 8)])
        .remote(scene.into.iova, scene.into.key)
        .imm(77);
    scene.a.send(&mut scene.device, &mut scene.qas[0], &wqe);
    let wc = scene.b.poll(&mut scene.qbs[0]).unwrap();
    assert_eq!(
        (wc.wr_id, wc.imm, wc.opcode),
        (5, 77, WcOpcode::RECV_RDMA_WITH_IMM.0)
    );
}

#[test]
fn limit_by_command_fires_once_and_can_be_armed_again() {
    let mut scene = Scene::new(1);
    let sges = [scene.into.sge(0, 8)];
    for wr_id in 0..4 {
        scene.post(wr_id, &sges);
    }
    assert_eq!(scene.arm_by_command(3), AdminStatus::OK);
    assert_eq!(scene.query(), (DEPTH, 3, 4, 1));
    assert_eq!(scene.events(EventType::SRQ_LIMIT), []);
    // 3 left: not below. 2 left: below, once.
    let srqn = scene.srq.srqn;
    scene.send(0, b"x");
    assert_eq!(scene.events(EventType::SRQ_LIMIT), []);
    scene.send(0, b"x");
    assert_eq!(scene.events(EventType::SRQ_LIMIT), [(srqn, 0)]);
    assert_eq!(scene.query(), (DEPTH, 0, 2, 1));
    scene.send(0, b"x");
    assert_eq!(scene.events(EventType::SRQ_LIMIT), []);
    // Armed above what is there: fires at once.
    assert_eq!(scene.arm_by_command(2), AdminStatus::OK);
    assert_eq!(scene.events(EventType::SRQ_LIMIT), [(srqn, 0)]);
    // Disarmed.
    scene.post(9, &sges);
    assert_eq!(scene.arm_by_command(2), AdminStatus::OK);
    assert_eq!(scene.arm_by_command(0), AdminStatus::OK);
    scene.send(0, b"x");
    scene.send(0, b"x");
    assert_eq!(scene.events(EventType::SRQ_LIMIT), []);
}

#[test]
fn limit_by_doorbell_is_armed_when_the_word_changes() {
    let mut scene = Scene::new(1);
    let sges = [scene.into.sge(0, 8)];
    for wr_id in 0..4 {
        scene.post(wr_id, &sges);
    }
    let srqn = scene.srq.srqn;
    scene.arm_by_doorbell(4, 1);
    assert_eq!(scene.events(EventType::SRQ_LIMIT), []);
    scene.send(0, b"x");
    assert_eq!(scene.events(EventType::SRQ_LIMIT), [(srqn, 0)]);
    // The same word again arms nothing, another number does.
    scene.post(5, &sges);
    scene.arm_by_doorbell(4, 1);
    scene.send(0, b"x");
    assert_eq!(scene.events(EventType::SRQ_LIMIT), []);
    scene.post(6, &sges);
    scene.arm_by_doorbell(4, 2);
    scene.send(0, b"x");
    assert_eq!(scene.events(EventType::SRQ_LIMIT), [(srqn, 0)]);
    assert_eq!(uar::SRQ_LIMIT_MASK, 0xff_ffff);
}

#[test]
pub(crate) fn a_producer_past_the_depth_breaks_the_srq() {
    let mut scene = Scene::new(2);
    scene.events(EventType::SRQ_ERROR);
    scene.srq.producer = DEPTH + 1;
    scene.b.ring_srq(&mut scene.device, &scene.srq);
    let events = scene.b.events();
    let srqn = scene.srq.srqn;
    let code = u32::from(Syndrome::DOORBELL_OUT_OF_RANGE.0);
    assert_eq!(events.last(), Some(&(EventType::SRQ_ERROR, srqn, code)));
    for pair in 0..2 {
        let qpn = scene.qbs[pair].qpn;
        let fatal = (EventType::QP_FATAL, qpn, u32::from(Syndrome::SRQ_BROKEN.0));
        assert!(events.contains(&fatal));
        assert!(events.contains(&(EventType::LAST_WQE_REACHED, qpn, 0)));
        assert_eq!(scene.state(pair), Some(QpState::ERR));
        scene.send(pair, b"x");
        assert_eq!(
            scene.sent(pair),
            Some((WcStatus::RETRY_EXC_ERR, Syndrome::PEER_IN_ERROR))
        );
    }
    // Nothing can be done with it but to destroy it.
    assert_eq!(scene.arm_by_command(1), AdminStatus::BAD_STATE);
    scene.b.ring_srq(&mut scene.device, &scene.srq);
    assert_eq!(scene.b.events(), []);
}

#[test]
fn a_producer_that_lies_when_a_message_comes_breaks_the_srq_once() {
    let mut scene = Scene::new(2);
    let line = scene.b.bar.line(scene.srq.slot);
    // Written, not rung: the device meets it when it looks for a receive.
    line.srq_producer().store(0x8000_0000, Ordering::Release);
    for pair in 0..2 {
        let wqe = Send::inline(Opcode::SEND, 1, b"x");
        scene.a.write_send(&mut scene.qas[pair], &wqe.blocks());
        scene.a.ring_qp(&mut scene.device, &scene.qas[pair]);
    }
    pump(&mut scene.device);
    for pair in 0..2 {
        let (status, syndrome) = scene.sent(pair).unwrap();
        assert_eq!(status, WcStatus::RETRY_EXC_ERR);
        assert_eq!(syndrome, Syndrome::PEER_IN_ERROR);
        assert_eq!(scene.state(pair), Some(QpState::ERR));
    }
    assert_eq!(scene.events(EventType::SRQ_ERROR).len(), 1);
}

#[test]
fn unmapping_the_ring_breaks_the_srq() {
    let mut scene = Scene::new(0);
    let iova = 0x9_0000_0000;
    let fd = crate::client::memfd(
        4096,
        nix::fcntl::SealFlag::F_SEAL_SHRINK | nix::fcntl::SealFlag::F_SEAL_GROW,
    );
    let request = nic_emu::device::WindowRequest {
        fd: Some(fd),
        offset: 0,
        iova,
        len: 4096,
        read: true,
        write: true,
    };
    scene.device.map(scene.b.function, request).unwrap();
    let body = SrqCreate {
        ring: iova,
        depth: DEPTH,
        pdn: scene.b.pdn,
        slot: scene.b.slot(),
        limit: 0,
    };
    let [srqn, _] = scene
        .b
        .ok(&mut scene.device, AdminOp::SRQ_CREATE, body.to_body());
    scene.srq.srqn = low(srqn);
    let pdn = scene.b.pdn;
    scene.join(pdn);
    scene.device.unmap(scene.b.function, iova, 4096).unwrap();
    pump(&mut scene.device);
    let code = u32::from(Syndrome::WINDOW_GONE.0);
    assert_eq!(
        scene.b.events().last(),
        Some(&(EventType::SRQ_ERROR, low(srqn), code))
    );
    assert_eq!(scene.state(0), Some(QpState::ERR));
}

#[test]
fn a_qp_in_error_leaves_the_receives_to_the_others() {
    let mut scene = Scene::new(2);
    let sges = [scene.into.sge(0, 8)];
    for wr_id in 0..3 {
        scene.post(wr_id, &sges);
    }
    scene.b.events();
    let qpn = scene.qbs[0].qpn;
    let mut qb = scene.qbs[0];
    scene.b.modify(&mut scene.device, &mut qb, QpState::ERR);
    assert_eq!(
        scene.events(EventType::LAST_WQE_REACHED),
        [(qpn, 0)],
        "told once, by the change to ERR"
    );
    // Nothing of the SRQ was flushed through it.
    assert_eq!(scene.b.completions(&mut scene.qbs[0]), []);
    assert_eq!(scene.query(), (DEPTH, 0, 3, 2));
    scene.send(1, b"x");
    assert_eq!(scene.received(1), [0]);
    scene.b.modify(&mut scene.device, &mut qb, QpState::ERR);
    assert_eq!(scene.events(EventType::LAST_WQE_REACHED), []);
}

#[test]
fn a_receive_that_a_qp_took_flushes_with_it() {
    let mut scene = Scene::new(1);
    let len = 1 << 20;
    let from = scene.a.region(&mut scene.device, len, full());
    let big = scene.b.region(&mut scene.device, len, full());
    let len = u32::try_from(len).unwrap();
    scene.post(1, &[big.sge(0, len)]);
    let long = Send::new(Opcode::SEND, 1, &[from.sge(0, len)]);
    scene.a.write_send(&mut scene.qas[0], &long.blocks());
    scene.a.ring_qp(&mut scene.device, &scene.qas[0]);
    scene.device.pump();
    // One turn is done, three are left: the receive is taken, the message is not complete.
    let name = ring_proto::admin::QpModify {
        qpn: scene.qbs[0].qpn,
        state: QpState::ERR.0.into(),
        ..Default::default()
    };
    scene
        .b
        .ok(&mut scene.device, AdminOp::QP_MODIFY, name.to_body());
    let all = scene.b.completions(&mut scene.qbs[0]);
    assert_eq!(all.len(), 1);
    assert_eq!((all[0].wr_id, all[0].status), (1, WcStatus::WR_FLUSH_ERR));
}

#[test]
fn the_buffers_belong_to_the_srqs_domain() {
    // QP and SRQ in different domains: a receive's lkey is looked up in the SRQ's.
    let mut scene = Scene::new(0);
    let other = scene.b.pd(&mut scene.device);
    scene.join(other);
    scene.post(1, &[scene.into.sge(0, 8)]);
    scene.send(0, b"x");
    assert_eq!(scene.sent(0), Some((WcStatus::SUCCESS, Syndrome::NONE)));
    assert_eq!(scene.received(0), [1]);
    let foreign = scene.b.region_of(&mut scene.device, 64, full(), other, 0);
    scene.post(2, &[foreign.sge(0, 8)]);
    scene.send(0, b"x");
    assert_eq!(
        scene.sent(0),
        Some((WcStatus::REM_OP_ERR, Syndrome::RECV_BAD_WQE))
    );
    let wc = scene.b.poll(&mut scene.qbs[0]).unwrap();
    assert_eq!(
        (wc.wr_id, wc.status, wc.syndrome),
        (2, WcStatus::LOC_ACCESS_ERR, Syndrome::LKEY_PD_MISMATCH)
    );
    // A long gather list is looked up there too.
    let mut scene = Scene::new(0);
    let other = scene.b.pd(&mut scene.device);
    scene.join(other);
    let sges = [scene.into.sge(0, 2), scene.into.sge(8, 6)];
    scene.post(1, &sges);
    scene.send(0, b"ab-cdef");
    assert_eq!(scene.received(0), [1]);
    assert_eq!(scene.b.read(scene.into.iova, 2), b"ab");
    assert_eq!(scene.b.read(scene.into.iova + 8, 5), b"-cdef");
}

#[test]
fn finite_retries_run_out_at_an_empty_srq() {
    let (mut device, node, other) = device();
    let mut a = Client::attach(&mut device, node);
    let mut b = Client::attach(&mut device, other);
    let pdn = b.pdn;
    let srq = b.srq(&mut device, DEPTH, pdn);
    let (mut qa, mut qb) = (a.qp(&mut device), b.qp_on_srq(&mut device, &srq, pdn));
    let mut join = |client: &mut Client, qp: &mut RawQp, peer: (u32, u32)| {
        for (state, peer) in [(QpState::RTR, peer), (QpState::RTS, (0, 0))] {
            let body = ring_proto::admin::QpModify {
                qpn: qp.qpn,
                state: state.0.into(),
                peer_function: peer.0,
                peer_qpn: peer.1,
                ..Default::default()
            };
            client.ok(&mut device, AdminOp::QP_MODIFY, body.to_body());
        }
    };
    let (to_b, to_a) = ((b.function.0, qb.qpn), (a.function.0, qa.qpn));
    join(&mut a, &mut qa, to_b);
    join(&mut b, &mut qb, to_a);
    a.send(&mut device, &mut qa, &Send::inline(Opcode::SEND, 1, b"x"));
    let wc = a.poll(&mut qa).unwrap();
    assert_eq!(
        (wc.status, wc.syndrome),
        (WcStatus::RNR_RETRY_EXC_ERR, Syndrome::RNR_EXHAUSTED)
    );
}

#[test]
fn each_bad_field_of_srq_create_is_refused() {
    let (mut device, node, _) = device();
    let mut client = Client::attach(&mut device, node);
    let pdn = client.pdn;
    let taken = client.srq(&mut device, DEPTH, pdn);
    let good = SrqCreate {
        ring: client.alloc(64 * u64::from(DEPTH)),
        depth: DEPTH,
        pdn,
        slot: client.slot(),
        limit: DEPTH,
    };
    for (body, expected) in [
        (SrqCreate { ring: 0, ..good }, AdminStatus::BAD_ADDRESS),
        (
            SrqCreate {
                ring: BASE + 8,
                ..good
            },
            AdminStatus::INVALID,
        ),
        (SrqCreate { depth: 0, ..good }, AdminStatus::INVALID),
        (SrqCreate { depth: 12, ..good }, AdminStatus::INVALID),
        (
            SrqCreate {
                depth: 1 << 17,
                ..good
            },
            AdminStatus::INVALID,
        ),
        (SrqCreate { pdn: 0, ..good }, AdminStatus::NO_OBJECT),
        (SrqCreate { slot: 0, ..good }, AdminStatus::INVALID),
        (
            SrqCreate {
                slot: taken.slot,
                ..good
            },
            AdminStatus::BUSY,
        ),
        (
            SrqCreate {
                slot: u32::MAX,
                ..good
            },
            AdminStatus::INVALID,
        ),
        (
            SrqCreate {
                limit: DEPTH + 1,
                ..good
            },
            AdminStatus::INVALID,
        ),
        (good, AdminStatus::OK),
    ] {
        let status = client.status(&mut device, AdminOp::SRQ_CREATE, body.to_body());
        assert_eq!(status, expected, "{body:?}");
    }
    // Made with a limit and empty: that is below.
    let events = client.events();
    assert_eq!(
        events.first().map(|event| event.0),
        Some(EventType::SRQ_LIMIT)
    );
}

#[test]
fn each_bad_field_of_qp_create_srq_is_refused() {
    let (mut device, node, _) = device();
    let mut client = Client::attach(&mut device, node);
    let pdn = client.pdn;
    let srq = client.srq(&mut device, DEPTH, pdn);
    let (cqn, ..) = client.cq(&mut device, CQ_DEPTH);
    let mut broken = client.srq(&mut device, DEPTH, pdn);
    broken.producer = 1000;
    client.ring_srq(&mut device, &broken);
    let good = QpCreateSrq {
        sq_ring: client.alloc(64 * u64::from(SQ_DEPTH)),
        sq_depth: SQ_DEPTH,
        srqn: srq.srqn,
        pdn,
        send_cqn: cqn,
        recv_cqn: cqn,
        slot: client.slot(),
        holder: 0,
        access: full().bits(),
    };
    for (body, expected) in [
        (QpCreateSrq { srqn: 0, ..good }, AdminStatus::NO_OBJECT),
        (
            QpCreateSrq {
                srqn: srq.srqn ^ 1,
                ..good
            },
            AdminStatus::NO_OBJECT,
        ),
        (
            QpCreateSrq {
                srqn: broken.srqn,
                ..good
            },
            AdminStatus::BAD_STATE,
        ),
        (QpCreateSrq { pdn: 0, ..good }, AdminStatus::NO_OBJECT),
        (
            QpCreateSrq {
                sq_depth: 3,
                ..good
            },
            AdminStatus::INVALID,
        ),
        (
            QpCreateSrq {
                recv_cqn: 0,
                ..good
            },
            AdminStatus::NO_OBJECT,
        ),
        (
            QpCreateSrq {
                access: 1 << 30,
                ..good
            },
            AdminStatus::INVALID,
        ),
        (good, AdminStatus::OK),
    ] {
        let status = client.status(&mut device, AdminOp::QP_CREATE_SRQ, body.to_body());
        assert_eq!(status, expected, "{body:?}");
    }
}

#[test]
fn srq_keeps_its_domain_and_its_qps_keep_it() {
    let mut scene = Scene::new(1);
    let (srqn, qpn) = (scene.srq.srqn, scene.qbs[0].qpn);
    let Scene { device, b, .. } = &mut scene;
    let pdn = b.pd(device);
    let lone = b.srq(device, DEPTH, pdn);
    assert_eq!(b.named(device, AdminOp::PD_FREE, pdn), AdminStatus::BUSY);
    assert_eq!(
        b.named(device, AdminOp::SRQ_DESTROY, lone.srqn),
        AdminStatus::OK
    );
    assert_eq!(b.named(device, AdminOp::PD_FREE, pdn), AdminStatus::OK);
    assert_eq!(
        b.named(device, AdminOp::SRQ_DESTROY, lone.srqn),
        AdminStatus::NO_OBJECT
    );
    assert_eq!(
        b.named(device, AdminOp::SRQ_DESTROY, srqn),
        AdminStatus::BUSY
    );
    assert_eq!(b.named(device, AdminOp::QP_DESTROY, qpn), AdminStatus::OK);
    assert_eq!(b.named(device, AdminOp::SRQ_DESTROY, srqn), AdminStatus::OK);
    // A doorbell of a slot that nobody owns any more does nothing.
    b.ring_srq(device, &lone);
    for op in [AdminOp::SRQ_MODIFY, AdminOp::SRQ_QUERY] {
        assert_eq!(b.named(device, op, srqn), AdminStatus::NO_OBJECT, "{op}");
    }
}

#[test]
fn modify_checks_its_limit() {
    let mut scene = Scene::new(0);
    assert_eq!(scene.arm_by_command(DEPTH + 1), AdminStatus::INVALID);
    assert_eq!(scene.arm_by_command(0), AdminStatus::OK);
}

#[test]
fn a_destroyed_qp_that_waited_is_forgotten() {
    let mut scene = Scene::new(2);
    scene.send(0, b"x");
    scene.send(1, b"x");
    let qpn = scene.qbs[0].qpn;
    assert_eq!(
        scene.b.named(&mut scene.device, AdminOp::QP_DESTROY, qpn),
        AdminStatus::OK
    );
    scene.post(1, &[scene.into.sge(0, 8)]);
    assert_eq!(scene.received(1), [1]);
    assert_eq!(scene.query().3, 1);
}

#[test]
fn an_orphan_gives_its_place_back() {
    let mut scene = Scene::new(1);
    scene.send(0, b"waits");
    scene.device.detach(scene.b.function);
    pump(&mut scene.device);
    // The orphan takes it, as it takes everything.
    assert_eq!(scene.sent(0), Some((WcStatus::SUCCESS, Syndrome::NONE)));
}

#[test]
fn a_reset_takes_the_srqs() {
    let mut scene = Scene::new(1);
    scene.device.reset(scene.b.function);
    scene.b.start(&mut scene.device);
    let srqn = scene.srq.srqn;
    assert_eq!(
        scene.b.named(&mut scene.device, AdminOp::SRQ_DESTROY, srqn),
        AdminStatus::NO_OBJECT
    );
}
