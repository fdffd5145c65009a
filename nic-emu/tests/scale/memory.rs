//! How much memory this thread has from the allocator: its own calls alone, so that what runs beside it is not counted.
//!
//! Place: the allocator of this test program. Invariants: memory that one thread takes and another gives back would be counted wrong; the
//! embedded device has no thread of its own.
#![expect(unsafe_code, reason = "stands in front of the system's allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
}

/// Bytes that this thread holds.
pub(crate) fn held() -> isize {
    HELD.get()
}

fn note(bytes: usize, sign: isize) {
    // A thread that ends has nothing to tell any more.
    let _ = HELD.try_with(|held| held.set(held.get() + sign * bytes.cast_signed()));
}

// SAFETY: hands every call on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size(), 1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        note(layout.size(), -1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;
