//! Real programs through the preload library, without an emulator: everything stays on kernel TCP and behaves as on plain Linux.

#[cfg(test)]
mod harness;
#[cfg(test)]
mod programs;
#[cfg(test)]
mod semantics;
#[cfg(test)]
mod telemetry;
