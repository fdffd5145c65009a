//! One end of a SAN connection: progress, waiting, and what the rest of the session shares.
//!
//! Place: [`crate::Switch`] makes it when a provider has connected a companion; the preload library and the service thread call it.
//! Invariants: the send token and the receive token are taken in the order receive, send; a holder of the send token only ever
//! *tries* the receive token. No token is held while anybody waits.
//! Hot: [`Conn::progress`] when nothing came: one poll of the completion queue, one of the event queue, a few loads.
//! Edges: `local-wake`, `service-watch`. Source. Leaves out: starting, sending, receiving, closing: the sibling files.

use core::ptr::NonNull;

use driver::spi::{Link, MemoryHandle, SpSocket, Waiter};
use driver::wsa::WsaError;
use ring_proto::sync::{AtomicI32, AtomicU32, AtomicU64, Ordering, fence};

use super::announce::Tidings;
use super::buffers::Region;
use super::record::{ConnRecord, RECV_SLOTS, Shared, flag};
use super::ring::RingHead;
use super::start::Numbers;
use crate::outcome::Errno;
use crate::provider_table::{Provider, ProviderRef};
use crate::token::{Family, Taken};

/// Most payload of one message.
pub(super) const PAYLOAD_MAX: u32 = 16 * 1024;
/// Bytes of a receive buffer before the header, so that the payload starts on a cache line.
pub(super) const HEADER_PAD: u32 = 32;
/// Threads that can wait for one connection in one process; as many as a function has vectors.
pub(super) const WAITERS: usize = 64;

/// How soon the service thread looks again at a connection that the program itself drives.
const SERVICE_TICK_NS: u64 = 2_000_000;

/// Where a connection stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// HELLO and HELLO_ACK are under way.
    Negotiating,
    /// Bytes may flow, or have flowed.
    Established,
    /// The negotiation or the connection failed.
    Failed(Errno),
    /// Closed by the program and finished.
    Closed,
}

/// One end of a SAN connection.
pub struct Conn {
    pub(super) provider: ProviderRef,
    pub(super) sp: SpSocket,
    pub(super) record: Shared<ConnRecord>,
    pub(super) head: Shared<RingHead>,
    /// The send ring with its header page.
    pub(super) ring: Region,
    /// The receive buffers.
    pub(super) buffers: Region,
    pub(super) numbers: Numbers,
    pub(super) record_offset: u64,
    /// Threads and sets of this process that sleep on this connection, packed; 0: none.
    pub(super) waiters: [AtomicU64; WAITERS],
    /// 1: the service thread of this process watches the connection.
    pub(super) watched: AtomicU32,
    /// Calls of the program, as far as the service thread cares.
    pub(super) touches: AtomicU32,
    /// What the service thread saw of them last.
    pub(super) touches_seen: AtomicU32,
    /// Until then the service thread leaves the connection to the program's own calls, on CLOCK_MONOTONIC.
    pub(super) rests_until_ns: AtomicU64,
    /// Descriptor whose owner is signalled; -1: none.
    pub(super) owned_fd: AtomicI32,
    /// Process that closed the companion, whose memory goes with its value; 0: none has. A child of a fork inherits the value, and
    /// must not free a second time.
    pub(super) finished_by: AtomicU64,
}

impl core::fmt::Debug for Conn {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Conn")
            .field("sp", &self.sp)
            .field("numbers", &self.numbers)
            .field("record", self.record.get())
            .finish_non_exhaustive()
    }
}

impl Family for Provider {
    #[inline]
    fn self_id(&self) -> u64 {
        Self::self_id(self)
    }

    fn is_alive(&self, id: u64) -> bool {
        Self::is_alive(self, id)
    }
}

impl Conn {
    /// Where the record lies, for [`Self::attach`] in another process of the family.
    #[must_use]
    pub const fn record_offset(&self) -> u64 {
        self.record_offset
    }

    /// Whether this end accepted the connection.
    #[must_use]
    pub fn is_accepted(&self) -> bool {
        // Relaxed: written before the record was shared.
        self.record.get().role.load(Ordering::Relaxed) == super::start::Role::Passive as u32
    }

