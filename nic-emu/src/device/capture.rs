//! Captures: what the ports of chosen nodes see, for readers in other processes.
//!
//! Place: links and the connection manager tell of each packet and message here; the control thread starts and stops captures.
//! Invariants: nothing here waits or fails (`crate::capture::running`). A connection of a captured
//! node goes by packets, so that what a capture shows has really been sent; it goes back to messages when nothing of it is under way.
//! The same packet is seen where it leaves and where it arrives, with the fate it has there.
//! Hot: nothing; message mode asks `Links::is_used`, which it asks anyway. Source: ours, after AF_PACKET.

use ring_proto::admin::CmRecord;
use ring_proto::eqe::CmStatus;
use ring_proto::ids::NodeId;
use zerocopy::IntoBytes;

use super::Device;
use super::packet::wire::Header;
use super::qp::QpRef;
use crate::capture::record::{self, CmMessage, Record};
use crate::capture::running::{Captures, Sight, Wanted};
use crate::capture::{CaptureError, Writer};

impl Captures {
    /// A packet of a QP is seen.
    #[cold]
    pub(crate) fn packet(&mut self, sight: Sight, frame: &[u8]) {
        let mut mended = Vec::new();
        let frame = match sight.flipped {
            // What arrives damaged is shown as its header was meant: the bit is told apart.
            Some(bit) => {
                mended.extend_from_slice(frame);
                super::link::flip_bit(&mut mended, bit.into());
                &mended
            }
            None => frame,
        };
        let Some((header, payload)) = Header::open(frame) else {
            return;
        };
        let record = Record {
            header,
            ..sight.record(record::PACKET)
        };
        self.push(record, payload);
    }
}

/// What the connection manager says, for captures.
#[derive(Clone, Copy, Debug)]
pub(crate) enum CmSays {
    Request,
    Refusal(CmStatus),
    Reply,
    Ready,
    Disconnect,
    Disconnected,
}

/// A message of the connection manager: who says what to whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CmSaid {
    pub(crate) says: CmSays,
    /// Sender and receiver, where they have QPs.
    pub(crate) by: Option<QpRef>,
    pub(crate) to: Option<QpRef>,
}

impl Device {
    /// Starts a capture of the ports of `nodes` into a ring; its number.
    ///
    /// # Errors
    /// [`CaptureError::Limit`], [`CaptureError::Snaplen`].
    pub fn start_capture(
        &mut self,
        nodes: &[NodeId],
        snaplen: u32,
        ring: Writer,
    ) -> Result<u32, CaptureError> {
        let id = self.captures.start(Wanted::new(nodes, snaplen)?, ring)?;
        self.links.is_used = true;
        // Whoever waits in message mode goes on by packets.
        for &node in nodes {
            self.activate_between(node, node);
        }
        Ok(id)
    }

    /// Ends a capture. Its ring stays with its reader.
    pub fn stop_capture(&mut self, id: u32) {
        let Some(ended) = self.captures.stop(id) else {
            return;
        };
        let nodes: Vec<_> = self.nodes.iter().map(|(node, _)| node).collect();
        for node in nodes.into_iter().filter(|node| ended.names(node.0)) {
            self.activate_between(node, node);
        }
    }

    /// A message of the connection manager is seen. `record`: what travels with it, else that of the connection.
    #[cold]
    pub(crate) fn capture_cm(&mut self, sight: Sight, said: CmSaid, record: Option<&CmRecord>) {
        let (own, peer) = (said.by, said.to);
        let known = [own, peer]
            .into_iter()
            .flatten()
            .find_map(|at| self.qp(at)?.record.as_deref());
        let is_end = matches!(said.says, CmSays::Disconnect | CmSays::Disconnected);
        if is_end && known.is_none() {
            // Not joined by the connection manager.
            return;
        }
        let record = record.or(known).copied().unwrap_or_default();
        let mut message = CmMessage {
            qpn: own.map_or(0, |at| at.qpn),
            peer_qpn: peer.map_or(0, |at| at.qpn),
            function: own.map_or(0, |at| at.function.0),
            peer_function: peer.map_or(0, |at| at.function.0),
            message: match said.says {
                CmSays::Request => record::REQ,
                CmSays::Refusal(_) => record::REJ,
                CmSays::Reply => record::REP,
                CmSays::Ready => record::RTU,
                CmSays::Disconnect => record::DREQ,
                CmSays::Disconnected => record::DREP,
            },
            ..CmMessage::default()
        };
        if let CmSays::Refusal(status) = said.says {
            message.status = u8::try_from(status.0).unwrap_or(u8::MAX);
        }
        if let Some(qp) = own.and_then(|at| self.qp(at)) {
            let settings = qp.transport.settings();
            message.psn = settings.sq_psn;
            message.path_mtu = settings.path_mtu;
            message.timeout = settings.timeout;
            message.retry_cnt = settings.retry_cnt;
            message.rnr_retry = qp.rnr_retry;
            message.responder_resources = qp.max_dest_rd_atomic;
            message.initiator_depth = qp.max_rd_atomic;
            message.has_srq = (qp.srqn != 0).into();
        }
        let bytes = [message.as_bytes(), record.as_bytes()].concat();
        self.captures.push(sight.record(record::CM), &bytes);
    }

    /// A message of the connection manager that takes no time: seen at both ends.
    pub(crate) fn capture_cm_at_once(
        &mut self,
        from: NodeId,
        to: NodeId,
        said: CmSaid,
        record: Option<&CmRecord>,
    ) {
        if !self.captures.is_on() {
            return;
        }
        for is_inbound in [false, true] {
            let sight = Sight {
                at_ns: self.clock.now_ns(),
                from,
                to,
                is_inbound,
                fate: 0,
                flipped: None,
            };
            self.capture_cm(sight, said, record);
        }
    }

    /// Whether a capture wants what goes between two nodes as packets.
    pub(crate) fn captures_want_packets(&self, one: NodeId, other: NodeId) -> bool {
        self.captures.is_on() && (self.captures.names(one) || self.captures.names(other))
    }
}
