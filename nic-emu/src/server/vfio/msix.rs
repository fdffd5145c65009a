//! BAR4: the MSI-X table and the pending bits, both trapped.
//!
//! Place: region 4 of the vfio-user device. Invariants: the table stores what the client writes, reserved bits excepted; interrupts
//! go to the eventfds of SET_IRQS and to nowhere else, whatever addresses the table holds.
//! Source: PCI Local Bus 3.0, section 6.8.2. DEVIATION: a vector that nobody masked is not held back, although its mask bit reads 1
//! after reset: clients of vfio connect eventfds and may never write the table, which a VMM keeps for itself.

use ring_proto::regs;

/// Offset of the table in BAR4.
pub(crate) const TABLE_OFFSET: u32 = 0;
/// Offset of the pending bits in BAR4.
pub(crate) const PENDING_OFFSET: u32 = 0x800;
const ENTRY_LEN: usize = 16;
const TABLE_LEN: usize = ENTRY_LEN * regs::VECTORS as usize;
/// Byte of an entry that holds the mask bit.
const VECTOR_CONTROL: usize = 12;

const _: () = {
    assert!(TABLE_LEN <= PENDING_OFFSET as usize);
    assert!(PENDING_OFFSET as u64 + (regs::VECTORS as u64).div_ceil(8) <= regs::BAR4_LEN);
};

/// MSI-X table of one function.
#[derive(Clone, Debug)]
pub(crate) struct MsixTable {
    bytes: [u8; TABLE_LEN],
}

impl MsixTable {
    /// A table after reset: every vector masked.
    pub(crate) fn new() -> Self {
        let mut bytes = [0; TABLE_LEN];
        for entry in bytes.chunks_exact_mut(ENTRY_LEN) {
            entry[VECTOR_CONTROL] = 1;
        }
        Self { bytes }
    }

    /// Copies from `offset` of BAR4, with these vectors pending; false when that leaves the region.
    pub(crate) fn read(&self, offset: u64, to: &mut [u8], pending: u64) -> bool {
        let Some(start) = start(offset, to.len()) else {
            return false;
        };
        let pending = pending.to_le_bytes();
        for (at, byte) in (start..).zip(to) {
            let behind = at.checked_sub(PENDING_OFFSET as usize);
            let pending = behind.and_then(|at| pending.get(at));
            *byte = self.bytes.get(at).or(pending).copied().unwrap_or(0);
        }
        true
    }

    /// Writes at `offset` of BAR4; gives the vectors that this masks and unmasks, `None` when it leaves the region. Bytes behind the
    /// table are read-only.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> Option<(u64, u64)> {
        let start = start(offset, data.len())?;
        let (mut masked, mut unmasked) = (0, 0);
        for (at, &new) in (start..).zip(data) {
            let mask = match at % ENTRY_LEN {
                // The low two bits of an address are zero.
                0 => 0xfc,
                VECTOR_CONTROL => 0x01,
                13..=15 => 0x00,
                _ => 0xff,
            };
            let Some(byte) = self.bytes.get_mut(at) else {
                break;
            };
            *byte = *byte & !mask | new & mask;
            if at % ENTRY_LEN == VECTOR_CONTROL {
                let vector = 1u64 << (at / ENTRY_LEN);
                if new & 1 == 1 {
                    masked |= vector;
                } else {
                    unmasked |= vector;
                }
            }
        }
        Some((masked, unmasked))
    }

    /// Shows masks that were set by message.
    pub(crate) fn show_masks(&mut self, masked: u64, unmasked: u64) {
        for (vector, entry) in self.bytes.chunks_exact_mut(ENTRY_LEN).enumerate() {
            if masked >> vector & 1 == 1 {
                entry[VECTOR_CONTROL] = 1;
            }
            if unmasked >> vector & 1 == 1 {
                entry[VECTOR_CONTROL] = 0;
            }
        }
    }
}

fn start(offset: u64, len: usize) -> Option<usize> {
    let end = offset.checked_add(u64::try_from(len).ok()?)?;
    if end > regs::BAR4_LEN {
        return None;
    }
    usize::try_from(offset).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_start_masked_and_keep_what_is_written() {
        let mut table = MsixTable::new();
        let mut entry = [0; 16];
        assert!(table.read(63 * 16, &mut entry, 0));
        assert_eq!(entry[12], 1);
        assert_eq!(table.write(63 * 16, &[0xff; 16]), Some((1 << 63, 0)));
        assert!(table.read(63 * 16, &mut entry, 0));
        let wanted = [
            0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0,
        ];
        assert_eq!(entry, wanted);
    }

    #[test]
    fn control_words_mask_and_unmask_and_messages_show_there() {
        let mut table = MsixTable::new();
        assert_eq!(table.write(12, &[0; 4]), Some((0, 1)));
        assert_eq!(table.write(16, &[0; 12]), Some((0, 0)), "no control word");
        assert_eq!(table.write(0, &[1; 48]), Some((0b111, 0)));
        table.show_masks(0, 0b10);
        let mut byte = [9];
        assert!(table.read(28, &mut byte, 0));
        assert_eq!(byte, [0]);
    }

    #[test]
    fn pending_bits_are_read_only_and_the_end_is_kept() {
        let mut table = MsixTable::new();
        assert_eq!(table.write(0x800, &[0xff; 8]), Some((0, 0)));
        let mut bytes = [1; 8];
        assert!(table.read(0x800, &mut bytes, 0x8000_0000_0000_0002));
        assert_eq!(bytes, [2, 0, 0, 0, 0, 0, 0, 0x80]);
        assert!(table.read(0x808, &mut bytes, u64::MAX));
        assert_eq!(bytes, [0; 8]);
        assert!(table.read(regs::BAR4_LEN - 1, &mut [0], 0));
        assert!(!table.read(regs::BAR4_LEN - 1, &mut [0; 2], 0));
        assert_eq!(table.write(u64::MAX, &[0; 2]), None);
    }
}
