//! Packet mode: the reliable transport of QPs whose link is impaired.
//!
//! Place: `serve` comes here instead of to `transfer` where a link between the two nodes loses, delays or disorders packets. Below the
//! verbs: the same checks, statuses and syndromes; what differs is time, and what a link that stays bad does in the end.
//! Invariants: a QP takes up packet mode at any point of its send queue, in the middle of a message too, and leaves it only when
//! nothing of it is under way; PSNs go on where they were. A frame is for the QP that names its sender as its peer, or for nobody.
//! Source: IBA vol. 1, chapter 9 (reliable connection); docs/device.md, section "Links and packets". Hot: nothing but
//! `Links::is_used`, which `serve` asks once a turn. Leaves out: end-to-end credits, path migration, the wire format of RoCE.
//!
//! ```text
//!   SQ -> requester -> frames ~~ link ~~> responder -> memory, receives
//!          ^  timer     <~~ link ~~ ACK, NAK, RNR NAK, READ responses
//! ```

use ring_proto::ids::{FunctionId, NodeId};

mod attributes;
mod bytes;
mod requester;
mod responder;
mod window;
pub(crate) mod wire;

pub(crate) use attributes::{PSN_MASK, Transport, rnr_wait_ns};

pub(crate) use requester::backoff_ns;

use responder::Responder;
use window::Requester;
use wire::Header;

use super::Device;
use super::counters::PacketCounters;
use super::fault::{Fate, FaultPoint};
use super::qp::QpRef;
use super::queue::SendWork;

/// Both halves of a QP in packet mode.
#[derive(Debug)]
pub(crate) struct Ends {
    requester: Requester,
    responder: Responder,
}

impl Ends {
    /// The oldest WQE under way, for a flush: wr_id, opcode, and the position behind it.
    pub(crate) fn take_flushed(&mut self) -> Option<(u64, u8, u32)> {
        self.requester.take_flushed()
    }

    /// Whether WQEs are under way.
    pub(crate) fn is_busy(&self) -> bool {
        self.requester.is_busy()
    }
}

impl Device {
    /// Whether the send queue of a QP goes by packets. Asked once a link was impaired.
    #[cold]
    #[inline(never)]
    pub(crate) fn goes_by_packets(&self, at: QpRef) -> bool {
        let Some(qp) = self.qp(at) else {
            return false;
        };
        if qp.ends.as_ref().is_some_and(|ends| ends.is_busy()) {
            return true;
        }
        let Some((own, other)) = qp.peer.and_then(|peer| self.nodes_of(at, peer)) else {
            return false;
        };
        self.links.is_impaired(own, other)
            || self.links.is_impaired(other, own)
            || self.captures_want_packets(own, other)
            || qp
                .peer
                .is_some_and(|peer| self.faults_want_packets((at, own), (peer, other)))
    }

    /// Nodes of a QP and of its peer.
    fn nodes_of(&self, at: QpRef, peer: QpRef) -> Option<(NodeId, NodeId)> {
        let own = self.functions.at(at.place)?;
        let other = self.functions.at(peer.place)?;
        (own.id == at.function && other.id == peer.function).then_some((own.node, other.node))
    }

    fn path(&self, at: QpRef) -> Option<(NodeId, NodeId)> {
        self.nodes_of(at, self.qp(at)?.peer?)
    }

    /// Whether both directions of a QP's link are up.
    fn is_path_up(&self, at: QpRef) -> bool {
        self.path(at).is_some_and(|(own, other)| {
            !self.links.is_cut(own, other) && !self.links.is_cut(other, own)
        })
    }

    /// When everything that a QP and its peer put on the wire has left.
    fn wire_free_ns(&self, at: QpRef) -> u64 {
        self.path(at).map_or(0, |(own, other)| {
            let there = self.links.busy_until_ns(own, other);
            there.max(self.links.busy_until_ns(other, own))
        })
    }

    /// Payload bytes of a full packet of a QP: its own path MTU, or the link's where that is less.
    fn path_mtu(&self, at: QpRef) -> u32 {
        let own = self.qp(at).map_or(u32::MAX, |qp| qp.transport.mtu());
        let link = self
            .path(at)
            .map_or(u32::MAX, |(own, other)| self.links.path_mtu(own, other));
        own.min(link)
    }

    /// Makes requester and responder of a QP, once.
    fn open_ends(&mut self, at: QpRef) {
        if let Some(qp) = self.qp_mut(at)
            && qp.ends.is_none()
        {
            qp.ends = Some(Box::new(Ends {
                requester: Requester::new(qp.transport),
                responder: Responder::new(qp.transport),
            }));
        }
    }

