//! Admin commands field by field: each bad value and its status.

use ring_proto::admin::{
    Access, AdminOp, AdminStatus, Body, Command, MrReg, QpCreate, QpModify, QueueCreate,
};
use ring_proto::regs;
use ring_proto::status::{Opcode, QpState, Syndrome};
use ring_proto::sync::Ordering;
use ring_proto::uar;

use crate::client::{ADMIN_DEPTH, BASE, Client, MEMORY, Pair, Send, device, full, low, pump};

#[test]
fn unknown_and_unbuilt_opcodes_are_unsupported() {
    let (mut device, node, _) = device();
    let mut client = Client::attach(&mut device, node);
    for opcode in [0, 14, 15, 29, 1000, u16::MAX, AdminOp::WINDOW_GRANT.0] {
        assert_eq!(
            client.status(&mut device, AdminOp(opcode), Body::default()),
            AdminStatus::UNSUPPORTED,
            "{opcode}"
        );
    }
}

#[test]
fn flags_and_bytes_behind_the_body_must_be_zero() {
    let (mut device, node, _) = device();
    let mut client = Client::attach(&mut device, node);
    for op in AdminOp::ALL {
        if *op == AdminOp::WINDOW_GRANT {
            continue;
        }
        let mut body = Body::default();
        // The last byte belongs to no body but QP_CREATE's, whose last field is `access`.
        body.0[6] = 1 << 63;
        assert_eq!(
            client.status(&mut device, *op, body),
            AdminStatus::INVALID,
            "{op}"
        );
        let command_id = client.admin_producer;
        client.post_admin(Command {
            opcode: op.0,
            flags: 1,
            command_id,
            body: Body::default(),
        });
        client.ring_admin(&mut device);
        pump(&mut device);
        assert_eq!(
            client.admin_completion().map(|(status, _)| status),
            Some(AdminStatus::INVALID),
            "{op}"
        );
    }
}

#[test]
fn numbers_that_name_nothing_are_no_objects() {
    let mut pair = Pair::new();
    for op in [
        AdminOp::PD_FREE,
        AdminOp::MR_DEREG,
        AdminOp::CQ_DESTROY,
        AdminOp::EQ_DESTROY,
        AdminOp::QP_QUERY,
        AdminOp::QP_DESTROY,
        AdminOp::CM_UNLISTEN,
        AdminOp::CM_CANCEL,
        AdminOp::CM_DISCONNECT,
    ] {
        for id in [0, u32::MAX, 1 << 24, 77] {
            assert_eq!(
                pair.a.named(&mut pair.device, op, id),
                AdminStatus::NO_OBJECT,
                "{op} {id:#x}"
            );
        }
    }
    // Numbers of another function name nothing here.
    for (op, id) in [
        (AdminOp::QP_DESTROY, pair.qb.qpn),
        (AdminOp::CQ_DESTROY, pair.qb.cqn),
        (AdminOp::PD_FREE, pair.b.pdn),
    ] {
        assert_eq!(
            pair.a.named(&mut pair.device, op, id),
            AdminStatus::NO_OBJECT,
            "{op}"
        );
    }
}

#[test]
fn pd_in_use_cannot_be_freed() {
    let (mut device, node, _) = device();
    let mut client = Client::attach(&mut device, node);
    let pdn = client.pd(&mut device);
    let region = client.region_of(&mut device, 64, full(), pdn, 0);
    let qp = client.qp_with(&mut device, 16, 16, 16, full(), pdn);
    for (op, id) in [
        (AdminOp::MR_DEREG, region.key),
        (AdminOp::QP_DESTROY, qp.qpn),
    ] {
        assert_eq!(
            client.named(&mut device, AdminOp::PD_FREE, pdn),
            AdminStatus::BUSY
        );
        assert_eq!(client.named(&mut device, op, id), AdminStatus::OK);
    }
    assert_eq!(
        client.named(&mut device, AdminOp::PD_FREE, pdn),
        AdminStatus::OK
    );
    assert_eq!(
        client.named(&mut device, AdminOp::PD_FREE, pdn),
        AdminStatus::NO_OBJECT
    );
}

#[test]
fn pds_run_out() {
    let (mut device, node, _) = device();
    let mut client = Client::attach(&mut device, node);
    let limit = device
        .read_register(client.function, regs::MAX_PD, 4)
        .unwrap();
    // One is the client's own.
    for _ in 1..limit {
        client.pd(&mut device);
    }
    assert_eq!(
        client.status(&mut device, AdminOp::PD_ALLOC, Body::default()),
        AdminStatus::NO_RESOURCE
    );
}

