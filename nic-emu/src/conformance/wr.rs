//! Work requests of the suite: send WQEs in the making, completions as cases look at them.
//!
//! Place: cases build a [`SendWr`], [`super::client`] writes its blocks. Invariants: fields are free to be wrong, for cases about wrong
//! ones. Source: docs/device.md, section "Work queue elements". Leaves out: nothing that a WQE can say.

use ring_proto::admin::Access;
use ring_proto::cqe::{Cqe, Publish};
use ring_proto::status::{Opcode, Syndrome, WcOpcode, WcStatus};
use ring_proto::wqe::{self, RqWqe, Sge, SqWqe, WqeFlags};

/// A send WQE.
#[derive(Clone, Debug)]
pub(crate) struct SendWr {
    pub(crate) head: SqWqe,
    pub(crate) sges: Vec<Sge>,
    pub(crate) inline: Vec<u8>,
    /// Operands of an atomic, behind the SGE, or of a BIND_MW.
    pub(crate) operands: Vec<u64>,
}

impl SendWr {
    /// A signaled WQE with these SGEs.
    pub(crate) fn new(opcode: Opcode, wr_id: u64, sges: &[Sge]) -> Self {
        let count = u8::try_from(sges.len()).unwrap_or(u8::MAX);
        Self {
            head: SqWqe {
                opcode: opcode.0,
                flags: WqeFlags::SIGNALED.bits(),
                blocks: wqe::blocks_for_sges(count),
                count,
                wr_id,
                total: sges
                    .iter()
                    .fold(0, |sum: u32, sge| sum.wrapping_add(sge.len)),
                ..SqWqe::default()
            },
            sges: sges.to_vec(),
            inline: Vec::new(),
            operands: Vec::new(),
        }
    }

    /// A signaled WQE with inline bytes.
    pub(crate) fn inline(opcode: Opcode, wr_id: u64, bytes: &[u8]) -> Self {
        let count = u8::try_from(bytes.len()).unwrap_or(u8::MAX);
        Self {
            head: SqWqe {
                opcode: opcode.0,
                flags: (WqeFlags::SIGNALED | WqeFlags::INLINE).bits(),
                blocks: wqe::blocks_for_inline(count),
                count,
                wr_id,
                total: count.into(),
                ..SqWqe::default()
            },
            sges: Vec::new(),
            inline: bytes.to_vec(),
            operands: Vec::new(),
        }
    }

    pub(crate) fn send(wr_id: u64, sge: Sge) -> Self {
        Self::new(Opcode::SEND, wr_id, &[sge])
    }

    pub(crate) fn write(wr_id: u64, sge: Sge, remote: (u64, u32)) -> Self {
        Self::new(Opcode::RDMA_WRITE, wr_id, &[sge]).remote(remote)
    }

    pub(crate) fn read(wr_id: u64, sge: Sge, remote: (u64, u32)) -> Self {
        Self::new(Opcode::RDMA_READ, wr_id, &[sge]).remote(remote)
    }

    /// A signaled atomic; for a fetch-and-add the second operand is 0.
    pub(crate) fn atomic(
        opcode: Opcode,
        wr_id: u64,
        sge: Sge,
        remote: (u64, u32),
        operands: (u64, u64),
    ) -> Self {
        let mut wr = Self::new(opcode, wr_id, &[sge]).remote(remote);
        wr.operands = vec![operands.0, operands.1];
        wr
    }

    /// A signaled BIND_MW of `len` bytes at `addr`.
    pub(crate) fn bind(
        wr_id: u64,
        (rkey, new_rkey): (u32, u32),
        lkey: u32,
        (addr, len): (u64, u64),
        access: Access,
    ) -> Self {
        let mut wr = Self::new(Opcode::BIND_MW, wr_id, &[]);
        wr = wr.remote((addr, rkey)).imm(new_rkey);
        wr.operands = vec![len, u64::from(lkey) | u64::from(access.bits()) << 32];
        wr
    }

    /// A signaled LOCAL_INV.
    pub(crate) fn local_inv(wr_id: u64, key: u32) -> Self {
        Self::new(Opcode::LOCAL_INV, wr_id, &[]).imm(key)
    }

    pub(crate) fn remote(mut self, (addr, rkey): (u64, u32)) -> Self {
        self.head.remote_addr = addr;
        self.head.rkey = rkey;
        self
    }

    pub(crate) fn imm(mut self, imm: u32) -> Self {
        self.head.imm = imm;
        self
    }

    pub(crate) fn flags(mut self, flags: WqeFlags) -> Self {
        self.head.flags |= flags.bits();
        self
    }

    pub(crate) fn unsignaled(mut self) -> Self {
        self.head.flags &= !WqeFlags::SIGNALED.bits();
        self
    }

    /// Changes the first block by hand.
    pub(crate) fn lie(mut self, lie: impl FnOnce(&mut SqWqe)) -> Self {
        lie(&mut self.head);
        self
    }

    /// The blocks of the WQE, as many as the payload needs, at least one.
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
        words.extend(&self.operands);
        words.resize(words.len().next_multiple_of(8), 0);
        words
            .chunks_exact(8)
            .map(|block| {
                let mut own = [0; 8];
                own.copy_from_slice(block);
                own
            })
            .collect()
    }
}

/// A receive WQE with at most three of these SGEs.
pub(crate) fn recv_wr(wr_id: u64, sges: &[Sge]) -> RqWqe {
    let mut wqe = RqWqe {
        wr_id,
        count: u8::try_from(sges.len()).unwrap_or(u8::MAX),
        ..RqWqe::default()
    };
    for (place, sge) in wqe.sges.iter_mut().zip(sges) {
        *place = *sge;
    }
    wqe
}

/// A work completion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Wc {
    pub(crate) wr_id: u64,
    pub(crate) byte_len: u32,
    pub(crate) imm: u32,
    pub(crate) qpn: u32,
    pub(crate) opcode: WcOpcode,
    pub(crate) src_qpn: u32,
    pub(crate) flags: u32,
    pub(crate) wqe_counter: u32,
    pub(crate) status: WcStatus,
    pub(crate) syndrome: Syndrome,
}

impl From<Cqe> for Wc {
    fn from(cqe: Cqe) -> Self {
        let publish = Publish::unpack(cqe.publish);
        Self {
            wr_id: cqe.wr_id,
            byte_len: cqe.byte_len,
            imm: cqe.imm,
            qpn: cqe.qpn_opcode & 0xff_ffff,
            opcode: WcOpcode(cqe.qpn_opcode.to_le_bytes()[3]),
            src_qpn: cqe.src_qpn_flags & 0xff_ffff,
            flags: cqe.src_qpn_flags & 0xff00_0000,
            wqe_counter: publish.wqe_counter,
            status: publish.status,
            syndrome: publish.syndrome,
        }
    }
}
