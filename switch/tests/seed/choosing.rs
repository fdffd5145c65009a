//! Which road data takes, and when that is decided (R-1 … … R-45).

use core::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use driver::spi::ServiceProvider;
use driver::wsa::WsaError;
use ring_proto::telemetry::Reason;
use switch::config::NodeEntry;
use switch::mock::TcpCall;
use switch::tcp_provider::TcpProvider;
use switch::{ConnectStep, Stage};

use super::world::{A, B, World, accept, at, establish, settle, sp_of};
use super::{WILDCARD, one, receive, receive_error, send_all};

#[test]
fn r001_data_that_can_travel_over_the_san_gets_a_socket_created_bound_and_given_options() {
    let world = World::new();
    let (a, b) = (world.node(A), world.node(B));
    a.san.support(libc::SOL_SOCKET, 1);
    let _listener = b.listener(B, 80);
    a.warm();
    let socket = a.socket();
    let set = a.switch.set_option(&socket, libc::SOL_SOCKET, 1, &one());
    set.unwrap();
    a.switch.connect(&socket, at(B, 80));
    let calls = a.calls();
    let wanted = ["san.WSPSocket", "san.WSPBind", "san.WSPSetSockOpt"];
    let asked: Vec<_> = wanted
        .iter()
        .map(|w| calls.iter().filter(|c| c.starts_with(w)).count())
        .collect();
    assert_eq!(asked, [1, 1, 1], "{calls:?}");
    assert_eq!(settle(&a, &b, &socket), ConnectStep::Established);
    assert!(socket.conn().is_some());
}

#[test]
fn r002_the_companion_pairs_with_the_applications_socket_one_to_one() {
    let world = World::new();
    let (a, b) = (world.node(A), world.node(B));
    a.warm();
    let (first, _first_peer) = establish(&a, &b, 80);
    let (second, _second_peer) = establish(&a, &b, 81);
    // Two sockets of the program on this node, two companions on its provider, one for each.
    assert_eq!(a.san.sockets().len(), 2);
    assert_ne!(sp_of(&first), sp_of(&second));
    // A duplicated descriptor reaches the same structure and so the same companion.
    let companion = sp_of(&first);
    first.set_fd(7777);
    assert_eq!(sp_of(&first), companion);
}

#[test]
fn r003_the_companion_is_not_visible_to_the_application() {
    let world = World::new();
    let (a, b) = (world.node(A), world.node(B));
    let _listener = b.listener(B, 80);
    let socket = a.socket();
    let fd = socket.fd();
    assert_eq!(a.switch.connect(&socket, at(B, 80)), ConnectStep::Pending);
    // What the switch waits on is known as its own, to be hidden from the program.
    let (event, _) = socket.connect_event().unwrap();
    assert!(driver::sys::is_internal(event));
    assert_eq!(settle(&a, &b, &socket), ConnectStep::Established);
    assert_eq!(socket.fd(), fd);
    let local = a.switch.local_address(&socket).unwrap();
    assert_eq!(a.tcp.local_address(fd), Ok(local));
    assert_eq!(a.switch.peer_address(&socket), Ok(at(B, 80)));
}

#[test]
fn r004_the_application_sees_its_data_on_the_socket_it_asked_for() {
    let world = World::new();
    let (a, b) = (world.node(A), world.node(B));
    let (socket, accepted) = establish(&a, &b, 80);
    send_all(&socket, b"asked for here");
    assert_eq!(receive(&accepted.socket, 14), b"asked for here");
    send_all(&accepted.socket, b"answered there");
    assert_eq!(receive(&socket, 14), b"answered there");
    // Errors come on that socket too, and on no other.
    world.fabric.break_connection(sp_of(&socket));
    assert_eq!(receive_error(&socket), libc::ECONNRESET);
}

