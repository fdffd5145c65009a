//! Operations without bytes: a key that is named is checked, key 0 names none. In message mode and by packets.

use ring_proto::admin::{Access, AdminOp, AdminStatus};
use ring_proto::eqe::EventType;
use ring_proto::status::{Opcode, QpState, Syndrome, WcOpcode, WcStatus};
use ring_proto::wqe::Sge;

use crate::client::{Pair, Region, Send, full};
use crate::packet;

type Seen = (WcStatus, Syndrome);

const DONE: Seen = (WcStatus::SUCCESS, Syndrome::NONE);
/// No key of anybody, no address of anybody.
const NOWHERE: Sge = Sge {
    addr: 0xdead_0000,
    len: 0,
    lkey: 0xbad,
};
/// No key, no address of anybody.
const NAMELESS: Sge = Sge { lkey: 0, ..NOWHERE };
const REMOTE: [(Opcode, Access); 3] = [
    (Opcode::RDMA_WRITE, Access::REMOTE_WRITE),
    (Opcode::RDMA_WRITE_WITH_IMM, Access::REMOTE_WRITE),
    (Opcode::RDMA_READ, Access::REMOTE_READ),
];

/// Both ways that a request can travel.
#[derive(Clone, Copy, Debug)]
enum Mode {
    Message,
    Packet,
}

const MODES: [Mode; 2] = [Mode::Message, Mode::Packet];

/// Posts a WQE of client a and gives time for all of it.
fn outcome(pair: &mut Pair, mode: Mode, wqe: &Send) -> Seen {
    if matches!(mode, Mode::Packet) {
        packet::both(pair, packet::slow());
    }
    pair.a.send(&mut pair.device, &mut pair.qa, wqe);
    if matches!(mode, Mode::Packet) {
        packet::run(pair, 100 * packet::MS);
    }
    let wc = pair.a.poll(&mut pair.qa).expect("a completion");
    (wc.status, wc.syndrome)
}

/// A remote key at the responder, and what an operation of no bytes that names it meets.
struct RemoteKey {
    what: &'static str,
    /// Makes the key; the second is the only right that the operation needs.
    key: fn(&mut Pair, Access) -> u32,
    syndrome: Syndrome,
}

/// A region of client b.
fn region(pair: &mut Pair, access: Access) -> Region {
    pair.b.region(&mut pair.device, 64, access)
}

/// Binds a type 2 window of client b over a fresh region, through its QP.
fn window(pair: &mut Pair, access: Access) -> u32 {
    let under = region(pair, Access::LOCAL_WRITE | Access::MW_BIND);
    let pdn = pair.b.pdn;
    let mw = pair.b.mw(&mut pair.device, pdn, 2);
    // The same window, the next tag.
    let key = mw & !0xff | (mw.wrapping_add(1) & 0xff);
    let bind = Send::bind(9, (mw, key), under.key, (under.iova, 64), access);
    post_b(pair, &bind);
    key
}

/// Posts a WQE of client b that must succeed.
fn post_b(pair: &mut Pair, wqe: &Send) {
    pair.b.send(&mut pair.device, &mut pair.qb, wqe);
    let wc = pair.b.poll(&mut pair.qb).expect("a completion");
    assert_eq!((wc.status, wc.syndrome), DONE);
}

