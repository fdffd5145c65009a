//! An emulated SAN NIC: one device with the ports of all nodes of a cluster, served to clients over shared memory.
//!
//! Place: `driver` attaches to it, over vfio-user or embedded; `sanlab up` runs it as a process.
//! Entry points: [`device::Device`] is the NIC itself, [`Cluster::embedded`] and [`embedded`] run it in the caller's process,
//! [`server`] as a process of its own, which [`control`] talks to; [`server::vfio`] serves any other device over vfio-user;
//! [`conformance`] judges any device that speaks our interface.

pub mod capture;
pub mod cluster;
pub mod conformance;
pub mod control;
pub mod device;
pub mod embedded;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
pub mod server;
pub mod wire;

pub use cluster::Cluster;
