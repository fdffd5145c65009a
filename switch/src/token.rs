//! The right to work on one direction of a connection, shared by threads and by the processes of a fork family.
//!
//! Place: `session` takes the send token and the receive token of a connection record; the word lies in memory that every process
//! of the family maps.
//! Invariants: one word says everything: holder, whether somebody sleeps, whether the holder was asked to look again. A holder
//! never waits, so a token is held for microseconds. A holder that was killed is noticed by its waiters, and the next holder is
//! told ([`Taken::Abandoned`]) so that it repairs what the dead one left half done.
//! Hot: [`TokenWord::take`], [`TokenWord::release`] without contention: one read-modify-write each.
//! Edges: `token`. Source: ours; the requirement is R-201. Leaves out: fairness.
//!
//! ```text
//!   bit 63 CONTENDED   bit 62 LOOK_AGAIN   bits 61..0 id of the holding process, 0 = free
//! ```

use core::fmt;

use ring_proto::sync::{AtomicU32, AtomicU64, Ordering};
use rustix::thread::futex;
use rustix::time::Timespec;

/// Somebody sleeps until the release.
const CONTENDED: u64 = 1 << 63;
/// Somebody left work for the holder instead of waiting for it.
const LOOK_AGAIN: u64 = 1 << 62;
/// The holder's id.
const HOLDER: u64 = LOOK_AGAIN - 1;

/// Tries, each giving the processor away, before a waiter sleeps: the holder mostly is a thread of this very core.
const YIELDS: u32 = 32;
/// Longest sleep before a waiter looks whether the holder still lives.
const RECHECK_NS: i64 = 2_000_000;
/// Sleeps after which a waiter gives up on a holder that lives but stands still (stopped, or gone by `longjmp`).
const PATIENCE: u32 = 1000;

/// Who may hold a token.
pub trait Family {
    /// Id of this process, below 2^62 and never 0.
    fn self_id(&self) -> u64;
    /// Whether the process of that id lives.
    fn is_alive(&self, id: u64) -> bool;
}

/// How a token came into our hands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taken {
    /// Its last holder gave it back.
    Clean,
    /// Its last holder died with it: repair first.
    Abandoned,
}

/// The holder lives and does not let go; the caller answers "not now".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Busy;

/// A token in shared memory.
#[repr(C)]
pub struct TokenWord {
    word: AtomicU64,
    /// Counts contended releases: what waiters sleep on.
    turn: AtomicU32,
    reserved: AtomicU32,
}

const _: () = assert!(size_of::<TokenWord>() == 16);

impl fmt::Debug for TokenWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Relaxed: for people only.
        write!(f, "TokenWord({:#x})", self.word.load(Ordering::Relaxed))
    }
}

impl Default for TokenWord {
    fn default() -> Self {
        Self {
            word: AtomicU64::new(0),
            turn: AtomicU32::new(0),
            reserved: AtomicU32::new(0),
        }
    }
}

