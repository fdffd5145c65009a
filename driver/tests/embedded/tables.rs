//! The tables of the interface: start and clean-up, options, control codes, and the codes that never come.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::ptr::NonNull;

use driver::provider::FlightKind;
use driver::spi::{
    Extension, Ioctl, IoctlReply, Link, MEM_READ, MemoryHandle, ProtocolInfo, RdmaDescriptor,
    ServiceProvider, SpSocket, TCP_INFO, Verdict, WSD_VERSION, options,
};
use driver::wsa::WsaError;
use ring_proto::regs::MESSAGE_LIMIT;

use crate::support::{Call, World, ip, plain};

#[test]
fn start_checks_version_and_caller_and_clean_up_counts() {
    let world = World::new();
    let provider = &world.a.provider;
    let start = |version, info: &ProtocolInfo| {
        provider
            .wsp_startup_ex(version, info, world.a.upcalls.clone())
            .map(|data| data.version)
    };
    assert_eq!(start(0x0101, &TCP_INFO), Err(WsaError::VerNotSupported));
    assert_eq!(start(0x0102, &TCP_INFO), Err(WsaError::VerNotSupported));
    let own = ProtocolInfo {
        protocol: 0,
        ..TCP_INFO
    };
    assert_eq!(start(WSD_VERSION, &own), Err(WsaError::SysNotReady));
    assert_eq!(start(WSD_VERSION, &TCP_INFO), Ok(WSD_VERSION));
    let s = world.a.socket();
    assert_eq!(provider.wsp_cleanup(), Ok(()));
    // Started twice, cleaned once: everything goes on.
    assert_eq!(provider.wsp_bind(s, SocketAddrV4::new(ip(1), 80)), Ok(()));
    assert_eq!(provider.wsp_cleanup(), Ok(()));
    assert_eq!(provider.wsp_listen(s, 1), Err(WsaError::NotSock));
    assert_eq!(provider.wsp_cleanup(), Err(WsaError::NotInitialised));
    assert_eq!(world.a.try_socket(), Err(WsaError::NetDown));
    // A new start works at once.
    assert_eq!(start(WSD_VERSION, &TCP_INFO), Ok(WSD_VERSION));
    assert!(world.a.try_socket().is_ok());
}

#[test]
fn clean_up_resets_open_connections_without_notification() {
    let world = World::new();
    let (a, b) = world.connected();
    let into = world.b.memory(b, 100);
    world
        .b
        .provider
        .wsp_recv(b, &[into.buffer(0, 100)], world.b.slot(b), true)
        .unwrap();
    world.b.upcalls.take();
    world.b.provider.wsp_cleanup().unwrap();
    assert_eq!(world.b.upcalls.completions(), []);
    world.a.start.waiting.progress();
    let slot = world.a.slot(a);
    assert_eq!(
        world.a.send(a, &[plain(b"x")], slot),
        Err(WsaError::ConnReset)
    );
}

#[test]
fn each_socket_has_one_handle_of_the_switch() {
    let world = World::new();
    let s = world.a.socket();
    let calls = world.a.upcalls.take();
    let [Call::Create(handle, context)] = calls[..] else {
        panic!("{calls:?}");
    };
    assert_eq!(context, s.0);
    world.a.provider.wsp_close_socket(s).unwrap();
    assert_eq!(world.a.upcalls.take(), [Call::Close(handle)]);
    // without a handle there is no socket.
    *world.a.upcalls.refuse.lock().unwrap() = true;
    assert_eq!(world.a.try_socket(), Err(WsaError::NoBufs));
}

#[test]
fn options_have_the_values_and_codes_of_the_table() {
    let world = World::new();
    let provider = &world.a.provider;
    let s = world.a.socket();
    let level = libc::SOL_SOCKET;
    let value = |name| provider.wsp_get_sock_opt(s, level, name);
    assert_eq!(value(options::SO_MAX_MSG_SIZE), Ok(MESSAGE_LIMIT));
    assert_eq!(value(options::SO_MAX_RDMA_SIZE), Ok(MESSAGE_LIMIT));
    assert_eq!(value(options::SO_RDMA_THRESHOLD_SIZE), Ok(65_536));
    assert_eq!(value(options::SO_GROUP_PRIORITY), Err(WsaError::NoProtoOpt));
    assert_eq!(value(0x1234), Err(WsaError::NoProtoOpt));
    assert_eq!(
        provider.wsp_get_sock_opt(s, 6, options::SO_DEBUG),
        Err(WsaError::Inval)
    );
    let set = |name, bytes: &[u8]| provider.wsp_set_sock_opt(s, level, name, bytes);
    assert_eq!(value(options::SO_DEBUG), Ok(0));
    assert_eq!(set(options::SO_DEBUG, &7_u32.to_ne_bytes()), Ok(()));
    assert_eq!(value(options::SO_DEBUG), Ok(1));
    assert_eq!(set(options::SO_DEBUG, &[1, 0, 0]), Err(WsaError::Fault));
    assert_eq!(
        set(options::SO_MAX_MSG_SIZE, &[0; 4]),
        Err(WsaError::NoProtoOpt)
    );
    assert_eq!(
        provider.wsp_set_sock_opt(s, 6, 1, &[0; 4]),
        Err(WsaError::Inval)
    );
    // What the switch may replay is asked, never tried.
    assert!(provider.supports_option(level, options::SO_DEBUG));
    assert!(!provider.supports_option(level, options::SO_GROUP_PRIORITY));
    assert!(!provider.supports_option(6, 1));
}

