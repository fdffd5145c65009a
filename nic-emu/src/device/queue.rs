//! Fetching work queue elements: one snapshot, one check, then a type that proves it.
//!
//! Place: the engine fetches a [`SendWork`] from a QP's SQ and a [`RecvWork`] from its RQ; transfer works on these copies only.
//! Invariants: ring memory is read once per WQE, whatever its owner does meanwhile; a `SendWork` that was fetched proves opcode, flags, block
//! count, SGE count and total to be consistent, holding a `RecvWork` proves its SGE count and that its capacity is exact.
//! Hot: everything here. Source: docs/device.md, section "Work queue elements".

use ring_proto::regs;
use ring_proto::shared::WqeRing;
use ring_proto::status::{Opcode, Syndrome, WcStatus};
use ring_proto::wqe::{
    AtomicWqe, BindWqe, FIRST_SGES, MAX_BLOCKS, MAX_INLINE, MAX_RECV_SGES, MAX_SGES, RqWqe, Sge,
    SqWqe, WqeFlags, blocks_for_inline, blocks_for_sges,
};
use zerocopy::{FromBytes, IntoBytes};

use super::cq::Completed;
use super::recorder::{Event, What};

/// Words of the longest WQE.
const WORDS: usize = 8 * MAX_BLOCKS as usize;
/// Words of the first block before its SGEs.
const HEAD_WORDS: usize = 4;
/// Bytes of an atomic operation.
pub(crate) const ATOMIC_LEN: u32 = 8;

const _: () = assert!(
    cfg!(target_endian = "little"),
    "ring words are little-endian and used as they are"
);

/// A checked send WQE, private to the device.
#[derive(Debug)]
pub(crate) struct SendWork {
    words: [u64; WORDS],
    /// SQ position behind the WQE.
    pub(crate) end: u32,
    /// Bytes moved so far.
    pub(crate) done: u32,
}

/// What stands at a position of an SQ.
#[derive(Debug)]
pub(crate) enum Fetched {
    /// A sound WQE; it is in the work that was handed in.
    Work,
    /// A filler; the position behind it.
    Nop(u32),
    /// Something the device will not execute.
    Bad(BadWqe),
}

/// A refused send WQE: what its error completion says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BadWqe {
    pub(crate) wr_id: u64,
    pub(crate) opcode: u8,
    pub(crate) end: u32,
    pub(crate) status: WcStatus,
    pub(crate) syndrome: Syndrome,
}

