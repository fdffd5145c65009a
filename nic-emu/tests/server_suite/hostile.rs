//! Clients that lie: each gets an error or loses its connection, and a bystander notices nothing.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::eventfd::EventFd;
use ring_proto::{regs, uar, vfio};
use zerocopy::{FromBytes, IntoBytes};

use super::harness::{Cluster, RawClient, eventfd_count, eventually, memfd, sealed};

/// A cluster with a client that behaves; checked at the end.
struct Stage {
    cluster: Cluster,
    bystander: RawClient,
}

impl Stage {
    fn new() -> Self {
        let cluster = Cluster::start();
        let bystander = cluster.client();
        Self { cluster, bystander }
    }

    fn raw(&self) -> RawClient {
        RawClient::connect(&self.cluster.device("a"))
    }

    /// The bystander works, and nobody else is left attached.
    fn settle(mut self) {
        assert_eq!(self.bystander.register(regs::MAGIC), regs::MAGIC_VALUE);
        let functions = || self.cluster.counters().functions;
        eventually("others detached", functions, |&n| n == 1);
    }
}

/// A pipe's write ends, and whether all of them have been closed.
fn pipe_ends(n: usize) -> (OwnedFd, Vec<OwnedFd>) {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
    let ends = (0..n).map(|_| write.try_clone().unwrap()).collect();
    (read, ends)
}

fn all_closed(read: &OwnedFd) {
    let end = || nix::unistd::read(read, &mut [0; 1]) == Ok(0);
    eventually("descriptors closed", end, |&at_end| at_end);
}

fn numbers(fds: &[OwnedFd]) -> Vec<RawFd> {
    fds.iter().map(AsRawFd::as_raw_fd).collect()
}

#[test]
fn garbage_ends_in_an_error_or_the_end() {
    let stage = Stage::new();
    let mut seed = 1u64;
    for _ in 0..200 {
        let mut client = stage.raw();
        let bytes: Vec<u8> = (0..64)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                seed.to_le_bytes()[7]
            })
            .collect();
        client.send(&bytes, &[]).unwrap();
        client.stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(client.ends());
    }
    stage.settle();
}

#[test]
fn sizes_outside_of_the_limits_are_answered_and_end_the_connection() {
    let stage = Stage::new();
    for (size, errno) in [
        (0, Errno::EINVAL),
        (10, Errno::EINVAL),
        (15, Errno::EINVAL),
        (64 * 1024 + 1, Errno::EMSGSIZE),
        (1 << 30, Errno::EMSGSIZE),
        (u32::MAX, Errno::EMSGSIZE),
    ] {
        for command in [vfio::CMD_VERSION, vfio::CMD_REGION_READ, 999] {
            let mut client = stage.raw();
            let mut header = client.header(command, 0);
            header.size = size;
            client.send(header.as_bytes(), &[]).unwrap();
            let reply = client.reply().unwrap();
            assert_eq!(reply.header.error, errno as u32);
            assert_ne!(reply.header.flags & vfio::FLAG_ERROR, 0);
            assert!(client.reply().is_none());
        }
    }
    stage.settle();
}

#[test]
fn a_version_that_is_none_ends_the_connection() {
    let stage = Stage::new();
    let unterminated = [&[0, 0, 1, 0][..], b"{\"capabilities\":{}}"].concat();
    let no_json = [&[0, 0, 1, 0][..], b"nonsense\0"].concat();
    for payload in [&[][..], &[0, 0], &unterminated, &no_json, &[9, 0, 0, 0]] {
        let mut client = stage.raw();
        assert!(client.call(vfio::CMD_VERSION, payload, &[]).is_err());
        assert!(client.reply().is_none());
    }
    // Anything else before VERSION, too.
    let mut client = stage.raw();
    let info = vfio::DeviceInfo {
        argsz: 16,
        ..Default::default()
    };
    let answer = client.call(vfio::CMD_DEVICE_GET_INFO, info.as_bytes(), &[]);
    assert_eq!(answer.unwrap_err(), Errno::EINVAL);
    assert!(client.reply().is_none());
    stage.settle();
}

