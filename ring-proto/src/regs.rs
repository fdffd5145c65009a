//! PCI identity, regions and BAR0 registers of the device.
//!
//! Place: `nic-emu` answers reads and writes of them over vfio-user; `driver` discovers the device and starts its admin queue with them.
//! Invariants: registers do discovery, start and reset only; everything else is an admin command.
//! Source: VFIO PCI region numbering; registers ours (docs/device.md, section "Registers").

/// Vendor id in configuration space. Ours: an id that no vendor owns.
pub const PCI_VENDOR_ID: u16 = 0x5a17;
/// Device id in configuration space.
pub const PCI_DEVICE_ID: u16 = 0x0001;
/// Class code: network controller, InfiniBand controller. Source: PCI class codes.
pub const PCI_CLASS_CODE: u32 = 0x02_07_00;
/// Revision id.
pub const PCI_REVISION: u8 = 1;

/// Region number of BAR0, the trapped registers.
pub const REGION_BAR0: u32 = 0;
/// Region number of BAR2, the doorbells: one mmap-able memfd.
pub const REGION_BAR2: u32 = 2;
/// Region number of BAR4, MSI-X table and pending bits.
pub const REGION_BAR4: u32 = 4;
/// Region number of configuration space.
pub const REGION_CONFIG: u32 = 7;
/// Number of regions. Source: VFIO_PCI_NUM_REGIONS.
pub const NUM_REGIONS: u32 = 9;
/// Number of interrupt types. Source: VFIO_PCI_NUM_IRQS.
pub const NUM_IRQS: u32 = 5;
/// Interrupt type MSI-X. Source: VFIO_PCI_MSIX_IRQ_INDEX.
pub const IRQ_MSIX: u32 = 2;

/// Bytes of BAR0.
pub const BAR0_LEN: u64 = 16 * 1024;
/// Bytes of BAR4.
pub const BAR4_LEN: u64 = 4096;
/// Bytes of configuration space.
pub const CONFIG_LEN: u64 = 256;

/// Interrupt vectors of a function; one bit each in an arm word.
pub const VECTORS: u32 = 64;

/// Value of [`MAGIC`]: "SANN" in memory order.
pub const MAGIC_VALUE: u32 = u32::from_le_bytes(*b"SANN");
/// Value of [`ABI`]: major version in the high half, minor in the low.
pub const ABI_VALUE: u32 = 0x0001_0000;

/// u32, read: [`MAGIC_VALUE`].
pub const MAGIC: u64 = 0x00;
/// u32, read: [`ABI_VALUE`]. A driver refuses another major version.
pub const ABI: u64 = 0x04;
/// u64, read: feature bits the device offers.
pub const DEVICE_FEATURES: u64 = 0x08;
/// u64, read/write: feature bits the driver accepts; a subset of the offered ones.
pub const DRIVER_FEATURES: u64 = 0x10;
/// u32, read/write: device status, see the `STATUS_*` bits. Writing 0 resets the function.
pub const STATUS: u64 = 0x18;
/// u32, read: counts resets of this function.
pub const RESET_GENERATION: u64 = 0x1c;
/// u64, read/write: IOVA of the admin submission ring.
pub const ADMIN_SQ_BASE: u64 = 0x20;
/// u64, read/write: IOVA of the admin completion ring.
pub const ADMIN_CQ_BASE: u64 = 0x28;
/// u32, read/write: entries of both admin rings, a power of two, at most [`ADMIN_DEPTH_LIMIT`].
pub const ADMIN_DEPTH: u64 = 0x30;
/// u32, read: most QPs of a function.
pub const MAX_QP: u64 = 0x40;
/// u32, read: most CQs of a function.
pub const MAX_CQ: u64 = 0x44;
/// u32, read: most MRs of a function.
pub const MAX_MR: u64 = 0x48;
/// u32, read: most protection domains of a function.
pub const MAX_PD: u64 = 0x4c;
/// u32, read: most doorbell slots of a function.
pub const MAX_SLOT: u64 = 0x50;
/// u32, read: interrupt vectors of a function.
pub const MAX_VECTOR: u64 = 0x54;
/// u32, read: longest message in bytes.
pub const MAX_MESSAGE: u64 = 0x58;
/// u32, read: most entries of one queue.
pub const MAX_DEPTH: u64 = 0x5c;
/// u32, read: most memory windows of a function.
pub const MAX_MW: u64 = 0x60;
/// u32, read: most SRQs of a function.
pub const MAX_SRQ: u64 = 0x64;
/// u32, write: wakes a parked device; the value does not matter. Offered as an ioeventfd too.
pub const KICK: u64 = 0x80;
/// u32, read: 1 when the port is up.
pub const LINK_STATE: u64 = 0x90;
/// u32, read: number of the node whose port this function uses.
pub const NODE: u64 = 0x9c;
/// u32, read: why the function is FAILED, a [`crate::status::Syndrome`] value.
pub const ERROR_SYNDROME: u64 = 0xa0;
/// u64, read: nanoseconds of the device's clock.
pub const CLOCK_NS: u64 = 0xa8;

