//! Listening and accepting on several roads at once, over recording doubles.

#[expect(dead_code, reason = "each test file uses its own part of the world")]
mod world;

use core::net::Ipv4Addr;
use std::sync::Arc;

use driver::sys::Seen;
use driver::wsa::WsaError;
use ring_proto::telemetry::Reason;
use switch::mock::{Call, MockSan, MockSharing, TcpCall};
use switch::tcp_provider::TcpProvider;
use switch::{ConnectStep, Stage};
use world::{A, B, Node, World, accept, at, settle};

const WILDCARD: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

/// Starts a connect and lets the server serve it, without waiting for the session.
fn knock(a: &Node, b: &Node, port: u16) -> Arc<switch::SwitchSocket> {
    let (socket, step) = a.stage_after_connect(at(B, port));
    assert_eq!(step, ConnectStep::Pending);
    b.serve();
    a.switch.connect_progress(&socket);
    b.serve();
    socket
}

fn two_providers(world: &World) -> (Node, Arc<MockSan>, Arc<MockSan>) {
    let (one, two) = (
        world.san("san0", &[A]),
        world.san("san1", &[Ipv4Addr::new(127, 77, 0, 11)]),
    );
    let node = world.node_of(A, vec![one.clone(), two.clone()], |_| {});
    node.warm();
    (node, one, two)
}

#[test]
fn r076_tcp_listens_first_and_its_refusal_makes_no_companion() {
    let world = World::new();
    let a = world.node(A);
    let socket = a.socket();
    a.switch.bind(&socket, at(A, 80)).unwrap();
    a.tcp.fail(TcpCall::Listen, libc::EADDRINUSE);
    assert_eq!(a.switch.listen(&socket, 1), Err(libc::EADDRINUSE));
    assert_eq!(world.log.count("san."), 0);
    assert_eq!(socket.stage(), Stage::TcpBound);
}

#[test]
fn r084_a_waiting_thread_takes_connections_without_the_service_thread() {
    let world = World::new();
    let (a, b) = (world.node(A), world.node(B));
    let listener = b.listener(B, 80);
    assert!(!b.switch.drive_listener(&listener), "nothing has come");
    assert_eq!(b.switch.listener_functions(&listener).len(), 1);
    let (socket, step) = a.stage_after_connect(at(B, 80));
    assert_eq!(step, ConnectStep::Pending);
    // The look that takes the request says so: its session is armed by nobody yet.
    assert!(b.switch.drive_listener(&listener), "a request has come");
    assert!(!b.switch.has_ready(&listener), "its session negotiates");
    a.switch.connect_progress(&socket);
    assert!(b.switch.drive_listener(&listener), "HELLO has come");
    assert!(b.switch.has_ready(&listener));
    let accepted = b.switch.accept(&listener, 0).unwrap();
    assert_eq!(accepted.socket.stage(), Stage::SanConnected);
    assert_eq!(a.switch.connect_progress(&socket), ConnectStep::Established);
    assert!(!b.switch.drive_listener(&listener) && !b.switch.has_ready(&listener));
}

#[test]
fn r077_each_provider_gets_a_companion_and_its_failure_is_silent() {
    let world = World::new();
    let (a, one, two) = two_providers(&world);
    assert_eq!(a.listener(WILDCARD, 80).stage(), Stage::SanListening);
    assert_eq!((one.sockets().len(), two.sockets().len()), (1, 1));
    one.fail(Call::Bind, WsaError::NoBufs);
    assert_eq!(a.listener(WILDCARD, 81).stage(), Stage::SanListening);
    assert_eq!((one.sockets().len(), two.sockets().len()), (1, 2));
    assert_eq!(world.log.count("host.fell_back sp_bind"), 1);
    // A NIC's address concerns its provider alone.
    a.listener(A, 82);
    assert_eq!((one.sockets().len(), two.sockets().len()), (2, 2));
}

