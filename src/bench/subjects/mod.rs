//! The queues that `sanlab bench ring` knows by name.
//!
//! Place: [`super::ring::compare`] measures them. Invariants: each does what its users do: ours and rtrb move whole batches with one store
//! of an index, `ArrayQueue` has no batches, the pipe has one system call per batch, the futex ring sleeps and wakes.
//! Leaves out: iceoryx2.

mod array_queue;
mod cache_line;
mod pipe;
mod rtrb;
mod sq;
mod sq_futex;

pub use array_queue::ArrayQueue;
pub use cache_line::{CacheLine, Line};
pub use pipe::Pipe;
pub use rtrb::Rtrb;
pub use sq::SendQueue;
pub use sq_futex::SleepingQueue;
