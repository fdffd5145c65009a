//! A pipe: the kernel's own queue, which copies, sleeps and wakes.
//!
//! Place: what two processes have without any library. Invariants: a write has at most `PIPE_BUF` bytes, so the kernel takes all of it or
//! nothing, and elements stay whole. Source: pipe(7).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd;
use zerocopy::IntoBytes;

use super::super::BenchError;
use super::super::memory::Memory;
use super::super::queue::{Consumer, Element, Producer, Queue};

/// Most bytes that one write moves as a whole.
const PIPE_BUF: usize = libc::PIPE_BUF;
/// How long one call sleeps at most; whoever calls gives up in the end.
const SLEEP_MS: u16 = 100;

/// `pipe2`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pipe;

/// One end.
#[derive(Debug)]
pub struct End(OwnedFd);

impl<const W: usize> Queue<W> for Pipe {
    type Producer = End;
    type Consumer = End;

    fn name(&self) -> String {
        "pipe".into()
    }

    fn spans_processes(&self) -> bool {
        true
    }

    fn make(&self, _depth: u32, _memory: &Memory) -> Result<(End, End), BenchError> {
        let (read, write) = unistd::pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)
            .map_err(BenchError::errno("pipe2"))?;
        Ok((End(write), End(read)))
    }
}

/// Sleeps until the end is ready, or a while has passed.
#[cold]
fn sleep(end: BorrowedFd<'_>, flags: PollFlags) {
    // Interrupted or timed out: the next call looks again.
    let _ = poll(&mut [PollFd::new(end, flags)], PollTimeout::from(SLEEP_MS));
}

impl<const W: usize> Producer<W> for End {
    fn push(&mut self, elements: &[Element<W>]) -> usize {
        let whole = elements.len().min(PIPE_BUF / (8 * W));
        match unistd::write(&self.0, elements[..whole].as_bytes()) {
            Ok(bytes) => bytes / (8 * W),
            Err(_) => {
                sleep(self.0.as_fd(), PollFlags::POLLOUT);
                0
            }
        }
    }
}

impl<const W: usize> Consumer<W> for End {
    fn pop(&mut self, room: &mut [Element<W>]) -> usize {
        match unistd::read(&self.0, room.as_mut_bytes()) {
            Ok(bytes) => bytes / (8 * W),
            Err(_) => {
                sleep(self.0.as_fd(), PollFlags::POLLIN);
                0
            }
        }
    }
}
