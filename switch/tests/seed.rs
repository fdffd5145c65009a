//! The seed page "Creating and Binding SAN Sockets", requirement by requirement, over recording doubles.
//!
//! Each test is named by its number in the reference; docs/wsd.md maps numbers, code and tests.

#[expect(dead_code, reason = "each test file uses its own part of the world")]
mod world;

use core::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use driver::spi::{Extension, OVERLAPPED_DONE, Overlapped, ServiceProvider, SwitchHandle};
use driver::wsa::WsaError;
use ring_proto::sync::Ordering;
use ring_proto::telemetry::Reason;
use switch::config::NodeEntry;
use switch::mock::{Call, TcpCall};
use switch::tcp_provider::TcpProvider;
use switch::{ConnectStep, Stage, Switch};
use world::{A, B, World, accept, at, config, establish, settle, sp_of};

const WILDCARD: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

fn one() -> [u8; 4] {
    1_i32.to_ne_bytes()
}

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

#[test]
fn r053_connecting_keeps_the_order_of_the_figure() {
    let world = World::new();
    let (a, b) = (world.node(A), world.node(B));
    a.san.support(libc::SOL_SOCKET, 1);
    let _listener = b.listener(B, 80);
    a.warm();
    let socket = a.socket();
    a.switch.bind(&socket, at(A, 5000)).unwrap();
    a.switch
        .set_option(&socket, libc::SOL_SOCKET, 1, &one())
        .unwrap();
    a.switch.connect(&socket, at(B, 80));
    assert_eq!(
        a.calls(),
        [
            "tcp.WSPSocket",
            "tcp.WSPBind 127.77.0.1:5000",
            "tcp.WSPSetSockOpt 1/1",
            "san.WSPSocket",
            "san.WPUCreateSocketHandle",
            "san.WSPBind 127.77.0.1:5000",
            "san.WSPSetSockOpt 1/1",
            "san.WSPEventSelect 0x10",
            "san.WSPConnect 127.77.0.2:80",
        ]
    );
}

#[test]
fn r053_listening_keeps_the_order_of_the_figure() {
    let world = World::new();
    let a = world.node(A);
    a.san.support(libc::SOL_SOCKET, 1);
    a.warm();
    let socket = a.socket();
    a.switch.bind(&socket, at(WILDCARD, 5000)).unwrap();
    a.switch
        .set_option(&socket, libc::SOL_SOCKET, 1, &one())
        .unwrap();
    a.switch.listen(&socket, 4).unwrap();
    assert_eq!(
        a.calls(),
        [
            "tcp.WSPSocket",
            "tcp.WSPBind 0.0.0.0:5000",
            "tcp.WSPSetSockOpt 1/1",
            "tcp.WSPListen 4",
            "san.WSPSocket",
            "san.WPUCreateSocketHandle",
            "san.WSPBind 0.0.0.0:5000",
            "san.WSPSetSockOpt 1/1",
            "san.WSPListen 4",
            "san.WSPEventSelect 0x8",
        ]
    );
}

#[test]
fn r055_the_provider_holds_a_structure_from_creation_to_close() {
    let world = World::new();
    let (a, b) = (world.node(A), world.node(B));
    let (socket, accepted) = establish(&a, &b, 80);
    assert_eq!(a.san.sockets(), [sp_of(&socket)]);
    let before = b.san.sockets().len();
    a.switch.close(&socket);
    b.switch.close(&accepted.socket);
    for _ in 0..20 {
        a.serve();
        b.serve();
    }
    assert_eq!(a.san.sockets(), []);
    assert_eq!(b.san.sockets().len(), before - 1, "the listener's is left");
}

