//! What captures see of Ethernet frames.
//!
//! Place: [`super::forward`] tells of each frame where it leaves and where it arrives; the control thread starts and stops captures.
//! Invariants: without a capture a frame costs one load of a word that nobody writes. The lock is held for the copies of one frame, and
//! by the control thread to change the list. Source: ours.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ring_proto::ids::NodeId;
use ring_proto::sync::{AtomicU32, Ordering};

use crate::capture::running::{Captures, Sight, Wanted};
use crate::capture::{CaptureError, Writer, record};

/// The captures of a wire; clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct WireCaptures(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    is_on: AtomicU32,
    captures: Mutex<Captures>,
}

impl WireCaptures {
    /// Starts one; its number.
    pub(crate) fn start(&self, wanted: Wanted, ring: Writer) -> Result<u32, CaptureError> {
        let id = self.lock().start(wanted, ring)?;
        // Relaxed: the lock is what orders; a frame that comes meanwhile is before the capture.
        self.0.is_on.store(1, Ordering::Relaxed);
        Ok(id)
    }

    /// Ends one. Its ring stays with its reader.
    pub(crate) fn stop(&self, id: u32) {
        let mut captures = self.lock();
        captures.stop(id);
        // Relaxed: as above.
        let is_on = u32::from(captures.is_on());
        self.0.is_on.store(is_on, Ordering::Relaxed);
    }

    /// A frame leaves the port of `from`.
    pub(crate) fn leaves(&self, at_ns: u64, from: NodeId, to: NodeId, fate: u8, frame: &[u8]) {
        self.see(frame, || Sight {
            at_ns,
            from,
            to,
            is_inbound: false,
            fate,
            flipped: None,
        });
    }

    /// A frame arrives at the port of `to`.
    pub(crate) fn arrives(&self, at_ns: u64, from: NodeId, to: NodeId, frame: &[u8]) {
        self.see(frame, || Sight {
            at_ns,
            from,
            to,
            is_inbound: true,
            fate: 0,
            flipped: None,
        });
    }

    #[inline]
    fn see(&self, frame: &[u8], sight: impl FnOnce() -> Sight) {
        // Relaxed: see `start`.
        if self.0.is_on.load(Ordering::Relaxed) != 0 {
            self.lock().push(sight().record(record::FRAME), frame);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Captures> {
        self.0
            .captures
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
