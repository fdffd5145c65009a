//! Signal handlers stay out of the library's own work.
//!
//! Place: `calls::guarded` opens a section around everything the library does; the exports of `sigaction` and `signal` put
//! [`arrive`] in front of the program's handlers. A handler that would run inside a section is put off to its end: it may leave by
//! `longjmp`, or call the very functions it interrupted, and would else leave locks and tokens taken behind.
//! Invariants: a section costs two thread-local words and no system call; a put-off signal is sent again with what it carried; the
//! program sees its own handlers and flags. Faults of the program itself are never put off.
//! DEVIATION: a handler may run a moment later than the kernel would run it.
//! Source: sigaction(2), signal-safety(7). Leaves out: handlers installed by raw system calls.
#![expect(
    unsafe_code,
    reason = "calls handlers of the program and resends signals"
)]

use core::cell::{Cell, UnsafeCell};
use core::ffi::{c_int, c_void};

use libc::{sighandler_t, siginfo_t};
use ring_proto::sync::{AtomicUsize, Ordering};
use switch::sys;

use crate::audit;

/// Signals, from 1.
const SIGNALS: usize = 65;
/// Put-off signals whose contents are kept.
const KEPT: usize = 4;

/// What the program installed.
struct Handler {
    function: AtomicUsize,
    flags: AtomicUsize,
}

static HANDLERS: [Handler; SIGNALS] = [const {
    Handler {
        function: AtomicUsize::new(0),
        flags: AtomicUsize::new(0),
    }
}; SIGNALS];

/// Signals put off by a thread.
struct Late {
    /// One bit for each signal.
    pending: Cell<u64>,
    count: Cell<usize>,
    kept: UnsafeCell<[core::mem::MaybeUninit<siginfo_t>; KEPT]>,
}

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    /// Put-off signals that were sent again: a blocking call that sees it grow was interrupted.
    static RESENT: Cell<u32> = const { Cell::new(0) };
    static LATE: Late = const {
        Late {
            pending: Cell::new(0),
            count: Cell::new(0),
            kept: UnsafeCell::new([const { core::mem::MaybeUninit::uninit() }; KEPT]),
        }
    };
}

/// Begins a section.
#[inline]
pub(crate) fn enter() {
    DEPTH.with(|depth| depth.set(depth.get() + 1));
}

/// Ends a section; the signals that came meanwhile are sent again.
#[inline]
pub(crate) fn leave() {
    let is_outermost = DEPTH.with(|depth| {
        let left = depth.get() - 1;
        depth.set(left);
        left == 0
    });
    if is_outermost && LATE.with(|late| late.pending.get() != 0) {
        resend();
    }
}

/// Whether this thread is in a section.
pub(crate) fn is_inside() -> bool {
    DEPTH.get() > 0
}

/// How many put-off signals this thread has got so far.
#[inline]
pub(crate) fn resent() -> u32 {
    RESENT.get()
}

#[cold]
fn resend() {
    LATE.with(|late| {
        RESENT.set(RESENT.get().wrapping_add(1));
        // Copied first: the handlers run as soon as the signals are sent, and may put off others.
        let pending = late.pending.replace(0);
        let count = late.count.replace(0).min(KEPT);
        // SAFETY: only this thread reaches the cell, and its handler writes it inside sections only, which this is not.
        let kept = unsafe { *late.kept.get() };
        let mut rest = pending;
        for info in &kept[..count] {
            // SAFETY: the first `count` were written by `arrive`.
            let info = unsafe { info.assume_init_ref() };
            rest &= !(1 << (info.si_signo.unsigned_abs() % 64));
            sys::queue_to_self(info);
        }
        for signal in (1..=64).filter(|s| rest & (1_u64 << (s % 64)) != 0) {
            sys::raise(signal);
        }
    });
}

/// What the kernel calls in place of the program's handler.
extern "C" fn arrive(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let is_fault = matches!(
        signal,
        libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGFPE | libc::SIGTRAP | libc::SIGSYS
    );
    if !is_fault && DEPTH.get() > 0 {
        put_off(signal, info);
        return;
    }
    run(signal, info, context);
}

fn put_off(signal: c_int, info: *const siginfo_t) {
    LATE.with(|late| {
        let bit = 1_u64 << (signal.unsigned_abs() % 64);
        late.pending.set(late.pending.get() | bit);
        let count = late.count.get();
        if count < KEPT && !info.is_null() {
            // The count grows first: a handler that interrupts this one takes the next place.
            late.count.set(count + 1);
            // SAFETY: the kernel's siginfo is valid during the handler.
            let info = unsafe { info.read() };
            // SAFETY: only this thread reaches the cell, and this place is this handler's.
            let kept = unsafe { &mut *late.kept.get() };
            kept[count].write(info);
        }
    });
}

/// Calls the program's own handler for a signal that was not the audit's. False: there is none.
pub(crate) fn deliver(signal: c_int, info: *mut siginfo_t, context: *mut c_void) -> bool {
    // Relaxed: see `run`.
    let function = handler(signal).map_or(0, |h| h.function.load(Ordering::Relaxed));
    if function > libc::SIG_IGN {
        run(signal, info, context);
    }
    function != libc::SIG_DFL
}

