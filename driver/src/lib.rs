//! Driver of the emulated SAN NIC and its SAN service provider.
//!
//! Place: `switch` calls the [`spi`] traits; the provider turns them into WQEs, doorbells and admin commands for the device.
//! Leaves out: any decision about roads, and the device itself.

pub mod spi;
pub mod sys;
pub mod wsa;
