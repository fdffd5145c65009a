//! Cases about the attributes of a QP: which of them each change of state takes, and how a refusal says why.
//!
//! Place: see [`super`]. Source: IBTA vol. 1, 11.2.4.2; the table of `ibv_modify_qp(3)`; docs/device.md, Changing a QP (the full form).

use ring_proto::admin::{AdminOp, AdminStatus, Named, QpAttributes, QpModify, QpSettings, Refusal};
use ring_proto::status::{QpState, Syndrome};

use super::super::client::{Client, QpOptions, full};
use super::super::rig::Rig;
use super::super::target::Port;
use super::super::{Case, Outcome, case, same};

const MODIFY: &str = "IBTA 11.2.4.2; ibv_modify_qp(3)";

type A = QpAttributes;
type S = QpState;

/// What the manual page says of a change: required, optional.
const INIT: (A, A) = (A::ACCESS_FLAGS, A::empty());
const RTR: (A, A) = (
    A::AV
        .union(A::PATH_MTU)
        .union(A::DEST_QPN)
        .union(A::RQ_PSN)
        .union(A::MAX_DEST_RD_ATOMIC)
        .union(A::MIN_RNR_TIMER),
    A::ACCESS_FLAGS,
);
/// RETRY_UNLIMITED is our own.
const RTS: (A, A) = (
    A::TIMEOUT
        .union(A::RETRY_CNT)
        .union(A::RNR_RETRY)
        .union(A::SQ_PSN)
        .union(A::MAX_QP_RD_ATOMIC),
    A::CUR_STATE
        .union(A::ACCESS_FLAGS)
        .union(A::MIN_RNR_TIMER)
        .union(A::RETRY_UNLIMITED),
);
const SQD: (A, A) = (A::empty(), A::CUR_STATE.union(A::EN_SQD_ASYNC_NOTIFY));
const BACK: (A, A) = (
    A::empty(),
    A::CUR_STATE.union(A::ACCESS_FLAGS).union(A::MIN_RNR_TIMER),
);

/// A QP that is its own peer.
struct Stage {
    client: Client,
    qpn: u32,
}

impl Stage {
    /// With the QP in this state.
    fn new(rig: &Rig<'_>, state: S) -> Outcome<Self> {
        let mut client = rig.client(Port::A)?;
        let qpn = client.qp(QpOptions::default())?.qpn;
        let mut stage = Self { client, qpn };
        stage.go(state)?;
        Ok(stage)
    }

    /// By RESET to a state.
    fn go(&mut self, state: S) -> Outcome {
        let path: &[(S, A)] = &[
            (S::INIT, INIT.0),
            (S::RTR, RTR.0),
            (S::RTS, RTS.0),
            (S::SQD, SQD.0),
        ];
        self.changed(self.body(S::RESET, A::STATE))?;
        for &(to, required) in path {
            if state == S::RESET {
                break;
            }
            self.changed(self.body(to, A::STATE | required))?;
            if to == state {
                break;
            }
        }
        self.client.expect_state(self.qpn, state)
    }

    /// Sound values for these attributes.
    fn body(&self, to: S, mask: A) -> QpModify {
        let word = |of, value| if mask.contains(of) { value } else { 0 };
        let byte = |of, value: u8| if mask.contains(of) { value } else { 0 };
        QpModify {
            qpn: self.qpn,
            state: to.0.into(),
            attributes: mask.bits(),
            peer_function: word(A::AV, self.client.function),
            peer_qpn: word(A::DEST_QPN, self.qpn),
            rnr_retry: word(A::RNR_RETRY, 7),
            access: word(A::ACCESS_FLAGS, full().bits()),
            sq_psn: word(A::SQ_PSN, 0xff_ffff),
            rq_psn: word(A::RQ_PSN, 0xff_ffff),
            max_rd_atomic: byte(A::MAX_QP_RD_ATOMIC, 16),
            max_dest_rd_atomic: byte(A::MAX_DEST_RD_ATOMIC, 16),
            min_rnr_timer: byte(A::MIN_RNR_TIMER, 31),
            path_mtu: byte(A::PATH_MTU, 5),
            timeout: byte(A::TIMEOUT, 31),
            retry_cnt: byte(A::RETRY_CNT, 7),
            ..QpModify::default()
        }
    }

