//! Connecting: final codes, fall-back with its reasons, repeats, cancellation, over recording doubles.

mod world;

use core::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use driver::wsa::WsaError;
use ring_proto::eqe::CmStatus;
use ring_proto::telemetry::Reason;
use switch::config::Loopback;
use switch::connect::{fallback_reason, final_errno};
use switch::mock::{Call, TcpCall};
use switch::tcp_provider::TcpProvider;
use switch::{ConnectStep, Stage};
use world::{A, B, Node, World, at, establish, settle, sp_of};

/// A node whose connects to B stay unanswered.
fn unanswered(world: &World) -> Node {
    world.fabric.silence(B);
    let a = world.node(A);
    a.warm();
    a
}

#[test]
fn r101_events_are_selected_before_the_connect_and_a_failure_there_means_tcp() {
    let world = World::new();
    let a = world.node(A);
    a.warm();
    a.san.fail(Call::EventSelect, WsaError::Inval);
    let (socket, step) = a.stage_after_connect(at(B, 80));
    assert_eq!(step, ConnectStep::UseTcp(Reason::SpEventSelect));
    assert_eq!((a.san.sockets().len(), socket.stage()), (0, Stage::Tcp));
    let (socket, _) = a.stage_after_connect(at(B, 80));
    let calls = a.calls();
    let position = |what: &str| calls.iter().rposition(|c| c.starts_with(what)).unwrap();
    assert!(position("san.WSPEventSelect") < position("san.WSPConnect"));
    drop(socket);
}

#[test]
fn r103_a_non_blocking_connect_is_pending_then_already() {
    let world = World::new();
    let a = unanswered(&world);
    let socket = a.nonblocking();
    assert_eq!(socket.readiness(), None, "the kernel's");
    assert_eq!(a.switch.connect(&socket, at(B, 80)), ConnectStep::Pending);
    assert_eq!(socket.readiness(), Some(0), "not while connecting");
    let again = a.switch.connect(&socket, at(B, 80));
    assert_eq!(again, ConnectStep::Failed(libc::EALREADY));
    // A blocking socket waits again instead.
    a.switch.set_nonblocking(&socket, false).unwrap();
    assert_eq!(a.switch.connect(&socket, at(B, 80)), ConnectStep::Pending);
    let plan = a.switch.connect_plan(&socket, u64::MAX);
    assert_eq!(
        (plan.len, plan.on_timeout),
        (1, 0),
        "asked again at the provider's limit"
    );
    let plan = a.switch.connect_plan(&socket, 5);
    assert_eq!((plan.deadline_ns, plan.on_timeout), (5, libc::EINPROGRESS));
}

#[test]
fn r105_every_code_but_the_final_ones_means_tcp_at_once() {
    for &code in WsaError::ALL {
        let never = [WsaError::WouldBlock, WsaError::NetDown];
        if final_errno(code).is_some() || never.contains(&code) {
            continue;
        }
        let world = World::new();
        let a = world.node(A);
        a.warm();
        a.san.fail(Call::Connect, code);
        let (socket, step) = a.stage_after_connect(at(B, 80));
        assert!(matches!(step, ConnectStep::UseTcp(_)), "{code}: {step:?}");
        assert_eq!(socket.stage(), Stage::Tcp);
        assert_eq!(a.san.sockets(), [], "{code}: the companion is closed");
        assert_eq!(world.log.count("host.fell_back"), 1, "{code}");
        // Nothing but the program's own call makes the kernel connect.
        assert_eq!(world.log.count("tcp.WSPConnect"), 0);
        assert!(a.switch.local_address(&socket).unwrap().port() != 0);
    }
}

#[test]
fn r106_final_codes_reach_the_program_and_tcp_is_not_tried() {
    let finals = [
        (WsaError::ConnReset, libc::ECONNREFUSED),
        (WsaError::ConnRefused, libc::ECONNREFUSED),
        (WsaError::HostUnreach, libc::EHOSTUNREACH),
    ];
    let others = WsaError::ALL.iter().filter(|c| final_errno(**c).is_some());
    assert_eq!(others.count(), finals.len());
    for (code, errno) in finals {
        let world = World::new();
        let a = unanswered(&world);
        a.san.fail(Call::Connect, code);
        let (socket, step) = a.stage_after_connect(at(B, 80));
        assert_eq!(step, ConnectStep::Failed(errno));
        assert_eq!(a.san.sockets(), []);
        assert_eq!(world.log.count("tcp.WSPConnect"), 0);
        // a fresh decision, a fresh companion.
        assert_eq!(a.switch.connect(&socket, at(B, 80)), ConnectStep::Pending);
        assert_eq!(a.san.sockets().len(), 1);
    }
}

