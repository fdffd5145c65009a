//! The sandbox of the emulator process: what it gives up once it has what it needs.
//!
//! Place: [`super::serve`] calls `confine` before it starts the engine thread, and `seal` when everything accepts.
//! Invariants: fixed at start, nothing widens it later; no privilege can be gained (`no_new_privs`), no capability is left; files: the
//! socket directories alone, and their removal; system calls: those of `ALLOWED`, others answer EPERM, and those of `FATAL` end
//! the process. What a kernel does not offer is left out, logged, and told by `sanlab doctor`.
//! Source: no_new_privs in prctl(2), capabilities(7), landlock(7), seccomp(2); docs/limits.md, section "Sandbox".
//! Leaves out: namespaces, which need what unprivileged users may not have.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use caps::CapSet;
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, RestrictionStatus, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
};
use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

/// Whether the emulator confines itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Sandbox {
    /// It does, as far as the kernel goes.
    #[default]
    On,
    /// It does not, to debug it: profilers, debuggers that inject calls, symbols in backtraces.
    Off,
}

/// Files that a confined emulator still reaches.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Reach {
    /// Directories in which it makes, reads and removes whatever it likes.
    pub directories: Vec<PathBuf>,
    /// Directories in which it only removes files and empty directories, at its end.
    pub removals: Vec<PathBuf>,
    /// TCP connections may be made, which the emulator never does; nothing listens anew all the same.
    pub connects: bool,
}

/// What is in force.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Walls {
    /// No capability is left.
    pub capabilities: bool,
    /// Landlock holds the process to its files.
    pub files: bool,
    /// A filter holds it to its system calls.
    pub system_calls: bool,
}

/// The filter of system calls could not be set.
#[derive(Debug, thiserror::Error)]
#[error("no filter of system calls: {0}")]
pub struct NoFilter(String);

/// Confines the calling process for good, which shall have one thread, and tells how far the kernel went.
#[must_use]
pub fn enter(reach: &Reach) -> Walls {
    let walls = confine(reach);
    Walls {
        system_calls: seal().is_ok(),
        ..walls
    }
}

/// Gives up privileges, capabilities and files, for this thread and those it starts from now on: also for a process that is no emulator.
#[must_use]
pub fn confine(reach: &Reach) -> Walls {
    if let Err(error) = nix::sys::prctl::set_no_new_privs() {
        warn!(%error, "sandbox: privileges could be gained");
    }
    let walls = Walls {
        capabilities: drop_capabilities(),
        files: hold_to_files(reach),
        system_calls: false,
    };
    info!(?walls, "sandbox");
    walls
}

/// Gives up system calls, for every thread of the process. Nothing that starts threads may come after it.
///
/// # Errors
/// [`NoFilter`] when the kernel or a container does not allow it; then nothing has changed.
pub(crate) fn seal() -> Result<(), NoFilter> {
    let failed = |error: &dyn std::fmt::Display| NoFilter(error.to_string());
    // The one that forbids least first: the last one also forbids to set filters.
    for program in [fatal_filter(), allowing_filter()] {
        let program = program.map_err(|error| failed(&error))?;
        seccompiler::apply_filter_all_threads(&program).map_err(|error| failed(&error))?;
    }
    Ok(())
}

fn drop_capabilities() -> bool {
    // Without CAP_SETPCAP the bounding set stays; no_new_privs makes it worth nothing.
    if caps::has_cap(None, CapSet::Effective, caps::Capability::CAP_SETPCAP).unwrap_or(false) {
        let _ = caps::clear(None, CapSet::Bounding);
    }
    // Kernels without ambient capabilities have none to drop.
    let _ = caps::clear(None, CapSet::Ambient);
    [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable]
        .into_iter()
        .all(|set| {
            caps::clear(None, set)
                .inspect_err(|error| warn!(%error, "sandbox: capabilities stay"))
                .is_ok()
        })
}

/// Newest landlock that this code knows the rights of; older kernels enforce what they know.
const LANDLOCK: ABI = ABI::V6;

fn hold_to_files(reach: &Reach) -> bool {
    match restrict(reach) {
        Ok(status) => status.ruleset != RulesetStatus::NotEnforced,
        Err(error) => {
            warn!(%error, "sandbox: files stay in reach");
            false
        }
    }
}