#[test]
fn r078_backlogs_are_understood_as_the_kernel_does() {
    let world = World::new();
    let a = world.node(A);
    let most = std::fs::read_to_string("/proc/sys/net/core/somaxconn");
    let most = most.map_or(4096, |t| t.trim().parse().unwrap()).min(4032);
    for (asked, passed) in [(5, 5), (0, 1), (-1, most), (i32::MAX, most)] {
        let socket = a.socket();
        a.switch.listen(&socket, asked).unwrap();
        assert_eq!(
            world.log.count(&format!("tcp.WSPListen {asked}")),
            1,
            "TCP hears it raw"
        );
        let calls = a.calls();
        let wanted = format!("san.WSPListen {passed}");
        assert!(calls.contains(&wanted), "{asked}: {calls:?}");
    }
}

#[test]
fn r079_a_second_listen_changes_the_backlog() {
    let world = World::new();
    let a = world.node(A);
    let socket = a.listener(A, 80);
    a.calls();
    assert_eq!(a.switch.listen(&socket, 3), Ok(()));
    assert_eq!(a.calls(), ["tcp.WSPListen 3", "san.WSPListen 3"]);
    assert_eq!(a.san.sockets().len(), 1);
}

#[test]
fn r080_the_switch_accepts_by_events_selected_after_listen() {
    let world = World::new();
    let (a, b) = (world.node(A), world.node(B));
    let listener = b.listener(B, 80);
    let calls = b.calls();
    let position = |what: &str| calls.iter().position(|c| c.starts_with(what)).unwrap();
    assert_eq!(
        position("san.WSPEventSelect 0x8"),
        position("san.WSPListen") + 1
    );
    let _client = knock(&a, &b, 80);
    assert_eq!(accept(&b, &listener).socket.stage(), Stage::SanConnected);
}

#[test]
fn r084_r089_a_burst_is_taken_whole_although_one_event_told_of_it() {
    let world = World::new();
    let (a, b) = (world.node(A), world.node(B));
    let listener = b.listener(B, 80);
    let clients: Vec<_> = (0..5).map(|_| a.stage_after_connect(at(B, 80)).0).collect();
    for client in &clients {
        assert_eq!(settle(&a, &b, client), ConnectStep::Established);
    }
    for _ in &clients {
        accept(&b, &listener);
    }
    assert_eq!(b.switch.accept(&listener, 0).map(drop), Err(libc::EAGAIN));
}

#[test]
fn r086_the_acceptor_learns_both_addresses() {
    let world = World::new();
    let (a, b) = (world.node(A), world.node(B));
    let listener = b.listener(WILDCARD, 80);
    let client = knock(&a, &b, 80);
    let accepted = accept(&b, &listener);
    assert_eq!(accepted.local, at(B, 80));
    assert_eq!(Ok(accepted.peer), a.switch.local_address(&client));
    assert_eq!(b.switch.local_address(&accepted.socket), Ok(at(B, 80)));
    assert_eq!(b.switch.peer_address(&accepted.socket), Ok(accepted.peer));
}

#[test]
fn r087_requests_beyond_the_backlog_stay_with_the_provider_until_there_is_room() {
    let world = World::new();
    let (a, b) = (world.node(A), world.node(B));
    let listener = b.socket();
    b.switch.bind(&listener, at(B, 80)).unwrap();
    b.switch.listen(&listener, 2).unwrap();
    // As in the kernel, one more than the backlog says.
    let first: Vec<_> = (0..3).map(|_| knock(&a, &b, 80)).collect();
    for client in &first {
        assert_eq!(settle(&a, &b, client), ConnectStep::Established);
    }
    let late = knock(&a, &b, 80);
    // The provider's event stays signalled; the service does not wait on it, and so does not spin.
    let plan = b.switch.service_step();
    for polled in &plan.fds {
        assert_ne!(driver::sys::wait_readable(polled.fd, 0), Ok(Seen::Readable));
    }
    let step = a.switch.connect_progress(&late);
    assert_eq!(step, ConnectStep::Pending, "held");
    accept(&b, &listener);
    assert_eq!(settle(&a, &b, &late), ConnectStep::Established);
}

