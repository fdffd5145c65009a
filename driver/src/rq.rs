//! Receive queue: where the next messages go.
//!
//! Place: `verbs` and `provider::data` -> here -> doorbell (`Function::ring_receives`) -> NIC.
//! Invariants: as for the send queue, with WQEs of one block.
//! Hot: everything here. Source: verbs receive queue; layout docs/device.md, "Work queue elements".

use ring_proto::shared::WqeRing;
use ring_proto::wqe::{MAX_RECV_SGES, RqWqe, Sge};

use crate::error::PostError;

/// Puts a receive behind `producer`; returns the new producer.
#[inline]
pub(crate) fn put(
    ring: &WqeRing,
    producer: u32,
    consumer: u32,
    wr_id: u64,
    sges: &[Sge],
) -> Result<u32, PostError> {
    let count = u8::try_from(sges.len())
        .ok()
        .filter(|&count| count <= MAX_RECV_SGES)
        .ok_or(PostError::TooManySges {
            count: sges.len(),
            limit: MAX_RECV_SGES.into(),
        })?;
    if ring.depth().free(producer, consumer) == 0 {
        return Err(PostError::QueueFull);
    }
    let mut wqe = RqWqe {
        wr_id,
        count,
        ..RqWqe::default()
    };
    wqe.sges[..sges.len()].copy_from_slice(sges);
    ring.write(producer, &zerocopy::transmute!(wqe));
    Ok(producer.wrapping_add(1))
}

#[cfg(test)]
#[expect(unsafe_code, reason = "views a ring over a boxed array")]
mod tests {
    use core::ptr::NonNull;

    use ring_proto::index::Depth;

    use super::*;

    #[test]
    fn a_receive_is_written_at_its_place_until_the_ring_is_full() {
        let mut memory = [0_u64; 16];
        // SAFETY: aligned, large enough for 2 WQEs, and used through the ring only while it lives.
        let ring =
            unsafe { WqeRing::new(NonNull::from(&mut memory).cast(), Depth::new(2).unwrap()) };
        let sge = Sge {
            addr: 1,
            len: 2,
            lkey: 3,
        };
        let start = u32::MAX;
        assert_eq!(put(&ring, start, start, 5, &[sge]), Ok(0));
        assert_eq!(put(&ring, 0, start, 6, &[]), Ok(1));
        assert_eq!(put(&ring, 1, start, 7, &[]), Err(PostError::QueueFull));
        let wqe: RqWqe = zerocopy::transmute!(ring.snapshot(start));
        assert_eq!((wqe.wr_id, wqe.count, wqe.sges[0]), (5, 1, sge));
        let four = [sge; 4];
        assert_eq!(
            put(&ring, start, start, 5, &four),
            Err(PostError::TooManySges { count: 4, limit: 3 })
        );
    }
}
