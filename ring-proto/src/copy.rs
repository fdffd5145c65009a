//! The copy routine for memory that another process may change at any time.
//!
//! Place: the NIC moves payload with it, the driver and the switch fill and drain rings with it.
//! Invariants: no reference or slice is ever formed over shared memory; the compiler sees opaque blocks, so a racing writer can
//! only change the bytes that arrive, never the program. One forward pass: the last byte is written last. Eight aligned bytes that are
//! copied alone arrive as one word.
//! Hot: [`copy`]. Source: ours; `rep movsb` equals memcpy on processors with FSRM, but for its start, which a short message does not
//! earn back.
#![expect(
    unsafe_code,
    reason = "moves bytes between raw pointers that other processes may write"
)]

/// Longest copy that is done register by register.
#[cfg(target_arch = "x86_64")]
const SHORT: usize = 256;

/// Copies `len` bytes from `source` to `target`.
///
/// # Safety
/// 1. `source` is readable and `target` writable for `len` bytes, for the whole call.
/// 2. The two ranges do not overlap.
/// 3. No Rust reference covers either range, unless this program alone can touch that range.
#[inline]
pub unsafe fn copy(target: *mut u8, source: *const u8, len: usize) {
    #[cfg(target_arch = "x86_64")]
    if len <= SHORT {
        // SAFETY: 1. to 3. by the caller.
        unsafe { copy_short(target, source, len) };
    } else {
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
    }
    #[cfg(not(target_arch = "x86_64"))]
    for i in 0..len {
        // SAFETY: 1. `i < len`, so both pointers stay inside the caller's ranges; volatile keeps the compiler from assuming anything.
        let byte = unsafe { source.add(i).read_volatile() };
        // SAFETY: as above, for the target.
        unsafe { target.add(i).write_volatile(byte) };
    }
}

/// Moves the bytes at offset `$at` through one register.
#[cfg(target_arch = "x86_64")]
macro_rules! piece {
    ($class:ident, $load:literal, $store:literal, $target:expr, $source:expr, $at:expr) => {
        // SAFETY: the users of this macro name the bytes; they lie in the caller's ranges. The block touches nothing else but the
        // register it declares.
        unsafe {
            core::arch::asm!(
                $load,
                $store,
                from = in(reg) $source.wrapping_add($at),
                to = in(reg) $target.wrapping_add($at),
                word = out($class) _,
                options(nostack, preserves_flags)
            );
        }
    };
}

/// Copies up to [`SHORT`] bytes, in ascending order; the last piece may cover bytes of the one before it again.
///
/// # Safety
/// As for [`copy`].
#[cfg(target_arch = "x86_64")]
#[inline]
unsafe fn copy_short(target: *mut u8, source: *const u8, len: usize) {
    if len >= 16 {
        let mut at = 0;
        while len - at >= 64 {
            // SAFETY: 1. the 64 bytes at `at` end at `len` at the latest, so they lie in the caller's ranges. 2. Nothing else is touched
            //         but the registers declared.
            unsafe {
                core::arch::asm!(
                    "movups {a}, [{from}]",
                    "movups {b}, [{from} + 16]",
                    "movups {c}, [{from} + 32]",
                    "movups {d}, [{from} + 48]",
                    "movups [{to}], {a}",
                    "movups [{to} + 16], {b}",
                    "movups [{to} + 32], {c}",
                    "movups [{to} + 48], {d}",
                    from = in(reg) source.wrapping_add(at),
                    to = in(reg) target.wrapping_add(at),
                    a = out(xmm_reg) _,
                    b = out(xmm_reg) _,
                    c = out(xmm_reg) _,
                    d = out(xmm_reg) _,
                    options(nostack, preserves_flags)
                );
            }
            at += 64;
        }
        while len - at >= 16 {
            piece!(
                xmm_reg,
                "movups {word}, [{from}]",
                "movups [{to}], {word}",
                target,
                source,
                at
            );
            at += 16;
        }
        if at < len {
            piece!(
                xmm_reg,
                "movups {word}, [{from}]",
                "movups [{to}], {word}",
                target,
                source,
                len - 16
            );
        }
    } else if len >= 8 {
        piece!(
            reg,
            "mov {word}, [{from}]",
            "mov [{to}], {word}",
            target,
            source,
            0
        );
        if len > 8 {
            piece!(
                reg,
                "mov {word}, [{from}]",
                "mov [{to}], {word}",
                target,
                source,
                len - 8
            );
        }
    } else if len >= 4 {
        piece!(
            reg,
            "mov {word:e}, [{from}]",
            "mov [{to}], {word:e}",
            target,
            source,
            0
        );
        if len > 4 {
            piece!(
                reg,
                "mov {word:e}, [{from}]",
                "mov [{to}], {word:e}",
                target,
                source,
                len - 4
            );
        }
    } else {
        for at in 0..len {
            piece!(
                reg_byte,
                "mov {word}, [{from}]",
                "mov [{to}], {word}",
                target,
                source,
                at
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::copy;

    #[test]
    fn every_length_at_every_alignment_arrives_whole_and_touches_nothing_else() {
        let source: Vec<u8> = (0..700_u32).map(|at| at.to_le_bytes()[0] ^ 0x5a).collect();
        for len in (0..300).chain([511, 512, 600]) {
            for (from, to) in [(0, 0), (1, 0), (0, 3), (7, 9)] {
                let mut target = vec![0xee_u8; 700];
                let (to_bytes, from_bytes) = (&mut target[to..], &source[from..]);
                // SAFETY: 1. both have at least 691 bytes, and the longest copy 600. 2. They are different allocations. 3. This thread
                //         alone knows of them.
                unsafe { copy(to_bytes.as_mut_ptr(), from_bytes.as_ptr(), len) };
                assert_eq!(target[to..to + len], source[from..from + len], "{len}");
                assert!(target[..to].iter().all(|&byte| byte == 0xee), "{len}");
                assert!(target[to + len..].iter().all(|&byte| byte == 0xee), "{len}");
            }
        }
    }
}