#[test]
fn r056_creation_makes_the_upcall_and_fails_with_its_code() {
    let world = World::new();
    let a = world.node(A);
    a.warm();
    a.stage_after_connect(at(B, 80));
    let calls = a.calls();
    let socket = calls.iter().position(|c| c == "san.WSPSocket").unwrap();
    assert_eq!(calls[socket + 1], "san.WPUCreateSocketHandle");
    // The switch refuses the upcall once the provider is cleaned up; creation then fails with that code and leaves nothing.
    let before = a.san.sockets().len();
    a.switch.providers()[0].cleanup().unwrap();
    assert_eq!(a.switch.providers()[0].socket(), Err(WsaError::NoBufs));
    assert_eq!(a.san.sockets().len(), before);
}

#[test]
fn r057_the_provider_keeps_the_switchs_descriptor_and_returns_its_own() {
    let world = World::new();
    let a = world.node(A);
    a.stage_after_connect(at(B, 80));
    let made = a.switch.providers()[0].socket().unwrap();
    let handle = a.san.last_handle().unwrap();
    assert_ne!(made.0, handle.0);
    // The descriptor that it kept is the one it gives back at the end.
    let live = a.switch.providers()[0].live_handles();
    a.san.wsp_close_socket(made).unwrap();
    assert_eq!(a.switch.providers()[0].live_handles(), live - 1);
}

#[test]
fn r058_any_value_serves_as_the_providers_descriptor_and_a_stale_one_is_not_a_socket() {
    let world = World::new();
    let a = world.node(A);
    a.stage_after_connect(at(B, 80));
    let provider = &a.switch.providers()[0];
    let made = provider.socket().unwrap();
    assert!(
        made.0 > u64::from(u32::MAX),
        "no small number, and nothing depends on it"
    );
    a.san.wsp_close_socket(made).unwrap();
    assert_eq!(a.san.wsp_close_socket(made), Err(WsaError::NotSock));
    let address = "127.77.0.1:1".parse().unwrap();
    assert_eq!(a.san.wsp_bind(made, address), Err(WsaError::NotSock));
}

#[test]
fn r059_every_operation_names_the_socket_by_the_providers_descriptor() {
    let world = World::new();
    let (a, b) = (world.node(A), world.node(B));
    // The double answers NotSock to every descriptor but its own: a whole life of a connection passes without one.
    let (socket, accepted) = establish(&a, &b, 80);
    send_all(&socket, b"x");
    receive(&accepted.socket, 1);
    assert!(a.san.sockets().contains(&sp_of(&socket)));
    assert!(b.san.sockets().contains(&sp_of(&accepted.socket)));
}

#[test]
fn r060_upcalls_take_the_switchs_descriptor_alone() {
    let world = World::new();
    let a = world.node_of(
        A,
        vec![world.san("san0", &[A]), world.san("san1", &[])],
        |_| {},
    );
    a.stage_after_connect(at(B, 80));
    let upcalls = a.san.upcalls().unwrap();
    let made = a.switch.providers()[0].socket().unwrap();
    let handle = a.san.last_handle().unwrap();
    assert_eq!(upcalls.wpu_query_socket_handle_context(handle), Ok(made.0));
    let slot = Overlapped::default();
    let foreign = SwitchHandle(made.0);
    let complete = |h| upcalls.wpu_complete_overlapped_request(h, &slot, 0, 5);
    assert_eq!(
        upcalls.wpu_query_socket_handle_context(foreign),
        Err(WsaError::NotSock)
    );
    assert_eq!(
        upcalls.wpu_close_socket_handle(foreign),
        Err(WsaError::NotSock)
    );
    assert_eq!(complete(foreign), Err(WsaError::Inval));
    assert_ne!(slot.state.load(Ordering::Acquire), OVERLAPPED_DONE);
    assert_eq!(complete(handle), Ok(()));
    assert_eq!(slot.state.load(Ordering::Acquire), OVERLAPPED_DONE);
    assert_eq!(slot.bytes.load(Ordering::Relaxed), 5);
    // Another provider's descriptor is foreign too, and a closed one is gone for good.
    let second = &a.switch.providers()[1];
    second.socket().unwrap();
    assert_eq!(upcalls.wpu_close_socket_handle(handle), Ok(()));
    assert_eq!(
        upcalls.wpu_close_socket_handle(handle),
        Err(WsaError::NotSock)
    );
    assert_eq!(complete(handle), Err(WsaError::Inval));
    let again = upcalls.wpu_create_socket_handle(0, 1).unwrap();
    assert_ne!(again, handle, "the generation has moved on");
}

