//! Heap memory that plays the arena of a function.
#![expect(
    unsafe_code,
    reason = "turns offsets of its own blocks back into pointers"
)]

use core::ptr::{self, NonNull};
use std::sync::Mutex;

use driver::spi::{SharedMemory, SharedRegion, SpSocket};

/// Alignment of every region: a page, as in an arena.
const ALIGN: usize = 4096;
/// Bytes one allocation may have.
const MAX_LEN: u64 = 64 << 20;

/// Memory for switch records; an offset is an address. Blocks live as long as the memory.
#[derive(Debug, Default)]
pub struct MockMemory {
    blocks: Mutex<Vec<Box<[u64]>>>,
    limit: Mutex<Option<usize>>,
}

impl MockMemory {
    /// Allows `count` more allocations.
    pub fn exhaust_after(&self, count: usize) {
        *super::lock(&self.limit) = Some(count);
    }
}

impl SharedMemory for MockMemory {
    fn alloc(&self, _s: SpSocket, len: u64) -> Option<SharedRegion> {
        if let Some(left) = &mut *super::lock(&self.limit) {
            *left = left.checked_sub(1)?;
        }
        let bytes = usize::try_from(len).ok().filter(|_| len <= MAX_LEN)?;
        let words = (bytes + ALIGN).div_ceil(8);
        let mut block = vec![0_u64; words].into_boxed_slice();
        let start = block.as_mut_ptr().cast::<u8>();
        let skip = start.align_offset(ALIGN);
        let base = start.wrapping_add(skip).expose_provenance();
        super::lock(&self.blocks).push(block);
        Some(SharedRegion {
            offset: base as u64,
            len,
        })
    }

    fn free(&self, _s: SpSocket, _region: SharedRegion) {}

    fn alloc_ring(&self, s: SpSocket, len: u64) -> Option<SharedRegion> {
        self.alloc(s, len)
    }

    fn free_ring(&self, _s: SpSocket, _region: SharedRegion) {}

    fn at(&self, _s: SpSocket, offset: u64) -> Option<NonNull<u8>> {
        let address = usize::try_from(offset).ok()?;
        NonNull::new(ptr::with_exposed_provenance_mut(address))
    }
}

/// Copies between two places of the process.
///
/// # Safety
/// Both are valid for `len` bytes and do not overlap.
pub(super) unsafe fn copy(from: NonNull<u8>, to: NonNull<u8>, len: usize) {
    // SAFETY: by the caller's promise.
    unsafe { ptr::copy_nonoverlapping(from.as_ptr(), to.as_ptr(), len) };
}
