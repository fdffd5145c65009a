//! Audit: every system call that does not pass through the library is looked at, and told if it touches what is the library's.
//!
//! Place: the constructor begins it where `sanlab run --audit` asks for it; `real` calls [`open`] and [`close`] around real functions;
//! fork handlers and `pthread_create` arm what is new. Invariants: the kernel hands back every system call of an armed thread from
//! outside this library's own code, unless the thread's selector says that a real function runs for an export. `trap` decides and lets
//! the call go on in the program's own registers and on its own stack, so nothing of it is emulated but what concerns SIGSYS itself.
//! When it is off nothing of it runs: the table of real functions is as it was.
//! Source: Documentation/admin-guide/syscall-user-dispatch.rst of the kernel. Leaves out: threads that the C library starts for itself,
//! children of `vfork`, and programs without the library.
#![expect(
    unsafe_code,
    reason = "a word in thread-local memory, and raw system calls"
)]

mod memory;
mod place;
mod thunks;
mod touch;
mod trap;

use core::ffi::{c_int, c_void};

use libc::sigset_t;
use ring_proto::sync::{AtomicU32, AtomicU64, Ordering};
use switch::sys;

use crate::runtime::{self, Runtime};
use crate::{real, signals};

/// The kernel lets a call through.
const ALLOW: u32 = 0;
/// The kernel hands a call back.
const BLOCK: u32 = 1;

/// `PR_SYS_DISPATCH_ON`.
const ON: usize = 1;

static IS_ON: AtomicU32 = AtomicU32::new(0);

/// What each thread has of the audit. The order is known to `thunks`.
#[repr(C)]
struct Thread {
    /// Its lowest byte is read by the kernel at each call.
    selector: AtomicU32,
    /// 1: the kernel hands this thread's calls back.
    is_armed: AtomicU32,
    /// 1: the C library's `fork` runs, and its handlers have.
    is_forking: AtomicU32,
    /// Where a call goes on that shares its stack with a child.
    next: AtomicU64,
    /// A signal mask for the kernel.
    mask: AtomicU64,
}

/// Whether calls of this process are watched.
#[inline]
pub(crate) fn is_on() -> bool {
    // Relaxed: set before any other thread runs.
    IS_ON.load(Ordering::Relaxed) != 0
}

/// Begins to watch this process. For the constructor.
pub(crate) fn begin(runtime: &Runtime) {
    let report = &runtime.process.telemetry.report;
    if !trap::install() || !arm() {
        report.watched(false);
        return;
    }
    report.watched(true);
    // Relaxed: no other thread runs.
    IS_ON.store(1, Ordering::Relaxed);
    real::watch();
}

/// Arms the calling thread.
fn arm() -> bool {
    let Some((start, len)) = place::own_text() else {
        return false;
    };
    let thread = thunks::thread();
    // Relaxed, here and below: this thread's own words; the kernel looks at them when the thread calls it.
    thread.selector.store(BLOCK, Ordering::Relaxed);
    let args = [
        sys::PR_SET_SYSCALL_USER_DISPATCH,
        ON,
        start,
        len,
        (&raw const thread.selector).expose_provenance(),
        0,
    ];
    // SAFETY: the kernel reads the selector as long as the thread lives, and the thread-local block lives as long.
    let is_armed = unsafe { sys::syscall(libc::SYS_prctl, args) }.is_ok();
    thread
        .is_armed
        .store(u32::from(is_armed), Ordering::Relaxed);
    is_armed
}

/// Before a real function runs for an export: its system calls are the library's.
#[inline]
pub(crate) fn open() {
    if thunks::thread().is_armed.load(Ordering::Relaxed) == 0 {
        arm_late();
    }
    select(ALLOW);
}

/// After a real function.
#[inline]
pub(crate) fn close() {
    select(BLOCK);
}

fn select(selector: u32) {
    thunks::thread().selector.store(selector, Ordering::Relaxed);
}

/// Arms a thread that nobody saw begin, at its first call of an export. A `vfork` child is its parent's thread and is left alone.
#[cold]
fn arm_late() {
    if is_on() && runtime::get().is_some_and(|r| !r.process.is_foreign()) {
        arm();
    }
}

/// Arms a thread that begins.
pub(crate) fn thread_begins() {
    arm();
}

