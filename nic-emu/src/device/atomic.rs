//! Atomic operations: a read-modify-write of 8 bytes of the peer's memory, and the original value back.
//!
//! Place: `transfer` hands the WQE in after the local SGE and the peer were checked.
//! Invariants: every key, right and the alignment of both ends was checked before the word is touched; the word is changed by one
//! instruction of the processor, so programs that map the memory see all of it or nothing. No reference to the memory outlives the call.
//! Source: verbs `IBV_WR_ATOMIC_*`, with `IBV_ATOMIC_GLOB`; IBA vol. 1, chapter 9 (responder errors). Hot: everything here.
#![expect(
    unsafe_code,
    reason = "changes a checked word of a client mapping, and writes a checked buffer"
)]

use std::ptr::NonNull;

use ring_proto::admin::Access;
use ring_proto::status::{Opcode, Syndrome, WcStatus};
use ring_proto::sync::Ordering;
use ring_proto::{copy, shared};

use super::Device;
use super::qp::QpRef;
use super::queue::{ATOMIC_LEN, SendWork};
use super::transfer::Straight;

impl Device {
    /// Executes an atomic; `local` is the checked place of its one SGE. Returns the bytes moved.
    #[inline(never)]
    pub(crate) fn atomic(
        &mut self,
        peer: QpRef,
        work: &SendWork,
        local: Straight,
    ) -> Result<u32, (WcStatus, Syndrome)> {
        let internal = (WcStatus::GENERAL_ERR, Syndrome::INTERNAL_ERROR);
        let local = local.ok_or(internal)?;
        let word = match self.atomic_target(peer, work) {
            Ok(word) => word,
            Err((status, syndrome)) => {
                self.access_fault(peer, syndrome);
                return Err((status, syndrome));
            }
        };
        let (compare_add, swap) = work.operands();
        // SAFETY: 1. `atomic_target` proved 8 bytes inside a region whose mapping is there and, with REMOTE_ATOMIC, writable; the IOVA
        //         is a multiple of 8 and mappings keep offsets within a page, so the place is aligned. Nothing unmaps within the call.
        //         2. Window memory has no references but atomics.
        let word = unsafe { shared::word(word) };
        let original = if work.opcode() == Opcode::ATOMIC_FETCH_AND_ADD {
            // AcqRel: what the peer's program publishes with the word travels with it, both ways.
            word.fetch_add(compare_add, Ordering::AcqRel)
        } else {
            match word.compare_exchange(compare_add, swap, Ordering::AcqRel, Ordering::Acquire) {
                Ok(original) | Err(original) => original,
            }
        };
        let original = original.to_le_bytes();
        // SAFETY: 1. `Regions::local` proved the 8 bytes of the SGE inside a writable region whose mapping is there; the source is ours.
        //         2. Private memory and a mapping do not overlap. 3. No reference covers window memory; the source is private.
        unsafe { copy::copy(local, original.as_ptr(), original.len()) };
        Ok(ATOMIC_LEN)
    }

    /// The word that an atomic changes, when the responder allows it.
    fn atomic_target(
        &self,
        peer: QpRef,
        work: &SendWork,
    ) -> Result<NonNull<u64>, (WcStatus, Syndrome)> {
        let internal = (WcStatus::GENERAL_ERR, Syndrome::INTERNAL_ERROR);
        let (other, peer_qp) = self.end(peer).ok_or(internal)?;
        if !peer_qp.access.contains(Access::REMOTE_ATOMIC) {
            return Err((WcStatus::REM_INV_REQ_ERR, Syndrome::QP_NO_ACCESS));
        }
        if !work.remote_addr().is_multiple_of(ATOMIC_LEN.into()) {
            return Err((WcStatus::REM_INV_REQ_ERR, Syndrome::ATOMIC_MISALIGNED));
        }
        let place = other
            .regions
            .remote(
                work.rkey(),
                work.remote_addr(),
                ATOMIC_LEN.into(),
                peer_qp.pdn,
                peer.qpn,
                Access::REMOTE_ATOMIC,
            )
            .map_err(|syndrome| (WcStatus::REM_ACCESS_ERR, syndrome))?;
        NonNull::new(place.cast()).ok_or(internal)
    }
}