#[test]
fn r106_a_final_code_found_in_the_background_waits_for_so_error() {
    let world = World::new();
    let a = unanswered(&world);
    let socket = a.nonblocking();
    a.switch.connect(&socket, at(B, 80));
    a.san.fail(Call::EnumNetworkEvents, WsaError::ConnRefused);
    a.serve();
    assert!(socket.has_error());
    let bits = libc::EPOLLERR | libc::EPOLLHUP | libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP;
    assert_eq!(socket.readiness(), Some(bits.cast_unsigned()));
    let so_error = || {
        let mut value = [0; 4];
        let len = a
            .switch
            .option(&socket, libc::SOL_SOCKET, libc::SO_ERROR, &mut value);
        assert_eq!(len, Ok(4));
        i32::from_ne_bytes(value)
    };
    assert_eq!(so_error(), libc::ECONNREFUSED);
    assert_eq!(so_error(), 0);
    assert_eq!(socket.stage(), Stage::TcpBound);
}

#[test]
fn r107_nobody_listening_on_the_san_is_answered_at_once_and_means_tcp() {
    let world = World::new();
    let (a, _b) = (world.node(A), world.node(B));
    let (socket, step) = a.stage_after_connect(at(B, 80));
    assert_eq!(step, ConnectStep::UseTcp(Reason::NoSanListener));
    assert_eq!(socket.reason(), Some(Reason::NoSanListener));
}

#[test]
fn r108_the_time_on_the_san_is_bounded_and_its_end_means_tcp() {
    let world = World::new();
    let a = unanswered(&world);
    let (socket, step) = a.stage_after_connect(at(B, 80));
    assert_eq!(step, ConnectStep::Pending);
    a.host.advance_ns(999_999_999);
    assert_eq!(a.switch.connect_progress(&socket), ConnectStep::Pending);
    a.host.advance_ns(1);
    let step = a.switch.connect_progress(&socket);
    assert_eq!(step, ConnectStep::UseTcp(Reason::SanTimeout));
    assert_eq!(a.san.sockets(), []);
    // The program's call was waiting: the kernel's connect has begun, and the caller's joins it.
    assert_eq!(world.log.count("tcp.WSPConnect 127.77.0.2:80"), 1);
}

#[test]
fn r105_a_fall_back_in_the_background_starts_the_kernels_connect() {
    let world = World::new();
    let a = unanswered(&world);
    let socket = a.nonblocking();
    assert_eq!(a.switch.connect(&socket, at(B, 80)), ConnectStep::Pending);
    a.tcp.fail(TcpCall::Connect, libc::EINPROGRESS);
    a.host.advance_ns(2_000_000_000);
    a.serve();
    assert_eq!(socket.stage(), Stage::Tcp);
    let calls = world.log.take();
    assert!(
        calls.iter().any(|c| c == "host.socket_changed Tcp"),
        "{calls:?}"
    );
    // From here on everything is the kernel's, and its failure lets the program try again.
    let step = a.switch.connect(&socket, at(B, 80));
    assert_eq!(step, ConnectStep::UseTcp(Reason::SanTimeout));
    a.switch.tcp_connect_ended(&socket, Err(libc::EALREADY));
    assert_eq!(socket.stage(), Stage::Tcp);
    a.switch.tcp_connect_ended(&socket, Err(libc::ECONNREFUSED));
    assert_eq!(socket.stage(), Stage::TcpBound);
}

#[test]
fn r105_a_kernel_connect_that_fails_at_once_in_the_background_is_so_error() {
    let world = World::new();
    let a = unanswered(&world);
    let socket = a.nonblocking();
    a.switch.connect(&socket, at(B, 80));
    a.tcp.fail(TcpCall::Connect, libc::ENETUNREACH);
    a.host.advance_ns(2_000_000_000);
    a.serve();
    assert!(socket.has_error());
    let step = a.switch.connect(&socket, at(B, 80));
    assert_eq!(step, ConnectStep::Failed(libc::ENETUNREACH));
}

