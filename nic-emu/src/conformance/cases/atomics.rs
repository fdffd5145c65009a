//! Cases about compare-and-swap and fetch-and-add.
//!
//! Place: see [`super`]. Source: IBTA vol. 1, 9.4.5, 10.6.3.2 and 11.4.1.1; `ibv_post_send(3)`, IBV_WR_ATOMIC_*.

use ring_proto::admin::Access;
use ring_proto::status::{Opcode, QpState, Syndrome, WcOpcode, WcStatus};

use super::super::client::{QpOptions, Region, full};
use super::super::rig::{Pair, Rig};
use super::super::wr::SendWr;
use super::super::{Case, Outcome, Stop, case, same};

const ATOMIC: &str = "IBTA 9.4.5; ibv_post_send(3)";
const PD: &str = "IBTA 10.2.3; ibv_alloc_pd(3)";
const CAS: Opcode = Opcode::ATOMIC_CMP_AND_SWP;
const FAA: Opcode = Opcode::ATOMIC_FETCH_AND_ADD;

/// A connected pair whose responder allows atomics, and a region of it with one word.
struct Stage {
    pair: Pair,
    words: Region,
}

impl Stage {
    fn new(rig: &Rig<'_>) -> Outcome<Self> {
        Self::with(
            rig,
            full() | Access::REMOTE_ATOMIC,
            full() | Access::REMOTE_ATOMIC,
        )
    }

    fn with(rig: &Rig<'_>, of_qp: Access, of_region: Access) -> Outcome<Self> {
        let options = QpOptions {
            access: of_qp,
            ..QpOptions::default()
        };
        let mut pair = rig.pair_with(QpOptions::default(), options, 7)?;
        let words = pair.b.region(64, of_region)?;
        Ok(Self { pair, words })
    }

    fn set(&self, at: u64, value: u64) -> Outcome {
        self.pair
            .b
            .memory
            .write(self.words.iova + at, &value.to_le_bytes())
    }

    /// Word of the responder at an offset.
    fn word(&self, at: u64) -> Outcome<u64> {
        word(&self.pair.b.memory.read(self.words.iova + at, 8)?)
    }

    /// What the latest atomic brought.
    fn fetched(&self) -> Outcome<u64> {
        word(&self.pair.a.memory.read(self.pair.out.iova, 8)?)
    }

    fn wr(&self, opcode: Opcode, at: u64, operands: (u64, u64)) -> SendWr {
        SendWr::atomic(
            opcode,
            1,
            self.pair.out.sge(0, 8),
            self.words.remote(at),
            operands,
        )
    }

    fn run(&mut self, opcode: Opcode, at: u64, operands: (u64, u64)) -> Outcome {
        let wr = self.wr(opcode, at, operands);
        self.pair.post(&wr);
        self.pair.a_done(1).map(drop)
    }
}

fn word(bytes: &[u8]) -> Outcome<u64> {
    let bytes = bytes.try_into();
    let bytes = bytes.map_err(|_| Stop::Failed("a word of another length".into()))?;
    Ok(u64::from_le_bytes(bytes))
}

/// An atomic whose own SGE lies in another PD.
fn own_pd(rig: &mut Rig<'_>, opcode: Opcode) -> Outcome {
    let mut stage = Stage::new(rig)?;
    let pdn = stage.pair.a.pd()?;
    let foreign = stage.pair.a.region_of(64, full(), pdn, 0)?;
    let wr = SendWr::atomic(opcode, 1, foreign.sge(0, 8), stage.words.remote(0), (0, 0));
    stage
        .pair
        .refused(&wr, WcStatus::LOC_PROT_ERR, Syndrome::LKEY_PD_MISMATCH)
}

/// An atomic on a region of another PD than the responder's QP.
fn remote_pd(rig: &mut Rig<'_>, opcode: Opcode) -> Outcome {
    let mut stage = Stage::new(rig)?;
    let pdn = stage.pair.b.pd()?;
    stage.words = stage
        .pair
        .b
        .region_of(64, full() | Access::REMOTE_ATOMIC, pdn, 0)?;
    let wr = stage.wr(opcode, 0, (0, 0));
    stage
        .pair
        .refused(&wr, WcStatus::REM_ACCESS_ERR, Syndrome::RKEY_PD_MISMATCH)
}

