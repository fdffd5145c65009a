//! Descriptor table: what the library knows of a descriptor number.
//!
//! Place: every hook asks it first; the answer for a number that is none of ours is one load.
//! Invariants: no lock and no allocation, so look-ups, `dup` and `close` are sound in signal handlers and after `fork`; a slot's
//! memory is never given back, so a reference to it stays valid, although it may show the next socket's state after a race with
//! `close`. The kernel's own descriptor table decides such races: an entry is removed before its number is closed, and set after
//! its number was made.
//! Hot: `peek`, `kind`. Edges: table-entry, table-slot. Source: ours. Leaves out: numbers past [`FDS`], which are never tracked.
//!
//! ```text
//! entries[fd]: kind 8 | generation 24 | slot 32      one per number          (dup: several entries name one slot)
//! slots[n]:    generation 32 | references 32, ...    one per open file description of this process
//! ```
#![expect(
    unsafe_code,
    reason = "slots live in memory that is mapped in chunks and never unmapped"
)]

use core::mem::size_of;
use core::ops::Deref;
use core::ptr::NonNull;
use std::os::fd::RawFd;

use ring_proto::sync::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use crate::sys;
use crate::tcp::Endpoint;

/// Numbers that can be tracked: the default hard limit of descriptors of a process.
pub const FDS: usize = 1 << 20;
/// Slots of one chunk.
const CHUNK: usize = 256;
/// Chunks: every number may have a slot of its own.
const CHUNKS: usize = FDS / CHUNK;
const GENERATION_MASK: u64 = 0x00ff_ffff;

/// What a descriptor is to the library.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Nothing of ours, or not known.
    None,
    /// An IP socket with a [`Slot`].
    Socket,
    /// The library's own: the program must not see it.
    Internal,
}

const SOCKET: u64 = 1 << 56;
const INTERNAL: u64 = 2 << 56;

/// State of one open file description.
#[derive(Debug)]
#[repr(C, align(128))]
pub struct Slot {
    /// Generation in the upper half, references in the lower: descriptors and users. No references: free.
    life: AtomicU64,
    /// Entries that name this slot.
    descriptors: AtomicU32,
    /// Next free slot plus one.
    next: AtomicU32,
    /// Logical side of the socket's addresses.
    pub endpoint: Endpoint,
    /// Telemetry entry of the connection, see `telemetry`.
    pub record: AtomicU64,
}

/// The table. Zero bytes are an empty one.
#[derive(Debug)]
pub struct Table {
    entries: [AtomicU64; FDS],
    chunks: [AtomicPtr<Slot>; CHUNKS],
    /// Free slots: tag in the upper half, slot plus one in the lower.
    free: AtomicU64,
    /// Slots ever used.
    fresh: AtomicU32,
}

/// What [`Table::remove`] found.
#[derive(Debug)]
pub enum Removed<'a> {
    /// No socket.
    None,
    /// A socket that has further descriptors in this process.
    Shared,
    /// The last descriptor of a socket in this process.
    Last(SlotRef<'a>),
}

/// A slot that cannot become another socket's while this lives. Must not be held across a wait.
#[derive(Debug)]
pub struct SlotRef<'a> {
    table: &'a Table,
    slot: &'a Slot,
    index: u32,
}

impl Deref for SlotRef<'_> {
    type Target = Slot;

    fn deref(&self) -> &Slot {
        self.slot
    }
}

impl Drop for SlotRef<'_> {
    fn drop(&mut self) {
        self.table.release(self.index, self.slot);
    }
}

