//! Vectors, arming, and what the service thread sees.

use std::net::SocketAddrV4;

use driver::spi::{Link, ServiceProvider, Waiter};
use driver::sys::{self, Seen};
use driver::wsa::WsaError;

use crate::support::{Host, World, connect, ip, plain};

fn is_fired(waiter: Waiter) -> bool {
    matches!(sys::wait_readable(waiter.fd, 0), Ok(Seen::Readable))
}

fn waiter(host: &Host, s: driver::spi::SpSocket) -> Waiter {
    let function = host.start.waiting.function_of(s).unwrap();
    host.start.waiting.acquire(function).unwrap()
}

#[test]
fn only_who_armed_is_woken_and_only_once() {
    let world = World::new();
    let (a, b) = world.connected();
    let waiting = &world.b.start.waiting;
    let (armed, idle) = (waiter(&world.b, b), waiter(&world.b, b));
    assert_ne!(armed.vector, idle.vector);
    let into = world.b.memory(b, 100);
    for _ in 0..2 {
        world
            .b
            .recv(b, &[into.buffer(0, 100)], world.b.slot(b))
            .unwrap();
    }
    waiting.arm(b, armed).unwrap();
    assert!(!is_fired(armed));
    world.a.send(a, &[plain(b"x")], world.a.slot(a)).unwrap();
    assert!(is_fired(armed) && !is_fired(idle));
    waiting.drain(armed);
    world.a.send(a, &[plain(b"y")], world.a.slot(a)).unwrap();
    assert!(!is_fired(armed));
    waiting.release(armed);
    waiting.release(idle);
}

#[test]
fn an_armed_event_queue_wakes_for_connections() {
    let world = World::new();
    let (listener, wakes) = world.b.listener(ip(2), 80, 5);
    let waiting = &world.b.start.waiting;
    let waiter = waiter(&world.b, listener);
    waiting.progress();
    waiting.arm_events(waiter).unwrap();
    assert!(!waiting.progress() && !is_fired(waiter));
    let (_active, _ends) = world.a.connecting(4000, SocketAddrV4::new(ip(2), 80));
    assert!(is_fired(waiter));
    assert!(waiting.progress());
    assert!(crate::support::is_set(&wakes));
    assert!(!waiting.progress());
}

#[test]
fn more_waiters_than_vectors_share_and_none_steals_a_wake_up() {
    let world = World::new();
    let (a, b) = world.connected();
    let waiting = &world.b.start.waiting;
    let waiters: Vec<Waiter> = (0..150).map(|_| waiter(&world.b, b)).collect();
    let into = world.b.memory(b, 100);
    for round in 0..3 {
        let slot = world.b.slot(b);
        world.b.recv(b, &[into.buffer(0, 100)], slot).unwrap();
        for &waiter in &waiters {
            waiting.arm(b, waiter).unwrap();
        }
        world.a.send(a, &[plain(b"x")], world.a.slot(a)).unwrap();
        for &waiter in &waiters {
            assert!(is_fired(waiter), "{round} {waiter:?}");
            waiting.drain(waiter);
            assert!(!is_fired(waiter), "{round} {waiter:?}");
        }
        assert!(world.b.result(b, slot).is_ok());
    }
    for waiter in waiters {
        waiting.release(waiter);
    }
    // Vectors come back.
    let again: Vec<Waiter> = (0..50).map(|_| waiter(&world.b, b)).collect();
    assert_eq!(again.len(), 50);
}

#[test]
fn functions_of_other_sockets_and_numbers_are_refused() {
    let world = World::new();
    let (_a, b) = world.connected();
    let waiting = &world.b.start.waiting;
    assert_eq!(waiting.acquire(7), Err(WsaError::Inval));
    let mut foreign = waiter(&world.b, b);
    foreign.function += 1;
    assert_eq!(waiting.arm(b, foreign), Err(WsaError::Inval));
    assert_eq!(waiting.arm_events(foreign), Err(WsaError::Inval));
    assert_eq!(waiting.functions().len(), 1);
    world.b.provider.wsp_close_socket(b).unwrap();
    assert_eq!(waiting.function_of(b), None);
    assert_eq!(waiting.link(b), Link::Ended(WsaError::ConnAborted));
}

#[test]
fn news_and_arms_are_seen_without_a_call_to_the_device() {
    let world = World::new();
    let (a, b) = world.connected();
    let waiting = &world.b.start.waiting;
    waiting.progress();
    let (armed, other) = (waiter(&world.b, b), waiter(&world.b, b));
    let slot = world.b.slot(b);
    let into = world.b.memory(b, 100);
    world.b.recv(b, &[into.buffer(0, 100)], slot).unwrap();
    assert!(!waiting.has_news(b) && !waiting.is_armed(b, armed));
    waiting.arm(b, armed).unwrap();
    assert!(waiting.is_armed(b, armed) && !waiting.is_armed(b, other));
    world.a.send(a, &[plain(b"x")], world.a.slot(a)).unwrap();
    assert!(waiting.has_news(b) && is_fired(armed));
    assert!(!waiting.is_armed(b, armed), "a fire disarms");
    assert!(world.b.result(b, slot).is_ok());
    assert!(!waiting.has_news(b), "it was taken");
    // The end of the peer is news of the event queue.
    world.a.provider.wsp_close_socket(a).unwrap();
    assert!(waiting.has_news(b));
    waiting.progress();
    assert!(waiting.has_news(b), "as long as the link is down");
    world.b.provider.wsp_close_socket(b).unwrap();
    assert!(waiting.has_news(b) && !waiting.is_armed(b, armed));
}

#[test]
fn one_vector_serves_many_queues() {
    let world = World::new();
    let (a, b) = world.connected();
    let (c, d) = connect(&world.a, &world.b, 4100, 5100);
    let waiting = &world.b.start.waiting;
    let waiter = waiter(&world.b, b);
    let into = [world.b.memory(b, 100), world.b.memory(d, 100)];
    for (s, memory) in [(b, &into[0]), (d, &into[1])] {
        world
            .b
            .recv(s, &[memory.buffer(0, 100)], world.b.slot(s))
            .unwrap();
        waiting.arm(s, waiter).unwrap();
    }
    for s in [a, c] {
        world.a.send(s, &[plain(b"x")], world.a.slot(s)).unwrap();
    }
    assert!(is_fired(waiter));
    assert!(waiting.has_news(b) && waiting.has_news(d));
    assert!(!waiting.is_armed(b, waiter) && !waiting.is_armed(d, waiter));
}

#[test]
fn copy_mode_is_what_the_nic_publishes() {
    let world = World::new();
    let (a, _b) = world.connected();
    assert_eq!(world.a.start.waiting.mode(a), ring_proto::uar::MODE_COPY);
}
