//! The few instructions of the audit that no compiler writes.
//!
//! Place: `trap` sends calls here; `super` reads the thread's words. Invariants: each lies in this library's code, where the kernel hands
//! nothing back. A call goes on with its own registers and flags; rcx and r11 are lost to every system call anyway. The return address
//! lies on the stack, below what the program may use without moving its stack pointer, so that signals and threads do not meet in it,
//! and an unwinder is told so. Source: the x86-64 psABI; ours.
//!
//! ```text
//! thunk      lea rsp,-128   push next   syscall   ret 128        in the program's stack, below its red zone
//! shared     syscall   jmp fs:next                               for a child on the same stack, which would overwrite that
//! leave      syscall                                             rt_sigreturn, which comes back elsewhere
//! restorer   mov rax,15   syscall                                known to unwinders by these very bytes
//! ```
#![expect(unsafe_code, reason = "assembly")]

use super::Thread;

core::arch::global_asm!(
    ".pushsection .tbss,\"awT\",@nobits",
    ".balign 8",
    ".globl sanlab_audit_thread",
    ".hidden sanlab_audit_thread",
    ".type sanlab_audit_thread, @tls_object",
    ".size sanlab_audit_thread, 32",
    "sanlab_audit_thread:",
    ".zero 32",
    ".popsection",
    ".pushsection .text.sanlab_audit,\"ax\",@progbits",
    ".balign 16",
    // The unwinder looks one byte before a return address: that must belong to nobody.
    "nop",
    ".globl sanlab_audit_restorer",
    ".hidden sanlab_audit_restorer",
    "sanlab_audit_restorer:",
    "mov rax, 15",
    "syscall",
    "ud2",
    ".balign 16",
    ".globl sanlab_audit_leave",
    ".hidden sanlab_audit_leave",
    "sanlab_audit_leave:",
    "syscall",
    "ud2",
    ".balign 16",
    ".globl sanlab_audit_thunk",
    ".hidden sanlab_audit_thunk",
    "sanlab_audit_thunk:",
    ".cfi_startproc",
    // Stack pointer 7, rcx 2, return address 16.
    ".cfi_def_cfa 7, 0",
    ".cfi_register 16, 2",
    "lea rsp, [rsp - 128]",
    ".cfi_def_cfa_offset 128",
    "push rcx",
    ".cfi_def_cfa_offset 136",
    ".cfi_offset 16, -136",
    "syscall",
    "ret 128",
    ".cfi_endproc",
    ".balign 16",
    ".globl sanlab_audit_shared",
    ".hidden sanlab_audit_shared",
    "sanlab_audit_shared:",
    "syscall",
    "mov rcx, qword ptr [rip + sanlab_audit_thread@GOTTPOFF]",
    // A child that became another program left the selector open.
    "mov byte ptr fs:[rcx], {block}",
    "jmp qword ptr fs:[rcx + {next}]",
    ".popsection",
    block = const super::BLOCK,
    next = const core::mem::offset_of!(Thread, next),
);

const _: () = {
    assert!(size_of::<Thread>() <= 32);
    assert!(core::mem::offset_of!(Thread, selector) == 0);
};

unsafe extern "C" {
    /// What a signal handler returns to.
    pub(super) fn sanlab_audit_restorer();
    /// Makes the call in rax and does not come back.
    pub(super) fn sanlab_audit_leave();
    /// Makes the call in rax and goes on at rcx.
    pub(super) fn sanlab_audit_thunk();
    /// Makes the call in rax and goes on at [`Thread::next`].
    pub(super) fn sanlab_audit_shared();
}

/// Address of one of the above.
pub(super) fn address(of: unsafe extern "C" fn()) -> usize {
    of as *const () as usize
}

/// The words of this thread.
#[inline]
pub(super) fn thread() -> &'static Thread {
    let thread: *const Thread;
    // SAFETY: reads the thread pointer and adds the place of our block, which the dynamic linker has put there for every thread.
    unsafe {
        core::arch::asm!(
            "mov {0}, qword ptr fs:[0]",
            "add {0}, qword ptr [rip + sanlab_audit_thread@GOTTPOFF]",
            out(reg) thread,
            options(pure, nomem, nostack),
        );
    }
    // SAFETY: room for the words, which zero bytes are, as long as the thread lives; all of them are atomics.
    unsafe { &*thread }
}
