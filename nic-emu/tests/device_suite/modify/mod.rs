//! QP_MODIFY: the table of `ibv_modify_qp`, attribute by attribute; what each attribute does; SQD.

pub(crate) mod drain;
pub(crate) mod effects;

use nic_emu::device::Device;
use ring_proto::admin::{
    Access, AdminOp, AdminStatus, Named, QpAttributes, QpModify, QpSettings, Refusal,
};
use ring_proto::status::{QpState, Syndrome};

use crate::client::{Client, Pair, RawQp, device, full};

pub(crate) type S = QpState;

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
pub(crate) fn manual(from: QpState, to: QpState) -> Option<(QpAttributes, QpAttributes)> {
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
