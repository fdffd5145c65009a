//! Holders: which processes of a family still answer for a queue pair or a listener.
//!
//! Place: HOLD, HOLD_CLONE and RELEASE come from the admin ring, the end of a process from the server.
//! Invariants: a slot is never live twice with the same generation; what the last holder leaves behind is an orphan when a peer may
//! still read it, and destroyed otherwise. Any number of processes fits: a mask for the first 64 slots, a list beyond.
//! Source: ours; the life of an open file description over fork is the model. Leaves out: who the processes are (the server knows).

use ring_proto::admin::AdminStatus;
use ring_proto::ids::{FunctionId, HolderSlot};
use ring_proto::uar;

use super::qp::QpRef;
use super::timer::Timer;
use super::{Device, DeviceError};

/// Most holder slots of a function.
pub(crate) const HOLDERS_LIMIT: usize = 65_536;
/// How long a cloned slot waits for its process after the process that cloned it has ended.
const UNANSWERED_NS: u64 = 10_000_000_000;

/// The holders of one object.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Holders {
    first: u64,
    beyond: Vec<u32>,
}

impl Holders {
    pub(crate) fn of(slot: u32) -> Self {
        let mut holders = Self::default();
        holders.add(slot);
        holders
    }

    pub(crate) fn add(&mut self, slot: u32) {
        if slot < 64 {
            self.first |= 1 << slot;
        } else if !self.beyond.contains(&slot) {
            self.beyond.push(slot);
        }
    }

    /// Takes a holder away; false when it was none.
    pub(crate) fn remove(&mut self, slot: u32) -> bool {
        if !self.contains(slot) {
            return false;
        }
        if slot < 64 {
            self.first &= !(1 << slot);
        } else {
            self.beyond.retain(|&other| other != slot);
        }
        true
    }

    pub(crate) fn contains(&self, slot: u32) -> bool {
        if slot < 64 {
            self.first & (1 << slot) != 0
        } else {
            self.beyond.contains(&slot)
        }
    }

    pub(crate) fn count(&self) -> u32 {
        let beyond = u32::try_from(self.beyond.len()).unwrap_or(u32::MAX);
        self.first.count_ones().saturating_add(beyond)
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Life of one slot.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// Generation of the present life, or of the last one.
    generation: u32,
    is_live: bool,
    /// A process has said that it is this holder.
    is_answered: bool,
    /// Slot it was cloned from.
    cloner: u32,
}

/// Holder slots of one function.
#[derive(Debug)]
pub(crate) struct HolderTable {
    slots: Vec<Slot>,
}

impl HolderTable {
    /// Slot 0 is the process that attached.
    pub(crate) fn new() -> Self {
        Self {
            slots: vec![Slot {
                generation: 1,
                is_live: true,
                is_answered: false,
                cloner: 0,
            }],
        }
    }

    /// Generation of a live slot, 0 for any other.
    pub(crate) fn generation(&self, slot: u32) -> u32 {
        self.slots
            .get(slot as usize)
            .filter(|entry| entry.is_live)
            .map_or(0, |entry| entry.generation)
    }

    pub(crate) fn is_live(&self, slot: u32) -> bool {
        self.generation(slot) != 0
    }

    fn open(&mut self, cloner: u32) -> Option<(u32, u32)> {
        let free = self.slots.iter().position(|entry| !entry.is_live);
        let index = free.unwrap_or(self.slots.len());
        if index == self.slots.len() {
            if index == HOLDERS_LIMIT {
                return None;
            }
            self.slots.push(Slot::default());
        }
        let entry = self.slots.get_mut(index)?;
        *entry = Slot {
            // A slot is worn out after 2^32 lives.
            generation: entry.generation.checked_add(1)?,
            is_live: true,
            is_answered: false,
            cloner,
        };
        Some((u32::try_from(index).ok()?, entry.generation))
    }

    fn answer(&mut self, slot: u32) {
        if let Some(entry) = self.slots.get_mut(slot as usize) {
            entry.is_answered = true;
        }
    }

    fn is_answered(&self, slot: u32) -> bool {
        self.slots
            .get(slot as usize)
            .is_some_and(|entry| entry.is_answered)
    }

    fn close(&mut self, slot: u32) {
        if let Some(entry) = self.slots.get_mut(slot as usize) {
            entry.is_live = false;
        }
    }

    /// Live slots cloned from `cloner` for which no process has spoken, with their generations.
    fn unanswered(&self, cloner: u32) -> Vec<(u32, u32)> {
        self.slots
            .iter()
            .zip(0u32..)
            .filter(|(entry, slot)| {
                entry.is_live && !entry.is_answered && entry.cloner == cloner && *slot != cloner
            })
            .map(|(entry, slot)| (slot, entry.generation))
            .collect()
    }
}

impl Device {
    /// A process answers for a holder slot from now on.
    ///
    /// # Errors
    /// [`DeviceError::BadHolder`], [`DeviceError::NoFunction`].
    pub fn hold_process(
        &mut self,
        function: FunctionId,
        slot: HolderSlot,
        generation: u32,
    ) -> Result<(), DeviceError> {
        let holders = &mut self.function_mut(function)?.holders;
        let live = holders.generation(slot.0);
        if live == 0 || live != generation {
            return Err(DeviceError::BadHolder {
                slot: slot.0,
                live,
                asked: generation,
            });
        }
        holders.answer(slot.0);
        Ok(())
    }

