//! Work requests in the making; their fields are free to be wrong.

use ring_proto::admin::Access;
use ring_proto::status::Opcode;
use ring_proto::wqe::{RqWqe, Sge, SqWqe, WqeFlags};

use super::{high, low};

pub(crate) fn recv_wqe(wr_id: u64, sges: &[Sge]) -> RqWqe {
    let mut wqe = RqWqe {
        wr_id,
        count: u8::try_from(sges.len()).unwrap(),
        ..RqWqe::default()
    };
    wqe.sges[..sges.len()].copy_from_slice(sges);
    wqe
}

/// A send WQE in the making; fields are free to be wrong.
#[derive(Clone, Debug)]
pub(crate) struct Send {
    pub(crate) head: SqWqe,
    pub(crate) sges: Vec<Sge>,
    pub(crate) inline: Vec<u8>,
}

impl Send {
    /// A signaled WQE with these SGEs.
    pub(crate) fn new(opcode: Opcode, wr_id: u64, sges: &[Sge]) -> Self {
        let count = u8::try_from(sges.len()).unwrap();
        Self {
            head: SqWqe {
                opcode: opcode.0,
                flags: WqeFlags::SIGNALED.bits(),
                blocks: ring_proto::wqe::blocks_for_sges(count),
                count,
                wr_id,
                total: sges.iter().map(|sge| sge.len).sum(),
                ..SqWqe::default()
            },
            sges: sges.to_vec(),
            inline: Vec::new(),
        }
    }

    /// A signaled WQE with inline bytes.
    pub(crate) fn inline(opcode: Opcode, wr_id: u64, bytes: &[u8]) -> Self {
        let count = u8::try_from(bytes.len()).unwrap();
        Self {
            head: SqWqe {
                opcode: opcode.0,
                flags: (WqeFlags::SIGNALED | WqeFlags::INLINE).bits(),
                blocks: ring_proto::wqe::blocks_for_inline(count),
                count,
                wr_id,
                total: count.into(),
                ..SqWqe::default()
            },
            sges: Vec::new(),
            inline: bytes.to_vec(),
        }
    }

    /// A signaled atomic on the word at `addr` of the peer; the original goes to `into`.
    pub(crate) fn atomic(
        opcode: Opcode,
        wr_id: u64,
        into: Sge,
        (addr, rkey): (u64, u32),
        (compare_add, swap): (u64, u64),
    ) -> Self {
        let mut wqe = Self::new(opcode, wr_id, &[into]).remote(addr, rkey);
        // The operands stand where the second element would.
        wqe.sges.push(Sge {
            addr: compare_add,
            len: low(swap),
            lkey: high(swap),
        });
        wqe
    }

    /// A signaled BIND_MW of `len` bytes at `addr`.
    pub(crate) fn bind(
        wr_id: u64,
        (rkey, new_rkey): (u32, u32),
        lkey: u32,
        (addr, len): (u64, u64),
        access: Access,
    ) -> Self {
        let mut wqe = Self::new(Opcode::BIND_MW, wr_id, &[])
            .remote(addr, rkey)
            .imm(new_rkey);
        wqe.sges.push(Sge {
            addr: len,
            len: lkey,
            lkey: access.bits(),
        });
        wqe
    }

    pub(crate) fn remote(mut self, addr: u64, rkey: u32) -> Self {
        self.head.remote_addr = addr;
        self.head.rkey = rkey;
        self
    }

    pub(crate) fn imm(mut self, imm: u32) -> Self {
        self.head.imm = imm;
        self
    }

    pub(crate) fn unsignaled(mut self) -> Self {
        self.head.flags &= !WqeFlags::SIGNALED.bits();
        self
    }

    /// The blocks of the WQE, as many as the payload needs (at least one).
    pub(crate) fn blocks(&self) -> Vec<[u64; 8]> {
        let head: [u64; 8] = zerocopy::transmute!(self.head);
        let mut words = head[..4].to_vec();
        for sge in &self.sges {
            let pair: [u64; 2] = zerocopy::transmute!(*sge);
            words.extend(pair);
        }
        for chunk in self.inline.chunks(8) {
            let mut bytes = [0; 8];
            bytes[..chunk.len()].copy_from_slice(chunk);
            words.push(u64::from_le_bytes(bytes));
        }
        words.resize(words.len().next_multiple_of(8), 0);
        words
            .chunks_exact(8)
            .map(|block| block.try_into().unwrap())
            .collect()
    }
}
