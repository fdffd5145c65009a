//! QP_MODIFY: the table of `ibv_modify_qp`, attribute by attribute; what each attribute does; SQD.

use nic_emu::device::{Device, LinkParameters};
use ring_proto::admin::{
    Access, AdminOp, AdminStatus, Named, QpAttributes, QpModify, QpSettings, Refusal,
};
use ring_proto::eqe::EventType;
use ring_proto::ids::NodeId;
use ring_proto::status::{Opcode, QpState, Syndrome, WcStatus};
use ring_proto::wqe::WqeFlags;

use crate::client::{Client, Pair, RawQp, Send, device, full, pump};

type S = QpState;

/// Sound values for all attributes of `mask`.
pub(crate) fn body(qp: &RawQp, to: QpState, mask: QpAttributes, peer: (u32, u32)) -> QpModify {
    let given = |attribute, value| {
        if mask.contains(attribute) { value } else { 0 }
    };
    let short = |attribute, value: u8| {
        if mask.contains(attribute) { value } else { 0 }
    };
    QpModify {
        qpn: qp.qpn,
        state: to.0.into(),
        peer_function: given(QpAttributes::AV, peer.0),
        peer_qpn: given(QpAttributes::DEST_QPN, peer.1),
        rnr_retry: given(QpAttributes::RNR_RETRY, 7),
        attributes: mask.bits(),
        access: given(QpAttributes::ACCESS_FLAGS, full().bits()),
        current_state: 0,
        max_rd_atomic: short(QpAttributes::MAX_QP_RD_ATOMIC, 4),
        max_dest_rd_atomic: short(QpAttributes::MAX_DEST_RD_ATOMIC, 4),
        min_rnr_timer: short(QpAttributes::MIN_RNR_TIMER, 9),
        path_mtu: short(QpAttributes::PATH_MTU, 3),
        timeout: short(QpAttributes::TIMEOUT, 14),
        retry_cnt: short(QpAttributes::RETRY_CNT, 7),
        retry_unlimited: 0,
        sqd_event: 0,
        sq_psn: given(QpAttributes::SQ_PSN, 0xff_fffe),
        rq_psn: given(QpAttributes::RQ_PSN, 0x12_3456),
        reserved: 0,
    }
}

/// The table of the manual page, by hand: required and optional attributes.
fn manual(from: QpState, to: QpState) -> Option<(QpAttributes, QpAttributes)> {
    let list = |text: &str| bitflags::parser::from_str::<QpAttributes>(text).unwrap();
    let row = match (from, to) {
        (_, S::RESET | S::ERR) => ("", ""),
        (S::RESET, S::INIT) => ("ACCESS_FLAGS", ""),
        (S::INIT, S::INIT) => ("", "ACCESS_FLAGS"),
        (S::INIT, S::RTR) => (
            "AV | PATH_MTU | DEST_QPN | RQ_PSN | MAX_DEST_RD_ATOMIC | MIN_RNR_TIMER",
            "ACCESS_FLAGS",
        ),
        // RETRY_UNLIMITED is ours, here and in SQD.
        (S::RTR, S::RTS) => (
            "TIMEOUT | RETRY_CNT | RNR_RETRY | SQ_PSN | MAX_QP_RD_ATOMIC",
            "CUR_STATE | ACCESS_FLAGS | MIN_RNR_TIMER | RETRY_UNLIMITED",
        ),
        (S::RTS, S::RTS) | (S::SQD, S::RTS) => ("", "CUR_STATE | ACCESS_FLAGS | MIN_RNR_TIMER"),
        (S::RTS, S::SQD) => ("", "CUR_STATE | EN_SQD_ASYNC_NOTIFY"),
        (S::SQD, S::SQD) => (
            "",
            "TIMEOUT | RETRY_CNT | RNR_RETRY | MAX_QP_RD_ATOMIC | MAX_DEST_RD_ATOMIC | ACCESS_FLAGS | MIN_RNR_TIMER | RETRY_UNLIMITED",
        ),
        _ => return None,
    };
    Some((list(row.0), list(row.1)))
}

/// A client and a QP that is its own peer, to be brought into any state.
struct Scene {
    device: Device,
    client: Client,
    qp: RawQp,
}

impl Scene {
    fn new() -> Self {
        let (mut device, node, _) = device();
        let mut client = Client::attach(&mut device, node);
        let qp = client.qp(&mut device);
        Self { device, client, qp }
    }

    fn body(&self, to: QpState, mask: QpAttributes) -> QpModify {
        body(&self.qp, to, mask, (self.client.function.0, self.qp.qpn))
    }

    fn modify(&mut self, wanted: QpModify) -> (AdminStatus, Refusal) {
        let (status, result) =
            self.client
                .admin(&mut self.device, AdminOp::QP_MODIFY, wanted.to_body());
        assert_eq!(result[1], 0);
        (status, Refusal::unpack(result[0]))
    }