#[test]
fn r061_bind_follows_creation_immediately() {
    let world = World::new();
    let a = world.node(A);
    a.warm();
    a.stage_after_connect(at(B, 80));
    a.listener(A, 81);
    let calls = a.calls();
    for (i, _) in calls
        .iter()
        .enumerate()
        .filter(|(_, c)| *c == "san.WSPSocket")
    {
        assert_eq!(calls[i + 1], "san.WPUCreateSocketHandle");
        assert!(calls[i + 2].starts_with("san.WSPBind"), "{calls:?}");
    }
    // A failed creation is followed by no bind, and there is nothing to close.
    a.san.fail(Call::Socket, WsaError::NoBufs);
    a.stage_after_connect(at(B, 80));
    let calls = a.calls();
    assert!(
        !calls.iter().any(|c| c.contains("san.WSPBind")),
        "{calls:?}"
    );
}

#[test]
fn r062_the_companion_gets_the_address_and_port_of_tcps_socket() {
    let world = World::new();
    let a = world.node(A);
    // Port 0 becomes real in the kernel, and that is the companion's.
    let socket = a.socket();
    a.switch.bind(&socket, at(A, 0)).unwrap();
    let local = a.switch.local_address(&socket).unwrap();
    a.switch.connect(&socket, at(B, 80));
    assert_eq!(world.log.count(&format!("san.WSPBind {local}")), 1);
    let listener = a.socket();
    a.switch.bind(&listener, at(A, 0)).unwrap();
    a.switch.listen(&listener, 1).unwrap();
    let local = a.switch.local_address(&listener).unwrap();
    assert_eq!(world.log.count(&format!("san.WSPBind {local}")), 1);
    // A listener that nobody bound: the kernel chose the port.
    let unbound = a.socket();
    a.switch.listen(&unbound, 1).unwrap();
    let local = a.switch.local_address(&unbound).unwrap();
    assert_ne!(local.port(), 0);
    assert_eq!(world.log.count(&format!("san.WSPBind {local}")), 1);
}

#[test]
fn r063_the_companions_address_is_fully_qualified() {
    let world = World::new();
    let a = world.node(A);
    a.warm();
    // Unbound, wildcard-bound with a port, bound to a NIC: the companion of a connect always has both.
    let bound = [None, Some(at(WILDCARD, 6000)), Some(at(A, 6001))];
    for address in bound {
        let socket = a.socket();
        if let Some(address) = address {
            a.switch.bind(&socket, address).unwrap();
        }
        a.switch.connect(&socket, at(B, 80));
    }
    let calls = a.calls();
    let binds: Vec<SocketAddr> = calls
        .iter()
        .filter_map(|c| c.strip_prefix("san.WSPBind ")?.parse().ok())
        .collect();
    assert_eq!(binds.len(), 3);
    assert!(
        binds.iter().all(|b| b.ip() == A && b.port() != 0),
        "{binds:?}"
    );
    assert_eq!((binds[1].port(), binds[2].port()), (6000, 6001));
}

#[test]
fn r064_a_listener_on_all_nics_passes_the_wildcard_with_the_real_port() {
    let world = World::new();
    let a = world.node(A);
    a.listener(WILDCARD, 6379);
    assert_eq!(world.log.count("san.WSPBind 0.0.0.0:6379"), 1);
    a.listener(A, 6380);
    assert_eq!(world.log.count("san.WSPBind 127.77.0.1:6380"), 1);
}

