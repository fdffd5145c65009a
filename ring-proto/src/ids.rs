//! Names of device objects as types, so that a wrong number does not compile.
//!
//! Place: used by `driver` and `nic-emu` wherever a queue, a key or a function is named. Invariants: the raw value is what travels.

use core::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($raw:ty), $format:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $raw);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "(", $format, ")"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $format, self.0)
            }
        }
    };
}

id!(
    /// Queue pair number, 24 bits, unique within one function.
    Qpn(u32), "{:#x}");
id!(
    /// Completion queue number, unique within one function.
    Cqn(u32), "{:#x}");
id!(
    /// Event queue number, unique within one function.
    Eqn(u32), "{:#x}");
id!(
    /// Protection domain number, unique within one function.
    Pdn(u32), "{:#x}");
id!(
    /// Local key of a memory region: 24-bit index and 8-bit tag.
    Lkey(u32), "{:#010x}");
id!(
    /// Remote key of a memory region: 24-bit index and 8-bit tag. Meaningless outside the function that registered it.
    Rkey(u32), "{:#010x}");
id!(
    /// Number of a node of the cluster, from 0.
    NodeId(u16), "{}");
id!(
    /// Number of an attached function; unique for the life of the emulator, never re-used, never 0.
    FunctionId(u32), "{}");
id!(
    /// Place of a doorbell line: UAR number times 64 plus line number.
    Slot(u32), "{}");
id!(
    /// Index of an interrupt vector of a function, 0..64.
    VectorId(u8), "{}");
id!(
    /// Number of a connection-manager listener, unique within one function.
    ListenerId(u32), "{}");
id!(
    /// Number of a connection request as the listening function sees it.
    RequestId(u32), "{}");
id!(
    /// Slot of one process in the holder table of a function. Slot 0 belongs to the process that attached.
    HolderSlot(u32), "{}");

/// Most QPs, CQs or MRs that a 24-bit index can name.
pub const INDEX_LIMIT: u32 = 1 << 24;

/// Composes a memory key from the index of its table entry and the tag of its present life.
#[must_use]
pub const fn key(index: u32, tag: u8) -> u32 {
    (index << 8) | tag as u32
}

/// Splits a memory key into table index and tag.
#[must_use]
pub const fn key_parts(key: u32) -> (u32, u8) {
    (key >> 8, key.to_le_bytes()[0])
}
