//! Receive WQEs, in the queue of a QP and in a shared one.

use ring_proto::status::{Opcode, Syndrome, WcStatus};
use ring_proto::wqe::RqWqe;
use zerocopy::IntoBytes;

use crate::client::{B, Pair, Region, Send, establish, full, recv_wqe, sock};
use crate::sends::{DONE, Outcome, sge};
use crate::table::Value::{Flip, Is, Last, Plus};
use crate::table::{Field, Row, Value, nest, run};

type Values = &'static [(Value, Outcome)];

const BAD_WQE: Outcome = (WcStatus::LOC_QP_OP_ERR, Syndrome::RECV_BAD_WQE);
const TOO_SHORT: Outcome = (WcStatus::LOC_LEN_ERR, Syndrome::RECV_TOO_SHORT);
/// Source: docs/device.md, section "Statuses": what a message meets in a receive buffer.
const NO_LKEY: Outcome = (WcStatus::LOC_ACCESS_ERR, Syndrome::LKEY_UNKNOWN);
const OUT_OF_LKEY: Outcome = (WcStatus::LOC_ACCESS_ERR, Syndrome::LKEY_OUT_OF_BOUNDS);
const REGION: u64 = 4096;
/// Bytes of each of the three elements, which the message fills.
const PART: u32 = 32;

fn fields() -> Vec<Field> {
    let fields = fields!(RqWqe {
        wr_id,
        count,
        reserved,
        sges
    });
    nest(fields, "sges", 3, &sge())
}

const ADDR: Values = &[
    (Is(0), OUT_OF_LKEY),
    (Plus(u64::MAX), OUT_OF_LKEY),
    (Plus(REGION - PART as u64), DONE),
    (Plus(REGION - PART as u64 + 1), OUT_OF_LKEY),
    (Flip(1 << 63), OUT_OF_LKEY),
    (Is(u64::MAX), OUT_OF_LKEY),
    (Is(u64::MAX - PART as u64 + 1), OUT_OF_LKEY),
];
/// An element larger than its region is refused even where the message would have fit.
const LEN: Values = &[
    (Is(0), TOO_SHORT),
    (Plus(u64::MAX), TOO_SHORT),
    (Is(REGION), DONE),
    (Plus(REGION), OUT_OF_LKEY),
    (Is(0xffff_ffff), OUT_OF_LKEY),
];
const LKEY: Values = &[
    (Is(0), NO_LKEY),
    (Flip(1), NO_LKEY),
    (Plus(0x100), NO_LKEY),
    (Flip(1 << 31), NO_LKEY),
    (Is(0xffff_ffff), NO_LKEY),
];

fn rows() -> [Row<'static, Outcome>; 12] {
    [
        ("wr_id", &[(Is(0), DONE), (Is(u64::MAX), DONE)]),
        (
            "count",
            &[
                (Is(0), TOO_SHORT),
                (Is(2), TOO_SHORT),
                (Is(4), BAD_WQE),
                (Is(0xff), BAD_WQE),
            ],
        ),
        (
            "reserved",
            &[(Is(1), BAD_WQE), (Is(1 << 55), BAD_WQE), (Last(1), BAD_WQE)],
        ),
        ("sges[0].addr", ADDR),
        ("sges[0].len", LEN),
        ("sges[0].lkey", LKEY),
        ("sges[1].addr", ADDR),
        ("sges[1].len", LEN),
        ("sges[1].lkey", LKEY),
        ("sges[2].addr", ADDR),
        ("sges[2].len", LEN),
        ("sges[2].lkey", LKEY),
    ]
}

fn good(region: &Region) -> RqWqe {
    recv_wqe(5, &[region.sge(0, PART); 3])
}

/// Sends what fills the receive; a refused one is told to the sender too.
fn message(pair: &mut Pair) -> Outcome {
    let own = pair.a.region(&mut pair.device, REGION, full());
    let send = Send::new(Opcode::SEND, 7, &[own.sge(0, 3 * PART)]);
    pair.a.send(&mut pair.device, &mut pair.qa, &send);
    let sent = pair.a.completions(&mut pair.qa);
    let received = pair.b.completions(&mut pair.qb);
    assert_eq!((sent.len(), received.len()), (1, 1));
    let is_sound = received[0].status == WcStatus::SUCCESS;
    assert_eq!(sent[0].status == WcStatus::SUCCESS, is_sound);
    (received[0].status, received[0].syndrome)
}

#[test]
fn receive() {
    run("receive", &fields(), &rows(), &DONE, |change| {
        let mut pair = Pair::new();
        let target = pair.b.region(&mut pair.device, REGION, full());
        let mut wqe = good(&target);
        change.apply(wqe.as_mut_bytes());
        pair.b.write_recv(&mut pair.qb, wqe);
        pair.b.ring_qp(&mut pair.device, &pair.qb);
        pair.pump();
        message(&mut pair)
    });
}

#[test]
fn shared_receive() {
    run("shared receive", &fields(), &rows(), &DONE, |change| {
        let mut pair = Pair::unjoined();
        let pdn = pair.b.pdn;
        let mut srq = pair.b.srq(&mut pair.device, 16, pdn);
        pair.qb = pair.b.qp_on_srq(&mut pair.device, &srq, pdn);
        pair.b.listen(&mut pair.device, sock(B, 4000), 8);
        establish(
            &mut pair.device,
            (&mut pair.a, pair.qa.qpn),
            (&mut pair.b, pair.qb.qpn),
            4000,
        );
        let target = pair.b.region(&mut pair.device, REGION, full());
        let mut wqe = good(&target);
        change.apply(wqe.as_mut_bytes());
        srq.ring.write(srq.producer, &zerocopy::transmute!(wqe));
        srq.producer += 1;
        pair.b.ring_srq(&mut pair.device, &srq);
        message(&mut pair)
    });
}
