//! Bursts: the plain WQEs of a turn, served with everything they have in common looked up once.
//!
//! Place: `serve` asks a turn for the next WQE that is not plain; on the way there [`Burst::run`] serves those that are. Plain is a SEND,
//! RDMA WRITE or RDMA READ of one straight piece on each side, between two QPs that are connected and in order, while nothing watches
//! or impairs them.
//! Invariants: a burst makes every check that the long way makes, by the same functions, and decides only when all of them
//! pass. Otherwise it has changed nothing and hands on its copy of the WQE, so that each error, hold and special case has its one
//! place in `transfer`. No client memory is read twice for it: a receive that was looked at stays in `receiving`. While a burst
//! lasts nobody else works on the device, so what it looked up holds; its positions and counts are written back when it ends, also
//! by a panic.
//! Hot: everything here. Source: verbs RC semantics, as `transfer`. Leaves out: whatever is not plain.
//!
//! ```text
//!            per turn                                    per WQE
//!  look up functions, QPs -> copy what is needed   ->   snapshot, check, keys of both ends, one copy, CQEs   -> write back
//! ```

use ring_proto::admin::Access;
use ring_proto::shared::WqeRing;
use ring_proto::status::{Opcode, QpState, Syndrome, WcStatus};
use ring_proto::sync::Ordering;
use ring_proto::wqe::WqeFlags;

use super::Device;
use super::cq::Completed;
use super::engine::Work;
use super::function::{Ends, Function};
use super::node::Nodes;
use super::qp::{Qp, QpRef};
use super::queue::{self, Fetched, RecvWork, SendWork};
use super::serve::{Next, Turn};
use super::transfer::{copy_piece, receive_entry};

/// A burst under way: what the WQEs of a turn have in common.
struct Burst<'a> {
    ends: Ends<'a>,
    lists: &'a mut Work,
    nodes: &'a mut Nodes,
    at: QpRef,
    peer: QpRef,
    requester: Requester,
    responder: Responder,
    done: Done,
}

/// Copies of what the WQEs need of their own QP.
struct Requester {
    ring: WqeRing,
    consumer: u32,
    producer: u32,
    pdn: u32,
    cqn: u32,
    may_fetch: bool,
}

/// Copies of what they need of the peer's.
struct Responder {
    access: Access,
    pdn: u32,
    cqn: u32,
    /// `None` when a receive has to be found the long way.
    receives: Option<Receives>,
}

/// The peer's receive queue.
struct Receives {
    ring: WqeRing,
    consumer: u32,
    producer: u32,
    slot: u32,
    pdn: u32,
}

/// A receive whose message may land.
struct Landing {
    to: *mut u8,
    wr_id: u64,
    end: u32,
}

/// What was done and is not yet counted.
#[derive(Default)]
struct Done {
    wqes: u64,
    sent_bytes: u64,
    fetched_bytes: u64,
}

impl Device {
    /// Serves the plain WQEs at the front of a send queue; returns what comes then.
    #[inline]
    pub(crate) fn next_special(&mut self, at: QpRef, work: &mut SendWork, turn: &mut Turn) -> Next {
        if let Some(mut burst) = self.open_burst(at) {
            return burst.run(work, turn);
        }
        self.fetch_next(at, work)
    }

    /// Whether something is on that looks at single WQEs, or that may stand between two QPs: one test, so that none of it costs
    /// anything when it is off.
    #[inline]
    fn is_unusual(&self) -> bool {
        self.diagnosis.validator.is_some()
            | self.diagnosis.pause.is_careful()
            | self.nodes.some_port_is_down()
            | self.faults.has_any()
    }

