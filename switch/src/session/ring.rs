//! Index arithmetic and shared head of a send ring.
//!
//! Place: `send` puts the program's bytes where [`SendRing`] says and tells the peer by the [`RingHead`]; a peer that finds us dead
//! reads the head and then the bytes (`orphan`).
//! Invariants: every byte lies in the ring before `accepted` covers it; a byte's place stays its own until the SEND that carried it
//! has completed (`freed` covers it); all live bytes belong to one run, because the ring starts again at its first page only when
//! it is empty. Stream offsets are free-running.
//! Hot: everything here. Source: R-138, R-139; design of the ring ours (docs/session.md). Leaves out: storage.
//!
//! ```text
//!   page 0                     data part, `len` bytes
//!   | head | message slots |   | free | run_ring ...  freed .. accepted ... | free |
//! ```

use core::mem::{offset_of, size_of};

use ring_proto::sync::{AtomicU32, AtomicU64};

/// Bytes before the data part: one page.
pub const HEADER_BYTES: u64 = 4096;
/// Where the message slots start in the header page.
pub const SLOTS_OFFSET: u64 = 1024;
/// Bytes of a message slot.
pub const SLOT_BYTES: u64 = 64;
/// Where an answered probe leaves its word, behind the message slots.
pub(super) const PROBE_OFFSET: usize = 2048;
/// Bytes of the head that a peer reads.
pub const HEAD_BYTES: usize = size_of::<RingHead>();

/// Head of a send ring in shared memory: written by its owner, read by the peer when the owner is dead.
#[repr(C)]
#[derive(Debug, Default)]
pub struct RingHead {
    /// Bytes of the stream that lie in the ring or have left it. Stored after the bytes, with Release.
    pub accepted: AtomicU64,
    /// Stream offset of the run's first byte.
    pub run_stream: AtomicU64,
    /// Its place in the data part.
    pub run_ring: AtomicU64,
    /// 1: nothing comes after `accepted`.
    pub fin: AtomicU32,
    reserved0: AtomicU32,
    reserved1: [AtomicU64; 12],
    /// Bytes of the peer's stream that our program has taken.
    pub consumed: AtomicU64,
    reserved2: [AtomicU64; 15],
}

const _: () = {
    assert!(HEAD_BYTES == 256);
    assert!(offset_of!(RingHead, run_stream) == 8);
    assert!(offset_of!(RingHead, run_ring) == 16);
    assert!(offset_of!(RingHead, fin) == 24);
    assert!(offset_of!(RingHead, consumed) == 128);
};

/// Copy of a peer's [`RingHead`], read once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeadCopy {
    /// [`RingHead::accepted`].
    pub accepted: u64,
    /// [`RingHead::run_stream`].
    pub run_stream: u64,
    /// [`RingHead::run_ring`].
    pub run_ring: u64,
    /// [`RingHead::fin`].
    pub fin: bool,
    /// [`RingHead::consumed`].
    pub consumed: u64,
}

impl HeadCopy {
    /// Takes the fields out of a private copy of a head.
    #[must_use]
    pub fn decode(bytes: &[u8; HEAD_BYTES]) -> Self {
        let word = |at: usize| {
            let mut value = [0; 8];
            value.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(value)
        };
        Self {
            accepted: word(offset_of!(RingHead, accepted)),
            run_stream: word(offset_of!(RingHead, run_stream)),
            run_ring: word(offset_of!(RingHead, run_ring)),
            fin: word(offset_of!(RingHead, fin)) & 0xffff_ffff != 0,
            consumed: word(offset_of!(RingHead, consumed)),
        }
    }
}

/// A contiguous piece of the data part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// First byte, from the start of the data part.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// Positions of a send ring, apart from its storage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SendRing {
    /// Bytes of the data part.
    pub len: u64,
    /// Stream offset of the run's first byte.
    pub run_stream: u64,
    /// Its place.
    pub run_ring: u64,
    /// Bytes whose SEND has completed.
    pub freed: u64,
    /// Bytes accepted from the program.
    pub accepted: u64,
}

impl SendRing {
    /// Bytes in the ring.
    #[inline]
    #[must_use]
    pub const fn used(&self) -> u64 {
        self.accepted.wrapping_sub(self.freed)
    }

