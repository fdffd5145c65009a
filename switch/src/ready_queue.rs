//! The accept queue of a SAN listener, in memory that all processes sharing the listener reach.
//!
//! Place: the service step of any member files accepted connections, any member's `accept` takes them (R-91, prefork servers). The
//! record lies in the arena of the listener's function; the doorbell, an eventfd, is inherited over `fork`.
//! Invariants: producer - consumer <= [`CAPACITY`]; an entry is written before the producer passes it; counts and the doorbell
//! agree with the entries whenever the lock is free, and a lock whose owner died is taken over by the next, who counts anew.
//!
//! ```text
//! consumer                              producer
//!    |  GONE  READY  NEGOTIATING  READY  |          in the order of wsp_accept
//! ```
//! Source: design of the accept queue ours; R-87 (limit), R-93, R-96.
#![expect(
    unsafe_code,
    reason = "forms atomics over the provider's shared memory"
)]

use core::net::{Ipv4Addr, SocketAddrV4};
use core::ptr::NonNull;

use driver::spi::{SharedRegion, SpSocket};
use ring_proto::sync::{AtomicU32, AtomicU64, Ordering};

use crate::event::EventFd;
use crate::provider_table::ProviderRef;
use crate::token::{Busy, Taken, TokenWord};

/// Entries of a queue.
pub const CAPACITY: u32 = 4096;
/// Longest backlog: leaves room for entries that were taken and not yet passed by the consumer.
pub const MAX_BACKLOG: u32 = CAPACITY - 64;

// Header: the token that is the lock, then half words that are written under it only.
const TOKEN_LEN: usize = size_of::<TokenWord>();
const LIMIT: usize = TOKEN_LEN;
const DEFERRED: usize = LIMIT + 4;
const PRODUCER: usize = LIMIT + 8;
const CONSUMER: usize = LIMIT + 12;
const READY: usize = LIMIT + 16;
const NEGOTIATING: usize = LIMIT + 20;
const CLOSED: usize = LIMIT + 24;
const HEADER_LEN: usize = 64;
const _: () = assert!(CLOSED + 4 <= HEADER_LEN && align_of::<TokenWord>() <= 8);

// An entry.
const STATE: usize = 0;
const PROVIDER: usize = 4;
const OWNER: usize = 8;
const SOCKET: usize = 16;
const RECORD: usize = 24;
const PEER: usize = 32;
const LOCAL: usize = 40;
const ENTRY_LEN: usize = 48;

/// Bytes of the record.
const RECORD_LEN: usize = HEADER_LEN + CAPACITY as usize * ENTRY_LEN;

/// State of an entry that nobody needs any more.
const STATE_GONE: u32 = 0;
/// State of an entry whose session still negotiates.
const STATE_NEGOTIATING: u32 = 1;
/// State of an entry that `accept` may take.
const STATE_READY: u32 = 2;

/// A connection in the queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Waiting {
    /// Place in the queue.
    pub position: u32,
    /// Number of its provider.
    pub provider: u32,
    /// The accepted socket.
    pub socket: SpSocket,
    /// Offset of its session record.
    pub record: u64,
    /// Address of the peer.
    pub peer: SocketAddrV4,
    /// Address the peer dialled.
    pub local: SocketAddrV4,
}

/// View of a queue in this process.
#[derive(Debug)]
pub struct ReadyQueue {
    base: NonNull<u8>,
    region: SharedRegion,
    home: ProviderRef,
    home_socket: SpSocket,
    doorbell: EventFd,
}

// SAFETY: the base points at shared memory that is reached through atomics only, which any thread may use.
unsafe impl Send for ReadyQueue {}
// SAFETY: as for Send.
unsafe impl Sync for ReadyQueue {}

