//! Atomic operations and invalidation as work requests.
//!
//! Place: programs and tests -> here -> the QP's send queue. Invariants: as for every WQE; one block each.
//! Hot: [`Qp::post_atomic`]. Source: verbs `IBV_WR_ATOMIC_*`, `IBV_WR_LOCAL_INV`; layout docs/device.md, `AtomicWqe`.

use ring_proto::ids::Rkey;
use ring_proto::status::Opcode;
use ring_proto::sync::Ordering;
use ring_proto::wqe::{AtomicWqe, Sge, SqWqe, WqeFlags};

use super::Qp;
use crate::error::PostError;
use crate::sq::{self, Encoded};

/// An atomic work request on 8 bytes of the peer's memory.
#[derive(Clone, Copy, Debug)]
pub struct AtomicWr {
    /// Echoed in the completion. `u64::MAX` is taken.
    pub wr_id: u64,
    /// ATOMIC_CMP_AND_SWP or ATOMIC_FETCH_AND_ADD.
    pub opcode: Opcode,
    /// SIGNALED, FENCE.
    pub flags: WqeFlags,
    /// Where the original value goes: 8 bytes that may be written.
    pub original: Sge,
    /// IOVA in the peer's function, a multiple of 8.
    pub remote_addr: u64,
    /// Key of the peer's region or memory window.
    pub rkey: u32,
    /// What to compare with, or what to add.
    pub compare_add: u64,
    /// What replaces an equal value; 0 for ATOMIC_FETCH_AND_ADD.
    pub swap: u64,
}

impl Qp {
    /// Writes an atomic; the NIC sees it after [`Qp::ring`].
    ///
    /// # Errors
    /// [`PostError::QueueFull`] until completions are polled. All else the NIC checks, and tells by the completion.
    #[inline]
    pub fn post_atomic(&mut self, wr: &AtomicWr) -> Result<(), PostError> {
        let wqe = AtomicWqe {
            opcode: wr.opcode.0,
            flags: wr.flags.bits(),
            blocks: 1,
            count: 1,
            reserved: 0,
            wr_id: wr.wr_id,
            remote_addr: wr.remote_addr,
            rkey: wr.rkey,
            total: wr.original.len,
            sge: wr.original,
            compare_add: wr.compare_add,
            swap: wr.swap,
        };
        self.post_block(zerocopy::transmute!(wqe))
    }

    /// Writes a LOCAL_INV, which ends a type 2 window's binding or a region; the NIC sees it after [`Qp::ring`].
    ///
    /// # Errors
    /// As [`Qp::post_atomic`].
    pub fn post_local_inv(
        &mut self,
        wr_id: u64,
        flags: WqeFlags,
        key: Rkey,
    ) -> Result<(), PostError> {
        let wqe = SqWqe {
            opcode: Opcode::LOCAL_INV.0,
            flags: flags.bits(),
            blocks: 1,
            imm: key.0,
            wr_id,
            ..SqWqe::default()
        };
        self.post_block(zerocopy::transmute!(wqe))
    }

    /// Writes a WQE of one block.
    #[inline]
    pub(super) fn post_block(&mut self, block: [u64; 8]) -> Result<(), PostError> {
        // EDGE wqe-reclaim (acquire): pairs with `Cq::poll`.
        let consumer = self.positions.sq_consumer.load(Ordering::Acquire);
        let wqe = Encoded::of_block(block);
        self.sq_producer =
            sq::put(&self.sq, self.sq_producer, consumer, &wqe).ok_or(PostError::QueueFull)?;
        Ok(())
    }
}