    fn modify(&mut self, body: QpModify) -> Outcome<(AdminStatus, Refusal)> {
        let (status, [why, _]) = self.client.admin(AdminOp::QP_MODIFY, body.to_body())?;
        Ok((status, Refusal::unpack(why)))
    }

    fn changed(&mut self, body: QpModify) -> Outcome {
        let (status, why) = self.modify(body)?;
        let (seen, wanted) = ((status, why), (AdminStatus::OK, Refusal::default()));
        same(&format!("QP_MODIFY with {body:?}"), seen, wanted)
    }

    /// Refused for this reason, which names both states; the QP stays as it was.
    fn refused(
        &mut self,
        from: S,
        body: QpModify,
        (status, syndrome): (AdminStatus, Syndrome),
        attributes: A,
    ) -> Outcome {
        let wanted = Refusal {
            syndrome,
            from,
            to: QpState(body.state.to_le_bytes()[0]),
            attributes: attributes.bits(),
        };
        let seen = self.modify(body)?;
        same(&format!("QP_MODIFY with {body:?}"), seen, (status, wanted))?;
        self.client.expect_state(self.qpn, from)
    }

    fn settings(&mut self) -> Outcome<QpSettings> {
        let named = Named {
            id: self.qpn,
            reserved: 0,
        };
        let result = self.client.ok(AdminOp::QP_QUERY_ATTR, named.to_body())?;
        Ok(QpSettings::unpack(result))
    }
}

/// Without any one of its required attributes a change is refused; with all of them it is done.
fn required(rig: &mut Rig<'_>, from: S, to: S, (required, _): (A, A)) -> Outcome {
    let mut stage = Stage::new(rig, from)?;
    for missing in required.iter() {
        let body = stage.body(to, A::STATE | (required - missing));
        let why = (AdminStatus::INVALID, Syndrome::ATTRIBUTE_MISSING);
        stage.refused(from, body, why, missing)?;
    }
    let body = stage.body(to, A::STATE | required);
    stage.changed(body)
}

/// A change takes its optional attributes, one by one, and refuses all that it does not list.
fn listed(rig: &mut Rig<'_>, from: S, to: S, (required, optional): (A, A)) -> Outcome {
    let mut stage = Stage::new(rig, from)?;
    for other in A::all() - A::STATE - required - optional {
        let mut body = stage.body(to, A::STATE | required | other);
        if other == A::CUR_STATE {
            body.current_state = from.0;
        }
        let why = (AdminStatus::INVALID, Syndrome::ATTRIBUTE_NOT_ALLOWED);
        stage.refused(from, body, why, other)?;
    }
    for one in optional.iter() {
        let mut body = stage.body(to, A::STATE | required | one);
        if one == A::CUR_STATE {
            body.current_state = from.0;
        }
        stage.changed(body)?;
        stage.go(from)?;
    }
    Ok(())
}

/// A value that no attribute of a change may have.
fn out_of_range(
    rig: &mut Rig<'_>,
    (from, to): (S, S),
    (required, bad): (A, A),
    spoil: impl Fn(&mut QpModify),
) -> Outcome {
    let mut stage = Stage::new(rig, from)?;
    let mut body = stage.body(to, A::STATE | required);
    spoil(&mut body);
    let why = (AdminStatus::INVALID, Syndrome::ATTRIBUTE_OUT_OF_RANGE);
    stage.refused(from, body, why, bad)
}

const TO_RTR: (S, S) = (S::INIT, S::RTR);
const TO_RTS: (S, S) = (S::RTR, S::RTS);