    /// The companion.
    #[must_use]
    pub const fn sp(&self) -> SpSocket {
        self.sp
    }

    /// The companion's provider.
    #[must_use]
    pub const fn provider(&self) -> &ProviderRef {
        &self.provider
    }

    /// Where the connection stands.
    #[must_use]
    pub fn phase(&self) -> Phase {
        let flags = self.record.get().flags();
        if flags & flag::CLOSED != 0 {
            Phase::Closed
        } else if flags & flag::RESET != 0 {
            // Relaxed: a hint; `take_error` takes it.
            let error = self.record.get().error.load(Ordering::Relaxed);
            Phase::Failed(if error == 0 { libc::ECONNRESET } else { error })
        } else if flags & flag::ESTABLISHED != 0 {
            Phase::Established
        } else {
            Phase::Negotiating
        }
    }

    /// Takes the sticky error (`SO_ERROR`).
    pub fn take_error(&self) -> Option<Errno> {
        // Relaxed: the error alone is what travels.
        match self.record.get().error.swap(0, Ordering::Relaxed) {
            0 => None,
            error => Some(error),
        }
    }

    /// Puts back an error that was taken and not told.
    pub fn restore_error(&self, error: Errno) {
        // Relaxed: as in `take_error`; a newer error stays.
        let _newer = self.record.get().error.compare_exchange(
            0,
            error,
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
    }

    /// Stream bytes accepted from the program and taken by it.
    #[must_use]
    pub fn counters(&self) -> (u64, u64) {
        let r = self.record.get();
        // Relaxed: counters.
        (
            r.accepted.load(Ordering::Relaxed),
            r.rcv_next.load(Ordering::Relaxed),
        )
    }

    /// Sets the bytes that may be accepted ahead of the peer (`SO_SNDBUF`); never more than the ring holds.
    pub fn set_send_limit(&self, limit: u32) {
        // Relaxed: a limit.
        self.record
            .get()
            .send_limit
            .store(u64::from(limit.max(1)), Ordering::Relaxed);
    }

    /// Does what can be done now: takes completions, handles messages, sends what was accepted, returns credits, drives the end of
    /// the connection. Cheap when nothing came.
    ///
    /// A thread calls it between arming and sleeping; after it returned, whatever was there at its call has been handled.
    pub fn progress(&self) {
        let r = self.record.get();
        if r.has(flag::CLOSED) {
            return;
        }
        self.poll();
        let mut due = self.recv_is_due() || r.recv_token.is_abandoned(&*self.provider);
        if !due {
            self.provider.waiting.progress();
            due = self.needs_settling();
        }
        if due {
            self.with_recv(|conn| {
                conn.parse(false);
                conn.settle();
            });
        }
        if self.send_is_due() || r.send_token.is_abandoned(&*self.provider) {
            self.with_send(Self::pump);
        }
        if r.flags() & (flag::CLOSING | flag::ESTABLISHED) != flag::ESTABLISHED {
            self.clockwork();
        }
    }

    /// Whether something must go on while the program is in no socket call.
    #[must_use]
    pub fn wants_service(&self) -> bool {
        let r = self.record.get();
        let flags = r.flags();
        if flags & flag::CLOSED != 0 {
            return false;
        }
        if flags & flag::CLOSING != 0 {
            return true;
        }
        if flags & (flag::RESET | flag::GONE) != 0 {
            return self.due().is_some();
        }
        // What was posted is the NIC's: only what still waits for credits or room needs somebody.
        flags & flag::ESTABLISHED == 0
            || self.is_owned()
            || self.is_impatient()
            || (flags & flag::BOTH_SHUT == flag::BOTH_SHUT && !self.is_over(flags))
            || self.has_unposted(flags)
            || self.due().is_some()
            || self.needs_settling()
            || r.send_token.is_abandoned(&*self.provider)
            || r.recv_token.is_abandoned(&*self.provider)
    }

    /// The program is about to leave its call: true when the service thread must be woken for what the call leaves undone.
    ///
    /// A connection that the service watches needs no wake-up: it is looked at after `SERVICE_TICK_NS`, and armed when the program has
    /// stopped calling by then.
    #[must_use]
    pub fn leave(&self) -> bool {
        self.touch();
        if !self.wants_service() {
            return false;
        }
        // EDGE service-watch (release): what is left undone, then the look at the watch; `is_watched` clears it, then looks again.
        fence(Ordering::SeqCst);
        // Relaxed: nothing is published by the word; the fences order.
        self.watched.load(Ordering::Relaxed) == 0 && self.watched.swap(1, Ordering::Relaxed) == 0
    }

    /// Notes that the program drives the connection itself.
    #[inline]
    pub fn touch(&self) {
        // Relaxed, and lossy between threads: any change will do.
        let touches = self.touches.load(Ordering::Relaxed);
        self.touches
            .store(touches.wrapping_add(1), Ordering::Relaxed);
    }

    /// For the service thread: whether it has to watch the connection, after taking note of that.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        // Relaxed: the service thread stores what it loads here, but for `leave`'s 1, which the second look respects.
        if self.wants_service() {
            self.watched.store(1, Ordering::Relaxed);
            return true;
        }
        if self.watched.swap(0, Ordering::Relaxed) == 0 {
            return false;
        }
        // EDGE service-watch (acquire): pairs with the fence in `leave`.
        fence(Ordering::SeqCst);
        self.wants_service() && {
            self.watched.store(1, Ordering::Relaxed);
            true
        }
    }