impl ReadyQueue {
    /// Makes an empty queue in the memory of `home_socket`. `None` when that is exhausted.
    #[must_use]
    pub fn new(home: &ProviderRef, home_socket: SpSocket, doorbell: EventFd) -> Option<Self> {
        let region = home.memory.alloc(home_socket, RECORD_LEN as u64)?;
        let Some(base) = home
            .memory
            .at(home_socket, region.offset)
            .filter(|base| region.len >= RECORD_LEN as u64 && base.cast::<u64>().is_aligned())
        else {
            home.memory.free(home_socket, region);
            return None;
        };
        let queue = Self {
            base,
            region,
            home: home.clone(),
            home_socket,
            doorbell,
        };
        for offset in (0..HEADER_LEN).step_by(8) {
            // Relaxed: nobody else knows the region yet. Re-used memory keeps what was there.
            queue.word(offset).store(0, Ordering::Relaxed);
        }
        Some(queue)
    }

    /// The queue that another process made. `None` when there is none at that place.
    #[must_use]
    pub fn inherited(
        home: &ProviderRef,
        home_socket: SpSocket,
        region: SharedRegion,
        doorbell: EventFd,
    ) -> Option<Self> {
        let base = home
            .memory
            .at(home_socket, region.offset)
            .filter(|base| region.len >= RECORD_LEN as u64 && base.cast::<u64>().is_aligned())?;
        Some(Self {
            base,
            region,
            home: home.clone(),
            home_socket,
            doorbell,
        })
    }

    /// Where it lies.
    #[must_use]
    pub fn region(&self) -> SharedRegion {
        self.region
    }

    /// Readable while a connection is ready.
    #[must_use]
    pub fn doorbell(&self) -> &EventFd {
        &self.doorbell
    }

    /// Connections that `accept` could take, as a hint without the lock.
    #[must_use]
    pub fn ready_hint(&self) -> u32 {
        // Relaxed: the lock decides.
        self.half(READY).load(Ordering::Relaxed)
    }

    /// Whether requests were left with a provider because the queue was full.
    #[must_use]
    pub fn is_deferred(&self) -> bool {
        // Relaxed: a hint; setting and clearing happen under the lock.
        self.half(DEFERRED).load(Ordering::Relaxed) != 0
    }

    /// Whether some member shut the listener down.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        // Relaxed: a flag that is set once.
        self.half(CLOSED).load(Ordering::Relaxed) != 0
    }

    /// Takes the lock. A holder that died is succeeded, and what it left is counted anew.
    ///
    /// The lock covers a few stores, with signals blocked; only a holder that was stopped in the middle keeps others asleep.
    pub fn lock(&self) -> Locked<'_> {
        loop {
            match self.token().take(&*self.home) {
                Ok(Taken::Clean) => return Locked { queue: self },
                Ok(Taken::Abandoned) => {
                    let locked = Locked { queue: self };
                    locked.recount();
                    return locked;
                }
                Err(Busy) => {}
            }
        }
    }

    /// Gives the record back; for the last holder only.
    pub fn free(&self) {
        self.home.memory.free(self.home_socket, self.region);
    }

    fn token(&self) -> &TokenWord {
        // SAFETY: the record starts with the token, 8-aligned (`new`) like the type, all atomics; valid as in `half`.
        unsafe { self.base.cast::<TokenWord>().as_ref() }
    }

    fn half(&self, offset: usize) -> &AtomicU32 {
        debug_assert!(offset.is_multiple_of(4) && offset + 4 <= RECORD_LEN);
        // SAFETY: callers pass offsets below RECORD_LEN, and the region is at least that long (`new`).
        let pointer = unsafe { self.base.as_ptr().add(offset) };
        // SAFETY: aligned, for the base is 8-aligned (`new`) and the offset a multiple of 4; valid while the listener's socket is
        // open, which outlives the queue; shared through atomics only.
        unsafe { AtomicU32::from_ptr(pointer.cast()) }
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        debug_assert!(offset.is_multiple_of(8) && offset + 8 <= RECORD_LEN);
        // SAFETY: as in `half`.
        let pointer = unsafe { self.base.as_ptr().add(offset) };
        // SAFETY: as in `half`, with multiples of 8.
        unsafe { AtomicU64::from_ptr(pointer.cast()) }
    }

    fn entry(position: u32) -> usize {
        HEADER_LEN + (position % CAPACITY) as usize * ENTRY_LEN
    }
}

