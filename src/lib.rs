//! What `sanlab` offers to other programs: its benchmark, for queues that are not ours.
//!
//! Place: the `sanlab` command and a user's own program call in here; everything else of the command is in the binary.
//! Leaves out: the command line.

pub mod bench;