    fn go(&mut self, state: QpState) {
        let path: &[QpState] = match state {
            S::RESET => &[],
            S::INIT => &[S::INIT],
            S::RTR => &[S::INIT, S::RTR],
            S::RTS => &[S::INIT, S::RTR, S::RTS],
            S::SQD => &[S::INIT, S::RTR, S::RTS, S::SQD],
            _ => &[S::ERR],
        };
        let reset = self.body(S::RESET, QpAttributes::STATE);
        assert_eq!(self.modify(reset).0, AdminStatus::OK);
        let mut from = S::RESET;
        for &to in path {
            let mask = QpAttributes::STATE | manual(from, to).unwrap().0;
            let wanted = self.body(to, mask);
            assert_eq!(self.modify(wanted).0, AdminStatus::OK, "{from} -> {to}");
            from = to;
        }
    }

    fn state(&mut self) -> QpState {
        self.client.query(&mut self.device, self.qp.qpn).unwrap()
    }

    fn attributes(&mut self) -> QpSettings {
        let named = Named {
            id: self.qp.qpn,
            reserved: 0,
        };
        let result = self
            .client
            .ok(&mut self.device, AdminOp::QP_QUERY_ATTR, named.to_body());
        QpSettings::unpack(result)
    }
}

#[test]
pub(crate) fn every_change_takes_exactly_the_attributes_of_the_manual() {
    let mut scene = Scene::new();
    let states = [S::RESET, S::INIT, S::RTR, S::RTS, S::SQD, S::ERR];
    for from in states {
        for to in states.into_iter().chain([S::SQE, QpState(7)]) {
            let Some((required, optional)) = manual(from, to) else {
                scene.go(from);
                let wanted = scene.body(to, QpAttributes::STATE);
                let (status, refusal) = scene.modify(wanted);
                assert_eq!(status, AdminStatus::BAD_STATE, "{from} -> {to}");
                let expected = Refusal {
                    syndrome: Syndrome::BAD_QP_STATE,
                    from,
                    to,
                    attributes: 0,
                };
                assert_eq!(refusal, expected);
                assert_eq!(scene.state(), from);
                continue;
            };
            for attribute in QpAttributes::all() - QpAttributes::STATE {
                scene.go(from);
                let mask = QpAttributes::STATE | required ^ attribute;
                let mut wanted = scene.body(to, mask);
                if mask.contains(QpAttributes::CUR_STATE) {
                    wanted.current_state = from.0;
                }
                let (status, refusal) = scene.modify(wanted);
                let expected = if required.contains(attribute) {
                    Some(Syndrome::ATTRIBUTE_MISSING)
                } else if optional.contains(attribute) {
                    None
                } else {
                    Some(Syndrome::ATTRIBUTE_NOT_ALLOWED)
                };
                let told = format!("{from} -> {to} with {attribute:?}");
                match expected {
                    None => {
                        assert_eq!(status, AdminStatus::OK, "{told}: {refusal}");
                        assert_eq!(scene.state(), to, "{told}");
                    }
                    Some(syndrome) => {
                        assert_eq!(status, AdminStatus::INVALID, "{told}");
                        let expected = Refusal {
                            syndrome,
                            from,
                            to,
                            attributes: attribute.bits(),
                        };
                        assert_eq!(refusal, expected, "{told}");
                        assert_eq!(scene.state(), from, "{told}");
                    }
                }
            }
        }
    }
}

#[test]
fn the_short_form_asks_for_nothing_and_takes_what_the_table_lists() {
    let mut scene = Scene::new();
    scene.go(S::RTS);
    let mut wanted = scene.body(S::RTS, QpAttributes::MIN_RNR_TIMER);
    wanted.rnr_retry = 3;
    assert_eq!(scene.modify(wanted).0, AdminStatus::OK);
    let settings = scene.attributes();
    assert_eq!((settings.min_rnr_timer, settings.rnr_retry), (9, 3));
    assert_eq!(settings.max_rd_atomic, 4);
    scene.go(S::RTR);
    let wanted = scene.body(S::RTS, QpAttributes::MAX_DEST_RD_ATOMIC);
    let (status, refusal) = scene.modify(wanted);
    assert_eq!(status, AdminStatus::INVALID);
    let expected = Refusal {
        syndrome: Syndrome::ATTRIBUTE_NOT_ALLOWED,
        from: S::RTR,
        to: S::RTS,
        attributes: QpAttributes::MAX_DEST_RD_ATOMIC.bits(),
    };
    assert_eq!(refusal, expected);
    let wanted = scene.body(S::RTS, QpAttributes::MAX_QP_RD_ATOMIC);
    assert_eq!(scene.modify(wanted).0, AdminStatus::OK);
    scene.go(S::INIT);
    let mut wanted = scene.body(S::INIT, QpAttributes::RETRY_UNLIMITED);
    wanted.retry_unlimited = 1;
    assert_eq!(scene.modify(wanted).0, AdminStatus::OK);
    assert_eq!(scene.attributes().retry_unlimited, 1);
}

