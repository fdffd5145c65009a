//! Regions: what they are, and access to them by message.
//!
//! Place: between [`super::session`] and the device's registers and memfds. Invariants: every access lies inside its region; registers
//! are read and written whole; what is copied is bounded by the message.
//! Source: VFIO PCI region numbers; the window regions above [`WINDOW_REGIONS`] are ours (docs/device.md, section "Attaching").

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::uio::{pread, pwrite};
use ring_proto::vfio::{
    DEVICE_PCI, DEVICE_RESETTABLE, DeviceInfo, REGION_MMAP, REGION_READ, REGION_WRITE,
    RegionAccess, RegionInfo, RegionIoFds, SubRegionIoEventFd, WriteMultiEntry,
};
use ring_proto::{regs, uar};
use zerocopy::IntoBytes;

use super::config_space::{ConfigSpace, Effect};
use super::msix::MsixTable;
use super::{Failure, Function, Reply};
use crate::device::DeviceError;
use crate::server::runtime::{EngineHandle, duplicate};

/// Region numbers from here on name the client's own DMA windows: the low bits are the IOVA in GiB. A process that shares the
/// connection with the one that mapped the window so gets its memory.
pub(crate) const WINDOW_REGIONS: u32 = 0x8000_0000;
const WINDOW_SHIFT: u32 = 30;
/// ioeventfd flags: no value to match.
const IO_FLAGS: u32 = 0;

fn bytes_of<T>() -> u32 {
    u32::try_from(size_of::<T>()).expect("message structures are small")
}

/// Describes the device.
pub(crate) fn device_info() -> Reply {
    let info = DeviceInfo {
        argsz: bytes_of::<DeviceInfo>(),
        flags: DEVICE_RESETTABLE | DEVICE_PCI,
        num_regions: regs::NUM_REGIONS,
        num_irqs: regs::NUM_IRQS,
    };
    Reply::bytes(info.as_bytes())
}

impl Function {
    /// Describes a region; mmap-able ones come with their descriptor.
    pub(crate) fn region_info(&self, engine: &EngineHandle, index: u32) -> Result<Reply, Failure> {
        let trapped = REGION_READ | REGION_WRITE;
        let mut info = RegionInfo {
            argsz: bytes_of::<RegionInfo>(),
            index,
            ..RegionInfo::default()
        };
        let mut fds = Vec::new();
        match index {
            regs::REGION_BAR0 => (info.flags, info.size) = (trapped, regs::BAR0_LEN),
            regs::REGION_BAR4 => (info.flags, info.size) = (trapped, regs::BAR4_LEN),
            regs::REGION_CONFIG => (info.flags, info.size) = (trapped, regs::CONFIG_LEN),
            regs::REGION_BAR2 => {
                (info.flags, info.size) = (trapped | REGION_MMAP, uar::BAR2_LEN);
                let function = self.id;
                fds.push(engine.call(move |device| duplicate(device.bar2(function)))??);
            }
            _ if index < regs::NUM_REGIONS => {}
            WINDOW_REGIONS.. => {
                let (fd, offset, len) = self.window(engine, index)?;
                info.flags = REGION_MMAP | REGION_READ | may_write(&fd)?;
                (info.offset, info.size) = (offset, len);
                fds.push(fd);
            }
            _ => return Err(Errno::EINVAL.into()),
        }
        Ok(Reply {
            payload: info.as_bytes().to_vec(),
            fds,
        })
    }

    fn window(&self, engine: &EngineHandle, index: u32) -> Result<(OwnedFd, u64, u64), Failure> {
        let iova = u64::from(index - WINDOW_REGIONS) << WINDOW_SHIFT;
        let function = self.id;
        let window = engine.call(move |device| {
            device
                .window_fd(function, iova)
                .map(|(fd, offset, len)| duplicate(Ok(fd)).map(|fd| (fd, offset, len)))
        })?;
        Ok(window.ok_or(Errno::ENOENT)??)
    }

    /// Names the descriptors that stand for registers: the kick eventfd.
    pub(crate) fn region_io_fds(
        &self,
        engine: &EngineHandle,
        index: u32,
        argsz: u32,
    ) -> Result<Reply, Failure> {
        if index >= regs::NUM_REGIONS {
            return Err(Errno::EINVAL.into());
        }
        let has_kick = index == regs::REGION_BAR0;
        let needed = bytes_of::<RegionIoFds>()
            + if has_kick {
                bytes_of::<SubRegionIoEventFd>()
            } else {
                0
            };
        let info = RegionIoFds {
            argsz: needed,
            flags: 0,
            index,
            count: u32::from(has_kick),
        };
        let mut reply = Reply::bytes(info.as_bytes());
        // Too little room: the client learns how much it needs and asks again.
        if has_kick && argsz >= needed {
            let kick = SubRegionIoEventFd {
                offset: regs::KICK,
                size: 4,
                flags: IO_FLAGS,
                ..SubRegionIoEventFd::default()
            };
            reply.payload.extend_from_slice(kick.as_bytes());
            let function = self.id;
            let fd = engine.call(move |device| duplicate(device.kick_fd(function)))??;
            reply.fds.push(fd);
        }
        Ok(reply)
    }

