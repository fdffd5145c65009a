//! Connections through the service provider: listen, connect, accept and their events.

use std::net::{Ipv4Addr, SocketAddrV4};

use driver::spi::{FD_ACCEPT, FD_CONNECT, Link, ServiceProvider, Verdict};
use driver::sys;
use driver::wsa::WsaError;
use nic_emu::device::{BacklogFull, DeviceOptions, Limits, Resource};
use ring_proto::eqe::CmStatus;

use crate::support::{Call, World, ip, is_set};

fn at(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(ip(2), port)
}

#[test]
fn a_wildcard_listener_learns_the_address_that_was_dialled() {
    let world = World::new();
    let (listener, wakes) = world.b.listener(Ipv4Addr::UNSPECIFIED, 80, 5);
    let (active, ends) = world.a.connecting(4000, at(80));
    let seen = world.b.events(listener, &wakes);
    assert_eq!((seen.events, seen.accept_error), (FD_ACCEPT, None));
    assert!(!is_set(&wakes));
    let mut asked = None;
    let accepted = world.b.provider.wsp_accept(listener, &mut |request| {
        asked = Some(*request);
        // nothing shows at the peer before the answer.
        world.a.start.waiting.progress();
        assert!(!is_set(&ends));
        Verdict::Accept
    });
    let accepted = accepted.unwrap();
    assert_eq!(asked, Some(accepted.request));
    assert_eq!(accepted.request.caller, SocketAddrV4::new(ip(1), 4000));
    assert_eq!(accepted.request.callee, at(80));
    let ended = world.a.events(active, &ends);
    assert_eq!((ended.events, ended.connect_error), (FD_CONNECT, None));
    assert_eq!(ended.connect_detail, CmStatus::OK.0);
    assert_eq!(world.a.start.waiting.link(active), Link::Up);
    assert_eq!(world.b.start.waiting.link(accepted.socket), Link::Up);
}

#[test]
fn a_specific_listener_beats_the_wildcard() {
    let world = World::new();
    let (wildcard, wildcard_wakes) = world.b.listener(Ipv4Addr::UNSPECIFIED, 80, 5);
    let (specific, wakes) = world.b.listener(ip(2), 80, 5);
    let (_active, _ends) = world.a.connecting(4000, at(80));
    assert_eq!(world.b.events(specific, &wakes).events, FD_ACCEPT);
    assert!(!is_set(&wildcard_wakes));
    assert_eq!(world.b.accept(wildcard), Err(WsaError::WouldBlock));
    assert!(world.b.accept(specific).is_ok());
}

#[test]
fn an_explicit_reject_is_final_and_makes_no_handle() {
    let world = World::new();
    let (listener, wakes) = world.b.listener(ip(2), 80, 5);
    let (active, ends) = world.a.connecting(4000, at(80));
    world.b.events(listener, &wakes);
    world.b.upcalls.take();
    let refused = world
        .b
        .provider
        .wsp_accept(listener, &mut |_| Verdict::Reject);
    assert_eq!(refused, Err(WsaError::ConnRefused));
    assert_eq!(world.b.upcalls.take(), []);
    let ended = world.a.events(active, &ends);
    assert_eq!(ended.connect_error, Some(WsaError::ConnRefused));
    assert_eq!(ended.connect_detail, CmStatus::REJECTED.0);
    assert_eq!(world.a.start.waiting.link(active), Link::Down);
}

#[test]
fn a_nic_without_queues_turns_requests_away_for_now() {
    let world = World::new();
    let (listener, wakes) = world.b.listener(ip(2), 80, 5);
    let (active, ends) = world.a.connecting(4000, at(80));
    world.b.events(listener, &wakes);
    let node = world.device.with(|device| device.nodes()[1].id);
    let limit = |qps| {
        let mut limits = Limits::default();
        limits.set(Resource::Qps, qps).unwrap();
        world.device.with(|device| device.limit_node(node, limits));
    };
    limit(0);
    world.b.upcalls.take();
    assert_eq!(world.b.accept(listener), Err(WsaError::NoBufs));
    let ended = world.a.events(active, &ends);
    // Not a refusal: TCP may be tried.
    assert_eq!(ended.connect_error, Some(WsaError::TimedOut));
    assert_eq!(ended.connect_detail, CmStatus::NO_RESOURCE.0);
    // The listener goes on.
    limit(1);
    let (next, ends) = world.a.connecting(4001, at(80));
    world.b.events(listener, &wakes);
    assert!(world.b.accept(listener).is_ok());
    assert_eq!(world.a.events(next, &ends).connect_error, None);
}

