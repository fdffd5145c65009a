//! vfio-user messages of clients: framing rules and the requests they carry.
//!
//! Place: [`super::session`] reads a header, asks [`frame`] how much follows, and asks [`parse`] what the message means.
//! Invariants: no number of a client is used before it is checked against the bytes that really came; nothing is allocated here but
//! a copy of the entries of REGION_WRITE_MULTI, bounded by the message. Holding a [`Request`] proves that its lengths, counts and
//! descriptors agree with each other; whether the device allows it is not checked yet.
//! Source: vfio-user protocol 0.1 (libvfio-user, docs/vfio-user.rst; QEMU hw/vfio-user/protocol.h for REGION_WRITE_MULTI).
//! Leaves out: migration and dirty pages, DMA_READ/WRITE.

use std::ffi::CStr;
use std::mem::size_of;

use nix::errno::Errno;
use ring_proto::vfio::{self, Header};
use zerocopy::FromBytes;

use crate::device;

/// Bytes of a header.
pub(crate) const HEADER_LEN: usize = size_of::<Header>();
/// Longest payload.
pub(crate) const MAX_PAYLOAD: usize = vfio::MAX_MESSAGE - HEADER_LEN;
/// Most bytes of one region access, announced as `max_data_xfer_size`.
pub(crate) const MAX_TRANSFER: usize = MAX_PAYLOAD - size_of::<vfio::RegionAccess>();
/// Bits of the header's flags that hold the message type.
const TYPE_MASK: u32 = 0xf;

/// What follows a header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Frame {
    /// A command with this many bytes of payload.
    Command(usize),
    /// Something that is no command and gets no answer, with its payload.
    Ignored(usize),
    /// The stream cannot be followed any further.
    Broken(Errno),
}

/// Reads the framing out of a header.
pub(crate) fn frame(header: &Header) -> Frame {
    let Ok(size) = usize::try_from(header.size) else {
        return Frame::Broken(Errno::EMSGSIZE);
    };
    if size < HEADER_LEN {
        return Frame::Broken(Errno::EINVAL);
    }
    if size > vfio::MAX_MESSAGE {
        return Frame::Broken(Errno::EMSGSIZE);
    }
    match header.flags & TYPE_MASK {
        0 => Frame::Command(size - HEADER_LEN),
        // Nobody asked the client for anything; answering a reply could go on for ever.
        vfio::FLAG_REPLY => Frame::Ignored(size - HEADER_LEN),
        _ => Frame::Broken(Errno::EINVAL),
    }
}

/// The minor version that both sides speak.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Minor(u16);

/// Which vectors of a range are meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Which<'a> {
    /// All of it.
    All,
    /// Those whose byte is not zero.
    Some(&'a [u8]),
}

/// What a SET_IRQS asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum IrqRequest<'a> {
    /// Disconnect every vector.
    DisableAll,
    /// Connect the descriptors of the message, or disconnect the range when it has none.
    Assign,
    /// Fire.
    Trigger(Which<'a>),
    /// Hold back.
    Mask(Which<'a>),
    /// Let go.
    Unmask(Which<'a>),
}

/// A command with sound lengths.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Request<'a> {
    Version(Minor),
    DmaMap(vfio::DmaMap),
    DmaUnmap(vfio::DmaUnmap),
    DeviceInfo,
    RegionInfo {
        index: u32,
    },
    RegionIoFds {
        index: u32,
        argsz: u32,
    },
    IrqInfo {
        index: u32,
    },
    /// Of interrupt type `index`; `start + count` does not overflow.
    SetIrqs {
        index: u32,
        start: u32,
        count: u32,
        action: IrqRequest<'a>,
    },
    RegionRead {
        region: u32,
        offset: u64,
        /// At most [`MAX_TRANSFER`].
        count: usize,
    },
    RegionWrite {
        region: u32,
        offset: u64,
        data: &'a [u8],
    },
    /// Each with at most 8 bytes.
    RegionWriteMulti(Vec<vfio::WriteMultiEntry>),
    Reset,
}

/// Reads a command. `fds` is the number of descriptors that came with it.
pub(crate) fn parse(command: u16, payload: &[u8], fds: usize) -> Result<Request<'_>, Errno> {
    let request = parse_payload(command, payload, fds)?;
    let wanted = match request {
        Request::DmaMap(_) => fds <= 1,
        Request::SetIrqs {
            action: IrqRequest::Assign,
            count,
            ..
        } => fds == 0 || usize::try_from(count) == Ok(fds),
        _ => fds == 0,
    };
    if wanted {
        Ok(request)
    } else {
        Err(Errno::EINVAL)
    }
}

