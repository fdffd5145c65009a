//! BAR4: the MSI-X table and the pending bits, both trapped.
//!
//! Place: region 4 of the vfio-user device. Invariants: the table stores what the client writes, reserved bits excepted; interrupts
//! go to the eventfds of SET_IRQS and to nowhere else.
//! Source: PCI Local Bus 3.0, section 6.8.2. DEVIATION: mask bits of the table hold no interrupt back and pending bits read 0, as
//! with every vfio device: whoever owns the eventfds masks by taking them away.

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

    /// Copies from `offset` of BAR4; false when that leaves the region.
    pub(crate) fn read(&self, offset: u64, to: &mut [u8]) -> bool {
        let Some(start) = start(offset, to.len()) else {
            return false;
        };
        for (at, byte) in (start..).zip(to) {
            *byte = self.bytes.get(at).copied().unwrap_or(0);
        }
        true
    }

    /// Writes at `offset` of BAR4; false when that leaves the region. Bytes behind the table are read-only.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> bool {
        let Some(start) = start(offset, data.len()) else {
            return false;
        };
        for (at, &new) in (start..).zip(data) {
            let mask = match at % ENTRY_LEN {
                // The low two bits of an address are zero.
                0 => 0xfc,
                VECTOR_CONTROL => 0x01,
                13..=15 => 0x00,
                _ => 0xff,
            };
            if let Some(byte) = self.bytes.get_mut(at) {
                *byte = *byte & !mask | new & mask;
            }
        }
        true
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
        assert!(table.read(63 * 16, &mut entry));
        assert_eq!(entry[12], 1);
        assert!(table.write(63 * 16, &[0xff; 16]));
        assert!(table.read(63 * 16, &mut entry));
        let wanted = [
            0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0,
        ];
        assert_eq!(entry, wanted);
    }

    #[test]
    fn pending_bits_and_the_rest_read_zero_and_the_end_is_kept() {
        let mut table = MsixTable::new();
        assert!(table.write(0x800, &[0xff; 8]));
        let mut bytes = [1; 8];
        assert!(table.read(0x800, &mut bytes));
        assert_eq!(bytes, [0; 8]);
        assert!(table.read(regs::BAR4_LEN - 1, &mut [0]));
        assert!(!table.read(regs::BAR4_LEN - 1, &mut [0; 2]));
        assert!(!table.write(u64::MAX, &[0; 2]));
    }
}