#[test]
fn r005_san_data_goes_through_the_companion_and_never_through_the_tcp_socket() {
    let world = World::new();
    let (a, b) = (world.node(A), world.node(B));
    let (socket, accepted) = establish(&a, &b, 80);
    send_all(&socket, &[7; 1000]);
    receive(&accepted.socket, 1000);
    assert_eq!(world.log.count("tcp.WSPConnect"), 0);
    assert_eq!(world.log.count("tcp.WSPAccept"), 0);
    for (node, fd) in [(&a, socket.fd()), (&b, accepted.fd)] {
        assert_eq!(node.tcp.peer_address(fd), Err(libc::ENOTCONN));
    }
    let (sent, _) = socket.conn().unwrap().counters();
    assert_eq!(sent, 1000);
}

#[test]
fn r027_a_nic_without_address_is_not_used_until_it_gets_one() {
    let world = World::new();
    let b = world.node(B);
    let _listener = b.listener(B, 80);
    let san = world.san("san", &[]);
    let a = world.node_of(A, vec![Arc::clone(&san)], |_| {});
    a.warm();
    let (_, step) = a.stage_after_connect(at(B, 80));
    assert_eq!(step, ConnectStep::UseTcp(Reason::NoProvider));
    a.listener(WILDCARD, 81);
    let calls = a.calls();
    assert!(!calls.iter().any(|c| c.starts_with("san.")), "{calls:?}");
    // It gets one; the notice makes the switch ask again.
    san.set_addresses(&[A]);
    a.switch.addresses_changed();
    let (_, step) = a.stage_after_connect(at(B, 80));
    assert_eq!(step, ConnectStep::Pending);
}

#[test]
fn r027_a_node_without_addresses_uses_tcp_alone() {
    let world = World::new();
    let san = world.san("san", &[]);
    let a = world.node_of(A, vec![san], |config| {
        config.addresses.clear();
        config.nodes = vec![NodeEntry {
            name: "b".to_owned(),
            addresses: vec!["127.77.0.2/24".parse().unwrap()],
        }];
    });
    let (_, step) = a.stage_after_connect(at(B, 80));
    assert_eq!(step, ConnectStep::UseTcp(Reason::NoProvider));
    assert_eq!(a.listener(WILDCARD, 80).stage(), Stage::Tcp);
}

#[test]
fn r028_creation_asks_tcp_first_and_no_provider() {
    let world = World::new();
    let a = world.node(A);
    a.socket();
    assert_eq!(world.log.take(), ["tcp.WSPSocket"]);
    a.tcp.fail(TcpCall::Socket, libc::EMFILE);
    let refused = a.switch.socket(libc::AF_INET, libc::SOCK_STREAM, 0);
    assert_eq!(refused.map(|_| ()), Err(libc::EMFILE));
    assert_eq!(world.log.count("san."), 0);
}

#[test]
fn r029_tcps_descriptor_is_returned_and_stored_in_the_private_structure() {
    let world = World::new();
    let a = world.node(A);
    let made = a
        .switch
        .socket(libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_TCP);
    let (fd, socket) = made.unwrap();
    let socket = socket.unwrap();
    assert!(a.tcp.is_open(fd));
    assert_eq!((socket.fd(), socket.stage()), (fd, Stage::Fresh));
}

#[test]
fn r030_the_descriptor_stays_the_data_socket_whoever_moves_the_bytes() {
    let world = World::new();
    let (a, b) = (world.node(A), world.node(B));
    let (over_san, accepted) = establish(&a, &b, 80);
    let (over_tcp, step) = a.stage_after_connect(at(B, 9));
    assert_eq!(step, ConnectStep::UseTcp(Reason::NoSanListener));
    for (node, fd) in [
        (&a, over_san.fd()),
        (&a, over_tcp.fd()),
        (&b, accepted.socket.fd()),
    ] {
        assert!(node.tcp.is_open(fd));
    }
    assert_eq!(world.log.count("tcp.WSPCloseSocket"), 0);
}

#[test]
fn r031_bind_arrives_for_one_nic_or_for_the_wildcard() {
    let world = World::new();
    let a = world.node(A);
    for (ip, port) in [(A, 80), (WILDCARD, 81)] {
        let socket = a.listener(ip, port);
        assert_eq!(socket.stage(), Stage::SanListening, "{ip}");
    }
    let v6: [(SocketAddr, Stage); 3] = [
        ("[::]:82".parse().unwrap(), Stage::SanListening),
        (
            "[::ffff:127.77.0.1]:83".parse().unwrap(),
            Stage::SanListening,
        ),
        ("[::1]:84".parse().unwrap(), Stage::Tcp),
    ];
    for (address, stage) in v6 {
        let made = a.switch.socket(libc::AF_INET6, libc::SOCK_STREAM, 0);
        let socket = made.unwrap().1.unwrap();
        a.switch.bind(&socket, address).unwrap();
        a.switch.listen(&socket, 1).unwrap();
        assert_eq!(socket.stage(), stage, "{address}");
    }
}