#[test]
fn r109_a_failing_negotiation_is_an_error_and_never_tcp() {
    let world = World::new();
    let (a, b) = (world.node(A), world.node(B));
    let listener = b.listener(B, 80);
    // The session cannot begin: no memory.
    let (socket, _) = a.stage_after_connect(at(B, 80));
    a.san.memory().exhaust_after(0);
    let step = settle(&a, &b, &socket);
    assert_eq!(step, ConnectStep::Failed(libc::ENOBUFS));
    assert_eq!(a.san.sockets(), []);
    a.san.memory().exhaust_after(usize::MAX);
    // The peer goes away in the middle.
    let (socket, _) = a.stage_after_connect(at(B, 80));
    let before = b.san.sockets();
    b.san.fail(Call::RegisterMemory, WsaError::NoBufs);
    for _ in 0..10 {
        b.serve();
    }
    assert_eq!(b.san.sockets(), before, "the acceptor never sees it");
    let step = settle(&a, &b, &socket);
    assert_eq!(step, ConnectStep::Failed(libc::ECONNRESET));
    assert_eq!(b.switch.accept(&listener, 0).map(drop), Err(libc::EAGAIN));
    assert_eq!(world.log.count("tcp.WSPConnect"), 0);
    assert_eq!(world.log.count("host.fell_back"), 0);
}

#[test]
fn r109_r120_a_silent_peer_is_given_up() {
    let world = World::new();
    let (a, b) = (world.node(A), world.node(B));
    let _listener = b.listener(B, 80);
    let (socket, _) = a.stage_after_connect(at(B, 80));
    // The acceptor takes the connection; its switch's answer finds no way, for nobody serves it any more.
    b.san.fail(Call::Send, WsaError::NoBufs);
    while socket.stage() == Stage::SanConnecting {
        b.serve();
        assert_eq!(a.switch.connect_progress(&socket), ConnectStep::Pending);
    }
    assert_eq!(socket.stage(), Stage::Negotiating);
    a.host.advance_ns(5_000_000_000);
    let step = a.switch.connect_progress(&socket);
    assert!(
        matches!(
            step,
            ConnectStep::Failed(libc::ETIMEDOUT | libc::ECONNRESET)
        ),
        "{step:?}"
    );
    assert_eq!(world.log.count("tcp.WSPConnect"), 0);
}

#[test]
fn r110_repeats_are_answered_by_the_switch() {
    let world = World::new();
    let (a, b) = (world.node(A), world.node(B));
    let _listener = b.listener(B, 80);
    let socket = a.nonblocking();
    assert_eq!(a.switch.connect(&socket, at(B, 80)), ConnectStep::Pending);
    for _ in 0..20 {
        b.serve();
        a.serve();
    }
    assert_eq!(socket.stage(), Stage::SanConnected);
    assert_eq!(
        a.switch.connect(&socket, at(B, 80)),
        ConnectStep::Established
    );
    for _ in 0..2 {
        let step = a.switch.connect(&socket, at(B, 80));
        assert_eq!(step, ConnectStep::Failed(libc::EISCONN));
    }
    assert_eq!(world.log.count("san.WSPConnect"), 1);
    // A blocking connect has told its success already.
    let (blocking, _accepted) = establish(&a, &b, 81);
    let step = a.switch.connect(&blocking, at(B, 81));
    assert_eq!(step, ConnectStep::Failed(libc::EISCONN));
}

#[test]
fn r111_closing_a_connecting_socket_cancels_the_attempt() {
    let world = World::new();
    let a = unanswered(&world);
    let (socket, _) = a.stage_after_connect(at(B, 80));
    assert_eq!(a.san.sockets().len(), 1);
    a.switch.close(&socket);
    assert_eq!(a.san.sockets(), []);
    assert_eq!(socket.stage(), Stage::Closed);
    assert_eq!(a.switch.providers()[0].live_handles(), 0);
    a.serve();
    assert_eq!(
        a.switch.connect(&socket, at(B, 80)),
        ConnectStep::Failed(libc::EBADF)
    );
}

