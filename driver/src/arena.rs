//! Arena: the memory in which all state of a function lives, and the memory of a program's buffers.
//!
//! Place: made by `function` when it attaches; records, rings and buffers are reached through here by offset.
//! Invariants: one sealed sparse memfd, mapped once per process of the family and once at the device; only atomics are referenced,
//! everything else moves through [`Arena::write`] and [`Arena::read`]; no offset is followed before it was checked against the mapping.
//! Source: ours (docs/device.md, "Windows"). Leaves out: pair arenas (`pair`).
#![expect(
    unsafe_code,
    reason = "forms records and rings over shared memory and copies payload"
)]

use core::mem::{align_of, size_of};
use core::ptr::NonNull;

use ring_proto::copy;
use ring_proto::index::Depth;
use ring_proto::shared::Ring;
use ring_proto::sync::{AtomicU64, Ordering};

use crate::alloc::Links;
use crate::record::{self, Header, Record};
use crate::sys::{self, Fd, Mapping, SysResult};

/// Memory of one function in this process.
#[derive(Debug)]
pub(crate) struct Arena {
    mapping: Mapping,
}

impl Arena {
    /// Makes an arena; the descriptor is only needed to map it at the device.
    pub(crate) fn new() -> SysResult<(Self, Fd)> {
        let fd = sys::sealed_memory("sanlab-arena", record::ARENA_LEN)?;
        let mapping = Mapping::new(fd.raw(), 0, record::ARENA_LEN, true)?;
        let arena = Self { mapping };
        arena.header().heap.init(record::HEAP, record::ARENA_LEN);
        Ok((arena, fd))
    }

    /// The arena that another process or an earlier program image made.
    pub(crate) fn of(memory: &Fd) -> SysResult<Self> {
        let mapping = Mapping::new(memory.raw(), 0, record::ARENA_LEN, true)?;
        Ok(Self { mapping })
    }

    /// The header.
    #[inline]
    pub(crate) fn header(&self) -> &Header {
        self.record(0)
            .expect("the header lies at the start of every arena")
    }

    /// The record at `offset`; `None` outside of the arena or misaligned.
    #[inline]
    pub(crate) fn record<T: Record>(&self, offset: u64) -> Option<&T> {
        if !offset.is_multiple_of(align_of::<T>() as u64) {
            return None;
        }
        let at = self.at(offset, size_of::<T>() as u64)?;
        // SAFETY: 1. In bounds and aligned, checked above. 2. `Record` promises atomics only, for which every bit pattern is valid and
        //         which other processes may change at any time. 3. The mapping lives as long as `self`.
        Some(unsafe { at.cast::<T>().as_ref() })
    }

    /// A ring at `offset`; `None` outside of the arena or misaligned.
    pub(crate) fn ring<const WORDS: usize>(
        &self,
        offset: u64,
        depth: Depth,
    ) -> Option<Ring<WORDS>> {
        if !offset.is_multiple_of(64) {
            return None;
        }
        let at = self.at(offset, Ring::<WORDS>::bytes(depth))?;
        // SAFETY: 1. In bounds and aligned, checked above; the views a function hands out never outlive its arena, because every
        //         holder of one also holds the function. 2. Only atomics and raw copies reach arena memory.
        Some(unsafe { Ring::new(at.cast(), depth) })
    }

    /// Address of `len` bytes at `offset`; `None` when they leave the arena.
    #[inline]
    pub(crate) fn at(&self, offset: u64, len: u64) -> Option<NonNull<u8>> {
        if offset.checked_add(len)? > record::ARENA_LEN {
            return None;
        }
        let offset = usize::try_from(offset).ok()?;
        // SAFETY: inside the mapping, checked above.
        Some(unsafe { self.mapping.base().add(offset) })
    }

    /// Offset of an address; `None` when `len` bytes from it do not lie in the arena.
    #[inline]
    pub(crate) fn offset_of(&self, address: *const u8, len: u64) -> Option<u64> {
        let offset = address
            .addr()
            .checked_sub(self.mapping.base().as_ptr().addr())? as u64;
        (offset.checked_add(len)? <= record::ARENA_LEN).then_some(offset)
    }

    /// Copies `bytes` to `offset`; false when they do not fit in.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> bool {
        let Some(at) = self.at(offset, bytes.len() as u64) else {
            return false;
        };
        // SAFETY: 1. Both ranges are valid, the target checked above. 2. A Rust slice never overlaps the arena, which is only reached
        //         through raw pointers. 3. No reference but to atomics covers the target; the source is ours to read.
        unsafe { copy::copy(at.as_ptr(), bytes.as_ptr(), bytes.len()) };
        true
    }

    /// Copies from `offset` into `bytes`; false when the range leaves the arena.
    pub(crate) fn read(&self, offset: u64, bytes: &mut [u8]) -> bool {
        let Some(at) = self.at(offset, bytes.len() as u64) else {
            return false;
        };
        // SAFETY: as in `write`, with the roles exchanged.
        unsafe { copy::copy(bytes.as_mut_ptr(), at.as_ptr(), bytes.len()) };
        true
    }

    /// Zeroes `len` bytes at `offset`, both multiples of 8.
    pub(crate) fn zero(&self, offset: u64, len: u64) {
        for word in (offset..offset + len).step_by(8) {
            if let Some(word) = self.link(word) {
                // Relaxed: published by the doorbell or command that names the memory.
                word.store(0, Ordering::Relaxed);
            }
        }
    }
}

impl Links for Arena {
    fn link(&self, offset: u64) -> Option<&AtomicU64> {
        if !offset.is_multiple_of(8) {
            return None;
        }
        let at = self.at(offset, 8)?;
        // SAFETY: in bounds and aligned, checked above; shared through atomics and raw copies only.
        Some(unsafe { AtomicU64::from_ptr(at.as_ptr().cast()) })
    }
}

/// Copies bytes of this process's memory into a private buffer.
///
/// The address comes from the switch, which promises with every [`crate::spi::SpBuffer`] that its bytes are readable.
#[inline]
pub(crate) fn fetch(buffer: &mut [u8], source: NonNull<u8>) {
    // SAFETY: 1. The switch's promise for the source; `buffer` is a live slice. 2. `buffer` is private to our caller's stack, which no
    //         buffer of the switch overlaps. 3. Nobody references the source for writing while its owner asks for it to be sent.
    unsafe { copy::copy(buffer.as_mut_ptr(), source.as_ptr(), buffer.len()) };
}