/// Fetches the WQE at `consumer` into `work`; `producer` is checked and lies ahead of it.
///
/// Words of an older WQE stay behind the new one's end; nothing reads past the count, which is checked against the blocks. What stands
/// in `work` after a refusal is of no meaning.
#[inline(always)] // a call and its answer in memory would cost a quarter as much again
pub(crate) fn fetch_send(
    ring: &WqeRing,
    consumer: u32,
    producer: u32,
    work: &mut SendWork,
) -> Fetched {
    let first = ring.snapshot(consumer);
    // Word by word, as they come: loads of two words that were stored one by one stall.
    for (word, value) in work.words.iter_mut().zip(first) {
        *word = value;
    }
    let head: SqWqe = zerocopy::transmute!(first);
    let posted = producer.wrapping_sub(consumer);
    let blocks = u32::from(head.blocks);
    let sound_blocks = (1..=u32::from(MAX_BLOCKS)).contains(&blocks) && blocks <= posted;
    let end = consumer.wrapping_add(if sound_blocks { blocks } else { 1 });
    let bad = |status, syndrome| {
        Fetched::Bad(BadWqe {
            wr_id: head.wr_id,
            opcode: head.opcode,
            end,
            status,
            syndrome,
        })
    };
    if !sound_blocks {
        return bad(WcStatus::LOC_QP_OP_ERR, Syndrome::BAD_BLOCKS);
    }
    if blocks > 1 && blocks > ring.depth().until_end(consumer) {
        return bad(WcStatus::LOC_QP_OP_ERR, Syndrome::WQE_WRAPS);
    }
    let Some(flags) = WqeFlags::from_bits(head.flags) else {
        return bad(WcStatus::LOC_QP_OP_ERR, Syndrome::RESERVED_NOT_ZERO);
    };
    let inline = flags.contains(WqeFlags::INLINE);
    match Opcode(head.opcode) {
        Opcode::NOP => {
            if !flags.is_empty() || head.count != 0 {
                return bad(WcStatus::LOC_QP_OP_ERR, Syndrome::RESERVED_NOT_ZERO);
            }
            return Fetched::Nop(end);
        }
        Opcode::RDMA_READ if inline => {
            return bad(WcStatus::LOC_QP_OP_ERR, Syndrome::RESERVED_NOT_ZERO);
        }
        Opcode::ATOMIC_CMP_AND_SWP | Opcode::ATOMIC_FETCH_AND_ADD => {
            if let Err((status, syndrome)) = check_atomic(work) {
                return bad(status, syndrome);
            }
        }
        Opcode::LOCAL_INV | Opcode::BIND_MW => {
            if let Err(syndrome) = check_local(work) {
                return bad(WcStatus::LOC_QP_OP_ERR, syndrome);
            }
        }
        Opcode::SEND
        | Opcode::SEND_WITH_IMM
        | Opcode::SEND_WITH_INV
        | Opcode::RDMA_WRITE
        | Opcode::RDMA_WRITE_WITH_IMM
        | Opcode::RDMA_READ => {}
        _ => return bad(WcStatus::LOC_QP_OP_ERR, Syndrome::BAD_OPCODE),
    }
    if inline {
        if head.count > MAX_INLINE || blocks_for_inline(head.count) > head.blocks {
            return bad(WcStatus::LOC_QP_OP_ERR, Syndrome::BAD_INLINE_LENGTH);
        }
    } else {
        if head.count > MAX_SGES {
            return bad(WcStatus::LOC_QP_OP_ERR, Syndrome::BAD_SGE_COUNT);
        }
        if head.count > FIRST_SGES && blocks_for_sges(head.count) > head.blocks {
            return bad(WcStatus::LOC_QP_OP_ERR, Syndrome::BAD_BLOCKS);
        }
    }
    work.end = end;
    work.done = 0;
    if blocks > 1 {
        work.fetch_rest(ring, consumer, blocks);
    }
    let sum = match head.count {
        count if inline => count.into(),
        0 => 0,
        1 => head.sges[0].len.into(),
        _ => work.sges().iter().map(|sge| u64::from(sge.len)).sum(),
    };
    if sum != u64::from(head.total) {
        return bad(WcStatus::LOC_LEN_ERR, Syndrome::BAD_TOTAL);
    }
    if head.total > regs::MESSAGE_LIMIT {
        return bad(WcStatus::LOC_LEN_ERR, Syndrome::MESSAGE_TOO_LONG);
    }
    Fetched::Work
}

/// What is special about the WQE of an atomic operation.
#[cold]
fn check_atomic(work: &SendWork) -> Result<(), (WcStatus, Syndrome)> {
    let wqe: AtomicWqe = zerocopy::transmute!(*work.first_block());
    let is_inline = wqe.flags & WqeFlags::INLINE.bits() != 0;
    let has_stray_swap = wqe.opcode == Opcode::ATOMIC_FETCH_AND_ADD.0 && wqe.swap != 0;
    if is_inline || wqe.reserved != 0 || has_stray_swap {
        return Err((WcStatus::LOC_QP_OP_ERR, Syndrome::RESERVED_NOT_ZERO));
    }
    if wqe.count != 1 {
        return Err((WcStatus::LOC_QP_OP_ERR, Syndrome::BAD_SGE_COUNT));
    }
    if wqe.total != ATOMIC_LEN {
        return Err((WcStatus::LOC_LEN_ERR, Syndrome::BAD_ATOMIC_LENGTH));
    }
    Ok(())
}

/// What is special about the WQE of an operation without peer.
#[cold]
fn check_local(work: &SendWork) -> Result<(), Syndrome> {
    let words = work.first_block();
    let wqe: BindWqe = zerocopy::transmute!(*words);
    let is_inline = wqe.flags & WqeFlags::INLINE.bits() != 0;
    let sound = !is_inline
        && wqe.count == 0
        && wqe.total == 0
        && if wqe.opcode == Opcode::LOCAL_INV.0 {
            words[2..] == [0; 6]
        } else {
            wqe.reserved == [0; 2]
        };
    if sound {
        Ok(())
    } else {
        Err(Syndrome::RESERVED_NOT_ZERO)
    }
}

