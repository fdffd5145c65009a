//! Cases about SEND and receives.
//!
//! Place: see [`super`]. Source: IBTA vol. 1, 9.4.1, 9.7.5 and 10.8; `ibv_post_send(3)`, `ibv_post_recv(3)`, `ibv_poll_cq(3)`.

use ring_proto::cqe::{CQE_IMM, CQE_SOLICITED};
use ring_proto::status::{Opcode, QpState, Syndrome, WcOpcode, WcStatus};
use ring_proto::wqe::WqeFlags;

use super::super::client::{QpOptions, full};
use super::super::rig::{Rig, done};
use super::super::target::Port;
use super::super::wr::SendWr;
use super::super::{Case, Outcome, case, holds, same};
use super::{ERRORS, STATES};

const SEND: &str = "IBTA 9.4.1; ibv_post_send(3)";
const POLL: &str = "IBTA 11.4.2.1; ibv_poll_cq(3)";
const ORDER: &str = "IBTA 10.8.3.3 (ordering)";

fn pattern(len: usize) -> Vec<u8> {
    (0..len)
        .map(|n| (n * 31 + n / 251).to_le_bytes()[0])
        .collect()
}

/// An inline message of this length arrives whole.
fn inline(rig: &mut Rig<'_>, len: usize) -> Outcome {
    let mut pair = rig.pair()?;
    pair.receives(1, 256);
    let bytes = pattern(len);
    pair.post(&SendWr::inline(Opcode::SEND, 1, &bytes));
    let wc = pair.b_done(100)?;
    same("byte_len", wc.byte_len as usize, len)?;
    pair.arrived(&bytes)?;
    pair.a_done(1).map(drop)
}

/// A message from `count` SGEs of unequal lengths.
fn gather(rig: &mut Rig<'_>, count: u32) -> Outcome {
    let mut pair = rig.pair()?;
    pair.receives(1, 4096);
    pair.fill(&pattern(4096))?;
    let mut wanted = Vec::new();
    let mut sges = Vec::new();
    for n in 0..count {
        let (at, len) = (u64::from(n) * 200, n + 1);
        sges.push(pair.out.sge(at, len));
        wanted.extend(pair.a.memory.read(pair.out.iova + at, len as usize)?);
    }
    pair.post(&SendWr::new(Opcode::SEND, 1, &sges));
    pair.b_done(100)?;
    pair.a_done(1)?;
    pair.arrived(&wanted)
}

