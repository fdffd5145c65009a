//! Send queue: encodes work requests into WQE blocks and puts them into a ring.
//!
//! Place: `verbs` and `provider::data` -> here -> doorbell (`Function::ring_sends`) -> NIC.
//! Invariants: producer - consumer <= depth; blocks in [consumer, producer) belong to the NIC, the others to the owner of the queue;
//! a WQE never wraps, a NOP fills up to the end of the ring. Positions are kept by the caller: privately (`verbs`) or in the arena
//! (`provider`), and never read back from the ring.
//! Hot: everything here. Source: verbs send queue; layout docs/device.md, "Work queue elements".

use ring_proto::shared::WqeRing;
use ring_proto::status::Opcode;
use ring_proto::wqe::{self, BLOCK, Sge, SqWqe, WqeFlags};
use zerocopy::IntoBytes;

use crate::error::PostError;

/// `wr_id` of the NOPs that fill up a ring; no completion with it is handed out.
pub(crate) const FILLER: u64 = u64::MAX;

/// A send work request.
#[derive(Clone, Copy, Debug)]
pub struct SendWr<'a> {
    /// Echoed in the completion. `u64::MAX` is taken.
    pub wr_id: u64,
    /// Operation.
    pub opcode: Opcode,
    /// SIGNALED, SOLICITED, FENCE; INLINE is set by `payload`.
    pub flags: WqeFlags,
    /// Immediate data of the opcodes that have it; of SEND_WITH_INV the peer's key to invalidate.
    pub imm: u32,
    /// What to send, or where an RDMA READ goes.
    pub payload: Payload<'a>,
    /// RDMA: IOVA in the peer's function.
    pub remote_addr: u64,
    /// RDMA: key of the peer's region.
    pub rkey: u32,
}

/// Local side of a send work request.
#[derive(Clone, Copy, Debug)]
pub enum Payload<'a> {
    /// Registered memory, in order.
    Sges(&'a [Sge]),
    /// Bytes that travel in the WQE itself, at most 224.
    Inline(&'a [u8]),
}

/// A WQE of one to four blocks, ready to be put into a ring: the first block, and what the further ones hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Encoded<'a> {
    first: [u64; 8],
    rest: &'a [u8],
    blocks: u8,
}

/// Bytes of half a block; of the first one, what the payload has.
const HALF: usize = BLOCK / 2;

impl<'a> Encoded<'a> {
    /// Encodes a work request.
    #[inline]
    pub(crate) fn new(wr: &SendWr<'a>) -> Result<Self, PostError> {
        match wr.payload {
            Payload::Sges(sges) => Self::gather(wr, sges),
            Payload::Inline(bytes) => Self::inline(wr, bytes),
        }
    }

    #[inline]
    fn gather(wr: &SendWr<'_>, sges: &'a [Sge]) -> Result<Self, PostError> {
        let words = |sge: &Sge| [sge.addr, u64::from(sge.len) | u64::from(sge.lkey) << 32];
        let [a, b] = sges.first().map_or([0; 2], words);
        if let [only] = sges {
            return Ok(Self::with_head(wr, 1, 1, only.len, [a, b, 0, 0], &[]));
        }
        let count = u8::try_from(sges.len())
            .ok()
            .filter(|&count| count <= wqe::MAX_SGES)
            .ok_or(PostError::TooManySges {
                count: sges.len(),
                limit: wqe::MAX_SGES.into(),
            })?;
        let total = sges
            .iter()
            .try_fold(0_u32, |sum, sge| sum.checked_add(sge.len))
            .ok_or(PostError::TooLong)?;
        let [c, d] = sges.get(1).map_or([0; 2], words);
        let rest = sges.get(2..).unwrap_or(&[]).as_bytes();
        let blocks = wqe::blocks_for_sges(count);
        Ok(Self::with_head(
            wr,
            blocks,
            count,
            total,
            [a, b, c, d],
            rest,
        ))
    }

