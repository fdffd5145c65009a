//! The copy routine for memory that another process may change at any time.
//!
//! Place: the NIC moves payload with it, the driver and the switch fill and drain rings with it.
//! Invariants: no reference or slice is ever formed over shared memory; the compiler sees one opaque block, so a racing writer can
//! only change the bytes that arrive, never the program. One forward pass: the last byte is written last.
//! Hot: [`copy`]. Source: ours; `rep movsb` equals memcpy on processors with FSRM.
#![expect(
    unsafe_code,
    reason = "moves bytes between raw pointers that other processes may write"
)]

/// Copies `len` bytes from `source` to `target`.
///
/// # Safety
/// 1. `source` is readable and `target` writable for `len` bytes, for the whole call.
/// 2. The two ranges do not overlap.
/// 3. No Rust reference covers either range, unless this program alone can touch that range.
#[inline]
pub unsafe fn copy(target: *mut u8, source: *const u8, len: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: 1. and 2. by the caller. The block touches only [source, source+len) and [target, target+len), keeps the stack and
    // the direction flag (clear by the ABI) as they are, and declares every register it changes.
    unsafe {
        core::arch::asm!(
            "rep movsb",
            inout("rcx") len => _,
            inout("rdi") target => _,
            inout("rsi") source => _,
            options(nostack, preserves_flags)
        );
    }
    #[cfg(not(target_arch = "x86_64"))]
    for i in 0..len {
        // SAFETY: 1. `i < len`, so both pointers stay inside the caller's ranges; volatile keeps the compiler from assuming anything.
        let byte = unsafe { source.add(i).read_volatile() };
        // SAFETY: as above, for the target.
        unsafe { target.add(i).write_volatile(byte) };
    }
}
