//! The Windows Sockets Direct switch: companion SAN sockets behind ordinary TCP sockets.
//!
//! Place: program -> preload library -> [`Switch`] -> service providers (SAN) and [`tcp_provider::TcpProvider`] (kernel TCP).
//! Invariants: nothing here blocks, every wait is a [`WaitPlan`] that the caller carries out; the program's descriptor is and
//! stays the kernel TCP socket; after a connection is established over the SAN, no way leads back to TCP.
//! Source: the WDK pages on Windows Sockets Direct; docs/wsd.md says which requirement is met where and which test shows it.

pub mod accept;
pub mod close;
pub mod companion;
pub mod config;
pub mod connect;
pub mod datagram;
pub mod detached;
pub mod determine;
pub mod estate;
pub mod event;
pub mod fork;
pub mod gate;
pub mod listen;
pub mod mock;
pub mod options;
pub mod outcome;
mod pace;
pub mod place;
pub mod process;
pub mod program;
pub mod provider_table;
pub mod readiness;
pub mod ready_queue;
pub mod report;
pub mod service;
pub mod session;
pub mod socket;
pub mod subnet;
pub mod switch;
pub mod sys;
pub mod table;
pub mod tcp;
pub mod tcp_provider;
pub mod telemetry;
pub mod token;
pub mod told;
pub mod upcalls;
pub mod waiters;
pub mod watched;

pub use config::NodeConfig;
pub use outcome::{Errno, Outcome, WaitPlan};
pub use provider_table::{Provider, ProviderRef};
pub use service::ServicePlan;
pub use socket::{Stage, SwitchSocket};
pub use switch::{Accepted, ConnectStep, Host, Installed, Switch};
