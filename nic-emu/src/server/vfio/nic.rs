//! The NIC as a [`Device`] of a vfio-user session: one function of it.
//!
//! Place: between a session, on the control thread, and the engine thread, which owns the device. Invariants: every access lies inside its
//! region; registers are read and written whole; when an unmap is answered, nothing touches the memory any more, because the engine
//! itself ran it. Source: VFIO PCI region numbers; the window regions above [`WINDOW_REGIONS`] are ours (docs/device.md, section
//! "Attaching"). Leaves out: what registers and windows mean ([`crate::device`]).

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::uio::{pread, pwrite};
use ring_proto::ids::{FunctionId, NodeId};
use ring_proto::vfio::{DEVICE_PCI, DEVICE_RESETTABLE, REGION_MMAP, REGION_READ, REGION_WRITE};
use ring_proto::{regs, uar};
use tracing::debug;

use super::config_space::{ConfigSpace, Effect};
use super::msix::MsixTable;
use super::{
    Device, DeviceGone, Failure, IoEvent, IrqAction, IrqType, Region, Shape, Unmap, WindowRequest,
    fits,
};
use crate::device::DeviceError;
use crate::server::runtime::{EngineGone, EngineHandle, duplicate};

/// Region numbers from here on name the client's own DMA windows: the low bits are the IOVA in GiB. A process that shares the
/// connection with the one that mapped the window so gets its memory.
const WINDOW_REGIONS: u32 = 0x8000_0000;
const WINDOW_SHIFT: u32 = 30;

/// A function of the NIC, as its connection knows it.
#[derive(Debug)]
pub(crate) struct Function {
    engine: EngineHandle,
    id: FunctionId,
    config: ConfigSpace,
    msix: MsixTable,
}

impl Function {
    /// Attaches a function of a node's NIC.
    pub(crate) fn attach(engine: &EngineHandle, node: NodeId) -> Result<Self, Failure> {
        let id = engine.attach(node)??;
        debug!(node = node.0, function = id.0, "function attached");
        Ok(Self {
            engine: engine.clone(),
            id,
            config: ConfigSpace::new(),
            msix: MsixTable::new(),
        })
    }

    pub(crate) fn id(&self) -> FunctionId {
        self.id
    }

    fn window(&self, index: u32) -> Result<(OwnedFd, u64, u64), Failure> {
        let iova = u64::from(index - WINDOW_REGIONS) << WINDOW_SHIFT;
        let function = self.id;
        let window = self.engine.call(move |device| {
            device
                .window_fd(function, iova)
                .map(|(fd, offset, len)| duplicate(Ok(fd)).map(|fd| (fd, offset, len)))
        })?;
        Ok(window.ok_or(Errno::ENOENT)??)
    }
}

impl Device for Function {
    fn shape(&self) -> Shape {
        Shape {
            flags: DEVICE_RESETTABLE | DEVICE_PCI,
            regions: regs::NUM_REGIONS,
            irqs: regs::NUM_IRQS,
        }
    }

    fn region(&mut self, index: u32) -> Result<Region, Failure> {
        Ok(match index {
            regs::REGION_BAR0 => Region::trapped(regs::BAR0_LEN),
            regs::REGION_BAR4 => Region::trapped(regs::BAR4_LEN),
            regs::REGION_CONFIG => Region::trapped(regs::CONFIG_LEN),
            regs::REGION_BAR2 => {
                let function = self.id;
                let fd = self
                    .engine
                    .call(move |device| duplicate(device.bar2(function)))??;
                let mut region = Region::trapped(uar::BAR2_LEN);
                region.flags |= REGION_MMAP;
                region.fd = Some(fd);
                region
            }
            _ if index < regs::NUM_REGIONS => Region::default(),
            WINDOW_REGIONS.. => {
                let (fd, offset, size) = self.window(index)?;
                Region {
                    flags: REGION_MMAP | REGION_READ | may_write(&fd)?,
                    size,
                    offset,
                    fd: Some(fd),
                }
            }
            _ => return Err(Errno::EINVAL.into()),
        })
    }

    /// The kick eventfd.
    fn io_events(&mut self, region: u32) -> Result<Vec<IoEvent>, Failure> {
        if region != regs::REGION_BAR0 {
            return Ok(Vec::new());
        }
        let function = self.id;
        let fd = self
            .engine
            .call(move |device| duplicate(device.kick_fd(function)))??;
        Ok(vec![IoEvent {
            offset: regs::KICK,
            size: 4,
            fd,
        }])
    }

