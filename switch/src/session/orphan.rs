//! Reading what a dead peer had accepted: written data survives the death of its writer.
//!
//! Place: `recv::settle` calls [`Conn::pull`] when the provider says that the peer has no holder left; its memory can then still be
//! read. The bytes go into our own send ring, which from that moment carries nothing any more.
//! Invariants: first everything that had arrived as messages, then the ring from there to `accepted`: no gap, no byte twice. What
//! the dead peer's head says is copied once and checked. The end is an end of stream only when the peer had finished, or had taken
//! all we sent; else ECONNRESET, as kernel TCP does when a process dies with unread data. Every step may be repeated: the memory
//! read does not change any more. Where both directions had ended nothing is read: the peer may have died in its close, after it
//! took its memory back from the NIC.
//! Edges: `ring-accepted`. Source: design "Written data survives"; R-215, R-216. Leaves out: a peer that cannot be read (R-121).
//!
//! ```text
//!   IDLE -> HEAD_READ -> CHUNK <-> CHUNK_READ        CHUNK at the end of the stream -> flag GONE
//! ```

use driver::spi::{OVERLAPPED_DONE, OVERLAPPED_FREE, Overlapped};
use driver::wsa::WsaError;
use ring_proto::sync::Ordering;

use super::announce::Tidings;
use super::conn::{Conn, sp_buffer};
use super::record::flag;
use super::ring::{HEAD_BYTES, HeadCopy, SendRing};
use super::send::data;

/// Nothing done yet.
const IDLE: u32 = 0;
/// The head is being read.
const HEAD_READ: u32 = 1;
/// The head is known; the next chunk may be read.
const CHUNK: u32 = 2;
/// A chunk is being read.
const CHUNK_READ: u32 = 3;

impl Conn {
    /// Goes as far as it can. Under the receive token.
    pub(super) fn pull(&self) {
        let r = self.record.get();
        let mut polled = false;
        // Relaxed throughout: the receive side's own numbers, under its token.
        while !r.has(flag::GONE) {
            let advanced = match r.orphan_step.load(Ordering::Relaxed) {
                IDLE => self.start_pull(),
                CHUNK => self.next_chunk(),
                step => {
                    // EDGE overlapped-done (acquire): the bytes that were read. EDGE ring-accepted (acquire): the dead writer's
                    // stores, through its NIC.
                    if r.pull_ov.state.load(Ordering::Acquire) != OVERLAPPED_DONE {
                        if polled {
                            return;
                        }
                        polled = true;
                        self.poll();
                        continue;
                    }
                    polled = false;
                    let error = r.pull_ov.error.load(Ordering::Relaxed);
                    if error != 0 {
                        self.ended(WsaError::from_code(error).unwrap_or(WsaError::ConnAborted));
                        return;
                    }
                    if step == HEAD_READ {
                        self.take_head()
                    } else {
                        r.rcv_end
                            .store(r.pull_target.load(Ordering::Relaxed), Ordering::Relaxed);
                        r.orphan_step.store(CHUNK, Ordering::Relaxed);
                        r.in_edge.fetch_add(1, Ordering::Relaxed);
                        self.announce(Tidings::In);
                        true
                    }
                }
            };
            if !advanced {
                return;
            }
        }
    }

    /// Takes what had arrived, closes the sending direction, and reads the peer's head.
    fn start_pull(&self) -> bool {
        let r = self.record.get();
        self.parse_rest();
        // From here on nobody writes our ring or posts from it.
        let stopped = self.with_send(|conn| {
            conn.reap();
            conn.record.get().set(flag::ORPHANED);
        });
        if !stopped {
            return false;
        }
        if r.has(flag::RESET) {
            r.set(flag::GONE);
            return false;
        }
        if self.is_over(r.flags()) {
            r.set(flag::GONE);
            self.edges();
            self.wake_local();
            return false;
        }
        if !self.can_read_peer() {
            self.ended(WsaError::ConnReset);
            return false;
        }
        r.pull_base
            .store(r.rcv_end.load(Ordering::Relaxed), Ordering::Relaxed);
        #[expect(clippy::cast_possible_truncation, reason = "256")]
        let len = HEAD_BYTES as u32;
        self.read_peer(0, 0, len, HEAD_READ)
    }

