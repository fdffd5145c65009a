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
//! entries[fd]: flags and kind 8 | generation 24 | slot 32      one per number          (dup: several entries name one slot)
//! slots[n]:    generation 32 | references 32, ...    one per open file description of this process
//! ```
//! What a slot owns on the heap is freed by the next `reap`, not by `close`, because `close` may be called in a signal handler.
#![expect(
    unsafe_code,
    reason = "slots live in memory that is mapped in chunks and never unmapped"
)]

use core::mem::size_of;
use core::ops::Deref;
use core::ptr::NonNull;
use std::os::fd::RawFd;
use std::sync::Arc;

use ring_proto::sync::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use crate::readiness::epoll::EpollSet;
use crate::socket::SwitchSocket;
use crate::sys;
use crate::tcp::Endpoint;
use crate::told::Told;

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
    /// An epoll set with a [`Slot`].
    Set,
}

const SOCKET: u64 = 1 << 56;
const SET: u64 = 2 << 56;
const KIND: u64 = 3 << 56;

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
    /// What the telemetry knows of the connection.
    pub told: Told,
    /// 1: data and readiness of this socket are not the kernel's alone, ask the switch.
    pub san: AtomicU32,
    /// Epoll sets that know this socket.
    pub sets: AtomicU32,
    /// 1: a connection of the kernel's that this process, or its parent, accepted.
    pub accepted: AtomicU32,
    /// The kernel's cookie of the socket, 0 until it had to be known; see `sys::cookie`.
    pub cookie: AtomicU64,
    /// A boxed `Arc`, or null.
    socket: AtomicPtr<Arc<SwitchSocket>>,
    /// A boxed `Arc`, or null.
    set: AtomicPtr<Arc<EpollSet>>,
}

impl Slot {
    /// Whether data and readiness of this socket are not the kernel's alone.
    #[inline]
    #[must_use]
    pub fn is_san(&self) -> bool {
        // Relaxed: what is found behind it has its own ordering.
        self.san.load(Ordering::Relaxed) != 0
    }

    /// Stores whether the switch must be asked.
    pub fn set_san(&self, is_san: bool) {
        self.san.store(u32::from(is_san), Ordering::Relaxed);
    }
}

/// The table. Zero bytes are an empty one.
#[derive(Debug)]
pub struct Table {
    entries: [AtomicU64; FDS],
    chunks: [AtomicPtr<Slot>; CHUNKS],
    /// Free slots: tag in the upper half, slot plus one in the lower.
    free: AtomicU64,
    /// Free slots that still own something, as `free`.
    retired: AtomicU64,
    /// Slots ever used.
    fresh: AtomicU32,
    /// One past the highest number ever tracked.
    end: AtomicU32,
}

/// What [`Table::remove`] found.
#[derive(Debug)]
pub enum Removed<'a> {
    /// No socket.
    None,
    /// A socket or set that has further descriptors in this process.
    Shared(SlotRef<'a>),
    /// The last descriptor of a socket or set in this process.
    Last(SlotRef<'a>),
}

/// A slot that cannot become another socket's while this lives. Must not be held across a wait.
#[derive(Debug)]
pub struct SlotRef<'a> {
    table: &'a Table,
    slot: &'a Slot,
    index: u32,
}