fn parse_payload(command: u16, payload: &[u8], fds: usize) -> Result<Request<'_>, Errno> {
    Ok(match command {
        vfio::CMD_VERSION => Request::Version(version(payload)?),
        vfio::CMD_DMA_MAP => {
            let map: vfio::DmaMap = exact(payload)?;
            sized::<vfio::DmaMap>(map.argsz)?;
            if map.flags == 0 || map.flags & !(vfio::DMA_READ | vfio::DMA_WRITE) != 0 {
                return Err(Errno::EINVAL);
            }
            Request::DmaMap(map)
        }
        vfio::CMD_DMA_UNMAP => {
            let (unmap, _bitmap) = prefix::<vfio::DmaUnmap>(payload)?;
            sized::<vfio::DmaUnmap>(unmap.argsz)?;
            match unmap.flags {
                0 => {}
                vfio::DMA_UNMAP_ALL if unmap.address == 0 && unmap.size == 0 => {}
                vfio::DMA_UNMAP_ALL => return Err(Errno::EINVAL),
                // Dirty bitmaps belong to migration.
                _ => return Err(Errno::ENOTSUP),
            }
            Request::DmaUnmap(unmap)
        }
        vfio::CMD_DEVICE_GET_INFO => {
            let info: vfio::DeviceInfo = exact(payload)?;
            sized::<vfio::DeviceInfo>(info.argsz)?;
            Request::DeviceInfo
        }
        vfio::CMD_DEVICE_GET_REGION_INFO => {
            let (info, _room) = prefix::<vfio::RegionInfo>(payload)?;
            sized::<vfio::RegionInfo>(info.argsz)?;
            Request::RegionInfo { index: info.index }
        }
        vfio::CMD_DEVICE_GET_REGION_IO_FDS => {
            let (info, _room) = prefix::<vfio::RegionIoFds>(payload)?;
            sized::<vfio::RegionIoFds>(info.argsz)?;
            if info.flags != 0 {
                return Err(Errno::EINVAL);
            }
            Request::RegionIoFds {
                index: info.index,
                argsz: info.argsz,
            }
        }
        vfio::CMD_DEVICE_GET_IRQ_INFO => {
            let info: vfio::IrqInfo = exact(payload)?;
            sized::<vfio::IrqInfo>(info.argsz)?;
            Request::IrqInfo { index: info.index }
        }
        vfio::CMD_DEVICE_SET_IRQS => set_irqs(payload, fds)?,
        vfio::CMD_REGION_READ => {
            let access: vfio::RegionAccess = exact(payload)?;
            let count = usize::try_from(access.count).map_err(|_| Errno::EINVAL)?;
            if count > MAX_TRANSFER {
                return Err(Errno::EINVAL);
            }
            Request::RegionRead {
                region: access.region,
                offset: access.offset,
                count,
            }
        }
        vfio::CMD_REGION_WRITE => {
            let (access, data) = prefix::<vfio::RegionAccess>(payload)?;
            if usize::try_from(access.count) != Ok(data.len()) {
                return Err(Errno::EINVAL);
            }
            Request::RegionWrite {
                region: access.region,
                offset: access.offset,
                data,
            }
        }
        vfio::CMD_REGION_WRITE_MULTI => write_multi(payload)?,
        vfio::CMD_DEVICE_RESET if payload.is_empty() => Request::Reset,
        vfio::CMD_DEVICE_RESET => return Err(Errno::EINVAL),
        _ => return Err(Errno::ENOTSUP),
    })
}