#[test]
fn a_second_version_is_refused_and_nothing_else() {
    let stage = Stage::new();
    let mut client = stage.cluster.client();
    assert_eq!(client.version().unwrap_err(), Errno::EINVAL);
    assert_eq!(client.register(regs::MAGIC), regs::MAGIC_VALUE);
    drop(client);
    stage.settle();
}

#[test]
fn unknown_commands_are_refused_and_the_stream_stays_in_step() {
    let stage = Stage::new();
    let mut client = stage.cluster.client();
    for command in [0, 11, 12, 14, 16, 999, u16::MAX] {
        for len in [0, 1, 100, 65_520] {
            let answer = client.call(command, &vec![0xff; len], &[]);
            assert_eq!(answer.unwrap_err(), Errno::ENOTSUP);
        }
    }
    assert_eq!(client.register(regs::MAGIC), regs::MAGIC_VALUE);
    drop(client);
    stage.settle();
}

#[test]
fn truncated_payloads_are_refused_and_the_stream_stays_in_step() {
    let stage = Stage::new();
    let mut client = stage.cluster.client();
    for command in 2..=15 {
        for len in [0, 1, 7] {
            if (command, len) == (vfio::CMD_DEVICE_RESET, 0) {
                continue;
            }
            assert!(client.call(command, &vec![0; len], &[]).is_err());
        }
    }
    assert_eq!(client.register(regs::MAGIC), regs::MAGIC_VALUE);
    drop(client);
    stage.settle();
}

#[test]
fn accesses_outside_of_regions_and_registers_are_refused() {
    let stage = Stage::new();
    let mut client = stage.cluster.client();
    for (region, offset, count) in [
        (0, 0, 1 << 30),
        (0, 0, 3),
        (0, 0, 16),
        (0, regs::BAR0_LEN, 4),
        (0, u64::MAX, 8),
        (1, 0, 4),
        (2, uar::BAR2_LEN - 4, 8),
        (2, u64::MAX, 8),
        (2, 1 << 63, 8),
        (2, 0, 1 << 30),
        (4, 4095, 2),
        (7, 255, 2),
        (7, u64::MAX, 1),
        (8, 0, 1),
        (9, 0, 1),
        (u32::MAX, 0, 1),
    ] {
        let answer = client.read_region(region, offset, count);
        assert_eq!(answer, Err(Errno::EINVAL), "{region} {offset} {count}");
        if count <= 16 {
            let answer = client.write_region(region, offset, &vec![0; count as usize]);
            assert_eq!(answer, Err(Errno::EINVAL), "{region} {offset} {count}");
        }
    }
    for index in [9, 100, 0x7fff_ffff] {
        assert_eq!(client.region_info(index).unwrap_err(), Errno::EINVAL);
    }
    assert_eq!(client.read_region(7, 0, 256).unwrap().len(), 256);
    drop(client);
    stage.settle();
}

#[test]
fn memory_that_may_shrink_or_is_too_small_or_no_memory_is_refused() {
    let stage = Stage::new();
    let mut client = stage.cluster.client();
    let unsealed = memfd(1 << 20, SealFlag::empty());
    let grow_only = memfd(1 << 20, SealFlag::F_SEAL_GROW);
    let small = sealed(4096);
    let (pipe, _ends) = pipe_ends(1);
    let zero: OwnedFd = std::fs::File::open("/dev/zero").unwrap().into();
    for fd in [&unsealed, &grow_only, &small, &pipe, &zero] {
        let answer = client.map(Some(fd.as_raw_fd()), 1 << 30, 1 << 20);
        assert_eq!(answer, Err(Errno::EINVAL));
    }
    let good = sealed(1 << 20);
    for (iova, size) in [
        (1 << 30, 0),
        (1 << 30, 100),
        (1, 4096),
        (u64::MAX - 4095, 8192),
        (0, u64::MAX),
    ] {
        let answer = client.map(Some(good.as_raw_fd()), iova, size);
        assert_eq!(answer, Err(Errno::EINVAL), "{iova:#x} {size:#x}");
    }
    let fd = Some(good.as_raw_fd());
    assert_eq!(client.map(fd, 1 << 30, 1 << 20), Ok(()));
    assert_eq!(client.map(fd, (1 << 30) + 4096, 4096), Err(Errno::EEXIST));
    assert_eq!(stage.cluster.counters().windows, 1);
    drop(client);
    stage.settle();
}

