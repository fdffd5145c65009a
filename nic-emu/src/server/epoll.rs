//! A small event loop over epoll: a poller and a table of what it watches.
//!
//! Place: the control thread owns one with all its sockets, the engine thread one with the kick descriptors.
//! Invariants: a token dies with its source, so an event that was already fetched never reaches a successor; a descriptor leaves the
//! poller before it is closed, because peers hold other descriptors of the same open file and epoll watches files.
//! Source: epoll(7). Leaves out: timers, which are timeouts of [`Poller::wait`].

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// Names a source in a [`Poller`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Token(pub(crate) u64);

/// What to wait for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Interest {
    /// Bytes to read, or a connection to accept.
    pub(crate) read: bool,
    /// Room to write.
    pub(crate) write: bool,
}

impl Interest {
    /// Reading alone.
    pub(crate) const READ: Self = Self {
        read: true,
        write: false,
    };
    /// Nothing, for a source that shall rest.
    pub(crate) const NONE: Self = Self {
        read: false,
        write: false,
    };

    fn flags(self) -> EpollFlags {
        let mut flags = EpollFlags::empty();
        flags.set(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP, self.read);
        flags.set(EpollFlags::EPOLLOUT, self.write);
        flags
    }
}

/// An epoll instance.
#[derive(Debug)]
pub(crate) struct Poller {
    epoll: Epoll,
}

impl Poller {
    pub(crate) fn new() -> Result<Self, Errno> {
        Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map(|epoll| Self { epoll })
    }

    /// Watches `fd`, level-triggered.
    pub(crate) fn add(&self, fd: impl AsFd, token: Token, interest: Interest) -> Result<(), Errno> {
        self.epoll
            .add(fd, EpollEvent::new(interest.flags(), token.0))
    }

    /// Watches an eventfd without having to read it: each write is one event, whatever the counter was before.
    ///
    /// A peer that holds the same eventfd cannot make us block in a read. It can swallow an event by reading the counter before we
    /// look, which is its own loss: nobody else's kick goes through that eventfd.
    pub(crate) fn add_eventfd(&self, fd: impl AsFd, token: Token) -> Result<(), Errno> {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        self.epoll.add(fd, EpollEvent::new(flags, token.0))
    }

    /// Changes what to wait for.
    pub(crate) fn modify(
        &self,
        fd: impl AsFd,
        token: Token,
        interest: Interest,
    ) -> Result<(), Errno> {
        self.epoll
            .modify(fd, &mut EpollEvent::new(interest.flags(), token.0))
    }

    /// Forgets `fd`.
    pub(crate) fn remove(&self, fd: impl AsFd) -> Result<(), Errno> {
        self.epoll.delete(fd)
    }

    /// Waits for events and gives the tokens of their sources: forever without a timeout, else at most `timeout_ns`.
    pub(crate) fn wait<'a>(
        &self,
        buffer: &'a mut EventBuffer,
        timeout_ns: Option<u64>,
    ) -> Result<impl Iterator<Item = Token> + 'a, Errno> {
        let timeout = match timeout_ns {
            None => EpollTimeout::NONE,
            Some(0) => EpollTimeout::ZERO,
            Some(ns) => {
                // epoll_wait knows milliseconds only, which is long for a link; epoll_pwait2 is younger than the kernels we run on.
                let mut one = [PollFd::new(self.epoll.0.as_fd(), PollFlags::POLLIN)];
                match ppoll(&mut one, Some(Duration::from_nanos(ns).into()), None) {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(error) => return Err(error),
                }
                EpollTimeout::ZERO
            }
        };
        let n = match self.epoll.wait(&mut buffer.0, timeout) {
            Err(Errno::EINTR) => 0,
            other => other?,
        };
        Ok(buffer.0[..n].iter().map(|event| Token(event.data())))
    }
}

/// Room for the events of one wait.
#[derive(Debug)]
pub(crate) struct EventBuffer(Vec<EpollEvent>);

impl EventBuffer {
    pub(crate) fn new(entries: usize) -> Self {
        Self(vec![EpollEvent::empty(); entries])
    }
}

/// Sources by token.
#[derive(Debug)]
pub(crate) struct Sources<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
    limit: usize,
}

