//! The process side of the device from outside: an independent vfio-user client, hostile clients, channels, control, the binary.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod attach;
mod binary;
mod channel;
mod control;
mod example;
mod faults;
mod harness;
mod hostile;
mod irqs;
mod lab;
mod minidriver;
mod regressions;
mod rings;
mod stream;
mod virtual_time;
mod walk;
