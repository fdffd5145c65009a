//! Our send queue alone: the ring of `ring_proto::shared`, its producer published by a doorbell, its consumer by a word like a CQE's counter.
//!
//! Place: what the NIC's rings cost without the NIC. Invariants: as in `ring_proto::ring`; positions are free-running, the peer's index is
//! looked at only when the copy of it says full or empty, and each batch publishes once.
//! Edges: bench-publish, bench-consume.
#![expect(unsafe_code, reason = "makes the ring's view over shared memory")]

use ring_proto::index::Depth;
use ring_proto::shared::Ring;
use ring_proto::sync::{AtomicU32, Ordering};

use super::super::BenchError;
use super::super::memory::Memory;
use super::super::queue::{Consumer, Element, Producer, Queue};

/// Bytes before the ring: two indices on lines of their own.
const HEAD: usize = 256;

/// The ring.
#[derive(Clone, Copy, Debug, Default)]
pub struct SendQueue;

/// What both ends have.
#[derive(Clone, Debug)]
pub(super) struct View<const W: usize> {
    memory: Memory,
    pub(super) ring: Ring<W>,
}

impl<const W: usize> View<W> {
    pub(super) fn bytes(depth: u32) -> usize {
        HEAD + depth as usize * W * 8
    }

    pub(super) fn new(depth: u32, memory: &Memory) -> Result<Self, BenchError> {
        let depth_entries = Depth::new(depth).ok_or(BenchError::Depth(depth))?;
        assert!(
            memory.len() >= Self::bytes(depth),
            "as much as was asked for"
        );
        // SAFETY: the ring begins inside the memory: checked above.
        let base = unsafe { memory.base().add(HEAD) };
        // SAFETY: 1. aligned to 256 bytes, as long as asserted, and kept mapped by `memory`. 2. Only ring views reach it.
        let ring = unsafe { Ring::new(base.cast(), depth_entries) };
        Ok(Self {
            memory: memory.clone(),
            ring,
        })
    }

    fn word(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: the offsets below lie in the head.
        let place = unsafe { self.memory.base().add(offset) };
        // SAFETY: aligned, mapped as long as `self`, and reached through atomics only.
        unsafe { AtomicU32::from_ptr(place.as_ptr().cast()) }
    }

    /// Written by the producer.
    pub(super) fn producer(&self) -> &AtomicU32 {
        self.word(0)
    }

    /// Written by the consumer.
    pub(super) fn consumer(&self) -> &AtomicU32 {
        self.word(128)
    }

    /// Who sleeps, for the ring that does; on the line that is written least.
    pub(super) fn sleeper(&self) -> &AtomicU32 {
        self.word(192)
    }
}

/// The end that is written to.
#[derive(Debug)]
pub struct Sender<const W: usize> {
    pub(super) view: View<W>,
    pub(super) producer: u32,
    cached_consumer: u32,
}

/// The end that is read from.
#[derive(Debug)]
pub struct Receiver<const W: usize> {
    pub(super) view: View<W>,
    pub(super) consumer: u32,
    cached_producer: u32,
}

/// Both ends of a new ring.
pub(super) fn ends<const W: usize>(
    depth: u32,
    memory: &Memory,
) -> Result<(Sender<W>, Receiver<W>), BenchError> {
    let view = View::new(depth, memory)?;
    let sender = Sender {
        view: view.clone(),
        producer: 0,
        cached_consumer: 0,
    };
    let receiver = Receiver {
        view,
        consumer: 0,
        cached_producer: 0,
    };
    Ok((sender, receiver))
}

impl<const W: usize> Queue<W> for SendQueue {
    type Producer = Sender<W>;
    type Consumer = Receiver<W>;

    fn name(&self) -> String {
        "sq".into()
    }

    fn bytes(&self, depth: u32) -> usize {
        View::<W>::bytes(depth)
    }

    fn spans_processes(&self) -> bool {
        true
    }

    fn make(&self, depth: u32, memory: &Memory) -> Result<(Sender<W>, Receiver<W>), BenchError> {
        ends(depth, memory)
    }
}

impl<const W: usize> Producer<W> for Sender<W> {
    #[inline]
    fn push(&mut self, elements: &[Element<W>]) -> usize {
        let depth = self.view.ring.depth();
        let mut free = depth.free(self.producer, self.cached_consumer) as usize;
        if free < elements.len() {
            // EDGE bench-consume (acquire): the elements were read before they are written over.
            self.cached_consumer = self.view.consumer().load(Ordering::Acquire);
            free = depth.free(self.producer, self.cached_consumer) as usize;
        }
        let pushed = elements.len().min(free);
        for element in &elements[..pushed] {
            self.view.ring.write(self.producer, element);
            self.producer = self.producer.wrapping_add(1);
        }
        if pushed > 0 {
            // EDGE bench-publish (release): the elements above.
            self.view.producer().store(self.producer, Ordering::Release);
        }
        pushed
    }
}

impl<const W: usize> Consumer<W> for Receiver<W> {
    #[inline]
    fn pop(&mut self, room: &mut [Element<W>]) -> usize {
        let mut there = self.cached_producer.wrapping_sub(self.consumer) as usize;
        if there == 0 {
            // EDGE bench-publish (acquire): the elements up to the producer.
            self.cached_producer = self.view.producer().load(Ordering::Acquire);
            there = self.cached_producer.wrapping_sub(self.consumer) as usize;
        }
        let popped = there.min(room.len());
        for element in &mut room[..popped] {
            *element = self.view.ring.snapshot(self.consumer);
            self.consumer = self.consumer.wrapping_add(1);
        }
        if popped > 0 {
            // EDGE bench-consume (release): the elements above were read.
            self.view.consumer().store(self.consumer, Ordering::Release);
        }
        popped
    }
}