#[test]
fn r032_a_wildcard_listener_accepts_from_all_nics() {
    let world = World::new();
    let second = Ipv4Addr::new(127, 77, 0, 12);
    let sans = vec![world.san("san0", &[B]), world.san("san1", &[second])];
    let b = world.node_of(B, sans, |config| {
        config.addresses.push("127.77.0.12/24".parse().unwrap());
    });
    let a = world.node(A);
    let listener = b.listener(WILDCARD, 80);
    assert_eq!(world.log.count(".WSPListen"), 3, "TCP and two providers");
    for nic in [B, second] {
        let (socket, _) = a.stage_after_connect(at(nic, 80));
        assert_eq!(settle(&a, &b, &socket), ConnectStep::Established);
        let accepted = accept(&b, &listener);
        assert_eq!(accepted.local, at(nic, 80), "the address the peer dialled");
        assert_eq!(accepted.socket.stage(), Stage::SanConnected);
    }
}

#[test]
fn r033_the_wildcard_works_unless_configuration_keeps_it_on_tcp() {
    let world = World::new();
    let a = world.node(A);
    assert_eq!(a.listener(WILDCARD, 80).stage(), Stage::SanListening);
    let b = world.node_with(B, |config| config.wildcard_on_san = false);
    let before = world.log.count("san.");
    assert_eq!(b.listener(WILDCARD, 80).stage(), Stage::Tcp);
    assert_eq!(world.log.count("san.WSPListen"), 1, "{before}");
    assert_eq!(b.listener(B, 81).stage(), Stage::SanListening);
}

#[test]
fn r034_bind_is_forwarded_to_tcp_and_to_no_provider() {
    let world = World::new();
    let a = world.node(A);
    let socket = a.socket();
    a.switch.bind(&socket, at(A, 0)).unwrap();
    assert_eq!(
        world.log.take(),
        ["tcp.WSPSocket", "tcp.WSPBind 127.77.0.1:0"]
    );
    assert_eq!(socket.stage(), Stage::TcpBound);
    assert_ne!(a.switch.local_address(&socket).unwrap().port(), 0);
    let refused = a.socket();
    a.tcp.fail(TcpCall::Bind, libc::EADDRINUSE);
    assert_eq!(a.switch.bind(&refused, at(A, 1)), Err(libc::EADDRINUSE));
    assert_eq!(
        (refused.stage(), world.log.count("san.")),
        (Stage::Fresh, 0)
    );
}

#[test]
fn r036_options_are_stored_as_well_as_given_to_tcp() {
    let world = World::new();
    let (a, b) = (world.node(A), world.node(B));
    a.san.support(libc::SOL_SOCKET, 1);
    a.san.support(libc::SOL_TCP, 1);
    let _listener = b.listener(B, 80);
    let socket = a.socket();
    let set = |name, level| a.switch.set_option(&socket, level, name, &one());
    set(1, libc::SOL_SOCKET).unwrap();
    assert!(a.tcp.stored(socket.fd(), libc::SOL_SOCKET, 1).is_some());
    // A refused option is the program's error and is not stored.
    a.tcp.fail(TcpCall::SetOption, libc::EACCES);
    assert_eq!(set(1, libc::SOL_TCP), Err(libc::EACCES));
    let _before = world.log.take();
    a.switch.connect(&socket, at(B, 80));
    assert_eq!(world.log.count("san.WSPSetSockOpt"), 1);
    assert_eq!(world.log.count("san.WSPSetSockOpt 1/1"), 1);
}

