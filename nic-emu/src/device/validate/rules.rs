//! The rules of the validation layer: what each is called, why it exists, what a driver should do.
//!
//! Place: [`super`] reports by [`Rule`]; docs/validation.md carries the same table, held against [`Rule::ALL`] by a test.
//! Invariants: an id never changes its meaning. Source: ours; the idea of validation layers is that of graphics drivers.

use std::fmt;
use std::str::FromStr;

macro_rules! rules {
    ($($(#[$doc:meta])* $name:ident $id:literal $explanation:literal $remedy:literal)*) => {
        /// A rule that a driver can break although a NIC might let it pass.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[non_exhaustive]
        pub enum Rule {
            $($(#[$doc])* $name,)*
        }

        impl Rule {
            /// Every rule.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// Its name in findings and on the command line.
            #[must_use]
            pub const fn id(self) -> &'static str {
                match self {
                    $(Self::$name => $id,)*
                }
            }

            /// What is wrong, and what comes of it.
            #[must_use]
            pub const fn explanation(self) -> &'static str {
                match self {
                    $(Self::$name => $explanation,)*
                }
            }

            /// What the driver should do.
            #[must_use]
            pub const fn remedy(self) -> &'static str {
                match self {
                    $(Self::$name => $remedy,)*
                }
            }
        }
    };
}

rules! {
    /// A producer went back.
    DbBackwards "V-DB-BACKWARDS"
        "The producer of a doorbell went back behind one that was rung before. Hardware may take it for nearly a whole ring of new WQEs."
        "Keep one free-running 32-bit producer per queue, add to it only, and let one thread at a time ring."
    /// A producer lies more than one depth ahead.
    DbPastQueue "V-DB-PAST-QUEUE"
        "The producer of a doorbell lies more than one depth ahead of what the NIC has taken: WQEs would lie on top of others."
        "Post at most depth minus what is outstanding, and never write the index in the ring in place of the free-running position."
    /// WQEs were posted over ones that are not reported complete.
    WqOverrun "V-WQ-OVERRUN"
        "A WQE was posted into a place whose former WQE has not been reported complete. The NIC had fetched it already, by luck."
        "Count a place as free only when a CQE of the queue carries a wqe_counter behind it."
    /// A whole send queue without a signaled WQE.
    SqNoSignal "V-SQ-NO-SIGNAL"
        "The send queue is full and none of its WQEs is signaled: no CQE will ever tell that their places are free."
        "Set SIGNALED on at least one WQE in each depth of the send queue, such as every half of it."
    /// A reserved bit is not zero.
    WqeReserved "V-WQE-RESERVED"
        "A reserved field or flag bit of a WQE is not zero. A NIC that ignores it today may give it a meaning tomorrow."
        "Clear the whole WQE before filling it in."
    /// A WQE changed while the NIC owned it.
    WqeRewritten "V-WQE-REWRITTEN"
        "A WQE was changed between its doorbell and its completion. Whether the NIC saw the old or the new one is luck."
        "Leave a WQE alone from the doorbell until a CQE carries a wqe_counter behind it; write it in full before ringing."
    /// A consumer that cannot be true.
    CqConsumer "V-CQ-CONSUMER"
        "The consumer of a CQ lies behind an earlier one or beyond what the NIC has written: CQEs are lost, or an overrun goes unseen."
        "Move the consumer by the number of CQEs whose phase was checked, and store it after they were copied."
    /// Two posted WQEs let the NIC write the same bytes.
    BufOverlap "V-BUF-OVERLAP"
        "A posted receive, or the target of a READ or atomic, overlaps one that the NIC still owns: two messages land on the same bytes."
        "Give a buffer back to the NIC only after the CQE of the WQE that named it."
    /// A key was used after its region was deregistered.
    KeyStale "V-KEY-STALE"
        "A WQE names a key of the past: its region was deregistered, or its memory window deallocated or bound anew. Hardware whose translation cache still has it reads or writes freed memory."
        "Deregister a region only when no WQE that names it can be posted any more, and tell peers that hold its rkey before."
    /// A key was used after its invalidation.
    KeyInvalidated "V-KEY-INVALIDATED"
        "A WQE names a region or memory window that was invalidated, or a window that was never bound. Hardware whose translation cache still has it moves the bytes."
        "Use a window from the completion of its binding until it is invalidated by you or your peer, then ask its owner for the key of the next binding."
    /// A region was deregistered under a posted WQE.
    KeyInUse "V-KEY-IN-USE"
        "A region was deregistered or invalidated while a posted receive, READ or atomic still lets the NIC write into it."
        "Flush the QP or wait for the CQEs of what names the region, then deregister or invalidate it."
    /// A limit that is hit at once.
    SrqLimit "V-SRQ-LIMIT"
        "A limit above the depth of the SRQ was armed by doorbell: it is hit at once, whatever is posted, and again at each arming."
        "Arm a limit between 1 and the depth, and arm it again only after receives were posted."
    /// A queue was armed over completions that nobody took.
    ArmNoPoll "V-ARM-NO-POLL"
        "A CQ was armed although it held CQEs, and nobody has taken them since: no interrupt will come for them."
        "After arming, issue a full fence and poll once more; sleep only when that poll finds nothing."
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())
    }
}

/// A text that names no rule.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is no rule; `nic-emu rules` lists them")]
pub struct UnknownRule(pub String);

impl FromStr for Rule {
    type Err = UnknownRule;

    fn from_str(text: &str) -> Result<Self, UnknownRule> {
        Self::ALL
            .iter()
            .copied()
            .find(|rule| rule.id().eq_ignore_ascii_case(text))
            .ok_or_else(|| UnknownRule(text.to_owned()))
    }
}
