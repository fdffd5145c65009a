//! What a queue must offer to be measured.
//!
//! Place: [`super::subjects`] are those we bring, [`super::foreign`] those of a C shared object; a program with its own implements
//! [`Queue`] and calls [`super::ring::compare`]. Invariants: one producer, one consumer; elements come out once, in order. An element
//! is `W` words of 8 bytes, so that its size is known when it is compiled, as in the rings of real drivers.

use super::BenchError;
use super::memory::Memory;

/// An element of `8 * W` bytes.
pub type Element<const W: usize> = [u64; W];

/// A kind of queue between one producer and one consumer.
pub trait Queue<const W: usize> {
    /// The end that is written to.
    type Producer: Producer<W>;
    /// The end that is read from.
    type Consumer: Consumer<W>;

    /// How the reports call it.
    fn name(&self) -> String;

    /// Bytes of shared memory for a queue of `depth` elements.
    fn bytes(&self, depth: u32) -> usize {
        let _ = depth; // for queues that have their memory elsewhere
        0
    }

    /// Whether producer and consumer may be in two processes, one forked from the other after [`Queue::make`].
    fn spans_processes(&self) -> bool {
        false
    }

    /// Makes an empty queue of `depth` elements, a power of two, in zeroed memory of [`Queue::bytes`].
    ///
    /// # Errors
    /// Whatever keeps it from being made.
    fn make(
        &self,
        depth: u32,
        memory: &Memory,
    ) -> Result<(Self::Producer, Self::Consumer), BenchError>;
}

/// The end of a queue that is written to.
pub trait Producer<const W: usize>: Send {
    /// Puts the first elements in, as many as there is room for; returns how many. Whoever calls waits, not the queue.
    fn push(&mut self, elements: &[Element<W>]) -> usize;
}

/// The end of a queue that is read from.
pub trait Consumer<const W: usize>: Send {
    /// Takes elements out, at most as many as `room` holds; returns how many.
    fn pop(&mut self, room: &mut [Element<W>]) -> usize;
}

/// The element number `sequence`: both its ends tell which one it is, so that a torn one shows.
#[inline]
pub(crate) fn stamp<const W: usize>(element: &mut Element<W>, sequence: u64) {
    element[0] = sequence;
    if W > 1 {
        element[W - 1] = !sequence;
    }
}

/// Whether an element is that of `sequence`.
#[inline]
pub(crate) fn is_stamped<const W: usize>(element: &Element<W>, sequence: u64) -> bool {
    element[0] == sequence && (W == 1 || element[W - 1] == !sequence)
}
