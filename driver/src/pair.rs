//! Pair arenas: send rings, apart by the function they are addressed to.
//!
//! Place: `provider::memory` allocates send rings here; the NIC reads them, and a peer function may once be granted them as a window.
//! Invariants: one sealed sparse memfd per (own function, peer function), mapped at the device at `ARENA_IOVA + number * 1 GiB`;
//! nothing in it is addressed to anybody else. Its number is listed in the arena with a generation, odd while it exists: a process of
//! the family that lacks the mapping, or has one of an earlier generation, fetches the memory from the device. A pair arena goes only
//! when no ring is in it, and a few idle ones are kept.
//! Source: ours.
#![expect(
    unsafe_code,
    reason = "forms links and addresses over mapped pair arenas"
)]

use core::ptr::NonNull;
use std::collections::BTreeMap;

use ring_proto::admin::{Access, AdminOp, MrReg};
use ring_proto::ids::{FunctionId, Lkey};
use ring_proto::sync::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crate::alloc::Links;
use crate::fork_lock::ForkLock;
use crate::function::{Function, Locked, low};
use crate::record::{self, Pair};
use crate::sys::{self, Fd, Mapping};

/// Idle pair arenas that are kept for a peer that comes back.
const KEEP_IDLE: usize = 8;
/// Pages that an idle pair arena keeps for the next connection, from its start.
const KEEP_BYTES: usize = 4 << 20;
/// First offset used inside a pair arena; 0 is never handed out.
const FIRST: u64 = 4096;
const BLOCK_BITS: u32 = 30;

/// Pair arenas as this process has them mapped.
#[derive(Debug)]
pub(crate) struct PairMaps {
    places: Box<[Place]>,
    mappings: ForkLock<BTreeMap<u32, Mapping>>,
}

#[derive(Debug)]
struct Place {
    /// Generation of the mapping; stored last.
    generation: AtomicU32,
    base: AtomicUsize,
}

impl PairMaps {
    pub(crate) fn new() -> Self {
        let places = (0..record::PAIR_COUNT).map(|_| Place {
            generation: AtomicU32::new(0),
            base: AtomicUsize::new(0),
        });
        Self {
            places: places.collect(),
            mappings: ForkLock::new(BTreeMap::new()),
        }
    }

    /// Keeps the list still over a fork.
    pub(crate) fn hold(&self) {
        self.mappings.hold();
    }

    /// After the fork, in parent and child.
    pub(crate) fn let_go(&self) {
        self.mappings.let_go();
    }

    fn place(&self, number: u32) -> Option<&Place> {
        self.places.get(usize::try_from(number).ok()?)
    }

    fn keep(&self, number: u32, generation: u32, mapping: Mapping) -> Option<NonNull<u8>> {
        let base = mapping.base();
        let place = self.place(number)?;
        let mut mappings = self.mappings.lock();
        // Relaxed: published by the generation.
        place
            .base
            .store(base.as_ptr().expose_provenance(), Ordering::Relaxed);
        // EDGE pair-map (release): the base. Acquired in `Function::pair_base`.
        place.generation.store(generation, Ordering::Release);
        // The mapping of an earlier life goes here: no ring is left in it, so nobody uses it.
        drop(mappings.insert(number, mapping));
        Some(base)
    }

    fn forget(&self, number: u32) {
        if let Some(place) = self.place(number) {
            // Relaxed: the lock of the family is held and no ring is left.
            place.generation.store(0, Ordering::Relaxed);
        }
        let mut mappings = self.mappings.lock();
        drop(mappings.remove(&number));
    }
}

/// Words of a mapped pair arena.
struct Memory(NonNull<u8>);

impl Links for Memory {
    fn link(&self, offset: u64) -> Option<&AtomicU64> {
        if !offset.is_multiple_of(8) || offset >= record::ARENA_LEN {
            return None;
        }
        let offset = usize::try_from(offset).ok()?;
        // SAFETY: below the length of the mapping, checked above.
        let at = unsafe { self.0.add(offset) };
        // SAFETY: aligned, inside the mapping, and shared through atomics and raw copies only. The mapping stays while the family's
        // lock is held, which every caller of the heap does.
        Some(unsafe { AtomicU64::from_ptr(at.as_ptr().cast()) })
    }
}

impl Function {
    fn pair(&self, number: u32) -> Option<&Pair> {
        if number == 0 || number >= record::PAIR_COUNT {
            return None;
        }
        self.arena()
            .record(record::PAIRS + u64::from(number) * record::PAIR_STRIDE)
    }

    /// Address of an offset of the arena or of a pair arena in this process.
    #[inline]
    pub(crate) fn address(&self, offset: u64, len: u64) -> Option<NonNull<u8>> {
        if offset < record::ARENA_LEN {
            return self.arena().at(offset, len);
        }
        let number = u32::try_from(offset >> BLOCK_BITS).ok()?;
        let within = offset & (record::ARENA_LEN - 1);
        if within.checked_add(len)? > record::ARENA_LEN {
            return None;
        }
        let base = self.pair_base(number)?;
        // SAFETY: inside the mapping of that length, checked above.
        Some(unsafe { base.add(usize::try_from(within).ok()?) })
    }

