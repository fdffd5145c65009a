//! Exports: formatted text to a descriptor, which the C library writes past our `write`.
//!
//! Invariants: on a descriptor that the SAN does not carry the real function does all of it. Otherwise the text is made in the C library's
//! heap and sent as one piece, as the C library would from its buffer.
//! Source: dprintf(3); the x86-64 psABI for variable arguments. Leaves out: dprintf on other machines, where `vdprintf` is there alone.
#![expect(unsafe_code, reason = "exports with the C library's names")]

use core::ffi::{c_char, c_int, c_void};

use libc::iovec;

use super::data::carry;
use super::{exports, real};
use crate::calls::stream::{self, Way};
use crate::errno;

unsafe extern "C" {
    fn vasprintf(text: *mut *mut c_char, format: *const c_char, arguments: *mut c_void) -> c_int;
    fn __vasprintf_chk(
        text: *mut *mut c_char,
        flag: c_int,
        format: *const c_char,
        arguments: *mut c_void,
    ) -> c_int;
}

exports! {
    fn vdprintf(fd: c_int, format: *const c_char, arguments: *mut c_void) -> c_int {
        if !stream::concerns(fd) {
            return real!(vdprintf(fd, format, arguments));
        }
        let mut text = core::ptr::null_mut();
        // SAFETY: room for a pointer, and the program's own format and arguments.
        let len = unsafe { vasprintf(&raw mut text, format, arguments) };
        send_text(fd, text, len)
    }

    fn __vdprintf_chk(fd: c_int, flag: c_int, format: *const c_char, arguments: *mut c_void) -> c_int {
        if !stream::concerns(fd) {
            return real!(__vdprintf_chk(fd, flag, format, arguments));
        }
        let mut text = core::ptr::null_mut();
        // SAFETY: as above.
        let len = unsafe { __vasprintf_chk(&raw mut text, flag, format, arguments) };
        send_text(fd, text, len)
    }
}

/// Sends what was formatted and frees it. A thread that is cancelled meanwhile leaves it behind.
fn send_text(fd: c_int, text: *mut c_char, len: c_int) -> c_int {
    let Ok(whole) = usize::try_from(len) else {
        return -1;
    };
    let mut sent = 0;
    while sent < whole {
        let rest = iovec {
            iov_base: text.wrapping_add(sent).cast(),
            iov_len: whole - sent,
        };
        match carry(fd, Way::Send, &raw const rest, 1, 0) {
            Some(Ok(count)) => sent += count,
            Some(Err(errno)) => {
                errno::store(errno);
                break;
            }
            None => {
                // The socket is the kernel's after all.
                let Ok(count) = usize::try_from(real!(write(fd, rest.iov_base, rest.iov_len)))
                else {
                    break;
                };
                sent += count;
            }
        }
    }
    // SAFETY: of the C library's heap, and nobody else's.
    unsafe { libc::free(text.cast()) };
    if sent < whole { -1 } else { len }
}

/// A function with a format and arguments one by one: they are laid out as a `va_list` wants them, and `$to` takes it.
#[cfg(target_arch = "x86_64")]
macro_rules! variadic {
    ($($name:ident, $named:literal, $list:literal, $to:ident;)*) => {$(
        /// Redirect of the C library's function of this name.
        ///
        /// # Safety
        /// As of that function.
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub(crate) unsafe extern "C" fn $name() -> c_int {
            // 24 bytes of list, 48 of registers, 128 of vector registers; the stack is 8 off its alignment here and right behind.
            core::arch::naked_asm!(
                // A thread may be cancelled in the call: its unwinder must find the way.
                ".cfi_startproc",
                "sub rsp, 216",
                ".cfi_adjust_cfa_offset 216",
                "mov [rsp + 32], rdi",
                "mov [rsp + 40], rsi",
                "mov [rsp + 48], rdx",
                "mov [rsp + 56], rcx",
                "mov [rsp + 64], r8",
                "mov [rsp + 72], r9",
                "test al, al",
                "je 2f",
                "movaps [rsp + 80], xmm0",
                "movaps [rsp + 96], xmm1",
                "movaps [rsp + 112], xmm2",
                "movaps [rsp + 128], xmm3",
                "movaps [rsp + 144], xmm4",
                "movaps [rsp + 160], xmm5",
                "movaps [rsp + 176], xmm6",
                "movaps [rsp + 192], xmm7",
                "2:",
                // Bytes of named arguments in registers, then of no vector register, the stack, and the registers.
                "mov dword ptr [rsp], {named}",
                "mov dword ptr [rsp + 4], 48",
                "lea rax, [rsp + 224]",
                "mov [rsp + 8], rax",
                "lea rax, [rsp + 32]",
                "mov [rsp + 16], rax",
                concat!("mov ", $list, ", rsp"),
                "call {to}",
                "add rsp, 216",
                ".cfi_adjust_cfa_offset -216",
                "ret",
                ".cfi_endproc",
                to = sym $to,
                named = const $named,
            )
        }
    )*};
}

#[cfg(target_arch = "x86_64")]
variadic! {
    dprintf, 16, "rdx", vdprintf;
    __dprintf_chk, 24, "rcx", __vdprintf_chk;
}