#[test]
fn attributes_are_kept_and_reset_brings_the_defaults_back() {
    let mut scene = Scene::new();
    scene.go(S::RESET);
    let fresh = scene.attributes();
    let expected = QpSettings {
        access: u8::try_from(full().bits()).unwrap(),
        max_rd_atomic: 16,
        max_dest_rd_atomic: 16,
        min_rnr_timer: 12,
        path_mtu: 5,
        timeout: 14,
        retry_cnt: 7,
        rnr_retry: 7,
        sq_psn: 0,
        retry_unlimited: 0,
        rq_psn: 0,
    };
    assert_eq!(fresh, expected);
    scene.go(S::RTS);
    let expected = QpSettings {
        max_rd_atomic: 4,
        max_dest_rd_atomic: 4,
        min_rnr_timer: 9,
        path_mtu: 3,
        sq_psn: 0xff_fffe,
        rq_psn: 0x12_3456,
        ..fresh
    };
    assert_eq!(scene.attributes(), expected);
    scene.go(S::SQD);
    let wanted = QpModify {
        qpn: scene.qp.qpn,
        state: S::SQD.0.into(),
        attributes: (QpAttributes::STATE
            | QpAttributes::TIMEOUT
            | QpAttributes::RETRY_CNT
            | QpAttributes::RNR_RETRY
            | QpAttributes::ACCESS_FLAGS)
            .bits(),
        timeout: 31,
        retry_cnt: 1,
        rnr_retry: 2,
        access: Access::REMOTE_READ.bits(),
        ..QpModify::default()
    };
    assert_eq!(scene.modify(wanted).0, AdminStatus::OK);
    let expected = QpSettings {
        timeout: 31,
        retry_cnt: 1,
        rnr_retry: 2,
        access: 4,
        ..expected
    };
    assert_eq!(scene.attributes(), expected);
    let wanted = scene.body(S::RESET, QpAttributes::STATE);
    assert_eq!(scene.modify(wanted).0, AdminStatus::OK);
    assert_eq!(scene.attributes(), QpSettings { access: 4, ..fresh });
    let unknown = Named {
        id: scene.qp.qpn ^ 1,
        reserved: 0,
    };
    let status = scene
        .client
        .status(&mut scene.device, AdminOp::QP_QUERY_ATTR, unknown.to_body());
    assert_eq!(status, AdminStatus::NO_OBJECT);
}

#[test]
pub(crate) fn each_impossible_value_is_named() {
    let mut scene = Scene::new();
    let rtr = QpAttributes::STATE | manual(S::INIT, S::RTR).unwrap().0 | QpAttributes::ACCESS_FLAGS;
    let rts = QpAttributes::STATE | manual(S::RTR, S::RTS).unwrap().0;
    let sqd = QpAttributes::STATE | QpAttributes::EN_SQD_ASYNC_NOTIFY;
    type Bend = fn(&mut QpModify);
    let cases: [(QpState, QpState, QpAttributes, QpAttributes, Bend); 15] = [
        (S::INIT, S::RTR, rtr, QpAttributes::PATH_MTU, |b| {
            b.path_mtu = 0
        }),
        (S::INIT, S::RTR, rtr, QpAttributes::PATH_MTU, |b| {
            b.path_mtu = 6
        }),
        (S::INIT, S::RTR, rtr, QpAttributes::RQ_PSN, |b| {
            b.rq_psn = 1 << 24
        }),
        (S::INIT, S::RTR, rtr, QpAttributes::MIN_RNR_TIMER, |b| {
            b.min_rnr_timer = 32;
        }),
        (
            S::INIT,
            S::RTR,
            rtr,
            QpAttributes::MAX_DEST_RD_ATOMIC,
            |b| {
                b.max_dest_rd_atomic = 17;
            },
        ),
        (S::INIT, S::RTR, rtr, QpAttributes::ACCESS_FLAGS, |b| {
            b.access = 1 << 31;
        }),
        (S::RTR, S::RTS, rts, QpAttributes::TIMEOUT, |b| {
            b.timeout = 32
        }),
        (S::RTR, S::RTS, rts, QpAttributes::RETRY_CNT, |b| {
            b.retry_cnt = 8
        }),
        (S::RTR, S::RTS, rts, QpAttributes::RNR_RETRY, |b| {
            b.rnr_retry = 8
        }),
        (S::RTR, S::RTS, rts, QpAttributes::RNR_RETRY, |b| {
            b.rnr_retry = 256;
        }),
        (S::RTR, S::RTS, rts, QpAttributes::SQ_PSN, |b| {
            b.sq_psn = 1 << 24
        }),
        (S::RTR, S::RTS, rts, QpAttributes::MAX_QP_RD_ATOMIC, |b| {
            b.max_rd_atomic = 17;
        }),
        (
            S::RTS,
            S::SQD,
            sqd,
            QpAttributes::EN_SQD_ASYNC_NOTIFY,
            |b| {
                b.sqd_event = 2;
            },
        ),
        (S::RTR, S::RTS, rts, QpAttributes::STATE, |b| {
            b.state = 256 + 3
        }),
        (
            S::RTR,
            S::RTS,
            rts,
            QpAttributes::TIMEOUT | QpAttributes::RETRY_CNT,
            |b| {
                b.timeout = 255;
                b.retry_cnt = 255;
            },
        ),
    ];
    for (from, to, mask, named, bend) in cases {
        scene.go(from);
        let mut wanted = scene.body(to, mask);
        bend(&mut wanted);
        let (status, refusal) = scene.modify(wanted);
        assert_eq!(status, AdminStatus::INVALID, "{wanted:?}");
        assert_eq!(
            (refusal.syndrome, refusal.from, refusal.attributes),
            (Syndrome::ATTRIBUTE_OUT_OF_RANGE, from, named.bits()),
            "{wanted:?}"
        );
        assert_eq!(scene.state(), from);
    }
}