#[test]
fn r112_connect_to_af_unspec_dissolves_and_the_socket_may_connect_again() {
    let world = World::new();
    let (a, b) = (world.node(A), world.node(B));
    let (socket, _accepted) = establish(&a, &b, 80);
    let first = sp_of(&socket);
    assert_eq!(a.switch.disconnect(&socket), Ok(()));
    assert!(socket.conn().is_none());
    assert_eq!(world.log.count("tcp.disconnect"), 1);
    let _listener = b.listener(B, 81);
    assert_eq!(a.switch.connect(&socket, at(B, 81)), ConnectStep::Pending);
    assert_eq!(settle(&a, &b, &socket), ConnectStep::Established);
    assert_ne!(sp_of(&socket), first);
    // Under way it is a cancellation.
    world.fabric.silence(B);
    let (pending, _) = a.stage_after_connect(at(B, 81));
    assert_eq!(a.switch.disconnect(&pending), Ok(()));
    assert_eq!(pending.stage(), Stage::TcpBound);
}

#[test]
fn r113_a_client_that_loops_over_addresses_gets_a_fresh_decision_each_time() {
    let world = World::new();
    let (a, b) = (world.node(A), world.node(B));
    let _listener = b.listener(B, 80);
    let elsewhere = at(Ipv4Addr::new(10, 0, 0, 1), 80);
    let (socket, step) = a.stage_after_connect(elsewhere);
    assert_eq!(step, ConnectStep::UseTcp(Reason::OffSubnet));
    a.switch.tcp_connect_ended(&socket, Err(libc::ECONNREFUSED));
    let step = a.switch.connect(&socket, at(B, 9));
    assert_eq!(step, ConnectStep::UseTcp(Reason::NoSanListener));
    a.switch.tcp_connect_ended(&socket, Err(libc::ECONNREFUSED));
    assert_eq!(a.switch.connect(&socket, at(B, 80)), ConnectStep::Pending);
    assert_eq!(settle(&a, &b, &socket), ConnectStep::Established);
    assert_eq!(socket.reason(), None);
}

#[test]
fn r067_an_unbound_socket_is_bound_to_the_nic_before_the_companion() {
    let world = World::new();
    let a = unanswered(&world);
    let (socket, _) = a.stage_after_connect(at(B, 80));
    let local = a.tcp.local_address(socket.fd()).unwrap();
    assert_eq!(local.ip(), A);
    let calls = a.calls();
    assert_eq!(calls[1], "tcp.WSPBind 127.77.0.1:0");
    assert!(calls.contains(&format!("san.WSPBind {local}")), "{calls:?}");
    // A bind that fails leaves TCP as it was.
    let socket = a.socket();
    a.tcp.fail(TcpCall::Bind, libc::EADDRNOTAVAIL);
    let step = a.switch.connect(&socket, at(B, 80));
    assert_eq!(step, ConnectStep::UseTcp(Reason::SpBind));
    assert_eq!(a.san.sockets().len(), 1, "the other socket's");
}

#[test]
fn r048_r049_r052_roads_that_never_reach_a_provider() {
    let world = World::new();
    let a = world.node(A);
    a.warm();
    let loopback = [
        "127.0.0.1:80",
        "127.78.0.1:80",
        "0.0.0.0:80",
        "127.77.0.1:80",
    ];
    for to in loopback {
        let (_, step) = a.stage_after_connect(to.parse().unwrap());
        assert_eq!(step, ConnectStep::UseTcp(Reason::Loopback), "{to}");
    }
    for to in [
        "10.0.0.1:80",
        "127.77.0.2:0",
        "224.0.0.1:80",
        "255.255.255.255:80",
    ] {
        let (_, step) = a.stage_after_connect(to.parse().unwrap());
        assert_eq!(step, ConnectStep::UseTcp(Reason::OffSubnet), "{to}");
    }
    let bound = a.socket();
    a.switch
        .bind(&bound, at(Ipv4Addr::new(10, 0, 0, 5), 0))
        .unwrap();
    let step = a.switch.connect(&bound, at(B, 80));
    assert_eq!(step, ConnectStep::UseTcp(Reason::BindNotSan));
    let held = a.socket();
    let one = 1_i32.to_ne_bytes();
    let name = libc::TCP_FASTOPEN_CONNECT;
    a.switch
        .set_option(&held, libc::SOL_TCP, name, &one)
        .unwrap();
    let step = a.switch.connect(&held, at(B, 80));
    assert_eq!(step, ConnectStep::UseTcp(Reason::Option));
    assert_eq!(world.log.count("san."), 0);
}

