//! QP_MODIFY: which change of state takes which attributes, and what they do.
//!
//! Place: the admin queue hands the command in; the attributes are read by `serve` and `transfer`.
//! Invariants: a refused change changes nothing and names both states; every refusal has a syndrome of its own kind. A QP in SQD is
//! drained once the WQE under way is complete, and says so once.
//! Source: `ibv_modify_qp` and IBA vol. 1, chapter 10 (attributes per transition); the short form is ours. Hot: nothing.
//! Leaves out: ports and partition keys (a function has one port), alternate paths, SQE (no unconnected transport).

use ring_proto::admin::{
    Access, AdminStatus, MAX_RD_ATOMIC, QpAttributes, QpModify, QpSettings, Refusal,
};
use ring_proto::eqe::EventType;
use ring_proto::ids::FunctionId;
use ring_proto::status::{QpState, Syndrome, WcStatus};

use super::Device;
use super::packet::PSN_MASK;
use super::qp::{QpRef, RNR_FOREVER};
use super::transfer::Step;

/// A command that was refused, and why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Refused {
    pub(crate) status: AdminStatus,
    pub(crate) refusal: Refusal,
}

impl From<AdminStatus> for Refused {
    fn from(status: AdminStatus) -> Self {
        Self {
            status,
            refusal: Refusal::default(),
        }
    }
}

/// Required and optional attributes of a change of state; `None` for one that does not exist.
fn rule(from: QpState, to: QpState) -> Option<(QpAttributes, QpAttributes)> {
    const NONE: QpAttributes = QpAttributes::empty();
    const ACCESS: QpAttributes = QpAttributes::ACCESS_FLAGS;
    const RESPONDER: QpAttributes = QpAttributes::AV
        .union(QpAttributes::PATH_MTU)
        .union(QpAttributes::RQ_PSN)
        .union(QpAttributes::MIN_RNR_TIMER)
        .union(QpAttributes::MAX_DEST_RD_ATOMIC)
        .union(QpAttributes::DEST_QPN);
    const REQUESTER: QpAttributes = QpAttributes::TIMEOUT
        .union(QpAttributes::RETRY_CNT)
        .union(QpAttributes::RNR_RETRY)
        .union(QpAttributes::MAX_QP_RD_ATOMIC)
        .union(QpAttributes::SQ_PSN);
    const RUNNING: QpAttributes = QpAttributes::CUR_STATE
        .union(ACCESS)
        .union(QpAttributes::MIN_RNR_TIMER);
    const DRAINED: QpAttributes = QpAttributes::RETRY_UNLIMITED
        .union(QpAttributes::TIMEOUT)
        .union(QpAttributes::RETRY_CNT)
        .union(QpAttributes::RNR_RETRY)
        .union(QpAttributes::MAX_QP_RD_ATOMIC)
        .union(QpAttributes::MAX_DEST_RD_ATOMIC)
        .union(ACCESS)
        .union(QpAttributes::MIN_RNR_TIMER);
    Some(match (from, to) {
        (_, QpState::RESET | QpState::ERR) => (NONE, NONE),
        (QpState::RESET, QpState::INIT) => (ACCESS, NONE),
        (QpState::INIT, QpState::INIT) => (NONE, ACCESS),
        (QpState::INIT, QpState::RTR) => (RESPONDER, ACCESS),
        (QpState::RTR, QpState::RTS) => (REQUESTER, RUNNING.union(QpAttributes::RETRY_UNLIMITED)),
        (QpState::RTS | QpState::SQD, QpState::RTS) => (NONE, RUNNING),
        (QpState::RTS, QpState::SQD) => (
            NONE,
            QpAttributes::CUR_STATE.union(QpAttributes::EN_SQD_ASYNC_NOTIFY),
        ),
        (QpState::SQD, QpState::SQD) => (NONE, DRAINED),
        _ => return None,
    })
}