/// The queue under its lock. All accesses are relaxed: the lock orders them.
#[derive(Debug)]
pub struct Locked<'a> {
    queue: &'a ReadyQueue,
}

impl Locked<'_> {
    /// Sets the longest queue; surplus entries stay until they are taken (R-79).
    pub fn set_limit(&self, limit: u32) {
        self.set(LIMIT, limit.clamp(1, MAX_BACKLOG));
    }

    /// Whether another connection may be accepted from a provider (R-87).
    #[must_use]
    pub fn has_room(&self) -> bool {
        let occupied = self.get(READY).saturating_add(self.get(NEGOTIATING));
        let used = self.get(PRODUCER).wrapping_sub(self.get(CONSUMER));
        self.get(CLOSED) == 0 && occupied < self.get(LIMIT) && used < CAPACITY
    }

    /// Notes whether requests were left with a provider.
    pub fn set_deferred(&self, deferred: bool) {
        self.set(DEFERRED, u32::from(deferred));
    }

    /// Marks the listener as shut down.
    pub fn set_closed(&self) {
        self.set(CLOSED, 1);
    }

    /// Files an accepted socket whose session this process negotiates. `None`: no entry is free.
    #[must_use]
    pub fn reserve(
        &self,
        provider: u32,
        socket: SpSocket,
        record: u64,
        peer: SocketAddrV4,
        local: SocketAddrV4,
    ) -> Option<u32> {
        let position = self.get(PRODUCER);
        if position.wrapping_sub(self.get(CONSUMER)) >= CAPACITY || self.get(CLOSED) != 0 {
            return None;
        }
        let entry = ReadyQueue::entry(position);
        self.set(entry + STATE, STATE_NEGOTIATING);
        self.set(entry + PROVIDER, provider);
        self.set_word(entry + OWNER, self.queue.home.self_id());
        self.set_word(entry + SOCKET, socket.0);
        self.set_word(entry + RECORD, record);
        self.set_word(entry + PEER, pack(peer));
        self.set_word(entry + LOCAL, pack(local));
        // A holder that dies here leaves an entry that is either counted (by `recount`) or not in the queue.
        self.set(PRODUCER, position.wrapping_add(1));
        self.set(NEGOTIATING, self.get(NEGOTIATING) + 1);
        Some(position)
    }

    /// Ends the negotiation of an entry: it becomes ready, or goes. Returns whether the queue was empty before.
    pub fn settle(&self, position: u32, is_ready: bool) -> bool {
        let state = ReadyQueue::entry(position) + STATE;
        if !self.is_inside(position) || self.get(state) != STATE_NEGOTIATING {
            return false;
        }
        self.set(NEGOTIATING, self.get(NEGOTIATING).saturating_sub(1));
        if !is_ready {
            self.set(state, STATE_GONE);
            self.trim();
            return false;
        }
        self.set(state, STATE_READY);
        let ready = self.get(READY);
        self.set(READY, ready.saturating_add(1));
        // Each time, not only for the first: the kernel wakes one exclusive waiter per signal, and the one it woke may be leaving.
        self.queue.doorbell.signal();
        ready == 0
    }

    /// The oldest ready connection.
    #[must_use]
    pub fn first_ready(&self) -> Option<Waiting> {
        self.positions()
            .find(|&p| self.state(p) == STATE_READY)
            .map(|p| self.read(p))
    }

    /// Removes a ready connection.
    pub fn remove(&self, position: u32) {
        if !self.is_inside(position) || self.state(position) != STATE_READY {
            return;
        }
        self.set(ReadyQueue::entry(position) + STATE, STATE_GONE);
        let ready = self.get(READY).saturating_sub(1);
        self.set(READY, ready);
        if ready == 0 {
            self.queue.doorbell.drain();
        }
        self.trim();
    }

    /// Gives the entries that this process negotiates to whoever comes next, and the ready ones that it was woken for.
    pub fn disown(&self) {
        if self.get(READY) > 0 {
            self.queue.doorbell.signal();
        }
        let me = self.queue.home.self_id();
        for position in self.positions() {
            let owner = ReadyQueue::entry(position) + OWNER;
            if self.state(position) == STATE_NEGOTIATING && self.get_word(owner) == me {
                self.set_word(owner, 0);
            }
        }
    }

    /// Takes over the negotiations of members that died or gave them up.
    #[must_use]
    pub fn adopt(&self) -> Vec<Waiting> {
        let home = &self.queue.home;
        let me = home.self_id();
        let mut adopted = Vec::new();
        for position in self.positions() {
            let owner = ReadyQueue::entry(position) + OWNER;
            let id = self.get_word(owner);
            let is_orphan = id == 0 || (id != me && !home.is_alive(id));
            if self.state(position) == STATE_NEGOTIATING && is_orphan {
                self.set_word(owner, me);
                adopted.push(self.read(position));
            }
        }
        adopted
    }

    /// Whether members other than this process negotiate.
    #[must_use]
    pub fn has_foreign(&self) -> bool {
        let me = self.queue.home.self_id();
        self.positions().any(|p| {
            self.state(p) == STATE_NEGOTIATING && self.get_word(ReadyQueue::entry(p) + OWNER) != me
        })
    }

    /// Empties the queue: every connection that was not taken.
    #[must_use]
    pub fn drain(&self) -> Vec<Waiting> {
        let mut left = Vec::new();
        for position in self.positions() {
            if self.state(position) != STATE_GONE {
                left.push(self.read(position));
                self.set(ReadyQueue::entry(position) + STATE, STATE_GONE);
            }
        }
        self.set(READY, 0);
        self.set(NEGOTIATING, 0);
        self.queue.doorbell.drain();
        self.trim();
        left
    }

    fn recount(&self) {
        let count = |state| self.positions().filter(|&p| self.state(p) == state).count();
        let ready = u32::try_from(count(STATE_READY)).unwrap_or(CAPACITY);
        let negotiating = u32::try_from(count(STATE_NEGOTIATING)).unwrap_or(CAPACITY);
        self.set(READY, ready);
        self.set(NEGOTIATING, negotiating);
        self.queue.doorbell.drain();
        if ready > 0 {
            self.queue.doorbell.signal();
        }
        self.trim();
    }

    /// Moves the consumer past entries that are gone.
    fn trim(&self) {
        let mut consumer = self.get(CONSUMER);
        while consumer != self.get(PRODUCER) && self.state(consumer) == STATE_GONE {
            consumer = consumer.wrapping_add(1);
        }
        self.set(CONSUMER, consumer);
    }

    fn positions(&self) -> impl Iterator<Item = u32> + use<> {
        let consumer = self.get(CONSUMER);
        let used = self.get(PRODUCER).wrapping_sub(consumer).min(CAPACITY);
        (0..used).map(move |i| consumer.wrapping_add(i))
    }

    fn is_inside(&self, position: u32) -> bool {
        let consumer = self.get(CONSUMER);
        position.wrapping_sub(consumer) < self.get(PRODUCER).wrapping_sub(consumer)
    }

    fn state(&self, position: u32) -> u32 {
        self.get(ReadyQueue::entry(position) + STATE)
    }

    fn read(&self, position: u32) -> Waiting {
        let entry = ReadyQueue::entry(position);
        Waiting {
            position,
            provider: self.get(entry + PROVIDER),
            socket: SpSocket(self.get_word(entry + SOCKET)),
            record: self.get_word(entry + RECORD),
            peer: unpack(self.get_word(entry + PEER)),
            local: unpack(self.get_word(entry + LOCAL)),
        }
    }

    fn get(&self, offset: usize) -> u32 {
        self.queue.half(offset).load(Ordering::Relaxed)
    }

    fn set(&self, offset: usize, value: u32) {
        self.queue.half(offset).store(value, Ordering::Relaxed);
    }

    fn get_word(&self, offset: usize) -> u64 {
        self.queue.word(offset).load(Ordering::Relaxed)
    }

    fn set_word(&self, offset: usize, value: u64) {
        self.queue.word(offset).store(value, Ordering::Relaxed);
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // Asked to look again: nobody asks, all wait.
        let _asked = self.queue.token().release();
    }
}

