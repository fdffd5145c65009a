//! Memory that both sides of a benchmark have, in one process or two.
//!
//! Place: [`super::ring`] gives one piece to each queue and one to [`super::control`]. Invariants: zeroed, page aligned, shared with every
//! process that is forked later, and mapped as long as the last copy of the handle lives.
#![expect(unsafe_code, reason = "maps memory and gives places in it away")]

use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::Arc;

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::BenchError;

/// Shared memory. Copies name the same memory.
#[derive(Clone, Debug)]
pub struct Memory(Arc<Mapping>);

#[derive(Debug)]
struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: a plain address; whoever reads or writes through it answers for how.
unsafe impl Send for Mapping {}
// SAFETY: as for Send.
unsafe impl Sync for Mapping {}

impl Memory {
    /// Maps at least `len` bytes.
    ///
    /// # Errors
    /// The system's.
    pub fn new(len: usize) -> Result<Self, BenchError> {
        let size = NonZeroUsize::new(len.next_multiple_of(4096)).unwrap_or(NonZeroUsize::MIN);
        let rights = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let base = unsafe { mmap_anonymous(None, size, rights, MapFlags::MAP_SHARED) }
            .map_err(BenchError::errno("mmap"))?;
        Ok(Self(Arc::new(Mapping {
            base: base.cast(),
            len: size.get(),
        })))
    }

    /// First byte.
    #[must_use]
    pub fn base(&self) -> NonNull<u8> {
        self.0.base
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Whether there is none; never.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `Memory::new` with this length; every handle is gone.
        let unmapped = unsafe { munmap(self.base.cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "a mapping of ours");
    }
}