#[test]
fn r039_the_decision_is_taken_at_listen_or_connect_and_not_before() {
    let world = World::new();
    let (a, b) = (world.node(A), world.node(B));
    let socket = a.socket();
    a.switch.bind(&socket, at(A, 0)).unwrap();
    let set = a.switch.set_option(&socket, libc::SOL_SOCKET, 9, &one());
    set.unwrap();
    assert_eq!(world.log.count("san."), 0);
    a.switch.connect(&socket, at(B, 80));
    assert!(world.log.count("san.WSPSocket") > 0);
    let listener = b.socket();
    b.switch.bind(&listener, at(B, 80)).unwrap();
    let before = world.log.count("san.");
    b.switch.listen(&listener, 1).unwrap();
    assert!(world.log.count("san.") > before);
}

#[test]
fn r042_where_no_provider_can_be_used_tcp_carries_the_data() {
    let world = World::new();
    let a = world.node(A);
    a.warm();
    let elsewhere = [
        (at(Ipv4Addr::new(10, 1, 2, 3), 80), Reason::OffSubnet),
        (at(Ipv4Addr::LOCALHOST, 80), Reason::Loopback),
        (at(WILDCARD, 80), Reason::Loopback),
        (at(A, 80), Reason::Loopback),
    ];
    for (to, reason) in elsewhere {
        let (socket, step) = a.stage_after_connect(to);
        assert_eq!(step, ConnectStep::UseTcp(reason), "{to}");
        assert_eq!(socket.stage(), Stage::Tcp);
        assert_eq!(socket.reason(), Some(reason));
    }
    let listener = a.listener(Ipv4Addr::LOCALHOST, 80);
    assert_eq!(listener.stage(), Stage::Tcp);
    a.tcp.arrive(listener.fd(), at(A, 80), at(B, 5));
    let accepted = a.switch.accept(&listener, 0).unwrap();
    assert_eq!(accepted.socket.stage(), Stage::Tcp);
    assert_eq!(world.log.count("san."), 0);
}

#[test]
fn r043_a_chosen_provider_is_asked_for_a_companion() {
    let world = World::new();
    let a = world.node(A);
    a.warm();
    a.stage_after_connect(at(B, 80));
    assert_eq!(world.log.count("san.WSPSocket"), 1);
    a.listener(A, 81);
    assert_eq!(world.log.count("san.WSPSocket"), 2);
}

#[test]
fn r044_raw_and_datagram_sockets_always_use_tcp_ip() {
    let world = World::new();
    let a = world.node(A);
    let others = [
        (libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP),
        (libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_TCP),
        (libc::AF_INET6, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0),
        (libc::AF_INET, libc::SOCK_DGRAM, 0),
        (libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_SCTP),
        (libc::AF_INET, libc::SOCK_STREAM, 262),
        (libc::AF_INET, libc::SOCK_SEQPACKET, 0),
        (libc::AF_UNIX, libc::SOCK_STREAM, 0),
    ];
    for (domain, kind, protocol) in others {
        let (fd, structure) = a.switch.socket(domain, kind, protocol).unwrap();
        assert!(
            structure.is_none() && a.tcp.is_open(fd),
            "{domain} {kind} {protocol}"
        );
    }
    assert_eq!(world.log.count("san."), 0);
}

#[test]
fn r045_a_provider_is_never_asked_for_a_raw_socket_and_may_reject_the_type() {
    let world = World::new();
    let (a, b) = (world.node(A), world.node(B));
    establish(&a, &b, 80);
    // All that the switch ever asks for is in `ProviderTable`'s one call; here is what the others would get.
    let info = driver::spi::TCP_INFO;
    let ask = |family, kind, protocol| a.san.wsp_socket(family, kind, protocol, &info, 1);
    let (stream, tcp) = (libc::SOCK_STREAM, libc::IPPROTO_TCP);
    assert_eq!(
        ask(libc::AF_INET, libc::SOCK_RAW, tcp),
        Err(WsaError::Prototype)
    );
    assert_eq!(
        ask(libc::AF_INET, stream, libc::IPPROTO_UDP),
        Err(WsaError::ProtoNoSupport)
    );
    assert_eq!(ask(libc::AF_INET6, stream, tcp), Err(WsaError::AfNoSupport));
}
