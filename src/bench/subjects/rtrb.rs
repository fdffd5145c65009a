//! The crate rtrb: a ring between two threads, with cached indices and chunks.
//!
//! Place: baseline of choice between threads. Invariants: those of the crate.

use super::super::BenchError;
use super::super::memory::Memory;
use super::super::queue::{Consumer, Element, Producer, Queue};

/// `rtrb::RingBuffer`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rtrb;

impl<const W: usize> Queue<W> for Rtrb {
    type Producer = rtrb::Producer<Element<W>>;
    type Consumer = rtrb::Consumer<Element<W>>;

    fn name(&self) -> String {
        "rtrb".into()
    }

    fn make(
        &self,
        depth: u32,
        _memory: &Memory,
    ) -> Result<(Self::Producer, Self::Consumer), BenchError> {
        Ok(rtrb::RingBuffer::new(depth as usize))
    }
}

impl<const W: usize> Producer<W> for rtrb::Producer<Element<W>> {
    #[inline]
    fn push(&mut self, elements: &[Element<W>]) -> usize {
        if let [only] = elements {
            return usize::from(rtrb::Producer::push(self, *only).is_ok());
        }
        let room = elements.len().min(self.slots());
        match self.write_chunk_uninit(room) {
            Ok(chunk) => chunk.fill_from_iter(elements.iter().copied()),
            Err(_) => 0, // not with as many as there are slots
        }
    }
}

impl<const W: usize> Consumer<W> for rtrb::Consumer<Element<W>> {
    #[inline]
    fn pop(&mut self, room: &mut [Element<W>]) -> usize {
        if let [only] = room {
            return match rtrb::Consumer::pop(self) {
                Ok(element) => {
                    *only = element;
                    1
                }
                Err(_) => 0,
            };
        }
        let there = room.len().min(self.slots());
        let Ok(chunk) = self.read_chunk(there) else {
            return 0; // not with as many as there are slots
        };
        for (place, element) in room.iter_mut().zip(chunk) {
            *place = element;
        }
        there
    }
}
