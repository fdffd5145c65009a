//! Copies of posted WQEs: what each held at its doorbell, and which of them the NIC still owns.
//!
//! Place: [`super::Validator`] keeps one [`Shadow`] per work queue that was used. Invariants: a WQE is copied when its doorbell is believed
//! and belongs to the NIC until a CQE carries a counter behind it; the copies take as many bytes as the client's own ring.
//! No view of client memory is kept here: the ring is handed in for each look.

use std::collections::VecDeque;

use ring_proto::admin::Access;
use ring_proto::index::Depth;
use ring_proto::shared::WqeRing;
use ring_proto::status::Opcode;
use ring_proto::wqe::{MAX_BLOCKS, RqWqe, Sge, SqWqe, WqeFlags};
use zerocopy::{FromBytes, IntoBytes};

use super::finding::DecodedWqe;

/// Words of an SQ WQE before its SGEs.
const HEAD_WORDS: usize = 4;

/// Which queue of a QP.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Side {
    Send,
    Receive,
    /// That of an SRQ.
    Shared,
}

impl Side {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Send => "sq",
            Self::Receive => "rq",
            Self::Shared => "srq",
        }
    }
}

/// A WQE as it was posted.
#[derive(Clone, Debug)]
pub(crate) struct Posted {
    pub(crate) start: u32,
    pub(crate) end: u32,
    pub(crate) wqe: Decoded,
}

/// The same, decoded.
#[derive(Clone, Debug)]
pub(crate) enum Decoded {
    Send {
        head: SqWqe,
        /// What follows the head in the first block.
        rest: [u64; 4],
        sges: Vec<Sge>,
    },
    Receive(RqWqe),
}

impl Decoded {
    /// Its SGEs; none for inline data.
    pub(crate) fn sges(&self) -> &[Sge] {
        match self {
            Self::Send { sges, .. } => sges,
            Self::Receive(wqe) => wqe.sges.get(..usize::from(wqe.count)).unwrap_or(&[]),
        }
    }

    /// Whether the NIC writes into its SGEs.
    pub(crate) fn is_written(&self) -> bool {
        match self {
            Self::Send { head, .. } => matches!(
                Opcode(head.opcode),
                Opcode::RDMA_READ | Opcode::ATOMIC_CMP_AND_SWP | Opcode::ATOMIC_FETCH_AND_ADD
            ),
            Self::Receive(_) => true,
        }
    }

    /// What stands in reserved places, in words.
    pub(crate) fn reserved(&self) -> Option<String> {
        match self {
            Self::Send { head, rest, .. } => {
                let unknown = head.flags & !WqeFlags::all().bits();
                let is_nop = Opcode(head.opcode) == Opcode::NOP;
                if unknown != 0 {
                    Some(format!("flags {:#04x} has {unknown:#04x}", head.flags))
                } else if is_nop && (head.flags != 0 || head.count != 0) {
                    Some(format!(
                        "a NOP with flags {:#04x} and count {}",
                        head.flags, head.count
                    ))
                } else {
                    reserved_of(head, *rest)
                }
            }
            Self::Receive(wqe) => {
                (wqe.reserved != [0; 7]).then(|| format!("bytes 9 to 15 are {:02x?}", wqe.reserved))
            }
        }
    }

    pub(crate) fn words(&self) -> DecodedWqe {
        match self {
            Self::Send { head, sges, .. } => DecodedWqe::send(head, sges),
            Self::Receive(wqe) => DecodedWqe::receive(wqe),
        }
    }

    pub(crate) fn rkey(&self) -> u32 {
        match self {
            Self::Send { head, .. } => head.rkey,
            Self::Receive(_) => 0,
        }
    }

    /// The region that a BIND_MW names.
    pub(crate) fn bound_lkey(&self) -> Option<u32> {
        match self {
            Self::Send { head, rest, .. } if Opcode(head.opcode) == Opcode::BIND_MW => {
                let [a, b, c, d, ..] = rest[1].to_le_bytes();
                Some(u32::from_le_bytes([a, b, c, d]))
            }
            _ => None,
        }
    }

    fn is_signaled(&self) -> bool {
        match self {
            Self::Send { head, .. } => head.flags & WqeFlags::SIGNALED.bits() != 0,
            Self::Receive(_) => true,
        }
    }
}

