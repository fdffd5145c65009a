//! Connection manager: who reaches whom, and how each request ends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nic_emu::device::{BacklogFull, Device, DeviceOptions};
use ring_proto::admin::{
    AdminOp, AdminStatus, CmAccept, CmConnect, CmListen, CmQuery, CmRecord, LISTEN_SHARED, SockAddr,
};
use ring_proto::eqe::{CmStatus, EventType};
use ring_proto::status::QpState;
use zerocopy::{FromBytes, IntoBytes};

use crate::client::{A, B, Client, RawQp, device, device_with, low, pump, sock};

fn two() -> (Device, Client, Client) {
    let (mut device, a, b) = device();
    let a = Client::attach(&mut device, a);
    let b = Client::attach(&mut device, b);
    (device, a, b)
}

fn dial(device: &mut Device, a: &mut Client, qp: &RawQp, port: u16, timeout_ms: u32) {
    let status = a.connect(device, qp.qpn, sock(A, 999), sock(B, port), timeout_ms, b"");
    assert_eq!(status, AdminStatus::OK);
}

fn rejected(qp: &RawQp, status: CmStatus) -> (EventType, u32, u32) {
    (EventType::CM_REJECTED, qp.qpn, status.0)
}

#[test]
fn request_carries_addresses_and_private_data_to_both_ends() {
    let (mut device, mut a, mut b) = two();
    let listener = b.listen(&mut device, sock(B, 80), 8);
    let (qa, qb) = (a.qp(&mut device), b.qp(&mut device));
    let private: Vec<u8> = (0..=255).collect();
    let status = a.connect(&mut device, qa.qpn, sock(A, 999), sock(B, 80), 0, &private);
    assert_eq!(status, AdminStatus::OK);
    let (event, source, request) = b.event().unwrap();
    assert_eq!((event, source), (EventType::CM_REQUEST, listener));
    let buffer = b.alloc(320);
    let query = |device: &mut Device, client: &mut Client, buffer, id, kind| {
        let body = CmQuery { buffer, id, kind };
        let status = client.status(device, AdminOp::CM_QUERY, body.to_body());
        (status == AdminStatus::OK)
            .then(|| CmRecord::read_from_bytes(&client.read(buffer, 320)).unwrap())
            .ok_or(status)
    };
    let record = query(&mut device, &mut b, buffer, request, 0).unwrap();
    assert_eq!(record.source, SockAddr::from(sock(A, 999)));
    assert_eq!(record.destination, SockAddr::from(sock(B, 80)));
    assert_eq!(record.private_data[..], private);
    assert_eq!(
        (record.peer_function, record.peer_qpn),
        (a.function.0, qa.qpn)
    );
    assert_eq!(
        query(&mut device, &mut b, buffer, qb.qpn, 1),
        Err(AdminStatus::BAD_STATE)
    );
    let body = CmAccept {
        request,
        qpn: qb.qpn,
        ..CmAccept::default()
    };
    let result = b.ok(&mut device, AdminOp::CM_ACCEPT, body.to_body());
    assert_eq!(low(result[0]), a.function.0);
    assert_eq!(
        a.events(),
        [(EventType::CM_ESTABLISHED, qa.qpn, b.function.0)]
    );
    assert_eq!(
        query(&mut device, &mut b, buffer, request, 0),
        Err(AdminStatus::NO_OBJECT)
    );
    let of_b = query(&mut device, &mut b, buffer, qb.qpn, 1).unwrap();
    assert_eq!((of_b.peer_function, of_b.peer_qpn), (a.function.0, qa.qpn));
    let buffer = a.alloc(320);
    let of_a = query(&mut device, &mut a, buffer, qa.qpn, 1).unwrap();
    assert_eq!((of_a.peer_function, of_a.peer_qpn), (b.function.0, qb.qpn));
    assert_eq!(of_a.destination, SockAddr::from(sock(B, 80)));
    for bad in [1, u64::MAX, buffer + (1 << 30)] {
        assert_eq!(
            query(&mut device, &mut a, bad, qa.qpn, 1).err(),
            Some(AdminStatus::BAD_ADDRESS)
        );
    }
    for (client, qpn) in [(&mut a, qa.qpn), (&mut b, qb.qpn)] {
        assert_eq!(client.query(&mut device, qpn), Some(QpState::RTS));
    }
}