impl Table {
    /// An empty table.
    #[must_use]
    #[expect(
        clippy::new_without_default,
        reason = "a value of 8 MiB is for statics only"
    )]
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self {
            entries: [const { AtomicU64::new(0) }; FDS],
            chunks: [const { AtomicPtr::new(core::ptr::null_mut()) }; CHUNKS],
            free: AtomicU64::new(0),
            fresh: AtomicU32::new(0),
        }
    }

    #[inline]
    fn entry(&self, fd: RawFd) -> Option<&AtomicU64> {
        self.entries.get(usize::try_from(fd).ok()?)
    }

    #[inline]
    fn load(&self, fd: RawFd) -> u64 {
        // EDGE table-entry (acquire): the slot's first state. Released in `set`.
        self.entry(fd).map_or(0, |e| e.load(Ordering::Acquire))
    }

    fn set(&self, fd: RawFd, word: u64) -> u64 {
        self.entry(fd).map_or(0, |e| {
            // EDGE table-entry (release): the slot behind the word. Acquired in `load`.
            e.swap(word, Ordering::AcqRel)
        })
    }

    /// What `fd` is.
    #[inline]
    #[must_use]
    pub fn kind(&self, fd: RawFd) -> Kind {
        match self.load(fd) >> 56 {
            0 => Kind::None,
            1 => Kind::Socket,
            _ => Kind::Internal,
        }
    }

    /// Slot of a socket, without holding it: after a race with `close` it may be another socket's. For single words of state.
    #[inline]
    #[must_use]
    pub fn peek(&self, fd: RawFd) -> Option<&Slot> {
        let word = self.load(fd);
        if word >> 56 != SOCKET >> 56 {
            return None;
        }
        self.slot(index_of(word))
    }

    /// Slot of a socket, held.
    #[must_use]
    pub fn get(&self, fd: RawFd) -> Option<SlotRef<'_>> {
        let word = self.load(fd);
        if word >> 56 != SOCKET >> 56 {
            return None;
        }
        self.hold(word)
    }

    fn hold(&self, word: u64) -> Option<SlotRef<'_>> {
        let index = index_of(word);
        let slot = self.slot(index)?;
        // EDGE table-slot (acquire): the state of this life. Released in `allocate`.
        let mut life = slot.life.load(Ordering::Acquire);
        loop {
            let is_same = (life >> 32) & GENERATION_MASK == (word >> 32) & GENERATION_MASK;
            if !is_same || life & u64::from(u32::MAX) == 0 {
                return None;
            }
            match slot.life.compare_exchange_weak(
                life,
                life + 1,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => {
                    return Some(SlotRef {
                        table: self,
                        slot,
                        index,
                    });
                }
                Err(now) => life = now,
            }
        }
    }

    /// Starts tracking a socket that was just made under `fd`. `None` when the number is too high or memory is short: the socket
    /// then stays an ordinary one.
    pub fn insert(&self, fd: RawFd, endpoint: &Endpoint) -> Option<SlotRef<'_>> {
        self.entry(fd)?;
        let (index, slot) = self.allocate()?;
        slot.endpoint.copy_from(endpoint);
        // Relaxed: published with the entry below.
        slot.record.store(0, Ordering::Relaxed);
        slot.descriptors.store(1, Ordering::Relaxed);
        // One reference for the entry, one for the caller. EDGE table-slot (release): the state above. Acquired in `hold`.
        let generation = (slot.life.load(Ordering::Relaxed) >> 32) + 1;
        slot.life.store(
            ((generation & GENERATION_MASK) << 32) | 2,
            Ordering::Release,
        );
        let word = SOCKET | ((generation & GENERATION_MASK) << 32) | u64::from(index);
        let before = self.set(fd, word);
        // An entry that was left behind by a close the library could not see.
        drop(self.forget(before));
        Some(SlotRef {
            table: self,
            slot,
            index,
        })
    }

    /// Copies the entry of `old` to `new` after `dup` or `dup2`. Returns what `new` named before, which the kernel has closed.
    pub fn duplicate(&self, old: RawFd, new: RawFd) -> Removed<'_> {
        let word = self.load(old);
        let before = match self.hold(word).filter(|_| word >> 56 == SOCKET >> 56) {
            Some(slot) if self.entry(new).is_some() => {
                // Relaxed: a count; the entry publishes the slot.
                slot.descriptors.fetch_add(1, Ordering::Relaxed);
                // The reference of the new entry is this one.
                core::mem::forget(slot);
                self.set(new, word)
            }
            _ => self.set(new, 0),
        };
        self.forget(before)
    }

    /// Ends tracking of `fd`, before the kernel closes it.
    pub fn remove(&self, fd: RawFd) -> Removed<'_> {
        if self.load(fd) == 0 {
            return Removed::None;
        }
        let word = self.set(fd, 0);
        self.forget(word)
    }

    /// Drops the reference of an entry that was taken out.
    fn forget(&self, word: u64) -> Removed<'_> {
        if word >> 56 != SOCKET >> 56 {
            return Removed::None;
        }
        let index = index_of(word);
        let Some(slot) = self.slot(index) else {
            return Removed::None;
        };
        // The entry's own reference becomes the returned one.
        let held = SlotRef {
            table: self,
            slot,
            index,
        };
        // AcqRel: the last one sees what users of the other descriptors did.
        if slot.descriptors.fetch_sub(1, Ordering::AcqRel) == 1 {
            Removed::Last(held)
        } else {
            Removed::Shared
        }
    }

    /// Hides a descriptor of the library from the program.
    pub fn hide(&self, fd: RawFd) {
        self.set(fd, INTERNAL);
    }

    /// Makes the number an ordinary one again, before the library closes it.
    pub fn unhide(&self, fd: RawFd) {
        self.set(fd, 0);
    }

    /// Lowest internal descriptor at or above `from`, for `close_range`, which must step around them.
    #[must_use]
    pub fn next_internal(&self, from: u32) -> Option<RawFd> {
        let from = usize::try_from(from).ok()?;
        self.entries
            .get(from..INTERNAL_LIMIT)?
            .iter()
            .position(|e| e.load(Ordering::Acquire) == INTERNAL)
            .and_then(|n| RawFd::try_from(from + n).ok())
    }

    /// Tracked sockets with numbers in `first..=last`.
    pub fn sockets_in(&self, first: u32, last: u32) -> impl Iterator<Item = RawFd> + '_ {
        let first = usize::try_from(first).map_or(FDS, |f| f.min(FDS));
        let end = usize::try_from(last).map_or(FDS, |l| l.saturating_add(1).min(FDS));
        let range = self.entries.get(first..end).unwrap_or(&[]);
        // Untouched pages of the table are zero pages of the kernel: reading them costs no memory.
        range.iter().enumerate().filter_map(move |(n, e)| {
            let is_socket = e.load(Ordering::Acquire) >> 56 == SOCKET >> 56;
            RawFd::try_from(first + n).ok().filter(|_| is_socket)
        })
    }

    #[inline]
    fn slot(&self, index: u32) -> Option<&Slot> {
        let index = index as usize;
        // Acquire: the chunk was zeroed by the kernel before its address was published.
        let chunk = NonNull::new(self.chunks.get(index / CHUNK)?.load(Ordering::Acquire))?;
        // SAFETY: a chunk holds CHUNK slots, is never unmapped, and zero bytes are a valid Slot of atomics.
        let slot = unsafe { chunk.add(index % CHUNK) };
        // SAFETY: as above; all access is through atomics.
        Some(unsafe { slot.as_ref() })
    }

    fn allocate(&self) -> Option<(u32, &Slot)> {
        // Acquire: pairs with the push in `release`.
        let mut head = self.free.load(Ordering::Acquire);
        loop {
            let Some(index) = index_of(head).checked_sub(1) else {
                return self.grow();
            };
            let slot = self.slot(index)?;
            // Relaxed: if another thread took and returned the slot meanwhile, the tag differs and the exchange fails.
            let next = u64::from(slot.next.load(Ordering::Relaxed));
            let tag = (head >> 32).wrapping_add(1) << 32;
            match self.free.compare_exchange_weak(
                head,
                tag | next,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return Some((index, slot)),
                Err(now) => head = now,
            }
        }
    }

    fn grow(&self) -> Option<(u32, &Slot)> {
        // Relaxed: the number alone is handed out.
        let index = self.fresh.fetch_add(1, Ordering::Relaxed);
        let Some(chunk) = self.chunks.get(index as usize / CHUNK) else {
            self.fresh.fetch_sub(1, Ordering::Relaxed);
            return None;
        };
        if chunk.load(Ordering::Acquire).is_null() {
            let len = CHUNK * size_of::<Slot>();
            let memory = sys::map_private(len).ok()?;
            let mine: *mut Slot = memory.as_ptr().cast();
            // Release: kernel-zeroed memory; pairs with `slot`.
            let raced = chunk.compare_exchange(
                core::ptr::null_mut(),
                mine,
                Ordering::AcqRel,
                Ordering::Acquire,
            );
            if raced.is_err() {
                // SAFETY: nobody else has seen this mapping.
                unsafe { sys::unmap(memory, len) };
            }
        }
        Some((index, self.slot(index)?))
    }

    fn release(&self, index: u32, slot: &Slot) {
        // AcqRel: whoever frees sees all that was done under other references.
        if slot.life.fetch_sub(1, Ordering::AcqRel) & u64::from(u32::MAX) != 1 {
            return;
        }
        let mut head = self.free.load(Ordering::Relaxed);
        loop {
            // Relaxed: published by the exchange.
            slot.next.store(index_of(head), Ordering::Relaxed);
            let tag = (head >> 32).wrapping_add(1) << 32;
            // Release: the slot's last state; pairs with `allocate`.
            match self.free.compare_exchange_weak(
                head,
                tag | (u64::from(index) + 1),
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }
}

/// Internal descriptors lie below this number.
pub const INTERNAL_LIMIT: usize = 4096;

#[expect(
    clippy::cast_possible_truncation,
    reason = "the lower half is the slot number"
)]
const fn index_of(word: u64) -> u32 {
    word as u32
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::place::Shape;

    fn endpoint() -> Endpoint {
        Endpoint::new(Shape::default())
    }

    #[test]
    fn a_socket_lives_until_its_last_descriptor_goes() {
        static TABLE: Table = Table::new();
        assert_eq!(TABLE.kind(5), Kind::None);
        drop(TABLE.insert(5, &endpoint()).unwrap());
        assert_eq!(TABLE.kind(5), Kind::Socket);
        assert!(matches!(TABLE.duplicate(5, 9), Removed::None));
        assert!(matches!(TABLE.remove(5), Removed::Shared));
        assert!(TABLE.get(5).is_none());
        assert!(TABLE.get(9).is_some());
        assert!(matches!(TABLE.remove(9), Removed::Last(_)));
        assert!(matches!(TABLE.remove(9), Removed::None));
    }

    #[test]
    fn a_duplicate_over_a_socket_ends_it() {
        static TABLE: Table = Table::new();
        drop(TABLE.insert(5, &endpoint()).unwrap());
        drop(TABLE.insert(6, &endpoint()).unwrap());
        assert!(matches!(TABLE.duplicate(5, 6), Removed::Last(_)));
        // An ordinary file over a socket.
        assert!(matches!(TABLE.duplicate(1, 6), Removed::Shared));
        assert_eq!(TABLE.kind(6), Kind::None);
        assert_eq!(TABLE.kind(5), Kind::Socket);
    }

    #[test]
    fn a_held_slot_is_not_reused() {
        static TABLE: Table = Table::new();
        let held = TABLE.insert(5, &endpoint()).unwrap();
        let index = held.index;
        drop(TABLE.remove(5));
        let other = TABLE.insert(5, &endpoint()).unwrap();
        assert_ne!(other.index, index);
        drop(held);
        let third = TABLE.insert(6, &endpoint()).unwrap();
        assert_eq!(third.index, index);
    }

    #[test]
    fn numbers_out_of_range_are_ordinary() {
        static TABLE: Table = Table::new();
        let high = i32::try_from(FDS).unwrap();
        assert!(TABLE.insert(high, &endpoint()).is_none());
        for fd in [-1, high, i32::MAX, i32::MIN] {
            assert_eq!(TABLE.kind(fd), Kind::None);
            assert!(matches!(TABLE.remove(fd), Removed::None));
            assert!(matches!(TABLE.duplicate(fd, fd), Removed::None));
        }
    }

    #[test]
    fn internal_descriptors_are_found_in_order() {
        static TABLE: Table = Table::new();
        TABLE.hide(1000);
        TABLE.hide(1003);
        assert_eq!(TABLE.kind(1000), Kind::Internal);
        assert_eq!(TABLE.next_internal(0), Some(1000));
        assert_eq!(TABLE.next_internal(1001), Some(1003));
        assert_eq!(TABLE.next_internal(1004), None);
        assert_eq!(TABLE.next_internal(u32::MAX), None);
        TABLE.unhide(1000);
        assert_eq!(TABLE.next_internal(0), Some(1003));
        drop(TABLE.insert(7, &endpoint()).unwrap());
        assert_eq!(TABLE.sockets_in(3, u32::MAX).collect::<Vec<_>>(), [7]);
        assert_eq!(TABLE.sockets_in(8, 5).count(), 0);
    }

    #[test]
    fn threads_that_race_over_one_number_never_lose_a_slot() {
        static TABLE: Table = Table::new();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5_000 {
                        drop(TABLE.insert(3, &endpoint()));
                        drop(TABLE.get(3));
                        drop(TABLE.duplicate(3, 4));
                        drop(TABLE.get(4));
                        drop(TABLE.remove(3));
                    }
                });
            }
        });
        drop(TABLE.remove(3));
        drop(TABLE.remove(4));
        // All slots are free again: as many as were ever used can be taken without growing.
        let used = TABLE.fresh.load(Ordering::Relaxed);
        assert!(used <= 64, "{used} slots for at most a few sockets at once");
        for fd in 0..i32::try_from(used).unwrap() {
            assert!(TABLE.insert(fd, &endpoint()).is_some());
        }
        assert_eq!(TABLE.fresh.load(Ordering::Relaxed), used);
    }
}