#[test]
fn each_bad_field_of_mr_reg_has_its_status() {
    let (mut device, node, _) = device();
    let mut client = Client::attach(&mut device, node);
    let other_pd = client.pd(&mut device);
    let qp = client.qp(&mut device);
    let good = MrReg {
        addr: BASE,
        len: 4096,
        pdn: client.pdn,
        access: full().bits(),
        owner_qpn: qp.qpn,
        reserved: 0,
    };
    let remote_write = Access::REMOTE_WRITE.bits();
    for (body, expected) in [
        (good, AdminStatus::OK),
        (MrReg { addr: 0, ..good }, AdminStatus::BAD_ADDRESS),
        (MrReg { len: 0, ..good }, AdminStatus::INVALID),
        (
            MrReg {
                len: MEMORY + 1,
                ..good
            },
            AdminStatus::BAD_ADDRESS,
        ),
        (MrReg { pdn: 0, ..good }, AdminStatus::NO_OBJECT),
        (
            MrReg {
                pdn: other_pd,
                ..good
            },
            AdminStatus::INVALID,
        ),
        (
            MrReg {
                access: 1 << 30,
                ..good
            },
            AdminStatus::INVALID,
        ),
        (
            MrReg {
                access: u32::MAX,
                ..good
            },
            AdminStatus::INVALID,
        ),
        (
            MrReg {
                access: remote_write,
                ..good
            },
            AdminStatus::INVALID,
        ),
        (MrReg { access: 0, ..good }, AdminStatus::OK),
        (
            MrReg {
                owner_qpn: qp.qpn ^ 1,
                ..good
            },
            AdminStatus::NO_OBJECT,
        ),
        (
            MrReg {
                owner_qpn: 0,
                ..good
            },
            AdminStatus::OK,
        ),
        (
            MrReg {
                reserved: 1,
                ..good
            },
            AdminStatus::INVALID,
        ),
    ] {
        let status = client.status(&mut device, AdminOp::MR_REG, body.to_body());
        assert_eq!(status, expected, "{body:?}");
    }
}

#[test]
fn each_bad_field_of_a_queue_has_its_status() {
    let (mut device, node, _) = device();
    let mut client = Client::attach(&mut device, node);
    let ring = client.alloc(1 << 12);
    let taken = client.slot();
    let good = QueueCreate {
        ring,
        depth: 16,
        slot: taken,
    };
    client.ok(&mut device, AdminOp::CQ_CREATE, good.to_body());
    // There is an EQ already, so its other fields are tried once it is gone.
    assert_eq!(
        client.status(&mut device, AdminOp::EQ_CREATE, good.to_body()),
        AdminStatus::BUSY
    );
    assert_eq!(
        client.named(&mut device, AdminOp::EQ_DESTROY, 1),
        AdminStatus::OK
    );
    let slot = client.slot();
    let good = QueueCreate { slot, ..good };
    for op in [AdminOp::CQ_CREATE, AdminOp::EQ_CREATE] {
        for (body, expected) in [
            (QueueCreate { depth: 0, ..good }, AdminStatus::INVALID),
            (QueueCreate { depth: 3, ..good }, AdminStatus::INVALID),
            (
                QueueCreate {
                    depth: 1 << 17,
                    ..good
                },
                AdminStatus::INVALID,
            ),
            (
                QueueCreate {
                    depth: 1 << 31,
                    ..good
                },
                AdminStatus::INVALID,
            ),
            (
                QueueCreate {
                    ring: ring + 8,
                    ..good
                },
                AdminStatus::INVALID,
            ),
            (QueueCreate { ring: 0, ..good }, AdminStatus::BAD_ADDRESS),
            (
                QueueCreate {
                    ring: u64::MAX - 63,
                    ..good
                },
                AdminStatus::BAD_ADDRESS,
            ),
            (
                QueueCreate {
                    ring: BASE + MEMORY - 64,
                    ..good
                },
                AdminStatus::BAD_ADDRESS,
            ),
            (
                QueueCreate {
                    slot: uar::ADMIN_SLOT,
                    ..good
                },
                AdminStatus::INVALID,
            ),
            (
                QueueCreate {
                    slot: uar::SLOTS,
                    ..good
                },
                AdminStatus::INVALID,
            ),
            (
                QueueCreate {
                    slot: u32::MAX,
                    ..good
                },
                AdminStatus::INVALID,
            ),
            (
                QueueCreate {
                    slot: taken,
                    ..good
                },
                AdminStatus::BUSY,
            ),
        ] {
            let status = client.status(&mut device, op, body.to_body());
            assert_eq!(status, expected, "{op} {body:?}");
        }
    }
    client.ok(&mut device, AdminOp::EQ_CREATE, good.to_body());
}

