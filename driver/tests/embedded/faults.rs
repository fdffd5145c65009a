//! Provider calls that fail by a fault rule of the emulator.

use driver::spi::{ServiceProvider, options};
use driver::wsa::WsaError;
use nic_emu::device::{FaultAction, FaultPoint, FaultRule, call_codes};
use std::net::{Ipv4Addr, SocketAddrV4};

use crate::support::{Host, World, ip};

const NOBUFS: FaultAction = FaultAction::Fail { code: 10055 };

fn fail(world: &World, call: &str) {
    let rule = FaultRule::new(FaultPoint::Call, NOBUFS).opcode(call);
    let rule = rule.node("a").count(1);
    world.device.with(|device| device.add_fault(rule)).unwrap();
}

fn logged(world: &World) -> usize {
    world.device.with(|device| device.faults(None).log.len())
}

/// A call that sets something up, on a fresh socket of `host`.
fn make(host: &Host, call: &str, port: u16) -> Result<(), WsaError> {
    let provider = &host.provider;
    match call {
        "wsp_socket" => return host.try_socket().map(|_| ()),
        "wsp_bind" => {
            let s = host.socket();
            return provider.wsp_bind(s, SocketAddrV4::new(host.ip, port));
        }
        _ => {}
    }
    let s = host.bound(host.ip, port);
    match call {
        "wsp_listen" => provider.wsp_listen(s, 1),
        "wsp_event_select" => provider.wsp_event_select(s, None, 0),
        "wsp_accept" => {
            provider.wsp_listen(s, 1)?;
            host.accept(s).map(|_| ())
        }
        "wsp_connect" => provider.wsp_connect(s, SocketAddrV4::new(ip(2), 81)),
        "wsp_set_sock_opt" => {
            let on = 1_u32.to_ne_bytes();
            provider.wsp_set_sock_opt(s, libc::SOL_SOCKET, options::SO_DEBUG, &on)
        }
        "wsp_get_sock_opt" => provider
            .wsp_get_sock_opt(s, libc::SOL_SOCKET, options::SO_DEBUG)
            .map(|_| ()),
        other => panic!("{other}"),
    }
}

#[test]
fn each_call_fails_once_with_the_chosen_code_on_that_node_alone() {
    for call in [
        "wsp_socket",
        "wsp_bind",
        "wsp_listen",
        "wsp_event_select",
        "wsp_accept",
        "wsp_connect",
        "wsp_set_sock_opt",
        "wsp_get_sock_opt",
    ] {
        let world = World::new();
        let before = make(&world.a, call, 81);
        fail(&world, call);
        assert_eq!(make(&world.b, call, 82), before, "{call} on another node");
        assert_eq!(make(&world.a, call, 83), Err(WsaError::NoBufs), "{call}");
        assert_eq!(make(&world.a, call, 84), before, "{call} once more");
        assert_eq!(logged(&world), 1, "{call}");
    }
}

#[test]
fn calls_do_not_ask_without_a_rule_of_theirs() {
    let world = World::new();
    let asked = |world: &World| {
        let all = world.device.with(|device| device.recordings(None));
        let events = all.iter().flat_map(|recording| &recording.events);
        events
            .filter(|event| event.code.as_deref() == Some("CALL_FAULT"))
            .count()
    };
    fail(&world, "wsp_listen");
    let s = world.a.bound(ip(1), 80);
    assert_eq!(asked(&world), 0);
    assert_eq!(world.a.provider.wsp_listen(s, 1), Err(WsaError::NoBufs));
    assert_eq!(asked(&world), 1);
    world.a.provider.wsp_listen(s, 1).unwrap();
    assert_eq!(asked(&world), 1, "the rule is spent");
}

#[test]
fn a_rule_that_is_there_first_meets_a_process_that_comes_later() {
    let world = World::new();
    let rule = FaultRule::new(FaultPoint::Call, NOBUFS).count(1);
    world.device.with(|device| device.add_fault(rule)).unwrap();
    assert_eq!(make(&world.a, "wsp_socket", 81), Err(WsaError::NoBufs));
    world.a.bound(Ipv4Addr::UNSPECIFIED, 80);
}

#[test]
fn every_code_is_one_that_the_provider_knows() {
    for &(name, code) in call_codes() {
        let known = WsaError::from_code(code).unwrap_or_else(|| panic!("{name} {code}"));
        let rust = format!("wsa{}", known.name()).to_uppercase();
        assert!(
            rust == name || rust.replacen("WSA", "WSAE", 1) == name,
            "{name} is {known}"
        );
    }
}