fn restrict(reach: &Reach) -> Result<RestrictionStatus, landlock::RulesetError> {
    let inside = AccessFs::ReadFile
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::ReadDir
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::MakeSock;
    let removal = AccessFs::RemoveFile | AccessFs::RemoveDir;
    let network = if reach.connects {
        AccessNet::BindTcp.into()
    } else {
        AccessNet::from_all(LANDLOCK)
    };
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .handle_access(network)?
        .scope(Scope::from_all(LANDLOCK))?
        .create()?;
    let directories = reach
        .directories
        .iter()
        .map(|path| (path.as_path(), inside));
    let removals = reach.removals.iter().map(|path| (path.as_path(), removal));
    // The reserve of descriptors is made of it.
    let null: (&Path, BitFlags<AccessFs>) = (Path::new("/dev/null"), AccessFs::ReadFile.into());
    // Whether a client is stopped by a debugger stands in its `stat`. What more /proc could tell of processes outside, their memory,
    // maps and environment, asks for the right to trace them, which landlock denies.
    let processes: (&Path, BitFlags<AccessFs>) = (Path::new("/proc"), AccessFs::ReadFile.into());
    for (path, access) in directories.chain(removals).chain([null, processes]) {
        // What does not exist cannot be removed either.
        if let Ok(file) = PathFd::new(path) {
            rules = rules.add_rule(PathBeneath::new(file, access))?;
        }
    }
    rules.restrict_self()
}

/// System calls that a served emulator makes, whatever their arguments.
const ALLOWED: &[c_long] = &[
    // Clients: sockets and what comes over them.
    libc::SYS_accept4,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    // Descriptors, eventfds, epoll, signals.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_ftruncate,
    libc::SYS_eventfd2,
    libc::SYS_signalfd4,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_ppoll,
    // Memory of clients, and our own.
    libc::SYS_memfd_create,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_fallocate,
    libc::SYS_brk,
    // Files, as far as landlock lets them be reached.
    libc::SYS_openat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    // Time, threads, the end.
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_membarrier,
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_uname,
    libc::SYS_prlimit64,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// The same under their older names, where the C library may still use these.
#[cfg(target_arch = "x86_64")]
const ALLOWED_OLD: &[c_long] = &[
    libc::SYS_accept,
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_readlink,
    libc::SYS_unlink,
    libc::SYS_rmdir,
    libc::SYS_rename,
    libc::SYS_dup2,
    libc::SYS_poll,
    libc::SYS_epoll_wait,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_OLD: &[c_long] = &[];

/// System calls that nothing in the emulator makes and that serve to leave it: whoever makes one is no emulator any more.
const FATAL: &[c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_kexec_load,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_reboot,
];

type Filter<T> = Result<T, seccompiler::BackendError>;

fn fatal_filter() -> Filter<BpfProgram> {
    let rules = FATAL.iter().map(|&call| (call, Vec::new())).collect();
    compile(rules, SeccompAction::Allow, SeccompAction::KillProcess)
}

fn allowing_filter() -> Filter<BpfProgram> {
    let mut rules: BTreeMap<c_long, Vec<SeccompRule>> = ALLOWED
        .iter()
        .chain(ALLOWED_OLD)
        .map(|&call| (call, Vec::new()))
        .collect();
    let executable = number(libc::PROT_EXEC);
    // New memory is never code.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(
            call,
            vec![argument(2, SeccompCmpOp::MaskedEq(executable), 0)?],
        );
    }
    // Channels are pairs of Unix sockets; nothing is connected to.
    let unix = number(libc::AF_UNIX);
    rules.insert(
        libc::SYS_socketpair,
        vec![argument(0, SeccompCmpOp::Eq, unix)?],
    );
    // The emulator outlives its parent when told to; threads have names.
    let prctl = [libc::PR_SET_PDEATHSIG, libc::PR_SET_NAME, libc::PR_GET_NAME];
    rules.insert(libc::SYS_prctl, one_of(0, &prctl.map(number))?);
    // Whether a standard stream is a terminal, and how a socket waits.
    let ioctl = [libc::TCGETS, libc::FIONBIO, libc::FIONREAD];
    rules.insert(libc::SYS_ioctl, one_of(1, &ioctl)?);
    // `abort`, after a double panic.
    let own = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, vec![argument(0, SeccompCmpOp::Eq, own)?]);
    let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    compile(rules, refused, SeccompAction::Allow)
}

fn compile(
    rules: BTreeMap<c_long, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    listed: SeccompAction,
) -> Filter<BpfProgram> {
    let architecture = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, otherwise, listed, architecture)?.try_into()
}

/// A rule on the low half of one argument.
fn argument(index: u8, operator: SeccompCmpOp, value: u64) -> Filter<SeccompRule> {
    let condition = SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value)?;
    SeccompRule::new(vec![condition])
}

fn one_of(index: u8, values: &[u64]) -> Filter<Vec<SeccompRule>> {
    let rule = |&value: &u64| argument(index, SeccompCmpOp::Eq, value);
    values.iter().map(rule).collect()
}

fn number(constant: i32) -> u64 {
    u64::from(constant.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_compile_and_disagree_on_nothing() {
        allowing_filter().unwrap();
        fatal_filter().unwrap();
        for call in FATAL {
            assert!(!ALLOWED.contains(call) && !ALLOWED_OLD.contains(call));
        }
    }
}
