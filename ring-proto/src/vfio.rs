//! Messages of the vfio-user protocol that the device speaks.
//!
//! Place: server in `nic-emu`, client in `driver`. Invariants: little-endian, every message starts with [`Header`]; sizes are checked
//! before anything is allocated.
//! Source: the vfio-user protocol specification (libvfio-user, docs/vfio-user.rst), version 0.1. Leaves out: migration, dirty pages,
//! DMA_READ/WRITE, twin socket.

#![expect(
    missing_debug_implementations,
    reason = "the layout derives make hidden helper types; every public type here has Debug"
)]

use core::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Protocol major version.
pub const VERSION_MAJOR: u16 = 0;
/// Protocol minor version.
pub const VERSION_MINOR: u16 = 1;
/// Longest message that either side accepts, header included.
pub const MAX_MESSAGE: usize = 64 * 1024;
/// Most descriptors in one message.
pub const MAX_FDS: usize = 16;

/// Message header.
#[repr(C)]
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Header {
    /// Chosen by the sender of a command, echoed in the reply.
    pub message_id: u16,
    /// `CMD_*`.
    pub command: u16,
    /// Bytes of the whole message.
    pub size: u32,
    /// Type in bits 0..4, `FLAG_*`.
    pub flags: u32,
    /// errno of a reply with FLAG_ERROR.
    pub error: u32,
}

/// Flag value: reply.
pub const FLAG_REPLY: u32 = 1;
/// Flag: the sender wants no reply.
pub const FLAG_NO_REPLY: u32 = 1 << 4;
/// Flag: error reply.
pub const FLAG_ERROR: u32 = 1 << 5;

/// Negotiates version and capabilities; the first message.
pub const CMD_VERSION: u16 = 1;
/// Maps client memory.
pub const CMD_DMA_MAP: u16 = 2;
/// Unmaps client memory.
pub const CMD_DMA_UNMAP: u16 = 3;
/// Asks for device information.
pub const CMD_DEVICE_GET_INFO: u16 = 4;
/// Asks for a region.
pub const CMD_DEVICE_GET_REGION_INFO: u16 = 5;
/// Asks for the descriptors that stand for a region's registers.
pub const CMD_DEVICE_GET_REGION_IO_FDS: u16 = 6;
/// Asks for an interrupt type.
pub const CMD_DEVICE_GET_IRQ_INFO: u16 = 7;
/// Sets interrupt eventfds.
pub const CMD_DEVICE_SET_IRQS: u16 = 8;
/// Reads a region.
pub const CMD_REGION_READ: u16 = 9;
/// Writes a region.
pub const CMD_REGION_WRITE: u16 = 10;
/// Resets the device.
pub const CMD_DEVICE_RESET: u16 = 13;
/// Several small region writes in one message.
pub const CMD_REGION_WRITE_MULTI: u16 = 15;

