//! Operations without bytes: what is still checked, and what is not.

use ring_proto::admin::Access;
use ring_proto::status::{Opcode, Syndrome, WcOpcode, WcStatus};
use ring_proto::wqe::Sge;

use crate::client::{Pair, Send, full};

const DONE: (WcStatus, Syndrome) = (WcStatus::SUCCESS, Syndrome::NONE);
/// No key of anybody, no address of anybody.
const NOWHERE: Sge = Sge {
    addr: 0xdead_0000,
    len: 0,
    lkey: 0xbad,
};

fn outcome(pair: &mut Pair, wqe: &Send) -> (WcStatus, Syndrome) {
    pair.a.send(&mut pair.device, &mut pair.qa, wqe);
    let wc = pair.a.poll(&mut pair.qa).expect("a completion");
    (wc.status, wc.syndrome)
}

#[test]
fn writes_and_reads_need_no_key_but_the_right() {
    for (opcode, right) in [
        (Opcode::RDMA_WRITE, Access::REMOTE_WRITE),
        (Opcode::RDMA_READ, Access::REMOTE_READ),
    ] {
        for sges in [&[][..], &[NOWHERE; 2]] {
            let wqe = Send::new(opcode, 1, sges).remote(7, 0xbad);
            let mut pair = Pair::with_access(right);
            assert_eq!(outcome(&mut pair, &wqe), DONE, "{opcode}");
            let mut pair = Pair::with_access(full() - right);
            let refused = (WcStatus::REM_INV_REQ_ERR, Syndrome::QP_NO_ACCESS);
            assert_eq!(outcome(&mut pair, &wqe), refused, "{opcode}");
        }
    }
}

#[test]
fn a_write_with_immediate_takes_a_receive_whose_keys_nobody_asks_for() {
    let mut pair = Pair::new();
    let unknown = Sge { len: 8, ..NOWHERE };
    pair.b.recv(&mut pair.device, &mut pair.qb, 1, &[unknown]);
    let wqe = Send::new(Opcode::RDMA_WRITE_WITH_IMM, 2, &[])
        .remote(7, 0xbad)
        .imm(5);
    assert_eq!(outcome(&mut pair, &wqe), DONE);
    let received = pair.b.poll(&mut pair.qb).unwrap();
    assert_eq!(
        (received.wr_id, received.imm, received.opcode),
        (1, 5, WcOpcode::RECV_RDMA_WITH_IMM.0)
    );
}

#[test]
fn a_send_needs_a_sound_receive_and_no_key() {
    let mut pair = Pair::new();
    let unknown = Sge { len: 8, ..NOWHERE };
    pair.b.recv(&mut pair.device, &mut pair.qb, 1, &[unknown]);
    let wqe = Send::new(Opcode::SEND, 2, &[NOWHERE]);
    assert_eq!(outcome(&mut pair, &wqe), DONE);
    assert_eq!(pair.b.poll(&mut pair.qb).unwrap().byte_len, 0);
    // One byte more, and the keys count: the receiver's first failure is its lkey.
    let own = pair.a.region(&mut pair.device, 64, full());
    pair.b.recv(&mut pair.device, &mut pair.qb, 3, &[unknown]);
    let wqe = Send::new(Opcode::SEND, 4, &[own.sge(0, 1)]);
    let refused = (WcStatus::REM_OP_ERR, Syndrome::RECV_BAD_WQE);
    assert_eq!(outcome(&mut pair, &wqe), refused);
    let wc = pair.b.poll(&mut pair.qb).unwrap();
    assert_eq!(
        (wc.status, wc.syndrome),
        (WcStatus::LOC_ACCESS_ERR, Syndrome::LKEY_UNKNOWN)
    );
}
