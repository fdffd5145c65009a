//! crossbeam's `ArrayQueue`: a queue for many producers and consumers, here with one of each.
//!
//! Place: what programs take when they do not know that a ring would do. Invariants: those of the crate.

use std::sync::Arc;

use super::super::BenchError;
use super::super::memory::Memory;
use super::super::queue::{Consumer, Element, Producer, Queue};

/// `crossbeam_queue::ArrayQueue`.
#[derive(Clone, Copy, Debug, Default)]
pub struct ArrayQueue;

/// One end.
#[derive(Debug)]
pub struct End<const W: usize>(Arc<crossbeam_queue::ArrayQueue<Element<W>>>);

impl<const W: usize> Queue<W> for ArrayQueue {
    type Producer = End<W>;
    type Consumer = End<W>;

    fn name(&self) -> String {
        "array-queue".into()
    }

    fn make(&self, depth: u32, _memory: &Memory) -> Result<(End<W>, End<W>), BenchError> {
        let queue = Arc::new(crossbeam_queue::ArrayQueue::new(depth as usize));
        Ok((End(Arc::clone(&queue)), End(queue)))
    }
}

impl<const W: usize> Producer<W> for End<W> {
    #[inline]
    fn push(&mut self, elements: &[Element<W>]) -> usize {
        let mut pushed = 0;
        while pushed < elements.len() && self.0.push(elements[pushed]).is_ok() {
            pushed += 1;
        }
        pushed
    }
}

impl<const W: usize> Consumer<W> for End<W> {
    #[inline]
    fn pop(&mut self, room: &mut [Element<W>]) -> usize {
        let mut popped = 0;
        while popped < room.len()
            && let Some(element) = self.0.pop()
        {
            room[popped] = element;
            popped += 1;
        }
        popped
    }
}