#[test]
pub(crate) fn the_other_refusals_name_their_reason() {
    let mut scene = Scene::new();
    scene.go(S::INIT);
    let rtr = QpAttributes::STATE | manual(S::INIT, S::RTR).unwrap().0;
    let good = scene.body(S::RTR, rtr);
    let unknown = QpModify {
        attributes: rtr.bits() | 1 << 30,
        ..good
    };
    let stray = QpModify { sq_psn: 1, ..good };
    let stranger = QpModify {
        peer_qpn: scene.qp.qpn ^ 1,
        ..good
    };
    let short_stray = QpModify {
        qpn: scene.qp.qpn,
        state: S::INIT.0.into(),
        access: 1,
        ..QpModify::default()
    };
    for (wanted, status, syndrome, attributes) in [
        (
            unknown,
            AdminStatus::INVALID,
            Syndrome::ATTRIBUTE_NOT_ALLOWED,
            1 << 30,
        ),
        (
            stray,
            AdminStatus::INVALID,
            Syndrome::ATTRIBUTE_NOT_GIVEN,
            QpAttributes::SQ_PSN.bits(),
        ),
        (
            short_stray,
            AdminStatus::INVALID,
            Syndrome::ATTRIBUTE_NOT_GIVEN,
            QpAttributes::ACCESS_FLAGS.bits(),
        ),
        (
            stranger,
            AdminStatus::NO_OBJECT,
            Syndrome::NO_SUCH_PEER,
            (QpAttributes::AV | QpAttributes::DEST_QPN).bits(),
        ),
    ] {
        let (told, refusal) = scene.modify(wanted);
        assert_eq!(told, status, "{refusal}");
        assert_eq!(
            (refusal.syndrome, refusal.attributes),
            (syndrome, attributes)
        );
        assert_eq!(scene.state(), S::INIT);
    }
    scene.go(S::RTS);
    let mut wanted = scene.body(S::SQD, QpAttributes::STATE | QpAttributes::CUR_STATE);
    wanted.current_state = S::SQD.0;
    let (status, refusal) = scene.modify(wanted);
    assert_eq!(status, AdminStatus::BAD_STATE);
    let expected = Refusal {
        syndrome: Syndrome::CURRENT_STATE_DIFFERS,
        from: S::RTS,
        to: S::SQD,
        attributes: QpAttributes::CUR_STATE.bits(),
    };
    assert_eq!(refusal, expected);
}

// ---- what the attributes do ----

/// Moves one QP of a pair.
pub(crate) fn to(pair: &mut Pair, qp: &RawQp, wanted: QpModify) {
    let client = if qp.qpn == pair.qa.qpn && qp.slot == pair.qa.slot {
        &mut pair.a
    } else {
        &mut pair.b
    };
    client.ok(&mut pair.device, AdminOp::QP_MODIFY, wanted.to_body());
}

/// Two QPs joined by QP_MODIFY; `bend` changes the bodies, both sides' in turn (a's RTR, a's RTS, b's RTR, b's RTS).
pub(crate) struct Joined {
    pub(crate) device: Device,
    pub(crate) a: Client,
    pub(crate) b: Client,
    pub(crate) qa: RawQp,
    pub(crate) qb: RawQp,
}