    /// For the service thread: when it has to look again, while the program drives the connection by its own calls; `None`: the
    /// program has stopped, the connection must be armed.
    #[must_use]
    pub fn rests_until(&self, now_ns: u64) -> Option<u64> {
        // Relaxed: a time and a number that only the service thread stores.
        let until = self.rests_until_ns.load(Ordering::Relaxed);
        if now_ns < until {
            return Some(until);
        }
        let touches = self.touches.load(Ordering::Relaxed);
        if self.touches_seen.swap(touches, Ordering::Relaxed) == touches {
            return None;
        }
        let until = now_ns.saturating_add(SERVICE_TICK_NS);
        self.rests_until_ns.store(until, Ordering::Relaxed);
        Some(until)
    }

    /// Whether the service thread leaves the connection alone now.
    #[must_use]
    pub fn is_resting(&self, now_ns: u64) -> bool {
        // Relaxed: a time.
        now_ns < self.rests_until_ns.load(Ordering::Relaxed)
    }

    /// When [`Self::progress`] must be called at the latest, on CLOCK_MONOTONIC; `u64::MAX`: any time.
    #[must_use]
    pub fn deadline_ns(&self) -> u64 {
        let r = self.record.get();
        let waits = r.flags() & (flag::CLOSING | flag::ESTABLISHED | flag::CLOSED);
        // Relaxed: a time.
        match r.deadline_ns.load(Ordering::Relaxed) {
            _ if waits & flag::CLOSED != 0 => u64::MAX,
            _ if waits == flag::ESTABLISHED => self.held_until_ns().min(self.patience_ends_ns()),
            0 => u64::MAX,
            deadline => deadline,
        }
    }