/// What a flush needs of the WQE at `consumer`: wr_id, opcode, and the position behind it.
pub(crate) fn peek_send(ring: &WqeRing, consumer: u32, producer: u32) -> (u64, u8, u32) {
    let head: SqWqe = zerocopy::transmute!(ring.snapshot(consumer));
    let posted = producer.wrapping_sub(consumer);
    let blocks = u32::from(head.blocks);
    let sound = (1..=u32::from(MAX_BLOCKS)).contains(&blocks) && blocks <= posted;
    let end = consumer.wrapping_add(if sound { blocks } else { 1 });
    (head.wr_id, head.opcode, end)
}

impl SendWork {
    /// A work that does nothing, to fill the place of one.
    pub(crate) fn none() -> Self {
        Self {
            words: [0; WORDS],
            end: 0,
            done: 0,
        }
    }

    /// Fetches the blocks behind the first one.
    fn fetch_rest(&mut self, ring: &WqeRing, consumer: u32, blocks: u32) {
        let rest = self.words[8..].chunks_exact_mut(8);
        for (block, position) in rest.zip(1..blocks) {
            let words = ring.snapshot(consumer.wrapping_add(position));
            for (word, value) in block.iter_mut().zip(words) {
                *word = value;
            }
        }
    }

    #[inline]
    fn first_block(&self) -> &[u64; 8] {
        self.words.first_chunk().expect("a WQE has a block")
    }

    /// The first block, as far as all operations have it in common.
    #[inline]
    fn head(&self) -> &SqWqe {
        zerocopy::transmute_ref!(self.first_block())
    }

    /// A request as its responder knows it: the head and operands, no memory.
    pub(crate) fn arriving(head: SqWqe, operands: [u64; 2]) -> Self {
        let mut work = Self::none();
        let first: [u64; 8] = zerocopy::transmute!(head);
        work.words[..8].copy_from_slice(&first);
        work.words[HEAD_WORDS + 2..HEAD_WORDS + 4].copy_from_slice(&operands);
        work
    }

    /// The same request as its responder knows it, so far as it is done.
    pub(crate) fn begun(&self) -> Self {
        let mut head = *self.head();
        head.sges = [Sge::default(); 2];
        head.flags &= WqeFlags::SOLICITED.bits();
        head.count = 0;
        Self {
            done: self.done,
            ..Self::arriving(head, [0, 0])
        }
    }

    #[inline]
    pub(crate) fn opcode(&self) -> Opcode {
        Opcode(self.head().opcode)
    }

    #[inline]
    pub(crate) fn has(&self, flag: WqeFlags) -> bool {
        self.head().flags & flag.bits() != 0
    }

    #[inline]
    pub(crate) fn wr_id(&self) -> u64 {
        self.head().wr_id
    }

    #[inline]
    pub(crate) fn imm(&self) -> u32 {
        self.head().imm
    }

    #[inline]
    pub(crate) fn remote_addr(&self) -> u64 {
        self.head().remote_addr
    }

    #[inline]
    pub(crate) fn rkey(&self) -> u32 {
        self.head().rkey
    }

    /// Bytes of the message.
    #[inline]
    pub(crate) fn total(&self) -> u32 {
        self.head().total
    }

    /// Whether the message takes a posted receive.
    #[inline]
    pub(crate) fn takes_receive(&self) -> bool {
        matches!(
            self.opcode(),
            Opcode::SEND
                | Opcode::SEND_WITH_IMM
                | Opcode::SEND_WITH_INV
                | Opcode::RDMA_WRITE_WITH_IMM
        )
    }

    /// Whether it fetches from the peer: a READ or an atomic.
    #[inline]
    pub(crate) fn fetches(&self) -> bool {
        matches!(
            self.opcode(),
            Opcode::RDMA_READ | Opcode::ATOMIC_CMP_AND_SWP | Opcode::ATOMIC_FETCH_AND_ADD
        )
    }

    /// Whether it has no peer: LOCAL_INV, BIND_MW.
    #[inline]
    pub(crate) fn is_local(&self) -> bool {
        self.opcode() >= Opcode::LOCAL_INV
    }

    /// The first block as that of a BIND_MW.
    pub(crate) fn bind(&self) -> BindWqe {
        zerocopy::transmute!(*self.first_block())
    }

