//! The crate `vfio_user` as an independent client: what it understands, others will.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::sys::eventfd::{EfdFlags, EventFd};
use ring_proto::{regs, uar};
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_SET_ACTION_MASK, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_UNMASK,
    VFIO_IRQ_SET_DATA_BOOL, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE,
    VFIO_REGION_INFO_FLAG_MMAP,
};
use vfio_user::Client;
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

use super::harness::{Cluster, eventfd_count, eventually, sealed};

fn attach(cluster: &Cluster) -> Client {
    Client::new(&cluster.device("a")).unwrap()
}

fn bar2(client: &Client) -> MmapRegion {
    let region = client.region(regs::REGION_BAR2).unwrap();
    let file = region.file_offset.as_ref().unwrap();
    let file = FileOffset::from_arc(Arc::clone(file.arc()), file.start());
    let len = usize::try_from(region.size).unwrap();
    MmapRegion::from_file(file, len).unwrap()
}

fn register(client: &mut Client, offset: u64) -> u32 {
    let mut bytes = [0; 4];
    client
        .region_read(regs::REGION_BAR0, offset, &mut bytes)
        .unwrap();
    u32::from_le_bytes(bytes)
}

#[test]
fn regions_have_the_shape_of_a_pci_device() {
    let cluster = Cluster::start();
    let client = attach(&cluster);
    let sizes: Vec<_> = (0..9).map(|i| client.region(i).unwrap().size).collect();
    assert_eq!(sizes, [16384, 0, uar::BAR2_LEN, 0, 4096, 0, 0, 256, 0]);
    for index in 0..9 {
        let region = client.region(index).unwrap();
        let can_map = region.flags & VFIO_REGION_INFO_FLAG_MMAP != 0;
        assert_eq!(can_map, index == regs::REGION_BAR2);
        assert_eq!(region.file_offset.is_some(), can_map);
    }
    client.shutdown().unwrap();
}

#[test]
fn identity_is_found_in_configuration_space_and_registers() {
    let cluster = Cluster::start();
    let mut client = attach(&cluster);
    let mut config = [0; 256];
    client
        .region_read(regs::REGION_CONFIG, 0, &mut config)
        .unwrap();
    assert_eq!(config[0..4], [0x17, 0x5a, 0x01, 0x00]);
    assert_eq!(config[9..12], [0x00, 0x07, 0x02]);
    assert_eq!(register(&mut client, regs::MAGIC), regs::MAGIC_VALUE);
    assert_eq!(register(&mut client, regs::ABI), regs::ABI_VALUE);
    let features = [1, 0, 0, 0, 0, 0, 0, 0];
    client
        .region_write(regs::REGION_BAR0, regs::DRIVER_FEATURES, &features)
        .unwrap();
    assert_eq!(register(&mut client, regs::DRIVER_FEATURES), 1);
}

#[test]
fn doorbells_are_one_memory_for_mapping_and_messages() {
    let cluster = Cluster::start();
    let mut client = attach(&cluster);
    let bar2 = bar2(&client);
    let memory = bar2.as_volatile_slice();
    let line = uar::line_offset(5);
    memory
        .write_obj(0xfeed_u32, usize::try_from(line).unwrap())
        .unwrap();
    let mut bytes = [0; 4];
    client
        .region_read(regs::REGION_BAR2, line, &mut bytes)
        .unwrap();
    assert_eq!(bytes, 0xfeed_u32.to_le_bytes());
    client
        .region_write(regs::REGION_BAR2, line + 4, &[7, 0, 0, 0])
        .unwrap();
    let at = usize::try_from(line).unwrap() + 4;
    assert_eq!(memory.read_obj::<u32>(at).unwrap(), 7);
}

#[test]
fn an_idle_device_parks_and_says_so() {
    let cluster = Cluster::start();
    let client = attach(&cluster);
    let bar2 = bar2(&client);
    let memory = bar2.as_volatile_slice();
    eventually(
        "parked",
        || memory.read_obj::<u32>(64).unwrap(),
        |&parked| parked != 0,
    );
}

#[test]
fn windows_come_and_go() {
    let cluster = Cluster::start();
    let mut client = attach(&cluster);
    let memory = sealed(1 << 20);
    client
        .dma_map(0, 1 << 30, 1 << 20, memory.as_raw_fd())
        .unwrap();
    assert_eq!(cluster.counters().windows, 1);
    client.dma_unmap(1 << 30, 1 << 20).unwrap();
    assert_eq!(cluster.counters().windows, 0);
}