#[test]
fn r047_an_option_of_kernel_tcp_alone_is_refused_once_the_san_carries_the_socket() {
    let world = World::new();
    let (a, b) = (world.node(A), world.node(B));
    let (socket, _accepted) = establish(&a, &b, 80);
    let set = |level, name| a.switch.set_option(&socket, level, name, &[1, 0, 0, 0]);
    assert_eq!(set(libc::SOL_TCP, libc::TCP_ULP), Err(libc::ENOPROTOOPT));
    assert_eq!(set(libc::SOL_TCP, libc::TCP_NODELAY), Ok(()));
}

#[test]
fn r050_mapped_addresses_use_the_san_and_come_back_mapped() {
    let world = World::new();
    let (a, b) = (world.node(A), world.node(B));
    let v6 = |node: &Node| {
        let made = node.switch.socket(libc::AF_INET6, libc::SOCK_STREAM, 0);
        made.unwrap().1.unwrap()
    };
    let listener = v6(&b);
    b.switch
        .bind(&listener, "[::]:80".parse().unwrap())
        .unwrap();
    b.switch.listen(&listener, 8).unwrap();
    let client = v6(&a);
    let to: SocketAddr = "[::ffff:127.77.0.2]:80".parse().unwrap();
    assert_eq!(a.switch.connect(&client, to), ConnectStep::Pending);
    assert_eq!(settle(&a, &b, &client), ConnectStep::Established);
    assert_eq!(a.switch.peer_address(&client), Ok(to));
    let accepted = world::accept(&b, &listener);
    assert_eq!(accepted.local, to);
    assert_eq!(Ok(accepted.peer), a.switch.local_address(&client));
    assert!(accepted.peer.is_ipv6());
    let real = v6(&a);
    let step = a.switch.connect(&real, "[2001:db8::1]:80".parse().unwrap());
    assert_eq!(step, ConnectStep::UseTcp(Reason::OffSubnet));
    // A listener for IPv6 alone covers no NIC of a provider.
    let only = v6(&b);
    let one = 1_i32.to_ne_bytes();
    b.switch
        .set_option(&only, libc::SOL_IPV6, libc::IPV6_V6ONLY, &one)
        .unwrap();
    b.switch.bind(&only, "[::]:81".parse().unwrap()).unwrap();
    b.switch.listen(&only, 8).unwrap();
    assert_eq!(only.stage(), Stage::Tcp);
}

#[test]
fn r035_names_come_from_the_cache_and_a_peer_only_after_establishment() {
    let world = World::new();
    let a = unanswered(&world);
    let (socket, _) = a.stage_after_connect(at(B, 80));
    assert_eq!(a.switch.peer_address(&socket), Err(libc::ENOTCONN));
    assert_eq!(a.switch.local_address(&socket).unwrap().ip(), A);
}

#[test]
fn r179_non_blocking_mode_of_both_sides_agrees() {
    let world = World::new();
    let a = world.node(A);
    let socket = a.socket();
    a.tcp.fail(TcpCall::SetNonblocking, libc::EIO);
    assert_eq!(a.switch.set_nonblocking(&socket, true), Err(libc::EIO));
    assert!(!socket.is_nonblocking());
    a.switch.set_nonblocking(&socket, true).unwrap();
    assert!(socket.is_nonblocking() && a.tcp.is_nonblocking(socket.fd()));
}

