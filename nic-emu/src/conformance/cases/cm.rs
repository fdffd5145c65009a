//! Cases about the connection manager.
//!
//! Place: see [`super`]. Source: IBTA vol. 1, chapter 12 (communication management); `rdma_listen(3)`, `rdma_connect(3)`,
//! `rdma_accept(3)`, `rdma_reject(3)`, `rdma_disconnect(3)` by name; docs/device.md, section "Connection manager".

use ring_proto::admin::{
    AdminOp, AdminStatus, CmAccept, CmQuery, CmRecord, LISTEN_SHARED, PRIVATE_DATA,
};
use ring_proto::eqe::{CmStatus, EventType};
use ring_proto::status::{Opcode, QpState};
use zerocopy::FromBytes;

use super::super::client::{Client, Qp, QpOptions};
use super::super::rig::Rig;
use super::super::target::Port;
use super::super::wr::SendWr;
use super::super::{Case, Outcome, Stop, case, same};
use super::OURS;

const LISTEN: &str = "IBTA 12.6; rdma_listen(3)";
const CONNECT: &str = "IBTA 12.6, 12.9; rdma_connect(3)";

/// Two clients, a listener of b, and the endpoints.
struct Stage {
    a: Client,
    b: Client,
    qa: Qp,
    qb: Qp,
    listener: u32,
    from: std::net::SocketAddr,
    to: std::net::SocketAddr,
}

impl Stage {
    fn new(rig: &Rig<'_>, backlog: u32) -> Outcome<Self> {
        let (from, to) = (rig.endpoint(Port::A)?, rig.endpoint(Port::B)?);
        let mut a = rig.client(Port::A)?;
        let mut b = rig.client(Port::B)?;
        let qa = a.init_qp(QpOptions::default())?;
        let qb = b.init_qp(QpOptions::default())?;
        let listener = b.listen(to, backlog)?;
        Ok(Self {
            a,
            b,
            qa,
            qb,
            listener,
            from,
            to,
        })
    }

    fn dial(&mut self, timeout_ms: u32) -> Outcome {
        self.a
            .connect(self.qa.qpn, self.from, self.to, timeout_ms, b"hello")
    }

    /// The request that b is told of.
    fn request(&mut self) -> Outcome<u32> {
        let (event, source, request) = self.b.event()?;
        same(
            "event and listener",
            (event, source),
            (EventType::CM_REQUEST, self.listener),
        )?;
        Ok(request)
    }

    fn rejected(&mut self, status: CmStatus) -> Outcome {
        self.a
            .expect_event(EventType::CM_REJECTED, self.qa.qpn, status.0)
    }
}

/// The record of a request (kind 0) or QP (kind 1).
fn record(client: &mut Client, id: u32, kind: u32) -> Outcome<CmRecord> {
    let buffer = client.memory.alloc(size_of::<CmRecord>() as u64)?;
    client.ok(AdminOp::CM_QUERY, CmQuery { buffer, id, kind }.to_body())?;
    let bytes = client.memory.read(buffer, size_of::<CmRecord>())?;
    CmRecord::read_from_bytes(&bytes).map_err(|_| Stop::Failed("no record".into()))
}

