//! Payload between client memory and frames, through the copy routines and checks of message mode.
//!
//! Place: the requester gathers requests and lands READ responses, the responder lands SENDs and WRITEs and reads for READs.
//! Invariants: keys, bounds, rights and protection domains are looked up for every packet; nothing moves before they were.
//! Hot: nothing (packet mode). Source: as `transfer`.

use ring_proto::admin::Access;
use ring_proto::status::{Syndrome, WcStatus};

use crate::device::Device;
use crate::device::qp::QpRef;
use crate::device::queue::{RecvWork, SendWork};
use crate::device::transfer::{Side, check_sges, move_bytes};

/// Why payload could not move: status for the requester, and the check.
type Refused = (WcStatus, Syndrome);

const INTERNAL: Refused = (WcStatus::GENERAL_ERR, Syndrome::INTERNAL_ERROR);

/// A private buffer that holds the bytes of a message from `offset` on.
fn private(buffer: &mut [u8], offset: u32) -> Result<Side<'_>, Refused> {
    let end = u32::try_from(buffer.len())
        .ok()
        .and_then(|len| offset.checked_add(len))
        .ok_or(INTERNAL)?;
    // Only bytes [offset, end) of the message are ever asked for, which are those of the buffer.
    Ok(Side::Flat {
        memory: buffer.as_mut_ptr().wrapping_sub(offset as usize),
        len: end,
    })
}

impl Device {
    /// Whether the requester's own memory is fit for a WQE.
    pub(super) fn check_local(
        &self,
        at: QpRef,
        work: &SendWork,
        write: bool,
    ) -> Result<(), Refused> {
        let (own, qp) = self.end(at).ok_or(INTERNAL)?;
        check_sges(&own.regions, qp.pdn, work.sges(), work.total(), write)
            .map(drop)
            .map_err(|syndrome| (WcStatus::LOC_PROT_ERR, syndrome))
    }

    /// Bytes of a request from the requester's memory.
    pub(super) fn gather(
        &self,
        at: QpRef,
        work: &SendWork,
        offset: u32,
        len: u32,
    ) -> Result<Vec<u8>, Refused> {
        let mut bytes = vec![0; len as usize];
        if len != 0 {
            let source = self.local_side(at, work, None, false).ok_or(INTERNAL)?;
            let target = private(&mut bytes, offset)?;
            move_bytes(&source, &target, offset, offset + len, len)
                .map_err(|syndrome| (WcStatus::LOC_PROT_ERR, syndrome))?;
        }
        Ok(bytes)
    }

    /// Lands bytes of a READ response in the requester's memory.
    pub(super) fn land_response(
        &self,
        at: QpRef,
        work: &SendWork,
        offset: u32,
        bytes: &mut [u8],
    ) -> Result<(), Refused> {
        self.check_local(at, work, true)?;
        let target = self.local_side(at, work, None, true).ok_or(INTERNAL)?;
        land(bytes, offset, &target).map_err(|syndrome| (WcStatus::LOC_PROT_ERR, syndrome))
    }

    /// Lands bytes of a SEND in the receive that is under way at `own`.
    pub(super) fn land_receive(
        &self,
        own: QpRef,
        offset: u32,
        bytes: &mut [u8],
    ) -> Result<(), Syndrome> {
        let (function, qp) = self.end(own).ok_or(Syndrome::INTERNAL_ERROR)?;
        let target = Side::List {
            regions: &function.regions,
            pdn: qp.recv_pdn,
            sges: qp.receiving.as_ref().map_or(&[], RecvWork::sges),
            write: true,
        };
        land(bytes, offset, &target)
    }

    /// The remote range of a request to `own`, checked.
    fn remote_side(
        &self,
        own: QpRef,
        request: &SendWork,
        need: Access,
    ) -> Result<Side<'static>, Refused> {
        let (function, qp) = self.end(own).ok_or(INTERNAL)?;
        if !qp.access.contains(need) {
            return Err((WcStatus::REM_INV_REQ_ERR, Syndrome::QP_NO_ACCESS));
        }
        let (total, key) = (request.total(), request.rkey());
        if total == 0 {
            return match function.regions.remote_key(key, qp.pdn, own.qpn, need) {
                Ok(()) => Ok(Side::Flat {
                    memory: std::ptr::null_mut(),
                    len: 0,
                }),
                Err(syndrome) => Err((WcStatus::REM_ACCESS_ERR, syndrome)),
            };
        }
        let memory = function
            .regions
            .remote(
                key,
                request.remote_addr(),
                total.into(),
                qp.pdn,
                own.qpn,
                need,
            )
            .map_err(|syndrome| (WcStatus::REM_ACCESS_ERR, syndrome))?;
        Ok(Side::Flat { memory, len: total })
    }

    /// Lands bytes of a WRITE.
    pub(super) fn land_write(
        &self,
        own: QpRef,
        request: &SendWork,
        offset: u32,
        bytes: &mut [u8],
    ) -> Result<(), Refused> {
        let target = self.remote_side(own, request, Access::REMOTE_WRITE)?;
        land(bytes, offset, &target).map_err(|syndrome| (WcStatus::REM_ACCESS_ERR, syndrome))
    }

    /// Bytes for a READ response.
    pub(super) fn read_remote(
        &self,
        own: QpRef,
        request: &SendWork,
        offset: u32,
        len: u32,
    ) -> Result<Vec<u8>, Refused> {
        let source = self.remote_side(own, request, Access::REMOTE_READ)?;
        let mut bytes = vec![0; len as usize];
        if len != 0 {
            let target = private(&mut bytes, offset)?;
            move_bytes(&source, &target, offset, offset + len, len)
                .map_err(|syndrome| (WcStatus::REM_ACCESS_ERR, syndrome))?;
        }
        Ok(bytes)
    }
}

fn land(bytes: &mut [u8], offset: u32, target: &Side<'_>) -> Result<(), Syndrome> {
    let Ok(len) = u32::try_from(bytes.len()) else {
        return Err(Syndrome::INTERNAL_ERROR);
    };
    if len == 0 {
        return Ok(());
    }
    let source = private(bytes, offset).map_err(|(_, syndrome)| syndrome)?;
    move_bytes(&source, target, offset, offset + len, len).map(drop)
}