    /// The process that answered for a holder slot has ended: all its holds are released.
    ///
    /// A slot that has ended before, or a generation of the past, changes nothing.
    pub fn drop_holder(&mut self, function: FunctionId, slot: HolderSlot, generation: u32) {
        let Ok(place) = self.place_of(function) else {
            return;
        };
        let Some(owner) = self.functions.at_mut(place) else {
            return;
        };
        if generation == 0 || owner.holders.generation(slot.0) != generation {
            return;
        }
        // What the process had posted counts: a hold it took last may be the one that keeps its bytes readable.
        self.serve_admin(place);
        let Some(owner) = self.functions.at_mut(place) else {
            return;
        };
        owner.holders.close(slot.0);
        owner.publish_holder(slot.0);
        let orphaned_clones = owner.holders.unanswered(slot.0);
        let listeners = owner.listeners.numbers();
        let qps = owner.qps.numbers();
        for (slot, generation) in orphaned_clones {
            let at = self.clock.now_ns().saturating_add(UNANSWERED_NS);
            let timer = Timer::Holder {
                function,
                slot,
                generation,
            };
            self.timers.set(at, timer);
        }
        for listener in listeners {
            self.release_listener(place, listener, slot.0);
        }
        for qpn in qps {
            let qp = QpRef {
                place,
                function,
                qpn,
            };
            self.release_qp(qp, slot.0);
        }
        self.settle();
    }

    /// The time of a cloned slot is up whose cloner has ended: unless its process has spoken meanwhile, it never was born.
    pub(crate) fn holder_timer(&mut self, function: FunctionId, slot: u32, generation: u32) {
        let answered = self
            .function_mut(function)
            .map_or(true, |owner| owner.holders.is_answered(slot));
        if !answered {
            self.drop_holder(function, HolderSlot(slot), generation);
        }
    }

    /// HOLD_CLONE: a new slot with all holds of another one.
    pub(crate) fn clone_holder(
        &mut self,
        place: u32,
        from: u32,
    ) -> Result<(u32, u32), AdminStatus> {
        let owner = self.functions.at_mut(place).ok_or(AdminStatus::NO_OBJECT)?;
        if !owner.holders.is_live(from) {
            return Err(AdminStatus::NO_OBJECT);
        }
        let (slot, generation) = owner.holders.open(from).ok_or(AdminStatus::NO_RESOURCE)?;
        owner.publish_holder(slot);
        for (_, qp) in owner.qps.iter_mut() {
            if qp.holders.contains(from) {
                qp.holders.add(slot);
            }
        }
        for (_, listener) in owner.listeners.iter_mut() {
            if listener.holders.contains(from) {
                listener.holders.add(slot);
            }
        }
        Ok((slot, generation))
    }

    /// Takes a holder off a QP; what has no holder left ends. Returns the holders left, `None` when it was no holder.
    pub(crate) fn release_qp(&mut self, qp: QpRef, slot: u32) -> Option<u32> {
        let entry = self.qp_mut(qp)?;
        if !entry.holders.remove(slot) {
            return None;
        }
        let left = entry.holders.count();
        if left == 0 && entry.listener.is_none() {
            self.last_holder_gone(qp);
        }
        Some(left)
    }

    /// Takes a holder off a listener; what has no holder left ends. Returns the holders left, `None` when it was no holder.
    pub(crate) fn release_listener(&mut self, place: u32, id: u32, slot: u32) -> Option<u32> {
        let listener = self.functions.at_mut(place)?.listeners.find_mut(id)?;
        if !listener.holders.remove(slot) {
            return None;
        }
        let left = listener.holders.count();
        if left == 0 {
            self.close_listener(place, id);
        } else {
            // The others of the family sleep, and go on with what it was doing for all of them.
            self.wake_for_events(place);
        }
        Some(left)
    }
}

/// Slots past the published table are live all the same; nobody can watch them there.
pub(crate) fn is_published(slot: u32) -> bool {
    slot < uar::HOLDERS - 1
}

#[cfg(test)]
mod tests {
    use super::{HolderTable, Holders};

    #[test]
    fn holders_beyond_the_mask_count_like_the_first_64() {
        let mut holders = Holders::default();
        for slot in 0..200 {
            holders.add(slot);
            holders.add(slot);
        }
        assert_eq!(holders.count(), 200);
        assert!(holders.remove(150) && !holders.remove(150));
        assert!(holders.remove(3) && !holders.remove(3));
        assert_eq!(holders.count(), 198);
        assert!(!holders.contains(150) && holders.contains(151));
        for slot in 0..200 {
            holders.remove(slot);
        }
        assert_eq!(holders.count(), 0);
    }

    #[test]
    fn reopened_slot_has_a_new_generation() {
        let mut table = HolderTable::new();
        let (slot, first) = table.open(0).unwrap();
        table.close(slot);
        assert_eq!(table.generation(slot), 0);
        let (again, second) = table.open(0).unwrap();
        assert_eq!(again, slot);
        assert!(second > first);
    }
}
