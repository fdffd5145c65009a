//! One connection, served by the thread that calls.
//!
//! Place: for devices beside the NIC, whose emulator has a control loop of its own. Invariants: nothing is shared between two
//! connections but what the caller's device shares. Source: ours. Leaves out: accepting, threads, stopping from outside, which closing
//! or shutting down the stream does.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use super::session::{Session, Step};
use super::{Device, Failure};
use crate::server::epoll::{EventBuffer, Interest, Poller, Token};
use crate::server::log_budget::LogBudget;

/// Serves a client until it hangs up or breaks the framing. `open` makes the device once the versions agree.
///
/// # Errors
/// What the kernel says about epoll; [`io::ErrorKind::BrokenPipe`] when the device says that it has gone.
pub fn serve<D: Device>(
    stream: UnixStream,
    mut open: impl FnMut() -> Result<D, Failure>,
) -> io::Result<()> {
    const STREAM: Token = Token(0);
    let mut session = Session::new(stream.into(), String::new());
    let poller = Poller::new()?;
    let mut interest = Interest::READ;
    poller.add(session.as_fd(), STREAM, interest)?;
    let mut events = EventBuffer::new(1);
    let mut log = LogBudget::default();
    let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
    loop {
        match session.ready(&mut open, &mut log) {
            Ok(Step::Open(wanted)) if wanted == interest => {}
            Ok(Step::Open(wanted)) => {
                interest = wanted;
                poller.modify(session.as_fd(), STREAM, interest)?;
            }
            Ok(Step::Closed) => return session.close().map_err(gone),
            Err(error) => {
                let _ = session.close();
                return Err(gone(error));
            }
        }
        // One source: whatever woke us, it is its turn.
        let _ = poller.wait(&mut events, None)?.count();
    }
}