    /// A QP loses its queues or is reset: nothing of it is under way any more. Its responder stays when `keep_responder`.
    pub(crate) fn close_ends(&mut self, at: QpRef, keep_responder: bool) {
        self.stop_packets(at);
        let Some(qp) = self.qp_mut(at) else {
            return;
        };
        let Some(ends) = &mut qp.ends else {
            return;
        };
        while ends.take_flushed().is_some() {}
        if keep_responder {
            return;
        }
        qp.ends = None;
        let (function, qpn) = (at.function.0, at.qpn);
        self.links.forget(|frame| {
            Header::open(frame).is_some_and(|(header, _)| {
                (header.from_function, header.from_qpn) == (function, qpn)
                    || (header.to_function, header.to_qpn) == (function, qpn)
            })
        });
    }

    /// Stops the timer of a requester.
    pub(crate) fn stop_packets(&mut self, at: QpRef) {
        let timer = self
            .qp_mut(at)
            .and_then(|qp| qp.ends.as_mut()?.requester.take_timer());
        if let Some(key) = timer {
            self.timers.cancel(key);
        }
    }

    /// A message that message mode began goes on by packets: the peer's responder knows of its first part.
    fn hand_over(&mut self, at: QpRef, work: &SendWork) {
        let Some(peer) = self.connected_peer(at).filter(|_| !work.fetches()) else {
            return;
        };
        self.open_ends(peer);
        let begun = Box::new(work.begun());
        if let Some(ends) = self.qp_mut(peer).and_then(|qp| qp.ends.as_mut()) {
            ends.responder.take_over(begun);
        }
    }

    /// Puts a frame of a QP on the link.
    fn send_frame(&mut self, from: QpRef, to: QpRef, header: Header, payload: &[u8]) {
        let Some((own, other)) = self.nodes_of(from, to) else {
            return;
        };
        let header = Header {
            from_function: from.function.0,
            from_qpn: from.qpn,
            to_function: to.function.0,
            to_qpn: to.qpn,
            ..header
        };
        let fate = if self.faults.has(FaultPoint::Packet) {
            self.fault_packet(from, header.opcode)
        } else {
            Fate::default()
        };
        self.put_on_link(own, other, header.frame(payload), fate);
    }

    fn count_packet(&mut self, at: QpRef, is_again: bool) {
        if let Some(function) = self.functions.at(at.place) {
            let counters = self.nodes.counters(function.node);
            counters.tx_packets += 1;
            counters.retransmitted_packets += u64::from(is_again);
        }
        self.count(at, |counters| {
            counters.tx_packets += 1;
            counters.retransmitted_packets += u64::from(is_again);
        });
    }

    fn count(&mut self, at: QpRef, what: impl FnOnce(&mut PacketCounters)) {
        if let Some(qp) = self.qp_mut(at) {
            what(qp.packet_counters.get_or_insert_default());
        }
    }

    /// A frame came off a link; false when its check does not fit.
    pub(crate) fn frame_arrived(&mut self, frame: &[u8]) -> bool {
        let Some((header, payload)) = Header::open(frame) else {
            return false;
        };
        let named = |device: &Self, function, qpn| {
            let function = FunctionId(function);
            let place = device.place_of(function).ok()?;
            Some(QpRef {
                place,
                function,
                qpn,
            })
        };
        let (Some(from), Some(own)) = (
            named(self, header.from_function, header.from_qpn),
            named(self, header.to_function, header.to_qpn),
        ) else {
            return true;
        };
        if self.qp(own).is_none_or(|qp| qp.peer != Some(from)) {
            return true;
        }
        if header.opcode < wire::READ_RESPONSE {
            self.request_arrived(own, from, &header, payload);
        } else {
            self.response_arrived(own, &header, payload);
        }
        true
    }

    /// A frame of these bytes came off a link, its check made to fit: for the fuzz targets.
    #[cfg(any(test, feature = "fuzz"))]
    pub(crate) fn bytes_arrived(&mut self, bytes: &[u8]) {
        use zerocopy::FromBytes;
        if let Ok((header, payload)) = Header::read_from_prefix(bytes) {
            self.frame_arrived(&header.frame(payload));
        }
    }

    /// Wakes every QP whose link lies between two nodes.
    pub(crate) fn activate_between(&mut self, one: NodeId, other: NodeId) {
        let mut hit = Vec::new();
        for (place, function) in self.functions.iter() {
            if function.node != one && function.node != other {
                continue;
            }
            for (qpn, qp) in function.qps.iter() {
                if qp.peer.is_some() {
                    hit.push(QpRef {
                        place,
                        function: function.id,
                        qpn,
                    });
                }
            }
        }
        for at in hit {
            self.activate(at);
        }
    }
}