impl TokenWord {
    /// Takes the token, waiting for its holder if need be.
    ///
    /// # Errors
    /// [`Busy`] when a living holder keeps it for seconds.
    #[inline]
    pub fn take(&self, family: &impl Family) -> Result<Taken, Busy> {
        let me = family.self_id() & HOLDER;
        // EDGE token (acquire): what the last holder stored. Released in `release`. Relaxed on failure: nothing is read then.
        match self
            .word
            .compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed)
        {
            Ok(_) => Ok(Taken::Clean),
            Err(_) => self.take_contended(family, me),
        }
    }

    /// Takes the token if it is free or its holder is dead.
    #[inline]
    pub fn try_take(&self, family: &impl Family) -> Option<Taken> {
        let me = family.self_id() & HOLDER;
        // EDGE token (acquire): as in `take`.
        match self
            .word
            .compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed)
        {
            Ok(_) => Some(Taken::Clean),
            Err(word) => self.inherit(family, me, word).then_some(Taken::Abandoned),
        }
    }

    /// Takes the token, or asks its holder to look again before it lets go. `None`: asked; the holder's [`Self::release`] says so.
    pub fn take_or_ask(&self, family: &impl Family) -> Option<Taken> {
        let me = family.self_id() & HOLDER;
        loop {
            if let Some(taken) = self.try_take(family) {
                return Some(taken);
            }
            // Relaxed: compared below.
            let word = self.word.load(Ordering::Relaxed);
            if word & HOLDER == 0 {
                continue;
            }
            if word & LOOK_AGAIN != 0 && word & HOLDER != me {
                return None;
            }
            // Release: the holder that sees the bit sees what it was asked for. EDGE token (release): acquired in `release`.
            if self
                .word
                .compare_exchange_weak(
                    word,
                    word | LOOK_AGAIN,
                    Ordering::Release,
                    Ordering::Relaxed,
                )
                .is_ok()
            {
                return None;
            }
        }
    }

    /// Gives the token back. True: somebody asked the holder to look again; it should take the token once more and do so.
    #[inline]
    #[must_use]
    pub fn release(&self) -> bool {
        // EDGE token (release): everything stored under the token. Acquired in `take`, `try_take`, `inherit`. (acquire): the request
        // of `take_or_ask`.
        let word = self.word.swap(0, Ordering::AcqRel);
        if word & CONTENDED != 0 {
            // Release: a sleeper that sees the new turn finds the word free or taken by somebody else.
            self.turn.fetch_add(1, Ordering::Release);
            // A failed wake is repaired by the sleepers' own timeout.
            let _woken = futex::wake(&self.turn, futex::Flags::empty(), 1);
        }
        word & LOOK_AGAIN != 0
    }

    /// Whether its holder died: somebody should take it and repair.
    #[inline]
    #[must_use]
    pub fn is_abandoned(&self, family: &impl Family) -> bool {
        // Relaxed: a hint; taking it looks again.
        let holder = self.word.load(Ordering::Relaxed) & HOLDER;
        holder != 0 && holder != family.self_id() & HOLDER && !family.is_alive(holder)
    }

    /// Takes the token over from a dead holder.
    fn inherit(&self, family: &impl Family, me: u64, word: u64) -> bool {
        let holder = word & HOLDER;
        if holder == 0 || holder == me || family.is_alive(holder) {
            return false;
        }
        // EDGE token (acquire): the dead holder's stores as far as they came; it released nothing, so the taker repairs. Sleepers stay
        // accounted for by CONTENDED.
        self.word
            .compare_exchange(
                word,
                me | (word & CONTENDED),
                Ordering::Acquire,
                Ordering::Relaxed,
            )
            .is_ok()
    }

    #[cold]
    fn take_contended(&self, family: &impl Family, me: u64) -> Result<Taken, Busy> {
        let mut mark = 0;
        let mut rounds = 0;
        loop {
            // Acquire: a turn seen here is one whose release was seen too.
            let turn = self.turn.load(Ordering::Acquire);
            // Relaxed: compared below.
            let word = self.word.load(Ordering::Relaxed);
            if word & HOLDER == 0 {
                // EDGE token (acquire): as in `take`. `mark` keeps other sleepers accounted for.
                if self
                    .word
                    .compare_exchange(word, me | mark, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
                {
                    return Ok(Taken::Clean);
                }
                continue;
            }
            if self.inherit(family, me, word) {
                return Ok(Taken::Abandoned);
            }
            rounds += 1;
            if rounds <= YIELDS {
                rustix::thread::sched_yield();
                continue;
            }
            if rounds > YIELDS + PATIENCE {
                return Err(Busy);
            }
            // Relaxed: only says that a release must wake.
            if word & CONTENDED == 0
                && self
                    .word
                    .compare_exchange(word, word | CONTENDED, Ordering::Relaxed, Ordering::Relaxed)
                    .is_err()
            {
                continue;
            }
            mark = CONTENDED;
            let limit = Timespec {
                tv_sec: 0,
                tv_nsec: RECHECK_NS,
            };
            // Woken, timed out, interrupted or already over: looked at again in every case.
            let _ended = futex::wait(&self.turn, futex::Flags::empty(), turn, Some(&limit));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64 as Plain, Ordering as Order};

    use super::{Family, Taken, TokenWord};

    /// Family in which process 7 is dead.
    struct Me(u64);

    impl Family for Me {
        fn self_id(&self) -> u64 {
            self.0
        }
        fn is_alive(&self, id: u64) -> bool {
            id != 7
        }
    }

    #[test]
    fn free_token_is_taken_once() {
        let token = TokenWord::default();
        assert_eq!(token.take(&Me(1)), Ok(Taken::Clean));
        assert_eq!(token.try_take(&Me(2)), None);
        assert!(!token.release());
        assert_eq!(token.try_take(&Me(2)), Some(Taken::Clean));
        assert!(!token.release());
        assert!(!token.is_abandoned(&Me(1)));
    }

    #[test]
    fn token_of_a_dead_holder_is_taken_over_and_said_to_be_abandoned() {
        let token = TokenWord::default();
        assert_eq!(token.take(&Me(7)), Ok(Taken::Clean));
        assert!(token.is_abandoned(&Me(1)));
        assert_eq!(token.take(&Me(1)), Ok(Taken::Abandoned));
        assert!(!token.release());
        assert_eq!(token.take(&Me(7)), Ok(Taken::Clean));
        assert_eq!(token.try_take(&Me(1)), Some(Taken::Abandoned));
    }

    #[test]
    fn holder_that_was_asked_hears_it_at_release() {
        let token = TokenWord::default();
        assert_eq!(token.take(&Me(1)), Ok(Taken::Clean));
        assert_eq!(token.take_or_ask(&Me(2)), None);
        assert_eq!(token.take_or_ask(&Me(3)), None);
        assert!(token.release());
        assert_eq!(token.take_or_ask(&Me(2)), Some(Taken::Clean));
        assert!(!token.release());
    }

    #[test]
    fn threads_exclude_each_other() {
        const THREADS: u64 = 4;
        const ROUNDS: u64 = 20_000;
        let shared = Arc::new((TokenWord::default(), Plain::new(0)));
        let threads: Vec<_> = (1..=THREADS)
            .map(|id| {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || {
                    for _ in 0..ROUNDS {
                        assert_eq!(shared.0.take(&Me(100 + id)), Ok(Taken::Clean));
                        let before = shared.1.load(Order::Relaxed);
                        shared.1.store(before + 1, Order::Relaxed);
                        let _asked = shared.0.release();
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(shared.1.load(Order::Relaxed), THREADS * ROUNDS);
    }
}