/// What stands in places that an opcode reserves.
fn reserved_of(head: &SqWqe, rest: [u64; 4]) -> Option<String> {
    let is_plain = head.count == 0 && head.total == 0;
    let sound = match Opcode(head.opcode) {
        Opcode::LOCAL_INV => is_plain && head.remote_addr == 0 && head.rkey == 0 && rest == [0; 4],
        Opcode::BIND_MW => {
            let [.., a, b, c, d] = rest[1].to_le_bytes();
            let access = u32::from_le_bytes([a, b, c, d]);
            is_plain && Access::from_bits(access).is_some() && rest[2..] == [0; 2]
        }
        Opcode::ATOMIC_CMP_AND_SWP => head.imm == 0,
        Opcode::ATOMIC_FETCH_AND_ADD => head.imm == 0 && rest[3] == 0,
        _ => true,
    };
    (!sound).then(|| {
        let opcode = Opcode(head.opcode);
        format!("a field that {opcode} does not have, or a bit of its access, is not zero")
    })
}

/// A change that nobody may make.
#[derive(Clone, Debug)]
pub(crate) struct Rewritten {
    pub(crate) index: u32,
    pub(crate) word: usize,
    pub(crate) was: u64,
    pub(crate) is: u64,
}

/// What the posts since the last look are, as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Room {
    Fine,
    /// More is outstanding than fits.
    Overrun(u32),
    /// All is taken, and nothing will ever tell that it is free.
    NoSignal(u32),
}

/// The copies of one work queue.
#[derive(Debug)]
pub(crate) struct Shadow {
    side: Side,
    depth: Depth,
    blocks: Vec<[u64; 8]>,
    /// Everything before was copied.
    posted: u32,
    /// Everything before was reported complete.
    reported: u32,
    /// End of the latest WQE that a CQE will report.
    signaled: Option<u32>,
    /// WQEs that the NIC owns, oldest first.
    owned: VecDeque<Posted>,
}

impl Shadow {
    pub(crate) fn new(side: Side, depth: Depth) -> Self {
        Self {
            side,
            depth,
            blocks: vec![[0; 8]; depth.entries() as usize],
            posted: 0,
            reported: 0,
            signaled: None,
            owned: VecDeque::new(),
        }
    }

    /// Copies what was posted up to `producer`; gives out the new WQEs and what they mean for the queue's room.
    pub(crate) fn post(&mut self, ring: &WqeRing, producer: u32) -> (Vec<Posted>, Room) {
        if self.posted == producer {
            return (Vec::new(), Room::Fine);
        }
        if producer.wrapping_sub(self.posted) > self.depth.entries() {
            // The queue was used before it was watched.
            self.posted = producer.wrapping_sub(self.depth.entries());
            self.reported = self.posted;
            self.owned.clear();
        }
        let from = self.posted;
        while self.posted != producer {
            let at = self.depth.index(self.posted) as usize;
            if let Some(block) = self.blocks.get_mut(at) {
                *block = ring.snapshot(self.posted);
            }
            self.posted = self.posted.wrapping_add(1);
        }
        let mut fresh = Vec::new();
        let mut start = from;
        while start != producer {
            let posted = self.decode(start, producer.wrapping_sub(start));
            start = posted.end;
            if posted.wqe.is_signaled() {
                self.signaled = Some(posted.end);
            }
            self.owned.push_back(posted.clone());
            fresh.push(posted);
        }
        let room = self.room();
        if room != Room::Fine {
            // Said once; from here on the queue counts as reclaimed, or every doorbell would say it again.
            self.reported = self.posted;
            self.owned.clear();
        }
        (fresh, room)
    }

    fn room(&self) -> Room {
        let outstanding = self.posted.wrapping_sub(self.reported);
        if outstanding < self.depth.entries() {
            return Room::Fine;
        }
        let is_reported_later = self
            .signaled
            .is_some_and(|end| (1..=outstanding).contains(&end.wrapping_sub(self.reported)));
        if !is_reported_later {
            Room::NoSignal(outstanding)
        } else if outstanding > self.depth.entries() {
            Room::Overrun(outstanding)
        } else {
            Room::Fine
        }
    }

