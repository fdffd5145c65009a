//! A vfio-user server: one connection is one device, or one function of a device.
//!
//! Place: the control thread of the emulator runs `session::Session`s of the NIC's functions (`nic`); [`serve`] runs one for any
//! other [`Device`], which is all that somebody needs who emulates something else. Invariants: a client owns its device alone;
//! whatever it sends ends in a reply, an error reply or the end of its connection; buffers and descriptors of a connection are
//! bounded; a device sees no length, count or vector that was not checked against the bytes and descriptors that really came.
//! Source: vfio-user protocol 0.1. Leaves out: migration, twin socket, DMA by message.
//!
//! ```text
//!  socket ──> message.rs ──> session.rs ──> regions.rs, irqs.rs ──> trait Device
//!             framing,       order, replies,  structures of           nic.rs: the NIC
//!             lengths        back-pressure    vfio <-> types here     examples/scratch_device.rs
//! ```

pub(crate) mod config_space;
pub(crate) mod irqs;
pub(crate) mod message;
pub(crate) mod msix;
pub(crate) mod nic;
pub(crate) mod regions;
mod serve;
pub(crate) mod session;

use std::fmt::Debug;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use ring_proto::vfio::{IRQ_EVENTFD, IRQ_MASKABLE, REGION_READ, REGION_WRITE};

pub use self::serve::serve;
use super::runtime::EngineGone;
pub use crate::device::WindowRequest;
use crate::device::{DeviceError, Vectors};

/// What a connection serves: regions, interrupts, and the client's memory.
///
/// Numbers and flags are those of VFIO, with names in [`ring_proto::vfio`].
pub trait Device: Debug {
    /// What the device is; asked whenever a client asks.
    fn shape(&self) -> Shape;

    /// Describes a region.
    ///
    /// # Errors
    /// EINVAL for a region that does not exist.
    fn region(&mut self, index: u32) -> Result<Region, Failure>;

    /// Descriptors that stand for registers of a region.
    ///
    /// # Errors
    /// When there is no descriptor to be had.
    fn io_events(&mut self, region: u32) -> Result<Vec<IoEvent>, Failure> {
        let _ = region;
        Ok(Vec::new())
    }

    /// Reads a region.
    ///
    /// # Errors
    /// EINVAL for an access that is not inside of the region, or that the registers there do not take.
    fn read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Failure>;

    /// Writes a region.
    ///
    /// # Errors
    /// As [`Device::read`]. A write that fails is answered as failed; nothing of it may have happened.
    fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Failure>;

    /// Describes an interrupt type below [`Shape::irqs`].
    fn irq(&self, index: u32) -> IrqType {
        let _ = index;
        IrqType::default()
    }

    /// Connects, masks or fires vectors of an interrupt type that [`Device::irq`] has, all below its number of vectors.
    ///
    /// # Errors
    /// Whatever keeps the device from it.
    fn set_irqs(&mut self, index: u32, action: IrqAction) -> Result<(), Failure> {
        let _ = (index, action);
        Err(Errno::ENOTSUP.into())
    }

    /// Takes a window onto the client's memory.
    ///
    /// # Errors
    /// Whatever is wrong with it: overlap, alignment, seals of the descriptor, too many.
    fn map(&mut self, window: WindowRequest) -> Result<(), Failure> {
        let _ = window;
        Err(Errno::ENOTSUP.into())
    }

    /// Gives windows back; when it returns nothing touches their memory any more.
    ///
    /// # Errors
    /// ENOENT when there is no such window.
    fn unmap(&mut self, what: Unmap) -> Result<(), Failure> {
        let _ = what;
        Err(Errno::ENOTSUP.into())
    }

    /// Resets the device; windows and vectors stay.
    ///
    /// # Errors
    /// [`Failure::Gone`].
    fn reset(&mut self) -> Result<(), Failure>;

    /// The client has hung up.
    ///
    /// # Errors
    /// [`DeviceGone`] when it could not be told.
    fn close(&mut self) -> Result<(), DeviceGone> {
        Ok(())
    }

    /// Which one it is, for log lines.
    fn describe(&self) -> String {
        String::new()
    }
}

/// What a device is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Shape {
    /// `DEVICE_*` flags.
    pub flags: u32,
    /// Regions.
    pub regions: u32,
    /// Interrupt types.
    pub irqs: u32,
}

