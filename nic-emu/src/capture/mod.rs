//! Captures: what the ports of a cluster's nodes see, as frames of RoCEv2, and those of the wire of namespace mode, in a pcapng file.
//!
//! Place: the device tells records of packets (`device::capture`), a `ring` carries them to a reader in another process, which makes
//! frames of them. The engine and the wire copy bytes and nothing else; addresses, headers, checks and the file are the reader's work.
//! Invariants: the engine never waits for a reader. Source: InfiniBand Architecture vol. 1 (transport headers, MADs), its annex A17
//! (RoCEv2), and the pcapng draft (draft-ietf-opsawg-pcapng). Leaves out: what nobody put on a link (local work, doorbells).
//!
//! ```text
//!  engine -- Record --> ring (memfd) --> Reader --+
//!  wire ---- Record --> ring (memfd) --> Reader --+ merge -- frame, cm_mad --> filter --> pcapng
//! ```

mod cm_mad;
mod error;
mod filter;
mod frame;
mod merge;
mod pcapng;
pub(crate) mod record;
mod ring;
pub(crate) mod running;
mod session;

pub use error::CaptureError;
pub use filter::Filter;
pub use pcapng::Pcapng;
pub use ring::{Counts, Geometry, Reader, Writer};
pub use session::{Frame, Frames, Medium, Port};