    #[inline]
    fn pair_base(&self, number: u32) -> Option<NonNull<u8>> {
        let pair = self.pair(number)?;
        // Relaxed: a ring keeps its pair arena, so whoever asks about one in use sees a settled value.
        let wanted = pair.generation.load(Ordering::Relaxed);
        if wanted & 1 == 0 {
            return None;
        }
        let place = self.pairs.place(number)?;
        // EDGE pair-map (acquire): the base. Released in `PairMaps::keep`.
        if place.generation.load(Ordering::Acquire) == wanted {
            let base = core::ptr::with_exposed_provenance_mut(place.base.load(Ordering::Relaxed));
            return NonNull::new(base);
        }
        self.fetch_pair(number, wanted)
    }

    /// Fetches a pair arena that another process of the family made.
    #[cold]
    fn fetch_pair(&self, number: u32, generation: u32) -> Option<NonNull<u8>> {
        let locked = self.lock();
        let iova = record::ARENA_IOVA + (u64::from(number) << BLOCK_BITS);
        let (fd, offset, len) = self.attachment().window(iova).ok()?;
        // SAFETY: `window` gives the descriptor to its caller.
        let fd = unsafe { Fd::from_raw(fd) };
        if len != record::ARENA_LEN {
            return None;
        }
        let mapping = Mapping::new(fd.raw(), offset, len, true).ok()?;
        let base = self.pairs.keep(number, generation, mapping);
        drop(locked);
        base
    }

    /// Offset of an address in the arena or in a pair arena that this process has mapped, and the local key for it.
    #[inline]
    pub(crate) fn locate(&self, address: NonNull<u8>, len: u64) -> Option<(u64, Lkey)> {
        if let Some(offset) = self.arena().offset_of(address.as_ptr(), len) {
            // Relaxed: set before the function was shared.
            return Some((offset, Lkey(self.header().lkey.load(Ordering::Relaxed))));
        }
        let mappings = self.pairs.mappings.lock();
        mappings.iter().find_map(|(&number, mapping)| {
            let start = mapping.base().as_ptr().addr();
            let within = address.as_ptr().addr().checked_sub(start)? as u64;
            if within.checked_add(len)? > record::ARENA_LEN {
                return None;
            }
            let lkey = self.pair(number)?.lkey.load(Ordering::Relaxed);
            Some(((u64::from(number) << BLOCK_BITS) + within, Lkey(lkey)))
        })
    }
}

