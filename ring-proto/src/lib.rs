//! The contract between an emulated SAN NIC and its driver: everything that lies in shared memory or crosses a socket.
//!
//! Place: `driver` and `switch` write what `nic-emu` reads, and the other way round; both sides include this crate and nothing of each other.
//! Invariants: no I/O, no threads, no logging; layouts are `repr(C)`, little-endian, without padding, asserted in `const` and
//! compared with docs/device.md by a test.
//! Hot: `doorbell`, `arm`, `index`, `ring`, `wqe`, `cqe`, `copy`.
//! Source: ours where nothing else is named; verbs words and numbers where verbs has them. Leaves out: storage and mapping of memory.

pub mod admin;
pub mod arm;
pub mod attach;
pub mod c_header;
pub mod channel;
pub mod copy;
pub mod cqe;
pub mod doorbell;
pub mod eqe;
pub mod figure;
pub mod ids;
pub mod index;
pub mod regs;
pub mod ring;
pub mod shared;
pub mod status;
pub mod sync;
pub mod tables;
pub mod telemetry;
pub mod uar;
pub mod vfio;
pub mod wqe;
