//! Send WQEs: the first block with its SGEs, further blocks, and the forms of their own that some operations have.

mod others;
mod transfers;

use ring_proto::status::{Opcode, Syndrome, WcStatus};
use ring_proto::wqe::Sge;
use zerocopy::IntoBytes;

use crate::client::{Client, Pair, Region, Send, full};
use crate::table::Value::{Flip, Is, Plus};
use crate::table::{Field, Row, Value, run};

/// Status and syndrome of the completion.
pub(crate) type Outcome = (WcStatus, Syndrome);

pub(crate) type Values = &'static [(Value, Outcome)];

pub(crate) const DONE: Outcome = (WcStatus::SUCCESS, Syndrome::NONE);

pub(crate) const fn op_err(syndrome: Syndrome) -> Outcome {
    (WcStatus::LOC_QP_OP_ERR, syndrome)
}

const fn prot(syndrome: Syndrome) -> Outcome {
    (WcStatus::LOC_PROT_ERR, syndrome)
}

pub(crate) const fn access(syndrome: Syndrome) -> Outcome {
    (WcStatus::REM_ACCESS_ERR, syndrome)
}

const BAD_OPCODE: Outcome = op_err(Syndrome::BAD_OPCODE);

pub(crate) const BAD_BLOCKS: Outcome = op_err(Syndrome::BAD_BLOCKS);

pub(crate) const BAD_COUNT: Outcome = op_err(Syndrome::BAD_SGE_COUNT);

pub(crate) const RESERVED: Outcome = op_err(Syndrome::RESERVED_NOT_ZERO);

pub(crate) const BAD_TOTAL: Outcome = (WcStatus::LOC_LEN_ERR, Syndrome::BAD_TOTAL);

const NO_LKEY: Outcome = prot(Syndrome::LKEY_UNKNOWN);

pub(crate) const OUT_OF_LKEY: Outcome = prot(Syndrome::LKEY_OUT_OF_BOUNDS);

const NO_RKEY: Outcome = access(Syndrome::RKEY_UNKNOWN);

pub(crate) const OUT_OF_RKEY: Outcome = access(Syndrome::RKEY_OUT_OF_BOUNDS);

/// Bytes of each region.
pub(crate) const REGION: u64 = 4096;

pub(crate) fn sge() -> Vec<Field> {
    fields!(Sge { addr, len, lkey })
}

/// Runs a table of a WQE that `good` makes of a local and a remote region, with the fields in block `block` of it.
pub(crate) fn table(
    what: &str,
    (block, fields): (usize, &[Field]),
    rows: &[Row<'_, Outcome>],
    good: impl Fn(&mut Pair, &Region, &Region) -> Send,
) {
    run(what, fields, rows, &DONE, |change| {
        let mut pair = Pair::new();
        let own = pair.a.region(&mut pair.device, REGION, full());
        let remote = pair.b.region(&mut pair.device, REGION, full());
        let target = pair.b.region(&mut pair.device, REGION, full());
        let sges = [target.sge(0, 4096)];
        pair.b.recv(&mut pair.device, &mut pair.qb, 1, &sges);
        let mut blocks = good(&mut pair, &own, &remote).blocks();
        change.apply(blocks[block].as_mut_bytes());
        pair.a.write_send(&mut pair.qa, &blocks);
        pair.a.ring_qp(&mut pair.device, &pair.qa);
        pair.pump();
        only_completion(&pair.a, &mut pair.qa)
    });
}

/// One WQE was posted, so one completes, whatever stood in it.
pub(crate) fn only_completion(client: &Client, qp: &mut crate::client::RawQp) -> Outcome {
    let completions = client.completions(qp);
    let [wc] = completions[..] else {
        panic!("one WQE, {} completions", completions.len());
    };
    (wc.status, wc.syndrome)
}

pub(crate) const LKEY: Values = &[
    (Is(0), NO_LKEY),
    (Flip(1), NO_LKEY),
    (Flip(0x80), NO_LKEY),
    (Plus(0x100), NO_LKEY),
    (Flip(1 << 31), NO_LKEY),
    (Is(0xffff_ffff), NO_LKEY),
];

pub(crate) const RKEY: Values = &[
    (Is(0), NO_RKEY),
    (Flip(1), NO_RKEY),
    (Flip(0x80), NO_RKEY),
    (Plus(0x100), NO_RKEY),
    (Flip(1 << 31), NO_RKEY),
    (Is(0xffff_ffff), NO_RKEY),
];

/// One block is posted.
pub(crate) const BLOCKS: Values = &[
    (Is(0), BAD_BLOCKS),
    (Is(2), BAD_BLOCKS),
    (Is(4), BAD_BLOCKS),
    (Is(5), BAD_BLOCKS),
    (Is(0xff), BAD_BLOCKS),
];

pub(crate) const ANYTHING: Values = &[(Is(0), DONE), (Is(u64::MAX), DONE)];

pub(crate) const NO_OPCODE: [(Value, Outcome); 4] = [
    (Is(11), BAD_OPCODE),
    (Is(0x7f), BAD_OPCODE),
    (Is(0x80), BAD_OPCODE),
    (Is(0xff), BAD_OPCODE),
];

#[test]
fn each_operation_has_a_table() {
    let known = [
        // A filler completes nothing: its table is `nop_with_flags_or_a_count_is_refused` of the device's suite.
        Opcode::NOP,
        Opcode::SEND,
        Opcode::SEND_WITH_IMM,
        Opcode::SEND_WITH_INV,
        Opcode::RDMA_WRITE,
        Opcode::RDMA_WRITE_WITH_IMM,
        Opcode::RDMA_READ,
        Opcode::ATOMIC_CMP_AND_SWP,
        Opcode::ATOMIC_FETCH_AND_ADD,
        Opcode::LOCAL_INV,
        Opcode::BIND_MW,
    ];
    for opcode in Opcode::ALL {
        assert!(known.contains(opcode), "no table for {opcode}");
    }
}