pub(super) const CASES: &[Case] = &[
    case(
        "send.delivers",
        "A SEND puts its bytes into the next posted receive",
        SEND,
        |rig| {
            let mut pair = rig.pair()?;
            pair.receives(1, 64);
            pair.fill(b"sixteen bytes...")?;
            let sge = pair.out.sge(0, 16);
            pair.post(&SendWr::send(1, sge));
            pair.b_done(100)?;
            pair.a_done(1)?;
            pair.arrived(b"sixteen bytes...")
        },
    ),
    case(
        "send.receive-completion-fields",
        "A receive completion tells length, opcode and both QPs",
        POLL,
        |rig| {
            let mut pair = rig.pair()?;
            pair.receives(1, 64);
            pair.post(&SendWr::inline(Opcode::SEND, 1, b"abc"));
            let wc = pair.b_done(100)?;
            same("length", wc.byte_len, 3)?;
            same("opcode", wc.opcode, WcOpcode::RECV)?;
            same("QP", wc.qpn, pair.qb.qpn)?;
            same("source QP", wc.src_qpn, pair.qa.qpn)?;
            same("flags", wc.flags, 0)
        },
    ),
    case(
        "send.send-completion-fields",
        "A send completion tells opcode, QP and length",
        POLL,
        |rig| {
            let mut pair = rig.pair()?;
            pair.receives(1, 64);
            pair.post(&SendWr::inline(Opcode::SEND, 1, b"abc"));
            let wc = pair.a_done(1)?;
            same("opcode", wc.opcode, WcOpcode::SEND)?;
            same("QP", wc.qpn, pair.qa.qpn)?;
            same("length", wc.byte_len, 3)
        },
    ),
    case(
        "send.imm.delivers",
        "SEND_WITH_IMM carries 32 bits into the receive's completion",
        SEND,
        |rig| {
            let mut pair = rig.pair()?;
            pair.receives(1, 64);
            pair.post(&SendWr::inline(Opcode::SEND_WITH_IMM, 1, b"abc").imm(0xdead_beef));
            let wc = pair.b_done(100)?;
            same("immediate", wc.imm, 0xdead_beef)?;
            holds(
                "the completion says that it has immediate data",
                wc.flags & CQE_IMM != 0,
            )?;
            let wc = pair.a_done(1)?;
            same("opcode", wc.opcode, WcOpcode::SEND_WITH_IMM)
        },
    ),
    case(
        "send.imm.absent-without",
        "A SEND without immediate data shows none, whatever its WQE holds",
        POLL,
        |rig| {
            let mut pair = rig.pair()?;
            pair.receives(1, 64);
            pair.post(&SendWr::inline(Opcode::SEND, 1, b"abc").imm(5));
            let wc = pair.b_done(100)?;
            same("flag and immediate", (wc.flags & CQE_IMM, wc.imm), (0, 0))
        },
    ),
    case(
        "send.imm.alone",
        "A message of no bytes may carry immediate data",
        SEND,
        |rig| {
            let mut pair = rig.pair()?;
            pair.receives(1, 64);
            pair.post(&SendWr::new(Opcode::SEND_WITH_IMM, 1, &[]).imm(6));
            let wc = pair.b_done(100)?;
            same("length and immediate", (wc.byte_len, wc.imm), (0, 6))
        },
    ),
    case(
        "send.solicited-is-shown",
        "A solicited SEND marks the receive's completion",
        "IBTA 9.2.3, 11.4.2.2",
        |rig| {
            let mut pair = rig.pair()?;
            pair.receives(2, 64);
            pair.post(&SendWr::inline(Opcode::SEND, 1, b"abc").flags(WqeFlags::SOLICITED));
            pair.post(&SendWr::inline(Opcode::SEND, 2, b"abc"));
            let (first, second) = (pair.b_done(100)?, pair.b_done(101)?);
            same(
                "flag of the first",
                first.flags & CQE_SOLICITED,
                CQE_SOLICITED,
            )?;
            same("flag of the second", second.flags & CQE_SOLICITED, 0)
        },
    ),
    case(
        "send.zero-length",
        "A SEND of no bytes consumes a receive",
        SEND,
        |rig| {
            let mut pair = rig.pair()?;
            pair.receives(1, 64);
            pair.post(&SendWr::new(Opcode::SEND, 1, &[]));
            let wc = pair.b_done(100)?;
            same("length", wc.byte_len, 0)?;
            pair.a_done(1).map(drop)
        },
    ),
    case(
        "send.zero-length-into-empty-receive",
        "A receive without SGEs takes a message of no bytes",
        SEND,
        |rig| {
            let mut pair = rig.pair()?;
            pair.b.recv(&mut pair.qb, 100, &[]);
            pair.post(&SendWr::new(Opcode::SEND, 1, &[]));
            pair.b_done(100)?;
            pair.a_done(1).map(drop)
        },
    ),
    case(
        "send.gather.two-sges",
        "The SGEs of a SEND are gathered in order",
        SEND,
        |rig| gather(rig, 2),
    ),
    case(
        "send.gather.three-sges",
        "SGEs beyond the first block are gathered too",
        SEND,
        |rig| gather(rig, 3),
    ),
    case(
        "send.gather.most-sges",
        "As many SGEs as the device tells are gathered",
        SEND,
        |rig| gather(rig, 14),
    ),
    case(
        "send.scatter.three-sges",
        "The SGEs of a receive are filled in order",
        "IBTA 9.4.1; ibv_post_recv(3)",
        |rig| {
            let mut pair = rig.pair()?;
            let sges = [
                pair.into.sge(0, 3),
                pair.into.sge(100, 4),
                pair.into.sge(200, 50),
            ];
            pair.b.recv(&mut pair.qb, 100, &sges);
            pair.post(&SendWr::inline(Opcode::SEND, 1, b"0123456789"));
            pair.b_done(100)?;
            let read = |at, len| pair.b.memory.read(pair.into.iova + at, len);
            same(
                "pieces",
                [read(0, 3)?, read(100, 4)?, read(200, 3)?]
                    .concat()
                    .as_slice(),
                b"0123456789",
            )
        },
    ),
    case(
        "send.shorter-than-receive",
        "What a short message does not reach of a receive stays as it was",
        SEND,
        |rig| {
            let mut pair = rig.pair()?;
            pair.b.memory.write(pair.into.iova, &[0xee; 64])?;
            pair.receives(1, 64);
            pair.post(&SendWr::inline(Opcode::SEND, 1, b"abc"));
            pair.b_done(100)?;
            pair.arrived(&[b"abc".as_slice(), &[0xee; 61]].concat())
        },
    ),
    case(
        "send.exact-fit",
        "A message as long as its receive fits",
        SEND,
        |rig| {
            let mut pair = rig.pair()?;
            pair.receives(1, 8);
            pair.post(&SendWr::inline(Opcode::SEND, 1, b"12345678"));
            pair.b_done(100).map(drop)
        },
    ),
    case(
        "send.longer-than-receive",
        "A message longer than its receive: LOC_LEN_ERR there, REM_INV_REQ_ERR at the sender, both in ERR",
        ERRORS,
        |rig| {
            let mut pair = rig.pair()?;
            pair.receives(1, 8);
            pair.post(&SendWr::inline(Opcode::SEND, 1, b"123456789"));
            pair.a_fails(WcStatus::REM_INV_REQ_ERR, Syndrome::RECV_TOO_SHORT)?;
            pair.b_fails(WcStatus::LOC_LEN_ERR, Syndrome::RECV_TOO_SHORT)
        },
    ),
    case(
        "send.unsignaled-completes-silently",
        "An unsignaled SEND that succeeds has no completion; the next one's position covers it",
        "IBTA 10.8.6; ibv_post_send(3)",
        |rig| {
            let mut pair = rig.pair()?;
            pair.receives(2, 64);
            pair.post(&SendWr::inline(Opcode::SEND, 1, b"a").unsignaled());
            pair.post(&SendWr::inline(Opcode::SEND, 2, b"b"));
            let wc = pair.a_done(2)?;
            same("SQ position", wc.wqe_counter, 2)?;
            pair.b_done(100)?;
            pair.b_done(101).map(drop)
        },
    ),
    case(
        "send.order-of-completions",
        "Sends complete in the order of posting",
        ORDER,
        |rig| {
            let mut pair = rig.pair()?;
            pair.receives(20, 16);
            for n in 0..20 {
                pair.a
                    .write_send(&mut pair.qa, &SendWr::inline(Opcode::SEND, n, b"x"));
            }
            pair.a.ring(&pair.qa);
            for n in 0..20 {
                pair.a_done(n)?;
            }
            Ok(())
        },
    ),
    case(
        "send.order-of-receives",
        "Messages take receives in the order of posting",
        ORDER,
        |rig| {
            let mut pair = rig.pair()?;
            pair.receives(20, 16);
            for n in 0..20u8 {
                pair.post(&SendWr::inline(Opcode::SEND, n.into(), &[n]));
            }
            for n in 0..20 {
                pair.b_done(100 + n)?;
                let byte = pair.b.memory.read(pair.into.iova + 16 * n, 1)?;
                same("byte", u64::from(byte[0]), n)?;
            }
            Ok(())
        },
    ),
    case(
        "send.payload-before-completion",
        "When a receive completes its bytes are there",
        "IBTA 10.8.3.3; 9.7.5",
        |rig| {
            let mut pair = rig.pair()?;
            pair.receives(8, 512);
            for n in 0..8u8 {
                pair.a.memory.write(pair.out.iova, &[n; 512])?;
                let sge = pair.out.sge(0, 512);
                pair.post(&SendWr::send(n.into(), sge));
                pair.b_done(100 + u64::from(n))?;
                let seen = pair
                    .b
                    .memory
                    .read(pair.into.iova + 512 * u64::from(n), 512)?;
                same("bytes", seen, vec![n; 512])?;
            }
            Ok(())
        },
    ),
    case(
        "send.inline.none",
        "An inline message of no bytes arrives",
        SEND,
        |rig| inline(rig, 0),
    ),
    case(
        "send.inline.one-byte",
        "An inline message of one byte arrives",
        SEND,
        |rig| inline(rig, 1),
    ),
    case(
        "send.inline.one-block",
        "Inline data fills the first block",
        SEND,
        |rig| inline(rig, 32),
    ),
    case(
        "send.inline.two-blocks",
        "Inline data runs over into the second block",
        SEND,
        |rig| inline(rig, 33),
    ),
    case(
        "send.inline.longest",
        "As much inline data as the device tells arrives",
        SEND,
        |rig| inline(rig, 224),
    ),
    case(
        "send.inline.needs-no-key",
        "Inline data needs no memory region",
        "ibv_post_send(3), IBV_SEND_INLINE",
        |rig| {
            let mut pair = rig.pair()?;
            pair.receives(1, 64);
            let out = pair.out;
            pair.a.named(
                ring_proto::admin::AdminOp::MR_DEREG,
                out.key,
                ring_proto::admin::AdminStatus::OK,
            )?;
            pair.post(&SendWr::inline(Opcode::SEND, 1, b"x"));
            pair.a_done(1).map(drop)
        },
    ),
    case(
        "send.long-message",
        "A message of many turns arrives whole and completes once",
        SEND,
        |rig| {
            const LEN: usize = 1 << 20;
            let mut pair = rig.pair()?;
            let out = pair.a.region(LEN as u64, full())?;
            let into = pair.b.region(LEN as u64, full())?;
            let bytes = pattern(LEN);
            pair.a.memory.write(out.iova, &bytes)?;
            pair.b.recv(&mut pair.qb, 100, &[into.sge(0, 1 << 20)]);
            pair.post(&SendWr::send(1, out.sge(0, 1 << 20)));
            let wc = pair.b_done(100)?;
            same("length", wc.byte_len, 1 << 20)?;
            pair.a_done(1)?;
            holds(
                "every byte arrived",
                pair.b.memory.read(into.iova, LEN)? == bytes,
            )?;
            let (send_cq, _) = pair.cqs();
            pair.a.no_wc(send_cq)
        },
    ),
    case(
        "send.both-directions",
        "Both ends of a connection send at once",
        SEND,
        |rig| {
            let mut pair = rig.pair()?;
            pair.receives(1, 64);
            let sge = pair.out.sge(0, 64);
            pair.a.recv(&mut pair.qa, 200, &[sge]);
            pair.post(&SendWr::inline(Opcode::SEND, 1, b"to b"));
            pair.b
                .send(&mut pair.qb, &SendWr::inline(Opcode::SEND, 2, b"to a"));
            let of_a = pair.a.wcs(pair.qa.send_cq, 2)?;
            let of_b = pair.b.wcs(pair.qb.recv_cq, 2)?;
            holds(
                "all succeed",
                of_a.iter()
                    .chain(&of_b)
                    .all(|wc| wc.status == WcStatus::SUCCESS),
            )?;
            same(
                "bytes at a",
                pair.a.memory.read(pair.out.iova, 4)?.as_slice(),
                b"to a",
            )?;
            pair.arrived(b"to b")
        },
    ),
    case(
        "send.same-function",
        "Two QPs of one function can be connected",
        STATES,
        |rig| {
            let mut a = rig.client(Port::A)?;
            let mut one = a.init_qp(QpOptions::default())?;
            let mut other = a.init_qp(QpOptions::default())?;
            let region = a.region(64, full())?;
            for (qp, peer) in [(one.qpn, other.qpn), (other.qpn, one.qpn)] {
                a.modify_to_rtr(qp, (a.function, peer))?;
            }
            a.modify_to_rts(one.qpn, 7)?;
            a.recv(&mut other, 2, &[region.sge(0, 64)]);
            a.send(&mut one, &SendWr::inline(Opcode::SEND, 1, b"near"));
            done(&a.wc(other.recv_cq)?, 2)?;
            done(&a.wc(one.send_cq)?, 1)
        },
    ),
    case(
        "send.to-a-peer-in-err",
        "A SEND to a QP in ERR runs out of retries",
        ERRORS,
        |rig| {
            let mut pair = rig.pair()?;
            pair.b.modify(pair.qb.qpn, QpState::ERR)?;
            pair.refused(
                &SendWr::inline(Opcode::SEND, 1, b"x"),
                WcStatus::RETRY_EXC_ERR,
                Syndrome::PEER_IN_ERROR,
            )
        },
    ),
    case(
        "send.to-a-peer-that-names-another",
        "A SEND to a QP that has another peer runs out of retries",
        "IBTA 9.6.1.1 (QP validation)",
        |rig| {
            let mut pair = rig.pair()?;
            let stranger = pair.a.init_qp(QpOptions::default())?;
            let mut stranger = stranger;
            pair.a
                .modify_to_rtr(stranger.qpn, (pair.b.function, pair.qb.qpn))?;
            pair.a.modify_to_rts(stranger.qpn, 7)?;
            pair.receives(1, 64);
            pair.a
                .send(&mut stranger, &SendWr::inline(Opcode::SEND, 1, b"x"));
            let wc = pair.a.wc(stranger.send_cq)?;
            same("status", wc.status, WcStatus::RETRY_EXC_ERR)?;
            let (_, recv_cq) = pair.cqs();
            pair.b.no_wc(recv_cq)
        },
    ),
];
