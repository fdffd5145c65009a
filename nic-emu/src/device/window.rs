//! Windows: client memory that a function may touch.
//!
//! Place: the server's DMA_MAP ends here; queues, memory regions and admin buffers find their memory here.
//! Invariants: a window's file is a memfd sealed against shrinking and large enough, so touching the mapping cannot raise SIGBUS
//! whatever the client does; windows do not overlap; a mapping goes away only after every view of it was dropped
//! (`Function::forget_window`). No reference is formed over window memory: rings through `ring_proto::shared`, bytes through
//! `ring_proto::copy`.
//! Source: VFIO DMA mapping; the seal rule is ours. Leaves out: windows without a file (they can be mapped, not accessed).
#![expect(
    unsafe_code,
    reason = "turns checked places in mappings into ring views and byte copies"
)]

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use memmap2::{MmapOptions, MmapRaw};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::stat::fstat;
use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};
use ring_proto::admin::AdminStatus;
use ring_proto::copy;
use ring_proto::index::Depth;
use ring_proto::shared::Ring;

use super::{DeviceError, WindowRequest, WindowRow};

/// Most windows of a function.
pub(crate) const WINDOWS_LIMIT: usize = 4096;
/// Most bytes of all windows of a function.
pub(crate) const BYTES_LIMIT: u64 = 8 << 40;
/// Granularity of a window.
const PAGE: u64 = 4096;
/// Alignment of rings.
const RING_ALIGN: u64 = 64;

/// A place in a mapping, as the device's own address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostPtr(NonNull<u8>);

// SAFETY: a plain address; whoever reads or writes through it answers for the mapping, on any thread.
unsafe impl Send for HostPtr {}

impl HostPtr {
    /// The address `offset` bytes further on; the caller has checked that it lies in the same mapping.
    #[inline]
    pub(crate) fn at(self, offset: u64) -> *mut u8 {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        self.0.as_ptr().wrapping_add(offset)
    }
}

#[derive(Debug)]
struct Window {
    len: u64,
    offset: u64,
    write: bool,
    fd: Option<OwnedFd>,
    map: Option<MmapRaw>,
}

/// Memory found at an IOVA.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    /// Where it is; `None` when the window has no file.
    pub(crate) memory: Option<HostPtr>,
    /// Whether the device may write it.
    pub(crate) write: bool,
}

/// Windows of one function.
#[derive(Debug, Default)]
pub(crate) struct Windows {
    by_iova: BTreeMap<u64, Window>,
    bytes: u64,
}

impl Windows {
    pub(crate) fn len(&self) -> usize {
        self.by_iova.len()
    }

    /// Bytes of all of them.
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Checks and maps a window.
    pub(crate) fn map(&mut self, request: WindowRequest) -> Result<(), DeviceError> {
        let WindowRequest {
            fd,
            offset,
            iova,
            len,
            read,
            write,
        } = request;
        let bad = DeviceError::BadWindow { iova, len, offset };
        if len == 0 || [iova, len, offset].iter().any(|n| !n.is_multiple_of(PAGE)) {
            return Err(bad);
        }
        let (Some(end), Some(file_end)) = (iova.checked_add(len), offset.checked_add(len)) else {
            return Err(bad);
        };
        if self.by_iova.len() >= WINDOWS_LIMIT {
            return Err(DeviceError::Limit {
                what: "windows",
                limit: WINDOWS_LIMIT as u64,
            });
        }
        if len > BYTES_LIMIT - self.bytes {
            return Err(DeviceError::Limit {
                what: "window bytes",
                limit: BYTES_LIMIT,
            });
        }
        let below = self.by_iova.range(..end).next_back();
        if below.is_some_and(|(&start, window)| start + window.len > iova) {
            return Err(DeviceError::Overlap { iova, len });
        }
        let map = match &fd {
            Some(fd) if read || write => Some(map_memory(fd, offset, len, file_end, write)?),
            _ => None,
        };
        self.bytes += len;
        self.by_iova.insert(
            iova,
            Window {
                len,
                offset,
                write,
                fd,
                map,
            },
        );
        Ok(())
    }

    /// Start and length of the windows inside a range; an error when the range holds none or cuts one.
    pub(crate) fn inside(&self, iova: u64, len: u64) -> Result<Vec<(u64, u64)>, DeviceError> {
        let none = DeviceError::NoWindow { iova, len };
        let Some(end) = iova.checked_add(len) else {
            return Err(none);
        };
        let below = self.by_iova.range(..iova).next_back();
        if below.is_some_and(|(&start, window)| start + window.len > iova) {
            return Err(none);
        }
        let found: Vec<_> = self
            .by_iova
            .range(iova..end)
            .map(|(&start, window)| (start, window.len))
            .collect();
        match found.last() {
            Some(&(start, len)) if start + len <= end => Ok(found),
            _ => Err(none),
        }
    }

    /// Every window, as a row of an inspection.
    pub(crate) fn rows(&self, function: u32, node: &str) -> impl Iterator<Item = WindowRow> {
        self.by_iova.iter().map(move |(&iova, window)| WindowRow {
            function,
            node: node.to_owned(),
            iova,
            len: window.len,
            offset: window.offset,
            write: window.write,
            has_memory: window.map.is_some(),
        })
    }

