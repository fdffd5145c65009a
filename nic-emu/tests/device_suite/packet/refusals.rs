//! Refusals by packets have the status and syndrome of message mode.

use nic_emu::device::LinkParameters;
use ring_proto::admin::Access;
use ring_proto::eqe::EventType;
use ring_proto::status::{Opcode, Syndrome, WcStatus};

use super::{MS, both, run, short_timeout, slow};
use crate::client::{Pair, Send, Wc, full};

/// Sends one WQE over a slow link and returns its completion.
fn outcome(pair: &mut Pair, wqe: &Send) -> Wc {
    both(pair, slow());
    pair.a.send(&mut pair.device, &mut pair.qa, wqe);
    run(pair, 2_000 * MS);
    pair.a.poll(&mut pair.qa).expect("a completion")
}

#[test]
fn each_refusal_has_the_status_and_syndrome_of_message_mode() {
    type Case = (&'static str, fn(&mut Pair) -> Send);
    let cases: [Case; 9] = [
        ("unknown key", |pair| {
            let region = pair.b.region(&mut pair.device, 64, full());
            Send::inline(Opcode::RDMA_WRITE, 1, b"x").remote(region.iova, region.key ^ 0xff)
        }),
        ("bounds", |pair| {
            let region = pair.b.region(&mut pair.device, 64, full());
            Send::inline(Opcode::RDMA_WRITE, 1, &[1; 8]).remote(region.iova + 60, region.key)
        }),
        ("right of the region", |pair| {
            let region = pair.b.region(&mut pair.device, 64, Access::LOCAL_WRITE);
            let own = pair.a.region(&mut pair.device, 64, full());
            Send::new(Opcode::RDMA_READ, 1, &[own.sge(0, 8)]).remote(region.iova, region.key)
        }),
        ("protection domain", |pair| {
            let pdn = pair.b.pd(&mut pair.device);
            let region = pair.b.region_of(&mut pair.device, 64, full(), pdn, 0);
            Send::inline(Opcode::RDMA_WRITE, 1, b"x").remote(region.iova, region.key)
        }),
        ("receive too short", |pair| {
            let region = pair.b.region(&mut pair.device, 64, full());
            let sge = region.sge(0, 2);
            pair.b.recv(&mut pair.device, &mut pair.qb, 5, &[sge]);
            Send::inline(Opcode::SEND, 1, b"long")
        }),
        ("receive with a bad key", |pair| {
            let region = pair.b.region(&mut pair.device, 64, full());
            let mut sge = region.sge(0, 64);
            sge.lkey ^= 0xff;
            pair.b.recv(&mut pair.device, &mut pair.qb, 5, &[sge]);
            Send::inline(Opcode::SEND, 1, b"long")
        }),
        ("receive malformed", |pair| {
            let mut wqe = crate::client::recv_wqe(5, &[]);
            wqe.count = 200;
            pair.b.write_recv(&mut pair.qb, wqe);
            pair.b.ring_qp(&mut pair.device, &pair.qb);
            Send::inline(Opcode::SEND, 1, b"long")
        }),
        ("own key", |pair| {
            let own = pair.a.region(&mut pair.device, 64, full());
            let mut sge = own.sge(0, 8);
            sge.lkey ^= 0xff;
            Send::new(Opcode::SEND, 1, &[sge])
        }),
        ("own receive memory", |pair| {
            let region = pair.b.region(&mut pair.device, 64, full());
            let own = pair.a.region(&mut pair.device, 64, Access::empty());
            Send::new(Opcode::RDMA_READ, 1, &[own.sge(0, 8)]).remote(region.iova, region.key)
        }),
    ];
    for (what, case) in cases {
        let mut straight = Pair::new();
        let wqe = case(&mut straight);
        straight
            .a
            .send(&mut straight.device, &mut straight.qa, &wqe);
        let expected = straight.a.poll(&mut straight.qa).expect("a completion");
        let mut packets = Pair::new();
        let wqe = case(&mut packets);
        let seen = outcome(&mut packets, &wqe);
        assert_ne!(expected.status, WcStatus::SUCCESS, "{what}");
        assert_eq!(
            (seen.status, seen.syndrome),
            (expected.status, expected.syndrome),
            "{what}"
        );
        let end = |pair: &mut Pair| {
            let wcs = pair.b.completions(&mut pair.qb);
            let wcs: Vec<_> = wcs
                .iter()
                .map(|wc| (wc.wr_id, wc.status, wc.syndrome))
                .collect();
            let events: Vec<_> = pair
                .b
                .events()
                .iter()
                .map(|event| (event.0, event.2))
                .collect();
            (wcs, events, pair.b.query(&mut pair.device, pair.qb.qpn))
        };
        assert_eq!(
            end(&mut straight),
            end(&mut packets),
            "{what}: the responder"
        );
    }
}

#[test]
fn qp_without_the_right_refuses_by_packets_too() {
    let mut pair = Pair::with_access(Access::REMOTE_READ);
    let region = pair.b.region(&mut pair.device, 64, full());
    let wqe = Send::inline(Opcode::RDMA_WRITE, 1, b"x").remote(region.iova, region.key);
    let wc = outcome(&mut pair, &wqe);
    assert_eq!(
        (wc.status, wc.syndrome),
        (WcStatus::REM_INV_REQ_ERR, Syndrome::QP_NO_ACCESS)
    );
    let events = pair.b.events();
    assert!(events.iter().any(|event| event.0 == EventType::QP_ACCESS));
}

/// The NAK is lost with half of everything else, and the requester hears the reason all the same.
#[test]
fn reason_of_a_refusal_survives_the_loss_of_its_answer() {
    for seed in 0..10 {
        let mut pair = Pair::new();
        pair.device.seed_links(seed);
        short_timeout(&mut pair, 7);
        let half = LinkParameters {
            loss_ppm: 300_000,
            ..slow()
        };
        both(&mut pair, half);
        let region = pair.b.region(&mut pair.device, 64, full());
        let wqe = Send::inline(Opcode::RDMA_WRITE, 1, b"x").remote(region.iova, region.key ^ 0xff);
        pair.a.send(&mut pair.device, &mut pair.qa, &wqe);
        run(&mut pair, 100 * MS);
        let wc = pair.a.poll(&mut pair.qa).expect("a completion");
        assert_eq!(
            (wc.status, wc.syndrome),
            (WcStatus::REM_ACCESS_ERR, Syndrome::RKEY_UNKNOWN)
        );
    }
}
