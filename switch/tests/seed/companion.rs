//! The companion: address, options, its operation, and what follows from its end (R-53, R-61 … ).

use core::net::SocketAddr;

use driver::spi::ServiceProvider;
use driver::wsa::WsaError;
use ring_proto::telemetry::Reason;
use switch::mock::Call;
use switch::{ConnectStep, Stage};

use super::world::{A, B, World, at, establish, settle, sp_of};
use super::{WILDCARD, one, receive_error};

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