    /// Every window: start and length.
    pub(crate) fn all(&self) -> Vec<(u64, u64)> {
        self.by_iova
            .iter()
            .map(|(&start, window)| (start, window.len))
            .collect()
    }

    /// Unmaps one window. No view of it may be left.
    pub(crate) fn remove(&mut self, iova: u64) {
        if let Some(window) = self.by_iova.remove(&iova) {
            self.bytes -= window.len;
        }
    }

    /// File, offset and length of the window that starts at `iova`.
    pub(crate) fn file(&self, iova: u64) -> Option<(BorrowedFd<'_>, u64, u64)> {
        use std::os::fd::AsFd;
        let window = self.by_iova.get(&iova)?;
        Some((window.fd.as_ref()?.as_fd(), window.offset, window.len))
    }

    /// The memory of `[iova, iova + len)`, when one window holds all of it.
    pub(crate) fn find(&self, iova: u64, len: u64) -> Option<Found> {
        let (&start, window) = self.by_iova.range(..=iova).next_back()?;
        let within = iova - start;
        if within > window.len || len > window.len - within {
            return None;
        }
        let memory = window.map.as_ref().and_then(|map| {
            let base = HostPtr(NonNull::new(map.as_mut_ptr())?);
            NonNull::new(base.at(within)).map(HostPtr)
        });
        Some(Found {
            memory,
            write: window.write,
        })
    }

    /// A view of a ring at `iova`: in one window, writable, aligned.
    pub(crate) fn ring<const WORDS: usize>(
        &self,
        iova: u64,
        depth: Depth,
    ) -> Result<Ring<WORDS>, AdminStatus> {
        if !iova.is_multiple_of(RING_ALIGN) {
            return Err(AdminStatus::INVALID);
        }
        let found = self
            .find(iova, Ring::<WORDS>::bytes(depth))
            .ok_or(AdminStatus::BAD_ADDRESS)?;
        let memory = found.memory.ok_or(AdminStatus::BAD_ADDRESS)?;
        if !found.write {
            return Err(AdminStatus::NO_ACCESS);
        }
        // SAFETY: 1. `find` proved depth * WORDS * 8 bytes inside one mapping, which is writable; mappings start at a page and windows
        //         too, so the place is 64-byte aligned as the IOVA is. `Function::forget_window` drops every ring view of a window
        //         before `remove` unmaps it. 2. Window memory is reached through ring views and `copy` only.
        Ok(unsafe { Ring::new(memory.0.cast(), depth) })
    }

    /// Copies bytes of a window into private memory.
    pub(crate) fn read(&self, iova: u64, target: &mut [u8]) -> Result<(), AdminStatus> {
        let found = self
            .find(iova, target.len() as u64)
            .ok_or(AdminStatus::BAD_ADDRESS)?;
        let memory = found.memory.ok_or(AdminStatus::BAD_ADDRESS)?;
        // SAFETY: 1. `find` proved the range inside one mapping, which lives as long as `self` is borrowed; `target` is ours.
        //         2. Private memory and a mapping of a file do not overlap. 3. No reference covers window memory; `target` is private.
        unsafe { copy::copy(target.as_mut_ptr(), memory.at(0), target.len()) };
        Ok(())
    }

    /// Copies private bytes into a window.
    pub(crate) fn write(&self, iova: u64, source: &[u8]) -> Result<(), AdminStatus> {
        let found = self
            .find(iova, source.len() as u64)
            .ok_or(AdminStatus::BAD_ADDRESS)?;
        let memory = found.memory.ok_or(AdminStatus::BAD_ADDRESS)?;
        if !found.write {
            return Err(AdminStatus::NO_ACCESS);
        }
        // SAFETY: as in `read`, with the roles exchanged; the mapping is writable because the window is.
        unsafe { copy::copy(memory.at(0), source.as_ptr(), source.len()) };
        Ok(())
    }
}

/// Maps a part of a file whose pages can never fail to be there.
fn map_memory(
    fd: &OwnedFd,
    offset: u64,
    len: u64,
    file_end: u64,
    write: bool,
) -> Result<MmapRaw, DeviceError> {
    let seals = fcntl(fd, FcntlArg::F_GET_SEALS).map_err(|_| DeviceError::NotMemory)?;
    if !SealFlag::from_bits_retain(seals).contains(SealFlag::F_SEAL_SHRINK) {
        return Err(DeviceError::Unsealed { seals });
    }
    // A huge page that was punched out of its file may not come back: touching it would be SIGBUS.
    let kind = fstatfs(fd).map_err(|error| DeviceError::system("fstatfs", error))?;
    if kind.filesystem_type() == HUGETLBFS_MAGIC {
        return Err(DeviceError::NotMemory);
    }
    // After the seal: it cannot become smaller any more.
    let stat = fstat(fd).map_err(|error| DeviceError::system("fstat", error))?;
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    if size < file_end {
        return Err(DeviceError::TooSmall {
            size,
            end: file_end,
        });
    }
    let len = usize::try_from(len).map_err(|_| DeviceError::Limit {
        what: "window bytes",
        limit: BYTES_LIMIT,
    })?;
    let mut options = MmapOptions::new();
    options.offset(offset).len(len);
    let map = if write {
        options.map_raw(fd.as_raw_fd())
    } else {
        options.map_raw_read_only(fd.as_raw_fd())
    };
    map.map_err(|error| DeviceError::system("mmap", error))
}
