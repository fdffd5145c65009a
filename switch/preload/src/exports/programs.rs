//! Exports: starting other programs.
//!
//! Invariants: the real function is called with the program's arguments, but for the environment, and for the file of an image that
//! goes in between. Where the C library takes its arguments one by one, a few instructions make a vector of them first.
#![expect(unsafe_code, reason = "exports with the C library's names")]

use core::ffi::{c_char, c_int};

use libc::pid_t;

use super::{exports, kept, real, with_program};
use crate::calls::exec::{self, Way};

type Vector = *const *const c_char;

unsafe extern "C" {
    static environ: Vector;
}

/// The environment of the program, as it is now.
fn own_environment() -> Vector {
    // SAFETY: the C library's word; programs change it at their own risk.
    unsafe { environ }
}

/// Calls a real function with prepared arguments, and undoes what was prepared when it returns.
macro_rules! prepared {
    ($way:expr, $file:expr, $is_searched:expr, $envp:expr, |$arguments:ident| $call:expr) => {{
        let $arguments = with_program!(exec::prepare($way, $file, $is_searched, $envp));
        let result = $call;
        kept(exec::undo);
        result
    }};
}

exports! {
    fn execve(path: *const c_char, argv: Vector, envp: Vector) -> c_int {
        prepared!(Way::Exec, path, false, envp, |a| real!(execve(a.path, argv, a.envp)))
    }

    fn execv(path: *const c_char, argv: Vector) -> c_int {
        // SAFETY: as of `execve`.
        unsafe { execve(path, argv, own_environment()) }
    }

    fn execvpe(file: *const c_char, argv: Vector, envp: Vector) -> c_int {
        prepared!(Way::Exec, file, true, envp, |a| real!(execvpe(a.path, argv, a.envp)))
    }

    fn execvp(file: *const c_char, argv: Vector) -> c_int {
        // SAFETY: as of `execvpe`.
        unsafe { execvpe(file, argv, own_environment()) }
    }

    fn fexecve(fd: c_int, argv: Vector, envp: Vector) -> c_int {
        let path = with_program!(exec::path_at(fd, core::ptr::null()));
        let path = path.as_ref().map_or(core::ptr::null(), |path| path.as_ptr());
        prepared!(Way::Exec, path, false, envp, |a| if a.is_redirected {
            real!(execve(a.path, argv, a.envp))
        } else {
            real!(fexecve(fd, argv, a.envp))
        })
    }

    fn execveat(directory: c_int, path: *const c_char, argv: Vector, envp: Vector, flags: c_int) -> c_int {
        let file = with_program!(exec::path_at(directory, path));
        let file = file.as_ref().map_or(core::ptr::null(), |file| file.as_ptr());
        prepared!(Way::Exec, file, false, envp, |a| if a.is_redirected {
            real!(execve(a.path, argv, a.envp))
        } else {
            real!(execveat(directory, path, argv, a.envp, flags))
        })
    }

    fn posix_spawn(
        pid: *mut pid_t,
        path: *const c_char,
        actions: *const libc::posix_spawn_file_actions_t,
        attributes: *const libc::posix_spawnattr_t,
        argv: Vector,
        envp: Vector,
    ) -> c_int {
        let way = Way::Spawn { has_actions: !actions.is_null() };
        prepared!(way, path, false, envp, |a| {
            real!(posix_spawn(pid, a.path, actions, attributes, argv, a.envp))
        })
    }

    fn posix_spawnp(
        pid: *mut pid_t,
        file: *const c_char,
        actions: *const libc::posix_spawn_file_actions_t,
        attributes: *const libc::posix_spawnattr_t,
        argv: Vector,
        envp: Vector,
    ) -> c_int {
        let way = Way::Spawn { has_actions: !actions.is_null() };
        prepared!(way, file, true, envp, |a| {
            real!(posix_spawnp(pid, a.path, actions, attributes, argv, a.envp))
        })
    }
}

/// Which function was called with arguments one by one.
const LIST: usize = 0;
const LIST_SEARCHED: usize = 1;
const LIST_WITH_ENVIRONMENT: usize = 2;

/// Arguments that come in registers after the first.
const IN_REGISTERS: usize = 5;

/// Arguments for which no memory is allocated: a `vfork` child never gives it back.
const FEW: usize = 128;

/// Makes a vector of arguments that come one by one, and calls the function that takes one.
///
/// # Safety
/// `registers` are the arguments after the first that came in registers, `stack` the others; a null is among them, and behind it the
/// environment, if the function takes one.
unsafe extern "C" fn execute_list(
    file: *const c_char,
    registers: *const *const c_char,
    stack: *const *const c_char,
    kind: usize,
) -> c_int {
    let argument = |n: usize| {
        let at = if n < IN_REGISTERS {
            registers.wrapping_add(n)
        } else {
            stack.wrapping_add(n - IN_REGISTERS)
        };
        // SAFETY: by the caller's promise, up to the null and what follows it.
        unsafe { at.read() }
    };
    let count = (0..)
        .position(|n| argument(n).is_null())
        .expect("a list of arguments ends with a null");
    let mut few = [core::ptr::null(); FEW];
    let mut many = Vec::new();
    let argv = if count < FEW {
        &mut few[..]
    } else {
        many.resize(count + 1, core::ptr::null());
        &mut many[..]
    };
    for (n, place) in argv.iter_mut().take(count).enumerate() {
        *place = argument(n);
    }
    let argv = argv.as_ptr();
    match kind {
        // SAFETY: the program's strings and a null-terminated vector of them.
        LIST => unsafe { execv(file, argv) },
        // SAFETY: as above.
        LIST_SEARCHED => unsafe { execvp(file, argv) },
        // SAFETY: as above; the environment follows the null.
        _ => unsafe { execve(file, argv, argument(count + 1).cast()) },
    }
}

/// A function that takes the arguments of a program one by one.
macro_rules! list {
    ($($name:ident, $kind:expr;)*) => {$(
        /// Redirect of the C library's function of this name.
        ///
        /// # Safety
        /// As of that function.
        #[cfg(target_arch = "x86_64")]
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub(crate) unsafe extern "C" fn $name() -> c_int {
            // The stack is 8 off its alignment at a function's first instruction, and right again after 56 bytes.
            core::arch::naked_asm!(
                "lea rax, [rsp + 8]",
                "sub rsp, 56",
                "mov [rsp], rsi",
                "mov [rsp + 8], rdx",
                "mov [rsp + 16], rcx",
                "mov [rsp + 24], r8",
                "mov [rsp + 32], r9",
                "mov rsi, rsp",
                "mov rdx, rax",
                "mov ecx, {kind}",
                "call {execute}",
                "add rsp, 56",
                "ret",
                execute = sym execute_list,
                kind = const $kind,
            )
        }
    )*};
}

list! {
    execl, LIST;
    execlp, LIST_SEARCHED;
    execle, LIST_WITH_ENVIRONMENT;
}