    /// Bytes that may still be accepted when the program allowed `limit`.
    #[inline]
    #[must_use]
    pub const fn room(&self, limit: u64) -> u64 {
        let limit = if limit < self.len { limit } else { self.len };
        limit.saturating_sub(self.used())
    }

    /// Starts again at the first byte if the ring is empty; true if it did.
    #[inline]
    pub const fn restart_if_empty(&mut self) -> bool {
        if self.used() != 0 || (self.run_stream == self.accepted && self.run_ring == 0) {
            return false;
        }
        self.run_stream = self.accepted;
        self.run_ring = 0;
        true
    }

    /// The piece that holds stream bytes from `from` on, at most `want` and without wrapping.
    #[inline]
    #[must_use]
    pub const fn span(&self, from: u64, want: u64) -> Span {
        let in_run = from.wrapping_sub(self.run_stream) % self.len;
        let offset = (self.run_ring + in_run) % self.len;
        let until_end = self.len - offset;
        Span {
            offset,
            len: if want < until_end { want } else { until_end },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{HEAD_BYTES, HeadCopy, SendRing};

    #[derive(Clone, Debug)]
    enum Step {
        Accept(u64),
        Free(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (1_u64..200).prop_map(Step::Accept),
            (1_u64..200).prop_map(Step::Free),
        ];
        proptest::collection::vec(step, 1..200)
    }

    proptest! {
        /// Every live byte has one place of its own, whatever was accepted and freed before, from any start.
        #[test]
        fn live_bytes_never_share_a_place(
            start in any::<u64>(),
            ring_start in 0_u64..97,
            limit in 1_u64..200,
            steps in steps(),
        ) {
            const LEN: u64 = 97;
            let mut ring = SendRing { len: LEN, run_stream: start, run_ring: ring_start, freed: start, accepted: start };
            // The oracle: which stream offset a place holds.
            let mut places: Vec<Option<u64>> = vec![None; 97];
            for step in steps {
                match step {
                    Step::Accept(want) => {
                        ring.restart_if_empty();
                        let mut left = want.min(ring.room(limit));
                        prop_assert!(ring.used() + left <= LEN.min(limit));
                        while left > 0 {
                            let span = ring.span(ring.accepted, left);
                            prop_assert!(span.len >= 1 && span.offset + span.len <= LEN);
                            for i in 0..span.len {
                                let place = &mut places[usize::try_from(span.offset + i).unwrap()];
                                prop_assert_eq!(*place, None);
                                *place = Some(ring.accepted.wrapping_add(i));
                            }
                            ring.accepted = ring.accepted.wrapping_add(span.len);
                            left -= span.len;
                        }
                    }
                    Step::Free(want) => {
                        let mut left = want.min(ring.used());
                        while left > 0 {
                            let span = ring.span(ring.freed, left);
                            for i in 0..span.len {
                                let place = &mut places[usize::try_from(span.offset + i).unwrap()];
                                prop_assert_eq!(*place, Some(ring.freed.wrapping_add(i)));
                                *place = None;
                            }
                            ring.freed = ring.freed.wrapping_add(span.len);
                            left -= span.len;
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn empty_ring_starts_again_at_its_first_byte() {
        let mut ring = SendRing {
            len: 8,
            run_stream: 0,
            run_ring: 0,
            freed: 5,
            accepted: 6,
        };
        assert!(!ring.restart_if_empty());
        ring.freed = 6;
        assert!(ring.restart_if_empty());
        assert_eq!(ring.span(6, 100).offset, 0);
        assert!(!ring.restart_if_empty());
    }

    #[test]
    fn head_is_decoded_from_its_documented_offsets() {
        let mut bytes = [0_u8; HEAD_BYTES];
        bytes[0] = 1;
        bytes[8] = 2;
        bytes[16] = 3;
        bytes[24] = 1;
        bytes[128] = 5;
        assert_eq!(
            HeadCopy::decode(&bytes),
            HeadCopy {
                accepted: 1,
                run_stream: 2,
                run_ring: 3,
                fin: true,
                consumed: 5
            }
        );
    }
}