#[test]
fn nobody_listening_is_answered_at_once() {
    let (mut device, mut a, mut b) = two();
    let qa = a.qp(&mut device);
    dial(&mut device, &mut a, &qa, 81, 0);
    assert_eq!(a.events(), [rejected(&qa, CmStatus::NO_LISTENER)]);
    // The QP is as before and may try again.
    b.listen(&mut device, sock(B, 81), 1);
    dial(&mut device, &mut a, &qa, 81, 0);
    assert_eq!(a.events(), []);
}

#[test]
fn unknown_address_has_no_route() {
    let (mut device, mut a, _b) = two();
    let qa = a.qp(&mut device);
    let stranger = SocketAddr::new(Ipv4Addr::new(127, 77, 0, 9).into(), 80);
    let v6 = SocketAddr::new(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1).into(), 80);
    for to in [stranger, v6] {
        a.connect(&mut device, qa.qpn, sock(A, 1), to, 0, b"");
        assert_eq!(a.events(), [rejected(&qa, CmStatus::NO_ROUTE)]);
    }
}

#[test]
fn bound_listener_wins_over_the_wildcard() {
    let (mut device, mut a, mut b) = two();
    let wildcard = b.listen(&mut device, sock(Ipv4Addr::UNSPECIFIED, 80), 8);
    let bound = b.listen(&mut device, sock(B, 80), 8);
    let qa = a.qp(&mut device);
    dial(&mut device, &mut a, &qa, 80, 0);
    assert_eq!(b.event().unwrap().1, bound);
    a.named(&mut device, AdminOp::CM_CANCEL, qa.qpn);
    b.events();
    b.named(&mut device, AdminOp::CM_UNLISTEN, bound);
    dial(&mut device, &mut a, &qa, 80, 0);
    assert_eq!(b.event().unwrap().1, wildcard);
}

#[test]
fn ipv6_wildcard_and_mapped_addresses_mean_the_ipv4_ones() {
    let (mut device, mut a, mut b) = two();
    let any = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 80);
    b.listen(&mut device, any, 8);
    let (status, _) = b.try_listen(&mut device, sock(Ipv4Addr::UNSPECIFIED, 80), 8, 0);
    assert_eq!(status, AdminStatus::BUSY);
    let mapped = |ip: Ipv4Addr, port| SocketAddr::new(ip.to_ipv6_mapped().into(), port);
    let qa = a.qp(&mut device);
    let status = a.connect(&mut device, qa.qpn, mapped(A, 9), mapped(B, 80), 0, b"");
    assert_eq!(status, AdminStatus::OK);
    assert_eq!(b.event().unwrap().0, EventType::CM_REQUEST);
}

#[test]
fn wildcard_listens_on_its_own_node_only() {
    let (mut device, mut a, mut b) = two();
    a.listen(&mut device, sock(Ipv4Addr::UNSPECIFIED, 80), 8);
    let qa = a.qp(&mut device);
    dial(&mut device, &mut a, &qa, 80, 0);
    assert_eq!(a.events(), [rejected(&qa, CmStatus::NO_LISTENER)]);
    assert_eq!(b.events(), []);
    // Node b may listen on the same port too.
    b.listen(&mut device, sock(Ipv4Addr::UNSPECIFIED, 80), 8);
}

#[test]
fn bad_listens_are_refused() {
    let (mut device, mut a, mut b) = two();
    b.listen(&mut device, sock(B, 80), 8);
    let unknown = sock(Ipv4Addr::new(1, 2, 3, 4), 80);
    for (at, flags, expected) in [
        (sock(B, 80), 0, AdminStatus::BUSY),
        (sock(B, 80), LISTEN_SHARED, AdminStatus::BUSY),
        (sock(A, 80), 0, AdminStatus::BAD_NODE_ADDRESS),
        (unknown, 0, AdminStatus::BAD_NODE_ADDRESS),
        (sock(B, 0), 0, AdminStatus::INVALID),
        (sock(B, 81), 2, AdminStatus::INVALID),
    ] {
        assert_eq!(b.try_listen(&mut device, at, 8, flags).0, expected, "{at}");
    }
    let good = CmListen {
        local: sock(B, 82).into(),
        backlog: 1,
        ..CmListen::default()
    };
    let mut table = vec![
        (CmListen { holder: 1, ..good }, AdminStatus::NO_OBJECT),
        (
            CmListen {
                reserved: 1,
                ..good
            },
            AdminStatus::INVALID,
        ),
    ];
    for family in [0, 2, 5, u16::MAX] {
        let local = SockAddr {
            family,
            ..good.local
        };
        table.push((CmListen { local, ..good }, AdminStatus::INVALID));
    }
    let mut local = good.local;
    local.addr[15] = 1;
    table.push((CmListen { local, ..good }, AdminStatus::INVALID));
    local = good.local;
    local.reserved = 1;
    table.push((CmListen { local, ..good }, AdminStatus::INVALID));
    for (body, expected) in table {
        let status = b.status(&mut device, AdminOp::CM_LISTEN, body.to_body());
        assert_eq!(status, expected, "{body:?}");
    }
    assert_eq!(
        a.named(&mut device, AdminOp::CM_UNLISTEN, 1),
        AdminStatus::NO_OBJECT
    );
}