const REMOTE_KEYS: [RemoteKey; 13] = [
    RemoteKey {
        what: "good",
        key: |pair, _| region(pair, full()).key,
        syndrome: Syndrome::NONE,
    },
    RemoteKey {
        what: "zero",
        key: |_, _| 0,
        syndrome: Syndrome::NONE,
    },
    RemoteKey {
        what: "never made",
        key: |_, _| 0x00ff_ff00,
        syndrome: Syndrome::RKEY_UNKNOWN,
    },
    RemoteKey {
        what: "wrong tag",
        key: |pair, _| region(pair, full()).key ^ 1,
        syndrome: Syndrome::RKEY_UNKNOWN,
    },
    RemoteKey {
        what: "deregistered",
        key: |pair, _| {
            let key = region(pair, full()).key;
            let status = pair.b.named(&mut pair.device, AdminOp::MR_DEREG, key);
            assert_eq!(status, AdminStatus::OK);
            key
        },
        syndrome: Syndrome::RKEY_UNKNOWN,
    },
    RemoteKey {
        what: "of another domain",
        key: |pair, _| {
            let pdn = pair.b.pd(&mut pair.device);
            pair.b.region_of(&mut pair.device, 64, full(), pdn, 0).key
        },
        syndrome: Syndrome::RKEY_PD_MISMATCH,
    },
    RemoteKey {
        what: "of another QP",
        key: |pair, _| {
            let owner = pair.b.qp(&mut pair.device);
            let pdn = pair.b.pdn;
            let region = pair
                .b
                .region_of(&mut pair.device, 64, full(), pdn, owner.qpn);
            region.key
        },
        syndrome: Syndrome::RKEY_WRONG_QP,
    },
    RemoteKey {
        what: "without the right",
        key: |pair, right| {
            let others = (Access::REMOTE_WRITE | Access::REMOTE_READ) - right;
            region(pair, others | Access::LOCAL_WRITE).key
        },
        syndrome: Syndrome::RKEY_NO_ACCESS,
    },
    RemoteKey {
        what: "invalidated",
        key: |pair, _| {
            let key = region(pair, full()).key;
            post_b(pair, &Send::new(Opcode::LOCAL_INV, 8, &[]).imm(key));
            key
        },
        syndrome: Syndrome::KEY_INVALIDATED,
    },
    RemoteKey {
        what: "window",
        key: window,
        syndrome: Syndrome::NONE,
    },
    RemoteKey {
        what: "window without the right",
        key: |pair, right| window(pair, (Access::REMOTE_WRITE | Access::REMOTE_READ) - right),
        syndrome: Syndrome::RKEY_NO_ACCESS,
    },
    RemoteKey {
        what: "window that was invalidated",
        key: |pair, right| {
            let key = window(pair, right);
            post_b(pair, &Send::new(Opcode::LOCAL_INV, 8, &[]).imm(key));
            key
        },
        syndrome: Syndrome::KEY_INVALIDATED,
    },
    RemoteKey {
        what: "window that was never bound",
        key: |pair, _| {
            let pdn = pair.b.pdn;
            pair.b.mw(&mut pair.device, pdn, 2)
        },
        syndrome: Syndrome::KEY_INVALIDATED,
    },
];

#[test]
fn writes_and_reads_check_the_key_that_they_name_at_any_address() {
    for mode in MODES {
        for (opcode, right) in REMOTE {
            for case in &REMOTE_KEYS {
                for addr in [0, 7, u64::MAX] {
                    let mut pair = Pair::new();
                    let key = (case.key)(&mut pair, right);
                    pair.b.recv(&mut pair.device, &mut pair.qb, 100, &[]);
                    let wqe = Send::new(opcode, 1, &[]).remote(addr, key);
                    let seen = outcome(&mut pair, mode, &wqe);
                    let what = format!("{opcode}, key {}, {mode:?} mode", case.what);
                    let state = pair.b.query(&mut pair.device, pair.qb.qpn);
                    let events = pair.b.events();
                    let told = events
                        .iter()
                        .find(|event| event.0 == EventType::QP_ACCESS)
                        .map(|event| event.2);
                    if case.syndrome == Syndrome::NONE {
                        assert_eq!(seen, DONE, "{what}");
                        assert_eq!((state, told), (Some(QpState::RTS), None), "{what}");
                    } else {
                        let refused = (WcStatus::REM_ACCESS_ERR, case.syndrome);
                        assert_eq!(seen, refused, "{what}");
                        let expected = (Some(QpState::ERR), Some(u32::from(case.syndrome.0)));
                        assert_eq!((state, told), expected, "{what}");
                    }
                }
            }
        }
    }
}

#[test]
fn right_of_the_qp_counts_before_any_key() {
    for mode in MODES {
        for (opcode, right) in REMOTE {
            for key in [0, 0xbad] {
                let mut pair = Pair::with_access(full() - right);
                pair.b.recv(&mut pair.device, &mut pair.qb, 100, &[]);
                let wqe = Send::new(opcode, 1, &[]).remote(7, key);
                let refused = (WcStatus::REM_INV_REQ_ERR, Syndrome::QP_NO_ACCESS);
                assert_eq!(outcome(&mut pair, mode, &wqe), refused, "{opcode} {mode:?}");
            }
        }
    }
}