#[test]
fn windows_are_bounded_in_number() {
    let stage = Stage::new();
    let mut client = stage.cluster.client();
    let memory = sealed(4096);
    let mut mapped = 0u64;
    let errno = loop {
        let iova = (1 << 30) + mapped * 4096;
        match client.map(Some(memory.as_raw_fd()), iova, 4096) {
            Ok(()) => mapped += 1,
            Err(errno) => break errno,
        }
        assert!(mapped < 100_000, "no bound");
    };
    // Windows keep their descriptors: where those are scarce, they are the bound.
    assert!(matches!(errno, Errno::ENOSPC | Errno::EMFILE), "{errno}");
    let unmap = vfio::DmaUnmap {
        argsz: 24,
        flags: vfio::DMA_UNMAP_ALL,
        address: 0,
        size: 0,
    };
    client
        .call(vfio::CMD_DMA_UNMAP, unmap.as_bytes(), &[])
        .unwrap();
    assert_eq!(stage.cluster.counters().windows, 0);
    drop(client);
    stage.settle();
}

#[test]
fn the_own_windows_can_be_fetched_and_no_others() {
    let stage = Stage::new();
    let mut client = stage.cluster.client();
    let mut other = stage.cluster.client();
    let memory = sealed(1 << 20);
    client
        .map(Some(memory.as_raw_fd()), 4 << 30, 1 << 20)
        .unwrap();
    let (info, fds) = client.region_info(0x8000_0004).unwrap();
    assert_eq!((info.size, info.offset), (1 << 20, 0));
    assert_eq!(info.flags & vfio::REGION_MMAP, vfio::REGION_MMAP);
    let inode = |fd: &OwnedFd| nix::sys::stat::fstat(fd).unwrap().st_ino;
    assert_eq!(inode(&fds[0]), inode(&memory));
    assert_eq!(client.region_info(0x8000_0005).unwrap_err(), Errno::ENOENT);
    assert_eq!(other.region_info(0x8000_0004).unwrap_err(), Errno::ENOENT);
    drop((client, other));
    stage.settle();
}

#[test]
fn descriptors_where_none_belong_are_closed_and_the_command_refused() {
    let stage = Stage::new();
    let mut client = stage.cluster.client();
    let info = vfio::DeviceInfo {
        argsz: 16,
        ..Default::default()
    };
    let access = vfio::RegionAccess {
        offset: 0,
        region: 7,
        count: 4,
    };
    for (command, payload) in [
        (vfio::CMD_DEVICE_GET_INFO, info.as_bytes()),
        (vfio::CMD_REGION_READ, access.as_bytes()),
        (vfio::CMD_DEVICE_RESET, &[]),
        (999, &[]),
    ] {
        let (read, ends) = pipe_ends(2);
        assert!(client.call(command, payload, &numbers(&ends)).is_err());
        drop(ends);
        all_closed(&read);
    }
    drop(client);
    stage.settle();
}

