//! PCI configuration space of a function: identity, BARs, capabilities.
//!
//! Place: region 7 of the vfio-user device; a VMM shows it to its guest, `driver` reads the identity.
//! Invariants: 256 bytes; reads see everything, writes change only what the specification lets software change; BARs answer sizing
//! writes. Nothing here reaches the engine but the function-level reset.
//! Source: PCI Local Bus 3.0 (header type 0), PCI Express Base (capability 10h, endpoint), MSI-X capability (11h); numbers of
//! capabilities from linux/pci_regs.h. power management 1.2 (capability 01h). Leaves out: extended space, INTx.
//!
//! ```text
//! 00 header type 0      BAR0 16 KiB 32-bit, BAR2 8 MiB 64-bit prefetchable, BAR4 4 KiB 32-bit
//! 40 PCI Express        endpoint, function-level reset
//! 80 MSI-X              64 vectors, table at BAR4 + 0, pending bits at BAR4 + 800h
//! 90 power management   version 3, D0 and D3hot without a reset between them
//! a0 vendor             MAGIC, ABI and the offset of KICK: enough to know the device without a BAR
//! ```

use ring_proto::{regs, uar};

use super::msix;

const LEN: usize = 256;
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const CACHE_LINE: usize = 0x0c;
const BAR0: usize = 0x10;
const BAR2: usize = 0x18;
const BAR4: usize = 0x20;
const SUBSYSTEM: usize = 0x2c;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const PCIE: usize = 0x40;
const MSIX: usize = 0x80;
const POWER: usize = 0x90;
const VENDOR: usize = 0xa0;
const VENDOR_LEN: u8 = 16;

/// Command bits that software may set: memory space, bus master, parity, SERR, INTx disable.
const COMMAND_WRITABLE: u16 = 0x0546;
/// Status bit: capability list.
const STATUS_CAPABILITIES: u16 = 0x10;
const CAP_PCIE: u8 = 0x10;
const CAP_MSIX: u8 = 0x11;
const CAP_POWER: u8 = 0x01;
const CAP_VENDOR: u8 = 0x09;
/// Power management: no reset on the way from D3hot to D0.
const NO_SOFT_RESET: u8 = 1 << 3;
/// Byte of the MSI-X control register with enable and function mask.
const MSIX_CONTROL: usize = MSIX + 3;
const FUNCTION_MASK: u8 = 0x40;
/// PCIe device capabilities: function-level reset, role-based error reporting.
const DEVICE_CAPABILITIES: u32 = 1 << 28 | 1 << 15;
/// PCIe device control: initiate function-level reset.
const INITIATE_FLR: u8 = 0x80;
const BAR_64_BIT: u32 = 0x4;
const BAR_PREFETCHABLE: u32 = 0x8;

const _: () = {
    assert!(LEN as u64 == regs::CONFIG_LEN);
    assert!(regs::BAR0_LEN.is_power_of_two() && regs::BAR4_LEN.is_power_of_two());
    assert!(uar::BAR2_LEN.is_power_of_two());
};

/// Configuration space of one function.
#[derive(Clone, Debug)]
pub(crate) struct ConfigSpace {
    bytes: [u8; LEN],
    writable: [u8; LEN],
}

/// What a write asks of the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub(crate) enum Effect {
    /// Nothing.
    None,
    /// A function-level reset.
    Reset,
    /// The function mask of MSI-X was written.
    MaskAll(bool),
}