#[test]
fn vectors_fire_into_eventfds() {
    let cluster = Cluster::start();
    let mut client = attach(&cluster);
    let info = client.get_irq_info(regs::IRQ_MSIX).unwrap();
    assert_eq!((info.count, info.flags), (regs::VECTORS, 3));
    let fds: Vec<OwnedFd> = (0..3)
        .map(|_| EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap().into())
        .collect();
    let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let counts = || raw.iter().map(|&fd| eventfd_count(fd)).collect::<Vec<_>>();
    let trigger = VFIO_IRQ_SET_ACTION_TRIGGER;
    let assign = VFIO_IRQ_SET_DATA_EVENTFD | trigger;
    client.set_irqs(2, assign, 0, 2, &raw[..2]).unwrap();
    client.set_irqs(2, assign, 63, 1, &raw[2..]).unwrap();
    let fire = VFIO_IRQ_SET_DATA_NONE | trigger;
    client.set_irqs(2, fire, 1, 1, &[]).unwrap();
    assert_eq!(counts(), [0, 1, 0]);
    client.set_irqs(2, fire, 0, 64, &[]).unwrap();
    assert_eq!(counts(), [1, 2, 1]);
    // Disconnecting one leaves the others.
    client.set_irqs(2, assign, 1, 1, &[]).unwrap();
    client.set_irqs(2, fire, 0, 64, &[]).unwrap();
    assert_eq!(counts(), [2, 2, 2]);
    client.set_irqs(2, fire, 0, 0, &[]).unwrap();
    client.set_irqs(2, fire, 0, 64, &[]).unwrap();
    assert_eq!(counts(), [2, 2, 2]);
    // This client sends no data with DATA_BOOL, which is refused and changes nothing.
    let some = VFIO_IRQ_SET_DATA_BOOL | trigger;
    client.set_irqs(2, some, 0, 2, &[]).unwrap();
    assert_eq!(counts(), [2, 2, 2]);
}

#[test]
fn masked_vectors_wait() {
    let cluster = Cluster::start();
    let mut client = attach(&cluster);
    let vector: OwnedFd = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap().into();
    let raw = vector.as_raw_fd();
    let count = || eventfd_count(raw);
    let (none, trigger) = (VFIO_IRQ_SET_DATA_NONE, VFIO_IRQ_SET_ACTION_TRIGGER);
    client
        .set_irqs(2, VFIO_IRQ_SET_DATA_EVENTFD | trigger, 5, 1, &[raw])
        .unwrap();
    let mask = none | VFIO_IRQ_SET_ACTION_MASK;
    client.set_irqs(2, mask, 5, 1, &[]).unwrap();
    client.set_irqs(2, none | trigger, 5, 1, &[]).unwrap();
    assert_eq!(count(), 0);
    let mut pending = [0; 8];
    client
        .region_read(regs::REGION_BAR4, 0x800, &mut pending)
        .unwrap();
    assert_eq!(u64::from_le_bytes(pending), 1 << 5);
    let unmask = none | VFIO_IRQ_SET_ACTION_UNMASK;
    client.set_irqs(2, unmask, 5, 1, &[]).unwrap();
    assert_eq!(count(), 1);
}

#[test]
fn reset_counts_and_leaves_the_function_usable() {
    let cluster = Cluster::start();
    let mut client = attach(&cluster);
    client
        .region_write(regs::REGION_CONFIG, 4, &[6, 0])
        .unwrap();
    let before = register(&mut client, regs::RESET_GENERATION);
    client.reset().unwrap();
    assert_eq!(register(&mut client, regs::RESET_GENERATION), before + 1);
    let mut command = [1; 2];
    client
        .region_read(regs::REGION_CONFIG, 4, &mut command)
        .unwrap();
    assert_eq!(command, [0, 0]);
}

#[test]
fn functions_are_separate_and_end_with_their_connection() {
    let cluster = Cluster::start();
    let mut first = attach(&cluster);
    let mut second = attach(&cluster);
    assert_eq!(cluster.counters().functions, 2);
    first.region_write(regs::REGION_CONFIG, 0x3c, &[9]).unwrap();
    let mut line = [1];
    second
        .region_read(regs::REGION_CONFIG, 0x3c, &mut line)
        .unwrap();
    assert_eq!(line, [0]);
    drop(first);
    eventually("detached", || cluster.counters().functions, |&n| n == 1);
    assert_eq!(register(&mut second, regs::MAGIC), regs::MAGIC_VALUE);
}
