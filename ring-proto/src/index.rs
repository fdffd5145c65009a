//! Ring index arithmetic, apart from any storage.
//!
//! Place: every ring of the contract (SQ, RQ, CQ, EQ, admin) counts with these functions, on both sides.
//! Invariants: positions are free-running `u32`; the depth is a power of two, at most 2^31; positions are compared by wrapping
//! distance only. A CQE is new when its phase byte is that of the reader's lap.
//! Hot: everything here.
//!
//! ```text
//!   consumer            producer            consumer + depth
//!      |  filled, reader's  |   free, writer's   |
//! ```

/// Depth of a ring: a power of two between 1 and 2^31.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Depth(u32);

impl Depth {
    /// Accepts a power of two up to 2^31.
    #[must_use]
    pub const fn new(entries: u32) -> Option<Self> {
        if entries.is_power_of_two() {
            Some(Self(entries))
        } else {
            None
        }
    }

    /// Number of entries.
    #[must_use]
    pub const fn entries(self) -> u32 {
        self.0
    }

    /// Place of a position in the storage, below the depth.
    #[must_use]
    pub const fn index(self, position: u32) -> u32 {
        position & (self.0 - 1)
    }

    /// Entries between consumer and producer.
    #[must_use]
    pub const fn used(self, producer: u32, consumer: u32) -> u32 {
        producer.wrapping_sub(consumer)
    }

    /// Free entries; 0 also when the indices contradict each other.
    #[must_use]
    pub const fn free(self, producer: u32, consumer: u32) -> u32 {
        self.0.saturating_sub(self.used(producer, consumer))
    }

    /// Whether a producer claimed by the peer can be true: it lies between ours and one depth ahead of the consumer.
    #[must_use]
    pub const fn accepts_producer(self, claimed: u32, known_producer: u32, consumer: u32) -> bool {
        let distance = claimed.wrapping_sub(consumer);
        distance <= self.0 && distance >= known_producer.wrapping_sub(consumer)
    }

    /// Entries from `position` to the end of the storage.
    #[must_use]
    pub const fn until_end(self, position: u32) -> u32 {
        self.0 - self.index(position)
    }

    /// Phase byte of the lap that `position` belongs to: 1 or 2, so that zeroed memory is never valid.
    #[must_use]
    pub const fn phase(self, position: u32) -> u8 {
        if position & self.0 == 0 { 1 } else { 2 }
    }
}