#[test]
fn each_bad_field_of_qp_create_has_its_status() {
    let (mut device, node, _) = device();
    let mut client = Client::attach(&mut device, node);
    let existing = client.qp(&mut device);
    let (cqn, _, _) = client.cq(&mut device, 16);
    let ring = client.alloc(1 << 14);
    let good = QpCreate {
        sq_ring: ring,
        rq_ring: ring + 0x1000,
        sq_depth: 16,
        rq_depth: 16,
        pdn: client.pdn,
        send_cqn: cqn,
        recv_cqn: cqn,
        slot: client.slot(),
        holder: 0,
        access: full().bits(),
    };
    for (body, expected) in [
        (
            QpCreate {
                sq_ring: ring + 1,
                ..good
            },
            AdminStatus::INVALID,
        ),
        (
            QpCreate {
                rq_ring: ring + 32,
                ..good
            },
            AdminStatus::INVALID,
        ),
        (QpCreate { sq_ring: 0, ..good }, AdminStatus::BAD_ADDRESS),
        (
            QpCreate {
                rq_ring: BASE + MEMORY - 64,
                ..good
            },
            AdminStatus::BAD_ADDRESS,
        ),
        (
            QpCreate {
                sq_depth: 0,
                ..good
            },
            AdminStatus::INVALID,
        ),
        (
            QpCreate {
                sq_depth: 15,
                ..good
            },
            AdminStatus::INVALID,
        ),
        (
            QpCreate {
                rq_depth: 0,
                ..good
            },
            AdminStatus::INVALID,
        ),
        (
            QpCreate {
                rq_depth: 1 << 17,
                ..good
            },
            AdminStatus::INVALID,
        ),
        (QpCreate { pdn: 0, ..good }, AdminStatus::NO_OBJECT),
        (
            QpCreate {
                send_cqn: 0,
                ..good
            },
            AdminStatus::NO_OBJECT,
        ),
        (
            QpCreate {
                recv_cqn: cqn ^ 1,
                ..good
            },
            AdminStatus::NO_OBJECT,
        ),
        (QpCreate { slot: 0, ..good }, AdminStatus::INVALID),
        (
            QpCreate {
                slot: uar::SLOTS,
                ..good
            },
            AdminStatus::INVALID,
        ),
        (
            QpCreate {
                slot: existing.slot,
                ..good
            },
            AdminStatus::BUSY,
        ),
        (QpCreate { holder: 1, ..good }, AdminStatus::NO_OBJECT),
        (
            QpCreate {
                holder: u32::MAX,
                ..good
            },
            AdminStatus::NO_OBJECT,
        ),
        (
            QpCreate {
                access: 1 << 30,
                ..good
            },
            AdminStatus::INVALID,
        ),
        (good, AdminStatus::OK),
        (good, AdminStatus::BUSY),
    ] {
        let status = client.status(&mut device, AdminOp::QP_CREATE, body.to_body());
        assert_eq!(status, expected, "{body:?}");
    }
    let counters = device.node_counters()[0].counters;
    assert_eq!(counters.qps, 2, "refused commands leave nothing behind");
}

#[test]
fn qp_and_cq_may_share_a_slot() {
    let (mut device, node, _) = device();
    let mut client = Client::attach(&mut device, node);
    let (cqn, slot, _) = client.cq(&mut device, 16);
    let ring = client.alloc(1 << 13);
    let body = QpCreate {
        sq_ring: ring,
        rq_ring: ring + 0x1000,
        sq_depth: 16,
        rq_depth: 16,
        pdn: client.pdn,
        send_cqn: cqn,
        recv_cqn: cqn,
        slot,
        holder: 0,
        access: 0,
    };
    client.ok(&mut device, AdminOp::QP_CREATE, body.to_body());
}

#[test]
fn each_bad_field_of_qp_modify_has_its_status() {
    let mut pair = Pair::new();
    let mut fresh = pair.a.qp(&mut pair.device);
    let good = QpModify {
        qpn: fresh.qpn,
        state: QpState::RTR.0.into(),
        peer_function: pair.b.function.0,
        peer_qpn: pair.qb.qpn,
        ..QpModify::default()
    };
    let init = QpModify {
        qpn: fresh.qpn,
        state: QpState::INIT.0.into(),
        ..QpModify::default()
    };
    for (body, expected) in [
        (QpModify { qpn: 0, ..good }, AdminStatus::NO_OBJECT),
        (
            QpModify {
                qpn: fresh.qpn ^ 1,
                ..good
            },
            AdminStatus::NO_OBJECT,
        ),
        (
            QpModify {
                state: 256 + 3,
                ..good
            },
            AdminStatus::INVALID,
        ),
        (QpModify { state: 9, ..init }, AdminStatus::BAD_STATE),
        (
            QpModify {
                peer_function: 0,
                ..good
            },
            AdminStatus::NO_OBJECT,
        ),
        (
            QpModify {
                peer_function: 99,
                ..good
            },
            AdminStatus::NO_OBJECT,
        ),
        (
            QpModify {
                peer_qpn: 0,
                ..good
            },
            AdminStatus::NO_OBJECT,
        ),
        (
            QpModify {
                peer_qpn: pair.qb.qpn ^ 1,
                ..good
            },
            AdminStatus::NO_OBJECT,
        ),
        (
            QpModify {
                rnr_retry: 1,
                ..good
            },
            AdminStatus::INVALID,
        ),
        (
            QpModify {
                reserved: 1,
                ..good
            },
            AdminStatus::INVALID,
        ),
        (
            QpModify {
                peer_qpn: 1,
                ..init
            },
            AdminStatus::INVALID,
        ),
        (
            QpModify {
                peer_function: 1,
                ..init
            },
            AdminStatus::INVALID,
        ),
        (good, AdminStatus::OK),
        (
            QpModify {
                qpn: fresh.qpn,
                state: QpState::RTS.0.into(),
                rnr_retry: 8,
                ..QpModify::default()
            },
            AdminStatus::INVALID,
        ),
    ] {
        let status = pair
            .a
            .status(&mut pair.device, AdminOp::QP_MODIFY, body.to_body());
        assert_eq!(status, expected, "{body:?}");
    }
    pair.a.modify(&mut pair.device, &mut fresh, QpState::RTS);
}

