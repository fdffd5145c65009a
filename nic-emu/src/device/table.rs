//! Tables of a function's objects, named by an index and the tag of its present life.
//!
//! Place: QPs, CQs, PDs, MRs and listeners of a function live in one each; their numbers are what clients pass.
//! Invariants: index 0 is never used, so 0 names nothing; a freed index comes back as late as possible and with another tag, so a
//! stale number misses. Hot: [`Table::find`], [`Table::find_mut`]: one bounds check, one tag compare.
//! Source: memory keys of verbs hardware (index and 8-bit key part); the same shape for all numbers is ours.

use std::collections::VecDeque;

use ring_proto::ids;

/// A table of at most `limit` objects.
#[derive(Debug)]
pub(crate) struct Table<T> {
    entries: Vec<Entry<T>>,
    free: VecDeque<u32>,
    limit: u32,
    seed: u8,
}

#[derive(Debug)]
struct Entry<T> {
    tag: u8,
    value: Option<T>,
}

impl<T> Table<T> {
    /// Makes an empty table; `seed` sets the first tags apart from those of other functions.
    pub(crate) fn new(limit: u32, seed: u8) -> Self {
        Self {
            entries: Vec::new(),
            free: VecDeque::new(),
            limit: limit.min(ids::INDEX_LIMIT - 1),
            seed,
        }
    }

    /// Objects in the table.
    pub(crate) fn len(&self) -> usize {
        self.entries.len().saturating_sub(1) - self.free.len()
    }

    /// Adds the object that `make` builds for its number; `None` when the table is full.
    pub(crate) fn insert_with(&mut self, make: impl FnOnce(u32) -> T) -> Option<u32> {
        if self.entries.is_empty() {
            // Index 0: never given out.
            self.entries.push(Entry {
                tag: 0,
                value: None,
            });
        }
        let fresh = u32::try_from(self.entries.len()).ok()?;
        let index = if fresh <= self.limit {
            let [low, ..] = fresh.to_le_bytes();
            self.entries.push(Entry {
                tag: self.seed.wrapping_add(low.wrapping_mul(37)),
                value: None,
            });
            fresh
        } else {
            self.free.pop_front()?
        };
        let entry = self.entries.get_mut(usize::try_from(index).ok()?)?;
        let number = ids::key(index, entry.tag);
        entry.value = Some(make(number));
        Some(number)
    }

    /// The object of that number.
    #[inline]
    pub(crate) fn find(&self, number: u32) -> Option<&T> {
        let (index, tag) = ids::key_parts(number);
        let entry = self.entries.get(index as usize)?;
        if entry.tag == tag {
            entry.value.as_ref()
        } else {
            None
        }
    }

    /// The object of that number.
    #[inline]
    pub(crate) fn find_mut(&mut self, number: u32) -> Option<&mut T> {
        let (index, tag) = ids::key_parts(number);
        let entry = self.entries.get_mut(index as usize)?;
        if entry.tag == tag {
            entry.value.as_mut()
        } else {
            None
        }
    }

    /// Takes the object out; its number names nothing from now on.
    pub(crate) fn remove(&mut self, number: u32) -> Option<T> {
        let (index, tag) = ids::key_parts(number);
        let entry = self.entries.get_mut(index as usize)?;
        if entry.tag != tag {
            return None;
        }
        let value = entry.value.take()?;
        entry.tag = tag.wrapping_add(1);
        self.free.push_back(index);
        Some(value)
    }

    /// Gives an object another tag; its old number names nothing from now on.
    pub(crate) fn retag(&mut self, number: u32, tag: u8) -> Option<u32> {
        self.find(number)?;
        let (index, _) = ids::key_parts(number);
        self.entries.get_mut(usize::try_from(index).ok()?)?.tag = tag;
        Some(ids::key(index, tag))
    }

    /// Every object with its number.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.entries
            .iter()
            .zip(0u32..)
            .filter_map(|(entry, index)| {
                let value = entry.value.as_ref()?;
                Some((ids::key(index, entry.tag), value))
            })
    }

    /// Every object with its number.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut T)> {
        self.entries
            .iter_mut()
            .zip(0u32..)
            .filter_map(|(entry, index)| {
                let tag = entry.tag;
                let value = entry.value.as_mut()?;
                Some((ids::key(index, tag), value))
            })
    }

    /// Takes all objects out; their numbers name nothing from now on.
    pub(crate) fn clear(&mut self) {
        for number in self.numbers() {
            self.remove(number);
        }
    }

    /// Numbers of all objects, for walks that change the table.
    pub(crate) fn numbers(&self) -> Vec<u32> {
        self.iter().map(|(number, _)| number).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::Table;

    #[test]
    fn stale_number_misses_after_the_index_came_back() {
        let mut table = Table::new(2, 7);
        let first = table.insert_with(|_| 'a').unwrap();
        let second = table.insert_with(|_| 'b').unwrap();
        assert_eq!(table.insert_with(|_| 'c'), None);
        assert_eq!(table.remove(first), Some('a'));
        assert_eq!(table.remove(first), None);
        let third = table.insert_with(|_| 'c').unwrap();
        assert_ne!(third, first);
        assert_eq!(table.find(first), None);
        assert_eq!(table.find(second), Some(&'b'));
        assert_eq!(table.find(third), Some(&'c'));
        assert_eq!(table.len(), 2);
    }

    #[test]
    fn zero_names_nothing() {
        for seed in 0..=255 {
            let mut table = Table::new(300, seed);
            for _ in 0..300 {
                assert_ne!(table.insert_with(|_| ()), Some(0));
            }
            assert_eq!(table.find(0), None);
        }
    }
}
