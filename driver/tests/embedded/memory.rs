//! Registration of memory, RDMA, and the memory of the switch.

use std::ptr::NonNull;

use driver::spi::{
    Link, MEM_READ, MEM_WRITE, MemoryHandle, RdmaDescriptor, ServiceProvider, SharedRegion,
};
use driver::wsa::WsaError;

use crate::support::{Host, Memory, World, connect, ip, plain};

fn expose(memory: &Memory<'_>, offset: usize, len: usize, access: u32) -> RdmaDescriptor {
    let address = memory.buffer(offset, 0).address;
    let provider = &memory.host.provider;
    provider
        .wsp_register_rdma_memory(memory.socket, address, len, access)
        .unwrap()
}

fn local(host: &Host, memory: &Memory<'_>, access: u32) -> Result<MemoryHandle, WsaError> {
    host.provider
        .wsp_register_memory(memory.socket, memory.address, 100, access)
}

#[test]
fn rdma_moves_bytes_between_registered_buffers() {
    let world = World::new();
    let (a, b) = world.connected();
    let (near, far) = (world.a.memory(a, 65_536), world.b.memory(b, 65_536));
    let target = expose(&far, 1000, 20_000, MEM_WRITE);
    near.write(0, &[5; 300]);
    near.write(9000, &[6; 700]);
    let slot = world.a.slot(a);
    let pieces = [near.buffer(0, 300), near.buffer(9000, 700)];
    world
        .a
        .provider
        .wsp_rdma_write(a, &pieces, &target, 50, slot, false)
        .unwrap();
    assert_eq!(world.a.result(a, slot).unwrap().bytes, 1000);
    let mut expected = vec![5; 300];
    expected.extend([6; 700]);
    assert_eq!(far.read(1050, 1000), expected);

    let source = expose(&far, 30_000, 5000, MEM_READ);
    far.write(30_100, &[9; 400]);
    let places = [near.buffer(100, 100), near.buffer(40_000, 300)];
    world
        .a
        .provider
        .wsp_rdma_read(a, &places, &source, 100, slot, false)
        .unwrap();
    assert_eq!(world.a.result(a, slot).unwrap().bytes, 400);
    assert_eq!(near.read(100, 100), [9; 100]);
    assert_eq!(near.read(40_000, 300), [9; 300]);
}

#[test]
fn a_send_after_a_read_and_after_a_write_keeps_their_order() {
    let world = World::new();
    let (a, b) = world.connected();
    let (near, far) = (world.a.memory(a, 65_536), world.b.memory(b, 65_536));
    let both = expose(&far, 0, 60_000, MEM_READ | MEM_WRITE);
    let received = world.b.slot(b);
    world
        .b
        .recv(b, &[far.buffer(60_000, 100)], received)
        .unwrap();
    let slots = [(); 3].map(|()| world.a.slot(a));
    near.write(0, &[1; 50_000]);
    let provider = &world.a.provider;
    provider
        .wsp_rdma_write(a, &[near.buffer(0, 50_000)], &both, 0, slots[0], false)
        .unwrap();
    provider
        .wsp_rdma_read(a, &[near.buffer(0, 50_000)], &both, 0, slots[1], false)
        .unwrap();
    world.a.send(a, &[plain(b"done")], slots[2]).unwrap();
    assert_eq!(world.b.result(b, received).unwrap().bytes, 4);
    assert_eq!(far.read(0, 50_000), [1; 50_000]);
    for slot in slots {
        assert!(world.a.result(a, slot).is_ok());
    }
}