    /// Checks the head that was read.
    fn take_head(&self) -> bool {
        let r = self.record.get();
        let mut bytes = [0; HEAD_BYTES];
        self.ring.read(data(0), &mut bytes);
        let head = HeadCopy::decode(&bytes);
        let here = r.rcv_end.load(Ordering::Relaxed);
        let ring_len = r.peer_ring_len.load(Ordering::Relaxed);
        let true_enough = head.accepted >= here
            && head.accepted - here <= ring_len
            && head.run_ring < ring_len
            && head.consumed <= r.accepted.load(Ordering::Relaxed)
            && !(r.has(flag::FIN_SEEN) && head.accepted != here);
        if !true_enough {
            self.reset(libc::ECONNRESET, flag::GONE);
            return false;
        }
        r.pull_accepted.store(head.accepted, Ordering::Relaxed);
        r.pull_run_stream.store(head.run_stream, Ordering::Relaxed);
        r.pull_run_ring.store(head.run_ring, Ordering::Relaxed);
        r.pull_consumed.store(head.consumed, Ordering::Relaxed);
        r.pull_fin.store(u32::from(head.fin), Ordering::Relaxed);
        r.orphan_step.store(CHUNK, Ordering::Relaxed);
        true
    }

    /// Reads the next piece, if there is room for it.
    fn next_chunk(&self) -> bool {
        let r = self.record.get();
        let here = r.rcv_end.load(Ordering::Relaxed);
        let accepted = r.pull_accepted.load(Ordering::Relaxed);
        if here >= accepted {
            self.conclude();
            return false;
        }
        let mut base = r.pull_base.load(Ordering::Relaxed);
        let room = self.numbers.ring_len;
        if here - base >= room {
            if r.rcv_next.load(Ordering::Relaxed) < here {
                // The program takes it first; our ring is shorter than the peer's.
                return false;
            }
            base = here;
            r.pull_base.store(base, Ordering::Relaxed);
        }
        let peer = SendRing {
            len: r.peer_ring_len.load(Ordering::Relaxed),
            run_stream: r.pull_run_stream.load(Ordering::Relaxed),
            run_ring: r.pull_run_ring.load(Ordering::Relaxed),
            freed: here,
            accepted,
        };
        let most = (accepted - here)
            .min(room - (here - base))
            .min(u64::from(self.numbers.rdma_max));
        let span = peer.span(here, most);
        let data_offset = u64::from(r.peer_data_offset.load(Ordering::Relaxed));
        r.pull_target.store(here + span.len, Ordering::Relaxed);
        // At most `rdma_max`, a u32.
        let len = u32::try_from(span.len).unwrap_or(u32::MAX);
        self.read_peer(data_offset + span.offset, here - base, len, CHUNK_READ)
    }

    /// Starts an RDMA READ of `len` bytes at `from` in the peer's memory to `to` in the data part of our ring.
    fn read_peer(&self, from: u64, to: u64, len: u32, step: u32) -> bool {
        let r = self.record.get();
        let overlapped: &Overlapped = &r.pull_ov;
        overlapped.error.store(0, Ordering::Relaxed);
        overlapped.state.store(OVERLAPPED_FREE, Ordering::Relaxed);
        let target = sp_buffer(self.ring.at(data(to)), len, Some(self.numbers.ring_handle));
        let started = self.provider.sp.wsp_rdma_read(
            self.sp,
            &[target],
            &r.peer_ring.load(),
            from,
            overlapped,
            false,
        );
        match started {
            Ok(()) | Err(WsaError::IoPending) => {
                r.orphan_step.store(step, Ordering::Relaxed);
                true
            }
            // R-132: sends that were under way still hold the queue; their completions free it.
            Err(WsaError::NoBufs) => false,
            Err(error) => {
                self.ended(error);
                false
            }
        }
    }

    /// Everything is here: says how the stream ends.
    fn conclude(&self) {
        let r = self.record.get();
        let took_all =
            r.pull_consumed.load(Ordering::Relaxed) >= r.accepted.load(Ordering::Relaxed);
        let finished = took_all || r.pull_fin.load(Ordering::Relaxed) != 0 || r.has(flag::FIN_SEEN);
        if finished {
            r.set(flag::FIN_SEEN);
        }
        if took_all {
            r.set(flag::GONE);
            self.edges();
            self.wake_local();
        } else {
            // What the dead peer did not take is lost. After its FIN only a writer is told (kernel: CLOSE_WAIT).
            let error = if finished {
                libc::EPIPE
            } else {
                libc::ECONNRESET
            };
            self.reset(error, flag::GONE);
        }
    }
}
