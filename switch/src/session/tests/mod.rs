//! Tests of the session: over a double of the SPI, and the same suite over the real driver with the emulated NIC.
//!
//! Place: `world` makes connected pairs; the other files are the suites, one per concern.

mod alive;
mod double;
mod ending;
mod hostile;
mod kernel;
mod killed;
mod message;
mod nic;
mod orphan;
mod stream;
mod urgent;
mod world;