macro_rules! payloads {
    ($($(#[$doc:meta])* $name:ident[$len:literal] { $($(#[$fdoc:meta])* $field:ident: $ty:ty,)* })*) => {$(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable)]
        pub struct $name {
            $($(#[$fdoc])* pub $field: $ty,)*
        }
        const _: () = assert!(size_of::<$name>() == $len);
    )*};
}

payloads! {
    /// VERSION: followed by a NUL-terminated JSON text.
    Version[4] {
        /// Major version.
        major: u16,
        /// Minor version.
        minor: u16,
    }
    /// DMA_MAP.
    DmaMap[32] {
        /// Bytes of this structure.
        argsz: u32,
        /// `DMA_*`.
        flags: u32,
        /// Offset in the descriptor.
        offset: u64,
        /// IOVA.
        address: u64,
        /// Bytes.
        size: u64,
    }
    /// DMA_UNMAP.
    DmaUnmap[24] {
        /// Bytes of this structure.
        argsz: u32,
        /// Zero, or [`DMA_UNMAP_ALL`].
        flags: u32,
        /// IOVA.
        address: u64,
        /// Bytes.
        size: u64,
    }
    /// DEVICE_GET_INFO.
    DeviceInfo[16] {
        /// Bytes of this structure.
        argsz: u32,
        /// [`DEVICE_RESETTABLE`] and [`DEVICE_PCI`].
        flags: u32,
        /// Regions.
        num_regions: u32,
        /// Interrupt types.
        num_irqs: u32,
    }
    /// DEVICE_GET_REGION_INFO.
    RegionInfo[32] {
        /// Bytes of this structure and its capabilities.
        argsz: u32,
        /// `REGION_*`.
        flags: u32,
        /// Region.
        index: u32,
        /// Offset of the first capability, or 0.
        cap_offset: u32,
        /// Bytes of the region.
        size: u64,
        /// Offset of the region in its descriptor.
        offset: u64,
    }
    /// DEVICE_GET_REGION_IO_FDS.
    RegionIoFds[16] {
        /// Bytes of this structure and the entries.
        argsz: u32,
        /// Zero.
        flags: u32,
        /// Region.
        index: u32,
        /// Entries that follow.
        count: u32,
    }
    /// Entry of DEVICE_GET_REGION_IO_FDS: an ioeventfd.
    SubRegionIoEventFd[40] {
        /// Offset of the register in the region.
        offset: u64,
        /// Bytes of the register.
        size: u64,
        /// Index into the descriptors of the message.
        fd_index: u32,
        /// 0: ioeventfd.
        kind: u32,
        /// Flags of the ioeventfd.
        flags: u32,
        /// Zero.
        padding: u32,
        /// Value that a write must have, when the flags ask for it.
        datamatch: u64,
    }
    /// DEVICE_GET_IRQ_INFO.
    IrqInfo[16] {
        /// Bytes of this structure.
        argsz: u32,
        /// [`IRQ_EVENTFD`] and others.
        flags: u32,
        /// Interrupt type.
        index: u32,
        /// Vectors.
        count: u32,
    }
    /// DEVICE_SET_IRQS.
    IrqSet[20] {
        /// Bytes of this structure and its data.
        argsz: u32,
        /// `IRQ_SET_*`.
        flags: u32,
        /// Interrupt type.
        index: u32,
        /// First vector.
        start: u32,
        /// Vectors.
        count: u32,
    }
    /// REGION_READ and REGION_WRITE; data follow a write and a read's reply.
    RegionAccess[16] {
        /// Offset in the region.
        offset: u64,
        /// Region.
        region: u32,
        /// Bytes.
        count: u32,
    }
    /// Entry of REGION_WRITE_MULTI, whose payload is a u64 count and that many entries.
    WriteMultiEntry[24] {
        /// Offset in the region.
        offset: u64,
        /// Region.
        region: u32,
        /// Bytes, at most 8.
        count: u32,
        /// The data.
        data: u64,
    }
}

const _: () = assert!(size_of::<Header>() == 16);

/// DMA_MAP flag: the device may read.
pub const DMA_READ: u32 = 1;
/// DMA_MAP flag: the device may write.
pub const DMA_WRITE: u32 = 2;
/// DMA_UNMAP flag: all windows.
pub const DMA_UNMAP_ALL: u32 = 2;
/// DeviceInfo flag: DEVICE_RESET works.
pub const DEVICE_RESETTABLE: u32 = 1;
/// DeviceInfo flag: PCI device.
pub const DEVICE_PCI: u32 = 2;
/// RegionInfo flag: readable.
pub const REGION_READ: u32 = 1;
/// RegionInfo flag: writable.
pub const REGION_WRITE: u32 = 2;
/// RegionInfo flag: can be mapped.
pub const REGION_MMAP: u32 = 4;
/// IrqInfo flag: works by eventfd.
pub const IRQ_EVENTFD: u32 = 1;
/// IrqInfo flag: vectors can be masked one by one.
pub const IRQ_MASKABLE: u32 = 2;
/// IrqInfo flag: vectors cannot be added one by one after enabling.
pub const IRQ_NORESIZE: u32 = 8;
/// IrqSet flag: no data.
pub const IRQ_SET_DATA_NONE: u32 = 1;
/// IrqSet flag: one byte a vector.
pub const IRQ_SET_DATA_BOOL: u32 = 2;
/// IrqSet flag: one eventfd a vector.
pub const IRQ_SET_DATA_EVENTFD: u32 = 4;
/// IrqSet flag: mask.
pub const IRQ_SET_ACTION_MASK: u32 = 8;
/// IrqSet flag: unmask.
pub const IRQ_SET_ACTION_UNMASK: u32 = 16;
/// IrqSet flag: trigger.
pub const IRQ_SET_ACTION_TRIGGER: u32 = 32;
