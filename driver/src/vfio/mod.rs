//! The driver's end of the vfio-user protocol.
//!
//! Place: `opener` attaches a function over a stream socket with [`client::Client`]; the messages are in `ring_proto::vfio`.

pub mod client;