    fn read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Failure> {
        let function = self.id;
        let inside = match region {
            regs::REGION_CONFIG => self.config.read(offset, data),
            regs::REGION_BAR4 => {
                let pending = self
                    .engine
                    .call(move |device| device.pending_vectors(function))?;
                self.msix.read(offset, data, pending)
            }
            regs::REGION_BAR0 => {
                let len = register_len(data.len())?;
                let value = self
                    .engine
                    .call(move |device| device.read_register(function, offset, len))??;
                data.copy_from_slice(&value.to_le_bytes()[..data.len()]);
                true
            }
            regs::REGION_BAR2 if fits(offset, data.len(), uar::BAR2_LEN) => {
                let at = offset.cast_signed();
                let mut copy = vec![0; data.len()];
                let copy = self.engine.call(move |device| {
                    let bar2 = device.bar2(function)?;
                    pread(bar2, &mut copy, at).map_err(|e| DeviceError::system("pread", e))?;
                    Ok::<_, DeviceError>(copy)
                })??;
                data.copy_from_slice(&copy);
                true
            }
            _ => false,
        };
        inside.then_some(()).ok_or_else(|| Errno::EINVAL.into())
    }

    fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Failure> {
        let function = self.id;
        let inside = match region {
            regs::REGION_CONFIG => match self.config.write(offset, data) {
                Some(Effect::Reset) => {
                    self.reset()?;
                    true
                }
                Some(Effect::MaskAll(is_masked)) => {
                    self.engine.call(move |device| {
                        device.change_vectors(function, |vectors| vectors.mask_all(is_masked));
                    })?;
                    true
                }
                Some(Effect::None) => true,
                None => false,
            },
            regs::REGION_BAR4 => match self.msix.write(offset, data) {
                Some((mask, unmask)) => {
                    self.engine.call(move |device| {
                        device.change_vectors(function, |vectors| {
                            vectors.mask(mask);
                            vectors.unmask(unmask);
                        });
                    })?;
                    true
                }
                None => false,
            },
            regs::REGION_BAR0 => {
                let len = register_len(data.len())?;
                let mut value = [0; 8];
                value[..data.len()].copy_from_slice(data);
                let value = u64::from_le_bytes(value);
                self.engine
                    .call(move |device| device.write_register(function, offset, len, value))??;
                true
            }
            regs::REGION_BAR2 if fits(offset, data.len(), uar::BAR2_LEN) => {
                let at = offset.cast_signed();
                let data = data.to_vec();
                self.engine.call(move |device| {
                    let bar2 = device.bar2(function)?;
                    pwrite(bar2, &data, at).map_err(|e| DeviceError::system("pwrite", e))?;
                    Ok::<_, DeviceError>(())
                })??;
                true
            }
            _ => false,
        };
        inside.then_some(()).ok_or_else(|| Errno::EINVAL.into())
    }

    fn irq(&self, index: u32) -> IrqType {
        if index == regs::IRQ_MSIX {
            IrqType::eventfds(regs::VECTORS)
        } else {
            IrqType::default()
        }
    }

    fn set_irqs(&mut self, _index: u32, action: IrqAction) -> Result<(), Failure> {
        let function = self.id;
        match action {
            IrqAction::Mask(set) => self.msix.show_masks(set, 0),
            IrqAction::Unmask(set) => self.msix.show_masks(0, set),
            _ => {}
        }
        Ok(self.engine.call(move |device| {
            let mut done = Ok(());
            device.change_vectors(function, |vectors| done = vectors.apply(action));
            done
        })??)
    }

    fn map(&mut self, window: WindowRequest) -> Result<(), Failure> {
        let function = self.id;
        Ok(self
            .engine
            .call(move |device| device.map(function, window))??)
    }

    fn unmap(&mut self, what: Unmap) -> Result<(), Failure> {
        let function = self.id;
        Ok(self.engine.call(move |device| match what {
            Unmap::All => device.unmap_all(function),
            Unmap::Range { address, size } => device.unmap(function, address, size),
        })??)
    }

    /// Resets the function and what the control side keeps of it.
    fn reset(&mut self) -> Result<(), Failure> {
        let function = self.id;
        self.engine.call(move |device| device.reset(function))?;
        self.config = ConfigSpace::new();
        self.msix = MsixTable::new();
        Ok(())
    }

    fn close(&mut self) -> Result<(), DeviceGone> {
        self.engine.detach(self.id).map_err(|EngineGone| DeviceGone)
    }

    fn describe(&self) -> String {
        format!("function {}", self.id.0)
    }
}

fn register_len(count: usize) -> Result<u32, Errno> {
    match count {
        4 => Ok(4),
        8 => Ok(8),
        _ => Err(Errno::EINVAL),
    }
}

fn may_write(fd: &OwnedFd) -> Result<u32, Errno> {
    let flags = OFlag::from_bits_retain(fcntl(fd.as_fd(), FcntlArg::F_GETFL)?);
    Ok(if flags & OFlag::O_ACCMODE == OFlag::O_RDWR {
        REGION_WRITE
    } else {
        0
    })
}

const _: () = assert!(regs::VECTORS <= crate::device::VECTORS_LIMIT);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_have_four_or_eight_bytes() {
        let good: Vec<_> = (0..20).filter(|&n| register_len(n).is_ok()).collect();
        assert_eq!(good, [4, 8]);
    }
}
