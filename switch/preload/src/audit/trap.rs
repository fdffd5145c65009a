//! The handler of SIGSYS: what the kernel hands back is looked at, and goes on.
//!
//! Place: the kernel calls [`arrive`] for every system call of an armed thread from outside this library. Invariants: it holds no lock and
//! allocates nothing. The call itself is made behind the handler, by a thunk, with the program's own stack, registers and mask, so that
//! it blocks, restarts, forks and is cancelled as always. Only two are made here, for a mask without SIGSYS: `rt_sigaction` and
//! `rt_sigprocmask`; a thread that blocks SIGSYS would die of its next call.
//! DEVIATION: under the audit SIGSYS cannot be blocked, and a program's handler of it sees no call that the audit lets pass.
//! Source: sigaction(2), sigreturn(2); signal frames of x86-64 as the kernel lays them out.
#![expect(unsafe_code, reason = "reads and changes the interrupted context")]

use core::ffi::{c_int, c_void};

use libc::{
    REG_EFL, REG_R8, REG_R9, REG_R10, REG_RAX, REG_RCX, REG_RDI, REG_RDX, REG_RIP, REG_RSI,
    REG_RSP, siginfo_t, ucontext_t,
};
use ring_proto::sync::Ordering;
use switch::sys;

use super::memory::peek;
use super::touch::{self, Call, INSTRUCTION};
use super::{ALLOW, is_forking, select, thunks};
use crate::{runtime, signals};

/// `si_code` of a call that was handed back.
const SYS_USER_DISPATCH: c_int = 2;
/// Word of the siginfo with the architecture.
const ARCH: usize = 7;
/// `AUDIT_ARCH_X86_64`.
const X86_64: u32 = 0xc000_003e;
/// The bit of SIGSYS in a mask.
const TRAP: u64 = 1 << (libc::SIGSYS - 1);
/// The signal by which the C library cancels a thread.
const SIGCANCEL: c_int = 32;
const SA_RESTORER: u64 = 0x0400_0000;

/// The kernel's action.
#[repr(C)]
#[derive(Clone, Copy)]
struct Action {
    handler: usize,
    flags: u64,
    restorer: usize,
    mask: u64,
}

/// Installs the handler, and lets the signal come.
pub(super) fn install() -> bool {
    // Restarting: a handler without would count as one that wants calls interrupted.
    let flags = libc::SA_SIGINFO | libc::SA_NODEFER | libc::SA_RESTART;
    let action = Action {
        handler: arrive as *const () as usize,
        flags: u64::from(flags.cast_unsigned()) | SA_RESTORER,
        restorer: thunks::address(thunks::sanlab_audit_restorer),
        mask: 0,
    };
    set_action(libc::SIGSYS, (&raw const action).expose_provenance(), 0).is_ok()
        && set_mask(
            libc::SIG_UNBLOCK,
            (&raw const TRAP_MASK).expose_provenance(),
            0,
        )
        .is_ok()
}

static TRAP_MASK: u64 = TRAP;

fn set_action(signal: c_int, new: usize, old: usize) -> sys::SysResult<usize> {
    let args = [sys::int(signal), new, old, 8, 0, 0];
    // SAFETY: null, or addresses of actions as the kernel knows them; those of the program the kernel checks.
    unsafe { sys::syscall(libc::SYS_rt_sigaction, args) }
}

fn set_mask(how: c_int, new: usize, old: usize) -> sys::SysResult<usize> {
    let args = [sys::int(how), new, old, 8, 0, 0];
    // SAFETY: null, or addresses of masks; those of the program the kernel checks.
    unsafe { sys::syscall(libc::SYS_rt_sigprocmask, args) }
}

#[expect(clippy::cast_possible_truncation, reason = "64-bit architectures")]
const fn word(value: u64) -> usize {
    value as usize
}

/// The interrupted registers.
struct Registers<'a>(&'a mut ucontext_t);