#[test]
fn bad_connects_are_refused_and_leave_the_qp_alone() {
    let (mut device, mut a, mut b) = two();
    b.listen(&mut device, sock(B, 80), 8);
    let qa = a.qp(&mut device);
    let good = CmRecord {
        source: sock(A, 9).into(),
        destination: sock(B, 80).into(),
        ..CmRecord::default()
    };
    let at = a.alloc(320);
    type Change = fn(&mut CmRecord);
    let table: [(&str, Change, AdminStatus); 9] = [
        ("private_len", |r| r.private_len = 257, AdminStatus::INVALID),
        ("reserved", |r| r.reserved = 1, AdminStatus::INVALID),
        ("family", |r| r.source.family = 3, AdminStatus::INVALID),
        ("family", |r| r.destination.family = 0, AdminStatus::INVALID),
        (
            "padding",
            |r| r.destination.addr[4] = 1,
            AdminStatus::INVALID,
        ),
        ("port", |r| r.destination.port = 0, AdminStatus::INVALID),
        (
            "spoof",
            |r| r.source = sock(B, 9).into(),
            AdminStatus::BAD_NODE_ADDRESS,
        ),
        (
            "foreign",
            |r| r.source.addr[0] = 9,
            AdminStatus::BAD_NODE_ADDRESS,
        ),
        (
            "wildcard",
            |r| r.source.addr = [0; 16],
            AdminStatus::BAD_NODE_ADDRESS,
        ),
    ];
    let body = CmConnect {
        record: at,
        qpn: qa.qpn,
        timeout_ms: 0,
    };
    for (what, change, expected) in table {
        let mut record = good;
        change(&mut record);
        a.write(at, record.as_bytes());
        let status = a.status(&mut device, AdminOp::CM_CONNECT, body.to_body());
        assert_eq!(status, expected, "{what}");
    }
    a.write(at, good.as_bytes());
    for (body, expected) in [
        (CmConnect { record: 8, ..body }, AdminStatus::BAD_ADDRESS),
        (
            CmConnect {
                record: u64::MAX - 100,
                ..body
            },
            AdminStatus::BAD_ADDRESS,
        ),
        (CmConnect { qpn: 0, ..body }, AdminStatus::NO_OBJECT),
        (
            CmConnect {
                qpn: qa.qpn ^ 1,
                ..body
            },
            AdminStatus::NO_OBJECT,
        ),
        (body, AdminStatus::OK),
        // Once is enough.
        (body, AdminStatus::BAD_STATE),
    ] {
        let status = a.status(&mut device, AdminOp::CM_CONNECT, body.to_body());
        assert_eq!(status, expected, "{body:?}");
    }
    assert_eq!(b.events().len(), 1);
    assert_eq!(a.events(), []);
}

#[test]
fn accept_checks_request_qp_and_listener() {
    let (mut device, mut a, mut b) = two();
    let listener = b.listen(&mut device, sock(B, 80), 8);
    let (qa, qb) = (a.qp(&mut device), b.qp(&mut device));
    dial(&mut device, &mut a, &qa, 80, 0);
    let request = b.event().unwrap().2;
    for (request, qpn, listener, expected) in [
        (request + 1, qb.qpn, 0, AdminStatus::NO_OBJECT),
        (request, qb.qpn ^ 1, 0, AdminStatus::NO_OBJECT),
        (request, qb.qpn, listener ^ 1, AdminStatus::NO_OBJECT),
    ] {
        assert_eq!(
            b.accept(&mut device, request, qpn, listener),
            expected,
            "{request} {qpn} {listener}"
        );
    }
    // Another function cannot answer for the listener.
    let other = a.qp(&mut device);
    assert_eq!(
        a.accept(&mut device, request, other.qpn, 0),
        AdminStatus::NO_OBJECT
    );
    let mut unready = b.qp(&mut device);
    b.modify(&mut device, &mut unready, QpState::RESET);
    assert_eq!(
        b.accept(&mut device, request, unready.qpn, 0),
        AdminStatus::BAD_STATE
    );
    assert_eq!(b.accept(&mut device, request, qb.qpn, 0), AdminStatus::OK);
    assert_eq!(
        b.accept(&mut device, request, qb.qpn, 0),
        AdminStatus::BAD_STATE
    );
}