impl SlotRef<'_> {
    /// The switch's structure of a stream socket.
    #[must_use]
    pub fn socket(&self) -> Option<&Arc<SwitchSocket>> {
        // Acquire: pairs with the store at insertion.
        let boxed = self.slot.socket.load(Ordering::Acquire);
        // SAFETY: null, or a box that is freed only after the slot's last reference, of which this is one.
        unsafe { boxed.as_ref() }
    }

    /// The epoll set.
    #[must_use]
    pub fn set(&self) -> Option<&Arc<EpollSet>> {
        // Acquire: pairs with the store at insertion.
        let boxed = self.slot.set.load(Ordering::Acquire);
        // SAFETY: as in `socket`.
        unsafe { boxed.as_ref() }
    }

    /// Number of the slot: names the open file description while it lives.
    #[must_use]
    pub const fn index(&self) -> u32 {
        self.index
    }
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
            retired: AtomicU64::new(0),
            end: AtomicU32::new(0),
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
            if let Ok(fd) = u32::try_from(fd)
                && word != 0
            {
                // Relaxed: only grows.
                self.end.fetch_max(fd + 1, Ordering::Relaxed);
            }
            // EDGE table-entry (release): the slot behind the word. Acquired in `load`.
            e.swap(word, Ordering::AcqRel)
        })
    }

    /// What `fd` is.
    #[inline]
    #[must_use]
    pub fn kind(&self, fd: RawFd) -> Kind {
        match self.load(fd) & KIND {
            SOCKET => Kind::Socket,
            SET => Kind::Set,
            _ => Kind::None,
        }
    }

    /// Slot of a socket, without holding it: after a race with `close` it may be another socket's. For single words of state.
    #[inline]
    #[must_use]
    pub fn peek(&self, fd: RawFd) -> Option<&Slot> {
        let word = self.load(fd);
        if word & KIND != SOCKET {
            return None;
        }
        self.slot(index_of(word))
    }

    /// Slot of a socket, held.
    #[must_use]
    pub fn get(&self, fd: RawFd) -> Option<SlotRef<'_>> {
        let word = self.load(fd);
        if word & KIND != SOCKET {
            return None;
        }
        self.hold(word)
    }

    /// Epoll set behind `fd`, if the library keeps one for it.
    #[must_use]
    pub fn get_set(&self, fd: RawFd) -> Option<SlotRef<'_>> {
        let word = self.load(fd);
        if word & KIND != SET {
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
    pub fn insert(
        &self,
        fd: RawFd,
        endpoint: &Endpoint,
        socket: Option<Arc<SwitchSocket>>,
    ) -> Option<SlotRef<'_>> {
        self.entry(fd)?;
        self.reap();
        let (index, slot) = self.allocate()?;
        slot.endpoint.copy_from(endpoint);
        let socket = socket.map_or(core::ptr::null_mut(), |s| Box::into_raw(Box::new(s)));
        // Release: the structure; pairs with `SlotRef::socket`.
        slot.socket.store(socket, Ordering::Release);
        Some(self.publish(fd, index, slot, SOCKET))
    }

    /// Starts tracking an epoll set. `None` as for [`Self::insert`].
    pub fn insert_set(&self, fd: RawFd, set: Arc<EpollSet>) -> Option<SlotRef<'_>> {
        self.entry(fd)?;
        self.reap();
        let (index, slot) = self.allocate()?;
        // Release: the set; pairs with `SlotRef::set`.
        slot.set
            .store(Box::into_raw(Box::new(set)), Ordering::Release);
        Some(self.publish(fd, index, slot, SET))
    }

    /// Gives a socket that is tracked already its structure in the switch. Does nothing when it has one.
    pub fn attach(&self, slot: &SlotRef<'_>, socket: Arc<SwitchSocket>) {
        let boxed = Box::into_raw(Box::new(socket));
        // AcqRel: as in `insert`; on failure another thread was faster.
        let raced = slot.socket.compare_exchange(
            core::ptr::null_mut(),
            boxed,
            Ordering::AcqRel,
            Ordering::Relaxed,
        );
        if raced.is_err() {
            // SAFETY: the box was made above and given to nobody.
            drop(unsafe { Box::from_raw(boxed) });
        }
    }

    fn publish<'a>(&'a self, fd: RawFd, index: u32, slot: &'a Slot, kind: u64) -> SlotRef<'a> {
        // Relaxed: published with the entry below.
        slot.told.clear();
        slot.san.store(0, Ordering::Relaxed);
        slot.sets.store(0, Ordering::Relaxed);
        slot.accepted.store(0, Ordering::Relaxed);
        slot.cookie.store(0, Ordering::Relaxed);
        slot.descriptors.store(1, Ordering::Relaxed);
        // One reference for the entry, one for the caller. EDGE table-slot (release): the state above. Acquired in `hold`.
        let generation = ((slot.life.load(Ordering::Relaxed) >> 32) + 1) & GENERATION_MASK;
        slot.life.store((generation << 32) | 2, Ordering::Release);
        let word = kind | (generation << 32) | u64::from(index);
        let before = self.set(fd, word);
        // An entry that was left behind by a close the library could not see.
        drop(self.forget(before));
        SlotRef {
            table: self,
            slot,
            index,
        }
    }

    /// Frees what closed sockets have left. Not for signal handlers.
    pub fn reap(&self) {
        // Relaxed: a look; the pop below orders.
        while self.retired.load(Ordering::Relaxed) & u64::from(u32::MAX) != 0 {
            let Some((index, slot)) = self.pop(&self.retired) else {
                return;
            };
            // AcqRel: the box was stored by another thread.
            let socket = slot.socket.swap(core::ptr::null_mut(), Ordering::AcqRel);
            let set = slot.set.swap(core::ptr::null_mut(), Ordering::AcqRel);
            if !socket.is_null() {
                // SAFETY: made by `Box::into_raw`; the slot has no references, so nobody else reaches it.
                drop(unsafe { Box::from_raw(socket) });
            }
            if !set.is_null() {
                // SAFETY: as above.
                drop(unsafe { Box::from_raw(set) });
            }
            self.push(&self.free, index, slot);
        }
    }

    /// The numbers under which this process has the open file description of `slot`.
    pub fn descriptors_of<'a>(&'a self, slot: &'a SlotRef<'a>) -> impl Iterator<Item = RawFd> + 'a {
        self.tracked_in(0, u32::MAX)
            .filter(|&fd| index_of(self.load(fd)) == slot.index)
    }

    /// Copies the entry of `old` to `new` after `dup` or `dup2`. Returns what `new` named before, which the kernel has closed.
    pub fn duplicate(&self, old: RawFd, new: RawFd) -> Removed<'_> {
        let word = self.load(old);
        let before = match self.hold(word).filter(|_| word & KIND != 0) {
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
        if word & KIND == 0 {
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
            Removed::Shared(held)
        }
    }

    /// Tracked numbers in `first..=last`.
    pub fn tracked_in(&self, first: u32, last: u32) -> impl Iterator<Item = RawFd> + '_ {
        let first = usize::try_from(first).map_or(FDS, |f| f.min(FDS));
        // Relaxed: numbers tracked later are not asked for.
        let used = self.end.load(Ordering::Relaxed) as usize;
        let end = usize::try_from(last).map_or(used, |l| l.saturating_add(1).min(used));
        let range = self.entries.get(first..end).unwrap_or(&[]);
        range.iter().enumerate().filter_map(move |(n, e)| {
            let is_tracked = e.load(Ordering::Acquire) & KIND != 0;
            RawFd::try_from(first + n).ok().filter(|_| is_tracked)
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
        self.pop(&self.free).or_else(|| self.grow())
    }

    fn pop(&self, list: &AtomicU64) -> Option<(u32, &Slot)> {
        // Acquire: pairs with `push`.
        let mut head = list.load(Ordering::Acquire);
        loop {
            let index = index_of(head).checked_sub(1)?;
            let slot = self.slot(index)?;
            // Relaxed: if another thread took and returned the slot meanwhile, the tag differs and the exchange fails.
            let next = u64::from(slot.next.load(Ordering::Relaxed));
            let tag = (head >> 32).wrapping_add(1) << 32;
            match list.compare_exchange_weak(head, tag | next, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => return Some((index, slot)),
                Err(now) => head = now,
            }
        }
    }

    fn push(&self, list: &AtomicU64, index: u32, slot: &Slot) {
        let mut head = list.load(Ordering::Relaxed);
        loop {
            // Relaxed: published by the exchange.
            slot.next.store(index_of(head), Ordering::Relaxed);
            let tag = (head >> 32).wrapping_add(1) << 32;
            // Release: the slot's last state; pairs with `pop`.
            match list.compare_exchange_weak(
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
        // Relaxed: this was the last reference.
        let owns_nothing = slot.socket.load(Ordering::Relaxed).is_null()
            && slot.set.load(Ordering::Relaxed).is_null();
        let list = if owns_nothing {
            &self.free
        } else {
            &self.retired
        };
        self.push(list, index, slot);
    }
}

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
        drop(TABLE.insert(5, &endpoint(), None).unwrap());
        assert_eq!(TABLE.kind(5), Kind::Socket);
        assert!(matches!(TABLE.duplicate(5, 9), Removed::None));
        assert!(matches!(TABLE.remove(5), Removed::Shared(_)));
        assert!(TABLE.get(5).is_none());
        assert!(TABLE.get(9).is_some());
        assert!(matches!(TABLE.remove(9), Removed::Last(_)));
        assert!(matches!(TABLE.remove(9), Removed::None));
    }

    #[test]
    fn a_duplicate_over_a_socket_ends_it() {
        static TABLE: Table = Table::new();
        drop(TABLE.insert(5, &endpoint(), None).unwrap());
        drop(TABLE.insert(6, &endpoint(), None).unwrap());
        assert!(matches!(TABLE.duplicate(5, 6), Removed::Last(_)));
        // An ordinary file over a socket.
        assert!(matches!(TABLE.duplicate(1, 6), Removed::Shared(_)));
        assert_eq!(TABLE.kind(6), Kind::None);
        assert_eq!(TABLE.kind(5), Kind::Socket);
    }

    #[test]
    fn a_held_slot_is_not_reused() {
        static TABLE: Table = Table::new();
        let held = TABLE.insert(5, &endpoint(), None).unwrap();
        let index = held.index;
        drop(TABLE.remove(5));
        let other = TABLE.insert(5, &endpoint(), None).unwrap();
        assert_ne!(other.index, index);
        drop(held);
        let third = TABLE.insert(6, &endpoint(), None).unwrap();
        assert_eq!(third.index, index);
    }

    #[test]
    fn numbers_out_of_range_are_ordinary() {
        static TABLE: Table = Table::new();
        let high = i32::try_from(FDS).unwrap();
        assert!(TABLE.insert(high, &endpoint(), None).is_none());
        for fd in [-1, high, i32::MAX, i32::MIN] {
            assert_eq!(TABLE.kind(fd), Kind::None);
            assert!(matches!(TABLE.remove(fd), Removed::None));
            assert!(matches!(TABLE.duplicate(fd, fd), Removed::None));
        }
    }

    #[test]
    fn sockets_of_a_range_are_found() {
        static TABLE: Table = Table::new();
        drop(TABLE.insert(7, &endpoint(), None).unwrap());
        assert_eq!(TABLE.tracked_in(3, u32::MAX).collect::<Vec<_>>(), [7]);
        assert_eq!(TABLE.tracked_in(8, 5).count(), 0);
    }

    #[test]
    fn threads_that_race_over_one_number_never_lose_a_slot() {
        static TABLE: Table = Table::new();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5_000 {
                        drop(TABLE.insert(3, &endpoint(), None));
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
            assert!(TABLE.insert(fd, &endpoint(), None).is_some());
        }
        assert_eq!(TABLE.fresh.load(Ordering::Relaxed), used);
    }
}