#[test]
fn a_deferred_request_comes_back_first() {
    let world = World::new();
    let (listener, wakes) = world.b.listener(ip(2), 80, 5);
    let (_first, _ends) = world.a.connecting(4001, at(80));
    let (_second, _ends) = world.a.connecting(4002, at(80));
    world.b.events(listener, &wakes);
    let deferred = world
        .b
        .provider
        .wsp_accept(listener, &mut |_| Verdict::Defer);
    assert_eq!(deferred, Err(WsaError::TryAgain));
    assert!(is_set(&wakes));
    let ports: Vec<u16> = (0..2)
        .map(|_| world.b.accept(listener).unwrap().request.caller.port())
        .collect();
    assert_eq!(ports, [4001, 4002]);
    assert_eq!(world.b.accept(listener), Err(WsaError::WouldBlock));
}

#[test]
fn the_object_is_set_again_while_requests_wait() {
    let world = World::new();
    let (listener, wakes) = world.b.listener(ip(2), 80, 5);
    let _active: Vec<_> = (0..3)
        .map(|i| world.a.connecting(4000 + i, at(80)))
        .collect();
    assert_eq!(world.b.events(listener, &wakes).events, FD_ACCEPT);
    for left in (0..3).rev() {
        world.b.accept(listener).unwrap();
        //
        assert_eq!(is_set(&wakes), left > 0);
    }
}

#[test]
fn nobody_listening_is_answered_at_once_with_a_code_that_falls_back() {
    let world = World::new();
    world.b.listener(ip(2), 81, 5);
    let (active, ends) = world.a.connecting(4000, at(80));
    let ended = world.a.events(active, &ends);
    assert_eq!(ended.connect_error, Some(WsaError::TimedOut));
    assert_eq!(ended.connect_detail, CmStatus::NO_LISTENER.0);
    // the socket may try again.
    let (listener, wakes) = world.b.listener(ip(2), 80, 5);
    assert_eq!(
        world.a.provider.wsp_connect(active, at(80)),
        Err(WsaError::WouldBlock)
    );
    world.b.events(listener, &wakes);
    world.b.accept(listener).unwrap();
    assert_eq!(world.a.events(active, &ends).connect_error, None);
}

#[test]
fn an_address_of_no_node_is_unreachable_and_falls_back() {
    let world = World::new();
    let nowhere = SocketAddrV4::new(Ipv4Addr::new(127, 77, 0, 99), 80);
    let (active, ends) = world.a.connecting(4000, nowhere);
    let ended = world.a.events(active, &ends);
    assert_eq!(ended.connect_error, Some(WsaError::NetUnreach));
    assert_eq!(ended.connect_detail, CmStatus::NO_ROUTE.0);
}

#[test]
fn a_full_backlog_holds_until_the_limit() {
    let world = World::new();
    let (listener, wakes) = world.b.listener(ip(2), 80, 1);
    let (first, first_ends) = world.a.connecting(4001, at(80));
    let (second, second_ends) = world.a.connecting(4002, at(80));
    world.b.events(listener, &wakes);
    world.a.start.waiting.progress();
    assert!(!is_set(&second_ends));
    world.device.advance(1_500_000_000);
    for (s, ends) in [(first, first_ends), (second, second_ends)] {
        assert_eq!(
            world.a.events(s, &ends).connect_error,
            Some(WsaError::TimedOut)
        );
    }
    // Both were withdrawn: nothing is left to accept.
    assert!(matches!(
        world.b.accept(listener),
        Err(WsaError::WouldBlock | WsaError::ConnReset)
    ));
}