pub(super) const CASES: &[Case] = &[
    case(
        "cm.connect.establishes",
        "Connect and accept take both QPs to RTS",
        CONNECT,
        |rig| {
            let mut stage = Stage::new(rig, 8)?;
            stage.dial(0)?;
            let request = stage.request()?;
            stage.b.accept(request, stage.qb.qpn, 0)?;
            stage
                .a
                .expect_event(EventType::CM_ESTABLISHED, stage.qa.qpn, stage.b.function)?;
            stage.a.expect_state(stage.qa.qpn, QpState::RTS)?;
            stage.b.expect_state(stage.qb.qpn, QpState::RTS)
        },
    ),
    case(
        "cm.connect.carries-data",
        "A connection of the connection manager carries messages both ways",
        CONNECT,
        |rig| {
            let mut pair = rig.cm_pair()?;
            pair.receives(1, 64);
            pair.post(&SendWr::inline(Opcode::SEND, 1, b"x"));
            pair.b_done(100)?;
            pair.a_done(1)?;
            pair.a.recv(&mut pair.qa, 5, &[]);
            pair.b
                .send(&mut pair.qb, &SendWr::new(Opcode::SEND, 6, &[]));
            pair.a_done(5).map(drop)
        },
    ),
    case(
        "cm.request.shows-addresses-and-private-data",
        "A request tells who dials whom, and its private data",
        "IBTA 12.6.5 (REQ); rdma_get_cm_event(3)",
        |rig| {
            let mut stage = Stage::new(rig, 8)?;
            stage.dial(0)?;
            let request = stage.request()?;
            let record = record(&mut stage.b, request, 0)?;
            same("source", record.source, stage.from.into())?;
            same("destination", record.destination, stage.to.into())?;
            same(
                "private data",
                record.private_data.get(..record.private_len as usize),
                Some(b"hello".as_slice()),
            )?;
            same(
                "peer",
                (record.peer_function, record.peer_qpn),
                (stage.a.function, stage.qa.qpn),
            )
        },
    ),
    case(
        "cm.query.of-a-connected-qp",
        "Both ends of a connection can ask for its addresses",
        "rdma_get_peer_addr(3); docs/device.md",
        |rig| {
            let mut stage = Stage::new(rig, 8)?;
            stage.dial(0)?;
            let request = stage.request()?;
            stage.b.accept(request, stage.qb.qpn, 0)?;
            let of_a = record(&mut stage.a, stage.qa.qpn, 1)?;
            let of_b = record(&mut stage.b, stage.qb.qpn, 1)?;
            same(
                "addresses",
                (of_a.source, of_a.destination),
                (of_b.source, of_b.destination),
            )?;
            same(
                "peer of a",
                (of_a.peer_function, of_a.peer_qpn),
                (stage.b.function, stage.qb.qpn),
            )?;
            same(
                "peer of b",
                (of_b.peer_function, of_b.peer_qpn),
                (stage.a.function, stage.qa.qpn),
            )
        },
    ),
    case(
        "cm.private-data.longest",
        "As much private data as the device tells travels whole",
        "IBTA 12.6.5; rdma_connect(3)",
        |rig| {
            let mut stage = Stage::new(rig, 8)?;
            stage
                .a
                .connect(stage.qa.qpn, stage.from, stage.to, 0, &[0x5a; PRIVATE_DATA])?;
            let request = stage.request()?;
            same(
                "private data",
                record(&mut stage.b, request, 0)?.private_data,
                [0x5a; PRIVATE_DATA],
            )
        },
    ),
    case(
        "cm.connect.nobody-listens",
        "Where nobody listens the answer comes at once",
        "IBTA 12.6.7 (REJ, invalid service ID)",
        |rig| {
            let mut stage = Stage::new(rig, 8)?;
            stage.to.set_port(rig.fresh_port());
            stage.dial(0)?;
            stage.rejected(CmStatus::NO_LISTENER)?;
            // Free for another try.
            stage.a.expect_state(stage.qa.qpn, QpState::INIT)
        },
    ),
    case(
        "cm.connect.no-route",
        "An address that no node owns is answered at once",
        "IBTA 12.6.7; rdma_resolve_addr(3)",
        |rig| {
            let mut stage = Stage::new(rig, 8)?;
            stage.to.set_ip([192, 0, 2, 77].into());
            stage.dial(0)?;
            stage.rejected(CmStatus::NO_ROUTE)
        },
    ),
    case(
        "cm.connect.foreign-source-refused",
        "The source address is one of the connector's own node",
        "rdma_bind_addr(3)",
        |rig| {
            let mut stage = Stage::new(rig, 8)?;
            let from = stage.to;
            let status = stage.a.try_connect(stage.qa.qpn, from, stage.to, 0, b"")?;
            let same_node = stage.from.ip() == stage.to.ip();
            same(
                "answer",
                status,
                if same_node {
                    AdminStatus::OK
                } else {
                    AdminStatus::BAD_NODE_ADDRESS
                },
            )
        },
    ),
    case(
        "cm.connect.qp-not-in-init-refused",
        "Only a QP in INIT can be connected",
        CONNECT,
        |rig| {
            let mut stage = Stage::new(rig, 8)?;
            stage.a.modify(stage.qa.qpn, QpState::RESET)?;
            let status = stage
                .a
                .try_connect(stage.qa.qpn, stage.from, stage.to, 0, b"")?;
            same("answer", status, AdminStatus::BAD_STATE)
        },
    ),
    case(
        "cm.connect.twice-refused",
        "A QP has one connect at a time",
        CONNECT,
        |rig| {
            let mut stage = Stage::new(rig, 8)?;
            stage.dial(0)?;
            let status = stage
                .a
                .try_connect(stage.qa.qpn, stage.from, stage.to, 0, b"")?;
            same("answer", status, AdminStatus::BAD_STATE)
        },
    ),
    case(
        "cm.connect.bad-record-refused",
        "A record outside of memory is refused",
        OURS,
        |rig| {
            let mut stage = Stage::new(rig, 8)?;
            let body = ring_proto::admin::CmConnect {
                record: 1 << 50,
                qpn: stage.qa.qpn,
                timeout_ms: 0,
            };
            stage.a.refuse(
                AdminOp::CM_CONNECT,
                body.to_body(),
                AdminStatus::BAD_ADDRESS,
            )
        },
    ),
    case(
        "cm.modify-while-connecting-refused",
        "A QP that is being connected is not modified by hand",
        OURS,
        |rig| {
            let mut stage = Stage::new(rig, 8)?;
            stage.dial(0)?;
            let body = super::super::client::to_rtr(stage.qa.qpn, (stage.b.function, stage.qb.qpn));
            stage
                .a
                .refuse(AdminOp::QP_MODIFY, body.to_body(), AdminStatus::BAD_STATE)
        },
    ),
    case(
        "cm.reject.is-told",
        "A rejected connector hears REJECTED and may try again",
        "IBTA 12.6.7 (REJ); rdma_reject(3)",
        |rig| {
            let mut stage = Stage::new(rig, 8)?;
            stage.dial(0)?;
            let request = stage.request()?;
            let body = CmAccept {
                request,
                ..CmAccept::default()
            };
            stage.b.ok(AdminOp::CM_REJECT, body.to_body())?;
            stage.rejected(CmStatus::REJECTED)?;
            stage.dial(0)?;
            let request = stage.request()?;
            stage.b.accept(request, stage.qb.qpn, 0)
        },
    ),
    case(
        "cm.cancel.withdraws",
        "A cancelled connect is withdrawn from the listener",
        "rdma_destroy_id(3); docs/device.md",
        |rig| {
            let mut stage = Stage::new(rig, 8)?;
            stage.dial(0)?;
            let request = stage.request()?;
            stage
                .a
                .named(AdminOp::CM_CANCEL, stage.qa.qpn, AdminStatus::OK)?;
            stage
                .b
                .expect_event(EventType::CM_WITHDRAWN, stage.listener, request)?;
            let status = stage.b.try_accept(request, stage.qb.qpn, 0)?;
            same("late accept", status, AdminStatus::NO_OBJECT)
        },
    ),
    case(
        "cm.cancel.without-connect-refused",
        "Where no connect is under way there is nothing to cancel",
        OURS,
        |rig| {
            let mut stage = Stage::new(rig, 8)?;
            stage
                .a
                .named(AdminOp::CM_CANCEL, stage.qa.qpn, AdminStatus::BAD_STATE)
        },
    ),
    case(
        "cm.destroy-withdraws",
        "The end of a connecting QP withdraws its request",
        OURS,
        |rig| {
            let mut stage = Stage::new(rig, 8)?;
            stage.dial(0)?;
            let request = stage.request()?;
            stage
                .a
                .named(AdminOp::QP_DESTROY, stage.qa.qpn, AdminStatus::OK)?;
            stage
                .b
                .expect_event(EventType::CM_WITHDRAWN, stage.listener, request)
        },
    ),
    case(
        "cm.timeout.is-told",
        "A request that nobody answers ends with TIMED_OUT at its limit",
        "IBTA 12.9.8 (timeouts)",
        |rig| {
            let mut stage = Stage::new(rig, 8)?;
            stage.dial(20)?;
            stage.request()?;
            rig.pass(20_000_000);
            stage.rejected(CmStatus::TIMED_OUT)
        },
    ),
    case(
        "cm.backlog.holds",
        "A request beyond the backlog waits unseen until there is room",
        LISTEN,
        |rig| {
            let mut stage = Stage::new(rig, 1)?;
            stage.dial(0)?;
            let first = stage.request()?;
            let second = stage.a.init_qp(QpOptions::default())?;
            stage.a.connect(second.qpn, stage.from, stage.to, 0, b"")?;
            stage.b.no_event()?;
            stage.b.accept(first, stage.qb.qpn, 0)?;
            stage.request().map(drop)
        },
    ),
    case(
        "cm.backlog.limit-is-told",
        "A request that never got into the backlog ends with BACKLOG_FULL",
        LISTEN,
        |rig| {
            let mut stage = Stage::new(rig, 1)?;
            let first = stage.a.init_qp(QpOptions::default())?;
            stage.a.connect(first.qpn, stage.from, stage.to, 0, b"")?;
            stage.request()?;
            stage.dial(20)?;
            rig.pass(20_000_000);
            stage.rejected(CmStatus::BACKLOG_FULL)
        },
    ),
    case(
        "cm.listen.twice-refused",
        "An endpoint has one listener",
        LISTEN,
        |rig| {
            let mut stage = Stage::new(rig, 8)?;
            let (status, _) = stage.b.try_listen(stage.to, 8, 0)?;
            same("answer", status, AdminStatus::BUSY)
        },
    ),
    case(
        "cm.listen.port-zero-refused",
        "A listener has a port number",
        LISTEN,
        |rig| {
            let mut at = rig.endpoint(Port::B)?;
            at.set_port(0);
            let (status, _) = rig.client(Port::B)?.try_listen(at, 8, 0)?;
            same("answer", status, AdminStatus::INVALID)
        },
    ),
    case(
        "cm.listen.foreign-address-refused",
        "A listener has an address of its own node",
        LISTEN,
        |rig| {
            let mut at = rig.endpoint(Port::B)?;
            at.set_ip([192, 0, 2, 77].into());
            let (status, _) = rig.client(Port::B)?.try_listen(at, 8, 0)?;
            same("answer", status, AdminStatus::BAD_NODE_ADDRESS)
        },
    ),
    case(
        "cm.listen.wildcard-serves-every-address",
        "A listener on the wildcard serves the node's addresses",
        LISTEN,
        |rig| {
            let (from, to) = (rig.endpoint(Port::A)?, rig.endpoint(Port::B)?);
            let (mut a, mut b) = (rig.client(Port::A)?, rig.client(Port::B)?);
            let mut any = to;
            any.set_ip([0, 0, 0, 0].into());
            let listener = b.listen(any, 8)?;
            let qa = a.init_qp(QpOptions::default())?;
            a.connect(qa.qpn, from, to, 0, b"")?;
            let (event, source, _) = b.event()?;
            same(
                "event and listener",
                (event, source),
                (EventType::CM_REQUEST, listener),
            )
        },
    ),
    case(
        "cm.listen.specific-beats-wildcard",
        "A listener on the address is found before one on the wildcard",
        LISTEN,
        |rig| {
            let mut stage = Stage::new(rig, 8)?;
            let mut any = stage.to;
            any.set_ip([0, 0, 0, 0].into());
            stage.b.listen(any, 8)?;
            stage.dial(0)?;
            stage.request().map(drop)
        },
    ),
    case(
        "cm.listen.shared-takes-turns",
        "Listeners that share an endpoint take turns",
        "socket(7), SO_REUSEPORT; docs/device.md",
        |rig| {
            let (from, to) = (rig.endpoint(Port::A)?, rig.endpoint(Port::B)?);
            let (mut a, mut b) = (rig.client(Port::A)?, rig.client(Port::B)?);
            let mut listeners = Vec::new();
            for _ in 0..2 {
                let (status, listener) = b.try_listen(to, 8, LISTEN_SHARED)?;
                same("answer", status, AdminStatus::OK)?;
                listeners.push(listener);
            }
            let mut seen = Vec::new();
            for _ in 0..2 {
                let qp = a.init_qp(QpOptions::default())?;
                a.connect(qp.qpn, from, to, 0, b"")?;
                seen.push(b.event_of(EventType::CM_REQUEST)?.1);
            }
            seen.sort_unstable();
            listeners.sort_unstable();
            same("listeners", seen, listeners)
        },
    ),
    case(
        "cm.unlisten.rejects-waiting",
        "Requests that wait are rejected when their listener ends",
        "rdma_destroy_id(3); docs/device.md",
        |rig| {
            let mut stage = Stage::new(rig, 8)?;
            stage.dial(0)?;
            stage.request()?;
            stage
                .b
                .named(AdminOp::CM_UNLISTEN, stage.listener, AdminStatus::OK)?;
            stage.rejected(CmStatus::REJECTED)
        },
    ),
    case(
        "cm.unlisten.unknown-refused",
        "A listener that does not exist cannot end",
        OURS,
        |rig| {
            rig.client(Port::A)?
                .named(AdminOp::CM_UNLISTEN, 777, AdminStatus::NO_OBJECT)
        },
    ),
    case(
        "cm.accept.unknown-request-refused",
        "A request that does not exist cannot be accepted",
        "rdma_accept(3)",
        |rig| {
            let mut a = rig.client(Port::A)?;
            let qp = a.init_qp(QpOptions::default())?;
            same(
                "answer",
                a.try_accept(4242, qp.qpn, 0)?,
                AdminStatus::NO_OBJECT,
            )
        },
    ),
    case(
        "cm.accept.qp-not-in-init-refused",
        "A request is accepted with a QP in INIT, and stays when it is not",
        "rdma_accept(3)",
        |rig| {
            let mut stage = Stage::new(rig, 8)?;
            stage.dial(0)?;
            let request = stage.request()?;
            stage.b.modify(stage.qb.qpn, QpState::RESET)?;
            same(
                "answer",
                stage.b.try_accept(request, stage.qb.qpn, 0)?,
                AdminStatus::BAD_STATE,
            )?;
            stage.b.modify(stage.qb.qpn, QpState::INIT)?;
            stage.b.accept(request, stage.qb.qpn, 0)
        },
    ),
    case(
        "cm.disconnect.is-told",
        "A disconnect is told to the peer",
        "IBTA 12.6.10 (DREQ); rdma_disconnect(3)",
        |rig| {
            let mut pair = rig.cm_pair()?;
            pair.a
                .named(AdminOp::CM_DISCONNECT, pair.qa.qpn, AdminStatus::OK)?;
            let (_, source, _) = pair.b.event_of(EventType::CM_DISCONNECTED)?;
            same("QP of the event", source, pair.qb.qpn)?;
            pair.a.expect_state(pair.qa.qpn, QpState::ERR)
        },
    ),
    case(
        "cm.disconnect.unconnected-refused",
        "What is not connected cannot be disconnected",
        "rdma_disconnect(3)",
        |rig| {
            let mut a = rig.client(Port::A)?;
            let qp = a.init_qp(QpOptions::default())?;
            a.named(AdminOp::CM_DISCONNECT, qp.qpn, AdminStatus::BAD_STATE)
        },
    ),
    case(
        "cm.connect.again-after-reset",
        "A disconnected QP can be reset and connected again",
        CONNECT,
        |rig| {
            let mut stage = Stage::new(rig, 8)?;
            for _ in 0..3 {
                stage.dial(0)?;
                let (_, _, request) = stage.b.event_of(EventType::CM_REQUEST)?;
                stage.b.accept(request, stage.qb.qpn, 0)?;
                stage.a.event_of(EventType::CM_ESTABLISHED)?;
                stage
                    .a
                    .named(AdminOp::CM_DISCONNECT, stage.qa.qpn, AdminStatus::OK)?;
                stage.b.event_of(EventType::CM_DISCONNECTED)?;
                for (client, qpn) in [(&mut stage.a, stage.qa.qpn), (&mut stage.b, stage.qb.qpn)] {
                    client.modify(qpn, QpState::RESET)?;
                    client.modify(qpn, QpState::INIT)?;
                }
            }
            Ok(())
        },
    ),
];