#[test]
fn r178_so_debug_is_answered_by_the_provider_and_buffers_by_the_switch() {
    let world = World::new();
    let (a, b) = (world.node(A), world.node(B));
    a.san.support(libc::SOL_SOCKET, 1);
    let (socket, _accepted) = establish(&a, &b, 80);
    let one = 1_i32.to_ne_bytes();
    a.switch
        .set_option(&socket, libc::SOL_SOCKET, libc::SO_DEBUG, &one)
        .unwrap();
    assert_eq!(world.log.count("san.WSPSetSockOpt 1/1"), 1);
    let mut value = [0; 4];
    let told = a
        .switch
        .option(&socket, libc::SOL_SOCKET, libc::SO_DEBUG, &mut value);
    assert_eq!((told, value), (Ok(4), one));
    let size = 8192_i32.to_ne_bytes();
    a.switch
        .set_option(&socket, libc::SOL_SOCKET, libc::SO_SNDBUF, &size)
        .unwrap();
    let part = vec![0_u8; 100_000];
    let part = libc::iovec {
        iov_base: part.as_ptr().cast_mut().cast(),
        iov_len: part.len(),
    };
    assert!(socket.conn().unwrap().send(&[part], 0).unwrap() <= 16384 + 16384);
}

#[test]
fn reasons_name_what_the_provider_met() {
    let cases = [
        (
            WsaError::TimedOut,
            CmStatus::NO_LISTENER,
            Reason::NoSanListener,
        ),
        (WsaError::TimedOut, CmStatus::TIMED_OUT, Reason::SanTimeout),
        (WsaError::TimedOut, CmStatus::OK, Reason::SanTimeout),
        (
            WsaError::TimedOut,
            CmStatus::BACKLOG_FULL,
            Reason::BacklogFull,
        ),
        (WsaError::TimedOut, CmStatus::PORT_DOWN, Reason::LinkDown),
        (WsaError::TimedOut, CmStatus::NO_RESOURCE, Reason::PeerLimit),
        (WsaError::TimedOut, CmStatus::NO_ROUTE, Reason::SpConnect),
        (WsaError::AddrNotAvail, CmStatus::OK, Reason::SpConnect),
        (WsaError::NetDown, CmStatus::OK, Reason::ProviderDown),
    ];
    for (code, status, reason) in cases {
        assert_eq!(fallback_reason(code, status.0), reason, "{code} {status:?}");
    }
}

#[test]
fn a_provider_that_fails_in_the_middle_sends_every_connect_to_tcp() {
    let world = World::new();
    let a = unanswered(&world);
    let pending: Vec<_> = (0..3).map(|_| a.stage_after_connect(at(B, 80)).0).collect();
    a.san.go_down();
    a.serve();
    for socket in &pending {
        assert_eq!(
            (socket.stage(), socket.reason()),
            (Stage::Tcp, Some(Reason::ProviderDown))
        );
    }
    assert_eq!(world.log.count("tcp.WSPConnect"), 3);
}

#[test]
fn a_child_of_fork_leaves_its_parents_connects_alone_and_uses_what_it_inherited() {
    let world = World::new();
    let (a, b) = (world.node(A), world.node(B));
    let (socket, _accepted) = establish(&a, &b, 80);
    let listener = a.listener(A, 90);
    world.fabric.silence(B);
    let (pending, _) = a.stage_after_connect(at(B, 81));
    let _before = world.log.take();
    a.switch.before_fork();
    a.switch.after_fork_in_child();
    assert_eq!(pending.stage(), Stage::Failed);
    assert_eq!(socket.stage(), Stage::SanConnected);
    assert_eq!(world.log.count("san.WSPCloseSocket"), 0);
    // The inherited listener works with event objects of the child's own.
    let c = world.node(Ipv4Addr::new(127, 77, 0, 3));
    assert_eq!(a.switch.accept(&listener, 0).map(drop), Err(libc::EAGAIN));
    let (client, _) = c.stage_after_connect(at(A, 90));
    assert_eq!(settle(&c, &a, &client), ConnectStep::Established);
    world::accept(&a, &listener);
    drop(Arc::clone(&socket));
}

#[test]
fn bind_and_listen_are_refused_once_the_socket_is_on_the_san() {
    let world = World::new();
    let (a, b) = (world.node(A), world.node(B));
    let (socket, accepted) = establish(&a, &b, 80);
    let before = world.log.count("tcp.");
    for (node, socket) in [(&a, &socket), (&b, &accepted.socket)] {
        let bound = node.switch.bind(socket, at(node.address, 7));
        assert_eq!(bound, Err(libc::EINVAL));
        assert_eq!(node.switch.listen(socket, 1), Err(libc::EINVAL));
        assert_eq!(socket.stage(), Stage::SanConnected);
    }
    assert_eq!(world.log.count("tcp."), before);
}