impl ConfigSpace {
    pub(crate) fn new() -> Self {
        let mut space = Self {
            bytes: [0; LEN],
            writable: [0; LEN],
        };
        space.put(0x00, &regs::PCI_VENDOR_ID.to_le_bytes(), &[]);
        space.put(0x02, &regs::PCI_DEVICE_ID.to_le_bytes(), &[]);
        space.put(COMMAND, &[0; 2], &COMMAND_WRITABLE.to_le_bytes());
        space.put(STATUS, &STATUS_CAPABILITIES.to_le_bytes(), &[]);
        let class = regs::PCI_CLASS_CODE << 8 | u32::from(regs::PCI_REVISION);
        space.put(0x08, &class.to_le_bytes(), &[]);
        space.put(CACHE_LINE, &[0], &[0xff]);
        space.bar(BAR0, regs::BAR0_LEN, 0);
        space.bar(BAR2, uar::BAR2_LEN, BAR_64_BIT | BAR_PREFETCHABLE);
        space.bar(BAR4, regs::BAR4_LEN, 0);
        space.put(SUBSYSTEM, &regs::PCI_VENDOR_ID.to_le_bytes(), &[]);
        space.put(SUBSYSTEM + 2, &regs::PCI_DEVICE_ID.to_le_bytes(), &[]);
        space.put(CAPABILITIES, &[offset_byte(PCIE)], &[]);
        space.put(INTERRUPT_LINE, &[0], &[0xff]);

        // Version 2, endpoint; the control registers accept what software writes and change nothing.
        space.put(PCIE, &[CAP_PCIE, offset_byte(MSIX), 0x02, 0x00], &[]);
        space.put(PCIE + 0x04, &DEVICE_CAPABILITIES.to_le_bytes(), &[]);
        space.put(PCIE + 0x08, &[0; 2], &[0xff, 0x7f]);
        // Link: 2.5 GT/s, one lane, both as capability and as status.
        space.put(PCIE + 0x0c, &0x11u32.to_le_bytes(), &[]);
        space.put(PCIE + 0x12, &0x11u16.to_le_bytes(), &[]);

        let table_size = u16::try_from(regs::VECTORS - 1).expect("64 vectors");
        space.put(MSIX, &[CAP_MSIX, offset_byte(POWER)], &[]);
        // Enable and function mask are the software's.
        space.put(MSIX + 2, &table_size.to_le_bytes(), &[0x00, 0xc0]);
        let table = msix::TABLE_OFFSET | regs::REGION_BAR4;
        let pending = msix::PENDING_OFFSET | regs::REGION_BAR4;
        space.put(MSIX + 4, &table.to_le_bytes(), &[]);
        space.put(MSIX + 8, &pending.to_le_bytes(), &[]);

        space.put(POWER, &[CAP_POWER, offset_byte(VENDOR), 0x03, 0x00], &[]);
        // The power state is the software's; nothing hangs on it.
        space.put(POWER + 4, &[NO_SOFT_RESET, 0], &[0x03, 0x00]);

        space.put(VENDOR, &[CAP_VENDOR, 0, VENDOR_LEN, 0], &[]);
        space.put(VENDOR + 4, &regs::MAGIC_VALUE.to_le_bytes(), &[]);
        space.put(VENDOR + 8, &regs::ABI_VALUE.to_le_bytes(), &[]);
        let kick = u32::try_from(regs::KICK).expect("registers lie in BAR0");
        space.put(VENDOR + 12, &kick.to_le_bytes(), &[]);
        space
    }

    fn put(&mut self, at: usize, value: &[u8], writable: &[u8]) {
        self.bytes[at..at + value.len()].copy_from_slice(value);
        self.writable[at..at + writable.len()].copy_from_slice(writable);
    }

    /// A memory BAR: its address bits are writable from the size upwards, which is how software learns the size.
    fn bar(&mut self, at: usize, len: u64, kind: u32) {
        let address = !(len - 1);
        let width = if kind & BAR_64_BIT != 0 { 8 } else { 4 };
        self.put(at, &kind.to_le_bytes(), &address.to_le_bytes()[..width]);
    }

    /// Copies from `offset`; false when that leaves the space.
    pub(crate) fn read(&self, offset: u64, to: &mut [u8]) -> bool {
        match range(offset, to.len()) {
            Some(range) => {
                to.copy_from_slice(&self.bytes[range]);
                true
            }
            None => false,
        }
    }

    /// Writes what may be written; `None` when the range leaves the space.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> Option<Effect> {
        let range = range(offset, data.len())?;
        let mut effect = Effect::None;
        for (at, &new) in range.zip(data) {
            let mask = self.writable[at];
            self.bytes[at] = self.bytes[at] & !mask | new & mask;
            if at == PCIE + 0x09 && new & INITIATE_FLR != 0 {
                effect = Effect::Reset;
            } else if at == MSIX_CONTROL && effect == Effect::None {
                effect = Effect::MaskAll(new & FUNCTION_MASK != 0);
            }
        }
        if effect == Effect::Reset {
            *self = Self::new();
        }
        Some(effect)
    }
}

fn offset_byte(offset: usize) -> u8 {
    u8::try_from(offset).expect("capabilities lie below 100h")
}

