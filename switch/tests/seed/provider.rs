//! Providers: which are used, and the handles that they and the switch name sockets by (R-12 … … R-60).

use core::net::Ipv4Addr;

use driver::spi::{Extension, OVERLAPPED_DONE, Overlapped, ServiceProvider, SwitchHandle};
use driver::wsa::WsaError;
use ring_proto::sync::Ordering;
use switch::Switch;
use switch::mock::Call;

use super::world::{A, B, World, at, config, establish, sp_of};
use super::{receive, send_all};

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