impl Joined {
    pub(crate) fn new(bend_a: fn(&mut QpModify), bend_b: fn(&mut QpModify)) -> Self {
        let (mut device, a, b) = device();
        let mut a = Client::attach(&mut device, a);
        let mut b = Client::attach(&mut device, b);
        let (qa, qb) = (a.qp(&mut device), b.qp(&mut device));
        let (fa, fb) = (a.function.0, b.function.0);
        for (client, own, peer, bend) in [
            (&mut a, &qa, (fb, qb.qpn), bend_a),
            (&mut b, &qb, (fa, qa.qpn), bend_b),
        ] {
            for (from, to) in [(S::INIT, S::RTR), (S::RTR, S::RTS)] {
                let mask = QpAttributes::STATE | manual(from, to).unwrap().0;
                let mut wanted = body(own, to, mask, peer);
                bend(&mut wanted);
                client.ok(&mut device, AdminOp::QP_MODIFY, wanted.to_body());
            }
        }
        Self {
            device,
            a,
            b,
            qa,
            qb,
        }
    }
}

fn bend_nothing(_: &mut QpModify) {}

fn is_rtr(wanted: &QpModify) -> bool {
    wanted.state == u32::from(S::RTR.0)
}

#[test]
fn sender_keeps_the_delay_of_the_receiver() {
    // Code 24 is 40.96 ms; three retries.
    let mut joined = Joined::new(
        |b| {
            if is_rtr(b) {
                b.min_rnr_timer = 1;
            } else {
                b.rnr_retry = 3;
            }
        },
        |b| {
            if is_rtr(b) {
                b.min_rnr_timer = 24;
            }
        },
    );
    let send = Send::inline(Opcode::SEND, 8, b"x");
    joined.a.send(&mut joined.device, &mut joined.qa, &send);
    joined.device.advance(3 * 40_960_000 - 1);
    pump(&mut joined.device);
    assert_eq!(joined.a.poll(&mut joined.qa), None);
    joined.device.advance(1);
    pump(&mut joined.device);
    let wc = joined.a.poll(&mut joined.qa).unwrap();
    assert_eq!(wc.syndrome, Syndrome::RNR_EXHAUSTED);
}

#[test]
fn transport_retries_last_as_long_as_the_attributes_say() {
    // 4.096 us << 10, three times; or without end.
    for (timeout, retry_cnt, lasts_ns) in [(10, 2, Some(12_582_912)), (0, 7, None)] {
        let (mut device, a, b) = device();
        let mut a = Client::attach(&mut device, a);
        let mut b = Client::attach(&mut device, b);
        let (mut qa, qb) = (a.qp(&mut device), b.qp(&mut device));
        for (from, to) in [(S::INIT, S::RTR), (S::RTR, S::RTS)] {
            let mask = QpAttributes::STATE | manual(from, to).unwrap().0;
            let mut wanted = body(&qa, to, mask, (b.function.0, qb.qpn));
            if to == S::RTS {
                wanted.timeout = timeout;
                wanted.retry_cnt = retry_cnt;
            }
            a.ok(&mut device, AdminOp::QP_MODIFY, wanted.to_body());
        }
        a.send(&mut device, &mut qa, &Send::inline(Opcode::SEND, 1, b"hi"));
        assert_eq!(device.pump().next_timer_ns, lasts_ns);
        if let Some(lasts_ns) = lasts_ns {
            device.advance(lasts_ns);
            pump(&mut device);
            let wc = a.poll(&mut qa).unwrap();
            assert_eq!(
                (wc.status, wc.syndrome),
                (WcStatus::RETRY_EXC_ERR, Syndrome::PEER_GONE)
            );
        }
        drop(b.events());
    }
}