fn range(offset: u64, len: usize) -> Option<std::ops::Range<usize>> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(len)?;
    (end <= LEN).then_some(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn u32_at(space: &ConfigSpace, at: u64) -> u32 {
        let mut bytes = [0; 4];
        assert!(space.read(at, &mut bytes));
        u32::from_le_bytes(bytes)
    }

    fn write_u32(space: &mut ConfigSpace, at: u64, value: u32) {
        assert_eq!(space.write(at, &value.to_le_bytes()), Some(Effect::None));
    }

    #[test]
    fn identity_is_read_only() {
        let mut space = ConfigSpace::new();
        write_u32(&mut space, 0, 0);
        write_u32(&mut space, 8, 0);
        assert_eq!(u32_at(&space, 0), 0x0001_5a17);
        assert_eq!(u32_at(&space, 8), 0x0207_0001);
    }

    #[test]
    fn bars_answer_sizing_writes() {
        let mut space = ConfigSpace::new();
        for at in (0x10..0x28).step_by(4) {
            write_u32(&mut space, at, u32::MAX);
        }
        let size = |low: u32, high: u32| {
            let bar = u64::from(high) << 32 | u64::from(low & !0xf);
            (!bar).wrapping_add(1)
        };
        let high = u32::MAX;
        assert_eq!(size(u32_at(&space, 0x10), high), regs::BAR0_LEN);
        assert_eq!(u32_at(&space, 0x14), 0, "BAR1 does not exist");
        let (low, high) = (u32_at(&space, 0x18), u32_at(&space, 0x1c));
        assert_eq!(size(low, high), uar::BAR2_LEN);
        assert_eq!(low & 0xf, 0xc, "64-bit, prefetchable");
        assert_eq!(size(u32_at(&space, 0x20), u32::MAX), regs::BAR4_LEN);
        assert_eq!(u32_at(&space, 0x24), 0, "BAR5 does not exist");
        write_u32(&mut space, 0x10, 0xfebf_1234);
        assert_eq!(u32_at(&space, 0x10), 0xfebf_0000);
    }

    #[test]
    fn the_capability_list_ends_and_holds_all() {
        let space = ConfigSpace::new();
        let mut at = u32_at(&space, 0x34) & 0xff;
        let mut found = Vec::new();
        while at != 0 {
            let header = u32_at(&space, u64::from(at));
            found.push(header & 0xff);
            at = header >> 8 & 0xff;
            assert!(found.len() < 10);
        }
        assert_eq!(found, [0x10, 0x11, 0x01, 0x09]);
        assert_eq!(
            u32_at(&space, 0xa0) >> 16,
            16,
            "length of the vendor capability"
        );
        assert_eq!(u32_at(&space, 0xa4), regs::MAGIC_VALUE);
        assert_eq!(u32_at(&space, 0xa8), regs::ABI_VALUE);
        assert_eq!(u64::from(u32_at(&space, 0xac)), regs::KICK);
        assert_eq!(u32_at(&space, 0x80) >> 16 & 0x7ff, 63);
        assert_eq!(u32_at(&space, 0x84), 4);
        assert_eq!(u32_at(&space, 0x88), 0x804);
    }

    #[test]
    fn msix_enable_sticks_and_a_function_level_reset_clears_everything() {
        let mut space = ConfigSpace::new();
        assert_eq!(
            space.write(0x82, &[0xff, 0xff]),
            Some(Effect::MaskAll(true))
        );
        assert_eq!(space.write(0x83, &[0x80]), Some(Effect::MaskAll(false)));
        assert_eq!(
            space.write(0x82, &[0xff, 0xff]),
            Some(Effect::MaskAll(true))
        );
        assert_eq!(u32_at(&space, 0x80) >> 16, 0xc03f);
        write_u32(&mut space, 4, 0x6);
        assert_eq!(space.write(0x48, &[0, 0x80]), Some(Effect::Reset));
        assert_eq!(u32_at(&space, 4) & 0xffff, 0);
        assert_eq!(u32_at(&space, 0x80) >> 16, 0x3f);
    }

    #[test]
    fn accesses_past_the_end_are_refused() {
        let mut space = ConfigSpace::new();
        assert!(!space.read(253, &mut [0; 4]));
        assert!(!space.read(u64::MAX, &mut [0; 2]));
        assert_eq!(space.write(256, &[0]), None);
        assert_eq!(space.write(u64::MAX, &[0, 0]), None);
        assert!(space.read(256, &mut []));
    }
}
