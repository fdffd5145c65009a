//! No allocation in a round, neither of the client nor of the NIC.
//!
//! Place: counts every call of the program's allocator. Invariants: other threads would be counted too; there are none.

use std::alloc::{GlobalAlloc, Layout, System};

use ring_proto::sync::{AtomicU64, Ordering};

use crate::stage::Stage;

struct Counting(AtomicU64);

#[global_allocator]
static ALLOCATOR: Counting = Counting(AtomicU64::new(0));

// SAFETY: hands every call on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // Relaxed: a count, read by the same thread.
        self.0.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // Relaxed: as above.
        self.0.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Runs rounds and counts.
pub(crate) fn check() -> Result<String, String> {
    let mut stage = Stage::new();
    for _ in 0..10 {
        stage.round();
    }
    // Relaxed: one thread.
    let before = ALLOCATOR.0.load(Ordering::Relaxed);
    for _ in 0..100 {
        stage.round();
    }
    match ALLOCATOR.0.load(Ordering::Relaxed) - before {
        0 => Ok("none in 100 rounds".to_owned()),
        calls => Err(format!("{calls} calls of the allocator in 100 rounds")),
    }
}
