//! SIGINT and SIGTERM as events of the control loop.
//!
//! Place: [`super::serve`] takes them before any thread is made, so all threads inherit the mask. Invariants: the mask of the calling
//! thread is what it was before once the value is dropped. Source: signalfd(2).

use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// A descriptor that shows SIGINT and SIGTERM.
#[derive(Debug)]
pub(crate) struct Signals {
    fd: SignalFd,
    before: SigSet,
}

impl Signals {
    /// Blocks both signals in this thread and its future children, and takes them as events.
    pub(crate) fn take() -> Result<Self, Errno> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGINT);
        set.add(Signal::SIGTERM);
        let before = set.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .inspect_err(|_| restore(&before))?;
        Ok(Self { fd, before })
    }

    /// Number of the signal that came, if any.
    pub(crate) fn read(&self) -> Option<u32> {
        self.fd
            .read_signal()
            .ok()
            .flatten()
            .map(|info| info.ssi_signo)
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // A second Ctrl-C that came meanwhile belongs to the shutdown that is under way.
        while self.read().is_some() {}
        restore(&self.before);
    }
}

fn restore(mask: &SigSet) {
    mask.thread_set_mask()
        .expect("pthread_sigmask with a valid operation cannot fail");
}
