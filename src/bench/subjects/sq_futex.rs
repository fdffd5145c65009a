//! The same ring for sides that sleep: a consumer without work waits on a futex, and the producer wakes it.
//!
//! Place: what sleeping costs, beside [`super::SendQueue`]. Invariants: the sleep protocol of `ring_proto::doorbell`: the sleeper publishes
//! that it sleeps, fences, and looks once more; the producer publishes, fences, and looks whether somebody sleeps.
//! Source: futex(2).

use std::time::Duration;

use ring_proto::sync::{Ordering, fence};
use rustix::thread::futex;

use super::super::BenchError;
use super::super::memory::Memory;
use super::super::queue::{Consumer, Element, Producer, Queue};
use super::sq::{Receiver, Sender, View, ends};

/// Looks before the consumer sleeps.
const LOOKS: u32 = 100;
/// How long one sleep lasts at most; whoever calls gives up in the end.
const SLEEP: Duration = Duration::from_millis(100);

/// The ring whose consumer sleeps.
#[derive(Clone, Copy, Debug, Default)]
pub struct SleepingQueue;

/// The end that is written to.
#[derive(Debug)]
pub struct WakingSender<const W: usize>(Sender<W>);

/// The end that is read from.
#[derive(Debug)]
pub struct SleepingReceiver<const W: usize>(Receiver<W>);

impl<const W: usize> Queue<W> for SleepingQueue {
    type Producer = WakingSender<W>;
    type Consumer = SleepingReceiver<W>;

    fn name(&self) -> String {
        "futex".into()
    }

    fn bytes(&self, depth: u32) -> usize {
        View::<W>::bytes(depth)
    }

    fn spans_processes(&self) -> bool {
        true
    }

    fn make(
        &self,
        depth: u32,
        memory: &Memory,
    ) -> Result<(WakingSender<W>, SleepingReceiver<W>), BenchError> {
        let (sender, receiver) = ends(depth, memory)?;
        Ok((WakingSender(sender), SleepingReceiver(receiver)))
    }
}

impl<const W: usize> Producer<W> for WakingSender<W> {
    #[inline]
    fn push(&mut self, elements: &[Element<W>]) -> usize {
        let pushed = self.0.push(elements);
        let sleeper = self.0.view.sleeper();
        fence(Ordering::SeqCst);
        // Relaxed: ordered by the fence, which pairs with the one of the sleeper.
        if pushed > 0 && sleeper.load(Ordering::Relaxed) != 0 {
            sleeper.store(0, Ordering::Relaxed);
            // Nobody there any more: it saw the elements itself.
            let _ = futex::wake(sleeper, futex::Flags::empty(), 1);
        }
        pushed
    }
}

impl<const W: usize> Consumer<W> for SleepingReceiver<W> {
    #[inline]
    fn pop(&mut self, room: &mut [Element<W>]) -> usize {
        for _ in 0..LOOKS {
            let popped = self.0.pop(room);
            if popped > 0 {
                return popped;
            }
        }
        self.sleep();
        self.0.pop(room)
    }
}

impl<const W: usize> SleepingReceiver<W> {
    #[cold]
    fn sleep(&self) {
        let sleeper = self.0.view.sleeper();
        // Relaxed: ordered by the fence, which pairs with the one of the producer.
        sleeper.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        // Relaxed: whether there is news; the elements are acquired by the next pop.
        if self.0.view.producer().load(Ordering::Relaxed) == self.0.consumer {
            let timeout = SLEEP.try_into().ok();
            // Woken, late, or interrupted: the next look tells.
            let _ = futex::wait(sleeper, futex::Flags::empty(), 1, timeout.as_ref());
        }
        sleeper.store(0, Ordering::Relaxed);
    }
}
