//! Resources that run out: each has a limit and a clear refusal, all of it comes back, and at each limit a well-behaved client is served.

mod connections;
mod doorbells;
mod functions;
mod objects;
mod windows;
