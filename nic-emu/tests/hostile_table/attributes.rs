//! Body of QP_MODIFY, by the change of state that it asks for.

use ring_proto::admin::{AdminOp, AdminStatus, QpAttributes, QpModify};
use ring_proto::status::{QpState, Syndrome};

use crate::admin::table;
use crate::stage::{Answer, INVALID, NO_OBJECT, OK, Stage};
use crate::table::Value::{Flip, Is};
use crate::table::{Row, Value};

type Values = &'static [(Value, Answer)];

const NO_PEER: Answer = (AdminStatus::NO_OBJECT, Syndrome::NO_SUCH_PEER);
const OUT_OF_RANGE: Answer = (AdminStatus::INVALID, Syndrome::ATTRIBUTE_OUT_OF_RANGE);
const NOT_ALLOWED: Answer = (AdminStatus::INVALID, Syndrome::ATTRIBUTE_NOT_ALLOWED);
const MISSING: Answer = (AdminStatus::INVALID, Syndrome::ATTRIBUTE_MISSING);
const NO_CHANGE: Answer = (AdminStatus::BAD_STATE, Syndrome::BAD_QP_STATE);
const DIFFERS: Answer = (AdminStatus::BAD_STATE, Syndrome::CURRENT_STATE_DIFFERS);

const UNKNOWN: Values = &[
    (Is(0), NO_OBJECT),
    (Is(3), NO_OBJECT),
    (Is(0xff_ffff), NO_OBJECT),
    (Is(0xffff_ffff), NO_OBJECT),
];
/// A field whose attribute the mask does not name.
const NOT_GIVEN: Values = &[
    (Is(1), (AdminStatus::INVALID, Syndrome::ATTRIBUTE_NOT_GIVEN)),
    (
        Is(0xff),
        (AdminStatus::INVALID, Syndrome::ATTRIBUTE_NOT_GIVEN),
    ),
];
const STATES: Values = &[
    (Is(7), NO_CHANGE),
    (Is(0xff), NO_CHANGE),
    (Is(0x100), OUT_OF_RANGE),
    (Is(0xffff_ffff), OUT_OF_RANGE),
];
const ZERO: Values = &[(Is(1), INVALID), (Is(1 << 31), INVALID)];
const CODES: Values = &[
    (Is(31), OK),
    (Is(32), OUT_OF_RANGE),
    (Is(0xff), OUT_OF_RANGE),
];
const RETRIES: Values = &[(Is(7), OK), (Is(8), OUT_OF_RANGE), (Is(0xff), OUT_OF_RANGE)];
const PSNS: Values = &[
    (Is(0xff_ffff), OK),
    (Is(1 << 24), OUT_OF_RANGE),
    (Is(0xffff_ffff), OUT_OF_RANGE),
];
const DEPTHS: Values = &[
    (Is(16), OK),
    (Is(17), OUT_OF_RANGE),
    (Is(0xff), OUT_OF_RANGE),
];
const BOOLEAN: Values = &[(Is(1), OK), (Is(2), OUT_OF_RANGE), (Is(0xff), OUT_OF_RANGE)];

pub(crate) fn tables(op: AdminOp) {
    to_rtr(op);
    to_rts(op);
    to_sqd(op);
}

