//! Which bytes of a function the NIC may write at any time: targets of posted receives and READs.
//!
//! Place: [`super::Validator`] keeps one [`Buffers`] per function. Invariants: ranges do not overlap (one that would is reported and not
//! kept); at most [`RANGES`] of them, beyond which new ones are not watched.

use std::collections::BTreeMap;

use ring_proto::wqe::Sge;

use super::shadow::Side;

/// Most ranges of a function that are watched.
const RANGES: usize = 1 << 16;

/// A range with the WQE that gave it to the NIC.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owned {
    pub(crate) start: u64,
    end: u64,
    pub(crate) lkey: u32,
    pub(crate) qpn: u32,
    pub(crate) side: Side,
    /// Position of the WQE.
    pub(crate) index: u32,
}

impl Owned {
    pub(crate) fn len(&self) -> u64 {
        self.end - self.start
    }
}

/// The ranges of one function.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    by_start: BTreeMap<u64, Owned>,
}

impl Buffers {
    /// Gives a range to the NIC; the one it overlaps, if any.
    pub(crate) fn lend(&mut self, sge: &Sge, qpn: u32, side: Side, index: u32) -> Option<Owned> {
        let end = sge.addr.checked_add(u64::from(sge.len))?;
        if sge.len == 0 {
            return None;
        }
        let below = self.by_start.range(..end).next_back();
        if let Some((_, &other)) = below.filter(|(_, other)| other.end > sge.addr) {
            return Some(other);
        }
        if self.by_start.len() < RANGES {
            let owned = Owned {
                start: sge.addr,
                end,
                lkey: sge.lkey,
                qpn,
                side,
                index,
            };
            self.by_start.insert(sge.addr, owned);
        }
        None
    }

    /// Takes a range back from the NIC, when it is the one that this WQE gave.
    pub(crate) fn give_back(&mut self, sge: &Sge, qpn: u32, side: Side, index: u32) {
        if let Some(owned) = self.by_start.get(&sge.addr)
            && (owned.qpn, owned.side, owned.index) == (qpn, side, index)
        {
            self.by_start.remove(&sge.addr);
        }
    }

    /// A range of a key that the NIC still owns.
    pub(crate) fn of_key(&self, lkey: u32) -> Option<Owned> {
        self.by_start
            .values()
            .copied()
            .find(|owned| owned.lkey == lkey)
    }
}