#[test]
fn explicit_reject_is_told() {
    let (mut device, mut a, mut b) = two();
    b.listen(&mut device, sock(B, 80), 8);
    let qa = a.qp(&mut device);
    dial(&mut device, &mut a, &qa, 80, 1000);
    let request = b.event().unwrap().2;
    let body = CmAccept {
        request,
        ..CmAccept::default()
    };
    b.ok(&mut device, AdminOp::CM_REJECT, body.to_body());
    assert_eq!(a.events(), [rejected(&qa, CmStatus::REJECTED)]);
    assert_eq!(
        b.status(&mut device, AdminOp::CM_REJECT, body.to_body()),
        AdminStatus::NO_OBJECT
    );
    assert_eq!(device.pump().next_timer_ns, None);
    assert_eq!(b.events(), []);
}

#[test]
fn a_listener_without_resources_says_so() {
    let (mut device, mut a, mut b) = two();
    b.listen(&mut device, sock(B, 80), 8);
    let qa = a.qp(&mut device);
    dial(&mut device, &mut a, &qa, 80, 1000);
    let request = b.event().unwrap().2;
    let body = |status: CmStatus| CmAccept {
        request,
        status: status.0,
        ..CmAccept::default()
    };
    for wrong in [CmStatus::NO_LISTENER, CmStatus::TIMED_OUT, CmStatus(99)] {
        let told = b.status(&mut device, AdminOp::CM_REJECT, body(wrong).to_body());
        assert_eq!(told, AdminStatus::INVALID, "{wrong}");
    }
    let status = body(CmStatus::NO_RESOURCE).to_body();
    assert_eq!(
        b.status(&mut device, AdminOp::CM_ACCEPT, status),
        AdminStatus::INVALID
    );
    b.ok(&mut device, AdminOp::CM_REJECT, status);
    assert_eq!(a.events(), [rejected(&qa, CmStatus::NO_RESOURCE)]);
}

#[test]
fn cancel_withdraws_the_request() {
    let (mut device, mut a, mut b) = two();
    let listener = b.listen(&mut device, sock(B, 80), 8);
    let (qa, qb) = (a.qp(&mut device), b.qp(&mut device));
    assert_eq!(
        a.named(&mut device, AdminOp::CM_CANCEL, qa.qpn),
        AdminStatus::BAD_STATE
    );
    dial(&mut device, &mut a, &qa, 80, 1000);
    let request = b.event().unwrap().2;
    assert_eq!(
        a.named(&mut device, AdminOp::CM_CANCEL, qa.qpn),
        AdminStatus::OK
    );
    assert_eq!(b.events(), [(EventType::CM_WITHDRAWN, listener, request)]);
    assert_eq!(
        b.accept(&mut device, request, qb.qpn, 0),
        AdminStatus::NO_OBJECT
    );
    assert_eq!(a.events(), []);
    assert_eq!(device.pump().next_timer_ns, None);
    assert_eq!(a.query(&mut device, qa.qpn), Some(QpState::INIT));
}

#[test]
fn destroyed_connector_withdraws_its_request() {
    let (mut device, mut a, mut b) = two();
    let listener = b.listen(&mut device, sock(B, 80), 8);
    for op in [AdminOp::QP_DESTROY, AdminOp::QP_MODIFY] {
        let mut qa = a.qp(&mut device);
        dial(&mut device, &mut a, &qa, 80, 1000);
        let request = b.event().unwrap().2;
        if op == AdminOp::QP_DESTROY {
            a.named(&mut device, op, qa.qpn);
        } else {
            a.modify(&mut device, &mut qa, QpState::RESET);
        }
        assert_eq!(b.events(), [(EventType::CM_WITHDRAWN, listener, request)]);
    }
}