#[test]
fn r065_an_address_of_no_nic_is_refused_and_both_addresses_reach_the_acceptor() {
    let world = World::new();
    let (a, b) = (world.node(A), world.node(B));
    let (socket, accepted) = establish(&a, &b, 80);
    let local = a.switch.local_address(&socket).unwrap();
    assert_eq!((accepted.peer, accepted.local), (local, at(B, 80)));
    let made = a.switch.providers()[0].socket().unwrap();
    let foreign = "127.77.0.9:80".parse().unwrap();
    assert_eq!(a.san.wsp_bind(made, foreign), Err(WsaError::AddrNotAvail));
}

#[test]
fn r068_the_companion_has_the_options_of_tcps_socket_as_far_as_supported() {
    let world = World::new();
    let (a, b) = (world.node(A), world.node(B));
    let _listener = b.listener(B, 80);
    let socket = a.socket();
    for (level, name) in [
        (libc::SOL_TCP, libc::TCP_NODELAY),
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    ] {
        a.switch.set_option(&socket, level, name, &one()).unwrap();
    }
    // The provider supports neither: not an error, and not attempted.
    assert_eq!(a.switch.connect(&socket, at(B, 80)), ConnectStep::Pending);
    assert_eq!(world.log.count("san.WSPSetSockOpt"), 0);
    assert_eq!(settle(&a, &b, &socket), ConnectStep::Established);
}

#[test]
fn r069_each_supported_option_that_was_specified_is_set_at_once_in_order() {
    let world = World::new();
    let a = world.node(A);
    a.warm();
    for (level, name) in [(1, 1), (6, 1), (1, 9), (6, 4)] {
        a.san.support(level, name);
    }
    let socket = a.socket();
    for (level, name) in [(6, 4), (1, 8), (1, 1), (6, 1), (1, 1), (6, 5)] {
        a.switch.set_option(&socket, level, name, &one()).unwrap();
    }
    a.calls();
    a.switch.connect(&socket, at(B, 80));
    let calls = a.calls();
    let bind = calls
        .iter()
        .position(|c| c.starts_with("san.WSPBind"))
        .unwrap();
    let options = &calls[bind + 1..bind + 4];
    let wanted = ["6/4", "6/1", "1/1"].map(|o| format!("san.WSPSetSockOpt {o}"));
    assert_eq!(options, wanted);
    assert_eq!(calls[bind + 4], "san.WSPEventSelect 0x10");
}

#[test]
fn r070_a_failed_companion_is_closed_and_tcp_goes_on() {
    let steps = [
        (Call::Socket, WsaError::NoBufs, Reason::SpSocket, 0),
        (Call::Bind, WsaError::AddrNotAvail, Reason::SpBind, 1),
        (Call::SetSockOpt, WsaError::Inval, Reason::SpSetsockopt, 1),
    ];
    for (call, error, reason, closes) in steps {
        for listens in [false, true] {
            let world = World::new();
            let a = world.node(A);
            a.warm();
            a.san.support(libc::SOL_SOCKET, 1);
            let socket = a.socket();
            a.switch.bind(&socket, at(A, 7000)).unwrap();
            a.switch
                .set_option(&socket, libc::SOL_SOCKET, 1, &one())
                .unwrap();
            a.san.fail(call, error);
            if listens {
                assert_eq!(
                    a.switch.listen(&socket, 1),
                    Ok(()),
                    "the program sees nothing"
                );
            } else {
                let step = a.switch.connect(&socket, at(B, 80));
                assert_eq!(step, ConnectStep::UseTcp(reason));
            }
            assert_eq!(socket.stage(), Stage::Tcp);
            assert_eq!(world.log.count("san.WSPCloseSocket"), closes, "{call:?}");
            assert_eq!(
                world
                    .log
                    .count(&format!("host.fell_back {}", reason.name())),
                1
            );
            assert_eq!(a.san.sockets(), [], "{call:?}");
            assert_eq!(a.switch.providers()[0].live_handles(), 0);
        }
    }
}

