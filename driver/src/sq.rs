//! Send queue: encodes work requests into WQE blocks and puts them into a ring.
//!
//! Place: `verbs` and `provider::data` -> here -> doorbell (`Function::ring_sends`) -> NIC.
//! Invariants: producer - consumer <= depth; blocks in [consumer, producer) belong to the NIC, the others to the owner of the queue;
//! a WQE never wraps, a NOP fills up to the end of the ring. Positions are kept by the caller: privately (`verbs`) or in the arena
//! (`provider`), and never read back from the ring.
//! Hot: everything here. Source: verbs send queue; layout docs/device.md, "Work queue elements".

use ring_proto::shared::WqeRing;
use ring_proto::status::Opcode;
use ring_proto::wqe::{self, Sge, SqWqe, WqeFlags};
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

/// A WQE of one to four blocks, ready to be put into a ring.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Encoded {
    words: [u64; 32],
    blocks: u8,
}

impl Encoded {
    /// Encodes a work request.
    #[inline]
    pub(crate) fn new(wr: &SendWr<'_>) -> Result<Self, PostError> {
        let mut head = SqWqe {
            opcode: wr.opcode.0,
            flags: wr.flags.bits(),
            imm: wr.imm,
            wr_id: wr.wr_id,
            remote_addr: wr.remote_addr,
            rkey: wr.rkey,
            ..SqWqe::default()
        };
        let mut words = [0_u64; 32];
        let room = &mut words.as_mut_bytes()[32..];
        match wr.payload {
            Payload::Sges(sges) => {
                let count = u8::try_from(sges.len())
                    .ok()
                    .filter(|&count| count <= wqe::MAX_SGES)
                    .ok_or(PostError::TooManySges {
                        count: sges.len(),
                        limit: wqe::MAX_SGES.into(),
                    })?;
                let total = sges
                    .iter()
                    .try_fold(0_u32, |sum, sge| sum.checked_add(sge.len));
                head.total = total.ok_or(PostError::TooLong)?;
                head.count = count;
                head.blocks = wqe::blocks_for_sges(count);
                room[..size_of_val(sges)].copy_from_slice(sges.as_bytes());
            }
            Payload::Inline(bytes) => {
                let count = u8::try_from(bytes.len())
                    .ok()
                    .filter(|&count| count <= wqe::MAX_INLINE)
                    .ok_or(PostError::InlineTooLong {
                        len: bytes.len(),
                        limit: wqe::MAX_INLINE.into(),
                    })?;
                head.flags |= WqeFlags::INLINE.bits();
                head.total = count.into();
                head.count = count;
                head.blocks = wqe::blocks_for_inline(count);
                room[..bytes.len()].copy_from_slice(bytes);
            }
        }
        words.as_mut_bytes()[..32].copy_from_slice(&head.as_bytes()[..32]);
        // The first two elements overlap the head's own; bytes 32.. are in place already.
        Ok(Self {
            words,
            blocks: head.blocks,
        })
    }
}

impl Encoded {
    /// A WQE of one block that was laid out as a whole.
    pub(crate) fn of_block(block: [u64; 8]) -> Self {
        let mut words = [0_u64; 32];
        words[..8].copy_from_slice(&block);
        Self { words, blocks: 1 }
    }
}

/// Puts a WQE behind `producer`; returns the new producer, or `None` when the ring is full.
#[inline]
pub(crate) fn put(ring: &WqeRing, producer: u32, consumer: u32, wqe: &Encoded) -> Option<u32> {
    let depth = ring.depth();
    let blocks = u32::from(wqe.blocks);
    let until_end = depth.until_end(producer);
    let filler = if until_end < blocks { until_end } else { 0 };
    if depth.free(producer, consumer) < filler + blocks {
        return None;
    }
    let mut position = producer;
    if filler > 0 {
        let nop = SqWqe {
            opcode: Opcode::NOP.0,
            #[expect(clippy::cast_possible_truncation, reason = "less than 4 blocks")]
            blocks: filler as u8,
            wr_id: FILLER,
            ..SqWqe::default()
        };
        ring.write(position, &zerocopy::transmute!(nop));
        for further in 1..filler {
            ring.write(position.wrapping_add(further), &[0; 8]);
        }
        position = position.wrapping_add(filler);
    }
    for (index, block) in (0..blocks).zip(wqe.words.chunks_exact(8)) {
        let block: &[u64; 8] = block.try_into().expect("chunks of 8");
        ring.write(position.wrapping_add(index), block);
    }
    Some(position.wrapping_add(blocks))
}

#[cfg(test)]
#[expect(unsafe_code, reason = "views a ring over a boxed array")]
mod tests {
    use core::ptr::NonNull;

    use ring_proto::index::Depth;
    use zerocopy::FromBytes;

    use super::*;

    fn wr(payload: Payload<'_>) -> SendWr<'_> {
        SendWr {
            wr_id: 7,
            opcode: Opcode::SEND,
            flags: WqeFlags::SIGNALED,
            imm: 0,
            payload,
            remote_addr: 0,
            rkey: 0,
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
        let head = SqWqe::read_from_bytes(&wqe.words.as_bytes()[..64]).unwrap();
        assert_eq!((head.count, head.blocks, head.total), (3, 2, 6));
        assert_eq!(head.sges, [sges[0], sges[1]]);
        assert_eq!(
            Sge::read_from_bytes(&wqe.words.as_bytes()[64..80]).unwrap(),
            sges[2]
        );
        let bytes: Vec<u8> = (0..224).collect();
        let wqe = Encoded::new(&wr(Payload::Inline(&bytes))).unwrap();
        assert_eq!(wqe.blocks, 4);
        assert_eq!(&wqe.words.as_bytes()[32..], &bytes[..]);
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