impl Registers<'_> {
    fn get(&self, register: c_int) -> usize {
        word(self.0.uc_mcontext.gregs[register.unsigned_abs() as usize].cast_unsigned())
    }

    fn set(&mut self, register: c_int, value: usize) {
        let value = (value as u64).cast_signed();
        self.0.uc_mcontext.gregs[register.unsigned_abs() as usize] = value;
    }

    /// The mask of the interrupted thread, which comes back with its registers.
    fn mask(&mut self) -> &mut u64 {
        // SAFETY: the kernel's mask is the first word of the C library's longer one.
        unsafe { &mut *(&raw mut self.0.uc_sigmask).cast() }
    }

    /// Ends the call here.
    fn answer(&mut self, result: sys::SysResult<usize>) {
        let value = match result {
            Ok(value) => value,
            Err(errno) => sys::int(-errno),
        };
        self.set(REG_RAX, value);
    }

    /// Lets the call go on in one of our own places.
    fn go_on(&mut self, at: unsafe extern "C" fn()) {
        self.set(REG_RIP, thunks::address(at));
    }

    /// Lets the program's own instruction make the call, and all that follow until an export is called.
    fn let_pass(&mut self) {
        select(ALLOW);
        let at = self.get(REG_RIP) - INSTRUCTION;
        self.set(REG_RIP, at);
    }
}

/// What the kernel calls.
unsafe extern "C-unwind" fn arrive(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel's siginfo is valid during the handler.
    let code = unsafe { (*info).si_code };
    if code != SYS_USER_DISPATCH {
        if !signals::deliver(signal, info, context) {
            die(signal);
        }
        return;
    }
    // SAFETY: as above, and longer than this. Behind address and number of the call stands the architecture of its kind.
    let words: [u32; 8] = unsafe { info.cast::<[u32; 8]>().read() };
    let arch = words[ARCH];
    // SAFETY: the kernel passes a context that is the handler's to change.
    let mut registers = Registers(unsafe { &mut *context.cast() });
    if arch == X86_64 {
        route(&mut registers);
    } else {
        registers.let_pass();
    }
}

/// Nobody handles a signal that somebody sent.
fn die(signal: c_int) {
    let default = Action {
        handler: libc::SIG_DFL,
        flags: 0,
        restorer: 0,
        mask: 0,
    };
    // It cannot fail for this signal.
    set_action(signal, (&raw const default).expose_provenance(), 0).ok();
    sys::raise(signal);
}

fn route(registers: &mut Registers<'_>) {
    let call = Call {
        number: registers.get(REG_RAX),
        args: [REG_RDI, REG_RSI, REG_RDX, REG_R10, REG_R8, REG_R9].map(|r| registers.get(r)),
        next: registers.get(REG_RIP),
    };
    let [a, b, c, d, e, f] = call.args;
    let mut flags = None;
    match i64::try_from(call.number).unwrap_or(-1) {
        libc::SYS_rt_sigreturn => {
            clear_in_frame(registers.get(REG_RSP));
            return registers.go_on(thunks::sanlab_audit_leave);
        }
        libc::SYS_rt_sigaction if d == 8 => {
            return registers.answer(action(sys::to_int(a), b, c));
        }
        libc::SYS_rt_sigprocmask if d == 8 => {
            let result = mask(sys::to_int(a), b, c);
            let mut now = 0_u64;
            if set_mask(libc::SIG_BLOCK, 0, (&raw mut now).expose_provenance()).is_ok() {
                *registers.mask() = now & !TRAP;
            }
            return registers.answer(result);
        }
        // There is one dispatcher.
        libc::SYS_prctl if a == sys::PR_SET_SYSCALL_USER_DISPATCH => {
            return registers.answer(Err(libc::EINVAL));
        }
        libc::SYS_rt_sigsuspend => replace_mask(registers, REG_RDI, a),
        libc::SYS_ppoll => replace_mask(registers, REG_R10, d),
        libc::SYS_epoll_pwait | libc::SYS_epoll_pwait2 => replace_mask(registers, REG_R8, e),
        libc::SYS_pselect6 => replace_pair(f),
        libc::SYS_vfork => flags = Some((VM, 0)),
        libc::SYS_fork => flags = Some((0, 0)),
        libc::SYS_clone => flags = Some((a as u64, b)),
        libc::SYS_clone3 => {
            // Flags first, the stack in the sixth word.
            flags = peek::<[u64; 7]>(a).map(|words| (words[0], word(words[5])));
        }
        _ => {}
    }
    let is_copy = flags.is_some_and(|(flags, _)| flags & VM == 0) && !is_forking();
    if !signals::is_inside()
        && let Some(runtime) = runtime::get()
    {
        touch::look(runtime, &call, is_copy);
    }
    match flags {
        // The child has other thread-local words, or another stack and memory of its own: only its own instruction brings it back.
        Some((flags, _)) if flags & SETTLS != 0 => registers.let_pass(),
        Some((flags, stack)) if flags & VM == 0 && stack != 0 => registers.let_pass(),
        Some((flags, _)) if flags & VM != 0 => {
            // Relaxed: this thread's own word.
            let next = &thunks::thread().next;
            next.store(call.next as u64, Ordering::Relaxed);
            registers.go_on(thunks::sanlab_audit_shared);
        }
        _ => {
            registers.set(REG_RCX, call.next);
            registers.go_on(thunks::sanlab_audit_thunk);
        }
    }
}

