//! Signals: which end a command, and how children end with their parent.
//!
//! Place: `up`, `demo` and `stat --watch` read stop signals from a descriptor; the hidden commands undo the mask that they inherit.
//! Invariants: no signal handler runs our code; `sanlab run` never touches the mask, the program must get it as it was.
//! Source: signalfd(2), PR_SET_PDEATHSIG in prctl(2).

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use anyhow::Context as _;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{self, Pid};

/// SIGINT, SIGTERM and SIGHUP as a descriptor: readable once the user wants the command to end.
#[derive(Debug)]
pub(crate) struct StopSignals {
    fd: SignalFd,
}

impl StopSignals {
    /// Blocks the stop signals and catches them in a descriptor. Call it before any thread is made.
    pub(crate) fn catch() -> anyhow::Result<Self> {
        let set: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]
            .into_iter()
            .collect();
        set.thread_block().context("cannot block signals")?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .context("cannot make a signal descriptor")?;
        Ok(Self { fd })
    }

    /// Waits until one of `fds` is ready or a stop signal has come, at most for `timeout`.
    pub(crate) fn wait(
        &self,
        fds: &[BorrowedFd<'_>],
        timeout: Option<Duration>,
    ) -> anyhow::Result<Waited> {
        let mut all = vec![PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        all.extend(fds.iter().map(|&fd| PollFd::new(fd, PollFlags::POLLIN)));
        if poll(&mut all, timeout)? == 0 {
            return Ok(Waited::TimedOut);
        }
        if is_ready(&all[0]) {
            return Ok(Waited::Stop);
        }
        let first = all[1..].iter().position(is_ready).unwrap_or(0);
        Ok(Waited::Ready(first))
    }

    /// The next stop signal that has come, which then counts as taken.
    pub(crate) fn take(&self) -> Option<Signal> {
        let info = self.fd.read_signal().ok().flatten()?;
        Signal::try_from(i32::try_from(info.ssi_signo).ok()?).ok()
    }
}

impl AsFd for StopSignals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// SIGCHLD as a descriptor: readable once a child has ended.
#[derive(Debug)]
pub(crate) struct ChildEnds {
    fd: SignalFd,
}

impl ChildEnds {
    /// Blocks the signal and catches it in a descriptor. Call it before any thread is made.
    pub(crate) fn catch() -> anyhow::Result<Self> {
        let set: SigSet = [Signal::SIGCHLD].into_iter().collect();
        set.thread_block().context("cannot block signals")?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .context("cannot make a signal descriptor")?;
        Ok(Self { fd })
    }

    /// Takes what has come; one signal may stand for several ends.
    pub(crate) fn drain(&self) {
        while let Ok(Some(_)) = self.fd.read_signal() {}
    }
}

impl AsFd for ChildEnds {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// How [`StopSignals::wait`] ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Waited {
    /// The user wants the command to end.
    Stop,
    /// This descriptor of the list is ready.
    Ready(usize),
    /// Nothing came in time.
    TimedOut,
}

/// Leaves the terminal: neither its keys nor its end concern this process any more.
///
/// Not by a session of its own: the kernel gives each session its share of the processors (`sched_autogroup` in sched(7)), and who yields
/// gives way to its own session only. The NIC has to take turns with the programs that were started beside it.
pub(crate) fn leave_terminal() -> anyhow::Result<()> {
    let this = Pid::from_raw(0);
    unistd::setpgid(this, this).context("cannot leave the process group of the terminal")?;
    let hang_up: SigSet = std::iter::once(Signal::SIGHUP).collect();
    hang_up.thread_block().context("cannot block SIGHUP")
}

/// Waits until `fd` is readable; false when the time is over.
pub(crate) fn wait_readable(fd: BorrowedFd<'_>, timeout: Duration) -> anyhow::Result<bool> {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    Ok(poll(&mut fds, Some(timeout))? != 0)
}

/// Whether whoever was at the other end of a terminal or a pipe is gone.
pub(crate) fn has_hung_up(fd: BorrowedFd<'_>) -> anyhow::Result<bool> {
    let mut fds = [PollFd::new(fd, PollFlags::empty())];
    Ok(poll(&mut fds, Some(Duration::ZERO))? != 0)
}

/// Lets the calling process rest for a moment between two looks at something that gives no descriptor to wait on.
pub(crate) fn pause(time: Duration) {
    // An early return only means an early look.
    let _ = poll(&mut [], Some(time));
}

/// Whether something has come on a descriptor that was polled.
pub(crate) fn is_ready(fd: &PollFd<'_>) -> bool {
    fd.revents().is_some_and(|events| !events.is_empty())
}

/// Waits until one of the descriptors is ready, at most for `timeout`; how many are.
pub(crate) fn poll(fds: &mut [PollFd<'_>], timeout: Option<Duration>) -> anyhow::Result<i32> {
    let timeout = match timeout {
        None => PollTimeout::NONE,
        Some(time) => PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX),
    };
    loop {
        match nix::poll::poll(fds, timeout) {
            Ok(ready) => return Ok(ready),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("poll failed"),
        }
    }
}

/// Undoes a signal mask inherited from the command that started this process.
pub(crate) fn unblock_all() -> anyhow::Result<()> {
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
        .context("cannot reset the signal mask")
}

/// Asks the kernel to end this process with SIGTERM when `parent`, which must be its parent, ends.
pub(crate) fn end_with_parent(parent: i32) -> anyhow::Result<()> {
    tie_to_parent(parent, Signal::SIGTERM)
}

/// Asks the kernel to kill this process, and whatever it becomes, when `parent`, which must be its parent, ends.
pub(crate) fn die_with_parent(parent: i32) -> anyhow::Result<()> {
    tie_to_parent(parent, Signal::SIGKILL)
}

fn tie_to_parent(parent: i32, signal: Signal) -> anyhow::Result<()> {
    prctl::set_pdeathsig(signal).context("cannot tie this process to its parent")?;
    if unistd::getppid().as_raw() != parent {
        anyhow::bail!("the process {parent} that started this one is gone");
    }
    Ok(())
}

/// Unties this process from its parent.
pub(crate) fn outlive_parent() -> anyhow::Result<()> {
    prctl::set_pdeathsig(None).context("cannot untie this process from its parent")
}
