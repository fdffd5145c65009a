//! Completion queue: what the NIC says about finished WQEs.
//!
//! Place: NIC -> CQE ring -> here -> `verbs` and `provider::data`.
//! Invariants: an entry is copied once, after its publish word was acquired; the position is kept by the caller.
//! Hot: everything here. Edges: `cqe-publish`. Source: `struct ibv_wc`; layout docs/device.md, "Completion queue elements".

use ring_proto::cqe::{CQE_IMM, CQE_INV, Cqe, Publish};
use ring_proto::ids::{Qpn, Rkey};
use ring_proto::shared::CqeRing;
use ring_proto::status::{Syndrome, WcOpcode, WcStatus};

/// Work completion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wc {
    /// From the work request.
    pub wr_id: u64,
    /// How it ended.
    pub status: WcStatus,
    /// The exact check that failed.
    pub syndrome: Syndrome,
    /// What completed; without meaning when the status is an error.
    pub opcode: WcOpcode,
    /// Bytes of the message or operation.
    pub byte_len: u32,
    /// Immediate data, when some came.
    pub imm: Option<u32>,
    /// Our key that the message invalidated, when it did.
    pub invalidated: Option<Rkey>,
    /// QP it belongs to.
    pub qpn: Qpn,
    /// Position of the SQ or RQ behind the completed WQE.
    pub wqe_counter: u32,
}

impl Wc {
    /// Whether it belongs to the receive queue.
    #[must_use]
    pub const fn is_receive(&self) -> bool {
        self.opcode.0 & 0x80 != 0
    }
}

/// The entry at `consumer`, when there is one.
#[inline(always)] // as `Cq::poll`
pub(crate) fn peek(ring: &CqeRing, consumer: u32) -> Option<Wc> {
    let cqe = Cqe::of_words(ring.published(consumer)?);
    let publish = Publish::unpack(cqe.publish);
    let [a, b, c, opcode] = cqe.qpn_opcode.to_le_bytes();
    Some(Wc {
        wr_id: cqe.wr_id,
        status: publish.status,
        syndrome: publish.syndrome,
        opcode: WcOpcode(opcode),
        byte_len: cqe.byte_len,
        imm: (cqe.src_qpn_flags & CQE_IMM != 0).then_some(cqe.imm),
        invalidated: (cqe.src_qpn_flags & CQE_INV != 0).then_some(Rkey(cqe.imm)),
        qpn: Qpn(u32::from_le_bytes([a, b, c, 0])),
        wqe_counter: publish.wqe_counter,
    })
}

#[cfg(test)]
#[expect(unsafe_code, reason = "views a ring over a boxed array")]
mod tests {
    use core::ptr::NonNull;

    use ring_proto::index::Depth;

    use super::*;

    #[test]
    fn an_entry_is_seen_once_its_phase_is_that_of_the_lap() {
        let mut memory = [0_u64; 8];
        // SAFETY: aligned, large enough for 2 CQEs, and used through the ring only while it lives.
        let ring =
            unsafe { CqeRing::new(NonNull::from(&mut memory).cast(), Depth::new(2).unwrap()) };
        assert_eq!(peek(&ring, 0), None);
        let publish = Publish {
            wqe_counter: 4,
            status: WcStatus::REM_ACCESS_ERR,
            syndrome: Syndrome::RKEY_UNKNOWN,
            phase: 1,
        };
        let cqe = Cqe {
            wr_id: 3,
            byte_len: 5,
            imm: 6,
            qpn_opcode: 0x81_00_12_34,
            src_qpn_flags: CQE_IMM | 9,
            publish: publish.pack(),
        };
        ring.publish(0, &zerocopy::transmute!(cqe));
        let wc = peek(&ring, 0).unwrap();
        assert_eq!(
            (wc.wr_id, wc.byte_len, wc.imm, wc.qpn),
            (3, 5, Some(6), Qpn(0x1234))
        );
        assert_eq!((wc.status, wc.wqe_counter), (WcStatus::REM_ACCESS_ERR, 4));
        assert!(wc.is_receive());
        assert_eq!(peek(&ring, 2), None);
    }
}