#[test]
pub(crate) fn reads_need_depth_at_both_ends() {
    let read_over = |joined: &mut Joined| {
        let remote = joined.b.region(&mut joined.device, 64, full());
        let local = joined.a.region(&mut joined.device, 64, full());
        let read =
            Send::new(Opcode::RDMA_READ, 1, &[local.sge(0, 64)]).remote(remote.iova, remote.key);
        joined.a.send(&mut joined.device, &mut joined.qa, &read);
        let wc = joined.a.poll(&mut joined.qa).unwrap();
        (wc.status, wc.syndrome)
    };
    let mut sound = Joined::new(
        |b| b.max_rd_atomic = b.max_rd_atomic.min(1),
        |b| {
            b.max_dest_rd_atomic = b.max_dest_rd_atomic.min(1);
        },
    );
    assert_eq!(read_over(&mut sound), (WcStatus::SUCCESS, Syndrome::NONE));

    let mut joined = Joined::new(|b| b.max_rd_atomic = 0, bend_nothing);
    assert_eq!(
        read_over(&mut joined),
        (WcStatus::LOC_QP_OP_ERR, Syndrome::NO_INITIATOR_DEPTH)
    );
    let state = joined.b.query(&mut joined.device, joined.qb.qpn);
    assert_eq!(state, Some(S::RTS), "the peer has nothing to do with it");

    let mut joined = Joined::new(bend_nothing, |b| b.max_dest_rd_atomic = 0);
    drop(joined.b.events());
    assert_eq!(
        read_over(&mut joined),
        (WcStatus::REM_INV_REQ_ERR, Syndrome::NO_RESPONDER_DEPTH)
    );
    let state = joined.b.query(&mut joined.device, joined.qb.qpn);
    assert_eq!(state, Some(S::ERR));
    let code = u32::from(Syndrome::NO_RESPONDER_DEPTH.0);
    let event = (EventType::QP_REQ_ERR, joined.qb.qpn, code);
    assert_eq!(joined.b.events(), [event]);
    // WRITEs and SENDs need none.
    let mut joined = Joined::new(|b| b.max_rd_atomic = 0, |b| b.max_dest_rd_atomic = 0);
    let remote = joined.b.region(&mut joined.device, 64, full());
    let write = Send::inline(Opcode::RDMA_WRITE, 2, b"w").remote(remote.iova, remote.key);
    joined.a.send(&mut joined.device, &mut joined.qa, &write);
    let wc = joined.a.poll(&mut joined.qa).unwrap();
    assert_eq!(wc.status, WcStatus::SUCCESS);
}

#[test]
fn a_fenced_send_sees_what_the_read_before_it_brought() {
    let mut pair = Pair::new();
    let remote = pair.b.region(&mut pair.device, 1 << 20, full());
    let local = pair.a.region(&mut pair.device, 1 << 20, full());
    pair.b.write(remote.iova, &vec![7; 1 << 20]);
    // Longer than a turn, so that the READ is under way for several rounds.
    let read =
        Send::new(Opcode::RDMA_READ, 1, &[local.sge(0, 1 << 20)]).remote(remote.iova, remote.key);
    let mut write = Send::new(Opcode::RDMA_WRITE, 2, &[local.sge((1 << 20) - 8, 8)])
        .remote(remote.iova, remote.key);
    write.head.flags |= WqeFlags::FENCE.bits();
    pair.a.write_send(&mut pair.qa, &read.blocks());
    pair.a.write_send(&mut pair.qa, &write.blocks());
    pair.a.ring_qp(&mut pair.device, &pair.qa);
    let turns = (0..100)
        .take_while(|_| {
            pair.device.pump();
            pair.b.read(remote.iova, 1) == [7] && pair.a.poll(&mut pair.qa).is_none()
        })
        .count();
    assert!(turns >= 3, "the READ takes several turns: {turns}");
    pair.pump();
    let wc = pair.a.completions(&mut pair.qa);
    assert_eq!(wc.last().unwrap().wr_id, 2);
    assert_eq!(pair.b.read(remote.iova, 8), [7; 8]);
}

// ---- SQD ----

fn sqd(pair: &mut Pair, notify: bool) {
    let qa = pair.qa;
    let wanted = QpModify {
        qpn: qa.qpn,
        state: S::SQD.0.into(),
        attributes: (QpAttributes::STATE | QpAttributes::EN_SQD_ASYNC_NOTIFY).bits(),
        sqd_event: u8::from(notify),
        ..QpModify::default()
    };
    to(pair, &qa, wanted);
}

fn rts(pair: &mut Pair) {
    let qa = pair.qa;
    let wanted = QpModify {
        qpn: qa.qpn,
        state: S::RTS.0.into(),
        attributes: QpAttributes::STATE.bits(),
        ..QpModify::default()
    };
    to(pair, &qa, wanted);
}

fn is_draining(pair: &mut Pair) -> bool {
    let named = Named {
        id: pair.qa.qpn,
        reserved: 0,
    };
    let [first, _] = pair
        .a
        .ok(&mut pair.device, AdminOp::QP_QUERY, named.to_body());
    first >> 8 & 1 == 1
}

