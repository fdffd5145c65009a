//! Completion queue elements.
//!
//! Place: the engine writes them into the client's CQ ring, the driver polls the publish word.
//! Invariants: the first 24 bytes are written before the publish word, which is one aligned u64 stored with Release; the phase byte of
//! zeroed memory is never valid; the NIC never reads a CQE back.
//! Hot: [`Publish`]. Edges: `cqe-publish`. Source: `struct ibv_wc`; layout ours (docs/device.md, section "Completion queue elements").

use core::mem::{offset_of, size_of};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::status::{Syndrome, WcStatus};

/// Completion queue element.
#[repr(C)]
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Cqe {
    /// From the WQE.
    pub wr_id: u64,
    /// Bytes of the message (receives) or of the operation.
    pub byte_len: u32,
    /// Immediate data, or the key that was invalidated.
    pub imm: u32,
    /// QPN in bits 0..24, [`crate::status::WcOpcode`] in bits 24..32.
    pub qpn_opcode: u32,
    /// QPN of the sender in bits 0..24 (receives), [`CQE_IMM`] and other flags in bits 24..32.
    pub src_qpn_flags: u32,
    /// [`Publish`].
    pub publish: u64,
}

impl Cqe {
    /// The element as the words of a ring.
    #[inline]
    #[must_use]
    pub const fn words(self) -> [u64; 4] {
        [
            self.wr_id,
            self.byte_len as u64 | (self.imm as u64) << 32,
            self.qpn_opcode as u64 | (self.src_qpn_flags as u64) << 32,
            self.publish,
        ]
    }

    /// The element in the words of a ring.
    #[inline]
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the lower halves of words are meant"
    )]
    pub const fn of_words([wr_id, lens, names, publish]: [u64; 4]) -> Self {
        Self {
            wr_id,
            byte_len: lens as u32,
            imm: (lens >> 32) as u32,
            qpn_opcode: names as u32,
            src_qpn_flags: (names >> 32) as u32,
            publish,
        }
    }
}

/// Flag of `src_qpn_flags`: `imm` is valid.
pub const CQE_IMM: u32 = 1 << 24;
/// Flag of `src_qpn_flags`: the sender asked for a solicited event.
pub const CQE_SOLICITED: u32 = 1 << 25;
/// Flag of `src_qpn_flags`: `imm` is the key that the message invalidated.
pub const CQE_INV: u32 = 1 << 26;

/// Offset of the publish word in a CQE.
pub const CQE_PUBLISH: usize = offset_of!(Cqe, publish);

const _: () = assert!(size_of::<Cqe>() == 32 && CQE_PUBLISH == 24);

/// The publish word of a CQE: bits 0..32 WQE counter, 32..40 status, 40..56 syndrome, 56..64 phase.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Publish {
    /// SQ or RQ position after the completed WQE: everything before it may be re-used.
    pub wqe_counter: u32,
    /// Verbs status.
    pub status: WcStatus,
    /// The exact check that failed.
    pub syndrome: Syndrome,
    /// Phase of the lap, see [`crate::index::Depth::phase`].
    pub phase: u8,
}

impl Publish {
    /// Packs the word.
    #[must_use]
    pub const fn pack(self) -> u64 {
        self.wqe_counter as u64
            | (self.status.0 as u64) << 32
            | (self.syndrome.0 as u64) << 40
            | (self.phase as u64) << 56
    }

    /// Unpacks the word.
    #[must_use]
    pub const fn unpack(word: u64) -> Self {
        let b = word.to_le_bytes();
        Self {
            wqe_counter: u32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            status: WcStatus(b[4]),
            syndrome: Syndrome(u16::from_le_bytes([b[5], b[6]])),
            phase: b[7],
        }
    }
}

/// Phase byte of a publish word of any element.
#[must_use]
pub const fn phase_of(word: u64) -> u8 {
    word.to_le_bytes()[7]
}

#[cfg(test)]
mod tests {
    use super::Cqe;

    #[test]
    fn words_are_those_of_the_layout() {
        let cqe = Cqe {
            wr_id: 0x0102_0304_0506_0708,
            byte_len: 0x1112_1314,
            imm: 0x2122_2324,
            qpn_opcode: 0x3132_3334,
            src_qpn_flags: 0x4142_4344,
            publish: 0x5152_5354_5556_5758,
        };
        let laid_out: [u64; 4] = zerocopy::transmute!(cqe);
        assert_eq!(cqe.words(), laid_out);
        assert_eq!(Cqe::of_words(laid_out), cqe);
    }
}
