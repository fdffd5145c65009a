//! `sanlab run` as the parent of its program, for runs that have something to tell at their end.
//!
//! Place: [`super::run`] gives it the prepared command. Invariants: the program keeps the process group, and with it the terminal: what
//! the terminal sends reaches it directly, what somebody sends to us is sent on. It stops and we stop, we go on and it goes on. Its end
//! is our end, by exit code or by signal, and ours by SIGKILL is its. Standard input is never read. No handler runs our code.
//! Source: signalfd(2), PR_SET_PDEATHSIG; waitpid(2) for stops.
#![expect(
    unsafe_code,
    reason = "a step between fork and exec, numbers of signals without a name, and the default action before the last signal"
)]

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, raise, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::exit::Failure;

/// How a program ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// With this exit code.
    Code(i32),
    /// By this signal.
    Signal(Signal),
}

impl End {
    /// Whether it ended as programs do that did their work.
    pub(crate) const fn is_success(self) -> bool {
        matches!(self, Self::Code(0))
    }

    /// Ends this process as the program ended.
    pub(crate) fn pass_on(self) -> Result<(), Failure> {
        match self {
            Self::Code(0) => Ok(()),
            Self::Code(code) => Err(Failure::silent(u8::try_from(code).unwrap_or(u8::MAX))),
            Self::Signal(signal) => Err(Failure::silent(die_of(signal))),
        }
    }
}

/// Faults are our own; the kernel lets nobody block SIGKILL and SIGSTOP.
const OWN: [Signal; 6] = [
    Signal::SIGSEGV,
    Signal::SIGBUS,
    Signal::SIGILL,
    Signal::SIGFPE,
    Signal::SIGTRAP,
    Signal::SIGSYS,
];

/// Runs a program as a child, and waits for its end. `given`: what it inherits and this process must not keep. `look` is called now and
/// then while it runs, if `is_watched`, and once after its end.
pub(crate) fn run(
    mut command: Command,
    given: Vec<OwnedFd>,
    is_watched: bool,
    mut look: impl FnMut(),
) -> io::Result<(u32, End)> {
    let mut set = SigSet::all();
    for signal in OWN {
        set.remove(signal);
    }
    let mut before = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&set), Some(&mut before))?;
    let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let parent = Pid::this();
    // SAFETY: the closure makes three system calls, allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            if nix::unistd::getppid() != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
            Ok(())
        });
    }
    // Its pipes are none of ours.
    let child = command.spawn()?;
    drop(given);
    let id = child.id();
    let pid = Pid::from_raw(i32::try_from(id).unwrap_or(i32::MAX));
    // While calls are watched the report is looked at often enough to be of use.
    let timeout = if is_watched {
        PollTimeout::from(200_u16)
    } else {
        PollTimeout::NONE
    };
    loop {
        if let Some(end) = reap(pid)? {
            look();
            return Ok((id, end));
        }
        let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        look();
        while let Some(info) = signals.read_signal()? {
            send_on(pid, &info);
        }
    }
}

/// Looks whether the program has ended. While it is stopped, so are we.
fn reap(pid: Pid) -> io::Result<Option<End>> {
    let flags = WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED;
    loop {
        match waitpid(pid, Some(flags)) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(Some(End::Code(code))),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(Some(End::Signal(signal))),
            Ok(WaitStatus::Stopped(..)) => {
                // Whoever waits for us sees a stopped job, and continues it.
                raise(Signal::SIGSTOP)?;
            }
            Ok(_) => return Ok(None),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Sends a signal on that somebody sent to us. The kernel's own, from the terminal, go to the whole process group.
fn send_on(pid: Pid, info: &nix::sys::signalfd::siginfo) {
    let Ok(number) = i32::try_from(info.ssi_signo) else {
        return;
    };
    if number == libc::SIGCONT || (number != libc::SIGCHLD && info.ssi_code <= 0) {
        // SAFETY: takes no pointer. The child is not reaped yet, so its number is its own.
        unsafe { libc::kill(pid.as_raw(), number) };
    }
}

/// Ends this process by a signal, as its program ended.
fn die_of(signal: Signal) -> u8 {
    // The program has left its core already.
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    // SAFETY: the default action runs nobody's code.
    let _ = unsafe { nix::sys::signal::signal(signal, nix::sys::signal::SigHandler::SigDfl) };
    let mut set = SigSet::empty();
    set.add(signal);
    let _ = sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&set), None);
    let _ = kill(Pid::this(), signal);
    // As a shell shows it, should the signal not end us.
    u8::try_from(128 + signal as i32).unwrap_or(u8::MAX)
}
