//! The device against a scripted raw client that writes rings and doorbells by hand, and may lie.
//!
//! No process, no thread, virtual time: every test is deterministic.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: what cannot be unwrapped is the failure of the test"
)]

mod admin;
mod atomics;
mod bursts;
mod captures;
mod client;
mod cm;
mod completion;
mod cq_change;
mod debugging;
mod embedded;
mod faults;
mod flush;
mod holders;
mod hostile;
mod hot_path;
mod limits;
mod model;
mod modify;
mod mw;
mod packet;
mod packet_attributes;
mod packet_cm;
mod port;
mod registers;
mod regressions;
mod rnr;
mod srq;
mod syndromes;
mod teardown;
mod transfer;
mod validate;
mod validate_keys;
mod windows;
mod wqe;
mod zero_length;
