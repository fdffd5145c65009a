//! Driver of the emulated SAN NIC and its SAN service provider.
//!
//! Place: `switch` calls the [`spi`] traits; the provider turns them into WQEs, doorbells and admin commands for the device.
//! Entry points: [`function::Function`] attaches to a device, [`verbs`] is for driver developers, [`provider`] for the switch.
//! Leaves out: any decision about roads, and the device itself.

mod admin;
mod alloc;
mod arena;
pub mod cq;
pub mod eq;
pub mod error;
mod fork_lock;
pub mod function;
pub mod lock;
pub mod opener;
mod pair;
pub mod provider;
mod record;
mod rq;
pub mod spi;
pub mod sq;
pub mod sys;
pub mod verbs;
pub mod vfio;
pub mod wsa;
