//! Real programs through the preload library: over kernel TCP without an emulator, and over the SAN with it.
#![expect(
    unsafe_code,
    reason = "leaves descriptors to programs under fixed numbers"
)]

#[cfg(test)]
mod emulator;
#[cfg(test)]
mod harness;
#[cfg(test)]
mod programs;
#[cfg(test)]
mod semantics;
#[cfg(test)]
mod telemetry;
