//! HELLO and HELLO_ACK: what the two ends tell each other before the first byte.
//!
//! Place: `send` asks for our own message, `recv` hands over the peer's, already decoded.
//! Invariants: receives are posted before HELLO or HELLO_ACK states how many; only after the exchange are connect
//! and accept completed. The active side is established by HELLO_ACK, the passive side when it has posted its own.
//! Source. Leaves out: the bound on the wait, which `close::clockwork` keeps.

use ring_proto::sync::Ordering;

use super::conn::{Conn, PAYLOAD_MAX};
use super::message::{FEATURE_RDMA_READ, HEADER_LEN, Hello};
use super::record::flag;
use super::recv::Refused;
use super::ring::HEADER_BYTES;
use super::start::Role;

impl Conn {
    /// What we tell the peer.
    pub(super) fn own_hello(&self) -> Hello {
        let r = self.record.get();
        #[expect(clippy::cast_possible_truncation, reason = "4096")]
        let data_offset = HEADER_BYTES as u32;
        Hello {
            features: if self.provider.has_rdma_read {
                FEATURE_RDMA_READ
            } else {
                0
            },
            buffer_len: self.numbers.message_max,
            receives: self.numbers.receives,
            ring: r.own_ring.load(),
            ring_len: self.numbers.ring_len,
            data_offset,
            rdma_threshold: 0,
        }
    }

    /// Takes over what the peer told. Under the receive token.
    pub(super) fn accept_hello(&self, hello: &Hello) -> Result<(), Refused> {
        let r = self.record.get();
        #[expect(clippy::cast_possible_truncation, reason = "32")]
        let header = HEADER_LEN as u32;
        let message_max = hello.buffer_len.min(self.numbers.message_max);
        let payload_max = message_max.checked_sub(header).ok_or(Refused)?;
        let features = u32::try_from(hello.features).map_err(|_| Refused)?;
        r.peer_ring.store(&hello.ring);
        // Relaxed: released by the flag.
        r.peer_ring_len.store(hello.ring_len, Ordering::Relaxed);
        r.peer_data_offset
            .store(hello.data_offset, Ordering::Relaxed);
        r.peer_receives.store(hello.receives, Ordering::Relaxed);
        r.peer_features.store(features, Ordering::Relaxed);
        r.payload_max
            .store(payload_max.min(PAYLOAD_MAX), Ordering::Relaxed);
        r.set(flag::HELLO_SEEN);
        if self.numbers.role == Role::Active {
            self.establish();
        }
        Ok(())
    }

    /// The negotiation is over.
    pub(super) fn establish(&self) {
        let r = self.record.get();
        if r.set(flag::ESTABLISHED) & flag::ESTABLISHED == 0 {
            // Relaxed: a time; nobody waits for it any more.
            r.deadline_ns.store(0, Ordering::Relaxed);
            self.edges();
            self.wake_local();
        }
    }
}
