//! No system call: the client's operations run in a process that the kernel kills at the first one.
//!
//! Place: [`check`] starts this program again. Invariants: the seal is proven to hold by a run that breaks it.
//! Source: seccomp filters (linux/seccomp.h).

use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use crate::stage::Stage;

/// First argument of the run that keeps the seal.
pub(crate) const SEALED: &str = "sealed";
/// First argument of the run that breaks it.
pub(crate) const BROKEN_SEAL: &str = "broken-seal";

/// Prepares everything, forbids system calls, and posts, rings, arms and polls.
pub(crate) fn run(keeps_seal: bool) -> ! {
    let mut stage = Stage::new();
    stage.leave_completions();
    seal();
    stage.take_completions();
    stage.client_half();
    if !keeps_seal {
        // SAFETY: no arguments; the kernel kills the process here.
        unsafe { libc::getppid() };
    }
    // SAFETY: ends the process at once, by the one system call that the seal lets through.
    unsafe { libc::_exit(0) }
}

/// Forbids every system call of this thread but exit_group.
fn seal() {
    let instruction = |code: u32, jt, jf, k| libc::sock_filter {
        code: u16::try_from(code).expect("codes of the filter machine are short"),
        jt,
        jf,
        k,
    };
    let exit_group = u32::try_from(libc::SYS_exit_group).expect("a small number");
    let mut program = [
        // The number of the system call stands first in what the filter sees.
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        instruction(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            0,
            1,
            exit_group,
        ),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
        instruction(
            libc::BPF_RET | libc::BPF_K,
            0,
            0,
            libc::SECCOMP_RET_KILL_PROCESS,
        ),
    ];
    let filter = libc::sock_fprog {
        len: 4,
        filter: program.as_mut_ptr(),
    };
    for (what, value) in [
        (libc::PR_SET_NO_NEW_PRIVS, 1),
        // The run that breaks the seal leaves no core file behind.
        (libc::PR_SET_DUMPABLE, 0),
    ] {
        // SAFETY: plain numbers.
        let done = unsafe { libc::prctl(what, value, 0, 0, 0) };
        assert_eq!(done, 0, "prctl {what}");
    }
    // SAFETY: the kernel copies the filter, which lives until the call returns.
    let done = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const filter,
        )
    };
    assert_eq!(done, 0, "PR_SET_SECCOMP");
}

/// Runs both programs and looks how they ended.
pub(crate) fn check() -> Result<String, String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let status = |mode| {
        Command::new(&own)
            .arg(mode)
            .status()
            .map_err(|error| error.to_string())
    };
    let broken = status(BROKEN_SEAL)?;
    if broken.signal() != Some(libc::SIGSYS) {
        return Err(format!("the seal does not hold: {broken}"));
    }
    let sealed = status(SEALED)?;
    if sealed.success() {
        Ok("none in post, ring, arm and poll".to_owned())
    } else {
        Err(format!("post, ring, arm and poll: {sealed}"))
    }
}