/// Every register: name, offset, bytes. The table docs/device.md is compared with.
pub const REGISTERS: &[(&str, u64, u32)] = &[
    ("MAGIC", MAGIC, 4),
    ("ABI", ABI, 4),
    ("DEVICE_FEATURES", DEVICE_FEATURES, 8),
    ("DRIVER_FEATURES", DRIVER_FEATURES, 8),
    ("STATUS", STATUS, 4),
    ("RESET_GENERATION", RESET_GENERATION, 4),
    ("ADMIN_SQ_BASE", ADMIN_SQ_BASE, 8),
    ("ADMIN_CQ_BASE", ADMIN_CQ_BASE, 8),
    ("ADMIN_DEPTH", ADMIN_DEPTH, 4),
    ("MAX_QP", MAX_QP, 4),
    ("MAX_CQ", MAX_CQ, 4),
    ("MAX_MR", MAX_MR, 4),
    ("MAX_PD", MAX_PD, 4),
    ("MAX_SLOT", MAX_SLOT, 4),
    ("MAX_VECTOR", MAX_VECTOR, 4),
    ("MAX_MESSAGE", MAX_MESSAGE, 4),
    ("MAX_DEPTH", MAX_DEPTH, 4),
    ("MAX_MW", MAX_MW, 4),
    ("MAX_SRQ", MAX_SRQ, 4),
    ("KICK", KICK, 4),
    ("LINK_STATE", LINK_STATE, 4),
    ("NODE", NODE, 4),
    ("ERROR_SYNDROME", ERROR_SYNDROME, 4),
    ("CLOCK_NS", CLOCK_NS, 8),
];

/// Driver found the device.
pub const STATUS_ACKNOWLEDGE: u32 = 1;
/// Driver knows how to drive it.
pub const STATUS_DRIVER: u32 = 2;
/// Driver is ready: setting it starts the admin queue.
pub const STATUS_DRIVER_OK: u32 = 4;
/// Features are agreed.
pub const STATUS_FEATURES_OK: u32 = 8;
/// Device wants a reset (set by the device).
pub const STATUS_NEEDS_RESET: u32 = 64;
/// The function is unusable (set by the device); [`ERROR_SYNDROME`] says why.
pub const STATUS_FAILED: u32 = 128;

/// Feature: connection manager.
pub const FEATURE_CM: u64 = 1;
/// Feature: holders and orphans.
pub const FEATURE_HOLDERS: u64 = 1 << 1;
/// Feature: atomic operations.
pub const FEATURE_ATOMICS: u64 = 1 << 2;
/// Feature: memory windows and invalidation.
pub const FEATURE_MW: u64 = 1 << 3;
/// Feature: shared receive queues.
pub const FEATURE_SRQ: u64 = 1 << 4;
/// Features this version offers.
pub const FEATURES: u64 = FEATURE_CM | FEATURE_HOLDERS | FEATURE_ATOMICS | FEATURE_MW | FEATURE_SRQ;

/// Most entries of the admin rings.
pub const ADMIN_DEPTH_LIMIT: u32 = 1024;
/// Most entries of one SQ (in 64 B blocks), RQ, CQ or EQ.
pub const DEPTH_LIMIT: u32 = 1 << 16;
/// Longest message in bytes.
pub const MESSAGE_LIMIT: u32 = 1 << 30;