#[test]
fn more_descriptors_than_announced_are_closed_and_refused() {
    let stage = Stage::new();
    let mut client = stage.cluster.client();
    let (read, ends) = pipe_ends(17);
    let answer = client.set_irqs(0x24, 0, 17, &[], &numbers(&ends));
    assert_eq!(answer, Err(Errno::EMFILE));
    // As many in several pieces of one message.
    let mut header = client.header(vfio::CMD_DEVICE_RESET, 0);
    header.size = 16 + 100;
    let bytes = [header.as_bytes(), &[0; 100]].concat();
    for chunk in bytes.chunks(4) {
        client.send(chunk, &numbers(&ends[..1])).unwrap();
    }
    let reply = client.reply().unwrap();
    assert_eq!(reply.header.error, Errno::EMFILE as u32);
    drop(ends);
    all_closed(&read);
    assert_eq!(client.register(regs::MAGIC), regs::MAGIC_VALUE);
    drop(client);
    stage.settle();
}

#[test]
fn vectors_take_eventfds_alone_and_no_numbers_outside_of_the_range() {
    let stage = Stage::new();
    let mut client = stage.cluster.client();
    let (assign, fire, some) = (0x24, 0x21, 0x22);
    let eventfd: OwnedFd = EventFd::new().unwrap().into();
    let good = eventfd.as_raw_fd();
    let (read, mut ends) = pipe_ends(1);
    let pipe = ends[0].as_raw_fd();
    for (flags, start, count, data, fds) in [
        (assign, 0, 2, &[][..], &[good, pipe][..]),
        (assign, 64, 1, &[], &[good]),
        (assign, u32::MAX, 1, &[], &[good]),
        (assign, 63, 2, &[], &[good, good]),
        (assign, 0, 1, &[], &[good, good]),
        (fire, 0, 65, &[], &[]),
        (fire, 1, 0, &[], &[]),
        (some, 0, 2, &[1], &[]),
        (some, 0, 1, &[1], &[good]),
        (0x20, 0, 1, &[], &[]),
        (0x01, 0, 1, &[], &[]),
    ] {
        let answer = client.set_irqs(flags, start, count, data, fds);
        assert_eq!(answer, Err(Errno::EINVAL), "{flags:#x} {start} {count}");
    }
    ends.clear();
    all_closed(&read);
    // None of the refused messages connected anything.
    client.set_irqs(fire, 0, 64, &[], &[]).unwrap();
    assert_eq!(eventfd_count(good), 0);
    client.set_irqs(assign, 5, 1, &[], &[good]).unwrap();
    client.set_irqs(some, 4, 3, &[1, 1, 0], &[]).unwrap();
    assert_eq!(eventfd_count(good), 1);
    drop(client);
    stage.settle();
}

#[test]
fn a_full_eventfd_blocks_nobody() {
    let stage = Stage::new();
    let mut client = stage.cluster.client();
    let eventfd = EventFd::from_value(0).unwrap();
    eventfd.write(u64::MAX - 1).unwrap();
    let eventfd = OwnedFd::from(eventfd);
    client
        .set_irqs(0x24, 0, 1, &[], &[eventfd.as_raw_fd()])
        .unwrap();
    client.set_irqs(0x21, 0, 1, &[], &[]).unwrap();
    assert_eq!(eventfd_count(eventfd.as_raw_fd()), u64::MAX - 1);
    drop(client);
    stage.settle();
}

