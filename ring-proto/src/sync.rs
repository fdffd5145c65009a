//! The one door to atomics: core's in a normal build, loom's under `cfg(loom)`.
//!
//! Place: every module of the workspace that shares a word takes its atomics from here, so that loom can model the same code.
//! Invariants: accesses are Relaxed, Acquire, Release or AcqRel; sequential consistency comes from [`fence`] alone, because loom
//! treats `SeqCst` accesses as `AcqRel`.

#[cfg(not(loom))]
pub use core::sync::atomic::{
    AtomicI32, AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};

#[cfg(loom)]
pub use loom::sync::atomic::{
    AtomicI32, AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};
