//! Packet mode: the reliable transport of QPs whose link is impaired.
//!
//! Place: `serve` comes here instead of to `transfer` where a link between the two nodes loses, delays or disorders packets.
//! Invariants: attributes are checked when they are set, never when they are used. Hot: nothing.

mod attributes;

pub(crate) use attributes::{PSN_MASK, Transport, rnr_wait_ns};