#[test]
fn r071_the_companions_operation_is_the_one_the_application_asked_for() {
    let world = World::new();
    let a = world.node(A);
    a.warm();
    a.listener(A, 80);
    let calls = a.calls();
    assert!(calls.contains(&"san.WSPListen 8".to_owned()));
    assert!(!calls.iter().any(|c| c.contains("san.WSPConnect")));
    a.stage_after_connect(at(B, 80));
    let calls = a.calls();
    assert!(calls.contains(&"san.WSPConnect 127.77.0.2:80".to_owned()));
    assert!(!calls.iter().any(|c| c.contains("san.WSPListen")));
}

#[test]
fn r072_after_establishment_tcp_never_serves_the_socket() {
    let world = World::new();
    let (a, b) = (world.node(A), world.node(B));
    let (socket, _accepted) = establish(&a, &b, 80);
    let _before = world.log.take();
    world.fabric.break_connection(sp_of(&socket));
    a.san.go_down();
    receive_error(&socket);
    for _ in 0..3 {
        a.serve();
        let step = a.switch.connect(&socket, at(B, 80));
        assert_eq!(step, ConnectStep::Failed(libc::EISCONN));
        assert_ne!(socket.stage(), Stage::Tcp);
    }
    assert_eq!(world.log.count("tcp.WSPConnect"), 0);
    assert_eq!(world.log.count("host.fell_back"), 0);
}

#[test]
fn r073_the_application_is_told_by_the_error_of_its_call() {
    let world = World::new();
    let (a, b) = (world.node(A), world.node(B));
    let (socket, accepted) = establish(&a, &b, 80);
    world.fabric.break_connection(sp_of(&socket));
    assert_eq!(receive_error(&socket), libc::ECONNRESET);
    let bits = libc::EPOLLERR | libc::EPOLLHUP | libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP;
    let other = accepted.socket.conn().unwrap();
    other.progress();
    assert_eq!(
        other.readiness() & bits.cast_unsigned(),
        bits.cast_unsigned()
    );
    let mut value = [0; 4];
    b.switch
        .option(
            &accepted.socket,
            libc::SOL_SOCKET,
            libc::SO_ERROR,
            &mut value,
        )
        .unwrap();
    assert_eq!(i32::from_ne_bytes(value), libc::ECONNRESET);
}

#[test]
fn r193_no_rescue_but_a_new_socket_may_choose_tcp() {
    let world = World::new();
    let (a, b) = (world.node(A), world.node(B));
    let (socket, accepted) = establish(&a, &b, 80);
    a.san.go_down();
    world.fabric.break_connection(sp_of(&socket));
    assert_eq!(receive_error(&socket), libc::ECONNRESET);
    assert_ne!(socket.stage(), Stage::Tcp);
    // The first try meets the failed provider, later ones know.
    for _ in 0..2 {
        let (again, step) = a.stage_after_connect(at(B, 80));
        assert_eq!(step, ConnectStep::UseTcp(Reason::ProviderDown));
        assert_eq!(again.stage(), Stage::Tcp);
    }
    drop(accepted);
}

#[test]
fn r013_r019_a_provider_that_cannot_serve_is_left_out() {
    let world = World::new();
    let broken = world.san("broken", &[A]);
    broken.fail(Call::StartupEx, WsaError::SysNotReady);
    let lacking = world.san("lacking", &[A]);
    lacking.lack(Extension::RdmaWrite);
    let whole = world.san("whole", &[A]);
    whole.lack(Extension::RdmaRead);
    let a = world.node_of(A, vec![broken, lacking, whole], |_| {});
    a.listener(A, 80);
    let providers = a.switch.providers();
    let names: Vec<_> = providers.iter().map(|p| p.name).collect();
    assert_eq!(names, ["whole"]);
    assert!(!providers[0].has_rdma_read);
    assert_eq!(world.log.count("lacking.WSPCleanup"), 1);
}