#[test]
fn the_flight_recorder_tells_what_happened_last() {
    let world = World::new();
    let (a, b) = world.connected();
    let provider = &world.a.provider;
    let into = world.b.memory(b, 4096);
    world
        .b
        .recv(b, &[into.buffer(0, 100)], world.b.slot(b))
        .unwrap();
    world
        .a
        .send(a, &[plain(b"unseen")], world.a.slot(a))
        .unwrap();
    assert_eq!(provider.flight_record(a), Ok(vec![]));
    let on = 1_u32.to_ne_bytes();
    provider
        .wsp_set_sock_opt(a, libc::SOL_SOCKET, options::SO_DEBUG, &on)
        .unwrap();
    let slot = world.a.slot(a);
    world.a.send(a, &[plain(b"seen")], slot).unwrap();
    world.b.provider.wsp_close_socket(b).unwrap();
    assert!(world.a.result(a, slot).is_err());
    let seen: Vec<_> = provider
        .flight_record(a)
        .unwrap()
        .into_iter()
        .map(|entry| (entry.kind, entry.error, entry.bytes))
        .collect();
    assert_eq!(seen[0], (FlightKind::Posted, None, 4));
    assert_eq!(seen[1], (FlightKind::Finished, None, 6));
    let reset = Some(WsaError::ConnReset);
    assert_eq!(seen[2], (FlightKind::Ended, reset, 0));
    assert_eq!(seen[3], (FlightKind::Finished, reset, 0));
    assert_eq!(seen.len(), 4);
}

#[test]
fn control_codes_answer_as_the_table_says() {
    let world = World::new();
    let provider = &world.a.provider;
    for extension in [
        Extension::RegisterMemory,
        Extension::DeregisterMemory,
        Extension::RegisterRdmaMemory,
        Extension::DeregisterRdmaMemory,
        Extension::RdmaWrite,
        Extension::RdmaRead,
    ] {
        // the socket is not looked at.
        let asked = Ioctl::ExtensionFunctionPointer(extension);
        let answer = Ok(IoctlReply::Extension(extension));
        assert_eq!(provider.wsp_ioctl(None, asked), answer);
        assert_eq!(provider.wsp_ioctl(Some(SpSocket(u64::MAX)), asked), answer);
    }
    let cache = Ioctl::ExtensionFunctionPointer(Extension::MemoryRegistrationCacheCallback);
    assert_eq!(provider.wsp_ioctl(None, cache), Err(WsaError::OpNotSupp));
    let s = world.a.socket();
    let list = IoctlReply::AddressList(vec![SocketAddrV4::new(ip(1), 0)]);
    assert_eq!(
        provider.wsp_ioctl(Some(s), Ioctl::AddressListQuery),
        Ok(list)
    );
    assert_eq!(
        provider.wsp_ioctl(None, Ioctl::AddressListQuery),
        Err(WsaError::NotSock)
    );
    assert_eq!(
        provider.wsp_ioctl(Some(s), Ioctl::Qos),
        Err(WsaError::OpNotSupp)
    );
    assert_eq!(
        provider.wsp_get_qos_by_name(s, b""),
        Err(WsaError::OpNotSupp)
    );
    assert_eq!(provider.wsp_duplicate_socket(s, 1), Err(WsaError::Inval));
}

#[test]
fn a_function_that_failed_takes_its_sockets_with_it_and_a_new_one_is_opened() {
    let world = World::new();
    let (a, b) = world.connected();
    let into = world.a.memory(a, 100);
    let pending = world.a.slot(a);
    world.a.recv(a, &[into.buffer(0, 100)], pending).unwrap();
    let (listener, _wakes) = world.a.listener(ip(1), 80, 1);
    let function = world.a.provider.function().unwrap().id();
    world.device.with(|device| device.detach(function));
    assert_eq!(world.a.result(a, pending), Err(WsaError::ConnAborted));
    assert_eq!(world.a.provider.wsp_close_socket(a), Ok(()));
    assert_eq!(world.a.provider.wsp_close_socket(listener), Ok(()));
    world.b.start.waiting.progress();
    // What the program had not destroyed is an orphan: its memory can still be read.
    assert_eq!(world.b.start.waiting.link(b), Link::Orphaned);
    assert_eq!(world.b.provider.wsp_close_socket(b), Ok(()));
    assert!(world.a.try_socket().is_ok());
    let (_again, _peer) = crate::support::connect(&world.a, &world.b, 4100, 5100);
}