#[test]
fn io_fds_name_the_kick() {
    let stage = Stage::new();
    let mut client = stage.cluster.client();
    let mut ask = |index, argsz| {
        let info = vfio::RegionIoFds {
            argsz,
            flags: 0,
            index,
            count: 0,
        };
        client.call(vfio::CMD_DEVICE_GET_REGION_IO_FDS, info.as_bytes(), &[])
    };
    let short = ask(0, 16).unwrap();
    assert_eq!((short.payload.len(), short.fds.len()), (16, 0));
    let info = vfio::RegionIoFds::read_from_bytes(&short.payload).unwrap();
    assert_eq!((info.argsz, info.count), (56, 1));
    assert!(ask(2, 4096).unwrap().fds.is_empty());
    assert_eq!(ask(9, 4096).unwrap_err(), Errno::EINVAL);
    let full = ask(0, info.argsz).unwrap();
    let entry = vfio::SubRegionIoEventFd::read_from_bytes(&full.payload[16..]).unwrap();
    assert_eq!((entry.offset, entry.size), (regs::KICK, 4));
    let kick = &full.fds[0];
    let counters = stage.cluster.counters();
    nix::unistd::write(kick, &1u64.to_ne_bytes()).unwrap();
    let kicks = || stage.cluster.counters().kicks;
    eventually("kicked", kicks, |&kicks| kicks > counters.kicks);
    // A client that makes the kick blocking and leaves it empty blocks itself alone.
    fcntl(kick, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    drop(full);
    drop(client);
    stage.settle();
}

#[test]
fn several_writes_in_one_message_are_done_in_order_up_to_the_first_bad_one() {
    let stage = Stage::new();
    let mut client = stage.cluster.client();
    let entry = |region, offset, count, data| vfio::WriteMultiEntry {
        offset,
        region,
        count,
        data,
    };
    let message = |count: u64, entries: &[vfio::WriteMultiEntry]| {
        let mut payload = count.to_le_bytes().to_vec();
        entries
            .iter()
            .for_each(|e| payload.extend_from_slice(e.as_bytes()));
        payload
    };
    let good = [entry(7, 0x3c, 1, 5), entry(0, regs::DRIVER_FEATURES, 8, 1)];
    let command = vfio::CMD_REGION_WRITE_MULTI;
    let reply = client.call(command, &message(2, &good), &[]).unwrap();
    assert_eq!(reply.payload, 2u64.to_le_bytes());
    assert_eq!(client.register(regs::DRIVER_FEATURES), 1);
    assert_eq!(client.read_region(7, 0x3c, 1), Ok(vec![5]));
    for payload in [
        message(3, &good),
        message(1, &good),
        message(u64::MAX, &good),
        message(1, &[entry(7, 0x3c, 9, 0)]),
        message(2, &[entry(7, 0x3c, 1, 6), entry(7, 256, 1, 0)]),
    ] {
        assert_eq!(
            client.call(command, &payload, &[]).unwrap_err(),
            Errno::EINVAL
        );
    }
    assert_eq!(client.read_region(7, 0x3c, 1), Ok(vec![6]));
    drop(client);
    stage.settle();
}

#[test]
fn dirty_page_requests_and_masks_by_eventfd_are_not_supported() {
    let stage = Stage::new();
    let mut client = stage.cluster.client();
    let unmap = |flags, address| vfio::DmaUnmap {
        argsz: 24,
        flags,
        address,
        size: 4096,
    };
    for (unmap, errno) in [
        (unmap(1, 0), Errno::ENOTSUP),
        (unmap(2, 0), Errno::EINVAL),
        (unmap(0, 1 << 30), Errno::ENOENT),
    ] {
        let answer = client.call(vfio::CMD_DMA_UNMAP, unmap.as_bytes(), &[]);
        assert_eq!(answer.unwrap_err(), errno);
    }
    let event: OwnedFd = EventFd::new().unwrap().into();
    for action in [0x0c, 0x14] {
        let answer = client.set_irqs(action, 0, 1, &[], &[event.as_raw_fd()]);
        assert_eq!(answer, Err(Errno::ENOTSUP));
    }
    drop(client);
    stage.settle();
}

#[test]
fn a_disconnect_in_the_middle_of_a_message_ends_the_function_alone() {
    let stage = Stage::new();
    for cut in [1, 15, 16, 17, 40] {
        let mut client = stage.cluster.client();
        let header = client.header(999, 100);
        let bytes = [header.as_bytes(), &[0; 100]].concat();
        client.send(&bytes[..cut], &[]).unwrap();
    }
    stage.settle();
}
