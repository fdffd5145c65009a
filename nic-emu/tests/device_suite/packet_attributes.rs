//! Transport attributes of QP_MODIFY: which transition takes which, and in which range.

use ring_proto::admin::{AdminOp, AdminStatus, QpAttributes, QpModify};
use ring_proto::status::QpState;

use crate::client::Pair;

/// A QP_MODIFY that gives one attribute.
fn giving(state: QpState, attribute: QpAttributes, value: u32) -> QpModify {
    let mut body = QpModify {
        state: state.0.into(),
        attributes: attribute.bits(),
        ..QpModify::default()
    };
    set(&mut body, attribute, value);
    body
}

fn set(body: &mut QpModify, attribute: QpAttributes, value: u32) {
    let byte = u8::try_from(value & 0xff).unwrap();
    match attribute {
        QpAttributes::PATH_MTU => body.path_mtu = byte,
        QpAttributes::TIMEOUT => body.timeout = byte,
        QpAttributes::RETRY_CNT => body.retry_cnt = byte,
        QpAttributes::MIN_RNR_TIMER => body.min_rnr_timer = byte,
        QpAttributes::RETRY_UNLIMITED => body.retry_unlimited = value,
        QpAttributes::SQ_PSN => body.sq_psn = value,
        QpAttributes::RQ_PSN => body.rq_psn = value,
        other => panic!("{other:?} is not one attribute"),
    }
}

/// Each attribute with its lowest, highest and first impossible value.
const RANGES: [(QpAttributes, u32, u32, u32); 7] = [
    (QpAttributes::PATH_MTU, 1, 5, 6),
    (QpAttributes::TIMEOUT, 0, 31, 32),
    (QpAttributes::RETRY_CNT, 0, 7, 8),
    (QpAttributes::MIN_RNR_TIMER, 0, 31, 32),
    (QpAttributes::RETRY_UNLIMITED, 0, 1, 2),
    (QpAttributes::SQ_PSN, 0, 0xff_ffff, 0x100_0000),
    (QpAttributes::RQ_PSN, 0, 0xff_ffff, 0x100_0000),
];

#[test]
fn each_attribute_belongs_to_its_transitions() {
    let init: QpAttributes = RANGES.iter().map(|range| range.0).collect();
    let init = init - QpAttributes::SQ_PSN - QpAttributes::RQ_PSN;
    let rtr = QpAttributes::PATH_MTU | QpAttributes::RQ_PSN | QpAttributes::MIN_RNR_TIMER;
    let again = QpAttributes::TIMEOUT
        | QpAttributes::RETRY_CNT
        | QpAttributes::MIN_RNR_TIMER
        | QpAttributes::RETRY_UNLIMITED;
    for (to, allowed) in [
        (QpState::INIT, init),
        (QpState::RTR, rtr),
        (QpState::RTS, again | QpAttributes::SQ_PSN),
        (QpState::SQD, QpAttributes::empty()),
        (QpState::ERR, QpAttributes::empty()),
        (QpState::RESET, QpAttributes::empty()),
    ] {
        for (attribute, low, high, beyond) in RANGES {
            for value in [low, high, beyond] {
                let mut pair = Pair::new();
                let mut fresh = pair.a.qp(&mut pair.device);
                let peer = (pair.b.function.0, pair.qb.qpn);
                let (function, peer_qpn) = if to == QpState::RTR { peer } else { (0, 0) };
                // As far as the transition needs it.
                let before = match to {
                    QpState::RTS => vec![QpState::RTR],
                    QpState::SQD => vec![QpState::RTR, QpState::RTS],
                    _ => vec![],
                };
                for state in before {
                    let (peer_function, peer_qpn) =
                        if state == QpState::RTR { peer } else { (0, 0) };
                    let body = QpModify {
                        qpn: fresh.qpn,
                        state: state.0.into(),
                        peer_function,
                        peer_qpn,
                        ..QpModify::default()
                    };
                    pair.a
                        .ok(&mut pair.device, AdminOp::QP_MODIFY, body.to_body());
                }
                let body = QpModify {
                    qpn: fresh.qpn,
                    peer_function: function,
                    peer_qpn,
                    ..giving(to, attribute, value)
                };
                let status = pair
                    .a
                    .status(&mut pair.device, AdminOp::QP_MODIFY, body.to_body());
                let expected = if allowed.contains(attribute) && value != beyond {
                    AdminStatus::OK
                } else {
                    AdminStatus::INVALID
                };
                assert_eq!(status, expected, "{attribute:?} = {value} to {to}");
                // A refused command changes nothing: the QP can still be reset.
                pair.a.modify(&mut pair.device, &mut fresh, QpState::RESET);
            }
        }
    }
}

#[test]
fn value_without_its_bit_and_unknown_bits_are_invalid() {
    let mut pair = Pair::new();
    let fresh = pair.a.qp(&mut pair.device);
    for (attribute, _, high, _) in RANGES {
        let body = QpModify {
            qpn: fresh.qpn,
            attributes: 0,
            ..giving(QpState::INIT, attribute, high)
        };
        let status = pair
            .a
            .status(&mut pair.device, AdminOp::QP_MODIFY, body.to_body());
        assert_eq!(status, AdminStatus::INVALID, "{attribute:?}");
    }
    let body = QpModify {
        qpn: fresh.qpn,
        state: QpState::INIT.0.into(),
        attributes: 1 << 30,
        ..QpModify::default()
    };
    let status = pair
        .a
        .status(&mut pair.device, AdminOp::QP_MODIFY, body.to_body());
    assert_eq!(status, AdminStatus::INVALID);
}