pub(super) const CASES: &[Case] = &[
    case(
        "attributes.reset-to-init.required",
        "To INIT the rights are required",
        MODIFY,
        |rig| required(rig, S::RESET, S::INIT, INIT),
    ),
    case(
        "attributes.reset-to-init.listed",
        "To INIT no other attribute is taken",
        MODIFY,
        |rig| listed(rig, S::RESET, S::INIT, INIT),
    ),
    case(
        "attributes.init-to-rtr.required",
        "To RTR each of peer, path MTU, PSN, responder depth and RNR timer is required",
        MODIFY,
        |rig| required(rig, S::INIT, S::RTR, RTR),
    ),
    case(
        "attributes.init-to-rtr.listed",
        "To RTR the rights are optional and nothing else is taken",
        MODIFY,
        |rig| listed(rig, S::INIT, S::RTR, RTR),
    ),
    case(
        "attributes.rtr-to-rts.required",
        "To RTS each of timeout, both retry counts, PSN and initiator depth is required",
        MODIFY,
        |rig| required(rig, S::RTR, S::RTS, RTS),
    ),
    case(
        "attributes.rtr-to-rts.listed",
        "To RTS current state, rights and RNR timer are optional and nothing else of verbs is taken",
        MODIFY,
        |rig| listed(rig, S::RTR, S::RTS, RTS),
    ),
    case(
        "attributes.rts-to-rts.listed",
        "From RTS to RTS current state, rights and RNR timer are optional and nothing else is taken",
        MODIFY,
        |rig| listed(rig, S::RTS, S::RTS, BACK),
    ),
    case(
        "attributes.rts-to-sqd.listed",
        "To SQD current state and the wish for an event are optional and nothing else is taken",
        MODIFY,
        |rig| listed(rig, S::RTS, S::SQD, SQD),
    ),
    case(
        "attributes.sqd-to-rts.listed",
        "From SQD to RTS current state, rights and RNR timer are optional and nothing else is taken",
        MODIFY,
        |rig| listed(rig, S::SQD, S::RTS, BACK),
    ),
    case(
        "attributes.to-reset-and-err.listed",
        "To RESET and ERR no attribute is taken",
        MODIFY,
        |rig| {
            for to in [S::RESET, S::ERR] {
                for from in [S::INIT, S::RTS] {
                    listed(rig, from, to, (A::empty(), A::empty()))?;
                }
            }
            Ok(())
        },
    ),
    case(
        "attributes.refusal-names-both-states",
        "A change that the state machine does not know is refused with the state that is and the one that was wanted",
        "ibv_modify_qp(3); docs/device.md, `Refusal`",
        |rig| {
            let mut stage = Stage::new(rig, S::INIT)?;
            for to in [S::RTS, S::SQD, S::SQE] {
                let body = stage.body(to, A::STATE);
                let why = (AdminStatus::BAD_STATE, Syndrome::BAD_QP_STATE);
                stage.refused(S::INIT, body, why, A::empty())?;
            }
            Ok(())
        },
    ),
    case(
        "attributes.current-state-differs-refused",
        "A current state that is not the QP's is refused",
        "ibv_modify_qp(3), cur_qp_state",
        |rig| {
            let mut stage = Stage::new(rig, S::RTR)?;
            let mut body = stage.body(S::RTS, A::STATE | RTS.0 | A::CUR_STATE);
            body.current_state = S::SQD.0;
            let why = (AdminStatus::BAD_STATE, Syndrome::CURRENT_STATE_DIFFERS);
            stage.refused(S::RTR, body, why, A::CUR_STATE)
        },
    ),
    case(
        "attributes.field-without-its-bit-refused",
        "A value whose attribute is not given is refused, not passed over",
        "docs/device.md, Changing a QP",
        |rig| {
            let mut stage = Stage::new(rig, S::RESET)?;
            let mut body = stage.body(S::INIT, A::STATE | INIT.0);
            body.timeout = 3;
            let why = (AdminStatus::INVALID, Syndrome::ATTRIBUTE_NOT_GIVEN);
            stage.refused(S::RESET, body, why, A::TIMEOUT)
        },
    ),
    case(
        "attributes.unknown-bit-refused",
        "Attribute bits without a meaning are refused",
        MODIFY,
        |rig| {
            let mut stage = Stage::new(rig, S::RESET)?;
            let mut body = stage.body(S::INIT, A::STATE | INIT.0);
            body.attributes |= 1 << 30;
            let why = (AdminStatus::INVALID, Syndrome::ATTRIBUTE_NOT_ALLOWED);
            stage.refused(S::RESET, body, why, A::from_bits_retain(1 << 30))
        },
    ),
    case(
        "attributes.access.unknown-refused",
        "Access bits without a meaning are refused",
        MODIFY,
        |rig| {
            out_of_range(
                rig,
                (S::RESET, S::INIT),
                (INIT.0, A::ACCESS_FLAGS),
                |body| body.access |= 1 << 20,
            )
        },
    ),
    case(
        "attributes.path-mtu.out-of-range-refused",
        "A path MTU is one of 256 to 4096",
        MODIFY,
        |rig| {
            for mtu in [0, 6] {
                out_of_range(rig, TO_RTR, (RTR.0, A::PATH_MTU), |body| {
                    body.path_mtu = mtu;
                })?;
            }
            Ok(())
        },
    ),
    case(
        "attributes.psn.out-of-range-refused",
        "PSNs have 24 bits",
        MODIFY,
        |rig| {
            out_of_range(rig, TO_RTR, (RTR.0, A::RQ_PSN), |body| {
                body.rq_psn = 1 << 24;
            })?;
            out_of_range(rig, TO_RTS, (RTS.0, A::SQ_PSN), |body| {
                body.sq_psn = 1 << 24;
            })
        },
    ),
    case(
        "attributes.depth.out-of-range-refused",
        "At most 16 READs and atomics are under way",
        MODIFY,
        |rig| {
            out_of_range(rig, TO_RTR, (RTR.0, A::MAX_DEST_RD_ATOMIC), |body| {
                body.max_dest_rd_atomic = 17;
            })?;
            out_of_range(rig, TO_RTS, (RTS.0, A::MAX_QP_RD_ATOMIC), |body| {
                body.max_rd_atomic = 17;
            })
        },
    ),
    case(
        "attributes.timers.out-of-range-refused",
        "Codes of timers have five bits",
        MODIFY,
        |rig| {
            out_of_range(rig, TO_RTR, (RTR.0, A::MIN_RNR_TIMER), |body| {
                body.min_rnr_timer = 32;
            })?;
            out_of_range(rig, TO_RTS, (RTS.0, A::TIMEOUT), |body| {
                body.timeout = 32;
            })
        },
    ),
    case(
        "attributes.retries.out-of-range-refused",
        "Retry counts have three bits",
        MODIFY,
        |rig| {
            out_of_range(rig, TO_RTS, (RTS.0, A::RETRY_CNT), |body| {
                body.retry_cnt = 8;
            })?;
            out_of_range(rig, TO_RTS, (RTS.0, A::RNR_RETRY), |body| {
                body.rnr_retry = 8;
            })
        },
    ),
    case(
        "attributes.are-told",
        "QP_QUERY_ATTR tells what was given",
        "IBTA 11.2.4.3; ibv_query_qp(3)",
        |rig| {
            let mut stage = Stage::new(rig, S::RTS)?;
            let seen = stage.settings()?;
            same(
                "depths, timers, path MTU",
                (
                    (seen.max_rd_atomic, seen.max_dest_rd_atomic),
                    (seen.min_rnr_timer, seen.timeout),
                    seen.path_mtu,
                ),
                ((16, 16), (31, 31), 5),
            )?;
            same(
                "retries and PSNs",
                (seen.retry_cnt, seen.rnr_retry, seen.sq_psn, seen.rq_psn),
                (7, 7, 0xff_ffff, 0xff_ffff),
            )
        },
    ),
    case(
        "attributes.refused-change-nothing",
        "A refused change leaves every attribute as it was",
        MODIFY,
        |rig| {
            let mut stage = Stage::new(rig, S::RTS)?;
            let before = stage.settings()?;
            let mut body = stage.body(S::RTS, A::STATE | A::ACCESS_FLAGS | A::MIN_RNR_TIMER);
            body.access = 0;
            body.min_rnr_timer = 99;
            let why = (AdminStatus::INVALID, Syndrome::ATTRIBUTE_OUT_OF_RANGE);
            stage.refused(S::RTS, body, why, A::MIN_RNR_TIMER)?;
            same("attributes", stage.settings()?, before)
        },
    ),
    case(
        "attributes.rights-change-while-connected",
        "Rights taken from a QP in RTS are refused to its peer from then on",
        "ibv_modify_qp(3), qp_access_flags",
        |rig| {
            use super::super::wr::SendWr;
            let mut pair = rig.pair()?;
            let wr = SendWr::write(1, pair.out.sge(0, 8), pair.into.remote(0));
            pair.post(&wr);
            pair.a_done(1)?;
            let body = QpModify {
                qpn: pair.qb.qpn,
                state: S::RTS.0.into(),
                attributes: (A::STATE | A::ACCESS_FLAGS).bits(),
                ..QpModify::default()
            };
            pair.b.ok(AdminOp::QP_MODIFY, body.to_body())?;
            let status = ring_proto::status::WcStatus::REM_INV_REQ_ERR;
            pair.refused(&wr, status, Syndrome::QP_NO_ACCESS)
        },
    ),
];
