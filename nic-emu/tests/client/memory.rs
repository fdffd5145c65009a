//! The memory that a client lends to its function.
#![expect(
    unsafe_code,
    reason = "reads and writes a mapping that the device shares"
)]

use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;

use memmap2::{MmapOptions, MmapRaw};
use ring_proto::copy;
use ring_proto::index::Depth;
use ring_proto::shared::Ring;
use ring_proto::sync::AtomicU64;

/// Where a client's memory starts in its IOVA space.
pub(crate) const BASE: u64 = 1 << 32;
/// First byte behind what the client keeps for itself: admin rings, EQ, connection record.
pub(crate) const HEAP: u64 = 0x1_0000;

/// A mapping of a memory file, by IOVA.
#[derive(Debug)]
pub(crate) struct Memory {
    map: MmapRaw,
    next: u64,
}

impl Memory {
    /// Maps all of a file that has `len` bytes.
    pub(crate) fn new(file: &OwnedFd, len: u64) -> Self {
        let map = MmapOptions::new().map_raw(file.as_raw_fd()).unwrap();
        assert_eq!(u64::try_from(map.len()), Ok(len));
        Self { map, next: HEAP }
    }

    pub(crate) fn len(&self) -> u64 {
        u64::try_from(self.map.len()).unwrap()
    }

    pub(crate) fn alloc(&mut self, len: u64) -> u64 {
        let at = self.next;
        self.next += len.next_multiple_of(64);
        assert!(self.next <= self.len(), "the client's memory is used up");
        BASE + at
    }

    /// Empties all of it, and starts to allocate anew.
    pub(crate) fn clear(&mut self) {
        self.zero(BASE, self.map.len());
        self.next = HEAP;
    }

    fn place(&self, iova: u64, len: usize) -> *mut u8 {
        let offset = usize::try_from(iova - BASE).unwrap();
        assert!(offset + len <= self.map.len());
        self.map.as_mut_ptr().wrapping_add(offset)
    }

    pub(crate) fn write(&self, iova: u64, bytes: &[u8]) {
        // SAFETY: 1. `place` checks the range; `bytes` is ours. 2. Disjoint memory. 3. No reference covers the mapping.
        unsafe { copy::copy(self.place(iova, bytes.len()), bytes.as_ptr(), bytes.len()) };
    }

    pub(crate) fn read(&self, iova: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        // SAFETY: 1. `place` checks the range; `bytes` is ours. 2. Disjoint memory. 3. No reference covers the mapping.
        unsafe { copy::copy(bytes.as_mut_ptr(), self.place(iova, len), len) };
        bytes
    }

    pub(crate) fn zero(&self, iova: u64, len: usize) {
        self.write(iova, &vec![0; len]);
    }

    /// A word of it, as its program shares it with the device.
    pub(crate) fn word(&self, iova: u64) -> &AtomicU64 {
        let place = NonNull::new(self.place(iova, 8)).unwrap();
        // SAFETY: 1. `place` checks the range, callers pass multiples of 8, and the mapping lives in `self`. 2. Nothing but views,
        //         atomics and `copy` reach it.
        unsafe { ring_proto::shared::word(place.cast()) }
    }

    pub(crate) fn ring<const WORDS: usize>(&self, iova: u64, depth: u32) -> Ring<WORDS> {
        let depth = Depth::new(depth).unwrap();
        let len = usize::try_from(Ring::<WORDS>::bytes(depth)).unwrap();
        let place = NonNull::new(self.place(iova, len)).unwrap();
        // SAFETY: 1. `place` checks the range, aligned by `alloc`. 2. Reached through views, `copy` and volatile bytes only.
        unsafe { Ring::new(place.cast(), depth) }
    }

    /// Flips a bit of it, while the device reads and writes it.
    pub(crate) fn flip(&self, offset: u64, bit: u32) {
        flip(&self.map, offset, bit);
    }
}

/// Flips a bit of a mapping that the device shares.
pub(crate) fn flip(map: &MmapRaw, offset: u64, bit: u32) {
    let offset = usize::try_from(offset).unwrap();
    assert!(offset < map.len());
    let place = map.as_mut_ptr().wrapping_add(offset);
    // SAFETY: in bounds by the assertion, valid for the life of the mapping; no reference but to atomics covers it.
    let byte = unsafe { place.read_volatile() };
    // SAFETY: as above.
    unsafe { place.write_volatile(byte ^ (1 << (bit % 8))) };
}