#[test]
fn bad_descriptors_are_refused_before_anything_starts() {
    let world = World::new();
    let (a, b) = world.connected();
    let (near, far) = (world.a.memory(a, 4096), world.b.memory(b, 4096));
    let readable = expose(&far, 0, 1000, MEM_READ);
    let slot = world.a.slot(a);
    let buffers = [near.buffer(0, 100)];
    let write = |target: &RdmaDescriptor, offset| {
        world
            .a
            .provider
            .wsp_rdma_write(a, &buffers, target, offset, slot, false)
    };
    let read = |source: &RdmaDescriptor, offset| {
        world
            .a
            .provider
            .wsp_rdma_read(a, &buffers, source, offset, slot, false)
    };
    assert_eq!(write(&readable, 0), Err(WsaError::Inval));
    assert_eq!(read(&readable, 901), Err(WsaError::Inval));
    assert_eq!(read(&readable, u64::MAX), Err(WsaError::Inval));
    let far_up = RdmaDescriptor {
        addr: u64::MAX,
        len: u64::MAX,
        ..readable
    };
    assert_eq!(read(&far_up, 1), Err(WsaError::Inval));
    let five = [near.buffer(0, 1); 5];
    let provider = &world.a.provider;
    assert_eq!(
        provider.wsp_rdma_read(a, &five, &readable, 0, slot, false),
        Err(WsaError::Inval)
    );
    assert_eq!(
        provider.wsp_rdma_read(a, &[plain(b"x")], &readable, 0, slot, false),
        Err(WsaError::Fault)
    );
    let fresh = world.a.socket();
    assert_eq!(
        provider.wsp_rdma_read(fresh, &buffers, &readable, 0, slot, false),
        Err(WsaError::NotConn)
    );
    assert_eq!(read(&readable, 900), Ok(()));
}

#[test]
fn a_descriptor_of_another_connection_is_an_access_error() {
    let world = World::new();
    let (a, b) = world.connected();
    let (other_a, other_b) = connect(&world.a, &world.b, 4001, 5001);
    let far = world.b.memory(b, 4096);
    let near = world.a.memory(other_a, 4096);
    let target = expose(&far, 0, 4096, MEM_WRITE);
    let slot = world.a.slot(other_a);
    let provider = &world.a.provider;
    provider
        .wsp_rdma_write(other_a, &[near.buffer(0, 100)], &target, 0, slot, false)
        .unwrap();
    assert_eq!(world.a.result(other_a, slot), Err(WsaError::ConnAborted));
    world.b.start.waiting.progress();
    assert_eq!(
        world.b.start.waiting.link(other_b),
        Link::Ended(WsaError::ConnAborted)
    );
    // The connection that owns the memory noticed nothing.
    assert_eq!(world.a.start.waiting.link(a), Link::Up);
    assert_eq!(world.b.start.waiting.link(b), Link::Up);
    assert_eq!(far.read(0, 100), [0; 100]);
}

#[test]
fn after_deregistration_the_peer_reaches_nothing() {
    let world = World::new();
    let (a, b) = world.connected();
    let (near, far) = (world.a.memory(a, 4096), world.b.memory(b, 4096));
    let once = expose(&far, 0, 1000, MEM_READ);
    let twice = expose(&far, 0, 1000, MEM_READ);
    assert_eq!(once, twice);
    let provider = &world.b.provider;
    provider.wsp_deregister_rdma_memory(b, &once).unwrap();
    let slot = world.a.slot(a);
    let read = |slot| {
        world
            .a
            .provider
            .wsp_rdma_read(a, &[near.buffer(0, 10)], &once, 0, slot, false)
    };
    // registered twice, undone once.
    read(slot).unwrap();
    assert!(world.a.result(a, slot).is_ok());
    provider.wsp_deregister_rdma_memory(b, &once).unwrap();
    assert_eq!(
        provider.wsp_deregister_rdma_memory(b, &once),
        Err(WsaError::Inval)
    );
    read(slot).unwrap();
    assert_eq!(world.a.result(a, slot), Err(WsaError::ConnAborted));
}

