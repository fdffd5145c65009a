//! Interrupt vectors: eventfds, and the masks that hold them back.
//!
//! Place: every function has one set of them; devices of [`crate::server::vfio`] may use it too. Invariants: a masked vector is never
//! written to; what fired while it was masked is pending, once, and fires when the last mask goes; eventfds never block.
//! Hot: [`Vectors::fire`]. Source: PCI Local Bus 3.0, section 6.8.3.5 (pending bits). Leaves out: who decides what is masked.

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd;

/// Most vectors of a set: a set of vectors is a word with a bit each.
pub const VECTORS_LIMIT: u32 = u64::BITS;

/// A set of interrupt vectors.
#[derive(Debug)]
pub struct Vectors {
    eventfds: Vec<Option<OwnedFd>>,
    masked: u64,
    is_all_masked: bool,
    pending: u64,
}

impl Vectors {
    /// `count` vectors, at most [`VECTORS_LIMIT`], unmasked and not connected.
    #[must_use]
    pub fn new(count: u32) -> Self {
        Self {
            eventfds: (0..count.min(VECTORS_LIMIT)).map(|_| None).collect(),
            masked: 0,
            is_all_masked: false,
            pending: 0,
        }
    }

    /// Connects a vector to an eventfd, which is made non-blocking, or disconnects it.
    ///
    /// # Errors
    /// EINVAL for an index past the last vector; what the kernel says about the descriptor.
    pub fn connect(&mut self, index: u32, eventfd: Option<OwnedFd>) -> Result<(), Errno> {
        let vector = usize::try_from(index)
            .ok()
            .and_then(|index| self.eventfds.get_mut(index))
            .ok_or(Errno::EINVAL)?;
        if let Some(eventfd) = &eventfd {
            // A counter near its end must not block the device.
            let flags = OFlag::from_bits_retain(fcntl(eventfd, FcntlArg::F_GETFL)?);
            fcntl(eventfd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        }
        *vector = eventfd;
        Ok(())
    }

    /// Fires a set of vectors; those that are masked become pending.
    pub fn fire(&mut self, vectors: u64) {
        let held = vectors & self.held();
        self.pending |= held;
        let mut free = vectors & !held;
        while free != 0 {
            let index = free.trailing_zeros();
            free &= free - 1;
            if let Some(Some(eventfd)) = self.eventfds.get(index as usize) {
                // A full counter is a vector that fires anyway; any other failure is the client's own doing.
                let _ = unistd::write(eventfd, &1u64.to_ne_bytes());
            }
        }
    }

    /// Holds a set of vectors back.
    pub fn mask(&mut self, vectors: u64) {
        self.masked |= vectors;
    }

    /// Lets a set of vectors go, and fires those of them that are pending.
    pub fn unmask(&mut self, vectors: u64) {
        self.masked &= !vectors;
        self.release();
    }

    /// Holds all vectors back beside their own masks, or no more.
    pub fn mask_all(&mut self, is_masked: bool) {
        self.is_all_masked = is_masked;
        self.release();
    }

    /// Vectors that fired while they were masked.
    #[must_use]
    pub const fn pending(&self) -> u64 {
        self.pending
    }

    /// Forgets masks and what is pending; eventfds stay.
    pub fn reset(&mut self) {
        self.masked = 0;
        self.is_all_masked = false;
        self.pending = 0;
    }

    /// Drops all eventfds.
    pub fn disconnect(&mut self) {
        self.eventfds.fill_with(|| None);
    }

    const fn held(&self) -> u64 {
        if self.is_all_masked {
            u64::MAX
        } else {
            self.masked
        }
    }

    fn release(&mut self) {
        let free = self.pending & !self.held();
        self.pending &= !free;
        self.fire(free);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::eventfd::{EfdFlags, EventFd};
    use proptest::prelude::*;

    /// Connects vectors 0 to 2 and gives readers of them.
    fn connected(vectors: &mut Vectors) -> Vec<EventFd> {
        (0..3)
            .map(|index| {
                let reader = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
                let ours = std::os::fd::AsFd::as_fd(&reader).try_clone_to_owned();
                vectors.connect(index, Some(ours.unwrap())).unwrap();
                reader
            })
            .collect()
    }

    fn fired(reader: &EventFd) -> u64 {
        reader.read().unwrap_or(0)
    }

    #[test]
    fn what_fires_under_a_mask_waits_and_comes_once() {
        let mut vectors = Vectors::new(3);
        let readers = connected(&mut vectors);
        vectors.mask(0b10);
        vectors.fire(0b11);
        vectors.fire(0b10);
        assert_eq!((fired(&readers[0]), fired(&readers[1])), (1, 0));
        assert_eq!(vectors.pending(), 0b10);
        vectors.unmask(0b10);
        assert_eq!((fired(&readers[1]), vectors.pending()), (1, 0));
        vectors.unmask(0b10);
        assert_eq!(fired(&readers[1]), 0);
    }

    #[test]
    fn both_masks_have_to_go() {
        let mut vectors = Vectors::new(3);
        let readers = connected(&mut vectors);
        vectors.mask(1);
        vectors.mask_all(true);
        vectors.fire(0b101);
        vectors.unmask(1);
        assert_eq!((fired(&readers[0]), fired(&readers[2])), (0, 0));
        vectors.mask_all(false);
        assert_eq!((fired(&readers[0]), fired(&readers[2])), (1, 1));
    }

    #[test]
    fn a_reset_forgets_masks_and_pending_and_keeps_eventfds() {
        let mut vectors = Vectors::new(3);
        let readers = connected(&mut vectors);
        vectors.mask(7);
        vectors.fire(7);
        vectors.reset();
        assert_eq!((vectors.pending(), fired(&readers[0])), (0, 0));
        vectors.fire(1);
        assert_eq!(fired(&readers[0]), 1);
        assert_eq!(vectors.connect(3, None), Err(Errno::EINVAL));
        vectors.fire(u64::MAX);
    }

    proptest! {
        #[test]
        fn agrees_with_a_model(steps in proptest::collection::vec((0u8..5, 0u64..8), 1..60)) {
            let mut vectors = Vectors::new(3);
            let readers = connected(&mut vectors);
            let (mut masked, mut all, mut pending) = (0u64, false, 0u64);
            for (kind, set) in steps {
                let mut wanted = [0u64; 3];
                let mut due = 0;
                match kind {
                    0 | 1 => due = set,
                    2 => { vectors.mask(set); masked |= set; }
                    3 => { vectors.unmask(set); masked &= !set; }
                    _ => { vectors.mask_all(set & 1 == 1); all = set & 1 == 1; }
                }
                if kind < 2 {
                    vectors.fire(set);
                }
                let held = if all { u64::MAX } else { masked };
                for (bit, count) in wanted.iter_mut().enumerate() {
                    let bit = 1 << bit;
                    if (due | pending) & bit != 0 {
                        if held & bit == 0 {
                            *count = 1;
                            pending &= !bit;
                        } else {
                            pending |= bit;
                        }
                    }
                }
                let counts: Vec<_> = readers.iter().map(fired).collect();
                prop_assert_eq!(counts, wanted.to_vec());
                prop_assert_eq!(vectors.pending(), pending);
            }
        }
    }
}