/// What it is, how it is made, what it meets as a source and as a target.
type LocalKey = (&'static str, fn(&mut Pair) -> u32, Syndrome, Syndrome);

/// Local keys of client a in SGEs of no bytes.
const LOCAL_KEYS: [LocalKey; 7] = [
    (
        "good",
        |pair| pair.a.region(&mut pair.device, 64, full()).key,
        Syndrome::NONE,
        Syndrome::NONE,
    ),
    ("zero", |_| 0, Syndrome::NONE, Syndrome::NONE),
    (
        "never made",
        |_| 0xbad,
        Syndrome::LKEY_UNKNOWN,
        Syndrome::LKEY_UNKNOWN,
    ),
    (
        "of another domain",
        |pair| {
            let pdn = pair.a.pd(&mut pair.device);
            pair.a.region_of(&mut pair.device, 64, full(), pdn, 0).key
        },
        Syndrome::LKEY_PD_MISMATCH,
        Syndrome::LKEY_PD_MISMATCH,
    ),
    (
        "not writable",
        |pair| pair.a.region(&mut pair.device, 64, Access::empty()).key,
        Syndrome::NONE,
        Syndrome::LKEY_NO_ACCESS,
    ),
    (
        "invalidated",
        |pair| {
            let key = pair.a.region(&mut pair.device, 64, full()).key;
            let wqe = Send::new(Opcode::LOCAL_INV, 8, &[]).imm(key);
            pair.a.send(&mut pair.device, &mut pair.qa, &wqe);
            assert_eq!(pair.a.poll(&mut pair.qa).unwrap().status, WcStatus::SUCCESS);
            key
        },
        Syndrome::KEY_INVALIDATED,
        Syndrome::KEY_INVALIDATED,
    ),
    (
        "of a memory window",
        |pair| {
            let pdn = pair.a.pdn;
            pair.a.mw(&mut pair.device, pdn, 2)
        },
        Syndrome::LKEY_UNKNOWN,
        Syndrome::LKEY_UNKNOWN,
    ),
];

#[test]
fn elements_without_bytes_check_the_key_that_they_name() {
    for mode in MODES {
        for (opcode, bytes) in [
            (Opcode::SEND, 0),
            (Opcode::SEND, 8),
            (Opcode::RDMA_WRITE, 0),
            (Opcode::RDMA_WRITE, 8),
            (Opcode::RDMA_READ, 0),
            (Opcode::RDMA_READ, 8),
        ] {
            for (what, key, as_source, as_target) in LOCAL_KEYS {
                let mut pair = Pair::new();
                let remote = region(&mut pair, full());
                pair.b
                    .recv(&mut pair.device, &mut pair.qb, 100, &[remote.sge(0, 64)]);
                let own = pair.a.region(&mut pair.device, 64, full());
                let lkey = key(&mut pair);
                let empty = Sge { lkey, ..NOWHERE };
                // Alone, or behind the bytes.
                let sges = if bytes == 0 {
                    vec![empty]
                } else {
                    vec![own.sge(0, bytes), empty]
                };
                let wqe = Send::new(opcode, 1, &sges).remote(remote.iova, remote.key);
                let syndrome = if opcode == Opcode::RDMA_READ {
                    as_target
                } else {
                    as_source
                };
                let expected = if syndrome == Syndrome::NONE {
                    DONE
                } else {
                    (WcStatus::LOC_PROT_ERR, syndrome)
                };
                let seen = outcome(&mut pair, mode, &wqe);
                assert_eq!(seen, expected, "{opcode} of {bytes}, {what}, {mode:?}");
                let state = pair.b.query(&mut pair.device, pair.qb.qpn);
                assert_eq!(
                    state,
                    Some(QpState::RTS),
                    "the peer never saw a refused one"
                );
            }
        }
    }
}

#[test]
fn elements_without_bytes_of_a_receive_count_where_the_message_reaches_them() {
    for mode in MODES {
        for (before, message, is_reached) in [(0, 0, true), (8, 8, true), (8, 4, false)] {
            for lkey in [0, 0xbad] {
                let mut pair = Pair::new();
                let into = region(&mut pair, full());
                let empty = Sge { lkey, ..NOWHERE };
                let mut sges = vec![empty];
                if before != 0 {
                    sges.insert(0, into.sge(0, before));
                }
                // More behind it, so that `before` bytes do not fill the receive.
                sges.push(into.sge(32, 8));
                pair.b.recv(&mut pair.device, &mut pair.qb, 100, &sges);
                let bytes = vec![7; message];
                let seen = outcome(&mut pair, mode, &Send::inline(Opcode::SEND, 1, &bytes));
                let wc = pair.b.poll(&mut pair.qb).expect("a receive");
                let what = format!("{before} before, {message} come, lkey {lkey:#x}, {mode:?}");
                if lkey == 0 || !is_reached {
                    assert_eq!((seen, wc.status), (DONE, WcStatus::SUCCESS), "{what}");
                } else {
                    let refused = (WcStatus::REM_OP_ERR, Syndrome::RECV_BAD_WQE);
                    assert_eq!(seen, refused, "{what}");
                    let reason = (WcStatus::LOC_ACCESS_ERR, Syndrome::LKEY_UNKNOWN);
                    assert_eq!((wc.status, wc.syndrome), reason, "{what}");
                }
            }
        }
    }
}

/// What programs post as a pure signal: no bytes, no key, immediate data.
#[test]
fn a_write_with_immediate_and_no_key_is_a_signal() {
    for mode in MODES {
        let mut pair = Pair::new();
        // The receive only tells of it: its keys are nobody's business.
        let unknown = Sge { len: 8, ..NOWHERE };
        pair.b.recv(&mut pair.device, &mut pair.qb, 1, &[unknown]);
        let wqe = Send::new(Opcode::RDMA_WRITE_WITH_IMM, 2, &[NAMELESS; 2])
            .remote(0, 0)
            .imm(5);
        assert_eq!(outcome(&mut pair, mode, &wqe), DONE);
        let received = pair.b.poll(&mut pair.qb).unwrap();
        assert_eq!(
            (received.wr_id, received.imm, received.opcode),
            (1, 5, WcOpcode::RECV_RDMA_WITH_IMM.0)
        );
    }
}

#[test]
fn key_zero_opens_nothing_once_there_are_bytes() {
    for mode in MODES {
        let mut pair = Pair::new();
        let remote = region(&mut pair, full());
        let wqe = Send::inline(Opcode::RDMA_WRITE, 1, b"x").remote(remote.iova, 0);
        let refused = (WcStatus::REM_ACCESS_ERR, Syndrome::RKEY_UNKNOWN);
        assert_eq!(outcome(&mut pair, mode, &wqe), refused);

        let mut pair = Pair::new();
        let own = pair.a.region(&mut pair.device, 64, full());
        let sge = Sge {
            lkey: 0,
            ..own.sge(0, 1)
        };
        let refused = (WcStatus::LOC_PROT_ERR, Syndrome::LKEY_UNKNOWN);
        let seen = outcome(&mut pair, mode, &Send::new(Opcode::SEND, 1, &[sge]));
        assert_eq!(seen, refused);
    }
}

#[test]
fn a_send_needs_a_sound_receive_and_its_keys_from_the_first_byte_on() {
    let mut pair = Pair::new();
    let unknown = Sge { len: 8, ..NOWHERE };
    pair.b.recv(&mut pair.device, &mut pair.qb, 1, &[unknown]);
    let wqe = Send::new(Opcode::SEND, 2, &[NAMELESS]);
    assert_eq!(outcome(&mut pair, Mode::Message, &wqe), DONE);
    assert_eq!(pair.b.poll(&mut pair.qb).unwrap().byte_len, 0);
    // One byte more, and the keys count: the receiver's first failure is its lkey.
    let own = pair.a.region(&mut pair.device, 64, full());
    pair.b.recv(&mut pair.device, &mut pair.qb, 3, &[unknown]);
    let wqe = Send::new(Opcode::SEND, 4, &[own.sge(0, 1)]);
    let refused = (WcStatus::REM_OP_ERR, Syndrome::RECV_BAD_WQE);
    assert_eq!(outcome(&mut pair, Mode::Message, &wqe), refused);
    let wc = pair.b.poll(&mut pair.qb).unwrap();
    assert_eq!(
        (wc.status, wc.syndrome),
        (WcStatus::LOC_ACCESS_ERR, Syndrome::LKEY_UNKNOWN)
    );
}
