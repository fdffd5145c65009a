//! Captures under way: whose ports they want, how much of a packet, and the ring that takes it.
//!
//! Place: the engine has a list for what its links carry, the wire of namespace mode another for Ethernet frames; each writes rings of
//! its own, so neither waits for the other, and the reader joins them. Invariants: nothing here waits or fails: a record without room is
//! dropped and counted (`super::ring`). Source: ours, after AF_PACKET. Hot: nothing.

use ring_proto::ids::NodeId;

use super::CaptureError;
use super::record::{self, Record};
use super::ring::Writer;

/// Most captures at once.
const CAPTURES_LIMIT: usize = 8;
/// Fewest and most bytes of a packet that a capture asks for.
const SNAPLEN: (u32, u32) = (64, 65_535);

/// What somebody wants to see.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    ports: Vec<bool>,
    snaplen: u32,
}

impl Wanted {
    /// So many bytes of what the ports of `nodes` see.
    pub(crate) fn new(nodes: &[NodeId], snaplen: u32) -> Result<Self, CaptureError> {
        let (least, most) = SNAPLEN;
        if !(least..=most).contains(&snaplen) {
            return Err(CaptureError::Snaplen {
                snaplen,
                least,
                most,
            });
        }
        let count = nodes.iter().map(|node| usize::from(node.0) + 1).max();
        let mut ports = vec![false; count.unwrap_or(0)];
        for node in nodes {
            ports[usize::from(node.0)] = true;
        }
        Ok(Self { ports, snaplen })
    }

    pub(crate) fn names(&self, node: u16) -> bool {
        self.ports.get(usize::from(node)).copied().unwrap_or(false)
    }
}

/// A capture under way.
#[derive(Debug)]
struct Running {
    id: u32,
    wanted: Wanted,
    ring: Writer,
}

/// All captures.
#[derive(Debug, Default)]
pub(crate) struct Captures {
    all: Vec<Running>,
    last: u32,
}

impl Captures {
    #[inline]
    pub(crate) fn is_on(&self) -> bool {
        !self.all.is_empty()
    }

    /// Whether the port of a node is captured.
    pub(crate) fn names(&self, node: NodeId) -> bool {
        self.all.iter().any(|running| running.wanted.names(node.0))
    }

    /// Starts one; its number.
    pub(crate) fn start(&mut self, wanted: Wanted, ring: Writer) -> Result<u32, CaptureError> {
        if self.all.len() >= CAPTURES_LIMIT {
            return Err(CaptureError::Limit {
                limit: CAPTURES_LIMIT,
            });
        }
        self.last = self.last.wrapping_add(1);
        let id = self.last;
        self.all.push(Running { id, wanted, ring });
        Ok(id)
    }

    /// Ends one; what it wanted. Its ring stays with its reader.
    pub(crate) fn stop(&mut self, id: u32) -> Option<Wanted> {
        let at = self.all.iter().position(|running| running.id == id)?;
        Some(self.all.swap_remove(at).wanted)
    }

    /// A port has seen something.
    pub(crate) fn push(&mut self, record: Record, bytes: &[u8]) {
        let whole_bytes = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        for running in &mut self.all {
            if !running.wanted.names(record.port) {
                continue;
            }
            let is_cut = record.kind != record::CM;
            let kept = match bytes.get(..running.wanted.snaplen as usize) {
                Some(kept) if is_cut => kept,
                _ => bytes,
            };
            let record = Record {
                bytes: u32::try_from(kept.len()).unwrap_or(u32::MAX),
                whole_bytes,
                ..record
            };
            running.ring.push(&record, &[kept]);
        }
    }
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
    pub(crate) fn record(self, kind: u8) -> Record {
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