/// A region.
#[derive(Debug, Default)]
pub struct Region {
    /// `REGION_*` flags; 0 for a region that is not there.
    pub flags: u32,
    /// Bytes.
    pub size: u64,
    /// Where the region begins in `fd`.
    pub offset: u64,
    /// What a client maps, with `REGION_MMAP`.
    pub fd: Option<OwnedFd>,
}

impl Region {
    /// A region of `size` bytes that is read and written by message alone.
    #[must_use]
    pub fn trapped(size: u64) -> Self {
        Self {
            flags: REGION_READ | REGION_WRITE,
            size,
            ..Self::default()
        }
    }
}

/// An eventfd that stands for writing a register.
#[derive(Debug)]
pub struct IoEvent {
    /// Offset of the register.
    pub offset: u64,
    /// Bytes of the register.
    pub size: u64,
    /// The eventfd.
    pub fd: OwnedFd,
}

/// An interrupt type.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct IrqType {
    /// `IRQ_*` flags. Masks are refused without `IRQ_MASKABLE`.
    pub flags: u32,
    /// Vectors, at most [`crate::device::VECTORS_LIMIT`].
    pub vectors: u32,
}

impl IrqType {
    /// This many vectors that are eventfds and can be masked, as [`Vectors`] are.
    #[must_use]
    pub const fn eventfds(vectors: u32) -> Self {
        Self {
            flags: IRQ_EVENTFD | IRQ_MASKABLE,
            vectors,
        }
    }
}

/// What a SET_IRQS asks for. Sets of vectors are words with one bit each.
#[derive(Debug)]
pub enum IrqAction {
    /// Take the eventfds of these away.
    Disconnect(u64),
    /// Connect these eventfds to the vectors from `start` on.
    Connect {
        /// First vector.
        start: u32,
        /// An eventfd each; they are eventfds indeed.
        fds: Vec<OwnedFd>,
    },
    /// Fire these.
    Trigger(u64),
    /// Hold these back.
    Mask(u64),
    /// Let these go.
    Unmask(u64),
}

impl Vectors {
    /// Does what a SET_IRQS asks for.
    ///
    /// # Errors
    /// As [`Vectors::connect`].
    pub fn apply(&mut self, action: IrqAction) -> Result<(), Errno> {
        match action {
            IrqAction::Disconnect(set) => {
                irqs::members(set).try_for_each(|vector| self.connect(vector.into(), None))?
            }
            IrqAction::Connect { start, fds } => (start..)
                .zip(fds)
                .try_for_each(|(vector, fd)| self.connect(vector, Some(fd)))?,
            IrqAction::Trigger(set) => self.fire(set),
            IrqAction::Mask(set) => self.mask(set),
            IrqAction::Unmask(set) => self.unmask(set),
        }
        Ok(())
    }
}

/// What a DMA_UNMAP asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unmap {
    /// Every window.
    All,
    /// Those in a range.
    Range {
        /// First byte.
        address: u64,
        /// Bytes.
        size: u64,
    },
}

/// There is no device any more: the connection ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the device has gone")]
pub struct DeviceGone;

/// Why a command was not done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Failure {
    /// The client is told so.
    #[error("refused: {0}")]
    Refused(Errno),
    /// There is no device any more.
    #[error("the device has gone")]
    Gone,
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::Refused(errno)
    }
}

impl From<DeviceGone> for Failure {
    fn from(_: DeviceGone) -> Self {
        Self::Gone
    }
}

impl From<EngineGone> for Failure {
    fn from(_: EngineGone) -> Self {
        Self::Gone
    }
}

impl From<DeviceError> for Failure {
    fn from(error: DeviceError) -> Self {
        Self::Refused(Errno::from_raw(error.errno()))
    }
}

/// Payload and descriptors of a good reply.
#[derive(Debug, Default)]
pub(crate) struct Reply {
    pub(crate) payload: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

impl Reply {
    /// A reply of plain bytes.
    pub(crate) fn bytes(payload: impl Into<Vec<u8>>) -> Self {
        Self {
            payload: payload.into(),
            fds: Vec::new(),
        }
    }
}

/// Whether `len` bytes at `offset` lie inside of a region of `size` bytes.
#[must_use]
pub fn fits(offset: u64, len: usize, size: u64) -> bool {
    u64::try_from(len)
        .ok()
        .and_then(|len| offset.checked_add(len))
        .is_some_and(|end| end <= size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_checked_without_overflow() {
        assert!(fits(0, 8, 8) && fits(8, 0, 8));
        assert!(!fits(1, 8, 8) && !fits(u64::MAX, 1, 8) && !fits(u64::MAX, 2, u64::MAX));
    }
}