/// The structure that is the whole payload.
fn exact<T: FromBytes>(payload: &[u8]) -> Result<T, Errno> {
    T::read_from_bytes(payload).map_err(|_| Errno::EINVAL)
}

/// The structure a payload starts with, and what follows it.
fn prefix<T: FromBytes>(payload: &[u8]) -> Result<(T, &[u8]), Errno> {
    T::read_from_prefix(payload).map_err(|_| Errno::EINVAL)
}

/// Checks the size that the client says it has room for.
fn sized<T>(argsz: u32) -> Result<(), Errno> {
    if usize::try_from(argsz).is_ok_and(|argsz| argsz >= size_of::<T>()) {
        Ok(())
    } else {
        Err(Errno::EINVAL)
    }
}

fn version(payload: &[u8]) -> Result<Minor, Errno> {
    // Nothing a client can announce changes what it is sent: no reply carries more than one descriptor.
    let (version, data) = prefix::<vfio::Version>(payload)?;
    if version.major != vfio::VERSION_MAJOR {
        return Err(Errno::EPROTONOSUPPORT);
    }
    if !data.is_empty() {
        let text = CStr::from_bytes_until_nul(data).map_err(|_| Errno::EINVAL)?;
        // Zeros behind it are what a compiler fills a structure up with.
        if data[text.count_bytes()..].iter().any(|&byte| byte != 0) {
            return Err(Errno::EINVAL);
        }
        let data: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(text.to_bytes()).map_err(|_| Errno::EINVAL)?;
        if data.get("capabilities").is_some_and(|c| !c.is_object()) {
            return Err(Errno::EINVAL);
        }
    }
    Ok(Minor(version.minor.min(vfio::VERSION_MINOR)))
}

fn set_irqs(payload: &[u8], fds: usize) -> Result<Request<'_>, Errno> {
    let (set, data) = prefix::<vfio::IrqSet>(payload)?;
    sized::<vfio::IrqSet>(set.argsz)?;
    const DATA: u32 =
        vfio::IRQ_SET_DATA_NONE | vfio::IRQ_SET_DATA_BOOL | vfio::IRQ_SET_DATA_EVENTFD;
    const ACTION: u32 =
        vfio::IRQ_SET_ACTION_MASK | vfio::IRQ_SET_ACTION_UNMASK | vfio::IRQ_SET_ACTION_TRIGGER;
    let one = |mask: u32| (set.flags & mask).is_power_of_two();
    if set.flags & !(DATA | ACTION) != 0 || !one(DATA) || !one(ACTION) {
        return Err(Errno::EINVAL);
    }
    if set.start.checked_add(set.count).is_none() {
        return Err(Errno::EINVAL);
    }
    let which = match set.flags & DATA {
        vfio::IRQ_SET_DATA_NONE => Some(Which::All),
        vfio::IRQ_SET_DATA_BOOL if usize::try_from(set.count) == Ok(data.len()) => {
            Some(Which::Some(data))
        }
        vfio::IRQ_SET_DATA_BOOL => return Err(Errno::EINVAL),
        _ => None,
    };
    let action = match (set.flags & ACTION, which) {
        (vfio::IRQ_SET_ACTION_TRIGGER, Some(Which::All)) if set.count == 0 && set.start == 0 => {
            IrqRequest::DisableAll
        }
        _ if set.count == 0 && which != Some(Which::Some(&[])) => return Err(Errno::EINVAL),
        (vfio::IRQ_SET_ACTION_TRIGGER, Some(which)) => IrqRequest::Trigger(which),
        (vfio::IRQ_SET_ACTION_MASK, Some(which)) => IrqRequest::Mask(which),
        (vfio::IRQ_SET_ACTION_UNMASK, Some(which)) => IrqRequest::Unmask(which),
        (vfio::IRQ_SET_ACTION_TRIGGER, None) if fds <= vfio::MAX_FDS => IrqRequest::Assign,
        (vfio::IRQ_SET_ACTION_TRIGGER, None) => return Err(Errno::EINVAL),
        // Masks by eventfd: nothing announces them.
        _ => return Err(Errno::ENOTSUP),
    };
    Ok(Request::SetIrqs {
        index: set.index,
        start: set.start,
        count: set.count,
        action,
    })
}