/// Before the program's handler of a signal runs: it may have come while a real function ran. Gives what [`handler_ended`] takes.
#[inline]
pub(crate) fn handler_begins() -> u32 {
    if !is_on() {
        return ALLOW;
    }
    let before = thunks::thread().selector.load(Ordering::Relaxed);
    select(BLOCK);
    before
}

/// After the handler. One that leaves by a jump leaves the calls watched.
#[inline]
pub(crate) fn handler_ended(before: u32) {
    if is_on() {
        select(before);
    }
}

/// Around the C library's `fork`.
pub(crate) fn forking(is_forking: bool) {
    if is_on() {
        let word = &thunks::thread().is_forking;
        word.store(u32::from(is_forking), Ordering::Relaxed);
    }
}

/// In a child of `fork`, whose calls the kernel does not hand back by itself.
pub(crate) fn after_fork_in_child() {
    forking(false);
    if is_on()
        && let Some(runtime) = runtime::get()
    {
        runtime.process.telemetry.report.watched(arm());
    }
}

/// Whether the C library's `fork` runs in this thread.
fn is_forking() -> bool {
    thunks::thread().is_forking.load(Ordering::Relaxed) != 0
}

/// A mask for a real function that waits with it: a handler that runs under it must not meet a blocked SIGSYS, which ends the process.
#[inline]
pub(crate) fn without_trap(mask: *const sigset_t) -> *const sigset_t {
    trap::without_trap(mask.expose_provenance()).map_or(mask, core::ptr::with_exposed_provenance)
}

/// The program's own handler of SIGSYS is kept, and called for what the kernel did not send for the audit.
pub(crate) fn is_kept(signal: c_int) -> bool {
    is_on() && signal == libc::SIGSYS
}

/// A thread on its way: its function, and that function's argument.
struct Start {
    function: *mut c_void,
    argument: *mut c_void,
}

/// What a thread of the program begins with in place of its own function. Null without memory.
pub(crate) fn start_of(function: *mut c_void, argument: *mut c_void) -> *mut c_void {
    // SAFETY: any size may be asked for.
    let start: *mut Start = unsafe { libc::malloc(size_of::<Start>()) }.cast();
    if !start.is_null() {
        // SAFETY: room of the right size and alignment.
        unsafe { start.write(Start { function, argument }) };
    }
    start.cast()
}

/// Gives back what [`start_of`] made for a thread that does not begin.
pub(crate) fn forget_start(start: *mut c_void) {
    // SAFETY: from `malloc`, and nobody else's.
    unsafe { libc::free(start) };
}

/// Arms the new thread and gives its function and argument.
///
/// # Safety
/// `start` came from [`start_of`] and is given once.
unsafe fn begin_thread(start: *mut c_void) -> Start {
    thread_begins();
    // SAFETY: by the caller's promise.
    let begun = unsafe { start.cast::<Start>().read() };
    // SAFETY: from `malloc`, and read.
    unsafe { libc::free(start) };
    begun
}

/// First function of a thread of `pthread_create`. Nothing here has a destructor: a cancelled thread unwinds through it.
pub(crate) unsafe extern "C-unwind" fn posix_thread(start: *mut c_void) -> *mut c_void {
    // SAFETY: `pthread_create` passes what it was given.
    let start = unsafe { begin_thread(start) };
    // SAFETY: the program gave a function of this type.
    let function = unsafe {
        core::mem::transmute::<*mut c_void, unsafe extern "C-unwind" fn(*mut c_void) -> *mut c_void>(
            start.function,
        )
    };
    // SAFETY: with its own argument.
    unsafe { function(start.argument) }
}

/// First function of a thread of `thrd_create`.
pub(crate) unsafe extern "C-unwind" fn c11_thread(start: *mut c_void) -> c_int {
    // SAFETY: `thrd_create` passes what it was given.
    let start = unsafe { begin_thread(start) };
    // SAFETY: the program gave a function of this type.
    let function = unsafe {
        core::mem::transmute::<*mut c_void, unsafe extern "C-unwind" fn(*mut c_void) -> c_int>(
            start.function,
        )
    };
    // SAFETY: with its own argument.
    unsafe { function(start.argument) }
}

/// Whether the library makes a thread of its own, which is not watched.
pub(crate) fn is_own_thread() -> bool {
    signals::is_inside()
}