/// What the short form takes beside the attributes of the table. Ours: the connection manager leads from INIT to RTS at once.
fn short_extra(to: QpState) -> QpAttributes {
    let of_rts = QpAttributes::TIMEOUT
        | QpAttributes::RETRY_CNT
        | QpAttributes::MIN_RNR_TIMER
        | QpAttributes::RETRY_UNLIMITED;
    match to {
        QpState::INIT => of_rts | QpAttributes::PATH_MTU,
        QpState::RTS => of_rts | QpAttributes::RNR_RETRY,
        _ => QpAttributes::empty(),
    }
}

/// Attributes whose fields are not zero.
fn filled(wanted: &QpModify) -> QpAttributes {
    [
        (QpAttributes::CUR_STATE, wanted.current_state.into()),
        (QpAttributes::EN_SQD_ASYNC_NOTIFY, wanted.sqd_event.into()),
        (QpAttributes::ACCESS_FLAGS, wanted.access),
        (QpAttributes::AV, wanted.peer_function),
        (QpAttributes::PATH_MTU, wanted.path_mtu.into()),
        (QpAttributes::TIMEOUT, wanted.timeout.into()),
        (QpAttributes::RETRY_CNT, wanted.retry_cnt.into()),
        (QpAttributes::RNR_RETRY, wanted.rnr_retry),
        (QpAttributes::RQ_PSN, wanted.rq_psn),
        (QpAttributes::MAX_QP_RD_ATOMIC, wanted.max_rd_atomic.into()),
        (QpAttributes::MIN_RNR_TIMER, wanted.min_rnr_timer.into()),
        (QpAttributes::SQ_PSN, wanted.sq_psn),
        (
            QpAttributes::MAX_DEST_RD_ATOMIC,
            wanted.max_dest_rd_atomic.into(),
        ),
        (QpAttributes::DEST_QPN, wanted.peer_qpn),
        (QpAttributes::RETRY_UNLIMITED, wanted.retry_unlimited),
    ]
    .into_iter()
    .filter(|&(_, value)| value != 0)
    .map(|(attribute, _)| attribute)
    .collect()
}

/// Given attributes whose values are impossible.
fn out_of_range(wanted: &QpModify, given: QpAttributes) -> QpAttributes {
    [
        (QpAttributes::EN_SQD_ASYNC_NOTIFY, wanted.sqd_event <= 1),
        (
            QpAttributes::ACCESS_FLAGS,
            Access::from_bits(wanted.access).is_some(),
        ),
        (QpAttributes::PATH_MTU, (1..=5).contains(&wanted.path_mtu)),
        (QpAttributes::TIMEOUT, wanted.timeout <= 31),
        (QpAttributes::RETRY_CNT, wanted.retry_cnt <= 7),
        (
            QpAttributes::RNR_RETRY,
            wanted.rnr_retry <= u32::from(RNR_FOREVER),
        ),
        (QpAttributes::RQ_PSN, wanted.rq_psn <= PSN_MASK),
        (
            QpAttributes::MAX_QP_RD_ATOMIC,
            wanted.max_rd_atomic <= MAX_RD_ATOMIC,
        ),
        (QpAttributes::MIN_RNR_TIMER, wanted.min_rnr_timer <= 31),
        (QpAttributes::SQ_PSN, wanted.sq_psn <= PSN_MASK),
        (QpAttributes::RETRY_UNLIMITED, wanted.retry_unlimited <= 1),
        (
            QpAttributes::MAX_DEST_RD_ATOMIC,
            wanted.max_dest_rd_atomic <= MAX_RD_ATOMIC,
        ),
    ]
    .into_iter()
    .filter(|&(attribute, is_sound)| given.contains(attribute) && !is_sound)
    .map(|(attribute, _)| attribute)
    .collect()
}

