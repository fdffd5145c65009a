//! `sanlab bench`: queues, and the NIC, measured beside a baseline in the same run.
//!
//! Place: the command line says what to measure and prints a [`Report`]; a program with a queue of its own implements [`queue::Queue`] and
//! calls [`ring::compare`]. Invariants: subject and baseline alternate within one run; a ratio is taken within a pair, because
//! only there both met the same machine; what arrives is checked, and a queue that loses, invents or reorders elements is an error,
//! not a figure. Source: the habits of perftest, and of HdrHistogram for tails.
//!
//! ```text
//!  ring: queues ---------------> alternate: pairs of runs -> report: JSON, CSV    saved: files and their comparison    plot: SVG
//!  rdma: the NIC ---------------^                            stats: ratios, intervals, percentiles    machine: the header
//!  pair: two threads or processes    queue: what is measured: subjects, foreign    memory, control: what both sides map
//! ```

pub mod alternate;
pub mod control;
pub mod error;
pub mod foreign;
pub mod machine;
pub mod matrix;
pub mod memory;
pub mod pair;
pub mod plot;
pub mod queue;
pub mod rdma;
pub mod report;
pub mod ring;
pub mod saved;
pub mod stats;
pub mod subjects;

pub use error::BenchError;
pub use pair::{Between, Place};
pub use report::{Report, Row};
