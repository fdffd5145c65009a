//! How long an engine without work looks again before it sleeps.
//!
//! Place: the engine thread tells what its rounds found and asks what to do next. Invariants: an engine that has nothing to do sleeps
//! after at most [`LONGEST`] of looking, whatever it has learned; beside programs that compute it sleeps at once.
//! Hot: everything here; nothing but arithmetic. Source: ours; the halt polling of KVM (`halt_poll_ns`) learns in the same way.
//!
//! Two lengths are learned, because two kinds of silence differ: after an interrupt the one that was woken may answer as soon as it runs,
//! which takes a processor that slept some tens of microseconds; after a round that woke nobody the answer comes at once or not soon.

use std::time::{Duration, Instant};

/// How long it looks at least. Measured: under 20 us parties that take turns seldom sleep.
const SHORTEST: Duration = Duration::from_micros(20);
/// How long at most, and what sleep counts as short: two wake-ups of processors that slept.
const LONGEST: Duration = Duration::from_micros(160);
/// A yield that takes longer went to a program that computes: then a parked engine, which is woken past it, answers sooner than one
/// that yields. Programs that serve a batch of requests take some hundred microseconds.
const CROWDED: Duration = Duration::from_micros(1000);
/// How long an engine that met a crowd parks without yielding first; doubled each time it meets it again.
const CROWDED_FOR: Duration = Duration::from_millis(20);
/// Doublings at most: 640 ms.
const CROWDED_LEVELS: u32 = 5;

/// What an engine without work does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Next {
    /// Yield the processor, and look again.
    Yield,
    /// Sleep until it is woken.
    Park,
}

/// What the engine knows of its silences.
#[derive(Debug)]
pub(super) struct Idle {
    /// Since when there is nothing to do.
    since: Option<Instant>,
    /// The last round with work woke somebody.
    has_woken: bool,
    /// How long it looks: after rounds that woke nobody, and somebody.
    lengths: [Duration; 2],
    crowded_until: Instant,
    crowded_level: u32,
}

impl Idle {
    /// Nothing learned.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            since: None,
            has_woken: false,
            lengths: [SHORTEST; 2],
            crowded_until: now,
            crowded_level: 0,
        }
    }

    /// A round did something, and perhaps woke somebody.
    #[inline]
    pub(super) fn worked(&mut self, has_woken: bool) {
        self.since = None;
        self.has_woken = has_woken;
    }

    /// A round found nothing.
    #[inline]
    pub(super) fn next(&mut self, now: Instant) -> Next {
        if now < self.crowded_until {
            return Next::Park;
        }
        let since = *self.since.get_or_insert(now);
        if now.duration_since(since) < self.lengths[usize::from(self.has_woken)] {
            return Next::Yield;
        }
        // A whole wait without a crowd.
        self.crowded_level = self.crowded_level.saturating_sub(1);
        Next::Park
    }

    /// A yield is over.
    #[inline]
    pub(super) fn yielded(&mut self, before: Instant, after: Instant) {
        if after.duration_since(before) > CROWDED {
            self.crowded_until = after + CROWDED_FOR * (1 << self.crowded_level);
            self.crowded_level = (self.crowded_level + 1).min(CROWDED_LEVELS);
        }
    }

    /// A sleep that a kick ended is over: had the engine looked that much longer, nobody would have had to kick.
    pub(super) fn slept(&mut self, before: Instant, after: Instant) {
        self.since = None;
        let length = &mut self.lengths[usize::from(self.has_woken)];
        *length = if after.duration_since(before) < LONGEST {
            (*length * 2).min(LONGEST)
        } else {
            SHORTEST
        };
        self.has_woken = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks until it sleeps; how long that took.
    fn look(idle: &mut Idle, now: &mut Instant) -> Duration {
        let begin = *now;
        while idle.next(*now) == Next::Yield {
            let before = *now;
            *now += Duration::from_micros(1);
            idle.yielded(before, *now);
        }
        *now - begin
    }

    fn sleep(idle: &mut Idle, now: &mut Instant, micros: u64) {
        let before = *now;
        *now += Duration::from_micros(micros);
        idle.slept(before, *now);
    }

    #[test]
    fn short_sleeps_lengthen_the_look_and_a_long_one_ends_that() {
        let mut now = Instant::now();
        let mut idle = Idle::new(now);
        let mut looked = Vec::new();
        for _ in 0..5 {
            idle.worked(false);
            looked.push(look(&mut idle, &mut now).as_micros());
            sleep(&mut idle, &mut now, 50);
        }
        assert_eq!(looked, [20, 40, 80, 160, 160]);
        idle.worked(false);
        look(&mut idle, &mut now);
        sleep(&mut idle, &mut now, 1000);
        assert_eq!(look(&mut idle, &mut now), SHORTEST);
    }

    #[test]
    fn what_follows_a_wake_up_is_learned_apart() {
        let mut now = Instant::now();
        let mut idle = Idle::new(now);
        for _ in 0..8 {
            // Who was woken answers within 60 us; the next question takes its time.
            idle.worked(true);
            look(&mut idle, &mut now);
            sleep(&mut idle, &mut now, 60);
            idle.worked(false);
            assert_eq!(look(&mut idle, &mut now), SHORTEST);
            sleep(&mut idle, &mut now, 5000);
        }
        idle.worked(true);
        assert_eq!(look(&mut idle, &mut now), LONGEST);
    }

    #[test]
    fn beside_a_crowd_it_sleeps_at_once_and_ever_longer() {
        let mut now = Instant::now();
        let mut idle = Idle::new(now);
        for level in [0, 1, 2, 3, 4, 5, 5] {
            assert_eq!(idle.next(now), Next::Yield);
            let before = now;
            now += CROWDED * 2;
            idle.yielded(before, now);
            let quiet = CROWDED_FOR * (1 << level);
            assert_eq!(idle.next(now), Next::Park);
            now += quiet - Duration::from_micros(1);
            assert_eq!(idle.next(now), Next::Park);
            now += Duration::from_micros(1);
            sleep(&mut idle, &mut now, 0);
        }
    }
}