impl Locked<'_> {
    /// Allocates in the pair arena toward `peer`, which is made when there is none.
    pub(crate) fn alloc_ring(&mut self, peer: FunctionId, len: u64) -> Option<u64> {
        let number = self.pair_of(peer).or_else(|| self.make_pair(peer))?;
        let function = self.function;
        let pair = function.pair(number)?;
        let base = self.pair_base_locked(number)?;
        let within = pair.heap.alloc(&Memory(base), len)?;
        pair.rings
            .store(pair.rings.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        Some((u64::from(number) << BLOCK_BITS) + within)
    }

    /// Gives a ring of [`Locked::alloc_ring`] back.
    pub(crate) fn free_ring(&mut self, offset: u64, len: u64) {
        let function = self.function;
        let number = u32::try_from(offset >> BLOCK_BITS).unwrap_or(0);
        let (Some(pair), Some(base)) = (function.pair(number), self.pair_base_locked(number))
        else {
            return;
        };
        // Relaxed throughout this file's shared records: the family's lock orders them.
        let rings = pair.rings.load(Ordering::Relaxed);
        if rings == 0 {
            return;
        }
        pair.heap
            .free(&Memory(base), offset & (record::ARENA_LEN - 1), len);
        pair.rings.store(rings - 1, Ordering::Relaxed);
        if rings == 1 {
            let clock = &function.header().pair_clock;
            let now = clock.load(Ordering::Relaxed).wrapping_add(1);
            clock.store(now, Ordering::Relaxed);
            pair.idle_since.store(now, Ordering::Relaxed);
            self.empty(number, pair);
        }
    }

    /// Gives the pages of an idle pair arena back to the system, but for the first ones.
    fn empty(&mut self, number: u32, pair: &Pair) {
        let used = usize::try_from(pair.heap.high_water()).unwrap_or(0);
        let surplus = used.next_multiple_of(4096).saturating_sub(KEEP_BYTES);
        if surplus > 0 {
            let mappings = self.function.pairs.mappings.lock();
            if let Some(mapping) = mappings.get(&number) {
                match mapping.punch(KEEP_BYTES, surplus) {
                    Ok(()) | Err(_) => {} // Kept pages cost memory, nothing else.
                }
            }
        }
        pair.heap.init(FIRST, record::ARENA_LEN);
    }

    /// As `Function::pair_base`, for a thread that holds the lock already.
    fn pair_base_locked(&mut self, number: u32) -> Option<NonNull<u8>> {
        let function = self.function;
        let wanted = function.pair(number)?.generation.load(Ordering::Relaxed);
        let place = function.pairs.place(number)?;
        if wanted & 1 == 1 && place.generation.load(Ordering::Relaxed) == wanted {
            return function.pair_base(number);
        }
        let iova = record::ARENA_IOVA + (u64::from(number) << BLOCK_BITS);
        let (fd, offset, len) = function.attachment().window(iova).ok()?;
        // SAFETY: `window` gives the descriptor to its caller.
        let fd = unsafe { Fd::from_raw(fd) };
        if len != record::ARENA_LEN {
            return None;
        }
        let mapping = Mapping::new(fd.raw(), offset, len, true).ok()?;
        function.pairs.keep(number, wanted, mapping)
    }

    fn pair_of(&mut self, peer: FunctionId) -> Option<u32> {
        (1..record::PAIR_COUNT).find(|&number| {
            self.function.pair(number).is_some_and(|pair| {
                pair.generation.load(Ordering::Relaxed) & 1 == 1
                    && pair.peer_function.load(Ordering::Relaxed) == peer.0
            })
        })
    }

    fn make_pair(&mut self, peer: FunctionId) -> Option<u32> {
        self.drop_idle();
        let function = self.function;
        let number = (1..record::PAIR_COUNT).find(|&number| {
            function
                .pair(number)
                .is_some_and(|pair| pair.generation.load(Ordering::Relaxed) & 1 == 0)
        })?;
        let pair = function.pair(number)?;
        let fd = sys::sealed_memory("sanlab-pair", record::ARENA_LEN).ok()?;
        let mapping = Mapping::new(fd.raw(), 0, record::ARENA_LEN, true).ok()?;
        let iova = record::ARENA_IOVA + (u64::from(number) << BLOCK_BITS);
        let attachment = function.attachment();
        // A window that a killed member left there without listing it is in the way.
        if attachment
            .dma_map(fd.raw(), 0, iova, record::ARENA_LEN, true)
            .is_err()
        {
            attachment.dma_unmap(iova, record::ARENA_LEN).ok()?;
            attachment
                .dma_map(fd.raw(), 0, iova, record::ARENA_LEN, true)
                .ok()?;
        }
        let region = MrReg {
            addr: iova,
            len: record::ARENA_LEN,
            pdn: function.header().pdn.load(Ordering::Relaxed),
            access: Access::LOCAL_WRITE.bits(),
            ..Default::default()
        };
        let Ok([key, _]) = self.admin(AdminOp::MR_REG, region.to_body()) else {
            match attachment.dma_unmap(iova, record::ARENA_LEN) {
                Ok(()) | Err(_) => return None, // The next maker unmaps it.
            }
        };
        pair.peer_function.store(peer.0, Ordering::Relaxed);
        pair.lkey.store(low(key), Ordering::Relaxed);
        pair.rings.store(0, Ordering::Relaxed);
        pair.heap.init(FIRST, record::ARENA_LEN);
        let generation = pair.generation.load(Ordering::Relaxed).wrapping_add(1);
        function.pairs.keep(number, generation, mapping)?;
        pair.generation.store(generation, Ordering::Relaxed);
        Some(number)
    }

    /// Keeps few pair arenas without rings.
    fn drop_idle(&mut self) {
        let function = self.function;
        let idle = |number: &u32| {
            function.pair(*number).is_some_and(|pair| {
                pair.generation.load(Ordering::Relaxed) & 1 == 1
                    && pair.rings.load(Ordering::Relaxed) == 0
            })
        };
        let numbers: Vec<u32> = (1..record::PAIR_COUNT).filter(idle).collect();
        if numbers.len() < KEEP_IDLE {
            return;
        }
        let now = function.header().pair_clock.load(Ordering::Relaxed);
        let age = |number: &u32| {
            function.pair(*number).map_or(0, |pair| {
                now.wrapping_sub(pair.idle_since.load(Ordering::Relaxed))
            })
        };
        let Some(oldest) = numbers.into_iter().max_by_key(age) else {
            return;
        };
        let Some(pair) = function.pair(oldest) else {
            return;
        };
        // The new generation first: from now on nobody takes a mapping of it for current.
        let lkey = pair.lkey.load(Ordering::Relaxed);
        let next = pair.generation.load(Ordering::Relaxed).wrapping_add(1);
        pair.generation.store(next, Ordering::Relaxed);
        match self.admin_on(AdminOp::MR_DEREG, lkey) {
            Ok(_) | Err(_) => {} // A dead device has no regions left.
        }
        let iova = record::ARENA_IOVA + (u64::from(oldest) << BLOCK_BITS);
        match function.attachment().dma_unmap(iova, record::ARENA_LEN) {
            Ok(()) | Err(_) => {} // As above; and the next maker unmaps what is in its way.
        }
        function.pairs.forget(oldest);
    }
}