/// `CLONE_VM` and `CLONE_SETTLS`.
const VM: u64 = 0x100;
const SETTLS: u64 = 0x0008_0000;

/// `rt_sigaction`: no handler runs with SIGSYS blocked, and that of SIGSYS stays ours.
fn action(signal: c_int, new: usize, old: usize) -> sys::SysResult<usize> {
    let mut action = match new {
        0 => None,
        new => Some(peek::<[u64; 4]>(new).ok_or(libc::EFAULT)?),
    };
    if signal == libc::SIGSYS {
        let new = action.map(|[handler, flags, ..]| (word(handler), word(flags)));
        let before = signals::exchange(signal, new);
        if old != 0 {
            let answer = [before.0 as u64, before.1 as u64, 0, 0];
            let bytes = (&raw const answer).cast::<u8>();
            // SAFETY: where the program expects the answer of the kernel; a bad address is its own fault.
            unsafe { core::ptr::with_exposed_provenance_mut::<u8>(old).copy_from(bytes, 32) };
        }
        return Ok(0);
    }
    if let Some([_, flags, _, mask]) = &mut action {
        *mask &= !TRAP;
        if signal == SIGCANCEL {
            // The call that it interrupts is made outside of the C library, where its handler does not know it: it must fail, or the
            // cancellation would wait for the next one.
            *flags &= !u64::from(libc::SA_RESTART.cast_unsigned());
        }
    }
    let new = action
        .as_ref()
        .map_or(0, |action| (&raw const *action).expose_provenance());
    set_action(signal, new, old)
}

/// `rt_sigprocmask` without SIGSYS.
fn mask(how: c_int, new: usize, old: usize) -> sys::SysResult<usize> {
    if new == 0 {
        return set_mask(how, 0, old);
    }
    let mask = peek::<u64>(new).ok_or(libc::EFAULT)? & !TRAP;
    set_mask(how, (&raw const mask).expose_provenance(), old)
}

/// A mask without SIGSYS in place of one with it, in this thread's memory.
pub(super) fn without_trap(mask: usize) -> Option<usize> {
    let value = peek::<u64>(mask).filter(|value| value & TRAP != 0)?;
    let own = &thunks::thread().mask;
    // Relaxed: this thread's own word, and the kernel's next.
    own.store(value & !TRAP, Ordering::Relaxed);
    Some(core::ptr::from_ref(own).expose_provenance())
}

fn replace_mask(registers: &mut Registers<'_>, register: c_int, mask: usize) {
    if let Some(own) = without_trap(mask) {
        registers.set(register, own);
    }
}

/// `pselect6` has its mask behind a pair of address and length.
fn replace_pair(pair: usize) {
    if let Some([mask, _]) = peek::<[u64; 2]>(pair)
        && let Some(own) = without_trap(word(mask))
    {
        // SAFETY: the C library makes the pair for this one call, and the kernel was about to read it.
        unsafe { core::ptr::with_exposed_provenance_mut::<u64>(pair).write(own as u64) };
    }
}

/// The mask that comes back with a signal frame: the frame begins with the context, flags, link, stack and registers before it.
fn clear_in_frame(context: usize) {
    let at = context + core::mem::offset_of!(ucontext_t, uc_sigmask);
    let mask = core::ptr::with_exposed_provenance_mut::<u64>(at);
    // SAFETY: the kernel is about to read its own frame there.
    let value = unsafe { mask.read() };
    if value & TRAP != 0 {
        // SAFETY: as above.
        unsafe { mask.write(value & !TRAP) };
    }
}

const _: () = assert!(REG_EFL == 17, "registers are numbered as on x86-64");