impl Device {
    /// QP_MODIFY.
    pub(crate) fn modify_qp(&mut self, at: QpRef, wanted: &QpModify) -> Result<(), Refused> {
        let qp = self.qp(at).ok_or(AdminStatus::NO_OBJECT)?;
        let from = qp.state;
        let named = u8::try_from(wanted.state).map(QpState);
        let mask = QpAttributes::from_bits_retain(wanted.attributes);
        let is_short = !mask.contains(QpAttributes::STATE);
        let to = named.unwrap_or(from);
        let refuse = |status, syndrome, attributes: QpAttributes| {
            Err(Refused {
                status,
                refusal: Refusal {
                    syndrome,
                    from,
                    to,
                    attributes: attributes.bits(),
                },
            })
        };
        let unknown = mask.difference(QpAttributes::all());
        if !unknown.is_empty() {
            return refuse(
                AdminStatus::INVALID,
                Syndrome::ATTRIBUTE_NOT_ALLOWED,
                unknown,
            );
        }
        if named.is_err() {
            return refuse(
                AdminStatus::INVALID,
                Syndrome::ATTRIBUTE_OUT_OF_RANGE,
                QpAttributes::STATE,
            );
        }
        let given = match to {
            QpState::RTR if is_short => mask | QpAttributes::AV | QpAttributes::DEST_QPN,
            QpState::RTS if is_short => mask | QpAttributes::RNR_RETRY,
            _ => mask,
        };
        let not_given = filled(wanted).difference(given);
        if !not_given.is_empty() {
            return refuse(
                AdminStatus::INVALID,
                Syndrome::ATTRIBUTE_NOT_GIVEN,
                not_given,
            );
        }
        if given.contains(QpAttributes::CUR_STATE) && wanted.current_state != from.0 {
            return refuse(
                AdminStatus::BAD_STATE,
                Syndrome::CURRENT_STATE_DIFFERS,
                QpAttributes::CUR_STATE,
            );
        }
        let ends = matches!(to, QpState::RESET | QpState::ERR);
        if qp.connecting.is_some() && !ends {
            return refuse(
                AdminStatus::BAD_STATE,
                Syndrome::QP_CONNECTING,
                QpAttributes::empty(),
            );
        }
        let Some((required, optional)) = rule(from, to) else {
            return refuse(
                AdminStatus::BAD_STATE,
                Syndrome::BAD_QP_STATE,
                QpAttributes::empty(),
            );
        };
        let mut allowed = required | optional | QpAttributes::STATE;
        if is_short {
            allowed |= short_extra(to);
        }
        let too_many = given.difference(allowed);
        if !too_many.is_empty() {
            return refuse(
                AdminStatus::INVALID,
                Syndrome::ATTRIBUTE_NOT_ALLOWED,
                too_many,
            );
        }
        let missing = required.difference(given);
        if !is_short && !missing.is_empty() {
            return refuse(AdminStatus::INVALID, Syndrome::ATTRIBUTE_MISSING, missing);
        }
        let wrong = out_of_range(wanted, given);
        if !wrong.is_empty() {
            return refuse(
                AdminStatus::INVALID,
                Syndrome::ATTRIBUTE_OUT_OF_RANGE,
                wrong,
            );
        }
        let news = given.difference(QpAttributes::STATE);
        if (from, to) == (QpState::SQD, QpState::SQD) && qp.is_draining && !news.is_empty() {
            return refuse(AdminStatus::BAD_STATE, Syndrome::SQ_DRAINING, news);
        }
        let mut peer = None;
        if to == QpState::RTR {
            // Its own creation may still lie ahead, but not its number: numbers come from creations.
            peer = self.named_qp(FunctionId(wanted.peer_function), wanted.peer_qpn);
            if peer.is_none() {
                return refuse(
                    AdminStatus::NO_OBJECT,
                    Syndrome::NO_SUCH_PEER,
                    QpAttributes::AV | QpAttributes::DEST_QPN,
                );
            }
        }
        self.take_attributes(at, wanted, given);
        self.enter_state(at, from, to, peer);
        Ok(())
    }

    /// The QP of that number, of any function.
    fn named_qp(&self, function: FunctionId, qpn: u32) -> Option<QpRef> {
        let at = QpRef {
            place: self.place_of(function).ok()?,
            function,
            qpn,
        };
        self.qp(at).map(|_| at)
    }