#[test]
fn r012_only_providers_that_are_listed_and_installed_are_used() {
    let world = World::new();
    let sans = vec![world.san("listed", &[A]), world.san("disabled", &[A])];
    let a = world.node_of(A, sans, |config| {
        config.providers[1].enabled = false;
        let mut unknown = config.providers[0].clone();
        unknown.id = "not installed".to_owned();
        config.providers.insert(0, unknown);
    });
    a.listener(A, 80);
    let providers = a.switch.providers();
    assert_eq!(
        providers.iter().map(|p| p.name).collect::<Vec<_>>(),
        ["listed"]
    );
    let nobody = Switch::new(config(A), Vec::new(), a.tcp.clone(), a.host.clone());
    assert!(nobody.providers().is_empty());
}

fn send_all(socket: &switch::SwitchSocket, bytes: &[u8]) {
    let part = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let conn = socket.conn().expect("established");
    assert_eq!(conn.send(&[part], 0), Ok(bytes.len()));
}

fn receive(socket: &switch::SwitchSocket, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut have = 0;
    for _ in 0..1000 {
        let part = libc::iovec {
            iov_base: bytes[have..].as_mut_ptr().cast(),
            iov_len: len - have,
        };
        match socket.conn().expect("established").recv(&[part], 0) {
            Ok(0) => panic!("end of stream after {have} bytes"),
            Ok(more) => have += more,
            Err(libc::EAGAIN) => {}
            Err(errno) => panic!("errno {errno} after {have} bytes"),
        }
        if have == len {
            return bytes;
        }
    }
    panic!("only {have} of {len} bytes came");
}

fn receive_error(socket: &switch::SwitchSocket) -> i32 {
    let mut byte = [0_u8; 1];
    let part = libc::iovec {
        iov_base: byte.as_mut_ptr().cast(),
        iov_len: 1,
    };
    for _ in 0..1000 {
        match socket.conn().expect("established").recv(&[part], 0) {
            Err(libc::EAGAIN) => {}
            Err(errno) => return errno,
            Ok(n) => panic!("{n} bytes where an error should be"),
        }
    }
    panic!("no error comes");
}

#[test]
fn r017_upcalls_outside_of_the_span_are_refused() {
    let world = World::new();
    let a = world.node(A);
    a.stage_after_connect(at(B, 80));
    let provider = a.switch.providers().remove(0);
    let upcalls = a.san.upcalls().unwrap();
    let handle = upcalls.wpu_create_socket_handle(0, 1).unwrap();
    provider.cleanup().unwrap();
    let slot = Overlapped::default();
    assert_eq!(
        upcalls.wpu_create_socket_handle(0, 1),
        Err(WsaError::NoBufs)
    );
    assert_eq!(
        upcalls.wpu_query_socket_handle_context(handle),
        Err(WsaError::NotSock)
    );
    let completed = upcalls.wpu_complete_overlapped_request(handle, &slot, 0, 0);
    assert_eq!(completed, Err(WsaError::Inval));
    // Giving a descriptor back is no use of it.
    assert_eq!(upcalls.wpu_close_socket_handle(handle), Ok(()));
}

#[test]
fn r020_the_probe_socket_is_closed_and_its_handle_given_back() {
    let world = World::new();
    let a = world.node(A);
    a.stage_after_connect(at(Ipv4Addr::new(192, 0, 2, 1), 80));
    let calls: Vec<_> = world.log.take();
    assert_eq!(
        calls[1..],
        [
            "san.WSPStartupEx",
            "san.WSPSocket",
            "san.WPUCreateSocketHandle",
            "san.WSPIoctl SIO_ADDRESS_LIST_QUERY",
            "san.WSPCloseSocket",
            "san.WPUCloseSocketHandle",
            "host.fell_back off_subnet",
        ]
    );
    assert_eq!(a.switch.providers()[0].live_handles(), 0);
}