#[test]
fn r090_r092_requests_that_vanish_or_cannot_be_served_are_skipped() {
    let world = World::new();
    let (a, b) = (world.node(A), world.node(B));
    let listener = b.listener(B, 80);
    // One gave up, one is refused for want of memory, the third comes through.
    let (gone, _) = a.stage_after_connect(at(B, 80));
    a.switch.close(&gone);
    b.san.fail(Call::Accept, WsaError::ConnReset);
    b.san.fail(Call::Accept, WsaError::NoBufs);
    let (client, _) = a.stage_after_connect(at(B, 80));
    assert_eq!(settle(&a, &b, &client), ConnectStep::Established);
    accept(&b, &listener);
    assert_eq!(b.switch.accept(&listener, 0).map(drop), Err(libc::EAGAIN));
}

#[test]
fn r093_accept_serves_both_roads_in_turn() {
    let world = World::new();
    let (a, b) = (world.node(A), world.node(B));
    let listener = b.listener(WILDCARD, 80);
    let clients: Vec<_> = (0..3).map(|_| knock(&a, &b, 80)).collect();
    for client in &clients {
        settle(&a, &b, client);
        b.tcp
            .arrive(listener.fd(), at(B, 80), at(Ipv4Addr::new(10, 0, 0, 9), 1));
    }
    let stages: Vec<_> = (0..6)
        .map(|_| b.switch.accept(&listener, 0).unwrap().socket.stage())
        .collect();
    let tcp = stages.iter().filter(|s| **s == Stage::Tcp).count();
    assert_eq!(tcp, 3);
    assert!(stages.windows(2).all(|w| w[0] != w[1]), "{stages:?}");
    // Errors of the kernel's accept pass through; a blocking accept waits on both.
    b.tcp.fail(TcpCall::Accept, libc::ECONNABORTED);
    assert_eq!(
        b.switch.accept(&listener, 0).map(drop),
        Err(libc::ECONNABORTED)
    );
    let plan = b.switch.accept_plan(&listener, 77);
    let fds: Vec<_> = plan.polled().iter().map(|p| p.fd).collect();
    assert_eq!(fds, [listener.fd(), listener.doorbell_fd().unwrap()]);
    assert_eq!((plan.deadline_ns, plan.on_timeout), (77, libc::EAGAIN));
}

#[test]
fn r093_the_doorbell_is_readable_while_a_connection_is_ready() {
    let world = World::new();
    let (a, b) = (world.node(A), world.node(B));
    let listener = b.listener(B, 80);
    let doorbell = listener.doorbell_fd().unwrap();
    let rings = || driver::sys::wait_readable(doorbell, 0) == Ok(Seen::Readable);
    assert!(!rings());
    for client in [knock(&a, &b, 80), knock(&a, &b, 80)] {
        settle(&a, &b, &client);
    }
    assert!(rings());
    accept(&b, &listener);
    assert!(rings());
    accept(&b, &listener);
    assert!(!rings());
}

#[test]
fn r094_without_a_placeholder_the_connection_stays_queued() {
    let world = World::new();
    let (a, b) = (world.node(A), world.node(B));
    let listener = b.listener(B, 80);
    settle(&a, &b, &knock(&a, &b, 80));
    b.tcp.fail(TcpCall::Socket, libc::EMFILE);
    assert_eq!(b.switch.accept(&listener, 0).map(drop), Err(libc::EMFILE));
    let accepted = b.switch.accept(&listener, libc::SOCK_NONBLOCK).unwrap();
    assert!(b.tcp.is_nonblocking(accepted.fd));
    assert!(accepted.socket.is_nonblocking());
    // The placeholder is neither bound nor connected.
    assert_eq!(b.tcp.peer_address(accepted.fd), Err(libc::ENOTCONN));
    assert!(
        b.tcp
            .local_address(accepted.fd)
            .unwrap()
            .ip()
            .is_unspecified()
    );
}

