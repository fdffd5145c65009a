//! What an outsider may know of a connection: positions of the stream, credits, and where it stands.
//!
//! Place: the preload library reports it after each data call, `sanlab ss` shows it. Invariants: words that are read alone; nothing is
//! taken or driven. Source: ss(8) for what people look for.

use ring_proto::sync::Ordering;
use ring_proto::telemetry::FlowState;

use super::conn::Conn;
use super::credit;
use super::record::flag;

/// A look at a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Flow {
    /// Bytes accepted from the programs of this end since the connection began.
    pub accepted: u64,
    /// Bytes given to them.
    pub taken: u64,
    /// Of the accepted ones, those not yet delivered, as far as is known here.
    pub unsent: u64,
    /// Messages that may be sent before the peer grants more.
    pub credits: u32,
    /// Where it stands.
    pub state: FlowState,
}

impl Conn {
    /// Looks at the connection.
    #[must_use]
    pub fn flow(&self) -> Flow {
        let r = self.record.get();
        let flags = r.flags();
        let state = match (flags & flag::WRITE_SHUT != 0, flags & flag::FIN_SEEN != 0) {
            _ if flags & (flag::RESET | flag::GONE | flag::CLOSED) != 0 => FlowState::Close,
            (false, false) => FlowState::Estab,
            (true, false) => FlowState::FinWait,
            (false, true) => FlowState::CloseWait,
            (true, true) => FlowState::Closing,
        };
        // Relaxed: numbers for people; each stands alone.
        let posted = r.posted.load(Ordering::Relaxed);
        Flow {
            accepted: r.accepted.load(Ordering::Relaxed),
            taken: r.rcv_next.load(Ordering::Relaxed),
            unsent: self.unsent_bytes() as u64,
            credits: credit::available(r.granted.load(Ordering::Relaxed), posted),
            state,
        }
    }
}
