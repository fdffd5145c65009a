//! Event queue elements: asynchronous and connection-manager events.
//!
//! Place: the engine writes them into the function's EQ ring, whoever holds the EQ's poll token files them for the others.
//! Invariants: as for CQEs: the publish word is stored last with Release. Edges: `cqe-publish`.
//! Source: verbs asynchronous events and rdma_cm events by name; layout ours (docs/device.md, section "Event queue elements").

use core::mem::{offset_of, size_of};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::status::codes;

/// Event queue element.
#[repr(C)]
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Eqe {
    /// QPN, CQN, SRQN or listener, by type.
    pub source: u32,
    /// Request id, status or count, by type.
    pub code: u32,
    /// Bits 0..16 [`EventType`], 16..32 a second code, 56..64 phase.
    pub publish: u64,
}

/// Offset of the publish word in an EQE.
pub const EQE_PUBLISH: usize = offset_of!(Eqe, publish);

const _: () = assert!(size_of::<Eqe>() == 16 && EQE_PUBLISH == 8);

codes! {
    /// Type of an event; says what `source` and `code` mean.
    EventType(u16) {
        /// A QP went to ERR by itself. source QPN, code syndrome.
        QP_FATAL = 1,
        /// A peer's request broke the access rules of a QP, which went to ERR. source QPN, code syndrome.
        QP_ACCESS = 2,
        /// A CQ overran; its QPs go to ERR. source CQN.
        CQ_ERROR = 3,
        /// A peer sent a request that a QP cannot serve; it went to ERR. source QPN, code syndrome.
        QP_REQ_ERR = 4,
        /// The first request reached a QP in RTR. source QPN.
        COMM_EST = 5,
        /// The send queue of a QP in SQD has drained. source QPN.
        SQ_DRAINED = 6,
        /// An SRQ has fewer receives than its limit, which is disarmed now. source SRQN.
        SRQ_LIMIT = 8,
        /// An SRQ is of no more use; its QPs go to ERR. source SRQN, code syndrome.
        SRQ_ERROR = 9,
        /// A QP on an SRQ went to ERR and takes no more receives from it. source QPN.
        LAST_WQE_REACHED = 10,
        /// A connection request waits. source listener, code request id.
        CM_REQUEST = 16,
        /// A waiting request was withdrawn by its sender. source listener, code request id.
        CM_WITHDRAWN = 17,
        /// A connect succeeded; the QP is in RTS. source QPN, code the peer's function.
        CM_ESTABLISHED = 18,
        /// A connect failed. source QPN, code [`CmStatus`].
        CM_REJECTED = 19,
        /// The peer disconnected or its QP went away. source QPN.
        CM_DISCONNECTED = 20,
        /// The peer QP has no holder left; its memory still serves READs. source QPN (ours).
        CM_ORPHANED = 21,
        /// The port went up. code node.
        PORT_UP = 32,
        /// The port went down. code node.
        PORT_DOWN = 33,
        /// The function is FAILED. code syndrome.
        DEVICE_FATAL = 48,
    }
}

codes! {
    /// Why a connect failed.
    CmStatus(u32) {
        /// It did not fail.
        OK = 0,
        /// Nobody listens on the address and port: answered at once.
        NO_LISTENER = 1,
        /// The listener rejected the request.
        REJECTED = 2,
        /// The request waited in a full backlog until the limit.
        BACKLOG_FULL = 3,
        /// No answer within the limit.
        TIMED_OUT = 4,
        /// No node of the fabric owns the address.
        NO_ROUTE = 5,
        /// The port is down.
        PORT_DOWN = 6,
        /// The listener's NIC or driver had nothing left for it.
        NO_RESOURCE = 7,
    }
}

/// Packs the publish word of an EQE.
#[must_use]
pub const fn pack(event: EventType, second: u16, phase: u8) -> u64 {
    event.0 as u64 | (second as u64) << 16 | (phase as u64) << 56
}

/// Type of an event from its publish word.
#[must_use]
pub const fn event_type(word: u64) -> EventType {
    let b = word.to_le_bytes();
    EventType(u16::from_le_bytes([b[0], b[1]]))
}
