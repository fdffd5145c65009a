//! DMA_MAP and DMA_UNMAP: client memory enters and leaves the function.
//!
//! Place: between [`super::session`] and the device's windows. Invariants: the device checks seals, size, alignment, overlap and its
//! caps; when an unmap is answered, nothing touches the memory any more, because the engine itself ran it.
//! Source: vfio-user protocol. Leaves out: dirty pages.

use std::os::fd::OwnedFd;

use ring_proto::ids::FunctionId;
use ring_proto::vfio::{DMA_READ, DMA_UNMAP_ALL, DMA_WRITE, DmaMap, DmaUnmap};
use zerocopy::IntoBytes;

use super::{Failure, Reply};
use crate::device::WindowRequest;
use crate::server::runtime::EngineHandle;

/// Maps a window.
pub(crate) fn map(
    engine: &EngineHandle,
    function: FunctionId,
    map: &DmaMap,
    fd: Option<OwnedFd>,
) -> Result<Reply, Failure> {
    let request = WindowRequest {
        fd,
        offset: map.offset,
        iova: map.address,
        len: map.size,
        read: map.flags & DMA_READ != 0,
        write: map.flags & DMA_WRITE != 0,
    };
    engine.call(move |device| device.map(function, request))??;
    Ok(Reply::default())
}

/// Unmaps windows; the reply repeats the request.
pub(crate) fn unmap(
    engine: &EngineHandle,
    function: FunctionId,
    unmap: &DmaUnmap,
) -> Result<Reply, Failure> {
    let DmaUnmap {
        flags,
        address,
        size,
        ..
    } = *unmap;
    engine.call(move |device| {
        if flags == DMA_UNMAP_ALL {
            device.unmap_all(function)
        } else {
            device.unmap(function, address, size)
        }
    })??;
    Ok(Reply::bytes(unmap.as_bytes()))
}