    fn take_attributes(&mut self, at: QpRef, wanted: &QpModify, given: QpAttributes) {
        let Some(qp) = self.qp_mut(at) else {
            return;
        };
        qp.transport.take(wanted, given);
        if given.contains(QpAttributes::MAX_QP_RD_ATOMIC) {
            qp.max_rd_atomic = wanted.max_rd_atomic;
        }
        if given.contains(QpAttributes::MAX_DEST_RD_ATOMIC) {
            qp.max_dest_rd_atomic = wanted.max_dest_rd_atomic;
        }
        if given.contains(QpAttributes::RNR_RETRY) {
            let [rnr_retry, ..] = wanted.rnr_retry.to_le_bytes();
            qp.rnr_retry = rnr_retry;
        }
        if given.contains(QpAttributes::ACCESS_FLAGS) {
            qp.access = Access::from_bits_truncate(wanted.access);
        }
        qp.wants_drained =
            given.contains(QpAttributes::EN_SQD_ASYNC_NOTIFY) && wanted.sqd_event == 1;
    }

    fn enter_state(&mut self, at: QpRef, from: QpState, to: QpState, peer: Option<QpRef>) {
        match to {
            QpState::RESET => return self.reset_qp(at),
            QpState::ERR => {
                self.withdraw_connect_of(at);
                self.qp_to_err(at);
                return;
            }
            _ => {}
        }
        let Some(qp) = self.qp_mut(at) else {
            return;
        };
        qp.state = to;
        self.record_state(at, to);
        let Some(qp) = self.qp_mut(at) else {
            return;
        };
        match to {
            QpState::RTR => {
                qp.peer = peer;
                qp.waiter = None;
                // A send of the peer may wait for this.
                if let Some(peer) = peer {
                    self.activate(peer);
                }
            }
            QpState::RTS => {
                qp.is_draining = false;
                self.activate(at);
            }
            QpState::SQD if from == QpState::RTS => {
                qp.is_draining = true;
                self.note_drained(at);
            }
            _ => {}
        }
    }

    /// Reports that the send queue of a QP in SQD has drained, once nothing of it is under way.
    pub(crate) fn note_drained(&mut self, at: QpRef) {
        let Some(qp) = self.qp_mut(at) else {
            return;
        };
        let is_busy = qp.is_held || qp.ends.as_ref().is_some_and(|ends| ends.is_busy());
        if qp.state != QpState::SQD || !qp.is_draining || is_busy {
            return;
        }
        qp.is_draining = false;
        if std::mem::take(&mut qp.wants_drained) {
            self.event(at.place, EventType::SQ_DRAINED, at.qpn, 0);
        }
    }

    /// The peer's first request has reached a QP that is still in RTR.
    #[cold]
    pub(crate) fn note_established(&mut self, at: QpRef) {
        if let Some(qp) = self.qp_mut(at) {
            qp.is_established = true;
            self.event(at.place, EventType::COMM_EST, at.qpn, 0);
        }
    }

    /// Whether READs and atomics may run between two QPs; else how one ends.
    #[inline]
    pub(crate) fn check_depth(&mut self, at: QpRef, peer: QpRef) -> Option<Step> {
        if self.qp(at)?.max_rd_atomic == 0 {
            let syndrome = Syndrome::NO_INITIATOR_DEPTH;
            return Some(Step::Failed(WcStatus::LOC_QP_OP_ERR, syndrome));
        }
        let other = self.qp(peer)?;
        if other.max_dest_rd_atomic != 0 {
            return None;
        }
        let syndrome = Syndrome::NO_RESPONDER_DEPTH;
        if !other.is_orphan && self.qp_to_err(peer) {
            let code = u32::from(syndrome.0);
            self.event(peer.place, EventType::QP_REQ_ERR, peer.qpn, code);
        }
        Some(Step::Failed(WcStatus::REM_INV_REQ_ERR, syndrome))
    }

    /// QP_QUERY_ATTR.
    pub(crate) fn query_attributes(&self, at: QpRef) -> Result<[u64; 2], AdminStatus> {
        let qp = self.qp(at).ok_or(AdminStatus::NO_OBJECT)?;
        let [access, ..] = qp.access.bits().to_le_bytes();
        Ok(QpSettings {
            access,
            max_rd_atomic: qp.max_rd_atomic,
            max_dest_rd_atomic: qp.max_dest_rd_atomic,
            rnr_retry: qp.rnr_retry,
            ..qp.transport.settings()
        }
        .pack())
    }
}