    #[inline]
    fn inline(wr: &SendWr<'_>, bytes: &'a [u8]) -> Result<Self, PostError> {
        let count = u8::try_from(bytes.len())
            .ok()
            .filter(|&count| count <= wqe::MAX_INLINE)
            .ok_or(PostError::InlineTooLong {
                len: bytes.len(),
                limit: wqe::MAX_INLINE.into(),
            })?;
        let (first, rest) = bytes.split_at(bytes.len().min(HALF));
        let words = half(first);
        let blocks = wqe::blocks_for_inline(count);
        let mut encoded = Self::with_head(wr, blocks, count, count.into(), words, rest);
        encoded.first[0] |= u64::from(WqeFlags::INLINE.bits()) << 8;
        Ok(encoded)
    }

    /// Lays the first block out word by word, so that it goes from registers into the ring.
    #[inline]
    fn with_head(
        wr: &SendWr<'_>,
        blocks: u8,
        count: u8,
        total: u32,
        [a, b, c, d]: [u64; 4],
        rest: &'a [u8],
    ) -> Self {
        let [opcode, flags, blocks_at, count_at] =
            [wr.opcode.0, wr.flags.bits(), blocks, count].map(u64::from);
        let head = opcode | flags << 8 | blocks_at << 16 | count_at << 24 | u64::from(wr.imm) << 32;
        let remote = u64::from(wr.rkey) | u64::from(total) << 32;
        Self {
            first: [head, wr.wr_id, wr.remote_addr, remote, a, b, c, d],
            rest,
            blocks,
        }
    }

    /// A WQE of one block that was laid out as a whole.
    pub(crate) const fn of_block(first: [u64; 8]) -> Self {
        Self {
            first,
            rest: &[],
            blocks: 1,
        }
    }

    /// The blocks behind the first one.
    #[inline]
    fn further(&self) -> impl Iterator<Item = [u64; 8]> {
        self.rest.chunks(BLOCK).map(|bytes| {
            let (low, high) = bytes.split_at(bytes.len().min(HALF));
            let ([a, b, c, d], [e, f, g, h]) = (half(low), half(high));
            [a, b, c, d, e, f, g, h]
        })
    }
}

/// Half a block as words; what is missing is zero. Only a last piece is a copy of unknown length, which is a call.
#[inline]
fn half(bytes: &[u8]) -> [u64; 4] {
    if let Some(full) = bytes.first_chunk::<HALF>() {
        return zerocopy::transmute!(*full);
    }
    let mut words = [0; 4];
    if !bytes.is_empty() {
        words.as_mut_bytes()[..bytes.len()].copy_from_slice(bytes);
    }
    words
}

/// Puts a WQE behind `producer`; returns the new producer, or `None` when the ring is full.
#[inline]
pub(crate) fn put(ring: &WqeRing, producer: u32, consumer: u32, wqe: &Encoded<'_>) -> Option<u32> {
    let depth = ring.depth();
    let blocks = u32::from(wqe.blocks);
    if blocks == 1 {
        // The common case: it cannot wrap.
        if depth.free(producer, consumer) == 0 {
            return None;
        }
        ring.write(producer, &wqe.first);
        return Some(producer.wrapping_add(1));
    }
    let until_end = depth.until_end(producer);
    let filler = if until_end < blocks { until_end } else { 0 };
    if depth.free(producer, consumer) < filler + blocks {
        return None;
    }
    if filler > 0 {
        fill_up(ring, producer, filler);
    }
    let mut position = producer.wrapping_add(filler);
    ring.write(position, &wqe.first);
    for block in wqe.further() {
        position = position.wrapping_add(1);
        ring.write(position, &block);
    }
    Some(position.wrapping_add(1))
}

/// Writes a NOP over the rest of the ring.
#[cold]
fn fill_up(ring: &WqeRing, producer: u32, blocks: u32) {
    let nop = SqWqe {
        opcode: Opcode::NOP.0,
        #[expect(clippy::cast_possible_truncation, reason = "less than 4 blocks")]
        blocks: blocks as u8,
        wr_id: FILLER,
        ..SqWqe::default()
    };
    ring.write(producer, &zerocopy::transmute!(nop));
    for further in 1..blocks {
        ring.write(producer.wrapping_add(further), &[0; 8]);
    }
}

#[cfg(test)]
#[expect(unsafe_code, reason = "views a ring over a boxed array")]
mod tests {
    use core::ptr::NonNull;

    use ring_proto::index::Depth;
    use ring_proto::wqe::SgeBlock;

    use super::*;