#[test]
fn r095_accepted_sockets_inherit_options_but_not_o_nonblock() {
    let world = World::new();
    let (a, b) = (world.node(A), world.node(B));
    let listener = b.nonblocking();
    b.switch.bind(&listener, at(B, 80)).unwrap();
    let one = 1_i32.to_ne_bytes();
    for (level, name) in [
        (libc::SOL_TCP, libc::TCP_NODELAY),
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    ] {
        b.switch.set_option(&listener, level, name, &one).unwrap();
    }
    b.switch.listen(&listener, 8).unwrap();
    settle(&a, &b, &knock(&a, &b, 80));
    let accepted = accept(&b, &listener);
    assert!(!accepted.socket.is_nonblocking());
    let stored = b.tcp.stored(accepted.fd, libc::SOL_TCP, libc::TCP_NODELAY);
    assert_eq!(stored.as_deref(), Some(&one[..]));
    let mut value = [0; 4];
    let told = b.switch.option(
        &accepted.socket,
        libc::SOL_SOCKET,
        libc::SO_KEEPALIVE,
        &mut value,
    );
    assert_eq!((told, value), (Ok(4), one));
}

#[test]
fn r096_r100_closing_the_listener_ends_what_nobody_took() {
    let world = World::new();
    let (a, b) = (world.node(A), world.node(B));
    let listener = b.listener(B, 80);
    let taken = knock(&a, &b, 80);
    settle(&a, &b, &taken);
    let accepted = accept(&b, &listener);
    let ready = knock(&a, &b, 80);
    settle(&a, &b, &ready);
    // A request that the switch has not seen yet.
    let (pending, _) = a.stage_after_connect(at(B, 80));
    b.switch.close(&listener);
    for _ in 0..5 {
        b.serve();
        a.serve();
    }
    let step = a.switch.connect_progress(&pending);
    assert_eq!(step, ConnectStep::Failed(libc::ECONNREFUSED), "refused");
    ready.conn().unwrap().progress();
    assert_eq!(
        ready.conn().unwrap().take_error(),
        Some(libc::ECONNRESET),
        "reset"
    );
    assert_eq!(taken.conn().unwrap().take_error(), None);
    assert_eq!(b.san.sockets(), [accepted.socket.conn().unwrap().sp()]);
    assert_eq!(
        b.switch.accept(&listener, 0).map(drop),
        Err(libc::EAGAIN),
        "the kernel's answer"
    );
}

#[test]
fn r097_a_deferred_accept_waits_for_the_first_data_or_its_time() {
    let world = World::new();
    let (a, b) = (world.node(A), world.node(B));
    let listener = b.socket();
    b.switch.bind(&listener, at(B, 80)).unwrap();
    let seconds = 3_i32.to_ne_bytes();
    let name = libc::TCP_DEFER_ACCEPT;
    b.switch
        .set_option(&listener, libc::SOL_TCP, name, &seconds)
        .unwrap();
    b.switch.listen(&listener, 8).unwrap();
    let talker = knock(&a, &b, 80);
    settle(&a, &b, &talker);
    let silent = knock(&a, &b, 80);
    settle(&a, &b, &silent);
    assert_eq!(b.switch.accept(&listener, 0).map(drop), Err(libc::EAGAIN));
    let byte = libc::iovec {
        iov_base: (&raw const seconds).cast_mut().cast(),
        iov_len: 1,
    };
    assert_eq!(talker.conn().unwrap().send(&[byte], 0), Ok(1));
    let accepted = accept(&b, &listener);
    assert_eq!(Ok(accepted.peer), a.switch.local_address(&talker));
    assert_eq!(b.switch.accept(&listener, 0).map(drop), Err(libc::EAGAIN));
    b.host.advance_ns(3_000_000_001);
    let accepted = accept(&b, &listener);
    assert_eq!(Ok(accepted.peer), a.switch.local_address(&silent));
}

#[test]
fn r098_several_listeners_share_a_port_by_their_own_companions() {
    let world = World::new();
    let a = world.node(A);
    a.listener(A, 80);
    a.listener(WILDCARD, 80);
    assert_eq!(a.san.sockets().len(), 2);
}

#[test]
fn r099_failing_listen_or_event_select_leaves_the_tcp_listener() {
    for (call, reason) in [
        (Call::Listen, Reason::SpListen),
        (Call::EventSelect, Reason::SpEventSelect),
    ] {
        let world = World::new();
        let a = world.node(A);
        a.warm();
        a.san.fail(call, WsaError::NoBufs);
        let socket = a.listener(A, 80);
        assert_eq!(
            (socket.stage(), socket.reason()),
            (Stage::Tcp, Some(reason))
        );
        assert_eq!(a.san.sockets(), []);
        assert_eq!(
            world
                .log
                .count(&format!("host.fell_back {}", reason.name())),
            1
        );
    }
}

