//! Memory of a client of the suite: its memfd with rings and buffers, and the doorbells.
//!
//! Place: [`super::client`] keeps one [`Memory`] and one [`Doorbells`] per function. Invariants: every access is checked against the
//! mapping; no reference is formed over shared memory. Source: ours. Leaves out: freeing; a case is short.
#![expect(
    unsafe_code,
    reason = "maps its own memory and the device's BAR2, as every client does"
)]

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr::NonNull;

use memmap2::{MmapOptions, MmapRaw};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use ring_proto::copy;
use ring_proto::index::Depth;
use ring_proto::shared::{Bar2, Ring};

use super::{Outcome, Stop, failed};

/// Where a client's memory starts in its IOVA space.
pub(crate) const BASE: u64 = 1 << 32;
/// Bytes of a client's memory.
pub(crate) const LEN: u64 = 8 << 20;

/// A failure of this process, not of the device.
pub(crate) fn system(what: &'static str) -> impl Fn(nix::errno::Errno) -> Stop {
    move |errno| Stop::Failed(format!("{what} of the suite itself: {errno}"))
}

/// A memory file of `len` bytes with these seals.
pub(crate) fn memfd(len: u64, seals: SealFlag) -> Outcome<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let fd = memfd_create(c"nic-emu-conformance", flags).map_err(system("memfd_create"))?;
    let len = i64::try_from(len).map_err(|_| Stop::Failed("a length beyond i64".into()))?;
    nix::unistd::ftruncate(&fd, len).map_err(system("ftruncate"))?;
    if !seals.is_empty() {
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).map_err(system("F_ADD_SEALS"))?;
    }
    Ok(fd)
}

/// A client's memory at [`BASE`].
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) fd: OwnedFd,
    map: MmapRaw,
    next: u64,
}

impl Memory {
    pub(crate) fn new() -> Outcome<Self> {
        let fd = memfd(LEN, SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW)?;
        let map = MmapOptions::new()
            .map_raw(fd.as_raw_fd())
            .map_err(|error| Stop::Failed(format!("mmap of the suite itself: {error}")))?;
        Ok(Self { fd, map, next: 0 })
    }

    /// Takes `len` bytes, aligned for rings.
    pub(crate) fn alloc(&mut self, len: u64) -> Outcome<u64> {
        let at = self.next;
        self.next += len.next_multiple_of(64);
        if self.next > LEN {
            return failed("the case's own memory is used up");
        }
        Ok(BASE + at)
    }

    /// Gives all memory back, for a function that starts again.
    pub(crate) fn restart(&mut self) {
        self.next = 0;
    }

    fn place(&self, iova: u64, len: usize) -> Outcome<*mut u8> {
        let offset = iova
            .checked_sub(BASE)
            .and_then(|at| usize::try_from(at).ok());
        let fits = |at: &usize| at.checked_add(len).is_some_and(|end| end <= self.map.len());
        match offset.filter(fits) {
            Some(offset) => Ok(self.map.as_mut_ptr().wrapping_add(offset)),
            None => failed(format!(
                "the case itself reaches {iova:#x} + {len}, outside of its memory"
            )),
        }
    }

    pub(crate) fn write(&self, iova: u64, bytes: &[u8]) -> Outcome {
        let place = self.place(iova, bytes.len())?;
        // SAFETY: 1. `place` checked the range; `bytes` is ours. 2. Disjoint memory. 3. No reference covers the mapping.
        unsafe { copy::copy(place, bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    pub(crate) fn read(&self, iova: u64, len: usize) -> Outcome<Vec<u8>> {
        let place = self.place(iova, len)?;
        let mut bytes = vec![0; len];
        // SAFETY: 1. `place` checked the range; `bytes` is ours. 2. Disjoint memory. 3. No reference covers the mapping.
        unsafe { copy::copy(bytes.as_mut_ptr(), place, len) };
        Ok(bytes)
    }

    /// A zeroed ring at a place of this memory.
    pub(crate) fn ring<const WORDS: usize>(&self, iova: u64, depth: Depth) -> Outcome<Ring<WORDS>> {
        let len = usize::try_from(Ring::<WORDS>::bytes(depth))
            .map_err(|_| Stop::Failed("a ring beyond this machine".into()))?;
        self.write(iova, &vec![0; len])?;
        let Some(place) = NonNull::new(self.place(iova, len)?) else {
            return failed("a mapping at address 0");
        };
        // SAFETY: 1. `place` checked depth * WORDS * 8 bytes, `alloc` aligned them, and the mapping lives as long as the client that
        //         holds the ring. 2. The memory is reached through ring views and `copy` only.
        Ok(unsafe { Ring::new(place.cast(), depth) })
    }
}

/// The device's doorbells, mapped.
#[derive(Debug)]
pub(crate) struct Doorbells {
    _map: MmapRaw,
    pub(crate) bar: Bar2,
}

impl Doorbells {
    pub(crate) fn map(fd: RawFd, len: u64) -> Outcome<Self> {
        if fd < 0 {
            return failed("BAR2 has no descriptor");
        }
        // SAFETY: not -1; the attachment keeps it open while it lives, which is longer than this call.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        if len != ring_proto::uar::BAR2_LEN {
            return failed(format!("BAR2 has {len} bytes"));
        }
        let len =
            usize::try_from(len).map_err(|_| Stop::Failed("BAR2 beyond this machine".into()))?;
        let map = MmapOptions::new()
            .len(len)
            .map_raw(fd.as_raw_fd())
            .map_err(|error| Stop::Failed(format!("BAR2 cannot be mapped: {error}")))?;
        let Some(base) = NonNull::new(map.as_mut_ptr()) else {
            return failed("a mapping at address 0");
        };
        // SAFETY: 1. A fresh mapping of all of BAR2, kept beside the view. 2. Nothing else of the suite reaches it.
        let bar = unsafe { Bar2::new(base) };
        Ok(Self { _map: map, bar })
    }
}