    fn decode(&self, start: u32, left: u32) -> Posted {
        let block = |position: u32| {
            let at = self.depth.index(position) as usize;
            self.blocks.get(at).copied().unwrap_or_default()
        };
        let first = block(start);
        if self.side != Side::Send {
            return Posted {
                start,
                end: start.wrapping_add(1),
                wqe: Decoded::Receive(zerocopy::transmute!(first)),
            };
        }
        let head: SqWqe = zerocopy::transmute!(first);
        let blocks = u32::from(head.blocks.min(MAX_BLOCKS)).clamp(1, left.max(1));
        let mut words = first[HEAD_WORDS..].to_vec();
        for further in 1..blocks {
            words.extend(block(start.wrapping_add(further)));
        }
        let is_inline = head.flags & WqeFlags::INLINE.bits() != 0;
        let all = <[Sge]>::ref_from_bytes(words.as_bytes()).unwrap_or(&[]);
        let count = if is_inline {
            0
        } else {
            usize::from(head.count)
        };
        Posted {
            start,
            end: start.wrapping_add(blocks),
            wqe: Decoded::Send {
                head,
                rest: [first[4], first[5], first[6], first[7]],
                sges: all.get(..count).unwrap_or(&[]).to_vec(),
            },
        }
    }

    /// A CQE reports everything before `end`: takes it out and says what of it was changed.
    pub(crate) fn complete(
        &mut self,
        ring: Option<&WqeRing>,
        end: u32,
    ) -> (Vec<Posted>, Option<(Rewritten, Option<Posted>)>) {
        let count = end.wrapping_sub(self.reported);
        if count > self.posted.wrapping_sub(self.reported) {
            return (Vec::new(), None);
        }
        let mut done = Vec::new();
        while let Some(first) = self.owned.front()
            && first.end.wrapping_sub(self.reported) <= count
        {
            done.extend(self.owned.pop_front());
        }
        let changed = ring.and_then(|ring| self.first_change(ring, end));
        self.reported = end;
        let changed = changed.map(|change| {
            let of = done.iter().find(|posted| {
                change.index.wrapping_sub(posted.start) < posted.end.wrapping_sub(posted.start)
            });
            (change, of.cloned())
        });
        (done, changed)
    }

    /// As [`Shadow::complete`], for a queue whose WQEs are taken in order and complete in any: takes out the one before `end` alone.
    pub(crate) fn complete_one(
        &mut self,
        ring: Option<&WqeRing>,
        end: u32,
    ) -> (Option<Posted>, Option<(Rewritten, Option<Posted>)>) {
        let at = self.owned.iter().position(|posted| posted.end == end);
        let ahead = end.wrapping_sub(self.reported);
        let mut changed = None;
        if (1..=self.posted.wrapping_sub(self.reported)).contains(&ahead) {
            // Nobody has been told before that these places are free.
            changed = ring.and_then(|ring| self.first_change(ring, end));
            self.reported = end;
        }
        let changed = changed.map(|change| {
            let of = self
                .owned
                .iter()
                .find(|posted| posted.start == change.index);
            (change, of.cloned())
        });
        (at.and_then(|at| self.owned.remove(at)), changed)
    }

    /// Takes out everything before a position but what ends at one of `kept`: who took it is gone.
    pub(crate) fn forget_before(&mut self, position: u32, kept: &[u32]) -> Vec<Posted> {
        let is_gone =
            |one: &Posted| position.wrapping_sub(one.end) < 1 << 31 && !kept.contains(&one.end);
        let owned = std::mem::take(&mut self.owned);
        let (gone, owned) = owned.into_iter().partition(is_gone);
        self.owned = owned;
        gone.into()
    }

    fn first_change(&self, ring: &WqeRing, end: u32) -> Option<Rewritten> {
        let mut at = self.reported;
        while at != end {
            let was = self.blocks.get(self.depth.index(at) as usize)?;
            let is = ring.snapshot(at);
            if let Some(word) = (0..8).find(|&word| was[word] != is[word]) {
                return Some(Rewritten {
                    index: at,
                    word,
                    was: was[word],
                    is: is[word],
                });
            }
            at = at.wrapping_add(1);
        }
        None
    }

    /// WQEs that the NIC owns.
    pub(crate) fn owned(&self) -> impl Iterator<Item = &Posted> {
        self.owned.iter()
    }
}
