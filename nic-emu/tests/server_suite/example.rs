//! The device of examples/scratch_device.rs: what the server does for a device of somebody else.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use nic_emu::server::vfio::{Failure, serve};
use nix::errno::Errno;
use nix::fcntl::SealFlag;
use nix::sys::eventfd::{EfdFlags, EventFd};
use ring_proto::vfio;
use zerocopy::{FromBytes, IntoBytes};

use super::harness::{RawClient, eventfd_count, memfd, version_payload};

#[path = "../../examples/scratch_device.rs"]
#[expect(dead_code, reason = "the example's own main")]
mod scratch_device;

use scratch_device::{ID, ScratchDevice};

/// A client of a scratch device, and the thread that serves it.
fn served() -> (RawClient, JoinHandle<std::io::Result<()>>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = std::thread::spawn(move || serve(theirs, || Ok(ScratchDevice::new())));
    let mut client = RawClient::over(ours);
    client.version().unwrap();
    (client, server)
}

fn read(client: &mut RawClient, register: u64) -> u64 {
    let bytes = client.read_region(0, register, 8).unwrap();
    u64::from_le_bytes(bytes.try_into().unwrap())
}

fn write(client: &mut RawClient, register: u64, value: u64) -> Result<(), Errno> {
    client.write_region(0, register, &value.to_le_bytes())
}

fn irqs(client: &mut RawClient, flags: u32, fds: &[i32]) -> Result<(), Errno> {
    let set = vfio::IrqSet {
        argsz: 20,
        flags,
        index: 0,
        start: 0,
        count: 1,
    };
    let bytes = set.as_bytes();
    client.call(vfio::CMD_DEVICE_SET_IRQS, bytes, fds).map(drop)
}

#[test]
fn its_registers_memory_and_interrupt_work_over_the_protocol() {
    let (mut client, server) = served();
    assert_eq!(read(&mut client, 0), ID);
    write(&mut client, 8, 0xfeed).unwrap();
    assert_eq!(read(&mut client, 8), 0xfeed);

    let memory = memfd(8192, SealFlag::F_SEAL_SHRINK);
    nix::sys::uio::pwrite(&memory, &[3; 5000], 100).unwrap();
    client.map(Some(memory.as_raw_fd()), 1 << 20, 8192).unwrap();
    let vector: OwnedFd = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap().into();
    irqs(&mut client, 0x24, &[vector.as_raw_fd()]).unwrap();
    write(&mut client, 0x10, 1 << 20).unwrap();
    write(&mut client, 0x18, 8192).unwrap();
    write(&mut client, 0x20, 1).unwrap();
    assert_eq!(
        (read(&mut client, 0x28), read(&mut client, 0x30)),
        (15_000, 1)
    );
    assert_eq!(eventfd_count(vector.as_raw_fd()), 1);

    // Masked: pending until it is let go.
    irqs(&mut client, 0x09, &[]).unwrap();
    write(&mut client, 0x18, 8193).unwrap();
    write(&mut client, 0x20, 1).unwrap();
    assert_eq!((read(&mut client, 0x28), read(&mut client, 0x30)), (0, 2));
    assert_eq!(eventfd_count(vector.as_raw_fd()), 1);
    irqs(&mut client, 0x11, &[]).unwrap();
    assert_eq!(eventfd_count(vector.as_raw_fd()), 2);

    client.call(vfio::CMD_DEVICE_RESET, &[], &[]).unwrap();
    assert_eq!((read(&mut client, 8), read(&mut client, 0)), (0, ID));
    drop(client);
    server.join().unwrap().unwrap();
}

#[test]
fn it_sees_nothing_malformed_and_its_refusals_reach_the_client() {
    let (mut client, server) = served();
    let info = vfio::DeviceInfo {
        argsz: 16,
        ..Default::default()
    };
    let reply = client.call(vfio::CMD_DEVICE_GET_INFO, info.as_bytes(), &[]);
    let info = vfio::DeviceInfo::read_from_bytes(&reply.unwrap().payload).unwrap();
    assert_eq!((info.flags, info.num_regions, info.num_irqs), (1, 1, 1));
    assert_eq!(client.region_info(0).unwrap().0.size, 56);
    assert_eq!(client.region_info(1).unwrap_err(), Errno::EINVAL);
    for (offset, count) in [(56, 8), (0, 4), (4, 8), (u64::MAX, 8), (0, 65_000)] {
        let answer = client.read_region(0, offset, count);
        assert_eq!(answer, Err(Errno::EINVAL), "{offset} {count}");
    }
    assert_eq!(
        write(&mut client, 0, 1),
        Err(Errno::EPERM),
        "ID is read-only"
    );
    let garbage = client.call(999, &[1; 100], &[]);
    assert_eq!(garbage.unwrap_err(), Errno::ENOTSUP);
    // No registers with eventfds: the optional part of the trait.
    let io = vfio::RegionIoFds {
        argsz: 16,
        ..Default::default()
    };
    let reply = client.call(vfio::CMD_DEVICE_GET_REGION_IO_FDS, io.as_bytes(), &[]);
    assert_eq!(reply.unwrap().fds.len(), 0);
    // A message that cannot be followed ends the connection, not the server's thread.
    client.send(&[0xff; 16], &[]).unwrap();
    assert!(client.ends());
    server.join().unwrap().unwrap();
}

#[test]
fn a_device_that_cannot_be_opened_is_refused_with_its_errno() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = std::thread::spawn(move || {
        serve(theirs, || {
            Err::<ScratchDevice, _>(Failure::Refused(Errno::ENODEV))
        })
    });
    let mut client = RawClient::over(ours);
    let answer = client.call(vfio::CMD_VERSION, &version_payload(), &[]);
    assert_eq!(answer.unwrap_err(), Errno::ENODEV);
    assert!(client.ends());
    server.join().unwrap().unwrap();
}

#[test]
fn it_is_as_short_as_an_example_should_be() {
    let source = include_str!("../../examples/scratch_device.rs");
    let lines = source.lines().count();
    assert!(lines <= 150, "{lines} lines");
}