fn check(op: AdminOp, rows: &[Row<'_, Answer>], good: fn(&mut Stage) -> QpModify) {
    let fields = fields!(QpModify {
        qpn,
        state,
        peer_function,
        peer_qpn,
        rnr_retry,
        attributes,
        sq_psn,
        rq_psn,
        timeout,
        retry_cnt,
        min_rnr_timer,
        path_mtu,
        retry_unlimited,
        access,
        current_state,
        max_rd_atomic,
        max_dest_rd_atomic,
        sqd_event,
        reserved,
    });
    table(op, &fields, rows, |stage| good(stage).to_body());
}

/// INIT to RTR in the full form, with what that takes and no more.
fn rtr(stage: &mut Stage) -> QpModify {
    let peer = stage.second();
    QpModify {
        qpn: stage.qp.qpn,
        state: QpState::RTR.0.into(),
        attributes: (QpAttributes::STATE
            | QpAttributes::AV
            | QpAttributes::PATH_MTU
            | QpAttributes::RQ_PSN
            | QpAttributes::MIN_RNR_TIMER
            | QpAttributes::MAX_DEST_RD_ATOMIC
            | QpAttributes::DEST_QPN)
            .bits(),
        peer_function: stage.client.function.0,
        peer_qpn: peer.qpn,
        path_mtu: 3,
        rq_psn: 0,
        min_rnr_timer: 12,
        max_dest_rd_atomic: 4,
        ..QpModify::default()
    }
}

fn to_rtr(op: AdminOp) {
    let rows: [Row<'_, Answer>; 19] = [
        ("qpn", UNKNOWN),
        ("state", STATES),
        (
            "peer_function",
            &[
                (Is(0), NO_PEER),
                (Is(77), NO_PEER),
                (Is(0xffff_ffff), NO_PEER),
            ],
        ),
        (
            "peer_qpn",
            &[
                (Is(0), NO_PEER),
                (Is(3), NO_PEER),
                (Is(0xffff_ffff), NO_PEER),
            ],
        ),
        ("rnr_retry", NOT_GIVEN),
        (
            "attributes",
            &[
                // No such attribute.
                (Flip(1 << 4), NOT_ALLOWED),
                (Flip(1 << 30), NOT_ALLOWED),
                // One more than the change takes, and one less.
                (Flip(1 << 9), NOT_ALLOWED),
                (Flip(1 << 12), MISSING),
                (Flip(1 << 15), NOT_GIVEN[0].1),
                (Is(0), NOT_GIVEN[0].1),
            ],
        ),
        ("sq_psn", NOT_GIVEN),
        ("rq_psn", PSNS),
        ("timeout", NOT_GIVEN),
        ("retry_cnt", NOT_GIVEN),
        ("min_rnr_timer", CODES),
        (
            "path_mtu",
            &[
                (Is(0), OUT_OF_RANGE),
                (Is(5), OK),
                (Is(6), OUT_OF_RANGE),
                (Is(0xff), OUT_OF_RANGE),
            ],
        ),
        ("retry_unlimited", NOT_GIVEN),
        ("access", NOT_GIVEN),
        ("current_state", NOT_GIVEN),
        ("max_rd_atomic", NOT_GIVEN),
        ("max_dest_rd_atomic", DEPTHS),
        ("sqd_event", NOT_GIVEN),
        ("reserved", ZERO),
    ];
    check(op, &rows, rtr);
}

/// RTR to RTS with all that it may take.
fn rts(stage: &mut Stage) -> QpModify {
    let body = rtr(stage).to_body();
    stage.make(AdminOp::QP_MODIFY, body);
    QpModify {
        qpn: stage.qp.qpn,
        state: QpState::RTS.0.into(),
        attributes: (QpAttributes::STATE
            | QpAttributes::TIMEOUT
            | QpAttributes::RETRY_CNT
            | QpAttributes::RNR_RETRY
            | QpAttributes::MAX_QP_RD_ATOMIC
            | QpAttributes::SQ_PSN
            | QpAttributes::CUR_STATE
            | QpAttributes::ACCESS_FLAGS
            | QpAttributes::MIN_RNR_TIMER
            | QpAttributes::RETRY_UNLIMITED)
            .bits(),
        current_state: QpState::RTR.0,
        ..QpModify::default()
    }
}

fn to_rts(op: AdminOp) {
    let rows: [Row<'_, Answer>; 19] = [
        ("qpn", UNKNOWN),
        ("state", STATES),
        ("peer_function", NOT_GIVEN),
        ("peer_qpn", NOT_GIVEN),
        ("rnr_retry", RETRIES),
        (
            "attributes",
            &[(Flip(1 << 7), NOT_ALLOWED), (Flip(1 << 9), MISSING)],
        ),
        ("sq_psn", PSNS),
        ("rq_psn", NOT_GIVEN),
        ("timeout", CODES),
        ("retry_cnt", RETRIES),
        ("min_rnr_timer", CODES),
        ("path_mtu", NOT_GIVEN),
        ("retry_unlimited", BOOLEAN),
        (
            "access",
            &[
                (Is(31), OK),
                (Is(32), OUT_OF_RANGE),
                (Is(1 << 31), OUT_OF_RANGE),
            ],
        ),
        (
            "current_state",
            &[(Is(0), DIFFERS), (Is(3), DIFFERS), (Is(0xff), DIFFERS)],
        ),
        ("max_rd_atomic", DEPTHS),
        ("max_dest_rd_atomic", NOT_GIVEN),
        ("sqd_event", NOT_GIVEN),
        ("reserved", ZERO),
    ];
    check(op, &rows, rts);
}

/// RTS to SQD with the event.
fn sqd(stage: &mut Stage) -> QpModify {
    let body = rts(stage).to_body();
    stage.make(AdminOp::QP_MODIFY, body);
    QpModify {
        qpn: stage.qp.qpn,
        state: QpState::SQD.0.into(),
        attributes: (QpAttributes::STATE | QpAttributes::EN_SQD_ASYNC_NOTIFY).bits(),
        ..QpModify::default()
    }
}

fn to_sqd(op: AdminOp) {
    let rows: [Row<'_, Answer>; 19] = [
        ("qpn", UNKNOWN),
        ("state", STATES),
        ("peer_function", NOT_GIVEN),
        ("peer_qpn", NOT_GIVEN),
        ("rnr_retry", NOT_GIVEN),
        (
            "attributes",
            &[(Flip(1 << 3), NOT_ALLOWED), (Flip(1 << 2), OK)],
        ),
        ("sq_psn", NOT_GIVEN),
        ("rq_psn", NOT_GIVEN),
        ("timeout", NOT_GIVEN),
        ("retry_cnt", NOT_GIVEN),
        ("min_rnr_timer", NOT_GIVEN),
        ("path_mtu", NOT_GIVEN),
        ("retry_unlimited", NOT_GIVEN),
        ("access", NOT_GIVEN),
        ("current_state", NOT_GIVEN),
        ("max_rd_atomic", NOT_GIVEN),
        ("max_dest_rd_atomic", NOT_GIVEN),
        ("sqd_event", BOOLEAN),
        ("reserved", ZERO),
    ];
    check(op, &rows, sqd);
}
