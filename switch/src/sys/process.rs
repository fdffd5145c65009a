//! The calling process and its threads.

use core::ptr;
use core::ptr::with_exposed_provenance;

use super::{int, syscall, to_int};

/// Process id, from the kernel: right in a `vfork` child too.
#[must_use]
pub fn getpid() -> i32 {
    // SAFETY: takes no argument and cannot fail.
    unsafe { syscall(libc::SYS_getpid, [0; 6]) }.map_or(0, to_int)
}

/// Number of the calling thread.
#[must_use]
pub fn gettid() -> i32 {
    // SAFETY: takes no argument and cannot fail.
    unsafe { syscall(libc::SYS_gettid, [0; 6]) }.map_or(0, to_int)
}

/// Whether a thread of this process lives.
#[must_use]
pub fn thread_exists(thread: i32) -> bool {
    let args = [int(getpid()), int(thread), 0, 0, 0, 0];
    // SAFETY: takes no pointer; signal 0 is sent to nobody.
    let result = unsafe { syscall(libc::SYS_tgkill, args) };
    result != Err(libc::ESRCH)
}

/// Sends a signal to the calling thread.
pub fn raise(signal: i32) {
    let args = [int(getpid()), int(gettid()), int(signal), 0, 0, 0];
    // SAFETY: takes no pointer. It can fail for a bad number only.
    unsafe { syscall(libc::SYS_tgkill, args) }.ok();
}

/// Sends a signal to the calling thread with what it carried before.
pub fn queue_to_self(info: &libc::siginfo_t) {
    let address = ptr::from_ref(info).expose_provenance();
    let args = [
        int(getpid()),
        int(gettid()),
        int(info.si_signo),
        address,
        0,
        0,
    ];
    // SAFETY: the fourth argument points at a siginfo. The kernel lets a process say anything to itself.
    unsafe { syscall(libc::SYS_rt_tgsigqueueinfo, args) }.ok();
}

/// `PR_SET_SYSCALL_USER_DISPATCH` of prctl(2).
pub const PR_SET_SYSCALL_USER_DISPATCH: usize = 59;

/// Whether the kernel can hand a program's system calls back to it. Turns nothing on; what is on goes off.
#[must_use]
pub fn can_dispatch() -> bool {
    let args = [PR_SET_SYSCALL_USER_DISPATCH, 0, 0, 0, 0, 0];
    // SAFETY: takes no pointer.
    cfg!(target_arch = "x86_64") && unsafe { syscall(libc::SYS_prctl, args) }.is_ok()
}

/// Gives the processor away.
pub fn yield_now() {
    // SAFETY: takes no argument and cannot fail.
    unsafe { syscall(libc::SYS_sched_yield, [0; 6]) }.ok();
}

/// What the program was executed by, as it was given to `execve`; for a script the script.
#[must_use]
pub fn executed_as() -> &'static [u8] {
    // SAFETY: no conditions.
    let name = unsafe { libc::getauxval(libc::AT_EXECFN) };
    let name = with_exposed_provenance::<core::ffi::c_char>(usize::try_from(name).unwrap_or(0));
    if name.is_null() {
        return &[];
    }
    // SAFETY: a string that the kernel put at the end of the first stack; it lies there as long as the process lives.
    unsafe { core::ffi::CStr::from_ptr(name) }.to_bytes()
}

/// Writes the path of the program's file to `path`, cut to its length, and returns the bytes written.
pub fn executable(path: &mut [u8]) -> usize {
    let link = c"/proc/self/exe";
    let args = [
        int(libc::AT_FDCWD),
        link.as_ptr().expose_provenance(),
        path.as_mut_ptr().expose_provenance(),
        path.len(),
        0,
        0,
    ];
    // SAFETY: a C string, and room of the length given.
    unsafe { syscall(libc::SYS_readlinkat, args) }.unwrap_or(0)
}