    /// Looks up what a turn needs; `None` when no WQE of it can be plain.
    #[inline]
    fn open_burst(&mut self, at: QpRef) -> Option<Burst<'_>> {
        if self.is_unusual() {
            return None;
        }
        let peer = self.qp(at)?.peer?;
        let ends = self.functions.ends(at, peer)?;
        let own = ends.own.qps.find(at.qpn)?;
        let other = ends.peer().qps.find(peer.qpn)?;
        if !own.is_running() || !other.answers(at) {
            return None;
        }
        let requester = Requester {
            ring: own.sq.ring?,
            consumer: own.sq.consumer,
            producer: own.sq.producer,
            pdn: own.pdn,
            cqn: own.send_cqn,
            may_fetch: own.max_rd_atomic != 0 && other.max_dest_rd_atomic != 0,
        };
        let has_own_receives = other.srqn == 0 && other.receiving.is_none();
        let responder = Responder {
            access: other.access,
            pdn: other.pdn,
            cqn: other.recv_cqn,
            receives: other
                .rq
                .ring
                .filter(|_| has_own_receives)
                .map(|ring| Receives {
                    ring,
                    consumer: other.rq.consumer,
                    producer: other.rq.producer,
                    slot: other.slot,
                    pdn: other.recv_pdn,
                }),
        };
        Some(Burst {
            ends,
            lists: &mut self.work,
            nodes: &mut self.nodes,
            at,
            peer,
            requester,
            responder,
            done: Done::default(),
        })
    }
}

impl Qp {
    /// Whether its send queue runs, with nothing taken out that waits.
    #[inline]
    fn is_running(&self) -> bool {
        self.state == QpState::RTS && !self.is_held && self.hold_timer.is_none()
    }

    /// Whether it takes requests of that peer, which it has heard of before.
    #[inline]
    fn answers(&self, at: QpRef) -> bool {
        let is_in_order = match self.state {
            QpState::RTS | QpState::SQD => true,
            QpState::RTR => self.is_established,
            _ => false,
        };
        is_in_order && !self.is_orphan && self.peer == Some(at)
    }
}