#[test]
fn request_that_nobody_answers_times_out() {
    let (mut device, mut a, mut b) = two();
    let listener = b.listen(&mut device, sock(B, 80), 8);
    let qa = a.qp(&mut device);
    dial(&mut device, &mut a, &qa, 80, 1500);
    let request = b.event().unwrap().2;
    assert_eq!(device.pump().next_timer_ns, Some(1_500_000_000));
    device.advance(1_499_999_999);
    pump(&mut device);
    assert_eq!(a.events(), []);
    device.advance(1);
    pump(&mut device);
    assert_eq!(a.events(), [rejected(&qa, CmStatus::TIMED_OUT)]);
    assert_eq!(b.events(), [(EventType::CM_WITHDRAWN, listener, request)]);
}

#[test]
fn full_backlog_holds_until_room_or_limit() {
    let (mut device, mut a, mut b) = two();
    b.listen(&mut device, sock(B, 80), 2);
    let qps: Vec<_> = (0..4).map(|_| a.qp(&mut device)).collect();
    for qp in &qps {
        dial(&mut device, &mut a, qp, 80, 1000);
    }
    let shown = b.events();
    assert_eq!(shown.len(), 2, "two fit, two are held");
    let qb = b.qp(&mut device);
    assert_eq!(
        b.accept(&mut device, shown[0].2, qb.qpn, 0),
        AdminStatus::OK
    );
    assert_eq!(b.events().len(), 1, "room for one more");
    assert_eq!(
        a.events(),
        [(EventType::CM_ESTABLISHED, qps[0].qpn, b.function.0)]
    );
    device.advance(1_000_000_000);
    pump(&mut device);
    let mut ends = a.events();
    ends.sort_by_key(|event| event.1);
    let mut expected = [
        rejected(&qps[1], CmStatus::TIMED_OUT),
        rejected(&qps[2], CmStatus::TIMED_OUT),
        rejected(&qps[3], CmStatus::BACKLOG_FULL),
    ];
    expected.sort_by_key(|event| event.1);
    // The last one was shown for a moment when the others timed out, if at all: it fails either way.
    assert_eq!(ends.len(), 3);
    assert_eq!(
        ends[..].iter().map(|e| e.1).collect::<Vec<_>>(),
        expected.map(|e| e.1)
    );
}

#[test]
fn full_backlog_to_the_limit_is_told_apart_from_silence() {
    let (mut device, mut a, mut b) = two();
    b.listen(&mut device, sock(B, 80), 1);
    let (first, second) = (a.qp(&mut device), a.qp(&mut device));
    dial(&mut device, &mut a, &first, 80, 0);
    dial(&mut device, &mut a, &second, 80, 1000);
    device.advance(1_000_000_000);
    pump(&mut device);
    assert_eq!(a.events(), [rejected(&second, CmStatus::BACKLOG_FULL)]);
    assert_eq!(b.events().len(), 1);
}

#[test]
fn full_backlog_may_refuse() {
    let (mut device, a, b) = device_with(DeviceOptions {
        virtual_time: true,
        backlog_full: BacklogFull::Refuse,
        ..DeviceOptions::default()
    });
    let mut a = Client::attach(&mut device, a);
    let mut b = Client::attach(&mut device, b);
    // Nobody means to listen and accept nothing: 0 is 1.
    b.listen(&mut device, sock(B, 80), 0);
    let (first, second) = (a.qp(&mut device), a.qp(&mut device));
    dial(&mut device, &mut a, &first, 80, 0);
    dial(&mut device, &mut a, &second, 80, 0);
    assert_eq!(a.events(), [rejected(&second, CmStatus::REJECTED)]);
}

#[test]
fn shared_listeners_take_turns() {
    let (mut device, mut a, mut b) = two();
    let node = device.node_of(b.function).unwrap();
    let mut other = Client::attach(&mut device, node);
    let share = |device: &mut Device, client: &mut Client| {
        let (status, result) = client.try_listen(device, sock(B, 80), 8, LISTEN_SHARED);
        assert_eq!(status, AdminStatus::OK);
        low(result[0])
    };
    let one = share(&mut device, &mut b);
    let two = share(&mut device, &mut b);
    let three = share(&mut device, &mut other);
    assert_eq!(
        other.try_listen(&mut device, sock(B, 80), 8, 0).0,
        AdminStatus::BUSY
    );
    for _ in 0..6 {
        let qp = a.qp(&mut device);
        dial(&mut device, &mut a, &qp, 80, 0);
    }
    let of_b: Vec<_> = b.events().iter().map(|event| event.1).collect();
    assert_eq!(of_b, [one, two, one, two]);
    let of_other: Vec<_> = other.events().iter().map(|event| event.1).collect();
    assert_eq!(of_other, [three, three]);
}

