//! Regions: what they are, and access to them by message.
//!
//! Place: between [`super::session`] and the device. Invariants: what is copied is bounded by the message; a reply is made only of
//! what the device did. Source: vfio-user protocol. Leaves out: what lies in the regions.

use nix::errno::Errno;
use ring_proto::vfio::{
    DeviceInfo, MAX_FDS, RegionAccess, RegionInfo, RegionIoFds, SubRegionIoEventFd, WriteMultiEntry,
};
use zerocopy::IntoBytes;

use super::{Device, Failure, Reply};

/// ioeventfd flags: no value to match.
const IO_FLAGS: u32 = 0;

fn bytes_of<T>() -> u32 {
    u32::try_from(size_of::<T>()).expect("message structures are small")
}

/// Describes the device.
pub(crate) fn device_info<D: Device>(device: &D) -> Reply {
    let shape = device.shape();
    let info = DeviceInfo {
        argsz: bytes_of::<DeviceInfo>(),
        flags: shape.flags,
        num_regions: shape.regions,
        num_irqs: shape.irqs,
    };
    Reply::bytes(info.as_bytes())
}

/// Describes a region; mmap-able ones come with their descriptor.
pub(crate) fn info<D: Device>(device: &mut D, index: u32) -> Result<Reply, Failure> {
    let region = device.region(index)?;
    let info = RegionInfo {
        argsz: bytes_of::<RegionInfo>(),
        flags: region.flags,
        index,
        cap_offset: 0,
        size: region.size,
        offset: region.offset,
    };
    Ok(Reply {
        payload: info.as_bytes().to_vec(),
        fds: region.fd.into_iter().collect(),
    })
}

/// Names the descriptors that stand for registers.
pub(crate) fn io_fds<D: Device>(device: &mut D, index: u32, argsz: u32) -> Result<Reply, Failure> {
    if index >= device.shape().regions {
        return Err(Errno::EINVAL.into());
    }
    let mut events = device.io_events(index)?;
    events.truncate(MAX_FDS);
    let count = u32::try_from(events.len()).expect("at most MAX_FDS");
    let needed = bytes_of::<RegionIoFds>() + count * bytes_of::<SubRegionIoEventFd>();
    let info = RegionIoFds {
        argsz: needed,
        flags: 0,
        index,
        count,
    };
    let mut reply = Reply::bytes(info.as_bytes());
    // Too little room: the client learns how much it needs and asks again.
    if argsz >= needed {
        for (fd_index, event) in (0..).zip(events) {
            let entry = SubRegionIoEventFd {
                offset: event.offset,
                size: event.size,
                fd_index,
                flags: IO_FLAGS,
                ..SubRegionIoEventFd::default()
            };
            reply.payload.extend_from_slice(entry.as_bytes());
            reply.fds.push(event.fd);
        }
    }
    Ok(reply)
}

/// Reads `count` bytes; `count` is bounded by the message limit.
pub(crate) fn read<D: Device>(
    device: &mut D,
    region: u32,
    offset: u64,
    count: usize,
) -> Result<Reply, Failure> {
    let access = access(region, offset, count);
    let mut reply = Reply::bytes(access.as_bytes());
    let head = reply.payload.len();
    reply.payload.resize(head + count, 0);
    device.read(region, offset, &mut reply.payload[head..])?;
    Ok(reply)
}

/// Writes bytes into a region.
pub(crate) fn write<D: Device>(
    device: &mut D,
    region: u32,
    offset: u64,
    data: &[u8],
) -> Result<Reply, Failure> {
    device.write(region, offset, data)?;
    Ok(Reply::bytes(access(region, offset, data.len()).as_bytes()))
}

/// Does several small writes in order; the reply counts them. The first one that fails ends it.
pub(crate) fn write_multi<D: Device>(
    device: &mut D,
    entries: &[WriteMultiEntry],
) -> Result<Reply, Failure> {
    for entry in entries {
        let data = entry.data.to_le_bytes();
        let count = usize::try_from(entry.count).map_err(|_| Errno::EINVAL)?;
        let data = data.get(..count).ok_or(Errno::EINVAL)?;
        device.write(entry.region, entry.offset, data)?;
    }
    let done = u64::try_from(entries.len()).expect("entries are bounded by the message");
    Ok(Reply::bytes(done.to_le_bytes()))
}

fn access(region: u32, offset: u64, count: usize) -> RegionAccess {
    RegionAccess {
        offset,
        region,
        count: u32::try_from(count).expect("accesses are bounded by the message"),
    }
}
