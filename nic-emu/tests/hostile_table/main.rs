//! Every field of everything that a client writes, with every kind of bad value, and what answers it.
//!
//! The fields come from the structures themselves: one without a row does not pass, and a structure that grows does not compile. The
//! operations, commands and requests come from the contract too, so that a new one without a table does not pass either.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[macro_use]
mod table;

mod admin;
mod attributes;
mod channel;
#[expect(dead_code, reason = "its own suite needs more of it")]
#[path = "../device_suite/client.rs"]
mod client;
mod connections;
mod control;
#[expect(dead_code, reason = "its own suite needs more of it")]
#[path = "../server_suite/harness.rs"]
mod harness;
mod receives;
mod sends;
mod stage;
mod telemetry;
mod vfio;
