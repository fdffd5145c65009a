//! A queue of one's own beside rtrb: implement three small traits and call `compare`. Run: `cargo run --release --example own_ring`.

use std::collections::VecDeque;
use std::error::Error;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use sanlab::bench::alternate::Effort;
use sanlab::bench::memory::Memory;
use sanlab::bench::queue::{Consumer, Producer, Queue};
use sanlab::bench::{BenchError, ring, subjects::Rtrb};

struct Locked;
struct End<const W: usize>(Arc<Mutex<VecDeque<[u64; W]>>>, usize);

impl<const W: usize> Queue<W> for Locked {
    type Producer = End<W>;
    type Consumer = End<W>;

    fn name(&self) -> String {
        "mutex".into()
    }

    fn make(&self, depth: u32, _: &Memory) -> Result<(End<W>, End<W>), BenchError> {
        let queue = Arc::new(Mutex::new(VecDeque::new()));
        Ok((End(queue.clone(), depth as usize), End(queue, 0)))
    }
}

impl<const W: usize> Producer<W> for End<W> {
    fn push(&mut self, elements: &[[u64; W]]) -> usize {
        let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let pushed = elements.len().min(self.1 - queue.len());
        queue.extend(&elements[..pushed]);
        pushed
    }
}

impl<const W: usize> Consumer<W> for End<W> {
    fn pop(&mut self, room: &mut [[u64; W]]) -> usize {
        let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let popped = room.len().min(queue.len());
        room.iter_mut()
            .zip(queue.drain(..popped))
            .for_each(|(place, element)| *place = element);
        popped
    }
}

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let row = ring::compare::<8, _, _>(Locked, Rtrb, &ring::Plan::default(), Effort::default())?;
    writeln!(
        std::io::stdout(),
        "{}: {} is {:.3} of {}",
        row.name,
        row.subject,
        row.ratio,
        row.baseline
    )?;
    Ok(())
}