#[test]
fn a_full_backlog_can_refuse_as_documented() {
    let world = World::with(DeviceOptions {
        virtual_time: true,
        backlog_full: BacklogFull::Refuse,
        ..DeviceOptions::default()
    });
    let (_listener, _wakes) = world.b.listener(ip(2), 80, 1);
    let (_first, first_ends) = world.a.connecting(4001, at(80));
    let (second, second_ends) = world.a.connecting(4002, at(80));
    let ended = world.a.events(second, &second_ends);
    assert_eq!(ended.connect_error, Some(WsaError::ConnRefused));
    assert!(!is_set(&first_ends));
}

#[test]
fn a_smaller_backlog_refuses_what_is_too_much() {
    let world = World::new();
    let (listener, wakes) = world.b.listener(ip(2), 80, 5);
    let active: Vec<_> = (0..3)
        .map(|i| world.a.connecting(4000 + i, at(80)))
        .collect();
    world.b.events(listener, &wakes);
    world.b.provider.wsp_listen(listener, 1).unwrap();
    for (s, ends) in &active[1..] {
        let ended = world.a.events(*s, ends);
        assert_eq!(ended.connect_error, Some(WsaError::ConnRefused));
    }
    assert_eq!(
        world.b.accept(listener).unwrap().request.caller.port(),
        4000
    );
}

#[test]
fn a_request_whose_sender_gave_up_is_skipped() {
    let world = World::new();
    let (listener, wakes) = world.b.listener(ip(2), 80, 5);
    let (gone, _ends) = world.a.connecting(4001, at(80));
    let (_stays, _ends) = world.a.connecting(4002, at(80));
    world.b.events(listener, &wakes);
    world.a.provider.wsp_close_socket(gone).unwrap();
    assert_eq!(
        world.b.accept(listener).unwrap().request.caller.port(),
        4002
    );
    assert_eq!(world.b.accept(listener), Err(WsaError::WouldBlock));
}

#[test]
fn a_sender_that_gives_up_during_the_verdict_resets_the_accept() {
    let world = World::new();
    let (listener, wakes) = world.b.listener(ip(2), 80, 5);
    let (gone, _ends) = world.a.connecting(4001, at(80));
    world.b.events(listener, &wakes);
    world.b.upcalls.take();
    let accepted = world.b.provider.wsp_accept(listener, &mut |_| {
        world.a.provider.wsp_close_socket(gone).unwrap();
        Verdict::Accept
    });
    assert_eq!(accepted, Err(WsaError::ConnReset));
    // the handle that was made is closed again.
    let calls = world.b.upcalls.take();
    assert!(matches!(calls[..], [Call::Create(made, _), Call::Close(closed)] if made == closed));
}

#[test]
fn closing_a_listener_refuses_what_waits_and_drops_what_nobody_took() {
    let world = World::new();
    let (listener, wakes) = world.b.listener(ip(2), 80, 5);
    let (taken, ends) = world.a.connecting(4001, at(80));
    world.b.events(listener, &wakes);
    // Accepted, but still held by the listener.
    world
        .b
        .provider
        .wsp_accept(listener, &mut |_| Verdict::Accept)
        .unwrap();
    assert_eq!(world.a.events(taken, &ends).connect_error, None);
    let (waiting, waiting_ends) = world.a.connecting(4002, at(80));
    world.b.provider.wsp_close_socket(listener).unwrap();
    let ended = world.a.events(waiting, &waiting_ends);
    assert_eq!(ended.connect_error, Some(WsaError::ConnRefused));
    world.a.start.waiting.progress();
    assert_eq!(
        world.a.start.waiting.link(taken),
        Link::Ended(WsaError::ConnReset)
    );
    assert_eq!(
        world.b.provider.wsp_close_socket(listener),
        Err(WsaError::NotSock)
    );
}

#[test]
fn several_listeners_of_one_port_take_turns() {
    let world = World::new();
    let listeners = [0, 1].map(|_| world.b.listener(ip(2), 80, 5));
    let _active: Vec<_> = (0..4)
        .map(|i| world.a.connecting(4000 + i, at(80)))
        .collect();
    for (listener, wakes) in &listeners {
        world.b.events(*listener, wakes);
        assert!(world.b.accept(*listener).is_ok());
        assert!(world.b.accept(*listener).is_ok());
        assert_eq!(world.b.accept(*listener), Err(WsaError::WouldBlock));
    }
}

