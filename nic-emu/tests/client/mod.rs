//! A function as its client has it: memory, rings, doorbells. How commands reach the device and how it is waited for is the suite's.
//!
//! ```text
//! memory   the client's own, in IOVAs        rings   admin queue, events, completions, posting
//! wr       work requests that may be wrong   plan    bodies of commands, and what they make
//! ```

pub(crate) mod memory;
mod plan;
mod rings;
pub(crate) mod wr;

use ring_proto::admin::Access;
use ring_proto::shared::{CqeRing, WqeRing};
use ring_proto::status::{Syndrome, WcStatus};
use ring_proto::wqe::Sge;

pub(crate) use self::memory::{BASE, Memory};
pub(crate) use self::rings::{ADMIN_CQ, ADMIN_DEPTH, Rings};
pub(crate) use self::wr::recv_wqe;

/// A QP of a client with its CQ.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawQp {
    pub(crate) qpn: u32,
    pub(crate) slot: u32,
    pub(crate) cqn: u32,
    pub(crate) cq_slot: u32,
    pub(crate) sq: WqeRing,
    pub(crate) rq: WqeRing,
    pub(crate) cq: CqeRing,
    pub(crate) sq_producer: u32,
    pub(crate) rq_producer: u32,
    pub(crate) cq_consumer: u32,
}

/// A shared receive queue of a client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawSrq {
    pub(crate) srqn: u32,
    pub(crate) slot: u32,
    pub(crate) ring: WqeRing,
    pub(crate) producer: u32,
}

/// A CQE as tests look at it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Wc {
    pub(crate) wr_id: u64,
    pub(crate) byte_len: u32,
    pub(crate) imm: u32,
    pub(crate) qpn: u32,
    pub(crate) opcode: u8,
    pub(crate) src_qpn: u32,
    pub(crate) flags: u32,
    pub(crate) wqe_counter: u32,
    pub(crate) status: WcStatus,
    pub(crate) syndrome: Syndrome,
}

/// A registered part of a client's memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Region {
    pub(crate) iova: u64,
    pub(crate) key: u32,
}

impl Region {
    pub(crate) fn sge(&self, offset: u64, len: u32) -> Sge {
        Sge {
            addr: self.iova + offset,
            len,
            lkey: self.key,
        }
    }
}

/// All rights.
pub(crate) fn full() -> Access {
    Access::all()
}

pub(crate) fn low(word: u64) -> u32 {
    u32::try_from(word & 0xffff_ffff).unwrap()
}

pub(crate) fn high(word: u64) -> u32 {
    u32::try_from(word >> 32).unwrap()
}