    /// What the requester's CQE says of it.
    #[inline]
    pub(crate) fn entry(&self, qpn: u32, status: WcStatus, syndrome: Syndrome) -> Completed {
        Completed {
            wr_id: self.wr_id(),
            byte_len: if status == WcStatus::SUCCESS {
                self.total()
            } else {
                0
            },
            imm: 0,
            qpn,
            opcode: self.opcode().0,
            src_qpn_flags: 0,
            wqe_counter: self.end,
            status,
            syndrome,
        }
    }

    /// What the recorder keeps of it when it gets no CQE.
    #[inline]
    pub(crate) fn done_event(&self, qpn: u32, now_ns: u64) -> Event {
        Event {
            at_ns: now_ns,
            what: What::Done,
            ..self.event(qpn)
        }
    }

    /// What the recorder says of it in any event.
    #[inline]
    pub(crate) fn event(&self, qpn: u32) -> Event {
        Event {
            wr_id: self.wr_id(),
            number: qpn,
            index: self.end,
            len: self.total(),
            code: u16::from(self.opcode().0),
            ..Event::default()
        }
    }

    /// Operands of an atomic: what to compare with or to add, and what to swap in.
    pub(crate) fn operands(&self) -> (u64, u64) {
        (self.words[HEAD_WORDS + 2], self.words[HEAD_WORDS + 3])
    }

    /// SGEs of the copy; empty for inline data.
    #[inline]
    pub(crate) fn sges(&self) -> &[Sge] {
        if self.has(WqeFlags::INLINE) {
            return &[];
        }
        let all = <[Sge]>::ref_from_bytes(self.words[HEAD_WORDS..].as_bytes()).unwrap_or(&[]);
        all.get(..usize::from(self.head().count)).unwrap_or(&[])
    }

    /// The one SGE of the copy, when it has just one.
    #[inline]
    pub(crate) fn only_sge(&self) -> Option<Sge> {
        let head = self.head();
        (head.count == 1 && !self.has(WqeFlags::INLINE)).then_some(head.sges[0])
    }

    /// Inline bytes of the copy, or `None`.
    #[inline]
    pub(crate) fn inline(&self) -> Option<&[u8]> {
        if !self.has(WqeFlags::INLINE) {
            return None;
        }
        self.words[HEAD_WORDS..]
            .as_bytes()
            .get(..usize::from(self.head().count))
    }
}

/// A checked receive WQE, private to the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecvWork {
    wqe: RqWqe,
    /// RQ position behind the WQE.
    pub(crate) end: u32,
    /// Bytes it can take.
    pub(crate) capacity: u64,
    /// Why it cannot be used, or NONE.
    pub(crate) syndrome: Syndrome,
}

impl RecvWork {
    /// Fetches the receive WQE at `consumer`. A malformed one comes with its syndrome, and fails when a message meets it.
    #[inline]
    pub(crate) fn fetch(ring: &WqeRing, consumer: u32) -> Self {
        let words = ring.snapshot(consumer);
        let wqe: RqWqe = zerocopy::transmute!(words);
        // Count and reserved bytes are one word, so that all of them are checked at once.
        let sound = words[1] <= u64::from(MAX_RECV_SGES);
        let mut work = Self {
            wqe,
            end: consumer.wrapping_add(1),
            capacity: 0,
            syndrome: if sound {
                Syndrome::NONE
            } else {
                Syndrome::RECV_BAD_WQE
            },
        };
        work.capacity = match work.only_sge() {
            Some(sge) => sge.len.into(),
            None => work.sges().iter().map(|sge| u64::from(sge.len)).sum(),
        };
        work
    }

    #[inline]
    pub(crate) fn wr_id(&self) -> u64 {
        self.wqe.wr_id
    }

    /// The one SGE of the copy, when it is sound and has just one.
    #[inline]
    pub(crate) fn only_sge(&self) -> Option<Sge> {
        (self.wqe.count == 1 && self.syndrome == Syndrome::NONE).then_some(self.wqe.sges[0])
    }

    /// SGEs of the copy; none for a malformed one.
    #[inline]
    pub(crate) fn sges(&self) -> &[Sge] {
        if self.syndrome == Syndrome::NONE {
            self.wqe
                .sges
                .get(..usize::from(self.wqe.count))
                .unwrap_or(&[])
        } else {
            &[]
        }
    }
}