#[test]
fn an_event_that_is_recorded_already_is_signalled_at_registration() {
    let world = World::new();
    let listener = world.b.bound(ip(2), 80);
    world.b.provider.wsp_listen(listener, 5).unwrap();
    let (_active, _ends) = world.a.connecting(4000, at(80));
    world.b.start.waiting.progress();
    let late = sys::eventfd().unwrap();
    world
        .b
        .provider
        .wsp_event_select(listener, Some(late.raw()), FD_ACCEPT | FD_CONNECT)
        .unwrap();
    assert!(is_set(&late));
    // Replacing the object by none stops signalling.
    world
        .b
        .provider
        .wsp_event_select(listener, None, 0)
        .unwrap();
    sys::drain(late.raw());
    let (_more, _ends) = world.a.connecting(4001, at(80));
    world.b.start.waiting.progress();
    assert!(!is_set(&late));
}

#[test]
fn an_accepted_socket_does_not_signal_its_listeners_object() {
    let world = World::new();
    let (listener, wakes) = world.b.listener(ip(2), 80, 5);
    let (active, _ends) = world.a.connecting(4000, at(80));
    world.b.events(listener, &wakes);
    let accepted = world.b.accept(listener).unwrap().socket;
    world.a.provider.wsp_close_socket(active).unwrap();
    world.b.start.waiting.progress();
    assert!(!is_set(&wakes));
    assert_eq!(
        world.b.start.waiting.link(accepted),
        Link::Ended(WsaError::ConnReset)
    );
}

#[test]
fn wrong_states_have_their_codes() {
    let world = World::new();
    let provider = &world.a.provider;
    let fresh = world.a.socket();
    assert_eq!(provider.wsp_listen(fresh, 1), Err(WsaError::Inval));
    assert_eq!(provider.wsp_connect(fresh, at(80)), Err(WsaError::Inval));
    assert_eq!(world.a.accept(fresh), Err(WsaError::Inval));
    let bind = |s, ip, port| provider.wsp_bind(s, SocketAddrV4::new(ip, port));
    assert_eq!(bind(fresh, ip(1), 0), Err(WsaError::Inval));
    assert_eq!(bind(fresh, ip(2), 80), Err(WsaError::AddrNotAvail));
    assert_eq!(bind(fresh, ip(1), 80), Ok(()));
    assert_eq!(bind(fresh, ip(1), 80), Err(WsaError::Inval));
    // Address reuse is TCP's business.
    assert_eq!(bind(world.a.socket(), ip(1), 80), Ok(()));
    let none = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 80);
    assert_eq!(
        provider.wsp_connect(fresh, none),
        Err(WsaError::AddrNotAvail)
    );
    assert_eq!(
        provider.wsp_connect(fresh, at(0)),
        Err(WsaError::AddrNotAvail)
    );
    // A connecting companion is always fully qualified.
    let wildcard = world.a.bound(Ipv4Addr::UNSPECIFIED, 81);
    assert_eq!(provider.wsp_connect(wildcard, at(80)), Err(WsaError::Inval));

    let (listener, _wakes) = world.b.listener(ip(2), 80, 5);
    assert_eq!(
        world.b.provider.wsp_connect(listener, at(80)),
        Err(WsaError::Inval)
    );
    let (active, _ends) = world.a.connecting(4000, at(80));
    assert_eq!(provider.wsp_connect(active, at(80)), Err(WsaError::Already));
    assert_eq!(provider.wsp_listen(active, 1), Err(WsaError::Inval));
    let accepted = world.b.accept(listener).unwrap().socket;
    world.a.start.waiting.progress();
    assert_eq!(provider.wsp_connect(active, at(80)), Err(WsaError::IsConn));
    assert_eq!(provider.wsp_listen(active, 1), Err(WsaError::IsConn));
    assert_eq!(
        world.b.provider.wsp_listen(accepted, 1),
        Err(WsaError::IsConn)
    );
}

