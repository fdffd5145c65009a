//! A device of one's own on the vfio-user server: eight registers that add up bytes of the client's memory and interrupt when done.
//!
//! ```text
//! 0x00 ID       read   0x5c7a7c4
//! 0x08 SCRATCH  r/w    whatever was written
//! 0x10 ADDRESS  r/w    IOVA of the bytes          0x18 LENGTH  r/w    how many
//! 0x20 START    write  adds them up               0x28 SUM     read   the result
//! 0x30 STATUS   read   0 idle, 1 done, 2 the bytes do not lie in a window
//! ```
//!
//! `cargo run -p nic-emu --example scratch_device -- PATH` serves clients on a socket, one after the other.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;

use nic_emu::device::Vectors;
use nic_emu::server::vfio::{
    Device, Failure, IrqAction, IrqType, Region, Shape, Unmap, WindowRequest, serve,
};
use nix::errno::Errno;
use ring_proto::vfio::DEVICE_RESETTABLE;

pub(crate) const ID: u64 = 0x05c7_a7c4;
const REGISTERS: usize = 7;
const SCRATCH: usize = 1;
const ADDRESS: usize = 2;
const LENGTH: usize = 3;
const START: usize = 4;
const SUM: usize = 5;
const STATUS: usize = 6;

#[derive(Debug)]
pub(crate) struct ScratchDevice {
    registers: [u64; REGISTERS],
    windows: Vec<WindowRequest>,
    vectors: Vectors,
}

impl ScratchDevice {
    pub(crate) fn new() -> Self {
        Self {
            registers: [ID, 0, 0, 0, 0, 0, 0],
            windows: Vec::new(),
            vectors: Vectors::new(1),
        }
    }

    /// Adds the bytes up, piece by piece; `None` when they do not lie in one window with a descriptor.
    fn sum(&self) -> Option<u64> {
        let (address, length) = (self.registers[ADDRESS], self.registers[LENGTH]);
        let end = address.checked_add(length)?;
        let holds = |w: &&WindowRequest| w.read && address >= w.iova && end <= w.iova + w.len;
        let window = self.windows.iter().find(holds)?;
        let file = File::from(window.fd.as_ref()?.try_clone().ok()?);
        let (mut sum, mut at, mut piece) = (0u64, address, [0; 4096]);
        while at < end {
            let len = usize::try_from(end - at).map_or(piece.len(), |left| left.min(piece.len()));
            let from = window.offset + (at - window.iova);
            file.read_exact_at(&mut piece[..len], from).ok()?;
            sum += piece[..len].iter().copied().map(u64::from).sum::<u64>();
            at += len as u64;
        }
        Some(sum)
    }
}

/// Every access is one whole register.
fn register(region: u32, offset: u64, len: usize) -> Result<usize, Failure> {
    let index = usize::try_from(offset / 8).map_err(|_| Errno::EINVAL)?;
    let is_whole = region == 0 && offset.is_multiple_of(8) && len == 8 && index < REGISTERS;
    is_whole.then_some(index).ok_or(Errno::EINVAL.into())
}

impl Device for ScratchDevice {
    fn shape(&self) -> Shape {
        Shape {
            flags: DEVICE_RESETTABLE,
            regions: 1,
            irqs: 1,
        }
    }

    fn region(&mut self, index: u32) -> Result<Region, Failure> {
        if index != 0 {
            return Err(Errno::EINVAL.into());
        }
        Ok(Region::trapped(8 * REGISTERS as u64))
    }

    fn read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Failure> {
        let index = register(region, offset, data.len())?;
        data.copy_from_slice(&self.registers[index].to_le_bytes());
        Ok(())
    }

    fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Failure> {
        let index = register(region, offset, data.len())?;
        let value = u64::from_le_bytes(data.try_into().map_err(|_| Errno::EINVAL)?);
        match index {
            SCRATCH | ADDRESS | LENGTH => self.registers[index] = value,
            START => {
                let sum = self.sum();
                self.registers[SUM] = sum.unwrap_or(0);
                self.registers[STATUS] = if sum.is_some() { 1 } else { 2 };
                self.vectors.fire(1);
            }
            _ => return Err(Errno::EPERM.into()),
        }
        Ok(())
    }

    fn irq(&self, _: u32) -> IrqType {
        IrqType::eventfds(1)
    }

    fn set_irqs(&mut self, _: u32, action: IrqAction) -> Result<(), Failure> {
        Ok(self.vectors.apply(action)?)
    }

    fn map(&mut self, window: WindowRequest) -> Result<(), Failure> {
        window.iova.checked_add(window.len).ok_or(Errno::EINVAL)?;
        if self.windows.len() == 16 {
            return Err(Errno::ENOSPC.into());
        }
        self.windows.push(window);
        Ok(())
    }

    fn unmap(&mut self, what: Unmap) -> Result<(), Failure> {
        self.windows.retain(|window| match what {
            Unmap::All => false,
            Unmap::Range { address, size } => (window.iova, window.len) != (address, size),
        });
        Ok(())
    }

    fn reset(&mut self) -> Result<(), Failure> {
        self.registers[1..].fill(0);
        self.vectors.reset();
        Ok(())
    }
}

fn main() -> std::io::Result<()> {
    let path = std::env::args_os().nth(1).unwrap_or_default();
    let listener = UnixListener::bind(path)?;
    let mut clients = listener.incoming();
    clients.try_for_each(|stream| serve(stream?, || Ok(ScratchDevice::new())))
}