/// Takes note of another handler (or asks for the one there is), without the kernel.
pub(crate) fn exchange(signal: c_int, new: Option<(usize, usize)>) -> (usize, usize) {
    let Some(handler) = handler(signal) else {
        return (libc::SIG_DFL, 0);
    };
    // Relaxed: see `run`.
    let before = (
        handler.function.load(Ordering::Relaxed),
        handler.flags.load(Ordering::Relaxed),
    );
    if let Some((function, flags)) = new {
        handler.function.store(function, Ordering::Relaxed);
        handler.flags.store(flags, Ordering::Relaxed);
    }
    before
}

fn run(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let Some(handler) = handler(signal) else {
        return;
    };
    // Relaxed: two words that the program changes while it expects no signal.
    let function = handler.function.load(Ordering::Relaxed);
    let flags = handler.flags.load(Ordering::Relaxed);
    if function <= libc::SIG_IGN {
        return;
    }
    if flags & bits(libc::SA_RESETHAND) != 0 {
        handler.function.store(libc::SIG_DFL, Ordering::Relaxed);
        // SAFETY: all bytes zero is a valid action: the default one.
        let default: libc::sigaction = unsafe { core::mem::zeroed() };
        // SAFETY: a valid action, and the old one is not asked for.
        unsafe { crate::real::sigaction(signal, &raw const default, core::ptr::null_mut()) };
    }
    let audited = audit::handler_begins();
    if flags & bits(libc::SA_SIGINFO) != 0 {
        // SAFETY: the program said so by its flags.
        let function = unsafe {
            core::mem::transmute::<
                usize,
                unsafe extern "C-unwind" fn(c_int, *mut siginfo_t, *mut c_void),
            >(function)
        };
        // SAFETY: with what the kernel passed.
        unsafe { function(signal, info, context) };
    } else {
        // SAFETY: the program said so by its flags.
        let function =
            unsafe { core::mem::transmute::<usize, unsafe extern "C-unwind" fn(c_int)>(function) };
        // SAFETY: with what the kernel passed.
        unsafe { function(signal) };
    }
    audit::handler_ended(audited);
}

fn handler(signal: c_int) -> Option<&'static Handler> {
    HANDLERS
        .get(usize::try_from(signal).ok()?)
        .filter(|_| signal > 0)
}

const fn bits(flags: c_int) -> usize {
    flags.cast_unsigned() as usize
}

fn our_handler() -> sighandler_t {
    arrive as *const () as sighandler_t
}

/// Action to install in place of the program's, and what to put back if that fails.
pub(crate) struct Change {
    /// For the real `sigaction`.
    pub(crate) action: libc::sigaction,
    before: (usize, usize),
}

/// Prepares `sigaction` of a handler of the program.
pub(crate) fn change(signal: c_int, action: &libc::sigaction) -> Option<Change> {
    let handler = handler(signal)?;
    let mut changed = *action;
    // Relaxed: see `run`.
    let before = (
        handler.function.load(Ordering::Relaxed),
        handler.flags.load(Ordering::Relaxed),
    );
    handler
        .function
        .store(action.sa_sigaction, Ordering::Relaxed);
    handler
        .flags
        .store(bits(action.sa_flags), Ordering::Relaxed);
    if action.sa_sigaction > libc::SIG_IGN {
        changed.sa_sigaction = our_handler();
        // A put-off signal must find its handler once more.
        changed.sa_flags = (action.sa_flags & !libc::SA_RESETHAND) | libc::SA_SIGINFO;
        if audit::is_on() {
            // SAFETY: a set, and a signal there is.
            unsafe { libc::sigdelset(&raw mut changed.sa_mask, libc::SIGSYS) };
        }
    }
    Some(Change {
        action: changed,
        before,
    })
}

/// Takes a change back that the kernel refused.
pub(crate) fn revert(signal: c_int, change: &Change) {
    if let Some(handler) = handler(signal) {
        handler.function.store(change.before.0, Ordering::Relaxed);
        handler.flags.store(change.before.1, Ordering::Relaxed);
    }
}

/// As [`show`], where the kernel was not asked.
pub(crate) fn show_kept(signal: c_int, old: &mut libc::sigaction, change: Option<&Change>) {
    // SAFETY: all bytes zero is a valid action.
    *old = unsafe { core::mem::zeroed() };
    old.sa_sigaction = our_handler();
    show(signal, old, change);
}

/// Shows the program what it had installed: `old` is the kernel's answer, `change` what replaced it, if anything did.
pub(crate) fn show(signal: c_int, old: &mut libc::sigaction, change: Option<&Change>) {
    if old.sa_sigaction != our_handler() {
        return;
    }
    let Some(handler) = handler(signal) else {
        return;
    };
    let (function, flags) = change.map_or_else(
        || {
            (
                handler.function.load(Ordering::Relaxed),
                handler.flags.load(Ordering::Relaxed),
            )
        },
        |c| c.before,
    );
    old.sa_sigaction = function;
    // The flags came from an int.
    old.sa_flags = c_int::try_from(flags).unwrap_or(old.sa_flags);
}