#[test]
fn many_connections_come_and_go_without_leaving_anything() {
    let world = World::new();
    let (listener, wakes) = world.b.listener(ip(2), 80, 5);
    for round in 0..400_u16 {
        let (active, ends) = world.a.connecting(4000 + round, at(80));
        world.b.events(listener, &wakes);
        let accepted = world.b.accept(listener).unwrap().socket;
        assert_eq!(world.a.events(active, &ends).connect_error, None);
        world.a.provider.wsp_close_socket(active).unwrap();
        world.b.provider.wsp_close_socket(accepted).unwrap();
    }
    // What each node keeps are the queues of one connection, for the next.
    for node in world.device.with(|device| device.node_counters()) {
        let counters = node.counters;
        assert_eq!(
            (counters.qps, counters.cqs, counters.mrs),
            (1, 1, 1),
            "{node:?}"
        );
    }
}

#[test]
fn kept_queues_carry_nothing_of_their_last_life() {
    let world = World::new();
    let (listener, wakes) = world.b.listener(ip(2), 80, 5);
    for round in 0..20_u8 {
        let (active, ends) = world.a.connecting(4000, at(80));
        world.b.events(listener, &wakes);
        let accepted = world.b.accept(listener).unwrap().socket;
        assert_eq!(world.a.events(active, &ends).connect_error, None);
        let (from, into) = (world.a.memory(active, 4096), world.b.memory(accepted, 4096));
        // One message is taken, one lies in the queue unseen, one has no receive, and receives stay posted at the other end.
        let received = [world.b.slot(accepted), world.b.slot(accepted)];
        for slot in received {
            let place = into.buffer(0, 2048);
            world.b.recv(accepted, &[place], slot).unwrap();
        }
        let back = world.a.slot(active);
        world
            .a
            .recv(active, &[from.buffer(2048, 2048)], back)
            .unwrap();
        from.write(0, &[round; 700]);
        for len in [700_u32, 500, 300] {
            let slot = world.a.slot(active);
            world.a.send(active, &[from.buffer(0, len)], slot).unwrap();
        }
        assert_eq!(world.b.result(accepted, received[0]).unwrap().bytes, 700);
        assert_eq!(into.read(0, 700), [round; 700]);
        // The connection ends from either side, so each side hears of the other's end in some of its lives.
        let ends = |host: &crate::support::Host, s| host.provider.wsp_close_socket(s).unwrap();
        if round % 2 == 0 {
            ends(&world.a, active);
            ends(&world.b, accepted);
        } else {
            ends(&world.b, accepted);
            ends(&world.a, active);
        }
    }
    for node in world.device.with(|device| device.node_counters()) {
        assert_eq!(node.counters.qps, 1, "{node:?}");
    }
}

#[test]
fn no_more_than_some_queues_are_kept() {
    let world = World::new();
    let (listener, wakes) = world.b.listener(ip(2), 80, 400);
    let mut open = Vec::new();
    for round in 0..200_u16 {
        let (active, ends) = world.a.connecting(4000 + round, at(80));
        world.b.events(listener, &wakes);
        let accepted = world.b.accept(listener).unwrap().socket;
        assert_eq!(world.a.events(active, &ends).connect_error, None);
        open.push((active, accepted));
    }
    for (active, accepted) in open {
        world.a.provider.wsp_close_socket(active).unwrap();
        world.b.provider.wsp_close_socket(accepted).unwrap();
    }
    let kept = || {
        let nodes = world.device.with(|device| device.node_counters());
        nodes
            .iter()
            .map(|node| node.counters.qps)
            .collect::<Vec<_>>()
    };
    assert_eq!(kept(), [128, 128]);
    // What its listener still held would end with it, and is not kept.
    let (active, ends) = world.a.connecting(4000, at(80));
    world.b.events(listener, &wakes);
    let provider = &world.b.provider;
    let untaken = provider
        .wsp_accept(listener, &mut |_| Verdict::Accept)
        .unwrap();
    assert_eq!(world.a.events(active, &ends).connect_error, None);
    assert_eq!(kept(), [128, 128]);
    provider.wsp_close_socket(untaken.socket).unwrap();
    assert_eq!(kept(), [128, 127]);
}