/// The mock's NIC owns what the preload library gives it under `loopback = "san"`.
fn node_with_loopback(world: &World) -> Node {
    let aliases = [Ipv4Addr::new(127, 78, 0, 1), Ipv4Addr::new(127, 79, 0, 1)];
    let san = world.san("san", &[A, aliases[0], aliases[1]]);
    world.node_of(A, vec![san], |config| config.loopback = Loopback::San)
}

#[test]
fn r048_r050_under_loopback_san_own_connections_get_companions_with_aliases() {
    let world = World::new();
    let a = node_with_loopback(&world);
    a.warm();
    for (domain, listen, dial, local, peer) in [
        (
            libc::AF_INET,
            "127.0.0.1",
            "127.0.0.1",
            "127.0.0.1",
            "127.0.0.1",
        ),
        (
            libc::AF_INET,
            "0.0.0.0",
            "127.0.0.1",
            "127.0.0.1",
            "127.0.0.1",
        ),
        (
            libc::AF_INET,
            "0.0.0.0",
            "0.0.0.0",
            "127.0.0.1",
            "127.0.0.1",
        ),
        (
            libc::AF_INET,
            "0.0.0.0",
            "127.77.0.1",
            "127.77.0.1",
            "127.77.0.1",
        ),
        (libc::AF_INET6, "::1", "::1", "::1", "::1"),
        (libc::AF_INET6, "::", "::1", "::1", "::1"),
        (libc::AF_INET6, "::", "::", "::1", "::1"),
        (
            libc::AF_INET6,
            "::",
            "::ffff:127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:127.0.0.1",
        ),
    ] {
        let name = |ip: &str, port| SocketAddr::new(ip.parse().unwrap(), port);
        let make = || {
            let made = a.switch.socket(domain, libc::SOCK_STREAM, 0);
            made.unwrap().1.unwrap()
        };
        let listener = make();
        a.switch.bind(&listener, name(listen, 80)).unwrap();
        a.switch.listen(&listener, 8).unwrap();
        let client = make();
        assert_eq!(
            a.switch.connect(&client, name(dial, 80)),
            ConnectStep::Pending
        );
        assert_eq!(settle(&a, &a, &client), ConnectStep::Established, "{dial}");
        assert_eq!(a.switch.peer_address(&client), Ok(name(peer, 80)));
        let source = a.switch.local_address(&client).unwrap();
        assert_eq!(source.ip(), name(local, 0).ip(), "{dial}");
        let accepted = world::accept(&a, &listener);
        assert_eq!(accepted.socket.stage(), Stage::SanConnected, "{dial}");
        assert_eq!(accepted.local, name(peer, 80));
        assert_eq!(accepted.peer, source);
        for socket in [&accepted.socket, &client, &listener] {
            a.switch.close(socket);
        }
    }
}

#[test]
fn r052_under_loopback_san_a_source_that_cannot_speak_to_the_destination_stays_on_tcp() {
    let world = World::new();
    let a = node_with_loopback(&world);
    a.warm();
    for (domain, source, to) in [
        (libc::AF_INET, "127.0.0.1:0", "127.77.0.2:80"),
        (libc::AF_INET6, "[::1]:0", "[::ffff:127.0.0.1]:80"),
        (libc::AF_INET6, "[::ffff:127.0.0.1]:0", "[::1]:80"),
        (libc::AF_INET6, "[::1]:0", "[::ffff:127.77.0.2]:80"),
    ] {
        let made = a.switch.socket(domain, libc::SOCK_STREAM, 0);
        let socket = made.unwrap().1.unwrap();
        a.switch.bind(&socket, source.parse().unwrap()).unwrap();
        let step = a.switch.connect(&socket, to.parse().unwrap());
        assert_eq!(
            step,
            ConnectStep::UseTcp(Reason::BindNotSan),
            "{source} {to}"
        );
    }
    let (_, step) = a.stage_after_connect("127.0.0.1:0".parse().unwrap());
    assert_eq!(step, ConnectStep::UseTcp(Reason::Loopback));
    assert_eq!(world.log.count("san.WSPSocket"), 0);
}