    fn wr(payload: Payload<'_>) -> SendWr<'_> {
        SendWr {
            wr_id: 7,
            opcode: Opcode::SEND,
            flags: WqeFlags::SIGNALED,
            imm: 0,
            payload,
            remote_addr: 0x1122_3344_5566_7788,
            rkey: 0x99aa_bbcc,
        }
    }

    fn ring(memory: &mut [u64; 64]) -> WqeRing {
        // SAFETY: aligned, large enough for 8 blocks, and used through the ring only while it lives.
        unsafe { WqeRing::new(NonNull::from(memory).cast(), Depth::new(8).unwrap()) }
    }

    #[test]
    fn elements_and_inline_bytes_stand_where_the_layout_says() {
        let sges: Vec<Sge> = (1..=3)
            .map(|i| Sge {
                addr: u64::from(i),
                len: i,
                lkey: 9,
            })
            .collect();
        let wqe = Encoded::new(&wr(Payload::Sges(&sges))).unwrap();
        let head: SqWqe = zerocopy::transmute!(wqe.first);
        let expected = SqWqe {
            opcode: Opcode::SEND.0,
            flags: WqeFlags::SIGNALED.bits(),
            blocks: 2,
            count: 3,
            imm: 0,
            wr_id: 7,
            remote_addr: 0x1122_3344_5566_7788,
            rkey: 0x99aa_bbcc,
            total: 6,
            sges: [sges[0], sges[1]],
        };
        assert_eq!(head, expected);
        let [further] = wqe.further().collect::<Vec<_>>()[..] else {
            panic!("one block more");
        };
        let further: SgeBlock = zerocopy::transmute!(further);
        let none = Sge::default();
        assert_eq!(further.sges, [sges[2], none, none, none]);
        for len in [0, 1, 31, 32, 33, 95, 96, 97, 224] {
            let bytes: Vec<u8> = (1..=len).collect();
            let wqe = Encoded::new(&wr(Payload::Inline(&bytes))).unwrap();
            let head: SqWqe = zerocopy::transmute!(wqe.first);
            assert_eq!((head.count, head.total), (len, len.into()));
            assert_eq!(head.flags, (WqeFlags::SIGNALED | WqeFlags::INLINE).bits());
            let mut seen = wqe.first[4..].to_vec();
            assert_eq!(wqe.further().count() + 1, usize::from(wqe.blocks));
            seen.extend(wqe.further().flatten());
            let (data, padding) = seen.as_bytes().split_at(len.into());
            assert_eq!(data, &bytes[..]);
            assert!(padding.iter().all(|&byte| byte == 0));
            assert!(padding.len() < 64);
        }
    }

    #[test]
    fn too_much_of_anything_is_refused() {
        fn refused(payload: Payload<'_>) -> PostError {
            Encoded::new(&wr(payload)).unwrap_err()
        }
        let long = Sge {
            addr: 0,
            len: u32::MAX,
            lkey: 0,
        };
        assert_eq!(
            refused(Payload::Inline(&[0; 225])),
            PostError::InlineTooLong {
                len: 225,
                limit: 224
            }
        );
        let fifteen = [Sge::default(); 15];
        let two = [long, long];
        assert_eq!(
            refused(Payload::Sges(&fifteen)),
            PostError::TooManySges {
                count: 15,
                limit: 14
            }
        );
        assert_eq!(refused(Payload::Sges(&two)), PostError::TooLong);
    }

    #[test]
    fn a_wqe_that_would_wrap_is_moved_behind_a_filler() {
        let mut memory = [0; 64];
        let ring = ring(&mut memory);
        let long = Encoded::new(&wr(Payload::Inline(&[1; 150]))).unwrap();
        assert_eq!(long.blocks, 3);
        let start = u32::MAX - 1; // Place 6 of 8.
        assert_eq!(put(&ring, start, start, &long), Some(3));
        let nop: SqWqe = zerocopy::transmute!(ring.snapshot(start));
        assert_eq!((nop.opcode, nop.blocks, nop.wr_id), (0, 2, FILLER));
        let moved: SqWqe = zerocopy::transmute!(ring.snapshot(0));
        assert_eq!((moved.opcode, moved.blocks), (Opcode::SEND.0, 3));
        // Two blocks of filler and three of WQE are in use: three more fit, four do not.
        assert_eq!(put(&ring, 3, start, &long), Some(6));
        assert_eq!(put(&ring, 6, start, &long), None);
    }
}
