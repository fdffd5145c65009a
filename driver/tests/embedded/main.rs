//! The driver against the real device in the same process: verbs, connections, data, tables of the service provider.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../support/mod.rs"]
mod support;

mod connecting;
mod data;
mod example;
mod faults;
mod memory;
mod tables;
mod verbs;
mod verbs_cq;
mod verbs_keys;
mod waiting;
