//! Counters of a node, and of a QP by packets: plain numbers with one writer, the device, read when somebody asks.
//!
//! Place: the engine adds, `stat` reads. Invariants: cumulative ones never go down; gauges are counted when asked.

use ring_proto::ids::NodeId;
use serde::{Deserialize, Serialize};

/// Counters of one node. Field names are those of `sanlab stat --json`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Counters {
    /// Payload bytes that left memory of this node: SEND, WRITE, and READ as responder.
    pub tx_payload_bytes: u64,
    /// Payload bytes that arrived in memory of this node: SEND, WRITE, and READ as requester.
    pub rx_payload_bytes: u64,
    /// Send WQEs executed.
    pub wqes: u64,
    /// Requests sent as packets; 0 while every link is perfect.
    pub tx_packets: u64,
    /// Requests among them that were sent again.
    pub retransmitted_packets: u64,
    /// CQEs written.
    pub cqes: u64,
    /// Kicks received while functions of this node slept.
    pub kicks: u64,
    /// Times the device went to sleep with a hot function on this node.
    pub parks: u64,
    /// Completions with an error other than a flush, bad doorbells, failed functions.
    pub errors: u64,
    /// Panics of the device that were caught in work for this node; 0 unless the device has a bug. Each is contained: a function
    /// fails, or a connection ends.
    pub panics: u64,
    /// Queue pairs that exist, orphans included.
    pub qps: u64,
    /// Completion queues that exist.
    pub cqs: u64,
    /// Memory regions that exist.
    pub mrs: u64,
    /// Functions that are attached.
    pub functions: u64,
    /// Windows that are mapped.
    pub windows: u64,
    /// Listeners that exist.
    pub listeners: u64,
    /// Queue pairs without holder whose memory still serves their peer.
    pub orphans: u64,
}

/// What a QP met by packets since RESET. Names are those of `rdma statistic show` where it has them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct PacketCounters {
    /// Requests sent.
    pub tx_packets: u64,
    /// Requests among them that were sent again.
    pub retransmitted_packets: u64,
    /// Times that no answer came in time.
    pub local_ack_timeout_err: u64,
    /// NAKs of the peer about a gap in what we sent.
    pub packet_seq_err: u64,
    /// RNR NAKs of the peer.
    pub rnr_nak_retry_err: u64,
    /// Requests of the peer that had come before.
    pub duplicate_request: u64,
    /// Requests of the peer behind a gap.
    pub out_of_sequence: u64,
}

/// Counters with the node they belong to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodeCounters {
    /// Node.
    pub node: NodeId,
    /// Its counters.
    pub counters: Counters,
}
