//! BAR2: the summary pages and the user access regions (UARs) with their doorbell lines.
//!
//! Place: clients write doorbell lines and dirty bits, the device reads them; the device writes `parked`, modes and holder generations.
//! Invariants: the memory is the NIC's own memfd; the device never reads back a word that only it writes, and a client never
//! writes one. Every line of 64 B has writers on one side only, except the dirty words, which both change by read-modify-write.
//! Source: ours (docs/device.md, section "Doorbells").
//!
//! ```text
//! 0x0000 summary page   dirty UARs, parked, generation
//! 0x1000 holder page(s) live generation of each holder slot (16 KiB)
//! 0x8000 UAR 0          +0x0000 dirty slots, state, QP modes   +0x1000 64 doorbell lines
//! 0xa000 UAR 1          ...
//! ```

use core::mem::{offset_of, size_of};

/// Most UARs of a function.
pub const UARS: u32 = 512;
/// Doorbell lines of a UAR.
pub const LINES: u32 = 64;
/// Doorbell slots of a function.
pub const SLOTS: u32 = UARS * LINES;
/// Offset of UAR 0.
pub const UAR_BASE: u64 = 0x8000;
/// Bytes of a UAR.
pub const UAR_LEN: u64 = 0x2000;
/// Offset of the doorbell lines inside a UAR.
pub const LINES_OFFSET: u64 = 0x1000;
/// Offset of the table of live holder generations.
pub const HOLDERS_BASE: u64 = 0x1000;
/// Holder slots whose generation is published.
pub const HOLDERS: u32 = 4096;
/// Bytes of BAR2: a power of two, as PCI wants it.
pub const BAR2_LEN: u64 = 8 << 20;

/// Slot whose doorbell line belongs to the admin queue.
pub const ADMIN_SLOT: u32 = 0;

/// Summary page, at the start of BAR2.
#[repr(C)]
#[derive(Debug)]
pub struct Summary {
    /// One bit per UAR that has a dirty slot. Client sets, NIC swaps to 0.
    pub dirty: [u64; 8],
    /// NIC: not 0 while it sleeps or is about to; a client that sees it kicks, once for each number above 1.
    pub parked: u32,
    /// NIC: reset generation of the function.
    pub generation: u32,
    /// NIC: 1 once the function is FAILED or its fabric is going away.
    pub failed: u32,
    /// NIC: a bit for each [`crate::admin::ProviderCall`] that may have to fail, to be asked by CALL_FAULT.
    pub call_faults: u32,
    /// NIC: directions of links from and to the function's node that are cut.
    pub link_cuts: u32,
    /// Zero.
    pub reserved: [u32; 11],
}

/// First page of a UAR.
#[repr(C)]
#[derive(Debug)]
pub struct UarHead {
    /// One bit per doorbell line with news. Client sets, NIC swaps to 0.
    pub dirty: u64,
    /// Zero.
    pub reserved: [u64; 31],
    /// NIC: transfer mode of the QP in each slot, see `MODE_*`.
    pub mode: [u32; 64],
}

/// One doorbell line. The client writes all of it, but swaps of the two sets of vectors by the NIC.
#[repr(C)]
#[derive(Debug)]
pub struct DoorbellLine {
    /// Producer of the SQ, in 64 B blocks.
    pub sq_producer: u32,
    /// Producer of the RQ, in WQEs.
    pub rq_producer: u32,
    /// Consumer of the CQ or EQ, in elements.
    pub cq_consumer: u32,
    /// Producer of the SRQ, in WQEs.
    pub srq_producer: u32,
    /// Vectors to fire at the next completion or event. Armers `fetch_or`, the NIC swaps to 0.
    pub arm_vectors: u64,
    /// Consumer position at the latest arm.
    pub arm_sequence: u32,
    /// Zero.
    pub spare: u32,
    /// SRQ limit in bits 0..24, and in bits 24..32 a number: the NIC arms the limit when the word changes.
    pub srq_limit: u32,
    /// Zero.
    pub reserved: [u32; 5],
    /// Vectors to fire at the next solicited completion or error only. As `arm_vectors`.
    pub arm_solicited: u64,
}

/// Bits of `srq_limit` that are the limit.
pub const SRQ_LIMIT_MASK: u32 = 0xff_ffff;

/// Mode of a QP: the NIC copies payload into posted receives.
pub const MODE_COPY: u32 = 0;
/// Mode of a QP: descriptors may stand for payload in a granted window.
pub const MODE_WINDOW: u32 = 1;

const _: () = {
    assert!(size_of::<Summary>() == 128 && offset_of!(Summary, parked) == 64);
    assert!(size_of::<UarHead>() == 512 && offset_of!(UarHead, mode) == 256);
    assert!(size_of::<DoorbellLine>() == 64 && offset_of!(DoorbellLine, arm_vectors) == 16);
    assert!(offset_of!(DoorbellLine, arm_solicited) == 56);
    assert!(UAR_BASE + UAR_LEN * UARS as u64 <= BAR2_LEN);
    assert!(HOLDERS_BASE + HOLDERS as u64 * 4 <= UAR_BASE);
};

/// Offset of the head of the UAR that holds `slot`.
#[must_use]
pub const fn uar_offset(slot: u32) -> u64 {
    UAR_BASE + UAR_LEN * (slot / LINES) as u64
}

/// Offset of the doorbell line of `slot`.
#[must_use]
pub const fn line_offset(slot: u32) -> u64 {
    uar_offset(slot) + LINES_OFFSET + 64 * (slot % LINES) as u64
}