#[test]
fn r100_shutdown_of_a_listener_closes_its_companions() {
    let world = World::new();
    let a = world.node(A);
    let socket = a.listener(A, 80);
    assert_eq!(a.switch.shutdown(&socket, libc::SHUT_RD), Ok(()));
    assert_eq!(socket.stage(), Stage::Tcp);
    assert_eq!(a.san.sockets(), []);
    a.tcp.fail(TcpCall::Accept, libc::EINVAL);
    assert_eq!(a.switch.accept(&socket, 0).map(drop), Err(libc::EINVAL));
}

#[test]
fn r025_a_new_provider_joins_the_wildcard_listeners() {
    let world = World::new();
    let a = world.node(A);
    let listener = a.listener(WILDCARD, 80);
    let other = a.listener(A, 81);
    let new = world.san("new", &[Ipv4Addr::new(127, 77, 0, 50)]);
    a.switch.add_provider(Arc::clone(&new) as _).unwrap();
    assert_eq!(new.sockets().len(), 1);
    assert_eq!(world.log.count("new.WSPBind 0.0.0.0:80"), 1);
    let failing = world.san("failing", &[]);
    failing.fail(Call::Bind, WsaError::NoBufs);
    // The probe socket of the start is not bound, so the failure meets the listener.
    a.switch.add_provider(Arc::clone(&failing) as _).unwrap();
    assert_eq!(failing.sockets(), []);
    for socket in [listener, other] {
        assert_eq!(socket.stage(), Stage::SanListening);
    }
}

#[test]
fn r195_a_failed_provider_leaves_the_listener_to_the_others() {
    let world = World::new();
    let (b, one, _two) = two_providers(&world);
    let client = world.node(Ipv4Addr::new(127, 77, 0, 3));
    let listener = b.listener(WILDCARD, 80);
    one.go_down();
    b.serve();
    assert_eq!(listener.stage(), Stage::SanListening);
    let to = at(Ipv4Addr::new(127, 77, 0, 11), 80);
    let (socket, _) = client.stage_after_connect(to);
    assert_eq!(settle(&client, &b, &socket), ConnectStep::Established);
    accept(&b, &listener);
    b.tcp.arrive(listener.fd(), at(A, 80), to);
    assert_eq!(accept(&b, &listener).socket.stage(), Stage::Tcp);
}

fn sharing_server(world: &World) -> (Node, Arc<MockSharing>) {
    let sharing = MockSharing::new(&world.log, 10);
    let san = MockSan::with_sharing(
        "san",
        &world.log,
        &world.fabric,
        &[B],
        Some(sharing.clone()),
    );
    (world.node_of(B, vec![Arc::new(san)], |_| {}), sharing)
}

#[test]
fn r212_a_listener_that_others_keep_is_closed_here_only() {
    let world = World::new();
    let (b, sharing) = sharing_server(&world);
    let listener = b.listener(B, 80);
    let companion = b.san.sockets()[0];
    sharing.share(companion);
    b.switch.close(&listener);
    assert_eq!(b.san.sockets(), [companion], "the other process's");
    let last = b.listener(B, 81);
    b.switch.close(&last);
    assert_eq!(b.san.sockets(), [companion]);
}

#[test]
fn r212_accept_takes_the_hold_from_the_listener_and_skips_what_is_gone() {
    let world = World::new();
    let a = world.node(A);
    let (b, sharing) = sharing_server(&world);
    let listener = b.listener(B, 80);
    for client in [knock(&a, &b, 80), knock(&a, &b, 80)] {
        settle(&a, &b, &client);
    }
    sharing.spoil(b.san.sockets()[1]);
    let accepted = accept(&b, &listener);
    assert_eq!(accepted.socket.conn().unwrap().sp(), b.san.sockets()[2]);
    assert_eq!(b.switch.accept(&listener, 0).map(drop), Err(libc::EAGAIN));
    assert_eq!(world.log.count("sharing.take_from_listener"), 2);
}