fn pack(address: SocketAddrV4) -> u64 {
    u64::from(address.ip().to_bits()) << 16 | u64::from(address.port())
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "takes back what `pack` shifted together"
)]
fn unpack(word: u64) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::from_bits((word >> 16) as u32), word as u16)
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
    use std::sync::Arc;

    use super::*;
    use crate::mock::{Log, MockFabric, MockSan, MockSharing};
    use crate::provider_table::Provider;
    use crate::sys;

    fn family() -> (ReadyQueue, Arc<MockSharing>) {
        let log = Log::new();
        let sharing = MockSharing::new(&log, 10);
        let fabric = MockFabric::new();
        let san = MockSan::with_sharing("san", &log, &fabric, &[], Some(Arc::clone(&sharing)));
        let provider = Provider::start(0, Arc::new(san), Box::new(|| {})).unwrap();
        let home = provider.socket().unwrap();
        let queue = ReadyQueue::new(&provider, home, EventFd::new().unwrap()).unwrap();
        queue.lock().set_limit(3);
        (queue, sharing)
    }

    fn put(queue: &ReadyQueue, number: u64) -> u32 {
        let name = SocketAddrV4::new(Ipv4Addr::new(127, 77, 0, 1), 80);
        let locked = queue.lock();
        locked.reserve(0, SpSocket(number), 0, name, name).unwrap()
    }

    fn first(queue: &ReadyQueue) -> Option<u64> {
        queue.lock().first_ready().map(|w| w.socket.0)
    }

    #[test]
    fn connections_come_out_in_the_order_of_their_accept_once_they_are_ready() {
        let (queue, _) = family();
        let positions = [put(&queue, 1), put(&queue, 2), put(&queue, 3)];
        assert!(!queue.lock().has_room());
        assert_eq!(first(&queue), None);
        assert!(queue.lock().settle(positions[2], true));
        assert!(queue.doorbell().is_signalled());
        assert!(!queue.lock().settle(positions[0], true));
        assert_eq!(first(&queue), Some(1));
        queue.lock().remove(positions[0]);
        assert_eq!(first(&queue), Some(3));
        queue.lock().remove(positions[2]);
        assert!(!queue.doorbell().is_signalled());
        assert_eq!(queue.ready_hint(), 0);
        assert!(!queue.lock().settle(positions[1], false));
        assert!(queue.lock().has_room());
        // A position that was passed is nobody's any more.
        assert!(!queue.lock().settle(positions[1], true));
        assert_eq!(first(&queue), None);
    }

    #[test]
    fn the_queue_works_past_the_end_of_its_record_and_of_its_positions() {
        let (queue, _) = family();
        for start in [CAPACITY - 1, u32::MAX] {
            // Relaxed: nobody else uses the queue.
            queue.half(PRODUCER).store(start, Ordering::Relaxed);
            queue.half(CONSUMER).store(start, Ordering::Relaxed);
            for number in 1..=3 {
                let position = put(&queue, number);
                queue.lock().settle(position, true);
            }
            for number in 1..=3 {
                let waiting = queue.lock().first_ready().unwrap();
                assert_eq!(waiting.socket, SpSocket(number));
                queue.lock().remove(waiting.position);
            }
            assert_eq!(first(&queue), None);
        }
    }

    #[test]
    fn a_holder_that_died_is_succeeded_and_its_counts_are_repaired() {
        let (queue, sharing) = family();
        let ready = put(&queue, 1);
        put(&queue, 2);
        let locked = queue.lock();
        // It dies after the entry's state, before the counts and the doorbell.
        let state = ReadyQueue::entry(ready) + STATE;
        locked.set(state, STATE_READY);
        core::mem::forget(locked);
        sharing.kill(10);
        sharing.become_process(11);
        assert_eq!(first(&queue), Some(1));
        assert_eq!(queue.ready_hint(), 1);
        assert!(queue.doorbell().is_signalled());
        // What it negotiated is taken over, once.
        let adopted = queue.lock().adopt();
        assert_eq!(adopted.len(), 1);
        assert_eq!(adopted[0].socket, SpSocket(2));
        assert!(queue.lock().adopt().is_empty());
    }

    #[test]
    fn negotiations_that_their_process_gives_up_go_to_another() {
        let (queue, sharing) = family();
        put(&queue, 1);
        sharing.become_process(11);
        assert!(queue.lock().has_foreign());
        assert!(queue.lock().adopt().is_empty(), "their owner lives");
        sharing.become_process(10);
        queue.lock().disown();
        sharing.become_process(11);
        assert_eq!(queue.lock().adopt().len(), 1);
        assert!(!queue.lock().has_foreign());
    }

    /// A set that tells each signal once, as an exclusive waiter of the kernel is woken by each.
    fn set_of(queue: &ReadyQueue) -> OwnedFd {
        // SAFETY: takes no pointer.
        let set = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        // SAFETY: a new descriptor that nobody else owns.
        let set = unsafe { OwnedFd::from_raw_fd(set) };
        let events = (libc::EPOLLIN | libc::EPOLLET).cast_unsigned();
        let doorbell = queue.doorbell().fd();
        sys::epoll_control(set.as_raw_fd(), libc::EPOLL_CTL_ADD, doorbell, events, 0).unwrap();
        set
    }

    fn wakes(set: &OwnedFd) -> bool {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        sys::epoll_look(set.as_raw_fd(), &raw mut event, 1) == Ok(1)
    }

    #[test]
    fn regression_each_ready_connection_wakes_one_more_exclusive_waiter() {
        let (queue, _) = family();
        let set = set_of(&queue);
        for number in 1..=3 {
            let position = put(&queue, number);
            assert!(!wakes(&set));
            queue.lock().settle(position, true);
            assert!(wakes(&set), "connection {number}");
        }
    }

    #[test]
    fn regression_who_leaves_wakes_another_for_what_is_ready() {
        let (queue, _) = family();
        let set = set_of(&queue);
        queue.lock().disown();
        assert!(!wakes(&set), "nothing is ready");
        let position = put(&queue, 1);
        queue.lock().settle(position, true);
        assert!(wakes(&set) && !wakes(&set));
        queue.lock().disown();
        assert!(wakes(&set));
    }

    #[test]
    fn a_closed_queue_takes_nothing_more() {
        let (queue, _) = family();
        let ready = put(&queue, 1);
        queue.lock().settle(ready, true);
        put(&queue, 2);
        let locked = queue.lock();
        locked.set_closed();
        let left: Vec<_> = locked.drain().iter().map(|w| w.socket.0).collect();
        assert_eq!(left, [1, 2]);
        let name = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1);
        assert_eq!(locked.reserve(0, SpSocket(3), 0, name, name), None);
        assert!(!locked.has_room());
        drop(locked);
        assert!(queue.is_closed() && !queue.doorbell().is_signalled());
    }
}
