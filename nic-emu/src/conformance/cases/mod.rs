//! The cases, one file per subject.
//!
//! Place: [`super::cases`] lists them in this order. Invariants: ids are `subject.what.expectation` and never change their meaning; a
//! rule that the device breaks on purpose stands in docs/limits.md. Source: named by each case.

mod admin;
mod atomics;
mod attributes;
mod cm;
mod cq;
mod cq_change;
mod dma;
mod drain;
mod events;
mod flush;
mod holders;
mod invalidate;
mod keys;
mod mw;
mod mw_bind;
mod qp;
mod queues;
mod rdma;
mod regions;
mod registers;
mod rnr;
mod send;
mod srq;
mod wqe;
mod zero_length;

use super::Case;

/// Every subject.
pub(super) const ALL: &[&[Case]] = &[
    registers::CASES,
    admin::CASES,
    dma::CASES,
    regions::CASES,
    qp::CASES,
    qp::TRANSITIONS,
    attributes::CASES,
    drain::CASES,
    wqe::CASES,
    send::CASES,
    rdma::CASES,
    atomics::CASES,
    keys::CASES,
    zero_length::CASES,
    mw::CASES,
    mw_bind::CASES,
    invalidate::CASES,
    rnr::CASES,
    srq::CASES,
    cq::CASES,
    cq_change::CASES,
    queues::CASES,
    events::CASES,
    flush::CASES,
    cm::CASES,
    holders::CASES,
];

/// QP states and their transitions.
const STATES: &str = "IBTA 10.3.1; ibv_modify_qp(3)";
/// Error handling of queue pairs.
const ERRORS: &str = "IBTA 10.10.2, 11.6.2";
/// Rules of our own interface.
const OURS: &str = "docs/device.md";
