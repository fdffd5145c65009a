//! Flight recorder: what happened last on a socket, while its SO_DEBUG is set.
//!
//! Place: `data` and `completing` write entries; [`SanProvider::flight_record`] reads them, in any process of the family.
//! Invariants: a ring of 16 entries in the socket's record; a recorder that is off costs one load. Writers of one socket may race: an
//! entry may then be lost or mixed, never anything else.
//! Source: R-178 (SO_DEBUG may switch on provider tracing).

use ring_proto::sync::Ordering;

use super::SanProvider;
use super::socket::Sock;
use crate::record::FLIGHTS;
use crate::spi::SpSocket;
use crate::sys;
use crate::wsa::WsaError;

/// What an entry is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum FlightKind {
    /// A send-side operation was posted.
    Posted = 1,
    /// A receive was posted.
    ReceivePosted = 2,
    /// A send-side operation finished.
    Finished = 3,
    /// A receive finished.
    Received = 4,
    /// The connection ended.
    Ended = 5,
}

/// Entry of a flight record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlightEntry {
    /// Monotonic clock.
    pub time_ns: u64,
    /// What happened.
    pub kind: FlightKind,
    /// With which error.
    pub error: Option<WsaError>,
    /// To how many bytes.
    pub bytes: u32,
}

impl Sock<'_> {
    /// Writes an entry when the recorder is on.
    #[inline]
    pub(crate) fn note(&self, kind: FlightKind, error: Option<WsaError>, bytes: u32) {
        // Relaxed throughout: a recorder, not a protocol.
        if self.record.debug.load(Ordering::Relaxed) != 0 {
            self.write(kind, error, bytes);
        }
    }

    #[cold]
    fn write(&self, kind: FlightKind, error: Option<WsaError>, bytes: u32) {
        let number = self.record.flights.fetch_add(1, Ordering::Relaxed);
        let Some(entry) = self.record.flight.get(number as usize % FLIGHTS as usize) else {
            return;
        };
        let code = error.map_or(0, WsaError::code);
        let what = u64::from(kind as u8) << 56 | u64::from(code) << 32 | u64::from(bytes);
        entry.time_ns.store(sys::now_ns(), Ordering::Relaxed);
        entry.what.store(what, Ordering::Relaxed);
    }

    fn flights(&self) -> Vec<FlightEntry> {
        let written = self.record.flights.load(Ordering::Relaxed);
        let first = written.saturating_sub(FLIGHTS);
        let entries = (first..written).filter_map(|number| {
            let entry = self.record.flight.get(number as usize % FLIGHTS as usize)?;
            let what = entry.what.load(Ordering::Relaxed);
            let [a, b, c, d, e, f, g, kind] = what.to_le_bytes();
            let kind = [
                FlightKind::Posted,
                FlightKind::ReceivePosted,
                FlightKind::Finished,
                FlightKind::Received,
                FlightKind::Ended,
            ]
            .into_iter()
            .find(|&known| known as u8 == kind)?;
            Some(FlightEntry {
                time_ns: entry.time_ns.load(Ordering::Relaxed),
                kind,
                error: WsaError::from_code(u32::from_le_bytes([e, f, g, 0])),
                bytes: u32::from_le_bytes([a, b, c, d]),
            })
        });
        entries.collect()
    }
}

impl SanProvider {
    /// What happened last on a socket while its SO_DEBUG was set, oldest first.
    ///
    /// # Errors
    /// `NotSock` for a stale descriptor.
    pub fn flight_record(&self, s: SpSocket) -> Result<Vec<FlightEntry>, WsaError> {
        Ok(self.core.resolve(s)?.flights())
    }
}
