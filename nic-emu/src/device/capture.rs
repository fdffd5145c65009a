//! Captures: what the ports of chosen nodes see, for readers in other processes.
//!
//! Place: links and the connection manager tell of each packet and message here; the control thread starts and stops captures.
//! Invariants: nothing here waits or fails: a record without room is dropped and counted (`crate::capture`). A connection of a captured
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
use crate::capture::{CaptureError, Writer};

/// Most captures at once.
const CAPTURES_LIMIT: usize = 8;
/// Fewest and most bytes of a packet that a capture asks for.
const SNAPLEN: (u32, u32) = (64, 65_535);

/// A capture under way.
#[derive(Debug)]
struct Capture {
    id: u32,
    /// By node.
    ports: Vec<bool>,
    snaplen: u32,
    ring: Writer,
}

impl Capture {
    fn names(&self, node: u16) -> bool {
        self.ports.get(usize::from(node)).copied().unwrap_or(false)
    }
}

/// All captures.
#[derive(Debug, Default)]
pub(crate) struct Captures {
    all: Vec<Capture>,
    last: u32,
}

/// Where and how a packet is seen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sight {
    pub(crate) at_ns: u64,
    pub(crate) from: NodeId,
    pub(crate) to: NodeId,
    /// It arrives; else it leaves.
    pub(crate) is_inbound: bool,
    /// Bits of [`record`].
    pub(crate) fate: u8,
    /// The bit that has flipped on the way.
    pub(crate) flipped: Option<u32>,
}

impl Sight {
    fn record(self, kind: u8) -> Record {
        let port = if self.is_inbound { self.to } else { self.from };
        Record {
            at_ns: self.at_ns,
            damaged_bit: self.flipped.unwrap_or(0),
            kind,
            direction: if self.is_inbound {
                record::INBOUND
            } else {
                record::OUTBOUND
            },
            fate: self.fate,
            port: port.0,
            from: self.from.0,
            to: self.to.0,
            ..Record::default()
        }
    }
}

impl Captures {
    #[inline]
    pub(crate) fn is_on(&self) -> bool {
        !self.all.is_empty()
    }

    /// Whether the port of a node is captured.
    pub(crate) fn names(&self, node: NodeId) -> bool {
        self.all.iter().any(|capture| capture.names(node.0))
    }

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

    fn push(&mut self, record: Record, bytes: &[u8]) {
        let whole_bytes = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        for capture in &mut self.all {
            if !capture.names(record.port) {
                continue;
            }
            let is_cut = record.kind == record::PACKET;
            let kept = match bytes.get(..capture.snaplen as usize) {
                Some(kept) if is_cut => kept,
                _ => bytes,
            };
            let record = Record {
                bytes: u32::try_from(kept.len()).unwrap_or(u32::MAX),
                whole_bytes,
                ..record
            };
            capture.ring.push(&record, &[kept]);
        }
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
        let (least, most) = SNAPLEN;
        if !(least..=most).contains(&snaplen) {
            return Err(CaptureError::Snaplen {
                snaplen,
                least,
                most,
            });
        }
        if self.captures.all.len() >= CAPTURES_LIMIT {
            return Err(CaptureError::Limit {
                limit: CAPTURES_LIMIT,
            });
        }
        let mut ports = vec![false; self.nodes.iter().count()];
        for node in nodes {
            if let Some(port) = ports.get_mut(usize::from(node.0)) {
                *port = true;
            }
        }
        self.captures.last = self.captures.last.wrapping_add(1);
        let id = self.captures.last;
        self.captures.all.push(Capture {
            id,
            ports,
            snaplen,
            ring,
        });
        self.links.is_used = true;
        // Whoever waits in message mode goes on by packets.
        for &node in nodes {
            self.activate_between(node, node);
        }
        Ok(id)
    }

    /// Ends a capture. Its ring stays with its reader.
    pub fn stop_capture(&mut self, id: u32) {
        let Some(at) = self.captures.all.iter().position(|it| it.id == id) else {
            return;
        };
        let ended = self.captures.all.swap_remove(at);
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