#[test]
fn many_commands_in_one_doorbell_are_answered_in_order() {
    let (mut device, node, _) = device();
    let mut client = Client::attach(&mut device, node);
    for round in 0..10 {
        for _ in 0..ADMIN_DEPTH {
            let command_id = client.admin_producer;
            client.post_admin(Command {
                opcode: AdminOp::PD_ALLOC.0,
                flags: 0,
                command_id,
                body: Body::default(),
            });
        }
        client.ring_admin(&mut device);
        pump(&mut device);
        let mut seen = Vec::new();
        // `admin_completion` checks the command ids.
        while let Some((status, result)) = client.admin_completion() {
            assert_eq!(status, AdminStatus::OK);
            seen.push(low(result[0]));
        }
        seen.dedup();
        assert_eq!(seen.len(), ADMIN_DEPTH as usize, "round {round}");
    }
}

#[test]
fn completions_that_nobody_takes_fail_the_function() {
    let (mut device, node, _) = device();
    let mut client = Client::attach(&mut device, node);
    for _ in 0..2 {
        for _ in 0..ADMIN_DEPTH {
            client.post_admin(Command {
                opcode: AdminOp::IDENTIFY.0,
                ..Command::default()
            });
        }
        client.ring_admin(&mut device);
        pump(&mut device);
    }
    assert_eq!(
        device
            .read_register(client.function, regs::ERROR_SYNDROME, 4)
            .unwrap(),
        u64::from(Syndrome::CQ_OVERRUN.0)
    );
}

#[test]
fn slots_of_the_past_are_taken_again_from_zero() {
    let mut pair = Pair::new();
    // Both lines have moved on.
    for wr_id in 0..3 {
        pair.b.recv(&mut pair.device, &mut pair.qb, wr_id, &[]);
        pair.a.send(
            &mut pair.device,
            &mut pair.qa,
            &Send::inline(Opcode::SEND, wr_id, b""),
        );
        pair.a.completions(&mut pair.qa);
    }
    let old = pair.qa;
    pair.a.named(&mut pair.device, AdminOp::QP_DESTROY, old.qpn);
    pair.a.named(&mut pair.device, AdminOp::CQ_DESTROY, old.cqn);
    let rings = pair.a.alloc(1 << 14);
    let queue = QueueCreate {
        ring: rings,
        depth: 16,
        slot: old.cq_slot,
    };
    let cqn = low(pair
        .a
        .ok(&mut pair.device, AdminOp::CQ_CREATE, queue.to_body())[0]);
    let body = QpCreate {
        sq_ring: rings + 0x1000,
        rq_ring: rings + 0x2000,
        sq_depth: 16,
        rq_depth: 16,
        pdn: pair.a.pdn,
        send_cqn: cqn,
        recv_cqn: cqn,
        slot: old.slot,
        holder: 0,
        access: 0,
    };
    let qpn = low(pair
        .a
        .ok(&mut pair.device, AdminOp::QP_CREATE, body.to_body())[0]);
    assert_ne!((qpn, cqn), (old.qpn, old.cqn));
    let line = pair.a.bar.line(old.slot);
    assert_eq!(line.sq_producer().load(Ordering::Acquire), 0);
    let consumer = pair.a.bar.line(old.cq_slot).cq_consumer();
    assert_eq!(consumer.load(Ordering::Acquire), 0);
    // Ringing the line does not run the old position.
    pair.a.mark(&mut pair.device, old.slot);
    pair.pump();
    pair.b.events();
    assert_eq!(pair.a.events(), []);
    assert_eq!(pair.a.query(&mut pair.device, qpn), Some(QpState::RESET));
}
