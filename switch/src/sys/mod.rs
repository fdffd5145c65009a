//! System calls without the C library.
//!
//! Place: everything in the switch and in the preload library that talks to the kernel, blocking waits excepted: those go through
//! the real C function, because they are cancellation points.
//! Invariants: no call reaches a function that the preload library exports (`std`, `nix` and `libc::syscall` would), none touches
//! `errno`, none is a cancellation point, none allocates. Safe in signal handlers and in a `vfork` child.
//! Hot: `syscall`. Source: Linux system call ABI of x86-64 and aarch64. Leaves out: calls that nobody here makes.
#![expect(
    unsafe_code,
    reason = "system calls by inline assembly, and pointers handed to the kernel"
)]

mod descriptors;
mod memory;
mod name;
mod process;
mod sockets;
mod waits;

pub use descriptors::*;
pub use memory::*;
pub use name::*;
pub use process::*;
pub use sockets::*;
pub use waits::*;

/// A Linux error number, positive.
type Errno = i32;

/// Result of a raw system call: a value, or a positive error number.
pub type SysResult<T> = Result<T, Errno>;

/// Makes a system call.
///
/// # Errors
/// The kernel's error number.
/// # Safety
/// The arguments are as the kernel's documentation of call `number` demands; pointers among them stay valid for the call.
#[inline]
pub unsafe fn syscall(number: i64, args: [usize; 6]) -> SysResult<usize> {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "numbers of system calls are small"
    )]
    let number = number as isize;
    let value: isize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the ABI of `syscall`: number in rax, arguments in rdi, rsi, rdx, r10, r8, r9; rcx and r11 are overwritten. What the
    // kernel does with them is the caller's promise.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") number => value,
            in("rdi") args[0],
            in("rsi") args[1],
            in("rdx") args[2],
            in("r10") args[3],
            in("r8") args[4],
            in("r9") args[5],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the ABI of `svc 0`: number in x8, arguments in x0 to x5, result in x0. What the kernel does is the caller's promise.
    unsafe {
        core::arch::asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") args[0] => value,
            in("x1") args[1],
            in("x2") args[2],
            in("x3") args[3],
            in("x4") args[4],
            in("x5") args[5],
            options(nostack),
        );
    }
    if (-4095..0).contains(&value) {
        #[expect(clippy::cast_possible_truncation, reason = "in 1..4096")]
        Err(-value as i32)
    } else {
        Ok(value.cast_unsigned())
    }
}

/// Widens an `int` argument as the C calling convention does.
#[inline]
#[must_use]
pub const fn int(value: i32) -> usize {
    (value as isize).cast_unsigned()
}

/// Narrows a result that the kernel documents as an `int`.
#[inline]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the kernel returns an int in this register"
)]
#[must_use]
pub const fn to_int(value: usize) -> i32 {
    value.cast_signed() as i32
}