#[derive(Debug)]
struct Entry<T> {
    generation: u32,
    source: Option<T>,
}

impl<T> Sources<T> {
    /// A table of at most `limit` sources.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            entries: Vec::new(),
            free: Vec::new(),
            limit,
        }
    }

    /// Stores a source; gives it back when the table is full.
    pub(crate) fn insert(&mut self, source: T) -> Result<Token, T> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.entries.len() < self.limit => {
                let index = u32::try_from(self.entries.len()).expect("the limit is below 2^32");
                self.entries.push(Entry {
                    generation: 0,
                    source: None,
                });
                index
            }
            None => return Err(source),
        };
        let entry = &mut self.entries[index as usize];
        entry.source = Some(source);
        Ok(Token(u64::from(index) | u64::from(entry.generation) << 32))
    }

    fn entry(&mut self, token: Token) -> Option<&mut Entry<T>> {
        let index = usize::try_from(token.0 & u64::from(u32::MAX)).ok()?;
        let entry = self.entries.get_mut(index)?;
        (u64::from(entry.generation) == token.0 >> 32).then_some(entry)
    }

    /// Takes a source out for handling; its token stays valid for [`Self::put_back`].
    pub(crate) fn take(&mut self, token: Token) -> Option<T> {
        self.entry(token)?.source.take()
    }

    /// Puts a source back that [`Self::take`] gave out.
    pub(crate) fn put_back(&mut self, token: Token, source: T) {
        if let Some(entry) = self.entry(token) {
            entry.source = Some(source);
        }
    }

    /// Ends a token whose source has been taken out.
    pub(crate) fn retire(&mut self, token: Token) {
        if let Some(entry) = self.entry(token) {
            entry.source = None;
            // A token is told from its successors for 2^32 lives of the place.
            entry.generation = entry.generation.wrapping_add(1);
            self.free
                .push(u32::try_from(token.0 & u64::from(u32::MAX)).expect("masked to 32 bits"));
        }
    }

    /// All sources that are in place.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (Token, &mut T)> {
        self.entries
            .iter_mut()
            .zip(0u64..)
            .filter_map(|(entry, index)| {
                let token = Token(index | u64::from(entry.generation) << 32);
                entry.source.as_mut().map(|source| (token, source))
            })
    }
}

/// An eventfd that wakes a [`Poller`] from another thread.
#[derive(Debug)]
pub(crate) struct WakeFd(OwnedFd);

impl WakeFd {
    pub(crate) fn new() -> Result<Self, Errno> {
        use nix::sys::eventfd::{EfdFlags, EventFd};
        EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map(|fd| Self(fd.into()))
    }

    /// Makes one event. Never blocks and cannot be lost.
    pub(crate) fn wake(&self) {
        // The counter would need 2^64 wakes to be full, and a full one is readable all the same.
        let _ = nix::unistd::write(&self.0, &1u64.to_ne_bytes());
    }
}

impl AsFd for WakeFd {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_eventfd_makes_one_event_a_write_without_being_read() {
        let poller = Poller::new().unwrap();
        let wake = WakeFd::new().unwrap();
        poller.add_eventfd(&wake, Token(9)).unwrap();
        let mut buffer = EventBuffer::new(4);
        assert_eq!(poller.wait(&mut buffer, Some(0)).unwrap().count(), 0);
        for _ in 0..3 {
            wake.wake();
            let tokens: Vec<_> = poller.wait(&mut buffer, None).unwrap().collect();
            assert_eq!(tokens, [Token(9)]);
            assert_eq!(poller.wait(&mut buffer, Some(0)).unwrap().count(), 0);
        }
    }

    #[test]
    fn a_retired_token_never_names_its_successor() {
        let mut sources = Sources::new(1);
        let first = sources.insert("first").unwrap();
        assert_eq!(sources.insert("surplus"), Err("surplus"));
        assert_eq!(sources.take(first), Some("first"));
        sources.put_back(first, "first");
        assert_eq!(sources.iter_mut().count(), 1);
        assert_eq!(sources.take(first), Some("first"));
        sources.retire(first);
        let second = sources.insert("second").unwrap();
        assert_ne!(first, second);
        assert_eq!(sources.take(first), None);
        sources.retire(first);
        assert_eq!(sources.take(second), Some("second"));
    }
}