    /// Makes `waiter`'s vector fire when something comes. Call [`Self::progress`] once more before sleeping.
    ///
    /// # Errors
    /// The provider's code.
    pub fn arm(&self, waiter: Waiter) -> Result<(), WsaError> {
        let word = pack(waiter);
        // Relaxed: a number compared for being equal.
        if !self
            .waiters
            .iter()
            .any(|w| w.load(Ordering::Relaxed) == word)
        {
            // EDGE local-wake (release): whoever changes the state afterwards finds the waiter. Acquired in `wake_local`. With all
            // places taken a local change is seen at the next completion only.
            let _placed = self.waiters.iter().any(|w| {
                w.compare_exchange(0, word, Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok()
            });
        }
        fence(Ordering::SeqCst);
        self.provider.waiting.arm(self.sp, waiter)
    }

    /// Whether `waiter` is armed still, so that arming it again would do nothing. As [`driver::spi::Waiting::is_armed`]: its vector was
    /// drained before.
    #[must_use]
    pub fn is_armed(&self, waiter: Waiter) -> bool {
        let word = pack(waiter);
        // Relaxed: a local wake that is missed here has signalled the vector.
        let is_known = self
            .waiters
            .iter()
            .any(|w| w.load(Ordering::Relaxed) == word);
        is_known && self.provider.waiting.is_armed(self.sp, waiter)
    }

    /// Does [`Self::progress`] if it seems to have something to do. Dead members of the family are not looked for.
    #[inline]
    pub fn progress_if_due(&self) {
        let is_steady =
            self.record.get().flags() & (flag::CLOSING | flag::ESTABLISHED) == flag::ESTABLISHED;
        let is_quiet = is_steady
            && !self.provider.waiting.has_news(self.sp)
            && !self.recv_is_due()
            && !self.send_is_due();
        if !is_quiet {
            self.progress();
        }
    }

    /// Wakes threads of this process that sleep on this connection, after a change that no completion tells of.
    pub(super) fn wake_local(&self) {
        // The sleeper stores its waiter, fences, and looks at the state; we stored the state, fence, and look for waiters.
        fence(Ordering::SeqCst);
        for waiter in &self.waiters {
            // EDGE local-wake (acquire): pairs with `arm`.
            let word = waiter.swap(0, Ordering::AcqRel);
            if word != 0 {
                self.provider.waiting.wake(unpack(word));
            }
        }
    }

    /// Forgets the parent's sleepers, in a forked child.
    pub fn after_fork_in_child(&self) {
        for waiter in &self.waiters {
            // Relaxed: the child has one thread.
            waiter.store(0, Ordering::Relaxed);
        }
        // Relaxed: as above. The parent's service thread watches for the parent.
        self.watched.store(0, Ordering::Relaxed);
    }

    /// Takes completions off the queue; they show in the slots.
    #[inline]
    pub(super) fn poll(&self) {
        let r = self.record.get();
        let (position, _) = r.recv_position();
        // Relaxed: any slot serves, the queue is polled for all.
        let buffer = r.order[slot(position)].load(Ordering::Relaxed);
        let overlapped = &r.recv_ov[slot(buffer)];
        // The slot tells more than the answer.
        let _state = self
            .provider
            .sp
            .wsp_get_overlapped_result(self.sp, overlapped, false);
    }

    /// Whether the link or an operation calls for [`Self::settle`].
    pub(super) fn needs_settling(&self) -> bool {
        let r = self.record.get();
        if r.has(flag::GONE | flag::CLOSED) {
            return false;
        }
        if self.failure().is_some() {
            return !r.has(flag::RESET);
        }
        match self.provider.waiting.link(self.sp) {
            Link::Up | Link::Down => false,
            Link::Orphaned | Link::Ended(_) => true,
        }
    }

    /// First failure of an operation.
    pub(super) fn failure(&self) -> Option<WsaError> {
        // Relaxed: a code.
        match self.record.get().failure.load(Ordering::Relaxed) {
            0 => None,
            code => Some(WsaError::from_code(code).unwrap_or(WsaError::ConnAborted)),
        }
    }

    /// Takes note of a failed operation; the first stays.
    pub(super) fn note_failure(&self, code: u32) {
        // Relaxed: a code.
        let _first = self.record.get().failure.compare_exchange(
            0,
            code,
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
    }

    /// Ends the connection as kernel TCP does on a reset: no more data, `error` once, then nothing.
    pub(super) fn reset(&self, error: Errno, extra: u32) {
        let r = self.record.get();
        // Relaxed: released by the flag below.
        let _first = r
            .error
            .compare_exchange(0, error, Ordering::Relaxed, Ordering::Relaxed);
        if r.set(flag::RESET | extra) & flag::RESET == 0 {
            self.edges();
            self.announce(Tidings::Error);
            self.wake_local();
        }
    }

    /// Counts an edge in both directions.
    pub(super) fn edges(&self) {
        let r = self.record.get();
        // Relaxed: counters that are compared for being equal.
        r.in_edge.fetch_add(1, Ordering::Relaxed);
        r.out_edge.fetch_add(1, Ordering::Relaxed);
    }

    /// Runs `work` under the receive token, then lets the sending side do what follows from it. False: the token could not be had.
    pub(super) fn with_recv(&self, mut work: impl FnMut(&Self)) -> bool {
        let token = &self.record.get().recv_token;
        loop {
            match token.take(&*self.provider) {
                Ok(Taken::Clean) => {}
                Ok(Taken::Abandoned) => self.repair_recv(),
                Err(_) => return false,
            }
            work(self);
            if !token.release() {
                break;
            }
        }
        self.kick_send();
        true
    }

    /// Runs `work` under the send token. False: the token could not be had.
    pub(super) fn with_send(&self, mut work: impl FnMut(&Self)) -> bool {
        let token = &self.record.get().send_token;
        loop {
            match token.take(&*self.provider) {
                Ok(Taken::Clean) => {}
                Ok(Taken::Abandoned) => self.repair_send(),
                Err(_) => return false,
            }
            work(self);
            if !token.release() {
                return true;
            }
        }
    }

    /// Sends what is due, or leaves it to the thread that is sending right now.
    pub(super) fn kick_send(&self) {
        if self.due().is_none() {
            return;
        }
        let token = &self.record.get().send_token;
        let Some(taken) = token.take_or_ask(&*self.provider) else {
            return;
        };
        if taken == Taken::Abandoned {
            self.repair_send();
        }
        self.pump();
        if token.release() {
            self.with_send(Self::pump);
        }
    }

    /// Closes the companion. The memory goes when this value does.
    pub(super) fn finish(&self) {
        let r = self.record.get();
        if r.set(flag::CLOSED | flag::GONE) & flag::CLOSED != 0 {
            return;
        }
        let sp = &self.provider.sp;
        // first what no operation uses, then the rest with the companion. Errors say "in use" or "gone".
        let _withdrawn = sp.wsp_deregister_rdma_memory(self.sp, &r.own_ring.load());
        let _released = sp.wsp_deregister_memory(self.sp, self.numbers.ring_handle);
        // infallible in practice; a dead provider has nothing left to close.
        let _closed = sp.wsp_close_socket(self.sp);
        // Relaxed: read by `drop`, which has the value alone.
        self.finished_by
            .store(self.provider.self_id(), Ordering::Relaxed);
        self.wake_local();
    }
}

/// Place of a counter in an array of [`RECV_SLOTS`] entries.
#[inline]
pub(super) const fn slot(counter: u32) -> usize {
    (counter % RECV_SLOTS) as usize
}

/// A waiter in one word that is never 0: descriptor plus one, function, vector.
fn pack(waiter: Waiter) -> u64 {
    let fd = u64::from(u32::try_from(waiter.fd).unwrap_or(0));
    (fd + 1) << 24 | u64::from(waiter.function & 0xffff) << 8 | u64::from(waiter.vector & 0xff)
}

/// The waiter of a word that [`pack`] made.
fn unpack(word: u64) -> Waiter {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "masked, or a descriptor number"
    )]
    let waiter = Waiter {
        function: (word >> 8 & 0xffff) as u32,
        vector: (word & 0xff) as u32,
        fd: ((word >> 24) - 1) as i32,
    };
    waiter
}

/// CLOCK_MONOTONIC.
pub(super) fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(nanoseconds)
}

/// A buffer at `address`.
pub(super) const fn sp_buffer(
    address: NonNull<u8>,
    len: u32,
    handle: Option<MemoryHandle>,
) -> driver::spi::SpBuffer {
    driver::spi::SpBuffer {
        address,
        len,
        handle,
    }
}

#[cfg(test)]
impl Conn {
    /// Writes a lie into the head that a peer may read.
    pub(super) fn forge_accepted(&self, lie: u64) {
        // Relaxed: a test.
        self.head.get().accepted.store(lie, Ordering::Relaxed);
    }
}