#[test]
pub(crate) fn send_queue_drains_what_is_under_way_and_holds_the_rest() {
    let mut pair = Pair::new();
    let target = pair.b.region(&mut pair.device, 64, full());
    // The first send is under way: it waits for a receive.
    for wr_id in 1..=3 {
        let send = Send::inline(Opcode::SEND, wr_id, b"x");
        pair.a.write_send(&mut pair.qa, &send.blocks());
    }
    pair.a.ring_qp(&mut pair.device, &pair.qa);
    pair.pump();
    sqd(&mut pair, true);
    assert!(is_draining(&mut pair));
    assert_eq!(pair.a.events(), []);
    let wanted = QpModify {
        qpn: pair.qa.qpn,
        state: S::SQD.0.into(),
        attributes: (QpAttributes::STATE | QpAttributes::TIMEOUT).bits(),
        timeout: 1,
        ..QpModify::default()
    };
    let (status, result) = pair
        .a
        .admin(&mut pair.device, AdminOp::QP_MODIFY, wanted.to_body());
    assert_eq!(status, AdminStatus::BAD_STATE);
    assert_eq!(Refusal::unpack(result[0]).syndrome, Syndrome::SQ_DRAINING);
    for wr_id in 1..=3 {
        pair.b
            .recv(&mut pair.device, &mut pair.qb, wr_id, &[target.sge(0, 64)]);
    }
    let done: Vec<_> = pair.a.completions(&mut pair.qa);
    assert_eq!(done.iter().map(|wc| wc.wr_id).collect::<Vec<_>>(), [1]);
    assert_eq!(pair.a.events(), [(EventType::SQ_DRAINED, pair.qa.qpn, 0)]);
    assert!(!is_draining(&mut pair));
    let qa = pair.qa;
    to(&mut pair, &qa, wanted);
    // Posting goes on and nothing runs; receives are served.
    pair.a.send(
        &mut pair.device,
        &mut pair.qa,
        &Send::inline(Opcode::SEND, 4, b"y"),
    );
    let back = pair.a.region(&mut pair.device, 64, full());
    pair.a
        .recv(&mut pair.device, &mut pair.qa, 9, &[back.sge(0, 64)]);
    pair.b.send(
        &mut pair.device,
        &mut pair.qb,
        &Send::inline(Opcode::SEND, 5, b"z"),
    );
    let done: Vec<_> = pair.a.completions(&mut pair.qa);
    assert_eq!(done.iter().map(|wc| wc.wr_id).collect::<Vec<_>>(), [9]);
    rts(&mut pair);
    let done: Vec<_> = pair.a.completions(&mut pair.qa);
    assert_eq!(done.iter().map(|wc| wc.wr_id).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(pair.a.events(), []);
}

#[test]
fn empty_queue_has_drained_at_once_and_only_who_asked_hears_of_it() {
    let mut pair = Pair::new();
    sqd(&mut pair, true);
    let drained = (EventType::SQ_DRAINED, pair.qa.qpn, 0);
    assert_eq!(pair.a.events(), [drained]);
    rts(&mut pair);
    sqd(&mut pair, false);
    assert!(!is_draining(&mut pair));
    assert_eq!(pair.a.events(), []);
}

#[test]
fn long_message_finishes_before_the_queue_has_drained() {
    let mut pair = Pair::new();
    let len = 3 << 20;
    let local = pair.a.region(&mut pair.device, len.into(), full());
    let remote = pair.b.region(&mut pair.device, len.into(), full());
    for wr_id in 1..=2 {
        let write = Send::new(Opcode::RDMA_WRITE, wr_id, &[local.sge(0, len)])
            .remote(remote.iova, remote.key);
        pair.a.write_send(&mut pair.qa, &write.blocks());
    }
    pair.a.ring_qp(&mut pair.device, &pair.qa);
    assert!(pair.device.pump().served > 0);
    assert_eq!(pair.a.completions(&mut pair.qa), []);
    sqd(&mut pair, true);
    pair.pump();
    assert_eq!(pair.a.poll(&mut pair.qa).unwrap().wr_id, 1);
    assert_eq!(pair.a.poll(&mut pair.qa), None);
    let drained = (EventType::SQ_DRAINED, pair.qa.qpn, 0);
    assert_eq!(pair.a.events(), [drained]);
    rts(&mut pair);
    assert_eq!(pair.a.poll(&mut pair.qa).unwrap().wr_id, 2);
}

#[test]
fn draining_ends_without_event_by_rts_err_and_reset() {
    for end in [S::RTS, S::ERR, S::RESET] {
        let mut pair = Pair::new();
        pair.a.send(
            &mut pair.device,
            &mut pair.qa,
            &Send::inline(Opcode::SEND, 1, b"x"),
        );
        sqd(&mut pair, true);
        if end == S::RTS {
            rts(&mut pair);
        } else {
            let mut qa = pair.qa;
            pair.a.modify(&mut pair.device, &mut qa, end);
        }
        assert!(!is_draining(&mut pair), "{end}");
        assert_eq!(pair.a.events(), [], "{end}");
        let statuses: Vec<_> = pair.a.completions(&mut pair.qa);
        let statuses: Vec<_> = statuses.iter().map(|wc| wc.status).collect();
        let expected: &[WcStatus] = if end == S::ERR {
            &[WcStatus::WR_FLUSH_ERR]
        } else {
            &[]
        };
        assert_eq!(statuses, expected, "{end}");
    }
}

#[test]
fn a_send_that_fails_while_the_queue_drains_ends_in_err() {
    let mut joined = Joined::new(
        |b| {
            if !is_rtr(b) {
                b.rnr_retry = 1;
            }
        },
        bend_nothing,
    );
    let send = Send::inline(Opcode::SEND, 8, b"x");
    joined.a.send(&mut joined.device, &mut joined.qa, &send);
    let mut qa = joined.qa;
    joined.a.modify(&mut joined.device, &mut qa, S::SQD);
    joined.device.advance(1_000_000_000);
    pump(&mut joined.device);
    let wc = joined.a.poll(&mut joined.qa).unwrap();
    assert_eq!(wc.status, WcStatus::RNR_RETRY_EXC_ERR);
    // RC knows no SQE: a failed send moves the QP to ERR.
    let state = joined.a.query(&mut joined.device, joined.qa.qpn);
    assert_eq!(state, Some(S::ERR));
}

#[test]
fn send_queue_on_a_slow_link_has_drained_when_the_last_answer_is_back() {
    let mut pair = Pair::new();
    let slow = LinkParameters {
        latency_ns: 50_000,
        ..LinkParameters::default()
    };
    for (from, to) in [(0, 1), (1, 0)] {
        pair.device
            .set_link(NodeId(from), NodeId(to), slow)
            .unwrap();
    }
    let remote = pair.b.region(&mut pair.device, 64, full());
    let post = |pair: &mut Pair, wr_id| {
        let write = Send::inline(Opcode::RDMA_WRITE, wr_id, b"x").remote(remote.iova, remote.key);
        pair.a.send(&mut pair.device, &mut pair.qa, &write);
    };
    for wr_id in 1..=3 {
        post(&mut pair, wr_id);
    }
    sqd(&mut pair, true);
    post(&mut pair, 4);
    assert!(is_draining(&mut pair));
    assert_eq!(pair.a.events(), []);
    for _ in 0..10 {
        pair.device.advance(50_000);
        pair.pump();
    }
    let done: Vec<_> = pair.a.completions(&mut pair.qa);
    let done: Vec<_> = done.iter().map(|wc| wc.wr_id).collect();
    assert_eq!(done, [1, 2, 3]);
    let drained = (EventType::SQ_DRAINED, pair.qa.qpn, 0);
    assert_eq!(pair.a.events(), [drained]);
    rts(&mut pair);
    for _ in 0..10 {
        pair.device.advance(50_000);
        pair.pump();
    }
    assert_eq!(pair.a.poll(&mut pair.qa).unwrap().wr_id, 4);
}

// ---- communication established ----

#[test]
fn first_request_to_a_qp_in_rtr_is_told_once() {
    let (mut device, a, b) = device();
    let mut a = Client::attach(&mut device, a);
    let mut b = Client::attach(&mut device, b);
    let (mut qa, mut qb) = (a.qp(&mut device), b.qp(&mut device));
    let modify =
        |device: &mut Device, client: &mut Client, qp: &RawQp, to: QpState, peer: (u32, u32)| {
            let wanted = QpModify {
                qpn: qp.qpn,
                state: to.0.into(),
                peer_function: peer.0,
                peer_qpn: peer.1,
                rnr_retry: if to == S::RTS { 7 } else { 0 },
                ..QpModify::default()
            };
            client.ok(device, AdminOp::QP_MODIFY, wanted.to_body());
        };
    let (at_a, at_b) = ((a.function.0, qa.qpn), (b.function.0, qb.qpn));
    for round in 0..2 {
        modify(&mut device, &mut a, &qa, S::RTR, at_b);
        modify(&mut device, &mut a, &qa, S::RTS, (0, 0));
        modify(&mut device, &mut b, &qb, S::RTR, at_a);
        assert_eq!(b.events(), []);
        for _ in 0..2 {
            // No receive is there: the request has come all the same.
            a.send(&mut device, &mut qa, &Send::inline(Opcode::SEND, 1, b""));
        }
        assert_eq!(b.events(), [(EventType::COMM_EST, qb.qpn, 0)], "{round}");
        b.recv(&mut device, &mut qb, 1, &[]);
        modify(&mut device, &mut b, &qb, S::RTS, (0, 0));
        assert_eq!(b.events(), []);
        assert_eq!(a.events(), []);
        for (client, qp) in [(&mut a, &mut qa), (&mut b, &mut qb)] {
            modify(&mut device, client, qp, S::RESET, (0, 0));
            client.modify(&mut device, qp, S::INIT);
            (qp.sq_producer, qp.rq_producer) = (0, 0);
        }
        drop((a.events(), b.events()));
    }
}

#[test]
fn connection_manager_tells_of_a_connection_by_its_own_event_only() {
    let mut pair = Pair::new();
    assert_eq!((pair.a.events(), pair.b.events()), (vec![], vec![]));
    pair.a.send(
        &mut pair.device,
        &mut pair.qa,
        &Send::inline(Opcode::SEND, 1, b"x"),
    );
    assert_eq!(pair.b.events(), []);
}
