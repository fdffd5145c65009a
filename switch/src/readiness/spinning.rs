//! How long a waiting thread yields the processor and looks again before it sleeps.
//!
//! Place: every wait of the program calls [`spin`] before it arms anything, and [`woke`] when its sleep is over. Invariants: who has
//! nothing to do sleeps after at most [`LONGEST_NS`] of looking, whatever it has learned; beside programs that compute it sleeps at once.
//! What is learned is the thread's own: threads differ in what they wait for. Nothing here is a destructor of a thread.
//! Source: ours; the halt polling of KVM (`halt_poll_ns`) learns in the same way. The NIC does the same in its engine.

use core::cell::Cell;

use crate::outcome::now_ns;
use crate::sys;

/// How long it looks at least: a party on the same core answers within that.
const SHORTEST_NS: u64 = 20_000;
/// How long at most, and what sleep counts as short: the wake-ups of the NIC and of the peer on processors that slept.
const LONGEST_NS: u64 = 160_000;
/// A yield that takes longer went to a program that computes: there is a crowd on this processor. A program that serves a batch of
/// requests takes some hundred microseconds.
const CROWDED_NS: u64 = 1_000_000;
/// How long a thread that met a crowd sleeps without spinning first; doubled each time it meets it again.
const CROWDED_FOR_NS: u64 = 20_000_000;
/// Doublings at most: 640 ms.
const CROWDED_LEVELS: u32 = 5;

/// What a thread knows of its waits. Times in nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Learned {
    /// How long it looks.
    length: u64,
    /// When it gave up looking, until that wait is over; 0: it does not wait.
    gave_up: u64,
    /// Until then it does not spin: somebody else wants its processor.
    crowded_until: u64,
    /// How often it met a crowd lately.
    crowded_level: u32,
}

thread_local! {
    /// A cell without destructor.
    static LEARNED: Cell<Learned> = const { Cell::new(Learned::new()) };
}

impl Learned {
    const fn new() -> Self {
        Self {
            length: SHORTEST_NS,
            gave_up: 0,
            crowded_until: 0,
            crowded_level: 0,
        }
    }

    /// A yield is over; true when it met a crowd.
    fn yielded(&mut self, before: u64, now: u64) -> bool {
        let is_crowded = now.saturating_sub(before) > CROWDED_NS;
        if is_crowded {
            self.crowded_until = now.saturating_add(CROWDED_FOR_NS << self.crowded_level);
            self.crowded_level = (self.crowded_level + 1).min(CROWDED_LEVELS);
        }
        is_crowded
    }

    /// A whole look without an answer, and without a crowd.
    fn give_up(&mut self, now: u64) {
        self.crowded_level = self.crowded_level.saturating_sub(1);
        self.gave_up = now;
    }

    /// The sleep is over: after a short one a longer look would have spared it.
    fn woke(&mut self, now: u64) {
        let gave_up = core::mem::take(&mut self.gave_up);
        if gave_up == 0 {
            return;
        }
        self.length = if now.saturating_sub(gave_up) < LONGEST_NS {
            (self.length * 2).min(LONGEST_NS)
        } else {
            SHORTEST_NS
        };
    }
}

/// Yields the processor and asks until there is an answer, or it is time to sleep.
///
/// Who yields is run again when the others on its processor had their turns: parties to a conversation take microseconds, a program
/// that computes takes milliseconds. A sleeper is woken past such a program, so beside one this thread sleeps at once for a while.
pub fn spin<T>(mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let mut learned = LEARNED.get();
    let mut now = now_ns();
    if learned.gave_up != 0 {
        // Of a wait that never came back.
        learned.gave_up = 0;
        LEARNED.set(learned);
    }
    if now < learned.crowded_until {
        return None;
    }
    let end = now.saturating_add(learned.length);
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        let before = now_ns();
        if before >= end {
            learned.give_up(before);
            LEARNED.set(learned);
            return None;
        }
        sys::yield_now();
        now = now_ns();
        if learned.yielded(before, now) {
            LEARNED.set(learned);
            return ask();
        }
    }
}

/// A wait is over that began with [`spin`].
pub fn woke() {
    let mut learned = LEARNED.get();
    if learned.gave_up != 0 {
        learned.woke(now_ns());
        LEARNED.set(learned);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_sleeps_lengthen_the_look_and_a_long_one_ends_that() {
        let mut learned = Learned::new();
        let mut lengths = Vec::new();
        for slept in [30_000, 50_000, 100_000, 100_000, 2_000_000, 30_000] {
            learned.give_up(5_000);
            learned.woke(5_000 + slept);
            lengths.push(learned.length / 1000);
        }
        assert_eq!(lengths, [40, 80, 160, 160, 20, 40]);
    }

    #[test]
    fn a_wait_that_did_not_sleep_teaches_nothing() {
        let mut learned = Learned::new();
        learned.woke(10_000);
        assert_eq!(learned.length, SHORTEST_NS);
    }

    #[test]
    fn beside_a_crowd_the_thread_sleeps_at_once_and_ever_longer() {
        let mut learned = Learned::new();
        let mut now = 0;
        for level in [0, 1, 2, 3, 4, 5, 5] {
            assert!(learned.yielded(now, now + CROWDED_NS + 1));
            now += CROWDED_NS + 1;
            assert_eq!(learned.crowded_until, now + (CROWDED_FOR_NS << level));
        }
        assert!(!learned.yielded(now, now + CROWDED_NS));
    }

    #[test]
    fn an_answer_ends_the_spin_and_silence_ends_it_too() {
        let mut asked = 0;
        let answer = spin(|| {
            asked += 1;
            (asked == 3).then_some(7)
        });
        // Beside other tests a yield may meet a crowd.
        assert!(answer == Some(7) || LEARNED.get().crowded_until > 0);
        assert_eq!(spin(|| None::<()>), None);
    }
}
