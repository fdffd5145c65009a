//! Credit arithmetic: who may send what, and when credits must be told.
//!
//! Place: `send` asks before it posts, `recv` checks what the peer claims.
//! Invariants: both sides count totals since the start, never differences, so that a repeated or merged report says the same
//! . Counters are free-running `u32`, compared by wrapping distance. The last two credits are never spent on payload and the
//! last one only on a grant or an ABORT, so two sides that are both full can still tell each other of free buffers.
//! Hot: everything here. Source; thresholds as in SDP. Leaves out: posting.

/// What a message needs of the peer's free receives, itself included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Spend {
    /// Payload.
    Data,
    /// End of stream.
    Fin,
    /// Grant or ABORT.
    Control,
}

impl Spend {
    /// Credits that must be there.
    #[must_use]
    pub(super) const fn needs(self) -> u32 {
        match self {
            Self::Data => 3,
            Self::Fin => 2,
            Self::Control => 1,
        }
    }
}

/// Free receives of the peer, as far as we know: `granted` of its reports less what we sent.
#[inline]
#[must_use]
pub(super) const fn available(granted: u32, sent: u32) -> u32 {
    let distance = granted.wrapping_sub(sent);
    if distance > u32::MAX / 2 { 0 } else { distance }
}

/// The peer's new total, or `None` when it cannot be true: a total never shrinks, and never runs more than the peer's pool ahead of
/// the messages that left us.
#[inline]
#[must_use]
pub(super) const fn accept_grant(known: u32, claimed: u32, sent: u32, pool: u32) -> Option<u32> {
    let grown = claimed.wrapping_sub(known);
    if grown > u32::MAX / 2 || available(claimed, sent) > pool {
        None
    } else {
        Some(claimed)
    }
}

/// Whether the peer sent more messages than we ever granted.
#[inline]
#[must_use]
pub(super) const fn is_overrun(reported: u32, received: u32) -> bool {
    // Distance of a peer within its credit: reported - received in 0..=pool.
    reported.wrapping_sub(received) > u32::MAX / 2
}

/// Whether the free buffers that the peer does not know of are worth a message of their own: more than half the pool.
#[inline]
#[must_use]
pub(super) const fn owes_report(posted: u32, reported: u32, pool: u32) -> bool {
    posted.wrapping_sub(reported) > pool / 2 && posted.wrapping_sub(reported) <= u32::MAX / 2
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Spend, accept_grant, available, is_overrun, owes_report};

    const fn may_send(granted: u32, sent: u32, spend: Spend) -> bool {
        available(granted, sent) >= spend.needs()
    }

    proptest! {
        /// A pair of honest counters is never refused, from any start, and the reserve always holds.
        #[test]
        fn honest_counters_pass_from_any_start(start in any::<u32>(), steps in proptest::collection::vec(0_u8..4, 0..300)) {
            const POOL: u32 = 16;
            let (mut posted, mut taken, mut reported, mut granted, mut sent) =
                (start.wrapping_add(POOL), start, start.wrapping_add(POOL), start.wrapping_add(POOL), start);
            for step in steps {
                match step {
                    0 if may_send(granted, sent, Spend::Data) => sent = sent.wrapping_add(1),
                    1 if taken != sent => {
                        taken = taken.wrapping_add(1);
                        prop_assert!(!is_overrun(reported, taken));
                        posted = posted.wrapping_add(1);
                    }
                    2 => reported = posted,
                    3 => {
                        let accepted = accept_grant(granted, reported, sent, POOL);
                        prop_assert_eq!(accepted, Some(reported));
                        granted = reported;
                    }
                    _ => {}
                }
                prop_assert!(available(granted, sent) <= POOL);
                prop_assert!(posted.wrapping_sub(sent) >= 2, "payload ate the reserve");
            }
        }

        #[test]
        fn lies_are_refused(start in any::<u32>(), by in 1_u32..1_000_000) {
            let (known, sent) = (start.wrapping_add(16), start);
            prop_assert_eq!(accept_grant(known, known.wrapping_sub(by), sent, 16), None);
            prop_assert_eq!(accept_grant(known, known.wrapping_add(by), sent, 16), None);
            prop_assert!(is_overrun(start, start.wrapping_add(by)));
        }
    }

    #[test]
    fn reserve_is_three_two_one() {
        for (credits, data, fin, control) in [
            (0, false, false, false),
            (1, false, false, true),
            (2, false, true, true),
            (3, true, true, true),
        ] {
            assert_eq!(may_send(credits, 0, Spend::Data), data);
            assert_eq!(may_send(credits, 0, Spend::Fin), fin);
            assert_eq!(may_send(credits, 0, Spend::Control), control);
        }
        assert!(!owes_report(8, 0, 16));
        assert!(owes_report(9, 0, 16));
    }
}