#[test]
fn registration_checks_socket_range_and_rights() {
    let world = World::new();
    let (a, b) = world.connected();
    let memory = world.a.memory(a, 4096);
    let provider = &world.a.provider;
    for access in [0, 4, 7] {
        assert_eq!(local(&world.a, &memory, access), Err(WsaError::Inval));
    }
    assert_eq!(
        provider.wsp_register_memory(a, memory.address, 0, MEM_READ),
        Err(WsaError::Inval)
    );
    let private = vec![0_u8; 100];
    let outside = NonNull::from(&private[..]).cast();
    assert_eq!(
        provider.wsp_register_memory(a, outside, 100, MEM_READ),
        Err(WsaError::Fault)
    );
    assert_eq!(
        provider.wsp_register_rdma_memory(a, outside, 100, MEM_READ),
        Err(WsaError::Fault)
    );
    assert_eq!(
        provider.wsp_register_memory(a, memory.address, 2 << 30, MEM_READ),
        Err(WsaError::Fault)
    );
    let unconnected = world.a.socket();
    assert_eq!(
        provider.wsp_register_memory(unconnected, memory.address, 10, MEM_READ),
        Err(WsaError::NotConn)
    );
    // Rights are those of the registration, not those of the memory.
    let read_only = local(&world.a, &memory, MEM_READ).unwrap();
    let write_only = local(&world.a, &memory, MEM_WRITE).unwrap();
    let slot = world.a.slot(a);
    let mut buffer = memory.buffer(0, 100);
    buffer.handle = Some(read_only);
    assert_eq!(world.a.recv(a, &[buffer], slot), Err(WsaError::Fault));
    assert_eq!(world.a.send(a, &[buffer], slot), Ok(()));
    buffer.handle = Some(write_only);
    assert_eq!(world.a.send(a, &[buffer], slot), Err(WsaError::Fault));
    // A handle belongs to one socket.
    let (other, _) = connect(&world.a, &world.b, 4001, 5001);
    let slot = world.a.slot(other);
    assert_eq!(
        world.a.send(other, &[memory.buffer(0, 100)], slot),
        Err(WsaError::Fault)
    );
    assert_eq!(
        provider.wsp_deregister_memory(other, memory.handle),
        Err(WsaError::Inval)
    );
    drop((b, private));
}

#[test]
fn local_registrations_are_counted_and_kept_while_in_use() {
    let world = World::new();
    let (a, b) = world.connected();
    let provider = &world.b.provider;
    let into = world.b.memory(b, 4096);
    let once = local(&world.b, &into, MEM_WRITE).unwrap();
    assert_eq!(local(&world.b, &into, MEM_WRITE), Ok(once));
    assert_eq!(provider.wsp_deregister_memory(b, once), Ok(()));
    let mut buffer = into.buffer(0, 100);
    buffer.handle = Some(once);
    let received = world.b.slot(b);
    world.b.recv(b, &[buffer], received).unwrap();
    assert_eq!(
        provider.wsp_deregister_memory(b, once),
        Err(WsaError::Inval)
    );
    world.a.send(a, &[plain(b"x")], world.a.slot(a)).unwrap();
    assert_eq!(world.b.result(b, received).unwrap().bytes, 1);
    assert_eq!(provider.wsp_deregister_memory(b, once), Ok(()));
    assert_eq!(
        provider.wsp_deregister_memory(b, once),
        Err(WsaError::Inval)
    );
    assert_eq!(
        provider.wsp_deregister_memory(b, MemoryHandle(u64::MAX)),
        Err(WsaError::Inval)
    );
    assert_eq!(world.b.recv(b, &[buffer], received), Err(WsaError::Fault));
    provider.wsp_close_socket(b).unwrap();
    assert_eq!(
        provider.wsp_deregister_memory(b, once),
        Err(WsaError::NotSock)
    );
}

