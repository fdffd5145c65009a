//! A bound on log lines that a peer can cause.
//!
//! Place: asked before every line that somebody else's bytes trigger. Invariants: at most `BURST` lines a second and owner; what was
//! held back is counted and told with the next line. Takes the time as an argument, so tests need no clock.
//! Source: ours. Leaves out: levels and filters, which belong to the subscriber.

/// Lines that one owner may write in a second.
const BURST: u32 = 5;
const SECOND_NS: u64 = 1_000_000_000;

/// Counts lines of one owner.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LogBudget {
    second: u64,
    written: u32,
    held_back: u64,
}

impl LogBudget {
    /// Says whether a line may be written at `now_ns`, and how many were held back since the last one.
    pub(crate) fn spend(&mut self, now_ns: u64) -> Option<u64> {
        let second = now_ns / SECOND_NS;
        if second != self.second {
            self.second = second;
            self.written = 0;
        }
        if self.written == BURST {
            self.held_back = self.held_back.saturating_add(1);
            return None;
        }
        self.written += 1;
        Some(std::mem::take(&mut self.held_back))
    }
}

/// Nanoseconds of the monotonic clock since the first call in this process.
pub(crate) fn now_ns() -> u64 {
    use std::sync::OnceLock;
    use std::time::Instant;
    static START: OnceLock<Instant> = OnceLock::new();
    u64::try_from(START.get_or_init(Instant::now).elapsed().as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_writes_five_lines_and_tells_what_it_held_back() {
        let mut budget = LogBudget::default();
        let written = (0..1000).filter(|_| budget.spend(7).is_some()).count();
        assert_eq!(written, 5);
        assert_eq!(budget.spend(SECOND_NS + 1), Some(995));
        assert_eq!(budget.spend(SECOND_NS + 2), Some(0));
    }
}