    /// Reads `count` bytes; `count` is bounded by the message limit.
    pub(crate) fn region_read(
        &self,
        engine: &EngineHandle,
        region: u32,
        offset: u64,
        count: usize,
    ) -> Result<Reply, Failure> {
        let mut data = vec![0; count];
        let function = self.id;
        let inside = match region {
            regs::REGION_CONFIG => self.config.read(offset, &mut data),
            regs::REGION_BAR4 => self.msix.read(offset, &mut data),
            regs::REGION_BAR0 => {
                let len = register_len(count)?;
                let value =
                    engine.call(move |device| device.read_register(function, offset, len))??;
                data.copy_from_slice(&value.to_le_bytes()[..count]);
                true
            }
            regs::REGION_BAR2 if fits(offset, count, uar::BAR2_LEN) => {
                let at = offset.cast_signed();
                data = engine.call(move |device| {
                    let bar2 = device.bar2(function)?;
                    pread(bar2, &mut data, at).map_err(|e| DeviceError::system("pread", e))?;
                    Ok::<_, DeviceError>(data)
                })??;
                true
            }
            _ => false,
        };
        if !inside {
            return Err(Errno::EINVAL.into());
        }
        let access = access(region, offset, count);
        let mut reply = Reply::bytes(access.as_bytes());
        reply.payload.append(&mut data);
        Ok(reply)
    }

    /// Writes bytes into a region.
    pub(crate) fn region_write(
        &mut self,
        engine: &EngineHandle,
        region: u32,
        offset: u64,
        data: &[u8],
    ) -> Result<Reply, Failure> {
        self.write(engine, region, offset, data)?;
        Ok(Reply::bytes(access(region, offset, data.len()).as_bytes()))
    }

    /// Does several small writes in order; the reply counts them. The first one that fails ends it.
    pub(crate) fn region_write_multi(
        &mut self,
        engine: &EngineHandle,
        entries: &[WriteMultiEntry],
    ) -> Result<Reply, Failure> {
        for entry in entries {
            let data = entry.data.to_le_bytes();
            let count = usize::try_from(entry.count).map_err(|_| Errno::EINVAL)?;
            let data = data.get(..count).ok_or(Errno::EINVAL)?;
            self.write(engine, entry.region, entry.offset, data)?;
        }
        let done = u64::try_from(entries.len()).expect("entries are bounded by the message");
        Ok(Reply::bytes(done.to_le_bytes()))
    }

    fn write(
        &mut self,
        engine: &EngineHandle,
        region: u32,
        offset: u64,
        data: &[u8],
    ) -> Result<(), Failure> {
        let function = self.id;
        let inside = match region {
            regs::REGION_CONFIG => match self.config.write(offset, data) {
                Some(Effect::Reset) => {
                    self.reset(engine)?;
                    true
                }
                Some(Effect::None) => true,
                None => false,
            },
            regs::REGION_BAR4 => self.msix.write(offset, data),
            regs::REGION_BAR0 => {
                let len = register_len(data.len())?;
                let mut value = [0; 8];
                value[..data.len()].copy_from_slice(data);
                let value = u64::from_le_bytes(value);
                engine
                    .call(move |device| device.write_register(function, offset, len, value))??;
                true
            }
            regs::REGION_BAR2 if fits(offset, data.len(), uar::BAR2_LEN) => {
                let at = offset.cast_signed();
                let data = data.to_vec();
                engine.call(move |device| {
                    let bar2 = device.bar2(function)?;
                    pwrite(bar2, &data, at).map_err(|e| DeviceError::system("pwrite", e))?;
                    Ok::<_, DeviceError>(())
                })??;
                true
            }
            _ => false,
        };
        if inside {
            Ok(())
        } else {
            Err(Errno::EINVAL.into())
        }
    }

    /// Resets the function and what the control side keeps of it.
    pub(crate) fn reset(&mut self, engine: &EngineHandle) -> Result<(), Failure> {
        let function = self.id;
        engine.call(move |device| device.reset(function))?;
        self.config = ConfigSpace::new();
        self.msix = MsixTable::new();
        Ok(())
    }
}

fn access(region: u32, offset: u64, count: usize) -> RegionAccess {
    RegionAccess {
        offset,
        region,
        count: u32::try_from(count).expect("accesses are bounded by the message"),
    }
}

fn register_len(count: usize) -> Result<u32, Errno> {
    match count {
        4 => Ok(4),
        8 => Ok(8),
        _ => Err(Errno::EINVAL),
    }
}

fn fits(offset: u64, count: usize, len: u64) -> bool {
    u64::try_from(count)
        .ok()
        .and_then(|count| offset.checked_add(count))
        .is_some_and(|end| end <= len)
}

fn may_write(fd: &OwnedFd) -> Result<u32, Errno> {
    let flags = OFlag::from_bits_retain(fcntl(fd.as_fd(), FcntlArg::F_GETFL)?);
    Ok(if flags & OFlag::O_ACCMODE == OFlag::O_RDWR {
        REGION_WRITE
    } else {
        0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_checked_without_overflow() {
        assert!(fits(0, 8, 8) && fits(8, 0, 8));
        assert!(!fits(1, 8, 8) && !fits(u64::MAX, 1, 8) && !fits(u64::MAX, 2, u64::MAX));
    }

    #[test]
    fn registers_have_four_or_eight_bytes() {
        let good: Vec<_> = (0..20).filter(|&n| register_len(n).is_ok()).collect();
        assert_eq!(good, [4, 8]);
    }
}