#[test]
fn send_rings_lie_in_the_pair_arena_of_their_peer() {
    let world = World::new();
    let (a, b) = world.connected();
    let memory = &world.a.start.memory;
    let windows = || {
        world
            .device
            .with(|device| device.node_counters()[0].counters.windows)
    };
    let before = windows();
    let ring = memory.alloc_ring(a, 65_536).unwrap();
    assert!(ring.offset >= 1 << 30);
    assert_eq!(windows(), before + 1);
    let (other, _) = connect(&world.a, &world.b, 4001, 5001);
    let next = memory.alloc_ring(other, 65_536).unwrap();
    // The same peer function: the same pair arena.
    assert_eq!(ring.offset >> 30, next.offset >> 30);
    assert_eq!(windows(), before + 1);
    // The ring can be sent from, and read by the peer.
    let address = memory.at(a, ring.offset).unwrap();
    let provider = &world.a.provider;
    let handle = provider
        .wsp_register_memory(a, address, 65_536, MEM_READ)
        .unwrap();
    let from_ring = Memory {
        host: &world.a,
        socket: a,
        region: ring,
        address,
        handle,
    };
    from_ring.write(1000, &[3; 2000]);
    let into = world.b.memory(b, 4096);
    let received = world.b.slot(b);
    world.b.recv(b, &[into.buffer(0, 4096)], received).unwrap();
    world
        .a
        .send(a, &[from_ring.buffer(1000, 2000)], world.a.slot(a))
        .unwrap();
    assert_eq!(world.b.result(b, received).unwrap().bytes, 2000);
    let source = expose(&from_ring, 0, 65_536, MEM_READ);
    let slot = world.b.slot(b);
    let places = [into.buffer(2000, 2000)];
    world
        .b
        .provider
        .wsp_rdma_read(b, &places, &source, 1000, slot, false)
        .unwrap();
    assert_eq!(world.b.result(b, slot).unwrap().bytes, 2000);
    assert_eq!(into.read(0, 4000), [3; 4000]);
    // An emptied pair arena keeps its first pages, and is zero beyond them when it is used again.
    let far = memory.alloc_ring(a, 8 << 20).unwrap();
    let address = memory.at(a, far.offset + (7 << 20)).unwrap();
    let handle = provider
        .wsp_register_memory(a, address, 4096, MEM_READ)
        .unwrap();
    let in_far = Memory {
        host: &world.a,
        socket: a,
        region: far,
        address,
        handle,
    };
    in_far.write(0, &[9; 100]);
    assert_eq!(in_far.read(0, 100), [9; 100]);
    memory.free_ring(a, far);
    memory.free_ring(a, ring);
    memory.free_ring(other, next);
    let again = memory.alloc_ring(a, 65_536).unwrap();
    assert_eq!(again, ring);
    assert_eq!(in_far.read(0, 100), [0; 100]);
}

#[test]
fn pair_arenas_of_peers_that_went_are_used_up_again() {
    let world = World::new();
    let memory = &world.a.start.memory;
    let node = world.device.add_node("c", &[ip(3)]);
    for round in 0..30_u16 {
        let opener = crate::support::EmbeddedOpener {
            device: world.device.clone(),
            node,
            held: Default::default(),
        };
        let host = Host::new(std::sync::Arc::new(opener), ip(3));
        let (a, c) = connect(&world.a, &host, 4000 + round, 5000);
        let ring = memory.alloc_ring(a, 100_000).unwrap();
        assert!(ring.offset >> 30 <= 9, "{ring:?}");
        memory.free_ring(a, ring);
        host.provider.wsp_close_socket(c).unwrap();
        world.a.provider.wsp_close_socket(a).unwrap();
    }
    let windows = world
        .device
        .with(|device| device.node_counters()[0].counters.windows);
    assert!(windows <= 10, "{windows}");
}

#[test]
fn arena_memory_comes_back_and_runs_out_as_a_value() {
    let world = World::new();
    let (a, _b) = world.connected();
    let memory = &world.a.start.memory;
    let mut taken = Vec::new();
    while let Some(region) = memory.alloc(a, 64 << 20) {
        taken.push(region);
    }
    assert!(taken.len() >= 13, "{}", taken.len());
    for region in taken.drain(..) {
        memory.free(a, region);
    }
    assert!(memory.alloc(a, 64 << 20).is_some());
    assert_eq!(memory.alloc(a, 2 << 30), None);
    // Memory outlives its socket: the switch frees it after the close.
    let region: SharedRegion = memory.alloc(a, 4096).unwrap();
    world.a.provider.wsp_close_socket(a).unwrap();
    assert!(memory.at(a, region.offset).is_some());
    memory.free(a, region);
    assert_eq!(memory.at(a, u64::MAX), None);
    assert_eq!(memory.at(a, 5 << 30), None);
}
