//! Cases about the event queue and asynchronous events.
//!
//! Place: see [`super`]. Source: IBTA vol. 1, 11.6.3; `ibv_get_async_event(3)`; docs/device.md, section "Event queue elements".

use ring_proto::admin::{AdminOp, AdminStatus, QpAttributes, QpModify, QueueCreate};
use ring_proto::eqe::EventType;
use ring_proto::status::{Opcode, QpState, Syndrome, WcStatus};

use super::super::client::QpOptions;
use super::super::target::Port;
use super::super::wr::SendWr;
use super::super::{Case, case, same};
use super::OURS;
use super::drain::change;

const ASYNC: &str = "IBTA 11.6.3; ibv_get_async_event(3)";

pub(super) const CASES: &[Case] = &[
    case(
        "event.one-queue-per-function",
        "A function has one event queue",
        OURS,
        |rig| {
            let mut a = rig.client(Port::A)?;
            let body = QueueCreate {
                ring: a.memory.alloc(16 * 16)?,
                depth: 16,
                slot: a.slot(),
            };
            a.refuse(AdminOp::EQ_CREATE, body.to_body(), AdminStatus::BUSY)
        },
    ),
    case(
        "event.queue-can-be-made-again",
        "A destroyed event queue can be made again",
        OURS,
        |rig| {
            let mut a = rig.client(Port::A)?;
            a.named(AdminOp::EQ_DESTROY, 1, AdminStatus::OK)?;
            a.named(AdminOp::EQ_DESTROY, 1, AdminStatus::NO_OBJECT)?;
            let ring = a.memory.alloc(16 * 16)?;
            a.create_eq(ring, 16)
        },
    ),
    case(
        "event.before-the-queue-waits",
        "Events that happen before there is a queue wait for it",
        OURS,
        |rig| {
            let mut pair = rig.pair()?;
            pair.b.named(AdminOp::EQ_DESTROY, 1, AdminStatus::OK)?;
            pair.a
                .named(AdminOp::QP_DESTROY, pair.qa.qpn, AdminStatus::OK)?;
            let ring = pair.b.memory.alloc(16 * 16)?;
            pair.b.create_eq(ring, 16)?;
            let (_, source, _) = pair.b.event_of(EventType::CM_DISCONNECTED)?;
            same("QP of the event", source, pair.qb.qpn)
        },
    ),
    case(
        "event.full-queue-loses-nothing",
        "Events beyond a full queue wait in order",
        OURS,
        |rig| {
            let mut a = rig.client(Port::A)?;
            let mut b = rig.client(Port::B)?;
            b.named(AdminOp::EQ_DESTROY, 1, AdminStatus::OK)?;
            let ring = b.memory.alloc(16 * 2)?;
            b.create_eq(ring, 2)?;
            let mut wanted = Vec::new();
            for _ in 0..7 {
                let qa = a.init_qp(QpOptions::default())?;
                let qb = b.init_qp(QpOptions::default())?;
                a.modify_to_rtr(qa.qpn, (b.function, qb.qpn))?;
                b.modify_to_rtr(qb.qpn, (a.function, qa.qpn))?;
                a.named(AdminOp::QP_DESTROY, qa.qpn, AdminStatus::OK)?;
                wanted.push(qb.qpn);
            }
            let mut seen = Vec::new();
            while seen.len() < wanted.len() {
                // The device looks for room again by and by.
                rig.pass(1_000_000_000);
                let event = b.event()?;
                if event.0 == EventType::CM_DISCONNECTED {
                    seen.push(event.1);
                }
            }
            same("QPs of the events", seen, wanted)
        },
    ),
    case(
        "event.laps",
        "Events stay in order over many laps of the ring",
        OURS,
        |rig| {
            let mut a = rig.client(Port::A)?;
            a.named(AdminOp::EQ_DESTROY, 1, AdminStatus::OK)?;
            let ring = a.memory.alloc(16 * 4)?;
            a.create_eq(ring, 4)?;
            for _ in 0..12 {
                let mut qp = a.init_qp(QpOptions {
                    cq: None,
                    cq_depth: 8,
                    sq_depth: 8,
                    rq_depth: 8,
                    ..QpOptions::default()
                })?;
                qp.sq_producer = 100;
                a.ring(&qp);
                a.expect_event(
                    EventType::QP_FATAL,
                    qp.qpn,
                    Syndrome::DOORBELL_OUT_OF_RANGE.0.into(),
                )?;
            }
            Ok(())
        },
    ),
    case(
        "event.qp-access",
        "A request that breaks a QP's access rules is QP_ACCESS there, with the syndrome",
        "IBTA 11.6.3.1; ibv_get_async_event(3), IBV_EVENT_QP_ACCESS_ERR",
        |rig| {
            let mut pair = rig.pair()?;
            pair.post(&SendWr::inline(Opcode::RDMA_WRITE, 1, b"x").remote((0, 0)));
            pair.b.expect_event(
                EventType::QP_ACCESS,
                pair.qb.qpn,
                Syndrome::RKEY_UNKNOWN.0.into(),
            )
        },
    ),
    case(
        "event.qp-fatal",
        "A QP that fails without a completion tells so by QP_FATAL",
        "IBTA 11.6.3.1; ibv_get_async_event(3), IBV_EVENT_QP_FATAL",
        |rig| {
            let mut pair = rig.pair()?;
            pair.qa.sq_producer = 1000;
            pair.a.ring(&pair.qa);
            pair.a.expect_event(
                EventType::QP_FATAL,
                pair.qa.qpn,
                Syndrome::DOORBELL_OUT_OF_RANGE.0.into(),
            )
        },
    ),
    case(
        "event.completions-come-first",
        "All completions of a QP are there before an event about it",
        OURS,
        |rig| {
            let mut pair = rig.pair()?;
            pair.receives(4, 64);
            pair.b.settle()?;
            pair.a
                .named(AdminOp::QP_DESTROY, pair.qa.qpn, AdminStatus::OK)?;
            pair.b.event_of(EventType::CM_DISCONNECTED)?;
            for n in 0..4 {
                same("a completion waits", pair.b.has_cqe(pair.qb.recv_cq)?, true)?;
                let wc = pair.b_wc()?;
                same(
                    "wr_id and status",
                    (wc.wr_id, wc.status),
                    (100 + n, WcStatus::WR_FLUSH_ERR),
                )?;
            }
            Ok(())
        },
    ),
    case(
        "event.own-modify-is-silent",
        "A QP that its own driver takes to ERR raises no error event",
        ASYNC,
        |rig| {
            let mut a = rig.client(Port::A)?;
            let qp = a.init_qp(QpOptions::default())?;
            a.modify(qp.qpn, QpState::ERR)?;
            a.no_event()
        },
    ),
    case(
        "event.success-is-silent",
        "Transfers that succeed raise no error event",
        ASYNC,
        |rig| {
            let mut pair = rig.pair()?;
            pair.receives(1, 64);
            let remote = pair.into.remote(0);
            pair.post(&SendWr::inline(Opcode::SEND, 1, b"x"));
            pair.post(&SendWr::inline(Opcode::RDMA_WRITE, 2, b"x").remote(remote));
            pair.a_done(1)?;
            pair.a_done(2)?;
            pair.a.settle()?;
            let bad = [
                EventType::QP_FATAL,
                EventType::QP_ACCESS,
                EventType::CQ_ERROR,
                EventType::DEVICE_FATAL,
            ];
            for client in [&mut pair.a, &mut pair.b] {
                let events = client.drain_events()?;
                same(
                    "error events",
                    events.iter().any(|event| bad.contains(&event.0)),
                    false,
                )?;
            }
            Ok(())
        },
    ),
    case(
        "event.comm-est",
        "The first request that reaches a QP in RTR is COMM_EST there, once",
        "IBTA 11.6.3.1; ibv_get_async_event(3), IBV_EVENT_COMM_EST",
        |rig| {
            let mut a = rig.client(Port::A)?;
            let mut b = rig.client(Port::B)?;
            let mut qa = a.init_qp(QpOptions::default())?;
            let mut qb = b.init_qp(QpOptions::default())?;
            b.recv(&mut qb, 1, &[]);
            b.recv(&mut qb, 2, &[]);
            b.modify_to_rtr(qb.qpn, (a.function, qa.qpn))?;
            a.modify_to_rtr(qa.qpn, (b.function, qb.qpn))?;
            a.modify_to_rts(qa.qpn, 7)?;
            b.no_event()?;
            for n in 1..=2 {
                a.send(&mut qa, &SendWr::inline(Opcode::SEND, n, b""));
                a.wc(qa.send_cq)?;
            }
            b.expect_event(EventType::COMM_EST, qb.qpn, 0)?;
            b.modify_to_rts(qb.qpn, 7)?;
            b.no_event()
        },
    ),
    case(
        "event.comm-est-not-in-rts",
        "A QP that is in RTS when the first request comes tells nothing",
        "ibv_get_async_event(3), IBV_EVENT_COMM_EST",
        |rig| {
            let mut pair = rig.pair()?;
            pair.receives(1, 64);
            pair.post(&SendWr::inline(Opcode::SEND, 1, b"x"));
            pair.a_done(1)?;
            pair.b.no_event()
        },
    ),
    case(
        "event.device-fatal",
        "A function that fails tells so by DEVICE_FATAL, with the syndrome",
        "IBTA 11.6.3.3; ibv_get_async_event(3), IBV_EVENT_DEVICE_FATAL",
        |rig| {
            let mut a = rig.client(Port::A)?;
            a.ring_admin(a.admin_producer().wrapping_add(1000));
            a.wait_failed()?;
            let syndrome = Syndrome::DOORBELL_OUT_OF_RANGE;
            a.expect_event(EventType::DEVICE_FATAL, 0, syndrome.0.into())
        },
    ),
    case(
        "event.port-down-and-up",
        "A port that goes down and comes back tells every function of its node, and requests wait for it",
        "IBTA 11.6.3.2; ibv_get_async_event(3), IBV_EVENT_PORT_ERR and IBV_EVENT_PORT_ACTIVE",
        |rig| {
            let mut pair = rig.pair()?;
            let (into, from) = (pair.out.sge(0, 8), pair.into.remote(0));
            // Wait without end for answers.
            let patient = QpModify {
                attributes: QpAttributes::TIMEOUT.bits(),
                ..QpModify::default()
            };
            let qpn = pair.qa.qpn;
            change(&mut pair.a, qpn, QpState::SQD, QpModify::default())?;
            change(&mut pair.a, qpn, QpState::SQD, patient)?;
            change(&mut pair.a, qpn, QpState::RTS, QpModify::default())?;
            rig.set_port(Port::B, false)?;
            let down = pair.b.event_of(EventType::PORT_DOWN)?;
            same("source", down.1, 0)?;
            pair.post(&SendWr::read(1, into, from));
            let (send_cq, _) = pair.cqs();
            pair.a.no_wc(send_cq)?;
            rig.set_port(Port::B, true)?;
            pair.b.event_of(EventType::PORT_UP)?;
            pair.a_done(1)?;
            // The other port never changed.
            let told = pair.a.drain_events()?;
            let of_port = [EventType::PORT_DOWN, EventType::PORT_UP];
            let is_told = told.iter().any(|event| of_port.contains(&event.0));
            same("port events at the other port", is_told, false)
        },
    ),
];