/// Codes that the Windows Sockets Direct reference excludes, by function.
fn never(function: &str) -> &'static [WsaError] {
    use WsaError::{
        Acces, AddrInUse, Discon, InProgress, Intr, Inval, OpNotSupp, Shutdown, WouldBlock,
    };
    match function {
        "cleanup" => &[Inval, InProgress],
        "listen" => &[AddrInUse, InProgress, OpNotSupp],
        "bind" => &[AddrInUse, InProgress],
        "accept" | "connect" => &[Intr, InProgress, AddrInUse],
        "send" => &[Intr, InProgress, Acces, Shutdown, WouldBlock],
        "recv" => &[Intr, InProgress, Shutdown, WouldBlock, Discon],
        "close" => &[InProgress, WouldBlock],
        _ => &[InProgress],
    }
}

/// Every function with every kind of socket and argument, whatever the answer: excluded codes must not be among them.
#[test]
fn excluded_codes_never_come() {
    let mut seen: BTreeMap<&str, Vec<WsaError>> = BTreeMap::new();
    let mut note = |function, code: Option<WsaError>| {
        seen.entry(function).or_default().extend(code);
    };
    for death in [false, true] {
        let world = World::new();
        let provider = &world.a.provider;
        let (a, _b) = world.connected();
        let (reset, peer) = crate::support::connect(&world.a, &world.b, 4001, 5001);
        world.b.provider.wsp_close_socket(peer).unwrap();
        world.a.start.waiting.progress();
        let closed = world.a.socket();
        provider.wsp_close_socket(closed).unwrap();
        let (listening, _wakes) = world.a.listener(ip(1), 80, 1);
        let (_waiting, _wakes) = world.b.listener(ip(2), 80, 1);
        let (connecting, _ends) = world.a.connecting(4002, SocketAddrV4::new(ip(2), 80));
        let sockets = [
            a,
            reset,
            closed,
            listening,
            connecting,
            world.a.socket(),
            world.a.bound(ip(1), 81),
            world.a.bound(Ipv4Addr::UNSPECIFIED, 82),
            SpSocket(0),
            SpSocket(u64::MAX),
        ];
        let memory = world.a.memory(a, 4096);
        let slot = world.a.slot(a);
        if death {
            let function = provider.function().unwrap().id();
            world.device.with(|device| device.detach(function));
        }
        let private = [0_u8; 300];
        let descriptor = RdmaDescriptor {
            addr: 1,
            len: 100,
            rkey: 7,
            access: 3,
        };
        for s in sockets {
            for port in [0, 80, 90] {
                for ip in [ip(1), ip(2), Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST] {
                    let name = SocketAddrV4::new(ip, port);
                    note("connect", provider.wsp_connect(s, name).err());
                    note("bind", provider.wsp_bind(s, name).err());
                }
            }
            note("listen", provider.wsp_listen(s, -1).err());
            let verdict = &mut |_: &_| Verdict::Reject;
            note("accept", provider.wsp_accept(s, verdict).err());
            for buffers in [&[][..], &[memory.buffer(0, 10)], &[plain(&private)]] {
                note("send", provider.wsp_send(s, buffers, slot, false).err());
                note("recv", provider.wsp_recv(s, buffers, slot, false).err());
                for offset in [0, 99] {
                    let done =
                        provider.wsp_rdma_write(s, buffers, &descriptor, offset, slot, false);
                    note("send", done.err());
                    let done = provider.wsp_rdma_read(s, buffers, &descriptor, offset, slot, false);
                    note("send", done.err());
                }
            }
            note(
                "result",
                provider.wsp_get_overlapped_result(s, slot, false).err(),
            );
            note("select", provider.wsp_event_select(s, None, 0x20).err());
            note("enum", provider.wsp_enum_network_events(s, None).err());
            note("get", provider.wsp_get_sock_opt(s, 0, 0).err());
            note("set", provider.wsp_set_sock_opt(s, 1, 1, &[]).err());
            note(
                "ioctl",
                provider.wsp_ioctl(Some(s), Ioctl::AddressListQuery).err(),
            );
            note("duplicate", provider.wsp_duplicate_socket(s, 0).err());
            let range = (NonNull::from(&private).cast(), private.len());
            note(
                "register",
                provider
                    .wsp_register_memory(s, range.0, range.1, MEM_READ)
                    .err(),
            );
            note(
                "register",
                provider
                    .wsp_register_rdma_memory(s, range.0, range.1, 9)
                    .err(),
            );
            note(
                "register",
                provider.wsp_deregister_memory(s, MemoryHandle(1)).err(),
            );
            note(
                "register",
                provider.wsp_deregister_rdma_memory(s, &descriptor).err(),
            );
            note("close", provider.wsp_close_socket(s).err());
            note("close", provider.wsp_close_socket(s).err());
        }
        note("cleanup", provider.wsp_cleanup().err());
        note("cleanup", provider.wsp_cleanup().err());
    }
    for (function, codes) in seen {
        for code in codes {
            assert!(
                !never(function).contains(&code),
                "{function} answered {code}"
            );
        }
    }
}
