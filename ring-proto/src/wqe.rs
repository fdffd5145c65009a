//! Work queue elements: what a client writes into SQ and RQ.
//!
//! Place: driver fills [`SqWqe`] blocks in its arena, rings the doorbell; the engine snapshots each block once and checks the copy.
//! Invariants: an SQ WQE is 1..4 blocks of 64 B and never wraps (NOP fills up to the end); reserved fields are 0.
//! Source: verbs work requests; layout ours (docs/device.md, section "Work queue elements").

use core::mem::{offset_of, size_of};

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of one SQ block and of one RQ WQE.
pub const BLOCK: usize = 64;
/// Most blocks of one SQ WQE.
pub const MAX_BLOCKS: u8 = 4;
/// SGEs in the first block.
pub const FIRST_SGES: u8 = 2;
/// SGEs in each further block.
pub const BLOCK_SGES: u8 = 4;
/// Most SGEs of one SQ WQE.
pub const MAX_SGES: u8 = 14;
/// Most SGEs of one RQ WQE.
pub const MAX_RECV_SGES: u8 = 3;
/// Most bytes of inline data.
pub const MAX_INLINE: u8 = 224;

bitflags! {
    /// Flags of an SQ WQE.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct WqeFlags: u8 {
        /// Write a CQE also on success.
        const SIGNALED = 1;
        /// The receive's CQE fires solicited arms.
        const SOLICITED = 2;
        /// Wait until all earlier RDMA READs of this QP are complete.
        const FENCE = 4;
        /// Payload lies in the WQE.
        const INLINE = 8;
    }
}

/// Scatter/gather element: `len` bytes at IOVA `addr` inside the region of `lkey`.
#[repr(C)]
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Sge {
    /// IOVA of the first byte.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// Key of the region.
    pub lkey: u32,
}

/// First block of an SQ WQE. With INLINE the bytes follow where the SGEs would stand, through all further blocks.
#[repr(C)]
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct SqWqe {
    /// [`crate::status::Opcode`].
    pub opcode: u8,
    /// [`WqeFlags`].
    pub flags: u8,
    /// Blocks of 64 B, 1..=4.
    pub blocks: u8,
    /// SGEs, or bytes with INLINE.
    pub count: u8,
    /// Immediate data, or the key to invalidate.
    pub imm: u32,
    /// Echoed in the CQE.
    pub wr_id: u64,
    /// RDMA: IOVA in the responder's function.
    pub remote_addr: u64,
    /// RDMA: key of the responder's region.
    pub rkey: u32,
    /// Sum of all SGE lengths, or the inline length.
    pub total: u32,
    /// First two SGEs, or the first 32 inline bytes.
    pub sges: [Sge; 2],
}

/// Further block of an SQ WQE.
#[repr(C)]
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct SgeBlock {
    /// Four SGEs, or 64 inline bytes.
    pub sges: [Sge; 4],
}

/// SQ WQE of an atomic operation: one block, one SGE of 8 bytes, the operands in place of the second.
#[repr(C)]
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct AtomicWqe {
    /// [`crate::status::Opcode`]: ATOMIC_CMP_AND_SWP or ATOMIC_FETCH_AND_ADD.
    pub opcode: u8,
    /// [`WqeFlags`]; no INLINE.
    pub flags: u8,
    /// 1.
    pub blocks: u8,
    /// 1.
    pub count: u8,
    /// Zero.
    pub reserved: u32,
    /// Echoed in the CQE.
    pub wr_id: u64,
    /// IOVA in the responder's function, a multiple of 8.
    pub remote_addr: u64,
    /// Key of the responder's memory.
    pub rkey: u32,
    /// 8.
    pub total: u32,
    /// Where the original 8 bytes go.
    pub sge: Sge,
    /// What to compare with, or what to add.
    pub compare_add: u64,
    /// What replaces equal bytes; zero for ATOMIC_FETCH_AND_ADD.
    pub swap: u64,
}

/// SQ WQE of BIND_MW: one block.
#[repr(C)]
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct BindWqe {
    /// [`crate::status::Opcode`]: BIND_MW.
    pub opcode: u8,
    /// [`WqeFlags`]; no INLINE.
    pub flags: u8,
    /// 1.
    pub blocks: u8,
    /// Zero.
    pub count: u8,
    /// Key of the window from now on: the index of `rkey` with another tag.
    pub new_rkey: u32,
    /// Echoed in the CQE.
    pub wr_id: u64,
    /// IOVA of the first byte.
    pub addr: u64,
    /// Present key of the window.
    pub rkey: u32,
    /// Zero.
    pub total: u32,
    /// Bytes.
    pub len: u64,
    /// Region, which must allow MW_BIND.
    pub lkey: u32,
    /// [`crate::admin::Access`] bits: remote ones.
    pub access: u32,
    /// Zero.
    pub reserved: [u64; 2],
}

/// RQ WQE: where the next message goes.
#[repr(C)]
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct RqWqe {
    /// Echoed in the CQE.
    pub wr_id: u64,
    /// SGEs in use, 0..=3.
    pub count: u8,
    /// Zero.
    pub reserved: [u8; 7],
    /// Where the bytes go, in order.
    pub sges: [Sge; 3],
}

const _: () = {
    assert!(size_of::<Sge>() == 16);
    assert!(size_of::<SqWqe>() == BLOCK);
    assert!(size_of::<SgeBlock>() == BLOCK);
    assert!(size_of::<BindWqe>() == BLOCK && offset_of!(BindWqe, len) == 32);
    assert!(size_of::<AtomicWqe>() == BLOCK && offset_of!(AtomicWqe, sge) == 32);
    assert!(size_of::<RqWqe>() == BLOCK && offset_of!(RqWqe, count) == 8);
};

/// Blocks that `count` SGEs need.
#[must_use]
pub const fn blocks_for_sges(count: u8) -> u8 {
    1 + count.saturating_sub(FIRST_SGES).div_ceil(BLOCK_SGES)
}

/// Blocks that `len` inline bytes need.
#[must_use]
pub const fn blocks_for_inline(len: u8) -> u8 {
    1 + len.saturating_sub(32).div_ceil(64)
}