fn write_multi(payload: &[u8]) -> Result<Request<'_>, Errno> {
    let (count, entries) = prefix::<u64>(payload)?;
    let chunks = entries.chunks_exact(size_of::<vfio::WriteMultiEntry>());
    if usize::try_from(count) != Ok(chunks.len()) || !chunks.remainder().is_empty() {
        return Err(Errno::EINVAL);
    }
    let entries = chunks
        .map(|chunk| {
            let entry: vfio::WriteMultiEntry = exact(chunk)?;
            if entry.count > 8 {
                return Err(Errno::EINVAL);
            }
            Ok(entry)
        })
        .collect::<Result<_, _>>()?;
    Ok(Request::RegionWriteMulti(entries))
}

/// Answer to a VERSION: version header and capabilities, NUL-terminated.
pub(crate) fn version_reply(Minor(minor): Minor) -> Vec<u8> {
    use zerocopy::IntoBytes;
    let version = vfio::Version {
        major: vfio::VERSION_MAJOR,
        minor,
    };
    let capabilities = serde_json::json!({
        "capabilities": {
            "max_msg_fds": vfio::MAX_FDS,
            "max_data_xfer_size": MAX_TRANSFER,
            "pgsizes": PAGE_SIZES,
            "max_dma_maps": device::WINDOWS_LIMIT,
            "write_multiple": true,
        }
    });
    let mut reply = version.as_bytes().to_vec();
    reply.extend_from_slice(capabilities.to_string().as_bytes());
    reply.push(0);
    reply
}

/// Page sizes of windows, one bit each: 4 KiB, 2 MiB, 1 GiB.
const PAGE_SIZES: u64 = 1 << 12 | 1 << 21 | 1 << 30;

/// Bytes and message of an ordinary reply.
pub(crate) fn reply_header(to: &Header, payload: usize) -> Header {
    Header {
        message_id: to.message_id,
        command: to.command,
        size: u32::try_from(HEADER_LEN + payload).expect("replies are bounded by MAX_MESSAGE"),
        flags: vfio::FLAG_REPLY,
        error: 0,
    }
}

/// Header of an error reply, which is all of it.
pub(crate) fn error_header(to: &Header, errno: Errno) -> Header {
    Header {
        flags: vfio::FLAG_REPLY | vfio::FLAG_ERROR,
        // errno values are small positive numbers.
        error: (errno as i32).unsigned_abs(),
        ..reply_header(to, 0)
    }
}

/// Name of a command for log lines.
pub(crate) fn name(command: u16) -> &'static str {
    match command {
        vfio::CMD_VERSION => "VERSION",
        vfio::CMD_DMA_MAP => "DMA_MAP",
        vfio::CMD_DMA_UNMAP => "DMA_UNMAP",
        vfio::CMD_DEVICE_GET_INFO => "DEVICE_GET_INFO",
        vfio::CMD_DEVICE_GET_REGION_INFO => "DEVICE_GET_REGION_INFO",
        vfio::CMD_DEVICE_GET_REGION_IO_FDS => "DEVICE_GET_REGION_IO_FDS",
        vfio::CMD_DEVICE_GET_IRQ_INFO => "DEVICE_GET_IRQ_INFO",
        vfio::CMD_DEVICE_SET_IRQS => "DEVICE_SET_IRQS",
        vfio::CMD_REGION_READ => "REGION_READ",
        vfio::CMD_REGION_WRITE => "REGION_WRITE",
        vfio::CMD_DEVICE_RESET => "DEVICE_RESET",
        vfio::CMD_REGION_WRITE_MULTI => "REGION_WRITE_MULTI",
        _ => "unknown command",
    }
}

#[cfg(test)]
mod tests;