impl Burst<'_> {
    /// Serves WQEs until one is not plain, none is left, or the turn is over.
    #[inline]
    fn run(&mut self, work: &mut SendWork, turn: &mut Turn) -> Next {
        while !turn.is_over() {
            let requester = &mut self.requester;
            if requester.consumer == requester.producer {
                return Next::Nothing;
            }
            match queue::fetch_send(
                &requester.ring,
                requester.consumer,
                requester.producer,
                work,
            ) {
                Fetched::Work => requester.consumer = work.end,
                Fetched::Nop(end) => {
                    requester.consumer = end;
                    turn.served += 1;
                    continue;
                }
                Fetched::Bad(bad) => {
                    requester.consumer = bad.end;
                    return Next::Bad(bad);
                }
            }
            let Some(moved) = self.serve(work, turn.bytes_left) else {
                return Next::Work;
            };
            self.finish(work);
            turn.bytes_left -= moved;
            turn.served += 1;
        }
        Next::Enough
    }

    /// Executes a WQE if it is plain; returns its bytes.
    #[inline]
    fn serve(&mut self, work: &SendWork, limit: u32) -> Option<u32> {
        let total = work.total();
        if total == 0 || total > limit {
            return None;
        }
        match work.opcode() {
            Opcode::RDMA_WRITE => {
                let from = self.source(work)?;
                let to = self.remote(work, Access::REMOTE_WRITE)?;
                copy_piece(to, from, total as usize);
                self.done.sent_bytes += u64::from(total);
            }
            Opcode::SEND | Opcode::SEND_WITH_IMM => {
                let from = self.source(work)?;
                let Landing { to, wr_id, end } = self.receive(total)?;
                copy_piece(to, from, total as usize);
                self.done.sent_bytes += u64::from(total);
                let entry = receive_entry(work, (wr_id, end), self.at.qpn, self.peer.qpn);
                let (place, cqn) = (self.peer.place, self.responder.cqn);
                complete(
                    self.ends.peer_mut(),
                    self.lists,
                    self.nodes,
                    place,
                    cqn,
                    &entry,
                );
            }
            Opcode::RDMA_READ if self.requester.may_fetch => {
                let to = self.local(work, true)?;
                let from = self.remote(work, Access::REMOTE_READ)?;
                copy_piece(to, from, total as usize);
                self.done.fetched_bytes += u64::from(total);
            }
            _ => return None,
        }
        Some(total)
    }

    /// Where the bytes of a SEND or WRITE come from.
    #[inline]
    fn source(&self, work: &SendWork) -> Option<*const u8> {
        match work.inline() {
            Some(bytes) => Some(bytes.as_ptr()),
            None => self.local(work, false).map(<*mut u8>::cast_const),
        }
    }

    /// The requester's memory, when it is one piece.
    #[inline]
    fn local(&self, work: &SendWork, write: bool) -> Option<*mut u8> {
        let regions = &self.ends.own.regions;
        regions
            .local(work.only_sge()?, self.requester.pdn, write)
            .ok()
    }

    /// The peer's memory that a WRITE or READ names.
    #[inline]
    fn remote(&self, work: &SendWork, need: Access) -> Option<*mut u8> {
        if !self.responder.access.contains(need) {
            return None;
        }
        let (key, addr, len) = (work.rkey(), work.remote_addr(), work.total());
        let (pdn, qpn) = (self.responder.pdn, self.peer.qpn);
        let regions = &self.ends.peer().regions;
        regions.remote(key, addr, len.into(), pdn, qpn, need).ok()
    }

    /// Takes the next receive when a message of `total` bytes fits into its one piece.
    #[inline]
    fn receive(&mut self, total: u32) -> Option<Landing> {
        let peer = self.ends.peer();
        let receives = self.responder.receives.as_mut()?;
        if receives.consumer == receives.producer {
            let line = peer.bar.line(receives.slot);
            // EDGE sq-publish (acquire): as in `Qp::refresh`.
            let claimed = line.rq_producer().load(Ordering::Acquire);
            let depth = receives.ring.depth();
            if claimed == receives.producer
                || !depth.accepts_producer(claimed, receives.producer, receives.consumer)
            {
                return None;
            }
            receives.producer = claimed;
        }
        let receive = RecvWork::fetch(&receives.ring, receives.consumer);
        receives.consumer = receive.end;
        if u64::from(total) <= receive.capacity
            && let Some(sge) = receive.only_sge()
            // All of the element, as the long way does.
            && let Ok(to) = peer.regions.local(sge, receives.pdn, true)
        {
            return Some(Landing {
                to,
                wr_id: receive.wr_id(),
                end: receive.end,
            });
        }
        self.keep_receive(receive);
        None
    }

    /// Leaves a receive that is not plain where the long way looks for it.
    #[cold]
    fn keep_receive(&mut self, receive: RecvWork) {
        self.write_back_receives();
        let qpn = self.peer.qpn;
        if let Some(other) = self.ends.peer_mut().qps.find_mut(qpn) {
            other.receiving = Some(receive);
        }
        self.responder.receives = None;
    }

    /// The requester's completion, or the recorder's note when it gets none.
    #[inline]
    fn finish(&mut self, work: &SendWork) {
        self.done.wqes += 1;
        let (place, cqn) = (self.at.place, self.requester.cqn);
        if work.has(WqeFlags::SIGNALED) {
            let entry = work.entry(self.at.qpn, WcStatus::SUCCESS, Syndrome::NONE);
            complete(self.ends.own, self.lists, self.nodes, place, cqn, &entry);
        } else {
            let done = work.done_event(self.at.qpn, self.lists.now_ns);
            self.ends.own.recorder.push(done);
        }
    }

    fn write_back_receives(&mut self) {
        let qpn = self.peer.qpn;
        if let Some(receives) = &self.responder.receives
            && let Some(other) = self.ends.peer_mut().qps.find_mut(qpn)
        {
            other.rq.consumer = receives.consumer;
            other.rq.producer = receives.producer;
        }
    }
}

impl Drop for Burst<'_> {
    fn drop(&mut self) {
        self.write_back_receives();
        let Done {
            wqes,
            sent_bytes,
            fetched_bytes,
        } = self.done;
        let own = &mut *self.ends.own;
        if let Some(qp) = own.qps.find_mut(self.at.qpn) {
            qp.sq.consumer = self.requester.consumer;
        }
        own.wqes += wqes;
        own.tx_bytes += sent_bytes;
        let counters = self.nodes.counters(own.node);
        counters.wqes += wqes;
        counters.tx_payload_bytes += sent_bytes;
        counters.rx_payload_bytes += fetched_bytes;
        let peer = self.ends.peer_mut();
        peer.tx_bytes += fetched_bytes;
        let counters = self.nodes.counters(peer.node);
        counters.tx_payload_bytes += fetched_bytes;
        counters.rx_payload_bytes += sent_bytes;
    }
}

/// Writes the CQE of something that succeeded.
#[inline]
fn complete(
    function: &mut Function,
    lists: &mut Work,
    nodes: &mut Nodes,
    place: u32,
    cqn: u32,
    entry: &Completed,
) {
    let pushed = function.complete(cqn, entry, lists.now_ns);
    lists.completed(place, cqn, pushed, nodes.counters(function.node));
}