pub(super) const CASES: &[Case] = &[
    case(
        "atomic.faa.adds",
        "FETCH_AND_ADD adds to 8 bytes and brings what they were",
        ATOMIC,
        |rig| {
            let mut stage = Stage::new(rig)?;
            stage.set(16, 40)?;
            stage.run(FAA, 16, (2, 0))?;
            same(
                "word and original",
                (stage.word(16)?, stage.fetched()?),
                (42, 40),
            )
        },
    ),
    case(
        "atomic.faa.wraps",
        "FETCH_AND_ADD adds modulo 2^64",
        ATOMIC,
        |rig| {
            let mut stage = Stage::new(rig)?;
            stage.set(0, u64::MAX)?;
            stage.run(FAA, 0, (3, 0))?;
            same("word", stage.word(0)?, 2)
        },
    ),
    case(
        "atomic.cas.swaps-equal",
        "CMP_AND_SWP replaces 8 bytes that are equal and brings what they were",
        ATOMIC,
        |rig| {
            let mut stage = Stage::new(rig)?;
            stage.set(8, 7)?;
            stage.run(CAS, 8, (7, 99))?;
            same(
                "word and original",
                (stage.word(8)?, stage.fetched()?),
                (99, 7),
            )
        },
    ),
    case(
        "atomic.cas.leaves-unequal",
        "CMP_AND_SWP leaves bytes that differ, brings them, and succeeds",
        ATOMIC,
        |rig| {
            let mut stage = Stage::new(rig)?;
            stage.set(8, 6)?;
            stage.run(CAS, 8, (7, 99))?;
            same(
                "word and original",
                (stage.word(8)?, stage.fetched()?),
                (6, 6),
            )
        },
    ),
    case(
        "atomic.completion-fields",
        "The completion of an atomic tells its opcode and 8 bytes",
        "IBTA 11.4.2.1; ibv_poll_cq(3)",
        |rig| {
            let mut stage = Stage::new(rig)?;
            for (opcode, wanted) in [(CAS, WcOpcode::COMP_SWAP), (FAA, WcOpcode::FETCH_ADD)] {
                let wr = stage.wr(opcode, 0, (0, 0));
                stage.pair.post(&wr);
                let wc = stage.pair.a_done(1)?;
                same("opcode and length", (wc.opcode, wc.byte_len), (wanted, 8))?;
            }
            Ok(())
        },
    ),
    case(
        "atomic.shows-nothing-at-the-responder",
        "An atomic takes no receive and shows nothing at the responder",
        ATOMIC,
        |rig| {
            let mut stage = Stage::new(rig)?;
            stage.pair.receives(1, 64);
            stage.run(FAA, 0, (1, 0))?;
            let (_, recv_cq) = stage.pair.cqs();
            stage.pair.b.no_wc(recv_cq)
        },
    ),
    case(
        "atomic.in-order",
        "Atomics of one QP take effect in the order of posting",
        "IBTA 10.8.3.3 (ordering)",
        |rig| {
            let mut stage = Stage::new(rig)?;
            for n in 0..20 {
                stage.run(CAS, 0, (n, n + 1))?;
            }
            same("word", stage.word(0)?, 20)
        },
    ),
    case(
        "atomic.misaligned-refused",
        "An atomic address is a multiple of 8",
        "IBTA 9.4.5, 9.7.4.1.4; ibv_post_send(3)",
        |rig| {
            let mut stage = Stage::new(rig)?;
            let wr = stage.wr(FAA, 4, (1, 0));
            stage
                .pair
                .refused(&wr, WcStatus::REM_INV_REQ_ERR, Syndrome::ATOMIC_MISALIGNED)?;
            same("word", stage.word(0)?, 0)
        },
    ),
    case(
        "atomic.two-sges-refused",
        "An atomic has one SGE of 8 bytes",
        "IBTA 11.4.1.1; ibv_post_send(3)",
        |rig| {
            let mut stage = Stage::new(rig)?;
            let sges = [stage.pair.out.sge(0, 4), stage.pair.out.sge(8, 4)];
            let wr = SendWr::new(FAA, 1, &sges).remote(stage.words.remote(0));
            stage.pair.post(&wr);
            let wc = stage.pair.a_wc()?;
            same("refused", wc.status != WcStatus::SUCCESS, true)?;
            same("word", stage.word(0)?, 0)?;
            stage.pair.a.expect_state(stage.pair.qa.qpn, QpState::ERR)
        },
    ),
    case(
        "atomic.wrong-length-refused",
        "The SGE of an atomic has 8 bytes",
        "IBTA 11.4.1.1; ibv_post_send(3)",
        |rig| {
            let mut stage = Stage::new(rig)?;
            let wr = SendWr::atomic(
                FAA,
                1,
                stage.pair.out.sge(0, 16),
                stage.words.remote(0),
                (1, 0),
            );
            stage.pair.post(&wr);
            same(
                "syndrome",
                stage.pair.a_wc()?.syndrome,
                Syndrome::BAD_ATOMIC_LENGTH,
            )?;
            same("word", stage.word(0)?, 0)
        },
    ),
    case(
        "atomic.qp-forbids",
        "A QP that does not allow atomics refuses them: REM_INV_REQ_ERR",
        "IBTA 9.7.4.1.3; ibv_modify_qp(3), qp_access_flags",
        |rig| {
            let mut stage = Stage::with(rig, full(), full() | Access::REMOTE_ATOMIC)?;
            let wr = stage.wr(FAA, 0, (1, 0));
            stage
                .pair
                .refused(&wr, WcStatus::REM_INV_REQ_ERR, Syndrome::QP_NO_ACCESS)
        },
    ),
    case(
        "atomic.region-forbids",
        "A region without REMOTE_ATOMIC refuses atomics",
        "IBTA 10.6.3.2; ibv_reg_mr(3)",
        |rig| {
            let mut stage = Stage::with(rig, full() | Access::REMOTE_ATOMIC, full())?;
            let wr = stage.wr(CAS, 0, (0, 1));
            stage
                .pair
                .refused(&wr, WcStatus::REM_ACCESS_ERR, Syndrome::RKEY_NO_ACCESS)?;
            same("word", stage.word(0)?, 0)
        },
    ),
    case(
        "atomic.past-end-refused",
        "An atomic behind the region fails",
        "IBTA 9.7.4.1.5; ibv_reg_mr(3)",
        |rig| {
            let mut stage = Stage::new(rig)?;
            let wr = stage.wr(FAA, 64, (1, 0));
            stage
                .pair
                .refused(&wr, WcStatus::REM_ACCESS_ERR, Syndrome::RKEY_OUT_OF_BOUNDS)
        },
    ),
    case(
        "atomic.result-needs-local-write",
        "What an atomic brings needs LOCAL_WRITE",
        "IBTA 10.6.3.1; ibv_reg_mr(3)",
        |rig| {
            let mut stage = Stage::new(rig)?;
            let region = stage.pair.a.region(64, Access::empty())?;
            let wr = SendWr::atomic(FAA, 1, region.sge(0, 8), stage.words.remote(0), (1, 0));
            stage
                .pair
                .refused(&wr, WcStatus::LOC_PROT_ERR, Syndrome::LKEY_NO_ACCESS)?;
            same("word", stage.word(0)?, 0)
        },
    ),
    case(
        "atomic.pd-mismatch-local-faa",
        "FETCH_AND_ADD into a region of another protection domain fails",
        PD,
        |rig| own_pd(rig, FAA),
    ),
    case(
        "atomic.pd-mismatch-local-cas",
        "CMP_AND_SWP into a region of another protection domain fails",
        PD,
        |rig| own_pd(rig, CAS),
    ),
    case(
        "atomic.pd-mismatch-remote-faa",
        "A region of another protection domain than the responder's QP refuses FETCH_AND_ADD",
        PD,
        |rig| remote_pd(rig, FAA),
    ),
    case(
        "atomic.pd-mismatch-remote-cas",
        "A region of another protection domain than the responder's QP refuses CMP_AND_SWP",
        PD,
        |rig| remote_pd(rig, CAS),
    ),
];