#[test]
fn closing_a_listener_rejects_who_waits() {
    let (mut device, mut a, mut b) = two();
    let listener = b.listen(&mut device, sock(B, 80), 1);
    let (first, second) = (a.qp(&mut device), a.qp(&mut device));
    dial(&mut device, &mut a, &first, 80, 0);
    dial(&mut device, &mut a, &second, 80, 0);
    b.events();
    b.named(&mut device, AdminOp::CM_UNLISTEN, listener);
    assert_eq!(
        a.events(),
        [
            rejected(&first, CmStatus::REJECTED),
            rejected(&second, CmStatus::REJECTED)
        ]
    );
    assert_eq!(b.events(), []);
    dial(&mut device, &mut a, &first, 80, 0);
    assert_eq!(a.events(), [rejected(&first, CmStatus::NO_LISTENER)]);
}

#[test]
fn node_reaches_itself() {
    let (mut device, mut a, _b) = two();
    a.listen(&mut device, sock(Ipv4Addr::UNSPECIFIED, 80), 1);
    let (one, two) = (a.qp(&mut device), a.qp(&mut device));
    let status = a.connect(&mut device, one.qpn, sock(A, 9), sock(A, 80), 0, b"");
    assert_eq!(status, AdminStatus::OK);
    let request = a.event().unwrap().2;
    assert_eq!(a.accept(&mut device, request, two.qpn, 0), AdminStatus::OK);
    assert_eq!(
        a.events(),
        [(EventType::CM_ESTABLISHED, one.qpn, a.function.0)]
    );
}

#[test]
pub(crate) fn qp_cannot_be_modified_while_it_connects() {
    let (mut device, mut a, mut b) = two();
    b.listen(&mut device, sock(B, 80), 8);
    let qa = a.qp(&mut device);
    dial(&mut device, &mut a, &qa, 80, 0);
    let body = ring_proto::admin::QpModify {
        qpn: qa.qpn,
        state: QpState::INIT.0.into(),
        ..Default::default()
    };
    assert_eq!(
        a.status(&mut device, AdminOp::QP_MODIFY, body.to_body()),
        AdminStatus::BAD_STATE
    );
}

/// What node a calls localhost.
const ALIAS: Ipv4Addr = Ipv4Addr::new(127, 78, 0, 1);

#[test]
fn an_alias_exists_for_its_own_node_alone() {
    let (mut device, mut a, mut b) = two();
    device.add_alias(ring_proto::ids::NodeId(0), ALIAS);
    let listener = a.listen(&mut device, sock(ALIAS, 80), 8);
    let (qa, qb) = (a.qp(&mut device), b.qp(&mut device));

    // From the other node nothing is there, and nobody may listen there or speak from there.
    b.connect(&mut device, qb.qpn, sock(B, 9), sock(ALIAS, 80), 0, b"");
    assert_eq!(b.events(), [rejected(&qb, CmStatus::NO_ROUTE)]);
    let (status, _) = b.try_listen(&mut device, sock(ALIAS, 80), 8, 0);
    assert_eq!(status, AdminStatus::BAD_NODE_ADDRESS);
    for (client, qpn, to) in [(&mut b, qb.qpn, sock(B, 80)), (&mut a, qa.qpn, sock(B, 80))] {
        let status = client.connect(&mut device, qpn, sock(ALIAS, 9), to, 0, b"");
        assert_eq!(status, AdminStatus::BAD_NODE_ADDRESS);
    }

    // On its node it is an address like the others.
    let status = a.connect(&mut device, qa.qpn, sock(ALIAS, 9), sock(ALIAS, 80), 0, b"");
    assert_eq!(status, AdminStatus::OK);
    let (event, at, _) = a.event().unwrap();
    assert_eq!((event, at), (EventType::CM_REQUEST, listener));
}

#[test]
fn a_wildcard_listener_is_reached_by_the_alias() {
    let (mut device, mut a, _b) = two();
    device.add_alias(ring_proto::ids::NodeId(0), ALIAS);
    let wildcard = a.listen(&mut device, sock(Ipv4Addr::UNSPECIFIED, 80), 8);
    let qa = a.qp(&mut device);
    a.connect(&mut device, qa.qpn, sock(A, 9), sock(ALIAS, 80), 0, b"");
    assert_eq!(a.event().unwrap().1, wildcard);
    let qa = a.qp(&mut device);
    a.connect(&mut device, qa.qpn, sock(A, 9), sock(ALIAS, 81), 0, b"");
    assert_eq!(a.events(), [rejected(&qa, CmStatus::NO_LISTENER)]);
}
